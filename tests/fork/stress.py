"""Fork all the time, from the main thread and from others, while threads are inside calls of the library: three generations deep.

    python tests/fork/stress.py --forks 300

Every child finds that the pools of its parent are not its own, opens one by one of the start methods, has 64 MiB of results pass
through the engine, gets Ctrl-C, and ends. Exits with 0, or with 1 and what was wrong; a child that hangs is shown as /proc and
faulthandler have it. Nothing may be left over: no process, no thread, no descriptor, no memory.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "..", "bindings", "python", "src"), HERE]

import polyproc  # noqa: E402
from polyproc._lib import lib  # noqa: E402

GENERATIONS = 3
FORKERS = 3
# How long a family of three may take, in seconds.
PATIENCE = 120
# How much more memory the parent may have in use at the end, in MiB: the heaps of its threads differ from run to run.
GROWTH = 64
ERR_HANDLE = -2
ERR_FORKED = -18


def twice(x):
    return 2 * x


def blob(n):
    return b"b" * n


def sleep(seconds):
    time.sleep(seconds)


def show(path):
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError as e:
        return f"({e.strerror})"


def prints_stack(pid):
    """Whether the process, one of ours or a program that it started, has faulthandler's handler for SIGUSR1."""
    for line in show(f"/proc/{pid}/status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def dump(group):
    """Print what the system tells of the processes of a group, and of their threads, and where they are in Python."""
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or os.getpgid(int(name)) != group:
                continue
            if prints_stack(name):
                os.kill(int(name), signal.SIGUSR1)
                time.sleep(0.1)  # so that the texts do not mix
            print(" ", show(f"/proc/{name}/stat"), file=sys.stderr)
            for task in os.listdir(f"/proc/{name}/task"):
                at = f"/proc/{name}/task/{task}"
                stack = show(at + "/stack").replace("\n", " ")
                print("   ", task, show(at + "/comm"), show(at + "/wchan"), stack, file=sys.stderr)
        except OSError:
            continue  # it has ended
    sys.stderr.flush()


def collect(pid, seconds):
    """Wait for the end of a child; one that does not end ends the test."""
    end = time.monotonic() + seconds
    fd = os.pidfd_open(pid)
    try:
        while not select.select([fd], [], [], max(0, end - time.monotonic()))[0]:
            if time.monotonic() > end:
                print(f"process {pid}, child of {os.getpid()}, does not end:", file=sys.stderr)
                dump(os.getpgrp())
                os._exit(1)
    finally:
        os.close(fd)
    return os.waitpid(pid, 0)[1]


def fork():
    """os.fork(), although other threads run: that is what this is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Callers:
    """Threads that are always inside a call of the library.

    Args:
        kinds: for each thread, a function and its arguments, which it calls again and again.
    """

    def __init__(self, *kinds):
        self.over = False
        self.calls = 0
        self.threads = [threading.Thread(target=self.run, args=kind, daemon=True) for kind in kinds]
        for thread in self.threads:
            thread.start()

    def run(self, call, *args):
        try:
            while not self.over:
                call(*args)
                self.calls += 1
        except BaseException:
            traceback.print_exc()
            dump(os.getpgrp())
            os._exit(1)

    def join(self):
        self.over = True
        for thread in self.threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                print(f"a thread of {os.getpid()} does not come back", file=sys.stderr)
                dump(os.getpgrp())
                os._exit(1)


def mapping(pool):
    assert pool.map(twice, range(100)) == [2 * i for i in range(100)]


def applying(pool):
    assert pool.apply(twice, (21,)) == 42
    assert pool.apply_async(blob, (100_000,)).get() == b"b" * 100_000


def iterating(pool):
    assert sorted(pool.imap_unordered(twice, range(30))) == [2 * i for i in range(30)]


def starting(ctx):
    process = ctx.Process(target=twice, args=(1,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    process.join(60)
    assert process.exitcode == 0, process.exitcode


def opening(ctx):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ctx.Pool(1)
    with pool:
        mapping(pool)


def erring():
    library = lib()
    assert library.pp_pool_close(123456) == ERR_HANDLE
    assert library.pp_last_error()


def handle_of(pool):
    return pool._core.handle


def refused(call, *args, **named):
    try:
        call(*args, **named)
    except RuntimeError as e:
        assert "forked" in str(e), e
        return
    raise AssertionError("a pool of another process takes calls")


def strange(pools):
    """The pools of the parent answer, in whatever state the parent's threads have left them."""
    library = lib()
    for pool in pools:
        refused(pool.map, twice, [1])
        refused(pool.apply_async, twice, (1,), callback=print)
        refused(pool.imap, twice, [1])
        pool.close()
        refused(pool.join)
        pool.terminate()
        handle = handle_of(pool)
        assert library.pp_pool_close(handle) == ERR_FORKED
        assert library.pp_pool_free(handle) == ERR_FORKED
        assert library.pp_pool_info(handle, None, None, 0, None) == ERR_FORKED


def interrupted(pool):
    """Ctrl-C ends a wait in one KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    me = threading.main_thread().ident
    timer = threading.Timer(0.02, signal.pthread_kill, (me, signal.SIGINT))
    result = pool.apply_async(sleep, (1000,))
    began = time.monotonic()
    try:
        timer.start()
        result.get(60)
        raise AssertionError("no KeyboardInterrupt")
    except KeyboardInterrupt:
        assert time.monotonic() - began < 30
    timer.join()
    signal.signal(signal.SIGINT, before)


def notices_signals(by_main):
    """CPython 3.13 does not: a child that was forked by another thread than the main one runs no handlers between bytecodes."""
    return by_main or sys.version_info[:2] != (3, 13)


METHODS = ("spawn", "fork", "forkserver")


def live(generation, number, inherited, by_main):
    """The life of a child."""
    strange(inherited)
    method = METHODS[(number + generation) % len(METHODS)]
    ctx = polyproc.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # this process has one thread: nothing is to be said
        pool = ctx.Pool(2)
    mapping(pool)
    size = 32 << 10
    assert sum(len(b) for b in pool.imap_unordered(blob, [size] * ((64 << 20) // size))) == 64 << 20
    if notices_signals(by_main):
        interrupted(pool)
    pool.terminate()
    pool.join()
    starting(ctx)
    if generation == GENERATIONS:
        return
    own = polyproc.get_context("spawn").Pool(1), polyproc.get_context("fork").Pool(1)
    callers = Callers((mapping, own[0]), (applying, own[1]))
    while callers.calls < 4:
        time.sleep(0.001)
    child(generation + 1, number, own, by_main)
    callers.join()
    for p in own:
        p.close()
        p.join()


def child(generation, number, pools, by_main):
    """Fork one and wait for its end."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            live(generation, number, pools, by_main)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = collect(pid, PATIENCE / generation)
    if status != 0:
        print(f"family {number}, generation {generation}: status {status:#x}", file=sys.stderr)
        os._exit(1)


def descriptors():
    return sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in os.listdir("/proc/self/fd") if alive(fd))


