"""How good predictions are, and how sure that is.

Intervals are percentile bootstrap intervals over patients, not rows: rows of one patient are not
independent, and treating them so makes intervals too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Evaluation",
    "auroc",
    "balanced_accuracy",
    "brier",
    "confusion_matrix",
    "decide",
    "evaluate_predictions",
]

DRAWS = 2000
# Multiplicities of one chunk of draws are held at once, with what they are counted from: 20 bytes
# for each patient and draw.
_CHUNK, _CHUNK_CELLS = 64, 2_000_000


@dataclass(frozen=True)
class Evaluation:
    """Figures of one set of predictions.

    Attributes
    ----------
    n_rows, n_groups : int
        Rows judged and patients among them.
    classes : tuple of str
        Class names.
    accuracy : float
        Share of right decisions; of a multi-label head over all assessed labels.
    balanced_accuracy : float or None
        Mean recall over the classes that occur; of a multi-label head the mean over labels of
        (sensitivity + specificity) / 2.
    auroc_macro : float or None
        Mean of the AUROC of the classes that have one.
    auroc : dict of str to (float or None)
        One class against the rest; None where a class has no positive or no negative row.
    brier : float
        Softmax: mean over rows of the squared distance between probabilities and truth, summed
        over classes (Brier 1950; 0 to 2). Multi-label: mean squared error over assessed labels.
    ci95 : dict of str to [low, high]
        Patient-level bootstrap intervals; keys ``accuracy``, ``balanced_accuracy``,
        ``auroc_macro`` and ``auroc:CLASS``.
    confusion : list
        Softmax: rows are true classes, columns decided ones. Multi-label: per label
        [[true negatives, false positives], [false negatives, true positives]].
    class_counts : dict of str to int
        Rows of each class.
    split : str
        Which rows these are.
    notes : tuple of str
        What a reader must know to read the figures.
    probabilities, decisions, labels, rows, groups : arrays
        float64 (n, k); int (n,) or bool (n, k); as in the container; row indices; patients.
        Not part of the JSON.
    """

    n_rows: int
    n_groups: int
    classes: tuple[str, ...]
    accuracy: float
    balanced_accuracy: float | None
    auroc_macro: float | None
    auroc: dict[str, float | None]
    brier: float
    ci95: dict[str, list[float]]
    confusion: list[Any]
    class_counts: dict[str, int]
    split: str
    notes: tuple[str, ...]
    probabilities: NDArray[np.float64] = field(repr=False, compare=False)
    decisions: NDArray[Any] = field(repr=False, compare=False)
    labels: NDArray[Any] = field(repr=False, compare=False)
    rows: NDArray[np.int64] = field(repr=False, compare=False)
    groups: NDArray[np.int64] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the figures without the arrays, ready for `json.dumps`.

        Returns
        -------
        dict
            ``n_rows``, ``n_groups``, ``classes``, ``accuracy``, ``auroc_macro``, ``auroc``,
            ``ci95`` and the further figures.
        """
        return {
            "n_rows": self.n_rows,
            "n_groups": self.n_groups,
            "classes": list(self.classes),
            "accuracy": self.accuracy,
            "auroc_macro": self.auroc_macro,
            "auroc": dict(self.auroc),
            "ci95": {key: list(value) for key, value in self.ci95.items()},
            "balanced_accuracy": self.balanced_accuracy,
            "brier": self.brier,
            "confusion": self.confusion,
            "class_counts": dict(self.class_counts),
            "split": self.split,
            "notes": list(self.notes),
        }


def _truth(labels: NDArray[Any], n_classes: int) -> NDArray[np.int8]:
    """Return labels as int8 (n, k): 1, 0, or below 0 where not assessed."""
    if labels.ndim == 2:
        return labels.astype(np.int8)
    truth: NDArray[np.int8] = (labels[:, None] == np.arange(n_classes)[None, :]).astype(np.int8)
    return truth


