"""Loops that evaluate predictions again for many bootstrap draws of patients at once.

Draws are lanes: ``times[g, j]`` says how often draw j holds patient g, and every loop over draws
is the innermost, over neighbouring numbers, so that the compiler makes vector instructions of it.
A draw never sees another's numbers; its result does not depend on how many share a call.

Counts stay whole numbers below 2**53 in float64, so that comparing them is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels import kernel
from engine.kernels.scalars import wide

__all__ = [
    "MIXED_NEGATIVE",
    "POSITIVE",
    "POSITIVE_LAST",
    "PURE_NEGATIVE",
    "binned_gaps",
    "ranked_figures",
    "recalibration_sums",
    "weighted_sums",
]

#: What stands at a place of a ranking: an absent row among scores that only absent rows have; an
#: absent row tied with a present one; a present row; the last present row of its score.
PURE_NEGATIVE, MIXED_NEGATIVE, POSITIVE, POSITIVE_LAST = 0, 1, 2, 3

# exp(-d) is a polynomial of d / 2**_SQUARINGS, squared so many times: no call, so that it becomes
# vector instructions. Within 3e-8 of exp for |d| <= 16.
_SQUARINGS = 6

Times = NDArray[np.uint8] | NDArray[np.int32]


@kernel
def ranked_figures(
    times: Times,
    group: NDArray[np.int32],
    kind: NDArray[np.uint8],
    levels: NDArray[np.float64],
    state: NDArray[np.float64],
    limits: NDArray[np.float64],
    out: NDArray[np.float64],
    out_levels: NDArray[np.float64],
) -> None:
    """Write what a ranking of rows by one score says in every draw.

    A threshold lies between two different scores, so tied rows are called present together. A
    draw's counts of present and absent rows above a threshold change only where present rows are,
    which is where all figures are looked at.

    Parameters
    ----------
    times : uint8 or int32 (g, m)
        How often each draw holds each group.
    group : int32 (n,)
        Group of the rows, by descending score; among equal scores absent rows come first.
    kind : uint8 (n,)
        One of the constants of this module.
    levels : float64 (v,)
        Specificities, and sensitivities, at which the other one is asked for.
    state : float64 (6, m)
        Room to work in.
    limits : float64 (2, v, m)
        Room to work in.
    out : float64 (4, m)
        Filled: present rows, absent rows, area under the ROC curve (pairs in the right order, ties
        half), average precision (sum over thresholds of the gain in recall times precision). The
        latter two mean nothing in a draw without present or without absent rows.
    out_levels : float64 (3, v, m)
        Filled with numbers of rows. 0: present ones above the lowest threshold whose specificity is
        at least the level. 1 and 2: absent and present ones above the highest threshold whose
        sensitivity is at least the level.
    """
    m = times.shape[1]
    n = group.shape[0]
    n_levels = levels.shape[0]
    above, below, tied_present, tied_absent, area, precision = (
        state[0],
        state[1],
        state[2],
        state[3],
        state[4],
        state[5],
    )
    state[:] = 0.0
    out[:] = 0.0
    out_levels[:] = 0.0
    present, absent = out[0], out[1]
    for i in range(n):
        g = group[i]
        if kind[i] >= POSITIVE:
            for j in range(m):
                present[j] += wide(times[g, j])
        else:
            for j in range(m):
                absent[j] += wide(times[g, j])
    for v in range(n_levels):
        for j in range(m):
            # 0.9 of 10 rows is 9 rows, whatever 0.9 is in binary.
            limits[0, v, j] = np.floor(absent[j] * (1.0 - levels[v]) + 1e-9)
            limits[1, v, j] = np.ceil(present[j] * levels[v] - 1e-9)
    # `above` and `below` count present and absent rows above the threshold reached so far.
    for i in range(n):
        g = group[i]
        what = kind[i]
        if what == PURE_NEGATIVE:
            for j in range(m):
                below[j] += wide(times[g, j])
        elif what == MIXED_NEGATIVE:
            for j in range(m):
                tied_absent[j] += wide(times[g, j])
        else:
            for j in range(m):
                tied_present[j] += wide(times[g, j])
        if what == POSITIVE_LAST:
            for v in range(n_levels):
                for j in range(m):
                    after = above[j] + tied_present[j]
                    wrong = below[j] + tied_absent[j]
                    if wrong <= limits[0, v, j]:
                        out_levels[0, v, j] = after
                    if above[j] < limits[1, v, j]:
                        out_levels[1, v, j] = wrong
                        out_levels[2, v, j] = after
            for j in range(m):
                gain = tied_present[j]
                area[j] += gain * (absent[j] - below[j] - 0.5 * tied_absent[j])
                above[j] += gain
                below[j] += tied_absent[j]
                precision[j] += gain * np.divide(above[j], max(above[j] + below[j], 1.0))
                tied_present[j] = 0.0
                tied_absent[j] = 0.0
    for j in range(m):
        out[2, j] = np.divide(area[j], max(present[j] * absent[j], 1.0))
        out[3, j] = np.divide(precision[j], max(present[j], 1.0))


@kernel
def binned_gaps(
    times: Times,
    group: NDArray[np.int32],
    gap: NDArray[np.float64],
    tie_end: NDArray[np.uint8],
    n_bins: int,
    state: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write the calibration error over bins of equal mass, which every draw cuts anew.

    Rows of one probability stay together: their bin is ``floor(n_bins * before / total)``, with
    the number of rows before them.

    Parameters
    ----------
    times : uint8 or int32 (g, m)
        How often each draw holds each group.
    group : int32 (n,)
        Group of the rows, by ascending probability.
    gap : float64 (n,)
        Probability less truth.
    tie_end : uint8 (n,)
        1 where the next row has another probability.
    n_bins : int
        Number of bins.
    state : float64 (3, m)
        Room to work in.
    out : float64 (2, m)
        Filled: rows, and the sum over bins of the absolute summed gap, divided by the rows.
    """
    m = times.shape[1]
    n = group.shape[0]
    state[:] = 0.0
    out[:] = 0.0
    total, error = out[0], out[1]
    so_far, gaps, done = state[0], state[1], state[2]
    for i in range(n):
        g = group[i]
        for j in range(m):
            total[j] += wide(times[g, j])
    for i in range(n):
        g = group[i]
        difference = gap[i]
        if tie_end[i] == 0:
            for j in range(m):
                so_far[j] += wide(times[g, j])
                gaps[j] += wide(times[g, j]) * difference
        else:
            for j in range(m):
                now = so_far[j] + wide(times[g, j])
                summed = gaps[j] + wide(times[g, j]) * difference
                full = n_bins * now >= (done[j] + 1.0) * total[j]
                so_far[j] = now
                error[j] += np.abs(summed) if full else 0.0
                gaps[j] = 0.0 if full else summed
                bins = np.floor(np.divide(n_bins * now, max(total[j], 1.0)))
                done[j] = bins if full else done[j]
    for j in range(m):
        error[j] = np.divide(error[j], max(total[j], 1.0))


