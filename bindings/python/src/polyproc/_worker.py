"""The worker's side of a pool of Python processes, and what both sides must agree on.

A task's bytes are a head of 8 bytes, the function's pickle, and the pickle of what it is called with:

    head = function number << 24 | size of the function's pickle << 8 | kind

A function that is pickled by its name only (every module-level function, builtin and class) has a number, the pool's own, and a
worker unpickles it once. Any other callable is unpickled together with its arguments for each task, as it always was:
number and size are 0 then, and the kind has BOUND added.

A result's bytes are the pickle of the value. Those of an error are the pickle of a tuple, see :func:`describe`.
This module is all that a worker needs besides what its tasks import; it loads neither the engine nor the parent's half.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident

try:
    # The C half of pickle, without the Python half, which costs a process milliseconds.
    from _pickle import Pickler, loads
    from _pickle import dumps as _dumps
except ImportError:
    from pickle import Pickler, loads
    from pickle import dumps as _dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

PROTOCOL = 5

# Kinds of tasks: what the pickle after the function holds.
CALL = 1  # (args, kwds)
ITEM = 2  # the one argument
MAP = 3  # an iterable of arguments: a list of results
STARMAP = 4  # an iterable of argument tuples: a list of results
BOUND = 8  # (function, the above)

# Codes of PP_ERR_TASK: what went wrong.
RAISED = 1
UNPICKLABLE = 2  # the result: two strings, the error and the value

# Types whose pickles no registered reducer can change: the plain pickler does.
PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes))

_ours = __name__.rpartition(".")[0]
_modules = sys.modules
_registries = (_ours + ".reduction", "multiprocessing.reduction")


def dumps(obj: object) -> bytes:
    """The pickle of an object, made with the reducers that were registered for other processes.

    The module that holds these is not loaded for objects that do without: nobody can have registered anything then, and
    what it adds by itself are only types that the plain pickler refuses.
    """
    if type(obj) in PLAIN:
        return _dumps(obj, PROTOCOL)
    if not _registered():
        try:
            return _dumps(obj, PROTOCOL)
        except Exception:
            pass  # and if that does not help either, its error is the one to see
    from .reduction import ForkingPickler

    return ForkingPickler.dumps(obj, PROTOCOL)


def _registered() -> bool:
    """Whether somebody may have registered reducers."""
    return _registries[0] in _modules or _registries[1] in _modules


def pickler_class() -> Any:
    """The pickler to begin with, see :func:`dumps`."""
    return registered_pickler() if _registered() else Pickler


def registered_pickler() -> Any:
    from .reduction import ForkingPickler

    return ForkingPickler


def describe(error: BaseException, traceback: TracebackType | None) -> bytes:
    """An exception in pickled parts, so that something arrives however badly it pickles.

    Returns:
        The pickle of (the exception's pickle or None, its class's pickle or None, list of the pickles of its args, pickle of its
        attributes that have one, its repr, the text of its traceback).
    """
    whole = cls = state = None
    args: list[bytes] = []
    try:
        whole = dumps(error)
    except Exception:
        pass
    try:
        cls = dumps(type(error))
        args = [_dumps_or_repr(each) for each in error.args]
        kept = {}
        for name, value in getattr(error, "__dict__", {}).items():
            try:
                dumps(value)
                kept[name] = value
            except Exception:
                pass
        state = dumps(kept)
    except Exception:
        pass
    import traceback as formatter

    try:
        text = "".join(formatter.format_exception(type(error), error, traceback))
    except Exception as e:  # an exception whose __str__ fails in a way that the module does not foresee
        text = f"{type(error).__name__}: <traceback cannot be formatted: {type(e).__name__}>\n"
    return _dumps((whole, cls, args, state, safe_repr(error), text), PROTOCOL)


def _dumps_or_repr(value: object) -> bytes:
    try:
        return dumps(value)
    except Exception:
        return _dumps(safe_repr(value), PROTOCOL)


def safe_repr(value: object) -> str:
    """repr() that does not fail."""
    try:
        return repr(value)
    except Exception as e:
        return f"<{type(value).__name__} whose repr() raises {type(e).__name__}>"


def _own_frames_off(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback from the task's own frames on; all of it if there are none (the error arose in unpickling its argument)."""
    rest = traceback
    while rest is not None and rest.tb_frame.f_code.co_filename == __file__:
        rest = rest.tb_next
    return rest or traceback


