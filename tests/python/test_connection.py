"""Connections over descriptors, and wait(). Where both packages promise the same, the tests run with both, and with one at each end."""

from __future__ import annotations

import array
import contextlib
import gc
import multiprocessing.connection
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc

import connection_tasks as tasks
import pytest
from conftest import STDLIB

import polyproc
import polyproc.connection
from polyproc.connection import Connection, wait

MODULES = {"stdlib": multiprocessing, "polyproc": polyproc}
METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(params=[STDLIB, "polyproc"])
def mp(request):
    return MODULES[request.param]


def sockets(family):
    if family == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


@contextlib.contextmanager
def connected(first=polyproc, second=polyproc, family="unix"):
    a, b = sockets(family)
    with first.connection.Connection(a.detach()) as one, second.connection.Connection(b.detach()) as other:
        yield one, other


@contextlib.contextmanager
def half(mp=polyproc):
    """A plain socket and a connection at its other end."""
    a, b = socket.socketpair()
    with a, mp.connection.Connection(b.detach()) as connection:
        yield a, connection


@contextlib.contextmanager
def meanwhile(function, *args):
    """Run a function in a thread; its exception is the test's."""
    errors = []

    def run():
        try:
            function(*args)
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


# ---- messages

SIZES = [0, 1, 4091, 4092, 4093, 16_384, 16_385, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_001]


@pytest.mark.parametrize("family", ["unix", "tcp"])
@pytest.mark.parametrize("ends", [("polyproc", "polyproc"), ("polyproc", "stdlib"), ("stdlib", "polyproc")], ids="-".join)
def test_messages_arrive_as_they_were_sent(ends, family):
    messages = [os.urandom(size) for size in SIZES]
    with connected(*(MODULES[end] for end in ends), family) as (a, b):

        def send():
            for message in messages:
                a.send_bytes(message)
                a.send(message)
                a.send({"message": message})
            a.close()

        with meanwhile(send):
            for message in messages:
                assert b.recv_bytes() == message
                assert b.recv() == message
                assert b.recv() == {"message": message}
            with pytest.raises(EOFError):
                b.recv()


def test_frames_on_the_wire(mp):
    with half(mp) as (end, connection):
        connection.send_bytes(b"abc")
        assert end.recv(100) == b"\0\0\0\3abc"
        connection.send_bytes(b"")
        assert end.recv(100) == b"\0\0\0\0"
        connection.send(["x"])
        frame = end.recv(100)
        assert struct.unpack("!i", frame[:4]) == (len(frame) - 4,)
        assert pickle.loads(frame[4:]) == ["x"]
        end.sendall(b"\0\0\0\2hi" + struct.pack("!iQ", -1, 2) + b"ho")
        assert connection.recv_bytes() == b"hi"
        assert connection.recv_bytes() == b"ho"


def test_a_frame_beyond_2_gib_has_a_long_length(monkeypatch):
    """Without the 2 GiB: what is called long is changed."""
    monkeypatch.setattr(polyproc.connection, "_MAX_SHORT", 9999)
    with half() as (end, connection):
        connection.send_bytes(b"x" * 10_000)
        with end.makefile("rb") as file:
            assert file.read(12) == struct.pack("!iQ", -1, 10_000)
            assert file.read(10_000) == b"x" * 10_000


@pytest.mark.parametrize(
    ("args", "expected"),
    [((), b"abcdef"), ((2,), b"cdef"), ((2, 3), b"cde"), ((6,), b""), ((0, 0), b""), ((6, 0), b""), ((1, None), b"bcdef")],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array.array("H", data)])
def test_parts_of_buffers(mp, kind, args, expected):
    with half(mp) as (end, connection):
        connection.send_bytes(kind(b"abcdef"), *args)
        assert end.recv(100)[4:] == expected


@pytest.mark.parametrize("args", [(-1,), (7,), (2, -1), (2, 5), (7, 0)])
def test_parts_that_are_none(mp, args):
    with half(mp) as (_, connection), pytest.raises(ValueError):
        connection.send_bytes(b"abcdef", *args)


