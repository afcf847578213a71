"""Workers of a pool that this process forks, or has its fork server fork.

The engine starts only fresh programs by itself. For the other methods it tells where a worker is missing (pp_pool_vacancy), and is
told who has taken the place (pp_pool_fill); it supervises that process from then on:

    first workers: in Pool()                 later ones: a thread that sleeps in pp_pool_vacancy
    vacancy --> fork, or a request to the fork server --> child: _worker.serve_vacancy()
            --> pp_pool_fill
"""

from __future__ import annotations

import os
import signal
import threading
from ctypes import byref

from . import _abi, _errors, _worker, forkserver, popen_fork, popen_forkserver, process, util
from ._lib import lib
from .popen_spawn_posix import pickle_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Workers"]


class _Request(popen_forkserver.Popen):
    """A child of the fork server that the engine supervises, and nobody here."""

    def __init__(self, process_obj: process.BaseProcess) -> None:
        self._fds = []
        self.temporary_fds = []
        try:
            self.pid, self.status_fd = forkserver.fork(pickle_process(self, process_obj), self._fds)
        finally:
            util.close_fds(*self.temporary_fds)


class _Fork(popen_fork.Popen):
    """A child by fork(2) that the engine supervises, and nobody here."""

    def __init__(self, process_obj: process.BaseProcess) -> None:
        process._flush_std_streams()
        self._creator = os.getpid()
        self.status_fd = -1
        # A Ctrl-C must not find the child with the parent's handler: it unblocks the signal when it has its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.pid = popen_fork.fork()
            if self.pid == 0:
                self._run(process_obj, None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        self._thread: threading.Thread | None = None
        self.names: list[str] = []  # of the first workers

    def start(self, count: int) -> None:
        """Start the first workers, and see to it that there will be others when these end.

        Raises:
            OSError: one could not be started.
            Exception: the initializer or its arguments cannot be pickled (forkserver).
        """
        for _ in range(count):
            self._fill(0)
        self._thread = threading.Thread(target=self._keep, name="polyproc-workers", daemon=True)
        self._thread.start()

    def _fill(self, timeout_ms: int) -> bool:
        """Fill the next vacancy. False: there will be no more."""
        vacancy = _abi.Vacancy()
        status = lib().pp_pool_vacancy(self._handle, timeout_ms, byref(vacancy))
        if status in (_errors.CLOSED, _errors.HANDLE):
            return False
        _errors.check(status)
        try:
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
            if self._thread is None:
                self.names.append(worker.name)
            child = self._start(worker)
        except BaseException:
            lib().pp_pool_fill(self._handle, byref(vacancy), 0, -1)
            raise
        _errors.check(lib().pp_pool_fill(self._handle, byref(vacancy), child.pid, child.status_fd))
        return True

    def _keep(self) -> None:
        popen_fork.own_threads += 1
        try:
            more = True
            while more:
                try:
                    more = self._fill(-1)
                except Exception as e:
                    # The engine has been told. It asks again, or gives up and tells the tasks.
                    util.info("no worker could be started: %r", e)
        finally:
            popen_fork.own_threads -= 1

    def end(self) -> None:
        """Wait for the end of the thread: the pool has no vacancies any more."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
