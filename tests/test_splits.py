"""Splits: patients stay whole, classes stay in proportion, and what cannot be is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import SplitError
from engine.splits import (
    check_classes,
    check_groups_apart,
    class_groups,
    grouped_folds,
    nested_shares,
    source_folds,
)


def _rows(seed, n_groups=120, k=3):
    """Patients of 1 to 4 images; most have one class, some have several."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, n_groups)
    groups = rng.permutation(np.repeat(np.arange(n_groups), sizes))
    labels = rng.choice(k, n_groups, p=[0.6, 0.3, 0.1])[groups]
    mixed = rng.random(len(labels)) < 0.1
    labels[mixed] = rng.integers(0, k, mixed.sum())
    return labels, groups


def _assert_whole(parts, groups):
    for group in np.unique(groups):
        assert len(np.unique(parts[groups == group])) == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 8))
def test_folds_keep_patients_whole_and_every_row_once(seed, folds):
    labels, groups = _rows(seed)
    parts = grouped_folds(labels, groups, 3, folds=folds, seed=seed)
    assert sorted(set(parts.tolist())) == list(range(folds))
    _assert_whole(parts, groups)


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_stratified(seed):
    labels, groups = _rows(seed, n_groups=400)
    parts = grouped_folds(labels, groups, 3, folds=5, seed=seed)
    for fold in range(5):
        counts = np.bincount(labels[parts == fold], minlength=3)
        expected = np.bincount(labels, minlength=3) / 5
        assert (np.abs(counts - expected) <= 4).all()


def test_folds_depend_on_the_seed_only():
    labels, groups = _rows(0)
    one, again, other = (grouped_folds(labels, groups, 3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    # Names of patients do not matter, only who is the same person as who.
    assert np.array_equal(one, grouped_folds(labels, groups * 7 + 3, 3, seed=1))


def test_as_many_patients_as_folds_put_one_of_each_class_in_each():
    labels = np.repeat([0, 1], 5)
    parts = grouped_folds(labels, np.arange(10), 2, folds=5)
    for fold in range(5):
        assert sorted(labels[parts == fold]) == [0, 1]


def test_multilabel_folds_are_stratified():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(300), 2)
    labels = (rng.random((300, 4)) < [0.5, 0.2, 0.1, 0.05]).astype(np.int8)[groups]
    labels[rng.random(labels.shape) < 0.1] = -1
    parts = grouped_folds(labels, groups, 4, folds=5)
    _assert_whole(parts, groups)
    for fold in range(5):
        counts = (labels[parts == fold] == 1).sum(axis=0)
        expected = (labels == 1).sum(axis=0) / 5
        assert (np.abs(counts - expected) <= np.maximum(4, 0.25 * expected)).all()


@pytest.mark.parametrize("folds", [1, 0, 4])
def test_a_number_of_folds_that_cannot_be_is_refused(folds):
    with pytest.raises(SplitError, match="of 3 patients; expected 2 to 3"):
        grouped_folds(np.array([0, 1, 0]), np.arange(3), 2, folds=folds)


def test_class_groups_counts_patients_not_rows():
    assert class_groups(np.array([0, 0, 1, 0]), np.array([5, 5, 5, 9]), 3).tolist() == [2, 1, 0]
    labels = np.array([[1, -1], [0, 1], [1, 0]], np.int8)
    assert class_groups(labels, np.array([1, 1, 2]), 2).tolist() == [2, 1]


def _check(labels, groups, needed, purpose="5 folds"):
    labels = np.asarray(labels)
    check_classes(
        labels, np.asarray(groups), ("normal", "viral"), needed=needed, purpose=purpose, where="f"
    )


def test_enough_patients_pass():
    _check([0, 0, 1, 1], [0, 1, 2, 3], 2)


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 0, 1, 1], [0, 1, 2, 2], "f: too few patients for 5 folds: class 'viral' has 1; "),
        ([0, 0], [0, 1], "f: only one class has rows to learn from (normal)"),
        ([], [], "f: no rows to learn from; expected rows marked train"),
    ],
)
def test_too_few_patients_are_refused_with_class_found_needed_and_cure(labels, groups, message):
    with pytest.raises(SplitError) as caught:
        _check(np.array(labels, np.int64), np.array(groups, np.int64), 2)
    assert message in str(caught.value)
    assert "add" in str(caught.value) or "resplit" in str(caught.value)


def test_fewer_folds_are_advised_only_where_they_help():
    with pytest.raises(SplitError, match="lower --cv"):
        _check([0] * 5 + [1] * 3, range(8), 5)
    with pytest.raises(SplitError) as caught:
        _check([0] * 5 + [1], range(6), 5)
    assert "lower --cv" not in str(caught.value)


def test_a_label_that_is_never_absent_is_refused():
    labels = np.array([[1, 1], [1, 0], [1, 1], [1, 0]], np.int8)
    with pytest.raises(SplitError, match="label 'normal' is absent"):
        _check(labels, range(4), 2)


def test_a_patient_on_both_sides_is_refused():
    groups = np.array([1, 2, 2, 3])
    check_groups_apart(groups, np.array([0, 1, 1, -1]), ("train", "test"))
    check_groups_apart(groups, np.array([0, 1, -1, 0]), ("train", "test"))
    with pytest.raises(SplitError, match=r"f: 1 patient.*group 2 is in train and test"):
        check_groups_apart(groups, np.array([0, 0, 1, 1]), ("train", "test"), where="f")


def test_smaller_shares_are_within_larger_ones_and_stratified():
    labels, groups = _rows(1, n_groups=400)
    shares = (0.125, 0.25, 0.5, 1.0)
    chosen = [
        nested_shares(labels, groups, 3, shares=[each for each in shares if each >= share], seed=2)
        for share in shares
    ]
    assert chosen[-1].all()
    for share, kept in zip(shares, chosen, strict=True):
        _assert_whole(kept, groups)
        found = np.bincount(labels[kept], minlength=3) / np.bincount(labels)
        np.testing.assert_allclose(found, share, atol=0.06)
    for smaller, larger in itertools.pairwise(chosen):
        assert larger[smaller].all()
    small = nested_shares(labels, groups, 3, shares=(1.0, 0.2), seed=2)
    np.testing.assert_allclose(np.bincount(labels[small]) / np.bincount(labels), 0.2, atol=0.06)
    again = nested_shares(labels, groups, 3, shares=shares, seed=2)
    np.testing.assert_array_equal(again, chosen[0])
    assert (nested_shares(labels, groups, 3, shares=shares, seed=3) != again).any()


def test_sources_are_folds_of_whole_patients():
    sources = np.array([2, 0, 0, 2])
    found = source_folds(sources, np.array([5, 1, 1, 4]), ("a", "b", "c"))
    np.testing.assert_array_equal(found, sources)


@pytest.mark.parametrize(
    ("sources", "groups", "message"),
    [
        ([1, 1], [0, 1], "f: sources of the rows to learn from: 'b'; expected at least two"),
        ([0, 1, 0], [7, 7, 8], "f: 1 patient(s) with rows of several sources (group 7 is in 'a'"),
    ],
)
def test_sources_that_cannot_be_left_out_are_refused(sources, groups, message):
    with pytest.raises(SplitError) as caught:
        source_folds(np.array(sources), np.array(groups), ("a", "b"), where="f")
    assert message in str(caught.value)
    assert "--cv 5" in str(caught.value)
