"""Loops that make a picture small: one reads its samples once, one rounds the sums.

The first looks up each sample's level and adds it where it belongs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels import kernel

__all__ = ["COUNTED_BITS", "add_levels", "spread_levels"]

# So many levels below 2**16 fit in 32 bits.
_ROWS_IN_32_BITS = 65536
# Bits of a sum that are counted at a time.
COUNTED_BITS = 12


@kernel
def add_levels(
    samples: NDArray[np.uint8] | NDArray[np.uint16],
    table: NDArray[np.uint16],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    row_weight: int,
    column_weight: int,
    inner: NDArray[np.uint32],
    edges: NDArray[np.uint16],
    column_sums: NDArray[np.int64],
    running: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Write the weighted sum of the levels under each output pixel.

    Rows are added up first, because that needs one addition for each sample and no weight: only
    the first and the last row of an output row have weights of their own.

    Parameters
    ----------
    samples : uint8 or uint16 (h, w)
        Stored samples.
    table : uint16 (256,), (65536,) or (0,)
        Level of each; empty where samples are levels.
    rows, columns : int64 (4, n_rows), (4, n_columns)
        First and last sample under each output pixel, and their weights.
    row_weight, column_weight : int
        Weight of the samples between them.
    inner : uint32 (w,)
        Room to work in.
    edges : uint16 (2, w)
        Room to work in.
    column_sums, running : int64 (w,), (w + 1,)
        Room to work in.
    out : int64 (n_rows, n_columns)
        Filled.
    """
    width = samples.shape[1]
    plain = table.shape[0] == 0
    held = -1
    for i in range(rows.shape[1]):
        first, last = rows[0, i], rows[1, i]
        first_weight, last_weight = rows[2, i], rows[3, i]
        # An edge is mostly shared with the output row before.
        upper, lower = edges[i & 1], edges[(i + 1) & 1]
        if held != first:
            for k in range(width):
                upper[k] = samples[first, k] if plain else table[samples[first, k]]
        for k in range(width):
            column_sums[k] = first_weight * np.int64(upper[k])
            inner[k] = 0
        n_added = 0
        for r in range(first + 1, last):
            if plain:
                for k in range(width):
                    inner[k] += np.uint32(samples[r, k])
            else:
                for k in range(width):
                    inner[k] += np.uint32(table[samples[r, k]])
            n_added += 1
            if n_added == _ROWS_IN_32_BITS:
                for k in range(width):
                    column_sums[k] += row_weight * np.int64(inner[k])
                    inner[k] = 0
                n_added = 0
        if last > first:
            for k in range(width):
                lower[k] = samples[last, k] if plain else table[samples[last, k]]
            for k in range(width):
                column_sums[k] += row_weight * np.int64(inner[k]) + last_weight * np.int64(lower[k])
        else:
            for k in range(width):
                lower[k] = upper[k]
        held = last
        # Differences of running sums: loops of one or two samples would cost more than they add.
        running[0] = 0
        for k in range(width):
            running[k + 1] = running[k] + column_sums[k]
        for j in range(columns.shape[1]):
            left, right = columns[0, j], columns[1, j]
            out[i, j] = (
                column_weight * (running[max(right, left + 1)] - running[left + 1])
                + columns[2, j] * column_sums[left]
                + columns[3, j] * column_sums[right]
            )


@kernel
def spread_levels(
    sums: NDArray[np.int64],
    white: int,
    low_place: int,
    high_place: int,
    counts: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Spread sums over 0 to 255, from 0 to white or from one place in their order to another.

    Parameters
    ----------
    sums : int64 (n,)
        Not negative, at most `white`, which is below 2**53.
    white : int
        What becomes 255 where the places are not asked for, or hold the same.
    low_place, high_place : int
        Places in the order of the sums, from 0; -1 asks for none.
    counts : int64 (3, 2**COUNTED_BITS)
        Room to work in.
    out : uint8 (n,)
        Filled.
    """
    n = sums.shape[0]
    bottom, top = np.int64(0), np.int64(white)
    if low_place >= 0:
        most = np.int64(0)
        for i in range(n):
            most = max(most, sums[i])
        first_shift = 0
        while most >> first_shift >= 1 << COUNTED_BITS:
            first_shift += 1
        counts[0] = 0
        for i in range(n):
            counts[0, sums[i] >> first_shift] += 1
        for which in range(2):
            left = low_place if which == 0 else high_place
            shift = first_shift
            found = np.int64(0)
            while left >= counts[0, found]:
                left -= counts[0, found]
                found += 1
            # Then the next bits of those that agree in the bits so far.
            while shift > 0:
                step = min(shift, COUNTED_BITS)
                counts[1] = 0
                mask = (1 << step) - 1
                for i in range(n):
                    if sums[i] >> shift == found:
                        counts[1, sums[i] >> (shift - step) & mask] += 1
                digit = np.int64(0)
                while left >= counts[1, digit]:
                    left -= counts[1, digit]
                    digit += 1
                found = found << step | digit
                shift -= step
            counts[2, which] = found
        if counts[2, 1] > counts[2, 0]:
            bottom, top = counts[2, 0], counts[2, 1]
    span = top - bottom
    divisor = 2 * span
    inverse = 1.0 / np.float64(divisor)
    for i in range(n):
        value = 510 * (min(max(sums[i], bottom), top) - bottom) + span
        # The quotient in float64 is right or one off; the remainder tells.
        quotient = np.int64(np.float64(value) * inverse)
        rest = value - quotient * divisor
        out[i] = np.uint8(quotient + np.int64(rest >= divisor) - np.int64(rest < 0))
