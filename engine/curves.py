"""Curves of predictions with their bands, on grids that show no single row.

Bands are pointwise 95 % percentile intervals over bootstrap draws of patients
(`engine.resampling`): each point's own, not of the curve as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.metrics import Evaluation
from engine.resampling import DRAWS, Ranking, each_block, truth_of, weighted

__all__ = ["POINTS", "Curve", "precision_recall_curve", "reliability_curve", "roc_curve"]

#: Points of a curve. A curve through every score would give each row's away.
POINTS = 101
# Rows in a bin of the reliability curve at least.
_BIN_ROWS = 10


@dataclass(frozen=True)
class Curve:
    """A curve and its band.

    Attributes
    ----------
    x, y : float64 (p,)
        The curve, at most `POINTS` points, x ascending.
    low, high : float64 (p,)
        The band around y; NaN where no draw has a value, and with fewer than two patients.
    n_rows : int64 (p,)
        Of a reliability curve the rows of each bin, else empty.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n_rows: NDArray[np.int64]


def _class_rows(
    evaluation: Evaluation, name: str, *, meant: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int32]]:
    """Return probability, truth and patient of the rows in which a class was assessed."""
    if name not in evaluation.classes:
        known = ", ".join(evaluation.classes)
        raise ValueError(f"class is {name!r}; expected one of {known}")
    c = evaluation.classes.index(name)
    truth = truth_of(evaluation.labels, len(evaluation.classes))[:, c]
    rows = truth >= 0
    group = evaluation.groups[rows].astype(np.int32)
    p = (evaluation.meant if meant else evaluation.probabilities)[rows, c]
    return p, truth[rows] == 1, group


