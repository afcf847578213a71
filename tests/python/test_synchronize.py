"""Locks, semaphores, conditions, events and barriers: what the standard library documents, and what happens when processes die."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
import sync_tasks

import polyproc
from polyproc import synchronize

METHODS = ("fork", "spawn", "forkserver")
LIMIT = 30.0
HERE = os.path.dirname(os.path.abspath(__file__))

# The first of the standard library's opens a file that stays.
_warm = multiprocessing.Barrier(1)


@pytest.fixture(params=METHODS)
def ctx(request):
    return polyproc.get_context(request.param)


def started(ctx, function, *args):
    process = ctx.Process(target=function, args=args)
    process.start()
    return process


def joined(*processes):
    for process in processes:
        process.join(LIMIT)
        assert process.exitcode == 0
        process.close()


def killed(process):
    process.kill()
    process.join(LIMIT)
    process.close()


# ---- the same as the standard library


CALLS = {
    "release of a free lock": lambda mp: mp.Lock().release(),
    "release of a free rlock": lambda mp: mp.RLock().release(),
    "release beyond the bound": lambda mp: mp.BoundedSemaphore(2).release(),
    "no permits at all": lambda mp: mp.BoundedSemaphore(0).release(),
    "negative value": lambda mp: mp.Semaphore(-1),
    "huge value": lambda mp: mp.Semaphore(2**31),
    "value of another type": lambda mp: mp.Semaphore("a"),
    "timeout of another type": lambda mp: mp.Lock().acquire(True, "a"),
    "unknown argument": lambda mp: mp.Lock().acquire(foo=1),
    "three arguments": lambda mp: mp.Lock().acquire(1, 2, 3),
    "notify without the lock": lambda mp: mp.Condition().notify(),
    "notify_all without the lock": lambda mp: mp.Condition().notify_all(),
    "wait without the lock": lambda mp: mp.Condition().wait(),
    "try": lambda mp: mp.Lock().acquire(False),
    "acquire in time": lambda mp: mp.Lock().acquire(timeout=5),
    "acquire, not a number": lambda mp: mp.Lock().acquire(True, float("nan")),
    "acquire, huge": lambda mp: mp.Semaphore().acquire(True, 1e30),
    "negative timeout": lambda mp: mp.Semaphore(0).acquire(True, -5),
    "zero": lambda mp: mp.Semaphore(0).acquire(True, 0),
    "try with timeout": lambda mp: mp.Semaphore(0).acquire(False, 10),
    "enter": lambda mp: mp.Lock().__enter__(),
    "get_value": lambda mp: mp.Semaphore(3).get_value(),
    "event": lambda mp: (mp.Event().is_set(), mp.Event().wait(0), mp.Event().wait(-1), mp.Event().set(), mp.Event().clear()),
    "wait_for what is so": lambda mp: mp.Condition().wait_for(lambda: 42),
    "barrier of one": lambda mp: mp.Barrier(1).wait(),
    "repr of a lock": lambda mp: repr(mp.Lock()),
    "repr of an rlock": lambda mp: repr(mp.RLock()),
    "repr of a semaphore": lambda mp: repr(mp.Semaphore(3)),
    "repr of a bounded semaphore": lambda mp: repr(mp.BoundedSemaphore(3)),
    "repr of a condition": lambda mp: repr(mp.Condition()),
    "repr of a condition over a lock": lambda mp: repr(mp.Condition(mp.Lock())),
}


@pytest.mark.parametrize("what", CALLS)
def test_answers_and_exceptions(what):
    def outcome(mp):
        try:
            return CALLS[what](mp)
        except Exception as e:
            return type(e), str(e) if isinstance(e, (AssertionError, ValueError)) else None

    assert outcome(polyproc) == outcome(multiprocessing)


def test_reprs_of_what_is_held():
    def reprs(mp):
        lock, rlock = mp.Lock(), mp.RLock()
        shown = []
        with lock, rlock, rlock:
            shown += [repr(lock), repr(rlock)]
            thread = threading.Thread(target=lambda: shown.extend([repr(lock), repr(rlock)]), name="other")
            thread.start()
            thread.join()
        return shown

    assert reprs(polyproc) == reprs(multiprocessing)
    assert re.fullmatch(r"<Event at 0x[0-9a-f]+ unset>", repr(polyproc.Event()))


def test_repr_of_what_another_process_holds():
    lock, held = polyproc.get_context("fork").Lock(), polyproc.get_context("fork").Event()
    process = started(polyproc.get_context("fork"), sync_tasks.die_holding, lock, held)
    assert held.wait(LIMIT)
    assert repr(lock) == "<Lock(owner=SomeOtherProcess)>"
    killed(process)


def test_classes_have_the_same_names_and_signatures():
    theirs = multiprocessing.synchronize
    for name in (*theirs.__all__, "Barrier", "SemLock"):
        our, their = getattr(synchronize, name), getattr(theirs, name)
        assert {n for n in dir(their) if n[0] != "_"} <= set(dir(our)), name
        parameters = [(p.name, p.kind, p.default) for p in inspect.signature(our.__init__).parameters.values()]
        wanted = [(p.name, p.kind, p.default) for p in inspect.signature(their.__init__).parameters.values()]
        assert [p for p in parameters if p[0] != "recover"] == wanted, name
    assert synchronize.SEM_VALUE_MAX == theirs.SEM_VALUE_MAX
    assert issubclass(synchronize.Barrier, threading.Barrier)


def test_timeouts_take_their_time():
    for acquire in (polyproc.Semaphore(0).acquire, lambda timeout: polyproc.Event().wait(timeout)):
        begin = time.monotonic()
        assert acquire(timeout=0.15) is False
        assert 0.149 < time.monotonic() - begin < 10


def test_release_by_another_thread():
    lock, rlock = polyproc.Lock(), polyproc.RLock()
    lock.acquire()
    rlock.acquire()
    failed = []

    def other():
        lock.release()
        assert not rlock.acquire(False)
        try:
            rlock.release()
        except AssertionError:
            failed.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert failed == [True]
    assert lock.acquire(False)
    rlock.release()


def test_semlock_attributes():
    lock = polyproc.RLock()
    with lock, lock:
        assert lock._semlock._count() == 2
        assert lock._semlock._is_mine()
        assert lock._semlock._is_zero()
        assert lock._semlock.maxvalue == 1
    assert lock._semlock._get_value() == 1


# ---- between processes


def test_mutual_exclusion(ctx, tmp_path):
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(8))
    for lock in (ctx.Lock(), ctx.RLock(), ctx.Semaphore(1), ctx.Condition(), ctx.Condition(ctx.Lock())):
        joined(*[started(ctx, sync_tasks.locked_increment, lock, str(counter), 100) for _ in range(2)])
    assert int.from_bytes(counter.read_bytes(), "little") == 1000


def test_lock_released_by_another_process(ctx):
    lock = ctx.Lock()
    lock.acquire()
    process = started(ctx, sync_tasks.release_other, lock)
    assert lock.acquire(timeout=LIMIT)
    joined(process)


def test_event(ctx):
    event, answer = ctx.Event(), ctx.Event()
    process = started(ctx, sync_tasks.wait_and_set, event, answer)
    event.set()
    assert answer.wait(LIMIT)
    joined(process)
    event.clear()
    assert not event.is_set()


def test_event_that_is_cleared_at_once_wakes_who_waited():
    event, seen = polyproc.Event(), []
    threads = [threading.Thread(target=lambda: seen.append(event.wait(LIMIT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT
    while not all(map(in_shared_futex, threads)):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    event.set()
    event.clear()
    for thread in threads:
        thread.join(LIMIT)
    assert seen == [True] * 4


def in_shared_futex(thread):
    """Whether the thread sleeps in futex_waitv, or in FUTEX_WAIT on shared memory; Python's own waits are of the private kind."""
    with open(f"/proc/self/task/{thread.native_id}/syscall") as file:
        call = file.read().split()
    return call[0] == "449" or (call[0] in ("202", "98") and call[2] == "0x0")


