"""How rows travel from containers into others: verified first, then in pieces of bounded size."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from formats._library import lib
from formats.container import AGE_TOP, AGE_UNKNOWN, CHUNK_ROWS, DTYPES, Container, open_container
from formats.errors import ContainerError, NotesError
from formats.notes import validate_notes
from formats.writer import ContainerWriter

__all__ = [
    "COLUMNS",
    "Meter",
    "as_records",
    "check_output",
    "copy_columns",
    "copy_notes",
    "feature_digests",
    "iter_pieces",
    "join_by",
    "join_patients",
    "lineage",
    "number_records",
    "open_verified",
    "piece_rows",
    "withdrawn_rows",
    "write_rows",
]

COLUMNS = (
    "label",
    "split",
    "group",
    "sample_key",
    "source",
    "view",
    "row_flags",
    "sex",
    "age",
    "projection",
)
"""Names of all columns this version knows, in the order in which they are written."""

ELEMENTS: Mapping[str, np.dtype[Any]] = dict(DTYPES.values())
_MOST_ANCESTORS = 64
_LEAST_I8 = -127
# float32 of one piece of rows; some copies of it exist at a time
_PIECE_BYTES = 32 << 20


class Meter:
    """Count bytes over several stages of work for one progress bar.

    Parameters
    ----------
    progress : callable or None
        Called with what is done and what there is in all.
    total : int
        What there is in all, in bytes.
    """

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress = progress
        self._total = max(1, total)
        self._done = 0

    def add(self, n_bytes: int) -> None:
        """Count some more, in bytes."""
        self._done += n_bytes
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    def stage(self) -> Callable[[int, int], None]:
        """Return what a stage calls with its own counts."""
        before = self._done

        def advance(done: int, total: int) -> None:
            del total
            self.add(before + done - self._done)

        return advance

    def finish(self) -> None:
        """Say that everything is done."""
        self.add(self._total - self._done)


def check_output(
    out: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    what: str = "container",
    overwrite: bool = True,
) -> Path:
    """Refuse an output that is one of the inputs, no file, or there already.

    Parameters
    ----------
    out : str or PathLike
        Where the result shall be.
    inputs : sequence of str or PathLike
        What is read.
    what : str
        What the output is, for the message.
    overwrite : bool
        Whether a file of that name may be replaced.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ContainerError
        It is an input, by any of its names; or no name of a file, or there is one already.
    """
    if not os.fspath(out):
        raise ContainerError("''", "an empty name, expected that of a file to write.")
    target = Path(out)
    for path in inputs:
        same = False
        # a name that leads nowhere is the business of whoever opens it
        with contextlib.suppress(OSError, ValueError):
            same = target.samefile(path)
        if same:
            raise ContainerError(
                target,
                f"is an input and would be replaced by the new {what}. Name another output.",
            )
    if what == "container" and target.is_dir():
        raise ContainerError(
            target, "this is a folder, expected the name of a file. Add a file name to it."
        )
    if not overwrite and os.path.lexists(target):
        raise ContainerError(
            target, "exists already. Choose another name, or have it replaced (--overwrite)."
        )
    return target


@contextlib.contextmanager
def open_verified(
    paths: Sequence[str | PathLike[str]], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[list[Container], Meter]]:
    """Open containers and compare every byte with its checksum before anything is made of them.

    A copy gets new checksums: damage that was carried along would look sound ever after.

    Parameters
    ----------
    paths : sequence of str or PathLike
        The files.
    progress : callable or None
        See `Meter`.

    Yields
    ------
    list of Container
        Read on demand, so that memory holds pieces only.
    Meter
        Verifying has counted half of it.

    Raises
    ------
    ContainerError
        One cannot be read or is damaged.
    """
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_container(path, mode="read")) for path in paths]
        meter = Meter(progress, 2 * sum(container.size_bytes for container in opened))
        for container in opened:
            container.verify(meter.stage())
        yield opened, meter


def piece_rows(dim: int) -> int:
    """Return how many rows are in memory at a time.

    Parameters
    ----------
    dim : int
        Length of a feature vector.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, _PIECE_BYTES // (4 * dim))


