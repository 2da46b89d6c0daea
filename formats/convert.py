"""How containers become tables of other programs, and such tables containers.

``.npz`` (NumPy), ``.safetensors``, ``.parquet`` (needs pyarrow) and ``.csv``: features as they are
stored, all columns, and the notes, so that the way there and back changes nothing. A stranger's
table comes in as well, if notes say what its features are.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from formats._atomic import explain_write_failure, write_at
from formats._json import preprocessing_digest
from formats._rows import (
    COLUMNS,
    ELEMENTS,
    Meter,
    as_records,
    check_output,
    copy_columns,
    copy_notes,
    iter_pieces,
    lineage,
    open_verified,
)
from formats._tables import (
    BOMB_BYTES,
    BOMB_RATIO,
    READERS,
    SEXES,
    WRITERS,
    Choice,
    Export,
    Table,
    check_regular,
    new_file,
    parse_sidecar,
    sidecar_of,
    write_sidecar,
)
from formats.container import AGE_TOP, AGE_UNKNOWN, PROJECTIONS, SPLITS
from formats.container import SEXES as SEX_NAMES
from formats.editing import EditReport, _neutralise
from formats.errors import ContainerError, NotesError, WriteError
from formats.notes import validate_notes
from formats.writer import ContainerWriter

__all__ = ["export_container", "import_container"]

Progress = Callable[[int, int], None]

_KEY_BYTES = 16
_LEAST_I8, _MOST_I8 = -127, 127
# sixteen random bytes have fewer different values once in 10**9 keys
_LEAST_KEY_BYTES = 9
_ENOUGH_KEYS = 32
_MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "<na>", "nat"))
_PLAIN_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def export_container(
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EditReport:
    """Write a container's features, columns and notes as another program's table.

    The kind is that of the name's ending. ``.npz``: arrays ``features``, ``scales`` (i8), one for
    each column, and ``notes`` (JSON as uint8). ``.safetensors``: the same as tensors, the notes in
    the metadata. ``.parquet``: a fixed-size list a row, the columns beside it, the notes in the
    schema's metadata. ``.csv``: words for labels, splits and sources, features ``f0`` and on as
    their shortest decimals, and the notes in ``<name>.notes.json`` beside it. Features stay as
    stored: i8 as integers, which the scales turn into values.

    Parameters
    ----------
    path : str or PathLike
        The container; verified first.
    out : str or PathLike
        The table: ``.npz``, ``.safetensors``, ``.parquet`` or ``.csv``.
    overwrite : bool
        Whether a file there may be replaced.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``path`` and ``n_rows``, and what was left out.

    Raises
    ------
    ContainerError
        The container is damaged or holds pixels of the images (`Container.not_for_sharing`), the
        ending is unknown, or pyarrow is missing.
    WriteError
        The table cannot be written, or is there already.
    """
    target = check_output(out, [path], what="table")
    write = _by_ending(target, WRITERS)
    remarks: list[str] = []
    with open_verified([path], progress) as (opened, meter):
        source = opened[0]
        if source.not_for_sharing:
            raise ContainerError(source.path, f"is not exported. {source.not_for_sharing}.")
        notes = copy_notes(source, remarks)
        # what is made of the table again is a child of this container, and known as one
        notes["derived_from"] = lineage([source])
        if source.scales is not None and not np.isfinite(source.scales).all():
            raise ContainerError(
                source.path,
                "has scales that are not finite, so the features of its int8 elements are no "
                "numbers. Extract it again.",
            )

        def pieces() -> Iterator[NDArray[Any]]:
            for piece in iter_pieces(source.n_rows, source.dim):
                yield source.read_stored(piece)
                share = (piece.stop - piece.start) / source.n_rows
                meter.add(int(source.size_bytes * share))

        export = Export(
            source.n_rows,
            source.dim,
            source.dtype,
            ELEMENTS[source.dtype],
            source.scales,
            copy_columns(source, remarks),
            notes,
            pieces,
        )
        with contextlib.ExitStack() as stack:
            if target.suffix.lower() == ".csv":
                beside = new_file(sidecar_of(target), overwrite=overwrite)
                write_sidecar(stack.enter_context(beside), export)
            write(stack.enter_context(new_file(target, overwrite=overwrite)), export)
        meter.finish()
    return EditReport(target, source.n_rows, {}, tuple(remarks))


def import_container(
    file: str | PathLike[str],
    out: str | PathLike[str],
    *,
    notes: Mapping[str, Any] | str | PathLike[str] | None = None,
    dtype: str | None = None,
    features: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    without_splits: bool = False,
    keep_order: bool = False,
    seed: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EditReport:
    """Make a container of a table: one that `export_container` wrote, or a stranger's.

    A stranger's table needs `notes` with at least ``backbone`` and ``preprocessing``; classes and
    sources are taken from the table where the notes do not name them. Its features are an array
    ``features`` or ``X``, or columns with a common stem and running numbers such as ``f0``,
    ``f1`` and on. Columns may be called as in containers, or ``y``, ``labels``, ``class``,
    ``target`` (label), ``patient``, ``patient_id``, ``subject``, ``mrn``, ``groups`` (group), in
    any case. Columns of other names are refused. In a column of labels ``A|B`` are two findings of
    one image and ``A?`` is an uncertain one, as in a manifest. What stands in the group column, a
    name for instance, never gets into the file: patients become random numbers.

    Parameters
    ----------
    file : str or PathLike
        The table: ``.npz``, ``.safetensors``, ``.parquet`` or ``.csv``.
    out : str or PathLike
        The new container.
    notes : mapping or path of a JSON file, optional
        See ``formats/container.md``; instead of those that came with the table.
    dtype : {"f16", "f32", "i8"}, optional
        How to store the features; left out, as they were exported, or as float16 if the table
        holds float16, and otherwise as float32.
    features : str or sequence of str
        Names of the columns of features, ``*`` and ``?`` allowed; the array's, where they are one.
    ignore : str or sequence of str
        Columns to leave out.
    without_splits : bool
        Leave the column of splits out.
    keep_order : bool
        Leave the rows in their order instead of shuffling them; it may tell who came first.
    seed : int, optional
        Of the random order; left out, drawn from the operating system.
    overwrite : bool
        Whether a file of the container's name may be replaced.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    EditReport
        ``path``, ``n_rows``, and what a person should know.

    Raises
    ------
    ContainerError
        The table cannot be understood; says which row and column. Or a patient lies in two
        splits.
    NotesError
        The notes break a rule, or something in them looks like an identity.
    WriteError
        The container cannot be written, or is there already.
    """
    path = Path(file)
    inputs: list[str | PathLike[str]] = [path]
    if isinstance(notes, str | PathLike):
        inputs.append(notes)
    target = check_output(out, inputs)
    read = _by_ending(path, READERS)
    for name in inputs:
        check_regular(Path(name))
    if not overwrite and os.path.lexists(target):
        raise WriteError(
            target,
            "exists already. Choose another name or have it replaced (--overwrite, "
            "overwrite=True).",
        )
    table = read(path, Choice(_tuple(features), _tuple(ignore)))
    scales, own = table.scales, table.dtype is not None
    given: Any = table.notes
    if isinstance(notes, str | PathLike):
        given, stored, more = parse_sidecar(Path(notes))
        if stored is not None:
            table.dtype, own = stored, True
        scales = more if more is not None else scales
    elif notes is not None:
        given = dict(notes)
    given = _basic_notes(path, given)
    meter = Meter(progress, 2 * path.stat().st_size)
    with _temporary(target) as spool:
        spooled = _Spool(table, target, spool, scales, dtype)
        spooled.fill(meter, path.stat().st_size)
        given.setdefault("blocks", _one_block(spooled.dim))
        if without_splits:
            table.columns.pop("split", None)
        columns = _read_columns(table, spooled.n_rows, given, own)
        full = {"format": "hilum-notes", "version": 1, **given}
        validate_notes(full, dim=spooled.dim)
        order = np.arange(spooled.n_rows)
        if not keep_order:
            order = np.random.default_rng(seed).permutation(spooled.n_rows)
        dense = own and _is_dense(columns.get("group"))
        _write(target, spooled, order, columns, full, seed, "given" if dense else "random", meter)
    return EditReport(target, spooled.n_rows, {}, tuple(table.remarks))


def _tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _by_ending(path: Path, table: Mapping[str, Any]) -> Any:
    ending = path.suffix.lower()
    if ending not in table:
        raise ContainerError(
            path, f"the name ends in {ending or 'nothing'!r}, expected {', '.join(table)}."
        )
    return table[ending]


def _folder(target: Path) -> Path:
    if not target.parent.is_dir():
        raise ContainerError(
            target, f"the folder {target.parent} does not exist. Create it first (mkdir -p)."
        )
    return target.parent


def _temporary(target: Path) -> Any:
    folder = _folder(target)
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as exc:
        raise WriteError(target, explain_write_failure(target, exc)) from exc


# ---- features ----------------------------------------------------------------------------------


class _Spool:
    """Features in an unnamed file: checked once, then taken in any order.

    Parameters
    ----------
    table : Table
        Where they come from.
    target : Path
        Where they go to in the end, for messages.
    stream : binary file
        Empty and without a buffer.
    scales : float32 (dim,) or None
        For i8.
    dtype : str or None
        How they are to be stored.
    """

    def __init__(
        self,
        table: Table,
        target: Path,
        stream: Any,
        scales: NDArray[np.float32] | None,
        dtype: str | None,
    ) -> None:
        self._table = table
        self._target = target
        self._stream = stream
        self.dtype = dtype or table.dtype
        self.scales = scales
        self.dim = 0
        self.n_rows = 0
        self.element: np.dtype[Any] = np.dtype("<f4")

    def fill(self, meter: Meter, n_bytes: int) -> None:
        """Read all features, and thereby all columns, of the table."""
        advance = meter.stage()
        for part in self._table.pieces():
            if not self.dim:
                self._begin(part)
            values = self._convert(part)
            try:
                write_at(self._stream.fileno(), values.data.cast("B"), None)
            except OSError as exc:
                raise ContainerError(
                    self._target, explain_write_failure(self._target, exc)
                ) from exc
            self.n_rows += len(part)
            n_spooled = self.n_rows * self.dim * self.element.itemsize
            if n_spooled > BOMB_BYTES and n_spooled > BOMB_RATIO * n_bytes:
                raise ContainerError(
                    self._table.path,
                    f"unpacks from {n_bytes} bytes to more than {n_spooled}: no features are like "
                    "that. Look at where it comes from.",
                )
            advance(min(n_bytes, self.n_rows * self.dim * part.itemsize), n_bytes)
        if self.n_rows == 0:
            raise ContainerError(self._table.path, "has no rows.")
        advance(n_bytes, n_bytes)

    def _begin(self, part: NDArray[Any]) -> None:
        path = self._table.path
        self.dim = part.shape[1]
        if not self.dim:
            raise ContainerError(path, "has no features.")
        integers = self._table.dtype == "i8"
        if integers and (self.scales is None or self.scales.shape != (self.dim,)):
            found = 0 if self.scales is None else len(self.scales)
            raise ContainerError(
                path, f"there are {found} scales, but {self.dim} features. Give its own notes."
            )
        if self.dtype is None:
            self.dtype = "f16" if part.dtype.newbyteorder("<") == np.dtype("<f2") else "f32"
        if self.dtype not in ELEMENTS:
            raise ContainerError(
                path, f"the dtype is {self.dtype!r}, expected one of {', '.join(ELEMENTS)}."
            )
        keeps = integers and self.dtype == "i8"
        self.element = np.dtype("i1") if keeps else np.dtype("<f4")
        if self.dtype == "f16" and not integers:
            self.element = np.dtype("<f2")

    def _convert(self, part: NDArray[Any]) -> NDArray[Any]:
        table = self._table
        if part.shape[1] != self.dim:
            raise ContainerError(
                table.path,
                f"{table.row(self.n_rows)} has {part.shape[1]} features, expected {self.dim}.",
            )
        if table.dtype == "i8":
            # other writers may use -128; Hilum's does not
            low = _LEAST_I8 if self.element == np.int8 else _LEAST_I8 - 1
            wrong = (part < low) | (part > _MOST_I8) | (part != np.rint(part))
            self._refuse(part, wrong, f"a whole number from {low} to {_MOST_I8}")
            if self.element != np.int8 and self.scales is not None:
                return np.ascontiguousarray(part.astype(np.float32) * self.scales, "<f4")
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(part, self.element)
        if self.element.kind == "f":
            limit = "f16 holds up to 65504: " if self.element.itemsize == 2 else ""
            self._refuse(part, ~np.isfinite(values), f"{limit}a finite number")
        return values

    def _refuse(self, part: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            table = self._table
            name = f"feature {column}" if table.names is None else repr(table.names[column])
            raise ContainerError(
                table.path,
                f"{table.row(self.n_rows + row)}, {name}: found {part[row, column]}, expected "
                f"{expected}.",
            )

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copy rows, in any order."""
        out = np.empty((len(rows), self.dim), self.element)
        row_bytes = self.dim * self.element.itemsize
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        target = np.empty_like(out)
        data = target.data.cast("B")
        edges = np.flatnonzero(np.diff(sorted_rows) != 1) + 1
        start = 0
        for stop in (*edges.tolist(), len(rows)):
            self._stream.seek(int(sorted_rows[start]) * row_bytes)
            at = start * row_bytes
            while at < stop * row_bytes:
                n_read = self._stream.readinto(data[at : stop * row_bytes])
                if not n_read:
                    raise ContainerError(self._table.path, "the temporary file ended early.")
                at += n_read
            start = stop
        out[order] = target
        return out