def test_condition(ctx):
    for lock in (None, ctx.RLock()):
        condition, ready, woken = ctx.Condition(lock), ctx.Semaphore(0), ctx.Semaphore(0)
        processes = [started(ctx, sync_tasks.wait_notified, condition, ready, woken) for _ in range(3)]
        for _ in processes:
            assert ready.acquire(timeout=LIMIT)
        with condition:
            assert condition._sleeping_count.get_value() == 3
            condition.notify(2)
        for _ in range(2):
            assert woken.acquire(timeout=LIMIT)
        assert not woken.acquire(timeout=0.05)
        with condition:
            condition.notify_all()
        assert woken.acquire(timeout=LIMIT)
        joined(*processes)


def test_condition_wait_for():
    condition, values = polyproc.Condition(), []

    def produce():
        for i in range(3):
            with condition:
                values.append(i)
                condition.notify()

    thread = threading.Thread(target=produce)
    with condition:
        thread.start()
        assert condition.wait_for(lambda: len(values) == 3, LIMIT) is True
        assert condition.wait_for(lambda: False, 0.02) is False
        assert condition._sleeping_count.get_value() == 0
    thread.join()


def test_barrier(ctx):
    barrier, passed = ctx.Barrier(3), ctx.Semaphore(0)
    processes = [started(ctx, sync_tasks.pass_barrier, barrier, passed, 5) for _ in range(2)]
    indices = {barrier.wait(LIMIT) for _ in range(5)}
    assert indices <= {0, 1, 2}
    joined(*processes)
    assert passed.get_value() == 10
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)


