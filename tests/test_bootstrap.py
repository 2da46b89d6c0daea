"""Bootstrap draws: kernels against repeated rows, compiled and plain; draws; what they cover."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest

from engine import recalibration, resampling
from engine.kernels import bootstrap
from engine.recalibration import RecalibrationDraws, fit_intercept, fit_line, logits_of
from engine.resampling import (
    LANES,
    Ranking,
    draw_figures,
    each_block,
    interval,
    mean_of_known,
    sum_by_group,
    weighted,
)

PLAIN = os.environ.get("NUMBA_DISABLE_JIT") == "1"


# --- Oracles: obvious, row by row, importing nothing of ours -----------------------------------


def _thresholds(scores, positive):
    """(present, absent) rows called present at each threshold, highest first."""
    found = []
    for threshold in sorted(set(scores), reverse=True):
        called = scores >= threshold
        found.append(((called & positive).sum(), (called & ~positive).sum()))
    return found


def _average_precision(scores, positive):
    total, before = 0.0, 0
    for hits, wrong in _thresholds(scores, positive):
        total += (hits - before) / positive.sum() * hits / (hits + wrong)
        before = hits
    return total


def _sensitivity_at(scores, positive, level):
    n = (~positive).sum()
    fine = [hits for hits, wrong in _thresholds(scores, positive) if (n - wrong) / n >= level]
    return max(fine, default=0) / positive.sum()


def _specificity_at(scores, positive, level):
    n = (~positive).sum()
    return max(
        (n - wrong) / n
        for hits, wrong in _thresholds(scores, positive)
        if hits / positive.sum() >= level
    )


def _calibration_error(p, truth, bins):
    gaps = {}
    for value in set(p):
        where = int(bins * (p < value).sum() // len(p))
        gaps[where] = gaps.get(where, 0.0) + (p[p == value] - truth[p == value]).sum()
    return sum(abs(gap) for gap in gaps.values()) / len(p)


def _logistic(x, positive, offset=0.0, slope=True):
    """(intercept, slope) by Newton with small steps."""
    X = np.column_stack([np.ones(len(x)), x]) if slope else np.ones((len(x), 1))
    w = np.zeros(X.shape[1])
    for _ in range(300):
        p = naive.sigmoid(X @ w + offset)
        curve = (X * (p * (1 - p))[:, None]).T @ X
        w += 0.3 * np.linalg.solve(curve, X.T @ (positive - p))
    return w


def _repeated(times, group, lane):
    return np.repeat(np.arange(len(group)), times[group, lane])


def _case(seed, n=40, groups=12, lanes=5, ties=6):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, ties, n) / ties
    positive = rng.random(n) < 0.2 + 0.5 * scores
    group = rng.integers(0, groups, n).astype(np.int32)
    times = rng.integers(0, 3, (groups, lanes)).astype(np.uint8)
    return scores, positive, group, times


# --- Kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [1, 2, 6, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_ranked_figures_are_those_of_repeated_rows(seed, ties):
    scores, positive, group, times = _case(seed, ties=ties)
    times[:, 0] = 0
    levels = np.array([0.9, 0.5, 0.25])
    out, at = Ranking(scores, positive, group).figures(times, levels)
    for lane in range(times.shape[1]):
        rows = _repeated(times, group, lane)
        s, y = scores[rows], positive[rows]
        assert out[:2, lane].tolist() == [y.sum(), (~y).sum()]
        if y.all() or not y.any():
            continue
        assert out[2, lane] == pytest.approx(naive.auroc(s, y), rel=1e-13)
        assert out[3, lane] == pytest.approx(_average_precision(s, y), rel=1e-12)
        for v, level in enumerate(levels):
            assert at[0, v, lane] / y.sum() == pytest.approx(_sensitivity_at(s, y, level))
            spared = 1 - at[1, v, lane] / (~y).sum()
            assert spared == pytest.approx(_specificity_at(s, y, level))
            hits = min(h for h, _ in _thresholds(s, y) if h / y.sum() >= level)
            assert at[2, v, lane] == hits


def test_nine_of_ten_rows_reach_a_level_of_nine_tenths():
    scores = np.arange(20) / 20
    positive = np.repeat([False, True], 10)
    positive[[9, 10]] = [True, False]
    out, at = Ranking(scores, positive, np.arange(20, dtype=np.int32)).figures(
        np.ones((20, 1), np.uint8), np.array([0.9])
    )
    assert out[:2, 0].tolist() == [10, 10]
    assert at[0, 0, 0] == 10
    assert at[1, 0, 0] == 0


@pytest.mark.parametrize("ties", [1, 3, 10, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_binned_gaps_are_those_of_repeated_rows(seed, ties):
    p, positive, group, times = _case(seed, ties=ties)
    times[:, 0] = 0
    found = resampling._Bins(p, positive, group).errors(times)
    assert np.isnan(found[0])
    for lane in range(1, times.shape[1]):
        rows = _repeated(times, group, lane)
        expected = _calibration_error(p[rows], positive[rows], resampling.BINS)
        assert found[lane] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("g", [1, 3, 4, 5, 9])
def test_weighted_sums_are_a_matrix_product(g, dtype):
    rng = np.random.default_rng(g)
    times, values = rng.integers(0, 4, (g, 7)).astype(dtype), rng.normal(size=(g, 3))
    np.testing.assert_allclose(weighted(values, times), values.T @ times, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("size", [0.0, 0.3, 16.0])
def test_recalibration_sums(size):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 5, 30).astype(np.int32)
    x, positive = rng.uniform(-1, 1, 30), (rng.random(30) < 0.4).astype(float)
    times = rng.integers(0, 3, (5, 4)).astype(np.uint8)
    step = rng.uniform(-size / 2, size / 2, (2, 4))
    out = np.empty((5, 4))
    bootstrap.recalibration_sums(times, group, x, positive, np.exp(-(0.2 + x)), step, out)
    for lane in range(4):
        p = naive.sigmoid(0.2 + x + step[0, lane] + step[1, lane] * x)
        m = times[group, lane]
        w = m * p * (1 - p)
        r = m * (positive - p)
        expected = [r.sum(), (r * x).sum(), w.sum(), (w * x).sum(), (w * x * x).sum()]
        np.testing.assert_allclose(out[:, lane], expected, rtol=1e-6, atol=1e-7)


def test_sums_by_group_and_means_of_what_is_known():
    values = np.arange(6.0).reshape(3, 2)
    assert sum_by_group(values, np.array([1, 0, 1], np.int32)).tolist() == [[2, 3], [4, 6]]
    some = np.array([[1.0, np.nan], [3.0, np.nan]])
    found = mean_of_known(some)
    assert found[0] == 2.0
    assert np.isnan(found[1])


# --- Draws --------------------------------------------------------------------------------------


def _all_draws(n_groups, draws, seed, threads=1):
    found = np.zeros((n_groups, draws), np.int64)

    def work(chunk, times):
        found[:, chunk] = times

    each_block(n_groups, draws, seed, work, threads)
    return found


def test_a_draw_holds_as_many_patients_as_there_are():
    drawn = _all_draws(30, 150, 0)
    assert (drawn.sum(axis=0) == 30).all()
    # Each patient as often as the others: 150 draws x 30 / 30, within five deviations.
    assert np.abs(drawn.sum(axis=1) - 150).max() < 5 * np.sqrt(150)
    assert len(np.unique(drawn, axis=1).T) == 150


def test_draws_depend_on_the_seed_alone():
    one = _all_draws(9, 150, 3)
    np.testing.assert_array_equal(one, _all_draws(9, 150, 3, threads=5))
    np.testing.assert_array_equal(one[:, :LANES], _all_draws(9, LANES, 3))
    assert (one != _all_draws(9, 150, 4)).any()


def test_more_copies_than_a_byte_holds_are_not_wrapped(monkeypatch):
    class Stuck:
        def integers(self, low, high, size):
            return np.zeros(size, np.int64)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Stuck())
    assert _all_draws(300, 1, 0)[0, 0] == 255


def test_an_interval_is_of_the_draws_that_have_the_figure():
    values = np.append(np.arange(101.0), np.nan)
    assert interval(values) == [2.5, 97.5]
    assert interval(values, needed=0.99) == [2.5, 97.5]
    assert interval(values, needed=0.995) is None
    assert interval(np.full(3, np.nan)) is None


def _softmax_case(seed, n):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    z = rng.normal(size=(n, 3))
    z[np.arange(n), labels] += 1.0
    p = naive.softmax(z).round(2)
    return (
        p,
        p.argmax(axis=1),
        labels,
        np.unique(rng.integers(0, n // 2, n), return_inverse=True)[1],
    )


def _multilabel_case(seed, n):
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, (n, 4))
    labels = (rng.random((n, 4)) < naive.sigmoid(z)).astype(np.int8)
    labels[rng.random((n, 4)) < 0.2] = -1
    labels[:, 3] = -2
    p = naive.sigmoid(1.4 * z).round(2)
    return p, p >= 0.4, labels, np.unique(rng.integers(0, n // 2, n), return_inverse=True)[1]


def _figures(p, decisions, labels):
    """Every figure of some rows, plainly."""
    k = p.shape[1]
    truth = labels if labels.ndim == 2 else (labels[:, None] == np.arange(k)).astype(int)
    found, aurocs, precisions, errors, rates = {}, [], [], [], []
    for c in range(k):
        rows = truth[:, c] >= 0
        s, y = p[rows, c], truth[rows, c] == 1
        if len(y):
            errors.append(_calibration_error(s, y, 15))
        if labels.ndim == 2:
            hit = decisions[rows, c] == y
            rates += [hit[side].mean() for side in (y, ~y) if side.any()]
        elif y.any():
            rates.append((decisions == labels)[y].mean())
        if y.all() or not y.any():
            continue
        aurocs.append(naive.auroc(s, y))
        precisions.append(_average_precision(s, y))
        found[f"auroc:{c}"], found[f"average_precision:{c}"] = aurocs[-1], precisions[-1]
        for level in (0.9, 0.95):
            found[f"sensitivity_at_{level:.2f}:{c}"] = _sensitivity_at(s, y, level)
            found[f"specificity_at_{level:.2f}:{c}"] = _specificity_at(s, y, level)
    known = truth >= 0
    squares = (p - truth) ** 2
    if labels.ndim == 2:
        found["accuracy"] = (decisions == (truth == 1))[known].mean()
        found["brier"], found["ece"] = squares[known].mean(), np.mean(errors)
    else:
        found["accuracy"] = (decisions == labels).mean()
        found["brier"] = squares.sum(axis=1).mean()
        found["ece"] = _calibration_error(p.max(axis=1), p.argmax(axis=1) == labels, 15)
    found["balanced_accuracy"] = np.mean(rates)
    found["auroc_macro"], found["average_precision_macro"] = np.mean(aurocs), np.mean(precisions)
    return found


@pytest.mark.parametrize("case", [_softmax_case, _multilabel_case])
def test_figures_of_draws_equal_a_plain_bootstrap_of_the_same_draws(case):
    n, draws = (40, 3) if PLAIN else (90, 70)
    p, decisions, labels, groups = case(5, n)
    names = [str(c) for c in range(p.shape[1])]
    found = draw_figures(p, decisions, labels, groups, names, draws=draws, seed=2)
    drawn = _all_draws(groups.max() + 1, draws, 2)
    for draw in range(0, draws, 3):
        rows = _repeated(drawn, groups, draw)
        expected = _figures(p[rows], decisions[rows], labels[rows])
        for key, series in found.items():
            if not key.startswith("calibration_"):
                want = expected.pop(key, np.nan)
                assert series[draw] == pytest.approx(want, rel=1e-12, abs=1e-14, nan_ok=True), key
        assert expected == {}


@pytest.mark.parametrize("case", [_softmax_case, _multilabel_case])
def test_every_bit_is_the_same_with_any_number_of_threads(case):
    p, decisions, labels, groups = case(1, 80)
    names = [str(c) for c in range(p.shape[1])]
    arguments = (p, decisions, labels, groups, names)
    draws = 70 if PLAIN else 200
    one, three = (draw_figures(*arguments, draws=draws, seed=1, threads=t) for t in (1, 3))
    assert one.keys() == three.keys()
    for key, series in one.items():
        np.testing.assert_array_equal(series, three[key], err_msg=key)


def test_a_part_costs_and_gives_nothing_else():
    arguments = _softmax_case(1, 30)
    found = draw_figures(*arguments, "abc", draws=8, parts=frozenset({"rates"}))
    assert sorted(found) == ["accuracy", "balanced_accuracy", "brier"]
    whole = draw_figures(*arguments, "abc", draws=8)
    for key, series in found.items():
        np.testing.assert_array_equal(series, whole[key])


# --- Slope and intercept -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_lines_equal_scikit_learn(seed):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, 200)
    positive = rng.random(200) < naive.sigmoid(0.7 * x - 2)
    line = fit_line(x, positive)
    peer = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    peer.fit(x[:, None], positive)
    assert line.slope == pytest.approx(peer.coef_[0, 0], rel=1e-5)
    assert line.height - line.slope * line.centre == pytest.approx(peer.intercept_[0], rel=1e-5)


def test_lines_and_intercepts_of_repeated_rows_are_weighted_ones():
    rng = np.random.default_rng(0)
    x, positive = rng.normal(size=60), rng.random(60) < 0.4
    times = rng.integers(1, 4, 60)
    many = np.repeat(x, times), np.repeat(positive, times)
    w = _logistic(*many)
    line = fit_line(x, positive, times.astype(float))
    assert [line.height - line.slope * line.centre, line.slope] == pytest.approx(w, rel=1e-7)
    (a,) = _logistic(*many, offset=many[0], slope=False)
    assert fit_intercept(x, positive, times.astype(float)) == pytest.approx(a, rel=1e-7)


def test_what_has_no_line():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    assert fit_line(x, np.array([False, False, True, True])) is None
    assert fit_line(x, np.array([True, False, False, False])) is None
    assert fit_line(np.array([0.0, 1.0, 1.0, 2.0]), np.array([False, False, True, True])) is None
    assert fit_line(np.zeros(4), np.array([False, True, False, True])) is None
    assert fit_line(x, np.ones(4, bool)) is None
    assert fit_line(x, np.array([False, True, False, True])) is not None
    assert fit_intercept(x, np.ones(4, bool)) is None
    assert fit_intercept(x, np.zeros(4, bool)) is None
    assert fit_intercept(np.zeros(4), np.array([False, True, False, True])) == pytest.approx(0)


def test_an_intercept_is_found_however_far():
    x = np.array([-13.8, 13.8, -13.8, 13.8, 0.0])
    positive = np.array([True, False, True, False, True])
    a = fit_intercept(x, positive)
    assert naive.sigmoid(a + x).sum() == pytest.approx(3, abs=1e-6)


@pytest.mark.parametrize("n", [25, 60, 700])
def test_slopes_and_intercepts_of_draws_are_those_of_repeated_rows(n):
    """Few rows go through Newton's method and single fits; many through the series."""
    rng = np.random.default_rng(n)
    z = rng.normal(-0.5, 1.5, n)
    p, positive = naive.sigmoid(1.3 * z + 0.2), rng.random(n) < naive.sigmoid(z)
    group = np.unique(rng.integers(0, n, n), return_inverse=True)[1].astype(np.int32)
    n_groups = int(group.max()) + 1
    drawn = _all_draws(n_groups, 20, 1).astype(np.uint8)
    draws = RecalibrationDraws(p, positive, group, n_groups)
    assert draws.line.slope == pytest.approx(_logistic(logits_of(p), positive)[1])
    sums = weighted(draws.columns, drawn)
    slopes, intercepts = draws.slopes(drawn, sums), draws.intercepts(drawn, sums)
    compared = 0
    for lane in range(20):
        rows = _repeated(drawn, group, lane)
        x, y = logits_of(p[rows]), positive[rows]
        if x[y].min() >= x[~y].max():
            assert np.isnan(slopes[lane])
            continue
        compared += 1
        expected = _logistic(x, y)[1]
        # A tenth of a percent of the interval's width or so; see the module.
        assert slopes[lane] == pytest.approx(expected, rel=2e-4)
        (a,) = _logistic(x, y, offset=x, slope=False)
        assert intercepts[lane] == pytest.approx(a, abs=1e-4)
    assert compared > 15


