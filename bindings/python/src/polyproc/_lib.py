"""Find and load the C library, at the first use."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

_NAMES = {"darwin": "libpolyproc.dylib", "win32": "polyproc.dll"}

_lib: ctypes.CDLL | None = None
_pylib: ctypes.PyDLL | None = None


def path() -> str:
    """Where the library is: beside this module, else what the environment variable POLYPROC_LIBRARY names.

    An interpreter that runs with more rights than its caller (set-uid, file capabilities) does not look at the variable.

    The current directory and the system's library path are never searched: the library must be the one that belongs to this package.

    Raises:
        ImportError: there is none.
    """
    name = _NAMES.get(sys.platform, "libpolyproc.so")
    packaged = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    if os.path.exists(packaged):
        return packaged
    named = os.environ.get("POLYPROC_LIBRARY")
    if named and not privileged():
        if not os.path.isabs(named):
            raise ImportError(f"POLYPROC_LIBRARY must be an absolute path, not {named!r}")
        if os.path.exists(named):
            return named
        raise ImportError(f"POLYPROC_LIBRARY names {named!r}, which does not exist")
    raise ImportError(
        f"polyproc: {packaged} is missing: build it with `make build`, or set POLYPROC_LIBRARY to the path of {name}"
    )


def privileged() -> bool:
    """Whether the kernel gave the program rights that its caller lacks: then its environment is not to be believed."""
    import ctypes

    try:
        getauxval = ctypes.CDLL(None).getauxval
    except AttributeError:
        return (os.getuid(), os.getgid()) != (os.geteuid(), os.getegid())
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    at_secure = 23
    return bool(getauxval(at_secure))


def lib() -> ctypes.CDLL:
    """The library, with every prototype declared. Its functions release the GIL.

    Raises:
        ImportError: the library is missing, cannot be loaded, or is of another version.
    """
    if _lib is None:
        _load()
        assert _lib is not None
    return _lib


def pylib() -> ctypes.PyDLL:
    """The same library, with calls that keep the GIL: for functions that never wait and are called often.

    Raises:
        ImportError: as :func:`lib`.
    """
    if _pylib is None:
        _load()
        assert _pylib is not None
    return _pylib


def begin_family() -> None:
    """Before a fork: what either process makes later can be sent to the other only if both are of a family then.

    Does nothing as long as the library is not loaded.
    """
    if _pylib is not None:
        import ctypes

        _pylib.pp_family((ctypes.c_int32 * 2)(), None, 0)  # if it cannot be, whoever needs it will say so


def loaded() -> bool:
    """Whether the library is loaded."""
    return _pylib is not None


def has_family() -> bool:
    """Whether a program that is started now could be a member of this process's family: not if the descriptors were closed."""
    import ctypes

    return bool(pylib().pp_family((ctypes.c_int32 * 2)(), None, 0) == 0)


def _load() -> None:
    # Two threads may come here at once: the loader hands both the same library, so the second result is as good as the first.
    global _lib, _pylib
    import ctypes

    from . import _abi, process

    where = path()
    try:
        library = ctypes.CDLL(where)
    except OSError as e:
        raise ImportError(f"polyproc: cannot load {where}: {e}") from e
    try:
        library.pp_version.restype = ctypes.c_char_p
        version = library.pp_version().decode()
    except AttributeError:
        raise ImportError(f"polyproc: {where} is not the polyproc library") from None
    # While the major version is 0, a minor version may change the interface.
    if tuple(map(int, version.split(".")[:2])) != _abi.VERSION:
        wanted = ".".join(map(str, _abi.VERSION))
        raise ImportError(f"polyproc: {where} has version {version}, this package needs {wanted}")
    keeping = ctypes.PyDLL(where, handle=library._handle)
    for each in (library, keeping):
        try:
            _abi.declare(each)
        except AttributeError as e:
            raise ImportError(f"polyproc: {where} is incomplete: {e}") from None
    if process._family is not None:
        library.pp_family_join(process._family.encode())
    _pylib = keeping
    _lib = library
