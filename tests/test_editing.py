from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_helpers import GOLDEN, WRITTEN, notes_of, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import formats
from formats.__main__ import main
from formats._rows import copy_notes, join_patients
from formats.editing import (
    _restore_owner,
    merge_containers,
    resplit_container,
    subset_container,
    withdraw_rows,
)
from formats.errors import ContainerError, NotesError
from formats.splitting import bounded_membership, class_membership

EVERY = GOLDEN / "valid" / "i8_every_column.hilum"
MULTI = GOLDEN / "valid" / "f32_multi_label.hilum"
# its notes tell of views, so that no row of it leaves alone
PIXELS = GOLDEN / "valid" / "i8_views_and_pixels.hilum"


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def keys_of(*numbers: int) -> np.ndarray:
    """Sample keys: 0 stands for none."""
    return np.array([[number] * 16 for number in numbers], np.uint8).reshape(-1, 16)


def make(path: Path, n: int = 8, *, seed: int = 0, dtype: str = "f16", **more: Any) -> Path:
    """Write a container of random features; columns and notes as given."""
    columns = more.pop("columns", {"label": np.arange(n) % 2, "group": np.arange(n) // 2})
    features = more.pop("features", None)
    if features is None:
        features = (
            np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float16).astype(np.float32)
        )
    formats.write_container(
        path,
        features,
        notes_of(features.shape[1], **more),
        dtype=dtype,
        columns=columns,
        group_order="given",
    )
    return path


def rows_of(path: Path) -> dict[bytes, dict[str, Any]]:
    """Each row by its features; labels and sources by name."""
    found = {}
    with formats.open_container(path) as container:
        container.verify()
        features = container.read_rows()
        for i in range(container.n_rows):
            row = {name: values[i].tolist() for name, values in container.columns.items()}
            if container.labels is not None and not container.multilabel:
                row["label"] = container.classes[row["label"]]
            if "source" in row:
                row["source"] = container.sources_names[row["source"]]
            found[features[i].tobytes()] = row
        assert len(found) == container.n_rows
    return found


# ---- merge -------------------------------------------------------------------------------------


def test_merge_joins_by_name(tmp_path: Path) -> None:
    a = make(
        tmp_path / "a.hilum",
        columns={"label": np.arange(8) % 2, "group": np.arange(8) // 2, "source": np.arange(8) % 2},
        classes=("normal", "viral"),
        sources=["north", "south"],
    )
    b = make(
        tmp_path / "b.hilum",
        6,
        seed=1,
        columns={"label": np.arange(6) % 3, "age": np.arange(6), "source": np.zeros(6, int)},
        classes=("viral", "bacterial", "normal"),
        sources=["south"],
    )
    report = merge_containers([a, b], tmp_path / "c.hilum", seed=1)
    assert report.n_rows == 14
    assert any("b.hilum has no patient groups" in remark for remark in report.remarks)
    assert any("a.hilum has no column age: filled with unknown" in r for r in report.remarks)
    merged, from_a, from_b = (rows_of(tmp_path / f"{name}.hilum") for name in "cab")
    for source in (from_a, from_b):
        for key, row in source.items():
            assert merged[key]["label"] == row["label"]
            assert merged[key]["source"] == row["source"]
            assert merged[key]["age"] == row.get("age", 255)
    groups_a = {merged[key]["group"] for key in from_a}
    groups_b = [merged[key]["group"] for key in from_b]
    assert len(groups_a) == 4 and len(set(groups_b)) == 6 and not groups_a & set(groups_b)
    with formats.open_container(a) as one, formats.open_container(b) as two:
        parents = [one.uuid, two.uuid]
    with formats.open_container(tmp_path / "c.hilum") as container:
        assert container.classes == ("normal", "viral", "bacterial")
        assert container.notes["derived_from"] == parents
        assert container.n_groups == 10


def test_merge_shuffles_unless_asked(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"{i}.hilum", 40, seed=i) for i in range(2)]
    in_order = [key for path in paths for key in rows_of(path)]
    merge_containers(paths, tmp_path / "kept.hilum", keep_order=True)
    assert list(rows_of(tmp_path / "kept.hilum")) == in_order
    outs = [tmp_path / f"out{i}.hilum" for i in range(4)]
    for out, seed in zip(outs, (5, 5, None, None), strict=True):
        merge_containers(paths, out, seed=seed)
        assert list(rows_of(out)) != in_order
        assert set(rows_of(out)) == set(in_order)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert list(rows_of(outs[2])) != list(rows_of(outs[3]))


def test_merge_takes_an_image_once_and_joins_its_patients(tmp_path: Path) -> None:
    a = make(
        tmp_path / "a.hilum",
        4,
        columns={
            "group": np.array([0, 0, 1, 2]),
            "sample_key": keys_of(1, 2, 3, 0),
            "view": np.array([0, 0, 0, 0]),
        },
    )
    b = make(
        tmp_path / "b.hilum",
        5,
        seed=1,
        columns={
            "group": np.array([0, 0, 1, 2, 2]),
            "sample_key": keys_of(2, 9, 8, 0, 3),
            "view": np.array([0, 0, 0, 0, 1]),
        },
    )
    report = merge_containers([a, b], tmp_path / "c.hilum")
    # the first row of b is an image of a; its last is another view of one
    assert report.counts["duplicates"] == 1
    assert report.counts["joined_patients"] == 2
    merged, from_a, from_b = (rows_of(tmp_path / f"{name}.hilum") for name in "cab")
    keys_a, keys_b = list(from_a), list(from_b)
    assert set(merged) == set(keys_a) | set(keys_b[1:])
    group = {key: merged[key]["group"] for key in merged}
    assert group[keys_a[0]] == group[keys_a[1]] != group[keys_a[2]]
    assert group[keys_b[4]] == group[keys_a[2]] == group[keys_b[3]]
    assert len(set(group.values())) == 4


def test_the_image_that_joins_two_patients_may_itself_be_left_out(tmp_path: Path) -> None:
    a = make(
        tmp_path / "a.hilum", 2, columns={"group": np.array([0, 1]), "sample_key": keys_of(1, 2)}
    )
    b = make(
        tmp_path / "b.hilum",
        2,
        seed=1,
        columns={"group": np.array([0, 0]), "sample_key": keys_of(1, 5)},
    )
    merge_containers([a, b], tmp_path / "c.hilum")
    merged, from_a, from_b = (rows_of(tmp_path / f"{name}.hilum") for name in "cab")
    assert len(merged) == 3
    group_a = [merged[key]["group"] for key in from_a]
    group_b = merged[list(from_b)[1]]["group"]
    assert group_a[0] == group_b
    assert group_a[0] != group_a[1]


def test_merge_counts_rows_that_are_alike(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    features[1] = features[0]  # of one patient: nothing to warn of
    a = make(
        tmp_path / "a.hilum",
        features=features,
        columns={"group": np.arange(6) // 2, "split": [1] * 6},
    )
    b = make(
        tmp_path / "b.hilum",
        features=features[[4, 2]],
        columns={"group": [0, 1], "split": [1, 3]},
    )
    report = merge_containers([a, b], tmp_path / "c.hilum")
    assert report.n_rows == 8
    assert report.counts["alike"] == 2
    (warning,) = [r for r in report.remarks if r.startswith("warning")]
    assert warning.startswith("warning: 2 rows have exactly the features of another")
    assert warning.endswith("; 1 of them lie in two splits")
    again = make(tmp_path / "d.hilum", features=features, columns={}, dtype="f32")
    report = merge_containers([a, again], tmp_path / "e.hilum", dtype="f32")
    assert report.counts["alike"] == 6  # f16 and f32 of the same


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_merge_against_a_naive_model(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("model")
    paths, expected, marks = [], [], []
    taken: set[tuple[int, int]] = set()
    gone: set[int] = set()
    files = []
    for number in range(data.draw(st.integers(2, 3))):
        n = data.draw(st.integers(1, 6))

        def draw(high: int, n: int = n) -> list[int]:
            return data.draw(st.lists(st.integers(0, high), min_size=n, max_size=n))

        file = {
            "group": draw(3), "key": draw(4), "view": draw(1), "flag": draw(1), "label": draw(1),
            "classes": data.draw(st.permutations(["a", "b", "c"]))[:2],
        }  # fmt: skip
        files.append(file)
        gone |= {key for key, flag in zip(file["key"], file["flag"], strict=True) if flag and key}
        paths.append(folder / f"{number}.hilum")
        make(
            paths[-1],
            features=np.arange(4 * n, dtype=np.float32).reshape(n, 4) + 100 * number,
            columns={
                "group": np.array(file["group"]),
                "sample_key": keys_of(*file["key"]),
                "view": np.array(file["view"]),
                "row_flags": np.array(file["flag"]),
                "label": np.array(file["label"]),
            },
            classes=tuple(file["classes"]),
        )
    for number, file in enumerate(files):
        for i in range(len(file["key"])):
            key, view = file["key"][i], file["view"][i]
            marks.append(
                {("patient", number, file["group"][i])} | ({("key", key)} if key else set())
            )
            kept = not file["flag"][i] and key not in gone and (key, view) not in taken
            if kept and key:
                taken.add((key, view))
            name = file["classes"][file["label"][i]]
            expected.append((kept, 100.0 * number + 4 * i, name))
    if not any(kept for kept, _, _ in expected):
        with pytest.raises(ContainerError, match="all rows are withdrawn"):
            merge_containers(paths, folder / "m.hilum")
        return
    merge_containers(paths, folder / "m.hilum", on_conflict="first")
    # connected components of patients and images, by merging sets until nothing changes
    parts: list[set] = []
    for mark in marks:
        touching = [part for part in parts if part & mark]
        parts = [part for part in parts if not part & mark] + [mark.union(*touching)]
    with formats.open_container(folder / "m.hilum") as container:
        container.verify()
        found = {
            (float(row[0]), container.classes[label]): int(group)
            for row, label, group in zip(
                container.features, container.labels, container.groups, strict=True
            )
        }
    assert set(found) == {(value, name) for kept, value, name in expected if kept}
    partition: dict[int, int] = {}
    for (kept, value, name), mark in zip(expected, marks, strict=True):
        if kept:
            part = next(i for i, part in enumerate(parts) if part & mark)
            assert partition.setdefault(part, found[value, name]) == found[value, name]
    assert len(set(partition.values())) == len(partition)


def test_merge_of_several_labels(tmp_path: Path) -> None:
    a = make(
        tmp_path / "a.hilum",
        2,
        columns={"label": np.array([[1, 0], [-1, -2]])},
        classes=("mass", "effusion"),
        multilabel=True,
    )
    b = make(
        tmp_path / "b.hilum",
        1,
        seed=1,
        columns={"label": np.array([[1, -1]])},
        classes=("nodule", "mass"),
        multilabel=True,
    )
    c = make(tmp_path / "c.hilum", 1, seed=2, columns={}, classes=(), multilabel=False)
    merge_containers([a, b, c], tmp_path / "d.hilum", keep_order=True)
    with formats.open_container(tmp_path / "d.hilum") as container:
        assert container.classes == ("mass", "effusion", "nodule")
        assert container.labels.tolist() == [[1, 0, -2], [-1, -2, -2], [-1, -2, 1], [-2, -2, -2]]


def test_merge_fills_what_is_missing(tmp_path: Path) -> None:
    full = {
        "split": [1, 2],
        "sample_key": keys_of(1, 2),
        "source": [0, 0],
        "view": [0, 1],
        "row_flags": [0, 0],
        "sex": [1, 2],
        "age": [30, 90],
        "projection": [1, 4],
    }
    a = make(tmp_path / "a.hilum", 2, columns=full, sources=["north"])
    b = make(tmp_path / "b.hilum", 1, seed=1, columns={})
    merge_containers([b, a], tmp_path / "c.hilum", keep_order=True)
    with formats.open_container(tmp_path / "c.hilum") as container:
        assert container.sources_names == ("north", "unknown")
        first = {name: values[0].tolist() for name, values in container.columns.items()}
        assert first == {
            "split": 0,
            "sample_key": [0] * 16,
            "source": 1,
            "view": 0,
            "row_flags": 0,
            "sex": 0,
            "age": 255,
            "projection": 0,
        }
        for name, values in full.items():
            np.testing.assert_array_equal(container.columns[name][1:], values, err_msg=name)


def test_merge_refuses_a_patient_in_two_splits(tmp_path: Path) -> None:
    for i, split in enumerate((1, 3)):
        make(
            tmp_path / f"{i}.hilum",
            2,
            seed=i,
            columns={
                "group": np.array([0, 0]),
                "split": np.array([split, split]),
                "sample_key": keys_of(7, i + 1),
            },
        )
    paths = [tmp_path / "0.hilum", tmp_path / "1.hilum"]
    with pytest.raises(ContainerError, match=r"1 patient.*train of .*test of .*--without-splits"):
        merge_containers(paths, tmp_path / "c.hilum")
    assert files_in(tmp_path) == {"0.hilum", "1.hilum"}
    merge_containers(paths, tmp_path / "c.hilum", without_splits=True)
    with formats.open_container(tmp_path / "c.hilum") as container:
        assert container.splits is None
        assert container.n_groups == 1
        assert container.n_rows == 3


def test_merge_leaves_withdrawn_rows_out_in_every_file(tmp_path: Path) -> None:
    a = make(tmp_path / "a.hilum", 2, columns={"row_flags": [1, 0], "sample_key": keys_of(1, 2)})
    b = make(tmp_path / "b.hilum", 2, seed=1, columns={"sample_key": keys_of(1, 3)})
    report = merge_containers([a, b], tmp_path / "c.hilum")
    assert report.counts["withdrawn"] == 2
    with formats.open_container(tmp_path / "c.hilum") as container:
        assert sorted(container.sample_keys[:, 0].tolist()) == [2, 3]
        assert not container.row_flags.any()
    gone = make(tmp_path / "gone.hilum", 1, seed=3, columns={"row_flags": [1]})
    other = make(tmp_path / "other.hilum", 1, seed=4, columns={"row_flags": [1]})
    with pytest.raises(ContainerError, match="all rows are withdrawn"):
        merge_containers([gone, other], tmp_path / "d.hilum")


def test_merge_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    a = make(tmp_path / "a.hilum")
    wrong = {
        "backbone": make(tmp_path / "1.hilum", backbone={"name": "other", "sha256": "cd" * 32}),
        "preprocessing": make(tmp_path / "2.hilum", preprocessing={"version": 2}),
        "other's final mean": make(
            tmp_path / "3.hilum",
            blocks=[{"tap": "final", "pooling": "max", "offset": 0, "width": 4}],
        ),
        "features are f32, the other's f16": make(tmp_path / "4.hilum", dtype="f32"),
        "has no labels": make(tmp_path / "5.hilum", columns={}),
        "several labels a row, the other one label": make(
            tmp_path / "6.hilum",
            columns={"label": np.zeros((8, 2), int)},
            multilabel=True,
        ),
    }
    for message, path in wrong.items():
        with pytest.raises(ContainerError, match=message) as caught:
            merge_containers([a, path], tmp_path / "c.hilum")
        assert str(a) in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(ContainerError, match="holds the same data set as"):
        merge_containers([a, a], tmp_path / "c.hilum")
    with pytest.raises(ContainerError, match="is an input"):
        merge_containers([a, wrong["backbone"]], a)
    with pytest.raises(ValueError, match="expected two or more"):
        merge_containers([a], tmp_path / "c.hilum")
    with pytest.raises(formats.Corrupt, match="rows 0 to"):
        merge_containers([a, GOLDEN / "corrupt" / "feature_bit.hilum"], tmp_path / "c.hilum")
    assert not (tmp_path / "c.hilum").exists()


def test_merge_converts_when_told(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a.hilum"), make(tmp_path / "b.hilum", seed=1, dtype="f32")
    merge_containers([a, b], tmp_path / "c.hilum", dtype="f32", keep_order=True)
    with formats.open_container(tmp_path / "c.hilum") as c, formats.open_container(a) as one:
        assert c.dtype == "f32"
        np.testing.assert_array_equal(c.features[:8], one.read_rows())
    report = merge_containers([a, b], tmp_path / "d.hilum", dtype="i8", keep_order=True)
    assert "features were converted to i8" in report.remarks
    with formats.open_container(tmp_path / "d.hilum") as c, formats.open_container(a) as one:
        np.testing.assert_allclose(c.read_rows()[:8], one.read_rows(), atol=c.scales.max())


def test_merge_of_i8_keeps_elements_where_scales_agree(tmp_path: Path) -> None:
    a = make(tmp_path / "a.hilum", 30, dtype="i8")
    halves = []
    for i, rows in enumerate((slice(0, 15), slice(15, 30))):
        halves.append(tmp_path / f"{i}.hilum")
        subset_container(a, halves[-1], rows=rows)
    with pytest.raises(
        ContainerError, match=r"1\.hilum: comes from the data set .*0\.hilum: a pat"
    ):
        merge_containers(halves, tmp_path / "b.hilum", keep_order=True)
    report = merge_containers(halves, tmp_path / "b.hilum", keep_order=True, allow_related=True)
    assert not any("quantised" in remark for remark in report.remarks)
    assert any("both come from the data set" in remark for remark in report.remarks)
    with formats.open_container(a) as one, formats.open_container(tmp_path / "b.hilum") as two:
        assert one.features.tobytes() == two.features.tobytes()
        assert one.scales.tobytes() == two.scales.tobytes()
    other = make(tmp_path / "other.hilum", 30, seed=1, dtype="i8")
    report = merge_containers([a, other], tmp_path / "c.hilum", keep_order=True)
    assert any("quantised anew" in remark for remark in report.remarks)
    with formats.open_container(a) as one, formats.open_container(tmp_path / "c.hilum") as two:
        np.testing.assert_allclose(two.read_rows()[:30], one.read_rows(), atol=two.scales.max())


def test_merge_joins_notes(tmp_path: Path) -> None:
    a = make(
        tmp_path / "a.hilum",
        n_refused=2,
        head={"kind": "linear"},
        probes={"ones": [1.0], "twos": [2.0]},
        about={"licence": "CC BY 4.0", "attribution": "A", "age_range_years": [20, 30],
               "title": "T"},
    )  # fmt: skip
    b = make(
        tmp_path / "b.hilum",
        seed=1,
        n_refused=3,
        probes={"ones": [1.0], "twos": [2.5]},
        about={"licence": "CC0", "attribution": "A", "age_range_years": [1, 90], "url": "https://a.org/b"},
    )  # fmt: skip
    report = merge_containers([a, b], tmp_path / "c.hilum")
    with formats.open_container(tmp_path / "c.hilum") as container:
        notes = container.notes
    assert notes["n_refused"] == 5
    assert "head" not in notes
    assert notes["probes"] == {"ones": [1.0]}
    assert notes["about"] == {
        "licence": "CC BY 4.0; CC0",
        "attribution": "A",
        "age_range_years": [1, 90],
        "title": "T",
        "url": "https://a.org/b",
    }
    assert any("the probes twos differ" in remark for remark in report.remarks)
    merge_containers([a, b], tmp_path / "c.hilum", about={"title": "Both"}, overwrite=True)
    with formats.open_container(tmp_path / "c.hilum") as container:
        assert container.notes["about"] == {"title": "Both"}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_patients_are_joined_like_a_graph(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 25))
    groups = np.array(data.draw(st.lists(st.integers(0, 8), min_size=n, max_size=n)))
    numbers = data.draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    joined = join_patients(groups, keys_of(*numbers))
    # naive: walk from row to row while they share a patient or an image
    reach = [{i} for i in range(n)]
    changed = True
    while changed:
        changed = False
        for i, j in itertools.product(range(n), repeat=2):
            linked = groups[i] == groups[j] or (numbers[i] == numbers[j] != 0)
            if linked and reach[i] != reach[j]:
                both = reach[i] | reach[j]
                for k in both:
                    reach[k] = both
                changed = True
    for i, j in itertools.product(range(n), repeat=2):
        assert (joined[i] == joined[j]) == (j in reach[i])


# ---- subset ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_a_subset_of_everything_is_the_same(tmp_path: Path, name: str) -> None:
    source = GOLDEN / "valid" / name
    subset_container(source, tmp_path / "x.hilum")
    with formats.open_container(source) as a, formats.open_container(tmp_path / "x.hilum") as b:
        b.verify()
        kept = a.rows()
        assert b.features.tobytes() == a.features[kept].tobytes()
        assert set(a.columns) == set(b.columns)
        for column in set(a.columns) - {"group"}:
            np.testing.assert_array_equal(b.columns[column], a.columns[column][kept])
        expected = {**a.notes, "derived_from": [a.uuid, *a.notes.get("derived_from", ())]}
        assert b.notes == expected
        if a.scales is not None:
            assert a.scales.tobytes() == b.scales.tobytes()
        if a.groups is not None:
            pairs = set(zip(a.groups[kept].tolist(), b.groups.tolist(), strict=True))
            assert len(pairs) == len({g for g, _ in pairs}) == len({g for _, g in pairs})


def test_subset_conditions_are_joined_by_and(tmp_path: Path) -> None:
    with formats.open_container(EVERY) as container:
        labels, splits, groups = container.labels, container.splits, container.groups
        usable = np.zeros(container.n_rows, bool)
        usable[container.rows()] = True
        sources = container.sources
        index = np.arange(container.n_rows)
        cases: list[tuple[dict[str, Any], np.ndarray]] = [
            ({"split": "train"}, splits == 1),
            ({"split": ["train", "test"]}, np.isin(splits, (1, 3))),
            ({"classes": ["normal", "viral"]}, labels != 1),
            ({"rows": slice(3, 9)}, (index >= 3) & (index < 9)),
            ({"rows": [-1, 0, 0]}, np.isin(index, (0, 39))),
            ({"rows": index < 3}, index < 3),
            ({"groups": [1, 2]}, np.isin(groups, (1, 2))),
            ({"sources": ["site-a"]}, sources == 1),
            ({"split": "train", "classes": ["normal"]}, (splits == 1) & (labels == 0)),
        ]
        features = np.array(container.features)
    for arguments, expected in cases:
        report = subset_container(EVERY, tmp_path / "x.hilum", **arguments, overwrite=True)
        with formats.open_container(tmp_path / "x.hilum") as container:
            assert container.features.tobytes() == features[expected & usable].tobytes()
        assert report.n_rows == np.count_nonzero(expected & usable)
        assert report.counts["withdrawn"] == np.count_nonzero(expected & ~usable)


def test_subset_drops_classes_when_told(tmp_path: Path) -> None:
    subset_container(EVERY, tmp_path / "x.hilum", classes=["viral", "normal"])
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.classes == ("normal", "bacterial", "viral")
    subset_container(
        EVERY, tmp_path / "x.hilum", classes=["viral"], drop_classes=True, overwrite=True
    )
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.classes == ("viral",)
        assert not container.labels.any()
    with formats.open_container(MULTI) as a:
        some = int(np.flatnonzero((a.labels == 1).any(axis=1))[0])
        none = int(np.flatnonzero(~(a.labels == 1).any(axis=1))[0])
        present = np.flatnonzero(a.labels[some] == 1)
        names = tuple(a.classes[i] for i in present)
    subset_container(MULTI, tmp_path / "y.hilum", rows=[some], drop_classes=True)
    with formats.open_container(tmp_path / "y.hilum") as b:
        assert b.classes == names
        assert b.labels.tolist() == [[1] * len(present)]
    with pytest.raises(ContainerError, match="no class is present"):
        subset_container(
            MULTI, tmp_path / "y.hilum", rows=[none], drop_classes=True, overwrite=True
        )


def test_subset_tells_what_is_not_there(tmp_path: Path) -> None:
    plain = GOLDEN / "valid" / "f32_no_columns.hilum"
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (EVERY, {"split": "training"}, "no split 'training', expected some of none, train"),
        (EVERY, {"classes": ["x"]}, "no class 'x', expected some of normal"),
        (EVERY, {"rows": [40]}, "no row 40, expected 0 to 39"),
        (EVERY, {"rows": [True]}, "the mask has 1 entries"),
        (EVERY, {"rows": [0.5]}, "rows are float64"),
        (EVERY, {"groups": [20]}, "no group 20, expected 0 to 19"),
        (EVERY, {"sources": ["x"]}, "no source 'x'"),
        (EVERY, {"rows": [5]}, r"no row fulfils all conditions \(1 would, but are withdrawn\)"),
        (EVERY, {"rows": []}, "no row fulfils"),
        (plain, {"split": "train"}, "has no split column"),
        (plain, {"groups": [0]}, "has no group column"),
        (plain, {"sources": ["a"]}, "has no source column"),
        (plain, {"drop_classes": True}, "has no labels"),
    ]
    for path, arguments, message in cases:
        with pytest.raises(ContainerError, match=message) as caught:
            subset_container(path, tmp_path / "x.hilum", **arguments)
        assert str(path) in str(caught.value)
    with pytest.raises(formats.Corrupt):
        subset_container(GOLDEN / "corrupt" / "feature_bit.hilum", tmp_path / "x.hilum")
    assert files_in(tmp_path) == set()
    path = make(tmp_path / "a.hilum")
    with pytest.raises(ContainerError, match="is an input"):
        subset_container(path, path)


def test_lineage_is_newest_first_and_bounded(tmp_path: Path) -> None:
    uuids = [f"{i:032x}" for i in range(64)]
    path = make(tmp_path / "0.hilum", derived_from=uuids)
    subset_container(path, tmp_path / "1.hilum")
    with formats.open_container(path) as a, formats.open_container(tmp_path / "1.hilum") as b:
        assert b.notes["derived_from"] == [a.uuid, *uuids[:63]]


def test_what_a_later_version_wrote_is_left_out_and_told(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum")
    container = formats.open_container(path, mode="read")
    container.notes["mood"] = "good"
    container.notes["about"] = {"title": "T", "mood": {"x": 1}}
    container.notes["blocks"][0]["mood"] = 1
    remarks: list[str] = []
    notes = copy_notes(container, remarks)
    assert "mood" not in notes and notes["about"] == {"title": "T"}
    assert "mood" not in notes["blocks"][0]
    assert "mood" in container.notes
    assert remarks == [
        "a.hilum: left out the notes mood, blocks[0].mood, about.mood, which this version does "
        "not know"
    ]
    container.notes["about"]["title"] = "born 12.3.1956"
    with pytest.raises(ContainerError, match=r"about\.title.*It is not copied on"):
        copy_notes(container, [])


# ---- withdraw ----------------------------------------------------------------------------------


def test_withdrawn_rows_say_nothing_and_the_others_stay(tmp_path: Path) -> None:
    report = withdraw_rows(EVERY, tmp_path / "x.hilum", groups=[3])
    assert report.counts == {"rows": 2, "earlier": 1, "patients": 1}
    with formats.open_container(EVERY) as a, formats.open_container(tmp_path / "x.hilum") as b:
        b.verify()
        gone = (a.groups == 3) | (a.row_flags == 1)
        assert np.count_nonzero(gone) == 3
        assert not b.features[gone].any()
        np.testing.assert_array_equal(b.row_flags, gone)
        np.testing.assert_array_equal(b.groups, a.groups)
        np.testing.assert_array_equal(b.labels, a.labels)
        assert not b.sample_keys[gone].any() and not b.sexes[gone].any()
        assert (b.ages[gone] == 255).all() and not b.projections[gone].any()
        assert b.features[~gone].tobytes() == a.features[~gone].tobytes()
        assert b.scales.tobytes() == a.scales.tobytes()
        for name in a.columns:
            np.testing.assert_array_equal(b.columns[name][~gone], a.columns[name][~gone])
        assert b.notes == {**a.notes, "derived_from": [a.uuid]}
        assert set(b.rows()) == set(np.flatnonzero(~gone))


@pytest.mark.parametrize("name", sorted({*WRITTEN} - {"f16_one_row.hilum", PIXELS.name}))
def test_any_kind_of_container_can_lose_a_row(tmp_path: Path, name: str) -> None:
    source = GOLDEN / "valid" / name
    withdraw_rows(source, tmp_path / "x.hilum", rows=[1], rows_only=True)
    withdraw_rows(source, tmp_path / "y.hilum", rows=[1], rows_only=True, drop=True)
    with (
        formats.open_container(source) as a,
        formats.open_container(tmp_path / "x.hilum") as b,
        formats.open_container(tmp_path / "y.hilum") as c,
    ):
        b.verify()
        c.verify()
        rows = [row for row in a.rows().tolist() if row != 1]
        assert b.rows().tolist() == rows
        assert c.features.tobytes() == b.features[rows].tobytes()
        if a.scales is None:
            assert c.features.tobytes() == a.features[rows].tobytes()
        else:  # where only the withdrawn row reached the end of the scale, it is another
            np.testing.assert_array_equal(b.scales, c.scales)
            full = np.abs(a.features[rows].astype(int)).max(axis=0) == 127
            np.testing.assert_array_equal(b.scales == a.scales, full)
            np.testing.assert_array_equal(c.features[:, full], a.features[rows][:, full])
            np.testing.assert_allclose(
                c.read_rows(), a.read_rows(rows), rtol=1e-6, atol=c.scales.max() * 0.51
            )
        assert not b.features[1].any()
        if a.multilabel and a.labels is not None:
            assert (b.labels[1] == -2).all()


def test_a_patient_leaves_with_every_row(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.hilum",
        6,
        columns={
            "group": np.array([0, 0, 1, 2, 3, 3]),
            "sample_key": keys_of(1, 2, 2, 4, 5, 0),
        },
    )
    # the second image of patient 0 is patient 1's as well: one person under two numbers
    withdraw_rows(path, tmp_path / "x.hilum", rows=[0])
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.rows().tolist() == [3, 4, 5]
    withdraw_rows(path, tmp_path / "x.hilum", rows=[0], rows_only=True, overwrite=True)
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.rows().tolist() == [1, 2, 3, 4, 5]
    report = withdraw_rows(
        path, tmp_path / "x.hilum", sample_keys=keys_of(5, 0, 77), overwrite=True
    )
    assert report.counts["rows"] == 2
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.rows().tolist() == [0, 1, 2, 3]


def test_dropped_rows_leave_no_hole(tmp_path: Path) -> None:
    report = withdraw_rows(EVERY, tmp_path / "x.hilum", groups=[3, 4], drop=True)
    assert report.counts == {"rows": 4, "earlier": 1, "patients": 2, "rescaled": 1}
    with formats.open_container(EVERY) as a, formats.open_container(tmp_path / "x.hilum") as b:
        kept = np.flatnonzero(~np.isin(a.groups, (3, 4)) & (a.row_flags == 0))
        same = a.scales == b.scales
        assert np.count_nonzero(~same) == 1
        np.testing.assert_array_equal(b.features[:, same], a.features[kept][:, same])
        np.testing.assert_allclose(b.read_rows(), a.read_rows(kept), atol=b.scales.max() * 0.51)
        assert b.n_groups == len(np.unique(a.groups[kept])) == int(b.groups.max()) + 1
        assert b.row_flags is None


def test_in_place_replaces_the_file_when_all_is_done(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum")
    before = path.read_bytes()
    with formats.open_container(path) as old:
        features = np.array(old.features)
        with pytest.raises(ContainerError, match="no group 9"):
            withdraw_rows(path, groups=[9])
        assert path.read_bytes() == before
        withdraw_rows(path, groups=[1])
        np.testing.assert_array_equal(old.features, features)  # who has it mapped keeps it
    assert files_in(tmp_path) == {"a.hilum"}
    with formats.open_container(path) as container:
        assert container.rows().tolist() == [0, 1, 4, 5, 6, 7]
    # what was withdrawn stays so
    report = withdraw_rows(path, groups=[0])
    assert report.counts == {"rows": 2, "earlier": 2, "patients": 1}
    with pytest.raises(ContainerError, match="all 2 rows that fit are withdrawn already"):
        withdraw_rows(path, groups=[0])
    with formats.open_container(path) as container:
        assert container.rows().tolist() == [4, 5, 6, 7]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX links and modes")
def test_in_place_reaches_the_file_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = make(tmp_path / "data" / "a.hilum")
    path.chmod(0o600)
    (tmp_path / "link.hilum").symlink_to(path)
    withdraw_rows(tmp_path / "link.hilum", groups=[0])
    assert (tmp_path / "link.hilum").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    with formats.open_container(path) as container:
        assert container.rows().tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("stored", ["f16", "f32", "i8"])
@pytest.mark.parametrize("extracted", ["f16", "f32", "i8"])
def test_matching_finds_the_patient_by_features(
    tmp_path: Path, stored: str, extracted: str
) -> None:
    features = np.random.default_rng(0).normal(size=(3000, 24)).astype(np.float32) ** 2
    groups = np.arange(3000) // 3
    path = make(tmp_path / "a.hilum", features=features, columns={"group": groups}, dtype=stored)
    # two of the patient's three images, and one that is not there
    images = np.concatenate([features[[1500, 1502]], features[:1] + 1])
    patient = make(tmp_path / "p.hilum", features=images, columns={}, dtype=extracted)
    report = withdraw_rows(path, tmp_path / "x.hilum", matching=patient)
    assert report.counts == {"images": 3, "found": 2, "rows": 3, "earlier": 0, "patients": 1}
    assert any("1 of 3 images of p.hilum were not found" in r for r in report.remarks)
    with formats.open_container(tmp_path / "x.hilum") as container:
        gone = np.setdiff1d(np.arange(3000), container.rows())
        assert gone.tolist() == [1500, 1501, 1502]


def test_matching_finds_the_patient_by_key(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.hilum", 4, columns={"group": [0, 0, 1, 2], "sample_key": keys_of(1, 2, 3, 0)}
    )
    patient = make(tmp_path / "p.hilum", 2, seed=5, columns={"sample_key": keys_of(2, 0)})
    report = withdraw_rows(path, tmp_path / "x.hilum", matching=patient)
    assert report.counts["found"] == 1 and report.counts["rows"] == 2
    with formats.open_container(tmp_path / "x.hilum") as container:
        assert container.rows().tolist() == [2, 3]


def test_withdrawing_nobody_is_an_error(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum")
    stranger = make(tmp_path / "p.hilum", seed=9)
    other = make(tmp_path / "o.hilum", backbone={"name": "other", "sha256": "cd" * 32})
    files = files_in(tmp_path)
    for arguments, message in (
        ({"matching": stranger}, "no row fits; nothing was written"),
        ({"matching": other}, "cannot be compared with"),
        ({"rows": []}, "no row fits"),
        ({"sample_keys": keys_of(1)}, "has no sample keys"),
        ({"rows": slice(None), "drop": True}, "no row would be left"),
    ):
        with pytest.raises(ContainerError, match=message):
            withdraw_rows(path, tmp_path / "x.hilum", **arguments)
    with pytest.raises(ValueError, match="nobody is named"):
        withdraw_rows(path, tmp_path / "x.hilum")
    with pytest.raises(ContainerError, match="is an input"):
        withdraw_rows(path, path, groups=[0])
    with pytest.raises(ContainerError, match="is an input"):
        withdraw_rows(path, stranger, matching=stranger)
    assert files_in(tmp_path) == files


def test_without_groups_the_user_is_warned(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum", columns={})
    report = withdraw_rows(path, tmp_path / "x.hilum", rows=[2])
    assert report.counts == {"rows": 1, "earlier": 0}
    assert any("no patient groups" in remark for remark in report.remarks)


# ---- resplit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
def test_resplit_keeps_patients_whole_and_shares_classes(tmp_path: Path, multilabel: bool) -> None:
    rng = np.random.default_rng(0)
    n = 600
    groups = rng.permutation(np.arange(n) // 3)
    labels = rng.integers(0, 3, groups.max() + 1)[groups]
    if multilabel:
        labels = (labels[:, None] == np.arange(3)).astype(np.int8)
    flags = (np.arange(n) % 50 == 0).astype(np.uint8)
    path = make(
        tmp_path / "a.hilum",
        n,
        columns={"label": labels, "group": groups, "row_flags": flags},
        classes=("a", "b", "c"),
        multilabel=multilabel,
    )
    report = resplit_container(path, tmp_path / "x.hilum", fractions=(0.6, 0.2, 0.2), seed=4)
    with formats.open_container(path) as a, formats.open_container(tmp_path / "x.hilum") as b:
        b.verify()
        assert b.group_clean
        assert b.features.tobytes() == a.features.tobytes()
        for name in a.columns:
            np.testing.assert_array_equal(a.columns[name], b.columns[name])
        assert (b.splits[flags == 1] == 0).all() and (b.splits[flags == 0] > 0).all()
        for i in range(3):
            of_class = (b.labels[:, i] == 1 if multilabel else b.labels == i) & (flags == 0)
            shares = np.bincount(b.splits[of_class], minlength=4)[1:] / of_class.sum()
            np.testing.assert_allclose(shares, (0.6, 0.2, 0.2), atol=0.06)
        counts = {name: int((b.splits == i).sum()) for i, name in enumerate(formats.SPLITS)}
        assert report.counts == counts
        first = np.array(b.splits)
    for seed, same in ((4, True), (5, False)):
        out = tmp_path / f"{seed}.hilum"
        resplit_container(path, out, fractions=(0.6, 0.2, 0.2), seed=seed)
        with formats.open_container(out) as container:
            assert np.array_equal(container.splits, first) == same


def test_resplit_keeps_those_together_who_share_an_image(tmp_path: Path) -> None:
    n = 40
    keys = np.zeros((n, 16), np.uint8)
    keys[::2] = np.repeat(np.arange(1, 11), 2)[:, None]  # pairs of patients share a key
    path = make(tmp_path / "a.hilum", n, columns={"group": np.arange(n), "sample_key": keys})
    resplit_container(path, tmp_path / "x.hilum", fractions=(0.5, 0, 0.5))
    with formats.open_container(tmp_path / "x.hilum") as container:
        for first in range(0, n, 4):
            assert container.splits[first] == container.splits[first + 2]
        assert set(container.splits.tolist()) == {1, 3}


def test_resplit_refuses_nonsense(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum", 4, columns={"group": [0, 0, 1, 1]})
    for fractions in ((0.5, 0.5), (0.7, 0.7, -0.4), (0.2, 0.2, 0.2), (float("nan"), 0.5, 0.5)):
        with pytest.raises(ValueError, match="expected three shares"):
            resplit_container(path, tmp_path / "x.hilum", fractions=fractions)
    with pytest.raises(ContainerError, match=r"2 patient\(s\) cannot be divided into 3 splits"):
        resplit_container(path, tmp_path / "x.hilum")
    plain = make(tmp_path / "b.hilum", columns={})
    report = resplit_container(plain, tmp_path / "y.hilum")
    assert any("divided one by one" in remark for remark in report.remarks)


# ---- all of them -------------------------------------------------------------------------------


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a.hilum", 3000), make(tmp_path / "b.hilum", 3000, seed=1)
    for run in (
        lambda told: merge_containers([a, b], tmp_path / "m.hilum", progress=told),
        lambda told: subset_container(a, tmp_path / "s.hilum", progress=told),
        lambda told: withdraw_rows(a, tmp_path / "w.hilum", matching=b, rows=[1], progress=told),
        lambda told: resplit_container(a, tmp_path / "r.hilum", progress=told),
    ):
        calls: list[tuple[int, int]] = []
        run(lambda done, total, calls=calls: calls.append((done, total)))
        assert len({total for _, total in calls}) == 1
        done = [done for done, _ in calls]
        assert done == sorted(done)
        assert calls[-1][0] == calls[-1][1]


def test_errors_of_writing_are_errors_of_the_output(tmp_path: Path) -> None:
    big = make(tmp_path / "a.hilum", features=np.full((8, 3), 1e6, np.float32), dtype="f32")
    also = make(tmp_path / "b.hilum", features=np.full((8, 3), 2e6, np.float32), dtype="f32")
    with pytest.raises(ContainerError, match=r"c\.hilum: row 0, feature 0 .* write dtype f32"):
        merge_containers([big, also], tmp_path / "c.hilum", dtype="f16")
    with pytest.raises(ContainerError, match="does not exist"):
        subset_container(big, tmp_path / "no" / "x.hilum")
    with pytest.raises(NotesError, match="about"):
        merge_containers([big, also], tmp_path / "c.hilum", about={"patient": "x"})
    assert files_in(tmp_path) == {"a.hilum", "b.hilum"}


def test_an_element_that_hilum_never_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a.hilum", dtype="i8")
    foreign = np.full((8, 4), -128, np.int8)
    monkeypatch.setattr(formats.Container, "read_stored", lambda source, rows: foreign[rows])
    with pytest.raises(ContainerError, match=r"a\.hilum: holds the i8 element -128.*--dtype f16"):
        subset_container(path, tmp_path / "x.hilum")


MEASURE = """
import sys
from pathlib import Path
import formats._rows
from formats.editing import *
formats._rows._PIECE_BYTES = 4 << 20  # a smaller file shows the same
# not of getrusage, whose peak is that of the process which started this one
def peak_mib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
before = peak_mib()
a, b, out = sys.argv[1:]
merge_containers([a, b], out)
subset_container(a, out, rows=slice(0, None, 2), overwrite=True)
withdraw_rows(a, out, rows=[1], matching=b, overwrite=True)
resplit_container(a, out, overwrite=True)
print(peak_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_holds_pieces_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, dim = 20_000, 2048
    notes = notes_of(dim)
    part = rng.normal(size=(n // 10, dim)).astype(np.float16)
    for name, repeats, size in (("a", 10, len(part)), ("b", 1, 10)):
        with formats.ContainerWriter(
            tmp_path / name,
            dim=dim,
            backbone_digest=notes["backbone"]["sha256"],
            preprocessing_digest=formats.preprocessing_digest(notes["preprocessing"]),
        ) as writer:
            for i in range(repeats):
                writer.append(part[:size] + np.float16(i), label=np.zeros(size, int))
            writer.seal(notes)
    result = run_python(MEASURE, *(str(tmp_path / name) for name in ("a", "b", "c")))
    assert result.returncode == 0, result.stderr
    # 78 MiB of features
    assert int(result.stdout) < 50, result.stdout


# ---- what a hostile user found -----------------------------------------------------------------


def wide(n: int, *, seed: int = 0, dim: int = 8) -> np.ndarray:
    """Features enough that two equal rows are one image."""
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def pair(folder: Path, one: dict[str, Any], other: dict[str, Any], **more: Any) -> list[Path]:
    """Two files with two rows each, of which the first has the same features in both."""
    features = [wide(2, seed=1), wide(2, seed=2)]
    features[1][0] = features[0][0]
    return [
        make(folder / f"{name}.hilum", features=rows, columns=columns, **more)
        for name, rows, columns in zip("ab", features, (one, other), strict=True)
    ]


@pytest.mark.parametrize("dtype", ["f16", "f32", "i8"])
def test_merge_knows_an_image_again_by_its_features(tmp_path: Path, dtype: str) -> None:
    features = wide(40)
    features[1] = features[0]  # twice in one file: both stay
    features[2:4] = 0  # nothing can be told by these
    whole = make(
        tmp_path / "w.hilum",
        features=features,
        columns={"group": np.arange(40) // 2, "sample_key": keys_of(*[0] * 39, 9)},
        dtype=dtype,
    )
    a, b = tmp_path / "a.hilum", tmp_path / "b.hilum"
    subset_container(whole, a, rows=slice(0, 21))
    subset_container(whole, b, rows=[2, 3, *range(20, 40)])
    report = merge_containers([a, b], tmp_path / "c.hilum", keep_order=True, allow_related=True)
    assert report.counts["same_features"] == report.counts["duplicates"] == 1
    assert report.counts["joined_patients"] == 1
    assert report.n_rows == 21 + 2 + 19
    with formats.open_container(tmp_path / "c.hilum") as c, formats.open_container(whole) as w:
        rows = [*range(21), 2, 3, *range(21, 40)]
        assert c.features.tobytes() == w.features[rows].tobytes()
        # row 20 is in both files, row 21 is of the same patient
        assert c.groups[20] == c.groups[23]
        assert c.n_groups == 21


def test_merge_of_equal_features_needs_equal_types_and_views(tmp_path: Path) -> None:
    features = wide(4)
    a = make(tmp_path / "a.hilum", features=features, columns={"group": range(4)}, dtype="f32")
    b = make(tmp_path / "b.hilum", features=features, columns={"group": range(4)}, dtype="f16")
    report = merge_containers([a, b], tmp_path / "c.hilum", dtype="f32")
    assert report.n_rows == 8 and report.counts["alike"] == 4
    view = {"group": range(4), "view": [1, 1, 0, 0]}
    d = make(tmp_path / "d.hilum", features=features, columns=view, dtype="f32")
    report = merge_containers([a, d], tmp_path / "e.hilum")
    # another view of an image is another row of the same patient
    assert report.counts["same_features"] == 2 and report.counts["joined_patients"] == 2
    more = np.concatenate([features, 9 * features])
    i8 = [make(tmp_path / f"{i}.hilum", features=more[: 4 + i], dtype="i8", columns={})
          for i in (0, 4)]  # fmt: skip
    report = merge_containers(i8, tmp_path / "f.hilum")
    assert report.counts["same_features"] == 0
    assert any("were not looked for: the files' i8 scales differ" in r for r in report.remarks)


def test_merge_leaves_a_withdrawn_image_out_by_its_features_too(tmp_path: Path) -> None:
    features = wide(3)
    gone = make(
        tmp_path / "a.hilum",
        features=wide(2, seed=5),
        columns={"row_flags": [1, 0], "sample_key": keys_of(1, 2)},
    )
    keyed = make(tmp_path / "b.hilum", features=features, columns={"sample_key": keys_of(1, 3, 4)})
    plain = make(tmp_path / "c.hilum", features=features[:1], columns={})
    report = merge_containers([gone, keyed, plain], tmp_path / "d.hilum")
    assert report.counts["withdrawn"] == 3
    with formats.open_container(tmp_path / "d.hilum") as container:
        assert sorted(container.sample_keys[:, 0].tolist()) == [2, 3, 4]


def test_duplicates_leave_what_they_know(tmp_path: Path) -> None:
    blank = {"group": [0, 1], "sex": [0, 1], "age": [255, 1], "projection": [0, 1],
             "split": [0, 1], "sample_key": keys_of(0, 1),
             "label": [[1, -2, -2], [0, 0, 0]]}  # fmt: skip
    known = {"group": [0, 1], "sex": [2, 2], "age": [44, 2], "projection": [3, 2],
             "split": [3, 1], "sample_key": keys_of(7, 8), "label": [[1, 0, -1], [1, 1, 1]],
             "source": [0, 0]}  # fmt: skip
    a, b = pair(tmp_path, blank, known, classes=("x", "y", "z"), multilabel=True, sources=["s"])
    c = make(
        tmp_path / "c.hilum",
        features=wide(2, seed=1)[:1],
        columns={"label": [[-2, 0, -2, 1]], "age": [55]},
        classes=("x", "y", "z", "extra"),
        multilabel=True,
    )
    report = merge_containers([a, b, c], tmp_path / "m.hilum", keep_order=True)
    assert report.n_rows == 3 and report.counts["conflicts"] == 0
    with formats.open_container(tmp_path / "m.hilum") as container:
        assert container.labels[0].tolist() == [1, 0, -1, 1]
        assert container.sexes[0] == 2 and container.ages[0] == 44
        assert container.projections[0] == 3 and container.splits[0] == 3
        assert container.sample_keys[0].tolist() == [7] * 16
        assert container.sources_names[container.sources[0]] == "s"
    assert any("the age of 1 duplicate rows is another" in remark for remark in report.remarks)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("by_key", [False, True])
def test_contradicting_labels_are_refused(tmp_path: Path, multilabel: bool, by_key: bool) -> None:
    labels = [[[1, 0], [1, 0]], [[0, 0], [1, 1]]] if multilabel else [[0, 0], [1, 1]]
    columns = [{"label": label} for label in labels]
    if by_key:
        columns = [
            {**c, "sample_key": keys_of(*keys)}
            for c, keys in zip(columns, ((1, 2), (1, 3)), strict=True)
        ]
    paths = pair(tmp_path, *columns, multilabel=multilabel)
    message = r"1 image\(s\) .* contradicting labels \(row 0 of .*a\.hilum and row 0 of .*b\.hilum"
    with pytest.raises(ContainerError, match=message):
        merge_containers(paths, tmp_path / "c.hilum")
    assert files_in(tmp_path) == {"a.hilum", "b.hilum"}
    for choice, n_rows in (("first", 3), ("drop", 2)):
        out = tmp_path / f"{choice}.hilum"
        report = merge_containers(paths, out, keep_order=True, on_conflict=choice)
        assert report.n_rows == n_rows and report.counts["conflicts"] == 1
        with formats.open_container(out) as container:
            first = [1, 0] if multilabel else 0
            last = [1, 1] if multilabel else 1
            assert container.labels[0].tolist() == first
            assert container.labels[-1].tolist() == last
    with pytest.raises(ValueError, match="on_conflict is 'last'"):
        merge_containers(paths, tmp_path / "c.hilum", on_conflict="last")


@pytest.mark.parametrize("here", [[0, 0], [1, 1], None])
@pytest.mark.parametrize("there", [2, 3])
def test_merge_refuses_a_patient_who_is_learned_from_and_tested(
    tmp_path: Path, here: list[int] | None, there: int
) -> None:
    one: dict[str, Any] = {"group": [0, 0]} if here is None else {"group": [0, 0], "split": here}
    paths = pair(tmp_path, one, {"group": [0, 0], "split": [there, there]})
    place = "train of" if here == [1, 1] else "not marked, which counts as train, in"
    with pytest.raises(ContainerError, match=f"1 patient.*{place} .*a.hilum.*--without-splits"):
        merge_containers(paths, tmp_path / "c.hilum")
    merge_containers(paths, tmp_path / "c.hilum", without_splits=True)
    resplit = tmp_path / "d.hilum"
    with pytest.raises(ContainerError, match="cannot be divided"):
        resplit_container(tmp_path / "c.hilum", resplit, fractions=(0.5, 0, 0.5))


def test_merge_of_train_and_not_marked_goes_on(tmp_path: Path) -> None:
    paths = pair(tmp_path, {"group": [0, 0]}, {"group": [0, 0], "split": [1, 1]})
    assert merge_containers(paths, tmp_path / "c.hilum").n_rows == 3


@pytest.mark.parametrize("drop", [False, True])
def test_i8_scales_do_not_tell_of_the_withdrawn(tmp_path: Path, drop: bool) -> None:
    features = wide(50)
    features[:, 3] = 0
    features[[4, 7], 0] = (20, -20)  # patients 2 and 3
    features[4, 3] = 5  # nobody else has anything here
    features[8, 1] = 77  # patient 4 stays
    path = make(
        tmp_path / "a.hilum",
        features=features,
        columns={"group": np.arange(50) // 2, "row_flags": np.arange(50) == 6},
        dtype="i8",
    )
    out = tmp_path / "x.hilum"
    report = withdraw_rows(path, out, groups=[2, 3], drop=drop)
    assert any("features came from withdrawn rows only" in r for r in report.remarks)
    with formats.open_container(path) as a, formats.open_container(out) as b:
        b.verify()
        kept = np.setdiff1d(np.arange(50), [4, 5, 6, 7])
        rows = np.arange(46) if drop else kept
        assert np.array_equal(b.rows(), rows)
        changed = np.flatnonzero(a.scales != b.scales)
        assert {0, 3} <= set(changed) and 1 not in changed
        assert report.counts["rescaled"] == len(changed)
        same = np.setdiff1d(np.arange(8), changed)
        np.testing.assert_array_equal(a.features[kept][:, same], b.features[rows][:, same])
        before, after = a.read_rows(kept), b.read_rows(rows)
        assert (np.abs(before - after) < b.scales * 0.51).all()
        assert b.scales[3] == 1
        most = np.abs(b.features[rows].astype(int)).max(axis=0)
        assert (most[np.arange(8) != 3] == 127).all()


def test_a_second_patient_is_found_after_the_scales_of_the_first_went(tmp_path: Path) -> None:
    features = wide(300, dim=32)
    features[0] *= np.linspace(2, 40, 32)  # the first patient is far out everywhere
    path = make(
        tmp_path / "a.hilum", features=features, columns={"group": np.arange(300)}, dtype="i8"
    )
    report = withdraw_rows(path, groups=[0])
    assert report.counts["rescaled"] > 20
    for patient in (17, 123):
        images = make(
            tmp_path / f"{patient}.hilum",
            features=features[patient : patient + 1],
            columns={},
            dtype="f32",
        )
        report = withdraw_rows(path, matching=images)
        assert report.counts["found"] == report.counts["rows"] == 1
    stranger = make(tmp_path / "s.hilum", features=wide(1, seed=8, dim=32), columns={})
    with pytest.raises(ContainerError, match="no row fits"):
        withdraw_rows(path, matching=stranger)
    with formats.open_container(path) as container:
        assert sorted(set(range(300)) - set(container.rows().tolist())) == [0, 17, 123]


def test_scales_of_earlier_withdrawals_go_too(tmp_path: Path) -> None:
    """As an older version left them: rows zeroed, their scale still there."""
    elements = np.full((6, 8), 127, np.int8)
    elements[2:, 0] = 50
    notes = notes_of(8)
    with formats.ContainerWriter(
        tmp_path / "a.hilum",
        dim=8,
        dtype="i8",
        scales=np.full(8, 2.0),
        backbone_digest=notes["backbone"]["sha256"],
        preprocessing_digest=formats.preprocessing_digest(notes["preprocessing"]),
    ) as writer:
        writer.append(elements, row_flags=[1, 0, 0, 0, 0, 0])
        writer.seal(notes)
    withdraw_rows(tmp_path / "a.hilum", tmp_path / "b.hilum", rows=[1])
    with formats.open_container(tmp_path / "b.hilum") as container:
        np.testing.assert_allclose(container.scales, [100 / 127] + [2] * 7, rtol=1e-6)
        assert (container.features[2:] == 127).all()


def test_drop_purges_rows_that_were_zeroed_before(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum")
    withdraw_rows(path, groups=[1])
    with pytest.raises(ContainerError, match=r"withdrawn already.*--drop"):
        withdraw_rows(path, groups=[1])
    report = withdraw_rows(path, groups=[1], drop=True)
    assert report.n_rows == 6 and report.counts["rows"] == 0 and report.counts["earlier"] == 2
    assert any("were withdrawn before; now they were left out" in r for r in report.remarks)
    with formats.open_container(path) as container:
        assert container.row_flags is None and container.n_groups == 3


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX owners and links")
def test_in_place_keeps_the_owner_and_tells_of_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a.hilum")
    path.chmod(0o640)
    real = os.stat_result
    calls = []
    # as if another user had made the old file
    old = list(path.stat())
    old[4], old[5] = 4321, 8765
    monkeypatch.setattr("formats.editing.os.chown", lambda *given: calls.append(given))
    remarks: list[str] = []
    _restore_owner(path, real(old), remarks)
    assert calls == [(path, 4321, 8765)] and remarks == []
    assert path.stat().st_mode & 0o777 == 0o640

    def refuse(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr("formats.editing.os.chown", refuse)
    _restore_owner(path, real(old), remarks)
    assert "belonged to user 4321, group 8765, and that cannot be set" in remarks[0]
    (tmp_path / "b.hilum").hardlink_to(path)
    report = withdraw_rows(path, groups=[0])
    (warning,) = [r for r in report.remarks if r.startswith("warning")]
    assert "1 other name(s) (hard links): it still holds the withdrawn rows" in warning
    assert path.stat().st_mode & 0o777 == 0o640


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a.hilum"), make(tmp_path / "b.hilum", seed=1)
    out = tmp_path / "x.hilum"
    for run in (
        lambda **more: merge_containers([a, b], out, **more),
        lambda **more: subset_container(a, out, **more),
        lambda **more: withdraw_rows(a, out, rows=[1], **more),
        lambda **more: resplit_container(a, out, **more),
    ):
        out.write_bytes(b.read_bytes())
        with pytest.raises(ContainerError, match=r"exists already.*--overwrite"):
            run()
        assert out.read_bytes() == b.read_bytes()
        run(overwrite=True)
        assert out.read_bytes() != b.read_bytes()
        with pytest.raises(ContainerError, match="is an input"):
            subset_container(a, a, overwrite=True)
    for wrong in (tmp_path, ""):
        with pytest.raises(ContainerError, match=r"expected (the name|that) of a file"):
            subset_container(a, wrong)


def test_views_are_not_torn(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"view": np.arange(8) % 2}
    path = make(tmp_path / "a.hilum", columns=columns)
    other = make(tmp_path / "b.hilum", seed=1)
    with pytest.raises(ContainerError, match=r"a\.hilum: has views of images, but no patient"):
        resplit_container(path, tmp_path / "x.hilum")
    with pytest.raises(ContainerError, match=r"a\.hilum: has views of images, but no patient"):
        merge_containers([other, path], tmp_path / "x.hilum")
    columns["sample_key"] = keys_of(*np.arange(8) // 2 + 1)
    resplit_container(make(tmp_path / "c.hilum", columns=columns), tmp_path / "x.hilum")
    with formats.open_container(tmp_path / "x.hilum") as container:
        np.testing.assert_array_equal(container.splits[::2], container.splits[1::2])


def test_resplit_keeps_equal_features_together(tmp_path: Path) -> None:
    features = np.repeat(wide(30), 2, axis=0)
    path = make(tmp_path / "a.hilum", features=features, columns={"group": np.arange(60)})
    report = resplit_container(path, tmp_path / "x.hilum", fractions=(0.5, 0, 0.5))
    with formats.open_container(tmp_path / "x.hilum") as container:
        np.testing.assert_array_equal(container.splits[::2], container.splits[1::2])
        np.testing.assert_array_equal(container.groups, np.arange(60))
    assert any(remark.startswith("30 patients have an image with") for remark in report.remarks)


@pytest.mark.parametrize("multilabel", [False, True])
def test_many_classes_are_lumped(monkeypatch: pytest.MonkeyPatch, multilabel: bool) -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [1, 9, 2, 8, 3])
    given_labels = (labels[:, None] == np.arange(5)).astype(np.int8) if multilabel else labels
    member, n_lumped = bounded_membership(given_labels, 5, 23)
    assert n_lumped == 0
    np.testing.assert_array_equal(member, class_membership(given_labels, 5))
    monkeypatch.setattr("formats.splitting._MOST_COUNTS", 3 * 23)
    member, n_lumped = bounded_membership(given_labels, 5, 23)
    assert n_lumped == 3
    expected = np.column_stack([labels == 1, labels == 3, np.isin(labels, (0, 2, 4))])
    np.testing.assert_array_equal(member, expected)


def test_rows_beyond_the_end_are_errors(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum")
    for rows, message in (
        (slice(7, 5000), "rows 7:5000 go beyond its 8 rows"),
        (slice(8, None), "rows 8: go beyond"),
        (slice(-9, None), "rows -9: go beyond"),
        ([99999999999999999999], "no row 99999999999999999999, expected 0 to 7"),
    ):
        with pytest.raises(ContainerError, match=message):
            subset_container(path, tmp_path / "x.hilum", rows=rows)
    assert subset_container(path, tmp_path / "x.hilum", rows=slice(-8, 8)).n_rows == 8


# ---- the command line --------------------------------------------------------------------------


def test_a_file_may_follow_the_groups(tmp_path: Path) -> None:
    path, out = make(tmp_path / "a.hilum"), tmp_path / "x.hilum"
    arguments = ["--group", "0,1", "--group", "3", str(path)]
    assert main(["subset", "-o", str(out), *arguments]) == 0
    assert formats.open_container(out).n_rows == 6
    assert main(["withdraw", "-o", str(out), "--overwrite", *arguments]) == 0
    assert formats.open_container(out).rows().tolist() == [4, 5]


def test_usage_that_cannot_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make(tmp_path / "a.hilum"))
    for arguments, message in (
        (["-o", ""], "the name is empty, expected the name of the new .hilum file"),
        (["-o", str(tmp_path)], "is a folder, expected the name of the new .hilum file"),
        (["-o", "x", "--rows", "99999999999999999999"], "has a number larger than any row's"),
        (["-o", "x", "--rows", "0:99999999999999999999"], "has a number larger than any row's"),
        (["-o", "x", "--group", "1;2"], "'1;2' is not a number, or several such as 17,18"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["subset", path, *arguments])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert main(["subset", path, "-o", str(tmp_path / "x.hilum"), "--rows", "7:5000"]) == 1
    assert "rows 7:5000 go beyond its 8 rows, 0 to 7" in capsys.readouterr().err


def test_an_image_that_is_not_found_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = wide(8)
    path = make(tmp_path / "a.hilum", features=features, columns={"group": np.arange(8) // 2})
    images = np.concatenate([features[:1], features[:1] + 1])
    patient = make(tmp_path / "p.hilum", features=images, columns={})
    given_arguments = ["withdraw", str(path), "--matching", str(patient), "--in-place", "--quiet"]
    assert main(given_arguments) == 1
    assert "warning: 1 of 2 images of p.hilum were not found: if" in capsys.readouterr().err
    with formats.open_container(path) as container:
        assert container.rows().tolist() == list(range(2, 8))


def test_merge_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in pair(tmp_path, {"label": [0, 0]}, {"label": [1, 1]})]
    out = str(tmp_path / "c.hilum")
    assert main(["merge", *paths, "-o", out]) == 1
    assert "--on-conflict first" in capsys.readouterr().err
    assert main(["merge", *paths, "-o", out, "--on-conflict", "first"]) == 0
    text = capsys.readouterr().out
    assert "duplicate rows left out: 1; same image by features: 1;" in text
    child = str(tmp_path / "d.hilum")
    assert main(["subset", out, "-o", child]) == 0
    assert main(["merge", out, child, "-o", str(tmp_path / "e.hilum")]) == 1
    assert "(--allow-related)" in capsys.readouterr().err
    assert main(["merge", out, child, "-o", str(tmp_path / "e.hilum"), "--allow-related"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are not UTF-8")
def test_a_name_that_cannot_be_shown(tmp_path: Path) -> None:
    path = make(tmp_path / "a.hilum")
    out = os.fsencode(tmp_path) + b"/\xff.hilum"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "1"}
    code = "import sys; from formats.__main__ import main; sys.exit(main(sys.argv[1:]))"
    result = run_python(code, "subset", str(path), "-o", os.fsdecode(out), env=environment)
    assert result.returncode == 0, result.stderr
    assert "/?.hilum: 8 rows" in result.stdout


# ---- views -------------------------------------------------------------------------------------

VIEWS = {
    "number": 2, "mirror": False, "rotation_degrees": 5.0, "shift_fraction": 0.03,
    "scale_fraction": 0.05, "contrast_fraction": 0.1, "group": "patient",
}  # fmt: skip


def make_views(path: Path, images: list[int], *, n_views: int = 2, **more: Any) -> Path:
    """Write images, by number, with two views each: of patient number // 2, label number % 2."""
    numbers = np.repeat(images, n_views + 1)
    view = np.tile(np.arange(n_views + 1), len(images))
    features = np.stack(
        [np.random.default_rng([n, v]).normal(size=12) for n, v in zip(numbers, view, strict=True)]
    )
    columns = {"label": numbers % 2, "group": np.unique(numbers // 2, return_inverse=True)[1]}
    columns["view"] = view
    keys = more.pop("keys", False)
    if keys:
        columns["sample_key"] = keys_of(*(numbers + 1).tolist())
    columns.update(more.pop("columns", {}))
    notes = {} if n_views == 0 else {"views": {**VIEWS, "number": n_views}}
    return make(
        path,
        len(numbers),
        columns=columns,
        features=features.astype(np.float16).astype(np.float32),
        **notes,
        **more,
    )


@pytest.mark.parametrize("keys", [False, True])
def test_merge_keeps_views_and_takes_each_once(tmp_path: Path, keys: bool) -> None:
    a = make_views(tmp_path / "a.hilum", [0, 1, 2, 3], keys=keys)
    b = make_views(tmp_path / "b.hilum", [3, 4, 5], keys=keys)
    report = merge_containers([a, b], tmp_path / "c.hilum", seed=1)
    assert report.counts["duplicates"] == 3  # image 3, and its two views
    with formats.open_container(tmp_path / "c.hilum") as c:
        assert c.n_rows == 6 * 3
        assert len(c.rows(views=False)) == 6
        assert c.notes["views"] == VIEWS
        # of each patient the views of all images: 0 1 | 2 3 of both files | 4 5
        for group in range(c.n_groups):
            views = np.sort(c.views[c.groups == group]).tolist()
            assert views == [0, 0, 1, 1, 2, 2]
        assert c.n_groups == 3


@pytest.mark.parametrize("on_conflict", ["first", "drop"])
def test_merge_judges_an_image_and_its_views_alike(tmp_path: Path, on_conflict: Any) -> None:
    a = make_views(tmp_path / "a.hilum", [0, 1, 2, 3])
    b = make_views(tmp_path / "b.hilum", [3, 4], columns={"label": [0, 0, 0, 0, 0, 0]})
    with pytest.raises(ContainerError, match="come twice with contradicting labels"):
        merge_containers([a, b], tmp_path / "c.hilum")
    merge_containers([a, b], tmp_path / "c.hilum", on_conflict=on_conflict)
    with formats.open_container(tmp_path / "c.hilum") as c:
        # the image that was called 1 and 0: all of its rows are 1, or none is left
        left = 5 if on_conflict == "first" else 4
        assert np.bincount(c.views).tolist() == [left] * 3
        for view in range(3):
            n_of_one = int(np.count_nonzero(c.labels[c.views == view]))
            assert n_of_one == (2 if on_conflict == "first" else 1)


def test_merge_refuses_an_image_with_and_without_views(tmp_path: Path) -> None:
    a = make_views(tmp_path / "a.hilum", [0, 1, 2])
    b = make_views(tmp_path / "b.hilum", [2, 3], n_views=0)
    apart = make_views(tmp_path / "d.hilum", [6, 7], n_views=0)
    with pytest.raises(ContainerError, match=r"one has 0 augmented views and the other 2.*--views"):
        merge_containers([a, b], tmp_path / "c.hilum")
    assert merge_containers([a, apart], tmp_path / "c.hilum").n_rows == 11
    plain = tmp_path / "plain.hilum"
    assert subset_container(a, plain, without_views=True).n_rows == 3
    with formats.open_container(plain) as c:
        assert c.views is None
        assert "views" not in c.notes
    assert merge_containers([plain, b], tmp_path / "e.hilum").n_rows == 4


def test_merged_notes_say_the_most_of_the_views(tmp_path: Path) -> None:
    a = make_views(tmp_path / "a.hilum", [0, 1])
    b = make_views(tmp_path / "b.hilum", [2, 3], n_views=3)
    with formats.open_container(b) as c:
        assert c.notes["views"]["number"] == 3
    report = merge_containers([a, b], tmp_path / "c.hilum")
    assert any("views differ" in remark for remark in report.remarks)
    with formats.open_container(tmp_path / "c.hilum") as c:
        assert c.notes["views"] == {**VIEWS, "number": 3}


def test_withdrawing_takes_the_views_along(tmp_path: Path) -> None:
    path = make_views(tmp_path / "a.hilum", [0, 1, 2, 3], keys=True)
    with formats.open_container(path) as c:
        of_first = np.flatnonzero(c.groups == 0)
    report = withdraw_rows(path, tmp_path / "b.hilum", rows=[1])  # a view
    assert report.counts["rows"] == 6
    with formats.open_container(tmp_path / "b.hilum") as c:
        assert not c.features[of_first].any()
        assert len(c.rows()) == 6
    withdraw_rows(path, tmp_path / "c.hilum", rows=[4], rows_only=True)
    with formats.open_container(tmp_path / "c.hilum") as c:
        gone = np.setdiff1d(np.arange(12), c.rows())
        assert gone.tolist() == [3, 4, 5]  # the image and its views
    other = make_views(tmp_path / "p.hilum", [2], n_views=0, keys=True)
    report = withdraw_rows(path, tmp_path / "d.hilum", matching=other)
    assert report.counts["images"] == report.counts["found"] == 1
    assert report.counts["rows"] == 6
    with_views = make_views(tmp_path / "q.hilum", [2], keys=True)
    plain = make_views(tmp_path / "plain.hilum", [0, 1, 2, 3], n_views=0, keys=True)
    report = withdraw_rows(plain, tmp_path / "e.hilum", matching=with_views)
    assert report.counts["images"] == report.counts["found"] == 1


def test_a_row_alone_is_not_withdrawn_where_its_views_are_not_known(tmp_path: Path) -> None:
    path = make_views(tmp_path / "a.hilum", [0, 1, 2, 3])
    with pytest.raises(ContainerError, match="a view of the withdrawn image would stay"):
        withdraw_rows(path, tmp_path / "b.hilum", rows=[0], rows_only=True)
    assert files_in(tmp_path) == {"a.hilum"}


def test_resplit_keeps_views_with_their_original(tmp_path: Path) -> None:
    path = make_views(tmp_path / "a.hilum", list(range(20)))
    resplit_container(path, tmp_path / "b.hilum", fractions=(0.6, 0.2, 0.2))
    with formats.open_container(tmp_path / "b.hilum") as c:
        assert c.group_clean
        np.testing.assert_array_equal(c.splits, np.repeat(c.splits[::3], 3))
        assert c.notes["views"] == VIEWS


def test_groups_that_are_images_are_still_said_to_be_without_views(tmp_path: Path) -> None:
    path = make_views(tmp_path / "a.hilum", [0, 2, 4])
    with formats.open_container(path) as c:
        notes = {**c.notes, "views": {**VIEWS, "group": "image"}}
        formats.write_container(tmp_path / "b.hilum", c.read_rows(), notes, columns=dict(c.columns))
    subset_container(tmp_path / "b.hilum", tmp_path / "c.hilum", without_views=True)
    with formats.open_container(tmp_path / "c.hilum") as c:
        assert c.notes["views"]["group"] == "image"
        assert c.notes["views"]["number"] == 0
        assert c.views is None and c.n_rows == 3


# ---- blocks of pixels --------------------------------------------------------------------------


def make_floors(path: Path, taps: tuple[str, ...] = ("border", "pixels"), **more: Any) -> Path:
    """Write features of two network blocks of 2, then 3 of each floor."""
    names = [("a", "mean", 2), ("b", "max", 2), *((tap, "64x64", 3) for tap in taps)]
    blocks, offset = [], 0
    for tap, pooling, width in names:
        blocks.append({"tap": tap, "pooling": pooling, "offset": offset, "width": width})
        offset += width
    features = np.random.default_rng(1).integers(0, 100, (8, offset)).astype(np.float32)
    return make(path, features=features, blocks=blocks, **more)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_subset_without_floors_leaves_the_network(tmp_path: Path, dtype: str) -> None:
    path = make_floors(tmp_path / "a.hilum", dtype=dtype)
    report = subset_container(path, tmp_path / "b.hilum", without_floors=True, rows=slice(1, 7))
    assert report.counts["left_out_features"] == 6
    with (
        formats.open_container(path) as whole,
        formats.open_container(tmp_path / "b.hilum") as part,
    ):
        part.verify()
        assert whole.not_for_sharing is not None
        assert part.not_for_sharing is None
        assert part.dim == 4
        np.testing.assert_array_equal(part.features, whole.features[1:7, :4])
        np.testing.assert_array_equal(part.labels, whole.labels[1:7])
        if dtype == "i8":
            np.testing.assert_array_equal(part.scales, whole.scales[:4])
        assert list(part.blocks) == list(whole.blocks[:2])
        assert part.notes["derived_from"] == [whole.uuid]


def test_floors_between_the_network_leave_no_gap(tmp_path: Path) -> None:
    names = [("pixels", 3), ("a", 2), ("border", 3), ("b", 1)]
    blocks, offset = [], 0
    for tap, width in names:
        blocks.append({"tap": tap, "pooling": "mean", "offset": offset, "width": width})
        offset += width
    features = np.arange(72, dtype=np.float32).reshape(8, 9)
    path = make(tmp_path / "a.hilum", features=features, blocks=blocks)
    subset_container(path, tmp_path / "b.hilum", without_floors=True)
    with formats.open_container(tmp_path / "b.hilum") as part:
        np.testing.assert_array_equal(part.read_rows(), features[:, [3, 4, 8]])
        assert [(b["tap"], b["offset"]) for b in part.blocks] == [("a", 0), ("b", 2)]


def test_without_floors_where_there_is_nothing_else_or_nothing_to_leave(tmp_path: Path) -> None:
    bare = make(tmp_path / "a.hilum")
    report = subset_container(bare, tmp_path / "b.hilum", without_floors=True)
    assert any("no blocks of pixels" in remark for remark in report.remarks)
    only = make(
        tmp_path / "c.hilum",
        blocks=[{"tap": "pixels", "pooling": "64x64", "offset": 0, "width": 4}],
    )
    with pytest.raises(ContainerError, match="nothing would be left"):
        subset_container(only, tmp_path / "d.hilum", without_floors=True)


def test_pixels_are_not_for_sharing_and_a_border_is(tmp_path: Path) -> None:
    border = make_floors(tmp_path / "border.hilum", ("border",))
    pixels = make_floors(tmp_path / "pixels.hilum", ("pixels",))
    with formats.open_container(border) as container:
        assert container.not_for_sharing is None
        assert [block["tap"] for block in container.floor_blocks] == ["border"]
    with pytest.raises(ContainerError, match=r"not exported\. NOT FOR SHARING.*--without-floors"):
        formats.export_container(pixels, tmp_path / "t.npz")
    assert files_in(tmp_path) == {"border.hilum", "pixels.hilum"}
    formats.export_container(border, tmp_path / "t.npz")
    with pytest.raises(ContainerError, match="its features are"):
        merge_containers([border, pixels], tmp_path / "m.hilum")


def test_inspect_says_first_what_is_not_for_sharing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_floors(tmp_path / "a.hilum")
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].strip().startswith("NOT FOR SHARING: every row holds the picture itself")
    assert main(["subset", str(path), "-o", str(tmp_path / "b.hilum"), "--without-floors"]) == 0
    assert "features left out: 6" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "b.hilum")]) == 0
    assert "SHARING" not in capsys.readouterr().out
    assert main(["export", str(path), "-o", str(tmp_path / "a.csv")]) == 1
    assert "NOT FOR SHARING" in capsys.readouterr().err
