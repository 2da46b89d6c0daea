"""Fitting: weights are those of the loss, whatever the memory, the threads and the coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import naive
import numpy as np
import pytest

from engine import fitting, optimisation
from engine.calibration import entropy_weights
from engine.fitting import Columns, Fit, Settings, Whitening, fit_weights, loss_weights
from engine.kernels import heads
from engine.rows import Crew, Feed, Rows
from engine.work import Work

LINEAR = Settings("linear", 0.05, 8, False, 0)


class Held(Rows):
    """Features that are there, without a container."""

    def __init__(self, X):
        self.X = np.ascontiguousarray(X, np.float32)
        self.dim = self.X.shape[1]

    def __len__(self):
        return len(self.X)


class Streamed(Held):
    """The same, read in every pass."""

    def __init__(self, X):
        super().__init__(X)
        self._X, self.X = self.X, None

    def __len__(self):
        return len(self._X)

    def read(self, index, out):
        out[:] = self._X[index]


@dataclass(frozen=True)
class Data:
    """What fitting and selection ask of `engine.dataset.Dataset`."""

    features: Rows
    labels: np.ndarray
    weights: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    views: np.ndarray
    blocks: tuple = ()

    @property
    def width(self):
        return self.features.dim

    @property
    def multilabel(self):
        return self.labels.ndim == 2


def make_data(X, labels, *, weights=None, rows=Held, groups=None, views=None, blocks=()):
    n = len(X)
    k = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    return Data(
        rows(X),
        labels.astype(np.int8 if labels.ndim == 2 else np.int64),
        np.ones(n) if weights is None else weights,
        tuple(f"class{c}" for c in range(k)),
        np.arange(n) if groups is None else groups,
        np.zeros(n, np.uint8) if views is None else views,
        blocks,
    )


def make_rows(n=120, d=10, k=3, seed=0, task="softmax", strength=0.6):
    """Correlated columns, as those of a backbone."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * np.geomspace(1, 0.05, d)[:, None]
    X = rng.normal(size=(n, d)) @ mix + rng.normal(size=d) * 5
    score = (X - X.mean(0)) / X.std(0) @ rng.normal(size=(d, k)) * strength
    score += rng.logistic(size=score.shape)
    if task == "softmax":
        return X.astype(np.float32), score.argmax(axis=1)
    labels = (score > np.quantile(score, 0.7, axis=0)).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    labels[rng.random(labels.shape) < 0.1] = -2
    return X.astype(np.float32), labels


def work(threads=1, hold=1 << 30):
    return Work(Crew(threads), hold, lambda *_: None)


def fit(data, settings=LINEAR, *, jobs=None, **options):
    rows = np.arange(len(data.labels))
    return fit_weights(data, rows, None, settings, jobs or work(), **options)


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(optimisation, "_GRADIENT_TOLERANCE", 1e-9)
    monkeypatch.setattr(optimisation, "_PROGRESS_TOLERANCE", 1e-16)


@pytest.fixture
def whitened(monkeypatch):
    """Small sets take the way of large ones, in three blocks of columns."""
    monkeypatch.setattr(fitting, "_ROUNDED_FROM", 0)
    monkeypatch.setattr(fitting, "_ROUNDING_PASSES", 1e9)
    monkeypatch.setattr(fitting, "_ROUNDED_COLUMNS", 4)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_equal_weights_are_those_of_calibration(task, balanced):
    _, labels = make_rows(task=task)
    expected = entropy_weights(labels, 3, balanced=balanced)
    for weight in (1.0, 7.0):
        found = loss_weights(labels, np.full(len(labels), weight), 3, balanced=balanced)
        np.testing.assert_allclose(weight * found, expected, rtol=1e-12)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_a_row_that_weighs_twice_counts_as_two_rows(exact, task, balanced):
    X, labels = make_rows(task=task)
    weights = np.random.default_rng(1).integers(0, 3, len(X)).astype(float)
    repeated = np.repeat(np.arange(len(X)), weights.astype(int))
    settings = replace(LINEAR, balanced=balanced)
    # The standardisation is of rows: the same for both.
    mean, scale = X.mean(axis=0), X.std(axis=0)
    one = fit(make_data((X - mean) / scale, labels, weights=weights), settings)
    other = fit(make_data((X - mean)[repeated] / scale, labels[repeated]), settings)
    z = ((X - mean) / scale - one.mean) / one.scale
    z_other = ((X - mean) / scale - other.mean) / other.scale
    loss = _loss(z, labels, weights, one.weights, balanced)
    # Their penalties differ a little with their scales, the loss of the rows hardly.
    assert loss == pytest.approx(_loss(z_other, labels, weights, other.weights, balanced), rel=3e-3)


