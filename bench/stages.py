"""What a stage of the suite is, what it is given, and what it hands back.

A stage is a module ``bench/bench_NAME.py`` with two names::

    STAGE = Stage(name="container", title="Reading a container", asks=["..."])

    def measure(setting: Setting) -> Findings:
        findings = Findings(setting)
        findings.peer("h5py", version="3.14", how="contiguous, no compression")
        times = in_turn({"ours": ours, "h5py": peer}, rounds=setting.rounds)
        findings.table("Reading", ["way", "s"], [[name, values] for name, values in times.items()])
        findings.ratio("h5py / ours", times["ours"], times["h5py"], asked=">= 1.5")
        findings.chart("Reading", times, unit="s", ours=("ours",))
        return findings

Importing the module is cheap and needs no peer: peers are imported in `measure`. Wherever a figure
is taken, the list of its rounds is taken too: the suite shows median, lowest and highest. A ratio
is one of costs (seconds, bytes), made round by round before its median is taken.

The standard library only: the runner needs neither NumPy nor the engine to say what failed.
"""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import json
import math
import operator
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Findings",
    "Measured",
    "Missing",
    "Sample",
    "Setting",
    "Stage",
    "find_stages",
    "in_turn",
    "run_process",
    "shuffled_rounds",
    "version_of",
]

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = (".png", ".jpg", ".jpeg", ".dcm")
_JUDGES = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


class Missing(Exception):  # noqa: N818
    """Raised by a stage that cannot run here at all; its text says what is missing and the cure.

    A peer that is missing is no reason for it: that is `Findings.missing`.
    """


@dataclass(frozen=True)
class Stage:
    """One subject of the suite.

    Parameters
    ----------
    name : str
        Letters, digits and hyphens; what is typed after ``python -m bench``.
    title : str
        Heading in the results.
    asks : sequence of str
        The questions it answers or the figures it has to reach, a sentence each.
    order : int
        Lower numbers run first.
    """

    name: str
    title: str
    asks: Sequence[str] = ()
    order: int = 50


@dataclass(frozen=True)
class Sample:
    """A picture, its label, and the patient it is of."""

    path: Path
    label: str
    patient: str


