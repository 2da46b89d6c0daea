"""How good predictions are, and how sure that is.

Intervals are 95 % percentile bootstrap intervals over patients, not rows (`engine.resampling` says
why and how). Draws in which a figure does not exist, such as the AUROC of a class of which the draw
holds no patient, are left out. The draws of one patient alone would all be the same: there are no
intervals then.

An expected calibration error is larger than it should be, because rows fall unevenly into bins, and
in the draws once more. Its interval is therefore the draws' mirrored at the figure (the basic
bootstrap; Davison and Hinkley 1997, section 5.2), from 0 on, and up to the figure at least. In
simulations of 300 to 3,000 rows the mirrored one held the true error of badly calibrated heads 9
times in 10 (percentiles: 9), of slightly wrong ones 8 to 9 (0 to 8), of perfect ones about 5 (0).
Of 720 rows, a perfect head has an error near 0.04.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.calibration import decide
from engine.recalibration import fit_intercept, fit_line, logits_of
from engine.resampling import (
    BINS,
    DRAWS,
    LEVELS,
    PARTS,
    draw_figures,
    each_block,
    interval,
    truth_of,
    weighted,
)

__all__ = [
    "Evaluation",
    "at_frequencies_of",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "brier",
    "confusion_matrix",
    "evaluate_predictions",
    "expected_calibration_error",
    "predictive_values",
    "sensitivity_at",
    "specificity_at",
    "wilson",
]

# A slope or intercept is reported with an interval if so many draws have one: in the others the
# outcomes were separated and the slope without bound, which percentiles of the rest would hide.
_NEEDED = 0.975


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
        Patient-level bootstrap intervals of 95 %; keys ``accuracy``, ``balanced_accuracy``,
        ``brier``, ``ece``, ``auroc_macro``, ``average_precision_macro``, and for each class
        ``auroc:CLASS``, ``average_precision:CLASS``, ``sensitivity_at_0.90:CLASS``,
        ``specificity_at_0.90:CLASS`` (0.95 alike), ``calibration_slope:CLASS`` and
        ``calibration_intercept:CLASS``. What has no interval has no key.
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
    average_precision : dict of str to (float or None)
        One class against the rest: sum over thresholds of the gain in recall times the precision.
        By chance it is the class's share of the rows.
    average_precision_macro : float or None
        Mean of those that are known.
    sensitivity_at, specificity_at : dict of str to dict of str to (float or None)
        By class and by ``"0.90"`` and ``"0.95"``: the largest sensitivity at a specificity of at
        least that, and the reverse, over all thresholds on these rows.
    calibration : dict
        ``ece``: expected calibration error over 15 bins of equally many rows (Naeini et al. 2015;
        Guo et al. 2017, section 2) of the most probable class's probability; of a multi-label head
        the mean over labels of each label's. ``slope`` and ``intercept``: by class, see
        `engine.recalibration`; None where they do not exist.
    prevalence : {"training", "equal"}
        ``"equal"`` if probabilities are as if every class were equally frequent. They are then
        right only where classes are: `calibration` is of what they come to at the frequencies of
        these rows (`at_frequencies_of`), `brier` of the probabilities as they are.
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
    average_precision: dict[str, float | None] = field(default_factory=dict)
    average_precision_macro: float | None = None
    sensitivity_at: dict[str, dict[str, float | None]] = field(default_factory=dict)
    specificity_at: dict[str, dict[str, float | None]] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    prevalence: str = "training"

    @property
    def meant(self) -> NDArray[np.float64]:
        """Probabilities by which calibration is judged: see `prevalence`."""
        if self.prevalence != "equal":
            return self.probabilities
        return at_frequencies_of(self.labels, self.probabilities)

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
            "average_precision": dict(self.average_precision),
            "average_precision_macro": self.average_precision_macro,
            "sensitivity_at": {name: dict(at) for name, at in self.sensitivity_at.items()},
            "specificity_at": {name: dict(at) for name, at in self.specificity_at.items()},
            "calibration": {
                key: dict(value) if isinstance(value, Mapping) else value
                for key, value in self.calibration.items()
            },
            "prevalence": self.prevalence,
            "confusion": self.confusion,
            "class_counts": dict(self.class_counts),
            "split": self.split,
            "notes": list(self.notes),
        }


def at_frequencies_of(
    labels: NDArray[Any], probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Turn probabilities for equally frequent classes into those for the rows' own frequencies.

    By Bayes' theorem: odds are multiplied by how much more frequent a class is (Saerens, Latinne
    and Decaestecker 2002, Neural Computation 14, 21, equation 2.4).

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Truth, of which frequencies are counted; multi-labels below 0 are left out.
    probabilities : float64 (n, k)
        As if every class were equally frequent, or every label present in half of the rows.

    Returns
    -------
    float64 (n, k)
        A class that no row has becomes impossible; a label that is on one side only stays as it is.
    """
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=probabilities.shape[1])
        if (counts == counts[0]).all():
            return probabilities
        moved = probabilities * (counts / max(len(labels), 1))
        total = moved.sum(axis=1, keepdims=True)
        # All that a head thought possible may not be among these rows.
        return np.where(total > 0.0, moved / np.where(total > 0.0, total, 1.0), probabilities)
    present, absent = ((labels == side).sum(axis=0) for side in (1, 0))
    both = (present > 0) & (absent > 0)
    for_it = probabilities * np.where(both, present, 1)
    against = (1.0 - probabilities) * np.where(both, absent, 1)
    return np.asarray(for_it / (for_it + against), np.float64)


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


