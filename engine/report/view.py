"""What every section of the page is written from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.metrics import wilson
from engine.report.markup import Keys, table
from engine.report.plots import Scale, interval_axis, interval_row, nice_scale
from engine.report.words import NONE, Glossary, difference, figure, known, pair
from engine.resampling import DRAWS

if TYPE_CHECKING:
    from engine.study import Study

__all__ = ["Page", "heat", "ladder", "plain", "share", "years"]

# The bands of so many classes have 2,000 draws like the figures; of more, a quarter, which is
# enough for an area to look at.
_ALL_DRAWS_UP_TO = 6


class Page:
    """A study with what was already said of it."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.head = study.head
        self.evaluation = study.evaluation
        self.explain = Glossary()
        self.keys = Keys()
        self.multilabel = study.evaluation.labels.ndim == 2
        self.draws = DRAWS if len(study.evaluation.classes) <= _ALL_DRAWS_UP_TO else DRAWS // 4
        # "label" where several may be true of one image.
        self.noun = "label" if self.multilabel else "class"
        self.nouns = "labels" if self.multilabel else "classes"

    def truth(self, c: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return probability, truth and decision of the rows where class c was assessed."""
        e = self.evaluation
        if not self.multilabel:
            return e.probabilities[:, c], e.labels == c, e.decisions == c
        assessed = e.labels[:, c] >= 0
        return e.probabilities[assessed, c], e.labels[assessed, c] == 1, e.decisions[assessed, c]

    def ci(self, key: str) -> tuple[float, float] | None:
        """Return an interval of the headline figures."""
        return pair(self.evaluation.ci95.get(key))


def heat(share: float) -> str:
    """Return the style class of a share: ten steps of shade."""
    return f"h{min(10, max(0, round(10 * share)))}"


def share(n: int, total: int) -> str:
    """Write a share of a count with Wilson's interval."""
    if not total:
        return NONE
    return figure(n / total, wilson(n, total))


def plain(value: Any) -> str:
    """Write a figure for a description that is read aloud."""
    return "not defined" if known(value) is None else f"{float(value):.3f}"


def years(ages: tuple[float, float]) -> str:
    """Write an age range."""
    low, high = ages
    return f"{low:g} years" if low == high else f"{low:g} to {high:g} years"


def ladder(
    page: Page,
    caption: str,
    column: str,
    rows: Sequence[tuple[str, Any, Any, bool]],
    reference: tuple[float, float] | None,
    *,
    scale: Scale | None = None,
    at: float | None = None,
    signed: bool = False,
) -> str:
    """Return a table whose middle column is a dot-and-interval plot.

    Rows are (name in HTML, value, interval, whether it is the head itself).
    """
    values = [known(value) for _, value, _, _ in rows]
    ends = [pair(each) for _, _, each, _ in rows]
    numbers = [v for v in values if v is not None]
    numbers += [end for both in ends if both for end in both]
    numbers += list(reference or ()) + ([] if at is None else [at])
    if scale is None:
        scale = nice_scale(numbers, least=-1.0 if signed else 0.0)
    lines = [
        [
            label,
            interval_row(
                scale,
                value,
                both,
                reference=reference,
                kind="head" if own else "other",
                at=at,
            ),
            (difference if signed else figure)(value, both),
        ]
        for (label, _, _, own), value, both in zip(rows, values, ends, strict=True)
    ]
    return table(
        caption,
        [("", ""), ("", "plot"), (column, "n")],
        lines,
        keys=page.keys,
        style="ladder",
        last=["", interval_axis(scale), ""],
    )