def decide(
    probabilities: NDArray[np.float64], thresholds: Sequence[float], *, multilabel: bool
) -> NDArray[Any]:
    """Turn probabilities into decisions.

    Parameters
    ----------
    probabilities : float64 (n, k)
        Of a softmax or multi-label head.
    thresholds : sequence of float
        One per class, or empty. Softmax with two classes: the second class from its threshold
        on. Softmax with more: the most probable class, the first of equals; thresholds are not
        used. Multi-label: each label from its threshold on, 0.5 if empty.
    multilabel : bool
        Which of the two.

    Returns
    -------
    int64 (n,) or bool (n, k)
        Class indices, or which labels are present.
    """
    if multilabel:
        limits = np.asarray(thresholds if len(thresholds) else 0.5, np.float64)
        present: NDArray[np.bool_] = probabilities >= limits
        return present
    if len(thresholds) == 2 and probabilities.shape[1] == 2:
        second: NDArray[np.int64] = (probabilities[:, 1] >= thresholds[1]).astype(np.int64)
        return second
    most_probable: NDArray[np.int64] = probabilities.argmax(axis=1).astype(np.int64)
    return most_probable


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: the Mann-Whitney statistic, ties counting half.

    Parameters
    ----------
    scores : float64 (n,)
        Larger means more likely positive.
    positive : bool (n,)
        The truth.

    Returns
    -------
    float or None
        None without positive or without negative rows.
    """
    n_positive = int(np.count_nonzero(positive))
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    _, place, size = np.unique(scores, return_inverse=True, return_counts=True)
    # The mean rank of tied scores, counted from 1.
    ranks = (np.cumsum(size) - (size - 1) / 2.0)[place]
    rank_sum = float(ranks[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2.0) / (n_positive * n_negative)


def confusion_matrix(
    labels: NDArray[Any], decisions: NDArray[Any], n_classes: int
) -> NDArray[np.int64]:
    """Count truth against decision.

    Parameters
    ----------
    labels, decisions : int (n,) each, or int8 (n, k) and bool (n, k)
        Truth (below 0: not assessed, left out) and decision.
    n_classes : int
        Number of classes k.

    Returns
    -------
    int64 (k, k) or (k, 2, 2)
        Rows are the truth, columns the decision.
    """
    if labels.ndim == 1:
        flat = np.bincount(labels * n_classes + decisions, minlength=n_classes**2)
        return flat.reshape(n_classes, n_classes).astype(np.int64)
    tables = np.zeros((n_classes, 2, 2), np.int64)
    for c in range(n_classes):
        assessed = labels[:, c] >= 0
        cell = labels[assessed, c].astype(np.int64) * 2 + decisions[assessed, c]
        tables[c] = np.bincount(cell, minlength=4).reshape(2, 2)
    return tables


def _recalls(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return recall per row of a confusion matrix, NaN where the row is empty."""
    totals = matrix.sum(axis=-1)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.where(totals > 0, right / np.maximum(totals, 1), np.nan)


def balanced_accuracy(matrix: NDArray[np.int64]) -> float | None:
    """Mean recall of the classes that occur, from a confusion matrix.

    Parameters
    ----------
    matrix : int64 (k, k) or (k, 2, 2)
        As `confusion_matrix` gives it.

    Returns
    -------
    float or None
        None when nothing was counted.
    """
    recalls = _recalls(matrix)
    return float(np.nanmean(recalls)) if not np.isnan(recalls).all() else None


