"""From images to a container: decode, run the backbone, pool, write."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from engine.images import (
    JoinedPreprocessing,
    Preprocessing,
    preprocess,
    read_picture,
    read_preprocessing,
)
from engine.inference import feature_maps, in_order, network_inputs
from engine.jit import MANY
from engine.jit import load as load_kernels
from engine.manifest import UNCERTAIN_SUFFIX, Sample, collect_samples
from engine.pooling import (
    FLOOR_SIDE,
    Block,
    add_floors,
    blocks_to_notes,
    feature_width,
    floor_blocks,
    floor_values,
    network_blocks,
    parse_floors,
    parse_taps,
    pool_features,
)
from engine.views import View, apply_view, draw_views, views_to_notes

if TYPE_CHECKING:
    from engine.backbone import Backbone

__all__ = [
    "Extraction",
    "extract_features",
    "feature_vector",
    "feature_views",
]

SPLIT_CODES = {"": 0, "train": 1, "valid": 2, "test": 3}
# Images decoded before the network runs. Each change from decoding to the network and back finds
# the caches of the processor filled by the other: with 8, the processor's time for 240 X-rays was
# 5 to 8 % above that with 30. Only network inputs wait, of 50 kB each.
IMAGES_PER_CHUNK = 32
UNKNOWN_SOURCE = "unknown"
# What a training picture shows is for the owner of the set to say: a header's word on it would
# refuse what a manifest lists on purpose. Prediction has only the header.
_SHOWN_BY_MANIFEST = ("body_part", "lateral")
# Pixels of the whole picture as they are, whatever its shape: a floor shall see what gives a
# source away, such as exposure, borders and markers, which a preprocessing may take out.
_FLOOR_RULES = Preprocessing(height=FLOOR_SIDE, width=FLOOR_SIDE, fit="stretch")
# So many other images are looked for before a missing one is taken for the loss of all.
_NEIGHBOURS = 16
_KEY_BYTES = 16


@dataclass
class Extraction:
    """What an extraction did beside writing its container.

    Attributes
    ----------
    n_images : int
        Images there are in all.
    n_done : int
        Images worked on, by an earlier run that was resumed too.
    n_rows : int
        Images that became rows; with views, each of them several.
    failures : list of (Path, EngineError)
        Images that did not, each with its error; those of this run.
    n_resumed : int
        Images that an earlier run had worked on.
    n_failed_before : int
        Those of them that did not become rows.
    n_twice : int
        With sample keys: rows whose image file is that of an earlier row.
    n_contradicting : int
        Those of them with another patient, label or split than that row.
    has_patients : bool
        Whether patients were named: groups are patients then, and images otherwise.
    unfinished : Path or None
        After an error: the file that keeps the rows for a run with ``resume``.
    """

    n_images: int = 0
    n_done: int = 0
    n_rows: int = 0
    failures: list[tuple[Path, EngineError]] = field(default_factory=list)
    n_resumed: int = 0
    n_failed_before: int = 0
    n_twice: int = 0
    n_contradicting: int = 0
    has_patients: bool = False
    unfinished: Path | None = None


def feature_vector(
    path: str | Path,
    backbone: Backbone,
    preprocessing: Preprocessing | JoinedPreprocessing,
    blocks: Sequence[Block],
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
    preprocessing : Preprocessing or JoinedPreprocessing
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
    vector: NDArray[np.float32] = feature_views(path, backbone, preprocessing, blocks, 0)[0]
    return vector


def feature_views(
    path: str | Path,
    backbone: Backbone,
    preprocessing: Preprocessing | JoinedPreprocessing,
    blocks: Sequence[Block],
    n_views: int,
    *,
    mirror: bool = False,
) -> NDArray[np.float32]:
    """Compute the feature vectors of one image file and of its augmented views.

    Parameters
    ----------
    path, backbone, preprocessing, blocks
        As for :func:`feature_vector`.
    n_views : int
        Views beside the original, those of :func:`engine.views.draw_views`, 0 to 32.
    mirror : bool
        Whether odd views are mirrored.

    Returns
    -------
    ndarray of float32, shape (n_views + 1, d)
        The original's first, bit for bit what :func:`feature_vector` gives; then the views'.

    Raises
    ------
    ImageError
        The file cannot be read as a picture, or is refused.
    """
    views = draw_views(n_views, mirror=mirror)
    (vectors,) = feature_vectors([path], backbone, preprocessing, blocks, views)
    if isinstance(vectors, ImageError):
        raise vectors
    return vectors


def feature_vectors(
    paths: Sequence[str | Path],
    backbone: Backbone,
    preprocessing: Preprocessing | JoinedPreprocessing,
    blocks: Sequence[Block],
    views: Sequence[View] = (),
) -> list[NDArray[np.float32] | ImageError]:
    """Compute the feature vectors of a few image files and their views, stage after stage.

    Decoding all of them before the network runs keeps each stage's code and weights in the
    processor's cache. The numbers are those of :func:`feature_views`.

    Parameters
    ----------
    paths : sequence of str or Path
        Files; all of their network inputs are in memory at once, their views are not.
    backbone, preprocessing, blocks
        As for :func:`feature_vector`.
    views : sequence of View
        Augmented views to compute beside the originals.

    Returns
    -------
    list of (ndarray of float32, shape (n_views + 1, d)) or ImageError
        For each file its features, or why there are none.
    """
    floors = floor_blocks(blocks)
    pictures: list[tuple[tuple[NDArray[np.uint8], ...], NDArray[np.uint8] | None]] = []
    errors: dict[int, ImageError] = {}
    for number, path in enumerate(paths):
        try:
            picture = read_picture(path, allow=_SHOWN_BY_MANIFEST)
            small = preprocess(picture, _FLOOR_RULES) if floors else None
            pictures.append((network_inputs(picture, preprocessing), small))
        except ImageError as error:
            errors[number] = error
    all_views = (View(), *views)
    vectors = (_vectors(backbone, *seen, blocks, all_views) for seen in pictures)
    return [errors.get(number) or next(vectors) for number in range(len(paths))]


def _vectors(
    backbone: Backbone,
    inputs: Sequence[NDArray[np.uint8]],
    small: NDArray[np.uint8] | None,
    blocks: Sequence[Block],
    views: Sequence[View],
) -> NDArray[np.float32]:
    """Compute a row for each view; one view's feature maps fit into the cache until pooled."""
    vectors = np.zeros((len(views), feature_width(blocks)), np.float32)
    pooled = network_blocks(blocks)
    for row, view in zip(vectors, views, strict=True):
        row[: feature_width(pooled)] = pool_features(feature_maps(backbone, inputs, view), pooled)
        if small is not None:
            seen = apply_view(small, view)[0]
            for block in floor_blocks(blocks):
                row[block.offset : block.offset + block.width] = floor_values(seen, block.tap)
    return vectors


