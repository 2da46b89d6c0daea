"""How a picture becomes a smaller one: area averages in whole numbers, rounded by nobody.

Along each axis an :class:`Axis` says which samples an output pixel lies on and how much of each it
covers, as whole numbers. A sum of levels times both weights is then exact, whatever the order of
the additions, so that the loop of :mod:`engine.kernels.reduction` and the NumPy code here give the
same bytes on every machine. The largest sum is below 2**57 (:data:`engine.picture.MAX_PIXELS`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.jit import ready

__all__ = ["Axis", "make_axis", "plain_shades", "plain_sums", "shades", "weighted_sums"]

# Samples whose levels are held at a time by the NumPy code: they stay in the processor's cache.
_BAND_SAMPLES = 1 << 17
# Sums are brought below 2**53, so that 510 times a sum is still a number of 64 bits.
_SUM_BITS = 53
_COUNTED_BITS = 12
# So many levels below 2**16 fit in 32 bits.
_BAND_ROWS = 1 << 16


class Axis(NamedTuple):
    """What each of n output pixels covers along one axis.

    Attributes
    ----------
    first, last : ndarray, int64, shape (n,)
        First and last sample that is looked at.
    first_weight, last_weight : ndarray, int64, shape (n,)
        Their weights; 0 for the last where it is the first.
    inner_weight : int
        Weight of each sample between them.
    total : int
        Sum of the weights, the same for every output pixel.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    first_weight: NDArray[np.int64]
    last_weight: NDArray[np.int64]
    inner_weight: int
    total: int


def make_axis(n: int, unit: int, start: int, step: int) -> Axis:
    """Spread n output pixels over samples that are `unit` long, from `start` on, `step` each.

    Where an output pixel is at least a sample long, weights are the lengths it has in common with
    each sample: the average over its area. Where it is shorter, weights are those of linear
    interpolation between the middles of the two nearest samples of the part that is covered.

    Parameters
    ----------
    n : int
        Output pixels.
    unit, start, step : int
        Sample k lies from ``k * unit`` to ``(k + 1) * unit``, output pixel j from
        ``start + j * step`` to ``start + (j + 1) * step``.

    Returns
    -------
    Axis
        The weights.
    """
    common = math.gcd(unit, start, step)
    unit, start, step = unit // common, start // common, step // common
    number = np.arange(n, dtype=np.int64)
    begin = start + number * step
    if step >= unit:
        end = begin + step
        first, last = begin // unit, (end - 1) // unit
        first_weight = np.minimum(end, (first + 1) * unit) - begin
        last_weight = np.where(last > first, end - last * unit, 0)
        return Axis(first, last, first_weight, last_weight, unit, step)
    # Middles lie at odd numbers of half units; so everything is counted in these.
    place = 2 * begin + step - unit
    first = place // (2 * unit)
    last_weight = place - first * 2 * unit
    least, most = start // unit, (start + n * step - 1) // unit
    last = np.minimum(first + 1, most)
    first = np.clip(first, least, most)
    last_weight = np.where(last > first, last_weight, 0)
    return Axis(first, last, 2 * unit - last_weight, last_weight, unit, 2 * unit)


def weighted_sums(
    samples: NDArray[np.uint8] | NDArray[np.uint16],
    table: NDArray[np.uint16] | None,
    rows: Axis,
    columns: Axis,
) -> NDArray[np.int64]:
    """Sum the levels under each output pixel, by compiled code where that is loaded already.

    Parameters
    ----------
    samples : ndarray, uint8 or uint16, shape (h, w), C-contiguous
        Stored samples.
    table : ndarray, uint16, shape (256,) or (65536,), or None
        Level of each; None where samples are levels.
    rows, columns : Axis
        What output pixels cover.

    Returns
    -------
    ndarray, int64, shape (n_rows, n_columns)
        Sums; divided by ``rows.total * columns.total`` they are levels.
    """
    if not ready():
        return plain_sums(samples, table, rows, columns)
    from engine.kernels.reduction import add_levels

    n_columns = samples.shape[1]
    out = np.empty((rows.first.size, columns.first.size), dtype=np.int64)
    # One compiled loop for each dtype: views that may be written and views that may not are two
    # types to numba.
    seen = samples.view()
    seen.flags.writeable = False
    lookup = np.empty(0, dtype=np.uint16) if table is None else table
    lookup = lookup.view()
    lookup.flags.writeable = False
    add_levels(
        seen,
        lookup,
        np.stack(rows[:4]),
        np.stack(columns[:4]),
        rows.inner_weight,
        columns.inner_weight,
        np.empty(n_columns, dtype=np.uint32),
        np.empty((2, n_columns), dtype=np.uint16),
        np.empty(n_columns, dtype=np.int64),
        np.empty(n_columns + 1, dtype=np.int64),
        out,
    )
    return out


