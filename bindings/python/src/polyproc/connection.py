"""Messages over descriptors: connections, listeners, clients. Mirrors multiprocessing/connection.py, and speaks its wire format.

A frame is a length, 4 bytes in network order, and so many bytes. Length -1: the length follows in 8 bytes. Length -2, which is ours
alone: one byte follows that carries descriptors (SCM_RIGHTS) and tells their count, then the frame that they belong to.
The challenge of a listener with a key is that of Python 3.12 and later, and understands the older one of the other end.

Differences from the standard library:

* nothing is allocated for bytes that have not arrived, whatever length a peer announces;
* a peer that stalls during the challenge is given up after HANDSHAKE_SECONDS, or sooner when many others wait, and keeps other
  clients out for a moment only;
* a client of this package does not answer a challenge that a client of this package has asked, so that nobody can use two of its
  connections against each other. As in the standard library, a key proves who the ends are, at the beginning; it does not encrypt what
  follows, nor tie it to that proof;
* a frame that breaks off in the middle, by an exception of a signal handler too, closes the connection: nothing can be read as what
  it is not;
* connections and sockets can be sent over a connection that is a Unix socket, without a helper process or thread. Both ends must be
  of this package then;
* wait() takes an object more than once, returns what is ready in the order of its argument, and nothing at once for nothing;
* a connection that is closed or fails during the handshake leaves no descriptor behind; TCP connections do not wait to fill packets.
"""

from __future__ import annotations

import errno
import io
import os
import select
import struct
import sys
import time
from _thread import RLock, _local

from . import context, process, reduction, util
from .context import AuthenticationError, BufferTooShort, check_receiver

try:
    from _pickle import dumps as _plain_dumps
    from _pickle import loads as _loads
except ImportError:
    from pickle import dumps as _plain_dumps
    from pickle import loads as _loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType
    from typing import Any, Generic, Protocol, Union

    from typing_extensions import Buffer, TypeVar

    Self = TypeVar("Self", bound="_Base[Any, Any]")
    # What a connection sends and receives: Connection[int, str], as in typeshed.
    SendT_contra = TypeVar("SendT_contra", contravariant=True, default=Any)
    RecvT_co = TypeVar("RecvT_co", covariant=True, default=Any)

    class _Generic(Generic[SendT_contra, RecvT_co]):
        pass
    # The address of a socket, by family: a path or an abstract name, or (host, port, ...).
    Address = Union[str, bytes, tuple[Any, ...]]

    Steps = Generator[Union[bytes, None], bytes, None]

    class Channel(Protocol):
        """What a challenge goes over."""

        def send_bytes(self, buf: Any) -> None: ...

        def recv_bytes(self, maxlength: int) -> bytes: ...

else:
    SendT_contra = RecvT_co = None
    _Generic = context.Subscriptable

__all__ = ["Client", "Listener", "Pipe", "wait"]

# How long, in seconds, a peer may take for the whole challenge before AuthenticationError is raised. May be set. A client waits without
# limit until the challenge begins, as the listener may be busy with others.
HANDSHAKE_SECONDS = 20.0

# So many connections may be in the challenge at once. When another one waits, the oldest whose other end has not proved to know the key
# is closed, once it has had _INCOMING_LEAST seconds: a crowd of silent clients does not shut out the others.
_INCOMING_MOST = 64
_INCOMING_LEAST = 1.0
# Another connection is taken only when the last has not ended the challenge in this time, divided by the number of those in the
# challenge: a client that was not taken waits for as long as the program is busy, but one that has begun the challenge does not.
_INCOMING_FRESH = 0.25

# Frames up to this size, with their header, are written as one string: all or nothing on pipes and sockets.
_SMALL = 4096
# Larger messages are read into a buffer of this size at first, which doubles each time it has been filled.
_STEP = 1 << 20

# As lengths of frames.
_LONG = -1
_DESCRIPTORS = -2
# The kernel takes 253 in one message.
_DESCRIPTORS_AT_ONCE = 250

_header = struct.Struct("!i")
_long_length = struct.Struct("!Q")
_long_header = struct.Struct("!iQ")
_MAX_SHORT = 0x7FFFFFFF

# Objects of which pickle needs to know nothing from anybody.
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """The two ends of a pipe, see _pipe.py; if not duplex, the one that receives first."""
    from ._pipe import Pipe

    return Pipe(duplex)


# ---- readiness

_READABLE = select.POLLIN
_WRITABLE = select.POLLOUT


def _poll_until(poll: select.poll, timeout: float | None) -> list[tuple[int, int]]:
    """What poll.poll() finds within ``timeout`` seconds; None: for ever. Signal handlers run meanwhile.

    Raises:
        OSError: one of the descriptors is closed.
    """
    if timeout is None:
        found = poll.poll()
    elif timeout <= 0:
        found = poll.poll(0)
    else:
        deadline = time.monotonic() + min(timeout, 1e10)
        while True:
            left = deadline - time.monotonic()
            # poll(2) takes an int of milliseconds: round up so as not to spin, and cut long waits into days.
            found = poll.poll(min(max(int(left * 1000 + 0.999), 0), 86_400_000))
            if found or left <= 0:
                break
    for _, events in found:
        if events & select.POLLNVAL:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return found


def _ready(fd: int, events: int, timeout: float | None) -> bool:
    poll = process.new_poll()
    poll.register(fd, events)
    return bool(_poll_until(poll, timeout))


