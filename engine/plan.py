"""What a user asks of a training, found possible before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from engine.errors import SplitError
from engine.fitting import Settings
from engine.selection import KINDS
from engine.work import Progress

if TYPE_CHECKING:
    from formats import Container

__all__ = ["BY_SOURCE", "CALIBRATIONS", "Options", "Plan", "count_folds", "make_plan"]

#: The value of ``cv`` that makes a fold of every source.
BY_SOURCE = "leave-one-source-out"
#: How probabilities can be calibrated; "auto" is one of the others.
CALIBRATIONS = ("temperature", "isotonic", "auto", "none")


class Options(TypedDict, total=False):
    """What every way to train takes; `fit_head` explains them."""

    kind: str
    l2: float | None
    hidden: int
    dropout: float | None
    class_weights: str | None
    seed: int
    cv: int | str | None
    repeats: int
    calibration: str
    sensitivity: float | None
    specificity: float | None
    sample_weights: npt.ArrayLike | None
    threads: int | None
    progress: Progress | None


@dataclass(frozen=True)
class Plan:
    """What a user chooses."""

    settings: Settings
    class_weights: str | None
    cv: int | str | None
    repeats: int
    calibration: str
    sensitivity: float | None
    specificity: float | None
    sample_weights: npt.ArrayLike | None
    threads: int | None
    progress: Progress | None

    @property
    def prevalence(self) -> str:
        """What class frequencies probabilities mean: ``"equal"``, or those of ``"training"``."""
        return "equal" if self.settings.balanced else "training"


def make_plan(
    *,
    kind: str = "linear",
    l2: float | None = None,
    hidden: int = 64,
    dropout: float | None = None,
    class_weights: str | None = "balanced",
    seed: int = 0,
    cv: int | str | None = None,
    repeats: int = 1,
    calibration: str = "temperature",
    sensitivity: float | None = None,
    specificity: float | None = None,
    sample_weights: npt.ArrayLike | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Check what a user chose, the options of `engine.training.fit_head`.

    Returns
    -------
    Plan
        Found possible, whatever the rows.

    Raises
    ------
    SplitError
        No such folds.
    ValueError
        Another option has a value it cannot have.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if class_weights not in ("balanced", None):
        raise ValueError(f"class_weights is {class_weights!r}; expected 'balanced' or None")
    if l2 is not None and not 0.0 <= l2 < math.inf:
        raise ValueError(f"l2 is {l2}; expected a number of at least 0")
    if hidden < 1:
        raise ValueError(f"hidden is {hidden}; expected at least 1 unit")
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; expected at least 0 and less than 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    if calibration not in CALIBRATIONS:
        raise ValueError(
            f"calibration is {calibration!r}; expected one of {', '.join(CALIBRATIONS)}"
        )
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity)):
        if value is not None and not 0.0 < value < 1.0:
            raise ValueError(f"{name} is {value}; expected a number between 0 and 1")
    if sensitivity is not None and specificity is not None:
        raise ValueError("sensitivity and specificity are both given; expected one of them")
    _check_folds(cv)
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1")
    if repeats > 1 and cv is None:
        raise ValueError(f"repeats is {repeats} without cv; expected folds to repeat, such as 5")
    settings = Settings(
        kind=kind,
        l2=None if l2 is None else float(l2),
        hidden=int(hidden),
        balanced=class_weights == "balanced",
        seed=int(seed),
        dropout=None if dropout is None else float(dropout),
    )
    return Plan(
        settings,
        class_weights,
        cv if cv is None or isinstance(cv, str) else int(cv),
        int(repeats),
        calibration,
        sensitivity,
        specificity,
        sample_weights,
        threads,
        progress,
    )


def _check_folds(cv: int | str | None) -> None:
    if isinstance(cv, str):
        if cv != BY_SOURCE:
            raise SplitError(f"--cv {cv}: expected a number of folds, or {BY_SOURCE}")
    elif cv is not None and not (isinstance(cv, (int, np.integer)) and cv >= 2):
        raise SplitError(f"--cv {cv}: expected at least 2 folds; usual are 5 or 10")


def count_folds(containers: Sequence[Container], plan: Plan) -> int:
    """Return how many folds there will be, at most: progress is told of before rows are read."""
    if plan.cv is None:
        return 0
    if isinstance(plan.cv, int):
        return plan.cv * plan.repeats
    names = {name for container in containers for name in container.sources_names}
    return max(1, len(names)) * plan.repeats
