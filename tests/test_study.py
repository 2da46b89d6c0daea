"""What stands beside a head's figures: floors, confounding, warnings, and nothing of a person."""

from __future__ import annotations

import json

import numpy as np
import pytest

import engine
from engine import selection
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


def test_a_floor_within_the_interval_of_the_head_or_above_is_said(tmp_path):
    study = study_head(make_container(tmp_path / "c.hilum", border=3.0), cv=3)
    assert warned(study, "image border only", "above the interval")
    assert study.head.metrics["floors"]["image border only"]["auroc_macro"] > 0.95
    # of one class alone, where the mean hides it
    some = study_head(make_container(tmp_path / "d.hilum", source=only_first), cv=3)
    assert warned(some, "metadata only", "'a'", "the interval of the head")
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


def two_each(labels, rng):
    """Class a from two sources, b from two others."""
    return (2 * labels + rng.integers(0, 2, len(labels))).astype(np.uint8)


def make_labels(path, labels, *, sources=None, names=SOURCES, d=12, groups=None, **notes):
    """A multi-label set whose features say nothing."""
    rng = np.random.default_rng(5)
    n, k = labels.shape
    columns = {"label": labels.astype(np.int8)}
    columns["group"] = (np.arange(n) if groups is None else groups).astype(np.uint32)
    full = {
        "classes": [f"label {c}" for c in range(k)],
        "multilabel": True,
        "backbone": {"name": "net", "sha256": "a" * 64},
        "preprocessing": PREPROCESSING,
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": d}],
        **notes,
    }
    if sources is not None:
        columns["source"] = sources.astype(np.uint8)
        full["sources"] = list(names)
    X = rng.normal(size=(n, d)).astype(np.float32)
    write_container(path, X, full, dtype="f32", columns=columns, group_order="given")
    return open_container(path)


def test_sources_that_tell_the_class_together_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("test_study.SOURCES", ("n", "s", "e", "w"))
    container = make_container(tmp_path / "c.hilum", classes=("a", "b"), source=two_each)
    for cv in (3, "leave-one-source-out"):
        study = study_head(container, cv=cv, floors=False)
        [text] = warned(study, "source")
        assert "each source has either only images of 'a' or none" in text


def test_nearly_all_from_one_source_is_said(tmp_path):
    def nearly(labels, rng):
        return np.where(labels == 0, np.arange(len(labels)) == 0, rng.integers(0, 2, len(labels)))

    container = make_container(
        tmp_path / "c.hilum", source=lambda *given: nearly(*given).astype(np.uint8)
    )
    [text] = warned(study_head(container, cv=3), "one source")
    assert text.startswith("nearly every image (98%) of 'a' comes from one source (north)")


def test_sources_left_out_hide_no_confounding(tmp_path):
    """What cannot be judged without its source is not judged, and is said all the same."""
    rng = np.random.default_rng(0)
    sources = rng.integers(0, 2, 200)
    labels = rng.integers(0, 2, (200, 2))
    labels[sources == 1, 1] = 1  # all without label 1 come from the north
    container = make_labels(tmp_path / "c.hilum", labels, sources=sources)
    study = study_head(container, cv="leave-one-source-out")
    assert warned(study, "every image without 'label 1' comes from one source (north)")
    assert not warned(study, "'label 0'", "one source")
    table = study.confounding["columns"]["source"]
    assert np.sum(table["rows"], axis=0).tolist() == (labels == 1).sum(axis=0).tolist()
    assert warned(study, "no AUROC of 'label 1'")
    assert warned(study, "0 without 'label 1'")


def test_a_label_that_one_source_assessed_does_not_tell_the_source(tmp_path):
    rng = np.random.default_rng(0)
    sources = rng.integers(0, 2, 200)
    labels = rng.integers(0, 2, (200, 2))
    labels[sources == 1, 1] = -2
    container = make_labels(tmp_path / "c.hilum", labels, sources=sources)
    assert not warned(study_head(container, cv=3), "one source")


