"""Extraction of a folder, against the CPU time of its parts: do decoding and inference overlap?

python -m pytest bench/bench_extract.py -s
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import engine
from bench.conftest import cpu_seconds
from engine.features import choose_blocks, feature_vector
from engine.images import Preprocessing, preprocess, read_picture

ROUNDS = 5


def test_extract(benchmark: Any, images: list[Path], tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    backbone = engine.load_backbone(streams=cores)
    preprocessing = Preprocessing.from_dict(backbone.preprocessing)
    feature_vector(images[0], backbone, preprocessing, choose_blocks(backbone))
    inputs = [preprocess(read_picture(path), preprocessing) for path in images]

    def decode() -> None:
        for path in images:
            read_picture(path)

    def decode_to_input() -> None:
        for path in images:
            preprocess(read_picture(path), preprocessing)

    def infer() -> None:
        for image in inputs:
            backbone.infer(image[np.newaxis])

    def extract() -> None:
        engine.extract_features(backbone, images, tmp_path / "out.hilum").close()

    strict, whole = [], []
    for _ in range(ROUNDS):
        decoding, to_input, network = map(cpu_seconds, (decode, decode_to_input, infer))
        start = time.perf_counter()
        extract()
        wall = time.perf_counter() - start
        strict.append(wall / ((decoding + network) / cores))
        whole.append(wall / ((to_input + network) / cores))
    benchmark.extra_info["images"] = len(images)
    benchmark.extra_info["wall_to_decoding_and_network"] = round(statistics.median(strict), 3)
    benchmark.extra_info["wall_to_input_and_network"] = round(statistics.median(whole), 3)
    benchmark.pedantic(extract, rounds=3)
    print(
        f"\nextraction wall over CPU time on {cores} cores, medians of {ROUNDS}: "
        f"{statistics.median(strict):.3f} of (decoding + network), "
        f"{statistics.median(whole):.3f} of (decoding to the network's input + network)"
    )
