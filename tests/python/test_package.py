"""The package as such: what an import costs, the library, the table of the C interface, errors, finalizers."""

from __future__ import annotations

import copy
import gc
import importlib
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import weakref

import pytest

import polyproc
from polyproc import _abi, _errors, _lib, util

PACKAGE = os.path.dirname(os.path.abspath(polyproc.__file__))
HEADER = os.path.join(os.path.dirname(__file__), *[os.pardir] * 2, "include", "polyproc.h")


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.path.dirname(PACKAGE), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


# ---- import


def test_import_loads_little():
    ran = python("-S", "-c", "import polyproc, sys; print(*sys.modules)")
    loaded = set(ran.stdout.split())
    assert "polyproc.process" in loaded
    assert not loaded & {
        "multiprocessing", "ctypes", "_ctypes", "pickle", "_pickle", "threading", "socket", "selectors", "subprocess",
        "tempfile", "logging", "typing", "enum", "signal", "polyproc._lib", "polyproc._abi", "polyproc.pool", "polyproc.util",
    }  # fmt: skip


def test_import_does_not_load_the_library():
    ran = python("-c", "import polyproc; print(open('/proc/self/maps').read().count('libpolyproc'))")
    assert ran.stdout == "0\n", ran.stderr


def test_import_changes_nothing_in_the_standard_library():
    source = """
import multiprocessing, multiprocessing.process as p, logging, sys
before = (dict(vars(p)), dict(vars(multiprocessing)), logging.getLogRecordFactory(), list(sys.meta_path))
import polyproc.util, polyproc.reduction, polyproc.spawn, polyproc.popen_fork
p_ = polyproc.Process(target=print); p_.start(); p_.join()
assert before == (dict(vars(p)), dict(vars(multiprocessing)), logging.getLogRecordFactory(), list(sys.meta_path))
"""
    ran = python("-c", source)
    assert ran.returncode == 0, ran.stderr


def test_main_prints_the_facts():
    ran = python("-m", "polyproc")
    assert ran.returncode == 0
    facts = dict(line.split(":", 1) for line in ran.stdout.splitlines())
    assert facts["polyproc"].strip() == polyproc.__version__ == facts["library version"].strip()
    assert facts["library"].strip() == _lib.path()
    assert "spawn" in facts["start methods"]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_main_help(option):
    ran = python("-m", "polyproc", option)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("usage: python -m polyproc")


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_main_version(option):
    ran = python("-m", "polyproc", option)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"polyproc {polyproc.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["bogus"], ["--bogus"], ["--help", "bogus"]])
def test_main_unknown_argument(arguments):
    ran = python("-m", "polyproc", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.endswith(f"unknown argument: {' '.join(arguments)}\n")


def test_typed():
    assert os.path.exists(os.path.join(PACKAGE, "py.typed"))


# ---- the library


@pytest.fixture
def bare(tmp_path):
    """The directory of a copy of the package without its library."""
    shutil.copytree(PACKAGE, tmp_path / "polyproc", ignore=shutil.ignore_patterns("*.so", "*.so.*", "__pycache__"))
    return str(tmp_path)


LOAD = "import polyproc._lib; print(polyproc._lib.lib().pp_version().decode(), polyproc._lib.path())"


def test_library_that_is_missing(bare):
    ran = python("-c", LOAD, PYTHONPATH=bare, POLYPROC_LIBRARY="")
    assert "ImportError" in ran.stderr
    assert "make build" in ran.stderr
    ran = python("-m", "polyproc", PYTHONPATH=bare, POLYPROC_LIBRARY="")
    assert ran.returncode == 1
    assert "not usable" in ran.stdout


def test_library_that_the_environment_names(bare):
    ran = python("-c", LOAD, PYTHONPATH=bare, POLYPROC_LIBRARY=_lib.path())
    assert ran.stdout.split() == [polyproc.__version__, _lib.path()], ran.stderr
    for wrong, word in {"libpolyproc.so": "absolute", "/nonexistent/libpolyproc.so": "does not exist"}.items():
        ran = python("-c", LOAD, PYTHONPATH=bare, POLYPROC_LIBRARY=wrong)
        assert "ImportError" in ran.stderr
        assert word in ran.stderr


def test_library_is_not_taken_from_the_current_directory(bare):
    shutil.copy(_lib.path(), os.path.join(bare, "libpolyproc.so"))
    ran = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=bare, stderr=subprocess.PIPE, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": bare, "POLYPROC_LIBRARY": ""},
    )  # fmt: skip
    assert "ImportError" in ran.stderr


