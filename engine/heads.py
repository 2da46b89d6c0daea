"""What a trained head is: weights on named feature blocks, with everything needed to use them.

Weights are stored as float32 and applied with float64 sums, before saving as after loading, so a
head answers with the same bits on both sides of a file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.calibration import Calibration, decide
from engine.errors import HeadFileError, MismatchError
from engine.jit import ready
from engine.ood import OodModel
from engine.pooling import Block, blocks_from_notes, blocks_to_notes, feature_width
from formats import canonical_json, preprocessing_digest, read_head, write_head

__all__ = ["KINDS", "TASKS", "Head", "load_head"]

KINDS = ("linear", "mlp")
TASKS = ("softmax", "multilabel")
_FORMAT = "hilum-head"
# Version 1 had a temperature and no memory of its training images.
_VERSION = 2
# Classes whose largest is up to this many times the smallest pass for equally frequent.
_MOST_EQUAL = 1.5


@dataclass(frozen=True, eq=False)
class Head:
    """A classifier on feature vectors of one backbone and one preprocessing.

    Attributes
    ----------
    name : str
        Name in predictions; unique among heads that are used together.
    kind : {"linear", "mlp"}
        Without or with one hidden layer of rectified units.
    task : {"softmax", "multilabel"}
        One class of k, or each of k labels on its own.
    classes : tuple of str
        The k names.
    weights : dict of str to float32 array
        ``weight`` (k, d), ``bias`` (k,); with a hidden layer ``weight`` is (k, h) and there are
        ``hidden.weight`` (h, d) and ``hidden.bias`` (h,).
    mean, scale : float32 (d,)
        Standardisation of the training rows; scale is positive.
    calibration : Calibration
        How logits become probabilities, which are those of a population with the class
        frequencies that ``training["prevalence"]`` names.
    thresholds : tuple of float
        One per class, or empty; see `engine.calibration.decide`.
    backbone, backbone_digest : str
        Name and SHA-256 of the backbone.
    preprocessing, preprocessing_digest : dict, str
        What was done to the pictures, and its SHA-256.
    blocks : tuple of Block
        Layout of the feature vector the weights expect.
    training : dict
        Rows, patients, classes, sources, ages, seed, settings and notes of the training.
        ``prevalence`` is ``"equal"`` if probabilities are as if every class were equally frequent
        (every label present in half of the images), ``"training"`` if they are by the frequencies
        of the training rows; heads of earlier releases do not have it.
    metrics : dict
        As `engine.metrics.Evaluation.to_json`, with the protocol they were found by.
    about : dict
        Title, attribution, licence and the like of the data it learned from.
    ood : OodModel or None
        Tells pictures unlike the training images; heads of earlier releases have none.
    """

    name: str
    kind: str
    task: str
    classes: tuple[str, ...]
    weights: dict[str, NDArray[np.float32]] = field(repr=False)
    mean: NDArray[np.float32] = field(repr=False)
    scale: NDArray[np.float32] = field(repr=False)
    calibration: Calibration
    thresholds: tuple[float, ...]
    backbone: str
    backbone_digest: str
    preprocessing: dict[str, Any] = field(repr=False)
    preprocessing_digest: str
    blocks: tuple[Block, ...] = field(repr=False)
    training: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    about: dict[str, Any] = field(repr=False)
    ood: OodModel | None = field(default=None, repr=False)

    @property
    def multilabel(self) -> bool:
        """Whether each label is decided on its own."""
        return self.task == "multilabel"

    @property
    def digest(self) -> str:
        """SHA-256 over metadata and weights: 64 hexadecimal digits, the same after a save."""
        tensors, metadata = self._stored()
        digest = hashlib.sha256(canonical_json(metadata))
        for name in sorted(tensors):
            digest.update(f"\n{name} {tensors[name].shape}\n".encode())
            digest.update(np.ascontiguousarray(tensors[name], "<f4").tobytes())
        return digest.hexdigest()

    def logits(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return logits before calibration.

        Parameters
        ----------
        X : float32 (n, d)
            Feature vectors, not standardised.

        Returns
        -------
        float64 (n, k)
            Logits.

        Raises
        ------
        MismatchError
            X has another width.
        """
        return network_logits(self.standardise(X), self.weights)

    def standardise(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the mean of the training rows off, and divide by their spread.

        Parameters
        ----------
        X : float32 (n, d)
            Feature vectors in this head's layout.

        Returns
        -------
        float32 (n, d)
            What the weights and `ood` take.

        Raises
        ------
        MismatchError
            X has another width.
        """
        X = np.asarray(X, np.float32)
        if X.ndim != 2 or X.shape[1] != len(self.mean):
            raise MismatchError(
                f"head {self.name!r} takes features (n, {len(self.mean)}), found {X.shape}; "
                "extract them with the head's taps and poolings"
            )
        if ready():
            from engine.kernels.heads import standardise
        else:
            from engine.plain import standardise
        standard = np.empty(X.shape, np.float32)
        standardise(X, self.mean, self.scale, standard)
        return standard

    def probabilities(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities, calibrated for the frequencies of ``training["prevalence"]``.

        Parameters
        ----------
        X : float32 (n, d)
            Feature vectors, not standardised.

        Returns
        -------
        float64 (n, k)
            Rows sum to 1 for softmax.
        """
        return self.calibration.apply(self.logits(X), multilabel=self.multilabel)

    def answer(self, probabilities: NDArray[np.float64]) -> dict[str, Any]:
        """Put the probabilities of one image into the words of ``engine.predict``.

        Parameters
        ----------
        probabilities : float64 (k,)
            One row of `probabilities`.

        Returns
        -------
        dict
            ``label``: the decided class, or the list of labels present; ``probabilities``: by
            class; ``threshold``: of the second class for two classes, None for more (the most
            probable class is decided), by class for multi-label.
        """
        decision = decide(probabilities[None, :], self.thresholds, multilabel=self.multilabel)[0]
        threshold: float | dict[str, float] | None = None
        label: str | list[str]
        if self.multilabel:
            label = [name for name, present in zip(self.classes, decision, strict=True) if present]
            limits = self.thresholds or (0.5,) * len(self.classes)
            threshold = dict(zip(self.classes, limits, strict=True))
        else:
            label = self.classes[int(decision)]
            if len(self.classes) == 2:
                threshold = self.thresholds[1] if self.thresholds else 0.5
        return {
            "label": label,
            "probabilities": {
                name: float(value) for name, value in zip(self.classes, probabilities, strict=True)
            },
            "threshold": threshold,
        }

    def notice(self) -> str:
        """Say in one sentence what the head learned from, and its terms of use.

        Also that probabilities are as if classes were equally frequent, where they are and the
        training rows were not: where a class is rare, they are larger than its share of the
        images that get them.

        Returns
        -------
        str
            Empty if neither is known.
        """
        facts = self.training
        parts = []
        if facts.get("n_rows"):
            people = f"learned from {facts['n_rows']} images of {facts.get('n_groups')} patients"
            ages = facts.get("age_range_years")
            parts.append(people + (f" aged {ages[0]} to {ages[1]} years" if ages else ""))
        if facts.get("prevalence") == "equal" and self._unequal():
            parts.append(
                "probabilities as if every label were present in half of the images"
                if self.multilabel
                else "probabilities as if every class were equally frequent"
            )
        parts += [str(self.about[key]) for key in ("title", "terms") if self.about.get(key)]
        return "; ".join(parts)

    def _unequal(self) -> bool:
        """Whether classes, or the sides of a label, were clearly not equally frequent."""
        counts = [int(count) for count in self.training.get("class_counts", {}).values()]
        if not self.multilabel:
            return bool(counts) and max(counts) > _MOST_EQUAL * min(counts)
        # Rows that were not assessed are taken for absent: their number is not kept.
        n_rows = int(self.training.get("n_rows", 0))
        return any(
            max(count, n_rows - count) > _MOST_EQUAL * min(count, n_rows - count)
            for count in counts
        )

    def select(self, features: NDArray[np.float32], blocks: Sequence[Block]) -> NDArray[np.float32]:
        """Pick the columns this head expects out of a wider feature vector.

        Several heads can thus share one backbone pass.

        Parameters
        ----------
        features : float32 (n, D)
            Feature vectors.
        blocks : sequence of Block
            Their layout.

        Returns
        -------
        float32 (n, d)
            In this head's layout; `features` itself if the layouts are the same.

        Raises
        ------
        MismatchError
            A block is missing or has another width.
        """
        if tuple(blocks) == self.blocks and features.shape[1] == len(self.mean):
            return features
        given = {(block.tap, block.pooling): block for block in blocks}
        picked = np.zeros((len(features), len(self.mean)), np.float32)
        for block in self.blocks:
            source = given.get((block.tap, block.pooling))
            if source is None or source.width != block.width:
                found = ", ".join(f"{other.name} ({other.width})" for other in blocks)
                raise MismatchError(
                    f"head {self.name!r} needs feature block {block.name} of width {block.width}; "
                    f"found: {found or 'none'}; extract with the taps and poolings of the head"
                )
            columns = features[:, source.offset : source.offset + source.width]
            picked[:, block.offset : block.offset + block.width] = columns
        return picked

    def difference(self, other: Head) -> str | None:
        """Say what keeps two heads from sharing one pass of a backbone.

        Parameters
        ----------
        other : Head
            To predict with in the same pass.

        Returns
        -------
        str or None
            Such as ``"backbone efficientnet-lite0 and efficientnet-lite2"``; None if they can.
        """
        for what, mine, theirs in (
            ("backbone", self.backbone, other.backbone),
            ("backbone digest", self.backbone_digest, other.backbone_digest),
            ("preprocessing digest", self.preprocessing_digest, other.preprocessing_digest),
        ):
            if mine != theirs:
                return f"{what} {mine[:20]} and {theirs[:20]}"
        return None

    def _stored(self) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Return tensors and metadata of the file."""
        tensors = {**self.weights, "mean": self.mean, "scale": self.scale}
        if self.ood is not None:
            tensors.update({f"ood.{key}": array for key, array in self.ood.tensors.items()})
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "name": self.name,
            "kind": self.kind,
            "task": self.task,
            "classes": list(self.classes),
            "calibration": self.calibration.to_json(),
            "thresholds": list(self.thresholds),
            "backbone": self.backbone,
            "backbone_digest": self.backbone_digest,
            "preprocessing": self.preprocessing,
            "preprocessing_digest": self.preprocessing_digest,
            "blocks": blocks_to_notes(self.blocks),
            "training": self.training,
            "metrics": self.metrics,
            "about": self.about,
            "ood": None if self.ood is None else self.ood.to_json(),
        }
        return tensors, metadata

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the head, whole or not at all.

        Parameters
        ----------
        path : str or PathLike
            Usually ``*.safetensors``.

        Returns
        -------
        Path
            `path`.

        Raises
        ------
        HeadFileError
            The file cannot be written.
        """
        tensors, metadata = self._stored()
        return write_head(path, tensors, metadata)


def network_logits(
    standard: NDArray[np.float32], weights: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Apply a network's weights to standardised features.

    Parameters
    ----------
    standard : float32 (n, d)
        Standardised features.
    weights : mapping of str to float array
        As in `Head`.

    Returns
    -------
    float64 (n, k)
        Logits.
    """
    wide = {name: np.ascontiguousarray(array, np.float64) for name, array in weights.items()}
    weight, bias = wide["weight"], wide["bias"]
    out = np.empty((len(standard), len(bias)))
    if not ready():
        from engine.plain import logits, mlp_logits

        if "hidden.weight" not in wide:
            logits(standard, weight, bias, out)
        else:
            first = wide["hidden.weight"], wide["hidden.bias"]
            mlp_logits(standard, *first, weight, bias, out)
        return out

    from engine.kernels import heads as kernels

    lanes = np.empty(kernels.LANES)
    if "hidden.weight" not in wide:
        kernels.logits(standard, weight, bias, lanes, out)
    else:
        hidden = np.empty((kernels.ROWS, len(wide["hidden.bias"])))
        first = wide["hidden.weight"], wide["hidden.bias"]
        kernels.mlp_logits(standard, *first, weight, bias, lanes, hidden, out)
    return out


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "kind": str,
    "task": str,
    "classes": list,
    "calibration": dict,
    "thresholds": list,
    "backbone": str,
    "backbone_digest": str,
    "preprocessing": dict,
    "preprocessing_digest": str,
    "blocks": list,
    "training": dict,
    "metrics": dict,
    "about": dict,
}


def load_head(path: str | PathLike[str]) -> Head:
    """Read a head and check that its parts fit together.

    Parameters
    ----------
    path : str or PathLike
        A file written by `Head.save` or ``python -m engine.train``.

    Returns
    -------
    Head
        Ready to use.

    Raises
    ------
    HeadFileError
        Not a head, of a later version, or damaged; the message names the file and the part.
    """
    tensors, metadata = read_head(path)
    cure = "train the head again"
    if metadata.get("format") != _FORMAT:
        raise HeadFileError(
            path, f"format is {metadata.get('format')!r}, expected {_FORMAT!r}; {cure}"
        )
    if metadata.get("version") != _VERSION:
        raise HeadFileError(
            path,
            f"head version {metadata.get('version')!r}, this release reads {_VERSION}; "
            "update Hilum or train the head again",
        )
    for key, kind in _FIELDS.items():
        value = metadata.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise HeadFileError(
                path, f"metadata {key!r} is {type(value).__name__} or missing; {cure}"
            )
    if metadata["kind"] not in KINDS or metadata["task"] not in TASKS:
        raise HeadFileError(
            path,
            f"kind {metadata['kind']!r} and task {metadata['task']!r}; expected one of "
            f"{', '.join(KINDS)} and one of {', '.join(TASKS)}; update Hilum or {cure}",
        )
    try:
        blocks = blocks_from_notes(metadata["blocks"])
    except MismatchError as error:
        raise HeadFileError(path, str(error)) from error
    classes = tuple(metadata["classes"])
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        raise HeadFileError(path, f"classes {classes!r} are not distinct names; {cure}")
    d = feature_width(blocks)
    own = {key: array for key, array in tensors.items() if not key.startswith("ood.")}
    _check_tensors(path, own, metadata["kind"], len(classes), d)
    try:
        calibration = Calibration.from_json(metadata["calibration"], len(classes))
    except ValueError as error:
        raise HeadFileError(path, f"calibration: {error}; {cure}") from error
    ood = None
    try:
        if metadata.get("ood") is not None:
            others = {key[4:]: array for key, array in tensors.items() if key not in own}
            ood = OodModel.from_file(others, metadata["ood"], d)
        elif len(own) != len(tensors):
            raise ValueError("there are tensors, and nothing says what they are")
    except (ValueError, AttributeError) as error:
        raise HeadFileError(path, f"out-of-distribution statistics: {error}; {cure}") from error
    numbers = list(metadata["thresholds"])
    plain = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in numbers)
    if not plain or not all(math.isfinite(x) for x in numbers):
        raise HeadFileError(path, f"thresholds are {numbers!r}; {cure}")
    if len(metadata["thresholds"]) not in (0, len(classes)):
        raise HeadFileError(
            path,
            f"{len(metadata['thresholds'])} thresholds for {len(classes)} classes; expected one "
            f"each or none; {cure}",
        )
    digest = preprocessing_digest(metadata["preprocessing"])
    if digest != metadata["preprocessing_digest"]:
        raise HeadFileError(
            path,
            f"the preprocessing's digest is {digest[:12]}, the file says "
            f"{metadata['preprocessing_digest'][:12]}; the file was edited: {cure}",
        )
    return Head(
        name=metadata["name"],
        kind=metadata["kind"],
        task=metadata["task"],
        classes=classes,
        weights={key: tensor for key, tensor in own.items() if key not in ("mean", "scale")},
        mean=tensors["mean"],
        scale=tensors["scale"],
        calibration=calibration,
        thresholds=tuple(float(value) for value in metadata["thresholds"]),
        backbone=metadata["backbone"],
        backbone_digest=metadata["backbone_digest"],
        preprocessing=metadata["preprocessing"],
        preprocessing_digest=metadata["preprocessing_digest"],
        blocks=blocks,
        training=metadata["training"],
        metrics=metadata["metrics"],
        about=metadata["about"],
        ood=ood,
    )


def _check_tensors(
    path: str | PathLike[str], tensors: Mapping[str, NDArray[Any]], kind: str, k: int, d: int
) -> None:
    """Refuse tensors that are missing, left over, of the wrong shape or not finite."""
    expected: dict[str, tuple[int, ...]] = {"mean": (d,), "scale": (d,), "bias": (k,)}
    if kind == "linear":
        expected["weight"] = (k, d)
    else:
        hidden = tensors.get("hidden.bias")
        h = 0 if hidden is None or hidden.ndim != 1 else len(hidden)
        expected.update({"hidden.weight": (h, d), "hidden.bias": (h,), "weight": (k, h)})
    if set(tensors) != set(expected):
        raise HeadFileError(
            path,
            f"tensors {', '.join(sorted(tensors))}; expected {', '.join(sorted(expected))}; "
            "train the head again",
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise HeadFileError(
                path,
                f"tensor {name!r} is {tensor.dtype} {tensor.shape}; expected finite float32 "
                f"{shape}; train the head again",
            )
    if not (tensors["scale"] > 0).all():
        raise HeadFileError(
            path, "tensor 'scale' has values that are not positive; train the head again"
        )