@dataclass(frozen=True)
class Setting:
    """What a stage is given.

    Parameters
    ----------
    data : Path or None
        Folder of real X-rays: one with ``labels.csv`` (file, label, patient), or one whose folder
        ``pneumonia`` has it, or one of pictures. None: phantoms.
    rounds : int
        How often each figure is taken, at least 1.
    work : Path
        An empty folder of this stage; it is deleted afterwards.
    quick : bool
        Take the smallest sizes that run every line: the figures are no evidence.
    """

    data: Path | None
    rounds: int
    work: Path
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return the size that fits this run."""
        return quick if self.quick else full

    def samples(self, limit: int | None = None) -> list[Sample]:
        """Return pictures with labels and patients, shuffled once and for all by patient.

        Without data, phantoms of two findings are drawn, 120 if there is no limit. Pictures without
        a ``labels.csv`` have the label "unknown" and are each of a patient of their own.
        """
        found = self._real() if self.data is not None else self._phantoms(limit or 120)
        patients = sorted({sample.patient for sample in found})
        random.Random(0).shuffle(patients)
        place = {patient: number for number, patient in enumerate(patients)}
        found.sort(key=lambda sample: (place[sample.patient], sample.path.name))
        return found[:limit]

    def images(self, limit: int | None = None) -> list[Path]:
        """Return the paths of `samples`."""
        return [sample.path for sample in self.samples(limit)]

    def picture(self) -> Path:
        """Return the first picture that is no DICOM file."""
        paths = self.images(1) if self.data is None else self.images()
        path = next((path for path in paths if path.suffix.lower() != ".dcm"), None)
        if path is None:
            raise Missing("only DICOM files in the folder of --data; this stage wants PNG or JPEG")
        return path

    def large(self, side: int) -> NDArray[np.uint16]:
        """Return one picture of side x side pixels, 12 bits.

        A phantom drawn at that size, or the first real X-ray enlarged to it.
        """
        import numpy as np

        if self.data is None:
            from engine.phantoms import WHITE, draw_phantom

            pixels = draw_phantom(1, height=side, width=side).pixels.astype(np.uint32)
            return (pixels * 4095 // WHITE).astype(np.uint16)
        from PIL import Image

        with Image.open(self.picture()) as picture:
            small = Image.fromarray(np.asarray(picture.convert("L"), np.float32) * (4095 / 255))
        big = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
        return np.clip(np.rint(big), 0, 4095).astype(np.uint16)

    def _real(self) -> list[Sample]:
        assert self.data is not None
        for folder in (self.data, self.data / "pneumonia"):
            table = folder / "labels.csv"
            if table.is_file():
                with table.open(encoding="utf-8", newline="") as stream:
                    return [
                        Sample(folder / row["file"], row["label"], row["patient"])
                        for row in csv.DictReader(stream)
                    ]
        paths = sorted(p for p in self.data.rglob("*") if p.suffix.lower() in PICTURES)
        if not paths:
            raise Missing(f"no pictures in the folder of --data; wanted {', '.join(PICTURES)}")
        return [Sample(path, "unknown", str(number)) for number, path in enumerate(paths)]

    def _phantoms(self, n: int) -> list[Sample]:
        from engine.phantoms import draw_phantom, write_png

        folder = self.work / "phantoms"
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for seed in range(n):
            # Two pictures a patient, and both findings in every handful.
            finding = "lobar" if seed // 2 % 2 else "none"
            path = folder / f"{seed:05}.png"
            if not path.exists():
                write_png(draw_phantom(seed, finding), path)
            found.append(Sample(path, finding, f"p{seed // 2:05}"))
        return found


@dataclass(frozen=True)
class Measured:
    """Rounds of one figure.

    Parameters
    ----------
    rounds : tuple of float
        At least one, in the order in which they were taken.
    """

    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: float | Iterable[float] | Measured) -> Measured:
        """Take a number, its rounds, or what is measured already."""
        if isinstance(values, Measured):
            return values
        if isinstance(values, (int, float)) or not isinstance(values, Iterable):
            values = (values,)
        rounds = tuple(float(value) for value in values)
        if not rounds:
            raise ValueError("a figure without a round; take it at least once")
        return cls(rounds)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        return min(self.rounds)

    @property
    def high(self) -> float:
        return max(self.rounds)

    def scaled(self, factor: float) -> Measured:
        """Return the same in another unit."""
        return Measured(tuple(value * factor for value in self.rounds))


Figure = float | int | Sequence[float] | Measured
Cell = str | None | Figure


def _plain(cell: Cell) -> Any:
    """Make a cell fit for JSON: text, nothing, or the rounds of a figure."""
    if cell is None or isinstance(cell, (str, bool)):
        return cell if not isinstance(cell, bool) else ("yes" if cell else "no")
    if isinstance(cell, int):
        return cell
    return {"rounds": list(Measured.of(cell).rounds)}


def judge(asked: str, values: Measured) -> str:
    """Say whether a figure is what was asked for.

    Parameters
    ----------
    asked : str
        A sign of ``>= <= > <`` and a number; empty: nothing was asked.
    values : Measured
        The figure.

    Returns
    -------
    str
        Empty, "met", "met by the median, not by every round", or "NOT MET".
    """
    if not asked:
        return ""
    sign, _, limit = asked.partition(" ")
    if sign not in _JUDGES or not limit.replace(",", "").replace(".", "", 1).isdigit():
        raise ValueError(f'asked is "{asked}"; wanted a sign and a number, as in ">= 1.5"')
    wanted = float(limit.replace(",", ""))
    good = [_JUDGES[sign](value, wanted) for value in values.rounds]
    # The median of what is not a number depends on its place, so it is no median.
    if any(map(math.isnan, values.rounds)) or not _JUDGES[sign](values.median, wanted):
        return "NOT MET"
    return "met" if all(good) else "met by the median, not by every round"


@dataclass
class Findings:
    """What a stage found, in the order in which it said it.

    Given the setting, it keeps itself in the folder of the stage with every word, so that what was
    measured before a failure is not lost.
    """

    setting: Setting | None = None
    tables: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, str]] = field(default_factory=list)
    absent: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, note: str = ""
    ) -> None:
        """Add a table.

        Parameters
        ----------
        title : str
            Its heading.
        columns : sequence of str
            Headings; units belong here ("wall, ms").
        rows : iterable of sequence
            Cells: text, None (not measured), a whole number, or a figure (a number, the list of its
            rounds, `Measured`).
        note : str
            Under the table.
        """
        lines = [[_plain(cell) for cell in row] for row in rows]
        for line in lines:
            if len(line) != len(columns):
                raise ValueError(f'"{title}": a row of {len(line)} cells, {len(columns)} columns')
        self._add(
            self.tables, {"title": title, "columns": list(columns), "rows": lines, "note": note}
        )

    def ratio(
        self,
        name: str,
        ours: Figure,
        theirs: Figure,
        *,
        asked: str = "",
        better: str = "higher",
        note: str = "",
    ) -> Measured:
        """Add a comparison of two costs of one run, and return it.

        Parameters
        ----------
        name : str
            What is compared ("ONNX Runtime INT8 / ours, batch 1, 1 thread").
        ours, theirs : number, rounds, or Measured
            Costs: seconds, bytes. Rounds of equal number are divided pair by pair; else medians.
        asked : str
            What it has to be (">= 1.5"); empty if nothing was asked.
        better : {"higher", "lower"}
            Higher: theirs / ours, how many times less ours costs. Lower: ours / theirs, the share
            of their cost that is ours.
        note : str
            What limits the comparison.
        """
        top, bottom = Measured.of(theirs), Measured.of(ours)
        if better == "lower":
            top, bottom = bottom, top
        elif better != "higher":
            raise ValueError(f'better is "{better}"; wanted "higher" or "lower"')
        if len(top.rounds) == len(bottom.rounds):
            pairs = zip(top.rounds, bottom.rounds, strict=True)
            values = [a / b if b else math.inf for a, b in pairs]
        else:
            values = [top.median / bottom.median if bottom.median else math.inf]
        return self.figure(name, values, asked=asked, note=note)

    def figure(
        self, name: str, value: Figure, *, asked: str = "", unit: str = "", note: str = ""
    ) -> Measured:
        """Add a figure that is no ratio of costs (an installed size, an AUROC), and return it."""
        values = Measured.of(value)
        self._add(
            self.ratios,
            {
                "name": name,
                "rounds": list(values.rounds),
                "asked": asked,
                "verdict": judge(asked, values),
                "unit": unit,
                "note": note,
            },
        )
        return values

    def peer(self, name: str, *, version: str, how: str) -> None:
        """Say which version of a peer was measured, and in which setting."""
        self._add(self.peers, {"name": name, "version": version, "how": how})

    def missing(self, peer: str, reason: str, *, asked: str = "") -> None:
        """Name a peer that was not measured.

        Parameters
        ----------
        peer : str
            Its name.
        reason : str
            Why, and the cure ("not installed: pip install onnxruntime").
        asked : str
            What its comparison has to be, so that the summary does not lose it.
        """
        entry = {"peer": peer, "reason": reason, "asked": asked}
        if entry not in self.absent:
            self._add(self.absent, entry)

    def note(self, text: str) -> None:
        """Add a sentence: what is fair, what is not, what limits a figure."""
        self._add(self.notes, text)

    def chart(
        self,
        title: str,
        data: Mapping[str, Any],
        *,
        unit: str,
        kind: str = "bar",
        ours: Sequence[str] = (),
        log: bool = False,
        x: str = "",
        limit: tuple[str, float] | None = None,
    ) -> None:
        """Add a chart.

        Parameters
        ----------
        title : str
            Its heading.
        data : mapping
            Of bars: name to figure, or heading of a group to such a mapping. Of lines: name to a
            sequence of (x, figure).
        unit : str
            Of the figures ("ms, lower is better").
        kind : {"bar", "line"}
            What is drawn.
        ours : sequence of str
            Names drawn in the strong colour.
        log : bool
            A logarithmic scale (of lines: on both axes); figures are positive then.
        x : str
            Name of the other axis, of lines only.
        limit : (str, float), optional
            A dashed line and its name, of bars only.
        """
        if kind == "bar":
            nested = all(isinstance(value, Mapping) for value in data.values())
            groups = data if nested else {"": data}
            shown: Any = [
                {"name": name, "bars": [[key, _rounds(value)] for key, value in bars.items()]}
                for name, bars in groups.items()
            ]
        elif kind == "line":
            shown = [
                {"name": name, "points": [[float(at), _rounds(value)] for at, value in points]}
                for name, points in data.items()
            ]
        else:
            raise ValueError(f'kind is "{kind}"; wanted "bar" or "line"')
        if not data:
            return
        self._add(
            self.charts,
            {
                "title": title,
                "kind": kind,
                "data": shown,
                "unit": unit,
                "ours": list(ours),
                "log": log,
                "x": x,
                "limit": list(limit) if limit else None,
            },
        )

    def _add(self, where: list[Any], entry: Any) -> None:
        where.append(entry)
        if self.setting is not None:
            self.save(self.setting.work / "findings.json")

    def save(self, path: Path) -> None:
        """Write it as JSON, all or nothing."""
        content = asdict(self) | {"setting": None}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Findings:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def _rounds(value: Any) -> list[float]:
    return list(Measured.of(value).rounds)


# ---- tools of stages -----------------------------------------------------------------------------


def in_turn(
    works: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time all of them in each round, in another order each time; what disturbs one, disturbs all.

    Parameters
    ----------
    works : mapping of str to callable
        What to do.
    rounds : int
        How often.
    warm_up : int
        Rounds before them that are not counted.
    clock : callable
        Seconds: `time.perf_counter`, `time.process_time`.

    Returns
    -------
    dict of str to list of float
        Seconds of each round; the same place in two lists is the same round.
    """
    for name in shuffled_rounds(works, warm_up):
        works[name]()
    times: dict[str, list[float]] = {name: [] for name in works}
    for name in shuffled_rounds(works, rounds):
        start = clock()
        works[name]()
        times[name].append(clock() - start)
    return times


