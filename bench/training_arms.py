"""One arm of bench/bench_training.py, in a process of its own.

python -m bench.training_arms ARM PLAN.json OUT.json
python -m bench.training_arms ARM:BATCH PLAN.json OUT.json

The second form makes one step of so many images under a limit of memory. What all arms share is
here too: the head's loss, its gradient, L-BFGS and its stopping rule are those of the engine, and
only where the features come from differs. The arms that need PyTorch run in an interpreter that has
it beside the engine's own dependencies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from engine import fitting, jit, optimisation, rows
from engine.fitting import Settings, Shapes, feed_logits, standardisation
from engine.images import Preprocessing, preprocess, read_picture
from engine.inference import feature_maps, in_order
from engine.optimisation import minimise
from engine.pooling import Block, blocks_from_notes, feature_width, pool_features
from engine.rows import Crew, Feed, Rows

Floats = np.ndarray[Any, Any]
MEMORY_BYTES = 1 << 30
TORCH_BATCH = 32
CHUNK = 8
# The recipe of fine-tuning, stated in the docstring of bench_training.py.
TUNED_BATCH, TUNED_RATE, TUNED_HEAD_RATE, TUNED_DECAY, TUNED_WARM = 16, 1e-4, 1e-3, 0.01, 0.1


class Cost(NamedTuple):
    """What this process has spent: seconds of wall and CPU time, bytes asked of the disk."""

    wall: float
    cpu: float
    read: int

    @classmethod
    def now(cls) -> Cost:
        return cls(time.perf_counter(), time.process_time(), _bytes_read())

    def since(self, start: Cost) -> list[float]:
        return [mine - theirs for mine, theirs in zip(self, start, strict=True)]


def _bytes_read() -> int:
    """Bytes that read calls returned, from the page cache too; 0 where nobody counts them."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
        return int(found[1])  # type: ignore[index]
    return 0


