"""How good a trained head is on rows of another container."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.calibration import decide
from engine.dataset import check_marks, chosen_blocks, load_rows, open_rows, parents_of, shorten
from engine.errors import MismatchError, SplitError
from engine.heads import Head
from engine.jit import load as load_kernels
from engine.metrics import Evaluation, evaluate_predictions
from engine.rows import Crew, Feed
from engine.work import Course, Progress
from formats import SPLITS

if TYPE_CHECKING:
    from formats import Container

__all__ = ["check_same_classes", "evaluate_head", "judging_rows"]


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
    check_same_classes(head, container)
    load_kernels()  # many rows: see engine.jit
    choose, name = judging_rows(container, split)
    blocks = chosen_blocks(container)
    course = Course(1, progress)
    with Crew.of(threads) as crew, open_rows((container,)) as features:
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
        prevalence=str(head.training.get("prevalence", "training")),
    )


def judging_rows(
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


def check_same_classes(head: Head, container: Container) -> None:
    """Refuse a container whose classes are not those of the head; their order may differ."""
    if sorted(head.classes) != sorted(container.classes) or head.multilabel != container.multilabel:
        raise MismatchError(
            f"head {head.name!r} knows {head.task} {', '.join(head.classes)}; {container.path} has "
            f"{'multilabel' if container.multilabel else 'softmax'} "
            f"{', '.join(container.classes)}; expected the same classes; change the labels of the "
            "manifest and extract again"
        )
