"""From images to a container: decode, run the backbone, pool, write."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import formats
from engine.errors import (
    ContainerError,
    EngineError,
    ImageError,
    ManifestError,
    MismatchError,
    SplitError,
)
from engine.images import Preprocessing, preprocess, read_picture
from engine.manifest import UNCERTAIN_SUFFIX, Sample, collect_samples
from engine.pooling import Block, blocks_to_notes, feature_width, parse_taps, pool_features

if TYPE_CHECKING:
    from engine.backbone import Backbone

__all__ = ["Extraction", "extract_features", "feature_vector", "in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")

SPLIT_CODES = {"": 0, "train": 1, "valid": 2, "test": 3}
# Enough finished work in hand that a slow picture never starves the other worker, few enough that
# memory stays at a handful of feature maps.
ITEMS_IN_FLIGHT_PER_WORKER = 4
# Images decoded before the network runs; more did not make extraction faster.
IMAGES_PER_CHUNK = 8
UNKNOWN_SOURCE = "unknown"


@dataclass
class Extraction:
    """What an extraction did beside writing its container.

    Attributes
    ----------
    n_rows : int
        Images that became rows.
    failures : list of (Path, EngineError)
        Images that did not, each with its error.
    """

    n_rows: int = 0
    failures: list[tuple[Path, EngineError]] = field(default_factory=list)


def feature_vector(
    path: str | Path, backbone: Backbone, preprocessing: Preprocessing, blocks: Sequence[Block]
) -> NDArray[np.float32]:
    """Compute the feature vector of one image file.

    Extraction and prediction both come through here, so that a row of a container and the
    features of a prediction are the same numbers.

    Parameters
    ----------
    path : str or Path
        PNG, JPEG, TIFF or DICOM.
    backbone : Backbone
        Loaded network.
    preprocessing : Preprocessing
        How the picture becomes the network's input.
    blocks : sequence of Block
        Taps and poolings, in the vector's order.

    Returns
    -------
    ndarray of float32, shape (d,)
        The pooled feature maps.

    Raises
    ------
    ImageError
        The file cannot be read as a picture, or is refused.
    """
    (vector,) = feature_vectors([path], backbone, preprocessing, blocks)
    if isinstance(vector, ImageError):
        raise vector
    return vector


def feature_vectors(
    paths: Sequence[str | Path],
    backbone: Backbone,
    preprocessing: Preprocessing,
    blocks: Sequence[Block],
) -> list[NDArray[np.float32] | ImageError]:
    """Compute the feature vectors of a few image files, stage after stage.

    Decoding all of them before the network runs keeps each stage's code and weights in the
    processor's cache. The numbers are those of :func:`feature_vector`.

    Parameters
    ----------
    paths : sequence of str or Path
        Files; all of their network inputs are in memory at once.
    backbone, preprocessing, blocks
        As for :func:`feature_vector`.

    Returns
    -------
    list of (ndarray of float32, shape (d,)) or ImageError
        For each file its features, or why there are none.
    """
    inputs: list[NDArray[np.uint8]] = []
    errors: dict[int, ImageError] = {}
    for number, path in enumerate(paths):
        try:
            inputs.append(preprocess(read_picture(path), preprocessing))
        except ImageError as error:
            errors[number] = error
    # One picture's feature maps fit into the cache until they are pooled, eight pictures' do not.
    vectors = (pool_features(backbone.infer(image[np.newaxis]), blocks)[0] for image in inputs)
    return [errors.get(number) or next(vectors) for number in range(len(paths))]


def extract_features(
    backbone: Backbone,
    images: str | Path | Sequence[str | Path | Sample],
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    taps: str | None = None,
    pooling: str | None = None,
    dtype: str = "f16",
    about: Mapping[str, Any] | None = None,
    seed: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_failure: Callable[[Path, EngineError], None] | None = None,
    extraction: Extraction | None = None,
) -> formats.Container:
    """Run a backbone over images once and keep its pooled output in a container.

    Parameters
    ----------
    backbone : Backbone
        From :func:`engine.load_backbone`; as many images are worked on at once as it has streams.
    images : path, or sequence of paths or Samples
        Files and folders; a folder's sub-folders name the labels.
    out : str or Path
        The container to write; it appears when it is whole, and not before.
    manifest : str or Path, optional
        CSV with labels, patients, splits (see :func:`engine.manifest.read_manifest`).
    taps : str, optional
        Feature maps to pool, ``"block10,final"`` or with poolings of their own,
        ``"block10:mean+std,final:mean"``; default is the backbone's measured choice.
    pooling : str, optional
        Poolings for the taps that name none, ``"mean,max,std"``.
    dtype : {"f16", "f32", "i8"}, optional
        Element type in the file.
    about : mapping, optional
        Facts on the whole set for the notes: ``title``, ``attribution``, ``licence``, ``terms``,
        ``population``, ``age_range_years``, ``url``. Never facts on a person.
    seed : int, optional
        Order of the rows. Default: from the operating system, so that the order tells nothing.
    on_progress : callable, optional
        Called as ``on_progress(done, total)`` after each image.
    on_failure : callable, optional
        Called as ``on_failure(path, error)`` for each image that did not become a row.
    extraction : Extraction, optional
        Filled with counts and failures.

    Returns
    -------
    Container
        The written container, opened.

    Raises
    ------
    ManifestError
        No image, or a manifest that breaks its rules.
    SplitError
        A patient is marked for two of train, valid and test.
    ImageError
        Not one image could be used.
    NotesError
        A class, source or `about` that could identify someone, or an unknown key of `about`.
    ContainerError
        The output cannot be written.
    """
    if isinstance(images, str | Path):
        images = [images]
    samples = [image for image in images if isinstance(image, Sample)]
    paths = [image for image in images if not isinstance(image, Sample)]
    if paths or manifest is not None or not samples:
        samples += collect_samples(paths, manifest)
    preprocessing = Preprocessing.from_dict(backbone.preprocessing)
    blocks = choose_blocks(backbone, taps, pooling)
    table = _Table(samples)
    result = extraction if extraction is not None else Extraction()
    notes: dict[str, Any] = {
        "format": "hilum-notes",
        "version": 1,
        "classes": list(table.classes),
        "multilabel": table.multilabel,
        "backbone": {"name": backbone.name, "sha256": backbone.digest},
        "preprocessing": preprocessing.to_dict(),
        "blocks": blocks_to_notes(blocks),
        "head": {"kind": "linear"},
    }
    if table.sources:
        notes["sources"] = list(table.sources)
    if about:
        notes["about"] = dict(about)
    # A class name that looks like a date is refused now, not after an hour of work.
    formats.validate_notes(notes, dim=feature_width(blocks))

    order = np.random.default_rng(seed if seed is not None else secrets.randbits(128))
    samples = [samples[index] for index in order.permutation(len(samples))]

    with formats.ContainerWriter(
        out,
        dim=feature_width(blocks),
        dtype=dtype,
        expected_rows=len(samples),
        backbone_digest=backbone.digest,
        preprocessing_digest=preprocessing.digest,
    ) as writer:

        def work(chunk: Sequence[Sample]) -> list[NDArray[np.float32] | ImageError]:
            paths = [sample.path for sample in chunk]
            return feature_vectors(paths, backbone, preprocessing, blocks)

        n_chunk = max(1, min(IMAGES_PER_CHUNK, len(samples) // backbone.n_streams))
        chunks = [samples[at : at + n_chunk] for at in range(0, len(samples), n_chunk)]
        done = 0
        for chunk, vectors in zip(chunks, in_order(work, chunks, backbone.n_streams), strict=True):
            failures = _append(writer, table, chunk, vectors)
            for sample in chunk:
                failure = failures.get(sample.path)
                if failure is None:
                    result.n_rows += 1
                else:
                    result.failures.append((sample.path, failure))
                    if on_failure is not None:
                        on_failure(sample.path, failure)
                done += 1
                if on_progress is not None:
                    on_progress(done, len(samples))
        if result.n_rows == 0:
            path, first = result.failures[0]
            raise ImageError(
                path,
                f"none of the {len(samples)} images could be used, so nothing was written; "
                f"the first failed with: {first}",
            )
        notes["n_refused"] = len(result.failures)
        writer.seal(notes, n_values=table.n_values())
    return formats.open_container(out)


def _append(
    writer: formats.ContainerWriter,
    table: _Table,
    chunk: Sequence[Sample],
    vectors: Sequence[NDArray[np.float32] | ImageError],
) -> dict[Path, ImageError]:
    """Write the rows of a chunk, all at once where they fit; return what did not become a row."""
    failures: dict[Path, ImageError] = {}
    rows: list[tuple[Path, NDArray[np.float32], dict[str, NDArray[Any]]]] = []
    for sample, vector in zip(chunk, vectors, strict=True):
        if isinstance(vector, ImageError):
            failures[sample.path] = vector
        else:
            rows.append((sample.path, vector, table.columns_of(sample)))
    if not rows:
        return failures
    names = rows[0][2]
    columns = {name: np.concatenate([row[2][name] for row in rows]) for name in names}
    try:
        writer.append(np.stack([row[1] for row in rows]), **columns)
    except ContainerError:
        raise
    except ValueError:  # a feature that f16 cannot hold: its image's fault, not the others'
        for path, vector, own in rows:
            try:
                writer.append(vector[np.newaxis], **own)
            except ContainerError:
                raise
            except ValueError as too_large:
                failures[path] = ImageError(path, str(too_large))
    return failures


def tap_names(taps: str) -> tuple[str, ...]:
    """Read the names of the taps out of a ``--taps`` text.

    Parameters
    ----------
    taps : str
        ``"block10:mean+std,final"``.

    Returns
    -------
    tuple of str
        Each once, in their order.
    """
    return tuple(dict.fromkeys(part.partition(":")[0].strip() for part in taps.split(",")))


def choose_blocks(
    backbone: Backbone, taps: str | None = None, pooling: str | None = None
) -> tuple[Block, ...]:
    """Turn the texts of ``--taps`` and ``--pooling`` into the blocks of a feature vector.

    Parameters
    ----------
    backbone : Backbone
        Knows its taps and its measured default.
    taps : str, optional
        Default: the backbone's own choice; with `pooling` given, the taps of that choice.
    pooling : str, optional
        Comma-separated poolings for taps that name none.

    Returns
    -------
    tuple of Block
        In the order of the vector.

    Raises
    ------
    MismatchError
        A tap or pooling the backbone does not have; the message lists the valid ones.
    """
    channels = {name: tap.channels for name, tap in backbone.taps.items()}
    if (taps is not None and not taps.strip()) or (pooling is not None and not pooling.strip()):
        raise MismatchError("taps and pooling must name at least one; leave them out for defaults")
    if taps is not None:
        for tap in tap_names(taps):
            if tap not in channels and any(tap == known["name"] for known in backbone.card["taps"]):
                raise MismatchError(
                    f"backbone {backbone.name} was loaded without tap {tap!r}; load it with "
                    f"taps={list(tap_names(taps))}"
                )
    if taps is None:
        taps = backbone.default_taps
        if pooling is not None:
            taps = ",".join(tap_names(taps))
    return parse_taps(taps, pooling, channels)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], n_workers: int
) -> Iterator[Result]:
    """Yield the results of a few threads in the order of the items.

    Decoding, inference and pooling all release the interpreter lock, so each thread keeps a core
    busy with whatever stage its image is in: stages overlap without queues between them.

    Parameters
    ----------
    work : callable
        Called as ``work(item)`` in one of the threads; what it raises is raised here.
    items : iterable
        May be endless: at most a few items a thread are taken ahead of the results.
    n_workers : int
        Number of threads; with one, the caller's does the work.

    Yields
    ------
    object
        ``work(item)`` for each item.
    """
    if n_workers == 1:
        yield from map(work, items)
        return
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="hilum")
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= ITEMS_IN_FLIGHT_PER_WORKER * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Table:
    """Turns what is known of samples into the container's columns.

    Group numbers are given in the order in which rows are written. The rows are shuffled, so the
    numbers are dense, and random with respect to everything outside the file.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.has_labels = any(sample.labels is not None for sample in samples)
        names = {
            label.removesuffix(UNCERTAIN_SUFFIX)
            for sample in samples
            for label in sample.labels or ()
        }
        self.classes = tuple(sorted(names))
        self.multilabel = any(
            len(sample.labels or ()) > 1
            or any(label.endswith(UNCERTAIN_SUFFIX) for label in sample.labels or ())
            for sample in samples
        )
        if self.has_labels and not self.multilabel:
            bare = [sample for sample in samples if not sample.labels]
            if bare:
                raise ManifestError(
                    bare[0].path, "has no label while others have one; label all images or none"
                )
        patients = [sample.patient for sample in samples]
        self.has_groups = any(patient is not None for patient in patients)
        self.has_splits = any(sample.split for sample in samples)
        self.has_sex = any(sample.sex for sample in samples)
        self.has_age = any(sample.age != Sample(Path()).age for sample in samples)
        self.has_projection = any(sample.projection for sample in samples)
        named = sorted({sample.source for sample in samples if sample.source is not None})
        self.sources: tuple[str, ...] = ()
        if named:
            missing = any(sample.source is None for sample in samples)
            self.sources = (UNKNOWN_SOURCE, *named) if missing else tuple(named)
        self._groups: dict[str, int] = {}
        self._n_groups = 0
        _check_splits(samples)

    def columns_of(self, sample: Sample) -> dict[str, NDArray[Any]]:
        columns: dict[str, NDArray[Any]] = {}
        if self.has_labels:
            columns["label"] = self._label(sample)
        if self.has_splits:
            columns["split"] = np.array([SPLIT_CODES[sample.split]], np.uint8)
        if self.has_groups:
            columns["group"] = np.array([self._group(sample)], np.uint32)
        if self.sources:
            index = self.sources.index(sample.source or UNKNOWN_SOURCE)
            columns["source"] = np.array([index], np.uint8)
        if self.has_sex:
            columns["sex"] = np.array([sample.sex], np.uint8)
        if self.has_age:
            columns["age"] = np.array([sample.age], np.uint8)
        if self.has_projection:
            columns["projection"] = np.array([sample.projection], np.uint8)
        return columns

    def _label(self, sample: Sample) -> NDArray[Any]:
        labels = sample.labels or ()
        if not self.multilabel:
            return np.array([self.classes.index(labels[0])], np.uint16)
        row = np.zeros((1, len(self.classes)), np.int8)
        for label in labels:
            name = label.removesuffix(UNCERTAIN_SUFFIX)
            row[0, self.classes.index(name)] = 1 if name == label else -1
        return row

    def _group(self, sample: Sample) -> int:
        if sample.patient is not None and sample.patient in self._groups:
            return self._groups[sample.patient]
        number = self._n_groups  # an image without a patient is a group of its own
        self._n_groups += 1
        if sample.patient is not None:
            self._groups[sample.patient] = number
        return number

    def n_values(self) -> dict[str, int]:
        """Count the values of each column that has a fixed range."""
        counts: dict[str, int] = {}
        if self.has_labels and not self.multilabel:
            counts["label"] = len(self.classes)
        if self.has_groups:
            counts["group"] = self._n_groups
        if self.sources:
            counts["source"] = len(self.sources)
        return counts


def _check_splits(samples: Sequence[Sample]) -> None:
    """Refuse a patient on two sides; in a marked set, rows that are not marked are learned from."""
    if not any(sample.split for sample in samples):
        return
    seen: dict[str, Sample] = {}
    for sample in samples:
        if sample.patient is None:
            continue
        first = seen.setdefault(sample.patient, sample)
        if (first.split or "train") != (sample.split or "train"):
            where = (
                f"lines {first.line} and {sample.line}"
                if first.line is not None
                else f"{first.path} and {sample.path}"
            )
            raise SplitError(
                f"one patient is marked {first.split or 'nothing (train)'} and "
                f"{sample.split or 'nothing (train)'} ({where}); all images of a patient belong "
                "to one split, otherwise the test measures memory"
            )
