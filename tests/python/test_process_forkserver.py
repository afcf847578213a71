"""The fork server: what it imports, how it ends, what its children are given. Its children as processes: test_process.py."""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time

import process_tasks as tasks
import pytest
from conftest import descriptors
from process_tasks import question

import polyproc
from polyproc import forkserver

ctx = polyproc.get_context("forkserver")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "answer")


def server_pid():
    forkserver.ensure_running()
    return forkserver._forkserver._forkserver_pid


def alive(pid):
    """Whether the process runs: one that only waits to be collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, deadline=30.0):
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def start(target, *args, **options):
    p = ctx.Process(target=target, args=args, **options)
    p.start()
    return p


def join(p, code=0):
    p.join(60)
    assert p.exitcode == code
    p.close()


def program(tmp_path, source, code=0, **options):
    """Run a script in which ``start`` and ``ctx`` are as here, and tasks what process_tasks is."""
    script = tmp_path / "program.py"
    script.write_text(
        "import os, signal, sys, time\nimport process_tasks as tasks\nimport polyproc as mp\n"
        "from polyproc import forkserver\nctx = mp.get_context('forkserver')\n"
        "def start(target, *args, **options):\n    p = ctx.Process(target=target, args=args, **options); p.start(); return p\n" + source
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "ANSWERS": str(tmp_path)}
    ran = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=100, **options)
    assert ran.returncode == code, ran.stderr
    return ran


# ---- what it imports


PRELOAD = """
with open(os.environ["ANSWERS"] + "/imports", "a") as file:
    file.write(f"{__name__} {os.getpid()}\\n")
def child():
    print("colorsys" in sys.modules, flush=True)
if __name__ == "__main__":
    PRELOADED
    forkserver.ensure_running(); print(forkserver._forkserver._forkserver_pid, os.getpid(), flush=True)
    for _ in range(3):
        p = start(child); p.join(); assert p.exitcode == 0
