"""What the doctor does in processes of their own: import, compile, load, draw.

A CPU that lacks an instruction kills the process that meets it, and that is a finding too. Each
step prints JSON objects, a line each, the last with its result.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import EngineError

__all__ = ["STEPS", "main"]

_PHANTOM_SEED, _PHANTOM_HEIGHT, _PHANTOM_WIDTH = 7, 512, 640


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def _imports(*pairs: str) -> dict[str, Any]:
    """Import packages, given as NAME=MODULE, and say of each what came of it."""
    for pair in pairs:
        name, _, module = pair.partition("=")
        error = None
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as failure:
            error = "not installed"
            if failure.name not in (None, module):
                error = f"needs {failure.name}, which is not installed"
        except Exception as failure:  # a broken package may raise anything
            error = f"{type(failure).__name__}: {failure}"
        _say(package=name, error=error)
    return {}


def _cache_dir() -> Path | None:
    """Where compiled networks are kept."""
    from engine.backbone import default_cache_dir

    folder: Path | None = default_cache_dir()
    return folder


def _cache() -> dict[str, Any]:
    """Make the cache folder, private, and look at it."""
    folder = _cache_dir()
    found: dict[str, Any] = {"folder": None if folder is None else str(folder)}
    if folder is None:
        return found | {"writable": False, "reason": "this account has no home folder"}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        found |= {"writable": True, "reason": None}
    except OSError as error:
        found |= {"writable": False, "reason": error.strerror or str(error)}
    with contextlib.suppress(OSError):
        status = folder.stat()
        files = [entry for entry in folder.rglob("*") if entry.is_file()]
        found |= {
            "n_files": len(files),
            "bytes": sum(entry.stat().st_size for entry in files),
            "mode": f"{stat.S_IMODE(status.st_mode):03o}",
            "own": os.name == "nt" or status.st_uid == os.getuid(),
            "private": os.name == "nt" or not status.st_mode & 0o022,
        }
    from engine.slots import lock_folder

    return found | {"locks": lock_folder() is not None}


def _head(path: str) -> dict[str, Any]:
    """Read a head."""
    from engine.heads import load_head

    head = load_head(path)
    return {
        "name": head.name,
        "backbone": head.backbone,
        "taps": list(dict.fromkeys(block.tap for block in head.blocks)),
        "n_classes": len(head.classes),
        "digest": head.digest,
    }


def _network(name: str, wanted: str) -> dict[str, Any]:
    """Compile one network up to the last tap wanted, load it again, ask it for known answers."""
    from engine.backbone import find_model, list_backbones, load_backbone
    from engine.probes import check_probes

    if name not in list_backbones():
        load_backbone(name)  # says so
    card = json.loads(find_model(name, "json").read_text(encoding="utf-8"))
    names = [tap["name"] for tap in card["taps"]]
    asked = [tap for tap in wanted.split(",") if tap in names] or names[:1]
    # All taps up to the last: that is the same compiled network, and more known answers.
    taps = names[: 1 + max(names.index(tap) for tap in asked)]
    folder = _cache_dir()

    def kept() -> set[Path]:
        if folder is None:
            return set()
        with contextlib.suppress(OSError):
            return set(folder.glob(f"{name}-*.blob"))
        return set()

    before = kept()
    start = time.perf_counter()
    backbone = load_backbone(name, streams=1, taps=taps)
    between = time.perf_counter()
    first_ms = 1e3 * (between - start)
    new = kept() - before
    results = check_probes(backbone)
    backbone.close()
    start = time.perf_counter()
    load_backbone(name, streams=1, taps=taps).close()
    second_ms = 1e3 * (time.perf_counter() - start)
    blob = next(iter(new), None)
    if blob is None and before and folder is not None:
        if os.access(folder, os.W_OK):
            # A missing one would have been written.
            state = "kept before"
        else:
            # Its name tells whether it is the one: it depends on CPU, runtime and options.
            with tempfile.TemporaryDirectory() as other:
                load_backbone(name, streams=1, taps=taps, cache_dir=other).close()
                fresh = {path.name for path in Path(other).glob("*.blob")}
            state = "kept before" if fresh & {path.name for path in before} else "not kept"
    else:
        state = "kept now" if blob is not None else "not kept"
    with load_backbone(name, taps=taps) as every:
        n_streams = every.n_streams
    return {
        "backbone": name,
        "taps": taps,
        "digest": backbone.digest,
        "first_ms": round(first_ms, 1),
        "second_ms": round(second_ms, 1),
        "cache": state,
        "cache_bytes": None if blob is None else blob.stat().st_size,
        "n_streams": n_streams,
        "probes": [
            {
                "tap": result.tap,
                "probe": result.probe,
                # A network that gives no numbers: JSON has none for that either.
                "distance": result.distance if result.distance < float("inf") else None,
                "tolerance": result.tolerance,
                "passed": result.passed,
            }
            for result in results
        ],
    }


def _kernels() -> dict[str, Any]:
    """Compile every kernel that is not kept yet."""
    from engine import jit
    from engine.kernels import cache_folder

    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return {"state": "off", "n_compiled": 0, "seconds": 0.0}
    folder = cache_folder()
    if folder is None:
        return {"state": "not kept", "n_compiled": 0, "seconds": 0.0}
    start = time.perf_counter()
    n_compiled = jit.prepare(lambda name, done, total: _say(progress=[name, done, total]))
    return {
        "state": "ready",
        "folder": str(folder),
        "n_compiled": n_compiled,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _draw(folder: str) -> dict[str, Any]:
    """Draw the synthetic X-ray as PNG and as DICOM file."""
    from engine.phantoms import draw_phantom, write_dicom, write_png

    phantom = draw_phantom(_PHANTOM_SEED, height=_PHANTOM_HEIGHT, width=_PHANTOM_WIDTH)
    write_png(phantom, Path(folder) / "phantom.png")
    write_dicom(phantom, Path(folder) / "phantom.dcm")
    return {}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "imports": _imports,
    "cache": _cache,
    "head": _head,
    "network": _network,
    "kernels": _kernels,
    "draw": _draw,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do one step; print its result, or the error that ended it.

    Parameters
    ----------
    argv : sequence of str, optional
        Name of the step, one of `STEPS`, and its arguments.

    Returns
    -------
    int
        0: what went wrong is in the result.
    """
    name, *arguments = sys.argv[1:] if argv is None else argv
    try:
        result = STEPS[name](*arguments)
    except (EngineError, ImportError, OSError, RuntimeError, MemoryError) as error:
        text = str(error) or type(error).__name__
        result = {"error": {"kind": type(error).__name__, "text": text}}
    _say(result=result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
