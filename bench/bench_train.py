"""Five-fold training from the embedded container, against scikit-learn on the same rows.

python -m pytest bench/bench_train.py -s
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine

ROUNDS = 3
# The peak of the process itself: what getrusage says a child inherits from its parent's pages.
PEAK = """
import json, pathlib, re, sys, time
from engine.train import main
start = time.perf_counter()
code = main(sys.argv[1:])
wall = time.perf_counter() - start
status = pathlib.Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024
print(json.dumps({"code": code, "wall": wall, "peak_mib": peak}))
"""


def test_train_in_process(benchmark: Any, container_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="peer scikit-learn missing")
    selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    scaling = pytest.importorskip("sklearn.preprocessing")
    container = engine.open_container(container_path)
    X, y = container.arrays()

    def mine() -> None:
        engine.cross_validate(container, folds=5, seed=0)

    def peer() -> None:
        model = pipeline.make_pipeline(
            scaling.StandardScaler(),
            # The same penalty: scikit-learn's C divides a sum, ours a mean.
            linear_model.LogisticRegression(C=1 / (0.3 * len(X) * 0.8), class_weight="balanced"),
        )
        folds = selection.StratifiedGroupKFold(5, shuffle=True, random_state=0)
        selection.cross_val_predict(
            model, X, y, groups=np.asarray(container.groups), cv=folds, n_jobs=1,
            method="predict_proba",
        )  # fmt: skip

    mine()
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        mine()
        middle = time.perf_counter()
        peer()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    benchmark.extra_info["times_faster_than_scikit_learn"] = round(statistics.median(ratios), 2)
    benchmark.pedantic(mine, rounds=3)
    print(f"\nscikit-learn / ours, five folds: median {statistics.median(ratios):.2f}")


def test_train_command(benchmark: Any, container_path: Path, tmp_path: Path) -> None:
    def command() -> dict[str, Any]:
        result = subprocess.run(
            [sys.executable, "-c", PEAK, str(container_path), "-o", str(tmp_path / "h.safetensors"),
             "--cv", "5", "--quiet"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return figures

    command()  # fills numba's cache
    figures = benchmark.pedantic(command, rounds=3)
    benchmark.extra_info.update(figures)
    print(f"\nengine.train --cv 5: {figures}")
