"""Cross-validation: every row is judged by a head that has not seen its patient, or its source.

What is chosen, fitted and calibrated is so again inside each fold (nested selection: Varma and
Simon 2006, BMC Bioinformatics 7, 91; choosing by what is reported would flatter). Results are
collected in the order of the folds, whichever thread ends first.

The predictions of all folds are judged together. Where features say nothing that is a little
pessimistic, because a fold that happens to hold more of a class was predicted by a head that has
seen less of it (Parker, Guenter, Bedo 2007, BMC Bioinformatics 8, 326): of 100 sets of 200 rows of
noise the 95 % interval of the AUROC was above 0.5 in 3 and below it in 14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from engine.calibrated import Outcome, check_learned, fit_calibrated
from engine.calibration import decide
from engine.dataset import (
    Dataset,
    as_containers,
    learning_rows,
    load_rows,
    open_rows,
    originals_of,
    sides,
)
from engine.errors import SplitError
from engine.metrics import Evaluation, evaluate_predictions
from engine.plan import Options, Plan, count_folds, make_plan
from engine.rows import MEMORY_BYTES, Crew
from engine.splits import check_classes, grouped_folds, source_folds
from engine.work import Course, Work

if TYPE_CHECKING:
    from formats import Container

__all__ = ["Fold", "cross_validate", "make_folds", "run_folds"]

# A label that was not assessed, in containers as here.
_NOT_ASSESSED = -2
# Seconds between two looks at folds that run in other threads.
_LOOK_SECONDS = 0.2

# Called with the folds that are done, in parts of folds, and what is being done.
_Say = Callable[[float, str], None]


@dataclass(frozen=True)
class Fold:
    """A part that is judged by what was learned from other parts."""

    name: str
    train: NDArray[np.int64]
    judge: NDArray[np.int64]
    valid: NDArray[np.int64] | None
    #: Classes that can be learned without the judged part; None means all.
    known: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _Answers:
    """What a fold's head says of the judged rows."""

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    decisions: NDArray[Any]
    #: Classes that it does not know: of multi-label rows they are not judged.
    blind: NDArray[np.int64]
    notes: tuple[str, ...]
    calibrated: bool


def cross_validate(
    container: Container | Sequence[Container],
    *,
    folds: int | None = None,
    **options: Unpack[Options],
) -> Evaluation:
    """Predict every train or unmarked row by heads that have not seen its patient.

    Rows marked valid serve each fold for choosing, stopping and calibration and are not judged.
    Standardisation, choosing, stopping and calibration happen inside each fold. Augmented views are
    learned from and never judged.

    Parameters
    ----------
    container : Container or sequence of Container
        As in `fit_head`.
    folds : int, optional
        The same as ``cv``, of which the default is 5.
    **options
        As in `fit_head`.

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
    options = {"cv": 5, **options}
    if folds is not None:
        options["cv"] = folds
    plan = make_plan(**options)
    containers = as_containers(container)
    course = Course(count_folds(containers, plan), plan.progress)
    with Crew.of(plan.threads) as crew, open_rows(containers) as features:
        data = load_rows(
            containers,
            features,
            learning_rows,
            course.reading(crew),
            sample_weights=plan.sample_weights,
        )
        learned, valid = sides(data)
        check_learned(data, learned)
        return run_folds(data, learned, valid, plan, crew, course.say).evaluation


def make_folds(
    data: Dataset,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    cv: int | str,
    seed: int,
) -> tuple[list[Fold], list[str]]:
    """Divide what is learned from into folds, and say what they cannot judge.

    Parameters
    ----------
    data : Dataset
        All rows.
    learned : int64 (n,)
        Rows to divide, with their augmented views, which judge nothing.
    valid : int64 (m,) or None
        Rows marked valid, for every fold; of sources, those of the others.
    cv : int or str
        Number of folds, or `engine.plan.BY_SOURCE`.
    seed : int
        Of the folds.

    Returns
    -------
    folds : list of Fold
        In a fixed order.
    notes : list of str
        Which classes of which sources cannot be judged.

    Raises
    ------
    SplitError
        A class with fewer patients than folds, or no source that can be left out.
    """
    if isinstance(cv, str):
        return _folds_of_sources(data, learned, valid)
    originals = originals_of(data, learned)
    check_classes(
        data.labels[originals],
        data.groups[originals],
        data.classes,
        needed=cv,
        purpose=f"{cv} folds",
        where=data.where,
    )
    labels, groups = data.labels[learned], data.groups[learned]
    fold_of = grouped_folds(labels, groups, len(data.classes), folds=cv, seed=seed)
    folds = []
    for number in range(cv):
        train = learned[fold_of != number]
        taught = train[data.weights[train] > 0.0]
        check_classes(
            data.labels[taught],
            data.groups[taught],
            data.classes,
            needed=1,
            purpose=f"the training part of fold {number + 1}",
            where=data.where,
        )
        judge = originals_of(data, learned[fold_of == number])
        folds.append(Fold(f"fold {number + 1} of {cv}", train, judge, valid))
    return folds, []


def _folds_of_sources(
    data: Dataset, learned: NDArray[np.int64], valid: NDArray[np.int64] | None
) -> tuple[list[Fold], list[str]]:
    """Make a fold of every source; what only one source has, nobody else can learn."""
    sources = data.sources
    if sources is None:
        raise SplitError(
            f"{data.where}: has no source column, so no source can be left out; extract again with "
            "a manifest that has a column named source, or use --cv 5"
        )
    others = learned if valid is None else np.concatenate([learned, valid])
    if (sources[others] < 0).any():
        raise SplitError(
            f"{data.where}: a container has no source column; expected one in each; extract again "
            "with a manifest that has a column named source, or use --cv 5"
        )
    fold_of = source_folds(
        sources[learned], data.groups[learned], data.source_names, where=data.where
    )
    folds, notes = [], []
    present = np.unique(fold_of)
    for number, source in enumerate(present):
        name = data.source_names[source]
        train = learned[fold_of != source]
        judge = originals_of(data, learned[fold_of == source])
        known = _learnable(data, originals_of(data, train))
        missing = np.setdiff1d(np.arange(len(data.classes)), known)
        if len(missing):
            held = ", ".join(repr(data.classes[c]) for c in missing)
            side = "rows with and without" if data.multilabel else "rows of"
            notes.append(
                f"source {name!r}: without it there are no {side} {held} to learn from, so "
                f"{'it is' if len(missing) == 1 else 'they are'} not judged there"
            )
        if len(known) < (1 if data.multilabel else 2):
            notes.append(f"source {name!r} is not judged at all: the others have one class only")
            continue
        if not data.multilabel and len(missing):
            judge = judge[np.isin(data.labels[judge], known)]
        if len(judge) == 0:
            continue
        marked = None if valid is None else valid[sources[valid] != source]
        folds.append(
            Fold(
                f"source {number + 1} of {len(present)}",
                train,
                judge,
                marked if marked is not None and len(marked) else None,
                known if len(missing) else None,
            )
        )
    if not folds:
        raise SplitError(
            f"{data.where}: no source can be judged by the others, because each class comes from "
            "one source only: nothing tells the class from the source; add images of each class "
            "from several sources, or use --cv 5 and do not trust its figures"
        )
    return folds, notes


def _learnable(data: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the classes that rows can teach: those they have, or have and have not."""
    labels = data.labels[rows[data.weights[rows] > 0.0]]
    if data.multilabel:
        taught = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
        return np.flatnonzero(taught)
    return np.unique(labels).astype(np.int64)


