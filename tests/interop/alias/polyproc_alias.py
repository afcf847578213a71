"""Makes ``import multiprocessing`` mean polyproc in every Python process of a virtual environment.

``run`` installs this module, and a .pth file that imports it, into the environment's site-packages, so that
children started by spawn and by a fork server have the alias too. A submodule that polyproc does not have
(managers, sharedctypes, shared_memory, ...) is the standard library's own file, executed on top of polyproc:
its relative imports find polyproc's modules. Without POLYPROC_INTEROP=1 in the environment nothing happens.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys


class _SameModule(importlib.abc.Loader):
    """Loads one module under the name of another: the same module object."""

    def __init__(self, name):
        self.name = name

    def create_module(self, spec):
        module = importlib.import_module(self.name)
        if self.name == "polyproc":
            _complete(module)
        self.true_spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self.true_spec  # the import machinery has put the alias's there


def _complete(polyproc):
    """Gives polyproc the factories that it does not have yet, from the standard library's files."""
    from polyproc.context import BaseContext

    def Manager(self):
        from multiprocessing.managers import SyncManager

        manager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Value(self, typecode_or_type, *args, lock=True):
        from multiprocessing.sharedctypes import Value

        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        from multiprocessing.sharedctypes import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    for factory in (Manager, Value, Array):
        setattr(BaseContext, factory.__name__, factory)
        setattr(polyproc, factory.__name__, factory.__get__(polyproc.context._default_context))


class _AliasFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "multiprocessing" and not fullname.startswith("multiprocessing."):
            return None
        ours = "polyproc" + fullname[len("multiprocessing") :]
        try:
            found = importlib.util.find_spec(ours)
        except ModuleNotFoundError:
            found = None
        if found is not None and not isinstance(found.loader, _SameModule):
            return importlib.machinery.ModuleSpec(
                fullname, _SameModule(ours), is_package=found.submodule_search_locations is not None
            )
        file = os.path.join(os.path.dirname(os.__file__), *fullname.split(".")) + ".py"
        if not os.path.exists(file):
            return None
        return importlib.util.spec_from_file_location(fullname, file)


class _MissingFinder(importlib.abc.MetaPathFinder):
    """The last finder: polyproc.x, where polyproc has no x, is multiprocessing.x. ``from . import x`` asks for it so."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".")
        if package != "polyproc" or name not in {
            "heap",
            "managers",
            "resource_tracker",
            "shared_memory",
            "sharedctypes",
        }:
            return None
        return importlib.machinery.ModuleSpec(fullname, _SameModule("multiprocessing." + name))


if os.environ.get("POLYPROC_INTEROP") == "1":
    sys.meta_path.insert(0, _AliasFinder())
    sys.meta_path.append(_MissingFinder())