def peak_mib() -> float:
    """Peak memory of this process alone; what getrusage says, a child inherits of its parent."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    import resource

    divisor = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / divisor


class Enough(Exception):  # noqa: N818 - nothing went wrong
    """Raised when as many passes were made as were asked for."""


class Walk:
    """A linear head fitted by passes over rows: what it cost, and what it knew after each.

    Parameters
    ----------
    feed : Feed
        Standardised rows.
    labels : int (n,)
        Truth.
    marks : sequence of int
        Passes after which the parameters are kept that the search goes to; the last one ends it.
    converge : bool
        Whether the engine's tolerances may end it before.
    """

    def __init__(
        self,
        feed: Feed,
        labels: Floats,
        n_classes: int,
        l2: float,
        marks: Sequence[int],
        crew: Crew,
        *,
        converge: bool = False,
    ) -> None:
        settings = Settings("linear", l2, 1, True, 0)
        self.shapes = Shapes.of(settings, feed.dim, n_classes)
        loss = fitting.Loss(self.shapes, settings, labels, np.ones(len(labels)), n_classes)
        self.costs: list[list[float]] = []
        self.kept: dict[int, Floats] = {}
        least = math.inf
        best = start = loss.start(labels)

        def evaluate(point: Floats, gradient: Floats) -> float:
            nonlocal least, best
            if len(self.costs) in marks:
                self.kept[len(self.costs)] = point.copy()  # where the last gradient has led
            if len(self.costs) >= max(marks):
                raise Enough
            before = Cost.now()
            value = loss.of_all(feed, labels, point, gradient, crew)
            self.costs.append(Cost.now().since(before))
            if value < least:
                least, best = value, point.copy()
            return value

        tolerances = {
            name: getattr(optimisation, name) if converge else 0.0
            for name in ("_GRADIENT_TOLERANCE", "_PROGRESS_TOLERANCE")
        }
        with contextlib.suppress(Enough), mock.patch.multiple(optimisation, **tolerances):
            minimise(evaluate, start, 1_000_000)
            while not converge:  # rounding ended the search: the passes are made all the same
                evaluate(best, np.empty_like(best))
        self.best = best

    def probabilities(self, feed: Feed, theta: Floats, crew: Crew) -> Floats:
        weights = {name: part.astype(np.float32) for name, part in self.shapes.cut(theta).items()}
        return softmax(feed_logits(feed, weights, crew))


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


class Seen(Rows):
    """Features that the backbone computes anew whenever rows are read.

    Parameters
    ----------
    compute : callable
        ``compute(index, out)`` fills the features of images.
    n, dim : int
        Images, and features of each.
    once : list of float
        What decoding has cost that is not done again in every pass.
    """

    def __init__(
        self, compute: Callable[[Floats, Floats], None], n: int, dim: int, once: list[float]
    ) -> None:
        super().__init__(())
        self._compute, self._n, self.dim, self.once = compute, n, dim, once

    def __len__(self) -> int:
        return self._n

    def read(self, index: Floats, out: Floats) -> None:
        self._compute(index, out)


# --- where features come from --------------------------------------------------------------------


def _rules(plan: dict[str, Any]) -> Preprocessing:
    return Preprocessing.from_dict(plan["preprocessing"])


def _blocks(plan: dict[str, Any]) -> tuple[Block, ...]:
    return blocks_from_notes(plan["blocks"])


def _load_inputs(plan: dict[str, Any]) -> Floats:
    """Decode and preprocess all images once: uint8 (n, 1, h, w)."""
    rules = _rules(plan)
    out = np.empty((len(plan["files"]), 1, rules.height, rules.width), np.uint8)

    def one(path: str) -> Floats:
        return preprocess(read_picture(path), rules)

    for row, image in enumerate(in_order(one, plan["files"], plan["threads"])):
        out[row] = image
    return out


def open_int8(plan: dict[str, Any], *, held: bool) -> Seen:
    """The engine's own backbone, on images from their files or held as the network's inputs."""
    import engine

    backbone = engine.load_backbone(plan["backbone"], streams=plan["threads"])
    blocks, rules = _blocks(plan), _rules(plan)
    before = Cost.now()
    inputs = _load_inputs(plan) if held else None
    once = Cost.now().since(before)

    def some(chosen: list[int]) -> list[Floats]:
        # Decoding a few before the network runs is what extraction does, and what is fastest.
        if inputs is not None:
            images = [inputs[row] for row in chosen]
        else:
            images = [preprocess(read_picture(plan["files"][row]), rules) for row in chosen]
        return [pool_features(feature_maps(backbone, [image]), blocks)[0] for image in images]

    def compute(index: Floats, out: Floats) -> None:
        wanted = index.tolist()
        chunks = [wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK)]
        row = 0
        for vectors in in_order(some, chunks, plan["threads"]):
            for vector in vectors:
                out[row] = vector
                row += 1

    return Seen(compute, len(plan["files"]), feature_width(blocks), once)


def open_torch(plan: dict[str, Any]) -> Seen:
    """PyTorch on the same weights, batch normalisation folded, up to the last tap; inputs held."""
    import torch

    from engine.models.build import RECIPES, load_published, tapped_network
    from engine.models.folding import PIXEL_OFFSET

    torch.set_num_threads(plan["threads"])
    recipe = next(each for each in RECIPES if each.name == plan["backbone"])
    network = tapped_network(load_published(recipe), recipe).to(memory_format=torch.channels_last)
    blocks = _blocks(plan)
    taps = {recipe.taps[block.tap]: block.tap for block in blocks}
    before = Cost.now()
    inputs = _load_inputs(plan)
    once = Cost.now().since(before)

    def maps(pictures: Any) -> dict[str, Any]:
        x = pictures.to(torch.float32).contiguous(memory_format=torch.channels_last) - PIXEL_OFFSET
        x = torch.nn.functional.relu6(network.stem(x))
        found = {}
        for number, block in enumerate(network.blocks[: max(taps) + 1]):
            x = block(x)
            if number in taps:
                found[taps[number]] = x.contiguous().numpy()
        return found

    def compute(index: Floats, out: Floats) -> None:
        with torch.inference_mode():
            for start in range(0, len(index), TORCH_BATCH):
                some = index[start : start + TORCH_BATCH]
                found = maps(torch.from_numpy(inputs[some]))
                pool_features(found, blocks, out[start : start + TORCH_BATCH])

    return Seen(compute, len(inputs), feature_width(blocks), once)


# --- arms with a head of the engine ---------------------------------------------------------------


@contextlib.contextmanager
def whole_passes() -> Iterator[None]:
    """Hand out all rows of a part at once: no thread waits at the end of a piece."""
    with mock.patch.object(rows, "PIECE_BYTES", 1 << 30):
        yield


def _means(features: Rows, chosen: Floats, crew: Crew) -> tuple[Floats, Floats]:
    origin = np.empty((1, features.dim), np.float32)
    features.read(chosen[:1], origin)
    return standardisation(Feed(features, chosen), origin[0], crew)


def run_images(plan: dict[str, Any], limits: dict[str, Any], source: str) -> dict[str, Any]:
    """Run the backbone over the images in every pass.

    The pass that finds means and spreads, and the one over the test images, are not counted.
    """
    jit.load()
    features = open_torch(plan) if source == "torch" else open_int8(plan, held=source == "held")
    labels = np.array(plan["labels"])
    folds = np.array(plan["folds"])
    k = len(plan["classes"])
    judged: dict[int, Floats] = {}
    with Crew(1) as crew, whole_passes():
        every = np.arange(len(labels))
        feed = Feed(features, every, *_means(features, every, crew))
        walk = Walk(feed, labels, k, plan["l2"], [limits["passes"]], crew)
        for fold in range(int(folds.max()) + 1) if limits["fold_marks"] else ():
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            mean, scale = _means(features, train, crew)
            feed = Feed(features, train, mean, scale)
            found = Walk(feed, labels[train], k, plan["l2"], limits["fold_marks"], crew)
            judge = Feed(features, test, mean, scale)
            judge.hold(crew)
            for mark, theta in found.kept.items():
                out = judged.setdefault(mark, np.full((len(labels), k), np.nan))
                out[test] = found.probabilities(judge, theta, crew)
        some = np.arange(min(len(labels), 48))
        sample = np.empty((len(some), features.dim), np.float32)
        features.read(some, sample)
    return {
        "once": features.once,
        "passes": walk.costs,
        "probabilities": {str(mark): out.tolist() for mark, out in judged.items()},
        "sample": sample.tolist(),
    }


def run_extract(plan: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Extract all images into the container, with a loaded backbone as the others have one."""
    import engine
    from engine.manifest import Sample

    jit.load()
    backbone = engine.load_backbone(plan["backbone"], streams=plan["threads"])
    samples = [
        Sample(Path(file), (plan["classes"][label],), str(group))
        for file, label, group in zip(plan["files"], plan["labels"], plan["groups"], strict=True)
    ]
    costs = []
    for number in range(limits["rounds"] + 1):  # the first is not counted
        Path(plan["container"]).unlink(missing_ok=True)
        before = Cost.now()
        engine.extract_features(backbone, samples, plan["container"], seed=0).close()
        if number:
            costs.append(Cost.now().since(before))
    return {"rounds": costs}


