"""Start a process by asking the fork server. Mirrors multiprocessing/popen_forkserver.py."""

from __future__ import annotations

import _thread
import os
import select
from _signal import SIGKILL, SIGTERM  # type: ignore[import-not-found]

from . import forkserver, process, util
from .popen_spawn_posix import UNKNOWN, pickle_process

__all__ = ["Popen", "Request"]

# How long the server may take to tell how a child ended whose end has been seen.
_REPORT_SECONDS = 5.0

# What a process needs, for which the fork server has it ready.
_FOR_DAEMONS = (f"{__package__}._lib",)
_FOR_WORKERS = (f"{__package__}._lib", f"{__package__}._worker")


class Popen:
    """A child that the fork server forked.

    Attributes:
        pid: its process id.
        sentinel: a descriptor that is readable once it has ended.
        returncode: None, or how it ended: see BaseProcess.exitcode.
    """

    method = "forkserver"
    DupFd = forkserver.Passed

    def __init__(self, process_obj: process.BaseProcess) -> None:
        process._flush_std_streams()
        self.returncode: int | None = None
        self._creator = os.getpid()
        self._fds: list[int] = []
        self.temporary_fds: list[int] = []
        try:
            payload = pickle_process(self, process_obj)
            # A daemon watches its parent by means of the library.
            self.pid, self._status = forkserver.fork(payload, self._fds, _FOR_DAEMONS if process_obj.daemon else ())
        finally:
            util.close_fds(*self.temporary_fds)
        self.sentinel = self._open_sentinel()
        self._lock = _thread.allocate_lock()
        self.finalizer = util.Finalize(self, util.close_fds, {self.sentinel, self._status})

    def _open_sentinel(self) -> int:
        """A pidfd of the child; or the status pipe, which can be read after the child's end too."""
        try:
            fd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return self._status
        poll = process.new_poll()
        poll.register(self._status, select.POLLIN)
        if any(events & select.POLLIN for _, events in poll.poll(0)):
            # The child has ended already, and its process id may be another's. (POLLHUP alone: the server was killed.)
            os.close(fd)
            return self._status
        return fd

    def duplicate_for_child(self, fd: int) -> int:
        """Pass ``fd`` to the child. Returns its place among the passed ones."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """How the child ended, or None. With flag 0: wait for it."""
        return self.wait(None if flag == 0 else 0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait at most ``timeout`` seconds for the end of the child; returns as poll."""
        if self.returncode is not None or self._creator != os.getpid():
            return self.returncode
        if not process.wait_readable(self.sentinel, timeout):
            return None
        # The server is about to write it, unless it was killed: the status is not known then.
        reported = process.wait_readable(self._status, _REPORT_SECONDS)
        with self._lock:  # it can be read once
            if self.returncode is None:
                code = UNKNOWN
                if reported:
                    try:
                        (code,) = forkserver.EXIT_CODE.unpack(forkserver.read_exactly(self._status, forkserver.EXIT_CODE.size))
                    except EOFError:
                        pass
                self.returncode = code
        return self.returncode

    def _signal(self, number: int) -> None:
        if self.returncode is not None or self._creator != os.getpid():
            return
        try:
            if self.sentinel != self._status:
                from _signal import pidfd_send_signal

                pidfd_send_signal(self.sentinel, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def terminate(self) -> None:
        self._signal(SIGTERM)

    def kill(self) -> None:
        self._signal(SIGKILL)

    def close(self) -> None:
        """Give back the sentinel."""
        self.finalizer()


class Request(Popen):
    """A worker of a pool: the engine supervises it, and nobody here."""

    def __init__(self, process_obj: process.BaseProcess) -> None:
        self._fds = []
        self.temporary_fds = []
        try:
            self.pid, self.status_fd = forkserver.fork(pickle_process(self, process_obj), self._fds, _FOR_WORKERS)
        finally:
            util.close_fds(*self.temporary_fds)
