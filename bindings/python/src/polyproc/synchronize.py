"""Locks, semaphores, conditions, events and barriers between processes. Mirrors multiprocessing/synchronize.py.

The objects lie in the shared memory of the family of processes (capi/front/sync.h) and cost no descriptor and no name. Differences from the
standard library:

* a process that is killed leaves none of them unusable. After the death of a holder, acquiring a :class:`Lock` or :class:`RLock` raises
  OwnerDiedError, in every process: the lock is not acquired, as what it protects may be half done, until ``lock.recover()``
  acquires it. ``Lock(recover=True)`` and ``RLock(recover=True)``, and the lock that a :class:`Condition` makes for itself, are acquired
  from a dead holder as if it had released them. A waiter that dies breaks a :class:`Barrier`;
* ``Semaphore(..., recover=True)``: what a process holds that dies is given back;
* they can be pickled at any time, so a lock may be sent through a queue or given to a task of a pool. Only what the standard
  library refuses when a process starts is refused: an object of a fork context in a process that is spawned;
* ``Condition.notify`` does not wait for those whom it wakes; waiters are woken in the order in which they came;
* ``Event.wait`` returns True if the event was set since it began to wait, even if it was cleared at once.

Where CPython's objects have their usual form, the methods of locks and semaphores are those of a C type of the library
(capi/front/pytypes.c); elsewhere, and with POLYPROC_PURE_CTYPES=1, they go through ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import operator
import os
import sys
import threading
import time
from functools import partial
from math import ceil

from . import _abi, _errors, context, process, reduction
from ._lib import lib, pylib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, NoReturn

    from .context import BaseContext

__all__ = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"]

RECURSIVE_MUTEX, SEMAPHORE = range(2)
SEM_VALUE_MAX = _abi.SEMAPHORE_MOST

BrokenBarrierError = threading.BrokenBarrierError

_INTERRUPTED = _errors.INTERRUPTED
_TIMEOUT = _errors.TIMEOUT


# ---- handles


def _is_fork(ctx: BaseContext | None) -> bool:
    if ctx is None:
        ctx = context._default_context.get_context()
    return ctx.get_start_method() == "fork"


def _export(obj: Any, handle: int) -> bytes:
    """A reference to the object, for pickling."""
    context.check_receiver(type(obj).__name__, obj._is_fork_ctx)
    return _reference(handle)


def _reference(handle: int) -> bytes:
    ref = ctypes.create_string_buffer(_abi.REF_SIZE)
    _errors.check(pylib().pp_ref_export(handle, ref))
    return reduction.exported(ref.raw)


def _import(ref: bytes, kind: int) -> int:
    handle = ctypes.c_uint64()
    if len(ref) != _abi.REF_SIZE:
        raise ValueError("not a reference to a shared object")
    _errors.check(pylib().pp_ref_import(ref, kind, ctypes.byref(handle), None))
    return handle.value


def _new(function: Callable[..., int], *args: int) -> int:
    handle = ctypes.c_uint64()
    _errors.check(function(*args, ctypes.byref(handle)))
    return handle.value


def _milliseconds(seconds: float) -> int:
    """What the library takes for so many seconds: not less, so that nobody is woken too early."""
    if not seconds > 0:
        return 0
    return -1 if seconds > 1e9 else ceil(seconds * 1000)


def _seconds(timeout: float | None) -> float | None:
    """The argument as a number; text is none, even if float() would read it."""
    if timeout is None:
        return None
    if isinstance(timeout, (str, bytes, bytearray)):
        raise TypeError(f"must be real number, not {type(timeout).__name__}")
    return float(timeout)


def _wait(call: Callable[[int], int], timeout: float | None) -> int:
    """Call until it is not ended by a signal; Python's own handlers run in between. Returns the status."""
    if timeout is None:
        while True:
            status = call(-1)
            if status != _INTERRUPTED:
                return status
    end = time.monotonic() + timeout
    while True:
        status = call(_milliseconds(timeout))
        if status != _INTERRUPTED:
            return status
        timeout = end - time.monotonic()