def test_the_series_is_that_of_gradient_and_curvature():
    rng = np.random.default_rng(0)
    at, positive = rng.normal(0, 1, 50), rng.random(50) < 0.5
    z = 0.3 + 0.8 * at
    columns = [
        values * at**power
        for order, values in enumerate(recalibration._derivatives(z, positive.astype(float)))
        for power in range(order + 2)
    ]
    sums = np.array([[column.sum()] for column in columns])

    def errors(a, b):
        gradient, curve = recalibration._series(sums, np.array([[a], [b]]))
        p = naive.sigmoid(z + a + b * at)
        w = p * (1 - p)
        expected = [(positive - p).sum(), ((positive - p) * at).sum()]
        yield np.abs(gradient[:, 0] - expected)
        yield np.abs(curve[:, 0] - [(w * at**power).sum() for power in range(3)])

    for direction in ((1.0, 0.0), (0.0, -1.0), (1.0, 1.0), (-0.5, 1.0), (2.0, 1.0)):
        far, near = (errors(size * direction[0], size * direction[1]) for size in (0.02, 0.01))
        # What is left out is of the fourth order, of the curvature of the third.
        for order, one, half in zip((4, 3), far, near, strict=True):
            assert (half > 0).all()
            np.testing.assert_allclose(np.log2(one / half), order, atol=0.4)


