"""How a smooth function of many parameters is minimised: L-BFGS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["minimise"]

_MEMORY = 10
# Of the largest component of the gradient, and of the value gained by one iteration.
# Tolerances a hundred times tighter moved no accuracy by more than one row in 720.
_GRADIENT_TOLERANCE = 1e-4
_PROGRESS_TOLERANCE = 1e-7


def minimise(
    evaluate: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    theta: NDArray[np.float64],
    max_iterations: int,
    slack: float = 1.0,
    gives_up: Callable[[NDArray[np.float64], int], bool] | None = None,
    report: Callable[[int, float, float, float], None] | None = None,
    first_step: float | None = None,
    size: float = 1.0,
) -> tuple[NDArray[np.float64], int]:
    """Minimise a smooth function by L-BFGS with strong Wolfe line searches.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(theta, gradient)`` fills the gradient, float64 (p,), and returns the value.
    theta : float64 (p,)
        Where to start.
    max_iterations : int
        Most iterations made.
    slack : float
        Factor of the tolerances.
    gives_up : callable, optional
        ``gives_up(theta, iteration)`` after each iteration, counted from 1; true ends the search.
    report : callable, optional
        ``report(iteration, value, slope, gain)`` after each iteration: the largest component of
        the gradient and the value gained, both over the tolerance that ends the search.
    first_step : float, optional
        What to try first along the gradient: 1 where the function was made nearly round; a step
        of about unit length if None.
    size : float
        Of what theta moves: the share of a sum that each of its terms has. Factor of the
        tolerance of the gradient.

    Returns
    -------
    theta : float64 (p,)
        Parameters of the last iteration.
    iterations : int
        Number of iterations made.

    References
    ----------
    Nocedal and Wright, Numerical Optimization, 2nd edition 2006, algorithm 7.5.
    """
    from engine.kernels import heads as kernels

    p = len(theta)
    lanes, scalar = np.empty(kernels.LANES), np.empty(1)

    def dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        kernels.dot(a, b, lanes, scalar)
        return float(scalar[0])

    steps, changes = np.zeros((_MEMORY, p)), np.zeros((_MEMORY, p))
    curvatures, alphas = np.ones(_MEMORY), np.empty(_MEMORY)
    direction, gradient = np.empty(p), np.empty(p)
    value = evaluate(theta, gradient)
    count, newest = 0, -1
    flat = slack * size * _GRADIENT_TOLERANCE
    for iteration in range(1, max_iterations + 1):
        if np.abs(gradient).max() <= flat:
            return theta, iteration - 1
        kernels.lbfgs_direction(
            steps, changes, curvatures, count, max(newest, 0), gradient, alphas, lanes, direction
        )
        slope = dot(direction, gradient)
        if slope >= 0.0:
            # Rounding has spoilt the memory: begin again with steepest descent.
            count, newest = 0, -1
            np.negative(gradient, out=direction)
            slope = -dot(gradient, gradient)
        first = 1.0
        if not count:
            first = first_step or min(1.0, 1.0 / float(np.abs(gradient).sum()))
        found = _line_search(evaluate, dot, theta, value, slope, direction, first)
        if found is None:
            return theta, iteration - 1
        new_theta, new_value, new_gradient = found
        newest = (newest + 1) % _MEMORY
        np.subtract(new_theta, theta, out=steps[newest])
        np.subtract(new_gradient, gradient, out=changes[newest])
        curvatures[newest] = dot(steps[newest], changes[newest])
        if curvatures[newest] > 1e-300:
            count = min(count + 1, _MEMORY)
        else:
            count, newest = 0, -1
        progress = value - new_value
        theta, value, gradient = new_theta, new_value, new_gradient
        tolerance = slack * _PROGRESS_TOLERANCE * max(abs(value), 1.0)
        if report is not None:
            largest = float(np.abs(gradient).max()) / flat
            # A test may set a tolerance to zero.
            report(iteration, value, largest, progress / tolerance if tolerance else np.inf)
        if gives_up is not None and gives_up(theta, iteration):
            return theta, iteration
        if progress <= tolerance:
            return theta, iteration
    return theta, max_iterations


def _line_search(
    evaluate: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    dot: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    theta: NDArray[np.float64],
    value: float,
    slope: float,
    direction: NDArray[np.float64],
    first: float,
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]] | None:
    """Find a step with the strong Wolfe conditions: Nocedal and Wright, algorithms 3.5 and 3.6.

    Constants 1e-4 and 0.9 are theirs for quasi-Newton methods. Returns None where no step
    lowers the value, which at the end of a search only rounding can cause.
    """
    # `low` holds the best step so far; `high` the other end once a minimum is bracketed.
    low, low_value, low_slope = 0.0, value, slope
    high, high_value, high_slope = np.inf, np.inf, np.inf
    step = first
    for _ in range(25):
        point = theta + step * direction
        gradient = np.empty_like(theta)
        at = evaluate(point, gradient)
        at_slope = dot(gradient, direction)
        if not np.isfinite(at) or at > value + 1e-4 * step * slope or at >= low_value:
            high, high_value, high_slope = step, at, at_slope
        else:
            if abs(at_slope) <= -0.9 * slope:
                return point, at, gradient
            if at_slope * (high - low) >= 0.0:
                high, high_value, high_slope = low, low_value, low_slope
            low, low_value, low_slope = step, at, at_slope
        if np.isinf(high):
            step *= 2.0
            continue
        if abs(high - low) * float(np.abs(direction).max()) <= 1e-14:
            break
        step = _cubic(low, low_value, low_slope, high, high_value, high_slope)
    if low > 0.0:
        point = theta + low * direction
        gradient = np.empty_like(theta)
        return point, evaluate(point, gradient), gradient
    return None


def _cubic(a: float, at_a: float, slope_a: float, b: float, at_b: float, slope_b: float) -> float:
    """Return the minimum of the cubic through two points, kept inside the interval (eq. 3.59)."""
    middle = 0.5 * (a + b)
    if not np.isfinite(at_b) or not np.isfinite(slope_b):
        return middle
    first = slope_a + slope_b - 3.0 * (at_a - at_b) / (a - b)
    square = first * first - slope_a * slope_b
    if square < 0.0:
        return middle
    second = float(np.copysign(np.sqrt(square), b - a))
    divisor = slope_b - slope_a + 2.0 * second
    if divisor == 0.0:
        return middle
    step = b - (b - a) * (slope_b + second - first) / divisor
    # A point at the very edge would not narrow the interval.
    margin = 0.1 * abs(b - a)
    return float(min(max(step, min(a, b) + margin), max(a, b) - margin))
