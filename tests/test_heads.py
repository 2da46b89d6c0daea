"""Heads: answers, selection of blocks, and the file they live in."""

from __future__ import annotations

import json
from dataclasses import replace

import naive
import numpy as np
import pytest

from engine.calibration import Calibration
from engine.errors import HeadFileError, MismatchError
from engine.heads import Head, load_head
from engine.ood import fit_ood
from engine.pooling import Block
from formats import preprocessing_digest, read_head, write_head

PREPROCESSING = {"version": 1, "height": 8, "width": 8}
BLOCKS = (Block("a", "mean", 0, 2), Block("b", "max", 2, 3))


def make_head(kind="linear", classes=("normal", "viral", "bacterial"), task="softmax", **changes):
    rng = np.random.default_rng(4)
    k, d, h = len(classes), 5, 4
    if kind == "linear":
        weights = {"weight": rng.normal(size=(k, d)), "bias": rng.normal(size=k)}
    else:
        weights = {
            "hidden.weight": rng.normal(size=(h, d)),
            "hidden.bias": rng.normal(size=h),
            "weight": rng.normal(size=(k, h)),
            "bias": rng.normal(size=k),
        }
    head = Head(
        name="chest",
        kind=kind,
        task=task,
        classes=tuple(classes),
        weights={name: array.astype(np.float32) for name, array in weights.items()},
        mean=rng.normal(size=d).astype(np.float32),
        scale=rng.uniform(0.5, 2, d).astype(np.float32),
        calibration=Calibration("temperature", 1.7),
        thresholds=(),
        backbone="net",
        backbone_digest="a" * 64,
        preprocessing=PREPROCESSING,
        preprocessing_digest=preprocessing_digest(PREPROCESSING),
        blocks=BLOCKS,
        training={"n_rows": 3, "seed": 0},
        metrics={},
        about={"title": "t"},
    )
    return replace(head, **changes)


def features(n=6, d=5):
    return np.random.default_rng(9).normal(size=(n, d)).astype(np.float32)


def test_linear_logits_and_probabilities():
    head, X = make_head(), features()
    standard = ((X.astype(float) - head.mean) / head.scale).astype(np.float32)
    z = naive.logits(standard, head.weights["weight"], head.weights["bias"])
    np.testing.assert_allclose(head.logits(X), z, rtol=1e-10)
    np.testing.assert_allclose(head.probabilities(X), naive.softmax(z / 1.7), rtol=1e-10)


def test_mlp_and_multilabel():
    head, X = make_head("mlp", task="multilabel"), features()
    standard = ((X.astype(float) - head.mean) / head.scale).astype(np.float32)
    w = {name: array.astype(float) for name, array in head.weights.items()}
    z = naive.mlp_logits(
        standard, w["hidden.weight"], w["hidden.bias"], w["weight"], w["bias"]
    )  # fmt: skip
    np.testing.assert_allclose(head.logits(X), z, rtol=1e-9)
    np.testing.assert_allclose(head.probabilities(X), naive.sigmoid(z / 1.7), rtol=1e-9)


def test_a_row_alone_has_the_bits_it_has_among_others():
    head, X = make_head(), features(7)
    together = head.probabilities(X)
    for i in range(7):
        assert np.array_equal(head.probabilities(X[i : i + 1])[0], together[i])


def test_features_of_another_width_are_refused():
    with pytest.raises(MismatchError, match=r"takes features \(n, 5\), found \(2, 4\)"):
        make_head().logits(features(2, 4))


def test_answers_in_the_words_of_predict():
    p = np.array([0.2, 0.5, 0.3])
    assert make_head().answer(p) == {
        "label": "viral",
        "probabilities": {"normal": 0.2, "viral": 0.5, "bacterial": 0.3},
        "threshold": None,
    }
    two = make_head(classes=("no", "yes"), thresholds=(0.7, 0.3))
    assert two.answer(np.array([0.65, 0.35]))["label"] == "yes"
    assert two.answer(np.array([0.65, 0.35]))["threshold"] == 0.3
    many = make_head(task="multilabel", thresholds=(0.1, 0.9, 0.3)).answer(p)
    assert many["label"] == ["normal", "bacterial"]
    assert many["threshold"] == {"normal": 0.1, "viral": 0.9, "bacterial": 0.3}
    json.dumps(many)


