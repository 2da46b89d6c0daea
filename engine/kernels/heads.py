"""Loops of heads: standardisation, logits, probabilities, losses with their gradients.

Arrays of features are float32 and row-major; everything summed is float64. No sum depends on the
number of threads or on the processor: the lanes below fix the order of every addition.
"""

# ruff: noqa: PLR1730 - max() and a comparison differ in what they make of NaN.

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engine.kernels import kernel
from engine.kernels.scalars import wide

__all__ = [
    "BATCH",
    "GRAM_ROWS",
    "GRAM_TALL",
    "GRAM_WIDE",
    "LANES",
    "PANEL",
    "ROWS",
    "WIDE",
    "adam_step",
    "add_gram",
    "add_moments",
    "cholesky",
    "dot",
    "lbfgs_direction",
    "linear_multilabel",
    "linear_softmax",
    "logits",
    "mlp_logits",
    "mlp_multilabel",
    "mlp_softmax",
    "moments",
    "penalise",
    "sigmoid",
    "softmax",
    "solve_lower",
    "solve_upper",
    "standardise",
]

# Rows handled together, so that weights and gradients pass through the cache once per block.
ROWS = 4
# A dot product is kept in this many partial sums: without fastmath the compiler may not reorder
# one sum, but it may do several side by side in a vector register.
LANES = 64
# Rows of a head with a hidden layer handled together, and columns of the gradient of its first
# layer: a tile of the rows stays in the first cache.
BATCH, WIDE = 32, 128
# Sums of products of columns are made in tiles so tall and wide that a tile stays in the first
# cache, of so many rows at a time; factors are made in panels of so many columns.
GRAM_TALL, GRAM_WIDE, GRAM_ROWS = 32, 128, 8
PANEL = 64

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@kernel
def _dot(a: F32 | F64, b: F64, lanes: F64) -> float:
    """Return the dot product of two vectors; lanes is work space (LANES,)."""
    n = a.shape[0]
    whole = n - n % LANES
    for lane in range(LANES):
        lanes[lane] = 0.0
    for j in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += a[j + lane] * b[j + lane]
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    for j in range(whole, n):
        total += a[j] * b[j]
    return total


@kernel
def dot(a: F64, b: F64, lanes: F64, out: F64) -> None:
    """Write the dot product of two vectors of equal length to ``out[0]``.

    NumPy's would go through BLAS, whose bits change with its number of threads.
    """
    out[0] = _dot(a, b, lanes)


@kernel
def add_moments(X: F32, origin: F32, sums: F64, squares: F64) -> None:
    """Add the rows of X (n, d), less the row origin (d,), to sums and to sums of squares (d,)."""
    n, d = X.shape
    for i in range(n):
        for j in range(d):
            difference = wide(X[i, j]) - wide(origin[j])
            sums[j] += difference
            squares[j] += difference * difference


@kernel
def moments(origin: F32, n: int, mean: F64, deviation: F64) -> None:
    """Turn what `add_moments` summed over n rows into mean and population standard deviation.

    In place, (d,) each. Sums are of differences to one of the rows: a constant column has exactly
    no deviation.
    """
    for j in range(mean.shape[0]):
        average = mean[j] / n
        variance = deviation[j] / n - average * average
        if variance < 0.0:
            variance = 0.0
        mean[j] = wide(origin[j]) + average
        deviation[j] = np.sqrt(variance)


@kernel
def standardise(X: F32, mean: F32, scale: F32, out: F32) -> None:
    """Write (X - mean) / scale, computed in float64, to out (n, d); out may be X."""
    n, d = X.shape
    for i in range(n):
        for j in range(d):
            # Python's division raises where the divisor is zero; looking for that at every element
            # took seven times as long.
            out[i, j] = np.divide(wide(X[i, j]) - wide(mean[j]), wide(scale[j]))


@kernel
def _block_logits(
    X: F32 | F64, start: int, rows: int, weight: F64, bias: F64, lanes: F64, out: F64
) -> None:
    """Write logits of `rows` rows from `start` to ``out[:rows]``."""
    d = X.shape[1]
    k = weight.shape[0]
    whole = d - d % LANES
    for c in range(k):
        for r in range(rows):
            i = start + r
            for lane in range(LANES):
                lanes[lane] = 0.0
            for j in range(0, whole, LANES):
                for lane in range(LANES):
                    lanes[lane] += X[i, j + lane] * weight[c, j + lane]
            total = 0.0
            for lane in range(LANES):
                total += lanes[lane]
            for j in range(whole, d):
                total += X[i, j] * weight[c, j]
            out[r, c] = total + bias[c]