@pytest.mark.parametrize(
    "source, word",
    [
        ('const char *pp_version(void) { return "7.0.0"; }', "has version 7.0.0, this package needs 0.1"),
        ('const char *pp_version(void) { return "0.1.9"; }', "is incomplete"),
        ("int nothing;", "is not the polyproc library"),
        (None, "cannot load"),
    ],
)
def test_library_that_is_wrong(bare, tmp_path, source, word):
    compiler = shutil.which("cc") or shutil.which("gcc")
    wrong = str(tmp_path / "wrong.so")
    if source is None:
        with open(wrong, "w") as file:
            file.write("no library")
    elif compiler is None:
        pytest.skip("no C compiler")
    else:
        subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", wrong], input=source, text=True, check=True, timeout=60)
    ran = python("-c", LOAD, PYTHONPATH=bare, POLYPROC_LIBRARY=wrong)
    assert "ImportError" in ran.stderr
    assert word in ran.stderr


# ---- the C interface


@pytest.fixture(scope="module")
def header():
    with open(HEADER) as file:
        return re.sub(r"/\*.*?\*/", "", file.read(), flags=re.S)


def test_table_has_every_function(header):
    declared = {}
    for name, parameters in re.findall(r"PP_API[^;]*?\b(pp_\w+)\(([^;]*)\);", header):
        declared[name] = 0 if parameters.strip() == "void" else parameters.count(",") + 1
    assert {name: len(arguments) for name, (_, arguments) in _abi.SIGNATURES.items()} == declared


def test_status_codes(header):
    numbers = {name: int(number) for name, number in re.findall(r"X\(ERR_(\w+), (-\d+), ", header)}
    assert {name: getattr(_errors, name) for name in numbers} == numbers
    for number in numbers.values():
        assert issubclass(_errors._CLASSES[number], Exception)
    assert _lib.lib().pp_status_name(_errors.TIMEOUT) == b"PP_ERR_TIMEOUT"


@pytest.mark.parametrize(
    "name, cls",
    [
        ("pp_process_options", _abi.ProcessOptions),
        ("pp_exit", _abi.Exit),
        ("pp_pool_options", _abi.PoolOptions),
        ("pp_result", _abi.Result),
        ("pp_pool_state", _abi.PoolState),
        ("pp_vacancy", _abi.Vacancy),
        ("pp_worker", _abi.Worker),
        ("pp_task", _abi.Task),
    ],
)
def test_structures(header, name, cls):
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", header, re.S).group(1)
    fields = [re.search(r"(\w+)\s*$", line).group(1) for line in body.replace("\n", " ").split(";") if line.strip()]
    assert [field[0] for field in cls._fields_] == fields


def test_version(header):
    assert re.search(r'#define PP_VERSION "(.*)"', header).group(1) == polyproc.__version__
    assert _lib.lib().pp_version().decode() == polyproc.__version__
    assert _lib.pylib()._handle == _lib.lib()._handle


# ---- errors


def test_status_becomes_exception():
    assert _errors.check(_errors.OK) is None
    for status, cls in {
        _errors.INVALID: ValueError,
        _errors.NOMEM: MemoryError,
        _errors.TIMEOUT: polyproc.TimeoutError,
        _errors.INTERRUPTED: InterruptedError,
        _errors.NOT_FOUND: FileNotFoundError,
        _errors.START: polyproc.StartError,
        _errors.INIT: polyproc.InitializerError,
        _errors.WORKER_LOST: polyproc.WorkerLost,
        _errors.SYSTEM: OSError,
        -99: polyproc.ProcessError,
    }.items():
        with pytest.raises(cls, match="in words"):
            raise _errors.error(status, "in words")
    status = _lib.lib().pp_process_signal(12345678, 9)
    with pytest.raises(ValueError) as caught:
        _errors.check(status)
    assert str(caught.value)


