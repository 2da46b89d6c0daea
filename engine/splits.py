"""Which rows may be learned from and which must judge: parts that keep every patient whole.

Parts are made of groups (patients), never of rows, and are stratified: every part gets about its
share of every class. ``formats.splitting`` does the assignment; here is what learning asks of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import SplitError
from formats.splitting import assign_splits, class_membership, count_by_group

__all__ = [
    "check_classes",
    "check_groups_apart",
    "class_groups",
    "grouped_folds",
    "nested_shares",
    "source_folds",
]


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
    _, counts = count_by_group(class_membership(labels, n_classes), groups)
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
        if not names:
            raise SplitError(
                f"{prefix}no rows to learn from; expected rows marked train or not marked; divide "
                "the container anew (python -m formats resplit), or leave the marks out"
            )
        raise SplitError(
            f"{prefix}only one class has rows to learn from ({names[0]}); "
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
        _, zeros = count_by_group(labels == 0, groups)
        for i, count in enumerate((zeros > 0).sum(axis=0)):
            if count < needed:
                raise SplitError(
                    f"{prefix}too few patients for {purpose}: label {classes[i]!r} is absent "
                    f"(0) in {count}; needed: {needed}; add patients without it, or leave the "
                    "label out"
                )


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
    membership = class_membership(labels, n_classes)
    return assign_splits(membership, groups, np.full(folds, 1.0 / folds), seed=seed)


def nested_shares(
    labels: NDArray[Any],
    groups: NDArray[Any],
    n_classes: int,
    *,
    shares: Sequence[float],
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Choose a stratified share of whole patients, within what larger shares would choose.

    Parameters
    ----------
    labels, groups, n_classes, seed
        As in `grouped_folds`.
    shares : sequence of float
        Above 0 and up to 1; the smallest is chosen, out of the next larger one, and so on.

    Returns
    -------
    bool (n,)
        True where a row is chosen.
    """
    membership = class_membership(labels, n_classes)
    kept = np.arange(len(labels))
    before = 1.0
    for share in sorted(shares, reverse=True):
        if share < before:
            fractions = np.array([share / before, 1.0 - share / before])
            part = assign_splits(membership[kept], groups[kept], fractions, seed=seed)
            kept = kept[part == 0]
        before = share
    chosen = np.zeros(len(labels), np.bool_)
    chosen[kept] = True
    return chosen


def source_folds(
    sources: NDArray[Any], groups: NDArray[Any], names: Sequence[str], *, where: str = ""
) -> NDArray[np.int64]:
    """Make a fold of every source.

    Parameters
    ----------
    sources : int (n,)
        Index into `names` of each row.
    groups : int (n,)
        Patient of each row.
    names : sequence of str
        What the sources are called.
    where : str
        File, for the message.

    Returns
    -------
    int64 (n,)
        `sources`, found to be fit for it.

    Raises
    ------
    SplitError
        There is one source only, or a patient has rows of two.
    """
    prefix = f"{where}: " if where else ""
    present = np.unique(sources)
    if len(present) < 2:
        found = ", ".join(repr(names[source]) for source in present) or "none"
        raise SplitError(
            f"{prefix}sources of the rows to learn from: {found}; expected at least two, so that "
            "one can be left out; add images of another source, or use --cv 5"
        )
    pairs = np.unique(np.column_stack([groups, sources]).astype(np.int64), axis=0)
    _, starts, sizes = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    torn = np.flatnonzero(sizes > 1)
    if len(torn):
        first = pairs[starts[torn[0]] : starts[torn[0]] + sizes[torn[0]]]
        between = " and ".join(repr(names[source]) for source in first[:, 1])
        raise SplitError(
            f"{prefix}{len(torn)} patient(s) with rows of several sources (group {first[0, 0]} is "
            f"in {between}); expected every patient in one source, or leaving a source out would "
            "judge patients that were learned from; correct the source column, or use --cv 5"
        )
    return sources.astype(np.int64)


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
