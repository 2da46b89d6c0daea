"""Everything a report says of one head: its figures, and what they must be read with.

A figure alone misleads. Beside it stand what the same protocol reaches on the image border, on a
64 x 64 thumbnail and on metadata alone (floors), how classes are spread over sources, sexes and
ages (confounding), how the head does in each of these (subgroups), what more patients would bring
(learning curve), and whether images of different patients are nearly the same (duplicates).
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from engine.comparison import compare, subgroup_table
from engine.duplicates import find_near_duplicates
from engine.errors import SplitError
from engine.floors import RowColumn, container_columns, count_values
from engine.heads import Head
from engine.judging import evaluate_head
from engine.metrics import Evaluation
from engine.plan import Options
from engine.pooling import blocks_from_notes
from engine.protocols import FLOORS, cross_validate_columns, learning_curve
from engine.training import train_head
from engine.work import Progress

if TYPE_CHECKING:
    from formats import Container

__all__ = ["Floor", "Study", "study_evaluation", "study_head"]

# Fewer patients of a class make every figure of it uncertain.
_FEW_PATIENTS = 50
# Share of the rows judged, and number, from which on one patient's decide figures.
_MUCH_OF_ONE, _MANY_IMAGES = 0.2, 10
# The AUROC of guessing.
_GUESSING = 0.5
# Share of a class's images from which on one source has nearly all of them.
_NEARLY_ALL = 0.95
# Share of the others from which on they too come from there.
_MUCH_OF_ALL = 0.8
# Above, probabilities are not to be read as shares.
_POOR_CALIBRATION = 0.05
# Of classes that are named in one sentence.
_MOST_NAMES = 12
# What a step takes, in trainings.
_WEIGHTS = {"training": 1.0, "floor": 0.8, "curve": 2.0, "duplicates": 0.1}

_FLOOR_WORDS = {
    "metadata": (
        "metadata only",
        "what is known of source, sex, age and projection, and no picture",
    ),
    "border": (
        "image border only",
        "the outer tenth of each picture at 64 x 64, without the lungs",
    ),
    "pixels": ("raw 64 x 64 pixels", "a thumbnail of each picture, without a network"),
}


@dataclass(frozen=True)
class Floor:
    """What the same protocol reaches without the network.

    Attributes
    ----------
    name : str
        ``"raw 64 x 64 pixels"``, ``"image border"`` or ``"metadata"``.
    explanation : str
        One sentence: what it was given.
    evaluation : Evaluation
        On the same rows and folds as the head.
    difference : dict
        Head less floor, paired by patient: ``auroc_macro``: ``{"value": x, "ci95": [low, high]}``.
    """

    name: str
    explanation: str
    evaluation: Evaluation
    difference: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Study:
    """A head with the figures that were measured of it.

    Attributes
    ----------
    purpose : {"train", "evaluate"}
        Figures of the training's own protocol, or of another container's rows.
    head : Head
        The head.
    evaluation : Evaluation
        The headline figures, with predictions for the curves.
    protocol : str
        How they were found, one sentence.
    warnings : tuple of str
        What the first lines must say; empty if nothing was found.
    floors : tuple of Floor
        May be empty; `floors_missing` then says how to get them.
    floors_missing : tuple of str
        Names of floors that could not be measured, each with the reason and what to do.
    confounding : dict
        ``{"columns": {"source": {"values": [...], "classes": [...], "rows": [[int]],
        "patients": [[int]], ...}, "sex": ..., "age": ..., "projection": ...}}``: rows[i][j] counts
        the rows of value i and class j, see `engine.floors.count_values`; of all rows learned from
        or, of an evaluation, judged. Columns that are missing are left out.
    subgroups : tuple of dict
        ``{"column": "sex", "value": "F", "n_rows": int, "n_groups": int, "auroc_macro": x or None,
        "accuracy": x, "ci95": {"auroc_macro": [low, high], "accuracy": [low, high]}}``.
    learning_curve : tuple of dict
        ``{"n_groups": int, "n_rows": int, "auroc_macro": x, "accuracy": x, "ci95": {...}}``,
        ascending.
    duplicates : dict or None
        ``{"n_pairs": int, "n_across_patients": int, "n_across_splits": int, "cosine": threshold}``.
    trials : tuple of dict
        What the inner folds compared: ``{"kind": "linear", "l2": 0.3, "loss": x, "auroc_macro": x,
        "chosen": bool}``.
    comparison : dict or None
        With another head on the same rows: ``{"name": str, "auroc_macro": x, "difference":
        {"auroc_macro": {"value": x, "ci95": [low, high]}, "accuracy": {...}}}``.
    data : dict
        ``{"n_rows": int, "n_groups": int, "n_views": int, "class_counts": {name: int}, "sources":
        [...], "age_range_years": [low, high] or None, "title", "attribution", "licence",
        "terms"}``.
    timing : dict
        ``{"steps": [{"name": "folds", "seconds": x}, ...], "seconds": total, "peak_bytes": int,
        "machine": "2 cores, x86-64", "threads": int}``.
    limits : tuple of str
        Sentences on what the head must not be used for.
    """

    purpose: str
    head: Head
    evaluation: Evaluation
    protocol: str
    warnings: tuple[str, ...] = ()
    floors: tuple[Floor, ...] = ()
    floors_missing: tuple[str, ...] = ()
    confounding: dict[str, Any] = field(default_factory=dict)
    subgroups: tuple[dict[str, Any], ...] = ()
    learning_curve: tuple[dict[str, Any], ...] = ()
    duplicates: dict[str, Any] | None = None
    trials: tuple[dict[str, Any], ...] = ()
    comparison: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the figures as ``--json`` writes them.

        Returns
        -------
        dict
            The keys of `Evaluation.to_json`, and ``protocol``, ``warnings``, ``floors``,
            ``floors_missing``, ``confounding``, ``subgroups``, ``learning_curve``,
            ``duplicates``, ``trials``, ``comparison``, ``data`` and ``timing``.
        """
        return {
            **self.evaluation.to_json(),
            "protocol": self.protocol,
            "warnings": list(self.warnings),
            "floors": {floor.name: _summary(floor) for floor in self.floors},
            "floors_missing": list(self.floors_missing),
            "confounding": self.confounding,
            "subgroups": list(self.subgroups),
            "learning_curve": list(self.learning_curve),
            "duplicates": self.duplicates,
            "trials": list(self.trials),
            "comparison": self.comparison,
            "data": self.data,
            "timing": self.timing,
        }