def main() -> None:
    """Serve the pool that started this process, until there is nothing left to do.

    The exit code is 0 then; a task that raises SystemExit or KeyboardInterrupt ends the process as it would end any program,
    and the pool sees its exit code.
    """
    from ctypes import addressof, c_char

    from ._abi import Vacancy, Worker
    from ._errors import INIT
    from ._lib import lib as load
    from ._lib import privileged

    # In an interpreter with file capabilities the library believes no environment. But whoever has written this command line can have
    # any code run here.
    told = privileged()
    if told:
        from . import process

        process._family = os.environ.get("POLYPROC_FAMILY")
    lib = load()
    worker = Worker()
    worker.size = _size_of(worker)
    if told:
        fd, lane, generation, parent_pid = map(int, os.environ["POLYPROC_WORKER"].split(","))
        vacancy = Vacancy(lane, generation, fd, parent_pid)
        status = lib.pp_worker_attach_to(addressof(vacancy), addressof(worker))
        os.close(fd)
    else:
        status = lib.pp_worker_attach(addressof(worker))
    if status:
        from ._errors import error

        raise error(status)

    # The library has taken it out of the environment; Python keeps a copy of that, which what the task starts would inherit.
    os.environ.pop("POLYPROC_WORKER", None)
    os.environ.pop("POLYPROC_FAMILY", None)
    _quiet_interrupts()
    init = memoryview((c_char * worker.init_arg_size).from_address(worker.init_arg)).cast("B")
    try:
        _prepare(init, worker.lane)
    except Exception as e:
        message = describe(e, _own_frames_off(e.__traceback__))
        lib.pp_worker_ready(INIT, message, len(message))
        _leave()
        return
    init.release()
    try:
        _work(lib, worker)
    finally:
        _leave()


def _work(lib: Any, worker: Any, sender: Sender | None = None) -> None:
    """Say that the worker is ready, and serve."""
    from ctypes import addressof, c_char, c_uint64

    from ._lib import pylib

    lib.pp_worker_ready(0, None, 0)
    task = (c_uint64 * 4)()
    ring = memoryview((c_char * worker.ring_size).from_address(worker.ring)).cast("B")
    _serve(lib, pylib(), memoryview(task).cast("B").cast("Q"), addressof(task), ring, worker.ring, sender)


class Sender:
    """Pickles as a queue of the program's own does: what its ``put`` would write is caught.

    Args:
        queue: it writes by its attribute ``_writer``, as queues of multiprocessing do.
        put: sends one object; None: the queue's own.
    """

    def __init__(self, queue: Any, put: Callable[[Any], object] | None = None) -> None:
        self.queue = queue
        writer = queue._writer
        queue._writer = caught = _Caught(writer)
        put = put or getattr(queue, "_send", None) or queue.put
        # It may be the method of the connection itself.
        self.put: Any = caught.send if getattr(put, "__self__", None) is writer else put

    def __call__(self, obj: object) -> bytes:
        caught = self.queue._writer.messages
        self.put(obj)
        message: bytes = caught[get_ident()].pop()
        return message


class _Caught:
    """In the place of a connection that a queue writes to. Each thread gets its own messages."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.messages: dict[int, list[bytes]] = {}

    def send_bytes(self, data: bytes) -> None:
        self.messages.setdefault(get_ident(), []).append(bytes(data))

    def send(self, obj: object) -> None:
        self.send_bytes(dumps(obj))

    def close(self) -> None:
        self.connection.close()

    def __reduce__(self) -> Any:
        return _Caught, (None,)


class Memory:
    """A pool's memory, as an argument of a process that is being started: it has the descriptor there too."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Callable[[Any], Memory], tuple[Any]]:
        from .reduction import DupFd

        return _received, (DupFd(self.fd),)


