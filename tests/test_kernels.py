"""Kernels of heads: against the oracle, compiled and as plain Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest

from engine import kernels
from engine.kernels import heads


def _linear(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    return X, rng.normal(size=(k, d)), rng.normal(size=k), rng


SHAPES = [(1, 1, 1), (4, 64, 2), (5, 65, 3), (7, 130, 4), (3, 10, 2)]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 200])
def test_dot(size):
    rng = np.random.default_rng(size)
    a, b = rng.normal(size=size), rng.normal(size=size)
    out = np.empty(1)
    heads.dot(a, b, np.empty(heads.LANES), out)
    np.testing.assert_allclose(out[0], a @ b, rtol=1e-12, atol=1e-14)


def _moments(*parts):
    mean, deviation = np.zeros((2, parts[0].shape[1]))
    for part in parts:
        heads.add_moments(part, parts[0][0], mean, deviation)
    heads.moments(parts[0][0], sum(map(len, parts)), mean, deviation)
    return mean, deviation


def test_moments_and_standardise():
    X = np.random.default_rng(0).normal(1000, 3, (9, 5)).astype(np.float32)
    X[:, 2] = 0.1
    mean, deviation = _moments(X[:4], X[4:])
    np.testing.assert_allclose(mean, X.astype(float).mean(0), rtol=1e-14)
    np.testing.assert_allclose(deviation, X.astype(float).std(0), rtol=1e-9)
    assert deviation[2] == 0.0
    scale = np.where(deviation > 0, deviation, 1).astype(np.float32)
    expected = (X.astype(float) - mean.astype(np.float32)) / scale
    heads.standardise(X, mean.astype(np.float32), scale, X)
    np.testing.assert_allclose(X, expected, rtol=1e-6, atol=1e-7)


def test_moments_of_a_single_row():
    mean, deviation = _moments(np.array([[3, -4]], np.float32))
    assert mean.tolist() == [3, -4]
    assert deviation.tolist() == [0, 0]


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_logits(n, d, k):
    X, weight, bias, _ = _linear(n, d, k)
    X.flags.writeable = False
    out = np.empty((n, k))
    heads.logits(X, weight, bias, np.empty(heads.LANES), out)
    np.testing.assert_allclose(out, naive.logits(X, weight, bias), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_mlp_logits(n, d, k):
    X, hidden_weight, hidden_bias, rng = _linear(n, d, 6)
    weight, bias = rng.normal(size=(k, 6)), rng.normal(size=k)
    out = np.empty((n, k))
    lanes, hidden = np.empty(heads.LANES), np.empty((heads.ROWS, 6))
    heads.mlp_logits(X, hidden_weight, hidden_bias, weight, bias, lanes, hidden, out)
    expected = naive.mlp_logits(X, hidden_weight, hidden_bias, weight, bias)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)


LOGITS = {
    "plain": [[1.0, 2.0, -1.0], [0.0, 0.5, 0.25]],
    "identical": [[3.0, 3.0, 3.0]],
    "huge": [[1000.0, -1000.0, 999.0], [-1e300, 1e300, 0.0]],
    "one class": [[5.0], [-800.0]],
}


@pytest.mark.parametrize("edge", LOGITS)
def test_probabilities_are_stable(edge):
    z = np.array(LOGITS[edge])
    soft, single = z.copy(), z.copy()
    heads.softmax(soft)
    heads.sigmoid(single)
    np.testing.assert_allclose(soft, naive.softmax(z), rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(single, naive.sigmoid(z), rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize("row", [[np.nan, 0.0], [0.0, np.nan]])
def test_a_nan_logit_never_becomes_a_probability(row):
    z = np.array([row])
    heads.softmax(z)
    assert np.isnan(z).all()
    z = np.array([row])
    heads.sigmoid(z)
    assert np.isnan(z).tolist() == [np.isnan(row).tolist()]


def _numerical_gradient(function, point):
    gradient = np.empty_like(point)
    for index in np.ndindex(point.shape):
        step = np.zeros_like(point)
        step[index] = 1e-5
        gradient[index] = (function(point + step) - function(point - step)) / 2e-5
    return gradient


def _multilabels(rng, n, k):
    return rng.choice(np.array([1, 0, -1, -2], np.int8), (n, k), p=[0.4, 0.4, 0.1, 0.1])


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 2), (4, 3, 2), (7, 66, 3)])
def test_linear_loss_and_gradient(task, n, d, k):
    X, weight, bias, rng = _linear(n, d, k, seed=3)
    row_weights, l2 = rng.uniform(0.1, 1, n), 0.3
    positive, negative = rng.uniform(0.5, 2, k), rng.uniform(0.5, 2, k)
    labels = rng.integers(0, k, n) if task == "softmax" else _multilabels(rng, n, k)

    def expected(weight, bias):
        z = naive.logits(X, weight, bias)
        if task == "softmax":
            data = naive.softmax_loss(z, labels, row_weights)
        else:
            rows = row_weights[:, None]
            data = naive.multilabel_loss(z, labels, positive * rows, negative * rows)
        return data + 0.5 * l2 * (weight**2).sum()

    work = np.empty(heads.LANES), np.empty((heads.ROWS, k))

    def added(*pieces):
        results = np.zeros((k, d)), np.zeros(k), np.zeros(1)
        for piece in pieces:
            data = X[piece], labels[piece], row_weights[piece]
            if task == "softmax":
                heads.linear_softmax(*data, weight, bias, *work, *results)
            else:
                data = (*data, positive, negative)
                heads.linear_multilabel(*data, weight, bias, *work, *results)
        heads.penalise(weight, l2, results[0], results[2])
        return results

    *gradients, loss = added(slice(0, heads.ROWS), slice(heads.ROWS, n))
    for one, other in zip(added(slice(0, n)), (*gradients, loss), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(loss[0], expected(weight, bias), rtol=1e-12)
    numerical = _numerical_gradient(lambda w: expected(w, bias), weight)
    np.testing.assert_allclose(gradients[0], numerical, rtol=1e-6, atol=1e-8)
    numerical = _numerical_gradient(lambda b: expected(weight, b), bias)
    np.testing.assert_allclose(gradients[1], numerical, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("task", ["softmax", "multilabel"])
@pytest.mark.parametrize(("n", "d", "k", "h"), [(1, 2, 2, 1), (6, 5, 3, 4), (37, 17, 2, 3)])
def test_mlp_loss_and_gradient(task, n, d, k, h, dropout):
    X, first, first_bias, rng = _linear(n, d, h, seed=5)
    parameters = [first, first_bias, rng.normal(size=(k, h)), rng.normal(size=k)]
    row_weights, l2 = rng.uniform(0.1, 1, n), 0.2
    positive, negative = rng.uniform(0.5, 2, k), rng.uniform(0.5, 2, k)
    labels = rng.integers(0, k, n) if task == "softmax" else _multilabels(rng, n, k)

    kept = rng.choice([0.0, 1.0, 2.5], (n, h)) if dropout else np.empty((0, h))

    def expected(parameters):
        z = naive.mlp_logits(X, *parameters, kept if dropout else 1.0)
        if task == "softmax":
            data = naive.softmax_loss(z, labels, row_weights)
        else:
            rows = row_weights[:, None]
            data = naive.multilabel_loss(z, labels, positive * rows, negative * rows)
        return data + 0.5 * l2 * ((parameters[0] ** 2).sum() + (parameters[2] ** 2).sum())

    hidden, back = np.empty((heads.BATCH, h)), np.empty((heads.BATCH, h))
    block, tile = np.empty((heads.BATCH, k)), np.empty((heads.BATCH, heads.WIDE))
    room = np.empty(heads.LANES), hidden, back, block, tile

    def added(*pieces):
        results = [*map(np.zeros_like, parameters), np.zeros(1)]
        for piece in pieces:
            data = X[piece], labels[piece], row_weights[piece]
            work = (kept[piece] if dropout else kept, *room)
            if task == "softmax":
                heads.mlp_softmax(*data, *parameters, *work, *results)
            else:
                heads.mlp_multilabel(*data, positive, negative, *parameters, *work, *results)
        for number in (0, 2):
            heads.penalise(parameters[number], l2, results[number], results[-1])
        return results

    *gradients, loss = added(slice(0, heads.BATCH), slice(heads.BATCH, n))
    for one, other in zip(added(slice(0, n)), (*gradients, loss), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(loss[0], expected(parameters), rtol=1e-12)
    for number, parameter in enumerate(parameters):

        def moved(value, number=number):
            return expected([*parameters[:number], value, *parameters[number + 1 :]])

        numerical = _numerical_gradient(moved, parameter)
        np.testing.assert_allclose(gradients[number], numerical, rtol=1e-5, atol=1e-7)


def test_the_loss_of_huge_logits_is_finite():
    X = np.array([[1.0]], np.float32)
    weight, bias = np.array([[1e4], [-1e4]]), np.zeros(2)
    loss, gradients = np.zeros(1), (np.zeros((2, 1)), np.zeros(2))
    work = np.empty(heads.LANES), np.empty((heads.ROWS, 2))
    heads.linear_softmax(X, np.array([1]), np.ones(1), weight, bias, *work, *gradients, loss)
    assert loss[0] == 2e4
    assert gradients[1].tolist() == [1.0, -1.0]
    labels = np.array([[0, 1]], np.int8)
    ones = np.ones(2)
    data = (X, labels, np.ones(1), ones, ones)
    loss, gradients = np.zeros(1), (np.zeros((2, 1)), np.zeros(2))
    heads.linear_multilabel(*data, weight, bias, *work, *gradients, loss)
    assert loss[0] == 2e4
    assert gradients[1].tolist() == [1.0, -1.0]


def test_the_lbfgs_direction_is_the_inverse_hessian_of_bfgs():
    rng = np.random.default_rng(8)
    p, m, pairs = 6, 3, 5
    root = rng.normal(size=(p, p))
    hessian = root @ root.T + np.eye(p)
    steps, changes, curvatures = np.zeros((m, p)), np.zeros((m, p)), np.zeros(m)
    for number in range(pairs):
        steps[number % m] = rng.normal(size=p)
        changes[number % m] = hessian @ steps[number % m]
        curvatures[number % m] = steps[number % m] @ changes[number % m]
    newest = (pairs - 1) % m
    # The textbook matrix recursion, oldest pair first (Nocedal and Wright, equation 7.16).
    inverse = np.eye(p) * curvatures[newest] / (changes[newest] @ changes[newest])
    for number in range(pairs - m, pairs):
        s, y, sy = steps[number % m], changes[number % m], curvatures[number % m]
        left = np.eye(p) - np.outer(s, y) / sy
        inverse = left @ inverse @ left.T + np.outer(s, s) / sy
    gradient, out = rng.normal(size=p), np.empty(p)
    work = np.empty(m), np.empty(heads.LANES)
    heads.lbfgs_direction(steps, changes, curvatures, m, newest, gradient, *work, out)
    np.testing.assert_allclose(out, -inverse @ gradient, rtol=1e-9)
    heads.lbfgs_direction(steps, changes, curvatures, 0, 0, gradient, *work, out)
    assert np.array_equal(out, -gradient)


@pytest.mark.parametrize(("n", "d"), [(8, 1), (16, 33), (8, 130), (24, 64)])
def test_gram_of_all_columns(n, d):
    X = np.random.default_rng(d).normal(size=(n, d)).astype(np.float32)
    X.flags.writeable = False
    first = np.empty((heads.GRAM_ROWS, heads.GRAM_TALL))
    second = np.empty((heads.GRAM_ROWS, heads.GRAM_WIDE))
    gram = np.full((d, d), 0.5)
    for start in range(0, d, heads.GRAM_TALL):
        heads.add_gram(X, start, min(start + heads.GRAM_TALL, d), first, second, gram)
    wide = X.astype(np.float64)
    np.testing.assert_allclose(np.tril(gram), np.tril(0.5 + wide.T @ wide), rtol=1e-11, atol=1e-12)


def _positive_definite(d, seed=0):
    root = np.random.default_rng(seed).normal(size=(d, d + 3))
    return root @ root.T


@pytest.mark.parametrize("d", [1, 2, 63, 64, 65, 130])
def test_cholesky_and_its_solutions(d):
    matrix = _positive_definite(d)
    factor = matrix.copy()
    heads.cholesky(factor, np.empty((heads.PANEL, d)))
    lower = np.tril(factor)
    np.testing.assert_allclose(lower, np.linalg.cholesky(matrix), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(np.triu(factor, 1), np.triu(matrix, 1))
    values = np.random.default_rng(1).normal(size=(3, d))
    forward, backward = values.copy(), values.copy()
    heads.solve_lower(factor, np.empty(heads.LANES), forward)
    heads.solve_upper(factor, backward)
    np.testing.assert_allclose(forward @ lower.T, values, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(backward @ lower, values, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("edge", ["zeros", "equal columns", "negative"])
def test_cholesky_of_a_matrix_that_has_none_stays_finite(edge):
    factor = {
        "zeros": np.zeros((70, 70)),
        "equal columns": np.ones((70, 70)),
        "negative": -np.eye(70),
    }[edge]
    heads.cholesky(factor, np.empty((heads.PANEL, 70)))
    assert np.isfinite(np.tril(factor)).all()
    assert (np.diag(factor) > 0).all()


def test_adam_takes_the_papers_first_step():
    parameters, first, second = np.array([1.0, 2.0, 3.0]), np.zeros(3), np.zeros(3)
    heads.adam_step(parameters, np.array([5.0, -0.01, 0.0]), first, second, 1, 0.1)
    # After bias correction the first step has the size of the rate, whatever the gradient's.
    np.testing.assert_allclose(parameters, [0.9, 2.1, 3.0], rtol=1e-6)
    heads.adam_step(parameters, np.array([5.0, -0.01, 0.0]), first, second, 2, 0.1)
    np.testing.assert_allclose(parameters, [0.8, 2.2, 3.0], rtol=1e-5)


def _run(code, **environment):
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


USE = """
import numpy as np
from engine.kernels import cache_folder, heads
z = np.zeros((1, 2)); heads.softmax(z); assert z.tolist() == [[0.5, 0.5]]
print(cache_folder())
"""


def test_compiled_kernels_go_to_the_users_cache_folder(tmp_path):
    done = _run(USE, NUMBA_CACHE_DIR="", XDG_CACHE_HOME=str(tmp_path), LOCALAPPDATA=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "hilum" / "numba")
    if os.environ.get("NUMBA_DISABLE_JIT") != "1":
        assert list((tmp_path / "hilum" / "numba").rglob("*.nbi"))


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_kernels_work_without_a_cache_folder(tmp_path, variable):
    # A file where the folder should be: no user can create it, root included.
    (tmp_path / "file").touch()
    paths = {"NUMBA_CACHE_DIR": "", "LOCALAPPDATA": str(tmp_path / "file")}
    done = _run(USE, **{**paths, variable: str(tmp_path / "file")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


def test_importing_the_package_does_not_import_numba():
    done = _run("import sys, engine.kernels, engine.pooling\nassert 'numba' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_a_relative_cache_home_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    folder = kernels._user_cache_folder()
    assert folder is None or folder.is_absolute()


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="this is the second run")
def test_everything_again_as_plain_python():
    """Out-of-bounds reads are silent in compiled kernels; as Python they are an IndexError."""
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here),
         str(here.with_name("test_pooling.py"))],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
