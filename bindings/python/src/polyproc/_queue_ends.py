"""The inside of the standard library's queues, as far as other projects use it: ``_reader``, ``_writer``, and a feeder thread.

A queue here has neither a pipe nor a feeder. But programs wait for ``queue._reader`` beside other connections (concurrent.futures
does), and loky replaces ``_feed``, ``__getstate__`` and ``put`` of a queue by its own, which pickle in another way. So ``_reader``
and ``_writer`` are connections whose messages are those of the queue, and a subclass that has a method ``_feed`` gets the thread
that runs it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from queue import Full

from . import _abi, _errors, connection, context, queues, util
from ._lib import lib
from .connection import _Base

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class End(_Base):
    """One end of a queue as a connection: ``_reader`` or ``_writer``. The handle is the queue's.

    Args:
        queue: whose messages these are.
        writable: it is the end that sends.
    """

    def __init__(self, queue: queues._Base, writable: bool) -> None:
        super().__init__(queue._handle, not writable, writable)
        self._queue = queue
        if queue._ends_closed >> writable & 1:
            self._handle = None

    def __del__(self) -> None:
        """An end that nobody uses is not closed: the queue makes another."""

    def _close(self, handle: int) -> None:
        self._queue._ends_closed |= 1 << self._writable

    def fileno(self) -> int:
        """The queue's: see Queue.fileno.

        Raises:
            OSError: closed.
        """
        self._check_closed()
        return self._queue._descriptor()

    def send(self, obj: Any) -> None:
        """Send a picklable object."""
        self._check_writable()
        queues._Base._slow_put(self._queue, obj)

    def _send_bytes(self, data: Any) -> None:
        data = data if type(data) is bytes else bytes(data)
        self._queue._put_waiting(lib().pp_queue_put, data, len(data), _abi.CODEC_PICKLE, _errors.TIMEOUT, True, None, [])

    def _recv_bytes(self, maxsize: int | None) -> Any:
        room = self._queue._take()
        data = room.message_bytes()
        queues._rooms.append(room)
        if maxsize is not None and len(data) > maxsize:
            self._bad_message_length()
        return data

    def recv(self) -> Any:
        """Receive an object; waits for it."""
        self._check_readable()
        return queues._Base._slow_get(self._queue)

    def _poll(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._queue._state().size:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            connection.wait([self], left)
        return True

    def __reduce__(self) -> Any:
        self._check_closed()
        queue = self._queue
        context.check_receiver(type(queue).__name__, queue._of_fork)
        return _rebuild, (queues._export(queue._handle), self._writable)


def copied(handle: int) -> int:
    """Another handle of the same queue."""
    import ctypes

    ref = ctypes.create_string_buffer(_abi.REF_SIZE)
    _errors.check(lib().pp_ref_export(handle, ref))
    return queues._import(ref.raw)


def _end(handle: int, writable: bool) -> End:
    """An end with a queue of its own, which the handle belongs to."""
    queue = queues._Base()
    queue._handle = handle
    queue._attach()
    return End(queue, writable)


def _rebuild(ref: bytes, writable: bool) -> End:
    return _end(queues._import(ref), writable)


# ---- queues whose subclass has a method _feed

# Objects go to a buffer of this process, from which a thread puts them: _start_thread, which is the subclass's, starts one that takes
# from _buffer, under _notempty, and gives what it has pickled to _writer. The bound is a semaphore, as what is in the buffer counts too.


def begin(queue: Any, maxsize: int, ctx: context.BaseContext) -> None:
    """Make a queue one of these."""
    from . import synchronize

    queue._maxsize = maxsize if 0 < maxsize < synchronize.SEM_VALUE_MAX else synchronize.SEM_VALUE_MAX
    queue._sem = synchronize.BoundedSemaphore(queue._maxsize, ctx=ctx)
    queue._opid = os.getpid()
    reset(queue)
    util.register_after_fork(queue, reset)


def reset(queue: Any) -> None:
    """The state of a process that has put nothing yet."""
    queue._notempty = threading.Condition(threading.Lock())
    queue._buffer = deque()
    queue._thread = queue._jointhread = queue._close = None
    queue._joincancelled = queue._closed = False
    # The thread holds the writer: were that to hold the queue, nothing would end the two.
    queue._writer = _end(copied(queue._handle), True)
    queue._send_bytes = queue._writer.send_bytes


def put(queue: Any, obj: Any, block: bool, timeout: float | None) -> None:
    """Give an object to the thread."""
    if not queue._sem.acquire(block, timeout):
        raise Full
    with queue._notempty:
        if queue._thread is None:
            queue._start_thread()
        queue._buffer.append(obj)
        queue._notempty.notify()


def close(queue: Any) -> None:
    """Have the thread end when the buffer is empty."""
    end, queue._close = queue._close, None
    if end is not None:
        end()