def shuffled_rounds(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Give every name once in each round, in an order of its own."""
    every, draw = list(names), random.Random(0)
    for _ in range(rounds):
        yield from draw.sample(every, len(every))


def run_process(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a whole process; its wall time, CPU time and peak memory, its start and end included.

    Parameters
    ----------
    arguments : sequence of str
        The program first (`sys.executable`).
    environment : mapping, optional
        The whole environment; else the one of this process. Runs in the repository's folder.

    Returns
    -------
    dict
        ``wall_ms``, ``cpu_ms``, ``peak_mib``, and ``stderr`` (which holds the standard output too).

    Raises
    ------
    RuntimeError
        If it failed; with the end of what it said.
    Missing
        Where the system cannot tell the peak of a child (Windows).
    """
    if not hasattr(os, "wait4"):
        raise Missing("the peak memory of a child needs wait4; run this stage on Linux or macOS")
    done = subprocess.run(
        [sys.executable, "-S", "bench/launch.py", *arguments],
        cwd=REPOSITORY,
        env=dict(environment) if environment is not None else None,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found.pop("code") != 0:
        raise RuntimeError(f"{Path(arguments[0]).name} failed: {done.stderr[-2000:]}")
    return found | {"stderr": done.stderr}


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- finding stages ------------------------------------------------------------------------------


def find_stages(
    folder: Path = REPOSITORY / "bench", package: str = "bench."
) -> tuple[dict[str, tuple[Stage, str]], dict[str, str]]:
    """Look for stages.

    Parameters
    ----------
    folder : Path
        Where ``bench_*.py`` are looked for.
    package : str
        What stands before their names when they are imported.

    Returns
    -------
    stages : dict of str to (Stage, str)
        By name, in the order in which they run; the module that offers each.
    broken : dict of str to str
        Modules that cannot be imported, and why.
    """
    found: list[tuple[Stage, str]] = []
    broken: dict[str, str] = {}
    for path in sorted(folder.glob("bench_*.py")):
        name = package + path.stem
        try:
            found.append((importlib.import_module(name).STAGE, name))
        except ImportError as error:
            broken[name] = f"{error}; the suite needs the extra bench: pip install hilum[bench]"
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
    found.sort(key=lambda pair: (pair[0].order, pair[0].name))
    stages: dict[str, tuple[Stage, str]] = {}
    for stage, name in found:
        if stage.name in stages:
            broken[name] = f'two stages are named "{stage.name}"'
        else:
            stages[stage.name] = (stage, name)
    return stages, broken