@kernel
def _add_gradient(
    X: F32 | F64, start: int, rows: int, residual: F64, weight_gradient: F64, bias_gradient: F64
) -> None:
    """Add residual' X of `rows` rows from `start` to the gradients."""
    d = X.shape[1]
    k = weight_gradient.shape[0]
    if rows == ROWS:
        # The four rows written out: one load and one store of the gradient for four products.
        for c in range(k):
            r0, r1, r2, r3 = residual[0, c], residual[1, c], residual[2, c], residual[3, c]
            bias_gradient[c] += ((r0 + r1) + r2) + r3
            for j in range(d):
                weight_gradient[c, j] += (X[start, j] * r0 + X[start + 1, j] * r1) + (
                    X[start + 2, j] * r2 + X[start + 3, j] * r3
                )
    else:
        for r in range(rows):
            for c in range(k):
                value = residual[r, c]
                bias_gradient[c] += value
                for j in range(d):
                    weight_gradient[c, j] += X[start + r, j] * value


@kernel
def logits(X: F32, weight: F64, bias: F64, lanes: F64, out: F64) -> None:
    """Write X weight' + bias to out (n, k); lanes is work space (LANES,)."""
    n = X.shape[0]
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        _block_logits(X, start, rows, weight, bias, lanes, out[start : start + rows])


@kernel
def _softmax_row(z: F64) -> None:
    """Turn one row of logits into probabilities, in place and without overflow."""
    k = z.shape[0]
    high = z[0]
    for c in range(1, k):
        if z[c] > high or np.isnan(z[c]):
            high = z[c]
    total = 0.0
    for c in range(k):
        z[c] = math.exp(z[c] - high)
        total += z[c]
    for c in range(k):
        z[c] /= total


@kernel
def _sigmoid(z: float) -> float:
    """Return 1 / (1 + exp(-z)) without overflow."""
    if z >= 0.0:
        return 1.0 / (1.0 + math.exp(-z))
    growth = math.exp(z)
    return growth / (1.0 + growth)


@kernel
def softmax(z: F64) -> None:
    """Turn logits (n, k) into probabilities, in place, row by row."""
    for i in range(z.shape[0]):
        _softmax_row(z[i])


@kernel
def sigmoid(z: F64) -> None:
    """Turn logits (n, k) into probabilities, in place, each on its own."""
    for i in range(z.shape[0]):
        for c in range(z.shape[1]):
            z[i, c] = _sigmoid(z[i, c])


@kernel
def _softmax_residual(z: F64, label: int, row_weight: float) -> float:
    """Turn one row of logits into its loss (returned) and the loss's gradient (in place)."""
    k = z.shape[0]
    high = z[0]
    for c in range(1, k):
        if z[c] > high:
            high = z[c]
    own = float(z[label] - high)
    total = 0.0
    for c in range(k):
        z[c] = math.exp(z[c] - high)
        total += z[c]
    for c in range(k):
        z[c] *= row_weight / total
    z[label] -= row_weight
    return row_weight * (math.log(total) - own)


@kernel
def _multilabel_residual(
    z: F64, labels: NDArray[np.int8], row_weight: float, positive: F64, negative: F64
) -> float:
    """Turn one row of logits into its loss (returned) and the loss's gradient (in place).

    Labels below 0 (uncertain, not assessed) have neither loss nor gradient.
    """
    loss = 0.0
    for c in range(z.shape[0]):
        value = z[c]
        if labels[c] == 1:
            weight = row_weight * positive[c]
            loss += weight * (max(-value, 0.0) + math.log1p(math.exp(-abs(value))))
            z[c] = weight * (_sigmoid(value) - 1.0)
        elif labels[c] == 0:
            weight = row_weight * negative[c]
            loss += weight * (max(value, 0.0) + math.log1p(math.exp(-abs(value))))
            z[c] = weight * _sigmoid(value)
        else:
            z[c] = 0.0
    return loss


