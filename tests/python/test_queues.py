"""Queues: first what the standard library promises, on both packages; then what only this package does.

A case of the first part that fails for the standard library is wrong.
"""

from __future__ import annotations

import array
import copy
import ctypes
import inspect
import multiprocessing
import multiprocessing.queues
import os
import pickle
import queue as threads_queue
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from queue import Empty, Full

import pytest
import queue_tasks as tasks
from conftest import each_method

import polyproc
import polyproc.queues

MODULES = {"stdlib": multiprocessing, "polyproc": polyproc}
METHODS = ["fork", "spawn", "forkserver"]
KINDS = ["Queue", "JoinableQueue", "SimpleQueue"]
PATIENCE = 30  # seconds


@pytest.fixture(params=each_method(*METHODS))
def ctx(request):
    module, method = request.param
    return MODULES[module].get_context(method)


@pytest.fixture(params=METHODS)
def ours(request):
    return polyproc.get_context(request.param)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def started():
    """Start processes that must be over, and well, at the end of the test."""
    processes = []

    def start(ctx, target, *args):
        process = ctx.Process(target=target, args=args)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.join(PATIENCE)
        alive = process.is_alive()
        if alive:
            process.kill()
            process.join()
        assert not alive, process
        process.close()


def pause(queue, seconds=0.1):
    """The standard library's feeder thread takes a moment."""
    if type(queue).__module__.startswith("multiprocessing"):
        time.sleep(seconds)


# ---- both packages


def test_there_and_back(ctx, kind, started):
    questions, answers = getattr(ctx, kind)(), getattr(ctx, kind)()
    items = [1, "two", b"3" * 200_000, {"four": [5.5, None]}, array.array("i", range(1000)), "", b"", "s" * 40_000, (1 << 100,)]
    process = started(ctx, tasks.echo, questions, answers)
    for item in items:
        questions.put(item)
        assert answers.get() == item
    tasks.put_all(questions, items)
    assert [answers.get() for _ in items] == items
    questions.put(None)
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_order_and_completeness(ctx, started):
    queue, done = ctx.Queue(10), ctx.Queue()
    producers = [started(ctx, tasks.produce, queue, name, 300) for name in "ab"]
    consumers = [started(ctx, tasks.consume, queue, done) for _ in range(2)]
    for process in producers:
        process.join(PATIENCE)
    for _ in consumers:
        queue.put(None)
    taken = [done.get(timeout=PATIENCE) for _ in consumers]
    for part in taken:
        for name in "ab":
            own = [i for n, i in part if n == name]
            assert own == sorted(own)
    assert sorted(sum(taken, [])) == [(n, i) for n in "ab" for i in range(300)]


