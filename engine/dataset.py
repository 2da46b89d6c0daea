"""The rows of one or several containers that are learned from or judged, found sound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from engine.errors import MismatchError, SplitError
from engine.pooling import FLOOR_TAPS, Block, blocks_from_notes, network_blocks
from engine.rows import Feed, Rows, Spans, piece_rows, spans_width
from engine.splits import check_groups_apart
from engine.work import Work
from formats import SPLITS
from formats.container import AGE_UNKNOWN

if TYPE_CHECKING:
    from formats import Container

__all__ = [
    "Dataset",
    "age_range",
    "as_containers",
    "check_finite",
    "check_marks",
    "chosen_blocks",
    "chosen_spans",
    "count_sources",
    "join_about",
    "learning_rows",
    "load_rows",
    "open_rows",
    "originals_of",
    "parents_of",
    "shorten",
    "sides",
]

_NO_SOURCE = -1


@dataclass(frozen=True)
class Dataset:
    """Rows of one or several containers, withdrawn ones left out."""

    containers: tuple[Container, ...]
    features: Rows
    labels: NDArray[Any]
    groups: NDArray[np.int64]
    splits: NDArray[np.uint8]
    views: NDArray[np.uint8]
    rows: NDArray[np.int64]
    origin: NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    #: What each row counts beside its class's weight, float64 (n,); ones unless given.
    weights: NDArray[np.float64]
    #: What the columns of `features` are.
    blocks: tuple[Block, ...]
    #: Index into `source_names`, int64 (n,), -1 where a container has none; None without any.
    sources: NDArray[np.int64] | None = None
    #: Names over all containers: equal names are one source.
    source_names: tuple[str, ...] = ()
    #: As in a container, uint8 (n,), with what means unknown where a container has none.
    sexes: NDArray[np.uint8] | None = None
    ages: NDArray[np.uint8] | None = None
    projections: NDArray[np.uint8] | None = None
    #: Width of the features a head learns from, where `features` are a floor's.
    head_dim: int | None = None

    @property
    def width(self) -> int:
        """Columns that decide how rows are chosen by: a floor is judged by its head's rows."""
        return self.features.dim if self.head_dim is None else self.head_dim

    @property
    def where(self) -> str:
        """The files, for messages."""
        return ", ".join(str(container.path) for container in self.containers)

    @property
    def multilabel(self) -> bool:
        """Whether each label is decided on its own."""
        return self.labels.ndim == 2


def as_containers(container: Container | Sequence[Container]) -> tuple[Container, ...]:
    """Return one container or several as several; none is refused."""
    containers = tuple(container) if isinstance(container, Sequence) else (container,)
    if not containers:
        raise SplitError("no container given; expected at least one .hilum file")
    return containers


def chosen_blocks(container: Container, floor: str | None = None) -> tuple[Block, ...]:
    """Return the blocks a head learns from, or those of a floor, laid out from column 0.

    Parameters
    ----------
    container : Container
        The file.
    floor : str, optional
        One of `engine.pooling.FLOOR_TAPS`; None takes all blocks that are none.

    Returns
    -------
    tuple of Block
        Without gaps where a floor, or a container that has some, is asked for; else as stored.
    """
    blocks = blocks_from_notes(container.blocks)
    if floor is None and not any(block.tap in FLOOR_TAPS for block in blocks):
        return blocks
    chosen, offset = [], 0
    for block in _wanted(blocks, floor):
        chosen.append(replace(block, offset=offset))
        offset += block.width
    return tuple(chosen)


def chosen_spans(container: Container, floor: str | None = None) -> Spans | None:
    """Return where the columns of `chosen_blocks` are; None means all columns.

    Raises
    ------
    SplitError
        The container has no block to learn from, or no block of the floor.
    """
    blocks = blocks_from_notes(container.blocks)
    if floor is None and not any(block.tap in FLOOR_TAPS for block in blocks):
        return None
    wanted = _wanted(blocks, floor)
    if not wanted:
        found = ", ".join(block.name for block in blocks) or "none"
        what = f"feature block of the floor {floor!r}" if floor else "feature block to learn from"
        cure = f"extract with --floors {floor}" if floor else "extract the features again"
        raise SplitError(f"{container.path}: has no {what}; found: {found}; {cure}")
    return [(block.offset, block.offset + block.width) for block in wanted]


