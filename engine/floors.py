"""What can be known of a picture without looking at it: its source, and the patient's sex and age.

A head that is hardly better than one on these columns has learned where pictures come from, not
what they show. DeGrave, Janizek, Lee 2021 (Nature Machine Intelligence 3, 610) found exactly that
in published COVID-19 classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.dataset import Dataset
from engine.errors import SplitError
from formats import Container
from formats.container import AGE_UNKNOWN, PROJECTIONS, SEXES

__all__ = [
    "AGE_BANDS",
    "RowColumn",
    "container_columns",
    "count_values",
    "metadata_matrix",
    "row_columns",
]

#: Years, first and last: infants, the ages of the usual paediatric set, school, youth, adults.
AGE_BANDS = (
    ("under 1", 0, 0),
    ("1 to 5", 1, 5),
    ("6 to 12", 6, 12),
    ("13 to 17", 13, 17),
    ("18 to 39", 18, 39),
    ("40 to 64", 40, 64),
    ("65 and older", 65, AGE_UNKNOWN - 1),
)


@dataclass(frozen=True, eq=False)
class RowColumn:
    """What rows are, by one column.

    Attributes
    ----------
    codes : int64 (n,)
        Index into `names` of each row.
    names : tuple of str
        All values that can be, ``"unknown"`` among them.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]


def row_columns(data: Dataset, rows: NDArray[np.int64] | None = None) -> dict[str, RowColumn]:
    """Return what is known of rows, for subgroups, confounding and the metadata floor.

    Parameters
    ----------
    data : Dataset
        All rows.
    rows : int64 (m,), optional
        Which of them; None takes all.

    Returns
    -------
    dict of str to RowColumn
        ``source``, ``sex``, ``age`` (in `AGE_BANDS`) and ``projection``; those that no container
        has are left out.
    """
    index = np.arange(len(data.rows)) if rows is None else rows
    return _columns(
        None if data.sources is None else data.sources[index],
        data.source_names,
        *(
            None if column is None else column[index]
            for column in (data.sexes, data.ages, data.projections)
        ),
    )


def container_columns(container: Container, rows: NDArray[np.int64]) -> dict[str, RowColumn]:
    """Return the same of rows of one container.

    Parameters
    ----------
    container : Container
        The file.
    rows : int64 (m,)
        Row numbers, as `engine.metrics.Evaluation.rows` has them.

    Returns
    -------
    dict of str to RowColumn
        As `row_columns`.
    """
    sources = container.sources
    return _columns(
        None if sources is None else sources[rows].astype(np.int64),
        container.sources_names,
        *(
            None if column is None else column[rows]
            for column in (container.sexes, container.ages, container.projections)
        ),
    )


def count_values(
    columns: dict[str, RowColumn],
    labels: NDArray[Any],
    groups: NDArray[np.int64],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Count rows and patients of each value of each column, by class.

    Parameters
    ----------
    columns : dict of str to RowColumn
        Of n rows.
    labels : int (n,) or int8 (n, k)
        Truth.
    groups : int64 (n,)
        Patient of each row.
    classes : sequence of str
        The k class names.

    Returns
    -------
    dict
        Empty without columns, else ``{"columns": {NAME: {"values": [...], "classes": [...],
        "multilabel": bool, "rows": [[int]], "patients": [[int]], "absent": [[int]]}}}``: line i is
        of the value i, column j of the class j; ``absent`` counts rows known to be without it.
    """
    k = len(classes)
    multilabel = labels.ndim == 2
    present = labels == 1 if multilabel else labels[:, None] == np.arange(k)
    absent = labels == 0 if multilabel else ~present
    tables: dict[str, Any] = {}
    for name, column in columns.items():
        codes = np.unique(column.codes)
        lines = [column.codes == code for code in codes]
        tables[name] = {
            "values": [column.names[code] for code in codes],
            "classes": list(classes),
            "multilabel": multilabel,
            "rows": [present[here].sum(axis=0).tolist() for here in lines],
            "patients": [
                [len(np.unique(groups[here & present[:, c]])) for c in range(k)] for here in lines
            ],
            "absent": [absent[here].sum(axis=0).tolist() for here in lines],
        }
    return {"columns": tables} if tables else {}


def _columns(
    sources: NDArray[np.int64] | None,
    source_names: tuple[str, ...],
    sexes: NDArray[np.uint8] | None,
    ages: NDArray[np.uint8] | None,
    projections: NDArray[np.uint8] | None,
) -> dict[str, RowColumn]:
    columns = {}
    if sources is not None:
        known = (sources >= 0) & (sources < len(source_names))
        codes = np.where(known, sources, len(source_names))
        columns["source"] = RowColumn(codes, (*source_names, "unknown"))
    if sexes is not None:
        columns["sex"] = RowColumn(_known(sexes, len(SEXES)), SEXES)
    if ages is not None:
        band_of_year = np.full(256, len(AGE_BANDS), np.int64)
        for number, (_, first, last) in enumerate(AGE_BANDS):
            band_of_year[first : last + 1] = number
        names = (*(name for name, _, _ in AGE_BANDS), "unknown")
        columns["age"] = RowColumn(band_of_year[ages], names)
    if projections is not None:
        columns["projection"] = RowColumn(_known(projections, len(PROJECTIONS)), PROJECTIONS)
    return columns


def _known(values: NDArray[np.uint8], n_values: int) -> NDArray[np.int64]:
    """Return values of a later release as 0, which is unknown."""
    return np.where(values < n_values, values, 0).astype(np.int64)


def metadata_matrix(data: Dataset) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return the columns of the metadata floor: one for each value of each column.

    Parameters
    ----------
    data : Dataset
        All rows.

    Returns
    -------
    X : float32 (n, m)
        1 where a row has the value, else 0; unknown is a value of its own. Values that no row has
        get no column.
    names : tuple of str
        Such as ``"sex: female"``, of the m columns.

    Raises
    ------
    SplitError
        No container has any of the columns.
    """
    columns = row_columns(data)
    if not columns:
        raise SplitError(
            f"{data.where}: has no source, sex, age or projection column, so there is no metadata "
            "to compare with; extract again with a manifest that has some of these columns"
        )
    parts, names = [], []
    for what, column in columns.items():
        for code in np.unique(column.codes):
            parts.append(column.codes == code)
            names.append(f"{what}: {column.names[code]}")
    return np.column_stack(parts).astype(np.float32), tuple(names)
