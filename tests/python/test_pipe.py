"""Pipe() and its connections: what the standard library documents, and what it cannot do."""

from __future__ import annotations

import array
import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from queue import Full

import pytest

import polyproc
from polyproc import queues, reduction
from polyproc.connection import wait

METHODS = ("fork", "spawn", "forkserver")
LIMIT = 30.0


def echo(conn, other=None):
    if other is not None:
        other.close()
    while True:
        try:
            message = conn.recv()
        except EOFError:
            return
        conn.send(message)
        del message


def send_all(conn, messages):
    for message in messages:
        conn.send(message)


def receive(conn):
    assert conn.poll(LIMIT)
    return conn.recv()


def test_messages_of_every_kind_and_size():
    a, b = polyproc.Pipe()
    for obj in (None, 1, "text", (1, [2, {3: "x"}]), b"x" * 16384, b"y" * 100_000, ["z" * 3_000_000], range(5)):
        a.send(obj)
        assert b.poll()
        assert b.recv() == obj
        assert not b.poll()
    b.send_bytes(b"")
    assert a.recv_bytes() == b""
    a.close()
    b.close()


def test_bytes_and_their_arguments():
    a, b = polyproc.Pipe()
    data = bytes(range(100))
    for buf in (data, bytearray(data), memoryview(data), array.array("i", range(25))):
        raw = bytes(memoryview(buf).cast("B"))
        a.send_bytes(buf)
        assert b.recv_bytes() == raw
        a.send_bytes(buf, 10)
        assert b.recv_bytes() == raw[10:]
        a.send_bytes(buf, 10, 20)
        assert b.recv_bytes() == raw[10:30]
        a.send_bytes(buf, 100)
        assert b.recv_bytes() == b""
    for arguments in ((-1,), (101,), (0, -1), (0, 101), (90, 11)):
        with pytest.raises(ValueError):
            a.send_bytes(data, *arguments)
    with pytest.raises(TypeError):
        a.send_bytes("text")
    with pytest.raises(ValueError, match="negative maxlength"):
        b.recv_bytes(-1)
    room = array.array("i", [0] * 10)
    a.send_bytes(data[:8])
    assert b.recv_bytes_into(room, 4) == 8
    assert bytes(memoryview(room).cast("B"))[4:12] == data[:8]
    a.send_bytes(data)
    with pytest.raises(polyproc.BufferTooShort) as caught:
        b.recv_bytes_into(room)
    assert caught.value.args == (data,)
    for offset in (-1, 41):
        with pytest.raises(ValueError):
            b.recv_bytes_into(room, offset)
    big = b"v" * 300_000
    a.send_bytes(memoryview(big)[1:])
    large = bytearray(400_000)
    assert b.recv_bytes_into(large, 5) == len(big) - 1
    assert large[5 : 4 + len(big)] == big[1:]
    a.send_bytes(data)
    with pytest.raises(OSError, match="bad message length"):
        b.recv_bytes(99)
    with pytest.raises(OSError, match="write-only"):
        b.recv()
    b.send("the other direction")
    assert a.recv() == "the other direction"


def test_one_way_and_closed():
    reader, writer = polyproc.Pipe(duplex=False)
    assert (reader.readable, reader.writable, writer.readable, writer.writable) == (True, False, False, True)
    for use in (lambda: reader.send(1), lambda: reader.send_bytes(b"")):
        with pytest.raises(OSError, match="read-only"):
            use()
    for use in (writer.recv, writer.recv_bytes, writer.poll, lambda: writer.recv_bytes_into(bytearray(1))):
        with pytest.raises(OSError, match="write-only"):
            use()
    with writer:
        writer.send(1)
    assert writer.closed
    writer.close()
    assert reader.poll()
    assert reader.recv() == 1
    assert reader.poll()
    with pytest.raises(EOFError):
        reader.recv()
    with pytest.raises(EOFError):
        reader.recv_bytes()
    reader.close()
    for use in (reader.recv, reader.poll, reader.fileno, lambda: writer.send(1), reader.__enter__().poll):
        with pytest.raises(OSError, match="handle is closed"):
            use()


def test_broken_pipe():
    a, b = polyproc.Pipe()
    a.send(1)
    b.close()
    with pytest.raises(BrokenPipeError):
        a.send(2)
    with pytest.raises(EOFError):
        a.recv()


