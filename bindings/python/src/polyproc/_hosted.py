"""Workers of a pool that this process forks, or has its fork server fork.

The engine starts only fresh programs by itself. For the other methods it tells where a worker is missing (pp_pool_vacancy), and is
told who has taken the place (pp_pool_fill); it supervises that process from then on:

    first workers: in Pool()                 later ones: a thread that sleeps in pp_pool_vacancy
    vacancy --> fork, or a request to the fork server --> child: _worker.serve_vacancy()
            --> pp_pool_fill
"""

from __future__ import annotations

import os
import time
from _signal import (  # type: ignore[import-not-found]
    SIG_BLOCK,
    SIG_SETMASK,
    SIGINT,
    SIGKILL,
    SIGTERM,
    pthread_sigmask,
)
from _thread import get_ident
from ctypes import byref

from . import _abi, _errors, _stdlib, _worker, context, popen_fork, process, util
from ._lib import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Supervised", "Workers", "is_own"]

class _Fork(popen_fork.Popen):
    """A child by fork(2) that the engine supervises, and nobody here."""

    def __init__(self, process_obj: process.BaseProcess) -> None:
        process._flush_std_streams()
        self._creator = os.getpid()
        self.status_fd = -1
        # A Ctrl-C must not find the child with the parent's handler: it unblocks the signal when it has its own.
        before = pthread_sigmask(SIG_BLOCK, {SIGINT})
        try:
            self.pid = popen_fork.fork()
            if self.pid == 0:
                self._run(process_obj, None)
        finally:
            pthread_sigmask(SIG_SETMASK, before)


class _Started:
    """A child that the class of the program's own context has started by its own start()."""

    def __init__(self, process_obj: process.BaseProcess) -> None:
        # As in _Fork: it unblocks the signal when it has its own handler.
        before = pthread_sigmask(SIG_BLOCK, {SIGINT})
        try:
            process_obj.start()
        finally:
            pthread_sigmask(SIG_SETMASK, before)
        popen: Any = process_obj._popen
        self.pid: int = popen.pid
        # Where the fork server tells how its child has ended.
        status = getattr(popen, "_status", -1)
        self.status_fd = os.dup(status) if status >= 0 else -1
        self._popen = popen  # what it holds is given back when the pool collects the child
        process._children.discard(process_obj)
        process_obj.__dict__.pop("_sentinel", None)


class Supervised:
    """A worker as the Popen of its process object: the engine collects it, not this process.

    Args:
        core: of the pool.
        pid: the worker's process id.
    """

    def __init__(self, core: Any, pid: int) -> None:
        self._core = core
        self._fd = -1
        self.pid = pid
        self.returncode: int | None = None

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """None while it runs; 255 afterwards: the pool does not keep how its workers ended."""
        if flag == 0:
            return self.wait(None)
        if self.returncode is None and self.pid not in self._core.pids():
            self.returncode = popen_fork.UNKNOWN
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait at most ``timeout`` seconds for its end."""
        if self.poll() is None and process.wait_readable(self.sentinel, timeout):
            while self.poll() is None:  # the engine is about to collect it
                time.sleep(0.001)
        return self.returncode

    @property
    def sentinel(self) -> int:
        if self._fd < 0:
            try:
                fd = os.pidfd_open(self.pid)
            except (AttributeError, ProcessLookupError):
                fd = process.ended_fd()
            if self.poll() is not None:
                # It has ended, and the number may be another process's.
                os.close(fd)
                fd = process.ended_fd()
            self._fd = fd
            self.finalizer = util.Finalize(self, util.close_fds, (fd,))
        return self._fd

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass  # it has ended in between

    def terminate(self) -> None:
        """Send SIGTERM; the pool replaces the worker."""
        self._signal(SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; the pool replaces the worker."""
        self._signal(SIGKILL)

    def close(self) -> None:
        """Give back the sentinel."""
        if self._fd >= 0:
            self.finalizer()


def is_own(cls: Any) -> bool:
    """Whether processes of the class are started in the way that this package defines."""
    inherited = process.BaseProcess
    return (
        issubclass(cls, inherited)
        and cls.start is inherited.start
        and cls._bootstrap is inherited._bootstrap
        and getattr(cls, "_Popen", None) in (context.ForkProcess._Popen, context.ForkServerProcess._Popen)
    )


