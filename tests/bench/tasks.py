"""What the measured workers run. A module of its own, so that every contender pickles functions by name."""

import os
import time


def noop(x: int) -> int:
    return x


def nothing() -> None:
    pass


def nap(_: int) -> int:
    """Long enough that every worker gets one of twice as many."""
    time.sleep(0.02)
    return os.getpid()


def private_kib(pid: int) -> int:
    """The memory that a process does not share with any other, in KiB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("Private_Clean:", "Private_Dirty:")))
