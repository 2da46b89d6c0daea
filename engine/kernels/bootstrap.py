"""Loops that evaluate predictions again for every bootstrap draw of patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels import kernel

__all__ = ["bootstrap_auroc", "bootstrap_rates"]


@kernel
def bootstrap_auroc(
    multiplicity: NDArray[np.int32],
    group: NDArray[np.int64],
    order: NDArray[np.int64],
    tie_end: NDArray[np.uint8],
    truth: NDArray[np.int8],
    out: NDArray[np.float64],
) -> None:
    """Write the AUROC of every class in every draw.

    The area is the Mann-Whitney statistic over rows repeated as often as their group was drawn;
    tied scores count half.

    Parameters
    ----------
    multiplicity : int32 (m, g)
        How often each draw holds each group.
    group : int64 (n,)
        Group of each row.
    order : int64 (k, n)
        Rows by ascending score of each class.
    tie_end : uint8 (k, n)
        1 where the score at this place of the order differs from the next one's.
    truth : int8 (n, k)
        1 positive, 0 negative, below 0 left out.
    out : float64 (m, k)
        Filled; NaN where a draw has no positive or no negative row.
    """
    m = multiplicity.shape[0]
    k, n = order.shape
    for draw in range(m):
        for c in range(k):
            below = 0.0
            positives = 0.0
            pairs = 0.0
            tied_positive = 0.0
            tied_negative = 0.0
            for place in range(n):
                row = order[c, place]
                times = float(multiplicity[draw, group[row]])
                if truth[row, c] == 1:
                    tied_positive += times
                elif truth[row, c] == 0:
                    tied_negative += times
                if tie_end[c, place] == 1:
                    pairs += tied_positive * (below + 0.5 * tied_negative)
                    below += tied_negative
                    positives += tied_positive
                    tied_positive = 0.0
                    tied_negative = 0.0
            if positives > 0.0 and below > 0.0:
                out[draw, c] = pairs / (positives * below)
            else:
                out[draw, c] = np.nan


@kernel
def bootstrap_rates(
    multiplicity: NDArray[np.int32],
    group: NDArray[np.int64],
    stratum: NDArray[np.int64],
    values: NDArray[np.float64],
    out: NDArray[np.float64],
    out_counts: NDArray[np.float64],
) -> None:
    """Write sums of values and numbers of items per stratum in every draw.

    Accuracy is one stratum of 0/1 values; recalls are one stratum per class.

    Parameters
    ----------
    multiplicity : int32 (m, g)
        How often each draw holds each group.
    group, stratum : int64 (n,)
        Group of each item, and the sum it belongs to.
    values : float64 (n,)
        What is added up.
    out, out_counts : float64 (m, s)
        Filled with the sums and with how many items were added.
    """
    out[:] = 0.0
    out_counts[:] = 0.0
    for draw in range(multiplicity.shape[0]):
        for item in range(group.shape[0]):
            times = float(multiplicity[draw, group[item]])
            out[draw, stratum[item]] += times * values[item]
            out_counts[draw, stratum[item]] += times