def test_guessing_is_said(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (200, 2))
    study = study_head(make_labels(tmp_path / "c.hilum", labels), cv=3)
    low, high = study.evaluation.ci95["auroc_macro"]
    assert low <= 0.5 <= high
    assert warned(study, "cannot be told from guessing", f"{low:.2f} to {high:.2f}")


def test_a_patient_with_most_of_the_images_is_said(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (200, 2))
    groups = np.maximum(np.arange(200) - 99, 0)
    study = study_head(make_labels(tmp_path / "c.hilum", labels, groups=groups), cv=3)
    assert warned(study, "one patient has 100 of the 200 images judged")


def test_what_a_floor_cannot_do_names_no_file(tmp_path):
    """Whatever a container is called: its name may be a person's."""
    container = make_container(tmp_path / "anna-nowak", n=60)
    study = study_head(container, cv=3)
    assert study.floors_missing[0].startswith("metadata only: has no source")
    assert "nowak" not in json.dumps(study.to_json())


@pytest.mark.parametrize("marked", [False, True])
def test_floors_of_many_rows_are_judged_by_the_rows_of_the_head(tmp_path, monkeypatch, marked):
    """Narrow floors fit where features do not: a sample must choose for both, or for neither."""
    columns = {"sex": by_chance}
    if marked:
        columns["split"] = lambda labels, rng: rng.choice([1, 2], len(labels)).astype(np.uint8)
    container = make_container(tmp_path / "c.hilum", n=360, border=0.0, **columns)
    monkeypatch.setattr(selection, "WHOLE_BYTES", 4 * 12 * 100)
    monkeypatch.setattr(selection, "SAMPLE_BYTES", 4 * 12 * 99)
    study = study_head(container)
    assert [floor.name for floor in study.floors] == ["metadata only", "image border only"]
    assert study.evaluation.n_rows < 250
    for floor in study.floors:
        np.testing.assert_array_equal(floor.evaluation.rows, study.evaluation.rows)


def test_the_protocol_of_an_evaluation_says_whose_rows_they_are(tmp_path):
    mine = make_container(
        tmp_path / "c.hilum", split=lambda labels, rng: rng.choice([1, 3], len(labels)).astype("u1")
    )
    head = study_head(mine).head
    assert "nothing was learned from them" in study_evaluation(head, mine).protocol
    assert "it has seen" in study_evaluation(head, mine, "train").protocol
    other = make_container(tmp_path / "o.hilum", seed=7)
    assert "of another container" in study_evaluation(head, other).protocol


def test_a_class_of_one_source_is_said_where_it_cannot_be_judged(tmp_path):
    container = make_container(tmp_path / "c.hilum", source=first_from_north)
    study = study_head(container, cv="leave-one-source-out")
    assert study.evaluation.auroc["a"] is None
    assert warned(study, "every image of 'a' comes from one source (north)")
    assert warned(study, "no AUROC of 'a'")


def test_a_rival_that_has_seen_the_rows_is_said(tmp_path):
    judged = make_container(tmp_path / "o.hilum", seed=7)
    rival = study_head(judged, name="insider").head
    head = study_head(make_container(tmp_path / "c.hilum"), name="stranger").head
    study = study_evaluation(head, judged, other=rival)
    assert warned(study, "'insider'", "was trained on this container")
    assert not warned(study, "'stranger'")
    assert not warned(study_evaluation(head, judged), "was trained on this container")


def test_a_threshold_that_could_not_be_chosen_is_said(tmp_path):
    few = make_container(tmp_path / "f.hilum", n=12)
    assert warned(study_head(few, sensitivity=0.9), "no threshold", "sensitivity")
    assert not warned(study_head(few), "no threshold")
    many = make_container(tmp_path / "m.hilum")
    assert not warned(study_head(many, specificity=0.9), "no threshold")
    assert len(study_head(many, specificity=0.9).head.thresholds) == 3


def test_many_classes_are_not_all_named(tmp_path):
    names = tuple(f"c{number:02}" for number in range(20))
    study = study_head(make_container(tmp_path / "c.hilum", classes=names), cv=2)
    [text] = warned(study, "few patients")
    assert "'c11'" in text and "'c12'" not in text and "and 8 more" in text
    assert any("c11 and 8 more" in limit for limit in study.limits)
