"""Processes: one, then three at the same time, each with arguments of its own."""

import os
import time

import polyproc as mp


def patrol(station: str, seconds: float, headquarters: int) -> None:
    own = os.getpid() != headquarters and os.getppid() == headquarters
    print(f"{station}: on the way, in a process of its own: {own}", flush=True)
    time.sleep(seconds)
    print(f"{station}: back", flush=True)


def main() -> None:
    alone = mp.Process(target=patrol, args=("north", 0.2), kwargs={"headquarters": os.getpid()})
    alone.start()
    alone.join()
    print(f"{alone.name}: exit code {alone.exitcode}", flush=True)

    start = time.perf_counter()
    three = [mp.Process(target=patrol, args=(f"gate {i}", 1.0, os.getpid()), name=f"patrol-{i}") for i in range(3)]
    for process in three:
        process.start()
    pids = {process.pid for process in three}
    for process in three:
        process.join()
    together = time.perf_counter() - start < 2.8  # one after the other: three seconds and more
    print(f"{len(pids)} pids, exit codes {[p.exitcode for p in three]}, at the same time: {together}")


if __name__ == "__main__":
    main()
