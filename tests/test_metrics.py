"""Metrics and their intervals against the oracle and, where installed, scikit-learn."""

from __future__ import annotations

import json

import naive
import numpy as np
import pytest

from engine.metrics import (
    auroc,
    balanced_accuracy,
    brier,
    confusion_matrix,
    decide,
    evaluate_predictions,
)


def _predictions(seed=0, n=150, k=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    z = rng.normal(size=(n, k))
    z[np.arange(n), labels] += 1.0
    return naive.softmax(z), labels, rng.integers(0, n // 2, n)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_the_oracle_with_ties(seed):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, 8, 60).astype(float), rng.random(60) < 0.3
    assert auroc(scores, positive) == pytest.approx(naive.auroc(scores, positive), rel=1e-13)


def test_auroc_edges():
    assert auroc(np.zeros(4), np.array([True, False, True, False])) == 0.5
    assert auroc(np.array([0.1, 0.9]), np.array([False, True])) == 1.0
    assert auroc(np.array([0.1, 0.9]), np.array([True, True])) is None
    assert auroc(np.array([]), np.array([], bool)) is None


def test_figures_equal_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    probabilities, labels, groups = _predictions()
    found = evaluate_predictions(probabilities, labels, groups, "abc", draws=0)
    decided = probabilities.argmax(axis=1)
    assert found.accuracy == pytest.approx(sklearn.accuracy_score(labels, decided))
    expected = sklearn.balanced_accuracy_score(labels, decided)
    assert found.balanced_accuracy == pytest.approx(expected)
    expected = sklearn.roc_auc_score(labels, probabilities, multi_class="ovr")
    assert found.auroc_macro == pytest.approx(expected)
    assert found.confusion == sklearn.confusion_matrix(labels, decided).tolist()


def test_brier_is_the_papers_sum_over_classes():
    assert brier(np.array([[1.0, 0.0]]), np.array([1])) == 2.0
    assert brier(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1])) == 0.25
    labels = np.array([[1, -1], [0, 0]], np.int8)
    assert brier(np.array([[0.5, 0.9], [0.0, 0.5]]), labels) == pytest.approx(0.5 / 3)


def test_decisions():
    p = np.array([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])
    assert decide(p, (), multilabel=False).tolist() == [0, 0, 1]
    assert decide(p, (0.6, 0.4), multilabel=False).tolist() == [1, 1, 1]
    assert decide(p, (), multilabel=True).tolist() == [[1, 0], [1, 1], [0, 1]]
    assert decide(p, (0.2, 0.9), multilabel=True).tolist() == [[1, 0], [1, 0], [0, 1]]


def test_an_absent_class_has_no_auroc_and_does_not_spoil_the_mean():
    probabilities, labels, groups = _predictions()
    keep = labels != 2
    found = evaluate_predictions(probabilities[keep], labels[keep], groups[keep], "abc", draws=50)
    assert found.auroc["c"] is None
    assert found.auroc_macro == pytest.approx((found.auroc["a"] + found.auroc["b"]) / 2)
    assert "auroc:c" not in found.ci95
    json.dumps(found.to_json(), allow_nan=False)


def test_the_interval_is_that_of_drawn_patients():
    probabilities, labels, groups = _predictions(1)
    found = evaluate_predictions(probabilities, labels, groups, "abc", draws=2000, seed=7)
    rng = np.random.default_rng(99)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    right = probabilities.argmax(axis=1) == labels
    draws = []
    for _ in range(2000):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        draws.append(right[rows].mean())
    np.testing.assert_allclose(found.ci95["accuracy"], np.percentile(draws, [2.5, 97.5]), atol=0.01)
    for key in ("balanced_accuracy", "auroc_macro", "auroc:a"):
        low, high = found.ci95[key]
        value = {"auroc:a": found.auroc["a"]}.get(key) or getattr(found, key)
        assert low < value < high


def test_intervals_of_patients_are_wider_than_those_of_rows():
    probabilities, labels, _ = _predictions(2, n=60)
    tenfold = np.tile(np.arange(60), 10)
    many = probabilities[tenfold], labels[tenfold]
    by_patient = evaluate_predictions(*many, tenfold, "abc").ci95["accuracy"]
    by_row = evaluate_predictions(*many, np.arange(600), "abc").ci95["accuracy"]
    assert by_patient[1] - by_patient[0] > 2 * (by_row[1] - by_row[0])


def test_the_seed_decides_the_interval():
    arguments = (*_predictions(), "abc")
    one, again, other = (evaluate_predictions(*arguments, seed=s).ci95 for s in (1, 1, 2))
    assert one == again
    assert one != other


def test_multilabel_leaves_out_what_was_not_assessed():
    labels = np.array([[1, 0], [0, -1], [1, 1], [0, -2], [0, 0]], np.int8)
    p = np.array([[0.9, 0.6], [0.2, 0.9], [0.4, 0.7], [0.1, 0.9], [0.3, 0.2]])
    found = evaluate_predictions(p, labels, np.arange(5), ("x", "y"), draws=200)
    assert found.confusion == [[[3, 0], [1, 1]], [[1, 1], [0, 1]]]
    assert found.accuracy == pytest.approx(6 / 8)
    assert found.auroc == {"x": 1.0, "y": 1.0}
    assert found.balanced_accuracy == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert found.class_counts == {"x": 2, "y": 1}
    assert set(found.ci95) >= {"accuracy", "auroc_macro", "auroc:x", "auroc:y"}


def test_one_row():
    found = evaluate_predictions(np.array([[0.2, 0.8]]), np.array([1]), np.array([3]), "ab")
    assert (found.n_rows, found.n_groups, found.accuracy) == (1, 1, 1.0)
    assert found.auroc_macro is None
    assert found.ci95["accuracy"] == [1.0, 1.0]
    json.dumps(found.to_json(), allow_nan=False)


def test_balanced_accuracy_of_nothing_is_none():
    assert balanced_accuracy(np.zeros((2, 2), np.int64)) is None
    assert confusion_matrix(np.array([0, 1]), np.array([1, 1]), 2).tolist() == [[0, 1], [0, 1]]
