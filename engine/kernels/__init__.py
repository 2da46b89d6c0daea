"""Where compiled kernels are cached, and how a loop becomes one.

The kernels themselves are in the modules of this package; importing one of those imports numba
(about half a second), importing the package does not, and touches no file. Every kernel takes
arrays and fills arrays: no allocation, no strings, no exceptions. Shapes and dtypes are checked by
the public function that calls it.

All kernels are compiled without ``fastmath`` (it would make ``isnan`` false) and without
``parallel`` (a reduction over threads would depend on their number), release the GIL, and
accumulate in float64. Signatures are lazy, because an explicit one refuses read-only arrays.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

__all__ = ["cache_folder", "is_private", "kernel"]

_F = TypeVar("_F", bound=Callable[..., object])


def _user_cache_folder() -> Path | None:
    """Return the user's cache folder by the custom of the platform, None without a home."""
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            return Path(local) if local else Path.home() / "AppData" / "Local"
        # The XDG specification: a relative path in the variable is invalid and is ignored.
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        if Path(xdg).is_absolute():
            return Path(xdg)
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches"
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def is_private(folder: Path) -> bool:
    """Whether nobody but this user and root can put files into a folder.

    Parameters
    ----------
    folder : Path
        The folder.

    Returns
    -------
    bool
        False where others may write: numba unpickles what it finds, and what it unpickles it runs.

    Raises
    ------
    OSError
        There is no such folder.
    """
    if sys.platform == "win32":  # it lies in the user's profile, which others may not enter
        return True
    status = folder.stat()
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


def cache_folder() -> Path | None:
    """Choose the folder for compiled kernels and tell numba about it.

    ``NUMBA_CACHE_DIR`` wins when it is set; otherwise it is set to ``hilum/numba`` in the user's
    cache folder. A package's own ``__pycache__`` is no place: it is read-only in many installs.
    A shared temporary folder is none either: numba unpickles what it finds there.

    Returns
    -------
    Path or None
        A folder that exists and can be written, by nobody but this user and root, or None: kernels
        are then compiled in each process and never stored.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        folder = Path(named)
    else:
        parent = _user_cache_folder()
        if parent is None:
            return None
        folder = parent / "hilum" / "numba"
    import tempfile

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not is_private(folder):
            return None
    except OSError:
        return None
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    numba = sys.modules.get("numba")
    if numba is not None and not numba.config.CACHE_DIR:
        # numba read the environment when somebody else imported it; a later change is not seen.
        numba.config.CACHE_DIR = str(folder)
    return folder


@functools.cache
def _is_kept() -> bool:
    """Whether there is a folder; decided once, when a process first compiles or loads a kernel.

    numba raises "no locator available" at decoration time when kernels are to be kept and no folder
    can be written, and a read-only home must not stop a training.
    """
    return cache_folder() is not None


def kernel(function: _F) -> _F:
    """Compile a loop with numba: no GIL, kept per processor, strict IEEE arithmetic.

    Parameters
    ----------
    function : callable
        Pure loops over arrays.

    Returns
    -------
    callable
        The compiled function, or the function itself under ``NUMBA_DISABLE_JIT=1``.
    """
    kept = _is_kept()
    import numba

    compiled = numba.njit(nogil=True)(function)
    if kept and compiled is not function:
        from engine.kernels.storage import keep

        keep(compiled)
    return cast(_F, compiled)
