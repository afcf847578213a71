"""Queue.fileno and Queue._reader: waiting for queues beside other things."""

import asyncio
import concurrent.futures
import os
import queue
import select
import signal
import threading
import time
import weakref

import pytest

import polyproc
from polyproc import connection, queues, reduction, util

METHODS = ["fork", "spawn", "forkserver"]
PATIENCE = 60.0


def readable(fd, timeout):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    found = poll.poll(timeout * 1000)
    assert found in ([], [(fd if isinstance(fd, int) else fd.fileno(), select.POLLIN)])
    return bool(found)


def put_numbers(q, first, count):
    for i in range(first, first + count):
        q.put(i)


def put_until_killed(q, begun):
    i = 0
    while True:
        q.put(i)
        begun.set()
        i += 1


def echo(source, target):
    while (item := source.get()) is not None:
        target.put(item)


def echo_by_wait(source, target):
    while True:
        assert connection.wait([source._reader], PATIENCE) == [source._reader]
        try:
            item = source.get_nowait()
        except queue.Empty:
            continue
        if item is None:
            break
        target.put(item)


@pytest.mark.parametrize("make", ["Queue", "JoinableQueue"])
def test_readable_while_there_is_something(make):
    q = getattr(polyproc, make)()
    fd = q.fileno()
    assert not readable(fd, 0)
    for i in range(200):
        q.put(i)
        assert readable(fd, PATIENCE)
        q.put(i)
        assert q.get() == i
        assert readable(fd, 0)
        assert q.get(timeout=1) == i
        assert not readable(fd, 0)
        assert q.fileno() == fd
    # Asking makes it so at once, as select does with an object that has fileno.
    for _ in range(200):
        q.put(1)
        assert select.select([q], [], [], 0)[0] == [q]
        q.get()
        assert select.select([q], [], [], 0)[0] == []
    q.close()
    with pytest.raises(ValueError, match="closed"):
        q.fileno()


def test_simple_queue():
    q = polyproc.SimpleQueue()
    assert connection.wait([q], 0) == []
    q.put(1)
    assert connection.wait([q, q._reader], 0) == [q, q._reader]
    assert q._reader.poll()
    assert q._reader.recv() == 1
    assert not q._reader.poll()
    reader = q._reader
    q.close()
    assert reader.closed
    assert q._reader.closed
    assert q._writer.closed
    with pytest.raises(OSError, match="closed"):
        q.fileno()
    with pytest.raises(OSError, match="closed"):
        reader.fileno()


def test_looks_that_take_nothing_clear_it():
    q = polyproc.Queue()
    other = polyproc.Queue()
    process = polyproc.get_context("fork").Process(target=echo, args=(q, other))
    fd = q.fileno()
    process.start()
    q.put(1)
    assert other.get(timeout=PATIENCE) == 1
    assert q.empty()
    assert not readable(fd, 0)
    q.put(None)
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_beside_other_things():
    q = polyproc.Queue()
    a, b = polyproc.Pipe()
    process = polyproc.Process(target=put_numbers, args=(q, 0, 3))
    process.start()
    got = []
    deadline = time.monotonic() + PATIENCE
    while len(got) < 3 or process.exitcode is None:
        for ready in connection.wait([q, a, process.sentinel], deadline - time.monotonic()):
            if ready is q:
                try:
                    got.append(q.get_nowait())
                except queue.Empty:
                    pass
            else:
                assert ready == process.sentinel
                process.join()
        assert time.monotonic() < deadline
    assert got == [0, 1, 2]
    b.send(1)
    assert connection.wait([q, a], PATIENCE) == [a]


def test_asyncio():
    q = polyproc.Queue()
    process = polyproc.Process(target=put_numbers, args=(q, 0, 500))

    async def collect():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        got = []

        def ready():
            try:
                got.append(q.get_nowait())
            except queue.Empty:
                return
            if len(got) == 500:
                done.set_result(None)

        loop.add_reader(q.fileno(), ready)
        await asyncio.wait_for(done, PATIENCE)
        loop.remove_reader(q.fileno())
        return got

    process.start()
    assert asyncio.run(collect()) == list(range(500))
    process.join(PATIENCE)
    assert process.exitcode == 0


