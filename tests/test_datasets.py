"""How training programs take a container: NumPy batches, PyTorch, TensorFlow, scikit-learn."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_helpers import GOLDEN, ROOT, notes_of, run_python, write_small

import formats

DTYPES = ("f32", "f16", "i8")
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


@pytest.fixture(params=DTYPES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    target = tmp_path / "x.hilum"
    write_small(target, n_rows=50, dim=6, dtype=request.param)
    return target


@pytest.fixture
def no_labels() -> Path:
    return GOLDEN / "valid" / "f32_no_columns.hilum"


# ---- as stored ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_read_stored_copies_what_features_shows(path: Path, mode: str) -> None:
    with formats.open_container(path, mode) as c:
        for rows in (
            None,
            slice(3, 40),
            slice(None, None, -3),
            [7, 7, 0, -1],
            [],
            np.ones(50, bool),
        ):
            got = c.read_stored(rows)
            shown = formats.open_container(path).features
            expected = shown[slice(None) if rows is None else np.asarray(rows, int)
                             if isinstance(rows, list) else rows]  # fmt: skip
            assert got.dtype == shown.dtype
            assert np.array_equal(got, expected)
            assert got.flags.c_contiguous and got.flags.writeable and got.base is None
        with pytest.raises(IndexError):
            c.read_stored([50])


def test_halves_become_the_floats_numpy_makes_of_them() -> None:
    from formats.container import _half_to_single

    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for halves in (every, every[np.isfinite(every)]):
        out = np.empty(halves.shape, np.float32)
        _half_to_single(halves, out)
        # bits, not values: -0 and the payload of a NaN as well
        assert np.array_equal(out.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def test_large_halves_are_read_exactly(tmp_path: Path) -> None:
    """More than one piece of conversion, every finite half among them."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    features = np.resize(every[np.isfinite(every)], (3000, 128))
    target = tmp_path / "x.hilum"
    formats.write_container(target, features.astype(np.float32), notes_of(128))
    order = np.random.default_rng(0).permutation(3000)
    for mode in ("mmap", "read"):
        with formats.open_container(target, mode) as c:
            assert np.array_equal(c.read_rows(), features.astype(np.float32))
            assert np.array_equal(c.read_rows(order), features[order].astype(np.float32))


# ---- NumPy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_batches_are_the_rows_in_order(path: Path, mode: str) -> None:
    with formats.open_container(path, mode) as c:
        batches = list(c.iter_batches(["train", "test"], 7, columns=("group", "split")))
        X, y, group, split = (np.concatenate(part) for part in zip(*batches, strict=True))
        rows = c.rows(["train", "test"])
        assert [len(batch[0]) for batch in batches] == [7, 7, 7, len(rows) - 21]
        assert np.array_equal(X, c.read_rows(rows)) and X.dtype == np.float32
        assert np.array_equal(y, c.labels[rows]) and y.dtype == np.uint16
        assert np.array_equal(group, c.groups[rows])
        assert np.array_equal(split, c.splits[rows])
        batches[0][0][:] = 0  # the caller's own
        assert np.array_equal(next(c.iter_batches())[0], c.read_rows())


def test_shuffled_batches_hold_each_row_once(path: Path) -> None:
    with formats.open_container(path) as c:

        def order(**arguments: Any) -> list[int]:
            batches = c.iter_batches(batch_rows=8, columns=("group",), **arguments)
            rows = []
            for X, y, group in batches:
                for x, label, number in zip(X, y, group, strict=True):
                    row = int(np.flatnonzero((c.read_rows() == x).all(axis=1))[0])
                    assert c.labels[row] == label
                    assert c.groups[row] == number
                    rows.append(row)
            return rows

        first = order(shuffle=True, seed=1)
        assert sorted(first) == list(range(50)) != first
        assert order(shuffle=True, seed=1) == first != order(shuffle=True, seed=2)
        assert order(shuffle=True) != order(shuffle=True)
        assert order() == list(range(50))


def test_batches_leave_out_withdrawn_rows() -> None:
    with formats.open_container(GOLDEN / "valid" / "i8_every_column.hilum") as c:
        assert sum(len(X) for X, _ in c.iter_batches(None, 7, views=True)) == 39


