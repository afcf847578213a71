"""Process objects: the same cases for the standard library and for this package, under every start method that both have.

A case that fails for the standard library is wrong.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pathlib
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref

import process_tasks as tasks
import pytest
from conftest import each_method
from process_tasks import question

import polyproc

MODULES = {"stdlib": multiprocessing, "polyproc": polyproc}
METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(params=each_method(*METHODS))
def ctx(request):
    module, method = request.param
    context = MODULES[module].get_context(method)
    context.module = MODULES[module]  # for what the children import
    yield context
    del context.module


@pytest.fixture(params=METHODS)
def ours(request):
    """This package alone: what the standard library does not promise."""
    return polyproc.get_context(request.param)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "answer")


@pytest.fixture
def said(ctx, capfd):
    """What children wrote: the fork servers' ones write to where the server did when it was started."""
    forkserver = sys.modules[ctx.module.__name__ + ".forkserver"]
    forkserver._forkserver._stop()
    yield capfd.readouterr
    forkserver._forkserver._stop()
    forkserver.ensure_running()


def run(process, timeout=60):
    process.start()
    process.join(timeout)
    assert not process.is_alive()
    code = process.exitcode
    process.close()
    return code


def test_life(ctx, path):
    p = ctx.Process(target=tasks.sleep, args=(path,))
    assert (p.pid, p.ident, p.exitcode, p.is_alive()) == (None, None, None, False)
    assert p not in ctx.active_children()
    p.start()
    assert p.is_alive()
    assert p.exitcode is None
    assert p in ctx.active_children()
    assert question(path) == p.pid == p.ident
    p.terminate()
    p.join(60)
    assert not p.is_alive()
    assert p.exitcode == -signal.SIGTERM
    assert p not in ctx.active_children()
    p.close()


def test_arguments(ctx, path):
    p = ctx.Process(target=tasks.arguments, args=(1, "two", path), kwargs={"three": [3]})
    assert run(p) == 0
    assert question(path) == [[1, "two"], {"three": [3]}]


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_args_may_be_any_iterable(ctx, path, kind):
    p = ctx.Process(target=tasks.arguments, args=kind([1, 2, path]))
    assert run(p) == 0
    assert question(path)[0] == [1, 2]


def test_large_argument(ctx, path):
    p = ctx.Process(target=tasks.size, args=(b"a" + bytes(20_000_000) + b"z", path))
    assert run(p) == 0
    assert question(path) == [20_000_002, "a", "z"]


def test_names(ctx):
    first, second = ctx.Process(), ctx.Process()
    kind, number = first.name.rsplit("-", 1)
    assert kind == type(first).__name__
    assert second.name == f"{kind}-{int(number) + 1}"
    assert ctx.Process(name="mine").name == "mine"
    first.name = "other"
    assert first.name == "other"
    with pytest.raises(AssertionError):
        first.name = 3


def test_inside(ctx, path):
    p = ctx.Process(target=tasks.who, args=(ctx.module.__name__, path), name="inside")
    assert run(p) == 0
    seen = question(path)
    assert seen["name"] == "inside"
    assert seen["pid"] == seen["getpid"]
    assert seen["parent"] == ["MainProcess", os.getpid(), True]
    if ctx.get_start_method() != "forkserver":
        assert seen["getppid"] == os.getpid()
    assert (seen["daemon"], seen["alive"], seen["children"], seen["exitcode"]) == (False, True, 0, None)
    assert seen["authkey"] == bytes(ctx.current_process().authkey).hex()
    assert seen["repr"] == f"<{type(p).__name__} name='inside' parent={os.getpid()} started>"
    assert seen["method"] == ctx.get_start_method()


def test_surroundings(ctx, path):
    p = ctx.Process(target=tasks.surroundings, args=(path,))
    assert run(p) == 0
    seen = question(path)
    assert seen["cwd"] == os.getcwd()
    assert seen["argv"] == sys.argv
    assert seen["path"] == sys.path
    assert seen["stdin"] == ""
    assert seen["environment"] == [name for name in sorted(os.environ) if name.startswith("POLYPROC_")]