"""


def preload(tmp_path, what):
    out = program(tmp_path, PRELOAD.replace("PRELOADED", what)).stdout.split()
    server, parent = out[:2]
    imports = (tmp_path / "imports").read_text().splitlines()
    assert imports[0] == f"__main__ {parent}"
    return out[2:], imports[1:], server


def test_main_module_is_imported_once(tmp_path):
    out, imports, server = preload(tmp_path, "pass")
    assert out == ["False"] * 3
    assert imports == [f"__mp_main__ {server}"]


def test_modules_are_imported_once(tmp_path):
    out, imports, server = preload(tmp_path, "mp.set_forkserver_preload(['colorsys', 'no_such_module', '__main__'])")
    assert out == ["True"] * 3
    assert imports == [f"__mp_main__ {server}"]


@pytest.mark.parametrize("modules, seen", [("[]", "False"), ("['colorsys']", "True")])
def test_main_module_is_not_imported(tmp_path, modules, seen):
    out, imports, server = preload(tmp_path, f"mp.set_forkserver_preload({modules})")
    assert out == [seen] * 3
    assert len(set(imports)) == 3
    assert f"__mp_main__ {server}" not in imports


def test_main_module_that_fails_in_the_server(tmp_path):
    """Its children import it themselves, and say what is wrong."""
    source = "if __name__ == '__main__':\n    p = start(tasks.nothing); p.join(); print(p.exitcode)\nelse:\n    raise KeyError('here')\n"
    ran = program(tmp_path, source)
    assert ran.stdout == "1\n"
    assert ran.stderr.count("KeyError: 'here'") == 1


def test_module_that_fails_in_the_server(tmp_path):
    """The server does not come up: an exception, not a hang."""
    (tmp_path / "broken.py").write_text("raise ValueError('on purpose')\n")
    ran = program(
        tmp_path,
        "if __name__ == '__main__':\n"
        "    mp.set_forkserver_preload(['broken'])\n"
        "    try: start(tasks.nothing)\n"
        "    except (EOFError, OSError) as e: print('refused', mp.active_children())\n",
    )
    assert ran.stdout == "refused []\n"
    assert "ValueError: on purpose" in ran.stderr


def test_what_one_child_needs_is_imported_for_all(path):
    """The first daemon needs ctypes and the library; the server has it from then on."""
    join(start(tasks.nothing, daemon=True))
    join(start(tasks.loaded_modules, path))
    assert {"polyproc._lib", "ctypes"} <= set(question(path, 0))
    with open(f"/proc/{server_pid()}/maps") as file:
        maps = file.read()
    assert "libpolyproc.so" in maps
    assert "libpolyproc-engine" not in maps


# ---- how it ends


def test_killed_server_is_replaced(path):
    before = server_pid()
    running = start(tasks.sleep, path)
    pid = question(path)
    os.kill(before, signal.SIGKILL)
    for _ in range(3):
        join(start(tasks.nothing))
    assert server_pid() != before
    # The child lives on; only its exit code is not known to anybody.
    assert running.is_alive()
    assert running.exitcode is None
    running.terminate()
    running.join(60)
    assert running.exitcode == 255
    wait_for(lambda: not alive(pid))
    running.close()
    polyproc.active_children()


@pytest.mark.slow
def test_each_child_runs_once_whenever_the_server_is_killed(tmp_path):
    """Threads start children while the server is killed again and again: no start is lost, none happens twice."""
    log = tmp_path / "log"
    done = threading.Event()
    failures = []

    def work(number):
        try:
            for n in range(8):
                p = start(append, str(log), f"{number}.{n}\n")
                p.join(60)
                assert p.exitcode in (0, 255)
                p.close()
        except BaseException as e:
            failures.append(e)

    def kill():
        while not done.is_set():
            pid = server_pid()
            if done.wait(0.05):
                return
            try:
                if pid is not None and pid == forkserver._forkserver._forkserver_pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    forkserver.ensure_running()
    killer = threading.Thread(target=kill)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for each in (*threads, killer):
        each.start()
    for each in threads:
        each.join()
    done.set()
    killer.join()
    forkserver._forkserver._stop()
    join(start(tasks.nothing))
    lines = log.read_text().split() if log.exists() else []
    assert len(lines) == len(set(lines))
    # Three servers in a row that die at once are given up: then, and only then, a start fails.
    assert all(isinstance(e, (EOFError, OSError)) for e in failures), failures
    if not failures:
        assert sorted(lines) == sorted(f"{number}.{n}" for number in range(3) for n in range(8))


def append(path, text):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, text.encode())
    os.close(fd)


def test_interrupt_is_not_for_the_server(tmp_path):
    """Ctrl-C reaches the whole process group: the child gets its KeyboardInterrupt, the server stays."""
    ran = program(
        tmp_path,
        "if __name__ == '__main__':\n"
        "    path = os.environ['ANSWERS'] + '/pid'\n"
        "    p = start(tasks.sleep, path); tasks.question(path)\n"
        "    before = forkserver._forkserver._forkserver_pid\n"
        "    signal.signal(signal.SIGINT, lambda *a: None)\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "    p.join(30); print(p.exitcode)\n"
        "    p = start(tasks.leave, 3); p.join(); print(p.exitcode, forkserver._forkserver._forkserver_pid == before)\n",
        start_new_session=True,
    )
    assert ran.stdout.split() == ["1", "3", "True"]
    assert ran.stderr.count("KeyboardInterrupt\n") == 1


@pytest.mark.parametrize("end, code", [("pass", 0), ("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", -9)])
def test_server_ends_with_its_client(tmp_path, end, code):
    ran = program(
        tmp_path,
        "if __name__ == '__main__':\n"
        "    path = os.environ['ANSWERS'] + '/pid'\n"
        "    start(tasks.sleep, path, daemon=True)\n"
        "    print(forkserver._forkserver._forkserver_pid, tasks.question(path), flush=True)\n"
        f"    {end}\n",
        code=code,
    )
    for pid in map(int, ran.stdout.split()):
        wait_for(lambda pid=pid: not alive(pid), 10.0)


def test_server_lives_as_long_as_a_child(tmp_path):
    """An orphan can still start processes."""
    ran = program(
        tmp_path,
        "if __name__ == '__main__':\n"
        "    path = os.environ['ANSWERS'] + '/'\n"
        "    start(tasks.start_as_orphan, 'polyproc', path + 'ready', path + 'code')\n"
        "    tasks.question(path + 'ready')\n"
        "    print(forkserver._forkserver._forkserver_pid, flush=True)\n"
        "    os._exit(0)\n",
    )
    pid, code = question(tmp_path / "code")
    assert (pid, code) == (int(ran.stdout), 6)
    wait_for(lambda: not alive(int(ran.stdout)))


# ---- what it leaves


def test_no_zombies():
    """Children whose process objects nobody asks are collected all the same."""
    pid = server_pid()
    processes = [start(tasks.nothing) for _ in range(30)]
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: not children.read_text().split())
    for p in processes:
        assert p.exitcode == 0
        p.close()


def test_descriptors_do_not_pile_up(tmp_path):
    """Neither in the server nor, from one child to the next, in the children."""
    forkserver.ensure_running()
    join(start(tasks.nothing))
    before = len(os.listdir(f"/proc/{server_pid()}/fd"))  # perhaps with what the server is about to close
    processes, seen = [], []
    for n in range(12):
        path = str(tmp_path / str(n))
        processes.append(start(tasks.sleep, path))
        pid = question(path)
        assert processes[-1].pid == pid
        seen.append(len(os.listdir(f"/proc/{pid}/fd")))
    assert seen == [seen[0]] * 12
    for p in processes:
        p.kill()
    for p in processes:
        join(p, -signal.SIGKILL)
    wait_for(lambda: len(os.listdir(f"/proc/{server_pid()}/fd")) <= before)


def test_server_without_descriptors(tmp_path):
    """The start is refused, and nothing else is harmed."""
    pid = server_pid()
    path = str(tmp_path / "running")
    running = start(tasks.sleep, path)
    question(path)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    free = [fd for fd in range(len(used) + 3) if fd not in used]
    try:
        for more in range(3):  # none, one and two of the three that a request needs
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[more], limits[1]))
            with pytest.raises(OSError, match="(?i)too many open files"):
                start(tasks.nothing)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert server_pid() == pid
    join(start(tasks.nothing))
    running.kill()
    join(running, -signal.SIGKILL)


def test_too_many_descriptors_to_pass(path):
    before = len(descriptors())
    p = ctx.Process(target=tasks.count_passed, args=([tasks.Closed("polyproc", 0) for _ in range(forkserver.MAX_FDS)], path))
    with pytest.raises(ValueError, match="too many"):  # the parent's pidfd is one too
        p.start()
    p = ctx.Process(target=tasks.count_passed, args=([tasks.Closed("polyproc", 0) for _ in range(forkserver.MAX_FDS - 1)], path))
    p.start()
    join(p)
    assert question(path, 0) == forkserver.MAX_FDS - 1
    assert len(descriptors()) == before


# ---- children


def test_children_are_the_servers(path):
    join(start(tasks.who, "polyproc", path))
    seen = question(path, 0)
    assert seen["getppid"] == server_pid()
    assert seen["parent"] == ["MainProcess", os.getpid(), True]
    assert seen["method"] == "forkserver"


def test_surroundings_are_those_of_the_start(tmp_path, path, monkeypatch):
    """Of the start of the child, not of that of the server."""
    forkserver.ensure_running()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["changed", "arguments"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ctx.current_process(), "_config", {**ctx.current_process()._config})
    ctx.current_process().authkey = b"other"
    join(start(tasks.surroundings, path))
    seen = question(path, 0)
    assert (seen["cwd"], seen["argv"], seen["path"][0]) == (str(tmp_path), ["changed", "arguments"], str(tmp_path))
    join(start(tasks.who, "polyproc", path))
    assert question(path, 0)["authkey"] == b"other".hex()


def test_grandchildren_are_of_the_same_server(path):
    join(start(tasks.grandchild_of_server, "polyproc", path))
    child, parent, grandparent = question(path, 0)
    assert child == server_pid()
    assert parent != os.getpid()
    assert grandparent == os.getpid()


def test_grandchildren_of_a_killed_server(path):
    """The child starts a server of its own."""
    old = server_pid()
    ready = path + ".ready"
    p = start(tasks.start_later, "polyproc", ready, path)
    question(ready)
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: not alive(old))
    tasks.answer(ready + ".go", 1)
    assert question(path) == 0
    p.join(60)
    assert p.exitcode == 255
    p.close()
    join(start(tasks.nothing))


def test_forked_client(path):
    """A fork of a client uses the client's server."""
    p = polyproc.get_context("fork").Process(target=tasks.who_by, args=("forkserver", "polyproc", path))
    p.start()
    p.join(60)
    assert p.exitcode == 0
    pid = p.pid
    p.close()
    seen = question(path, 0)
    assert seen["getppid"] == server_pid()
    assert seen["parent"][1] == pid


def test_stdlib_and_this_package_side_by_side(path):
    """Both servers in one program."""
    import multiprocessing

    theirs = multiprocessing.get_context("forkserver").Process(target=tasks.leave, args=(4,))
    ours = ctx.Process(target=tasks.leave, args=(5,))
    theirs.start()
    ours.start()
    theirs.join(60)
    ours.join(60)
    assert (theirs.exitcode, ours.exitcode) == (4, 5)
    theirs.close()
    ours.close()


@pytest.mark.slow
def test_many_at_once():
    processes = [ctx.Process(target=tasks.leave_number, args=(n,)) for n in range(60)]
    for p in processes:
        p.start()
    for n, p in enumerate(processes):
        join(p, n)
