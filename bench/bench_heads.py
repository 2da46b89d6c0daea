"""A linear head of fourteen labels on 100,000 rows, against scikit-learn and PyTorch.

python -m bench heads [--rounds N] [--quick]
python -m pytest bench/bench_heads.py -s

All minimise the same penalised loss of the same float32 features, with two threads. Measured is
the time until the loss is within 1e-4 of the lowest one: of ours with everything it does, means
and spreads included, of the others without the standardisation they were spared. PyTorch may live
in another environment: HILUM_TORCH_PYTHON names its interpreter. A peer that is missing is named.
The rows are drawn: 1.1 GB in the temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import engine
import formats
from bench.stages import Findings, Missing, Setting, Stage, shuffled_rounds, version_of
from engine import fitting, optimisation, rows
from engine.dataset import learning_rows, load_rows
from engine.rows import Crew, Rows
from engine.work import Course, Work

STAGE = Stage(
    name="heads",
    title="A head of fourteen labels",
    asks=[
        "To the same loss, two threads each: at least 5 times as fast as scikit-learn label by "
        "label, and faster than PyTorch's L-BFGS."
    ],
    order=46,
)
N_ROWS, DIM, LABELS, FACTORS = 100_000, 1280, 14, 256
THREADS = 2
L2 = 0.01  # of each label
STEPS = 100  # most iterations of the others
CLOSE = 1e-4
OURS, STREAMED = "ours, held in memory", "ours, read in every pass"
SKLEARN, TORCH_NAME = "scikit-learn, label after label", "PyTorch, all labels at once"
# Features, labels, and the container of them.
Payload = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Path]


class NotReached(Exception):  # noqa: N818
    """Raised where a peer ended above the loss to which all are held."""


# Reads features, labels and the penalty; writes seconds and loss of every evaluation.
TORCH = """
import json, sys, time
import numpy as np, torch
folder, l2, threads, steps = sys.argv[1], *map(float, sys.argv[2:])
torch.set_num_threads(int(threads))
X = torch.from_numpy(np.load(f"{folder}/X.npy"))
y = torch.from_numpy(np.load(f"{folder}/y.npy")).float()
k = y.shape[1]
def fit(steps):
    weight = torch.zeros(k, X.shape[1], requires_grad=True)
    bias = torch.zeros(k, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], lr=1, max_iter=steps, max_eval=10 * steps, history_size=10,
        tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe")
    log, start = [], time.perf_counter()
    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(X @ weight.T + bias, y)
        loss = loss + 0.5 * l2 / k * (weight * weight).sum()
        loss.backward()
        log.append((time.perf_counter() - start, k * float(loss.detach())))
        return loss
    optimiser.step(closure)
    return log
fit(2)
print(json.dumps({"version": torch.__version__, "log": fit(int(steps))}))
"""


def make_rows(n: int, n_labels: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Draw rows of hidden factors of falling strength, and labels from 20 % to 1 % of the rows.

    Independent features would be learned in a few iterations; those of a backbone are not.
    """
    rng = np.random.default_rng(0)
    strength = np.geomspace(2.0, 0.02, FACTORS)[:, None]
    mix = (rng.normal(size=(FACTORS, DIM)) * strength).astype(np.float32)
    factors = rng.normal(size=(n, FACTORS)).astype(np.float32)
    X = np.empty((n, DIM), np.float32)
    for start in range(0, n, 10_000):
        piece = factors[start : start + 10_000]
        X[start : start + 10_000] = piece @ mix + 0.3 * rng.normal(size=(len(piece), DIM))
    X -= X.mean(axis=0, dtype=np.float64).astype(np.float32)
    X /= X.std(axis=0, dtype=np.float64).astype(np.float32)
    score = factors @ (rng.normal(size=(FACTORS, n_labels)) * 0.25)
    score += rng.logistic(size=score.shape)
    shares = np.geomspace(0.2, 0.01, n_labels)
    limits = [np.quantile(score[:, c], 1 - shares[c]) for c in range(n_labels)]
    return X, (score > np.array(limits)).astype(np.int8)