@pytest.mark.parametrize(
    "code, seen",
    [(None, 0), (0, 0), (7, 7), (255, 255), (256, 0), (-1, 255), (True, 1), (False, 0), ("text", 1), ([1], 1)],
    ids=repr,
)
def test_sys_exit(ctx, said, code, seen):
    assert run(ctx.Process(target=tasks.leave, args=(code,))) == seen
    assert said().err == (f"{code}\n" if isinstance(code, (str, list)) else "")


def test_os_exit(ctx):
    assert run(ctx.Process(target=tasks.leave_number, args=(9,))) == 9


def test_exception(ctx, said):
    p = ctx.Process(target=tasks.fail, name="failing")
    assert run(p) == 1
    words = said().err
    assert words.startswith("Process failing:\nTraceback (most recent call last):\n")
    assert words.endswith("ZeroDivisionError: on purpose\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_signals(ctx, number):
    p = ctx.Process(target=tasks.die, args=(int(number),))
    p.start()
    p.join(60)
    assert p.exitcode == -number
    assert f"exitcode=-{number.name}" in repr(p)
    p.close()


def test_kill(ctx, path):
    p = ctx.Process(target=tasks.ignore_terminate, args=(path,))
    p.start()
    question(path)
    p.terminate()
    p.join(0.2)
    assert p.is_alive()
    p.kill()
    p.join(60)
    assert p.exitcode == -signal.SIGKILL
    p.terminate()  # nothing happens
    p.kill()
    p.close()


def test_join_timeout(ctx, path):
    p = ctx.Process(target=tasks.sleep, args=(path,))
    p.start()
    for timeout in (0, 0.0, -1, 0.2):
        begun = time.monotonic()
        assert p.join(timeout) is None
        assert max(timeout, 0) <= time.monotonic() - begun < 5
        assert p.exitcode is None
    p.kill()
    if ctx.module is polyproc:
        p.join(1e9)  # more milliseconds than poll(2) takes: the standard library's OverflowError
    p.join()
    p.join(0)
    assert p.exitcode == -signal.SIGKILL
    p.close()


def test_sentinel(ctx, path):
    p = ctx.Process(target=tasks.sleep, args=(path,))
    with pytest.raises(ValueError):
        p.sentinel  # noqa: B018
    p.start()
    assert isinstance(p.sentinel, int)
    poll = select.poll()
    poll.register(p.sentinel, select.POLLIN)
    assert poll.poll(0) == []
    p.kill()
    assert poll.poll(60_000)
    assert select.select([p.sentinel], [], [], 60)[0]
    p.join()
    if ctx.module is polyproc or ctx.get_start_method() != "forkserver":  # the standard library has read from it meanwhile
        assert select.select([p.sentinel], [], [], 0)[0]
    p.close()
    with pytest.raises(ValueError):
        p.sentinel  # noqa: B018


def test_close(ctx, path):
    p = ctx.Process(target=tasks.sleep, args=(path,))
    p.start()
    question(path)
    with pytest.raises(ValueError):
        p.close()
    p.kill()
    p.join(60)
    p.close()
    p.close()
    for use in (p.start, p.join, p.is_alive, p.terminate, p.kill, lambda: p.exitcode, lambda: p.pid, lambda: p.ident):
        with pytest.raises(ValueError):
            use()
    assert "closed" in repr(p)
    never = ctx.Process()
    never.close()
    with pytest.raises(ValueError):
        never.start()


def test_repr(ctx, path):
    p = ctx.Process(target=tasks.sleep, args=(path,), name="n", daemon=True)
    kind, here = type(p).__name__, os.getpid()
    assert repr(p) == f"<{kind} name='n' parent={here} initial daemon>"
    p.start()
    assert repr(p) == f"<{kind} name='n' pid={p.pid} parent={here} started daemon>"
    p.kill()
    p.join(60)
    assert repr(p) == f"<{kind} name='n' pid={p.pid} parent={here} stopped exitcode=-SIGKILL daemon>"
    p.close()
    assert repr(p) == f"<{kind} name='n' parent={here} closed daemon>"


def test_misuse(ctx):
    p = ctx.Process(target=tasks.nothing)
    with pytest.raises(AssertionError):
        p.join()
    with pytest.raises(AssertionError):
        ctx.Process(group=1)
    p.start()
    with pytest.raises(AssertionError):
        p.start()
    with pytest.raises(AssertionError):
        p.daemon = True
    p.join(60)
    p.close()


def test_main_process(ctx):
    main = ctx.current_process()
    assert (main.name, main.pid, main.daemon, main.exitcode) == ("MainProcess", os.getpid(), False, None)
    assert main.is_alive()
    assert ctx.parent_process() is None
    assert repr(main) == "<_MainProcess name='MainProcess' parent=None started>"
    main.close()
    assert main.is_alive()


def test_current_process_is_the_modules(ctx):
    assert ctx.current_process() is ctx.module.current_process()


class Subclass:
    """Mixed into a process class below: what a subclass may define."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def run(self):
        tasks.answer(self.path, [type(self).__name__, self.name])
        sys.exit(5)


class StdlibSpawn(Subclass, multiprocessing.get_context("spawn").Process):
    pass


class StdlibFork(Subclass, multiprocessing.get_context("fork").Process):
    pass


class OursSpawn(Subclass, polyproc.get_context("spawn").Process):
    pass


class OursFork(Subclass, polyproc.get_context("fork").Process):
    pass


class StdlibForkServer(Subclass, multiprocessing.get_context("forkserver").Process):
    pass


class OursForkServer(Subclass, polyproc.get_context("forkserver").Process):
    pass


class OursDefault(Subclass, polyproc.Process):
    pass


@pytest.mark.parametrize("cls", [StdlibSpawn, StdlibFork, StdlibForkServer, OursSpawn, OursFork, OursForkServer, OursDefault])
def test_subclass(cls, path):
    p = cls(path)
    name = p.name
    assert name.startswith(cls.__name__ + "-")
    assert run(p) == 5
    assert question(path) == [cls.__name__, name]


def test_daemon_attribute(ctx):
    assert not ctx.Process().daemon
    assert ctx.Process(daemon=True).daemon
    p = ctx.Process()
    p.daemon = True
    assert p.daemon
    assert not ctx.Process(daemon=False).daemon


def test_daemon_has_no_children(ctx, path):
    assert run(ctx.Process(target=tasks.daemon_with_child, args=(ctx.module.__name__, path), daemon=True)) == 0
    assert question(path) == "daemonic processes are not allowed to have children"


def test_grandchildren(ctx, path):
    p = ctx.Process(target=tasks.grandchildren, args=(ctx.module.__name__, path))
    number = p.name.rsplit("-", 1)[1]
    assert run(p) == 0
    assert question(path) == [[f"Process-{number}:1", f"Process-{number}:2"], 0]


def test_active_children_collects(ctx, path):
    p = ctx.Process(target=tasks.nothing)
    p.start()
    deadline = time.monotonic() + 60
    while p in ctx.active_children():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ChildProcessError):
        os.waitpid(p.pid, os.WNOHANG)
    assert p.exitcode == 0
    p.close()


def test_arguments_are_released(ctx):
    class Target:
        def __call__(self):
            pass

    target = Target() if ctx.get_start_method() == "fork" else tasks.nothing
    held = weakref.ref(target)
    p = ctx.Process(target=target)
    p.start()
    del target
    gc.collect()
    if ctx.get_start_method() == "fork":
        assert held() is None
    for name in ("_target", "_args", "_kwargs"):
        assert not hasattr(p, name)
    p.join(60)
    p.close()


def test_threads_are_waited_for(ctx, path):
    assert run(ctx.Process(target=tasks.with_thread, args=(path,))) == 0
    assert question(path, 0) == "thread"


def test_output_is_flushed(ctx, said):
    assert run(ctx.Process(target=tasks.print_something, args=("no newline",))) == 0
    assert said().out == "no newline"


def test_finalizers_run(ctx, path):
    assert run(ctx.Process(target=tasks.with_finalizer, args=(ctx.module.__name__, path))) == 0
    assert question(path, 0) == "finalized"


def test_atexit_runs(ctx, path):
    if ctx.module is multiprocessing and ctx.get_start_method() != "spawn" and sys.version_info < (3, 13):
        pytest.skip("the standard library does so since 3.13; this package on every version")
    assert run(ctx.Process(target=tasks.with_atexit, args=(path,))) == 0
    assert question(path, 0) == "atexit"


def test_descriptor_is_passed(ctx, path):
    reading, writing = os.pipe()
    try:
        if ctx.get_start_method() != "fork":
            dup = tasks.Closed(ctx.module.__name__, writing)
        else:

            class Same:
                def detach(self):
                    return writing

            dup = Same()
        p = ctx.Process(target=tasks.write_to, args=(dup, path))
        assert run(p) == 0
        assert os.read(reading, 100) == b"from the child"
    finally:
        os.close(reading)
        os.close(writing)


def test_socket_is_passed(ctx, path):
    here, there = socket.socketpair()
    with here, there:
        assert run(ctx.Process(target=tasks.send_on, args=(there, path))) == 0
        assert here.recv(100) == b"over a socket"


def test_parent_process_ends(ctx, tmp_path):
    """The child of a child sees the end of its parent, which os._exit ends."""
    module, method = ctx.module.__name__, ctx.get_start_method()
    alive, done = str(tmp_path / "alive"), str(tmp_path / "done")
    script = tmp_path / "orphan.py"
    script.write_text(
        f"import {module} as mp, os, sys, process_tasks\n"
        "if __name__ == '__main__':\n"
        f"    ctx = mp.get_context({method!r})\n"
        f"    ctx.Process(target=process_tasks.watch_parent, args=({module!r}, {alive!r}, {done!r})).start()\n"
        f"    process_tasks.question({alive!r})\n"
        "    os._exit(0)\n"
    )
    python(script)
    assert question(alive) is True
    assert question(done) is False


def python(script, *options, check=True, arguments=()):
    """Run a program as a user would."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, *options, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=check,
    )


