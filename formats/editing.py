"""How containers become others: joined, cut down, without a patient, divided anew.

Every function verifies its sources first, writes a new file beside the old one, and names it only
when it is whole. The notes of the result say in ``derived_from`` which data sets it came from.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

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
    iter_pieces,
    join_patients,
    lineage,
    open_verified,
    read_stored,
    withdrawn_rows,
    write_rows,
)
from formats.container import AGE_UNKNOWN, SPLITS, Container
from formats.errors import ContainerError
from formats.signing import signature_path_of
from formats.splitting import assign_splits, class_membership

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
    progress: Progress | None = None,
) -> EditReport:
    """Join containers of one backbone and one preprocessing.

    Classes and sources are joined by name. Patients of different files are different ones, except
    where two files share an image (its sample key): those are one. An image that comes twice (its
    sample key and view) is taken once, from the first file. Withdrawn rows stay behind. A column
    that a file does not have is filled with *unknown*, and without a ``group`` column each of its
    rows becomes a patient of its own.

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
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: ``duplicates`` and ``withdrawn`` rows left out, ``alike`` rows kept whose
        features are those of another patient's row, ``joined_patients`` that turned out to be
        others, by an image they share.

    Raises
    ------
    ContainerError
        A file is damaged, or does not go with the others: backbone, preprocessing, blocks, kind of
        labels, dtype; the same data set comes twice; a patient would lie in two splits.
    NotesError
        The joined notes break a rule.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} file(s) to merge, expected two or more")
    target = check_output(out, paths)
    remarks: list[str] = []
    with open_verified(paths, progress) as (sources, meter):
        notes = [copy_notes(source, remarks) for source in sources]
        for source in sources[1:]:
            _check_fit(sources[0], source)
        stored = _common_dtype(sources, dtype, remarks)
        _remark_on_relatives(sources, remarks)
        columns = [copy_columns(source, remarks) for source in sources]
        joined, classes, source_names = _join_columns(sources, columns, notes, remarks)
        if without_splits:
            joined.pop("split", None)

        files = np.repeat(np.arange(len(sources)), [source.n_rows for source in sources])
        rows = np.concatenate([np.arange(source.n_rows) for source in sources])
        gone = np.concatenate([withdrawn_rows(source) for source in sources])
        keep, counts = _drop_duplicates(joined.get("sample_key"), joined.get("view"), gone)
        if not keep.any():
            raise ContainerError(sources[0].path, "all rows are withdrawn: there is none to merge.")
        chosen = np.flatnonzero(keep)
        if "group" in joined:
            # before anything is left out: an image that comes twice is what joins two patients
            alone = len(np.unique(joined["group"][chosen]))
            joined["group"] = join_patients(joined["group"], joined.get("sample_key"))
            counts["joined_patients"] = alone - len(np.unique(joined["group"][chosen]))
        joined = {name: values[chosen] for name, values in joined.items()}
        files, rows = files[chosen], rows[chosen]
        if "group" in joined and "split" in joined:
            _refuse_torn_patients(sources, files, joined["group"], joined["split"])
        counts["alike"] = _count_alike(sources, files, rows, stored, joined, remarks)

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


def _remark_on_relatives(sources: Sequence[Container], remarks: list[str]) -> None:
    """Refuse one data set twice, and warn of two that come from one."""
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
            if uuid in family:
                remarks.append(
                    f"warning: {family[uuid].path.name} and {source.path.name} both come from the "
                    f"data set {uuid}. A patient who is in both counts as two unless the files "
                    "share an image with a sample key, and one who was withdrawn from one may "
                    "still be in the other"
                )
                break
        for uuid in own:
            family.setdefault(uuid, source)


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
        index = [classes.index(name) for name in its_notes["classes"]]
        if model.multilabel:
            wide = np.full((source.n_rows, len(classes)), _NOT_ASSESSED, np.int8)
            if values is not None:
                wide[:, index] = values
            parts.append(wide)
        elif values is not None:
            parts.append(np.array(index, np.int64)[values])
    return np.concatenate(parts)


