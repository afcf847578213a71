"""What the standard library's Pool promises, asked of it and of ours: the same answers."""

from __future__ import annotations

import functools
import gc
import itertools
import multiprocessing
import multiprocessing.pool
import operator
import queue
import threading
import time
import warnings
import weakref

import pool_tasks as tasks
import pytest
from conftest import STDLIB

import polyproc
import polyproc.pool

SPAWN = multiprocessing.get_context("spawn")

OURS = {f"polyproc-{name}": polyproc.get_context(name).Pool for name in polyproc.get_all_start_methods()}
MAKERS = {"stdlib": SPAWN.Pool, **OURS, "polyproc-threads": polyproc.pool.ThreadPool}


@pytest.fixture(scope="module", params=[STDLIB, *OURS, "polyproc-threads"])
def pool(request):
    with MAKERS[request.param](3) as it:
        yield it


@pytest.fixture(scope="module", params=[STDLIB, *OURS])
def processes(request):
    with MAKERS[request.param](2) as it:
        yield it


@pytest.fixture(params=[STDLIB, *OURS, "polyproc-threads"])
def make(request):
    return MAKERS[request.param]


@pytest.fixture(params=[*OURS, "polyproc-threads"])
def make_ours(request):
    return MAKERS[request.param]


@pytest.fixture(scope="module")
def ours():
    with polyproc.Pool(2) as it:
        yield it


def timeout_error(pool):
    return polyproc.TimeoutError if type(pool).__module__.startswith("polyproc") else multiprocessing.TimeoutError


class Odd(Exception):
    pass


def failing(n, at):
    """n numbers; an exception comes instead of the one at ``at``."""
    for i in range(n):
        if i == at:
            raise Odd(i)
        yield i


# ---- results


def test_apply(pool):
    assert pool.apply(tasks.add, (5,)) == 15
    assert pool.apply(tasks.add, (5,), {"y": 1}) == 6
    assert pool.apply(tasks.add, [5, 6]) == 11
    assert pool.apply(tasks.add, kwds={"x": 2}) == 12


@pytest.mark.parametrize(
    ("function", "argument", "result"),
    [
        (functools.partial(tasks.add, y=100), 1, 101),
        (tasks.Weird(5).method, 3, 8),
        (tasks.Weird.static, 3, -3),
        (tasks.Weird.create, 4, 4),
        (tasks.Weird(5), 3, 15),
        (operator.neg, 3, -3),
        (str, 12, "12"),
        (operator.itemgetter(1), (7, 8), 8),
        ([1, 2, 3].index, 2, 1),
        (len, "four", 4),
    ],
    ids=str,
)
def test_callables(pool, function, argument, result):
    assert pool.apply(function, (argument,)) == result
    assert pool.map(function, [argument] * 20) == [result] * 20
    assert list(pool.imap(function, [argument] * 5)) == [result] * 5
    assert list(pool.imap_unordered(function, [argument] * 5, chunksize=2)) == [result] * 5


def test_bound_method_and_argument_are_one_object(pool):
    weird = tasks.Weird(1)
    assert pool.apply(weird.is_me, (weird,)) is True


def test_callable_with_state_is_copied_for_each_task(processes):
    assert list(processes.imap(tasks.Counter(), range(6))) == [1] * 6
    assert processes.map(tasks.Counter(), range(6), chunksize=3) == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("chunksize", [None, 1, 2, 7, 100])
@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
def test_map(pool, n, chunksize):
    assert pool.map(tasks.square, range(n), chunksize) == [x * x for x in range(n)]
    assert pool.map(tasks.square, list(range(n)), chunksize) == [x * x for x in range(n)]
    assert pool.map(tasks.square, (x for x in range(n)), chunksize) == [x * x for x in range(n)]
    assert pool.starmap(tasks.add, [(x, 1) for x in range(n)], chunksize) == [x + 1 for x in range(n)]


@pytest.mark.parametrize("iterable", ["text", {"a": 1, "b": 2}, range(10, 0, -3), (1.5, None), [True, [1, {2: 3}]]], ids=repr)
def test_map_of_other_iterables(pool, iterable):
    assert pool.map(tasks.identity, iterable) == list(iterable)
    assert list(pool.imap(tasks.identity, iterable)) == list(iterable)


