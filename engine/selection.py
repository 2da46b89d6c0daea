"""Which kind of head, and which penalty, inner folds of the training rows choose.

Every candidate predicts each training row by weights that have not seen its patient: the rows are
divided into three inner folds, stratified and grouped by patient. The predictions of the one that
is chosen set calibration and thresholds too, so neither costs a fit. Rows marked valid take the
place of the inner folds where there are any.

The penalties of linear heads are a path from strong to weak, on which every fit starts where the
one before has ended (Friedman, Hastie and Tibshirani 2010, section 2.5); it ends when four weaker
penalties in a row were no better in the first inner fold. The lowest cross entropy of the logits as
they are decides: a temperature would make up for a penalty that is too strong, and flatten the
minimum. In nested cross-validations of 720 chest X-rays with four seeds, choosing after a
temperature changed the macro AUROC by -0.0010 (spread over seeds 0.0007) with the features of one
backbone and -0.0001 (0.0002) with another's; five inner folds instead of three by -0.0002 with
both. The seeds themselves differ by 0.003: neither is more than a preference.

Inner fits have fewer rows than the head will have, and get a penalty as many times stronger: what
is known beforehand of the weights does not depend on the rows.

Where the rows are more than `WHOLE_BYTES`, all this is done with a seeded sample of their patients,
`SAMPLE_BYTES` large and with some of every class. The penalty is then made weaker by the square
root of how many times more rows there are (Shalev-Shwartz and Ben-David 2014, corollary 13.9). Of
synthetic rows of 1,280 features, 10,000 were best with 0.001, 80,000 with 0.0005; the root gives
0.00035, which was 0.1 % of the cross entropy worse, no change 0.6 %, as many times weaker 1.8 %.
One more fit, of nine tenths of all rows, then predicts the last tenth, which sets calibration and
thresholds; rows marked valid do that by ending the fit of the head.

A fusion is a linear head for each block of features, whose logits are added with weights that are
not negative, found from the blocks' unseen predictions (stacking: Wolpert 1992; Breiman 1996).
It ends as one linear head. Each inner fold is predicted with weights found on the other folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.calibration import Calibration, fit_temperature
from engine.dataset import Dataset, originals_of
from engine.fitting import Chosen, Columns, Fit, Fitted, Settings, fit_weights, loss_weights
from engine.metrics import auroc
from engine.optimisation import minimise
from engine.pooling import Block
from engine.rows import Feed, Rows
from engine.splits import class_groups, grouped_folds
from engine.work import Work
from formats.splitting import class_membership

__all__ = [
    "DEFAULT_L2",
    "DEFAULT_L2_HIDDEN",
    "INNER_FOLDS",
    "KINDS",
    "MIN_JUDGED",
    "SAMPLE_BYTES",
    "WHOLE_BYTES",
    "Selection",
    "fit_selected",
    "fusion_weights",
    "select_settings",
]

#: What can be asked for; "fusion" and "auto" end as one of the heads there are.
KINDS = ("linear", "mlp", "fusion", "auto")
#: Folds that choose and calibrate.
INNER_FOLDS = 3
#: Fewer rows say nothing about what to choose, when to stop or how to calibrate.
MIN_JUDGED = 20
#: Penalty of linear heads on standardised features, where rows are too few to choose one.
DEFAULT_L2 = 0.3
#: Penalty of heads with a hidden layer, which early stopping restrains as well.
DEFAULT_L2_HIDDEN = 0.001
# From strong to weak, by halves; of labels that are decided on their own divided by their number,
# as the loss of each is.
_PATH = tuple(2.0**power for power in range(3, -18, -1))
# Penalties in a row without a gain, after which weaker ones are not tried.
_PATIENCE = 4
# Of heads with a hidden layer, where neither is fixed.
_GRID = ((0.001, 0.5), (0.03, 0.5))
# Inner fits choose and calibrate; they need not converge as far. Ten times the tolerance was too
# far off: of 80,000 rows weak penalties looked good that cost 3 % of the cross entropy in the end.
_SLACK = 3.0
#: Features, as float32, from which on a sample chooses, and those of the sample.
WHOLE_BYTES, SAMPLE_BYTES = 128 << 20, 48 << 20
# Parts of many rows of which one is held out to calibrate by, and patients of a class it should
# have; patients of a class that a sample has at least, where there are so many.
_TENTH, _HELD_PATIENTS, _SAMPLED_PATIENTS = 10, 20, 30


@dataclass(frozen=True)
class Selection:
    """What was chosen, and the predictions it was chosen by.

    Attributes
    ----------
    settings : Settings
        Of kind "linear" or "mlp" with a penalty and a dropout, or of kind "fusion", whose penalty
        stays None unless it was given.
    trials : tuple of dict
        One for every candidate, in the order tried: ``kind``, ``l2``, ``dropout``, ``loss`` (cross
        entropy of the logits as they are, which chooses between penalties of a linear head),
        ``loss_calibrated`` (after a temperature, which chooses everything else), ``auroc_macro``
        and ``chosen``; empty if nothing was tried.
    rows : int64 (m,)
        Originals that were predicted unseen; empty if rows were too few.
    logits : float64 (m, k)
        Their logits by the chosen candidate.
    protocol : str
        Which rows these are.
    enough : bool
        Whether they are enough to calibrate by.
    iterations : int
        Epochs that were best for the chosen candidate.
    notes : tuple of str
        For the head.
    fitted : Fitted, optional
        The head itself, where marked rows ended its fit.
    block_l2, block_weights : tuple of float
        Of "fusion": penalty of each block's head, and what its logits count.
    """

    settings: Settings
    trials: tuple[dict[str, Any], ...]
    rows: NDArray[np.int64]
    logits: NDArray[np.float64]
    protocol: str
    enough: bool
    iterations: int
    notes: tuple[str, ...] = ()
    fitted: Fitted | None = None
    block_l2: tuple[float, ...] = ()
    block_weights: tuple[float, ...] = ()


def select_settings(
    data: Dataset,
    train: NDArray[np.int64],
    settings: Settings,
    work: Work,
    *,
    valid: NDArray[np.int64] | None = None,
) -> Selection:
    """Choose what `settings` leaves open, and predict the training rows unseen.

    Parameters
    ----------
    data : Dataset
        All rows.
    train : int64 (n,)
        Rows to learn from, with their augmented views.
    settings : Settings
        What is fixed: a penalty of None and the kind "auto" are chosen here.
    work : Work
        Who works, and who hears of it.
    valid : int64 (m,), optional
        Rows marked valid: they choose, end the fit and calibrate in place of inner folds.

    Returns
    -------
    Selection
        To be handed to `fit_selected`.
    """
    rows = train if valid is None else np.concatenate([train, valid])
    if 4 * data.width * len(rows) > WHOLE_BYTES:
        return _by_sample(data, train, valid, settings, work)
    if valid is not None:
        return _by_marked(data, train, valid, settings, work)
    return _by_folds(data, train, settings, work)


def fit_selected(
    data: Dataset,
    train: NDArray[np.int64],
    selection: Selection,
    work: Work,
    *,
    valid: NDArray[np.int64] | None = None,
) -> Fitted:
    """Fit what was chosen on all training rows.

    Parameters
    ----------
    data, train, work
        As in `select_settings`.
    selection : Selection
        Of these or of other training rows.
    valid : int64 (m,), optional
        Rows that end the fit, if marked rows have not ended it already.

    Returns
    -------
    Fitted
        Not calibrated, with the notes of the selection.
    """
    fitted = selection.fitted
    settings = selection.settings
    if fitted is None and settings.kind == "fusion":
        heads = []
        blocks = data.blocks
        for number, (block, l2) in enumerate(zip(blocks, selection.block_l2, strict=True)):
            part = work.part(number / len(blocks), (number + 1) / len(blocks), block.name)
            own = replace(settings, kind="linear", l2=l2)
            heads.append(fit_weights(_only(data, block), train, valid, own, part))
        fitted = _collapse(heads, blocks, selection.block_weights)
    elif fitted is None:
        known = settings.kind == "mlp" and valid is None
        epochs = selection.iterations if known else 0
        fitted = fit_weights(data, train, valid, settings, work, epochs=epochs or None)
    fitted.notes.extend(note for note in selection.notes if note not in fitted.notes)
    return fitted


def _default(settings: Settings, data: Dataset) -> Settings:
    """Return settings with nothing open, for rows too few to choose by."""
    kind = "mlp" if settings.kind == "mlp" else "linear"
    l2 = settings.l2
    if l2 is None:
        l2 = DEFAULT_L2 if kind == "linear" else DEFAULT_L2_HIDDEN
        if kind == "linear" and data.multilabel:
            l2 /= len(data.classes)  # as the loss of each label is divided
    return replace(settings, kind=kind, l2=l2, dropout=settings.dropout or 0.0)


@dataclass
class _Trial:
    """What one candidate predicted of rows it had not seen."""

    settings: Settings
    #: For each part of the rows.
    logits: list[NDArray[np.float64]] = field(default_factory=list)
    fitted: list[Fitted] = field(default_factory=list)
    iterations: int = 0
    loss: float = math.inf
    loss_calibrated: float = math.inf
    block_l2: tuple[float, ...] = ()
    block_weights: tuple[float, ...] = ()

    @property
    def pooled(self) -> NDArray[np.float64]:
        """All logits, (m, k)."""
        return np.concatenate(self.logits)


@dataclass(frozen=True)
class _Choice:
    """All candidates, the rows they predicted, and the best of them."""

    trials: list[_Trial]
    rows: NDArray[np.int64]
    best: int

    def selection(self, data: Dataset) -> Selection:
        """Return it as users see it."""
        best = self.trials[self.best]
        labels = data.labels[self.rows]
        shown = []
        for trial in self.trials:
            probabilities = Calibration().apply(trial.pooled, multilabel=data.multilabel)
            areas = [
                auroc(probabilities[known, c], truth[known] == 1)
                for c, (truth, known) in enumerate(_sides(labels, len(data.classes)))
            ]
            found = [area for area in areas if area is not None]
            shown.append(
                {
                    "kind": trial.settings.kind,
                    "l2": trial.settings.l2,
                    "dropout": trial.settings.dropout,
                    "loss": trial.loss,
                    "loss_calibrated": trial.loss_calibrated,
                    "auroc_macro": float(np.mean(found)) if found else None,
                    "chosen": trial is best,
                }
            )
        return Selection(
            best.settings,
            tuple(shown),
            self.rows,
            best.pooled,
            "",
            True,
            best.iterations,
            fitted=best.fitted[0] if len(best.fitted) == 1 else None,
            block_l2=best.block_l2,
            block_weights=best.block_weights,
        )


def _sides(
    labels: NDArray[Any], n_classes: int
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Return, for each class, 1 where it is present, and which rows are known of it."""
    if labels.ndim == 2:
        return [(labels[:, c].astype(np.int64), labels[:, c] >= 0) for c in range(n_classes)]
    known = np.ones(len(labels), np.bool_)
    return [((labels == c).astype(np.int64), known) for c in range(n_classes)]


