"""Training: learns what is there, only from what it may see, and the same way every time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import naive
import numpy as np
import pytest

from engine import calibrated, fitting, optimisation, train, validation, work
from engine import rows as row_source
from engine.errors import MismatchError, SplitError
from engine.heads import load_head
from engine.judging import evaluate_head
from engine.kernels import heads
from engine.optimisation import minimise
from engine.rows import Crew, Feed, Rows, Stopped
from engine.training import fit_head
from engine.validation import cross_validate
from engine.views import views_to_notes
from engine.work import Work
from formats import (
    Container,
    ContainerError,
    Corrupt,
    make_key_pair,
    open_container,
    sign_container,
    write_container,
)

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


def make_container(
    path, X, labels, groups=None, *, classes=CLASSES, notes=None, dtype="f32", **columns
):
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
    write_container(path, X, full, dtype="f32", columns=columns, group_order="given")
    return open_container(path)


@pytest.fixture
def short_fits(monkeypatch):
    """Few epochs, for tests that ask how heads with a hidden layer are trained, not how well."""
    monkeypatch.setattr(fitting, "_MAX_EPOCHS", 4)
    monkeypatch.setattr(fitting, "_MAX_STEPS", 40)


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


class Record:
    """Which rows every choice, fit, prediction and calibration of a training was given."""

    def __init__(self, monkeypatch):
        self.choices = []
        self.fits = []
        self.judged = []
        self.calibrated = []
        self._choose, self._fit = calibrated.select_settings, calibrated.fit_selected
        self._calibrate, self._logits = calibrated.calibrate, fitting.Fitted.logits
        monkeypatch.setattr(calibrated, "select_settings", self.choose)
        monkeypatch.setattr(calibrated, "fit_selected", self.fit)
        monkeypatch.setattr(calibrated, "calibrate", self.calibrate)

        def logits(fitted, features, rows, crew):
            return self.logits(fitted, features, rows, crew)

        monkeypatch.setattr(fitting.Fitted, "logits", logits)

    def choose(self, data, train, settings, work, *, valid=None):
        selection = self._choose(data, train, settings, work, valid=valid)
        self.choices.append((selection, train, valid))
        return selection

    def fit(self, data, train, selection, work):
        self.data = data
        # Closed when the training is over.
        self.X = data.features.X
        fitted = self._fit(data, train, selection, work)
        self.fits.append((fitted, train))
        return fitted

    def logits(self, fitted, features, rows, crew):
        out = self._logits(fitted, features, rows, crew)
        self.judged.append((fitted, rows))
        return out

    def calibrate(self, fitted, selection, data, plan):
        self.calibrated.append((fitted, selection))
        return self._calibrate(fitted, selection, data, plan)

    def judged_by(self, fitted):
        return [rows for other, rows in self.judged if other is fitted]

    def check(self):
        """Nothing judged what it learned from, and nothing is known of rows not learned from."""
        X, groups, views = self.X.astype(np.float64), self.data.groups, self.data.views
        for fitted, learned in self.fits:
            np.testing.assert_allclose(fitted.mean, X[learned].mean(axis=0), rtol=1e-5)
            np.testing.assert_allclose(fitted.scale, X[learned].std(axis=0), rtol=1e-4)
            for rows in self.judged_by(fitted):
                assert np.intersect1d(groups[rows], groups[learned]).size == 0
                assert not views[rows].any()
        for selection, learned, valid in self.choices:
            chosen_by = learned if valid is None else valid
            assert np.isin(selection.rows, chosen_by).all()
            assert len(np.unique(selection.rows)) == len(selection.rows)
            assert not views[selection.rows].any()
            if valid is not None:
                assert np.intersect1d(groups[valid], groups[learned]).size == 0
        for fitted, selection in self.calibrated:
            [mine] = [learned for other, learned in self.fits if other is fitted]
            [theirs] = [learned for other, learned, _ in self.choices if other is selection]
            assert mine is theirs


def make_view_rows(k=3, strength=0.6):
    """Rows with a second view of each image, none like another, and patients of some images."""
    X, labels, groups = make_rows(330, k=k, strength=strength)
    noise = np.random.default_rng(8).normal(0, 0.3, X.shape)
    twice = np.concatenate([X, (X + noise).astype(np.float32)])
    views = np.repeat([0, 1], len(X)).astype(np.uint8)
    return twice, np.tile(labels, 2), np.tile(groups, 2), views


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "marked"])
@pytest.mark.parametrize("cv", [None, 3])
def test_nothing_judges_what_it_learned_from(tmp_path, monkeypatch, kind, marked, cv):
    X, labels, groups, views = make_view_rows()
    columns = {"view": views}
    if marked:
        columns["split"] = split_column(groups)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, **columns)
    record = Record(monkeypatch)
    head = fit_head(container, kind=kind, hidden=24, cv=cv, threads=1)
    record.check()
    # Each fold chooses and calibrates itself; the head's own calibration is by blind predictions
    # as well.
    n_fits = 1 if cv is None else 1 + cv
    assert [len(part) for part in (record.choices, record.fits, record.calibrated)] == [n_fits] * 3
    if cv is not None:
        folds = [fitted for fitted, _ in record.fits[:cv]]
        whole = np.sort(np.concatenate([record.judged_by(fitted)[-1] for fitted in folds]))
        np.testing.assert_array_equal(
            whole, np.flatnonzero((record.data.views == 0) & (record.data.splits != 2))
        )
    # The weights that are kept are those of every learning row.
    learning = np.flatnonzero(record.data.splits != 2)
    fitted, train = record.fits[-1]
    np.testing.assert_array_equal(train, learning)
    np.testing.assert_array_equal(head.mean, fitted.mean)


def test_calibration_is_by_predictions_of_patients_not_learned_from(tmp_path):
    """Labels by coin, more columns than patients: what was learned is known without a doubt."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 3)
    labels = rng.integers(0, 2, 60)[groups].astype(np.uint16)
    X = (rng.normal(size=(60, 90))[groups] + 0.01 * rng.normal(size=(180, 90))).astype(np.float32)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, classes=("a", "b"))
    for cv in (None, 3):
        head = fit_head(container, l2=0.003, cv=cv)
        assert np.abs(head.metrics["auroc_macro"] - 0.5) < 0.2
        assert np.abs(head.probabilities(X)[:, 1] - 0.5).max() < 0.25
        plain = fit_head(container, l2=0.003, cv=cv, calibration="none")
        assert np.abs(plain.probabilities(X)[:, 1] - 0.5).min() > 0.4