def _wanted(blocks: Sequence[Block], floor: str | None) -> list[Block]:
    if floor is None:
        return list(network_blocks(blocks))
    return [block for block in blocks if block.tap == floor]


def _kind_of_labels(container: Container) -> str:
    return "multi-label" if container.multilabel else "one class of several"


def _check_alike(containers: Sequence[Container]) -> None:
    """Refuse containers whose rows do not mean the same; blocks not learned from may differ."""
    first = containers[0]
    for other in containers[1:]:
        for what, one, two in (
            ("backbone", first.backbone_digest, other.backbone_digest),
            ("preprocessing", first.preprocessing_digest, other.preprocessing_digest),
            ("kind of labels", _kind_of_labels(first), _kind_of_labels(other)),
            ("classes", ", ".join(first.classes), ", ".join(other.classes)),
            (
                "feature blocks",
                [block.name for block in chosen_blocks(first)],
                [block.name for block in chosen_blocks(other)],
            ),
            (
                "feature width",
                spans_width(first, chosen_spans(first)),
                spans_width(other, chosen_spans(other)),
            ),
        ):
            if one != two:
                raise MismatchError(
                    f"{first.path} and {other.path} differ in {what}: {shorten(one)} and "
                    f"{shorten(two)}; expected the same in both; extract both with the same "
                    "backbone, preprocessing, taps and labels"
                )