@kernel
def penalise(weight: F64, l2: float, gradient: F64, loss: F64) -> None:
    """Add 0.5 * l2 * |weight|^2 to ``loss[0]`` and its gradient, l2 * weight, to the gradient."""
    squares = 0.0
    for c in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            squares += weight[c, j] * weight[c, j]
            gradient[c, j] += l2 * weight[c, j]
    loss[0] += 0.5 * l2 * squares


@kernel
def linear_softmax(
    X: F32,
    labels: I64,
    row_weights: F64,
    weight: F64,
    bias: F64,
    lanes: F64,
    block: F64,
    weight_gradient: F64,
    bias_gradient: F64,
    loss: F64,
) -> None:
    """Add loss and gradient of rows of a linear softmax head; X is read once.

    The loss is sum_i row_weights[i] * cross entropy_i. Rows that come in several calls give the
    bits of one call with all of them, if every call but the last has a multiple of `ROWS`.

    Parameters
    ----------
    X : float32 (n, d)
        Standardised features.
    labels : int64 (n,)
        Class indices below k.
    row_weights : float64 (n,)
        Usually summing to 1.
    weight, bias : float64 (k, d), (k,)
        Parameters.
    lanes, block : float64 (LANES,), (ROWS, k)
        Work space.
    weight_gradient, bias_gradient, loss : float64 (k, d), (k,), (1,)
        Added to.
    """
    n = X.shape[0]
    total = loss[0]
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        _block_logits(X, start, rows, weight, bias, lanes, block)
        for r in range(rows):
            total += _softmax_residual(block[r], labels[start + r], row_weights[start + r])
        _add_gradient(X, start, rows, block, weight_gradient, bias_gradient)
    loss[0] = total


@kernel
def linear_multilabel(
    X: F32,
    labels: NDArray[np.int8],
    row_weights: F64,
    positive: F64,
    negative: F64,
    weight: F64,
    bias: F64,
    lanes: F64,
    block: F64,
    weight_gradient: F64,
    bias_gradient: F64,
    loss: F64,
) -> None:
    """Add loss and gradient of rows of a linear multi-label head; X is read once.

    As `linear_softmax`, but labels are int8 (n, k) of 1, 0 or below 0 (masked), and the binary
    cross entropy of label c weighs positive[c] where it is 1 and negative[c] where it is 0.
    """
    n = X.shape[0]
    total = loss[0]
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        _block_logits(X, start, rows, weight, bias, lanes, block)
        for r in range(rows):
            total += _multilabel_residual(
                block[r], labels[start + r], row_weights[start + r], positive, negative
            )
        _add_gradient(X, start, rows, block, weight_gradient, bias_gradient)
    loss[0] = total


@kernel
def _relu(hidden: F64, rows: int) -> None:
    """Clamp the first rows at zero, in place; NaN stays."""
    for r in range(rows):
        for j in range(hidden.shape[1]):
            if hidden[r, j] < 0.0:
                hidden[r, j] = 0.0


@kernel
def _hidden(
    X: F32, start: int, rows: int, weight: F64, bias: F64, kept: F64, lanes: F64, hidden: F64
) -> None:
    """Write the hidden units of rows from `start` to hidden, multiplied by their rows of kept.

    No rows of kept drop nothing; what is dropped is not computed.
    """
    for first in range(0, rows, ROWS):
        for c in range(weight.shape[0]):
            for r in range(first, min(first + ROWS, rows)):
                factor = kept[start + r, c] if kept.shape[0] > 0 else 1.0
                hidden[r, c] = 0.0
                if factor != 0.0:
                    unit = _dot(X[start + r], weight[c], lanes) + bias[c]
                    hidden[r, c] = 0.0 if unit < 0.0 else unit * factor


