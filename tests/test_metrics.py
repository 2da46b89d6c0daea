"""Metrics and their intervals against the oracle and, where installed, scikit-learn."""

from __future__ import annotations

import json
import subprocess
import sys

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration import decide
from engine.metrics import (
    at_frequencies_of,
    auroc,
    average_precision,
    balanced_accuracy,
    brier,
    confusion_matrix,
    evaluate_predictions,
    expected_calibration_error,
    predictive_values,
    sensitivity_at,
    specificity_at,
    wilson,
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
    assert found.calibration["slope"] == {"a": None, "b": None}
    assert found.calibration["ece"] == pytest.approx(0.2)
    json.dumps(found.to_json(), allow_nan=False)


def test_one_patient_has_no_interval():
    """All draws would be the same: an interval of no width, as if nothing were surer."""
    probabilities, labels, _ = _predictions()
    found = evaluate_predictions(probabilities, labels, np.full(len(labels), 7), "abc")
    assert found.ci95 == {}
    assert found.auroc_macro is not None
    assert predictive_values(found, "a", 0.1)["ppv"]["ci95"] is None


def test_balanced_accuracy_of_nothing_is_none():
    assert balanced_accuracy(np.zeros((2, 2), np.int64)) is None
    assert confusion_matrix(np.array([0, 1]), np.array([1, 1]), 2).tolist() == [[0, 1], [0, 1]]


# --- Ranking figures ----------------------------------------------------------------------------


def _scores(seed, n=80, ties=9):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, ties, n) / ties
    return scores, rng.random(n) < 0.1 + 0.6 * scores


@pytest.mark.parametrize("ties", [1, 2, 9, 10**9])
@pytest.mark.parametrize("seed", range(3))
def test_ranking_figures_equal_scikit_learn(seed, ties):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, positive = _scores(seed, ties=ties)
    expected = sklearn.average_precision_score(positive, scores)
    assert average_precision(scores, positive) == pytest.approx(expected, rel=1e-12)
    wrong, called, _ = sklearn.roc_curve(positive, scores, drop_intermediate=False)
    for level in (0.9, 0.95, 0.5, 1.0):
        expected = called[1 - wrong >= level - 1e-12].max()
        assert sensitivity_at(scores, positive, level) == pytest.approx(expected)
        expected = (1 - wrong)[called >= level - 1e-12].max()
        assert specificity_at(scores, positive, level) == pytest.approx(expected)


def test_ranking_figures_without_one_side():
    for positive in (np.ones(3, bool), np.zeros(3, bool)):
        for figure in (sensitivity_at, specificity_at):
            assert figure(np.arange(3.0), positive, 0.9) is None
        assert average_precision(np.arange(3.0), positive) is None


def test_nothing_beats_a_specificity_that_only_silence_has():
    scores, positive = np.array([0.9, 0.8]), np.array([False, True])
    assert sensitivity_at(scores, positive, 0.9) == 0.0
    assert specificity_at(scores, positive, 0.9) == 0.0


rows_of_scores = st.lists(
    st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30
).filter(lambda rows: len({present for _, present in rows}) == 2)


@settings(deadline=None)
@given(rows_of_scores, st.randoms(use_true_random=False))
def test_ranking_figures_know_order_alone(rows, random):
    """Not the sequence of rows, and not the size of scores."""
    scores, positive = np.array([float(s) for s, _ in rows]), np.array([y for _, y in rows])
    order = list(range(len(rows)))
    random.shuffle(order)

    def figures(s, y):
        return [
            auroc(s, y),
            average_precision(s, y),
            sensitivity_at(s, y, 0.9),
            specificity_at(s, y, 0.9),
        ]

    expected = figures(scores, positive)
    assert figures(scores[order], positive[order]) == pytest.approx(expected, abs=1e-12)
    assert figures(np.exp(scores) - 5, positive) == pytest.approx(expected, abs=1e-12)
    assert auroc(-scores, positive) == pytest.approx(1 - expected[0])
    assert all(0 <= value <= 1 for value in expected)


# --- Calibration --------------------------------------------------------------------------------


