"""Curves: on their grid what scikit-learn has on its scores; bands; nothing of a single row."""

from __future__ import annotations

from dataclasses import replace

import naive
import numpy as np
import pytest

from engine.curves import POINTS, precision_recall_curve, reliability_curve, roc_curve
from engine.metrics import evaluate_predictions


def _evaluation(n=300, seed=0, digits=2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    z = rng.normal(size=(n, 3))
    z[np.arange(n), labels] += 1.0
    p = naive.softmax(z).round(digits)
    return evaluate_predictions(p, labels, rng.integers(0, n // 2, n), "abc", draws=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_roc_curve_is_scikit_learns_staircase(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    found = _evaluation(seed=seed)
    curve = roc_curve(found, "b", draws=64)
    wrong, called, _ = sklearn.roc_curve(
        found.labels == 1, found.probabilities[:, 1], drop_intermediate=False
    )
    assert len(curve.x) == POINTS == 101
    for x, y in zip(curve.x, curve.y, strict=True):
        assert y == pytest.approx(called[wrong <= x + 1e-12].max())


@pytest.mark.parametrize("seed", range(3))
def test_the_precision_recall_curve_is_scikit_learns_on_the_grid(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    found = _evaluation(seed=seed)
    curve = precision_recall_curve(found, "b", draws=64)
    precision, recall, _ = sklearn.precision_recall_curve(
        found.labels == 1, found.probabilities[:, 1]
    )
    # scikit-learn ends with a point of recall 0 that no threshold has.
    precision, recall = precision[:-1], recall[:-1]
    for x, y in zip(curve.x, curve.y, strict=True):
        enough = np.flatnonzero(recall >= max(x, 1e-6) - 1e-12)
        assert y == pytest.approx(precision[enough[-1]])


@pytest.mark.parametrize("curve_of", [roc_curve, precision_recall_curve])
def test_bands_hold_the_curve_and_narrow_with_more_patients(curve_of):
    few, many = (curve_of(_evaluation(n=n), "a", draws=400) for n in (100, 1600))
    for curve in (few, many):
        assert curve.low.shape == curve.high.shape == curve.x.shape
        inside = (curve.low <= curve.y) & (curve.y <= curve.high)
        assert inside.mean() > 0.95
    assert (many.high - many.low).mean() < 0.5 * (few.high - few.low).mean()


def test_the_band_does_not_depend_on_threads():
    one, many = (roc_curve(_evaluation(), "a", draws=200, threads=t) for t in (1, 4))
    np.testing.assert_array_equal(one.low, many.low)
    np.testing.assert_array_equal(one.high, many.high)


def test_no_curve_where_a_class_has_one_side():
    p = np.array([[0.6, 0.4], [0.7, 0.3]])
    found = evaluate_predictions(p, np.zeros(2, int), np.arange(2), "ab", draws=0)
    assert roc_curve(found, "a") is None
    assert precision_recall_curve(found, "b") is None
    for curve_of in (roc_curve, precision_recall_curve, reliability_curve):
        with pytest.raises(ValueError, match="expected one of a, b"):
            curve_of(found, "z")


def test_one_patient_has_a_curve_without_a_band():
    found = _evaluation()
    alone = evaluate_predictions(
        found.probabilities, found.labels, np.zeros(300, int), "abc", draws=0
    )
    curve = roc_curve(alone, "a")
    assert np.isnan(curve.low).all()
    np.testing.assert_array_equal(curve.y, roc_curve(found, "a", draws=1).y)


@pytest.mark.parametrize("name", [None, "a"])
def test_reliability_is_what_came_true_in_each_bin(name):
    found = _evaluation(digits=12)
    curve = reliability_curve(found, name, draws=300)
    if name is None:
        p = found.probabilities.max(axis=1)
        true = found.probabilities.argmax(axis=1) == found.labels
    else:
        p, true = found.probabilities[:, 0], found.labels == 0
    order = np.argsort(p)
    for i, rows in enumerate(np.split(order, 10)):
        assert curve.n_rows[i] == 30
        assert curve.x[i] == pytest.approx(p[rows].mean())
        assert curve.y[i] == pytest.approx(true[rows].mean())
        # Rows of their own each: about the binomial deviation.
        deviation = np.sqrt(true[rows].mean() * (1 - true[rows].mean()) / 30)
        assert curve.low[i] <= curve.y[i] <= curve.high[i]
        assert curve.high[i] - curve.low[i] == pytest.approx(4 * deviation, abs=0.14)


@pytest.mark.parametrize("n", [3, 14, 27, 95])
@pytest.mark.parametrize("digits", [1, 12])
def test_no_bin_shows_a_few_rows(n, digits):
    curve = reliability_curve(_evaluation(n=n, digits=digits), "a", draws=10)
    assert curve.n_rows.sum() == n
    assert len(curve.n_rows) <= 10
    assert curve.n_rows.min() >= min(n, 10)
    assert (np.diff(curve.x) > 0).all()


def test_reliability_of_labels():
    rng = np.random.default_rng(0)
    p = rng.random((50, 2))
    labels = (rng.random((50, 2)) < p).astype(np.int8)
    labels[:20, 0], labels[:, 1] = -1, -1
    found = evaluate_predictions(p, labels, np.arange(50), "xy", draws=0)
    assert reliability_curve(found, "x", draws=10).n_rows.sum() == 30
    assert reliability_curve(found, "y", draws=10) is None
    with pytest.raises(ValueError, match="name one of x, y"):
        reliability_curve(found)
    with pytest.raises(ValueError, match="at least 1"):
        reliability_curve(found, "x", bins=0)


def test_reliability_is_of_what_calibration_is_judged_by():
    rng = np.random.default_rng(2)
    labels = (rng.random(4000) < 0.1).astype(np.int64)
    z = 2.0 * (rng.normal(size=4000) + 2.0 * labels) - 2.0
    p = 1.0 / (1.0 + np.exp(-z))
    both = np.column_stack([1 - p, p])
    found = evaluate_predictions(both, labels, np.arange(4000), "ab", draws=0, prevalence="equal")
    for name in ("b", None):
        curve = reliability_curve(found, name, draws=20)
        np.testing.assert_allclose(curve.x, curve.y, atol=0.06)
    given = replace(found, prevalence="training")
    plain = reliability_curve(given, "b", draws=20)
    assert np.abs(plain.x - plain.y).max() > 0.2
