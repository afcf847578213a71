"""What the children of test_synchronize.py run; importable by spawned ones."""

from __future__ import annotations

import os
import signal
import time

import polyproc


def die_holding(lock, held):
    lock.acquire()
    held.set()
    signal.pause()


def die_recovering(lock, held):
    lock.recover()
    held.set()
    signal.pause()


def is_told(lock, told):
    try:
        lock.acquire()
    except polyproc.OwnerDiedError:
        told.set()


def release_other(lock):
    lock.release()


def locked_increment(lock, counter, n):
    """counter: a file of 8 bytes."""
    for _ in range(n):
        with lock:
            fd = os.open(counter, os.O_RDWR)
            value = int.from_bytes(os.pread(fd, 8, 0), "little")
            os.pwrite(fd, (value + 1).to_bytes(8, "little"), 0)
            os.close(fd)


def wait_and_set(event, answer):
    assert event.wait(30)
    answer.set()


def wait_notified(condition, ready, woken, timeout=30):
    with condition:
        with condition:
            ready.release()
            if condition.wait(timeout):
                woken.release()


def pass_barrier(barrier, passed, n=1):
    for _ in range(n):
        barrier.wait(30)
        passed.release()


def break_barrier(barrier, broken):
    try:
        barrier.wait(30)
    except BrokenBarrierError:
        broken.release()


def touch(*objects):
    """Use each object; returns what they are."""
    names = []
    for each in objects:
        name = type(each).__name__
        if name == "Event":
            each.set()
        elif name == "Barrier":
            assert each.parties == 2
        elif name == "Condition":
            with each:
                each.notify_all()
        else:
            with each:
                pass
        names.append(name)
    return names


def take(semaphore, taken):
    semaphore.acquire()
    taken.set()
    time.sleep(60)


from threading import BrokenBarrierError  # noqa: E402
