"""Start a process by fork(2). Mirrors multiprocessing/popen_fork.py."""

from __future__ import annotations

import _thread
import atexit
import os
import sys
from _signal import SIGKILL, SIGTERM  # type: ignore[import-not-found]

from . import _lib, process, util

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Popen"]

# (_signal, not signal: that one spends milliseconds on enumerations.)

# The exit code of a child whose status the program itself has collected.
UNKNOWN = 255


# Threads of this package that wait in the library, holding nothing: a fork may ignore them.
own_threads = 0


def fork() -> int:
    """os.fork(), without the warning of Python 3.12 and later about threads that are the library's: these never run Python.

    When Python itself runs several threads, the warning is shown. (With one thread the warning filters can be changed safely.)

    Raises:
        BlockingIOError: a limit of the system; the message names them.
    """
    _lib.begin_family()
    try:
        if sys.version_info < (3, 12) or _thread._count() > own_threads:
            return os.fork()
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except BlockingIOError as e:
        reason = "no process can be forked (RLIMIT_NPROC, or pids.max of the control group)"
        raise BlockingIOError(e.errno, f"{e.strerror}: {reason}") from None


class Popen:
    """A forked child.

    Attributes:
        pid: its process id.
        sentinel: a descriptor that is readable once it has ended.
        returncode: None, or how it ended: see BaseProcess.exitcode.
    """

    method = "fork"

    def __init__(self, process_obj: process.BaseProcess) -> None:
        process._flush_std_streams()
        self.returncode: int | None = None
        self._creator = os.getpid()
        # The pidfd of this process is the child's way to see its parent's end. It is made first because it also shows, before there
        # is a child, whether the system has pidfds and whether there is a descriptor left for the child's.
        try:
            parent_fd: int | None = os.pidfd_open(self._creator)
            pipe = None
        except AttributeError:
            parent_fd, pipe = None, os.pipe()
        except OSError as e:
            import errno

            if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            parent_fd, pipe = None, os.pipe()
        try:
            self.pid = fork()
        except BaseException:
            util.close_fds(*(pipe or (parent_fd,)))
            raise
        if self.pid == 0:
            if pipe is not None:
                os.close(pipe[0])  # the other end closes when this process ends
            self._run(process_obj, parent_fd)
        if pipe is not None:
            os.close(pipe[1])
            self._pidfd, self.sentinel = False, pipe[0]
        else:
            assert parent_fd is not None
            os.close(parent_fd)
            self._open_sentinel()
        self.finalizer = util.Finalize(self, util.close_fds, (self.sentinel,))

    def _open_sentinel(self) -> None:
        try:
            self._pidfd, self.sentinel = True, os.pidfd_open(self.pid)
        except ProcessLookupError:  # it has ended, and the system does not keep its status: SIGCHLD is ignored
            self._pidfd, self.sentinel = False, process.ended_fd()
        except OSError:  # another thread was quicker to take the last descriptor
            os.kill(self.pid, SIGKILL)
            os.waitpid(self.pid, 0)
            raise

    def _run(self, process_obj: process.BaseProcess, parent_fd: int | None) -> NoReturn:
        code = 1
        try:
            util.begin_child()
            if process_obj.daemon and parent_fd is not None:
                from .spawn import watch

                watch(self._creator, parent_fd)
            code = process_obj._bootstrap(parent_fd)
        finally:
            try:
                atexit._run_exitfuncs()
                process._flush_std_streams()
            finally:
                os._exit(code & 0xFF)

    def duplicate_for_child(self, fd: int) -> int:
        """The child has all descriptors."""
        return fd

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """How the child ended, or None. With flag 0: wait for it."""
        if self.returncode is None and self._creator == os.getpid():
            self._collect(flag)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait at most ``timeout`` seconds for the end of the child; returns as poll."""
        if self.returncode is None and self._creator == os.getpid():
            if timeout is None:
                return self.poll(0)
            if process.wait_readable(self.sentinel, timeout):
                return self.poll(os.WNOHANG if timeout == 0 else 0)
        return self.returncode

    if hasattr(os, "waitid"):

        def _collect(self, flag: int) -> None:
            # First look, then note, then collect: another thread that finds no child any more finds what was noted.
            try:
                seen = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | flag)
            except ChildProcessError:
                if self.returncode is None:
                    self.returncode = UNKNOWN
                return
            if seen is None:
                return
            self.returncode = seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status
            try:
                os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pass

    else:

        def _collect(self, flag: int) -> None:
            try:
                pid, status = os.waitpid(self.pid, flag)
            except ChildProcessError:
                return  # collected by another thread, which is about to note it, or by the program
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)

    def _signal(self, number: int) -> None:
        if self.returncode is not None or self._creator != os.getpid():
            return
        try:
            if self._pidfd:
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
