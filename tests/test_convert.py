from __future__ import annotations

import csv
import errno
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_helpers import GOLDEN, WRITTEN, notes_of, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import formats
from formats import _tables
from formats.convert import export_container, import_container
from formats.errors import ContainerError, NotesError, WriteError

ENDINGS = ("npz", "safetensors", "parquet", "csv")
# what a row that was withdrawn may not keep, whoever wrote it
NEUTRAL = {"split": 0, "sample_key": 0, "sex": 0, "age": 255, "projection": 0}
EVERY = GOLDEN / "valid" / "i8_every_column.hilum"


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def needs(ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def formats_lineage(container: formats.Container) -> list[str]:
    return [container.uuid, *container.notes.get("derived_from", ())]


def same_contents(left: Path, right: Path) -> None:
    """Compare everything two containers hold but their uuids."""
    with formats.open_container(left) as a, formats.open_container(right) as b:
        assert (a.n_rows, a.dim, a.dtype) == (b.n_rows, b.dim, b.dtype)
        assert a.features.tobytes() == b.features.tobytes()
        assert (a.scales is None) == (b.scales is None)
        if a.scales is not None and b.scales is not None:
            assert a.scales.tobytes() == b.scales.tobytes()
        assert list(a.columns) == list(b.columns)
        for name in a.columns:
            assert a.columns[name].dtype == b.columns[name].dtype
            expected = np.array(a.columns[name])
            if a.row_flags is not None and name in NEUTRAL:
                expected[a.row_flags == 1] = NEUTRAL[name]
            np.testing.assert_array_equal(expected, b.columns[name], err_msg=name)
        assert b.notes == {**a.notes, "derived_from": formats_lineage(a)}
        assert (a.n_groups, a.group_clean) == (b.n_groups, b.group_clean)
        assert a.uuid != b.uuid


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "name", [name for name in WRITTEN if "crossing" not in name and "pixels" not in name]
)
def test_there_and_back_changes_nothing(tmp_path: Path, name: str, ending: str) -> None:
    needs(ending)
    source = GOLDEN / "valid" / name
    report = export_container(source, tmp_path / f"table.{ending}")
    assert report.path == tmp_path / f"table.{ending}"
    again = import_container(report.path, tmp_path / "again.hilum", keep_order=True)
    same_contents(source, again.path)
    with formats.open_container(again.path) as container:
        container.verify()
        assert report.n_rows == again.n_rows == container.n_rows
    expected = {f"table.{ending}", "again.hilum"}
    if ending == "csv":
        expected.add("table.csv.notes.json")
    assert files_in(tmp_path) == expected


@st.composite
def small_sets(draw: st.DrawFn) -> dict[str, Any]:
    n, dim, k = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(["f16", "f32", "i8"]))
    width = 16 if dtype == "f16" else 32
    number = st.floats(allow_nan=False, allow_infinity=False, width=width)
    if dtype == "i8":
        number = st.floats(-1e6, 1e6, width=32)
    features = draw(st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=n, max_size=n))

    def column(low: int, high: int) -> Any:
        return np.array(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

    multilabel = draw(st.booleans())
    labels = np.array(
        draw(st.lists(st.lists(st.integers(-2, 1), min_size=k, max_size=k), min_size=n, max_size=n))
    )
    everything = {
        "label": labels if multilabel else column(0, k - 1),
        "group": column(0, n - 1),
        "sample_key": np.array(
            [list(key) for key in draw(st.lists(st.binary(min_size=16, max_size=16),
                                                min_size=n, max_size=n))], np.uint8),
        "source": column(0, 2),
        "view": column(0, 255),
        "sex": column(0, 3),
        "age": np.where(column(0, 5) == 0, 255, column(0, 90)),
        "projection": column(0, 5),
    }  # fmt: skip
    everything["split"] = column(0, 3)[everything["group"]]  # a patient is in one split
    names = draw(st.sets(st.sampled_from(sorted(everything))))
    words = st.text(st.sampled_from("ab,;\" 'äμ"), min_size=1, max_size=4)
    words = words.filter(lambda text: text.strip() == text)
    classes = tuple(draw(st.lists(words, min_size=k, max_size=k, unique=True)))
    more = {"multilabel": multilabel and "label" in names}
    if "source" in names:
        more["sources"] = ["unknown", "b,c", 'd"e']
    return {
        "features": np.array(features, np.float32),
        "dtype": dtype,
        "columns": {name: everything[name] for name in names},
        "notes": notes_of(dim, classes, **more),
    }


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=small_sets())
def test_any_small_set_survives(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: dict[str, Any]
) -> None:
    needs(ending)
    folder = tmp_path_factory.mktemp("any")
    formats.write_container(
        folder / "a.hilum",
        data["features"],
        data["notes"],
        dtype=data["dtype"],
        columns=data["columns"],
    )
    export_container(folder / "a.hilum", folder / f"t.{ending}")
    import_container(folder / f"t.{ending}", folder / "b.hilum", keep_order=True)
    same_contents(folder / "a.hilum", folder / "b.hilum")


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_shuffled_and_a_seed_repeats_it(tmp_path: Path, ending: str) -> None:
    needs(ending)
    source = GOLDEN / "valid" / "f16_two_chunks.hilum"
    export_container(source, tmp_path / f"t.{ending}")
    paths = [tmp_path / f"{i}.hilum" for i in range(4)]
    for path, seed in zip(paths, (3, 3, None, None), strict=True):
        import_container(tmp_path / f"t.{ending}", path, seed=seed)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with formats.open_container(source) as container:
        original = container.features
    orders = []
    for path in paths:
        with formats.open_container(path) as container:
            shuffled = container.features
        assert shuffled.tobytes() != original.tobytes()
        assert sorted(map(bytes, shuffled)) == sorted(map(bytes, original))
        orders.append(shuffled.tobytes())
    assert orders[2] != orders[3]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["f16", "f32", "i8"])
def test_dtype_can_be_changed(tmp_path: Path, ending: str, dtype: str) -> None:
    needs(ending)
    export_container(EVERY, tmp_path / f"t.{ending}")
    import_container(tmp_path / f"t.{ending}", tmp_path / "b.hilum", dtype=dtype, keep_order=True)
    with formats.open_container(EVERY) as a, formats.open_container(tmp_path / "b.hilum") as b:
        assert b.dtype == dtype
        np.testing.assert_allclose(b.read_rows(), a.read_rows(), rtol=1e-3, atol=1e-6)


