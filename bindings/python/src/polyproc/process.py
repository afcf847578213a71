"""Process objects: a child process as an object like threading.Thread. Mirrors multiprocessing/process.py.

Differences from the standard library:

* ``sentinel`` is a pidfd where the system has them: it becomes readable when that process ends, whatever its own children do;
* functions registered with atexit in a child run at its end under every start method and Python version (the standard library does
  so since 3.13);
* an exit status that the program itself has collected (``os.waitpid(-1)``, SIGCHLD ignored) is reported as exitcode 255, as
  asyncio does, and not as a process that never ends.

Only what every process needs is imported here: a child reads this module before it runs anything.
"""

from __future__ import annotations

import _thread
import itertools
import os
import sys

from . import _stdlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _weakrefset import WeakSet
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType
    from typing import Any, Protocol

    class Popen(Protocol):
        """A started process, by whatever method."""

        pid: int
        sentinel: int

        def poll(self) -> int | None: ...

        def wait(self, timeout: float | None = None) -> int | None: ...

        def terminate(self) -> None: ...

        def kill(self) -> None: ...

        def close(self) -> None: ...


__all__ = ["BaseProcess", "current_process", "active_children", "parent_process"]

try:
    ORIGINAL_DIR: str | None = os.path.abspath(os.getcwd())
except OSError:
    ORIGINAL_DIR = None


def current_process() -> BaseProcess:
    """The process object of this process."""
    return _current_process


def parent_process() -> BaseProcess | None:
    """The process object of the process that started this one; None in the main process."""
    return _parent_process


def active_children() -> list[BaseProcess]:
    """The children that live; those that have ended are collected."""
    _cleanup()
    return [*_children, *(child for more in _more_children for child in more())]


# Functions that return further children: the workers of pools, which the engine collects.
_more_children: list[Callable[[], list[BaseProcess]]] = []


def _cleanup() -> None:
    for child in list(_children):
        popen = child._popen
        if popen is not None and popen.poll() is not None:
            _children.discard(child)


# What a spawned child was told of its family (pp_family), for when the library is loaded.
_family: str | None = None

# In a child: the key of the standard library's current_process() in the process that started this one, if that process had one.
_stdlib_authkey: bytes | None = None


def _loaded(name: str) -> Any:
    """The module of this package if it is in use, else None: what nobody has used needs no attention."""
    return sys.modules.get(f"{__package__}.{name}")


def new_poll() -> Any:
    """select.poll(); where eventlet has taken that away, the same by its select(), which lets its other threads run."""
    import select

    return select.poll() if hasattr(select, "poll") else _Select()


class _Select:
    """What select.poll() is, by select()."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}

    def register(self, fd: Any, events: int) -> None:
        self._events[fd if isinstance(fd, int) else fd.fileno()] = events

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        import select

        writers = [fd for fd, events in self._events.items() if events & select.POLLOUT]
        readers = [fd for fd in self._events if fd not in writers]
        seconds = None if milliseconds is None else milliseconds / 1000
        readable, writable, _ = select.select(readers, writers, [], seconds)
        return [(fd, select.POLLIN) for fd in readable] + [(fd, select.POLLOUT) for fd in writable]


def wait_readable(fd: int, timeout: float | None) -> bool:
    """Wait until ``fd`` can be read, at most ``timeout`` seconds (None: for ever). Signal handlers run meanwhile."""
    import time

    poll = new_poll()
    poll.register(fd, 1)  # POLLIN
    if timeout is None:
        while not poll.poll():
            pass
        return True
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        # poll(2) takes an int of milliseconds: round up so as not to spin, and cut long waits into days.
        if poll.poll(min(max(-int(-left * 1000 // 1), 0), 86_400_000)):
            return True
        if time.monotonic() >= deadline:
            return False


def signal_name(number: int) -> str:
    """"SIGKILL" for 9; "signal 99" for what has no name."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# The objects whose start() runs, by id, each with a lock that the starting thread holds. The child runs, and may tell of it, before
# start() has set _popen. Other threads must not take the process for one that was never started.
_starting: dict[int, _thread.RLock] = {}

