"""Contexts, start methods, and the ways a program may have been started: the standard library and this package side by side."""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import process_tasks as tasks
import pytest
from conftest import STDLIB
from process_tasks import question

import polyproc
import polyproc.reduction

MODULES = {"stdlib": multiprocessing, "polyproc": polyproc}


@pytest.fixture(params=[STDLIB, "polyproc"])
def mp(request):
    return MODULES[request.param]


def program(module, source, *options, file=None, stdin=None, code=0, directory=None):
    """Run Python with this source as a script, on the standard input, or as the options say. Returns (stdout, stderr)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    source = source.replace("MODULE", module.__name__)
    if file is not None:
        pathlib.Path(file).write_text(source)
        options = (*options, str(file))
    ran = subprocess.run(
        [sys.executable, *options],
        input=source if stdin else "",
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout, ran.stderr


# ---- the surface


def test_contexts_have_the_same_names():
    ours, theirs = polyproc.context.BaseContext, multiprocessing.context.BaseContext
    assert {n for n in dir(ours) if n[:2] != "__"} == {n for n in dir(theirs) if n[:2] != "__"}


@pytest.mark.parametrize("cls", ["BaseContext", "DefaultContext"])
def test_contexts_have_the_same_signatures(cls):
    ours, theirs = getattr(polyproc.context, cls), getattr(multiprocessing.context, cls)
    compared = 0
    for name in dir(theirs):
        if name[:2] == "__" or not callable(getattr(theirs, name)) or isinstance(getattr(theirs, name), type):
            continue
        assert shape(getattr(ours, name)) == shape(getattr(theirs, name)), name
        compared += 1
    assert compared > 20


def shape(function):
    """The parameters, but for `name` of queues and `recover` of semaphores and locks: those that the standard library has not."""
    parameters = inspect.signature(function).parameters.values()
    kind = getattr(function, "__name__", "")
    own = {"name": kind.endswith("Queue"), "recover": kind.endswith(("Semaphore", "Lock"))}
    return [(p.name, p.kind, p.default) for p in parameters if not (p.kind is p.KEYWORD_ONLY and own.get(p.name))]


def test_process_has_the_same_names_and_signatures():
    ours, theirs = polyproc.process.BaseProcess, multiprocessing.process.BaseProcess
    public = {n for n in dir(theirs) if n[0] != "_"}
    assert public <= set(dir(ours))
    for name in public | {"__init__"}:
        if callable(getattr(theirs, name)):
            assert shape(getattr(ours, name)) == shape(getattr(theirs, name)), name
        else:
            assert isinstance(getattr(ours, name), property)


def test_package_has_the_same_names():
    assert set(multiprocessing.__all__) <= set(polyproc.__all__)
    for name in polyproc.__all__:
        assert hasattr(polyproc, name), name
    for name in ("context", "process", "reduction", "SUBDEBUG", "SUBWARNING"):
        assert hasattr(polyproc, name), name
    for name in multiprocessing.__all__:
        theirs = getattr(multiprocessing, name)
        if inspect.isroutine(theirs):
            assert shape(getattr(polyproc, name)) == shape(theirs), name


def test_no_other_public_names():
    """Modules aside: what CPython's own test of multiprocessing's __all__ asks for."""
    names = {n for n, value in vars(polyproc).items() if n[0] != "_" and not inspect.ismodule(value)}
    assert names - set(polyproc.__all__) <= {"SUBDEBUG", "SUBWARNING"}


def test_star_import():
    names = {}
    exec("from polyproc import *", names)
    assert set(polyproc.__all__) <= set(names)


def test_what_is_not_built_says_so():
    for name, arguments in {
        "Value": ("i",),
        "Array": ("i", 3),
        "RawValue": ("i",),
        "RawArray": ("i", 3),
        "Manager": (),
    }.items():
        with pytest.raises(NotImplementedError, match=rf"polyproc has no {name} yet: it comes with release 0\.\d"):
            getattr(polyproc, name)(*arguments)


# ---- start methods


def test_default_is_that_of_the_interpreter():
    source = "import MODULE as mp; print(mp.get_start_method(True), mp.get_start_method(), mp.get_start_method(True))"
    theirs, ours = (program(m, source, stdin=True)[0] for m in MODULES.values())
    if sys.version_info < (3, 14):
        assert ours == theirs


def test_set_start_method(mp):
    source = """