def test_a_strided_buffer_is_sent_in_order():
    with connected() as (a, b):
        a.send_bytes(memoryview(b"abcdef")[::2])
        assert b.recv_bytes() == b"ace"
        with pytest.raises(TypeError):
            b.recv_bytes_into(memoryview(bytearray(10))[::2])


def test_receiving_into_buffers(mp):
    with connected(mp, mp) as (a, b):
        numbers = array.array("i", range(4))
        buffer = array.array("i", [9] * 10)
        a.send_bytes(numbers)
        assert b.recv_bytes_into(buffer, 3 * buffer.itemsize) == 4 * buffer.itemsize
        assert list(buffer) == [9] * 3 + [0, 1, 2, 3] + [9] * 3
        room = bytearray(5)
        a.send_bytes(b"hello")
        assert b.recv_bytes_into(room) == 5
        assert room == b"hello"
        a.send_bytes(b"")
        assert b.recv_bytes_into(room, 5) == 0
        a.send_bytes(b"longer")
        with pytest.raises(mp.BufferTooShort) as caught:
            b.recv_bytes_into(room)
        assert caught.value.args == (b"longer",)
        assert room == b"hello"
        a.send_bytes(b"next")  # the one that was too long is gone
        assert b.recv_bytes() == b"next"
        for offset in (-1, 6):
            with pytest.raises(ValueError):
                b.recv_bytes_into(room, offset)


def test_receiving_a_large_message_into_a_buffer():
    message, buffer = os.urandom(3_000_000), bytearray(3_000_000)
    with connected() as (a, b), meanwhile(a.send_bytes, message):
        assert b.recv_bytes_into(buffer) == len(message)
    assert buffer == message


def test_a_read_only_buffer_takes_no_message():
    with connected() as (a, b):
        a.send_bytes(b"x")
        with pytest.raises(TypeError):
            b.recv_bytes_into(b"room")
        assert b.recv_bytes() == b"x"


def test_maxlength(mp):
    with connected(mp, mp) as (a, b):
        a.send_bytes(b"12345")
        assert b.recv_bytes(5) == b"12345"
        with pytest.raises(ValueError):
            b.recv_bytes(-1)
        a.send_bytes(b"123456")
        with pytest.raises(OSError):
            b.recv_bytes(5)
        with pytest.raises(OSError):
            b.recv_bytes()
        assert (b.readable, b.writable, b.closed) == (False, True, False)
        b.send("still")
        assert a.recv() == "still"


def test_maxlength_of_one_way_connections(mp):
    read, write = os.pipe()
    with mp.connection.Connection(read, writable=False) as r, mp.connection.Connection(write, readable=False) as w:
        w.send_bytes(b"123456")
        with pytest.raises(OSError):
            r.recv_bytes(5)
        assert r.closed


def test_directions(mp):
    read, write = os.pipe()
    with mp.connection.Connection(read, writable=False) as r, mp.connection.Connection(write, readable=False) as w:
        assert (r.readable, r.writable, w.readable, w.writable) == (True, False, False, True)
        w.send("x")
        assert r.poll()
        assert r.recv() == "x"
        for call in (lambda: r.send(1), lambda: r.send_bytes(b""), w.recv, w.recv_bytes, w.poll, lambda: w.recv_bytes_into(bytearray(1))):
            with pytest.raises(OSError):
                call()


def test_closed(mp):
    with connected(mp, mp) as (a, b):
        assert not a.closed
        assert os.fstat(a.fileno())
        a.close()
        a.close()
        assert a.closed
        for call in (lambda: a.send(1), lambda: a.send_bytes(b""), a.recv, a.recv_bytes, a.poll, a.fileno):
            with pytest.raises(OSError):
                call()
        assert b.poll()
        for call in (b.recv, b.recv_bytes, lambda: b.recv_bytes_into(bytearray(1))):
            with pytest.raises(EOFError):
                call()
        with pytest.raises(BrokenPipeError):
            b.send(1)


