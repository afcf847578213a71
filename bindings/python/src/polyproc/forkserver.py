"""A small process that forks children on request. Mirrors multiprocessing/forkserver.py.

A program with threads, or with much memory, is a bad one to fork; this server has neither. It is a fresh interpreter that imports what
set_forkserver_preload() names, and then only waits:

    client: fork(payload, fds) -- one packet: status pipe, payload file, client's socket, descriptors --> server: fork() --> child
    client: status pipe  <-- its pid -- child
    client: status pipe  <-- its exit code, after its end -- server

Differences from the standard library: requests go through a socket pair instead of a listening socket, so there is no file and no name;
the server lives as long as any process that holds the other end; the main module is imported by the server, once (the standard library
means to, and does since 3.14); the server never loads the Go half of the library.
"""

from __future__ import annotations

import atexit
import errno
import os
import posix
import struct
import sys
import threading

from . import context, process, spawn, util

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from .popen_spawn_posix import Program

__all__ = ["connect_to_new_process", "ensure_running", "fork", "get_inherited_fds", "set_forkserver_preload"]

# What comes through the status pipe.
_PID = struct.Struct("q")  # of the child; or minus errno: no child could be forked
EXIT_CODE = struct.Struct("i")  # 0..255, or minus the signal

# The kernel passes at most 253 descriptors at a time (SCM_MAX_FD); status pipe, payload and the client's socket are three.
MAX_FDS = 250

# Longest request, in bytes: names of modules.
_REQUEST_SIZE = 4096

# How long a server that has dropped a request may take to be seen to have ended.
_END_SECONDS = 1.0

# In a child: the descriptors that came with its payload.
passed_fds: Sequence[int] | None = None


class Passed:
    """A descriptor in a child: by its place among those that came with the payload."""

    def __init__(self, place: int) -> None:
        self.place = place

    def detach(self) -> int:
        assert passed_fds is not None
        return passed_fds[self.place]