# ---- locks and semaphores

_SLICE = 0.5  # seconds: a signal that comes just before the system call is noticed after it


def _wait_in_slices(call: Callable[[int], int], timeout: float | None) -> int:
    """_wait for calls of which two are as good as one that takes as long."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _SLICE if end is None else end - time.monotonic()
        status = call(_milliseconds(min(left, _SLICE)))
        if status != _INTERRUPTED and (status != _TIMEOUT or (end is not None and left <= _SLICE)):
            return status


def _fail(status: int) -> NoReturn:
    if status == _errors.STATE:
        raise ValueError("semaphore or lock released too many times")
    raise _errors.error(status)


def _fail_recursive(status: int) -> NoReturn:
    if status == _errors.STATE:
        raise AssertionError("attempt to release recursive lock not owned by thread")
    raise _errors.error(status)


def _take(
    number: int,
    quick: Callable[[int, int], int],
    slow: Callable[[int, int], int],
    block: bool,
    timeout: float | None,
    fail: Callable[[int], NoReturn],
) -> bool:
    """Acquire with a call of the library: at once, or else without the GIL."""
    status = quick(number, 0)
    if status == _TIMEOUT and block:
        status = _wait_in_slices(lambda ms: slow(number, ms), timeout)
    if status not in (0, _TIMEOUT):
        fail(status)
    return bool(status == 0)


class _PureSemLock:
    """What the C type does, by ctypes."""

    __slots__ = ("_died", "_fail", "_free", "_give", "_kind", "_number", "_take", "_try")

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        self = super().__new__(cls)
        self._number = 0
        return self

    def _adopt(self, handle: int, kind: int, died: type[Exception], fail: Callable[[int], NoReturn]) -> None:
        quick, slow = pylib(), lib()
        self._number = handle
        self._kind = kind
        self._died = died
        self._fail = fail
        if kind == _abi.KIND_LOCK:
            self._try = quick.pp_lock_acquire
            self._take = slow.pp_lock_acquire
            self._give = quick.pp_lock_release
            self._free = quick.pp_lock_free
        else:
            self._try = quick.pp_semaphore_acquire
            self._take = slow.pp_semaphore_acquire
            self._give = quick.pp_semaphore_release
            self._free = quick.pp_semaphore_free

    def __del__(self) -> None:
        if self._number:
            self._free(self._number)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the semaphore or lock."""
        timeout = _seconds(timeout)
        if not self._number:
            raise ValueError("not initialized")
        return _take(self._number, self._try, self._take, block, timeout, self._fail)

    def release(self) -> None:
        """Release the semaphore or lock."""
        status = self._give(self._number)
        if status:
            self._fail(status)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *args: Any) -> None:
        if args[0] is not None and issubclass(args[0], self._died) and self._kind == _abi.KIND_LOCK and not self._is_mine():
            return  # a wait at a condition has lost the lock, and another process may have recovered it since
        self.release()

    def _notify(self, condition: int, n: int) -> bool:
        if not self._is_mine():
            return False
        _errors.check(pylib().pp_condition_notify(condition, min(n, SEM_VALUE_MAX)))
        return True

    def _is_mine(self) -> bool:
        return self._kind == _abi.KIND_LOCK and _lock_state(self._number).held == _abi.LOCK_BY_ME

    def _get_value(self) -> int:
        if self._kind == _abi.KIND_LOCK:
            return int(_lock_state(self._number).held == _abi.LOCK_FREE)
        value = ctypes.c_uint32()
        _errors.check(pylib().pp_semaphore_value(self._number, ctypes.byref(value)))
        return value.value


def _lock_state(handle: int) -> _abi.LockState:
    state = _abi.LockState()
    _errors.check(pylib().pp_lock_info(handle, ctypes.byref(state)))
    return state