def test_what_the_other_end_said_before_it_closed_can_be_read_after_a_broken_pipe(mp):
    with connected(mp, mp) as (a, b):
        a.send("last words")
        a.close()
        with pytest.raises(BrokenPipeError):
            b.send_bytes(b"x" * 1_000_000)
        assert b.recv() == "last words"


def test_handles_that_are_none(mp):
    with pytest.raises(ValueError):
        mp.connection.Connection(-1)
    with pytest.raises(ValueError):
        mp.connection.Connection(0, readable=False, writable=False)
    with pytest.raises((TypeError, AttributeError)):
        mp.connection.Connection("0")


def test_a_descriptor_that_is_not_open():
    connection = Connection(1_000_000)
    for call in (connection.poll, connection.recv, lambda: connection.send(1), lambda: wait([connection], 0)):
        with pytest.raises(OSError):
            call()
    connection._handle = None


def test_a_connection_that_nobody_refers_to_closes(mp):
    a, b = socket.socketpair()
    with b:
        mp.connection.Connection(a.detach()).send(1)
        gc.collect()
        assert len(b.recv(100)) > 4
        assert b.recv(100) == b""


def test_poll(mp):
    with connected(mp, mp) as (a, b):
        assert b.poll() is False
        assert b.poll(-1) is False
        start = time.monotonic()
        assert b.poll(0.05) is False
        assert time.monotonic() - start >= 0.045
        a.send_bytes(b"")
        for timeout in (0, 1, None, 10**6, -5):
            assert b.poll(timeout) is True
        assert b.recv_bytes() == b""


@pytest.mark.parametrize("timeout", [float("inf"), 10**400, 1e300])
def test_poll_with_a_huge_timeout(timeout):
    with connected() as (a, b):
        a.send(1)
        assert b.poll(timeout)
        assert wait([b], timeout) == [b]


def test_an_object_that_cannot_be_pickled_sends_nothing():
    with connected() as (a, b):
        for obj in (lambda: 0, [lambda: 0], threading.Lock()):
            with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
                a.send(obj)
        a.send("x")
        assert b.recv() == "x"


class Nested:
    """Sends something itself while it is being pickled."""

    def __init__(self, connection):
        self.connection = connection

    def __reduce__(self):
        self.connection.send(["inner"])
        return str, ("outer",)


def test_sending_while_pickling():
    with connected() as (a, b):
        for _ in range(3):
            a.send([Nested(a)])
            assert b.recv() == ["inner"]
            assert b.recv() == ["outer"]


@pytest.mark.parametrize("family", ["tcp", "pipe"])
def test_descriptors_announced_where_none_can_come(family):
    end, other = os.pipe() if family == "pipe" else (s.detach() for s in sockets("tcp"))
    with Connection(end) as connection, Connection(other) as peer:
        os.write(other, struct.pack("!i", -2) + b"\1" + b"\0\0\0\1x")
        assert peer.writable
        with pytest.raises((OSError, ValueError)):
            connection.recv()
        assert connection.closed


def test_threads_with_connections_of_their_own():
    def talk():
        with connected() as (a, b):
            for i in range(300):
                a.send([i, str(i)])
                assert b.recv() == [i, str(i)]

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(meanwhile(talk))


def test_reducers_of_the_program_are_used():
    class Odd:
        def __reduce__(self):
            raise TypeError

    with connected() as (a, b):
        a.send([1])  # the pickler is made before it is registered
        with pytest.raises(TypeError):
            a.send([Odd()])
        a.send([1])
        polyproc.reduction.register(Odd, lambda obj: (complex, (1, 2)))
        try:
            a.send([Odd()])
        finally:
            del polyproc.reduction.ForkingPickler._extra_reducers[Odd]
        assert [b.recv() for _ in range(3)] == [[1], [1], [1 + 2j]]


