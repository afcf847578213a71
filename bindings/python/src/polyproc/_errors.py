"""Status codes of the C library as exceptions."""

from __future__ import annotations

import errno
import os
import threading

from . import context

OK = 0
INVALID = -1
HANDLE = -2
NOMEM = -3
TIMEOUT = -4
INTERRUPTED = -5
CLOSED = -6
STATE = -7
WORKER_LOST = -8
START = -9
INIT = -10
CANCELLED = -11
TASK = -12
NOT_FOUND = -13
EXISTS = -14
TOO_BIG = -15
CORRUPT = -16
UNSUPPORTED = -17
FORKED = -18
ENGINE = -19
SYSTEM = -20
PANIC = -21
OWNER_DIED = -22
EMPTY = -23
FULL = -24
BROKEN = -25
EOF = -26
PERMISSION = -27

_CLASSES: dict[int, type[Exception]] = {
    INVALID: ValueError,
    HANDLE: ValueError,
    NOMEM: MemoryError,
    TIMEOUT: context.TimeoutError,
    INTERRUPTED: InterruptedError,
    CLOSED: ValueError,
    STATE: RuntimeError,
    WORKER_LOST: context.WorkerLost,
    START: context.StartError,
    INIT: context.InitializerError,
    CANCELLED: context.ProcessError,
    TASK: context.ProcessError,
    NOT_FOUND: FileNotFoundError,
    EXISTS: FileExistsError,
    TOO_BIG: ValueError,
    CORRUPT: context.ProcessError,
    UNSUPPORTED: NotImplementedError,
    FORKED: RuntimeError,
    ENGINE: ImportError,
    SYSTEM: OSError,
    PANIC: SystemError,
    OWNER_DIED: context.OwnerDiedError,
    # Queues raise queue.Empty and queue.Full themselves.
    EMPTY: context.ProcessError,
    FULL: context.ProcessError,
    BROKEN: threading.BrokenBarrierError,
    EOF: EOFError,
    PERMISSION: PermissionError,
}

_ERRNO = {
    INTERRUPTED: errno.EINTR,
    NOT_FOUND: errno.ENOENT,
    EXISTS: errno.EEXIST,
    PERMISSION: errno.EACCES,
}


def _errno_at_end_of(message: str) -> int | None:
    """The number of the system's error whose text ends the message, which is how the library gives its reason; or None."""
    text = message.lower()
    for number in errno.errorcode:
        if text.endswith(os.strerror(number).lower()):
            return number
    return None


def error(status: int, message: str | None = None) -> Exception:
    """The exception for a status other than OK.

    Args:
        status: a ``PP_ERR_`` code.
        message: what happened, in words; None asks ``pp_last_error()``, which is right directly after the failing call, in the
            same thread.
    """
    if message is None and status == OWNER_DIED:
        message = (
            "the holder of the lock has died, and what the lock protects may be half done; the lock was not acquired. "
            "lock.recover() acquires it all the same; Lock(recover=True) makes a lock that needs no recovery"
        )
    if message is None:
        from ._lib import lib

        library = lib()
        message = library.pp_last_error().decode("utf-8", "replace")
        if not message:
            message = library.pp_strerror(status).decode("utf-8", "replace")
    cls = _CLASSES.get(status, context.ProcessError)
    if status in _ERRNO:
        return cls(_ERRNO[status], message)
    if status in (START, SYSTEM):
        number = _errno_at_end_of(message)
        if number is not None:
            return cls(number, message)
    return cls(message)


def check(status: int) -> None:
    """Raise the exception for ``status``, which a function of the library has just returned; do nothing if it is OK.

    Raises:
        ValueError: invalid argument, stale handle, closed, too big.
        MemoryError: out of memory, or a limit on memory, file size or address space.
        TimeoutError: this package's.
        OSError: a system call failed; FileNotFoundError, FileExistsError, PermissionError and InterruptedError where they say
            more.
        RuntimeError: not possible in this state; a handle of the process that forked this one.
        ProcessError: WorkerLost, StartError, InitializerError, and shared memory that is corrupt.
        NotImplementedError: not supported on this platform.
        ImportError: the engine could not be loaded.
        SystemError: an internal error of the library.
    """
    if status:
        raise error(status)
