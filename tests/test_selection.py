"""Selection: chooses what unseen rows say, and hands on predictions nobody had seen."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_fitting import Held, Streamed, make_data, make_rows, work

from engine import fitting, optimisation, selection
from engine.fitting import Settings, fit_weights
from engine.pooling import Block
from engine.rows import Crew
from engine.selection import fit_selected, fusion_weights, select_settings
from engine.work import Work

OPEN = Settings("linear", None, 6, True, 0)


@pytest.fixture
def quick(monkeypatch):
    """Heads with a hidden layer end after a few epochs."""
    monkeypatch.setattr(fitting, "_MAX_EPOCHS", 4)
    monkeypatch.setattr(fitting, "_MAX_STEPS", 8)
    monkeypatch.setattr(fitting, "_EPOCHS_WITHOUT_VALID", 4)
    monkeypatch.setattr(fitting, "_STEPS_WITHOUT_VALID", 8)


def grouped(n=180, seed=0, task="softmax", **options):
    """Two rows a patient; every third row has a view beside it."""
    X, labels = make_rows(n, seed=seed, task=task, **options)
    groups = np.arange(n) // 2
    if task == "softmax":
        labels = labels[groups * 2]
    views = np.zeros(n, np.uint8)
    views[1::6] = 1
    return make_data(X, labels, groups=groups, views=views)


def select(data, settings=OPEN, *, jobs=None, **options):
    return select_settings(data, np.arange(len(data.labels)), settings, jobs or work(), **options)


def test_every_original_is_predicted_by_what_has_not_seen_its_patient(monkeypatch):
    data = grouped()
    seen = []

    class Fit(selection.Fit):
        def __init__(self, data, train, valid, *rest):
            super().__init__(data, train, valid, *rest)
            seen.append((train, valid))

    monkeypatch.setattr(selection, "Fit", Fit)
    found = select(data)
    assert sorted(found.rows.tolist()) == np.flatnonzero(data.views == 0).tolist()
    assert len(seen) == 3
    judged = np.split(found.rows, np.cumsum([_judged(data, train) for train, _ in seen])[:-1])
    for (train, valid), rows in zip(seen, judged, strict=True):
        assert valid is None
        assert not set(data.groups[train]) & set(data.groups[rows])
        assert data.views[train].any()
    assert found.enough
    assert found.notes == ()
    assert found.logits.shape == (len(found.rows), 3)


def _judged(data, train):
    rest = np.setdiff1d(np.arange(len(data.labels)), train)
    return int((data.views[rest] == 0).sum())


def test_a_path_is_separate_fits(monkeypatch):
    """Of as many times stronger penalties as rows are fewer; warm starts change nothing."""
    monkeypatch.setattr(optimisation, "_GRADIENT_TOLERANCE", 1e-9)
    monkeypatch.setattr(optimisation, "_PROGRESS_TOLERANCE", 1e-16)
    data = grouped()
    path = select(data)
    for trial in path.trials[::3]:
        alone = select(data, replace(OPEN, l2=trial["l2"]))
        assert alone.trials[0]["loss"] == pytest.approx(trial["loss"], rel=1e-6)
        assert len(alone.trials) == 1
    train = np.flatnonzero(~np.isin(data.groups, data.groups[path.rows[:1]]))
    chosen = path.settings
    first = path.rows[: _first_part(data, path)]
    train = np.flatnonzero(~np.isin(data.groups, data.groups[first]))
    fitted = fit_weights(data, train, None, replace(chosen, l2=1.5 * chosen.l2), work())
    expected = fitted.logits(data.features, first, Crew(1))
    np.testing.assert_allclose(path.logits[: len(first)], expected, atol=1e-3)


def _first_part(data, found):
    """How many rows the first inner fold judged."""
    folds = selection.grouped_folds(data.labels, data.groups, 3, folds=3, seed=0)
    return int(((folds == 0) & (data.views == 0)).sum())


def test_the_penalty_with_the_lowest_loss_is_chosen_and_the_path_ends():
    found = select(grouped())
    losses = [trial["loss"] for trial in found.trials]
    assert [trial["chosen"] for trial in found.trials].index(True) == int(np.argmin(losses))
    assert found.settings.l2 == found.trials[int(np.argmin(losses))]["l2"]
    assert found.settings.kind == "linear"
    penalties = [trial["l2"] for trial in found.trials]
    assert penalties == list(selection._PATH[: len(penalties)])
    assert len(penalties) < len(selection._PATH)
    for trial in found.trials:
        assert set(trial) == {
            "kind", "l2", "dropout", "loss", "loss_calibrated", "auroc_macro", "chosen",
        }  # fmt: skip
        assert trial["loss_calibrated"] <= trial["loss"] + 1e-9
        assert 0.4 < trial["auroc_macro"] < 1


def test_noise_gets_a_strong_penalty_and_what_is_plain_a_weak_one():
    X, labels = make_rows(240, d=30)
    noise = np.random.default_rng(0).permutation(labels)
    weak = np.repeat(np.eye(3)[labels], 10, axis=1) * 3 + np.random.default_rng(1).normal(
        size=(240, 30)
    )
    strong = select(make_data(X, noise)).settings.l2
    assert strong >= 1.0
    assert select(make_data(weak, labels)).settings.l2 < strong / 4


def test_multilabel_paths_are_those_of_each_label():
    found = select(grouped(240, task="multilabel"))
    assert found.trials[0]["l2"] == pytest.approx(selection._PATH[0] / 3)
    assert found.logits.shape[1] == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["linear", "fusion", "mlp", "auto"])
def test_threads_and_memory_change_no_bit(monkeypatch, kind, many):
    if many:
        monkeypatch.setattr(selection, "WHOLE_BYTES", 80 * 40)
        monkeypatch.setattr(selection, "SAMPLE_BYTES", 60 * 40)
    blocks = (Block("a", "mean", 0, 4), Block("b", "max", 4, 6))
    X, labels = make_rows(100)
    settings = Settings(kind, 0.05 if kind == "auto" else None, 4, True, 1)
    results = []
    for rows, threads, hold in ((Held, 1, 1 << 30), (Streamed, 2, 0)):
        data = make_data(X, labels, rows=rows, blocks=blocks)
        with Crew(threads) as crew:
            jobs = Work(crew, hold, lambda *_: None)
            found = select(data, settings, jobs=jobs)
            results.append((found, fit_selected(data, np.arange(100), found, jobs)))
    (one, head), (other, again) = results
    np.testing.assert_array_equal(one.logits, other.logits)
    assert one.trials == other.trials
    for name, weight in head.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)


# --- More rows than are held ---------------------------------------------------------------------


@pytest.fixture
def sampled(monkeypatch):
    """Of rows with ten features: more than 100 are many, 60 are their sample."""
    monkeypatch.setattr(selection, "WHOLE_BYTES", 100 * 40)
    monkeypatch.setattr(selection, "SAMPLE_BYTES", 60 * 40)
    monkeypatch.setattr(selection, "_SAMPLED_PATIENTS", 3)


@pytest.mark.usefixtures("quick", "sampled")
@pytest.mark.parametrize("kind", ["linear", "fusion", "mlp"])
def test_of_many_rows_a_sample_chooses_and_unseen_rows_calibrate(monkeypatch, kind):
    data = replace(grouped(180), blocks=(Block("a", "mean", 0, 4), Block("b", "max", 4, 6)))
    whole = []
    original = fitting.Fit.__init__

    def noted(self, own, train, *rest):
        if len(own.labels) == 180:
            whole.append(train)
        original(self, own, train, *rest)

    monkeypatch.setattr(fitting.Fit, "__init__", noted)
    settings = replace(OPEN, kind=kind)
    found = select(data, settings)
    # One fit of all rows but those that calibrate, for each block of a fusion.
    assert len(whole) == (2 if kind == "fusion" else 1)
    assert not set(data.groups[whole[0]]) & set(data.groups[found.rows])
    assert set(data.groups[whole[0]]) | set(data.groups[found.rows]) == set(data.groups)
    assert not data.views[found.rows].any()
    assert found.enough
    assert found.protocol == "training rows that a fit of the others had not seen"
    few = selection._sample(data, np.arange(180), 60, 0)
    alone = select(selection._small(data, few, work()), settings)
    assert len(few) <= 60
    share = np.sqrt(len(few) / 180)
    if kind == "linear":
        assert found.settings.l2 == pytest.approx(alone.settings.l2 * share)
        weaker = replace(found.settings, l2=found.settings.l2 * np.sqrt(180 / len(whole[0])))
        head = fit_weights(data, whole[0], None, weaker, work())
        np.testing.assert_allclose(
            found.logits, head.logits(data.features, found.rows, Crew(1)), rtol=1e-12
        )
    if kind == "fusion":
        assert found.block_l2 == pytest.approx([l2 * share for l2 in alone.block_l2])
        assert found.block_weights == alone.block_weights
    if kind == "mlp":
        assert found.settings == alone.settings
    head = fit_selected(data, np.arange(180), found, work())
    assert all(np.isfinite(weight).all() for weight in head.weights.values())
    assert select(data, replace(settings, l2=0.25)).trials[0]["l2"] in (0.25, None)


@pytest.mark.usefixtures("quick", "sampled")
@pytest.mark.parametrize("kind", ["linear", "fusion", "mlp"])
def test_of_many_rows_marked_ones_end_the_fit_and_calibrate(kind):
    X, labels = make_rows(240)
    blocks = (Block("a", "mean", 0, 4), Block("b", "max", 4, 6))
    data = make_data(X, labels, blocks=blocks)
    train, valid = np.arange(150), np.arange(150, 240)
    found = select_settings(data, train, replace(OPEN, kind=kind), work(), valid=valid)
    np.testing.assert_array_equal(found.rows, valid)
    assert found.enough
    assert found.trials
    head = fit_selected(data, train, found, work())
    assert head is found.fitted
    np.testing.assert_array_equal(found.logits, head.logits(data.features, valid, Crew(1)))
    if kind == "linear":
        expected = fit_weights(data, train, valid, found.settings, work())
        np.testing.assert_array_equal(head.weights["weight"], expected.weights["weight"])
    few = select_settings(data, train, OPEN, work(), valid=np.arange(150, 160))
    assert not few.enough


def test_a_sample_is_of_patients_and_has_some_of_every_class():
    data = grouped(3000)
    labels = np.where(data.groups >= 1488, 2, data.labels % 2)
    data = replace(data, labels=labels)
    few = selection._sample(data, np.arange(3000), 300, 1)
    assert 270 < len(few) <= 324
    np.testing.assert_array_equal(few, np.flatnonzero(np.isin(data.groups, data.groups[few])))
    # Twelve patients, of whom one or two were drawn.
    assert (labels[few] == 2).sum() == 24
    np.testing.assert_array_equal(few, selection._sample(data, np.arange(3000), 300, 1))
    assert len(np.setdiff1d(few, selection._sample(data, np.arange(3000), 300, 2))) > 200
    assert len(selection._sample(data, np.arange(40), 300, 1)) == 40


@pytest.mark.usefixtures("quick", "sampled")
def test_many_rows_of_which_a_class_has_one_patient():
    X, labels = make_rows(240)
    labels = np.where(np.arange(240) == 7, 2, labels % 2)
    found = select(make_data(X, labels))
    assert not found.enough
    assert found.settings.l2 == selection.DEFAULT_L2


# --- Fusion --------------------------------------------------------------------------------------


def _blocks():
    """One block that knows, one of noise with more columns."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 300)
    knows = np.eye(3)[labels] * 1.5 + rng.normal(size=(300, 3))
    X = np.concatenate([knows, rng.normal(size=(300, 12))], axis=1)
    return X, labels, (Block("knows", "mean", 0, 3), Block("noise", "mean", 3, 12))


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_a_fusion_is_the_sum_of_its_heads(task):
    X, labels, blocks = _blocks()
    if task == "multilabel":
        labels = np.eye(3, dtype=np.int8)[labels]
        labels[::7, 1] = -1
    data = make_data(X, labels, blocks=blocks)
    found = select(data, replace(OPEN, kind="fusion"))
    assert found.settings.kind == "fusion"
    rows = np.arange(300)
    head = fit_selected(data, rows, found, work())
    assert set(head.weights) == {"weight", "bias"}
    assert head.weights["weight"].shape == (3, 15)
    expected = np.zeros((300, 3))
    for block, l2, count in zip(blocks, found.block_l2, found.block_weights, strict=True):
        part = make_data(X[:, block.offset : block.offset + block.width], labels)
        own = fit_weights(part, rows, None, Settings("linear", l2, 6, True, 0), work())
        expected += count * own.logits(part.features, rows, Crew(1))
    np.testing.assert_allclose(head.logits(data.features, rows, Crew(1)), expected, atol=2e-5)
    assert min(found.block_weights) >= 0
    assert found.block_weights[0] > 0.7
    # What the block of noise adds is next to nothing.
    noise = np.abs(head.weights["weight"][:, 3:]).max()
    assert noise < 0.1 * np.abs(head.weights["weight"][:, :3]).max()


