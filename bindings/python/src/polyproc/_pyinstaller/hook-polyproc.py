"""PyInstaller's hook: the libraries, which are loaded by their path, belong into the package's directory."""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_dynamic_libs  # type: ignore[import-not-found,import-untyped,unused-ignore]

binaries = collect_dynamic_libs("polyproc")
