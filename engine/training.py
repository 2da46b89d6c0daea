"""From containers to a head.

The loss is the mean cross entropy plus ``l2 / 2 * |W|^2`` on standardised features. Unless
``class_weights`` is None it is weighted so that every class counts the same, in the fit as in the
temperature: probabilities are then as if every class were equally frequent.

What the user leaves open (the penalty, with ``"auto"`` also the kind) is chosen by rows the weights
have not seen, and so are calibration and thresholds: by inner folds of the training rows, or by the
rows marked valid, which then end the fit too (see `engine.selection`). The weights are then fitted
on all training rows.

A cross-validation does all of this again inside each of its folds (`engine.validation`). The final
head does it once more on all rows that are not marked, so it is the same with and without a
cross-validation. The floors and the learning curve take the same way, on other columns and on
fewer rows (`engine.protocols`).

Features that do not fit into `engine.rows.MEMORY_BYTES` are read from the containers in every pass
and never held. Nothing here depends on that, or on the number of threads: sums are made of the
same parts (see `engine.rows`), by kernels with a fixed order of additions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from engine.calibrated import check_learned, fit_calibrated, judge_fit
from engine.dataset import (
    Dataset,
    age_range,
    as_containers,
    count_sources,
    join_about,
    learning_rows,
    load_rows,
    open_rows,
    originals_of,
    parents_of,
    sides,
)
from engine.fitting import Fitted
from engine.floors import RowColumn, count_values, row_columns
from engine.heads import Head
from engine.metrics import Evaluation
from engine.ood import OodModel, fit_ood
from engine.plan import Options, Plan, count_folds, make_plan
from engine.rows import Crew, Feed
from engine.validation import run_folds
from engine.work import Course, Progress

if TYPE_CHECKING:
    from formats import Container

__all__ = ["Training", "fit_head", "train_head"]

# Rows that out-of-distribution statistics are fitted to, and what a copy of them may take; the fit
# was measured to take half as much again.
_OOD_ROWS, _OOD_BYTES = 3000, 32 << 20
# Fewer say nothing.
_MIN_OOD_ROWS = 20


@dataclass(frozen=True, eq=False)
class Training:
    """A head and everything its training found out on the way.

    Attributes
    ----------
    head : Head
        As `fit_head` returns it.
    evaluation : Evaluation
        The figures in the head's ``metrics``, with the predictions behind them.
    protocol : str
        How they were found, one sentence.
    trials : tuple of dict
        What the inner folds compared for the final head, see `engine.selection.Selection`.
    columns : dict of str to RowColumn
        Source, sex, age band and projection of the rows of `evaluation`, in their order.
    confounding : dict
        How classes are spread over these in all rows learned from, see
        `engine.floors.count_values`.
    data : dict
        ``n_rows``, ``n_groups``, ``n_views``, ``class_counts``, ``sources``, ``age_range_years``,
        and of the containers ``title``, ``attribution``, ``licence`` and ``terms`` where known.
    seconds : dict of str to float
        ``reading``, ``folds``, ``head``, ``refusal``; what was not done is left out.
    """

    head: Head
    evaluation: Evaluation
    protocol: str
    trials: tuple[dict[str, Any], ...]
    columns: dict[str, RowColumn]
    confounding: dict[str, Any]
    data: dict[str, Any]
    seconds: dict[str, float]


def fit_head(
    container: Container | Sequence[Container],
    target: str = "label",
    *,
    kind: str = "linear",
    l2: float | None = None,
    hidden: int = 64,
    dropout: float | None = None,
    class_weights: str | None = "balanced",
    seed: int = 0,
    cv: int | str | None = None,
    repeats: int = 1,
    calibration: str = "temperature",
    sensitivity: float | None = None,
    specificity: float | None = None,
    refusal_rate: float = 0.01,
    sample_weights: npt.ArrayLike | None = None,
    name: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Head:
    """Train a head.

    Rows marked test are never touched, and blocks of pixels that were stored as floors are not
    learned from. See the module for what chooses and calibrates it. The same arguments give the
    same bits, whatever the number of threads. Containers may be larger than the memory: of
    features, at most `engine.rows.MEMORY_BYTES` are held.

    Parameters
    ----------
    container : Container or sequence of Container
        Features with labels; several must agree in backbone, preprocessing, blocks (but for floors)
        and classes, and their patients are different people. Every byte is compared with its
        checksum first.
    target : str
        Column to learn; only ``"label"`` so far.
    kind : {"linear", "mlp", "fusion", "auto"}
        Linear by L-BFGS; one hidden layer of rectified units by Adam; a linear head for each block,
        their logits added with weights; or whichever of these inner folds prefer.
    l2 : float, optional
        Penalty; None lets inner folds choose it.
    hidden : int
        Hidden units of ``"mlp"``.
    dropout : float, optional
        Share of them that each step goes without; None lets inner folds choose it.
    class_weights : {"balanced", None}
        Whether every class counts the same, or every row, in the fit and in the temperature:
        probabilities are as if every class were equally frequent (every label present in half of
        the images), or by the frequencies of the training rows. The head says which in
        ``training["prevalence"]``. Where a class is rare, the first makes its probability larger
        than its share of the images that get it.
    seed : int
        Of folds, held-out patients, initial weights, batches and bootstrap.
    cv : int or "leave-one-source-out", optional
        Folds of a cross-validation before the final fit; or every source is judged by a head of the
        others.
    repeats : int
        How many cross-validations, with the seeds `seed`, `seed` + 1 and on; figures are their
        means.
    calibration : {"temperature", "isotonic", "auto", "none"}
        How probabilities are calibrated, see `engine.calibration.fit_calibration`.
    sensitivity, specificity : float, optional
        What the thresholds should reach on the rows that calibrate, one of the two; the largest
        mean of both if None.
    refusal_rate : float
        Share of unseen images of the training sources that the head may refuse as unlike them.
    sample_weights : array (N,), optional
        What each row counts in the fit and in what inner folds choose, at least 0: of all rows of
        all containers, one container after another. Rows of weight 0 do not calibrate either; all
        others count the same in calibration and thresholds. In figures every row counts the same.
    name : str, optional
        The head's name; that of the first file if None.
    threads : int, optional
        Threads that share the folds, or the rows of one fit; the number of cores if None.
    progress : callable, optional
        Called as ``progress(done, total, text)`` with whole numbers, from the calling thread:
        after every iteration of a fit, and about every 0.2 s of a cross-validation.

    Returns
    -------
    Head
        With ``metrics`` of the cross-validation, or of the rows that chose and calibrated.

    Raises
    ------
    SplitError
        No labels, one class only, a class with too few patients, a patient on two sides of the
        marked split or in two sources that are told apart, or no source to leave out.
    MismatchError
        The containers differ, or one holds images of another.
    Corrupt
        A container is damaged.
    ValueError
        An option has a value it cannot have.
    """
    return train_head(
        container,
        target,
        refusal_rate=refusal_rate,
        name=name,
        kind=kind,
        l2=l2,
        hidden=hidden,
        dropout=dropout,
        class_weights=class_weights,
        seed=seed,
        cv=cv,
        repeats=repeats,
        calibration=calibration,
        sensitivity=sensitivity,
        specificity=specificity,
        sample_weights=sample_weights,
        threads=threads,
        progress=progress,
    ).head


def train_head(
    container: Container | Sequence[Container],
    target: str = "label",
    *,
    refusal_rate: float = 0.01,
    name: str | None = None,
    **options: Unpack[Options],
) -> Training:
    """Train a head, and return what else its training found out.

    Parameters
    ----------
    container, target, refusal_rate, name
        As in `fit_head`.
    **options
        The others of `fit_head`.

    Returns
    -------
    Training
        The head, the predictions behind its figures, and what they were made from.

    Raises
    ------
    SplitError, MismatchError, Corrupt, ValueError
        As in `fit_head`.
    """
    plan = make_plan(**options)
    if target != "label":
        raise ValueError(f"target is {target!r}; only 'label' can be learned so far")
    if not 0.0 < refusal_rate <= 0.5:
        raise ValueError(f"refusal_rate is {refusal_rate}; expected above 0 and up to 0.5")
    containers = as_containers(container)
    course = Course(count_folds(containers, plan) + 1, plan.progress)
    clock = _Clock()
    with Crew.of(plan.threads) as crew, open_rows(containers) as features:
        data = load_rows(
            containers,
            features,
            learning_rows,
            course.reading(crew),
            sample_weights=plan.sample_weights,
        )
        clock.lap("reading")
        return _train(data, plan, refusal_rate, name, crew, course, clock)


@dataclass
class _Clock:
    """Seconds of the steps of a training."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, step: str) -> None:
        """End a step."""
        now = time.perf_counter()
        self.seconds[step], self.last = now - self.last, now