def test_views_are_left_out_unless_asked_for() -> None:
    with formats.open_container(GOLDEN / "valid" / "i8_every_column.hilum") as c:
        originals = c.rows(views=False)
        assert c.views is not None and not c.views[originals].any()
        assert 0 < len(originals) < len(c.rows()) == len(c.rows(views=True))
        assert len(c.rows("train", views=False)) < len(c.rows("train"))
        np.testing.assert_array_equal(c.arrays()[0], c.read_rows(originals))
        assert len(c.arrays(views=True)[0]) == len(c.rows())
        assert sum(len(X) for X, _ in c.iter_batches(None, 7)) == len(originals)


@needs_torch
def test_torch_dataset_leaves_views_out() -> None:
    with formats.open_container(GOLDEN / "valid" / "i8_every_column.hilum") as c:
        assert len(c.torch_dataset()) == len(c.rows(views=False))
        all_rows = c.torch_dataset(views=True)
        assert len(all_rows) == len(c.rows())
        assert len(pickle.loads(pickle.dumps(all_rows))) == len(c.rows())


def test_tf_dataset_leaves_views_out() -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    with formats.open_container(GOLDEN / "valid" / "i8_every_column.hilum") as c:
        assert sum(len(X) for X, _ in c.tf_dataset()) == len(c.rows(views=False))
        assert sum(len(X) for X, _ in c.tf_dataset(views=True)) == len(c.rows())


def test_batches_say_what_is_wrong_at_the_call(path: Path, no_labels: Path) -> None:
    with formats.open_container(path) as c:
        with pytest.raises(ValueError, match="batch_rows is 0"):
            c.iter_batches(None, 0)
        with pytest.raises(ValueError, match="expected one of none, train"):
            c.iter_batches("validation")
        with pytest.raises(formats.ContainerError, match="no column 'age', only label, split"):
            c.iter_batches(columns=("age",))
        with pytest.raises(TypeError, match=r'\("group",\)'):
            c.iter_batches(columns="group")
    with formats.open_container(no_labels) as c:
        with pytest.raises(formats.ContainerError, match="no labels"):
            c.iter_batches()
        assert np.array_equal(next(c.iter_batches(labels=False))[0], c.features)


def test_batches_need_the_memory_of_a_batch(tmp_path: Path) -> None:
    target = tmp_path / "x.hilum"
    dim = 512
    formats.write_container(
        target, np.ones((20_000, dim), np.float32), notes_of(dim), columns={"label": [0] * 20_000}
    )
    for mode in ("mmap", "read"):
        with formats.open_container(target, mode) as c:
            tracemalloc.start()
            for X, _ in c.iter_batches(None, 256, shuffle=True, seed=0):
                assert X[0, 0] == 1
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        # two batches at once, a gathered piece, two orders of rows; all of it were 20 (f16) or 41
        assert peak < 3 * 256 * dim * 4 + 2 * 8 * 20_000 + (1 << 20), mode


# ---- scikit-learn ------------------------------------------------------------------------------


