"""Contexts: one class whose methods are the package's public functions, once per start method. Mirrors multiprocessing/context.py.

Differences from the standard library:

* :class:`WorkerLost`, :class:`StartError` and :class:`InitializerError`;
* an exception of this module is at the same time an instance of the standard package's class of that name, if the program has loaded
  that package, so that ``except multiprocessing.TimeoutError`` works too (see :class:`ProcessError`);
* the pickling machinery (``reducer``) is imported at its first use.
"""

from __future__ import annotations

import os
import sys
from _thread import _local

from . import _stdlib, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from logging import Logger
    from types import ModuleType
    from typing import Any, ClassVar, Generic, Literal, NoReturn, Protocol, TypeVar, overload

    from . import pool, queues, synchronize
    from ._pipe import Connection

    LockLike = synchronize.Lock | synchronize.RLock
    T = TypeVar("T")

    class Subscriptable(Generic[T]):
        pass

    class SpawningPopen(Protocol):
        """What objects may ask of the start that they are being pickled for."""

        def DupFd(self, fd: int) -> Any: ...

        def duplicate_for_child(self, fd: int) -> int: ...


else:
    # Importing the module typing costs more than the rest of this package.
    T = None

    class Subscriptable:
        """Base of what type checkers know as generic in T: Queue[int] is its class with a note."""

        __slots__ = ()

        def __class_getitem__(cls, item: object) -> Any:
            from types import GenericAlias

            return GenericAlias(cls, item)


__all__ = ()

# ---- exceptions


_both: dict[type, type] = {}


def _join_stdlib(cls: type, name: str, module: str = "context") -> type:
    """``cls`` or, once multiprocessing.context is loaded, a subclass of it and of the class there of that name."""
    theirs = _stdlib.module(module)
    if theirs is None:
        return cls
    other = getattr(theirs, name, None) or getattr(theirs, "ProcessError", None)
    if other is None or issubclass(cls, other):
        return cls
    if cls not in _both:
        _both[cls] = type(cls.__name__, (cls, other), {"__module__": __name__, "_public": cls, "__doc__": cls.__doc__})
    return _both[cls]


class ProcessError(Exception):
    """Base of this package's exceptions.

    An ``except`` clause looks at the bases of an exception's class and nothing else. So that code which names
    ``multiprocessing.TimeoutError`` catches this package's one, instances are created of a class that has both as bases, whenever
    the standard package is loaded at that time. Such an instance is pickled as the class that is public here.
    """

    def __new__(cls, *args: object, **kwargs: object) -> ProcessError:
        # A subclass that the program wrote has the bases that the program gave it.
        return super().__new__(_join_stdlib(cls, cls.__name__) if cls.__module__ == __name__ else cls, *args)

    def __reduce__(self) -> Any:
        whole: Any = super().__reduce__()
        return (getattr(whole[0], "_public", whole[0]), *whole[1:])


class BufferTooShort(ProcessError):
    """A message is longer than the buffer for it; ``args[0]`` is the message."""


class TimeoutError(ProcessError):
    """A result was not there in time. Not the built-in of that name, as in the standard library."""


class AuthenticationError(ProcessError):
    """The two ends of a connection do not know the same key."""


class OwnerDiedError(ProcessError):
    """A process has died while it held the lock: what the lock protects may be half done. The lock was not acquired.

    Every acquirer, in all processes, gets this error until one has called ``lock.recover()``, which acquires the lock all the same. A
    lock made with ``Lock(recover=True)`` or ``RLock(recover=True)`` never raises it.
    """


class WorkerLost(ProcessError):
    """The worker process died while it ran a task: only that task is lost.

    Attributes:
        pid: the worker's process id, or None.
        exitcode: its exit code 0..255, or minus the signal that ended it; None if the program itself collected the status.
        signal: the number of that signal, or None.
        task: what ran, in words, or None.
    """

    def __init__(
        self, message: str = "", pid: int | None = None, exitcode: int | None = None, task: str | None = None
    ) -> None:
        super().__init__(message, pid, exitcode, task)
        self.pid = pid
        self.exitcode = exitcode
        self.task = task

    @property
    def signal(self) -> int | None:
        return -self.exitcode if self.exitcode is not None and self.exitcode < 0 else None

    def __str__(self) -> str:
        if self.args[0]:
            return str(self.args[0])
        if self.exitcode is None:
            how = "for an unknown reason"
        elif self.signal is not None:
            how = "of " + process.signal_name(self.signal)
        else:
            how = f"with exit code {self.exitcode}"
        return f"worker {self.pid or '?'} died {how} while it ran {self.task or 'a task'}"


