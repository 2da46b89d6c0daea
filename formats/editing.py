"""How containers become others: joined, cut down, without a patient, divided anew.

Every function verifies its sources first, writes a new file beside the old one, and names it only
when it is whole. The notes of the result say in ``derived_from`` which data sets it came from.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from formats._library import lib
from formats._rows import (
    COLUMNS,
    as_records,
    check_output,
    copy_columns,
    copy_notes,
    feature_digests,
    iter_pieces,
    join_by,
    join_patients,
    lineage,
    number_records,
    open_verified,
    withdrawn_rows,
    write_rows,
)
from formats.container import AGE_UNKNOWN, SPLITS, Container
from formats.errors import ContainerError
from formats.signing import signature_path_of
from formats.splitting import assign_splits, bounded_membership, class_membership

__all__ = [
    "EditReport",
    "merge_containers",
    "resplit_container",
    "subset_container",
    "withdraw_rows",
]

Progress = Callable[[int, int], None]

_WITHDRAWN = int(lib.HILUM_ROW_WITHDRAWN)
_UNKNOWN_SOURCE = "unknown"
_NOT_ASSESSED = -2
_MAX_TEXT = 500
# fewer features than this may be equal by chance
_LEAST_DIM = 8
_ON_CONFLICT = ("refuse", "first", "drop")
# of a column that one file has and another has not; label, group and source have rules of their own
_FILL = {
    "split": 0,
    "sample_key": 0,
    "view": 0,
    "row_flags": 0,
    "sex": 0,
    "age": AGE_UNKNOWN,
    "projection": 0,
}


@dataclass(frozen=True)
class EditReport:
    """What an edit did.

    Attributes
    ----------
    path : Path
        The new container.
    n_rows : int
        Its rows.
    counts : dict of str to int
        What happened to how many rows or patients, named by the function that returns it.
    remarks : tuple of str
        What a person should know about it, in sentences.
    """

    path: Path
    n_rows: int
    counts: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def _report(target: Path, n_rows: int, counts: dict[str, int], remarks: list[str]) -> EditReport:
    beside = signature_path_of(target)
    if beside.exists():
        remarks.append(
            f"warning: {beside.name} signs what was at this name before, not the new file. Sign it "
            "anew"
        )
    return EditReport(target, n_rows, counts, tuple(remarks))


# ---- merge -------------------------------------------------------------------------------------


def merge_containers(
    paths: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    seed: int | None = None,
    keep_order: bool = False,
    dtype: str | None = None,
    without_splits: bool = False,
    about: Mapping[str, Any] | None = None,
    on_conflict: Literal["refuse", "first", "drop"] = "refuse",
    allow_related: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EditReport:
    """Join containers of one backbone and one preprocessing.

    Classes and sources are joined by name. Patients of different files are different ones, except
    where two files share an image: those are one. An image is the same if its sample key is, or if
    8 or more features are, bit for bit (files of one dtype, for i8 with the same scales). An image
    that comes twice in one view is taken once, from the first file; what is unknown there
    (classes not assessed, sex, age, projection, source, split, sample key) is filled in from the
    other. Withdrawn rows stay behind, and their images with them. A column that a file does not
    have is filled with *unknown*, and without a ``group`` column each of its rows becomes a
    patient of its own.

    Parameters
    ----------
    paths : sequence of str or PathLike
        Two or more files; the first one's notes are the model.
    out : str or PathLike
        The new file.
    seed : int, optional
        Of the order of rows and patients; left out, drawn from the operating system.
    keep_order : bool
        Leave the rows in their order, file after file. It tells which row is of which file.
    dtype : {"f16", "f32", "i8"}, optional
        How features are stored; left out, as in all files, which must agree.
    without_splits : bool
        Leave the train/valid/test marks out.
    about : mapping, optional
        Notes' ``about``; left out, the files' own are joined.
    on_conflict : {"refuse", "first", "drop"}
        What to do where rows of one image have contradicting labels: refuse to merge, keep the
        first row's label, or leave the image out.
    allow_related : bool
        Merge files that come from one data set, too. A patient who was withdrawn from one of them
        may come back through the other.
    overwrite : bool
        Whether a file `out` may be replaced.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: ``duplicates`` and ``withdrawn`` rows left out, ``same_features``: those of
        the duplicates that only their features told of, ``conflicts``: images with contradicting
        labels, ``alike`` rows kept whose features are those of another patient's row,
        ``joined_patients`` that turned out to be others, by an image they share.

    Raises
    ------
    ContainerError
        A file is damaged, or does not go with the others: backbone, preprocessing, blocks, kind of
        labels, dtype; the same data set comes twice, or two are related; labels contradict each
        other; two that share an image have other views of it; a patient would lie in two splits,
        where not marked counts as train; a file has views, but neither patients nor sample keys;
        `out` exists.
    NotesError
        The joined notes break a rule.
    ValueError
        Fewer than two files, or an unknown `on_conflict`.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} file(s) to merge, expected two or more")
    if on_conflict not in _ON_CONFLICT:
        raise ValueError(f"on_conflict is {on_conflict!r}, expected one of {_ON_CONFLICT}")
    target = check_output(out, paths, overwrite=overwrite)
    remarks: list[str] = []
    with open_verified(paths, progress) as (sources, meter):
        notes = [copy_notes(source, remarks) for source in sources]
        for source in sources[1:]:
            _check_fit(sources[0], source)
        stored = _common_dtype(sources, dtype, remarks)
        _refuse_relatives(sources, allow_related, remarks)
        columns = [copy_columns(source, remarks) for source in sources]
        for source in sources:
            _refuse_torn_views(source)
        joined, classes, source_names = _join_columns(sources, columns, notes, remarks)
        if without_splits:
            joined.pop("split", None)

        files = np.repeat(np.arange(len(sources)), [source.n_rows for source in sources])
        rows = np.concatenate([np.arange(source.n_rows) for source in sources])
        n_all = len(rows)
        keys = joined.get("sample_key")
        gone = np.concatenate([withdrawn_rows(source) for source in sources])
        images, looks = _same_features(sources, gone, remarks)
        image = join_patients(np.arange(n_all), keys, images)
        withdrawn = np.isin(image, image[gone])
        first, n_by_features = _find_duplicates(
            keys, joined.get("view"), images, files, np.flatnonzero(~withdrawn)
        )
        duplicate = first != np.arange(n_all)
        _refuse_uneven_views(sources, files, first, duplicate)
        counts = {
            "withdrawn": int(np.count_nonzero(withdrawn)),
            "duplicates": int(np.count_nonzero(duplicate)),
            "same_features": n_by_features,
        }
        # before anything is left out: an image that comes twice is what joins two patients
        patients = join_patients(joined.get("group", np.arange(n_all)), keys, images)
        unknown = source_names.index(_UNKNOWN_SOURCE) if _UNKNOWN_SOURCE in source_names else -1
        conflicts = _fill_in(joined, first, unknown, remarks)
        counts["conflicts"] = len(np.unique(first[conflicts]))
        if len(conflicts) and on_conflict == "refuse":
            _refuse_conflicts(sources, files, rows, first, conflicts)
        if "split" in joined:
            _refuse_torn_patients(sources, files, patients, joined["split"], duplicate, withdrawn)
        keep = ~withdrawn & ~duplicate
        if on_conflict == "drop":
            keep[first[conflicts]] = False
        if not keep.any():
            why = "withdrawn" if not len(conflicts) else "withdrawn or contradict each other"
            raise ContainerError(sources[0].path, f"all rows are {why}: there is none to merge.")
        chosen = np.flatnonzero(keep)
        if "group" in joined:
            alone = len(np.unique(joined["group"][chosen]))
            joined["group"] = patients
            counts["joined_patients"] = alone - len(np.unique(patients[chosen]))
        joined = {name: values[chosen] for name, values in joined.items()}
        files, rows = files[chosen], rows[chosen]
        counts["alike"] = 0 if looks is None else _count_alike(looks[chosen], joined, remarks)

        order = np.arange(len(rows))
        if not keep_order:
            order = np.random.default_rng(seed).permutation(len(rows))
        new_notes = _join_notes(notes, remarks)
        new_notes["classes"] = classes
        if "source" in joined:
            new_notes["sources"] = source_names
        if about is not None:
            new_notes["about"] = dict(about)
        new_notes["derived_from"] = lineage(sources)
        write_rows(
            target,
            sources,
            files[order],
            rows[order],
            {name: values[order] for name, values in joined.items()},
            new_notes,
            dtype=stored,
            keep_scales=_same_scales(sources),
            overwrite=overwrite,
            seed=seed,
            meter=meter,
        )
    return _report(target, len(rows), counts, remarks)


