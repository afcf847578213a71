"""What a fresh interpreter needs to know to continue the parent's program. Mirrors multiprocessing/spawn.py.

Parent:  get_preparation_data() -> pickle -> payload -> ``python -c "... spawn_main()"``
Child:   spawn_main() -> prepare() -> unpickle the process object -> its _bootstrap()

Differences from the standard library: the child finds this package where the parent has it, also if the parent's ``sys.path`` was changed
by hand; the main module is executed in the namespace that it keeps (runpy's copy would leave functions with globals of their own);
all ``-X`` options are handed on; until the child has the parent's ``sys.path``, it imports no module from the working directory.
"""

from __future__ import annotations

import os
import sys

from . import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, NoReturn

__all__ = [
    "command",
    "freeze_support",
    "get_command_line",
    "get_executable",
    "get_preparation_data",
    "import_main_path",
    "prepare",
    "set_executable",
    "spawn_main",
]

# The environment variable of a child with a payload: "payload descriptor,pid of the parent,flags".
_VARIABLE = "POLYPROC_PROCESS"

_executable: str | None = sys.executable


def set_executable(exe: str | bytes | os.PathLike[str] | None) -> None:
    """Set the interpreter that spawned processes run."""
    global _executable
    _executable = None if exe is None else os.fsdecode(exe)


def get_executable() -> str | None:
    """The interpreter that spawned processes run."""
    return _executable


def is_forking(argv: list[str]) -> bool:
    """Whether this command line is that of a child process of a frozen program."""
    return len(argv) >= 2 and argv[1] == "--multiprocessing-fork"


def freeze_support() -> None:
    """In a child process of a frozen program: run it and exit. It does so for children of the standard library's package too."""
    if _is_ours():
        spawn_main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[2:])})
    theirs: Any = sys.modules.get("multiprocessing")
    if theirs is None and is_forking(sys.argv):
        theirs = __import__("multiprocessing")
    if theirs is not None and theirs is not sys.modules[__package__ or ""]:
        theirs.freeze_support()


def _is_ours() -> bool:
    """Whether this is a frozen program that was executed as a child process of this package and has not become it yet."""
    return is_forking(sys.argv) and any(name in os.environ for name in (_VARIABLE, "POLYPROC_WORKER"))


def stand_in_for_stdlib() -> None:
    """In a child of a frozen program: let ``multiprocessing.freeze_support()`` do what this package's does.

    PyInstaller gives that function its own form, which looks for the same word on the command line.
    """
    if _is_ours():
        from ._stdlib import attend

        attend({"multiprocessing.spawn": _stand_in})


def _stand_in(theirs: ModuleType) -> None:
    theirs.spawn_main = spawn_main  # type: ignore[attr-defined]


def command(**role: int) -> list[str]:
    """The command line of a fresh interpreter, with the flags of this one, that calls ``spawn_main(**role)``.

    A frozen program is its own interpreter: it is executed again, and comes to spawn_main() by freeze_support().

    Raises:
        ValueError: there is no interpreter to run: see set_executable.
    """
    words = [f"{name}={value}" for name, value in role.items()]
    if getattr(sys, "frozen", False):
        return [sys.executable, "--multiprocessing-fork", *words]
    from .util import _args_from_interpreter_flags

    exe = get_executable()
    if not exe:
        raise ValueError("sys.executable is not set: name the interpreter with set_executable()")
    package = __package__ or "polyproc"
    directory = os.path.abspath(__file__)
    for _ in range(package.count(".") + 2):
        directory = os.path.dirname(directory)
    # The working directory, which is '' in sys.path here, may be anybody's: no module is imported from it. The package's directory
    # is the first one for the package itself only, which imports nothing else from the path.
    start = (
        "import sys; sys.path[:] = [entry for entry in sys.path if entry]; import __future__; "
        f"sys.path.insert(0, {directory!a}); import {package}; del sys.path[0]; "
        f"import {package}.spawn; {package}.spawn.spawn_main({', '.join(words)})"
    )
    flags = _args_from_interpreter_flags()
    # From Python 3.13 on, -c itself imports a module, linecache, before it executes anything.
    if sys.version_info >= (3, 11) and not ({"-P", "-I"} & set(flags)):
        flags.append("-P")
    return [exe, *flags, "-c", start]