def _loss(z, labels, weights, parameters, balanced, l2=0.0):
    """The penalised loss, by the definition."""
    out = naive.logits(z, parameters["weight"], parameters["bias"])
    factors = loss_weights(labels, weights, out.shape[1], balanced=balanced)
    if labels.ndim == 1:
        value = naive.softmax_loss(out, labels, weights * factors[labels])
    else:
        value = naive.multilabel_loss(
            out, labels, weights[:, None] * factors[1], weights[:, None] * factors[0]
        )
    return value + 0.5 * l2 * float((parameters["weight"].astype(float) ** 2).sum())


@pytest.mark.parametrize("balanced", [True, False])
def test_the_optimum_is_that_of_scikit_learn(exact, balanced):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is missing")
    X, labels = make_rows(300)
    weights = np.random.default_rng(0).uniform(0.2, 3.0, len(X))
    found = fit(make_data(X, labels, weights=weights), replace(LINEAR, balanced=balanced))
    Z = (X.astype(float) - found.mean) / found.scale
    rows = weights * loss_weights(labels, weights, 3, balanced=balanced)[labels]
    model = linear_model.LogisticRegression(C=1 / 0.05, tol=1e-12, max_iter=9000)
    model.fit(Z, labels, sample_weight=rows)
    np.testing.assert_allclose(found.weights["weight"], model.coef_, atol=3e-5)


def test_masked_labels_are_left_out_label_by_label(exact):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is missing")
    X, labels = make_rows(300, task="multilabel")
    found = fit(make_data(X, labels))
    Z = (X.astype(float) - found.mean) / found.scale
    for c in range(3):
        known = labels[:, c] >= 0
        model = linear_model.LogisticRegression(
            C=1 / (0.05 * 3 * known.sum()), tol=1e-12, max_iter=9000
        )
        model.fit(Z[known], labels[known, c])
        np.testing.assert_allclose(found.weights["weight"][c], model.coef_[0], atol=3e-5)


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_coordinates_do_not_move_the_optimum(exact, whitened, monkeypatch, task):
    X, labels = make_rows(200, d=11, task=task)
    data = make_data(X, labels)
    assert Whitening.pays(200, 11, 3)
    rounded = fit(data)
    monkeypatch.setattr(Whitening, "pays", staticmethod(lambda *_: False))
    plain = fit(data)
    np.testing.assert_allclose(rounded.weights["weight"], plain.weights["weight"], atol=3e-5)
    moved = rounded.weights["bias"] - plain.weights["bias"]
    if task == "softmax":
        # Only differences between the biases of a softmax head mean something.
        moved -= moved.mean()
    np.testing.assert_allclose(moved, 0.0, atol=3e-5)


@pytest.mark.parametrize("way", ["plain", "whitened"])
def test_many_labels_are_fitted_as_far_as_one(request, way, monkeypatch):
    """The gradient of a mean over labels is small long before it is done."""
    if way == "whitened":
        request.getfixturevalue("whitened")
    X, _ = make_rows(300, d=20)
    _, labels = make_rows(300, d=20, k=20, task="multilabel")
    settings = replace(LINEAR, l2=0.001)
    found = fit(make_data(X, labels), settings)
    monkeypatch.setattr(optimisation, "_GRADIENT_TOLERANCE", 1e-9)
    monkeypatch.setattr(optimisation, "_PROGRESS_TOLERANCE", 1e-16)
    best = fit(make_data(X, labels), settings)
    z = (X.astype(float) - best.mean) / best.scale
    reached, lowest = (
        _loss(z, labels, np.ones(300), each.weights, False, 0.001) for each in (found, best)
    )
    assert lowest <= reached <= lowest * (1 + 2e-5)


