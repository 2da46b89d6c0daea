"""Reading, verifying and writing a container, against other ways to keep the same numbers.

python -m pytest bench/bench_container.py -s

One payload, 100,000 x 1,280 float16 with a label for each row (HILUM_BENCH_ROWS for another number
of rows), in the page cache, and every way in each round, so that a noisy machine disturbs all
alike; medians. What was read is compared with what was written. Other ways: extra ``bench``,
and PyTorch where it is installed; those that are missing are named.

*Mapped* ways read the file when rows are asked for. *Loaded* ways read all of it when they open:
they pay in the first row of the table, and have the rows in their own memory afterwards.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import formats

ROWS, DIM = int(os.environ.get("HILUM_BENCH_ROWS", "100000")), 1280
CLASSES = ["normal", "bacterial", "viral"]
BATCH = 256
SINGLE_ROWS = 2000
ROUNDS = 7
DIGEST = "0" * 64
NOTES = {
    "format": "hilum-notes",
    "version": 1,
    "classes": CLASSES,
    "multilabel": False,
    "backbone": {"name": "bench", "sha256": DIGEST},
    "preprocessing": {"version": 1},
    "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
}


class Truth:
    """The payload in memory, and orders to read it in."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.features = np.empty((ROWS, DIM), np.float16)
        for start in range(0, ROWS, 10_000):
            part = self.features[start : start + 10_000]
            part[...] = rng.standard_normal(part.shape, np.float32)
        self.labels = rng.integers(0, len(CLASSES), ROWS).astype(np.uint16)
        order = rng.permutation(ROWS)
        self.batches = [order[i : i + BATCH] for i in range(0, ROWS, BATCH)]
        self.single = rng.integers(0, ROWS, SINGLE_ROWS).tolist()


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

# ---- the payload -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth()


@pytest.fixture(scope="module")
def large(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """256 MB of features, more than any cache holds."""
    path = tmp_path_factory.mktemp("large") / "large.hilum"
    Hilum().write(path, truth)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def files(
    truth: Truth, large: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[type[Way], Path]]:
    """The payload in every way that can be had here; the others are named."""
    folder = tmp_path_factory.mktemp("ways")
    found: dict[type[Way], Path] = {}
    for kind in WAYS:
        try:
            if kind.package is not None:
                importlib.import_module(kind.package)
        except ImportError:
            print(f"\nMISSING: {kind.package}, so {kind.name} is not measured", end="")
            continue
        path = large if kind is Hilum else folder / f"payload{kind.suffix}"
        if not path.exists():
            kind().write(path, truth)
        found[kind] = path
    yield found
    for path in folder.iterdir():
        path.unlink()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    title: str, works: dict[str, Callable[[], object]], benchmark: Any, *, rounds: int = ROUNDS
) -> dict[str, float]:
    """Time all of them in turn; print medians, and how far the best of the others is."""
    times: dict[str, list[float]] = {name: [] for name in works}
    draw = random.Random(0)
    for number in range(rounds + 1):
        # in another order each round: threads of PyTorch spin on for a while after their work
        for name, work in draw.sample(list(works.items()), len(works)):
            taken = seconds(work)
            if number:  # the first round warms up
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours, *others = medians
    best = min(others, key=medians.__getitem__)
    ratio = medians[best] / medians[ours]
    print(f"\n\n{title}: best of the others is {best}, its time / ours {ratio:.2f}")
    print(f"  {'':<24}{'median ms':>12}{'least ms':>12}{'ours / it':>12}")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        least = min(times[name])
        share = medians[ours] / median
        print(f"  {name:<24}{median * 1e3:>12.3f}{least * 1e3:>12.3f}{share:>12.2f}")
    benchmark.extra_info["milliseconds"] = {k: round(v * 1e3, 3) for k, v in medians.items()}
    benchmark.extra_info["best_other_to_ours"] = round(ratio, 3)
    benchmark.pedantic(works[ours], rounds=3)
    return medians


# ---- reading -----------------------------------------------------------------------------------


def test_open_and_first_row(benchmark: Any, container_path: Path) -> None:
    def first_row() -> None:
        with formats.open_container(container_path) as container:
            container.read_rows(slice(0, 1))

    benchmark(first_row)


@pytest.mark.parametrize("what", ["nothing", "as stored", "float32"])
def test_open_and_first_batch(
    benchmark: Any, files: dict[type[Way], Path], truth: Truth, what: str
) -> None:
    """From nothing to 256 rows and their labels; ours has checked all but the features then."""

    def work(kind: type[Way], path: Path) -> Callable[[], object]:
        way = kind()

        def run() -> None:
            way.open(path)
            if what != "nothing":
                X, y = way.first_batch(np.float32 if what == "float32" else np.float16)
                assert y[0] == truth.labels[0]
                assert X[-1, -1] == truth.features[BATCH - 1, -1]
            way.close()

        return run

    works = {kind.name: work(kind, path) for kind, path in files.items()}
    compare(f"open and first batch: {what}", works, benchmark, rounds=21)