def _check_fit(first: Container, other: Container, verb: str = "merged") -> None:
    for what, here, there in (
        ("backbone", first.backbone_digest, other.backbone_digest),
        ("preprocessing", first.preprocessing_digest, other.preprocessing_digest),
    ):
        if here != there:
            raise ContainerError(
                other.path,
                f"cannot be {verb} with {first.path}: its {what} has the SHA-256 {there[:16]}..., "
                f"the other's {here[:16]}.... Their features are not comparable: extract one of "
                "them again with the other's settings.",
            )
    if first.blocks != other.blocks:
        raise ContainerError(
            other.path,
            f"cannot be {verb} with {first.path}: its features are {_block_text(other)}, the "
            f"other's {_block_text(first)}. Extract one of them again with the same taps and "
            "poolings.",
        )


def _block_text(container: Container) -> str:
    blocks = ", ".join(f"{b['tap']} {b['pooling']} ({b['width']})" for b in container.blocks[:8])
    return blocks if len(container.blocks) <= 8 else f"{blocks}, ..."


def _common_dtype(sources: Sequence[Container], dtype: str | None, remarks: list[str]) -> str:
    first = sources[0]
    for other in sources[1:]:
        if dtype is None and other.dtype != first.dtype:
            raise ContainerError(
                other.path,
                f"cannot be merged with {first.path}: its features are {other.dtype}, the other's "
                f"{first.dtype}. Say which it shall be (--dtype).",
            )
    stored = dtype or first.dtype
    if any(source.dtype != stored for source in sources):
        remarks.append(f"features were converted to {stored}")
    elif stored == "i8" and not _same_scales(sources):
        remarks.append("i8 features were quantised anew, because the files' scales differ")
    return stored


def _same_scales(sources: Sequence[Container]) -> bool:
    scales = [source.scales for source in sources]
    first = scales[0]
    return first is not None and all(
        other is not None and np.array_equal(first, other) for other in scales
    )


def _refuse_relatives(
    sources: Sequence[Container], allow_related: bool, remarks: list[str]
) -> None:
    """Refuse one data set twice, and, unless allowed, two that come from one."""
    family: dict[str, Container] = {}
    seen: dict[str, Container] = {}
    for source in sources:
        own = [source.uuid, *source.notes.get("derived_from", ())]
        twice = seen.setdefault(source.uuid, source)
        if twice is not source:
            raise ContainerError(
                source.path,
                f"holds the same data set as {twice.path} (uuid {source.uuid}). Name it once.",
            )
        for uuid in own:
            if uuid not in family:
                continue
            other = family[uuid].path
            back = "a patient who was withdrawn from one may come back through the other"
            if not allow_related:
                raise ContainerError(
                    source.path,
                    f"comes from the data set {uuid}, like {other}: {back}. Withdraw the patient "
                    "from both first, or merge what both were made from; if nobody was withdrawn, "
                    "allow it (--allow-related).",
                )
            remarks.append(
                f"warning: {other.name} and {source.path.name} both come from the data set {uuid}: "
                f"{back}, and one who is in both counts as two unless the files share an image"
            )
            break
        for uuid in own:
            family.setdefault(uuid, source)


def _refuse_torn_views(source: Container) -> None:
    """Refuse views of images of which nothing tells that they belong together."""
    views = source.columns.get("view")
    if source.groups is not None or views is None:
        return
    usable = source.rows()
    if not views[usable].any():
        return
    keys = source.sample_keys
    if keys is None or not keys[usable].any(axis=1).all():
        raise ContainerError(
            source.path,
            "has views of images, but no patient groups (nor sample keys of all rows) that keep "
            "them together: one image would count as several patients. Extract it again with "
            "patients, or take a subset without views.",
        )


def _stored_views(source: Container) -> int:
    """Return how many views each image was extracted with, as the notes say."""
    return int(source.notes.get("views", {}).get("number", 0))


def _refuse_uneven_views(
    sources: Sequence[Container],
    files: NDArray[np.int64],
    first: NDArray[np.int64],
    duplicate: NDArray[np.bool_],
) -> None:
    """Refuse files that share an image and have other views of it.

    One file's original would stand for the other's, but that one's views would stay behind with
    their own label: what is said of an image and of its views must not differ.
    """
    n_views = [_stored_views(source) for source in sources]
    again = np.flatnonzero(duplicate)
    pairs = np.unique(np.column_stack([files[first[again]], files[again]]), axis=0)
    for one, other in pairs.tolist():
        if n_views[one] != n_views[other]:
            raise ContainerError(
                sources[other].path,
                f"cannot be merged with {sources[one].path}: they share images, of which one has "
                f"{n_views[other]} augmented views and the other {n_views[one]}. Extract both with "
                "the same --views, or merge copies without views (subset --without-views).",
            )


