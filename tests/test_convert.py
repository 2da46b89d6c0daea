from __future__ import annotations

import csv
import io
import json
import struct
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
EVERY = GOLDEN / "valid" / "i8_every_column.hilum"


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def needs(ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")


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
            np.testing.assert_array_equal(a.columns[name], b.columns[name], err_msg=name)
        assert a.notes == b.notes
        assert (a.n_groups, a.group_clean) == (b.n_groups, b.group_clean)
        assert a.uuid != b.uuid


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", WRITTEN)
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
        "split": column(0, 3),
        "group": column(0, 5),
        "sample_key": np.array(
            [list(key) for key in draw(st.lists(st.binary(min_size=16, max_size=16),
                                                min_size=n, max_size=n))], np.uint8),
        "source": column(0, 2),
        "view": column(0, 255),
        "sex": column(0, 3),
        "age": np.where(column(0, 5) == 0, 255, column(0, 90)),
        "projection": column(0, 5),
    }  # fmt: skip
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
        assert json.loads(bytes(arrays["notes"])) == container.notes
        with safe_open(tmp_path / "t.safetensors", "numpy") as file:
            assert json.loads(file.metadata()["hilum_notes"]) == container.notes
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
        assert json.loads(table.schema.metadata[b"hilum_notes"]) == container.notes


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
        assert sidecar["notes"] == container.notes


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
        patch.setattr("formats.convert.read_stored", interrupt)
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
        "patient;label;split;sex;age;source;height;width\n"
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
            tmp_path / "t.npz", tmp_path / "x.hilum", notes=notes, dtype=dtype, keep_order=True
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
    flat = pa.table({"label": ["b", "a"], "one": [1, 3], "two": [2.0, 4.0]})
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
    "no patient": ("f0,patient\n1,a\n2,\n", "line 3, column group"),
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
        ({"X": np.ones((2, 1)), "features": np.ones((2, 1))}, {}, "features and X: which is it"),
        ({"Z": np.ones((2, 1))}, {}, "no array of features"),
        ({"X": np.ones((2, 1)), "names": np.array(["a", "b"])}, {}, "array 'names' is unknown"),
        ({"X": np.ones((2, 1)), "y": np.array([1])}, {}, "expected 2 rows as the features"),
        ({"X": np.array([["a"]])}, {}, "X is <U1, expected numbers"),
        ({"X": np.array([[1j]])}, {}, "X is complex128, expected numbers"),
        ({"X": np.array([[np.nan]])}, {}, "row 0, feature 0: found nan, expected a finite number"),
        ({"X": np.ones((2, 1)), "y": np.array([0.5, 1])}, {}, "found 0.5, expected a whole number"),
        ({"X": np.ones((2, 1)), "groups": np.array([np.nan, 1])}, {}, "a patient in every row"),
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
            import_container(path, tmp_path / "x.hilum")
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
    import sys

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
import_container(sys.argv[1], sys.argv[3])
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
