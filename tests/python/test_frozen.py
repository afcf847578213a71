"""Frozen programs, made by PyInstaller: they are executed again for each child, and would start children without end if that failed."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import time

import pytest

import polyproc

pytest.importorskip("PyInstaller", reason="PyInstaller is installed in build/venv only")

pytestmark = pytest.mark.slow

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(polyproc.__file__)
METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module", params=["--onedir", "--onefile"])
def program(request, tmp_path_factory):
    """The path of the frozen program."""
    directory = tmp_path_factory.mktemp("frozen")
    command = [
        sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", request.param, "--name", "frozen",
        "--paths", os.path.dirname(PACKAGE), "--additional-hooks-dir", os.path.join(PACKAGE, "_pyinstaller"),
        "--distpath", str(directory), "--workpath", str(directory / "work"), "--specpath", str(directory / "work"),
        os.path.join(HERE, "frozen_program.py"),
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    path = directory / "frozen"
    return str(path / "frozen" if request.param == "--onedir" else path)


@pytest.fixture
def few_processes(tmp_path):
    """What is called in the program before it is executed: it and its children may be at most 60 tasks, where we may say so."""
    name = f"polyproc-test-{os.getpid()}"
    for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        group = os.path.join(root, name)
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            with open(os.path.join(group, "pids.max"), "w") as file:
                file.write("60")
        except OSError:
            os.rmdir(group)
            continue

        def enter():
            with open(os.path.join(group, "cgroup.procs"), "w") as file:
                file.write("0")

        yield enter
        deadline = time.monotonic() + 30
        while True:
            try:
                os.rmdir(group)  # which needs it empty: the last one, the fork server, ends when it notices that nobody is left
                return
            except OSError:
                assert time.monotonic() < deadline, "processes are left"
                time.sleep(0.02)
    yield None


def run(program, enter, *arguments, support):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "POLYPROC_LIBRARY")}
    environment["FREEZE_SUPPORT"] = support
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=120, env=environment, preexec_fn=enter, cwd="/"
    )


@pytest.mark.parametrize("support", ["polyproc", "multiprocessing"])
def test_processes_and_pools(program, few_processes, support):
    """Either package's freeze_support() serves the children of both."""
    ran = run(program, few_processes, *METHODS, support=support)
    expected = "main\n" + "".join(f"0 {method}\n[2, 4, 6]\n" for method in METHODS) + "stdlib\n"
    assert (ran.stdout, ran.stderr) == (expected, "")
    assert ran.returncode == 0


def test_without_freeze_support(program, few_processes):
    """The child is the program again, with an argument that it does not know."""
    ran = run(program, few_processes, "spawn", support="none")
    assert ran.returncode != 0
    assert "cannot find context for '--multiprocessing-fork'" in ran.stderr


def test_the_libraries_are_with_the_package(program):
    directory = os.path.join(os.path.dirname(program), "_internal", "polyproc")
    if os.path.isdir(directory):  # else they are in the one file
        assert len(glob.glob(os.path.join(directory, "*.so"))) == 2
