"""Turning logits into probabilities that mean what they say, and thresholds into decisions.

Everything here is fitted on rows the weights have not seen: the valid rows, or the predictions
of cross-validation. It is plain NumPy, so that a prediction need not load what fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "METHODS",
    "Calibration",
    "choose_threshold",
    "choose_thresholds",
    "decide",
    "entropy_weights",
    "fit_calibration",
    "fit_isotonic",
    "fit_temperature",
    "mean_entropy",
]

#: How logits become probabilities that mean what they say.
METHODS = ("none", "temperature", "isotonic")

# A temperature outside says that the rows are too few or perfectly separated; it would turn
# probabilities into 0/1 or into nothing.
_COLDEST, _HOTTEST = 0.05, 20.0
# "auto" considers isotonic calibration from so many labelled rows on: with fewer it overfits and a
# one-parameter family is better (Niculescu-Mizil and Caruana 2005, its learning curves).
_ISOTONIC_ROWS = 1000
_AUTO_FOLDS = 5
# Privacy: a head file travels, and a step of the isotonic fit that held one or two rows would say
# of them which probability they got and what they are. Every knot is a mean over at least this many
# rows, and over at least this share of all, so that there are few knots.
_KNOT_ROWS, _KNOT_SHARE = 10, 0.05
# Where a class has fewer present or absent rows than a knot needs, it keeps its probabilities.
_AS_IT_IS = ((0.0, 1.0), (0.0, 1.0))


@dataclass(frozen=True)
class Calibration:
    """How the logits of a head become probabilities.

    Attributes
    ----------
    method : {"none", "temperature", "isotonic"}
        Softmax or sigmoid of the logits as they are; of the logits divided by the temperature; or
        that, and then for each class a step function that only rises.
    temperature : float
        Between 0.05 and 20; 1 without calibration.
    knots : tuple of (x, y)
        With ``"isotonic"`` one pair for each class: probabilities after the temperature,
        ascending, and what they become; linear between, constant outside.
    """

    method: str = "none"
    temperature: float = 1.0
    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()

    def apply(self, logits: NDArray[np.float64], *, multilabel: bool) -> NDArray[np.float64]:
        """Turn logits into probabilities.

        Parameters
        ----------
        logits : float64 (n, k)
            Left as they are.
        multilabel : bool
            Sigmoid of each instead of softmax over all.

        Returns
        -------
        float64 (n, k)
            Probabilities; of softmax, rows sum to 1.
        """
        z = logits / self.temperature
        if multilabel:
            probabilities = np.exp(-np.logaddexp(0.0, -z))
        else:
            z -= z.max(axis=1, keepdims=True, initial=-math.inf)
            probabilities = np.exp(z)
            probabilities /= probabilities.sum(axis=1, keepdims=True)
        for c, (x, y) in enumerate(self.knots):
            probabilities[:, c] = np.interp(probabilities[:, c], x, y)
        if self.knots and not multilabel:
            total = probabilities.sum(axis=1, keepdims=True)
            k = probabilities.shape[1]
            probabilities = np.where(total > 0.0, probabilities / np.maximum(total, 1e-300), 1 / k)
        return probabilities

    def to_json(self) -> dict[str, Any]:
        """Return what a head file holds."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "knots": [[list(x), list(y)] for x, y in self.knots],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], n_classes: int) -> Calibration:
        """Read what `to_json` gave.

        Parameters
        ----------
        value : mapping
            From a head file.
        n_classes : int
            Number of classes k.

        Returns
        -------
        Calibration
            Checked.

        Raises
        ------
        ValueError
            It is no calibration of so many classes.
        """
        method, temperature = value.get("method"), value.get("temperature")
        if method not in METHODS:
            raise ValueError(f"calibration is {method!r}; expected one of {', '.join(METHODS)}")
        if not isinstance(temperature, (int, float)) or not _is_number(temperature):
            temperature = 0.0
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature!r}; expected a positive number")
        knots = value.get("knots", [])
        wanted = n_classes if method == "isotonic" else 0
        if not isinstance(knots, list) or len(knots) != wanted:
            raise ValueError(f"calibration {method!r} needs knots of {wanted} classes")
        read = []
        for pair in knots:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError("each class needs two lists of knots")
            x, y = (tuple(side) if isinstance(side, list) else () for side in pair)
            rising = all(
                _is_number(a) and _is_number(b) and 0.0 <= a <= b <= 1.0
                for side in (x, y)
                for a, b in zip(side, side[1:] or side, strict=False)
            )
            if not x or len(x) != len(y) or not rising:
                raise ValueError("knots must be as many and rising, from 0 to 1")
            read.append((tuple(map(float, x)), tuple(map(float, y))))
        return cls(method, float(temperature), tuple(read))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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