class StartError(ProcessError, OSError):
    """A process could not be started."""


class InitializerError(ProcessError):
    """The initializer of a pool's workers fails in every worker."""


# ---- contexts

# Which release brings what this one lacks.
_PLANNED = {
    "RawValue": "0.4",
    "RawArray": "0.4",
    "Value": "0.4",
    "Array": "0.4",
    "Manager": "0.5",
}


def _missing(name: str) -> NoReturn:
    raise NotImplementedError(f"polyproc has no {name} yet: it comes with release {_PLANNED[name]}")


_reducer: ModuleType | None = None

# What set_forkserver_preload() was given.
forkserver_preload = ["__main__"]


class BaseContext:
    """The functions of the package for one start method."""

    ProcessError = ProcessError
    BufferTooShort = BufferTooShort
    TimeoutError = TimeoutError
    AuthenticationError = AuthenticationError

    current_process = staticmethod(process.current_process)
    parent_process = staticmethod(process.parent_process)
    active_children = staticmethod(process.active_children)

    if TYPE_CHECKING:
        Process: ClassVar[type[process.BaseProcess]]
        _name: str

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            """What isinstance() looks at besides the type: to libraries that ask for a context of the standard library, this is one."""
            return _join_stdlib(type(self), "BaseContext")

        def __reduce_ex__(self, protocol: int) -> Any:
            return object.__new__, (type(self),), self.__dict__ or None

    def cpu_count(self) -> int:
        """The number of CPUs of the system.

        Raises:
            NotImplementedError: the system does not tell.
        """
        count = os.cpu_count()
        if count is None:
            raise NotImplementedError("cannot determine number of cpus")
        return count

    def Manager(self) -> Any:
        """Not there yet: raises NotImplementedError."""
        _missing("Manager")

    def Pipe(self, duplex: bool = True) -> tuple[Connection, Connection]:
        """Return the two ends of a pipe, as two connections.

        Args:
            duplex: both ends send and receive. False: the first one receives and the second one sends.

        Raises:
            OSError: no descriptor is left.
            MemoryError: no shared memory is left, or a limit on it.
        """
        from ._pipe import Pipe

        return Pipe(duplex)

    def Lock(self, *, recover: bool = False) -> synchronize.Lock:
        """Return a lock: one thread of one process holds it at a time, and any may release it.

        After the death of a process that held the lock, acquire() raises OwnerDiedError, in all processes, until one has called
        recover().

        Args:
            recover: acquire the lock of a process that has died as if that had released it, without an error.

        Raises:
            MemoryError: no shared memory is left, or a limit on it.
        """
        from .synchronize import Lock

        return Lock(ctx=self.get_context(), recover=recover)

    def RLock(self, *, recover: bool = False) -> synchronize.RLock:
        """Return a lock that the thread that holds it may acquire again, and must release as often.

        After the death of a process that held the lock, acquire() raises OwnerDiedError, in all processes, until one has called
        recover().

        Args:
            recover: acquire the lock of a process that has died as if that had released it, without an error.

        Raises:
            MemoryError: no shared memory is left, or a limit on it.
        """
        from .synchronize import RLock

        return RLock(ctx=self.get_context(), recover=recover)

    def Condition(self, lock: LockLike | None = None) -> synchronize.Condition:
        """Return a condition variable, as threading.Condition between processes.

        Args:
            lock: the Lock or RLock that it works with; None: an RLock of its own.

        Raises:
            TypeError: lock is not a lock of this package.
            MemoryError: no shared memory is left, or a limit on it.
        """
        from .synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1, *, recover: bool = False) -> synchronize.Semaphore:
        """Return a counter that acquire() makes smaller, waiting while it is zero, and release() larger.

        Args:
            value: its initial count.
            recover: what a process has acquired that dies is released again. value is at most 65535 then.

        Raises:
            OSError: value is negative.
            OverflowError: value is too large.
            MemoryError: no shared memory is left, or a limit on it.
        """
        from .synchronize import Semaphore

        return Semaphore(value, ctx=self.get_context(), recover=recover)

    def BoundedSemaphore(self, value: int = 1, *, recover: bool = False) -> synchronize.BoundedSemaphore:
        """Return a semaphore whose count never exceeds its initial one: release() raises ValueError instead.

        Args:
            value: its initial count.
            recover: what a process has acquired that dies is released again. value is at most 65535 then.

        Raises:
            OSError: value is negative.
            OverflowError: value is too large.
            MemoryError: no shared memory is left, or a limit on it.
        """
        from .synchronize import BoundedSemaphore

        return BoundedSemaphore(value, ctx=self.get_context(), recover=recover)

    def Event(self) -> synchronize.Event:
        """Return a flag that processes wait for: set(), clear(), is_set(), wait(timeout).

        Raises:
            MemoryError: no shared memory is left, or a limit on it.
        """
        from .synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
    ) -> synchronize.Barrier:
        """Return a point at which processes wait until a number of them have reached it.

        Args:
            parties: that number.
            action: what one of them calls when all have arrived, before they go on.
            timeout: the default of wait(), in seconds; None: no limit.

        Raises:
            ValueError: parties is not positive.
            MemoryError: no shared memory is left, or a limit on it.
        """
        from .synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize: int = 0, *, name: str | None = None) -> queues.Queue[Any]:
        """Return a queue between processes, with the methods of queue.Queue but for task_done() and join().

        put() pickles at once, and what it has put arrives even if this process is killed then.

        Args:
            maxsize: the most items that it holds; put() waits when it is full. 0 or less: no bound.
            name: processes of this user that open the same name have the same queue, whoever started them. It stays until
                unlink(). None: only this process and those that it gives the queue to have it.

        Raises:
            ValueError: maxsize is too large, or the name cannot be one.
            MemoryError: no shared memory is left, or a limit on it.
            OSError: the named queue cannot be opened.
        """
        from .queues import Queue

        return Queue(maxsize, ctx=self.get_context(), name=name)

    def JoinableQueue(self, maxsize: int = 0, *, name: str | None = None) -> queues.JoinableQueue[Any]:
        """Return a Queue with task_done() and join(), which waits until task_done() was called for each item.

        Args:
            maxsize: the most items that it holds; put() waits when it is full. 0 or less: no bound.
            name: processes of this user that open the same name have the same queue, whoever started them. It stays until
                unlink(). None: only this process and those that it gives the queue to have it.

        Raises:
            ValueError: maxsize is too large, or the name cannot be one.
            MemoryError: no shared memory is left, or a limit on it.
            OSError: the named queue cannot be opened.
        """
        from .queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context(), name=name)

    def SimpleQueue(self, *, name: str | None = None) -> queues.SimpleQueue[Any]:
        """Return a queue with put(), get(), empty() and close() only, and without a bound.

        Args:
            name: processes of this user that open the same name have the same queue, whoever started them. It stays until
                unlink(). None: only this process and those that it gives the queue to have it.

        Raises:
            ValueError: the name cannot be one.
            MemoryError: no shared memory is left, or a limit on it.
            OSError: the named queue cannot be opened.
        """
        from .queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context(), name=name)

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> pool.Pool:
        """Return a pool of worker processes that run calls: apply(), map(), imap() and their kin.

        A worker that dies costs the task that it ran, which raises WorkerLost, and is replaced.

        Args:
            processes: the number of workers, at most 1024; None: one per CPU that this process may use.
            initializer, initargs: each worker calls ``initializer(*initargs)`` at its start.
            maxtasksperchild: a worker is replaced after so many tasks (for map: chunks); None: never.

        Raises:
            ValueError, TypeError: an argument is not what it must be.
            AssertionError: this process is a daemon, which cannot have children.
            OSError, MemoryError: processes could not be started.
        """
        from .pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context())

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        """Not there yet, a C object in shared memory: raises NotImplementedError."""
        _missing("RawValue")

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:
        """Not there yet, a C array in shared memory: raises NotImplementedError."""
        _missing("RawArray")

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """Not there yet, a C object in shared memory, with a lock: raises NotImplementedError."""
        _missing("Value")

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
        """Not there yet, a C array in shared memory, with a lock: raises NotImplementedError."""
        _missing("Array")

    def freeze_support(self) -> None:
        """In a frozen program that was executed as a child process: run the child and exit. Elsewhere: nothing."""
        if getattr(sys, "frozen", False):
            from .spawn import freeze_support

            freeze_support()

    def get_logger(self) -> Logger:
        """The package's logger."""
        from .util import get_logger

        return get_logger()

    def log_to_stderr(self, level: int | str | None = None) -> Logger:
        """Turn on logging to stderr; returns the package's logger."""
        from .util import log_to_stderr

        return log_to_stderr(level)

    def allow_connection_pickling(self) -> None:
        """Does nothing: connections can always be sent."""

    def set_executable(self, executable: str | bytes | os.PathLike[str] | None) -> None:
        """Set the interpreter that spawned processes run, in place of sys.executable."""
        from .spawn import set_executable

        set_executable(executable)

    def set_forkserver_preload(self, module_names: list[str]) -> None:
        """Set which modules the fork server imports before it forks; it counts until the server has been started.

        Raises:
            TypeError: not a list of strings.
        """
        global forkserver_preload
        if not all(type(name) is str for name in module_names):
            raise TypeError("module_names must be a list of strings")
        forkserver_preload = list(module_names)

    if TYPE_CHECKING:

        @overload
        def get_context(self, method: None = None) -> DefaultContext: ...

        @overload
        def get_context(self, method: Literal["spawn"]) -> SpawnContext: ...

        @overload
        def get_context(self, method: Literal["fork"]) -> ForkContext: ...

        @overload
        def get_context(self, method: Literal["forkserver"]) -> ForkServerContext: ...

        @overload
        def get_context(self, method: str) -> BaseContext: ...

    def get_context(self, method: str | None = None) -> BaseContext:
        """The context of a start method; None: this one.

        Raises:
            ValueError: no such method, or not on this platform.
        """
        if method is None:
            return self
        try:
            context = _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None
        context._check_available()
        return context

    if TYPE_CHECKING:

        @overload
        def get_start_method(self, allow_none: Literal[False] = False) -> str: ...

        @overload
        def get_start_method(self, allow_none: bool) -> str | None: ...

    def get_start_method(self, allow_none: bool = False) -> str | None:
        """The name of the start method."""
        return self._name

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Only the default context has a choice.

        Raises:
            ValueError: always.
        """
        raise ValueError("cannot set start method of concrete context")

    @property
    def reducer(self) -> ModuleType:
        """The module that pickles what goes to other processes; it may be replaced."""
        if _reducer is None:
            from . import reduction

            return reduction
        return _reducer

    @reducer.setter
    def reducer(self, reduction: ModuleType) -> None:
        global _reducer
        _reducer = reduction

    def _check_available(self) -> None:
        pass


class Process(process.BaseProcess):
    """A process of the default context: started by whatever method is set when it starts."""

    _start_method = None

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> process.Popen:
        return _default_context.get_context().Process._Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        _default_context.get_context().Process._after_fork()


class ForkProcess(process.BaseProcess):
    """A process started by fork(2)."""

    _start_method = "fork"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> process.Popen:
        from .popen_fork import Popen

        return Popen(process_obj)


class SpawnProcess(process.BaseProcess):
    """A process in a fresh interpreter."""

    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> process.Popen:
        from .popen_spawn_posix import Popen

        return Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        pass  # nothing was inherited


class ForkServerProcess(process.BaseProcess):
    """A process forked by a server process."""

    _start_method = "forkserver"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> process.Popen:
        from .popen_forkserver import Popen

        return Popen(process_obj)


class ForkContext(BaseContext):
    _name: str = "fork"
    Process: ClassVar[type[ForkProcess]] = ForkProcess

    def _check_available(self) -> None:
        if not hasattr(os, "fork"):
            raise ValueError("fork start method not available")


class SpawnContext(BaseContext):
    _name: str = "spawn"
    Process: ClassVar[type[SpawnProcess]] = SpawnProcess


class ForkServerContext(BaseContext):
    _name: str = "forkserver"
    Process: ClassVar[type[ForkServerProcess]] = ForkServerProcess

    def _check_available(self) -> None:
        # Memory files and sockets that pass descriptors: Linux.
        if not (hasattr(os, "fork") and hasattr(os, "memfd_create")):
            raise ValueError("forkserver start method not available")


class DefaultContext(BaseContext):
    """The context behind the functions of the package. Its start method can be set once; the first use settles it."""

    Process = Process

    def __init__(self, context: BaseContext) -> None:
        self._default_context = context
        self._actual_context: BaseContext | None = None

    if not TYPE_CHECKING:  # checkers know the overloads of the base

        def get_context(self, method: str | None = None) -> BaseContext:
            if method is not None:
                return super().get_context(method)
            if self._actual_context is None:
                self._actual_context = self._default_context
            return self._actual_context

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Set the start method of the program.

        Args:
            method: "fork", "spawn" or "forkserver"; None, with force, forgets what was set.
            force: replace an earlier choice.

        Raises:
            RuntimeError: it is set already.
            ValueError: no such method, or not on this platform.
        """
        if self._actual_context is not None and not force:
            raise RuntimeError("context has already been set")
        if method is None and force:
            self._actual_context = None
        else:
            self._actual_context = self.get_context(method)

    if not TYPE_CHECKING:

        def get_start_method(self, allow_none: bool = False) -> str | None:
            """The name of the start method; None if allow_none and none was set or used yet."""
            if self._actual_context is None and allow_none:
                return None
            return self.get_context()._name

    def get_all_start_methods(self) -> list[str]:
        """The start methods that can be used here, default first."""
        methods = [self._default_context._name]
        for name, context in _concrete_contexts.items():
            try:
                context._check_available()
            except ValueError:
                continue
            if name not in methods:
                methods.append(name)
        return methods


