"""Pools of worker processes, and of threads. Mirrors multiprocessing/pool.py.

    caller's thread          engine (no GIL)          worker processes
    submit: pickle, hand ->  queue, lanes       ->    _worker.py: unpickle, call, pickle
    wait:   unpickle     <-  results that are done <-

There are no helper threads. Arguments are pickled in the thread that submits, results are unpickled in a thread that waits: whoever
waits takes what is done, for everybody (it *pumps*), and the others sleep until their own result is there. In between the engine
keeps the workers busy by itself. A thread of the pool's own exists only while a job has a callback, which must be called even if
nobody waits.

Differences from the standard library:

* a worker that dies costs the task that it ran: :class:`~polyproc.WorkerLost`, and the pool goes on;
* an initializer that always fails is the outcome of every task, and so is a worker that cannot start;
* whatever cannot be pickled or unpickled is the error of its task alone; an exception that cannot be rebuilt by unpickling is rebuilt
  from its class and its args;
* imap and imap_unordered read their input as results are taken, not all of it at once;
* a pool that is terminated ends what waits for it with :class:`~polyproc.ProcessError`, instead of letting it wait for ever;
* default chunks of map are smaller, so that the work spreads better.
"""

from __future__ import annotations

import collections
import itertools
import os
import sys
import threading
import time
import types
import warnings
import weakref

from . import _worker, context, util
from ._worker import CALL, ITEM, MAP, PLAIN, PROTOCOL, STARMAP

try:
    from _pickle import dumps as _dumps
    from _pickle import loads as _loads
except ImportError:
    from pickle import dumps as _dumps
    from pickle import loads as _loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Func = Callable[..., Any]
    Callback = Callable[[Any], object]

__all__ = ["Pool", "ThreadPool"]

INIT = "INIT"
RUN = "RUN"
CLOSE = "CLOSE"
TERMINATE = "TERMINATE"

_monotonic = time.monotonic


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


class ApplyResult:
    """What apply_async returns: the result, as soon as it is there."""

    _ready = False  # the outcome is there, and callbacks were called
    _value: Any = None

    def __init__(
        self, pool: Pool, func: Func, callback: Callback | None = None, error_callback: Callback | None = None
    ) -> None:
        self._pool: Pool | None = pool  # a pool is not collected while somebody can still ask for results
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

    def get(self, timeout: float | None = None) -> Any:
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
        return value

    def _put(self, index: int, value: Any) -> None:
        """Take the outcome of task ``index``. Called twice in a row with the same, it does the same: see _ProcessCore.dispatch."""
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


def _name(func: object) -> str:
    name = getattr(func, "__qualname__", None)
    return name if isinstance(name, str) else _worker.safe_repr(func)


AsyncResult = ApplyResult


class MapResult(ApplyResult):
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
        # Task i has the items bounds[i] to bounds[i + 1]; single: one each, and its outcome is no list.
        self._bounds = bounds
        self._single = single
        self._value = [None] * bounds[-1]
        self._open = set(range(len(bounds) - 1))
        self._failure: _Failed | None = None
        super().__init__(pool, func, callback, error_callback)

    def _put(self, index: int, value: Any) -> None:
        if self._number not in self._core.jobs:
            return
        if type(value) is _Failed:
            if self._failure is None:
                self._failure = value
        elif self._single:
            self._value[index] = value
        else:
            self._value[self._bounds[index] : self._bounds[index + 1]] = value
        self._open.discard(index)
        if not self._open:
            if self._failure is not None:
                self._value = self._failure
            self._core.finish(self)

    def _abort(self, error: BaseException) -> None:
        self._value = _Failed(error)
        self._open.clear()
        self._core.finish(self)

    def _describe(self, index: int) -> str:
        start, stop = self._bounds[index], self._bounds[index + 1]
        items = f"item {start}" if stop - start == 1 else f"items {start} to {stop - 1}"
        return f"{_name(self._func)} for {items}"


