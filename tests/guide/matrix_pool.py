"""A pool for work on numpy arrays: what comes back is what one process computes."""

import time

import numpy as np

import polyproc as mp


def trace_of_product(size: int) -> "tuple[int, float]":
    rng = np.random.default_rng(size)  # the same matrices wherever this runs
    a, b = rng.random((size, size)), rng.random((size, size))
    return size, round(float(np.trace(a @ b)), 6)


def main() -> None:
    sizes = [50, 150, 250, 350, 450]
    start = time.perf_counter()
    expected = [trace_of_product(size) for size in sizes]
    sequential = time.perf_counter() - start

    start = time.perf_counter()
    with mp.Pool() as pool:
        results = pool.map(trace_of_product, sizes)
    parallel = time.perf_counter() - start

    print(f"sizes {[size for size, _ in results]}, the same traces: {results == expected}")
    print(f"sequential {sequential:.2f} s, with a new pool {parallel:.2f} s")


if __name__ == "__main__":
    main()