# What waits for a child without a limit of time, once there are pipes: it notes that this thread does, see _deserted.py.
_join: Callable[[Any], int | None] | None = None


class BaseProcess:
    """A process that runs ``target(*args, **kwargs)``, or what a subclass defines as :meth:`run`.

    Args:
        group: None; there for the sake of threading.Thread.
        target: what to call in the child.
        name: default "Process-N", "Process-N:M" for children of children.
        args, kwargs: arguments of target.
        daemon: True: it is terminated when this process ends, and may not have children. None: as this process.
    """

    _start_method: str | None = None

    if TYPE_CHECKING:
        _popen: Popen | None
        _sentinel: int
        _inheriting: bool

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        raise NotImplementedError

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
    ) -> None:
        assert group is None, "group argument must be None for now"
        self._identity: tuple[int, ...] = (*_current_process._identity, next(_process_counter))
        self._config: dict[str, Any] = dict(_current_process._config)
        self._parent_pid: int | None = os.getpid()
        self._parent_name = _current_process.name
        self._popen = None
        self._closed = False
        self._target = target
        self._args = tuple(args)
        self._kwargs = dict(kwargs)
        self._name = name or type(self).__name__ + "-" + ":".join(map(str, self._identity))
        if daemon is not None:
            self.daemon = daemon
        _known().add(self)

    def _check_closed(self) -> None:
        if self._closed:
            raise ValueError("process object is closed")

    def run(self) -> None:
        """What the child does; a subclass may define its own."""
        if self._target:
            self._target(*self._args, **self._kwargs)

    def start(self) -> None:
        """Start the child process.

        Raises:
            ValueError: the object is closed.
            AssertionError: started before, or created by another process, or this process is a daemon.
            OSError: the process could not be started.
        """
        self._check_closed()
        assert self._popen is None, "cannot start a process twice"
        assert self._parent_pid == os.getpid(), "can only start a process object created by current process"
        assert not _current_process._config.get("daemon"), "daemonic processes are not allowed to have children"
        from . import util  # noqa: F401  at this process's end it terminates daemons and waits for the others

        _cleanup()
        lock = _thread.RLock()
        with lock:
            first = _starting.setdefault(id(self), lock)
            assert first is lock, "cannot start a process twice"
            try:
                self._popen = self._Popen(self)
            finally:
                _starting.pop(id(self), None)
        self._sentinel = self._popen.sentinel
        # The arguments may refer to this object, which would keep both alive as long as this one is kept.
        del self._target, self._args, self._kwargs
        _children.add(self)

    def terminate(self) -> None:
        """Send SIGTERM to the child."""
        self._check_closed()
        self._popen.terminate()  # type: ignore[union-attr]

    def kill(self) -> None:
        """Send SIGKILL to the child."""
        self._check_closed()
        self._popen.kill()  # type: ignore[union-attr]

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the child, at most ``timeout`` seconds: look at exitcode to see whether it came."""
        self._check_closed()
        assert self._parent_pid == os.getpid(), "can only join a child process"
        lock = None if self._popen is not None else _starting.get(id(self))
        if lock is not None:
            import time

            begin = time.monotonic()
            if not lock.acquire(timeout=-1 if timeout is None else min(max(timeout, 0), _thread.TIMEOUT_MAX)):
                return
            lock.release()
            timeout = None if timeout is None else timeout - (time.monotonic() - begin)
        popen = self._popen
        assert popen is not None, "can only join a started process"
        if (popen.wait(timeout) if timeout is not None or _join is None else _join(popen)) is not None:
            _children.discard(self)

    def is_alive(self) -> bool:
        """Whether the process runs. A process that another thread is starting counts as running."""
        self._check_closed()
        if self is _current_process:
            return True
        assert self._parent_pid == os.getpid(), "can only test a child process"
        starting = id(self) in _starting  # asked first: a start that ends in between has set _popen
        if self._popen is None:
            return starting
        if self._popen.poll() is None:
            return True
        _children.discard(self)
        return False

    def close(self) -> None:
        """Give back what the object holds; afterwards it can only be printed.

        Raises:
            ValueError: the child still runs.
        """
        starting = id(self) in _starting
        if self._popen is not None or starting:
            if self._popen is None or self._popen.poll() is None:
                raise ValueError(
                    "Cannot close a process while it is still running. You should first call join() or terminate()."
                )
            self._popen.close()
            self._popen = None
            self.__dict__.pop("_sentinel", None)
            _children.discard(self)
        self._closed = True

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        assert isinstance(name, str), "name must be a string"
        self._name = name

    @property
    def daemon(self) -> bool:
        """Whether the process ends with its parent."""
        daemonic: bool = self._config.get("daemon", False)
        return daemonic

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:
        assert self._popen is None, "process has already started"
        self._config["daemon"] = daemonic

    @property
    def authkey(self) -> AuthenticationString:
        """The key by which the processes of a family know each other."""
        key: AuthenticationString = self._config["authkey"]
        return key

    @authkey.setter
    def authkey(self, authkey: bytes) -> None:
        self._config["authkey"] = AuthenticationString(authkey)

    @property
    def exitcode(self) -> int | None:
        """None before the end; then the exit code 0..255, or minus the number of the signal that ended the process."""
        self._check_closed()
        return None if self._popen is None else self._popen.poll()

    @property
    def ident(self) -> int | None:
        """The process id; None before the start."""
        self._check_closed()
        if self is _current_process:
            return os.getpid()
        return None if self._popen is None else self._popen.pid

    pid = ident

    @property
    def sentinel(self) -> int:
        """A descriptor that select and poll find readable once the process has ended. It is the object's, for waiting only.

        Raises:
            ValueError: not started yet, or closed.
        """
        self._check_closed()
        try:
            return self._sentinel
        except AttributeError:
            if self._popen is None:
                raise ValueError("process not started") from None
            return self._popen.sentinel

    def __repr__(self) -> str:
        exitcode = None
        if self is _current_process:
            status = "started"
        elif self._closed:
            status = "closed"
        elif self._parent_pid != os.getpid():
            status = "unknown"
        elif self._popen is None:
            status = "initial"
        else:
            exitcode = self._popen.poll()
            status = "started" if exitcode is None else "stopped"
        words = [type(self).__name__, f"name={self._name!r}"]
        if self._popen is not None:
            words.append(f"pid={self._popen.pid}")
        words += [f"parent={self._parent_pid}", status]
        if exitcode is not None:
            words.append("exitcode=" + (f"-{signal_name(-exitcode)}" if exitcode < 0 else str(exitcode)))
        if self.daemon:
            words.append("daemon")
        return f"<{' '.join(words)}>"

    # ---- in the child

    def _enter(self, parent_sentinel: int | None = None) -> None:
        """Make this object the one of the running process: it has just been started, and has no children."""
        global _current_process, _parent_process, _process_counter, _children, _stdlib_authkey
        _stdlib_authkey = stdlib_authkey()
        _process_counter = itertools.count(1)
        _children = set()
        _starting.clear()
        _current_process = self
        _parent_process = _ParentProcess(self._parent_name, self._parent_pid, parent_sentinel)
        _stdlib.attend(_INTRODUCTIONS)

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        """Run the child. Returns its exit code."""
        try:
            if self._start_method is not None:
                # Not by an import statement: in a forked child every page that it looks at is copied.
                _loaded("context")._force_start_method(self._start_method)
            _close_stdin()
            before = _current_process
            self._enter(parent_sentinel)
            threading = sys.modules.get("threading")
            if threading is not None:
                set_native_id = getattr(threading.main_thread(), "_set_native_id", None)
                if set_native_id is not None:
                    set_native_id()
            try:
                self._after_fork()
            finally:
                # Finalizers that hang on the object before this one must find the registry emptied.
                del before
            _log("child process calling self.run()")
            self.run()
            code = 0
        except SystemExit as e:
            if e.code is None:
                code = 0
            elif isinstance(e.code, int):
                code = e.code
            else:
                sys.stderr.write(f"{e.code}\n")
                code = 1
        except BaseException:
            code = 1
            import traceback

            sys.stderr.write(f"Process {self.name}:\n")
            traceback.print_exc()
        finally:
            threading = sys.modules.get("threading")
            if threading is not None:
                threading._shutdown()  # waits for the threads that are no daemons
            _log("process exiting with exitcode %d", code)
            _flush_std_streams()
        return code

    @staticmethod
    def _after_fork() -> None:
        for util in (_loaded("util"), _stdlib.module("util")):
            if util is not None:
                util._finalizer_registry.clear()
                util._run_after_forkers()


def _log(message: str, *args: object) -> None:
    util = _loaded("util")
    if util is not None:
        util.info(message, *args)


def _close_stdin() -> None:
    """Give the child an empty stdin: two processes reading one terminal disturb each other."""
    if sys.stdin is None:
        return
    try:
        sys.stdin.close()
    except (OSError, ValueError):
        pass
    try:
        fd = os.open(os.devnull, os.O_RDONLY)
        try:
            sys.stdin = open(fd, encoding="utf-8", closefd=False)
        except BaseException:
            os.close(fd)
            raise
    except (OSError, ValueError):
        pass


def _flush_std_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            pass


def stdlib_authkey() -> bytes | None:
    """The key by which the standard library's package in this process knows its relatives; None if nobody can know it."""
    theirs = _stdlib.module("process")
    return _stdlib_authkey if theirs is None else bytes(theirs.current_process().authkey)


