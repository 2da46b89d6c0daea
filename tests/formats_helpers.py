"""What the tests of formats share: the golden files, their maker and small containers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import formats
from formats._library import HEADER_DTYPE, ffi

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "formats" / "golden"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())
VALID = sorted(MANIFEST["valid"])
CORRUPT = sorted(MANIFEST["corrupt"])
# of the C declarations: the descriptor of one column, and the name of every status in C
COLUMN_DTYPE: np.dtype = HEADER_DTYPE["columns"].base
STATUS_NAMES: dict[int, str] = dict(ffi.typeof("enum hilum_status").elements)


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()
# those of the valid files that Hilum's writer writes, and would write again from their contents
WRITTEN = [name for name in VALID if Path(name).stem not in maker.ASSEMBLED]


def notes_of(dim: int, classes: tuple[str, ...] = ("normal", "pneumonia"), **more: Any) -> dict:
    return {
        "classes": list(classes),
        "multilabel": False,
        "backbone": {"name": "golden", "sha256": "ab" * 32},
        "preprocessing": {"version": 1, "height": 8, "width": 8, "fit": "stretch"},
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": dim}],
        **more,
    }


def write_small(path: Path, n_rows: int = 20, dim: int = 4, **arguments: Any) -> np.ndarray:
    """Write a container with labels, splits and groups; returns its features."""
    features = maker.make_features(n_rows, dim)
    columns = {
        "label": np.arange(n_rows) // 2 % 2,
        "split": np.arange(n_rows) // 2 % 4,
        "group": np.arange(n_rows) // 2,
    }
    arguments.setdefault("columns", columns)
    arguments.setdefault("group_order", "given")
    formats.write_container(path, features, notes_of(dim), **arguments)
    return features


def digests(notes: dict) -> dict[str, str]:
    return {
        "backbone_digest": notes["backbone"]["sha256"],
        "preprocessing_digest": formats.preprocessing_digest(notes["preprocessing"]),
    }


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )
