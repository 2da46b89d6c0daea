"""What the protocol of a training finds on other columns, or on fewer patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from engine.calibrated import check_learned, fit_calibrated, judge_fit
from engine.dataset import (
    Dataset,
    as_containers,
    check_finite,
    chosen_blocks,
    learning_rows,
    load_rows,
    open_rows,
    originals_of,
    sides,
)
from engine.floors import metadata_matrix
from engine.heads import Head
from engine.judging import check_same_classes, judging_rows
from engine.metrics import Evaluation
from engine.plan import Options, count_folds, make_plan
from engine.pooling import FLOOR_TAPS, Block
from engine.rows import Crew, Rows
from engine.splits import class_groups, nested_shares
from engine.validation import Fold, make_folds, run_folds
from engine.work import Course, Work

if TYPE_CHECKING:
    from formats import Container

__all__ = ["FLOORS", "SHARES", "cross_validate_columns", "learning_curve"]

#: What `cross_validate_columns` knows by name.
FLOORS = (*FLOOR_TAPS, "metadata")
#: Parts of each fold's training rows in a learning curve.
SHARES = (0.125, 0.25, 0.5, 1.0)


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
    plan = make_plan(**options)
    containers = as_containers(container)
    course = Course(count_folds(containers, plan) + 1, plan.progress)
    choose: Callable[[Container], NDArray[np.int64]] = learning_rows
    if head is not None:
        if len(containers) > 1:
            raise ValueError("several containers with a head; expected the one that judges it")
        choose, _ = judging_rows(containers[0], split)
    with (
        Crew.of(plan.threads) as crew,
        open_rows(containers) as features,
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
        check_learned(data, learned)
        if plan.cv is not None:
            outcome = run_folds(data, learned, valid, plan, crew, course.say)
        else:
            fit = fit_calibrated(data, learned, valid, plan, course.work(crew, 0))
            outcome = judge_fit(data, learned, valid, fit, plan, crew)
        course.say(math.inf, "floor")
        return outcome.evaluation


def _open_columns(containers: Sequence[Container], columns: str | npt.ArrayLike) -> Rows:
    if isinstance(columns, str) and columns in FLOOR_TAPS:
        return open_rows(containers, columns)
    return Rows(())


def _with_columns(data: Dataset, columns: str | npt.ArrayLike, others: Rows, work: Work) -> Dataset:
    """Put other columns in the place of the features."""
    if isinstance(columns, str) and columns in FLOOR_TAPS:
        others.choose(data.rows, data.origin, work.crew)
        check_finite(others, data.containers, data.rows, data.origin, work)
        blocks = chosen_blocks(data.containers[0], columns)
        return replace(data, features=others, blocks=blocks, head_dim=data.width)
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
    return replace(data, features=Rows.of_matrix(X), blocks=(block,), head_dim=data.width)


def _as_head(data: Dataset, head: Head) -> Dataset:
    """Put the classes into the head's order, and say what the figures are of."""
    check_same_classes(head, data.containers[0])
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
    plan = make_plan(**options)
    containers = as_containers(container)
    n_folds = count_folds(containers, plan)
    course = Course(n_folds * len(wanted), plan.progress)
    curve = []
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
        assert plan.cv is not None
        folds, _ = make_folds(data, learned, valid, plan.cv, plan.settings.seed)
        for number, share in enumerate(wanted):

            def reduce(fold: Fold, seed: int, share: float = share) -> Fold:
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
                found = run_folds(data, learned, valid, plan, crew, say, reduce).evaluation
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


def _poorest(data: Dataset, fold: Fold) -> int:
    """Return the patients of the class that has fewest, of those the fold can learn."""
    rows = originals_of(data, fold.train)
    labels, groups, k = data.labels[rows], data.groups[rows], len(data.classes)
    counts = class_groups(labels, groups, k)
    if data.multilabel:
        counts = np.minimum(counts, class_groups((labels == 0).astype(np.int8), groups, k))
    return int((counts if fold.known is None else counts[fold.known]).min())
