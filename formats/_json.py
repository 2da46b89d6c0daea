"""JSON of notes and heads: written in one way only, and read as strictly.

What two readers could understand differently is refused: duplicate keys, NaN, numbers beyond
binary64, half a surrogate pair, more than 16 levels.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from formats.errors import NotesError

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_FINITE",
    "canonical_json",
    "parse_json",
    "preprocessing_digest",
]

MAX_DEPTH = 16
MAX_BYTES = 1 << 20
MAX_FINITE = sys.float_info.max

# made once, as the decoder below: making them takes as long as the notes of most containers
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> bytes:
    """Serialise so that equal values give equal bytes (sorted keys, no blanks, UTF-8).

    Parameters
    ----------
    value : Any
        Dictionaries with string keys, lists, tuples, strings, finite numbers, booleans, None.

    Returns
    -------
    bytes
        UTF-8 JSON without a final newline.

    Raises
    ------
    NotesError
        Something JSON does not have, such as NaN, or text that UTF-8 does not have.
    """
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotesError(
            "", f"cannot be written as JSON: {exc}. Give plain finite values."
        ) from exc


def parse_json(data: bytes) -> Any:
    """Read JSON and refuse what two readers could understand differently.

    Parameters
    ----------
    data : bytes
        UTF-8, at most 1 MiB.

    Returns
    -------
    Any
        The value.

    Raises
    ------
    NotesError
        Not UTF-8, not JSON (RFC 8259), a duplicate key, NaN, a number beyond binary64, a lone
        surrogate or more than 16 levels.
    """
    if len(data) > MAX_BYTES:
        raise NotesError("", f"{len(data)} bytes, at most {MAX_BYTES} are allowed.")
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise NotesError("", f"nested deeper than {MAX_DEPTH} levels.") from None
    except NotesError:
        raise
    except ValueError as exc:  # UnicodeDecodeError and JSONDecodeError are among them
        raise NotesError("", f"not valid JSON: {exc}.") from exc
    _check_depth_and_text(value)
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotesError(key, "the key stands twice in one object.")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise NotesError("", f"{name} is not a JSON number.")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise NotesError("", f"the number {text[:40]} is too large.")
    return number


def _bounded(text: str) -> int:
    # as _finite: a reader that takes every number for binary64 would find infinity
    number = int(text)
    if abs(number) > MAX_FINITE:
        raise NotesError("", f"the number {text[:40]}... is too large.")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates,
    parse_constant=_refuse_constant,
    parse_float=_finite,
    parse_int=_bounded,
)


def _check_depth_and_text(value: Any) -> None:
    # level by level, and of a level only what holds more: 1 MiB of "[]," is 350,000 lists
    level: list[Any] = [[value]]
    depth = 0
    while level:
        if depth > MAX_DEPTH:
            raise NotesError("", f"nested deeper than {MAX_DEPTH} levels.")
        inner: list[Any] = []
        for outer in level:
            children: Any = outer
            if isinstance(outer, dict):
                for key in outer:
                    _require_unicode(key)
                children = outer.values()
            for child in children:
                if isinstance(child, str):
                    _require_unicode(child)
                elif isinstance(child, dict | list):
                    inner.append(child)
        level = inner
        depth += 1


def _require_unicode(text: str) -> None:
    # one C call a string; only a lone surrogate ("\ud800" in JSON) cannot be encoded
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise NotesError("", "a text holds half a surrogate pair, which is not Unicode.") from None


def preprocessing_digest(preprocessing: Mapping[str, Any]) -> str:
    """Return the digest that names a preprocessing: SHA-256 of its canonical JSON.

    Parameters
    ----------
    preprocessing : Mapping[str, Any]
        As stored under ``preprocessing``.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return hashlib.sha256(canonical_json(dict(preprocessing))).hexdigest()
