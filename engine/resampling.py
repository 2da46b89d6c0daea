"""Figures of predictions in bootstrap draws of patients.

Patients are drawn, not rows: rows of one patient are not independent, and treating them so makes
intervals too narrow (Field and Welsh 2007, the cluster bootstrap). A draw holds as many patients as
there are. The draws depend on the seed and on the number of patients alone: two sets of predictions
of the same rows are seen in the same draws. They are made and worked on in blocks of `LANES`, each
with a random generator of its own, so that threads share blocks and change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.recalibration import RecalibrationDraws

__all__ = [
    "BINS",
    "DRAWS",
    "LANES",
    "LEVELS",
    "PARTS",
    "Ranking",
    "draw_figures",
    "each_block",
    "interval",
    "mean_of_known",
    "sum_by_group",
    "truth_of",
    "weighted",
]

#: Bootstrap draws.
DRAWS = 2000
#: Draws that kernels work on together: with a byte each, those of 10,000 patients fit into the
#: second cache of a core. Changing it changes all draws.
LANES = 64
#: Specificities at which the sensitivity is reported, and the reverse.
LEVELS = (0.9, 0.95)
#: Bins of equal mass of the expected calibration error.
BINS = 15
# Memory for the derivatives of `engine.recalibration`.
_HOLD_BYTES = 64 << 20
#: What `draw_figures` can be asked for.
PARTS = frozenset({"rates", "ranks", "ece", "calibration"})


def truth_of(labels: NDArray[Any], n_classes: int) -> NDArray[np.int8]:
    """Return labels as int8 (n, k): 1, 0, or below 0 where not assessed."""
    if labels.ndim == 2:
        return labels.astype(np.int8)
    truth: NDArray[np.int8] = (labels[:, None] == np.arange(n_classes)[None, :]).astype(np.int8)
    return truth


def interval(values: NDArray[np.float64], *, needed: float = 0.0) -> list[float] | None:
    """Return the 2.5th and 97.5th percentile of the draws that have the figure.

    Parameters
    ----------
    values : float64 (m,)
        NaN in draws without the figure.
    needed : float
        Share of draws that must have it.

    Returns
    -------
    [low, high] or None
        None where too few or none have it.
    """
    known = values[~np.isnan(values)]
    if len(known) == 0 or len(known) < needed * len(values):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return [float(low), float(high)]


def each_block(
    n_groups: int,
    draws: int,
    seed: int,
    work: Callable[[slice, NDArray[np.uint8]], None],
    threads: int | None = None,
) -> None:
    """Draw patients and call `work` with every block of draws, from several threads.

    Parameters
    ----------
    n_groups : int
        Number of patients g.
    draws, seed : int
        How many draws, and what they depend on.
    work : callable
        Gets which draws these are, and uint8 (g, m): how often each of them holds each patient.
    threads : int, optional
        As many as there are processors if None.
    """

    def run(start: int) -> None:
        generator = np.random.default_rng([seed, start // LANES])
        m = min(LANES, draws - start)
        times = np.empty((n_groups, m), np.uint8)
        for lane in range(m):
            # That 255 copies of one patient are drawn has a chance below 1e-500.
            drawn = generator.integers(0, n_groups, n_groups)
            times[:, lane] = np.minimum(np.bincount(drawn, minlength=n_groups), 255)
        work(slice(start, start + m), times)

    starts = range(0, draws, LANES)
    workers = min(threads or os.cpu_count() or 1, len(starts))
    if workers < 2:
        for start in starts:
            run(start)
        return
    # Deciding by a head loads this module too, and needs no threads.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers, thread_name_prefix="hilum-draws") as pool:
        for _ in pool.map(run, starts):
            pass


class Ranking:
    """Rows by descending score, as the kernel wants them.

    Parameters
    ----------
    scores : float64 (n,)
        Larger means more likely present.
    positive : bool (n,)
        The truth.
    group : int32 (n,)
        Patient of each row, from 0.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        positive: NDArray[np.bool_],
        group: NDArray[np.int32],
    ) -> None:
        from engine.kernels import bootstrap

        order = np.lexsort((positive, -scores))
        ranked, present = scores[order], positive[order]
        last = np.ones(len(order), np.bool_)
        last[:-1] = ranked[1:] != ranked[:-1]
        ends = np.flatnonzero(last)
        # Present rows are the last of their score: where the last one is not, none is.
        mixed = present[ends][np.searchsorted(ends, np.arange(len(order)))]
        self._kind = np.where(
            present,
            np.where(last, bootstrap.POSITIVE_LAST, bootstrap.POSITIVE),
            np.where(mixed, bootstrap.MIXED_NEGATIVE, bootstrap.PURE_NEGATIVE),
        ).astype(np.uint8)
        self._group = np.ascontiguousarray(group[order])

    def figures(
        self, times: NDArray[np.uint8], levels: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what `engine.kernels.bootstrap.ranked_figures` writes: (4, m) and (3, v, m)."""
        from engine.kernels.bootstrap import ranked_figures

        m = times.shape[1]
        out, out_levels = np.empty((4, m)), np.empty((3, len(levels), m))
        state, limits = np.empty((6, m)), np.empty((2, len(levels), m))
        ranked_figures(times, self._group, self._kind, levels, state, limits, out, out_levels)
        return out, out_levels


class _Bins:
    """Rows by ascending probability, for the calibration error."""

    def __init__(
        self,
        probabilities: NDArray[np.float64],
        positive: NDArray[np.bool_],
        group: NDArray[np.int32],
    ) -> None:
        # Ties in the order of their gap: a sum must not depend on the order of the rows.
        gap = probabilities - positive
        order = np.lexsort((gap, probabilities))
        ranked = probabilities[order]
        self._tie_end = np.ones(len(order), np.uint8)
        self._tie_end[:-1] = ranked[1:] != ranked[:-1]
        self._gap = gap[order]
        self._group = np.ascontiguousarray(group[order])

    def errors(self, times: NDArray[np.uint8]) -> NDArray[np.float64]:
        from engine.kernels.bootstrap import binned_gaps

        out, state = np.empty((2, times.shape[1])), np.empty((3, times.shape[1]))
        binned_gaps(times, self._group, self._gap, self._tie_end, BINS, state, out)
        return np.where(out[0] > 0, out[1], np.nan)


def mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the first axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    sums = np.where(known, values, 0.0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def sum_by_group(values: NDArray[Any], group: NDArray[np.int32]) -> NDArray[np.float64]:
    """Add up the rows of values (n, v) by patient: float64 (g, v)."""
    n_groups = int(group.max(initial=-1)) + 1
    columns = [np.bincount(group, column, n_groups) for column in values.T]
    return np.ascontiguousarray(np.column_stack(columns), np.float64)


def weighted(values: NDArray[np.float64], times: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the sums of values (g, v) of patients, each as often as it was drawn: (v, m)."""
    from engine.kernels.bootstrap import weighted_sums

    out, state = np.empty((values.shape[1], times.shape[1])), np.empty((4, times.shape[1]))
    weighted_sums(times, values, state, out)
    return out


def draw_figures(
    probabilities: NDArray[np.float64],
    decisions: NDArray[Any],
    labels: NDArray[Any],
    groups: NDArray[np.int64],
    classes: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    parts: frozenset[str] = PARTS,
    threads: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return figures in every draw of patients.

    Parameters
    ----------
    probabilities : float64 (n, k)
        Predicted.
    decisions, labels : int (n,) each, or bool and int8 (n, k)
        Decided, and the truth (below 0: not assessed, left out).
    groups : int64 (n,)
        Patients, numbered from 0 without gaps.
    classes : sequence of str
        The k class names.
    draws, seed : int
        See `each_block`.
    parts : frozenset of str
        Some of `PARTS`; what is not asked for takes no time.
    threads : int, optional
        See `each_block`.

    Returns
    -------
    dict of str to float64 (draws,)
        By the keys of ``Evaluation.ci95``; NaN in draws without the figure, such as the AUROC of a
        class of which the draw holds no patient.
    """
    multilabel = labels.ndim == 2
    k = len(classes)
    truth = truth_of(labels, k)
    group = groups.astype(np.int32)
    n_groups = int(group.max()) + 1
    found: dict[str, NDArray[np.float64]] = {}

    def room(key: str) -> NDArray[np.float64]:
        return found.setdefault(key, np.full(draws, np.nan))

    tasks: list[Callable[[slice, NDArray[np.uint8]], None]] = []
    columns = []
    for c in range(k):
        rows = truth[:, c] >= 0
        columns.append((probabilities[rows, c], truth[rows, c] == 1, group[rows]))

    if "rates" in parts:
        judged = truth >= 0
        present = truth == 1
        if multilabel:
            right = decisions == present
            squares = np.where(judged, (probabilities - present) ** 2, 0.0).sum(axis=1)
            sides = [judged & present, judged & ~present]
            counted = np.column_stack([side[:, c] for c in range(k) for side in sides])
            correct = np.column_stack([(side & right)[:, c] for c in range(k) for side in sides])
        else:
            counted, correct = present, present & (decisions == labels)[:, None]
            squares = ((probabilities - truth) ** 2).sum(axis=1)
        columns_of_rates = sum_by_group(np.column_stack([counted, correct, squares]), group)
        s = counted.shape[1]
        accuracy, balanced, score = room("accuracy"), room("balanced_accuracy"), room("brier")

        def rates(chunk: slice, times: NDArray[np.uint8]) -> None:
            sums = weighted(columns_of_rates, times)
            counts, hits = sums[:s], sums[s : 2 * s]
            total = counts.sum(axis=0)
            some = np.where(total > 0, total, np.nan)
            accuracy[chunk] = hits.sum(axis=0) / some
            score[chunk] = sums[2 * s] / some
            balanced[chunk] = mean_of_known(hits / np.where(counts > 0, counts, np.nan))

        tasks.append(rates)

    if "ranks" in parts:
        rankings = [Ranking(*column) for column in columns]
        levels = np.array(LEVELS)
        names = ["auroc", "average_precision"]
        names += [f"sensitivity_at_{level:.2f}" for level in LEVELS]
        names += [f"specificity_at_{level:.2f}" for level in LEVELS]
        of_class = [[room(f"{name}:{each}") for name in names] for each in classes]
        macros = [room("auroc_macro"), room("average_precision_macro")]

        def ranks(chunk: slice, times: NDArray[np.uint8]) -> None:
            table = np.empty((k, len(names), times.shape[1]))
            for c, ranking in enumerate(rankings):
                out, at = ranking.figures(times, levels)
                present, absent = out[0], out[1]
                both = (present > 0) & (absent > 0)
                table[c, :2] = out[2:]
                table[c, 2 : 2 + len(levels)] = at[0] / np.maximum(present, 1.0)
                table[c, 2 + len(levels) :] = 1.0 - at[1] / np.maximum(absent, 1.0)
                table[c, :, ~both] = np.nan
                for where, series in zip(of_class[c], table[c], strict=True):
                    where[chunk] = series
            for i, macro in enumerate(macros):
                macro[chunk] = mean_of_known(table[:, i])

        tasks.append(ranks)

    if "ece" in parts:
        if multilabel:
            bins = [_Bins(*column) for column in columns if len(column[0])]
        else:
            top = probabilities.argmax(axis=1)
            bins = [_Bins(probabilities.max(axis=1), top == labels, group)]
        ece = room("ece")

        def errors(chunk: slice, times: NDArray[np.uint8]) -> None:
            if bins:
                ece[chunk] = mean_of_known(np.stack([each.errors(times) for each in bins]))

        tasks.append(errors)

    def work(chunk: slice, times: NDArray[np.uint8]) -> None:
        for task in tasks:
            task(chunk, times)

    if tasks:
        each_block(n_groups, draws, seed, work, threads)
    if "calibration" in parts:
        # A few classes in one pass: their derivatives are held for every patient.
        size = max(_HOLD_BYTES // (8 * (18 * n_groups + 5 * len(group))), 1)
        for start in range(0, k, size):
            some = range(start, min(start + size, k))
            lines = [RecalibrationDraws(*columns[c], n_groups) for c in some]
            slopes = [room(f"calibration_slope:{classes[c]}") for c in some]
            intercepts = [room(f"calibration_intercept:{classes[c]}") for c in some]

            def recalibrate(
                chunk: slice,
                times: NDArray[np.uint8],
                lines: list[RecalibrationDraws] = lines,
                slopes: list[NDArray[np.float64]] = slopes,
                intercepts: list[NDArray[np.float64]] = intercepts,
            ) -> None:
                for line, slope, intercept in zip(lines, slopes, intercepts, strict=True):
                    sums = weighted(line.columns, times)
                    slope[chunk] = line.slopes(times, sums)
                    intercept[chunk] = line.intercepts(times, sums)

            each_block(n_groups, draws, seed, recalibrate, threads)
    return found
