"""A second reader of `.hilum` files, written from `formats/container.md` alone: slow and simple."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAGIC, PART = b"\x89HILUM\r\n", b"\x89HILPART"
ELEMENTS = {1: "f", 2: "e", 3: "b"}  # of features, as `struct` names them
TYPES = {1: "B", 2: "H", 3: "I", 4: "b", 5: "B"}  # of columns
KNOWN = {  # role: name, type, width, least and most n_values
    1: ("label", 2, 1, 1, 65535),  # or multi-label
    2: ("split", 1, 1, 4, 4),
    3: ("group", 3, 1, 1, 2**31 - 1),  # and at most n_rows
    4: ("sample_key", 5, 16, 0, 0),
    5: ("source", 1, 1, 1, 256),
    6: ("view", 1, 1, 0, 0),
    7: ("row_flags", 1, 1, 0, 0),
    8: ("sex", 1, 1, 4, 4),
    9: ("age", 1, 1, 0, 0),
    10: ("projection", 1, 1, 6, 6),
}
NAMES = [rule[0] for rule in KNOWN.values()]
CRC_BYTES = list(range(256))
for _ in range(8):
    CRC_BYTES = [c >> 1 ^ (0x82F63B78 if c & 1 else 0) for c in CRC_BYTES]


class RefusedError(ValueError):
    """A file that is refused; `status` is the one in the document's table."""

    def __init__(self, status: str, why: object = "") -> None:
        super().__init__(f"{status}: {why}")
        self.status = status