def test_barrier_action():
    done = []
    barrier = polyproc.Barrier(3, action=lambda: done.append(barrier.n_waiting))
    seen = []

    def meet():
        for _ in range(10):
            barrier.wait(LIMIT)
            seen.append(len(done))
            barrier.wait(LIMIT)

    threads = [threading.Thread(target=meet) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 20
    assert sorted(seen) == sorted(list(range(1, 21, 2)) * 3)


def test_barrier_action_that_fails():
    def fail():
        raise ZeroDivisionError

    barrier = polyproc.Barrier(2, action=fail)
    seen = []

    def meet():
        try:
            barrier.wait(LIMIT)
        except Exception as e:
            seen.append(type(e))

    thread = threading.Thread(target=meet)
    thread.start()
    meet()
    thread.join()
    assert sorted(seen, key=str) == [ZeroDivisionError, threading.BrokenBarrierError]
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


def somebody_waits(barrier):
    deadline = time.monotonic() + LIMIT
    while barrier.n_waiting == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_barrier_breaks(ctx):
    barrier, broken = ctx.Barrier(2), ctx.Semaphore(0)
    for breaking in (barrier.abort, barrier.reset):
        process = started(ctx, sync_tasks.break_barrier, barrier, broken)
        somebody_waits(barrier)
        breaking()
        assert broken.acquire(timeout=LIMIT)
        joined(process)
        barrier.reset()
    with pytest.raises(threading.BrokenBarrierError):
        polyproc.Barrier(2, timeout=0.02).wait()


def test_a_dead_waiter_breaks_the_barrier(ctx):
    barrier = ctx.Barrier(3)
    process = started(ctx, sync_tasks.break_barrier, barrier, ctx.Semaphore(0))
    somebody_waits(barrier)
    killed(process)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(LIMIT)
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


# ---- death


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_acquirers_are_told_until_one_recovers(ctx, kind):
    lock, held = getattr(ctx, kind)(), ctx.Event()
    process = started(ctx, sync_tasks.die_holding, lock, held)
    assert held.wait(LIMIT)
    assert not lock.acquire(timeout=0.05)
    killed(process)
    for _ in range(2):
        with pytest.raises(polyproc.OwnerDiedError, match=r"lock\.recover\(\).*Lock\(recover=True\)"):
            lock.acquire(timeout=LIMIT)
        with pytest.raises(polyproc.OwnerDiedError), lock:
            raise AssertionError("not reached")
        with pytest.raises(polyproc.OwnerDiedError):
            lock.acquire(False)
        with pytest.raises(polyproc.OwnerDiedError):
            lock.release()
    assert "DeadProcess" in repr(lock)
    told = ctx.Event()
    joined(started(ctx, sync_tasks.is_told, lock, told))
    assert told.is_set()
    # One that dies while it recovers changes nothing.
    held.clear()
    process = started(ctx, sync_tasks.die_recovering, lock, held)
    assert held.wait(LIMIT)
    assert not lock.recover(False)
    assert not lock.recover(timeout=0.02)
    killed(process)
    with pytest.raises(polyproc.OwnerDiedError):
        lock.acquire()
    assert lock.recover()
    lock.release()
    for _ in range(2):
        with lock:
            pass
    assert lock.acquire(False)
    lock.release()
    assert lock.recover(timeout=0)  # nobody has died
    lock.release()


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_lock_that_recovers_by_itself(ctx, kind):
    lock, held = getattr(ctx, kind)(recover=True), ctx.Event()
    process = started(ctx, sync_tasks.die_holding, lock, held)
    assert held.wait(LIMIT)
    killed(process)
    assert lock.acquire(timeout=LIMIT)
    lock.release()
    with pytest.raises((ValueError, AssertionError)):
        lock.release()


def test_a_condition_of_its_own_lock_tells_nobody(ctx):
    condition, held = ctx.Condition(), ctx.Event()
    process = started(ctx, sync_tasks.die_holding, condition, held)
    assert held.wait(LIMIT)
    killed(process)
    assert condition.acquire(timeout=LIMIT)
    assert not condition.wait(0.01)
    condition.release()


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.parametrize("by", ["lock", "condition"])
def test_a_wait_at_a_condition_is_told(ctx, kind, by):
    lock = getattr(ctx, kind)()
    condition, held = ctx.Condition(lock), ctx.Event()
    outer = lock if by == "lock" else condition
    process = None

    def end_holder():
        assert held.wait(LIMIT)
        killed(process)

    def recover():
        with pytest.raises(polyproc.OwnerDiedError):
            lock.acquire(timeout=LIMIT)
        assert lock.recover()

    killer, recoverer = threading.Thread(target=end_holder), threading.Thread(target=recover)
    with pytest.raises(polyproc.OwnerDiedError), outer:
        process = started(ctx, sync_tasks.die_holding, lock, held)
        killer.start()
        try:
            while True:
                condition.wait(0.02)
        finally:
            # Another thread recovers the lock before the block ends, which does not release it.
            recoverer.start()
            recoverer.join()
    killer.join()
    assert not lock.acquire(False)
    if kind == "RLock":
        assert lock.recover()  # its holder has ended
    lock.release()
    with lock:
        pass


@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGUSR1])
def test_a_signal_handler_runs_during_a_wait(number):
    # A handler in Python runs when the library's call has returned, so one of SIGCHLD ends the call, which is made again.
    event, semaphore = polyproc.Event(), polyproc.Semaphore(0)
    barrier = polyproc.Barrier(2)
    main, steps = threading.get_ident(), []

    def handler(number, frame):
        steps.append(number)
        if len(steps) == 3:
            event.set()
        if len(steps) == 6:
            semaphore.release()
        if len(steps) == 9:
            barrier.abort()

    def send():
        while not over.wait(0.005):
            signal.pthread_kill(main, number)

    before, over = signal.signal(number, handler), threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert event.wait(LIMIT)
        assert semaphore.acquire(timeout=LIMIT)
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait(LIMIT)
        assert len(steps) >= 9
    finally:
        over.set()
        thread.join()
        signal.signal(number, before)


