"""From an image and heads to an answer: one backbone pass, every head, one JSON object."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import EngineError, MismatchError, Refused
from engine.features import feature_vector, in_order
from engine.heads import Head, load_head
from engine.images import Preprocessing
from engine.pooling import Block, parse_taps, pool_features

if TYPE_CHECKING:
    from engine.backbone import Backbone

__all__ = ["DEMONSTRATION_HEAD", "Prediction", "Predictor", "predict_images"]

#: The embedded head that answers when no other is given.
DEMONSTRATION_HEAD = Path(__file__).parent / "demonstration" / "pneumonia.safetensors"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image file.

    Attributes
    ----------
    input : str
        The path as it was given.
    status : str
        ``"ok"``, ``"refused"`` (readable, but not to be judged) or ``"error"`` (not readable).
    reason : str or None
        Reason code and sentence of a refusal, or the error; None when all is well.
    heads : dict
        Head name to ``{"label", "probabilities", "threshold", "notice"}``; empty unless `status`
        is ok. The notice says what the head learned from, because results outlive the terminal.
    backbone : str
        Name of the network.
    milliseconds : float
        Wall time for this file, from opening it to the probabilities.
    """

    input: str
    status: str
    reason: str | None = None
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    backbone: str = ""
    milliseconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``engine.predict`` prints, keys in the documented order."""
        return {
            "input": self.input,
            "status": self.status,
            "reason": self.reason,
            "heads": self.heads,
            "backbone": self.backbone,
            "milliseconds": round(self.milliseconds, 1),
        }


class Predictor:
    """Heads and the one backbone they share, loaded once and ready for many images.

    Parameters
    ----------
    heads : sequence of Head or path, optional
        Default: the embedded demonstration head.
    streams : int, optional
        Images worked on at once; default one per core.

    Raises
    ------
    MismatchError
        Heads made for different backbones or preprocessings, for another build of the backbone
        than the embedded one, or two heads of one name.
    HeadFileError
        A head file that cannot be read.
    BackboneError
        The backbone cannot be loaded on this machine.
    """

    def __init__(
        self, heads: Sequence[Head | str | Path] | None = None, *, streams: int | None = None
    ) -> None:
        loaded = [
            head if isinstance(head, Head) else load_head(head)
            for head in heads or [DEMONSTRATION_HEAD]
        ]
        _check_together(loaded)
        self.heads = tuple(loaded)
        try:
            self.preprocessing = Preprocessing.from_dict(loaded[0].preprocessing)
        except ValueError as error:
            raise MismatchError(
                f"head {loaded[0].name!r} needs a preprocessing that this release does not have: "
                f"{error}"
            ) from error
        pairs = dict.fromkeys(
            (block.tap, block.pooling) for head in loaded for block in head.blocks
        )

        from engine.backbone import load_backbone

        taps = list(dict.fromkeys(tap for tap, _ in pairs))
        self.backbone: Backbone = load_backbone(loaded[0].backbone, streams=streams, taps=taps)
        for head in loaded:
            if head.backbone_digest != self.backbone.digest:
                raise MismatchError(
                    f"head {head.name!r} was trained on features of {head.backbone} "
                    f"{head.backbone_digest[:12]}, and this installation has "
                    f"{self.backbone.digest[:12]}: extract the features again and train the head "
                    "anew, or install the version of Hilum that made it"
                )
        channels = {name: tap.channels for name, tap in self.backbone.taps.items()}
        text = ",".join(f"{tap}:{pooling}" for tap, pooling in pairs)
        self.blocks: tuple[Block, ...] = parse_taps(text, None, channels)
        # Kernels are loaded when first called: now, so that the first file's time is its own.
        blank = np.zeros((1, 1, *self.backbone.input_size), np.uint8)
        vector = pool_features(self.backbone.infer(blank), self.blocks)[0]
        for head in loaded:
            self._answer(head, vector)

    def predict(self, path: str | Path) -> Prediction:
        """Answer for one file; bad files give an answer too.

        Parameters
        ----------
        path : str or Path
            PNG, JPEG, TIFF or DICOM.

        Returns
        -------
        Prediction
            With status ok, refused or error.
        """
        start = time.perf_counter()
        heads: dict[str, dict[str, Any]] = {}
        status, reason = "ok", None
        try:
            vector = feature_vector(path, self.backbone, self.preprocessing, self.blocks)
            heads = {head.name: self._answer(head, vector) for head in self.heads}
        except Refused as error:
            status, reason = "refused", f"{error.reason}: {error}"
        except EngineError as error:
            status, reason = "error", str(error)
        except MemoryError:
            # This picture's need, not the next one's: the others are still answered.
            status, reason = "error", f"{path}: does not fit in memory; close other programs"
        return Prediction(
            input=str(path),
            status=status,
            reason=reason,
            heads=heads,
            backbone=self.backbone.name,
            milliseconds=1e3 * (time.perf_counter() - start),
        )

    def predict_many(self, paths: Iterable[str | Path]) -> Iterator[Prediction]:
        """Answer for files one by one, in their order, on all streams of the backbone.

        Parameters
        ----------
        paths : iterable of str or Path
            May be endless: at most a few files a stream are taken ahead of the answers.

        Yields
        ------
        Prediction
            One for each path.
        """
        yield from in_order(self.predict, paths, self.backbone.n_streams)

    def _answer(self, head: Head, vector: NDArray[np.float32]) -> dict[str, Any]:
        features = head.select(vector[np.newaxis], self.blocks)
        return {**head.answer(head.probabilities(features)[0]), "notice": head.notice()}


def predict_images(
    images: Iterable[str | Path],
    heads: Sequence[Head | str | Path] | None = None,
    *,
    streams: int | None = None,
) -> Iterator[Prediction]:
    """Answer for image files with one or several heads on one backbone pass.

    Parameters
    ----------
    images : iterable of str or Path
        PNG, JPEG, TIFF or DICOM files.
    heads : sequence of Head or path, optional
        Default: the embedded demonstration head.
    streams : int, optional
        Images worked on at once; default one per core.

    Yields
    ------
    Prediction
        In the order of the images.

    Raises
    ------
    MismatchError
        Heads that do not belong together or not to this installation.
    """
    yield from Predictor(heads, streams=streams).predict_many(images)


def _check_together(heads: Sequence[Head]) -> None:
    first = heads[0]
    names: set[str] = set()
    for head in heads:
        if head.name in names:
            raise MismatchError(
                f"two heads are called {head.name!r}, so their answers could not be told apart; "
                "train one of them with another --name"
            )
        names.add(head.name)
        for what, mine, theirs in (
            ("backbone", first.backbone, head.backbone),
            ("backbone digest", first.backbone_digest, head.backbone_digest),
            ("preprocessing digest", first.preprocessing_digest, head.preprocessing_digest),
        ):
            if mine != theirs:
                raise MismatchError(
                    f"heads {first.name!r} and {head.name!r} do not share one backbone pass: "
                    f"{what} {mine[:20]} and {theirs[:20]}; predict with them one at a time"
                )
