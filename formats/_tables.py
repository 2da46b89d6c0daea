"""How .npz, .safetensors, .parquet and .csv files hold tables of features, in bounded memory.

Nothing here is believed before it is checked: sizes come from headers and are compared with the
file's own before memory is taken, and nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import errno
import fnmatch
import importlib
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from formats._atomic import explain_write_failure, open_regular, sync_folder
from formats._json import canonical_json, parse_json
from formats._rows import COLUMNS, piece_rows
from formats.container import PROJECTIONS, SPLITS
from formats.errors import ContainerError, NotesError, WriteError

__all__ = [
    "ALIASES",
    "BOMB_BYTES",
    "BOMB_RATIO",
    "READERS",
    "SEXES",
    "WRITERS",
    "Choice",
    "Export",
    "Table",
    "check_regular",
    "listed",
    "new_file",
    "parse_sidecar",
    "sidecar_of",
    "write_sidecar",
]

SEXES = ("", "F", "M", "other")
"""What stands in a CSV for the values of the ``sex`` column."""

ALIASES: Mapping[str, str] = {
    **{name: name for name in COLUMNS},
    "y": "label",
    "labels": "label",
    "class": "label",
    "target": "label",
    "groups": "group",
    "patient": "group",
    "patient_id": "group",
    "patientid": "group",
    "subject": "group",
    "subject_id": "group",
    "subjectid": "group",
    "mrn": "group",
    "splits": "split",
    "sources": "source",
    "sample_keys": "sample_key",
    "views": "view",
    "sexes": "sex",
    "ages": "age",
    "projections": "projection",
}
"""Names, small and with ``_`` for blanks, of columns in a table that Hilum did not write."""

FEATURES = ("features", "X", "embeddings", "embedding")
LABEL_PREFIX = "label:"

_SIDECAR = "hilum-table"
_MOST_SIDECAR_BYTES = 8 << 20
_MOST_HEADER_BYTES = 16 << 20
_MOST_LINE = 16 << 20
_MOST_CELL_BYTES = 1 << 16
_MOST_DIM = 65536
# features do not shrink much; what shrinks so much is a bomb
BOMB_BYTES = 64 << 20
BOMB_RATIO = 200
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})", re.DOTALL)
# what one feature alone may be called: "visit1" is none
_LONE_STEMS = ("f", "x", "feat", "feature", "features", "emb", "embedding", "embeddings")
# a lock that the system takes from whoever is killed
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None


@dataclass(frozen=True)
class Choice:
    """What the user says of a stranger's columns.

    Attributes
    ----------
    features : tuple of str
        Names of feature columns, ``*`` and ``?`` allowed; empty: to be found out.
    ignore : tuple of str
        Names of columns to leave out.
    """

    features: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def matches(self, name: str) -> bool:
        """Tell whether a column is named as one of features."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.features)


@dataclass(frozen=True)
class Export:
    """What goes into a table.

    Attributes
    ----------
    n_rows, dim : int
        Shape of the features.
    dtype : {"f32", "f16", "i8"}
        How they are stored.
    element : dtype
        Of `pieces`.
    scales : float32 (dim,) or None
        For i8.
    columns : dict of str to array
        By name.
    notes : dict
        Of the container.
    pieces : callable
        Gives the features from the first row on.
    """

    n_rows: int
    dim: int
    dtype: str
    element: np.dtype[Any]
    scales: NDArray[np.float32] | None
    columns: Mapping[str, NDArray[Any]]
    notes: Mapping[str, Any]
    pieces: Callable[[], Iterator[NDArray[Any]]]


