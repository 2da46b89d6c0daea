"""Calibration: the temperature that made the logits is found again; thresholds are optimal."""

from __future__ import annotations

import naive
import numpy as np
import pytest

from engine.calibration import (
    choose_threshold,
    choose_thresholds,
    entropy_weights,
    fit_temperature,
    mean_entropy,
)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_the_temperature_is_found_again(task, temperature):
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (20_000, 3))
    if task == "softmax":
        cumulated = naive.softmax(honest).cumsum(axis=1)
        labels = (rng.random((20_000, 1)) > cumulated).sum(axis=1)
    else:
        labels = (rng.random(honest.shape) < naive.sigmoid(honest)).astype(np.int8)
        labels[::3, 1] = -1
    found = fit_temperature(honest * temperature, labels, balanced=False)
    assert found == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_a_balanced_temperature_does_not_depend_on_how_rare_a_class_is(task, temperature):
    """Logits honest where both are equally frequent, of rows where one is in fifty."""
    rng = np.random.default_rng(1)
    n = 200_000
    honest = np.where(rng.random(n) < 0.8, 0.6, 0.1)
    labels = (rng.random(n) < honest).astype(np.int64)
    assert labels.mean() == pytest.approx(0.5, abs=0.01)
    rare = (labels == 0) | (rng.random(n) < 0.02)
    labels, honest = labels[rare], honest[rare]
    z = np.column_stack([np.zeros(len(honest)), np.log(honest / (1 - honest))])
    if task == "multilabel":
        labels = np.column_stack([rng.random(len(z)) < naive.sigmoid(z[:, 0]), labels])
        labels = labels.astype(np.int8)
    found = fit_temperature(z * temperature, labels, balanced=True)
    assert found == pytest.approx(temperature, rel=0.1)
    assert fit_temperature(z * temperature, labels, balanced=False) > 1.3 * found


def test_weights_make_classes_sides_or_rows_count_the_same():
    labels = np.array([0, 0, 0, 2])
    assert entropy_weights(labels, 3, balanced=False).tolist() == [0.25] * 3
    per_class = entropy_weights(labels, 3, balanced=True)
    np.testing.assert_allclose(per_class[[0, 2]], [1 / 6, 1 / 2])
    many = np.array([[1, 0], [0, -1], [0, 0], [0, 1]], np.int8)
    np.testing.assert_allclose(entropy_weights(many, 2, balanced=False), [[1 / 8, 1 / 6]] * 2)
    expected = [[1 / 12, 1 / 8], [1 / 4, 1 / 4]]
    np.testing.assert_allclose(entropy_weights(many, 2, balanced=True), expected)


def test_the_entropy_is_that_of_the_weights():
    z = np.random.default_rng(3).normal(size=(4, 3))
    labels = np.array([0, 0, 0, 2])
    each = -naive.log_softmax(z)[np.arange(4), labels]
    assert mean_entropy(z, labels, balanced=False) == pytest.approx(each.mean())
    expected = (each[:3].mean() + each[3]) / 2
    assert mean_entropy(z, labels, balanced=True) == pytest.approx(expected)
    many = np.array([[1, 0], [0, -1], [0, 0], [0, 1]], np.int8)
    each = np.array([np.log1p(np.exp(np.where(many == 1, -z[:, :2], z[:, :2])))])[0]
    first, second = each[:, 0], each[[0, 2, 3], 1]
    expected = (first.mean() + second.mean()) / 2
    assert mean_entropy(z[:, :2], many, balanced=False) == pytest.approx(expected)
    sides = first[0], first[1:].mean(), second[2], second[:2].mean()
    assert mean_entropy(z[:, :2], many, balanced=True) == pytest.approx(np.mean(sides))


@pytest.mark.parametrize("balanced", [False, True])
def test_a_temperature_is_never_extreme(balanced):
    z = np.array([[5.0, -5.0], [-5.0, 5.0]])

    def fit(logits, labels):
        return fit_temperature(logits, labels, balanced=balanced)

    assert 0.05 <= fit(z, np.array([0, 1])) < 0.5
    assert fit(z, np.array([1, 0])) == pytest.approx(20.0, rel=1e-3)
    assert fit(z[:0], np.array([], np.int64)) == 1.0
    assert fit(z, np.full((2, 2), -1, np.int8)) == 1.0
    assert np.isfinite(fit(z * 1e6, np.array([0, 0])))


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_has_the_best_youden_index(seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(60) < 0.3
    p = np.round(np.clip(rng.normal(0.4 + 0.2 * positive, 0.2), 0, 1), 2)

    def index(threshold):
        return (p[positive] >= threshold).mean() + (p[~positive] < threshold).mean()

    best = max(index(t) for t in np.linspace(-0.001, 1.001, 5011))
    assert index(choose_threshold(p, positive)) == pytest.approx(best)


def test_thresholds_by_kind_of_head():
    p = np.array([[0.8, 0.2], [0.75, 0.25], [0.6, 0.4], [0.1, 0.9]])
    low, high = choose_thresholds(p, np.array([0, 0, 1, 1]))
    assert (low, high) == pytest.approx((0.675, 0.325))
    assert choose_thresholds(np.full((3, 3), 1 / 3), np.array([0, 1, 2])) == ()
    masked = np.array([[1, -1], [1, -1], [0, -1], [0, -2]], np.int8)
    first, second = choose_thresholds(p, masked)
    assert 0.6 < first < 0.75
    assert second == 0.5
