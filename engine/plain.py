"""What kernels compute, in NumPy and to the same bits: for a process that does not load numba.

Every sum adds in the order of the kernel's loop, from 0.0 on. `numpy.add.reduce` along an axis that
is not the last in memory does (one running sum for each column); along the last it adds in pairs
(notes of `numpy.sum`), so a single column is summed by `numpy.add.accumulate`. NaN comes out where
a kernel gives NaN; which of the many NaN is not defined.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["logits", "mlp_logits", "pool_maps", "standardise"]

# As the kernels have them, whose modules import numba; a test compares.
GEM_EPS = 1e-6
GRID_SIZES = (2, 3, 4, 5, 2, 3)
GRID_MAXIMA = (False, False, False, False, True, True)
LANES = 64
N_PLAIN = 4


def pool_maps(
    maps: NDArray[np.float32],
    offsets: NDArray[np.int64],
    sums: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Do what `engine.kernels.pooling.pool_maps` does.

    Parameters
    ----------
    maps : float32 (n, h, w, c)
        Feature maps, channels last, none of the sizes zero.
    offsets : int64 (N_PLAIN + len(GRID_SIZES),)
        First column in `out` of each statistic; -1 leaves one out.
    sums : float64 (N_SUMS, c)
        The kernel's room to work; not used.
    out : float32 (n, d)
        Filled where wanted, untouched elsewhere.
    """
    starts = offsets.tolist()
    grids = [
        (cells, maximum, at)
        for cells, maximum, at in zip(GRID_SIZES, GRID_MAXIMA, starts[N_PLAIN:], strict=True)
        if at >= 0
    ]
    # Infinities and NaN give NaN, and what float32 cannot hold infinity, as in the kernel.
    with np.errstate(all="ignore"):
        for image, row in zip(maps, out, strict=True):
            h, w, c = image.shape
            wide = image.astype(np.float64, order="C")
            _pool_whole(image.reshape(h * w, c), wide.reshape(h * w, c), starts, row)
            for cells, maximum, at in grids:
                for number, (top, bottom, left, right) in enumerate(_cells(cells, h, w)):
                    to = slice(at + number * c, at + (number + 1) * c)
                    if maximum:
                        row[to] = _first_maxima(image[top:bottom, left:right].reshape(-1, c))
                        continue
                    # Two sums, of every other row each.
                    part = wide[top:bottom, left:right]
                    even, odd = (_sum_rows(part[start::2].reshape(-1, c)) for start in (0, 1))
                    row[to] = (even + odd) / ((bottom - top) * (right - left))


def _cells(cells: int, h: int, w: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, bottom, left and right of the cells of a grid, in row-major order."""
    for row in range(cells):
        top, bottom = row * h // cells, ((row + 1) * h + cells - 1) // cells
        for column in range(cells):
            left, right = column * w // cells, ((column + 1) * w + cells - 1) // cells
            yield top, bottom, left, right


def _pool_whole(
    image: NDArray[np.float32],
    wide: NDArray[np.float64],
    starts: list[int],
    row: NDArray[np.float32],
) -> None:
    """Write mean, max, std and GeM of an image (h * w, c), which is `wide` too."""
    at_mean, at_max, at_std, at_gem = starts[:N_PLAIN]
    size, c = wide.shape
    if at_max >= 0:
        row[at_max : at_max + c] = _first_maxima(image)
    if at_mean >= 0 or at_std >= 0:
        shift = wide[0]
        differences = wide - shift
        mean = _sum_rows(differences) / size
        if at_mean >= 0:
            means = shift + mean
            if not np.isfinite(shift).all():
                means = np.where(np.isfinite(shift), means, _sum_rows(wide) / size)
            row[at_mean : at_mean + c] = means
        if at_std >= 0:
            variance = _sum_rows(differences * differences) / size - mean * mean
            variance[variance < 0.0] = 0.0
            row[at_std : at_std + c] = np.sqrt(variance)
    if at_gem >= 0:
        base = wide.copy()
        base[base < GEM_EPS] = GEM_EPS  # NaN passes
        cubes = _sum_rows(base * base * base) / size
        # The C library's power, which compiled code calls; NumPy has one of its own.
        row[at_gem : at_gem + c] = [math.pow(value, 1.0 / 3.0) for value in cubes.tolist()]


def _sum_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add up the rows of (n, columns), one after the other."""
    total: NDArray[np.float64]
    if values.shape[1] == 1 and len(values):
        total = np.add.accumulate(values, axis=0)[-1]
    else:
        total = np.add.reduce(np.ascontiguousarray(values), axis=0)
    # A loop that starts at 0.0 makes 0.0 of negative zeros.
    return total + 0.0


def _first_maxima(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the largest of each column of (n, c), of equals the first: 0.0 and -0.0 are; or NaN."""
    rows = np.ascontiguousarray(values.T).argmax(axis=1)
    highest: NDArray[np.float32] = values[rows, np.arange(values.shape[1])]
    return highest


def standardise(
    X: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write (X - mean) / scale, computed in float64, to out (n, d), as the kernel of that name."""
    with np.errstate(all="ignore"):
        wide = np.subtract(X, mean, dtype=np.float64)
        wide /= scale
        out[...] = wide


def logits(
    X: NDArray[np.float32] | NDArray[np.float64],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write X weight' + bias to out (n, k), as the kernel of that name does.

    Parameters
    ----------
    X : float32 or float64 (n, d)
        Standardised features, or what hidden units make of them.
    weight, bias : float64 (k, d), (k,)
        Parameters.
    out : float64 (n, k)
        Filled.
    """
    k, d = weight.shape
    whole = d - d % LANES
    with np.errstate(all="ignore"):
        for x, row in zip(X, out, strict=True):
            products = weight * x
            lanes = np.add.reduce(products[:, :whole].reshape(k, -1, LANES), axis=1)
            # The lanes one after the other, then what did not fill them.
            sums = np.concatenate([lanes, products[:, whole:]], axis=1)
            row[:] = _sum_rows(np.ascontiguousarray(sums.T)) + bias


def mlp_logits(
    X: NDArray[np.float32],
    hidden_weight: NDArray[np.float64],
    hidden_bias: NDArray[np.float64],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    out: NDArray[Any],
) -> None:
    """Write logits (n, k) of a head with one hidden ReLU layer, as the kernel of that name does."""
    hidden = np.empty((len(X), len(hidden_bias)))
    logits(X, hidden_weight, hidden_bias, hidden)
    hidden[hidden < 0.0] = 0.0  # NaN stays
    logits(hidden, weight, bias, out)