@dataclass
class Table:
    """What was found in a table.

    Attributes
    ----------
    path : Path
        The file.
    notes : Any
        Notes that lie in it, parsed; None if there are none.
    dtype : str or None
        How Hilum stored the features it exported; None in a stranger's table.
    scales : float32 (dim,) or None
        For i8.
    names : list of str or None
        Names of the features; None if they are one array.
    columns : dict of str to array
        By canonical name, as found: numbers or texts. Complete when `pieces` is at its end.
    label_names : list of str or None
        Classes of a multi-label table with one column for each class.
    first_row : int
        What the first row is called in messages.
    row_word : str
        And what comes before its number.
    remarks : list of str
        What a person should know.
    pieces : callable
        Gives the features from the first row on, any kind of number.
    """

    path: Path
    notes: Any = None
    dtype: str | None = None
    scales: NDArray[np.float32] | None = None
    names: list[str] | None = None
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    label_names: list[str] | None = None
    first_row: int = 0
    row_word: str = "row"
    remarks: list[str] = field(default_factory=list)
    pieces: Callable[[], Iterator[NDArray[Any]]] = lambda: iter(())

    def row(self, index: int) -> str:
        """Name a row as the person who looks into the file would.

        Parameters
        ----------
        index : int
            From 0.

        Returns
        -------
        str
            For example ``line 5``.
        """
        return f"{self.row_word} {index + self.first_row}"


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Write a file that gets its name when it is whole.

    Parameters
    ----------
    path : Path
        Where to.
    overwrite : bool
        Whether a file there may be replaced.

    Yields
    ------
    binary file
        To be written to.

    Raises
    ------
    WriteError
        The folder is missing, read-only or full, or the file is there already.
    """
    if not overwrite and os.path.lexists(path):
        raise WriteError(
            path,
            "exists already. Choose another name or have it replaced (--overwrite, "
            "overwrite=True).",
        )
    # one name for each target: what a killed export left is found, and written over, by the next
    temporary = path.with_name(f".{path.name[:200]}.part")
    try:
        try:
            with _hold(temporary) as stream:
                try:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                    if _fcntl is not None:
                        # under the lock: nobody else may take this file for a dead program's
                        temporary.replace(path)
                except BaseException:
                    if _fcntl is not None:
                        _remove(temporary)
                    raise
            if _fcntl is None:
                temporary.replace(path)  # Windows does not rename what is open
        except _BusyError:
            raise WriteError(
                path, f"is being written by another program, into {temporary.name}. Wait for it."
            ) from None
        except BaseException:
            if _fcntl is None:
                _remove(temporary)
            raise
        sync_folder(path.parent)
    except OSError as exc:
        if isinstance(exc, WriteError):
            raise
        raise WriteError(path, explain_write_failure(path, exc)) from exc


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class _BusyError(Exception):
    """Another program writes the file."""


@contextlib.contextmanager
def _hold(temporary: Path) -> Iterator[BinaryIO]:
    """Open the unfinished file, a dead program's too, and lock it where the system offers that."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        raw = io.FileIO(temporary, "wb", opener=lambda name, _: os.open(name, flags, 0o666))
        with io.BufferedWriter(raw) as stream:
            if _fcntl is not None:
                try:
                    _fcntl.flock(stream.fileno(), _fcntl.LOCK_EX | _fcntl.LOCK_NB)
                except OSError as exc:
                    if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
                        raise _BusyError from exc
                    # else a file system without locks
                try:
                    same = os.path.samestat(os.fstat(stream.fileno()), temporary.stat())
                except FileNotFoundError:
                    same = False
                if not same:  # it got its name, or went, between the opening and the lock
                    continue
            raw.truncate(0)
            yield stream
            return