def need(fine: object, status: str, why: object = "") -> None:
    if not fine:
        raise RefusedError(status, why)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_BYTES[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def read_container(path: str | Path) -> dict[str, Any]:
    """Read a whole file and refuse what the document refuses, in its order."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RefusedError("OPEN", error) from error
    need(len(data) < 5 or not PART.startswith(data[:8]), "UNSEALED")
    need(data and MAGIC.startswith(data[:8]), "NOT_A_CONTAINER")
    need(len(data) >= 4096, "TRUNCATED")
    head = struct.unpack_from("<8sHHIQQI4BQQ8QII32s32s32s16s", data)  # bytes 0 to 239
    _, major, minor, header_size, file_size, n_rows, dim, dtype, n_columns, chunk_log2 = head[:10]
    state, incompatible, compatible, *places = head[10:21]  # places: offset and length, four times
    table_crc, notes_crc, backbone, preprocessing, body, uuid = head[21:]
    need(major == 1, "VERSION")
    need(crc32c(data[:4092]) == int.from_bytes(data[4092:4096], "little"), "HEADER_CRC")
    need(header_size == 4096, "HEADER")
    need(state == 1, "UNSEALED")
    need(incompatible == 0, "INCOMPATIBLE")
    need(1 <= n_rows < 2**31 and 1 <= dim <= 65536 and dtype in ELEMENTS, "HEADER")
    need(n_columns <= 32 and chunk_log2 == 10, "HEADER")
    last = 512 + 64 * n_columns
    need(not any(data[240:512] + data[last:2560] + data[2560:4092]), "PADDING")
    columns = list(struct.iter_unpack("<24sHBBIQQIIQ", data[512:last]))
    names: list[str] = []
    for column in columns:
        names.append(check_column(column, n_rows, names))
    by_role = {role: i for i, (_, role, *_) in enumerate(columns) if role in KNOWN}
    need(not compatible & 2 or {2, 3} <= set(by_role), "HEADER", "GROUP_CLEAN")

    n_chunks, i8 = -(-n_rows // 1024), dtype == 3
    sections = [(*places[:2], n_rows * dim * struct.calcsize(ELEMENTS[dtype]))]
    sections += [(*places[2:4], dim * 4)] if i8 else []
    for _, _, kind, _, width, offset, length, *_ in columns:
        sections.append((offset, length, n_rows * width * struct.calcsize(TYPES[kind])))
    sections += [(*places[4:6], 4 * (n_chunks + i8))]
    end = check_layout(sections, 4096)
    need(i8 or places[2:4] == [0, 0], "LAYOUT")
    need(2 <= places[7] <= 1 << 20, "HEADER", "length of the notes")
    end = check_layout([(*places[6:], places[7])], end)
    need(end == file_size, "LAYOUT")
    need(len(data) >= file_size, "TRUNCATED")
    need(len(data) == file_size, "TRAILING")

    features, *parts = (data[at : at + size] for at, size, _ in sections)
    gaps = [data[at + size : -(-(at + size) // 64) * 64] for at, size, _ in sections]
    need(not any(gaps[0]), "PADDING", "after the features")
    table = parts.pop()
    need(crc32c(table) == table_crc, "TABLE_CRC")
    need(not any(gaps[-1]), "PADDING", "after the table")
    crcs, scales = struct.unpack(f"<{n_chunks + i8}I", table), ()
    if i8:
        need(crc32c(parts[0]) == crcs[-1], "SCALES_CRC")
        scales = struct.unpack(f"<{dim}f", parts.pop(0))
        need(not compatible & 1 or all(map(is_scale, scales)), "NOT_FINITE", "a scale")
        need(not any(gaps.pop(1)), "PADDING", "after the scales")
    values = {}
    for i, (_, role, kind, _, width, _, _, crc, n_values, _) in enumerate(columns):
        need(crc32c(parts[i]) == crc, "COLUMN_CRC", names[i])
        flat = struct.unpack(f"<{n_rows * width}{TYPES[kind]}", parts[i])
        need(n_values == 0 or max(flat) < n_values, "VALUE", names[i])
        need((role, kind) != (1, 4) or set(flat) <= {-2, -1, 0, 1}, "VALUE", names[i])
        need(not any(gaps[1 + i]), "PADDING", f"after {names[i]}")
        values[names[i]] = list(zip(*[iter(flat)] * width, strict=True))
    if compatible & 2:
        pairs = set(zip(values["group"], values["split"], strict=True))
        marked = [group for group, split in pairs if split != (0,)]
        need(len(set(marked)) == len(marked), "GROUP_SPLIT")
    need(crc32c(data[places[6] :]) == notes_crc, "NOTES_CRC")
    notes = read_notes(data[places[6] :])
    agree(notes, {role: columns[i] for role, i in by_role.items()}, dim, backbone, preprocessing)

    rows: list[tuple[float, ...]] = []
    size = 1024 * len(features) // n_rows
    for at, crc in zip(range(0, len(features), size), crcs, strict=False):
        chunk = features[at : at + size]
        need(crc32c(chunk) == crc, "CHUNK_CRC")
        rows += struct.iter_unpack(f"<{dim}{ELEMENTS[dtype]}", chunk)
        finite = all(math.isfinite(value) for row in rows[at // size * 1024 :] for value in row)
        need(finite or not compatible & 1, "NOT_FINITE", "a feature")
    need(hashlib.sha256(data[4096:]).digest() == body, "Corrupt", "body_sha256")
    if i8:
        rows = [tuple(map(operator.mul, row, scales)) for row in rows]
    facts = {"n_rows": n_rows, "dim": dim, "dtype": ("f32", "f16", "i8")[dtype - 1]}
    facts |= {"minor": minor, "compatible": compatible, "uuid": uuid.hex()}
    facts |= {"backbone_sha256": backbone.hex(), "preprocessing_sha256": preprocessing.hex()}
    return facts | {"features": rows, "columns": values, "notes": notes}


def check_column(column: tuple[Any, ...], n_rows: int, before: list[str]) -> str:
    padded, role, kind, flags, width, _, _, _, n_values, reserved = column
    name = padded.rstrip(b"\0").decode("latin-1")
    need(re.fullmatch("[a-z0-9_]{1,23}", name) and name not in before, "COLUMN", "name")
    need(kind in TYPES and flags < 2 and 1 <= width <= 65536 and reserved == 0, "COLUMN", name)
    need(n_values == 0 or kind < 4, "COLUMN", "n_values of i8 or bytes")
    need(name == KNOWN[role][0] if role in KNOWN else name not in NAMES, "COLUMN", name)
    need(role in KNOWN or flags == 0, "INCOMPATIBLE", name)
    if role in KNOWN and (role, kind) != (1, 4):
        _, its_kind, its_width, least, most = KNOWN[role]
        need((kind, width) == (its_kind, its_width) and least <= n_values <= most, "COLUMN", name)
        need(role != 3 or n_values <= n_rows, "COLUMN", "more groups than rows")
    return name


def check_layout(sections: list[tuple[int, int, int]], end: int) -> int:
    for offset, length, derived in sections:
        need((offset, length) == (-(-end // 64) * 64, derived), "LAYOUT")
        end = offset + length
    return end


def is_scale(scale: float) -> bool:
    try:
        return math.isfinite(struct.unpack("<f", struct.pack("<f", scale * 127))[0])
    except OverflowError:  # beyond binary32
        return False


# ---- Notes -------------------------------------------------------------------------------------

Rule = Callable[[Any], object]


def text(most: int) -> Rule:
    return lambda v: isinstance(v, str) and v.strip() and len(v) <= most


def match(pattern: str) -> Rule:
    return lambda v: isinstance(v, str) and re.fullmatch(pattern, v)


def whole(least: int, most: int) -> Rule:
    return lambda v: type(v) is int and least <= v <= most


def items(rule: Rule, least: int, most: int) -> Rule:
    return lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(rule, v))


def names_of(rule: Rule, least: int, most: int) -> Rule:
    return lambda v: items(rule, least, most)(v) and len(set(v)) == len(v)


def table_of(key: Rule, rule: Rule, most: int) -> Rule:
    return lambda v: (
        isinstance(v, dict)
        and 1 <= len(v) <= most
        and all(key(k) and rule(item) for k, item in v.items())
    )


def record(needed: dict[str, Rule], optional: dict[str, Rule]) -> Rule:
    return lambda v: (
        isinstance(v, dict)
        and set(needed) <= set(v)
        and all(rule(v[key]) for key, rule in {**needed, **optional}.items() if key in v)
    )


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def between(low: float, high: float) -> Rule:
    return lambda v: is_number(v) and low <= v <= high


def is_setting(value: Any) -> object:
    return value is None or isinstance(value, bool) or is_number(value) or is_name(value)


def is_setting_or_list(value: Any) -> object:
    return is_setting(value) or items(is_setting, 0, 64)(value)


def is_age_range(value: Any) -> object:
    return items(whole(0, 90), 2, 2)(value) and value[0] <= value[1]


is_name = match(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
BLOCK = {"tap": is_name, "pooling": is_name, "offset": whole(0, 65535), "width": whole(1, 65536)}
TEXTS = ("title", "attribution", "licence", "terms", "population", "url")
ABOUT = {key: text(500) for key in TEXTS}
VIEWS = {
    "number": whole(0, 255),
    "mirror": lambda v: isinstance(v, bool),
    "rotation_degrees": between(0, 180),
    "shift_fraction": between(0, 1),
    "scale_fraction": between(0, 1),
    "contrast_fraction": between(0, 1),
    "group": match("patient|image"),
}
NOTES = record(
    {
        "format": match("hilum-notes"),
        "version": whole(1, 1),
        "classes": names_of(text(100), 0, 65535),
        "multilabel": lambda v: isinstance(v, bool),
        "backbone": record({"name": is_name, "sha256": match("[0-9a-f]{64}")}, {}),
        "preprocessing": table_of(match("[a-z][a-z0-9_]{0,63}"), is_setting_or_list, 64),
        "blocks": items(record(BLOCK, {}), 1, 4096),
    },
    {
        "sources": names_of(text(100), 1, 256),
        "views": record(VIEWS, {}),
        "head": record({"kind": match("linear|mlp")}, {"hidden": whole(1, 65536)}),
        "software": record({}, {"hilum": text(100), "openvino": text(100)}),
        "n_refused": whole(0, 2**31 - 1),
        "derived_from": names_of(match("[0-9a-f]{32}"), 1, 64),
        "probes": table_of(is_name, items(is_number, 1, 4096), 16),
        "about": record({}, {**ABOUT, "age_range_years": is_age_range}),
    },
)


def read_notes(raw: bytes) -> dict[str, Any]:
    try:
        notes = json.loads(raw.decode(), object_pairs_hook=once, parse_constant=float)
        check_json(notes)
    except (ValueError, RecursionError) as error:
        raise RefusedError("Corrupt", error) from error
    need(NOTES(notes), "Corrupt", "a key of the notes")
    return notes


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(pairs)) == len(pairs), "Corrupt", "a key twice")
    return dict(pairs)


def check_json(value: Any, level: int = 1) -> None:
    if isinstance(value, dict | list):
        need(level <= 16, "Corrupt", "too deep")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            check_json(item, level + 1)
    elif isinstance(value, str):
        value.encode()  # fails with half a surrogate pair
    elif value is not None:
        need(abs(value) <= sys.float_info.max, "Corrupt", "a number beyond binary64")


def agree(
    notes: dict[str, Any], columns: dict[int, Any], dim: int, backbone: bytes, preprocessing: bytes
) -> None:
    """Compare what notes and header both say."""
    ends = [block["offset"] + block["width"] for block in notes["blocks"]]
    need([block["offset"] for block in notes["blocks"]] + [dim] == [0, *ends], "Corrupt", "blocks")
    need(notes["backbone"]["sha256"] == backbone.hex(), "Corrupt", "backbone")
    canonical = json.dumps(
        notes["preprocessing"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    digest = hashlib.sha256(canonical.encode()).digest()
    need(digest == preprocessing, "Corrupt", "preprocessing")
    if 1 in columns:
        _, _, kind, _, width, *_, n_values, _ = columns[1]
        need(notes["multilabel"] == (kind == 4), "Corrupt", "multilabel")
        need(len(notes["classes"]) == (width if kind == 4 else n_values), "Corrupt", "classes")
    if 5 in columns:
        need(len(notes.get("sources", [])) == columns[5][8], "Corrupt", "sources")