_Parts = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _choose(data: Dataset, parts: _Parts, settings: Settings, work: Work, *, stop: bool) -> _Choice:
    """Try the kinds asked for; of several, the simplest within one standard error of the best.

    Each part is rows to learn from and rows to judge; with `stop` the latter end linear fits too.
    """
    kinds: tuple[str, ...] = (settings.kind,)
    if settings.kind == "auto":
        kinds = ("linear", "fusion", "mlp")
    if len(data.blocks) < 2 and "fusion" in kinds:
        # One block is no fusion.
        kinds = tuple(kind for kind in kinds if kind != "fusion") or ("linear",)
    rows = np.concatenate([judged for _, judged in parts])
    trials: list[_Trial] = []
    winners: list[int] = []
    for number, kind in enumerate(kinds):
        part = work.part(number / len(kinds), (number + 1) / len(kinds), "")
        own = replace(settings, kind=kind)
        if kind == "linear":
            found = _linear(data, parts, own, part, stop)
        elif kind == "mlp":
            found = _hidden(data, parts, own, part)
        else:
            found = [_fusion(data, parts, own, part, stop)]
        # See the module for why penalties of linear heads are compared without a temperature.
        losses = [trial.loss if kind == "linear" else trial.loss_calibrated for trial in found]
        winners.append(len(trials) + int(np.argmin(losses)))
        trials += found
    best = min(winners, key=lambda winner: trials[winner].loss_calibrated)
    for winner in winners:
        if _within_an_error(data, rows, trials[winner], trials[best], settings.balanced):
            return _Choice(trials, rows, winner)
    return _Choice(trials, rows, best)