def test_types_survive(pool):
    class_of = [1, True, 1.0, 1j, "1", b"1", None, (1,), [1], {1: 1}, {1}, frozenset((1,)), 1 << 100]
    for size in (1, 5):
        assert list(map(type, pool.map(tasks.identity, class_of, size))) == list(map(type, class_of))
        assert list(map(type, pool.imap(tasks.identity, class_of, size))) == list(map(type, class_of))


@pytest.mark.parametrize("chunksize", [1, 2, 7, 1000])
@pytest.mark.parametrize("n", [0, 1, 16, 1000])
def test_imap(pool, n, chunksize):
    assert list(pool.imap(tasks.square, range(n), chunksize)) == [x * x for x in range(n)]
    assert sorted(pool.imap_unordered(tasks.square, range(n), chunksize)) == [x * x for x in range(n)]


def test_imap_stays_exhausted(pool):
    for it in (pool.imap(tasks.square, range(3)), pool.imap_unordered(tasks.square, range(3))):
        assert iter(it) is it
        assert sorted(it) == [0, 1, 4]
        for _ in range(3):
            with pytest.raises(StopIteration):
                next(it)


def test_map_async(pool):
    result = pool.map_async(tasks.square, range(50))
    assert result.get() == [x * x for x in range(50)]
    assert result.ready()
    assert result.successful()
    assert result.get(timeout=0) == result.get()
    assert pool.starmap_async(tasks.add, [(1, 2), (3, 4)]).get() == [3, 7]
    empty = pool.map_async(tasks.square, [])
    assert empty.get(timeout=10) == []
    assert empty.ready()


def test_async_result_before_and_after(pool, tmp_path):
    file = tmp_path / "file"
    result = pool.apply_async(tasks.until, (str(file),))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(timeout_error(pool)):
        result.get(timeout=0.01)
    result.wait(0.05)
    assert not result.ready()
    file.touch()
    assert result.get() == str(file)
    assert result.ready()
    assert result.successful()
    bad = pool.apply_async(tasks.raises, (1,))
    bad.wait()
    assert bad.ready()
    assert not bad.successful()


def test_ready_without_waiting(pool):
    """Somebody who only ever looks sees the end all the same."""
    results = [pool.apply_async(tasks.square, (i,)) for i in range(5)]
    deadline = time.monotonic() + 30
    while not all(result.ready() for result in results):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert [result.get() for result in results] == [0, 1, 4, 9, 16]


def test_next_with_timeout(pool, tmp_path):
    for method in (pool.imap, pool.imap_unordered):
        file = tmp_path / method.__name__
        it = method(tasks.until, [str(tmp_path), str(file)])
        assert it.next(timeout=30) == str(tmp_path)
        for timeout in (0.02, 0):
            with pytest.raises(timeout_error(pool)):
                it.next(timeout=timeout)
        file.touch()
        assert it.next(timeout=30) == str(file)
        with pytest.raises(StopIteration):
            it.next(timeout=30)


def test_large(processes):
    for n in (0, 1, 60_000, 64 << 10, 70_000, 200_000, 5_000_000):
        assert processes.apply(tasks.length, (b"a" * n,)) == n
        assert processes.apply(tasks.large, (n,)) == b"x" * n
    assert processes.map(tasks.length, [b"a" * 300_000] * 20, 3) == [300_000] * 20
    assert list(processes.imap(tasks.large, [100_000] * 20)) == [b"x" * 100_000] * 20


# ---- exceptions


