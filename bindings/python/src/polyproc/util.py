"""Logging, finalizers, and the work at a process's end. Mirrors multiprocessing/util.py."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import weakref

from . import _stdlib, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from logging import Logger
    from typing import Any

__all__ = [
    "Finalize",
    "ForkAwareLocal",
    "ForkAwareThreadLock",
    "SUBDEBUG",
    "SUBWARNING",
    "close_all_fds_except",
    "debug",
    "get_logger",
    "get_temp_dir",
    "info",
    "is_exiting",
    "log_to_stderr",
    "register_after_fork",
    "sub_debug",
    "sub_warning",
]

# ---- logging

NOTSET = 0
SUBDEBUG = 5
DEBUG = 10
INFO = 20
SUBWARNING = 25

LOGGER_NAME = "polyproc"
DEFAULT_LOGGING_FORMAT = "[%(levelname)s/%(processName)s] %(message)s"

_logger: Logger | None = None
_log_to_stderr = False


# Each of them works, and does nothing, when the interpreter has cleared this module: finalizers call them.


def sub_debug(msg: str, *args: object) -> None:
    if _logger is not None:
        _logger.log(SUBDEBUG, msg, *args, stacklevel=2)


def debug(msg: str, *args: object) -> None:
    if _logger is not None:
        _logger.log(DEBUG, msg, *args, stacklevel=2)


def info(msg: str, *args: object) -> None:
    if _logger is not None:
        _logger.log(INFO, msg, *args, stacklevel=2)


def sub_warning(msg: str, *args: object) -> None:
    if _logger is not None:
        _logger.log(SUBWARNING, msg, *args, stacklevel=2)


def get_logger() -> Logger:
    """The package's logger. Nothing is logged before it is asked for."""
    global _logger
    if _logger is None:
        import logging

        logger = logging.getLogger(LOGGER_NAME)
        logger.propagate = False
        # logging shuts down at exit, and what was registered later runs earlier: ours must come before.
        atexit.unregister(_exit_function)
        atexit.register(_exit_function)
        _logger = logger
    return _logger


def log_to_stderr(level: int | str | None = None) -> Logger:
    """Have the package's log written to stderr, from ``level`` on (None: the level stays)."""
    global _log_to_stderr
    import logging

    logger = get_logger()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(DEFAULT_LOGGING_FORMAT))
    logger.addHandler(handler)
    if level:
        logger.setLevel(level)
    _log_to_stderr = True
    return logger


# ---- temporary directory


def _remove_temp_dir(rmtree: Callable[[str], None], path: str) -> None:
    rmtree(path)
    current = process.current_process()
    if current is not None:  # late in the interpreter's end the module may be gone
        current._config["tempdir"] = None


def get_temp_dir() -> str:
    """A directory of this process's that is removed at its end."""
    config = process.current_process()._config
    path: str | None = config.get("tempdir")
    if path is None:
        import shutil
        import tempfile

        path = tempfile.mkdtemp(prefix="polyproc-")
        info("created temp directory %s", path)
        Finalize(None, _remove_temp_dir, args=(shutil.rmtree, path), exitpriority=-100)
        config["tempdir"] = path
    return path


# ---- after a fork

_afterfork_registry: weakref.WeakValueDictionary[tuple[int, int, Callable[[Any], object]], Any] = weakref.WeakValueDictionary()
_after_fork_count = itertools.count()


def register_after_fork(obj: Any, func: Callable[[Any], object]) -> None:
    """Have ``func(obj)`` called in every child that is forked while ``obj`` lives, in the order of registration."""
    _afterfork_registry[next(_after_fork_count), id(obj), func] = obj


def _run_after_forkers() -> None:
    for (_, _, func), obj in sorted(_afterfork_registry.items(), key=lambda item: item[0][0]):
        try:
            func(obj)
        except Exception as e:
            info("after forker raised exception %s", e)