# ---- broken frames


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\0\0\0",
        b"\0\0\0\5abcd",
        b"\0\0\0\1",
        struct.pack("!i", -1),
        struct.pack("!i", -2),
        struct.pack("!i", -2) + b"\1",
        struct.pack("!iQ", -1, 5) + b"abcd",
        struct.pack("!iQ", -1, 1 << 50),
    ],
)
@pytest.mark.parametrize("call", ["recv", "recv_bytes", "recv_bytes_into"])
def test_frames_that_break_off(data, call):
    with half() as (end, connection):
        end.sendall(data)
        end.close()
        with pytest.raises(OSError):
            getattr(connection, call)(*([bytearray(5)] if call == "recv_bytes_into" else []))


@pytest.mark.parametrize("data", [struct.pack("!i", -3), struct.pack("!i", -(1 << 31)), struct.pack("!iQ", -1, (1 << 64) - 1)])
@pytest.mark.parametrize("call", ["recv", "recv_bytes", "recv_bytes_into"])
def test_lengths_that_are_none(data, call):
    with half() as (end, connection):
        end.sendall(data + b"x" * 100)
        with pytest.raises(OSError, match="bad message length"):
            getattr(connection, call)(*([bytearray(5)] if call == "recv_bytes_into" else []))
        with pytest.raises(OSError):  # never what follows
            connection.recv_bytes()


@pytest.mark.parametrize("length", [(1 << 31) - 1, 1 << 40, 1 << 62])
def test_memory_is_for_bytes_that_have_arrived(length):
    header = struct.pack("!i", length) if length < 1 << 31 else struct.pack("!iQ", -1, length)
    with half() as (end, connection):

        def send():
            end.sendall(header)
            for _ in range(30):
                end.sendall(bytes(100_000))
            end.close()

        tracemalloc.start()
        try:
            with meanwhile(send), pytest.raises(OSError, match="end of file"):
                connection.recv_bytes()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 12_000_000


def test_a_pickle_that_is_none():
    with connected() as (a, b):
        a.send_bytes(b"no pickle")
        with pytest.raises(Exception):  # noqa: B017 what pickle raises
            b.recv()
        a.send("next")
        assert b.recv() == "next"


# ---- signals


@contextlib.contextmanager
def alarms(handler, interval=0.002):
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_signals_during_messages():
    message, count = os.urandom(8_000_000), []
    with connected() as (a, b), alarms(lambda *_: count.append(1)):
        with meanwhile(tasks.echo, b):
            for _ in range(3):
                with meanwhile(a.send, message):
                    assert a.recv() == message
            while len(count) < 10:
                assert not a.poll(0.01)
            a.close()


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


@pytest.mark.parametrize("call", ["send", "recv"])
def test_an_exception_in_the_middle_of_a_frame_closes(call):
    """The standard library goes on, and takes the rest for a message."""
    with half() as (end, connection):
        if call == "recv":
            end.sendall(b"\0\0\0\5abc")
        with alarms(stop, 0.1), pytest.raises(Stop):
            connection.send_bytes(bytes(50_000_000)) if call == "send" else connection.recv()
        assert connection.closed


def test_an_exception_between_frames_does_no_harm(mp):
    with half(mp) as (end, connection):
        with alarms(stop, 0.1), pytest.raises(Stop):
            connection.recv()
        end.sendall(b"\0\0\0\1x")
        assert connection.recv_bytes() == b"x"


def test_descriptors_that_do_not_block():
    with connected() as (a, b):
        os.set_blocking(a.fileno(), False)
        os.set_blocking(b.fileno(), False)
        message = os.urandom(4_000_000)

        def send():
            for _ in range(2000):
                a.send_bytes(b"small")
            a.send_bytes(message)

        with meanwhile(send):
            for _ in range(2000):
                assert b.recv_bytes() == b"small"
            assert b.recv_bytes() == message


# ---- descriptors


def fds():
    return len(os.listdir("/proc/self/fd"))