def get_command_line(**_kwds: object) -> list[str]:
    """The command line of a child process."""
    line = command()
    return line if getattr(sys, "frozen", False) else [*line, "--multiprocessing-fork"]


def spawn_main(*, worker: int | None = None, forkserver: int | None = None, **_kwds: object) -> NoReturn:
    """Be what this interpreter was started for, and exit.

    Args:
        worker: not None: a worker of a pool.
        forkserver: the descriptor of the socket of a fork server.
        Neither: a child process.

    Raises:
        SystemExit: also in a frozen program that has more rights than its caller, who could have any code run there.
    """
    if getattr(sys, "frozen", False):
        from ._lib import privileged

        if privileged():
            sys.exit("polyproc: a set-uid program, or one with file capabilities, can be no child of itself")
    if worker is not None:
        from ._worker import main

        main()
        sys.exit()
    if forkserver is not None:
        from .forkserver import main as serve

        serve(forkserver)
        sys.exit()
    sys.exit(run_payload(take_payload()) & 0xFF)


def take_payload() -> int:
    """The descriptor of what the parent gave to this process. It can be taken once."""
    try:
        # Not for our own children: they would take themselves for this one.
        fd = int(os.environ.pop(_VARIABLE).split(",")[0])
    except (KeyError, ValueError):
        sys.exit(f"{__name__}: this command line is for child processes only")
    os.lseek(fd, 0, os.SEEK_SET)
    process._family = os.environ.pop("POLYPROC_FAMILY", None)
    if process._family:
        for number in process._family.split(",")[:2]:
            os.set_inheritable(int(number), False)
    return fd


def run_payload(fd: int) -> int:
    """Be the child that a payload describes: prepare as its first pickle says, and run the process object that is the second.

    Returns:
        the exit code.
    """
    this = process.current_process()
    with open(fd, "rb") as payload:
        this._inheriting = True
        try:
            data = _load(payload)
            sentinel = data.get("parent_fd")
            if sentinel is not None:
                sentinel = sentinel.detach()
                os.set_inheritable(sentinel, False)
            if data.get("daemon"):
                watch(data["parent_pid"], sentinel)
            prepare(data)
            child: process.BaseProcess = _load(payload)
        finally:
            del this._inheriting
    return child._bootstrap(sentinel)


def _load(file: Any) -> Any:
    try:
        from _pickle import load
    except ImportError:
        from pickle import load
    return load(file)


def watch(pid: int, sentinel: int | None) -> None:
    """Die with the process that started this one, however it ends. ``sentinel`` is its pidfd."""
    from ._errors import check
    from ._lib import lib

    check(lib().pp_watch_process(pid))
    # The number may have been another's already.
    if sentinel is not None and process.wait_readable(sentinel, 0):
        os._exit(1)


class Inherited:
    """A descriptor in a spawned child: it has the number that it has in the parent."""

    # Here, not beside the class that starts processes: a child would have to import all that this needs.

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        return self.fd


def _check_not_importing_main() -> None:
    if _is_ours():
        raise RuntimeError(
            "this frozen program was executed as a child process, and starts one before it has called freeze_support(): "
            "call that first in the main module, behind if __name__ == '__main__'"
        )
    if getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(
            """
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.

        This probably means that the main module starts processes when it
        is imported: a child process imports it too. Start them only in

            if __name__ == '__main__':
                freeze_support()
                ...

        freeze_support() is needed only in a program that is frozen into
        an executable. See "Safe importing of main module" in
        https://docs.python.org/3/library/multiprocessing.html
        """
        )


