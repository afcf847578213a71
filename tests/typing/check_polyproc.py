"""What type checkers must find out about a program, and what they must refuse: mypy and pyright read this file, nobody runs it.

test_typing.py gives them the same text about the standard library's package too, so that typeshed's stubs are the measure.
An ignore that is not needed is an error.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

import polyproc as mp
from polyproc import pool, queues, synchronize
from polyproc.connection import Connection
from polyproc.context import BaseContext, DefaultContext, ForkContext, ForkServerContext, SpawnContext, SpawnProcess
from polyproc.process import BaseProcess


def length(text: str) -> int:
    return len(text)


def add(a: int, b: int) -> float:
    return a + b


# ---- objects

assert_type(mp.Lock(), synchronize.Lock)
assert_type(mp.RLock(), synchronize.RLock)
assert_type(mp.Semaphore(2), synchronize.Semaphore)
assert_type(mp.BoundedSemaphore(2), synchronize.BoundedSemaphore)
assert_type(mp.Condition(), synchronize.Condition)
assert_type(mp.Condition(mp.Lock()), synchronize.Condition)
assert_type(mp.Event(), synchronize.Event)
assert_type(mp.Barrier(2, timeout=1.5), synchronize.Barrier)
assert_type(mp.Lock().acquire(timeout=0.5), bool)
assert_type(mp.Event().wait(1), bool)
mp.Semaphore("2")  # type: ignore[arg-type]
mp.Condition(3)  # type: ignore[arg-type]
mp.Lock().no_such_method()  # type: ignore[attr-defined]

with mp.Lock():
    pass

# ---- queues

numbers: queues.Queue[int] = mp.Queue()
numbers.put(3)
numbers.put("3")  # type: ignore[arg-type]
assert_type(numbers.get(timeout=1), int)
assert_type(numbers.get_nowait(), int)
assert_type(numbers.qsize(), int)
items: queues.JoinableQueue[str] = mp.JoinableQueue(3)
assert_type(items.get(), str)
words: queues.SimpleQueue[str] = mp.SimpleQueue()
words.put(3)  # type: ignore[arg-type]
assert_type(words.get(), str)


def consume(jobs: queues.JoinableQueue[bytes]) -> bytes:
    jobs.task_done()
    return jobs.get()


# ---- pools

with mp.Pool(2) as workers:
    assert_type(workers, pool.Pool)
    assert_type(workers.map(length, ["a"]), list[int])
    assert_type(workers.starmap(add, [(1, 2)]), list[float])
    assert_type(workers.apply(length, ("a",)), int)
    assert_type(workers.apply_async(length, ("a",)).get(1), int)
    assert_type(workers.map_async(length, ["a"]).get(), list[int])
    assert_type(workers.starmap_async(add, [(1, 2)]).get(), list[float])
    assert_type(next(workers.imap(length, ["a"])), int)
    assert_type(workers.imap_unordered(length, ["a"]).next(timeout=1), int)
    assert_type(list(workers.imap(length, ["a"], chunksize=3)), list[int])
    workers.map(length, [1])  # type: ignore[arg-type]
    workers.imap(length, 3)  # type: ignore[arg-type]
    workers.map("length", ["a"])  # type: ignore[arg-type]
    workers.no_such_method()  # type: ignore[attr-defined]


def wait_for(result: pool.AsyncResult[int]) -> int:
    return result.get()


wait_for(workers.apply_async(length, ("a",)))
wait_for(workers.apply_async(str, ("a",)))  # type: ignore[arg-type]
assert_type(pool.ThreadPool(2).map(length, ["a"]), list[int])

# ---- processes and contexts

process = mp.Process(target=length, args=("a",), name="p", daemon=True)
process.start()
process.join(1.5)
assert_type(process.exitcode, "int | None")
assert_type(process.is_alive(), bool)
assert_type(mp.current_process(), BaseProcess)
assert_type(mp.parent_process(), "BaseProcess | None")
assert_type(mp.active_children(), list[BaseProcess])
assert_type(mp.cpu_count(), int)
mp.Process(target=3)  # type: ignore[arg-type]
mp.Process(args=3)  # type: ignore[arg-type]

assert_type(mp.get_context(), DefaultContext)
assert_type(mp.get_context("spawn"), SpawnContext)
assert_type(mp.get_context("fork"), ForkContext)
assert_type(mp.get_context("forkserver"), ForkServerContext)
assert_type(mp.get_context("spawn").Process(), SpawnProcess)
assert_type(mp.get_context("fork").Lock(), synchronize.Lock)
assert_type(mp.get_context("spawn").Queue(), queues.Queue[Any])
assert_type(mp.get_start_method(), str)
assert_type(mp.get_all_start_methods(), list[str])
mp.set_start_method("spawn", force=True)
print(mp.no_such_name)  # type: ignore[attr-defined]
mp.get_context(3)  # type: ignore[call-overload]


class Mine(mp.Process):
    def run(self) -> None:
        assert_type(self.name, str)


def any_context(ctx: BaseContext) -> None:
    assert_type(ctx.Event(), synchronize.Event)


# ---- pipes

here, there = mp.Pipe(duplex=False)
there.send({"any": "thing"})
assert_type(here.poll(1.0), bool)
assert_type(here.recv_bytes(), bytes)
assert_type(here.fileno(), int)
here.send_bytes("text")  # type: ignore[arg-type]


def ask(end: Connection[int, str]) -> str:
    end.send(1)
    end.send("1")  # type: ignore[arg-type]
    assert_type(end.recv(), str)
    with end as same:
        assert_type(same, Connection[int, str])
    return end.recv()


ask(here)
ask(there)

try:
    pass
except mp.TimeoutError:
    pass
except (mp.ProcessError, mp.AuthenticationError, mp.BufferTooShort):
    pass
