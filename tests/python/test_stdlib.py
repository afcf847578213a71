"""Programs that use both packages: objects of the standard library's reach our children, and its hooks run there."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import multiprocessing.resource_sharer
import multiprocessing.util
import os
import pickle
import socket

import pytest
import stdlib_tasks as tasks
from process_tasks import question

import polyproc

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(params=METHODS)
def ctx(request):
    return polyproc.get_context(request.param)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "answer")


@pytest.fixture(scope="module")
def manager():
    with multiprocessing.get_context("spawn").Manager() as manager:
        yield manager


@pytest.fixture(autouse=True)
def sharer(leaks):
    """Connections of the standard library are sent by a thread with a listening socket, here."""
    yield
    multiprocessing.resource_sharer.stop(5)


def run(ctx, target, *args):
    p = ctx.Process(target=target, args=args)
    p.start()
    p.join(60)
    code = p.exitcode
    p.close()
    assert code == 0


def our_key():
    return bytes(polyproc.current_process().authkey).hex()


def their_key():
    return bytes(multiprocessing.current_process().authkey).hex()


def test_a_child_has_both_keys(ctx, path):
    run(ctx, tasks.keys, path)
    seen = question(path, 0)
    assert their_key() != our_key()
    assert (seen["stdlib"], seen["polyproc"]) == (their_key(), our_key())
    for what in ("name", "pid", "alive", "daemon", "repr"):
        assert seen[what][0] == seen[what][1], what
    assert seen["class"] == [ctx.Process.__name__, True]


@pytest.mark.parametrize("method", METHODS)
def test_a_grandchild_has_both_keys(ctx, method, path):
    run(ctx, tasks.keys_of_a_child, method, path)
    seen = question(path, 0)
    assert (seen["stdlib"], seen["polyproc"]) == (their_key(), our_key())


def test_a_worker_has_both_keys(ctx):
    with ctx.Pool(1) as pool:
        stdlib, ours = pool.apply(tasks.stdlib_keys)
    assert (stdlib.hex(), ours.hex()) == (their_key(), our_key())


def test_one_process_by_two_names(ctx, path):
    run(ctx, tasks.rename, path)
    assert question(path, 0) == their_key()
    assert question(path + ".name", 0) == "renamed"


def test_any_class_of_processes(path):
    p = tasks.special("fork")(args=(path,), name="mine")
    p.start()
    p.join(60)
    assert p.exitcode == 0
    p.close()
    assert question(path, 0) == ["special", "mine!", True]


def test_manager_proxies(ctx, manager, path):
    proxy = manager.dict(n=1)
    run(ctx, tasks.increment, proxy, path)
    assert question(path, 0) == 2
    with ctx.Pool(1) as pool:
        again = pool.apply(tasks.increment, (proxy,))
        assert again["n"] == 3
    assert proxy["n"] == 3


def test_connections_of_the_stdlib(ctx, path):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        run(ctx, tasks.send, theirs, path)
        assert ours.recv() == "through a connection"


def test_a_child_shares_a_connection_of_the_stdlib(ctx, path):
    """The stdlib's resource sharer of the parent is of no use in a forked child, which needs one of its own."""
    a, b = multiprocessing.Pipe()
    with a, b:
        multiprocessing.reduction.ForkingPickler.dumps(b)  # starts the sharer here
        ours, theirs = polyproc.Pipe()
        p = ctx.Process(target=tasks.send_through, args=(theirs, path))
        p.start()
        end = ours.recv()
        end.send("hello")
        p.join(60)
        end.close()
        assert p.exitcode == 0
        assert question(path, 0) == "hello"
        p.close()


@pytest.mark.parametrize("name", ["multiprocessing", "polyproc"])
def test_hooks_after_a_fork_run_once(name, path):
    ctx = polyproc.get_context("fork")
    thing = tasks.Thing()
    thing.calls = []
    util = __import__(name + ".util", fromlist=["util"])
    util.register_after_fork(thing, tasks.hook)
    run(ctx, tasks.calls, thing, path)
    pid, calls = question(path, 0)
    assert calls == [pid]
    assert thing.calls == []