def _write(
    target: Path,
    spooled: _Spool,
    order: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    notes: Mapping[str, Any],
    seed: int | None,
    group_order: Literal["random", "given"],
    meter: Meter,
) -> None:
    try:
        with ContainerWriter(
            target,
            dim=spooled.dim,
            dtype=spooled.dtype or "f32",
            expected_rows=spooled.n_rows,
            backbone_digest=notes["backbone"]["sha256"],
            preprocessing_digest=preprocessing_digest(notes["preprocessing"]),
            scales=spooled.scales if spooled.element == np.int8 else None,
            group_order=group_order,
            seed=seed,
        ) as writer:
            for piece in iter_pieces(spooled.n_rows, spooled.dim):
                rows = order[piece]
                part: Any = {name: values[rows] for name, values in columns.items()}
                writer.append(spooled.read(rows), **part)
                meter.add(spooled.element.itemsize * spooled.dim * len(rows))
            writer.seal(notes)
    except (ContainerError, NotesError):
        raise
    except ValueError as exc:
        raise ContainerError(target, str(exc).removeprefix(f"{target}: ")) from exc
    meter.finish()


# ---- notes -------------------------------------------------------------------------------------


def _basic_notes(path: Path, given: Any) -> dict[str, Any]:
    if given is None:
        raise ContainerError(
            path,
            "no notes came with it. Give a JSON file (--notes) with at least backbone {name, "
            "sha256} and preprocessing, which say what the features are; see formats/container.md.",
        )
    if not isinstance(given, Mapping):
        raise ContainerError(path, "its notes are no JSON object.")
    for key in ("backbone", "preprocessing"):
        if key not in given:
            raise NotesError(key, "is missing: without it nobody knows what the features are.")
    return dict(given)


