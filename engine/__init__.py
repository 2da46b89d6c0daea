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
    from engine.errors import (
        BackboneError,
        ContainerError,
        EngineError,
        HeadFileError,
        ImageError,
        ManifestError,
        MismatchError,
        NotesError,
        Refused,
        SignatureError,
        SplitError,
        WriteError,
    )
    from engine.features import extract_features
    from engine.heads import Head, load_head
    from engine.images import Preprocessing, preprocess, read_picture
    from engine.manifest import Sample, collect_samples, read_manifest
    from engine.metrics import Evaluation
    from engine.picture import Picture
    from engine.prediction import Prediction, Predictor, predict_images
    from engine.training import cross_validate, evaluate_head, fit_head
    from formats import Container, open_container

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "engine.backbone",
    "BackboneError": "engine.errors",
    "Container": "formats",
    "ContainerError": "engine.errors",
    "EngineError": "engine.errors",
    "Evaluation": "engine.metrics",
    "Head": "engine.heads",
    "HeadFileError": "engine.errors",
    "ImageError": "engine.errors",
    "ManifestError": "engine.errors",
    "MismatchError": "engine.errors",
    "NotesError": "engine.errors",
    "Picture": "engine.picture",
    "Prediction": "engine.prediction",
    "Predictor": "engine.prediction",
    "Preprocessing": "engine.images",
    "Refused": "engine.errors",
    "Sample": "engine.manifest",
    "SignatureError": "engine.errors",
    "SplitError": "engine.errors",
    "WriteError": "engine.errors",
    "collect_samples": "engine.manifest",
    "cross_validate": "engine.training",
    "evaluate_head": "engine.training",
    "extract_features": "engine.features",
    "fit_head": "engine.training",
    "list_backbones": "engine.backbone",
    "load_backbone": "engine.backbone",
    "load_head": "engine.heads",
    "open_container": "formats",
    "predict_images": "engine.prediction",
    "preprocess": "engine.images",
    "read_manifest": "engine.manifest",
    "read_picture": "engine.images",
}

__all__ = [
    "Backbone",
    "BackboneError",
    "Container",
    "ContainerError",
    "EngineError",
    "Evaluation",
    "Head",
    "HeadFileError",
    "ImageError",
    "ManifestError",
    "MismatchError",
    "NotesError",
    "Picture",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "Refused",
    "Sample",
    "SignatureError",
    "SplitError",
    "WriteError",
    "__version__",
    "collect_samples",
    "cross_validate",
    "evaluate_head",
    "extract_features",
    "fit_head",
    "list_backbones",
    "load_backbone",
    "load_head",
    "open_container",
    "predict_images",
    "preprocess",
    "read_manifest",
    "read_picture",
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
