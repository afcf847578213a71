"""Pickling for other processes. Mirrors multiprocessing/reduction.py.

Differences from the standard library: reducers that others register in its ForkingPickler (torch does) are honoured once that module
is loaded; ``dumps`` returns bytes, not a memoryview of them. Methods and partial objects need no reducers: pickle knows them.
"""

from __future__ import annotations

import copyreg
import io
import os
import sys
from _thread import _local

try:
    # The C half of pickle, without the Python half, which costs a child process milliseconds.
    from _pickle import Pickler
    from _pickle import dumps as _dumps
    from _pickle import loads as _loads
except ImportError:
    from pickle import Pickler
    from pickle import dumps as _dumps
    from pickle import loads as _loads

from . import _stdlib, context

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import IO, Any

    Reduce = Callable[[Any], Any]

__all__ = ["ForkingPickler", "dump", "recv_handle", "register", "send_handle"]

HAVE_SEND_HANDLE = sys.platform != "win32"

_no_reducers: dict[type, Reduce] = {}
# What the last dispatch table was made of: [copyreg's, the standard library's, ours, the classes of sockets and of pipes], and the table.
_made_of: tuple[dict[type, Reduce], dict[type, Reduce], dict[type, Reduce], type | None, type | None] | None = None
_table: dict[type, Reduce] = {}


def _dispatch_table(own: dict[type, Reduce]) -> dict[type, Reduce]:
    """Every reducer that is registered anywhere, this package's last word."""
    global _made_of, _table
    theirs = _stdlib.module("reduction")
    others = theirs.ForkingPickler._extra_reducers if theirs is not None else _no_reducers
    sockets = getattr(sys.modules.get("socket"), "socket", None)  # another thread may be importing the module
    # Ends of pipes are connections too, of a class of their own.
    pipes = getattr(sys.modules.get(f"{__package__}._pipe"), "Connection", None)
    if _made_of is None or _made_of != (copyreg.dispatch_table, others, own, sockets, pipes):
        table = {**copyreg.dispatch_table, **others}
        if sockets is not None:
            table[sockets] = _reduce_socket
        table.update(own)
        streams = getattr(sys.modules.get(f"{__package__}.connection"), "Connection", None)
        if pipes is not None and streams in table:
            table.setdefault(pipes, table[streams])
        _made_of = (dict(copyreg.dispatch_table), dict(others), dict(own), sockets, pipes)
        _table = table
    return _table


class ForkingPickler(Pickler):
    """The pickler for whatever goes to another process."""

    _extra_reducers: dict[type, Reduce] = {}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.dispatch_table = _dispatch_table(self._extra_reducers)

    @classmethod
    def register(cls, type: type, reduce: Reduce) -> None:
        """Have objects of that very type pickled by what ``reduce(obj)`` returns, see object.__reduce__."""
        cls._extra_reducers[type] = reduce

    @classmethod
    def dumps(cls, obj: Any, protocol: int | None = None) -> bytes:
        """The pickle of ``obj``."""
        if cls is ForkingPickler and len(_dispatch_table(cls._extra_reducers)) == len(copyreg.dispatch_table):
            return _dumps(obj, protocol)  # nothing is registered but what pickle itself looks at
        buffer = io.BytesIO()
        cls(buffer, protocol).dump(obj)
        return buffer.getvalue()

    loads = staticmethod(_loads)


register = ForkingPickler.register


def dump(obj: Any, file: IO[bytes], protocol: int | None = None) -> None:
    """Write the pickle of ``obj`` to ``file``."""
    ForkingPickler(file, protocol).dump(obj)


# ---- descriptors


class _Enclosing(_local):
    """What takes the descriptors of the message that this thread is pickling, where the way it goes can carry them; else None."""

    envelope: context.SpawningPopen | None = None


enclosing = _Enclosing()


class _Exports(_local):
    """What this thread's picklers have exported: references to objects of the family, and names of descriptors that rest with it.

    An export that nobody imports keeps its object, so one in a message that is not sent is taken back.
    """

    def __init__(self) -> None:
        self.refs: list[bytes] = []  # of pickles that are being made: a reducer may make and send another one
        self.last: list[bytes] = []  # of the last pickle that was made to be sent


_exports = _Exports()
# So many are kept: of a message that has more, only the last are taken back.
_EXPORTS_MOST = 4096
# Not empty once anything was exported: programs that export nothing pay nothing.
any_exports: list[bool] = []