@pytest.mark.parametrize("daemon", [True, False])
def test_at_the_end_of_the_program(ctx, tmp_path, daemon):
    """Daemons are terminated, others waited for."""
    module, method = ctx.module.__name__, ctx.get_start_method()
    path = str(tmp_path / "answer")
    target = "sleep" if daemon else "with_thread"
    script = tmp_path / "program.py"
    script.write_text(
        f"import {module} as mp, process_tasks\n"
        "if __name__ == '__main__':\n"
        f"    p = mp.get_context({method!r}).Process(target=process_tasks.{target}, args=({path!r},), daemon={daemon})\n"
        "    p.start()\n"
        f"    {f'process_tasks.question({path!r})' if daemon else 'pass'}\n"
        "    print('end')\n"
    )
    ran = python(script)
    assert (ran.stdout, ran.stderr) == ("end\n", "")
    if daemon:
        wait_gone(question(path))
    else:
        assert question(path, 0) == "thread"


def wait_gone(pid, deadline=10.0):
    end = time.monotonic() + deadline
    while os.path.exists(f"/proc/{pid}/exe"):
        assert time.monotonic() < end, f"{pid} lives"
        time.sleep(0.01)


@pytest.mark.parametrize("method", METHODS)
def test_daemon_dies_with_a_killed_parent(tmp_path, method):
    path = str(tmp_path / "answer")
    script = tmp_path / "program.py"
    script.write_text(
        "import polyproc as mp, os, signal, process_tasks\n"
        "if __name__ == '__main__':\n"
        f"    mp.get_context({method!r}).Process(target=process_tasks.sleep, args=({path!r},), daemon=True).start()\n"
        f"    process_tasks.question({path!r})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert python(script, check=False).returncode == -signal.SIGKILL
    wait_gone(question(path))


def test_join_is_interrupted_by_signal_handlers(ctx, path):
    p = ctx.Process(target=tasks.sleep, args=(path,))
    p.start()
    question(path)

    class Alarm(Exception):
        pass

    def handler(number, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            p.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    p.kill()
    p.join(60)
    p.close()


def test_threads_start_and_join(ctx):
    """Several threads at once; each process is joined by two of them."""
    codes = []

    def work(number):
        p = ctx.Process(target=tasks.leave_number, args=(number,))
        p.start()
        other = threading.Thread(target=p.join)
        other.start()
        p.join(60)
        codes.append((number, p.exitcode))
        other.join()
        p.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if ctx.module is polyproc:  # for the standard library the second thread may find the status gone
        assert sorted(codes) == [(n, n) for n in range(1, 9)]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_argument_that_cannot_be_pickled(method):
    for module in MODULES.values():
        p = module.get_context(method).Process(target=tasks.nothing, args=(tasks.Unpicklable(),))
        with pytest.raises(RuntimeError, match="cannot be pickled"):
            p.start()
        assert p not in module.active_children()


def test_argument_that_cannot_be_unpickled(ctx, said):
    if ctx.get_start_method() == "fork":
        return  # nothing is pickled
    code = run(ctx.Process(target=tasks.nothing, args=(tasks.Explosive(),)))
    assert code == 1 or ctx.module is multiprocessing and code == 255  # the standard library's fork server says 255
    assert "ZeroDivisionError: on purpose" in said().err


def test_fork_inherits(tmp_path):
    """A closure, an open file and the state of a module, none of which can be pickled."""
    for name, module in MODULES.items():
        file = open(tmp_path / name, "w")  # noqa: SIM115
        state = {"value": name}

        def target(file=file, state=state):
            file.write(state["value"])
            file.flush()

        assert run(module.get_context("fork").Process(target=target)) == 0
        file.close()
        assert (tmp_path / name).read_text() == name


def test_authkey(ctx):
    p = ctx.Process()
    assert p.authkey == ctx.current_process().authkey
    p.authkey = b"secret"
    assert p.authkey == b"secret"
    assert isinstance(p.authkey, type(ctx.current_process().authkey))
    with pytest.raises(TypeError):
        pickle.dumps(p.authkey)


# ---- what is this package's own


def test_status_that_the_program_collects(ours):
    p = ours.Process(target=tasks.leave_number, args=(3,))
    p.start()
    # Whoever comes first has the status; the other must neither hang nor fail.
    try:
        status = os.waitpid(p.pid, 0)[1]
    except ChildProcessError:
        status = None
    p.join(60)
    assert p.exitcode == (3 if status is None or ours.get_start_method() == "spawn" and p.exitcode == 3 else 255)
    assert not p.is_alive()
    p.close()


def test_program_that_ignores_sigchld(tmp_path, ours):
    script = tmp_path / "program.py"
    script.write_text(
        "import polyproc as mp, signal, process_tasks\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        f"    p = mp.get_context({ours.get_start_method()!r}).Process(target=process_tasks.leave, args=(3,))\n"
        "    p.start(); p.join(30); print(p.is_alive(), p.exitcode)\n"
    )
    ran = python(script)
    assert ran.stdout in ("False 255\n", "False 3\n"), ran.stderr
    assert ran.stderr == ""


def test_sentinel_does_not_wait_for_grandchildren(ours, tmp_path):
    """A grandchild holds every descriptor that the child held: a sentinel that is a pipe would stay silent."""
    path = str(tmp_path / "pid")
    p = ours.Process(target=leave_grandchild, args=(path,))
    p.start()
    pid = question(path)
    try:
        assert select.select([p.sentinel], [], [], 30)[0]
        p.join(30)
        assert p.exitcode == 4
    finally:
        os.kill(pid, signal.SIGKILL)
    p.close()


def leave_grandchild(path):
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    tasks.answer(path, pid)
    os._exit(4)


def test_child_has_no_other_descriptors(path):
    """A spawned child inherits 0, 1, 2 and what was passed: its parent's pidfd, the two of the family; one is the listing's own."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    os.set_inheritable(writing, True)
    try:
        p = polyproc.get_context("spawn").Process(target=list_descriptors, args=(path,))
        assert run(p) == 0
    finally:
        os.close(reading)
        os.close(writing)
    seen = question(path)
    assert not any(what.startswith("pipe:") for fd, what in seen.items() if int(fd) > 2), seen
    assert len([fd for fd in seen if int(fd) > 2]) <= 4, seen
    assert any("polyproc-heap" in what for what in seen.values()), seen


def list_descriptors(path):
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass
    tasks.answer(path, found)


def test_executable_that_is_missing():
    from polyproc import spawn

    before = spawn.get_executable()
    spawn.set_executable("/nonexistent/python")
    try:
        with pytest.raises(FileNotFoundError):
            polyproc.get_context("spawn").Process(target=tasks.nothing).start()
    finally:
        spawn.set_executable(before)


def test_the_other_package_agrees(ours, path):
    """multiprocessing, imported inside a child of ours, and logging know which process this is."""
    p = ours.Process(target=tasks.ask_the_other_package, args=(path,), name="ours", daemon=True)
    p.start()
    pid = p.pid
    p.join(60)
    p.close()
    assert question(path, 0) == {
        "name": "ours",
        "daemon": True,
        "pid": pid,
        "parent": os.getpid(),
        "children": 0,
        "record": "ours",
    }


def test_child_loads_little(tmp_path):
    """What a spawned child imports before its target decides how fast it starts."""
    path = str(tmp_path / "answer")
    script = tmp_path / "program.py"
    script.write_text(
        "import polyproc as mp, process_tasks\n"
        "if __name__ == '__main__':\n"
        f"    p = mp.get_context('spawn').Process(target=process_tasks.loaded_modules, args=({path!r},))\n"
        "    p.start(); p.join()\n"
    )
    python(script, "-S")
    loaded = set(question(path))
    assert "polyproc.process" in loaded
    assert not loaded & {"ctypes", "multiprocessing", "pickle", "socket", "selectors", "subprocess", "tempfile", "logging"}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python warns since 3.12")
def test_fork_warning(tmp_path):
    """The library's threads are no reason for Python's warning; Python's own are."""
    script = tmp_path / "program.py"
    script.write_text(
        "import polyproc as mp, process_tasks, sys, threading\n"
        "def start(method):\n"
        "    p = mp.get_context(method).Process(target=process_tasks.nothing)\n"
        "    p.start(); p.join(); print(p.exitcode)\n"
        "if __name__ == '__main__':\n"
        "    start('spawn'); start('fork')\n"
        "    event = threading.Event(); thread = threading.Thread(target=event.wait); thread.start()\n"
        "    print('now', file=sys.stderr, flush=True); start('fork')\n"
        "    event.set(); thread.join()\n"
    )
    ran = python(script, "-W", "always::DeprecationWarning")
    assert ran.stdout.split() == ["0", "0", "0"]
    before, after = ran.stderr.split("now\n")
    assert before == ""
    assert after.count("multi-threaded") == 1


@pytest.mark.slow
def test_other_threads_see_a_start_in_progress(ours, path, monkeypatch):
    """The child runs before start() has returned: another thread takes it neither for dead nor for never started."""
    start, returned, answers = ours.Process._Popen, threading.Event(), []

    def late(process_obj):
        popen = start(process_obj)
        assert returned.wait(60)
        return popen

    monkeypatch.setattr(ours.Process, "_Popen", staticmethod(late))
    p = ours.Process(target=tasks.who, args=("polyproc", path))
    starter = threading.Thread(target=p.start)
    joiner = threading.Thread(target=lambda: answers.append((p.join(), p.exitcode)))
    starter.start()
    question(path)
    try:
        assert p.is_alive()
        p.join(0)
        p.join(0.01)
        with pytest.raises(ValueError, match="still running"):
            p.close()
        with pytest.raises(AssertionError, match="twice"):
            p.start()
        joiner.start()
        assert not answers
    finally:
        returned.set()
        starter.join()
    joiner.join()
    assert answers == [(None, 0)]
    assert not p.is_alive()
    p.close()


def test_start_that_failed_can_be_repeated(ours, monkeypatch):
    def failing(process_obj):
        raise OSError("no processes")

    p = ours.Process(target=tasks.nothing)
    with monkeypatch.context() as patch:
        patch.setattr(ours.Process, "_Popen", staticmethod(failing))
        with pytest.raises(OSError, match="no processes"):
            p.start()
    assert not p.is_alive()
    with pytest.raises(AssertionError, match="can only join a started process"):
        p.join()
    p.start()
    p.join()
    assert p.exitcode == 0


def test_many(ours):
    """No process, descriptor or memory of one start is left for the next."""
    for _ in range(3):
        processes = [ours.Process(target=tasks.nothing) for _ in range(20)]
        for p in processes:
            p.start()
        for p in processes:
            p.join(60)
            assert p.exitcode == 0
            p.close()


def test_without_poll(ours, tmp_path):
    """eventlet takes select.poll away and has a select() that lets its threads run."""
    source = """
import select
import shutil
vars(select).pop("poll", None)
import process_tasks, sys, time, polyproc
from polyproc.connection import wait
ctx = polyproc.get_context(sys.argv[1])
if __name__ == "__main__":
    a, b = ctx.Pipe()
    p = ctx.Process(target=b.send, args=(1,))
    p.start()
    assert wait([a], 60) == [a] and a.poll(60) and a.recv() == 1
    p.join(60)
    assert p.exitcode == 0 and wait([p.sentinel, a], 60) == [p.sentinel]
    p = ctx.Process(target=time.sleep, args=(60,))
    p.start()
    p.join(0.01)
    assert p.is_alive()
    p.terminate()
    p.join()
    with ctx.Pool(1) as pool:
        print(p.exitcode, pool.apply(abs, (-1,)))
"""
    script = tmp_path / "program.py"
    script.write_text(source)
    ran = python(script, arguments=[ours.get_start_method()])
    assert (ran.stdout, ran.stderr) == ("-15 1\n", "")


@pytest.mark.parametrize("method", METHODS)
def test_objects_after_a_daemonization(method, tmp_path):
    """A daemon has closed what a spawned child would need for its objects: start() says so."""
    source = """
import os, sys, polyproc as mp
if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    objects = [ctx.Queue(), ctx.Lock()]
    os.closerange(3, 1000)
    for each in objects:
        p = ctx.Process(target=str, args=(each,))
        try:
            p.start()
        except RuntimeError as e:
            print(type(each).__name__, str(e).endswith("or start the process by fork"))
        else:
            p.join()
            print(p.exitcode)
    p = ctx.Process(target=str)
    p.start()
    p.join()
    print(p.exitcode)
"""
    script = tmp_path / "program.py"
    script.write_text(source)
    ran = python(script, arguments=[method])
    assert ran.stdout.split() == ("0 0 0" if method == "fork" else "Queue True Lock True 0").split()


def test_errors_of_the_system_have_their_number():
    """As OSErrors of the standard library have."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 2, limits[1]))
    taken = []
    try:
        while True:
            try:
                taken.append(os.dup(held))
            except OSError:
                break
        with pytest.raises(OSError) as caught:
            polyproc.get_context("spawn").Process(target=tasks.nothing).start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in (*taken, held):
            os.close(fd)
    assert caught.value.errno == errno.EMFILE


LIMITED = """
import os, resource, sys
import polyproc, polyproc.dummy

pool = polyproc.get_context("fork").Pool(1)
ctypes = polyproc.Lock()  # what is imported at the first use
polyproc.dummy.Pool(1).terminate()
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for call in (
    polyproc.get_context("fork").Process(target=int).start,
    lambda: pool.apply_async(abs, (1,), callback=print),
    lambda: polyproc.dummy.Pool(3),
    polyproc.dummy.Process(target=int).start,
):
    try:
        call()
    except (BlockingIOError, RuntimeError) as e:
        print(type(e).__name__, "RLIMIT_NPROC" in str(e))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="the limit does not apply to root: a user of its own is needed")
def test_limit_of_processes_is_named(tmp_path):
    package = tmp_path / "package"
    shutil.copytree(pathlib.Path(polyproc.__file__).parent, package / "polyproc")
    tmp_path.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run([sys.executable, "-c", LIMITED], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["BlockingIOError True", *["RuntimeError True"] * 3], done.stderr
