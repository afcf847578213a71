"""What a child by os.fork() finds of what threads of its parent were doing. (stress.py has the same without order, and many times.)"""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
import threading
import warnings

import pytest

import polyproc

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 20

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def child(what):
    """The exit code of a forked child that calls ``what``: 0 if it returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads run: that is what this is about
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            what()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    fd = os.pidfd_open(pid)
    try:
        if not select.select([fd], [], [], PATIENCE)[0]:
            os.kill(pid, 9)
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Stopper:
    """Finder and loader of one module, for other threads than the one that made it: they wait in the middle of the import."""

    def __init__(self, name):
        self.name = name
        self.module = importlib.import_module(name)
        self.mine = threading.get_ident()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def find_spec(self, name, path=None, target=None):
        if name == self.name and threading.get_ident() != self.mine:
            path = "/.." + self.module.__file__  # paths need not be normal
            return importlib.util.spec_from_loader(name, self, origin=path)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.reached.set()
        self.go_on.wait(PATIENCE)
        vars(module).update(vars(self.module))


def importing(module, needed):
    """A thread that is in the middle of the import of ``module``, where that imports ``needed``. Returns how to let it go on."""
    stopper = Stopper(needed)
    for name in (module, needed):
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, stopper)
    thread = threading.Thread(target=__import__, args=(module,))
    thread.start()

    def end():
        stopper.go_on.set()
        thread.join(PATIENCE)
        sys.meta_path.remove(stopper)
        assert not thread.is_alive()

    assert stopper.reached.wait(PATIENCE)
    assert sys.modules[module].__spec__._initializing
    return end


def test_modules_that_a_thread_was_importing_are_imported_anew():
    end = importing("plistlib", "xml.parsers.expat")
    try:

        def use():
            import plistlib

            assert plistlib.loads(plistlib.dumps({"a": 1})) == {"a": 1}

        assert child(use) == 0
    finally:
        end()
    import plistlib

    assert plistlib.loads(plistlib.dumps({"a": 1})) == {"a": 1}  # in the parent nothing has changed


def test_programs_are_not_imported_anew(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text("begun = True\nimport wave\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    end = importing("program", "wave")
    try:
        was = sys.modules["program"]

        def look():
            assert sys.modules["program"] is was

        assert child(look) == 0
    finally:
        end()
        del sys.modules["program"]


def twice(x):
    return 2 * x


def refused(call, *args, **named):
    with pytest.raises(RuntimeError, match="forked"):
        call(*args, **named)


@pytest.mark.parametrize("make", ["fork", "spawn", "threads"])
def test_inherited_pools_refuse(make):
    if make == "threads":
        pool = polyproc.pool.ThreadPool(1)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # another test may have left a thread
            pool = polyproc.get_context(make).Pool(1)
    held, let_go = threading.Event(), threading.Event()

    def wait():
        held.set()
        try:
            result.get(PATIENCE)
        except polyproc.ProcessError:
            pass  # the pool was terminated

    def use():
        refused(pool.apply, twice, (1,))
        refused(pool.map_async, twice, [1], callback=print)
        refused(pool.imap, twice, [1])
        refused(next, iterator)
        refused(result.get)
        assert not result.ready()
        del globals()["kept"]
        pool.close()
        refused(pool.join)
        pool.terminate()

    with pool:
        result = pool.apply_async(let_go.wait if make == "threads" else sleep_for_ever)
        iterator = pool.imap(twice, iter(int, 1))
        globals()["kept"] = pool.imap_unordered(twice, iter(int, 1))
        thread = threading.Thread(target=wait)
        thread.start()
        assert held.wait(PATIENCE)
        try:
            assert child(use) == 0
        finally:
            let_go.set()
            del globals()["kept"]
    thread.join()
    if make != "threads":
        with pytest.raises(polyproc.ProcessError):
            result.get(PATIENCE)


def sleep_for_ever():
    threading.Event().wait()


def test_fork_server_of_which_a_thread_holds_the_lock():
    ctx = polyproc.get_context("forkserver")
    from polyproc import forkserver

    def start():
        process = ctx.Process(target=twice, args=(1,))
        process.start()
        process.join()
        assert process.exitcode == 0

    start()
    with forkserver._forkserver._lock:
        assert child(start) == 0


@pytest.mark.slow  # `make stress` is for every Python
@pytest.mark.timeout(300)
def test_stress():
    script = os.path.join(HERE, "stress.py")
    subprocess.run([sys.executable, script, "--forks", "3"], check=True, timeout=300)
