"""Heads made by hand, for tests that need one and no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import formats
from engine.backbone import Backbone
from engine.calibration import Calibration
from engine.heads import Head
from engine.images import Preprocessing, read_preprocessing
from engine.pooling import feature_width, parse_taps


class FixedScore:
    """In the place of an `OodModel`: every picture has the same score."""

    def __init__(self, score: float, threshold: float = 1.0) -> None:
        self.score, self.threshold, self.shapes = score, threshold, list[tuple[int, ...]]()

    def scores(self, standard: NDArray[np.float32]) -> NDArray[np.float64]:
        self.shapes.append(standard.shape)
        return np.full(len(standard), self.score)

    def explain(self, score: float) -> str:
        return f"unlike the training images ({score:.4g}, limit {self.threshold:.4g})"


def make_head(
    taps: str,
    channels: Mapping[str, int] | None = None,
    *,
    backbone: Backbone | None = None,
    name: str = "head",
    classes: Sequence[str] = ("a", "b"),
    multilabel: bool = False,
    hidden: int = 0,
    thresholds: Sequence[float] = (),
    ood: Any = None,
    seed: int = 0,
) -> Head:
    """Return a head with random weights on the taps of a backbone, or of nothing."""
    if backbone is not None:
        channels = {tap.name: tap.channels for tap in backbone.taps.values()}
        preprocessing = read_preprocessing(backbone.preprocessing).to_dict()
    else:
        preprocessing = Preprocessing(height=64, width=64).to_dict()
    assert channels is not None
    blocks = parse_taps(taps, None, channels)
    d, k = feature_width(blocks), len(classes)
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    weights = {"weight": draw(k, hidden or d), "bias": draw(k)}
    if hidden:
        weights |= {"hidden.weight": draw(hidden, d), "hidden.bias": draw(hidden)}
    return Head(
        name=name,
        kind="mlp" if hidden else "linear",
        task="multilabel" if multilabel else "softmax",
        classes=tuple(classes),
        weights=weights,
        mean=rng.uniform(0, 1, d).astype(np.float32),
        scale=rng.uniform(0.5, 2, d).astype(np.float32),
        calibration=Calibration("temperature", 1.7),
        thresholds=tuple(thresholds),
        backbone="none" if backbone is None else backbone.name,
        backbone_digest="0" * 64 if backbone is None else backbone.digest,
        preprocessing=preprocessing,
        preprocessing_digest=formats.preprocessing_digest(preprocessing),
        blocks=blocks,
        training={"n_rows": 10, "n_groups": 5},
        metrics={},
        about={},
        ood=ood,
    )
