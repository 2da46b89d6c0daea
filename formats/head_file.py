"""What a head file is: safetensors with one metadata entry, ``hilum``, that holds JSON."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats._atomic import atomic_write
from formats._status import MAGIC, PART_MAGIC, describe_first_bytes
from formats.errors import HeadFileError, NotesError, WriteError
from formats.notes import canonical_json, parse_json

__all__ = ["read_head", "write_head"]

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
        The file cannot be written, or the arguments cannot be stored.
    """
    from safetensors.numpy import save  # only heads need it

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


def _read(file: Path) -> bytes:
    if file.is_dir():
        raise HeadFileError(file, "this is a folder, expected a file. Name the head inside it.")
    try:
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