@kernel
def _add_hidden_gradient(
    X: F32,
    start: int,
    rows: int,
    back: F64,
    kept: F64,
    tile: F64,
    weight_gradient: F64,
    bias_gradient: F64,
) -> None:
    """Add back' X of `rows` rows from `start` to the gradients, without the units that are off.

    Of a unit that is off, or dropped, nothing is learned from the row: about three of four are.
    """
    h, d = weight_gradient.shape
    for r in range(rows):
        for c in range(h):
            if kept.shape[0] > 0:
                back[r, c] *= kept[start + r, c]
            bias_gradient[c] += back[r, c]
    for left in range(0, d, WIDE):
        right = min(left + WIDE, d)
        width = right - left
        for r in range(rows):
            x = X[start + r, left:right]
            for j in range(width):
                tile[r, j] = x[j]
        for c in range(h):
            sums = weight_gradient[c, left:right]
            r = 0
            while r < rows:
                # Four rows in which the unit is on; the last ones stand in with nothing.
                while r < rows and back[r, c] == 0.0:
                    r += 1
                if r == rows:
                    break
                r0, a0 = r, back[r, c]
                r1, r2, r3 = r, r, r
                a1, a2, a3 = 0.0, 0.0, 0.0
                r += 1
                while r < rows and back[r, c] == 0.0:
                    r += 1
                if r < rows:
                    r1, a1 = r, back[r, c]
                    r += 1
                while r < rows and back[r, c] == 0.0:
                    r += 1
                if r < rows:
                    r2, a2 = r, back[r, c]
                    r += 1
                while r < rows and back[r, c] == 0.0:
                    r += 1
                if r < rows:
                    r3, a3 = r, back[r, c]
                    r += 1
                t0, t1, t2, t3 = tile[r0], tile[r1], tile[r2], tile[r3]
                for j in range(width):
                    sums[j] += (a0 * t0[j] + a1 * t1[j]) + (a2 * t2[j] + a3 * t3[j])


@kernel
def _back(block: F64, rows: int, weight: F64, hidden: F64, out: F64) -> None:
    """Carry residuals through the output layer and the ReLU, to out (rows, h)."""
    for r in range(rows):
        for j in range(hidden.shape[1]):
            total = 0.0
            if hidden[r, j] > 0.0:
                for c in range(weight.shape[0]):
                    total += block[r, c] * weight[c, j]
            out[r, j] = total


@kernel
def mlp_logits(
    X: F32,
    hidden_weight: F64,
    hidden_bias: F64,
    weight: F64,
    bias: F64,
    lanes: F64,
    hidden: F64,
    out: F64,
) -> None:
    """Write logits (n, k) of a head with one hidden ReLU layer; hidden is work space (ROWS, h)."""
    n = X.shape[0]
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        _block_logits(X, start, rows, hidden_weight, hidden_bias, lanes, hidden)
        _relu(hidden, rows)
        _block_logits(hidden, 0, rows, weight, bias, lanes, out[start : start + rows])


@kernel
def mlp_softmax(
    X: F32,
    labels: I64,
    row_weights: F64,
    hidden_weight: F64,
    hidden_bias: F64,
    weight: F64,
    bias: F64,
    kept: F64,
    lanes: F64,
    hidden: F64,
    back: F64,
    block: F64,
    tile: F64,
    hidden_weight_gradient: F64,
    hidden_bias_gradient: F64,
    weight_gradient: F64,
    bias_gradient: F64,
    loss: F64,
) -> None:
    """Add loss and gradient of rows of a softmax head with one hidden ReLU layer.

    As `linear_softmax`, with hidden_weight (h, d), weight (k, h), and the work spaces hidden and
    back (BATCH, h), block (BATCH, k) and tile (BATCH, WIDE). Units are multiplied by kept (n, h),
    which is 0 where one is dropped (Srivastava et al. 2014, section 4), or left alone by kept
    (0, h). Calls with multiples of `BATCH` rows add up like one.
    """
    n = X.shape[0]
    total = loss[0]
    for start in range(0, n, BATCH):
        rows = min(BATCH, n - start)
        _hidden(X, start, rows, hidden_weight, hidden_bias, kept, lanes, hidden)
        _block_logits(hidden, 0, rows, weight, bias, lanes, block)
        for r in range(rows):
            total += _softmax_residual(block[r], labels[start + r], row_weights[start + r])
        _back(block, rows, weight, hidden, back)
        for first in range(0, rows, ROWS):
            some = min(ROWS, rows - first)
            _add_gradient(
                hidden, first, some, block[first : first + some], weight_gradient, bias_gradient
            )
        _add_hidden_gradient(
            X, start, rows, back, kept, tile, hidden_weight_gradient, hidden_bias_gradient
        )
    loss[0] = total


