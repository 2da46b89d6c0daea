"""Opening a container and scanning its features, against a plain NumPy memmap of the same bytes.

python -m pytest bench/bench_container.py
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import formats

ROWS, DIM = 100_000, 1280
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 MB of features, more than any cache holds."""
    path = tmp_path_factory.mktemp("large") / "large.hilum"
    features = np.random.default_rng(0).normal(size=(10_000, DIM)).astype(np.float16)
    notes = {
        "format": "hilum-notes",
        "version": 1,
        "classes": [],
        "multilabel": False,
        "backbone": {"name": "bench", "sha256": DIGEST},
        "preprocessing": {"version": 1},
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
    }
    with formats.ContainerWriter(
        path,
        dim=DIM,
        dtype="f16",
        expected_rows=ROWS,
        backbone_digest=DIGEST,
        preprocessing_digest=formats.preprocessing_digest(notes["preprocessing"]),
    ) as writer:
        for _ in range(ROWS // len(features)):
            writer.append(features.astype(np.float32))
        writer.seal(notes, n_values={})
    return path


def test_open_and_first_row(benchmark: Any, container_path: Path) -> None:
    def first_row() -> None:
        with formats.open_container(container_path) as container:
            container.read_rows(slice(0, 1))

    benchmark(first_row)


def test_scan(benchmark: Any, large: Path) -> None:
    """Pairs of scans in turn, so that a noisy machine disturbs both alike."""
    container = formats.open_container(large)
    plain = np.memmap(large, np.float16, "r", offset=4096, shape=(ROWS, DIM))
    out = np.empty((ROWS, DIM), np.float16)

    def seconds(source: np.ndarray) -> float:
        start = time.perf_counter()
        np.copyto(out, source)
        return time.perf_counter() - start

    seconds(plain)
    ratios = []
    for _ in range(15):
        mine = seconds(container.features)
        ratios.append(seconds(plain) / mine)
    benchmark.extra_info["bandwidth_ratio_to_memmap"] = round(statistics.median(ratios), 3)
    benchmark.pedantic(lambda: np.copyto(out, container.features), rounds=5)
    print(f"\nscan bandwidth / plain memmap: median {statistics.median(ratios):.3f}")
