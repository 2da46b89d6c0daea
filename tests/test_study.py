"""What stands beside a head's figures: floors, confounding, warnings, and nothing of a person."""

from __future__ import annotations

import json

import numpy as np
import pytest

import engine
from engine.errors import MismatchError
from engine.study import study_evaluation, study_head
from formats import open_container, write_container

PREPROCESSING = engine.Preprocessing().to_dict()
SOURCES = ("north", "south")


def make_container(path, *, n=180, border=None, classes=("a", "b", "c"), seed=0, **columns):
    """A set in which six of twelve features carry the class, and the border if asked."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    X = np.random.default_rng(99).normal(size=(len(classes), 12))[labels] * (np.arange(12) < 6)
    X = (X + rng.normal(size=(n, 12))).astype(np.float32)
    blocks = [{"tap": "final", "pooling": "mean", "offset": 0, "width": 12}]
    if border is not None:
        shade = rng.normal(size=(n, 4)) + border * labels[:, None]
        X = np.concatenate([X, shade.astype(np.float32)], axis=1)
        blocks.append({"tap": "border", "pooling": "64x64", "offset": 12, "width": 4})
    columns = {
        "label": labels.astype(np.uint16),
        "group": np.arange(n, dtype=np.uint32),
        **{name: values(labels, rng) for name, values in columns.items()},
    }
    notes = {
        "classes": list(classes),
        "multilabel": False,
        "backbone": {"name": "net", "sha256": "a" * 64},
        "preprocessing": PREPROCESSING,
        "blocks": blocks,
    }
    if "source" in columns:
        notes["sources"] = list(SOURCES)
    write_container(path, X, notes, dtype="f32", columns=columns, group_order="given")
    return open_container(path)


def by_chance(labels, rng):
    return rng.integers(0, 2, len(labels)).astype(np.uint8)


def only_first(labels, _):
    """Class a alone comes from the first source, others from the second."""
    return (labels != 0).astype(np.uint8)


def first_from_north(labels, rng):
    """Class a comes from the first source alone, others from both."""
    return np.where(labels == 0, 0, rng.integers(0, 2, len(labels))).astype(np.uint8)


def warned(study, *words):
    return [text for text in study.warnings if all(word in text for word in words)]


def test_a_sound_set_gets_no_warning(tmp_path):
    container = make_container(tmp_path / "c.hilum", border=0.0, source=by_chance, sex=by_chance)
    study = study_head(container, cv=3)
    assert study.warnings == ()
    assert [floor.name for floor in study.floors] == ["metadata only", "image border only"]
    for floor in study.floors:
        assert floor.evaluation.auroc_macro == pytest.approx(0.5, abs=0.12)
        assert floor.difference["auroc_macro"]["ci95"][0] > 0.1
        np.testing.assert_array_equal(floor.evaluation.rows, study.evaluation.rows)
    assert len(study.floors_missing) == 1
    assert "--floors pixels" in study.floors_missing[0]


def test_a_class_from_one_source_is_said_first(tmp_path):
    study = study_head(make_container(tmp_path / "c.hilum", source=first_from_north), cv=3)
    [text] = warned(study, "'a'", "one source", "north")
    assert study.warnings[0] == text
    assert not warned(study, "'b'", "one source")
    assert study.head.metrics["warnings"] == list(study.warnings)
    table = study.confounding["columns"]["source"]
    assert table["values"] == list(SOURCES)
    assert np.sum(table["rows"], axis=0).tolist() == [60, 60, 60]
    assert [row[0] for row in table["rows"]] == [60, 0]
    assert table["patients"] == table["rows"]
    # one source for all is a limit, and no class can be told by it
    alone = study_head(
        make_container(tmp_path / "d.hilum", source=lambda labels, _: 0 * labels.astype(np.uint8)),
        cv=3,
    )
    assert not warned(alone, "one source")
    assert any("one source" in text for text in alone.limits)


def test_a_floor_within_the_interval_of_the_head_is_said(tmp_path):
    study = study_head(make_container(tmp_path / "c.hilum", border=3.0), cv=3)
    assert warned(study, "image border only", "within the interval")
    assert study.head.metrics["floors"]["image border only"]["auroc_macro"] > 0.95
    # of one class alone, where the mean hides it
    some = study_head(make_container(tmp_path / "d.hilum", source=only_first), cv=3)
    assert warned(some, "metadata only", "'a'", "within the interval")
    assert not warned(some, "metadata only", "'b'")


def test_a_head_never_learns_from_a_floor(tmp_path):
    container = make_container(tmp_path / "c.hilum", border=3.0)
    study = study_head(container)
    assert [block.tap for block in study.head.blocks] == ["final"]
    assert study.head.weights["weight"].shape == (3, 12)


def test_without_floors_none_is_measured(tmp_path):
    study = study_head(make_container(tmp_path / "c.hilum", border=3.0), cv=3, floors=False)
    assert study.floors == study.floors_missing == ()


def test_few_patients_and_poor_protocol_are_said(tmp_path):
    study = study_head(make_container(tmp_path / "c.hilum", n=60), cv=3)
    assert warned(study, "few patients", "20 of 'a'")
    assert "3-fold" in study.protocol


def test_the_json_holds_the_promised_keys_and_no_file_name(tmp_path):
    container = make_container(tmp_path / "anna-nowak.hilum", source=only_first, sex=by_chance)
    study = study_head(container, cv=3, curve=True, name="chest")
    text = json.dumps(study.to_json(), allow_nan=False)
    found = json.loads(text)
    for key in ("n_rows", "n_groups", "classes", "accuracy", "auroc_macro", "auroc", "ci95"):
        assert key in found
    assert found["floors"]["metadata only"]["auroc"].keys() == {"a", "b", "c"}
    assert {row["column"] for row in found["subgroups"]} == {"source", "sex"}
    assert [point["n_groups"] for point in found["learning_curve"]] == sorted(
        point["n_groups"] for point in found["learning_curve"]
    )
    assert found["learning_curve"][-1]["auroc_macro"] == found["auroc_macro"]
    assert found["timing"]["peak_bytes"] > 1 << 20
    assert [step["name"] for step in found["timing"]["steps"]] == [
        "training", "floor metadata", "duplicates", "curve",
    ]  # fmt: skip
    study.head.save(tmp_path / "head.safetensors")
    for where in (text, (tmp_path / "head.safetensors").read_bytes().decode("latin-1")):
        assert "nowak" not in where
        assert str(tmp_path) not in where


def test_progress_never_goes_back_and_ends(tmp_path):
    heard = []
    study_head(
        make_container(tmp_path / "c.hilum", border=0.0, sex=by_chance),
        cv=3,
        curve=True,
        progress=lambda done, total, text: heard.append((done / total, text)),
    )
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0, abs=0.01)
    assert any(text.startswith("floor border: ") for _, text in heard)


def test_another_container_is_judged_with_its_floors_and_a_rival(tmp_path):
    head = study_head(make_container(tmp_path / "c.hilum"), name="all").head
    poor = study_head(make_container(tmp_path / "p.hilum", n=24), name="poor", l2=30.0).head
    other = make_container(tmp_path / "o.hilum", seed=7, border=3.0, source=only_first)
    study = study_evaluation(head, other, other=poor)
    assert study.purpose == "evaluate"
    assert warned(study, "'a'", "one source")
    assert [floor.name for floor in study.floors] == ["metadata only", "image border only"]
    assert any("within the rows that judge" in note for note in study.floors[0].evaluation.notes)
    difference = study.comparison["difference"]["auroc_macro"]
    assert difference["value"] == pytest.approx(
        study.evaluation.auroc_macro - study.comparison["auroc_macro"], abs=1e-12
    )
    assert difference["ci95"][0] <= difference["value"] <= difference["ci95"][1]
    same = study_evaluation(head, other, other=head)
    assert same.comparison["difference"]["auroc_macro"] == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_a_rival_of_other_classes_is_refused(tmp_path):
    head = study_head(make_container(tmp_path / "c.hilum")).head
    rival = study_head(make_container(tmp_path / "d.hilum", classes=("a", "b", "x"))).head
    with pytest.raises(MismatchError, match="expected the same classes"):
        study_evaluation(head, make_container(tmp_path / "o.hilum", seed=7), other=rival)