class Workers:
    """What fills a pool's vacancies.

    Args:
        core: of the pool.
        make: the Process of the pool, called as ``make(ctx, target=..., args=...)``.
        ctx: the context.
        arguments: initializer and initargs as of Pool, and what sends results.
    """

    def __init__(self, core: Any, make: Callable[..., Any], ctx: Any, arguments: tuple[Any, ...]) -> None:
        self._core = core
        self._handle: int = core.handle
        self._make = make
        self._ctx = ctx
        self._arguments = arguments
        self._keeper = 0  # the thread that starts later workers
        self._kept = _stdlib.unpatched("_thread", "allocate_lock")()  # held as long as it lives
        self.processes: dict[int, Any] = {}  # process objects by process id

    def start(self, count: int) -> None:
        """Start the first workers, and see to it that there will be others when these end.

        Raises:
            OSError: one could not be started.
            Exception: the initializer or its arguments cannot be pickled (forkserver).
        """
        # All are forked before the engine is told of the first: what it does then writes to memory, which after a fork is to be
        # copied, and it would be so for each of them.
        filled: list[tuple[_abi.Vacancy, Any, Any]] = []
        try:
            for _ in range(count):
                vacancy = self._vacancy(0)
                if vacancy is None:
                    break
                filled.append((vacancy, *self._start(vacancy)))
        finally:
            for each in filled:
                self._fill(*each)
        # Not threading.Thread: it would wait until the thread runs, next to workers that are starting just then. And a real thread:
        # a greenlet that waits in the library blocks all others.
        self._kept.acquire()
        popen_fork.own_threads += 1
        try:
            self._keeper = _stdlib.unpatched("_thread", "start_new_thread")(self._keep, ())
        except BaseException:
            self._kept.release()
            popen_fork.own_threads -= 1
            raise

    def _vacancy(self, timeout_ms: int) -> _abi.Vacancy | None:
        """The next vacancy; it must be filled. None: there will be no more."""
        vacancy = _abi.Vacancy()
        status = lib().pp_pool_vacancy(self._handle, timeout_ms, byref(vacancy))
        if status in (_errors.CLOSED, _errors.HANDLE):
            return None
        _errors.check(status)
        return vacancy

    def _worker(self, vacancy: _abi.Vacancy) -> Any:
        """The process object for a vacancy."""
        worker = self._make(
            self._ctx,
            target=_worker.serve_vacancy,
            args=(
                _worker.Memory(vacancy.fd),
                vacancy.lane,
                vacancy.generation,
                vacancy.parent_pid,
                *self._arguments,
            ),
        )
        worker.name = worker.name.replace("Process", "PoolWorker")
        worker.daemon = True
        return worker

    def _start(self, vacancy: _abi.Vacancy) -> tuple[Any, Any]:
        """Start a process for a vacancy. If that fails, the engine is told."""
        try:
            worker = self._worker(vacancy)
            if not is_own(type(worker)):
                return _Started(worker), worker
            if type(worker)._Popen is context.ForkProcess._Popen:
                return _Fork(worker), worker
            from .popen_forkserver import Request  # a pool by fork opens sooner without it and what it imports

            return Request(worker), worker
        except BaseException as e:
            why = getattr(e, "errno", None) or -1
            lib().pp_pool_fill(self._handle, byref(vacancy), 0, why)
            raise

    def _fill(self, vacancy: _abi.Vacancy, child: Any, worker: Any) -> None:
        status = lib().pp_pool_fill(self._handle, byref(vacancy), child.pid, child.status_fd)
        # Not found: it has ended, and is collected already. The engine asks for another.
        if status != _errors.NOT_FOUND:
            _errors.check(status)
        worker._popen = Supervised(self._core, child.pid)
        for name in ("_target", "_args", "_kwargs"):  # they may refer to anything
            worker.__dict__.pop(name, None)
        self.processes[child.pid] = worker

    def _keep(self) -> None:
        try:
            while True:
                try:
                    vacancy = self._vacancy(-1)
                    if vacancy is None:
                        return
                    self._fill(vacancy, *self._start(vacancy))
                except Exception as e:
                    # The engine has been told. It asks again, or gives up and tells the tasks.
                    util.info("no worker could be started: %r", e)
        finally:
            popen_fork.own_threads -= 1
            self._keeper = 0
            self._kept.release()

    def end(self) -> None:
        """Wait for the end of the thread: the pool has no vacancies any more."""
        # A signal handler may get in between and come here too.
        while self._keeper not in (0, get_ident()):
            if self._kept.acquire(True, 1):
                self._kept.release()