class _End:
    """The client's end of a socket pair. It lives as long as the process does, which a socket object is warned of."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def send(self, request: bytes, fds: Sequence[int]) -> None:
        import socket

        rights = struct.pack(f"{len(fds)}i", *fds)
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, self._fd)
        try:
            sender.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            sender.detach()

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1


class _Server:
    """The client's side: the server that serves this process, those that it forks, and the children that the server forks for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: _End | None = None
        self._inherited = -1
        self._popen: Program | None = None
        # Children by os.fork() count as well, therefore not by util.register_after_fork.
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def inherit(self, fd: int) -> None:
        """In a child of a server: be a client of that one, through the socket ``fd``."""
        self._inherited = fd

    def fork(self, payload: bytes, fds: Sequence[int], preload: Iterable[str] = ()) -> tuple[int, int]:
        """Have a child forked that runs a payload: two pickles, see :func:`spawn.run_payload`.

        Args:
            payload: the two pickles.
            fds: descriptors that the child gets, see :class:`Passed`.
            preload: modules that the child will need: the server imports them before the fork, for all children to come.

        Returns:
            its process id, and a descriptor on which EXIT_CODE can be read after its end. Until then its process id is not reused;
            unless the server is killed.

        Raises:
            ValueError: more than MAX_FDS descriptors.
            OSError: the server could not be started, or could not fork.
        """
        if len(fds) > MAX_FDS:
            raise ValueError("too many fds")
        request = " ".join(preload).encode()[:_REQUEST_SIZE] or b" "
        file = _payload_file()
        try:
            with open(file, "wb", closefd=False) as writer:
                writer.write(payload)
            for _ in range(3):
                answer = self._ask(request, file, fds)
                if answer is not None:
                    return answer
        finally:
            os.close(file)
        raise EOFError("the fork server dies at once")

    def _ask(self, request: bytes, payload_fd: int, fds: Sequence[int]) -> tuple[int, int] | None:
        """Ask once. None: the server was killed, a new one may do."""
        status_r, status_w = os.pipe()
        try:
            # With the lock, as another thread might find the server dead and close the socket.
            try:
                with self._lock:
                    server = self._running()
                    try:
                        server.send(request, [status_w, payload_fd, server.fileno(), *fds])
                    except ConnectionError:
                        pass  # nobody will answer
            finally:
                os.close(status_w)
            try:
                (pid,) = _PID.unpack(read_exactly(status_r, _PID.size))
            except EOFError:
                if not self._discard(server):
                    raise OSError(errno.EMFILE, "the fork server could not take the request: too many open files?") from None
                os.close(status_r)
                return None
            if pid < 0:
                raise OSError(-pid, os.strerror(-pid))
            return pid, status_r
        except BaseException:
            os.close(status_r)
            raise

    def ensure_running(self) -> None:
        """Start the server unless it was started."""
        with self._lock:
            self._running()

    def _running(self) -> _End:
        if self._end is None:
            if self._inherited >= 0:
                self._end = _End(self._inherited)
                self._inherited = -1
            else:
                self._end = self._start()
        return self._end

    def _discard(self, server: _End) -> bool:
        """Forget the server if it has ended. Returns whether it has."""
        with self._lock:
            if self._end is server:  # else another thread has noticed as well
                if not _has_ended(server):
                    return False
                server.close()
                self._end = self._popen = None
            return True

    @property
    def _forkserver_pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    def _stop(self) -> None:
        """End the server, unless other clients hold it, and wait until it has ended: for tests."""
        popen = self._popen
        with self._lock:
            if self._end is not None:
                self._end.close()
            self._end = self._popen = None
        if popen is not None:
            process.wait_readable(popen.sentinel, None)
            popen.finalizer()

    def _start(self) -> _End:
        import pickle
        import socket

        from .popen_spawn_posix import Program

        data = spawn.get_preparation_data("ignore")
        data = {key: data[key] for key in ("sys_path", "init_main_from_path") if key in data}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                fd = theirs.fileno()
                argv = spawn.command(forkserver=fd)
                self._popen = Program(argv, pickle.dumps((context.forkserver_preload, data)), [fd])
            except BaseException:
                ours.close()
                raise
        return _End(ours.detach())


def _payload_file() -> int:
    """A memory file that cannot be executed: where vm.memfd_noexec is 2 there is no other."""
    noexec_seal = 0x0008  # MFD_NOEXEC_SEAL, which Linux before 6.3 does not know
    try:
        return os.memfd_create("polyproc-payload", os.MFD_CLOEXEC | noexec_seal)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return os.memfd_create("polyproc-payload")


