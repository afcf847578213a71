"""A small process that forks children on request. Mirrors multiprocessing/forkserver.py.

A program with threads, or with much memory, is a bad one to fork; this server has neither. It is a fresh interpreter that imports what
set_forkserver_preload() names, and then only waits:

    client: fork(payload, fds) -- one packet: payload file, status pipe, descriptors --> server: fork() --> child: runs the payload
    client: status pipe  <-- the child's pid, and after its end its exit code -- server

Differences from the standard library: the server never loads the polyproc library; requests go through a socket pair instead of a
listening socket, so there is no file and no name; the server lives as long as any process that holds the other end.
"""

from __future__ import annotations

import atexit
import os
import struct
import threading

from . import context, process, spawn, util

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["connect_to_new_process", "ensure_running", "fork", "set_forkserver_preload"]

# What the server writes into the status pipe.
_PID = struct.Struct("q")  # of the child; or minus errno: no child could be forked
EXIT_CODE = struct.Struct("i")  # 0..255, or minus the signal

# The kernel passes at most 253 descriptors at a time (SCM_MAX_FD); payload and status pipe are two.
MAX_FDS = 251

# In a child: the descriptors that came with its payload.
passed_fds: Sequence[int] = ()


class Passed:
    """A descriptor in a child: by its place among those that came with the payload."""

    def __init__(self, place: int) -> None:
        self.place = place

    def detach(self) -> int:
        return passed_fds[self.place]