def run_container(plan: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Train from the container: opened, checked, read and standardised in every training."""
    import engine
    from engine.dataset import learning_rows, load_rows
    from engine.work import Course

    jit.load()
    labels = np.array(plan["labels"])
    folds = np.array(plan["folds"])
    k = len(plan["classes"])
    # As engine.extract_features shuffles the rows; what it says of them is compared below.
    order = np.random.default_rng(0).permutation(len(labels))

    @contextlib.contextmanager
    def opened(crew: Crew) -> Iterator[Rows]:
        with (
            engine.open_container(plan["container"], mode="read") as container,
            Rows((container,)) as features,
        ):
            data = load_rows((container,), features, learning_rows, Course(1, None).reading(crew))
            if [data.classes[label] for label in data.labels] != [
                plan["classes"][label] for label in labels[order]
            ]:
                raise SystemExit("the container's rows are not those of the images")
            yield features

    def held(features: Rows, chosen: Floats, crew: Crew) -> tuple[Feed, Floats, Floats]:
        mean, scale = _means(features, chosen, crew)
        feed = Feed(features, chosen, mean, scale)
        feed.hold(crew)
        return feed, mean, scale

    mine, parts = labels[order], folds[order]
    timing: dict[str, list[list[float]]] = {}
    passes: list[list[float]] = []
    trials: list[list[float]] = []
    trial_passes: list[int] = []
    trial_rows: list[int] = []
    judged: dict[str, Floats] = {}
    with Crew(plan["threads"]) as crew:
        for number in range(limits["rounds"] + 1):  # the first is not counted
            for mark in plan["marks"]:
                before = Cost.now()
                with opened(crew) as features:
                    feed, _, _ = held(features, np.arange(len(mine)), crew)
                    walk = Walk(feed, mine, k, plan["l2"], [mark], crew)
                if number:
                    timing.setdefault(str(mark), []).append(Cost.now().since(before))
                    passes += walk.costs
        with opened(crew) as features:
            for fold in range(int(folds.max()) + 1):
                train, test = np.flatnonzero(parts != fold), np.flatnonzero(parts == fold)
                feed, mean, scale = held(features, train, crew)
                walk = Walk(feed, mine[train], k, plan["l2"], plan["marks"], crew)
                judge = Feed(features, test, mean, scale)
                for mark, theta in walk.kept.items():
                    out = judged.setdefault(str(mark), np.full((len(mine), k), np.nan))
                    out[order[test]] = walk.probabilities(judge, theta, crew)
        for fold in range(int(folds.max()) + 1):
            before = Cost.now()
            best, made = -math.inf, 0
            with opened(crew) as features:
                inner = (fold + 1) % (int(folds.max()) + 1)
                test, valid = np.flatnonzero(parts == fold), np.flatnonzero(parts == inner)
                train = np.flatnonzero((parts != fold) & (parts != inner))
                feed, mean, scale = held(features, train, crew)
                judge, watch = (Feed(features, each, mean, scale) for each in (test, valid))
                for l2 in plan["trials"]:
                    marks = [max(plan["marks"])]
                    walk = Walk(feed, mine[train], k, l2, marks, crew, converge=True)
                    made += len(walk.costs)
                    seen = walk.probabilities(watch, walk.best, crew)
                    likely = float(
                        np.log(np.maximum(seen[range(len(valid)), mine[valid]], 1e-12)).mean()
                    )
                    if likely > best:
                        best, chosen = likely, walk
            trials.append(Cost.now().since(before))
            trial_passes.append(made * len(train))
            trial_rows.append(len(train))
            with opened(crew) as features:
                judge = Feed(features, test, mean, scale)
                out = judged.setdefault("trials", np.full((len(mine), k), np.nan))
                out[order[test]] = chosen.probabilities(judge, chosen.best, crew)
        with opened(crew) as features:
            where = np.argsort(order)[: min(len(mine), 48)]
            sample = np.empty((len(where), features.dim), np.float32)
            features.read(where, sample)
    return {
        "timing": timing,
        "passes": passes,
        "trials": trials,
        "trial_image_passes": trial_passes,
        "trial_rows": trial_rows,
        "probabilities": {mark: out.tolist() for mark, out in judged.items()},
        "sample": sample.tolist(),
        "container_bytes": Path(plan["container"]).stat().st_size,
    }


# --- fine-tuning ----------------------------------------------------------------------------------


class Tuned:
    """The published network with all weights free, and a linear head on its features.

    Parameters
    ----------
    taps : bool
        Whether the head sees the pooled taps of the container, or the mean of the final map as
        ImageNet's own head does.
    """

    def __init__(self, plan: dict[str, Any], n_classes: int, *, taps: bool) -> None:
        import torch

        from engine.models.build import RECIPES, load_published

        torch.manual_seed(0)
        torch.set_num_threads(plan["threads"])
        recipe = next(each for each in RECIPES if each.name == plan["backbone"])
        self.torch, self.plan = torch, plan
        # Statistics of batch normalisation stay: batches are small. Its weights are learned.
        self.network = load_published(recipe).to(memory_format=torch.channels_last)
        self.taps = {recipe.taps[block.tap]: block for block in _blocks(plan)} if taps else {}
        width = feature_width(_blocks(plan)) if taps else self.network._conv_head.out_channels
        self.head = torch.nn.Linear(width, n_classes)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.mean, self.scale = torch.zeros(width), torch.ones(width)

    def features(self, pictures: Any) -> Any:
        """Pooled features (n, d) of normalised pictures (n, 1, h, w)."""
        torch, network = self.torch, self.network
        x = pictures.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = network._swish(network._bn0(network._conv_stem(x)))
        found = []
        last = max(self.taps) + 1 if self.taps else len(network._blocks)
        for number, block in enumerate(network._blocks[:last]):
            x = block(x)
            if number in self.taps:
                grid = int(self.taps[number].pooling[-1])
                pooled = torch.nn.functional.adaptive_avg_pool2d(x, grid)
                found.append(pooled.permute(0, 2, 3, 1).flatten(1))
        if not self.taps:
            x = network._swish(network._bn1(network._conv_head(x)))
            found.append(x.mean(dim=(2, 3)))
        return torch.cat(found, dim=1)

    def pictures(self, inputs: Floats) -> Any:
        return (self.torch.from_numpy(inputs).float() - 127.0) / 128.0

    def logits(self, pictures: Any) -> Any:
        return self.head((self.features(pictures) - self.mean) / self.scale)

    def augmented(self, pictures: Any, generator: Any) -> Any:
        """Turn by up to 5 degrees, shift by 3 %, scale by 5 %, contrast by 10 %: as our views."""
        torch = self.torch
        n = len(pictures)
        drawn = 2.0 * torch.rand((n, 5), generator=generator) - 1.0
        angle, size = drawn[:, 0] * (5.0 * math.pi / 180.0), 1.0 + 0.05 * drawn[:, 1]
        matrix = torch.zeros((n, 2, 3))
        matrix[:, 0, 0] = matrix[:, 1, 1] = size * torch.cos(angle)
        matrix[:, 0, 1] = -size * torch.sin(angle)
        matrix[:, 1, 0] = size * torch.sin(angle)
        matrix[:, :, 2] = 0.06 * drawn[:, 2:4]  # 3 % of a picture that is 2 wide
        grid = torch.nn.functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
        moved = torch.nn.functional.grid_sample(
            pictures, grid, padding_mode="border", align_corners=False
        )
        return moved * (1.0 + 0.1 * drawn[:, 4])[:, None, None, None]

    def standardise(self, inputs: Floats, chosen: Floats) -> None:
        """Means and spreads of the published network's features; not counted."""
        torch = self.torch
        with torch.inference_mode():
            parts = [
                self.features(self.pictures(inputs[chosen[start : start + TORCH_BATCH]]))
                for start in range(0, len(chosen), TORCH_BATCH)
            ]
        found = torch.cat(parts)
        self.mean = found.mean(dim=0).clone()
        spread = found.std(dim=0)
        # Features that are nearly constant in the originals move in turned ones and while the
        # network learns: divided by next to nothing they would drown all others.
        self.scale = spread.clamp_min(0.1 * float(spread.median()) + 1e-6).clone()

    def fit(
        self, inputs: Floats, labels: Floats, chosen: Floats, epochs: int, *, steps: int = 0
    ) -> list[tuple[int, list[float], float]]:
        """Learn; returns images, cost and loss of each step. With `steps`, stop after so many."""
        torch = self.torch
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.AdamW(
            [
                {"params": self.network.parameters(), "lr": TUNED_RATE},
                {"params": self.head.parameters(), "lr": TUNED_HEAD_RATE},
            ],
            weight_decay=TUNED_DECAY,
            fused=True,
        )
        per_epoch = -(-len(chosen) // self.plan.get("tuned_batch", TUNED_BATCH))
        total = epochs * per_epoch
        warm = max(1, round(TUNED_WARM * total))

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        counts = np.bincount(labels[chosen], minlength=self.head.out_features)
        weight = torch.from_numpy(len(chosen) / (len(counts) * np.maximum(counts, 1))).float()
        made: list[tuple[int, list[float], float]] = []
        for _ in range(epochs):
            shuffled = chosen[torch.randperm(len(chosen), generator=generator).numpy()]
            for batch in np.array_split(shuffled, per_epoch):
                before = Cost.now()
                pictures = self.augmented(self.pictures(inputs[batch]), generator)
                loss = torch.nn.functional.cross_entropy(
                    self.logits(pictures), torch.from_numpy(labels[batch]).long(), weight
                )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                made.append((len(batch), Cost.now().since(before), loss.item()))
                if len(made) == steps:
                    return made
        return made

    def probabilities(self, inputs: Floats, chosen: Floats) -> Floats:
        with self.torch.inference_mode():
            parts = [
                self.logits(self.pictures(inputs[chosen[start : start + TORCH_BATCH]])).numpy()
                for start in range(0, len(chosen), TORCH_BATCH)
            ]
        return softmax(np.concatenate(parts).astype(np.float64))


def scaled_steps(
    steps: Sequence[tuple[int, list[float], float]], n: int, skip: int
) -> list[list[float]]:
    """Cost of an epoch of `n` images at the pace of each step after the first `skip`."""
    kept = steps[skip:] or steps
    return [[part * n / images for part in cost] for images, cost, _ in kept]


def fold_key(plan: dict[str, Any], arm: str, epochs: int, fold: int, version: str) -> str:
    """Name of what is kept of one fold: it changes with anything that changes the predictions."""
    files = [(Path(file).name, Path(file).stat().st_size) for file in plan["files"]]
    same = ("labels", "groups", "folds", "classes", "backbone", "blocks", "preprocessing")
    recipe = ["spread", 0.1, TUNED_BATCH, TUNED_RATE, TUNED_HEAD_RATE, TUNED_DECAY, TUNED_WARM]
    said = [arm, epochs, fold, version, recipe, files, [plan[name] for name in same]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def run_tuned(plan: dict[str, Any], limits: dict[str, Any], *, taps: bool) -> dict[str, Any]:
    """Learn all weights, from the published ones anew for every fold and number of epochs.

    Cost is that of some steps. A fold that is kept from an earlier run is not run again; none is
    begun after the minutes given.
    """
    import torch

    loaded = Cost.now()
    inputs = _load_inputs(plan)
    once = Cost.now().since(loaded)
    labels, folds = np.array(plan["labels"]), np.array(plan["folds"])
    k, arm = len(plan["classes"]), "tuned-taps" if taps else "tuned-final"
    every = np.arange(len(labels))
    tuned = Tuned(plan, k, taps=taps)
    tuned.standardise(inputs, every)
    steps = limits["steps"]
    made = tuned.fit(inputs, labels, every, 1 + steps // max(1, len(every) // 16), steps=steps)
    judged: dict[str, Floats] = {}
    losses: dict[str, list[list[float]]] = {}
    kept = 0
    end = time.monotonic() + 60 * limits["minutes"]
    for epochs in limits["fold_marks"]:
        for fold in range(int(folds.max()) + 1):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            name = fold_key(plan, arm, epochs, fold, torch.__version__)
            path = Path(plan["keep"]) / f"{name}.json" if plan["keep"] else None
            if path is not None and path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
                kept += 1
            elif time.monotonic() > end:
                continue
            else:
                tuned = Tuned(plan, k, taps=taps)
                tuned.standardise(inputs, train)
                learned = [loss for _, _, loss in tuned.fit(inputs, labels, train, epochs)]
                part = max(1, min(len(learned) // 2, 10))
                ends = [float(np.mean(learned[:part])), float(np.mean(learned[-part:]))]
                found = {"shares": tuned.probabilities(inputs, test).tolist(), "losses": ends}
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    draft = path.with_suffix(".part")
                    draft.write_text(json.dumps(found), encoding="utf-8")
                    draft.replace(path)
            out = judged.setdefault(str(epochs), np.full((len(labels), k), np.nan))
            out[test] = found["shares"]
            losses.setdefault(str(epochs), []).append(found["losses"])
    return {
        "once": once,
        "passes": scaled_steps(made, len(every), 2),
        "pieces": True,
        "probabilities": {mark: out.tolist() for mark, out in judged.items()},
        "losses": losses,
        "kept": kept,
        "torch": torch.__version__,
    }


# --- the largest batch ----------------------------------------------------------------------------


def step_once(plan: dict[str, Any], arm: str, batch: int) -> None:
    """Make one step of so many images, drawn at random; MemoryError or death says: too many."""
    rules, k = _rules(plan), len(plan["classes"])
    labels = np.arange(batch) % k
    rng = np.random.default_rng(0)

    def draw(_plan: dict[str, Any]) -> Floats:
        out = np.empty((batch, 1, rules.height, rules.width), np.uint8)
        for row in range(batch):
            out[row] = rng.integers(0, 256, out.shape[1:], np.uint8)
        return out

    if arm.startswith("tuned"):
        tuned = Tuned({**plan, "tuned_batch": batch}, k, taps=arm == "tuned-taps")
        tuned.fit(draw(plan), labels, np.arange(batch), 1, steps=1)
        return
    jit.load()
    plan = {**plan, "files": [""] * batch}
    with Crew(1) as crew, whole_passes():
        if arm == "container":
            import engine

            with (
                engine.open_container(plan["container"], mode="read") as container,
                Rows((container,)) as features,
            ):
                features.choose(np.arange(batch), np.zeros(batch, np.int64), crew)
                feed = Feed(features, np.arange(batch), *_means(features, np.arange(batch), crew))
                Walk(feed, labels, k, plan["l2"], [1], crew)
            return
        with mock.patch.object(sys.modules[__name__], "_load_inputs", draw):
            if arm == "torch":
                with mock.patch.object(sys.modules[__name__], "TORCH_BATCH", batch):
                    features = open_torch(plan)
                    out = np.empty((batch, features.dim), np.float32)
                    features.read(np.arange(batch), out)
                return
            features = open_int8(plan, held=True)
        width = np.ones(features.dim, np.float32)
        feed = Feed(features, np.arange(batch), 0.0 * width, width)
        Walk(feed, labels, k, plan["l2"], [1], crew)


def limit_memory() -> None:
    """Let no more than 1 GiB of private memory be taken; libraries mapped from files are free."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


ARMS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "extract": run_extract,
    "container": run_container,
    "int8-files": lambda plan, limits: run_images(plan, limits, "files"),
    "int8-held": lambda plan, limits: run_images(plan, limits, "held"),
    "torch": lambda plan, limits: run_images(plan, limits, "torch"),
    "tuned-taps": lambda plan, limits: run_tuned(plan, limits, taps=True),
    "tuned-final": lambda plan, limits: run_tuned(plan, limits, taps=False),
}


def main(argv: Sequence[str]) -> int:
    arm, plan_path, out = argv
    plan = json.loads(Path(plan_path).read_text(encoding="utf-8"))
    name, _, batch = arm.partition(":")
    if batch:
        limit_memory()
        step_once(plan, name, int(batch))
        found: dict[str, Any] = {}
    else:
        found = ARMS[name](plan, plan["limits"][name])
    found["peak_mib"] = peak_mib()
    found["pid"] = os.getpid()
    # NaN is what no fold has judged; Python's JSON says it and reads it back.
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
