"""Calibration: the temperature that made the logits is found again; curves; thresholds."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration import (
    Calibration,
    choose_threshold,
    choose_thresholds,
    decide,
    entropy_weights,
    fit_calibration,
    fit_isotonic,
    fit_temperature,
    mean_entropy,
)
from engine.metrics import expected_calibration_error


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


# --- Thresholds at a sensitivity or specificity ---------------------------------------------------

scored_rows = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({present for _, present in rows}) == 2
)


@settings(deadline=None)
@given(scored_rows, st.sampled_from([0.05, 0.5, 0.7, 0.9, 0.95, 1.0]))
def test_the_highest_threshold_that_reaches_a_sensitivity(rows, wanted):
    p, positive = np.array([s / 8 for s, _ in rows]), np.array([y for _, y in rows])
    threshold = choose_threshold(p, positive, sensitivity=wanted)
    assert (p[positive] >= threshold).mean() >= wanted - 1e-12
    for higher in p[p >= threshold]:
        assert (p[positive] > higher).mean() < wanted - 1e-12


@settings(deadline=None)
@given(scored_rows, st.sampled_from([0.05, 0.5, 0.7, 0.9, 0.95, 1.0]))
def test_the_lowest_threshold_that_reaches_a_specificity(rows, wanted):
    p, positive = np.array([s / 8 for s, _ in rows]), np.array([y for _, y in rows])
    threshold = choose_threshold(p, positive, specificity=wanted)
    assert (p[~positive] < threshold).mean() >= wanted - 1e-12
    for lower in p[p < threshold]:
        assert (p[~positive] < lower).mean() < wanted - 1e-12


def test_neighbours_without_a_number_between_them():
    # Halfway is rounded to the even one of the two: once down, once up.
    for low in (0.3, np.nextafter(0.3, 1.0)):
        high = np.nextafter(low, 1.0)
        p, positive = np.array([low, high]), np.array([False, True])
        assert choose_threshold(p, positive, specificity=1.0) == high
        assert low <= choose_threshold(p, positive, sensitivity=1.0) <= high
    silent = choose_threshold(np.array([1.0, 0.5]), np.array([False, True]), specificity=1.0)
    assert silent > 1.0
    assert choose_threshold(p, np.array([True, True]), sensitivity=0.9) == 0.5


def test_thresholds_at_a_share_by_kind_of_head():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    z = rng.normal(size=(90, 3))
    z[np.arange(90), labels] += 1
    p = naive.softmax(z)
    found = choose_thresholds(p, labels, sensitivity=0.9)
    assert len(found) == 3
    for c in range(3):
        assert found[c] == choose_threshold(p[:, c], labels == c, sensitivity=0.9)
    # They are for reporting: the most probable class is decided.
    np.testing.assert_array_equal(decide(p, found, multilabel=False), p.argmax(axis=1))
    two = p[:, :2] / p[:, :2].sum(axis=1, keepdims=True)
    first, second = choose_thresholds(two, labels % 2, specificity=0.8)
    assert second == choose_threshold(two[:, 1], labels % 2 == 1, specificity=0.8)
    assert first == 1 - second
    decided = decide(two, (first, second), multilabel=False)
    assert (decided[labels % 2 == 0] == 0).mean() >= 0.8
    many = (labels[:, None] == np.arange(3)).astype(np.int8)
    many[::4, 1] = -1
    found = choose_thresholds(p, many, specificity=0.95)
    rows = many[:, 1] >= 0
    assert found[1] == choose_threshold(p[rows, 1], many[rows, 1] == 1, specificity=0.95)
    assert found[1] != choose_threshold(p[:, 1], many[:, 1] == 1, specificity=0.95)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_no_share(share):
    p, labels = np.full((3, 3), 1 / 3), np.array([0, 1, 2])
    for wish in ({"sensitivity": share}, {"specificity": share}):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            choose_thresholds(p, labels, **wish)
    with pytest.raises(ValueError, match="one of the two"):
        choose_thresholds(p, labels, sensitivity=0.9, specificity=0.9)


# --- Isotonic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_steps_are_those_of_scikit_learn(seed, weighted):
    """Twelve probabilities of so many rows each that no step is merged."""
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(seed)
    x = np.repeat(np.linspace(0.05, 0.95, 12), 100)
    positive = rng.random(1200) < 0.5 + 0.2 * (x - 0.5)
    w = np.where(positive, 2.0, 0.5) if weighted else np.ones(1200)
    order = rng.permutation(1200)
    found_x, found_y = fit_isotonic(x[order], positive[order], w[order])
    peer = isotonic.IsotonicRegression().fit_transform(x, positive.astype(float), sample_weight=w)
    levels = np.unique(peer.round(12))
    assert 1 < len(levels) < 12
    assert len(found_x) == len(levels)
    for level, knot_x, knot_y in zip(levels, found_x, found_y, strict=True):
        rows = np.isclose(peer, level)
        assert knot_x == pytest.approx(np.average(x[rows], weights=w[rows]))
        # One row of doubt, of average weight.
        doubted = (level * w[rows].sum() + 0.5 * w.mean()) / (w[rows].sum() + w.mean())
        assert knot_y == pytest.approx(doubted)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=120),
    st.randoms(use_true_random=False),
)
def test_knots_rise_and_are_means_of_many_rows(rows, random):
    x, positive = np.array([s / 50 for s, _ in rows]), np.array([y for _, y in rows])
    found_x, found_y = fit_isotonic(x, positive, np.ones(len(x)))
    if min(positive.sum(), (~positive).sum()) < 10:
        assert (found_x, found_y) == ((0.0, 1.0), (0.0, 1.0))
        return
    assert 1 <= len(found_x) == len(found_y) <= len(x) // 10
    assert (np.diff(found_x) > 0).all()
    assert (np.diff(found_y) >= 0).all()
    assert 0 < found_y[0] <= found_y[-1] < 1
    order = list(range(len(rows)))
    random.shuffle(order)
    assert fit_isotonic(x[order], positive[order], np.ones(len(x))) == (found_x, found_y)


def test_no_step_can_be_traced_to_a_row():
    """A knot of one row would be its probability, and what it is."""
    rng = np.random.default_rng(0)
    outlier = np.append(np.linspace(0.3, 0.7, 60), 0.999)
    truth = np.append(rng.random(60) < 0.5, True)
    assert max(fit_isotonic(outlier, truth, np.ones(61))[0]) < 0.8
    many = rng.random(5000)
    assert len(fit_isotonic(many, rng.random(5000) < many, np.ones(5000))[0]) <= 20


def _distorted(n, seed=0, k=3):
    """Logits that no temperature can right: what is rare is called too rarely, not too surely."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (n, k))
    labels = (rng.random((n, k)) < naive.sigmoid(z)).astype(np.int8)
    labels[rng.random((n, k)) < 0.1] = -1
    return 0.8 * z - 1.0 + 0.3 * z**2, z, labels


