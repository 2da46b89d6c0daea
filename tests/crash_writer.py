"""Writes one fixed small container, however often it is killed: ``OUT DTYPE [--resume]``."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import formats
from formats.writer import ContainerWriter

DIM = 3
# two chunks of 1024 rows, the second one not full
N_ITEMS = 1500
JOB = {"of": "the crash tests"}
DTYPES = ("f16", "f32", "i8")
NOTES: dict[str, Any] = {
    "classes": ["normal", "pneumonia"],
    "multilabel": False,
    "backbone": {"name": "golden", "sha256": "ab" * 32},
    "preprocessing": {"version": 1, "height": 8, "width": 8, "fit": "stretch"},
    "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
}
# where calls of append end: single items, some that give no row, pieces across a chunk's edge
FEW = (1, 7, 8, 9, 300, 1200, N_ITEMS)
MANY = (*range(1, 10), *range(60, N_ITEMS, 60), N_ITEMS)

_RNG = np.random.default_rng(5)
_FEATURES = _RNG.standard_normal((N_ITEMS, DIM)).astype(np.float32)
# every fortieth input cannot be used
_IS_ROW = np.arange(N_ITEMS) % 40 != 7
_COLUMNS = {
    "label": _RNG.integers(0, 2, N_ITEMS),
    "split": _RNG.integers(0, 4, N_ITEMS),
    "group": _RNG.permutation(N_ITEMS) // 2,
    "sample_key": _RNG.integers(0, 256, (N_ITEMS, 16)),
}
N_ROWS = int(_IS_ROW.sum())


def begin(out: Path, dtype: str = "f16", **arguments: Any) -> ContainerWriter:
    """Make the writer of the fixed container."""
    return ContainerWriter(
        out,
        dim=DIM,
        dtype=dtype,
        backbone_digest=NOTES["backbone"]["sha256"],
        preprocessing_digest=formats.preprocessing_digest(NOTES["preprocessing"]),
        **{"job": JOB, "expected_rows": N_ROWS, "seed": 3, **arguments},
    )


def add_items(writer: ContainerWriter, stop: int) -> None:
    """Append the rows of the next items."""
    items = np.arange(writer.n_items, stop)
    items = items[_IS_ROW[items]]
    columns = {name: values[items] for name, values in _COLUMNS.items()} if len(items) else {}
    writer.append(_FEATURES[items], n_items=stop - writer.n_items, **columns)


def write(
    out: Path,
    dtype: str = "f16",
    *,
    edges: Sequence[int] = FEW,
    confirm: Callable[[int], object] = lambda _: None,
    **arguments: Any,
) -> None:
    """Write the fixed container, behind what an earlier writer left if `resume` is given."""
    with begin(out, dtype, **arguments) as writer:
        confirm(writer.n_items)
        if writer.finished:
            return
        for stop in edges:
            if stop > writer.n_items:
                add_items(writer, stop)
                confirm(writer.n_items)
        writer.seal(NOTES)


def leave(out: Path, dtype: str = "f16", *, stop: int = N_ITEMS, **arguments: Any) -> None:
    """Leave an unfinished file with the first `stop` items."""
    with begin(out, dtype, **arguments) as writer:
        for _, edge in itertools.pairwise((0, *(e for e in FEW if e < stop), stop)):
            add_items(writer, edge)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    write(arguments.out, arguments.dtype, edges=MANY, resume=arguments.resume)


if __name__ == "__main__":
    main()
