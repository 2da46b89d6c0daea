"""How an unfinished container remembers which rows it holds: a journal beside the ``.part``.

A journal starts with eight bytes of its own and then has records, each one appended in one write:
lengths and checksum (16 bytes), a JSON object, raw bytes. The first record says what is being
written, every other one which rows came next, with the checksum of their features and the bytes
of their columns. A record that a power cut or ``kill -9`` left unfinished fails its checksum: it
and everything after it count for nothing.

Features and journal need not reach the disk in this order. Whoever goes on compares the features
of each record with its checksum, and takes the rows up to the first that differ.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from formats._atomic import write_at
from formats._library import crc32c

__all__ = ["Journal", "RowRecord"]

_MAGIC = b"\x89HILJRNL"
_HEAD = struct.Struct("<IIII")  # length of JSON, length of bytes, 0, checksum of all the rest
_MAX_TEXT = 1 << 20


@dataclass(frozen=True)
class RowRecord:
    """Rows that were added at once.

    Attributes
    ----------
    n_rows : int
        How many, 0 where inputs gave no rows.
    n_items : int
        Inputs they came from, those without a row included.
    crc : int
        CRC-32C of their features as they lie in the file.
    columns : dict of str to ndarray
        Values of each column, ``(n_rows,)`` or ``(n_rows, width)``.
    end : int
        Byte of the journal behind this record.
    """

    n_rows: int
    n_items: int
    crc: int
    columns: dict[str, NDArray[Any]]
    end: int


class Journal:
    """One open journal; whoever holds the lock on the ``.part`` may have it.

    Parameters
    ----------
    path : Path
        The file.
    descriptor : int
        Open for reading and writing; closed by `close`.
    facts : Mapping[str, Any]
        The first record.
    blob : bytes
        Bytes of the first record.
    end : int
        Where the next record goes.
    """

    VERSION = 1
    MAX_BYTES = 1 << 28
    """Of the columns of one record: a length beyond it is damage, not a record."""

    def __init__(
        self, path: Path, descriptor: int, facts: Mapping[str, Any], blob: bytes, end: int
    ) -> None:
        self.path = path
        self.facts = dict(facts)
        self.blob = blob
        self._descriptor = descriptor
        self._end = end

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any], blob: bytes = b"") -> Self:
        """Begin a journal where none is.

        Parameters
        ----------
        path : Path
            The file.
        facts : Mapping[str, Any]
            What JSON can hold.
        blob : bytes
            More of it.

        Returns
        -------
        Journal
            Open.

        Raises
        ------
        OSError
            It cannot be written.
        """
        # For its writer alone: digests of patients' identifiers can be found by trying them all.
        descriptor = os.open(path, _flags() | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            start = _MAGIC + _record({"journal": cls.VERSION, **facts}, blob)
            write_at(descriptor, start, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, {"journal": cls.VERSION, **facts}, blob, len(start))

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Open what an earlier writer left.

        Parameters
        ----------
        path : Path
            The file.

        Returns
        -------
        Journal or None
            None where there is none; the caller compares ``facts["journal"]`` with `VERSION`.

        Raises
        ------
        OSError
            It is there and cannot be read.
        """
        try:
            descriptor = os.open(path, _flags())
        except FileNotFoundError:
            return None
        try:
            if _read(descriptor, 0, len(_MAGIC)) == _MAGIC:
                first = _read_record(descriptor, len(_MAGIC), os.fstat(descriptor).st_size)
                if first is not None:
                    return cls(path, descriptor, *first)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def records(self) -> Iterator[RowRecord]:
        """Yield the rows that were noted, up to the first record that is not whole.

        Yields
        ------
        RowRecord
            In the order in which they were added.
        """
        size = os.fstat(self._descriptor).st_size
        at = self._end
        while True:
            record = _read_record(self._descriptor, at, size)
            if record is None:
                return
            facts, blob, at = record
            columns: dict[str, NDArray[Any]] = {}
            start = 0
            for name, element, shape in facts["columns"]:
                dtype = np.dtype(element)
                n_bytes = dtype.itemsize * int(np.prod(shape))
                columns[name] = np.frombuffer(blob, dtype, int(np.prod(shape)), start).reshape(
                    shape
                )
                start += n_bytes
            yield RowRecord(facts["rows"], facts["items"], facts["crc"], columns, at)

    def cut(self, end: int | None = None) -> None:
        """Forget what comes after a record.

        Parameters
        ----------
        end : int, optional
            `RowRecord.end` of the last record to keep; None keeps the first record alone.
        """
        if end is not None:
            self._end = end
        os.ftruncate(self._descriptor, self._end)

    def add(self, n_rows: int, n_items: int, crc: int, columns: Mapping[str, NDArray[Any]]) -> None:
        """Note rows whose features were written.

        Parameters
        ----------
        n_rows, n_items, crc, columns
            As in `RowRecord`.

        Raises
        ------
        OSError
            The disk is full or failed.
        """
        facts = {
            "rows": n_rows,
            "items": n_items,
            "crc": crc,
            "columns": [[name, a.dtype.str, a.shape] for name, a in columns.items()],
        }
        data = _record(facts, b"".join(a.tobytes() for a in columns.values()))
        write_at(self._descriptor, data, self._end)
        self._end += len(data)

    def note_sealed(self, body_sha256: str) -> None:
        """Note that the container is whole and about to get its name.

        Parameters
        ----------
        body_sha256 : str
            Its digest, by which it is known again.

        Raises
        ------
        OSError
            The disk is full or failed.
        """
        facts = {"rows": 0, "items": 0, "crc": 0, "columns": [], "sealed": body_sha256}
        write_at(self._descriptor, _record(facts, b""), self._end)

    @property
    def sealed(self) -> str | None:
        """Digest of the container that was sealed from these rows; None if none was."""
        size = os.fstat(self._descriptor).st_size
        at, found = self._end, None
        while (record := _read_record(self._descriptor, at, size)) is not None:
            facts, _, at = record
            found = facts.get("sealed")
        return found

    def fileno(self) -> int:
        """Return the descriptor, to bring it to the disk."""
        return self._descriptor

    def close(self) -> None:
        """Close the file and leave it there."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _flags() -> int:
    # through a link at this name, somebody else's file would be emptied
    names = ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW")
    return os.O_RDWR | sum(getattr(os, name, 0) for name in names)


def _record(facts: Mapping[str, Any], blob: bytes) -> bytes:
    text = json.dumps(facts, separators=(",", ":"), allow_nan=False).encode()
    lengths = _HEAD.pack(len(text), len(blob), 0, 0)[:12]
    crc = crc32c(blob, crc32c(text, crc32c(lengths)))
    return b"".join((lengths, struct.pack("<I", crc), text, blob))


def _read_record(descriptor: int, at: int, size: int) -> tuple[dict[str, Any], bytes, int] | None:
    """Read one record; None where it is not whole."""
    head = _read(descriptor, at, _HEAD.size)
    if len(head) < _HEAD.size:
        return None
    n_text, n_blob, _, stored = _HEAD.unpack(head)
    end = at + _HEAD.size + n_text + n_blob
    if n_text > _MAX_TEXT or n_blob > Journal.MAX_BYTES or end > size:
        return None
    payload = _read(descriptor, at + _HEAD.size, n_text + n_blob)
    if crc32c(payload, crc32c(head[:12])) != stored:
        return None
    facts = json.loads(payload[:n_text])
    return facts, payload[n_text:], end


def _read(descriptor: int, at: int, n_bytes: int) -> bytes:
    """Read up to so many bytes, fewer only at the end of the file."""
    parts = []
    while n_bytes > 0:
        if hasattr(os, "pread"):
            part = os.pread(descriptor, n_bytes, at)
        else:  # Windows
            os.lseek(descriptor, at, os.SEEK_SET)
            part = os.read(descriptor, n_bytes)
        if not part:
            break
        parts.append(part)
        at += len(part)
        n_bytes -= len(part)
    return b"".join(parts)
