from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_helpers import (
    digests,
    maker,
    notes_of,
    run_python,
    write_small,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import formats
from formats import ContainerError
from formats.writer import ContainerWriter

DIM = 4
NOTES = notes_of(DIM)


def new_writer(path: Path, **arguments) -> ContainerWriter:
    return ContainerWriter(path, dim=arguments.pop("dim", DIM), **digests(NOTES), **arguments)


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def rows(n: int) -> np.ndarray:
    return maker.make_features(n, DIM)


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether rows of one group are rows of one group on the other side too, and vice versa."""
    pairs = {*zip(one.tolist(), other.tolist(), strict=True)}
    return len(pairs) == len(np.unique(one)) == len(np.unique(other))


# ---- round trips -------------------------------------------------------------------------------


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    n_rows = data.draw(st.one_of(st.integers(1, 40), st.integers(1000, 3000)), "n_rows")
    dim = data.draw(st.integers(1, 20), "dim")
    dtype = data.draw(st.sampled_from(["f32", "f16", "i8"]), "dtype")
    multilabel = data.draw(st.booleans(), "multilabel")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    scale = 10.0 ** data.draw(st.integers(-6, 4), "exponent")
    features = (rng.standard_normal((n_rows, dim)) * scale).astype(np.float32)
    if dtype == "f16":
        features = np.clip(features, -60000, 60000)
    n_classes = data.draw(st.integers(1, 5), "n_classes")
    everything = {
        "label": rng.integers(-2, 2, (n_rows, n_classes))
        if multilabel
        else rng.integers(0, n_classes, n_rows),
        "split": rng.integers(0, 4, n_rows),
        "group": np.unique(rng.integers(0, n_rows, n_rows), return_inverse=True)[1],
        "sample_key": rng.integers(0, 256, (n_rows, 16)),
        "source": rng.integers(0, 3, n_rows),
        "view": rng.integers(0, 256, n_rows),
        "sex": rng.integers(0, 4, n_rows),
        "age": rng.choice([0, 45, 90, 255], n_rows),
        "projection": rng.integers(0, 6, n_rows),
    }
    names = data.draw(st.sets(st.sampled_from(sorted(everything))), "columns")
    columns = {name: everything[name] for name in names}
    notes = notes_of(dim, tuple(f"class {i}" for i in range(n_classes)))
    notes["multilabel"] = multilabel and "label" in names
    notes["sources"] = ["unknown", "a", "b"]
    path = tmp_path / "x.hilum"
    edges = sorted({0, n_rows, *rng.integers(0, n_rows + 1, 3).tolist()})
    order = data.draw(st.sampled_from(["given", "random"]), "group_order")
    writer = ContainerWriter(path, dim=dim, dtype=dtype, group_order=order, **digests(notes))
    with writer:
        for start, stop in itertools.pairwise(edges):
            part = {name: values[start:stop] for name, values in columns.items()}
            writer.append(features[start:stop], **part)
        writer.seal(notes)

    with formats.open_container(path) as c:
        c.verify()
        assert (c.n_rows, c.dim, c.dtype) == (n_rows, dim, dtype)
        assert set(c.columns) == names
        for name in names - {"group"} if order == "random" else names:
            assert np.array_equal(c.columns[name], columns[name]), name
        if "group" in names:
            assert same_partition(c.groups, columns["group"])
            assert set(c.groups.tolist()) == set(range(c.n_groups))
        if dtype == "f32":
            assert np.array_equal(c.features, features)
        elif dtype == "f16":
            assert np.array_equal(c.features, features.astype(np.float16))
        else:
            largest = np.abs(features).max(axis=0)
            assert c.scales == pytest.approx(np.where(largest == 0, 1, largest / 127), rel=1e-6)
            assert (np.abs(c.read_rows() - features) <= c.scales * 0.5001).all()
            assert (np.abs(c.features).max(axis=0) == np.where(largest == 0, 0, 127)).all()
        if {"group", "split"} <= names:
            marked = columns["split"] > 0
            pairs = {*zip(columns["group"][marked], columns["split"][marked], strict=True)}
            assert c.group_clean == (len({g for g, _ in pairs}) == len(pairs))
    path.unlink()


def test_i8_of_zeros_tiny_and_huge_features(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    huge = 3.4028235e38  # the largest: 127 steps of the 127th part of it, rounded, are more
    features = np.array([[0, 1e-44, huge, -5], [0, -1e-44, -3e38, 5]], np.float32)
    formats.write_container(path, features, NOTES, dtype="i8")
    with formats.open_container(path) as c:
        assert c.features[:, 0].tolist() == [0, 0]
        assert c.scales[0] == 1
        assert (np.abs(c.read_rows() - features) <= c.scales * 0.51).all()


def test_pieces_do_not_change_the_bytes(tmp_path: Path) -> None:
    features = maker.make_features(3000, DIM)
    labels = np.arange(3000) % 2
    for dtype in ("f32", "f16", "i8"):
        for name, size in (("whole", 3000), ("pieces", 7), ("chunks", 1024)):
            with new_writer(
                tmp_path / name, dtype=dtype, expected_rows=size, _uuid=bytes(16)
            ) as writer:
                for i in range(0, 3000, size):
                    writer.append(features[i : i + size], label=labels[i : i + size])
                assert writer.seal(NOTES) == tmp_path / name
        contents = {(tmp_path / n).read_bytes() for n in ("whole", "pieces", "chunks")}
        assert len(contents) == 1


def test_uuid_is_random(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_small(tmp_path / name)
    first, second = (formats.open_container(tmp_path / n).uuid for n in ("a", "b"))
    assert first != second
    assert len(first) == 32


def test_appended_arrays_may_be_reused(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    buffer = np.zeros((2, DIM), np.float32)
    labels = np.zeros(2, np.uint16)
    with new_writer(path, dtype="f32") as writer:
        for value in range(5):
            buffer[:] = value
            labels[:] = value % 2
            writer.append(buffer, label=labels)
        writer.seal(NOTES)
    with formats.open_container(path) as c:
        assert c.features[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert c.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_sample_keys_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    keys = np.array([b"0123456789abcdef", b"fedcba9876543210"], "S16")
    formats.write_container(path, rows(2), NOTES, columns={"sample_key": keys})
    assert formats.open_container(path).sample_keys.tobytes() == keys.tobytes()


def test_withdrawn_rows_are_stored_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    features = rows(3)
    features[1] = np.nan
    formats.write_container(path, features, NOTES, dtype="f32", columns={"row_flags": [0, 1, 0]})
    assert np.isnan(features[1]).all()  # the caller's own array stays as it was
    with formats.open_container(path) as c:
        assert not c.features[1].any()
        assert c.rows().tolist() == [0, 2]


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [0, 70000], "row 1: found 70000, expected 0 to 65534"),
        ("label", [0, -1], "found -1"),
        ("label", [0.0, 1.0], "is float64, expected whole numbers"),
        ("label", [[1, 2], [0, 0]], "found 2, expected -2 to 1"),
        ("label", [0], r"shape \(1,\), expected \(2,\)"),
        ("split", [1, 4], "0 is none, 1 train, 2 valid, 3 test"),
        ("split", ["train", "test"], "expected whole numbers"),
        ("group", [-1, 0], "found -1"),
        ("age", [91, 3], "90 stands for 90 or more"),
        ("age", [3, 256], "found 256"),
        ("sex", [4, 0], "found 4"),
        ("projection", [6, 0], "found 6"),
        ("row_flags", [2, 0], "Bit 0 means withdrawn"),
        ("source", [0, 256], "index into the notes' sources"),
        ("sample_key", [[1] * 15] * 2, r"expected \(2, 16\)"),
        ("patient", [0, 1], "no column 'patient', expected some of label, split, group"),
    ],
)
def test_columns_are_checked_before_anything_is_accepted(
    tmp_path: Path, column: str, values: list, message: str
) -> None:
    with new_writer(tmp_path / "x.hilum") as writer:
        with pytest.raises(ValueError, match=message):
            writer.append(rows(2), **{column: values})
        assert writer.n_rows == 0
        writer.append(rows(2))  # the writer is still usable
        writer.seal(NOTES)
    assert formats.open_container(tmp_path / "x.hilum").n_rows == 2


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\), expected \(n, 4\)"),
        (np.zeros(4, np.float32), r"shape \(4,\)"),
        (np.full((2, 4), "x"), "expected float32"),
        (np.array([[0, 0, 0, 0], [0, 0, np.nan, 0]], np.float32), "row 6, feature 2 is nan"),
        (np.array([[0, 0, 0, -np.inf]], np.float32), "row 5, feature 3 is -inf"),
        (np.array([[0, 70000, 0, 0]], np.float32), "row 5, feature 1 is 70000.0; f16 holds up to"),
    ],
)
def test_features_are_checked(tmp_path: Path, features: np.ndarray, message: str) -> None:
    with new_writer(tmp_path / "x.hilum") as writer:
        writer.append(rows(5))
        with pytest.raises(ValueError, match=message):
            writer.append(features)
        assert writer.n_rows == 5
    assert files_in(tmp_path) == []


def test_f32_takes_what_f16_does_not(tmp_path: Path) -> None:
    formats.write_container(tmp_path / "x", np.full((1, DIM), 1e30), NOTES, dtype="f32")
    with pytest.raises(ValueError, match=r"is 1e\+60"):
        formats.write_container(tmp_path / "x", np.full((1, DIM), 1e60), NOTES, dtype="f32")


def test_the_same_columns_each_time(tmp_path: Path) -> None:
    with new_writer(tmp_path / "x.hilum") as writer:
        writer.append(rows(2), label=[0, 1])
        for wrong in ({}, {"label": [0, 1], "view": [0, 1]}, {"view": [0, 1]}):
            with pytest.raises(ValueError, match="the first rows came with label"):
                writer.append(rows(2), **wrong)
        for wrong in ([[0], [1]], [[0, 1], [1, 0]]):
            with pytest.raises(ValueError, match="the first rows had"):
                writer.append(rows(2), label=wrong)


def test_no_rows_are_no_container(tmp_path: Path) -> None:
    with new_writer(tmp_path / "x.hilum") as writer:
        writer.append(np.empty((0, DIM)), label=[])
        with pytest.raises(ValueError, match="no rows"):
            writer.seal(NOTES)
    with pytest.raises(ValueError, match="no rows"):
        formats.write_container(tmp_path / "x.hilum", np.empty((0, DIM)), NOTES)
    assert files_in(tmp_path) == []


def seal_with(path: Path, notes: dict, n_values: dict | None = None, **columns) -> None:
    formats.write_container(path, rows(4), notes, columns=columns, n_values=n_values)


def test_columns_must_fit_the_notes(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with pytest.raises(ValueError, match="column label, row 2: found 2, but the notes name 2"):
        seal_with(path, NOTES, label=[0, 1, 2, 0])
    with pytest.raises(formats.NotesError, match="sources: is missing"):
        seal_with(path, NOTES, source=[0, 0, 0, 0])
    with pytest.raises(ValueError, match="column source, row 3: found 1, but the notes name 1"):
        seal_with(path, {**NOTES, "sources": ["a"]}, source=[0, 0, 0, 1])
    with pytest.raises(ValueError, match="n_values of group is 1, expected 2"):
        seal_with(path, NOTES, {"group": 1}, group=[0, 0, 1, 1])
    with pytest.raises(ValueError, match="n_values of label is 3, expected 2"):
        seal_with(path, NOTES, {"label": 3}, label=[0, 1, 1, 0])
    with pytest.raises(ValueError, match="n_values names 'group'"):
        seal_with(path, NOTES, {"group": 3}, label=[0, 1, 1, 0])
    with pytest.raises(formats.NotesError, match="multilabel: found False"):
        seal_with(path, NOTES, label=[[0, 1]] * 4)
    with pytest.raises(formats.NotesError, match="classes: found 2 names, but the labels have 3"):
        seal_with(path, {**NOTES, "multilabel": True}, label=[[0, 1, 1]] * 4)
    with pytest.raises(formats.NotesError, match="blocks: they cover 5 features, expected 4"):
        seal_with(path, notes_of(5))
    other = {**NOTES, "backbone": {"name": "golden", "sha256": "00" * 32}}
    with (
        new_writer(path) as writer,
        pytest.raises(formats.NotesError, match="but backbone_digest is abab"),
    ):
        writer.append(rows(1))
        writer.seal(other)
    other = {**NOTES, "preprocessing": {"version": 9}}
    with (
        new_writer(path) as writer,
        pytest.raises(formats.NotesError, match="but preprocessing_digest is"),
    ):
        writer.append(rows(1))
        writer.seal(other)
    assert files_in(tmp_path) == []


def test_groups_are_numbered_without_holes(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    writer = new_writer(path, group_order="given")
    with writer:
        writer.append(rows(4), group=[70_000, 3, 70_000, 12])
        writer.seal(NOTES, n_values={"group": 80_000})
    with formats.open_container(path) as c:
        assert c.groups.tolist() == [2, 0, 2, 1]
        assert c.n_groups == 3


def test_many_single_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path, dtype="f32") as writer:
        for i in range(2100):
            writer.append(rows(1) + i, label=[i % 2], view=[i % 256])
        writer.seal(NOTES)
    with formats.open_container(path) as c:
        assert np.array_equal(c.features[:, 0], rows(1)[0, 0] + np.arange(2100))
        assert np.array_equal(c.labels, np.arange(2100) % 2)
        assert np.array_equal(c.views, np.arange(2100) % 256)


def test_notes_may_be_corrected_without_losing_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path) as writer:
        writer.append(rows(4))
        with pytest.raises(formats.NotesError, match=r"about\.title"):
            writer.seal({**NOTES, "about": {"title": "scanned 2019-03-07"}})
        writer.seal({**NOTES, "about": {"title": "scanned 2019"}})
    assert formats.open_container(path).notes["about"] == {"title": "scanned 2019"}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dtype", "f64"),
        ("dim", 0),
        ("dim", 65537),
        ("expected_rows", 0),
        ("expected_rows", 2**31),
        ("backbone_digest", "ab"),
        ("preprocessing_digest", "xy" * 32),
    ],
)
def test_arguments_are_checked(tmp_path: Path, argument: str, value: object) -> None:
    arguments = {"dim": DIM, **digests(NOTES), argument: value}
    with pytest.raises(ValueError, match=argument):
        ContainerWriter(tmp_path / "x.hilum", **arguments)
    assert files_in(tmp_path) == []


# ---- whole or not at all -----------------------------------------------------------------------


def test_part_is_there_while_writing_and_is_no_container(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path) as writer:
        writer.append(rows(3000))
        assert files_in(tmp_path) == ["x.hilum.part"]
        with pytest.raises(formats.NotAContainer, match="never finished"):
            formats.open_container(tmp_path / "x.hilum.part")
        writer.seal(NOTES)
        assert files_in(tmp_path) == ["x.hilum"]
        for use in (lambda: writer.append(rows(1)), lambda: writer.seal(NOTES)):
            with pytest.raises(formats.ContainerError, match="writer is sealed"):
                use()
    assert files_in(tmp_path) == ["x.hilum"]


@pytest.mark.parametrize("dtype", ["f16", "i8"])
@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_exception_removes_the_part(tmp_path: Path, exception: type, dtype: str) -> None:
    path = tmp_path / "x.hilum"
    write_small(path)
    before = path.read_bytes()
    with pytest.raises(exception), new_writer(path, dtype=dtype) as writer:
        writer.append(rows(2000))
        raise exception
    assert files_in(tmp_path) == ["x.hilum"]
    assert path.read_bytes() == before


def test_forgotten_seal_leaves_nothing(tmp_path: Path) -> None:
    with new_writer(tmp_path / "x.hilum") as writer:
        writer.append(rows(2))
    assert files_in(tmp_path) == []
    writer = new_writer(tmp_path / "x.hilum")
    writer.append(rows(2))
    del writer
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "ftruncate", "pwrite", "replace"])
def test_failure_or_interrupt_while_sealing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for failure in (OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()):
        with new_writer(tmp_path / "x.hilum") as writer:
            writer.append(rows(2))

            def fail(*_: object, failure: BaseException = failure, **__: object) -> None:
                raise failure

            with monkeypatch.context() as patch:
                patch.setattr(Path if call == "replace" else os, call, fail)
                expected = formats.ContainerError if isinstance(failure, OSError) else type(failure)
                with pytest.raises(expected):
                    writer.seal(NOTES)
        assert files_in(tmp_path) == []


def test_self_check_refuses_to_name_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("formats.writer.crc32c", lambda *_: 1)
    with pytest.raises(formats.Corrupt):
        write_small(tmp_path / "x.hilum")
    assert files_in(tmp_path) == []


def test_mapped_old_container_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path, n_rows=2000, dtype="f32")
    old = formats.open_container(path)
    expected = old.features.copy()
    formats.write_container(path, -maker.make_features(10, DIM), NOTES)
    assert np.array_equal(old.features, expected)
    assert formats.open_container(path).n_rows == 10


def test_overwrite_may_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.hilum"
    write_small(path)
    before = path.read_bytes()
    with pytest.raises(formats.ContainerError, match="exists already"):
        write_small(path, overwrite=False)
    assert path.read_bytes() == before
    path.unlink()
    with new_writer(path, overwrite=False) as writer:
        writer.append(rows(1))
        path.write_bytes(b"mine")
        with pytest.raises(formats.ContainerError, match="made by another program"):
            writer.seal(NOTES)
    assert path.read_bytes() == b"mine"
    assert files_in(tmp_path) == ["x.hilum"]


OTHER_KINDS = {
    "image.png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG image"),
    "xray.dcm": (bytes(128) + b"DICM" + bytes(99), "DICOM file"),
    "labels.csv": (b"file,label\n", "text file"),
    "head.safetensors": ((40).to_bytes(8, "little") + b'{"' + bytes(50), "safetensors"),
    "short": (b"abc", "text file"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
@pytest.mark.parametrize("suffix", ["", ".part"])
def test_files_of_another_kind_are_not_replaced(tmp_path: Path, name: str, suffix: str) -> None:
    data, looks = OTHER_KINDS[name]
    there = tmp_path / (name + suffix)
    there.write_bytes(data)
    with pytest.raises(formats.ContainerError, match=rf"no container: .*{looks}.*another name"):
        new_writer(tmp_path / name)
    assert there.read_bytes() == data
    assert files_in(tmp_path) == [there.name]


def test_empty_and_unfinished_files_are_replaced(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("unfinished", b"\x89HILPART" + bytes(99))):
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}.part").write_bytes(data)
        write_small(tmp_path / name)
        formats.open_container(tmp_path / name).verify()
    assert files_in(tmp_path) == ["empty", "unfinished"]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links cannot be told from files")
@pytest.mark.parametrize("raced", [False, True])
def test_a_part_that_is_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raced: bool
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (tmp_path / "x.hilum.part").symlink_to(victim)
    if raced:  # the link was made after the writer had looked
        monkeypatch.setattr(formats.ContainerWriter, "_refuse_other_kinds", lambda self: None)
    with pytest.raises(formats.ContainerError, match=r"x\.hilum\.part: is a link.*Remove the link"):
        new_writer(tmp_path / "x.hilum")
    assert victim.read_bytes() == b""
    assert files_in(tmp_path) == ["victim", "x.hilum.part"]


def test_a_folder_that_cannot_be_opened_is_no_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with permissions -wx, which do not hold for root: the rename is done by then."""
    real = os.open

    def refuse_folders(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse_folders)
    write_small(tmp_path / "x.hilum")
    formats.atomic_write(tmp_path / "y", b"y")
    monkeypatch.undo()
    formats.open_container(tmp_path / "x.hilum").verify()
    assert (tmp_path / "y").read_bytes() == b"y"


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path) as first:
        first.append(rows(1))
        with pytest.raises(formats.ContainerError, match="another program is writing it"):
            new_writer(path)
        assert files_in(tmp_path) == ["x.hilum.part"]
        first.seal(NOTES)
    assert formats.open_container(path).n_rows == 1
    with new_writer(path) as second:
        second.append(rows(2))
        second.seal(NOTES)
    assert formats.open_container(path).n_rows == 2


