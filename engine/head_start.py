"""A head start: the network loads in a thread of its own while others import NumPy and the rest.

Imports little, because it is the first thing a program does that will predict.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.backbone import LoadedBackbone

__all__ = ["begin", "take"]

MAX_HEADER_BYTES = 1 << 24
"""Headers of heads are some kilobytes; a file that claims more is left for `load_head`."""

# Python hands its lock over every 5 ms only if asked. The thread comes back from OpenVINO a dozen
# times while the others import, and would wait so long each time.
_SWITCH_SECONDS = 0.001

_lock = threading.Lock()
_thread: threading.Thread | None = None
_loaded: dict[str, LoadedBackbone] = {}


def begin(heads: Sequence[str | PathLike[str]] | None = None) -> None:
    """Begin to load the backbone that the first of the heads names.

    Returns at once. `engine.backbone.load_backbone` waits for what was begun and takes it if it
    fits. What goes wrong here is not reported: it goes wrong again where it is. A network that is
    not in the cache is not compiled here.

    Parameters
    ----------
    heads : sequence of path, optional
        Head files that will be asked; default the embedded demonstration head.
    """
    global _thread  # noqa: PLW0603
    # What holds for the whole process is changed in one that has just started, and not in a program
    # of others that asks for a prediction among other things.
    is_ours = "numpy" not in sys.modules
    if is_ours:
        # OpenBLAS starts a thread for each core when NumPy is imported, which spins for 40 ms where
        # the network is being loaded. Predictions have no use for them.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Here and not in the thread, which would fight for Python's lock with what the caller imports.
    from engine import backbone  # noqa: F401

    with _lock:
        if _thread is not None:
            return
        # Not a daemon: at the end of a program that fails early, Python waits for it, for OpenVINO
        # must not be torn down under a thread that is inside of it.
        _thread = threading.Thread(target=_load, args=(heads, is_ours), name="head start")
        _thread.start()


def take(name: str) -> LoadedBackbone | None:
    """Wait for what was begun, and take a backbone out of it.

    Parameters
    ----------
    name : str
        Name of a backbone.

    Returns
    -------
    LoadedBackbone or None
        None if nothing was begun, or another backbone, or it went wrong. Each is given once.
    """
    global _thread  # noqa: PLW0603
    thread = _thread
    if thread is None:
        return None
    thread.join()
    with _lock:
        found = _loaded.pop(name, None)
        if not _loaded:
            _thread = None
    return found


def _load(heads: Sequence[str | PathLike[str]] | None, is_ours: bool) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
    try:
        from engine import backbone, openvino_c

        if is_ours:
            openvino_c.use_one_heap()
        openvino_c.version()  # loads the library, while the caller has Python's lock
        name, taps = _wanted(heads)
        for part in name.split(backbone.JOIN):
            mine = (
                taps
                if part == name
                else [tap.removeprefix(f"{part}.") for tap in taps if tap.startswith(f"{part}.")]
            )
            if part in backbone.list_backbones():
                _loaded[part] = backbone.LoadedBackbone(part, mine, backbone.default_cache_dir())
    except Exception:  # noqa: S110 - said again, with its place, by load_head or load_backbone
        pass
    finally:
        sys.setswitchinterval(interval)


def _wanted(heads: Sequence[str | PathLike[str]] | None) -> tuple[str, list[str]]:
    """Return the first head's backbone, and the taps of all heads on it."""
    from pathlib import Path

    files = list(heads or [Path(__file__).with_name("demonstration") / "pneumonia.safetensors"])
    first, *others = (_metadata(file) for file in files)
    heads_on_it = [first, *(head for head in others if head["backbone"] == first["backbone"])]
    taps = [block["tap"] for head in heads_on_it for block in head["blocks"]]
    return first["backbone"], list(dict.fromkeys(taps))


def _metadata(file: str | PathLike[str]) -> dict[str, Any]:
    """Read what a head says of itself: safetensors with one metadata entry that holds JSON."""
    import json

    with open(file, "rb") as stream:  # noqa: PTH123
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(file)
        header = json.loads(stream.read(length))
    found: dict[str, Any] = json.loads(header["__metadata__"]["hilum"])
    return found
