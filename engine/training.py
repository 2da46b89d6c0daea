"""From containers to a head: fitting, stopping, calibration, cross-validation, evaluation.

The loss is the mean cross entropy plus ``l2 / 2 * |W|^2`` on standardised features. Unless
``class_weights`` is None it is weighted so that every class counts the same, in the fit as in the
temperature: probabilities are then as if every class were equally frequent.

What decides when to stop, and the temperature and thresholds, are rows the weights have not seen:

- rows marked valid, if there are any: fitting stops when the loss on them no longer falls, and the
  weights come from the other rows alone;
- else, for linear heads, all training rows, each predicted by one of three inner fits that has not
  seen its patient (a tenth of the patients was measured to be too few: temperatures differed so
  much between folds that the pooled AUROC lost 0.005). The weights are those of all rows, fitted
  until they converge: the problem is convex and the penalty restrains it, while stopping by a
  held-out tenth cost 1 point of accuracy and 0.005 of AUROC in cross-validation on 720 chest
  X-rays, for any penalty from 0.02 to 0.5;
- else, for heads with a hidden layer, a seeded, stratified tenth of the patients. The weights are
  then fitted again on all training rows, for the number of epochs found.

A cross-validation does all of this inside each fold. The final head is then fitted on all rows
that are not marked, calibrated by the out-of-fold predictions unless there are rows marked valid.

Features that do not fit into `engine.rows.MEMORY_BYTES` are read from the containers in every pass
and never held. Nothing here depends on that, or on the number of threads: sums are made of the
same parts (see `engine.rows`), by kernels with a fixed order of additions, and results are
collected in the order of the folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.calibration import Calibration, choose_thresholds, fit_temperature
from engine.dataset import (
    Dataset,
    age_range,
    as_containers,
    check_marks,
    count_sources,
    join_about,
    learning_rows,
    load_rows,
    originals_of,
    parents_of,
    shorten,
    sides,
)
from engine.errors import MismatchError, SplitError
from engine.fitting import Fitted, Settings, fit_weights
from engine.heads import KINDS, Head
from engine.metrics import Evaluation, decide, evaluate_predictions
from engine.ood import fit_ood
from engine.pooling import blocks_from_notes
from engine.rows import MEMORY_BYTES, Crew, Feed, Rows
from engine.splits import check_classes, class_groups, grouped_folds, grouped_holdout
from engine.work import Course, Progress, Work
from formats import SPLITS

if TYPE_CHECKING:
    from formats import Container

__all__ = ["DEFAULT_L2", "cross_validate", "evaluate_head", "fit_head"]

#: Penalty of linear heads on standardised features.
DEFAULT_L2 = 0.3
#: Penalty of heads with a hidden layer, which early stopping restrains as well.
DEFAULT_L2_HIDDEN = 0.001

# Fewer rows say nothing about when to stop or how to calibrate.
_MIN_VALID_ROWS = 20
_HOLDOUT = 0.1
# Inner fits that predict the training rows of a linear head for its calibration.
_INNER_FOLDS = 3
# They serve the calibration only and need not converge as far.
_INNER_SLACK = 10.0
# Seconds between two looks at folds that run in other threads.
_LOOK_SECONDS = 0.2


def _calibrate(
    fitted: Fitted, logits: NDArray[np.float64], labels: NDArray[Any], settings: Settings
) -> None:
    """Set temperature and thresholds from predictions the weights have not learned from."""
    temperature = fit_temperature(logits, labels, balanced=settings.balanced)
    fitted.calibration = Calibration("temperature", temperature)
    probabilities = fitted.calibration.apply(logits, multilabel=labels.ndim == 2)
    fitted.thresholds = choose_thresholds(probabilities, labels)


def _too_few(data: Dataset, rows: NDArray[np.int64]) -> str | None:
    """Say why training rows are too few to calibrate by; None if they are not."""
    originals = originals_of(data, rows)
    fewest = int(
        class_groups(data.labels[originals], data.groups[originals], len(data.classes)).min()
    )
    if len(originals) >= _MIN_VALID_ROWS and fewest >= _INNER_FOLDS:
        return None
    return (
        f"the training rows are {len(originals)} images, with {fewest} patient(s) in the smallest "
        f"class, too few to calibrate by ({_MIN_VALID_ROWS} and {_INNER_FOLDS} needed): "
        "probabilities are not calibrated"
    )


@dataclass(frozen=True)
class _Judged:
    """Predictions of rows the weights behind them have not seen."""

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    #: Which rows these are, and what else they served for.
    protocol: str


def _fit_calibrated(
    data: Dataset,
    train: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    settings: Settings,
    work: Work,
) -> tuple[Fitted, _Judged | None]:
    """Fit and calibrate; a missing valid part is made of train, which is then fitted whole."""
    if valid is None and settings.kind == "linear":
        return _fit_cross_calibrated(data, train, settings, work)
    carved = valid is None
    rest = train
    if valid is None:
        held = grouped_holdout(
            data.labels[train],
            data.groups[train],
            len(data.classes),
            fraction=_HOLDOUT,
            seed=settings.seed,
        )
        valid, rest = train[held], train[~held]
    judge = originals_of(data, valid)
    if len(judge) < _MIN_VALID_ROWS:
        source = "a tenth of the training rows is" if carved else "rows marked valid are"
        fitted = fit_weights(data, train, None, settings, work)
        fitted.notes.append(
            f"{source} {len(judge)} images, too few to stop early or calibrate by "
            f"({_MIN_VALID_ROWS} needed): the penalty alone restrains the weights, and "
            "probabilities are not calibrated"
        )
        if carved or len(judge) == 0:
            return fitted, None
        probabilities = fitted.calibration.apply(
            fitted.logits(data.features, judge, work.crew), multilabel=data.multilabel
        )
        return fitted, _Judged(
            judge, probabilities, "rows marked valid; nothing was fitted or calibrated by them"
        )
    share = 0.5 if carved else 1.0
    fitted = fit_weights(data, rest, judge, settings, work.part(0.0, share, "fit"))
    logits = fitted.logits(data.features, judge, work.crew)
    _calibrate(fitted, logits, data.labels[judge], settings)
    probabilities = fitted.calibration.apply(logits, multilabel=data.multilabel)
    protocol = "rows marked valid"
    if carved:
        again = fit_weights(
            data, train, None, settings, work.part(share, 1.0, "again"), epochs=fitted.iterations
        )
        again.calibration, again.thresholds = fitted.calibration, fitted.thresholds
        fitted = again
        protocol = "a held-out tenth of the patients, by weights that had not seen them"
    protocol += "; they also ended the fit and set the calibration, so slightly too good"
    return fitted, _Judged(judge, probabilities, protocol)


def _fit_cross_calibrated(
    data: Dataset, train: NDArray[np.int64], settings: Settings, work: Work
) -> tuple[Fitted, _Judged | None]:
    """Fit on all train rows; calibrate by inner folds, in which each row is predicted unseen."""
    k = len(data.classes)
    labels, groups = data.labels[train], data.groups[train]
    fewest = int(class_groups(labels, groups, k).min())
    too_few = _too_few(data, train)
    if fewest < 2:
        fitted = fit_weights(data, train, None, settings, work)
        fitted.notes.append(str(too_few))
        return fitted, None
    folds = min(_INNER_FOLDS, fewest)
    fold_of = grouped_folds(labels, groups, k, folds=folds, seed=settings.seed)
    parts = []
    for fold in range(folds):
        # Each from zero: a start that has seen the fold's rows would leak into their predictions.
        part = work.part(
            fold / (folds + 1), (fold + 1) / (folds + 1), f"inner fit {fold + 1} of {folds}"
        )
        fitted = fit_weights(data, train[fold_of != fold], None, settings, part, slack=_INNER_SLACK)
        judge = originals_of(data, train[fold_of == fold])
        parts.append((judge, fitted.logits(data.features, judge, work.crew)))
    judge = np.concatenate([rows for rows, _ in parts])
    logits = np.concatenate([part for _, part in parts])
    part = work.part(folds / (folds + 1), 1.0, "fit")
    fitted = fit_weights(data, train, None, settings, part, start=fitted)
    protocol = f"training rows, each predicted by one of {folds} inner fits that had not seen it; "
    if too_few is None:
        _calibrate(fitted, logits, data.labels[judge], settings)
        protocol += "they also set the calibration, so slightly too good"
    else:
        fitted.notes.append(too_few)
        protocol += "probabilities are not calibrated"
    probabilities = fitted.calibration.apply(logits, multilabel=data.multilabel)
    return fitted, _Judged(judge, probabilities, protocol)


# --- Cross-validation ------------------------------------------------------------------------


@dataclass(frozen=True)
class _CrossValidation:
    """Pooled out-of-fold predictions."""

    rows: NDArray[np.int64]
    logits: NDArray[np.float64]
    evaluation: Evaluation
    iterations: int
    protocol: str


def _check_folds(folds: int) -> None:
    if folds < 2:
        raise SplitError(f"--cv {folds}: expected at least 2 folds; usual are 5 or 10")


def _cross_validate(
    data: Dataset,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    folds: int,
    settings: Settings,
    crew: Crew,
    course: Course,
) -> _CrossValidation:
    """Predict every row of `learned` by a head that has not seen its patient."""
    _check_folds(folds)
    originals = originals_of(data, learned)
    check_classes(
        data.labels[originals],
        data.groups[originals],
        data.classes,
        needed=folds,
        purpose=f"{folds} folds",
        where=data.where,
    )
    k = len(data.classes)
    fold_of = grouped_folds(
        data.labels[learned], data.groups[learned], k, folds=folds, seed=settings.seed
    )

    workers = min(folds, crew.threads)
    # Folds are what threads share; where there are more threads, folds share them for their rows.
    own = crew if crew.threads > workers else crew.alone()
    shares, texts = np.zeros(folds), [""] * folds

    def run(fold: int) -> tuple[NDArray[np.int64], NDArray[np.float64], Fitted]:
        train = learned[fold_of != fold]
        judge = originals_of(data, learned[fold_of == fold])
        check_classes(
            data.labels[train],
            data.groups[train],
            data.classes,
            needed=1,
            purpose=f"the training part of fold {fold + 1}",
            where=data.where,
        )

        def report(share: float, text: str) -> None:
            shares[fold], texts[fold] = share, f"fold {fold + 1} of {folds}: {text}"

        work = Work(own, MEMORY_BYTES // 2 // workers, report)
        fitted, _ = _fit_calibrated(data, train, valid, settings, work)
        logits = fitted.logits(data.features, judge, own)
        report(1.0, "done")
        return judge, logits, fitted

    with ThreadPoolExecutor(workers, thread_name_prefix="hilum-fold") as pool:
        futures = [pool.submit(run, fold) for fold in range(folds)]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()
                # Of the folds that run, the first speaks.
                running = [
                    text for share, text in zip(shares, texts, strict=True) if text and share < 1
                ]
                last = f"{round(float((shares == 1).sum()))} of {folds} folds done"
                course.say(float(shares.sum()), running[0] if running else last)
        except BaseException:
            # Ctrl-C must not wait for folds to end, whether they have begun or not.
            crew.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = [future.result() for future in futures]
    rows = np.concatenate([judge for judge, _, _ in results])
    logits = np.concatenate([part for _, part, _ in results])
    probabilities = np.concatenate(
        [fitted.calibration.apply(part, multilabel=data.multilabel) for _, part, fitted in results]
    )
    sizes = np.cumsum([len(judge) for judge, _, _ in results])[:-1]
    decisions = np.concatenate(
        [
            decide(part, fitted.thresholds, multilabel=data.multilabel)
            for part, (_, _, fitted) in zip(np.split(probabilities, sizes), results, strict=True)
        ]
    )
    order = np.argsort(rows, kind="stable")
    rows, logits = rows[order], logits[order]
    notes = dict.fromkeys(
        [*data.notes, *(note for _, _, fitted in results for note in fitted.notes)]
    )
    evaluation = evaluate_predictions(
        probabilities[order],
        data.labels[rows],
        data.groups[rows],
        data.classes,
        decisions=decisions[order],
        rows=data.rows[rows],
        split=f"{folds}-fold cross-validation",
        notes=list(notes),
        seed=settings.seed,
    )
    iterations = int(np.median([fitted.iterations for _, _, fitted in results]))
    protocol = (
        f"{folds}-fold cross-validation, stratified and grouped by patient; everything fitted "
        "inside the folds; out-of-fold predictions pooled"
    )
    plain = sum(fitted.calibration.method == "none" for _, _, fitted in results)
    if plain:
        protocol += f"; probabilities not calibrated in {plain} of {folds} folds"
    return _CrossValidation(rows, logits, evaluation, max(iterations, 1), protocol)


# --- What users call -------------------------------------------------------------------------


def _settings(
    kind: str, l2: float | None, hidden: int, class_weights: str | None, seed: int
) -> Settings:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if class_weights not in ("balanced", None):
        raise ValueError(f"class_weights is {class_weights!r}; expected 'balanced' or None")
    if l2 is None:
        l2 = DEFAULT_L2 if kind == "linear" else DEFAULT_L2_HIDDEN
    if not 0.0 <= l2 < np.inf:
        raise ValueError(f"l2 is {l2}; expected a number of at least 0")
    if hidden < 1:
        raise ValueError(f"hidden is {hidden}; expected at least 1 unit")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    return Settings(kind, float(l2), int(hidden), class_weights == "balanced", int(seed))


def _software() -> str:
    try:
        return metadata.version("hilum")
    except metadata.PackageNotFoundError:
        return "unknown"


def fit_head(
    container: Container | Sequence[Container],
    target: str = "label",
    *,
    kind: str = "linear",
    l2: float | None = None,
    hidden: int = 64,
    class_weights: str | None = "balanced",
    seed: int = 0,
    cv: int | None = None,
    name: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Head:
    """Train a head.

    Rows marked test are never touched. See the module for what stops and calibrates it. The same
    arguments give the same bits, whatever the number of threads. Containers may be larger than the
    memory: of features, at most `engine.rows.MEMORY_BYTES` are held.

    Parameters
    ----------
    container : Container or sequence of Container
        Features with labels; several must agree in backbone, preprocessing, blocks and classes,
        and their patients are different people. Every byte is compared with its checksum first.
    target : str
        Column to learn; only ``"label"`` so far.
    kind : {"linear", "mlp"}
        Linear by L-BFGS, or one hidden layer of rectified units by Adam.
    l2 : float, optional
        Penalty; `DEFAULT_L2` for linear heads, 0.001 otherwise.
    hidden : int
        Hidden units of ``"mlp"``.
    class_weights : {"balanced", None}
        Whether every class counts the same, or every row, in the fit and in the temperature:
        probabilities are as if every class were equally frequent (every label present in half of
        the images), or by the frequencies of the training rows. The head says which in
        ``training["prevalence"]``. Where a class is rare, the first makes its probability larger
        than its share of the images that get it.
    seed : int
        Of folds, held-out patients, initial weights, batches and bootstrap.
    cv : int, optional
        Folds of a cross-validation before the final fit.
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
        With ``metrics`` of the cross-validation, or of the valid rows.

    Raises
    ------
    SplitError
        No labels, one class only, a class with too few patients, or a patient on two sides of
        the marked split.
    MismatchError
        The containers differ, or one holds images of another.
    Corrupt
        A container is damaged.
    ValueError
        An option has a value it cannot have.
    """
    settings = _settings(kind, l2, hidden, class_weights, seed)
    if target != "label":
        raise ValueError(f"target is {target!r}; only 'label' can be learned so far")
    containers = as_containers(container)
    if cv is not None:
        _check_folds(cv)
    course = Course((cv or 0) + 1, progress)
    with Crew.of(threads) as crew, Rows(containers) as features:
        data = load_rows(containers, features, learning_rows, course.reading(crew))
        return _fit_head(data, settings, class_weights, cv, name, crew, course)


def _fit_head(
    data: Dataset,
    settings: Settings,
    class_weights: str | None,
    cv: int | None,
    name: str | None,
    crew: Crew,
    course: Course,
) -> Head:
    """Train a head of rows that were found sound."""
    containers, kind = data.containers, settings.kind
    learned, valid = sides(data)
    originals = originals_of(data, learned)
    check_classes(
        data.labels[originals],
        data.groups[originals],
        data.classes,
        needed=2,
        purpose="training",
        where=data.where,
    )
    metrics: dict[str, Any] = {}
    if cv is not None:
        folds = _cross_validate(data, learned, valid, cv, settings, crew, course)
        work = course.work(crew, cv).part(0.0, 1.0, "head")
        if valid is None:
            fitted = fit_weights(data, learned, None, settings, work, epochs=folds.iterations)
            too_few = _too_few(data, learned)
            if too_few is None:
                _calibrate(fitted, folds.logits, data.labels[folds.rows], settings)
            else:
                fitted.notes.append(too_few)
        else:
            fitted, _ = _fit_calibrated(data, learned, valid, settings, work)
        metrics = {**folds.evaluation.to_json(), "protocol": folds.protocol}
    else:
        work = course.work(crew, 0)
        fitted, judged = _fit_calibrated(data, learned, valid, settings, work)
        work.report(1.0, "figures and their intervals")
        if judged is None:
            split = "train"
            protocol = "the training rows themselves: says nothing about other patients; use --cv"
            rows = originals_of(data, learned)
            probabilities = fitted.calibration.apply(
                fitted.logits(data.features, rows, crew), multilabel=data.multilabel
            )
        else:
            rows, probabilities, protocol = judged.rows, judged.probabilities, judged.protocol
            split = "held out" if valid is None else "valid"
        evaluation = evaluate_predictions(
            probabilities,
            data.labels[rows],
            data.groups[rows],
            data.classes,
            decisions=decide(probabilities, fitted.thresholds, multilabel=data.multilabel),
            rows=data.rows[rows],
            split=split,
            notes=[*data.notes, *fitted.notes],
            seed=settings.seed,
        )
        metrics = {**evaluation.to_json(), "protocol": protocol}
    originals = originals_of(data, learned)
    truth = data.labels[originals]
    counts = [
        int((truth[:, c] == 1 if data.multilabel else truth == c).sum())
        for c in range(len(data.classes))
    ]
    first = containers[0]
    given = [each.uuid for each in containers]
    parents = [uuid for each in containers for uuid in parents_of(each)]
    ancestors = [uuid for uuid in dict.fromkeys(parents) if uuid not in given]
    training = {
        "n_rows": len(originals),
        "n_views": len(learned) - len(originals),
        "n_groups": len(np.unique(data.groups[learned])),
        "class_counts": dict(zip(data.classes, counts, strict=True)),
        "sources": count_sources(data, originals),
        "age_range_years": age_range(data, learned),
        # Those that were given, and those that they were made from.
        "data_sets": [*given, *ancestors],
        "derived_from": ancestors,
        "seed": settings.seed,
        "l2": settings.l2,
        "hidden": settings.hidden if kind == "mlp" else None,
        "class_weights": class_weights,
        "prevalence": "equal" if settings.balanced else "training",
        "iterations": fitted.iterations,
        "folds": cv,
        "software": {"hilum": _software()},
        "notes": list(dict.fromkeys([*data.notes, *fitted.notes])),
    }
    ood = None
    if len(originals) >= 20:
        some = originals[np.random.default_rng(settings.seed).permutation(len(originals))[:5000]]
        some.sort()
        feed = Feed(data.features, some, fitted.mean, fitted.scale)
        X = feed.take(np.arange(len(some)))
        ood = fit_ood(X, data.groups[some], seed=settings.seed)
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
        blocks=blocks_from_notes(first.blocks),
        training=training,
        metrics=metrics,
        about=join_about(containers),
        ood=ood,
    )
    course.say(math.inf, "head")
    return head


def cross_validate(
    container: Container | Sequence[Container],
    *,
    folds: int = 5,
    kind: str = "linear",
    l2: float | None = None,
    hidden: int = 64,
    class_weights: str | None = "balanced",
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict every train or unmarked row by heads that have not seen its patient.

    Rows marked valid serve each fold for stopping and calibration and are not judged.
    Standardisation, stopping and calibration happen inside each fold. Augmented views are learned
    from and never judged.

    Parameters
    ----------
    container, kind, l2, hidden, class_weights, seed, threads, progress
        As in `fit_head`.
    folds : int
        Number of folds, at least 2.

    Returns
    -------
    Evaluation
        Of the pooled out-of-fold predictions; ``rows`` are indices into the container (of several
        containers, each row's index in its own).

    Raises
    ------
    SplitError, MismatchError, Corrupt, ValueError
        As in `fit_head`; also a class with fewer patients than folds.
    """
    settings = _settings(kind, l2, hidden, class_weights, seed)
    _check_folds(folds)
    containers = as_containers(container)
    course = Course(folds, progress)
    with Crew.of(threads) as crew, Rows(containers) as features:
        data = load_rows(containers, features, learning_rows, course.reading(crew))
        learned, valid = sides(data)
        return _cross_validate(data, learned, valid, folds, settings, crew, course).evaluation