@pytest.mark.parametrize("name", ["multiprocessing", "polyproc"])
def test_hooks_after_a_fork_run_once_in_workers(name, monkeypatch):
    monkeypatch.setattr(tasks, "the_thing", tasks.Thing())
    tasks.the_thing.calls = []
    tasks.register(name)
    with polyproc.get_context("fork").Pool(1) as pool:
        pid, calls = pool.apply(tasks.calls_of_the_thing)
    assert calls == [pid] != [os.getpid()]


def test_finalizers_of_the_stdlib_run_in_children(ctx, path):
    run(ctx, tasks.with_finalizer, path)
    assert question(path, 0) == "finalized"


# ---- our objects in processes that the standard library's package starts


def everything(ctx):
    yield from (ctx.Lock(), ctx.RLock(), ctx.Semaphore(), ctx.BoundedSemaphore(), ctx.Condition(), ctx.Event(), ctx.Barrier(2))
    yield from (ctx.Queue(), ctx.JoinableQueue(), ctx.SimpleQueue())
    yield from ctx.Pipe()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_spawned_processes_of_the_stdlib_are_refused_our_objects(method):
    for each in everything(polyproc.get_context("spawn")):
        p = multiprocessing.get_context(method).Process(target=tasks.Thing, args=(each,))
        with pytest.raises(RuntimeError, match=f"polyproc's {type(each).__name__} cannot be shared"):
            p.start()


def test_executors_of_the_stdlib_are_refused_our_objects():
    ctx = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(1, ctx, initializer=tasks.Thing, initargs=(polyproc.Lock(),))
    with executor, pytest.raises(RuntimeError, match="polyproc's Lock cannot be shared"):
        executor.submit(os.getpid)


def test_forked_processes_of_the_stdlib_have_our_objects(path):
    for each in everything(polyproc.get_context("fork")):
        p = multiprocessing.get_context("fork").Process(target=tasks.pickles, args=(each, path))
        p.start()
        p.join(60)
        assert p.exitcode == 0
        assert question(path, 0) > 10
        p.close()


def test_a_connection_is_one_of_the_stdlib():
    """As libraries ask who are handed one; type() and pickle do not know the difference."""
    ends = polyproc.Pipe()
    left, right = socket.socketpair()
    stream = polyproc.connection.Connection(left.detach())
    for each in (*ends, stream):
        assert isinstance(each, multiprocessing.connection.Connection)
        assert isinstance(each, polyproc.connection.Connection)
        assert not isinstance(each, multiprocessing.context.BaseContext)
        assert type(each).__module__.startswith("polyproc.")
        sent = pickle.loads(polyproc.reduction.ForkingPickler.dumps(each))
        assert type(sent) is type(each)
        sent.close()
    ends[0].send(ends[1])
    assert isinstance(ends[1].recv(), polyproc.connection.Connection)
    stream.close()
    right.close()
    assert not isinstance(multiprocessing.Pipe()[0], polyproc.connection.Connection)


def test_a_context_is_one_of_the_stdlib(ctx):
    """As torch's DataLoader(multiprocessing_context=) asks; neither type() nor pickle know the difference."""
    for each in (ctx, polyproc.get_context(), polyproc.context._default_context):
        assert isinstance(each, multiprocessing.context.BaseContext)
        assert isinstance(each, polyproc.context.BaseContext)
        assert not isinstance(each, multiprocessing.context.ForkContext)
        assert type(each).__module__ == "polyproc.context"
        assert type(pickle.loads(pickle.dumps(each))) is type(copy.copy(each)) is type(each)
    assert not isinstance(multiprocessing.get_context(), polyproc.context.BaseContext)
