"""Training: learns what is there, only from what it may see, and the same way every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest

from engine import optimisation
from engine.errors import MismatchError, SplitError
from engine.heads import load_head
from engine.optimisation import minimise
from engine.training import cross_validate, evaluate_head, fit_head
from formats import open_container, write_container

PREPROCESSING = {"version": 1, "height": 8, "width": 8}
CLASSES = ("bacterial", "normal", "viral")


def make_rows(n=150, d=12, k=3, seed=0, strength=1.5):
    """Rows of n * 2/3 patients whose class moves d features."""
    rng = np.random.default_rng(seed)
    n_groups = n * 2 // 3
    groups = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, n - n_groups)])
    group_labels = np.arange(n_groups) % k
    labels = group_labels[groups]
    centres = rng.normal(size=(k, d)) * strength
    X = centres[labels] + rng.normal(size=(n, d)) + 3
    return X.astype(np.float32), labels.astype(np.uint16), groups.astype(np.uint32)


def make_container(path, X, labels, groups=None, *, classes=CLASSES, notes=None, **columns):
    d = X.shape[1]
    columns = {"label": labels, **columns}
    if groups is not None:
        # Dense, as the writer wants them.
        columns["group"] = np.unique(groups, return_inverse=True)[1].astype(np.uint32)
    full = {
        "classes": list(classes),
        "multilabel": labels.ndim == 2,
        "backbone": {"name": "net", "sha256": "a" * 64},
        "preprocessing": PREPROCESSING,
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": d}],
        **(notes or {}),
    }
    write_container(path, X, full, dtype="f32", columns=columns)
    return open_container(path)


@pytest.fixture
def container(tmp_path):
    return make_container(tmp_path / "c.hilum", *make_rows())


def split_column(groups, seed=0):
    """Patients 60/20/20 into train, valid and test."""
    rng = np.random.default_rng(seed)
    return rng.choice([1, 2, 3], groups.max() + 1, p=[0.6, 0.2, 0.2]).astype(np.uint8)[groups]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_learns_and_generalises(tmp_path, kind):
    X, labels, groups = make_rows(240)
    splits = split_column(groups)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, split=splits)
    head = fit_head(container, kind=kind, hidden=16)
    found = evaluate_head(head, container)
    assert found.split == "test"
    assert found.n_rows == (splits == 3).sum()
    assert found.notes == ()
    assert found.accuracy > 0.85
    assert found.auroc_macro > 0.95
    assert head.metrics["split"] == "valid"
    assert head.metrics["n_rows"] == (splits == 2).sum()
    assert head.training["n_rows"] == (splits == 1).sum()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_marked_valid_rows_stop_the_fit(tmp_path, kind):
    """Noise is learned after the signal: valid rows end the fit before the noise."""
    X, labels, groups = make_rows(240, strength=0.3)
    splits = split_column(groups)
    marked = make_container(tmp_path / "m.hilum", X, labels, groups, split=splits)
    unstopped = np.where(splits == 2, 3, splits)
    plain = make_container(tmp_path / "p.hilum", X, labels, groups, split=unstopped)
    stopped = fit_head(marked, kind=kind, l2=0.0, hidden=16)
    free = fit_head(plain, kind=kind, l2=0.0, hidden=16)
    if kind == "linear":
        assert stopped.training["iterations"] < free.training["iterations"]
    rows = splits == 3

    def loss(head):
        own = head.probabilities(X[rows])[np.arange(rows.sum()), labels[rows]]
        return -np.log(own).mean()

    # Both are calibrated by rows they have not seen, so the order of the rows decides.
    assert loss(stopped) < loss(free) + 0.02


def test_marked_valid_rows_serve_a_cross_validation_and_are_not_judged(tmp_path):
    X, labels, groups = make_rows(240)
    splits = split_column(groups)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, split=splits)
    found = cross_validate(container, folds=3)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(splits == 1))
    assert fit_head(container, cv=3).training["n_rows"] == (splits == 1).sum()


def test_the_optimum_is_that_of_scikit_learn(tmp_path, monkeypatch):
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr(optimisation, "_GRADIENT_TOLERANCE", 1e-8)
    monkeypatch.setattr(optimisation, "_PROGRESS_TOLERANCE", 1e-15)
    X, labels, groups = make_rows(90, strength=0.5)
    container = make_container(tmp_path / "c.hilum", X, labels, groups)
    head = fit_head(container, l2=0.05, class_weights=None)
    wide = X.astype(np.float64)
    standard = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    model = linear_model.LogisticRegression(C=1 / (0.05 * 90), tol=1e-10, max_iter=5000)
    model.fit(standard, labels)
    np.testing.assert_allclose(head.weights["weight"], model.coef_, atol=2e-5)


def test_balanced_weights_lift_the_rare_class(tmp_path):
    X, labels, groups = make_rows(240, strength=0.4)
    rare = (labels != 2) | (groups % 5 == 0)
    container = make_container(tmp_path / "c.hilum", X[rare], labels[rare], groups[rare])
    p = [
        fit_head(container, class_weights=weights).probabilities(X)[:, 2].mean()
        for weights in ("balanced", None)
    ]
    assert p[0] > 1.5 * p[1]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_same_seed_gives_the_same_bits_whatever_the_threads(container, kind):
    digests = {
        fit_head(container, kind=kind, hidden=8, cv=3, threads=threads).digest
        for threads in (1, 2, 3, 3)
    }
    assert len(digests) == 1
    assert fit_head(container, kind=kind, hidden=8, cv=3, seed=1).digest not in digests


def test_cross_validation_predicts_every_row_once_and_blind(tmp_path):
    # Labels by coin: whoever sees a patient twice does better than chance here.
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(100), 3)
    labels = rng.integers(0, 2, 100)[groups].astype(np.uint16)
    X = (rng.normal(size=(100, 40))[groups] + 0.01 * rng.normal(size=(300, 40))).astype(np.float32)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, classes=("a", "b"))
    found = cross_validate(container, folds=5)
    assert sorted(found.rows) == list(range(300))
    assert found.n_groups == 100
    assert abs(found.auroc_macro - 0.5) < 0.15
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)


def test_cross_validated_head_carries_the_figures(container):
    said = []
    head = fit_head(container, cv=3, progress=lambda *step: said.append(step))
    found = cross_validate(container, folds=3)
    assert {key: head.metrics[key] for key in found.to_json()} == found.to_json()
    assert head.metrics["protocol"].startswith("3-fold cross-validation")
    assert [step[:2] for step in said] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert head.training["n_rows"] == container.n_rows


def test_test_rows_are_never_touched(tmp_path):
    X, labels, groups = make_rows()
    splits = split_column(groups)
    one = make_container(tmp_path / "c.hilum", X, labels, groups, split=splits)
    spoilt = X.copy()
    spoilt[splits == 3] = 1e4
    other = make_container(tmp_path / "d.hilum", spoilt, labels, groups, split=splits)
    for cv in (None, 3):
        first, second = (fit_head(c, cv=cv) for c in (one, other))
        assert np.array_equal(first.weights["weight"], second.weights["weight"])
        assert first.temperature == second.temperature


def test_withdrawn_rows_are_left_out(tmp_path):
    X, labels, groups = make_rows()
    flags = np.zeros(len(X), np.uint8)
    flags[:10] = 1
    container = make_container(tmp_path / "c.hilum", X, labels, groups, row_flags=flags)
    assert fit_head(container).training["n_rows"] == len(X) - 10
    assert cross_validate(container, folds=3).rows.min() == 10
    with pytest.raises(SplitError, match="only one class"):
        everything = make_container(
            tmp_path / "w.hilum", X, labels, groups, row_flags=np.ones(len(X), np.uint8)
        )
        fit_head(everything)


def test_views_are_learned_from_and_never_judge(tmp_path):
    X, labels, groups = make_rows(100)
    twice = np.tile(X, (2, 1))
    views = np.repeat([0, 1], 100).astype(np.uint8)
    both = np.tile(labels, 2), np.tile(groups, 2)
    container = make_container(tmp_path / "v.hilum", twice, *both, view=views)
    head = fit_head(container)
    assert (head.training["n_rows"], head.training["n_views"]) == (100, 100)
    assert cross_validate(container, folds=3).rows.max() < 100
    assert evaluate_head(head, container).n_rows == 100
    alone = make_container(tmp_path / "n.hilum", twice, both[0], view=views)
    with pytest.raises(SplitError, match="augmented views but no patients"):
        fit_head(alone)


def test_without_patients_every_row_is_one_and_the_head_says_so(tmp_path):
    X, labels, _ = make_rows()
    container = make_container(tmp_path / "c.hilum", X, labels)
    head = fit_head(container, cv=3)
    assert head.training["n_groups"] == len(X)
    assert "c.hilum has no patients" in head.training["notes"][0]
    assert "c.hilum has no patients" in head.metrics["notes"][0]


def test_two_containers_are_two_groups_of_people(tmp_path, container):
    other = make_container(tmp_path / "o.hilum", *make_rows(60, seed=3))
    head = fit_head([container, other], cv=3)
    assert head.training["n_rows"] == 210
    assert head.training["n_groups"] == len(np.unique(container.groups)) + len(
        np.unique(other.groups)
    )
    assert head.training["data_sets"] == [container.uuid, other.uuid]


def test_containers_that_differ_are_refused_by_name(tmp_path, container):
    X, labels, groups = make_rows()
    changes = {
        "classes": {"classes": ("a", "b", "c")},
        "backbone": {"notes": {"backbone": {"name": "net", "sha256": "b" * 64}}},
        "preprocessing": {"notes": {"preprocessing": {**PREPROCESSING, "height": 9}}},
        "feature blocks": {
            "notes": {"blocks": [{"tap": "f", "pooling": "max", "offset": 0, "width": 12}]}
        },
    }
    for what, change in changes.items():
        other = make_container(tmp_path / "o.hilum", X, labels, groups, **change)
        with pytest.raises(MismatchError, match=rf"c\.hilum and .*o\.hilum differ in {what}"):
            fit_head([container, other])
        other.close()


def test_a_head_of_other_origin_is_refused(tmp_path, container):
    X, labels, groups = make_rows()
    head = fit_head(container)
    for what, change in {
        "backbone": {"notes": {"backbone": {"name": "net", "sha256": "b" * 64}}},
        "preprocessing": {"notes": {"preprocessing": {**PREPROCESSING, "height": 9}}},
    }.items():
        other = make_container(tmp_path / "o.hilum", X, labels, groups, **change)
        with pytest.raises(MismatchError, match=rf"head 'c' and .*o\.hilum differ in {what}"):
            evaluate_head(head, other)
        other.close()
    other = make_container(tmp_path / "o.hilum", X, labels, groups, classes=("a", "b", "c"))
    with pytest.raises(MismatchError, match="knows softmax bacterial, normal, viral"):
        evaluate_head(head, other)


def test_classes_in_another_order_are_the_same_classes(tmp_path, container):
    X, labels, groups = make_rows()
    head = fit_head(container)
    turned = make_container(
        tmp_path / "t.hilum",
        X,
        np.array([2, 0, 1], np.uint16)[labels],
        groups,
        classes=("normal", "viral", "bacterial"),
    )
    one, two = (evaluate_head(head, c).to_json() for c in (container, turned))
    # Only the first is the container it learned from, and says so.
    assert "rows it has seen" in one.pop("notes")[0]
    assert two.pop("notes") == []
    assert one == two


def test_evaluation_takes_marked_rows_or_all(tmp_path, container):
    head = fit_head(container)
    assert evaluate_head(head, container).split == "all"
    assert evaluate_head(head, container, None).split == "all"
    X, labels, groups = make_rows()
    splits = np.where(split_column(groups) == 2, 2, 1).astype(np.uint8)
    marked = make_container(tmp_path / "m.hilum", X, labels, groups, split=splits)
    assert evaluate_head(head, marked, "valid").n_rows == (splits == 2).sum()
    assert evaluate_head(head, marked, "all").n_rows == len(X)
    with pytest.raises(SplitError, match=r"no rows of split 'test' to judge \(none 0, train"):
        evaluate_head(head, marked)
    with pytest.raises(ValueError, match="expected one of none, train, valid, test, all"):
        evaluate_head(head, marked, "validation")


@pytest.mark.parametrize(
    ("mark", "sides"), [(0, "train or not marked and test"), (2, "valid and test")]
)
def test_a_patient_on_both_sides_of_the_marks_is_refused(tmp_path, mark, sides):
    X, labels, groups = make_rows()
    splits = split_column(groups)
    rows = np.flatnonzero(groups == groups[100])
    assert len(rows) > 1
    splits[rows] = 3
    splits[100] = mark
    container = make_container(tmp_path / "c.hilum", X, labels, groups, split=splits)
    for call in (fit_head, lambda c: cross_validate(c, folds=3)):
        with pytest.raises(SplitError, match=rf"c\.hilum: 1 patient.*{sides}"):
            call(container)


def test_what_cannot_be_learned_is_refused(tmp_path, container):
    X, labels, groups = make_rows()
    with pytest.raises(SplitError, match=r"no container given"):
        fit_head([])
    poor = (labels != 2) | (groups < 6)
    few = make_container(tmp_path / "few.hilum", X[poor], labels[poor], groups[poor])
    with pytest.raises(SplitError, match=r"few\.hilum: .* for 5 folds: class 'viral' has 2;"):
        fit_head(few, cv=5)
    one = make_container(tmp_path / "one.hilum", X[labels == 1], labels[labels == 1])
    with pytest.raises(SplitError, match=r"only one class has rows to learn from \(normal\)"):
        fit_head(one)
    single = (labels != 2) | (groups == 2)
    lonely = make_container(tmp_path / "l.hilum", X[single], labels[single], groups[single])
    with pytest.raises(SplitError, match="class 'viral' has 1; needed: 2"):
        fit_head(lonely)
    with pytest.raises(SplitError, match="--cv 1"):
        fit_head(container, cv=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tree"}, "expected one of linear, mlp"),
        ({"target": "sex"}, "only 'label'"),
        ({"l2": -1.0}, "at least 0"),
        ({"l2": float("nan")}, "at least 0"),
        ({"hidden": 0}, "at least 1"),
        ({"seed": -1}, "0 or more"),
        ({"class_weights": "equal"}, "'balanced' or None"),
    ],
)
def test_options_are_checked(container, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_head(container, **arguments)


def test_few_rows_are_fitted_without_calibration(tmp_path):
    X, labels, groups = make_rows(12)
    for kind in ("linear", "mlp"):
        container = make_container(tmp_path / f"{kind}.hilum", X, labels, groups)
        head = fit_head(container, kind=kind, hidden=4)
        assert head.temperature == 1.0
        assert head.metrics["split"] == ("held out" if kind == "linear" else "train")
        assert head.metrics["n_rows"] == 12
        assert any("too few to" in note for note in head.training["notes"])
        assert head.metrics["notes"] == head.training["notes"]
        assert np.isfinite(head.probabilities(X)).all()


def test_a_few_valid_rows_still_judge(tmp_path):
    X, labels, groups = make_rows()
    splits = np.where(groups < 6, 2, 1).astype(np.uint8)
    for kind in ("linear", "mlp"):
        container = make_container(tmp_path / f"{kind}.hilum", X, labels, groups, split=splits)
        head = fit_head(container, kind=kind, hidden=4)
        assert head.temperature == 1.0
        assert (head.metrics["split"], head.metrics["n_rows"]) == ("valid", (groups < 6).sum())


def test_constant_features_do_no_harm(tmp_path):
    X, labels, groups = make_rows()
    X[:, 3] = 0.1
    X[:, 4] = 0.0
    container = make_container(tmp_path / "c.hilum", X, labels, groups)
    head = fit_head(container)
    assert head.scale[3] == head.scale[4] == 1.0
    assert evaluate_head(head, container).accuracy > 0.9


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_multilabel_with_unassessed_labels(tmp_path, kind):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(240, 10)).astype(np.float32)
    direction = rng.normal(size=(10, 2))
    truth = (X @ direction > 0.5).astype(np.int8)
    labels = truth.copy()
    labels[rng.random(labels.shape) < 0.2] = -2
    container = make_container(
        tmp_path / "m.hilum", X, labels, np.arange(240), classes=("opacity", "effusion")
    )
    head = fit_head(container, kind=kind, hidden=8, cv=4)
    assert head.task == "multilabel"
    assert len(head.thresholds) == 2
    assert head.metrics["auroc_macro"] > 0.9
    p = head.probabilities(X)
    for c in range(2):
        assert naive.auroc(p[:, c], truth[:, c] == 1) > 0.9


def test_two_classes_have_a_threshold(tmp_path):
    X, labels, groups = make_rows(k=2, strength=0.5)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, classes=("no", "yes"))
    head = fit_head(container)
    assert sum(head.thresholds) == pytest.approx(1.0)
    assert 0 < head.thresholds[1] < 1


def test_the_head_says_what_it_learned_from(tmp_path):
    X, labels, groups = make_rows()
    ages = np.full(len(X), 255, np.uint8)
    ages[:5] = [3, 4, 90, 7, 255]
    sources = (np.arange(len(X)) % 2).astype(np.uint8)
    about = {"title": "Phantoms", "attribution": "Nobody", "age_range_years": [1, 5]}
    container = make_container(
        tmp_path / "c.hilum",
        X,
        labels,
        groups,
        notes={"about": about, "sources": ["north", "south"]},
        age=ages,
        source=sources,
    )
    head = fit_head(container, name="chest", seed=3, l2=0.5)
    training_facts = head.training
    assert head.name == "chest"
    assert training_facts["age_range_years"] == [3, 90]
    assert training_facts["class_counts"] == dict(
        zip(CLASSES, np.bincount(labels).tolist(), strict=True)
    )
    assert set(training_facts["sources"]) == {"north", "south"}
    assert sum(training_facts["sources"]["north"].values()) == 75
    assert (training_facts["seed"], training_facts["l2"]) == (3, 0.5)
    assert head.about == {"title": "Phantoms", "attribution": "Nobody"}
    assert head.backbone_digest == "a" * 64
    assert head.preprocessing == PREPROCESSING
    again = load_head(head.save(tmp_path / "h.safetensors"))
    assert again.training == training_facts
    assert again.metrics == head.metrics


def test_ages_come_from_the_notes_where_rows_have_none(tmp_path):
    about = {"title": "Phantoms", "age_range_years": [1, 5]}
    container = make_container(tmp_path / "c.hilum", *make_rows(), notes={"about": about})
    assert fit_head(container).training["age_range_years"] == [1, 5]


def test_training_needs_no_openvino_and_no_image_library(tmp_path, container):
    code = (
        "import sys\n"
        "from engine.training import fit_head, evaluate_head\n"
        "from formats import open_container\n"
        f"c = open_container({str(container.path)!r})\n"
        "evaluate_head(fit_head(c, cv=3), c)\n"
        "print([m for m in ('openvino', 'PIL', 'pydicom', 'sklearn') if m in sys.modules])\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_lbfgs_reaches_the_minimum_of_a_hard_quadratic(monkeypatch):
    monkeypatch.setattr(optimisation, "_GRADIENT_TOLERANCE", 1e-8)
    monkeypatch.setattr(optimisation, "_PROGRESS_TOLERANCE", 0.0)
    scales = np.logspace(0, 4, 30)
    target = np.linspace(-1, 1, 30)

    def evaluate(theta, gradient):
        gradient[:] = scales * (theta - target)
        return 0.5 * float((scales * (theta - target) ** 2).sum())

    theta, _ = minimise(evaluate, np.zeros(30), 500)
    assert evaluate(theta, np.empty(30)) < 1e-8


def test_the_line_search_keeps_the_strong_wolfe_conditions():
    def evaluate(theta, gradient):
        x = theta[0]
        gradient[0] = -1 / (x + 1) ** 2 + 0.02 * x + 3 * np.cos(3 * x) * 0.1
        return 1 / (x + 1) + 0.01 * x**2 + 0.1 * np.sin(3 * x)

    def dot(a, b):
        return float(a @ b)

    start, gradient = np.zeros(1), np.empty(1)
    value = evaluate(start, gradient)
    direction = -gradient
    slope = dot(gradient, direction)
    for first in (1e-4, 0.1, 1.0, 50.0, 1e4):
        found = optimisation._line_search(evaluate, dot, start, value, slope, direction, first)
        point, at, at_gradient = found
        step = float(point[0] / direction[0])
        assert at <= value + 1e-4 * step * slope
        assert abs(dot(at_gradient, direction)) <= 0.9 * abs(slope)