def test_draws_take_the_series_where_rows_are_many_and_newton_where_they_are_few(monkeypatch):
    taken = []
    far = RecalibrationDraws._far_slopes

    def spy(self, times, sums):
        taken.append(times.shape[1])
        return far(self, times, sums)

    monkeypatch.setattr(RecalibrationDraws, "_far_slopes", spy)
    for n in (40, 4000):
        rng = np.random.default_rng(0)
        z = rng.normal(0, 1, n)
        y = rng.random(n) < naive.sigmoid(z)
        draws = RecalibrationDraws(naive.sigmoid(z), y, np.arange(n, dtype=np.int32), n)
        drawn = _all_draws(n, 16, 0).astype(np.uint8)
        draws.slopes(drawn, weighted(draws.columns, drawn))
        taken.append(-1)
    assert taken[0] > 8
    assert sum(taken[2:-1]) <= 2


def test_a_slope_does_not_depend_on_the_draws_beside_it():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1, 30)
    y = rng.random(30) < naive.sigmoid(z)
    draws = RecalibrationDraws(naive.sigmoid(z), y, np.arange(30, dtype=np.int32), 30)
    drawn = _all_draws(30, 40, 0).astype(np.uint8)
    together = draws.slopes(drawn, weighted(draws.columns, drawn))
    for lane in range(40):
        one = np.ascontiguousarray(drawn[:, lane : lane + 1])
        np.testing.assert_array_equal(
            draws.slopes(one, weighted(draws.columns, one)), together[lane]
        )


