"""Who waits for whom, so that a program does not wait for ever for a message that nobody is left to send.

In the standard library a receiver waits for ever if somebody still holds the other end, be it the receiver itself, or a parent that has
forgotten to close it and waits for the receiver's end. Here a receiver that has waited for a while looks for a proof that nobody can send
(pp_pipe_deserted). What the library cannot know, and what this module tells it (pp_waiting), is that all Python threads of a process
wait: each in a join() without a limit of time, or in recv(); that there is no other thread, of a native library, which could call
Python at any time; and that no signal handler will run that could do something else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import os
import sys
from _thread import get_ident

from . import _abi, process
from ._lib import lib, pylib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What each waiting thread waits for: (end of a pipe, 0) or (0, process id).
_waiting: dict[int, tuple[int, int]] = {}
# Whether the family was told that all wait.
_told = False


def _thread_states() -> int:
    """How many threads of this process may run Python: of every interpreter, and those that have not begun yet. -1: not known."""
    if sys.implementation.name != "cpython":
        return -1
    count = 0
    interpreter = _Head()
    while interpreter:
        state = _ThreadHead(interpreter)
        while state:
            count += 1
            state = _Next(state)
        interpreter = _InterpreterNext(interpreter)
    return count


if sys.implementation.name == "cpython":
    _pointers = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    _Head = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyInterpreterState_Head", ctypes.pythonapi))
    _InterpreterNext = _pointers(("PyInterpreterState_Next", ctypes.pythonapi))
    _ThreadHead = _pointers(("PyInterpreterState_ThreadHead", ctypes.pythonapi))
    _Next = _pointers(("PyThreadState_Next", ctypes.pythonapi))


def _handled() -> bool:
    """Whether a signal would run a function of the program: any but the handler of SIGINT that Python begins with."""
    for number in range(1, _signal.NSIG):
        try:
            handler = _signal.getsignal(number)
        except ValueError:
            continue
        if callable(handler) and not (number == _signal.SIGINT and handler is _signal.default_int_handler):
            return True
    return False


# What threads of the library that never send anything are called.
_OWN_THREADS = (b"pp-watch\n", b"pp-engine\n", b"pp-queue\n", b"pp-spare\n")


def _only_these(waiting: int) -> bool:
    """Whether the process has no threads but so many that wait, and the library's own.

    A thread of a native library has no thread state until it calls Python, and may do so at any time.
    """
    others = -waiting
    try:
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/comm", "rb", buffering=0) as file:
                    others += file.read(32) not in _OWN_THREADS
            except FileNotFoundError:  # it has ended meanwhile
                pass
    except OSError:
        return False
    return others <= 0


def tell() -> bool:
    """Tell the family what this process waits for, if every thread does; returns whether it does."""
    global _told
    waits = set(_waiting.values())
    if len(_waiting) == _thread_states() and len(waits) <= 6 and not _handled() and _only_these(len(_waiting)):
        array = (_abi.Wait * len(waits))()
        for wait, (end, pid) in zip(array, waits):
            wait.end, wait.pid = end, pid
        _told = True
        if pylib().pp_waiting(array, len(waits)) == 0:
            return True
    _withdraw()
    return False


def _withdraw() -> None:
    global _told
    if _told:
        _told = False
        pylib().pp_waiting(None, 0)


def enter(end: int, pid: int) -> None:
    """The calling thread is about to wait."""
    _waiting[get_ident()] = (end, pid)


def leave() -> None:
    """It does not wait any more."""
    _withdraw()
    _waiting.pop(get_ident(), None)


def deserted(end: int) -> bool:
    """Whether nothing will ever come to this end. The calling thread has entered."""
    return tell() and lib().pp_pipe_deserted(end) == 0


def _join(popen: Any) -> int | None:
    """popen.wait(), noted. Now and then it is told anew: another thread may have ended, and so made this process one where all wait."""
    code: int | None = None
    enter(0, popen.pid)
    try:
        while code is None:
            tell()
            code = popen.wait(1.0)
            if code is None:
                code = popen.poll()  # a grandchild may keep what it waited for
    finally:
        leave()
    return code


def _after_fork() -> None:
    global _told
    _told = False
    _waiting.clear()


os.register_at_fork(after_in_child=_after_fork)
process._join = _join
