"""From an image and heads to an answer: one backbone pass, every head, one JSON object."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine import jit
from engine.answers import DEMONSTRATION_HEAD, INTERNAL, Prediction
from engine.errors import OVERRIDABLE, BackboneError, EngineError, MismatchError, Refused
from engine.heads import Head, load_head
from engine.images import read_picture, read_preprocessing
from engine.inference import feature_maps, in_order, network_inputs
from engine.picture import refuse
from engine.pooling import Block, feature_width, parse_taps, pool_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.backbone import Backbone
    from engine.cascade import Chain
    from engine.heatmap import Evidence
    from engine.picture import Picture

__all__ = ["DEMONSTRATION_HEAD", "Prediction", "Predictor", "predict_images"]

# A picture shows nothing if, on a grid of so many points across its shorter side, fewer than this
# share of them differ from the commonest grey level, or all but half a per cent on each side lie
# within so few levels. Of 856 real X-rays of five sources the nearest has 0.74 and 69 levels.
_BLANK_GRID = 128
_BLANK_OTHERS = 0.01
_BLANK_SPAN = (0.005, 0.995)
_BLANK_LEVELS = 3


class Predictor:
    """Heads and the one backbone they share, loaded once and ready for many images.

    Parameters
    ----------
    heads : sequence of Head or path, optional
        Default: the embedded demonstration head, or the heads of `chain`.
    streams : int, optional
        Images worked on at once; default one per core.
    allow : sequence of str
        Reasons for refusing to be set aside, of `engine.errors.OVERRIDABLE`.
    views : int
        Augmented views, 0 to 32, whose logits are averaged with the picture's own before they
        become probabilities; see `engine.views.draw_views`. Whether a head refuses is judged on
        the picture itself. For heads that were trained with views.
    chain : Chain, optional
        From `engine.cascade.load_chain`: says which head is asked after which.
    heatmap : bool
        Also draw where the evidence for the decided labels lies.

    Raises
    ------
    MismatchError
        Heads made for different backbones or preprocessings, for another build of the backbone
        than the embedded one, or two heads of one name; both heads and a chain; an unknown reason
        or number of views.
    HeadFileError
        A head file that cannot be read.
    BackboneError
        The backbone cannot be loaded on this machine.
    """

    def __init__(
        self,
        heads: Sequence[Head | str | Path] | None = None,
        *,
        streams: int | None = None,
        allow: Sequence[str] = (),
        views: int = 0,
        chain: Chain | None = None,
        heatmap: bool = False,
    ) -> None:
        if chain is not None and heads:
            raise MismatchError(
                "both a chain and heads were given; a head that is to answer beside a chain is a "
                "step of it: add it to the chain's file"
            )
        for reason in allow:
            if reason not in OVERRIDABLE:
                raise MismatchError(
                    f"reason {reason!r} cannot be allowed; those that can: {', '.join(OVERRIDABLE)}"
                )
        self._views: tuple[Any, ...] = ()
        if views:
            from engine.views import draw_views

            self._views = draw_views(views)
        given: Sequence[Head | str | Path] = (
            chain.heads if chain is not None else heads or [DEMONSTRATION_HEAD]
        )
        loaded = [head if isinstance(head, Head) else load_head(head) for head in given]
        _check_together(loaded)
        self.heads = tuple(loaded)
        self.chain = chain
        self._allow = frozenset(allow)
        asked = (("views", views > 0), ("chain", chain is not None), ("heatmap", heatmap))
        self.wanted = tuple(name for name, yes in asked if yes)
        try:
            self.preprocessing = read_preprocessing(loaded[0].preprocessing)
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
        if jit.ready():
            # Kernels are loaded when first called: now, so that the first file's time is its own.
            blank = [np.zeros((1, *size), np.uint8) for size in self.backbone.input_sizes]
            vectors = pool_features(feature_maps(self.backbone, blank), self.blocks)
            for head in loaded:
                self._answer(head, vectors, set(), lambda: vectors)

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
        status, reason = "ok", None
        facts: dict[str, Any] = {}
        try:
            facts = self._judge(path)
            reason = _refusal(facts)
            status = "ok" if reason is None else "refused"
        except Refused as error:
            status, reason = "refused", f"{error.reason}: {error}"
        except EngineError as error:
            status, reason = "error", str(error)
        except MemoryError:
            # This picture's need, not the next one's: the others are still answered.
            status, reason = "error", f"{path}: does not fit in memory; close other programs"
        except Exception as error:
            # A fault of ours or of a library, met at this picture: the next are answered all the
            # same. Its text may hold what the file says of a person, so only its kind is told.
            status = "error"
            reason = f"{INTERNAL}: {path}: unexpected {type(error).__name__}; report it to Hilum"
        return Prediction(
            input=str(path),
            status=status,
            reason=reason,
            backbone=self.backbone.name,
            milliseconds=1e3 * (time.perf_counter() - start),
            n_views=len(self._views),
            wanted=self.wanted,
            **facts,
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

    def _judge(self, path: str | Path) -> dict[str, Any]:
        """Return what there is to say of a picture: heads, allowed, chain, heatmap."""
        picture = read_picture(path, allow=self._allow)
        _check_contents(picture, self._allow)
        inputs = network_inputs(picture, self.preprocessing)
        maps = feature_maps(self.backbone, inputs)
        vectors = np.empty((1 + len(self._views), feature_width(self.blocks)), np.float32)
        pool_features(maps, self.blocks, vectors[:1])
        for row, view in enumerate(self._views, 1):
            seen = feature_maps(self.backbone, inputs, view)
            pool_features(seen, self.blocks, vectors[row : row + 1])
        if not np.isfinite(vectors).all():
            raise BackboneError(
                f"backbone {self.backbone.name} gave features that are no finite numbers, so there "
                "is no answer; run python -m engine.doctor, which compares the network's known "
                "answers"
            )
        allowed: dict[str, set[str]] = {}
        answers: dict[str, dict[str, Any]] = {}

        @cache
        def negative() -> NDArray[np.float32]:
            maps = feature_maps(self.backbone, [255 - image for image in inputs])
            return pool_features(maps, self.blocks)

        for head in self.heads:
            set_aside = allowed.setdefault(head.name, set())
            answers[head.name] = self._answer(head, vectors, set_aside, negative)
        facts: dict[str, Any] = {}
        if self.chain is not None:
            facts["chain"] = self.chain.follow(answers)
            asked = [
                step["head"] for step in facts["chain"]["steps"] if step["outcome"] != "skipped"
            ]
            # No probability is shown that nobody asked for.
            answers = {name: answers[name] for name in dict.fromkeys(asked)}
        facts["heads"] = answers
        reasons = {reason for name in answers for reason in allowed[name]}
        reasons |= set(picture.about.get("allowed", ()))
        facts["allowed"] = tuple(reason for reason in OVERRIDABLE if reason in reasons)
        if "heatmap" in self.wanted:
            from engine.heatmap import render_sheet

            evidence = [
                one
                for head in self.heads
                if "label" in answers.get(head.name, ())
                for one in self._evidence(head, maps, answers[head.name])
            ]
            if evidence:
                facts["heatmap"] = render_sheet(picture.pixels, evidence, self.preprocessing)
        return facts

    def _evidence(
        self, head: Head, maps: dict[str, NDArray[np.float32]], answer: dict[str, Any]
    ) -> list[Evidence]:
        """Split the picture's own logits; probabilities are those of the answer, views and all."""
        from engine.heatmap import class_evidence

        said, probabilities = answer["label"], answer["probabilities"]
        classes = [said] if isinstance(said, str) else said
        classes = classes or [max(probabilities, key=probabilities.__getitem__)]
        sizes = self.backbone.input_sizes
        size = (max(height for height, _ in sizes), max(width for _, width in sizes))
        return [
            replace(one, probability=probabilities[one.class_name])
            for one in class_evidence(head, maps, size=size, classes=classes)
        ]

    def _answer(
        self,
        head: Head,
        vectors: NDArray[np.float32],
        allowed: set[str],
        negative: Callable[[], NDArray[np.float32]],
    ) -> dict[str, Any]:
        """Let a head answer, or refuse; a refusal that is set aside is added to `allowed`.

        Parameters
        ----------
        head : Head
            One of ours.
        vectors : float32 (n, d)
            Features of the picture, and of its views.
        allowed : set of str
            Reason codes.
        negative : callable
            Gives the features, float32 (1, d), of the picture with black and white exchanged; only
            asked for where the picture itself is unlike the training images.
        """
        features = head.select(vectors, self.blocks)
        seen: dict[str, Any] = {}
        if head.ood is not None:
            score = _score(head, features[:1])
            threshold = head.ood.threshold
            # JSON has no infinity: features that are not finite have no score, and are refused.
            shown = score if math.isfinite(score) else None
            seen = {"ood": {"score": shown, "threshold": threshold}}
            if not score <= threshold:
                refused = ""
                if "out_of_distribution" in self._allow:
                    allowed.add("out_of_distribution")
                elif (other := _score(head, head.select(negative(), self.blocks))) <= threshold:
                    if "inverted" in self._allow:
                        allowed.add("inverted")
                    else:
                        refused = (
                            "inverted: the picture is unlike the training images (score "
                            f"{score:.3g}, limit {threshold:.3g}), but its negative is like them "
                            f"({other:.3g}); expected air in black and bone in white; export it "
                            "with the right PhotometricInterpretation, or invert it"
                        )
                else:
                    refused = f"out_of_distribution: {head.ood.explain(score)}"
                if refused:
                    return {"refused": refused, **seen, "notice": head.notice()}
        # Logits and not probabilities: on the 720 images of the tests, 5 folds by patient, the loss
        # was the lower in five of six comparisons (0.316 and 0.318 with 8 views), accuracy and
        # AUROC were the same. And one view that is very sure of itself weighs less.
        logits = head.logits(features).mean(axis=0, keepdims=True)
        probabilities = head.calibration.apply(logits, multilabel=head.multilabel)[0]
        return {**head.answer(probabilities), **seen, "notice": head.notice()}


