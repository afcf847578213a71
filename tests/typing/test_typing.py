"""Types: what mypy and pyright find in a program that uses this package is what they find with the standard library's.

typeshed's own test cases for multiprocessing are about Value and Array, which this package has not yet.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

import polyproc

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = os.path.dirname(os.path.dirname(polyproc.__file__))


@pytest.fixture(params=["polyproc", "multiprocessing"])
def case(request, tmp_path):
    """A directory with check_polyproc.py; or with the same text about the standard library's package."""
    with open(os.path.join(HERE, "check_polyproc.py")) as file:
        text = file.read()
    (tmp_path / "check.py").write_text(text.replace("polyproc", request.param))
    return tmp_path


def test_mypy(case):
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--cache-dir", str(case / "cache"), "check.py"]
    ran = subprocess.run(
        command, cwd=case, env={**os.environ, "MYPYPATH": SOURCES}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_pyright(case):
    pyright = shutil.which("pyright", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if pyright is None:
        pytest.skip("pyright is not installed: pip install pyright")
    settings = {
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportUnusedExpression": False,  # the text is one of expressions
        "extraPaths": [SOURCES],
        "pythonVersion": "{}.{}".format(*sys.version_info[:2]),
    }
    (case / "pyrightconfig.json").write_text(json.dumps(settings))
    ran = subprocess.run([pyright, "-p", str(case)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    "name",
    ["queues.Queue", "queues.JoinableQueue", "queues.SimpleQueue", "pool.ApplyResult", "pool.MapResult", "pool.IMapIterator"],
)
def test_subscripts_at_run_time(name):
    module, _, cls = name.partition(".")
    generic = getattr(__import__(f"polyproc.{module}", fromlist=["_"]), cls)
    assert generic[int].__origin__ is generic
    assert generic[int].__args__ == (int,)
