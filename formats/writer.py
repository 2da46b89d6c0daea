"""How a container comes to be: streamed into a ``.part``, sealed, and only then named."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

# Of the tripwires, which notes import when they are first checked: an hour's rows are lost neither
# to a module that is missing nor to a folder that may no longer be read when they are sealed.
import formats._identity  # noqa: F401
from formats._atomic import explain_write_failure, sync_folder, write_at
from formats._first_bytes import MAGIC, PART_MAGIC, describe_first_bytes
from formats._journal import Journal, RowRecord
from formats._json import MAX_BYTES, canonical_json, preprocessing_digest
from formats._library import HEADER_DTYPE, crc32c, lib
from formats.container import AGE_TOP, AGE_UNKNOWN, CHUNK_ROWS, open_container
from formats.errors import ContainerError, NotesError
from formats.notes import validate_notes

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
_msvcrt: Any = importlib.import_module("msvcrt") if os.name == "nt" else None
# Windows locks bytes, and nobody else may write these: far behind the first page, which is read.
_LOCKED_BYTE = 0x7FFF_FFFE
_BUSY = PermissionError if os.name == "nt" else BlockingIOError

__all__ = ["ContainerWriter", "write_container"]

_ALIGNMENT = int(lib.HILUM_ALIGNMENT_BYTES)
_BODY = int(lib.HILUM_HEADER_BYTES)
# What a power cut may cost while writing: so many bytes, or what came in so many seconds. Each sync
# costs some milliseconds on a disk, in a thread of its own.
_SYNC_BYTES = 8 << 20
_SYNC_SECONDS = 5.0
_F16_MAX = 65504.0
# From here on a number is an infinity in the narrower type: half a step above its largest.
_OVERFLOW: Mapping[str, float] = {"e": 65520.0, "f": float(2.0**128 - 2.0**103)}
# Below this, handing bytes to another thread costs more than hashing them.
_HASH_BYTES = 1 << 18


@dataclass(frozen=True)
class _Stored:
    code: int
    element: np.dtype[Any]


_DTYPES: Mapping[str, _Stored] = {
    "f32": _Stored(lib.HILUM_DTYPE_F32, np.dtype("<f4")),
    "f16": _Stored(lib.HILUM_DTYPE_F16, np.dtype("<f2")),
    "i8": _Stored(lib.HILUM_DTYPE_I8, np.dtype("i1")),
}


@dataclass(frozen=True)
class _Rule:
    """What a column may hold; ``allowed`` are values beyond ``low`` to ``high``."""

    role: int
    type: int
    element: np.dtype[Any]
    low: int
    high: int
    n_values: int | None = 0
    allowed: tuple[int, ...] = ()
    hint: str = ""


def _u8(role: int, high: int, n_values: int | None = 0, **more: Any) -> _Rule:
    return _Rule(role, lib.HILUM_TYPE_U8, np.dtype("u1"), 0, high, n_values, **more)


# in the order in which columns are written; n_values None is counted when sealing
_RULES: Mapping[str, _Rule] = {
    "label": _Rule(
        lib.HILUM_ROLE_LABEL,
        lib.HILUM_TYPE_U16,
        np.dtype("<u2"),
        0,
        65534,
        None,
        hint="Give the index of the class.",
    ),
    "split": _u8(lib.HILUM_ROLE_SPLIT, 3, 4, hint="0 is none, 1 train, 2 valid, 3 test."),
    "group": _Rule(
        lib.HILUM_ROLE_GROUP,
        lib.HILUM_TYPE_U32,
        np.dtype("<u4"),
        0,
        lib.HILUM_MAX_ROWS - 1,
        None,
        hint="Number the patients from 0 in random order.",
    ),
    "sample_key": _Rule(lib.HILUM_ROLE_SAMPLE_KEY, lib.HILUM_TYPE_BYTES, np.dtype("u1"), 0, 255),
    "source": _u8(lib.HILUM_ROLE_SOURCE, 255, None, hint="Give the index into the notes' sources."),
    "view": _u8(lib.HILUM_ROLE_VIEW, 255),
    "row_flags": _u8(
        lib.HILUM_ROLE_ROW_FLAGS, lib.HILUM_ROW_WITHDRAWN, hint="Bit 0 means withdrawn."
    ),
    "sex": _u8(lib.HILUM_ROLE_SEX, 3, 4, hint="0 is unknown, 1 female, 2 male, 3 other."),
    "age": _u8(
        lib.HILUM_ROLE_AGE,
        AGE_TOP,
        allowed=(AGE_UNKNOWN,),
        hint="Whole years; 90 stands for 90 or more (ages above 89 can identify), 255 for unknown.",
    ),
    "projection": _u8(
        lib.HILUM_ROLE_PROJECTION,
        5,
        6,
        hint="0 is unknown, 1 PA, 2 AP, 3 AP supine, 4 lateral, 5 other.",
    ),
}
_MULTI_LABEL = _Rule(
    lib.HILUM_ROLE_LABEL,
    lib.HILUM_TYPE_I8,
    np.dtype("i1"),
    -2,
    1,
    hint="1 is present, 0 absent, -1 uncertain, -2 not assessed.",
)
_KEY_BYTES = 16


@dataclass
class _Column:
    """What has come of one column; rows may come one at a time, so they are joined in passing."""

    rule: _Rule
    width: int
    joined: list[NDArray[Any]] = field(default_factory=list)
    recent: list[NDArray[Any]] = field(default_factory=list)

    def add(self, values: NDArray[Any]) -> None:
        self.recent.append(values)
        if len(self.recent) == CHUNK_ROWS:
            self.joined.append(np.concatenate(self.recent))
            self.recent = []

    def join(self) -> NDArray[Any]:
        return np.concatenate([*self.joined, *self.recent])


class _Hasher:
    """SHA-256 of what is written, computed by another thread while the next rows are prepared."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def update(self, data: bytes | memoryview) -> None:
        """Take bytes that nobody changes any more."""
        if not self._pending and len(data) < _HASH_BYTES:
            self._sha256.update(data)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="hilum-hash")
        self._pending.append(self._pool.submit(self._sha256.update, data))
        # a few pieces of 1024 rows may wait, no more: memory
        self._wait(most=3)

    def digest(self) -> bytes:
        self._wait(most=0)
        return self._sha256.digest()

    def _wait(self, most: int) -> None:
        while len(self._pending) > most:
            self._pending.popleft().result()

    def close(self) -> None:
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class _Syncer:
    """Brings what is written to the disk, in another thread while more is written."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        self._bytes = 0
        self._last = time.monotonic()

    def wrote(self, n_bytes: int, descriptors: tuple[int, ...]) -> None:
        """Count bytes, and begin to bring them to the disk when they are many or old."""
        self._bytes += n_bytes
        now = time.monotonic()
        if self._bytes < _SYNC_BYTES and now - self._last < _SYNC_SECONDS:
            return
        if self._running is not None:
            # A disk that cannot follow sets the pace: what waits stays bounded.
            if not self._running.done() and self._bytes < 8 * _SYNC_BYTES:
                return
            self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="hilum-sync")
        self._running = self._pool.submit(_sync, descriptors)
        self._bytes = 0
        self._last = now

    def wait(self) -> None:
        """Wait for the thread; raises what it met."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        self._running = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _sync(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        getattr(os, "fdatasync", os.fsync)(descriptor)