def test_coordinates_save_passes(exact, whitened, monkeypatch):
    monkeypatch.setattr(fitting, "_ROUNDED_COLUMNS", 100)
    monkeypatch.setattr(optimisation, "_PROGRESS_TOLERANCE", 1e-7)
    X, labels = make_rows(400, d=40, task="multilabel")
    data, weak = make_data(X, labels), replace(LINEAR, l2=1e-3)
    rounded = fit(data, weak)
    monkeypatch.setattr(Whitening, "pays", staticmethod(lambda *_: False))
    assert rounded.iterations < fit(data, weak).iterations / 2


def test_coordinates_are_those_of_the_factor(whitened):
    X, labels = make_rows(64, d=6, task="multilabel")
    data = make_data(X, labels)
    own = Fit(data, np.arange(64), None, LINEAR, work())
    loss = fitting.Loss(own.shapes, LINEAR, own.labels, own.weights, 3)
    start = np.arange(own.shapes.size, dtype=float)
    rounded = Whitening(own.feed, own.labels, loss, Crew(1), 0).at(0.05, start, Crew(1))
    rng = np.random.default_rng(0)
    phi, gradient = rng.normal(size=(2, own.shapes.size))
    # theta - start = A phi, so that the gradient by phi is A' times that by theta.
    moved = rounded.theta(phi) - start
    assert moved @ gradient == pytest.approx(phi @ rounded.gradient(gradient), rel=1e-10)
    np.testing.assert_array_equal(rounded.theta(np.zeros_like(phi)), start)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_threads_and_memory_change_no_bit(monkeypatch, whitened, kind, task):
    monkeypatch.setattr("engine.rows.PART_ROWS", 64)
    X, labels = make_rows(300, task=task)
    settings = Settings(kind, 0.01, 5, True, 3, 0.4)
    expected = fit(make_data(X, labels), settings, epochs=3)
    for rows in (Held, Streamed):
        data = make_data(X, labels, rows=rows)
        for threads, hold in ((1, 0), (2, 0), (3, 1 << 30)):
            with Crew(threads) as crew:
                jobs = Work(crew, hold, lambda *_: None)
                found = fit(data, settings, jobs=jobs, epochs=3)
            for name, weight in expected.weights.items():
                np.testing.assert_array_equal(found.weights[name], weight)


