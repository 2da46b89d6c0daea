"""Calibration: the temperature that made the logits is found again; thresholds are optimal."""

from __future__ import annotations

import naive
import numpy as np
import pytest

from engine.calibration import (
    choose_threshold,
    choose_thresholds,
    expected_calibration_error,
    fit_temperature,
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
    assert fit_temperature(honest * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_a_temperature_is_never_extreme():
    z = np.array([[5.0, -5.0], [-5.0, 5.0]])
    assert 0.05 <= fit_temperature(z, np.array([0, 1])) < 0.5
    assert fit_temperature(z, np.array([1, 0])) == pytest.approx(20.0, rel=1e-3)
    assert fit_temperature(z[:0], np.array([], np.int64)) == 1.0
    assert fit_temperature(z, np.full((2, 2), -1, np.int8)) == 1.0
    assert np.isfinite(fit_temperature(z * 1e6, np.array([0, 0])))


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


def test_calibration_error():
    p = np.array([[0.9, 0.1]] * 10)
    assert expected_calibration_error(p, np.array([0] * 9 + [1])) == pytest.approx(0.0)
    assert expected_calibration_error(p, np.ones(10, np.int64)) == pytest.approx(0.9)
