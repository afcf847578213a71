"""Whole programs with pools: interrupted, killed, without the guard, ending in every way. Each runs in a session of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time

import pool_tasks as tasks
import pytest
from conftest import shared_names

import polyproc
import polyproc.pool

METHODS = polyproc.get_all_start_methods()
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(polyproc.__file__)))


class Program:
    """A script in a process group of its own, so that a signal to the group is what Ctrl-C is."""

    def __init__(self, directory, text, *options):
        path = directory / "program.py"
        path.write_text(textwrap.dedent(text))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((SOURCE, HERE))}
        environment.pop("PYTHONUNBUFFERED", None)
        self.process = subprocess.Popen(
            [sys.executable, *options, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.group = self.process.pid

    def line(self):
        return self.process.stdout.readline().strip()

    def end(self, timeout=30):
        """Output, errors, exit code."""
        out, err = self.process.communicate(timeout=timeout)
        return out, err, self.process.returncode

    def members(self):
        """Processes of the group that live."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                    state, _, group = file.read().rpartition(")")[2].split()[:3]
                    if int(group) == self.group and state not in "ZX":
                        found.append(int(name))
        return found

    def gone_within(self, seconds):
        """How long it took until no process of the group was left; None: longer than that."""
        before = time.monotonic()
        while time.monotonic() - before < seconds:
            if not self.members():
                return time.monotonic() - before
            time.sleep(0.005)
        return None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


CTRL_C = """
    import time
    import polyproc

    def work(x):
        time.sleep(0.05)
        return x

    if __name__ == "__main__":
        with polyproc.get_context("{method}").Pool(4) as pool:
            pool.map(work, range(8), 1)
            print("ready", flush=True)
            {call}
"""