def entropy_weights(labels: NDArray[Any], n_classes: int, *, balanced: bool) -> NDArray[np.float64]:
    """Weigh rows so that either every class or every row counts the same.

    A head's loss, what stops its fit and its temperature all take these weights: a temperature
    fitted to other frequencies than the weights were would flatten probabilities, not calibrate
    them.

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Truth; multi-labels below 0 have no weight.
    n_classes : int
        Number of classes k.
    balanced : bool
        True: every class that occurs, or each side of every label, weighs the same. False: every
        row, or every assessed row of each label. Labels weigh the same among each other.

    Returns
    -------
    float64 (k,) or (2, k)
        Weight of one row by its class, or of an absent (0) and a present (1) label. They sum to 1
        over the rows, or to less where a label is on one side only.
    """
    if labels.ndim == 1:
        if not balanced:
            return np.full(n_classes, 1.0 / max(len(labels), 1))
        counts = np.bincount(labels, minlength=n_classes)
        per_class: NDArray[np.float64] = 1.0 / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return per_class
    sides = np.stack([(labels == side).sum(axis=0) for side in (0, 1)]).astype(np.float64)
    if not balanced:
        sides[:] = 0.5 * sides.sum(axis=0)
    per_side: NDArray[np.float64] = 0.5 / (n_classes * np.maximum(sides, 0.5))
    return per_side


def mean_entropy(logits: NDArray[np.float64], labels: NDArray[Any], *, balanced: bool) -> float:
    """Return the cross entropy between logits and the truth, weighted by `entropy_weights`.

    Parameters
    ----------
    logits : float64 (n, k)
        Predicted.
    labels : int (n,) or int8 (n, k)
        Truth; multi-labels below 0 are left out.
    balanced : bool
        As in `entropy_weights`.

    Returns
    -------
    float
        In nats; 0 without labelled rows.
    """
    weights = entropy_weights(labels, logits.shape[1], balanced=balanced)
    if labels.ndim == 1:
        # Class after class: sums and maxima over a few neighbours each took five times as long.
        shifted = np.ascontiguousarray(logits.T)
        shifted = shifted - shifted.max(axis=0)
        own = shifted[labels, np.arange(len(labels))]
        total = np.exp(shifted, out=shifted).sum(axis=0)
        return float((weights[labels] * (np.log(total) - own)).sum())
    signed = np.where(labels == 1, -logits, logits)
    entropy = np.maximum(signed, 0.0) + np.log1p(np.exp(-np.abs(signed)))
    return float((weights[0] * entropy)[labels == 0].sum()) + float(
        (weights[1] * entropy)[labels == 1].sum()
    )


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[Any], *, balanced: bool) -> float:
    """Find the temperature by which logits are divided: Guo et al. 2017, section 4.2.

    One number cannot change a decision or an AUROC, and cannot overfit much. The likelihood is
    convex in the inverse temperature, so a golden-section search finds its one minimum.

    Parameters
    ----------
    logits : float64 (n, k)
        Of rows the weights have not seen.
    labels : int (n,) or int8 (n, k)
        Truth; multi-labels below 0 are left out.
    balanced : bool
        Whether the weights were fitted so that every class counts the same, see `entropy_weights`:
        probabilities are then those of a population in which every class is equally frequent, or
        every label present in half. Otherwise they are those of the rows' own frequencies.

    Returns
    -------
    float
        Between 0.05 and 20; 1 without labelled rows.
    """
    if len(labels) == 0 or (labels.ndim == 2 and not (labels >= 0).any()):
        return 1.0
    ratio = (5**0.5 - 1) / 2
    low, high = np.log(1 / _HOTTEST), np.log(1 / _COLDEST)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left = mean_entropy(logits * np.exp(left), labels, balanced=balanced)
    at_right = mean_entropy(logits * np.exp(right), labels, balanced=balanced)
    for _ in range(40):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = mean_entropy(logits * np.exp(left), labels, balanced=balanced)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = mean_entropy(logits * np.exp(right), labels, balanced=balanced)
    return float(np.exp(-0.5 * (low + high)))