# ---- what others see ---------------------------------------------------------------------------


def test_numpy_and_safetensors_read_what_is_exported(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    export_container(EVERY, tmp_path / "t.npz")
    export_container(EVERY, tmp_path / "t.safetensors")
    tensors = load_file(tmp_path / "t.safetensors")
    with (
        formats.open_container(EVERY) as container,
        np.load(tmp_path / "t.npz", allow_pickle=False) as arrays,
    ):
        assert set(arrays) == {"features", "scales", "notes", *container.columns}
        assert set(tensors) == {"features", "scales", *container.columns}
        for table in (arrays, tensors):
            np.testing.assert_array_equal(table["features"], container.features)
            np.testing.assert_array_equal(table["scales"], container.scales)
            for name, values in container.columns.items():
                assert table[name].dtype == values.dtype
                np.testing.assert_array_equal(table[name], values)
        notes = {**container.notes, "derived_from": formats_lineage(container)}
        assert json.loads(bytes(arrays["notes"])) == notes
        with safe_open(tmp_path / "t.safetensors", "numpy") as file:
            assert json.loads(file.metadata()["hilum_notes"]) == notes
    # when it was made is nobody's business
    with zipfile.ZipFile(tmp_path / "t.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_parquet_reads_what_is_exported(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    export_container(EVERY, tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    with formats.open_container(EVERY) as container:
        features = np.array(table["features"].to_pylist())
        np.testing.assert_array_equal(features, container.features)
        keys = table["sample_key"].to_pylist()
        assert keys == [bytes(key) for key in container.sample_keys]
        assert table["age"].to_pylist() == container.ages.tolist()
        notes = {**container.notes, "derived_from": formats_lineage(container)}
        assert json.loads(table.schema.metadata[b"hilum_notes"]) == notes


def test_csv_is_in_words(tmp_path: Path) -> None:
    export_container(EVERY, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with formats.open_container(EVERY) as container:
        assert len(rows) == container.n_rows
        for i, row in enumerate(rows):
            assert row["label"] == container.classes[container.labels[i]]
            assert row["split"] == formats.SPLITS[container.splits[i]]
            assert row["group"] == str(container.groups[i])
            assert row["source"] == container.sources_names[container.sources[i]]
            assert row["sex"] == ("", "F", "M", "other")[container.sexes[i]]
            assert row["age"] == ("" if container.ages[i] == 255 else str(container.ages[i]))
            assert [row[f"f{j}"] for j in range(container.dim)] == [
                str(value) for value in container.features[i]
            ]
        sidecar = json.loads((tmp_path / "t.csv.notes.json").read_text(encoding="utf-8"))
        assert sidecar["dtype"] == "i8"
        assert sidecar["notes"] == {
            **container.notes,
            "derived_from": formats_lineage(container),
        }


def test_csv_numbers_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    features = np.array([[0.1, 1 / 3, 65504.0], [-0.0, 6e-8, 2.0]])
    for dtype, expected in (
        ("f16", "0.1,0.3333,6.55e+04\n-0.0,6e-08,2.0\n"),
        ("f32", "0.1,0.33333334,65504.0\n-0.0,6e-08,2.0\n"),
    ):
        formats.write_container(tmp_path / "a.hilum", features, notes_of(3), dtype=dtype)
        export_container(tmp_path / "a.hilum", tmp_path / "t.csv", overwrite=True)
        assert (tmp_path / "t.csv").read_text() == f"f0,f1,f2\n{expected}"


def test_an_existing_table_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_text("mine")
    with pytest.raises(WriteError, match="exists already"):
        export_container(EVERY, tmp_path / "t.npz")
    assert (tmp_path / "t.npz").read_text() == "mine"
    export_container(EVERY, tmp_path / "t.npz", overwrite=True)
    assert (tmp_path / "t.npz").read_bytes()[:2] == b"PK"
    assert files_in(tmp_path) == {"t.npz"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    needs(ending)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    export_container(EVERY, tmp_path / f"old.{ending}")
    before = files_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(formats.Container, "read_stored", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_container(EVERY, tmp_path / f"t.{ending}")
    with monkeypatch.context() as patch:
        patch.setattr("formats.convert._Spool.read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            import_container(tmp_path / f"old.{ending}", tmp_path / "x.hilum")
    assert files_in(tmp_path) == before


def test_a_damaged_container_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(formats.Corrupt, match="rows 0 to"):
        export_container(GOLDEN / "corrupt" / "feature_bit.hilum", tmp_path / "t.npz")
    assert files_in(tmp_path) == set()


def test_an_unknown_ending_is_told(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"'\.xlsx', expected \.npz, "):
        export_container(EVERY, tmp_path / "t.xlsx")
    with pytest.raises(ContainerError, match="'nothing', expected"):
        import_container(tmp_path / "t", tmp_path / "x.hilum")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_missing_file_or_folder_is_told(tmp_path: Path, ending: str) -> None:
    needs(ending)
    with pytest.raises(ContainerError, match=f"gone.{ending}: "):
        import_container(tmp_path / f"gone.{ending}", tmp_path / "x.hilum")
    with pytest.raises(WriteError, match="does not exist"):
        export_container(EVERY, tmp_path / "no" / f"t.{ending}")
    export_container(EVERY, tmp_path / f"t.{ending}")
    with pytest.raises(ContainerError, match="does not exist"):
        import_container(tmp_path / f"t.{ending}", tmp_path / "no" / "x.hilum")


# ---- strangers' tables -------------------------------------------------------------------------

STRANGER = {
    "backbone": {"name": "resnet50", "sha256": "cd" * 32},
    "preprocessing": {"version": 1, "height": 224},
}


def write_csv(path: Path, text: str, notes: dict | None = None) -> Path:
    path.write_text(text, encoding="utf-8")
    if notes is not None:
        (path.parent / "n.json").write_text(json.dumps(notes))
    return path


def test_a_strangers_csv(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv",
        "patient;label;split;sex;age;source;x1;x2\n"
        "Ann Example;viral;train;f;57;north;0.5;1\n"
        "Bob Example;normal;test;M;;south;1.5;2\n"
        "Ann Example;viral;train;F;103;north;2.5;-3e-2\n",
        STRANGER,
    )
    import_container(table, tmp_path / "x.hilum", notes=tmp_path / "n.json", keep_order=True)
    data = (tmp_path / "x.hilum").read_bytes()
    assert b"Example" not in data and b"Ann" not in data
    with formats.open_container(tmp_path / "x.hilum") as container:
        container.verify()
        assert container.dtype == "f32"
        np.testing.assert_array_equal(
            container.features, np.array([[0.5, 1], [1.5, 2], [2.5, -3e-2]], np.float32)
        )
        assert container.classes == ("normal", "viral")
        assert container.sources_names == ("north", "south")
        assert container.labels.tolist() == [1, 0, 1]
        assert container.splits.tolist() == [1, 3, 1]
        assert container.groups[0] == container.groups[2] != container.groups[1]
        assert container.sexes.tolist() == [1, 2, 1]
        assert container.ages.tolist() == [57, 255, 90]
        assert container.blocks[0]["width"] == 2


def test_patients_of_a_stranger_get_random_numbers(tmp_path: Path) -> None:
    n = 200
    np.savez(tmp_path / "t.npz", X=np.ones((n, 1)), y=np.zeros(n, int), groups=np.arange(n))
    notes = {**STRANGER, "classes": ["a"]}
    import_container(tmp_path / "t.npz", tmp_path / "x.hilum", notes=notes, keep_order=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert sorted(container.groups.tolist()) == list(range(n))
        assert container.groups.tolist() != list(range(n))


def test_a_strangers_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 4))
    labels = rng.integers(0, 2, 30)
    patients = np.array([f"patient-{i // 3}" for i in range(30)])
    np.savez_compressed(
        tmp_path / "t.npz", X=np.asfortranarray(features), y=labels, groups=patients
    )
    notes = {**STRANGER, "classes": ["a", "b"]}
    for dtype in ("f32", "f16"):
        import_container(
            tmp_path / "t.npz",
            tmp_path / "x.hilum",
            notes=notes,
            dtype=dtype,
            keep_order=True,
            overwrite=True,
        )
        with formats.open_container(tmp_path / "x.hilum") as container:
            element = {"f32": np.float32, "f16": np.float16}[dtype]
            np.testing.assert_array_equal(container.features, features.astype(element))
            np.testing.assert_array_equal(container.labels, labels)
            assert container.n_groups == 10


def test_a_strangers_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    notes = {**STRANGER, "sources": ["south", "north"]}
    table = pa.table(
        {
            "label": pa.array(["b", "a"]).dictionary_encode(),
            "source": ["north", "south"],
            "age": pa.array([40, None], pa.int64()),
            "embedding": pa.array([[1.0, 2.0], [3.0, 4.0]]),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    flat = pa.table({"label": ["b", "a"], "emb_1": [2.0, 4.0], "emb_0": [1, 3]})
    pq.write_table(flat, tmp_path / "flat.parquet")
    for name in ("list", "flat"):
        path = tmp_path / f"{name}.hilum"
        import_container(tmp_path / f"{name}.parquet", path, notes=notes, keep_order=True)
        with formats.open_container(path) as container:
            assert container.features.tolist() == [[1, 2], [3, 4]]
            assert container.labels.tolist() == [1, 0]
            if name == "list":
                assert container.sources.tolist() == [1, 0]
                assert container.ages.tolist() == [40, 255]


def test_several_labels_a_row(tmp_path: Path) -> None:
    notes = {**STRANGER, "classes": ["effusion", "mass"]}
    table = write_csv(tmp_path / "t.csv", "f0,label:mass,label:effusion\n1,0,1\n2,-2,-1\n")
    import_container(table, tmp_path / "x.hilum", notes=notes, keep_order=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.multilabel
        assert container.labels.tolist() == [[1, 0], [-1, -2]]


REFUSED = {
    "nan": ("f0,f1\n1,2\n3,nan\n", "line 3, 'f1': found nan, expected a finite number"),
    "infinity": ("f0,f1\n1,1e99\n", "line 2, 'f1': found 1e.99"),
    "text": ("f0,f1\n1,x\n", "line 2, column 'f1': found 'x', expected a number"),
    "underscore": ("f0,f1\n1,1_0\n", "found '1_0'"),
    "comma": ("f0;f1\n1;0,5\n", "found '0,5', expected a number with a decimal point"),
    "nothing": ("f0,f1\n1,\n", "found nothing"),
    "short line": ("f0,f1\n1,2\n3\n", "line 3 has 1 cells, expected 2"),
    "long line": ("f0,f1\n1,2,3\n", "line 2 has 3 cells"),
    "unknown column": ("f0,f1,weight\n1,2,3\n", "column 'weight' is unknown"),
    "duplicate": ("f0,f0\n1,2\n", "two columns are called 'f0'"),
    "alias twice": ("f0,label,y\n1,a,b\n", "'label' and 'y' both mean label"),
    "two kinds of label": ("f0,label,label:a\n1,a,1\n", "Leave one kind out"),
    "no name": ("f0,\n1,2\n", "column 2 has no name"),
    "no features": ("label\na\n", "no columns of features"),
    "no rows": ("f0,f1\n", "has no rows"),
    "empty": ("", "is empty"),
    "no label": ("f0,label\n1,a\n2,\n", "line 3, column label: found '', expected a class"),
    "split": ("f0,split\n1,training\n", "line 2, column split: found 'training', expected none, t"),
    "split number": ("f0,split\n1,4\n", "line 2, column split: found 4, expected 0 to 3"),
    "sex": ("f0,sex\n1,x\n", "expected F, M, other or nothing"),
    "age": ("f0,age\n1,-3\n", "found -3, expected 0 to 130"),
    "half an age": ("f0,age\n1,3.5\n", "found '3.5', expected a whole number"),
    "key": ("f0,sample_key\n1,abc\n", "expected 32 hexadecimal digits"),
    "view": ("f0,view\n1,256\n", "found 256, expected 0 to 255"),
    "multi-label": ("f0,label:a\n1,2\n", "found 2, expected -2 to 1"),
    "quote": ('f0,label\n1,"a\n', "csv file that can be read"),
    "binary": ("f0\n\0\n", "found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_csv_that_cannot_be_understood(tmp_path: Path, case: str) -> None:
    text, message = REFUSED[case]
    table = write_csv(tmp_path / "t.csv", text)
    with pytest.raises(ContainerError, match=message) as caught:
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)
    assert str(table) in str(caught.value)
    assert files_in(tmp_path) == {"t.csv"}


def test_a_csv_of_other_bytes(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"f0,label\n1,\xff\xfe\n")
    with pytest.raises(ContainerError, match=r"is no \.csv file that can be read: 'utf-8'"):
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)


def test_a_line_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "_MOST_LINE", 100)
    table = write_csv(tmp_path / "t.csv", "f0\n" + "1" * 200)
    with pytest.raises(ContainerError, match="a line of more than 100 bytes"):
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)


@pytest.mark.parametrize("missing", ["backbone", "preprocessing"])
def test_notes_say_what_features_are(tmp_path: Path, missing: str) -> None:
    table = write_csv(tmp_path / "t.csv", "f0\n1\n")
    with pytest.raises(ContainerError, match="no notes came with it"):
        import_container(table, tmp_path / "x.hilum")
    notes = {key: value for key, value in STRANGER.items() if key != missing}
    with pytest.raises(NotesError, match=f"{missing}: is missing"):
        import_container(table, tmp_path / "x.hilum", notes=notes)
    wrong = {**STRANGER, "blocks": notes_of(2)["blocks"]}
    with pytest.raises(NotesError, match="they cover 2 features, expected 1"):
        import_container(table, tmp_path / "x.hilum", notes=wrong)
    with pytest.raises(NotesError, match="allow-list"):
        import_container(table, tmp_path / "x.hilum", notes={**STRANGER, "patient": "x"})
    assert files_in(tmp_path) == {"t.csv"}


def test_labels_agree_with_the_notes(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", "f0,label\n1,a\n2,c\n")
    notes = {**STRANGER, "classes": ["a", "b"]}
    with pytest.raises(
        ContainerError, match="line 3, column label: found 'c', expected one of a, b"
    ):
        import_container(table, tmp_path / "x.hilum", notes=notes)
    np.savez(tmp_path / "t.npz", X=np.ones((2, 1)), y=np.array([0, 2]))
    with pytest.raises(ContainerError, match="row 1, column label: found 2, expected 0 to 1"):
        import_container(tmp_path / "t.npz", tmp_path / "x.hilum", notes=notes)
    with pytest.raises(NotesError, match="classes: is missing"):
        import_container(tmp_path / "t.npz", tmp_path / "x.hilum", notes=STRANGER)
    np.savez(tmp_path / "t.npz", X=np.ones((2, 1)), y=np.ones((2, 3), int))
    with pytest.raises(NotesError, match="found 2 names, but the labels have 3 columns"):
        import_container(tmp_path / "t.npz", tmp_path / "x.hilum", notes=notes)


# ---- hostile tables ----------------------------------------------------------------------------


def npz_with(path: Path, arrays: dict[str, Any], raw: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asarray(values), allow_pickle=True)
            archive.writestr(f"{name}.npy", stream.getvalue())
        for name, data in (raw or {}).items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(shape: tuple[int, ...], descr: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"shape": shape, "fortran_order": False, "descr": descr}
    )
    return stream.getvalue() + data


@pytest.mark.parametrize(
    ("arrays", "raw", "message"),
    [
        ({"X": np.array([[object()]])}, {}, "Python objects or records"),
        ({"X": np.zeros(3)}, {}, r"X has shape \(3,\), expected \(rows, features\)"),
        ({"X": np.zeros((0, 3))}, {}, "expected .rows, features."),
        ({"X": np.ones((2, 1)), "features": np.ones((2, 1))}, {}, "X and features: which is it"),
        ({"Z": np.ones((2, 1))}, {}, "no array of features"),
        ({"X": np.ones((2, 1)), "names": np.array(["a", "b"])}, {}, "array 'names' is unknown"),
        ({"X": np.ones((2, 1)), "y": np.array([1])}, {}, "expected 2 rows as the features"),
        ({"X": np.array([["a"]])}, {}, "X is <U1, expected numbers"),
        ({"X": np.array([[1j]])}, {}, "X is complex128, expected numbers"),
        ({"X": np.array([[np.nan]])}, {}, "row 0, feature 0: found nan, expected a finite number"),
        ({"X": np.ones((2, 1)), "y": np.array([0.5, 1])}, {}, "found 0.5, expected a whole number"),
        ({}, {"X": npy((1 << 40, 1000), "<f4", b"")}, "needs"),
        ({}, {"X": npy((2, 2), "<f4", bytes(15))}, "has 143 bytes, but its shape"),
        ({}, {"X": npy((2, 2), "<f4", bytes(17))}, "has 145 bytes, but its shape"),
        ({}, {"X": b"\x93NUMPY\x09\x00"}, "version"),
        ({}, {"X": b"nothing"}, "npz file that can be read"),
        ({}, {"X": npy((1, 1), "|V8", bytes(8))}, "expected numbers"),
    ],
)  # fmt: skip
def test_hostile_npz(tmp_path: Path, arrays: dict, raw: dict, message: str) -> None:
    path = npz_with(tmp_path / "t.npz", arrays, raw)
    with pytest.raises(ContainerError, match=message) as caught:
        import_container(path, tmp_path / "x.hilum", notes={**STRANGER, "classes": ["a", "b"]})
    assert str(path) in str(caught.value)
    assert files_in(tmp_path) == {"t.npz"}


def test_a_bomb_is_refused_before_it_bursts(tmp_path: Path) -> None:
    path = npz_with(tmp_path / "t.npz", {}, {"X": npy((1 << 18, 100), "<f4", bytes(100 << 20))})
    assert path.stat().st_size < 1 << 18
    with pytest.raises(ContainerError, match=r"would unpack"):
        import_container(path, tmp_path / "x.hilum", notes=STRANGER)


def test_a_zip_with_two_entries_of_one_name(tmp_path: Path) -> None:
    data = npy((1, 1), "<f4", bytes(4))
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("X.npy", data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("X.npy", data)
    with pytest.raises(ContainerError, match="two arrays are called 'X'"):
        import_container(tmp_path / "t.npz", tmp_path / "x.hilum", notes=STRANGER)


def safetensors_with(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(dtype: str, shape: list, low: int, high: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [low, high]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"X": tensor("F32", [1 << 40, 1 << 30], 0, 8)}, bytes(8), "has 8 bytes, but its shape"),
        ({"X": tensor("F32", [2, 1], 0, 8)}, bytes(4), "X has 8 bytes"),
        ({"X": tensor("F32", [2, 1], 0, 8)}, bytes(12), "has .* bytes, but its tensors end at"),
        ({"X": tensor("F32", [2, 1], 4, 12)}, bytes(12), "a hole or overlap at 4"),
        ({"X": tensor("F32", [2, 1], 0, 8), "y": tensor("U8", [2], 7, 9)}, bytes(9), "at 7"),
        ({"X": tensor("F32", [-2, -1], 0, 8)}, bytes(8), "has the shape"),
        ({"X": tensor("F32", [2.0, 1], 0, 8)}, bytes(8), "has the shape"),
        ({"X": tensor("BF16", [2, 2], 0, 8)}, bytes(8), "is BF16, expected"),
        ({"X": {"shape": [1]}}, b"", "safetensors file that can be read"),
        ([], b"", "safetensors file that can be read"),
        (b'{"X":1,"X":2}', b"", "stands twice"),
        (b"\xff", b"", "safetensors file that can be read"),
        (b"[" * 100_000, b"", "safetensors file that can be read"),
    ],
)  # fmt: skip
def test_hostile_safetensors(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = safetensors_with(tmp_path / "t.safetensors", header, data)
    with pytest.raises(ContainerError, match=message):
        import_container(path, tmp_path / "x.hilum", notes=STRANGER)
    assert files_in(tmp_path) == {"t.safetensors"}


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    for length in (1 << 63, 1 << 30, 3):
        path = safetensors_with(tmp_path / "t.safetensors", b"{}", b"", length)
        with pytest.raises(ContainerError, match="its header would have"):
            import_container(path, tmp_path / "x.hilum", notes=STRANGER)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_cut_of_a_table_is_refused_or_whole(tmp_path: Path, ending: str) -> None:
    needs(ending)
    export_container(GOLDEN / "valid" / "f16_single_label.hilum", tmp_path / f"t.{ending}")
    data = (tmp_path / f"t.{ending}").read_bytes()
    rng = np.random.default_rng(0)
    for end in sorted(rng.choice(len(data), 40, replace=False)):
        path = tmp_path / f"cut.{ending}"
        path.write_bytes(data[:end])
        if ending == "csv":  # text has no length: what is left may be a shorter table
            continue
        with pytest.raises(ContainerError):
            import_container(path, tmp_path / "x.hilum")


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
def test_flipped_bytes_never_crash(tmp_path: Path, ending: str) -> None:
    needs(ending)
    export_container(EVERY, tmp_path / f"t.{ending}")
    data = (tmp_path / f"t.{ending}").read_bytes()
    rng = np.random.default_rng(1)
    for at in rng.choice(len(data), 60, replace=False):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"flip.{ending}"
        path.write_bytes(flipped)
        try:
            import_container(path, tmp_path / "x.hilum", overwrite=True)
        except (ContainerError, NotesError):
            continue


def test_parquet_with_holes(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    cases = {
        "row 1, column 'X' has 1 features, expected 2": {"X": [[1.0, 2.0], [3.0]]},
        "row 1, column 'X' is empty": {"X": [[1.0, 2.0], None]},
        "row 1, column 'X' has an empty feature": {"X": [[1.0, 2.0], [3.0, None]]},
        "row 0, column 'f1' is empty": {"f0": [1.0, 2.0], "f1": [None, 1.0]},
        "column 'f1' holds string": {"f0": [1.0, 2.0], "f1": ["a", "b"]},
        "X holds string": {"X": [["a"], ["b"]]},
        "row 1, column label: found '', expected a class": {"f0": [1.0, 2.0], "label": ["a", None]},
        "row 1, feature 1: found inf": {"X": [[1.0, 2.0], [3.0, float("inf")]]},
    }
    for message, columns in cases.items():
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(ContainerError, match=message):
            import_container(tmp_path / "t.parquet", tmp_path / "x.hilum", notes=STRANGER)


def test_a_parquet_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(20_000_000, np.float32)), 100)
    pq.write_table(pa.table({"X": features}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 100_000
    with pytest.raises(ContainerError, match=r"would unpack .* bytes to 80000000"):
        import_container(tmp_path / "t.parquet", tmp_path / "x.hilum", notes=STRANGER)
    # and if the footer did not tell
    monkeypatch.setattr(_tables, "_refuse_bombs", lambda path, metadata: None)
    with pytest.raises(ContainerError, match=r"unpacks from .* bytes to more than"):
        import_container(tmp_path / "t.parquet", tmp_path / "x.hilum", notes=STRANGER)
    assert files_in(tmp_path) == {"t.parquet"}


def test_i8_of_other_writers(tmp_path: Path) -> None:
    export_container(EVERY, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as arrays:
        table = dict(arrays)
    table["features"][3, 4] = -128
    np.savez(tmp_path / "t.npz", **table)
    with pytest.raises(ContainerError, match=r"row 3, feature 4: found -128, expected .* -127 to"):
        import_container(tmp_path / "t.npz", tmp_path / "x.hilum")
    import_container(tmp_path / "t.npz", tmp_path / "x.hilum", dtype="f32", keep_order=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.features[3, 4] == np.float32(-128) * table["scales"][4]


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ContainerError, match=r"pip install 'hilum\[convert\]'"):
        export_container(EVERY, tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ContainerError, match=r"pip install 'hilum\[convert\]'"):
        import_container(tmp_path / "t.parquet", tmp_path / "x.hilum")


# ---- memory ------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
import formats._rows
from formats.convert import export_container, import_container
formats._rows._PIECE_BYTES = 4 << 20  # a smaller file shows the same
# what the libraries themselves take is not what is asked
export_container(sys.argv[4], sys.argv[1])
import_container(sys.argv[1], sys.argv[3])
# not of getrusage, whose peak is that of the process which started this one
def peak_mib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
before = peak_mib()
export_container(sys.argv[2], sys.argv[1], overwrite=True)
import_container(sys.argv[1], sys.argv[3], overwrite=True)
print(peak_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet"])
def test_memory_holds_pieces_only(tmp_path: Path, ending: str) -> None:
    needs(ending)
    rng = np.random.default_rng(0)
    n, dim = 20_000, 4096
    notes = notes_of(dim)
    with formats.ContainerWriter(
        tmp_path / "large.hilum",
        dim=dim,
        dtype="i8",
        backbone_digest=notes["backbone"]["sha256"],
        preprocessing_digest=formats.preprocessing_digest(notes["preprocessing"]),
        scales=np.ones(dim, np.float32),
    ) as writer:
        part = rng.integers(-127, 128, (n // 10, dim), np.int8)
        for _ in range(10):
            writer.append(part, label=np.zeros(len(part), int))
        writer.seal(notes)
    result = run_python(
        MEASURE,
        *(str(tmp_path / name) for name in (f"t.{ending}", "large.hilum", "again.hilum")),
        str(EVERY),
    )
    assert result.returncode == 0, result.stderr
    # 78 MiB of features
    assert (tmp_path / f"t.{ending}").stat().st_size < 90 << 20
    assert int(result.stdout) < (70 if ending == "parquet" else 40), result.stdout


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".safetensors"])
def test_scales_that_are_no_numbers_are_not_exported(tmp_path: Path, suffix: str) -> None:
    path = GOLDEN / "valid" / "i8_not_finite.hilum"
    with pytest.raises(ContainerError, match="scales that are not finite"):
        formats.export_container(path, tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


# ---- what a hostile user found -----------------------------------------------------------------


def as_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "name", ["study_date", "__index_level_0__", "weight", "case_no2", "Accession Number"]
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_no_number_of_a_study_becomes_a_feature(tmp_path: Path, ending: str, name: str) -> None:
    columns = {name: [4711, 4712], "emb_0": [1.0, 2.0], "emb_1": [3.0, 4.0]}
    if ending == "parquet":
        table = as_parquet(tmp_path / "t.parquet", columns)
    else:
        rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
        text = "\n".join(",".join(map(str, row)) for row in rows)
        table = write_csv(tmp_path / "t.csv", f"{text}\n")
    out = tmp_path / "x.hilum"
    with pytest.raises(ContainerError, match=f"column '{name}' is unknown.*--ignore.*--features"):
        import_container(table, out, notes=STRANGER)
    report = import_container(table, out, notes=STRANGER, ignore=[name], keep_order=True)
    assert "features: emb_0 to emb_1 (2)" in report.remarks
    with formats.open_container(out) as container:
        assert container.features.tolist() == [[1, 3], [2, 4]]


def test_known_names_are_known_in_any_case(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv",
        "PatientID,Target,Sex,AGE,Split,x2,x1,x3,x4,x5,x6,x7,x8,x9,x11,x10\n"
        "Kowalska,b,F,40,train,2,1,3,4,5,6,7,8,9,11,10\n"
        "Nowak,a,M,50,test,2,1,3,4,5,6,7,8,9,11,10\n",
    )
    report = import_container(table, tmp_path / "x.hilum", notes=STRANGER, keep_order=True)
    assert "features: x1 to x11 (11)" in report.remarks
    assert b"Kowalska" not in (tmp_path / "x.hilum").read_bytes()
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.features[0].tolist() == list(range(1, 12))
        assert container.n_groups == 2
        assert container.labels.tolist() == [1, 0]
        assert container.sexes.tolist() == [1, 2]
        assert container.ages.tolist() == [40, 50]
        assert container.splits.tolist() == [1, 3]
    for name in ("mrn", "patient_id", "Subject", "MRN", "Patient ID"):
        write_csv(table, f"{name},f0\nA-1,1\nA-1,2\nA-2,3\n")
        import_container(table, tmp_path / "x.hilum", notes=STRANGER, overwrite=True)
        with formats.open_container(tmp_path / "x.hilum") as container:
            assert (container.n_groups, container.dim) == (2, 1)


def test_features_are_complete_or_named(tmp_path: Path) -> None:
    out = tmp_path / "x.hilum"
    for header, message in (
        ("f0,f1,f3", "f2 is missing before 'f3'"),
        ("f2,f3,f4", "f0 is missing before 'f2'"),
        ("f0,f1,f01", "stands twice before 'f01'"),
        ("a,b,c", "'a' is unknown .and 2 more: 'b', 'c'"),
        ("f0,f1,g0", "'g0' is unknown"),
    ):
        table = write_csv(tmp_path / "t.csv", f"{header}\n1,2,3\n")
        with pytest.raises(ContainerError, match=message):
            import_container(table, out, notes=STRANGER)
    write_csv(table, "age,c,deep_10,deep_9\n40,3,2,1\n")
    report = import_container(table, out, notes=STRANGER, features="deep_*", ignore="c")
    assert report.remarks == ("features: deep_9 to deep_10 (2)",)
    with formats.open_container(out) as container:
        assert container.features.tolist() == [[1, 2]]
    report = import_container(table, out, notes=STRANGER, features=("deep_*", "c"), overwrite=True)
    assert report.remarks == ("features: c, deep_10, deep_9 (3)",)
    for features in ("age", "nothing*"):
        with pytest.raises(ContainerError, match="no column of features is called"):
            import_container(table, out, notes=STRANGER, features=features, overwrite=True)
    with pytest.raises(ContainerError, match="there is no column 'd' to ignore"):
        import_container(table, out, notes=STRANGER, ignore="d", overwrite=True)
    np.savez(tmp_path / "t.npz", Z=np.ones((2, 3)), mail=np.array(["a@b.c", "d"]))
    with pytest.raises(ContainerError, match=r"'mail' is unknown.*--ignore"):
        import_container(tmp_path / "t.npz", out, notes=STRANGER, features="Z", overwrite=True)
    import_container(
        tmp_path / "t.npz", out, notes=STRANGER, features="Z", ignore="mail", overwrite=True
    )


def good_keys(n: int) -> list[str]:
    return [
        bytes(key).hex() for key in np.random.default_rng(0).integers(0, 256, (n, 16), np.uint8)
    ]


@pytest.mark.parametrize("kind", ["single", "several"])
def test_withdrawn_rows_leave_nothing_behind(tmp_path: Path, kind: str) -> None:
    keys = good_keys(2)
    label = "label" if kind == "single" else "label:a,label:b"
    one = "a" if kind == "single" else "1,0"
    table = write_csv(
        tmp_path / "t.csv",
        f"{label},row_flags,sex,age,projection,split,sample_key,patient,f0\n"
        f"{one},1,F,40,PA,train,{keys[0]},p,1\n{one},0,M,50,AP,test,{keys[1]},q,2\n",
    )
    import_container(table, tmp_path / "x.hilum", notes=STRANGER, keep_order=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        container.verify()
        assert container.features.tolist() == [[0], [2]]
        assert not container.sample_keys[0].any() and container.sample_keys[1].any()
        assert container.splits.tolist() == [0, 3]
        assert container.sexes.tolist() == [0, 2]
        assert container.ages.tolist() == [255, 50]
        assert container.projections.tolist() == [0, 2]
        if kind == "several":
            assert container.labels.tolist() == [[-2, -2], [1, 0]]


BAD_KEYS = {
    "a name": ([b"KOWALSKI_JAN_001".hex()], "line 2.*are text"),
    "a padded name": ([b"KOWALSKI_JANUS\0\0".hex()], "line 2.*are text"),
    "a number": ([f"{4711:032x}"], "line 2.*hardly random"),
    "a long number": (["0123456789" * 3 + "01"], "line 2.*hardly random"),
    "a number among good ones": ([*good_keys(40), f"{4711:032x}"], "line 42.*hardly random"),
    "running numbers": ([f"a3c7915e2b08d4f66179{i * 77:012x}" for i in range(40)], "running num"),
    "text": (["KOWALSKI_JAN_001"], "expected 32 hexadecimal digits"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_sample_key_is_no_name_or_number(tmp_path: Path, case: str) -> None:
    keys, message = BAD_KEYS[case]
    rows = "".join(f"{i},{key}\n" for i, key in enumerate(keys))
    table = write_csv(tmp_path / "t.csv", f"f0,sample_key\n{rows}")
    with pytest.raises(ContainerError, match=message):
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)
    if "text" in message and "are" in message:
        raw = np.frombuffer(b"".join(bytes.fromhex(key) for key in keys), np.uint8).reshape(-1, 16)
        np.savez(tmp_path / "t.npz", X=np.ones((len(keys), 1)), sample_key=raw)
        with pytest.raises(ContainerError, match="are text"):
            import_container(tmp_path / "t.npz", tmp_path / "x.hilum", notes=STRANGER)


def test_digests_are_taken_as_sample_keys(tmp_path: Path) -> None:
    keys = good_keys(5000)
    rows = "".join(f"{i},{key}\n" for i, key in enumerate(keys))
    table = write_csv(tmp_path / "t.csv", f"f0,sample_key\n{rows}0,\n")
    import_container(table, tmp_path / "x.hilum", notes=STRANGER, keep_order=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert [bytes(key).hex() for key in container.sample_keys[:-1]] == keys
        assert not container.sample_keys[-1].any()


def test_labels_as_in_a_manifest(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", "f0,Label\n1,a|b\n2,b?\n3,\n4, c | a ? \n")
    import_container(table, tmp_path / "x.hilum", notes=STRANGER, keep_order=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.multilabel and container.classes == ("a", "b", "c")
        assert container.labels.tolist() == [[1, 1, 0], [0, -1, 0], [0, 0, 0], [-1, 0, 1]]
    for label, message in (
        ("a|a?", "present or uncertain, not both"),
        ("?", "a name before the"),
        ("b|nan", "Leave such rows out"),
    ):
        write_csv(table, f"f0,label\n1,{label}\n")
        with pytest.raises(ContainerError, match=f"line 2.*{message}"):
            import_container(table, tmp_path / "y.hilum", notes=STRANGER)
    # a class that notes name is that class
    write_csv(table, "f0,label\n1,a|b\n2,nan\n")
    notes = {**STRANGER, "classes": ["a|b", "nan"]}
    import_container(table, tmp_path / "y.hilum", notes=notes, keep_order=True)
    with formats.open_container(tmp_path / "y.hilum") as container:
        assert container.labels.tolist() == [0, 1]


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "NULL", ""])
def test_missing_texts_are_missing(tmp_path: Path, text: str) -> None:
    table = write_csv(tmp_path / "t.csv", f"f0,label\n1,a\n2,{text}\n")
    with pytest.raises(ContainerError, match=r"line 3, column label: found .* Leave such rows out"):
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)
    write_csv(table, f"f0,patient,age,sex\n1,{text},{text},{text}\n2,{text},3,F\n3,a,4,M\n")
    report = import_container(table, tmp_path / "x.hilum", notes=STRANGER, keep_order=True)
    assert any("2 rows name no patient" in remark for remark in report.remarks)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert sorted(container.groups.tolist()) == [0, 1, 2]
        assert container.ages.tolist() == [255, 3, 4]
        assert container.sexes.tolist() == [0, 1, 2]


def test_missing_numbers_of_patients(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=np.ones((4, 1)), groups=np.array([np.nan, 7, np.nan, 7]))
    report = import_container(
        tmp_path / "t.npz", tmp_path / "x.hilum", notes=STRANGER, keep_order=True
    )
    assert "2 rows name no patient: each was taken for a patient of its own" in report.remarks
    with formats.open_container(tmp_path / "x.hilum") as container:
        groups = container.groups.tolist()
        assert sorted(set(groups)) == [0, 1, 2] and groups[1] == groups[3]


@pytest.mark.parametrize("second", ["test", "valid", ""])
def test_patients_in_two_splits_are_refused(tmp_path: Path, second: str) -> None:
    first = "test" if second != "test" else "train"
    table = write_csv(
        tmp_path / "t.csv", f"f0,patient,split\n1,p,{first}\n2,q,train\n3,p,{second}\n"
    )
    with pytest.raises(ContainerError, match=r"line 2 is .* and line 4 is .*--without-splits"):
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)
    import_container(table, tmp_path / "x.hilum", notes=STRANGER, without_splits=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.splits is None and container.n_groups == 2


def test_torn_patients_of_an_export_are_refused_too(tmp_path: Path) -> None:
    source = GOLDEN / "valid" / "f16_multi_label_crossing_groups.hilum"
    export_container(source, tmp_path / "t.npz")
    with pytest.raises(ContainerError, match="two splits"):
        import_container(tmp_path / "t.npz", tmp_path / "x.hilum")
    import_container(tmp_path / "t.npz", tmp_path / "x.hilum", without_splits=True)


def test_views_need_patients(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", "f0,view\n1,0\n2,1\n")
    with pytest.raises(ContainerError, match=r"line 3 is view 1 .*Add a column of patients"):
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)
    write_csv(table, "f0,view,patient\n1,0,p\n2,1,p\n")
    import_container(table, tmp_path / "x.hilum", notes=STRANGER)


def test_a_view_in_words_is_a_projection(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", "f0,View\n1,PA\n2,ap\n3,\n")
    report = import_container(table, tmp_path / "x.hilum", notes=STRANGER, keep_order=True)
    assert any("view holds projections" in remark for remark in report.remarks)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.projections.tolist() == [1, 2, 0]
        assert container.views is None


def test_numbers_as_labels_need_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=np.ones((2, 1)), y=np.array([0, 1]))
    with pytest.raises(NotesError, match=r'classes: .*--notes.: "classes": \["the name of 0"'):
        import_container(tmp_path / "t.npz", tmp_path / "x.hilum", notes=STRANGER)


def test_an_import_is_a_child(tmp_path: Path) -> None:
    export_container(EVERY, tmp_path / "t.csv")
    import_container(tmp_path / "t.csv", tmp_path / "a.hilum")
    export_container(tmp_path / "a.hilum", tmp_path / "t.npz")
    import_container(tmp_path / "t.npz", tmp_path / "b.hilum")
    with (
        formats.open_container(EVERY) as old,
        formats.open_container(tmp_path / "a.hilum") as a,
        formats.open_container(tmp_path / "b.hilum") as b,
    ):
        assert b.notes["derived_from"] == [a.uuid, *formats_lineage(old)]


KILLED = """
import os, sys
import formats.container, formats.convert
formats.container.Container.read_stored = lambda *_: os._exit(9)
formats.export_container(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_a_killed_export_left_is_taken_over(tmp_path: Path, ending: str) -> None:
    needs(ending)
    table = tmp_path / f"t.{ending}"
    for _ in range(2):
        result = run_python(KILLED, str(EVERY), str(table))
        assert result.returncode == 9, result.stderr
        left = {f".t.{ending}.part"}
        if ending == "csv":
            left.add(".t.csv.notes.json.part")
        assert files_in(tmp_path) == left
    (tmp_path / f".t.{ending}.part").write_bytes(b"x" * 100_000)
    export_container(EVERY, table)
    import_container(table, tmp_path / "x.hilum", keep_order=True)
    same_contents(EVERY, tmp_path / "x.hilum")
    assert not any(name.endswith(".part") for name in files_in(tmp_path))


@pytest.mark.skipif(_tables._fcntl is None, reason="needs locks of files")
def test_two_exports_of_one_name(tmp_path: Path) -> None:
    with _tables.new_file(tmp_path / "t.npz", overwrite=False) as stream:
        stream.write(b"first")
        with pytest.raises(WriteError, match="by another program"):
            export_container(EVERY, tmp_path / "t.npz")
    assert (tmp_path / "t.npz").read_bytes() == b"first"
    assert files_in(tmp_path) == {"t.npz"}


def test_an_existing_container_is_left_alone(tmp_path: Path) -> None:
    export_container(EVERY, tmp_path / "t.npz")
    out = tmp_path / "x.hilum"
    formats.write_container(out, np.ones((1, 1)), notes_of(1))
    before = out.read_bytes()
    with pytest.raises(WriteError, match=r"exists already.*--overwrite"):
        import_container(tmp_path / "t.npz", out)
    with pytest.raises(WriteError, match=r"exists already.*--overwrite"):
        export_container(EVERY, tmp_path / "t.npz")
    assert out.read_bytes() == before
    import_container(tmp_path / "t.npz", out, overwrite=True, keep_order=True)
    same_contents(EVERY, out)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("ending", [*ENDINGS, "json"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, ending: str) -> None:
    pipe = tmp_path / f"pipe.{ending}"
    os.mkfifo(pipe)
    table, notes = pipe, None
    if ending == "json":
        table, notes = write_csv(tmp_path / "t.csv", "f0\n1\n"), pipe
    with pytest.raises(ContainerError, match=rf"pipe\.{ending}: .*not a regular file"):
        import_container(table, tmp_path / "x.hilum", notes=notes)
    assert not (tmp_path / "x.hilum").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs names that are no UTF-8")
def test_names_that_cannot_be_printed(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"b\xff.npz")
    again = tmp_path / os.fsdecode(b"b\xff.hilum")
    for arguments in (["export", EVERY, "-o", out], ["import", out, "-o", again]):
        result = subprocess.run(
            [sys.executable, "-m", "formats", *map(os.fspath, arguments)],
            cwd=Path(formats.__file__).parent.parent,
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert b"b?." in result.stdout
        assert result.stderr == b""


def test_a_folder_that_cannot_be_written_names_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_csv(tmp_path / "t.csv", "f0\n1\n")

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("formats.convert.tempfile.TemporaryFile", refuse)
    with pytest.raises(WriteError, match=r"x\.hilum: the folder .* may not be written to"):
        import_container(table, tmp_path / "x.hilum", notes=STRANGER)


def test_the_command_knows_the_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from formats.__main__ import main

    write_csv(tmp_path / "t.csv", "date,deep,patient,split\n1,2,p,train\n1,3,p,test\n", STRANGER)
    out = tmp_path / "x.hilum"
    arguments = [
        "import", str(tmp_path / "t.csv"), "-o", str(out), "--notes", str(tmp_path / "n.json"),
        "--features", "deep*", "--ignore", "date", "--without-splits",
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "note: features: deep (1)" in shown.err and "2 rows, 1 x f32" in shown.out
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--quiet"]) == 0
    with pytest.raises(SystemExit):
        main([*arguments, "--ignore", "a,,b"])
