"""A container larger than the memory it may take: written, opened, scanned, trained from, judged.

python -m bench big

Half a million rows of hidden factors, 1.3 GB in the temporary folder, with labels, patients and
splits. Scans read every row as float32, in pieces; the peer of a scan is NumPy's memmap of the same
bytes, in the same pieces. Writing and the two commands are repeated three times at most. There is
no peer that trains in so little memory; the features as float32 stand beside the peak. Other ways
to fit such a head are in the stage *heads*, other formats in *container*.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import formats
from bench.stages import Findings, Missing, Setting, Stage, in_turn, run_process
from engine.kernels import heads as kernels

STAGE = Stage(
    "big",
    "A container larger than memory",
    [
        "500,000 x 1,280 f16 with labels, groups and splits: written, opened, scanned, verified.",
        "Peak memory of engine.train with a linear head: less than 600 MiB.",
    ],
    order=62,
)
DIM, CLASSES = 1280, ("normal", "opacity", "effusion")
FACTORS = 64
PIECE_ROWS = 4096
LONG_ROUNDS = 3


def write(path: Path, n_rows: int) -> float:
    """Write rows of hidden factors of falling strength, as features of a backbone are.

    Classes move the factors; patients have two and a half rows on average and are of one class
    and one split. Independent features would be learned in three iterations, these take thirty.

    Returns the seconds that writing and sealing took, without those of drawing.
    """
    rng = np.random.default_rng(0)
    strength = np.geomspace(2.0, 0.05, FACTORS)[:, None]
    mix = (rng.normal(size=(FACTORS, DIM)) * strength).astype(np.float32)
    centres = (rng.normal(size=(len(CLASSES), FACTORS)) * 0.35).astype(np.float32)
    groups = rng.permutation(np.unique(rng.integers(0, 2 * n_rows // 5, n_rows),
                                       return_inverse=True)[1])  # fmt: skip
    n_groups = int(groups.max()) + 1
    label_of = rng.integers(0, len(CLASSES), n_groups).astype(np.uint16)
    split_of = rng.choice([1, 2, 3], n_groups, p=[0.7, 0.15, 0.15]).astype(np.uint8)
    preprocessing = {"version": 1}
    notes = {
        "classes": list(CLASSES),
        "multilabel": False,
        "backbone": {"name": "bench", "sha256": "0" * 64},
        "preprocessing": preprocessing,
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
    }
    writing = 0.0
    with formats.ContainerWriter(
        path,
        dim=DIM,
        dtype="f16",
        expected_rows=n_rows,
        backbone_digest="0" * 64,
        preprocessing_digest=formats.preprocessing_digest(preprocessing),
    ) as writer:
        for start in range(0, n_rows, PIECE_ROWS):
            group = groups[start : start + PIECE_ROWS]
            factors = centres[label_of[group]]
            factors += rng.standard_normal(factors.shape, np.float32)
            X = rng.standard_normal((len(group), DIM), np.float32)
            X *= np.float32(0.3)
            X += factors @ mix
            columns = {"label": label_of[group], "group": group.astype(np.uint32),
                       "split": split_of[group]}  # fmt: skip
            half = X.astype(np.float16)
            begun = time.perf_counter()
            writer.append(half, **columns)
            writing += time.perf_counter() - begun
        begun = time.perf_counter()
        writer.seal(notes)
        writing += time.perf_counter() - begun
    return writing


def forget(path: Path) -> None:
    """Ask the system to drop what it keeps of a file in memory."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def scan(container: formats.Container) -> None:
    """Read every row as float32, in pieces."""
    for start in range(0, container.n_rows, PIECE_ROWS):
        container.read_rows(slice(start, start + PIECE_ROWS))


def memmap_of(
    container: formats.Container, path: Path
) -> np.memmap[tuple[int, ...], np.dtype[np.float16]]:
    """Map the features with NumPy alone; they are found by their first two rows."""
    data = np.memmap(path, np.uint8, "r")
    rows = np.asarray(container.features[:2])
    wanted, step = rows.tobytes(), 4096
    for start in range(0, min(len(data), 1 << 24), step):
        if data[start : start + 16].tobytes() == wanted[:16]:
            stride = container.features.strides[0]
            if stride != 2 * DIM:
                raise RuntimeError(f"rows are {stride} bytes apart; wanted {2 * DIM}")
            return np.memmap(path, np.float16, "r", start, (container.n_rows, DIM))
    raise RuntimeError(f"{path.name}: no features at any multiple of {step} bytes")