def fit_isotonic(
    x: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find a curve that only rises from probabilities to frequencies, as few knots.

    The weighted least-squares fit by pooling adjacent violators (Ayer et al. 1955; for
    probabilities Zadrozny and Elkan 2002), its steps merged until each holds enough rows, with one
    row's weight of doubt added to each: half for, half against, so that none says never or always.
    A knot is a step's mean probability and its frequency; between knots the curve is straight,
    which keeps the order of rows that a staircase would tie (centred isotonic regression, Oron and
    Flournoy 2017).

    Parameters
    ----------
    x : float64 (n,)
        Probabilities.
    positive : bool (n,)
        What came true.
    weights : float64 (n,)
        How much each row counts.

    Returns
    -------
    (x, y) : tuple of float each
        Rising knots; at most 20, each of at least ten rows and a twentieth of all. The line from
        (0, 0) to (1, 1) where fewer than ten rows are present or fewer than ten absent.
    """
    n_positive = int(np.count_nonzero(positive))
    if min(n_positive, len(x) - n_positive) < _KNOT_ROWS:
        return _AS_IT_IS
    # The truth after the probability: sums must not depend on the order of the rows.
    order = np.lexsort((weights, positive, x))
    values, place, size = np.unique(x[order], return_inverse=True, return_counts=True)
    w, hits = (
        np.bincount(place, part[order], len(values)) for part in (weights, weights * positive)
    )
    sums = w * values
    # Steps so far: rows, weight, weight that came true, weighted probability.
    steps: list[list[float]] = []
    for step in zip(size.tolist(), w.tolist(), hits.tolist(), sums.tolist(), strict=True):
        steps.append(list(step))
        while len(steps) > 1 and steps[-2][2] * steps[-1][1] >= steps[-1][2] * steps[-2][1]:
            _merge(steps, len(steps) - 2)
    fewest = max(_KNOT_ROWS, math.ceil(_KNOT_SHARE * len(x)))
    while len(steps) > 1:
        small = min(range(len(steps)), key=lambda i: steps[i][0])
        if steps[small][0] >= fewest:
            break
        # With the neighbour whose frequency is nearer; the order of frequencies stays.
        rates = [hit / weight for _, weight, hit, _ in steps]
        before = rates[small] - rates[small - 1] if small > 0 else math.inf
        after = rates[small + 1] - rates[small] if small + 1 < len(steps) else math.inf
        _merge(steps, small - 1 if before <= after else small)
    one = float(weights.mean())
    knots_x = np.array([total / weight for _, weight, _, total in steps])
    knots_y = np.array([(hit + 0.5 * one) / (weight + one) for _, weight, hit, _ in steps])
    # The doubt pulls a light step further than a heavy one, and could turn two that were close.
    knots_y = np.maximum.accumulate(knots_y)
    return (
        tuple(float(value) for value in np.clip(knots_x, 0.0, 1.0)),
        tuple(float(value) for value in np.clip(knots_y, 0.0, 1.0)),
    )


def _merge(steps: list[list[float]], at: int) -> None:
    """Make one of step `at` and the next."""
    after = steps.pop(at + 1)
    steps[at] = [a + b for a, b in zip(steps[at], after, strict=True)]


def _row_losses(
    probabilities: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each row's share of the weighted cross entropy; certainty that is wrong is capped."""
    p = np.clip(probabilities, 1e-12, 1.0)
    if labels.ndim == 1:
        losses: NDArray[np.float64] = -weights[labels] * np.log(p[np.arange(len(labels)), labels])
        return losses
    q = np.clip(1.0 - probabilities, 1e-12, 1.0)
    present = np.where(labels == 1, -weights[1] * np.log(p), 0.0)
    absent = np.where(labels == 0, -weights[0] * np.log(q), 0.0)
    summed: NDArray[np.float64] = (present + absent).sum(axis=1)
    return summed


def _isotonic_is_better(
    logits: NDArray[np.float64],
    labels: NDArray[Any],
    groups: NDArray[Any],
    *,
    balanced: bool,
    seed: int,
) -> bool:
    """Compare both methods on patients they were not fitted on."""
    # A prediction loads this module too, and splits nothing.
    from engine.splits import class_groups, grouped_folds

    k = logits.shape[1]
    if int(class_groups(labels, groups, k).min()) < _AUTO_FOLDS:
        return False
    fold_of = grouped_folds(labels, groups, k, folds=_AUTO_FOLDS, seed=seed)
    weights = entropy_weights(labels, k, balanced=balanced)
    gain = np.zeros(len(labels))
    for fold in range(_AUTO_FOLDS):
        rest, held = fold_of != fold, fold_of == fold
        losses = [
            _row_losses(
                fit_calibration(logits[rest], labels[rest], method, balanced=balanced).apply(
                    logits[held], multilabel=labels.ndim == 2
                ),
                labels[held],
                weights,
            )
            for method in ("temperature", "isotonic")
        ]
        gain[held] = losses[0] - losses[1]
    _, patient = np.unique(groups, return_inverse=True)
    gains = np.bincount(patient, gain)
    # One standard error of the sum over patients: of two that are as good, the one with one number.
    return bool(gains.sum() > math.sqrt(len(gains)) * gains.std())


def fit_calibration(
    logits: NDArray[np.float64],
    labels: NDArray[Any],
    method: str = "temperature",
    *,
    balanced: bool,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> Calibration:
    """Find how logits become probabilities that mean what they say.

    Parameters
    ----------
    logits : float64 (n, k)
        Of rows the weights have not seen.
    labels : int (n,) or int8 (n, k)
        Truth; multi-labels below 0 are left out.
    method : {"none", "temperature", "isotonic", "auto"}
        ``"isotonic"`` follows the temperature, see `fit_isotonic`. ``"auto"`` takes it if there are
        at least 1,000 labelled rows and it lowers the cross entropy on patients it was not fitted
        on by more than a standard error, and else the temperature alone.
    balanced : bool
        As in `fit_temperature`.
    groups : int (n,), optional
        Patient of each row; ``"auto"`` needs them.
    seed : int
        Of the folds of ``"auto"``.

    Returns
    -------
    Calibration
        With the method that was taken.

    Raises
    ------
    ValueError
        No such method, or ``"auto"`` without groups.
    """
    if method not in (*METHODS, "auto"):
        raise ValueError(f"calibration is {method!r}; expected one of {', '.join(METHODS)}, auto")
    if method == "none":
        return Calibration()
    multilabel = labels.ndim == 2
    if method == "auto":
        if groups is None:
            raise ValueError(
                "calibration 'auto' compares methods on other patients; expected groups, the "
                "patient of each row; give them, or choose 'temperature'"
            )
        labelled = np.count_nonzero((labels >= 0).any(axis=1)) if multilabel else len(labels)
        better = labelled >= _ISOTONIC_ROWS and _isotonic_is_better(
            logits, labels, groups, balanced=balanced, seed=seed
        )
        method = "isotonic" if better else "temperature"
    temperature = fit_temperature(logits, labels, balanced=balanced)
    plain = Calibration("temperature", temperature)
    if method == "temperature":
        return plain
    k = logits.shape[1]
    probabilities = plain.apply(logits, multilabel=multilabel)
    weights = entropy_weights(labels, k, balanced=balanced)
    knots = []
    for c in range(k):
        if multilabel:
            rows = labels[:, c] >= 0
            present = labels[rows, c] == 1
            row_weights = weights[present.astype(np.int64), c]
        else:
            rows, present = np.ones(len(labels), np.bool_), labels == c
            row_weights = weights[labels]
        knots.append(fit_isotonic(probabilities[rows, c], present, row_weights))
    return Calibration("isotonic", temperature, tuple(knots))


def choose_threshold(
    probabilities: NDArray[np.float64],
    positive: NDArray[np.bool_],
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> float:
    """Choose the probability from which on a class is called present.

    At a sensitivity: the highest threshold that reaches it on these rows. At a specificity: the
    lowest one. Without either, the one with the largest mean of both (Youden 1950); of several, the
    one nearest to 0.5. Thresholds lie halfway between neighbouring probabilities, so that equal
    ones are on one side.

    Parameters
    ----------
    probabilities : float64 (n,)
        Of rows the weights have not seen.
    positive : bool (n,)
        Truth.
    sensitivity, specificity : float, optional
        At least this share of present rows is called present, or of absent rows absent; above 0,
        up to 1. One of the two.

    Returns
    -------
    float
        0.5 without positive or without negative rows. Above 1 where a specificity can only be
        reached by calling nothing present.

    Raises
    ------
    ValueError
        Both, or a share that is none.
    """
    _check_shares(sensitivity, specificity)
    n_positive = int(np.count_nonzero(positive))
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return 0.5
    values = np.unique(probabilities)
    present, absent = np.sort(probabilities[positive]), np.sort(probabilities[~positive])
    if sensitivity is not None:
        # 0.9 of 10 rows is 9 rows, whatever 0.9 is in binary.
        wanted = math.ceil(sensitivity * n_positive - 1e-9)
        lowest = present[n_positive - wanted]
        under = values[values < lowest]
        return float((lowest + under[-1]) / 2 if len(under) else lowest)
    if specificity is not None:
        highest = absent[math.ceil(specificity * n_negative - 1e-9) - 1]
        over = values[values > highest]
        if len(over) == 0:
            return float(np.nextafter(highest, 2.0))
        halfway = (highest + over[0]) / 2
        return float(halfway if halfway > highest else over[0])
    candidates = np.unique(np.append((values[1:] + values[:-1]) / 2, 0.5))
    called = 1.0 - np.searchsorted(present, candidates, side="left") / n_positive
    spared = np.searchsorted(absent, candidates, side="left") / n_negative
    gain = called + spared
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]])