def _drop_duplicates(
    keys: NDArray[np.uint8] | None, views: NDArray[np.uint8] | None, gone: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Keep the first row of each key and view; a withdrawn image is withdrawn in every file."""
    keep = ~gone
    counts = {"withdrawn": int(np.count_nonzero(gone)), "duplicates": 0}
    if keys is None:
        return keep, counts
    known = keys.any(axis=1)
    if (gone & known).any():
        also = keep & known & np.isin(as_records(keys), as_records(keys[gone & known]))
        keep &= ~also
        counts["withdrawn"] += int(np.count_nonzero(also))
    candidates = np.flatnonzero(keep & known)
    view = np.zeros(len(keys), np.uint8) if views is None else views
    named = np.column_stack([keys[candidates], view[candidates]])
    _, first = np.unique(as_records(named), return_index=True)
    duplicate = np.ones(len(candidates), np.bool_)
    duplicate[first] = False
    keep[candidates[duplicate]] = False
    counts["duplicates"] = int(np.count_nonzero(duplicate))
    return keep, counts


def _refuse_torn_patients(
    sources: Sequence[Container],
    files: NDArray[np.int64],
    groups: NDArray[np.int64],
    splits: NDArray[np.uint8],
) -> None:
    marked = np.flatnonzero(splits != 0)
    pairs = np.unique(groups[marked] * 4 + splits[marked])
    patients, n_splits = np.unique(pairs // 4, return_counts=True)
    torn = patients[n_splits > 1]
    if len(torn):
        of_first = marked[groups[marked] == torn[0]]
        places = sorted({(int(files[row]), int(splits[row])) for row in of_first})
        where = ", ".join(f"{SPLITS[split]} of {sources[i].path}" for i, split in places)
        raise ContainerError(
            sources[-1].path,
            f"cannot be merged so: {len(torn)} patient(s) would lie in two splits (one in {where})"
            ". What is learned of a patient would be tested on the same patient. Merge without "
            "splits (--without-splits), then divide anew (resplit).",
        )


def _count_alike(
    sources: Sequence[Container],
    files: NDArray[np.int64],
    rows: NDArray[np.int64],
    stored: str,
    columns: Mapping[str, NDArray[Any]],
    remarks: list[str],
) -> int:
    """Count rows with exactly the features of an earlier row of another patient."""
    element: Any = None
    if any(source.dtype == "i8" for source in sources):
        if not _same_scales(sources):
            remarks.append(
                "rows with the same features were not looked for: the files' i8 scales differ"
            )
            return 0
    elif stored == "f16" or any(source.dtype == "f16" for source in sources):
        element = np.dtype("<f2")
    seen: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    for i, source in enumerate(sources):
        mine = np.flatnonzero(files == i)
        for piece in iter_pieces(len(mine), source.dim):
            values = read_stored(source, rows[mine[piece]])
            if element is not None and values.dtype != element:
                with np.errstate(over="ignore"):
                    values = values.astype(element)
            for row, index in zip(values, mine[piece].tolist(), strict=True):
                digest = hashlib.blake2b(row.data, digest_size=16).digest()
                first = seen.setdefault(digest, index)
                if first != index:
                    pairs.append((first, index))
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    if "group" in columns:
        apart = columns["group"][one] != columns["group"][other]
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
    seed: int | None = None,
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
        These rows of the source.
    groups : sequence of int, optional
        Rows of these patients.
    sources : sequence of str, optional
        Rows of these sources.
    drop_classes : bool
        Leave out the names of classes that no row has (any more), and for multi-label their
        columns. Heads of the whole set and of the subset then speak of different classes.
    seed : int, optional
        Of the patients' numbers; left out, drawn from the operating system.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: ``withdrawn`` rows among the chosen ones, ``left_out`` rows.

    Raises
    ------
    ContainerError
        The file is damaged, has no such split, class, row, patient or source, or no row is left.
    """
    target = check_output(out, [path])
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
        if drop_classes:
            _drop_classes(source, columns, notes)
        notes["derived_from"] = lineage(opened)
        counts = {"withdrawn": n_withdrawn, "left_out": source.n_rows - len(chosen)}
        write_rows(target, opened, None, chosen, columns, notes, seed=seed, meter=meter)
    return _report(target, len(chosen), counts, remarks)


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
    if isinstance(rows, slice):
        chosen[rows] = True
        return chosen
    index = np.asarray(rows)
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
    used = np.flatnonzero(class_membership(label, len(source.classes)).any(axis=0))
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
    progress: Progress | None = None,
) -> EditReport:
    """Let a patient leave: their rows become zero and are flagged, or are dropped.

    What is named by any of the conditions goes, and with it every row of the same patients and
    every row of the same images (sample key). A zeroed row keeps its number, patient, label and
    source, so that lists of rows made earlier still hold; its features, split, sex, age and
    projection say nothing any more, and neither does its sample key, by which the image could be
    recognised. For i8, the scales stay those of all rows.

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
        Withdraw just these rows, not all of their patients'.
    drop : bool
        Leave the rows out instead of zeroing them. All withdrawn rows go, also earlier ones; rows
        and patients are numbered anew.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: ``rows`` withdrawn now, ``patients`` of them, ``earlier`` rows withdrawn
        before, and with `matching` its ``images`` and how many were ``found``.

    Raises
    ------
    ContainerError
        A file is damaged; nothing fits, or nothing would be left: nothing is written then.
    """
    if groups is None and rows is None and sample_keys is None and matching is None:
        raise ValueError("nobody is named: give groups, rows, sample_keys or matching")
    # through a link, the file that holds the rows is the one to replace
    target = Path(path).resolve() if out is None else check_output(out, [path])
    mode = stat.S_IMODE(target.stat().st_mode) if out is None and target.exists() else None
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
                    "were not found by themselves"
                )
        if not named.any():
            raise ContainerError(
                source.path, "no row fits; nothing was written. Nobody was withdrawn."
            )
        if not rows_only:
            named = _all_of_patients(source, named, remarks)
        now = named & ~earlier
        if not now.any():
            raise ContainerError(
                source.path,
                f"all {int(np.count_nonzero(named))} rows that fit are withdrawn already; nothing "
                "was written.",
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
        else:
            _neutralise(columns, gone, source.n_rows)
        notes["derived_from"] = lineage([source])
        for other in opened[1:]:
            other.close()
        write_rows(
            target,
            [source],
            None,
            kept,
            columns,
            notes,
            group_order="random" if drop else "given",
            meter=meter,
        )
        if mode is not None:
            target.chmod(mode)
    return _report(target, len(kept), counts, remarks)


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


def _find_matching(source: Container, other: Container) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Find the rows of the images that another container was made from."""
    _check_fit(source, other, "compared")
    found = np.zeros(source.n_rows, np.bool_)
    wanted = other.rows()
    hit = np.zeros(len(wanted), np.bool_)
    if source.sample_keys is not None and other.sample_keys is not None:
        keys = other.sample_keys[wanted]
        found |= _with_keys(source, keys)
        known = keys.any(axis=1)
        hit[known] = np.isin(as_records(keys[known]), as_records(source.sample_keys[found]))
    usable = ~withdrawn_rows(source)
    for piece in iter_pieces(len(wanted), other.dim):
        sought = read_stored(other, wanted[piece])
        values, slack = _as_float(other, sought)
        _find_alike(source, values, slack, usable, found, hit[piece])
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


def _find_alike(
    source: Container,
    sought: NDArray[np.float32],
    slack: NDArray[np.float32] | np.float32,
    usable: NDArray[np.bool_],
    found: NDArray[np.bool_],
    hit: NDArray[np.bool_],
) -> None:
    """Mark in `found` and `hit` which rows have the features of which sought ones."""
    wide = np.broadcast_to(slack, sought.shape)
    probe: NDArray[np.int64] | None = None
    rows = np.flatnonzero(usable)
    for piece in iter_pieces(len(rows), source.dim):
        part = rows[piece]
        values, own = _as_float(source, read_stored(source, part))
        own = np.broadcast_to(own, values.shape)
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
    progress: Progress | None = None,
) -> EditReport:
    """Divide the rows anew into train, valid and test, patients whole, classes shared out.

    Rows, their order, features and patients' numbers stay as they are. Patients who share an image
    (its sample key) stay together; without a ``group`` column, every other row is by itself.

    Parameters
    ----------
    path, out : str or PathLike
        The source, and the new file.
    fractions : sequence of float
        Shares of train, valid and test; together 1. A share of 0 leaves that split empty.
    seed : int
        The same seed gives the same division.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``counts``: rows of ``train``, ``valid``, ``test``, and ``none`` (withdrawn).

    Raises
    ------
    ContainerError
        The file is damaged, or has too few patients.
    ValueError
        The fractions are not three shares of one whole.
    """
    shares = np.asarray(fractions, np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(float(shares.sum()) - 1) > 1e-6:
        raise ValueError(
            f"fractions are {list(fractions)}, expected three shares (train, valid, test) that "
            "together are 1"
        )
    target = check_output(out, [path])
    remarks: list[str] = []
    with open_verified([path], progress) as (opened, meter):
        source = opened[0]
        notes = copy_notes(source, remarks)
        columns = copy_columns(source, remarks)
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
        parts = np.flatnonzero(shares > 0)
        if n_patients < len(parts):
            raise ContainerError(
                source.path,
                f"{n_patients} patient(s) cannot be divided into {len(parts)} splits. Ask for "
                "fewer splits (a share of 0) or add patients.",
            )
        membership = np.zeros((source.n_rows, 0), np.bool_)
        if source.labels is not None:
            membership = class_membership(source.labels, len(source.classes))
        assigned = assign_splits(
            membership[usable], patients[usable], shares[parts] / shares.sum(), seed=seed
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
            group_order="given",
            meter=meter,
        )
    return _report(target, len(splits), counts, remarks)
