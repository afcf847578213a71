"""Everything that can go wrong in a task costs that task, quickly, and says precisely what it was; the pool goes on.

(With the standard library half of these wait for ever.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time

import pool_tasks as tasks
import pytest

import polyproc
from polyproc import _hosted
from polyproc.pool import MaybeEncodingError, RemoteTraceback

# The promise is a second from the event. Test machines are busy; what was measured is printed.
PROMISE = 1.0
DEADLINE = 5.0


METHODS = polyproc.get_all_start_methods()


@pytest.fixture(params=METHODS)
def Pool(request):
    return polyproc.get_context(request.param).Pool


@pytest.fixture
def SpawnPool():
    return polyproc.get_context("spawn").Pool


@pytest.fixture
def pool(Pool):
    with Pool(2) as it:
        it.map(tasks.nothing, range(10))
        yield it


@contextlib.contextmanager
def soon(what):
    before = time.monotonic()
    yield
    took = time.monotonic() - before
    print(f"{what}: {took * 1000:.1f} ms{'' if took < PROMISE else ' (too slow)'}")
    assert took < DEADLINE


def still_works(pool):
    assert pool.map(tasks.square, range(1000), 1) == [x * x for x in range(1000)]
    assert sum(pool.imap_unordered(tasks.square, range(1000))) == sum(x * x for x in range(1000))
    pool._repopulate_pool()
    assert len(pool._pool) == pool._processes


LOSSES = [
    (tasks.kill_self, (), -signal.SIGKILL),
    (tasks.exit_seven, (), 7),
    (tasks.segfault, (), -signal.SIGSEGV),
    (tasks.system_exit, (5,), 5),
    (tasks.system_exit, (None,), 0),
    (tasks.system_exit, (0,), 0),
    (tasks.keyboard_interrupt, (), 130),
    (tasks.identity, (tasks.DeadlyToLoad(),), 9),
]


@pytest.mark.parametrize(("function", "args", "exitcode"), LOSSES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_worker_lost(pool, function, args, exitcode):
    pids = {worker.pid for worker in pool._pool}
    with soon(function.__name__), pytest.raises(polyproc.WorkerLost) as caught:
        pool.apply(function, args)
    lost = caught.value
    assert isinstance(lost, Exception)
    assert isinstance(lost, polyproc.ProcessError)
    assert lost.pid in pids
    assert lost.exitcode == exitcode
    assert lost.signal == (-exitcode if exitcode < 0 else None)
    assert lost.task == function.__name__
    assert function.__name__ in str(lost)
    still_works(pool)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "forkserver"])  # whose stderr is the server's
def test_system_exit_with_a_text(capfd, method):
    with polyproc.get_context(method).Pool(2) as pool:
        with pytest.raises(polyproc.WorkerLost) as caught:
            pool.apply(tasks.system_exit, ("good bye",))
        assert caught.value.exitcode == 1
        assert capfd.readouterr().err == "good bye\n"
        still_works(pool)


@pytest.mark.parametrize("method", ["map", "starmap", "imap", "imap_unordered", "map_async"])
def test_worker_lost_in_every_method(pool, method):
    call = getattr(pool, method)
    with soon(method), pytest.raises(polyproc.WorkerLost) as caught:
        if method == "map_async":
            call(tasks.exit_seven, [(), ()], 1).get()
        elif method.startswith("imap"):
            next(call(tasks.exit_seven, [()]))
        else:
            call(tasks.exit_seven, [(), ()][: 1 if method == "starmap" else 2], 1)
    assert caught.value.exitcode == 7
    assert caught.value.task.startswith("exit_seven for item ")
    still_works(pool)


def test_only_the_task_that_ran_is_lost(pool):
    """Tasks that wait in the lane of the worker that dies go elsewhere."""
    before = [pool.apply_async(tasks.square, (i,)) for i in range(100)]
    victim = pool.apply_async(tasks.kill_self)
    after = [pool.apply_async(tasks.square, (i,)) for i in range(100)]
    with pytest.raises(polyproc.WorkerLost):
        victim.get(30)
    assert [result.get(30) for result in before + after] == [i * i for i in range(100)] * 2
    assert pool._core.pids()


def test_imap_goes_on_after_a_loss(pool):
    got, lost = [], 0
    it = pool.imap(tasks.lose_randomly, range(500))
    while True:
        try:
            got.append(next(it))
        except polyproc.WorkerLost:
            got.append(None)
            lost += 1
        except StopIteration:
            break
    assert got == [None if x % 211 == 5 else x for x in range(500)]
    assert lost == 3


def test_killed_from_outside(pool, tmp_path):
    running = [tmp_path / "one", tmp_path / "two"]
    result, other = (pool.apply_async(tasks.touch_and_sleep, (str(path), 60)) for path in running)
    deadline = time.monotonic() + 30
    workers = pool._pool
    while not all(path.exists() for path in running):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with soon("kill from outside"):
        for worker in workers:
            worker.kill()
        for each in (result, other):
            with pytest.raises(polyproc.WorkerLost, match="SIGKILL"):
                each.get(DEADLINE)
    still_works(pool)
    assert not any(worker.is_alive() for worker in workers)
    assert {worker.pid for worker in workers}.isdisjoint(worker.pid for worker in pool._pool)


def test_idle_worker_killed(pool):
    for worker in pool._pool:
        worker.kill()
    still_works(pool)


def test_error_callback_gets_the_loss(pool):
    seen = []
    result = pool.apply_async(tasks.exit_seven, error_callback=seen.append)
    with pytest.raises(polyproc.WorkerLost) as caught:
        result.get(DEADLINE)
    assert seen == [caught.value]


# ---- pickling


def test_exception_that_cannot_be_unpickled(pool):
    with soon("exception that cannot be unpickled"), pytest.raises(tasks.TwoArguments) as caught:
        pool.apply(tasks.raises_two_arguments)
    assert type(caught.value) is tasks.TwoArguments
    assert caught.value.args == ("1 and b",)
    assert (caught.value.a, caught.value.b) == (1, "b")
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "raise TwoArguments(1" in str(caught.value.__cause__)
    still_works(pool)


def test_exception_that_cannot_be_pickled(pool):
    with soon("exception that cannot be pickled"), pytest.raises(tasks.HoldsUnpicklable) as caught:
        pool.apply(tasks.raises_holding_unpicklable)
    assert caught.value.args == ("<Unpicklable>", 5)
    assert caught.value.kept == "kept"
    assert not hasattr(caught.value, "held")
    still_works(pool)


def test_exception_of_a_class_that_cannot_be_pickled(pool):
    with pytest.raises(MaybeEncodingError) as caught:
        pool.apply(tasks.raises_local)
    assert caught.value.value == "Local('of a local class')"
    assert "Local" in str(caught.value.__cause__)
    still_works(pool)


def test_exception_without_str(pool):
    with pytest.raises(tasks.BadStr) as caught:
        pool.apply(tasks.raises_bad_str)
    assert caught.value.args == (1,)
    still_works(pool)


def test_base_exception(pool):
    with soon("BaseException"), pytest.raises(tasks.Base, match="not an Exception") as caught:
        pool.apply(tasks.base_exception)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    still_works(pool)


@pytest.mark.parametrize("function", [tasks.returns_unpicklable, tasks.returns_lambda])
def test_result_that_cannot_be_pickled(pool, function):
    with soon(function.__name__), pytest.raises(MaybeEncodingError):
        pool.apply(function)
    with pytest.raises(MaybeEncodingError):
        pool.map(function, range(10))
    still_works(pool)


def test_result_that_cannot_be_unpickled(pool):
    with soon("result that cannot be unpickled"), pytest.raises(LookupError, match="cannot be loaded"):
        pool.apply(tasks.returns_unloadable)
    it = pool.imap(tasks.returns_unloadable, range(2))
    for _ in range(2):
        with pytest.raises(LookupError):
            next(it)
    still_works(pool)


def test_argument_that_cannot_be_pickled(pool):
    with soon("argument that cannot be pickled"), pytest.raises(TypeError, match="no pickle"):
        pool.apply(tasks.identity, (tasks.Unpicklable(),))
    still_works(pool)


def test_argument_that_cannot_be_unpickled(pool):
    with soon("argument that cannot be unpickled"), pytest.raises(LookupError, match="cannot be loaded") as caught:
        pool.apply(tasks.identity, (tasks.Unloadable(),))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "_fail_to_load" in str(caught.value.__cause__)
    it = pool.imap(tasks.identity, [1, tasks.Unloadable(), 3])
    assert next(it) == 1
    with pytest.raises(LookupError):
        next(it)
    assert list(it) == [3]
    still_works(pool)


def test_function_that_workers_do_not_have(pool, monkeypatch):
    def appeared(x):
        return x

    appeared.__qualname__ = "appeared"
    appeared.__module__ = "pool_tasks"
    monkeypatch.setattr(tasks, "appeared", appeared, raising=False)
    with soon("unknown function"), pytest.raises(AttributeError, match="appeared"):
        pool.apply(appeared, (1,))
    still_works(pool)


# ---- initializers


def test_initializer(Pool):
    with Pool(3, tasks.set_value, ("set",)) as pool:
        assert pool.map(tasks.get_value, range(20), 1) == ["set"] * 20
        with pytest.raises(polyproc.WorkerLost):
            pool.apply(tasks.exit_seven)
        assert pool.map(tasks.get_value, range(20), 1) == ["set"] * 20


def test_initializer_that_fails_once(tmp_path, Pool):
    with soon("initializer that fails once"), Pool(2, tasks.init_fails_once, (str(tmp_path / "once"),)) as pool:
        still_works(pool)


def test_initializer_that_always_fails(Pool):
    pool = Pool(2, tasks.init_fails)
    pending = pool.apply_async(tasks.square, (1,))
    stream = pool.imap(tasks.square, range(10))
    seen = []
    with_callback = pool.apply_async(tasks.square, (1,), error_callback=seen.append)
    with soon("initializer that always fails"):
        for call in (
            pending.get,
            with_callback.get,
            lambda: next(stream),
            lambda: pool.apply(tasks.square, (1,)),
            lambda: pool.map(tasks.square, range(100)),
            lambda: next(pool.imap_unordered(tasks.square, range(100))),
        ):
            with pytest.raises(ArithmeticError, match="bad start") as caught:
                call()
            assert type(caught.value) is ArithmeticError
            assert "init_fails" in str(caught.value.__cause__)
    assert len(seen) == 1
    time.sleep(0.5)  # starts that were under way
    started = _started(pool)
    time.sleep(0.5)
    assert _started(pool) == started
    assert started < 20
    with soon("terminate"):
        pool.terminate()
        pool.join()


def test_initializer_that_fails_before_the_pool_is_told_of_its_process(monkeypatch):
    """The fork server has collected the worker by then: there is no such process."""
    fill = _hosted.Workers._fill
    waited = []

    def late(workers, vacancy, child, worker):
        deadline = time.monotonic() + 30
        while os.path.exists(f"/proc/{child.pid}"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        waited.append(child.pid)
        fill(workers, vacancy, child, worker)

    monkeypatch.setattr(_hosted.Workers, "_fill", late)
    with polyproc.get_context("forkserver").Pool(2, tasks.init_fails) as pool:
        with pytest.raises(ArithmeticError, match="bad start"):
            pool.apply(tasks.square, (1,))
    pool.join()
    assert len(waited) >= 2


def _started(pool):
    """How many workers were started since the pool was opened."""
    from ctypes import byref

    from polyproc._abi import PoolState
    from polyproc._lib import lib

    state = PoolState()
    assert lib().pp_pool_info(pool._core.handle, byref(state), None, 0, None) == 0
    return state.started


def test_initializer_that_cannot_be_unpickled(SpawnPool):
    with SpawnPool(1, tasks.identity, (tasks.Unloadable(),)) as pool, soon("unloadable initargs"):
        with pytest.raises(LookupError):
            pool.apply(tasks.square, (1,))


def test_initializer_that_exits(Pool):
    with Pool(2, tasks.init_exits, (3,)) as pool:
        with pytest.raises(polyproc.ProcessError, match="exit code 3"):
            pool.apply(tasks.square, (1,))
        with pytest.raises(polyproc.ProcessError):
            pool.map(tasks.square, range(10))


def test_initializer_that_cannot_be_pickled(SpawnPool):
    with pytest.raises(Exception, match="[Pp]ickle"):
        SpawnPool(1, lambda: 0)


# ---- workers that are replaced on purpose


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_maxtasksperchild(limit, Pool):
    with Pool(2, maxtasksperchild=limit) as pool:
        assert len(pool._pool) == 2
        before = {worker.pid for worker in pool._pool}
        pids = pool.map(tasks.pid, range(30), 1)
        assert max(pids.count(pid) for pid in set(pids)) <= limit
        assert len(set(pids)) >= 30 // limit
        assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]
        deadline = time.monotonic() + 30
        # Who has given his last result may not have ended yet, or end just now.
        while len(now := {worker.pid for worker in pool._pool}) < 2 or now == before:
            assert time.monotonic() < deadline
            pool._repopulate_pool()
            time.sleep(0.005)


def test_maxtasksperchild_and_close(Pool):
    pool = Pool(3, maxtasksperchild=1)
    results = [pool.apply_async(tasks.sleep_square, (i, 0.1)) for i in range(6)]
    pool.close()
    pool.join()
    assert [result.get(0) for result in results] == [i * i for i in range(6)]


# ---- many, much


@pytest.mark.slow
def test_sixty_four_workers(Pool):
    with Pool(64) as pool:
        assert pool.map(tasks.square, range(5000), 1) == [x * x for x in range(5000)]
        assert len({worker.pid for worker in pool._pool}) == 64
        used = set()
        deadline = time.monotonic() + 60  # 64 interpreters start meanwhile
        while len(used) < 64 and time.monotonic() < deadline:
            used.update(pool.map(tasks.sleepy_pid, range(200), 1))
        assert len(used) == 64


def test_hundred_megabytes(pool):
    n = 100 << 20
    assert pool.apply(tasks.length, (bytes(n),)) == n
    data = pool.apply(tasks.large, (n,))
    assert len(data) == n
    assert data[::4096].count(b"x") == n // 4096


def test_too_many_workers(Pool):
    with pytest.raises(ValueError):
        Pool(5000)


def test_pools_beside_each_other(Pool):
    pools = [Pool(1) for _ in range(5)]
    try:
        assert [pool.apply(tasks.square, (i,)) for i, pool in enumerate(pools)] == [0, 1, 4, 9, 16]
        assert len({pool.apply(tasks.pid) for pool in pools}) == 5
    finally:
        for pool in pools:
            pool.terminate()


def test_losses_and_threads(pool):
    """Several threads, several kinds of trouble at once: everybody gets what is theirs."""
    errors = []

    def work(k):
        try:
            for i in range(8):
                if (i + k) % 4 == 0:
                    with pytest.raises(polyproc.WorkerLost):
                        pool.apply(tasks.exit_seven)
                assert pool.map(tasks.square, range(k, k + 40), 3) == [x * x for x in range(k, k + 40)]
                with pytest.raises(ValueError, match=str(k)):
                    pool.apply(tasks.raises, (k,))
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors


def test_argument_that_does_not_fit_into_the_worker(Pool):
    """The limit is the worker's own: its tasks fail, and it lives."""
    with Pool(1, tasks.limit_memory, (200 << 20,)) as pool:
        pid = pool.apply(tasks.pid, (0,))
        big = bytes(150 << 20)
        for _ in range(2):
            with pytest.raises(MemoryError):
                pool.apply(len, (big,))
        with pytest.raises(MemoryError):
            pool.map(len, [b"", big, big, b""], 1)
        assert pool.apply(len, (bytes(10 << 20),)) == 10 << 20
        with pytest.raises(MemoryError):
            pool.apply(bytes, (190 << 20,))
        assert pool.apply(tasks.pid, (0,)) == pid


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_no_process_for_a_replacement(monkeypatch, method):
    """The error of the tasks says why,."""
    with polyproc.get_context(method).Pool(1) as pool:
        assert pool.apply(tasks.square, (3,)) == 9

        def fail(workers, vacancy):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        monkeypatch.setattr(_hosted.Workers, "_worker", fail)
        pool._pool[0].kill()
        with pytest.raises(polyproc.StartError, match="[Rr]esource temporarily unavailable"):
            while True:
                try:
                    pool.apply_async(tasks.square, (3,)).get(DEADLINE)
                except polyproc.WorkerLost:
                    pass  # it had the task