def extract_features(
    backbone: Backbone,
    images: str | Path | Sequence[str | Path | Sample],
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    taps: str | None = None,
    pooling: str | None = None,
    views: int = 0,
    mirror: bool = False,
    floors: str | None = None,
    dtype: str = "f16",
    about: Mapping[str, Any] | None = None,
    seed: int | None = None,
    sample_key_secret: bytes | None = None,
    resume: bool = False,
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
    views : int
        Augmented views of each image beside the original (:mod:`engine.views`), 0 to 32: rows
        behind the image's own, of the same group, with their number in the column ``view``. An
        image without a patient is then a group of its own.
    mirror : bool
        Whether odd views are mirrored.
    floors : str, optional
        ``"border"``, ``"pixels"`` or both: blocks of pixels of the picture reduced to 64 x 64,
        against which heads are measured. A container with all pixels must not be shared.
    dtype : {"f16", "f32", "i8"}, optional
        Element type in the file.
    about : mapping, optional
        Facts on the whole set for the notes: ``title``, ``attribution``, ``licence``, ``terms``,
        ``population``, ``age_range_years``, ``url``. Never facts on a person.
    seed : int, optional
        Order of the rows; the same images, options and seed give the same file. Default: from the
        operating system, so that the order tells nothing.
    sample_key_secret : bytes, optional
        A secret of the site. Each row gets a key by which `formats.merge_containers` and
        `formats.withdraw_rows` know the same image again, and nobody without the secret does:
        HMAC-SHA-256 (RFC 2104) of the image file, its first 16 bytes.
    resume : bool
        Go on with a run that was killed or failed, if there is one: at most the images that were
        being worked on are extracted again, and the file is what that run would have written.
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
        The output cannot be written; an unfinished file is there and `resume` is false.
    MismatchError
        An unknown tap, pooling or floor, too many views, or the run to be resumed had other images,
        labels or options.

    Notes
    -----
    After an error, ``kill -9`` or a power cut the rows are kept in ``<out>.part`` and
    ``<out>.part.journal``, for `resume`. Images that changed meanwhile are not noticed.
    """
    if isinstance(images, str | Path):
        images = [images]
    samples = [image for image in images if isinstance(image, Sample)]
    paths = [image for image in images if not isinstance(image, Sample)]
    if paths or manifest is not None or not samples:
        samples += collect_samples(paths, manifest)
    preprocessing = read_preprocessing(backbone.preprocessing)
    blocks = add_floors(choose_blocks(backbone, taps, pooling), parse_floors(floors))
    drawn = draw_views(views, mirror=mirror)
    table = _Table(samples, views)
    result = extraction if extraction is not None else Extraction()
    result.has_patients = table.has_patients
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
    if views:
        notes["views"] = views_to_notes(views, mirror=mirror, patients=table.has_patients)
    if about:
        notes["about"] = dict(about)
    # A class name that looks like a date is refused now, not after an hour of work.
    formats.validate_notes(notes, dim=feature_width(blocks))

    job: dict[str, Any] = {
        "images": len(samples),
        "order": str(seed if seed is not None else secrets.randbits(128)),
        "names": _digest([os.path.abspath(sample.path) for sample in samples]),  # noqa: PTH100
        "table": _digest([replace(sample, path=Path(), line=None) for sample in samples]),
        "notes": _digest(notes),
        "keys": None if sample_key_secret is None else _key(sample_key_secret, b"").hex(),
    }
    if len(samples) > MANY:
        load_kernels()
    with formats.ContainerWriter(
        out,
        dim=feature_width(blocks),
        dtype=dtype,
        expected_rows=len(samples) * (1 + views),
        backbone_digest=backbone.digest,
        preprocessing_digest=preprocessing.digest,
        group_order="given",  # numbers are given in the order of the shuffled rows
        seed=seed,
        job=job,
        resume=resume,
    ) as writer:
        _check_job(writer, job, seed)
        if writer.finished:
            result.n_images = result.n_done = result.n_resumed = writer.n_items
            result.n_rows = writer.n_rows // (1 + views)
            result.n_failed_before = writer.n_items - result.n_rows
            return formats.open_container(out)
        order = np.random.default_rng(int((writer.job or job)["order"]))
        samples = [samples[index] for index in order.permutation(len(samples))]
        table.number_groups(samples)
        result.n_images = len(samples)
        result.n_done = result.n_resumed = writer.n_items
        result.n_rows = writer.n_rows // (1 + views)
        result.n_failed_before = writer.n_items - result.n_rows

        def work(chunk: range) -> tuple[list[NDArray[np.float32] | ImageError], list[bytes]]:
            paths = [samples[number].path for number in chunk]
            keys = []
            if sample_key_secret is not None:
                keys = [_file_key(sample_key_secret, path) for path in paths]
            return feature_vectors(paths, backbone, preprocessing, blocks, drawn), keys

        try:
            _extract_rows(
                writer, table, samples, work, backbone.n_streams, result, (on_progress, on_failure)
            )
            if result.n_rows == 0:
                writer.abandon()
                if not result.failures:
                    raise ImageError(
                        out,
                        f"none of the {len(samples)} images could be used, as the earlier run "
                        "said, so nothing was written; give the command without --resume to see "
                        "why",
                    )
                path, first = result.failures[0]
                raise ImageError(
                    path,
                    f"none of the {len(samples)} images could be used, so nothing was written; "
                    f"the first failed with: {first}",
                )
            notes["n_refused"] = len(result.failures) + result.n_failed_before
            writer.seal(notes, n_values=table.n_values())
        except BaseException:
            if writer.keeps:
                result.unfinished = Path(f"{out}.part")
                result.n_done = writer.n_items
                result.n_rows = writer.n_rows // (1 + views)
            raise
    container = formats.open_container(out)
    _count_twice(container, result)
    return container


def _count_twice(container: formats.Container, result: Extraction) -> None:
    """Count image files that are there more than once, as their keys tell."""
    if container.sample_keys is None:
        return
    rows = container.rows(views=False)
    _, first, image = np.unique(
        container.sample_keys[rows], axis=0, return_index=True, return_inverse=True
    )
    original = first[image.reshape(-1)]
    again = original != np.arange(len(rows))
    differs = np.zeros(len(rows), np.bool_)
    for name in ("group", "label", "split"):
        column = container.columns.get(name)
        if column is not None:
            other = column[rows] != column[rows][original]
            differs |= other.any(axis=1) if other.ndim == 2 else other
    result.n_twice = int(np.count_nonzero(again))
    result.n_contradicting = int(np.count_nonzero(again & differs))


def _extract_rows(
    writer: formats.ContainerWriter,
    table: _Table,
    samples: Sequence[Sample],
    work: Callable[[range], tuple[list[NDArray[np.float32] | ImageError], list[bytes]]],
    n_workers: int,
    result: Extraction,
    listeners: tuple[Callable[[int, int], None] | None, Callable[[Path, EngineError], None] | None],
) -> None:
    """Write the rows of all images that are not done yet."""
    on_progress, on_failure = listeners
    total = len(samples)
    if on_progress is not None and result.n_done:
        on_progress(result.n_done, total)
    chunks = _chunks(result.n_done, total, n_workers)
    for chunk, (vectors, keys) in zip(chunks, in_order(work, chunks, n_workers), strict=True):
        if result.n_rows and _has_vanished(samples, chunk, vectors):
            raise ImageError(
                samples[chunk[0]].path,
                f"is gone, and so are the {_NEIGHBOURS} images looked at beside it: the folder or "
                "drive was removed. Bring it back, and give the same command with --resume.",
            ) from OSError(errno.ENODEV, "gone")
        failures = _append(writer, table, samples, chunk, vectors, keys)
        for number in chunk:
            path = samples[number].path
            failure = failures.get(path)
            if failure is None:
                result.n_rows += 1
            else:
                result.failures.append((path, failure))
                if on_failure is not None:
                    on_failure(path, failure)
            result.n_done += 1
            if on_progress is not None:
                on_progress(result.n_done, total)


def _chunks(start: int, total: int, n_workers: int) -> list[range]:
    """Cut the images that are left into what a thread takes at a time.

    Smaller and smaller towards the end, so that no thread waits long for the last one of another.
    """
    chunks = []
    while start < total:
        n = max(1, min(IMAGES_PER_CHUNK, (total - start) // (2 * n_workers)))
        chunks.append(range(start, start + n))
        start += n
    return chunks


def _has_vanished(
    samples: Sequence[Sample], chunk: range, vectors: Sequence[NDArray[np.float32] | ImageError]
) -> bool:
    """Whether the images are gone as a whole, so that to go on would leave all of them out.

    One file that was deleted meanwhile is its own fault, and left out like any other.
    """
    # In the chunk of that moment some had been read already.
    if not any(isinstance(vector, ImageError) for vector in vectors):
        return False
    others = [(chunk[-1] + 1 + i) % len(samples) for i in range(_NEIGHBOURS)]
    return not any(
        os.path.exists(samples[number].path)  # noqa: PTH110 - Path.exists may raise
        for number in (*chunk, *others)
    )


def _digest(value: object) -> str:
    """Return a short name of what a run was begun with, to be compared and never read.

    So short that it tells two runs apart, but not one patient's identifier from all others.
    """
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


_JOB_WORDS = {
    "images": "number of images",
    "order": "seed",
    "names": "names of the images",
    "table": "labels, patients or other columns",
    "notes": "backbone, features, views, classes or --about",
    "keys": "secret of the sample keys",
}


def _check_job(writer: formats.ContainerWriter, job: Mapping[str, Any], seed: int | None) -> None:
    """Refuse to go on with the rows of another extraction."""
    if not writer.resumed or writer.job is None:
        return
    differing = [
        words
        for key, words in _JOB_WORDS.items()
        if writer.job.get(key) != job[key] and (key != "order" or seed is not None)
    ]
    if differing:
        raise MismatchError(
            f"{writer.path}.part: the unfinished run had another {'; another '.join(differing)}. "
            "Give what it was begun with, or delete this file to begin anew"
        )


def _key(secret: bytes, data: bytes) -> bytes:
    return hmac.digest(secret, data, "sha256")[:_KEY_BYTES]


def _file_key(secret: bytes, path: Path) -> bytes:
    """Return the key of an image file; zeros where it cannot be read, as it gives no row."""
    try:
        return _key(secret, path.read_bytes())
    except OSError:
        return bytes(_KEY_BYTES)


def _append(
    writer: formats.ContainerWriter,
    table: _Table,
    samples: Sequence[Sample],
    chunk: range,
    vectors: Sequence[NDArray[np.float32] | ImageError],
    keys: Sequence[bytes],
) -> dict[Path, ImageError]:
    """Write the rows of a chunk, all or none of it; return what did not become a row."""
    failures: dict[Path, ImageError] = {}
    rows: list[tuple[Path, NDArray[np.float32], dict[str, NDArray[Any]]]] = []
    for i, (number, views) in enumerate(zip(chunk, vectors, strict=True)):
        path = samples[number].path
        if isinstance(views, ImageError):
            failures[path] = views
            continue
        columns = table.columns_of(samples[number], number)
        if keys:
            columns["sample_key"] = np.frombuffer(keys[i], np.uint8).reshape(1, -1)
        columns = {name: np.repeat(values, len(views), axis=0) for name, values in columns.items()}
        if table.n_views:
            columns["view"] = np.arange(len(views), dtype=np.uint8)
        rows.append((path, views, columns))

    def write() -> None:
        features = np.concatenate([row[1] for row in rows]) if rows else np.empty((0, writer.dim))
        names = rows[0][2] if rows else {}
        columns = {name: np.concatenate([row[2][name] for row in rows]) for name in names}
        writer.append(features, n_items=len(chunk), **columns)

    try:
        write()
    except ContainerError:
        raise
    except ValueError:  # a feature that f16 cannot hold: its image's fault, not the others'
        fitting = []
        for row in rows:
            try:
                writer.check(row[1])
            except ValueError as too_large:
                failures[row[0]] = ImageError(row[0], str(too_large))
            else:
                fitting.append(row)
        if len(fitting) == len(rows):
            raise  # not a feature's fault
        rows = fitting
        write()
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


class _Table:
    """Turns what is known of samples into the container's columns.

    Group numbers are given in the order in which rows are written. The rows are shuffled, so the
    numbers are dense, and random with respect to everything outside the file.
    """

    def __init__(self, samples: Sequence[Sample], n_views: int = 0) -> None:
        self.n_views = n_views
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
        self.has_patients = any(sample.patient is not None for sample in samples)
        # The views of one image must not be learned from and judged, whoever it is of.
        self.has_groups = self.has_patients or n_views > 0
        self.has_splits = any(sample.split for sample in samples)
        self.has_sex = any(sample.sex for sample in samples)
        self.has_age = any(sample.age != Sample(Path()).age for sample in samples)
        self.has_projection = any(sample.projection for sample in samples)
        named = sorted({sample.source for sample in samples if sample.source is not None})
        self.sources: tuple[str, ...] = ()
        if named:
            missing = any(sample.source is None for sample in samples)
            self.sources = (UNKNOWN_SOURCE, *named) if missing else tuple(named)
        self._groups: list[int] = []
        _check_splits(samples)

    def number_groups(self, samples: Sequence[Sample]) -> None:
        """Give patients numbers in the order of the rows, before any image has been looked at.

        An image without a patient is a group of its own. The numbers of images that give no row
        are closed up when the container is sealed.
        """
        numbers: dict[object, int] = {}
        self._groups = [
            numbers.setdefault(row if sample.patient is None else sample.patient, len(numbers))
            for row, sample in enumerate(samples)
        ]

    def columns_of(self, sample: Sample, number: int) -> dict[str, NDArray[Any]]:
        """Return the columns of one image, `number` counting in the order of the rows."""
        columns: dict[str, NDArray[Any]] = {}
        if self.has_labels:
            columns["label"] = self._label(sample)
        if self.has_splits:
            columns["split"] = np.array([SPLIT_CODES[sample.split]], np.uint8)
        if self.has_groups:
            columns["group"] = np.array([self._groups[number]], np.uint32)
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

    def n_values(self) -> dict[str, int]:
        """Count the values of each column that has a fixed range."""
        counts: dict[str, int] = {}
        if self.has_labels and not self.multilabel:
            counts["label"] = len(self.classes)
        if self.has_groups:
            counts["group"] = max(self._groups, default=-1) + 1
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