def test_the_notice_says_what_it_learned_from():
    assert make_head(training={}, about={}).notice() == ""
    facts = {"n_rows": 7, "n_groups": 5, "age_range_years": [1, 5]}
    notice = make_head(training=facts, about={"terms": "research only"}).notice()
    assert notice == "learned from 7 images of 5 patients aged 1 to 5 years; research only"


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_the_notice_says_where_probabilities_are_not_by_the_training_rows(task):
    classes = {"softmax": "every class were equally", "multilabel": "every label were present in"}

    def notice(normal, viral, prevalence="equal"):
        counts = {"normal": normal, "viral": viral}
        facts = {"n_rows": 100, "n_groups": 90, "class_counts": counts, "prevalence": prevalence}
        return make_head(task=task, training=facts, about={}).notice()

    said = f"learned from 100 images of 90 patients; probabilities as if {classes[task]}"
    assert notice(90, 10).startswith(said)
    assert "as if" not in notice(90, 10, "training")
    assert "as if" not in notice(55, 45)
    assert "as if" in notice(62, 38)
    # Heads of earlier releases do not know.
    facts = {"n_rows": 100, "n_groups": 90, "class_counts": {"normal": 90, "viral": 10}}
    assert "as if" not in make_head(task=task, training=facts).notice()


def test_select_picks_the_heads_blocks_out_of_a_wider_vector():
    head = make_head()
    wide = np.arange(14, dtype=np.float32).reshape(2, 7)
    blocks = (Block("b", "max", 0, 3), Block("c", "mean", 3, 2), Block("a", "mean", 5, 2))
    assert head.select(wide, blocks).tolist() == [[5, 6, 0, 1, 2], [12, 13, 7, 8, 9]]
    X = features()
    assert head.select(X, BLOCKS) is X


def test_select_names_the_block_that_is_missing():
    with pytest.raises(MismatchError, match=r"needs feature block b:max of width 3; found: a:mean"):
        make_head().select(features(1, 2), BLOCKS[:1])
    with pytest.raises(MismatchError, match=r"b:max \(4\)"):
        make_head().select(features(1, 6), (BLOCKS[0], Block("b", "max", 2, 4)))


RISING = ((0.0, 0.2, 1.0), (0.1, 0.1, 0.9))
REMEMBERS = fit_ood(
    np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32), np.arange(40) // 2
)


@pytest.mark.parametrize("ood", [None, REMEMBERS], ids=["answers all", "refuses"])
@pytest.mark.parametrize(
    "calibration", [Calibration("temperature", 1.7), Calibration("isotonic", 1.7, (RISING,) * 3)]
)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_survives_its_file_bit_for_bit(tmp_path, kind, calibration, ood):
    head, X = make_head(kind, calibration=calibration, ood=ood), features()
    path = head.save(tmp_path / "h.safetensors")
    again = load_head(path)
    assert np.array_equal(head.probabilities(X), again.probabilities(X))
    assert head.digest == again.digest
    assert again.calibration == calibration
    if ood is None:
        assert again.ood is None
    else:
        standard = head.standardise(X)
        assert np.array_equal(again.ood.scores(standard), ood.scores(standard))
        assert again.ood.to_json() == ood.to_json()
    assert again.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    for name in ("name", "classes", "blocks", "thresholds", "training", "metrics", "about"):
        assert getattr(again, name) == getattr(head, name)


