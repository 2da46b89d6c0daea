"""How to look into a container: validated at open, then NumPy views without a copy."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from formats import datasets
from formats._json import parse_json, preprocessing_digest
from formats._library import ffi, lib
from formats._status import container_error
from formats.errors import ContainerError, Corrupt, NotesError
from formats.notes import validate_notes

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["SPLITS", "Container", "open_container"]

SPLITS: tuple[str, ...] = ("none", "train", "valid", "test")
"""Names of the values of the ``split`` column, in their order."""

SEXES: tuple[str, ...] = ("unknown", "female", "male", "other")
PROJECTIONS: tuple[str, ...] = ("unknown", "PA", "AP", "AP supine", "lateral", "other")
PIXELS_TAP = "pixels"
FLOOR_TAPS = ("border", PIXELS_TAP)
"""Taps of blocks that hold pixels of the reduced picture and no features."""
AGE_UNKNOWN = 255
AGE_TOP = 90
"""Ages are whole years; this one means so many or more."""

CHUNK_ROWS: int = 1 << lib.HILUM_CHUNK_LOG2

DTYPES: Mapping[int, tuple[str, np.dtype[Any]]] = MappingProxyType(
    {
        lib.HILUM_DTYPE_F32: ("f32", np.dtype("<f4")),
        lib.HILUM_DTYPE_F16: ("f16", np.dtype("<f2")),
        lib.HILUM_DTYPE_I8: ("i8", np.dtype("i1")),
    }
)
COLUMN_TYPES: Mapping[int, np.dtype[Any]] = MappingProxyType(
    {
        lib.HILUM_TYPE_U8: np.dtype("u1"),
        lib.HILUM_TYPE_U16: np.dtype("<u2"),
        lib.HILUM_TYPE_U32: np.dtype("<u4"),
        lib.HILUM_TYPE_I8: np.dtype("i1"),
        lib.HILUM_TYPE_BYTES: np.dtype("u1"),
    }
)
_MODES = {"mmap": lib.HILUM_MODE_MMAP, "read": lib.HILUM_MODE_READ}
# rows are converted to float32 in pieces of about this size: no second copy of the whole appears,
# and the steps of a conversion find the piece in the cache
_PIECE_BYTES = 1 << 20
# what `verify` reads ahead of the thread that hashes: 8 pieces of about 1 MiB
_VERIFY_PIECE_BYTES = 1 << 20
_VERIFY_PIECES = 8


def open_container(path: str | PathLike[str], mode: Literal["mmap", "read"] = "mmap") -> Container:
    """Open a sealed container; everything but the features' own checksums is checked first.

    Parameters
    ----------
    path : str or PathLike
        A ``.hilum`` file.
    mode : {"mmap", "read"}
        ``"mmap"`` maps the features: instant, and shared between processes. A file that is cut
        while it is mapped kills the process (SIGBUS), as with every mapped file. ``"read"`` reads
        on demand and raises instead: for network drives.

    Returns
    -------
    Container
        Usable in a ``with`` statement.

    Raises
    ------
    ContainerError
        Missing or unreadable; NotAContainer, UnsupportedVersion, Truncated or Corrupt.

    Examples
    --------
    >>> container = open_container("chest.hilum")         # doctest: +SKIP
    >>> X, y = container.arrays(split="train")            # doctest: +SKIP
    """
    return Container(path, mode)


class Container:
    """Features, columns and notes of one ``.hilum`` file; see `open_container`.

    Parameters
    ----------
    path : str or PathLike
        A ``.hilum`` file.
    mode : {"mmap", "read"}
        See `open_container`.

    Attributes
    ----------
    path : Path
        The file.
    mode : {"mmap", "read"}
        As it was opened.
    n_rows, dim : int
        Number of feature vectors, and their length.
    dtype : {"f32", "f16", "i8"}
        How features are stored.
    size_bytes : int
        Length of the file.
    uuid : str
        Identity of this data set, 32 hexadecimal digits: random, or made of its contents.
    backbone_digest, preprocessing_digest : str
        SHA-256 as 64 hexadecimal digits; heads carry the same.
    group_clean : bool
        The file promises, and the reader has verified, that no group lies in two of train, valid
        and test.
    n_groups : int or None
        Number of patient groups; None without a ``group`` column.
    notes : dict
        The notes, parsed.
    classes : tuple of str
        Class names; label ``i`` means ``classes[i]``.
    sources_names : tuple of str
        Names of the values of ``sources``; empty without.
    blocks : tuple of dict
        ``tap``, ``pooling``, ``offset``, ``width`` of each part of a feature vector.
    backbone : str
        Name of the backbone.
    multilabel : bool
        Whether ``labels`` has one column for each class.

    Notes
    -----
    Every array is read-only and stays valid for as long as it, or a view of it, is alive, also
    after `close` and after the container is gone: the mapping is undone with the last view.
    """

    def __init__(self, path: str | PathLike[str], mode: Literal["mmap", "read"] = "mmap") -> None:
        self._handle: Any = None
        if mode not in _MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, _MODES))}")
        self.path = Path(path)
        self.mode = mode
        raw = os.fsencode(path)
        if b"\0" in raw:
            raise ContainerError(self.path, "the path holds a NUL character. Check it.")
        out = ffi.new("hilum_container **")
        error = ffi.new("hilum_error *")
        status = lib.hilum_open(raw, _MODES[mode], out, error)
        if status != lib.HILUM_OK:
            raise container_error(self.path, status, error)
        handle = ffi.gc(out[0], lib.hilum_close)
        header = lib.hilum_get_header(handle)
        self.n_rows = int(header.n_rows)
        self.dim = int(header.dim)
        self.dtype, self._element = DTYPES[header.dtype]
        self.size_bytes = int(header.file_size)
        self.uuid = bytes(header.uuid).hex()
        self.backbone_digest = bytes(header.backbone_sha256).hex()
        self.preprocessing_digest = bytes(header.preprocessing_sha256).hex()
        self.group_clean = bool(header.compatible & lib.HILUM_COMPATIBLE_GROUP_CLEAN)
        self.n_groups: int | None = None

        self._features: NDArray[Any] | None = None
        features = lib.hilum_features(handle)
        self._mapped = features != ffi.NULL
        if self._mapped:
            flat = _view(handle, features, self._nbytes(), self._element)
            self._features = flat.reshape(self.n_rows, self.dim)
        scales = lib.hilum_scales(handle)
        self._scales: NDArray[np.float32] | None = None
        if scales != ffi.NULL:
            self._scales = _view(handle, scales, self.dim * 4, np.dtype("<f4"))

        columns: dict[str, NDArray[Any]] = {}
        self._by_role: dict[int, NDArray[Any]] = {}
        label = source = None
        for i in range(header.n_columns):
            descriptor = header.columns[i]
            element = COLUMN_TYPES[descriptor.type]
            array = _view(handle, lib.hilum_column_data(handle, i), descriptor.length, element)
            matrix = descriptor.type in (lib.HILUM_TYPE_BYTES, lib.HILUM_TYPE_I8)
            if matrix or descriptor.width != 1:
                array = array.reshape(self.n_rows, descriptor.width)
            columns[ffi.string(descriptor.name).decode("ascii")] = array
            if descriptor.role != lib.HILUM_ROLE_OTHER:
                self._by_role[int(descriptor.role)] = array
            if descriptor.role == lib.HILUM_ROLE_GROUP:
                self.n_groups = int(descriptor.n_values)
            elif descriptor.role == lib.HILUM_ROLE_LABEL:
                label = descriptor
            elif descriptor.role == lib.HILUM_ROLE_SOURCE:
                source = descriptor
        self._columns: Mapping[str, NDArray[Any]] = MappingProxyType(columns)

        raw_notes = bytes(ffi.buffer(lib.hilum_notes(handle), header.notes.length))
        self._read_notes(raw_notes, label, source)
        self._handle = handle

    def _read_notes(self, data: bytes, label: Any, source: Any) -> None:
        try:
            self.notes: dict[str, Any] = parse_json(data)
            validate_notes(self.notes, dim=self.dim, reading=True)
        except NotesError as exc:
            raise Corrupt(self.path, f"{exc} {_NOTES_CURE}") from exc
        self.classes: tuple[str, ...] = tuple(self.notes["classes"])
        self.sources_names: tuple[str, ...] = tuple(self.notes.get("sources", ()))
        self.blocks: tuple[dict[str, Any], ...] = tuple(self.notes["blocks"])
        self.backbone: str = self.notes["backbone"]["name"]
        self.multilabel: bool = self.notes["multilabel"]
        # the notes repeat what the binary part says: two answers to one question are refused
        self._agree("backbone.sha256", self.notes["backbone"]["sha256"], self.backbone_digest)
        self._agree(
            "the SHA-256 of preprocessing",
            preprocessing_digest(self.notes["preprocessing"]),
            self.preprocessing_digest,
        )
        if label is not None:
            multilabel = label.type == lib.HILUM_TYPE_I8
            self._agree("multilabel", self.multilabel, multilabel)
            n_classes = label.width if multilabel else label.n_values
            self._agree("the number of classes", len(self.classes), int(n_classes))
        if source is not None:
            n_sources = len(self.sources_names)
            self._agree("the number of sources", n_sources, int(source.n_values))

    def _agree(self, what: str, notes_say: object, file_says: object) -> None:
        if notes_say != file_says:
            raise Corrupt(
                self.path,
                f"notes: {what} is {notes_say}, but the header says {file_says}. {_NOTES_CURE}",
            )

    # ---- Life ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file; arrays that are still in use stay valid.

        The mapping is undone when the last of them dies. On Windows the file cannot be renamed or
        deleted before that.
        """
        self._handle = None
        self._features = None
        self._scales = None
        self._columns = MappingProxyType({})
        self._by_role = {}

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle is None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        """Pickle as path and mode: a worker process opens the file itself."""
        return open_container, (os.fspath(self.path), self.mode)

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return (
            f"<Container {self.path.name}: {self.n_rows} rows x {self.dim} {self.dtype}, "
            f"{self.backbone}{state}>"
        )

    def _open(self) -> Any:
        if self._handle is None:
            raise ContainerError(self.path, "the container is closed. Open it again.")
        return self._handle

    @property
    def header_digest(self) -> str:
        """SHA-256 of the header as it was opened, which commits to the whole file; hexadecimal."""
        header = ffi.buffer(lib.hilum_get_header(self._open()), lib.HILUM_HEADER_BYTES)
        return hashlib.sha256(header).hexdigest()

    # ---- Arrays -------------------------------------------------------------------------------

    @property
    def features(self) -> NDArray[Any]:
        """Feature vectors as stored, ``(n_rows, dim)`` float32, float16 or int8, read-only.

        A view of the mapping; with ``mode="read"`` loaded at the first use. For int8 the value is
        element times `scales`; `read_rows` gives float32 in every case.
        """
        handle = self._open()
        if self._features is None:
            loaded = np.empty((self.n_rows, self.dim), self._element)
            self._read(handle, 0, loaded)
            self._features = _freeze(loaded)
        return self._features

    @property
    def scales(self) -> NDArray[np.float32] | None:
        """Size of one int8 step of each feature, ``(dim,)`` float32; None for f32 and f16."""
        self._open()
        return self._scales

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Every column by name, each of ``n_rows`` entries, read-only."""
        self._open()
        return self._columns

    def _role(self, role: int) -> NDArray[Any] | None:
        self._open()
        return self._by_role.get(role)

    @property
    def labels(self) -> NDArray[Any] | None:
        """Class index ``(n_rows,)`` uint16; multi-label ``(n_rows, n_classes)`` int8; or None.

        Multi-label values are 1, 0, -1 (uncertain) and -2 (not assessed).
        """
        return self._role(lib.HILUM_ROLE_LABEL)

    @property
    def splits(self) -> NDArray[np.uint8] | None:
        """Index into `SPLITS`, ``(n_rows,)`` uint8, or None."""
        return self._role(lib.HILUM_ROLE_SPLIT)

    @property
    def groups(self) -> NDArray[np.uint32] | None:
        """Patient index, dense and in random order, ``(n_rows,)`` uint32, or None."""
        return self._role(lib.HILUM_ROLE_GROUP)

    @property
    def sample_keys(self) -> NDArray[np.uint8] | None:
        """Keyed hash of each image, ``(n_rows, 16)`` uint8, zero where absent, or None."""
        return self._role(lib.HILUM_ROLE_SAMPLE_KEY)

    @property
    def sources(self) -> NDArray[np.uint8] | None:
        """Index into `sources_names`, ``(n_rows,)`` uint8, or None."""
        return self._role(lib.HILUM_ROLE_SOURCE)

    @property
    def views(self) -> NDArray[np.uint8] | None:
        """0 the image itself, 1 and on its augmented views, ``(n_rows,)`` uint8, or None."""
        return self._role(lib.HILUM_ROLE_VIEW)

    @property
    def row_flags(self) -> NDArray[np.uint8] | None:
        """Bit 0: withdrawn, features zeroed; ``(n_rows,)`` uint8, or None."""
        return self._role(lib.HILUM_ROLE_ROW_FLAGS)

    @property
    def sexes(self) -> NDArray[np.uint8] | None:
        """Index into unknown, female, male, other; ``(n_rows,)`` uint8, or None."""
        return self._role(lib.HILUM_ROLE_SEX)

    @property
    def ages(self) -> NDArray[np.uint8] | None:
        """Age in years, 90 for 90 or more, 255 unknown; ``(n_rows,)`` uint8, or None."""
        return self._role(lib.HILUM_ROLE_AGE)

    @property
    def projections(self) -> NDArray[np.uint8] | None:
        """Index into unknown, PA, AP, AP supine, lateral, other; ``(n_rows,)`` uint8, or None."""
        return self._role(lib.HILUM_ROLE_PROJECTION)

    @property
    def floor_blocks(self) -> tuple[dict[str, Any], ...]:
        """Those of `blocks` that hold pixels, not features: what heads are measured against."""
        return tuple(block for block in self.blocks if block["tap"] in FLOOR_TAPS)

    @property
    def not_for_sharing(self) -> str | None:
        """Why the file must not be given away, and what to do; None if it may be."""
        if not any(block["tap"] == PIXELS_TAP for block in self.blocks):
            return None
        return (
            "NOT FOR SHARING: every row holds the picture itself, reduced to 64 x 64 pixels (block "
            "pixels). A copy without it: python -m formats subset FILE -o OUT --without-floors"
        )

    # ---- Rows ---------------------------------------------------------------------------------

    def rows(
        self, split: str | Sequence[str] | None = None, *, views: bool = True
    ) -> NDArray[np.int64]:
        """Return the indices of the rows of a split; withdrawn rows are left out.

        Parameters
        ----------
        split : str, sequence of str, or None
            One or several of none, train, valid, test; None takes every row.
        views : bool
            False leaves out augmented views: rows are then as many as images.

        Returns
        -------
        ndarray of int64, shape (n,)
            Ascending.

        Raises
        ------
        ValueError
            No such split.
        ContainerError
            A split is asked for and the file has no ``split`` column.
        """
        self._open()
        keep = np.ones(self.n_rows, np.bool_)
        if split is not None:
            names = [split] if isinstance(split, str) else list(split)
            for name in names:
                if name not in SPLITS:
                    raise ValueError(f"split is {name!r}, expected one of {', '.join(SPLITS)}")
            if self.splits is None:
                raise ContainerError(
                    self.path,
                    f"has no split column, so no rows are marked {' or '.join(names)}. Use all "
                    "rows, or extract again with a manifest that has a column named split.",
                )
            keep = np.isin(self.splits, [SPLITS.index(name) for name in names])
        if self.row_flags is not None:
            keep &= (self.row_flags & lib.HILUM_ROW_WITHDRAWN) == 0
        if not views and self.views is not None:
            keep &= self.views == 0
        return np.flatnonzero(keep).astype(np.int64, copy=False)

    def read_rows(self, rows: slice | npt.ArrayLike | None = None) -> NDArray[np.float32]:
        """Copy feature vectors as float32, whatever they are stored as.

        Parameters
        ----------
        rows : slice, array of int or bool, or None
            Which rows, in which order; None takes all.

        Returns
        -------
        ndarray of float32, shape (n, dim)
            C-contiguous, the caller's own; int8 is multiplied by its scales.

        Raises
        ------
        IndexError
            A row that does not exist.
        Truncated, ContainerError
            ``mode="read"`` and the file was cut since it was opened.
        """
        index = self._row_index(rows)
        out = np.empty((len(index), self.dim), np.float32)
        self._read_floats(index, out)
        return out

    def read_stored(self, rows: slice | npt.ArrayLike | None = None) -> NDArray[Any]:
        """Copy feature vectors as they are stored: no conversion, no scales.

        Parameters
        ----------
        rows : slice, array of int or bool, or None
            Which rows, in which order; None takes all.

        Returns
        -------
        ndarray of float32, float16 or int8, shape (n, dim)
            C-contiguous, the caller's own. `features` gives a view without a copy.

        Raises
        ------
        IndexError
            A row that does not exist.
        Truncated, ContainerError
            ``mode="read"`` and the file was cut since it was opened.
        """
        index = self._row_index(rows)
        out = np.empty((len(index), self.dim), self._element)
        self._copy_stored(index, out)
        return out

    def _read_floats(self, index: range | NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Fill ``out`` with the rows of an index that `_row_index` has checked."""
        self._open()
        n = len(index)
        if self.dtype == "f32":
            self._copy_stored(index, out)
            return
        step = max(1, _PIECE_BYTES // (4 * self.dim))
        stored = np.empty((min(step, n), self.dim), self._element)
        for start in range(0, n, step):
            part = index[start : start + step]
            target = out[start : start + len(part)]
            if self._features is not None and isinstance(part, range) and part.step == 1:
                piece = self._features[part.start : part.stop]
            else:
                piece = stored[: len(part)]
                self._copy_stored(part, piece)
            if self._scales is None:
                _half_to_single(piece, target)
            else:
                np.multiply(piece, self._scales, out=target)

    def _copy_stored(self, index: range | NDArray[np.int64], out: NDArray[Any]) -> None:
        handle = self._open()
        if self._features is None:
            self._gather(handle, np.asarray(index, np.int64), out)
        elif isinstance(index, range) and index.step == 1:
            np.copyto(out, self._features[index.start : index.stop])
        else:
            # the rows were checked: "clip" only spares a buffer, which "raise" would put before out
            np.take(self._features, np.asarray(index), axis=0, out=out, mode="clip")

    def _row_index(self, rows: slice | npt.ArrayLike | None) -> range | NDArray[np.int64]:
        if rows is None:
            return range(self.n_rows)
        if isinstance(rows, slice):
            return range(*rows.indices(self.n_rows))
        given = np.asarray(rows)
        if given.ndim != 1:
            raise IndexError(f"{self.path}: rows has shape {given.shape}, expected (n,)")
        if given.dtype == np.bool_:
            if len(given) != self.n_rows:
                raise IndexError(
                    f"{self.path}: the mask has {len(given)} entries, expected {self.n_rows}"
                )
            return np.flatnonzero(given).astype(np.int64, copy=False)
        if given.size == 0:
            return np.empty(0, np.int64)
        if given.dtype.kind not in "iu":
            raise IndexError(f"{self.path}: rows are {given.dtype}, expected whole numbers")
        low, high = int(given.min()), int(given.max())
        if low < -self.n_rows or high >= self.n_rows:
            wrong = high if high >= self.n_rows else low
            raise IndexError(
                f"{self.path}: row {wrong} does not exist, expected less than {self.n_rows}"
            )
        index = given.astype(np.int64, copy=False)
        return index if low >= 0 else np.where(index < 0, index + self.n_rows, index)

    def _gather(self, handle: Any, index: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read rows in ``mode="read"``: one system call for every run of neighbours.

        From the beginning of the file to its end, so that a disk need not seek back.
        """
        if not len(index):
            return
        order = None
        target = out
        if (index[1:] < index[:-1]).any():
            order = np.argsort(index, kind="stable")
            index, target = index[order], np.empty_like(out)
        edges = np.flatnonzero(np.diff(index) != 1) + 1
        start = 0
        for stop in (*edges.tolist(), len(index)):
            self._read(handle, int(index[start]), target[start:stop])
            start = stop
        if order is not None:
            out[order] = target

    def _read(self, handle: Any, first_row: int, out: NDArray[Any]) -> None:
        error = ffi.new("hilum_error *")
        status = lib.hilum_read_rows(
            handle,
            first_row,
            len(out),
            ffi.from_buffer(out, require_writable=True),
            out.nbytes,
            error,
        )
        if status != lib.HILUM_OK:
            raise container_error(self.path, status, error)

    def arrays(
        self, split: str | Sequence[str] | None = None, *, views: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return features and labels as scikit-learn takes them.

        Parameters
        ----------
        split : str, sequence of str, or None
            As in `rows`.
        views : bool
            True takes augmented views as well: to learn from, never to judge by, and in a
            cross-validation only with folds made of `groups`.

        Returns
        -------
        X : ndarray of float32, shape (n, dim)
        y : ndarray of uint16, shape (n,), or int8, shape (n, n_classes)

        Raises
        ------
        ContainerError
            The file has no labels, or no splits where one is asked for.
        """
        labels = self._require_labels()
        rows = self.rows(split, views=views)
        return self.read_rows(rows), labels[rows]

    def _require_labels(self) -> NDArray[Any]:
        labels = self.labels
        if labels is None:
            raise ContainerError(
                self.path,
                "has no labels. Extract again with a manifest that has a column named label, or "
                "with one sub-folder for each class.",
            )
        return labels

    def iter_batches(
        self,
        split: str | Sequence[str] | None = None,
        batch_rows: int = 256,
        *,
        shuffle: bool = False,
        seed: int | Sequence[int] | None = None,
        columns: Sequence[str] = (),
        labels: bool = True,
        views: bool = False,
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        """Go through the rows once, a batch at a time, in bounded memory.

        Parameters
        ----------
        split : str, sequence of str, or None
            As in `rows`.
        batch_rows : int
            Rows in a batch; the last may have fewer.
        shuffle : bool
            Rows in random order; False goes through the file, which is faster where the file does
            not fit into memory. (Hilum writes rows in random order in the first place.)
        seed : int, sequence of int, or None
            Of the order; None asks the operating system.
        columns : sequence of str
            More columns to give, by name, such as ``("group",)``.
        labels : bool
            False leaves the labels out, for a container that has none.
        views : bool
            True takes augmented views as well, to learn from.

        Yields
        ------
        X : ndarray of float32, shape (n, dim)
            The caller's own; int8 is multiplied by its scales.
        y : ndarray of uint16, shape (n,), or int8, shape (n, n_classes)
        *columns : ndarray
            As stored.

        Raises
        ------
        ContainerError
            No labels, no splits, or no such column; with ``mode="read"`` also: the file was cut
            since it was opened.
        ValueError
            No such split, or `batch_rows` is less than 1.
        """
        return datasets.iter_batches(
            self,
            split,
            batch_rows,
            shuffle=shuffle,
            seed=seed,
            columns=columns,
            labels=labels,
            views=views,
        )

    def torch_dataset(
        self,
        split: str | Sequence[str] | None = None,
        *,
        dtype: Literal["float32", "stored"] = "float32",
        columns: Sequence[str] = (),
        labels: bool = True,
        views: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Give the rows as a map-style PyTorch Dataset, for a ``DataLoader``.

        Parameters
        ----------
        split : str, sequence of str, or None
            As in `rows`.
        dtype : {"float32", "stored"}
            ``"float32"`` converts, and multiplies int8 by its scales. ``"stored"`` gives float32,
            float16 or int8 elements as they are in the file.
        columns : sequence of str
            More columns to give, by name, such as ``("group",)``.
        labels : bool
            False leaves the labels out, for a container that has none.
        views : bool
            True takes augmented views as well, to learn from.
        transform : callable, optional
            Called with the features of one row, or with a batch where one is asked for, and
            returns what takes their place. It may change them in place.

        Returns
        -------
        torch.utils.data.Dataset
            Item ``i`` is ``(x, y, *columns)``: x of shape (dim,), y int64, or int8 of shape
            (n_classes,). A slice or an array of indices gives a batch. It can be pickled (worker
            processes open the file themselves, whether forked or spawned).

        Raises
        ------
        ContainerError
            No labels, no splits, or no such column.
        ImportError
            PyTorch is not installed.

        Notes
        -----
        Where no conversion is needed (float32, or ``"stored"``) and the file is mapped, single
        rows and slices of neighbours are views of the mapping: nothing is copied, and they are
        **read-only**. PyTorch cannot know that: writing to such a tensor kills the process. Clone
        it first, or give a `transform`, which gets a copy.

        Whole batches spare the making of a tensor for each row:
        ``DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 256, False),
        batch_size=None)``.
        """
        return datasets.torch_dataset(
            self,
            split,
            dtype=dtype,
            columns=columns,
            labels=labels,
            views=views,
            transform=transform,
        )

    def tf_dataset(
        self,
        split: str | Sequence[str] | None = None,
        batch_size: int = 256,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        columns: Sequence[str] = (),
        labels: bool = True,
        views: bool = False,
    ) -> Any:
        """Give the rows as a ``tf.data.Dataset`` of batches, read while training goes on.

        Parameters
        ----------
        split : str, sequence of str, or None
            As in `rows`.
        batch_size : int
            Rows in a batch; the last may have fewer.
        shuffle : bool
            Rows in random order, another one each epoch.
        seed : int, optional
            Of the orders; None asks the operating system.
        columns : sequence of str
            More columns to give, by name, such as ``("group",)``.
        labels : bool
            False leaves the labels out, for a container that has none.
        views : bool
            True takes augmented views as well, to learn from.

        Returns
        -------
        tf.data.Dataset
            Of ``(X, y, *columns)``: X float32 (n, dim), y int64 (n,) or int8 (n, n_classes). It
            runs in this process: it cannot be saved as a graph.

        Raises
        ------
        ContainerError
            No labels, no splits, or no such column.
        ImportError
            TensorFlow is not installed.
        """
        return datasets.tf_dataset(
            self,
            split,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            columns=columns,
            labels=labels,
            views=views,
        )

    def _features_memory(self) -> Any:
        """Give the mapped features as a buffer that keeps the mapping alive, or None.

        It claims to be writable, so that PyTorch takes it without a warning; it is not.
        """
        handle = self._open()
        if not self._mapped:
            return None
        return _memory(handle, lib.hilum_features(handle), self._nbytes())

    def _nbytes(self) -> int:
        return self.n_rows * self.dim * self._element.itemsize

    # ---- Verification -------------------------------------------------------------------------

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compare every byte with its checksums: one for each 1024 rows, and one of the whole.

        Parameters
        ----------
        progress : callable, optional
            Called with bytes done and bytes in all.

        Raises
        ------
        Corrupt
            Says which rows, or that the whole differs.
        ContainerError
            The file was replaced since it was opened, or cannot be read.
        """
        # not needed to open a file, and slow to import
        from concurrent.futures import ThreadPoolExecutor

        handle = self._open()
        header = lib.hilum_get_header(handle)
        error = ffi.new("hilum_error *")
        total = self.size_bytes - lib.HILUM_HEADER_BYTES
        row_bytes = self.dim * self._element.itemsize
        step = max(1, min(_VERIFY_PIECE_BYTES // row_bytes, self.n_rows, CHUNK_ROWS))
        rooms = [np.empty((step, self.dim), self._element) for _ in range(_VERIFY_PIECES)]
        sha256 = hashlib.sha256()
        hashing: deque[Future[None]] = deque()
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as exc:
            raise self._changed(f"cannot be read any more ({exc.strerror})") from exc
        # SHA-256 is the slow part, so it has a thread to itself; this one reads ahead for it and
        # compares the checksums. However this ends, the thread has few pieces left to hash: the
        # executor waits for it, so none stays behind.
        with file, ThreadPoolExecutor(1) as hasher:
            if file.read(lib.HILUM_HEADER_BYTES) != bytes(
                ffi.buffer(header, lib.HILUM_HEADER_BYTES)
            ):
                raise self._changed("was replaced since it was opened")
            for chunk in range(int(lib.hilum_n_chunks(handle))):
                first = chunk * CHUNK_ROWS
                last = min(first + CHUNK_ROWS, self.n_rows)
                # chunks say which rows are damaged; the whole is compared after all of them
                status = lib.hilum_verify_chunk(handle, chunk, error)
                if status != lib.HILUM_OK:
                    rows = f"rows {first} to {last - 1}"
                    raise container_error(self.path, status, error, rows)
                for start in range(first, last, step):
                    if len(hashing) == _VERIFY_PIECES:
                        hashing.popleft().result()
                    # in turn: what is hashed is what this container reads, and not what is at
                    # its path by now, which another file may have taken
                    rooms.append(rooms.pop(0))
                    piece = rooms[-1][: min(start + step, last) - start]
                    self._read(handle, start, piece)
                    hashing.append(hasher.submit(sha256.update, piece.data.cast("B")))
                if progress is not None:
                    progress(last * row_bytes, total)
            at = lib.HILUM_HEADER_BYTES + self.n_rows * row_bytes
            for offset, held in (*self._sections(), (self.size_bytes, memoryview(b""))):
                # between the sections: zeros, and the chunks' checksums
                gap = self._read_file(file, at, offset - at)
                hashing.append(hasher.submit(sha256.update, gap))
                hashing.append(hasher.submit(sha256.update, held))
                at = offset + len(held)
            while hashing:
                hashing.popleft().result()
            if progress is not None:
                progress(total, total)
        stored = bytes(header.body_sha256)
        if sha256.digest() != stored:
            raise Corrupt(
                self.path,
                f"the SHA-256 of everything after the header is {sha256.hexdigest()}, stored "
                f"{stored.hex()}. The file was damaged or changed after it was written: copy it "
                "again from where it came, or make it anew with engine.extract.",
            )

    def _sections(self) -> Iterator[tuple[int, memoryview]]:
        """Yield where each section behind the features lies, and its bytes as they were opened."""
        handle = self._open()
        header = lib.hilum_get_header(handle)
        if header.scales.length:
            scales = ffi.buffer(lib.hilum_scales(handle), header.scales.length)
            yield int(header.scales.offset), memoryview(scales)
        for i in range(header.n_columns):
            column = header.columns[i]
            values = ffi.buffer(lib.hilum_column_data(handle, i), column.length)
            yield int(column.offset), memoryview(values)
        notes = ffi.buffer(lib.hilum_notes(handle), header.notes.length)
        yield int(header.notes.offset), memoryview(notes)

    def _read_file(self, file: Any, at: int, n_bytes: int) -> bytes:
        """Read bytes of the file that no view shows."""
        try:
            file.seek(at)
            data = b""
            while len(data) < n_bytes and (more := file.read(n_bytes - len(data))):
                data += more
        except OSError as exc:
            raise self._changed(f"cannot be read any more ({exc.strerror})") from exc
        if len(data) < n_bytes:
            raise self._changed(f"ends at byte {at + len(data)}")
        return data

    def _changed(self, what: str) -> ContainerError:
        return ContainerError(self.path, f"the file {what}. Open it again.")


_NOTES_CURE = (
    "The notes were not written by a correct Hilum writer, or by a later version: update Hilum, or "
    "make the file anew with engine.extract."
)


def _view(handle: Any, pointer: Any, n_bytes: int, element: np.dtype[Any]) -> NDArray[Any]:
    """Show C memory as a flat array that keeps its owner alive and can never be written.

    ``np.frombuffer(ffi.buffer(pointer, n))`` alone would do neither: the handle could be freed
    under the array, and writing to the mapping would be a segmentation fault.
    """
    return np.frombuffer(memoryview(_memory(handle, pointer, n_bytes)).toreadonly(), element)


def _memory(handle: Any, pointer: Any, n_bytes: int) -> Any:
    return ffi.buffer(ffi.gc(pointer, lambda _, owner=handle: None), n_bytes)


_SIGN_AND_VALUE = np.int32(-0x70002000)  # 0x8FFFE000: the bits of a half, where a float has them
_EXPONENT_SHIFT = np.float32(2.0**112)  # the exponents of the two count from -15 and from -127
_FEW = 8192
_SMALLEST = np.array([1], np.uint32).view(np.float32)


def _half_to_single(half: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Convert float16 to float32, bit for bit as NumPy does, about three times as fast.

    NumPy converts one number after the other. Here each step is one vector instruction over the
    piece: sign and value go to their places in a float, whose exponent is then too small by 112;
    a product with a power of two is exact, and lets subnormal halves come out right as well.
    """
    # not a number, infinite (bits 7C00 and up), or a library told this thread's CPU to take
    # subnormal numbers for zero
    if (
        half.size < _FEW  # several calls cost more than they save
        or half.view(np.int16).max() >= 0x7C00
        or half.view(np.uint16).max() >= 0xFC00
        or (_SMALLEST * _EXPONENT_SHIFT)[0] == 0
    ):
        np.copyto(out, half)
        return
    bits = out.view(np.int32)
    np.copyto(bits, half.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _SIGN_AND_VALUE, out=bits)
    np.multiply(out, _EXPONENT_SHIFT, out=out)


def _freeze(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view whose writeable flag cannot be set again."""
    shown = memoryview(cast(Any, array.reshape(-1).view(np.uint8))).toreadonly()
    return np.frombuffer(shown, array.dtype).reshape(array.shape)