def _one_block(dim: int) -> list[dict[str, Any]]:
    return [{"tap": "imported", "pooling": "imported", "offset": 0, "width": dim}]


# ---- columns -----------------------------------------------------------------------------------


def _read_columns(
    table: Table, n_rows: int, notes: dict[str, Any], own: bool
) -> dict[str, NDArray[Any]]:
    """Turn what stands in the columns into what containers hold; complete the notes."""
    columns: dict[str, NDArray[Any]] = {}
    view = table.columns.get("view")
    if view is not None and _is_text(view) and "projection" not in table.columns:
        texts = _texts(table, "view", view)
        if any(text and not text.isdigit() for text in texts):
            # as in a manifest: PA, AP, LATERAL
            table.columns["projection"] = table.columns.pop("view")
            table.remarks.append("the column view holds projections, and was taken for them")
    for name in COLUMNS:
        if name not in table.columns:
            continue
        values = table.columns[name]
        if len(values) != n_rows:
            raise ContainerError(
                table.path, f"column {name} has {len(values)} rows, the features have {n_rows}."
            )
        columns[name] = _READ[name](table, values, notes)
    label = columns.get("label")
    notes.setdefault("classes", [])
    notes.setdefault("multilabel", label is not None and label.ndim == 2)
    if "sample_key" in columns and not own:
        _check_keys(table, columns["sample_key"])
    withdrawn = np.zeros(n_rows, np.bool_)
    if "row_flags" in columns:
        withdrawn = columns["row_flags"] != 0
        _neutralise(columns, withdrawn, n_rows)
    if "group" in columns and "split" in columns:
        _refuse_torn_patients(table, columns["group"], columns["split"], withdrawn, own)
    if "view" in columns and "group" not in columns and not own and columns["view"].any():
        row = int(np.argmax(columns["view"] > 0))
        raise ContainerError(
            table.path,
            f"{table.row(row)} is view {columns['view'][row]} of an image, but no column says "
            "whose: views of one image could lie in two splits. Add a column of patients, or "
            "leave the views out (--ignore).",
        )
    return columns


