"""A container larger than the memory it may take: written, opened, scanned, trained from, judged.

python -m bench.bench_big FOLDER [--rows 500000] [--unmarked] [--head mlp] [--cv K]

Half a million rows need 1.3 GB in FOLDER; the container is deleted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import formats
from engine.kernels import heads as kernels

DIM, CLASSES = 1280, ("normal", "opacity", "effusion")
FACTORS = 64
PIECE_ROWS = 4096
ROUNDS = 3
# The peak of the process itself: what getrusage says, a child inherits from its parent's pages.
COMMAND = """
import importlib, json, pathlib, re, sys, time
command = importlib.import_module(sys.argv[1])
start = time.perf_counter()
code = command.main(sys.argv[2:])
wall = time.perf_counter() - start
peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())
print(json.dumps({"code": code, "wall_s": wall, "cpu_s": time.process_time(),
                  "peak_mib": int(peak[1]) / 1024}))
"""


@contextlib.contextmanager
def said(what: str, n_bytes: int = 0) -> Iterator[None]:
    """Print how long something took."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    speed = f"  {n_bytes / seconds / 1e9:6.2f} GB/s" if n_bytes else ""
    print(f"  {what:42}{seconds:9.3f} s{speed}", flush=True)


def write(path: Path, n_rows: int, *, marked: bool) -> None:
    """Write rows of hidden factors of falling strength, as features of a backbone are.

    Classes move the factors; patients have two and a half rows on average and are of one class
    and one split. Independent features would be learned in three iterations, these take thirty.
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
            columns = {"label": label_of[group], "group": group.astype(np.uint32)}
            if marked:
                columns["split"] = split_of[group]
            half = X.astype(np.float16)
            begun = time.perf_counter()
            writer.append(half, **columns)
            writing += time.perf_counter() - begun
        begun = time.perf_counter()
        writer.seal(notes)
        writing += time.perf_counter() - begun
    speed = path.stat().st_size / writing / 1e9
    print(f"  {'write and seal (features given)':42}{writing:9.3f} s  {speed:6.2f} GB/s")


def forget(path: Path) -> None:
    """Ask the system to drop what it keeps of a file in memory."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def scan(container: formats.Container) -> None:
    """Read every row as float32, in pieces."""
    for start in range(0, container.n_rows, PIECE_ROWS):
        container.read_rows(slice(start, start + PIECE_ROWS))


def command(name: str, *arguments: str) -> None:
    """Run a command in a process of its own, and print its time and its peak."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, f"engine.{name}", *arguments, "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["code"] != 0:
        sys.exit(done.stderr)
    print(f"  {f'engine.{name}':42}{found['wall_s']:9.3f} s  {found['cpu_s']:6.1f} s of CPU, "
          f"peak {found['peak_mib']:.0f} MiB", flush=True)  # fmt: skip


def kernel() -> None:
    """Loss and gradient of rows in memory, against NumPy's two products in float32."""
    n, k = 20_000, len(CLASSES)
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

    def together(work: Callable[[], None], n_threads: int) -> None:
        threads = [threading.Thread(target=work) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def best(work: Callable[[], None]) -> float:
        work()
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    cores = len(os.sched_getaffinity(0))
    print(
        f"loss and gradient of a linear head, {DIM} features, {k} classes, million rows a second:"
    )
    for n_threads in sorted({1, cores}):
        seconds = best(lambda: together(ours, n_threads))  # noqa: B023
        print(f"  {f'kernel, {n_threads} thread(s)':42}{n_threads * n / seconds / 1e6:9.2f}")
    print(f"  {'NumPy in float32, as many as it takes':42}{n / best(peer) / 1e6:9.2f}")


def main() -> None:
    """Measure, and print what was found."""
    options = argparse.ArgumentParser(prog="python -m bench.bench_big", description=__doc__)
    options.add_argument("folder", type=Path, help="where the container is made")
    options.add_argument("--rows", type=int, default=500_000)
    options.add_argument("--unmarked", action="store_true", help="no train, valid and test marks")
    options.add_argument("--head", choices=("linear", "mlp"), default="linear")
    options.add_argument("--cv", help="folds of engine.train --cv")
    arguments = options.parse_args()
    kernel()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, head = Path(folder) / "big.hilum", Path(folder) / "big.safetensors"
        print(f"{arguments.rows} rows of {DIM} x f16:")
        write(path, arguments.rows, marked=not arguments.unmarked)
        size = path.stat().st_size
        for mode in ("mmap", "read"):
            with said(f"open ({mode})"):
                container = formats.open_container(path, mode=mode)
            with container:
                forget(path)
                with said(f"scan ({mode}), from the disk", size):
                    scan(container)
                with said(f"scan ({mode}), from the system's cache", size):
                    scan(container)
                if mode == "read":
                    with said("verify", size):
                        container.verify()
        more = ["--head", arguments.head, *(["--cv", arguments.cv] if arguments.cv else [])]
        command("train", str(path), "-o", str(head), *more)
        command("evaluate", str(head), str(path))


if __name__ == "__main__":
    main()
