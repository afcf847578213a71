"""The demo in Python: parse every module of the interpreter's standard library and report its largest functions.

Once in this process and once in a pool, with the same totals both ways, or it exits with 1. Then a worker is crashed on
purpose: that costs one task.

    PYTHONPATH=bindings/python/src python3 tests/demo/demo.py [--workers N]
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import os
import sys
import sysconfig
import time
import warnings
from dataclasses import dataclass

import polyproc as mp


@dataclass(frozen=True)
class Module:
    """What is counted in one file. functions: (lines, name, path), the five largest."""

    lines: int = 0
    classes: int = 0
    functions: int = 0
    unparsable: int = 0
    largest: tuple[tuple[int, str, str], ...] = ()


def parse(path: str) -> Module:
    """Parse one file. One that is not today's Python (tests of the parser, of Python 2) counts as unparsable."""
    with open(path, "rb") as file:
        source = file.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return Module(lines=source.count(b"\n"), unparsable=1)
    functions = []
    classes = 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, node.name, path))
        elif isinstance(node, ast.ClassDef):
            classes += 1
    return Module(source.count(b"\n"), classes, len(functions), 0, tuple(sorted(functions, reverse=True)[:5]))


def total(modules: list[Module]) -> Module:
    largest = sorted((f for m in modules for f in m.largest), reverse=True)[:5]
    return Module(
        sum(m.lines for m in modules),
        sum(m.classes for m in modules),
        sum(m.functions for m in modules),
        sum(m.unparsable for m in modules),
        tuple(largest),
    )


def parse_or_crash(path: str) -> Module:
    """parse(), but a path of "" does what a bug in a C extension does: it reads address 0."""
    if not path:
        ctypes.string_at(0)
    return parse(path)


def python_files(root: str) -> list[str]:
    paths = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = sorted(d for d in subdirectories if d not in ("site-packages", "dist-packages"))
        paths += [os.path.join(directory, f) for f in sorted(files) if f.endswith(".py")]
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=mp.cpu_count(), help="how many processes (default: one per CPU)")
    workers = parser.parse_args().workers

    root = sysconfig.get_path("stdlib")
    paths = python_files(root)
    for path in paths:  # from the disk once, for both ways alike
        with open(path, "rb") as file:
            file.read()

    start = time.perf_counter()
    sequential = total([parse(path) for path in paths])
    sequential_time = time.perf_counter() - start

    with mp.Pool(workers) as pool:
        pids: set[int] = set()
        while len(pids) < workers:  # until all have started: the time below is that of the work
            pids.update(pool.map(worker_pid, range(workers * 2), chunksize=1))
        start = time.perf_counter()
        parallel = total(pool.map(parse, paths))
        parallel_time = time.perf_counter() - start

        print(f"{len(paths)} files, {sequential.lines} lines, {sequential.classes} classes,", end=" ")
        print(
            f"{sequential.functions} functions, {sequential.unparsable} files that do not parse; the largest functions:"
        )
        for lines, name, path in sequential.largest:
            print(f"  {lines:5} lines  {name}  {os.path.relpath(path, root)}")
        speedup = sequential_time / parallel_time
        print(f"sequential {sequential_time:.2f} s, parallel {parallel_time:.2f} s: {speedup:.2f} times as fast")
        print(f"worker pids {' '.join(map(str, sorted(pids)))}, parent {os.getpid()}")
        if parallel != sequential:
            print(f"the totals differ: {sequential} and {parallel}", file=sys.stderr)
            return 1
        print("the totals are the same both ways")

        # One task of a hundred reads address 0. The stdlib's pool would wait for ever.
        some = [*paths[:50], "", *paths[50:99]]
        tasks = [pool.apply_async(parse_or_crash, (path,)) for path in some]
        lost, good = [], 0
        for task, path in zip(tasks, some):
            try:
                good += task.get(timeout=60) == parse(path)
            except mp.WorkerLost as error:
                lost.append(error)
        print(f"a crash on purpose among {len(some)} tasks: {good} results, {len(lost)} lost {list(map(str, lost))}")
        again = total(pool.map(parse, some[:50]))
        if (good, len(lost)) != (len(some) - 1, 1) or again != total([parse(path) for path in some[:50]]):
            print("a crash must cost one task", file=sys.stderr)
            return 1
    return 0


def worker_pid(_: int) -> int:
    time.sleep(0.01)
    return os.getpid()


if __name__ == "__main__":
    sys.exit(main())
