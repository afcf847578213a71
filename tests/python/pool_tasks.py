"""What the pool tests run in workers. A module of its own, so that workers import it without pytest."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import resource
import signal
import sys
import time


def square(x):
    return x * x


def add(x, y=10):
    return x + y


def nothing(x):
    return None


def close_and_open(path, size):
    """What a task that makes a daemon of its worker does. Its result is large."""
    os.closerange(3, 256)
    _ = [os.open(path, os.O_RDWR) for _ in range(40)]
    return b"y" * size


def identity(x):
    return x


def pid(_=None):
    return os.getpid()


def sleepy_pid(_=None):
    time.sleep(0.02)
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def until(path):
    """Wait until there is such a file."""
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.005)
    return path


def touch_and_sleep(path, seconds):
    with open(path, "w"):
        pass
    time.sleep(seconds)


def sleep_square(x, seconds):
    time.sleep(seconds)
    return x * x


def raises(x):
    raise ValueError(x, "no")  # a comment to be found in the traceback


def raises_if_three(x):
    if x == 3:
        raise ValueError(x)
    return x


def raises_first_and_sleeps(x):
    if x == 0:
        raise ValueError("first")
    time.sleep(0.3)
    return x


def large(n):
    return b"x" * n


def length(data):
    return len(data)


class Weird:
    """An object whose methods are called in a worker."""

    def __init__(self, n):
        self.n = n

    def method(self, x):
        return self.n + x

    def is_me(self, other):
        return other is self

    @staticmethod
    def static(x):
        return -x

    @classmethod
    def create(cls, n):
        return cls(n).n

    def __call__(self, x):
        return self.n * x


class Counter:
    """A callable with state: each task gets a copy as it was when it was submitted."""

    def __init__(self):
        self.calls = 0

    def __call__(self, _):
        self.calls += 1
        return self.calls


# ---- failures


def kill_self(_=None):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def exit_seven(_=None):
    os._exit(7)


def segfault(_=None):
    ctypes.string_at(0)


def system_exit(code):
    sys.exit(code)


def keyboard_interrupt(_=None):
    raise KeyboardInterrupt


class Base(BaseException):
    pass


def base_exception(_=None):
    raise Base("not an Exception")


class TwoArguments(Exception):
    """Its pickle calls it with one argument: loading fails."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a = a
        self.b = b


def raises_two_arguments(_=None):
    raise TwoArguments(1, "b")


class Unpicklable:
    def __reduce__(self):
        raise TypeError("this object has no pickle")

    def __repr__(self):
        return "<Unpicklable>"


class HoldsUnpicklable(Exception):
    def __init__(self, what):
        super().__init__(what, 5)
        self.held = what
        self.kept = "kept"


def raises_holding_unpicklable(_=None):
    raise HoldsUnpicklable(Unpicklable())


def raises_local(_=None):
    class Local(Exception):
        pass

    raise Local("of a local class")


class BadStr(Exception):
    def __str__(self):
        raise RuntimeError("no str")

    __repr__ = __str__


def raises_bad_str(_=None):
    raise BadStr(1)


def returns_unpicklable(_=None):
    return Unpicklable()


def returns_lambda(_=None):
    return lambda: 0


def _fail_to_load(*args):
    raise LookupError("this object cannot be loaded")


class Unloadable:
    """Pickles, but cannot be unpickled anywhere."""

    def __reduce__(self):
        return _fail_to_load, ()


def returns_unloadable(_=None):
    return Unloadable()


def _kill_when_loaded():
    os._exit(9)


class DeadlyToLoad:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return _kill_when_loaded, ()


# ---- initializers

_value = None


def set_value(value):
    global _value
    _value = value


def get_value(_=None):
    return _value


def init_fails(message="bad start"):
    raise ArithmeticError(message)


def init_fails_once(path):
    """Fails in the one process that creates the file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    raise ArithmeticError("once")


def init_exits(code):
    sys.exit(code)


def append_line(path, text):
    with open(path, "a") as file:
        file.write(text + "\n")


def lose_randomly(x):
    """Kills its worker for about one in two hundred."""
    if x % 211 == 5:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return x


def facts(_=None):
    import polyproc

    me = polyproc.current_process()
    return {
        "name": me.name,
        "daemon": me.daemon,
        "parent": polyproc.parent_process().pid,
        "stdin": sys.stdin.read(),
        "sigint_blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "cwd": os.getcwd(),
        "environment": sorted(name for name in os.environ if name.startswith("POLYPROC_")),
        "engine": any("libpolyproc-engine" in line for line in open("/proc/self/maps")),
        "multiprocessing": "multiprocessing" in sys.modules,
    }


def nested(_=None):
    import polyproc

    return polyproc.Pool(1)


def private_kb(_=None):
    total = 0
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1])
    return total


def make_item():
    import test_pool_contract

    return test_pool_contract.Item()


class Marked:
    """Arrives as the text of the way that it went."""

    def __init__(self, text):
        self.text = text


def marked(text, *ways):
    return Marked(" ".join((text, *ways)))


class ReducingQueue:
    """A queue as joblib's pool has: its own pickler, with reducers of its own."""

    def __init__(self, ctx, way):
        self._reader, self._writer = ctx.Pipe(duplex=False)
        self.way = way
        self._send = self.send if way else self._writer.send

    def send(self, obj):
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer)
        pickler.dispatch_table = {Marked: lambda it: (marked, (it.text, self.way))}
        pickler.dump(obj)
        self._writer.send_bytes(buffer.getvalue())

    def put(self, obj):
        self._send(obj)

    def __getstate__(self):
        return self._reader, self._writer, self.way

    def __setstate__(self, state):
        self._reader, self._writer, self.way = state
        self._send = self.send if self.way else self._writer.send


def add_there(it):
    if isinstance(it, Marked):
        return Marked(it.text + " there")
    raise LookupError(it)


def limit_memory(size):
    """Leave the worker ``size`` bytes of address space more than it has."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, resource.RLIM_INFINITY))


def end_worker():
    os.kill(os.getpid(), signal.SIGKILL)


class EndsWorker:
    """Something whose unpickling ends the process."""

    def __reduce__(self):
        return end_worker, ()


def wait_for(event):
    event.wait()
