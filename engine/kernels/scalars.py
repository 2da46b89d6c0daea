"""Scalar helpers that more than one kernel uses."""

from __future__ import annotations

import numpy as np

from engine.kernels import kernel

__all__ = ["wide"]


@kernel
def wide(value: np.float32 | float) -> float:
    """Return a float32 as a double.

    Compiled, ``float(x)`` of a float32 stays float32. As plain Python the outer call leaves
    NumPy's scalars, whose arithmetic warns of NaN where the compiled one does not.
    """
    return float(np.float64(value))
