"""Whether compiled loops are at hand in this process, and getting them there.

A prediction of one picture takes a few milliseconds of arithmetic, and importing numba half a
second. So what a prediction calls asks `ready`: yes, and the kernels of `engine.kernels` do the
work; no, and NumPy does it (`engine.plain`), with the same bits. Who has much to do calls `load`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MANY", "load", "prepare", "ready"]

MANY = 200
"""From so many pictures on, compiled loops win back the half second that loading them takes: NumPy
needs some 3 ms more for each."""

# What extraction, serving and predicting many pictures call.
_PREDICTION = ("reduction", "pooling", "heads")


def ready() -> bool:
    """Whether numba is loaded in this process, by whomever.

    Returns
    -------
    bool
        True: calling a kernel costs its work only.
    """
    return "numba" in sys.modules


def load() -> None:
    """Import numba and the kernels of prediction: half a second, once a process.

    From then on `ready` is true. Numbers stay the same bits; many pictures are done sooner.
    """
    for name in _PREDICTION:
        import_module(f"engine.kernels.{name}")


def prepare(report: Callable[[str, int, int], None] | None = None) -> int:
    """Compile every kernel for this processor, and keep them for later processes.

    Prediction, extraction and training then compile nothing. What is kept already is not compiled
    again. Ten seconds on two cores of a server, more on an old PC.

    Parameters
    ----------
    report : callable, optional
        Called as ``report(kernel, done, total)`` after each of them.

    Returns
    -------
    int
        How many of them had to be compiled, and were not kept yet; 0 where numba is switched off.
    """
    from engine.kernels.prepared import compile_all

    return compile_all(report)