def _train(
    data: Dataset,
    plan: Plan,
    refusal_rate: float,
    name: str | None,
    crew: Crew,
    course: Course,
    clock: _Clock,
) -> Training:
    """Train a head of rows that were found sound."""
    containers = data.containers
    learned, valid = sides(data)
    check_learned(data, learned)
    outcome = None
    if plan.cv is not None:
        outcome = run_folds(data, learned, valid, plan, crew, course.say)
        clock.lap("folds")
    work = course.work(crew, count_folds(containers, plan)).part(0.0, 1.0, "head")
    fit = fit_calibrated(data, learned, valid, plan, work)
    fitted, selection = fit.fitted, fit.selection
    if outcome is None:
        work.report(1.0, "figures and their intervals")
        outcome = judge_fit(data, learned, valid, fit, plan, crew)
    clock.lap("head")
    ood = _fit_refusal(data, learned, fitted, refusal_rate, plan.settings.seed, crew)
    clock.lap("refusal")
    facts = _facts(data, learned)
    settings = selection.settings
    given = [each.uuid for each in containers]
    parents = [uuid for each in containers for uuid in parents_of(each)]
    ancestors = [uuid for uuid in dict.fromkeys(parents) if uuid not in given]
    kind = "mlp" if settings.kind == "mlp" else "linear"
    training = {
        **facts,
        # Those that were given, and those that they were made from.
        "data_sets": [*given, *ancestors],
        "derived_from": ancestors,
        "seed": plan.settings.seed,
        "method": settings.kind,
        "asked": plan.settings.kind,
        "l2": settings.l2,
        "hidden": settings.hidden if kind == "mlp" else None,
        "dropout": settings.dropout if kind == "mlp" else None,
        "class_weights": plan.class_weights,
        "sample_weights": plan.sample_weights is not None,
        "prevalence": plan.prevalence,
        "iterations": fitted.iterations,
        "folds": plan.cv,
        "repeats": plan.repeats,
        "software": {"hilum": _software()},
        "notes": list(dict.fromkeys([*data.notes, *fitted.notes])),
    }
    first = containers[0]
    about = join_about(containers)
    head = Head(
        name=name or first.path.stem,
        kind=kind,
        task="multilabel" if data.multilabel else "softmax",
        classes=data.classes,
        weights=fitted.weights,
        mean=fitted.mean,
        scale=fitted.scale,
        calibration=fitted.calibration,
        thresholds=fitted.thresholds,
        backbone=first.backbone,
        backbone_digest=first.backbone_digest,
        preprocessing=dict(first.notes["preprocessing"]),
        preprocessing_digest=first.preprocessing_digest,
        blocks=data.blocks,
        training=training,
        metrics={**outcome.evaluation.to_json(), "protocol": outcome.protocol},
        about=about,
        ood=ood,
    )
    course.say(math.inf, "head")
    originals = originals_of(data, learned)
    shown = ("title", "attribution", "licence", "terms")
    return Training(
        head=head,
        evaluation=outcome.evaluation,
        protocol=outcome.protocol,
        trials=tuple(selection.trials),
        columns=row_columns(data, outcome.rows),
        confounding=count_values(
            row_columns(data, originals),
            data.labels[originals],
            data.groups[originals],
            data.classes,
        ),
        data={
            **facts,
            "sources": sorted(facts["sources"]),
            **{key: about[key] for key in shown if key in about},
        },
        seconds=clock.seconds,
    )


