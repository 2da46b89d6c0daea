"""Hilum's API: chest X-rays into containers, containers into heads, heads into predictions.

>>> backbone = engine.load_backbone("efficientnet-lite0")
>>> container = engine.extract_features(backbone, "xrays/", out="chest.hilum")
>>> head = engine.fit_head(container, target="label")

Names are loaded when first used, so that a program that only trains never pays for, nor needs,
the network's runtime, and a program that only predicts never loads the trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.backbone import Backbone, list_backbones, load_backbone
    from engine.calibration import Calibration
    from engine.cascade import Chain, load_chain
    from engine.comparison import compare
    from engine.duplicates import find_near_duplicates
    from engine.errors import (
        BackboneError,
        ChainError,
        ContainerError,
        EngineError,
        HeadFileError,
        ImageError,
        ManifestError,
        MismatchError,
        MissingPart,
        NotesError,
        Refused,
        SignatureError,
        SplitError,
        WriteError,
    )
    from engine.features import extract_features
    from engine.heads import Head, load_head
    from engine.heatmap import class_evidence, render_heatmap
    from engine.images import Preprocessing, preprocess, read_picture
    from engine.judging import evaluate_head
    from engine.manifest import Sample, collect_samples, read_manifest
    from engine.metrics import Evaluation
    from engine.ood import OodModel
    from engine.picture import Picture
    from engine.prediction import Prediction, Predictor, predict_images
    from engine.protocols import cross_validate_columns, learning_curve
    from engine.report import render_report
    from engine.study import Study, study_evaluation, study_head
    from engine.training import Training, fit_head, train_head
    from engine.validation import cross_validate
    from formats import Container, open_container

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "engine.backbone",
    "BackboneError": "engine.errors",
    "Calibration": "engine.calibration",
    "Chain": "engine.cascade",
    "ChainError": "engine.errors",
    "Container": "formats",
    "ContainerError": "engine.errors",
    "EngineError": "engine.errors",
    "Evaluation": "engine.metrics",
    "Head": "engine.heads",
    "HeadFileError": "engine.errors",
    "ImageError": "engine.errors",
    "ManifestError": "engine.errors",
    "MismatchError": "engine.errors",
    "MissingPart": "engine.errors",
    "NotesError": "engine.errors",
    "OodModel": "engine.ood",
    "Picture": "engine.picture",
    "Prediction": "engine.prediction",
    "Predictor": "engine.prediction",
    "Preprocessing": "engine.images",
    "Refused": "engine.errors",
    "Sample": "engine.manifest",
    "SignatureError": "engine.errors",
    "SplitError": "engine.errors",
    "Study": "engine.study",
    "Training": "engine.training",
    "WriteError": "engine.errors",
    "class_evidence": "engine.heatmap",
    "collect_samples": "engine.manifest",
    "compare": "engine.comparison",
    "cross_validate": "engine.validation",
    "cross_validate_columns": "engine.protocols",
    "evaluate_head": "engine.judging",
    "extract_features": "engine.features",
    "find_near_duplicates": "engine.duplicates",
    "fit_head": "engine.training",
    "learning_curve": "engine.protocols",
    "list_backbones": "engine.backbone",
    "load_backbone": "engine.backbone",
    "load_chain": "engine.cascade",
    "load_head": "engine.heads",
    "open_container": "formats",
    "predict_images": "engine.prediction",
    "preprocess": "engine.images",
    "read_manifest": "engine.manifest",
    "read_picture": "engine.images",
    "render_heatmap": "engine.heatmap",
    "render_report": "engine.report",
    "study_evaluation": "engine.study",
    "study_head": "engine.study",
    "train_head": "engine.training",
}

__all__ = [
    "Backbone",
    "BackboneError",
    "Calibration",
    "Chain",
    "ChainError",
    "Container",
    "ContainerError",
    "EngineError",
    "Evaluation",
    "Head",
    "HeadFileError",
    "ImageError",
    "ManifestError",
    "MismatchError",
    "MissingPart",
    "NotesError",
    "OodModel",
    "Picture",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "Refused",
    "Sample",
    "SignatureError",
    "SplitError",
    "Study",
    "Training",
    "WriteError",
    "__version__",
    "class_evidence",
    "collect_samples",
    "compare",
    "cross_validate",
    "cross_validate_columns",
    "evaluate_head",
    "extract_features",
    "find_near_duplicates",
    "fit_head",
    "learning_curve",
    "list_backbones",
    "load_backbone",
    "load_chain",
    "load_head",
    "open_container",
    "predict_images",
    "preprocess",
    "read_manifest",
    "read_picture",
    "render_heatmap",
    "render_report",
    "study_evaluation",
    "study_head",
    "train_head",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
