"""What a head file is: safetensors with one metadata entry, ``hilum``, that holds JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats._first_bytes import MAGIC, PART_MAGIC, describe_first_bytes
from formats._json import canonical_json, parse_json
from formats.errors import HeadFileError, NotesError, WriteError

__all__ = ["check_head_path", "read_head", "write_head"]

METADATA_KEY = "hilum"
# heads are some kilobytes; this keeps a video given by mistake out of memory
MAX_BYTES = 1 << 30
_CURE = "Give a head file written by engine.train."


def write_head(
    path: str | PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]
) -> Path:
    """Write a head file, whole or not at all.

    Equal arguments give equal bytes.

    Parameters
    ----------
    path : str or PathLike
        Where to; usually ``*.safetensors``.
    tensors : Mapping[str, ndarray]
        Weights by name; at least one.
    metadata : Mapping[str, Any]
        What JSON can hold.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    HeadFileError
        The file cannot be written, the arguments cannot be stored, or a file of another kind is
        at `path`; such a file keeps its bytes.
    """
    # Reading a head, which every prediction does, needs neither.
    from safetensors.numpy import save

    from formats._atomic import atomic_write

    check_head_path(path)
    if not tensors:
        raise HeadFileError(path, "no tensors, expected at least one.")
    try:
        text = canonical_json(dict(metadata)).decode("utf-8")
        # safetensors writes the memory as it lies: a transposed view would be scrambled
        arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        data = save(arrays, metadata={METADATA_KEY: text})
    except NotesError as exc:
        raise HeadFileError(path, f"the metadata {exc}") from exc
    except Exception as exc:  # safetensors raises its own and KeyError for odd dtypes
        raise HeadFileError(path, f"these tensors cannot be stored: {exc!r}.") from exc
    try:
        return atomic_write(path, data)
    except WriteError as exc:
        raise HeadFileError(path, exc.message) from exc


def read_head(path: str | PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a head file.

    Parameters
    ----------
    path : str or PathLike
        A file written by `write_head`.

    Returns
    -------
    tensors : dict of str to ndarray
    metadata : dict

    Raises
    ------
    HeadFileError
        Missing, empty, not safetensors, or without Hilum's metadata; says what it looks like.
    """
    file = Path(path)
    data = _read(file)
    header = _header(file, data)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(METADATA_KEY), str):
        raise HeadFileError(
            file,
            f"a safetensors file, but without the metadata entry {METADATA_KEY!r}: it is not a "
            f"Hilum head. {_CURE}",
        )
    try:
        value = parse_json(metadata[METADATA_KEY].encode("utf-8"))
    except NotesError as exc:
        raise HeadFileError(file, f"the metadata is damaged ({exc}). {_CURE}") from exc
    if not isinstance(value, dict):
        raise HeadFileError(file, f"the metadata is not a JSON object. {_CURE}")
    from safetensors.numpy import load

    try:
        tensors: dict[str, NDArray[Any]] = load(data)
    except Exception as exc:  # SafetensorError, and KeyError for dtypes NumPy lacks
        raise HeadFileError(file, f"the tensors are damaged ({exc}). {_CURE}") from exc
    return tensors, value


def check_head_path(path: str | PathLike[str]) -> None:
    """Refuse to replace what is no head: a slip in a command must not cost an image.

    `write_head` asks this first; who trains for an hour may ask before that.

    Parameters
    ----------
    path : str or PathLike
        Where a head is to be written. Free, empty or a safetensors file is right.

    Raises
    ------
    HeadFileError
        A folder, or a file of another kind, is there.
    """
    file = Path(path)
    if os.path.isdir(file):  # noqa: PTH112 - pathlib raises for names that are too long
        raise HeadFileError(file, "this is a folder, expected the name of a file to write.")
    if not os.path.exists(file):  # noqa: PTH110
        return
    if not file.is_file():
        raise HeadFileError(file, "is not a regular file, expected the name of a file.")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as exc:
        raise HeadFileError(
            file,
            f"is there already and cannot be read ({exc.strerror}), so it may be no head. Choose "
            "another name.",
        ) from exc
    is_head = start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8
    if start and not is_head:
        raise HeadFileError(
            file,
            f"is there already and is no head: {describe_first_bytes(file)}. It was left as it "
            "is: choose another name, or move it away first.",
        )


def _read(file: Path) -> bytes:
    if file.is_dir():
        raise HeadFileError(file, "this is a folder, expected a file. Name the head inside it.")
    try:
        if file.exists() and not file.is_file():
            raise HeadFileError(file, f"is not a regular file. {_CURE}")
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise HeadFileError(file, f"{size} bytes, which no head has. {_CURE}")
        return file.read_bytes()
    except FileNotFoundError as exc:
        raise HeadFileError(
            file, "the file does not exist, expected a head file. Check the path."
        ) from exc
    except OSError as exc:
        raise HeadFileError(
            file, f"cannot be read: {exc.strerror}. Check that you may read it (ls -l)."
        ) from exc


def _header(file: Path, data: bytes) -> dict[str, Any]:
    """Parse the JSON that safetensors starts with, and refuse duplicate keys as it does not."""
    if data.startswith((MAGIC, PART_MAGIC)):
        raise HeadFileError(
            file,
            "this is a container of features, expected a head. Train one from it: "
            "python -m engine.train DATA.hilum -o HEAD.safetensors",
        )
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or data[8:9] != b"{" or length > len(data) - 8:
        looks = describe_first_bytes(file)
        cut = " and its end may be missing" if data[8:9] == b"{" else ""
        raise HeadFileError(file, f"not a head file: {looks}{cut}. {_CURE}")
    try:
        header = parse_json(data[8 : 8 + length])
    except NotesError as exc:
        raise HeadFileError(file, f"its header is damaged ({exc}). {_CURE}") from exc
    if not isinstance(header, dict):
        raise HeadFileError(file, f"its header is not a JSON object. {_CURE}")
    return header