def test_no_process_for_the_first_worker(monkeypatch):
    def fail():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(_hosted.popen_fork, "fork", fail)
    with pytest.raises(BlockingIOError, match="Resource temporarily unavailable"):
        polyproc.get_context("fork").Pool(2)


def is_closed(end):
    """Whether nobody has the other end, within a time that busy machines need."""
    if not end.poll(30):
        return False
    with pytest.raises(EOFError):
        end.recv()
    return True


@pytest.mark.parametrize("how", ["lost", "terminated"])
def test_what_tasks_hold_that_do_not_run(Pool, how):
    """The arguments of a task that did not run to its end hold nothing any more: here an end of a pipe."""
    with Pool(1) as pool:
        end, other = polyproc.Pipe()
        if how == "lost":
            lost = pool.apply_async(tasks.identity, ((tasks.EndsWorker(), end),))
            end.close()
            with pytest.raises(polyproc.WorkerLost):
                lost.get(30)
        else:
            pool.apply_async(tasks.wait_for, (polyproc.Event(),))
            waiting = [pool.apply_async(tasks.identity, (end,)) for _ in range(300)]
            end.close()
            pool.terminate()
            del waiting
        assert is_closed(other)


def test_what_results_hold_that_nobody_reads(Pool):
    """The result of a task that nobody asks for holds nothing any more."""
    with Pool(1) as pool:
        end, other = polyproc.Pipe()
        result = pool.apply_async(tasks.identity, (end,))
        end.close()
        del result
        pool.apply(abs, (1,))
        assert is_closed(other)