def run_folds(
    data: Dataset,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    plan: Plan,
    crew: Crew,
    say: _Say,
    reduce: Callable[[Fold, int], Fold] | None = None,
) -> Outcome:
    """Predict rows of `learned` by heads that have not seen their patient, or their source.

    Parameters
    ----------
    data, learned, valid
        As in `make_folds`.
    plan : Plan
        With `cv`.
    crew : Crew
        Who works: several folds at a time.
    say : callable
        Called with the folds that are done, in parts of folds, and what is being done.
    reduce : callable, optional
        Called with each fold and the seed: the fold that learns from fewer rows.

    Returns
    -------
    Outcome
        Of all folds together; of repeats the means.
    """
    cv, base = plan.cv, plan.settings.seed
    assert cv is not None
    tasks: list[tuple[Fold, Plan]] = []
    sizes, notes = [], []
    for seed in range(base, base + plan.repeats):
        folds, said = make_folds(data, learned, valid, cv, seed)
        if reduce is not None:
            folds = [reduce(fold, seed) for fold in folds]
        own = replace(plan, settings=replace(plan.settings, seed=seed))
        tasks += [(fold, own) for fold in folds]
        sizes.append(len(folds))
        notes += said
    answers = _answer_all(data, tasks, crew, say)
    by_source = isinstance(cv, str)
    split = "leave-one-source-out" if by_source else f"{cv}-fold cross-validation"
    ends = np.cumsum(sizes)
    results = [
        _pool(data, answers[end - size : end], split, notes, plan)
        for size, end in zip(sizes, ends, strict=True)
    ]
    if by_source:
        protocol = (
            "leave-one-source-out: every row is predicted by a head that has not seen its source; "
            "everything chosen and fitted inside the folds; out-of-fold predictions pooled"
        )
    else:
        protocol = (
            f"{cv}-fold cross-validation, stratified and grouped by patient; everything chosen and "
            "fitted inside the folds; out-of-fold predictions pooled"
        )
    evaluation = _mean_evaluation([each for each, _ in results])
    if plan.repeats > 1:
        protocol += (
            f"; repeated with {plan.repeats} seeds: figures and the ends of their intervals are "
            "means over the repeats, curves and tables are those of the first"
        )
    plain = sum(not each.calibrated for each in answers)
    if plain and plan.calibration != "none":
        protocol += f"; probabilities not calibrated in {plain} of {len(answers)} folds"
    return Outcome(evaluation, results[0][1], protocol)