def test_arrays_go_into_scikit_learn(tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    target = tmp_path / "x.hilum"
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    features = rng.normal(size=(200, 5)).astype(np.float32)
    features[:, 2] += 6 * labels
    columns = {"label": labels, "split": np.arange(200) % 2 * 2 + 1}
    formats.write_container(target, features, notes_of(5), columns=columns)
    with formats.open_container(target) as c:
        X, y = c.arrays(split="train")
        model = linear_model.LogisticRegression().fit(X, y)
        assert model.score(*c.arrays(split="test")) > 0.95
        # and out of core, a batch at a time
        partial = linear_model.SGDClassifier(loss="log_loss", random_state=0)
        for X, y in c.iter_batches("train", 20, shuffle=True, seed=0):
            partial.partial_fit(X, y, classes=[0, 1])
        assert partial.score(*c.arrays("test")) > 0.95


# ---- PyTorch -----------------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_torch_dataset_is_one(path: Path, mode: str) -> None:
    import torch

    with formats.open_container(path, mode) as c:
        dataset = c.torch_dataset(["train", "valid"], columns=("group",))
        rows = c.rows(["train", "valid"])
        assert isinstance(dataset, torch.utils.data.Dataset)
        assert len(dataset) == len(rows)
        X, y, group = c.read_rows(rows), c.labels[rows], c.groups[rows]
        for i in (0, 5, -1, np.int64(3)):
            x_i, y_i, group_i = dataset[i]
            assert x_i.dtype == torch.float32 and x_i.shape == (6,)
            assert np.array_equal(x_i.numpy(), X[i])
            assert (y_i.dtype, y_i.item(), y_i.shape) == (torch.int64, y[i], ())
            assert (group_i.dtype, group_i.item()) == (torch.int64, group[i])
        mask = np.arange(len(rows)) % 3 == 0
        for index, plain in (
            (slice(2, 9), slice(2, 9)),
            (slice(0, 0), slice(0, 0)),
            ([4, 4, -1], [4, 4, -1]),
            ([], slice(0, 0)),
            (np.array([3, 2], np.uint8), [3, 2]),
            (torch.tensor([1, 5]), [1, 5]),
            (mask, mask),
        ):
            batch = dataset[index]
            for got, expected in zip(batch, (X, y, group), strict=True):
                assert np.array_equal(got.numpy(), expected[plain])
        items = dataset.__getitems__([5, 0, 5])
        assert len(items) == 3
        for i, item in zip([5, 0, 5], items, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(item, dataset[i], strict=True))
        assert len(list(dataset)) == len(rows)
        for wrong in (len(rows), -len(rows) - 1, [len(rows)], [0.5], [[1]], [True]):
            with pytest.raises(IndexError):
                dataset[wrong]
        with pytest.raises(TypeError):
            dataset[1.5]


@needs_torch
def test_torch_dataset_as_stored(path: Path) -> None:
    with formats.open_container(path) as c:
        stored = c.torch_dataset(dtype="stored")
        x, _ = stored[7]
        assert str(x.dtype) == f"torch.{c.features.dtype.name}"
        assert np.array_equal(x.numpy(), c.features[7])
        X, _ = stored[[9, 3, 4]]
        assert np.array_equal(X.numpy(), c.features[[9, 3, 4]])
        with pytest.raises(ValueError, match="dtype is 'f16'"):
            c.torch_dataset(dtype="f16")


@needs_torch
def test_torch_tensors_are_the_mapping_where_they_can_be(tmp_path: Path) -> None:
    # warnings are errors in these tests: PyTorch's about memory that is not writable, too
    target = tmp_path / "x.hilum"
    for stored, dtype, shared in (("f32", "float32", True), ("f16", "stored", True),
                                  ("i8", "stored", True), ("f16", "float32", False)):  # fmt: skip
        write_small(target, n_rows=50, dim=6, dtype=stored)
        c = formats.open_container(target)
        dataset = c.torch_dataset(dtype=dtype)
        start = c.features.ctypes.data
        mapping = range(start, start + c.features.nbytes)
        assert (dataset[3][0].data_ptr() in mapping) == shared
        assert (dataset[4:40][0].data_ptr() in mapping) == shared
        assert dataset[[4, 6]][0].data_ptr() not in mapping
        assert dataset.__getitems__([4, 6])[0][0].data_ptr() not in mapping
        # what a transform gets may be changed in place; the file stays as it is
        before = target.read_bytes()
        changed = c.torch_dataset(dtype=dtype, transform=lambda x: x.zero_())
        for x in (changed[3][0], changed[4:40][0], changed.__getitems__([3, 4])[1][0]):
            assert not x.any()
        assert np.abs(c.read_rows([3])).max() > 0
        assert target.read_bytes() == before


@needs_torch
def test_torch_tensors_outlive_the_container(tmp_path: Path) -> None:
    import gc

    import torch

    target = tmp_path / "x.hilum"
    features = write_small(target, n_rows=50, dim=6, dtype="f32")
    c = formats.open_container(target)
    x = c.torch_dataset()[40][0]
    c.close()
    del c
    gc.collect()
    assert torch.equal(x, torch.from_numpy(features[40]))


@needs_torch
def test_torch_multi_label_and_no_labels(no_labels: Path) -> None:
    import torch

    with formats.open_container(GOLDEN / "valid" / "i8_multi_label.hilum") as c:
        y = c.torch_dataset()[2][1]
        assert (y.dtype, y.shape) == (torch.int8, (2,))
        assert np.array_equal(y.numpy(), c.labels[2])
    with formats.open_container(no_labels) as c:
        with pytest.raises(formats.ContainerError, match="no labels"):
            c.torch_dataset()
        (x,) = c.torch_dataset(labels=False)[0]
        assert np.array_equal(x.numpy(), c.features[0])


def load_with_workers(path: Path, method: str) -> None:
    """In a process of its own: workers are forked from one that has nothing else in it."""
    import torch

    with formats.open_container(path) as c:
        dataset = c.torch_dataset("train", columns=("group",))
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context=method
        )
        X, _, group = (torch.cat(part) for part in zip(*loader, strict=True))
        rows = c.rows("train")
        assert sorted(group.tolist()) == sorted(c.groups[rows].tolist())
        own, _, own_group = dataset[:]
        assert sorted(map(tuple, X.tolist())) == sorted(map(tuple, own.tolist()))
        assert group.tolist() != own_group.tolist(), "not shuffled"