def _received(dup: Any) -> Memory:
    return Memory(dup.detach())


def serve_vacancy(
    memory: Memory,
    lane: int,
    generation: int,
    parent_pid: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    outqueue: Any = None,
) -> None:
    """The target of a worker process that this package has forked, or had forked: see _hosted.py."""
    from ctypes import addressof

    from ._abi import Vacancy, Worker
    from ._errors import INIT, error
    from ._lib import lib as load

    lib = load()
    worker = Worker()
    worker.size = _size_of(worker)
    vacancy = Vacancy(lane, generation, memory.fd, parent_pid)
    status = lib.pp_worker_attach_to(addressof(vacancy), addressof(worker))
    if status:
        raise error(status)
    _quiet_interrupts()
    try:
        # What tasks print is to be seen though the pool is terminated afterwards, and in whole lines.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    except Exception:
        pass
    if initializer is not None:
        try:
            initializer(*initargs)
        except Exception as e:
            message = describe(e, _own_frames_off(e.__traceback__))
            lib.pp_worker_ready(INIT, message, len(message))
            return
    _work(lib, worker, None if outqueue is None else Sender(outqueue))


def _size_of(structure: Any) -> int:
    from ctypes import sizeof

    return sizeof(structure)


def _quiet_interrupts() -> None:
    """Ctrl-C goes to every process of the terminal; what to do about it is the parent's decision alone.

    The handler does nothing, rather than being SIG_IGN, so that programs that a task starts get the default back (exec resets handlers,
    but not what is ignored). The process was started with the signal blocked, so that none arrives before the handler is there.
    """
    # (Not the module signal: it spends milliseconds on enumerations.)
    from _signal import SIG_UNBLOCK, SIGINT, pthread_sigmask, signal  # type: ignore[import-not-found]

    signal(SIGINT, _nothing)
    pthread_sigmask(SIG_UNBLOCK, {SIGINT})


def _nothing(signum: int, frame: object) -> None:
    pass


def _prepare(init: memoryview, lane: int) -> None:
    """Become the process that the parent described, then run the initializer."""
    from . import context, process, spawn

    size = int.from_bytes(init[:8], "little")
    data, identity, first, parent_pid, parent_name = loads(init[8 : 8 + size])
    data["name"] = f"{data['name']}-{first + lane}"
    process._close_stdin()
    try:
        # What tasks print is to be seen though the pool is terminated afterwards, and in whole lines.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    except Exception:
        pass
    this = context.SpawnProcess.__new__(context.SpawnProcess)
    this._identity = (*identity, first + lane)
    this._name = data["name"]
    this._config = dict(process.current_process()._config)
    this._parent_pid = parent_pid
    this._parent_name = parent_name
    this._popen = None
    this._closed = False
    this._enter()
    # While the main module is imported, the process may not start others: a program without the guard would do so for ever.
    this._inheriting = True
    try:
        spawn.prepare(data)
        initializer, initargs = loads(init[8 + size :])
    finally:
        del this._inheriting
    this._config["daemon"] = True
    if initializer is not None:
        initializer(*initargs)