def _within_an_error(
    data: Dataset, rows: NDArray[np.int64], one: _Trial, best: _Trial, balanced: bool
) -> bool:
    """Tell whether one is worse than the best by no more than the standard error of that.

    Patients are what varies: losses of a patient's images are added before.
    """
    if one is best:
        return True
    labels, weights = data.labels[rows], data.weights[rows]
    losses = []
    for trial in (one, best):
        pooled = trial.pooled
        pooled = pooled / fit_temperature(pooled, labels, balanced=balanced)
        losses.append(_losses(pooled, labels, weights, balanced))
    difference = losses[0] - losses[1]
    _, patient = np.unique(data.groups[rows], return_inverse=True)
    sums = np.bincount(patient, weights=difference)
    error = math.sqrt(len(sums)) * float(sums.std())
    return float(sums.sum()) <= error


def _losses(
    logits: NDArray[np.float64], labels: NDArray[Any], weights: NDArray[np.float64], balanced: bool
) -> NDArray[np.float64]:
    """Return what each row adds to the weighted cross entropy: float64 (n,)."""
    factors = loss_weights(labels, weights, logits.shape[1], balanced=balanced)
    if labels.ndim == 1:
        high = logits.max(axis=1)
        total = np.log(np.exp(logits - high[:, None]).sum(axis=1)) + high
        own: NDArray[np.float64] = total - logits[np.arange(len(labels)), labels]
        own *= weights * factors[labels]
        return own
    signed = np.where(labels == 1, -logits, logits)
    entropy = np.logaddexp(0.0, signed)
    entropy *= np.where(labels == 1, factors[1], factors[0])
    entropy[labels < 0] = 0.0
    added: NDArray[np.float64] = weights * entropy.sum(axis=1)
    return added