@needs_torch
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_torch_workers_read_the_file_themselves(tmp_path: Path, method: str) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    target = tmp_path / "x.hilum"
    write_small(target, n_rows=200, dim=6, dtype="f16")
    result = subprocess.run(
        [sys.executable, __file__, str(target), method],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    assert (result.returncode, result.stdout) == (0, "read\n"), result.stderr


@needs_torch
def test_torch_whole_batches_by_a_batch_sampler(tmp_path: Path) -> None:
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    target = tmp_path / "x.hilum"
    write_small(target, n_rows=50, dim=6)
    with formats.open_container(target) as c:
        dataset = c.torch_dataset(columns=("group",))
        sampler = BatchSampler(RandomSampler(dataset), 16, drop_last=False)
        seen = []
        for X, _, group in DataLoader(dataset, sampler=sampler, batch_size=None):
            assert len(X) == len(group) <= 16
            seen += group.tolist()
        assert sorted(seen) == sorted(c.groups.tolist())


@needs_torch
def test_torch_worker_refuses_another_data_set(tmp_path: Path) -> None:
    target = tmp_path / "x.hilum"
    write_small(target)
    data = pickle.dumps(formats.open_container(target).torch_dataset())
    assert len(pickle.loads(data)) == 20
    write_small(target)
    with pytest.raises(formats.ContainerError, match="was replaced"):
        pickle.loads(data)


# ---- TensorFlow --------------------------------------------------------------------------------


def test_tf_dataset(path: Path) -> None:
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    with formats.open_container(path) as c:
        dataset = c.tf_dataset("train", batch_size=5, columns=("group",))
        assert isinstance(dataset, tf.data.Dataset)
        assert [tuple(spec.shape) for spec in dataset.element_spec] == [(None, 6), (None,), (None,)]
        assert [spec.dtype for spec in dataset.element_spec] == [tf.float32, tf.int64, tf.int64]
        rows = c.rows("train")
        for _ in range(2):
            batches = list(dataset.as_numpy_iterator())
            X, y, group = (np.concatenate(part) for part in zip(*batches, strict=True))
            assert np.array_equal(X, c.read_rows(rows))
            assert np.array_equal(y, c.labels[rows])
            assert np.array_equal(group, c.groups[rows])

        def epochs(seed: int | None) -> list[list[int]]:
            shuffled = c.tf_dataset(None, 16, shuffle=True, seed=seed, columns=("group",))
            return [
                np.concatenate([group for *_, group in shuffled.as_numpy_iterator()]).tolist()
                for _ in range(2)
            ]

        first, second = epochs(3)
        assert sorted(first) == sorted(second) == sorted(c.groups.tolist())
        assert first != second
        assert epochs(3) == [first, second]
        assert epochs(None) != epochs(None)


def test_tf_dataset_says_what_is_wrong_before_tensorflow_is_needed(no_labels: Path) -> None:
    with formats.open_container(no_labels) as c:
        with pytest.raises(formats.ContainerError, match="no labels"):
            c.tf_dataset()
        with pytest.raises(ValueError, match="batch_size is 0"):
            c.tf_dataset(batch_size=0)


# ---- without the packages ----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "package"), [("torch_dataset", "torch"),
                                                 ("tf_dataset", "tensorflow")])  # fmt: skip
def test_missing_package_is_named(tmp_path: Path, method: str, package: str) -> None:
    target = tmp_path / "x.hilum"
    write_small(target)
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "import formats\n"
        "c = formats.open_container(sys.argv[1])\n"
        f"try: c.{method}()\n"
        "except ImportError as exc: print(exc.name, '|', exc)\n"
        "assert len(next(c.iter_batches())[0]) == 20\n"
    )
    result = run_python(code, str(target))
    assert result.stdout.startswith(f"{package} | {method} needs {package}"), result.stderr
    assert f"pip install {package}" in result.stdout


def test_formats_loads_neither_package(tmp_path: Path) -> None:
    target = tmp_path / "x.hilum"
    write_small(target)
    code = (
        "import sys\n"
        "import formats\n"
        "next(formats.open_container(sys.argv[1]).iter_batches())\n"
        "print([m for m in ('torch', 'tensorflow') if m in sys.modules])\n"
    )
    assert run_python(code, str(target)).stdout == "[]\n"


if __name__ == "__main__":
    load_with_workers(Path(sys.argv[1]), sys.argv[2])
    print("read")