def test_bounds(ctx):
    queue = ctx.Queue(maxsize=2)
    assert queue.empty()
    assert not queue.full()
    queue.put(1)
    queue.put(2, True, 1.0)
    assert queue.full()
    assert queue.qsize() == 2
    pause(queue)
    assert not queue.empty()
    for arguments in [(3, False), (3, False, 5.0), (3, True, 0), (3, True, -1), (3, True, 0.05)]:
        with pytest.raises(Full):
            queue.put(*arguments)
    with pytest.raises(threads_queue.Full):
        queue.put_nowait(3)
    start = time.monotonic()
    with pytest.raises(Full):
        queue.put(3, timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 5
    assert [queue.get(), queue.get(True, 5)] == [1, 2]
    for arguments in [(False,), (False, 5.0), (True, 0), (True, -1), (True, 0.05)]:
        with pytest.raises(Empty):
            queue.get(*arguments)
    with pytest.raises(threads_queue.Empty):
        queue.get_nowait()
    start = time.monotonic()
    with pytest.raises(Empty):
        queue.get(timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 5
    queue.put(obj=4, block=True, timeout=None)
    assert queue.get(block=True, timeout=5) == 4


@pytest.mark.parametrize("maxsize", [0, -1])
def test_no_bound(ctx, maxsize):
    queue = ctx.Queue(maxsize)
    for i in range(1000):
        queue.put(i, timeout=1)
    assert not queue.full()
    assert queue.qsize() == 1000
    assert [queue.get(timeout=PATIENCE) for _ in range(1000)] == list(range(1000))
    assert queue.qsize() == 0


def test_waiting_for_room(ctx):
    queue = ctx.Queue(1)
    queue.put(1)
    thread = threading.Thread(target=queue.put, args=(2,))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    assert queue.get(timeout=PATIENCE) == 1
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert queue.get(timeout=PATIENCE) == 2


def test_closed(ctx):
    queue = ctx.Queue()
    with pytest.raises(AssertionError):
        queue.join_thread()
    queue.cancel_join_thread()
    queue.put(1)
    assert queue.get(timeout=PATIENCE) == 1
    queue.close()
    queue.close()
    queue.join_thread()
    for call in (lambda: queue.put(1), queue.get, queue.get_nowait, lambda: queue.put_nowait(1)):
        with pytest.raises(ValueError, match="is closed"):
            call()
    simple = ctx.SimpleQueue()
    assert simple.empty()
    simple.put(1)
    assert not simple.empty()
    simple.close()
    simple.close()
    for call in (lambda: simple.put(1), simple.get, simple.empty):
        with pytest.raises(OSError, match="closed"):
            call()


def test_tasks(ctx, started):
    queue, answers = ctx.JoinableQueue(), ctx.SimpleQueue()
    queue.join()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()
    for _ in range(2):
        started(ctx, tasks.work_off, queue, answers)
    for i in range(20):
        queue.put(i)
    queue.join()
    assert sorted(answers.get() for _ in range(20)) == [i * i for i in range(20)]
    for _ in range(2):
        queue.put(None)
    queue.join()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def test_names_and_signatures():
    theirs_module, ours_module = multiprocessing.queues, polyproc.queues
    for name in KINDS:
        theirs, ours = getattr(theirs_module, name), getattr(ours_module, name)
        public = {n for n in dir(theirs) if n[0] != "_"}
        assert public <= set(dir(ours))
        more = {"fileno", "name", "unlink"} | (set() if name == "SimpleQueue" else {"put_bytes"})
        assert {n for n in dir(ours) if n[0] != "_"} - public == more
        for each in public | {"__init__"}:
            have, want = (
                {p.name: p.default for p in inspect.signature(getattr(c, each)).parameters.values()} for c in (ours, theirs)
            )
            if name == "SimpleQueue" and each in ("put", "get"):
                assert set(have) >= set(want)  # the C method behind it takes block and timeout too
            else:
                assert {k: v for k, v in have.items() if (each, k) != ("__init__", "name")} == want, (name, each)
    assert isinstance(ours_module.Queue[int], types.GenericAlias)
    assert isinstance(ours_module.SimpleQueue[int], types.GenericAlias)


# ---- this package alone


def test_put_pickles_at_once():
    queue = polyproc.Queue()
    with pytest.raises(ArithmeticError, match="odd"):
        queue.put([tasks.Odd()])
    with pytest.raises((pickle.PicklingError, AttributeError)):
        queue.put(lambda: None)
    mutable = [1]
    queue.put(mutable)
    mutable.append(2)
    assert queue.get() == [1]
    assert queue.empty()


REGISTERED = """
import functools, multiprocessing.connection, socket, sys
import polyproc
from multiprocessing.reduction import ForkingPickler as Theirs
from polyproc.reduction import ForkingPickler as Ours

class A: pass
class B: pass
class C: pass

queue = polyproc.Queue()
queue.put([A(), functools.partial(int, "7"), "x".join])
a, seven, join = queue.get()
assert isinstance(a, A) and seven() == 7 and join("ab") == "axb"
Theirs.register(A, lambda a: (str, ("A",)))
queue.put([A()]); assert queue.get() == ["A"]
Theirs.register(A, lambda a: (str, ("A again",)))
queue.put(A()); assert queue.get() == "A again"
Ours.register(A, lambda a: (str, ("ours",)))
queue.put((A(), B())); assert queue.get()[0] == "ours"
import copyreg
copyreg.pickle(B, lambda b: (str, ("B",)))
queue.put((A(), B())); assert queue.get() == ("ours", "B")
class Nested:
    def __reduce__(self):
        queue.put(A())  # a put within a put
        return str, ("nested",)
queue.put([Nested()]); assert (queue.get(), queue.get()) == ("ours", ["nested"])
for i in range(100):
    queue.put({"i": [i, C.__name__]}); assert queue.get() == {"i": [i, "C"]}
try:
    queue.put([lambda: 1])
except Exception as e:
    pass
else:
    sys.exit("pickled a lambda")
queue.put([1]); assert queue.get() == [1]
"""


def test_registered_reducers():
    code = [sys.executable, "-c", REGISTERED]
    subprocess.run(code, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)), check=True, timeout=60)


def test_exact_sizes():
    queue = polyproc.Queue(3)
    for i in range(3):
        assert (queue.qsize(), queue.empty(), queue.full()) == (i, i == 0, False)
        queue.put(i)
    assert (queue.qsize(), queue.full()) == (3, True)