def _linear(
    data: Dataset, parts: _Parts, settings: Settings, work: Work, stop: bool
) -> list[_Trial]:
    """Try a path of penalties, or the one given."""
    settings = replace(settings, kind="linear", dropout=0.0)
    path: Sequence[float] = _PATH
    if settings.l2 is not None:
        path = (settings.l2,)
    elif data.multilabel:
        path = [l2 / len(data.classes) for l2 in _PATH]
    trials: list[_Trial] = []
    for number, (own, judged) in enumerate(parts):
        name = f"inner fit {number + 1} of {len(parts)}" if len(parts) > 1 else ""
        part = work.part(number / len(parts), (number + 1) / len(parts), name)
        fit = Fit(data, own, judged if stop else None, settings, part)
        labels, weights = data.labels[judged], data.weights[judged]
        share = 1.0
        if len(parts) > 1:
            share = len(parts) / (len(parts) - 1.0)
        start: Fitted | None = None
        best, since = math.inf, 0
        for place, l2 in enumerate(path):
            step = part.part(place / len(path), (place + 1) / len(path), f"penalty {l2:.2g}")
            # As many times stronger as rows are fewer.
            inner = replace(settings, l2=l2 * share)
            # Where rows end the fit, each begins at zero: a start would have been ended before.
            slack = 1.0 if stop else _SLACK
            fitted = fit.run(inner, step, start=None if stop else start, slack=slack)
            start = fitted
            logits = fitted.logits(data.features, judged, work.crew)
            if number == 0:
                trials.append(_Trial(replace(settings, l2=l2)))
            trials[place].logits.append(logits)
            trials[place].iterations = fitted.iterations
            if stop:
                trials[place].fitted.append(fitted)
            loss = float(_losses(logits, labels, weights, settings.balanced).sum())
            since = 0 if loss < best - 1e-6 else since + 1
            best = min(best, loss)
            if number == 0 and since == _PATIENCE:
                path = path[: place + 1]
                break
    _judge(data, parts, trials, settings.balanced)
    return trials


