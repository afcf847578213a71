"""``python -m polyproc``: what this installation is, one fact a line."""

from __future__ import annotations

import os
import platform
import sys

from . import __version__, _lib, cpu_count, get_all_start_methods

USAGE = """\
usage: python -m polyproc [--help | --version]

Without an option: print the facts of this installation, one a line. The exit status is 1 if the library cannot be
used, 2 for an unknown argument.

  -h, --help     print this
  -V, --version  print the version
"""


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for. Returns the exit status, see USAGE."""
    words = sys.argv[1:] if arguments is None else arguments
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if words in (["-V"], ["--version"]):
        print(f"polyproc {__version__}")
        return 0
    if words:
        print(f"{USAGE}\npython -m polyproc: unknown argument: {' '.join(words)}", file=sys.stderr)
        return 2
    return print_facts()


def print_facts() -> int:
    """Print the facts. Returns 0, or 1 if the library cannot be used."""
    library = problem = None
    try:
        library = _lib.lib()
    except ImportError as e:
        problem = str(e)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpu_count()
    facts = [
        ("polyproc", __version__),
        ("library", library.pp_library_path().decode(errors="replace") if library else f"not usable: {problem}"),
        ("library version", library.pp_version().decode() if library else "-"),
        ("python", f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"),
        ("platform", platform.platform()),
        ("cpus", f"{cpu_count()}, usable by this process {library.pp_cpu_count() if library else usable}"),
        ("start methods", ", ".join(get_all_start_methods()) + " (default first)"),
        ("pidfd", "yes" if _has_pidfd() else "no: ends of processes are seen by pipes"),
    ]
    for name, value in facts:
        print(f"{name + ':':<17}{value}")
    return 0 if library else 1


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
