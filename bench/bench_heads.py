"""A linear head of fourteen labels on 100,000 rows, against scikit-learn and PyTorch.

python -m bench.bench_heads [--rows 100000] [--l2 0.01] [--rounds 3] [--folder FOLDER]

All minimise the same penalised loss of the same float32 features, with two threads. Measured is
the time until the loss is within 1e-4 of the lowest one: of ours with everything it does, means
and spreads included, of the others without the standardisation they were spared. PyTorch may live
in another environment: HILUM_TORCH_PYTHON names its interpreter. A peer that is missing is named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import engine
import formats
from engine import fitting, optimisation, rows
from engine.dataset import learning_rows, load_rows
from engine.rows import Crew, Rows
from engine.work import Course, Work

DIM, LABELS, FACTORS = 1280, 14, 256
THREADS = 2
CLOSE = 1e-4
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


def make_rows(n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
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
    score = factors @ (rng.normal(size=(FACTORS, LABELS)) * 0.25)
    score += rng.logistic(size=score.shape)
    shares = np.geomspace(0.2, 0.01, LABELS)
    limits = [np.quantile(score[:, c], 1 - shares[c]) for c in range(LABELS)]
    return X, (score > np.array(limits)).astype(np.int8)


def losses(
    X: np.ndarray[Any, Any], y: np.ndarray[Any, Any], theta: np.ndarray[Any, Any], l2: float
) -> np.ndarray[Any, Any]:
    """Return the penalised loss of every label; theta is (k, d + 1) with the bias last."""
    total = np.zeros(y.shape[1])
    for start in range(0, len(X), 10_000):
        z = X[start : start + 10_000] @ theta[:, :-1].T.astype(np.float32) + theta[:, -1]
        total += (np.logaddexp(0.0, z) - y[start : start + 10_000] * z).sum(axis=0)
    return total / len(X) + 0.5 * l2 * (theta[:, :-1] ** 2).sum(axis=1)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[float, float]]]:
    """Note when every evaluation of our loss ended, and what it was, summed over labels."""
    log: list[tuple[float, float]] = []
    of_all = fitting.Loss.of_all

    def noted(loss: fitting.Loss, *arguments: Any) -> float:
        value = of_all(loss, *arguments)
        log.append((time.perf_counter(), LABELS * value))
        return value

    with mock.patch.object(fitting.Loss, "of_all", noted):
        yield log


def fit_ours(path: Path, l2: float, *, held: bool) -> list[tuple[float, float]]:
    """Fit from a container, with features in memory or read in every pass; seconds and losses."""
    settings = fitting.Settings("linear", l2 / LABELS, 1, False, 0)
    budget = 1 << 34 if held else rows.MEMORY_BYTES
    with (
        engine.open_container(path) as container,
        mock.patch.object(rows, "MEMORY_BYTES", budget),
        Crew(THREADS) as crew,
        Rows((container,)) as features,
        recorded() as log,
    ):
        data = load_rows((container,), features, learning_rows, Course(1, None).reading(crew))
        work = Work(crew, budget // 2, lambda *_: None)
        start = time.perf_counter()
        fitting.fit_weights(data, np.arange(len(features)), None, settings, work)
        return [(at - start, value) for at, value in log]


def fit_scikit_learn(
    X: np.ndarray[Any, Any], y: np.ndarray[Any, Any], l2: float, limit: float, steps: int
) -> float:
    """Fit label after label; seconds until their sum is below the limit."""
    from sklearn.linear_model import LogisticRegression, _logistic
    from threadpoolctl import threadpool_limits

    minimize = _logistic.optimize.minimize
    seconds = np.full((LABELS, steps), np.nan)
    found = np.zeros((steps, LABELS, DIM + 1))
    for c in range(LABELS):
        log: list[tuple[float, Any]] = []

        def note(theta: Any, *, log: Any = log) -> None:
            log.append((time.perf_counter(), theta.copy()))

        def noted(*arguments: Any, note: Any = note, **options: Any) -> Any:
            return minimize(*arguments, **{**options, "callback": note})

        model = LogisticRegression(C=1.0 / (l2 * len(X)), solver="lbfgs", tol=1e-12, max_iter=steps)
        with (
            mock.patch.object(_logistic.optimize, "minimize", noted),
            threadpool_limits(THREADS),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            model.fit(X, y[:, c])
        for step in range(steps):
            at, theta = log[min(step, len(log) - 1)]
            seconds[c, step], found[step, c] = at - start, theta
    low, high = 0, steps - 1
    if losses(X, y, found[high], l2).sum() > limit:
        raise SystemExit(f"scikit-learn: {steps} iterations are not enough")
    while low < high:
        middle = (low + high) // 2
        if losses(X, y, found[middle], l2).sum() <= limit:
            high = middle
        else:
            low = middle + 1
    return float(seconds[:, low].sum())


def fit_torch(folder: Path, l2: float, steps: int) -> dict[str, Any] | None:
    """Fit all labels at once; versions, seconds and losses, or None where PyTorch is missing."""
    python = os.environ.get("HILUM_TORCH_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", TORCH, str(folder), str(l2), str(THREADS), str(steps)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        if "No module named" not in done.stderr:
            raise SystemExit(f"PyTorch failed: {done.stderr}")
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reached(log: list[tuple[float, float]], limit: float) -> float:
    """Return the seconds until a loss was below the limit."""
    return next((seconds for seconds, value in log if value <= limit), float("nan"))


def main(argv: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--l2", type=float, default=0.01, help="penalty of each label")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="most iterations of the peers")
    parser.add_argument("--folder", type=Path, help="where 1.1 GB may be written")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        X, y = make_rows(options.rows)
        np.save(folder / "X.npy", X)
        np.save(folder / "y.npy", y)
        notes = {
            "classes": [f"label{c}" for c in range(LABELS)],
            "multilabel": True,
            "backbone": {"name": "bench", "sha256": "0" * 64},
            "preprocessing": {"version": 1},
            "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
        }
        path = folder / "bench.hilum"
        formats.write_container(path, X, notes, dtype="f32", columns={"label": y})
        with (
            mock.patch.object(optimisation, "_GRADIENT_TOLERANCE", 1e-9),
            mock.patch.object(optimisation, "_PROGRESS_TOLERANCE", 1e-13),
        ):
            lowest = fit_ours(path, options.l2, held=True)[-1][1]
        limit = lowest * (1.0 + CLOSE)
        print(f"{options.rows} rows, {DIM} columns, {LABELS} labels, penalty {options.l2}")
        print(f"lowest loss {lowest:.8f}; measured until {limit:.8f}, {THREADS} threads each")
        seconds: dict[str, list[float]] = {}
        missing: dict[str, str] = {}
        for _ in range(options.rounds):
            for what, held in (("ours, held", True), ("ours, read in every pass", False)):
                own = fit_ours(path, options.l2, held=held)
                seconds.setdefault(what, []).append(reached(own, limit))
            torch = fit_torch(folder, options.l2, options.steps)
            if torch is None:
                missing["PyTorch"] = "not installed here; HILUM_TORCH_PYTHON may name a Python"
            else:
                peer = f"PyTorch {torch['version']} LBFGS, all labels at once"
                seconds.setdefault(peer, []).append(reached(torch["log"], limit))
                if min(value for _, value in torch["log"]) < lowest * (1 - 1e-5):
                    raise SystemExit("PyTorch found a lower loss: ours is not the lowest")
            try:
                import sklearn
            except ImportError:
                missing["scikit-learn"] = "not installed here"
            else:
                peer = f"scikit-learn {sklearn.__version__} lbfgs, label by label"
                taken = fit_scikit_learn(X, y, options.l2, limit, options.steps)
                seconds.setdefault(peer, []).append(taken)
        ours = statistics.median(seconds["ours, held"])
        for name, values in seconds.items():
            median = statistics.median(values)
            spread = ", ".join(f"{value:.2f}" for value in values)
            print(f"  {name:50}{median:8.2f} s  x{median / ours:6.2f}   ({spread})")
        for peer, why in missing.items():
            print(f"  {peer:50} MISSING: {why}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