def test_a_thread_ends_with_an_rlock():
    lock = polyproc.RLock()
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    assert not lock.acquire(timeout=0.02)
    with pytest.raises(AssertionError):
        lock.release()
    assert lock.recover(timeout=LIMIT)
    lock.release()
    with lock:
        pass


def test_a_condition_wants_a_lock_of_this_package():
    for lock in (threading.Lock(), threading.RLock(), polyproc.Semaphore(), 5):
        with pytest.raises(TypeError, match="a condition needs a Lock or an RLock of polyproc"):
            polyproc.Condition(lock)


def test_notify_wants_the_lock():
    condition = polyproc.Condition()
    with pytest.raises(AssertionError):
        condition.notify()
    with condition:
        condition.notify()
        condition.notify(0)
        condition.notify(-1)
        condition.notify(10**30)
        condition.notify_all()


def test_a_dead_waiter_takes_no_notification(ctx):
    condition, ready, woken = ctx.Condition(), ctx.Semaphore(0), ctx.Semaphore(0)
    first = started(ctx, sync_tasks.wait_notified, condition, ready, woken)
    assert ready.acquire(timeout=LIMIT)
    with condition:
        pass  # it sleeps now
    second = started(ctx, sync_tasks.wait_notified, condition, ready, woken)
    assert ready.acquire(timeout=LIMIT)
    killed(first)
    with condition:
        condition.notify()
    assert woken.acquire(timeout=LIMIT)
    joined(second)


