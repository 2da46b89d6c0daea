"""A fit that was chosen, calibrated and judged by rows its weights have not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.calibration import choose_thresholds, decide, fit_calibration
from engine.dataset import Dataset, originals_of
from engine.fitting import Fitted
from engine.metrics import Evaluation, evaluate_predictions
from engine.plan import Plan
from engine.rows import Crew
from engine.selection import Selection, fit_selected, select_settings
from engine.splits import check_classes
from engine.work import Work

__all__ = ["Fit", "Outcome", "check_learned", "fit_calibrated", "judge_fit"]


@dataclass(frozen=True)
class Fit:
    """A calibrated fit, and what chose and calibrated it."""

    fitted: Fitted
    selection: Selection


@dataclass(frozen=True)
class Outcome:
    """Figures, and the rows of the data set they are of."""

    evaluation: Evaluation
    rows: NDArray[np.int64]
    protocol: str


def check_learned(data: Dataset, learned: NDArray[np.int64]) -> None:
    """Refuse classes without patients to learn from; rows without weight teach nothing.

    Parameters
    ----------
    data : Dataset
        All rows.
    learned : int64 (n,)
        Rows to learn from.

    Raises
    ------
    SplitError
        One class only, or a class with fewer than two patients.
    """
    originals = originals_of(data, learned)
    counted = originals[data.weights[originals] > 0.0]
    check_classes(
        data.labels[counted],
        data.groups[counted],
        data.classes,
        needed=2,
        purpose="training",
        where=data.where,
    )


def calibrate(fitted: Fitted, selection: Selection, data: Dataset, plan: Plan) -> None:
    """Set calibration and thresholds from predictions the weights have not learned from."""
    # What a row without weight says is not to be believed, here as in the fit.
    counted = data.weights[selection.rows] > 0.0
    rows, logits = selection.rows[counted], selection.logits[counted]
    labels = data.labels[rows]
    fitted.calibration = fit_calibration(
        logits,
        labels,
        plan.calibration,
        balanced=plan.settings.balanced,
        groups=data.groups[rows],
        seed=plan.settings.seed,
    )
    fitted.thresholds = choose_thresholds(
        fitted.calibration.apply(logits, multilabel=data.multilabel),
        labels,
        sensitivity=plan.sensitivity,
        specificity=plan.specificity,
    )


def fit_calibrated(
    data: Dataset,
    train: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    plan: Plan,
    work: Work,
) -> Fit:
    """Choose, fit on all train rows, and calibrate by what chose.

    Parameters
    ----------
    data : Dataset
        All rows.
    train : int64 (n,)
        Rows to learn from, with their augmented views.
    valid : int64 (m,) or None
        Rows marked valid.
    plan : Plan
        What a user chose.
    work : Work
        Who works, and who hears of it.

    Returns
    -------
    Fit
        Not calibrated where `Selection.enough` is False.
    """
    selection = select_settings(data, train, plan.settings, work.part(0.0, 0.85, ""), valid=valid)
    fitted = fit_selected(data, train, selection, work.part(0.85, 1.0, "fit"))
    if selection.enough:
        calibrate(fitted, selection, data, plan)
    return Fit(fitted, selection)


def judge_fit(
    data: Dataset,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    fit: Fit,
    plan: Plan,
    crew: Crew,
) -> Outcome:
    """Judge a fit by the rows that chose and calibrated it, or by its own if there are none.

    Parameters
    ----------
    data, valid, plan
        As in `fit_calibrated`, which gave `fit`.
    learned : int64 (n,)
        The rows it has learned from.
    fit : Fit
        Calibrated or not.
    crew : Crew
        Who predicts.

    Returns
    -------
    Outcome
        Its protocol says which rows these are and what they were used for.
    """
    fitted, selection = fit.fitted, fit.selection
    if len(selection.rows) == 0:
        split = "train"
        protocol = "the training rows themselves: says nothing about other patients; use --cv"
        rows = originals_of(data, learned)
        logits = fitted.logits(data.features, rows, crew)
    else:
        split = "held out" if valid is None else "valid"
        order = np.argsort(selection.rows, kind="stable")
        rows, logits = selection.rows[order], selection.logits[order]
        protocol = selection.protocol
        if selection.enough:
            ended = (
                "they also ended the fit, chose the penalty and"
                if valid is not None
                else ("they also chose the penalty and")
            )
            protocol += f"; {ended} set the calibration, so slightly too good"
        elif valid is None:
            protocol += "; probabilities are not calibrated"
    probabilities = fitted.calibration.apply(logits, multilabel=data.multilabel)
    evaluation = evaluate_predictions(
        probabilities,
        data.labels[rows],
        data.groups[rows],
        data.classes,
        decisions=decide(probabilities, fitted.thresholds, multilabel=data.multilabel),
        rows=data.rows[rows],
        split=split,
        notes=list(dict.fromkeys([*data.notes, *fitted.notes])),
        seed=plan.settings.seed,
        prevalence=plan.prevalence,
    )
    return Outcome(evaluation, rows, protocol)
