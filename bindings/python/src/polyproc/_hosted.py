"""Workers of a pool that this process forks, or has its fork server fork.

The engine starts only fresh programs by itself. For the other methods it tells where a worker is missing (pp_pool_vacancy), and is
told who has taken the place (pp_pool_fill); it supervises that process from then on:

    first workers: in Pool()                 later ones: a thread that sleeps in pp_pool_vacancy
    vacancy --> fork, or a request to the fork server --> child: _worker.serve_vacancy()
            --> pp_pool_fill
"""

from __future__ import annotations

import _thread
import os
from _signal import SIG_BLOCK, SIG_SETMASK, SIGINT, pthread_sigmask  # type: ignore[import-not-found]
from ctypes import byref

from . import _abi, _errors, _worker, forkserver, popen_fork, popen_forkserver, process, util
from ._lib import lib
from .popen_spawn_posix import pickle_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Workers"]

# What each worker needs: the fork server has it ready for all.
_FOR_WORKERS = (f"{__package__}._lib", f"{__package__}._worker")


class _Request(popen_forkserver.Popen):
    """A child of the fork server that the engine supervises, and nobody here."""

    def __init__(self, process_obj: process.BaseProcess) -> None:
        self._fds = []
        self.temporary_fds = []
        try:
            self.pid, self.status_fd = forkserver.fork(pickle_process(self, process_obj), self._fds, _FOR_WORKERS)
        finally:
            util.close_fds(*self.temporary_fds)


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


class Workers:
    """What fills a pool's vacancies.

    Args:
        handle: of the pool.
        ctx: the context, of fork or forkserver.
        initializer, initargs: as of Pool.
    """

    def __init__(
        self, handle: int, ctx: Any, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        self._handle = handle
        self._process = ctx.Process
        self._start: Any = _Fork if ctx.get_start_method() == "fork" else _Request
        self._initializer = initializer
        self._initargs = initargs
        self._keeper = 0  # the thread that starts later workers
        self._kept = _thread.allocate_lock()  # held as long as it lives
        self.names: list[str] = []  # of the first workers

    def start(self, count: int) -> None:
        """Start the first workers, and see to it that there will be others when these end.

        Raises:
            OSError: one could not be started.
            Exception: the initializer or its arguments cannot be pickled (forkserver).
        """
        # All are forked before the engine is told of the first: what it does then writes to memory, which after a fork is to be
        # copied, and it would be so for each of them.
        filled: list[tuple[_abi.Vacancy, Any]] = []
        try:
            for _ in range(count):
                vacancy = self._vacancy(0)
                if vacancy is None:
                    break
                worker = self._worker(vacancy)
                self.names.append(worker.name)
                filled.append((vacancy, self._start_in(vacancy, worker)))
        finally:
            for vacancy, child in filled:
                self._fill(vacancy, child)
        # Not threading.Thread: it would wait until the thread runs, next to workers that are starting just then.
        self._kept.acquire()
        popen_fork.own_threads += 1
        try:
            self._keeper = _thread.start_new_thread(self._keep, ())
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
        worker = self._process(
            target=_worker.serve_vacancy,
            args=(
                _worker.Memory(vacancy.fd),
                vacancy.lane,
                vacancy.generation,
                vacancy.parent_pid,
                self._initializer,
                self._initargs,
            ),
            daemon=True,
        )
        worker.name = worker.name.replace("Process", "PoolWorker")
        return worker

    def _start_in(self, vacancy: _abi.Vacancy, worker: Any) -> Any:
        """Start it. If that fails, the engine is told."""
        try:
            return self._start(worker)
        except BaseException:
            lib().pp_pool_fill(self._handle, byref(vacancy), 0, -1)
            raise

    def _fill(self, vacancy: _abi.Vacancy, child: Any) -> None:
        status = lib().pp_pool_fill(self._handle, byref(vacancy), child.pid, child.status_fd)
        if status != _errors.NOT_FOUND:  # it has ended, and the fork server has collected it: the engine asks for another
            _errors.check(status)

    def _keep(self) -> None:
        try:
            while True:
                try:
                    vacancy = self._vacancy(-1)
                    if vacancy is None:
                        return
                    self._fill(vacancy, self._start_in(vacancy, self._worker(vacancy)))
                except Exception as e:
                    # The engine has been told. It asks again, or gives up and tells the tasks.
                    util.info("no worker could be started: %r", e)
        finally:
            popen_fork.own_threads -= 1
            self._kept.release()

    def end(self) -> None:
        """Wait for the end of the thread: the pool has no vacancies any more."""
        if self._keeper != _thread.get_ident():
            with self._kept:
                pass