def _join_columns(
    sources: Sequence[Container],
    columns: Sequence[Mapping[str, NDArray[Any]]],
    notes: Sequence[Mapping[str, Any]],
    remarks: list[str],
) -> tuple[dict[str, NDArray[Any]], list[str], list[str]]:
    """Lay the columns of all files under each other, in the words of the result."""
    classes = list(dict.fromkeys(name for each in notes for name in each["classes"]))
    names = list(dict.fromkeys(name for each in notes for name in each.get("sources", ())))
    present = [name for name in COLUMNS if any(name in each for each in columns)]
    joined: dict[str, NDArray[Any]] = {}
    for name in present:
        if name == "label":
            joined[name] = _join_labels(sources, columns, notes, classes)
            continue
        lacking = [s for s, each in zip(sources, columns, strict=True) if name not in each]
        if name == "source" and lacking and _UNKNOWN_SOURCE not in names:
            names.append(_UNKNOWN_SOURCE)
        for source in lacking:
            if name == "group":
                remarks.append(
                    f"{source.path.name} has no patient groups: each of its rows became a patient "
                    "of its own (rows with one sample key share theirs)"
                )
            elif name != "row_flags":
                fill = "none" if name == "split" else "unknown"
                remarks.append(f"{source.path.name} has no column {name}: filled with {fill}")
        parts: list[NDArray[Any]] = []
        first_group = 0
        for source, each, its_notes in zip(sources, columns, notes, strict=True):
            values = each.get(name)
            if name == "group":
                values = np.arange(source.n_rows) if values is None else values.astype(np.int64)
                values = values + first_group
                first_group = int(values.max()) + 1
            elif name == "source":
                if values is None:
                    values = np.full(source.n_rows, names.index(_UNKNOWN_SOURCE))
                else:
                    values = np.array([names.index(n) for n in its_notes["sources"]])[values]
            elif values is None:
                shape = (source.n_rows, 16) if name == "sample_key" else (source.n_rows,)
                values = np.full(shape, _FILL[name], np.uint8)
            parts.append(values)
        joined[name] = np.concatenate(parts)
    if len(names) > 256:
        raise ContainerError(
            sources[-1].path,
            f"together the files have {len(names)} sources, at most 256 are possible. Merge fewer "
            "files.",
        )
    return joined, classes, names


