"""One measurement of one contender, in a process of its own.

    contender.py NAME CASE METHOD WORKERS COUNT

prints one number. A case that a contender has no counterpart for is not asked for, see bench.py.

    unordered apply map  microseconds per task, of COUNT tasks, workers started and warmed up
    fresh                milliseconds from before the import of the contender to a pool's first result
    reopen               the same from the opening of a pool, in a program that has had one before; median of COUNT
    process              milliseconds to start a process and join it, in a program that has done so before; median of COUNT
    ballast              process with 1 GiB of memory in the parent / without; medians of COUNT each, in turns
    memory               MiB that an idle worker has for itself, above a bare interpreter
    wide wide-cpu        a task in a pool of WORKERS / in a pool of 2: time, CPU time of parent and workers; medians of turns
"""

# The clock starts before the contender is imported; what is imported here all of them import.
import time

BEGAN = time.perf_counter()

import importlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

import tasks  # noqa: E402


class PoolLike:
    """The stdlib's Pool and what has its interface."""

    def __init__(self, module, method, workers):
        self.pool = importlib.import_module(module).get_context(method).Pool(workers)

    def apply(self, function, argument):
        return self.pool.apply(function, (argument,))

    def unordered(self, function, items):
        return self.pool.imap_unordered(function, items, chunksize=1)

    def map(self, function, items):
        return self.pool.map(function, items)

    def close(self):
        self.pool.terminate()
        self.pool.join()


class ExecutorLike:
    """The executors: their map() has chunks of 1 unless told otherwise; map() here tells the size that Pool.map takes."""

    def __init__(self, module, method, workers):
        self.workers = workers
        if module == "loky":
            self.executor = importlib.import_module("loky").ProcessPoolExecutor(workers)
        else:
            context = importlib.import_module("multiprocessing").get_context(method)
            self.executor = importlib.import_module("concurrent.futures").ProcessPoolExecutor(workers, context)

    def apply(self, function, argument):
        return self.executor.submit(function, argument).result()

    def unordered(self, function, items):
        return self.executor.map(function, items, chunksize=1)

    def map(self, function, items):
        return list(self.executor.map(function, items, chunksize=-(-len(items) // (4 * self.workers))))

    def close(self):
        self.executor.shutdown()


class Joblib:
    def __init__(self, module, _, workers):
        self.joblib = importlib.import_module(module)
        self.workers = workers

    def parallel(self, function, items, batch):
        with self.joblib.Parallel(self.workers, backend="loky", batch_size=batch) as parallel:
            return parallel(self.joblib.delayed(function)(item) for item in items)

    def apply(self, function, argument):
        return self.parallel(function, [argument], 1)[0]

    def unordered(self, function, items):
        return self.parallel(function, items, 1)

    def map(self, function, items):
        return self.parallel(function, items, "auto")

    def close(self):
        importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown()


def opened(name, method, workers):
    kind = {"concurrent.futures": ExecutorLike, "loky": ExecutorLike, "joblib": Joblib}.get(name, PoolLike)
    return kind(name, method, workers)


def median(values):
    return sorted(values)[len(values) // 2]


def warm(pool, workers):
    """Every worker has run something."""
    pids = set()
    deadline = time.perf_counter() + 60
    while len(pids) < workers:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{len(pids)} of {workers} workers")
        pids |= set(pool.unordered(tasks.nap, range(2 * workers)))
    return pids


def fresh(name, method, workers, _):
    pool = opened(name, method, workers)
    if pool.apply(tasks.noop, 1) != 1:
        raise AssertionError
    return (time.perf_counter() - BEGAN) * 1e3, pool.close


def reopen(name, method, workers, count):
    took = []
    for _ in range(count + 1):
        start = time.perf_counter()
        pool = opened(name, method, workers)
        if pool.apply(tasks.noop, 1) != 1:
            raise AssertionError
        took.append((time.perf_counter() - start) * 1e3)
        pool.close()
    return median(took[1:]), None


def starts(context, count):
    took = []
    for _ in range(count):
        start = time.perf_counter()
        child = context.Process(target=tasks.nothing)
        child.start()
        child.join()
        took.append((time.perf_counter() - start) * 1e3)
        if child.exitcode != 0:
            raise AssertionError(child.exitcode)
    return took


def process(name, method, _, count):
    context = importlib.import_module(name).get_context(method)
    return median(starts(context, count + 1)[1:]), None


def ballast(name, method, _, count):
    context = importlib.import_module(name).get_context(method)
    starts(context, 1)
    turns = 5
    without, with_it = [], []
    for _ in range(turns):
        without += starts(context, -(-count // turns))
        memory = bytearray(b"x") * (1 << 30)  # every page written
        with_it += starts(context, -(-count // turns))
        del memory
    return median(with_it) / median(without), None


def memory(name, method, workers, _):
    """What an idle worker has for itself, above what an interpreter has that did nothing: the largest of the workers."""
    import subprocess

    bare = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    bare.stdout.readline()
    base = tasks.private_kib(bare.pid)
    bare.communicate(b"\n")
    pool = opened(name, method, workers)
    pids = warm(pool, workers)
    time.sleep(0.2)  # idle
    return (max(map(tasks.private_kib, pids)) - base) / 1024, pool.close


def cpu_seconds(pids):
    """The CPU time that processes have used so far."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def wide(name, method, workers, count):
    return compare(name, method, workers, count)[0]


def wide_cpu(name, method, workers, count):
    return compare(name, method, workers, count)[1]


def compare(name, method, workers, count):
    """How a task's time, and its CPU time, in a pool of so many workers compare with those in a pool of two."""
    pools = [opened(name, method, size) for size in (workers, 2)]
    pids = [[*warm(pool, size), os.getpid()] for pool, size in zip(pools, (workers, 2))]
    ratios, used = [], [0.0, 0.0]
    for turn in range(10):
        took = [0.0, 0.0]
        for i in (0, 1) if turn % 2 else (1, 0):
            busy, start = cpu_seconds(pids[i]), time.perf_counter()
            if sum(pools[i].unordered(tasks.noop, range(count))) != sum(range(count)):
                raise AssertionError
            took[i] = time.perf_counter() - start
            if turn > 0:  # the first warms up
                used[i] += cpu_seconds(pids[i]) - busy
        if turn > 0:
            ratios.append(took[0] / took[1])

    def close():
        for pool in pools:
            pool.close()

    return (median(ratios), close), (used[0] / used[1], close)


def throughput(name, case, method, workers, count):
    pool = opened(name, method, workers)
    warm(pool, workers)
    items = range(count)
    repeat = 5 if case == "map" else 1  # one is too short to measure
    start = time.perf_counter()
    if case == "unordered":
        total = sum(pool.unordered(tasks.noop, items))
    elif case == "map":
        total = sum(sum(pool.map(tasks.noop, items)) for _ in range(repeat)) // repeat
    else:
        total = sum(pool.apply(tasks.noop, i) for i in items)
    seconds = (time.perf_counter() - start) / repeat
    if total != sum(items):
        raise AssertionError(f"{total}, not {sum(items)}")
    return seconds * 1e6 / count, pool.close


CASES = {
    "fresh": fresh,
    "reopen": reopen,
    "process": process,
    "ballast": ballast,
    "memory": memory,
    "wide": wide,
    "wide-cpu": wide_cpu,
}


def main():
    name, case, method, workers, count = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
    if case in CASES:
        value, close = CASES[case](name, method, workers, count)
    else:
        value, close = throughput(name, case, method, workers, count)
    print(f"{value:.6f}", flush=True)
    if close is not None:
        close()


if __name__ == "__main__":
    main()
