"""Queues between processes. Mirrors multiprocessing/queues.py.

A queue is shared memory (capi/front/queue.h): there is no feeder thread, no pipe and no process behind it. Differences from the
standard library, all where that one has a weakness:

* ``put`` pickles at once: an object that cannot be pickled raises there, and later changes to it are not seen by the receiver. When
  ``put`` returns, the item is in the queue, whatever becomes of the process that has put it;
* a process that is killed in the middle of ``put`` or ``get`` leaves the queue whole;
* a queue can be sent: as an argument of a process or of a pool's task, and through another queue;
* joining a process before its items were taken does not deadlock; ``join_thread`` and ``cancel_join_thread`` have nothing to wait for;
* the timeout of ``get`` bounds the whole call; ``qsize``, ``empty`` and ``full`` are exact, on every platform;
* ``name=``: a queue that unrelated processes of one user open, in /dev/shm. It stays until ``unlink``.
"""

from __future__ import annotations

import copyreg
import io
import os
import sys
import time
from queue import Empty, Full

from . import _abi, _errors, _stdlib, context, reduction
from ._lib import lib, pylib
from .context import T

try:
    from _pickle import dumps as _c_dumps
except ImportError:
    from pickle import dumps as _c_dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

_INLINE_MOST = 32768  # longer messages lie in a block of their own
_KEEP_GIL_MOST = 1 << 18  # copying more takes as long as giving the GIL away does
_TRY = _abi.TRY
# There was nothing, or another process was in the middle of a call all the time.
_NO_ROOM = (_errors.FULL, _errors.TIMEOUT)
_NO_ITEM = (_errors.EMPTY, _errors.TIMEOUT)
_SLICE = 1.0  # seconds: a signal that comes just before a wait begins is noticed after it
# pp_message as words: data, size, codec | kind << 32, cell, owner. What a pickle in the caller's buffer is:
_SMALL_PICKLE = _abi.CODEC_PICKLE | 1 << 32

# loky imports it, for feeder threads of its own.
_sentinel = object()

_forking_pickler = reduction.ForkingPickler
_loads = _forking_pickler.loads
_any_exports = reduction.any_exports

# ---- pickling

# What pickle does by itself, whatever is registered.
_ATOMS = frozenset((int, str, bytes, float, bool, type(None), complex, bytearray))
# What pickle does right without the standard library's reducers, by the function registered: methods, partial. Sockets are the one
# thing that it refuses and ForkingPickler knows of itself.
_NATIVE = frozenset(("_reduce_method", "_reduce_method_descriptor", "_reduce_partial", "_reduce_socket"))
_none: dict[type, Any] = {}
# The reducers registered with the standard library, with us, and with copyreg when they were last looked at.
_seen: tuple[dict[type, Any], dict[type, Any], dict[type, Any]] = ({}, {}, {})
_plain = True  # nothing is registered that pickle would not do alone
_KEEP_MOST = 1 << 16  # bytes of a buffer that is kept for the next pickle
# Picklers that nobody uses at the moment: making one costs more than most pickles.
_picklers: list[tuple[reduction.ForkingPickler, io.BytesIO]] = []


def _dumps(obj: Any) -> bytes:
    """The pickle of ``obj``, as ForkingPickler makes it, by the shortest way. If it fails, what it has exported is taken back."""
    if type(obj) in _ATOMS:
        return _c_dumps(obj)
    first = reduction.begin_exports() if _any_exports else 0
    try:
        data = _make(obj)
    except BaseException:
        if _any_exports:
            reduction.forget_exports(first)
        raise
    if _any_exports:
        reduction.end_exports(first)
    return data


def _make(obj: Any) -> bytes:
    theirs = sys.modules.get("multiprocessing.reduction")
    others = _none if theirs is None else theirs.ForkingPickler._extra_reducers
    if (others, _forking_pickler._extra_reducers, copyreg.dispatch_table) != _seen:
        _look_at_reducers()
    if _plain:
        try:
            return _c_dumps(obj)
        except TypeError:
            if "socket" not in sys.modules:
                raise
        return _forking_pickler.dumps(obj)
    now = _seen
    try:
        pickler, buffer = _picklers.pop()
    except IndexError:
        buffer = io.BytesIO()
        pickler = _forking_pickler(buffer)
    pickler.dump(obj)
    data = buffer.getvalue()
    if len(data) < _KEEP_MOST and now is _seen:
        buffer.seek(0)
        buffer.truncate()
        pickler.clear_memo()
        _picklers.append((pickler, buffer))
    return data


