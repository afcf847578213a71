"""Kill processes at random that put into and take from one queue, and account for every item.

    python tests/python/torture_queue.py --seconds 60 [--method fork] [--seed N]

Producers say over a queue of their own, item by item, what they have put; items are small and large and some carry a queue in which
there is more. Nothing that was put is lost but what a consumer had taken and not reported when it was killed, at most one each; nothing
comes twice; each item is whole. Prints what happened and exits with 0, or with 1 and the first violation.
"""

from __future__ import annotations

import argparse
import collections
import mmap
import os
import queue as threads_queue
import random
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
if "polyproc" not in sys.modules:
    sys.path[:0] = [os.path.join(HERE, "..", "..", "bindings", "python", "src"), HERE]

import polyproc  # noqa: E402

PRODUCERS = CONSUMERS = 4
# Nothing may stand still for so many seconds.
PATIENCE = 30


def item(life, number):
    size = (life * 7919 + number * 104729) % 1000
    body = b"x" * (size * 300 if size > 980 else size)
    if number % 50 == 49:
        inner = polyproc.SimpleQueue()
        inner.put(body)
        return life, number, inner
    return life, number, body


def whole(life, number, body):
    if isinstance(body, polyproc.queues.SimpleQueue):
        body = body.get()
    size = (life * 7919 + number * 104729) % 1000
    return body == b"x" * (size * 300 if size > 980 else size)


def produce(queue, acknowledged, life):
    """acknowledged: a file with 8 bytes per producer, which outlives it: how many items it knows it has put.

    Told by one store of 8 bytes: struct.pack_into writes zeros first, and who is killed between has told of nothing.
    """
    with open(acknowledged, "r+b") as file, mmap.mmap(file.fileno(), 0) as table, memoryview(table).cast("Q") as told:
        number = 0
        while True:
            queue.put(item(life, number))
            number += 1
            told[life] = number


def consume(queue, reports):
    while True:
        life, number, body = queue.get()
        reports.put((life, number, whole(life, number, body)))


def main() -> int:
    import polyproc.queues

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--method", default="fork")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(f"torture_queue: seed {options.seed}, {options.method}", flush=True)

    context = polyproc.get_context(options.method)
    queue, reports = context.Queue(200), context.Queue()
    most_lives = 20_000
    path = f"/dev/shm/torture-queue-{os.getpid()}"
    with open(path, "wb") as file:
        file.truncate(8 * most_lives)
    try:
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as table, memoryview(table).cast("Q") as told:
            return torture(options, rng, context, queue, reports, path, told)
    finally:
        os.unlink(path)


def torture(options, rng, context, queue, reports, path, told) -> int:
    life = kills = consumer_kills = 0

    def start(place):
        nonlocal life
        if place < PRODUCERS:
            process = context.Process(target=produce, args=(queue, path, life), daemon=True)
            life += 1
        else:
            process = context.Process(target=consume, args=(queue, reports), daemon=True)
        process.start()
        return process

    processes = [start(place) for place in range(PRODUCERS + CONSUMERS)]
    seen: collections.Counter[tuple[int, int]] = collections.Counter()
    moved = time.monotonic()

    def take(timeout):
        nonlocal moved
        try:
            who, number, good = reports.get(timeout=timeout)
        except threads_queue.Empty:
            if time.monotonic() - moved > PATIENCE:
                sys.exit("nothing moves")
            return False
        if not good:
            sys.exit(f"item {number} of producer {who} is not what was put")
        seen[who, number] += 1
        moved = time.monotonic()
        return True

    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        pause = time.monotonic() + rng.random() * 0.03
        while time.monotonic() < pause:
            take(0.002)
        place = rng.randrange(len(processes))
        process = processes[place]
        process.kill()
        process.join()
        if process.exitcode != -9:
            sys.exit(f"a process ended by itself: {process.exitcode}")
        process.close()
        kills += 1
        consumer_kills += place >= PRODUCERS
        processes[place] = start(place)
    for process in processes[:PRODUCERS]:
        process.kill()
        process.join()
    kills += PRODUCERS
    while not queue.empty() or take(1.0):
        take(0.01)
    for process in processes[PRODUCERS:]:
        process.kill()
        process.join()
    while take(0):
        pass
    acknowledged = list(told[:life])
    lost = sum((i, n) not in seen for i in range(life) for n in range(acknowledged[i]))
    twice = sum(times - 1 for times in seen.values())
    unknown = sum(n >= acknowledged[i] for i, n in seen)
    print(
        f"{kills} kills, {sum(acknowledged)} items acknowledged, {len(seen)} taken, {unknown} put by producers that did not live to"
        f" know, {lost} lost with their getters, {twice} twice"
    )
    if lost > consumer_kills + CONSUMERS:
        sys.exit(f"lost: {lost}, by {consumer_kills + CONSUMERS} consumers that were killed")
    if twice:
        sys.exit(f"came twice: {[which for which, times in seen.items() if times > 1][:10]}")
    if max(collections.Counter(i for i, n in seen if n >= acknowledged[i]).values(), default=0) > 1:
        sys.exit(f"more than one item of a producer that it did not know it had put: {unknown} in all, of {life} producers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
