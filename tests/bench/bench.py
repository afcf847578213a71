"""make bench: polyproc side by side with its alternatives; prints a table and writes build/bench.json.

Every measurement is a process of its own. In each round each contender of a case is measured once, one right after the other
and in turning order, so that what else the machine does hits all of them alike; ratios are taken within a round.

A ratio is how many times as fast (or as small) polyproc is: contender / polyproc. The median is shown with the lowest and
the highest of the rounds. Targets are those of the project. Rows whose unit is "x" compare a contender with
itself: there the figure is the ratio.

What the library costs a C program that forks by itself: tests/fork/cost.c prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEADLINE = 300  # seconds for one measurement


@dataclass(frozen=True)
class Contender:
    name: str
    command: list[str]
    scale: float = 1.0  # from what the command prints to the unit of the case


@dataclass
class Case:
    """contenders[0] is polyproc. target: the ratio wanted against the contender named, or "" if the project names none.

    below: the ratio is polyproc's own figure divided by the other's, and must not be above the target.
    limit: the first contender's own figure must not be above it.
    floor: the first contender must do so many tasks a second.
    """

    name: str
    unit: str
    contenders: list[Contender]
    targets: dict[str, float] = field(default_factory=dict)
    below: bool = False
    limit: float | None = None
    floor: float | None = None


def python(name: str, case: str, workers: int, count: int, method: str = "spawn") -> Contender:
    command = [sys.executable, str(HERE / "contender.py"), name, case, method, str(workers), str(count)]
    return Contender(name, command)


def messages(name: str, case: str, count: int, method: str = "fork") -> Contender:
    return Contender(name, [sys.executable, str(HERE / "messages.py"), name, case, method, str(count)])


def program(binary: str, name: str, workers: int | None, count: int, shown: str = "") -> Contender:
    sizes = [str(size) for size in (workers, count) if size is not None]
    return Contender(shown or name, [str(ROOT / "build/bench" / binary), name, *sizes], 1e6 / count)


def cases() -> list[Case]:
    # Fewer tasks for those that are slow: the figures are per task.
    unordered = {
        "polyproc": 100000,
        "multiprocessing": 20000,
        "concurrent.futures": 5000,
        "billiard": 20000,
        "loky": 5000,
        "joblib": 1000,
    }
    apply = {"polyproc": 5000, "multiprocessing": 5000, "concurrent.futures": 2000, "billiard": 5000, "loky": 1000}
    everyone = ["polyproc", "multiprocessing", "concurrent.futures", "billiard", "loky", "joblib"]
    both = ["polyproc", "multiprocessing"]
    return [
        Case(
            "Python: imap_unordered, chunksize 1",
            "us/task",
            [python(name, "unordered", 2, count) for name, count in unordered.items()],
            {"multiprocessing": 4},
        ),
        Case(
            "Python: apply, there and back",
            "us/task",
            [python(name, "apply", 2, count) for name, count in apply.items()],
            {"multiprocessing": 2},
        ),
        Case(
            "Python: map of 200,000, default chunk",
            "us/task",
            [python(name, "map", 2, 200000) for name in everyone],
            {"multiprocessing": 1.2},
        ),
        *[
            Case(
                f"Python: Pool(2) to its first result, {method}, fresh program",
                "ms",
                [python(name, "fresh", 2, 1, method) for name in (everyone if method == "spawn" else both)],
                {"multiprocessing": target},
            )
            for method, target in (("spawn", 1.2), ("forkserver", 1.2), ("fork", 0.8))
        ],
        *[
            Case(
                f"Python: Pool(2) to its first result, {method}, after another",
                "ms",
                [python(name, "reopen", 2, 9, method) for name in both],
                {"multiprocessing": target},
            )
            for method, target in (("spawn", 1.2), ("forkserver", 1.2), ("fork", 0.8))
        ],
        *[
            Case(
                f"Python: Process, start and join, {method}",
                "ms",
                [python(name, "process", 0, count, method) for name in [*both, *(["billiard"] if method == "spawn" else [])]],
                {"multiprocessing": target},
            )
            for method, count, target in (("spawn", 15, 1.3), ("forkserver", 60, 1.5), ("fork", 150, 1.0))
        ],
        *[
            Case(
                f"Python: Process, {method}: parent of 1 GiB / small",
                "x",
                [python(name, "ballast", 0, count, method) for name in both],
                limit=limit,
            )
            # "Does not grow", with room for noise. A fork copies page tables: no limit.
            for method, count, limit in (("spawn", 30, 1.1), ("forkserver", 100, 1.1), ("fork", 50, None))
        ],
        *[
            Case(
                f"Python: {title}, {method}",
                "us/task",
                [python("polyproc", case, 2, ours, method), python("multiprocessing", case, 2, theirs, method)],
            )
            for method in ("fork", "forkserver")
            for title, case, ours, theirs in (
                ("imap_unordered, chunksize 1", "unordered", 100000, 20000),
                ("apply", "apply", 5000, 5000),
                ("map of 200,000", "map", 200000, 200000),
            )
        ],
        Case(
            "Python: idle worker above a bare interpreter",
            "MiB",
            [python(name, "memory", 2, 0) for name in everyone],
            limit=8,
        ),
        Case(
            "Python: a task with 64 workers / 2 workers",
            "x",
            [python("polyproc", "wide", 64, 50000), python("multiprocessing", "wide", 64, 5000)],
            limit=1.3,
        ),
        Case(
            "Python: its CPU time with 64 workers / 2 workers",
            "x",
            [python("polyproc", "wide-cpu", 64, 50000)],
        ),
        *[
            Case(
                f"Python: {title}",
                "us",
                [messages(name, case, count) for name in both],
                {"multiprocessing": target} if target else {},
            )
            for title, case, count, target in (
                ("Queue, 1 producer, 1 consumer, small", "queue", 20000, 5),
                ("Queue, 2 producers, 2 consumers, small", "queue-2x2", 10000, 5),
                ("Queue, there and back", "queue-pingpong", 5000, 2.5),
                ("Queue, 1 MB of bytes", "queue-1m", 300, 4),
                ("SimpleQueue, small", "simple", 20000, 3),
                ("Pipe, small", "pipe", 20000, 3),
                ("Pipe, there and back", "pipe-pingpong", 5000, 1.5),
                ("Pipe, 1 MB of bytes", "pipe-1m", 300, 2),
                ("Event, wake and back", "event", 5000, 1.2),
                ("Lock, contended by two processes", "lock-contended", 50000, 1.5),
                ("with lock, uncontended", "with", 200000, 1.8),
                ("Lock, acquire and release", "lock-bare", 200000, 1),
                ("Semaphore, acquire and release", "semaphore-bare", 200000, 1),
                ("RLock, acquire and release", "rlock-bare", 200000, None),
            )
        ],
        Case(
            "C: pp_pool_map, chunk 1",
            "us/task",
            [
                program("bench-c", "polyproc", 2, 3000000),
                program("bench-c", "polyproc-fork", 2, 3000000),
                program("bench-c", "pipes", 2, 100000),
                program("bench-c", "threads", 2, 3000000),
            ],
            {"pipes": 10},
            floor=500000,
        ),
        Case(
            "C: a loop over 1,000,000 square roots, 2 workers",
            "us/loop",
            [
                program("loop-c", "polyproc", 2, 200),
                program("loop-c", "polyproc-map", 2, 5),
                program("loop-c", "openmp", 2, 200),
                program("loop-c", "sequential", 2, 200),
            ],
            {"openmp": 0.77},
        ),
        Case(
            "C: queue, 64 bytes, process to process",
            "us/message",
            [
                program("messages-c", "polyproc", None, 1000000),
                *([program("messages-boost", "boost", None, 1000000)] if (ROOT / "build/bench/messages-boost").exists() else []),
                program("messages-c", "mq", None, 300000),
            ],
            {"boost": 3, "mq": 5},
        ),
        Case(
            "C: queue, 64 bytes, put and get by one thread",
            "us/message",
            [program("messages-c", "same", None, 3000000)],
        ),
        Case(
            "C: a task with 64 workers / 2 workers",
            "us/task",
            [
                program("bench-c", "polyproc", 64, 3000000, "64 workers"),
                program("bench-c", "polyproc", 2, 3000000, "2 workers"),
            ],
            {"2 workers": 1.3},
            below=True,
        ),
        Case(
            "Go: pool.Map",
            "us/task",
            [
                program("bench-go", "polyproc", 2, 1000000),
                program("bench-go", "gob", 2, 50000),
                program("bench-go", "go-plugin", 2, 20000),
            ],
            {"go-plugin": 10},
        ),
        Case(
            "Go: a task with 64 workers / 2 workers",
            "us/task",
            [
                program("bench-go", "polyproc", 64, 1000000, "64 workers"),
                program("bench-go", "polyproc", 2, 1000000, "2 workers"),
            ],
            {"2 workers": 1.3},
            below=True,
        ),
    ]


def measure(contender: Contender) -> float:
    done = subprocess.run(
        contender.command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE
    )
    if done.returncode != 0:  # else what it says is noise of its end
        raise RuntimeError(f"{' '.join(contender.command)}: exit code {done.returncode}\n{done.stderr}")
    return float(done.stdout.split()[0]) * contender.scale


def number(x: float) -> str:
    return f"{x:.3g}" if x < 100 else f"{x:.0f}"


def report(case: Case, values: dict[str, list[float]]) -> tuple[list[list[str]], dict[str, object], bool]:
    first = case.contenders[0].name
    rows, shown = [], {}
    met = True
    for contender in case.contenders:
        measured = values[contender.name]
        row = [case.name if contender.name == first else "", contender.name]
        row += [
            f"{number(statistics.median(measured))} {case.unit}",
            f"{number(min(measured))} - {number(max(measured))}",
        ]
        result: dict[str, object] = {"unit": case.unit, "values": measured, "median": statistics.median(measured)}
        verdict = ""
        if contender.name != first:
            pairs = zip(values[first], measured)
            ratios = [a / b if case.below else b / a for a, b in pairs if min(a, b) > 0]
            ratio = statistics.median(ratios) if ratios else float("nan")
            row.append(f"{ratio:.2f} ({min(ratios):.2f} - {max(ratios):.2f})" if ratios else "")
            result["ratios"], result["ratio"] = ratios, ratio
            target = case.targets.get(contender.name)
            if target is not None:
                good = ratio <= target if case.below else ratio >= target
                verdict = f"{'at most' if case.below else 'at least'} {target:g}: {'yes' if good else 'NO'}"
                result["target"], met = target, met and good
        else:
            row.append("")
            median = statistics.median(measured)
            if case.limit is not None:
                verdict = f"at most {case.limit:g}: {'yes' if median <= case.limit else 'NO'}"
                result["limit"], met = case.limit, met and median <= case.limit
            if case.floor is not None:
                rate = 1e6 / median
                verdict = f"at least {case.floor:,.0f}/s: {'yes' if rate >= case.floor else 'NO'} ({rate:,.0f}/s)"
                result["floor"], result["rate"], met = case.floor, rate, met and rate >= case.floor
        rows.append([*row, verdict])
        shown[contender.name] = result
    return rows, shown, met


def show(table: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for i, row in enumerate(table):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender is measured (7)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with TEXT in their name")
    parser.add_argument("--without", default="", metavar="A,B", help="leave out these contenders")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench.json")
    options = parser.parse_args()

    # What ends a run before its time does not cost what has been measured.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: SIGTERM"))
    header = ["case", "who", "median", "lowest - highest", "ratio (lowest - highest)", "target"]
    table: list[list[str]] = [header]
    results: dict[str, object] = {}
    all_met = True
    began = time.time()
    chosen = [case for case in cases() if options.only.lower() in case.name.lower()]
    if not chosen:
        parser.error(f"no case with {options.only!r} in its name")
    try:
        for case in chosen:
            case.contenders = [c for c in case.contenders if c.name not in options.without.split(",")]
            values: dict[str, list[float]] = {c.name: [] for c in case.contenders}
            for round_number in range(options.rounds):
                turn = round_number % len(case.contenders)
                for contender in case.contenders[turn:] + case.contenders[:turn]:
                    values[contender.name].append(measure(contender))
            print(f"measured: {case.name}", file=sys.stderr, flush=True)
            rows, results[case.name], met = report(case, values)
            table += rows
            all_met = all_met and met
    finally:
        show(table)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpus": len(os.sched_getaffinity(0)), "kernel": platform.release(), "python": platform.python_version()}
        seconds = round(time.time() - began)
        document = {"machine": machine, "rounds": options.rounds, "seconds": seconds, "cases": results}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
        print(f"\n{options.rounds} rounds, {seconds} s, load {os.getloadavg()[0]:.1f}; {options.json}", flush=True)
    if not all_met:
        print("some targets are not met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
