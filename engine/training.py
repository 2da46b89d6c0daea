"""From containers to a head: choosing, fitting, calibration, cross-validation, evaluation.

The loss is the mean cross entropy plus ``l2 / 2 * |W|^2`` on standardised features. Unless
``class_weights`` is None it is weighted so that every class counts the same, in the fit as in the
temperature: probabilities are then as if every class were equally frequent.

What the user leaves open (the penalty, with ``"auto"`` also the kind) is chosen by rows the weights
have not seen, and so are calibration and thresholds: by inner folds of the training rows, or by the
rows marked valid, which then end the fit too (see `engine.selection`). The weights are then fitted
on all training rows.

A cross-validation does all of this again inside each of its folds (nested selection: Varma and
Simon 2006, BMC Bioinformatics 7, 91; choosing by what is reported would flatter). The final head
does it once more on all rows that are not marked, so it is the same with and without a
cross-validation. The floors and the learning curve take the same way, on other columns and on
fewer rows.

Features that do not fit into `engine.rows.MEMORY_BYTES` are read from the containers in every pass
and never held. Nothing here depends on that, or on the number of threads: sums are made of the
same parts (see `engine.rows`), by kernels with a fixed order of additions, and results are
collected in the order of the folds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from engine.calibration import choose_thresholds, fit_calibration
from engine.dataset import (
    Dataset,
    age_range,
    as_containers,
    check_finite,
    check_marks,
    chosen_blocks,
    chosen_spans,
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
from engine.fitting import Fitted, Settings
from engine.floors import RowColumn, metadata_matrix, row_columns
from engine.heads import Head
from engine.metrics import Evaluation, decide, evaluate_predictions
from engine.ood import OodModel, fit_ood
from engine.pooling import FLOOR_TAPS, Block
from engine.rows import MEMORY_BYTES, Crew, Feed, Rows
from engine.selection import KINDS, Selection, fit_selected, select_settings
from engine.splits import check_classes, class_groups, grouped_folds, nested_shares, source_folds
from engine.work import Course, Progress, Work
from formats import SPLITS

if TYPE_CHECKING:
    from formats import Container

__all__ = [
    "BY_SOURCE",
    "CALIBRATIONS",
    "FLOORS",
    "Options",
    "Training",
    "cross_validate",
    "cross_validate_columns",
    "evaluate_head",
    "fit_head",
    "learning_curve",
    "train_head",
]

#: The value of ``cv`` that makes a fold of every source.
BY_SOURCE = "leave-one-source-out"
#: How probabilities can be calibrated; "auto" is one of the others.
CALIBRATIONS = ("temperature", "isotonic", "auto", "none")
#: What `cross_validate_columns` knows by name.
FLOORS = (*FLOOR_TAPS, "metadata")
#: Parts of each fold's training rows in a learning curve.
SHARES = (0.125, 0.25, 0.5, 1.0)

# Rows that out-of-distribution statistics are fitted to, and what a copy of them may take; the fit
# was measured to take half as much again.
_OOD_ROWS, _OOD_BYTES = 3000, 32 << 20
# Fewer say nothing.
_MIN_OOD_ROWS = 20
# A label that was not assessed, in containers as here.
_NOT_ASSESSED = -2
# Seconds between two looks at folds that run in other threads.
_LOOK_SECONDS = 0.2


# Called with the folds that are done, in parts of folds, and what is being done.
_Say = Callable[[float, str], None]


class Options(TypedDict, total=False):
    """What every way to train takes; `fit_head` explains them."""

    kind: str
    l2: float | None
    hidden: int
    dropout: float | None
    class_weights: str | None
    seed: int
    cv: int | str | None
    repeats: int
    calibration: str
    sensitivity: float | None
    specificity: float | None
    sample_weights: npt.ArrayLike | None
    threads: int | None
    progress: Progress | None


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
    data: dict[str, Any]
    seconds: dict[str, float]


# --- One fit -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What a user chooses."""

    settings: Settings
    class_weights: str | None
    cv: int | str | None
    repeats: int
    calibration: str
    sensitivity: float | None
    specificity: float | None
    sample_weights: npt.ArrayLike | None
    threads: int | None
    progress: Progress | None


