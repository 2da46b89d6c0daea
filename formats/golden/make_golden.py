"""Make the golden containers: valid ones of every kind, and one corrupt file for each refusal.

``python formats/golden/make_golden.py [FOLDER]`` writes ``valid/``, ``corrupt/`` and
``manifest.json``; without FOLDER beside this script. The same bytes come out on every machine: no
random numbers, no clock. Files of a released version are frozen: add new ones, never change one.
The features are arithmetic, made from no image.

What Hilum's writer does not write, but version 1 allows, is put together here by `assemble`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats._first_bytes import MAGIC
from formats._json import canonical_json, preprocessing_digest
from formats._library import HEADER_DTYPE, crc32c, lib
from formats.container import CHUNK_ROWS, open_container
from formats.writer import write_container

PREPROCESSING = {"version": 1, "height": 224, "width": 224, "fit": "stretch", "filter": "area"}
# every kind of value a setting may have; the writer's canonical JSON of it is hashed
SETTINGS = {
    "version": 2,
    "mean": [0.485, 0.456, 0.406],
    "gamma": 1.0,
    "epsilon": 1e-05,
    "least": -0.0,
    "most": 1_000_000,
    "invert": False,
    "crop": None,
    "steps": ["area", True, None, -3],
    "masks": [],
}
BACKBONE_DIGEST = hashlib.sha256(b"golden backbone").hexdigest()
ASSEMBLED = frozenset(
    {
        "f16_extremes",
        "f16_not_finite",
        "f32_32_columns",
        "f32_extremes",
        "f32_not_finite",
        "i8_extremes",
        "i8_not_finite",
        "later_minor",
        "notes_written_elsewhere",
    }
)
"""Valid files that Hilum's writer would not write, by the name before ``.hilum``."""


VIEWS = {
    "number": 1,
    "mirror": False,
    "rotation_degrees": 5.0,
    "shift_fraction": 0.03,
    "scale_fraction": 0.05,
    "contrast_fraction": 0.1,
    "group": "image",
}


def make_features(n_rows: int, dim: int) -> NDArray[np.float32]:
    """Return numbers in [-8, 8) by integer arithmetic (Knuth's multiplicative hash)."""
    index = np.arange(n_rows * dim, dtype=np.uint64).reshape(n_rows, dim)
    hashed = (index * np.uint64(2654435761)) % np.uint64(1 << 16)
    return ((hashed.astype(np.float32) - 32768) / 4096).astype(np.float32)


def make_notes(dim: int, classes: list[str], *, multilabel: bool, **more: Any) -> dict[str, Any]:
    """Return notes of two blocks that cover ``dim`` features, or of one for a single feature."""
    half = dim // 2
    blocks = [
        {"tap": "block4", "pooling": "mean", "offset": 0, "width": half},
        {"tap": "final", "pooling": "max", "offset": half, "width": dim - half},
    ]
    return {
        "classes": classes,
        "multilabel": multilabel,
        "backbone": {"name": "golden", "sha256": BACKBONE_DIGEST},
        "preprocessing": PREPROCESSING,
        "blocks": [block for block in blocks if block["width"]],
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
    """Write one container for each dtype and mix of columns, and the edges of what is allowed."""
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
        *_more_mixes(),
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
            _uuid=_uuid(name),
        )
    assembled = dict((*_edges_of_numbers(), *_later_minor(), *_foreign_notes()))
    assert assembled.keys() == ASSEMBLED
    for name, data in assembled.items():
        (folder / f"{name}.hilum").write_bytes(data)