def _row_names(
    features: Rows, number: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return what tells rows apart: digests of their features, and of their keys where they have.

    Of 64 bits and in arrays: sets of a million rows took 300 MB. Two of ten million different rows
    in each of two containers pass for the same with a probability of 1 in 200,000.
    """

    def digest(data: Any) -> bytes:
        return hashlib.blake2b(data, digest_size=8).digest()

    keys = features.containers[number].sample_keys
    of_features, of_keys = bytearray(), bytearray()
    step = piece_rows(features.dim)
    room = np.empty((step, features.dim), np.float32)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        features.read_from(number, piece, room[: len(piece)])
        for row in room[: len(piece)]:
            of_features += digest(row)
        if keys is not None:
            for key in keys[piece]:
                if key.any():
                    of_keys += digest(key)
    return np.frombuffer(of_features, np.uint64), np.frombuffer(of_keys, np.uint64)


def _check_apart(features: Rows, chosen: Sequence[NDArray[np.int64]], work: Work) -> None:
    """Refuse images that are in two containers, where at least one of the two is chosen.

    Patients of two containers are taken for different people, so an image in both would be learned
    from in one fold and judged in another. Rows that are not chosen, of the test split, count too:
    they will judge the head.
    """
    named = []
    containers = features.containers
    for number, (container, rows) in enumerate(zip(containers, chosen, strict=True)):
        work.report(number / len(containers), f"looking for images of {container.path.name}")
        others = np.setdiff1d(container.rows(), rows)
        named.append((_row_names(features, number, rows), _row_names(features, number, others)))
    for i, (mine, my_others) in enumerate(named):
        for j, (theirs, their_others) in enumerate(named[:i]):
            # An image may be known by its features, its key or both.
            count = max(
                len(
                    np.union1d(
                        np.intersect1d(mine[kind], np.union1d(theirs[kind], their_others[kind])),
                        np.intersect1d(theirs[kind], my_others[kind]),
                    )
                )
                for kind in (0, 1)
            )
            if count:
                raise MismatchError(
                    f"{containers[j].path} and {containers[i].path} have {count} image(s) in "
                    "common, found by identical features or sample keys; expected different "
                    "patients in each container, or figures would be too good; leave one of the "
                    "two out, or extract it again without the images of the other"
                )


def _check_sound(containers: Sequence[Container], features: Rows, work: Work) -> None:
    """Refuse the same container twice, and damaged ones: opening reads no features."""
    seen: dict[str, Container] = {}
    for container in containers:
        if container.uuid in seen:
            raise MismatchError(
                f"{seen[container.uuid].path} and {container.path} are the same container (uuid "
                f"{container.uuid[:12]}...); its patients would be learned from and judged at "
                "once; expected different patients in each container; leave one of the two out"
            )
        seen[container.uuid] = container
    n = len(containers)
    for number, container in enumerate(features.containers):
        part = work.part(number / n, (number + 1) / n, f"checking {container.path.name}")

        def said(done: int, total: int, part: Work = part) -> None:
            part.report(done / max(total, 1), "")

        container.verify(said)


def check_finite(
    features: Rows,
    containers: Sequence[Container],
    rows: NDArray[np.int64],
    origin: NDArray[np.int64],
    work: Work,
) -> None:
    """Refuse features that are NaN or infinite, by the row they are in.

    Parameters
    ----------
    features : Rows
        Chosen.
    containers : sequence of Container
        For the message.
    rows, origin : int64 (n,)
        Row in its container and number of the container.
    work : Work
        Who looks.

    Raises
    ------
    SplitError
        The first such row.
    """
    bad = _not_finite(features, work)
    if len(bad):
        raise SplitError(
            f"{containers[origin[bad[0]]].path}: row {rows[bad[0]]} (and {len(bad) - 1} more) has "
            "features that are NaN or infinite; expected finite ones; extract the features again"
        )


def _not_finite(features: Rows, work: Work) -> NDArray[np.int64]:
    """Return the rows with a NaN or an infinity."""
    feed = Feed(features, np.arange(len(features)))
    finite = np.empty(len(feed), np.bool_)

    def look(part: int) -> None:
        for rows, X in feed.pieces(part):
            np.isfinite(X).all(axis=1, out=finite[rows])

    for part, _ in enumerate(work.crew.map(look, feed.n_parts)):
        work.report((part + 1) / feed.n_parts, "")
    return np.flatnonzero(~finite)


def _nth(number: int, n: int) -> str:
    """Name one of the containers given, without its file's name."""
    return "the container" if n == 1 else f"container {number + 1} of {n}"


def shorten(value: object) -> str:
    """Return a value for a message, a digest by its beginning."""
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text


def open_rows(containers: Sequence[Container], floor: str | None = None) -> Rows:
    """Open the columns a head learns from, or those of a floor, of no rows yet."""
    return Rows(containers, [chosen_spans(container, floor) for container in containers])


def load_rows(
    containers: tuple[Container, ...],
    features: Rows,
    choose: Callable[[Container], NDArray[np.int64]],
    work: Work,
    *,
    sample_weights: npt.ArrayLike | None = None,
) -> Dataset:
    """Choose rows of every container; patients of two containers are never the same.

    Parameters
    ----------
    containers : tuple of Container
        The files.
    features : Rows
        Of the columns that `chosen_spans` names; filled.
    choose : callable
        Returns the rows wanted of a container.
    work : Work
        Who reads, and who hears of it.
    sample_weights : array (N,), optional
        What each row counts, of all rows of all containers one after another.

    Returns
    -------
    Dataset
        Found sound.

    Raises
    ------
    SplitError, MismatchError, Corrupt, ValueError
        See `engine.training.fit_head`.
    """
    _check_alike(containers)
    weights = _check_weights(containers, sample_weights)
    _check_sound(containers, features, work.part(0.0, 0.5, ""))
    parts: dict[str, list[NDArray[Any]]] = {
        key: [] for key in ("labels", "groups", "splits", "views", "rows", "origin")
    }
    notes: list[str] = []
    n_groups = 0
    if not any(len(container.rows()) for container in containers):
        where = ", ".join(str(container.path) for container in containers)
        raise SplitError(
            f"{where}: every row is withdrawn, so only one class has rows to learn from (none); "
            "expected images of at least two classes; extract images that may be used"
        )
    for number, container in enumerate(containers):
        labels = container.labels
        if labels is None:
            raise SplitError(
                f"{container.path}: has no labels, so nothing can be learned or judged; expected "
                "a label column; extract again with a manifest that has a column named label, or "
                "with one sub-folder for each class"
            )
        rows = choose(container)
        _check_labels(container, labels[rows])
        views = container.views
        row_views = np.zeros(len(rows), np.uint8) if views is None else views[rows]
        groups = container.groups
        if groups is not None:
            row_groups = groups[rows].astype(np.int64)
            if container.notes.get("views", {}).get("group") == "image":
                # These groups only keep an image's views together.
                notes.append(
                    f"{_nth(number, len(containers))} has no patients: each image was taken for "
                    "another patient; if some patients have several images, figures are too good"
                )
        elif row_views.any():
            raise SplitError(
                f"{container.path}: has augmented views but no patients, so views of one image "
                "could fall on both sides of a split; extract again with a patient column"
            )
        else:
            row_groups = rows
            notes.append(
                # Notes travel with the head: a file's name may be a person's.
                f"{_nth(number, len(containers))} has no patients: every row was taken for another "
                "patient; if some patients have several images, figures are too good"
            )
        _check_views(container, row_groups, row_views)
        parts["labels"].append(labels[rows])
        parts["groups"].append(row_groups + n_groups)
        n_groups += int(row_groups.max(initial=-1)) + 1
        splits = container.splits
        parts["splits"].append(np.zeros(len(rows), np.uint8) if splits is None else splits[rows])
        parts["views"].append(row_views)
        parts["rows"].append(rows)
        parts["origin"].append(np.full(len(rows), number, np.int64))
    joined = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    if len(containers) > 1:
        _check_apart(features, parts["rows"], work.part(0.5, 0.8, "checking"))
        notes.append(
            "patients of different containers were taken for different people; if some are in "
            "several, figures are too good"
        )
    features.choose(joined["rows"], joined["origin"], work.crew)
    part = work.part(0.8, 1.0, "checking features")
    check_finite(features, containers, joined["rows"], joined["origin"], part)
    labels = joined["labels"]
    sources, source_names = _join_sources(containers, parts["rows"])
    if len(containers) > 1 and (sources is None or (sources == _NO_SOURCE).any()):
        notes += _of_one_container(labels, joined["origin"], containers)
    starts = np.cumsum([0, *(container.n_rows for container in containers)])
    return Dataset(
        containers=containers,
        features=features,
        labels=labels.astype(np.int8 if labels.ndim == 2 else np.int64),
        groups=joined["groups"],
        splits=joined["splits"],
        views=joined["views"],
        rows=joined["rows"],
        origin=joined["origin"],
        classes=containers[0].classes,
        notes=tuple(notes),
        weights=weights[starts[joined["origin"]] + joined["rows"]],
        blocks=chosen_blocks(containers[0]),
        sources=sources,
        source_names=source_names,
        sexes=_join_column([each.sexes for each in containers], parts["rows"], 0),
        ages=_join_column([each.ages for each in containers], parts["rows"], AGE_UNKNOWN),
        projections=_join_column([each.projections for each in containers], parts["rows"], 0),
    )


def _of_one_container(
    labels: NDArray[Any], origin: NDArray[np.int64], containers: Sequence[Container]
) -> list[str]:
    """Say which classes come from one container, which is a source where none is named."""
    found = []
    for c, name in enumerate(containers[0].classes):
        present, absent = (
            (labels[:, c] == 1, labels[:, c] == 0)
            if labels.ndim == 2
            else (labels == c, labels != c)
        )
        homes = np.unique(origin[present])
        if len(homes) == 1 and (origin[absent] != homes[0]).any():
            found.append(
                f"every image of {name!r} comes from {_nth(int(homes[0]), len(containers))}: the "
                "head may tell the containers apart instead of the finding"
            )
    return found


def _check_weights(
    containers: Sequence[Container], sample_weights: npt.ArrayLike | None
) -> NDArray[np.float64]:
    """Return the weights of all rows of all containers."""
    n_rows = [container.n_rows for container in containers]
    if sample_weights is None:
        return np.ones(sum(n_rows))
    weights = np.array(sample_weights, np.float64)
    if weights.shape != (sum(n_rows),):
        raise ValueError(
            f"sample_weights is of shape {weights.shape}; expected ({sum(n_rows)},): one for each "
            "row of the containers, one container after another, withdrawn rows too"
        )
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0.0)))
    if len(wrong):
        raise ValueError(
            f"sample_weights[{wrong[0]}] is {weights[wrong[0]]} (and {len(wrong) - 1} more); "
            "expected finite numbers of at least 0"
        )
    if not weights.any():
        raise ValueError("sample_weights are all 0; expected some above")
    return weights


