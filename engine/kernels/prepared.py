"""Which signatures of which kernels are in use, and compiling all of them ahead of time.

`engine.doctor` does so when Hilum is installed, so that nobody waits for a compiler later. A kernel
that is called otherwise is compiled then, as ever: this table costs or saves time, and nothing
else. A test compares it with what training and prediction call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["SIGNATURES", "compile_all"]

#: Kernel to the types of its arguments, for each way it is called: number type and dimensions, 0
#: for a scalar, r for read-only. Arrays are C-contiguous.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "bootstrap.binned_gaps": ("u2 j1 d1 u1 i0 d2 d2",),
    "bootstrap.ranked_figures": ("u2 j1 u1 d1 d2 d3 d2 d3",),
    "bootstrap.recalibration_sums": ("u2 j1 d1 d1 d1 d2 d2",),
    "bootstrap.weighted_sums": ("u2 d2 d2 d2",),
    "heads.adam_step": ("d1 d1 d1 d1 i0 d0",),
    "heads.add_gram": ("f2 i0 i0 d2 d2 d2",),
    "heads.add_moments": ("f2 f1 d1 d1",),
    "heads.cholesky": ("d2 d2",),
    "heads.dot": ("d1 d1 d1 d1",),
    "heads.lbfgs_direction": ("d2 d2 d1 i0 i0 d1 d1 d1 d1",),
    "heads.linear_multilabel": ("f2 b2 d1 d1 d1 d2 d1 d1 d2 d2 d1 d1",),
    "heads.linear_softmax": ("f2 i1 d1 d2 d1 d1 d2 d2 d1 d1",),
    "heads.logits": ("f2 d2 d1 d1 d2",),
    "heads.mlp_logits": ("f2 d2 d1 d2 d1 d1 d2 d2",),
    "heads.mlp_multilabel": ("f2 b2 d1 d1 d1 d2 d1 d2 d1 d2 d1 d2 d2 d2 d2 d2 d1 d2 d1 d1",),
    "heads.mlp_softmax": ("f2 i1 d1 d2 d1 d2 d1 d2 d1 d2 d2 d2 d2 d2 d1 d2 d1 d1",),
    "heads.moments": ("f1 i0 d1 d1",),
    "heads.penalise": ("d2 d0 d2 d1",),
    "heads.solve_lower": ("d2 d1 d2",),
    "heads.solve_upper": ("d2 d2",),
    "heads.standardise": ("f2 f1 f1 f2",),
    "ood.multiply": ("f2 d2 d2",),
    "ood.multiply_transposed": ("f2 d2 d2",),
    "pooling.pool_maps": ("f4r i1 d2 f2",),
    "reduction.add_levels": (
        "u2r w1r i2 i2 i0 i0 v1 w2 i1 i1 i2",
        "w2r w1r i2 i2 i0 i0 v1 w2 i1 i1 i2",
    ),
    "reduction.spread_levels": ("i1 i0 i0 i0 i2 u1",),
}

_TYPES = {
    "b": "int8",
    "d": "float64",
    "f": "float32",
    "i": "int64",
    "j": "int32",
    "u": "uint8",
    "v": "uint32",
    "w": "uint16",
}


def parse_signature(text: str) -> tuple[Any, ...]:
    """Read one of `SIGNATURES`.

    Parameters
    ----------
    text : str
        Such as ``"f2 d1 i0"``.

    Returns
    -------
    tuple of numba types
        As a dispatcher's ``compile`` takes them.
    """
    from numba import types

    found = []
    for word in text.split():
        number, n_axes = getattr(types, _TYPES[word[0]]), int(word[1])
        readonly = word.endswith("r")
        found.append(types.Array(number, n_axes, "C", readonly) if n_axes else number)
    return tuple(found)


def compile_all(report: Callable[[str, int, int], None] | None = None) -> int:
    """Compile what is not kept yet, for this processor.

    Parameters
    ----------
    report : callable, optional
        Called as ``report(kernel, done, total)`` after each kernel.

    Returns
    -------
    int
        Number of compiled functions, those that kernels call not counted; 0 where numba is
        switched off.
    """
    n_compiled = 0
    for number, (name, signatures) in enumerate(SIGNATURES.items(), 1):
        module, _, function = name.partition(".")
        dispatcher: Any = getattr(import_module(f"engine.kernels.{module}"), function)
        if hasattr(dispatcher, "compile"):  # under NUMBA_DISABLE_JIT it is a plain function
            before = sum(dispatcher.stats.cache_misses.values())
            for signature in signatures:
                dispatcher.compile(parse_signature(signature))
            n_compiled += sum(dispatcher.stats.cache_misses.values()) - before
        if report is not None:
            report(name, number, len(SIGNATURES))
    return n_compiled