def _has_ended(server: _End) -> bool:
    poll = process.new_poll()
    poll.register(server, 0)  # POLLHUP is always reported
    return bool(poll.poll(_END_SECONDS * 1000))


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
    import select
    import socket
    from _signal import SIG_IGN, SIGCHLD, SIGINT, set_wakeup_fd, signal  # type: ignore[import-not-found]

    # Before the program's modules are imported: gevent and eventlet replace what select and socket offer. They replace functions of os
    # and signal, too: gevent's os.close closes later, in a loop that does not run here. So this uses _signal and posix.
    server = socket.socket(fileno=fd)
    poll = select.poll()
    with open(spawn.take_payload(), "rb") as payload:
        preload, data = pickle.load(payload)
    _preload(preload, data)
    # Ctrl-C reaches the whole process group; it is for the others.
    handlers = {SIGINT: signal(SIGINT, SIG_IGN), SIGCHLD: signal(SIGCHLD, _notice)}
    bell_r, bell_w = os.pipe()
    for end in (bell_r, bell_w):
        os.set_blocking(end, False)
    set_wakeup_fd(bell_w, warn_on_full_buffer=False)
    status_fds: dict[int, int] = {}  # by pid of the child
    with server:
        os.set_inheritable(fd, False)
        poll.register(server, select.POLLIN)
        poll.register(bell_r, select.POLLIN)
        while True:
            ready = {end for end, _ in poll.poll()}
            if bell_r in ready:
                try:
                    posix.read(bell_r, 65536)
                except BlockingIOError:
                    pass
                _bury(status_fds)
            if fd not in ready:
                continue
            request = _receive(server)
            if request is None:
                return
            modules, complete, fds = request
            if not complete or len(fds) < 3:
                if fds:
                    _tell(fds[0], _PID.pack(-errno.EMFILE))
                _close(*fds)
                continue
            for name in modules:
                _import(name)
            status_w, payload_fd, client_fd, *others = fds
            try:
                pid = os.fork()
            except OSError as e:
                _tell(status_w, _PID.pack(-(e.errno or errno.EAGAIN)))
                _close(*fds)
                continue
            if pid == 0:
                # Told by the child: were it the server, one that is killed before it could tell would be asked for a second child.
                _tell(status_w, _PID.pack(os.getpid()))
                set_wakeup_fd(-1)
                for number, handler in handlers.items():
                    signal(number, handler)
                server.detach()
                _close(fd, bell_r, bell_w, status_w, *status_fds.values())
                _forkserver.inherit(client_fd)
                _run(payload_fd, others)
            status_fds[pid] = status_w
            _close(payload_fd, client_fd, *others)
            # gevent's os.fork has installed a handler of its own, which may have taken the signal of a child.
            signal(SIGCHLD, _notice)
            _bury(status_fds)


def _notice(number: int, frame: object) -> None:
    """A child has ended: the handler does nothing, the byte that the interpreter writes wakes the server."""


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


def _import(name: str) -> None:
    """Import what a child will need. One that cannot be imported is the child's to report."""
    if name in sys.modules:
        return
    try:
        __import__(name)
        if process._loaded("_lib") is not None:
            from ._lib import lib

            lib()
    except Exception:
        pass


def _receive(server: socket.socket) -> tuple[list[str], bool, list[int]] | None:
    """The next request: names of modules, whether all descriptors arrived, and these; None: all clients are gone."""
    import socket

    size = struct.calcsize("i")
    message, ancillary, flags, _ = server.recvmsg(
        _REQUEST_SIZE, socket.CMSG_SPACE(size * (MAX_FDS + 3)), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    )
    if not message and not ancillary:
        return None
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(data) // size}i", data[: len(data) // size * size])
    return message.decode().split(), not flags & socket.MSG_CTRUNC, fds


def _close(*fds: int) -> None:
    for fd in fds:
        posix.close(fd)


def _tell(fd: int, data: bytes) -> None:
    try:
        posix.write(fd, data)
    except OSError:  # who asked has ended
        pass


def _bury(status_fds: dict[int, int]) -> None:
    """Collect children that have ended, and tell how."""
    while True:
        try:
            # Told first and collected then: a client that was not told yet knows that the process id is still that of its child.
            end = posix.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if end is None:
            return
        fd = status_fds.pop(end.si_pid, None)
        if fd is not None:
            _tell(fd, EXIT_CODE.pack(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status))
            posix.close(fd)
        posix.waitpid(end.si_pid, 0)


def _run(payload_fd: int, fds: list[int]) -> NoReturn:
    """Be the child: prepare as the first pickle of the payload says, unpickle the process object, the second, and run it."""
    global passed_fds
    code = 1
    try:
        passed_fds = fds
        util.begin_child()
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


_forkserver = _Server()
fork = _forkserver.fork
ensure_running = _forkserver.ensure_running
set_forkserver_preload = context._default_context.set_forkserver_preload


def get_inherited_fds() -> list[int] | None:
    """In a child of the server: the descriptors that were passed to it. Elsewhere None."""
    return None if passed_fds is None else list(passed_fds)


def connect_to_new_process(fds: Sequence[int]) -> NoReturn:
    """The standard library's way to ask its server; this one is asked by :func:`fork`."""
    raise NotImplementedError("use polyproc.forkserver.fork(payload, fds)")