def _folded(name: str) -> str:
    """Return what a column's name is looked up as."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _sort_names(
    table: Table, names: Sequence[str], choice: Choice
) -> tuple[list[int], dict[str, int], list[int]]:
    """Find out which columns of a flat table are features, known columns, and classes.

    A column that is neither, such as a number of a study, is refused: only the user can say what
    may go into a file that travels.
    """
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name:
            raise ContainerError(
                table.path,
                f"column {i + 1} has no name. Give it one; if it is no feature, leave it out "
                "(pandas: index=False).",
            )
        if name in seen:
            raise ContainerError(table.path, f"two columns are called {name!r}. Rename one.")
        seen.add(name)
    _check_ignored(table.path, names, choice)
    known: dict[str, int] = {}
    classes: list[int] = []
    others: list[int] = []
    for i, name in enumerate(names):
        if name in choice.ignore:
            continue
        meaning = ALIASES.get(_folded(name))
        if name.startswith(LABEL_PREFIX):
            classes.append(i)
        elif meaning is not None:
            if meaning in known:
                raise ContainerError(
                    table.path,
                    f"the columns {names[known[meaning]]!r} and {name!r} both mean "
                    f"{meaning}. Leave one out (--ignore NAME).",
                )
            known[meaning] = i
        else:
            others.append(i)
    features = _find_features(table, names, others, choice)
    if len(features) > _MOST_DIM:
        raise ContainerError(
            table.path, f"has {len(features)} features a row, at most {_MOST_DIM} are possible."
        )
    if classes and "label" in known:
        raise ContainerError(
            table.path, "has a column label and columns label:NAME. Leave one kind out."
        )
    if classes:
        table.label_names = [names[i][len(LABEL_PREFIX) :] for i in classes]
    table.names = [names[i] for i in features]
    if table.dtype is None:
        few = len(features) <= 8 and not _is_family(table.names)
        shown = ", ".join(table.names) if few else f"{table.names[0]} to {table.names[-1]}"
        table.remarks.append(
            f"features: {shown if len(features) > 1 else table.names[0]} ({len(features)})"
        )
    return features, known, classes


def _check_ignored(path: Path, names: Sequence[str], choice: Choice) -> None:
    for name in choice.ignore:
        if name not in names:
            raise ContainerError(
                path, f"there is no column {name!r} to ignore; it has {listed(names)}."
            )


def _number(name: str) -> tuple[str, int] | None:
    found = _NUMBERED.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def _is_family(names: Sequence[str]) -> bool:
    numbers = [_number(name) for name in names]
    return len({number and number[0] for number in numbers}) == 1 and None not in numbers


def _find_features(
    table: Table, names: Sequence[str], others: Sequence[int], choice: Choice
) -> list[int]:
    """Return the columns of features: a family of one stem with running numbers, or the named."""
    cure = (
        "Leave it out (--ignore NAME,NAME), or, if it is a feature, say which columns are "
        f"(--features 'emb_*,NAME'). Known columns are {', '.join(COLUMNS)}."
    )
    if choice.features:
        chosen = [i for i in others if choice.matches(names[i])]
        wrong = [
            pattern
            for pattern in choice.features
            if not any(fnmatch.fnmatchcase(names[i], pattern) for i in chosen)
        ]
        if wrong:
            raise ContainerError(
                table.path,
                f"no column of features is called {wrong[0]!r}; unknown columns are "
                f"{listed([names[i] for i in others])}.",
            )
        if _is_family([names[i] for i in chosen]):
            chosen.sort(key=lambda i: _number(names[i]) or ("", 0))
    else:
        families: dict[str, list[int]] = {}
        for i in others:
            number = _number(names[i])
            if number is not None:
                families.setdefault(number[0], []).append(i)
        families = {
            stem: members
            for stem, members in families.items()
            if len(members) > 1 or stem.lower().strip("_-. ") in _LONE_STEMS
        }
        stem = max(families, key=lambda stem: len(families[stem]), default="")
        chosen = sorted(families.get(stem, ()), key=lambda i: _number(names[i]) or ("", 0))
        _check_complete(table, names, chosen)
    strange = [names[i] for i in others if i not in set(chosen)]
    if strange:
        more = f" (and {len(strange) - 1} more: {listed(strange[1:])})" if len(strange) > 1 else ""
        raise ContainerError(table.path, f"column {strange[0]!r} is unknown{more}. {cure}")
    if not chosen:
        raise ContainerError(
            table.path,
            "has no columns of features. Expected f0, f1, ... or others with running numbers, or "
            "say which they are (--features).",
        )
    return chosen


def _check_complete(table: Table, names: Sequence[str], chosen: Sequence[int]) -> None:
    previous: int | None = None
    for i in chosen:
        stem, number = _number(names[i]) or ("", 0)
        expected = (0, 1) if previous is None else (previous + 1,)
        if number not in expected:
            what = "stands twice" if number == previous else f"{stem}{expected[0]} is missing"
            raise ContainerError(
                table.path,
                f"the features are not complete: {what} before {names[i]!r}. If all is there, say "
                "which columns are features (--features 'emb_*,NAME').",
            )
        previous = number


def _array_name(path: Path, names: Sequence[str], choice: Choice) -> str:
    _check_ignored(path, names, choice)
    known = {name.lower() for name in FEATURES}
    rest = [name for name in names if name not in choice.ignore]
    if choice.features:
        found = [name for name in rest if choice.matches(name)]
    else:
        found = [name for name in rest if name.lower() in known]
    if len(found) != 1:
        what = f"{' and '.join(found[:8])}: which is it?" if found else "no array of features."
        raise ContainerError(
            path,
            f"has {what} Expected one of {', '.join(FEATURES)}, or one that is named "
            f"(--features NAME); it has {listed(names)}.",
        )
    return found[0]


def _canonical(
    path: Path, names: Sequence[str], extra: Sequence[str], choice: Choice
) -> dict[str, str]:
    """Map canonical column names to those of the file."""
    found: dict[str, str] = {}
    for name in names:
        if name in extra or name in choice.ignore:
            continue
        meaning = ALIASES.get(_folded(name))
        if meaning is None:
            raise ContainerError(
                path,
                f"array {name!r} is unknown. Leave it out (--ignore NAME,NAME); expected features "
                f"and some of {', '.join(COLUMNS)}.",
            )
        if meaning in found:
            raise ContainerError(
                path,
                f"{found[meaning]!r} and {name!r} both mean {meaning}. Leave one out "
                "(--ignore NAME).",
            )
        found[meaning] = name
    return found


def _check_shape(path: Path, name: str, shape: Sequence[int], n_rows: int | None) -> None:
    if n_rows is None:
        if len(shape) != 2 or not 1 <= shape[1] <= _MOST_DIM or not 1 <= shape[0] < 2**31:
            raise ContainerError(
                path, f"{name} has shape {tuple(shape)}, expected (rows, features)."
            )
    elif len(shape) not in (1, 2) or shape[0] != n_rows:
        raise ContainerError(
            path, f"{name} has shape {tuple(shape)}, expected {n_rows} rows as the features have."
        )


def _check_columns_of(table: Table, name: str, shape: Sequence[int], itemsize: int) -> None:
    if math.prod(shape[1:]) * itemsize > _MOST_CELL_BYTES:
        raise ContainerError(
            table.path,
            f"{name} has shape {tuple(shape)} of {itemsize} bytes each: more than "
            f"{_MOST_CELL_BYTES} bytes a row.",
        )


def _embedded_notes(path: Path, data: bytes) -> Any:
    try:
        return parse_json(data)
    except NotesError as exc:
        raise ContainerError(path, f"its {exc} It was not written by Hilum.") from exc


def _scales_of(path: Path, scales: NDArray[Any], dim: int) -> NDArray[np.float32]:
    if scales.dtype != np.float32 or scales.shape != (dim,) or not np.isfinite(scales).all():
        raise ContainerError(
            path,
            f"scales are {scales.dtype} {scales.shape}, expected finite float32 ({dim},).",
        )
    return np.array(scales, "<f4")


def listed(names: Sequence[str]) -> str:
    """Show some names of a file for a message.

    Parameters
    ----------
    names : sequence of str
        Any number of any length.

    Returns
    -------
    str
        At most eight of them, each cut short.
    """
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return (shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more") or "nothing"


def check_regular(path: Path) -> None:
    """Refuse a pipe or device at once: opening one may wait for ever.

    Parameters
    ----------
    path : Path
        To be read.

    Raises
    ------
    ContainerError
        It cannot be opened, or is no file with bytes in it.
    """
    try:
        open_regular(path).close()
    except OSError as exc:
        what = "not a regular file" if exc.errno == errno.EINVAL else exc.strerror
        raise ContainerError(path, f"cannot be read: {what}.") from exc


# ---- .npz --------------------------------------------------------------------------------------


def _write_npz(stream: BinaryIO, export: Export) -> None:
    """Write arrays features, scales, the columns, and notes (UTF-8 JSON as uint8)."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def add(
            name: str, shape: tuple[int, ...], element: np.dtype[Any], parts: Iterator[Any]
        ) -> None:
            # without a date: when a file was made is nobody's business
            entry = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(entry, "w", force_zip64=True) as file:
                header = {
                    "shape": shape,
                    "fortran_order": False,
                    "descr": np.lib.format.dtype_to_descr(element),
                }
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    if part.size:
                        file.write(part.data.cast("B"))

        add("features", (export.n_rows, export.dim), export.element, export.pieces())
        arrays = dict(export.columns)
        if export.scales is not None:
            arrays["scales"] = export.scales
        arrays["notes"] = np.frombuffer(canonical_json(export.notes), np.uint8)
        for name, values in arrays.items():
            packed = np.ascontiguousarray(values)
            add(name, packed.shape, packed.dtype, iter((packed,)))


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    element: np.dtype[Any]
    fortran: bool
    header_bytes: int