def test_the_calibration_error_by_hand():
    p, positive = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, True, True, True])
    assert expected_calibration_error(p, positive, bins=2) == pytest.approx((0.7 + 0.3) / 4)
    assert expected_calibration_error(p, positive, bins=4) == pytest.approx((0.1 + 1.1) / 4)
    assert expected_calibration_error(p, positive, bins=1) == pytest.approx(1.0 / 4)
    assert expected_calibration_error(p[:0], positive[:0]) is None


def test_rows_of_one_probability_share_a_bin():
    p, positive = np.full(30, 0.5), np.arange(30) < 15
    assert expected_calibration_error(p, positive, bins=15) == 0.0


@settings(deadline=None)
@given(rows_of_scores, st.randoms(use_true_random=False))
def test_the_calibration_error_does_not_depend_on_the_sequence(rows, random):
    p, positive = np.array([s / 6 for s, _ in rows]), np.array([y for _, y in rows])
    order = list(range(len(rows)))
    random.shuffle(order)
    found = expected_calibration_error(p, positive)
    assert found == pytest.approx(expected_calibration_error(p[order], positive[order]), abs=1e-12)
    assert 0 <= found <= 1


def _calibrated(n=20_000, k=3, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (n, k))
    return z, (rng.random((n, k)) < naive.sigmoid(z)).astype(np.int8)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_slopes_say_how_much_too_sharp_probabilities_are(sharpness):
    z, labels = _calibrated()
    p = naive.sigmoid(sharpness * z)
    found = evaluate_predictions(p, labels, np.arange(len(p)), "abc", draws=100)
    for name in "abc":
        slope = found.calibration["slope"][name]
        assert slope == pytest.approx(1 / sharpness, rel=0.06)
        low, high = found.ci95[f"calibration_slope:{name}"]
        assert low < slope < high
        assert high - low < 0.12 / sharpness
        assert found.calibration["intercept"][name] == pytest.approx(0, abs=0.07)
    low, high = found.ci95["ece"]
    assert low <= found.calibration["ece"] <= high
    if sharpness == 1.0:
        assert found.calibration["ece"] < 0.02
    else:
        assert low > 0.05


def test_the_intercept_says_how_much_too_high_probabilities_are():
    z, labels = _calibrated()
    found = evaluate_predictions(naive.sigmoid(z + 0.7), labels, np.arange(len(z)), "abc", draws=64)
    for name in "abc":
        assert found.calibration["intercept"][name] == pytest.approx(-0.7, abs=0.07)
        low, high = found.ci95[f"calibration_intercept:{name}"]
        assert low < found.calibration["intercept"][name] < high < -0.5


def test_the_ece_of_a_softmax_head_is_of_its_first_choice():
    probabilities, labels, groups = _predictions(3)
    found = evaluate_predictions(probabilities, labels, groups, "abc", draws=0)
    expected = expected_calibration_error(
        probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    )
    assert found.calibration["ece"] == expected


@pytest.mark.parametrize("spoil", ["tied", "certain", "separated"])
def test_scores_that_say_nothing_or_all(spoil):
    probabilities, labels, groups = _predictions(3)
    if spoil == "tied":
        probabilities = np.full_like(probabilities, 1 / 3)
    elif spoil == "certain":
        probabilities = np.eye(3)[probabilities.argmax(axis=1)]
    else:
        probabilities = np.eye(3)[labels]
    found = evaluate_predictions(probabilities, labels, groups, "abc", draws=100)
    json.dumps(found.to_json(), allow_nan=False)
    slope = found.calibration["slope"]["a"]
    if spoil == "certain":
        assert slope is not None
        assert 0 < slope < 0.5
        assert found.ci95["calibration_slope:a"][0] > 0
    else:
        assert slope is None
        assert "calibration_slope:a" not in found.ci95
    if spoil == "tied":
        assert found.auroc_macro == 0.5
        assert found.average_precision["a"] == pytest.approx((labels == 0).mean())
        # A specificity of 0.9 is only reached by calling nothing.
        assert found.sensitivity_at["a"] == {"0.90": 0.0, "0.95": 0.0}
        assert found.specificity_at["a"] == {"0.90": 0.0, "0.95": 0.0}