def plain_sums(
    samples: NDArray[np.uint8] | NDArray[np.uint16],
    table: NDArray[np.uint16] | None,
    rows: Axis,
    columns: Axis,
) -> NDArray[np.int64]:
    """Do what :func:`weighted_sums` does by NumPy alone.

    Parameters
    ----------
    samples, table, rows, columns
        As there.

    Returns
    -------
    ndarray, int64, shape (n_rows, n_columns)
        The same numbers.
    """
    n_columns = samples.shape[1]
    band_rows = max(1, min(_BAND_ROWS, _BAND_SAMPLES // n_columns))
    wide = None if table is None else table.astype(np.uint32)
    levels = np.empty((band_rows, n_columns), dtype=np.uint32)

    def look_up(first: int, last: int) -> NDArray[np.uint32]:
        """Levels of rows first to last, these not included, in the one buffer there is."""
        band = levels[: last - first]
        if wide is None:
            band[:] = samples[first:last]
        else:
            # "clip" skips the buffering that "raise" needs; no sample is outside the table.
            wide.take(samples[first:last], out=band, mode="clip")
        return band

    edge, edge_row = np.zeros(n_columns, dtype=np.int64), -1
    column_sums = np.empty(n_columns, dtype=np.int64)
    running = np.zeros(n_columns + 1, dtype=np.int64)
    inner = np.empty(n_columns, dtype=np.uint32)
    inner_first = columns.first + 1
    inner_last = np.maximum(columns.last, inner_first)
    out = np.empty((rows.first.size, columns.first.size), dtype=np.int64)
    for number in range(rows.first.size):
        first, last = int(rows.first[number]), int(rows.last[number])
        if first != edge_row:
            edge[:] = look_up(first, first + 1)[0]
        np.multiply(edge, rows.first_weight[number], out=column_sums)
        for begin in range(first + 1, last, band_rows):
            band = look_up(begin, min(begin + band_rows, last))
            np.add.reduce(band, axis=0, dtype=np.uint32, out=inner)
            column_sums += inner * np.int64(rows.inner_weight)
        if last > first:
            edge[:] = look_up(last, last + 1)[0]
            column_sums += edge * rows.last_weight[number]
        edge_row = last
        np.cumsum(column_sums, out=running[1:])
        row = out[number]
        np.subtract(running[inner_last], running[inner_first], out=row)
        row *= columns.inner_weight
        row += column_sums[columns.first] * columns.first_weight
        row += column_sums[columns.last] * columns.last_weight
    return out


def shades(
    sums: NDArray[np.int64], white: int, percentiles: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """Spread sums over 0 to 255 and round them, halves up: the only rounding there is.

    Parameters
    ----------
    sums : ndarray, int64, shape (h, w)
        From :func:`weighted_sums`; what is left in it means nothing.
    white : int
        Sum that is white.
    percentiles : (float, float) or None
        The smallest sum that more than the first, in per cent, of all reach at most becomes 0, the
        smallest that at least the second do becomes 255, unless they are the same. Else 0 becomes 0
        and `white` 255.

    Returns
    -------
    ndarray, uint8, shape (h, w)
        Shades.
    """
    # Only where a picture of a few rows has millions of columns.
    excess = max(0, white.bit_length() - _SUM_BITS)
    if excess:
        sums >>= excess
        white >>= excess
    low_place = high_place = -1
    if percentiles is not None:
        n = sums.size
        low_place = min(math.floor(percentiles[0] / 100 * n), n - 1)
        high_place = max(math.ceil(percentiles[1] / 100 * n) - 1, 0)
    if not ready():
        return plain_shades(sums, white, low_place, high_place)
    from engine.kernels.reduction import COUNTED_BITS, spread_levels

    out = np.empty(sums.shape, dtype=np.uint8)
    counts = np.empty((3, 1 << COUNTED_BITS), dtype=np.int64)
    spread_levels(sums.ravel(), white, low_place, high_place, counts, out.ravel())
    return out


def plain_shades(
    sums: NDArray[np.int64], white: int, low_place: int, high_place: int
) -> NDArray[np.uint8]:
    """Do what :func:`shades` does, with places in the order of the sums, by NumPy alone.

    Parameters
    ----------
    sums : ndarray, int64, shape (h, w)
        Below 2**53; what is left in it means nothing, because fresh memory would take longer than
        the arithmetic.
    white : int
        Sum that is white.
    low_place, high_place : int
        Places from 0; -1 for none.

    Returns
    -------
    ndarray, uint8, shape (h, w)
        The same numbers.
    """
    bottom, top = 0, white
    if low_place >= 0:
        lower, upper = _ordered(sums.ravel(), (low_place, high_place))
        if upper > lower:
            bottom, top = lower, upper
    span = top - bottom
    np.clip(sums, bottom, top, out=sums)
    sums -= bottom
    sums *= 510
    sums += span
    sums //= 2 * span
    return sums.astype(np.uint8)


def _ordered(sums: NDArray[np.int64], places: tuple[int, ...]) -> list[int]:
    """Give what would stand at some places if all were sorted, without sorting all.

    Counting the upper bits leaves a small part of the sums for each place: a half of the time of
    NumPy's partition, which was a third of the whole preprocessing.
    """
    upper_bits = sums >> max(0, int(sums.max()).bit_length() - _COUNTED_BITS)
    up_to = np.cumsum(np.bincount(upper_bits))
    found = []
    for place in places:
        bits = int(np.searchsorted(up_to, place, side="right"))
        before = int(up_to[bits - 1]) if bits else 0
        found.append(int(np.sort(sums[upper_bits == bits])[place - before]))
    return found