def exported(ref: bytes) -> bytes:
    """Note an export of the pickle that is being made. What a process that is being started is given needs no note."""
    popen = context.get_spawning_popen()
    if popen is not None:
        return _for_start(popen, ref)
    if not any_exports:
        any_exports.append(True)
    refs = _exports.refs
    if len(refs) >= _EXPORTS_MOST:
        del refs[: _EXPORTS_MOST // 2]
    refs.append(ref)
    return ref


# ---- starts by other projects

# A start of ours takes the family along. That of loky, which has a Popen class of its own, is given the two descriptors and, with
# each reference, what pp_family says of them.


class _Told(bytes):
    """A reference for a process that is told of the family by it."""

    family = ""

    def __reduce__(self) -> Any:
        return _join_family, (bytes(self), self.family)


def _for_start(popen: Any, ref: bytes) -> bytes:
    """What the process that ``popen`` starts is to be given for a reference."""
    if type(popen).__module__.startswith(f"{__package__}.") or not hasattr(popen, "duplicate_for_child"):
        return ref
    told = _Told(ref)
    told.family = getattr(popen, "_polyproc_family", "") or _give_family(popen)
    return told


def _give_family(popen: Any) -> str:
    import ctypes

    from . import _errors, _lib

    fds = (ctypes.c_int32 * 2)()
    text = ctypes.create_string_buffer(128)
    _errors.check(_lib.lib().pp_family(fds, text, len(text)))
    for fd in fds:
        kept = popen.duplicate_for_child(fd)
        if kept != fd:
            raise RuntimeError(f"{type(popen).__module__}.Popen gives its child descriptors other numbers")
        os.set_inheritable(fd, False)  # the Popen has made it so, here too: other programs are not to have it
    popen._polyproc_family = family = text.value.decode()
    return family


def _join_family(ref: bytes, family: str) -> bytes:
    from . import _errors, _lib, process

    if process._family != family:
        process._family = family
        if _lib.loaded():
            _errors.check(_lib.lib().pp_family_join(family.encode()))
    return ref


def begin_exports() -> int:
    """A pickle that is to be sent begins: the argument for the two that follow, one of which ends it."""
    return len(_exports.refs)


def end_exports(first: int) -> None:
    """The pickle is made: what it has exported is taken back by :func:`unsent` only."""
    _exports.last = _exports.refs[first:]
    del _exports.refs[first:]


def forget_exports(first: int) -> None:
    """The pickle cannot be made: take back what it has exported."""
    _forget(_exports.refs[first:])
    del _exports.refs[first:]


def unsent(data: bytes) -> None:
    """Take back what this thread's last pickle has exported: ``data``, which was not sent."""
    refs, _exports.last = _exports.last, []
    if refs:
        # Of a pickle that a signal handler has made and sent meanwhile they are not.
        _forget([ref for ref in refs if ref in data])


def note(outcomes: list[Any], function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of C, add its result to ``outcomes``, and return it.

    A signal handler that raises an exception when the function has returned leaves the result in ``outcomes``, as no bytecode
    is executed between the two.
    """
    outcomes.extend(map(function, *((arg,) for arg in args)))
    return outcomes[-1]


def _forget(refs: list[bytes]) -> None:
    from . import _lib

    for ref in refs:
        _lib.lib().pp_ref_forget(ref)


def DupFd(fd: int) -> Any:
    """An object that becomes, in the process that unpickles it, a descriptor of the same file: call its detach() there, once.

    It goes with the process that is being started, or with the message where the way can carry it. Else a copy rests with the family
    until it is fetched, whatever becomes of this process; what is never fetched stays as long as the family.

    Raises:
        MemoryError: too many are on their way.
    """
    popen = context.get_spawning_popen() or enclosing.envelope
    return _Resting(fd) if popen is None else popen.DupFd(popen.duplicate_for_child(fd))


class _Resting:
    """A descriptor of which a copy rests with the family, under a name: pp_fd_export."""

    def __init__(self, fd: int) -> None:
        import ctypes

        from . import _errors, _lib

        name = ctypes.create_string_buffer(32)
        _errors.check(_lib.lib().pp_fd_export(fd, name))
        self.name = exported(name.raw)

    def detach(self) -> int:
        import ctypes

        from . import _errors, _lib

        fd = ctypes.c_int32()
        _errors.check(_lib.lib().pp_fd_import(self.name, ctypes.byref(fd)))
        return fd.value


def _reduce_socket(sock: socket.socket) -> Any:
    return _rebuild_socket, (DupFd(sock.fileno()), sock.family, sock.type, sock.proto)


def _rebuild_socket(dup: Any, family: int, type: int, proto: int) -> socket.socket:
    import socket

    return socket.socket(family, type, proto, fileno=dup.detach())


def sendfds(sock: socket.socket, fds: list[int]) -> None:
    """Send descriptors over a Unix socket.

    Raises:
        RuntimeError: the other end has not answered as recvfds does.
    """
    import array
    import socket

    sock.sendmsg([bytes([len(fds) % 256])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    if sock.recv(1) != b"A":
        raise RuntimeError("did not receive acknowledgement of fd")


def recvfds(sock: socket.socket, size: int) -> list[int]:
    """Receive ``size`` descriptors over a Unix socket.

    Raises:
        EOFError: the other end is closed.
        RuntimeError: something else arrived.
    """
    import array
    import socket

    numbers = array.array("i")
    message, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize * size))
    if not message and not ancillary:
        raise EOFError
    sock.send(b"A")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    if len(numbers) != size or message != bytes([size % 256]):
        raise RuntimeError(f"expected {size} descriptors, received {len(numbers)}")
    return list(numbers)


def send_handle(conn: Any, handle: int, destination_pid: int | None) -> None:
    """Send a descriptor over an end of a pipe, or a connection that is a Unix socket. The pid matters on Windows only."""
    import socket

    if hasattr(conn, "_send_fd"):
        conn._send_fd(handle)
        return

    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sendfds(sock, [handle])


def recv_handle(conn: Any) -> int:
    """Receive a descriptor over an end of a pipe, or a connection that is a Unix socket."""
    import socket

    if hasattr(conn, "_recv_fd"):
        fd: int = conn._recv_fd()
        return fd

    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return recvfds(sock, 1)[0]


class AbstractReducer:
    """What may be set as ``context.reducer``: the parts of this module as attributes that a subclass replaces."""

    ForkingPickler = ForkingPickler
    register = staticmethod(register)
    dump = staticmethod(dump)
    send_handle = staticmethod(send_handle)
    recv_handle = staticmethod(recv_handle)
    DupFd = staticmethod(DupFd)