class ContainerWriter:
    """Write a container so that its name never stands for an unfinished one.

    Rows go to ``<path>.part``, which starts with other bytes than a container and is held by an
    exclusive lock. `seal` adds columns, checksums and notes, brings everything to the disk, opens
    the result as a reader would, and then renames it. An older container at ``path`` keeps its
    bytes until then, and for programs that have it mapped, longer.

    Without a `job`, whatever happens before, an exception or Ctrl-C included, the ``.part`` is
    removed. With one, its rows are kept, by a journal in ``<path>.part.journal``: after an
    exception, ``kill -9`` or a power cut, a writer with ``resume=True`` goes on behind them, and
    seals the very bytes that an uninterrupted writer would have.

    Parameters
    ----------
    path : str or PathLike
        Where the container shall be.
    dim : int
        Length of a feature vector, 1 to 65536.
    dtype : {"f16", "f32", "i8"}
        How features are stored. i8 has one float32 scale for each feature, the largest magnitude
        divided by 127, and needs as much room again in the folder as f32 while it is written.
    expected_rows : int, optional
        Room on the disk is reserved for so many rows, so that a full disk is met at once and not
        after an hour. More or fewer may come.
    backbone_digest, preprocessing_digest : str
        SHA-256 as 64 hexadecimal digits; the notes must say the same.
    overwrite : bool
        Whether a container at ``path`` may be replaced.
    scales : array of float32, shape (dim,), optional
        For i8: `append` then takes the int8 elements themselves, and keeps them.
    group_order : {"random", "given"}
        Sealing numbers the groups from 0 without holes: in random order, so that the numbers tell
        nothing, or in the order of the given numbers, where that is random already.
    seed : int, optional
        Of the random order, for a file that comes out the same again; its uuid is then made of its
        contents. Default: from the operating system.
    job : Mapping[str, Any], optional
        What the caller needs to go on later, made of what JSON has: order of the inputs, digests
        of the options. It is kept beside the ``.part`` and never gets into the container.
    resume : bool
        Go on with what an earlier writer with a job left, if it left something (see `resumed`).

    Attributes
    ----------
    path : Path
        Where the container shall be.
    n_rows : int
        Rows accepted so far.
    dim : int
        Length of a feature vector.
    n_items : int
        Inputs these came from, as told to `append`.
    resumed : bool
        Whether it goes on with an earlier writer's rows.
    finished : bool
        The earlier writer had finished, and died before it could say so: the container stands at
        `path`, and there is nothing to do.
    job : dict or None
        The job; of the earlier writer, if `resumed`. The caller compares it with its own.

    Raises
    ------
    ContainerError
        The folder is missing, read-only or full; another writer is at work on the same path; a
        file that is no container is there (it keeps its bytes), or ``<path>.part`` is a link; an
        unfinished file with rows is there and `resume` is false, or it was begun with another
        `dim`, `dtype` or digest.
    ValueError
        An argument outside its range.

    Examples
    --------
    >>> with ContainerWriter("x.hilum", dim=3, ...) as writer:     # doctest: +SKIP
    ...     writer.append(features, label=labels, group=patients)
    ...     writer.seal(notes)
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        dim: int,
        dtype: str = "f16",
        expected_rows: int | None = None,
        backbone_digest: str,
        preprocessing_digest: str,
        overwrite: bool = True,
        scales: npt.ArrayLike | None = None,
        group_order: Literal["random", "given"] = "random",
        seed: int | None = None,
        job: Mapping[str, Any] | None = None,
        resume: bool = False,
        _uuid: bytes | None = None,
    ) -> None:
        self._descriptor: int | None = None
        self._spool: Any = None
        self._journal: Journal | None = None
        self.path = Path(path)
        self._mode = 0o666
        self.n_rows = 0
        self.n_items = 0
        self.resumed = False
        self.finished = False
        self.job = None if job is None else dict(job)
        self._part = self.path.with_name(self.path.name + ".part")
        self._journal_path = self.path.with_name(self._part.name + ".journal")
        self._rows_path = self.path.with_name(self._part.name + ".rows")
        if group_order not in ("random", "given"):
            raise ValueError(f"group_order is {group_order!r}, expected 'random' or 'given'")
        if resume and job is None:
            raise ValueError("resume needs a job: without one nothing is kept to go on with")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(_DTYPES)}")
        if not 1 <= dim <= lib.HILUM_MAX_DIM:
            raise ValueError(f"dim is {dim}, expected 1 to {lib.HILUM_MAX_DIM}")
        if expected_rows is not None and not 1 <= expected_rows <= lib.HILUM_MAX_ROWS:
            raise ValueError(
                f"expected_rows is {expected_rows}, expected 1 to {lib.HILUM_MAX_ROWS}"
            )
        self.dim = int(dim)
        self._dtype = dtype
        self._element = _DTYPES[dtype].element
        self._backbone = _digest_bytes("backbone_digest", backbone_digest)
        self._preprocessing = _digest_bytes("preprocessing_digest", preprocessing_digest)
        self._overwrite = overwrite
        self._scales = None if scales is None else _scales(scales, dim, dtype)
        self._group_order = group_order
        # Drawn now, because a run that goes on later must draw the same.
        self._group_seed = secrets.randbits(64) if seed is None else int(seed)
        if _uuid is None and seed is None:
            _uuid = secrets.token_bytes(16)
        self._uuid = _uuid  # None: made of the contents
        self._columns: dict[str, _Column] | None = None
        self._state: Literal["writing", "sealed", "aborted"] = "writing"
        self._keep = False
        self._spools = dtype == "i8" and scales is None
        # i8 rows wait as float32, because the scales are known only when the last row has come
        self._row_type = np.dtype("<f4") if self._spools else self._element
        self._largest = np.zeros(self.dim, np.float32)
        self._table: list[int] = []
        self._chunk_crc = 0
        self._hasher = _Hasher()
        self._syncer = _Syncer()
        self._end = _BODY
        self._expected_bytes = _BODY + (expected_rows or 0) * self.dim * self._element.itemsize
        try:
            with self._explained():
                self._start(expected_rows, resume)
        except BaseException:
            self.abort()
            raise

    # ---- Life ---------------------------------------------------------------------------------

    def _start(self, expected_rows: int | None, resume: bool) -> None:
        if self.path.exists() and not self.path.is_file():
            what = "a folder" if self.path.is_dir() else "not a regular file"
            raise ContainerError(
                self.path, f"this is {what}, expected the name of a .hilum file to write."
            )
        if not self._overwrite and os.path.lexists(self.path):
            raise ContainerError(
                self.path, "exists already. Choose another name or allow it to be replaced."
            )
        self._refuse_other_kinds()
        if not os.access(self.path.parent, os.W_OK | os.X_OK) and self.path.parent.is_dir():
            # the rename at the end would fail, after hours of work into an old .part
            code = errno.EROFS if _is_read_only(self.path.parent) else errno.EACCES
            raise OSError(code, os.strerror(code))
        with contextlib.suppress(OSError):
            # what replaces a file that others may not read is not theirs to read while it is made
            self._mode = 0o600 | 0o666 & self.path.stat().st_mode
        # An error while an earlier writer's rows are looked at must not cost them.
        self._keep = True
        self._descriptor = self._lock_part()
        self._journal = self._find_journal(resume)
        if self.finished:
            return
        if self._journal is None:
            self._begin()
        else:
            self._go_on(self._journal)
        if expected_rows is not None:
            _reserve(self._descriptor, self._expected_bytes)
            if self._spools:
                _reserve(self._spool.fileno(), expected_rows * self.dim * 4)

    def _find_journal(self, resume: bool) -> Journal | None:
        """Return the journal to go on with; refuse to lose rows that nobody asked to give up."""
        journal = Journal.open(self._journal_path)
        if journal is None:
            return None
        try:
            # Without a .part, here just made and empty, a journal is what a finished run left.
            left_over = os.fstat(self._require_writing()).st_size < _BODY
            if left_over:
                sealed = journal.sealed
                same = {"journal": journal.VERSION, **self._begun_with()}.items()
                mine = sealed is not None and same <= journal.facts.items()
                if resume and mine and self._is_sealed_as(str(sealed)):
                    self._note_finished(journal)
                return None
            if journal.facts.get("journal") != journal.VERSION:
                raise ContainerError(
                    self._part,
                    "holds rows of a run of another version of Hilum. Go on with that version, or "
                    "delete this file to begin anew.",
                ) from FileExistsError(errno.EEXIST, "unfinished")
            if resume:
                found, journal = journal, None
                return found
            n_rows = sum(record.n_rows for record in journal.records())
        finally:
            if journal is not None:
                journal.close()
        if n_rows == 0:
            return None
        raise ContainerError(
            self._part,
            f"holds {n_rows} rows of a run that was not finished. Give the same command with "
            "--resume to go on with them, or delete this file to begin anew.",
        ) from FileExistsError(errno.EEXIST, "unfinished")

    def _is_sealed_as(self, body_sha256: str) -> bool:
        """Whether the container at the name is the one that a journal says was sealed."""
        with contextlib.suppress(OSError), self.path.open("rb") as stream:
            header: Any = np.frombuffer(stream.read(_BODY).ljust(_BODY, b"\0"), HEADER_DTYPE)[0]
            return bytes(header["magic"]) == MAGIC and (
                bytes(header["body_sha256"]).hex() == body_sha256
            )
        return False

    def _note_finished(self, journal: Journal) -> None:
        """Find that the earlier run died between the last rename and its end."""
        self.finished = self.resumed = True
        self._state = "sealed"
        self._keep = False
        self.job = dict(journal.facts["job"])
        for record in journal.records():
            self.n_rows += record.n_rows
            self.n_items += record.n_items

    def _begin(self) -> None:
        """Begin an empty ``.part``: first nothing says that there are rows, then there are none."""
        descriptor = self._require_writing()
        self._keep = False
        for path in (self._journal_path, self._rows_path):
            path.unlink(missing_ok=True)
        os.ftruncate(descriptor, 0)
        write_at(descriptor, PART_MAGIC.ljust(_BODY, b"\0"), 0)
        if self._spools:
            self._spool = self._open_spool()
        if self.job is None:
            return
        self._journal = Journal.create(
            self._journal_path,
            {
                **self._begun_with(),
                "uuid": None if self._uuid is None else self._uuid.hex(),
                "group_seed": self._group_seed,
                "job": self.job,
            },
            b"" if self._scales is None else self._scales.tobytes(),
        )
        sync_folder(self.path.parent)

    def _begun_with(self) -> dict[str, Any]:
        """Return what a writer that goes on must have in common with the one that began."""
        return {
            "dim": self.dim,
            "dtype": self._dtype,
            "backbone": self._backbone.hex(),
            "preprocessing": self._preprocessing.hex(),
            "group_order": self._group_order,
            "scales": None if self._scales is None else crc32c(self._scales),
        }

    def _open_spool(self) -> Any:
        if self.job is None:
            # unnamed from the start, so that not even kill -9 leaves it behind
            return tempfile.TemporaryFile(dir=self.path.parent, buffering=0)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(self._rows_path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
        return os.fdopen(descriptor, "r+b", buffering=0)

    def _go_on(self, journal: Journal) -> None:
        """Take over the rows of an earlier writer, up to the first that are not as noted."""
        facts = journal.facts
        for name, mine in self._begun_with().items():
            if facts.get(name) != mine:
                raise ContainerError(
                    self._part,
                    f"was begun with {name} {facts.get(name)}, and now it is {mine}. Give the "
                    "options it was begun with, or delete this file to begin anew.",
                ) from FileExistsError(errno.EEXIST, "unfinished")
        self.resumed = True
        self.job = dict(facts["job"])
        self._uuid = None if facts["uuid"] is None else bytes.fromhex(facts["uuid"])
        self._group_seed = facts["group_seed"]
        descriptor = self._require_writing()
        if self._spools:
            self._spool = self._open_spool()
        # A run that died between writing the header and renaming left the header of a whole file.
        write_at(descriptor, PART_MAGIC.ljust(_BODY, b"\0"), 0)
        kept = None
        for record in journal.records():
            if not self._take_over(record):
                break
            kept = record.end
        journal.cut(kept)
        self._keep = False  # from here on by the number of rows

    def _take_over(self, record: RowRecord) -> bool:
        """Read the rows of one record back; false where they are not what was written."""
        crc = 0
        for rows in self._read_back(record.n_rows):
            crc = crc32c(rows, crc)
        if crc != record.crc:
            return False
        for rows in self._read_back(record.n_rows):
            self._count_rows(rows)
        self._count_columns(record.n_rows, record.n_items, record.columns)
        return True

    def _read_back(self, n_rows: int) -> Iterator[NDArray[Any]]:
        """Yield the rows behind those that are counted, up to the end of the file."""
        source = self._spool.fileno() if self._spools else self._require_writing()
        first = self.n_rows
        base = 0 if self._spools else _BODY
        row_bytes = self.dim * self._row_type.itemsize
        for start, stop in _pieces(first, n_rows):
            rows = np.empty((stop - start, self.dim), self._row_type)
            n_bytes = _read_at(source, rows.data.cast("B"), base + (first + start) * row_bytes)
            if n_bytes != rows.nbytes:
                return
            yield rows

    def _refuse_other_kinds(self) -> None:
        """Leave alone what is no container: a slip in a command must not cost an image."""
        if self._part.is_symlink():
            raise self._part_is_a_link()
        for path in (self.path, self._part):
            if not path.is_file():
                continue
            try:
                with path.open("rb") as stream:
                    page = stream.read(_BODY)
            except OSError as exc:
                if path == self._part:
                    continue  # taking it over says what is wrong
                raise ContainerError(
                    path,
                    f"is there already and cannot be read ({exc.strerror}), so it may be no "
                    "container. Choose another name.",
                ) from exc
            # A power cut may leave zeros where the first page of a .part was.
            blank = path == self._part and len(page) == _BODY and not any(page)
            if not blank and page[: len(MAGIC)] not in (MAGIC, PART_MAGIC, b""):
                raise ContainerError(
                    path,
                    f"is there already and is no container: {describe_first_bytes(path)}. It was "
                    "left as it is: choose another name, or move it away first.",
                )

    def _part_is_a_link(self) -> ContainerError:
        return ContainerError(
            self._part,
            "is a link, and the rows would be written over what it leads to. Remove the link or "
            "choose another name.",
        )

    def _lock_part(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        # through a link at this name, somebody else's file would be emptied
        flags |= getattr(os, "O_NOFOLLOW", 0)
        while True:
            try:
                descriptor = os.open(self._part, flags, self._mode)
            except OSError as exc:
                if not self._part.is_symlink():
                    raise
                raise self._part_is_a_link() from exc
            try:
                if _msvcrt is not None:
                    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
                    _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
                    return descriptor
                _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
                # another writer may have renamed the file between our open and our lock
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), self._part.stat()):
                        return descriptor
            except _BUSY as exc:
                os.close(descriptor)
                raise ContainerError(
                    self.path,
                    f"another program is writing it ({self._part.name} is locked). Wait for it or "
                    "choose another name.",
                ) from exc
            except OSError as exc:
                if exc.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                    return descriptor  # a file system without locks: as well as it can be had
                os.close(descriptor)
                raise
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    @property
    def keeps(self) -> bool:
        """Whether what was written stays for a later writer if this one gives up."""
        return self._keep or (self._journal is not None and self.n_items > 0)

    def abandon(self) -> None:
        """Give up and remove everything, also what could be resumed: there is nothing in it."""
        self._keep = False
        self.n_items = 0
        self.abort()

    def abort(self) -> None:
        """Give up: remove the ``.part``, or leave it to be resumed. Does nothing after `seal`."""
        self._hasher.close()
        self._syncer.close()
        keeps = self.keeps
        if self._state == "writing":
            self._keep = keeps  # to be asked for after the journal is closed, too
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()
        descriptor, self._descriptor = self._descriptor, None
        if self._state == "writing":
            self._state = "aborted"
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            # never somebody else's file: only while the name still leads to ours
            status = os.fstat(descriptor)
            ours = os.path.samestat(status, self._part.stat())
            if os.name == "nt":
                os.close(descriptor)
                descriptor = None
            if ours and not keeps:
                self._journal_path.unlink(missing_ok=True)
                self._rows_path.unlink(missing_ok=True)
            if ours and (not keeps or status.st_size == 0):  # an empty one was just made
                self._part.unlink()
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.abort()

    def __repr__(self) -> str:
        return (
            f"<ContainerWriter {self.path.name}: {self.n_rows} rows x {self.dim} {self._dtype}, "
            f"{self._state}>"
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the system says into what a person can act on."""
        try:
            yield
        except ContainerError:
            raise
        except OSError as exc:
            needed = max(self._expected_bytes, self._end)
            if self._spools:  # beside it, the rows as float32
                needed += 4 * (needed - _BODY)
            message = explain_write_failure(self.path, exc, needed)
            if self._state == "writing" and self.keeps and self.n_rows:
                message += f" {self.n_rows} rows are kept in {self._part.name}."
            raise ContainerError(self.path, message) from exc

    def _require_writing(self) -> int:
        if self._descriptor is None or self._state != "writing":
            raise ContainerError(
                self.path, f"the writer is {self._state}: no more can be written. Make a new one."
            )
        return self._descriptor

    # ---- Rows ---------------------------------------------------------------------------------

    def append(
        self, features: npt.ArrayLike, *, n_items: int | None = None, **columns: npt.ArrayLike
    ) -> None:
        """Add rows; nothing is accepted unless all of it is.

        Parameters
        ----------
        features : array of float, shape (n, dim)
            Finite. Rows flagged as withdrawn are stored as zeros. With `scales`, int8 elements.
        n_items : int, optional
            Inputs that were worked on for these rows, those that gave none included; n if None.
            Only counted, in the attribute of that name, for a later writer to go on behind them.
        **columns : array, shape (n,) or (n, width)
            label, split, group, sample_key, source, view, row_flags, sex, age, projection: the
            same ones at each call. A two-dimensional label is multi-label; sample_key is
            ``(n, 16)`` uint8. Groups are numbered anew without holes when sealing.

        Raises
        ------
        ValueError
            A shape, type, value or column that does not fit; says which row.
        ContainerError
            The disk is full or failed; the ``.part`` is removed, or kept if there is a job.
        """
        self._require_writing()
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise ValueError(
                f"{self.path}: features have shape {array.shape}, expected (n, {self.dim})"
            )
        n = len(array)
        if self.n_rows + n > lib.HILUM_MAX_ROWS:
            raise ValueError(f"{self.path}: more than {lib.HILUM_MAX_ROWS} rows")
        if self._scales is not None and array.dtype != np.int8:
            raise ValueError(f"{self.path}: features are {array.dtype}, expected int8 with scales")
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{self.path}: features are {array.dtype}, expected float32")
        checked = self._check_columns(n, columns) if n or columns else {}
        withdrawn = None
        if "row_flags" in checked:
            withdrawn = (checked["row_flags"] & lib.HILUM_ROW_WITHDRAWN) != 0
        self._check_features(array, withdrawn)
        n_bytes = sum(values.nbytes for values in checked.values())
        if self._journal is not None and n_bytes > Journal.MAX_BYTES:
            raise ValueError(
                f"{self.path}: columns of {n_bytes} bytes at once, expected at most "
                f"{Journal.MAX_BYTES}. Append fewer rows at a time."
            )
        items = n if n_items is None else int(n_items)
        try:
            with self._explained():
                self._add_rows(array, withdrawn, items, checked)
        except BaseException:
            self.abort()
            raise

    def check(self, features: NDArray[Any]) -> None:
        """Refuse features that could not be appended, and append nothing.

        Parameters
        ----------
        features : array of float, shape (n, dim)
            As for `append`.

        Raises
        ------
        ValueError
            A number that is not finite as it would be stored; says which.
        """
        self._check_features(np.asarray(features), None)

    def _check_features(self, array: NDArray[Any], withdrawn: NDArray[np.bool_] | None) -> None:
        """Refuse the first feature that cannot be stored as a finite number."""
        for start in range(0, len(array), CHUNK_ROWS):
            rows = array[start : start + CHUNK_ROWS]
            skipped = None if withdrawn is None else withdrawn[start : start + CHUNK_ROWS]
            if skipped is not None and skipped.any():
                rows = np.where(skipped[:, None], rows.dtype.type(0), rows)
            if self._is_storable(rows):
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                stored = rows.astype(self._row_type)
            row, column = (int(i) for i in np.argwhere(~np.isfinite(stored))[0])
            value = rows[row, column]
            why = (
                f"f16 holds up to {_F16_MAX:g}: write dtype f32"
                if np.isfinite(value)
                else "expected finite features: look at the image of this row"
            )
            raise ValueError(
                f"{self.path}: row {self.n_rows + start + row}, feature {column} is {value}; {why}"
            )

    def _is_storable(self, rows: NDArray[Any]) -> bool:
        """Whether every number stays finite; by comparisons, at a tenth of the cost of isfinite."""
        if self._row_type.kind == "i":
            lowest = int(rows.min(initial=0))
            if lowest < -127:
                raise ValueError(f"{self.path}: found the element {lowest}, expected -127 to 127")
            return True
        if rows.dtype == self._row_type and rows.dtype.isnative and rows.flags.c_contiguous:
            # IEEE 754: an exponent of all ones is an infinity or NaN
            bits = rows.view(f"u{rows.dtype.itemsize}")
            sign = np.array(1 << (8 * rows.dtype.itemsize - 1), bits.dtype)
            infinity = np.array(np.inf, rows.dtype).view(bits.dtype)
            return bool((bits & ~sign).max(initial=0) < infinity)
        # NaN comes through min and max, and is below nothing
        limit = _OVERFLOW[self._row_type.char]
        return float(rows.max(initial=0)) < limit and float(rows.min(initial=0)) > -limit

    def _check_columns(
        self, n: int, columns: Mapping[str, npt.ArrayLike]
    ) -> dict[str, NDArray[Any]]:
        for name in columns:
            if name not in _RULES:
                raise ValueError(
                    f"{self.path}: no column {name!r}, expected some of {', '.join(_RULES)}"
                )
        if self._columns is not None and set(columns) != set(self._columns):
            raise ValueError(
                f"{self.path}: columns {', '.join(sorted(columns)) or 'none'}, but the first rows "
                f"came with {', '.join(sorted(self._columns)) or 'none'}"
            )
        return {
            name: self._check_column(name, n, columns[name]) for name in _RULES if name in columns
        }

    def _check_column(self, name: str, n: int, given: npt.ArrayLike) -> NDArray[Any]:
        values = np.asarray(given)
        where = f"{self.path}: column {name}"
        if name == "sample_key" and values.dtype.kind in "SV" and values.dtype.itemsize == 16:
            values = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, _KEY_BYTES)
        if values.size == 0 and n == 0:
            values = values.astype(np.int64)
        if values.dtype.kind not in "iub":
            raise ValueError(f"{where} is {values.dtype}, expected whole numbers")
        two_dimensional = name == "sample_key" or (name == "label" and values.ndim == 2)
        if values.ndim != (2 if two_dimensional else 1) or len(values) != n:
            expected = f"({n}, {_KEY_BYTES})" if name == "sample_key" else f"({n},)"
            raise ValueError(f"{where} has shape {values.shape}, expected {expected}")
        if name == "sample_key" and values.shape[1] != _KEY_BYTES:
            raise ValueError(f"{where} has shape {values.shape}, expected ({n}, {_KEY_BYTES})")
        if two_dimensional and not 1 <= values.shape[1] <= lib.HILUM_MAX_WIDTH:
            raise ValueError(
                f"{where} has shape {values.shape}, expected 1 to {lib.HILUM_MAX_WIDTH} classes"
            )
        if self._columns is not None and _width(values) != self._columns[name].width:
            raise ValueError(
                f"{where} has {_width(values)} values a row, the first rows had "
                f"{self._columns[name].width}"
            )
        if self._columns is not None and _rule_of(name, values) is not self._columns[name].rule:
            raise ValueError(f"{where} has shape {values.shape}, the first rows had another")
        rule = _rule_of(name, values)
        wrong = (values < rule.low) | (values > rule.high)
        for value in rule.allowed:
            wrong &= values != value
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            raise ValueError(
                f"{where}, row {self.n_rows + row}: found {values[wrong].flat[0]}, expected "
                f"{rule.low} to {rule.high}. {rule.hint}".rstrip()
            )
        return np.array(values, dtype=rule.element, order="C")

    def _add_rows(
        self,
        array: NDArray[Any],
        withdrawn: NDArray[np.bool_] | None,
        n_items: int,
        columns: Mapping[str, NDArray[Any]],
    ) -> None:
        first, crc = self.n_rows, 0
        for start, stop in _pieces(first, len(array)):
            rows = array[start:stop].astype(self._row_type, order="C", copy=True)
            if withdrawn is not None:
                rows[withdrawn[start:stop]] = 0
            data = rows.data.cast("B")
            if self._spools:
                offset = (first + start) * self.dim * rows.itemsize
                write_at(self._spool.fileno(), data, offset)
            else:
                write_at(self._require_writing(), data, self._end)
            crc = crc32c(data, crc)
            self._count_rows(rows)
            self._syncer.wrote(len(data), self._descriptors())
        # One record for all of it: after kill -9 the rows of a call are kept all or none, so that
        # the caller knows where to go on.
        if self._journal is not None:
            self._journal.add(len(array), n_items, crc, columns)
        self._count_columns(len(array), n_items, columns)

    def _count_rows(self, rows: NDArray[Any]) -> None:
        """Take the features of up to a chunk of rows into the books."""
        if self._spools:
            np.maximum(self._largest, np.abs(rows).max(axis=0), out=self._largest)
        else:
            self._count_stored(rows)

    def _count_stored(self, rows: NDArray[Any]) -> None:
        """Take rows as they lie in the file into the chunk table and the SHA-256."""
        data = rows.data.cast("B")
        if (self._end - _BODY) // (self.dim * rows.itemsize) % CHUNK_ROWS == 0:
            self._table.append(0)
        self._table[-1] = crc32c(data, self._table[-1])
        self._hasher.update(data)
        self._end += len(data)

    def _count_columns(
        self, n_rows: int, n_items: int, columns: Mapping[str, NDArray[Any]]
    ) -> None:
        """Take the columns of rows into the books."""
        if n_rows:
            if self._columns is None:
                self._columns = {
                    name: _Column(_rule_of(name, values), _width(values))
                    for name, values in columns.items()
                }
            for name, values in columns.items():
                self._columns[name].add(values)
        self.n_rows += n_rows
        self.n_items += n_items

    def _descriptors(self) -> tuple[int, ...]:
        """Return what must reach the disk for the rows to be kept."""
        found = [self._require_writing()]
        if self._spools:
            found.append(self._spool.fileno())
        if self._journal is not None:
            found.append(self._journal.fileno())
        return tuple(found)

    def _write(self, data: bytes | memoryview) -> None:
        write_at(self._require_writing(), data, self._end)
        self._hasher.update(data)
        self._end += len(data)

    # ---- Sealing ------------------------------------------------------------------------------

    def seal(self, notes: Mapping[str, Any], *, n_values: Mapping[str, int] | None = None) -> Path:
        """Finish the container and give it its name.

        Parameters
        ----------
        notes : Mapping[str, Any]
            As described in ``formats/container.md``. ``format`` and ``version`` may be left out.
        n_values : Mapping[str, int], optional
            Number of values of label, group and source columns; left out, it is the number of
            class names, of groups found and of source names. A number that does not fit is
            refused; there may be fewer groups than said, where images were refused.

        Returns
        -------
        Path
            ``path``.

        Raises
        ------
        NotesError
            A key that is not allowed, or a value that looks like an identity.
        ValueError
            No rows; labels, sources or groups that do not fit the notes.
        ContainerError
            The disk is full or failed.
        """
        self._require_writing()
        if self.n_rows == 0:
            raise ValueError(
                f"{self.path}: no rows were added, expected at least one. Nothing was written: "
                "look at the messages about the inputs."
            )
        columns = {} if self._columns is None else self._columns
        joined = {name: column.join() for name, column in columns.items()}
        if "group" in joined:
            # a hole would tell that somebody was left out, and a large number may be a real one
            _, dense = np.unique(joined["group"], return_inverse=True)
            if self._group_order == "random":
                order = np.random.default_rng(self._group_seed)
                dense = order.permutation(int(dense.max()) + 1)[dense]
            joined["group"] = dense.astype("<u4")
        notes_bytes = self._check_notes(notes, joined)
        counts = self._count_values(notes, joined, dict(n_values or {}))
        # up to here the caller may correct the notes and call again; rows are not lost
        try:
            with self._explained():
                self._finish(joined, counts, notes_bytes)
        finally:
            self.abort()
        return self.path

    def _finish(
        self, joined: Mapping[str, NDArray[Any]], counts: Mapping[str, int], notes_bytes: bytes
    ) -> None:
        descriptor = self._require_writing()
        header: Any = np.zeros((), HEADER_DTYPE)
        header["compatible"] = lib.HILUM_COMPATIBLE_ALL_FINITE
        if _is_group_clean(joined):
            header["compatible"] |= lib.HILUM_COMPATIBLE_GROUP_CLEAN

        scales = self._finish_features()
        header["features"] = (_BODY, self._end - _BODY)
        if scales is not None:
            header["scales"] = self._write_section(scales.tobytes())
            self._table.append(crc32c(scales))
        for i, (name, values) in enumerate(joined.items()):
            offset, length = self._write_section(values.data.cast("B"))
            header["columns"][i] = (
                name.encode(),
                _rule_of(name, values).role,
                _rule_of(name, values).type,
                0,
                _width(values),
                offset,
                length,
                crc32c(values),
                counts[name],
                0,
            )
        table = np.array(self._table, "<u4").tobytes()
        header["table"] = self._write_section(table)
        header["table_crc32c"] = crc32c(table)
        header["notes"] = self._write_section(notes_bytes)
        header["notes_crc32c"] = crc32c(notes_bytes)

        header["magic"] = np.frombuffer(MAGIC, np.uint8)
        header["major"] = lib.HILUM_MAJOR
        header["minor"] = lib.HILUM_MINOR
        header["header_size"] = _BODY
        header["file_size"] = self._end
        header["n_rows"] = self.n_rows
        header["dim"] = self.dim
        header["dtype"] = _DTYPES[self._dtype].code
        header["n_columns"] = len(joined)
        header["chunk_log2"] = lib.HILUM_CHUNK_LOG2
        header["state"] = lib.HILUM_STATE_SEALED
        header["backbone_sha256"] = np.frombuffer(self._backbone, np.uint8)
        header["preprocessing_sha256"] = np.frombuffer(self._preprocessing, np.uint8)
        body = self._hasher.digest()
        if self._journal is not None:
            self._journal.note_sealed(body.hex())
        header["body_sha256"] = np.frombuffer(body, np.uint8)
        header["uuid"] = np.frombuffer(self._uuid or _uuid_of(body), np.uint8)
        header["header_crc32c"] = crc32c(header.tobytes()[:-4])

        # the body is on the disk before the first byte says that the file is whole
        self._syncer.wait()
        os.ftruncate(descriptor, self._end)
        os.fsync(descriptor)
        write_at(descriptor, header.tobytes(), 0)
        os.fsync(descriptor)
        if os.name == "nt":  # where a file that somebody may write cannot be opened to be read
            os.close(descriptor)
            self._descriptor = None
        open_container(self._part).close()
        self._take_name()

    def _finish_features(self) -> NDArray[np.float32] | None:
        if self._scales is not None or not self._spools:
            return self._scales
        scales = (self._largest / np.float32(127)).astype("<f4")
        # all zero, or so small that the step is below the least float32
        scales[scales == 0] = 1
        with np.errstate(over="ignore"):  # the quotient of a huge one may have been rounded up
            too_large = np.isinf(scales * np.float32(127))
        scales = np.where(too_large, np.nextafter(scales, np.float32(0)), scales)
        for first in range(0, self.n_rows, CHUNK_ROWS):
            rows = np.empty((min(CHUNK_ROWS, self.n_rows - first), self.dim), "<f4")
            data = rows.data.cast("B")
            if _read_at(self._spool.fileno(), data, first * self.dim * 4) != len(data):
                raise OSError(errno.EIO, "the temporary file ended early")
            quantized = np.clip(np.rint(rows / scales), -127, 127).astype(np.int8)
            write_at(self._require_writing(), quantized.data.cast("B"), self._end)
            self._count_stored(quantized)
            self._syncer.wrote(quantized.nbytes, (self._require_writing(),))
        return scales

    def _write_section(self, data: bytes | memoryview) -> tuple[int, int]:
        self._write(bytes(-self._end % _ALIGNMENT))
        offset = self._end
        self._write(data)
        return offset, len(data)

    def _take_name(self) -> None:
        if not self._overwrite and os.path.lexists(self.path):
            raise ContainerError(
                self.path, "was made by another program meanwhile. Choose another name."
            )
        self._part.replace(self.path)
        self._state = "sealed"
        self._keep = False
        # The new name is on the disk before what could make the file again is gone.
        sync_folder(self.path.parent)
        # The journal last: it says that the run has finished.
        if self._spool is not None:
            _unlink_own(self._rows_path, self._spool)
        if self._journal is not None:
            _unlink_own(self._journal_path, self._journal)
            self._journal.close()
            self._journal = None

    def _check_notes(self, notes: Mapping[str, Any], joined: Mapping[str, NDArray[Any]]) -> bytes:
        full = {"format": "hilum-notes", "version": 1, **notes}
        validate_notes(full, dim=self.dim)
        found = full["backbone"]["sha256"]
        if found != self._backbone.hex():
            raise NotesError(
                "backbone.sha256", f"found {found}, but backbone_digest is {self._backbone.hex()}."
            )
        found = preprocessing_digest(full["preprocessing"])
        if found != self._preprocessing.hex():
            raise NotesError(
                "preprocessing",
                f"the SHA-256 of its canonical JSON is {found}, but preprocessing_digest is "
                f"{self._preprocessing.hex()}. Take it from "
                "formats.preprocessing_digest(preprocessing).",
            )
        label = joined.get("label")
        if label is not None and full["multilabel"] != (label.ndim == 2):
            raise NotesError(
                "multilabel",
                f"found {full['multilabel']}, but the labels have shape {label.shape}.",
            )
        if label is not None and label.ndim == 2 and label.shape[1] != len(full["classes"]):
            raise NotesError(
                "classes",
                f"found {len(full['classes'])} names, but the labels have {label.shape[1]} "
                "columns.",
            )
        if "source" in joined and "sources" not in full:
            raise NotesError("sources", "is missing, but there is a source column. Name them.")
        data = canonical_json(full)
        if len(data) > MAX_BYTES:
            raise NotesError("", f"{len(data)} bytes, at most {MAX_BYTES} are allowed. Shorten.")
        return data

    def _count_values(
        self,
        notes: Mapping[str, Any],
        joined: Mapping[str, NDArray[Any]],
        given: dict[str, int],
    ) -> dict[str, int]:
        for name in given:
            if name not in joined:
                raise ValueError(f"{self.path}: n_values names {name!r}, which is no column here")
        counts: dict[str, int] = {}
        for name, values in joined.items():
            rule = _rule_of(name, values)
            if rule.n_values is not None:
                counts[name] = rule.n_values
            elif name == "group":
                counts[name] = int(values.max()) + 1
            else:
                counts[name] = len(notes["classes" if name == "label" else "sources"])
                if int(values.max()) >= counts[name]:
                    row = int(np.argmax(values))
                    raise ValueError(
                        f"{self.path}: column {name}, row {row}: found {values[row]}, but the "
                        f"notes name {counts[name]}. Expected less; add the name or correct it."
                    )
            # of the patients counted beforehand, some may have no row that was not refused
            fits = given.get(name, counts[name]) == counts[name] or (
                name == "group" and given[name] > counts[name]
            )
            if not fits:
                raise ValueError(
                    f"{self.path}: n_values of {name} is {given[name]}, expected {counts[name]}"
                )
        return counts


