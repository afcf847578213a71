"""What every test under tests/python gets: a warmed-up library, and a look for leaks afterwards."""

from __future__ import annotations

import gc
import glob
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import time

import process_tasks
import pytest

import polyproc

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a shell's background jobs. The programs under test inherit it, and are to get Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The standard library's package, where a test's expectations are tried on it too: not in the short runs, as nothing of it changes here.
STDLIB = pytest.param("stdlib", marks=pytest.mark.slow)


def each_method(*methods: str) -> list:
    """Parameters (package, start method): both packages with each method."""
    return [
        pytest.param((module, method), marks=marks, id=f"{module}-{method}")
        for module, marks in (("stdlib", STDLIB.marks), ("polyproc", ()))
        for method in methods
    ]


def children() -> set[int]:
    """Process ids of this process's children, those that wait to be collected included."""
    found = set()
    for path in glob.glob("/proc/self/task/*/children"):
        try:
            with open(path) as file:
                found.update(map(int, file.read().split()))
        except OSError:
            pass  # the thread has ended
    return found


def descriptors() -> dict[int, str]:
    """Open descriptors and what they are."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the listing's own
    return found


def shared_names() -> set[str]:
    """Names in /dev/shm that may be left from here: not the named queues of the same tests in another process, on another Python."""
    found = {name for name in os.listdir("/dev/shm") if name.startswith(("pp", "polyproc", "psm_"))}
    return {name for name in found if not name.startswith("pp.q.test-") or name.startswith(f"pp.q.test-{os.getpid()}-")}


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """What the first process leaves behind for the next ones is no leak: the engine's descriptors, fork servers, resource tracker."""
    multiprocessing.resource_tracker.ensure_running()
    multiprocessing.forkserver.ensure_running()
    for method in ("spawn", "forkserver"):
        process = polyproc.get_context(method).Process(target=process_tasks.nothing)
        process.start()
        process.join()
        process.close()
    with polyproc.get_context("spawn").Pool(1) as pool:
        pool.apply(process_tasks.nothing)
    pool.join()


@pytest.fixture(autouse=True)
def leaks(warm: None):
    """Fail a test after which there are more children, descriptors or names in /dev/shm than before.

    Counts are compared, as a pool of the whole module may replace a worker meanwhile.
    """
    before = children(), descriptors(), shared_names()
    yield
    deadline = time.monotonic() + 5
    while True:
        polyproc.active_children()  # collects
        after = children(), descriptors(), shared_names()
        grown = [len(now) > len(then) for now, then in zip(after, before)]
        if not any(grown) or time.monotonic() > deadline:
            break
        gc.collect()  # pools of the standard library that were not joined are cycles
        time.sleep(0.02)
    assert not grown[0], f"children left: {after[0] - before[0]}"
    new = {fd: what for fd, what in after[1].items() if before[1].get(fd) != what}
    assert not grown[1], f"descriptors left: {new}"
    assert not grown[2], f"names left in /dev/shm: {after[2] - before[2]}"