_concrete_contexts: dict[str, BaseContext] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}

# The default of the running interpreter's own multiprocessing.
_default_context = DefaultContext(
    _concrete_contexts["spawn" if sys.platform in ("win32", "darwin") else "fork" if sys.version_info < (3, 14) else "forkserver"]
)


def _force_start_method(method: str) -> None:
    _default_context._actual_context = _concrete_contexts[method]


# ---- the start that is being prepared in this thread

_starting = _local()


def get_spawning_popen() -> SpawningPopen | None:
    """The start that objects are being pickled for in this thread, or None."""
    return getattr(_starting, "popen", None)


def set_spawning_popen(popen: SpawningPopen | None) -> None:
    _starting.popen = popen


def check_receiver(name: str, of_fork: bool = False) -> None:
    """Refuse to pickle an object of shared memory for a process that could not use it.

    Args:
        name: the class of the object, as the context calls it.
        of_fork: whether a fork context made it.

    Raises:
        RuntimeError: for a process of the standard library's package; an object of a fork context for a spawned process; or
            the program has closed what a spawned process would inherit.
    """
    theirs = _stdlib.module("context")
    if theirs is not None and theirs.get_spawning_popen() is not None:
        raise RuntimeError(
            f"polyproc's {name} cannot be shared with a process that multiprocessing or concurrent.futures spawns: "
            "start the process, or the pool, with polyproc"
        )
    popen = get_spawning_popen()
    if popen is None:
        return
    method = getattr(popen, "method", "spawn")
    if of_fork:
        raise RuntimeError(  # begins as in the standard library, where the locks of a queue say so
            f"A SemLock created in a fork context is being shared with a process in a {method} context. This is not "
            f"supported: create the {name} by polyproc.get_context({method!r}).{name}(), or start the process by fork"
        )
    from ._lib import has_family

    if not has_family():
        raise RuntimeError(
            f"the {name} cannot be shared with a process that is spawned: this program has closed the descriptors of its "
            "shared memory, as daemons do at their start. Create the first object after that, or start the process by fork"
        )


def assert_spawning(obj: object) -> None:
    """Refuse to pickle an object that only a child process being started may receive.

    Raises:
        RuntimeError: no process is being started in this thread.
    """
    if get_spawning_popen() is None:
        raise RuntimeError(
            f"{type(obj).__name__} objects should only be shared between processes through inheritance"
        )


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # The standard library's managers and loky import the module from here.
        if name == "reduction":
            __import__(f"{__package__}.reduction")
            return sys.modules[f"{__package__}.reduction"]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