def write_container(
    path: str | PathLike[str],
    features: npt.ArrayLike,
    notes: Mapping[str, Any],
    *,
    dtype: str = "f16",
    backbone_digest: str | None = None,
    preprocessing_digest: str | None = None,
    columns: Mapping[str, npt.ArrayLike] | None = None,
    n_values: Mapping[str, int] | None = None,
    overwrite: bool = True,
    group_order: Literal["random", "given"] = "random",
    seed: int | None = None,
    _uuid: bytes | None = None,
) -> Path:
    """Write a container from arrays; `ContainerWriter` does the same in pieces.

    Rows are written in the order given: give them in random order, so that it tells nothing.

    Parameters
    ----------
    path : str or PathLike
        Where to.
    features : array of float, shape (n, dim)
        Finite feature vectors.
    notes : Mapping[str, Any]
        See ``formats/container.md``.
    dtype : {"f16", "f32", "i8"}
        How features are stored.
    backbone_digest, preprocessing_digest : str, optional
        64 hexadecimal digits; left out, taken from the notes.
    columns : Mapping[str, array], optional
        As in `ContainerWriter.append`.
    n_values : Mapping[str, int], optional
        As in `ContainerWriter.seal`.
    overwrite : bool
        Whether a file at ``path`` may be replaced.
    group_order, seed
        As in `ContainerWriter`.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ContainerError, NotesError, ValueError
        As in `ContainerWriter`.
    """
    array = np.asarray(features)
    if array.ndim != 2:
        raise ValueError(f"{path}: features have shape {array.shape}, expected (n, dim)")
    full = {"format": "hilum-notes", "version": 1, **notes}
    validate_notes(full, dim=array.shape[1])
    with ContainerWriter(
        path,
        dim=array.shape[1],
        dtype=dtype,
        expected_rows=len(array) or None,
        backbone_digest=backbone_digest or full["backbone"]["sha256"],
        preprocessing_digest=preprocessing_digest or _digest_of(full["preprocessing"]),
        overwrite=overwrite,
        group_order=group_order,
        seed=seed,
        _uuid=_uuid,
    ) as writer:
        writer.append(array, n_items=len(array), **(columns or {}))
        return writer.seal(notes, n_values=n_values)