def test_isotonic_rights_what_a_temperature_cannot():
    logits, _, labels = _distorted(4000)
    other, _, truth = _distorted(4000, seed=1)
    errors = {}
    for method in ("temperature", "isotonic"):
        fitted = fit_calibration(logits, labels, method, balanced=False)
        assert fitted.method == method
        p = fitted.apply(other, multilabel=True)
        rows = truth[:, 0] >= 0
        errors[method] = expected_calibration_error(p[rows, 0], truth[rows, 0] == 1)
        written = Calibration.from_json(fitted.to_json(), 3)
        np.testing.assert_array_equal(written.apply(other, multilabel=True), p)
    # The curve is not one that rises everywhere; what is left is that and chance.
    assert errors["isotonic"] < 0.6 * errors["temperature"]


def test_isotonic_of_a_softmax_head():
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (6000, 3))
    labels = (rng.random((6000, 1)) > naive.softmax(honest).cumsum(axis=1)).sum(axis=1)
    logits = honest + np.array([1.0, 0.0, -1.0])
    errors = {}
    for method in ("temperature", "isotonic"):
        fitted = fit_calibration(logits[:3000], labels[:3000], method, balanced=False)
        p = fitted.apply(logits[3000:], multilabel=False)
        np.testing.assert_allclose(p.sum(axis=1), 1.0)
        errors[method] = expected_calibration_error(p[:, 0], labels[3000:] == 0)
    assert errors["isotonic"] < 0.5 * errors["temperature"]


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_balanced_isotonic_does_not_depend_on_how_rare_a_class_is(task):
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.05, 0.95, 40_000)
    labels = (rng.random(40_000) < honest).astype(np.int64)
    keep = (labels == 0) | (rng.random(40_000) < 0.1)
    labels, z = labels[keep], np.log(honest[keep] / (1 - honest[keep]))
    logits = np.column_stack([np.zeros(len(z)), z])
    if task == "multilabel":
        labels, logits = labels[:, None].astype(np.int8), z[:, None]
    for balanced, tolerance in ((True, 0.04), (False, None)):
        fitted = fit_calibration(logits, labels, "isotonic", balanced=balanced)
        p = fitted.apply(logits, multilabel=task == "multilabel")[:, -1]
        worst = np.abs(p - honest[keep])[(honest[keep] > 0.1) & (honest[keep] < 0.9)].max()
        if tolerance:
            assert worst < tolerance
        else:
            assert worst > 0.3


def test_auto_takes_isotonic_only_where_it_helps_other_patients():
    logits, honest, labels = _distorted(3000)
    groups = np.arange(3000)

    def auto(z, y, g):
        return fit_calibration(z, y, "auto", balanced=False, groups=g).method

    assert auto(logits, labels, groups) == "isotonic"
    assert auto(honest, labels, groups) == "temperature"
    assert auto(logits[:900], labels[:900], groups[:900]) == "temperature"
    # Copies are no new patients: a fit by 20 patients' rows does not help other patients.
    few = np.tile(np.arange(20), 100)
    assert auto(logits[few], labels[few], few) == "temperature"
    assert auto(logits, labels, groups % 3) == "temperature"


def test_methods_are_named():
    z, labels = np.eye(3), np.array([0, 1, 2])
    assert fit_calibration(z, labels, "none", balanced=True) == Calibration()
    temperature = fit_temperature(z, labels, balanced=True)
    found = fit_calibration(z, labels, balanced=True)
    assert found == Calibration("temperature", temperature)
    with pytest.raises(ValueError, match="expected one of none, temperature, isotonic, auto"):
        fit_calibration(z, labels, "platt", balanced=True)
    with pytest.raises(ValueError, match="expected groups"):
        fit_calibration(z, labels, "auto", balanced=True)


def test_isotonic_of_few_rows_is_the_temperature():
    z, labels = np.random.default_rng(0).normal(size=(25, 3)), np.arange(25) % 3
    found = fit_calibration(z, labels, "isotonic", balanced=True)
    expected = fit_calibration(z, labels, "temperature", balanced=True)
    np.testing.assert_allclose(
        found.apply(z, multilabel=False), expected.apply(z, multilabel=False), rtol=1e-12
    )


def test_the_error_of_cross_validated_probabilities_is_small(repository):
    """The number this project promises: at most 0.05 on out-of-fold predictions."""
    import engine

    container = engine.open_container(repository / "engine" / "demonstration" / "pneumonia.hilum")
    found = engine.cross_validate(container, folds=5)
    assert found.calibration["ece"] <= 0.05