def _fast_type() -> Any:
    """The C type, or the class above."""
    if (
        os.environ.get("POLYPROC_PURE_CTYPES", "0") in ("", "0")
        and sys.implementation.name == "cpython"
        and object.__basicsize__ == 16
    ):
        spec = pylib().pp_python_spec(_abi.PYTHON_SEMLOCK)
        if spec:
            make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(("PyType_FromSpec", ctypes.pythonapi))
            return make(spec)
    return _PureSemLock


if TYPE_CHECKING:
    _Base = _PureSemLock
else:
    _Base = _fast_type()


class _View:
    """``lock._semlock``: what programs that look into the standard library's locks find there."""

    name = None

    def __init__(self, owner: SemLock) -> None:
        self._owner = owner
        self.handle = owner._handle
        self.kind = RECURSIVE_MUTEX if isinstance(owner, RLock) else SEMAPHORE
        self.maxvalue = owner._maxvalue
        self.acquire = owner.acquire
        self.release = owner.release
        self._is_mine = owner._is_mine
        self._get_value = owner._get_value

    def _count(self) -> int:
        """How often this process holds the lock."""
        if self._owner._what != _abi.KIND_LOCK:
            return 0
        state = _lock_state(self.handle)
        return state.levels if state.held in (_abi.LOCK_BY_ME, _abi.LOCK_BY_THREAD) else 0

    def _is_zero(self) -> bool:
        return self._get_value() == 0


class SemLock(_Base):
    """Base of locks and semaphores."""

    # Not in __dict__: as long as that does not exist, Python finds methods faster.
    __slots__ = ("__dict__", "__weakref__", "_handle", "_is_fork_ctx", "_maxvalue", "_what")

    # Random words: loky makes the names of its own semaphores of them.
    _rand = iter(lambda: os.urandom(4).hex(), None)

    def __init__(self, kind: int, value: int, maxvalue: int, *, ctx: BaseContext | None) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        if kind == RECURSIVE_MUTEX:
            self._open(_new(pylib().pp_lock_new, _abi.LOCK_RECURSIVE), _abi.KIND_LOCK, 1)
        elif kind == SEMAPHORE:
            self._open_semaphore(value, maxvalue, 0)
        else:
            raise ValueError("unrecognized kind")

    def _open_semaphore(self, value: int, maxvalue: int, flags: int) -> None:
        value, maxvalue = operator.index(value), operator.index(maxvalue)
        if max(value, maxvalue) > SEM_VALUE_MAX:
            raise OverflowError("signed integer is greater than maximum")
        if not 0 <= value <= maxvalue:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._open(_new(pylib().pp_semaphore_new, value, max(maxvalue, 1), flags), _abi.KIND_SEMAPHORE, maxvalue)

    def _open(self, handle: int, what: int, maxvalue: int) -> None:
        self._handle = handle
        self._what = what
        self._maxvalue = maxvalue
        self._adopt(handle, what, context.OwnerDiedError, _fail_recursive if isinstance(self, RLock) else _fail)
        if maxvalue == 0:
            # The library refuses a semaphore that nobody can ever acquire; the standard library makes one.
            self.release = partial(_fail, _errors.STATE)  # type: ignore[method-assign]

    @property
    def _semlock(self) -> _View:
        return _View(self)

    def __getstate__(self) -> tuple[Any, ...]:
        return (_export(self, self._handle), self._what, self._maxvalue)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        ref, what, maxvalue = state
        self._is_fork_ctx = False
        self._open(_import(ref, what), what, maxvalue)

    def _holder(self) -> tuple[str, int]:
        """Who holds the lock, in words, and how often."""
        state = _lock_state(self._handle)
        if state.held == _abi.LOCK_FREE:
            return "None", 0
        if state.held == _abi.LOCK_POISONED:
            return "DeadProcess", 0
        if state.held == _abi.LOCK_BY_ME:
            name = process.current_process().name
            thread = threading.current_thread().name
            return (name if thread == "MainThread" else f"{name}|{thread}"), state.levels
        return ("SomeOtherThread" if state.held == _abi.LOCK_BY_THREAD else "SomeOtherProcess"), -1


