"""A program frozen by PyInstaller: processes and pools by every start method. It runs under a limit on processes."""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import pytest

PROGRAM = """
import sys
import polyproc as mp


def square(n):
    return n * n


if __name__ == "__main__":
    mp.freeze_support()
    context = mp.get_context(sys.argv[1])
    process = context.Process(target=square, args=(2,))
    process.start()
    process.join()
    with context.Pool(2) as pool:
        print(process.exitcode, pool.map(square, range(4)), flush=True)
"""
SOURCES = pathlib.Path(__file__).resolve().parents[2] / "bindings/python/src"


NOBODY = 65534


@pytest.fixture(scope="module")
def frozen():
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        home.chmod(0o755)
        yield build(home)


def build(home):
    (home / "program.py").write_text(PROGRAM)
    libraries = [f"--add-binary={file}:polyproc" for file in (SOURCES / "polyproc").glob("*.so")]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "PyInstaller",
            "--onedir",
            "--log-level=WARN",
            f"--paths={SOURCES}",
            "--collect-submodules=polyproc",
            *libraries,
            "program.py",
        ],
        cwd=home,
        check=True,
        timeout=110,
    )
    return home / "dist/program/program"


def limited():
    """A program that starts itself without end stops at 64 processes; root has no such limit, so it runs as nobody."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
        os.setuid(NOBODY)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_frozen_program(frozen, method):
    done = subprocess.run([frozen, method], capture_output=True, text=True, timeout=60, preexec_fn=limited)
    assert (done.stdout, done.stderr, done.returncode) == ("0 [0, 1, 4, 9]\n", "", 0)