def _join_labels(
    sources: Sequence[Container],
    columns: Sequence[Mapping[str, NDArray[Any]]],
    notes: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> NDArray[Any]:
    labelled = [i for i, each in enumerate(columns) if "label" in each]
    model = sources[labelled[0]]
    parts: list[NDArray[Any]] = []
    number = {name: i for i, name in enumerate(classes)}
    for source, each, its_notes in zip(sources, columns, notes, strict=True):
        values = each.get("label")
        if values is not None and source.multilabel != model.multilabel:
            kinds = ("one label a row", "several labels a row")
            raise ContainerError(
                source.path,
                f"cannot be merged with {model.path}: it has {kinds[source.multilabel]}, the other "
                f"{kinds[model.multilabel]}. Extract one of them again with the other kind of "
                "labels.",
            )
        if values is None and not model.multilabel:
            raise ContainerError(
                source.path,
                f"cannot be merged with {model.path}: it has no labels, and a single label has no "
                "value for missing. Extract it again with labels.",
            )
        index = [number[name] for name in its_notes["classes"]]
        if model.multilabel:
            wide = np.full((source.n_rows, len(classes)), _NOT_ASSESSED, np.int8)
            if values is not None:
                wide[:, index] = values
            parts.append(wide)
        elif values is not None:
            parts.append(np.array(index, np.int64)[values])
    return np.concatenate(parts)


def _same_features(
    sources: Sequence[Container], gone: NDArray[np.bool_], remarks: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Find images that several files have by their features, and all rows that look alike.

    Both are numbers. The first are -1 where one file only has an image; the second None where the
    files cannot be compared.
    """
    bounds = np.cumsum([0, *(source.n_rows for source in sources)])
    dtypes = {source.dtype for source in sources}
    exact = np.zeros((len(gone), 16), np.uint8)
    useful = np.zeros(len(gone), np.bool_)
    # f16 and f32 of one image are not equal bit for bit, but look alike as f16
    half = exact.copy() if dtypes == {"f16", "f32"} else None
    for source, start, stop in zip(sources, bounds[:-1], bounds[1:], strict=True):
        rows = np.flatnonzero(~gone[start:stop])
        exact[start + rows], useful[start + rows] = feature_digests(source, rows)
        if half is not None:
            half[start + rows] = feature_digests(source, rows, np.dtype("<f2"))[0]
    looks: NDArray[np.int64] | None = None
    if "i8" in dtypes and not _same_scales(sources):
        remarks.append(
            "rows with the same features were not looked for: the files' i8 scales differ"
        )
    else:
        looks = number_records(exact if half is None else half, ~gone)
    images = np.full(len(gone), -1, np.int64)
    if sources[0].dim >= _LEAST_DIM:
        images = number_records(exact, useful)
        files = np.repeat(np.arange(len(sources)), np.diff(bounds))[useful]
        lowest = np.full(int(images.max(initial=-1)) + 1, len(sources))
        highest = np.zeros(len(lowest), np.int64)
        np.minimum.at(lowest, images[useful], files)
        np.maximum.at(highest, images[useful], files)
        alone = np.zeros(len(gone), np.bool_)
        alone[useful] = (lowest == highest)[images[useful]]
        images[alone] = -1
    return images, looks


def _find_duplicates(
    keys: NDArray[np.uint8] | None,
    views: NDArray[np.uint8] | None,
    images: NDArray[np.int64],
    files: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.int64], int]:
    """Tell for each row which one stands for it, and for how many only their features say so.

    A row stands for itself unless its image came before in the same view: by its key anywhere, by
    its features in another file.
    """
    n = len(rows)
    view = np.zeros(n, np.uint8) if views is None else views[rows]
    by_features = np.where(images[rows] < 0, -1, images[rows] * 256 + view)
    known = by_features >= 0
    by_features[known] = np.unique(by_features[known], return_inverse=True)[1].reshape(-1)
    by_key = np.full(n, -1, np.int64)
    if keys is not None:
        mine = keys[rows]
        by_key = number_records(np.column_stack([mine, view]), np.any(mine != 0, axis=1))
    again = np.zeros(n, np.bool_)
    with_key = np.flatnonzero(by_key >= 0)
    again[with_key] = True
    again[with_key[np.unique(by_key[with_key], return_index=True)[1]]] = False
    root = join_by(np.arange(n), by_key, by_features)
    by_look = ~again & (files[rows][root] != files[rows])
    duplicate = again | by_look
    first = np.arange(len(files))
    first[rows[duplicate]] = rows[root[duplicate]]
    return first, int(np.count_nonzero(by_look))


def _fill_in(
    columns: Mapping[str, NDArray[Any]],
    first: NDArray[np.int64],
    unknown_source: int,
    remarks: list[str],
) -> NDArray[np.int64]:
    """Fill in, where a row stands for others, what it does not know; return whose label differs."""
    blanks = {name: _FILL[name] for name in ("sex", "age", "projection", "split", "sample_key")}
    if unknown_source >= 0:
        blanks["source"] = unknown_source
    dropped = np.flatnonzero(first != np.arange(len(first)))
    dropped = dropped[np.argsort(first[dropped], kind="stable")]
    _, starts, sizes = np.unique(first[dropped], return_index=True, return_counts=True)
    label = columns.get("label")
    conflicts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    differing = dict.fromkeys(("sex", "age", "projection"), 0)
    for turn in range(int(sizes.max(initial=0))):
        # one other row of each image a turn: what it fills in is known in the next
        other = dropped[starts[sizes > turn] + turn]
        row = first[other]
        for name, blank in blanks.items():
            if name not in columns:
                continue
            mine, more = columns[name][row], columns[name][other]
            blank_here, blank_there = mine == blank, more == blank
            if mine.ndim == 2:
                blank_here, blank_there = blank_here.all(axis=1), blank_there.all(axis=1)
            fill = blank_here & ~blank_there
            columns[name][row[fill]] = more[fill]
            if name in differing:
                apart = ~blank_here & ~blank_there & (mine != more)
                differing[name] += int(np.count_nonzero(apart))
        if label is None:
            continue
        mine, more = label[row], label[other]
        if label.ndim == 1:
            conflicts.append(other[mine != more])
            continue
        both = (mine != _NOT_ASSESSED) & (more != _NOT_ASSESSED)
        conflicts.append(other[(both & (mine != more)).any(axis=1)])
        label[row] = np.where(mine == _NOT_ASSESSED, more, mine)
    for name, count in differing.items():
        if count:
            remarks.append(
                f"warning: the {name} of {count} duplicate rows is another than that of the row "
                "which was kept; the kept row's stays"
            )
    return np.sort(np.concatenate(conflicts))


def _refuse_conflicts(
    sources: Sequence[Container],
    files: NDArray[np.int64],
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    conflicts: NDArray[np.int64],
) -> None:
    pairs = [
        f"row {rows[first[row]]} of {sources[files[first[row]]].path} and "
        f"row {rows[row]} of {sources[files[row]].path}"
        for row in conflicts[:3].tolist()
    ]
    more = "; ..." if len(conflicts) > 3 else ""
    n_images = len(np.unique(first[conflicts]))
    raise ContainerError(
        sources[files[conflicts[0]]].path,
        f"cannot be merged so: {n_images} image(s) come twice with contradicting labels "
        f"({'; '.join(pairs)}{more}). Correct the labels, or say what counts: the first "
        "(--on-conflict first), or neither (--on-conflict drop).",
    )


def _refuse_torn_patients(
    sources: Sequence[Container],
    files: NDArray[np.int64],
    patients: NDArray[np.int64],
    splits: NDArray[np.uint8],
    duplicate: NDArray[np.bool_],
    withdrawn: NDArray[np.bool_],
) -> None:
    """Refuse a patient in two splits; in a marked set, rows that are not marked are learned from.

    A duplicate that is not marked says nothing: the row that stands for it is looked at.
    """
    counted = np.flatnonzero(~withdrawn & ~(duplicate & (splits == 0)))
    side = np.maximum(splits[counted], 1)
    pairs = np.unique(patients[counted] * 4 + side)
    found, n_sides = np.unique(pairs // 4, return_counts=True)
    torn = found[n_sides > 1]
    if len(torn):
        of_first = counted[patients[counted] == torn[0]]
        places = sorted({(int(files[row]), int(splits[row])) for row in of_first})
        names = ("not marked, which counts as train,", *SPLITS[1:])
        where = ", ".join(
            f"{names[split]} {'of' if split else 'in'} {sources[i].path}" for i, split in places
        )
        raise ContainerError(
            sources[-1].path,
            f"cannot be merged so: {len(torn)} patient(s) would lie in two splits (one in {where})"
            ". What is learned of a patient would be tested on the same patient. Merge without "
            "splits (--without-splits), then divide anew (resplit).",
        )


def _count_alike(
    looks: NDArray[np.int64], columns: Mapping[str, NDArray[Any]], remarks: list[str]
) -> int:
    """Count rows with exactly the features of an earlier row of another patient."""
    _, starts, which = np.unique(looks, return_index=True, return_inverse=True)
    one = starts[which.reshape(-1)]
    other = np.arange(len(looks))
    apart = one != other
    if "group" in columns:
        apart &= columns["group"][one] != columns["group"][other]
    one, other = one[apart], other[apart]
    if len(one):
        torn = ""
        if "split" in columns:
            n_torn = int(np.count_nonzero(columns["split"][one] != columns["split"][other]))
            torn = f"; {n_torn} of them lie in two splits" if n_torn else ""
        remarks.append(
            f"warning: {len(one)} rows have exactly the features of another row but not its "
            "sample key: the same image twice, under two keys or without one. If they are of one "
            f"patient, this patient now counts as two{torn}"
        )
    return len(one)


def _join_notes(notes: Sequence[dict[str, Any]], remarks: list[str]) -> dict[str, Any]:
    """Join what the files say about themselves; what contradicts itself is left out."""
    result = dict(notes[0])
    refused = [each["n_refused"] for each in notes if "n_refused" in each]
    if refused:
        result["n_refused"] = sum(refused)
    for key in ("head", "software", "sources"):
        if any(each.get(key) != notes[0].get(key) for each in notes):
            result.pop(key, None)
            if key != "sources":
                remarks.append(f"the files' {key} notes differ: left out")
    views = [each["views"] for each in notes if "views" in each]
    if views:
        result["views"] = _join_views(views, remarks)
    probes: dict[str, Any] = {}
    for each in notes:
        for name, vector in each.get("probes", {}).items():
            if probes.setdefault(name, vector) != vector:
                probes[name] = None
    torn = [name for name, vector in probes.items() if vector is None]
    if torn:
        remarks.append(
            f"warning: the probes {', '.join(torn)} differ: the files were made on machines that "
            "compute other features"
        )
    result.pop("probes", None)
    probes = {name: vector for name, vector in probes.items() if vector is not None}
    if probes:
        result["probes"] = dict(list(probes.items())[:16])
    about = _join_about([each["about"] for each in notes if "about" in each], remarks)
    result.pop("about", None)
    if about:
        result["about"] = about
    return result


def _join_views(views: Sequence[Mapping[str, Any]], remarks: list[str]) -> dict[str, Any]:
    """Say of all views the most that is said of some."""
    joined: dict[str, Any] = {
        key: max(each[key] for each in views) for key in views[0] if key != "group"
    }
    joined["group"] = "image" if any(each["group"] == "image" for each in views) else "patient"
    if any(each != views[0] for each in views):
        remarks.append("the files' views differ: the notes say the most that one of them has")
    return joined


def _join_about(all_about: Sequence[Mapping[str, Any]], remarks: list[str]) -> dict[str, Any]:
    about: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in all_about for key in each):
        values = [each[key] for each in all_about if key in each]
        if key == "age_range_years":
            about[key] = [min(v[0] for v in values), max(v[1] for v in values)]
            continue
        distinct = list(dict.fromkeys(values))
        text = "; ".join(distinct)
        if len(distinct) == 1:
            about[key] = distinct[0]
        elif key != "url" and len(text) <= _MAX_TEXT:
            about[key] = text
        else:
            about[key] = distinct[0]
            duty = " Its terms still hold" if key in ("attribution", "licence", "terms") else ""
            remarks.append(f"warning: about.{key} is the first file's; the others differ.{duty}")
    return about


# ---- subset ------------------------------------------------------------------------------------


def subset_container(
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    split: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    rows: slice | npt.ArrayLike | None = None,
    groups: Sequence[int] | None = None,
    sources: Sequence[str] | None = None,
    drop_classes: bool = False,
    without_views: bool = False,
    without_floors: bool = False,
    seed: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EditReport:
    """Write the rows that fulfil every condition, in their order, bit for bit.

    Withdrawn rows stay behind. Patients are numbered anew: that some are missing is not seen.

    Parameters
    ----------
    path, out : str or PathLike
        The source, and the new file.
    split : str or sequence of str, optional
        Rows of these splits: none, train, valid, test.
    classes : sequence of str, optional
        Rows with one of these labels (multi-label: present).
    rows : slice or array of int or bool, optional
        These rows of the source; none may lie beyond its end.
    groups : sequence of int, optional
        Rows of these patients.
    sources : sequence of str, optional
        Rows of these sources.
    drop_classes : bool
        Leave out the names of classes that no row has (any more), and for multi-label their
        columns. Heads of the whole set and of the subset then speak of different classes.
    without_views : bool
        Leave augmented views out: rows are then as many as images.
    without_floors : bool
        Leave out the blocks that hold pixels of the images (taps border and pixels): the new file
        has the network's features only, and may be shared as such.
    seed : int, optional
        Of the patients' numbers; left out, drawn from the operating system.
    overwrite : bool
        Whether a file `out` may be replaced.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: ``withdrawn`` rows among the chosen ones, ``left_out`` rows, and
        ``left_out_features``.

    Raises
    ------
    ContainerError
        The file is damaged, has no such split, class, row, patient or source, or no row or no
        feature is left; `out` exists.
    """
    target = check_output(out, [path], overwrite=overwrite)
    remarks: list[str] = []
    with open_verified([path], progress) as (opened, meter):
        source = opened[0]
        notes = copy_notes(source, remarks)
        columns = copy_columns(source, remarks)
        keep = np.ones(source.n_rows, np.bool_)
        if split is not None:
            keep &= _in_splits(source, [split] if isinstance(split, str) else split)
        if classes is not None:
            keep &= _in_classes(source, classes)
        if rows is not None:
            keep &= _in_rows(source, rows)
        if groups is not None:
            keep &= _in_groups(source, groups)
        if sources is not None:
            keep &= _in_sources(source, sources)
        if without_views and source.views is not None:
            keep &= source.views == 0
        withdrawn = withdrawn_rows(source)
        n_withdrawn = int(np.count_nonzero(keep & withdrawn))
        chosen = np.flatnonzero(keep & ~withdrawn)
        if not len(chosen):
            why = f" ({n_withdrawn} would, but are withdrawn)" if n_withdrawn else ""
            raise ContainerError(
                source.path,
                f"no row fulfils all conditions{why}; nothing was written. `inspect` shows what "
                "there is.",
            )
        columns = {name: values[chosen] for name, values in columns.items()}
        if without_views:
            _forget_views(columns, notes)
        features = _without_floors(source, notes, remarks) if without_floors else None
        if drop_classes:
            _drop_classes(source, columns, notes)
        notes["derived_from"] = lineage(opened)
        n_features = source.dim if features is None else len(features)
        counts = {
            "withdrawn": n_withdrawn,
            "left_out": source.n_rows - len(chosen),
            "left_out_features": source.dim - n_features,
        }
        write_rows(
            target,
            opened,
            None,
            chosen,
            columns,
            notes,
            features=features,
            overwrite=overwrite,
            seed=seed,
            meter=meter,
        )
    return _report(target, len(chosen), counts, remarks)


def _forget_views(columns: dict[str, NDArray[Any]], notes: dict[str, Any]) -> None:
    """Take out what tells of views that are no longer there."""
    columns.pop("view", None)
    if "views" not in notes:
        return
    if notes["views"]["group"] == "image":
        # still to be said: the groups are no patients
        notes["views"]["number"] = 0
    else:
        del notes["views"]


def _without_floors(
    source: Container, notes: dict[str, Any], remarks: list[str]
) -> NDArray[np.int64] | None:
    """Choose the features that are no pixels, and take the others' blocks out of the notes."""
    if not source.floor_blocks:
        remarks.append("the file has no blocks of pixels (floors): none was left out")
        return None
    kept: list[NDArray[np.int64]] = []
    blocks: list[dict[str, Any]] = []
    offset = 0
    for block in source.blocks:
        if block in source.floor_blocks:
            continue
        kept.append(np.arange(block["offset"], block["offset"] + block["width"]))
        blocks.append({**block, "offset": offset})
        offset += block["width"]
    if not kept:
        raise ContainerError(
            source.path,
            "has blocks of pixels (floors) and no others: nothing would be left. Extract it again.",
        )
    notes["blocks"] = blocks
    return np.concatenate(kept)


def _in_splits(source: Container, names: Sequence[str]) -> NDArray[np.bool_]:
    for name in names:
        if name not in SPLITS:
            raise ContainerError(
                source.path, f"there is no split {name!r}, expected some of {', '.join(SPLITS)}."
            )
    if source.splits is None:
        raise ContainerError(source.path, "has no split column. Make one with resplit.")
    return np.isin(source.splits, [SPLITS.index(name) for name in names])


def _in_classes(source: Container, names: Sequence[str]) -> NDArray[np.bool_]:
    index = _indices(source, "class", names, source.classes)
    if source.labels is None:
        raise ContainerError(source.path, "has no labels to choose by.")
    chosen: NDArray[np.bool_] = np.zeros(source.n_rows, np.bool_)
    for i in index:
        chosen |= source.labels[:, i] == 1 if source.multilabel else source.labels == i
    return chosen


def _in_sources(source: Container, names: Sequence[str]) -> NDArray[np.bool_]:
    if source.sources is None:
        raise ContainerError(source.path, "has no source column to choose by.")
    return np.isin(source.sources, _indices(source, "source", names, source.sources_names))


def _in_groups(source: Container, groups: Sequence[int]) -> NDArray[np.bool_]:
    if source.groups is None or source.n_groups is None:
        raise ContainerError(source.path, "has no group column, so no patient can be named.")
    for group in groups:
        if not 0 <= group < source.n_groups:
            raise ContainerError(
                source.path, f"there is no group {group}, expected 0 to {source.n_groups - 1}."
            )
    return np.isin(source.groups, list(groups))


def _in_rows(source: Container, rows: slice | npt.ArrayLike) -> NDArray[np.bool_]:
    chosen = np.zeros(source.n_rows, np.bool_)
    n_rows = source.n_rows
    if isinstance(rows, slice):
        for bound, last in ((rows.start, n_rows - 1), (rows.stop, n_rows)):
            if bound is not None and not -n_rows <= bound <= last:
                raise ContainerError(
                    source.path,
                    f"rows {_slice_text(rows)} go beyond its {n_rows} rows, 0 to {n_rows - 1}.",
                )
        chosen[rows] = True
        return chosen
    index = np.asarray(rows)
    if index.dtype.kind in "Of" and isinstance(rows, Sequence):
        # numpy has no integer for what is this large
        for row in rows:
            if isinstance(row, int) and not -n_rows <= row < n_rows:
                raise ContainerError(
                    source.path, f"there is no row {row}, expected 0 to {n_rows - 1}."
                )
    if index.size == 0:
        return chosen
    if index.ndim != 1 or index.dtype.kind not in "iub":
        raise ContainerError(
            source.path, f"rows are {index.dtype} {index.shape}, expected whole numbers (n,)."
        )
    if index.dtype.kind == "b":
        if len(index) != source.n_rows:
            raise ContainerError(
                source.path, f"the mask has {len(index)} entries, expected {source.n_rows}."
            )
        chosen[index] = True
        return chosen
    wrong = (index < -source.n_rows) | (index >= source.n_rows)
    if wrong.any():
        raise ContainerError(
            source.path,
            f"there is no row {index[wrong][0]}, expected 0 to {source.n_rows - 1}.",
        )
    chosen[index.astype(np.int64)] = True
    return chosen


def _slice_text(rows: slice) -> str:
    start, stop = ("" if bound is None else bound for bound in (rows.start, rows.stop))
    return f"{start}:{stop}"


def _indices(source: Container, what: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    for name in names:
        if name not in known:
            raise ContainerError(
                source.path,
                f"there is no {what} {name!r}, expected some of {', '.join(known) or 'none'}.",
            )
    return [known.index(name) for name in names]


def _drop_classes(
    source: Container, columns: dict[str, NDArray[Any]], notes: dict[str, Any]
) -> None:
    label = columns.get("label")
    if label is None:
        raise ContainerError(source.path, "has no labels, so no class is unused.")
    if source.multilabel:
        used = np.flatnonzero(class_membership(label, len(source.classes)).any(axis=0))
    else:
        used = np.unique(label)
    if not len(used):
        raise ContainerError(source.path, "no class is present in these rows: none would be left.")
    notes["classes"] = [source.classes[i] for i in used]
    columns["label"] = label[:, used] if source.multilabel else np.searchsorted(used, label)


# ---- withdraw ----------------------------------------------------------------------------------


def withdraw_rows(
    path: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    groups: Sequence[int] | None = None,
    rows: slice | npt.ArrayLike | None = None,
    sample_keys: npt.ArrayLike | None = None,
    matching: str | PathLike[str] | None = None,
    rows_only: bool = False,
    drop: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EditReport:
    """Let a patient leave: their rows become zero and are flagged, or are dropped.

    What is named by any of the conditions goes, and with it every row of the same patients and
    every row of the same images (sample key). A zeroed row keeps its number, patient, label and
    source, so that lists of rows made earlier still hold; its features, split, sex, age and
    projection say nothing any more, and neither does its sample key, by which the image could be
    recognised.

    For i8, the scale of a feature tells the largest value in the file. Where no remaining row has
    it, the scale is computed anew from the remaining rows, and their elements of this feature are
    rounded again; all other features stay bit for bit. That the remaining values were once stored
    in coarser steps can still be seen in them.

    Parameters
    ----------
    path : str or PathLike
        The container.
    out : str or PathLike, optional
        The new file; left out, the old one is replaced when the new one is whole. Copies and
        backups of the old one are not reached.
    groups : sequence of int, optional
        Patients to withdraw.
    rows : slice or array of int or bool, optional
        Rows whose patients are to be withdrawn.
    sample_keys : uint8 (n, 16), optional
        Keyed hashes of images whose patients are to be withdrawn.
    matching : str or PathLike, optional
        A container extracted from the patient's images with the same backbone and preprocessing:
        rows with the same sample key, or the same features up to the rounding of how both files
        store them.
    rows_only : bool
        Withdraw just these rows, not all of their patients'. In a file with augmented views, all
        rows of the same images go, which takes their sample keys to find.
    drop : bool
        Leave the rows out instead of zeroing them. All withdrawn rows go, also earlier ones; rows
        and patients are numbered anew.
    overwrite : bool
        Whether a file `out` may be replaced.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: ``rows`` withdrawn now, ``patients`` of them, ``earlier`` rows withdrawn
        before, ``rescaled`` features (i8, if any), and with `matching` its ``images`` and how many
        were ``found``: the others may still be in the file.

    Raises
    ------
    ContainerError
        A file is damaged; nothing fits, or nothing would be left; `out` exists: nothing is written
        then.
    """
    if groups is None and rows is None and sample_keys is None and matching is None:
        raise ValueError("nobody is named: give groups, rows, sample_keys or matching")
    # through a link, the file that holds the rows is the one to replace
    if out is None:
        target = Path(path).resolve()
        before = target.stat() if target.exists() else None
    else:
        inputs = [path] if matching is None else [path, matching]
        target, before = check_output(out, inputs, overwrite=overwrite), None
    if matching is not None:
        check_output(target, [matching])
    remarks: list[str] = []
    counts: dict[str, int] = {}
    paths = [path] if matching is None else [path, matching]
    with open_verified(paths, progress) as (opened, meter):
        source = opened[0]
        notes = copy_notes(source, remarks)
        columns = copy_columns(source, remarks)
        earlier = withdrawn_rows(source)
        named = np.zeros(source.n_rows, np.bool_)
        if groups is not None:
            named |= _in_groups(source, groups)
        if rows is not None:
            named |= _in_rows(source, rows)
        if sample_keys is not None:
            named |= _with_keys(source, np.asarray(sample_keys))
        if matching is not None:
            found, counts = _find_matching(source, opened[1])
            named |= found
            if counts["found"] < counts["images"]:
                missing = counts["images"] - counts["found"]
                remarks.append(
                    f"warning: {missing} of {counts['images']} images of {opened[1].path.name} "
                    "were not found: if they are in the file, they are still there. Look for them "
                    "by --group or --rows"
                )
        if not named.any():
            raise ContainerError(
                source.path, "no row fits; nothing was written. Nobody was withdrawn."
            )
        if not rows_only:
            named = _all_of_patients(source, named, remarks)
        elif _stored_views(source):
            named = _all_of_images(source, named)
        now = named & ~earlier
        if not now.any() and drop:
            remarks.append("the rows that fit were withdrawn before; now they were left out")
        elif not now.any():
            raise ContainerError(
                source.path,
                f"all {int(np.count_nonzero(named))} rows that fit are withdrawn already; nothing "
                "was written. To leave their zeroed rows out, drop them (--drop).",
            )
        counts["rows"] = int(np.count_nonzero(now))
        counts["earlier"] = int(np.count_nonzero(earlier))
        if source.groups is not None:
            counts["patients"] = len(np.unique(source.groups[now]))
        gone = now | earlier
        kept = np.arange(source.n_rows)
        if drop:
            kept = np.flatnonzero(~gone)
            if not len(kept):
                raise ContainerError(
                    source.path,
                    "no row would be left; nothing was written. Delete the file instead.",
                )
            columns = {name: values[kept] for name, values in columns.items()}
            # no row is flagged any more; the column would tell that some were
            columns.pop("row_flags", None)
        else:
            _neutralise(columns, gone, source.n_rows)
        notes["derived_from"] = lineage([source])
        scales = None
        if source.scales is not None:
            scales, n_rescaled = _scales_without(source, np.flatnonzero(~gone))
            if n_rescaled:
                counts["rescaled"] = n_rescaled
                remarks.append(
                    f"the scales of {n_rescaled} of {source.dim} features came from "
                    "withdrawn rows only: they were computed anew, and the other rows' values of "
                    "these features rounded again"
                )
        for other in opened[1:]:
            other.close()
        write_rows(
            target,
            [source],
            None,
            kept,
            columns,
            notes,
            scales=scales,
            overwrite=out is None or overwrite,
            group_order="random" if drop else "given",
            meter=meter,
        )
    if before is not None:
        _restore_owner(target, before, remarks)
    return _report(target, len(kept), counts, remarks)


def _scales_without(
    source: Container, remaining: NDArray[np.int64]
) -> tuple[NDArray[np.float32], int]:
    """Return i8 scales that the remaining rows explain, and how many of them are others."""
    assert source.scales is not None
    most = np.zeros(source.dim, np.int16)
    for piece in iter_pieces(len(remaining), source.dim):
        stored = source.read_stored(remaining[piece])
        # not abs: that of the int8 -128 is -128
        np.maximum(most, stored.max(axis=0), out=most)
        np.maximum(most, -stored.min(axis=0).astype(np.int16), out=most)
    scales = np.array(source.scales)
    lower = (scales.astype(np.float64) * most / 127).astype(np.float32)
    lower[most == 0] = 1  # as the writer does for a feature that is zero
    # a scale that would vanish stays
    change = (most < 127) & (lower > 0) & (lower != scales)
    scales[change] = lower[change]
    return scales, int(np.count_nonzero(change))


def _restore_owner(target: Path, before: os.stat_result, remarks: list[str]) -> None:
    """Give the new file the owner and mode of the old one, and tell of other names of that."""
    now = target.stat()
    if hasattr(os, "chown") and (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.chown(target, before.st_uid, before.st_gid)
        except OSError as exc:
            remarks.append(
                f"warning: the new file belongs to user {now.st_uid}, group {now.st_gid}; the old "
                f"one belonged to user {before.st_uid}, group {before.st_gid}, and that cannot be "
                f"set ({exc.strerror or exc})"
            )
    # after the owner, whose change takes some bits away
    target.chmod(stat.S_IMODE(before.st_mode))
    if before.st_nlink > 1:
        remarks.append(
            f"warning: the old file has {before.st_nlink - 1} other name(s) (hard links): it still "
            "holds the withdrawn rows under them. Find "
            "and delete them"
        )


def _neutralise(columns: dict[str, NDArray[Any]], gone: NDArray[np.bool_], n_rows: int) -> None:
    """Take from withdrawn rows what would tell of the patient; the writer zeroes the features."""
    flags = columns.setdefault("row_flags", np.zeros(n_rows, np.uint8))
    flags[gone] = _WITHDRAWN
    for name in ("split", "sample_key", "sex", "age", "projection"):
        if name in columns:
            columns[name][gone] = _FILL[name]
    label = columns.get("label")
    if label is not None and label.ndim == 2:
        label[gone] = _NOT_ASSESSED


def _with_keys(source: Container, keys: NDArray[Any]) -> NDArray[np.bool_]:
    if source.sample_keys is None:
        raise ContainerError(source.path, "has no sample keys to look for.")
    if keys.ndim != 2 or keys.shape[1] != 16 or keys.dtype != np.uint8:
        raise ContainerError(
            source.path, f"sample keys are {keys.dtype} {keys.shape}, expected uint8 (n, 16)."
        )
    found: NDArray[np.bool_] = np.zeros(source.n_rows, np.bool_)
    known = source.sample_keys.any(axis=1)
    wanted = as_records(keys[keys.any(axis=1)])
    found[known] = np.isin(as_records(source.sample_keys[known]), wanted)
    return found


def _all_of_patients(
    source: Container, named: NDArray[np.bool_], remarks: list[str]
) -> NDArray[np.bool_]:
    """Add the rows of the same patients; one image under two patients makes them one."""
    if source.groups is None:
        remarks.append(
            "warning: the file has no patient groups: only the rows that were named, and those "
            "with the same sample keys, were withdrawn; others of the patient may remain"
        )
        patients = np.arange(source.n_rows)
    else:
        patients = source.groups.astype(np.int64)
    patients = join_patients(patients, source.sample_keys)
    return np.isin(patients, np.unique(patients[named]))


def _all_of_images(source: Container, named: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add the views of the same images, or their originals."""
    keys = source.sample_keys
    if keys is None or not keys[named & ~withdrawn_rows(source)].any(axis=1).all():
        raise ContainerError(
            source.path,
            "has augmented views, but no sample keys that tell which rows are of one image: a view "
            "of the withdrawn image would stay. Withdraw the patient (leave --rows-only out).",
        )
    return named | _with_keys(source, keys[named])


def _find_matching(source: Container, other: Container) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Find the rows of the images that another container was made from."""
    _check_fit(source, other, "compared")
    found = np.zeros(source.n_rows, np.bool_)
    # a view of an image that is there need not be there
    wanted = other.rows(views=False)
    hit = np.zeros(len(wanted), np.bool_)
    if source.sample_keys is not None and other.sample_keys is not None:
        keys = other.sample_keys[wanted]
        found |= _with_keys(source, keys)
        known = keys.any(axis=1)
        hit[known] = np.isin(as_records(keys[known]), as_records(source.sample_keys[found]))
    usable = ~withdrawn_rows(source)
    for piece in iter_pieces(len(wanted), other.dim):
        sought = other.read_stored(wanted[piece])
        values, slack = _as_float(other, sought)
        _find_alike(source, values, slack, usable, found, hit[piece])
    if source.scales is not None and source.notes.get("derived_from") and not hit.all():
        # an edit may have rounded features again: what was not found is looked for less strictly
        own_slack = _coarse_slack(source, usable)
        missing = np.flatnonzero(~hit)
        for piece in iter_pieces(len(missing), other.dim):
            part = missing[piece]
            values, slack = _as_float(other, other.read_stored(wanted[part]))
            late = np.zeros(len(part), np.bool_)
            _find_alike(source, values, slack, usable, found, late, own_slack)
            hit[part] = late
    return found, {"images": len(wanted), "found": int(np.count_nonzero(hit))}


def _as_float(
    container: Container, stored: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | np.float32]:
    """Return features as float32, and how far each may be from what was stored."""
    values: NDArray[np.float32] = stored.astype(np.float32)
    if container.scales is not None:
        return values * container.scales, container.scales * np.float32(0.5001)
    if container.dtype == "f16":
        # half a unit in the last of 11 bits, and half of the least subnormal number
        return values, np.abs(values) * np.float32(2.0**-11) + np.float32(2.0**-25)
    return values, np.float32(0)


def _coarse_slack(source: Container, usable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how far i8 features may be from what they were before they were rounded twice.

    Coarser steps of earlier leave gaps: elements are a multiple of these steps apart.
    """
    assert source.scales is not None
    seen = np.zeros((256, source.dim), np.bool_)
    rows = np.flatnonzero(usable)
    for piece in iter_pieces(len(rows), source.dim):
        stored = source.read_stored(rows[piece])
        seen[stored.astype(np.int16) + 128, np.arange(source.dim)] = True
    last = np.full(source.dim, -np.inf)
    gap = np.full(source.dim, np.inf)
    for value, present in enumerate(seen):
        gap[present] = np.minimum(gap, value - last)[present]
        last[present] = value
    # a feature with one value tells nothing: anything may have been rounded to it
    slack: NDArray[np.float32] = (source.scales * (gap + 1.5)).astype(np.float32)
    return slack


def _find_alike(
    source: Container,
    sought: NDArray[np.float32],
    slack: NDArray[np.float32] | np.float32,
    usable: NDArray[np.bool_],
    found: NDArray[np.bool_],
    hit: NDArray[np.bool_],
    own_slack: NDArray[np.float32] | None = None,
) -> None:
    """Mark in `found` and `hit` which rows have the features of which sought ones."""
    wide = np.broadcast_to(slack, sought.shape)
    probe: NDArray[np.int64] | None = None
    rows = np.flatnonzero(usable)
    for piece in iter_pieces(len(rows), source.dim):
        part = rows[piece]
        values, own = _as_float(source, source.read_stored(part))
        own = np.broadcast_to(own if own_slack is None else own_slack, values.shape)
        if probe is None:
            # the features that differ most tell nearly all other rows away at once
            probe = np.argsort(values.std(axis=0))[-16:]
        few, few_own = values[:, probe], own[:, probe]
        for i, row in enumerate(sought):
            near = np.abs(few - row[probe]) <= few_own + wide[i, probe]
            candidates = np.flatnonzero(near.all(axis=1))
            if not len(candidates):
                continue
            apart = np.abs(values[candidates] - row) - own[candidates] - wide[i]
            fits = candidates[apart.max(axis=1) <= 0]
            found[part[fits]] = True
            hit[i] |= bool(len(fits))


# ---- resplit -----------------------------------------------------------------------------------


def resplit_container(
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EditReport:
    """Divide the rows anew into train, valid and test, patients whole, classes shared out.

    Rows, their order, features and patients' numbers stay as they are. Patients who share an image
    (its sample key, or 8 or more features, bit for bit) stay together; without a ``group`` column,
    every other row is by itself. Where there are very many patients and classes (20 million of
    their pairs), the rarest classes are shared out as if they were one.

    Parameters
    ----------
    path, out : str or PathLike
        The source, and the new file.
    fractions : sequence of float
        Shares of train, valid and test; together 1. A share of 0 leaves that split empty.
    seed : int
        The same seed gives the same division.
    overwrite : bool
        Whether a file `out` may be replaced.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: rows of ``train``, ``valid``, ``test``, and ``none`` (withdrawn).

    Raises
    ------
    ContainerError
        The file is damaged, has too few patients, or has views, but neither patients nor sample
        keys; `out` exists.
    ValueError
        The fractions are not three shares of one whole.
    """
    shares = np.asarray(fractions, np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(float(shares.sum()) - 1) > 1e-6:
        raise ValueError(
            f"fractions are {list(fractions)}, expected three shares (train, valid, test) that "
            "together are 1"
        )
    target = check_output(out, [path], overwrite=overwrite)
    remarks: list[str] = []
    with open_verified([path], progress) as (opened, meter):
        source = opened[0]
        notes = copy_notes(source, remarks)
        columns = copy_columns(source, remarks)
        _refuse_torn_views(source)
        if source.groups is None:
            groups = np.arange(source.n_rows)
            remarks.append(
                "warning: the file has no patient groups: rows were divided one by one, and images "
                "of one patient may lie in two splits"
            )
        else:
            groups = source.groups.astype(np.int64)
        patients = join_patients(groups, source.sample_keys)
        usable = source.rows()
        n_patients = len(np.unique(patients[usable]))
        if source.dim >= _LEAST_DIM:
            digests, useful = feature_digests(source, usable)
            images = np.full(source.n_rows, -1, np.int64)
            images[usable] = number_records(digests, useful)
            patients = join_by(patients, images)
            n_alike = n_patients - len(np.unique(patients[usable]))
            n_patients -= n_alike
            if n_alike:
                what = "rows" if source.groups is None else "patients"
                remarks.append(
                    f"{n_alike} {what} have an image with exactly the features of one of another: "
                    "they were put into one split"
                )
        parts = np.flatnonzero(shares > 0)
        if n_patients < len(parts):
            raise ContainerError(
                source.path,
                f"{n_patients} patient(s) cannot be divided into {len(parts)} splits. Ask for "
                "fewer splits (a share of 0) or add patients.",
            )
        membership = np.zeros((len(usable), 0), np.bool_)
        if source.labels is not None:
            membership, n_lumped = bounded_membership(
                source.labels[usable], len(source.classes), n_patients
            )
            if n_lumped:
                remarks.append(
                    f"{n_patients} patients and {len(source.classes)} classes are many: the "
                    f"{n_lumped} rarest classes were shared out as if they were one"
                )
        assigned = assign_splits(
            membership, patients[usable], shares[parts] / shares.sum(), seed=seed
        )
        splits = np.zeros(source.n_rows, np.uint8)
        splits[usable] = parts[assigned] + 1
        columns["split"] = splits
        notes["derived_from"] = lineage(opened)
        counts = {name: int(np.count_nonzero(splits == i)) for i, name in enumerate(SPLITS)}
        write_rows(
            target,
            opened,
            None,
            np.arange(source.n_rows),
            columns,
            notes,
            overwrite=overwrite,
            group_order="given",
            meter=meter,
        )
    return _report(target, len(splits), counts, remarks)
