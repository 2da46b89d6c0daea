"""How compiled kernels are kept on disk, so that many processes at a time may read and write them.

numba's own way writes the index before what it names, and names it by counting: two writers, or one
that is killed, can leave an index that names the code of another signature, or half a file, and
who calls that crashes (numba issue 4807). Here what is compiled goes to a file of a name of its
own first, and then the index, each by renaming a whole file. Of two writers one may lose its entry:
that kernel is compiled once more. Nothing is ever overwritten, and what cannot be read is not
there.

Entries are keyed by signature, bytecode, numba's version, operating system, and the processor's
name and features (``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` override them): a folder that two
kinds of PC share holds both, and neither runs the other's instructions.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.kernels import is_private

# numba has no types.
_caching: Any = import_module("numba.core.caching")

__all__ = ["keep"]

# Leftovers are removed when so old: younger ones may be of a writer that is still at work.
_STALE_SECONDS = 3600.0


class _File(_caching.IndexDataCacheFile):  # type: ignore[misc]
    """Index and compiled code of one kernel."""

    def save(self, key: Any, data: Any) -> None:
        """Keep what was compiled for a key."""
        name = self._data_name(secrets.randbits(48))
        self._save_data(name, data)
        overloads = self._load_index()
        overloads[key] = name
        self._save_index(overloads)
        self._remove_leftovers(set(overloads.values()))

    def load(self, key: Any) -> Any:
        """Return what was compiled, or None."""
        # After a power cut a file may be empty or zeros, and pickle raises anything.
        with suppress(Exception):
            return super().load(key)
        return None

    def _load_index(self) -> dict[Any, str]:
        try:
            overloads: dict[Any, str] = super()._load_index()
        except Exception:  # as above
            return {}
        return overloads

    def _remove_leftovers(self, named: set[str]) -> None:
        """Remove what no index names: of an older release, or of a writer that was killed."""
        index = Path(self._index_path)
        before = time.time() - _STALE_SECONDS
        for path in index.parent.glob(f"{index.stem}.*"):
            if path != index and path.name not in named:
                with suppress(OSError):
                    if path.stat().st_mtime < before:
                        path.unlink()


class _Cache(_caching.FunctionCache):  # type: ignore[misc]
    """What a dispatcher asks for compiled code, and gives it to."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = _File(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled; a full disk keeps nothing, and stops nothing."""
        with suppress(OSError):
            super().save_overload(sig, data)


def keep(dispatcher: Any) -> None:
    """Let a kernel be kept, and be looked for before it is compiled.

    Not where others may write to the folder.

    Parameters
    ----------
    dispatcher : numba dispatcher
        From ``numba.njit`` without ``cache``.
    """
    cache = _Cache(dispatcher.py_func)
    folder = Path(cache.cache_path)
    # numba made it by the umask, by which a group may be let in.
    with suppress(OSError):
        folder.chmod(folder.stat().st_mode & 0o755)
    if is_private(folder):
        dispatcher._cache = cache
