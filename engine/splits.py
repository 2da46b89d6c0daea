"""Which rows may be learned from and which must judge: parts that keep every patient whole.

Parts are made of groups (patients), never of rows, and are stratified: every part gets about its
share of every class. The assignment is greedy, rarest class first, in the manner of iterative
stratification (Sechidis, Tsoumakas, Vlahavas 2011), which covers multi-label sets as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import SplitError

__all__ = [
    "check_classes",
    "check_groups_apart",
    "class_groups",
    "grouped_folds",
    "grouped_holdout",
]


def _membership(labels: NDArray[Any], n_classes: int) -> NDArray[np.bool_]:
    """Return which rows (n) carry which classes (k), for both kinds of labels."""
    member: NDArray[np.bool_]
    member = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(n_classes)[None, :]
    return member


def _group_counts(
    membership: NDArray[np.bool_], groups: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each row's dense group index and the rows per group and class (g, k)."""
    _, dense = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(dense.max(initial=-1)) + 1, membership.shape[1]), np.int64)
    np.add.at(counts, dense, membership)
    return dense.astype(np.int64), counts


def class_groups(labels: NDArray[Any], groups: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Count the patients of every class.

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Class indices, or multi-labels of which 1 counts.
    groups : int (n,)
        Patient of each row.
    n_classes : int
        Number of classes k.

    Returns
    -------
    int64 (k,)
        Patients with at least one row of the class.
    """
    _, counts = _group_counts(_membership(labels, n_classes), groups)
    found: NDArray[np.int64] = (counts > 0).sum(axis=0)
    return found


def check_classes(
    labels: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
    *,
    needed: int,
    purpose: str,
    where: str = "",
) -> None:
    """Refuse labels with which the purpose cannot be reached.

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Class indices, or multi-labels.
    groups : int (n,)
        Patient of each row.
    classes : sequence of str
        Class names.
    needed : int
        Patients every class must have.
    purpose : str
        What they are needed for, for the message.
    where : str
        File or files, for the message.

    Raises
    ------
    SplitError
        There is one class only, or a class has fewer patients than needed.
    """
    prefix = f"{where}: " if where else ""
    found = class_groups(labels, groups, len(classes))
    if labels.ndim == 1 and (len(classes) < 2 or np.count_nonzero(found) < 2):
        names = [name for name, count in zip(classes, found, strict=True) if count]
        raise SplitError(
            f"{prefix}only one class has rows to learn from ({', '.join(names) or 'none'}); "
            "expected at least two; add images of another class"
        )
    poor = [i for i in range(len(classes)) if found[i] < needed]
    if poor:
        table = ", ".join(f"{classes[i]!r} has {found[i]}" for i in poor)
        folds = "lower --cv, or " if purpose.endswith("folds") and found.min() >= 2 else ""
        raise SplitError(
            f"{prefix}too few patients for {purpose}: class {table}; needed: {needed} in each "
            f"class; {folds}add patients, or leave the class out or merge it with another"
        )
    if labels.ndim == 2:
        _, zeros = _group_counts(labels == 0, groups)
        for i, count in enumerate((zeros > 0).sum(axis=0)):
            if count < needed:
                raise SplitError(
                    f"{prefix}too few patients for {purpose}: label {classes[i]!r} is absent "
                    f"(0) in {count}; needed: {needed}; add patients without it, or leave the "
                    "label out"
                )


def _assign(
    membership: NDArray[np.bool_],
    groups: NDArray[Any],
    fractions: NDArray[np.float64],
    seed: int,
) -> NDArray[np.int64]:
    """Give every row a part, keeping groups whole and parts near their share of each class."""
    # The last column counts rows, so that parts come out equally large as well.
    counted = np.column_stack([membership, np.ones(len(membership), np.bool_)])
    dense, counts = _group_counts(counted, groups)
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


def grouped_folds(
    labels: NDArray[Any],
    groups: NDArray[Any],
    n_classes: int,
    *,
    folds: int = 5,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Divide rows into stratified folds of whole patients.

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Class indices, or multi-labels of which 1 counts. A patient may have several classes.
    groups : int (n,)
        Patient of each row.
    n_classes : int
        Number of classes k.
    folds : int
        Number of folds, at least 2 and at most the number of patients.
    seed : int
        The same seed gives the same folds.

    Returns
    -------
    int64 (n,)
        Fold of each row, 0 to folds - 1.

    Raises
    ------
    SplitError
        `folds` is below 2 or above the number of patients.
    """
    n_groups = len(np.unique(groups))
    if folds < 2 or folds > n_groups:
        raise SplitError(
            f"{folds} folds asked of {n_groups} patients; expected 2 to {n_groups}; "
            "choose another number or add patients"
        )
    membership = _membership(labels, n_classes)
    return _assign(membership, groups, np.full(folds, 1.0 / folds), seed)


def grouped_holdout(
    labels: NDArray[Any],
    groups: NDArray[Any],
    n_classes: int,
    *,
    fraction: float = 0.1,
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Choose rows to hold out: a stratified fraction of whole patients.

    A class of very few patients stays in the larger part.

    Parameters
    ----------
    labels, groups, n_classes, seed
        As in `grouped_folds`.
    fraction : float
        Share to hold out, above 0 and at most 0.5.

    Returns
    -------
    bool (n,)
        True where a row is held out.
    """
    membership = _membership(labels, n_classes)
    fractions = np.array([1.0 - fraction, fraction])
    held: NDArray[np.bool_] = _assign(membership, groups, fractions, seed) == 1
    return held


def check_groups_apart(
    groups: NDArray[Any], sides: NDArray[Any], names: Sequence[str], *, where: str = ""
) -> None:
    """Refuse a split that has one patient on two sides.

    Parameters
    ----------
    groups : int (n,)
        Patient of each row.
    sides : int (n,)
        Index into `names` of each row; below 0 does not count.
    names : sequence of str
        What the sides are called.
    where : str
        File, for the message.

    Raises
    ------
    SplitError
        A patient has rows on two sides: what is learned of the patient would be tested on the
        same patient.
    """
    counted = sides >= 0
    pairs = np.unique(np.column_stack([groups[counted], sides[counted]]), axis=0)
    _, starts, sizes = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    torn = np.flatnonzero(sizes > 1)
    if len(torn):
        first = pairs[starts[torn[0]] : starts[torn[0]] + sizes[torn[0]]]
        between = " and ".join(names[side] for side in first[:, 1])
        prefix = f"{where}: " if where else ""
        raise SplitError(
            f"{prefix}{len(torn)} patient(s) with rows on both sides of the split (group "
            f"{first[0, 0]} is in {between}); expected every patient on one side; correct the "
            "split column, or leave it out and let the patients be divided"
        )
