"""Loops that find principal components: products of tall matrices, summed in a fixed order.

BLAS would be as fast, but its bits change with its number of threads and with the processor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.kernels import kernel
from engine.kernels.scalars import wide

__all__ = ["COLUMNS", "ROWS", "multiply", "multiply_transposed"]

#: Rows of which products are added up together, so that sums are loaded and stored less often.
ROWS = 4
#: Columns kept in the processor's first cache while all rows pass.
COLUMNS = 128

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@kernel
def multiply(X: F32, right: F64, out: F64) -> None:
    """Write X (n, d) times right (d, l) to out (n, l)."""
    n, d = X.shape
    columns = right.shape[1]
    whole = d - d % ROWS
    for i in range(n):
        for c in range(columns):
            out[i, c] = 0.0
        for j in range(0, whole, ROWS):
            a, b = wide(X[i, j]), wide(X[i, j + 1])
            e, f = wide(X[i, j + 2]), wide(X[i, j + 3])
            for c in range(columns):
                out[i, c] += (
                    a * right[j, c]
                    + b * right[j + 1, c]
                    + e * right[j + 2, c]
                    + f * right[j + 3, c]
                )
        for j in range(whole, d):
            a = wide(X[i, j])
            for c in range(columns):
                out[i, c] += a * right[j, c]


@kernel
def multiply_transposed(X: F32, right: F64, out: F64) -> None:
    """Write the transpose of X (n, d), times right (n, l), to out (d, l)."""
    n, d = X.shape
    columns = right.shape[1]
    whole = n - n % ROWS
    for j in range(d):
        for c in range(columns):
            out[j, c] = 0.0
    for first in range(0, d, COLUMNS):
        last = min(first + COLUMNS, d)
        for i in range(0, whole, ROWS):
            for j in range(first, last):
                a, b = wide(X[i, j]), wide(X[i + 1, j])
                e, f = wide(X[i + 2, j]), wide(X[i + 3, j])
                for c in range(columns):
                    out[j, c] += (
                        a * right[i, c]
                        + b * right[i + 1, c]
                        + e * right[i + 2, c]
                        + f * right[i + 3, c]
                    )
        for i in range(whole, n):
            for j in range(first, last):
                a = wide(X[i, j])
                for c in range(columns):
                    out[j, c] += a * right[i, c]