def _refuse_torn_patients(
    table: Table,
    groups: NDArray[np.int64],
    splits: NDArray[Any],
    withdrawn: NDArray[np.bool_],
    own: bool,
) -> None:
    if not splits.any():
        return
    # rows that are not marked are learned from, as in a manifest
    sides = splits.astype(np.int64) if own else np.where(splits == 0, 1, splits).astype(np.int64)
    used = np.flatnonzero((sides != 0) & ~withdrawn)
    pairs, first = np.unique(groups[used] * 4 + sides[used], return_index=True)
    patients, n_splits = np.unique(pairs // 4, return_counts=True)
    torn = patients[n_splits > 1]
    if len(torn):
        rows = sorted(used[first[pairs // 4 == torn[0]]].tolist())[:2]
        where = " and ".join(
            f"{table.row(row)} is {SPLITS[splits[row]] if splits[row] else 'not marked'}"
            for row in rows
        )
        raise ContainerError(
            table.path,
            f"{len(torn)} patient(s) lie in two splits: of one, {where}. What is learned of a "
            "patient would be tested on the same patient. Import without splits "
            "(--without-splits), then divide anew (resplit).",
        )


def _check_keys(table: Table, keys: NDArray[np.uint8]) -> None:
    """Refuse sample keys that are no keyed digests, but names or numbers of somebody."""
    known = np.flatnonzero(keys.any(axis=1))
    if not len(known):
        return
    _, first = np.unique(as_records(keys[known]), return_index=True)
    unique = keys[known[first]]
    cure = (
        " A sample key is a keyed digest of 16 bytes; anything else in its place may say who "
        "somebody is. Leave the column out (--ignore)."
    )
    ordered = np.sort(unique, axis=1)
    n_distinct = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)
    poor = n_distinct < _LEAST_KEY_BYTES
    if poor.any():
        row = int(known[first[poor]].min())
        raise ContainerError(
            table.path,
            f"{table.row(row)}, column sample_key: the 16 bytes are hardly random, more like a "
            f"number.{cure}",
        )
    printable = ((unique >= 0x20) & (unique < 0x7F)) | (unique == 0)
    text_like = printable.all(axis=1)
    # one random key in seven million looks like text by chance
    if np.count_nonzero(text_like) > len(unique) // 20_000:
        row = int(known[first[text_like]].min())
        raise ContainerError(
            table.path, f"{table.row(row)}, column sample_key: the 16 bytes are text.{cure}"
        )
    if len(unique) >= _ENOUGH_KEYS:
        constant = int(np.count_nonzero((unique == unique[0]).all(axis=0)))
        if constant > 1:
            raise ContainerError(
                table.path,
                f"column sample_key: {constant} of 16 bytes are the same in all keys, so they "
                f"look like running numbers.{cure}",
            )


def _wrong(
    table: Table, name: str, row: int, found: Any, expected: str, cure: str = ""
) -> ContainerError:
    shown = repr(str(found)[:40]) if isinstance(found, str) else str(found)
    return ContainerError(
        table.path,
        f"{table.row(row)}, column {name}: found {shown or 'nothing'}, expected {expected}.{cure}",
    )


def _is_text(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "OUST"


def _texts(table: Table, name: str, values: NDArray[Any]) -> list[str]:
    if values.ndim != 1:
        raise ContainerError(
            table.path, f"column {name} has shape {values.shape}, expected one value a row."
        )
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in values.tolist()]
    return [str(value) for value in values.tolist()]


def _whole(table: Table, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Read whole numbers, also where they stand as text or as floats."""
    if _is_text(values):
        numbers = np.empty(len(values), np.int64)
        for row, text in enumerate(_texts(table, name, values)):
            try:
                value = float(text)
                if value != int(value) or abs(value) > 2**53 or "_" in text:
                    raise ValueError
            except (ValueError, OverflowError):
                raise _wrong(table, name, row, text, "a whole number") from None
            numbers[row] = int(value)
        return numbers
    if values.dtype.kind not in "iufb":
        raise ContainerError(table.path, f"column {name} is {values.dtype}, expected numbers.")
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            bad = ~(np.abs(values) < 2.0**53) | (values != np.rint(values))
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise _wrong(table, name, where[0], values[where], "a whole number")
    if values.dtype.kind == "u" and values.size and int(values.max()) > 2**62:
        raise ContainerError(table.path, f"column {name} holds {values.max()}: too large.")
    return values.astype(np.int64)


def _between(
    table: Table, name: str, values: NDArray[np.int64], low: int, high: int, cure: str = ""
) -> NDArray[np.int64]:
    wrong = (values < low) | (values > high)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise _wrong(table, name, where[0], values[where], f"{low} to {high}", cure)
    return values


def _words(
    table: Table, name: str, values: NDArray[Any], words: Mapping[str, int], expected: str
) -> NDArray[np.int64] | None:
    """Look up words; None if not all are words and the column has to be numbers then."""
    numbers = np.empty(len(values), np.int64)
    for row, text in enumerate(_texts(table, name, values)):
        code = words.get(text, words.get(text.lower()))
        if code is None and text.lower() in _MISSING:
            code = words.get("")
        if code is None:
            if text.isascii() and text.isdigit():
                return None
            raise _wrong(table, name, row, text, expected)
        numbers[row] = code
    return numbers


def _names(
    table: Table, name: str, values: NDArray[Any], notes: dict[str, Any], key: str
) -> NDArray[np.int64]:
    """Read names or indices into the notes' list `key`, which is made where there is none."""
    known = notes.get(key)
    if known is not None and not (
        isinstance(known, Sequence) and all(isinstance(item, str) for item in known)
    ):
        raise NotesError(key, "is no list of names.")
    if not _is_text(values):
        numbers = _whole(table, name, values)
        if known is None:
            raise NotesError(
                key,
                f"is missing, and the {name} column holds numbers: nobody knows what of. Name "
                f'them in the notes (--notes): "{key}": ["the name of 0", "the name of 1", ...].',
            )
        return _between(table, name, numbers, 0, len(known) - 1, f" The notes' {key} name them.")
    texts = _texts(table, name, values)
    if known is None:
        known = notes[key] = sorted(set(texts))
    index = {text: i for i, text in enumerate(known)}
    missing = next((row for row, text in enumerate(texts) if text not in index), None)
    if missing is None:
        return np.array([index[text] for text in texts], np.int64)
    if all(text.isascii() and text.isdigit() for text in texts):
        return _names(table, name, _whole(table, name, values), notes, key)
    shown = ", ".join(known[:20])
    raise _wrong(table, name, missing, texts[missing], f"one of {shown}")


def _read_label(table: Table, values: NDArray[Any], notes: dict[str, Any]) -> NDArray[Any]:
    if values.ndim == 1:
        if notes.get("multilabel") and not _is_text(values):
            raise ContainerError(
                table.path, "the notes say multilabel, but there is one label a row."
            )
        if _is_text(values):
            if notes.get("classes") == []:
                notes.pop("classes")
            return _label_words(table, _texts(table, "label", values), values, notes)
        return _names(table, "label", values, notes, "classes")
    if notes.get("multilabel") is False:
        raise ContainerError(
            table.path, "the notes say one label a row, but there are several columns of labels."
        )
    numbers = _between(
        table, "label", _whole(table, "label", values), -2, 1, " 1 is present, 0 absent."
    ).astype(np.int8)
    if table.label_names is not None:
        classes = notes.setdefault("classes", list(table.label_names))
        if sorted(classes) != sorted(table.label_names):
            raise ContainerError(
                table.path,
                f"its columns label:NAME are {', '.join(table.label_names[:10])}, but the notes' "
                f"classes {', '.join(classes[:10])}.",
            )
        return numbers[:, [table.label_names.index(name) for name in classes]]
    if len(notes.get("classes", ())) != numbers.shape[1]:
        raise NotesError(
            "classes",
            f"found {len(notes.get('classes', ()))} names, but the labels have "
            f"{numbers.shape[1]} columns. Name them in the notes (--notes): "
            '"classes": ["the name of the first", ...].',
        )
    return numbers


def _label_words(
    table: Table, texts: list[str], values: NDArray[Any], notes: dict[str, Any]
) -> NDArray[Any]:
    """Read names as a manifest has them: ``A|B`` is two findings, ``A?`` an uncertain one."""
    known = notes.get("classes")
    named = frozenset(known) if isinstance(known, Sequence) else frozenset()
    several = notes.get("multilabel")
    if several is None:
        several = any(text not in named and ("|" in text or text.endswith("?")) for text in texts)
    for row, text in enumerate(texts):
        # with several a row, an empty one says that no finding is present, as in a manifest
        if text not in named and text.lower() in _MISSING and not (several and not text):
            raise _wrong(table, "label", row, text, "a class", " Leave such rows out.")
    if not several:
        return _names(table, "label", values, notes, "classes")
    findings = [_findings(table, row, text, named) for row, text in enumerate(texts)]
    if known is None:
        known = notes["classes"] = sorted({name for found in findings for name in found})
    index = {name: i for i, name in enumerate(known)}
    labels = np.zeros((len(texts), len(known)), np.int8)
    for row, found in enumerate(findings):
        for name, value in found.items():
            if name not in index:
                raise _wrong(table, "label", row, name, f"one of {', '.join(known[:20])}")
            labels[row, index[name]] = value
    return labels


def _findings(table: Table, row: int, text: str, named: frozenset[str]) -> dict[str, int]:
    if text in named:
        return {text: 1}
    found: dict[str, int] = {}
    for part in text.split("|"):
        name, value = part.strip(), 1
        if name not in named and name.endswith("?"):
            name, value = name.removesuffix("?").rstrip(), -1
            if not name:
                raise _wrong(table, "label", row, text, "a name before the ?")
        if not name:
            continue
        if name.lower() in _MISSING and name not in named:
            raise _wrong(table, "label", row, text, "classes", " Leave such rows out.")
        if found.setdefault(name, value) != value:
            raise _wrong(table, "label", row, text, f"{name!r} present or uncertain, not both")
    return found


def _read_group(table: Table, values: NDArray[Any], notes: dict[str, Any]) -> NDArray[Any]:
    del notes
    if values.ndim != 1:
        raise ContainerError(
            table.path, f"column group has shape {values.shape}, expected one value a row."
        )
    missing = np.zeros(len(values), np.bool_)
    if _is_text(values):
        texts = [text.strip() for text in _texts(table, "group", values)]
        missing = np.array([text.lower() in _MISSING for text in texts], np.bool_)
        values = np.array(texts)
        if all(_PLAIN_NUMBER.fullmatch(text) for text in texts):
            values = values.astype(np.int64)
    elif values.dtype.kind == "f":
        missing = ~np.isfinite(values)
    if missing.any():
        table.remarks.append(
            f"{np.count_nonzero(missing)} rows name no patient: each was taken for a patient of "
            "its own"
        )
        _, dense = np.unique(values[~missing], return_inverse=True)
        numbers = np.empty(len(values), np.int64)
        numbers[~missing] = dense.reshape(-1)
        n_known = int(dense.max()) + 1 if dense.size else 0
        numbers[missing] = np.arange(n_known, n_known + np.count_nonzero(missing))
        return numbers
    # text and large numbers end here: what goes on is the position in a sorted list, and the
    # writer draws random numbers for these
    if values.dtype.kind in "iu" and _is_dense(values):
        return values.astype(np.int64)
    _, dense = np.unique(values, return_inverse=True)
    return dense.astype(np.int64).reshape(-1)


def _is_dense(values: NDArray[Any] | None) -> bool:
    if values is None or not len(values):
        return False
    low, high = int(values.min()), int(values.max())
    return low == 0 and high < len(values) and len(np.unique(values)) == high + 1


def _read_key(table: Table, values: NDArray[Any], notes: dict[str, Any]) -> NDArray[Any]:
    del notes
    if values.ndim == 2:
        if values.dtype != np.uint8 or values.shape[1] != _KEY_BYTES:
            raise ContainerError(
                table.path,
                f"column sample_key is {values.dtype} {values.shape}, expected uint8 (n, 16).",
            )
        return np.array(values)  # what was read from a file cannot be written to
    keys = np.zeros((len(values), _KEY_BYTES), np.uint8)
    for row, text in enumerate(_texts(table, "sample_key", values)):
        if not text:
            continue
        try:
            data = bytes.fromhex(text)
            if len(data) != _KEY_BYTES or len(text) != 2 * _KEY_BYTES:
                raise ValueError
        except ValueError:
            raise _wrong(table, "sample_key", row, text, "32 hexadecimal digits") from None
        keys[row] = np.frombuffer(data, np.uint8)
    return keys


def _read_source(table: Table, values: NDArray[Any], notes: dict[str, Any]) -> NDArray[Any]:
    if _is_text(values):
        known = notes.get("sources") or ()
        texts = [
            "unknown" if text.lower() in _MISSING and text not in known else text
            for text in _texts(table, "source", values)
        ]
        values = np.array([*texts, None], object)[:-1]
    return _names(table, "source", values, notes, "sources")


def _coded(
    name: str, words: Mapping[str, int], high: int, expected: str
) -> Callable[[Table, NDArray[Any], dict[str, Any]], NDArray[Any]]:
    def read(table: Table, values: NDArray[Any], notes: dict[str, Any]) -> NDArray[Any]:
        del notes
        if values.ndim != 1:
            raise ContainerError(
                table.path, f"column {name} has shape {values.shape}, expected one value a row."
            )
        if _is_text(values):
            codes = _words(table, name, values, words, expected)
            if codes is not None:
                return codes
        return _between(table, name, _whole(table, name, values), 0, high, f" Or {expected}.")

    return read


def _read_age(table: Table, values: NDArray[Any], notes: dict[str, Any]) -> NDArray[Any]:
    del notes
    if _is_text(values):
        texts = [
            str(AGE_UNKNOWN) if text.lower() in _MISSING else text
            for text in _texts(table, "age", values)
        ]
        values = np.array([*texts, None], object)[:-1]
    elif values.dtype.kind == "f":
        values = np.where(np.isnan(values), AGE_UNKNOWN, values)
    ages = _whole(table, "age", values)
    if ages.ndim != 1:
        raise ContainerError(
            table.path, f"column age has shape {ages.shape}, expected one value a row."
        )
    unknown = ages == AGE_UNKNOWN
    _between(table, "age", np.where(unknown, 0, ages), 0, 130)
    # higher ages identify: the format has one number for them
    return np.where(unknown, AGE_UNKNOWN, np.minimum(ages, AGE_TOP))


def _plain(name: str, high: int) -> Callable[[Table, NDArray[Any], dict[str, Any]], NDArray[Any]]:
    return _coded(name, {}, high, f"a whole number from 0 to {high}")


_SEX_WORDS = {
    **{name: i for i, name in enumerate(SEX_NAMES)},
    **{name.lower(): i for i, name in enumerate(SEXES)},
}
_PROJECTION_WORDS = {"": 0, **{name.lower(): i for i, name in enumerate(PROJECTIONS)}}
_SPLIT_WORDS = {"": 0, **{name: i for i, name in enumerate(SPLITS)}, "val": 2, "validation": 2}

_READ: Mapping[str, Callable[[Table, NDArray[Any], dict[str, Any]], NDArray[Any]]] = {
    "label": _read_label,
    "split": _coded("split", _SPLIT_WORDS, 3, ", ".join(SPLITS)),
    "group": _read_group,
    "sample_key": _read_key,
    "source": _read_source,
    "view": _plain("view", 255),
    "row_flags": _plain("row_flags", 1),
    "sex": _coded("sex", _SEX_WORDS, 3, "F, M, other or nothing"),
    "age": _read_age,
    "projection": _coded("projection", _PROJECTION_WORDS, 5, ", ".join(PROJECTIONS)),
}
