"""Floors: metadata as columns, by name over containers, and what is not known as a value."""

from __future__ import annotations

import numpy as np
import pytest
from test_training import CLASSES, make_container, make_rows

from engine.dataset import learning_rows, load_rows
from engine.errors import SplitError
from engine.floors import AGE_BANDS, container_columns, metadata_matrix, row_columns
from engine.judging import evaluate_head
from engine.protocols import cross_validate_columns
from engine.rows import Crew, Rows
from engine.training import fit_head
from engine.validation import cross_validate
from engine.work import Course


def load(containers):
    with Crew(1) as crew, Rows(containers) as features:
        return load_rows(tuple(containers), features, learning_rows, Course(1, None).reading(crew))


def test_every_year_is_in_one_band():
    years = [year for _, first, last in AGE_BANDS for year in range(first, last + 1)]
    assert years == list(range(255))


def test_columns_are_one_for_each_value_and_unknown_is_one(tmp_path):
    X, labels, groups = make_rows(60)
    ages = np.array([0, 1, 5, 6, 12, 13, 17, 18, 39, 40, 64, 65, 90, 255] * 5, np.uint8)[:60]
    sexes = (np.arange(60) % 3).astype(np.uint8)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, age=ages, sex=sexes)
    matrix, names = metadata_matrix(load([container]))
    assert matrix.dtype == np.float32
    assert names == (
        "sex: unknown", "sex: female", "sex: male", "age: under 1", "age: 1 to 5", "age: 6 to 12",
        "age: 13 to 17", "age: 18 to 39", "age: 40 to 64", "age: 65 and older", "age: unknown",
    )  # fmt: skip
    np.testing.assert_array_equal(matrix[:, :3].argmax(axis=1), sexes)
    np.testing.assert_array_equal(
        matrix[:14, 3:].argmax(axis=1), [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    )
    np.testing.assert_array_equal(matrix.sum(axis=1), 2.0)


def test_sources_of_two_containers_are_joined_by_name(tmp_path):
    containers = []
    for number, names in enumerate((["north", "south"], ["east", "north"])):
        X, labels, groups = make_rows(60, seed=number)
        containers.append(
            make_container(
                tmp_path / f"{number}.hilum", X, labels, groups, notes={"sources": names},
                source=(np.arange(60) % 2).astype(np.uint8),
            )
        )  # fmt: skip
    X, labels, groups = make_rows(60, seed=7)
    sexes = np.ones(60, np.uint8)
    containers.append(make_container(tmp_path / "2.hilum", X, labels, groups, sex=sexes))
    data = load(containers)
    columns = row_columns(data)
    source = columns["source"]
    found = [source.names[code] for code in source.codes[[0, 1, 60, 61, 120]]]
    assert found == ["north", "south", "east", "north", "unknown"]
    assert np.unique(columns["sex"].codes[:120]).tolist() == [0]
    assert set(columns) == {"source", "sex"}
    alone = container_columns(containers[1], np.array([1, 2]))
    assert [alone["source"].names[code] for code in alone["source"].codes] == ["north", "east"]
    some = row_columns(data, np.array([60, 1]))
    assert [source.names[code] for code in some["source"].codes] == ["east", "south"]


def floor_container(path, *, told="border", n=150, **columns):
    """Rows whose features say nothing of the class, while one of their floors does."""
    rng = np.random.default_rng(4)
    signal, labels, groups = make_rows(n, d=8)
    noise = rng.normal(size=(n, 8)).astype(np.float32)
    parts = {"final": noise, "border": noise[:, ::-1], "pixels": noise * 2, told: signal}
    blocks = [
        {"tap": tap, "pooling": "mean" if tap == "final" else "64x64", "offset": 8 * i, "width": 8}
        for i, tap in enumerate(parts)
    ]
    X = np.concatenate(list(parts.values()), axis=1)
    return make_container(path, X, labels, groups, notes={"blocks": blocks}, **columns), signal


def test_a_head_never_learns_from_floors_and_floors_are_found_by_name(tmp_path):
    container, signal = floor_container(tmp_path / "c.hilum")
    head = fit_head(container, cv=3, l2=0.3)
    assert [(block.tap, block.offset) for block in head.blocks] == [("final", 0)]
    assert head.weights["weight"].shape == (3, 8)
    plain = cross_validate(container, folds=3, l2=0.3)
    assert plain.auroc_macro < 0.65
    found = {
        name: cross_validate_columns(container, name, cv=3, l2=0.3) for name in ("border", "pixels")
    }
    assert found["border"].auroc_macro > 0.9
    assert found["pixels"].auroc_macro < 0.65
    given = cross_validate_columns(container, signal, cv=3, l2=0.3)
    np.testing.assert_array_equal(given.probabilities, found["border"].probabilities)
    for other in (*found.values(), given):
        np.testing.assert_array_equal(other.rows, plain.rows)
        np.testing.assert_array_equal(other.labels, plain.labels)
        np.testing.assert_array_equal(other.groups, plain.groups)
    # A container without floors is of the same kind for training, and judges the head.
    X, labels, groups = make_rows(90, d=8, seed=5)
    bare = make_container(tmp_path / "b.hilum", X, labels, groups)
    assert fit_head([container, bare], l2=0.3).training["n_rows"] == 240
    assert evaluate_head(head, bare).n_rows == 90
    assert evaluate_head(fit_head(bare, l2=0.3), container, "all").n_rows == 150
    with pytest.raises(SplitError, match=r"b\.hilum: has no feature block of the floor 'border'"):
        cross_validate_columns([container, bare], "border", cv=3)


def test_equal_borders_in_two_containers_are_not_equal_images(tmp_path):
    one, _ = floor_container(tmp_path / "a.hilum", told="final")
    X = one.read_rows()
    Y, labels, groups = make_rows(150, d=8, seed=9)
    X[:, 8:16] = 0.0
    both = []
    for name, features in (("x", X), ("y", np.concatenate([Y, X[:, 8:]], axis=1))):
        both.append(
            make_container(
                tmp_path / f"{name}.hilum", features, labels, groups,
                notes={"blocks": list(one.blocks)},
            )
        )  # fmt: skip
    assert cross_validate_columns(both, "border", cv=3, l2=0.3).n_rows == 300


def test_metadata_that_tells_the_class_is_found_out(tmp_path):
    X, labels, groups = make_rows(150, strength=0.0)
    source = np.minimum(labels, 1).astype(np.uint8)
    container = make_container(
        tmp_path / "c.hilum", X, labels, groups, notes={"sources": ["a", "b"]}, source=source
    )
    floor = cross_validate_columns(container, "metadata", cv=3)
    assert floor.auroc["bacterial"] == 1.0
    assert floor.auroc["viral"] < 0.85
    assert cross_validate(container, folds=3).auroc_macro < 0.65
    bare = make_container(tmp_path / "b.hilum", X, labels, groups)
    with pytest.raises(SplitError, match="no source, sex, age or projection column"):
        cross_validate_columns(bare, "metadata", cv=3)


@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "marked"])
def test_without_folds_a_floor_is_judged_by_the_rows_that_judge_the_head(tmp_path, marked):
    splits = {}
    if marked:
        people = make_rows(150, d=8)[2]
        splits = {"split": np.where(people % 5 == 0, 2, 1).astype(np.uint8)}
    container, _ = floor_container(tmp_path / "c.hilum", **splits)
    head = fit_head(container, l2=0.3)
    floor = cross_validate_columns(container, "border", l2=0.3)
    assert floor.n_rows == head.metrics["n_rows"]
    np.testing.assert_array_equal(
        floor.rows, np.flatnonzero(container.splits == 2) if marked else np.arange(150)
    )
    assert floor.split == head.metrics["split"] == ("valid" if marked else "held out")
    assert floor.auroc_macro > 0.9
    assert head.metrics["auroc_macro"] < 0.65


