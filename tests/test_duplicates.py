"""Near-duplicates: every pair that is nearly the same is found, and no other."""

from __future__ import annotations

import numpy as np
import pytest
from test_training import make_container, make_rows

from engine import duplicates, rows
from engine.duplicates import compare_all_rows, find_near_duplicates
from engine.errors import SplitError
from engine.rows import Crew, Rows
from engine.work import Course
from formats import open_container


def factors(n=400, d=96, seed=0):
    """Rows that are alike as X-rays are: a few hidden factors and noise."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(12, d)) * np.geomspace(0.5, 0.1, 12)[:, None]
    return (rng.normal(size=(n, 12)) @ mix + rng.normal(size=(n, d))).astype(np.float32)


def nearly(X, seed=1, noise=0.15):
    return (X + noise * np.random.default_rng(seed).normal(size=X.shape)).astype(np.float32)


def naive_pairs(X, cosine):
    """Return the pairs and their cosines, one after another."""
    wide = X.astype(np.float64)
    standard = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    found = {}
    for i in range(len(X)):
        for j in range(i + 1, len(X)):
            a, b = standard[i], standard[j]
            value = (a @ b) / np.sqrt((a @ a) * (b @ b))
            if value >= cosine:
                found[i, j] = value
    return found


def compare(X, groups=None, sides=None, **options):
    n = len(X)
    groups = np.arange(n) if groups is None else groups
    with Crew(1) as crew:
        return compare_all_rows(
            Rows.of_matrix(X),
            groups,
            np.zeros(n, np.int64) if sides is None else sides,
            crew,
            Course(1, None),
            **options,
        )


@pytest.mark.parametrize("block", [64, 1 << 20])
def test_all_pairs_are_those_of_the_oracle(monkeypatch, block):
    X = factors(150)
    X[140:] = nearly(X[:10])
    monkeypatch.setattr(duplicates, "_BLOCK_BYTES", 4 * X.shape[1] * block)
    found = compare(X, cosine=0.5)
    expected = naive_pairs(X, 0.5)
    assert len(expected) > 10
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == sorted(expected)
    np.testing.assert_allclose(
        found.cosines, [expected[key] for key in sorted(expected)], atol=1e-5
    )
    assert (found.exact, found.n_pairs) == (True, len(expected))


def test_hashes_find_what_all_pairs_find(monkeypatch):
    X = factors(3000)
    X[2900:] = nearly(X[:100])
    exact = compare(X, cosine=0.9)
    monkeypatch.setattr(duplicates, "EXACT_ROWS", 100)
    hashed = compare(X, cosine=0.9)
    assert (exact.exact, hashed.exact) == (True, False)
    assert exact.n_pairs == 100
    assert 95 <= hashed.n_pairs <= 100
    pairs = [set(zip(each.first, each.second, strict=True)) for each in (exact, hashed)]
    assert pairs[1] <= pairs[0]
    assert compare(X[::3]).cosine >= duplicates.HASHED_COSINE
    again = compare(X, cosine=0.9)
    np.testing.assert_array_equal(hashed.first, again.first)
    np.testing.assert_array_equal(hashed.cosines, again.cosines)


def test_patients_and_splits_are_told_apart():
    X = factors(200)
    X[100:103] = nearly(X[:3])
    groups, sides = np.arange(200), np.zeros(200, np.int64)
    groups[100] = 0
    sides[[0, 100]] = 0, 2
    sides[101] = 1
    found = compare(X, groups, sides)
    assert (found.n_pairs, found.n_across_patients, found.n_across_splits) == (3, 2, 2)
    assert set(found.to_json()) == {
        "n_rows", "n_pairs", "n_across_patients", "n_across_splits", "cosine", "exact"
    }  # fmt: skip


def test_the_threshold_grows_with_the_pairs_and_with_their_likeness():
    def threshold(n, d):
        found = compare(np.random.default_rng(3).normal(size=(n, d)).astype(np.float32))
        # Nothing is the same here, however few columns there are.
        assert found.n_pairs == 0
        return found.cosine

    assert threshold(300, 200) == duplicates.LEAST_COSINE
    assert duplicates.LEAST_COSINE < threshold(300, 32) < threshold(900, 32)
    assert threshold(300, 12) == duplicates.MOST_COSINE


def test_no_two_patients_of_the_real_set_are_nearly_the_same(repository):
    with open_container(repository / "engine" / "demonstration" / "pneumonia.hilum") as container:
        found = find_near_duplicates(container)
    assert (found["cosine"], found["n_across_patients"]) == (duplicates.LEAST_COSINE, 0)
    # One image is there twice.
    assert 1 <= found["n_pairs"] <= 5


def test_rows_without_any_difference_are_no_pairs():
    X = np.ones((30, 8), np.float32)
    assert compare(X).n_pairs == 0
    assert compare(X[:1]).n_pairs == compare(X[:0]).n_pairs == 0


def test_more_pairs_than_are_kept_are_still_counted(monkeypatch):
    X = factors(300)
    X[200:] = X[0]
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 50)
    monkeypatch.setattr(duplicates, "_BLOCK_BYTES", 64 * 4 * X.shape[1])
    found = compare(X, cosine=0.9)
    assert found.n_pairs == 101 * 100 // 2
    assert len(found.first) == len(found.cosines) == 50


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_containers_are_searched_without_views_and_withdrawn_rows(tmp_path, monkeypatch, budget):
    monkeypatch.setattr(rows, "MEMORY_BYTES", budget)
    X, flags = factors(120), np.zeros(120, np.uint8)
    labels, groups = make_rows(120)[1], np.arange(120)
    X[119], X[118], X[117] = X[0], X[1], nearly(X[2:3])[0]
    views, splits = np.zeros(120, np.uint8), np.ones(120, np.uint8)
    views[119], groups[119], flags[118], splits[117] = 1, 0, 1, 3
    one = make_container(
        tmp_path / "a.hilum", X, labels, groups, view=views, row_flags=flags, split=splits
    )
    found = find_near_duplicates(one)
    assert (found["n_rows"], found["n_pairs"], found["n_across_splits"]) == (118, 1, 1)
    Y = factors(60, seed=5)
    Y[7] = nearly(X[50:51])[0]
    two = make_container(tmp_path / "b.hilum", Y, make_rows(60)[1], np.arange(60))
    found = find_near_duplicates([one, two])
    assert (found["n_pairs"], found["n_across_patients"]) == (2, 2)
    some = find_near_duplicates(one, rows=np.array([2, 5, 9, 30, 117]), cosine=0.7)
    assert (some["n_rows"], some["n_pairs"]) == (5, 1)
    with pytest.raises(SplitError, match="rows of several containers"):
        find_near_duplicates([one, two], rows=np.arange(3))