def _unsent(obj: Any, data: bytes) -> None:
    """Take back what the pickle of ``obj`` has exported: it was not sent."""
    if _any_exports and type(obj) not in _ATOMS:
        reduction.unsent(data)


def _look_at_reducers() -> None:
    global _seen, _plain
    theirs = _stdlib.module("reduction")
    others: dict[type, Any] = _none if theirs is None else theirs.ForkingPickler._extra_reducers
    own = _forking_pickler._extra_reducers
    _plain = not own and all(getattr(reduce, "__name__", "") in _NATIVE for reduce in others.values())
    _picklers.clear()
    _seen = (dict(others), dict(own), dict(copyreg.dispatch_table))


# ---- the library's side


class _Room:
    """What a call of pp_queue_take fills in: a buffer and a pp_message. One call at a time."""

    __slots__ = ("address", "bytes", "message", "message_address", "words")

    def __init__(self) -> None:
        import ctypes

        buffer = (ctypes.c_char * _INLINE_MOST)()
        self.bytes = memoryview(buffer)
        self.address = ctypes.addressof(buffer)
        self.message = _abi.Message()
        self.words = memoryview(self.message).cast("B").cast("Q")
        self.message_address = ctypes.addressof(self.message)

    def value(self) -> Any:
        """The object that the message is, which is given back."""
        import ctypes

        size, kind = self.words[1], self.words[2]
        address = self.message.data
        try:
            view = memoryview((ctypes.c_char * size).from_address(address)).cast("B") if size else b""
            if kind & 0xFFFFFFFF == _abi.CODEC_PICKLE:
                return _loads(view)
            return bytes(view)
        finally:
            lib().pp_message_free(self.message_address)


    def message_bytes(self) -> bytes:
        """The bytes of the message, which is given back."""
        import ctypes

        size = self.words[1]
        try:
            return (ctypes.c_char * size).from_address(self.message.data).raw if size else b""
        finally:
            lib().pp_message_free(self.message_address)


_rooms: list[_Room] = []


def _parts_of(data: bytes) -> tuple[Any, bytes]:
    """The pickle of a large bytes object, in pieces that are not put together before they are in the queue. They are valid for as long
    as ``data`` and the second value exist.
    """
    import ctypes

    head = b"\x80\x04\x8e" + len(data).to_bytes(8, "little")  # PROTO 4, BINBYTES8
    parts = (_abi.Part * 3)()
    for part, piece in zip(parts, (head, data, b".")):
        part.data = ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p).value
        part.size = len(piece)
    return parts, head


class _PureChannel:
    """What the library's type for queues is where it cannot be had: it leaves everything to the slow functions."""

    __slots__ = ("__dict__", "__weakref__")

    def _adopt(self, *args: object) -> None:
        pass

    def _retire(self) -> None:
        pass


def _channel_type() -> type:
    """The library's type, with _put(obj, block=True, timeout=None) and _get(block=True, timeout=None); or _PureChannel."""
    import ctypes

    if (
        os.environ.get("POLYPROC_PURE_CTYPES", "0") in ("", "0")
        and sys.implementation.name == "cpython"
        and object.__basicsize__ == 16
    ):
        spec = pylib().pp_python_spec(_abi.PYTHON_CHANNEL)
        if spec:
            make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(("PyType_FromSpec", ctypes.pythonapi))
            fast: type = make(spec)
            return fast
    return _PureChannel


if TYPE_CHECKING:
    _Channel = _PureChannel
else:
    _Channel = _channel_type()


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1000) + 1, 1 << 53)


def _create(maxsize: int, name: str | None, flags: int) -> int:
    import ctypes

    options = _abi.QueueOptions()
    options.size = ctypes.sizeof(options)
    options.flags = flags
    options.maxsize = max(0, maxsize)
    if maxsize > 0x7FFFFFFF:
        raise ValueError("maxsize is too large")
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        options.name = name.encode()
        if b"\0" in name.encode():
            raise ValueError("the name contains a null character")
    handle = ctypes.c_uint64()
    _errors.check(lib().pp_queue_create(ctypes.byref(options), ctypes.byref(handle)))
    return handle.value


