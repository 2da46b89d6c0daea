"""The output folder: names that lead nowhere, answers given once, nothing half there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.answers import Prediction
from engine.errors import WriteError
from engine.phantoms import draw_phantom, write_dicom
from engine.results import (
    CAPTURE_SUFFIX,
    HEATMAP_SUFFIX,
    REPORT_SUFFIX,
    Results,
    is_drawn,
    picture_identity,
    result_key,
    safe_name,
)

KEY, OTHER = "a" * 64, "b" * 64


def answer(given: str, key: str | None = KEY, **more: Any) -> Prediction:
    heads = {"h": {"label": "x", "probabilities": {"x": 1.0}, "notice": ""}}
    return Prediction(given, **{"status": "ok", "heads": heads, "key": key} | more)  # type: ignore[arg-type]


def shown(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".hilum")


# ---- Names -------------------------------------------------------------------------------------

HOSTILE = [
    "..",
    ".",
    "",
    "/",
    "/etc/passwd",
    "../../up.png",
    "a/../../b.png",
    "C:\\windows\\x.png",
    "..\\..\\x.png",
    "nul\x00byte.png",
    "new\nline.png",
    "con",
    "CON.png",
    "aux.dcm",
    "com1.tar.gz",
    "LPT².dcm",
    "nul .dcm",
    "conin$",
    "dots...",
    "space ",
    ".hilum",
    ".hidden.png",
    "a:b.png",
    "a?.png",
    "x" * 5000,
    "é" * 300 + ".png",
    "\udcff\udcfe.png",
    "$(touch owned).png",
    "`touch owned`;x|y&.png",
    "%n%s%x",
    "predictions.csv",
    "-rf",
]


def test_no_name_leaves_the_folder(tmp_path: Path) -> None:
    """One result for each, all inside, under names that every system takes."""
    out = tmp_path / "deep" / "out"
    results = Results(out)
    for given in HOSTILE:
        content = given.encode("utf-8", "replace")
        written = results.write(answer(given, None), {HEATMAP_SUFFIX: content})
        name = written.heatmap_file
        assert name is not None
        assert (out / name).read_bytes() == content
        found = json.loads((out / f"{name.removesuffix(HEATMAP_SUFFIX)}.json").read_text())
        assert (found["input"], found["heatmap"]) == (given, name)
    assert len(shown(out)) == 2 * len(HOSTILE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]
    folded = set()
    for name in shown(out):
        assert len(os.fsencode(name)) <= 240
        assert not set(name) & set('<>:"/\\|?*') and min(name) >= " "
        assert not name.startswith(".")
        assert not name.endswith((".", " "))
        stem = name.partition(".")[0].rstrip().lower()
        assert stem not in ("con", "aux", "nul", "conin$", "com1", "lpt²")
        folded.add(name.casefold())
    assert len(folded) == 2 * len(HOSTILE)
    # Each finds its own again: no file of another is overwritten.
    for given in HOSTILE:
        results.write(answer(given, None), {})
    assert len(shown(out)) == len(HOSTILE)


@pytest.mark.parametrize("name", ["a.png", "1.2.840.113.dcm", "ü ß.jpg", "n l.png"])
def test_usual_names_stay(name: str) -> None:
    assert safe_name(f"/somewhere/{name}") == name


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    """On Windows both would be one file; simulated by a second name for the file that is there."""
    results = Results(tmp_path)
    results.write(answer("in/A.png"), {})
    os.link(tmp_path / "A.png.json", tmp_path / "a.png.json")
    results.write(answer("in/a.png", OTHER), {})
    assert json.loads((tmp_path / "A.png.json").read_text())["input"] == "in/A.png"
    assert len(shown(tmp_path)) == 3
    # While one of the two is being written, the other does not take its name.
    claimed, _ = results._claim("in/B.png")
    assert (claimed, results._claim("in/b.png")[0][:6]) == ("B.png", "b.png.")


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_planted_links_and_pipes_are_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    names = ("a.png.json", "b.png.heatmap.png", "c.png.sr.dcm", "predictions.csv")
    for name in names:
        (out / name).symlink_to(victim)
    (out / "d.png.json").symlink_to(outside / "new")
    os.mkfifo(out / "e.png.json")  # reading it would never end
    results = Results(out)
    for name in "abcde":
        sides = {HEATMAP_SUFFIX: b"map", REPORT_SUFFIX: b"report"}
        written = results.write(answer(f"{name}.png", name * 64), sides)
        assert results.find(name * 64, f"{name}.png") == written
        for side in (written.heatmap_file, written.sr_file):
            assert not (out / str(side)).is_symlink()
    with results.open_table() as table:
        table.write("row")
    assert victim.read_text() == "mine"
    assert shown(outside) == ["victim"]
    assert (out / "predictions.csv").read_text() == "row"
    # A stored answer that is a link to one elsewhere is none.
    (real,) = (path for path in out.glob("b.png*.json") if not path.is_symlink())
    assert results._read(real.stem) is not None
    (out / "f.png.json").symlink_to(real)
    assert results._read("f.png") is None
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / ".hilum").symlink_to(outside)
    with pytest.raises(WriteError, match=r"\.hilum is no folder"):
        Results(planted).make()
    assert shown(outside) == ["victim"]


def test_pictures_of_others_are_not_replaced(tmp_path: Path) -> None:
    """Results may lie where the inputs are: ``x.sr.dcm`` may be somebody's picture."""
    mine = tmp_path / "x.sr.dcm"
    mine.write_bytes(b"a picture")
    (tmp_path / "y.json").write_text('{"input": "something else"}')
    (tmp_path / "z.json").write_bytes(b"\xff" * 10)
    results = Results(tmp_path)
    for given in "xyz":
        written = results.write(answer(given, given * 64), {REPORT_SUFFIX: b"ours"})
        assert written.sr_file != f"{given}.sr.dcm"
        assert results.find(given * 64, given) == written
    assert mine.read_bytes() == b"a picture"
    assert (tmp_path / "y.json").read_text() == '{"input": "something else"}'


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="choose another --output-dir"):
        Results(tmp_path / "file").make()
    # Looking for an answer makes nothing.
    assert Results(tmp_path / "none").find(KEY, "a") is None
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_tidied_up_while_we_work(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    results = Results(folder)
    results.write(answer("a.png"), {})
    shutil.rmtree(folder / ".hilum")
    results.write(answer("b.png", OTHER), {})
    assert results.find(OTHER, "c.png") is not None
    # A share that is gone: nothing is written to the disk below it.
    shutil.rmtree(folder)
    with pytest.raises(WriteError, match="cannot be written to"):
        results.write(answer("c.png"), {})
    assert not folder.exists()


def test_what_is_drawn_beside_results_is_no_input(tmp_path: Path) -> None:
    for name in ("a.heatmap.png", "a.sr.dcm", "a.sc.dcm", "b.sr.dcm", "a.json", "a.png"):
        (tmp_path / name).touch()
    drawn = [path.name for path in sorted(tmp_path.iterdir()) if is_drawn(path)]
    assert drawn == ["a.heatmap.png", "a.sc.dcm", "a.sr.dcm"]  # b's has no result beside it


# ---- Stored answers ----------------------------------------------------------------------------


def test_json_and_back() -> None:
    full = Prediction(
        "i", "ok", None, {"h": {"label": "x"}}, "net", 1.5, ("lateral",), 2, {"name": "c"},
        ("views", "chain", "heatmap"), None, "i.heatmap.png", KEY, True, "i.sr.dcm", "i.sc.dcm",
        ({"target": "t", "status": "sent", "reason": None},),
    )  # fmt: skip
    found = json.loads(json.dumps(full.to_json()))
    assert list(found)[-8:] == [
        "views", "chain", "heatmap", "key", "stored", "sr", "sc", "delivered",
    ]  # fmt: skip
    assert Prediction.from_json(found) == full
    bare = Prediction("i", "error", "why")
    assert list(bare.to_json()) == [
        "input", "status", "reason", "heads", "backbone", "milliseconds",
    ]  # fmt: skip
    assert Prediction.from_json(bare.to_json()) == bare
    for wrong in ({}, [], {"input": "i", "status": "well", "reason": None, "heads": {}}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Prediction.from_json(wrong)  # type: ignore[arg-type]


def test_a_stored_answer_under_another_name(tmp_path: Path) -> None:
    results = Results(tmp_path)
    first = answer("in/a.dcm", status="ok")
    sides = {HEATMAP_SUFFIX: b"map", REPORT_SUFFIX: b"report", CAPTURE_SUFFIX: b"capture"}
    written = results.write(first, sides)
    assert (written.heatmap_file, written.sr_file) == ("a.dcm.heatmap.png", "a.dcm.sr.dcm")
    found = results.find(KEY, "in/b.dcm")
    assert found == written
    again = results.repeat(found, "in/b.dcm")
    assert (again.input, again.stored, again.sr_file) == ("in/b.dcm", True, "b.dcm.sr.dcm")
    assert again.heads == written.heads
    assert (tmp_path / "b.dcm.sc.dcm").read_bytes() == b"capture"
    assert json.loads((tmp_path / "b.dcm.json").read_text()) == again.to_json()
    # Its own is preferred, and then nothing is written.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    own = results.find(KEY, "in/b.dcm")
    assert own == again
    assert results.repeat(own, "in/b.dcm") == again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert results.find(OTHER, "in/b.dcm") is None
    # The first one may go: the copy stands alone.
    for path in tmp_path.glob("a.dcm*"):
        path.unlink()
    assert results.find(KEY, "in/c.dcm") == again or results.find(KEY, "in/b.dcm") == again


def test_a_refusal_names_the_file_it_is_repeated_for(tmp_path: Path) -> None:
    results = Results(tmp_path)
    refused = answer("in/a.png", status="refused", reason="blank: in/a.png: black", heads={})
    results.write(refused, {})
    found = results.find(KEY, "in/b.png")
    assert found is not None
    assert results.repeat(found, "in/b.png").reason == "blank: in/b.png: black"


@pytest.mark.parametrize(
    "more",
    [
        {"status": "error", "reason": "in/a.png: cannot be read"},
        {"status": "refused", "reason": "unsupported_transfer_syntax: in/a.png: no decoder"},
        {"key": None},
    ],
)
def test_what_is_never_given_again(tmp_path: Path, more: dict[str, Any]) -> None:
    results = Results(tmp_path)
    results.write(answer("in/a.png", **more), {})
    assert shown(tmp_path) == ["a.png.json"]
    assert results.find(KEY, "in/a.png") is None
    assert results.find(KEY, "in/b.png") is None


@pytest.mark.parametrize("damage", ["json", "side", "note", "half", "liar"])
def test_damaged_notes_and_results_are_no_answers(tmp_path: Path, damage: str) -> None:
    results = Results(tmp_path)
    written = results.write(answer("in/a.png"), {REPORT_SUFFIX: b"report"})
    note = tmp_path / ".hilum" / f"{KEY}.json"
    if damage == "json":
        (tmp_path / "a.png.json").unlink()
    elif damage == "side":
        (tmp_path / "a.png.sr.dcm").unlink()
    elif damage == "half":
        path = tmp_path / "a.png.json"
        path.write_text(path.read_text()[:-20])
    elif damage == "note":
        # What a note says is never a path out of the folder.
        (tmp_path.parent / "a.png.json").write_bytes((tmp_path / "a.png.json").read_bytes())
        (tmp_path / "a.png.json").unlink()
        for text in ("{", "[]", '{"result": 3}', '{"result": "../a.png"}', "[" * 100_000):
            note.write_text(text)
            assert results.find(KEY, "in/b.png") is None
        return
    elif damage == "liar":
        path = tmp_path / "a.png.json"
        said = json.loads(path.read_text()) | {"sr": "../../secret"}
        path.write_text(json.dumps(said))
    assert results.find(KEY, "in/a.png") is None
    assert results.find(KEY, "in/b.png") is None
    assert results.write(answer("in/a.png"), {REPORT_SUFFIX: b"report"}) == written
    assert results.find(KEY, "in/b.png") == written


def test_another_picture_at_the_same_path(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(answer("in/a.png"), {HEATMAP_SUFFIX: b"old", REPORT_SUFFIX: b"old"})
    written = results.write(answer("in/a.png", OTHER), {HEATMAP_SUFFIX: b"new"})
    assert shown(tmp_path) == ["a.png.heatmap.png", "a.png.json"]
    assert (tmp_path / "a.png.heatmap.png").read_bytes() == b"new"
    assert written.sr_file is None
    assert results.find(KEY, "in/a.png") is None
    # The same picture, asked for with less: what was made of it is still its own.
    more = results.write(answer("in/a.png", OTHER), {REPORT_SUFFIX: b"newer"})
    assert (more.heatmap_file, more.sr_file) == ("a.png.heatmap.png", "a.png.sr.dcm")
    # Predicted anew on purpose, perhaps with another outcome: not so.
    forced = results.write(answer("in/a.png", OTHER), {}, forget=True)
    assert forced.heatmap_file is None
    assert shown(tmp_path) == ["a.png.json"]


def test_deliveries_are_remembered(tmp_path: Path) -> None:
    results = Results(tmp_path)
    written = results.write(answer("in/a.dcm"), {REPORT_SUFFIX: b"report"})
    assert results.deliveries(KEY) == []
    said = {"file": "a.dcm.sr.dcm", "target": "X@y:1", "status": "sent", "reason": None}
    results.note_deliveries(KEY, [said])
    results.note_delivered(replace(written, delivered=(said,)))
    assert json.loads((tmp_path / "a.dcm.json").read_text())["delivered"] == [said]
    results.write(written, {REPORT_SUFFIX: b"report"})
    assert results.deliveries(KEY) == [said]
    results.write(written, {REPORT_SUFFIX: b"report"}, forget=True)
    assert results.deliveries(KEY) == []


def test_many_threads_and_one_name(tmp_path: Path) -> None:
    """Every input its own result, whoever else is called the same at the same time."""
    given = [f"in/{number}/same.png" for number in range(40)]

    def work(names: list[str]) -> None:
        results = Results(tmp_path)
        for name in names:
            results.write(answer(name, None), {HEATMAP_SUFFIX: name.encode()})

    threads = [threading.Thread(target=work, args=(given[i::4] * 2,)) for i in range(4)]
    threads += [threading.Thread(target=work, args=(given[::7],))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted({one["input"] for one in said}) == sorted(given)
    for one in said:
        assert (tmp_path / one["heatmap"]).read_bytes() == one["input"].encode()


# In a process of its own, which has no other threads: for each number of steps a child that ends
# without any cleaning up before that step, and then the same work again.
KILLED = """
import itertools, json, os, sys
from pathlib import Path
from engine.answers import Prediction
from engine.results import HEATMAP_SUFFIX, REPORT_SUFFIX, Results

out = Path(sys.argv[1])
names = ("replace", "unlink", "link", "open", "fsync", "mkdir")
real = {name: getattr(os, name) for name in names}

def die_before(step):
    count = itertools.count()
    def counted(name):
        def call(*args, **more):
            if next(count) == step:
                os._exit(9)
            return real[name](*args, **more)
        return call
    for name in names:
        setattr(os, name, counted(name))

def content(key, suffix):
    return f"{key}{suffix}".encode()

def check(folder):
    results = Results(folder)
    for path in folder.glob("*.json"):
        said = json.loads(path.read_bytes())
        for name, suffix in (("heatmap", HEATMAP_SUFFIX), ("sr", REPORT_SUFFIX)):
            if said.get(name):
                assert (folder / said[name]).read_bytes() == content(said["key"], suffix), said
    return results

def work(folder, key, suffixes):
    results = Results(folder)
    found = results.find(key, "in/a.dcm")
    if found is None:
        sides = {suffix: content(key, suffix) for suffix in suffixes}
        found = results.write(Prediction("in/a.dcm", "ok", key=key), sides)
    return results.repeat(found, "in/b.dcm")

steps = 0
for step in itertools.count():
    folder = out / str(step)
    ends = []
    both = (HEATMAP_SUFFIX, REPORT_SUFFIX)
    for key, suffixes in (("a" * 64, both), ("b" * 64, both[:1])):
        child = os.fork()
        if child == 0:
            die_before(step)
            work(folder, key, suffixes)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert ends[-1] in (0, 9), ends
        check(folder)
        again = work(folder, key, suffixes)
        results = check(folder)
        assert results.find(key, "in/b.dcm").input == "in/b.dcm"
        assert results.find(key, "in/a.dcm").input == "in/a.dcm"
        assert again.heatmap_file == "b.dcm.heatmap.png", again
    assert (again.sr_file, list(folder.glob("*.sr.dcm"))) == (None, []), step
    assert len(list(folder.glob("*.json"))) == 2, (step, list(folder.glob("*")))
    if ends == [0, 0]:
        break
    steps = step
print(steps)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, as POSIX has them")
def test_killed_before_any_step_nothing_is_wrong_and_nothing_lost(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


# ---- Keys --------------------------------------------------------------------------------------


def test_keys_follow_from_all_that_an_answer_follows_from() -> None:
    base = ("sha256:1.2", ["x", "y"], None, ("lateral", "blank"), 0, "1")
    keys = {
        result_key(*one)  # type: ignore[arg-type]
        for one in (
            base,
            ("sha256:1.3", *base[1:]),
            ("1.2 sha256:1.2", *base[1:]),
            (base[0], ["x"], *base[2:]),
            (base[0], ["xy"], *base[2:]),
            (*base[:2], "c", *base[3:]),
            (*base[:3], (), 0, "1"),
            (*base[:3], ("lateral",), 0, "1"),
            (*base[:4], 2, "1"),
            (*base[:5], "2"),
        )
    }
    assert len(keys) == 10
    assert all(len(key) == 64 for key in keys)
    assert result_key(*base[:3], ("blank", "lateral", "blank"), 0, "1") == result_key(*base)  # type: ignore[arg-type]


def test_a_dicom_picture_is_its_data_set_and_not_its_uid(tmp_path: Path) -> None:
    import pydicom

    path = write_dicom(draw_phantom(1, "none", height=128, width=128), tmp_path / "a.dcm")
    identity = picture_identity(path)
    dataset = pydicom.dcmread(path)

    def after(change: Callable[[pydicom.Dataset], None]) -> str | None:
        other = pydicom.dcmread(path)
        change(other)
        assert other.SOPInstanceUID == dataset.SOPInstanceUID
        other.save_as(tmp_path / "b.dcm")
        return picture_identity(tmp_path / "b.dcm")

    def set_meta(other: pydicom.Dataset) -> None:
        other.file_meta.ImplementationVersionName = "ANOTHER"
        other.file_meta.MediaStorageSOPInstanceUID = "1.9.9"
        other.file_meta.PrivateInformationCreatorUID = "1.2.3"
        other.file_meta.PrivateInformation = b"x" * 600
        other.preamble = b"y" * 128

    def set_pixel(other: pydicom.Dataset) -> None:
        other.PixelData = other.PixelData[:-2] + bytes([other.PixelData[-2] ^ 1, 0])

    assert identity is not None
    # Who stored it, and how, does not count.
    assert after(set_meta) == identity
    assert after(lambda _: None) == identity
    others = {
        after(set_pixel),
        after(lambda other: setattr(other, "PatientID", "another")),
        after(lambda other: setattr(other, "PhotometricInterpretation", "MONOCHROME1")),
    }
    whole = path.read_bytes()
    (tmp_path / "c.dcm").write_bytes(
        whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1)
    )
    others.add(picture_identity(tmp_path / "c.dcm"))
    assert len(others - {identity}) == 4


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return (
        (tag >> 16).to_bytes(2, "little")
        + (tag & 0xFFFF).to_bytes(2, "little")
        + vr
        + len(value).to_bytes(2, "little")
        + value
    )


SYNTAX = element(0x00020010, b"UI", b"1.2.840.10008.1.2.1\0")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        bytes(128) + b"DICM",
        bytes(128) + b"DICM" + SYNTAX[:-1],
        bytes(128) + b"DICM" + element(0x00020003, b"UI", b"1.2"),
        bytes(128) + b"DICM" + element(0x00020003, b"UI", b"1.2")[:5],
        bytes(128) + b"DICM" + b"\x02\x00\x02\x01OB\0\0\xff\xff\xff\xff" + SYNTAX,
        bytes(128) + b"DICX" + SYNTAX,
    ],
)  # fmt: skip
def test_whatever_is_out_of_the_ordinary_counts_whole(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(head)
    assert picture_identity(path) == f"sha256:{hashlib.sha256(head).hexdigest()}"


def test_files_without_identity(tmp_path: Path) -> None:
    assert picture_identity(tmp_path / "none") is None
    assert picture_identity(tmp_path) is None
    assert picture_identity("nul\0byte") is None
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert picture_identity(tmp_path / "pipe") is None
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.truncate((1 << 30) + 1)
    assert picture_identity(huge) is None


def test_giving_a_stored_answer_loads_nothing() -> None:
    code = (
        "import sys, engine.results, engine.worker\n"
        "heavy = ('numpy', 'cffi', 'openvino', 'PIL', 'pydicom', 'tqdm', 'csv', 'hashlib',"
        " 'urllib.request', 'tomllib', 'numba')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