def alive(fd):
    try:
        os.fstat(int(fd))
        return True
    except OSError:
        return False


def run(families):
    spawn, forked, served = map(polyproc.get_context, METHODS)
    pools = spawn.Pool(2), forked.Pool(2)
    callers = Callers(
        (mapping, pools[0]),
        (applying, pools[1]),
        (iterating, pools[0]),
        (starting, forked),
        (starting, spawn),
        (starting, served),
        (opening, forked),
        (erring,),
    )
    numbers = iter(range(families))
    lock = threading.Lock()

    def forking():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            child(1, number, pools, threading.current_thread() is threading.main_thread())

    # In a forked child the thread that forked is the main thread.
    forkers = [threading.Thread(target=forking) for _ in range(FORKERS - 1)]
    for thread in forkers:
        thread.start()
    forking()
    for thread in forkers:
        thread.join()
    callers.join()
    for pool in pools:
        pool.close()
        pool.join()
    return callers.calls


def resident():
    """The memory that this process has in use, in MiB."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def belongings():
    """What this process has that a run must not add to. (The fork server stays, and is nobody's leak.)"""
    with open(f"/proc/self/task/{os.getpid()}/children") as f:
        children = len(f.read().split())
    return {"descriptors": descriptors(), "threads": threading.active_count(), "children": children}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--forks", type=int, default=60)
    families = (parser.parse_args().forks + GENERATIONS - 1) // GENERATIONS
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    began = time.monotonic()
    run(FORKERS)  # what stays for good is there after this
    before, memory = belongings(), resident()
    calls = run(families)
    after, growth = belongings(), resident() - memory
    if after != before or growth > GROWTH:
        print(f"{before}, {memory} MiB before; {after}, {growth} MiB more after", file=sys.stderr)
        return 1
    print(
        f"{sys.version.split()[0]}: {families * GENERATIONS} forks in {time.monotonic() - began:.0f} s, "
        f"{calls} calls by other threads meanwhile, {memory} + {growth} MiB resident"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
