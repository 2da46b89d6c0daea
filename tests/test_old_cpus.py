"""The same answers on processors of 2010 to 2013, emulated: nothing newer may be taken for granted.

Functional only: QEMU's user mode says nothing about time. Needs qemu-x86_64 (Debian: qemu-user).
One process for each processor, all at once.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.phantoms import draw_phantom, write_png

EMULATOR = shutil.which("qemu-x86_64")
PROCESSORS = {
    # What each has of old_cpu.py's list, so that the test knows it is not run on this machine's.
    "Westmere": ["sse4.2"],
    "Haswell": ["sse4.2", "avx", "avx2", "fma"],
}
BACKBONES = ("efficientnet-lite0", "efficientnet-lite2")
HELPER = Path(__file__).with_name("old_cpu.py")
REPOSITORY = HELPER.parents[1]
HEAD = REPOSITORY / "engine" / "demonstration" / "pneumonia.safetensors"

# They tell a library which processor it is on, or forbid it one; here it has to find out.
OVERRIDES = (
    "ONEDNN_MAX_CPU_ISA",
    "OV_CPU_MAX_ISA",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
)

emulated = [
    pytest.mark.skipif(
        platform.machine() != "x86_64" or not sys.platform.startswith("linux"),
        reason="emulates x86-64 on Linux only",
    ),
    pytest.mark.skipif(EMULATOR is None, reason="no qemu-x86_64: apt-get install qemu-user"),
]


@dataclass(frozen=True)
class Run:
    """What came of one process: its facts, and the compiled loops it found and left."""

    facts: Mapping[str, Any]
    before: frozenset[str]
    after: frozenset[str]


def loops(cache: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(cache)) for path in cache.rglob("*.nbc"))


def start(cpu: str | None, cache: Path, picture: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key not in OVERRIDES}
    environment |= {
        "XDG_CACHE_HOME": str(cache),
        "NUMBA_CACHE_DIR": str(cache / "numba"),
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, str(HELPER), str(picture), str(HEAD), *BACKBONES]
    if cpu is not None:
        command = [str(EMULATOR), "-cpu", cpu, *command]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], cpu: str | None) -> Any:
    try:
        answer, said = process.communicate(timeout=600)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    # QEMU lists on standard error, at each start, what of the processor it does not emulate.
    lines = [line for line in said.splitlines() if "TCG doesn't support" not in line]
    assert process.returncode == 0, f"{cpu}: exit {process.returncode}\n" + "\n".join(lines)
    return json.loads(answer)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Run natively first; each old processor then gets a copy of the cache that this left.

    As if the user's folder had moved with the disk from a newer PC: compiled networks and compiled
    loops of this machine lie there and must not be run.
    """
    folder = tmp_path_factory.mktemp("old")
    picture = write_png(draw_phantom(3, height=300, width=280), folder / "phantom.png")
    here = folder / "native"
    here.mkdir()
    found = {"native": Run(finish(start(None, here, picture), None), frozenset(), loops(here))}
    processes = {}
    try:
        for cpu in PROCESSORS:
            shutil.copytree(here, folder / cpu)
            processes[cpu] = start(cpu, folder / cpu, picture)
        for cpu, process in processes.items():
            facts = finish(process, cpu)
            found[cpu] = Run(facts, found["native"].after, loops(folder / cpu))
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.communicate()
    return found


def on_each_processor(test: Any) -> Any:
    for mark in [*emulated, pytest.mark.parametrize("cpu", PROCESSORS)]:
        test = mark(test)
    return test


@on_each_processor
def test_predict_answers_on_an_old_processor(cpu: str, runs: dict[str, Run]) -> None:
    native, old = runs["native"].facts["prediction"], runs[cpu].facts["prediction"]
    assert runs[cpu].facts["sets"] == PROCESSORS[cpu]
    assert old["status"] == native["status"] == "ok"
    (expected,), (found,) = native["heads"].values(), old["heads"].values()
    assert found["label"] == expected["label"]
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=0.02)


@on_each_processor
@pytest.mark.parametrize("backbone", BACKBONES)
def test_features_are_those_of_this_processor(
    backbone: str, cpu: str, runs: dict[str, Run]
) -> None:
    native, old = (runs[name].facts["backbones"][backbone] for name in ("native", cpu))
    assert old["tolerances"]
    for tap, tolerance in old["tolerances"].items():
        expected, found = (np.array(answer["features"][tap]) for answer in (native, old))
        distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert distance <= tolerance, f"{tap}: {distance:.5f}, at most {tolerance}"
    assert old["probes"]
    assert [probe for probe, passed in old["probes"].items() if not passed] == []


@on_each_processor
def test_loops_compiled_here_are_not_run_on_an_old_processor(
    cpu: str, runs: dict[str, Run]
) -> None:
    """A cache of numba that came along from a newer PC: the old one compiles its own."""
    native, old = runs["native"], runs[cpu]
    assert old.before
    assert old.facts["name"] == cpu.lower() != native.facts["name"]
    assert len(old.after - old.before) == len(old.before)
    # Nothing allows the compiler to add in another order or to fuse: the same bits.
    assert old.facts["pooled"] == native.facts["pooled"]


@on_each_processor
def test_the_c_library_reads_the_same_on_an_old_processor(cpu: str, runs: dict[str, Run]) -> None:
    assert runs[cpu].facts["sum"] == runs["native"].facts["sum"]


def test_the_c_library_is_built_for_every_processor() -> None:
    """No file of the build asks for the processor that builds, or for one newer than the oldest."""
    files = [REPOSITORY / "CMakeLists.txt", REPOSITORY / "pyproject.toml"]
    files += sorted((REPOSITORY / "native").rglob("CMakeLists.txt"))
    files += sorted((REPOSITORY / "native").rglob("*.cmake"))
    flag = re.compile(r"-m(?:arch|cpu|tune|sse|ssse|avx|fma|bmi|f16c)[\w.=-]*|/arch:\S+")
    assert [
        f"{path.name}: {found}"
        for path in files
        for found in flag.findall(path.read_text(encoding="utf-8"))
    ] == []