@pytest.mark.parametrize(
    "call",
    [
        "pool.map(work, range(100000), 1)",
        "pool.map(work, range(100000))",
        "list(pool.imap(work, range(100000)))",
        "pool.apply(time.sleep, (60,))",
        "pool.apply_async(time.sleep, (60,), callback=print).get()",
        "pool.map_async(work, range(100000)).get(1000)",
        "pool.map_async(work, range(100000), 1); pool.close(); pool.join()",
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c(tmp_path, call, method):
    with Program(tmp_path, CTRL_C.format(call=call, method=method)) as program:
        assert program.line() == "ready"
        time.sleep(0.2)  # into the call
        before = time.monotonic()
        os.killpg(program.group, signal.SIGINT)
        _, err, code = program.end()
        print(f"Ctrl-C: {(time.monotonic() - before) * 1000:.0f} ms")
        assert time.monotonic() - before < 5
        assert err.count("KeyboardInterrupt") == 1
        assert err.count("Traceback") == 1
        assert err.startswith("Traceback")
        assert err.endswith("KeyboardInterrupt\n")
        assert code in (-signal.SIGINT, 130, 1)
        assert program.gone_within(5) is not None


def test_ctrl_c_that_is_handled(tmp_path):
    """Who catches KeyboardInterrupt can go on with the pool, and nothing was lost."""
    text = """
        import os, signal, threading, time
        import polyproc

        def work(x):
            return x * x

        if __name__ == "__main__":
            caught = 0
            with polyproc.Pool(2) as pool:
                pool.map(work, range(100))
                for i in range(60):
                    background = [pool.map_async(work, range(2000), 7), pool.imap_unordered(work, range(500))]
                    timer = threading.Timer(0.0003 * i, os.kill, (os.getpid(), signal.SIGINT))
                    try:
                        timer.start()
                        while timer.is_alive():
                            pool.map(work, range(300), 3)
                            sum(pool.imap(work, range(100)))
                    except KeyboardInterrupt:
                        caught += 1
                    try:
                        timer.join()
                    except KeyboardInterrupt:
                        caught += 1
                    assert background[0].get(30) == [x * x for x in range(2000)]
                    assert sorted(background[1]) == [x * x for x in range(500)]
                pool.close()
                pool.join()
            print("caught", caught)
    """
    with Program(tmp_path, text) as program:
        out, err, code = program.end(100)
        assert (err, code) == ("", 0)
        assert out == "caught 60\n"


@pytest.mark.parametrize("method", METHODS)
def test_parent_killed_with_busy_workers(tmp_path, method):
    text = """
        import time
        import polyproc
        import pool_tasks

        if __name__ == "__main__":
            pool = polyproc.get_context("METHOD").Pool(4)
            pool.map(pool_tasks.nothing, range(100))
            pool.map_async(pool_tasks.sleep, [60] * 100, 1)
            time.sleep(0.2)
            print("ready", flush=True)
            time.sleep(60)
    """
    names = shared_names()
    with Program(tmp_path, text.replace("METHOD", method)) as program:
        assert program.line() == "ready"
        assert len(program.members()) >= 5
        program.process.kill()
        program.process.wait()
        took = program.gone_within(5)
        assert took is not None
        print(f"orphans gone after {took * 1000:.0f} ms")
    assert shared_names() <= names


def test_without_the_guard(tmp_path):
    text = """
        import polyproc

        def work(x):
            return x

        pool = polyproc.get_context("spawn").Pool(2)
        print(pool.map(work, range(10)))
    """
    with Program(tmp_path, text) as program:
        before = time.monotonic()
        out, err, code = program.end()
        assert time.monotonic() - before < 10
        assert out == ""
        assert code == 1
        assert "RuntimeError" in err
        assert "before the\n        current process has finished its bootstrapping phase" in err
        assert "if __name__ == '__main__':" in err
        assert err.count("Traceback") <= 4
        assert program.gone_within(5) is not None


ENDINGS = {
    "nothing": "",
    "returned": "pool.apply(pool_tasks.square, (2,))",
    "busy": "pool.map_async(pool_tasks.sleep, [60] * 9, 1)",
    "callbacks": "pool.apply_async(pool_tasks.sleep, (60,), callback=print)",
    "iterator": "it = pool.imap(pool_tasks.square, iter(int, 1)); next(it)",
    "unwanted iterator": "pool.imap(pool_tasks.square, iter(int, 1))",
    "exit": "sys.exit(3)",
    "closed": "pool.close()",
    "terminated": "pool.terminate()",
    "joined": "pool.close(); pool.join()",
    "thread waits": (
        "threading.Thread(target=pool.map, args=(pool_tasks.sleep, [60] * 9), daemon=True).start(); time.sleep(0.1)"
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", list(ENDINGS))
def test_end_of_a_program(tmp_path, how, method):
    """A program may leave its pool as it is."""
    text = f"""
        import sys, threading, time
        import polyproc
        import pool_tasks

        if __name__ == "__main__":
            pool = polyproc.get_context("{method}").Pool(2)
            {ENDINGS[how]}
            print("end")
    """
    with Program(tmp_path, text) as program:
        before = time.monotonic()
        out, err, code = program.end()
        assert time.monotonic() - before < 10
        assert err == ""
        assert (out, code) == (("", 3) if how == "exit" else ("end\n", 0))
        assert program.gone_within(5) is not None


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_warn_of(tmp_path, method):
    source = f"""
        import polyproc as mp
        if __name__ == "__main__":
            for _ in range(2):
                with mp.get_context({method!r}).Pool(2) as pool:
                    print(pool.apply(abs, (-7,)))
    """
    with Program(tmp_path, source, "-X", "dev", "-W", "error") as program:
        out, err, code = program.end()
        assert (out, err, code) == ("7\n7\n", "", 0)


def test_pool_in_an_attribute_of_a_global(tmp_path):
    text = """
        import polyproc

        class A:
            def __init__(self):
                self.pool = polyproc.Pool(processes=1)

        problem = None

        def main():
            global problem
            problem = A()
            print(problem.pool.map(float, tuple(range(3))))

        if __name__ == "__main__":
            main()
    """
    with Program(tmp_path, text) as program:
        assert program.end() == ("[0.0, 1.0, 2.0]\n", "", 0)


@pytest.mark.parametrize("method", METHODS)
def test_output_of_workers_is_complete(tmp_path, method):
    text = """
        import polyproc

        if __name__ == "__main__":
            with polyproc.get_context("METHOD").Pool(2) as pool:
                pool.map(print, ["a line"] * 100, 1)
    """
    with Program(tmp_path, text.replace("METHOD", method)) as program:
        out, err, code = program.end()
        assert (err, code) == ("", 0)
        assert sorted(out.split("\n")) == ["", *["a line"] * 100]


@pytest.mark.parametrize("method", METHODS)
def test_atexit_in_workers(tmp_path, method):
    text = """
        import atexit
        import polyproc

        def register():
            atexit.register(print, "left")

        if __name__ == "__main__":
            pool = polyproc.get_context("METHOD").Pool(2, register)
            pool.map(abs, range(10))
            pool.close()
            pool.join()
    """
    with Program(tmp_path, text.replace("METHOD", method)) as program:
        assert program.end() == ("left\nleft\n", "", 0)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_worker_sees(method):
    with polyproc.get_context(method).Pool(2) as pool:
        facts = pool.apply(tasks.facts)
        assert facts["name"].startswith({"spawn": "Spawn", "fork": "Fork", "forkserver": "ForkServer"}[method] + "PoolWorker-")
        assert facts["daemon"] is True
        assert facts["parent"] == os.getpid()
        assert facts["stdin"] == ""
        assert facts["sigint_blocked"] is False
        assert facts["cwd"] == os.getcwd()
        assert facts["environment"] == sorted(name for name in os.environ if name.startswith("POLYPROC_"))
        if method == "spawn":
            assert facts["engine"] is False
            assert facts["multiprocessing"] is False
        names = set()
        deadline = time.monotonic() + 30
        while len(names) < 2 and time.monotonic() < deadline:
            names.update(fact["name"] for fact in pool.map(tasks.facts, range(20), 1))
        assert len(names) == 2
        with pytest.raises(AssertionError, match="daemonic processes are not allowed to have children"):
            pool.apply(tasks.nested)


def test_memory_of_an_idle_worker():
    code = "import pool_tasks; print(pool_tasks.private_kb())"
    bare = int(subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": HERE}))
    with polyproc.get_context("spawn").Pool(2) as pool:
        ours = min(pool.map(tasks.private_kb, range(2), 1))
    print(f"private memory: bare interpreter {bare} kB, worker {ours} kB")
    assert ours - bare < 8 << 10


def test_start_method_and_context():
    with polyproc.get_context("spawn").Pool(1) as pool:
        assert pool.apply(tasks.square, (3,)) == 9
    with polyproc.pool.Pool(1, context=polyproc.get_context("spawn")) as pool:
        assert pool.apply(tasks.square, (3,)) == 9


@pytest.mark.parametrize("method", METHODS)
def test_a_task_that_closes_all_descriptors(method, tmp_path):
    """The files that the worker opens then, under the same numbers, are not the pool's memory."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"v" * 10_000_000)
    with polyproc.get_context(method).Pool(1) as pool:
        with pytest.raises(MemoryError):
            pool.apply_async(tasks.close_and_open, (str(victim), 2_000_000)).get(timeout=30)
    pool.join()
    assert victim.read_bytes() == b"v" * 10_000_000


# ---- signal handlers that use the pool that the interrupted thread waits in

HANDLER = """
    import os, signal, sys, threading, time
    import polyproc, polyproc.pool

    def work(x):
        time.sleep(0.05)
        return x

    def numbers():
        yield from range(40)

    if __name__ == "__main__":
        pool = {pool}(2)
        pool.map(work, range(2), 1)
        pending = pool.apply_async(work, (7,))

        def handle(*_):
            {handler}
            print("handled", flush=True)

        signal.signal(signal.SIGUSR1, handle)
        parent, me = os.getpid(), threading.main_thread()
        threading.Timer(0.3, os.kill, (parent, signal.SIGUSR1)).start()
        {call}
        print("end", flush=True)
        pool.terminate()
        pool.join()
"""
HANDLERS = {
    "close-join": "pool.close(); pool.join()",
    "apply": "assert pool.apply(abs, (-1,)) == 1",
    "wait": "pool.apply_async(abs, (-1,)).wait(); pending.wait(); assert pending.get() == 7",
    "callback": "done = []; pool.apply_async(abs, (-1,), callback=done.append).wait(); assert done == [1]",
    "map": "assert pool.map(abs, range(100)) == list(range(100))",
    "imap": "assert list(pool.imap(abs, range(10))) == list(range(10))",
    "generator": "assert sorted(pool.imap_unordered(abs, (i for i in range(10)))) == list(range(10))",
    "thread": "t = threading.Thread(target=lambda: pool.map(abs, range(3))); t.start(); t.join(); assert pool",
}
CALLS = {
    "map": "assert pool.map(work, range(40), 1) == list(range(40))",
    "apply": "assert pool.apply(work, (1,)) == 1; pool.apply(time.sleep, (1,))",
    "imap": "assert list(pool.imap(work, range(40))) == list(range(40))",
    "generator": "assert list(pool.imap(work, numbers())) == list(range(40))",
    "unordered": "assert sorted(pool.imap_unordered(work, numbers(), 2)) == list(range(40))",
    "callback": "assert pool.map_async(work, range(40), 1, callback=len).get() == list(range(40))",
    "join": "pool.map_async(work, range(40), 1); pool.close(); pool.join()",
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("call", CALLS)
def test_signal_handler_uses_the_pool_that_waits(tmp_path, call, handler):
    if call == "join" and handler not in ("close-join", "wait"):
        pytest.skip("a closed pool takes no calls")
    if handler == "wait" and call == "join":
        text = HANDLERS[handler].split(";", 1)[1]
    else:
        text = HANDLERS[handler]
    with Program(tmp_path, HANDLER.format(pool="polyproc.Pool", handler=text.strip(), call=CALLS[call])) as program:
        out, err, code = program.end(60)
        assert (out.split(), err, code) == (["handled", "end"], "", 0)


@pytest.mark.parametrize("handler", HANDLERS)
def test_signal_handler_uses_a_pool_of_threads(tmp_path, handler):
    pool = "polyproc.pool.ThreadPool"
    with Program(tmp_path, HANDLER.format(pool=pool, handler=HANDLERS[handler], call=CALLS["map"])) as program:
        out, err, code = program.end(60)
        assert (out.split(), err, code) == (["handled", "end"], "", 0)


def test_signals_in_the_midst_of_everything(tmp_path):
    """A handler that uses the pool comes anywhere: no result is lost, none comes twice, none is another's."""
    text = """
        import itertools, signal, time
        import polyproc

        def work(x):
            return x

        def grow(x):
            return bytes(x)

        if __name__ == "__main__":
            handled = depth = 0

            def handle(*_):
                global handled, depth
                if depth == 2:
                    return  # else there is no end of them
                depth += 1
                handled += 1
                assert pool.apply(work, (-7,)) == -7
                assert pool.map(work, range(5), 1) == list(range(5))
                assert next(pool.imap(grow, [70_000])) == bytes(70_000)
                depth -= 1

            with polyproc.Pool(3) as pool:
                pool.map(work, range(3))
                signal.signal(signal.SIGALRM, handle)
                signal.setitimer(signal.ITIMER_REAL, 0.001, 0.003)
                end = time.monotonic() + {seconds}
                rounds = 0
                while rounds < 5 or handled < 50 or time.monotonic() < end:
                    rounds += 1
                    assert pool.map(work, range(500), 1) == list(range(500))
                    assert list(pool.imap(work, range(300))) == list(range(300))
                    assert sorted(pool.imap_unordered(work, range(300))) == list(range(300))
                    assert list(pool.imap(work, iter(range(50)))) == list(range(50))
                    assert pool.map(grow, [40_000] * 20, 1) == [bytes(40_000)] * 20
                    assert pool.map_async(work, range(50), callback=len).get() == list(range(50))
                    assert [r.get() for r in [pool.apply_async(work, (i,)) for i in range(50)]] == list(range(50))
                signal.setitimer(signal.ITIMER_REAL, 0)
            print("handled", handled > 0)
    """
    with Program(tmp_path, text.replace("{seconds}", "3")) as program:
        out, err, code = program.end(120)
        assert (out, err, code) == ("handled True\n", "", 0)


def test_pool_that_a_signal_handler_closes_in_the_midst_of_a_call(tmp_path):
    """The handler comes while the call hands over its tasks: it cannot wait for them, and they are refused afterwards."""
    text = """
        import signal, os
        import polyproc

        class Trigger:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGUSR1)
                return int, ()

        def handle(*_):
            pool.close()
            pool.join()
            print("joined", flush=True)

        if __name__ == "__main__":
            signal.signal(signal.SIGUSR1, handle)
            for call in ("map", "imap", "apply"):
                pool = polyproc.Pool(2)
                try:
                    if call == "map":
                        pool.map(abs, [1, 2, 3, Trigger(), 5], 1)
                    elif call == "imap":
                        list(pool.imap(abs, [1, 2, 3, Trigger(), 5]))
                    else:
                        pool.apply(abs, (Trigger(),))
                except (ValueError, polyproc.ProcessError) as e:
                    print(type(e).__name__, e)
    """
    with Program(tmp_path, text) as program:
        out, err, code = program.end(60)
        assert (err, code) == ("", 0)
        assert out.splitlines() == ["joined", "ValueError Pool not running"] * 3


# ---- workers as processes


@pytest.mark.parametrize("method", METHODS)
def test_workers_are_active_children(method):
    ctx = polyproc.get_context(method)
    before = set(polyproc.active_children())
    with ctx.Pool(2) as pool:
        pool.map(tasks.square, range(10), 1)
        children = set(polyproc.active_children()) - before
        assert children == set(pool._pool)
        assert {type(child) for child in children} == {ctx.Process}
        assert all(child.daemon and child.is_alive() and child.exitcode is None for child in children)
        assert len({child.name for child in children}) == 2
        assert all("PoolWorker" in child.name for child in children)
        sentinels = [child.sentinel for child in children]
        for child in children:
            child.terminate()
        for child, sentinel in zip(children, sentinels):
            child.join(30)
            assert not child.is_alive() and child.exitcode is not None
            assert polyproc.connection.wait([sentinel], 0) == [sentinel]
            child.close()
        assert pool.map(tasks.square, range(10), 1) == [x * x for x in range(10)]  # they were replaced
    pool.join()
    assert set(polyproc.active_children()) == before


OWN_PROCESS = """
    import os, sys
    import polyproc, polyproc.pool

    method = "{method}"
    base = polyproc.get_context(method)

    class Process(base.Process):
        daemon = property(lambda self: False, lambda self, value: None)

        def start(self):
            super().start()
            print("start", flush=True)

        def run(self):
            os.environ["MARK"] = "run"
            super().run()

    class Context(type(base)):
        pass

    def nested(x):
        with base.Pool(1) as pool:
            return pool.map(abs, [x]), os.environ["MARK"]

    def work(x):
        return -x

    class ContextPool(polyproc.pool.Pool):
        def __init__(self, *args):
            class Own(Context):
                pass
            Own.Process = Process
            super().__init__(*args, context=Own())

    class StaticPool(polyproc.pool.Pool):
        def __init__(self, *args):
            super().__init__(*args, context=base)

        @staticmethod
        def Process(ctx, *args, **kwds):
            return Process(*args, **kwds)

    class MethodPool(StaticPool):
        def Process(self, *args, **kwds):
            it = super().Process(*args, **kwds)
            assert type(it) is Process
            return it

    if __name__ == "__main__":
        for cls in (ContextPool, StaticPool, MethodPool):
            with cls(1) as pool:
                assert type(pool._pool[0]) is Process
                print(pool.apply(nested, (-1,)), flush=True)
                try:
                    pool.apply(os._exit, (3,))
                except polyproc.WorkerLost as e:
                    print(e.exitcode)
                assert pool.map(work, range(5), 1) == [0, -1, -2, -3, -4]
            pool.join()
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_context_with_its_own_process_class(tmp_path, method):
    with Program(tmp_path, OWN_PROCESS.format(method=method)) as program:
        out, err, code = program.end(120)
        assert (err, code) == ("", 0)
        lines = out.splitlines()
        assert [line for line in lines if line != "start"] == ["([1], 'run')", "3"] * 3
        assert lines.count("start") >= 6  # each first worker, and the one that took its place


# ---- greenlets


GREEN = """
    {patch}
    import threading, time
    import polyproc

    def work(x):
        return -x

    if __name__ == "__main__":
        process = polyproc.get_context("{method}").Process(target=print, args=("child",))
        process.start()
        process.join()
        with polyproc.get_context("{method}").Pool(2) as pool:
            assert pool.map(work, range(10)) == [-x for x in range(10)]
            got = []
            assert pool.apply_async(work, (1,), callback=got.append).get() == -1
            assert got == [-1]
            assert list(pool.imap(work, iter(range(5)))) == [0, -1, -2, -3, -4]
            done = []
            threading.Thread(target=lambda: done.append(True)).start()  # a greenlet
            time.sleep(0.1)  # lets others run
            assert done
            {kill}
            assert pool.map(work, range(50), 1) == [-x for x in range(50)]
            pool.close()
            pool.join()
        print("end")
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets_are_not_blocked(tmp_path, library, method):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"no {library}")
    kill = "pool._pool[0].kill()"
    if library == "gevent":
        patch = "from gevent import monkey; monkey.patch_all()"
    else:
        patch = "import eventlet; eventlet.monkey_patch()"
        if method == "fork":
            # The replacement would be forked by a thread that is none of eventlet's. Its threading._shutdown() waits in eventlet's hub
            # for a lock of the thread that was the first in the parent, which nobody releases.
            kill = "pass"
    with Program(tmp_path, GREEN.format(patch=patch, method=method, kill=kill), "-W", "ignore") as program:
        out, err, code = program.end(60)
        assert (out.split(), code) == (["child", "end"], 0), err


@pytest.mark.parametrize("method", METHODS)
def test_program_that_executes_another_one(tmp_path, method):
    """It keeps its process id, but nobody is left in it who knows of the pool: workers and fork server end."""
    text = f"""
        import os
        import polyproc as mp

        if __name__ == "__main__":
            pool = mp.get_context({method!r}).Pool(2)
            assert pool.map(abs, [-1] * 10) == [1] * 10
            print("ready", flush=True)
            os.execv("/bin/sleep", ["sleep", "600"])
    """
    with Program(tmp_path, text) as program:
        assert program.line() == "ready"
        deadline = time.monotonic() + 30
        while program.members() != [program.group]:
            assert time.monotonic() < deadline, program.members()
            time.sleep(0.01)
        assert program.process.poll() is None