def test_fusion_weights_find_the_sum_that_was_made():
    rng = np.random.default_rng(0)
    stacked = rng.normal(size=(3, 4000, 2))
    true = np.array([2.0, 0.0, 0.7])
    score = np.tensordot(true, stacked, 1)
    labels = (score[:, 1] - score[:, 0] + rng.logistic(size=4000) > 0).astype(np.int64)
    found = fusion_weights(stacked, labels, np.ones(4000), balanced=False)
    np.testing.assert_allclose(found, true, atol=0.15)
    assert found[1] < 0.05
    many = np.stack([labels == 0, labels == 1], axis=1).astype(np.int8)
    many[::3] = -1
    found = fusion_weights(stacked, many, np.ones(4000), balanced=False)
    assert found[0] > found[2] > found[1] >= 0


def test_fusion_weights_of_rows_that_are_told_apart_end():
    stacked = np.stack([np.eye(2)[[0, 1] * 20] * 50, np.zeros((40, 2))])
    found = fusion_weights(stacked, np.array([0, 1] * 20), np.ones(40), balanced=True)
    assert np.isfinite(found).all()
    wrong = fusion_weights(-stacked, np.array([0, 1] * 20), np.ones(40), balanced=True)
    assert wrong[0] < 1e-3


def test_a_fold_is_judged_by_fusion_weights_of_the_others(monkeypatch):
    X, labels, blocks = _blocks()
    data = make_data(X, labels, blocks=blocks)
    calls = []
    original = selection.fusion_weights

    def noted(stacked, *rest, **options):
        calls.append((stacked, original(stacked, *rest, **options)))
        return calls[-1][1]

    monkeypatch.setattr(selection, "fusion_weights", noted)
    found = select(data, replace(OPEN, kind="fusion"))
    (whole, counts), *folds = calls
    assert found.block_weights == tuple(counts.tolist())
    start = 0
    for stacked, unseen in folds:
        stop = start + 300 - stacked.shape[1]
        np.testing.assert_array_equal(stacked[:, :start], whole[:, :start])
        np.testing.assert_array_equal(stacked[:, start:], whole[:, stop:])
        expected = unseen[0] * whole[0, start:stop] + unseen[1] * whole[1, start:stop]
        np.testing.assert_allclose(found.logits[start:stop], expected, rtol=1e-12)
        start = stop
    assert start == 300


