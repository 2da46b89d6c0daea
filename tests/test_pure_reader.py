"""A stranger's reader, written from `formats/container.md` alone, agrees with the project's own."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_helpers import COLUMN_DTYPE, CORRUPT, GOLDEN, MANIFEST, STATUS_NAMES, VALID, maker
from pure_reader import RefusedError, crc32c, read_container

import formats
from formats._library import HEADER_DTYPE


def test_checksum_is_the_one_of_the_document():
    assert crc32c(b"123456789") == 0xE3069283


def test_manifest_names_every_golden_file():
    for kind in ("valid", "corrupt"):
        assert {path.name for path in (GOLDEN / kind).iterdir()} == set(MANIFEST[kind])


@pytest.mark.parametrize("name", VALID)
def test_reads_what_the_reader_of_the_project_reads(name):
    mine = read_container(GOLDEN / "valid" / name)
    theirs = formats.open_container(GOLDEN / "valid" / name)
    theirs.verify()
    for fact in ("n_rows", "dim", "dtype", "uuid", "notes"):
        assert mine[fact] == getattr(theirs, fact), fact
    assert mine["backbone_sha256"] == theirs.backbone_digest
    assert mine["preprocessing_sha256"] == theirs.preprocessing_digest
    assert bool(mine["compatible"] & 2) == theirs.group_clean
    # The product of int8 and its scale is exact in a double, so both sides round once.
    with np.errstate(over="ignore", invalid="ignore"):
        features, expected = np.float32(mine["features"]), theirs.read_rows()
    np.testing.assert_array_equal(features, expected, strict=True)
    assert list(mine["columns"]) == list(theirs.columns)
    for column, array in theirs.columns.items():
        rows = array.reshape(theirs.n_rows, -1)
        np.testing.assert_array_equal(mine["columns"][column], rows, err_msg=column)


@pytest.mark.parametrize("name", CORRUPT)
def test_refuses_with_the_status_of_the_manifest(name):
    status = MANIFEST["corrupt"][name]["status"] or "Corrupt"  # null: only Python finds it
    with pytest.raises(RefusedError) as refused:
        read_container(GOLDEN / "corrupt" / name)
    assert refused.value.status == status.removeprefix("HILUM_ERR_")


def test_refuses_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "missing.hilum"):
        with pytest.raises(RefusedError) as mine:
            read_container(path)
        with pytest.raises(formats.ContainerError) as theirs:
            formats.open_container(path)
        assert STATUS_NAMES[theirs.value.status] == f"HILUM_ERR_{mine.value.status}"


# ---- mutants -----------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 3, 4, 5, 6, 11, 16, 32, 33, 64, 255, 256, 257, 900, 4096, 65535, 65536, 65537]
NUMBERS += [2**k + i for k in (20, 31, 32, 63) for i in (-1, 0, 1)]
NAMES = [b"label", b"split", b"group", b"view", b"other", b"", b"A", b"a\0b", b"a" * 24, b"a" * 23]
JSON_VALUES: list[Any] = [None, True, False, 0, 1, 2, -1, 90, 65535, 65536, 2**31, 10**308, 10**309]
JSON_VALUES += [1.0, 2.5, -0.0, 1e-320, 1e308, 1_000_001, [], {}, [[]], [1, 2], [2, 1], [0, 91]]
JSON_VALUES += ["", " ", "x", "x y", "x\n", "\x1f", "\u200b", "\ud800", "é", "a" * 100, "a" * 101]
JSON_VALUES += ["1.2", "ab" * 16, "ab" * 32, "AB" * 32, "linear", "mlp", "http://localhost:1/?x#y"]
JSON_VALUES += ["https://", "ftp://example.org", "https://x\n" + "y" * 482, "a" * 500, "a" * 501]
JSON_VALUES += [["a", "a"], ["a", "b", None], {"kind": "mlp"}, {"A": 1}, {"a": [1, True, "b", []]}]
JSON_VALUES += [{"a": [1] * 64}, {"a": [1] * 65}, {"x": [1, 2.5]}, {"x": []}, {"x": [True]}]
KEYS = ["sources", "head", "hidden", "software", "n_refused", "derived_from", "probes", "about"]
KEYS += [
    "title",
    "url",
    "age_range_years",
    "terms",
    "later",
    "hilum",
    "classes",
    "views",
    "number",
    "group",
]
PIECES = [
    "NaN",
    "Infinity",
    "1e999",
    "1e-999",
    "\ufeff",
    ",",
    "]",
    "}",
    "01",
    "1.",
    ".5",
    "+1",
    "'",
]
PIECES += ['"\\ud800"', '"\\x"', "\x0c", "\xa0", "\0", "// ", '"a":1,', "[" * 14, "[" * 17, "\n\t "]
PIECES += ["1" + "0" * 308, "1" + "0" * 309, "9" * 5000, "-0", "1e2"]


class Mutant(maker.Surgeon):
    """A golden file with one or two things changed, and its checksums renewed or not."""

    def __init__(self, source: bytes, seed: int) -> None:
        super().__init__(source)
        self.random = random.Random(seed)
        operations = [self.field, self.field, self.descriptor, self.descriptor, self.byte]
        operations += [self.length, self.value, self.notes_tree, self.notes_tree, self.notes_text]
        for operate in self.random.choices(operations, k=self.random.choice([1, 1, 2])):
            operate()
        repair = self.random.choice([None, self.fix_header, self.fix, self.fix])
        if repair is None:
            self.data[16:4092] = self.header.tobytes()[16:4092]
        else:
            # where the header is nonsense, sections to be repaired cannot be found
            with contextlib.suppress(ValueError, IndexError, ZeroDivisionError):
                repair()
            self.fix_header()

    def some(self, old: int) -> int:
        chosen = [old - 1, old + 1, old * 2, old ^ 1 << self.random.randrange(64)]
        return self.random.choice([self.random.choice(NUMBERS), *chosen])

    def field(self) -> None:
        dtypes = HEADER_DTYPE.fields
        assert dtypes is not None
        name = self.random.choice([name for name in dtypes if name != "columns"])
        kind, offset, *_ = dtypes[name]
        raw = bytearray(self.header.tobytes())
        n = 8 if kind.itemsize > 8 else kind.itemsize
        offset += self.random.randrange(kind.itemsize // n) * n
        self.put(raw, offset, n)
        self.header = np.frombuffer(raw, HEADER_DTYPE).copy()

    def descriptor(self) -> None:
        n_columns = max(1, int(self.header["n_columns"][0]))
        columns = self.header["columns"][0]
        i, j = self.random.choices(range(min(n_columns, 32)), k=2)
        fields = COLUMN_DTYPE.fields
        assert fields is not None
        name = self.random.choice([*fields, "name", "role", "copy", "swap", "flags"])
        if name == "name":
            columns[i]["name"] = self.random.choice(NAMES)
        elif name == "copy":
            columns[i] = columns[j]
        elif name == "swap":
            columns[[i, j]] = columns[[j, i]]
        else:
            kind, offset, *_ = fields[name]
            raw = bytearray(self.header.tobytes())
            self.put(raw, 512 + 64 * i + offset, kind.itemsize)
            self.header = np.frombuffer(raw, HEADER_DTYPE).copy()

    def put(self, raw: bytearray, offset: int, n: int) -> None:
        old = int.from_bytes(raw[offset : offset + n], "little")
        raw[offset : offset + n] = (self.some(old) % 256**n).to_bytes(n, "little")

    def byte(self) -> None:
        if self.data:
            self.data[self.random.randrange(len(self.data))] ^= 1 << self.random.randrange(8)

    def length(self) -> None:
        n = self.random.choice([1, 2, 64, self.random.randrange(1, max(2, len(self.data)))])
        if self.random.random() < 0.5:
            del self.data[-n:]
        else:
            self.data += self.random.choice([bytes(n), b" " * min(n, 99)])
        if self.random.random() < 0.5:
            self.set("file_size", len(self.data))

    def value(self) -> None:
        """Change an element of a section, at its first byte or anywhere."""
        sections = [self.section(name) for name in ("features", "scales")]
        sections += [self.column(i) for i in range(min(32, int(self.header["n_columns"][0])))]
        at = self.random.choice(sections)
        if at.start < at.stop <= len(self.data):
            place = self.random.choice([at.start, self.random.randrange(at.start, at.stop)])
            odd = [b"\0", b"\1", b"\4", b"\xff", b"\xff\xff\xff\x7f", b"\0\0\x80\x7f", b"\0\x7c"]
            new = self.random.choice(odd)[: at.stop - place]
            self.data[place : place + len(new)] = new

    def notes_tree(self) -> None:
        try:
            notes = json.loads(self.data[self.section("notes")])
        except ValueError:
            return
        if not isinstance(notes, dict | list):
            return  # replaced as a whole by a mutation before
        holders: list[Any] = [notes]
        for holder in holders:
            children = holder.values() if isinstance(holder, dict) else holder
            holders += [child for child in children if isinstance(child, dict | list)]
        holder = self.random.choice([notes, *holders])
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if isinstance(holder, dict):
            places += [self.random.choice(KEYS)] * 2
        if not places:
            return
        place = self.random.choice(places)
        if self.random.random() < 0.2 and place in places[: len(holder)]:
            del holder[place]
        else:
            holder[place] = self.random.choice(JSON_VALUES)
        if self.random.random() < 0.8:
            with contextlib.suppress(LookupError, TypeError, ValueError):
                digest = bytes.fromhex(formats.preprocessing_digest(notes["preprocessing"]))
                self.set("preprocessing_sha256", np.frombuffer(digest, np.uint8))
        self.replace_notes(json.dumps(notes).encode())

    def notes_text(self) -> None:
        text = self.data[self.section("notes")].decode("utf-8", "replace")
        values = [found.end() for found in re.finditer('":', text)]  # where a value starts
        at = self.random.choice([0, max(0, len(text) - 1), len(text), *values])
        at = self.random.choice([at, self.random.randrange(len(text) + 1)])
        new = text[:at] + self.random.choice(PIECES) + text[at + self.random.choice([0, 0, 1, 2]) :]
        self.replace_notes(new.encode())


def verdict_of_the_project(path: Path) -> tuple[str, Any]:
    try:
        with formats.open_container(path) as container:
            container.verify()
            n = container.n_rows
            columns = {k: array.reshape(n, -1).tolist() for k, array in container.columns.items()}
            return "accepted", (container.notes, columns, container.uuid)
    except formats.ContainerError as error:
        return STATUS_NAMES[error.status].removeprefix("HILUM_ERR_").replace(
            "HILUM_OK", "Corrupt"
        ), None


def verdict_of_the_stranger(path: Path) -> tuple[str, Any]:
    try:
        found = read_container(path)
    except RefusedError as error:
        return error.status, None
    columns = {name: [list(row) for row in rows] for name, rows in found["columns"].items()}
    return "accepted", (found["notes"], columns, found["uuid"])


def test_both_readers_agree_on_mutants(tmp_path):
    """Same verdict on 2,400 files that differ from golden ones, status included."""
    sources = [p.read_bytes() for p in sorted(GOLDEN.glob("*/*.hilum")) if p.stat().st_size < 7000]
    sources = [data for data in sources if len(data) > 4096]
    seen: Counter[str] = Counter()
    for seed in range(2400):
        # a new name each time: emptying a file that was just written waits for the disk
        path = tmp_path / f"{seed}.hilum"
        path.write_bytes(Mutant(sources[seed % len(sources)], seed).data)
        mine, theirs = verdict_of_the_stranger(path), verdict_of_the_project(path)
        assert repr(mine) == repr(theirs), f"seed {seed}"
        seen[mine[0]] += 1
        path.unlink()
    # or the mutants do not test what they are made for
    expected = {name.removeprefix("HILUM_ERR_") for name in STATUS_NAMES.values()}
    expected -= {"HILUM_OK", "ARGUMENT", "OPEN", "READ", "MEMORY"}
    assert set(seen) == expected | {"Corrupt", "accepted"}
    assert min(seen["accepted"], seen["Corrupt"]) > 100