class Semaphore(SemLock):
    """A counter that never goes below zero.

    Args:
        value: what it begins with.
        recover: what a process has acquired that dies is released again. The counter then never goes above ``value``: at most 65,535.
    """

    def __init__(self, value: int = 1, *, ctx: BaseContext | None, recover: bool = False) -> None:
        self._start(value, SEM_VALUE_MAX, ctx, recover)

    def _start(self, value: int, maxvalue: int, ctx: BaseContext | None, recover: bool) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        if recover:
            self._open_semaphore(value, value, _abi.SEMAPHORE_RECOVER)
        else:
            self._open_semaphore(value, maxvalue, 0)

    def get_value(self) -> int:
        """The counter."""
        return self._get_value()

    def _shown(self) -> object:
        try:
            return self._get_value()
        except Exception:
            return "unknown"

    def __repr__(self) -> str:
        return f"<{self.__class__.__name__}(value={self._shown()})>"


class BoundedSemaphore(Semaphore):
    """A semaphore whose counter never goes above the value it began with: ``release`` raises ValueError."""

    def __init__(self, value: int = 1, *, ctx: BaseContext | None, recover: bool = False) -> None:
        self._start(value, value, ctx, recover)

    def __repr__(self) -> str:
        return f"<{self.__class__.__name__}(value={self._shown()}, maxvalue={self._maxvalue})>"