def test_one_block_is_no_fusion():
    X, labels, _ = _blocks()
    data = make_data(X, labels, blocks=(Block("all", "mean", 0, 15),))
    assert select(data, replace(OPEN, kind="fusion")).settings.kind == "linear"


# --- Kinds ---------------------------------------------------------------------------------------


def _kinds(found):
    return [trial["kind"] for trial in found.trials]


def test_auto_takes_a_hidden_layer_where_only_one_can_tell():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    labels = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
    found = select(make_data(X, labels), Settings("auto", None, 16, True, 0))
    assert found.settings.kind == "mlp"
    assert set(_kinds(found)) == {"linear", "mlp"}
    assert found.iterations > 1


def test_auto_takes_the_linear_head_where_nothing_is_gained():
    X, labels = make_rows(240)
    found = select(make_data(X, labels), Settings("auto", None, 8, True, 0))
    assert found.settings.kind == "linear"
    assert "mlp" in _kinds(found)


def test_auto_takes_a_fusion_where_one_penalty_is_wrong_for_all():
    """A block that needs hardly a penalty beside two hundred columns of noise."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    knows = np.eye(2)[labels][:, :1] * 2.5 + rng.normal(size=(300, 1))
    X = np.concatenate([knows, rng.normal(size=(300, 200))], axis=1)
    blocks = (Block("knows", "mean", 0, 1), Block("noise", "mean", 1, 200))
    found = select(make_data(X, labels, blocks=blocks), Settings("auto", None, 2, True, 0))
    assert found.settings.kind == "fusion"


def test_the_simpler_kind_stays_within_one_standard_error():
    rng = np.random.default_rng(0)
    data = grouped(200)
    rows = np.arange(200)
    good = np.eye(3)[data.labels] * 2 + rng.normal(size=(200, 3))
    best = selection._Trial(OPEN, [good])
    near = selection._Trial(OPEN, [good + rng.normal(size=(200, 3)) * 0.01])
    far = selection._Trial(OPEN, [rng.normal(size=(200, 3))])
    assert selection._within_an_error(data, rows, near, best, True)
    assert not selection._within_an_error(data, rows, far, best, True)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("l2", "dropout"), [(None, None), (0.2, None), (None, 0.3), (0.2, 0.3)])
def test_what_is_given_is_not_chosen(l2, dropout):
    X, labels = make_rows(90)
    found = select(make_data(X, labels), Settings("mlp", l2, 3, True, 0, dropout))
    assert len(found.trials) == (2 if l2 is None else 1)
    assert found.settings.l2 == l2 or l2 is None
    assert found.settings.dropout == (0.5 if dropout is None else dropout)


# --- Rows marked valid, and few rows -------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["linear", "mlp", "fusion"])
def test_rows_marked_valid_choose_and_calibrate(kind):
    X, labels, blocks = _blocks()
    data = make_data(X, labels, blocks=blocks)
    train, valid = np.arange(200), np.arange(200, 300)
    settings = Settings(kind, None, 4, True, 0)
    found = select_settings(data, train, settings, work(), valid=valid)
    np.testing.assert_array_equal(found.rows, valid)
    assert found.enough
    head = fit_selected(data, train, found, work())
    assert head is found.fitted
    if kind != "fusion":
        np.testing.assert_array_equal(found.logits, head.logits(data.features, valid, Crew(1)))
    else:
        np.testing.assert_allclose(
            found.logits, head.logits(data.features, valid, Crew(1)), atol=2e-5
        )


def test_few_rows_marked_valid_choose_nothing():
    X, labels = make_rows(100)
    data = make_data(X, labels)
    for marked in (np.arange(90, 100), np.arange(0)):
        found = select_settings(data, np.arange(90), OPEN, work(), valid=marked)
        assert not found.enough
        assert found.trials == ()
        assert found.settings.l2 == selection.DEFAULT_L2
        head = fit_selected(data, np.arange(90), found, work())
        assert "too few to stop early or calibrate by" in head.notes[0]
        assert found.logits.shape == (len(marked), 3)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("per_class", "tried"), [(1, 0), (2, 1), (3, 1)])
def test_few_patients_choose_in_fewer_folds_or_not_at_all(per_class, tried):
    X, _ = make_rows(3 * per_class)
    labels = np.arange(3 * per_class) % 3
    data = make_data(X, labels)
    assert select(data).settings.l2 == selection.DEFAULT_L2
    assert select(data, replace(OPEN, kind="auto")).settings.kind == "linear"
    for kind in ("linear", "auto", "mlp"):
        settings = Settings(kind, 0.1, 3, True, 0)
        found = select(data, settings)
        assert bool(found.trials) == bool(tried)
        assert not found.enough
        head = fit_selected(data, np.arange(len(X)), found, work())
        assert "too few to calibrate by" in head.notes[0]
        assert all(np.isfinite(weight).all() for weight in head.weights.values())


def test_sample_weights_decide_too():
    """Rows that weigh nothing are judged by nobody."""
    X, labels = make_rows(240)
    wrong = np.concatenate([labels[:160], np.random.default_rng(0).integers(0, 3, 80)])
    weights = np.ones(240)
    weights[160:] = 0.0
    found = select(make_data(X, wrong, weights=weights))
    plain = select(make_data(X, wrong))
    assert found.trials != plain.trials
    assert min(t["loss"] for t in found.trials) < min(t["loss"] for t in plain.trials) - 0.05


# Columns enough that BLAS would share a product among its threads.
DIGEST = """
import hashlib, sys
import numpy as np
from test_fitting import make_data, make_rows
from engine import fitting
from engine.fitting import Settings
from engine.pooling import Block
from engine.rows import Crew
from engine.selection import fit_selected, select_settings
from engine.work import Work
fitting._MAX_EPOCHS, fitting._MAX_STEPS, fitting._ROUNDED_FROM = 3, 30, 0
X, labels = make_rows(500, d=400)
data = make_data(X, labels, blocks=(Block("a", "mean", 0, 150), Block("b", "max", 150, 250)))
found = hashlib.sha256()
for kind in ("linear", "fusion", "mlp"):
    with Crew(int(sys.argv[1])) as crew:
        work = Work(crew, 1 << 30, lambda *_: None)
        chosen = select_settings(data, np.arange(500), Settings(kind, None, 32, True, 0), work)
        head = fit_selected(data, np.arange(500), chosen, work)
    found.update(repr(chosen.trials).encode() + chosen.logits.tobytes())
    for weight in head.weights.values():
        found.update(weight.tobytes())
print(found.hexdigest())
"""


def test_threads_of_blas_change_no_bit(repository):
    found = set()
    for threads in ("1", "2", "4"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, threads],
            cwd=repository,
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": threads,
                "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'tests'}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