class _Server:
    """The client's side: the server that serves this process and those that it forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._popen: object = None
        util.register_after_fork(self, _Server._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def fork(self, payload: bytes, fds: Sequence[int]) -> tuple[int, int]:
        """Have a child forked that runs a payload: two pickles, see :func:`_run`.

        Returns:
            its process id, and a descriptor on which EXIT_CODE can be read after its end.

        Raises:
            ValueError: more than MAX_FDS descriptors.
            OSError: the server could not be started, or could not fork.
        """
        if len(fds) > MAX_FDS:
            raise ValueError("too many fds")
        file = os.memfd_create("polyproc-payload")
        try:
            with open(file, "wb", closefd=False) as writer:
                writer.write(payload)
            for attempt in (1, 2, 3):
                try:
                    return self._ask([file, *fds])
                except (EOFError, ConnectionError):
                    # It was killed: a new one does as well.
                    if attempt == 3:
                        raise
                    self._discard()
        finally:
            os.close(file)
        raise AssertionError

    def _ask(self, fds: list[int]) -> tuple[int, int]:
        import socket

        server = self.ensure_running()
        status_r, status_w = os.pipe()
        try:
            try:
                rights = struct.pack(f"{len(fds) + 1}i", fds[0], status_w, *fds[1:])
                server.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            finally:
                os.close(status_w)
            answer = read_exactly(status_r, _PID.size)
            (pid,) = _PID.unpack(answer)
            if pid < 0:
                raise OSError(-pid, os.strerror(-pid))
            return pid, status_r
        except BaseException:
            os.close(status_r)
            raise

    def ensure_running(self) -> socket.socket:
        """Start the server unless it runs. Returns the socket to it."""
        with self._lock:
            if self._socket is None:
                self._socket = self._start()
            return self._socket

    def _discard(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = self._popen = None

    def _start(self) -> socket.socket:
        import pickle
        import socket

        from .popen_spawn_posix import Program

        data = spawn.get_preparation_data("ignore")
        data = {key: data[key] for key in ("sys_path", "init_main_from_path") if key in data}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                fd = theirs.fileno()
                argv = [*spawn.command(f"from {__name__} import main; main({fd})"), "--polyproc-forkserver"]
                self._popen = Program(argv, pickle.dumps((context.forkserver_preload, data)), [fd])
            except BaseException:
                ours.close()
                raise
        return ours


def read_exactly(fd: int, size: int) -> bytes:
    """Read ``size`` bytes.

    Raises:
        EOFError: there are fewer.
    """
    data = b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            raise EOFError("the fork server has ended")
        data += more
    return data


# ---- the server


def main(fd: int) -> None:
    """Serve requests from the socket ``fd`` until nobody holds its other end."""
    import pickle
    import signal
    import socket

    with open(spawn.take_payload(), "rb") as payload:
        preload, data = pickle.load(payload)
    _preload(preload, data)
    # Ctrl-C reaches the whole process group; it is for the others.
    handlers = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    bell_r, bell_w = os.pipe()
    for end in (bell_r, bell_w):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(bell_w, warn_on_full_buffer=False)
    status_fds: dict[int, int] = {}  # by pid of the child
    import select

    with socket.socket(fileno=fd) as server:
        os.set_inheritable(fd, False)
        poll = select.poll()
        poll.register(server, select.POLLIN)
        poll.register(bell_r, select.POLLIN)
        while True:
            ready = {end for end, _ in poll.poll()}
            if bell_r in ready:
                try:
                    os.read(bell_r, 65536)
                except BlockingIOError:
                    pass
                _bury(status_fds)
            if fd not in ready:
                continue
            fds = _receive(server)
            if fds is None:
                return
            if len(fds) < 2:
                util.close_fds(*fds)  # not a request of ours
                continue
            payload_fd, status_w, *others = fds
            try:
                pid = os.fork()
            except OSError as e:
                _tell(status_w, _PID.pack(-(e.errno or 1)))
                util.close_fds(*fds)
                continue
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                server.detach()
                util.close_fds(fd, bell_r, bell_w, status_w, *status_fds.values())
                _run(payload_fd, others)
            status_fds[pid] = status_w
            _tell(status_w, _PID.pack(pid))
            util.close_fds(payload_fd, *others)


def _preload(names: list[str], data: dict[str, object]) -> None:
    path = data.pop("init_main_from_path", None)
    if not names:
        return
    spawn.prepare(data)
    if "__main__" in names and isinstance(path, str):
        this = process.current_process()
        this._inheriting = True
        try:
            spawn.import_main_path(path)
        except BaseException:
            # The child that needs it will import it itself, and say what is wrong with it.
            pass
        finally:
            del this._inheriting
    for name in names:
        try:
            __import__(name)
        except ImportError:
            pass
    process._flush_std_streams()


def _receive(server: socket.socket) -> list[int] | None:
    """The descriptors of the next request; None: all clients are gone."""
    import socket

    size = struct.calcsize("i")
    message, ancillary, _, _ = server.recvmsg(1, socket.CMSG_SPACE(size * (MAX_FDS + 2)))
    if not message and not ancillary:
        return None
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(data) // size}i", data[: len(data) // size * size])
    return fds


def _tell(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except OSError:  # who asked has ended
        pass


def _bury(status_fds: dict[int, int]) -> None:
    """Collect children that have ended, and tell how."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        fd = status_fds.pop(pid, None)
        if fd is not None:
            _tell(fd, EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))
            os.close(fd)


def _run(payload_fd: int, fds: list[int]) -> NoReturn:
    """Be the child: prepare as the first pickle of the payload says, unpickle the process object, the second, and run it."""
    global passed_fds
    code = 1
    try:
        passed_fds = fds
        atexit._clear()
        util._exiting = False
        atexit.register(util._exit_function)
        os.lseek(payload_fd, 0, os.SEEK_SET)
        code = spawn.run_payload(payload_fd)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            process._flush_std_streams()
        finally:
            os._exit(code & 0xFF)


_server = _Server()
fork = _server.fork
ensure_running = _server.ensure_running
set_forkserver_preload = context._default_context.set_forkserver_preload


def connect_to_new_process(fds: Sequence[int]) -> NoReturn:
    """The standard library's way to ask its server; this one is asked by :func:`fork`."""
    raise NotImplementedError("use polyproc.forkserver.fork(payload, fds)")
