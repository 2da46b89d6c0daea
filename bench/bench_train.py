"""Five-fold training from the embedded container, against scikit-learn on the same rows and folds.

python -m bench train
python -m pytest bench/bench_train.py -s

In one process both fit five linear heads with the same penalty of the same loss, each to its own
default tolerance; so their AUROCs stand beside the times. Ours ends with every figure and its
bootstrap intervals, scikit-learn with the predictions. By default ours also chooses the penalty and
calibrates in inner folds of each fold: that has a line of its own, and no peer.

The command reads the container, cross-validates so, trains the head on all rows and fits what
refuses strangers; it is a whole process, from its start to its end.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import engine
from bench.stages import Findings, Setting, Stage, in_turn, run_process, version_of
from engine.metrics import auroc

FOLDS, L2 = 5, 0.3
ROUNDS = 3
EMBEDDED = Path(engine.__file__).parent / "demonstration" / "pneumonia.hilum"
STAGE = Stage(
    "train",
    "Five-fold training from the embedded container",
    [
        "How long does training take when features are there, beside scikit-learn?",
        "The whole command with choice of the penalty and 2,000 bootstrap draws: less than 10 s.",
        "Accuracy at least 0.870, macro AUROC at least 0.955, calibration error at most 0.05.",
    ],
    order=45,
)
OURS, PEER = "Hilum", "scikit-learn"
CHOSEN = "Hilum, penalty chosen and calibrated inside each fold"
Predictions = NDArray[np.float64]


class Rows:
    """The embedded container's rows, and how each cross-validates them."""

    def __init__(self) -> None:
        from engine.splits import grouped_folds

        self.container = engine.open_container(EMBEDDED)
        X, y = self.container.arrays()
        self.X, self.y = np.asarray(X, np.float32), np.asarray(y).astype(np.int64)
        self.groups = np.asarray(self.container.groups).astype(np.int64)
        # Those that ours makes of this seed.
        self.fold = grouped_folds(self.y, self.groups, int(self.y.max()) + 1, folds=FOLDS, seed=0)

    def ours(self, *, chosen: bool = False) -> Predictions:
        """Cross-validate with Hilum; probabilities in the order of the rows."""
        plain: dict[str, Any] = {} if chosen else {"l2": L2, "calibration": "none"}
        found = engine.cross_validate(self.container, folds=FOLDS, seed=0, **plain)
        probabilities = np.empty(found.probabilities.shape)
        probabilities[found.rows] = found.probabilities
        return probabilities

    def scikit_learn(self) -> Predictions:
        """Cross-validate with scikit-learn, one fold after the other; BLAS takes all cores."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        probabilities = np.empty((len(self.y), int(self.y.max()) + 1))
        for number in range(FOLDS):
            out = self.fold == number
            # C divides a sum, our penalty a mean.
            penalty = 1 / (L2 * np.count_nonzero(~out))
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced")
            )
            model.fit(self.X[~out], self.y[~out])
            probabilities[out] = model.predict_proba(self.X[out])
        return probabilities

    def area(self, probabilities: Predictions) -> float:
        """Macro AUROC."""
        return float(
            np.mean(
                [auroc(probabilities[:, c], self.y == c) for c in range(probabilities.shape[1])]
            )
        )


def _command(folder: Path) -> list[str]:
    head = str(folder / "head.safetensors")
    return [sys.executable, "-m", "engine.train", str(EMBEDDED), "-o", head, "--cv", str(FOLDS),
            "--quiet"]  # fmt: skip


def measure(setting: Setting) -> Findings:
    """Measure training in one process, the command, and what the head is worth."""
    findings = Findings(setting)
    rows = Rows()
    areas: dict[str, float] = {}

    def judged(name: str, work: Callable[[], Predictions]) -> Callable[[], None]:
        def run() -> None:
            areas[name] = rows.area(work())

        return run

    ways = {OURS: rows.ours, CHOSEN: lambda: rows.ours(chosen=True)}
    version = version_of("scikit-learn")
    if version is None:
        findings.missing(PEER, "not installed: pip install scikit-learn")
    else:
        ways[PEER] = rows.scikit_learn
        findings.peer(
            PEER, version=version,
            how="float32; StandardScaler, LogisticRegression (lbfgs), balanced classes; fold after "
            "fold, BLAS with all cores",
        )  # fmt: skip
    works = {name: judged(name, work) for name, work in ways.items()}
    times = in_turn(works, rounds=setting.rounds, warm_up=setting.size(1, 0))
    if version is not None:
        findings.ratio(
            f"{PEER} / {OURS}, the same penalty and folds", times[OURS], times[PEER],
            note="ours includes all figures with their bootstrap intervals",
        )  # fmt: skip
    findings.table(
        f"{len(rows.y)} rows of {rows.X.shape[1]} features, {FOLDS} folds, in one process",
        ["", "s", "macro AUROC"], [[name, times[name], areas[name]] for name in works],
    )  # fmt: skip
    findings.chart("Five-fold training", times, unit="s, lower is better", ours=(OURS, CHOSEN))
    command(findings, setting)
    worth(findings, rows, setting)
    return findings


def command(findings: Findings, setting: Setting) -> None:
    """Run `engine.train --cv 5` as a process of its own."""
    if not hasattr(os, "wait4"):
        findings.missing("engine.train as a command", "the peak of a child needs wait4")
        return
    arguments = _command(setting.work)
    run_process(arguments)  # compiles kernels that are not kept yet
    found = [run_process(arguments) for _ in range(setting.rounds)]
    wall = [one["wall_ms"] / 1e3 for one in found]
    cpu = [one["cpu_ms"] / 1e3 for one in found]
    peak = [one["peak_mib"] for one in found]
    findings.figure("engine.train --cv 5, whole process", wall, asked="< 10", unit="s")
    findings.table(
        "The whole command", ["", "wall, s", "CPU, s", "peak, MiB"],
        [["engine.train --cv 5", wall, cpu, peak]],
    )  # fmt: skip


def worth(findings: Findings, rows: Rows, setting: Setting) -> None:
    """Judge the default head; a round is another division into folds."""
    found = [
        engine.cross_validate(rows.container, folds=FOLDS, seed=seed)
        for seed in range(setting.rounds)
    ]
    note = "720 paediatric X-rays; each round is another division by patient"
    for name, asked, values in (
        ("accuracy", ">= 0.870", [one.accuracy for one in found]),
        ("macro AUROC", ">= 0.955", [one.auroc_macro for one in found]),
        ("expected calibration error", "<= 0.05", [one.calibration["ece"] for one in found]),
    ):
        findings.figure(
            name, [value for value in values if value is not None], asked=asked, note=note
        )


def test_train_in_process(benchmark: Any) -> None:
    pytest.importorskip("sklearn", reason="peer scikit-learn missing")
    rows = Rows()
    ours, theirs = rows.area(rows.ours()), rows.area(rows.scikit_learn())
    # The same rows, folds and penalty.
    assert abs(ours - theirs) < 0.005
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rows.ours()
        middle = time.perf_counter()
        rows.scikit_learn()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    median = statistics.median(ratios)
    benchmark.extra_info["scikit-learn / ours"] = round(median, 2)
    print(f"\nscikit-learn / ours: {median:.2f}; macro AUROC {theirs:.4f} / {ours:.4f}")
    benchmark.pedantic(rows.ours, rounds=3)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a child needs wait4")
def test_train_command(benchmark: Any, tmp_path: Path) -> None:
    arguments = _command(tmp_path)
    run_process(arguments)  # compiles kernels that are not kept yet
    found = benchmark.pedantic(lambda: run_process(arguments), rounds=3)
    figures = {key: round(found[key], 1) for key in ("wall_ms", "cpu_ms", "peak_mib")}
    benchmark.extra_info.update(figures)
    print(f"\nengine.train --cv {FOLDS}: {figures}")