def test_what_cannot_be_pickled_leaves_the_pipe_whole():
    a, b = polyproc.Pipe()
    with pytest.raises(Exception, match="pickle|local object"):
        a.send(lambda: 0)
    a.send_bytes(b"no pickle")
    with pytest.raises(Exception):  # noqa: B017 (whatever pickle raises)
        b.recv()
    a.send("next")
    assert b.recv() == "next"


@pytest.mark.parametrize("method", METHODS)
def test_processes(method):
    ctx = polyproc.get_context(method)
    a, b = ctx.Pipe()
    process = ctx.Process(target=echo, args=(b, a))
    process.start()
    b.close()
    for obj in (1, "x" * 100_000, b"y" * 5_000_000):
        a.send(obj)
        assert receive(a) == obj
    other, theirs = ctx.Pipe()
    a.send(theirs)
    theirs.close()
    back = receive(a)
    back.send("through")
    assert receive(other) == "through"
    back.close()
    assert other.poll(LIMIT)
    with pytest.raises(EOFError):
        other.recv()
    a.close()
    process.join(LIMIT)
    assert process.exitcode == 0
    process.close()


def pool_task(conn):
    conn.send(os.getpid())


def test_sent_to_a_pool():
    reader, writer = polyproc.Pipe(False)
    with polyproc.get_context("spawn").Pool(1) as pool:
        pool.apply(pool_task, (writer,))
        assert receive(reader) != os.getpid()
    pool.join()


def test_sent_by_one_who_is_dead_by_then():
    ctx = polyproc.get_context("fork")
    a, b = ctx.Pipe()

    def child():
        reader, writer = ctx.Pipe(False)
        writer.send(b"w" * 1_000_000)
        b.send(reader)
        b.send(b"z" * 2_000_000)
        os.kill(os.getpid(), signal.SIGKILL)

    process = ctx.Process(target=child)
    process.start()
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    reader = receive(a)
    assert receive(a) == b"z" * 2_000_000
    assert receive(reader) == b"w" * 1_000_000
    with pytest.raises(EOFError):
        reader.recv()
    process.close()


def test_descriptors():
    a, b = polyproc.Pipe()
    reading, writing = os.pipe()
    reduction.send_handle(a, writing, None)
    a.send("after it")
    os.close(writing)
    fd = reduction.recv_handle(b)
    assert not os.get_inheritable(fd)
    os.write(fd, b"hello")
    os.close(fd)
    assert os.read(reading, 10) == b"hello"
    assert os.read(reading, 10) == b""
    os.close(reading)
    assert b.recv() == "after it"
    with pytest.raises(OSError):
        reduction.send_handle(a, reading, None)
    one, two = socket.socketpair()
    with one, two:
        a.send([one])
        (copy,) = b.recv()
        with copy:
            copy.send(b"by a copy")
            assert two.recv(20) == b"by a copy"


def test_the_descriptor_tells_the_truth():
    a, b = polyproc.Pipe()

    def readable():
        return bool(select.select([b], [], [], 0)[0])

    for first in (0, 1, 3):
        for _ in range(first):
            a.send("before it is asked for")
        for left in range(first, 0, -1):
            assert readable()
            b.recv()
            assert readable() == (left > 1)
        assert not readable()
        assert wait([b], 0) == []
    a.send(b"x" * 100_000)
    assert wait([a, b], LIMIT) == [b]
    b.recv()
    a.close()
    assert readable()
    b.close()


def test_the_descriptor_is_asked_for_while_somebody_waits():
    a, b = polyproc.Pipe()
    got = []
    thread = threading.Thread(target=lambda: got.extend(b.recv() for _ in range(2)))
    thread.start()
    fd = b.fileno()
    for i in range(3):
        a.send(i)
    thread.join(LIMIT)
    assert got == [0, 1]
    assert select.select([fd], [], [], LIMIT)[0] == [fd]
    assert b.recv() == 2
    assert not select.select([fd], [], [], 0)[0]


def test_asyncio():
    a, b = polyproc.Pipe()

    async def main():
        loop = asyncio.get_running_loop()
        got: asyncio.Queue[object] = asyncio.Queue()
        loop.add_reader(b.fileno(), lambda: got.put_nowait(b.recv()))
        for i in range(100):
            a.send(i)
            assert await asyncio.wait_for(got.get(), LIMIT) == i
        loop.remove_reader(b.fileno())

    asyncio.run(main())


