"""The part of the build that pyproject.toml cannot say: the wheel holds a compiled library, and needs no particular Python."""

import os
import sys

from setuptools import Distribution, setup

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70
    from wheel.bdist_wheel import bdist_wheel

PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "src", "polyproc")
LIBRARIES = ("libpolyproc.so", "libpolyproc-engine.so")


class WithLibrary(Distribution):
    """Installed among what belongs to a platform."""

    def has_ext_modules(self):
        return True


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: any Python 3, this platform."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])

    def run(self):
        missing = [name for name in LIBRARIES if not os.path.exists(os.path.join(PACKAGE, name))]
        if missing:
            sys.exit(f"polyproc: {', '.join(missing)} not in {PACKAGE}: run `make build` first")
        super().run()


setup(distclass=WithLibrary, cmdclass={"bdist_wheel": PlatformWheel})