def _export(handle: int) -> bytes:
    import ctypes

    ref = ctypes.create_string_buffer(_abi.REF_SIZE)
    _errors.check(lib().pp_ref_export(handle, ref))
    return reduction.exported(ref.raw)


def _import(ref: bytes) -> int:
    import ctypes

    handle = ctypes.c_uint64()
    _errors.check(lib().pp_ref_import(ref, _abi.KIND_QUEUE, ctypes.byref(handle), None))
    return handle.value


class _NoLock:
    """In the place of the standard library's locks around the two ends of a pipe: a queue here needs none."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        return True

    def release(self) -> None:
        pass

    __enter__ = acquire

    def __exit__(self, *error: object) -> None:
        pass


class _Base(_Channel):
    """What all queues share: the handle, and how it travels."""

    _handle = 0
    _name: str | None = None
    _maxsize = 0
    _closed = False
    _of_fork = False  # made by a fork context
    # For subclasses that build on the inside of the standard library's queues: see _queue_ends.py.
    _feeds = False  # the subclass has a method _feed
    _ends_closed = 0  # bit 0: _reader, bit 1: _writer
    _ignore_epipe = False
    _opid = 0
    _rlock: Any = _NoLock()
    _wlock: Any = _rlock
    _sem: Any = _rlock

    def _open(self, maxsize: int, name: str | None, ctx: context.BaseContext | None) -> None:
        self._handle = _create(maxsize, name, 0)
        self._of_fork = ctx is not None and ctx.get_start_method() == "fork"
        self._name = name
        self._attach()

    def _attach(self) -> None:
        library = pylib()
        self._free = library.pp_queue_free
        self._fast_put = library.pp_queue_put
        self._fast_take = library.pp_queue_take
        self._feeds = hasattr(self, "_feed")
        if not self._feeds:
            self._maxsize = self._state().maxsize
        hooked = self._feeds or type(self)._on_queue_feeder_error is not _Base._on_queue_feeder_error
        handle = 0 if hooked else self._handle  # 0: all goes the slow way, which knows of the hook
        self._adopt(handle, 0, _abi.CODEC_PICKLE, _dumps, _loads, type(self)._slow_put, type(self)._slow_get)

    def _state(self) -> Any:
        import ctypes

        state = _abi.QueueState()
        status = pylib().pp_queue_info(self._handle, ctypes.byref(state))
        if status:
            raise _errors.error(status)
        return state

    def __del__(self) -> None:
        handle, self._handle = self._handle, 0
        if handle:
            self._retire()
            self._free(handle)

    def __getstate__(self) -> Any:
        if self._name is not None:
            return (None, self._name)
        context.check_receiver(type(self).__name__, self._of_fork)
        return (_export(self._handle), None)

    def __setstate__(self, state: Any) -> None:
        ref, name = state[:2]
        if name is not None:
            self._handle = _create(0, name, _abi.QUEUE_EXISTING)
            self._name = name
        else:
            self._handle = _import(ref)
        self._attach()

    def fileno(self) -> int:
        """A descriptor to wait for with select, poll, asyncio's ``add_reader`` or ``connection.wait``, beside other things.

        It is readable when there is something to get, and stays so until a call of this object finds the queue empty: ``get``,
        ``qsize``, ``empty`` or ``fileno``. So it may be readable although another process was faster: use ``get_nowait``, and wait
        again after ``queue.Empty``. It is for nothing else; it is the queue's, and ends with it. A queue whose descriptor was asked
        for has a thread in this process that waits for it.

        Raises:
            ValueError: the queue is closed (SimpleQueue: OSError).
            OSError: no descriptor or no thread is left.
        """
        if self._closed:
            raise self._closed_error()
        return self._descriptor()

    def _descriptor(self) -> int:
        import ctypes

        fd = ctypes.c_int32()
        _errors.check(lib().pp_queue_descriptor(self._handle, ctypes.byref(fd)))
        return fd.value

    def _end(self, which: str, writable: bool) -> Any:
        """_reader or _writer. The end holds the queue, so that the queue does not hold the end."""
        end = self.__dict__.get(which)
        if end is not None and callable(end):
            end = end()
        if end is None:
            import weakref

            from ._queue_ends import End

            if not self._handle:
                raise AttributeError(which)
            end = End(self, writable)
            self.__dict__[which] = weakref.ref(end)
        return end

    def _give_end(self, which: str, end: Any) -> None:
        self.__dict__[which] = end
        if not self._handle:
            # A subclass sends the ends instead of the queue.
            queue = getattr(end, "_queue", None)
            if queue is not None:
                from ._queue_ends import copied

                self._handle = copied(queue._handle)
                self._attach()

    @property
    def _reader(self) -> Any:
        return self._end("_reader", False)

    @_reader.setter
    def _reader(self, end: Any) -> None:
        self._give_end("_reader", end)

    @property
    def _writer(self) -> Any:
        return self._end("_writer", True)

    @_writer.setter
    def _writer(self, end: Any) -> None:
        self._give_end("_writer", end)

    def _close_ends(self, which: int) -> None:
        """Close _reader (1), _writer (2) or both (3), whether or not anybody has asked for them."""
        self._ends_closed |= which
        for bit, name in (1, "_reader"), (2, "_writer"):
            end = self.__dict__.get(name)
            if which & bit and end is not None:
                end = end() if callable(end) else end
                if end is not None:
                    end.close()

    @property
    def name(self) -> str | None:
        """The name that the queue was opened by, or None."""
        return self._name

    def unlink(self) -> None:
        """Remove the name of a named queue. Who has opened it goes on with it.

        Raises:
            ValueError: the queue has no name.
            FileNotFoundError: the name was removed already.
        """
        if self._name is None:
            raise ValueError("the queue has no name")
        _errors.check(lib().pp_queue_unlink(self._name.encode()))

    def _closed_error(self) -> Exception:
        return ValueError(f"Queue {self!r} is closed")

    def _broken(self, status: int) -> Exception:
        return self._closed_error() if status == _errors.CLOSED else _errors.error(status)

    @staticmethod
    def _on_queue_feeder_error(e: BaseException, obj: Any) -> None:
        """For concurrent.futures: where it is overridden, it is called when an object cannot be pickled, and put does not raise."""
        import traceback

        traceback.print_exc()

    def _slow_put(
        self, obj: Any, block: bool = True, timeout: float | None = None, data: bytes | None = None
    ) -> None:
        """put, without the library's type. data: the pickle of obj, if it is there already and could not be put at once."""
        if self._closed:
            raise self._closed_error()
        if self._feeds:
            from ._queue_ends import put as feed

            feed(self, obj, block, timeout)
            return
        put = lib().pp_queue_put
        status = _errors.TIMEOUT
        if data is None:
            if type(obj) is bytes and len(obj) > _INLINE_MOST:
                parts, head = _parts_of(obj)
                self._put_waiting(lib().pp_queue_put_parts, parts, 3, _abi.CODEC_PICKLE, status, block, timeout, [])
                del head
                return
            try:
                data = _dumps(obj)
            except Exception as e:
                if type(self)._on_queue_feeder_error is _Base._on_queue_feeder_error:
                    raise
                self._on_queue_feeder_error(e, obj)
                return
            size = len(data)
            if size <= _KEEP_GIL_MOST:
                status = self._fast_put(self._handle, data, size, 1, _TRY)
                if not status:
                    return
        outcomes: list[int] = []
        try:
            self._put_waiting(put, data, len(data), _abi.CODEC_PICKLE, status, block, timeout, outcomes)
        except BaseException:
            if 0 not in outcomes:  # else a signal handler has raised it after the message was put
                _unsent(obj, data)
            raise

    def _put_waiting(
        self,
        put: Callable[..., int],
        data: Any,
        size: int,
        codec: int,
        status: int,
        block: bool,
        timeout: float | None,
        outcomes: list[int],
    ) -> None:
        """Put what could not be put at once, for the reason that ``status`` says. A 0 in ``outcomes``: it is put."""
        note = reduction.note
        if status not in _NO_ROOM:
            raise self._broken(status)
        if not block:
            status = _errors.INTERRUPTED
            while status == _errors.INTERRUPTED:
                status = note(outcomes, put, self._handle, data, size, codec, 0)
        else:
            deadline = None if timeout is None else time.monotonic() + timeout
            while True:
                left = _SLICE if deadline is None else max(0.0, deadline - time.monotonic())
                outcomes.clear()
                status = note(outcomes, put, self._handle, data, size, codec, _milliseconds(min(left, _SLICE)) if left else 0)
                if status in _NO_ROOM and (deadline is None or left > _SLICE):
                    continue
                if status != _errors.INTERRUPTED:
                    break
        if not status:
            return
        if status in _NO_ROOM:
            raise Full
        raise self._broken(status)

    @staticmethod
    def _unsent(obj: Any, data: bytes) -> None:
        """For the library's type: a signal handler has ended the wait for room."""
        _unsent(obj, data)

    def _slow_get(self, block: bool = True, timeout: float | None = None) -> Any:
        """get, without the library's type."""
        if self._closed:
            raise self._closed_error()
        room = self._take(block, timeout)
        if self._feeds:
            self._sem.release()
        if room.words[2] == _SMALL_PICKLE:
            obj = _loads(room.bytes)  # which ends where the pickle does
        else:
            obj = room.value()
        _rooms.append(room)
        return obj

    def _take(self, block: bool = True, timeout: float | None = None) -> _Room:
        """The next message, in a room, which goes back to _rooms."""
        try:
            room = _rooms.pop()
        except IndexError:
            room = _Room()
        status = self._fast_take(self._handle, room.address, _INLINE_MOST, _TRY, room.message_address)
        if status:
            status = self._get_slowly(room, status, block, timeout)
            if status:
                _rooms.append(room)
                if status in _NO_ITEM:
                    raise Empty
                raise self._broken(status)
        return room

    def _get_slowly(self, room: _Room, status: int, block: bool, timeout: float | None) -> int:
        take = lib().pp_queue_take
        if status not in _NO_ITEM:
            return status
        if not block:
            while status in (_errors.TIMEOUT, _errors.INTERRUPTED):
                status = take(self._handle, room.address, _INLINE_MOST, 0, room.message_address)
                if status == _errors.TIMEOUT:
                    break
            return status
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SLICE if deadline is None else max(0.0, deadline - time.monotonic())
            status = take(
                self._handle, room.address, _INLINE_MOST, _milliseconds(min(left, _SLICE)) if left else 0, room.message_address
            )
            if status in _NO_ITEM and (deadline is None or left > _SLICE):
                continue
            if status != _errors.INTERRUPTED:
                return status