def test_connections_and_sockets_can_be_sent():
    before = fds()
    with connected() as (a, b), connected() as (c, d), socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        a.send({"connection": c, "socket": sock, "data": b"x" * 10_000})
        c.close()  # it is on its way
        got = b.recv()
        with got["connection"] as copy, got["socket"] as other:
            copy.send("through the copy")
            assert d.recv() == "through the copy"
            assert other.getsockname() == sock.getsockname()
    assert fds() == before


def test_directions_are_sent():
    read, write = os.pipe()
    with connected() as (a, b), Connection(write, readable=False) as w, Connection(read, writable=False) as r:
        a.send([r, w])
        r2, w2 = b.recv()
        with r2, w2:
            assert (r2.readable, r2.writable, w2.readable, w2.writable) == (True, False, False, True)


def test_many_descriptors_in_one_message():
    before = fds()
    with connected() as (a, b), contextlib.ExitStack() as stack:
        pipes = [os.pipe() for _ in range(150)]
        ends = [stack.enter_context(Connection(fd)) for pipe in pipes for fd in pipe]

        with meanwhile(a.send, ends):
            received = [stack.enter_context(end) for end in b.recv()]
        assert len(received) == 300
        for i in range(0, 300, 2):
            received[i + 1].send_bytes(b"%d" % i)
            assert ends[i].recv_bytes() == b"%d" % i
    assert fds() == before


class Dropped:
    def __init__(self, connection):
        self.connection = connection

    def __reduce__(self):
        return Dropped.forget, (self.connection.__reduce__()[1][0],)

    @staticmethod
    def forget(dup):
        return "dropped"


def test_descriptors_that_nobody_takes_are_closed():
    before = fds()
    with connected() as (a, b), connected() as (c, _):
        a.send([Dropped(c), "x"])
        assert b.recv() == ["dropped", "x"]
        assert fds() == before + 4
        a.send([c])
        with pytest.raises(OSError):  # not with a message of bytes
            b.recv_bytes()
    assert fds() == before


def test_descriptors_need_a_unix_socket():
    read, write = os.pipe()
    with Connection(read, writable=False), Connection(write, readable=False) as w, connected(family="tcp") as (a, b):
        for connection in (w, a):
            with pytest.raises(ValueError):
                connection.send(a)
        a.send("fine")
        assert b.recv() == "fine"


def test_pickled_by_itself_it_rests_with_the_family():
    with connected() as (a, b):
        pickled = pickle.dumps(a)
        a.close()
        with pickle.loads(pickled) as again:
            again.send("still here")
            assert b.recv() == "still here"
        with pytest.raises(FileNotFoundError):  # it is fetched once
            pickle.loads(pickled)


def test_keys_are_not_sent():
    with connected() as (a, _), pytest.raises(TypeError):
        a.send([polyproc.current_process().authkey])


def test_no_descriptor_left():
    """Who cannot take the descriptors gets an error and leaks none of them."""
    program = """
import os, resource, socket
from polyproc.connection import Connection
a, b = (Connection(s.detach()) for s in socket.socketpair())
pipes = [Connection(fd) for _ in range(20) for fd in os.pipe()]
a.send(pipes)
used = len(os.listdir("/proc/self/fd"))
limit = max(map(int, os.listdir("/proc/self/fd"))) + 11
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    b.recv()
except OSError as e:
    print(e.errno)
print(b.closed, used - len(os.listdir("/proc/self/fd")))
"""
    ran = run(program)
    assert ran.split() == ["24", "True", "1"]  # EMFILE