def iter_pieces(n_rows: int, dim: int) -> Iterator[slice]:
    """Divide rows into pieces that fit into memory.

    Parameters
    ----------
    n_rows, dim : int
        Number of rows, and length of a feature vector.

    Yields
    ------
    slice
        Together all rows, in order; every piece begins at a multiple of 1024 where it can.
    """
    step = piece_rows(dim)
    if step > CHUNK_ROWS:
        step -= step % CHUNK_ROWS
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def withdrawn_rows(container: Container) -> NDArray[np.bool_]:
    """Tell which rows are withdrawn.

    Parameters
    ----------
    container : Container
        Open.

    Returns
    -------
    bool (n_rows,)
        True where a row is not to be used.
    """
    withdrawn = np.ones(container.n_rows, np.bool_)
    withdrawn[container.rows()] = False
    return withdrawn


def copy_columns(container: Container, remarks: list[str]) -> dict[str, NDArray[Any]]:
    """Copy the columns that this version can write.

    Parameters
    ----------
    container : Container
        Open.
    remarks : list of str
        Gets a sentence for what is left out or changed.

    Returns
    -------
    dict of str to array
        By name, in the order of `COLUMNS`; the arrays are the caller's own.
    """
    unknown = [name for name in container.columns if name not in COLUMNS]
    if unknown:
        remarks.append(
            f"{container.path.name}: left out {_listed(unknown)}: columns of a later version, "
            "which this one cannot write"
        )
    columns = {
        name: np.array(container.columns[name]) for name in COLUMNS if name in container.columns
    }
    if "row_flags" in columns:
        columns["row_flags"] &= lib.HILUM_ROW_WITHDRAWN
    age = columns.get("age")
    if age is not None:
        over = (age > AGE_TOP) & (age != AGE_UNKNOWN)
        if over.any():
            age[over] = AGE_TOP
            remarks.append(f"{container.path.name}: ages above {AGE_TOP} became {AGE_TOP}")
    return columns


def copy_notes(container: Container, remarks: list[str]) -> dict[str, Any]:
    """Copy the notes that this version can write.

    Parameters
    ----------
    container : Container
        Open.
    remarks : list of str
        Gets a sentence for what is left out.

    Returns
    -------
    dict
        The caller's own.

    Raises
    ------
    ContainerError
        Something in them must not be written: it looks like an identity.
    """
    notes = copy.deepcopy(container.notes)
    dropped: list[str] = []
    while True:
        try:
            validate_notes(notes, dim=container.dim)
            break
        except NotesError as exc:
            # a later version's reader kept these; the allow-list of this one does not know them
            if "allow-list" not in exc.message or not _remove(notes, exc.key):
                raise ContainerError(container.path, f"{exc} It is not copied on.") from exc
            dropped.append(exc.key)
    if dropped:
        remarks.append(
            f"{container.path.name}: left out the notes {_listed(dropped)}, which this version "
            "does not know"
        )
    return notes


def _remove(notes: dict[str, Any], dotted: str) -> bool:
    """Delete an entry of nested objects; a key may hold dots itself, so the longest match goes."""
    here: Any = notes
    if not isinstance(here, dict):
        return False
    if dotted in here:
        del here[dotted]
        return True
    for name, value in here.items():
        if not dotted.startswith(name):
            continue
        rest = dotted[len(name) :]
        if isinstance(value, dict) and rest.startswith("."):
            return _remove(value, rest[1:])
        if isinstance(value, list) and rest.startswith("["):
            index, _, rest = rest[1:].partition("].")
            if index.isdigit() and int(index) < len(value) and isinstance(value[int(index)], dict):
                return _remove(value[int(index)], rest)
    return False


def lineage(containers: Sequence[Container]) -> list[str]:
    """List the data sets that a new one comes from, the newest first.

    Parameters
    ----------
    containers : sequence of Container
        The parents.

    Returns
    -------
    list of str
        At most 64 uuids: the parents' own, then what they say they were made from.
    """
    found = dict.fromkeys(container.uuid for container in containers)
    for container in containers:
        found.update(dict.fromkeys(container.notes.get("derived_from", ())))
    return list(found)[:_MOST_ANCESTORS]