def test_classes_in_several_passes_give_the_same(monkeypatch):
    arguments = _softmax_case(3, 60)
    whole = draw_figures(*arguments, "abc", draws=10, parts=frozenset({"calibration"}))
    monkeypatch.setattr(resampling, "_HOLD_BYTES", 1)
    parts = draw_figures(*arguments, "abc", draws=10, parts=frozenset({"calibration"}))
    assert sorted(whole) == sorted(parts)
    assert len(whole) == 6
    for key, series in whole.items():
        np.testing.assert_array_equal(series, parts[key])


def test_logits_of_certainty_are_finite():
    found = logits_of(np.array([0.0, 0.5, 1.0]))
    assert found[1] == 0
    assert found[2] == pytest.approx(-found[0]) == pytest.approx(np.log(1 / recalibration.CLIP))


# --- What the intervals are worth ---------------------------------------------------------------


@pytest.mark.skipif(PLAIN, reason="too slow as plain Python; the kernels are the same")
def test_the_interval_covers_the_truth_where_rows_of_a_patient_are_alike():
    """Patients with four rows each; half of them are always right, the others every other time."""
    rng = np.random.default_rng(0)
    runs, patients, rows = 200, 60, 4
    truth = 0.75
    covered = {"patients": 0, "rows": 0}
    for run in range(runs):
        ability = np.where(rng.random(patients) < 0.5, 1.0, 0.5)
        right = rng.random((patients, rows)) < ability[:, None]
        labels = rng.integers(0, 2, patients * rows)
        decisions = np.where(right.ravel(), labels, 1 - labels)
        p = np.full((len(labels), 2), 0.5)
        each = {"patients": np.repeat(np.arange(patients), rows), "rows": np.arange(len(labels))}
        for name, groups in each.items():
            draws = draw_figures(
                p, decisions, labels, groups, "ab", draws=256, seed=run, parts=frozenset({"rates"})
            )
            low, high = interval(draws["accuracy"])
            covered[name] += low <= truth <= high
    assert 0.90 <= covered["patients"] / runs <= 0.985
    assert covered["rows"] / runs < 0.9


@pytest.mark.skipif(PLAIN, reason="this is the second run")
def test_everything_again_as_plain_python():
    """Out-of-bounds reads are silent in compiled kernels; as Python they are an IndexError."""
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