def test_floors_of_an_evaluation_are_of_its_rows_and_say_how(tmp_path):
    people = make_rows(150, d=8)[2]
    splits = np.where(people % 2, 3, 1).astype(np.uint8)
    container, _ = floor_container(tmp_path / "c.hilum", split=splits)
    X, labels, groups = make_rows(150, d=8, seed=2)
    turned = CLASSES[1:] + CLASSES[:1]
    other = make_container(
        tmp_path / "o.hilum", X, np.array([2, 0, 1], np.uint16)[labels], groups, classes=turned
    )
    head = fit_head(other, l2=0.3)
    judged = evaluate_head(head, container)
    floor = cross_validate_columns(container, "border", head=head, cv=3, l2=0.3)
    assert floor.classes == judged.classes == turned
    np.testing.assert_array_equal(floor.rows, judged.rows)
    np.testing.assert_array_equal(floor.labels, judged.labels)
    assert floor.auroc_macro > 0.9
    assert any("cross-validated within" in note for note in floor.notes)
    whole = cross_validate_columns(container, "border", head=head, split="all", cv=3, l2=0.3)
    assert whole.n_rows == 150


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("lungs", "expected one of border, pixels, metadata, or numbers"),
        (np.zeros((149, 2)), r"expected \(150, m\)"),
        (np.zeros(150), r"expected \(150, m\)"),
        (np.full((150, 2), np.nan), "NaN or infinite"),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path, columns, message):
    container, _ = floor_container(tmp_path / "c.hilum")
    with pytest.raises(ValueError, match=message):
        cross_validate_columns(container, columns, cv=3)
