"""Make the golden containers: valid ones of every kind, and one corrupt file for each refusal.

``python formats/golden/make_golden.py [FOLDER]`` writes ``valid/``, ``corrupt/`` and
``manifest.json``; without FOLDER beside this script. The same bytes come out on every machine: no
random numbers, no clock. Files of a released version are frozen: add new ones, never change one.
The features are arithmetic, made from no image.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats._library import HEADER_DTYPE, crc32c, lib
from formats.container import CHUNK_ROWS, open_container
from formats.notes import canonical_json, preprocessing_digest
from formats.writer import write_container

PREPROCESSING = {"version": 1, "height": 224, "width": 224, "fit": "stretch", "filter": "area"}
BACKBONE_DIGEST = hashlib.sha256(b"golden backbone").hexdigest()


def make_features(n_rows: int, dim: int) -> NDArray[np.float32]:
    """Return numbers in [-8, 8) by integer arithmetic (Knuth's multiplicative hash)."""
    index = np.arange(n_rows * dim, dtype=np.uint64).reshape(n_rows, dim)
    hashed = (index * np.uint64(2654435761)) % np.uint64(1 << 16)
    return ((hashed.astype(np.float32) - 32768) / 4096).astype(np.float32)


def make_notes(dim: int, classes: list[str], *, multilabel: bool, **more: Any) -> dict[str, Any]:
    """Return notes of two blocks that cover ``dim`` features."""
    half = dim // 2
    return {
        "classes": classes,
        "multilabel": multilabel,
        "backbone": {"name": "golden", "sha256": BACKBONE_DIGEST},
        "preprocessing": PREPROCESSING,
        "blocks": [
            {"tap": "block4", "pooling": "mean", "offset": 0, "width": half},
            {"tap": "final", "pooling": "max", "offset": half, "width": dim - half},
        ],
        **more,
    }


def make_columns(n_rows: int) -> dict[str, NDArray[Any]]:
    """Return every column of a single-label container; no group lies in two splits."""
    row = np.arange(n_rows)
    group = row // 2
    return {
        "label": group % 3,
        "split": group % 4,
        "group": group,
        "sample_key": (row[:, None] * 7 + np.arange(16)) % 256,
        "source": group % 2,
        "view": row % 2,
        "row_flags": (row == 5).astype(np.uint8),
        "sex": group % 4,
        "age": np.where(row % 5 == 4, 255, (row * 9) % 91),
        "projection": group % 6,
    }


def write_valid(folder: Path) -> None:
    """Write one container for each dtype and mix of columns."""
    folder.mkdir(parents=True, exist_ok=True)
    three = ["normal", "bacterial", "viral"]
    findings = ["effusion", "nodule"]
    full_notes: dict[str, Any] = {
        "sources": ["unknown", "site-a"],
        "head": {"kind": "linear"},
        "software": {"hilum": "0.1.0", "openvino": "2026.4.1"},
        "n_refused": 2,
        "about": {
            "title": "Golden file with every column",
            "attribution": "Hilum authors",
            "licence": "Apache-2.0",
            "terms": "For tests only",
            "population": "None: the numbers are arithmetic",
            "age_range_years": [0, 90],
            "url": "https://example.org/golden",
        },
    }
    multi = (np.arange(24)[:, None] * 5 + np.arange(2)) % 4 - 2
    some = {k: v for k, v in make_columns(40).items() if k in ("label", "split", "group")}
    crossing = {"label": multi, "split": np.arange(24) % 3 + 1, "group": np.arange(24) // 2}
    cases: list[tuple[str, str, int, int, list[str], dict[str, Any], dict[str, Any]]] = [
        ("f32_no_columns", "f32", 5, 7, [], {}, {}),
        ("f32_multi_label", "f32", 24, 6, findings, {"label": multi}, {}),
        ("f16_single_label", "f16", 40, 8, three, {"label": np.arange(40) % 3}, {}),
        ("f16_groups", "f16", 40, 9, three, some, {}),
        ("f16_multi_label_crossing_groups", "f16", 24, 6, findings, crossing, {}),
        ("f16_two_chunks", "f16", 1030, 2, [], {}, {}),
        ("i8_single_label", "i8", 40, 12, three, {"label": np.arange(40) % 3}, {}),
        ("i8_every_column", "i8", 40, 12, three, make_columns(40), full_notes),
        ("i8_multi_label", "i8", 24, 6, findings, {"label": multi}, {}),
        ("i8_two_chunks", "i8", 1024 + 1, 2, [], {}, {}),
    ]
    for name, dtype, n_rows, dim, classes, columns, more in cases:
        write_container(
            folder / f"{name}.hilum",
            make_features(n_rows, dim),
            make_notes(
                dim, classes, multilabel=getattr(columns.get("label"), "ndim", 1) == 2, **more
            ),
            dtype=dtype,
            columns=columns,
            group_order="given",
            _uuid=hashlib.sha256(name.encode()).digest()[:16],
        )


class Surgeon:
    """A container's bytes, to be changed and made consistent again."""

    def __init__(self, source: Path) -> None:
        self.data = bytearray(source.read_bytes())
        self.header: Any = np.frombuffer(self.data[: lib.HILUM_HEADER_BYTES], HEADER_DTYPE).copy()

    def set(self, field: str, value: Any, member: str | None = None) -> None:
        """Set a header field, or the offset or length of a section."""
        target = self.header[field] if member is None else self.header[field][member]
        target[0] = value

    def set_column(self, index: int, member: str, value: Any) -> None:
        """Set a member of a column descriptor."""
        self.header["columns"][member][0, index] = value

    def section(self, field: str) -> slice:
        """Return where a section lies."""
        offset, length = (int(x) for x in self.header[field][0])
        return slice(offset, offset + length)

    def column(self, index: int) -> slice:
        """Return where a column lies."""
        descriptor = self.header["columns"][0, index]
        start = int(descriptor["offset"])
        return slice(start, start + int(descriptor["length"]))

    def index(self, name: str) -> int:
        """Return the index of a column."""
        return [c["name"].decode() for c in self.header["columns"][0]].index(name)

    def replace_notes(self, notes: bytes) -> None:
        """Put other notes at the end."""
        start = self.section("notes").start
        self.data[start:] = notes
        self.set("notes", len(notes), "length")
        self.set("file_size", len(self.data))

    def fix_header(self) -> None:
        """Renew the header's checksum, and put the header in its place."""
        raw = self.header.tobytes()
        self.set("header_crc32c", crc32c(raw[:-4]))
        self.data[: lib.HILUM_HEADER_BYTES] = self.header.tobytes()

    def fix(self) -> None:
        """Renew every checksum, so that only the changed value itself is wrong."""
        for i in range(int(self.header["n_columns"][0])):
            self.set_column(i, "crc32c", crc32c(bytes(self.data[self.column(i)])))
        features = bytes(self.data[self.section("features")])
        chunk_bytes = CHUNK_ROWS * len(features) // int(self.header["n_rows"][0])
        table = [
            crc32c(features[start : start + chunk_bytes])
            for start in range(0, len(features), chunk_bytes)
        ]
        if self.header["dtype"][0] == lib.HILUM_DTYPE_I8:
            table.append(crc32c(bytes(self.data[self.section("scales")])))
        raw = np.array(table, "<u4").tobytes()
        self.data[self.section("table")] = raw
        self.set("table_crc32c", crc32c(raw))
        self.set("notes_crc32c", crc32c(bytes(self.data[self.section("notes")])))
        body = hashlib.sha256(self.data[lib.HILUM_HEADER_BYTES :]).digest()
        self.set("body_sha256", np.frombuffer(body, np.uint8))
        self.fix_header()


Corruption = tuple[str, str | None, str, bytes]


def corruptions(valid: Path) -> Iterator[Corruption]:
    """Yield name, status (None where Python refuses), who finds it, and bytes."""
    groups = valid / "f16_groups.hilum"
    yield from _not_containers(groups)
    yield from _headers(groups)
    yield from _columns(valid)
    yield from _bodies(valid)
    yield from _notes(groups)


def _surgery(source: Path, operate: Callable[[Surgeon], None], *, whole: bool = False) -> bytes:
    surgeon = Surgeon(source)
    operate(surgeon)
    if whole:
        surgeon.fix()
    else:
        surgeon.fix_header()
    return bytes(surgeon.data)


def _flip(source: Path, where: Callable[[Surgeon], int]) -> bytes:
    surgeon = Surgeon(source)
    surgeon.data[where(surgeon)] ^= 1
    return bytes(surgeon.data)


def _not_containers(groups: Path) -> Iterator[Corruption]:
    whole = groups.read_bytes()
    alien = "HILUM_ERR_NOT_A_CONTAINER"
    yield "empty", alien, "open", b""
    yield "text", alien, "open", b"patient,label\n1,normal\n"
    yield "png", alien, "open", b"\x89PNG\r\n\x1a\n" + bytes(5000)
    yield "zeros", alien, "open", bytes(8192)
    yield "newlines_translated", alien, "open", whole.replace(b"\r\n", b"\n")
    yield "part", "HILUM_ERR_UNSEALED", "open", b"\x89HILPART" + whole[8:]
    yield "truncated_magic", "HILUM_ERR_TRUNCATED", "open", whole[:8]
    yield "truncated_header", "HILUM_ERR_TRUNCATED", "open", whole[:4095]
    yield "truncated_body", "HILUM_ERR_TRUNCATED", "open", whole[:4096]
    yield "truncated_last_byte", "HILUM_ERR_TRUNCATED", "open", whole[:-1]
    yield "trailing_byte", "HILUM_ERR_TRAILING", "open", whole + b"\0"
    yield "header_bit", "HILUM_ERR_HEADER_CRC", "open", _flip(groups, lambda _: 24)


def _headers(groups: Path) -> Iterator[Corruption]:
    fields: tuple[tuple[str, str, str, Any, str | None], ...] = (
        ("state_open", "UNSEALED", "state", 0, None),
        ("major_2", "VERSION", "major", 2, None),
        ("incompatible_flag", "INCOMPATIBLE", "incompatible", 1 << 40, None),
        ("header_size", "HEADER", "header_size", 8192, None),
        ("n_rows_0", "HEADER", "n_rows", 0, None),
        ("n_rows_too_many", "HEADER", "n_rows", 1 << 31, None),
        ("dim_0", "HEADER", "dim", 0, None),
        ("dim_too_large", "HEADER", "dim", 65537, None),
        ("dtype_unknown", "HEADER", "dtype", 9, None),
        ("n_columns_33", "HEADER", "n_columns", 33, None),
        ("chunk_log2_11", "HEADER", "chunk_log2", 11, None),
        ("notes_too_short", "HEADER", "notes", 1, "length"),
        ("notes_too_long", "HEADER", "notes", (1 << 20) + 1, "length"),
        ("n_rows_one_more", "LAYOUT", "n_rows", 41, None),
        ("n_rows_most", "LAYOUT", "n_rows", (1 << 31) - 1, None),
        ("dim_other", "LAYOUT", "dim", 10, None),
        ("dtype_other", "LAYOUT", "dtype", lib.HILUM_DTYPE_F32, None),
        ("features_at_0", "LAYOUT", "features", 0, "offset"),
        ("features_length_wraps", "LAYOUT", "features", (1 << 64) - 64, "length"),
        ("scales_without_i8", "LAYOUT", "scales", 4096, "offset"),
        ("table_overlaps", "LAYOUT", "table", 4096, "offset"),
        ("notes_overlap", "LAYOUT", "notes", 4096, "offset"),
        ("file_size_less", "LAYOUT", "file_size", 4097, None),
    )
    for name, status, field, value, member in fields:

        def operate(s: Surgeon, field: str = field, value: Any = value, m: Any = member) -> None:
            s.set(field, value, m)

        yield name, f"HILUM_ERR_{status}", "open", _surgery(groups, operate)

    def reserved(s: Surgeon) -> None:
        s.header["zero0"][0, 271] = 1

    def descriptor(s: Surgeon) -> None:
        s.set_column(31, "reserved", 1)

    yield "padding_reserved", "HILUM_ERR_PADDING", "open", _surgery(groups, reserved)
    yield "padding_descriptor", "HILUM_ERR_PADDING", "open", _surgery(groups, descriptor)


def _columns(valid: Path) -> Iterator[Corruption]:
    groups = valid / "f16_groups.hilum"
    members: tuple[tuple[str, str, str, str, Any], ...] = (
        ("column_name_upper", "COLUMN", "label", "name", b"Label"),
        ("column_name_empty", "COLUMN", "label", "name", b""),
        ("column_name_full", "COLUMN", "label", "name", b"l" * 24),
        ("column_name_twice", "COLUMN", "split", "name", b"label"),
        ("column_name_borrowed", "COLUMN", "split", "role", 0),
        ("column_type_0", "COLUMN", "label", "type", 0),
        ("column_type_other", "COLUMN", "group", "type", lib.HILUM_TYPE_U16),
        ("column_flag_unknown", "COLUMN", "label", "flags", 2),
        ("column_width_0", "COLUMN", "label", "width", 0),
        ("column_width_2", "COLUMN", "split", "width", 2),
        ("column_reserved", "COLUMN", "label", "reserved", 1),
        ("column_split_of_5", "COLUMN", "split", "n_values", 5),
        ("column_more_groups_than_rows", "COLUMN", "group", "n_values", 41),
        ("column_overlaps", "LAYOUT", "split", "offset", 4096),
        ("column_length", "LAYOUT", "split", "length", 41),
    )
    for name, status, column, member, value in members:

        def operate(
            s: Surgeon, column: str = column, member: str = member, value: Any = value
        ) -> None:
            s.set_column(s.index(column), member, value)

        yield name, f"HILUM_ERR_{status}", "open", _surgery(groups, operate)

    def must_understand(s: Surgeon) -> None:
        i = s.index("split")
        s.set_column(i, "name", b"later")
        s.set_column(i, "role", 99)
        s.set_column(i, "flags", lib.HILUM_COLUMN_MUST_UNDERSTAND)

    yield (
        "column_must_understand",
        "HILUM_ERR_INCOMPATIBLE",
        "open",
        _surgery(groups, must_understand),
    )

    def promise(s: Surgeon) -> None:
        s.set("compatible", lib.HILUM_COMPATIBLE_GROUP_CLEAN)

    crossing = valid / "f16_multi_label_crossing_groups.hilum"
    plain = valid / "f16_single_label.hilum"
    yield "group_in_two_splits", "HILUM_ERR_GROUP_SPLIT", "open", _surgery(crossing, promise)
    yield "group_clean_without_groups", "HILUM_ERR_HEADER", "open", _surgery(plain, promise)

    def put(column: str, number: int) -> Callable[[Surgeon], None]:
        def operate(s: Surgeon) -> None:
            s.data[s.column(s.index(column)).start] = number

        return operate

    for name, source, column, number in (
        ("value_label", groups, "label", 3),
        ("value_split", groups, "split", 4),
        ("value_group", groups, "group", 20),
        ("value_multi_label", crossing, "label", 2),
    ):
        operated = _surgery(source, put(column, number), whole=True)
        yield name, "HILUM_ERR_VALUE", "open", operated
    yield (
        "column_bit",
        "HILUM_ERR_COLUMN_CRC",
        "open",
        _flip(groups, lambda s: s.column(s.index("split")).start),
    )


def _bodies(valid: Path) -> Iterator[Corruption]:
    groups = valid / "f16_groups.hilum"
    i8 = valid / "i8_single_label.hilum"
    f32 = valid / "f32_no_columns.hilum"

    def gap(s: Surgeon) -> int:
        return int(s.section("features").stop)

    yield "padding_gap", "HILUM_ERR_PADDING", "open", _flip(groups, gap)
    yield (
        "padding_before_notes",
        "HILUM_ERR_PADDING",
        "open",
        _flip(groups, lambda s: int(s.section("notes").start) - 1),
    )
    for name, source, field in (
        ("table_bit", groups, "table"),
        ("notes_bit", groups, "notes"),
        ("scales_bit", i8, "scales"),
    ):

        def where(s: Surgeon, field: str = field) -> int:
            return int(s.section(field).start)

        yield name, f"HILUM_ERR_{field.upper()}_CRC", "open", _flip(source, where)

    def infinite(field: str) -> Callable[[Surgeon], None]:
        def operate(s: Surgeon) -> None:
            start = s.section(field).start
            s.data[start : start + 4] = np.float32(np.inf).tobytes()

        return operate

    name = "HILUM_ERR_NOT_FINITE"
    yield "scale_infinite", name, "open", _surgery(i8, infinite("scales"), whole=True)
    yield "feature_infinite", name, "verify", _surgery(f32, infinite("features"), whole=True)
    yield (
        "feature_bit",
        "HILUM_ERR_CHUNK_CRC",
        "verify",
        _flip(groups, lambda s: s.section("features").start),
    )
    yield (
        "feature_bit_in_second_chunk",
        "HILUM_ERR_CHUNK_CRC",
        "verify",
        _flip(valid / "f16_two_chunks.hilum", lambda s: s.section("features").stop - 1),
    )

    def other_body(s: Surgeon) -> None:
        s.header["body_sha256"][0, 0] ^= 1

    yield "body_digest", None, "verify", _surgery(groups, other_body)


def _notes(groups: Path) -> Iterator[Corruption]:
    with open_container(groups) as container:
        good = container.notes
    raw = canonical_json(good)
    other = {**good["backbone"], "sha256": "00" * 32}
    texts: dict[str, bytes] = {
        "notes_not_json": b"{]",
        "notes_not_utf8": raw.replace(b"golden", b"golde\xff"),
        "notes_not_an_object": b"[]",
        "notes_duplicate_key": raw[:-1] + b',"classes":[]}',
        "notes_nan": raw[:-1] + b',"x":NaN}',
        "notes_number_too_large": raw[:-1] + b',"x":1e999}',
        "notes_half_surrogate": raw[:-1] + b',"x":"\\ud800"}',
        "notes_too_deep": raw[:-1] + b',"x":' + b"[" * 17 + b"]" * 17 + b"}",
        "notes_much_too_deep": b"[" * 20_000,
        "notes_missing_key": canonical_json({k: v for k, v in good.items() if k != "classes"}),
        "notes_version_2": canonical_json({**good, "version": 2}),
        "notes_blocks_too_short": canonical_json({**good, "blocks": good["blocks"][:1]}),
        "notes_other_classes": canonical_json({**good, "classes": ["one", "two"]}),
        "notes_other_backbone": canonical_json({**good, "backbone": other}),
        "notes_other_preprocessing": canonical_json({**good, "preprocessing": {"version": 2}}),
        "notes_multi_label": canonical_json({**good, "multilabel": True}),
    }
    assert preprocessing_digest(good["preprocessing"]) == preprocessing_digest(PREPROCESSING)
    for name, text in texts.items():

        def operate(s: Surgeon, text: bytes = text) -> None:
            s.replace_notes(text)

        yield name, None, "open", _surgery(groups, operate, whole=True)


def make_golden(folder: Path) -> None:
    """Write all golden files and the manifest.

    Parameters
    ----------
    folder : Path
        Gets ``valid/``, ``corrupt/`` and ``manifest.json``.
    """
    valid = folder / "valid"
    corrupt = folder / "corrupt"
    write_valid(valid)
    corrupt.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"valid": {}, "corrupt": {}}
    for path in sorted(valid.glob("*.hilum")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["valid"][path.name] = {"sha256": digest}
    for name, status, found_by, data in corruptions(valid):
        path = corrupt / f"{name}.hilum"
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        manifest["corrupt"][path.name] = {"status": status, "found_by": found_by, "sha256": digest}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_bytes(text.encode())


if __name__ == "__main__":
    make_golden(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
