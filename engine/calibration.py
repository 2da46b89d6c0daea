"""Turning logits into probabilities that mean what they say, and thresholds into decisions.

Everything here is fitted on rows the weights have not seen: the valid rows, or the predictions
of cross-validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "METHODS",
    "Calibration",
    "choose_threshold",
    "choose_thresholds",
    "entropy_weights",
    "fit_temperature",
    "mean_entropy",
]

#: How logits become probabilities that mean what they say.
METHODS = ("none", "temperature", "isotonic")

# A temperature outside says that the rows are too few or perfectly separated; it would turn
# probabilities into 0/1 or into nothing.
_COLDEST, _HOTTEST = 0.05, 20.0


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


def choose_threshold(probabilities: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Choose the probability from which on a class is called present.

    The threshold with the largest mean of sensitivity and specificity (Youden 1950); of several,
    the one nearest to 0.5. Candidates lie halfway between neighbouring probabilities.

    Parameters
    ----------
    probabilities : float64 (n,)
        Of rows the weights have not seen.
    positive : bool (n,)
        Truth.

    Returns
    -------
    float
        0.5 without positive or without negative rows.
    """
    n_positive = int(np.count_nonzero(positive))
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return 0.5
    values = np.unique(probabilities)
    candidates = np.unique(np.append((values[1:] + values[:-1]) / 2, 0.5))
    present, absent = np.sort(probabilities[positive]), np.sort(probabilities[~positive])
    sensitivity = 1.0 - np.searchsorted(present, candidates, side="left") / n_positive
    specificity = np.searchsorted(absent, candidates, side="left") / n_negative
    gain = sensitivity + specificity
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]])


def choose_thresholds(
    probabilities: NDArray[np.float64], labels: NDArray[Any]
) -> tuple[float, ...]:
    """Choose a head's thresholds from predictions it has not learned from.

    Parameters
    ----------
    probabilities : float64 (n, k)
        Calibrated probabilities.
    labels : int (n,) or int8 (n, k)
        Truth.

    Returns
    -------
    tuple of float
        Softmax with two classes: (1 - t, t) with t of the second class by `choose_threshold`.
        Softmax with more: empty, the most probable class is decided. Multi-label: one per label.
    """
    k = probabilities.shape[1]
    if labels.ndim == 2:
        return tuple(
            choose_threshold(probabilities[labels[:, c] >= 0, c], labels[labels[:, c] >= 0, c] == 1)
            for c in range(k)
        )
    if k == 2:
        threshold = choose_threshold(probabilities[:, 1], labels == 1)
        return (1.0 - threshold, threshold)
    return ()