class _Recoverable(SemLock):
    """Base of Lock and RLock."""

    def _start(self, flags: int, ctx: BaseContext | None, recover: bool) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        self._open(_new(pylib().pp_lock_new, flags | (_abi.LOCK_RECOVER if recover else 0)), _abi.KIND_LOCK, 1)

    def recover(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock, also if a process has died while it held the lock, or, of an RLock, the thread of this process that
        holds it has ended.

        The lock is then as any other: released, it is free. If this process dies first, acquirers get an OwnerDiedError again.
        If nobody has died, or another process has recovered the lock first, this is ``acquire``.
        """
        fail = _fail_recursive if isinstance(self, RLock) else _fail
        quick, slow = pylib().pp_lock_recover, lib().pp_lock_recover
        return _take(self._handle, quick, slow, block, _seconds(timeout), fail)


class Lock(_Recoverable):
    """A lock. A thread that holds it and acquires it again waits for itself; any thread of any process may release it.

    Args:
        recover: a process that dies with the lock releases it. By default, acquirers get an OwnerDiedError until one has called
            ``recover()``.
    """

    def __init__(self, *, ctx: BaseContext | None, recover: bool = False) -> None:
        self._start(0, ctx, recover)

    def __repr__(self) -> str:
        try:
            name = self._holder()[0]
        except Exception:
            name = "unknown"
        return f"<{self.__class__.__name__}(owner={name})>"


class RLock(_Recoverable):
    """A lock that the thread that holds it may acquire again, and must release as often.

    Args:
        recover: as of Lock.
    """

    def __init__(self, *, ctx: BaseContext | None, recover: bool = False) -> None:
        self._start(_abi.LOCK_RECURSIVE, ctx, recover)

    def __repr__(self) -> str:
        try:
            name, levels = self._holder()
            count: object = "nonzero" if levels < 0 else levels
        except Exception:
            name, count = "unknown", "unknown"
        return f"<{self.__class__.__name__}({name}, {count})>"


# ---- condition


class _Object:
    """Base of what is used through ctypes alone."""

    _handle = 0
    _kind: int
    _free: Callable[[int], int]

    def _open(self, handle: int) -> None:
        self._handle = handle
        library = pylib()
        self._free = getattr(library, _FREE[self._kind])

    def __del__(self) -> None:
        if self._handle:
            self._free(self._handle)


_FREE = {
    _abi.KIND_CONDITION: "pp_condition_free",
    _abi.KIND_EVENT: "pp_event_free",
    _abi.KIND_BARRIER: "pp_barrier_free",
}


class _Count:
    """Looks like a semaphore to those who ask a condition for its counters."""

    def __init__(self, value: int) -> None:
        self._value = value

    def get_value(self) -> int:
        return self._value


class Condition(_Object):
    """A condition variable.

    Args:
        lock: a Lock or RLock of this package; by default an RLock of its own, which is acquired from a process that has died as
            if that had released it.
    """

    _kind = _abi.KIND_CONDITION

    def __init__(self, lock: Any = None, *, ctx: BaseContext | None) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        if lock is None:
            lock = RLock(ctx=ctx, recover=True)
        elif not isinstance(lock, _Recoverable):
            raise TypeError(f"a condition needs a Lock or an RLock of polyproc, not {type(lock).__module__}.{type(lock).__qualname__}")
        self._lock: _Recoverable = lock
        self._open(_new(pylib().pp_condition_new))
        self._make_methods()

    def _make_methods(self) -> None:
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        self.recover = self._lock.recover
        self._signal = self._lock._notify

    def __getstate__(self) -> tuple[Any, ...]:
        return (self._lock, _export(self, self._handle))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._lock, ref = state
        self._is_fork_ctx = False
        self._open(_import(ref, self._kind))
        self._make_methods()

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.__exit__(exc_type, exc, traceback)

    def _waiting(self) -> int:
        waiting = ctypes.c_uint32()
        _errors.check(pylib().pp_condition_waiting(self._handle, ctypes.byref(waiting)))
        return waiting.value

    @property
    def _sleeping_count(self) -> _Count:
        return _Count(self._waiting())

    @property
    def _woken_count(self) -> _Count:
        return _Count(0)

    @property
    def _wait_semaphore(self) -> _Count:
        return _Count(0)

    def __repr__(self) -> str:
        try:
            waiting: object = self._waiting()
        except Exception:
            waiting = "unknown"
        return f"<{self.__class__.__name__}({self._lock}, {waiting})>"

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, and acquire the lock again.

        Returns:
            False if the time was over first.

        Raises:
            OwnerDiedError: a process has died meanwhile while it held the lock. The lock is not held: a ``with`` block ends without
                releasing it. After ``recover()``, look at what was waited for.
        """
        assert self._lock._is_mine(), "must acquire() condition before using wait()"
        quick, slow = pylib(), lib()
        place, levels = ctypes.c_uint64(), ctypes.c_uint32()
        handle, lock = self._handle, self._lock._handle
        timeout = _seconds(timeout)
        waiting = False
        try:
            _errors.check(quick.pp_condition_enter(handle, lock, ctypes.byref(place), ctypes.byref(levels)))
            waiting = True
            status = _wait(lambda ms: slow.pp_condition_sleep(handle, place, ms), timeout)
            if status in (0, _TIMEOUT):
                waiting = False
            else:
                _errors.check(status)
            return bool(status == 0)
        finally:
            if waiting:
                quick.pp_condition_leave(handle, place)
            if levels.value:
                _errors.check(_wait(lambda ms: slow.pp_lock_restore(lock, levels, ms), None))

    def notify(self, n: int = 1) -> None:
        """Wake n of those who wait, in the order in which they came."""
        if not self._signal(self._handle, 0 if n < 0 else n if n < SEM_VALUE_MAX else SEM_VALUE_MAX):
            raise AssertionError("lock is not owned")

    def notify_all(self) -> None:
        """Wake all who wait."""
        self.notify(n=sys.maxsize)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until the predicate is true, and return what it returned last."""
        result = predicate()
        end = None if timeout is None else time.monotonic() + timeout
        left = None
        while not result:
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    break
            self.wait(left)
            result = predicate()
        return result


# ---- event


class Event(_Object):
    """A flag that processes wait for."""

    _kind = _abi.KIND_EVENT

    def __init__(self, *, ctx: BaseContext | None) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        self._open(_new(pylib().pp_event_new))

    def __getstate__(self) -> tuple[Any, ...]:
        return (_export(self, self._handle),)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._is_fork_ctx = False
        self._open(_import(state[0], self._kind))

    def is_set(self) -> bool:
        """Whether the flag is set."""
        status = pylib().pp_event_is_set(self._handle)
        if status < 0:
            raise _errors.error(status)
        return bool(status == 1)

    def set(self) -> None:
        """Set the flag, and wake all who wait."""
        _errors.check(pylib().pp_event_set(self._handle))

    def clear(self) -> None:
        """Clear the flag."""
        _errors.check(pylib().pp_event_clear(self._handle))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set.

        Returns:
            False if the time was over first.
        """
        timeout = _seconds(timeout)
        # The place keeps a set() that is followed by a clear() from being missed between two calls.
        sleep, handle, place = lib().pp_event_sleep, self._handle, ctypes.byref(ctypes.c_uint64())
        status = _wait(lambda ms: sleep(handle, place, ms), timeout)
        if status == _TIMEOUT:
            return False
        _errors.check(status)
        return True

    def __repr__(self) -> str:
        try:
            status = "set" if self.is_set() else "unset"
        except Exception:
            status = "unknown"
        return f"<{type(self).__qualname__} at {id(self):#x} {status}>"


# ---- barrier


class Barrier(threading.Barrier):
    """A point that a number of parties reach together."""

    _handle = 0

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        ctx: BaseContext | None,
    ) -> None:
        self._is_fork_ctx = _is_fork(ctx)
        parties = operator.index(parties)
        if parties < 1:
            raise ValueError("parties must be > 0")
        if parties > 65535:
            raise ValueError("parties must be < 65536")
        flags = 0 if action is None else _abi.BARRIER_ACTION
        self._open(_new(pylib().pp_barrier_new, parties, flags), parties, action, timeout)

    def _open(self, handle: int, parties: int, action: Callable[[], object] | None, timeout: float | None) -> None:
        self._handle = handle
        self._free = pylib().pp_barrier_free
        self._parties = parties
        self._action = action
        self._timeout = timeout

    def __del__(self) -> None:
        if self._handle:
            self._free(self._handle)

    def __getstate__(self) -> tuple[Any, ...]:
        return (_export(self, self._handle), self._parties, self._action, self._timeout)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        ref, parties, action, timeout = state
        self._is_fork_ctx = False
        self._open(_import(ref, _abi.KIND_BARRIER), parties, action, timeout)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties are here; the last to come runs the action before the others go on.

        Returns:
            A number from 0 to parties - 1, another one for each party.

        Raises:
            BrokenBarrierError: the barrier is or was broken, by abort, reset, a timeout, an action that failed, or the death of a waiter.
        """
        timeout = _seconds(self._timeout if timeout is None else timeout)
        place, index = ctypes.c_uint64(), ctypes.c_uint32()
        pointers = ctypes.byref(place), ctypes.byref(index)
        wait, handle = lib().pp_barrier_wait, self._handle
        try:
            status = _wait(lambda ms: wait(handle, ms, *pointers), timeout)
        finally:
            if place.value:
                pylib().pp_barrier_leave(handle, place)
        self._check(status)
        if self._action is not None and index.value == self._parties - 1:
            try:
                self._action()
            except BaseException:
                self.abort()
                raise
            self._check(pylib().pp_barrier_release(handle))
        return index.value

    def _check(self, status: int) -> None:
        if status in (_errors.BROKEN, _TIMEOUT):
            raise BrokenBarrierError
        _errors.check(status)

    def reset(self) -> None:
        """Make the barrier empty and whole. Those who wait get a BrokenBarrierError."""
        _errors.check(pylib().pp_barrier_reset(self._handle))

    def abort(self) -> None:
        """Break the barrier: who waits, and who comes, gets a BrokenBarrierError, until it is reset."""
        _errors.check(pylib().pp_barrier_abort(self._handle))

    def _info(self) -> _abi.BarrierState:
        state = _abi.BarrierState()
        _errors.check(pylib().pp_barrier_info(self._handle, ctypes.byref(state)))
        return state

    @property
    def parties(self) -> int:
        """How many are needed."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many are here and wait for others."""
        return int(self._info().waiting)

    @property
    def broken(self) -> bool:
        """Whether the barrier is broken."""
        return bool(self._info().broken)