def evaluate_head(
    head: Head,
    container: Container,
    split: str | None = "test",
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a head by rows of a container.

    Parameters
    ----------
    head : Head
        Trained elsewhere, or on other rows.
    container : Container
        Of the same backbone and preprocessing, with the head's blocks among its own and the same
        classes in any order.
    split : str or None
        Rows marked none, train, valid or test, or ``"all"``; None means test. A container without
        any marks is taken whole.
    seed : int
        Of the bootstrap.
    threads, progress
        As in `fit_head`.

    Returns
    -------
    Evaluation
        Augmented views and withdrawn rows left out.

    Raises
    ------
    MismatchError
        The container was made by another backbone or preprocessing, or has other classes.
    Corrupt
        The container is damaged.
    SplitError
        There are no rows to judge, or a patient is on two sides of the split.
    ValueError
        No such split.
    """
    split = "test" if split is None else split
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}, all")
    for what, one, two in (
        ("backbone", head.backbone_digest, container.backbone_digest),
        ("preprocessing", head.preprocessing_digest, container.preprocessing_digest),
    ):
        if one != two:
            raise MismatchError(
                f"head {head.name!r} and {container.path} differ in {what}: {shorten(one)} and "
                f"{shorten(two)}; expected the same; extract the images again with the head's "
                f"{what} ({head.backbone}), or train a head on this container"
            )
    if sorted(head.classes) != sorted(container.classes) or head.multilabel != container.multilabel:
        raise MismatchError(
            f"head {head.name!r} knows {head.task} {', '.join(head.classes)}; {container.path} has "
            f"{'multilabel' if container.multilabel else 'softmax'} "
            f"{', '.join(container.classes)}; expected the same classes; change the labels of the "
            "manifest and extract again"
        )
    splits = container.splits
    marked = splits is not None and bool(splits[container.rows()].any())
    whole = split == "all" or not marked

    def choose(chosen: Container) -> NDArray[np.int64]:
        if not whole:
            check_marks(chosen)
        rows = chosen.rows(None if whole else split)
        return rows if chosen.views is None else rows[chosen.views[rows] == 0]

    if len(choose(container)) == 0:
        counts = np.bincount(
            splits[container.rows()] if splits is not None else [], minlength=len(SPLITS)
        )
        found = ", ".join(f"{mark} {count}" for mark, count in zip(SPLITS, counts, strict=True))
        raise SplitError(
            f"{container.path}: no rows of split {split!r} to judge ({found}); choose another "
            "split, or mark rows in the manifest"
        )
    blocks = blocks_from_notes(container.blocks)
    course = Course(1, progress)
    with Crew.of(threads) as crew, Rows((container,)) as features:
        data = load_rows((container,), features, choose, course.reading(crew))
        feed = Feed(features, np.arange(len(features)))
        probabilities = np.empty((len(feed), len(head.classes)))

        def predict(part: int) -> None:
            for rows, X in feed.pieces(part):
                probabilities[rows] = head.probabilities(head.select(X, blocks))

        for part, _ in enumerate(crew.map(predict, feed.n_parts)):
            course.say((part + 1) / feed.n_parts, "predicting")
    order = [container.classes.index(class_name) for class_name in head.classes]
    labels = data.labels[:, order] if data.multilabel else np.argsort(order)[data.labels]
    notes = list(data.notes)
    learned_from = set(head.training.get("data_sets", ()))
    if container.uuid in learned_from.difference(head.training.get("derived_from", ())):
        if whole or split != "test":
            notes.append(
                f"head {head.name!r} was trained on this container: these figures are of rows it "
                "has seen and say nothing about other patients; use the cross-validation's"
            )
    elif learned_from.intersection([container.uuid, *parents_of(container)]):
        notes.append(
            f"head {head.name!r} was trained on a container that this one was made from, or that "
            "was made from it or from the same: unless the same rows were marked test in both, "
            "these figures are of rows it has seen and say nothing about other patients"
        )
    return evaluate_predictions(
        probabilities,
        labels,
        data.groups,
        head.classes,
        decisions=decide(probabilities, head.thresholds, multilabel=head.multilabel),
        rows=data.rows,
        split="all" if whole else split,
        notes=notes,
        seed=seed,
    )
