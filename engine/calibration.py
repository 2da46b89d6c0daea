"""Turning logits into probabilities that mean what they say, and thresholds into decisions.

Everything here is fitted on rows the weights have not seen: the valid rows, or the predictions
of cross-validation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_threshold", "choose_thresholds", "expected_calibration_error", "fit_temperature"]

# A temperature outside says that the rows are too few or perfectly separated; it would turn
# probabilities into 0/1 or into nothing.
_COLDEST, _HOTTEST = 0.05, 20.0


def _mean_entropy(logits: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Return the mean cross entropy of logits (n, k); masked labels are left out."""
    if labels.ndim == 1:
        shifted = logits - logits.max(axis=1, keepdims=True)
        own = shifted[np.arange(len(labels)), labels]
        return float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())
    signed = np.where(labels == 1, -logits, logits)
    entropy = np.maximum(signed, 0.0) + np.log1p(np.exp(-np.abs(signed)))
    return float(entropy[labels >= 0].mean())


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Find the temperature by which logits are divided: Guo et al. 2017, section 4.2.

    One number cannot change a decision or an AUROC, and cannot overfit much. The likelihood is
    convex in the inverse temperature, so a golden-section search finds its one minimum.

    Parameters
    ----------
    logits : float64 (n, k)
        Of rows the weights have not seen.
    labels : int (n,) or int8 (n, k)
        Truth; multi-labels below 0 are left out.

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
    at_left = _mean_entropy(logits * np.exp(left), labels)
    at_right = _mean_entropy(logits * np.exp(right), labels)
    for _ in range(40):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = _mean_entropy(logits * np.exp(left), labels)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = _mean_entropy(logits * np.exp(right), labels)
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


def expected_calibration_error(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy, Guo et al. 2017, equation 3.

    Parameters
    ----------
    probabilities : float64 (n, k)
        Of a softmax head.
    labels : int64 (n,)
        Truth.
    bins : int
        Equally wide bins of the largest probability.

    Returns
    -------
    float
        0 to 1.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / max(len(labels), 1))