def get_preparation_data(name: str) -> dict[str, Any]:
    """What :func:`prepare` needs in a child of that name: picklable, but only while a process is being started (authkey).

    Raises:
        RuntimeError: this process is itself a child that is still importing its main module.
    """
    from .context import _default_context

    _check_not_importing_main()
    theirs = process.stdlib_authkey()
    data: dict[str, Any] = {
        "name": name,
        "authkey": process.current_process().authkey,
        "stdlib_authkey": None if theirs is None else process.AuthenticationString(theirs),
        "sys_path": [process.ORIGINAL_DIR if entry == "" else entry for entry in sys.path],
        "sys_argv": sys.argv,
        "orig_dir": process.ORIGINAL_DIR,
        "dir": os.getcwd(),
        "start_method": _default_context.get_start_method(),
    }
    util = process._loaded("util")
    if util is not None and util._logger is not None:
        data["log_to_stderr"] = util._log_to_stderr
        data["log_level"] = util._logger.getEffectiveLevel()
    main = sys.modules["__main__"]
    spec_name = getattr(main.__spec__, "name", None)
    path: str | None = getattr(main, "__file__", None)
    if getattr(sys, "frozen", False):
        pass  # the child executes the program's main module by itself, up to freeze_support()
    elif spec_name is not None:
        data["init_main_from_name"] = spec_name
    elif path is not None and path != "<stdin>":
        if process.ORIGINAL_DIR is not None:
            path = os.path.join(process.ORIGINAL_DIR, path)
        data["init_main_from_path"] = os.path.normpath(path)
    return data


# The main modules that others took the place of: kept, as their functions may still be in use.
old_main_modules: list[ModuleType] = []


def prepare(data: dict[str, Any]) -> None:
    """Make this process like the one that ``data`` comes from: names, paths, working directory, start method, main module."""
    this = process.current_process()
    if "name" in data:
        this.name = data["name"]
    if "authkey" in data:
        this.authkey = data["authkey"]
    if "stdlib_authkey" in data:
        process.adopt_stdlib_authkey(data["stdlib_authkey"])
    if data.get("log_to_stderr"):
        from .util import log_to_stderr

        log_to_stderr()
    if "log_level" in data:
        from .util import get_logger

        get_logger().setLevel(data["log_level"])
    if "sys_path" in data:
        sys.path = data["sys_path"]
    if "sys_argv" in data:
        sys.argv = data["sys_argv"]
    if "dir" in data:
        os.chdir(data["dir"])
    if "orig_dir" in data:
        process.ORIGINAL_DIR = data["orig_dir"]
    if "start_method" in data:
        from .context import _default_context

        _default_context.set_start_method(data["start_method"], force=True)
    if "init_main_from_name" in data:
        _import_main_module(data["init_main_from_name"])
    elif "init_main_from_path" in data:
        import_main_path(data["init_main_from_path"])


def _import_main_module(name: str) -> None:
    """The program was started by ``python -m name``, or is a directory or an archive with a __main__.py."""
    main = sys.modules["__main__"]
    # A __main__.py does its work unconditionally: what it defines cannot be had without doing it again.
    if name == "__main__" or name.endswith(".__main__") or getattr(main.__spec__, "name", None) == name:
        return
    import runpy

    old_main_modules.append(main)
    module = type(sys)("__mp_main__")
    module.__dict__.update(runpy.run_module(name, run_name="__mp_main__", alter_sys=True))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def import_main_path(main_path: str) -> None:
    """Execute the script ``main_path`` under the name ``__mp_main__``, and let it be the ``__main__`` of this process too."""
    main = sys.modules["__main__"]
    # IPython's start script has not always had the guard.
    if os.path.splitext(os.path.basename(main_path))[0] == "ipython" or getattr(main, "__file__", None) == main_path:
        return
    module = type(sys)("__mp_main__")
    code = _compile_script(main_path)
    old_main_modules.append(main)
    if code is None:
        import runpy

        module.__dict__.update(runpy.run_path(main_path, run_name="__mp_main__"))
    else:
        module.__dict__.update(__file__=main_path, __cached__=None, __package__="")
        arguments = sys.argv
        sys.modules["__mp_main__"] = module
        sys.argv = [main_path, *arguments[1:]]
        try:
            exec(code, module.__dict__)
        except BaseException:
            sys.modules.pop("__mp_main__", None)
            raise
        finally:
            sys.argv = arguments
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _compile_script(path: str) -> Any:
    """The code of a source file; None for what is left to runpy: directories, archives, compiled files."""
    import io

    try:
        with io.open_code(path) as file:
            source = file.read()
    except IsADirectoryError:
        return None
    # No source has a zero byte; archives and compiled files have many.
    return None if b"\0" in source else compile(source, path, "exec", dont_inherit=True)