def _check_labels(container: Container, labels: NDArray[Any]) -> None:
    """Refuse labels that are not in the list of classes."""
    k = len(container.classes)
    if labels.ndim == 2:
        wrong = np.flatnonzero(((labels < -2) | (labels > 1)).any(axis=1))
        expected = "1, 0, -1 (uncertain) or -2 (not assessed)"
        found = labels[wrong[0]].tolist() if len(wrong) else None
    else:
        wrong = np.flatnonzero(labels >= k)
        expected = f"0 to {k - 1}, of {', '.join(container.classes)}"
        found = int(labels[wrong[0]]) if len(wrong) else None
    if len(wrong):
        raise SplitError(
            f"{container.path}: {len(wrong)} row(s) with a label beyond the list of classes, the "
            f"first {found}; expected {expected}; extract again with the right classes"
        )


def _check_views(container: Container, groups: NDArray[np.int64], views: NDArray[np.uint8]) -> None:
    """Refuse views without an original of the same patient: it may be judged elsewhere."""
    astray = np.setdiff1d(groups[views > 0], groups[views == 0])
    if len(astray):
        raise SplitError(
            f"{container.path}: {len(astray)} patient(s) with augmented views but no original "
            f"image (the first is group {astray[0]}); expected a view to have the patient of its "
            "original, or one would be learned from and the other judged; extract again"
        )


