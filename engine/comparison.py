"""What sets two sets of predictions, or two groups of patients, apart, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import MismatchError
from engine.metrics import Evaluation, evaluate_predictions
from engine.resampling import DRAWS, draw_figures, interval, truth_of

__all__ = ["MIN_SUBGROUP_ROWS", "compare", "subgroup_table"]

#: Of fewer rows no figures are given: they would be of single people, and mean nothing.
MIN_SUBGROUP_ROWS = 10

_COMPARED = ("auroc_macro", "accuracy", "average_precision_macro", "brier")


def compare(
    evaluation_a: Evaluation,
    evaluation_b: Evaluation,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Return by how much the first predictions differ from the second, paired by patient.

    Both are looked at in the same bootstrap draws of patients, so that what makes a draw easy for
    both does not widen the interval. An interval that holds 0 says that the two cannot be told
    apart by these patients.

    Parameters
    ----------
    evaluation_a, evaluation_b : Evaluation
        Of the same rows, in the same order, with the same truth and patients. Classes may be in
        another order.
    draws, seed, threads : int
        As in `engine.metrics.evaluate_predictions`.

    Returns
    -------
    dict of str to dict
        ``auroc_macro``, ``accuracy``, ``average_precision_macro`` and ``brier``, each
        ``{"value": first less second, "ci95": [low, high]}``. Both are None where one of the two
        does not have the figure, the latter also with fewer than two patients.

    Raises
    ------
    MismatchError
        They judge other rows, patients or classes, or know another truth.
    """
    _check_same(evaluation_a, evaluation_b)
    series: list[dict[str, NDArray[np.float64]]] = []
    if evaluation_a.n_groups > 1:
        series = [
            draw_figures(
                each.probabilities,
                each.decisions,
                each.labels,
                each.groups,
                each.classes,
                draws=draws,
                seed=seed,
                parts=frozenset({"rates", "ranks"}),
                threads=threads,
            )
            for each in (evaluation_a, evaluation_b)
        ]
    found: dict[str, dict[str, Any]] = {}
    for key in _COMPARED:
        one, two = getattr(evaluation_a, key), getattr(evaluation_b, key)
        known = one is not None and two is not None
        bounds = interval(series[0][key] - series[1][key]) if known and series else None
        found[key] = {"value": float(one - two) if known else None, "ci95": bounds}
    return found


def _check_same(a: Evaluation, b: Evaluation) -> None:
    """Refuse to compare what is not about the same rows."""
    cure = "compare predictions of the same rows of the same containers"
    multilabel = a.labels.ndim == 2
    if sorted(a.classes) != sorted(b.classes) or multilabel != (b.labels.ndim == 2):
        raise MismatchError(
            f"the predictions to compare are of classes {', '.join(a.classes)} and of "
            f"{', '.join(b.classes)}; expected the same classes and kind of head; {cure}"
        )
    if a.n_rows != b.n_rows:
        raise MismatchError(
            f"the predictions to compare are of {a.n_rows} and of {b.n_rows} rows; expected the "
            f"same rows; {cure}"
        )
    if not np.array_equal(a.rows, b.rows):
        raise MismatchError(
            f"the predictions to compare are of different rows, {a.n_rows} each; expected the same "
            f"rows in the same order; {cure}"
        )
    if not np.array_equal(a.groups, b.groups):
        raise MismatchError(
            "the predictions to compare differ in which rows are of one patient; expected the same "
            f"patients; {cure}"
        )
    order = [b.classes.index(name) for name in a.classes]
    same = truth_of(a.labels, len(a.classes)), truth_of(b.labels, len(b.classes))[:, order]
    differing = int((np.maximum(same[0], -1) != np.maximum(same[1], -1)).any(axis=1).sum())
    if differing:
        raise MismatchError(
            f"the predictions to compare differ in the truth of {differing} of {a.n_rows} rows; "
            f"expected the same labels; {cure}"
        )


def subgroup_table(
    evaluation: Evaluation,
    column: str,
    values: NDArray[Any],
    names: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Judge the rows of each value of a column alone.

    Parameters
    ----------
    evaluation : Evaluation
        The predictions.
    column : str
        Name of the column, kept in the result.
    values : int (n,)
        Index into `names` of each row; below 0 where it is not known: such rows are left out.
    names : sequence of str
        What the values are called.
    draws, seed, threads : int
        As in `engine.metrics.evaluate_predictions`.

    Returns
    -------
    list of dict
        In the order of `names`, those that occur: ``column``, ``value``, ``n_rows``, ``n_groups``,
        ``auroc_macro``, ``accuracy``, ``ci95`` (of these two; without a key where there is no
        interval). Figures are None of fewer than `MIN_SUBGROUP_ROWS` rows, and where no class has
        both a present and an absent row.

    Raises
    ------
    ValueError
        Not one value for each row, or a value without a name.
    """
    if values.shape != (evaluation.n_rows,):
        raise ValueError(
            f"column {column!r} has {values.size} values; expected one for each of the "
            f"{evaluation.n_rows} rows"
        )
    if int(values.max(initial=-1)) >= len(names):
        raise ValueError(
            f"column {column!r} has the value {int(values.max())}; expected below {len(names)}, "
            "the number of names"
        )
    table: list[dict[str, Any]] = []
    for code, name in enumerate(names):
        rows = np.flatnonzero(values == code)
        if len(rows) == 0:
            continue
        entry: dict[str, Any] = {
            "column": column,
            "value": name,
            "n_rows": len(rows),
            "n_groups": len(np.unique(evaluation.groups[rows])),
            "auroc_macro": None,
            "accuracy": None,
            "ci95": {},
        }
        truth = truth_of(evaluation.labels[rows], len(evaluation.classes))
        divided = bool(((truth == 1).any(axis=0) & (truth == 0).any(axis=0)).any())
        if len(rows) >= MIN_SUBGROUP_ROWS and divided:
            found = evaluate_predictions(
                evaluation.probabilities[rows],
                evaluation.labels[rows],
                evaluation.groups[rows],
                evaluation.classes,
                decisions=evaluation.decisions[rows],
                draws=draws,
                seed=seed,
                parts=frozenset({"rates", "ranks"}),
                threads=threads,
            )
            keys = ("auroc_macro", "accuracy")
            entry.update({key: getattr(found, key) for key in keys})
            entry["ci95"] = {key: found.ci95[key] for key in keys if key in found.ci95}
        table.append(entry)
    return table
