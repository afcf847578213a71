"""Start a process in a fresh interpreter. Mirrors multiprocessing/popen_spawn_posix.py.

The library executes the interpreter (no fork of this process's memory, nothing inherited that was not passed) and collects its status; the
child finds the pickled process object in a sealed memory file.
"""

from __future__ import annotations

import io
import os
from _signal import SIGKILL, SIGTERM  # type: ignore[import-not-found]
from ctypes import byref, c_char_p, c_int32, c_uint64, sizeof

from . import _abi, _errors, process, spawn, util
from ._lib import lib
from .context import _default_context, set_spawning_popen

__all__ = ["Popen"]

# The exit code of a child whose status the program itself has collected.
UNKNOWN = 255


class _Inherited:
    """A descriptor in the child: it has the number that it has in the parent."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        return self.fd


class Popen:
    """A spawned child.

    Attributes:
        pid: its process id.
        sentinel: a descriptor that is readable once it has ended.
        returncode: None, or how it ended: see BaseProcess.exitcode.
    """

    method = "spawn"
    DupFd = _Inherited

    def __init__(self, process_obj: process.BaseProcess) -> None:
        process._flush_std_streams()
        self.returncode: int | None = None
        self._creator = os.getpid()
        self._fds: list[int] = []
        data = spawn.get_preparation_data(process_obj._name)
        data["daemon"] = process_obj.daemon
        try:
            parent_fd: int | None = os.pidfd_open(self._creator)
        except (AttributeError, OSError):
            parent_fd = None
        try:
            if parent_fd is not None:
                data["parent_fd"] = parent_fd
                self._fds.append(parent_fd)
            payload = io.BytesIO()
            set_spawning_popen(self)
            try:
                reducer = _default_context.reducer
                reducer.dump(data, payload)
                reducer.dump(process_obj, payload)
            finally:
                set_spawning_popen(None)
            self._start(payload.getvalue())
        finally:
            if parent_fd is not None:
                os.close(parent_fd)

    def _start(self, payload: bytes) -> None:
        argv = [os.fsencode(word) for word in spawn.get_command_line()]
        fds = sorted(set(self._fds))
        options = _abi.ProcessOptions(
            method=_abi.START_SPAWN,
            path=argv[0],
            argv=(c_char_p * (len(argv) + 1))(*argv, None),
            fds=(c_int32 * len(fds))(*fds),
            fds_count=len(fds),
            arg=payload,
            arg_size=len(payload),
        )
        options.size = sizeof(options)
        handle = c_uint64()
        library = lib()
        _errors.check(library.pp_process_start(byref(options), byref(handle)))
        self._handle = handle.value
        self.finalizer = util.Finalize(self, library.pp_process_free, (self._handle,))
        pid, fd = c_int32(), c_int32()
        _errors.check(library.pp_process_info(self._handle, byref(pid), byref(fd)))
        self.pid, self.sentinel = pid.value, fd.value

    def duplicate_for_child(self, fd: int) -> int:
        """Pass ``fd`` to the child, under the same number."""
        self._fds.append(fd)
        return fd

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """How the child ended, or None. With flag 0: wait for it."""
        return self.wait(None if flag == 0 else 0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait at most ``timeout`` seconds for the end of the child; returns as poll."""
        if self.returncode is not None or self._creator != os.getpid():
            return self.returncode
        end = _abi.Exit()
        library = lib()
        # This wait is Python's own, so that signal handlers run; the library's is over in a moment then.
        if timeout != 0 and not process.wait_readable(self.sentinel, timeout):
            return None
        while True:
            status = library.pp_process_wait(self._handle, 0 if timeout == 0 else -1, byref(end))
            if status != _errors.INTERRUPTED:
                break
        if status == _errors.TIMEOUT:
            return None
        _errors.check(status)
        if not end.known:
            self.returncode = UNKNOWN
        else:
            self.returncode = -end.signal if end.signal else end.code
        return self.returncode

    def _signal(self, number: int) -> None:
        if self.returncode is None and self._creator == os.getpid():
            _errors.check(lib().pp_process_signal(self._handle, number))

    def terminate(self) -> None:
        self._signal(SIGTERM)

    def kill(self) -> None:
        self._signal(SIGKILL)

    def close(self) -> None:
        """Give back the handle and the sentinel."""
        self.finalizer()
