"""Pools of worker processes, and of threads. Mirrors multiprocessing/pool.py.

    caller's thread          engine (no GIL)          worker processes
    submit: pickle, hand ->  queue, lanes       ->    _worker.py: unpickle, call, pickle
    wait:   unpickle     <-  results that are done <-

There are no helper threads. Arguments are pickled in the thread that submits, results are unpickled
in a thread that waits: whoever waits takes what is done, for everybody (it *pumps*), and the others
sleep until their own result is there. In between the engine keeps the workers busy by itself. A
thread of the pool's own exists only while a job has a callback, which must be called even if nobody
waits.

Differences from the standard library:

* a worker that dies costs the task that it ran: :class:`~polyproc.WorkerLost`, and the pool goes
  on;
* an initializer that always fails is the outcome of every task, and so is a worker that cannot
  start;
* whatever cannot be pickled or unpickled is the error of its task alone; an exception that cannot
  be rebuilt by unpickling is rebuilt from its class and its args;
* imap and imap_unordered read their input as results are taken, not all of it at once (a generator
  in a thread of its own), and no more of it once the iterator is dropped;
* a pool that is terminated ends what waits for it with :class:`~polyproc.ProcessError`, instead of
  letting it wait for ever;
* a worker ignores SIGINT, so that Ctrl-C is the parent's alone to handle; ``os.kill(worker,
  SIGTERM)`` ends one;
* default chunks of a map of many items are smaller, so that the work spreads better.
"""

from __future__ import annotations

import _thread
import collections
import functools
import itertools
import os
import sys
import threading
import time
import types
import warnings
import weakref

from . import _stdlib, _worker, context, process, util
from ._worker import CALL, ITEM, MAP, PLAIN, PROTOCOL, STARMAP
from .context import T

try:
    from _pickle import dumps as _dumps
    from _pickle import loads as _loads
except ImportError:
    from pickle import dumps as _dumps
    from pickle import loads as _loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TypeVar

    from typing_extensions import Self

    S = TypeVar("S")
    Func = Callable[..., Any]
    Callback = Callable[[Any], object]

__all__ = ["Pool", "ThreadPool"]

TimeoutError = context.TimeoutError

INIT = "INIT"
RUN = "RUN"
CLOSE = "CLOSE"
TERMINATE = "TERMINATE"

_monotonic = time.monotonic
get_ident = _thread.get_ident


# ---- what arrives instead of a result


