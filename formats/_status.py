"""What each status of the C reader means to a person: exception, sentence and cure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats._first_bytes import describe_first_bytes
from formats._library import ffi, lib
from formats.errors import (
    ContainerError,
    Corrupt,
    NotAContainer,
    Truncated,
    UnsupportedVersion,
)

_COPY_AGAIN = (
    "The file was damaged after it was written: copy it again from where it came and compare the "
    "sizes, or make it anew with engine.extract."
)
_WRITER_AT_FAULT = (
    "It was not written by a correct Hilum writer: make it anew, and if Hilum wrote it, report it."
)


@dataclass(frozen=True)
class Meaning:
    """One status, told to a person.

    Parameters
    ----------
    exception : type[ContainerError]
        What is raised.
    sentence : str
        What is wrong; ``{field}``, ``{found}``, ``{expected}``, ``{offset}``, ``{rows}`` ... are
        filled in from ``hilum_error``.
    cure : str
        What to do.
    hexadecimal : bool
        Whether found and expected are checksums.
    """

    exception: type[ContainerError]
    sentence: str
    cure: str
    hexadecimal: bool = False


MEANINGS: dict[int, Meaning] = {
    lib.HILUM_ERR_ARGUMENT: Meaning(
        ContainerError,
        "the C reader was called against its rules ({field})",
        "This is a mistake in Hilum: please report it.",
    ),
    lib.HILUM_ERR_OPEN: Meaning(
        ContainerError, "cannot be opened: {system}", "Check the path and the permissions."
    ),
    lib.HILUM_ERR_READ: Meaning(
        ContainerError,
        "reading failed at byte {offset}: {system}",
        "The file was cut or replaced after it was opened, or the disk or network failed: open it "
        "again, and if that fails copy it to a local disk.",
    ),
    lib.HILUM_ERR_MEMORY: Meaning(
        ContainerError,
        "not enough memory to open it",
        'Close other programs, or open it with mode="mmap", which does not load the features.',
    ),
    lib.HILUM_ERR_NOT_A_CONTAINER: Meaning(
        NotAContainer,
        "not a Hilum container: {first_bytes}; expected the bytes 89 48 49 4C 55 4D 0D 0A",
        "Give a .hilum file written by engine.extract.",
    ),
    lib.HILUM_ERR_UNSEALED: Meaning(
        NotAContainer,
        "writing it was never finished, so it may lack rows",
        "Wait until the program that writes it is done; if that was stopped, run it again.",
    ),
    lib.HILUM_ERR_VERSION: Meaning(
        UnsupportedVersion,
        "written in version {found} of the format; this Hilum reads version {expected}",
        "Update Hilum (pip install --upgrade hilum).",
    ),
    lib.HILUM_ERR_INCOMPATIBLE: Meaning(
        UnsupportedVersion,
        "needs a feature this Hilum does not know ({field}, {found})",
        "Update Hilum (pip install --upgrade hilum).",
    ),
    lib.HILUM_ERR_TRUNCATED: Meaning(
        Truncated,
        "holds {found} bytes, but a whole file has {expected}: the end is missing",
        "The copy or download was cut: copy it again.",
    ),
    lib.HILUM_ERR_TRAILING: Meaning(
        Truncated,
        "holds {found} bytes, but its header says {expected}: something was added at the end",
        "Copy it again in binary mode, or cut it to its stated length and run verify.",
    ),
    lib.HILUM_ERR_HEADER_CRC: Meaning(
        Corrupt,
        "the checksum of the header is {found}, stored {expected}",
        _COPY_AGAIN,
        hexadecimal=True,
    ),
    lib.HILUM_ERR_HEADER: Meaning(
        Corrupt,
        "header field {field} is {found}, the nearest allowed value is {expected}",
        _WRITER_AT_FAULT,
    ),
    lib.HILUM_ERR_LAYOUT: Meaning(
        Corrupt,
        "{field} is stated as {found}, but rows, width and types give {expected} (byte {offset})",
        _WRITER_AT_FAULT,
    ),
    lib.HILUM_ERR_PADDING: Meaning(
        Corrupt,
        "byte {offset} is {found}, expected 0: it is reserved or lies between two sections",
        _COPY_AGAIN,
    ),
    lib.HILUM_ERR_COLUMN: Meaning(
        Corrupt,
        "the descriptor of column {field!r} breaks a rule at byte {offset}: found {found}, "
        "expected {expected}",
        _WRITER_AT_FAULT,
    ),
    lib.HILUM_ERR_COLUMN_CRC: Meaning(
        Corrupt,
        "the checksum of column {field!r} is {found}, stored {expected}",
        _COPY_AGAIN,
        hexadecimal=True,
    ),
    lib.HILUM_ERR_VALUE: Meaning(
        Corrupt,
        "column {field!r} holds a value at byte {offset} that its descriptor does not allow (found "
        "{found}, limit {expected})",
        _WRITER_AT_FAULT,
    ),
    lib.HILUM_ERR_GROUP_SPLIT: Meaning(
        Corrupt,
        "the group of the row at byte {offset} lies in two splits ({found} and {expected}; "
        "1 train, 2 valid, 3 test), though the file promises that none does",
        "Scores from it would be too good: split it again by patient and write a new file.",
    ),
    lib.HILUM_ERR_TABLE_CRC: Meaning(
        Corrupt,
        "the checksum of the checksum table is {found}, stored {expected}",
        _COPY_AGAIN,
        hexadecimal=True,
    ),
    lib.HILUM_ERR_NOTES_CRC: Meaning(
        Corrupt,
        "the checksum of the notes is {found}, stored {expected}",
        _COPY_AGAIN,
        hexadecimal=True,
    ),
    lib.HILUM_ERR_SCALES_CRC: Meaning(
        Corrupt,
        "the checksum of the scales is {found}, stored {expected}",
        _COPY_AGAIN,
        hexadecimal=True,
    ),
    lib.HILUM_ERR_CHUNK_CRC: Meaning(
        Corrupt,
        "the checksum of {rows} is {found}, stored {expected}",
        _COPY_AGAIN,
        hexadecimal=True,
    ),
    lib.HILUM_ERR_NOT_FINITE: Meaning(
        Corrupt,
        "the feature or scale at byte {offset} is not finite, or a scale so large that features "
        "are not, though the file promises that all are",
        _WRITER_AT_FAULT,
    ),
}
"""Every ``HILUM_ERR_*``; a test compares the keys with the ABI header."""


def container_error(
    path: Path, status: int, error: Any, rows: str = "the features"
) -> ContainerError:
    """Turn what the C reader answered into the exception to raise.

    Parameters
    ----------
    path : Path
        The file.
    status : int
        ``HILUM_ERR_*``.
    error : cdata ``hilum_error *``
        As filled by the call.
    rows : str
        What was being verified.

    Returns
    -------
    ContainerError
        Of the class that fits, with path, what was found, what was expected and what to do.
    """
    meaning = MEANINGS.get(status)
    if meaning is None:
        text = ffi.string(lib.hilum_status_text(status)).decode()
        return ContainerError(path, f"{text} (status {status})", status)
    if status == lib.HILUM_ERR_OPEN:
        return ContainerError(path, _describe_refused_open(path, int(error.system_error)), status)
    if path.is_dir():
        return ContainerError(path, _IS_A_FOLDER, status)
    number = "0x{:08x}" if meaning.hexadecimal else "{}"
    system_error = int(error.system_error)
    sentence = meaning.sentence.format(
        field=ffi.string(error.field).decode("utf-8", "replace") or "unnamed",
        found=number.format(int(error.found)),
        expected=number.format(int(error.expected)),
        offset=int(error.offset),
        rows=rows,
        system=os.strerror(system_error) if system_error else "the file ended",
        first_bytes=(describe_first_bytes(path) if status == lib.HILUM_ERR_NOT_A_CONTAINER else ""),
    )
    return meaning.exception(path, f"{sentence}. {meaning.cure}", status)


_IS_A_FOLDER = "this is a folder, expected a .hilum file. Name the file inside it."


def _describe_refused_open(path: Path, system_error: int) -> str:
    if path.is_dir():
        return _IS_A_FOLDER
    if not path.exists():
        if path.is_symlink():
            return f"is a link to {path.readlink()}, which does not exist. Mend the link."
        near = (
            sorted(p.name for p in path.parent.glob("*.hilum"))[:3] if path.parent.is_dir() else []
        )
        hint = f" The folder has {', '.join(near)}." if near else ""
        if not path.parent.is_dir():
            hint = f" The folder {path.parent} does not exist either."
        return f"the file does not exist, expected a .hilum file. Check the path.{hint}"
    reason = os.strerror(system_error) if system_error else "unknown reason"
    return (
        f"cannot be opened: {reason}. Check that you may read it (ls -l) and that the disk or "
        "network drive is there."
    )