def test_poll_waits_as_long_as_it_is_told():
    a, b = polyproc.Pipe()
    began = time.monotonic()
    assert not b.poll(0.15)
    assert time.monotonic() - began >= 0.15
    assert not b.poll(-1)
    timer = threading.Timer(0.05, a.send, ("there",))
    timer.start()
    assert b.poll(LIMIT)
    assert b.recv() == "there"
    timer.join()
    threading.Timer(0.05, a.close).start()
    assert b.poll(None)


def test_a_full_pipe_waits_and_a_signal_handler_runs_meanwhile():
    a, b = polyproc.Pipe()
    ran = []

    def handler(number, frame):
        ran.append(number)
        if len(ran) == 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for call in (b.recv, lambda: [a.send(b"x" * 1000) for _ in range(1000)]):
            ran.clear()
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            with pytest.raises(KeyboardInterrupt):
                call()
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    count = 0
    while b.poll():
        assert b.recv() == b"x" * 1000
        count += 1
    assert 0 < count < 1000


@pytest.mark.parametrize("size", [10, 3000, 40_000])
def test_many_senders_and_receivers(size):
    ctx = polyproc.get_context("fork")
    a, b = ctx.Pipe()
    senders = [
        ctx.Process(target=send_all, args=(a, [(who, i, "x" * size) for i in range(300)])) for who in range(3)
    ]
    for process in senders:
        process.start()
    last = [-1] * 3
    for _ in range(900):
        who, i, text = receive(b)
        assert i == last[who] + 1
        assert len(text) == size
        last[who] = i
    for process in senders:
        process.join(LIMIT)
        assert process.exitcode == 0
        process.close()
    assert not b.poll()


def test_end_when_the_last_holder_is_killed():
    ctx = polyproc.get_context("fork")
    a, b = ctx.Pipe()
    process = ctx.Process(target=signal.pause)
    process.start()
    b.close()
    assert not a.poll(0.05)
    process.kill()
    with pytest.raises(EOFError):
        a.recv()
    with pytest.raises(BrokenPipeError):
        a.send(1)
    process.join(LIMIT)
    process.close()


# What the reader gets, and whether that is late, by what the others do: see pipe_deserted.py.
DESERTED = {
    "alone": "EOF False",
    "method": "EOF False",
    "middle": "EOF False",
    "waiting threads": "EOF False",
    "thread that ends": "EOF False",
    "thread": "late True",
    "alarm": "late True",
    "interrupt": "late True",
    "limited": "late True",
    "other process": "EOF True",
    "raw fork": "late True",
    "on its way": "late True",
    "sleep": "late True",
    "native thread": "late True",
    "after a pool": "EOF False",
}
if os.geteuid() == 0:  # who else may mount /proc so that it hides processes
    DESERTED["hidden"] = "late True"