def test_permits_of_the_dead(ctx):
    semaphore, taken = synchronize.Semaphore(1, ctx=ctx, recover=True), ctx.Event()
    process = started(ctx, sync_tasks.take, semaphore, taken)
    assert taken.wait(LIMIT)
    assert not semaphore.acquire(timeout=0.05)
    killed(process)
    assert semaphore.acquire(timeout=LIMIT)
    semaphore.release()
    assert semaphore.get_value() == 1
    with pytest.raises(ValueError, match="too many times"):
        semaphore.release()


# ---- pickling


def all_objects(ctx):
    return (
        ctx.Lock(), ctx.RLock(), ctx.Semaphore(2), ctx.BoundedSemaphore(2), ctx.Condition(), ctx.Condition(ctx.Lock()), ctx.Event(),
        ctx.Barrier(2),
    )


def test_given_to_a_task_of_a_pool():
    objects = all_objects(polyproc)
    with polyproc.get_context("spawn").Pool(1) as pool:
        assert pool.apply(sync_tasks.touch, objects) == [type(o).__name__ for o in objects]
    pool.join()
    assert objects[-2].is_set()


def test_pickled_copies_are_the_same_objects():
    for each in all_objects(polyproc):
        copy = pickle.loads(pickle.dumps(each))
        assert type(copy) is type(each)
        if hasattr(each, "acquire"):
            assert copy.acquire()
            if not isinstance(each, (synchronize.RLock, synchronize.Semaphore)) and "RLock" not in repr(each):
                assert not each.acquire(False)
            copy.release()
    lock, copy = polyproc.Lock(), None
    data = pickle.dumps(lock)
    del lock
    copy = pickle.loads(data)  # what is on its way keeps the lock
    assert copy.acquire(False)


def test_sent_through_a_queue_and_a_pipe():
    queue = polyproc.SimpleQueue()
    lock = polyproc.Lock()
    queue.put(lock)
    assert lock.acquire()
    assert not queue.get().acquire(False)
    lock.release()


def test_objects_of_a_fork_context_are_refused_by_others():
    for each in all_objects(polyproc.get_context("fork")):
        for method in ("spawn", "forkserver"):
            process = polyproc.get_context(method).Process(target=sync_tasks.touch, args=(each,))
            with pytest.raises(RuntimeError, match="A SemLock created in a fork") as caught:
                process.start()
            name = type(each).__name__
            assert f"create the {name} by polyproc.get_context({method!r}).{name}()" in str(caught.value)


