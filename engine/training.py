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

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.calibration import (
    choose_thresholds,
    entropy_weights,
    fit_temperature,
    mean_entropy,
)
from engine.errors import MismatchError, SplitError
from engine.heads import KINDS, Head, network_logits, to_probabilities
from engine.metrics import Evaluation, decide, evaluate_predictions
from engine.optimisation import minimise
from engine.pooling import blocks_from_notes
from engine.rows import MEMORY_BYTES, Crew, Feed, Rows, piece_rows
from engine.splits import (
    check_classes,
    check_groups_apart,
    class_groups,
    grouped_folds,
    grouped_holdout,
)
from formats import SPLITS

if TYPE_CHECKING:
    from formats import Container

__all__ = ["DEFAULT_L2", "cross_validate", "evaluate_head", "fit_head"]

#: Penalty of linear heads on standardised features.
DEFAULT_L2 = 0.3
#: Penalty of heads with a hidden layer, which early stopping restrains as well.
DEFAULT_L2_HIDDEN = 0.001

_MAX_ITERATIONS = 300
# Epochs of a head with a hidden layer; small sets have few steps an epoch and need more epochs.
_MAX_EPOCHS, _MAX_STEPS = 60, 1500
_EPOCHS_WITHOUT_VALID, _STEPS_WITHOUT_VALID = 20, 500
_BATCH_ROWS = 32
# Batches whose features are fetched together, where they are not held.
_BATCHES_BYTES = 8 << 20
_ADAM_RATE = 1e-3
# Epochs, and steps, without a better loss on the valid rows before the search is given up.
_PATIENCE, _PATIENCE_STEPS = 8, 200
# Iterations of L-BFGS without a better loss on them; a poor step or two is usual.
_PATIENCE_LINEAR = 10
# Fewer rows say nothing about when to stop or how to calibrate.
_MIN_VALID_ROWS = 20
_HOLDOUT = 0.1
# Inner fits that predict the training rows of a linear head for its calibration.
_INNER_FOLDS = 3
# They serve the calibration only and need not converge as far.
_INNER_SLACK = 10.0
# What a fold, or the fit of the head, counts in the progress that is reported; reading and checking
# counts a tenth of it.
_STEP_PARTS, _READING = 100, 0.1
# Seconds between two looks at folds that run in other threads.
_LOOK_SECONDS = 0.2

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Settings:
    """What a user chooses."""

    kind: str
    l2: float
    hidden: int
    balanced: bool
    seed: int


@dataclass(frozen=True)
class _Data:
    """Rows of one or several containers, withdrawn ones left out."""

    containers: tuple[Container, ...]
    features: Rows
    labels: NDArray[Any]
    groups: NDArray[np.int64]
    splits: NDArray[np.uint8]
    views: NDArray[np.uint8]
    rows: NDArray[np.int64]
    origin: NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def where(self) -> str:
        return ", ".join(str(container.path) for container in self.containers)

    @property
    def multilabel(self) -> bool:
        return self.labels.ndim == 2


@dataclass
class _Fitted:
    """Weights with their standardisation and calibration."""

    weights: dict[str, NDArray[np.float32]]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    iterations: int
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    calibrated: bool = False
    notes: list[str] = field(default_factory=list)

    def logits(self, features: Rows, rows: NDArray[np.int64], crew: Crew) -> NDArray[np.float64]:
        """Predict rows: float64 (len(rows), k)."""
        return _feed_logits(Feed(features, rows, self.mean, self.scale), self.weights, crew)


def _feed_logits(feed: Feed, weights: dict[str, NDArray[Any]], crew: Crew) -> NDArray[np.float64]:
    """Apply a network to standardised rows."""
    out = np.empty((len(feed), len(weights["bias"])))

    def predict(part: int) -> None:
        for rows, X in feed.pieces(part):
            out[rows] = network_logits(X, weights)

    for _ in crew.map(predict, feed.n_parts):
        pass
    return out


# --- Work ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """Who does a piece of work, how much it may hold, and who hears how far it is."""

    crew: Crew
    #: Standardised features one fit may hold.
    hold_bytes: int
    #: Called with the share that is done, 0 to 1, and what is being done.
    report: Callable[[float, str], None]

    def part(self, low: float, high: float, name: str) -> _Work:
        """Return the same for a part of the work, from one share to another."""
        report = self.report

        def narrowed(share: float, text: str) -> None:
            report(low + (high - low) * share, ", ".join(filter(None, (name, text))))

        return replace(self, report=narrowed)


