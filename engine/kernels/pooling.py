"""Loops that reduce feature maps to pooled statistics.

One reading of a map computes any subset of the statistics; `engine.pooling` names them.
"""

# ruff: noqa: PLR1730 - max() and a comparison differ in what they make of NaN.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels import kernel
from engine.kernels.scalars import wide

__all__ = ["GEM_EPS", "GRID_MAXIMA", "GRID_SIZES", "N_PLAIN", "pool_maps"]

# The first slots of the `offsets` argument of `pool_maps`: mean, max, std, GeM.
N_PLAIN = 4
# The slots after them pool the cells of a grid; for each the cells along an edge, and whether
# their maximum is wanted instead of their mean.
GRID_SIZES = (2, 3, 4, 5, 2, 3)
GRID_MAXIMA = (False, False, False, False, True, True)

# Generalised mean of Radenovic, Tolias, Chum 2018 (arXiv:1711.02512), section 3.2, eq. 3, with the
# exponent 3 they start from. The clamp keeps the power defined below zero.
GEM_EPS = 1e-6


@kernel
def pool_maps(
    maps: NDArray[np.float32], offsets: NDArray[np.int64], out: NDArray[np.float32]
) -> None:
    """Write the wanted statistics of every channel of every map.

    Cell i of g along a height h covers rows floor(i h / g) to ceil((i + 1) h / g): cells overlap
    by a row where g does not divide h, and none is empty. NaN and infinities come out as NumPy's
    reductions would give them.

    Parameters
    ----------
    maps : float32 (n, c, h, w)
        Feature maps, none of the sizes zero.
    offsets : int64 (N_PLAIN + len(GRID_SIZES),)
        First column in `out` of each statistic; -1 leaves one out. Channel i goes to offset + i; a
        grid cell q (row-major) of channel i to offset + q * c + i.
    out : float32 (n, d)
        Filled where wanted, untouched elsewhere.
    """
    n, c, h, w = maps.shape
    at_mean, at_max, at_std = offsets[0], offsets[1], offsets[2]
    at_gem = offsets[3]
    size = h * w
    whole = at_mean >= 0 or at_max >= 0 or at_std >= 0 or at_gem >= 0
    for i in range(n):
        for channel in range(c):
            # Sums of differences to the first value: a constant map has exactly no spread
            # (shifted data, Chan, Golub, LeVeque 1983).
            shift = wide(maps[i, channel, 0, 0])
            total = 0.0
            squares = 0.0
            cubes = 0.0
            high = maps[i, channel, 0, 0]
            for y in range(h if whole else 0):
                for x in range(w):
                    value = maps[i, channel, y, x]
                    difference = wide(value) - shift
                    total += difference
                    squares += difference * difference
                    if value > high or np.isnan(value):
                        high = value
                if at_gem >= 0:
                    for x in range(w):
                        # Written so that NaN passes through the clamp.
                        base = wide(maps[i, channel, y, x])
                        if base < GEM_EPS:
                            base = GEM_EPS
                        cubes += base * base * base
            mean = total / size
            if at_mean >= 0:
                # An infinite first value would make the differences NaN everywhere.
                if shift - shift == 0.0:
                    out[i, at_mean + channel] = shift + mean
                else:
                    plain = 0.0
                    for y in range(h):
                        for x in range(w):
                            plain += wide(maps[i, channel, y, x])
                    out[i, at_mean + channel] = plain / size
            if at_max >= 0:
                out[i, at_max + channel] = high
            if at_std >= 0:
                variance = squares / size - mean * mean
                if variance < 0.0:
                    variance = 0.0
                out[i, at_std + channel] = np.sqrt(variance)
            if at_gem >= 0:
                out[i, at_gem + channel] = (cubes / size) ** (1.0 / 3.0)
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
                        to = at + (row * cells + column) * c + channel
                        if GRID_MAXIMA[grid]:
                            high = maps[i, channel, top, left]
                            for y in range(top, bottom):
                                for x in range(left, right):
                                    value = maps[i, channel, y, x]
                                    if value > high or np.isnan(value):
                                        high = value
                            out[i, to] = high
                            continue
                        # Two rows at once: one sum would wait for each addition to finish.
                        even = 0.0
                        odd = 0.0
                        for y in range(top, bottom - 1, 2):
                            for x in range(left, right):
                                even += wide(maps[i, channel, y, x])
                                odd += wide(maps[i, channel, y + 1, x])
                        if (bottom - top) % 2 == 1:
                            for x in range(left, right):
                                even += wide(maps[i, channel, bottom - 1, x])
                        out[i, to] = (even + odd) / ((bottom - top) * (right - left))
