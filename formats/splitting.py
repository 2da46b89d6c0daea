"""How rows are divided into parts that keep every patient whole and share every class out.

Parts are made of groups (patients), never of rows, and are stratified: every part gets about its
share of every class. The assignment is greedy, rarest class first, in the manner of iterative
stratification (Sechidis, Tsoumakas, Vlahavas 2011), which covers multi-label sets as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

__all__ = ["assign_splits", "bounded_membership", "class_membership", "count_by_group"]

# what counting may take: numbers of patients and classes, and marks of rows and classes
_MOST_COUNTS = 20_000_000
_MOST_MARKS = 200_000_000


def class_membership(labels: NDArray[Any], n_classes: int) -> NDArray[np.bool_]:
    """Tell which rows carry which classes, for both kinds of labels.

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Class indices, or multi-labels of which 1 counts.
    n_classes : int
        Number of classes k.

    Returns
    -------
    bool (n, k)
        True where the row is of the class.
    """
    member: NDArray[np.bool_]
    member = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(n_classes)[None, :]
    return member


def bounded_membership(
    labels: NDArray[Any], n_classes: int, n_groups: int
) -> tuple[NDArray[np.bool_], int]:
    """Tell which rows carry which classes, the rarest lumped together where they are too many.

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Class indices, or multi-labels of which 1 counts.
    n_classes : int
        Number of classes k.
    n_groups : int
        Number of patients, by whom the classes will be counted.

    Returns
    -------
    membership : bool (n, m)
        As `class_membership` gives it; m is k unless counting would take much memory. Then the
        last column stands for all classes but the m - 1 most frequent.
    n_lumped : int
        Number of classes in the last column, 0 if every class has its own.
    """
    most = min(_MOST_COUNTS // max(1, n_groups), _MOST_MARKS // max(1, len(labels)))
    if n_classes <= max(2, most):
        return class_membership(labels, n_classes), 0
    n_own = max(1, most - 1)
    if labels.ndim == 1:
        frequency = np.bincount(labels, minlength=n_classes)
    else:
        # row by row of blocks: a mask of all cells would be what is to be avoided
        frequency = np.zeros(n_classes, np.int64)
        for part in _blocks(labels):
            frequency += np.count_nonzero(labels[part] == 1, axis=0)
    own = np.sort(np.argsort(-frequency, kind="stable")[:n_own])
    if labels.ndim == 1:
        column = np.full(n_classes, n_own)
        column[own] = np.arange(n_own)
        return class_membership(column[labels], n_own + 1), n_classes - n_own
    member = np.zeros((len(labels), n_own + 1), np.bool_)
    for part in _blocks(labels):
        present = labels[part] == 1
        member[part, :n_own] = present[:, own]
        present[:, own] = False
        member[part, n_own] = present.any(axis=1)
    return member, n_classes - n_own


def _blocks(labels: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _MOST_COUNTS // labels.shape[1])
    return (slice(start, start + step) for start in range(0, len(labels), step))


def count_by_group(
    membership: NDArray[np.bool_], groups: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the rows of each group and class.

    Parameters
    ----------
    membership : bool (n, k)
        As `class_membership` gives it.
    groups : int (n,)
        Patient of each row.

    Returns
    -------
    dense : int64 (n,)
        Patient of each row, numbered from 0 without holes.
    counts : int64 (g, k)
        Rows of each patient and class.
    """
    _, dense = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(dense.max(initial=-1)) + 1, membership.shape[1]), np.int64)
    np.add.at(counts, dense, membership)
    return dense.astype(np.int64), counts


def assign_splits(
    membership: NDArray[np.bool_],
    groups: NDArray[Any],
    fractions: npt.ArrayLike,
    *,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Give every row a part, keeping groups whole and parts near their share of each class.

    Parameters
    ----------
    membership : bool (n, k)
        Which rows carry which classes, as `class_membership` gives it; k may be 0.
    groups : int (n,)
        Patient of each row.
    fractions : float (p,)
        Share of each part, above 0.
    seed : int
        The same seed gives the same parts.

    Returns
    -------
    int64 (n,)
        Part of each row, 0 to p - 1.
    """
    fractions = np.asarray(fractions, np.float64)
    # The last column counts rows, so that parts come out equally large as well.
    counted = np.column_stack([membership, np.ones(len(membership), np.bool_)])
    dense, counts = count_by_group(counted, groups)
    totals = np.maximum(counts.sum(axis=0), 1)
    # A group is as rare as the rarest class in it; rare groups choose first, then large ones. The
    # shuffle before the stable sort is the only use of the seed.
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    rarity = np.where(counts > 0, totals, np.iinfo(np.int64).max).min(axis=1)
    order = shuffled[np.lexsort((-counts.sum(axis=1)[shuffled], rarity[shuffled]))]
    filled = np.zeros((len(fractions), counted.shape[1]))
    part_of_group = np.zeros(len(counts), np.int64)
    per_class = 1.0 / totals.astype(np.float64) ** 2
    for group in order:
        row = counts[group].astype(np.float64)
        # The growth of sum over parts of (share of the class)^2 / fraction, which is least when
        # every part has its fraction of every class.
        growth = ((filled + 0.5 * row) / fractions[:, None]) @ (row * per_class)
        part = int(np.argmin(growth))
        part_of_group[group] = part
        filled[part] += row
    return part_of_group[dense]