def _judge(data: Dataset, parts: _Parts, trials: Sequence[_Trial], balanced: bool) -> None:
    """Set the losses of trials."""
    rows = np.concatenate([judged for _, judged in parts])
    labels, weights = data.labels[rows], data.weights[rows]
    for trial in trials:
        pooled = trial.pooled
        cooled = pooled / fit_temperature(pooled, labels, balanced=balanced)
        trial.loss = float(_losses(pooled, labels, weights, balanced).sum())
        trial.loss_calibrated = float(_losses(cooled, labels, weights, balanced).sum())


def _hidden(data: Dataset, parts: _Parts, settings: Settings, work: Work) -> list[_Trial]:
    """Try a few penalties and dropouts of a head with a hidden layer, whose epochs the rows end."""
    grid = {
        (
            l2 if settings.l2 is None else settings.l2,
            dropout if settings.dropout is None else settings.dropout,
        )
        for l2, dropout in _GRID
    }
    trials = [
        _Trial(replace(settings, kind="mlp", l2=l2, dropout=dropout))
        for l2, dropout in sorted(grid)
    ]
    epochs: list[list[int]] = [[] for _ in trials]
    for number, (own, judged) in enumerate(parts):
        name = f"inner fit {number + 1} of {len(parts)}" if len(parts) > 1 else ""
        part = work.part(number / len(parts), (number + 1) / len(parts), name)
        fit = Fit(data, own, judged, settings, part)
        for place, trial in enumerate(trials):
            step = part.part(place / len(trials), (place + 1) / len(trials), "")
            fitted = fit.run(trial.settings, step)
            trial.logits.append(fitted.logits(data.features, judged, work.crew))
            epochs[place].append(fitted.iterations)
            if len(parts) == 1:
                trial.fitted.append(fitted)
    for trial, made in zip(trials, epochs, strict=True):
        trial.iterations = max(1, round(float(np.median(made))))
    _judge(data, parts, trials, settings.balanced)
    return trials


def _only(data: Dataset, block: Block) -> Dataset:
    """Return the same rows with the columns of one block."""
    left, right = block.offset, block.offset + block.width
    return replace(data, features=Columns(data.features, left, right), blocks=())