def test_not_in_another_family():
    data = pickle.dumps(polyproc.Lock()).hex()
    source = f"import pickle, polyproc; pickle.loads(bytes.fromhex({data!r}))"
    run = subprocess.run([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True, timeout=LIMIT)
    assert run.returncode == 1
    assert "ValueError" in run.stderr
    assert "family" in run.stderr


# ---- signals


WAITS = {
    "lock": "lock = mp.Lock(); lock.acquire(); ready(); lock.acquire()",
    "lock in time": "lock = mp.Lock(); lock.acquire(); ready(); lock.acquire(timeout=60)",
    "with": "lock = mp.Lock(); lock.acquire(); ready(); lock.__enter__()",
    "semaphore": "lock = mp.Semaphore(0); ready(); lock.acquire()",
    "condition": "c = mp.Condition(); c.acquire(); ready(); c.wait()",
    "event": "ready(); mp.Event().wait()",
    "event in time": "ready(); mp.Event().wait(60)",
    "barrier": "b = mp.Barrier(2); ready(); b.wait()",
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c(wait):
    source = f"""
import polyproc as mp, sys
def ready(): print("ready", flush=True)
try:
    {WAITS[wait]}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + LIMIT
        while not sleeping(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - begin < 10
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_that_does_not_end_the_system_call(wait):
    """As a signal just before the sleep: the handler has run, in another thread here, and the main thread sleeps on."""
    source = f"""
import os, polyproc as mp, signal, threading
def interrupt():
    state = "R"
    while state != "S":
        with open(f"/proc/self/task/{{os.getpid()}}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
def ready():
    threading.Thread(target=interrupt).start()
try:
    {WAITS[wait]}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    run = subprocess.run([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, timeout=LIMIT)
    assert run.stdout == "interrupted\n"


def sleeping(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def test_a_handler_that_returns_does_not_end_a_wait():
    calls = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(True))
    lock, event = polyproc.Lock(), polyproc.Event()
    lock.acquire()
    try:
        for wait in (lambda: lock.acquire(timeout=0.2), lambda: event.wait(0.2), lambda: polyproc.Semaphore(0).acquire(True, 0.2)):
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            begin = time.monotonic()
            assert wait() is False
            assert time.monotonic() - begin > 0.19
        assert len(calls) > 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_event_that_a_handler_sets_and_clears():
    event = polyproc.Event()

    def handler(*_):
        event.set()
        event.clear()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert event.wait(LIMIT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the objects as Python objects


def test_subclasses_attributes_and_references():
    class Named(synchronize.Lock):
        def __init__(self, name):
            super().__init__(ctx=None)
            self.name = name

    lock = Named("x")
    with lock:
        assert lock.name == "x"
    gone = weakref.ref(lock)
    lock.me = lock  # a cycle
    del lock
    gc.collect()
    assert gone() is None


def test_objects_are_freed():
    base = synchronize.SemLock.__mro__[1]
    counts = []
    for _ in range(3):
        for _ in range(200):
            for each in all_objects(polyproc):
                del each
        gc.collect()
        counts.append(sys.getrefcount(base))
    assert counts[1] == counts[2]


def test_use_before_initialization():
    for cls in (synchronize.Lock, synchronize.Semaphore):
        blank = cls.__new__(cls)
        with pytest.raises(ValueError, match="not initialized"):
            blank.acquire()
        del blank


def test_ten_thousand_cost_no_descriptor():
    source = """
import os, resource, polyproc as mp
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
mp.Lock()
before = len(os.listdir("/proc/self/fd"))
all = [(mp.Lock(), mp.Event()) for _ in range(10000)]
for lock, event in all:
    with lock:
        event.set()
assert len(os.listdir("/proc/self/fd")) == before
"""
    subprocess.run([sys.executable, "-c", source], check=True, timeout=2 * LIMIT)


def test_another_pid_namespace():
    """There the ids of processes mean others: a lock is refused, not taken from a holder who only seems to be dead, nor released."""
    source = """
import ctypes, os, polyproc as mp
lock, semaphore = mp.Lock(), mp.Semaphore(0)
assert lock.acquire()
pid = os.fork()
if pid == 0:
    if ctypes.CDLL(None).unshare(0x20000000) != 0:
        os._exit(77)
    inner = os.fork()
    if inner == 0:
        for call in (lambda: lock.acquire(timeout=5), lambda: semaphore.acquire(timeout=5), lock.release, semaphore.release):
            try:
                call()
            except ValueError as error:
                if "pid namespace" in str(error):
                    continue
            os._exit(1)
        try:
            mp.Lock()
        except NotImplementedError:
            os._exit(0)
        os._exit(2)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert not lock.acquire(block=False) and not semaphore.acquire(block=False)
lock.release()
os._exit(code)
"""
    code = subprocess.run([sys.executable, "-c", source], timeout=LIMIT).returncode
    if code == 77:
        pytest.skip("no right to make a pid namespace")
    assert code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take /proc away")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_without_proc(method, tmp_path):
    """As in a bare chroot: what the standard library does there works here."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import ctypes, os, polyproc
ctx = polyproc.get_context({method!r})
def child(lock, queue):
    with lock:
        queue.put(os.path.exists("/proc/self"))
if __name__ == "__main__":
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x20000) or libc.mount(None, b"/", None, 0x44000, None) or libc.mount(b"none", b"/proc", b"tmpfs", 0, None):
        os._exit(77)
    try:
        lock, queue = ctx.Lock(), ctx.Queue()
    except NotImplementedError:  # before Linux 6.11
        os._exit(77)
    process = ctx.Process(target=child, args=(lock, queue))
    process.start()
    assert queue.get(timeout={LIMIT}) is False
    process.join()
    assert process.exitcode == 0
    with ctx.Pool(2) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
""")
    code = subprocess.run([sys.executable, str(program)], timeout=4 * LIMIT).returncode
    if code == 77:
        pytest.skip("no right to mount, or a kernel that does not tell the pid namespace without /proc")
    assert code == 0


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("POLYPROC_PURE_CTYPES", "") not in ("", "0"), reason="this is the run that it starts")
def test_without_the_c_types():
    env = {**os.environ, "POLYPROC_PURE_CTYPES": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-c", os.path.join(HERE, "..", "pytest.ini"), __file__],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20 * LIMIT,
    )
    assert run.returncode == 0, run.stdout