@pytest.mark.parametrize("method", METHODS)
def test_pollers_in_both_processes_miss_nothing(method):
    ctx = polyproc.get_context(method)
    there, back = ctx.Queue(), ctx.SimpleQueue()
    process = ctx.Process(target=echo_by_wait, args=(there, back))
    process.start()
    fd = back._reader.fileno()
    for i in range(1000):
        there.put(i)
        while True:
            assert readable(fd, PATIENCE)
            if not back.empty():
                break
        assert back.get() == i
    there.put(None)
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_many_putters_and_a_blocked_getter():
    q, taken = polyproc.Queue(7), polyproc.Queue()
    ctx = polyproc.get_context("fork")
    getter = ctx.Process(target=echo, args=(q, taken))
    putters = [ctx.Process(target=put_numbers, args=(q, 1000 * i, 1000)) for i in range(3)]
    for process in (getter, *putters):
        process.start()
    got = []
    deadline = time.monotonic() + PATIENCE
    while len(got) < 3000:
        assert time.monotonic() < deadline
        for ready in connection.wait([q, taken], PATIENCE):
            try:
                got.append(ready.get_nowait())
            except queue.Empty:
                pass
    assert sorted(got) == list(range(3000))
    q.put(None)
    for process in (getter, *putters):
        process.join(PATIENCE)
        assert process.exitcode == 0


def test_killed_putters():
    ctx = polyproc.get_context("fork")
    q = ctx.Queue(20)
    fd = q.fileno()
    for round in range(20):
        begun = ctx.Event()
        putter = ctx.Process(target=put_until_killed, args=(q, begun))
        putter.start()
        assert begun.wait(PATIENCE)
        expected = 0
        while expected < round * 10:
            assert readable(fd, PATIENCE)
            assert q.get_nowait() == expected
            expected += 1
        os.kill(putter.pid, signal.SIGKILL)
        putter.join(PATIENCE)
        while q.qsize():
            assert readable(fd, PATIENCE)
            assert q.get_nowait() == expected
            expected += 1
        assert not readable(fd, 0)


def poll_inherited(q, fd, back):
    assert readable(fd, PATIENCE)  # until the first look
    with pytest.raises(queue.Empty):
        q.get_nowait()
    assert not readable(fd, 0)
    back.put("ready")
    for i in range(100):
        while True:
            assert readable(fd, PATIENCE)
            try:
                assert q.get_nowait() == i
                break
            except queue.Empty:
                pass
        back.put(i)


def test_a_forked_child_has_a_descriptor_of_its_own():
    ctx = polyproc.get_context("fork")
    q, back = ctx.Queue(), ctx.Queue()
    process = ctx.Process(target=poll_inherited, args=(q, q.fileno(), back))
    process.start()
    assert back.get(timeout=PATIENCE) == "ready"
    for i in range(100):
        q.put(i)
        assert back.get(timeout=PATIENCE) == i
        assert q.empty()  # the parent looks, and clears its own
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_named():
    name = f"wait-test-{os.getpid()}"
    q = polyproc.Queue(name=name)
    try:
        fd = q.fileno()
        process = polyproc.Process(target=put_numbers, args=(q, 5, 1))
        process.start()
        assert readable(fd, PATIENCE)
        assert q.get_nowait() == 5
        process.join(PATIENCE)
    finally:
        q.unlink()


def test_nothing_is_left_behind():
    def descriptors():
        paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum("eventfd" in os.readlink(path) for path in paths if os.path.lexists(path))

    def threads():
        return len(os.listdir("/proc/self/task"))

    before = descriptors(), threads()
    for _ in range(20):
        q = polyproc.Queue()
        q.put(1)
        reader = q._reader
        reader.fileno()
        del q, reader
    deadline = time.monotonic() + PATIENCE
    while (descriptors(), threads()) != before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_ends_are_connections():
    q = polyproc.Queue()
    reader, writer = q._reader, q._writer
    assert reader is q._reader
    assert (reader.readable, reader.writable, writer.readable, writer.writable) == (True, False, False, True)
    writer.send({"a": 1})
    assert q.get() == {"a": 1}
    writer.send_bytes(reduction.ForkingPickler.dumps("sent"))
    assert q.get() == "sent"
    q.put("text")
    assert reader.poll(PATIENCE)
    assert b"text" in reader.recv_bytes()
    large = os.urandom(100_000)
    q.put_bytes(large)
    assert reader.recv_bytes() == large
    assert not reader.poll(0.01)
    timer = threading.Timer(0.05, q.put, ("late",))
    timer.start()
    assert reader.poll(PATIENCE)
    assert reader.recv() == "late"
    with pytest.raises(OSError, match="write-only"):
        writer.recv()
    with pytest.raises(OSError, match="read-only"):
        reader.send(1)
    reader.close()
    assert q._reader.closed
    q.put(1)
    assert q.get() == 1