def test_a_slope_without_bound_in_many_draws_has_no_interval():
    """Four present rows, one of them low: draws without that one divide the outcomes."""
    p = np.append(np.linspace(0.05, 0.5, 40), [0.1, 0.6, 0.7, 0.8])
    labels = np.append(np.zeros(40, np.int8), np.ones(4, np.int8))[:, None]
    found = evaluate_predictions(p[:, None], labels, np.arange(44), "x", draws=400)
    assert found.calibration["slope"]["x"] is not None
    assert "calibration_slope:x" not in found.ci95
    assert "auroc:x" in found.ci95


def test_every_figure_has_its_interval_and_they_agree():
    probabilities, labels, groups = _predictions(4, n=300)
    found = evaluate_predictions(probabilities, labels, groups, "abc")
    values = {
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "brier": found.brier,
        "ece": found.calibration["ece"],
        "auroc_macro": found.auroc_macro,
        "average_precision_macro": found.average_precision_macro,
    }
    for name in "abc":
        values[f"auroc:{name}"] = found.auroc[name]
        values[f"average_precision:{name}"] = found.average_precision[name]
        for key in ("slope", "intercept"):
            values[f"calibration_{key}:{name}"] = found.calibration[key][name]
        for level in ("0.90", "0.95"):
            values[f"sensitivity_at_{level}:{name}"] = found.sensitivity_at[name][level]
            values[f"specificity_at_{level}:{name}"] = found.specificity_at[name][level]
    assert sorted(found.ci95) == sorted(values)
    for key, (low, high) in found.ci95.items():
        assert low <= values[key] <= high, key
        assert high - low < 0.75, key
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["calibration"]["slope"]["a"] == found.calibration["slope"]["a"]
    assert written["sensitivity_at"]["b"]["0.95"] == found.sensitivity_at["b"]["0.95"]
    assert written["average_precision"] == found.average_precision


def test_a_label_nobody_assessed():
    p = np.array([[0.9, 0.5], [0.2, 0.5], [0.3, 0.5]])
    labels = np.array([[1, -1], [0, -1], [1, -2]], np.int8)
    found = evaluate_predictions(p, labels, np.arange(3), "xy", draws=50)
    assert found.average_precision["y"] is None
    assert found.sensitivity_at["y"] == {"0.90": None, "0.95": None}
    assert found.calibration["intercept"]["y"] is None
    assert not [key for key in found.ci95 if key.endswith(":y")]
    json.dumps(found.to_json(), allow_nan=False)


def test_intervals_do_not_depend_on_threads():
    arguments = (*_predictions(), "abc")
    one, many = (evaluate_predictions(*arguments, draws=300, threads=t).ci95 for t in (1, 4))
    assert one == many


# --- Counts and predictive values ---------------------------------------------------------------