@dataclass(frozen=True)
class _Fit:
    """A calibrated fit, and what chose and calibrated it."""

    fitted: Fitted
    selection: Selection


def _calibrate(fitted: Fitted, selection: Selection, data: Dataset, plan: _Plan) -> None:
    """Set calibration and thresholds from predictions the weights have not learned from."""
    logits, labels = selection.logits, data.labels[selection.rows]
    fitted.calibration = fit_calibration(
        logits,
        labels,
        plan.calibration,
        balanced=plan.settings.balanced,
        groups=data.groups[selection.rows],
        seed=plan.settings.seed,
    )
    fitted.thresholds = choose_thresholds(
        fitted.calibration.apply(logits, multilabel=data.multilabel),
        labels,
        sensitivity=plan.sensitivity,
        specificity=plan.specificity,
    )


def _fit_calibrated(
    data: Dataset,
    train: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    plan: _Plan,
    work: Work,
) -> _Fit:
    """Choose, fit on all train rows, and calibrate by what chose."""
    selection = select_settings(data, train, plan.settings, work.part(0.0, 0.85, ""), valid=valid)
    fitted = fit_selected(data, train, selection, work.part(0.85, 1.0, "fit"))
    if selection.enough:
        _calibrate(fitted, selection, data, plan)
    return _Fit(fitted, selection)


# --- Cross-validation --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fold:
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


@dataclass(frozen=True)
class _Outcome:
    """Figures, and the rows of the data set they are of."""

    evaluation: Evaluation
    rows: NDArray[np.int64]
    protocol: str


def _check_folds(cv: int | str | None) -> None:
    if isinstance(cv, str):
        if cv != BY_SOURCE:
            raise SplitError(f"--cv {cv}: expected a number of folds, or {BY_SOURCE}")
    elif cv is not None and cv < 2:
        raise SplitError(f"--cv {cv}: expected at least 2 folds; usual are 5 or 10")


def _make_folds(
    data: Dataset,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    cv: int | str,
    seed: int,
) -> tuple[list[_Fold], list[str]]:
    """Divide what is learned from into folds, and say what they cannot judge."""
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
        check_classes(
            data.labels[train],
            data.groups[train],
            data.classes,
            needed=1,
            purpose=f"the training part of fold {number + 1}",
            where=data.where,
        )
        judge = originals_of(data, learned[fold_of == number])
        folds.append(_Fold(f"fold {number + 1} of {cv}", train, judge, valid))
    return folds, []


def _folds_of_sources(
    data: Dataset, learned: NDArray[np.int64], valid: NDArray[np.int64] | None
) -> tuple[list[_Fold], list[str]]:
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
            _Fold(
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
    labels = data.labels[rows]
    if data.multilabel:
        taught = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
        return np.flatnonzero(taught)
    return np.unique(labels).astype(np.int64)


def _answer(data: Dataset, fold: _Fold, plan: _Plan, work: Work) -> _Answers:
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
    fit = _fit_calibrated(own, fold.train, valid, plan, work)
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
        tuple(fit.fitted.notes),
        fit.fitted.calibration.method != "none",
    )