def _summary(floor: Floor) -> dict[str, Any]:
    found = floor.evaluation
    return {
        "auroc_macro": found.auroc_macro,
        "accuracy": found.accuracy,
        "auroc": dict(found.auroc),
        "ci95": {
            key: list(interval)
            for key, interval in found.ci95.items()
            if key in ("accuracy", "auroc_macro") or key.startswith("auroc:")
        },
        "difference": floor.difference,
    }


# --- Steps -------------------------------------------------------------------------------------


class _Steps:
    """Steps of a study: their seconds, and one progress over all of them."""

    def __init__(self, names: Sequence[str], progress: Progress | None) -> None:
        self._weights = [_WEIGHTS[name.partition(" ")[0]] for name in names]
        self._names = list(names)
        self._progress = progress
        self._number = -1
        self._begun = time.perf_counter()
        self._start = self._begun
        self.seconds: list[dict[str, Any]] = []

    def begin(self, name: str) -> Progress:
        """Say that a step begins, in the order given, and return what it reports to."""
        self.end()
        self._number = self._names.index(name)
        self._start = time.perf_counter()
        before, own = sum(self._weights[: self._number]), self._weights[self._number]
        total = sum(self._weights)

        def report(done: int, of: int, text: str) -> None:
            if self._progress is not None:
                share = (before + own * done / max(of, 1)) / total
                self._progress(round(1000 * share), 1000, f"{name}: {text}" if before else text)

        return report

    def end(self) -> None:
        """Note the seconds of the step that was begun."""
        if self._number >= 0:
            seconds = time.perf_counter() - self._start
            self.seconds.append({"name": self._names[self._number], "seconds": seconds})
        self._number = -1

    def timing(self, threads: int | None) -> dict[str, Any]:
        """Return what `Study.timing` holds."""
        self.end()
        cores = os.cpu_count() or 1
        return {
            "steps": self.seconds,
            "seconds": time.perf_counter() - self._begun,
            "peak_bytes": _peak_bytes(),
            "machine": f"{cores} core{'s' if cores > 1 else ''}, {platform.machine() or 'unknown'}",
            "threads": threads or cores,
        }