class ForkAwareThreadLock:
    """A thread lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._renew()
        register_after_fork(self, ForkAwareThreadLock._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *args: Any) -> None:
        self._lock.__exit__(*args)


class ForkAwareLocal(threading.local):
    """Thread-local attributes that are gone in a forked child."""

    def __init__(self) -> None:
        register_after_fork(self, lambda obj: obj.__dict__.clear())

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


# ---- finalizers

_finalizer_registry: dict[tuple[int | None, int], Finalize] = {}
_finalizer_counter = itertools.count()


class Finalize:
    """A callback for the end of an object, or of the process: whichever comes first, once.

    Args:
        obj: when it is collected, the callback runs; None: only at the process's end.
        callback, args, kwargs: what to call. They must not refer to obj.
        exitpriority: at the process's end callbacks of higher priority run first, later ones before earlier ones of the same priority;
            None: then it is not called.

    Raises:
        TypeError: exitpriority is not an int.
        ValueError: neither obj nor exitpriority is given.
    """

    def __init__(
        self,
        obj: Any,
        callback: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        exitpriority: int | None = None,
    ) -> None:
        if exitpriority is not None and not isinstance(exitpriority, int):
            raise TypeError(f"Exitpriority ({exitpriority!r}) must be None or int, not {type(exitpriority)!s}")
        if obj is None and exitpriority is None:
            raise ValueError("Without object, exitpriority cannot be None")
        self._weakref = None if obj is None else weakref.ref(obj, self)
        self._call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = (
            callback,
            tuple(args),
            dict(kwargs or {}),
        )
        self._key = (exitpriority, next(_finalizer_counter))
        self._pid = os.getpid()
        _finalizer_registry[self._key] = self

    # The defaults keep what the call needs: late in the interpreter's end a module's globals may be gone.
    def __call__(
        self,
        wr: object = None,
        _registry: dict[tuple[int | None, int], Finalize] = _finalizer_registry,
        _debug: Callable[..., None] = sub_debug,
        _getpid: Callable[[], int] = os.getpid,
    ) -> Any:
        """Run the callback unless it has run or was cancelled. In a forked child it is dropped. Returns what the callback returns."""
        if _registry.pop(self._key, None) is None or self._call is None:
            _debug("finalizer no longer registered")
            return None
        callback, args, kwargs = self._call
        self._weakref = self._call = None
        if self._pid != _getpid():
            _debug("finalizer ignored because different process")
            return None
        _debug("finalizer calling %s with args %s and kwargs %s", callback, args, kwargs)
        return callback(*args, **kwargs)

    def cancel(self) -> None:
        """Never run the callback."""
        if _finalizer_registry.pop(self._key, None) is not None:
            self._weakref = self._call = None

    def still_active(self) -> bool:
        """Whether the callback is still to come."""
        return self._key in _finalizer_registry

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._call is None or (self._weakref is not None and self._weakref() is None):
            return f"<{name} object, dead>"
        callback, args, kwargs = self._call
        words = [f"<{name} object", f"callback={getattr(callback, '__name__', callback)}"]
        if args:
            words.append(f"args={args}")
        if kwargs:
            words.append(f"kwargs={kwargs}")
        if self._key[0] is not None:
            words.append(f"exitpriority={self._key[0]}")
        return ", ".join(words) + ">"


def _run_finalizers(minpriority: int | None = None) -> None:
    """Run the callbacks that have an exit priority, of at least ``minpriority`` if that is given."""
    if _finalizer_registry is None:
        return  # the interpreter has cleared this module
    due: list[tuple[int, int]] = []
    for priority, number in list(_finalizer_registry):
        if priority is not None and (minpriority is None or priority >= minpriority):
            due.append((priority, number))
    for key in sorted(due, reverse=True):
        finalizer = _finalizer_registry.get(key)
        if finalizer is not None:  # an earlier callback may have cancelled it
            sub_debug("calling %s", finalizer)
            try:
                finalizer()
            except Exception:
                import traceback

                traceback.print_exc()
    if minpriority is None:
        _finalizer_registry.clear()


# ---- the end of the process

_exiting = False


def is_exiting() -> bool:
    """Whether the process is shutting down."""
    return _exiting or _exiting is None


def _exit_function(
    info: Callable[..., None] = info,
    debug: Callable[..., None] = debug,
    run_finalizers: Callable[[int | None], None] = _run_finalizers,
    active_children: Callable[[], list[process.BaseProcess]] = process.active_children,
    current_process: Callable[[], process.BaseProcess] = process.current_process,
) -> None:
    """Run finalizers, terminate children that are daemons, wait for the others, run the remaining finalizers."""
    global _exiting
    if _exiting:
        return
    _exiting = True
    info("process shutting down")
    debug('running all "atexit" finalizers with priority >= 0')
    run_finalizers(0)
    if current_process() is not None:
        for child in active_children():
            if child.daemon and child._popen is not None:
                info("calling terminate() for daemon %s", child.name)
                child._popen.terminate()
        for child in active_children():
            info("calling join() for process %s", child.name)
            child.join()
    debug('running the remaining "atexit" finalizers')
    run_finalizers(None)


atexit.register(_exit_function)


def begin_child() -> None:
    """In a child that was just forked: forget what the parent does at its end, and register what this process does at its own.

    The standard library's module, if the parent had loaded it, runs the finalizers of its own objects.
    """
    atexit._clear()
    for each in (_stdlib.module("util"), sys.modules[__name__]):
        if each is not None:
            each._exiting = False  # type: ignore[attr-defined]
            atexit.register(each._exit_function)


# ---- descriptors and streams

try:
    MAXFD = os.sysconf("SC_OPEN_MAX")
except (AttributeError, ValueError, OSError):
    MAXFD = 256


def close_all_fds_except(fds: Iterable[int]) -> None:
    """Close every descriptor of this process but those."""
    low = 0
    for fd in sorted({fd for fd in fds if fd >= 0}):
        assert fd < MAXFD, "fd too large"
        if low < fd:  # closerange(0, 0) closes everything: CPython passes its -1 to close_range(2)
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, MAXFD)


def no_thread(e: RuntimeError) -> RuntimeError:
    """The error of a thread that cannot be started, with the limits that may be the reason."""
    if "can't start new thread" not in str(e):
        return e
    return RuntimeError(f"{e} (RLIMIT_NPROC, pids.max of the control group, or RLIMIT_AS)")


def close_fds(*fds: int) -> None:
    """Close each of them."""
    for fd in fds:
        os.close(fd)


def spawnv_passfds(path: str | bytes, args: Iterable[str | bytes], passfds: Iterable[int]) -> int:
    """Execute a program in a new process, for the standard library's managers and resource trackers, and loky's.

    Args:
        path: the program's file.
        args: its arguments, the first of which is its name.
        passfds: the descriptors that it inherits, besides the standard three.

    Returns:
        its process id: the caller collects its status.

    Raises:
        OSError: it cannot be executed.
    """
    passed = {int(fd) for fd in passfds}
    others = {int(name) for name in os.listdir("/dev/fd")} - passed - {0, 1, 2}
    # An action on a descriptor that is closed meanwhile does nothing. That of dup2 to itself makes it inheritable.
    actions: list[Any] = [(os.POSIX_SPAWN_CLOSE, fd) for fd in others]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in sorted(passed)]
    return os.posix_spawn(path, list(args), os.environ, file_actions=actions)


# Unix sockets whose names are no files.
abstract_sockets_supported = sys.platform in ("linux", "android")


def is_abstract_socket_namespace(address: str | bytes) -> bool:
    """Whether the address of a Unix socket is in the abstract namespace."""
    if not isinstance(address, (str, bytes)):
        raise TypeError(f"address type of {address!r} unrecognized")
    return address[:1] in ("\0", b"\0")


_close_stdin = process._close_stdin
_flush_std_streams = process._flush_std_streams


def _cleanup_tests() -> None:
    """What CPython's own tests call at their end: collect children, run finalizers."""
    import gc

    process._cleanup()
    _run_finalizers()
    gc.collect()


def _args_from_interpreter_flags() -> list[str]:
    """The command line options by which a new interpreter gets the flags of this one."""
    flags = sys.flags
    options = []
    for name, letter in (
        ("debug", "d"),
        ("dont_write_bytecode", "B"),
        ("no_site", "S"),
        ("verbose", "v"),
        ("bytes_warning", "b"),
        ("quiet", "q"),
        ("optimize", "O"),
    ):
        count = int(getattr(flags, name))
        if count:
            options.append("-" + letter * count)
    if flags.isolated:
        options.append("-I")
    else:
        for name, letter in (("ignore_environment", "E"), ("no_user_site", "s"), ("safe_path", "P")):
            if getattr(flags, name, False):
                options.append("-" + letter)
    # -X dev and -b add filters of their own, which the new interpreter adds again.
    implied = []
    if flags.dev_mode:
        implied.append("default")
    if flags.bytes_warning:
        implied.append("error::BytesWarning" if flags.bytes_warning > 1 else "default::BytesWarning")
    for option in sys.warnoptions:
        if option in implied:
            implied.remove(option)
        else:
            options.append("-W" + option)
    for name, value in sys._xoptions.items():
        options += ["-X", name if value is True else f"{name}={value}"]
    return options
