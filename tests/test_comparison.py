"""Differences of heads and of groups of patients, against a bootstrap of the same draws."""

from __future__ import annotations

import dataclasses
import json

import naive
import numpy as np
import pytest

from engine.comparison import compare, subgroup_table
from engine.errors import MismatchError
from engine.metrics import evaluate_predictions
from engine.resampling import each_block


def _pair(n=200, seed=0, better=0.5):
    """Two heads on the same rows that share most of their noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    z = rng.normal(size=(n, 3))
    z[np.arange(n), labels] += 1.0
    w = z + rng.normal(0, 0.3, z.shape)
    w[np.arange(n), labels] += better
    groups = rng.integers(0, n // 2, n)
    return tuple(
        evaluate_predictions(naive.softmax(each), labels, groups, ("a", "b", "c"), draws=0)
        for each in (w, z)
    )


def test_a_head_does_not_differ_from_itself():
    one, _ = _pair()
    for figure in compare(one, one, draws=100).values():
        assert figure == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_differences_are_the_first_less_the_second():
    one, two = _pair()
    found, reverse = compare(one, two), compare(two, one)
    assert sorted(found) == ["accuracy", "auroc_macro", "average_precision_macro", "brier"]
    for key, figure in found.items():
        assert figure["value"] == getattr(one, key) - getattr(two, key)
        low, high = figure["ci95"]
        assert low < figure["value"] < high
        assert reverse[key]["ci95"] == pytest.approx([-high, -low], abs=1e-12)
    assert found["auroc_macro"]["ci95"][0] > 0
    assert found["brier"]["ci95"][1] < 0
    json.dumps(found, allow_nan=False)


def test_the_interval_is_of_differences_in_the_same_draws():
    one, two = _pair(n=60)
    found = compare(one, two, draws=130, seed=4)
    differences, squares = [], []

    def work(chunk, times):
        for lane in range(times.shape[1]):
            rows = np.repeat(np.arange(60), times[one.groups, lane])
            right = [(each.decisions == each.labels)[rows].mean() for each in (one, two)]
            differences.append(right[0] - right[1])
            truth = np.eye(3)[one.labels]
            errors = [((e.probabilities - truth) ** 2).sum(axis=1)[rows].mean() for e in (one, two)]
            squares.append(errors[0] - errors[1])

    each_block(one.n_groups, 130, 4, work, threads=1)
    expected = np.percentile(differences, [2.5, 97.5])
    assert found["accuracy"]["ci95"] == pytest.approx(expected, abs=1e-12)
    assert found["brier"]["ci95"] == pytest.approx(np.percentile(squares, [2.5, 97.5]), abs=1e-12)


def test_pairing_narrows_the_interval():
    one, two = _pair(better=0.0)
    low, high = compare(one, two)["auroc_macro"]["ci95"]
    alone = evaluate_predictions(one.probabilities, one.labels, one.groups, one.classes)
    width = alone.ci95["auroc_macro"][1] - alone.ci95["auroc_macro"][0]
    assert high - low < 0.6 * width


def test_classes_may_be_in_another_order():
    one, two = _pair()
    other = evaluate_predictions(
        two.probabilities[:, [2, 0, 1]],
        np.array([1, 2, 0])[two.labels],
        two.groups,
        ("c", "a", "b"),
        draws=0,
    )
    expected, found = compare(one, two, draws=100), compare(one, other, draws=100)
    for key, figure in expected.items():
        assert found[key]["value"] == pytest.approx(figure["value"], abs=1e-12)
        assert found[key]["ci95"] == pytest.approx(figure["ci95"], abs=1e-12)


def test_what_one_head_does_not_have_has_no_difference():
    p = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    each = evaluate_predictions(p, np.zeros(3, int), np.arange(3), "ab", draws=0)
    found = compare(each, each, draws=50)
    assert found["auroc_macro"] == {"value": None, "ci95": None}
    assert found["accuracy"]["value"] == 0.0
    alone = evaluate_predictions(p, np.array([0, 0, 1]), np.zeros(3, int), "ab", draws=0)
    assert compare(alone, alone)["accuracy"] == {"value": 0.0, "ci95": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a", "b", "d")}, "same classes"),
        ({"n_rows": 199}, "200 and of 199 rows"),
        ({"rows": np.arange(200)[::-1]}, "different rows"),
        ({"groups": np.zeros(200, int)}, "same patients"),
        ({"labels": "one"}, "truth of 1 of 200 rows"),
        ({"labels": np.zeros((200, 3), np.int8)}, "kind of head"),
    ],
)
def test_only_predictions_of_the_same_rows_are_compared(change, message):
    one, two = _pair()
    if isinstance(change.get("labels"), str):
        labels = two.labels.copy()
        labels[7] = (labels[7] + 1) % 3
        change = {"labels": labels}
    with pytest.raises(MismatchError, match=message):
        compare(one, dataclasses.replace(two, **change))


def test_labels_not_assessed_for_different_reasons_are_the_same_truth():
    p = np.array([[0.6], [0.7], [0.2]])
    labels = np.array([[1], [-1], [0]], np.int8)
    one = evaluate_predictions(p, labels, np.arange(3), "a", draws=0)
    two = evaluate_predictions(p, np.array([[1], [-2], [0]], np.int8), np.arange(3), "a", draws=0)
    assert compare(one, two, draws=20)["accuracy"]["value"] == 0.0


# --- Subgroups -----------------------------------------------------------------------------------


def test_a_subgroup_is_judged_by_its_rows_alone():
    one, _ = _pair()
    values = np.where(np.arange(200) < 120, 0, 2)
    values[:5] = -1
    first, second = subgroup_table(one, "sex", values, ("F", "X", "M"), seed=3)
    rows = np.flatnonzero(values == 2)
    alone = evaluate_predictions(
        one.probabilities[rows], one.labels[rows], one.groups[rows], one.classes, seed=3
    )
    assert second == {
        "column": "sex",
        "value": "M",
        "n_rows": 80,
        "n_groups": alone.n_groups,
        "auroc_macro": alone.auroc_macro,
        "accuracy": alone.accuracy,
        "ci95": {key: alone.ci95[key] for key in ("auroc_macro", "accuracy")},
    }
    assert (first["value"], first["n_rows"]) == ("F", 115)
    json.dumps([first, second], allow_nan=False)


def test_decisions_of_a_subgroup_are_those_of_the_head():
    p = np.tile([[0.6, 0.4], [0.7, 0.3]], (10, 1))
    labels = np.tile([1, 0], 10)
    whole = evaluate_predictions(
        p, labels, np.arange(20), "ab", decisions=np.tile([1, 0], 10), draws=0
    )
    (row,) = subgroup_table(whole, "view", np.zeros(20, int), ["PA"], draws=20)
    assert row["accuracy"] == 1.0


def test_few_rows_or_one_class_give_no_figures():
    one, _ = _pair()
    values = np.ones(200, int)
    values[:9] = 0
    values[one.labels == 2] = 2
    few, many, single = subgroup_table(one, "source", values, ("x", "y", "z"), draws=20)
    for row in (few, single):
        assert (row["auroc_macro"], row["accuracy"], row["ci95"]) == (None, None, {})
    assert few["n_rows"] < 10
    assert many["accuracy"] is not None
    labels = np.array([[1, -1], [1, -1]] * 6, np.int8)
    several = evaluate_predictions(np.full((12, 2), 0.7), labels, np.arange(12), "xy", draws=0)
    (row,) = subgroup_table(several, "sex", np.zeros(12, int), ["F"])
    assert row["accuracy"] is None


def test_wrong_columns_are_refused():
    one, _ = _pair()
    with pytest.raises(ValueError, match="has 3 values; expected one for each of the 200 rows"):
        subgroup_table(one, "sex", np.zeros(3, int), ["F"])
    with pytest.raises(ValueError, match="value 1; expected below 1"):
        subgroup_table(one, "sex", np.ones(200, int), ["F"])