def adopt_stdlib_authkey(key: bytes | None) -> None:
    """Let the standard library's package in this process have that key, now or when it is imported."""
    global _stdlib_authkey
    _stdlib_authkey = key
    if key is not None:
        name = "multiprocessing.process"
        # An introduction that is still to come will tell the key as well.
        _stdlib.attend({name: _stdlib.awaited(name) or _set_stdlib_authkey})


def _set_stdlib_authkey(theirs: ModuleType) -> None:
    if theirs is not sys.modules[__name__]:
        theirs.current_process().authkey = _stdlib_authkey


def _introduce_to_multiprocessing(theirs: ModuleType) -> None:
    """Tell the standard library's multiprocessing.process which process this is. The set of children is one for both packages."""
    if theirs is not sys.modules[__name__]:
        key = _stdlib_authkey
        view = _current_process if key is None else _StdlibView(_current_process, key)
        theirs._current_process = view  # type: ignore[attr-defined]
        theirs._parent_process = _parent_process  # type: ignore[attr-defined]
        theirs._children = _children  # type: ignore[attr-defined]
        theirs._process_counter = _process_counter  # type: ignore[attr-defined]


class _StdlibView:
    """This process as the standard library's package sees it: the same in everything, but with that package's key.

    Managers, resource sharers and connections of that package know the parent's processes by its own key, which is not ours.
    """

    def __init__(self, process: BaseProcess, key: bytes) -> None:
        from collections import ChainMap

        # What is set in the configuration of one is seen in the other's, but for the key.
        config = ChainMap({"authkey": AuthenticationString(key)}, process._config)
        self.__dict__.update(_process=process, _config=config)

    if not TYPE_CHECKING:
        __class__ = property(lambda self: type(self._process))

    @property
    def authkey(self) -> AuthenticationString:
        key: AuthenticationString = self._config["authkey"]
        return key

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_process"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "authkey":
            self._config["authkey"] = AuthenticationString(value)
        else:
            setattr(self._process, name, value)

    def __repr__(self) -> str:
        return repr(self._process)


