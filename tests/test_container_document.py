"""The page ``formats/container.md`` against the code: offsets, names, limits and its recipe."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import (
    COLUMN_DTYPE,
    GOLDEN,
    MANIFEST,
    ROOT,
    STATUS_NAMES,
    VALID,
    notes_of,
    write_small,
)

import formats
from formats import _status
from formats._journal import Journal
from formats._json import canonical_json, parse_json
from formats._library import HEADER_DTYPE, crc32c, lib
from formats.notes import _SCHEMA, validate_notes

PAGE = (ROOT / "formats" / "container.md").read_text(encoding="utf-8")
CELLS = [[c.strip() for c in line.strip("|").split("|")] for line in PAGE.splitlines()]


@pytest.mark.parametrize("dtype", [HEADER_DTYPE, COLUMN_DTYPE], ids=["header", "column"])
def test_offsets_and_sizes_of_the_page(dtype: np.dtype) -> None:
    stated = {tuple(row[:3]) for row in CELLS if len(row) == 4}
    assert dtype.fields is not None
    for name, (kind, offset, *_) in dtype.fields.items():
        assert (str(offset), str(kind.itemsize), name) in stated


def test_roles_of_the_page() -> None:
    stated = {(row[1].strip("`"), row[0]) for row in CELLS if len(row) == 6}
    roles = {n: getattr(lib, n) for n in dir(lib) if n.startswith("HILUM_ROLE_")}
    assert len(roles) == 11
    for name, role in roles.items():
        if role:
            assert (name.removeprefix("HILUM_ROLE_").lower(), str(role)) in stated


def test_statuses_of_the_page() -> None:
    missing = {
        name for name in STATUS_NAMES.values() if f"`{name.removeprefix('HILUM_ERR_')}`" not in PAGE
    }
    assert missing == {"HILUM_OK"}


def test_exceptions_of_the_page() -> None:
    text = PAGE[PAGE.index("Python raises a") : PAGE.index("| Step |")].replace("\n", " ")
    stated = {
        status: getattr(formats, exception)
        for exception, statuses in re.findall(r"`(\w+)` for ((?:`[A-Z_]+`(?: and )?)+)", text)
        for status in re.findall("`([A-Z_]+)`", statuses)
    }
    assert len(stated) == 8
    for status, meaning in _status.MEANINGS.items():
        name = STATUS_NAMES[status].removeprefix("HILUM_ERR_")
        if name not in ("ARGUMENT", "MEMORY"):
            assert meaning.exception is stated.get(name, formats.Corrupt), name


def test_steps_of_the_page_name_every_status_of_a_file() -> None:
    steps = [row for row in CELLS if len(row) == 3 and row[0].isdigit()]
    assert [int(row[0]) for row in steps] == list(range(1, 26))
    named = set(re.findall("`([A-Z_]+)`", " ".join(row[2] for row in steps)))
    outside = {"HILUM_OK", "HILUM_ERR_ARGUMENT", "HILUM_ERR_MEMORY"}
    assert {f"HILUM_ERR_{name}" for name in named} == set(STATUS_NAMES.values()) - outside


def test_note_keys_of_the_page() -> None:
    for key in _SCHEMA:
        assert f"`{key}`" in PAGE, key


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("1e-4", "0.0001"),
        ("1e2", "100.0"),
        ("100", "100"),
        ("1234567890123456.0", "1234567890123456.0"),
        ("10E-6", "1e-05"),
        ("15e15", "1.5e+16"),
        ("-0.0", "-0.0"),
        ("-0", "0"),
    ],
)
def test_canonical_numbers_of_the_page(written: str, canonical: str) -> None:
    assert canonical_json(parse_json(written.encode())) == canonical.encode()
    assert f"`{canonical}`" in PAGE


def _notes(**more: object) -> dict:
    return {"format": "hilum-notes", "version": 1, **notes_of(8), **more}


@pytest.mark.parametrize(
    ("most", "one_more"),
    [
        ({"classes": [str(i) for i in range(65535)]}, {"classes": [str(i) for i in range(65536)]}),
        ({"classes": ["x" * 100]}, {"classes": ["x" * 101]}),
        ({"sources": [str(i) for i in range(256)]}, {"sources": [str(i) for i in range(257)]}),
        ({"preprocessing": {"a" * 64: [1] * 64}}, {"preprocessing": {"a" * 65: [1] * 64}}),
        ({"preprocessing": {"a": [1] * 64}}, {"preprocessing": {"a": [1] * 65}}),
        (
            {"preprocessing": {f"a{i}": "b" * 64 for i in range(64)}},
            {"preprocessing": {f"a{i}": 1 for i in range(65)}},
        ),
        ({"preprocessing": {"a": "b" * 64}}, {"preprocessing": {"a": "b" * 65}}),
        ({"head": {"kind": "mlp", "hidden": 65536}}, {"head": {"kind": "mlp", "hidden": 65537}}),
        ({"software": {"hilum": "x" * 100}}, {"software": {"hilum": "x" * 101}}),
        ({"n_refused": 2**31 - 1}, {"n_refused": 2**31}),
        (
            {"derived_from": [f"{i:032x}" for i in range(64)]},
            {"derived_from": [f"{i:032x}" for i in range(65)]},
        ),
        ({"probes": {"a": [1e308] * 4096}}, {"probes": {"a": [1] * 4097}}),
        (
            {"probes": {f"a{i}": [1] for i in range(16)}},
            {"probes": {f"a{i}": [1] for i in range(17)}},
        ),
        ({"about": {"url": "x" * 500}}, {"about": {"url": "x" * 501}}),
        ({"about": {"age_range_years": [0, 90]}}, {"about": {"age_range_years": [0, 91]}}),
    ],
    ids=lambda notes: next(iter(notes)),
)
def test_limits_of_notes_when_reading(most: dict, one_more: dict) -> None:
    validate_notes(_notes(**most), dim=8, reading=True)
    with pytest.raises(formats.NotesError):
        validate_notes(_notes(**one_more), dim=8, reading=True)


def test_needed_keys_are_the_first_seven_of_the_page() -> None:
    start = PAGE.index("| `format`, `version` |")
    keys = re.findall(r"^\| (`.*?`) \|", PAGE[start : PAGE.index("**Reading**")], re.MULTILINE)
    names = [name.strip("`") for key in keys for name in key.split(", ")]
    assert names == [
        *(key for key, (_, required) in _SCHEMA.items() if required),
        *(key for key, (_, required) in _SCHEMA.items() if not required),
    ]


def test_crc32c_of_the_page() -> None:
    assert f"0x{crc32c(b'123456789'):08X}" in PAGE


def test_page_never_promises_what_privacy_forbids() -> None:
    assert "anonym" not in PAGE.replace("pseudonym", "").lower()
    assert "pseudonymised personal data" in PAGE.replace("\n", " ")


@pytest.mark.parametrize("name", VALID)
def test_reading_recipe(name: str, tmp_path: Path) -> None:
    recipe = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert recipe is not None
    path = GOLDEN / "valid" / name
    scope: dict = {}
    exec(recipe[1].replace('"chest.hilum"', repr(str(path))), scope)
    with formats.open_container(path) as c:
        np.testing.assert_array_equal(scope["features"], c.features)
        assert scope["features"].dtype == c.features.dtype
        assert scope["notes"] == c.notes
        assert list(scope["columns"]) == list(c.columns)
        for column, values in c.columns.items():
            assert np.array_equal(scope["columns"][column], values.reshape(c.n_rows, -1)), column
        if c.scales is not None:
            np.testing.assert_array_equal(scope["scales"], c.scales)
    assert name in MANIFEST["valid"]


def test_shapes_of_columns_in_python() -> None:
    with formats.open_container(GOLDEN / "valid" / "later_minor.hilum") as c:
        shapes = {name: array.shape for name, array in c.columns.items()}
    assert shapes == {
        "later_u8": (6, 2),
        "later_u16": (6, 3),
        "later_u32": (6,),
        "later_i8": (6, 1),
        "later_bytes": (6, 5),
        "split": (6,),
    }


def test_numbers_at_the_edge_of_their_type() -> None:
    with formats.open_container(GOLDEN / "valid" / "i8_extremes.hilum") as c:
        assert c.scales is not None
        with np.errstate(over="ignore"):
            rows = c.read_rows()
            next_larger = np.nextafter(c.scales[5], np.float32(np.inf)) * np.float32(127)
        assert np.isfinite(rows[c.features != -128]).all()
        assert np.isinf(next_larger)
    for name in ("f16_extremes", "f32_extremes"):
        with formats.open_container(GOLDEN / "valid" / f"{name}.hilum") as c:
            assert np.abs(c.features).max() == np.finfo(c.features.dtype).max
            assert np.signbit(c.features[0, 1])
            assert c.features[0, 1] == 0 < c.features[0, 2] < np.finfo(c.features.dtype).tiny


def test_uuid_made_of_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path, seed=7)
    body = hashlib.sha256(path.read_bytes()[4096:]).digest()
    made = hashlib.sha256(b"hilum data set" + body).digest()[:16].hex()
    with formats.open_container(path) as c:
        assert c.uuid == made
    assert "`hilum data set`" in PAGE


def test_journal_of_the_page(tmp_path: Path) -> None:
    """Read a journal by the page's table alone."""
    path = tmp_path / "x.part.journal"
    journal = Journal.create(path, {"job": {"a": 1}}, b"scales")
    journal.add(2, 3, 77, {"label": np.array([1, 2], "<u2")})
    journal.close()
    data = path.read_bytes()
    magic = re.search(r"The journal is `([0-9A-F ]+)`", PAGE)
    assert magic is not None
    assert data[:8] == bytes.fromhex(magic[1])
    at, bodies = 8, []
    while at < len(data):
        n_json, n_bytes, zero, crc = struct.unpack_from("<IIII", data, at)
        body = data[at + 16 : at + 16 + n_json + n_bytes]
        assert (zero, crc32c(data[at : at + 12] + body)) == (0, crc)
        bodies.append(body[n_json:])
        at += 16 + len(body)
    assert bodies == [b"scales", np.array([1, 2], "<u2").tobytes()]
