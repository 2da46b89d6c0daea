"""From process start to the JSON on disk: predictions of one file, beside the least possible.

python -m pytest bench/bench_cold.py -s

Each program is started anew in every round, all of them in turn, and nothing is kept between them
but the cache of compiled networks and Python's compiled modules, which lie in folders of this run.
Wall time and peak memory are those of the whole process, its end included. The floor is
bench/floor.py with declarations made at run time, as a small cffi program does it; "floor, made"
takes ours, which needs no parser.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from engine.phantoms import draw_phantom, write_dicom, write_png

ROUNDS = int(os.environ.get("HILUM_BENCH_ROUNDS", "15"))
SIDE = 3000
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cold")
    png = write_png(draw_phantom(1), folder / "small.png")
    big = write_png(draw_phantom(1, height=SIDE, width=SIDE), folder / "big.png")
    dicom = write_dicom(draw_phantom(1, height=SIDE, width=SIDE), folder / "12 bits.dcm")
    deep = pydicom.dcmread(dicom)
    noise = np.random.default_rng(0).integers(0, 16, (SIDE, SIDE))
    deep.PixelData = (deep.pixel_array.astype(np.int64) * 16 + noise).astype(np.uint16).tobytes()
    deep.BitsStored, deep.HighBit = 16, 15
    deep.WindowCenter, deep.WindowWidth = (
        16 * float(value) for value in (deep.WindowCenter, deep.WindowWidth)
    )
    deep.save_as(folder / "16 bits.dcm")
    return {"png": png, "big": big, "dicom": folder / "16 bits.dcm"}


def run(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall time, CPU time and peak memory of a process from its start to its end."""
    done = subprocess.run(
        [sys.executable, "-S", "bench/launch.py", sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    assert found["code"] == 0, done.stderr
    return found


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a child needs wait4")
def test_cold(benchmark: Any, files: dict[str, Path], tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path / "compiled")
    environment["PYTHONPATH"] = str(REPOSITORY)
    filled = environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    # What is no absolute path is no folder for a cache; a file in its place cannot be written to.
    nothing = environment | {"XDG_CACHE_HOME": "none"}
    (tmp_path / "file").touch()
    unwritable = environment | {"XDG_CACHE_HOME": str(tmp_path / "file")}

    def predict(file: Path) -> list[str]:
        options = ["--output-dir", str(tmp_path / "results"), "--force", "--quiet"]
        # The embedded head knows children of 1 to 5 years, no phantoms.
        options += ["--allow", "out_of_distribution"]
        return ["-m", "engine.predict", str(file), *options]

    run(predict(files["png"]), filled)
    (blob,) = (tmp_path / "cache" / "hilum").glob("*.blob")
    programs = {
        "floor": (["bench/floor.py", "cdef", str(blob)], filled),
        "floor, made": (["bench/floor.py", "made", str(blob)], filled),
        "PNG": (predict(files["png"]), filled),
        f"PNG {SIDE}x{SIDE}": (predict(files["big"]), filled),
        f"DICOM {SIDE}x{SIDE}, 16 bits": (predict(files["dicom"]), filled),
        "PNG, no cache": (predict(files["png"]), nothing),
        "PNG, unwritable cache": (predict(files["png"]), unwritable),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for arguments, environment in programs.values():
        run(arguments, environment)  # compiles what is not compiled, fills the page cache
    for _ in range(ROUNDS):
        for name, (arguments, environment) in programs.items():
            found[name].append(run(arguments, environment))
    print(f"\nwhole processes, {ROUNDS} rounds, {os.cpu_count()} CPUs:")
    print("                           wall ms                    CPU ms  peak MiB")
    print("                            least  median  quartiles   median")
    walls: dict[str, float] = {}
    for name, rounds in found.items():
        wall = sorted(one["wall_ms"] for one in rounds)
        low, walls[name], high = statistics.quantiles(wall, n=4)
        cpu = statistics.median(one["cpu_ms"] for one in rounds)
        peak = max(one["peak_mib"] for one in rounds)
        spread = f"{low:.0f}-{high:.0f}"
        print(f"  {name:25}{wall[0]:6.0f}{walls[name]:8.0f}{spread:>11}{cpu:9.0f}{peak:10.0f}")
        benchmark.extra_info[name] = {"wall_ms": round(walls[name], 1), "peak_mib": round(peak, 1)}
    for floor in ("floor", "floor, made"):
        png, base = ([one["wall_ms"] for one in found[name]] for name in ("PNG", floor))
        ratios = [one / other for one, other in zip(png, base, strict=True)]
        least = min(png) / min(base)
        print(
            f"  PNG / {floor}: {walls['PNG'] / walls[floor]:.2f} of medians, "
            f"{statistics.median(ratios):.2f} median of rounds, {least:.2f} of the least"
        )
    more = walls[f"DICOM {SIDE}x{SIDE}, 16 bits"] - walls["PNG"]
    print(f"  DICOM - PNG: {more:.0f} ms")
    benchmark.extra_info["ratio"] = round(walls["PNG"] / walls["floor"], 3)
    benchmark.pedantic(lambda: run(*programs["PNG"]), rounds=3)
