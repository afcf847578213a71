"""Kill workers at random while tasks run, and account for every task: one outcome each, a result or WorkerLost, and the right one.

    python tests/python/torture_pool.py --seconds 60 --workers 4 [--seed N]

Prints what happened and exits with 0, or with 1 and the first violation. Nothing may be left over: no process, no open descriptor.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
if "polyproc" not in sys.modules:
    sys.path[:0] = [os.path.join(HERE, "..", "..", "bindings", "python", "src"), HERE]

import polyproc  # noqa: E402

# Every outcome must come within this many seconds of the one before.
PATIENCE = 30


def work(x):
    """Mostly nothing; now and then some real work, a large result, or an exception."""
    kind = x % 100
    if kind == 1:
        return x, b"x" * (x % 300_000)
    if kind == 2:
        raise ValueError(x)
    if kind == 3:
        time.sleep(0.002)
    return x, b""


def outcome_is_right(x, value):
    if isinstance(value, polyproc.WorkerLost):
        return value.exitcode == -signal.SIGKILL and value.pid
    if x % 100 == 2:
        return isinstance(value, ValueError) and value.args == (x,)
    return value == (x, b"x" * (x % 300_000) if x % 100 == 1 else b"")


class Killer(threading.Thread):
    """Kills a random worker every few milliseconds."""

    def __init__(self, pool, seed):
        super().__init__(daemon=True)
        self.pool = pool
        self.random = random.Random(seed)
        self.pause = threading.Event()
        self.kills = 0

    def run(self):
        while not self.pause.wait(self.random.uniform(0.002, 0.1)):
            workers = self.pool._pool
            if workers:
                self.random.choice(workers).kill()
                self.kills += 1

    def stop(self):
        self.pause.set()
        self.join()


def one_by_one(pool, n):
    """imap: outcomes in order."""
    it = pool.imap(work, range(n))
    for x in range(n):
        try:
            yield x, it.next(PATIENCE)
        except polyproc.TimeoutError:
            raise
        except Exception as e:
            yield x, e


def results(pool, n):
    """apply_async: each has an object of its own; now and then a large argument."""
    pending = [pool.apply_async(work, (x,)) for x in range(n)]
    for x, result in enumerate(pending):
        try:
            yield x, result.get(PATIENCE)
        except polyproc.TimeoutError:
            raise
        except Exception as e:
            yield x, e


def called_back(pool, n):
    """apply_async with callbacks: exactly one call for each."""
    outcomes = {}
    done = threading.Semaphore(0)

    def note(x):
        def call(value):
            outcomes.setdefault(x, []).append(value)
            done.release()

        return call

    for x in range(n):
        call = note(x)
        pool.apply_async(work, (x,), callback=call, error_callback=call)
    for _ in range(n):
        if not done.acquire(timeout=PATIENCE):
            raise polyproc.TimeoutError("a callback is missing")
    for x in range(n):
        if len(outcomes[x]) != 1:
            raise AssertionError(f"task {x} was called back {len(outcomes[x])} times")
        yield x, outcomes[x][0]


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--batch", type=int, default=5000, help="tasks of one round")
    options.add_argument("--seed", type=int, default=None)
    options = options.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}")
    chosen = random.Random(seed)

    fds = None
    end = time.monotonic() + options.seconds
    tasks = lost = failed = kills = rounds = 0
    while time.monotonic() < end:
        pool = polyproc.Pool(options.workers, maxtasksperchild=chosen.choice([None, None, 1000]))
        killer = Killer(pool, chosen.random())
        killer.start()
        try:
            for method in (one_by_one, results, called_back):
                seen = 0
                for x, value in method(pool, options.batch):
                    if not outcome_is_right(x, value):
                        print(f"{method.__name__}: task {x} ended as {value!r:.200}")
                        return 1
                    seen += 1
                    lost += isinstance(value, polyproc.WorkerLost)
                    failed += isinstance(value, ValueError)
                if seen != options.batch:
                    print(f"{method.__name__}: {seen} outcomes of {options.batch} tasks")
                    return 1
                tasks += seen
        finally:
            killer.stop()
        kills += killer.kills
        if lost > kills:
            print(f"{lost} tasks lost to {kills} kills")
            return 1
        if chosen.random() < 0.5:
            pool.close()
        else:
            pool.terminate()
        pool.join()
        workers = pool._pool
        del pool, killer
        gc.collect()
        if workers:
            print(f"workers left: {workers}")
            return 1
        rounds += 1
        now = len(os.listdir("/proc/self/fd"))
        if fds is None:
            fds = now
        elif now > fds:
            print(f"descriptors leak: {fds} after the first round, {now} now")
            return 1
    print(f"{tasks} tasks in {rounds} rounds, {kills} kills: {lost} lost, {failed} raised, {tasks - lost - failed} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