def test_wilson_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 7, 200):
        for successes in {0, 1, n // 2, n - 1, n}:
            expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
            assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson(0, 0) is None
    for wrong in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected from 0 to 2"):
            wilson(*wrong)


@pytest.mark.parametrize("multilabel", [False, True])
def test_predictive_values_follow_bayes(multilabel):
    probabilities, labels, groups = _predictions(5, n=400)
    if multilabel:
        labels = (labels[:, None] == np.arange(3)).astype(np.int8)
        labels[:50, 1] = -1
    found = evaluate_predictions(probabilities, labels, groups, "abc", draws=0)
    truth = labels[:, 1] if multilabel else (labels == 1).astype(int)
    decided = found.decisions[:, 1] if multilabel else found.decisions == 1
    s, t = decided[truth == 1].mean(), (~decided)[truth == 0].mean()
    values = predictive_values(found, "b", 0.03, draws=200)
    assert values["sensitivity"]["value"] == pytest.approx(s)
    assert values["specificity"]["value"] == pytest.approx(t)
    # A thousand patients, 30 of them with the finding.
    ppv = 30 * s / (30 * s + 970 * (1 - t))
    npv = 970 * t / (970 * t + 30 * (1 - s))
    assert values["ppv"]["value"] == pytest.approx(ppv)
    assert values["npv"]["value"] == pytest.approx(npv)
    for key in ("sensitivity", "specificity", "ppv", "npv"):
        low, high = values[key]["ci95"]
        assert low < values[key]["value"] < high
    with pytest.raises(ValueError, match="expected one of a, b, c"):
        predictive_values(found, "d", 0.1)
    for share in (0.0, 1.0, 7.0):
        with pytest.raises(ValueError, match="prevalence"):
            predictive_values(found, "a", share)


def test_deciding_and_calibrating_do_not_load_numba():
    code = (
        "import sys, engine.metrics, engine.calibration, engine.comparison, engine.curves\n"
        "import numpy as np\n"
        "engine.calibration.decide(np.eye(2), (), multilabel=False)\n"
        "engine.calibration.fit_calibration(np.eye(2), np.array([0, 1]), balanced=True)\n"
        "assert 'numba' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("multilabel", [False, True])
def test_probabilities_for_equal_classes_are_judged_as_such(multilabel):
    """Right where every class is equally frequent, they are right of a rare class too."""
    rng = np.random.default_rng(1)
    n = 20_000
    labels = (rng.random(n) < 0.05).astype(np.int64)
    # Two normal densities with unit variance, two apart: their ratio is exp(2 x - 2).
    p = naive.sigmoid(2.0 * (rng.normal(size=n) + 2.0 * labels) - 2.0)
    if multilabel:
        given, truth, names = p[:, None], labels[:, None].astype(np.int8), "x"
    else:
        given, truth, names = np.column_stack([1 - p, p]), labels, "wx"
    taken, right = (
        evaluate_predictions(given, truth, np.arange(n), names, draws=50, prevalence=prevalence)
        for prevalence in ("training", "equal")
    )
    if multilabel:  # of the most probable class, errors of both sides share bins and cancel
        assert taken.calibration["ece"] > 0.05
    assert taken.calibration["intercept"]["x"] < -2.0
    assert right.calibration["ece"] < 0.01
    assert right.calibration["intercept"]["x"] == pytest.approx(0.0, abs=0.1)
    assert right.calibration["slope"]["x"] == pytest.approx(1.0, abs=0.1)
    low, high = right.ci95["ece"]
    assert low <= right.calibration["ece"] <= high < 0.02
    low, high = right.ci95["calibration_slope:x"]
    assert low < 1.0 < high
    # Everything else is of the probabilities as they are.
    assert right.brier == taken.brier
    assert right.auroc == taken.auroc
    assert right.ci95["brier"] == taken.ci95["brier"]
    assert right.to_json()["prevalence"] == "equal"
    np.testing.assert_array_equal(right.probabilities, given)


def test_frequencies_by_bayes():
    p = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.2, 0.6]])
    labels = np.array([0, 0, 0, 1])  # of class 2 there is no row
    found = at_frequencies_of(labels, p)
    np.testing.assert_allclose(
        found, [[1.5 / 1.8, 0.3 / 1.8, 0.0], [0, 1, 0], [0, 0, 1], [0.75, 0.25, 0]]
    )
    assert at_frequencies_of(np.array([0, 1, 2]), p) is p
    labels = np.array([[1, 1], [0, 1], [0, -2], [0, 1]], np.int8)
    q = np.array([[0.5, 0.5], [0.0, 0.1], [1.0, 0.9], [0.75, 0.2]])
    np.testing.assert_allclose(
        at_frequencies_of(labels, q), [[0.25, 0.5], [0.0, 0.1], [1.0, 0.9], [0.5, 0.2]]
    )


def test_intervals_are_of_the_parts_asked_for():
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)
    found = evaluate_predictions(
        p, labels, np.arange(60), "abc", draws=50, parts=frozenset({"rates"})
    )
    assert found.ci95.keys() == {"accuracy", "balanced_accuracy", "brier"}


def test_outcomes_that_are_almost_divided_have_a_steep_line_and_no_overflow():
    """The best slope is in the thousands: the odds of the rows at the ends have no number."""
    p = np.r_[np.full(30, 1e-9), 0.5425, 0.54251, 0.54252, 0.54253, np.full(30, 0.9)]
    truth = np.r_[np.zeros(30, int), 0, 1, 0, 1, np.ones(30, int)]
    found = evaluate_predictions(
        np.column_stack([1.0 - p, p]), truth, np.arange(len(p)), ("a", "b"), draws=200
    )
    assert found.calibration["slope"]["b"] > 1000
    for low, high in found.ci95.values():
        assert np.isfinite([low, high]).all()
