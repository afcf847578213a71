"""Performance: what a pool gains for work of the CPU, and for work of the memory."""

import os
import time
from typing import Any, Callable

import psutil

import polyproc as mp


def collatz(limit: int) -> int:
    """The longest Collatz sequence below limit."""
    longest = 0
    for start in range(1, limit):
        n, steps = start, 0
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            steps += 1
        longest = max(longest, steps)
    return longest


def reverse(size: int) -> int:
    """A list that is built, turned around and thrown away."""
    return list(range(size))[::-1][0]


def compare(name: str, function: Callable[[int], Any], inputs: list[int]) -> None:
    start = time.perf_counter()
    expected = [function(i) for i in inputs]
    sequential = time.perf_counter() - start
    start = time.perf_counter()
    with mp.Pool() as pool:
        results = pool.map(function, inputs)
    parallel = time.perf_counter() - start
    print(
        f"{name}: sequential {sequential:.2f} s, parallel {parallel:.2f} s, speed-up {sequential / parallel:.2f}x, "
        f"the same results: {results == expected}"
    )


def main() -> None:
    print(f"{mp.cpu_count()} CPUs, {psutil.Process(os.getpid()).memory_info().rss >> 20} MiB in use")
    compare("CPU", collatz, [10_000] * 4)
    compare("memory", reverse, [1_000_000] * 4)


if __name__ == "__main__":
    main()