def opened(files: dict[type[Way], Path]) -> list[Way]:
    ways = []
    for kind, path in files.items():
        way = kind()
        way.open(path)
        ways.append(way)
    return ways


def test_scan_into_memory(benchmark: Any, files: dict[type[Way], Path], truth: Truth) -> None:
    """All features, as stored, into memory of the caller's own; loaded ways copy theirs."""
    ways = opened(files)
    for way in ways:
        assert np.array_equal(way.scan(), truth.features), way.name
    compare("scan", {way.name: way.scan for way in ways}, benchmark)


@pytest.mark.parametrize("what", ["as stored", "float32"])
def test_shuffled_batches(
    benchmark: Any, files: dict[type[Way], Path], truth: Truth, what: str
) -> None:
    """One epoch of 256 random rows at a time, from an open file; loading is not counted."""
    ways = opened(files)

    def work(way: Way) -> Callable[[], object]:
        read = way.batch if what == "as stored" else way.batch_float32
        for rows in truth.batches[:3]:
            assert np.array_equal(read(rows), truth.features[rows]), way.name

        def run() -> None:
            for rows in truth.batches:
                read(rows)

        return run

    compare(f"shuffled batches: {what}", {way.name: work(way) for way in ways}, benchmark)


def test_random_rows(benchmark: Any, files: dict[type[Way], Path], truth: Truth) -> None:
    """2000 times one random row as an array, from an open file; loading is not counted."""
    ways = opened(files)

    def work(way: Way) -> Callable[[], object]:
        for row in truth.single[:3]:
            assert np.array_equal(way.row(row), truth.features[row]), way.name
        out = np.empty(DIM, np.float16)

        def run() -> None:
            for row in truth.single:
                out[:] = way.row(row)

        return run

    compare("random single rows", {way.name: work(way) for way in ways}, benchmark)


def test_scan(benchmark: Any, large: Path) -> None:
    """Pairs of scans in turn, so that a noisy machine disturbs both alike."""
    container = formats.open_container(large)
    plain = np.memmap(large, np.float16, "r", offset=4096, shape=(ROWS, DIM))
    out = np.empty((ROWS, DIM), np.float16)

    def copy(source: NDArray[Any]) -> float:
        return seconds(lambda: np.copyto(out, source))

    copy(plain)
    ratios = []
    for _ in range(15):
        mine = copy(container.features)
        ratios.append(copy(plain) / mine)
    benchmark.extra_info["bandwidth_ratio_to_memmap"] = round(statistics.median(ratios), 3)
    benchmark.pedantic(lambda: np.copyto(out, container.features), rounds=5)
    print(f"\n\nscan bandwidth / plain memmap: median {statistics.median(ratios):.3f}")


# ---- verifying and writing ---------------------------------------------------------------------


def test_verify(benchmark: Any, large: Path) -> None:
    """SHA-256, CRC-32C and a look at each value, beside SHA-256 alone of bytes in memory."""
    container = formats.open_container(large)
    data = large.read_bytes()
    medians = compare(
        "verify",
        {"hilum verify": container.verify, "SHA-256 alone": lambda: hashlib.sha256(data).digest()},
        benchmark,
    )
    for name, median in medians.items():
        print(f"  {name:<24}{len(data) / median / 1e9:>12.2f} GB/s")


def test_write(benchmark: Any, large: Path, truth: Truth, tmp_path: Path) -> None:
    """The whole way to a sealed file, beside the same bytes in 4 MiB pieces with one fdatasync."""
    data = large.read_bytes()
    copied = bytearray(len(data))
    target, plain = tmp_path / "w.hilum", tmp_path / "plain"

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
        Hilum().write(target, truth)

    def copy() -> None:
        copied[:] = data

    medians = compare(
        "write",
        {"hilum write": container, "sequential fdatasync": sequential, "copy in memory": copy},
        benchmark,
    )
    for name, median in medians.items():
        print(f"  {name:<24}{len(data) / median / 1e9:>12.2f} GB/s")
    slower = max(medians["sequential fdatasync"], medians["copy in memory"])
    share = slower / medians["hilum write"]
    benchmark.extra_info["share_of_disk_or_memory"] = round(share, 3)
    print(f"  share of the disk's or memory's rate, whichever is lower: {share:.2f}")
    with formats.open_container(target) as written:
        assert np.array_equal(written.features, truth.features)