EXCEPTIONS = ["ProcessError", "BufferTooShort", "TimeoutError", "AuthenticationError"]


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_both_packages(name):
    ours, theirs = getattr(polyproc, name), getattr(multiprocessing, name)
    assert issubclass(ours, polyproc.ProcessError)
    for cls in (ours, theirs, polyproc.ProcessError, multiprocessing.ProcessError):
        with pytest.raises(cls) as caught:
            raise ours("text", 2)
        assert caught.value.args == ("text", 2)
        assert type(caught.value).__name__ == name
    with pytest.raises(theirs):
        raise ours
    for again in (pickle.loads(pickle.dumps(ours("text", 2))), copy.copy(ours("text", 2))):
        assert isinstance(again, ours)
        assert again.args == ("text", 2)
    assert pickle.dumps(ours(1)).count(b"polyproc.context") == 1


def test_exceptions_without_the_standard_library():
    ran = python("-c", "import polyproc, sys; e = polyproc.TimeoutError(1); print(type(e).__mro__, 'multiprocessing' in sys.modules)")
    assert "multiprocessing.context" not in ran.stdout
    assert ran.stdout.endswith("False\n")


def test_subclass_of_an_exception_keeps_its_bases():
    class Mine(polyproc.TimeoutError):
        pass

    assert type(Mine()) is Mine


def test_worker_lost():
    lost = polyproc.WorkerLost(pid=7, exitcode=-11, task="f(1)")
    assert (lost.pid, lost.exitcode, lost.signal, lost.task) == (7, -11, 11, "f(1)")
    assert str(lost) == "worker 7 died of SIGSEGV while it ran f(1)"
    assert polyproc.WorkerLost(pid=7, exitcode=3).signal is None
    assert str(polyproc.WorkerLost(pid=7, exitcode=3)) == "worker 7 died with exit code 3 while it ran a task"
    assert "unknown" in str(polyproc.WorkerLost(pid=7))
    assert str(polyproc.WorkerLost("words", 7)) == "words"
    again = pickle.loads(pickle.dumps(lost))
    assert (again.pid, again.exitcode, again.signal, again.task, str(again)) == (7, -11, 11, "f(1)", str(lost))
    assert isinstance(lost, polyproc.ProcessError)
    assert isinstance(lost, multiprocessing.ProcessError)


def test_start_error():
    failed = polyproc.StartError(11, "no more")
    assert isinstance(failed, OSError)
    assert failed.errno == 11
    assert pickle.loads(pickle.dumps(failed)).errno == 11


# ---- util: the standard library's and ours


@pytest.fixture(params=["multiprocessing.util", "polyproc.util"])
def any_util(request):
    __import__(request.param)
    return sys.modules[request.param]


class Thing:
    pass


def test_finalize(any_util):
    calls = []
    thing = Thing()
    finalizer = any_util.Finalize(thing, calls.append, args=(1,))
    assert finalizer.still_active()
    assert "callback=append, args=(1,)" in repr(finalizer)
    del thing
    gc.collect()
    assert calls == [1]
    assert not finalizer.still_active()
    assert "dead" in repr(finalizer)
    assert finalizer() is None
    assert calls == [1]


def test_finalize_by_hand(any_util):
    finalizer = any_util.Finalize(None, lambda *args, **kwargs: (args, kwargs), args=[1], kwargs={"b": 2}, exitpriority=3)
    assert any_util is not util or "exitpriority=3" in repr(finalizer)
    assert finalizer() == ((1,), {"b": 2})
    cancelled = any_util.Finalize(None, pytest.fail, exitpriority=3)
    cancelled.cancel()
    assert not cancelled.still_active()
    assert cancelled() is None
    with pytest.raises(ValueError):
        any_util.Finalize(None, print)
    with pytest.raises(TypeError):
        any_util.Finalize(None, print, exitpriority="1")