def test_folds_decide_by_their_own_thresholds(tmp_path, monkeypatch):
    X, labels, groups, views = make_view_rows(k=2, strength=0.3)
    rare = (labels == 0) | (groups % 5 == 1)
    container = make_container(
        tmp_path / "c.hilum", X[rare], labels[rare], groups[rare], classes=("a", "b"),
        view=views[rare],
    )  # fmt: skip
    record = Record(monkeypatch)
    found = cross_validate(container, folds=3, class_weights=None, threads=1)
    fold_of = {}
    for fold, (fitted, _) in enumerate(record.fits):
        fold_of.update(dict.fromkeys(record.judged_by(fitted)[-1].tolist(), fold))
    limits = np.array([fitted.thresholds[1] for fitted, _ in record.fits])
    assert len(set(limits)) == 3
    own = limits[[fold_of[row] for row in found.rows]]
    second = found.probabilities[:, 1]
    np.testing.assert_array_equal(found.decisions, second >= own)
    # Neither one half nor any fold's threshold for all would have decided the same.
    for other in (0.5, *limits):
        assert ((second >= other) != (second >= own)).any()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_marked_valid_rows_stop_the_fit(tmp_path, monkeypatch, kind):
    """Wrong labels are learned after the right ones: valid rows end the fit before."""
    X, labels, groups = make_rows(360, d=20, strength=1.0)
    splits = split_column(groups)
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(360) < 0.4, rng.integers(0, 3, 360), labels).astype(np.uint16)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, split=splits)
    with monkeypatch.context() as patch:
        record = Record(patch)
        stopped = fit_head(container, kind=kind, l2=0.0, dropout=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(fitting.Watch, "gives_up", lambda *_: False)
        free = fit_head(container, kind=kind, l2=0.0, dropout=0.0)
    assert stopped.training["iterations"] < free.training["iterations"] / 4

    def loss(head, side):
        rows = splits == side
        own = head.probabilities(X[rows])[np.arange(rows.sum()), labels[rows]]
        return -np.log(own).mean()

    # Both are calibrated by the valid rows, so what differs is what was learned.
    assert loss(stopped, 2) < loss(free, 2) - 0.1
    assert loss(stopped, 3) < loss(free, 3) - 0.1
    if kind == "mlp":
        # The weights are those of the best epoch, not of the last one looked at.
        [(_, train)] = record.fits
        settings = record.choices[0][0].settings
        best = stopped.training["iterations"]
        work = Work(Crew(1), 0, lambda *_: None)
        again = fitting.fit_weights(record.data, train, None, settings, work, epochs=best)
        np.testing.assert_array_equal(again.weights["weight"], stopped.weights["weight"])


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


def rare_rows(seed, n=4000, rate=0.05):
    """One binary feature whose ratio of the classes is not symmetric, and two of noise."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < rate
    X = rng.normal(size=(n, 3))
    X[:, 0] = rng.random(n) < np.where(positive, 0.96, 0.64)
    return X.astype(np.float32), positive.astype(np.uint16)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_probabilities_of_a_rare_class_mean_what_the_head_says(tmp_path, seed, multilabel):
    X, labels = rare_rows(seed)
    new, truth = rare_rows(99, 40_000)
    given, classes = labels, ("no", "yes")
    if multilabel:
        given, classes = labels[:, None].astype(np.int8), ("yes",)
    container = make_container(tmp_path / "c.hilum", X, given, np.arange(len(X)), classes=classes)
    # A softmax has two sets of weights for what one label has one.
    l2 = 0.005 if multilabel else 0.01
    by_rows = fit_head(container, class_weights=None, l2=l2)
    p = by_rows.probabilities(new)[:, -1]
    assert by_rows.training["prevalence"] == "training"
    assert p.mean() == pytest.approx(truth.mean(), abs=0.01)
    assert naive.calibration_error(p, truth == 1, np.ones(len(p))) < 0.01
    assert "as if" not in by_rows.notice()
    equal = fit_head(container, l2=l2)
    p = equal.probabilities(new)[:, -1]
    assert equal.training["prevalence"] == "equal"
    # Unweighted, the temperature was 1.4 to 1.5 here and the error 0.035.
    assert equal.calibration.temperature == pytest.approx(1.0, abs=0.12)
    weights = 1.0 / np.bincount(truth)[truth]
    assert (weights * p).sum() / 2 == pytest.approx(0.5, abs=0.02)
    assert naive.calibration_error(p, truth == 1, weights) < 0.025
    assert "probabilities as if every" in equal.notice()


def test_balanced_weights_lift_the_rare_class(tmp_path):
    X, labels, groups = make_rows(240, strength=0.4)
    rare = (labels != 2) | (groups % 5 == 0)
    container = make_container(tmp_path / "c.hilum", X[rare], labels[rare], groups[rare])
    p = [
        fit_head(container, class_weights=weights).probabilities(X)[:, 2].mean()
        for weights in ("balanced", None)
    ]
    assert p[0] > 1.5 * p[1]


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_same_seed_gives_the_same_bits_whatever_the_threads(container, kind):
    digests = {
        fit_head(container, kind=kind, hidden=8, cv=3, threads=threads).digest
        for threads in (1, 2, 3, 3)
    }
    assert len(digests) == 1
    assert fit_head(container, kind=kind, hidden=8, cv=3, seed=1).digest not in digests


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "marked"])
def test_features_that_do_not_fit_into_memory_give_the_same_bits(
    tmp_path, monkeypatch, kind, marked
):
    X, labels, groups = make_rows(200)
    one, two = slice(0, 130), slice(130, 200)
    columns = {"split": split_column(groups)} if marked else {}
    containers = [
        make_container(
            tmp_path / f"{rows.start}.hilum", X[rows], labels[rows], groups[rows],
            **{name: column[rows] for name, column in columns.items()},
        )
        for rows in (one, two)
    ]  # fmt: skip
    read_rows, hold = Container.read_rows, Feed.hold
    read, held = [], []

    def counted(self, rows=None):
        found = read_rows(self, rows)
        read.append(len(found))
        return found

    def noted(self, crew):
        held.append(len(self))
        hold(self, crew)

    monkeypatch.setattr(Container, "read_rows", counted)
    monkeypatch.setattr(Feed, "hold", noted)
    # Parts of 16 rows, and pieces of 4, so that these rows are many of both.
    monkeypatch.setattr(row_source, "PART_ROWS", 16)
    monkeypatch.setattr(row_source, "PIECE_BYTES", 4 * 4 * X.shape[1])
    monkeypatch.setattr(fitting, "_BATCH_ROWS", 4)
    monkeypatch.setattr(fitting, "_BATCHES_BYTES", 1)
    digests, evaluations = set(), set()
    whole = 4 * X.size
    # Everything held; features held but not a standardised copy for each fit; nothing held.
    for budget, threads in [(8 * whole, 1), (8 * whole, 3), (2 * whole, 2), (0, 1), (0, 3)]:
        for module in (row_source, validation, work):
            monkeypatch.setattr(module, "MEMORY_BYTES", budget)
        read.clear()
        held.clear()
        head = fit_head(containers, kind=kind, hidden=4, cv=2, seed=1, threads=threads)
        digests.add(head.digest)
        found = evaluate_head(head, containers[0], "all", threads=threads)
        evaluations.add(found.probabilities.tobytes())
        if budget == 0:
            assert held == []
            # Rows with gaps are read with the gaps.
            assert max(read) <= 4 * 4
        elif budget == 8 * whole:
            assert held
    assert len(digests) == len(evaluations) == 1
    monkeypatch.setattr(row_source, "PART_ROWS", 1 << 20)
    head = fit_head(containers, kind=kind, hidden=4, cv=2, seed=1)
    assert head.metrics["auroc_macro"] == pytest.approx(found.auroc_macro, abs=0.2)


@pytest.mark.parametrize("when", ["fold ", "head, "])
def test_ctrl_c_ends_every_thread(container, monkeypatch, when):
    monkeypatch.setattr(validation, "_LOOK_SECONDS", 0.001)

    def interrupt(done, total, text):
        if text.startswith(when):
            raise KeyboardInterrupt

    # More threads than folds: folds share the others for their rows.
    for threads in (3, 8):
        with pytest.raises(KeyboardInterrupt):
            fit_head(container, kind="mlp", cv=3, threads=threads, progress=interrupt)
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("hilum")]


def test_a_file_that_was_exchanged_is_not_read(tmp_path, container):
    other = tmp_path / "o.hilum"
    make_container(other, *make_rows(60, seed=3)).close()
    other.replace(container.path)
    with pytest.raises(MismatchError, match=r"c\.hilum: holds another container .* open it again"):
        fit_head(container)


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
    done = [step[0] for step in said]
    # Ten for the reading, a hundred for each fold and for the head itself.
    assert {step[1] for step in said} == {410}
    assert done == sorted(done)
    assert done[0] <= 10
    assert done[-1] == 410
    assert said[-1][2] == "head"
    assert {"checking c.hilum", "3 of 3 folds done"} <= {step[2] for step in said}
    assert any(text.startswith("head, fit, iteration ") and "loss" in text for *_, text in said)
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
        assert first.calibration.temperature == second.calibration.temperature


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
    assert head.training["notes"][0].startswith("the container has no patients")
    assert head.metrics["notes"][0] == head.training["notes"][0]
    # what travels with the head must not hold a file's name, which may be a person's
    assert "c.hilum" not in str(head._stored()[1])


def test_groups_made_for_views_alone_are_no_patients(tmp_path):
    X, labels, _ = make_rows(120)
    images = np.arange(120) // 2
    views = (np.arange(120) % 2).astype(np.uint8)
    X, labels = X[2 * images], labels[2 * images]
    notes = {}
    for group in ("image", "patient"):
        container = make_container(
            tmp_path / f"{group}.hilum", X, labels, images, view=views,
            notes={
                "views": views_to_notes(1, mirror=False, patients=group == "patient")
            },
        )  # fmt: skip
        notes[group] = fit_head(container).training["notes"]
    assert notes["patient"] == []
    [note] = notes["image"]
    assert "each image was taken for another patient" in note


def test_a_class_of_one_container_is_said_where_no_sources_are_named(tmp_path):
    containers = []
    for number in (0, 1):
        X, labels, groups = make_rows(120, seed=number)
        kept = labels != 2 * number
        containers.append(
            make_container(
                tmp_path / f"{number}.hilum", X[kept], labels[kept], groups[kept],
                source=np.full(kept.sum(), number, np.uint8), notes={"sources": ["a", "b"]},
            )
        )  # fmt: skip
        bare = make_container(tmp_path / f"{number}b.hilum", X[kept], labels[kept], groups[kept])
        containers.append(bare)
    named = fit_head(containers[::2]).training["notes"]
    assert not any("containers apart" in note for note in named)
    found = [n for n in fit_head(containers[1::2]).training["notes"] if "containers apart" in n]
    assert [n.split(":")[0] for n in found] == [
        f"every image of {CLASSES[0]!r} comes from container 2 of 2",
        f"every image of {CLASSES[2]!r} comes from container 1 of 2",
    ]


def test_the_same_container_twice_is_refused(tmp_path, container):
    copy = tmp_path / "copy.hilum"
    copy.write_bytes(container.path.read_bytes())
    for other in (container, open_container(copy)):
        for call in (fit_head, cross_validate):
            name = other.path.name
            with pytest.raises(MismatchError, match=rf"c\.hilum and .*{name} are the same .*leave"):
                call([container, other])


@pytest.mark.parametrize("mine", [1, 3], ids=["learned from", "to be tested"])
@pytest.mark.parametrize("theirs", [1, 3], ids=["learned from", "to be tested"])
def test_images_in_two_containers_are_refused(tmp_path, mine, theirs):
    """Under another patient and place: a row to be tested was else learned from in silence."""
    n = 60
    X, labels, groups = make_rows(n, seed=1)
    Y, others, people = make_rows(n, seed=2)
    first, second = np.full(n, 1, np.uint8), np.full(n, 1, np.uint8)
    Y[-3:], others[-3:] = X[40:43], labels[40:43]
    first[np.isin(groups, groups[40:43])] = mine
    second[np.isin(people, people[-3:])] = theirs
    one = make_container(tmp_path / "a.hilum", X, labels, groups, split=first)
    two = make_container(tmp_path / "b.hilum", Y, others, people, split=second)
    if mine == theirs == 3:
        # A common test set is never learned from.
        assert fit_head([one, two]).training["n_rows"] == (first == 1).sum() + (second == 1).sum()
        return
    with pytest.raises(MismatchError, match=r"a\.hilum and .*b\.hilum have 3 image.*leave one"):
        fit_head([one, two])


def test_equal_sample_keys_in_two_containers_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    one_keys, two_keys = rng.integers(0, 256, (2, 60, 16)).astype(np.uint8)
    one_keys[:5] = two_keys[:5] = 0
    one = make_container(tmp_path / "a.hilum", *make_rows(60, seed=1), sample_key=one_keys)
    two = make_container(tmp_path / "b.hilum", *make_rows(60, seed=2), sample_key=two_keys)
    assert fit_head([one, two]).training["n_rows"] == 120
    two.close()
    two_keys[7] = one_keys[50]
    two = make_container(tmp_path / "b.hilum", *make_rows(60, seed=2), sample_key=two_keys)
    with pytest.raises(MismatchError, match=r"a\.hilum and .*b\.hilum have 1 image"):
        fit_head([one, two])


def flip_a_bit(path, offset):
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_damaged_container_is_refused_before_anything_is_learned(tmp_path, container, place):
    head = fit_head(container)
    other = tmp_path / "o.hilum"
    make_container(other, *make_rows(60, seed=3)).close()
    flip_a_bit(other, 4096 + 5)
    damaged = open_container(other)
    both = [damaged, container] if place == "first" else [container, damaged]
    with pytest.raises(Corrupt, match=r"o\.hilum"):
        fit_head(both)
    with pytest.raises(Corrupt, match=r"o\.hilum"):
        cross_validate(damaged, folds=3)
    with pytest.raises(Corrupt, match=r"o\.hilum"):
        evaluate_head(head, damaged)


def test_features_that_are_not_finite_are_refused_by_row(container, monkeypatch):
    read_rows = Container.read_rows

    def spoilt(self, rows=None):
        X = read_rows(self, rows).copy()
        numbers = np.arange(self.n_rows)[rows]
        # Their sum is an invalid operation, which NumPy warns of.
        X[numbers == 17, 2:4] = np.inf, -np.inf
        X[numbers == 30, 0] = np.nan
        return X

    monkeypatch.setattr(Container, "read_rows", spoilt)
    monkeypatch.setattr(row_source, "PIECE_BYTES", 8 * 4 * container.dim)
    with pytest.raises(SplitError, match=r"c\.hilum: row 17 \(and 1 more\)"):
        fit_head(container)


def test_two_containers_are_two_groups_of_people(tmp_path, container):
    other = make_container(tmp_path / "o.hilum", *make_rows(60, seed=3))
    head = fit_head([container, other], cv=3)
    assert head.training["n_rows"] == 210
    assert head.training["n_groups"] == len(np.unique(container.groups)) + len(
        np.unique(other.groups)
    )
    assert head.training["data_sets"] == [container.uuid, other.uuid]
    for notes in (head.training["notes"], head.metrics["notes"]):
        assert any("were taken for different people" in note for note in notes)
    assert fit_head(container, cv=3).training["notes"] == []


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


def test_a_head_knows_the_relatives_of_its_containers(tmp_path, container):
    """A copy with other marks, or rows that were merged, are judged as good as learned from."""
    X, labels, groups = make_rows()
    splits = split_column(groups)
    marked = make_container(tmp_path / "m.hilum", X, labels, groups, split=splits)
    heads = fit_head(container), fit_head(marked)
    assert heads[0].training["data_sets"] == [container.uuid]
    children = {
        name: make_container(
            tmp_path / f"{name}.hilum", X, labels, groups, split=splits,
            notes={"derived_from": parents},
        )
        for name, parents in {
            "child": [container.uuid, "f" * 32], "sister": ["f" * 32], "none": ["e" * 32]
        }.items()
    }  # fmt: skip
    child = fit_head(children["child"])
    assert child.training["data_sets"] == [children["child"].uuid, container.uuid, "f" * 32]
    for head, judged, related in [
        (heads[0], children["child"], True),
        (child, children["sister"], True),
        (child, container, True),
        (child, children["none"], False),
        # The test rows of the container it learned from.
        (heads[1], marked, False),
    ]:
        notes = evaluate_head(head, judged).notes
        assert [("was made from" in note) for note in notes] == ([True] if related else [])
    both = fit_head([children["sister"], make_container(tmp_path / "o.hilum", *make_rows(seed=5))])
    assert both.training["data_sets"][::2] == [children["sister"].uuid, "f" * 32]
    assert both.training["derived_from"] == ["f" * 32]


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
    head = fit_head(make_container(tmp_path / "other.hilum", *make_rows(seed=0)))
    for call in (
        fit_head,
        lambda c: cross_validate(c, folds=3),
        lambda c: evaluate_head(head, c),
        lambda c: evaluate_head(head, c, "train"),
    ):
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


@pytest.mark.usefixtures("short_fits")
def test_few_rows_are_fitted_without_calibration(tmp_path):
    X, labels, groups = make_rows(12)
    for kind in ("linear", "mlp"):
        container = make_container(tmp_path / f"{kind}.hilum", X, labels, groups)
        head = fit_head(container, kind=kind, hidden=4)
        assert head.calibration.temperature == 1.0
        assert head.metrics["split"] == "held out"
        assert head.metrics["n_rows"] == 12
        assert any("too few to" in note for note in head.training["notes"])
        assert head.metrics["notes"] == head.training["notes"]
        assert np.isfinite(head.probabilities(X)).all()


def few_patients(counts, n_each=8):
    """Rows of classes with so many patients, each with several images."""
    X, labels, groups, start = [], [], [], 0
    rng = np.random.default_rng(4)
    for c, count in enumerate(counts):
        X.append(rng.normal(c * 2, 1.0, (count * n_each, 6)).astype(np.float32))
        labels.append(np.full(count * n_each, c, np.uint16))
        groups.append(np.repeat(np.arange(start, start + count), n_each))
        start += count
    return np.concatenate(X), np.concatenate(labels), np.concatenate(groups)


def test_the_protocol_says_how_many_inner_fits_there_were_and_whether_they_calibrated(tmp_path):
    enough = make_container(tmp_path / "e.hilum", *few_patients((4, 4, 4)))
    head = fit_head(enough)
    assert "one of 3 inner fits" in head.metrics["protocol"]
    assert "set the calibration" in head.metrics["protocol"]
    few = make_container(tmp_path / "f.hilum", *few_patients((4, 4, 2)))
    head = fit_head(few)
    assert head.calibration.temperature == 1.0
    assert "one of 2 inner fits" in head.metrics["protocol"]
    assert head.metrics["protocol"].endswith("probabilities are not calibrated")
    assert "with 2 patient(s) in the smallest class" in head.training["notes"][0]


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_protocol_says_what_marked_and_held_out_rows_served_for(tmp_path, kind):
    X, labels, groups = make_rows(240)
    splits = split_column(groups)
    marked = make_container(tmp_path / "m.hilum", X, labels, groups, split=splits)
    protocol = fit_head(marked, kind=kind, hidden=4).metrics["protocol"]
    assert protocol.startswith("rows marked valid; they also ended the fit, chose the penalty and")
    few = np.where(groups < 6, 2, 1).astype(np.uint8)
    container = make_container(tmp_path / "f.hilum", X, labels, groups, split=few)
    protocol = fit_head(container, kind=kind, hidden=4).metrics["protocol"]
    assert protocol == "rows marked valid; nothing was fitted or calibrated by them"
    whole = make_container(tmp_path / "w.hilum", X, labels, groups)
    protocol = fit_head(whole, kind=kind, hidden=4).metrics["protocol"]
    assert protocol.startswith("training rows, each predicted by one of 3 inner fits")


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_cross_validation_calibrates_by_enough_rows_only(tmp_path, kind):
    # Of one image each: rows are too few, and each fold has one patient of a class left.
    container = make_container(tmp_path / f"{kind}.hilum", *few_patients((8, 2), 1)[:2],
                               classes=("a", "b"))  # fmt: skip
    head = fit_head(container, kind=kind, hidden=4, cv=2)
    assert (head.calibration.temperature, head.thresholds) == (1.0, ())
    assert head.metrics["protocol"].endswith("probabilities not calibrated in 2 of 2 folds")
    assert any("are 10 images" in note for note in head.training["notes"])
    assert any("too few to" in note for note in head.metrics["notes"])
    if kind == "linear":
        assert any("1 patient(s) in the smallest class" in note for note in head.metrics["notes"])


def test_a_cross_validation_of_enough_rows_calibrates(container):
    head = fit_head(container, cv=3)
    assert head.calibration.temperature != 1.0
    assert head.metrics["protocol"].endswith("out-of-fold predictions pooled")


@pytest.mark.usefixtures("short_fits")
def test_a_few_valid_rows_still_judge(tmp_path):
    X, labels, groups = make_rows()
    splits = np.where(groups < 6, 2, 1).astype(np.uint8)
    for kind in ("linear", "mlp"):
        container = make_container(tmp_path / f"{kind}.hilum", X, labels, groups, split=splits)
        head = fit_head(container, kind=kind, hidden=4)
        assert head.calibration.temperature == 1.0
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
        "from engine import fit_head, evaluate_head\n"
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


def test_only_containers_that_a_key_vouches_for_are_learned_from(tmp_path, container, capsys):
    pytest.importorskip("cryptography", reason="the package cryptography is not installed")
    ours, theirs, strangers = (make_key_pair(tmp_path / f"{name}.pem") for name in "abc")
    other = make_container(tmp_path / "o.hilum", *make_rows(60, seed=3))
    output = tmp_path / "h.safetensors"

    def run(*keys):
        data = [str(container.path), str(other.path)]
        options = [part for key in keys for part in ("--require-signed-by", str(key.public_path))]
        code = train.main([*data, "-o", str(output), "--quiet", *options])
        written = output.exists()
        output.unlink(missing_ok=True)
        return code, written, capsys.readouterr().err

    sign_container(container.path, ours.private_path)
    code, written, said = run(ours)
    assert (code, written) == (1, False)
    assert "o.hilum" in said
    sign_container(other.path, theirs.private_path)
    code, written, said = run(ours)
    assert (code, written) == (1, False)
    assert "o.hilum" in said
    assert run(ours, theirs)[:2] == (0, True)
    assert run(strangers)[:2] == (1, False)
    assert run()[:2] == (0, True)
    flip_a_bit(other.path, other.size_bytes - 1)
    assert run(ours, theirs)[:2] == (1, False)


def test_a_key_that_is_missing_is_a_wrong_command_line(tmp_path, container, capsys):
    with pytest.raises(SystemExit) as left:
        train.main(
            [str(container.path), "-o", str(tmp_path / "h.safetensors"),
             "--require-signed-by", str(tmp_path / "no.pem")]
        )  # fmt: skip
    assert left.value.code == 2
    assert "no.pem" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_rows_are_read_alike_however_they_lie(tmp_path, monkeypatch, dtype):
    rng = np.random.default_rng(6)
    containers = []
    for number in range(2):
        X, labels, groups = make_rows(300, seed=number)
        path = tmp_path / f"{number}.hilum"
        make_container(path, X, labels, groups, dtype=dtype).close()
        containers.append(open_container(path))
    truth = np.concatenate([container.read_rows() for container in containers])
    origin = np.repeat([0, 1], 300)
    mean, scale = truth.mean(axis=0), truth.std(axis=0)
    standard = np.empty_like(truth)
    heads.standardise(truth, mean, scale, standard)
    orders = {
        "all": np.arange(600),
        "with gaps": np.flatnonzero(rng.random(600) < 0.6),
        "few": np.array([3, 150, 299, 300, 599]),
        "shuffled": rng.permutation(600),
        "few and shuffled": np.array([290, 2, 599, 310, 5]),
        "one": np.array([17]),
        "none": np.empty(0, np.int64),
    }
    monkeypatch.setattr(row_source, "PART_ROWS", 64)
    monkeypatch.setattr(row_source, "PIECE_BYTES", 4 * 12 * 16)
    for budget in (0, 1 << 20):
        monkeypatch.setattr(row_source, "MEMORY_BYTES", budget)
        with Crew(2) as crew, Rows(containers) as features:
            features.choose(np.tile(np.arange(300), 2), origin, crew)
            assert (features.X is None) == (budget == 0)
            for name, index in orders.items():
                feed = Feed(features, index, mean, scale)
                for hold in (False, True):
                    found = np.full((len(index), 12), np.nan, np.float32)
                    for part in range(feed.n_parts):
                        for rows, X in feed.pieces(part):
                            found[rows] = X
                    np.testing.assert_array_equal(found, standard[index], err_msg=name)
                    turned = rng.permutation(len(index))
                    np.testing.assert_array_equal(feed.take(turned), standard[index[turned]])
                    if not hold:
                        feed.hold(crew)
    with pytest.raises(ContainerError, match="closed"):
        features.containers[0].read_rows()
    assert containers[0].read_rows().shape == (300, 12)


def test_a_crew_gives_results_in_order_and_the_first_error():
    def work(number):
        if number == 7:
            raise ValueError(number)
        return number

    for threads in (1, 3):
        with Crew(threads) as crew:
            assert list(crew.map(work, 7)) == list(range(7))
            found = []
            with pytest.raises(ValueError, match="7"):
                found.extend(crew.map(work, 40))
            crew.stop()
            for one in (crew, crew.alone()):
                with pytest.raises(Stopped):
                    list(one.map(work, 5))


def test_a_rare_label_does_not_keep_the_others_from_being_chosen_for(tmp_path):
    X, labels, groups = make_rows(150)
    many = (labels[:, None] == np.arange(3)).astype(np.int8)
    rare = np.zeros((150, 1), np.int8)
    rare[np.flatnonzero(np.isin(groups, [0, 3]))] = 1
    container = make_container(
        tmp_path / "c.hilum", X, np.hstack([many, rare]), groups, classes=(*CLASSES, "rare")
    )
    head = fit_head(container)
    assert head.calibration.method == "temperature"
    assert head.training["l2"] not in (0.3, 0.3 / 4)
    assert any("1 of 4 labels" in note for note in head.training["notes"])
    # three of four that are rare leave too little to choose by, and the default is of one label
    poor = np.hstack([many[:, :1], rare, rare, rare])
    container = make_container(tmp_path / "d.hilum", X, poor, groups, classes=("a", "b", "c", "d"))
    head = fit_head(container)
    assert head.calibration.method == "none"
    assert head.training["l2"] == 0.3 / 4
    assert any("2 patient(s) in a usual label" in note for note in head.training["notes"])
