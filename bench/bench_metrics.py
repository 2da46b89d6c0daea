"""Figures with intervals of 10,000 rows, against a plain NumPy bootstrap of one of them.

python -m pytest bench/bench_metrics.py -s
python -m bench metrics

NumPy computes the AUROC alone, ours every figure. The peer's time is that of ten draws, multiplied:
its draws are alike. Ratios are of CPU time, because ours takes all cores and the peer one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.conftest import cpu_seconds
from bench.stages import Findings, Setting, Stage, in_turn
from engine.metrics import DRAWS, evaluate_predictions

STAGE = Stage(
    "metrics",
    "Figures with intervals",
    [
        "What do bootstrap intervals over patients cost, beside a plain NumPy bootstrap?",
        "2,000 draws of 10,000 rows: less than 2 s.",
    ],
    order=48,
)
N_ROWS, N_GROUPS = 10_000, 7_000
ROUNDS = 3
# Draws that the peer is timed with; its time is proportional to them.
PEER_DRAWS = 10


def _multilabel() -> tuple[NDArray[np.float64], NDArray[Any]]:
    rng = np.random.default_rng(0)
    z = rng.normal(-2, 1.2, (N_ROWS, 14))
    labels = (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(np.int8)
    labels[rng.random(z.shape) < 0.1] = -1
    return 1 / (1 + np.exp(-1.3 * z)), labels


def _softmax() -> tuple[NDArray[np.float64], NDArray[Any]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N_ROWS)
    z = rng.normal(size=(N_ROWS, 3))
    z[np.arange(N_ROWS), labels] += 1.0
    p = np.exp(z)
    return p / p.sum(axis=1, keepdims=True), labels


def _area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, as fast as plain NumPy has it where nothing is tied."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def _peer(p: NDArray[np.float64], labels: NDArray[Any], groups: NDArray[Any], draws: int) -> None:
    """Draw patients, take their rows, rank them: the AUROC of each class, nothing else."""
    rng = np.random.default_rng(0)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    truth = labels if labels.ndim == 2 else (labels[:, None] == np.arange(p.shape[1])).astype(int)
    found = np.empty((draws, p.shape[1]))
    for draw in range(draws):
        drawn = rng.integers(0, len(members), len(members))
        rows = np.concatenate([members[g] for g in drawn])
        for c in range(p.shape[1]):
            known = rows[truth[rows, c] >= 0]
            found[draw, c] = _area(p[known, c], truth[known, c] == 1)
    np.percentile(found, [2.5, 97.5], axis=0)


TASKS = ("multilabel, 14 labels", "softmax, 3 classes")


def _works(task: str, peer_draws: int = PEER_DRAWS) -> dict[str, Callable[[], None]]:
    p, labels = _multilabel() if task.startswith("multilabel") else _softmax()
    groups = np.random.default_rng(1).integers(0, N_GROUPS, N_ROWS)
    groups = np.unique(groups, return_inverse=True)[1]
    names = [str(c) for c in range(p.shape[1])]
    evaluate_predictions(p, labels, groups, names, draws=64)  # compiles
    return {
        "every figure, ours": lambda: _evaluate(p, labels, groups, names),
        "AUROC alone, NumPy": lambda: _peer(p, labels, groups, peer_draws),
    }


def _evaluate(*arguments: Any) -> None:
    evaluate_predictions(*arguments)


def measure(setting: Setting) -> Findings:
    findings = Findings(setting)
    draws = setting.size(PEER_DRAWS, 2)
    findings.peer("NumPy", version=np.__version__, how=f"{draws} draws, time x {DRAWS / draws:g}")
    charted, walls = {}, {}
    for task in TASKS:
        (ours, mine), (peer, theirs) = _works(task, draws).items()
        wall: list[float] = []

        def timed(mine: Callable[[], None] = mine, wall: list[float] = wall) -> None:
            start = time.perf_counter()
            mine()
            wall.append(time.perf_counter() - start)

        costs = in_turn(
            {ours: timed, peer: theirs}, rounds=setting.rounds, warm_up=0, clock=time.process_time
        )
        costs[peer] = [value * DRAWS / draws for value in costs[peer]]
        findings.figure(f"{ours}, {task}, wall time", wall, asked="< 2", unit="s")
        findings.ratio(f"{peer} / {ours}, {task}, CPU time", costs[ours], costs[peer])
        charted[task], walls[task] = costs, wall
    rows = [[task, walls[task], *bars.values()] for task, bars in charted.items()]
    columns = ["task", "ours, s", *(f"{name}, s of CPU" for name in charted[TASKS[0]])]
    findings.table(f"{N_ROWS:,} rows, {DRAWS:,} draws", columns, rows)
    findings.chart(
        f"{DRAWS:,} bootstrap draws of {N_ROWS:,} rows", charted,
        unit="s of CPU, lower is better", ours=("every figure, ours",), log=True,
    )  # fmt: skip
    return findings


@pytest.mark.parametrize("task", TASKS)
def test_figures_with_intervals(benchmark: Any, task: str) -> None:
    mine, peer_work = _works(task).values()
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        own = cpu_seconds(mine)
        seconds.append((time.perf_counter() - start, own))
        peer = cpu_seconds(peer_work) * DRAWS / PEER_DRAWS
        ratios.append(peer / own)
    wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(
        f"\n{task}, {N_ROWS} rows, {DRAWS} draws, every figure: "
        f"{wall:.2f} s, {cpu:.2f} s of CPU; NumPy, AUROC alone (from {PEER_DRAWS} draws): "
        f"{statistics.median(ratios) * cpu:.1f} s of CPU, {statistics.median(ratios):.1f} times"
    )
    benchmark.pedantic(mine, rounds=1)
