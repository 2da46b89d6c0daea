"""How the weights of a head are fitted to rows: losses, standardisation, when to stop.

A linear head of many rows is fitted in coordinates in which its loss is nearly round: the Hessian
at the start is about ``a X'X / n + l2`` (Boehning 1992, of softmax and sigmoid heads), X'X of a
seeded sample of the rows is enough, and its Cholesky factor turns some sixty passes over the rows
into about ten.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.calibration import Calibration, fit_temperature, mean_entropy
from engine.dataset import Dataset
from engine.heads import network_logits
from engine.optimisation import minimise
from engine.rows import Crew, Feed, Rows
from engine.work import Work

__all__ = [
    "Chosen",
    "Columns",
    "Fit",
    "Fitted",
    "Loss",
    "Settings",
    "Shapes",
    "Watch",
    "Whitening",
    "feed_logits",
    "fit_weights",
    "loss_weights",
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
# Epochs, and steps, without a better loss on the valid rows before the search is given up. Eight
# epochs took 1.8 times as long on 720 chest X-rays with eight views each, and were no better.
_PATIENCE, _PATIENCE_STEPS = 4, 200
# Iterations of L-BFGS without a better loss on them; a poor step or two is usual.
_PATIENCE_LINEAR = 10
# Products in one pass over the rows from which on a better shape of the loss is looked for, and
# passes that finding it may cost. Sets below are done before.
_ROUNDED_FROM, _ROUNDING_PASSES = 100_000_000, 15
# Columns that are rounded together: the cost grows with their cube. Four rows for each column
# give the sum of squares of any direction to about a half and more.
_ROUNDED_COLUMNS, _ROUNDED_ROWS = 1536, 4
# Labels whose curvatures differ by less than this share a factor.
_CURVATURE_STEP = 4.0
# A start of the bias as if a class had at least this share.
_LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class Settings:
    """What a user chooses.

    Attributes
    ----------
    kind : {"linear", "mlp", "fusion", "auto"}
        What is fitted; `engine.selection` turns the last two into one of the first two.
    l2 : float, optional
        Penalty; None lets `engine.selection` choose it.
    hidden : int
        Units of the hidden layer, of ``"mlp"``.
    balanced : bool
        Whether every class counts the same, or every row.
    seed : int
        Of folds, initial weights, batches and dropped units.
    dropout : float, optional
        Share of the hidden units that each row of a batch goes without; None lets
        `engine.selection` choose it.
    """

    kind: str
    l2: float | None
    hidden: int
    balanced: bool
    seed: int
    dropout: float | None = None


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


class Columns(Rows):
    """Some columns of other rows.

    Parameters
    ----------
    features : Rows
        All columns; whoever opened them closes them.
    left, right : int
        First column, and the one after the last.
    """

    def __init__(self, features: Rows, left: int, right: int) -> None:
        self._all = features
        self._left, self._right = left, right
        self.dim = right - left
        self.X = None if features.X is None else features.X[:, left:right]

    def __len__(self) -> int:
        return len(self._all)

    def read(self, index: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy rows, as of `engine.rows.Rows`."""
        if self.X is not None:
            out[:] = self.X[index]
            return
        whole = np.empty((len(index), self._all.dim), np.float32)
        self._all.read(index, whole)
        out[:] = whole[:, self._left : self._right]

    def close(self) -> None:
        """Leave the files to whoever opened them."""


class Chosen(Rows):
    """Some of other rows, numbered from 0.

    Parameters
    ----------
    features : Rows
        All rows; whoever opened them closes them.
    rows : int64 (n,)
        Which of them.
    """

    def __init__(self, features: Rows, rows: NDArray[np.int64]) -> None:
        self._all, self._index = features, rows
        self.dim = features.dim
        self.X = None

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy rows, as of `engine.rows.Rows`."""
        self._all.read(self._index[index], out)

    def close(self) -> None:
        """Leave the files to whoever opened them."""


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


def loss_weights(
    labels: NDArray[Any], weights: NDArray[np.float64], n_classes: int, *, balanced: bool
) -> NDArray[np.float64]:
    """Weigh rows so that either every class or every row counts the same, times their own weights.

    As `engine.calibration.entropy_weights`, whose numbers these are if all rows weigh the same.

    Parameters
    ----------
    labels : int (n,) or int8 (n, k)
        Truth; multi-labels below 0 have no weight.
    weights : float64 (n,)
        What each row counts beside, 0 or more.
    n_classes : int
        Number of classes k.
    balanced : bool
        Whether every class that occurs, or each side of every label, weighs the same; or every
        row does, or every assessed row of each label.

    Returns
    -------
    float64 (k,) or (2, k)
        Factor of a row's own weight by its class, or of an absent (0) and a present (1) label.
    """
    if labels.ndim == 1:
        totals = np.bincount(labels, weights=weights, minlength=n_classes)
        if not balanced:
            return np.full(n_classes, 1.0 / _some(totals.sum()))
        per_class: NDArray[np.float64] = 1.0 / (np.count_nonzero(totals) * _some(totals))
        return per_class
    sides = np.stack([_total(weights, labels == side) for side in (0, 1)])
    if not balanced:
        sides[:] = 0.5 * sides.sum(axis=0)
    per_side: NDArray[np.float64] = 0.5 / (n_classes * _some(sides))
    return per_side


def _total(weights: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Add the weights (n,) of what is chosen (n, k): (k,); BLAS's bits depend on its threads."""
    total: NDArray[np.float64] = np.where(chosen, weights[:, None], 0.0).sum(axis=0)
    return total


