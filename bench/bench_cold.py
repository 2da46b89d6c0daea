"""From process start to the JSON on disk: predictions of one file, beside the least possible.

python -m bench cold [--data FOLDER] [--rounds N] [--quick]
python -m pytest bench/bench_cold.py -s

Each program is started anew in every round, all of them in turn, and nothing is kept between them
but the cache of compiled networks and Python's compiled modules, which lie in folders of this run.
Wall time and peak memory are those of the whole process, its end included. The floor is
bench/floor.py with declarations made at run time, as a small cffi program does it; "floor, made"
takes ours, which needs no parser. Neither reads a picture or writes a result.

Pictures are phantoms; with ``--data`` a real X-ray, and the same enlarged to 3000 x 3000 pixels.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.bench_preprocess import SIDE, deep_dicom
from bench.stages import REPOSITORY, Findings, Setting, Stage, run_process, shuffled_rounds

STAGE = Stage(
    name="cold",
    title="Cold prediction, beside the floor",
    asks=[
        "One PNG, process start to JSON on disk: at most 0.40 s and 2.0 times the floor of the "
        "same run (stretch: 1.5); peak memory at most 150 MiB.",
        "A DICOM file: at most 0.20 s more.",
    ],
    order=64,
)
FLOORS = ("floor", "floor, made")
PNG = "PNG"
BIG, DICOM = f"PNG {SIDE} x {SIDE}", f"DICOM {SIDE} x {SIDE}, 16 bits"
UNCACHED = ("PNG, no cache", "PNG, unwritable cache")
Programs = dict[str, tuple[list[str], dict[str, str]]]


def write_files(setting: Setting, folder: Path) -> dict[str, Path]:
    """Write the pictures that are predicted."""
    with Image.open(setting.picture()) as picture:
        picture.convert("L").save(folder / "small.png")
    large = setting.large(SIDE)
    Image.fromarray((large >> 4).astype("uint8")).save(folder / "big.png")
    dataset, path = deep_dicom(setting, SIDE, folder / "deep.dcm")
    dataset.save_as(path)
    return {"png": folder / "small.png", "big": folder / "big.png", "dicom": path}


def prepare(setting: Setting, folder: Path) -> Programs:
    """Return arguments and environment of every program; each has run once."""
    files = write_files(setting, folder)
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    environment["PYTHONPATH"] = str(REPOSITORY)
    filled = environment | {"XDG_CACHE_HOME": str(folder / "cache")}
    # What is no absolute path is no folder for a cache; a file in its place cannot be written to.
    nothing = environment | {"XDG_CACHE_HOME": "none"}
    (folder / "file").touch()
    unwritable = environment | {"XDG_CACHE_HOME": str(folder / "file")}

    def predict(file: Path) -> list[str]:
        options = ["--output-dir", str(folder / "results"), "--force", "--quiet"]
        # The embedded head knows children of 1 to 5 years, no phantoms.
        options += ["--allow", "out_of_distribution"]
        return [sys.executable, "-m", "engine.predict", str(file), *options]

    run_process(predict(files["png"]), filled)
    (blob,) = (folder / "cache" / "hilum").glob("*.blob")
    programs: Programs = {
        name: ([sys.executable, "bench/floor.py", how, str(blob)], filled)
        for name, how in zip(FLOORS, ("cdef", "made"), strict=True)
    }
    programs |= {
        PNG: (predict(files["png"]), filled),
        BIG: (predict(files["big"]), filled),
        DICOM: (predict(files["dicom"]), filled),
        UNCACHED[0]: (predict(files["png"]), nothing),
        UNCACHED[1]: (predict(files["png"]), unwritable),
    }
    for program in programs.values():
        run_process(*program)  # compiles what is not compiled, fills the page cache
    return programs


def take(programs: Programs, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Run all of them in each round; wall time, CPU time and peak memory of each."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in shuffled_rounds(programs, rounds):
        for key, value in run_process(*programs[name]).items():
            if key != "stderr":
                found.setdefault(name, {}).setdefault(key, []).append(value)
    return {name: found[name] for name in programs}


def measure(setting: Setting) -> Findings:
    findings = Findings(setting)
    found = take(prepare(setting, setting.work), setting.rounds)
    walls = {name: costs["wall_ms"] for name, costs in found.items()}
    findings.figure("one PNG, cold", walls[PNG], asked="<= 400", unit="ms")
    for floor in FLOORS:
        findings.ratio(
            f"one PNG / {floor}", walls[PNG], walls[floor], better="lower",
            asked="<= 2" if floor == "floor" else "",
            note="stretch: 1.5" if floor == "floor" else "the floor without a parser",
        )  # fmt: skip
    more = [a - b for a, b in zip(walls[DICOM], walls[PNG], strict=True)]
    findings.figure(f"{DICOM}: more than a PNG", more, asked="<= 200", unit="ms")
    for name in (PNG, BIG, DICOM):
        findings.figure(f"peak memory, {name}", found[name]["peak_mib"], asked="<= 150", unit="MiB")
    findings.table(
        f"Whole processes, {os.cpu_count()} processors", ["", "wall, ms", "CPU, ms", "peak, MiB"],
        [[name, *(costs[key] for key in ("wall_ms", "cpu_ms", "peak_mib"))]
         for name, costs in found.items()],
    )  # fmt: skip
    findings.chart("From process start to its end", walls, unit="wall ms, lower is better",
                   ours=(PNG, BIG, DICOM, *UNCACHED), limit=("asked of one PNG: 400 ms", 400.0)
    )  # fmt: skip
    return findings


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a child needs wait4")
def test_cold(benchmark: Any, setting: Setting, tmp_path: Path) -> None:
    programs = prepare(setting, tmp_path)
    print()
    for name, costs in take(programs, setting.rounds).items():
        wall, peak = (statistics.median(costs[key]) for key in ("wall_ms", "peak_mib"))
        print(f"  {name:28}{wall:8.0f} ms{peak:8.0f} MiB")
        benchmark.extra_info[name] = {"wall_ms": round(wall, 1), "peak_mib": round(peak, 1)}
    benchmark.pedantic(lambda: run_process(*programs[PNG]), rounds=3)
