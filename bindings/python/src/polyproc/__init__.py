"""polyproc: processes and pools, with the names of the standard library's multiprocessing.

    import polyproc as mp

in place of ``import multiprocessing as mp`` is all that a program changes. Mirrors ``multiprocessing/__init__.py``: every name is
a method of the default context. Differences: the names are assigned one by one, so that type checkers see them; importing the
package loads neither ctypes nor the library (the first process or pool does); there is :class:`WorkerLost`.
"""

import sys

from . import context, process
from .context import (
    AuthenticationError,
    BufferTooShort,
    InitializerError,
    OwnerDiedError,
    Process,
    ProcessError,
    StartError,
    TimeoutError,
    WorkerLost,
)

__version__ = "0.1.0"

__all__ = [
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BufferTooShort",
    "Condition",
    "Event",
    "InitializerError",
    "JoinableQueue",
    "Lock",
    "Manager",
    "OwnerDiedError",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "StartError",
    "TimeoutError",
    "Value",
    "WorkerLost",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
]

_default = context._default_context

Array = _default.Array
Barrier = _default.Barrier
BoundedSemaphore = _default.BoundedSemaphore
Condition = _default.Condition
Event = _default.Event
JoinableQueue = _default.JoinableQueue
Lock = _default.Lock
Manager = _default.Manager
Pipe = _default.Pipe
Pool = _default.Pool
Queue = _default.Queue
RLock = _default.RLock
RawArray = _default.RawArray
RawValue = _default.RawValue
Semaphore = _default.Semaphore
SimpleQueue = _default.SimpleQueue
Value = _default.Value

active_children = process.active_children
current_process = process.current_process
parent_process = process.parent_process

allow_connection_pickling = _default.allow_connection_pickling
cpu_count = _default.cpu_count
freeze_support = _default.freeze_support
get_all_start_methods = _default.get_all_start_methods
get_context = _default.get_context
get_logger = _default.get_logger
get_start_method = _default.get_start_method
log_to_stderr = _default.log_to_stderr
set_executable = _default.set_executable
set_forkserver_preload = _default.set_forkserver_preload
set_start_method = _default.set_start_method

SUBDEBUG = 5
SUBWARNING = 25

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import connection as connection
    from . import reduction as reducer
    from . import reduction as reduction
else:

    def __getattr__(name: str) -> object:
        # The pickling machinery is loaded when it is first asked for: a child process needs only its unpickling half.
        if name == "reducer":
            return _default.reducer
        if name in ("connection", "reduction"):
            # Not "from . import reduction": that asks this function first.
            __import__(f"{__name__}.{name}")
            return sys.modules[f"{__name__}.{name}"]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


del TYPE_CHECKING  # no public name of this package

if getattr(sys, "frozen", False):
    from .spawn import stand_in_for_stdlib

    stand_in_for_stdlib()
    del stand_in_for_stdlib

# A child executes the main script under the name __mp_main__, so what it pickles of the script's classes is of that module.
if "__main__" in sys.modules:
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