def _answer_all(
    data: Dataset, folds: Sequence[tuple[Fold, Plan]], crew: Crew, say: _Say
) -> list[_Answers]:
    """Train without each fold, several at a time; results come in the order of the folds."""
    n = len(folds)
    workers = min(n, crew.threads)
    # Folds are what threads share; where there are more threads, folds share them for their rows.
    own = crew if crew.threads > workers else crew.alone()
    shares, texts = np.zeros(n), [""] * n

    def run(number: int) -> _Answers:
        fold, plan = folds[number]

        def report(share: float, text: str) -> None:
            shares[number] = share
            texts[number] = ": ".join(filter(None, (fold.name, text)))

        work = Work(own, MEMORY_BYTES // 2 // workers, report)
        answers = _answer(data, fold, plan, work)
        report(1.0, "done")
        return answers

    with ThreadPoolExecutor(workers, thread_name_prefix="hilum-fold") as pool:
        futures = [pool.submit(run, number) for number in range(n)]
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
                last = f"{round(float((shares == 1).sum()))} of {n} folds done"
                say(float(shares.sum()), running[0] if running else last)
        except BaseException:
            # Ctrl-C must not wait for folds to end, whether they have begun or not.
            crew.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _answer(data: Dataset, fold: Fold, plan: Plan, work: Work) -> _Answers:
    """Train without a fold, and predict it."""
    k = len(data.classes)
    known = np.arange(k) if fold.known is None else fold.known
    own = data
    if fold.known is not None:
        if data.multilabel:
            labels = np.ascontiguousarray(data.labels[:, known])
        else:
            # Rows of the other classes are neither learned from nor judged here.
            labels = np.searchsorted(known, data.labels).clip(max=len(known) - 1)
        own = replace(data, labels=labels, classes=tuple(data.classes[c] for c in known))
    valid = fold.valid
    if valid is not None and not data.multilabel:
        valid = valid[np.isin(data.labels[valid], known)]
    fit = fit_calibrated(own, fold.train, valid, plan, work)
    logits = fit.fitted.logits(data.features, fold.judge, work.crew)
    found = fit.fitted.calibration.apply(logits, multilabel=data.multilabel)
    decided = decide(found, fit.fitted.thresholds, multilabel=data.multilabel)
    if fold.known is not None:
        probabilities = np.zeros((len(found), k))
        probabilities[:, known] = found
        if data.multilabel:
            decisions = np.zeros((len(found), k), np.bool_)
            decisions[:, known] = decided
        else:
            decisions = known[decided]
        found, decided = probabilities, decisions
    return _Answers(
        fold.judge,
        found,
        decided,
        np.setdiff1d(np.arange(k), known),
        tuple(f"inside a fold: {note}" for note in fit.fitted.notes),
        fit.fitted.calibration.method != "none",
    )


def _pool(
    data: Dataset, answers: Sequence[_Answers], split: str, notes: Sequence[str], plan: Plan
) -> tuple[Evaluation, NDArray[np.int64]]:
    """Judge the answers of all folds together."""
    rows = np.concatenate([each.rows for each in answers])
    labels = data.labels[rows].copy()
    start = 0
    for each in answers:
        if data.multilabel and len(each.blind):
            labels[start : start + len(each.rows), each.blind] = _NOT_ASSESSED
        start += len(each.rows)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    evaluation = evaluate_predictions(
        np.concatenate([each.probabilities for each in answers])[order],
        labels[order],
        data.groups[rows],
        data.classes,
        decisions=np.concatenate([each.decisions for each in answers])[order],
        rows=data.rows[rows],
        split=split,
        notes=list(dict.fromkeys([*data.notes, *notes, *(n for a in answers for n in a.notes)])),
        seed=plan.settings.seed,
        prevalence=plan.prevalence,
    )
    return evaluation, rows


def _mean_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the mean of figures of the same rows, predicted again with other seeds.

    Of intervals the ends are averaged. All were drawn with the same patients (the same seed of the
    bootstrap), and their figures rise and fall together: for such variables the quantile of a mean
    is the mean of the quantiles (Dhaene et al. 2002, Insurance: Mathematics and Economics 31, 3,
    section 5); where they do not quite, the mean of the ends is as a rule the wider interval.
    Counts and predictions are those of the first.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    kept = {"n_rows", "n_groups", "classes", "confusion", "class_counts", "split", "notes"}
    changes = {}
    for each in fields(Evaluation):
        values = [getattr(evaluation, each.name) for evaluation in evaluations]
        if each.name not in kept and not isinstance(values[0], np.ndarray):
            changes[each.name] = _mean_of(values)
    notes = dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes)
    return replace(first, **changes, notes=tuple(notes))


def _mean_of(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of numbers in dicts and lists; of None and texts the first."""
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, dict):
        return {
            key: _mean_of([value[key] for value in values])
            for key in first
            if all(key in value for value in values)
        }
    if isinstance(first, (list, tuple)):
        return type(first)(_mean_of(column) for column in zip(*values, strict=True))
    if isinstance(first, float):
        return float(np.mean(values))
    return first
