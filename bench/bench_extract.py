"""Extraction of a folder, against the CPU time of its parts: do decoding and inference overlap?

python -m pytest bench/bench_extract.py -s
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import engine
from bench.conftest import cpu_seconds
from engine.features import choose_blocks, feature_vector
from engine.images import Preprocessing, preprocess, read_picture
from engine.inference import in_order

ROUNDS = 7


def run_all(work: Callable[[Any], None], items: Sequence[Any], n_threads: int) -> None:
    for _ in in_order(work, items, n_threads):
        pass


def test_extract(benchmark: Any, images: list[Path], tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    backbone = engine.load_backbone(streams=cores)
    preprocessing = Preprocessing.from_dict(backbone.preprocessing)
    feature_vector(images[0], backbone, preprocessing, choose_blocks(backbone))
    inputs = [preprocess(read_picture(path), preprocessing) for path in images]

    def decode(path: Path) -> None:
        read_picture(path)

    def decode_to_input(path: Path) -> None:
        preprocess(read_picture(path), preprocessing)

    def infer(image: np.ndarray) -> None:
        backbone.infer(image[np.newaxis])

    def extract() -> float:
        start = time.perf_counter()
        engine.extract_features(backbone, images, tmp_path / "out.hilum").close()
        return time.perf_counter() - start

    # A stage alone on one core finds a faster clock and the whole cache, so its CPU time is less
    # than what the same work costs when all cores are busy; both are measured.
    ratios: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for n_threads in (1, cores):
            cpu = {
                stage.__name__: cpu_seconds(lambda: run_all(stage, items, n_threads))  # noqa: B023
                for stage, items in ((decode, images), (decode_to_input, images), (infer, inputs))
            }
            wall = extract()
            for stage in ("decode", "decode_to_input"):
                name = f"{stage} + infer, stages alone on {n_threads}"
                ideal = (cpu[stage] + cpu["infer"]) / cores
                ratios.setdefault(name, []).append(wall / ideal)
    benchmark.extra_info["images"] = len(images)
    print(f"\nextraction wall / (CPU time of its stages / {cores} cores), median of {ROUNDS}:")
    for name, values in ratios.items():
        benchmark.extra_info[name] = round(statistics.median(values), 3)
        print(f"  {name}: {statistics.median(values):.3f} (least {min(values):.3f})")
    benchmark.pedantic(extract, rounds=3)