def test_dropout_drops_the_share_asked_for_by_seed_and_step():
    kept = fitting._kept(0, 1, (500, 40), 0.25)
    assert set(np.unique(kept)) == {0.0, 1 / 0.75}
    assert (kept == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert kept.mean() == pytest.approx(1.0, abs=0.02)
    np.testing.assert_array_equal(fitting._kept(0, 1, (500, 40), 0.25), kept)
    for other in (fitting._kept(0, 2, (500, 40), 0.25), fitting._kept(1, 1, (500, 40), 0.25)):
        assert (other != kept).any(axis=0).all()


def test_dropout_is_for_fitting_only():
    X, labels = make_rows(200)
    data = make_data(X, labels)
    plain = Settings("mlp", 0.001, 6, True, 0)
    dropped = fit(data, replace(plain, dropout=0.5), epochs=5)
    assert not np.array_equal(
        dropped.weights["weight"], fit(data, plain, epochs=5).weights["weight"]
    )
    rows = np.arange(5)
    z = (X[:5].astype(float) - dropped.mean) / dropped.scale
    names = ("hidden.weight", "hidden.bias", "weight", "bias")
    expected = naive.mlp_logits(z, *(dropped.weights[name] for name in names))
    found = dropped.logits(data.features, rows, Crew(1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_fit_made_ready_once_serves_several_penalties(whitened):
    X, labels = make_rows()
    data = make_data(X, labels)
    ready = Fit(data, np.arange(len(X)), None, LINEAR, work())
    for l2 in (1.0, 0.1, 0.01):
        settings = replace(LINEAR, l2=l2)
        found = ready.run(settings, work())
        np.testing.assert_array_equal(
            found.weights["weight"], fit(data, settings).weights["weight"]
        )


def test_some_columns_are_those_columns():
    X, _ = make_rows()
    index = np.array([5, 2, 2, 90])
    for rows in (Held, Streamed):
        some = Columns(rows(X), 3, 7)
        out = np.empty((4, 4), np.float32)
        some.read(index, out)
        np.testing.assert_array_equal(out, X[index, 3:7])
        assert (len(some), some.dim) == (len(X), 4)
        some.close()


EDGES = {
    "constant columns": lambda X, y: (np.where(np.arange(X.shape[1]) % 2, X, 3.0), y),
    "all columns constant": lambda X, y: (np.ones_like(X), y),
    "equal columns": lambda X, y: (np.repeat(X[:, :2], 5, axis=1), y),
    "separable": lambda X, y: (np.eye(3)[y].repeat(4, axis=1) * 100, y),
    "one row of a class": lambda X, y: (X, np.where(np.arange(len(y)) == 5, 2, y % 2)),
    "huge": lambda X, y: (X * 1e15, y),
    "one row": lambda X, y: (X[:1], np.array([1])),
}


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("way", ["plain", "whitened"])
def test_edges_end_and_stay_finite(request, edge, l2, way):
    if way == "whitened":
        request.getfixturevalue("whitened")
    X, labels = EDGES[edge](*make_rows(60))
    for task in ("softmax", "multilabel"):
        own = labels if task == "softmax" else np.eye(3, dtype=np.int8)[labels]
        found = fit(make_data(X.astype(np.float32), own), replace(LINEAR, l2=l2))
        for weight in found.weights.values():
            assert np.isfinite(weight).all()


@pytest.mark.parametrize("way", ["plain", "whitened"])
def test_labels_with_nothing_to_learn_from(request, way):
    if way == "whitened":
        request.getfixturevalue("whitened")
    X, labels = make_rows(80, task="multilabel")
    labels[:, 0] = -1
    labels[:, 1] = 1
    found = fit(make_data(X, labels))
    assert all(np.isfinite(weight).all() for weight in found.weights.values())
    np.testing.assert_array_equal(found.weights["weight"][0], 0.0)
    assert found.weights["bias"][0] == 0.0
    assert found.weights["bias"][1] > 3.0
    everything = fit(make_data(X, np.full_like(labels, -1)))
    np.testing.assert_array_equal(everything.weights["weight"], 0.0)


def test_rows_that_weigh_nothing_are_not_learned_from(exact):
    X, labels = make_rows(100)
    weights = np.ones(100)
    weights[50:] = 0.0
    found = fit(make_data(X, labels, weights=weights))
    wrong = labels.copy()
    wrong[50:] = (labels[50:] + 1) % 3
    other = fit(make_data(X, wrong, weights=weights))
    np.testing.assert_allclose(found.weights["weight"], other.weights["weight"], atol=1e-6)


def test_the_bias_begins_with_what_is_frequent():
    X, labels = make_rows(200, task="multilabel")
    own = Fit(make_data(X, labels), np.arange(200), None, LINEAR, work())
    loss = fitting.Loss(own.shapes, LINEAR, own.labels, own.weights, 3)
    start = own.shapes.cut(loss.start(own.labels))
    share = (labels == 1).sum(0) / (labels >= 0).sum(0)
    np.testing.assert_allclose(start["bias"], np.log(share / (1 - share)), rtol=1e-12)
    # There, the gradient by the bias is nothing.
    gradient = np.empty(own.shapes.size)
    loss.of_all(own.feed, own.labels, loss.start(own.labels), gradient, Crew(1))
    np.testing.assert_allclose(own.shapes.cut(gradient)["bias"], 0.0, atol=1e-12)


def test_every_part_of_the_triangle_is_summed(whitened):
    """Of columns whose number is no multiple of the tiles."""
    X, labels = make_rows(72, d=4)
    own = Fit(make_data(X, labels), np.arange(72), None, LINEAR, work())
    loss = fitting.Loss(own.shapes, LINEAR, own.labels, own.weights, 3)
    [gram] = Whitening(own.feed, own.labels, loss, Crew(2), 0)._grams
    n = fitting._sampled(72, 4)
    places = np.sort(np.random.default_rng([0, 2]).permutation(72)[:n])
    Z = Feed(own.feed._features, places, own.mean, own.scale).take(np.arange(n)).astype(float)
    np.testing.assert_allclose(np.tril(gram), np.tril(Z.T @ Z / n), rtol=1e-10, atol=1e-12)
    assert n % heads.GRAM_ROWS == 0
