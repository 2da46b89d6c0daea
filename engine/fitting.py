"""How the weights of a head are fitted to rows: losses, standardisation, when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.calibration import Calibration, entropy_weights, fit_temperature, mean_entropy
from engine.dataset import Dataset
from engine.heads import network_logits
from engine.optimisation import minimise
from engine.rows import Crew, Feed, Rows
from engine.work import Work

__all__ = [
    "Fitted",
    "Loss",
    "Settings",
    "Shapes",
    "Watch",
    "feed_logits",
    "fit_weights",
    "standardisation",
]

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


@dataclass(frozen=True)
class Settings:
    """What a user chooses."""

    kind: str
    l2: float
    hidden: int
    balanced: bool
    seed: int


@dataclass
class Fitted:
    """Weights with their standardisation and calibration."""

    weights: dict[str, NDArray[np.float32]]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    iterations: int
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: tuple[float, ...] = ()
    notes: list[str] = field(default_factory=list)

    def logits(self, features: Rows, rows: NDArray[np.int64], crew: Crew) -> NDArray[np.float64]:
        """Predict rows: float64 (len(rows), k)."""
        return feed_logits(Feed(features, rows, self.mean, self.scale), self.weights, crew)


def feed_logits(feed: Feed, weights: dict[str, NDArray[Any]], crew: Crew) -> NDArray[np.float64]:
    """Apply a network to standardised rows."""
    out = np.empty((len(feed), len(weights["bias"])))

    def predict(part: int) -> None:
        for rows, X in feed.pieces(part):
            out[rows] = network_logits(X, weights)

    for _ in crew.map(predict, feed.n_parts):
        pass
    return out


@dataclass(frozen=True)
class Shapes:
    """How a flat parameter vector is cut into named arrays."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, settings: Settings, d: int, k: int) -> Shapes:
        """Return the shapes of a head of d features and k classes."""
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
        """Number of parameters."""
        return sum(int(np.prod(shape)) for _, shape in self.shapes)

    def cut(self, theta: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return views of the parts of a flat vector."""
        parts = {}
        start = 0
        for name, shape in self.shapes:
            size = int(np.prod(shape))
            parts[name] = theta[start : start + size].reshape(shape)
            start += size
        return parts


class Loss:
    """Loss and gradient over rows, by the kernel of the kind and the task."""

    def __init__(
        self, shapes: Shapes, settings: Settings, labels: NDArray[Any], n_classes: int
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


class Watch:
    """Loss on the valid rows after each round: the best parameters, and when to give up."""

    def __init__(
        self,
        shapes: Shapes,
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
        logits = feed_logits(self.feed, self.shapes.cut(theta), self.crew)
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
    loss: Loss,
    feed: Feed,
    labels: NDArray[Any],
    theta: NDArray[np.float64],
    watch: Watch,
    epochs: int,
    seed: int,
    work: Work,
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


def standardisation(
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


def _said(work: Work) -> Callable[[int, float, float, float], None]:
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


def fit_weights(
    data: Dataset,
    train: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    settings: Settings,
    work: Work,
    *,
    epochs: int | None = None,
    start: Fitted | None = None,
    slack: float = 1.0,
) -> Fitted:
    """Fit weights on the train rows.

    Fitting stops by the valid rows. Without them a linear head converges, from `start` if given,
    with tolerances times `slack`; a head with a hidden layer stops after `epochs`.
    """
    crew, features = work.crew, data.features
    work.report(0.0, "means and spreads")
    origin = np.empty((1, features.dim), np.float32)
    features.read(train[:1], origin)
    mean32, scale32 = standardisation(Feed(features, train), origin[0], crew)
    labels = np.ascontiguousarray(data.labels[train])
    shapes = Shapes.of(settings, features.dim, len(data.classes))
    loss = Loss(shapes, settings, labels, len(data.classes))
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
    watch = Watch(shapes, feed_valid, valid_labels, settings.balanced, patience, crew)
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
    return Fitted(weights, mean32, scale32, made)