def _serve(
    lib: Any,
    pylib: Any,
    task: memoryview,
    task_at: int,
    ring: memoryview,
    ring_at: int,
    sender: Sender | None,
) -> None:
    """Take tasks and give results until the pool says that there are no more."""
    from ctypes import c_char
    from itertools import starmap

    from ._errors import CLOSED, INTERRUPTED, NOMEM, TASK, TIMEOUT, error

    wait = lib.pp_worker_next
    step = pylib.pp_worker_step  # keeps the GIL: it only copies a few bytes, and a switch would cost as much
    big_step = lib.pp_worker_step
    heads = ring.cast("Q")
    ring_size = len(ring)
    functions: dict[int, tuple[int, int, Callable[..., Any]]] = {}  # by head: kind, where the argument begins, function
    plain: frozenset[type] = PLAIN if sender is None else frozenset()
    encode = _dumps
    pickle: Callable[[object], bytes] = sender or dumps
    arg: Any
    result: Any
    status = TIMEOUT
    while True:
        if status:
            _flush()  # what has no end of line yet
            while True:
                status = wait(-1, task_at)
                if not status:
                    break
                if status == CLOSED:
                    return
                if status == NOMEM:
                    status = _no_memory(big_step, task, task_at, -1, 0)
                    if not status:
                        break
                    if status == CLOSED:
                        return
                if status not in (INTERRUPTED, TIMEOUT):
                    raise error(status)
        at = task[2] - ring_at
        size = task[1]
        if 0 <= at < ring_size:
            view = ring
            head = heads[at >> 3]
        else:
            view = memoryview((c_char * size).from_address(task[2])).cast("B")
            at = 0
            head = int.from_bytes(view[:8], "little")
        code = 0
        try:
            known = functions.get(head)
            if known is not None:
                kind, skip, function = known
                arg = loads(view[at + skip : at + size])
            else:
                kind = head & 0xFF
                if kind & BOUND:
                    kind -= BOUND
                    function, arg = loads(view[at + 8 : at + size])
                else:
                    skip = 8 + (head >> 8 & 0xFFFF)
                    function = loads(view[at + 8 : at + skip])
                    functions[head] = kind, skip, function
                    arg = loads(view[at + skip : at + size])
            if kind == ITEM:
                result = function(arg)
            elif kind == CALL:
                result = function(*arg[0], **arg[1])
            elif kind == MAP:
                result = list(map(function, arg))
            else:
                result = list(starmap(function, arg))
            if type(result) in plain:
                data = encode(result, 5)
            else:
                try:
                    data = pickle(result)
                except Exception as e:
                    code = UNPICKLABLE
                    data = encode((safe_repr(e), safe_repr(result)), 5)
        except (SystemExit, KeyboardInterrupt) as e:
            if isinstance(e, KeyboardInterrupt):
                raise SystemExit(130) from None
            raise
        except BaseException as e:
            code = RAISED
            data = describe(e, _own_frames_off(e.__traceback__))
        # What the task used must not outlive it while this process waits.
        arg = result = function = view = None  # type: ignore[assignment]
        size = len(data)
        number = task[0]
        status = (step if size < 16384 else big_step)(TASK if code else 0, code, data, size, task_at)
        if status and status != TIMEOUT:
            if status == NOMEM:
                status = _no_memory(big_step, task, task_at, number, size)
            if status == CLOSED:
                return
            if status and status != TIMEOUT:
                raise error(status)


def _no_memory(step: Any, task: memoryview, task_at: int, answered: int, size: int) -> int:
    """Let tasks fail whose bytes, or whose result, do not fit into memory. Returns the status of the last step.

    Args:
        answered: the number of the task whose result of ``size`` bytes was to be sent: if the task at hand is still that one, the
            result does not fit.
    """
    from ._errors import NOMEM, TASK

    while True:
        number = task[0]
        if number == answered:
            text = f"a result of {size} bytes does not fit into shared memory"
        else:
            text = f"a task of {task[1]} bytes does not fit into the memory of the worker"
        data = describe(MemoryError(text), None)
        status: int = step(TASK, RAISED, data, len(data), task_at)
        if status != NOMEM or task[0] == number:
            return status
        answered = -1


def _flush() -> None:
    try:
        sys.stdout.flush()
    except Exception:
        pass  # the program has put something else in its place, or closed it


def _leave() -> None:
    """What a child process does at its end; the interpreter's own end follows."""
    from . import util

    try:
        util._exit_function()
    finally:
        _flush()