def _fusion(data: Dataset, parts: _Parts, settings: Settings, work: Work, stop: bool) -> _Trial:
    """Choose a penalty for the head of every block, and what their logits count."""
    blocks, heads = data.blocks, []
    for number, block in enumerate(blocks):
        part = work.part(number / len(blocks), (number + 1) / len(blocks), block.name)
        trials = _linear(_only(data, block), parts, settings, part, stop)
        heads.append(min(trials, key=lambda trial: trial.loss))
    block_l2 = tuple(float(head.settings.l2 or 0.0) for head in heads)
    fused = _Trial(replace(settings, kind="fusion", dropout=0.0), block_l2=block_l2)
    rows = np.concatenate([judged for _, judged in parts])
    stacked = np.stack([head.pooled for head in heads])
    labels, weights = data.labels[rows], data.weights[rows]
    counts = fusion_weights(stacked, labels, weights, balanced=settings.balanced)
    fused.block_weights = tuple(counts.tolist())
    if len(parts) == 1:
        fused.logits = [_fused(stacked, counts)]
        if stop:
            heads_fitted = [head.fitted[0] for head in heads]
            fused.fitted = [_collapse(heads_fitted, blocks, fused.block_weights)]
    else:
        part_of = np.repeat(np.arange(len(parts)), [len(judged) for _, judged in parts])
        for number in range(len(parts)):
            others, own = part_of != number, part_of == number
            unseen = fusion_weights(
                stacked[:, others], labels[others], weights[others], balanced=settings.balanced
            )
            fused.logits.append(_fused(stacked[:, own], unseen))
    fused.iterations = max(head.iterations for head in heads)
    _judge(data, parts, [fused], settings.balanced)
    return fused