def _band(draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 2.5th and 97.5th percentile of every column, without its NaN."""
    low, high = np.full((2, draws.shape[1]), np.nan)
    for i, column in enumerate(draws.T):
        known = column[~np.isnan(column)]
        if len(known):
            low[i], high[i] = np.percentile(known, [2.5, 97.5])
    return low, high


def _ranked_curve(
    evaluation: Evaluation,
    name: str,
    *,
    is_roc: bool,
    draws: int,
    seed: int,
    threads: int | None,
) -> Curve | None:
    scores, positive, group = _class_rows(evaluation, name)
    if not positive.any() or positive.all():
        return None
    x = np.linspace(0.0, 1.0, POINTS)
    # At a recall of 0 stands the precision of the first present row.
    levels = 1.0 - x if is_roc else np.maximum(x, 1e-6)
    ranking = Ranking(scores, positive, group)

    def curve(times: NDArray[np.uint8]) -> NDArray[np.float64]:
        out, at = ranking.figures(times, levels)
        both = (out[0] > 0) & (out[1] > 0)
        y = at[0] / np.maximum(out[0], 1.0) if is_roc else at[2] / np.maximum(at[1] + at[2], 1.0)
        return np.where(both, y, np.nan).T

    found = np.full((draws, POINTS), np.nan)

    def work(chunk: slice, times: NDArray[np.uint8]) -> None:
        found[chunk] = curve(times)

    if evaluation.n_groups > 1:
        each_block(evaluation.n_groups, draws, seed, work, threads)
    y = curve(np.ones((evaluation.n_groups, 1), np.uint8))[0]
    low, high = _band(found)
    return Curve(x, y, low, high, np.empty(0, np.int64))


def roc_curve(
    evaluation: Evaluation,
    name: str,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    threads: int | None = None,
) -> Curve | None:
    """Return the ROC curve of one class against the rest.

    Parameters
    ----------
    evaluation : Evaluation
        The predictions.
    name : str
        The class.
    draws, seed, threads : int
        As in `engine.metrics.evaluate_predictions`.

    Returns
    -------
    Curve or None
        x: false positive rate (1 - specificity) from 0 to 1 in steps of 0.01; y: the largest
        sensitivity of any threshold with at most that, a staircase. None where the class has no
        present or no absent row.

    Raises
    ------
    ValueError
        No such class.
    """
    return _ranked_curve(evaluation, name, is_roc=True, draws=draws, seed=seed, threads=threads)


def precision_recall_curve(
    evaluation: Evaluation,
    name: str,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    threads: int | None = None,
) -> Curve | None:
    """Return the precision-recall curve of one class against the rest.

    Parameters
    ----------
    evaluation, name, draws, seed, threads
        As in `roc_curve`.

    Returns
    -------
    Curve or None
        x: recall from 0 to 1 in steps of 0.01; y: the precision at the highest threshold with at
        least that recall, not interpolated. By chance it is the share of present rows. None where
        the class has no present or no absent row.

    Raises
    ------
    ValueError
        No such class.
    """
    return _ranked_curve(evaluation, name, is_roc=False, draws=draws, seed=seed, threads=threads)


def reliability_curve(
    evaluation: Evaluation,
    name: str | None = None,
    *,
    bins: int = 10,
    draws: int = DRAWS,
    seed: int = 0,
    threads: int | None = None,
) -> Curve | None:
    """Return how often what was predicted came true, over bins of about equally many rows.

    The bins are those of all rows: a band around a point needs the point to stay. (The expected
    calibration error has no points and cuts its bins in every draw anew.) Probabilities are those
    by which calibration is judged, `Evaluation.meant`.

    Parameters
    ----------
    evaluation : Evaluation
        The predictions.
    name : str, optional
        One class against the rest. None: whether the most probable class is right; not of a
        multi-label head.
    bins : int
        Bins at most; each holds at least ten rows, if there are so many.
    draws, seed, threads : int
        As in `roc_curve`.

    Returns
    -------
    Curve or None
        x: mean probability of a bin; y: the share of its rows in which it came true; `n_rows`.
        None without assessed rows.

    Raises
    ------
    ValueError
        No such class, no class of a multi-label head, or no bin.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1")
    if name is not None:
        p, positive, group = _class_rows(evaluation, name, meant=True)
    elif evaluation.labels.ndim == 2:
        known = ", ".join(evaluation.classes)
        raise ValueError(f"a multi-label head has no most probable class; name one of {known}")
    else:
        p = evaluation.meant.max(axis=1)
        positive = evaluation.meant.argmax(axis=1) == evaluation.labels
        group = evaluation.groups.astype(np.int32)
    n = len(p)
    if n == 0:
        return None
    values, place, size = np.unique(p, return_inverse=True, return_counts=True)
    # A bin ends after the score with which it has its share of the rows that are left.
    wanted = max(min(bins, n // _BIN_ROWS), 1)
    of_value, ends = np.empty(len(values), np.int64), [0]
    filled, share = 0, n / wanted
    for i, rows in enumerate(size.tolist()):
        of_value[i] = len(ends) - 1
        filled += rows
        if filled - ends[-1] >= max(share, _BIN_ROWS) and n - filled >= _BIN_ROWS:
            ends.append(filled)
    bin_of = of_value[place]
    n_bins = len(ends)
    n_rows = np.bincount(bin_of, minlength=n_bins)
    key = bin_of * 2 + positive
    columns = np.zeros((evaluation.n_groups, 2 * n_bins))
    np.add.at(columns, (group, key), 1.0)

    def rates(times: NDArray[np.uint8]) -> NDArray[np.float64]:
        sums = weighted(columns, times)
        counts = sums[::2] + sums[1::2]
        shares: NDArray[np.float64] = (sums[1::2] / np.where(counts > 0, counts, np.nan)).T
        return shares

    found = np.full((draws, n_bins), np.nan)

    def work(chunk: slice, times: NDArray[np.uint8]) -> None:
        found[chunk] = rates(times)

    if evaluation.n_groups > 1:
        each_block(evaluation.n_groups, draws, seed, work, threads)
    low, high = _band(found)
    x = np.bincount(bin_of, p, n_bins) / n_rows
    y = np.bincount(bin_of, positive, n_bins) / n_rows
    return Curve(x, y, low, high, n_rows.astype(np.int64))