def join_patients(
    groups: NDArray[np.int64], keys: NDArray[np.uint8] | None, *images: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Give one number to patients who share an image.

    Parameters
    ----------
    groups : int64 (n,)
        Patient of each row, from 0.
    keys : uint8 (n, 16) or None
        Sample keys; zero says nothing.
    *images : int64 (n,)
        Other numbers of the image of each row; below 0 says nothing.

    Returns
    -------
    int64 (n,)
        Patient of each row: the least of the numbers that were joined.
    """
    if keys is not None:
        images = (number_records(keys, np.any(keys != 0, axis=1)), *images)
    return join_by(groups, *images)


def join_by(groups: NDArray[np.int64], *marks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give one number to groups whose rows share a mark.

    Parameters
    ----------
    groups : int64 (n,)
        Group of each row, from 0.
    *marks : int64 (n,)
        Each its own kind of mark; below 0 is none.

    Returns
    -------
    int64 (n,)
        Group of each row: the least of the numbers that were joined.
    """
    of_group: list[NDArray[np.int64]] = []
    of_mark: list[NDArray[np.int64]] = []
    n_marks = 0
    for mark in marks:
        known = mark >= 0
        if known.any():
            of_group.append(groups[known])
            of_mark.append(mark[known] + n_marks)
            n_marks += int(mark.max()) + 1
    if not of_mark:
        return groups
    group, named = np.concatenate(of_group), np.concatenate(of_mark)
    root = np.arange(int(groups.max()) + 1)
    while True:
        # the least number spreads from groups to marks and back until nothing moves
        least = np.full(n_marks, len(root))
        np.minimum.at(least, named, root[group])
        moved = root.copy()
        np.minimum.at(moved, group, least[named])
        moved = moved[moved]
        if np.array_equal(moved, root):
            joined: NDArray[np.int64] = root[groups]
            return joined
        root = moved


def number_records(rows: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give equal rows of bytes the same number.

    Parameters
    ----------
    rows : uint8 (n, width)
        Bytes.
    known : bool (n,)
        Which of them say something.

    Returns
    -------
    int64 (n,)
        From 0 on, equal for equal bytes; -1 where not known.
    """
    numbers = np.full(len(rows), -1, np.int64)
    if known.any():
        numbers[known] = np.unique(as_records(rows[known]), return_inverse=True)[1].reshape(-1)
    return numbers


def feature_digests(
    container: Container, rows: NDArray[np.int64], element: np.dtype[Any] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Hash the features of rows, so that equal ones are found without holding them.

    Parameters
    ----------
    container : Container
        Open.
    rows : int64 (n,)
        Which rows.
    element : dtype, optional
        Convert to this type first; left out, rows of another dtype or other i8 scales differ.

    Returns
    -------
    digests : uint8 (n, 16)
        Equal for equal features.
    useful : bool (n,)
        False where all features are zero, which says nothing.
    """
    digests = np.empty((len(rows), 16), np.uint8)
    useful = np.zeros(len(rows), np.bool_)
    salt = b""
    if element is None:
        scales = b"" if container.scales is None else container.scales.tobytes()
        salt = hashlib.blake2b(container.dtype.encode() + scales, digest_size=16).digest()
    for piece in iter_pieces(len(rows), container.dim):
        values = container.read_stored(rows[piece])
        if element is not None and values.dtype != element:
            with np.errstate(over="ignore"):
                values = values.astype(element)
        useful[piece] = values.any(axis=1)
        joined = b"".join(
            hashlib.blake2b(row.data, digest_size=16, salt=salt).digest() for row in values
        )
        digests[piece] = np.frombuffer(joined, np.uint8).reshape(-1, 16)
    return digests, useful


def as_records(rows: NDArray[np.uint8]) -> NDArray[np.void]:
    """Show each row of bytes as one value that can be compared.

    Parameters
    ----------
    rows : uint8 (n, width)
        Bytes.

    Returns
    -------
    void (n,)
        A view or copy.
    """
    packed = np.ascontiguousarray(rows)
    return packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)


def write_rows(
    out: Path,
    containers: Sequence[Container],
    files: NDArray[np.int64] | None,
    rows: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    notes: Mapping[str, Any],
    *,
    dtype: str | None = None,
    keep_scales: bool = True,
    scales: NDArray[np.float32] | None = None,
    features: NDArray[np.int64] | None = None,
    overwrite: bool = True,
    group_order: Literal["random", "given"] = "random",
    seed: int | None = None,
    meter: Meter,
) -> None:
    """Write a container of rows of others.

    Parameters
    ----------
    out : Path
        Where to.
    containers : sequence of Container
        Sources, open; closed when the last row was read.
    files : int64 (n,) or None
        Source of each new row; None: all from the first.
    rows : int64 (n,)
        Its row there.
    columns : mapping of str to array
        Columns of the new rows.
    notes : mapping
        Of the new container.
    dtype : str, optional
        How features are stored; as in the first source if left out.
    keep_scales : bool
        Whether i8 elements are copied bit for bit with the first source's scales.
    scales : float32 (dim,), optional
        Other scales, of a single i8 source: its elements are converted where the scale is another.
    features : int64 (dim,), optional
        Which features to write; left out, all of them.
    overwrite : bool
        Whether a file that is there may be replaced.
    group_order, seed
        As in `ContainerWriter`.
    meter : Meter
        The rest of it is counted.

    Raises
    ------
    ContainerError, NotesError
        What cannot be written, and why.
    """
    first = containers[0]
    stored = dtype or first.dtype
    raw = all(container.dtype == stored for container in containers)
    changed = np.zeros(0, np.int64)
    factor = np.zeros(0)
    if scales is not None and first.scales is not None:
        changed = np.flatnonzero(scales != first.scales)
        factor = first.scales[changed].astype(np.float64) / scales[changed]
    elif stored == "i8":
        scales = first.scales if raw and keep_scales else None
        raw = scales is not None
    dim = first.dim if features is None else len(features)
    if features is not None and scales is not None:
        scales = scales[features]
    try:
        with ContainerWriter(
            out,
            dim=dim,
            dtype=stored,
            expected_rows=len(rows) or None,
            backbone_digest=first.backbone_digest,
            preprocessing_digest=first.preprocessing_digest,
            overwrite=overwrite,
            scales=scales,
            group_order=group_order,
            seed=seed,
        ) as writer:
            rest = sum(container.size_bytes for container in containers)
            for piece in iter_pieces(len(rows), first.dim):
                part = rows[piece]
                element = ELEMENTS[stored] if raw else np.dtype("<f4")
                read = np.empty((len(part), first.dim), element)
                for i, container in enumerate(containers):
                    mine = (
                        np.arange(len(part)) if files is None else np.flatnonzero(files[piece] == i)
                    )
                    if not len(mine):
                        continue
                    values = container.read_stored(part[mine])
                    if not raw and container.scales is not None:
                        values = values * container.scales
                    read[mine] = values
                if raw and stored == "i8" and int(read.min()) < _LEAST_I8:
                    raise ContainerError(
                        first.path,
                        f"holds the i8 element {read.min()}, which Hilum never writes. Export "
                        "it, and import that with --dtype f16.",
                    )
                if len(changed):
                    finer = np.rint(read[:, changed] * factor)
                    # only rows that are withdrawn reach beyond, and these become zero
                    read[:, changed] = np.clip(finer, _LEAST_I8, -_LEAST_I8)
                part_columns: Any = {name: values[piece] for name, values in columns.items()}
                writer.append(read if features is None else read[:, features], **part_columns)
                meter.add(rest * len(part) // max(1, len(rows)))
            # Windows does not rename over a file that is open, and the name may be a source's
            for container in containers:
                container.close()
            writer.seal(notes)
    except (ContainerError, NotesError):
        raise
    except ValueError as exc:
        raise ContainerError(out, str(exc).removeprefix(f"{out}: ")) from exc
    meter.finish()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