def _read_npz(path: Path, choice: Choice) -> Table:
    table = Table(path)
    with _told(path, "npz"), zipfile.ZipFile(path) as archive:
        members: dict[str, _Member] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise ContainerError(path, f"two arrays are called {name!r}.")
            members[name] = _read_npy_header(path, archive, info)
        array = _array_name(path, list(members), choice)
        features = members[array]
        _check_shape(path, array, features.shape, None)
        n_rows, dim = features.shape
        names = _canonical(path, list(members), (array, "notes", "scales"), choice)
        for name, real in names.items():
            member = members[real]
            _check_shape(path, real, member.shape, n_rows)
            _check_columns_of(table, real, member.shape, member.element.itemsize)
            table.columns[name] = _read_member(archive, member)
        if "notes" in members:
            member = members["notes"]
            if member.element != np.uint8 or len(member.shape) != 1 or member.shape[0] > 1 << 20:
                raise ContainerError(
                    path, f"notes are {member.element} {member.shape}, expected UTF-8 as uint8."
                )
            table.notes = _embedded_notes(path, _read_member(archive, member).tobytes())
        if "scales" in members:
            if members["scales"].shape != (dim,):
                raise ContainerError(
                    path, f"scales have shape {members['scales'].shape}, expected ({dim},)."
                )
            table.scales = _scales_of(path, _read_member(archive, members["scales"]), dim)
    if features.element.kind not in "fiu":
        raise ContainerError(path, f"{array} is {features.element}, expected numbers.")
    table.dtype = _own_dtype(table, features.element)

    def pieces() -> Iterator[NDArray[Any]]:
        with _told(path, "npz"), zipfile.ZipFile(path) as archive:
            if features.fortran:
                # column by column on disk: rows can only be had by holding all of it
                yield _read_member(archive, features)
                return
            with archive.open(features.info) as file:
                file.read(features.header_bytes)
                yield from _rows_of(path, file, n_rows, dim, features.element)

    table.pieces = pieces
    return table