import MODULE as mp
def refused(error, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except error as e:
        return str(e)
print(refused(ValueError, mp.set_start_method, "nonsense"))
mp.set_start_method("spawn")
print(mp.get_start_method(), refused(RuntimeError, mp.set_start_method, "fork"))
mp.set_start_method("fork", force=True)
print(mp.get_start_method(), mp.get_context().get_start_method(), type(mp.get_context()).__name__)
mp.set_start_method(None, force=True)
print(mp.get_start_method(allow_none=True))
mp.set_start_method("spawn")
print(mp.get_start_method(allow_none=True))
print(refused(ValueError, mp.get_context("spawn").set_start_method, "spawn"))
"""
    assert program(mp, source, stdin=True)[0].splitlines() == [
        "cannot find context for 'nonsense'",
        "spawn context has already been set",
        "fork fork ForkContext",
        "None",
        "spawn",
        "cannot set start method of concrete context",
    ]


def test_contexts(mp):
    for method, name in {"fork": "ForkContext", "spawn": "SpawnContext", "forkserver": "ForkServerContext"}.items():
        context = mp.get_context(method)
        assert type(context).__name__ == name
        assert context is mp.get_context(method) is context.get_context() is context.get_context(method)
        assert context.get_start_method() == context.get_start_method(allow_none=True) == method
        assert context.Process.__name__ == name.replace("Context", "Process")
        assert context.cpu_count() == os.cpu_count() == mp.cpu_count()
    with pytest.raises(ValueError, match="cannot find context for 'x'"):
        mp.get_context("x")
    assert mp.get_all_start_methods() == multiprocessing.get_all_start_methods()
    assert mp.get_all_start_methods()[0] == mp.get_start_method()


def test_a_child_of_a_context_has_its_method(mp, tmp_path):
    """The default method of the parent is the child's, except that a context's own processes bring theirs along."""
    source = """
import sys
import MODULE as mp
def child():
    print(mp.get_start_method(), flush=True)
if __name__ == "__main__":
    mp.set_start_method("spawn")
    for cls in (mp.Process, *(mp.get_context(m).Process for m in ("fork", "spawn", "forkserver"))):
        p = cls(target=child); p.start(); p.join()
"""
    assert program(mp, source, file=tmp_path / "program.py")[0].split() == ["spawn", "fork", "spawn", "forkserver"]


@pytest.mark.parametrize("kind", [str, os.fsencode, pathlib.Path])
def test_set_executable(mp, tmp_path, kind):
    path = str(tmp_path / "answer")
    spawn = mp.get_context("spawn")
    try:
        mp.set_executable(kind(sys.executable))
        p = spawn.Process(target=tasks.arguments, args=(1, path))
        p.start()
        p.join(60)
        assert p.exitcode == 0
        p.close()
    finally:
        mp.set_executable(sys.executable)
    assert question(path) == [[1], {}]


def test_set_forkserver_preload(mp):
    mp.set_forkserver_preload(["json"])
    if mp is polyproc or sys.version_info >= (3, 11):  # before, the standard library looked at its old list
        with pytest.raises(TypeError):
            mp.set_forkserver_preload([1])
    mp.set_forkserver_preload(["__main__"])


FROZEN = """#!{python}
import os, sys
sys.path[:0] = {path!r}
with open({starts!r}, "a") as file:
    file.write("x")
if os.path.getsize({starts!r}) > 20:
    sys.exit("a fork bomb")
sys.frozen, sys.executable = True, sys.argv[0]
import multiprocessing
import polyproc as mp
if __name__ == "__main__":
    if {support}:
        {support}.freeze_support()
    import process_tasks
    ctx = mp.get_context({method!r})
    p = ctx.Process(target=process_tasks.leave, args=(6,))
    p.start(); p.join(); print(p.exitcode)
    with ctx.Pool(2) as pool:
        print(pool.map(abs, [-1, -2]))
"""


def frozen(tmp_path, method, support):
    """Run a frozen program: it is its own interpreter, and is executed again with a word that freeze_support() looks for."""
    path = [os.path.dirname(os.path.dirname(polyproc.__file__)), os.path.dirname(tasks.__file__)]
    starts = str(tmp_path / "starts")
    program_ = tmp_path / "frozen"
    program_.write_text(FROZEN.format(python=sys.executable, path=path, starts=starts, support=support, method=method))
    program_.chmod(0o755)
    return subprocess.run([str(program_)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_freeze_support(tmp_path, method):
    ran = frozen(tmp_path, method, "mp")
    assert (ran.stdout, ran.stderr) == ("6\n[1, 2]\n", "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_freeze_support_is_missing(tmp_path, method):
    """The child, which is the program again, is stopped where it starts a child itself."""
    ran = frozen(tmp_path, method, None)
    assert "before it has called freeze_support()" in ran.stderr
    assert "a fork bomb" not in ran.stderr


def test_freeze_support_does_nothing(mp):
    assert mp.freeze_support() is None
    assert mp.allow_connection_pickling() is None


def test_flags_are_handed_on(mp, tmp_path):
    source = """
import MODULE as mp, sys
def child():
    print(sys.flags.optimize, sys.flags.bytes_warning, sys.flags.dev_mode, sys.flags.utf8_mode, sys.warnoptions,
          sorted(sys._xoptions.items()), flush=True)
if __name__ == "__main__":
    child()
    p = mp.get_context("spawn").Process(target=child); p.start(); p.join()
"""
    options = ["-O", "-b", "-W", "ignore:x", "-X", "utf8", "-X", "dev", "-X", "faulthandler"]
    mine, childs = program(mp, source, *options, file=tmp_path / "program.py")[0].splitlines()
    assert childs == mine


# ---- the main module

@pytest.fixture(params=["spawn", "forkserver"])
def method(request):
    """The methods under which a child imports the main module."""
    return request.param


UNGUARDED = """
import MODULE as mp, os, sys
def child():
    print("never")
open(os.environ["COUNT"], "a").write("x")
p = mp.get_context("METHOD").Process(target=child)
p.start()
p.join()
print("exit code", p.exitcode)
"""


def test_unguarded_program(mp, method, tmp_path, monkeypatch):
    """One RuntimeError that explains, and no storm of processes."""
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    out, err = program(mp, UNGUARDED.replace("METHOD", method), file=tmp_path / "program.py")
    assert out == "exit code 1\n"
    assert err.count("\nRuntimeError: ") == 1
    assert "An attempt has been made to start a new process before the" in err
    assert "if __name__ == '__main__':" in err
    # The program, its child, and this package's fork server, which imports the main module beforehand.
    assert (tmp_path / "count").read_text() == ("xxx" if mp is polyproc and method == "forkserver" else "xx")


GUARDED = """
import MODULE as mp, sys
class Thing:
    def __init__(self, value):
        self.value = value
thing = Thing(1)
def child(thing):
    global counter
    counter = 5
    print(type(thing) is Thing, thing.value, __name__, sys.modules["__main__"].counter,
          sys.modules["__main__"] is sys.modules["__mp_main__"], sys.argv[1:], flush=True)
counter = 1
if __name__ == "__main__":
    p = mp.get_context("METHOD").Process(target=child, args=(Thing(7),))
    p.start(); p.join(); print(p.exitcode)
"""


def check_guarded(mp, out):
    shown, code = out.splitlines()
    words = shown.split()
    # runpy's copy of the namespace hides a function's assignments from the main module: for the standard library counter is 1.
    assert words[:3] == ["True", "7", "__mp_main__"]
    assert words[3] == ("5" if mp is polyproc else words[3])
    assert words[4] == "True"
    assert code == "0"


def test_script(mp, method, tmp_path):
    check_guarded(mp, program(mp, GUARDED.replace("METHOD", method), file=tmp_path / "program.py")[0])


def test_script_by_a_relative_path(mp, method, tmp_path):
    (tmp_path / "program.py").write_text(GUARDED.replace("MODULE", mp.__name__).replace("METHOD", method))
    check_guarded(mp, program(mp, "", "program.py", directory=tmp_path)[0])


def test_script_whose_directory_is_left(mp, method, tmp_path):
    source = GUARDED.replace('"__main__":', '"__main__":\n    import os; os.chdir("/")')
    (tmp_path / "program.py").write_text(source.replace("MODULE", mp.__name__).replace("METHOD", method))
    check_guarded(mp, program(mp, "", "program.py", directory=tmp_path)[0])


def test_module(mp, method, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(GUARDED.replace("MODULE", mp.__name__).replace("METHOD", method))
    out = program(mp, "", "-m", "package.module", "argument", directory=tmp_path)[0]
    assert out.startswith("True 7 __mp_main__ ")
    assert "['argument']" in out
    assert out.endswith("\n0\n")


IMPORTED = """
import MODULE as mp, process_tasks
if __name__ == "__main__":
    p = mp.get_context("METHOD").Process(target=process_tasks.leave, args=(6,))
    p.start(); p.join(); print(p.exitcode)
"""


def test_package(mp, method, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(IMPORTED.replace("MODULE", mp.__name__).replace("METHOD", method))
    assert program(mp, "", "-m", "package", directory=tmp_path)[0] == "6\n"


def test_command(mp, method):
    assert program(mp, "", "-c", IMPORTED.replace("MODULE", mp.__name__).replace("METHOD", method))[0] == "6\n"


def test_standard_input(mp, method):
    # The standard library's child looks for a file named "<stdin>".
    assert program(mp, IMPORTED.replace("METHOD", method), stdin=True)[0] == ("6\n" if mp is polyproc else "1\n")


def test_interactive(mp, method):
    source = IMPORTED.replace("METHOD", method).replace("if __name__", "\nif __name__")
    source = source.replace("print(p.exitcode)", "print(p.exitcode)\n\n")
    assert program(mp, source, "-i", "-q", stdin=True)[0] == "6\n"


def test_directory(mp, method, tmp_path):
    (tmp_path / "__main__.py").write_text(IMPORTED.replace("MODULE", mp.__name__).replace("METHOD", method))
    assert program(mp, "", str(tmp_path))[0] == "6\n"


def test_archive(mp, method, tmp_path):
    archive = tmp_path / "program.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("__main__.py", IMPORTED.replace("MODULE", mp.__name__).replace("METHOD", method))
    assert program(mp, "", str(archive))[0] == "6\n"


def test_script_that_fails_in_the_child(mp, method, tmp_path):
    source = GUARDED.replace("METHOD", method) + "else:\n    raise KeyError('only in the child')\n"
    out, err = program(mp, source, file=tmp_path / "program.py")
    assert out == "1\n"
    assert "KeyError: 'only in the child'" in err
    assert err.count("Traceback") == 1


def test_package_found_by_a_changed_path(tmp_path):
    """The child imports the package that the parent uses, although its own environment does not name it."""
    where = os.path.dirname(os.path.dirname(os.path.abspath(polyproc.__file__)))
    decoy = tmp_path / "polyproc.py"
    decoy.write_text("raise RuntimeError('the wrong polyproc')\n")
    script = tmp_path / "sub" / "program.py"
    script.parent.mkdir()
    script.write_text(
        f"import sys; sys.path.insert(0, {where!r})\nimport polyproc as mp\n"
        "def child(): print(mp.__file__, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    p = mp.get_context('spawn').Process(target=child); p.start(); p.join(); print(p.exitcode)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # The current directory, which -c searches first, holds the decoy.
    out = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout
    assert out.split() == [os.path.abspath(polyproc.__file__), "0"]


# ---- logging


def test_logging(mp, tmp_path):
    """Child processes log as the parent does, under their own names."""
    source = """
import MODULE as mp, process_tasks
if __name__ == "__main__":
    logger = mp.log_to_stderr("WARNING")
    print(logger is mp.get_logger(), logger.level, logger.propagate)
    logger.warning("from the parent")
    for method in ("fork", "spawn", "forkserver"):
        p = mp.get_context(method).Process(target=process_tasks.log, args=("MODULE",), name=method)
        p.start(); p.join()
"""
    out, err = program(mp, source, file=tmp_path / "program.py")
    assert out in ("True 30 False\n", "True 30 0\n")
    assert err.splitlines() == [
        "[WARNING/MainProcess] from the parent",
        "[WARNING/fork] from a child",
        "[WARNING/spawn] from a child",
        "[WARNING/forkserver] from a child",
    ]


# ---- pickling


@pytest.mark.parametrize(
    "value",
    [1, "x", [1, {2: (3,)}], functools.partial(int, base=2), [].append, "x".join, len, list.append],
    ids=lambda v: type(v).__name__,
)
def test_forking_pickler(mp, value):
    pickler = mp.reducer.ForkingPickler
    again = pickler.loads(pickler.dumps(value))
    if isinstance(value, functools.partial):
        assert (again.func, again.args, again.keywords) == (value.func, value.args, value.keywords)
    else:
        assert type(again) is type(value)


class Special:
    pass


def test_registered_reducers(mp):
    pickler = mp.reducer.ForkingPickler
    pickler.register(Special, lambda value: (str, ("special",)))
    try:
        assert pickler.loads(pickler.dumps([Special(), Special])) == ["special", Special]
        # Those of the standard library's pickler count in ours, not the other way round.
        other = polyproc.reduction.ForkingPickler
        assert other.loads(other.dumps(Special())) == "special"
    finally:
        del pickler._extra_reducers[Special]
    assert type(pickler.loads(pickler.dumps(Special()))) is Special


def test_reducer_can_be_replaced(mp):
    before = mp.get_context().reducer
    try:
        mp.get_context().reducer = Special
        assert mp.get_context().reducer is Special
    finally:
        mp.get_context().reducer = before
    assert mp.get_context().reducer is before


@pytest.mark.skipif(sys.version_info < (3, 10), reason="needs sys.stdlib_module_names")
def test_no_module_comes_from_the_working_directory(tmp_path):
    """Nor from where the package lies: neither comes before the standard library, in children, workers and fork servers."""
    site, tool = tmp_path / "site", tmp_path / "tool"
    site.mkdir()
    tool.mkdir()
    (site / "polyproc").symlink_to(os.path.dirname(polyproc.__file__))
    names = [name for name in sys.stdlib_module_names if name not in sys.builtin_module_names and name.isidentifier()]
    for name in names:
        (site / f"{name}.py").write_text(f"open({str(tmp_path / 'hijacked')!r}, 'a').write('{name} ')\nraise SystemExit\n")
    (tool / "tool.py").write_text(
        "import sys\n"
        f"sys.path.append({str(site)!r})\n"
        "import polyproc as mp\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'forkserver'):\n"
        "        ctx = mp.get_context(method)\n"
        "        p = ctx.Process(target=print, args=(method,), daemon=True)\n"
        "        p.start(); p.join(); print(p.exitcode, flush=True)\n"
        "        with ctx.Pool(1) as pool: print(pool.map_async(abs, [-1]).get(30), flush=True)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, str(tool / "tool.py")], cwd=site, env=environment, capture_output=True, text=True, timeout=60
    )
    hijacked = tmp_path / "hijacked"
    assert not hijacked.exists() or hijacked.read_text() == ""
    assert (ran.stdout, ran.stderr) == ("spawn\n0\n[1]\nforkserver\n0\n[1]\n", "")


@pytest.mark.parametrize("name", [
    "Barrier", "BoundedSemaphore", "Condition", "Event", "JoinableQueue", "Lock", "Pipe", "Pool", "Queue", "RLock", "Semaphore",
    "SimpleQueue",
])  # fmt: skip
def test_help_of_a_factory(name):
    """help() says what each argument is, and what is raised."""
    factory = getattr(polyproc, name)
    text = inspect.getdoc(factory)
    assert "Raises:" in text
    for parameter in inspect.signature(factory).parameters:
        assert re.search(rf"\b{parameter}\b", text), parameter


@pytest.mark.parametrize("name", ["Array", "Manager", "RawArray", "RawValue", "Value"])
def test_help_of_what_is_not_there_yet(name):
    assert "raises NotImplementedError" in inspect.getdoc(getattr(polyproc, name))