def _peak_bytes() -> int | None:
    """Return the most memory this process has had, None where the system does not say."""
    try:
        # What getrusage says a process inherits from its parent's pages.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _reporting(options: Options, progress: Progress) -> Options:
    """Return the same options with another listener."""
    own = options.copy()
    own["progress"] = progress
    return own


# --- What stands beside the figures ------------------------------------------------------------


def _stored_floors(container: Container) -> list[str]:
    taps = {block.tap for block in blocks_from_notes(container.blocks)}
    return [name for name in FLOORS if name != "metadata" and name in taps]


def _measure_floors(
    names: Sequence[str],
    containers: Sequence[Container],
    evaluation: Evaluation,
    measure: Callable[[str, Progress], Evaluation],
    steps: _Steps,
) -> tuple[tuple[Floor, ...], list[str]]:
    """Measure floors on the rows of an evaluation; also say why one could not be."""
    floors, missing = [], []
    for name in names:
        title, explanation = _FLOOR_WORDS[name]
        try:
            found = measure(name, steps.begin(f"floor {name}"))
        except SplitError as error:
            missing.append(f"{title}: {_without_place(str(error), containers)}")
            continue
        floors.append(Floor(title, explanation, found, compare(evaluation, found)))
    return tuple(floors), missing


def _without_place(message: str, containers: Sequence[Container]) -> str:
    """Leave files' names out of a message that is kept with a head: they may be a person's."""
    paths = [str(container.path) for container in containers]
    for place in (", ".join(paths), *sorted(paths, key=len, reverse=True)):
        message = message.removeprefix(f"{place}: ").replace(place, "the container")
    return message


def _subgroups(columns: dict[str, RowColumn], evaluation: Evaluation) -> tuple[dict[str, Any], ...]:
    found: list[dict[str, Any]] = []
    for name, column in columns.items():
        if len(np.unique(column.codes)) > 1:
            found += subgroup_table(evaluation, name, column.codes, column.names)
    return tuple(found)


def _by_source(confounding: dict[str, Any]) -> list[str]:
    """Say which classes can be told, or nearly, by knowing the source alone."""
    table = confounding.get("columns", {}).get("source")
    if table is None or len(table["values"]) < 2:
        return []
    texts = []
    for name, present, absent in zip(
        table["classes"], *(np.array(table[side]).T for side in ("rows", "absent")), strict=True
    ):
        # Where only one source tells whether it is there, the source tells nothing of it.
        if not present.any() or not absent.any() or np.count_nonzero(present + absent) < 2:
            continue
        for rows, others, what in ((present, absent, "of"), (absent, present, "without")):
            source, share = int(rows.argmax()), rows.max() / rows.sum()
            theirs = others[source] / others.sum()
            if share < _NEARLY_ALL or theirs == 1.0 or (share < 1.0 and theirs > _MUCH_OF_ALL):
                continue
            # Of softmax heads "without" is what the other classes say.
            if what == "without" and not table["multilabel"]:
                continue
            much = "every image" if share == 1.0 else f"nearly every image ({share:.0%})"
            texts.append(
                f"{much} {what} {name!r} comes from one source ({table['values'][source]}): the "
                "head may tell the source instead of the finding, and these figures cannot show "
                "the difference"
            )
            break
        else:
            # Of two classes, the one says what the other does.
            said = bool(texts) and not table["multilabel"] and len(table["classes"]) == 2
            if not (present * absent).any() and not said:
                texts.append(
                    f"each source has either only images of {name!r} or none: the head may tell "
                    "the source instead of the finding, and these figures cannot show the "
                    "difference"
                )
    return texts


