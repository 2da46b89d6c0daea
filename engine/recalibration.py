"""The logistic line between what was predicted and what came true: calibration slope, intercept.

The slope is b in ``logit P(present) = a + b * logit(predicted)``: below 1, predictions are too
extreme (Cox 1958). The intercept is a with b held at 1, calibration in the large: below 0, they are
too high (Van Calster et al. 2016, "A calibration hierarchy for risk models", weak calibration;
2019, "Calibration: the Achilles heel of predictive analytics"). Perfect are 1 and 0.

In every bootstrap draw both are fitted again, without looking at every row again: around the fit of
all rows, gradient and curvature of a draw's likelihood and their next two derivatives are sums of
fixed numbers of each row, weighted by how often it was drawn. What that series leaves out moves
logits by about d^4 / 24 at most where the draw's fit moves them by d, because no derivative of the
logistic curve is larger than its first at the same place. Draws that move a row by more than
`_NEAR` (few rows) are fitted by Newton's method on all of theirs. Of 100 to 10,000 rows, slopes and
intercepts were within 0.0002 of their interval's width of those fitted draw by draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLIP", "Line", "RecalibrationDraws", "fit_intercept", "fit_line", "logits_of"]

#: Probabilities nearer to 0 or 1 are taken for this near: their logits would be infinite.
CLIP = 1e-6

_STEPS = 50
_PRECISE = 1e-10
# How far a draw's fit may move a row's logit for the series to be taken: see the module.
_NEAR = 0.4
# Newton's method in the other draws: the largest change of a logit that ends it, which leaves half
# its square; rounds for all draws together, after which the rest are fitted one by one; and what
# the kernel's polynomial is good for.
_ENOUGH, _ROUNDS, _FARTHEST = 1e-2, 8, 16.0
# Logits beyond are probabilities of 0 or 1; the exponential of a thousand has no number.
_STEEPEST = 600.0


def logits_of(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) of probabilities, which are kept `CLIP` away from 0 and 1."""
    p = np.clip(probabilities, CLIP, 1.0 - CLIP)
    logits: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return logits


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    p: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -z))
    return p


def _fall(
    z: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> float:
    """Return the weighted cross entropy."""
    return float((weights * np.logaddexp(0.0, np.where(positive, -z, z))).sum())


@dataclass(frozen=True)
class Line:
    """``logit P = height + slope * (x - centre)``."""

    centre: float
    height: float
    slope: float


def fit_line(
    x: NDArray[np.float64],
    positive: NDArray[np.bool_],
    weights: NDArray[np.float64] | None = None,
) -> Line | None:
    """Fit a logistic regression on one variable by Newton's method.

    Parameters
    ----------
    x : float64 (n,)
        The variable.
    positive : bool (n,)
        What came true.
    weights : float64 (n,), optional
        How much each row counts, above 0; 1 if None.

    Returns
    -------
    Line or None
        None where no best line exists: one outcome only, or a value of x that divides the outcomes
        (with one variable that is all there is to separation; Albert and Anderson 1984).
    """
    high, low = x[positive], x[~positive]
    if len(high) == 0 or len(low) == 0:
        return None
    if low.max() <= high.min() or high.max() <= low.min():
        return None
    w = np.ones(len(x)) if weights is None else weights
    centre = float((w * x).sum() / w.sum())
    at = x - centre
    rate = float(w[positive].sum() / w.sum())
    point = np.array([np.log(rate / (1.0 - rate)), 0.0])
    value = _fall(point[0] + point[1] * at, positive, w)
    for _ in range(_STEPS):
        p = _sigmoid(point[0] + point[1] * at)
        residual, curve = w * (positive - p), w * p * (1.0 - p)
        gradient = np.array([residual.sum(), (residual * at).sum()])
        a, b, c = curve.sum(), (curve * at).sum(), (curve * at * at).sum()
        determinant = a * c - b * b
        if determinant <= 0.0:
            return None
        step = np.array([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]])
        step /= determinant
        for _ in range(30):
            ahead = point + step
            reached = _fall(ahead[0] + ahead[1] * at, positive, w)
            if reached <= value:
                point, value = ahead, reached
                break
            step /= 2.0
        else:
            break  # no step lowers it: rounding is all that is left
        if np.abs(step).max() <= _PRECISE * (1.0 + np.abs(point).max()):
            break
    return Line(centre, float(point[0]), float(point[1]))