def _read_npy_header(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if info.flag_bits & 1:
        raise ContainerError(path, f"{info.filename} is encrypted.")
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * max(1, info.compress_size):
        raise ContainerError(
            path,
            f"{info.filename} would unpack {info.compress_size} bytes to {info.file_size}: no "
            "features are like that. Look at where it comes from.",
        )
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ContainerError(path, f"{info.filename} has the .npy version {version}.")
        # version 3 differs from 2 in the encoding of field names, which no plain array has
        read: Any = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0
        shape, fortran, element = read(file, max_header_size=10_000)
        header_bytes = file.tell()
    if element.hasobject or element.fields is not None or element.subdtype is not None:
        raise ContainerError(
            path, f"{info.filename} holds Python objects or records, which are not read."
        )
    expected = header_bytes + math.prod(shape) * element.itemsize
    if expected != info.file_size:
        raise ContainerError(
            path,
            f"{info.filename} has {info.file_size} bytes, but its shape {shape} of {element} "
            f"needs {expected}. Copy it again from where it came.",
        )
    return _Member(info, shape, element, fortran, header_bytes)


def _read_member(archive: zipfile.ZipFile, member: _Member) -> NDArray[Any]:
    with archive.open(member.info) as file:
        file.read(member.header_bytes)
        data = file.read()
    flat: NDArray[Any] = np.frombuffer(data, member.element)
    if member.fortran:
        return flat.reshape(member.shape[::-1]).T
    return flat.reshape(member.shape)


def _rows_of(
    path: Path, file: Any, n_rows: int, dim: int, element: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Read rows of a file that stands at the first of them."""
    step = piece_rows(dim)
    for start in range(0, n_rows, step):
        wanted = min(step, n_rows - start) * dim * element.itemsize
        data = file.read(wanted)
        if len(data) != wanted:
            raise ContainerError(path, f"ends within row {start + len(data) // (wanted or 1)}.")
        yield np.frombuffer(data, element).reshape(-1, dim)


def _own_dtype(table: Table, element: np.dtype[Any]) -> str | None:
    """Return the dtype that features of this type were exported from, if Hilum did."""
    if table.notes is None:
        return None
    if element == np.int8 and table.scales is not None:
        return "i8"
    return {"<f2": "f16", "<f4": "f32"}.get(element.newbyteorder("<").str)


@contextlib.contextmanager
def _told(path: Path, kind: str) -> Iterator[None]:
    """Turn what libraries say about a file that is not what it seems into one kind of error."""
    try:
        yield
    except ContainerError:
        raise
    except OSError as exc:
        if exc.errno is None:  # pyarrow's own errors are among them
            raise ContainerError(path, f"is no .{kind} file that can be read: {exc}") from exc
        raise ContainerError(path, f"cannot be read: {exc.strerror}.") from exc
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        SyntaxError,
        MemoryError,
        RecursionError,
        OverflowError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
        csv.Error,
    ) as exc:
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise ContainerError(path, f"is no .{kind} file that can be read: {reason}.") from exc


# ---- .safetensors ------------------------------------------------------------------------------

_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def _write_safetensors(stream: BinaryIO, export: Export) -> None:
    """Write tensors features, scales and the columns; the notes are in the metadata.

    By hand and not with the library, which wants all of it in memory.
    """
    codes = {np.dtype(text): code for code, text in _SAFETENSORS_TYPES.items()}
    arrays = {name: np.ascontiguousarray(values) for name, values in export.columns.items()}
    if export.scales is not None:
        arrays["scales"] = export.scales
    header: dict[str, Any] = {
        "__metadata__": {"hilum_notes": canonical_json(export.notes).decode()},
    }
    end = export.n_rows * export.dim * export.element.itemsize
    header["features"] = {
        "dtype": codes[export.element],
        "shape": [export.n_rows, export.dim],
        "data_offsets": [0, end],
    }
    # the widest elements first: every array is then aligned to its own
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    for name, values in ordered:
        header[name] = {
            "dtype": codes[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [end, end + values.nbytes],
        }
        end += values.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for part in export.pieces():
        stream.write(part.data.cast("B"))
    for _, values in ordered:
        stream.write(values.data.cast("B"))


def _read_safetensors(path: Path, choice: Choice) -> Table:
    table = Table(path)
    with _told(path, "safetensors"), path.open("rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else total
        if length > min(_MOST_HEADER_BYTES, total - 8):
            raise ContainerError(
                path, f"its header would have {length} bytes: this is no .safetensors file."
            )
        header = json.loads(
            stream.read(length).decode("utf-8"), object_pairs_hook=_refuse_duplicates
        )
        metadata = header.pop("__metadata__", {})
        start = 8 + length
        tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        spans: list[tuple[int, int]] = []
        for name, entry in header.items():
            code, shape = entry["dtype"], tuple(entry["shape"])
            low, high = entry["data_offsets"]
            if code not in _SAFETENSORS_TYPES:
                raise ContainerError(
                    path, f"{name} is {code}, expected one of {', '.join(_SAFETENSORS_TYPES)}."
                )
            element = np.dtype(_SAFETENSORS_TYPES[code])
            numbers = (*shape, low, high)
            if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
                raise ContainerError(path, f"{name} has the shape {shape} at {low} to {high}.")
            if high - low != math.prod(shape) * element.itemsize or high > total - start:
                raise ContainerError(
                    path,
                    f"{name} has {high - low} bytes, but its shape {shape} of {code} needs "
                    f"{math.prod(shape) * element.itemsize}. Copy it again from where it came.",
                )
            tensors[name] = (element, shape, start + low)
            spans.append((low, high))
        end = 0
        for low, high in sorted(spans):
            if low != end:
                raise ContainerError(path, f"its tensors leave a hole or overlap at {low}.")
            end = high
        if end != total - start:
            raise ContainerError(path, f"has {total} bytes, but its tensors end at {start + end}.")

        def whole(name: str) -> NDArray[Any]:
            element, shape, offset = tensors[name]
            stream.seek(offset)
            data = stream.read(math.prod(shape) * element.itemsize)
            return np.frombuffer(data, element).reshape(shape)

        array = _array_name(path, list(tensors), choice)
        element, shape, offset = tensors[array]
        _check_shape(path, array, shape, None)
        n_rows, dim = shape
        names = _canonical(path, list(tensors), (array, "scales"), choice)
        for name, real in names.items():
            _check_shape(path, real, tensors[real][1], n_rows)
            _check_columns_of(table, real, tensors[real][1], tensors[real][0].itemsize)
            table.columns[name] = whole(real)
        if "hilum_notes" in metadata:
            table.notes = _embedded_notes(path, metadata["hilum_notes"].encode("utf-8"))
        if "scales" in tensors:
            table.scales = _scales_of(path, whole("scales"), dim)
    if element.kind not in "fiu":
        raise ContainerError(path, f"{array} is {element}, expected numbers.")
    table.dtype = _own_dtype(table, element)

    def pieces() -> Iterator[NDArray[Any]]:
        with _told(path, "safetensors"), path.open("rb") as stream:
            stream.seek(offset)
            yield from _rows_of(path, stream, n_rows, dim, element)

    table.pieces = pieces
    return table


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


# ---- .parquet ----------------------------------------------------------------------------------


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise ContainerError(
            path, "Parquet needs the package pyarrow: pip install 'hilum[convert]'."
        ) from exc
    return pyarrow, pyarrow.parquet


def _write_parquet(stream: BinaryIO, export: Export) -> None:
    """Write a fixed-size list a row, the columns beside it, and the notes in the metadata."""
    pa, pq = _pyarrow(Path(getattr(stream, "name", "table.parquet")))
    metadata = {"hilum_notes": canonical_json(export.notes)}
    if export.scales is not None:
        metadata["hilum_scales"] = base64.b64encode(export.scales.tobytes())
    fields = [
        pa.field("features", pa.list_(pa.from_numpy_dtype(export.element), export.dim), False)
    ]
    for name, values in export.columns.items():
        kind = pa.from_numpy_dtype(values.dtype)
        if name == "sample_key":
            kind = pa.binary(values.shape[1])
        elif values.ndim == 2:
            kind = pa.list_(kind, values.shape[1])
        fields.append(pa.field(name, kind, False))
    schema = pa.schema(fields, metadata)
    # a dictionary of features is larger than they are; but int8 without one takes four bytes
    small = [name for name, values in export.columns.items() if values.ndim == 1]
    if export.element == np.int8:
        small.append("features.list.element")
    with pq.ParquetWriter(stream, schema, use_dictionary=small, write_statistics=False) as writer:
        done = 0
        for part in export.pieces():
            arrays = [
                pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), type=fields[0].type)
            ]
            for one, (name, values) in zip(fields[1:], export.columns.items(), strict=True):
                rows = np.ascontiguousarray(values[done : done + len(part)])
                if name == "sample_key":
                    arrays.append(
                        pa.FixedSizeBinaryArray.from_buffers(
                            one.type, len(rows), [None, pa.py_buffer(rows.tobytes())]
                        )
                    )
                elif rows.ndim == 2:
                    flat = pa.array(rows.reshape(-1))
                    arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=one.type))
                else:
                    arrays.append(pa.array(rows))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            done += len(part)


def _read_parquet(path: Path, choice: Choice) -> Table:
    pa, pq = _pyarrow(path)
    table = Table(path)
    with _told(path, "parquet"), pq.ParquetFile(path, pre_buffer=False) as file:
        schema = file.schema_arrow
        names = list(schema.names)
        _refuse_bombs(path, file.metadata)
        texts = _text_columns(file.metadata)
        metadata = schema.metadata or {}
        if b"hilum_notes" in metadata:
            table.notes = _embedded_notes(path, metadata[b"hilum_notes"])
        if len(set(names)) != len(names):
            raise ContainerError(path, "two columns have one name. Rename one.")
        lists = [
            name
            for name in names
            if name not in choice.ignore
            and (choice.matches(name) or name.lower() in {known.lower() for known in FEATURES})
            and _is_list(pa, schema.field(name).type)
        ]
        label_index: list[int] = []
        if lists:
            array = _array_name(path, names, choice)
            kind = schema.field(array).type
            found = _canonical(path, names, (array,), choice)
            known = {name: names.index(real) for name, real in found.items()}
            flat = False
        else:
            feature_index, known, label_index = _sort_names(table, names, choice)
            flat = True
        dim = len(feature_index) if flat else getattr(kind, "list_size", None)
        if b"hilum_scales" in metadata and dim is not None:
            raw = base64.b64decode(metadata[b"hilum_scales"], validate=True)
            table.scales = _scales_of(path, np.frombuffer(raw, "<f4"), dim)
        if not flat:
            inner = kind.value_type
            if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
                raise ContainerError(path, f"{array} holds {inner}, expected numbers.")
            table.dtype = _own_dtype(table, np.dtype(inner.to_pandas_dtype()))
    step = piece_rows(dim or 1024)

    def pieces() -> Iterator[NDArray[Any]]:
        collected: dict[str, list[NDArray[Any]]] = {name: [] for name in known}
        labels: list[NDArray[Any]] = []
        done = 0
        width = dim
        # equal texts are read once: a thousand bytes would become gigabytes
        with (
            _told(path, "parquet"),
            pq.ParquetFile(path, pre_buffer=False, read_dictionary=texts) as file,
        ):
            for batch in file.iter_batches(batch_size=step):
                for name, index in known.items():
                    collected[name].append(_parquet_column(path, pa, batch.column(index)))
                if flat:
                    part = _parquet_numbers(table, batch, feature_index, names, done)
                    if label_index:
                        labels.append(_parquet_numbers(table, batch, label_index, names, done))
                else:
                    column = batch.column(names.index(array))
                    part = _parquet_lists(path, column, array, width, done)
                    width = part.shape[1]
                done += len(part)
                yield part
            for name, parts in collected.items():
                table.columns[name] = np.concatenate(parts) if parts else np.empty(0)
            if labels:
                table.columns["label"] = np.concatenate(labels)

    table.pieces = pieces
    return table


def _is_list(pa: Any, kind: Any) -> bool:
    return bool(
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )


def _refuse_bombs(path: Path, metadata: Any) -> None:
    """Refuse columns that a few bytes of run lengths would make enormous."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for k in range(group.num_columns):
            column = group.column(k)
            # a value in a dictionary is stored once, and as long as it likes
            n_bytes = max(4, metadata.schema.column(k).length) * column.num_values
            n_bytes = max(n_bytes, column.total_uncompressed_size)
            if n_bytes > BOMB_BYTES and n_bytes > BOMB_RATIO * column.total_compressed_size:
                raise ContainerError(
                    path,
                    f"column {column.path_in_schema!r} would unpack {column.total_compressed_size} "
                    f"bytes to {n_bytes}: no features are like that. Look at where it comes from.",
                )


def _text_columns(metadata: Any) -> list[str]:
    schema = metadata.schema
    columns = [schema.column(i) for i in range(len(schema))]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _parquet_numbers(
    table: Table, batch: Any, index: Sequence[int], names: Sequence[str], done: int
) -> NDArray[Any]:
    parts = []
    for i in index:
        column = batch.column(i)
        if column.null_count:
            row = int(np.argmax(np.asarray(column.is_null())))
            raise ContainerError(
                table.path, f"row {done + row}, column {names[i]!r} is empty, expected a number."
            )
        kind = getattr(column.type, "value_type", column.type)  # of texts
        values = np.empty(0, object)
        if kind is column.type:
            values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind not in "fiu":
            raise ContainerError(
                table.path,
                f"column {names[i]!r} holds {kind}, expected numbers. Leave it out if it is "
                f"no feature, or call it one of {', '.join(COLUMNS)}.",
            )
        parts.append(values)
    return np.column_stack(parts)


def _parquet_lists(path: Path, column: Any, name: str, dim: int | None, done: int) -> NDArray[Any]:
    n = len(column)
    if column.null_count:
        row = int(np.argmax(np.asarray(column.is_null())))
        raise ContainerError(path, f"row {done + row}, column {name!r} is empty.")
    lengths = np.asarray(column.value_lengths())
    expected = dim or (int(lengths[0]) if n else 0)
    wrong = np.flatnonzero(lengths != expected)
    if len(wrong):
        raise ContainerError(
            path,
            f"row {done + int(wrong[0])}, column {name!r} has {lengths[wrong[0]]} features, "
            f"expected {expected} as the rows before.",
        )
    flat = column.flatten()
    if flat.null_count:
        row = int(np.argmax(np.asarray(flat.is_null()))) // max(1, expected)
        raise ContainerError(path, f"row {done + row}, column {name!r} has an empty feature.")
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(n, expected)
    return values


def _parquet_column(path: Path, pa: Any, column: Any) -> NDArray[Any]:
    kind = column.type
    if pa.types.is_fixed_size_binary(kind) and not column.null_count:
        data = b"".join(column.to_pylist())
        return np.frombuffer(data, np.uint8).reshape(len(column), kind.byte_width)
    if pa.types.is_fixed_size_list(kind) and not column.null_count:
        flat = column.flatten()
        if not flat.null_count:
            values = flat.to_numpy(zero_copy_only=False)
            matrix: NDArray[Any] = values.reshape(len(column), kind.list_size)
            return matrix
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not column.null_count:
        numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return numbers
    if not pa.types.is_dictionary(kind):
        column = column.dictionary_encode()
    words = column.dictionary.to_pylist()
    for value in words:
        if value is not None and not isinstance(value, str | int | float):
            raise ContainerError(path, f"a column holds {kind}, expected numbers or text.")
    known = np.array(["" if word is None else str(word) for word in [*words, None]], object)
    texts: NDArray[Any] = known[column.indices.fill_null(len(words)).to_numpy()]
    return texts


# ---- .csv --------------------------------------------------------------------------------------


def sidecar_of(path: Path) -> Path:
    """Return where the notes of a CSV are.

    Parameters
    ----------
    path : Path
        The CSV.

    Returns
    -------
    Path
        ``<name>.notes.json`` beside it.
    """
    return path.with_name(f"{path.name}.notes.json")


def write_sidecar(stream: BinaryIO, export: Export) -> None:
    """Write what a CSV cannot hold: notes, dtype and i8 scales.

    Parameters
    ----------
    stream : binary file
        To be written to.
    export : Export
        What was exported.
    """
    facts: dict[str, Any] = {"format": _SIDECAR, "version": 1, "dtype": export.dtype}
    if export.scales is not None:
        facts["scales"] = [float(scale) for scale in export.scales]
    facts["notes"] = export.notes
    text = json.dumps(facts, ensure_ascii=False, indent=1, allow_nan=False)
    stream.write(f"{text}\n".encode())


def parse_sidecar(path: Path) -> tuple[Any, str | None, NDArray[np.float32] | None]:
    """Read notes from a JSON file: a container's notes, or what `write_sidecar` wrote.

    Parameters
    ----------
    path : Path
        The JSON file.

    Returns
    -------
    notes : Any
        Parsed, not yet checked.
    dtype : str or None
        How the features were stored.
    scales : float32 (dim,) or None
        For i8.

    Raises
    ------
    ContainerError
        It cannot be read or is no JSON.
    """
    check_regular(path)
    with _told(path, "json"):
        if path.stat().st_size > _MOST_SIDECAR_BYTES:
            raise ContainerError(path, "is too large for notes.")
        value = json.loads(
            path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_refuse_duplicates
        )
        if not isinstance(value, dict):
            raise ContainerError(path, "is no JSON object.")
        if value.get("format") != _SIDECAR:
            return _embedded_notes(path, canonical_json(value)), None, None
        scales = None
        if "scales" in value:
            scales = np.array(value["scales"], np.float32)
            _scales_of(path, scales, len(scales))
        if value.get("dtype") not in ("f32", "f16", "i8"):
            raise ContainerError(
                path, f"the dtype is {value.get('dtype')!r}, expected f32, f16, i8."
            )
        notes = _embedded_notes(path, canonical_json(value["notes"]))
        return notes, value["dtype"], scales


def _write_csv(stream: BinaryIO, export: Export) -> None:
    """Write one line a row in words: class names, split names, F and M, shortest decimals."""
    header: list[str] = []
    texts: list[Callable[[int], Sequence[str]]] = []
    for name, values in export.columns.items():
        names, text = _csv_column(export, name, values)
        header += names
        texts.append(text)
    header += [f"f{i}" for i in range(export.dim)]
    number = _number_texts(export.element)
    out = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        row = 0
        for part in export.pieces():
            for features in part:
                cells = [cell for text in texts for cell in text(row)]
                writer.writerow(cells + number(features))
                row += 1
    finally:
        out.detach()  # whoever opened the stream closes it


def _csv_column(
    export: Export, name: str, values: NDArray[Any]
) -> tuple[list[str], Callable[[int], Sequence[str]]]:
    if name == "sample_key":
        return [name], lambda row: (values[row].tobytes().hex() if values[row].any() else "",)
    if values.ndim == 2:
        names = [f"{LABEL_PREFIX}{text}" for text in export.notes["classes"]]
        return names, lambda row: [str(value) for value in values[row]]
    words: Sequence[str] | None = {
        "label": export.notes["classes"],
        "split": SPLITS,
        "source": export.notes.get("sources"),
        "sex": SEXES,
        "projection": ("", *PROJECTIONS[1:]),
    }.get(name)
    if words is not None:
        chosen = words
        return [name], lambda row: (chosen[values[row]],)
    if name == "age":
        return [name], lambda row: ("" if values[row] == 255 else str(values[row]),)
    return [name], lambda row: (str(values[row]),)


def _number_texts(element: np.dtype[Any]) -> Callable[[NDArray[Any]], list[str]]:
    """Return what makes the shortest texts that read back as the same numbers."""
    if element == np.float16:
        # there are only 65536 of them
        table = [str(value) for value in np.arange(65536, dtype=np.uint16).view(np.float16)]
        return lambda row: [table[bits] for bits in row.view(np.uint16).tolist()]
    return lambda row: [str(value) for value in row]


def _read_csv(path: Path, choice: Choice) -> Table:
    table = Table(path, first_row=2, row_word="line")
    with _told(path, "csv"):
        beside = sidecar_of(path)
        if beside.is_file():
            table.notes, table.dtype, table.scales = parse_sidecar(beside)
        with path.open("rb") as stream:
            header = next(_lines(path, stream), None)
    if header is None:
        raise ContainerError(path, "is empty, expected a line of column names.")
    own = table.dtype is not None
    delimiter = "," if own else max(",;\t", key=header.count)
    with _told(path, "csv"):
        names = next(csv.reader([header], delimiter=delimiter, strict=True))
        if not own:
            names = [name.strip() for name in names]
    features, known, classes = _sort_names(table, names, choice)
    step = piece_rows(len(features))

    def pieces() -> Iterator[NDArray[Any]]:
        collected: dict[str, list[str]] = {name: [] for name in known}
        labels: list[NDArray[np.float64]] = []
        same: dict[str, str] = {}
        room = np.empty((step, len(features)))
        n_rows = 0
        with _told(path, "csv"), path.open("rb") as stream:
            reader = csv.reader(_lines(path, stream), delimiter=delimiter, strict=True)
            next(reader)
            for cells in reader:
                if not cells:
                    continue
                where = f"line {reader.line_num}"
                if len(cells) != len(names):
                    raise ContainerError(
                        path, f"{where} has {len(cells)} cells, expected {len(names)}."
                    )
                for name, index in known.items():
                    text = cells[index] if own else cells[index].strip()
                    collected[name].append(same.setdefault(text, text))
                if classes:
                    labels.append(_floats(path, where, cells, classes, names))
                room[n_rows % step] = _floats(path, where, cells, features, names)
                n_rows += 1
                if n_rows % step == 0:
                    yield room
        if n_rows % step:
            yield room[: n_rows % step]
        for name, texts in collected.items():
            table.columns[name] = np.array([*texts, None], object)[:-1]
        if classes:
            table.columns["label"] = np.array(labels).reshape(n_rows, len(classes))

    table.pieces = pieces
    return table


def _floats(
    path: Path, where: str, cells: Sequence[str], index: Sequence[int], names: Sequence[str]
) -> NDArray[np.float64]:
    texts = [cells[i] for i in index]
    try:
        if any("_" in text for text in texts):  # Python reads 1_0 as ten; nobody else does
            raise ValueError
        return np.array([float(text) for text in texts])
    except ValueError:
        for i in index:
            try:
                float(cells[i])
                wrong = "_" in cells[i]
            except ValueError:
                wrong = True
            if wrong:
                found = repr(cells[i][:40]) if cells[i].strip() else "nothing"
                raise ContainerError(
                    path,
                    f"{where}, column {names[i]!r}: found {found}, expected a number with a "
                    f"decimal point. If the column is no feature, leave it out or call it one of "
                    f"{', '.join(COLUMNS)}.",
                ) from None
        raise


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    """Read lines of a bounded length."""
    first = True
    while True:
        line = stream.readline(_MOST_LINE)
        if not line:
            return
        if len(line) == _MOST_LINE:
            raise ContainerError(path, f"has a line of more than {_MOST_LINE} bytes.")
        yield line.decode("utf-8-sig" if first else "utf-8")
        first = False


WRITERS: Mapping[str, Callable[[BinaryIO, Export], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
READERS: Mapping[str, Callable[[Path, Choice], Table]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
