"""Living beside the standard library's multiprocessing, without ever importing it.

A program may use both packages, or libraries that ask the standard one who they are. Four things are shared, and only in processes
that polyproc started, or with modules that the program itself has loaded:

* reducers registered in ``multiprocessing.reduction.ForkingPickler`` are honoured (reduction.py);
* exceptions of this package are instances of both packages' classes once both exist (context.py);
* in our child processes ``multiprocessing.current_process()``, ``parent_process()`` and ``active_children()`` give this package's
  answers, and log records carry the child's ``processName``. Only ``current_process().authkey`` is that of the standard library's
  package in the parent, by which the parent's managers, connections and shared tensors know their clients. The parent must have
  imported that package before it starts the child;
* functions registered with ``multiprocessing.util.register_after_fork`` run in the children that we fork.

For the third a child attends to two modules, ``multiprocessing.process`` and ``logging``: at once if they are loaded, else when
the child imports them. There is no public hook for the latter, so a finder stands in ``sys.meta_path`` that knows just those names,
lets the ordinary import happen, and leaves with the last of them. Nothing of this happens in a program's main process.
Where the name multiprocessing is an alias of this package, there is nothing to share and every function here answers so.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_ours = __name__.rpartition(".")[0]


def module(name: str) -> ModuleType | None:
    """The standard library's ``multiprocessing.<name>`` if the program has loaded it, else None."""
    found = sys.modules.get("multiprocessing." + name)
    if found is None or found.__name__.startswith(_ours + "."):
        return None
    if getattr(found.__spec__, "_initializing", False):
        return None  # a thread is importing it
    return found


def unpatched(module: str, name: str) -> Any:
    """A function of the standard library's, as it was before gevent or eventlet replaced it for greenlets."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None:
        return gevent.get_original(module, name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.already_patched:
        return getattr(eventlet.original(module), name)
    return getattr(sys.modules.get(module) or __import__(module), name)


def attend(introductions: dict[str, Callable[[ModuleType], None]]) -> None:
    """Call ``introductions[name](module)`` for each module of that full name: now if it is loaded, else right after its import."""
    for name, adjust in introductions.items():
        loaded = sys.modules.get(name)
        if loaded is not None:
            adjust(loaded)
        else:
            _attendant.waiting[name] = adjust
    if _attendant.waiting and _attendant not in sys.meta_path:
        sys.meta_path.insert(0, _attendant)


def awaited(name: str) -> Callable[[ModuleType], None] | None:
    """What is to be called after the import of the module of that full name, or None."""
    return _attendant.waiting.get(name)


class _Attendant:
    """Finder that never finds anything itself: it asks the others and has one more thing done after the module's execution."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        adjust = self.waiting.pop(fullname, None)
        if adjust is None:
            return None
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in sys.meta_path:
            if finder is not self:
                find_spec = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find_spec(fullname, path, target) if find_spec else None
                if spec is not None:
                    break
        else:
            return None
        loader: Any = spec.loader
        try:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module  # the method of its class is back, for this module and for others
                execute(module)
                adjust(module)

            loader.exec_module = exec_module
        except (AttributeError, TypeError):
            pass  # a loader that cannot be told: the import matters more
        return spec


_attendant = _Attendant()