def _uuid(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def _more_mixes() -> Iterator[tuple[str, str, int, int, list[str], dict[str, Any], dict[str, Any]]]:
    """Yield name, dtype, rows, dim, classes, columns and notes of more files for the writer."""
    three = ["normal", "bacterial", "viral"]
    named = ["Pneumonie (bakteriell)", "肺炎", "плеврит"]

    def columns(n_rows: int, *names: str) -> dict[str, Any]:
        return {k: v for k, v in make_columns(n_rows).items() if not names or k in names}

    rich = {
        "sources": ["unbekannt", "Gerät β"],
        "preprocessing": SETTINGS,
        "head": {"kind": "mlp", "hidden": 16},
        "derived_from": [_uuid(f"parent {i}").hex() for i in range(3)],
        "probes": {"ramp": [0, 0.25, -1.5e-07], "constant": [1]},
        "about": {"title": "Every column as f16, and every note: ½ ≤ “x” < 😀"},
    }
    sources = {"sources": ["unknown", "site-a"]}
    groups = ("label", "split", "group")
    multi = (np.arange(24)[:, None] * 5 + np.arange(6)) % 4 - 2
    grouped = {**columns(24, "split", "group"), "label": multi}
    six = ["effusion", "nodule", "mass", "fibrosis", "edema", "hernia"]
    single = {"label": np.arange(1024)[:, None] % 4 - 2}
    yield "f16_every_column", "f16", 24, 2, named, columns(24), rich
    yield "f32_every_column", "f32", 24, 2, three, columns(24), sources
    yield "f16_one_row", "f16", 1, 3, three, columns(1), sources
    yield "f16_one_feature", "f16", 40, 1, three, columns(40, *groups), {}
    yield "f32_two_chunks_groups", "f32", 1026, 1, three, columns(1026, *groups), {}
    yield "f16_two_full_chunks", "f16", 2048, 1, [], {}, {}
    yield "f16_three_chunks", "f16", 2049, 1, [], {}, {}
    yield "i8_one_full_chunk_of_one_finding", "i8", 1024, 1, ["effusion"], single, {}
    yield "i8_multi_label_groups", "i8", 24, 4, six, grouped, {}
    yield "f32_only_sample_key", "f32", 5, 2, [], columns(5, "sample_key"), {}
    yield "f16_only_source_and_view", "f16", 5, 2, [], columns(5, "source", "view"), sources
    pixels = {"views": VIEWS, "blocks": [
        {"tap": "block4", "pooling": "mean", "offset": 0, "width": 2},
        {"tap": "border", "pooling": "64x64", "offset": 2, "width": 3},
        {"tap": "pixels", "pooling": "64x64", "offset": 5, "width": 4},
    ]}  # fmt: skip
    viewed = columns(24, "label", "group", "view")
    yield "i8_views_and_pixels", "i8", 24, 9, three, viewed, pixels
    yield "i8_only_age", "i8", 12, 2, ["unused", "too"], columns(12, "age"), {}


def _edges_of_numbers() -> Iterator[tuple[str, bytes]]:
    """Yield what the three dtypes can hold at their edges, and files that promise nothing."""

    def numbers(kind: Any, *odd: float) -> NDArray[Any]:
        info = np.finfo(kind)
        plain = [0.0, -0.0, info.smallest_subnormal, info.tiny, info.max, -info.max]
        return np.array([*plain, 1, -1, *odd], kind).reshape(2, -1)

    odd = (np.nan, np.inf, -np.inf, 2.0)
    for name, kind in (("f16", np.float16), ("f32", np.float32)):
        yield f"{name}_extremes", assemble(f"{name}_extremes", numbers(kind))
        odd_name = f"{name}_not_finite"
        yield odd_name, assemble(odd_name, numbers(kind, *odd), compatible=0)
    elements = np.array([[-128, -127, -1, 0, 1, 127], [-128, 127, 127, 0, 127, 127]], np.int8)
    largest = np.nextafter(np.float32(np.finfo(np.float32).max / 127), np.float32(0))
    # 0, a negative scale, subnormal, and the largest of which 127 steps are still a number
    scales = np.array([1, 0, -2.5, 1e-45, 0.1, largest], "<f4")
    yield "i8_extremes", assemble("i8_extremes", elements, scales=scales)
    scales = np.array([np.nan, np.inf, -np.inf, 3e38, 0.1, 1], "<f4")
    yield "i8_not_finite", assemble("i8_not_finite", elements, scales=scales, compatible=0)


def _later_minor() -> Iterator[tuple[str, bytes]]:
    """Yield what only a later minor version writes, and a version 1.0 reader must take."""
    row = np.arange(6)
    later = [
        ("later_u8", 900, np.stack([row, row + 250], 1).astype("u1"), 0, 0),
        ("later_u16", 11, np.stack([row, row * 10_000, row + 50_000], 1).astype("<u2"), 50_006, 0),
        ("later_u32", 0, (row * 7).astype("<u4").reshape(-1, 1), 36, 0),
        ("later_i8", 65535, (row - 128).astype("i1").reshape(-1, 1), 0, 0),
        ("later_bytes", 0, np.arange(30).astype("u1").reshape(6, 5), 0, 0),
        ("split", lib.HILUM_ROLE_SPLIT, (row % 4).astype("u1").reshape(-1, 1), 4, 1),
    ]
    notes = {**make_notes(3, ["a"], multilabel=True), "later": {"key": [1, None]}}
    notes["backbone"]["later"] = True
    yield (
        "later_minor",
        assemble(
            "later_minor",
            make_features(6, 3),
            notes=canonical_json({"format": "hilum-notes", "version": 1, **notes}),
            columns=[(n, r, _TYPES[n.removeprefix("later_")], v, c, f) for n, r, v, c, f in later],
            minor=7,
            compatible=lib.HILUM_COMPATIBLE_ALL_FINITE | 1 << 63 | 1 << 2,
        ),
    )
    many = [
        (f"c{i:022}", 0, lib.HILUM_TYPE_U8, np.full((2, 1), i, "u1"), i + 1, 0) for i in range(32)
    ]
    yield "f32_32_columns", assemble("f32_32_columns", make_features(2, 1), columns=many)


_TYPES = {
    "u8": lib.HILUM_TYPE_U8,
    "u16": lib.HILUM_TYPE_U16,
    "u32": lib.HILUM_TYPE_U32,
    "i8": lib.HILUM_TYPE_I8,
    "bytes": lib.HILUM_TYPE_BYTES,
    "split": lib.HILUM_TYPE_U8,
}


def _foreign_notes() -> Iterator[tuple[str, bytes]]:
    """Yield notes that another program might write: the same JSON in other bytes."""
    settings = {
        "b": 1e16,
        "a": [100.0, -0.0, 0, 1e-05, 0.0001, 123456789012345680.0, 5e-324, True, None, "x_1+"],
        "a_1": 9007199254740993,
    }
    written = """ {
\t"version": 1, "format": "hilum\\u002dnotes", "multilabel" : false,
\t"classes": ["\\u00e9", "e\\u0301", "\\ud83d\\ude00 \\/ /", "1970-01-01"],
\t"preprocessing": {"b": 1E16, "a_1": 9007199254740993, "a":
\t  [1e2, -0.0, -0, 10E-6, 1e-4, 123456789012345678.0, 4.9e-324, true, null, "x_1\\u002B"]},
\t"blocks": [{"width": 2, "offset": 0, "tap": "t", "pooling": "p", "unknown": ""}],
\t"backbone": {"sha256": "%s", "name": "0.a_b+c-D"},
\t"about": {"url": "http://localhost:80/?q#x", "title": "someone@example.org"},
\t"software": {"hilum": "1.2", "something": {}}, "head": {"kind": "mlp"},
\t"deep": %s{}, 1e308, "", null%s, "": 1e-400
}\r\n""" % (BACKBONE_DIGEST, "[" * 14, "]" * 14)  # noqa: UP031 - braces are JSON's here
    name = "notes_written_elsewhere"
    yield name, assemble(name, make_features(2, 2), notes=written.encode(), settings=settings)


Column = tuple[str, int, int, NDArray[Any], int, int]


def assemble(
    name: str,
    features: NDArray[Any],
    *,
    notes: bytes | None = None,
    settings: Mapping[str, Any] = PREPROCESSING,
    columns: Sequence[Column] = (),
    scales: NDArray[np.float32] | None = None,
    minor: int = 0,
    compatible: int = 1,
) -> bytes:
    """Put a container together, part by part, without Hilum's writer.

    Parameters
    ----------
    name : str
        Gives the uuid.
    features : ndarray of float32, float16 or int8, shape (n, dim)
        As stored.
    notes : bytes, optional
        The notes; left out, those of `make_notes`.
    settings : Mapping[str, Any]
        The preprocessing in the notes.
    columns : sequence of (name, role, type, values, n_values, flags)
        Values of shape (n, width).
    scales : ndarray of float32, shape (dim,), optional
        For int8.
    minor, compatible : int
        Of the header.

    Returns
    -------
    bytes
        The file.
    """
    n_rows, dim = features.shape
    if notes is None:
        full = {"format": "hilum-notes", "version": 1, **make_notes(dim, [], multilabel=False)}
        notes = canonical_json(full)
    header: Any = np.zeros(1, HEADER_DTYPE)
    data = bytearray(lib.HILUM_HEADER_BYTES)

    def section(part: bytes) -> tuple[int, int]:
        data.extend(bytes(-len(data) % lib.HILUM_ALIGNMENT_BYTES))
        data.extend(part)
        return len(data) - len(part), len(part)

    header["features"] = section(features.tobytes())
    if scales is not None:
        header["scales"] = section(scales.tobytes())
    for i, (column, role, kind, values, n_values, flags) in enumerate(columns):
        place = section(values.tobytes())
        described = (column.encode(), role, kind, flags, values.shape[1], *place, 0, n_values, 0)
        header["columns"][0, i] = described
    n_checksums = -(-n_rows // CHUNK_ROWS) + (scales is not None)
    header["table"] = section(bytes(4 * n_checksums))
    header["notes"] = section(notes)
    for field, value in {
        "magic": np.frombuffer(MAGIC, np.uint8),
        "major": lib.HILUM_MAJOR,
        "minor": minor,
        "header_size": lib.HILUM_HEADER_BYTES,
        "file_size": len(data),
        "n_rows": n_rows,
        "dim": dim,
        "dtype": {2: lib.HILUM_DTYPE_F16, 4: lib.HILUM_DTYPE_F32, 1: lib.HILUM_DTYPE_I8}[
            features.itemsize
        ],
        "n_columns": len(columns),
        "chunk_log2": lib.HILUM_CHUNK_LOG2,
        "state": lib.HILUM_STATE_SEALED,
        "compatible": compatible,
        "backbone_sha256": np.frombuffer(bytes.fromhex(BACKBONE_DIGEST), np.uint8),
        "preprocessing_sha256": np.frombuffer(
            bytes.fromhex(preprocessing_digest(settings)), np.uint8
        ),
        "uuid": np.frombuffer(_uuid(name), np.uint8),
    }.items():
        header[field] = value
    surgeon = Surgeon(header.tobytes() + data[lib.HILUM_HEADER_BYTES :])
    surgeon.fix()
    return bytes(surgeon.data)


class Surgeon:
    """A container's bytes, to be changed and made consistent again."""

    def __init__(self, source: Path | bytes) -> None:
        self.data = bytearray(source if isinstance(source, bytes) else source.read_bytes())
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
    yield from _notes_and_columns(valid)
    yield from _two_faults(valid)


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
    yield "truncated_in_magic", "HILUM_ERR_TRUNCATED", "open", whole[:3]
    yield "part_of_5_bytes", "HILUM_ERR_UNSEALED", "open", b"\x89HILP"
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
        ("column_of_0_classes", "COLUMN", "label", "n_values", 0),
        ("column_of_0_groups", "COLUMN", "group", "n_values", 0),
        ("column_name_borrowed_by_later_role", "COLUMN", "split", "role", 900),
        ("column_overlaps", "LAYOUT", "split", "offset", 4096),
        ("column_length", "LAYOUT", "split", "length", 41),
    )
    for name, status, column, member, value in members:

        def operate(
            s: Surgeon, column: str = column, member: str = member, value: Any = value
        ) -> None:
            s.set_column(s.index(column), member, value)

        yield name, f"HILUM_ERR_{status}", "open", _surgery(groups, operate)

    every = valid / "i8_every_column.hilum"
    for name, source, column, number in (
        ("column_n_values_of_i8", valid / "f32_multi_label.hilum", "label", 2),
        ("column_n_values_of_bytes", every, "sample_key", 255),
        ("column_of_2_views", every, "view", 2),
        ("column_of_257_sources", every, "source", 257),
    ):

        def count(s: Surgeon, column: str = column, number: int = number) -> None:
            s.set_column(s.index(column), "n_values", number)

        yield name, "HILUM_ERR_COLUMN", "open", _surgery(source, count)

    def unknown(s: Surgeon, role: int, flags: int) -> None:
        i = s.index("split")
        s.set_column(i, "name", b"later")
        s.set_column(i, "role", role)
        s.set_column(i, "flags", flags)

    for name, role in (("column_must_understand", 99), ("column_must_understand_role_0", 0)):

        def must_understand(s: Surgeon, role: int = role) -> None:
            unknown(s, role, lib.HILUM_COLUMN_MUST_UNDERSTAND)

        yield name, "HILUM_ERR_INCOMPATIBLE", "open", _surgery(groups, must_understand)
    name = "group_clean_without_splits"
    yield name, "HILUM_ERR_HEADER", "open", _surgery(groups, lambda s: unknown(s, 0, 0))

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
    yield (
        "padding_between_columns",
        "HILUM_ERR_PADDING",
        "open",
        _flip(groups, lambda s: s.column(s.index("label")).stop),
    )
    for name, source, field in (
        ("table_bit", groups, "table"),
        ("notes_bit", groups, "notes"),
        ("scales_bit", i8, "scales"),
    ):

        def where(s: Surgeon, field: str = field) -> int:
            return int(s.section(field).start)

        yield name, f"HILUM_ERR_{field.upper()}_CRC", "open", _flip(source, where)

    def put(field: str, number: np.floating[Any]) -> Callable[[Surgeon], None]:
        def operate(s: Surgeon) -> None:
            start = s.section(field).start
            s.data[start : start + number.itemsize] = number.tobytes()

        return operate

    for name, field, source, number in (
        ("scale_infinite", "scales", i8, np.float32(np.inf)),
        ("scale_nan", "scales", i8, np.float32(np.nan)),
        ("scale_times_127_infinite", "scales", i8, np.float32(3e38)),
        ("feature_infinite", "features", f32, np.float32(np.inf)),
        ("feature_nan", "features", groups, np.float16(np.nan)),
    ):
        found_by = "open" if field == "scales" else "verify"
        data = _surgery(source, put(field, number), whole=True)
        yield name, "HILUM_ERR_NOT_FINITE", found_by, data
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
        "notes_integer_too_large": raw[:-1] + b',"x":1' + b"0" * 309 + b"}",
        "notes_byte_order_mark": "\ufeff".encode() + raw,
        "notes_null": raw[:-1] + b',"n_refused":null}',
        "notes_views_of_nobody": canonical_json({**good, "views": {**VIEWS, "group": "nobody"}}),
        "notes_views_unnumbered": canonical_json({**good, "views": {"mirror": True}}),
        "notes_whole_number_as_fraction": raw[:-1] + b',"n_refused":2.0}',
        "notes_class_twice": canonical_json({**good, "classes": ["one", "one", "two"]}),
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


def _notes_and_columns(valid: Path) -> Iterator[Corruption]:
    every = valid / "i8_every_column.hilum"
    findings = valid / "f32_multi_label.hilum"
    changes: tuple[tuple[str, Path, Callable[[dict[str, Any]], Any]], ...] = (
        ("notes_without_sources", every, lambda notes: notes.pop("sources")),
        ("notes_more_sources", every, lambda notes: notes["sources"].append("site-b")),
        ("notes_fewer_sources", every, lambda notes: notes["sources"].pop()),
        ("notes_more_findings", findings, lambda notes: notes["classes"].append("mass")),
    )
    for name, source, change in changes:
        with open_container(source) as container:
            notes = container.notes
        change(notes)

        def operate(s: Surgeon, text: bytes = canonical_json(notes)) -> None:
            s.replace_notes(text)

        yield name, None, "open", _surgery(source, operate, whole=True)


def _two_faults(valid: Path) -> Iterator[Corruption]:
    """Yield files with two faults, where the status tells which was looked for first."""
    groups = valid / "f16_groups.hilum"
    crossing = valid / "f16_multi_label_crossing_groups.hilum"
    promise = lib.HILUM_COMPATIBLE_GROUP_CLEAN | lib.HILUM_COMPATIBLE_ALL_FINITE

    def state(s: Surgeon) -> None:
        s.set("state", 0)

    def incompatible(s: Surgeon) -> None:
        s.set("incompatible", 1)

    def reserved(s: Surgeon) -> None:
        s.header["zero1"][0, 0] = 1

    def column(i: int, member: str, value: Any) -> Callable[[Surgeon], None]:
        return lambda s: s.set_column(i, member, value)

    def flip(where: Callable[[Surgeon], int]) -> Callable[[Surgeon], None]:
        def operate(s: Surgeon) -> None:
            s.data[where(s)] ^= 1

        return operate

    def cut(s: Surgeon) -> None:
        del s.data[-1]

    def notes_bit(s: Surgeon) -> None:
        s.data[-1] ^= 1

    def unknown(s: Surgeon) -> None:
        s.set_column(0, "role", 11)
        s.set_column(0, "name", b"later")
        s.set_column(0, "flags", lib.HILUM_COLUMN_MUST_UNDERSTAND)

    def wrong_value(s: Surgeon) -> None:
        s.data[s.column(0).start] = 9
        s.set_column(0, "crc32c", crc32c(bytes(s.data[s.column(0)])))

    Operation = Callable[[Surgeon], None]
    cases: tuple[tuple[str, str, Path, Operation, Operation], ...] = (
        ("state_before_flags", "UNSEALED", groups, state, incompatible),
        ("flags_before_fields", "INCOMPATIBLE", groups, incompatible, lambda s: s.set("dim", 0)),
        ("reserved_before_columns", "PADDING", groups, reserved, column(0, "type", 0)),
        ("columns_one_by_one", "INCOMPATIBLE", groups, unknown, column(1, "width", 2)),
        (
            "columns_before_group_clean",
            "COLUMN",
            valid / "f16_single_label.hilum",
            lambda s: s.set("compatible", promise),
            column(0, "reserved", 1),
        ),
        ("layout_before_length", "LAYOUT", groups, lambda s: s.set("dim", 10), cut),
        (
            "length_before_gaps",
            "TRUNCATED",
            groups,
            flip(lambda s: s.section("features").stop),
            cut,
        ),
        (
            "gap_before_table",
            "PADDING",
            groups,
            flip(lambda s: s.section("features").stop),
            flip(lambda s: s.section("table").start),
        ),
        (
            "table_before_scales",
            "TABLE_CRC",
            valid / "i8_single_label.hilum",
            flip(lambda s: s.section("table").start),
            flip(lambda s: s.section("scales").start),
        ),
        (
            "values_before_next_column",
            "VALUE",
            groups,
            wrong_value,
            flip(lambda s: s.column(1).start),
        ),
        (
            "groups_before_notes",
            "GROUP_SPLIT",
            crossing,
            lambda s: s.set("compatible", promise),
            notes_bit,
        ),
    )
    for name, status, source, first, second in cases:

        def both(s: Surgeon, first: Operation = first, second: Operation = second) -> None:
            first(s)
            second(s)

        yield f"order_{name}", f"HILUM_ERR_{status}", "open", _surgery(source, both)

    for name, status, field in (
        ("major_before_checksum", "VERSION", "major"),
        ("checksum_before_state", "HEADER_CRC", "state"),
    ):
        s = Surgeon(groups)
        s.set(field, 2)
        s.data[: lib.HILUM_HEADER_BYTES] = s.header.tobytes()  # the checksum is not renewed
        yield f"order_{name}", f"HILUM_ERR_{status}", "open", bytes(s.data)

    s = Surgeon(valid / "f16_two_chunks.hilum")
    s.data[4096:4098] = np.float16(np.inf).tobytes()
    s.fix()
    s.data[s.section("features").stop - 1] ^= 1
    yield "order_chunk_by_chunk", "HILUM_ERR_NOT_FINITE", "verify", bytes(s.data)


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