def _above_thresholds(
    scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count present and absent rows from each different score on, highest score first."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(scores) - 1)
    present = np.cumsum(positive[order])[last]
    return present, last + 1 - present


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Sum over thresholds of the gain in recall times the precision, without interpolation.

    Parameters
    ----------
    scores : float64 (n,)
        Larger means more likely positive; equal scores share a threshold.
    positive : bool (n,)
        The truth.

    Returns
    -------
    float or None
        None without positive or without negative rows.
    """
    if not positive.any() or positive.all():
        return None
    present, absent = _above_thresholds(scores, positive)
    gained = np.diff(present, prepend=0)
    return float((gained * (present / (present + absent))).sum() / present[-1])


def sensitivity_at(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], specificity: float
) -> float | None:
    """Return the largest sensitivity of any threshold with at least this specificity.

    Parameters
    ----------
    scores : float64 (n,)
        Larger means more likely positive; equal scores share a threshold.
    positive : bool (n,)
        The truth.
    specificity : float
        From 0 to 1.

    Returns
    -------
    float or None
        None without positive or without negative rows.
    """
    if not positive.any() or positive.all():
        return None
    present, absent = _above_thresholds(scores, positive)
    allowed = math.floor(int(absent[-1]) * (1.0 - specificity) + 1e-9)
    return float(present[absent <= allowed].max(initial=0) / present[-1])


def specificity_at(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], sensitivity: float
) -> float | None:
    """Return the largest specificity of any threshold with at least this sensitivity.

    Parameters
    ----------
    scores, positive : arrays
        As in `sensitivity_at`.
    sensitivity : float
        Above 0, up to 1.

    Returns
    -------
    float or None
        None without positive or without negative rows.
    """
    if not positive.any() or positive.all():
        return None
    present, absent = _above_thresholds(scores, positive)
    wanted = math.ceil(int(present[-1]) * sensitivity - 1e-9)
    return float(1.0 - absent[present >= wanted].min() / absent[-1])


def expected_calibration_error(
    probabilities: NDArray[np.float64], positive: NDArray[np.bool_], *, bins: int = BINS
) -> float | None:
    """Mean gap between probability and frequency over bins of equally many rows.

    Naeini et al. 2015; Guo et al. 2017, section 2, who cut bins of equal width: those leave most
    bins of a good head nearly empty (Nixon et al. 2019, section 3). Rows of one probability stay in
    one bin, the one in which the first of them falls.

    Parameters
    ----------
    probabilities : float64 (n,)
        Of one event.
    positive : bool (n,)
        Whether it came true.
    bins : int
        Number of bins.

    Returns
    -------
    float or None
        None without rows.
    """
    n = len(probabilities)
    if n == 0:
        return None
    values, place, size = np.unique(probabilities, return_inverse=True, return_counts=True)
    before = np.cumsum(size) - size
    bin_of = (bins * before) // n
    gaps = np.bincount(place, probabilities - positive, len(values))
    return float(np.abs(np.bincount(bin_of, gaps)).sum() / n)


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
    truth = truth_of(labels, probabilities.shape[1])
    squares = (probabilities - truth) ** 2
    if labels.ndim == 1:
        return float(squares.sum(axis=1).mean())
    return float(squares[truth >= 0].mean()) if (truth >= 0).any() else math.nan


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
    parts: frozenset[str] = PARTS,
    threads: int | None = None,
    prevalence: str = "training",
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
        Of the draws. The same seed gives the same bits, whatever the number of threads.
    parts : frozenset of str
        Which figures get intervals, see `engine.resampling.draw_figures`.
    threads : int, optional
        That share the draws; as many as there are processors if None.
    prevalence : {"training", "equal"}
        What class frequencies the probabilities mean. Where ``"equal"``, calibration is judged
        after `at_frequencies_of` these rows.

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
    truth = truth_of(labels, k)
    equal = prevalence == "equal"
    moved = at_frequencies_of(labels, probabilities) if equal else probabilities
    matrix = confusion_matrix(labels, decisions, k)
    areas: dict[str, float | None] = {}
    precisions: dict[str, float | None] = {}
    sensitivities: dict[str, dict[str, float | None]] = {}
    specificities: dict[str, dict[str, float | None]] = {}
    slopes: dict[str, float | None] = {}
    intercepts: dict[str, float | None] = {}
    errors: list[float | None] = []
    for c, name in enumerate(classes):
        assessed = truth[:, c] >= 0
        scores, positive = probabilities[assessed, c], truth[assessed, c] == 1
        areas[name] = auroc(scores, positive)
        precisions[name] = average_precision(scores, positive)
        sensitivities[name] = {
            f"{level:.2f}": sensitivity_at(scores, positive, level) for level in LEVELS
        }
        specificities[name] = {
            f"{level:.2f}": specificity_at(scores, positive, level) for level in LEVELS
        }
        given = moved[assessed, c]
        line = fit_line(logits_of(given), positive)
        slopes[name] = None if line is None else line.slope
        intercepts[name] = fit_intercept(logits_of(given), positive)
        errors.append(expected_calibration_error(given, positive))
    if not multilabel:
        top = moved.argmax(axis=1) == labels
        errors = [expected_calibration_error(moved.max(axis=1), top)]
    ece = _mean(errors)
    right = np.diagonal(matrix, axis1=-2, axis2=-1).sum()
    _, dense = np.unique(groups, return_inverse=True)
    dense = dense.astype(np.int64)
    n_groups = int(dense.max(initial=-1)) + 1
    ci95: dict[str, list[float]] = {}
    if draws and n_groups > 1:
        of_meaning = frozenset({"ece", "calibration"})
        series: dict[str, NDArray[np.float64]] = {}
        for given, some in ((probabilities, parts - of_meaning), (moved, parts & of_meaning)):
            series |= draw_figures(
                given, decisions, labels, dense, classes, draws=draws, seed=seed, parts=some,
                threads=threads,
            )  # fmt: skip
        for key, values in series.items():
            found = interval(values, needed=_NEEDED if key.startswith("calibration_") else 0.0)
            if found is not None and key == "ece" and ece is not None:
                low, high = (max(2.0 * ece - bound, 0.0) for bound in reversed(found))
                found = [low, max(high, ece)]
            if found is not None:
                ci95[key] = found
    return Evaluation(
        n_rows=len(labels),
        n_groups=n_groups,
        classes=tuple(classes),
        accuracy=float(right / max(int(matrix.sum()), 1)),
        balanced_accuracy=balanced_accuracy(matrix),
        auroc_macro=_mean(areas.values()),
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
        average_precision=precisions,
        average_precision_macro=_mean(precisions.values()),
        sensitivity_at=sensitivities,
        specificity_at=specificities,
        calibration={"ece": ece, "slope": slopes, "intercept": intercepts},
        prevalence=prevalence,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def wilson(successes: int, n: int) -> tuple[float, float] | None:
    """Return the 95 % score interval of a share of counted rows (Wilson 1927).

    It takes rows for independent: with several rows of a patient it is too narrow.

    Parameters
    ----------
    successes, n : int
        How many of how many.

    Returns
    -------
    (float, float) or None
        Within 0 and 1, and never of no width; None of nothing.

    Raises
    ------
    ValueError
        More successes than rows, or fewer than none.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n}: expected from 0 to {n}")
    if n == 0:
        return None
    z = 1.959963984540054  # the 97.5th percentile of the normal distribution
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2.0) / (1.0 + spread)
    half = math.sqrt(spread * (share * (1.0 - share) + spread / 4.0)) / (1.0 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def predictive_values(
    evaluation: Evaluation,
    name: str,
    prevalence: float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Return what a decision for or against a class is worth where it is so frequent.

    From sensitivity s and specificity t of the decisions, by Bayes' theorem:
    PPV = s q / (s q + (1 - t)(1 - q)), NPV = t (1 - q) / (t (1 - q) + (1 - s) q) at prevalence q.

    Parameters
    ----------
    evaluation : Evaluation
        The predictions.
    name : str
        One of its classes, against the rest.
    prevalence : float
        Share of patients with this class where the head is used, between 0 and 1.
    draws, seed, threads : int
        Of the patient-level bootstrap, as in `evaluate_predictions`.

    Returns
    -------
    dict
        ``class``, ``prevalence``, and ``sensitivity``, ``specificity``, ``ppv`` and ``npv``, each
        ``{"value": x or None, "ci95": [low, high] or None}``.

    Raises
    ------
    ValueError
        No such class, or a prevalence that is none.
    """
    if name not in evaluation.classes:
        known = ", ".join(evaluation.classes)
        raise ValueError(f"class is {name!r}; expected one of {known}")
    if not 0.0 < prevalence < 1.0:
        raise ValueError(f"prevalence is {prevalence}; expected a number between 0 and 1")
    c = evaluation.classes.index(name)
    truth = truth_of(evaluation.labels, len(evaluation.classes))[:, c]
    rows = truth >= 0
    decided = evaluation.decisions
    decided = (decided[:, c] if decided.ndim == 2 else decided == c)[rows]
    present = truth[rows] == 1
    values = np.zeros((evaluation.n_groups, 4))
    group = evaluation.groups[rows]
    for i, column in enumerate((present, present & decided, ~present, ~present & ~decided)):
        values[:, i] = np.bincount(group, column, evaluation.n_groups)

    def figures(times: NDArray[np.uint8]) -> NDArray[np.float64]:
        sums = weighted(values, times)
        with np.errstate(invalid="ignore"):
            s, t = sums[1] / sums[0], sums[3] / sums[2]
            ppv = s * prevalence / (s * prevalence + (1.0 - t) * (1.0 - prevalence))
            npv = t * (1.0 - prevalence) / (t * (1.0 - prevalence) + (1.0 - s) * prevalence)
        return np.stack([s, t, ppv, npv])

    found = np.full((4, draws), np.nan)

    def work(chunk: slice, times: NDArray[np.uint8]) -> None:
        found[:, chunk] = figures(times)

    if evaluation.n_groups > 1:
        each_block(evaluation.n_groups, draws, seed, work, threads)
    whole = figures(np.ones((evaluation.n_groups, 1), np.uint8))[:, 0]
    result: dict[str, Any] = {"class": name, "prevalence": prevalence}
    for i, key in enumerate(("sensitivity", "specificity", "ppv", "npv")):
        value = None if math.isnan(whole[i]) else float(whole[i])
        result[key] = {"value": value, "ci95": None if value is None else interval(found[i])}
    return result