def _fused(stacked: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add logits (b, n, k) of blocks by what they count, one after another."""
    total = np.zeros(stacked.shape[1:])
    for logits, count in zip(stacked, counts, strict=True):
        total += count * logits
    return total


def fusion_weights(
    stacked: NDArray[np.float64],
    labels: NDArray[Any],
    weights: NDArray[np.float64],
    *,
    balanced: bool,
) -> NDArray[np.float64]:
    """Find what the logits of several heads count in their sum, none of them negative.

    Parameters
    ----------
    stacked : float64 (b, n, k)
        Logits of b heads, of rows none of them has seen.
    labels : int (n,) or int8 (n, k)
        Truth.
    weights : float64 (n,)
        What each row counts.
    balanced : bool
        As in `engine.fitting.loss_weights`.

    Returns
    -------
    float64 (b,)
        The counts with the lowest cross entropy of the sum.
    """
    factors = loss_weights(labels, weights, stacked.shape[2], balanced=balanced)

    def evaluate(root: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
        # Squares are never negative.
        logits = _fused(stacked, root * root)
        value = float(_losses(logits, labels, weights, balanced).sum())
        if labels.ndim == 1:
            residual = Calibration().apply(logits, multilabel=False)
            residual[np.arange(len(labels)), labels] -= 1.0
            residual *= (weights * factors[labels])[:, None]
        else:
            residual = Calibration().apply(logits, multilabel=True) - (labels == 1)
            residual *= np.where(labels == 1, factors[1], factors[0]) * weights[:, None]
            residual[labels < 0] = 0.0
        for number, own in enumerate(stacked):
            gradient[number] = 2.0 * root[number] * float((own * residual).sum())
        # Heads that separate the rows would count without end.
        penalty = 1e-4 / len(root)
        gradient += 4.0 * penalty * root**3
        return value + penalty * float((root**4).sum())

    root, _ = minimise(evaluate, np.full(len(stacked), len(stacked) ** -0.5), 200)
    return root * root


def _collapse(heads: Sequence[Fitted], blocks: Sequence[Block], counts: Sequence[float]) -> Fitted:
    """Write the sum of the blocks' heads as one linear head."""
    d = sum(block.width for block in blocks)
    k = len(heads[0].weights["bias"])
    weight, bias = np.zeros((k, d), np.float32), np.zeros(k)
    mean, scale = np.empty(d, np.float32), np.empty(d, np.float32)
    for head, block, count in zip(heads, blocks, counts, strict=True):
        columns = slice(block.offset, block.offset + block.width)
        weight[:, columns] = count * head.weights["weight"].astype(np.float64)
        mean[columns], scale[columns] = head.mean, head.scale
        bias += count * head.weights["bias"].astype(np.float64)
    weights = {"weight": weight, "bias": bias.astype(np.float32)}
    return Fitted(weights, mean, scale, max(head.iterations for head in heads))


def _by_folds(data: Dataset, train: NDArray[np.int64], settings: Settings, work: Work) -> Selection:
    """Choose by inner folds of the training rows."""
    judge = originals_of(data, train)
    k = len(data.classes)
    patients = class_groups(data.labels[judge], data.groups[judge], k)
    # One rare label must not keep the others from being chosen for.
    fewest = int(np.median(patients) if data.multilabel else patients.min())
    enough = len(judge) >= MIN_JUDGED and fewest >= INNER_FOLDS
    notes: tuple[str, ...] = ()
    if not enough:
        which = "a usual label" if data.multilabel else "the smallest class"
        notes = (
            f"the training rows are {len(judge)} images, with {fewest} patient(s) in {which}, too "
            f"few to calibrate by ({MIN_JUDGED} and {INNER_FOLDS} needed): probabilities are not "
            "calibrated",
        )
        settings = _default(settings, data)
    if fewest < 2:
        return Selection(settings, (), judge[:0], np.empty((0, k)), "", False, 0, notes)
    folds = min(INNER_FOLDS, fewest)
    fold_of = grouped_folds(
        data.labels[train], data.groups[train], k, folds=folds, seed=settings.seed
    )
    inner = []
    for fold in range(folds):
        judged = originals_of(data, train[fold_of == fold])
        inner.append((train[fold_of != fold], judged))
    rare = int(np.count_nonzero(patients < INNER_FOLDS))
    if enough and rare:
        notes = (
            f"{rare} of {k} labels are present in fewer than {INNER_FOLDS} patients: the others "
            "chose penalty and calibration, and their own thresholds say little",
        )
    chosen = _choose(data, inner, settings, work, stop=False)
    return replace(
        chosen.selection(data),
        protocol=f"training rows, each predicted by one of {folds} inner fits that had not seen it",
        enough=enough,
        notes=notes,
    )


def _by_marked(
    data: Dataset,
    train: NDArray[np.int64],
    valid: NDArray[np.int64],
    settings: Settings,
    work: Work,
) -> Selection:
    """Choose by rows marked valid, which also end the fit."""
    judge = originals_of(data, valid)
    protocol = "rows marked valid"
    if len(judge) < MIN_JUDGED:
        note = (
            f"rows marked valid are {len(judge)} images, too few to stop early or calibrate by "
            f"({MIN_JUDGED} needed): the penalty alone restrains the weights, and probabilities "
            "are not calibrated"
        )
        fitted = fit_weights(data, train, None, _default(settings, data), work)
        logits = np.empty((0, len(data.classes)))
        if len(judge):
            logits = fitted.logits(data.features, judge, work.crew)
        return Selection(
            _default(settings, data),
            (),
            judge,
            logits,
            protocol + "; nothing was fitted or calibrated by them",
            False,
            fitted.iterations,
            (note,),
            fitted,
        )
    chosen = _choose(data, [(train, judge)], settings, work, stop=True)
    return replace(chosen.selection(data), protocol=protocol)


def _by_sample(
    data: Dataset,
    train: NDArray[np.int64],
    valid: NDArray[np.int64] | None,
    settings: Settings,
    work: Work,
) -> Selection:
    """Choose by a sample of many rows, and calibrate by rows that one fit has not seen."""
    if valid is not None and len(originals_of(data, valid)) < MIN_JUDGED:
        return _by_marked(data, train, valid, settings, work)
    part = work.part(0.0, 0.4, "sample")
    most = SAMPLE_BYTES // (4 * data.width)
    if valid is None:
        few = _sample(data, train, most, settings.seed)
        found = _by_folds(_small(data, few, work), np.arange(len(few)), settings, part)
    else:
        few = _sample(data, train, 2 * most // 3, settings.seed)
        both = np.concatenate([few, _sample(data, valid, most // 3, settings.seed)])
        sides = np.arange(len(few)), np.arange(len(few), len(both))
        found = _by_marked(_small(data, both, work), *sides, settings, part)
    if valid is None and not found.enough:
        # Some class has too few patients in all rows: nothing was chosen.
        return replace(found, rows=few[found.rows])
    chosen = settings.l2 is None
    found = _scaled(found, len(few), len(train), chosen)
    part = work.part(0.4, 1.0, "")
    if valid is not None:
        judged = originals_of(data, valid)
        fitted = fit_selected(data, train, replace(found, fitted=None), part, valid=judged)
    else:
        own, judged = _hold_out(data, train, settings.seed)
        inner = _scaled(found, len(train), len(own), chosen)
        ends = judged if found.settings.kind == "mlp" else None
        fitted = fit_selected(data, own, inner, part, valid=ends)
        found = replace(found, protocol="training rows that a fit of the others had not seen")
    return replace(
        found,
        rows=judged,
        logits=fitted.logits(data.features, judged, work.crew),
        iterations=fitted.iterations,
        fitted=None if valid is None else fitted,
    )


def _sample(data: Dataset, rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Draw patients with all of their rows, and of every class some if there are."""
    if len(rows) <= most:
        return rows
    _, patient, sizes = np.unique(data.groups[rows], return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 4]).permutation(len(sizes))
    drawn = np.zeros(len(sizes), np.bool_)
    drawn[order[: np.searchsorted(np.cumsum(sizes[order]), most, side="right")]] = True
    place = np.argsort(order)
    for members in class_membership(data.labels[rows], len(data.classes)).T:
        own = np.unique(patient[members])
        missing = _SAMPLED_PATIENTS - int(drawn[own].sum())
        if missing > 0:
            rest = own[~drawn[own]]
            drawn[rest[np.argsort(place[rest])[:missing]]] = True
    return rows[drawn[patient]]


def _small(data: Dataset, rows: NDArray[np.int64], work: Work) -> Dataset:
    """Return what fits and folds ask of some rows, their features held where there is room."""
    features: Rows = Chosen(data.features, rows)
    if 4 * features.dim * len(rows) <= work.hold_bytes:
        feed, X = Feed(data.features, rows), np.empty((len(rows), features.dim), np.float32)

        def fill(part: int) -> None:
            for piece, values in feed.pieces(part):
                X[piece] = values

        for _ in work.crew.map(fill, feed.n_parts):
            pass
        features = Rows.of_matrix(X)
    return replace(
        data,
        features=features,
        labels=data.labels[rows],
        groups=data.groups[rows],
        views=data.views[rows],
        weights=data.weights[rows],
    )


def _scaled(found: Selection, n: int, n_now: int, chosen: bool) -> Selection:
    """Return penalties of linear heads that were chosen for n rows as they are for others."""
    if not chosen:
        return found
    ratio = math.sqrt(n / n_now)

    def scale(kind: str, l2: float | None) -> float | None:
        return l2 if kind == "mlp" or l2 is None else l2 * ratio

    trials = tuple({**trial, "l2": scale(trial["kind"], trial["l2"])} for trial in found.trials)
    settings = replace(found.settings, l2=scale(found.settings.kind, found.settings.l2))
    block_l2 = tuple(l2 * ratio for l2 in found.block_l2)
    return replace(found, settings=settings, trials=trials, block_l2=block_l2)


def _hold_out(
    data: Dataset, rows: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide many rows into those to learn from, and the originals of about a tenth."""
    labels, groups, k = data.labels[rows], data.groups[rows], len(data.classes)
    originals = originals_of(data, rows)
    fewest = int(class_groups(data.labels[originals], data.groups[originals], k).min())
    folds = min(_TENTH, max(INNER_FOLDS, fewest // _HELD_PATIENTS))
    fold_of = grouped_folds(labels, groups, k, folds=folds, seed=seed)
    return rows[fold_of != 0], originals_of(data, rows[fold_of == 0])