@pytest.mark.slow
def test_a_reader_that_all_wait_for_is_told_and_no_other():
    program = os.path.join(os.path.dirname(__file__), "pipe_deserted.py")
    running = {
        case: subprocess.Popen([sys.executable, program, case], stdout=subprocess.PIPE, text=True) for case in DESERTED
    }
    try:
        got = {case: process.communicate(timeout=2 * LIMIT)[0].strip() for case, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
            process.stdout.close()
    assert got == DESERTED


def unsent_by(how, queue, pipe_end, obj):
    """Fail to send obj."""
    if how == "broken":
        with pytest.raises(OSError):
            pipe_end.send(obj)
    elif how == "pickle":
        with pytest.raises(Exception, match="pickle|local object"):
            queue.put((obj, lambda: None))
    else:
        args = {"full": (obj, False), "keyword": (obj,), "timeout": (obj, True, 0)}[how]
        with pytest.raises(Full):
            queue.put(*args, **({"block": False} if how == "keyword" else {}))


@pytest.mark.parametrize("how", ["full", "keyword", "timeout", "pickle", "broken"])
def test_what_was_not_sent_is_taken_back(how):
    """A message that is not sent keeps nothing of what its pickle has exported: 5,461 descriptors may be on their way at most."""
    queue = polyproc.Queue(1)
    queue.put("full")
    receiver, sender = polyproc.Pipe(duplex=False)
    receiver.close()
    end, other = polyproc.Pipe()
    lock = polyproc.Lock()
    for _ in range(6000):
        unsent_by(how, queue, sender, (end, lock, queue))
    queue.get()
    queue.put((end, lock))
    end.close()
    sent, its_lock = queue.get()
    sent.send(5)
    assert other.recv() == 5
    with its_lock:
        assert not lock.acquire(block=False)
    # Nobody but these has the end.
    sent.close()
    with pytest.raises(EOFError):
        other.recv()
    other.close()


def test_what_was_pickled_before_is_not_taken_back():
    """A pickle that the program has made itself, and sends as bytes, is its own: it may be sent later."""
    queue = polyproc.Queue(1)
    queue.put([1])
    end, other = polyproc.Pipe()
    pickled = bytes(reduction.ForkingPickler.dumps(end))
    for message in (pickled, [pickled], {"of": pickled}):
        with pytest.raises(Full):
            queue.put(message, False)
    queue.get()
    queue.put([pickled])
    end.close()
    sent = reduction.ForkingPickler.loads(queue.get()[0])
    sent.send("there")
    assert other.recv() == "there"


class Tells:
    """Something that cannot be pickled, and has sent a message of its own when that turns out."""

    def __init__(self, send):
        self.send = send

    def __reduce__(self):
        self.send(polyproc.Lock())
        raise ValueError("no pickle")


def test_what_a_reducer_has_sent_is_not_taken_back():
    queue, other = polyproc.Queue(), polyproc.Queue()
    receiver, sender = polyproc.Pipe(duplex=False)
    ours, theirs = socket.socketpair()
    with polyproc.connection.Connection(ours.detach()) as a, polyproc.connection.Connection(theirs.detach()) as b:
        queue.put(polyproc.Lock())
        queue.get()
        ways = {queue.put: queue.get, sender.send: receiver.recv, a.send: b.recv}
        for send, receive in ways.items():
            for outer in (other.put, *ways):
                with pytest.raises(ValueError, match="no pickle"):
                    outer((polyproc.Lock(), Tells(send)))
                with receive():
                    pass


def test_an_end_is_a_connection():
    a, b = polyproc.Pipe()
    assert isinstance(a, polyproc.connection.Connection)
    # The challenge goes over a pipe as messages, not over its descriptor.
    thread = threading.Thread(target=polyproc.connection.answer_challenge, args=(b, b"key"))
    thread.start()
    polyproc.connection.deliver_challenge(a, b"key")
    thread.join(LIMIT)
    assert not thread.is_alive()


def test_reducers_of_connections_are_those_of_pipes():
    program = """if True:
        import polyproc
        from polyproc.connection import Connection
        from polyproc.reduction import ForkingPickler
        a, b = polyproc.Pipe()
        ForkingPickler.register(Connection, lambda conn: (str, ("a connection",)))
        queue = polyproc.Queue()
        queue.put(a)
        print(queue.get())
        a.send([b])
        print(b.recv()[0])
        print(ForkingPickler.loads(ForkingPickler.dumps(a)))
    """
    got = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert got.stdout.split("\n")[:3] == ["a connection"] * 3, got.stderr


class Stop(Exception):
    pass


@pytest.mark.parametrize("how", ["queue", "pipe"])
def test_what_was_sent_before_an_interruption_is_not_taken_back(how):
    """Whenever a signal handler raises: a message that was sent nevertheless has what it was sent with."""
    queue = polyproc.Queue()
    receiver, sender = polyproc.Pipe(duplex=False)
    end, other = polyproc.Pipe()
    armed = []
    stopped = 0

    def stop(number, frame):
        if armed:
            armed.clear()
            raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for i in range(2000):
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + i % 100 * 0.000002)
                if how == "pipe":
                    sender._slow_send(end)
                else:
                    # As when there was no room at once.
                    polyproc.queues._Base._slow_put(queue, end, True, None, bytes(queues._dumps(end)))
                armed.clear()
            except Stop:
                stopped += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                armed.clear()
            while receiver.poll() if how == "pipe" else not queue.empty():
                (receiver.recv() if how == "pipe" else queue.get()).close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stopped
    end.close()
    other.close()