_digest_of = preprocessing_digest  # write_container has an argument of the function's name


def _digest_bytes(name: str, text: str) -> bytes:
    with contextlib.suppress(TypeError, ValueError):
        digest = bytes.fromhex(text)
        if len(digest) == 32:
            return digest
    raise ValueError(f"{name} is {text!r}, expected a SHA-256 as 64 hexadecimal digits")


def _scales(given: npt.ArrayLike, dim: int, dtype: str) -> NDArray[np.float32]:
    scales = np.array(given, "<f4")
    if dtype != "i8":
        raise ValueError(f"scales are given, but dtype is {dtype!r}; only i8 has scales")
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(scales * np.float32(127)).all()
    if scales.shape != (dim,) or not finite:
        raise ValueError(
            f"scales have shape {scales.shape}, expected {dim} numbers that stay finite times 127"
        )
    return scales


def _uuid_of(body_sha256: bytes) -> bytes:
    """Name a data set by its contents: the same rows written again are the same data set."""
    return hashlib.sha256(b"hilum data set" + body_sha256).digest()[:16]


def _read_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Fill data from a place in a file; returns how many bytes there were."""
    done = 0
    while done < len(data):
        if hasattr(os, "preadv"):
            n = os.preadv(descriptor, [data[done : done + (1 << 30)]], offset + done)
        else:  # Windows
            os.lseek(descriptor, offset + done, os.SEEK_SET)
            part = os.read(descriptor, min(len(data) - done, 1 << 24))
            n = len(part)
            data[done : done + n] = part
        if n == 0:
            break
        done += n
    return done


def _is_read_only(folder: Path) -> bool:
    """Whether a folder lies on a file system that takes no writing."""
    if not hasattr(os, "statvfs"):
        return False
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _unlink_own(path: Path, file: Any) -> None:
    """Remove a name only while it leads to the open file: another writer may have begun."""
    with contextlib.suppress(FileNotFoundError):
        ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
        if os.name == "nt":  # where an open file cannot be removed
            file.close()
        if ours:
            path.unlink()


def _pieces(first: int, n_rows: int) -> Iterator[tuple[int, int]]:
    """Cut rows that come behind `first` others at the edges of chunks: each has one checksum."""
    start = 0
    while start < n_rows:
        stop = min(n_rows, start + CHUNK_ROWS - (first + start) % CHUNK_ROWS)
        yield start, stop
        start = stop


def _width(values: NDArray[Any]) -> int:
    return int(values.shape[1]) if values.ndim == 2 else 1


def _rule_of(name: str, values: NDArray[Any]) -> _Rule:
    return _MULTI_LABEL if name == "label" and values.ndim == 2 else _RULES[name]


def _is_group_clean(joined: Mapping[str, NDArray[Any]]) -> bool:
    """Whether there are groups and splits, and no group is in two of train, valid and test."""
    if "group" not in joined or "split" not in joined:
        return False
    marked = joined["split"] != lib.HILUM_SPLIT_NONE
    pairs = np.unique(joined["group"][marked].astype(np.int64) * 4 + joined["split"][marked])
    return len(np.unique(pairs // 4)) == len(pairs)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Take the room on the disk now, where the file system can."""
    if n_bytes <= 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
            raise