def run(program, *args):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run([sys.executable, "-c", program, *args], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("method", METHODS)
def test_connections_as_arguments(mp, method):
    context = mp.get_context(method)
    a, b = socket.socketpair()
    with mp.connection.Connection(a.detach()) as parent:
        with mp.connection.Connection(b.detach()) as child:
            process = context.Process(target=tasks.echo, args=(child,))
            process.start()
        parent.send({"x": 1})
        assert parent.recv() == {"x": 1}
        if method == "fork":
            parent.send_bytes(pickle.dumps("still"))
            assert parent.recv() == "still"
            process.terminate()  # it holds our end too
        else:
            parent.close()
        process.join(30)
        assert process.exitcode == (-signal.SIGTERM if method == "fork" else 0)
        process.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_connection_through_a_connection_to_a_child(method):
    context = polyproc.get_context(method)
    with connected() as (a, b), connected() as (c, d):
        process = context.Process(target=tasks.relay, args=(b,))
        process.start()
        a.send(c)
        assert d.poll(30)
        assert d.recv() == "from the child"
        process.join(30)
        assert process.exitcode == 0
        process.close()


# ---- wait


def test_wait_in_the_order_of_the_list():
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connected()) for _ in range(200)]
        readers = [b for _, b in pairs]
        assert wait(readers, 0) == []
        for i in (150, 3, 77):
            pairs[i][0].send(i)
        assert wait(readers) == [readers[i] for i in (3, 77, 150)]
        assert wait(list(reversed(readers)), 5) == [readers[i] for i in (150, 77, 3)]
        assert wait(iter([readers[3], readers[4], readers[3]])) == [readers[3], readers[3]]


def test_wait_for_what_there_is(mp):
    read, write = os.pipe()
    with connected(mp, mp) as (a, b), socket.create_server(("127.0.0.1", 0)) as server:
        try:
            everything = [b, read, server]
            for timeout in (0, -1, 0.01):
                assert mp.connection.wait(everything, timeout) == []
            os.write(write, b"x")
            assert mp.connection.wait(everything) == [read]
            with socket.create_connection(server.getsockname()):
                a.close()
                assert {id(x) for x in mp.connection.wait(everything)} == {id(x) for x in everything}
        finally:
            os.close(read)
            os.close(write)


@pytest.mark.parametrize("method", METHODS)
def test_wait_for_sentinels(mp, method):
    with connected() as (a, b):
        context = mp.get_context(method)
        processes = [context.Process(target=time.sleep, args=(seconds,)) for seconds in (60, 0)]
        for process in processes:
            process.start()
        assert mp.connection.wait([b, *(p.sentinel for p in processes)], 60) == [processes[1].sentinel]
        processes[0].terminate()
        assert mp.connection.wait([processes[0].sentinel], 60)
        for process in processes:
            process.join(30)
            process.close()
        a.close()


def test_wait_for_what_is_closed(mp):
    with connected(mp, mp) as (a, _):
        a.close()
        with pytest.raises((OSError, ValueError)):
            mp.connection.wait([a], 0)
    with pytest.raises((OSError, ValueError)):
        mp.connection.wait([-1], 0)


def test_wait_for_nothing():
    assert wait([]) == []
    start = time.monotonic()
    assert wait([], 0.05) == []
    assert time.monotonic() - start >= 0.045


def test_wait_during_signals(mp):
    count = []
    with connected(mp, mp) as (_, b), alarms(lambda *_: count.append(1)):
        start = time.monotonic()
        assert mp.connection.wait([b], 0.2) == []
        assert 0.19 <= time.monotonic() - start < 10
    assert count


# ---- the package


def test_it_is_loaded_when_it_is_asked_for():
    program = """
import sys, polyproc
assert "polyproc.connection" not in sys.modules and "socket" not in sys.modules
polyproc.connection.wait([], 0)
assert "socket" not in sys.modules and "multiprocessing" not in sys.modules and "ctypes" not in sys.modules
from polyproc import connection
assert connection is polyproc.connection is sys.modules["polyproc.connection"]
"""
    run(program)


def test_public_names():
    ours, theirs = polyproc.connection, multiprocessing.connection
    assert set(ours.__all__) <= set(theirs.__all__)
    for name in ("Connection", "Listener", "Client", "wait", "SocketListener", "SocketClient", "families", "default_family"):
        assert hasattr(ours, name)
    public = {name for name in dir(theirs.Connection) if name[0] != "_"}
    assert public <= set(dir(ours.Connection))
    assert ours.families == theirs.families
    assert ours.default_family == theirs.default_family