def losses(
    X: np.ndarray[Any, Any], y: np.ndarray[Any, Any], theta: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the penalised loss of every label; theta is (k, d + 1) with the bias last."""
    total = np.zeros(y.shape[1])
    for start in range(0, len(X), 10_000):
        z = X[start : start + 10_000] @ theta[:, :-1].T.astype(np.float32) + theta[:, -1]
        total += (np.logaddexp(0.0, z) - y[start : start + 10_000] * z).sum(axis=0)
    return total / len(X) + 0.5 * L2 * (theta[:, :-1] ** 2).sum(axis=1)


@contextlib.contextmanager
def recorded(n_labels: int) -> Iterator[list[tuple[float, float]]]:
    """Note when every evaluation of our loss ended, and what it was, summed over labels."""
    log: list[tuple[float, float]] = []
    of_all = fitting.Loss.of_all

    def noted(loss: fitting.Loss, *arguments: Any) -> float:
        value = of_all(loss, *arguments)
        log.append((time.perf_counter(), n_labels * value))
        return value

    with mock.patch.object(fitting.Loss, "of_all", noted):
        yield log


def fit_ours(path: Path, *, held: bool) -> list[tuple[float, float]]:
    """Fit from a container, with features in memory or read in every pass; seconds and losses."""
    with engine.open_container(path) as container:
        n_labels = len(container.notes["classes"])
    settings = fitting.Settings("linear", L2 / n_labels, 1, False, 0)
    budget = 1 << 34 if held else rows.MEMORY_BYTES
    with (
        engine.open_container(path) as container,
        mock.patch.object(rows, "MEMORY_BYTES", budget),
        Crew(THREADS) as crew,
        Rows((container,)) as features,
        recorded(n_labels) as log,
    ):
        data = load_rows((container,), features, learning_rows, Course(1, None).reading(crew))
        work = Work(crew, budget // 2, lambda *_: None)
        start = time.perf_counter()
        fitting.fit_weights(data, np.arange(len(features)), None, settings, work)
        return [(at - start, value) for at, value in log]


def fit_scikit_learn(X: np.ndarray[Any, Any], y: np.ndarray[Any, Any], limit: float) -> float:
    """Fit label after label; seconds until their sum is below the limit."""
    try:
        from sklearn.linear_model import LogisticRegression, _logistic
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise Missing("not installed: pip install hilum[bench]") from None

    minimize = _logistic.optimize.minimize
    n_labels = y.shape[1]
    seconds = np.full((n_labels, STEPS), np.nan)
    found = np.zeros((STEPS, n_labels, DIM + 1))
    for c in range(n_labels):
        log: list[tuple[float, Any]] = []

        def note(theta: Any, *, log: Any = log) -> None:
            log.append((time.perf_counter(), theta.copy()))

        def noted(*arguments: Any, note: Any = note, **options: Any) -> Any:
            return minimize(*arguments, **{**options, "callback": note})

        model = LogisticRegression(C=1.0 / (L2 * len(X)), solver="lbfgs", tol=1e-12, max_iter=STEPS)
        with (
            mock.patch.object(_logistic.optimize, "minimize", noted),
            threadpool_limits(THREADS),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            model.fit(X, y[:, c])
        for step in range(STEPS):
            at, theta = log[min(step, len(log) - 1)]
            seconds[c, step], found[step, c] = at - start, theta
    low, high = 0, STEPS - 1
    if losses(X, y, found[high]).sum() > limit:
        raise NotReached(f"{STEPS} iterations are not enough")
    while low < high:
        middle = (low + high) // 2
        if losses(X, y, found[middle]).sum() <= limit:
            high = middle
        else:
            low = middle + 1
    return float(seconds[:, low].sum())


def fit_torch(folder: Path, steps: int) -> dict[str, Any]:
    """Fit all labels at once; version, seconds and losses."""
    python = os.environ.get("HILUM_TORCH_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", TORCH, str(folder), str(L2), str(THREADS), str(steps)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "No module named 'torch'" in done.stderr:
        raise Missing("not installed: HILUM_TORCH_PYTHON may name an interpreter that has PyTorch")
    if done.returncode:
        raise RuntimeError(f"PyTorch failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reached(log: list[tuple[float, float]], limit: float) -> float:
    """Return the seconds until a loss was below the limit."""
    for seconds, value in log:
        if value <= limit:
            return seconds
    raise NotReached(f"{log[-1][1]:.8f} after {len(log)} losses, wanted {limit:.8f}")


def write_payload(n_rows: int, n_labels: int, folder: Path) -> Payload:
    """Draw rows, and write them for all."""
    X, y = make_rows(n_rows, n_labels)
    np.save(folder / "X.npy", X)
    np.save(folder / "y.npy", y)
    notes = {
        "classes": [f"label{c}" for c in range(n_labels)],
        "multilabel": True,
        "backbone": {"name": "bench", "sha256": "0" * 64},
        "preprocessing": {"version": 1},
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
    }
    path = folder / "bench.hilum"
    formats.write_container(path, X, notes, dtype="f32", columns={"label": y})
    return X, y, path


def lowest_loss(path: Path) -> float:
    """Fit ours until nothing moves: the loss to which all are held."""
    with (
        mock.patch.object(optimisation, "_GRADIENT_TOLERANCE", 1e-9),
        mock.patch.object(optimisation, "_PROGRESS_TOLERANCE", 1e-13),
    ):
        return fit_ours(path, held=True)[-1][1]


def measure(setting: Setting) -> Findings:
    findings = Findings(setting)
    n_rows, n_labels = setting.size(N_ROWS, 2000), setting.size(LABELS, 3)
    X, y, path = write_payload(n_rows, n_labels, setting.work)
    lowest = lowest_loss(path)
    limit = lowest * (1.0 + CLOSE)
    versions = {SKLEARN: version_of("scikit-learn") or ""}

    def with_torch() -> float:
        # Few rows are a harder problem, and cost little.
        found = fit_torch(setting.work, setting.size(STEPS, 400))
        versions[TORCH_NAME] = found["version"]
        if min(value for _, value in found["log"]) < lowest * (1 - 1e-5):
            raise RuntimeError("PyTorch found a lower loss: ours is not the lowest")
        return reached(found["log"], limit)

    works: dict[str, Callable[[], float]] = {
        OURS: lambda: reached(fit_ours(path, held=True), limit),
        STREAMED: lambda: reached(fit_ours(path, held=False), limit),
        SKLEARN: lambda: fit_scikit_learn(X, y, limit),
        TORCH_NAME: with_torch,
    }
    asked = {SKLEARN: ">= 5", TORCH_NAME: "> 1"}
    times: dict[str, list[float]] = {name: [] for name in works}
    for name in shuffled_rounds(tuple(works), setting.rounds):
        if name in times:
            try:
                times[name].append(works[name]())
            except (Missing, NotReached) as error:
                if name not in asked:
                    raise
                findings.missing(name, str(error), asked=asked[name])
                del times[name]
    same = f"{THREADS} threads, float32, from memory"
    how = {
        SKLEARN: f"lbfgs, label after label; {same}",
        TORCH_NAME: f"torch.optim.LBFGS, all labels at once, strong Wolfe; {same}",
    }
    for name, figure in asked.items():
        if name in times:
            findings.peer(name, version=versions[name], how=how[name])
            findings.ratio(f"{name} / ours", times[OURS], times[name], asked=figure)
    findings.ratio("ours, held in memory / read in every pass", times[STREAMED], times[OURS])
    title = f"{n_labels} labels of {n_rows:,} x {DIM:,} to 1e-4 of the lowest loss"
    findings.table(title, ["", "s"], list(times.items()))
    findings.chart(title, times, unit="s, lower is better", ours=(OURS, STREAMED), log=True)
    findings.note(
        "Ours includes means and spreads of the columns; the others are given standardised rows. "
        f"The penalty is {L2:g} for each label."
    )
    return findings


def test_heads(benchmark: Any, setting: Setting, tmp_path: Path) -> None:
    n_rows, n_labels = setting.size(N_ROWS, 2000), setting.size(LABELS, 3)
    _, _, path = write_payload(n_rows, n_labels, tmp_path)
    benchmark.pedantic(fit_ours, args=(path,), kwargs={"held": True}, rounds=3, warmup_rounds=1)
