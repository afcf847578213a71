"""One measurement of one contender, in a process of its own.

    contender.py NAME CASE WORKERS TASKS

prints one number: microseconds per task (unordered, apply, map), milliseconds (startup, process) or MiB (memory). A case that a
contender has no counterpart for is not asked for, see bench.py.
"""

# The clock starts before the contender is imported; what is imported here all of them import.
import time

BEGAN = time.perf_counter()

import importlib  # noqa: E402
import sys  # noqa: E402

import tasks  # noqa: E402


class PoolLike:
    """The stdlib's Pool and what has its interface."""

    def __init__(self, module, workers):
        self.pool = importlib.import_module(module).get_context("spawn").Pool(workers)

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

    def __init__(self, module, workers):
        self.workers = workers
        if module == "loky":
            self.executor = importlib.import_module("loky").ProcessPoolExecutor(workers)
        else:
            context = importlib.import_module("multiprocessing").get_context("spawn")
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
    def __init__(self, module, workers):
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


def opened(name, workers):
    kind = {"concurrent.futures": ExecutorLike, "loky": ExecutorLike, "joblib": Joblib}.get(name, PoolLike)
    return kind(name, workers)


def warm(pool, workers):
    """Every worker has run something."""
    pids = set()
    deadline = time.perf_counter() + 60
    while len(pids) < workers:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{len(pids)} of {workers} workers")
        pids |= set(pool.unordered(tasks.nap, range(2 * workers)))
    return pids


def startup(name, workers, _):
    pool = opened(name, workers)
    if pool.apply(tasks.noop, 1) != 1:
        raise AssertionError
    return (time.perf_counter() - BEGAN) * 1e3, pool.close


def process(name, _, count):
    module = importlib.import_module(name)
    context = module.get_context("spawn")
    start = time.perf_counter()
    for _ in range(count):
        child = context.Process(target=tasks.nothing)
        child.start()
        child.join()
        if child.exitcode != 0:
            raise AssertionError(child.exitcode)
    return (time.perf_counter() - start) * 1e3 / count, None


def memory(name, workers, _):
    """What an idle worker has for itself, above what an interpreter has that did nothing: the largest of the workers."""
    import subprocess

    bare = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    bare.stdout.readline()
    base = tasks.private_kib(bare.pid)
    bare.communicate(b"\n")
    pool = opened(name, workers)
    pids = warm(pool, workers)
    time.sleep(0.2)  # idle
    return (max(map(tasks.private_kib, pids)) - base) / 1024, pool.close


def throughput(name, case, workers, count):
    pool = opened(name, workers)
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


def main():
    name, case, workers, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if case in ("startup", "process", "memory"):
        value, close = globals()[case](name, workers, count)
    else:
        value, close = throughput(name, case, workers, count)
    print(f"{value:.6f}", flush=True)
    if close is not None:
        close()


if __name__ == "__main__":
    main()