def test_exception_and_remote_traceback(processes):
    module = polyproc.pool if type(processes).__module__.startswith("polyproc") else multiprocessing.pool
    for call in (
        lambda: processes.apply(tasks.raises, (3,)),
        lambda: processes.map(tasks.raises, [3]),
        lambda: processes.starmap(tasks.raises, [(3,)]),
        lambda: next(processes.imap(tasks.raises, [3])),
        lambda: next(processes.imap_unordered(tasks.raises, [3])),
        lambda: next(iter(processes.imap(tasks.raises, [3], chunksize=2))),
        lambda: processes.apply_async(tasks.raises, (3,)).get(),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert type(caught.value) is ValueError
        assert caught.value.args == (3, "no")
        cause = caught.value.__cause__
        assert type(cause) is module.RemoteTraceback
        assert cause.tb == str(cause)
        assert cause.tb.startswith('\n"""\nTraceback (most recent call last):\n  File "')
        assert cause.tb.endswith('ValueError: (3, \'no\')\n"""')
        assert "# a comment to be found in the traceback" in cause.tb


def test_exception_in_threads_is_the_object_itself():
    with polyproc.pool.ThreadPool(1) as pool:
        error = Odd()

        def fail():
            raise error

        with pytest.raises(Odd) as caught:
            pool.apply(fail)
        assert caught.value is error
        assert caught.value.__cause__ is None


def test_one_bad_item(pool):
    with pytest.raises(ValueError):
        pool.map(tasks.raises_if_three, range(10), 1)
    it = pool.imap(tasks.raises_if_three, range(6))
    assert [next(it), next(it), next(it)] == [0, 1, 2]
    with pytest.raises(ValueError):
        next(it)
    assert list(it) == [4, 5]


def test_map_waits_for_the_others(pool):
    before = time.monotonic()
    with pytest.raises(ValueError):
        pool.map(tasks.raises_first_and_sleeps, range(3), 1)
    assert time.monotonic() - before > 0.25


def test_iterable_that_fails(pool):
    for at in (0, 1, 3):
        with pytest.raises(Odd):
            pool.map(tasks.square, failing(10, at), 1)
        with pytest.raises(Odd):
            pool.map_async(tasks.square, failing(10, at), 1)

        it = pool.imap(tasks.square, failing(10, at), 1)
        for i in range(at):
            assert next(it) == i * i
        with pytest.raises(Odd):
            next(it)
        with pytest.raises(StopIteration):
            next(it)

        got = []
        it = pool.imap_unordered(tasks.square, failing(10, at), 1)
        with pytest.raises(Odd):
            for _ in range(11):
                got.append(next(it))
        assert set(got) <= {i * i for i in range(at)}


def test_iterable_that_fails_in_a_chunk(pool):
    for size, before in ((2, 6), (4, 4)):
        it = iter(pool.imap(tasks.square, failing(20, 7), size))
        assert [next(it) for _ in range(before)] == [i * i for i in range(before)]
        with pytest.raises(Odd):
            next(it)
        with pytest.raises(StopIteration):
            next(it)


def test_iterable_with_a_length_that_fails(pool):
    class Special:
        def __len__(self):
            return 1

        def __iter__(self):
            return self

        def __next__(self):
            raise Odd

    seen = []
    result = pool.map_async(tasks.square, Special(), 1, error_callback=seen.append)
    with pytest.raises(Odd) as caught:
        result.get()
    assert seen == [caught.value]
    assert caught.value.__cause__ is None


def test_not_iterable(pool):
    for function in (pool.map, pool.starmap):
        with pytest.raises(TypeError):
            function(tasks.square, 5)
    for function in (pool.imap, pool.imap_unordered):
        it = function(tasks.square, 5)
        with pytest.raises(TypeError):
            next(it)
    assert pool.apply(tasks.square, (2,)) == 4


def test_function_that_has_no_pickle(processes):
    for call in (
        lambda: processes.apply(lambda: 0),
        lambda: processes.map(lambda x: 0, [1, 2]),
        lambda: list(processes.imap(lambda x: 0, [1, 2])),
    ):
        with pytest.raises(Exception, match="[Pp]ickle|local object"):
            call()
    assert processes.apply(tasks.square, (2,)) == 4


def test_arguments_that_have_no_pickle(processes):
    seen = []
    result = processes.apply_async(tasks.identity, (tasks.Unpicklable(),), error_callback=seen.append)
    with pytest.raises(TypeError, match="no pickle"):
        result.get(timeout=30)
    assert len(seen) == 1
    with pytest.raises(TypeError, match="no pickle"):
        processes.map(tasks.identity, [1, tasks.Unpicklable(), 3], 1)
    it = processes.imap(tasks.identity, [1, tasks.Unpicklable(), 3])
    assert next(it) == 1
    with pytest.raises(TypeError, match="no pickle"):
        next(it)
    assert list(it) == [3]


def test_result_that_has_no_pickle(processes):
    module = polyproc.pool if type(processes).__module__.startswith("polyproc") else multiprocessing.pool
    for _ in range(20):
        seen = []
        result = processes.apply_async(tasks.returns_unpicklable, error_callback=seen.append)
        with pytest.raises(module.MaybeEncodingError) as caught:
            result.get(timeout=30)
        assert seen == [caught.value]
        assert caught.value.exc == "TypeError('this object has no pickle')"
        assert caught.value.value == "<Unpicklable>"
        assert str(caught.value) == (
            "Error sending result: '<Unpicklable>'. Reason: 'TypeError('this object has no pickle')'"
        )
        assert repr(caught.value) == f"<MaybeEncodingError: {caught.value}>"


# ---- callbacks


def test_callbacks(pool):
    me = threading.get_ident()
    got = []

    def note(kind):
        return lambda value: got.append((kind, value, threading.get_ident() != me))

    pool.apply_async(tasks.square, (3,), callback=note("ok"), error_callback=note("bad")).get()
    pool.map_async(tasks.square, [1, 2], callback=note("ok"), error_callback=note("bad")).get()
    pool.starmap_async(tasks.add, [(1, 2)], callback=note("ok")).get()
    assert got == [("ok", 9, True), ("ok", [1, 4], True), ("ok", [3], True)]
    del got[:]
    for start, args in ((pool.apply_async, (3,)), (pool.map_async, [3, 3])):
        with pytest.raises(ValueError) as caught:
            start(tasks.raises, args, callback=note("ok"), error_callback=note("bad")).get()
        assert got.pop() == ("bad", caught.value, True)
        assert not got


def test_callbacks_are_called_though_nobody_waits(pool):
    got = []
    done = threading.Event()
    for i in range(20):
        pool.apply_async(tasks.square, (i,), callback=lambda x: got.append(x) or len(got) == 20 and done.set())
    assert done.wait(30)
    assert sorted(got) == [i * i for i in range(20)]


def test_callbacks_are_called_while_another_waits(pool, tmp_path):
    """The caller that waits for a long call must not be the one that callbacks of others wait for."""
    called = threading.Event()
    file = tmp_path / "file"
    slow = pool.apply_async(tasks.until, (str(file),))
    waiter = threading.Thread(target=slow.get)
    waiter.start()
    pool.apply_async(tasks.square, (2,), callback=lambda x: called.set())
    came = called.wait(30)
    file.touch()
    waiter.join()
    assert came


def test_callback_comes_before_the_result_is_ready(pool):
    entered, leave = threading.Event(), threading.Event()
    result = pool.apply_async(tasks.square, (2,), callback=lambda x: entered.set() or leave.wait(30))
    assert entered.wait(30)
    assert not result.ready()
    leave.set()
    assert result.get() == 4


def test_callbacks_and_join(make):
    got = []
    pool = make(2)
    for i in range(50):
        pool.apply_async(tasks.square, (i,), callback=got.append)
    pool.map_async(tasks.square, range(100), callback=got.extend)
    pool.close()
    pool.join()
    assert sorted(got) == sorted([i * i for i in range(50)] + [i * i for i in range(100)])


def test_callback_that_raises(make_ours, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    with make_ours(1) as pool:
        assert pool.apply_async(tasks.square, (2,), callback=lambda x: 1 / 0).get(30) == 4
        assert pool.apply_async(tasks.square, (3,), callback=lambda x: 1 / 0).get(30) == 9
    assert seen == [ZeroDivisionError] * 2


def test_callback_that_uses_the_pool(make_ours):
    got = []
    with make_ours(2) as pool:
        pool.apply_async(tasks.square, (2,), callback=lambda x: got.append(pool.map(tasks.square, range(x)))).get(30)
        assert got == [[0, 1, 4, 9]]


def test_callback_that_terminates_the_pool(make_ours):
    pool = make_ours(2)
    ended = threading.Event()
    pool.apply_async(tasks.square, (2,), callback=lambda x: pool.terminate() or ended.set())
    assert ended.wait(30)
    pool.join()


# ---- arguments


@pytest.mark.parametrize("processes", [0, -1])
def test_bad_number_of_processes(make, processes):
    with pytest.raises(ValueError, match="Number of processes must be at least 1"):
        make(processes)


def test_bad_arguments():
    with pytest.raises(TypeError, match="initializer must be a callable"):
        polyproc.Pool(1, initializer=5)
    for bad in (0, -1, "3", 1.5):
        with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
            polyproc.Pool(1, maxtasksperchild=bad)


def test_bad_chunksize(pool):
    for function in (pool.imap, pool.imap_unordered):
        for size in (0, -1):
            with pytest.raises(ValueError, match="Chunksize must be 1+"):
                function(tasks.square, [1], size)


def test_no_context_is_too_much(make):
    with pytest.raises(NotImplementedError, match="pool objects cannot be passed between processes or pickled"), make(1) as it:
        it.__reduce__()


def test_names():
    assert polyproc.pool.__all__ == multiprocessing.pool.__all__
    for name in ("RUN", "CLOSE", "TERMINATE", "INIT"):
        assert getattr(polyproc.pool, name) == getattr(multiprocessing.pool, name)
    theirs, ours = multiprocessing.pool, polyproc.pool
    for one, other in (
        (theirs.Pool, ours.Pool),
        (theirs.ApplyResult, ours.AsyncResult),
        (theirs.IMapIterator, ours.IMapIterator),
    ):
        public = {name for name in dir(one) if not name.startswith("_")} - {"Process"}
        assert public <= set(dir(other))
    assert issubclass(ours.MapResult, ours.AsyncResult)
    assert issubclass(ours.IMapUnorderedIterator, ours.IMapIterator)
    assert issubclass(ours.ThreadPool, ours.Pool)


# ---- the end


def test_with(make):
    with make(2) as pool:
        result = pool.map_async(tasks.square, range(10))
        assert result.get() == [x * x for x in range(10)]
        assert f"state=RUN pool_size={len(pool._pool)}" in repr(pool)
    pool.join()
    assert result.get() == [x * x for x in range(10)]
    for use in (
        lambda: pool.apply(tasks.square, (1,)),
        lambda: pool.apply_async(tasks.square, (1,)),
        lambda: pool.map(tasks.square, [1]),
        lambda: pool.map_async(tasks.square, [1]),
        lambda: pool.starmap(tasks.square, [1]),
        lambda: pool.imap(tasks.square, [1]),
        lambda: pool.imap_unordered(tasks.square, [1]),
        lambda: pool.__enter__(),
    ):
        with pytest.raises(ValueError, match="Pool not running"):
            use()


def test_join_of_a_running_pool(make):
    with make(1) as pool, pytest.raises(ValueError, match="Pool is still running"):
        pool.join()


def test_close_lets_everything_finish(make):
    pool = make(2)
    results = [pool.apply_async(tasks.sleep_square, (i, 0.01)) for i in range(10)]
    mapped = pool.map_async(tasks.square, range(100))
    ordered = pool.imap(tasks.square, range(3000))
    unordered = pool.imap_unordered(tasks.square, iter(range(3000)), chunksize=7)
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(tasks.square, (1,))
    pool.join()
    pool.join()
    assert [result.get(0) for result in results] == [i * i for i in range(10)]
    assert mapped.get(0) == [i * i for i in range(100)]
    assert list(ordered) == [i * i for i in range(3000)]
    assert sorted(unordered) == [i * i for i in range(3000)]
    pool.terminate()


def test_imap_after_close(make):
    """What is being read when the pool is closed may be read to its end."""
    pool = make(2)
    it = pool.imap(tasks.square, iter(range(5000)))
    assert next(it) == 0
    pool.close()
    assert sum(1 for _ in it) == 4999
    pool.join()


def test_results_that_nobody_wants_are_computed(make, tmp_path):
    path = str(tmp_path / "lines")
    pool = make(1)
    pool.imap(functools.partial(tasks.append_line, path), map(str, range(500)))
    pool.imap_unordered(functools.partial(tasks.append_line, path), map(str, range(500)))
    pool.close()
    pool.join()
    assert len(open(path).readlines()) == 1000


def test_unwanted_results_are_computed_though_nobody_joins(make_ours, tmp_path):
    path = tmp_path / "lines"
    with make_ours(1) as pool:
        pool.imap_unordered(functools.partial(tasks.append_line, str(path)), map(str, range(300)))
        deadline = time.monotonic() + 30
        while not path.exists() or len(path.read_text().splitlines()) < 300:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_terminate(make):
    pool = make(3)
    pool.map_async(tasks.sleep, [0.1] * 10000, chunksize=1)
    pool.terminate()
    pool.terminate()
    before = time.monotonic()
    pool.join()
    assert time.monotonic() - before < 2
    del pool
    gc.collect()  # the standard library's pipes


def test_what_waits_for_a_terminated_pool_ends(make_ours):
    pool = make_ours(1)
    result = pool.apply_async(tasks.sleep, (30,))
    mapped = pool.map_async(tasks.sleep, [30] * 3)
    it = pool.imap(tasks.sleep, [30] * 3)
    ended = []

    def wait():
        try:
            result.get()
        except polyproc.ProcessError as e:
            ended.append(e)

    waiter = threading.Thread(target=wait)
    waiter.start()
    pool.terminate()
    waiter.join(10)
    assert not waiter.is_alive()
    assert len(ended) == 1
    for get in (result.get, mapped.get, it.next):
        with pytest.raises(polyproc.ProcessError, match="terminated"):
            get()


def test_terminate_from_another_thread_ends_join(make_ours):
    pool = make_ours(1)
    pool.apply_async(tasks.sleep, (30,))
    pool.close()
    timer = threading.Timer(0.2, pool.terminate)
    timer.start()
    pool.join()
    timer.join()


def test_a_running_pool_that_is_dropped_warns(make_ours):
    pool = make_ours(1)
    assert pool.apply(tasks.square, (2,)) == 4
    core = pool._core
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
        gc.collect()
    assert core.stopped
    pool = make_ours(1)
    pool.terminate()
    pool.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del pool
        gc.collect()


def test_a_result_keeps_its_pool(make_ours):
    pool = make_ours(1)
    result = pool.apply_async(tasks.sleep_square, (4, 0.2))
    reference = weakref.ref(pool)
    pool._state = "CLOSE"  # so that nobody warns
    del pool
    gc.collect()
    assert result.get(30) == 16
    gc.collect()
    assert reference() is None


# ---- memory


class Item:
    """Counts its instances, copies included."""

    alive: weakref.WeakSet = weakref.WeakSet()

    def __init__(self):
        Item.alive.add(self)

    def __reduce__(self):
        return Item, ()


def test_references_are_released(pool):
    Item.alive.clear()
    for run in (
        lambda items: pool.map(tasks.identity, items),
        lambda items: pool.map(tasks.identity, items, 1),
        lambda items: list(pool.imap(tasks.identity, items)),
        lambda items: [pool.apply(tasks.identity, (item,)) for item in items],
    ):
        items = [Item() for _ in range(10)]
        run(items)
        del items
        deadline = time.monotonic() + 10
        while Item.alive and time.monotonic() < deadline:
            gc.collect()
        assert not Item.alive


# ---- streams


class Endless:
    """Counts from 0 and knows how far it was asked."""

    def __init__(self):
        self.read = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.read += 1
        return self.read - 1


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_an_endless_input_is_read_as_results_are_taken(make_ours, method):
    with make_ours(2) as pool:
        source = Endless()
        it = getattr(pool, method)(tasks.square, source)
        for taken in range(3000):
            next(it)
            assert source.read <= 2 * (taken + 1) + 8
        assert source.read <= 3000 + 4096
        for _ in range(7000):
            next(it)
        assert source.read <= 10_000 + 4096
        del it
        gc.collect()
        read = source.read
        assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]
        assert source.read <= read + 1  # the thread may have been about to read one


def test_input_that_uses_the_pool(make_ours):
    with make_ours(2) as pool:
        inner = (pool.apply(tasks.square, (i,)) for i in range(10))
        assert list(pool.imap(tasks.square, inner)) == [i**4 for i in range(10)]


def test_input_that_depends_on_results(make):
    """A crawler: what is to be fetched next is found in what was fetched."""
    with make(2) as pool:
        for method in (pool.imap_unordered, pool.imap):
            todo = queue.Queue()
            todo.put(5)
            left, seen = 1, []
            for n in method(tasks.identity, iter(todo.get, None)):
                seen.append(n)
                left += 1 if n else -1
                for child in [n - 1] * 2 if n else []:
                    todo.put(child)
                if not left:
                    todo.put(None)
            assert len(seen) == 2**6 - 1


@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_results_come_before_the_input_goes_on(make, method, chunksize):
    more = threading.Event()

    def numbers():
        yield from range(2)
        assert more.wait(30)
        yield from range(2, 4)

    with make(2) as pool:
        it = getattr(pool, method)(tasks.square, numbers(), chunksize)
        assert sorted([next(it), next(it)]) == [0, 1]
        for _ in range(2):
            if hasattr(it, "next"):  # the standard library's is a generator where there are chunks
                with pytest.raises(timeout_error(pool)):
                    it.next(timeout=0.01)
        more.set()
        assert sorted(it) == [4, 9]


def test_timeouts_of_several_consumers(make_ours):
    """One that waits without a limit does not keep another one from its timeout."""
    more = threading.Event()

    def numbers():
        assert more.wait(30)
        yield 3

    with make_ours(1) as pool:
        it = pool.imap(tasks.square, numbers())
        got = []
        consumer = threading.Thread(target=lambda: got.extend(it))
        consumer.start()
        for _ in range(3):
            with pytest.raises(polyproc.TimeoutError):
                it.next(timeout=0.05)
        more.set()
        consumer.join(30)
        assert got == [9]


class Data(list):
    pass


@pytest.mark.parametrize("kind", [Data, iter])
def test_an_iterator_left_before_its_end_leaves_nothing(make_ours, kind):
    threads = threading.active_count()
    with make_ours(2) as pool:
        pool.map(tasks.square, range(4))
        inputs = []
        for _ in range(20):
            data = Data([[i] for i in range(3000)])
            inputs.append(weakref.ref(data))
            for _ in pool.imap(len, kind(data)):
                break
            del data
        core = pool._core
        deadline = time.monotonic() + 30
        while core.jobs or core.feeding or any(each() is not None for each in inputs):
            gc.collect()
            assert time.monotonic() < deadline, (core.jobs, core.feeding, [each() is not None for each in inputs])
            time.sleep(0.01)
        assert not core.held and not core.wanted and not core.handing
        pool.close()
        pool.join()  # the rest of the inputs is not read
    while threading.active_count() > threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_forgotten_results_are_dropped_as_they_come(make_ours):
    """Nobody holds what apply_async and map_async have returned."""
    Item.alive.clear()
    with make_ours(2) as pool:
        core = pool._core
        for _ in range(50):
            pool.apply_async(tasks.make_item, ())
            pool.map_async(tasks.identity, range(3))
        deadline = time.monotonic() + 30
        while core.jobs:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gc.collect()
        assert not core.held and not core.wanted and not Item.alive
        assert pool.apply(tasks.square, (3,)) == 9


def test_forgotten_calls_are_run_though_the_pool_is_forgotten_too(make, tmp_path):
    path = tmp_path / "lines"

    def fire():
        pool = make(1)
        pool.apply_async(tasks.sleep_square, (1, 0.2))
        for i in range(3):
            pool.apply_async(tasks.append_line, (str(path), str(i)))
        pool.close()

    fire()
    gc.collect()
    deadline = time.monotonic() + 30
    while not path.exists() or len(path.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gc.collect()


def test_a_thread_that_cannot_be_started(make_ours, monkeypatch):
    """It is an error of the call that needs it, and of nothing else."""
    with make_ours(1) as pool:
        start = threading.Thread.start

        def fail(self):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        for call in (
            lambda: pool.apply_async(abs, (1,), callback=print),
            lambda: pool.map_async(abs, [1], error_callback=print),
            lambda: pool.imap(abs, iter([1, 2])),
        ):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                call()
        assert pool.apply_async(abs, (-1,)).get(30) == 1
        assert list(pool.imap(abs, [-1, -2])) == [1, 2]
        pool.apply_async(abs, (-1,))  # forgotten
        assert pool.map(abs, [-3]) == [3]
        monkeypatch.setattr(threading.Thread, "start", start)
        got = []
        assert pool.apply_async(abs, (-1,), callback=got.append).get(30) == 1
        assert got == [1]
        assert list(pool.imap(abs, iter([-1, -2]))) == [1, 2]
        pool.close()
        pool.join()


@pytest.mark.parametrize("ways", [("forth", "back"), (None, None)])
@pytest.mark.parametrize("method", polyproc.get_all_start_methods())
def test_subclass_with_queues_and_reducers_of_its_own(method, ways):
    class Pool(polyproc.pool.Pool):
        def _setup_queues(self):
            self._inqueue = tasks.ReducingQueue(self._ctx, ways[0])
            self._outqueue = tasks.ReducingQueue(self._ctx, ways[1])
            self._quick_put = self._inqueue._send

    wanted = "here forth there back" if ways[0] else "here there"
    with Pool(2, context=polyproc.get_context(method)) as pool:
        assert pool.apply(tasks.add_there, (tasks.Marked("here"),)).text == wanted
        for call in (pool.map, pool.imap, lambda *args: pool.map(*args, chunksize=1)):
            assert [it.text for it in call(tasks.add_there, [tasks.Marked("here")] * 5)] == [wanted] * 5
        with pytest.raises(LookupError):
            pool.apply(tasks.add_there, (3,))
        with pytest.raises(Exception, match="[Pp]ickle|local object"):
            pool.apply(tasks.add_there, (lambda: 0,))
        assert pool.apply_async(tasks.square, (3,)).get(30) == 9


def test_progress_of_a_map(make):
    """What progress displays read, though it is not documented."""
    with make(1) as pool:
        result = pool.map_async(tasks.square, range(40), chunksize=10)
        deadline = time.monotonic() + 30
        while left := result._number_left:
            assert 0 < left <= 4
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert result.get() == [x * x for x in range(40)]
        assert result._chunksize == 10


def test_several_streams_at_once(pool):
    streams = [pool.imap(tasks.square, range(i, i + 200)) for i in range(5)]
    for i, values in enumerate(zip(*streams)):
        assert values == tuple((i + k) ** 2 for k in range(5))


def test_one_stream_and_many_consumers(make_ours):
    """(The standard library's iterator lets a second consumer wait for ever, or raises TimeoutError in it.)"""
    with make_ours(2) as pool:
        for method in (pool.imap, pool.imap_unordered):
            it = method(tasks.square, range(2000))
            got = [[] for _ in range(4)]
            threads = [threading.Thread(target=lambda out, it=it: out.extend(it), args=(out,)) for out in got]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert sorted(itertools.chain(*got)) == [i * i for i in range(2000)]


# ---- threads


def test_many_threads_at_once(pool):
    errors = []

    def work(k):
        try:
            for i in range(15):
                assert pool.map(tasks.square, range(k, k + 50)) == [x * x for x in range(k, k + 50)]
                assert pool.apply(tasks.add, (k, i)) == k + i
                assert list(pool.imap(tasks.square, range(k, k + 20))) == [x * x for x in range(k, k + 20)]
                assert pool.apply_async(tasks.square, (k,), callback=lambda x: None).get(60) == k * k
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors


def test_results_that_nobody_asks_for_do_not_pile_up(ours):
    for _ in range(5000):
        ours.apply_async(tasks.nothing, (1,))
    assert ours.apply(tasks.square, (2,)) == 4
    assert len(ours._core.jobs) < 5000
