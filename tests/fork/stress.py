"""Fork all the time, from the main thread and from others, while threads are inside calls of the library: three generations deep.

    python tests/fork/stress.py --forks 300

Every child finds that the pools of its parent are not its own, opens one by one of the start methods, has 64 MiB of results pass
through the engine, gets Ctrl-C, and ends. The queues, locks, pipes and events of all its ancestors are its own too: it uses them while
their threads do, and makes others. What was put, sent and counted by whom is known exactly in the end. Exits with 0, or with 1 and
what was wrong; a child that hangs is shown as /proc and faulthandler have it. Nothing may be left over: no process, no thread, no
descriptor, no memory, of the process or of the family.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import gc
import mmap
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "..", "bindings", "python", "src"), HERE]

import polyproc  # noqa: E402
from polyproc import connection  # noqa: E402
from polyproc._lib import lib  # noqa: E402

GENERATIONS = 3
FORKERS = 3
# How long a family of three may take, in seconds.
PATIENCE = 120
# How much more memory the parent may have in use at the end, in MiB: the heaps of its threads differ from run to run.
GROWTH = 64
# As much of the memory that the family shares: freed blocks stay warm.
SHARED_GROWTH = 64
# How often a child counts under each lock of each ancestor.
TURNS = 3
ERR_HANDLE = -2
ERR_FORKED = -18


def twice(x):
    return 2 * x


def blob(n):
    return b"b" * n


def sleep(seconds):
    time.sleep(seconds)


def show(path):
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError as e:
        return f"({e.strerror})"


def prints_stack(pid):
    """Whether the process, one of ours or a program that it started, has faulthandler's handler for SIGUSR1."""
    for line in show(f"/proc/{pid}/status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def dump(group):
    """Print what the system tells of the processes of a group, and of their threads, and where they are in Python."""
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or os.getpgid(int(name)) != group:
                continue
            if prints_stack(name):
                os.kill(int(name), signal.SIGUSR1)
                time.sleep(0.1)  # so that the texts do not mix
            print(" ", show(f"/proc/{name}/stat"), file=sys.stderr)
            for task in os.listdir(f"/proc/{name}/task"):
                at = f"/proc/{name}/task/{task}"
                stack = show(at + "/stack").replace("\n", " ")
                print("   ", task, show(at + "/comm"), show(at + "/wchan"), stack, file=sys.stderr)
        except OSError:
            continue  # it has ended
    sys.stderr.flush()


def collect(pid, seconds):
    """Wait for the end of a child; one that does not end ends the test."""
    end = time.monotonic() + seconds
    fd = os.pidfd_open(pid)
    try:
        while not select.select([fd], [], [], max(0, end - time.monotonic()))[0]:
            if time.monotonic() > end:
                print(f"process {pid}, child of {os.getpid()}, does not end:", file=sys.stderr)
                dump(os.getpgrp())
                os._exit(1)
    finally:
        os.close(fd)
    return os.waitpid(pid, 0)[1]


def fork():
    """os.fork(), although other threads run: that is what this is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Callers:
    """Threads that are always inside a call of the library.

    Args:
        kinds: for each thread, a function and its arguments, which it calls again and again.
    """

    def __init__(self, *kinds):
        self.over = False
        self.calls = 0
        self.threads = [threading.Thread(target=self.run, args=kind, daemon=True) for kind in kinds]
        for thread in self.threads:
            thread.start()

    def run(self, call, *args):
        try:
            while not self.over:
                call(*args)
                self.calls += 1
        except BaseException:
            traceback.print_exc()
            dump(os.getpgrp())
            os._exit(1)

    def join(self):
        self.over = True
        for thread in self.threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                print(f"a thread of {os.getpid()} does not come back", file=sys.stderr)
                dump(os.getpgrp())
                os._exit(1)


class Scene:
    """Objects that a process shares with all who descend from it, and threads that use them all the time.

    Args:
        ctx: makes the objects.
        generation: of the process: 0 for the first.
    """

    def __init__(self, ctx, generation):
        self.generation = generation
        self.queue = ctx.Queue(50)  # messages from descendants, among those of our own threads
        self.reader, self.writer = ctx.Pipe(duplex=False)  # the same
        self.tickets = ctx.SimpleQueue()  # one for each child
        self.lock, self.rlock, self.permit = ctx.Lock(), ctx.RLock(), ctx.BoundedSemaphore(1)
        self.locks = self.lock, self.rlock, self.permit
        self.counts = mmap.mmap(-1, mmap.PAGESIZE)  # a number for each lock, that nobody adds to without it
        self.never, self.pulse = ctx.Event(), ctx.Event()
        self.condition = ctx.Condition()
        self.laps = 0  # how often our own threads have done what they do
        self.counted = 0
        self.got, self.received = collections.Counter(), collections.Counter()
        self.producers = Callers((self.produce,), *([(self.count,)] if generation == 0 else []))
        self.consumers = Callers(
            (self.get,), (self.receive,), *([(self.wait_event,), (self.wait_condition,)] if generation == 0 else [])
        )

    # Threads of the process that has made the scene.

    def produce(self):
        lap = self.laps
        # Of each form: in the ring, and in a block of its own.
        self.queue.put(("own", lap, b"q" * (40_000 if lap % 16 == 0 else 10)))
        self.writer.send(("own", lap, b"p" * (100_000 if lap % 16 == 8 else 10)))
        for index in range(len(self.locks)):
            self.add(index)
        self.pulse.set()
        self.pulse.clear()
        with self.condition:
            self.condition.notify_all()
        self.laps = lap + 1

    def count(self):
        for index in range(len(self.locks)):
            self.add(index)
        self.counted += 1

    def get(self):
        self.check(self.queue.get, self.got, b"q")

    def receive(self):
        self.check(self.reader.recv, self.received, b"p")

    def check(self, take, tally, letter):
        """Count the messages up to the last. Those of one process are in order, and whole."""
        while tally["end"] == 0:
            self.tally(take(), tally, letter)

    def tally(self, message, tally, letter):
        who, number, data = message
        assert data == letter * len(data) and len(data) in (10, 40_000, 100_000), (who, number, len(data))
        if who in ("own", "end"):
            assert number == tally[who], (who, number, tally[who])
            tally[who] += 1
        else:
            tally[who, number] += 1

    def wait_event(self):
        self.pulse.wait(60)

    def wait_condition(self):
        with self.condition:
            self.condition.wait(1)

    # Any process.

    def add(self, index):
        """Add 1 to a number, in a way that loses it if the lock lets two in."""
        with self.locks[index]:
            if index == 1:
                with self.rlock:  # the second level
                    value = self.number(index)
            else:
                value = self.number(index)
            self.counts[8 * index : 8 * index + 8] = (value + 1).to_bytes(8, "little")

    def number(self, index):
        return int.from_bytes(self.counts[8 * index : 8 * index + 8], "little")

    def visit(self, generation, number, parent):
        """What a descendant does with it. parent: this is the scene of the process that has forked this one."""
        size = 40_000 if number % 4 == 0 else 10
        self.queue.put((generation, number, b"q" * size))
        self.writer.send((generation, number, b"p" * size))
        for _ in range(TURNS):
            for index in range(len(self.locks)):
                self.add(index)
        assert not self.never.wait(0.001)
        assert not self.never.is_set()
        assert self.pulse.wait(60)
        with self.condition:
            assert self.condition.wait(60)
        if parent:
            assert not connection.wait([self.writer], 0)  # nothing comes to this end
            self.queue.put(("ticket", self.tickets.get(), b"q" * 10))

    def end(self, numbers):
        """Every message, ticket and turn of the families with these numbers is there, once. The threads end."""
        self.producers.join()
        self.consumers.over = True
        self.pulse.set()
        self.queue.put(("end", 0, b"q" * 10))
        self.writer.send(("end", 0, b"p" * 10))
        self.consumers.join()
        descendants = range(self.generation + 1, GENERATIONS + 1)
        messages = collections.Counter({(g, n): 1 for g in descendants for n in numbers})
        messages.update(own=self.laps, end=1)
        assert self.received == messages, (self.received - messages, messages - self.received)
        messages.update({("ticket", n): 1 for n in numbers})
        assert self.got == messages, (self.got - messages, messages - self.got)
        left = self.queue.qsize(), self.tickets.empty(), self.reader.poll()
        assert left == (0, True, False), left
        turns = self.laps + self.counted + TURNS * len(descendants) * len(numbers)
        for index in range(len(self.locks)):
            assert self.number(index) == turns, (index, self.number(index), turns)
        for lock in self.locks:
            assert lock.acquire(timeout=0)
            lock.release()
        assert not self.never.is_set()
        return self.laps


def mapping(pool):
    assert pool.map(twice, range(100)) == [2 * i for i in range(100)]


def applying(pool):
    assert pool.apply(twice, (21,)) == 42
    assert pool.apply_async(blob, (100_000,)).get() == b"b" * 100_000


def iterating(pool):
    assert sorted(pool.imap_unordered(twice, range(30))) == [2 * i for i in range(30)]


def give(queue, lock, writer, event):
    """In another process: all that there is to be given."""
    with lock:
        queue.put("queue")
    writer.send("pipe")
    event.set()


def sharing(ctx, pool=None):
    """Objects made here and now, for a child, and a worker of a pool."""
    queue, lock, event = ctx.Queue(1), ctx.Lock(), ctx.Event()
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=give, args=(queue, lock, writer, event))
    with lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    takes(queue, reader, event)
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    if pool is not None:
        event.clear()
        assert pool.apply(give, (queue, lock, writer, event)) is None
        takes(queue, reader, event)
    reader.close()
    writer.close()


def takes(queue, reader, event):
    assert event.wait(60)
    assert queue.get(timeout=60) == "queue"
    assert queue.empty()
    assert reader.poll(60)
    assert reader.recv() == "pipe"


def opening(ctx):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ctx.Pool(1)
    with pool:
        mapping(pool)


def erring():
    library = lib()
    assert library.pp_pool_close(123456) == ERR_HANDLE
    assert library.pp_last_error()


def handle_of(pool):
    return pool._core.handle


def refused(call, *args, **named):
    try:
        call(*args, **named)
    except RuntimeError as e:
        assert "forked" in str(e), e
        return
    raise AssertionError("a pool of another process takes calls")


def strange(pools):
    """The pools of the parent answer, in whatever state the parent's threads have left them."""
    library = lib()
    for pool in pools:
        refused(pool.map, twice, [1])
        refused(pool.apply_async, twice, (1,), callback=print)
        refused(pool.imap, twice, [1])
        pool.close()
        refused(pool.join)
        pool.terminate()
        handle = handle_of(pool)
        assert library.pp_pool_close(handle) == ERR_FORKED
        assert library.pp_pool_free(handle) == ERR_FORKED
        assert library.pp_pool_info(handle, None, None, 0, None) == ERR_FORKED


def interrupted(wait, *args):
    """Ctrl-C ends a wait in one KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    me = threading.main_thread().ident
    timer = threading.Timer(0.02, signal.pthread_kill, (me, signal.SIGINT))
    began = time.monotonic()
    try:
        timer.start()
        wait(*args)
        raise AssertionError("no KeyboardInterrupt")
    except KeyboardInterrupt:
        assert time.monotonic() - began < 30
    timer.join()
    signal.signal(signal.SIGINT, before)


def interrupted_all(ctx, pool, number):
    """Ctrl-C in a wait for the pool, and in one of the other waits that there are."""
    interrupted(pool.apply_async(sleep, (1000,)).get, 60)
    queue, lock, (reader, writer) = ctx.Queue(1), ctx.Lock(), ctx.Pipe(duplex=False)
    queue.put(1)
    lock.acquire()
    waits = (
        (ctx.SimpleQueue().get,),
        (queue.put, 2),
        (lock.acquire,),
        (reader.recv,),
    )
    interrupted(*waits[number % len(waits)])
    assert queue.get() == 1
    assert queue.empty()
    lock.release()
    writer.close()
    reader.close()


def notices_signals(by_main):
    """CPython 3.13 does not: a child that was forked by another thread than the main one runs no handlers between bytecodes."""
    return by_main or sys.version_info[:2] != (3, 13)


METHODS = ("spawn", "fork", "forkserver")


def live(generation, number, inherited, scenes, by_main):
    """The life of a child. inherited: its parent's pools; scenes: of all its ancestors, its parent's last."""
    strange(inherited)
    method = METHODS[(number + generation) % len(METHODS)]
    ctx = polyproc.get_context(method)
    for scene in scenes:
        scene.visit(generation, number, scene is scenes[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # this process has one thread: nothing is to be said
        pool = ctx.Pool(2)
    mapping(pool)
    size = 32 << 10
    assert sum(len(b) for b in pool.imap_unordered(blob, [size] * ((64 << 20) // size))) == 64 << 20
    if notices_signals(by_main):
        interrupted_all(ctx, pool, number)
    sharing(ctx, pool)
    pool.terminate()
    pool.join()
    if generation == GENERATIONS:
        return
    own = polyproc.get_context("spawn").Pool(1), polyproc.get_context("fork").Pool(1)
    scene = Scene(ctx, generation)
    callers = Callers((mapping, own[0]), (applying, own[1]))
    while callers.calls < 4 or scene.laps < 4:
        time.sleep(0.001)
    child(generation + 1, number, own, (*scenes, scene), by_main)
    callers.join()
    scene.end([number])
    for p in own:
        p.close()
        p.join()


def child(generation, number, pools, scenes, by_main):
    """Fork one and wait for its end."""
    meeting = polyproc.Barrier(2)
    scenes[-1].tickets.put(number)
    pid = fork()
    if pid == 0:
        code = 1
        try:
            meeting.wait(60)
            live(generation, number, pools, scenes, by_main)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    met = True
    try:
        meeting.wait(60)
    except threading.BrokenBarrierError:
        met = False
    status = collect(pid, PATIENCE / generation)
    if status != 0 or not met:
        print(f"family {number}, generation {generation}: status {status:#x}", file=sys.stderr)
        os._exit(1)


def descriptors():
    return sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in os.listdir("/proc/self/fd") if alive(fd))


def alive(fd):
    try:
        os.fstat(int(fd))
        return True
    except OSError:
        return False


def run(families):
    spawn, forked, served = map(polyproc.get_context, METHODS)
    pools = spawn.Pool(2), forked.Pool(2)
    scene = Scene(spawn, 0)
    callers = Callers(
        (mapping, pools[0]),
        (applying, pools[1]),
        (iterating, pools[0]),
        (sharing, forked),
        (sharing, spawn),
        (sharing, served),
        (opening, forked),
        (erring,),
    )
    numbers = iter(range(families))
    lock = threading.Lock()

    def forking():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            child(1, number, pools, (scene,), threading.current_thread() is threading.main_thread())

    # In a forked child the thread that forked is the main thread.
    forkers = [threading.Thread(target=forking) for _ in range(FORKERS - 1)]
    for thread in forkers:
        thread.start()
    forking()
    for thread in forkers:
        thread.join()
    callers.join()
    laps = scene.end(range(families))
    for pool in pools:
        pool.close()
        pool.join()
    return callers.calls, laps


def resident():
    """The memory that this process has in use, in MiB."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def shared():
    """The memory of the family, in MiB: what its segments have in use, not the address space that they are mapped to."""
    blocks = {}
    for fd in filter(alive, os.listdir("/proc/self/fd")):
        if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
            status = os.fstat(int(fd))
            blocks[status.st_ino] = status.st_blocks
    return sum(blocks.values()) * 512 >> 20


def belongings():
    """What this process has that a run must not add to. (The fork server stays, and is nobody's leak.)"""
    with open(f"/proc/self/task/{os.getpid()}/children") as f:
        children = len(f.read().split())
    return {"descriptors": descriptors(), "threads": threading.active_count(), "children": children}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--forks", type=int, default=60)
    families = (parser.parse_args().forks + GENERATIONS - 1) // GENERATIONS
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    began = time.monotonic()
    run(FORKERS)  # what stays for good is there after this
    gc.collect()
    before, memory, family = belongings(), resident(), shared()
    calls, laps = run(families)
    gc.collect()
    after, growth, family_growth = belongings(), resident() - memory, shared() - family
    if after != before or growth > GROWTH or family_growth > SHARED_GROWTH:
        print(
            f"{before}, {memory} MiB, {family} MiB shared before; {after}, {growth} MiB, {family_growth} MiB shared more after",
            file=sys.stderr,
        )
        return 1
    print(
        f"{sys.version.split()[0]}: {families * GENERATIONS} forks in {time.monotonic() - began:.0f} s, "
        f"{calls} calls with pools, {laps} laps with queues, locks, pipes, events by other threads meanwhile, "
        f"{memory} + {growth} MiB resident, {family} + {family_growth} MiB shared"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
