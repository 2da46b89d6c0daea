"""Everything a report says of one head: its figures, and what they must be read with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.heads import Head
from engine.metrics import Evaluation

__all__ = ["Floor", "Study"]


@dataclass(frozen=True)
class Floor:
    """What the same protocol reaches without looking into the lungs.

    Attributes
    ----------
    name : str
        ``"raw 64 x 64 pixels"``, ``"image border"`` or ``"metadata"``.
    explanation : str
        One sentence: what it was given.
    evaluation : Evaluation
        On the same rows and folds as the head.
    difference : dict
        Head less floor, paired by patient: ``auroc_macro``: ``{"value": x, "ci95": [low, high]}``.
    """

    name: str
    explanation: str
    evaluation: Evaluation
    difference: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Study:
    """A head with the figures that were measured of it.

    Attributes
    ----------
    purpose : {"train", "evaluate"}
        Figures of the training's own protocol, or of another container's rows.
    head : Head
        The head.
    evaluation : Evaluation
        The headline figures, with predictions for the curves.
    protocol : str
        How they were found, one sentence.
    warnings : tuple of str
        What the first lines must say; empty if nothing was found.
    floors : tuple of Floor
        May be empty; `floors_missing` then says how to get them.
    floors_missing : tuple of str
        Names of floors that could not be measured, each with the reason and what to do.
    confounding : dict
        ``{"columns": {"source": {"values": [...], "classes": [...], "rows": [[int]],
        "patients": [[int]]}, "sex": ..., "age": ..., "projection": ...}}``: rows[i][j] counts the
        rows of value i and class j. Columns that are missing are left out.
    subgroups : tuple of dict
        ``{"column": "sex", "value": "F", "n_rows": int, "n_groups": int, "auroc_macro": x or None,
        "accuracy": x, "ci95": {"auroc_macro": [low, high], "accuracy": [low, high]}}``.
    learning_curve : tuple of dict
        ``{"n_groups": int, "n_rows": int, "auroc_macro": x, "accuracy": x, "ci95": {...}}``,
        ascending.
    duplicates : dict or None
        ``{"n_pairs": int, "n_across_patients": int, "n_across_splits": int, "cosine": threshold}``.
    trials : tuple of dict
        What the inner folds compared: ``{"kind": "linear", "l2": 0.3, "loss": x, "auroc_macro": x,
        "chosen": bool}``.
    comparison : dict or None
        With another head on the same rows: ``{"name": str, "auroc_macro": x, "difference":
        {"auroc_macro": {"value": x, "ci95": [low, high]}, "accuracy": {...}}}``.
    data : dict
        ``{"n_rows": int, "n_groups": int, "n_views": int, "class_counts": {name: int}, "sources":
        [...], "age_range_years": [low, high] or None, "title", "attribution", "licence", "terms"}``.
    timing : dict
        ``{"steps": [{"name": "folds", "seconds": x}, ...], "seconds": total, "peak_bytes": int,
        "machine": "2 cores, x86-64", "threads": int}``.
    limits : tuple of str
        Sentences on what the head must not be used for.
    """

    purpose: str
    head: Head
    evaluation: Evaluation
    protocol: str
    warnings: tuple[str, ...] = ()
    floors: tuple[Floor, ...] = ()
    floors_missing: tuple[str, ...] = ()
    confounding: dict[str, Any] = field(default_factory=dict)
    subgroups: tuple[dict[str, Any], ...] = ()
    learning_curve: tuple[dict[str, Any], ...] = ()
    duplicates: dict[str, Any] | None = None
    trials: tuple[dict[str, Any], ...] = ()
    comparison: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
