"""The page ``formats/container.md`` against the code: offsets, names and its reading recipe."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import COLUMN_DTYPE, GOLDEN, MANIFEST, ROOT, STATUS_NAMES, VALID

import formats
from formats._library import HEADER_DTYPE, crc32c, lib
from formats.notes import _SCHEMA

PAGE = (ROOT / "formats" / "container.md").read_text(encoding="utf-8")
CELLS = [[c.strip() for c in line.strip("|").split("|")] for line in PAGE.splitlines()]


@pytest.mark.parametrize("dtype", [HEADER_DTYPE, COLUMN_DTYPE], ids=["header", "column"])
def test_offsets_and_sizes_of_the_page(dtype: np.dtype) -> None:
    stated = {tuple(row[:3]) for row in CELLS if len(row) == 4}
    assert dtype.fields is not None
    for name, (kind, offset, *_) in dtype.fields.items():
        assert (str(offset), str(kind.itemsize), name) in stated


def test_roles_of_the_page() -> None:
    stated = {(row[1].strip("`"), row[0]) for row in CELLS if len(row) == 5}
    roles = {n: getattr(lib, n) for n in dir(lib) if n.startswith("HILUM_ROLE_")}
    assert len(roles) == 11
    for name, role in roles.items():
        if role:
            assert (name.removeprefix("HILUM_ROLE_").lower(), str(role)) in stated


def test_statuses_of_the_page() -> None:
    missing = {
        name for name in STATUS_NAMES.values() if f"`{name.removeprefix('HILUM_ERR_')}`" not in PAGE
    }
    assert missing == {"HILUM_OK", "HILUM_ERR_ARGUMENT", "HILUM_ERR_MEMORY"}


def test_note_keys_of_the_page() -> None:
    for key in _SCHEMA:
        assert f"`{key}`" in PAGE, key


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
        assert np.array_equal(scope["features"], c.features)
        assert scope["features"].dtype == c.features.dtype
        assert scope["notes"] == c.notes
        assert list(scope["columns"]) == list(c.columns)
        for column, values in c.columns.items():
            assert np.array_equal(scope["columns"][column], values.reshape(c.n_rows, -1)), column
        if c.scales is not None:
            assert np.array_equal(scope["scales"], c.scales)
    assert name in MANIFEST["valid"]
