"""What PyInstaller needs to know of this package: it finds this module by the entry point "pyinstaller40"."""

from __future__ import annotations

import os


def get_hook_dirs() -> list[str]:
    """The directories with hooks."""
    return [os.path.dirname(os.path.abspath(__file__))]