class _Course:
    """How far a training is: what is reported never goes back."""

    def __init__(self, steps: int, progress: Progress | None) -> None:
        self._total = round((_READING + steps) * _STEP_PARTS)
        self._progress = progress
        self._done = 0

    def say(self, steps: float, text: str) -> None:
        """Report so many steps, counted with parts of steps."""
        now = min((_READING + steps) * _STEP_PARTS, self._total)
        self._done = max(self._done, round(now))
        if self._progress is not None:
            self._progress(self._done, self._total, text)

    def reading(self, crew: Crew) -> _Work:
        """Return the work that comes before the first step."""
        return _Work(crew, 0, lambda share, text: self.say(_READING * (share - 1.0), text))

    def work(self, crew: Crew, step: int) -> _Work:
        """Return the work of one step, counted from 0."""
        return _Work(crew, MEMORY_BYTES // 2, lambda share, text: self.say(step + share, text))


# --- Rows ------------------------------------------------------------------------------------


def _as_containers(container: Container | Sequence[Container]) -> tuple[Container, ...]:
    containers = tuple(container) if isinstance(container, Sequence) else (container,)
    if not containers:
        raise SplitError("no container given; expected at least one .hilum file")
    return containers


def _check_alike(containers: Sequence[Container]) -> None:
    """Refuse containers whose rows do not mean the same."""
    first = containers[0]
    for other in containers[1:]:
        for what, one, two in (
            ("backbone", first.backbone_digest, other.backbone_digest),
            ("preprocessing", first.preprocessing_digest, other.preprocessing_digest),
            ("kind of labels", first.multilabel, other.multilabel),
            ("classes", ", ".join(first.classes), ", ".join(other.classes)),
            (
                "feature blocks",
                [block.name for block in blocks_from_notes(first.blocks)],
                [block.name for block in blocks_from_notes(other.blocks)],
            ),
            ("feature width", first.dim, other.dim),
        ):
            if one != two:
                raise MismatchError(
                    f"{first.path} and {other.path} differ in {what}: {_short(one)} and "
                    f"{_short(two)}; expected the same in both; extract both with the same "
                    "backbone, preprocessing, taps and labels"
                )


def _row_names(
    container: Container, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return what tells rows apart: digests of their features, and of their keys where they have.

    Of 64 bits and in arrays: sets of a million rows took 300 MB. Two of ten million different rows
    in each of two containers pass for the same with a probability of 1 in 200,000.
    """

    def digest(data: Any) -> bytes:
        return hashlib.blake2b(data, digest_size=8).digest()

    keys = container.sample_keys
    of_features, of_keys = bytearray(), bytearray()
    step = piece_rows(container.dim)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        for features in container.read_rows(piece):
            of_features += digest(features)
        if keys is not None:
            for key in keys[piece]:
                if key.any():
                    of_keys += digest(key)
    return np.frombuffer(of_features, np.uint64), np.frombuffer(of_keys, np.uint64)


def _check_apart(
    containers: Sequence[Container], chosen: Sequence[NDArray[np.int64]], work: _Work
) -> None:
    """Refuse images that are in two containers, where at least one of the two is chosen.

    Patients of two containers are taken for different people, so an image in both would be learned
    from in one fold and judged in another. Rows that are not chosen, of the test split, count too:
    they will judge the head.
    """
    named = []
    for number, (container, rows) in enumerate(zip(containers, chosen, strict=True)):
        work.report(number / len(containers), f"looking for images of {container.path.name}")
        others = np.setdiff1d(container.rows(), rows)
        named.append((_row_names(container, rows), _row_names(container, others)))
    for i, (mine, my_others) in enumerate(named):
        for j, (theirs, their_others) in enumerate(named[:i]):
            # An image may be known by its features, its key or both.
            count = max(
                len(
                    np.union1d(
                        np.intersect1d(mine[kind], np.union1d(theirs[kind], their_others[kind])),
                        np.intersect1d(theirs[kind], my_others[kind]),
                    )
                )
                for kind in (0, 1)
            )
            if count:
                raise MismatchError(
                    f"{containers[j].path} and {containers[i].path} have {count} image(s) in "
                    "common, found by identical features or sample keys; expected different "
                    "patients in each container, or figures would be too good; leave one of the "
                    "two out, or extract it again without the images of the other"
                )


def _check_sound(containers: Sequence[Container], features: Rows, work: _Work) -> None:
    """Refuse the same container twice, and damaged ones: opening reads no features."""
    seen: dict[str, Container] = {}
    for container in containers:
        if container.uuid in seen:
            raise MismatchError(
                f"{seen[container.uuid].path} and {container.path} are the same container (uuid "
                f"{container.uuid[:12]}...); its patients would be learned from and judged at "
                "once; expected different patients in each container; leave one of the two out"
            )
        seen[container.uuid] = container
    n = len(containers)
    for number, container in enumerate(features.containers):
        part = work.part(number / n, (number + 1) / n, f"checking {container.path.name}")

        def said(done: int, total: int, part: _Work = part) -> None:
            part.report(done / max(total, 1), "")

        container.verify(said)


def _not_finite(features: Rows, work: _Work) -> NDArray[np.int64]:
    """Return the rows with a NaN or an infinity."""
    feed = Feed(features, np.arange(len(features)))
    finite = np.empty(len(feed), np.bool_)

    def look(part: int) -> None:
        for rows, X in feed.pieces(part):
            np.isfinite(X).all(axis=1, out=finite[rows])

    for part, _ in enumerate(work.crew.map(look, feed.n_parts)):
        work.report((part + 1) / feed.n_parts, "")
    return np.flatnonzero(~finite)


def _nth(number: int, n: int) -> str:
    """Name one of the containers given, without its file's name."""
    return "the container" if n == 1 else f"container {number + 1} of {n}"


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text


def _load(
    containers: tuple[Container, ...],
    features: Rows,
    choose: Callable[[Container], NDArray[np.int64]],
    work: _Work,
) -> _Data:
    """Choose rows of every container; patients of two containers are never the same."""
    _check_alike(containers)
    _check_sound(containers, features, work.part(0.0, 0.5, ""))
    parts: dict[str, list[NDArray[Any]]] = {
        key: [] for key in ("labels", "groups", "splits", "views", "rows", "origin")
    }
    notes: list[str] = []
    n_groups = 0
    for number, container in enumerate(containers):
        labels = container.labels
        if labels is None:
            raise SplitError(
                f"{container.path}: has no labels, so nothing can be learned or judged; expected "
                "a label column; extract again with a manifest that has a column named label, or "
                "with one sub-folder for each class"
            )
        rows = choose(container)
        views = container.views
        row_views = np.zeros(len(rows), np.uint8) if views is None else views[rows]
        groups = container.groups
        if groups is not None:
            row_groups = groups[rows].astype(np.int64)
        elif row_views.any():
            raise SplitError(
                f"{container.path}: has augmented views but no patients, so views of one image "
                "could fall on both sides of a split; extract again with a patient column"
            )
        else:
            row_groups = rows
            notes.append(
                # Notes travel with the head: a file's name may be a person's.
                f"{_nth(number, len(containers))} has no patients: every row was taken for another "
                "patient; if some patients have several images, figures are too good"
            )
        parts["labels"].append(labels[rows])
        parts["groups"].append(row_groups + n_groups)
        n_groups += int(row_groups.max(initial=-1)) + 1
        splits = container.splits
        parts["splits"].append(np.zeros(len(rows), np.uint8) if splits is None else splits[rows])
        parts["views"].append(row_views)
        parts["rows"].append(rows)
        parts["origin"].append(np.full(len(rows), number, np.int64))
    joined = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    if len(containers) > 1:
        _check_apart(features.containers, parts["rows"], work.part(0.5, 0.8, "checking"))
        notes.append(
            "patients of different containers were taken for different people; if some are in "
            "several, figures are too good"
        )
    features.choose(joined["rows"], joined["origin"], work.crew)
    bad = _not_finite(features, work.part(0.8, 1.0, "checking features"))
    if len(bad):
        path = containers[joined["origin"][bad[0]]].path
        raise SplitError(
            f"{path}: row {joined['rows'][bad[0]]} (and {len(bad) - 1} more) has features that "
            "are NaN or infinite; expected finite ones; extract the features again"
        )
    labels = joined["labels"]
    return _Data(
        containers=containers,
        features=features,
        labels=labels.astype(np.int8 if labels.ndim == 2 else np.int64),
        groups=joined["groups"],
        splits=joined["splits"],
        views=joined["views"],
        rows=joined["rows"],
        origin=joined["origin"],
        classes=containers[0].classes,
        notes=tuple(notes),
    )


def _check_marks(container: Container) -> None:
    """Refuse a patient on two sides; rows that are not marked are learned from like train."""
    splits, groups = container.splits, container.groups
    if splits is None or groups is None:
        return
    rows = container.rows()
    side_of_mark = np.array([0, 0, 1, 2], np.int64)
    check_groups_apart(
        groups[rows].astype(np.int64),
        side_of_mark[splits[rows]],
        ("train or not marked", "valid", "test"),
        where=str(container.path),
    )


def _learning_rows(container: Container) -> NDArray[np.int64]:
    """Return the rows that are not marked test."""
    _check_marks(container)
    if container.splits is None:
        return container.rows()
    return container.rows(("none", "train", "valid"))


def _sides(data: _Data) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the rows to learn from and the rows marked valid, None without any."""
    marked = data.splits == SPLITS.index("valid")
    return np.flatnonzero(~marked), np.flatnonzero(marked) if marked.any() else None


# --- Optimisation ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shapes:
    """How a flat parameter vector is cut into named arrays."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, settings: _Settings, d: int, k: int) -> _Shapes:
        if settings.kind == "linear":
            return cls((("weight", (k, d)), ("bias", (k,))))
        h = settings.hidden
        return cls(
            (
                ("hidden.weight", (h, d)),
                ("hidden.bias", (h,)),
                ("weight", (k, h)),
                ("bias", (k,)),
            )
        )

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.shapes)

    def cut(self, theta: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        parts = {}
        start = 0
        for name, shape in self.shapes:
            size = int(np.prod(shape))
            parts[name] = theta[start : start + size].reshape(shape)
            start += size
        return parts


class _Loss:
    """Loss and gradient over rows, by the kernel of the kind and the task."""

    def __init__(
        self, shapes: _Shapes, settings: _Settings, labels: NDArray[Any], n_classes: int
    ) -> None:
        from engine.kernels import heads as kernels

        self.shapes = shapes
        self.l2 = settings.l2
        self.multilabel = labels.ndim == 2
        self.linear = settings.kind == "linear"
        n = len(labels)
        weights = entropy_weights(labels, n_classes, balanced=settings.balanced)
        if self.multilabel:
            self.row_weights = np.full(n, 1.0 / n)
            self.negative, self.positive = n * weights
        else:
            self.row_weights = weights[labels]
        self.kernels = kernels
        self.n_classes = n_classes
        self.n_hidden = settings.hidden
        self.room = self._room()
        self.out = np.empty(1)

    def _room(self) -> tuple[NDArray[np.float64], ...]:
        """Return work space of a kernel; every thread has its own."""
        rows = self.kernels.ROWS
        lanes = np.empty(self.kernels.LANES)
        block = np.empty((rows, self.n_classes))
        if self.linear:
            return lanes, block
        return lanes, np.empty((rows, self.n_hidden)), np.empty((rows, self.n_hidden)), block

    def _add(
        self,
        X: NDArray[np.float32],
        labels: NDArray[Any],
        row_weights: NDArray[np.float64],
        theta: NDArray[np.float64],
        room: tuple[NDArray[np.float64], ...],
        gradient: NDArray[np.float64],
        out: NDArray[np.float64],
    ) -> None:
        """Add gradient and loss of rows, without the penalty."""
        targets: tuple[NDArray[Any], ...] = (X, labels, row_weights)
        kernels = self.kernels
        function: Callable[..., None]
        if self.multilabel:
            targets = (*targets, self.positive, self.negative)
            function = kernels.linear_multilabel if self.linear else kernels.mlp_multilabel
        else:
            function = kernels.linear_softmax if self.linear else kernels.mlp_softmax
        parameters = self.shapes.cut(theta).values()
        gradients = self.shapes.cut(gradient).values()
        function(*targets, *parameters, *room, *gradients, out)

    def _penalise(self, theta: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
        """Add the penalty to the gradient and to what `out` holds, and return that."""
        parameters, gradients = self.shapes.cut(theta), self.shapes.cut(gradient)
        for name, part in parameters.items():
            if part.ndim == 2:
                self.kernels.penalise(part, self.l2, gradients[name], self.out)
        return float(self.out[0])

    def of_batch(
        self,
        X: NDArray[np.float32],
        labels: NDArray[Any],
        row_weights: NDArray[np.float64],
        theta: NDArray[np.float64],
        gradient: NDArray[np.float64],
    ) -> float:
        """Fill the gradient of a few rows and return their loss."""
        gradient[:] = 0.0
        self.out[0] = 0.0
        self._add(X, labels, row_weights, theta, self.room, gradient, self.out)
        return self._penalise(theta, gradient)

    def of_all(
        self,
        feed: Feed,
        labels: NDArray[Any],
        theta: NDArray[np.float64],
        gradient: NDArray[np.float64],
        crew: Crew,
    ) -> float:
        """Fill the gradient of all rows and return their loss."""

        def add(part: int) -> tuple[NDArray[np.float64], float]:
            sums, out, room = np.zeros_like(theta), np.zeros(1), self._room()
            for rows, X in feed.pieces(part):
                self._add(X, labels[rows], self.row_weights[rows], theta, room, sums, out)
            return sums, float(out[0])

        gradient[:] = 0.0
        self.out[0] = 0.0
        for sums, loss in crew.map(add, feed.n_parts):
            gradient += sums
            self.out[0] += loss
        return self._penalise(theta, gradient)


class _Watch:
    """Loss on the valid rows after each round: the best parameters, and when to give up."""

    def __init__(
        self,
        shapes: _Shapes,
        feed: Feed | None,
        labels: NDArray[Any],
        balanced: bool,
        patience: int,
        crew: Crew,
    ) -> None:
        self.shapes = shapes
        self.feed = feed
        self.crew = crew
        self.labels = labels
        self.balanced = balanced
        self.patience = patience
        self.best = np.inf
        self.best_iteration = 0
        self.best_theta: NDArray[np.float64] | None = None

    def gives_up(self, theta: NDArray[np.float64], iteration: int) -> bool:
        """Look at the parameters after an iteration or epoch (counted from 1)."""
        if self.feed is None:
            return False
        logits = _feed_logits(self.feed, self.shapes.cut(theta), self.crew)
        # Of the calibrated logits: the head will be calibrated, and without it overconfidence
        # ends the search while decisions still improve.
        logits /= fit_temperature(logits, self.labels, balanced=self.balanced)
        loss = mean_entropy(logits, self.labels, balanced=self.balanced)
        # The smallest gain that counts, so that a flat tail does not go on for ever.
        if loss < self.best - 1e-5:
            self.best = loss
            self.best_iteration = iteration
            self.best_theta = theta.copy()
        return iteration - self.best_iteration >= self.patience


def _descend(
    loss: _Loss,
    feed: Feed,
    labels: NDArray[Any],
    theta: NDArray[np.float64],
    watch: _Watch,
    epochs: int,
    seed: int,
    work: _Work,
) -> tuple[NDArray[np.float64], int]:
    """Minimise by Adam over shuffled mini-batches; returns the parameters and the epochs made."""
    from engine.kernels import heads as kernels

    generator = np.random.default_rng([seed, 1])
    n = len(labels)
    gradient = np.empty_like(theta)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    step = 0
    n_fetched = _BATCH_ROWS * max(1, _BATCHES_BYTES // (4 * feed.dim * _BATCH_ROWS))
    for epoch in range(1, epochs + 1):
        order = generator.permutation(n)
        for fetched in range(0, n, n_fetched):
            work.crew.check()
            rows = order[fetched : fetched + n_fetched]
            X = feed.take(rows)
            for start in range(0, len(rows), _BATCH_ROWS):
                batch = rows[start : start + _BATCH_ROWS]
                # Weights sum to about 1 over all rows; a batch stands for all of them.
                weights = loss.row_weights[batch] * (n / len(batch))
                part = X[start : start + _BATCH_ROWS]
                loss.of_batch(part, labels[batch], weights, theta, gradient)
                step += 1
                kernels.adam_step(theta, gradient, first, second, step, _ADAM_RATE)
            share = (epoch - 1 + (fetched + len(rows)) / n) / epochs
            work.report(share, f"epoch {epoch} of at most {epochs}")
        if watch.gives_up(theta, epoch):
            return theta, epoch
    return theta, epochs


def _standardisation(
    feed: Feed, origin: NDArray[np.float32], crew: Crew
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and scale of the columns; `origin` is one of the rows."""
    from engine.kernels.heads import add_moments, moments

    d = len(origin)

    def add(part: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums, squares = np.zeros(d), np.zeros(d)
        for _, X in feed.pieces(part):
            add_moments(X, origin, sums, squares)
        return sums, squares

    mean, deviation = np.zeros(d), np.zeros(d)
    for sums, squares in crew.map(add, feed.n_parts):
        mean += sums
        deviation += squares
    moments(origin, len(feed), mean, deviation)
    # A column whose spread is rounding carries nothing; dividing by it would make noise of it.
    flat = deviation <= 1e-6 * np.abs(mean) + 1e-12
    return mean.astype(np.float32), np.where(flat, 1.0, deviation).astype(np.float32)


def _said(work: _Work) -> Callable[[int, float, float, float], None]:
    """Return what reports the iterations of a fit that ends when it has converged."""
    first: list[float] = []
    furthest = 0.0

    def say(iteration: int, value: float, slope: float, gain: float) -> None:
        """Slope and gain are in units of the tolerance: the fit ends when one of them is 1."""
        nonlocal furthest
        now = [math.log(min(max(number, 1.0), 1e300)) for number in (slope, gain)]
        if not first:
            first.extend(now)
        shares = [1.0 - at / begin for at, begin in zip(now, first, strict=True) if begin > 0.0]
        furthest = min(max(furthest, *shares, 0.0), 0.99)
        work.report(furthest, f"iteration {iteration}, loss {value:.4f}")

    return say


def _fit(
    data: _Data,
    train: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    settings: _Settings,
    work: _Work,
    *,
    epochs: int | None = None,
    start: _Fitted | None = None,
    slack: float = 1.0,
) -> _Fitted:
    """Fit weights on the train rows.

    Fitting stops by the valid rows. Without them a linear head converges, from `start` if given,
    with tolerances times `slack`; a head with a hidden layer stops after `epochs`.
    """
    crew, features = work.crew, data.features
    work.report(0.0, "means and spreads")
    origin = np.empty((1, features.dim), np.float32)
    features.read(train[:1], origin)
    mean32, scale32 = _standardisation(Feed(features, train), origin[0], crew)
    labels = np.ascontiguousarray(data.labels[train])
    shapes = _Shapes.of(settings, features.dim, len(data.classes))
    loss = _Loss(shapes, settings, labels, len(data.classes))
    feed = Feed(features, train, mean32, scale32)
    feed_valid = None if valid is None else Feed(features, valid, mean32, scale32)
    feeds = [feed] if feed_valid is None else [feed, feed_valid]
    if sum(each.n_bytes for each in feeds) <= work.hold_bytes:
        for each in feeds:
            each.hold(crew)
    valid_labels = data.labels[valid] if valid is not None else data.labels[:0]
    steps = -(-len(labels) // _BATCH_ROWS)
    patience = _PATIENCE_LINEAR
    if settings.kind != "linear":
        patience = max(_PATIENCE, -(-_PATIENCE_STEPS // steps))
    watch = _Watch(shapes, feed_valid, valid_labels, settings.balanced, patience, crew)
    theta = np.zeros(shapes.size)
    if settings.kind == "linear":

        def evaluate(point: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
            return loss.of_all(feed, labels, point, gradient, crew)

        if start is not None:
            theta = np.concatenate(
                [start.weights[name].ravel().astype(np.float64) for name, _ in shapes.shapes]
            )
        theta, made = minimise(evaluate, theta, _MAX_ITERATIONS, slack, watch.gives_up, _said(work))
    else:
        # He et al. 2015, equation 10: the variance that rectified units keep from layer to layer.
        generator = np.random.default_rng([settings.seed, 0])
        parts = shapes.cut(theta)
        for name in ("hidden.weight", "weight"):
            fan_in = parts[name].shape[1]
            parts[name][:] = generator.normal(0.0, np.sqrt(2.0 / fan_in), parts[name].shape)
        if epochs:
            limit = epochs
        elif valid is not None:
            limit = max(_MAX_EPOCHS, -(-_MAX_STEPS // steps))
        else:
            limit = max(_EPOCHS_WITHOUT_VALID, -(-_STEPS_WITHOUT_VALID // steps))
        theta, made = _descend(loss, feed, labels, theta, watch, limit, settings.seed, work)
    if watch.best_theta is not None:
        theta, made = watch.best_theta, watch.best_iteration
    weights = {name: part.astype(np.float32) for name, part in shapes.cut(theta).items()}
    return _Fitted(weights, mean32, scale32, made)


def _calibrate(
    fitted: _Fitted, logits: NDArray[np.float64], labels: NDArray[Any], settings: _Settings
) -> None:
    """Set temperature and thresholds from predictions the weights have not learned from."""
    fitted.calibrated = True
    fitted.temperature = fit_temperature(logits, labels, balanced=settings.balanced)
    probabilities = to_probabilities(logits, fitted.temperature, multilabel=labels.ndim == 2)
    fitted.thresholds = choose_thresholds(probabilities, labels)


def _too_few(data: _Data, rows: NDArray[np.int64]) -> str | None:
    """Say why training rows are too few to calibrate by; None if they are not."""
    originals = _originals(data, rows)
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


def _originals(data: _Data, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave augmented views out: they never judge."""
    originals: NDArray[np.int64] = rows[data.views[rows] == 0]
    return originals


def _fit_calibrated(
    data: _Data,
    train: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    settings: _Settings,
    work: _Work,
) -> tuple[_Fitted, _Judged | None]:
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
    judge = _originals(data, valid)
    if len(judge) < _MIN_VALID_ROWS:
        source = "a tenth of the training rows is" if carved else "rows marked valid are"
        fitted = _fit(data, train, None, settings, work)
        fitted.notes.append(
            f"{source} {len(judge)} images, too few to stop early or calibrate by "
            f"({_MIN_VALID_ROWS} needed): the penalty alone restrains the weights, and "
            "probabilities are not calibrated"
        )
        if carved or len(judge) == 0:
            return fitted, None
        probabilities = to_probabilities(
            fitted.logits(data.features, judge, work.crew), 1.0, multilabel=data.multilabel
        )
        return fitted, _Judged(
            judge, probabilities, "rows marked valid; nothing was fitted or calibrated by them"
        )
    share = 0.5 if carved else 1.0
    fitted = _fit(data, rest, judge, settings, work.part(0.0, share, "fit"))
    logits = fitted.logits(data.features, judge, work.crew)
    _calibrate(fitted, logits, data.labels[judge], settings)
    probabilities = to_probabilities(logits, fitted.temperature, multilabel=data.multilabel)
    protocol = "rows marked valid"
    if carved:
        again = _fit(
            data, train, None, settings, work.part(share, 1.0, "again"), epochs=fitted.iterations
        )
        again.temperature, again.thresholds = fitted.temperature, fitted.thresholds
        again.calibrated = True
        fitted = again
        protocol = "a held-out tenth of the patients, by weights that had not seen them"
    protocol += "; they also ended the fit and set the calibration, so slightly too good"
    return fitted, _Judged(judge, probabilities, protocol)


def _fit_cross_calibrated(
    data: _Data, train: NDArray[np.int64], settings: _Settings, work: _Work
) -> tuple[_Fitted, _Judged | None]:
    """Fit on all train rows; calibrate by inner folds, in which each row is predicted unseen."""
    k = len(data.classes)
    labels, groups = data.labels[train], data.groups[train]
    fewest = int(class_groups(labels, groups, k).min())
    too_few = _too_few(data, train)
    if fewest < 2:
        fitted = _fit(data, train, None, settings, work)
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
        fitted = _fit(data, train[fold_of != fold], None, settings, part, slack=_INNER_SLACK)
        judge = _originals(data, train[fold_of == fold])
        parts.append((judge, fitted.logits(data.features, judge, work.crew)))
    judge = np.concatenate([rows for rows, _ in parts])
    logits = np.concatenate([part for _, part in parts])
    part = work.part(folds / (folds + 1), 1.0, "fit")
    fitted = _fit(data, train, None, settings, part, start=fitted)
    protocol = f"training rows, each predicted by one of {folds} inner fits that had not seen it; "
    if too_few is None:
        _calibrate(fitted, logits, data.labels[judge], settings)
        protocol += "they also set the calibration, so slightly too good"
    else:
        fitted.notes.append(too_few)
        protocol += "probabilities are not calibrated"
    probabilities = to_probabilities(logits, fitted.temperature, multilabel=data.multilabel)
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
    data: _Data,
    learned: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    folds: int,
    settings: _Settings,
    crew: Crew,
    course: _Course,
) -> _CrossValidation:
    """Predict every row of `learned` by a head that has not seen its patient."""
    _check_folds(folds)
    originals = _originals(data, learned)
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

    def run(fold: int) -> tuple[NDArray[np.int64], NDArray[np.float64], _Fitted]:
        train = learned[fold_of != fold]
        judge = _originals(data, learned[fold_of == fold])
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

        work = _Work(own, MEMORY_BYTES // 2 // workers, report)
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
        [
            to_probabilities(part, fitted.temperature, multilabel=data.multilabel)
            for _, part, fitted in results
        ]
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
    plain = sum(not fitted.calibrated for _, _, fitted in results)
    if plain:
        protocol += f"; probabilities not calibrated in {plain} of {folds} folds"
    return _CrossValidation(rows, logits, evaluation, max(iterations, 1), protocol)


# --- What users call -------------------------------------------------------------------------


def _settings(
    kind: str, l2: float | None, hidden: int, class_weights: str | None, seed: int
) -> _Settings:
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
    return _Settings(kind, float(l2), int(hidden), class_weights == "balanced", int(seed))


def _software() -> str:
    try:
        return metadata.version("hilum")
    except metadata.PackageNotFoundError:
        return "unknown"


def _age_range(data: _Data, rows: NDArray[np.int64]) -> list[int] | None:
    """Return the youngest and oldest age learned from: of the rows, else of the notes."""
    low: list[int] = []
    for number, container in enumerate(data.containers):
        ages = container.ages
        own = data.rows[rows[data.origin[rows] == number]]
        known = ages[own][ages[own] != 255] if ages is not None else np.empty(0, np.uint8)
        if len(known):
            low += [int(known.min()), int(known.max())]
        else:
            low += container.notes.get("about", {}).get("age_range_years", [])
    return [min(low), max(low)] if low else None


def _source_counts(data: _Data, rows: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """Return rows by source and class: a class that comes from one source is learned as such."""
    table: dict[str, dict[str, int]] = {}
    for number, container in enumerate(data.containers):
        sources = container.sources
        if sources is None:
            continue
        own = rows[data.origin[rows] == number]
        for value in np.unique(sources[data.rows[own]]):
            names = container.sources_names
            name = names[value] if value < len(names) else f"source {value}"
            labels = data.labels[own[sources[data.rows[own]] == value]]
            line = table.setdefault(name, dict.fromkeys(data.classes, 0))
            for c, class_name in enumerate(data.classes):
                line[class_name] += int(
                    (labels[:, c] == 1 if labels.ndim == 2 else labels == c).sum()
                )
    return table


def _parents(container: Container) -> list[str]:
    """Return the uuids of the containers it was made from."""
    return list(container.notes.get("derived_from", ()))


def _about(containers: Sequence[Container]) -> dict[str, Any]:
    """Return what the containers say of themselves; differing texts are joined."""
    about: dict[str, Any] = {}
    for container in containers:
        for key, value in container.notes.get("about", {}).items():
            if key == "age_range_years":
                continue
            if key not in about:
                about[key] = value
            elif value not in str(about[key]).split("; "):
                about[key] = f"{about[key]}; {value}"
    return about


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
    containers = _as_containers(container)
    if cv is not None:
        _check_folds(cv)
    course = _Course((cv or 0) + 1, progress)
    with Crew.of(threads) as crew, Rows(containers) as features:
        data = _load(containers, features, _learning_rows, course.reading(crew))
        return _fit_head(data, settings, class_weights, cv, name, crew, course)


def _fit_head(
    data: _Data,
    settings: _Settings,
    class_weights: str | None,
    cv: int | None,
    name: str | None,
    crew: Crew,
    course: _Course,
) -> Head:
    """Train a head of rows that were found sound."""
    containers, kind = data.containers, settings.kind
    learned, valid = _sides(data)
    originals = _originals(data, learned)
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
            fitted = _fit(data, learned, None, settings, work, epochs=folds.iterations)
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
            rows = _originals(data, learned)
            probabilities = to_probabilities(
                fitted.logits(data.features, rows, crew),
                fitted.temperature,
                multilabel=data.multilabel,
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
    originals = _originals(data, learned)
    truth = data.labels[originals]
    counts = [
        int((truth[:, c] == 1 if data.multilabel else truth == c).sum())
        for c in range(len(data.classes))
    ]
    first = containers[0]
    given = [each.uuid for each in containers]
    parents = [uuid for each in containers for uuid in _parents(each)]
    ancestors = [uuid for uuid in dict.fromkeys(parents) if uuid not in given]
    training = {
        "n_rows": len(originals),
        "n_views": len(learned) - len(originals),
        "n_groups": len(np.unique(data.groups[learned])),
        "class_counts": dict(zip(data.classes, counts, strict=True)),
        "sources": _source_counts(data, originals),
        "age_range_years": _age_range(data, learned),
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
    head = Head(
        name=name or first.path.stem,
        kind=kind,
        task="multilabel" if data.multilabel else "softmax",
        classes=data.classes,
        weights=fitted.weights,
        mean=fitted.mean,
        scale=fitted.scale,
        temperature=fitted.temperature,
        thresholds=fitted.thresholds,
        backbone=first.backbone,
        backbone_digest=first.backbone_digest,
        preprocessing=dict(first.notes["preprocessing"]),
        preprocessing_digest=first.preprocessing_digest,
        blocks=blocks_from_notes(first.blocks),
        training=training,
        metrics=metrics,
        about=_about(containers),
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
    containers = _as_containers(container)
    course = _Course(folds, progress)
    with Crew.of(threads) as crew, Rows(containers) as features:
        data = _load(containers, features, _learning_rows, course.reading(crew))
        learned, valid = _sides(data)
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
                f"head {head.name!r} and {container.path} differ in {what}: {_short(one)} and "
                f"{_short(two)}; expected the same; extract the images again with the head's "
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
            _check_marks(chosen)
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
    course = _Course(1, progress)
    with Crew.of(threads) as crew, Rows((container,)) as features:
        data = _load((container,), features, choose, course.reading(crew))
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
    elif learned_from.intersection([container.uuid, *_parents(container)]):
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
