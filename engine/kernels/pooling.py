"""Loops that reduce feature maps to pooled statistics.

One reading of a map computes any subset of the statistics; `engine.pooling` names them.
"""

# ruff: noqa: PLR1730 - max() and a comparison differ in what they make of NaN.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels import kernel
from engine.kernels.scalars import wide

__all__ = ["GEM_EPS", "GRID_MAXIMA", "GRID_SIZES", "N_PLAIN", "N_SUMS", "pool_maps"]

# The first slots of the `offsets` argument of `pool_maps`: mean, max, std, GeM.
N_PLAIN = 4
# The slots after them pool the cells of a grid; for each the cells along an edge, and whether
# their maximum is wanted instead of their mean.
GRID_SIZES = (2, 3, 4, 5, 2, 3)
GRID_MAXIMA = (False, False, False, False, True, True)
# Running sums a channel needs at once.
N_SUMS = 3

# Generalised mean of Radenovic, Tolias, Chum 2018 (arXiv:1711.02512), section 3.2, eq. 3, with the
# exponent 3 they start from. The clamp keeps the power defined below zero.
GEM_EPS = 1e-6


@kernel
def pool_maps(
    maps: NDArray[np.float32],
    offsets: NDArray[np.int64],
    sums: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Write the wanted statistics of every channel of every map.

    Cell i of g along a height h covers rows floor(i h / g) to ceil((i + 1) h / g): cells overlap
    by a row where g does not divide h, and none is empty. NaN and infinities come out as NumPy's
    reductions would give them.

    Parameters
    ----------
    maps : float32 (n, h, w, c)
        Feature maps, channels last, none of the sizes zero. All channels of a pixel are added
        side by side, each in the order of its pixels.
    offsets : int64 (N_PLAIN + len(GRID_SIZES),)
        First column in `out` of each statistic; -1 leaves one out. Channel i goes to offset + i; a
        grid cell q (row-major) of channel i to offset + q * c + i.
    sums : float64 (N_SUMS, c)
        Room to work.
    out : float32 (n, d)
        Filled where wanted, untouched elsewhere.
    """
    n, h, w, c = maps.shape
    at_mean, at_max, at_std, at_gem = offsets[0], offsets[1], offsets[2], offsets[3]
    size = h * w
    for i in range(n):
        if at_mean >= 0 or at_std >= 0:
            # Sums of differences to the first value: a constant map has exactly no spread
            # (shifted data, Chan, Golub, LeVeque 1983).
            shifts, totals, squares = sums[0], sums[1], sums[2]
            for channel in range(c):
                shifts[channel] = wide(maps[i, 0, 0, channel])
                totals[channel] = 0.0
                squares[channel] = 0.0
            for y in range(h):
                for x in range(w):
                    for channel in range(c):
                        difference = wide(maps[i, y, x, channel]) - shifts[channel]
                        totals[channel] += difference
                        squares[channel] += difference * difference
            for channel in range(c):
                mean = totals[channel] / size
                if at_std >= 0:
                    variance = squares[channel] / size - mean * mean
                    if variance < 0.0:
                        variance = 0.0
                    out[i, at_std + channel] = np.sqrt(variance)
                if at_mean < 0:
                    continue
                # An infinite first value would make the differences NaN everywhere.
                if shifts[channel] - shifts[channel] == 0.0:
                    out[i, at_mean + channel] = shifts[channel] + mean
                else:
                    plain = 0.0
                    for y in range(h):
                        for x in range(w):
                            plain += wide(maps[i, y, x, channel])
                    out[i, at_mean + channel] = plain / size
        if at_max >= 0:
            _write_maxima(maps[i], out[i, at_max : at_max + c])
        if at_gem >= 0:
            cubes = sums[0]
            cubes[:] = 0.0
            for y in range(h):
                for x in range(w):
                    for channel in range(c):
                        # Written so that NaN passes through the clamp.
                        base = wide(maps[i, y, x, channel])
                        if base < GEM_EPS:
                            base = GEM_EPS
                        cubes[channel] += base * base * base
            for channel in range(c):
                out[i, at_gem + channel] = (cubes[channel] / size) ** (1.0 / 3.0)
        for grid in range(len(GRID_SIZES)):
            at = offsets[N_PLAIN + grid]
            if at < 0:
                continue
            cells = GRID_SIZES[grid]
            for row in range(cells):
                top, bottom = row * h // cells, ((row + 1) * h + cells - 1) // cells
                for column in range(cells):
                    left = column * w // cells
                    right = ((column + 1) * w + cells - 1) // cells
                    cell = maps[i, top:bottom, left:right]
                    to = out[i, at : at + c]
                    at += c
                    if GRID_MAXIMA[grid]:
                        _write_maxima(cell, to)
                    else:
                        _write_means(cell, sums, to)


@kernel
def _write_means(
    cell: NDArray[np.float32], sums: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Write the mean of each channel of a cell (h, w, c) to out (c,)."""
    h, w, c = cell.shape
    # Two rows at once: the sums of channels need not be read and written for each of them.
    even, odd = sums[0], sums[1]
    even[:] = 0.0
    odd[:] = 0.0
    for y in range(0, h - 1, 2):
        for x in range(w):
            for channel in range(c):
                even[channel] += wide(cell[y, x, channel])
                odd[channel] += wide(cell[y + 1, x, channel])
    if h % 2 == 1:
        for x in range(w):
            for channel in range(c):
                even[channel] += wide(cell[h - 1, x, channel])
    for channel in range(c):
        out[channel] = (even[channel] + odd[channel]) / (h * w)


@kernel
def _write_maxima(cell: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the largest value of each channel of a cell (h, w, c) to out (c,), or NaN."""
    h, w, c = cell.shape
    out[:] = cell[0, 0]
    for y in range(h):
        for x in range(w):
            for channel in range(c):
                value = cell[y, x, channel]
                if value > out[channel] or np.isnan(value):
                    out[channel] = value