def _check_shares(sensitivity: float | None, specificity: float | None) -> None:
    """Refuse what is no share, and two wishes at once."""
    if sensitivity is not None and specificity is not None:
        raise ValueError(
            f"sensitivity {sensitivity} and specificity {specificity}; expected one of the two: "
            "a threshold has one degree of freedom"
        )
    for name, share in (("sensitivity", sensitivity), ("specificity", specificity)):
        if share is not None and not 0.0 < share <= 1.0:
            raise ValueError(f"{name} is {share}; expected above 0 and at most 1")


def choose_thresholds(
    probabilities: NDArray[np.float64],
    labels: NDArray[Any],
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> tuple[float, ...]:
    """Choose a head's thresholds from predictions it has not learned from.

    Parameters
    ----------
    probabilities : float64 (n, k)
        Calibrated probabilities.
    labels : int (n,) or int8 (n, k)
        Truth.
    sensitivity, specificity : float, optional
        As in `choose_threshold`: of the second of two classes, of each label, or of each class of
        more against the rest.

    Returns
    -------
    tuple of float
        Softmax with two classes: (1 - t, t) with t of the second class by `choose_threshold`.
        Softmax with more: one per class where a sensitivity or specificity was asked for. They are
        for reporting: the most probable class is decided all the same (`decide`).
        Empty otherwise. Multi-label: one per label.

    Raises
    ------
    ValueError
        As `choose_threshold`.
    """
    _check_shares(sensitivity, specificity)
    k = probabilities.shape[1]

    def choose(c: int, rows: NDArray[np.bool_], positive: NDArray[np.bool_]) -> float:
        return choose_threshold(
            probabilities[rows, c], positive, sensitivity=sensitivity, specificity=specificity
        )

    if labels.ndim == 2:
        return tuple(
            choose(c, labels[:, c] >= 0, labels[labels[:, c] >= 0, c] == 1) for c in range(k)
        )
    every = np.ones(len(labels), np.bool_)
    if k == 2:
        threshold = choose(1, every, labels == 1)
        return (1.0 - threshold, threshold)
    if sensitivity is None and specificity is None:
        return ()
    return tuple(choose(c, every, labels == c) for c in range(k))