def _some(totals: Any) -> Any:
    """Return totals with 1 in place of 0: nothing is divided among no rows."""
    return np.where(totals > 0.0, totals, 1.0)


class Loss:
    """Loss and gradient over rows, by the kernel of the kind and the task."""

    def __init__(
        self,
        shapes: Shapes,
        settings: Settings,
        labels: NDArray[Any],
        weights: NDArray[np.float64],
        n_classes: int,
    ) -> None:
        from engine.kernels import heads as kernels

        self.shapes = shapes
        self.l2 = settings.l2 or 0.0
        self.multilabel = labels.ndim == 2
        self.linear = settings.kind == "linear"
        factors = loss_weights(labels, weights, n_classes, balanced=settings.balanced)
        if self.multilabel:
            self.row_weights = weights
            self.negative, self.positive = factors
        else:
            self.row_weights = weights * factors[labels]
        self.kernels = kernels
        self.n_classes = n_classes
        self.n_hidden = settings.hidden
        self.room = self._room()
        self.out = np.empty(1)
        self.nothing_dropped = np.empty((0, settings.hidden))

    def _room(self) -> tuple[NDArray[np.float64], ...]:
        """Return work space of a kernel; every thread has its own."""
        rows = self.kernels.ROWS
        lanes = np.empty(self.kernels.LANES)
        if self.linear:
            return lanes, np.empty((rows, self.n_classes))
        h, batch = self.n_hidden, self.kernels.BATCH
        hidden, back = np.empty((batch, h)), np.empty((batch, h))
        block, tile = np.empty((batch, self.n_classes)), np.empty((batch, self.kernels.WIDE))
        return lanes, hidden, back, block, tile

    def _add(
        self,
        X: NDArray[np.float32],
        labels: NDArray[Any],
        row_weights: NDArray[np.float64],
        theta: NDArray[np.float64],
        room: tuple[NDArray[np.float64], ...],
        gradient: NDArray[np.float64],
        out: NDArray[np.float64],
        kept: NDArray[np.float64] | None = None,
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
        if not self.linear:
            room = (self.nothing_dropped if kept is None else kept, *room)
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
        kept: NDArray[np.float64] | None = None,
    ) -> float:
        """Fill the gradient of a few rows and return their loss; kept (m, h) drops units."""
        gradient[:] = 0.0
        self.out[0] = 0.0
        self._add(X, labels, row_weights, theta, self.room, gradient, self.out, kept)
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

    def shares(self, labels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight (k,) and share of the present (k,), of each class among all labels."""
        if self.multilabel:
            present = self.positive * _total(self.row_weights, labels == 1)
            total = present + self.negative * _total(self.row_weights, labels == 0)
        else:
            present = np.bincount(labels, weights=self.row_weights, minlength=self.n_classes)
            total = np.full(self.n_classes, present.sum())
        share = np.clip(present / _some(total), _LEAST_SHARE, 1.0 - _LEAST_SHARE)
        return total, share

    def start(self, labels: NDArray[Any]) -> NDArray[np.float64]:
        """Return parameters of a linear head that knows only how frequent classes are."""
        theta = np.zeros(self.shapes.size)
        total, share = self.shares(labels)
        bias = np.log(share / (1.0 - share)) if self.multilabel else np.log(share)
        self.shapes.cut(theta)["bias"][:] = np.where(total > 0.0, bias, 0.0)
        return theta


class Whitening:
    """Coordinates in which the loss of a linear head is nearly round.

    Columns are taken in blocks of equal width, each on its own.

    Parameters
    ----------
    feed : Feed
        Standardised rows.
    labels : int (n,) or int8 (n, k)
        Truth.
    loss : Loss
        Its weights and shapes.
    crew : Crew
        Sums the products of columns.
    seed : int
        Of the sample of rows.
    """

    def __init__(self, feed: Feed, labels: NDArray[Any], loss: Loss, crew: Crew, seed: int) -> None:
        from engine.kernels import heads as kernels

        self._kernels = kernels
        self._loss = loss
        total, share = loss.shares(labels)
        curvature = total * share * (1.0 - share)
        # A label with nothing to learn from must not make a factor of nothing.
        self._curvature = np.maximum(curvature, max(1e-3 * float(curvature.max()), 1e-12))
        steps = np.round(np.log(self._curvature) / np.log(_CURVATURE_STEP))
        self._same = [np.flatnonzero(steps == step) for step in np.unique(steps)]
        self.cuts = _cuts(feed.dim)
        n = _sampled(len(feed), feed.dim)
        places = np.sort(np.random.default_rng([seed, 2]).permutation(len(feed))[:n])
        X = feed.take(places)
        self._grams = []
        for left, right in self.cuts:
            part = np.ascontiguousarray(X[:, left:right])
            gram = np.zeros((right - left, right - left))
            n_tiles = -(-(right - left) // kernels.GRAM_TALL)

            def add(
                tile: int, part: NDArray[np.float32] = part, gram: NDArray[np.float64] = gram
            ) -> None:
                first = np.empty((kernels.GRAM_ROWS, kernels.GRAM_TALL))
                second = np.empty((kernels.GRAM_ROWS, kernels.GRAM_WIDE))
                start = tile * kernels.GRAM_TALL
                stop = min(start + kernels.GRAM_TALL, len(gram))
                kernels.add_gram(part, start, stop, first, second, gram)

            # The last tiles are the longest: first, so that threads end together.
            for _ in crew.map(lambda tile: add(n_tiles - 1 - tile), n_tiles):  # noqa: B023
                pass
            gram /= n
            self._grams.append(gram)

    @staticmethod
    def pays(n: int, dim: int, n_classes: int) -> bool:
        """Tell whether fewer passes over the rows will save more than it costs."""
        one_pass = 2.0 * n * dim * n_classes
        widths = [right - left for left, right in _cuts(dim)]
        cost = sum(0.5 * _sampled(n, dim) * width**2 + 0.5 * width**3 for width in widths)
        some = _sampled(n, dim) > 0
        return some and one_pass >= _ROUNDED_FROM and cost <= _ROUNDING_PASSES * one_pass

    def at(self, l2: float, start: NDArray[np.float64], crew: Crew) -> Rounded:
        """Return the coordinates for a penalty, with their origin at `start`."""
        kernels = self._kernels
        jobs = [(gram, same) for gram in self._grams for same in self._same]

        def factor(number: int) -> NDArray[np.float64]:
            gram, same = jobs[number]
            matrix = gram * float(np.exp(np.log(self._curvature[same]).mean()))
            # Columns may depend on each other, and there may be no penalty.
            matrix[np.diag_indices(len(matrix))] += l2 + 1e-6 * float(np.diag(matrix).mean())
            kernels.cholesky(matrix, np.empty((kernels.PANEL, len(matrix))))
            return matrix

        factors = list(crew.map(factor, len(jobs)))
        parts = []
        for (left, right), number in zip(
            self.cuts, range(0, len(jobs), len(self._same)), strict=True
        ):
            for offset, same in enumerate(self._same):
                parts.append((left, right, same, factors[number + offset]))
        return Rounded(self._loss.shapes, parts, np.sqrt(self._curvature), start, crew)


def _cuts(dim: int) -> list[tuple[int, int]]:
    """Divide columns into blocks of about equal width."""
    n = -(-dim // _ROUNDED_COLUMNS)
    edges = [dim * i // n for i in range(n + 1)]
    return list(itertools.pairwise(edges))


def _sampled(n: int, dim: int) -> int:
    """Return of how many rows products of columns are summed."""
    wanted = min(n, _ROUNDED_ROWS * min(dim, _ROUNDED_COLUMNS))
    return wanted - wanted % 8


@dataclass(frozen=True)
class Rounded:
    """Coordinates phi of parameters: ``W = start + phi L^-1`` for every class, with its factor L.

    Attributes
    ----------
    shapes : Shapes
        Of a linear head.
    parts : list of (left, right, classes, factor)
        The factor, float64 (right - left, right - left), of some classes on some columns.
    bias_scale : float64 (k,)
        By which biases are multiplied.
    start : float64 (p,)
        The parameters at zero.
    crew : Crew
        Shares the parts.
    """

    shapes: Shapes
    parts: list[tuple[int, int, NDArray[np.int64], NDArray[np.float64]]]
    bias_scale: NDArray[np.float64]
    start: NDArray[np.float64]
    crew: Crew

    def theta(self, phi: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the parameters at coordinates (p,)."""
        from engine.kernels import heads as kernels

        def solve(factor: NDArray[np.float64], values: NDArray[np.float64]) -> None:
            kernels.solve_upper(factor, values)

        theta = self._solved(phi, solve)
        theta += self.start
        return theta

    def gradient(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient by coordinates from that by parameters (p,)."""
        from engine.kernels import heads as kernels

        def solve(factor: NDArray[np.float64], values: NDArray[np.float64]) -> None:
            kernels.solve_lower(factor, np.empty(kernels.LANES), values)

        return self._solved(gradient, solve)

    def _solved(
        self,
        vector: NDArray[np.float64],
        solve: Callable[[NDArray[np.float64], NDArray[np.float64]], None],
    ) -> NDArray[np.float64]:
        out = np.empty_like(vector)
        mine, theirs = self.shapes.cut(vector), self.shapes.cut(out)
        theirs["bias"][:] = mine["bias"] / self.bias_scale

        def part(number: int) -> None:
            left, right, classes, factor = self.parts[number]
            values = mine["weight"][classes, left:right]
            solve(factor, values)
            theirs["weight"][classes, left:right] = values

        for _ in self.crew.map(part, len(self.parts)):
            pass
        return out


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
    settings: Settings,
    work: Work,
) -> tuple[NDArray[np.float64], int]:
    """Minimise by Adam over shuffled mini-batches; returns the parameters and the epochs made."""
    from engine.kernels import heads as kernels

    generator = np.random.default_rng([settings.seed, 1])
    share = settings.dropout or 0.0
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
                step += 1
                kept = None
                if share:
                    kept = _kept(settings.seed, step, (len(batch), settings.hidden), share)
                loss.of_batch(part, labels[batch], weights, theta, gradient, kept)
                kernels.adam_step(theta, gradient, first, second, step, _ADAM_RATE)
            done = (epoch - 1 + (fetched + len(rows)) / n) / epochs
            work.report(done, f"epoch {epoch} of at most {epochs}")
        if watch.gives_up(theta, epoch):
            return theta, epoch
    return theta, epochs


def _kept(seed: int, step: int, shape: tuple[int, int], share: float) -> NDArray[np.float64]:
    """Return 0 for units that are dropped, else what makes up for them (inverted dropout).

    By the number of the step: whoever draws before or beside changes nothing.
    """
    bits = np.random.Philox(key=[seed, 3], counter=[0, 0, 0, step]).random_raw(shape[0] * shape[1])
    kept = bits.reshape(shape) >= np.uint64(share * 2.0**64)
    return np.where(kept, 1.0 / (1.0 - share), 0.0)


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


class Fit:
    """Rows made ready for one fit or several, of the same rows and kind.

    Parameters
    ----------
    data : Dataset
        All rows.
    train : int64 (n,)
        Rows to learn from.
    valid : int64 (m,), optional
        Rows that end the fit.
    settings : Settings
        Of kind "linear" or "mlp"; the penalty and the dropout may differ from run to run.
    work : Work
        Who makes ready.
    """

    def __init__(
        self,
        data: Dataset,
        train: NDArray[np.int64],
        valid: NDArray[np.int64] | None,
        settings: Settings,
        work: Work,
    ) -> None:
        crew, features = work.crew, data.features
        work.report(0.0, "means and spreads")
        origin = np.empty((1, features.dim), np.float32)
        features.read(train[:1], origin)
        self.mean, self.scale = standardisation(Feed(features, train), origin[0], crew)
        self.labels = np.ascontiguousarray(data.labels[train])
        self.weights = data.weights[train]
        self.n_classes = len(data.classes)
        self.shapes = Shapes.of(settings, features.dim, self.n_classes)
        self.feed = Feed(features, train, self.mean, self.scale)
        self.feed_valid = None if valid is None else Feed(features, valid, self.mean, self.scale)
        feeds = [self.feed] if self.feed_valid is None else [self.feed, self.feed_valid]
        if sum(each.n_bytes for each in feeds) <= work.hold_bytes:
            for each in feeds:
                each.hold(crew)
        self.valid_labels = data.labels[valid] if valid is not None else data.labels[:0]
        self._whitening: Whitening | None = None

    def run(
        self,
        settings: Settings,
        work: Work,
        *,
        epochs: int | None = None,
        start: Fitted | None = None,
        slack: float = 1.0,
    ) -> Fitted:
        """Fit weights; parameters as of `fit_weights`."""
        crew = work.crew
        loss = Loss(self.shapes, settings, self.labels, self.weights, self.n_classes)
        steps = -(-len(self.labels) // _BATCH_ROWS)
        patience = _PATIENCE_LINEAR
        if settings.kind != "linear":
            patience = max(_PATIENCE, -(-_PATIENCE_STEPS // steps))
        watch = Watch(
            self.shapes, self.feed_valid, self.valid_labels, settings.balanced, patience, crew
        )
        if settings.kind == "linear":
            theta, made = self._converge(settings, loss, watch, work, start, slack)
        else:
            theta = np.zeros(self.shapes.size)
            # He et al. 2015, equation 10: the variance that rectified units keep from layer to
            # layer.
            generator = np.random.default_rng([settings.seed, 0])
            parts = self.shapes.cut(theta)
            for name in ("hidden.weight", "weight"):
                fan_in = parts[name].shape[1]
                parts[name][:] = generator.normal(0.0, np.sqrt(2.0 / fan_in), parts[name].shape)
            if epochs:
                limit = epochs
            elif self.feed_valid is not None:
                limit = max(_MAX_EPOCHS, -(-_MAX_STEPS // steps))
            else:
                limit = max(_EPOCHS_WITHOUT_VALID, -(-_STEPS_WITHOUT_VALID // steps))
            theta, made = _descend(
                loss, self.feed, self.labels, theta, watch, limit, settings, work
            )
        if watch.best_theta is not None:
            theta, made = watch.best_theta, watch.best_iteration
        weights = {name: part.astype(np.float32) for name, part in self.shapes.cut(theta).items()}
        return Fitted(weights, self.mean, self.scale, made)

    def _converge(
        self,
        settings: Settings,
        loss: Loss,
        watch: Watch,
        work: Work,
        start: Fitted | None,
        slack: float,
    ) -> tuple[NDArray[np.float64], int]:
        """Minimise by L-BFGS; returns the parameters and the iterations made."""
        crew = work.crew
        if start is None:
            theta = loss.start(self.labels)
        else:
            theta = np.concatenate(
                [start.weights[name].ravel().astype(np.float64) for name, _ in self.shapes.shapes]
            )

        def evaluate(point: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
            return loss.of_all(self.feed, self.labels, point, gradient, crew)

        said = _said(work)
        # The loss of labels is their mean: each moves the weights by its share only.
        size = 1.0 / self.n_classes if loss.multilabel else 1.0
        if not Whitening.pays(len(self.feed), self.feed.dim, self.n_classes):
            return minimise(
                evaluate, theta, _MAX_ITERATIONS, slack, watch.gives_up, said, size=size
            )
        if self._whitening is None:
            work.report(0.0, "the shape of the loss")
            self._whitening = Whitening(self.feed, self.labels, loss, crew, settings.seed)
        rounded = self._whitening.at(loss.l2, theta, crew)

        def evaluate_rounded(phi: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
            own = np.empty_like(gradient)
            value = evaluate(rounded.theta(phi), own)
            gradient[:] = rounded.gradient(own)
            return value

        def gives_up(phi: NDArray[np.float64], iteration: int) -> bool:
            return self.feed_valid is not None and watch.gives_up(rounded.theta(phi), iteration)

        phi, made = minimise(
            evaluate_rounded,
            np.zeros_like(theta),
            _MAX_ITERATIONS,
            slack,
            gives_up,
            said,
            first_step=1.0,
            size=size,
        )
        return rounded.theta(phi), made


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

    Parameters
    ----------
    data : Dataset
        All rows.
    train : int64 (n,)
        Rows to learn from.
    valid : int64 (m,), optional
        Rows that end the fit.
    settings : Settings
        Of kind "linear" or "mlp", with a penalty.
    work : Work
        Who works, how much may be held, who hears of it.
    epochs : int, optional
        Of "mlp", without valid rows.
    start : Fitted, optional
        Of "linear": where to begin.
    slack : float
        Factor of the tolerances.

    Returns
    -------
    Fitted
        Not calibrated.
    """
    fit = Fit(data, train, valid, settings, work)
    return fit.run(settings, work, epochs=epochs, start=start, slack=slack)