def kernel(findings: Findings, setting: Setting) -> None:
    """Loss and gradient of rows in memory, against NumPy's two products in float32."""
    n, k = setting.size(20_000, 4000), len(CLASSES)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, DIM)).astype(np.float32)
    labels, weights = rng.integers(0, k, n), np.full(n, 1.0 / n)
    W, bias = rng.normal(size=(k, DIM)) * 0.01, np.zeros(k)

    def ours() -> None:
        work = np.empty(kernels.LANES), np.empty((kernels.ROWS, k))
        sums = np.zeros((k, DIM)), np.zeros(k), np.zeros(1)
        kernels.linear_softmax(X, labels, weights, W, bias, *work, *sums)

    def peer() -> None:
        z = X @ W.T.astype(np.float32)
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        z[np.arange(n), labels] -= 1.0
        z.T @ X

    def together(n_threads: int) -> None:
        threads = [threading.Thread(target=ours) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    cores = os.cpu_count() or 1
    one, all_cores = "kernel, 1 thread", f"kernel, {cores} threads, as many times the rows"
    works: dict[str, Callable[[], object]] = {one: lambda: together(1), "NumPy, all cores": peer}
    if cores > 1:
        works[all_cores] = lambda: together(cores)
    times = in_turn(works, rounds=setting.rounds)
    if cores > 1:
        times[all_cores] = [value / cores for value in times[all_cores]]
    findings.peer("NumPy", version=np.__version__, how="two products in float32; memmap")
    rows = [[name, values, [n / s / 1e6 for s in values]] for name, values in times.items()]
    findings.table(
        f"Loss and gradient of a linear head, {DIM} features, {len(CLASSES)} classes",
        ["", f"s for {n:,} rows", "million rows a second"], rows,
    )  # fmt: skip
    best = all_cores if cores > 1 else one
    findings.ratio(
        "NumPy / kernel, both with all cores, loss and gradient", times[best],
        times["NumPy, all cores"],
    )  # fmt: skip


def reading(findings: Findings, setting: Setting, path: Path) -> None:
    """Open, scan and verify."""
    size = path.stat().st_size
    rows: list[list[str | list[float]]] = []

    def line(name: str, seconds: list[float], *, whole: bool = True) -> None:
        rows.append([name, seconds, [size / s / 1e9 for s in seconds] if whole else "–"])

    def opened(mode: str) -> None:
        formats.open_container(path, mode=mode).close()

    times = in_turn(
        {f"open ({mode})": lambda mode=mode: opened(mode) for mode in ("mmap", "read")},  # type: ignore[misc]
        rounds=setting.rounds,
    )
    for name, values in times.items():
        line(name, values, whole=False)
    with (
        formats.open_container(path, mode="mmap") as mapped,
        formats.open_container(path, mode="read") as read,
    ):
        plain = memmap_of(mapped, path)

        def scan_plain() -> None:
            for start in range(0, len(plain), PIECE_ROWS):
                plain[start : start + PIECE_ROWS].astype(np.float32)

        cold: list[float] = []
        for _ in range(min(setting.rounds, LONG_ROUNDS)):
            forget(path)
            start = time.perf_counter()
            scan(read)
            cold.append(time.perf_counter() - start)
        line("scan (read), dropped from the system's cache before", cold)
        times = in_turn(
            {
                "scan (mmap)": lambda: scan(mapped),
                "scan (read)": lambda: scan(read),
                "scan, NumPy memmap": scan_plain,
                "verify": read.verify,
            },
            rounds=setting.rounds,
        )
        for name, values in times.items():
            line(name, values)
        findings.ratio(
            "NumPy memmap / ours (mmap), scan as float32",
            times["scan (mmap)"], times["scan, NumPy memmap"],
        )  # fmt: skip
    findings.table(f"Reading {size / 1e9:.3g} GB", ["", "s", "GB/s of the file"], rows)


def measure(setting: Setting) -> Findings:
    """Write the container, read it, train from it, judge the head."""
    if not hasattr(os, "wait4"):
        raise Missing("the peak memory of a child needs wait4; run this stage on Linux or macOS")
    findings = Findings(setting)
    n_rows, long = setting.size(500_000, 5000), min(setting.rounds, LONG_ROUNDS)
    kernel(findings, setting)
    path, head = setting.work / "big.hilum", setting.work / "big.safetensors"
    writing = []
    for _ in range(long):
        path.unlink(missing_ok=True)
        writing.append(write(path, n_rows))
    size = path.stat().st_size
    findings.table(
        f"Writing {n_rows:,} rows of {DIM} x f16", ["", "s", "GB/s"],
        [["write and seal", writing, [size / s / 1e9 for s in writing]]],
        note="Features given; drawing them is not counted.",
    )  # fmt: skip
    reading(findings, setting, path)
    commands = {
        "engine.train": ["engine.train", str(path), "-o", str(head)],
        "engine.evaluate": ["engine.evaluate", str(head), str(path)],
    }
    rows = []
    peaks: dict[str, list[float]] = {}
    for name, arguments in commands.items():
        found = [run_process([sys.executable, "-m", *arguments, "--quiet"]) for _ in range(long)]
        peaks[name] = [one["peak_mib"] for one in found]
        wall, cpu = ([one[key] / 1e3 for one in found] for key in ("wall_ms", "cpu_ms"))
        rows.append([name, wall, cpu, peaks[name]])
    findings.table("Whole processes", ["", "wall, s", "CPU, s", "peak, MiB"], rows)
    whole = n_rows * DIM * 4 / 2**20
    findings.figure("peak of engine.train", peaks["engine.train"], asked="< 600", unit="MiB")
    findings.figure("peak of engine.evaluate", peaks["engine.evaluate"], unit="MiB")
    findings.ratio("features as float32 / peak of engine.train", peaks["engine.train"], whole)
    findings.chart(
        "Peak memory", {**peaks, "the features as float32": whole},
        unit="MiB, lower is better", ours=tuple(peaks), limit=("asked", 600.0),
    )  # fmt: skip
    return findings
