"""A pool that tells when each task is done, or has failed, without anybody waiting for it."""

import os
import threading

import polyproc as mp


def triangle(n: int) -> "tuple[int, int]":
    if n % 100 == 13:
        raise ValueError(f"{n} is unlucky")
    return n, sum(range(n + 1))


def main() -> None:
    done: dict[int, int] = {}
    failed: list[BaseException] = []
    where: set[tuple[int, bool]] = set()

    def on_result(result: "tuple[int, int]") -> None:
        where.add((os.getpid(), threading.current_thread() is threading.main_thread()))
        done[result[0]] = result[1]

    with mp.Pool(processes=4) as pool:
        for n in (10, 13, 20, 113, 30):
            pool.apply_async(triangle, args=(n,), callback=on_result, error_callback=failed.append)
        pool.close()
        pool.join()  # every callback has run when this returns

    for n in sorted(done):
        print(f"{n}: {done[n]}")
    print("failed:", ", ".join(sorted(f"{type(e).__name__}({e})" for e in failed)))
    print(f"callbacks ran in the parent, on a thread of the pool: {where == {(os.getpid(), False)}}")


if __name__ == "__main__":
    main()