class Queue(_Base, context.Subscriptable[T]):
    """A queue with the interface of queue.Queue, but for task_done and join.

    Args:
        maxsize: how many items it holds at most; 0 or less: no bound, ``put`` never waits.
        ctx: the context that made it.
        name: None, or a queue that any process of this user opens by this name; it is created if it is not there. maxsize is then that
            of the process that created it.

    Raises:
        MemoryError: no memory, or a limit on it.
        ValueError: no such name can be, or maxsize is too large.
    """

    def __init__(self, maxsize: int = 0, *, ctx: context.BaseContext, name: str | None = None) -> None:
        if hasattr(self, "_feed"):
            from . import _queue_ends

            self._open(0, None, ctx)
            _queue_ends.begin(self, maxsize, ctx)
        else:
            self._open(maxsize, name, ctx)

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Put ``obj`` into the queue; it is pickled here and now.

        Args:
            obj: anything that can be pickled.
            block: wait for room if the queue is full.
            timeout: seconds to wait for room at most; None: for ever.

        Raises:
            queue.Full: there was no room (in time).
            ValueError: the queue is closed.
            MemoryError: no memory, or a limit on it; the queue is as it was.
            Exception: whatever pickling ``obj`` raises.
        """
        self._slow_put(obj, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the next object out of the queue.

        Args:
            block: wait for one if the queue is empty.
            timeout: seconds that the call takes at most; None: for ever.

        Raises:
            queue.Empty: there was none (in time).
            ValueError: the queue is closed.
        """
        return self._slow_get(block, timeout)  # type: ignore[no-any-return]

    def put_bytes(self, data: bytes, block: bool = True, timeout: float | None = None) -> None:
        """Put bytes as they are, for consumers in any language: what ``Connection.send_bytes`` is to ``send``. Python's
        ``get`` returns them as bytes.

        Args:
            data: bytes, or another object with the buffer interface, of any size.
            block, timeout, and what is raised: as for ``put``.
        """
        if self._closed:
            raise self._closed_error()
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        self._put_waiting(lib().pp_queue_put, data, len(data), _abi.CODEC_RAW, _errors.TIMEOUT, block, timeout, [])

    def put_nowait(self, obj: T) -> None:
        """``put(obj, False)``"""
        self.put(obj, False)

    def get_nowait(self) -> T:
        """``get(False)``"""
        return self.get(False)

    def qsize(self) -> int:
        """How many items are in the queue at this moment."""
        if self._feeds:
            return self._maxsize - self._sem.get_value()  # type: ignore[no-any-return]
        size: int = self._state().size
        return size

    def empty(self) -> bool:
        """Whether there is no item in the queue at this moment.

        Raises:
            OSError: the queue is closed, and was used before.
        """
        state = self._state()
        if self._closed and state.unfinished:
            raise OSError(f"Queue {self!r} is closed")
        return not state.size

    def full(self) -> bool:
        """Whether a put would have to wait at this moment."""
        return 0 < self._maxsize <= self.qsize()

    def close(self) -> None:
        """This process will not use this object again: put and get raise ValueError. Other processes go on."""
        self._closed = True
        self._retire()
        self._close_ends(1)
        if self._feeds:
            from ._queue_ends import close

            close(self)

    def join_thread(self) -> None:
        """Do nothing: there is no thread, and what was put is in the queue. To be called after close, as ever.

        Raises:
            AssertionError: the queue is not closed.
        """
        assert self._closed, f"Queue {self!r} not closed"
        if self._feeds and self._jointhread is not None:
            self._jointhread()

    def cancel_join_thread(self) -> None:
        """Do nothing: there is no thread."""
        if self._feeds:
            self._joincancelled = True
            if self._jointhread is not None:
                self._jointhread.cancel()

    # For subclasses with a method _feed, see _queue_ends.py:

    _jointhread: Any = None
    _joincancelled = False

    def _reset(self, after_fork: bool = False) -> None:
        from ._queue_ends import reset

        reset(self)

    @staticmethod
    def _finalize_join(thread: Any) -> None:
        if (thread := thread()) is not None:
            thread.join()

    @staticmethod
    def _finalize_close(buffer: Any, notempty: Any) -> None:
        with notempty:
            buffer.append(_sentinel)
            notempty.notify()