@kernel
def weighted_sums(
    times: Times,
    values: NDArray[np.float64],
    state: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write sums over groups, each as often as it was drawn: the matrix product values.T @ times.

    NumPy's would go through BLAS, whose bits change with its number of threads.

    Parameters
    ----------
    times : uint8 or int32 (g, m)
        How often each draw holds each group.
    values : float64 (g, v)
        What is added up.
    state : float64 (4, m)
        Room to work in.
    out : float64 (v, m)
        Filled with the sums.
    """
    g, m = times.shape
    whole = g - g % 4
    out[:] = 0.0
    # Four groups in one go: the sums are loaded and stored a quarter as often.
    for i in range(0, whole, 4):
        for j in range(m):
            state[0, j] = wide(times[i, j])
            state[1, j] = wide(times[i + 1, j])
            state[2, j] = wide(times[i + 2, j])
            state[3, j] = wide(times[i + 3, j])
        for v in range(values.shape[1]):
            a, b, c, d = values[i, v], values[i + 1, v], values[i + 2, v], values[i + 3, v]
            for j in range(m):
                out[v, j] += (state[0, j] * a + state[1, j] * b) + (
                    state[2, j] * c + state[3, j] * d
                )
    for i in range(whole, g):
        for v in range(values.shape[1]):
            for j in range(m):
                out[v, j] += wide(times[i, j]) * values[i, v]


@kernel
def recalibration_sums(
    times: Times,
    group: NDArray[np.int32],
    x: NDArray[np.float64],
    positive: NDArray[np.float64],
    odds: NDArray[np.float64],
    step: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write gradient and curvature of a logistic regression on one variable in every draw.

    Parameters
    ----------
    times : uint8 or int32 (g, m)
        How often each draw holds each group.
    group : int32 (n,)
        Group of each row.
    x, positive : float64 (n,)
        Variable, and truth as 0 or 1.
    odds : float64 (n,)
        exp(-z) with the linear predictor z of all rows' fit.
    step : float64 (2, m)
        Intercept and slope less those of all rows' fit; ``|step[0] + step[1] * x| <= 16``.
    out : float64 (5, m)
        Filled with sums over rows: r, r x, w, w x, w x^2, with residual r and weight w.
    """
    m = times.shape[1]
    out[:] = 0.0
    for i in range(group.shape[0]):
        g = group[i]
        at = x[i]
        truth = positive[i]
        odd = odds[i]
        for j in range(m):
            d = (step[0, j] + step[1, j] * at) * (-1.0 / 64.0)
            e = 1.0 + d / 7.0
            e = 1.0 + d * e / 6.0
            e = 1.0 + d * e / 5.0
            e = 1.0 + d * e / 4.0
            e = 1.0 + d * e / 3.0
            e = 1.0 + d * e / 2.0
            e = 1.0 + d * e
            for _ in range(_SQUARINGS):
                e *= e
            p = np.divide(1.0, 1.0 + odd * e)
            repeated = wide(times[g, j])
            r = repeated * (truth - p)
            w = repeated * p * (1.0 - p)
            out[0, j] += r
            out[1, j] += r * at
            out[2, j] += w
            out[3, j] += w * at
            out[4, j] += w * at * at