class _Stream:
    """The job behind an iterator of results: reads the input as results are taken.

    At most ``2 * taken + 4 * workers`` items have been read when ``taken`` results were taken, and no more than LIMIT items, or about
    BYTES bytes, are under way or wait to be taken: an endless input is never swallowed, a slow consumer is waited for, and a fast one
    is never short of results.
    """

    LIMIT = 4096
    BYTES = 64 << 20
    _ready = False
    _callback = _error_callback = None

    def __init__(
        self, pool: Pool, func: Func, iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> None:
        self._pool: Pool | None = pool
        self._core = pool._core
        self.func = func
        self.chunksize = chunksize
        self.kind = ITEM if chunksize == 1 else MAP
        try:
            items = iter(iterable)
        except Exception as e:
            items = _raising(e)  # an error in the input is found where the result would be
        self.input: Iterator[Any] | None = items if chunksize == 1 else _chunks(items, chunksize)
        self.read: list[Any] = []  # from the input, not handed over yet
        self.lock = threading.Lock()  # of input and read
        self.width = 4 * pool._processes
        self.limit = max(self.LIMIT // chunksize, 2 * pool._processes)
        self.count = 0  # tasks handed over
        self.taken = 0  # results that the consumer has
        self.open: set[int] = set()  # tasks without an outcome
        self.early: dict[int, Any] | None = {} if ordered else None  # ordered: outcomes by task
        self.done: collections.deque[tuple[int, Any]] = collections.deque()  # else: outcomes
        self.next = 0  # ordered: the task whose result is to be taken next
        self.unwanted = False  # nobody can take results
        self._number = self._core.register(self)
        self._core.feeding.add(self)

    def feed(self, room: int) -> None:
        """Read up to ``room`` items and hand them over. Only one thread does at a time; another one goes away."""
        if self.input is None or room <= 0 or not self.lock.acquire(False):
            return
        try:
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
                        if index in self.open:
                            self._put(index, _Failed(e))
                    raise
            if exhausted:
                self.input = None
                if failure is not None:
                    self._put(tasks.stop - 1, _Failed(failure))
                self._core.fed(self)
                if not self.open:
                    self._core.finish(self)
        finally:
            self.lock.release()

    def refill(self) -> int:
        """Hand over as much as the window allows; returns how many results may be taken before this is to be called again."""
        taken = self.taken
        window = min(taken + self.width, self.limit, max(self.width, self.BYTES // (self._core.weight + 1)))
        self.feed(window - (self.count - taken))
        return int(max(window >> 3, 1))

    def _put(self, index: int, value: Any) -> None:
        if self.early is not None:
            if not self.unwanted:
                self.early[index] = value
            self.open.discard(index)
            if index == self.next:
                self._ready = True
        else:
            if not self.unwanted and index in self.open and not (self.done and self.done[-1][0] == index):
                self.done.append((index, value))
            self.open.discard(index)
            self._ready = True
        if self.input is None and not self.open:
            self._core.finish(self)

    def _abort(self, error: BaseException) -> None:
        self.input = None
        for index in sorted(self.open):
            self._put(index, _Failed(error))
        self._core.finish(self)

    def _describe(self, index: int) -> str:
        size = self.chunksize
        items = f"item {index}" if size == 1 else f"items {index * size} to {index * size + size - 1}"
        return f"{_name(self.func)} for {items}"

    def room(self) -> int:
        """How many more tasks may be under way when nobody takes results."""
        return self.limit - len(self.open)

    def over(self) -> bool:
        """Whether no more results come than those that are there."""
        return self.input is None and not self.open


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


class IMapIterator:
    """What imap returns: an iterator over the results, in the order of the input."""

    def __init__(self, pool: Pool, func: Func, iterable: Iterable[Any], chunksize: int) -> None:
        self._stream = _Stream(pool, func, iterable, chunksize, type(self) is IMapIterator)
        self._chunked = chunksize != 1
        self._flat: collections.deque[Any] = collections.deque()  # rest of a chunk
        self._lock = threading.Lock()
        self._refill_at = self._stream.refill()

    def __iter__(self) -> IMapIterator:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            StopIteration: there are no more.
            TimeoutError: it is not there after ``timeout`` seconds.
            BaseException: what the call raised.
        """
        stream = self._stream
        with self._lock:
            if self._flat:
                return self._flat.popleft()
            while True:
                value = self._take(timeout)
                stream.taken += 1
                if stream.taken >= self._refill_at:
                    self._refill_at = stream.taken + stream.refill()
                if type(value) is _Failed:
                    raise value.error
                if not self._chunked:
                    return value
                self._flat.extend(value)
                if self._flat:
                    return self._flat.popleft()

    __next__ = next

    def _take(self, timeout: float | None) -> Any:
        stream = self._stream
        early = stream.early
        assert early is not None
        while True:
            try:
                value = early.pop(stream.next)
                stream.next += 1
                return value
            except KeyError:
                pass
            stream._ready = False
            over = stream.over()
            if stream.next in early:
                continue
            if over:
                raise StopIteration
            self._await(timeout)

    def _await(self, timeout: float | None) -> None:
        stream = self._stream
        self._refill_at = stream.taken + stream.refill()
        if not stream._ready and not stream.over() and not stream._core.wait(stream, timeout):
            raise context.TimeoutError

    def __del__(self) -> None:
        try:
            self._stream._core.unwanted(self._stream)
        except AttributeError:
            pass  # __init__ did not get that far, or the interpreter is going down


class IMapUnorderedIterator(IMapIterator):
    """What imap_unordered returns: an iterator over the results, in the order in which they are done."""

    def _take(self, timeout: float | None) -> Any:
        stream = self._stream
        done = stream.done
        while True:
            try:
                return done.popleft()[1]
            except IndexError:
                pass
            stream._ready = False
            over = stream.over()
            if done:
                continue
            if over:
                raise StopIteration
            self._await(timeout)


# ---- the machine room

# All that this process has, and those that it inherited by a fork.
_cores: weakref.WeakSet[_Core] = weakref.WeakSet()


def _disown() -> None:
    """In a forked child: the pools are the parent's, and threads that are not here may have held their locks."""
    for core in list(_cores):
        core.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)


class _Until:
    """Something to wait for that is no job: a condition."""

    def __init__(self, test: Callable[[], object]) -> None:
        self.test = test

    @property
    def _ready(self) -> bool:
        return bool(self.test())


class _Core:
    """What is common to pools of processes and of threads: jobs, waiting for them, callbacks.

    It outlives the Pool object, which users hold and which is collected when they let go of it; nothing in here refers to it but jobs
    that are not finished.

    The condition's lock is reentrant because the garbage collector may end a pool or an iterator anywhere.
    """

    disowned = False  # it belongs to a process that forked this one

    def __init__(self) -> None:
        self.jobs: dict[int, Any] = {}  # by number: not finished
        self.feeding: set[_Stream] = set()  # those whose input is not exhausted
        self.numbers = itertools.count(1)
        self.crowded = 1024  # so many jobs are a reason to look whether some are done
        self.cond = threading.Condition(threading.RLock())
        self.sleepers = 0
        self.weight = 0  # bytes of recent tasks, and of recent results that were large
        self.closing = False
        self.killed = False
        self.stopped = False
        # The helper thread is wanted for each job with a callback, and each stream whose input nobody else reads.
        self.wanted = 0
        self.due: collections.deque[Any] = collections.deque()  # jobs whose callback is to be called
        self.draining: set[_Stream] = set()
        self.helper: threading.Thread | None = None
        _cores.add(self)

    def disown(self) -> None:
        """From now on nothing waits here: what is asked for is refused. (Jobs are left alone: there may be very many.)"""
        self.disowned = self.stopped = True
        self.cond = threading.Condition(threading.RLock())
        self.helper = None
        self.feeding = set()

    def check_owner(self) -> None:
        """Raise RuntimeError in a process that inherited the pool by a fork."""
        if self.disowned:
            raise RuntimeError("the pool belongs to a process that forked this one")

    # -- to be filled in

    def submit(self, job: Any, kind: int, func: Func, args: list[Any], first: int) -> None:
        """Hand over the tasks first, first + 1, ... of a job: ``func`` with each of ``args``, which are what ``kind`` says."""
        raise NotImplementedError

    def pump(self, job: Any, deadline: float | None) -> None:
        """Deliver outcomes to jobs until ``job`` is ready or the deadline has passed."""
        raise NotImplementedError

    def poll(self) -> None:
        """Deliver what is there."""

    def interrupt(self) -> None:
        """Get a thread out of pump soon."""

    def end_input(self) -> None:
        """No more tasks will come."""
        raise NotImplementedError

    def stop(self, kill: bool) -> None:
        """Wait for the end of the workers, or end them, and give everything back."""
        raise NotImplementedError

    # -- jobs

    def register(self, job: Any) -> int:
        number = next(self.numbers) & 0xFFFFFFFF
        while number in self.jobs or not number:
            number = next(self.numbers) & 0xFFFFFFFF
        if len(self.jobs) >= self.crowded:
            # Whoever starts calls and never asks for results must not fill the memory with them.
            self.poll()
            self.crowded = 2 * max(len(self.jobs), 512)
        if job._callback is not None or job._error_callback is not None:
            self.want(1)
        self.jobs[number] = job
        return number

    def want(self, more: int) -> None:
        """Count reasons for the helper thread to be."""
        with self.cond:
            self.wanted = max(self.wanted + more, 0)
            if self.wanted and self.helper is None and not self.stopped:
                self.helper = threading.Thread(target=_help, args=(self,), name="polyproc-callbacks", daemon=True)
                self.helper.start()
            self.cond.notify_all()
        if more > 0:
            self.interrupt()

    def finish(self, job: Any) -> None:
        """The job has all its outcomes. May be called again."""
        if job._callback is None and job._error_callback is None:
            job._ready = True
            self.jobs.pop(job._number, None)
            if self.sleepers:
                self.wake()
            job._pool = None  # last of all: the pool may be collected here
        elif job._number in self.jobs:
            self.due.append(job)
            del self.jobs[job._number]
            self.wake()

    def wake(self) -> None:
        with self.cond:
            self.cond.notify_all()

    def fed(self, stream: _Stream) -> None:
        """The input of a stream is exhausted."""
        with self.cond:
            self.feeding.discard(stream)
            end = self.closing and not self.feeding and not self.stopped
        if end:
            self.end_input()

    def unwanted(self, stream: _Stream) -> None:
        """The consumer of a stream is gone. What it never looked at was meant to be run anyway; else nothing more is read,
        unless somebody waits in join() for all there is."""
        stream.unwanted = True
        stream.done.clear()
        if stream.early:
            stream.early.clear()
        if stream.input is not None and not stream.taken and not self.stopped:
            with self.cond:  # at once: else the helper may be through with the stream before it is counted
                self.draining.add(stream)
                self.want(1)

    def drained(self, stream: _Stream) -> None:
        self.draining.discard(stream)
        self.want(-1)

    # -- waiting

    def in_helper(self) -> bool:
        return self.helper is not None and self.helper.ident == threading.get_ident()

    def wait(self, job: Any, timeout: float | None) -> bool:
        """Wait until ``job`` is ready; False: the timeout, in seconds, came first."""
        deadline = None if timeout is None else _monotonic() + timeout
        while not job._ready:
            self.check_owner()
            if deadline is not None and _monotonic() >= deadline:
                self.poll()
                return bool(job._ready)
            self.pump(job, deadline)
        if self.killed and util.is_exiting() and threading.current_thread() not in (threading.main_thread(), self.helper):
            # At the interpreter's end: only daemon threads can be waiting still, and they are not to wake up any more.
            threading.Event().wait()
        return True

    def sleep(self, job: Any, deadline: float | None) -> None:
        """Sleep until something happens that the job may have waited for. Holds self.cond."""
        self.sleepers += 1  # before the look at the job: who finishes it looks here afterwards
        try:
            if not job._ready:
                self.cond.wait(None if deadline is None else max(deadline - _monotonic(), 0))
        finally:
            self.sleepers -= 1

    # -- end

    def close(self) -> None:
        with self.cond:
            if self.closing:
                return
            self.closing = True
            end = not self.feeding and not self.stopped
        if end:
            self.end_input()

    def join(self) -> None:
        """Wait until all is done: whatever input there is, is read."""
        self.check_owner()
        while self.feeding and not self.stopped:
            for stream in list(self.feeding):
                stream.feed(stream.room())
            self.wait(_Until(lambda: self.stopped or all(stream.room() > 0 for stream in list(self.feeding))), None)
        # The helper does not wait for the callback that it is in.
        own = self.in_helper()
        self.wait(_Until(lambda: self.stopped or (not self.jobs and (own or not self.wanted))), None)
        if not self.stopped:
            self.stop(kill=False)
        self.end_helper()

    def terminate(self) -> None:
        """End now. Jobs that are not finished fail; nobody calls back any more."""
        with self.cond:
            if self.stopped:
                return
            self.closing = self.killed = True
        self.stop(kill=True)
        with self.cond:
            self.stopped = True
        self.feeding.clear()
        self.abort()
        self.end_helper()

    def abort(self) -> None:
        """No more outcomes come: end all jobs."""
        error = context.ProcessError("the pool was terminated before the task was done")
        for job in list(self.jobs.values()):
            job._abort(error)

    def end_helper(self) -> None:
        with self.cond:
            self.stopped = True
            self.cond.notify_all()
        if self.helper is not None and not self.in_helper():
            self.helper.join()


def _help(core: _Core) -> None:
    """The thread that calls back, in the order of the outcomes, and reads the input of streams that nobody looks at.

    It takes care by itself that there are outcomes: as long as it is wanted, it is the one that pumps.
    """
    due, draining = core.due, core.draining
    while True:
        with core.cond:
            while not core.wanted and not core.stopped:
                core.cond.wait()
        if core.stopped:
            return
        for stream in list(draining):
            stream.feed(stream.room())
            if stream.input is None:
                core.drained(stream)
        if not due and core.wanted and not core.stopped:
            core.wait(
                _Until(
                    lambda: due or not core.wanted or core.stopped or any(s.room() > s.limit // 2 for s in list(draining))
                ),
                None,
            )
        while due:
            job = due.popleft()
            if job._ready:
                continue
            if not core.killed:
                try:
                    job._call_back()
                except BaseException:
                    # As in any thread: it is printed, unless the program has its own way. Other callbacks are not to suffer.
                    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            job._ready = True
            job._pool = None
            del job
            core.want(-1)


_RESULT_SIZE = 56  # pp_result
_BATCHES = 32, 512  # results that one call takes: in a new pool, and in one that has had many at once
_SLAB_SHARE = 2048  # bytes of results for each of these that one call takes without allocating
_SLICE_MS = 500  # a signal that comes just before a thread sleeps is seen after so long at the latest


class _ProcessCore(_Core):
    """A pool of the engine's.

    Outcomes find their job by a cookie: number of the job << 32 | index of the task, both modulo 2**32.
    """

    def __init__(self, options: Any) -> None:
        super().__init__()
        import struct
        from ctypes import addressof, byref, c_size_t, c_uint64

        from . import _errors
        from ._lib import lib

        self.library = lib()
        self.errors = _errors
        handle = c_uint64()
        _errors.check(self.library.pp_pool_open(byref(options), byref(handle)))
        self.handle: int = handle.value
        self.workers: Any = None  # what starts them, if the engine does not
        self.ended = False  # an outcome has said that the pool was terminated
        self.pumper: object = None  # who takes outcomes from the engine at the moment
        self.functions: dict[Any, bytes] = {}  # (function, kind): what the bytes of its tasks begin with
        self.function_numbers = itertools.count(1)
        self.first_out = c_uint64()
        self.first_at = addressof(self.first_out)
        self.count_out = c_size_t()
        self.count_at = addressof(self.count_out)
        self.make_room(_BATCHES[0])
        self.unpack = struct.Struct("=8xQi12xQQQ").iter_unpack  # cookie, status, size, data, owned
        self.unpack_more = struct.Struct("=20xiii24x").unpack_from  # code, pid, exit code
        self.collect = self.library.pp_pool_collect

    def make_room(self, batch: int) -> None:
        """Have memory for so many results at once. What ctypes allocates it writes to: a megabyte would be a good part of the time that
        a pool takes to its first result."""
        from ctypes import addressof, c_char

        self.batch = batch
        self.results = (c_char * (_RESULT_SIZE * batch))()
        self.results_at = addressof(self.results)
        self.results_view = memoryview(self.results).cast("B")
        self.slab_size = _SLAB_SHARE * batch
        self.slab = (c_char * self.slab_size)()
        self.slab_at = addressof(self.slab)
        self.slab_view = memoryview(self.slab).cast("B")
        self.crowd = batch // 4 if batch < _BATCHES[1] else batch  # more results at once are a reason for more room

    # -- to the workers

    def submit(self, job: Any, kind: int, func: Func, args: list[Any], first: int) -> None:
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

    def submit_any(self, job: Any, prefix: bytes, args: list[Any], first: int) -> None:
        """Pickle one behind the other what may be large, or have reducers, or no pickle, and hand it over in pieces of about 1 MiB."""
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
        """What the bytes of a task of a function begin with; None if the function is not pickled by name."""
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
            status = self.library.pp_pool_submit(self.handle, None, data, len(data), cookie, self.first_at)
        else:
            from array import array

            numbers = array("Q", sizes)
            status = self.library.pp_pool_submit_many(
                self.handle, None, data, numbers.buffer_info()[0], n, cookie, self.first_at
            )
        if status:
            self.refuse(job, range(first, first + n), self.errors.error(status))

    def refuse(self, job: Any, tasks: Iterable[int], error: BaseException) -> None:
        """Tasks that never get to a worker have their outcome now."""
        for i in tasks:
            job._put(i, _Failed(error))

    # -- from the workers

    def pump(self, job: Any, deadline: float | None) -> None:
        me = object()
        try:
            with self.cond:
                if self.pumper is not None or (self.wanted and not self.in_helper()):
                    # Another thread pumps; with callbacks around it is the helper, always, so that they are called in time.
                    self.sleep(job, deadline)
                    return
                self.pumper = me
            helper = self.in_helper()
            while not job._ready and (helper or not self.wanted):
                if deadline is None:
                    ms = _SLICE_MS
                else:
                    ms = int((deadline - _monotonic()) * 1000) + 1
                    if ms <= 0:
                        return
                    ms = min(ms, _SLICE_MS)
                if not self.take(ms):
                    self.abort()
                    return
        finally:
            if self.pumper is me:
                with self.cond:
                    self.pumper = None
                    if self.sleepers:
                        self.cond.notify_all()

    def poll(self) -> None:
        me = object()
        try:
            with self.cond:
                if self.pumper is not None or self.wanted or self.stopped:
                    return
                self.pumper = me
            self.take(0)
        finally:
            if self.pumper is me:
                with self.cond:
                    self.pumper = None
                    if self.sleepers:
                        self.cond.notify_all()

    def take(self, timeout_ms: int) -> int:
        """Take outcomes from the engine, waiting for the first. Returns 0 if there is none left to come, else 1 + how many there were."""
        count = self.count_out
        if count.value > self.crowd:
            self.make_room(_BATCHES[1])
        count.value = 0
        self.position = 0
        try:
            status = self.collect(
                self.handle, self.results_at, self.batch, self.slab_at, self.slab_size, timeout_ms, self.count_at
            )
            n = count.value
            if n:
                self.dispatch(n)
        except BaseException:
            # A signal handler has raised an exception (Ctrl-C), maybe between the engine's answer and the line below.
            self.dispatch_rest(count.value)
            raise
        if status and not n:
            errors = self.errors
            if status in (errors.CLOSED, errors.HANDLE):
                return 0
            if status not in (errors.TIMEOUT, errors.INTERRUPTED):
                raise errors.error(status)
        return n + 1

    def dispatch(self, n: int) -> None:
        """Give the first n of self.results to their jobs."""
        jobs = self.jobs
        job: Any = None
        slab = self.slab_view
        slab_at = self.slab_at
        loads = _loads
        last = -1
        put: Callable[[int, Any], None] | None = None
        i = 0
        try:
            for i, (cookie, status, size, data, owned) in enumerate(self.unpack(self.results_view[: n * _RESULT_SIZE])):
                number = cookie >> 32
                if number != last:
                    job = jobs.get(number)
                    put = None if job is None else job._put
                    last = number
                if status or owned or put is None:
                    self.weight = max(size, self.weight)
                    self.deliver(i, job)
                    continue
                data -= slab_at
                try:
                    value = loads(slab[data : data + size])
                except Exception as e:
                    value = _Failed(e)
                put(cookie & 0xFFFFFFFF, value)
        except BaseException:
            self.position = i
            raise
        if self.sleepers:
            self.wake()

    def dispatch_rest(self, n: int) -> None:
        """Finish what dispatch was interrupted in. The outcome that it was at is delivered again: jobs do not mind."""
        for i in range(self.position, n):
            cookie = next(self.unpack(self.results_view[i * _RESULT_SIZE : (i + 1) * _RESULT_SIZE]))[0]
            self.deliver(i, self.jobs.get(cookie >> 32))
        self.wake()

    def deliver(self, i: int, job: Any) -> None:
        """Give result i, of whatever kind, to its job."""
        at = i * _RESULT_SIZE
        cookie, status, size, data, owned = next(self.unpack(self.results_view[at : at + _RESULT_SIZE]))
        view: memoryview
        if size == 0:
            view = memoryview(b"")
        elif owned:
            from ctypes import c_char

            view = memoryview((c_char * size).from_address(data)).cast("B")
        else:
            view = self.slab_view[data - self.slab_at : data - self.slab_at + size]
        if job is not None:
            index = cookie & 0xFFFFFFFF
            value: Any
            try:
                value = _loads(view) if not status else _Failed(self.failure(status, at, view, job, index))
            except BaseException as e:
                value = _Failed(e)
            job._put(index, value)
        view.release()
        if owned:
            self.library.pp_result_free(self.results_at + at)

    def failure(self, status: int, at: int, data: memoryview, job: Any, index: int) -> BaseException:
        """The exception for an outcome that is none of a call that returned."""
        errors = self.errors
        code, pid, exit_code = self.unpack_more(self.results_view, at)
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
            how = "" if known is None else f" ({_how(known)})"
            return context.StartError(
                f"the workers of the pool end before they are ready{how}; what they wrote to stderr may say why"
            )
        if status == errors.CLOSED:
            self.ended = True
            return context.ProcessError("the pool was terminated before the task was done")
        text = bytes(data).decode("utf-8", "replace")
        error: Exception = errors.error(status, text or self.library.pp_strerror(status).decode())
        return error

    # -- end

    def interrupt(self) -> None:
        if self.pumper is not None:
            self.library.pp_pool_wake(self.handle)

    def end_input(self) -> None:
        self.library.pp_pool_close(self.handle)

    def stop(self, kill: bool) -> None:
        library, errors = self.library, self.errors
        if kill:
            library.pp_pool_terminate(self.handle)
            # What was done before stays done.
            while self.pumper is None and not self.wanted and not self.ended and self.take(0) > _BATCHES[0]:
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

    def pids(self) -> list[int]:
        from ctypes import byref, c_int32, c_size_t

        pids = (c_int32 * 1152)()
        count = c_size_t()
        if self.library.pp_pool_info(self.handle, None, pids, len(pids), byref(count)):
            return []
        return pids[: count.value]


def _is_big(value: object) -> bool:
    """Whether the pickle of a value of a plain type is large: worth some trouble not to be copied."""
    return type(value) in (bytes, str) and len(value) > 0x8000  # type: ignore[arg-type]


def _how(exit_code: int) -> str:
    from . import process

    return process.signal_name(-exit_code) if exit_code < 0 else f"exit code {exit_code}"


class _WorkerProcess:
    """A worker of a pool, to look at: the pool takes care of it."""

    daemon = True

    def __init__(self, core: _ProcessCore, pid: int, name: str) -> None:
        self._core = core
        self.pid = self.ident = pid
        self.name = name

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.pid in self._core.pids()

    @property
    def exitcode(self) -> int | None:
        """None while it runs; 255 afterwards: the pool does not keep how its workers ended."""
        return None if self.is_alive() else 255

    def terminate(self) -> None:
        """Send SIGTERM; the pool replaces the worker."""
        self._send("SIGTERM")

    def kill(self) -> None:
        """Send SIGKILL; the pool replaces the worker."""
        self._send("SIGKILL")

    def _send(self, name: str) -> None:
        import signal

        if self.is_alive():
            try:
                os.kill(self.pid, getattr(signal, name))
            except ProcessLookupError:
                pass  # it has ended in between

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        deadline = None if timeout is None else _monotonic() + timeout
        while self.is_alive() and (deadline is None or _monotonic() < deadline):
            time.sleep(0.01)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} pid={self.pid} {'started' if self.is_alive() else 'stopped'} daemon>"


# ---- the pool


class Pool:
    """A pool of worker processes that run calls.

    Args:
        processes: how many; None: one per CPU that this process may use.
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
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._core = self._open()
        self._terminate = util.Finalize(self, _Core.terminate, args=(self._core,), exitpriority=15)
        self._state = RUN

    def _open(self) -> Any:
        from . import process, spawn
        from ._abi import START_SPAWN, PoolOptions

        current = process.current_process()
        assert not current._config.get("daemon"), "daemonic processes are not allowed to have children"
        method = self._ctx.get_start_method()
        if method in ("fork", "forkserver"):
            return self._open_hosted()
        first = next(process._process_counter)
        for _ in range(self._processes - 1):
            next(process._process_counter)
        self._names = [f"SpawnPoolWorker-{first + i}" for i in range(self._processes)]
        with _Spawning():
            data = _worker.dumps(
                (spawn.get_preparation_data("SpawnPoolWorker"), current._identity, first, os.getpid(), current.name)
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
        return _ProcessCore(options)

    def _open_hosted(self) -> Any:
        """A pool whose workers are forked by this process, or by its fork server."""
        import ctypes

        from . import process
        from ._abi import POOL_HOST_STARTS, PoolOptions
        from ._hosted import Workers

        assert not process.current_process()._config.get("daemon"), "daemonic processes are not allowed to have children"
        options = PoolOptions()
        options.size = ctypes.sizeof(options)
        options.workers = self._processes
        options.max_tasks = min(self._maxtasksperchild or 0, 0xFFFFFFFF)
        options.flags = POOL_HOST_STARTS
        core = _ProcessCore(options)
        core.workers = Workers(core.handle, self._ctx, self._initializer, self._initargs)
        try:
            core.workers.start(self._processes)
        except BaseException:
            core.terminate()
            raise
        self._names = core.workers.names
        return core

    # -- calls

    def apply(self, func: Func, args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> Any:
        """Return ``func(*args, **kwds)``, called in a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Func,
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> ApplyResult:
        """Start a call and return at once.

        Args:
            callback: called with the result, in another thread, before the result is ready.
            error_callback: called with the exception instead, if there is one.
        """
        self._check_running()
        result = ApplyResult(self, func, callback, error_callback)
        try:
            self._core.submit(result, CALL, func, [(args, kwds)], 0)
        except BaseException as e:  # Ctrl-C
            result._abort(e)
            raise
        return result

    def map(self, func: Func, iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Return ``[func(item) for item in iterable]``.

        Args:
            chunksize: so many items go to a worker as one task; None: the pool decides.
        """
        return self._map_async(func, iterable, MAP, chunksize).get()  # type: ignore[no-any-return]

    def starmap(self, func: Func, iterable: Iterable[Iterable[Any]], chunksize: int | None = None) -> list[Any]:
        """Return ``[func(*item) for item in iterable]``."""
        return self._map_async(func, iterable, STARMAP, chunksize).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Func,
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> MapResult:
        """Start what map does and return at once; callbacks as for apply_async."""
        return self._map_async(func, iterable, MAP, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Func,
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> MapResult:
        """Start what starmap does and return at once; callbacks as for apply_async."""
        return self._map_async(func, iterable, STARMAP, chunksize, callback, error_callback)

    def imap(self, func: Func, iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Return an iterator over ``func(item)`` for each item, in that order. The input is read as results are taken."""
        self._check_running()
        _check_chunksize(chunksize)
        return IMapIterator(self, func, iterable, chunksize)

    def imap_unordered(self, func: Func, iterable: Iterable[Any], chunksize: int = 1) -> IMapUnorderedIterator:
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
    ) -> MapResult:
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
            result = MapResult(self, func, [0, 0], False, callback, error_callback)
            result._put(0, _Failed(failure))
            return result
        if n == 0:
            result = MapResult(self, func, [0], False)
            self._core.finish(result)
            return result
        result = MapResult(self, func, bounds, single, callback, error_callback)
        submit = self._core.submit
        tasks = n if single else len(bounds) - 1
        # A few tasks first, so that the workers have something to do while the rest is pickled; big tasks one by one.
        i = 0
        step = self._processes
        try:
            while i < tasks:
                end = min(i + step, tasks)
                if single:
                    submit(result, ITEM, func, items[i:end], i)
                else:
                    submit(result, kind, func, [items[bounds[k] : bounds[k + 1]] for k in range(i, end)], i)
                i = end
                if bounds[end] - bounds[end - 1] < 64:
                    step = min(step * 2, 512)
        except BaseException as e:  # Ctrl-C
            result._abort(e)
            raise
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
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # -- looked at by others

    @property
    def _pool(self) -> list[Any]:
        """The workers that live."""
        if self._state == INIT or self._core.stopped:
            return []
        pids = self._core.pids()[: self._processes]
        return [_WorkerProcess(self._core, pid, name) for pid, name in zip(pids, itertools.cycle(self._names))]

    def _repopulate_pool(self) -> None:
        """Wait a moment for the replacements of workers that have just ended: the pool starts them by itself."""
        deadline = _monotonic() + 1
        while len(self._pool) < self._processes and _monotonic() < deadline:
            time.sleep(0.001)

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        self._core.check_owner()


class _Spawning:
    """While it is entered, objects are pickled for a process that is being started. Descriptors cannot go along with a pool."""

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


def _plan(n: int, workers: int) -> list[int]:
    """Where the chunks of a map begin, and where the last ends.

    A chunk costs a few microseconds, so there may be many, and the workers end at about the same time: four for each worker, and sixteen
    for each that has a CPU to itself.
    """
    chunks = max(4 * workers, 16 * min(workers, _cpus()))
    size = max(-(-n // chunks), 1)
    return [*range(0, n, size), n]


# ---- threads


class _ThreadCore(_Core):
    """A pool of threads."""

    def __init__(self, threads: int, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        super().__init__()
        from _queue import SimpleQueue

        self.queue: Any = SimpleQueue()
        self.failure: BaseException | None = None
        self.threads = [
            threading.Thread(target=_serve, args=(self, initializer, initargs), daemon=True, name=f"ThreadPoolWorker-{i + 1}")
            for i in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def submit(self, job: Any, kind: int, func: Func, args: list[Any], first: int) -> None:
        for i, arg in enumerate(args, first):
            self.queue.put((job, i, kind, func, arg))

    def pump(self, job: Any, deadline: float | None) -> None:
        with self.cond:
            self.sleep(job, deadline)

    def end_input(self) -> None:
        pass

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


def _serve(core: _ThreadCore, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
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