def _answer_all(
    data: Dataset, folds: Sequence[tuple[_Fold, _Plan]], crew: Crew, say: _Say
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


def _pool(
    data: Dataset, answers: Sequence[_Answers], split: str, notes: Sequence[str], seed: int
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
        seed=seed,
    )
    return evaluation, rows


def _cross_validate(
    data: Dataset,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    plan: _Plan,
    crew: Crew,
    say: _Say,
    reduce: Callable[[_Fold, int], _Fold] | None = None,
) -> _Outcome:
    """Predict rows of `learned` by heads that have not seen their patient, or their source.

    With `reduce`, called with the fold and the seed, a fold learns from fewer rows.
    """
    cv, base = plan.cv, plan.settings.seed
    assert cv is not None
    tasks: list[tuple[_Fold, _Plan]] = []
    sizes, notes = [], []
    for seed in range(base, base + plan.repeats):
        folds, said = _make_folds(data, learned, valid, cv, seed)
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
        _pool(data, answers[end - size : end], split, notes, base)
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
    return _Outcome(evaluation, results[0][1], protocol)


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


# --- What a user asks for ----------------------------------------------------------------------


def _plan(
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
    sample_weights: npt.ArrayLike | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> _Plan:
    """Check what a user chose."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if class_weights not in ("balanced", None):
        raise ValueError(f"class_weights is {class_weights!r}; expected 'balanced' or None")
    if l2 is not None and not 0.0 <= l2 < math.inf:
        raise ValueError(f"l2 is {l2}; expected a number of at least 0")
    if hidden < 1:
        raise ValueError(f"hidden is {hidden}; expected at least 1 unit")
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; expected at least 0 and less than 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    if calibration not in CALIBRATIONS:
        raise ValueError(
            f"calibration is {calibration!r}; expected one of {', '.join(CALIBRATIONS)}"
        )
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity)):
        if value is not None and not 0.0 < value < 1.0:
            raise ValueError(f"{name} is {value}; expected a number between 0 and 1")
    if sensitivity is not None and specificity is not None:
        raise ValueError("sensitivity and specificity are both given; expected one of them")
    _check_folds(cv)
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1")
    if repeats > 1 and cv is None:
        raise ValueError(f"repeats is {repeats} without cv; expected folds to repeat, such as 5")
    settings = Settings(
        kind=kind,
        l2=None if l2 is None else float(l2),
        hidden=int(hidden),
        balanced=class_weights == "balanced",
        seed=int(seed),
        dropout=None if dropout is None else float(dropout),
    )
    return _Plan(
        settings,
        class_weights,
        cv,
        int(repeats),
        calibration,
        sensitivity,
        specificity,
        sample_weights,
        threads,
        progress,
    )


def _software() -> str:
    try:
        return metadata.version("hilum")
    except metadata.PackageNotFoundError:
        return "unknown"


def _n_folds(containers: Sequence[Container], plan: _Plan) -> int:
    """Return how many folds there will be, at most: progress is told of before rows are read."""
    if plan.cv is None:
        return 0
    if isinstance(plan.cv, int):
        return plan.cv * plan.repeats
    names = {name for container in containers for name in container.sources_names}
    return max(1, len(names)) * plan.repeats


def _open_rows(containers: Sequence[Container], floor: str | None = None) -> Rows:
    return Rows(containers, [chosen_spans(container, floor) for container in containers])


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
        What each row counts in the fit, at least 0: of all rows of all containers, one container
        after another.
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
    plan = _plan(**options)
    if target != "label":
        raise ValueError(f"target is {target!r}; only 'label' can be learned so far")
    if not 0.0 < refusal_rate <= 0.5:
        raise ValueError(f"refusal_rate is {refusal_rate}; expected above 0 and up to 0.5")
    containers = as_containers(container)
    course = Course(_n_folds(containers, plan) + 1, plan.progress)
    clock = _Clock()
    with Crew.of(plan.threads) as crew, _open_rows(containers) as features:
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


def _check_learned(data: Dataset, learned: NDArray[np.int64]) -> None:
    """Refuse classes without patients to learn from; rows without weight teach nothing."""
    originals = originals_of(data, learned)
    counted = originals[data.weights[originals] > 0.0]
    check_classes(
        data.labels[counted],
        data.groups[counted],
        data.classes,
        needed=2,
        purpose="training",
        where=data.where,
    )


def _train(
    data: Dataset,
    plan: _Plan,
    refusal_rate: float,
    name: str | None,
    crew: Crew,
    course: Course,
    clock: _Clock,
) -> Training:
    """Train a head of rows that were found sound."""
    containers = data.containers
    learned, valid = sides(data)
    _check_learned(data, learned)
    outcome = None
    if plan.cv is not None:
        outcome = _cross_validate(data, learned, valid, plan, crew, course.say)
        clock.lap("folds")
    work = course.work(crew, _n_folds(containers, plan)).part(0.0, 1.0, "head")
    fit = _fit_calibrated(data, learned, valid, plan, work)
    fitted, selection = fit.fitted, fit.selection
    if outcome is None:
        work.report(1.0, "figures and their intervals")
        outcome = _judge_fit(data, learned, valid, fit, plan, crew)
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
        "prevalence": "equal" if plan.settings.balanced else "training",
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
    shown = ("title", "attribution", "licence", "terms")
    return Training(
        head=head,
        evaluation=outcome.evaluation,
        protocol=outcome.protocol,
        trials=tuple(selection.trials),
        columns=row_columns(data, outcome.rows),
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


def _judge_fit(
    data: Dataset,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    fit: _Fit,
    plan: _Plan,
    crew: Crew,
) -> _Outcome:
    """Judge a fit by the rows that chose and calibrated it, or by its own if there are none."""
    fitted, selection = fit.fitted, fit.selection
    if len(selection.rows) == 0:
        split = "train"
        protocol = "the training rows themselves: says nothing about other patients; use --cv"
        rows = originals_of(data, learned)
        logits = fitted.logits(data.features, rows, crew)
    else:
        split = "held out" if valid is None else "valid"
        order = np.argsort(selection.rows, kind="stable")
        rows, logits = selection.rows[order], selection.logits[order]
        protocol = selection.protocol
        if selection.enough:
            ended = (
                "they also ended the fit, chose the penalty and"
                if valid is not None
                else ("they also chose the penalty and")
            )
            protocol += f"; {ended} set the calibration, so slightly too good"
        elif valid is None:
            protocol += "; probabilities are not calibrated"
    probabilities = fitted.calibration.apply(logits, multilabel=data.multilabel)
    evaluation = evaluate_predictions(
        probabilities,
        data.labels[rows],
        data.groups[rows],
        data.classes,
        decisions=decide(probabilities, fitted.thresholds, multilabel=data.multilabel),
        rows=data.rows[rows],
        split=split,
        notes=list(dict.fromkeys([*data.notes, *fitted.notes])),
        seed=plan.settings.seed,
    )
    return _Outcome(evaluation, rows, protocol)


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
    plan = _plan(**options)
    containers = as_containers(container)
    course = Course(_n_folds(containers, plan), plan.progress)
    with Crew.of(plan.threads) as crew, _open_rows(containers) as features:
        data = load_rows(
            containers,
            features,
            learning_rows,
            course.reading(crew),
            sample_weights=plan.sample_weights,
        )
        learned, valid = sides(data)
        return _cross_validate(data, learned, valid, plan, crew, course.say).evaluation


def cross_validate_columns(
    container: Container | Sequence[Container],
    columns: str | npt.ArrayLike,
    *,
    head: Head | None = None,
    split: str | None = None,
    **options: Unpack[Options],
) -> Evaluation:
    """Judge other columns than a head's by the same protocol: what a floor reaches.

    With the options of a training the folds, the rows and their order are those of the training's
    evaluation, so that `engine.metrics.compare` can pair them. With `head` they are those of
    `evaluate_head`: the data the head learned from are not at hand, so the floor is cross-validated
    within the rows that judge the head, which its notes say.

    Parameters
    ----------
    container : Container or sequence of Container
        As in `fit_head`.
    columns : {"border", "pixels", "metadata"} or float32 (N, m)
        Stored floor blocks; what is known of source, sex, age and projection; or given columns, of
        all rows of all containers one after another.
    head : Head, optional
        Judge the rows, and order the classes, as `evaluate_head` does.
    split : str, optional
        With `head`, as in `evaluate_head`.
    **options
        As in `fit_head`; with `head`, ``cv`` is 5 if not given.

    Returns
    -------
    Evaluation
        As of `cross_validate`, or of the rows that chose and calibrated without ``cv``.

    Raises
    ------
    SplitError
        As in `fit_head`; also where the floor was not stored, or nothing is known of the rows.
    MismatchError, Corrupt, ValueError
        As in `fit_head`.
    """
    if isinstance(columns, str) and columns not in FLOORS:
        raise ValueError(f"columns is {columns!r}; expected one of {', '.join(FLOORS)}, or numbers")
    if head is not None:
        options = {"cv": 5, **options}
    plan = _plan(**options)
    containers = as_containers(container)
    course = Course(_n_folds(containers, plan) + 1, plan.progress)
    choose: Callable[[Container], NDArray[np.int64]] = learning_rows
    if head is not None:
        if len(containers) > 1:
            raise ValueError("several containers with a head; expected the one that judges it")
        choose, _ = _judging_rows(containers[0], split)
    with (
        Crew.of(plan.threads) as crew,
        _open_rows(containers) as features,
        _open_columns(containers, columns) as others,
    ):
        data = load_rows(
            containers,
            features,
            choose,
            course.reading(crew),
            sample_weights=plan.sample_weights,
        )
        # Only the rows were needed; memory is for the other columns.
        features.X = None
        data = _with_columns(data, columns, others, course.reading(crew))
        learned, valid = sides(data)
        if head is not None:
            data = _as_head(data, head)
            learned, valid = np.arange(len(data.rows)), None
        _check_learned(data, learned)
        if plan.cv is not None:
            outcome = _cross_validate(data, learned, valid, plan, crew, course.say)
        else:
            fit = _fit_calibrated(data, learned, valid, plan, course.work(crew, 0))
            outcome = _judge_fit(data, learned, valid, fit, plan, crew)
        course.say(math.inf, "floor")
        return outcome.evaluation


def _open_columns(containers: Sequence[Container], columns: str | npt.ArrayLike) -> Rows:
    if isinstance(columns, str) and columns in FLOOR_TAPS:
        return _open_rows(containers, columns)
    return Rows(())


def _with_columns(data: Dataset, columns: str | npt.ArrayLike, others: Rows, work: Work) -> Dataset:
    """Put other columns in the place of the features."""
    if isinstance(columns, str) and columns in FLOOR_TAPS:
        others.choose(data.rows, data.origin, work.crew)
        check_finite(others, data.containers, data.rows, data.origin, work)
        return replace(data, features=others, blocks=chosen_blocks(data.containers[0], columns))
    if isinstance(columns, str):
        X, _ = metadata_matrix(data)
    else:
        n_rows = [container.n_rows for container in data.containers]
        given = np.asarray(columns, np.float32)
        if given.ndim != 2 or len(given) != sum(n_rows) or not given.shape[1]:
            raise ValueError(
                f"columns is of shape {given.shape}; expected ({sum(n_rows)}, m): a line for each "
                "row of the containers, one container after another, withdrawn rows too"
            )
        starts = np.cumsum([0, *n_rows])
        X = np.ascontiguousarray(given[starts[data.origin] + data.rows])
        if not np.isfinite(X).all():
            raise ValueError("columns has numbers that are NaN or infinite; expected finite ones")
    block = Block("columns", "given", 0, X.shape[1])
    return replace(data, features=Rows.of_matrix(X), blocks=(block,))


def _as_head(data: Dataset, head: Head) -> Dataset:
    """Put the classes into the head's order, and say what the figures are of."""
    _check_same_classes(head, data.containers[0])
    order = [data.classes.index(class_name) for class_name in head.classes]
    labels = data.labels[:, order] if data.multilabel else np.argsort(order)[data.labels]
    note = (
        "the rows the head learned from are not at hand: this floor was cross-validated within the "
        "rows that judge the head"
    )
    return replace(
        data,
        labels=np.ascontiguousarray(labels),
        classes=head.classes,
        notes=(*data.notes, note),
    )


def learning_curve(
    container: Container | Sequence[Container],
    *,
    shares: Sequence[float] = SHARES,
    evaluation: Evaluation | None = None,
    **options: Unpack[Options],
) -> tuple[dict[str, Any], ...]:
    """Measure what more patients would bring: train on parts of each fold's training rows.

    Every fold judges the same rows, by heads that have learned from an eighth, a quarter, a half
    and all of the others' patients; the smaller parts are within the larger, and stratified.

    Parameters
    ----------
    container : Container or sequence of Container
        As in `fit_head`.
    shares : sequence of float
        Parts, above 0 and up to 1.
    evaluation : Evaluation, optional
        Of the training with the same options: what the share 1 gives, which is then not done again.
    **options
        As in `fit_head`; ``cv`` is 5 if not given.

    Returns
    -------
    tuple of dict
        Ascending: ``share``; ``n_groups`` and ``n_rows``, of the training parts, means over the
        folds; ``auroc_macro``, ``accuracy`` and their ``ci95``. Shares that leave a class with
        fewer than two patients in a fold are left out.

    Raises
    ------
    SplitError, MismatchError, Corrupt, ValueError
        As in `fit_head`.
    """
    wanted = sorted(set(map(float, shares)))
    if not wanted or not all(0.0 < share <= 1.0 for share in wanted):
        raise ValueError(f"shares are {list(shares)}; expected numbers above 0 and up to 1")
    options = {**options, "cv": options.get("cv") or 5}
    plan = _plan(**options)
    containers = as_containers(container)
    n_folds = _n_folds(containers, plan)
    course = Course(n_folds * len(wanted), plan.progress)
    curve = []
    with Crew.of(plan.threads) as crew, _open_rows(containers) as features:
        data = load_rows(
            containers,
            features,
            learning_rows,
            course.reading(crew),
            sample_weights=plan.sample_weights,
        )
        learned, valid = sides(data)
        _check_learned(data, learned)
        assert plan.cv is not None
        folds, _ = _make_folds(data, learned, valid, plan.cv, plan.settings.seed)
        for number, share in enumerate(wanted):

            def reduce(fold: _Fold, seed: int, share: float = share) -> _Fold:
                kept = nested_shares(
                    data.labels[fold.train],
                    data.groups[fold.train],
                    len(data.classes),
                    shares=[each for each in wanted if each >= share],
                    seed=seed,
                )
                return replace(fold, train=fold.train[kept])

            def say(
                steps: float, text: str, begun: int = number * n_folds, share: float = share
            ) -> None:
                course.say(begun + steps, f"{share:g} of the patients, {text}")

            parts = [reduce(fold, plan.settings.seed) for fold in folds]
            if not all(
                _poorest(data, small) >= min(2, _poorest(data, whole))
                for small, whole in zip(parts, folds, strict=True)
            ):
                continue
            found = evaluation if share == 1.0 else None
            if found is None:
                found = _cross_validate(data, learned, valid, plan, crew, say, reduce).evaluation
            keys = ("auroc_macro", "accuracy")
            curve.append(
                {
                    "share": share,
                    "n_groups": round(
                        float(np.mean([len(np.unique(data.groups[part.train])) for part in parts]))
                    ),
                    "n_rows": round(
                        float(np.mean([len(originals_of(data, part.train)) for part in parts]))
                    ),
                    **{key: getattr(found, key) for key in keys},
                    "ci95": {key: found.ci95[key] for key in keys if key in found.ci95},
                }
            )
        course.say(math.inf, "learning curve")
    return tuple(curve)


def _poorest(data: Dataset, fold: _Fold) -> int:
    """Return the patients of the class that has fewest, of those the fold can learn."""
    rows = originals_of(data, fold.train)
    labels, groups, k = data.labels[rows], data.groups[rows], len(data.classes)
    counts = class_groups(labels, groups, k)
    if data.multilabel:
        counts = np.minimum(counts, class_groups((labels == 0).astype(np.int8), groups, k))
    return int((counts if fold.known is None else counts[fold.known]).min())


def _judging_rows(
    container: Container, split: str | None
) -> tuple[Callable[[Container], NDArray[np.int64]], str]:
    """Return what chooses the rows that judge a head, and what they are called."""
    split = "test" if split is None else split
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}, all")
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
    return choose, "all" if whole else split


def _check_same_classes(head: Head, container: Container) -> None:
    if sorted(head.classes) != sorted(container.classes) or head.multilabel != container.multilabel:
        raise MismatchError(
            f"head {head.name!r} knows {head.task} {', '.join(head.classes)}; {container.path} has "
            f"{'multilabel' if container.multilabel else 'softmax'} "
            f"{', '.join(container.classes)}; expected the same classes; change the labels of the "
            "manifest and extract again"
        )


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
    _check_same_classes(head, container)
    choose, name = _judging_rows(container, split)
    blocks = chosen_blocks(container)
    course = Course(1, progress)
    with Crew.of(threads) as crew, _open_rows((container,)) as features:
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
        if name != "test":
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
        split=name,
        notes=notes,
        seed=seed,
    )