def test_finalizers_run_by_priority(any_util):
    calls = []
    thing = Thing()
    mine = [
        any_util.Finalize(thing, calls.append, args=((priority, number),), exitpriority=priority)
        for number, priority in enumerate([1001, 1000, 1002, 1001, 999, None])
    ]
    any_util._run_finalizers(1000)
    assert calls == [(1002, 2), (1001, 3), (1001, 0), (1000, 1)]
    assert [finalizer.still_active() for finalizer in mine] == [False] * 4 + [True] * 2
    for finalizer in mine:
        finalizer.cancel()


def test_finalizer_that_fails_does_not_stop_the_others(capfd):
    calls = []
    util.Finalize(None, calls.append, args=(1,), exitpriority=1000)
    util.Finalize(None, lambda: 1 / 0, exitpriority=1001)
    util._run_finalizers(1000)
    assert calls == [1]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_register_after_fork(any_util):
    calls = []
    thing, gone = Thing(), Thing()
    any_util.register_after_fork(thing, lambda obj: calls.append(id(obj)))
    any_util.register_after_fork(gone, lambda obj: calls.append("gone"))
    del gone
    gc.collect()
    any_util._run_after_forkers()
    assert calls == [id(thing)]
    held = weakref.ref(thing)
    del thing
    gc.collect()
    assert held() is None


def test_fork_aware(any_util):
    lock = any_util.ForkAwareThreadLock()
    lock.acquire()
    any_util._run_after_forkers()
    with lock:
        pass
    local = any_util.ForkAwareLocal()
    local.x = 1
    any_util._run_after_forkers()
    assert not hasattr(local, "x")
    assert type(pickle.loads(pickle.dumps(local))) is any_util.ForkAwareLocal


def test_temp_dir():
    source = (
        "import polyproc.util as u, os; d = u.get_temp_dir(); print(d, os.path.isdir(d), d == u.get_temp_dir(), u.is_exiting())"
    )
    path, *rest = python("-c", source).stdout.split()
    assert rest == ["True", "True", "False"]
    assert not os.path.exists(path)


def test_close_all_fds_except():
    source = (
        "import os, polyproc.util as u\n"
        "a, b = os.pipe()\n"
        "u.close_all_fds_except([0, 1, 2, b])\n"
        "os.fstat(b)\n"
        "try: os.fstat(a)\n"
        "except OSError: print('closed')\n"
    )
    assert python("-c", source).stdout == "closed\n"


def test_abstract_sockets(any_util):
    assert any_util.abstract_sockets_supported
    for address, abstract in {"\0x": True, b"\0x": True, "/x": False, b"/x": False, "": False}.items():
        assert any_util.is_abstract_socket_namespace(address) is abstract
    with pytest.raises(TypeError):
        any_util.is_abstract_socket_namespace(3)


# ---- names that others import


@pytest.mark.parametrize("package", ["multiprocessing", "polyproc"])
def test_private_names(package):
    """joblib, loky, and the standard library's managers on top of this package, import or use these."""
    for module, name in (("queues", "_sentinel"), ("synchronize", "SemLock._rand"), ("util", "spawnv_passfds"), ("context", "reduction")):
        value = importlib.import_module(f"{package}.{module}")
        for part in name.split("."):
            value = getattr(value, part)
    assert importlib.import_module(f"{package}.context").reduction is importlib.import_module(f"{package}.reduction")
    rand = importlib.import_module(f"{package}.synchronize").SemLock._rand
    words = [next(rand) for _ in range(4)]
    assert len(set(words)) == 4
    assert all(word.replace("_", "").isalnum() for word in words)


def test_spawnv_passfds(any_util):
    """The program has the descriptors that are passed, under their numbers, and no others."""
    r, w = os.pipe()
    kept, mine = os.dup(w), os.dup(w)
    os.set_inheritable(mine, True)
    source = "import os, sys; os.write(int(sys.argv[1]), repr(sorted(map(int, os.listdir('/proc/self/fd')))).encode())"
    try:
        pid = any_util.spawnv_passfds(os.fsencode(sys.executable), [sys.executable, "-c", source, str(kept)], [kept])
        assert os.waitpid(pid, 0) == (pid, 0)
        numbers = eval(os.read(r, 1000))
        assert kept in numbers
        assert not {r, w, mine} & set(numbers)
        assert not os.get_inheritable(kept)
    finally:
        for fd in (r, w, kept, mine):
            os.close(fd)
    if any_util is not util:
        return  # the standard library's function does not tell
    with pytest.raises(OSError):
        os.waitpid(any_util.spawnv_passfds(b"/nonexistent", [b"x"], []), 0)