def _introduce_to_logging(logging: ModuleType) -> None:
    """Have log records carry this process's name: logging itself asks only the standard library's package for it."""
    create = logging.getLogRecordFactory()
    if getattr(create, "_polyproc", False):
        return

    def factory(*args: Any, **kwargs: Any) -> Any:
        record = create(*args, **kwargs)
        if record.processName == "MainProcess":
            record.processName = _current_process.name
        return record

    factory._polyproc = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)


# Whom a child process tells who it is.
_INTRODUCTIONS = {"multiprocessing.process": _introduce_to_multiprocessing, "logging": _introduce_to_logging}


class AuthenticationString(bytes):
    """A key. It is pickled only for a child that is being started, so that it never crosses a network by accident."""

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        from .context import get_spawning_popen

        theirs = _stdlib.module("context")
        if get_spawning_popen() is None and (theirs is None or theirs.get_spawning_popen() is None):
            raise TypeError("Pickling an AuthenticationString object is disallowed for security reasons")
        return AuthenticationString, (bytes(self),)


class _ParentProcess(BaseProcess):
    """The process that started this one, as far as a child can know it: its end can be awaited.

    ``sentinel`` is a pidfd that the parent handed over, or one that is opened at its first use.
    """

    def __init__(self, name: str, pid: int | None, sentinel: int | None) -> None:
        self._identity = ()
        self._name = name
        self._pid = pid
        self._parent_pid = None
        self._popen = None
        self._closed = False
        self._config = {}
        if sentinel is not None:
            self._sentinel = sentinel

    @property
    def sentinel(self) -> int:
        try:
            return self._sentinel
        except AttributeError:
            pass
        assert self._pid is not None
        fd = None
        if os.getppid() == self._pid:
            try:
                fd = os.pidfd_open(self._pid)
            except OSError:
                if os.getppid() == self._pid:
                    raise
        if fd is not None and os.getppid() != self._pid:
            # It has died meanwhile, and the number may have become another process's.
            os.close(fd)
            fd = None
        if fd is None:
            fd = ended_fd()
        self._sentinel = fd
        return fd

    def is_alive(self) -> bool:
        try:
            return not wait_readable(self.sentinel, 0)
        except (AttributeError, OSError):  # no pidfd on this system
            return os.getppid() == self._pid

    @property
    def ident(self) -> int | None:
        return self._pid

    pid = ident

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the parent, at most ``timeout`` seconds."""
        try:
            wait_readable(self.sentinel, timeout)
        except (AttributeError, OSError):
            import time

            deadline = None if timeout is None else time.monotonic() + timeout
            while os.getppid() == self._pid and (deadline is None or time.monotonic() < deadline):
                time.sleep(0.02)


def _forget_imports() -> None:
    """In a forked child: begin anew the imports that other threads of the parent were in the middle of.

    CPython leaves the child with their locks, so that it waits for ever where it needs such a module, or with half a module. Many
    functions of this package import what they need when they need it; a fork must not depend on what other threads do in it. Modules
    of programs are left alone: to import one of them again may mean to run the program again.
    """
    bootstrap: Any = sys.modules["_frozen_importlib"]
    locks = getattr(bootstrap, "_module_locks", {})
    me = _thread.get_ident()
    for name, reference in list(locks.items()):
        owner = getattr(reference(), "owner", me)
        if owner == me:
            continue
        module = sys.modules.get(name)
        if module is not None:
            spec = getattr(module, "__spec__", None)
            # As sys.path has it, a path may be in any form.
            origin = os.path.abspath(getattr(spec, "origin", None) or "")
            roots = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, os.__file__))
            if not origin.startswith(roots) or "-packages" + os.sep in origin:
                continue
            if getattr(spec, "_initializing", False):
                del sys.modules[name]
        locks.pop(name, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_imports)


def ended_fd() -> int:
    """A descriptor that is readable at once: the sentinel of a process that has ended already."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading


class _MainProcess(BaseProcess):
    """The process that was not started by this package."""

    def __init__(self) -> None:
        self._identity = ()
        self._name = "MainProcess"
        self._parent_pid = None
        self._popen = None
        self._closed = False
        # Descendants inherit all of it.
        self._config = {"authkey": AuthenticationString(os.urandom(32)), "semprefix": "/mp"}

    def close(self) -> None:
        pass


def _known() -> WeakSet[BaseProcess]:
    """Every process object that is referred to from somewhere, for tests that look for leaks: ``_dangling``."""
    global _dangling
    try:
        return _dangling
    except NameError:
        from _weakrefset import WeakSet  # a child without children of its own does without

        _dangling = WeakSet()
        return _dangling


def __getattr__(name: str) -> object:
    if name == "_dangling":
        return _known()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_dangling: WeakSet[BaseProcess]
_current_process: BaseProcess = _MainProcess()
_parent_process: BaseProcess | None = None
_process_counter = itertools.count(1)
_children: set[BaseProcess] = set()