def _facts(data: Dataset, learned: NDArray[np.int64]) -> dict[str, Any]:
    """Return what was learned from, in numbers."""
    originals = originals_of(data, learned)
    truth = data.labels[originals]
    counts = [
        int((truth[:, c] == 1 if data.multilabel else truth == c).sum())
        for c in range(len(data.classes))
    ]
    return {
        "n_rows": len(originals),
        "n_views": len(learned) - len(originals),
        "n_groups": len(np.unique(data.groups[learned])),
        "class_counts": dict(zip(data.classes, counts, strict=True)),
        "sources": count_sources(data, originals),
        "age_range_years": age_range(data, learned),
    }


def _fit_refusal(
    data: Dataset,
    learned: NDArray[np.int64],
    fitted: Fitted,
    refusal_rate: float,
    seed: int,
    crew: Crew,
) -> OodModel | None:
    """Learn what training images look like, from as many of them as are needed."""
    originals = originals_of(data, learned)
    if len(originals) < _MIN_OOD_ROWS:
        return None
    most = min(_OOD_ROWS, max(_MIN_OOD_ROWS, _OOD_BYTES // (4 * data.features.dim)))
    some = np.sort(np.random.default_rng(seed).permutation(originals)[:most])
    feed = Feed(data.features, some, fitted.mean, fitted.scale)
    X = np.empty((len(some), feed.dim), np.float32)

    def fill(part: int) -> None:
        # Piece by piece: few rows among many are else read with all that lie between them.
        for rows, piece in feed.pieces(part):
            X[rows] = piece

    for _ in crew.map(fill, feed.n_parts):
        pass
    sources = None
    if data.sources is not None:
        sources = np.array([*data.source_names, "unknown"])[data.sources[some]]
    groups = data.groups[some]
    if len(np.unique(groups)) < 2:
        return None
    return fit_ood(X, groups, refusal_rate=refusal_rate, seed=seed, sources=sources)


def _software() -> str:
    try:
        return metadata.version("hilum")
    except metadata.PackageNotFoundError:
        return "unknown"
