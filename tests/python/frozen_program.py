"""The program of test_frozen.py: PyInstaller makes one file or directory of it. Its arguments are start methods."""

import multiprocessing
import os
import sys

import polyproc as mp


def double(x):
    return 2 * x


def put(queue, x):
    queue.put(x)


def answer(connection):
    connection.send("stdlib")


if __name__ == "__main__":
    support = os.environ.get("FREEZE_SUPPORT", "polyproc")
    if support != "none":
        sys.modules[support].freeze_support()
    print("main", flush=True)
    for method in sys.argv[1:]:
        ctx = mp.get_context(method)
        queue = ctx.Queue()
        process = ctx.Process(target=put, args=(queue, method))
        process.start()
        process.join(30)
        print(process.exitcode, queue.get(timeout=0) if process.exitcode == 0 else None, flush=True)
        with ctx.Pool(2) as pool:
            print(pool.map(double, [1, 2, 3]), flush=True)
    # A child of the standard library's package in the same program.
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(theirs,))
    process.start()
    print(ours.recv() if ours.poll(30) else None, flush=True)
    process.join(30)
