"""Reading, verifying and writing a container, against other ways to keep the same numbers.

python -m bench container [--rounds N] [--quick]
python -m pytest bench/bench_container.py -s

One payload, 100,000 x 1,280 float16 with a label for each row, in the page cache, and every way in
each round, so that a noisy machine disturbs all alike. What was read is compared with what was
written. Other ways: extra ``bench``, and PyTorch where it is installed; those that are missing are
named. 2.4 GB are written to the temporary folder.

*Mapped* ways read the file when rows are asked for. *Loaded* ways read all of it when they open:
they pay when they open, and have the rows in their own memory afterwards. Opening our container
checks all but the features: header, notes, and every column with its checksum.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import formats
from bench.stages import Findings, Setting, Stage, in_turn, version_of

STAGE = Stage(
    name="container",
    title="Reading and writing a container",
    asks=[
        "At or ahead of the best of the others in every row: open and first batch, full scan, "
        "shuffled batches of 256, random single rows.",
        "Scan at least 0.95 of a plain memmap copy; open no slower than safetensors.",
        "verify at least 1.5 GB/s; writing at least 0.7 of the rate of disk or memory, whichever "
        "is lower; open and first row at most 2 ms.",
    ],
    order=42,
)
N_ROWS, QUICK_ROWS, DIM = 100_000, 4000, 1280
CLASSES = ["normal", "bacterial", "viral"]
BATCH = 256
N_SINGLE = 2000
DIGEST = "0" * 64
EMBEDDED = Path(formats.__file__).parents[1] / "engine" / "demonstration" / "pneumonia.hilum"
NOTES = {
    "format": "hilum-notes",
    "version": 1,
    "classes": CLASSES,
    "multilabel": False,
    "backbone": {"name": "bench", "sha256": DIGEST},
    "preprocessing": {"version": 1},
    "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
}
Works = dict[str, Callable[[], object]]


class Truth:
    """The payload in memory, and orders to read it in."""

    def __init__(self, n_rows: int) -> None:
        rng = np.random.default_rng(0)
        self.features = np.empty((n_rows, DIM), np.float16)
        for start in range(0, n_rows, 10_000):
            part = self.features[start : start + 10_000]
            part[...] = rng.standard_normal(part.shape, np.float32)
        self.labels = rng.integers(0, len(CLASSES), n_rows).astype(np.uint16)
        order = rng.permutation(n_rows)
        self.batches = [order[i : i + BATCH] for i in range(0, n_rows, BATCH)]
        self.single = rng.integers(0, n_rows, N_SINGLE).tolist()


# ---- the ways ----------------------------------------------------------------------------------


class Way:
    """One way to keep and read the payload; `open` comes before everything else."""

    name = ""
    package: str | None = None
    suffix = ""

    def write(self, path: Path, truth: Truth) -> None:
        raise NotImplementedError

    def open(self, path: Path) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go; what is not named in a subclass goes with its attributes."""
        self.__dict__.clear()

    def first_batch(self, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
        """The first rows in memory of the caller's own, and their labels."""
        raise NotImplementedError

    def scan(self) -> NDArray[Any]:
        """All features in memory of the caller's own."""
        raise NotImplementedError

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        raise NotImplementedError

    def batch_float32(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.batch(rows).astype(np.float32)

    def row(self, row: int) -> NDArray[Any]:
        raise NotImplementedError


class Hilum(Way):
    name, suffix = "hilum", ".hilum"

    def write(self, path: Path, truth: Truth) -> None:
        formats.write_container(path, truth.features, NOTES, columns={"label": truth.labels})

    def open(self, path: Path) -> None:
        self.container = formats.open_container(path)
        self.features = self.container.features

    def first_batch(self, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
        read = self.container.read_rows if dtype is np.float32 else self.container.read_stored
        return read(slice(0, BATCH)), self.container.labels[:BATCH]

    def scan(self) -> NDArray[Any]:
        return self.container.read_stored()

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.container.read_stored(rows)

    def batch_float32(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.container.read_rows(rows)

    def row(self, row: int) -> NDArray[Any]:
        return self.features[row]


class Arrays(Way):
    """What is an array once it is open."""

    features: Any
    labels: Any

    def first_batch(self, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.array(self.features[:BATCH], dtype), self.labels[:BATCH]

    def scan(self) -> NDArray[Any]:
        return np.array(self.features)

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.features[rows]

    def row(self, row: int) -> NDArray[Any]:
        return self.features[row]


class Memmap(Arrays):
    name, suffix = "numpy memmap", ".npy"

    def write(self, path: Path, truth: Truth) -> None:
        np.save(path, truth.features)
        np.save(path.with_suffix(".labels.npy"), truth.labels)

    def open(self, path: Path) -> None:
        self.features = np.load(path, mmap_mode="r")
        self.labels = np.load(path.with_suffix(".labels.npy"), mmap_mode="r")


class Safetensors(Way):
    name, package, suffix = "safetensors", "safetensors", ".safetensors"

    def write(self, path: Path, truth: Truth) -> None:
        numpy = importlib.import_module("safetensors.numpy")
        numpy.save_file({"features": truth.features, "label": truth.labels}, path)

    def open(self, path: Path) -> None:
        self.file = importlib.import_module("safetensors").safe_open(path, "np")
        self.features = self.file.get_slice("features")

    def first_batch(self, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
        X, y = self.features[:BATCH], self.file.get_slice("label")[:BATCH]
        return X.astype(dtype, copy=False), y

    def scan(self) -> NDArray[Any]:
        return self.file.get_tensor("features")

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        # it has slices only
        return np.concatenate([self.features[i : i + 1] for i in rows.tolist()])

    def row(self, row: int) -> NDArray[Any]:
        return self.features[row : row + 1][0]


class SafetensorsLoaded(Arrays):
    name, package, suffix = "safetensors, loaded", "safetensors", ".safetensors"

    def open(self, path: Path) -> None:
        tensors = importlib.import_module("safetensors.numpy").load_file(path)
        self.features, self.labels = tensors["features"], tensors["label"]


class Hdf5(Arrays):
    name, package, suffix = "HDF5 (h5py)", "h5py", ".h5"

    def write(self, path: Path, truth: Truth) -> None:
        with importlib.import_module("h5py").File(path, "w") as file:
            file["features"], file["label"] = truth.features, truth.labels  # contiguous

    def open(self, path: Path) -> None:
        self.file = importlib.import_module("h5py").File(path, "r")
        self.features, self.labels = self.file["features"], self.file["label"]

    def close(self) -> None:
        self.file.close()
        super().close()

    def first_batch(self, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.features[:BATCH].astype(dtype, copy=False), self.labels[:BATCH]

    def scan(self) -> NDArray[Any]:
        return self.features[:]

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        # it takes ascending indices only
        order = np.argsort(rows)
        out = np.empty((len(rows), DIM), np.float16)
        out[order] = self.features[rows[order]]
        return out


class Parquet(Arrays):
    """Row groups are read whole, so random rows need the table in memory."""

    name, package, suffix = "Parquet, loaded", "pyarrow", ".parquet"

    def write(self, path: Path, truth: Truth) -> None:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        flat = arrow.array(truth.features.reshape(-1))
        table = arrow.table(
            {"features": arrow.FixedSizeListArray.from_arrays(flat, DIM), "label": truth.labels}
        )
        parquet.write_table(
            table, path, row_group_size=8192, compression="none", use_dictionary=["label"]
        )

    def open(self, path: Path) -> None:
        self.file = importlib.import_module("pyarrow.parquet").ParquetFile(path, memory_map=True)

    def _numpy(self, column: Any) -> NDArray[Any]:
        flat = column.combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(-1, DIM)

    def first_batch(self, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
        group = self.file.read_row_group(0)
        X = self._numpy(group["features"])[:BATCH]
        return X.astype(dtype, copy=False), group["label"].to_numpy()[:BATCH]

    def scan(self) -> NDArray[Any]:
        return self._numpy(self.file.read(["features"])["features"])

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self._loaded()[rows]

    def row(self, row: int) -> NDArray[Any]:
        return self._loaded()[row]

    def _loaded(self) -> NDArray[Any]:
        if "features" not in self.__dict__:
            self.features = self.scan()
        return self.features


class Pickle(Arrays):
    name, suffix = "pickle, loaded", ".pickle"

    def write(self, path: Path, truth: Truth) -> None:
        with path.open("wb") as file:
            pickle.dump({"features": truth.features, "label": truth.labels}, file, protocol=5)

    def open(self, path: Path) -> None:
        with path.open("rb") as file:
            loaded = pickle.load(file)
        self.features, self.labels = loaded["features"], loaded["label"]


class Torch(Arrays):
    name, package, suffix = "torch.load, loaded", "torch", ".pt"
    mapped = False

    def write(self, path: Path, truth: Truth) -> None:
        torch = importlib.import_module("torch")
        features = torch.from_numpy(truth.features)
        labels = torch.from_numpy(truth.labels.astype(np.int64))  # few functions take uint16
        torch.save({"features": features, "label": labels}, path)

    def open(self, path: Path) -> None:
        torch = importlib.import_module("torch")
        loaded = torch.load(path, mmap=self.mapped, weights_only=True)
        self.features = loaded["features"]
        self.labels = loaded["label"]

    def first_batch(self, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
        X = self.features[:BATCH]
        X = X.float() if dtype is np.float32 else X.clone()
        return X.numpy(), self.labels[:BATCH].numpy()

    def scan(self) -> NDArray[Any]:
        return self.features.clone().numpy()

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.features[importlib.import_module("torch").from_numpy(rows)].numpy()

    def batch_float32(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.features[importlib.import_module("torch").from_numpy(rows)].float().numpy()

    def row(self, row: int) -> NDArray[Any]:
        return self.features[row].numpy()


class TorchMapped(Torch):
    name, mapped = "torch.load(mmap=True)", True


WAYS: tuple[type[Way], ...] = (
    Hilum,
    Memmap,
    Safetensors,
    SafetensorsLoaded,
    Hdf5,
    Parquet,
    Pickle,
    TorchMapped,
    Torch,
)

HOW = {
    "safetensors": "safe_open and get_slice; loaded: load_file",
    "h5py": "contiguous, no compression",
    "pyarrow": "fixed-size lists, row groups of 8,192, no compression, memory map",
    "torch": "torch.load(weights_only=True), with and without mmap",
}

# ---- the comparisons -----------------------------------------------------------------------------


class Payload:
    """The payload, kept in every way that can be had here, and what is compared on it.

    Parameters
    ----------
    n_rows : int
        How large.
    folder : Path
        Gets the files.
    """

    def __init__(self, n_rows: int, folder: Path) -> None:
        self.truth, self.folder = Truth(n_rows), folder
        self.paths: dict[type[Way], Path] = {}
        self.missing: dict[str, str] = {}
        for kind in WAYS:
            try:
                if kind.package is not None:
                    importlib.import_module(kind.package)
            except ImportError:
                extra = "torch" if kind.package == "torch" else "hilum[bench]"
                self.missing[kind.name] = f"{kind.package} is not installed: pip install {extra}"
                continue
            path = folder / f"payload{kind.suffix}"
            if not path.exists():
                kind().write(path, self.truth)
            self.paths[kind] = path

    @property
    def container(self) -> Path:
        return self.paths[Hilum]

    def _each(self, work: Callable[[Way], Callable[[], object]]) -> Works:
        """Make a work of every way, with its file open."""
        works = {}
        for kind, path in self.paths.items():
            way = kind()
            way.open(path)
            works[way.name] = work(way)
        return works

    def opening(self, what: type | None) -> Works:
        """From nothing to 256 rows and their labels of a dtype; None: to the open file."""
        labels, features = self.truth.labels, self.truth.features

        def work(way: Way, path: Path) -> Callable[[], None]:
            def run() -> None:
                way.open(path)
                if what is not None:
                    X, y = way.first_batch(what)
                    if y[0] != labels[0] or X[-1, -1] != features[BATCH - 1, -1]:
                        raise RuntimeError(f"{way.name}: what was read is not what was written")
                way.close()

            return run

        return {kind.name: work(kind(), path) for kind, path in self.paths.items()}

    def scanning(self) -> Works:
        """All features, as stored, into memory of the caller's own; loaded ways copy theirs."""

        def work(way: Way) -> Callable[[], object]:
            _same(way.scan(), self.truth.features, way)
            return way.scan

        return self._each(work)

    def shuffling(self, dtype: type) -> Works:
        """One epoch of 256 random rows at a time, from an open file; loading is not counted."""

        def work(way: Way) -> Callable[[], object]:
            read = way.batch if dtype is np.float16 else way.batch_float32
            for rows in self.truth.batches[:3]:
                _same(read(rows), self.truth.features[rows], way)

            def run() -> None:
                for rows in self.truth.batches:
                    read(rows)

            return run

        return self._each(work)

    def single(self) -> Works:
        """2,000 times one random row as an array, from an open file; loading is not counted."""

        def work(way: Way) -> Callable[[], object]:
            for row in self.truth.single[:3]:
                _same(way.row(row), self.truth.features[row], way)
            out = np.empty(DIM, np.float16)

            def run() -> None:
                for row in self.truth.single:
                    out[:] = way.row(row)

            return run

        return self._each(work)

    def copying(self) -> Works:
        """A scan through our view, and through a plain memmap of the same bytes of one file."""
        features = formats.open_container(self.container).features
        stored = self.truth.features
        plain = np.memmap(self.container, np.float16, "r", offset=4096, shape=stored.shape)
        out = np.empty_like(stored)
        return {
            "hilum": lambda: np.copyto(out, features),
            "plain memmap": lambda: np.copyto(out, plain),
        }

    def verifying(self) -> Works:
        """SHA-256, CRC-32C and a look at each value, beside SHA-256 of the same bytes in memory."""
        container, data = formats.open_container(self.container), self.container.read_bytes()
        return {
            "hilum": container.verify,
            "SHA-256 alone": lambda: hashlib.sha256(data).digest(),
        }

    def writing(self) -> Works:
        """The whole way to a sealed file, beside the same bytes in 4 MiB pieces, one fdatasync."""
        data = self.container.read_bytes()
        copied = bytearray(len(data))
        target, plain = self.folder / "written.hilum", self.folder / "plain"

        def sequential() -> None:
            plain.unlink(missing_ok=True)
            descriptor = os.open(plain, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            view = memoryview(data)
            for start in range(0, len(data), 4 << 20):
                os.write(descriptor, view[start : start + (4 << 20)])
            getattr(os, "fdatasync", os.fsync)(descriptor)
            os.close(descriptor)

        def container() -> None:
            target.unlink(missing_ok=True)
            Hilum().write(target, self.truth)

        def copy() -> None:
            copied[:] = data

        return {"hilum": container, "sequential fdatasync": sequential, "copy in memory": copy}


def _same(found: NDArray[Any], wanted: NDArray[Any], way: Way) -> None:
    if not np.array_equal(found, wanted):
        raise RuntimeError(f"{way.name}: what was read is not what was written")


# Heading, what is compared, and how many times the rounds: what takes milliseconds is noisier.
READING: Mapping[str, tuple[Callable[[Payload], Works], int]] = {
    "open": (lambda payload: payload.opening(None), 3),
    "open and first batch, as stored": (lambda payload: payload.opening(np.float16), 3),
    "open and first batch, float32": (lambda payload: payload.opening(np.float32), 3),
    "full scan": (Payload.scanning, 1),
    "shuffled batches, as stored": (lambda payload: payload.shuffling(np.float16), 1),
    "shuffled batches, float32": (lambda payload: payload.shuffling(np.float32), 1),
    "2,000 random single rows": (Payload.single, 1),
}
OTHERS: Mapping[str, Callable[[Payload], Works]] = {
    "scan of the view": Payload.copying,
    "verify": Payload.verifying,
    "write": Payload.writing,
}


def first_row() -> None:
    """Open the embedded container, whose features are of 720 real X-rays, and read a row."""
    with formats.open_container(EMBEDDED) as container:
        container.read_rows(slice(0, 1))


def measure(setting: Setting) -> Findings:
    findings = Findings(setting)
    payload = Payload(setting.size(N_ROWS, QUICK_ROWS), setting.work)
    for kind in payload.paths:
        if kind.package is not None:
            version = version_of(kind.package) or "?"
            findings.peer(kind.name, version=version, how=HOW[kind.package])
    for name, reason in payload.missing.items():
        findings.missing(name, reason)
    found: dict[str, dict[str, list[float]]] = {}
    for title, (works, factor) in READING.items():
        found[title] = in_turn(works(payload), rounds=factor * setting.rounds)
        times = found[title]
        others = [name for name in times if name != "hilum"]
        best = min(others, key=lambda name: statistics.median(times[name]))
        if title == "open":
            if "safetensors" in times:
                findings.ratio(
                    "open, ours / safetensors", times["hilum"], times["safetensors"],
                    asked="<= 1", better="lower",
                    note="safetensors reads a header and checks nothing",
                )  # fmt: skip
        else:
            findings.ratio(f"{title}, best other ({best}) / ours", times["hilum"], times[best],
                           asked=">= 1")  # fmt: skip
    rows = [
        [name, *([1e3 * s for s in times[name]] for times in found.values())]
        for name in found["open"]
    ]
    findings.table(
        f"Reading {len(payload.truth.labels):,} rows of {DIM:,} float16",
        ["ms", *found], rows, note="Batches of 256; one epoch of them.",
    )  # fmt: skip
    for title, wanted in (
        ("Open and first batch of 256 rows", "open and first batch"),
        ("One epoch of shuffled batches of 256 rows", "shuffled batches"),
    ):
        charted = {
            key.rpartition(", ")[2]: {name: [1e3 * s for s in own] for name, own in times.items()}
            for key, times in found.items()
            if key.startswith(wanted)
        }
        findings.chart(title, charted, unit="ms, lower is better", ours=("hilum",), log=True)
    n_bytes = payload.container.stat().st_size
    rates: dict[str, dict[str, list[float]]] = {}
    for title, make in OTHERS.items():
        times = in_turn(make(payload), rounds=setting.rounds)
        rates[title] = {name: [n_bytes / s / 1e9 for s in own] for name, own in times.items()}
        if title == "scan of the view":
            findings.ratio("scan of the view, plain memmap / ours", times["hilum"],
                           times["plain memmap"], asked=">= 0.95")  # fmt: skip
        elif title == "verify":
            findings.figure("verify", rates[title]["hilum"], asked=">= 1.5", unit="GB/s")
        else:
            slower = [
                max(pair)
                for pair in zip(times["sequential fdatasync"], times["copy in memory"], strict=True)
            ]
            findings.ratio("write, the slower of disk and memory / ours", times["hilum"], slower,
                           asked=">= 0.7")  # fmt: skip
    opened = in_turn({"": first_row}, rounds=3 * setting.rounds)[""]
    findings.figure("open and first row, embedded container", [1e3 * s for s in opened],
                    asked="<= 2", unit="ms")  # fmt: skip
    findings.table(
        "Rates", ["", "way", "GB/s"],
        [[title, name, own] for title, ways in rates.items() for name, own in ways.items()],
    )  # fmt: skip
    findings.chart("Scan, verification and writing", rates, unit="GB/s, higher is better",
                   ours=("hilum",))  # fmt: skip
    return findings


@pytest.fixture(scope="module")
def payload(setting: Setting) -> Iterator[Payload]:
    folder = setting.work / "container"
    folder.mkdir()
    payload = Payload(setting.size(N_ROWS, QUICK_ROWS), folder)
    for name, reason in payload.missing.items():
        print(f"\nnot measured: {name}: {reason}", end="")
    yield payload
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("title", [*READING, *OTHERS])
def test_container(benchmark: Any, payload: Payload, setting: Setting, title: str) -> None:
    works = READING[title][0](payload) if title in READING else OTHERS[title](payload)
    times = in_turn(works, rounds=setting.rounds)
    print(f"\n\n{title}, median of {setting.rounds}, ms:")
    for name, own in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        benchmark.extra_info[name] = round(1e3 * statistics.median(own), 3)
        print(f"  {name:<24}{1e3 * statistics.median(own):>12.3f}{1e3 * min(own):>12.3f}")
    benchmark.pedantic(works["hilum"], rounds=3)


def test_open_and_first_row(benchmark: Any) -> None:
    benchmark(first_row)