def _warn(
    evaluation: Evaluation,
    floors: Sequence[Floor],
    confounding: dict[str, Any],
    duplicates: dict[str, Any] | None,
) -> tuple[str, ...]:
    """Say what a reader must know before the first figure."""
    texts = _by_source(confounding)
    texts += _no_better_than_guessing(evaluation)
    for floor in floors:
        texts += _within_reach(evaluation, floor)
    if duplicates is not None and duplicates.get("n_across_patients"):
        texts.append(
            f"{duplicates['n_across_patients']} pairs of images of different patients are nearly "
            f"the same ({duplicates.get('n_across_splits') or 0} of them on different sides of the "
            "marked split): patients may be the same person under two numbers, and figures too good"
        )
    texts += evaluation.notes
    _, counts = np.unique(evaluation.groups, return_counts=True)
    if counts.max() >= _MUCH_OF_ONE * evaluation.n_rows and counts.max() >= _MANY_IMAGES:
        texts.append(
            f"one patient has {counts.max()} of the {evaluation.n_rows} images judged: what is "
            "counted by images is mostly of one person"
        )
    few = _few_patients(evaluation)
    if few:
        texts.append(
            f"few patients to judge by: {few}; the intervals are wide, and another sample may "
            "differ much"
        )
    # The error of few rows is mostly chance, so its interval must be above, not its value.
    interval = evaluation.ci95.get("ece")
    if interval is not None and interval[0] > _POOR_CALIBRATION:
        texts.append(
            f"probabilities are off by {interval[0]:.2f} to {interval[1]:.2f} on average (expected "
            "calibration error): read them as a ranking"
        )
    return tuple(dict.fromkeys(texts))


def _no_better_than_guessing(evaluation: Evaluation) -> list[str]:
    """Say which classes were not told from the others, and which nobody could tell."""
    texts = []
    interval = evaluation.ci95.get("auroc_macro")
    guessed = [
        f"{name!r} ({value:.2f}, {own[0]:.2f} to {own[1]:.2f})"
        for name, value in evaluation.auroc.items()
        if value is not None
        and (own := evaluation.ci95.get(f"auroc:{name}")) is not None
        and own[0] <= _GUESSING
    ]
    if interval is not None and interval[0] <= _GUESSING:
        texts.append(
            f"the head cannot be told from guessing: the interval of its macro AUROC, "
            f"{interval[0]:.2f} to {interval[1]:.2f}, holds 0.5 or lies below"
        )
    elif guessed:
        texts.append(
            f"the head cannot be told from guessing for {', '.join(guessed)}: the interval of the "
            "AUROC holds 0.5 or lies below"
        )
    unknown = [repr(name) for name, value in evaluation.auroc.items() if value is None]
    if unknown:
        texts.append(
            f"no AUROC of {', '.join(unknown)}: the rows judged are not both with and without it; "
            "means are of the other classes"
        )
    return texts


def _within_reach(evaluation: Evaluation, floor: Floor) -> list[str]:
    """Say where a floor comes within the interval of the head: of the mean, else of classes."""

    def reaches(value: float | None, key: str) -> list[float] | None:
        interval = evaluation.ci95.get(key)
        return interval if value is not None and interval and value >= interval[0] else None

    meaning = (
        "the network may add nothing to what a thumbnail shows"
        if floor.name == _FLOOR_WORDS["pixels"][0]
        else "the head may have learned what is not in the lungs"
    )

    def text(what: str, value: float, interval: Sequence[float]) -> str:
        where = "above" if value > interval[1] else "within"
        return (
            f"{floor.name} reaches {what} {value:.3f}, {where} the interval of the head "
            f"({interval[0]:.3f} to {interval[1]:.3f}): {meaning}"
        )

    found = floor.evaluation
    interval = reaches(found.auroc_macro, "auroc_macro")
    if interval is not None and found.auroc_macro is not None:
        return [text("a macro AUROC of", found.auroc_macro, interval)]
    texts = []
    for name, value in found.auroc.items():
        interval = reaches(value, f"auroc:{name}")
        if interval is not None and value is not None:
            texts.append(text(f"for {name!r} an AUROC of", value, interval))
    return texts


def _few_patients(evaluation: Evaluation) -> str:
    labels = evaluation.labels
    found = []
    for c, name in enumerate(evaluation.classes):
        sides = {"of": labels[:, c] == 1 if labels.ndim == 2 else labels == c}
        if labels.ndim == 2:
            sides["without"] = labels[:, c] == 0
        for what, here in sides.items():
            count = len(np.unique(evaluation.groups[here]))
            if count < _FEW_PATIENTS:
                found.append(f"{count} {what} {name!r}")
    return _listed(found)