class JoinableQueue(Queue[T]):
    """A Queue that knows when everything that was put into it has been dealt with."""

    def task_done(self) -> None:
        """Say that an item that was taken has been dealt with.

        Raises:
            ValueError: called more often than there were items.
        """
        status = pylib().pp_queue_task_done(self._handle)
        if status == _errors.STATE:
            raise ValueError("task_done() called too many times")
        if status:
            raise self._broken(status)

    def join(self) -> None:
        """Wait until task_done was called for every item."""
        wait = lib().pp_queue_join
        while True:
            status = wait(self._handle, int(_SLICE * 1000))
            if not status:
                return
            if status not in (_errors.TIMEOUT, _errors.INTERRUPTED):
                raise self._broken(status)


class SimpleQueue(_Base, context.Subscriptable[T]):
    """A queue with put, get, empty and close."""

    def __init__(self, *, ctx: context.BaseContext, name: str | None = None) -> None:
        self._open(0, name, ctx)

    def close(self) -> None:
        """This process will not use this object again. Closing twice does nothing."""
        self._closed = True
        self._retire()
        self._close_ends(3)

    def empty(self) -> bool:
        """Whether there is no item in the queue at this moment.

        Raises:
            OSError: the queue is closed.
        """
        if self._closed:
            raise self._closed_error()
        return not self._state().size

    def get(self) -> T:
        """Take the next object out of the queue; wait for one.

        Raises:
            OSError: the queue is closed.
        """
        return self._slow_get()  # type: ignore[no-any-return]

    def put(self, obj: T) -> None:
        """Put ``obj`` into the queue; it is pickled here and now. This never waits for a reader.

        Raises:
            OSError: the queue is closed.
            MemoryError: no memory, or a limit on it; the queue is as it was.
        """
        self._slow_put(obj)

    def _closed_error(self) -> Exception:
        return OSError("handle is closed")


if _Channel is not _PureChannel and not TYPE_CHECKING:
    # What can be done at once is done in C, between one call of pickle and one of the library.
    for _class in (Queue, SimpleQueue):
        _class.put = _Channel._put
        _class.get = _Channel._get
    del _class
