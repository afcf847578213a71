"""Descriptors on their way to other processes, as in multiprocessing.resource_sharer.

There a thread of the sender hands them out; here a copy rests with the family until it is fetched (reduction.py).
"""

from __future__ import annotations

from .reduction import DupFd

__all__ = ["DupFd", "stop"]


def stop(timeout: float | None = None) -> None:
    """Does nothing: there is no thread to stop."""