class RemoteTraceback(Exception):
    """The ``__cause__`` of an exception from a worker: the text of its traceback there."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return self.tb


class MaybeEncodingError(Exception):
    """A result, or an exception, could not be pickled in the worker.

    Attributes:
        exc: repr of why.
        value: repr of what.
    """

    def __init__(self, exc: object, value: object) -> None:
        self.exc = repr(exc)
        self.value = repr(value)
        super().__init__(self.exc, self.value)

    def __str__(self) -> str:
        return f"Error sending result: '{self.value}'. Reason: '{self.exc}'"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


class _Text:
    """A text that is its own repr, for what was formatted elsewhere."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Failed:
    """In the place of a result: the exception to raise."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _rebuild(description: bytes | memoryview) -> BaseException:
    """The exception that _worker.describe took apart."""
    whole, cls_pickle, args, state, text, traceback = _loads(description)
    error: Any = None
    reason: object = None
    if whole is not None:
        try:
            error = _loads(whole)
        except Exception as e:
            reason = e
    if not isinstance(error, BaseException):
        error = None
        try:
            cls = _loads(cls_pickle)
            values = tuple(map(_loads, args))
            if issubclass(cls, BaseException):
                error = cls.__new__(cls, *values)
                error.args = values
                error.__dict__.update(_loads(state))
        except Exception as e:
            error, reason = None, reason or e
    if error is None:
        error = MaybeEncodingError(reason or _Text("its class cannot be pickled"), _Text(text))
    error.__cause__ = RemoteTraceback(f'\n"""\n{traceback}"""')
    return error  # type: ignore[no-any-return]


# ---- jobs: what was asked for, until all of it is there


class ApplyResult(context.Subscriptable[T]):
    """What apply_async returns: the result, as soon as it is there."""

    _ready = False  # the outcome is there, and callbacks were called
    _abandoned = False  # nobody can ask for the outcome any more
    _value: Any = None

    def __init__(
        self,
        pool: Pool,
        func: Func,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> None:
        self._pool: Pool | None = (
            pool  # a pool is not collected while somebody can still ask for results
        )
        self._core = pool._core
        self._func = func
        self._callback = callback
        self._error_callback = error_callback
        self._number = self._core.register(self)

    def ready(self) -> bool:
        """Whether the call has completed."""
        if not self._ready:
            self._core.poll()
        return self._ready

    def successful(self) -> bool:
        """Whether it completed without an exception.

        Raises:
            ValueError: it has not completed.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return type(self._value) is not _Failed

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is there, at most ``timeout`` seconds."""
        if not self._ready:
            self._core.wait(self, timeout)

    def get(self, timeout: float | None = None) -> T:
        """Wait for the result and return it.

        Raises:
            TimeoutError: it is not there after ``timeout`` seconds.
            WorkerLost: the worker died while it ran the call.
            BaseException: what the call raised.
        """
        if not self._ready and not self._core.wait(self, timeout):
            raise context.TimeoutError
        value = self._value
        if type(value) is _Failed:
            raise value.error
        return value  # type: ignore[no-any-return]

    def _put(self, index: int, value: Any) -> None:
        """Take the outcome of task ``index``. A second outcome of the same task is ignored: see
        _ProcessCore.dispatch."""
        if self._number in self._core.jobs:  # else it was aborted
            self._value = value
            self._core.finish(self)

    def _abort(self, error: BaseException) -> None:
        """End now: no more outcomes come."""
        self._put(0, _Failed(error))

    def _describe(self, index: int) -> str:
        """What task ``index`` is, in words."""
        return _name(self._func)

    def _call_back(self) -> None:
        value = self._value
        if type(value) is _Failed:
            if self._error_callback is not None:
                self._error_callback(value.error)
        elif self._callback is not None:
            self._callback(value)

    def __del__(self) -> None:
        if not self._ready:
            try:
                self._core.abandon(self)
            except AttributeError:
                pass  # __init__ did not get that far, or the interpreter is shutting down


def _name(func: object) -> str:
    name = getattr(func, "__qualname__", None)
    return name if isinstance(name, str) else _worker.safe_repr(func)


AsyncResult = ApplyResult


class MapResult(ApplyResult[list[T]]):
    """What map_async returns: the list of results, as soon as all are there."""

    def __init__(
        self,
        pool: Pool,
        func: Func,
        bounds: Sequence[int],
        single: bool,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> None:
        # Task i has the items bounds[i] to bounds[i + 1]; single: one each, and its outcome is no
        # list.
        self._bounds = bounds
        self._single = single
        self._value = [None] * bounds[-1]
        self._open = set(range(len(bounds) - 1))
        self._failure: _Failed | None = None
        super().__init__(pool, func, callback, error_callback)

    @property
    def _number_left(self) -> int:
        """How many tasks (chunks) have no outcome yet. Progress displays read it, as they do in the
        standard library."""
        if not self._ready:
            self._core.poll()
        return len(self._open)

    @property
    def _chunksize(self) -> int:
        return self._bounds[1] - self._bounds[0] if len(self._bounds) > 1 else 0

    def _put(self, index: int, value: Any) -> None:
        if index in self._open:
            if type(value) is _Failed:
                if self._failure is None:
                    self._failure = value
            elif self._abandoned:
                pass
            elif self._single:
                self._value[index] = value
            else:
                self._value[self._bounds[index] : self._bounds[index + 1]] = value
            self._open.discard(index)
        if not self._open and self._number in self._core.jobs:
            if self._failure is not None:
                self._value = self._failure
            self._core.finish(self)

    def _abort(self, error: BaseException) -> None:
        self._value = _Failed(error)
        self._failure = self._failure or self._value
        self._open.clear()
        self._core.finish(self)

    def _describe(self, index: int) -> str:
        start, stop = self._bounds[index], self._bounds[index + 1]
        items = f"item {start}" if stop - start == 1 else f"items {start} to {stop - 1}"
        return f"{_name(self._func)} for {items}"


# Inputs that are read where results are taken: reading them runs no code of the program, and never
# waits.
_AT_HAND = frozenset((list, tuple, range, str, bytes))
# Inputs that are copied first, because the program may change them meanwhile.
_COPIED = frozenset(
    (
        bytearray,
        set,
        frozenset,
        dict,
        type({}.keys()),
        type({}.values()),
        type({}.items()),
        collections.deque,
    )
)

_NOTHING = object()


class _Stream:
    """The job behind an iterator of results.

    Its input is read as results are taken. Where reading may wait or run code of the program, as
    with generators, a thread of the stream's own reads and hands over one task after the other; so
    the input may depend on results, and a slow input and a slow consumer run at the same time. A
    list, tuple or range is read by the threads that take results.

    At most ``2 * taken + 4 * workers`` items have been read when ``taken`` results were taken, and
    no more than LIMIT items, or about BYTES bytes, are under way or wait to be taken: an endless
    input is never swallowed, a slow consumer is waited for, and a fast one is never short of
    results.
    """

    LIMIT = 4096
    BYTES = 64 << 20
    _callback = _error_callback = None

    def __init__(
        self, pool: Pool, func: Func, iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> None:
        self._pool: Pool | None = pool
        self._core = core = pool._core
        self.func = func
        self.chunksize = chunksize
        self.kind = ITEM if chunksize == 1 else MAP
        cls = type(iterable)
        if cls in _COPIED:
            iterable, cls = list(iterable), list
        try:
            items = iter(iterable)
        except Exception as e:
            items, cls = (
                _raising(e),
                list,
            )  # an error in the input is found where the result would be
        self.input: Iterator[Any] | None = items if chunksize == 1 else _chunks(items, chunksize)
        self.read: list[Any] = []  # from the input, not handed over yet
        self.lock = threading.RLock()  # of input, read and count
        self.feeder = 0  # the thread that holds the lock to hand over tasks
        self.width = 4 * pool._processes
        self.limit = max(self.LIMIT // chunksize, 2 * pool._processes)
        self.count = 0  # tasks handed over
        self.taken = 0  # results that the consumer has
        self.open: set[int] = set()  # tasks without an outcome
        self.early: dict[int, Any] | None = {} if ordered else None  # ordered: outcomes by task
        self.done: dict[
            int, Any
        ] = {}  # else: outcomes by task, which a second outcome of the same task does not change,
        self.came: collections.deque[int] = (
            collections.deque()
        )  # and the tasks as their outcomes came
        self.next = 0  # ordered: the task whose result is to be taken next
        self.abandoned = False  # nobody can take results
        self.draining = False  # the input is read to its end though nobody takes results
        self._number = core.register(self)
        core.feeding.add(self)
        self.refused = False  # a task that was handed over has its outcome already
        self.bell: Any = None  # threaded: released to have the thread look again
        if cls not in _AT_HAND:
            self.bell = _allocate_lock()
            self.bell.acquire()
            try:
                _start_thread(self.read_input, (), "polyproc-input")
            except BaseException:
                self.input = None
                core.fed(self)
                core.finish(self)
                raise
        core.handing.pop(self._number, None)

    # -- the input

    def feed(self, room: int) -> None:
        """Read up to ``room`` items and hand them over. Only one thread does at a time; another one
        goes away."""
        if self.input is None or room <= 0 or self.bell is not None or not self.lock.acquire(False):
            return
        try:
            if self.feeder:
                return  # this thread is in here already: it runs a signal handler
            self.feeder = get_ident()
            self._core.handing[self._number] = self.feeder
            # What was read stays in self.read if an exception (Ctrl-C) gets in between.
            failure: BaseException | None = None
            source = self.input
            if source is None:
                return
            try:
                self.read.extend(itertools.islice(source, max(room - len(self.read), 0)))
                exhausted = len(self.read) < room
            except Exception as e:
                failure = e
                exhausted = True
            items = self.read
            first = self.count
            tasks = range(first, first + len(items) + (failure is not None))
            self.open.update(tasks)
            self.count = tasks.stop
            self.read = []
            if items:
                try:
                    self._core.submit(self, self.kind, self.func, items, first)
                except BaseException as e:  # Ctrl-C: which of them are on their way is not known
                    for index in tasks:
                        self._put(index, _Failed(e))
                    raise
            if exhausted:
                self.end_input(failure, tasks.stop - 1)
        finally:
            if self.feeder == get_ident():
                self.feeder = 0
                self._core.handing.pop(self._number, None)
            self.lock.release()

    def end_input(self, failure: BaseException | None = None, index: int = 0) -> None:
        """Nothing more is read. ``failure``: that of the input, in the place of task ``index``."""
        self.input = None
        if failure is not None:
            self._put(index, _Failed(failure))
        self._core.fed(self)
        if not self.open:
            self._core.finish(self)

    def read_input(self) -> None:
        """What the stream's own thread does."""
        try:
            self.read_to_end()
        finally:
            self._core.nudge()

    def read_to_end(self) -> None:
        core = self._core
        source: Any = self.input
        item: Any = None
        while source is not None:
            while self.input is not None and self.room() <= 0:
                self.bell.acquire()
            if self.input is None:
                return
            failure: BaseException | None = None
            try:
                item = next(source)
            except StopIteration:
                source = None
            except BaseException as e:
                failure = e
                source = None
            with self.lock:
                if self.input is None:  # the pool was terminated, or the iterator dropped
                    return
                index = self.count
                if source is None and failure is None:
                    self.end_input()
                    return
                self.open.add(index)
                self.count = index + 1
                if failure is not None:
                    self.end_input(failure, index)
                    return
            try:
                core.submit(self, self.kind, self.func, [item], index)
            except BaseException as e:
                self._put(index, _Failed(e))
            if self.refused:
                self.refused = False
                core.nudge()
            item = None

    def drain_input(self) -> None:
        """What a thread does that reads an input at hand to its end because nobody takes
        results."""
        while self.input is not None and not self._core.stopped:
            self.feed(self.room())
            self._core.wait(
                _Until(lambda: self.input is None or self.room() > self.limit // 2), None
            )

    def ring(self) -> None:
        """Have the stream's own thread look again."""
        try:
            self.bell.release()
        except RuntimeError:
            pass  # it has not looked since the last time

    def window(self) -> int:
        """How many tasks may be under way or have results that are not taken."""
        most: int = self.BYTES // (self._core.weight + 1)
        return min(self.taken + self.width, self.limit, max(self.width, most))

    def room(self) -> int:
        """How many tasks may be handed over now."""
        if self.draining or self._core.joining:
            return self.limit - len(self.open)
        return self.window() - (self.count - self.taken)

    def refill(self) -> int:
        """Hand over as much as the window allows; returns how many results may be taken before this
        is to be called again."""
        if self.bell is not None:
            self.ring()
        else:
            self.feed(self.room())
        return int(max(self.window() >> 3, 1))

    # -- outcomes

    @property
    def _ready(self) -> bool:
        """Whether there is something to take, or nothing to come."""
        if self.early is None:
            return bool(self.came) or self.over()
        return self.next in self.early or self.over()

    @_ready.setter
    def _ready(self, ready: bool) -> None:
        pass  # it follows from the rest

    def over(self) -> bool:
        """Whether no more results come than those that are there."""
        return self.input is None and not self.open

    def take(self) -> Any:
        """The next outcome, or _NOTHING."""
        early = self.early
        if early is None:
            try:
                index = self.came.popleft()
            except IndexError:
                return _NOTHING
            value = self.done.pop(index, _NOTHING)
            if value is _NOTHING:
                return self.take()  # the second outcome of a task
        else:
            index = self.next
            value = early.pop(index, _NOTHING)
            if value is _NOTHING:
                return value
            self.next = index + 1
        self.open.discard(index)
        self.taken += 1
        return value

    def _put(self, index: int, value: Any) -> None:
        if index in self.open:
            if self.abandoned:
                pass
            elif self.early is None:
                self.done[index] = value
                self.came.append(index)
            else:
                self.early[index] = value
            self.open.discard(index)
        if self.input is None:
            if not self.open:
                self._core.finish(self)
        elif self.bell is not None and (self.draining or self._core.joining):
            self.ring()

    def _abort(self, error: BaseException) -> None:
        with self.lock:
            if self.input is not None:
                # The consumer must not take the end of the pool for that of the input.
                self.input = None
                self.open.add(self.count)
                self.count += 1
        if self.bell is not None:
            self.ring()
        for index in sorted(self.open):
            self._put(index, _Failed(error))
        self._core.finish(self)

    def _describe(self, index: int) -> str:
        size = self.chunksize
        items = (
            f"item {index}" if size == 1 else f"items {index * size} to {index * size + size - 1}"
        )
        return f"{_name(self.func)} for {items}"


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield


def _chunks(items: Iterator[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """If the input fails, it fails in the place of the chunk that was being read."""
    while True:
        chunk = tuple(itertools.islice(items, size))
        if not chunk:
            return
        yield chunk


class IMapIterator(context.Subscriptable[T]):
    """What imap returns: an iterator over the results, in the order of the input."""

    def __init__(self, pool: Pool, func: Func, iterable: Iterable[Any], chunksize: int) -> None:
        self._stream = _Stream(pool, func, iterable, chunksize, type(self) is IMapIterator)
        self._chunked = chunksize != 1
        self._flat: collections.deque[Any] = collections.deque()  # rest of a chunk
        self._lock = threading.RLock()  # never held while a thread waits
        self._waiting = 0  # threads that wait
        self._refill_at = self._stream.refill()

    def __iter__(self) -> Self:
        return self

    def next(self, timeout: float | None = None) -> T:
        """The next result.

        Raises:
            StopIteration: there are no more.
            TimeoutError: it is not there after ``timeout`` seconds.
            BaseException: what the call raised.
        """
        stream = self._stream
        deadline = None
        while True:
            with self._lock:
                if self._flat:
                    return self._flat.popleft()  # type: ignore[no-any-return]
                value = stream.take()
                if value is _NOTHING:
                    over = stream.over()  # before the last look
                    value = stream.take()
                if value is not _NOTHING:
                    if stream.taken >= self._refill_at:
                        self._refill_at = stream.taken + stream.refill()
                    if self._chunked and type(value) is not _Failed:
                        self._flat.extend(value)
                        if not self._flat:
                            continue
                        value = self._flat.popleft()
                    if self._waiting:
                        stream._core.wake()  # what comes next may be there as well
                    if type(value) is _Failed:
                        raise value.error
                    return value  # type: ignore[no-any-return]
                if over:
                    raise StopIteration
                self._refill_at = stream.taken + stream.refill()
                self._waiting += 1
            try:
                if timeout is None:
                    stream._core.wait(stream, None)
                else:
                    if deadline is None:
                        deadline = _monotonic() + timeout
                    if not stream._core.wait(stream, deadline - _monotonic()):
                        raise context.TimeoutError
            finally:
                with self._lock:
                    self._waiting -= 1

    __next__ = next

    def __del__(self) -> None:
        try:
            self._stream._core.abandon_stream(self._stream)
        except AttributeError:
            pass  # __init__ did not get that far, or the interpreter is shutting down


class IMapUnorderedIterator(IMapIterator[T]):
    """What imap_unordered returns: an iterator over the results, in the order in which they are
    done."""


# ---- the machine room

# All that this process has, and those that it inherited by a fork.
_cores: weakref.WeakSet[_Core] = weakref.WeakSet()


def _workers_of_all() -> list[Any]:
    """The workers of all pools, for active_children()."""
    return [worker for core in list(_cores) for worker in core.processes()]


process._more_children.append(_workers_of_all)


def _disown() -> None:
    """In a forked child: the pools are the parent's, and threads that are not here may have held
    their locks."""
    for core in list(_cores):
        core.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)


def _start_thread(target: Callable[..., object], args: tuple[Any, ...], name: str) -> None:
    """Start a daemon thread. It is a real one also where a library has replaced threads by
    something else: it waits in the C library, which would block all greenlets.

    Raises:
        RuntimeError: no thread can be started.
    """
    start = _stdlib.unpatched("_thread", "start_new_thread")
    try:
        if start is not _thread.start_new_thread:
            start(target, args)
        else:
            threading.Thread(target=target, args=args, name=name, daemon=True).start()
    except RuntimeError as e:
        raise util.no_thread(e) from None


def _allocate_lock() -> Any:
    """A lock for real threads, see _start_thread."""
    return _stdlib.unpatched("_thread", "allocate_lock")()


class _Until:
    """Something to wait for that is no job: a condition."""

    def __init__(self, test: Callable[[], object]) -> None:
        self.test = test

    @property
    def _ready(self) -> bool:
        return bool(self.test())


class _Core:
    """What is common to pools of processes and of threads: jobs, waiting for them, callbacks.

    It outlives the Pool object, which users hold and which is collected when they let go of it;
    nothing in here refers to it but jobs that are not finished.

    A signal handler may use the pool while the thread that it interrupts is anywhere in here, and
    the garbage collector may end a pool or an iterator anywhere. Therefore nothing in here holds a
    lock: what threads share is changed by single operations on a set or a dictionary, each of which
    happens as a whole, and may be done twice.
    """

    disowned = False  # it belongs to a process that forked this one

    def __init__(self) -> None:
        self.jobs: dict[int, weakref.ref[Any]] = {}  # by number: not finished
        self.held: dict[
            int, Any
        ] = {}  # those of them that live though the program does not hold them
        self.feeding: set[_Stream] = set()  # those whose input is not exhausted
        self.handing: dict[
            int, int
        ] = {}  # by number: the thread that is handing over tasks of the job
        self.numbers = itertools.count(1)
        self.crowded = 1024  # so many jobs are a reason to look whether some are done
        self.sleepers: dict[
            Any, Any
        ] = {}  # what each thread that sleeps waits for, by a lock that wakes it
        self.weight = 0  # bytes of recent tasks, and of recent results that were large
        self.closing = False
        self.joining = (
            False  # join waits for all there is: input is read though nobody takes results
        )
        self.killed = False
        self.stopped = False
        # Jobs that want the helper thread to take outcomes: those with callbacks, and those that
        # nobody can ask for.
        self.wanted: set[int] = set()
        self.due: collections.deque[Any] = (
            collections.deque()
        )  # jobs whose callback is to be called
        self.helpers: dict[int, Any] = {}  # 0: the helper thread's place; a lock that it holds
        self.helper = 0  # its identifier, once it runs
        _cores.add(self)

    def disown(self) -> None:
        """From now on nothing waits here: what is asked for is refused. (Jobs are left alone: there
        may be very many.)"""
        self.disowned = self.stopped = True
        self.sleepers = {}
        self.helpers = {}
        self.helper = 0
        self.feeding = set()

    def check_owner(self) -> None:
        """Raise RuntimeError in a process that inherited the pool by a fork."""
        if self.disowned:
            raise RuntimeError("the pool belongs to a process that forked this one")

    # -- to be filled in

    def submit(self, job: Any, kind: int, func: Func, args: list[Any], first: int) -> None:
        """Hand over the tasks first, first + 1, ... of a job: ``func`` with each of ``args``, which
        are what ``kind`` says."""
        raise NotImplementedError

    def pump(self, job: Any, deadline: float | None) -> None:
        """Deliver outcomes to jobs until ``job`` is ready or the deadline has passed."""
        raise NotImplementedError

    def poll(self) -> int:
        """Deliver what is there. Returns how many outcomes that were, at least."""
        return 0

    def interrupt(self) -> None:
        """Have the threads that wait look again, but for the helper."""

    def nudge(self) -> None:
        """As interrupt, and make sure of it."""
        self.interrupt()

    def end_input(self) -> None:
        """No more tasks will come."""
        raise NotImplementedError

    def stop(self, kill: bool) -> None:
        """Wait for the end of the workers, or end them, and give everything back."""
        raise NotImplementedError

    def processes(self) -> list[Any]:
        """The process objects of the workers that live."""
        return []

    def waiting(self) -> int:
        """How many tasks no worker has taken."""
        raise NotImplementedError

    # -- jobs

    def register(self, job: Any) -> int:
        """Give the job its number.

        Raises:
            RuntimeError: it has a callback, and the thread that is to call it cannot be started.
        """
        number = next(self.numbers) & 0xFFFFFFFF
        while number in self.jobs or not number:
            number = next(self.numbers) & 0xFFFFFFFF
        if len(self.jobs) >= self.crowded:
            self.poll()
            self.crowded = 2 * max(len(self.jobs), 512)
        if job._callback is not None or job._error_callback is not None:
            self.want(number)
            self.held[number] = job
        elif type(job) is _Stream:
            self.held[number] = job
        self.handing[number] = get_ident()  # until the caller has handed over the tasks
        self.jobs[number] = weakref.ref(job)
        return number

    def want(self, number: int) -> None:
        """The job needs the helper thread.

        Raises:
            RuntimeError: it cannot be started.
        """
        self.wanted.add(number)
        try:
            self.start_helper()
        except BaseException:
            self.wanted.discard(number)
            raise
        self.interrupt()

    def start_helper(self) -> None:
        if self.stopped or 0 in self.helpers:
            return
        alive = _allocate_lock()
        if self.helpers.setdefault(0, alive) is not alive:
            return
        alive.acquire()
        try:
            _start_thread(_help, (self, alive), "polyproc-callbacks")
        except BaseException:
            self.helpers.clear()
            alive.release()
            self.wake()
            raise

    def abandon(self, job: ApplyResult[Any]) -> None:
        """Nobody can ask for the job's outcome any more. The job is run all the same, as in the
        standard library, and the pool lives until then."""
        if job._number not in self.jobs or self.stopped:
            return
        job._abandoned = True
        self.keep(job)

    def abandon_stream(self, stream: _Stream) -> None:
        """The consumer of a stream is gone. What it never looked at is run anyway; otherwise
        nothing more is read."""
        stream.abandoned = True
        stream.came.clear()
        stream.done.clear()
        if stream.early:
            stream.early.clear()
        if self.stopped or stream._number not in self.jobs:
            return
        if stream.input is None:
            pass
        elif stream.taken:
            stream.input = None
            self.fed(stream)
            if stream.bell is not None:
                stream.ring()
            if not stream.open:
                self.finish(stream)
                return
        else:
            stream.draining = True
            if stream.bell is not None:
                stream.ring()
            else:
                self.later(stream.drain_input)
        self.keep(stream)

    def keep(self, job: Any) -> None:
        """Have the helper thread take the outcomes of a job that the program does not hold."""
        self.held[job._number] = job
        self.jobs[job._number] = weakref.ref(job)
        self.wanted.add(job._number)
        if self.helpers:
            self.interrupt()
        else:
            self.later(self.start_helper)

    def later(self, function: Callable[[], object]) -> None:
        """Call it in another thread: the garbage collector may have come here while this one holds
        any lock whatever, also one that is
        needed to start a thread with all that belongs to it. If that fails, what is to be done is
        done when somebody waits."""
        try:
            _stdlib.unpatched("_thread", "start_new_thread")(_quietly, (function,))
        except RuntimeError:
            pass

    def finish(self, job: Any) -> None:
        """The job has all its outcomes. May be called again."""
        number = job._number
        if job._callback is None and job._error_callback is None:
            job._ready = True
            self.jobs.pop(number, None)
            self.handing.pop(number, None)
            self.wanted.discard(number)
            self.held.pop(number, None)
            if self.sleepers:
                self.wake()
            job._pool = None  # last of all: the pool may be collected here
        elif number in self.jobs:
            self.handing.pop(number, None)
            self.due.append(job)
            self.jobs.pop(number, None)
            self.wake()

    def fed(self, stream: _Stream) -> None:
        """The input of a stream is exhausted."""
        self.feeding.discard(stream)
        if self.closing and not self.feeding and not self.stopped:
            self.end_input()
        self.interrupt()

    # -- waiting

    def in_helper(self) -> bool:
        return self.helper == get_ident()

    def wait(self, job: Any, timeout: float | None) -> bool:
        """Wait until ``job`` is ready; False: the timeout, in seconds, came first."""
        deadline = None if timeout is None else _monotonic() + timeout
        while not job._ready:
            self.check_owner()
            if deadline is not None and _monotonic() >= deadline:
                self.poll()
                return bool(job._ready)
            self.pump(job, deadline)
        if (
            self.killed
            and util.is_exiting()
            and not self.in_helper()
            and threading.current_thread() is not threading.main_thread()
        ):
            # At the interpreter's end: only daemon threads can be waiting still, and they are not
            # to wake up any more.
            threading.Event().wait()
        return True

    def sleep(
        self,
        job: Any,
        deadline: float | None,
        reason: Callable[[], object] | None = None,
        limit: float = -1,
    ) -> None:
        """Sleep until ``job`` is ready, or another thread calls wake_all, at most ``limit``
        seconds. reason: what must still be so."""
        bell = _allocate_lock()
        bell.acquire()
        self.sleepers[bell] = (
            job  # before the look at the job: who finishes it looks here afterwards
        )
        try:
            if job._ready or (reason is not None and not reason()):
                return
            if deadline is not None:
                left = max(deadline - _monotonic(), 0)
                limit = left if limit < 0 else min(left, limit)
            bell.acquire(True, min(limit, threading.TIMEOUT_MAX) if limit >= 0 else -1)
        finally:
            self.sleepers.pop(bell, None)

    def wake(self) -> None:
        """Wake the threads whose job is ready."""
        for bell, job in list(self.sleepers.items()):
            if job._ready:
                _release(bell)

    def wake_all(self) -> None:
        """Wake all threads that sleep: they have to look again who takes the outcomes."""
        for bell in list(self.sleepers):
            _release(bell)

    # -- end

    def close(self) -> None:
        if self.closing:
            return
        self.closing = True
        if not self.feeding and not self.stopped:
            self.end_input()

    def join(self) -> None:
        """Wait until all is done: whatever input there is, is read."""
        self.check_owner()
        # In a signal handler: what the interrupted thread is in the middle of handing over cannot
        # be waited for.
        me = get_ident()
        mine = {number for number, thread in list(self.handing.items()) if thread == me}
        self.joining = True
        while not self.stopped:
            feeding = [stream for stream in list(self.feeding) if stream._number not in mine]
            if not feeding:
                break
            for stream in feeding:
                stream.refill()
            self.wait(_Until(functools.partial(self.can_feed, feeding)), None)
        # The helper does not wait for the callback that it is in.
        own = self.in_helper()
        self.wait(
            _Until(
                lambda: self.stopped or (self.jobs.keys() <= mine and (own or self.wanted <= mine))
            ),
            None,
        )
        if not self.stopped:
            self.stop(kill=False)
        self.end_helper()

    def can_feed(self, feeding: list[_Stream]) -> bool:
        """Whether join may go on handing over the inputs at hand of these, or one has no more."""
        return self.stopped or any(
            stream.input is None or (stream.bell is None and stream.room() > 0)
            for stream in feeding
        )

    def terminate(self) -> None:
        """End now. Jobs that are not finished fail; nobody calls back any more."""
        if self.stopped:
            return
        self.closing = self.killed = True
        self.stop(kill=True)
        self.stopped = True
        self.feeding.clear()
        self.abort()
        self.end_helper()

    def abort(self) -> None:
        """No more outcomes come: end all jobs."""
        error: Exception
        if self.killed:
            error = context.ProcessError("the pool was terminated before the task was done")
        else:
            # A signal handler has closed it while the interrupted thread was handing over tasks.
            error = ValueError("Pool not running")
        for reference in list(self.jobs.values()):
            job = reference()
            if job is not None:
                job._abort(error)

    def end_helper(self) -> None:
        self.stopped = True
        self.wake_all()
        alive = self.helpers.get(0)
        if alive is not None and not self.in_helper():
            # A signal handler may get in between and come here too.
            while 0 in self.helpers:
                if alive.acquire(True, 1):
                    alive.release()


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:
        pass  # another thread did


def _quietly(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception as e:
        util.debug("pool: %r", e)


def _help(core: _Core, alive: Any) -> None:
    """The helper thread: calls back, in the order of the outcomes, and takes the outcomes that
    nobody asks for.

    As long as it is wanted, it is the one that pumps.
    """
    core.helper = get_ident()
    due = core.due
    try:
        while not core.stopped:
            if not core.wanted:
                core.sleep(_Until(lambda: core.wanted or core.stopped), None)
                continue
            if not due:
                core.wait(_Until(lambda: due or not core.wanted or core.stopped), None)
            while due:
                job = due.popleft()
                if job._ready:
                    continue
                if not core.killed:
                    try:
                        job._call_back()
                    except BaseException:
                        # As in any thread: it is printed, unless the program has its own way. Other
                        # callbacks are not to suffer.
                        threading.excepthook(
                            threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
                        )
                job._ready = True
                number = job._number
                job._pool = None
                core.held.pop(number, None)
                del job
                core.wanted.discard(number)
                core.wake_all()
    finally:
        core.helper = 0
        core.helpers.clear()
        alive.release()
        core.wake_all()


_RESULT_SIZE = 56  # pp_result
_BATCHES = (
    32,
    512,
)  # results that one call takes: in a new pool, and in one that has had many at once
_SLAB_SHARE = 2048  # bytes of results for each of these that one call takes without allocating
_SLICE_MS = (
    500  # a signal that comes just before a thread sleeps is seen after so long at the latest
)


class _Batch:
    """Memory for results that one call takes. What ctypes allocates it writes to: a megabyte would
    be a good part of the time that
    a pool takes to its first result."""

    def __init__(self, size: int) -> None:
        from ctypes import addressof, c_char, c_size_t

        self.size = size
        self.results = (c_char * (_RESULT_SIZE * size))()
        self.results_at = addressof(self.results)
        self.results_view = memoryview(self.results).cast("B")
        self.slab_size = _SLAB_SHARE * size
        self.slab = (c_char * self.slab_size)()
        self.slab_at = addressof(self.slab)
        self.slab_view = memoryview(self.slab).cast("B")
        self.count = c_size_t()
        self.count_at = addressof(self.count)
        # Which result is delivered next: whoever delivers one takes its index from here. One beyond
        # count: all are delivered.
        self.order: Iterator[int] = iter(())


class _Pump:
    """A thread that takes outcomes from the engine."""

    __slots__ = ("batch", "beat", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.batch: Any = None
        self.beat = 0  # calls of the engine


class _ProcessCore(_Core):
    """A pool of the engine's.

    Outcomes find their job by a cookie: number of the job << 32 | index of the task, both modulo
    2**32.

    One thread pumps, and the others sleep. Another one takes its place if it runs a signal handler
    instead: the handler, if that waits for the pool itself, or any thread that waits, since the
    handler may wait for that. What the interrupted thread has taken and not delivered yet is
    delivered first. The outcome that it was delivering may be delivered twice: jobs ignore that.
    """

    def __init__(self, options: Any) -> None:
        super().__init__()
        import struct
        from ctypes import addressof, byref, c_uint64

        from . import _errors
        from ._lib import lib

        self.library = lib()
        self.errors = _errors
        handle = c_uint64()
        _errors.check(self.library.pp_pool_open(byref(options), byref(handle)))
        self.handle: int = handle.value
        self.sender: _worker.Sender | None = (
            None  # what pickles tasks, if the pool's class does it by itself
        )
        self.workers: Any = None  # what starts them, if the engine does not
        self.known: dict[
            int, Any
        ] = {}  # process objects of those that the engine has started, by process id
        self.names: Iterator[str] = iter(())  # theirs
        self.ended = False  # an outcome has said that the pool was terminated
        self.pumping: dict[int, _Pump] = {}  # 0: who takes outcomes from the engine at the moment
        self.functions: dict[
            Any, bytes
        ] = {}  # (function, kind): what the bytes of its tasks begin with
        self.function_numbers = itertools.count(1)
        self.first_out = c_uint64()
        self.first_at = addressof(self.first_out)
        self.batch_size = _BATCHES[0]
        self.batches: list[_Batch] = []  # not in use
        result = struct.Struct("=8xQi12xQQQ")  # cookie, status, size, data, owned
        self.unpack, self.unpack_all = result.unpack_from, result.iter_unpack
        self.unpack_more = struct.Struct("=20xiii24x").unpack_from  # code, pid, exit code
        self.collect = self.library.pp_pool_collect

    # -- to the workers

    def submit(self, job: Any, kind: int, func: Func, args: list[Any], first: int) -> None:
        if self.sender is not None:
            self.submit_by(self.sender, job, kind, func, args, first)
            return
        try:
            prefix = self.prefix(func, kind)
        except Exception as e:
            self.refuse(job, range(first, first + len(args)), e)
            return
        if prefix is None:
            prefix = (kind | _worker.BOUND).to_bytes(8, "little")
            args = [(func, each) for each in args]
        if PLAIN.issuperset(map(type, args)):
            if not _is_big(args[0]):
                pickles = list(map(_dumps, args, itertools.repeat(PROTOCOL)))
                size = len(prefix)
                data = prefix.join([b"", *pickles])
                self.send(job, data, [size + len(pickle) for pickle in pickles], first)
                return
        elif kind == CALL:
            positional, named = args[0]
            if (
                type(positional) is tuple
                and type(named) is dict
                and not named
                and PLAIN.issuperset(map(type, positional))
                and not any(map(_is_big, positional))
            ):
                data = prefix + _dumps(args[0], PROTOCOL)
                self.send(job, data, [len(data)], first)
                return
        self.submit_any(job, prefix, args, first)

    def submit_by(
        self, sender: _worker.Sender, job: Any, kind: int, func: Func, args: list[Any], first: int
    ) -> None:
        """Have the tasks pickled by a queue of the program's own."""
        prefix = (kind | _worker.BOUND).to_bytes(8, "little")
        for i, each in enumerate(args, first):
            try:
                data = prefix + sender((func, each))
            except Exception as e:
                self.refuse(job, (i,), e)
            else:
                self.send(job, data, [len(data)], i)

    def submit_any(self, job: Any, prefix: bytes, args: list[Any], first: int) -> None:
        """Pickle one behind the other what may be large, or have reducers, or no pickle, and hand
        it over in pieces of about 1 MiB."""
        from io import BytesIO

        pickler_of = _worker.pickler_class()
        buffer = BytesIO()
        pickler = pickler_of(buffer, PROTOCOL)
        sizes: list[int] = []
        begin = 0  # of the task in the buffer
        for i, each in enumerate(args, first):
            buffer.write(prefix)
            error: Exception | None = None
            try:
                pickler.dump(each)
            except Exception as e:
                error = e
                if pickler_of is not _worker.registered_pickler():
                    # There are types that only it knows.
                    pickler_of = _worker.registered_pickler()
                    buffer.seek(begin)
                    buffer.truncate()
                    buffer.write(prefix)
                    try:
                        pickler = pickler_of(buffer, PROTOCOL)
                        pickler.dump(each)
                        error = None
                    except Exception as e:
                        error = e
            if error is None:
                end = buffer.tell()
                sizes.append(end - begin)
                begin = end
                pickler.clear_memo()
                if end < 1 << 20 and i + 1 < first + len(args):
                    continue
            else:
                buffer.seek(begin)
                buffer.truncate()
            if sizes:
                self.send(job, buffer.getvalue(), sizes, i + 1 - len(sizes) - (error is not None))
            if error is not None:
                # It has no pickle: that is the outcome of this one.
                self.refuse(job, (i,), error)
            buffer = BytesIO()
            pickler = pickler_of(buffer, PROTOCOL)
            sizes = []
            begin = 0

    def prefix(self, func: Func, kind: int) -> bytes | None:
        """What the bytes of a task of a function begin with; None if the function is not pickled by
        name."""
        cls = type(func)
        if cls is types.BuiltinFunctionType:
            if func.__self__ is not None and type(func.__self__) is not types.ModuleType:  # type: ignore[attr-defined]
                return None
        elif cls is not types.FunctionType and cls is not type:
            return None
        try:
            return self.functions[func, kind]
        except KeyError:
            pass
        pickle = _worker.dumps(func)
        if len(pickle) > 0xFFFF:
            return None
        if len(self.functions) >= 1000:
            self.functions.clear()
        number = next(self.function_numbers)
        prefix = (number << 24 | len(pickle) << 8 | kind).to_bytes(8, "little") + pickle
        self.functions[func, kind] = prefix
        return prefix

    def send(self, job: Any, data: bytes, sizes: list[int], first: int) -> None:
        """Hand over the tasks first, first + 1, ...: data has their bytes one behind the other."""
        n = len(sizes)
        index = first & 0xFFFFFFFF
        if index + n > 0x100000000:
            # The cookies of one call count up: they must not run into the number of the job.
            split = 0x100000000 - index
            at = sum(sizes[:split])
            self.send(job, data[:at], sizes[:split], first)
            self.send(job, data[at:], sizes[split:], first + split)
            return
        self.weight = max(len(data) // n, self.weight - (self.weight >> 3))
        cookie = job._number << 32 | index
        if n == 1:
            status = self.library.pp_pool_submit(
                self.handle, None, data, len(data), cookie, self.first_at
            )
        else:
            from array import array

            numbers = array("Q", sizes)
            status = self.library.pp_pool_submit_many(
                self.handle, None, data, numbers.buffer_info()[0], n, cookie, self.first_at
            )
        if status:
            # Stopped: a signal handler has closed and joined the pool just now.
            error = (
                self.errors.error(status) if not self.stopped else ValueError("Pool not running")
            )
            self.refuse(job, range(first, first + n), error)

    def refuse(self, job: Any, tasks: Iterable[int], error: BaseException) -> None:
        """Tasks that never get to a worker have their outcome now."""
        for i in tasks:
            job._put(i, _Failed(error))
        if type(job) is _Stream:
            job.refused = True

    # -- from the workers

    def pump(self, job: Any, deadline: float | None) -> None:
        me = get_ident()
        helper = self.helper == me
        if self.wanted and not helper and self.helpers:
            # With callbacks around it is the helper that pumps, always, so that they are called in
            # time.
            self.sleep(job, deadline, lambda: self.wanted and self.helpers)
            return
        mine = _Pump(me)
        try:
            other = self.pumping.setdefault(0, mine)
            if other is not mine:
                if other.thread != me and not self.stuck(job, deadline, other):
                    return
                self.pumping[0] = mine
                self.adopt(other)
            self.begin(mine)
            pumping = self.pumping
            while (
                not job._ready
                and pumping.get(0) is mine
                and (helper or not self.wanted or not self.helpers)
            ):
                if deadline is None:
                    ms = _SLICE_MS
                else:
                    ms = int((deadline - _monotonic()) * 1000) + 1
                    if ms <= 0:
                        break
                    ms = min(ms, _SLICE_MS)
                if not self.take(mine, ms):
                    self.abort()
                    break
        finally:
            self.end(mine)

    def stuck(self, job: Any, deadline: float | None, other: _Pump) -> bool:
        """Sleep while another thread pumps. Returns whether that one has something else to do."""
        beat = other.beat
        begin = _monotonic()
        # Only the main thread runs signal handlers.
        limit = 2 * _SLICE_MS / 1000 if other.thread == threading.main_thread().ident else -1
        self.sleep(job, deadline, lambda: self.pumping.get(0) is other, limit)
        return (
            limit >= 0
            and _monotonic() - begin >= limit
            and other.beat == beat
            and self.pumping.get(0) is other
            and not job._ready
        )

    def begin(self, mine: _Pump) -> None:
        try:
            batch = self.batches.pop()
        except IndexError:
            batch = None
        if batch is None or batch.size < self.batch_size:
            batch = _Batch(self.batch_size)
        mine.batch = batch

    def end(self, mine: _Pump) -> None:
        if self.pumping.get(0) is mine:
            self.pumping.pop(0, None)
            if mine.batch is not None:
                # (One whose place was taken has given its memory away: somebody may be reading it.)
                self.batches.append(mine.batch)
            if self.sleepers:
                self.wake_all()

    def poll(self) -> int:
        if (self.wanted and self.helpers) or self.stopped:
            return 0
        mine = _Pump(get_ident())
        try:
            other = self.pumping.setdefault(0, mine)
            if other is not mine:
                if other.thread != mine.thread:
                    return 0
                self.pumping[0] = mine
                self.adopt(other)
            self.begin(mine)
            return max(self.take(mine, 0) - 1, 0)
        finally:
            self.end(mine)

    def take(self, mine: _Pump, timeout_ms: int) -> int:
        """Take outcomes from the engine, waiting for the first. Returns 0 if there is none left to
        come, else 1 + how many there were."""
        batch = mine.batch
        mine.beat += 1
        count = batch.count
        count.value = 0
        batch.order = iter(range(batch.size + 1))
        try:
            status = self.collect(
                self.handle,
                batch.results_at,
                batch.size,
                batch.slab_at,
                batch.slab_size,
                timeout_ms,
                batch.count_at,
            )
            n: int = count.value
            if n:
                self.dispatch(batch, n)
        except BaseException:
            # A signal handler has raised an exception (Ctrl-C), maybe between the engine's answer
            # and the line below.
            self.dispatch_rest(batch, True)
            raise
        if n > batch.size // 4 and batch.size < _BATCHES[1]:
            # More results at once are a reason for more room.
            self.batch_size = _BATCHES[1]
            if self.pumping.get(0) is mine:
                mine.batch = _Batch(_BATCHES[1])
        if status and not n:
            errors = self.errors
            if status in (errors.CLOSED, errors.HANDLE):
                return 0
            if status not in (errors.TIMEOUT, errors.INTERRUPTED):
                raise errors.error(status)
        return n + 1

    def dispatch(self, batch: _Batch, n: int) -> None:
        """Give the n results to their jobs."""
        jobs = self.jobs
        job: Any = None
        slab = batch.slab_view
        slab_at = batch.slab_at
        results = batch.results_view
        rows = list(self.unpack_all(results[: n * _RESULT_SIZE]))
        loads = _loads
        last = -1
        put: Callable[[int, Any], None] | None = None
        for i in batch.order:
            if i >= n:
                break
            cookie, status, size, data, owned = rows[i]
            number = cookie >> 32
            if number != last:
                reference = jobs.get(number)
                job = None if reference is None else reference()
                put = None if job is None else job._put
                last = number
            if status or owned or put is None:
                self.weight = max(size, self.weight)
                self.deliver(batch, i, job, True)
                continue
            data -= slab_at
            try:
                value = loads(slab[data : data + size])
            except Exception as e:
                value = _Failed(e)
            put(cookie & 0xFFFFFFFF, value)
        if self.sleepers:
            self.wake()

    def dispatch_rest(self, batch: _Batch, own: bool) -> None:
        """Finish what dispatch was interrupted in. own: the memory of the outcome that it was at is
        to be given back."""
        n: int = batch.count.value
        first = next(batch.order, n + 1) if n else n + 1
        if 0 < first <= n:
            self.deliver_again(batch, first - 1, own)
        while first < n:
            self.deliver_again(batch, first, True)
            first = next(batch.order, n)
        self.wake()

    def deliver_again(self, batch: _Batch, i: int, own: bool) -> None:
        reference = self.jobs.get(self.unpack(batch.results_view, i * _RESULT_SIZE)[0] >> 32)
        self.deliver(batch, i, None if reference is None else reference(), own)

    def adopt(self, other: _Pump) -> None:
        """Deliver what another pump has taken: it is interrupted, or seems to be."""
        batch = other.batch
        if batch is not None:
            self.dispatch_rest(batch, False)

    def deliver(self, batch: _Batch, i: int, job: Any, own: bool) -> None:
        """Give result i, of whatever kind, to its job. own: and give back its memory."""
        at = i * _RESULT_SIZE
        cookie, status, size, data, owned = self.unpack(batch.results_view, at)
        view: memoryview
        if size == 0:
            view = memoryview(b"")
        elif owned:
            from ctypes import c_char

            view = memoryview((c_char * size).from_address(data)).cast("B")
        else:
            view = batch.slab_view[data - batch.slab_at : data - batch.slab_at + size]
        if job is not None:
            index = cookie & 0xFFFFFFFF
            value: Any
            try:
                value = (
                    _loads(view)
                    if not status
                    else _Failed(self.failure(batch, status, at, view, job, index))
                )
            except BaseException as e:
                value = _Failed(e)
            job._put(index, value)
        elif size and not status:
            self.library.pp_refs_forget(data, size)  # nobody will read the result
        view.release()
        if owned and own:
            self.library.pp_result_free(batch.results_at + at)

    def failure(
        self, batch: _Batch, status: int, at: int, data: memoryview, job: Any, index: int
    ) -> BaseException:
        """The exception for an outcome that is none of a call that returned."""
        errors = self.errors
        code, pid, exit_code = self.unpack_more(batch.results_view, at)
        if status == errors.TASK:
            if code == _worker.UNPICKLABLE:
                reason, value = _loads(data)
                return MaybeEncodingError(_Text(reason), _Text(value))
            return _rebuild(data)
        if status == errors.INIT and data:
            return _rebuild(data)
        known = None if exit_code == -0x80000000 else exit_code
        if status == errors.WORKER_LOST:
            return context.WorkerLost("", pid or None, known, job._describe(index))
        if status == errors.START:
            if data:
                return context.StartError(
                    f"no worker can be started: {str(data, 'utf-8', 'replace')}"
                )
            how = "" if known is None else f" ({_how(known)})"
            return context.StartError(
                f"the workers of the pool end before they are ready{how}; "
                "what they wrote to stderr may say why"
            )
        if status == errors.CLOSED:
            self.ended = True
            return context.ProcessError("the pool was terminated before the task was done")
        text = bytes(data).decode("utf-8", "replace")
        error: Exception = errors.error(status, text or self.library.pp_strerror(status).decode())
        return error

    # -- end

    def interrupt(self) -> None:
        pump = self.pumping.get(0)
        if pump is not None and pump.thread not in (self.helper, get_ident()):
            self.library.pp_pool_wake(self.handle)
        if self.sleepers:
            self.wake()

    def nudge(self) -> None:
        pump = self.pumping.get(0)
        self.interrupt()
        if pump is None or pump.thread == get_ident():
            return
        # It may have looked at its job just before, and have entered the engine just after.
        beat = pump.beat
        sleep = _stdlib.unpatched("time", "sleep")
        for _ in range(_SLICE_MS):
            if self.stopped or self.pumping.get(0) is not pump or pump.beat != beat:
                break
            sleep(0.001)
            self.library.pp_pool_wake(self.handle)

    def end_input(self) -> None:
        self.library.pp_pool_close(self.handle)

    def stop(self, kill: bool) -> None:
        library, errors = self.library, self.errors
        if kill:
            library.pp_pool_terminate(self.handle)
            # What was done before stays done.
            while not self.ended and self.poll() >= _BATCHES[0]:
                pass
        else:
            library.pp_pool_close(self.handle)
        while library.pp_pool_join(self.handle, _SLICE_MS) in (errors.TIMEOUT, errors.INTERRUPTED):
            pass
        self.stopped = True
        library.pp_pool_wake(self.handle)
        if self.workers is not None:
            self.workers.end()
        library.pp_pool_free(self.handle)

    def waiting(self) -> int:
        from ctypes import byref

        from ._abi import PoolState

        state = PoolState()
        failed = self.library.pp_pool_info(self.handle, byref(state), None, 0, None)
        return 0 if failed else state.waiting

    def pids(self) -> list[int]:
        from ctypes import byref, c_int32, c_size_t

        pids = (c_int32 * 1152)()
        count = c_size_t()
        if self.library.pp_pool_info(self.handle, None, pids, len(pids), byref(count)):
            return []
        return pids[: count.value]

    def processes(self) -> list[Any]:
        from ._hosted import Supervised

        if self.stopped:
            return []
        known = self.known if self.workers is None else self.workers.processes
        pids = self.pids()
        for pid in [pid for pid in known if pid not in pids]:
            known.pop(pid, None)
        for pid in pids:
            if pid not in known and self.workers is None:
                # The engine has started it. It knows how many there were before, but not this one's
                # place among them.
                current = process.current_process()
                worker: Any = context.SpawnProcess.__new__(context.SpawnProcess)
                worker.__dict__.update(
                    _identity=current._identity,
                    _name=next(self.names),
                    _config={**current._config, "daemon": True},
                    _parent_pid=os.getpid(),
                    _parent_name=current.name,
                    _popen=Supervised(self, pid),
                    _closed=False,
                )
                known[pid] = worker
        return [known[pid] for pid in pids if pid in known]


def _is_big(value: object) -> bool:
    """Whether the pickle of a value of a plain type is large: worth some trouble not to be
    copied."""
    return type(value) in (bytes, str) and len(value) > 0x8000  # type: ignore[arg-type]


def _how(exit_code: int) -> str:
    return process.signal_name(-exit_code) if exit_code < 0 else f"exit code {exit_code}"


# ---- the pool


class Pool:
    """A pool of worker processes that run calls.

    Args:
        processes: how many, at most 1024; None: one per CPU that this process may use.
        initializer, initargs: ``initializer(*initargs)`` is called in each worker at its start.
        maxtasksperchild: a worker is replaced after so many tasks (chunks, for map); None: never.
        context: whose start method is used.

    Raises:
        ValueError, TypeError: an argument is not what it must be.
        AssertionError: this process is a daemon, which cannot have children.
        OSError, MemoryError: processes could not be started.
    """

    _state = INIT
    _core: Any
    _limit: float = 1024  # PP__MAX_LANES
    _inqueue: Any = None

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        from .context import _default_context

        self._ctx = context or _default_context.get_context()
        if processes is None:
            processes = _cpus()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if processes > self._limit:
            raise ValueError(f"Number of processes must be at most {self._limit}, not {processes}")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._outqueue: Any = None
        sender = None
        if type(self)._setup_queues is not Pool._setup_queues:
            # The class has queues of its own, with reducers of its own: joblib's pool, for one.
            self._setup_queues()
            sender = _worker.Sender(self._inqueue, getattr(self, "_quick_put", None))
        self._core = self._open()
        self._core.sender = sender
        self._terminate = util.Finalize(self, _Core.terminate, args=(self._core,), exitpriority=15)
        self._state = RUN

    def _open(self) -> Any:
        current = process.current_process()
        assert not current._config.get("daemon"), (
            "daemonic processes are not allowed to have children"
        )
        method = self._ctx.get_start_method()
        own = (
            type(self).Process is Pool.Process
            and self._ctx.Process is context.SpawnProcess
            and self._outqueue is None
        )
        if method in ("fork", "forkserver") or not own:
            return self._open_hosted()
        from . import spawn
        from ._abi import START_SPAWN, PoolOptions

        first = next(process._process_counter)
        for _ in range(self._processes - 1):
            next(process._process_counter)
        with _Spawning():
            data = _worker.dumps(
                (
                    spawn.get_preparation_data("SpawnPoolWorker"),
                    current._identity,
                    first,
                    os.getpid(),
                    current.name,
                )
            )
            start = _worker.dumps((self._initializer, self._initargs))
        init_arg = len(data).to_bytes(8, "little") + data + start
        import ctypes

        argv = [os.fsencode(word) for word in spawn.command(worker=0)]
        options = PoolOptions()
        options.size = ctypes.sizeof(options)
        options.method = START_SPAWN
        options.workers = self._processes
        options.max_tasks = min(self._maxtasksperchild or 0, 0xFFFFFFFF)
        options.init_arg = init_arg
        options.init_arg_size = len(init_arg)
        options.argv = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
        core = _ProcessCore(options)
        core.names = itertools.cycle(
            [f"SpawnPoolWorker-{first + i}" for i in range(self._processes)]
        )
        return core

    def _open_hosted(self) -> Any:
        """A pool whose workers are forked by this process, or by its fork server."""
        import ctypes

        from ._abi import POOL_HOST_STARTS, PoolOptions
        from ._hosted import Workers

        assert not process.current_process()._config.get("daemon"), (
            "daemonic processes are not allowed to have children"
        )
        options = PoolOptions()
        options.size = ctypes.sizeof(options)
        options.workers = self._processes
        options.max_tasks = min(self._maxtasksperchild or 0, 0xFFFFFFFF)
        options.flags = POOL_HOST_STARTS
        core = _ProcessCore(options)
        make: Any = (
            self.Process
        )  # of a static method it is the function, which does not hold the pool
        core.workers = Workers(
            core, make, self._ctx, (self._initializer, self._initargs, self._outqueue)
        )
        try:
            core.workers.start(self._processes)
        except BaseException:
            core.terminate()
            raise
        return core

    def _setup_queues(self) -> None:
        """A subclass may define it to set _inqueue and _outqueue, and _quick_put: tasks are pickled
        by ``_quick_put(task)``, or
        ``_inqueue.put(task)``, and results by ``_outqueue.put(result)`` in a worker. The bytes go
        the way of all others."""

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:
        """The process object of a worker. A subclass may define its own."""
        return ctx.Process(*args, **kwds)

    # -- calls

    def apply(
        self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> T:
        """Return ``func(*args, **kwds)``, called in a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult[T]:
        """Start a call and return at once.

        Args:
            callback: called with the result, in another thread, before the result is ready.
            error_callback: called with the exception instead, if there is one.
        """
        self._check_running()
        result: ApplyResult[T] = ApplyResult(self, func, callback, error_callback)
        try:
            self._core.submit(result, CALL, func, [(args, kwds)], 0)
        except BaseException as e:  # Ctrl-C
            result._abort(e)
            raise
        self._core.handing.pop(result._number, None)
        return result

    def map(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int | None = None
    ) -> list[T]:
        """Return ``[func(item) for item in iterable]``.

        Args:
            chunksize: so many items go to a worker as one task; None: the pool decides.
        """
        return self._map_async(func, iterable, MAP, chunksize).get()

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """Return ``[func(*item) for item in iterable]``."""
        return self._map_async(func, iterable, STARMAP, chunksize).get()

    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[T]:
        """Start what map does and return at once; callbacks as for apply_async."""
        return self._map_async(func, iterable, MAP, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[T]:
        """Start what starmap does and return at once; callbacks as for apply_async."""
        return self._map_async(func, iterable, STARMAP, chunksize, callback, error_callback)

    def imap(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int = 1
    ) -> IMapIterator[T]:
        """Return an iterator over ``func(item)`` for each item, in that order. The input is read as
        results are taken."""
        self._check_running()
        _check_chunksize(chunksize)
        return IMapIterator(self, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int = 1
    ) -> IMapUnorderedIterator[T]:
        """As imap, with the results in the order in which they are done."""
        self._check_running()
        _check_chunksize(chunksize)
        return IMapUnorderedIterator(self, func, iterable, chunksize)

    def _map_async(
        self,
        func: Func,
        iterable: Iterable[Any],
        kind: int,
        chunksize: int | None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> MapResult[Any]:
        self._check_running()
        if chunksize is not None:
            _check_chunksize(chunksize)
        failure = None
        items: Any = iterable
        if type(iterable) not in (list, tuple, range):
            if hasattr(iterable, "__len__"):
                # The length is all that the caller vouches for: an error in reading is the job's.
                try:
                    items = list(iterable)
                except Exception as e:
                    items, failure = [], e
            else:
                items = list(iterable)
        n = len(items)
        if chunksize is None:
            bounds = _plan(n, self._processes)
        else:
            bounds = [*range(0, n, chunksize), n]
        single = kind == MAP and len(bounds) == n + 1
        if failure is not None:
            result: MapResult[Any] = MapResult(self, func, [0, 0], False, callback, error_callback)
            result._put(0, _Failed(failure))
            return result
        if n == 0:
            result = MapResult(self, func, [0], False)
            self._core.finish(result)
            return result
        result = MapResult(self, func, bounds, single, callback, error_callback)
        submit = self._core.submit
        tasks = n if single else len(bounds) - 1
        # A few tasks first, so that the workers have something to do while the rest is pickled; big
        # tasks one by one.
        i = 0
        step = self._processes
        try:
            while i < tasks:
                end = min(i + step, tasks)
                if single:
                    submit(result, ITEM, func, items[i:end], i)
                else:
                    submit(
                        result,
                        kind,
                        func,
                        [items[bounds[k] : bounds[k + 1]] for k in range(i, end)],
                        i,
                    )
                i = end
                if bounds[end] - bounds[end - 1] < 64:
                    step = min(step * 2, 512)
        except BaseException as e:  # Ctrl-C
            result._abort(e)
            raise
        self._core.handing.pop(result._number, None)
        return result

    # -- end

    def close(self) -> None:
        """Take no more calls. What was asked for is done."""
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            self._core.close()

    def terminate(self) -> None:
        """End the workers at once. Calls without a result raise ProcessError."""
        util.debug("terminating pool")
        self._state = TERMINATE
        self._terminate()

    def join(self) -> None:
        """Wait for the end of the workers.

        Raises:
            ValueError: the pool was neither closed nor terminated.
        """
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == CLOSE:
            self._core.join()
            self._terminate.cancel()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:
        if self._state == RUN and not self._core.disowned:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        cls = type(self)
        # A pool in cyclic garbage has ended its workers when it warns.
        size = self._processes if self._state == RUN and self._core.stopped else len(self._pool)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={size}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # -- looked at by others

    @property
    def _pool(self) -> list[Any]:
        """The workers that live."""
        return [] if self._state == INIT else self._core.processes()[: self._processes]

    @property
    def _cache(self) -> dict[int, Any]:
        """The jobs that are not finished. Progress displays read it, as they do in the standard
        library."""
        self._core.poll()
        found = ((number, reference()) for number, reference in list(self._core.jobs.items()))
        return {number: job for number, job in found if job is not None}

    @property
    def _taskqueue(self) -> _TaskQueue:
        return _TaskQueue(self._core)

    def _repopulate_pool(self) -> None:
        """Wait a moment for the replacements of workers that have just ended: the pool starts them
        by itself."""
        deadline = _monotonic() + 1
        while len(self._pool) < self._processes and _monotonic() < deadline:
            time.sleep(0.001)

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        self._core.check_owner()


class _TaskQueue:
    """The tasks that no worker has taken yet, to look at."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def qsize(self) -> int:
        """How many there are."""
        return int(self._core.waiting())

    def empty(self) -> bool:
        """Whether there are none."""
        return not self.qsize()


class _Spawning:
    """While it is entered, objects are pickled for a process that is being started. Descriptors
    cannot go along with a pool."""

    def __enter__(self) -> None:
        context.set_spawning_popen(self)

    def __exit__(self, *exc_info: object) -> None:
        context.set_spawning_popen(None)

    def DupFd(self, fd: int) -> Any:
        raise ValueError("descriptors cannot be passed to the workers of a pool")

    duplicate_for_child = DupFd


def _cpus() -> int:
    count = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


def _check_chunksize(chunksize: int) -> None:
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")


_FEW = 16384


def _plan(n: int, workers: int) -> list[int]:
    """Where the chunks of a map begin, and where the last ends.

    Four for each worker, as in the standard library. Of many items there are sixteen for each
    worker that has a CPU to itself, so that the workers end at about the same time: a chunk costs a
    few microseconds, which counts only where items are few.
    """
    chunks = 4 * workers
    if n > _FEW:
        chunks = max(chunks, 16 * min(workers, _cpus()))
    size = max(-(-n // chunks), 1)
    return [*range(0, n, size), n]


# ---- threads


class _ThreadCore(_Core):
    """A pool of threads."""

    def __init__(
        self, threads: int, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        super().__init__()
        from _queue import SimpleQueue

        self.queue: Any = SimpleQueue()
        self.failure: BaseException | None = None
        self.threads = [
            threading.Thread(
                target=_serve,
                args=(self, initializer, initargs),
                daemon=True,
                name=f"ThreadPoolWorker-{i + 1}",
            )
            for i in range(threads)
        ]
        try:
            for thread in self.threads:
                thread.start()
        except RuntimeError as e:
            for _ in self.threads:  # those that run end
                self.queue.put(None)
            raise util.no_thread(e) from None

    def submit(self, job: Any, kind: int, func: Func, args: list[Any], first: int) -> None:
        for i, arg in enumerate(args, first):
            self.queue.put((job, i, kind, func, arg))

    def pump(self, job: Any, deadline: float | None) -> None:
        self.sleep(job, deadline)

    def end_input(self) -> None:
        pass

    def waiting(self) -> int:
        return int(self.queue.qsize())

    def stop(self, kill: bool) -> None:
        if kill:
            try:
                while True:
                    self.queue.get_nowait()
            except Exception:
                pass  # empty
        self.stopped = True
        for _ in self.threads:
            self.queue.put(None)
        if not kill:
            for thread in self.threads:
                thread.join()


def _serve(
    core: _ThreadCore, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """What a thread of a pool of threads does."""
    try:
        if initializer is not None:
            initializer(*initargs)
    except BaseException as e:
        core.failure = e
    while True:
        task = core.queue.get()
        if task is None:
            return
        job, i, kind, func, arg = task
        value: Any
        try:
            if core.failure is not None:
                raise core.failure
            if kind == ITEM:
                value = func(arg)
            elif kind == CALL:
                value = func(*arg[0], **arg[1])
            elif kind == MAP:
                value = list(map(func, arg))
            else:
                value = list(itertools.starmap(func, arg))
        except BaseException as e:
            value = _Failed(e)
        job._put(i, value)
        if core.sleepers:
            core.wake()
        task = job = func = arg = value = None


class ThreadPool(Pool):
    """A pool of threads with the methods of Pool: nothing is pickled."""

    _limit = float("inf")

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        super().__init__(processes, initializer, initargs)

    def _open(self) -> Any:
        return _ThreadCore(self._processes, self._initializer, self._initargs)

    @property
    def _pool(self) -> list[Any]:
        return [] if self._state == INIT else list(self._core.threads)