def _listed(names: Sequence[str]) -> str:
    """Join names, the first of many."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _limits(head: Head) -> tuple[str, ...]:
    """Say what the head must not be used for."""
    facts = head.training
    texts = [
        "Research use only. Not a medical device; it decides nothing about a patient.",
    ]
    ages = facts.get("age_range_years")
    texts.append(
        f"Learned from people aged {ages[0]} to {ages[1]} years; says nothing about others."
        if ages
        else "The ages it learned from are not known; assume nothing about children or adults."
    )
    sources = facts.get("sources") or {}
    if len(sources) > 1:
        texts.append(
            f"Learned from {len(sources)} sources; other devices and hospitals may differ."
        )
    else:
        texts.append(
            "Learned from one source, or from sources that are not told apart; other devices and "
            "hospitals may differ."
        )
    texts.append(
        f"Knows {len(head.classes)} answers ({_listed(head.classes)}) and gives one of them "
        "whatever else a picture shows."
        if not head.multilabel
        else f"Knows {len(head.classes)} labels ({_listed(head.classes)}) and no other finding."
    )
    if facts.get("prevalence") == "equal":
        equal = (
            "label were present in half of the images"
            if head.multilabel
            else "class were equally frequent"
        )
        texts.append(f"Probabilities are as if every {equal}, not as in your practice.")
    if head.ood is None:
        texts.append("It does not refuse pictures unlike those it learned from.")
    return tuple(texts)


# --- What users call ---------------------------------------------------------------------------


def study_head(
    container: Container | Sequence[Container],
    *,
    refusal_rate: float = 0.01,
    name: str | None = None,
    floors: bool = True,
    curve: bool = False,
    **options: Unpack[Options],
) -> Study:
    """Train a head, and measure what its figures must be read with.

    Parameters
    ----------
    container, refusal_rate, name
        As in `engine.fit_head`.
    floors : bool
        Whether to run the same protocol on stored floor blocks and on metadata.
    curve : bool
        Whether to measure the learning curve, which takes about as long as two trainings.
    **options
        The others of `engine.fit_head`.

    Returns
    -------
    Study
        Its head's ``metrics`` hold the warnings and the floors too.

    Raises
    ------
    SplitError, MismatchError, Corrupt, ValueError
        As in `engine.fit_head`.
    """
    containers = tuple(container) if isinstance(container, Sequence) else (container,)
    progress = options.pop("progress", None)
    stored = _stored_floors(containers[0]) if containers else []
    wanted = ["metadata", *stored] if floors else []
    names = ["training", *(f"floor {each}" for each in wanted), "duplicates"]
    steps = _Steps([*names, "curve"] if curve else names, progress)
    training = train_head(
        containers,
        refusal_rate=refusal_rate,
        name=name,
        **_reporting(options, steps.begin("training")),
    )
    evaluation = training.evaluation

    def measure(floor: str, report: Progress) -> Evaluation:
        return cross_validate_columns(containers, floor, **_reporting(options, report))

    measured, missing = _measure_floors(wanted, containers, evaluation, measure, steps)
    if floors:
        missing += [
            f"{_FLOOR_WORDS[each][0]}: not stored; extract with --floors {each}"
            for each in FLOORS
            if each not in wanted
        ]
    duplicates = find_near_duplicates(
        containers, threads=options.get("threads"), progress=steps.begin("duplicates")
    )
    points: tuple[dict[str, Any], ...] = ()
    if curve:
        report = steps.begin("curve")
        points = learning_curve(
            containers,
            evaluation=evaluation if options.get("cv") else None,
            **_reporting(options, report),
        )
    confounding = training.confounding
    warnings = _warn(evaluation, measured, confounding, duplicates)
    asked = [key for key in ("sensitivity", "specificity") if options.get(key) is not None]
    if asked and not training.head.thresholds:
        warnings += (
            f"no threshold was chosen for the {asked[0]} that was asked for: too few rows to "
            "calibrate by; the head decides as without it",
        )
    metrics = {
        **training.head.metrics,
        "warnings": list(warnings),
        "floors": {floor.name: _summary(floor) for floor in measured},
    }
    head = replace(training.head, metrics=metrics)
    return Study(
        purpose="train",
        head=head,
        evaluation=evaluation,
        protocol=training.protocol,
        warnings=warnings,
        floors=measured,
        floors_missing=tuple(missing),
        confounding=confounding,
        subgroups=_subgroups(training.columns, evaluation),
        learning_curve=points,
        duplicates=duplicates,
        trials=training.trials,
        data=training.data,
        timing=steps.timing(options.get("threads")),
        limits=_limits(head),
    )


def _judged_by(head: Head, container: Container, split: str) -> str:
    """Say which rows judge a head, and whether it may have seen them."""
    facts = head.training
    given = set(facts.get("data_sets", ())).difference(facts.get("derived_from", ()))
    if container.uuid not in given:
        return f"{split} rows of another container; nothing was tuned on them"
    if split == "test":
        return "test rows of the container it was trained on; nothing was learned from them"
    return f"{split} rows of the container it was trained on; it has seen some or all of them"


def study_evaluation(
    head: Head,
    container: Container,
    split: str | None = None,
    *,
    other: Head | None = None,
    floors: bool = True,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Study:
    """Judge a head by rows of a container, and measure what its figures must be read with.

    Parameters
    ----------
    head, container, split, seed, threads, progress
        As in `engine.evaluate_head`.
    other : Head, optional
        Judged on the same rows, and compared pairwise.
    floors : bool
        Whether to cross-validate stored floor blocks and metadata within the judged rows.

    Returns
    -------
    Study
        With ``purpose`` ``"evaluate"``.

    Raises
    ------
    MismatchError, Corrupt, SplitError, ValueError
        As in `engine.evaluate_head`.
    """
    wanted = ["metadata", *_stored_floors(container)] if floors else []
    steps = _Steps(["training", *(f"floor {each}" for each in wanted), "duplicates"], progress)
    report = steps.begin("training")
    evaluation = evaluate_head(head, container, split, seed=seed, threads=threads, progress=report)
    comparison = None
    rival_notes: tuple[str, ...] = ()
    if other is not None:
        theirs = evaluate_head(other, container, split, seed=seed, threads=threads)
        rival_notes = tuple(note for note in theirs.notes if note not in evaluation.notes)
        comparison = {
            "name": other.name,
            "auroc_macro": theirs.auroc_macro,
            "accuracy": theirs.accuracy,
            "difference": compare(evaluation, theirs),
        }

    def measure(floor: str, report: Progress) -> Evaluation:
        return cross_validate_columns(
            container,
            floor,
            head=head,
            split=split,
            seed=seed,
            threads=threads,
            progress=report,
        )

    measured, missing = _measure_floors(wanted, (container,), evaluation, measure, steps)
    if floors:
        missing += [
            f"{_FLOOR_WORDS[each][0]}: not stored; extract with --floors {each}"
            for each in FLOORS
            if each not in wanted
        ]
    duplicates = find_near_duplicates(
        container, rows=evaluation.rows, threads=threads, progress=steps.begin("duplicates")
    )
    columns = container_columns(container, evaluation.rows)
    confounding = count_values(columns, evaluation.labels, evaluation.groups, evaluation.classes)
    about = container.notes.get("about", {})
    data = {
        "n_rows": evaluation.n_rows,
        "n_groups": evaluation.n_groups,
        "n_views": 0,
        "class_counts": dict(evaluation.class_counts),
        "sources": list(container.sources_names),
        "age_range_years": about.get("age_range_years"),
        **{
            key: about[key]
            for key in ("title", "attribution", "licence", "terms")
            if about.get(key)
        },
    }
    return Study(
        purpose="evaluate",
        head=head,
        evaluation=evaluation,
        protocol=_judged_by(head, container, evaluation.split),
        warnings=_warn(evaluation, measured, confounding, duplicates) + rival_notes,
        floors=measured,
        floors_missing=tuple(missing),
        confounding=confounding,
        subgroups=_subgroups(columns, evaluation),
        duplicates=duplicates,
        comparison=comparison,
        data=data,
        timing=steps.timing(threads),
        limits=_limits(head),
    )