def send_by_end(writer, text):
    writer.send(text)


@pytest.mark.parametrize("method", METHODS)
def test_an_end_can_be_sent(method):
    ctx = polyproc.get_context(method)
    q = ctx.Queue()
    process = ctx.Process(target=send_by_end, args=(q._writer, "by the end"))
    process.start()
    assert q.get(timeout=PATIENCE) == "by the end"
    process.join(PATIENCE)
    assert process.exitcode == 0


class Ends(queues.SimpleQueue):
    """As loky's: what travels are the ends."""

    def put(self, obj):
        with self._wlock:
            self._writer.send_bytes(reduction.ForkingPickler.dumps(("own", obj)))

    def __getstate__(self):
        return self._reader, self._writer, self._rlock, self._wlock

    def __setstate__(self, state):
        self._reader, self._writer, self._rlock, self._wlock = state


@pytest.mark.parametrize("method", METHODS)
def test_a_subclass_that_sends_its_ends(method):
    ctx = polyproc.get_context(method)
    there, back = Ends(ctx=ctx), Ends(ctx=ctx)
    process = ctx.Process(target=echo, args=(there, back))
    process.start()
    there.put(1)
    assert connection.wait([back._reader], PATIENCE) == [back._reader]
    assert back._reader.recv() == ("own", ("own", 1))
    process.terminate()
    process.join(PATIENCE)


class Fed(queues.Queue):
    """As loky's: a thread pickles what is put, in its own way."""

    def __getstate__(self):
        return self._maxsize, self._reader, self._writer, self._rlock, self._wlock, self._sem, self._opid

    def __setstate__(self, state):
        self._maxsize, self._reader, self._writer, self._rlock, self._wlock, self._sem, self._opid = state
        self._reset()

    def _start_thread(self):
        self._buffer.clear()
        args = self._buffer, self._notempty, self._send_bytes, self._wlock, self._writer.close
        args += self._on_queue_feeder_error, self._sem
        self._thread = threading.Thread(target=Fed._feed, args=args, daemon=True)
        self._thread.start()
        self._jointhread = util.Finalize(self._thread, Fed._finalize_join, [weakref.ref(self._thread)], exitpriority=-5)
        self._close = util.Finalize(self, Fed._finalize_close, [self._buffer, self._notempty], exitpriority=10)

    @staticmethod
    def _feed(buffer, notempty, send_bytes, lock, close, onerror, sem):
        while True:
            with notempty:
                while not buffer:
                    notempty.wait()
            while buffer:
                obj = buffer.popleft()
                if obj is queues._sentinel:
                    close()
                    return
                try:
                    data = reduction.ForkingPickler.dumps(("fed", obj))
                    with lock:
                        send_bytes(data)
                except Exception as e:
                    sem.release()
                    onerror(e, obj)

    def _on_queue_feeder_error(self, e, obj):
        self.errors.append(e)

    errors: list = []


@pytest.mark.parametrize("method", METHODS)
def test_a_subclass_with_a_feeder(method):
    ctx = polyproc.get_context(method)
    q, back = Fed(3, ctx=ctx), ctx.SimpleQueue()
    process = ctx.Process(target=echo_fed, args=(q, back))
    for i in range(3):
        q.put(i)
    assert q.full()
    assert q.qsize() == 3
    with pytest.raises(queue.Full):
        q.put(3, timeout=0.01)
    process.start()
    for i in range(3):
        assert back.get() == ("fed", i)
    for i in range(50):
        q.put(i)
        assert back.get() == ("fed", i)
    q.put(lambda: None)  # cannot be pickled, and gives its place back
    q.put(None)
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert len(Fed.errors) == 1
    Fed.errors.clear()
    q.close()
    q.join_thread()
    assert not q._thread.is_alive()


def echo_fed(source, target):
    while (item := source.get()) != ("fed", None):
        target.put(item)


def square(x):
    return x * x


def test_process_pool_executor_waits_for_our_queue():
    # Its queue of calls is the standard library's, and goes to a forked process only.
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=polyproc.get_context("fork")) as executor:
        assert list(executor.map(square, range(50), timeout=PATIENCE)) == [x * x for x in range(50)]
