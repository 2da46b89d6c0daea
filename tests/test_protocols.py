"""Protocols of training: sources left out, repeats, learning curves, weights, what is refused."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from test_training import CLASSES, PREPROCESSING, make_container, make_rows

from engine import calibrated, train
from engine.dataset import learning_rows, load_rows
from engine.errors import MismatchError, SplitError
from engine.metrics import Evaluation
from engine.plan import BY_SOURCE
from engine.protocols import cross_validate_columns, learning_curve
from engine.rows import Crew, Rows
from engine.training import fit_head, train_head
from engine.validation import cross_validate
from engine.work import Course
from formats import Container

SOURCES = ["north", "south", "east"]


def sourced(path, labels=None, *, seed=0, n=150, source=None, classes=CLASSES, **columns):
    """Rows of three sources; patients are in one source each."""
    X, own, groups = make_rows(n, seed=seed)
    labels = own if labels is None else labels(own, groups)
    source = (groups // 3 % 3).astype(np.uint8) if source is None else source(labels, groups)
    return make_container(
        path, X, labels, groups, notes={"sources": SOURCES}, source=source, classes=classes,
        **columns,
    )  # fmt: skip


# --- Sources left out ----------------------------------------------------------------------------


class Learned:
    """Which rows the heads of a training learned from, and which they chose by."""

    def __init__(self, monkeypatch):
        self.calls = []
        choose = calibrated.select_settings

        def record(data, train, settings, work, *, valid=None):
            self.calls.append((data, train, valid))
            return choose(data, train, settings, work, valid=valid)

        monkeypatch.setattr(calibrated, "select_settings", record)


@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "marked"])
def test_every_source_is_judged_by_heads_that_have_not_seen_it(tmp_path, monkeypatch, marked):
    columns = {}
    if marked:
        groups = make_rows(150)[2]
        columns["split"] = np.where(groups % 4 == 0, 2, 1).astype(np.uint8)
    container = sourced(tmp_path / "c.hilum", **columns)
    learned = Learned(monkeypatch)
    done = train_head(container, cv=BY_SOURCE, l2=0.3, threads=1)
    found = done.evaluation
    assert len(learned.calls) == 4
    for number, (data, rows, valid) in enumerate(learned.calls[:3]):
        assert number not in data.sources[rows]
        assert (valid is not None) == marked
        # Rows marked valid of the source that is left out would tell of it.
        assert valid is None or number not in data.sources[valid]
    rows = np.arange(150) if not marked else np.flatnonzero(columns["split"] == 1)
    np.testing.assert_array_equal(found.rows, rows)
    assert found.split == BY_SOURCE
    assert found.auroc_macro > 0.9
    assert done.head.training["folds"] == BY_SOURCE
    assert "has not seen its source" in done.head.metrics["protocol"]
    source = done.columns["source"]
    np.testing.assert_array_equal(source.codes, container.sources[rows])
    assert source.names == ("north", "south", "east", "unknown")
    assert found.notes == ()


def test_a_class_of_one_source_is_not_judged_there_and_the_notes_say_so(tmp_path):
    container = sourced(
        tmp_path / "c.hilum",
        source=lambda labels, groups: np.where(labels == 2, 1, groups // 3 % 3).astype(np.uint8),
    )
    found = cross_validate(container, cv=BY_SOURCE, l2=0.3)
    viral = container.labels == 2
    np.testing.assert_array_equal(found.rows, np.flatnonzero(~viral))
    assert found.auroc["viral"] is None
    assert found.auroc["normal"] > 0.9
    # What is not known is not answered.
    south = container.sources[found.rows] == 1
    assert south.any()
    assert (found.probabilities[south, 2] == 0).all()
    assert not (found.decisions[south] == 2).any()
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0)
    assert any("source 'south': without it there are no rows of 'viral'" in n for n in found.notes)
    again = train_head(container, cv=BY_SOURCE, l2=0.3)
    np.testing.assert_array_equal(again.evaluation.probabilities, found.probabilities)
    assert again.head.classes == CLASSES
    floor = cross_validate_columns(container, "metadata", cv=BY_SOURCE)
    np.testing.assert_array_equal(floor.rows, found.rows)


def test_a_source_without_which_one_class_is_left_is_not_judged(tmp_path):
    container = sourced(
        tmp_path / "c.hilum",
        lambda labels, groups: (labels > 0).astype(np.uint16),
        # The first class comes from north and south, the second from the south alone.
        source=lambda labels, groups: np.where(labels == 1, 1, groups % 2).astype(np.uint8),
        classes=("no", "yes"),
    )
    found = cross_validate(container, cv=BY_SOURCE, l2=0.3)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(container.sources == 0))
    assert any("source 'south' is not judged at all" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_labels_that_one_source_has_are_masked_there(tmp_path, kind):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(240, 10)).astype(np.float32)
    truth = (X @ rng.normal(size=(10, 2)) > 0.5).astype(np.int8)
    source = (np.arange(240) % 3).astype(np.uint8)
    truth[source != 1, 1] = 0
    container = make_container(
        tmp_path / "m.hilum", X, truth, np.arange(240), classes=("opacity", "effusion"),
        notes={"sources": SOURCES}, source=source,
    )  # fmt: skip
    options = {"kind": kind, "hidden": 4, "dropout": 0.0, "l2": 0.01}
    found = cross_validate(container, cv=BY_SOURCE, **options)
    assert found.n_rows == 240
    assert found.auroc["opacity"] > 0.9
    # Of the effusions, all in the south, nobody else can learn.
    assert found.auroc["effusion"] is None
    assert (found.labels[source == 1, 1] == -2).all()
    assert (found.labels[source != 1] >= 0).all()
    assert any("no rows with and without 'effusion'" in note for note in found.notes)


def test_sources_that_cannot_be_left_out_are_refused(tmp_path):
    X, labels, groups = make_rows()
    bare = make_container(tmp_path / "b.hilum", X, labels, groups)
    with pytest.raises(SplitError, match=r"b\.hilum: has no source column.*--cv 5"):
        cross_validate(bare, cv=BY_SOURCE)
    one = sourced(tmp_path / "o.hilum", source=lambda labels, _: np.full(len(labels), 1, np.uint8))
    with pytest.raises(SplitError, match=r"o\.hilum: sources .*: 'south'; expected at least two"):
        cross_validate(one, cv=BY_SOURCE)
    torn = sourced(
        tmp_path / "t.hilum", source=lambda labels, _: (np.arange(len(labels)) % 2).astype(np.uint8)
    )
    with pytest.raises(
        SplitError, match=r"t\.hilum: \d+ patient\(s\) with rows of several sources"
    ):
        cross_validate(torn, cv=BY_SOURCE)
    with pytest.raises(SplitError, match="a container has no source column"):
        other = make_container(tmp_path / "p.hilum", *make_rows(90, seed=4))
        cross_validate([sourced(tmp_path / "s.hilum"), other], cv=BY_SOURCE)
    same = sourced(
        tmp_path / "c.hilum",
        lambda labels, groups: (labels > 0).astype(np.uint16),
        source=lambda labels, groups: labels.astype(np.uint8),
        classes=("no", "yes"),
    )
    with pytest.raises(SplitError, match=r"c\.hilum: no source can be judged by the others"):
        cross_validate(same, cv=BY_SOURCE)
    with pytest.raises(SplitError, match="expected a number of folds, or leave-one-source-out"):
        cross_validate(bare, cv="leave-one-out")


# --- Repeats -------------------------------------------------------------------------------------


def test_repeats_are_the_means_over_seeds(tmp_path):
    container = make_container(tmp_path / "c.hilum", *make_rows(150, strength=0.4))
    alone = [cross_validate(container, folds=3, l2=0.3, seed=seed) for seed in (5, 6, 7)]
    both = train_head(container, cv=3, repeats=3, l2=0.3, seed=5)
    found = both.evaluation
    assert found.accuracy == pytest.approx(np.mean([each.accuracy for each in alone]))
    assert found.auroc_macro == pytest.approx(np.mean([each.auroc_macro for each in alone]))
    assert len({each.auroc_macro for each in alone}) == 3
    for name in CLASSES:
        assert found.auroc[name] == pytest.approx(np.mean([each.auroc[name] for each in alone]))
    np.testing.assert_array_equal(found.probabilities, alone[0].probabilities)
    assert found.confusion == alone[0].confusion
    assert (found.n_rows, found.n_groups) == (alone[0].n_rows, alone[0].n_groups)
    low, high = found.ci95["auroc_macro"]
    assert low < found.auroc_macro < high
    assert "repeated with 3 seeds" in both.protocol
    assert both.head.training["repeats"] == 3
    # The bootstrap of every repeat drew the same patients, by the first seed.
    assert found.ci95["accuracy"][0] == pytest.approx(
        np.mean([_interval(each, 5)["accuracy"][0] for each in alone])
    )
    # Every figure of an evaluation is one of these, so that a new one is not left behind.
    for each in fields(Evaluation):
        value = getattr(found, each.name)
        assert isinstance(value, (int, float, str, tuple, dict, list, np.ndarray)), each.name


def _interval(evaluation, seed):
    from engine.metrics import evaluate_predictions

    return evaluate_predictions(
        evaluation.probabilities,
        evaluation.labels,
        evaluation.groups,
        evaluation.classes,
        decisions=evaluation.decisions,
        seed=seed,
    ).ci95


def test_repeats_need_folds(tmp_path):
    container = make_container(tmp_path / "c.hilum", *make_rows())
    with pytest.raises(ValueError, match="repeats is 2 without cv"):
        fit_head(container, repeats=2)
    with pytest.raises(ValueError, match="repeats is 0"):
        fit_head(container, cv=3, repeats=0)


# --- The head is the same with and without what measures it --------------------------------------


def test_a_cross_validation_does_not_change_the_head(tmp_path):
    container = make_container(tmp_path / "c.hilum", *make_rows())
    alone, both = fit_head(container), train_head(container, cv=3)
    np.testing.assert_array_equal(alone.weights["weight"], both.head.weights["weight"])
    assert alone.calibration == both.head.calibration
    assert alone.training["l2"] == both.head.training["l2"]
    assert set(both.seconds) == {"reading", "folds", "head", "refusal"}
    assert all(second >= 0 for second in both.seconds.values())
    [chosen] = [trial for trial in both.trials if trial["chosen"]]
    assert chosen["l2"] == both.head.training["l2"]
    assert len(both.trials) > 3
    assert both.data["n_rows"] == 150
    assert both.data["sources"] == []
    assert both.columns == {}


# --- Learning curve ------------------------------------------------------------------------------


def test_a_learning_curve_rises_and_ends_in_the_training_itself(tmp_path):
    container = make_container(tmp_path / "c.hilum", *make_rows(300, d=40, strength=0.35))
    whole = cross_validate(container, folds=3, l2=0.3)
    curve = learning_curve(container, cv=3, l2=0.3)
    assert [point["share"] for point in curve] == [0.125, 0.25, 0.5, 1.0]
    assert curve[-1]["auroc_macro"] == whole.auroc_macro
    assert curve[-1]["ci95"]["accuracy"] == whole.ci95["accuracy"]
    assert curve[0]["auroc_macro"] < curve[-1]["auroc_macro"] - 0.05
    patients = [point["n_groups"] for point in curve]
    assert patients == pytest.approx(
        [200 * 2 / 3 * share for share in (0.125, 0.25, 0.5, 1)], abs=3
    )
    given = learning_curve(container, cv=3, l2=0.3, shares=(1.0, 0.25), evaluation=whole)
    assert [point["share"] for point in given] == [0.25, 1.0]
    assert given[1] == curve[-1]


def test_parts_of_a_learning_curve_are_nested_and_keep_patients_whole(tmp_path, monkeypatch):
    container = make_container(tmp_path / "c.hilum", *make_rows(240))
    learned = Learned(monkeypatch)
    learning_curve(container, cv=2, l2=0.3, shares=(0.25, 0.5, 1.0), threads=1)
    rows = [train for _, train, _ in learned.calls]
    groups, labels = container.groups, container.labels
    assert len(rows) == 6
    for fold in range(2):
        small, middle, large = (rows[2 * step + fold] for step in range(3))
        assert np.isin(small, middle).all() and np.isin(middle, large).all()
        for part, share in ((small, 0.25), (middle, 0.5)):
            rest = np.setdiff1d(large, part)
            assert np.intersect1d(groups[part], groups[rest]).size == 0
            counts = [np.bincount(labels[each], minlength=3) for each in (part, large)]
            np.testing.assert_allclose(counts[0] / counts[1], share, atol=0.08)


def test_points_without_a_class_are_left_out(tmp_path):
    X, labels, groups = make_rows(150)
    rare = (labels != 2) | (groups < 30)
    container = make_container(tmp_path / "c.hilum", X[rare], labels[rare], groups[rare])
    curve = learning_curve(container, cv=3, l2=0.3)
    assert [point["share"] for point in curve] == [0.5, 1.0]
    with pytest.raises(ValueError, match="expected numbers above 0 and up to 1"):
        learning_curve(container, shares=(0.5, 2.0))


# --- Weights of rows -----------------------------------------------------------------------------


def test_rows_without_weight_teach_nothing(tmp_path):
    X, labels, groups = make_rows(150)
    spoilt = groups % 5 == 0
    wrong = np.where(spoilt, (labels + 1) % 3, labels).astype(np.uint16)
    container = make_container(tmp_path / "c.hilum", X, wrong, groups)
    other = make_container(tmp_path / "o.hilum", X, labels, groups)
    weights = np.where(spoilt, 0.0, 1.0)
    heads = [
        fit_head(each, l2=0.1, sample_weights=given, calibration="none")
        for each, given in ((container, weights), (other, weights), (container, None))
    ]
    assert [head.training["sample_weights"] for head in heads] == [True, True, False]
    p = [head.probabilities(X) for head in heads]
    np.testing.assert_allclose(p[0], p[1], atol=1e-6)
    assert np.abs(p[0] - p[2]).max() > 0.05
    ones = fit_head(container, l2=0.1, sample_weights=np.ones(150), calibration="none")
    np.testing.assert_array_equal(ones.weights["weight"], heads[2].weights["weight"])


def test_rows_without_weight_do_not_calibrate(tmp_path):
    """Labels that are wrong, and known to be, move neither temperature nor threshold."""
    X, labels, groups = make_rows(300, strength=0.7, k=2)
    wrong = groups % 3 == 0
    spoiled = np.where(wrong, 1 - labels, labels).astype(np.uint16)
    weights = np.where(wrong, 0.0, 1.0)
    found = [
        fit_head(
            make_container(tmp_path / f"{i}.hilum", X, each, groups, classes=("a", "b")),
            l2=0.3, sample_weights=weights,
        )
        for i, each in enumerate((labels, spoiled))
    ]  # fmt: skip
    assert found[0].calibration.temperature == pytest.approx(
        found[1].calibration.temperature, rel=0.25
    )
    whole = fit_head(
        make_container(tmp_path / "2.hilum", X, spoiled, groups, classes=("a", "b")), l2=0.3
    )
    assert whole.calibration.temperature > 1.5 * found[1].calibration.temperature


def test_a_fold_that_no_weight_teaches_a_class_is_refused(tmp_path):
    X, labels, groups = make_rows(150)
    weights = np.ones(150)
    weights[labels == 2] = 0.0
    weights[np.flatnonzero(labels == 2)[0]] = 1.0
    container = make_container(tmp_path / "c.hilum", X, labels, groups)
    with pytest.raises(SplitError, match="too few patients for training: class 'viral' has 1"):
        cross_validate(container, cv=3, sample_weights=weights)


def test_weights_are_of_the_rows_of_all_containers_in_their_order(tmp_path):
    one = make_container(tmp_path / "a.hilum", *make_rows(60, seed=1))
    flags = np.zeros(90, np.uint8)
    flags[:4] = 1
    two = make_container(tmp_path / "b.hilum", *make_rows(90, seed=2), row_flags=flags)
    given = np.arange(150.0)
    with Crew(1) as crew, Rows([one, two]) as features:
        data = load_rows(
            (one, two), features, learning_rows, Course(1, None).reading(crew),
            sample_weights=given,
        )  # fmt: skip
    np.testing.assert_array_equal(data.weights, np.delete(given, np.arange(60, 64)))
    np.testing.assert_array_equal(data.weights[data.origin == 1], 60 + data.rows[data.origin == 1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(149), r"expected \(150,\)"),
        (np.ones((150, 2)), r"expected \(150,\)"),
        (np.r_[np.ones(149), -1], r"sample_weights\[149\] is -1"),
        (np.r_[np.nan, np.ones(149)], r"sample_weights\[0\] is nan"),
        (np.zeros(150), "are all 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(tmp_path, weights, message):
    container = make_container(tmp_path / "c.hilum", *make_rows())
    with pytest.raises(ValueError, match=message):
        fit_head(container, sample_weights=weights)


def test_a_class_without_weight_cannot_be_learned(tmp_path):
    X, labels, groups = make_rows()
    container = make_container(tmp_path / "c.hilum", X, labels, groups)
    with pytest.raises(SplitError, match="for training: class 'viral' has 0; needed: 2"):
        fit_head(container, sample_weights=np.where(labels == 2, 0.0, 1.0))


def test_a_number_of_folds_is_whole(tmp_path):
    container = make_container(tmp_path / "c.hilum", *make_rows())
    for cv in (2.5, 1, True):
        with pytest.raises(SplitError, match=f"--cv {cv}: expected at least 2 folds"):
            cross_validate(container, cv=cv)
    head = fit_head(container, cv=np.int64(2), l2=0.3)
    assert type(head.training["folds"]) is int


# --- Calibration and thresholds ------------------------------------------------------------------


def test_calibration_and_thresholds_are_those_asked_for(tmp_path):
    X, labels, groups = make_rows(300, k=2, strength=0.35)
    container = make_container(tmp_path / "c.hilum", X, labels, groups, classes=("no", "yes"))
    assert fit_head(container, l2=0.3, calibration="none").calibration.method == "none"
    assert fit_head(container, l2=0.3, calibration="isotonic").calibration.method == "isotonic"
    assert fit_head(container, l2=0.3, calibration="auto").calibration.method == "temperature"
    limits = {}
    for name, options in (
        ("sensitive", {"sensitivity": 0.95}), ("plain", {}), ("specific", {"specificity": 0.95})
    ):  # fmt: skip
        done = train_head(container, l2=0.3, **options)
        limits[name] = done.head.thresholds[1]
        truth, decided = done.evaluation.labels == 1, done.evaluation.decisions == 1
        if name == "sensitive":
            assert decided[truth].mean() >= 0.95
        if name == "specific":
            assert (~decided[~truth]).mean() >= 0.95
    assert limits["sensitive"] < limits["plain"] < limits["specific"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calibration": "platt"}, "expected one of temperature, isotonic, auto, none"),
        ({"sensitivity": 1.5}, "between 0 and 1"),
        ({"sensitivity": 0.9, "specificity": 0.9}, "both given"),
        ({"refusal_rate": 0.9}, "above 0 and up to 0.5"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_options_are_checked(tmp_path, arguments, message):
    container = make_container(tmp_path / "c.hilum", *make_rows())
    with pytest.raises(ValueError, match=message):
        fit_head(container, **arguments)


def test_the_refusal_rate_is_handed_on(tmp_path):
    container = make_container(tmp_path / "c.hilum", *make_rows())
    few, many = (fit_head(container, l2=0.3, refusal_rate=rate) for rate in (0.01, 0.2))
    assert few.ood.threshold > many.ood.threshold


# --- Bad input -----------------------------------------------------------------------------------


def bad_few(path):
    X, labels, groups = make_rows()
    poor = (labels != 2) | (groups < 6)
    return [make_container(path / "c.hilum", X[poor], labels[poor], groups[poor])]


def bad_one_class(path):
    X, labels, _ = make_rows()
    return [make_container(path / "c.hilum", X[labels == 1], labels[labels == 1])]


def bad_withdrawn(path):
    flags = np.ones(150, np.uint8)
    return [make_container(path / "c.hilum", *make_rows(), row_flags=flags)]


def bad_disjoint(path):
    return [
        make_container(path / "c.hilum", *make_rows()),
        make_container(path / "d.hilum", *make_rows(seed=1), classes=("a", "b", "c")),
    ]


def bad_views(path):
    X, labels, groups = make_rows(100)
    views = np.repeat([0, 1], 100).astype(np.uint8)
    strangers = np.concatenate([groups, groups + groups.max() + 1])
    return [
        make_container(
            path / "c.hilum", np.tile(X, (2, 1)), np.tile(labels, 2), strangers, view=views
        )
    ]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (bad_few, SplitError, r"c\.hilum: too few patients for 5 folds: class 'viral' has 2;"),
        (bad_one_class, SplitError, r"only one class has rows to learn from \(normal\)"),
        (bad_withdrawn, SplitError, r"c\.hilum: every row is withdrawn"),
        (bad_disjoint, MismatchError, r"differ in classes: bacterial, normal, viral and a, b, c;"),
        (bad_views, SplitError, r"\d+ patient\(s\) with augmented views but no original"),
    ],
)
def test_what_cannot_be_learned_is_refused_and_nothing_is_written(
    tmp_path, capsys, bad, error, message
):
    containers = bad(tmp_path)
    with pytest.raises(error, match=message):
        train_head(containers, cv=5)
    before = sorted(tmp_path.iterdir())
    data = [str(container.path) for container in containers]
    code = train.main([*data, "-o", str(tmp_path / "h.safetensors"), "--cv", "5", "--quiet"])
    assert code == 1
    assert sorted(tmp_path.iterdir()) == before
    assert "c.hilum" in capsys.readouterr().err


@pytest.mark.parametrize("multilabel", [False, True])
def test_labels_beyond_the_classes_are_refused(tmp_path, monkeypatch, multilabel):
    """The reader refuses such a file; a column that changed under it is refused here."""
    X, labels, groups = make_rows()
    spoilt = labels.copy()
    spoilt[7] = 3
    classes = CLASSES
    if multilabel:
        labels = (labels[:, None] == [0, 1]).astype(np.int8)
        spoilt = labels.copy()
        spoilt[7, 1] = 2
        classes = ("a", "b")
    container = make_container(tmp_path / "c.hilum", X, labels, groups, classes=classes)
    monkeypatch.setattr(Container, "labels", property(lambda self: spoilt))
    with pytest.raises(SplitError, match=r"c\.hilum: 1 row\(s\) with a label beyond the list"):
        fit_head(container)


def test_features_that_are_nan_are_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    container = make_container(tmp_path / "c.hilum", *make_rows())
    read_rows = Container.read_rows

    def spoilt(self, rows=None):
        X = read_rows(self, rows).copy()
        X[np.arange(self.n_rows)[rows] == 17] = np.nan
        return X

    monkeypatch.setattr(Container, "read_rows", spoilt)
    output = tmp_path / "h.safetensors"
    assert train.main([str(container.path), "-o", str(output), "--quiet"]) == 1
    assert "row 17 (and 0 more)" in capsys.readouterr().err
    assert not output.exists()


def test_the_same_preprocessing_is_assumed_nowhere(tmp_path):
    """Floors are refused between strangers as heads are."""
    one = sourced(tmp_path / "a.hilum")
    X, labels, groups = make_rows(seed=3)
    other = make_container(
        tmp_path / "b.hilum", X, labels, groups,
        notes={"sources": SOURCES, "preprocessing": {**PREPROCESSING, "height": 9}},
        source=(groups % 3).astype(np.uint8),
    )  # fmt: skip
    with pytest.raises(MismatchError, match="differ in preprocessing"):
        cross_validate_columns([one, other], "metadata", cv=3)


# --- Real X-rays ---------------------------------------------------------------------------------


def test_a_real_set_runs_through_with_all_that_stands_beside_its_figures(repository):
    from formats import open_container

    with open_container(repository / "engine" / "demonstration" / "pneumonia.hilum") as container:
        found = train_head(container, cv=5)
    assert found.evaluation.accuracy >= 0.86
    assert found.evaluation.auroc_macro >= 0.95
    assert found.data["n_groups"] == 578
