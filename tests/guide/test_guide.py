"""The programs of the guide "Multiprocessing in Python".

Twins of our own (the other files of this directory) run under every start method, once on polyproc and once on the
stdlib's package: what the latter does not pass is a mistake of the test. Where the guide itself is present
(../shared/seeds beside the repository), its programs are run as well, with only the import changed, and must do what
they do on the stdlib's package.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GUIDE = ROOT.parent / "shared/seeds/000_e22445290eb7d3d2.txt"
PACKAGE = ROOT / "bindings/python/src"
DEADLINE = 100  # seconds for one program


def start_methods() -> list[str]:
    """What polyproc has on this platform, asked in a process of its own: pytest's process stays as it is."""
    code = "import polyproc; print(*polyproc.get_all_start_methods())"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE
    ).stdout.split()


def environment() -> dict[str, str]:
    # Unbuffered, print() writes a line in two pieces, and those of two processes get mixed.
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}, "PYTHONPATH": str(PACKAGE)}


def run(program: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in a process group of its own, of which nothing may be left."""
    with (program.parent / "stdout").open("w+") as out, (program.parent / "stderr").open("w+") as err:
        process = subprocess.Popen(
            [sys.executable, str(program)],
            cwd=program.parent,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            err.seek(0)
            pytest.fail(f"{program} hangs:\n{err.read()}")
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(program.name, code, out.read(), err.read())


def run_together(programs: Sequence[Path]) -> list[subprocess.CompletedProcess[str]]:
    """Run programs, three at a time: the guide's mostly sleep and wait for time-outs."""
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        return list(threads.map(run, programs))


def adapted(text: str, module: str, method: str, directory: Path, name: str = "program.py") -> Path:
    """A copy of a program that imports module as mp, and has it use a start method. Nothing else is changed.

    The line is executed by spawned children as well: they have set the method already, hence force.
    """
    line = f"import {module} as mp; mp.set_start_method({method!r}, force=True)"
    changed, count = re.subn(r"(?m)^import (?:polyproc|multiprocessing) as mp$", line, text)
    assert count == 1
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(changed)
    return path


# What each twin prints: patterns that match a line each, in this order; or, after "*" and how often, anywhere.
TWINS = {
    "start_processes": [
        "north: on the way, in a process of its own: {own}",
        "north: back",
        "Process-1: exit code 0",
        *[f"*1 gate {i}: on the way, in a process of its own: {{own}}" for i in range(3)],
        *[f"*1 gate {i}: back" for i in range(3)],
        r"3 pids, exit codes \[0, 0, 0\], at the same time: True",
    ],
    "matrix_pool": [
        r"sizes \[50, 150, 250, 350, 450\], the same traces: True",
        r"sequential \d+\.\d\d s, with a new pool \d+\.\d\d s",
    ],
    "callbacks": [
        "10: 55",
        "20: 210",
        "30: 465",
        r"failed: ValueError\(113 is unlucky\), ValueError\(13 is unlucky\)",
        "callbacks ran in the parent, on a thread of the pool: True",
    ],
    "outcomes": [
        "81: 9",
        "2: 1",
        r"-3: failed in root\(\): isqrt\(\) argument must be nonnegative",
        "100: 10",
        r"-25: failed in root\(\): isqrt\(\) argument must be nonnegative",
        "raised: ValueError, the worker's traceback is there: True",
        r"the pool goes on: \[2, 3\]",
    ],
    "managed_pool": [
        "beam=plate",
        r"\[1, 2, 3\]",
        "closed",
        "refused: the workshop is closed",
        r"\[3, 2, 1\]",
        "closed",
    ],
    "night_train": [
        "train: stop at summit",
        "archive: harbour 100000, mill 100000, bridge 100000, summit 100000",
        "box: the line is closed",
        r"\[0, 0\] True True",
    ],
    "letter_office": [
        "delivered: north/0, north/1, north/2, north/3, north/4, north/5; resting: carrier 0, carrier 1",
        "all parcels sorted, 0 left",
        r"exit codes \[0, 0, 0, 0\]",
    ],
    "speed": [
        r"\d+ CPUs, \d+ MiB in use",
        r"CPU: sequential .* s, parallel .* s, speed-up .*x, the same results: True",
        r"memory: sequential .* s, parallel .* s, speed-up .*x, the same results: True",
    ],
    "entry_point": [
        "the program reads the file",
        "{method} is one of the methods: True",
        "an unknown method is refused",
        r"*{imports} a worker that imports it reads the file",
        r"\[0.0, 0.5, 1.0, 1.5\]",
        r"\[2.0, 2.5, 3.0, 3.5\]",
    ],
}


@pytest.mark.parametrize("module", ["polyproc", "multiprocessing"])
@pytest.mark.parametrize("method", start_methods())
@pytest.mark.parametrize("name", sorted(TWINS))
def test_twin(name: str, method: str, module: str, tmp_path: Path) -> None:
    done = run(adapted((HERE / f"{name}.py").read_text(), module, method, tmp_path, f"{name}.py"))
    assert (done.returncode, done.stderr) == (0, "")

    values = {
        "method": method,
        "own": "True" if method != "forkserver" else "False",  # the server is the parent there
        "imports": {"spawn": "some", "fork": "0", "forkserver": "any"}[method],
    }
    lines = done.stdout.splitlines()
    in_order = []
    for pattern in TWINS[name]:
        pattern = re.sub(r"\{(own|method|imports)\}", lambda m: values[m[1]], pattern)
        if pattern.startswith("*"):
            times, pattern = pattern[1:].split(" ", 1)
            matching = [line for line in lines if re.fullmatch(pattern, line)]
            assert times == "any" or (matching if times == "some" else len(matching) == int(times)), (pattern, lines)
            lines = [line for line in lines if line not in matching]
        else:
            in_order.append(pattern)
    assert len(lines) == len(in_order), (in_order, lines)
    for pattern, line in zip(in_order, lines):
        assert re.fullmatch(pattern, line), (pattern, lines)


def test_every_twin_is_run() -> None:
    programs = {path.stem for path in HERE.glob("*.py")} - {"test_guide"}
    assert programs == set(TWINS)


# The guide's programs by their headings. The others need what polyproc does not have yet: shared arrays, managers. The one of the
# queues has a test of its own: who consumes what is a matter of luck.
ORIGINALS = [
    "Process Creation",
    "Process Pools (Recommended)",
    "Process Pool with Callback",
    "Error Handling",
    "Resource Management",
    "CPU-bound vs Memory-bound",
    "Platform Considerations",
]


def original(heading: str) -> str:
    text = GUIDE.read_text(encoding="utf-8")
    match = re.search(rf"^### {re.escape(heading)}$.*?^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert match, heading
    return match[1]


def observed(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """What a run shows, without pids and times. Lines of processes that run at the same time come in any order.

    How many of several children that fail alike get to say so is a matter of luck (the stdlib's forkserver).
    """
    masked = re.sub(r"\d+\.\d\d(?=[sx]\b)", "#", re.sub(r"PID: \d+", "PID: #", done.stdout))
    return {
        "exit code": done.returncode,
        "stdout": sorted(masked.splitlines()),
        "exceptions": sorted(set(re.findall(r"^[\w.]*(?:Error|Exception)\b.*$", done.stderr, re.MULTILINE))),
    }


def same_as_the_stdlib(text: str, method: str, directory: Path) -> dict[str, object]:
    modules = ("multiprocessing", "polyproc")
    theirs, ours = map(observed, run_together([adapted(text, module, method, directory / module) for module in modules]))
    assert ours == theirs
    return ours


needs_guide = pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not beside the repository")


@needs_guide
@pytest.mark.parametrize("method", start_methods())
@pytest.mark.parametrize("heading", ORIGINALS)
def test_original(heading: str, method: str, tmp_path: Path) -> None:
    same_as_the_stdlib(original(heading), method, tmp_path)


@needs_guide
@pytest.mark.parametrize("method", start_methods())
def test_original_pool_with_its_missing_import(method: str, tmp_path: Path) -> None:
    """As printed, the program of the pools ends with a NameError: it uses time and does not import it."""
    shown = same_as_the_stdlib("import time\n" + original("Process Pools (Recommended)"), method, tmp_path)
    assert shown["exit code"] == 0 and shown["stdout"] == ["Parallel: #s", "Sequential: #s", "Speedup: #x"]


@needs_guide
@pytest.mark.parametrize("method", start_methods())
def test_original_resource_manager_at_work(method: str, tmp_path: Path) -> None:
    """As printed, the program only defines a class: use it, and let atexit clean up."""
    use = """
if __name__ == "__main__":
    manager = ProcessManager(2)
    print(manager.submit_task(divmod, 17, 5).get(60), manager.map_tasks(abs, [-1, 2]))
"""
    shown = same_as_the_stdlib(original("Resource Management") + use, method, tmp_path)
    assert shown == {"exit code": 0, "stdout": ["(3, 2) [1, 2]"], "exceptions": []}


@needs_guide
def test_original_queues(tmp_path: Path) -> None:
    runs = [(module, method) for module in ("polyproc", "multiprocessing") for method in start_methods()]
    programs = [adapted(original("Queues"), *each, tmp_path.joinpath(*each)) for each in runs]
    for each, done in zip(runs, run_together(programs)):
        assert (done.returncode, done.stderr) == (0, ""), each
        lines = done.stdout.splitlines()
        items = [f"Producer-Item-{i}" for i in range(5)]
        assert [line for line in lines if line.startswith("Produced")] == [f"Produced: {item}" for item in items], each
        consumed = [re.fullmatch(r"Consumer-[01] consumed: (.*)", line) for line in lines]
        assert sorted(match[1] for match in consumed if match) == items, each
        assert sorted(line for line in lines if "timed out" in line) == ["Consumer-0 timed out", "Consumer-1 timed out"], each
        assert len(lines) == 12, each


@needs_guide
def test_original_pipes(tmp_path: Path) -> None:
    """On the stdlib's package it does not end: the parent and the reader itself still hold the other end."""
    methods = start_methods()
    programs = [adapted(original("Pipes"), "polyproc", method, tmp_path / method) for method in methods]
    for method, done in zip(methods, run_together(programs)):
        assert (done.returncode, done.stderr) == (0, ""), method
        lines = done.stdout.splitlines()
        for what in ("Sent", "Received"):
            assert [line for line in lines if line.startswith(what)] == [f"{what}: Message {i}" for i in range(5)], method
        assert len(lines) == 10, method