PRIVILEGED = """
import sys

sys.path.insert(0, sys.argv[1])
import polyproc
from polyproc import _lib


def square(x):
    return x * x


def child(queue):
    queue.put(_lib.privileged())


if __name__ == "__main__":
    if not _lib.privileged():
        sys.exit(77)
    for method in ("fork", "spawn", "forkserver"):
        ctx = polyproc.get_context(method)
        queue = ctx.Queue()
        process = ctx.Process(target=child, args=(queue,))
        process.start()
        assert queue.get(timeout=30) is True
        process.join()
        with ctx.Pool(2) as pool:
            assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setcap") is None, reason="only root gives capabilities to a file")
def test_an_interpreter_with_file_capabilities():
    """Its workers believe their command line, as the library under it believes no environment."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        interpreter, program = os.path.join(directory, "python"), os.path.join(directory, "program.py")
        shutil.copy(os.path.realpath(sys.executable), interpreter)
        subprocess.run(["setcap", "cap_dac_read_search+ep", interpreter], check=True)
        with open(program, "w") as f:
            f.write(PRIVILEGED)
        source = os.path.dirname(os.path.dirname(os.path.abspath(polyproc.__file__)))
        run = subprocess.run(
            [interpreter, program, source], user=65534, group=65534, extra_groups=[], timeout=120, stderr=subprocess.PIPE,
            env={"PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}", "PATH": os.environ["PATH"]}, cwd="/",
        )  # fmt: skip
        if run.returncode == 77:
            pytest.skip("no capabilities from files on this file system")
        assert run.returncode == 0, run.stderr


ENVIRONMENT = """
import sys

sys.path.insert(0, sys.argv[1])
sys.frozen = True  # as in a program of PyInstaller's
from polyproc import _lib, freeze_support

try:
    print(_lib.privileged(), _lib.path())
except ImportError as e:
    print(_lib.privileged(), "missing" if "is missing" in str(e) else e)
sys.argv[1:] = ["--multiprocessing-fork"]
freeze_support()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a set-uid copy that gives rights")
@pytest.mark.parametrize("mode", [0o755, 0o4755])
@pytest.mark.parametrize("variable", ["POLYPROC_WORKER", "POLYPROC_PROCESS"])
def test_a_set_uid_interpreter_believes_no_environment(mode, variable):
    """Neither which library to load, nor, frozen, that it is a child process which is told what to run."""
    with tempfile.TemporaryDirectory() as directory:
        if os.statvfs(directory).f_flag & os.ST_NOSUID:
            pytest.skip("no set-uid programs on this file system")
        os.chmod(directory, 0o755)
        interpreter, named = os.path.join(directory, "python"), os.path.join(directory, "named.so")
        shutil.copy(os.path.realpath(sys.executable), interpreter)
        os.chmod(interpreter, mode)
        with open(named, "w"):
            pass
        # Without the library.
        shutil.copytree(os.path.dirname(polyproc.__file__), os.path.join(directory, "polyproc"), ignore=shutil.ignore_patterns("*.so"))
        secure = mode & 0o4000
        user = {"user": 65534, "group": 65534, "extra_groups": []} if secure else {}
        run = subprocess.run(
            [interpreter, "-c", ENVIRONMENT, directory], capture_output=True, text=True, timeout=120, cwd="/", **user,
            env={
                "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}", "PATH": os.environ["PATH"],
                "POLYPROC_LIBRARY": named, variable: "3",
            },
        )  # fmt: skip
        if secure:
            assert run.stdout.split() == ["True", "missing"], run.stderr
            assert "can be no child of itself" in run.stderr
        else:
            assert run.stdout.split() == ["False", named], run.stderr
            assert "can be no child of itself" not in run.stderr
        assert run.returncode != 0