def _check_contents(picture: Picture, allow: Collection[str]) -> None:
    """Refuse a picture that shows nothing: collimator closed, film not exposed.

    Parameters
    ----------
    picture : Picture
        Freshly read; gets the reason if it is set aside.
    allow : collection of str
        Reasons of refusal that are set aside.

    Raises
    ------
    Refused
        ``blank``.
    """
    step = max(1, min(picture.samples.shape) // _BLANK_GRID)
    seen_there = picture.show(picture.samples[step // 2 :: step, step // 2 :: step])
    levels = np.sort(seen_there, axis=None)
    values, counts = np.unique(levels, return_counts=True)
    common = int(values[counts.argmax()])
    others = 1.0 - counts.max() / len(levels)
    low, high = (int(levels[round(share * (len(levels) - 1))]) for share in _BLANK_SPAN)
    if others >= _BLANK_OTHERS and high - low >= _BLANK_LEVELS:
        return
    if others < _BLANK_OTHERS:
        seen = f"{100 * (1 - others):.3g} % of the pixels have the same grey level ({common})"
    else:
        seen = f"99 % of the pixels lie within {high - low + 1} of 256 grey levels"
    allowed: list[str] = picture.about.setdefault("allowed", [])
    if "blank" not in allowed:
        found = f"{seen}, expected an X-ray; look at the file in a viewer"
        refuse(picture.path, "blank", found, allow, allowed)


def _score(head: Head, features: NDArray[np.float32]) -> float:
    assert head.ood is not None
    return float(head.ood.scores(head.standardise(features))[0])


def _refusal(facts: dict[str, Any]) -> str | None:
    """Return the reason if every head that was asked refused."""
    reasons = [answer.get("refused") for answer in facts["heads"].values()]
    if None in reasons:
        return None
    return str(reasons[0]) if len(reasons) == 1 else _common(reasons)


def _common(reasons: Sequence[Any]) -> str:
    """Put the refusals of several heads into one reason that begins with a code."""
    codes = dict.fromkeys(str(reason).partition(":")[0] for reason in reasons)
    return (
        f"{next(iter(codes))}: the picture is unlike the images that any of the {len(reasons)} "
        "heads learned from; look at the picture"
    )


def predict_images(
    images: Iterable[str | Path],
    heads: Sequence[Head | str | Path] | None = None,
    *,
    streams: int | None = None,
    allow: Sequence[str] = (),
    views: int = 0,
    chain: Chain | None = None,
    heatmap: bool = False,
) -> Iterator[Prediction]:
    """Answer for image files with one or several heads on one backbone pass.

    Parameters
    ----------
    images : iterable of str or Path
        PNG, JPEG, TIFF or DICOM files.
    heads : sequence of Head or path, optional
        Default: the embedded demonstration head.
    streams, allow, views, chain, heatmap
        As for `Predictor`.

    Yields
    ------
    Prediction
        In the order of the images.

    Raises
    ------
    MismatchError
        Heads that do not belong together or not to this installation.
    """
    predictor = Predictor(
        heads, streams=streams, allow=allow, views=views, chain=chain, heatmap=heatmap
    )
    yield from predictor.predict_many(images)


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
        difference = first.difference(head)
        if difference is not None:
            raise MismatchError(
                f"heads {first.name!r} and {head.name!r} do not share one backbone pass: "
                f"{difference}; predict with them one at a time"
            )
