"""Pipe() and its connections. Mirrors multiprocessing/connection.py: Pipe, Connection.

Messages lie in the family's shared memory (capi/front/pipe.h), so a call copies bytes there or from there, and makes a system call only
if the other side sleeps. Differences from the standard library:

* connections can be sent through pipes, queues and to pools at any time, and arrive even if their sender is dead by then;
* ``recv`` raises EOFError also if the sender was killed in the middle of a message, or has left messages from us unread;
* a program that would wait for ever, because all who could still send wait for the receiver to end, gets EOFError (see _deserted.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

from . import _abi, _deserted, _errors, context, reduction
from ._lib import lib, pylib
from .connection import Connection as _Stream
from .connection import RecvT_co, SendT_contra, _Base
from .queues import _Channel, _dumps, _loads, _unsent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Connection", "Pipe"]

_DUPLEX = 1

# Messages up to this size are received into a buffer that is there already; bigger ones are read where they lie.
_ROOM = 16384

# How long a receiver waits before it looks whether anybody is left who could send, milliseconds.
_LOOK = 600

_AGAIN = (_errors.TIMEOUT, _errors.INTERRUPTED)


class _Buffer:
    """Room for a message, and where it is."""

    __slots__ = ("address", "memory", "view")

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(_ROOM)
        self.view = memoryview(self.memory).cast("B")
        self.address = ctypes.addressof(self.memory)


# Buffers that no call uses. (list.pop and list.append are atomic.)
_buffers: list[_Buffer] = []


def _milliseconds(timeout: float | None) -> int:
    """For the library: rounded up; at most a month at a time."""
    if timeout is None:
        return -1
    if timeout <= 0:
        return 0
    return int(min(timeout, 2592000.0) * 1000) + 1


def _copy(address: int, size: int) -> bytes:
    if size < 1 << 31:
        return ctypes.string_at(address, size)  # whose size is an int of C
    return (ctypes.c_char * size).from_address(address).raw


def _load(address: int, size: int) -> Any:
    return _loads((ctypes.c_char * size).from_address(address))


def _bytes_of(data: Any) -> tuple[Any, int]:
    """What ctypes takes for a pointer to the bytes of ``data``, which are bytes or a view of bytes; and how many."""
    size = len(data)
    if type(data) is bytes:
        return data, size
    if size == 0:
        return None, 0
    if data.readonly:
        whole = data.obj
        if type(whole) is bytes and size == len(whole):
            return whole, size
        return bytes(data), size
    return (ctypes.c_char * size).from_buffer(data), size


# ---- connections


class Connection(_Channel, _Stream[SendT_contra, RecvT_co]):
    """One end of a pipe: a connection as those of listeners are, whose messages lie in shared memory and do not go through the descriptor.

    Args:
        handle: pp_pipe, which belongs to the connection from then on.
        readable, writable: what the end can do.
    """

    def __init__(self, handle: int, readable: bool = True, writable: bool = True) -> None:
        _Base.__init__(self, handle, readable, writable)
        now = pylib()
        self._fd: int | None = None
        self._free: Callable[[int], int] = now.pp_pipe_free
        self._send_now: Callable[..., int] = now.pp_pipe_send
        self._recv_now: Callable[..., int] = now.pp_pipe_recv_now
        self._adopt(handle, 1, 0, _dumps, _loads, Connection._slow_send, Connection._slow_recv)

    def _close(self, handle: int) -> None:  # type: ignore[override]
        self._retire()
        self._free(handle)

    def fileno(self) -> int:
        """A descriptor that can be read, as far as select, poll and epoll are concerned, exactly when a message is there or the other end
        is closed. It is for nothing else.

        Raises:
            OSError: closed.
        """
        handle = self._check_closed()
        if self._fd is None:
            fd = ctypes.c_int32()
            while True:
                status = lib().pp_pipe_descriptor(handle, ctypes.byref(fd))
                if status != _errors.INTERRUPTED:
                    break
            self._check(status)
            self._fd = fd.value
        return self._fd

    def _check(self, status: int) -> None:
        """Raise what stands for a status of the library."""
        if status >= 0:
            return
        if status == _errors.EOF:
            raise EOFError
        if status in (_errors.HANDLE, _errors.CLOSED):
            raise OSError("handle is closed")
        if status == _errors.STATE:
            raise OSError(lib().pp_last_error().decode("utf-8", "replace"))
        raise _errors.error(status)

    # ---- sending

    def _send_bytes(self, data: Any) -> None:
        self._send_noting(data, [])

    def _send_noting(self, data: Any, outcomes: list[int]) -> None:
        """Send bytes. A 0 in ``outcomes``: they are sent, even if a signal handler has raised an exception since."""
        address, size = _bytes_of(data)
        status = _errors.TIMEOUT
        if size <= _ROOM:
            status = reduction.note(outcomes, self._send_now, self._handle, address, size, 0)
        if status:
            self._send_waiting(status, lib().pp_pipe_send, address, size, outcomes)

    def _send_large(self, data: bytes) -> None:
        """Send the pickle of bytes, which is them and a little before and behind: it is put together in the shared memory only."""
        head = b"\x80\x04\x8e" + len(data).to_bytes(8, "little")  # PROTO 4, BINBYTES8
        parts = (_abi.Part * 3)()
        for part, piece in zip(parts, (head, data, b".")):
            part.data = ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p).value
            part.size = len(piece)
        self._send_waiting(_errors.TIMEOUT, lib().pp_pipe_send_parts, parts, 3, [])

    def _send_waiting(self, status: int, send: Callable[..., int], what: Any, size: int, outcomes: list[int]) -> None:
        while status:
            if status in _AGAIN:
                status = reduction.note(outcomes, send, self._check_closed(), what, size, -1)
            elif status == _errors.EOF:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            else:
                self._check(status)

    @staticmethod
    def _unsent(obj: Any, data: bytes) -> None:
        """For the library's type: the message was not sent."""
        _unsent(obj, data)

    def _slow_send(self, obj: Any, block: bool = True, timeout: None = None, data: bytes | None = None) -> None:
        self._check_writable()
        if data is None and type(obj) is bytes and len(obj) > _ROOM:
            self._send_large(obj)
        else:
            if data is None:
                data = _dumps(obj)
            outcomes: list[int] = []
            try:
                self._send_noting(data, outcomes)
            except BaseException:
                if 0 not in outcomes:
                    _unsent(obj, data)
                raise

    # ---- receiving

    def _wait_and_recv(self, address: Any, room: int) -> int:
        """pp_pipe_recv without a limit of time: a size, or TOO_BIG."""
        recv = lib().pp_pipe_recv
        size: int = recv(self._handle, address, room, _LOOK)
        while size < 0 and size != _errors.TOO_BIG:
            if size == _errors.TIMEOUT:
                size = self._wait_long(address, room)
            elif size == _errors.INTERRUPTED:
                size = recv(self._check_closed(), address, room, _LOOK)
            else:
                self._check(size)
        return size

    def _wait_long(self, address: Any, room: int) -> int:
        """The same for one that has waited in vain: it looks now and then whether somebody is left who could send.

        Raises:
            EOFError: nobody is.
        """
        handle = self._check_closed()
        recv = lib().pp_pipe_recv
        _deserted.enter(handle, 0)
        try:
            while True:
                began = time.monotonic()
                if _deserted.deserted(handle):
                    raise EOFError
                # Where looking is expensive it is done seldom: at most 1/200 of the time.
                spent = time.monotonic() - began
                size: int = recv(handle, address, room, max(_LOOK, min(int(spent * 200_000), 16 * _LOOK)))
                if size != _errors.TIMEOUT:
                    return size
        finally:
            _deserted.leave()

    def _take(self, use: Callable[[int, int], Any]) -> Any:
        """What ``use(address, size)`` makes of the next message, where it lies."""
        message = _abi.PipeMessage()
        where = ctypes.byref(message)
        take = lib().pp_pipe_take
        while True:
            status = take(self._check_closed(), -1, where)
            if status == 0:
                break
            if status != _errors.INTERRUPTED:
                self._check(status)
        try:
            return use(message.data, message.size)
        finally:
            lib().pp_pipe_message_free(where)

    def _recv_with(self, use: Callable[[int, int], Any]) -> Any:
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = _Buffer()
        try:
            size = self._recv_now(self._handle, buffer.address, _ROOM)
            if size < 0 and size != _errors.TOO_BIG:
                size = self._wait_and_recv(buffer.address, _ROOM)
            if size >= 0:
                return use(buffer.address, size)
        finally:
            _buffers.append(buffer)
        return self._take(use)

    def _slow_recv(self) -> Any:
        self._check_readable()
        return self._recv_with(_load)

    def _recv_bytes(self, maxsize: int | None) -> Any:
        if maxsize is None:
            return self._recv_with(_copy)
        data = self._recv_with(lambda address, size: _copy(address, size) if size <= maxsize else None)
        if data is None:
            self._retire()
            self._bad_message_length()
        return data

    def _recv_into(self, view: memoryview) -> int:
        room = len(view)
        address = (ctypes.c_char * room).from_buffer(view) if room else None
        size = self._recv_now(self._handle, address, room)
        if size < 0 and size != _errors.TOO_BIG:
            size = self._wait_and_recv(address, room)
        if size < 0:
            raise context.BufferTooShort(self._recv_bytes(None))
        return size

    def _poll(self, timeout: float | None) -> bool:
        if timeout is not None and timeout <= 0:
            status = pylib().pp_pipe_poll(self._handle, 0, None)
        else:
            deadline = None if timeout is None else time.monotonic() + timeout
            left = timeout
            poll = lib().pp_pipe_poll
            while True:
                status = poll(self._check_closed(), _milliseconds(left), None)
                if status not in _AGAIN:
                    break
                if deadline is not None:
                    left = deadline - time.monotonic()
                    if status == _errors.TIMEOUT and left <= 0:
                        break
        if status == _errors.TIMEOUT:
            return False
        if status != _errors.EOF:
            self._check(status)
        return True

    # ---- descriptors, for reduction.send_handle and recv_handle

    def _send_fd(self, fd: int) -> None:
        """Send a copy of a descriptor."""
        self._check_writable()
        while True:
            status = lib().pp_pipe_send_fd(self._check_closed(), fd, -1)
            if status == 0:
                return
            if status == _errors.EOF:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            if status == _errors.INVALID:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if status != _errors.INTERRUPTED:
                self._check(status)

    def _recv_fd(self) -> int:
        """Receive a descriptor.

        Raises:
            RuntimeError: something else comes next.
        """
        self._check_readable()
        fd = ctypes.c_int32()
        while True:
            status = lib().pp_pipe_recv_fd(self._check_closed(), -1, ctypes.byref(fd))
            if status == 0:
                return fd.value
            if status in (_errors.STATE, _errors.CORRUPT):
                raise RuntimeError(lib().pp_last_error().decode("utf-8", "replace"))
            if status != _errors.INTERRUPTED:
                self._check(status)

    # ---- on the way to other processes

    def __reduce__(self) -> Any:
        handle = self._check_closed()
        context.check_receiver("Connection")
        ref = ctypes.create_string_buffer(32)
        dup = None
        if context.get_spawning_popen() is not None:
            # A process is being started: it inherits the descriptor.
            fd = ctypes.c_int32()
            _errors.check(lib().pp_pipe_info(handle, None, ctypes.byref(fd)))
            dup = reduction.DupFd(fd.value)
        _errors.check(lib().pp_pipe_export(handle, dup is None, ref))
        return _rebuild, (reduction.exported(ref.raw), dup, self._readable, self._writable)

    # In C, see capi/front/pychannel.c: what can be done at once.
    if not TYPE_CHECKING:
        send = getattr(_Channel, "_put", _slow_send)
        recv = getattr(_Channel, "_get", _slow_recv)


def _rebuild(ref: bytes, dup: Any, readable: bool, writable: bool) -> Connection:
    handle = ctypes.c_uint64()
    fd = -1 if dup is None else dup.detach()
    _errors.check(lib().pp_pipe_import(ref, fd, ctypes.byref(handle)))
    return Connection(handle.value, readable, writable)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """A new pipe: its two ends, or, if not duplex, first the one that only receives, then the one that only sends.

    Raises:
        OSError: no descriptor is left, or another limit of the system.
        MemoryError: no shared memory.
    """
    ends = (ctypes.c_uint64 * 2)()
    _errors.check(lib().pp_pipe_create(_DUPLEX if duplex else 0, ends))
    return Connection(ends[0], writable=bool(duplex)), Connection(ends[1], readable=bool(duplex))