def test_join_before_drain(ours):
    queue = ours.Queue()
    process = ours.Process(target=queue.put, args=(b"x" * 10_000_000,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    process.close()
    assert queue.get(timeout=0) == b"x" * 10_000_000


@pytest.mark.parametrize("size", [10, 16_000_000])
def test_producer_killed_after_put(ours, size):
    queue = ours.Queue()
    item = b"y" * size
    process = ours.Process(target=tasks.put_and_die, args=(queue, item))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    assert queue.get_nowait() == item


def test_maker_of_a_queue_killed_after_put(ours, started):
    queue, answers = ours.Queue(), ours.SimpleQueue()
    process = ours.Process(target=tasks.put_new_queue_and_die, args=(queue,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    # Whoever takes it attaches only now.
    taken = queue.get_nowait()
    started(ours, tasks.echo, taken, answers)
    assert answers.get() == array.array("d", [1.5]) * 2_000_000
    assert answers.get() == "second"
    taken.put(None)


def test_sender_of_sockets_killed_after_put(ours):
    queue = ours.Queue()
    process = ours.Process(target=tasks.put_sockets_and_die, args=(queue,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    plain, connection = queue.get_nowait()
    with plain, connection:
        assert (plain.recv(100), plain.recv(100)) == (b"sent before", b"")
        assert connection.recv() == "as well"
        with pytest.raises(EOFError):
            connection.recv()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_sockets_as_pool_tasks(method):
    here, there = socket.socketpair()
    with here, there, polyproc.get_context(method).Pool(1) as pool:
        assert pool.apply(tasks.send_to, (there, b"hi")) == 2
        assert here.recv(10) == b"hi"
    pool.join()


def test_sent_anywhere(ours, kind, started):
    outer, answers = ours.Queue(), ours.Queue()
    started(ours, tasks.echo, outer, answers)
    inner = getattr(ours, kind)()
    outer.put([inner, {"again": inner}])
    first, second = answers.get(timeout=PATIENCE)
    assert type(first) is type(inner)
    assert second["again"] is first
    first.put("through the copy")
    assert inner.get() == "through the copy"
    outer.put(None)
    again = pickle.loads(pickle.dumps(inner))
    copied = copy.copy(inner)
    again.put(1)
    assert copied.get() == 1


@pytest.mark.parametrize("workers", ["fork", "spawn", "forkserver"])
def test_pool_tasks(workers):
    queue = polyproc.Queue()
    with polyproc.get_context(workers).Pool(2) as pool:
        assert pool.starmap(tasks.put_then_get, [(queue, i) for i in range(20)]) == [True] * 20
        assert sorted(queue.get(timeout=PATIENCE) for _ in range(20)) == list(range(20))
        made = pool.apply(tasks.new_queue, ("from a worker",))
    pool.join()
    assert made.get() == "from a worker"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_made_after_the_pool(method, tmp_path):
    """Its workers are of the same family, though nothing was there to share when they started."""
    program = """
import sys
import polyproc

def use(queue, lock):
    with lock:
        queue.put("from a worker")

if __name__ == "__main__":
    polyproc.set_start_method(sys.argv[1])
    with polyproc.Pool(1) as pool:
        pool.apply(abs, (1,))
        queue, lock = polyproc.Queue(), polyproc.Lock()
        pool.apply(use, (queue, lock))
        print(queue.get(timeout=20))
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    run = subprocess.run([sys.executable, str(path), method], capture_output=True, text=True, timeout=PATIENCE)
    assert (run.stdout, run.returncode) == ("from a worker\n", 0), run.stderr


def test_descriptors_closed_and_used_again(tmp_path):
    """A daemon closes all descriptors there are. The files that it opens then, under the same numbers, are its own."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"v" * 30_000_000)
    queue = polyproc.Queue()
    for _ in range(20):
        queue.put(b"x" * 1_000_000)
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, 256)
            mine = [os.open(victim, os.O_RDWR) for _ in range(20)]
            for _ in range(20):
                assert len(queue.get_nowait()) == 1_000_000
            for size in [1, 5_000_000, 40_000_000] * 2:
                queue.put(b"y" * size)
                assert queue.get_nowait() == b"y" * size
            queue.put("works")
            os._exit(len(mine) - 20)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert queue.get_nowait() == "works"
    assert victim.read_bytes() == b"v" * 30_000_000


def test_subclass_with_state(ours, started):
    queue, answers = Labelled("here", ctx=ours), ours.SimpleQueue()
    started(ours, tasks.echo, answers, queue)
    answers.put(queue)
    back = queue.get(timeout=PATIENCE)
    assert (type(back), back.label) == (Labelled, "here")
    answers.put(None)


class Labelled(polyproc.queues.Queue):
    def __init__(self, label, *, ctx):
        super().__init__(ctx=ctx)
        self.label = label

    def __getstate__(self):
        return (*super().__getstate__(), self.label)

    def __setstate__(self, state):
        super().__setstate__(state[:-1])
        self.label = state[-1]


def test_feeder_error_hook():
    told = []

    class Told(polyproc.queues.Queue):
        @staticmethod
        def _on_queue_feeder_error(e, obj):
            told.append((type(e), type(obj)))

    queue = Told(ctx=polyproc.get_context())
    queue.put(tasks.Odd())
    queue.put(True)
    assert queue.get(timeout=PATIENCE) is True
    assert told == [(ArithmeticError, tasks.Odd)]


@pytest.fixture
def name():
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    if os.path.exists(f"/dev/shm/pp.q.{name}"):
        os.unlink(f"/dev/shm/pp.q.{name}")


STRANGER = """
import sys
import polyproc
questions, answers = polyproc.Queue(name=sys.argv[1]), polyproc.Queue(name=sys.argv[1] + "-answers")
for item in iter(questions.get, None):
    answers.put((item, questions.name))
"""


def test_named(name):
    questions = polyproc.Queue(3, name=name)
    answers = polyproc.Queue(name=name + "-answers")
    try:
        assert (questions.name, polyproc.Queue().name) == (name, None)
        assert os.stat(f"/dev/shm/pp.q.{name}").st_mode & 0o777 == 0o600
        stranger = subprocess.Popen([sys.executable, "-c", STRANGER, name], env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
        for item in (1, b"x" * 5_000_000):
            questions.put(item)
            assert answers.get(timeout=PATIENCE) == (item, name)
        questions.put(None)
        assert stranger.wait(PATIENCE) == 0
        other = polyproc.JoinableQueue(name=name)  # whatever kind, whatever maxsize: it is there
        for i in range(3):
            other.put(i)
        with pytest.raises(Full):
            other.put_nowait(3)
        assert questions.full()
        assert pickle.loads(pickle.dumps(questions)).get() == 0
    finally:
        questions.unlink()
        answers.unlink()
    with pytest.raises(FileNotFoundError):
        questions.unlink()
    assert questions.get() == 1  # who has it goes on
    assert polyproc.Queue(name=name).empty()
    polyproc.Queue(name=name).unlink()
    with pytest.raises(ValueError, match="no name"):
        polyproc.Queue().unlink()


@pytest.mark.parametrize("bad", ["", "a/b", ".hidden", "x" * 201, "nul\0"])
def test_bad_names(bad):
    with pytest.raises(ValueError, match="name"):
        polyproc.Queue(name=bad)


def test_a_name_that_is_no_string():
    with pytest.raises(TypeError, match="name must be a str, not int"):
        polyproc.Queue(name=5)


def test_a_name_that_is_not_this_users_alone():
    name = f"test-foreign-{os.getpid()}"
    path = f"/dev/shm/pp.q.{name}"
    polyproc.Queue(name=name).put("kept")
    try:
        os.chmod(path, 0o666)
        with pytest.raises(PermissionError, match="others have access"):
            polyproc.Queue(name=name)
        os.chmod(path, 0o600)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
            with pytest.raises(PermissionError, match="belongs to user 65534"):
                polyproc.Queue(name=name)
            os.chown(path, 0, 0)
        assert polyproc.Queue(name=name).get(timeout=PATIENCE) == "kept"
    finally:
        os.unlink(path)



def test_named_queue_whose_users_were_killed(name):
    process = polyproc.get_context("spawn").Process(target=tasks.put_and_die, args=(polyproc.Queue(name=name), "kept"))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    queue = polyproc.Queue(name=name)
    assert queue.get_nowait() == "kept"
    queue.unlink()


@pytest.mark.parametrize("call", ["queue.get()", "queue.get(timeout=60)", "full.put(2)", "tasks.join()", "simple.get()"])
def test_interrupt(call):
    code = f"""
import polyproc, signal, sys
queue, full, tasks, simple = polyproc.Queue(), polyproc.Queue(1), polyproc.JoinableQueue(), polyproc.SimpleQueue()
full.put(1)
tasks.put(1)
seen = []
signal.signal(signal.SIGUSR1, lambda *_: (seen.append(1), print("seen", flush=True)))
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", len(seen), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)  # a handler that returns: the wait goes on
        assert process.stdout.readline() == "seen\n"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted 1\n"
        assert time.monotonic() - start < 5
    assert process.returncode == 0


def test_stopped_holder(ours):
    """A process that is stopped, in the middle of a call or not, costs others a timeout and nothing else."""
    queue, ready = ours.Queue(5), ours.Queue()
    process = ours.Process(target=tasks.hold, args=(queue, ready))
    process.start()
    pid = ready.get(timeout=PATIENCE)
    stopped_inside = 0
    for _ in range(100):
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        try:
            queue.put(b"mine", timeout=0.1)
            queue.get(timeout=0.1)
        except (Empty, Full):
            stopped_inside += 1
        assert time.monotonic() - start < 5
        os.kill(pid, signal.SIGCONT)
    process.kill()
    process.join(PATIENCE)
    process.close()
    while not queue.empty():
        queue.get_nowait()
    queue.put("as good as new")
    assert queue.get_nowait() == "as good as new"


def test_large_message_and_memory_back():
    queue = polyproc.Queue()
    item = os.urandom(1 << 20) * 100
    queue.put(item)
    queue.put([item])
    assert queue.get() == item
    assert queue.get() == [item]


def test_thousands():
    queues = [polyproc.Queue() for _ in range(2000)]
    for i, queue in enumerate(queues):
        queue.put(i)
    assert [queue.get() for queue in queues] == list(range(2000))


LIMITED = """
import resource, sys
resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]),) * 2)
import polyproc
n = 0
try:
    queue = polyproc.Queue()
    while n < 3000:
        queue.put(bytes(1 << 20))
        n += 1
except (MemoryError, OSError) as e:
    print(type(e).__name__, n)
    if n:
        assert sum(len(queue.get_nowait()) for _ in range(n)) == n << 20
        queue.put("and on it goes")
        assert queue.get() == "and on it goes"
"""


@pytest.mark.parametrize(
    ("limit", "size"), [("RLIMIT_FSIZE", 1 << 20), ("RLIMIT_FSIZE", 200 << 20), ("RLIMIT_AS", 400 << 20), ("RLIMIT_AS", 2 << 30)]
)
def test_limits(limit, size):
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, str(size)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        timeout=100,
    )
    assert process.returncode == 0
    assert process.stdout.startswith("MemoryError")


def test_messages_of_other_languages():
    """Raw bytes, as C programs put them, come out as bytes."""
    from polyproc._lib import lib

    queue = polyproc.Queue()
    for size in (0, 5, 5000, 100_000):
        data = os.urandom(size)
        assert lib().pp_queue_put(queue._handle, data, size, 0, -1) == 0
        assert queue.get() == data


def test_bytes_for_other_languages():
    from polyproc._lib import lib

    queue = polyproc.Queue(4)
    read = ctypes.create_string_buffer(200_000)
    size = ctypes.c_size_t()
    for data in (b"", b"five!", bytearray(5000), memoryview(os.urandom(100_000))[10:]):
        queue.put_bytes(data)
        assert lib().pp_queue_get(queue._handle, read, len(read), 0, ctypes.byref(size)) == 0
        assert read.raw[: size.value] == bytes(data)
        queue.put_bytes(data, timeout=1)
        assert queue.get() == bytes(data)
    for _ in range(4):
        queue.put_bytes(b"x", False)
    with pytest.raises(Full):
        queue.put_bytes(b"x", False)
    with pytest.raises(Full):
        queue.put_bytes(b"x", True, 0.01)
    with pytest.raises(TypeError):
        queue.put_bytes("text")
    queue.close()
    with pytest.raises(ValueError, match="closed"):
        queue.put_bytes(b"x")


def test_threads():
    queue, total = polyproc.Queue(8), 3000
    taken, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: taken.extend(iter(queue.get, None))))
    for i in range(3):
        threads.append(threading.Thread(target=tasks.produce, args=(queue, i, total // 3)))
    for thread in threads:
        thread.start()
    for thread in threads[4:]:
        thread.join(PATIENCE)
    for _ in range(4):
        queue.put(None)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(taken) == [(n, i) for n in range(3) for i in range(total // 3)]


@pytest.mark.slow
def test_without_the_c_type():
    """Where the library's type cannot be had, ctypes serves."""
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "polyproc-fork or exact or threads or anywhere"],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), POLYPROC_PURE_CTYPES="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stdout