def test_the_digest_covers_weights_and_metadata():
    head = make_head()
    weights = {name: array.copy() for name, array in head.weights.items()}
    weights["bias"][0] = np.nextafter(weights["bias"][0], np.float32(9))
    digests = {
        head.digest,
        replace(head, weights=weights).digest,
        replace(head, calibration=Calibration("temperature", 1.6)).digest,
        replace(head, classes=("normal", "viral", "other")).digest,
        replace(head, ood=REMEMBERS).digest,
        replace(head, ood=replace(REMEMBERS, threshold=9.0)).digest,
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 1}, "head version 1, this release reads 2; update Hilum or train"),
        ({"version": 3}, "head version 3, this release reads 2; update Hilum or train"),
        ({"classes": "abc"}, "'classes' is str"),
        ({"classes": ["a", "a", "b"]}, "not distinct"),
        ({"classes": ["a", "b"]}, "tensor 'bias' is float32"),
        ({"kind": "forest"}, "kind 'forest'"),
        ({"kind": "mlp"}, "expected bias, hidden.bias"),
        ({"calibration": None}, "'calibration' is NoneType or missing"),
        ({"calibration": {"method": "platt", "temperature": 1.0}}, "calibration: calibration is"),
        ({"calibration": {"method": "temperature", "temperature": 0.0}}, "temperature is 0.0"),
        ({"calibration": {"method": "temperature", "temperature": True}}, "expected a positive"),
        ({"calibration": {"method": "isotonic", "temperature": 1.0}}, "needs knots of 3 classes"),
        ({"thresholds": [0.5]}, "1 thresholds for 3 classes"),
        ({"thresholds": ["0.5", 1, 1]}, "thresholds are"),
        ({"blocks": [{"tap": "a"}]}, "feature block 0"),
        ({"blocks": []}, "expected finite float32"),
        ({"preprocessing_digest": "0" * 64}, "the file was edited"),
        ({"about": None}, "'about' is NoneType or missing"),
    ],
)
def test_a_damaged_head_is_refused_with_its_name(tmp_path, change, message):
    path = make_head().save(tmp_path / "h.safetensors")
    tensors, metadata = read_head(path)
    write_head(path, tensors, {**metadata, **change})
    with pytest.raises(HeadFileError) as caught:
        load_head(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", np.full((3, 5), np.nan, np.float32), "tensor 'weight'"),
        ("weight", np.zeros((5, 3), np.float32), "tensor 'weight'"),
        ("bias", np.zeros(3), "tensor 'bias' is float64"),
        ("scale", np.zeros(5, np.float32), "not positive"),
        ("extra", np.zeros(5, np.float32), "tensors bias, extra"),
    ],
)
def test_damaged_tensors_are_refused(tmp_path, name, value, message):
    path = make_head().save(tmp_path / "h.safetensors")
    tensors, metadata = read_head(path)
    write_head(path, {**tensors, name: value}, metadata)
    with pytest.raises(HeadFileError, match=message):
        load_head(path)


@pytest.mark.parametrize(
    ("tensors", "value", "message"),
    [
        ({}, {"method": "nearest"}, "method is 'nearest'"),
        ({}, {"threshold": -1.0}, "threshold and refusal_rate"),
        ({}, {"refusal_rate": True}, "threshold and refusal_rate"),
        ({}, {"about": []}, "about is missing"),
        ({"ood.basis": None}, {}, "tensors center, rest, scale, spread"),
        ({"ood.other": np.ones(1, np.float32)}, {}, "other"),
        ({"ood.basis": np.ones((2, 4), np.float32)}, {}, "tensor 'basis' is float32"),
        ({"ood.basis": np.ones((0, 5), np.float32)}, {}, "expected"),
        ({"ood.rest": np.zeros(1, np.float32)}, {}, "tensor 'rest' has values that are not pos"),
        ({"ood.scale": np.full(5, -1, np.float32)}, {}, "tensor 'scale' has values"),
        ({"ood.center": np.full(5, np.inf, np.float32)}, {}, "tensor 'center' is float32"),
        ({"ood.center": np.zeros(5)}, {}, "tensor 'center' is float64"),
        ({}, None, "there are tensors, and nothing says what they are"),
        ({}, 7, "out-of-distribution statistics"),
    ],
)
def test_a_damaged_memory_is_refused_with_the_heads_name(tmp_path, tensors, value, message):
    path = make_head(ood=REMEMBERS).save(tmp_path / "h.safetensors")
    found, metadata = read_head(path)
    changed = {**found, **tensors}
    if isinstance(value, dict):
        value = {**metadata["ood"], **value}
    kept = {name: array for name, array in changed.items() if array is not None}
    write_head(path, kept, {**metadata, "ood": value})
    with pytest.raises(HeadFileError) as caught:
        load_head(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "train the head again" in str(caught.value)
