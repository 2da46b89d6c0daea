"""What the notes of a container may say: an allow-list, with tripwires for identities behind it.

The notes are one JSON object of at most 1 MiB. Writing is strict: a key that is not listed here,
or a value that looks like a date, a number that names someone, an address or a path is refused
with the key named. Reading is strict about JSON (no duplicate keys, no NaN, no depth beyond 16)
and about what Hilum itself uses, but keeps keys of a later minor version.

``notes.schema.json`` states the writer's allow-list for other programs; `notes_schema` makes it of
the same rules that check here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats._json import MAX_FINITE
from formats.errors import NotesError

if TYPE_CHECKING:
    from formats._identity import Kind

__all__ = ["notes_schema", "validate_notes"]

FORMAT = "hilum-notes"
VERSION = 1
MAX_TEXT = 500
MAX_NAME = 100
MAX_PARENTS = 64
# larger numbers are no sizes, percentiles or constants, but could be somebody's number
MAX_SETTING = 1_000_000

# Patterns that stand in the schema too are written so that ECMA-262 and Python read them alike.
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+\-]{0,63}")
# three numbers and suffixes of PEP 440, such as rc1, .dev0, +g1a2b3c4: no machine's address, no
# number of somebody, no 12Mar2019 or 12.03.1956
_WRITTEN_VERSION = re.compile(
    r"(?:0|[1-9][0-9]{0,3})(?:\.(?:0|[1-9][0-9]{0,2})){0,2}"
    r"(?:[.\-]?(?:a|b|c|rc|alpha|beta|pre|post|dev)[0-9]{0,4}){0,3}"
    r"(?:\+(?:cpu|cu[0-9]{2,3}|g(?![0-9a-f]*[0-9]{5})[0-9a-f]{4,10}))?"
)
_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_WRITTEN_KEY = 40
_DIGIT_RUN = re.compile(r"[0-9]{5,}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{32}")
_URL = re.compile(r"https?://[^\s/@?#]+\.[^\s@?#]+")

# ---- The schema --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    """How one value is checked (key, value, writing or not), and the JSON Schema that says so."""

    check: Callable[[str, Any, bool], None]
    schema: Mapping[str, Any]

    def __call__(self, key: str, value: Any, strict: bool) -> None:
        self.check(key, value, strict)


def _whole(pattern: re.Pattern[str]) -> str:
    return f"^(?:{pattern.pattern})$"


def _find_identity(text: str, kind: Kind) -> str | None:
    # only writing needs the tripwires, whose patterns take 20 ms to compile: a third of all that
    # opening a container imports
    from formats._identity import find_identity

    return find_identity(text, kind=kind)


def _text(max_length: int, kind: Kind = "text") -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        if not isinstance(value, str) or not value.strip():
            raise NotesError(key, f"found {_show(value)}, expected a text that is not empty.")
        if len(value) > max_length:
            raise NotesError(
                key, f"{len(value)} characters, at most {max_length} are allowed. Shorten it."
            )
        found = _find_identity(value, kind) if strict else None
        if found:
            raise NotesError(
                key,
                f"{_show(value)} holds {found}. Notes travel with the features: leave out what "
                "could lead to a person (write years, not dates).",
            )

    return _Rule(check, {"type": "string", "maxLength": max_length, "pattern": r"\S"})


def _check_identifier(key: str, value: Any, strict: bool) -> None:
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise NotesError(
            key, f"found {_show(value)}, expected a short name of letters, digits and . _ + -"
        )
    _text(64)(key, value, strict)


_identifier = _Rule(_check_identifier, {"type": "string", "pattern": _whole(_IDENTIFIER)})


def _check_version(key: str, value: Any, strict: bool) -> None:
    # a pattern of its own: "2026.4.1" is a version here, though it reads like a date
    if not strict:
        _text(MAX_NAME)(key, value, strict)
    elif not isinstance(value, str) or not _WRITTEN_VERSION.fullmatch(value):
        raise NotesError(
            key,
            f"found {_show(value)}, expected a version such as 1.2.3 or 1.2.3rc1 (short "
            "numbers without leading zeros).",
        )


_version = _Rule(_check_version, {"type": "string", "pattern": _whole(_WRITTEN_VERSION)})


def _key(key: str, name: str, strict: bool) -> None:
    """Refuse a key that the writer is free to choose, but that holds more than a name."""
    if strict and (len(name) > MAX_WRITTEN_KEY or _DIGIT_RUN.search(name)):
        raise NotesError(
            key,
            f"found {_show(name)}, expected a name of at most {MAX_WRITTEN_KEY} characters and "
            "without five digits in a row.",
        )


def _key_schema(pattern: re.Pattern[str]) -> dict[str, Any]:
    """Say what `_key` demands of a name, beside its pattern."""
    return {
        "maxLength": MAX_WRITTEN_KEY,
        "pattern": _whole(pattern),
        "not": {"pattern": _DIGIT_RUN.pattern},
    }


def _check_url(key: str, value: Any, strict: bool) -> None:
    if not strict:
        _text(MAX_TEXT)(key, value, strict)
        return
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise NotesError(
            key,
            f"found {_show(value)}, expected a public web address starting with https:// and "
            "without ?, # or @.",
        )
    if len(value) > MAX_TEXT:
        raise NotesError(key, f"{len(value)} characters, at most {MAX_TEXT} are allowed.")
    found = _find_identity(value, "url")
    if found:
        raise NotesError(key, f"{_show(value)} holds {found}. Leave it out.")


_url = _Rule(_check_url, {"type": "string", "maxLength": MAX_TEXT, "pattern": _whole(_URL)})


def _hexadecimal(what: str, pattern: re.Pattern[str]) -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        del strict
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise NotesError(
                key, f"found {_show(value)}, expected {what} lower-case hexadecimal digits."
            )

    return _Rule(check, {"type": "string", "pattern": _whole(pattern)})


_digest = _hexadecimal("a SHA-256 as 64", _HEX64)


def _integer(low: int, high: int) -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        del strict
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise NotesError(
                key, f"found {_show(value)}, expected a whole number from {low} to {high}."
            )

    return _Rule(check, {"type": "integer", "minimum": low, "maximum": high})


def _number(low: float, high: float) -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        del strict
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise NotesError(key, f"found {_show(value)}, expected a number from {low} to {high}.")

    return _Rule(check, {"type": "number", "minimum": low, "maximum": high})


def _check_boolean(key: str, value: Any, strict: bool) -> None:
    del strict
    if not isinstance(value, bool):
        raise NotesError(key, f"found {_show(value)}, expected true or false.")


_boolean = _Rule(_check_boolean, {"type": "boolean"})


def _constant(expected: Any) -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        del strict
        if type(value) is not type(expected) or value != expected:  # True and 1.0 equal 1
            raise NotesError(
                key,
                f"found {_show(value)}, expected {_show(expected)}. A later Hilum may have "
                "written it: update Hilum.",
            )

    return _Rule(check, {"const": expected})


def _choice(*allowed: str) -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        del strict
        if not isinstance(value, str) or value not in allowed:
            raise NotesError(key, f"found {_show(value)}, expected one of {', '.join(allowed)}.")

    return _Rule(check, {"enum": list(allowed)})


def _list_of(check_item: _Rule, *, low: int, high: int, unique: bool) -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        if not _is_list(value) or not low <= len(value) <= high:
            found = f"{len(value)} entries" if _is_list(value) else _show(value)
            raise NotesError(key, f"found {found}, expected a list of {low} to {high} entries.")
        for i, item in enumerate(value):
            check_item(f"{key}[{i}]", item, strict)
        if unique and len(set(value)) != len(value):
            twice = Counter(value).most_common(1)[0][0]
            raise NotesError(key, f"{_show(twice)} stands twice in it.")

    schema = {"type": "array", "items": check_item.schema, "minItems": low, "maxItems": high}
    return _Rule(check, {**schema, "uniqueItems": True} if unique else schema)


def _object(fields: Mapping[str, tuple[_Rule, bool]]) -> _Rule:
    def check(key: str, value: Any, strict: bool) -> None:
        if not isinstance(value, Mapping):
            raise NotesError(key, f"found {_show(value)}, expected an object.")
        for name in value:
            if name not in fields and strict:
                raise NotesError(
                    _join(key, str(name)),
                    f"this key is not on the allow-list. Allowed here: {', '.join(fields)}.",
                )
        for name, (check_field, required) in fields.items():
            if name in value:
                check_field(_join(key, name), value[name], strict)
            elif required:
                raise NotesError(_join(key, name), "is missing.")

    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: rule.schema for name, (rule, _) in fields.items()},
        "additionalProperties": False,
    }
    required = [name for name, (_, required) in fields.items() if required]
    return _Rule(check, {**schema, "required": required} if required else schema)


def _check_preprocessing(key: str, value: Any, strict: bool) -> None:
    if not isinstance(value, Mapping) or not value or len(value) > 64:
        raise NotesError(key, f"found {_show(value)}, expected an object of 1 to 64 settings.")
    for name, item in value.items():
        here = _join(key, str(name))
        if not isinstance(name, str) or not _KEY.fullmatch(name):
            raise NotesError(here, "expected a setting's name of lower-case letters, digits and _")
        _text(64)(here, name, strict)
        _key(here, name, strict)
        for entry in item if _is_list(item) and len(item) <= 64 else (item,):
            if isinstance(entry, str):
                _identifier(here, entry, strict)
            elif entry is not None and not isinstance(entry, bool | int | float):
                raise NotesError(here, f"found {_show(entry)}, expected a number or short name.")
            elif entry is None:
                continue
            elif not abs(entry) <= (MAX_SETTING if strict else MAX_FINITE):
                raise NotesError(
                    here, f"found {_show(entry)}, expected a number up to {MAX_SETTING}."
                )


_NUMBER_SCHEMA = {"type": "number", "minimum": -MAX_SETTING, "maximum": MAX_SETTING}
_SETTING_SCHEMA = [{"type": ["boolean", "null"]}, _NUMBER_SCHEMA, _identifier.schema]
_preprocessing = _Rule(
    _check_preprocessing,
    {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 64,
        "propertyNames": _key_schema(_KEY),
        "additionalProperties": {
            "anyOf": [
                *_SETTING_SCHEMA,
                {"type": "array", "maxItems": 64, "items": {"anyOf": _SETTING_SCHEMA}},
            ]
        },
    },
)
_two_ages = _list_of(_integer(0, 90), low=2, high=2, unique=False)


def _check_age_range(key: str, value: Any, strict: bool) -> None:
    _two_ages(key, value, strict)
    if value[0] > value[1]:
        raise NotesError(key, f"found {list(value)}, expected [youngest, oldest].")


def _check_probes(key: str, value: Any, strict: bool) -> None:
    if not isinstance(value, Mapping) or not 1 <= len(value) <= 16:
        raise NotesError(key, f"found {_show(value)}, expected an object of 1 to 16 vectors.")
    for name, vector in value.items():
        _identifier(key, name, strict)
        _key(key, name, strict)
        here = _join(key, name)
        if not _is_list(vector) or not 1 <= len(vector) <= 4096:
            raise NotesError(here, f"found {_show(vector)}, expected 1 to 4096 numbers.")
        for i, number in enumerate(vector):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise NotesError(f"{here}[{i}]", f"found {_show(number)}, expected a number.")
            if strict and not abs(number) <= MAX_SETTING:
                raise NotesError(
                    f"{here}[{i}]",
                    f"found {_show(number)}, expected a number up to {MAX_SETTING}.",
                )


_probes = _Rule(
    _check_probes,
    {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 16,
        "propertyNames": _key_schema(_IDENTIFIER),
        "additionalProperties": {
            "type": "array",
            "minItems": 1,
            "maxItems": 4096,
            "items": _NUMBER_SCHEMA,
        },
    },
)
_BLOCK = _object(
    {
        "tap": (_identifier, True),
        "pooling": (_identifier, True),
        "offset": (_integer(0, 65535), True),
        "width": (_integer(1, 65536), True),
    }
)
_SCHEMA: dict[str, tuple[_Rule, bool]] = {
    "format": (_constant(FORMAT), True),
    "version": (_constant(VERSION), True),
    "classes": (_list_of(_text(MAX_NAME), low=0, high=65535, unique=True), True),
    "multilabel": (_boolean, True),
    "sources": (_list_of(_text(MAX_NAME), low=1, high=256, unique=True), False),
    "backbone": (_object({"name": (_identifier, True), "sha256": (_digest, True)}), True),
    "preprocessing": (_preprocessing, True),
    "blocks": (_list_of(_BLOCK, low=1, high=4096, unique=False), True),
    "views": (
        _object(
            {
                "number": (_integer(0, 255), True),
                "mirror": (_boolean, True),
                "rotation_degrees": (_number(0, 180), True),
                "shift_fraction": (_number(0, 1), True),
                "scale_fraction": (_number(0, 1), True),
                "contrast_fraction": (_number(0, 1), True),
                "group": (_choice("patient", "image"), True),
            }
        ),
        False,
    ),
    "head": (
        _object({"kind": (_choice("linear", "mlp"), True), "hidden": (_integer(1, 65536), False)}),
        False,
    ),
    "software": (_object({"hilum": (_version, False), "openvino": (_version, False)}), False),
    "n_refused": (_integer(0, 2**31 - 1), False),
    "derived_from": (
        _list_of(
            _hexadecimal("a container's uuid as 32", _UUID), low=1, high=MAX_PARENTS, unique=True
        ),
        False,
    ),
    "probes": (_probes, False),
    "about": (
        _object(
            {
                "title": (_text(MAX_TEXT), False),
                "attribution": (_text(MAX_TEXT, "citation"), False),
                "licence": (_text(MAX_TEXT, "linked"), False),
                "terms": (_text(MAX_TEXT, "linked"), False),
                "population": (_text(MAX_TEXT), False),
                "age_range_years": (_Rule(_check_age_range, _two_ages.schema), False),
                "url": (_url, False),
            }
        ),
        False,
    ),
}
_CHECK_NOTES = _object(_SCHEMA)


_DESCRIPTIONS = {
    "classes": "Class names in the order of the label column's values; none where no labels are.",
    "multilabel": "Agrees with the label column: true where a row may have several classes.",
    "sources": "Names of acquisition sources. Needed with a source column.",
    "backbone": "Name and SHA-256 of what made the features; the header holds the same SHA-256.",
    "preprocessing": "Settings; the SHA-256 of their canonical JSON is in the header.",
    "blocks": "Parts of a feature vector in their order, without gaps, together exactly dim.",
    "views": (
        "Augmented views beside each image: how many, the largest amounts both ways, and whether "
        "groups are patients or, where no patients are known, images."
    ),
    "head": "A head that suits these features.",
    "software": "Versions that made the file.",
    "n_refused": "Images that were not taken in.",
    "derived_from": "uuids of the containers this one was made from, newest first.",
    "probes": "Known answers, which reveal a CPU that computes other features.",
    "about": "Facts on the whole data set, never on a person.",
}


def notes_schema() -> dict[str, Any]:
    """State the writer's allow-list as a JSON Schema, draft 2020-12.

    ``notes.schema.json`` is this as a file. Every notes `validate_notes` lets a writer write fits
    it; `validate_notes` refuses more: what looks like an identity, blocks with gaps, an age range
    turned round, whole numbers written as ``1.0``.

    Returns
    -------
    dict
        Made of what JSON has.
    """
    properties = {
        name: {"description": _DESCRIPTIONS[name], **rule.schema}
        if name in _DESCRIPTIONS
        else rule.schema
        for name, (rule, _) in _SCHEMA.items()
    }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Notes of a Hilum container, version 1, as they may be written",
        "description": (
            "The writer's allow-list. A reader keeps keys of a later minor version. Not stated "
            "here, and checked by the writer: tripwires for what looks like an identity, blocks "
            "that follow each other without gaps and together have dim features, digests equal to "
            "the header's, age ranges that ascend, whole numbers written without a fraction."
        ),
        **_CHECK_NOTES.schema,
        "properties": properties,
    }
    copied: dict[str, Any] = json.loads(json.dumps(schema))
    return copied


def validate_notes(
    notes: Mapping[str, Any], *, dim: int | None = None, reading: bool = False
) -> None:
    """Check notes against the allow-list, the types and the tripwires.

    Parameters
    ----------
    notes : Mapping[str, Any]
        As described in ``formats/container.md``.
    dim : int, optional
        Length of a feature vector; the blocks must cover it without gap or overlap.
    reading : bool
        Keep unknown keys, which a later minor version may add, and leave out what is the writer's
        duty: tripwires, and the rules of web addresses, versions, keys and large numbers.

    Raises
    ------
    NotesError
        Names the key, what was found and what is allowed.
    """
    _CHECK_NOTES("", notes, not reading)
    end = 0
    for i, block in enumerate(notes["blocks"]):
        if block["offset"] != end:
            raise NotesError(
                f"blocks[{i}].offset",
                f"found {block['offset']}, expected {end}: blocks follow each other without gaps.",
            )
        end += block["width"]
    if dim is not None and end != dim:
        raise NotesError("blocks", f"they cover {end} features, expected {dim}.")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