@kernel
def mlp_multilabel(
    X: F32,
    labels: NDArray[np.int8],
    row_weights: F64,
    positive: F64,
    negative: F64,
    hidden_weight: F64,
    hidden_bias: F64,
    weight: F64,
    bias: F64,
    kept: F64,
    lanes: F64,
    hidden: F64,
    back: F64,
    block: F64,
    tile: F64,
    hidden_weight_gradient: F64,
    hidden_bias_gradient: F64,
    weight_gradient: F64,
    bias_gradient: F64,
    loss: F64,
) -> None:
    """Add loss and gradient of rows of a multi-label head with one hidden ReLU layer.

    Labels and their weights as in `linear_multilabel`, everything else as in `mlp_softmax`.
    """
    n = X.shape[0]
    total = loss[0]
    for start in range(0, n, BATCH):
        rows = min(BATCH, n - start)
        _hidden(X, start, rows, hidden_weight, hidden_bias, kept, lanes, hidden)
        _block_logits(hidden, 0, rows, weight, bias, lanes, block)
        for r in range(rows):
            total += _multilabel_residual(
                block[r], labels[start + r], row_weights[start + r], positive, negative
            )
        _back(block, rows, weight, hidden, back)
        for first in range(0, rows, ROWS):
            some = min(ROWS, rows - first)
            _add_gradient(
                hidden, first, some, block[first : first + some], weight_gradient, bias_gradient
            )
        _add_hidden_gradient(
            X, start, rows, back, kept, tile, hidden_weight_gradient, hidden_bias_gradient
        )
    loss[0] = total


@kernel
def lbfgs_direction(
    steps: F64,
    changes: F64,
    curvatures: F64,
    count: int,
    newest: int,
    gradient: F64,
    alphas: F64,
    lanes: F64,
    out: F64,
) -> None:
    """Write the L-BFGS descent direction, Nocedal and Wright 2006, algorithm 7.4.

    Parameters
    ----------
    steps, changes : float64 (m, p)
        Ring buffers of parameter steps s and gradient changes y.
    curvatures : float64 (m,)
        The products s'y, all positive.
    count, newest : int
        Pairs stored (at most m) and the ring position of the last one.
    gradient : float64 (p,)
        Gradient at the present point.
    alphas, lanes : float64 (m,), (LANES,)
        Work space.
    out : float64 (p,)
        Filled with minus the approximate inverse Hessian times the gradient.
    """
    m, p = steps.shape
    for j in range(p):
        out[j] = -gradient[j]
    if count == 0:
        return
    for back in range(count):
        slot = (newest - back) % m
        alpha = _dot(steps[slot], out, lanes) / curvatures[slot]
        alphas[slot] = alpha
        for j in range(p):
            out[j] -= alpha * changes[slot, j]
    # Equation 7.20: the newest pair scales the initial inverse Hessian.
    scale = curvatures[newest] / _dot(changes[newest], changes[newest], lanes)
    for j in range(p):
        out[j] *= scale
    for back in range(count - 1, -1, -1):
        slot = (newest - back) % m
        beta = _dot(changes[slot], out, lanes) / curvatures[slot]
        for j in range(p):
            out[j] += (alphas[slot] - beta) * steps[slot, j]


@kernel
def adam_step(
    parameters: F64,
    gradient: F64,
    first: F64,
    second: F64,
    step: int,
    rate: float,
) -> None:
    """Move parameters (p,) by one step of Adam, Kingma and Ba 2015, algorithm 1.

    Decays 0.9 and 0.999 and epsilon 1e-8 are the paper's; first and second are the moment
    estimates, updated in place; step counts from 1.
    """
    pace = rate / (1.0 - 0.9**step)
    spread = 1.0 / (1.0 - 0.999**step)
    for j in range(parameters.shape[0]):
        first[j] = 0.9 * first[j] + 0.1 * gradient[j]
        second[j] = 0.999 * second[j] + 0.001 * gradient[j] * gradient[j]
        # Python's division raises where the divisor is zero, NumPy's does not look.
        parameters[j] -= np.divide(pace * first[j], np.sqrt(spread * second[j]) + 1e-8)