def _join_sources(
    containers: Sequence[Container], rows: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return sources as indices into one list of names."""
    names: dict[str, int] = {}
    parts = []
    for container, own in zip(containers, rows, strict=True):
        if container.sources is None:
            parts.append(np.full(len(own), _NO_SOURCE, np.int64))
            continue
        values = container.sources[own]
        place = np.full(256, _NO_SOURCE, np.int64)
        for value in np.unique(values):
            known = container.sources_names
            name = known[value] if value < len(known) else f"source {value}"
            place[value] = names.setdefault(name, len(names))
        parts.append(place[values])
    return (np.concatenate(parts) if names else None), tuple(names)


def _join_column(
    columns: Sequence[NDArray[np.uint8] | None], rows: Sequence[NDArray[np.int64]], unknown: int
) -> NDArray[np.uint8] | None:
    """Return one column over all containers, None where none of them has it."""
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(len(own), unknown, np.uint8) if column is None else column[own]
            for column, own in zip(columns, rows, strict=True)
        ]
    )


def check_marks(container: Container) -> None:
    """Refuse a patient on two sides; rows that are not marked are learned from like train."""
    splits, groups = container.splits, container.groups
    if splits is None or groups is None:
        return
    rows = container.rows()
    side_of_mark = np.array([0, 0, 1, 2], np.int64)
    check_groups_apart(
        groups[rows].astype(np.int64),
        side_of_mark[splits[rows]],
        ("train or not marked", "valid", "test"),
        where=str(container.path),
    )


def learning_rows(container: Container) -> NDArray[np.int64]:
    """Return the rows that are not marked test."""
    check_marks(container)
    if container.splits is None:
        return container.rows()
    return container.rows(("none", "train", "valid"))


def sides(data: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the rows to learn from and the rows marked valid, None without any."""
    marked = data.splits == SPLITS.index("valid")
    return np.flatnonzero(~marked), np.flatnonzero(marked) if marked.any() else None


def age_range(data: Dataset, rows: NDArray[np.int64]) -> list[int] | None:
    """Return the youngest and oldest age learned from: of the rows, else of the notes."""
    low: list[int] = []
    for number, container in enumerate(data.containers):
        ages = container.ages
        own = data.rows[rows[data.origin[rows] == number]]
        known = ages[own][ages[own] != 255] if ages is not None else np.empty(0, np.uint8)
        if len(known):
            low += [int(known.min()), int(known.max())]
        else:
            low += container.notes.get("about", {}).get("age_range_years", [])
    return [min(low), max(low)] if low else None


def count_sources(data: Dataset, rows: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """Return rows by source and class: a class that comes from one source is learned as such."""
    table: dict[str, dict[str, int]] = {}
    if data.sources is None:
        return table
    for value, name in enumerate(data.source_names):
        labels = data.labels[rows[data.sources[rows] == value]]
        if len(labels):
            table[name] = {
                class_name: int((labels[:, c] == 1 if labels.ndim == 2 else labels == c).sum())
                for c, class_name in enumerate(data.classes)
            }
    return table


def parents_of(container: Container) -> list[str]:
    """Return the uuids of the containers it was made from."""
    return list(container.notes.get("derived_from", ()))


def join_about(containers: Sequence[Container]) -> dict[str, Any]:
    """Return what the containers say of themselves; differing texts are joined."""
    about: dict[str, Any] = {}
    for container in containers:
        for key, value in container.notes.get("about", {}).items():
            if key == "age_range_years":
                continue
            if key not in about:
                about[key] = value
            elif value not in str(about[key]).split("; "):
                about[key] = f"{about[key]}; {value}"
    return about


def originals_of(data: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave augmented views out: they never judge."""
    originals: NDArray[np.int64] = rows[data.views[rows] == 0]
    return originals
