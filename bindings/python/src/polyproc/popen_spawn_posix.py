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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["Popen"]

# The exit code of a child whose status the program itself has collected.
UNKNOWN = 255


class Program:
    """A running program, started afresh.

    Args:
        argv: its command line.
        payload: bytes that it finds by spawn.take_payload().
        fds: descriptors that it inherits under the same numbers, besides the standard three.

    Attributes:
        pid: its process id.
        sentinel: a descriptor that is readable once it has ended.
    """

    def __init__(self, argv: list[str], payload: bytes, fds: Iterable[int]) -> None:
        words = [os.fsencode(word) for word in argv]
        numbers = sorted(set(fds))
        options = _abi.ProcessOptions(
            method=_abi.START_SPAWN,
            path=words[0],
            argv=(c_char_p * (len(words) + 1))(*words, None),
            fds=(c_int32 * len(numbers))(*numbers),
            fds_count=len(numbers),
            arg=payload,
            arg_size=len(payload),
            flags=_abi.PROCESS_FAMILY,
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


def pickle_process(popen: Popen | Any, process_obj: process.BaseProcess) -> bytes:
    """The payload of a child: two pickles, see spawn.run_payload(). Descriptors in them are given to ``popen``."""
    data = spawn.get_preparation_data(process_obj._name)
    data["daemon"] = process_obj.daemon
    data["parent_pid"] = os.getpid()
    try:
        parent_fd = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        pass
    else:
        popen.temporary_fds.append(parent_fd)
        data["parent_fd"] = popen.DupFd(popen.duplicate_for_child(parent_fd))
    payload = io.BytesIO()
    set_spawning_popen(popen)
    try:
        reducer = _default_context.reducer
        reducer.dump(data, payload)
        reducer.dump(process_obj, payload)
    finally:
        set_spawning_popen(None)
    return payload.getvalue()


class Popen(Program):
    """A spawned child.

    Attributes:
        returncode: None, or how it ended: see BaseProcess.exitcode.
    """

    method = "spawn"
    DupFd = spawn.Inherited

    def __init__(self, process_obj: process.BaseProcess) -> None:
        process._flush_std_streams()
        self.returncode: int | None = None
        self._creator = os.getpid()
        self._fds: list[int] = []
        self.temporary_fds: list[int] = []
        try:
            payload = pickle_process(self, process_obj)
            super().__init__(spawn.get_command_line(), payload, self._fds)
        finally:
            util.close_fds(*self.temporary_fds)

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
