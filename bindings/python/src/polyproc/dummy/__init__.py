"""The package's interface over threads: processes that are threads, locks that are threading's. Mirrors multiprocessing/dummy."""

from __future__ import annotations

import array
import sys
import threading
import weakref
from builtins import dict, list  # noqa: UP029 - names of the interface
from queue import Queue
from threading import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore

from .connection import Pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType
    from typing import Any

    from ..pool import ThreadPool

__all__ = [
    "Process", "current_process", "active_children", "freeze_support", "Lock", "RLock", "Semaphore", "BoundedSemaphore",
    "Condition", "Event", "Barrier", "Queue", "Manager", "Pipe", "Pool", "JoinableQueue",
]  # fmt: skip

JoinableQueue = Queue
current_process = threading.current_thread


def _children_of(thread: threading.Thread) -> weakref.WeakKeyDictionary[threading.Thread, None]:
    # Where the standard library's module has it too, in the same form.
    children: weakref.WeakKeyDictionary[threading.Thread, None] = thread.__dict__.setdefault("_children", weakref.WeakKeyDictionary())
    return children


class DummyProcess(threading.Thread):
    """A thread that looks like a process."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
    ) -> None:
        super().__init__(group, target, name, tuple(args), dict(kwargs))
        self._pid = None
        self._start_called = False
        self._parent = current_process()

    def start(self) -> None:
        """Start the thread; only the thread that made the object may.

        Raises:
            RuntimeError: another thread did.
        """
        if self._parent is not current_process():
            raise RuntimeError(f"Parent is {self._parent!r} but current_process is {current_process()!r}")
        self._start_called = True
        _children_of(self._parent)[self] = None
        try:
            super().start()
        except RuntimeError as e:
            from ..util import no_thread

            raise no_thread(e) from None

    @property
    def exitcode(self) -> int | None:
        """0 once the thread has ended, else None."""
        return 0 if self._start_called and not self.is_alive() else None


Process = DummyProcess


def active_children() -> list[threading.Thread]:
    """The processes that this one has started and that are alive."""
    children = _children_of(current_process())
    for child in [*children]:
        if not child.is_alive():
            children.pop(child, None)
    return [*children]


def freeze_support() -> None:
    """Does nothing: no program is executed again."""


class Namespace:
    """An object with whatever attributes it is given."""

    def __init__(self, /, **kwds: Any) -> None:
        self.__dict__.update(kwds)

    def __repr__(self) -> str:
        shown = sorted(f"{name}={value!r}" for name, value in self.__dict__.items() if not name.startswith("_"))
        return f"{self.__class__.__name__}({', '.join(shown)})"


def Array(typecode: str, sequence: Iterable[Any], lock: bool = True) -> array.array[Any]:
    """An array of the module array."""
    return array.array(typecode, sequence)


class Value:
    """A value; nothing is converted to the type."""

    def __init__(self, typecode: str, value: Any, lock: bool = True) -> None:
        self._typecode = typecode
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._typecode!r}, {self.value!r})>"


def Manager() -> ModuleType:
    """This module: threads share all objects anyway."""
    return sys.modules[__name__]


def shutdown() -> None:
    """Does nothing, for the manager that this module is."""


def Pool(
    processes: int | None = None, initializer: Callable[..., object] | None = None, initargs: Iterable[Any] = ()
) -> ThreadPool:
    """A pool of threads."""
    from ..pool import ThreadPool

    return ThreadPool(processes, initializer, initargs)