def fit_intercept(
    x: NDArray[np.float64],
    positive: NDArray[np.bool_],
    weights: NDArray[np.float64] | None = None,
) -> float | None:
    """Fit a of ``logit P = a + x``.

    Parameters
    ----------
    x, positive, weights
        As in `fit_line`.

    Returns
    -------
    float or None
        None with one outcome only.
    """
    w = np.ones(len(x)) if weights is None else weights
    wanted, total = float(w[positive].sum()), float(w.sum())
    if not 0.0 < wanted < total:
        return None
    # The expected number rises with a, and a lies where even the most extreme row's odds would be
    # right: halve that range, then let Newton finish.
    odds = float(np.log(wanted / (total - wanted)))
    low, high = odds - float(x.max()), odds - float(x.min())
    a = 0.5 * (low + high)
    for _ in range(_STEPS):
        p = _sigmoid(a + x)
        gap = wanted - float((w * p).sum())
        low, high = (a, high) if gap > 0.0 else (low, a)
        ahead = a + gap / max(float((w * p * (1.0 - p)).sum()), 1e-300)
        ahead = ahead if low <= ahead <= high else 0.5 * (low + high)
        if abs(ahead - a) <= _PRECISE:
            return ahead
        a = ahead
    return a


class RecalibrationDraws:
    """Slope and intercept of one class, fitted again in bootstrap draws.

    Parameters
    ----------
    probabilities : float64 (n,)
        Predicted.
    positive : bool (n,)
        What came true.
    group : int32 (n,)
        Patient of each row, from 0.
    n_groups : int
        Number of patients g.

    Attributes
    ----------
    line, intercept : Line or None, float or None
        Of all rows.
    columns : float64 (g, 18)
        Derivatives of the likelihood summed over each patient's rows: what `slopes` and
        `intercepts` want summed over the patients of a draw.
    """

    def __init__(
        self,
        probabilities: NDArray[np.float64],
        positive: NDArray[np.bool_],
        group: NDArray[np.int32],
        n_groups: int,
    ) -> None:
        self._x, self._positive, self._group = logits_of(probabilities), positive, group
        self._truth = positive.astype(np.float64)
        self.line = fit_line(self._x, positive)
        self.intercept = fit_intercept(self._x, positive)
        self.columns = np.zeros((n_groups, 18))
        columns: list[NDArray[np.float64]] = []
        if self.line is not None:
            self._at = self._x - self.line.centre
            self._ends = np.array([self._at.min(), self._at.max()])
            z = self.line.height + self.line.slope * self._at
            # Where two neighbours nearly divide the outcomes, the line is so steep that the odds
            # have no number; p is 0 or 1 there to the last bit, also `_FARTHEST` away.
            self._odds = np.exp(-np.clip(z, -_STEEPEST, _STEEPEST))
            for order, values in enumerate(_derivatives(z, self._truth)):
                columns += [values * self._at**power for power in range(order + 2)]
        else:
            columns += [np.zeros(len(group))] * 14
        if self.intercept is not None:
            columns += _derivatives(self._x + self.intercept, self._truth)
        for i, values in enumerate(columns):
            self.columns[:, i] = np.bincount(group, values, n_groups)

    def slopes(self, times: NDArray[np.uint8], sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the slope in each draw (m,) from the sums of `columns` (18, m).

        NaN where there is none.
        """
        m = times.shape[1]
        if self.line is None:
            return np.full(m, np.nan)
        away, moved = np.zeros((2, m)), np.full(m, np.inf)
        for _ in range(_ROUNDS):
            gradient, curve = _series(sums, away)
            step, usable = _newton(gradient, curve)
            # A draw that is done moves no more: its result must not depend on its neighbours.
            going = usable & (moved > 1e-6)
            away = np.where(going, away + step, away)
            moved = np.where(going, self._farthest(step), moved)
            if not (moved > 1e-6).any():
                break
        found: NDArray[np.float64] = self.line.slope + away[1]
        rest = np.flatnonzero((moved > 1e-6) | (self._farthest(away) > _NEAR))
        if len(rest):
            found[rest] = self._far_slopes(np.ascontiguousarray(times[:, rest]), sums[:5, rest])
        return found

    def _farthest(self, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far a change of height and slope (2, m) moves the logit of any row."""
        low, high = change[0] + change[1] * self._ends[:, None]
        farthest: NDArray[np.float64] = np.maximum(np.abs(low), np.abs(high))
        return farthest

    def _far_slopes(
        self, times: NDArray[np.uint8], sums: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return slopes by Newton's method on the rows; sums are those at the fit of all rows."""
        from engine.kernels.bootstrap import recalibration_sums

        assert self.line is not None
        m = times.shape[1]
        away, moved, alive = np.zeros((2, m)), np.full(m, np.inf), np.ones(m, np.bool_)
        sums = np.ascontiguousarray(sums)
        for _ in range(_ROUNDS):
            step, usable = _newton(sums[:2], sums[2:5])
            ahead = away + step
            alive &= usable & (self._farthest(ahead) <= _FARTHEST)
            going = alive & (moved > _ENOUGH)
            away = np.where(going, ahead, away)
            moved = np.where(going, self._farthest(step), moved)
            if not (going & (moved > _ENOUGH)).any():
                break
            recalibration_sums(times, self._group, self._at, self._truth, self._odds, away, sums)
        found: NDArray[np.float64] = self.line.slope + away[1]
        for j in np.flatnonzero(moved > _ENOUGH):
            line = fit_line(*self._drawn(times[:, j]))
            found[j] = np.nan if line is None else line.slope
        return found

    def intercepts(
        self, times: NDArray[np.uint8], sums: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the intercept in each draw (m,) from the sums of `columns` (18, m).

        NaN where there is none.
        """
        m = times.shape[1]
        if self.intercept is None:
            return np.full(m, np.nan)
        away, moved = np.zeros(m), np.full(m, np.inf)
        residual, curve, third, fourth = sums[14:]
        for _ in range(_ROUNDS):
            left = residual - away * (curve + away * (third / 2.0 + away * fourth / 6.0))
            slope = curve + away * (third + away * fourth / 2.0)
            usable = slope > 0.0
            step = left / np.where(usable, slope, np.inf)
            going = usable & (moved > 1e-6)
            away, moved = np.where(going, away + step, away), np.where(going, np.abs(step), moved)
        found: NDArray[np.float64] = self.intercept + away
        for j in np.flatnonzero((moved > 1e-6) | (np.abs(away) > _NEAR)):
            one = fit_intercept(*self._drawn(times[:, j]))
            found[j] = np.nan if one is None else one
        return found

    def _drawn(
        self, times: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        weights = times[self._group].astype(np.float64)
        rows = weights > 0
        return self._x[rows], self._positive[rows], weights[rows]


def _derivatives(z: NDArray[np.float64], truth: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return truth - p and the first three derivatives of p = sigmoid(z), for each row."""
    p = _sigmoid(z)
    curve = p * (1.0 - p)
    return [truth - p, curve, curve * (1.0 - 2.0 * p), curve * (1.0 - 6.0 * curve)]


def _series(
    sums: NDArray[np.float64], away: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return gradient (2, m) and curvature (3, m) of draws at some distance from the expansion.

    `sums` (14, m) are those of the derivatives of order 0 to 3 times x to the powers of 0 to the
    order + 1.
    """
    a, b = away
    second, third, fourth = sums[2:5], sums[5:9], sums[9:14]
    gradient, curve = sums[:2].copy(), second.copy()
    for i in range(2):
        one = a * second[i] + b * second[i + 1]
        two = a * a * third[i] + 2.0 * a * b * third[i + 1] + b * b * third[i + 2]
        three = (
            a**3 * fourth[i]
            + 3.0 * a * a * b * fourth[i + 1]
            + 3.0 * a * b * b * fourth[i + 2]
            + b**3 * fourth[i + 3]
        )
        gradient[i] -= one + two / 2.0 + three / 6.0
    for i in range(3):
        one = a * third[i] + b * third[i + 1]
        two = a * a * fourth[i] + 2.0 * a * b * fourth[i + 1] + b * b * fourth[i + 2]
        curve[i] += one + two / 2.0
    return gradient, curve


def _newton(
    gradient: NDArray[np.float64], curve: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return Newton's step (2, m), and in which draws there is one."""
    determinant = curve[0] * curve[2] - curve[1] ** 2
    usable = (determinant > 1e-12 * curve[0] * curve[2]) & (curve[0] > 0.0)
    step = np.stack(
        [
            curve[2] * gradient[0] - curve[1] * gradient[1],
            curve[0] * gradient[1] - curve[1] * gradient[0],
        ]
    )
    return step / np.where(usable, determinant, np.inf), usable