@kernel
def add_gram(X: F32, start: int, stop: int, first: F64, second: F64, gram: F64) -> None:
    """Add X'X to rows `start` to `stop` of the lower triangle of gram, tile by tile.

    Parameters
    ----------
    X : float32 (n, d)
        Features; n is a multiple of `GRAM_ROWS`.
    start, stop : int
        At most `GRAM_TALL` rows of gram; rows that other calls fill may be filled meanwhile.
    first, second : float64 (GRAM_ROWS, GRAM_TALL), (GRAM_ROWS, GRAM_WIDE)
        Work space.
    gram : float64 (d, d)
        Added to, where the column is below `stop` or a few beyond.
    """
    n = X.shape[0]
    for left in range(0, stop, GRAM_WIDE):
        right = min(left + GRAM_WIDE, stop)
        width = right - left
        for row in range(0, n, GRAM_ROWS):
            tall, broad = X[row : row + GRAM_ROWS, start:stop], X[row : row + GRAM_ROWS, left:right]
            for r in range(GRAM_ROWS):
                for i in range(stop - start):
                    first[r, i] = tall[r, i]
                for j in range(width):
                    second[r, j] = broad[r, j]
            for i in range(stop - start):
                a0, a1, a2, a3 = first[0, i], first[1, i], first[2, i], first[3, i]
                a4, a5, a6, a7 = first[4, i], first[5, i], first[6, i], first[7, i]
                sums = gram[start + i, left:right]
                # One load and one store of the sum for eight products.
                for j in range(width):
                    sums[j] += (
                        (a0 * second[0, j] + a1 * second[1, j])
                        + (a2 * second[2, j] + a3 * second[3, j])
                    ) + (
                        (a4 * second[4, j] + a5 * second[5, j])
                        + (a6 * second[6, j] + a7 * second[7, j])
                    )


@kernel
def cholesky(matrix: F64, panel: F64) -> None:
    """Turn a positive definite matrix into its Cholesky factor, in the lower triangle.

    Golub and Van Loan 2013, algorithm 4.2.2 by blocks. A pivot that rounding made negative or
    tiny becomes a tiny positive one: what is solved with the factor stays finite.

    Parameters
    ----------
    matrix : float64 (d, d)
        Its lower triangle is read and overwritten, the upper one is left as it is.
    panel : float64 (PANEL, d)
        Work space.
    """
    d = matrix.shape[0]
    tiny = 0.0
    for i in range(d):
        tiny = max(tiny, matrix[i, i])
    tiny = max(tiny * 1e-12, 1e-300)
    for left in range(0, d, PANEL):
        right = min(left + PANEL, d)
        for i in range(left, d):
            for j in range(left, min(i + 1, right)):
                total = matrix[i, j]
                for p in range(left, j):
                    total -= matrix[i, p] * matrix[j, p]
                if i == j:
                    matrix[i, i] = np.sqrt(max(total, tiny))
                else:
                    matrix[i, j] = total / matrix[j, j]
        if right == d:
            break
        for i in range(right, d):
            for p in range(left, right):
                panel[p - left, i - right] = matrix[i, p]
        # Only the last panel may be narrower, and it has no rows below it.
        for i in range(right, d):
            own, row = matrix[i, left:right], matrix[i, right : i + 1]
            for p in range(0, PANEL, 8):
                eight = panel[p : p + 8]
                a0, a1, a2, a3 = own[p], own[p + 1], own[p + 2], own[p + 3]
                a4, a5, a6, a7 = own[p + 4], own[p + 5], own[p + 6], own[p + 7]
                for j in range(i + 1 - right):
                    row[j] -= (
                        (a0 * eight[0, j] + a1 * eight[1, j])
                        + (a2 * eight[2, j] + a3 * eight[3, j])
                    ) + (
                        (a4 * eight[4, j] + a5 * eight[5, j])
                        + (a6 * eight[6, j] + a7 * eight[7, j])
                    )


@kernel
def solve_lower(factor: F64, lanes: F64, values: F64) -> None:
    """Solve L x = b for every row b of values (k, d), in place; factor (d, d) holds L."""
    for i in range(factor.shape[0]):
        for c in range(values.shape[0]):
            known = _dot(factor[i, :i], values[c, :i], lanes)
            values[c, i] = (values[c, i] - known) / factor[i, i]


@kernel
def solve_upper(factor: F64, values: F64) -> None:
    """Solve L' x = b for every row b of values (k, d), in place; factor (d, d) holds L."""
    for i in range(factor.shape[0] - 1, -1, -1):
        for c in range(values.shape[0]):
            value = values[c, i] / factor[i, i]
            values[c, i] = value
            for j in range(i):
                values[c, j] -= value * factor[i, j]
