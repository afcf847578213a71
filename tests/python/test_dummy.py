"""polyproc.dummy: the interface over threads, as multiprocessing.dummy has it."""

from __future__ import annotations

import inspect
import multiprocessing.dummy
import multiprocessing.dummy.connection
import threading

import pytest

import polyproc.dummy
import polyproc.dummy.connection

LIMIT = 30.0


@pytest.fixture(params=[multiprocessing.dummy, polyproc.dummy], ids=["stdlib", "polyproc"])
def mp(request):
    return request.param


@pytest.mark.parametrize("name", ["dummy", "dummy.connection"])
def test_the_same_names_and_signatures(name):
    ours, theirs = polyproc.dummy, multiprocessing.dummy
    if name != "dummy":
        ours, theirs = ours.connection, theirs.connection
    assert set(ours.__all__) == set(theirs.__all__)
    assert {n for n in dir(theirs) if n[0] != "_"} <= set(dir(ours))
    for each in ours.__all__:
        if inspect.isfunction(getattr(theirs, each)):
            assert list(inspect.signature(getattr(ours, each)).parameters) == list(inspect.signature(getattr(theirs, each)).parameters)


def test_a_process_is_a_thread(mp):
    begun, go_on = mp.Event(), mp.Event()
    seen = []

    def run(*args, **kwargs):
        seen.append((args, kwargs, mp.current_process() is threading.current_thread()))
        begun.set()
        go_on.wait(LIMIT)

    process = mp.Process(target=run, args=(1, 2), kwargs={"a": 3})
    assert process.exitcode is None
    process.start()
    assert begun.wait(LIMIT)
    assert mp.active_children() == [process]
    assert process.exitcode is None
    go_on.set()
    process.join(LIMIT)
    assert process.exitcode == 0
    assert mp.active_children() == []
    assert seen == [((1, 2), {"a": 3}, True)]


def test_started_by_another_thread(mp):
    process = mp.Process(target=print)
    raised = []

    def start():
        try:
            process.start()
        except RuntimeError:
            raised.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert raised == [True]


def test_pipe_and_listener(mp):
    a, b = mp.Pipe()
    assert not b.poll()
    assert not b.poll(0.01)
    a.send([1])
    assert b.poll(LIMIT)
    assert b.recv() == [1]
    b.send_bytes(b"x")
    assert a.recv_bytes() == b"x"
    with mp.connection.Listener() as listener:
        with mp.connection.Client(listener.address) as client, listener.accept() as server:
            client.send("hello")
            assert server.recv() == "hello"
            server.send("bye")
            assert client.recv() == "bye"


def test_the_rest(mp):
    with mp.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()
    assert list(mp.Array("i", [1, 2])) == [1, 2]
    value = mp.Value("i", 3)
    value.value += 1
    assert "4" in repr(value)
    namespace = mp.Manager().Namespace(x=1, _y=2)
    assert repr(namespace) == "Namespace(x=1)"
    mp.shutdown()
    mp.freeze_support()