def test_part_of_a_killed_writer_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    code = (
        "import os, sys\n"
        "import numpy as np\n"
        "from formats import ContainerWriter\n"
        "w = ContainerWriter(sys.argv[1], dim=4, dtype='i8', expected_rows=50_000,\n"
        "    backbone_digest='ab' * 32, preprocessing_digest='ab' * 32)\n"
        "w.append(np.ones((5000, 4)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert run_python(code, str(path)).returncode == -9
    assert files_in(tmp_path) == ["x.hilum.part"]
    with pytest.raises(formats.NotAContainer):
        formats.open_container(tmp_path / "x.hilum.part")
    write_small(path)
    formats.open_container(path).verify()
    assert files_in(tmp_path) == ["x.hilum"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_control_c_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "import numpy as np\n"
        "from formats import ContainerWriter\n"
        "with ContainerWriter(sys.argv[1], dim=4, backbone_digest='ab' * 32,\n"
        "        preprocessing_digest='ab' * 32) as w:\n"
        "    w.append(np.ones((5000, 4)))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x.hilum")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    assert files_in(tmp_path) == []


# ---- what the system refuses -------------------------------------------------------------------


def test_missing_vanished_and_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(formats.ContainerError, match=r"folder .*gone does not exist. Create it"):
        new_writer(tmp_path / "gone" / "x.hilum")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(formats.ContainerError, match="is a file, expected a folder"):
        new_writer(tmp_path / "file" / "x.hilum")
    with pytest.raises(formats.ContainerError, match="this is a folder"):
        new_writer(tmp_path)
    folder = tmp_path / "vanishing"
    folder.mkdir()
    with new_writer(folder / "x.hilum") as writer:
        writer.append(rows(1))
        shutil.rmtree(folder)
        with pytest.raises(formats.ContainerError, match="vanishing"):
            writer.seal(NOTES)
    assert files_in(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    code = (
        "import os, sys\n"
        "from formats import ContainerError, ContainerWriter\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try:\n"
        "    ContainerWriter(sys.argv[1], dim=4, backbone_digest='ab' * 32,\n"
        "        preprocessing_digest='ab' * 32)\n"
        "except ContainerError as exc: print(exc)\n"
    )
    result = run_python(code, str(folder / "x.hilum"))
    assert "may not be written to" in result.stdout, result.stderr
    assert "Choose another output folder" in result.stdout


FULL = """
import resource, sys
import numpy as np
import formats
limit = int(sys.argv[2])
if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
notes = {"classes": [], "multilabel": False, "backbone": {"name": "x", "sha256": "ab" * 32},
    "preprocessing": {"version": 1},
    "blocks": [{"tap": "a", "pooling": "b", "offset": 0, "width": 64}]}
for dtype in ("f32", "f16", "i8"):
    for expected in (None, 2000):
        try:
            with formats.ContainerWriter(sys.argv[1], dim=64, dtype=dtype,
                    expected_rows=expected, backbone_digest="ab" * 32,
                    preprocessing_digest=formats.preprocessing_digest({"version": 1})) as writer:
                for _ in range(20):
                    writer.append(np.ones((100, 64)))
                writer.seal(notes)
        except formats.ContainerError as exc:
            print(exc)
"""


def test_full_disk(tmp_path: Path) -> None:
    mount = shutil.which("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        mount is not None
        and sys.platform == "linux"
        and subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs; test_file_size_limit stands in")
    try:
        result = run_python(FULL, str(folder / "x.hilum"), "0")
        lines = result.stdout.splitlines()
        assert len(lines) == 6, result.stderr
        for line in lines:
            assert "x.hilum: the disk is full" in line
            assert "Free space or choose another output folder" in line
        assert files_in(folder) == []
        with pytest.raises(formats.WriteError, match="the disk is full"):
            formats.atomic_write(folder / "big.json", bytes(1 << 20))
        assert files_in(folder) == []
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_file_size_limit(tmp_path: Path) -> None:
    result = run_python(FULL, str(tmp_path / "x.hilum"), str(32 << 10))
    lines = result.stdout.splitlines()
    assert len(lines) == 6, result.stderr
    assert all("ulimit -f" in line for line in lines)
    assert files_in(tmp_path) == []


def test_file_system_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    write_small(tmp_path / "x.hilum")
    monkeypatch.delattr(os, "posix_fallocate")
    write_small(tmp_path / "x.hilum", dtype="i8")
    formats.open_container(tmp_path / "x.hilum").verify()


def test_more_and_fewer_rows_than_expected(tmp_path: Path) -> None:
    for expected in (1, 5000):
        with new_writer(tmp_path / "x.hilum", expected_rows=expected) as writer:
            writer.append(rows(100))
            writer.seal(NOTES)
        with formats.open_container(tmp_path / "x.hilum") as c:
            c.verify()
            assert c.size_bytes == (tmp_path / "x.hilum").stat().st_size < 8192


# ---- atomic_write ------------------------------------------------------------------------------


def test_atomic_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    assert formats.atomic_write(path, b"old") == path
    with path.open("rb") as reader:
        formats.atomic_write(path, memoryview(b"new"))
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    formats.atomic_write(path, b"")
    assert path.read_bytes() == b""
    if os.name != "nt":
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(formats.WriteError, match="does not exist") as caught:
        formats.atomic_write(tmp_path / "no" / "m.json", b"x")
    assert isinstance(caught.value, OSError)
    assert caught.value.path == tmp_path / "no" / "m.json"
    assert str(caught.value).startswith(str(tmp_path / "no" / "m.json"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        formats.atomic_write(path, b"half")
    assert files_in(tmp_path) == ["m.json"]
    assert path.read_bytes() == b""


# ---- a writer with a job -----------------------------------------------------------------------

JOB = {"images": 3}


def append_some(writer: ContainerWriter, until: int, n_rows: int = 2500) -> None:
    """Append rows in uneven pieces, from where the writer is; every seventh input gives no row."""
    everything = maker.make_features(n_rows, DIM)
    while writer.n_items < until:
        start = writer.n_items
        stop = min(start + 1 + start % 700, until)
        row = np.arange(start, stop)
        row = row[row % 7 != 3]
        columns = {
            "label": row % 2,
            "group": row // 2,
            "sample_key": (row[:, None] + np.arange(16)) % 256,
        }
        writer.append(everything[row], n_items=stop - start, **(columns if len(row) else {}))


@pytest.mark.parametrize("dtype", ["f16", "f32", "i8"])
@pytest.mark.parametrize("group_order", ["random", "given"])
def test_a_writer_goes_on_where_another_stopped(
    tmp_path: Path, dtype: str, group_order: str
) -> None:
    options = {"dtype": dtype, "group_order": group_order, "job": JOB, "seed": 4}
    whole, path = tmp_path / "whole.hilum", tmp_path / "x.hilum"
    with new_writer(whole, **options) as writer:
        append_some(writer, 2500)
        writer.seal(NOTES)
    for until in (1, 900, 1024, 1100, 2500):
        with new_writer(path, resume=True, **options) as writer:
            assert writer.resumed == (until > 1)
            assert writer.n_rows == sum(i % 7 != 3 for i in range(writer.n_items))
            append_some(writer, until)
            assert writer.n_items == until
        assert not path.exists()
        spool = ["x.hilum.part.rows"] if dtype == "i8" else []
        assert files_in(tmp_path) == ["whole.hilum", "x.hilum.part", "x.hilum.part.journal", *spool]
    with new_writer(path, resume=True, **options) as writer:
        writer.seal(NOTES)
    assert files_in(tmp_path) == ["whole.hilum", "x.hilum"]
    assert path.read_bytes() == whole.read_bytes()


def test_without_a_seed_the_earlier_writers_uuid_and_group_numbers_are_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.hilum"
    found = []
    for _ in range(2):
        with new_writer(path, job=JOB) as writer:
            append_some(writer, 900)
        kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for _ in range(2):
            with new_writer(path, job=JOB, resume=True) as writer:
                writer.seal(NOTES)
            found.append(path.read_bytes())
            path.unlink()
            for name, data in kept.items():
                (tmp_path / name).write_bytes(data)
        (tmp_path / "x.hilum.part").unlink()
        (tmp_path / "x.hilum.part.journal").unlink()
    assert found[0] == found[1] != found[2] == found[3]


def test_a_job_is_what_the_earlier_writer_was_given(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path, job={"order": "12"}) as writer:
        append_some(writer, 5)
    with new_writer(path, job={"order": "99"}, resume=True) as writer:
        assert writer.resumed
        assert writer.job == {"order": "12"}
    with pytest.raises(ValueError, match="resume needs a job"):
        new_writer(path, resume=True)


@pytest.mark.parametrize("job", [None, JOB])
def test_rows_of_an_unfinished_run_are_not_lost_by_accident(
    tmp_path: Path, job: dict | None
) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path, job=JOB) as writer:
        append_some(writer, 50)
        n_rows = writer.n_rows
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ContainerError, match=rf"x\.hilum\.part: holds {n_rows} rows .*--resume"):
        new_writer(path, job=job)
    with pytest.raises(ContainerError, match="begun with dtype f16, and now it is f32"):
        new_writer(path, job=JOB, resume=True, dtype="f32")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_job_without_rows_leaves_nothing(tmp_path: Path) -> None:
    with new_writer(tmp_path / "x.hilum", job=JOB):
        pass
    with new_writer(tmp_path / "x.hilum", job=JOB) as writer:
        append_some(writer, 20)
        writer.abandon()
    assert files_in(tmp_path) == []


def test_a_journal_that_a_finished_run_left_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path, job=JOB) as writer:
        append_some(writer, 50)
    (tmp_path / "x.hilum.part").unlink()
    with new_writer(path, job=JOB, resume=True) as writer:
        assert not writer.resumed
        assert writer.n_rows == 0
        append_some(writer, 5)
        writer.seal(NOTES)
    assert files_in(tmp_path) == ["x.hilum"]


def test_the_same_rows_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    def write(name: str, **options: Any) -> bytes:
        with new_writer(tmp_path / name, **options) as writer:
            append_some(writer, 900)
            writer.seal(NOTES)
        return (tmp_path / name).read_bytes()

    assert write("a", seed=1) == write("b", seed=1) == write("c", seed=1, job=JOB)
    assert write("d", seed=2) != write("a", seed=1)
    drawn = [write(name) for name in ("e", "f")]
    assert drawn[0] != drawn[1]
    with formats.open_container(tmp_path / "a") as a, formats.open_container(tmp_path / "d") as d:
        assert a.uuid != d.uuid  # other group numbers are another file
        assert same_partition(a.groups, d.groups)
        assert (a.groups != d.groups).any()


def test_groups_get_random_numbers(tmp_path: Path) -> None:
    write_small(tmp_path / "x", n_rows=400, group_order="random")
    with formats.open_container(tmp_path / "x") as c:
        assert set(c.groups.tolist()) == set(range(200))
        assert same_partition(c.groups, np.arange(400) // 2)
        # 200 numbers in order by chance: less than once in 10**100
        assert abs(np.corrcoef(c.groups, np.arange(400))[0, 1]) < 0.5


def test_given_scales_keep_the_elements(tmp_path: Path) -> None:
    scales = np.array([0.5, 1, 3, 2e-3], np.float32)
    elements = np.random.default_rng(0).integers(-127, 128, (1500, DIM)).astype(np.int8)
    path = tmp_path / "x.hilum"
    for job in (None, JOB):
        with new_writer(path, dtype="i8", scales=scales, job=job) as writer:
            writer.append(elements[:700])
            with pytest.raises(ValueError, match="are float32, expected int8"):
                writer.append(elements[:1].astype(np.float32))
            with pytest.raises(ValueError, match="found the element -128"):
                writer.append(np.full((1, DIM), -128, np.int8))
            writer.append(elements[700:])
            writer.seal(NOTES)
        with formats.open_container(path) as c:
            c.verify()
            assert np.array_equal(c.features, elements)
            assert np.array_equal(c.scales, scales)
    for wrong, words in (
        ({"scales": scales}, "only i8 has scales"),
        ({"scales": scales[:2], "dtype": "i8"}, r"shape \(2,\), expected 4"),
        ({"scales": scales * np.inf, "dtype": "i8"}, "finite"),
        ({"group_order": "sorted"}, "expected 'random' or 'given'"),
    ):
        with pytest.raises(ValueError, match=words):
            new_writer(path, **wrong)


def test_large_appends_are_refused_before_a_row_is_written(tmp_path: Path) -> None:
    for bad, dtype in ((np.nan, "f16"), (-np.inf, "f32"), (65520.0, "f16"), (2.0**128, "f32")):
        for element in (np.float32, np.float64):
            features = maker.make_features(3000, DIM).astype(element)
            with np.errstate(over="ignore"):
                features[2500, 2] = bad
            with new_writer(tmp_path / "x.hilum", dtype=dtype) as writer:
                with pytest.raises(ValueError, match="row 2500, feature 2 is"):
                    writer.append(features)
                assert writer.n_rows == 0
                features[2500, 2] = 65519.9  # rounds to the largest f16
                writer.append(features)
                assert writer.n_rows == 3000


def test_a_run_that_died_behind_the_rename_is_found_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.hilum"
    monkeypatch.setattr("formats.writer._unlink_own", lambda path, descriptor: None)
    with new_writer(path, job=JOB) as writer:
        append_some(writer, 50)
        n_rows = writer.n_rows
        writer.seal(NOTES)
    monkeypatch.undo()
    assert files_in(tmp_path) == ["x.hilum", "x.hilum.part.journal"]
    data = path.read_bytes()
    with new_writer(path, job={"another": 1}, resume=True) as writer:
        assert writer.finished
        assert (writer.n_items, writer.n_rows, writer.job) == (50, n_rows, JOB)
        with pytest.raises(ContainerError, match="the writer is sealed"):
            writer.append(rows(1))
    assert files_in(tmp_path) == ["x.hilum"]
    assert path.read_bytes() == data
    with new_writer(path, job=JOB, resume=True) as writer:  # an older container is no such thing
        assert not writer.finished
        assert not writer.resumed


@pytest.mark.parametrize("resume", [False, True])
def test_an_error_while_an_older_run_is_looked_at_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path, job=JOB) as writer:
        append_some(writer, 50)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in ("formats._journal._read_record", "formats.writer.Journal.open"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, stop)
            new_writer(path, job=JOB, resume=resume)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_header_page_that_never_reached_the_disk_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    with new_writer(path, job=JOB) as writer:
        append_some(writer, 50)
    part = tmp_path / "x.hilum.part"
    part.write_bytes(bytes(4096) + part.read_bytes()[4096:])
    with new_writer(path, job=JOB, resume=True) as writer:
        assert writer.n_items == 50


def test_a_writer_that_failed_says_that_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "x.hilum"
    with new_writer(path, job=JOB) as writer:
        append_some(writer, 50)
        with monkeypatch.context() as patch:
            patch.setattr("formats.writer.write_at", full)
            with pytest.raises(ContainerError, match=r"disk is full: .* 43 rows are kept in x"):
                append_some(writer, 60)
        assert writer.keeps
    with new_writer(path, job=JOB, resume=True) as writer:
        assert writer.n_items == 50
        writer.abandon()
        assert not writer.keeps


def test_a_second_writers_journal_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has renamed its file, and not yet removed its journal, when the second begins."""
    path = tmp_path / "x.hilum"
    second: list[ContainerWriter] = []
    begun: list[bool] = []
    sync = formats.writer.sync_folder

    def begin_another(folder: Path) -> None:
        sync(folder)
        if path.exists() and not begun:
            begun.append(True)
            second.append(new_writer(path, job=JOB, dtype="i8"))
            append_some(second[0], 30)

    with new_writer(path, job=JOB, dtype="i8") as writer:
        append_some(writer, 50)
        monkeypatch.setattr("formats.writer.sync_folder", begin_another)
        writer.seal(NOTES)
    second[0].abort()
    with new_writer(path, job=JOB, dtype="i8", resume=True) as writer:
        assert writer.n_items == 30


def test_a_journal_of_another_version_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.hilum"
    with monkeypatch.context() as patch:
        patch.setattr("formats._journal.Journal.VERSION", 2)
        with new_writer(path, job=JOB) as writer:
            append_some(writer, 50)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for resume in (False, True):
        with pytest.raises(ContainerError, match="another version of Hilum"):
            new_writer(path, job=JOB, resume=resume)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_columns_too_large_for_one_record_are_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("formats._journal.Journal.MAX_BYTES", 1000)
    with new_writer(tmp_path / "x.hilum", job=JOB) as writer:
        with pytest.raises(
            ValueError, match="columns of 8000 bytes at once, expected at most 1000"
        ):
            writer.append(rows(500), sample_key=np.zeros((500, 16), np.uint8))
        assert writer.n_rows == 0


@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_what_is_kept_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    synced = set()

    def sync(descriptors: tuple[int, ...]) -> None:
        synced.update(os.fstat(descriptor).st_ino for descriptor in descriptors)

    monkeypatch.setattr("formats.writer._SYNC_BYTES", 1)
    monkeypatch.setattr("formats.writer._sync", sync)
    with new_writer(tmp_path / "x.hilum", dtype=dtype, job=JOB) as writer:
        append_some(writer, 50)
        writer._syncer.wait()
        named = {path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(named) == (3 if dtype == "i8" else 2)
    assert synced == named


def test_a_disk_that_fails_while_it_is_synced_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(_: tuple[int, ...]) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("formats.writer._SYNC_BYTES", 1)
    monkeypatch.setattr("formats.writer._sync", sync)
    with (
        pytest.raises(ContainerError, match=r"x\.hilum: .*Input/output error"),
        new_writer(tmp_path / "x.hilum") as writer,
    ):
        append_some(writer, 50)
        writer.seal(NOTES)
    assert files_in(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_a_part_renamed_between_opening_and_locking_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, gone = tmp_path / "x.hilum", tmp_path / "gone"
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if not gone.exists():  # another writer seals
            path.with_name("x.hilum.part").rename(gone)
        real(descriptor, how)

    monkeypatch.setattr("formats.writer._fcntl.flock", flock)
    with new_writer(path) as writer:
        append_some(writer, 5)
        writer.seal(NOTES)
    assert gone.read_bytes() == b""
    assert files_in(tmp_path) == ["gone", "x.hilum"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_a_private_container_is_private_while_it_is_replaced(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.hilum"
    path.touch(0o600)
    old = os.umask(0o022)
    try:
        with new_writer(path, dtype=dtype, job=JOB) as writer:
            append_some(writer, 5)
            found = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert len(found) == (4 if dtype == "i8" else 3)
    assert set(found.values()) == {0o600}


def test_an_error_before_the_first_byte_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("formats.writer.Journal.open", stop)
    with pytest.raises(KeyboardInterrupt):
        new_writer(tmp_path / "x.hilum", job=JOB)
    assert files_in(tmp_path) == []