def brier(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Brier score of probabilities (n, k); see `Evaluation` for the two conventions.

    Parameters
    ----------
    probabilities : float64 (n, k)
        Predicted.
    labels : int (n,) or int8 (n, k)
        Truth.

    Returns
    -------
    float
        0 is perfect.
    """
    truth = _truth(labels, probabilities.shape[1])
    squares = (probabilities - truth) ** 2
    if labels.ndim == 1:
        return float(squares.sum(axis=1).mean())
    return float(squares[truth >= 0].mean()) if (truth >= 0).any() else math.nan


def _bootstrap(
    probabilities: NDArray[np.float64],
    decisions: NDArray[Any],
    labels: NDArray[Any],
    dense: NDArray[np.int64],
    draws: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return accuracy (m,), balanced accuracy (m,) and AUROC (m, k) of every draw."""
    from engine.kernels.bootstrap import bootstrap_auroc, bootstrap_rates

    k = probabilities.shape[1]
    truth = _truth(labels, k)
    order = np.argsort(probabilities, axis=0, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=0)
    tie_end = np.ones((k, len(labels)), np.uint8)
    tie_end[:, :-1] = (ranked[1:] != ranked[:-1]).T
    order = np.ascontiguousarray(order.T)
    if labels.ndim == 1:
        item_group, stratum, n_strata = dense, labels.astype(np.int64), k
        right = (decisions == labels).astype(np.float64)
    else:
        row, label = np.nonzero(truth >= 0)
        item_group = dense[row]
        stratum = label * 2 + truth[row, label].astype(np.int64)
        n_strata = 2 * k
        right = (decisions[row, label] == (truth[row, label] == 1)).astype(np.float64)
    n_groups = int(dense.max()) + 1
    generator = np.random.default_rng(seed)
    accuracies, balances = np.empty(draws), np.empty(draws)
    areas = np.empty((draws, k))
    step = max(1, min(_CHUNK, _CHUNK_CELLS // n_groups))
    for start in range(0, draws, step):
        m = min(step, draws - start)
        drawn = generator.integers(0, n_groups, (m, n_groups))
        drawn += np.arange(m)[:, None] * n_groups
        times = np.bincount(drawn.ravel(), minlength=m * n_groups)
        multiplicity = times.reshape(m, n_groups).astype(np.int32)
        chunk = slice(start, start + m)
        bootstrap_auroc(multiplicity, dense, order, tie_end, truth, areas[chunk])
        sums, counts = np.empty((m, n_strata)), np.empty((m, n_strata))
        bootstrap_rates(multiplicity, item_group, stratum, right, sums, counts)
        accuracies[chunk] = sums.sum(axis=1) / np.maximum(counts.sum(axis=1), 1.0)
        rates = np.where(counts > 0, sums / np.maximum(counts, 1.0), 0.0)
        balances[chunk] = rates.sum(axis=1) / np.maximum((counts > 0).sum(axis=1), 1)
    return accuracies, balances, areas


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the 2.5th and 97.5th percentile of the values that are numbers."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return [float(low), float(high)]


def evaluate_predictions(
    probabilities: NDArray[np.float64],
    labels: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
    *,
    decisions: NDArray[Any] | None = None,
    rows: NDArray[np.int64] | None = None,
    split: str = "all",
    notes: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Compute every figure and its interval.

    Parameters
    ----------
    probabilities : float64 (n, k)
        Predicted; n at least 1.
    labels : int (n,) or int8 (n, k)
        Truth; multi-labels below 0 are left out.
    groups : int (n,)
        Patient of each row.
    classes : sequence of str
        The k class names.
    decisions : int (n,) or bool (n, k), optional
        What was decided; the most probable class (or 0.5 per label) if None.
    rows : int64 (n,), optional
        Row indices, kept in the result.
    split : str
        Which rows these are, kept in the result.
    notes : sequence of str
        Kept in the result.
    draws : int
        Bootstrap draws of patients; 0 leaves intervals out.
    seed : int
        Of the draws.

    Returns
    -------
    Evaluation
        The figures.
    """
    k = len(classes)
    multilabel = labels.ndim == 2
    labels = labels.astype(np.int8 if multilabel else np.int64)
    if decisions is None:
        decisions = decide(probabilities, (), multilabel=multilabel)
    truth = _truth(labels, k)
    matrix = confusion_matrix(labels, decisions, k)
    areas: dict[str, float | None] = {}
    for c, name in enumerate(classes):
        assessed = truth[:, c] >= 0
        areas[name] = auroc(probabilities[assessed, c], truth[assessed, c] == 1)
    known = [area for area in areas.values() if area is not None]
    right = np.diagonal(matrix, axis1=-2, axis2=-1).sum()
    _, dense = np.unique(groups, return_inverse=True)
    dense = dense.astype(np.int64)
    ci95: dict[str, list[float]] = {}
    if draws:
        accuracies, balances, area_draws = _bootstrap(
            probabilities, decisions, labels, dense, draws, seed
        )
        defined = ~np.isnan(area_draws)
        sums = np.where(defined, area_draws, 0.0).sum(axis=1)
        counts = defined.sum(axis=1)
        macro = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        series = {
            "accuracy": accuracies,
            "balanced_accuracy": balances,
            "auroc_macro": macro,
            **{f"auroc:{name}": area_draws[:, c] for c, name in enumerate(classes)},
        }
        for key, values in series.items():
            interval = _interval(values)
            if interval is not None:
                ci95[key] = interval
    return Evaluation(
        n_rows=len(labels),
        n_groups=int(dense.max(initial=-1)) + 1,
        classes=tuple(classes),
        accuracy=float(right / max(int(matrix.sum()), 1)),
        balanced_accuracy=balanced_accuracy(matrix),
        auroc_macro=float(np.mean(known)) if known else None,
        auroc=areas,
        brier=brier(probabilities, labels),
        ci95=ci95,
        confusion=matrix.tolist(),
        class_counts={name: int((truth[:, c] == 1).sum()) for c, name in enumerate(classes)},
        split=split,
        notes=tuple(notes),
        probabilities=probabilities,
        decisions=decisions,
        labels=labels,
        rows=np.arange(len(labels), dtype=np.int64) if rows is None else rows,
        groups=dense,
    )