def wait(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Wait until one of the objects at least is ready: has something to be read, or its other end is closed.

    Args:
        object_list: connections, sockets, whatever has a fileno(), and descriptors such as Process.sentinel.
        timeout: in seconds; None: for ever. 0 and less: look only.

    Returns:
        those that are ready, in the order of object_list; an empty list if there was none in time.

    Raises:
        OSError, ValueError: one of them is closed.
    """
    poll = process.new_poll()
    objects = []
    for obj in object_list:
        fd = obj if isinstance(obj, int) else obj.fileno()
        if fd < 0:
            raise ValueError(f"invalid file descriptor: {fd}")
        poll.register(fd, _READABLE)
        objects.append((fd, obj))
    if not objects and timeout is None:
        return []
    ready = {fd for fd, _ in _poll_until(poll, timeout)}
    return [obj for fd, obj in objects if fd in ready]


# ---- objects and the descriptors in them


class _Unpacking(_local):
    """The descriptors that came with the message which this thread is unpickling; None in place of one that has been taken."""

    fds: list[int | None] | None = None


_unpacking = _Unpacking()


class _Enclosed:
    """A descriptor in a pickled message: by its place among those that go with it."""

    def __init__(self, place: int) -> None:
        self.place = place

    def detach(self) -> int:
        fds = _unpacking.fds
        fd = fds[self.place] if fds is not None and 0 <= self.place < len(fds) else None
        if fds is None or fd is None:
            raise ValueError("the descriptor did not come with the message")
        fds[self.place] = None
        return fd


class _Envelope:
    """Stands in for the start of a process while a message is pickled: takes duplicates of the descriptors that are to go with it."""

    DupFd = _Enclosed

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(os.dup(fd))
        return len(self.fds) - 1

    def close(self) -> None:
        util.close_fds(*self.fds)
        self.fds = []


class _Packing(_local):
    """This thread's pickler and what it writes to, while they are not in use: making them anew costs more than a small message."""

    idle: tuple[reduction.ForkingPickler, io.BytesIO] | None = None


_packing = _Packing()


def _pickle(obj: Any, envelope: _Envelope) -> bytes:
    """The pickle of ``obj``; duplicates of its descriptors are in the envelope afterwards."""
    outer = reduction.enclosing.envelope
    reduction.enclosing.envelope = envelope
    idle = _packing.idle
    if idle is None:
        buffer = io.BytesIO()
        pickler = reduction.ForkingPickler(buffer)
    else:
        _packing.idle = None  # what is being pickled may send something itself
        pickler, buffer = idle
        pickler.dispatch_table = reduction._dispatch_table(pickler._extra_reducers)
    try:
        pickler.dump(obj)
    except BaseException:
        envelope.close()
        raise
    finally:
        reduction.enclosing.envelope = outer
    data = buffer.getvalue()
    if len(data) <= _SMALL:
        pickler.clear_memo()
        buffer.seek(0)
        buffer.truncate()
        _packing.idle = pickler, buffer
    return data


def _unpickle(data: Any, fds: list[int]) -> Any:
    """The object of a pickle that came with these descriptors. Those that nobody takes are closed."""
    if not fds:
        return _loads(data)
    outer = _unpacking.fds
    places: list[int | None] = list(fds)
    _unpacking.fds = places
    try:
        return _loads(data)
    finally:
        _unpacking.fds = outer
        util.close_fds(*(fd for fd in places if fd is not None))


# ---- connections


class _Base(_Generic[SendT_contra, RecvT_co]):
    """What connections of every kind have in common: arguments, states, pickling.

    A subclass defines ``_send_bytes``, ``_recv_bytes``, ``_poll`` and ``_close``; ``_recv_into`` and the two for descriptors where it
    can do more than what is here. They are called on a connection that is open and has the direction.
    """

    _handle: int | None = None

    def __init__(self, handle: int, readable: bool = True, writable: bool = True) -> None:
        handle = handle.__index__()
        if handle < 0:
            raise ValueError("invalid handle")
        if not readable and not writable:
            raise ValueError("at least one of `readable` and `writable` must be True")
        self._handle = handle
        self._readable = readable
        self._writable = writable

    def __del__(self) -> None:
        if self._handle is not None:
            self.close()

    # -- hooks

    def _send_bytes(self, data: Any) -> None:
        """Send one message: bytes, or a contiguous memoryview of bytes."""
        raise NotImplementedError

    def _send_pickle(self, data: bytes, fds: list[int], written: list[int]) -> None:
        """Send one message that descriptors go with. They stay the caller's. What was written, in bytes of the frame, is added
        to ``written``."""
        raise NotImplementedError

    def _recv_bytes(self, maxsize: int | None) -> Any:
        """Receive one message, as a bytes-like object. One of more than ``maxsize`` bytes: call :meth:`_bad_message_length`."""
        raise NotImplementedError

    def _recv_into(self, view: memoryview) -> int:
        """Receive one message into a writable view of bytes. Returns the message's size.

        Raises:
            BufferTooShort: with the message.
        """
        data = self._recv_bytes(None)
        size = len(data)
        if size > len(view):
            raise BufferTooShort(bytes(data))
        view[:size] = data
        return size

    def _recv_pickle(self) -> tuple[Any, list[int]]:
        """Receive one message and the descriptors that came with it, which are the caller's."""
        return self._recv_bytes(None), []

    def _poll(self, timeout: float | None) -> bool:
        raise NotImplementedError

    def _close(self, handle: int) -> None:
        """Give back what the connection held."""
        raise NotImplementedError

    # -- states

    def _check_closed(self) -> int:
        if self._handle is None:
            raise OSError("handle is closed")
        return self._handle

    def _check_readable(self) -> None:
        if self._handle is None:
            raise OSError("handle is closed")
        if not self._readable:
            raise OSError("connection is write-only")

    def _check_writable(self) -> None:
        if self._handle is None:
            raise OSError("handle is closed")
        if not self._writable:
            raise OSError("connection is read-only")

    def _bad_message_length(self) -> None:
        """Nothing can be read any more, as the message is still there."""
        if self._writable:
            self._readable = False
        else:
            self.close()
        raise OSError("bad message length")

    @property
    def closed(self) -> bool:
        """Whether it was closed at this end."""
        return self._handle is None

    @property
    def readable(self) -> bool:
        """Whether messages can be received."""
        return self._readable

    @property
    def writable(self) -> bool:
        """Whether messages can be sent."""
        return self._writable

    def fileno(self) -> int:
        """The descriptor, for select, poll and the like: readable when a message is there or the other end is closed.

        Raises:
            OSError: closed.
        """
        return self._check_closed()

    def close(self) -> None:
        """Close this end; a second time does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._close(handle)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- messages

    def send(self, obj: SendT_contra) -> None:
        """Send a picklable object.

        Raises:
            OSError: closed, read-only, or of the system: BrokenPipeError if the other end is closed.
            ValueError: descriptors are in the object, and this connection cannot carry them.
        """
        self._check_writable()
        if type(obj) in _PLAIN:
            self._send_bytes(_plain_dumps(obj))
            return
        envelope = _Envelope()
        first = reduction.begin_exports() if reduction.any_exports else 0
        try:
            try:
                data = _pickle(obj, envelope)
            except BaseException:
                reduction.forget_exports(first)
                raise
            if reduction.any_exports:
                reduction.end_exports(first)
            written: list[int] = []
            try:
                self._send_pickle(data, envelope.fds, written)
            except BaseException:
                if sum(written) < len(data) + 4:  # else a signal handler has raised it after the message was sent
                    reduction.unsent(data)
                raise
        finally:
            if envelope.fds:
                envelope.close()

    def send_bytes(self, buf: Buffer, offset: int = 0, size: int | None = None) -> None:
        """Send ``size`` bytes (None: the rest) of a bytes-like object from ``offset`` on as one message.

        Raises:
            ValueError: offset or size are negative or beyond the end.
            OSError: as send().
        """
        self._check_writable()
        if type(buf) is bytes and offset == 0 and size is None:
            self._send_bytes(buf)
            return
        view = _bytes_view(buf)
        length = len(view)
        if offset < 0:
            raise ValueError("offset is negative")
        if length < offset:
            raise ValueError("buffer length < offset")
        if size is None:
            size = length - offset
        elif size < 0:
            raise ValueError("size is negative")
        elif offset + size > length:
            raise ValueError("buffer length < offset + size")
        self._send_bytes(view[offset : offset + size])

    def recv(self) -> RecvT_co:
        """Receive an object; waits for it.

        Raises:
            EOFError: the other end is closed and nothing is left to receive.
            OSError: closed, write-only, or the message broke off.
        """
        self._check_readable()
        return _unpickle(*self._recv_pickle())  # type: ignore[no-any-return]

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive one message of bytes; waits for it.

        Raises:
            EOFError: the other end is closed and nothing is left to receive.
            ValueError: maxlength is negative.
            OSError: as recv(); the message is longer than maxlength: nothing can be received any more then.
        """
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        data = self._recv_bytes(maxlength)
        return data if type(data) is bytes else bytes(data)

    def recv_bytes_into(self, buf: Buffer, offset: int = 0) -> int:
        """Receive one message of bytes into a writable buffer, from byte ``offset`` on; waits for it. Returns its size in bytes.

        Raises:
            BufferTooShort: the message is longer than the room; ``args[0]`` is the message.
            EOFError, OSError: as recv().
            ValueError: offset is negative or beyond the end.
        """
        self._check_readable()
        view = _bytes_view(buf)
        if view.readonly:
            raise TypeError("the buffer is read-only")
        if offset < 0:
            raise ValueError("negative offset")
        if offset > len(view):
            raise ValueError("offset too large")
        return self._recv_into(view[offset:])

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to receive within ``timeout`` seconds, the other end's closing included; None: for ever."""
        self._check_readable()
        return self._poll(timeout)


def _bytes_view(buf: Any) -> memoryview:
    view = memoryview(buf)
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    if view.contiguous:
        return view.cast("B")
    if view.readonly:
        return memoryview(bytes(view))
    raise TypeError("the buffer is not contiguous")


def _unix_socket(handle: int) -> socket.socket:
    """A socket object of its own for a descriptor.

    Raises:
        ValueError: it is something else.
    """
    import socket

    fd = os.dup(handle)
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # ENOTSOCK: the descriptor was not taken
        os.close(fd)
    else:
        if sock.family == socket.AF_UNIX:
            return sock
        sock.close()
    raise ValueError("descriptors can be sent over Unix sockets only")


class Connection(_Base[SendT_contra, RecvT_co]):
    """Messages over a descriptor of a stream: a socket or a pipe.

    Args:
        handle: the descriptor, which is the connection's from now on.
        readable, writable: which directions it has.

    Raises:
        ValueError: negative handle, or no direction.
    """

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            """What isinstance() looks at besides the type: to libraries that ask for a connection of the standard library, this is one."""
            return context._join_stdlib(type(self), "Connection", "connection")

    def _close(self, handle: int, _close: Callable[[int], None] = os.close) -> None:
        _close(handle)

    def _poll(self, timeout: float | None) -> bool:
        return _ready(self._check_closed(), _READABLE, timeout)

    def __reduce__(self) -> Any:
        check_receiver("Connection")
        return _rebuild_connection, (reduction.DupFd(self.fileno()), self._readable, self._writable)

    # -- sending

    def _send_bytes(self, data: Any) -> None:
        self._send_noting(data, [])

    def _send_noting(self, data: Any, written: list[int]) -> None:
        handle = self._check_closed()
        size = len(data)
        if size <= _SMALL - 4:
            frame = _header.pack(size) + data
            try:
                if reduction.note(written, os.write, handle, frame) == size + 4:
                    return
            except BlockingIOError:  # the program made the descriptor non-blocking
                _ready(handle, _WRITABLE, None)
                self._send_parts(handle, [frame], written)
                return
            # Files do so when they are full, and nothing else that this class knows.
            self.close()
            raise OSError("message was cut short")
        header = _header.pack(size) if size <= _MAX_SHORT else _long_header.pack(_LONG, size)
        self._send_parts(handle, [header, data], written)

    def _send_parts(self, handle: int, parts: list[Any], done: list[int]) -> None:
        """Write them all, as one frame. How much each call has written is added to ``done``."""
        views = [memoryview(part) for part in parts]
        try:
            while views:
                try:
                    written = reduction.note(done, os.writev, handle, views)
                except BlockingIOError:
                    _ready(handle, _WRITABLE, None)
                    continue
                while views and written >= len(views[0]):
                    written -= len(views[0])
                    del views[0]
                if written:
                    views[0] = views[0][written:]
        except ConnectionError:
            raise  # there may be messages to be read yet
        except BaseException:
            # Of a signal handler: how much was written is not known, so no other frame may follow.
            self.close()
            raise

    def _send_pickle(self, data: bytes, fds: list[int], written: list[int]) -> None:
        if not fds:
            self._send_noting(data, written)
            return
        import array
        import socket

        handle = self._check_closed()
        with _unix_socket(handle) as sock:
            for i in range(0, len(fds), _DESCRIPTORS_AT_ONCE):
                some = fds[i : i + _DESCRIPTORS_AT_ONCE]
                self._send_parts(handle, [_header.pack(_DESCRIPTORS)], [])
                try:
                    # Of its own, not with the header: who reads a byte by other means than recvmsg drops what comes with it.
                    while True:
                        try:
                            sock.sendmsg([bytes([len(some)])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", some))])
                            break
                        except BlockingIOError:
                            _ready(handle, _WRITABLE, None)
                except BaseException:
                    self.close()
                    raise
        self._send_noting(data, written)

    # -- receiving

    def _recv_length(self, handle: int) -> int:
        """The next frame's length.

        Raises:
            EOFError: there is none.
        """
        while True:
            try:
                start = os.read(handle, 4)
                break
            except BlockingIOError:
                _ready(handle, _READABLE, None)
        if len(start) != 4:
            if not start:
                raise EOFError
            start += self._read(handle, 4 - len(start))
        size: int = _header.unpack(start)[0]
        if size == _LONG:
            (size,) = _long_length.unpack(self._read(handle, 8))
            if size > sys.maxsize:
                self._bad_message_length()
        return size

    def _read(self, handle: int, size: int) -> bytes:
        """So many bytes of a frame that has begun."""
        try:
            if size <= _STEP:
                try:
                    data = os.read(handle, size)
                except BlockingIOError:
                    data = b""
                    _ready(handle, _READABLE, None)
                else:
                    if len(data) == size:
                        return data
                    if not data:
                        raise OSError("got end of file during message")
            else:
                data = b""
            # Only as much memory as has been filled once, and the first step. A BytesIO hands out its bytes without a copy.
            buffer = io.BytesIO()
            done, room = buffer.write(data), 0
            while done < size:
                room = min(size, max(_STEP, 2 * room))
                buffer.seek(room - 1)
                buffer.write(b"\0")
                with buffer.getbuffer() as view:
                    self._fill(handle, view[done:room])
                done = room
            return buffer.getvalue()
        except BaseException:
            self.close()
            raise

    def _fill(self, handle: int, view: memoryview) -> None:
        """Read until the view is full."""
        with view:
            done = 0
            while done < len(view):
                try:
                    with view[done:] as rest:
                        count = os.readv(handle, [rest])
                except BlockingIOError:
                    _ready(handle, _READABLE, None)
                    continue
                if not count:
                    raise OSError("got end of file during message")
                done += count

    def _recv_bytes(self, maxsize: int | None) -> bytes:
        handle = self._check_closed()
        size = self._recv_length(handle)
        if size < 0 or (maxsize is not None and size > maxsize):
            self._bad_message_length()
        return self._read(handle, size) if size else b""

    def _recv_into(self, view: memoryview) -> int:
        handle = self._check_closed()
        size = self._recv_length(handle)
        if size < 0:
            self._bad_message_length()
        if size > len(view):
            raise BufferTooShort(self._read(handle, size))
        try:
            self._fill(handle, view[:size])
        except BaseException:
            self.close()
            raise
        return size

    def _recv_pickle(self) -> tuple[bytes, list[int]]:
        handle = self._check_closed()
        size = self._recv_length(handle)
        if size > 0:
            return self._read(handle, size), []
        fds: list[int] = []
        try:
            while size == _DESCRIPTORS:
                fds += self._recv_descriptors(handle)
                try:
                    size = self._recv_length(handle)
                except EOFError:
                    raise OSError("got end of file during message") from None
            if size < 0:
                self._bad_message_length()
            return (self._read(handle, size) if size else b""), fds
        except BaseException:
            util.close_fds(*fds)
            self.close()
            raise

    def _recv_descriptors(self, handle: int) -> list[int]:
        import array
        import socket

        numbers = array.array("i")
        with _unix_socket(handle) as sock:
            while True:
                try:
                    message, ancillary, flags, _ = sock.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize * _DESCRIPTORS_AT_ONCE))
                    break
                except BlockingIOError:
                    _ready(handle, _READABLE, None)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
        if not message or not numbers or len(numbers) != message[0]:
            util.close_fds(*numbers)
            if flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            raise OSError("the descriptors of a message did not arrive")
        return list(numbers)


def _rebuild_connection(dup: Any, readable: bool, writable: bool) -> Connection:
    return Connection(dup.detach(), readable, writable)


# ---- addresses

default_family = "AF_UNIX" if sys.platform != "win32" else "AF_INET"
families = ["AF_INET", "AF_UNIX"] if sys.platform != "win32" else ["AF_INET"]


def arbitrary_address(family: str) -> Address:
    """An address that a listener of the family can have.

    Raises:
        ValueError: not a family that this knows addresses of.
    """
    if family in ("AF_INET", "AF_INET6"):
        return ("localhost", 0)
    if family == "AF_UNIX":
        # A file, in a directory which is this user's alone: whoever is on the machine can connect to an abstract name.
        return os.path.join(util.get_temp_dir(), "listener-" + os.urandom(8).hex())
    raise ValueError("unrecognized family")


def _validate_family(family: str) -> None:
    """Refuse a family of which the system has no sockets.

    Raises:
        ValueError: it has none.
    """
    import socket

    if not family.startswith("AF_") or family == "AF_PIPE" or not hasattr(socket, family):
        raise ValueError(f"Family {family} is not recognized.")


def address_type(address: Address) -> str:
    """The family of an address: "AF_INET", "AF_INET6", "AF_UNIX" or "AF_PIPE".

    Raises:
        TypeError: nothing of this kind is an address.
    """
    if isinstance(address, tuple):
        return "AF_INET6" if len(address) == 4 else "AF_INET"
    if isinstance(address, str) and address.startswith("\\\\"):
        return "AF_PIPE"
    if isinstance(address, (str, bytes)):
        return "AF_UNIX"
    raise TypeError(f"address type of {address!r} unrecognized")


def _check_authkey(authkey: object) -> None:
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")


# ---- listeners and clients


class Listener:
    """A socket, bound to an address, that connections are made to.

    Args:
        address: a path, an abstract name ("\\0...") or (host, port); None: some free one, see the attribute. A path that was given
            or chosen is removed when the listener is closed, and at the end of the program.
        family: "AF_INET", "AF_UNIX" or another that the socket module knows; None: that of the address, or "AF_UNIX".
        backlog: how many connections may wait for accept().
        authkey: bytes; who connects must know them too.

    Raises:
        OSError: the address is taken, or cannot be bound.
        TypeError: authkey is not bytes.
        ValueError: no such family.
    """

    def __init__(
        self,
        address: Address | None = None,
        family: str | None = None,
        backlog: int = 1,
        authkey: bytes | None = None,
    ) -> None:
        family = family or (address_type(address) if address else default_family)
        address = address or arbitrary_address(family)
        _validate_family(family)
        _check_authkey(authkey)
        self._listener: SocketListener | None = SocketListener(address, family, backlog)
        self._authkey = authkey
        # By process: a thread that does not exist in a forked child may have held the parent's.
        self._accepting = {os.getpid(): RLock()}
        self._incoming: list[_Incoming] = []
        self._left = 0.0  # when accept() was over
        self._pid = os.getpid()

    def _open(self) -> SocketListener:
        if self._listener is None:
            raise OSError("listener is closed")
        return self._listener

    def accept(self) -> Connection:
        """Wait for a connection and return it.

        With a key, the first that has proved to know it. A connection whose other end is slow or silent does not keep out the others:
        their challenges go on at the same time. When there are 64 of such connections, and more want to connect, those that have been
        silent longest, for a second at least, are closed.

        Raises:
            AuthenticationError: the other end does not know the key, or takes too long. The connection is closed, others can come.
            EOFError, OSError: the other end has closed during the challenge; the listener is closed.
        """
        if self._authkey is None:
            return self._open().accept()
        self._open()  # closed: an error at once, also while another thread waits in accept() for ever
        accepting = self._accepting.get(os.getpid()) or self._accepting.setdefault(os.getpid(), RLock())
        # A signal handler of this thread, which is in accept() already: what that waits for is left alone.
        if accepting._is_owned():  # type: ignore[attr-defined]
            interrupted, self._incoming = self._incoming, []
            try:
                return self._accept(self._authkey)
            finally:
                interrupted += self._incoming
                self._incoming = interrupted
        with accepting:
            outside = time.monotonic() - self._left
            for each in self._incoming:  # nobody has listened to them meanwhile
                each.begun += outside
            try:
                return self._accept(self._authkey)
            finally:
                self._left = time.monotonic()

    def _accept(self, authkey: bytes) -> Connection:
        if self._pid != os.getpid():  # those are the parent's
            self._pid = os.getpid()
            self._drop_incoming()
        while True:
            listener = self._open()
            if not self._incoming:
                connection = listener.accept()
                self._incoming.append(_Incoming(connection, listener._last_accepted, authkey))
            poll = process.new_poll()
            now = time.monotonic()
            left = min(each.begun + each.limit for each in self._incoming) - now
            wait = max(each.begun for each in self._incoming) + _INCOMING_FRESH / len(self._incoming) - now
            full = len(self._incoming) >= _INCOMING_MOST
            silent = next((each for each in self._incoming if not each.proved), None)
            if full and silent is not None:
                wait = max(wait, silent.begun + _INCOMING_LEAST - now)
            if wait > 0:
                left = min(left, wait)
            elif silent is not None or not full:
                poll.register(listener._socket, _READABLE)
            for each in self._incoming:
                poll.register(each.fd, each.events())
            ready = {fd for fd, _ in _poll_until(poll, max(left, 0))}
            for each in list(self._incoming):
                if each.fd in ready:
                    done = False
                    try:
                        done = each.advance()
                    except BaseException:
                        self._incoming.remove(each)
                        each.connection.close()
                        raise
                    if done:
                        self._incoming.remove(each)
                        listener._last_accepted = each.address
                        return each.connection
                elif each.begun + each.limit <= time.monotonic():
                    self._incoming.remove(each)
                    each.connection.close()
                    raise AuthenticationError(f"the other end has not finished the challenge within {each.limit:g} s")
            if listener._socket.fileno() in ready:
                new = listener._accept_if_any()
                if new is not None:
                    if full and silent in self._incoming:
                        self._incoming.remove(silent)
                        silent.connection.close()
                    self._incoming.append(_Incoming(new, listener._last_accepted, authkey))

    def _drop_incoming(self) -> None:
        incoming, self._incoming = self._incoming, []
        for each in incoming:
            each.connection.close()

    def close(self) -> None:
        """Take no more connections; a second time does nothing."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            self._drop_incoming()

    def fileno(self) -> int:
        """The socket's descriptor: readable when somebody wants to connect."""
        return self._open()._socket.fileno()

    @property
    def address(self) -> Any:
        """Where clients connect to."""
        return self._open()._address

    @property
    def last_accepted(self) -> Any:
        """The address of the last connection's other end; None if there is none."""
        return self._open()._last_accepted

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def Client(address: Address, family: str | None = None, authkey: bytes | None = None) -> Connection:
    """Connect to a listener.

    Raises:
        AuthenticationError: the listener does not know the key, or takes too long in the middle of the challenge.
        OSError: nobody listens there.
        TypeError: authkey is not bytes.
        ValueError: no such family.
    """
    family = family or address_type(address)
    _validate_family(family)
    _check_authkey(authkey)
    connection = SocketClient(address, family)
    if authkey is not None:
        try:
            handshake = _Handshake(connection, patient=True)
            _run(_answer_steps(authkey, _CLIENT), handshake)
            _run(_deliver_steps(authkey, "sha256", _CLIENT), handshake)
        except BaseException:
            connection.close()
            raise
    return connection


def _as_connection(sock: socket.socket) -> Connection:
    import socket

    sock.setblocking(True)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(sock.detach())


def SocketClient(address: Address, family: str | None = None) -> Connection:
    """Connect to a listener without a key."""
    import socket

    with socket.socket(getattr(socket, family or address_type(address))) as sock:
        sock.setblocking(True)
        sock.connect(address)
        return _as_connection(sock)


def _file_of(path: str | bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove(path: str | bytes, file: tuple[int, int] | None) -> None:
    # Not if somebody has removed it and another listener has that address now.
    if file is not None and _file_of(path) == file:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


class SocketListener:
    """The listening socket of a :class:`Listener`."""

    def __init__(self, address: Address, family: str, backlog: int = 1) -> None:
        import socket

        self._socket = socket.socket(getattr(socket, family))
        try:
            if os.name == "posix":
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(True)
            self._socket.bind(address)
            self._socket.listen(backlog)
            self._address = self._socket.getsockname()
        except BaseException:
            self._socket.close()
            raise
        self._family = family
        self._last_accepted: Any = None
        self._unlink: util.Finalize | None = None
        if family == "AF_UNIX" and isinstance(address, (str, bytes)) and not util.is_abstract_socket_namespace(address):
            path = os.path.abspath(address)
            self._unlink = util.Finalize(self, _remove, args=(path, _file_of(path)), exitpriority=0)

    def accept(self) -> Connection:
        while True:
            try:
                sock, self._last_accepted = self._socket.accept()
                break
            except BlockingIOError:
                if self._socket.gettimeout() is not None:
                    raise
                # Another process has this socket too, and is in _accept_if_any().
                _ready(self._socket.fileno(), _READABLE, None)
        with sock:
            return _as_connection(sock)

    def _accept_if_any(self) -> Connection | None:
        """accept(), but None if there is no connection any more: another process that has this socket too may have been faster."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            sock, self._last_accepted = self._socket.accept()
        except BlockingIOError:
            return None
        finally:
            self._socket.settimeout(timeout)
        with sock:
            return _as_connection(sock)

    def close(self) -> None:
        try:
            self._socket.close()
        finally:
            if self._unlink is not None:
                self._unlink()
                self._unlink = None


# ---- the challenge
#
# One end sends "#CHALLENGE#" and a message; the other answers with the HMAC of that message under the key; the first says "#WELCOME#" or
# "#FAILURE#". Then they change places. The message of Python 3.12 and later begins with the name of a digest, "{sha256}", and so does the
# answer; an older end knows nothing of that, sends 20 random bytes, and answers any message with 16 bytes, the HMAC by MD5.

CHALLENGE = _CHALLENGE = b"#CHALLENGE#"
WELCOME = _WELCOME = b"#WELCOME#"
FAILURE = _FAILURE = b"#FAILURE#"
MESSAGE_LENGTH = 40

_DIGESTS = ("md5", "sha256", "sha384", "sha3_256", "sha3_384")
_OLD_MESSAGE_LENGTH = 20
_OLD_ANSWER_LENGTH = 16
# No message of a handshake is longer.
_MAX_LENGTH = 256


class _Handshake:
    """The messages of a challenge over a connection, all of them within HANDSHAKE_SECONDS.

    Args:
        connection: it stays the caller's.
        patient: the time begins with the first message received.
    """

    def __init__(self, connection: Connection, patient: bool = False) -> None:
        self._fd = connection.fileno()
        self._limit = HANDSHAKE_SECONDS
        self._deadline = None if patient else time.monotonic() + self._limit

    def _wait(self, events: int) -> None:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if not _ready(self._fd, events, left):
            raise AuthenticationError(f"the other end has not finished the challenge within {self._limit:g} s")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._wait(_READABLE)
            try:
                more = os.read(self._fd, size - len(data))
            except BlockingIOError:
                continue
            if not more:
                raise EOFError
            data += more
        return data

    def recv_bytes(self, maxlength: int) -> bytes:
        (size,) = _header.unpack(self._read(4))
        if self._deadline is None:
            self._deadline = time.monotonic() + self._limit
        if not 0 <= size <= maxlength:
            raise OSError("bad message length")
        return self._read(size)

    def send_bytes(self, buf: bytes) -> None:
        data = _header.pack(len(buf)) + buf
        while data:
            self._wait(_WRITABLE)
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                continue


def _split(message: bytes) -> tuple[str, bytes]:
    """The digest that a message names, and the rest. "": none, it is of the older kind.

    Raises:
        AuthenticationError: not a message, or no digest that is accepted.
    """
    if message[:1] == b"{":
        # No name of a digest is longer. What follows the first brace is random and may have others.
        end = message.find(b"}", 1, 20)
        digest = message[1:end].decode("ascii", "replace")
        if end > 0 and digest in _DIGESTS:
            return digest, message[end + 1 :]
        raise AuthenticationError(f"unsupported digest {digest!r}")
    return "", message


def _hmac(authkey: bytes, message: bytes, digest: str) -> bytes:
    import hmac

    return hmac.new(authkey, message, digest).digest()


def _create_response(authkey: bytes, message: bytes) -> bytes:
    """The answer to a challenge.

    Raises:
        AuthenticationError: the message is none, or names a digest that is not accepted.
    """
    # By chance 20 random bytes may begin with a brace.
    digest = "" if len(message) == _OLD_MESSAGE_LENGTH else _split(message)[0]
    if not digest:
        if len(message) != _OLD_MESSAGE_LENGTH:
            raise AuthenticationError(f"unsupported message of {len(message)} bytes in a challenge")
        try:
            return _hmac(authkey, message, "md5")
        except ValueError:  # the system forbids MD5: the other end may be able to do better
            digest = "sha256"
    return b"{%s}%s" % (digest.encode(), _hmac(authkey, message, digest))


def _verify_challenge(authkey: bytes, message: bytes, response: bytes) -> None:
    """Check the answer to a challenge.

    Raises:
        AuthenticationError: it is not the answer to that message under that key.
    """
    if len(response) == _OLD_ANSWER_LENGTH:
        digest, theirs = "md5", response
    else:
        digest, theirs = _split(response)
        if not digest:
            raise AuthenticationError(f"unsupported answer of {len(response)} bytes to a challenge")
    try:
        ours = _hmac(authkey, message, digest)
    except ValueError:
        raise AuthenticationError(f"digest {digest} is not available") from None
    import hmac

    if not hmac.compare_digest(ours, theirs):
        raise AuthenticationError("digest received was wrong")


def _channel(connection: Any, patient: bool = False) -> Channel:
    # Messages of a pipe's end do not go through its descriptor.
    stream = isinstance(connection, Connection) and not hasattr(connection, "_send_fd")
    channel: Channel = _Handshake(connection, patient) if stream else connection
    return channel


def _check_bytes(authkey: object) -> None:
    if not isinstance(authkey, bytes):
        raise ValueError(f"Authkey must be bytes, not {type(authkey)!s}")


# What the challenges of this package's listeners and clients begin with, in their random part. None of them answers what one of its
# own kind has asked: somebody without the key could else have a client answer, over a second connection, what that client asks over
# the first. Other ends send random bytes, and take these for such.
_LISTENER = b"Lpolyproc"
_CLIENT = b"Cpolyproc"


def _deliver_steps(authkey: bytes, digest: str, role: bytes = b"") -> Steps:
    """What is sent, and received (at each yield of None), to have the other end prove that it knows the key."""
    message = b"{%s}%s%s" % (digest.encode(), role, os.urandom(MESSAGE_LENGTH - len(role)))
    yield _CHALLENGE + message
    response = yield None
    try:
        _verify_challenge(authkey, message, response)
    except AuthenticationError:
        yield _FAILURE
        raise
    yield _WELCOME


def _answer_steps(authkey: bytes, role: bytes = b"") -> Steps:
    """The same to prove it to the other end."""
    message = yield None
    if not message.startswith(_CHALLENGE):
        raise AuthenticationError(f"protocol error, expected a challenge: {message!r}")
    message = message[len(_CHALLENGE) :]
    if role and len(message) != _OLD_MESSAGE_LENGTH and _split(message)[1].startswith(role):
        raise AuthenticationError("the other end sends a challenge of this end's own kind")
    yield _create_response(authkey, message)
    if (yield None) != _WELCOME:
        raise AuthenticationError("digest sent was rejected")


def _run(steps: Steps, channel: Channel) -> None:
    request = next(steps)
    try:
        while True:
            if request is None:
                request = steps.send(channel.recv_bytes(_MAX_LENGTH))
            else:
                channel.send_bytes(request)
                request = steps.send(b"")
    except StopIteration:
        pass


def deliver_challenge(connection: Any, authkey: bytes, digest_name: str = "sha256") -> None:
    """Have the other end prove that it knows the key.

    Args:
        connection: a Connection, or whatever has send_bytes() and recv_bytes(maxlength).
        authkey: the key.
        digest_name: "sha256", "sha384", "sha3_256", "sha3_384" or "md5"; an end that is Python 3.11 or older answers by MD5 anyway.

    Raises:
        AuthenticationError: it does not, or takes longer than HANDSHAKE_SECONDS.
        EOFError, OSError: the connection broke.
    """
    _check_bytes(authkey)
    if digest_name not in _DIGESTS:
        raise ValueError(f"unsupported digest {digest_name!r}")
    _run(_deliver_steps(authkey, digest_name), _channel(connection))


def answer_challenge(connection: Any, authkey: bytes) -> None:
    """Prove to the other end that the key is known here. Waits for the challenge to begin.

    Raises:
        AuthenticationError: it does not believe it, says something else, or takes longer than HANDSHAKE_SECONDS once it has begun.
        EOFError, OSError: the connection broke.
    """
    _check_bytes(authkey)
    _run(_answer_steps(authkey), _channel(connection, patient=True))


class _Incoming:
    """A connection that a listener has taken and whose other end has not yet proved that it knows the key."""

    def __init__(self, connection: Connection, address: Any, authkey: bytes) -> None:
        self.connection = connection
        self.address = address
        self.fd = connection.fileno()
        self.limit = HANDSHAKE_SECONDS
        self.begun = time.monotonic()  # later by the time in which the listener was not asked to accept
        self.proved = False  # the other end knows the key, and may ask whether this one does
        self._steps = self._both(authkey)
        self._out = b""
        self._in = b""
        self._size: int | None = None  # of the message that is coming, once it is known
        self._step(next(self._steps))

    @staticmethod
    def _both(authkey: bytes) -> Steps:
        yield from _deliver_steps(authkey, "sha256", _LISTENER)
        yield from _answer_steps(authkey, _LISTENER)

    def _step(self, request: bytes | None) -> None:
        self._out = b"" if request is None else _header.pack(len(request)) + request
        self.proved = self.proved or request == _WELCOME

    def events(self) -> int:
        """What it waits for."""
        return _WRITABLE if self._out else _READABLE

    def advance(self) -> bool:
        """Go on as far as can be without waiting, which was found possible. Returns whether the other end has proved itself.

        Raises:
            AuthenticationError, EOFError, OSError: it has not.
        """
        try:
            if self._out:
                self._out = self._out[os.write(self.fd, self._out) :]
                if not self._out:
                    self._step(self._steps.send(b""))
                return False
            want = 4 if self._size is None else self._size
            more = os.read(self.fd, want - len(self._in))
            if not more:
                raise EOFError
            self._in += more
            if len(self._in) < want:
                return False
            message, self._in = self._in, b""
            if self._size is None:
                (self._size,) = _header.unpack(message)
                if not 0 <= self._size <= _MAX_LENGTH:
                    raise OSError("bad message length")
                if self._size:
                    return False
                message = b""
            self._size = None
            self._step(self._steps.send(message))
        except BlockingIOError:
            pass
        except StopIteration:
            return True
        return False


# ---- connections whose objects are XML: managers with serializer="xmlrpclib"


class ConnectionWrapper:
    """A connection whose send() and recv() use other functions than pickle's."""

    def __init__(self, conn: _Base, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]) -> None:
        self._conn = conn
        self._dumps = dumps
        self._loads = loads
        self.fileno = conn.fileno
        self.close = conn.close
        self.poll = conn.poll
        self.recv_bytes = conn.recv_bytes
        self.send_bytes = conn.send_bytes

    def send(self, obj: Any) -> None:
        self._conn.send_bytes(self._dumps(obj))

    def recv(self) -> Any:
        return self._loads(self._conn.recv_bytes())


def _xml_dumps(obj: Any) -> bytes:
    import xmlrpc.client

    return xmlrpc.client.dumps((obj,), allow_none=True).encode()


def _xml_loads(data: bytes) -> Any:
    import xmlrpc.client

    (obj,), _ = xmlrpc.client.loads(data.decode())
    return obj


class XmlListener(Listener):
    """A listener whose connections send what XML-RPC knows, and receive no pickles."""

    def accept(self) -> Any:
        return ConnectionWrapper(super().accept(), _xml_dumps, _xml_loads)


def XmlClient(address: Address, family: str | None = None, authkey: bytes | None = None) -> ConnectionWrapper:
    """Connect to an :class:`XmlListener`; as Client()."""
    return ConnectionWrapper(Client(address, family, authkey), _xml_dumps, _xml_loads)
