"""How training programs take a container: batches in NumPy, a PyTorch Dataset, a tf.data Dataset.

`Container.iter_batches`, `Container.torch_dataset` and `Container.tf_dataset` are the doors;
PyTorch and TensorFlow are imported when the last two are called, and not before.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from formats.errors import ContainerError

if TYPE_CHECKING:
    from formats.container import Container

__all__ = ["iter_batches", "tf_dataset", "torch_dataset"]


def iter_batches(
    container: Container,
    split: str | Sequence[str] | None = None,
    batch_rows: int = 256,
    *,
    shuffle: bool = False,
    seed: int | Sequence[int] | None = None,
    columns: Sequence[str] = (),
    labels: bool = True,
    views: bool = False,
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Go through the rows once in batches; see `Container.iter_batches`."""
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}, expected at least 1")
    rows = container.rows(split, views=views)
    chosen = _choose_columns(container, columns, labels)
    if shuffle:
        rows = np.random.default_rng(seed).permutation(rows)
    # apart, so that mistakes above are raised at the call and not at the first batch
    return _batches(container, rows, batch_rows, chosen)


def _batches(
    container: Container, rows: NDArray[np.int64], batch_rows: int, columns: list[NDArray[Any]]
) -> Iterator[tuple[NDArray[Any], ...]]:
    for start in range(0, len(rows), batch_rows):
        part = rows[start : start + batch_rows]
        yield (container.read_rows(part), *(column[part] for column in columns))


def _choose_columns(container: Container, names: Sequence[str], labels: bool) -> list[NDArray[Any]]:
    if isinstance(names, str):
        raise TypeError(f'columns is {names!r}, expected a sequence of names: ("{names}",)')
    chosen = [container._require_labels()] if labels else []
    for name in names:
        if name not in container.columns:
            raise ContainerError(
                container.path,
                f"has no column {name!r}, only {', '.join(container.columns) or 'none at all'}. "
                "Ask for one of these, or extract again with it.",
            )
        chosen.append(container.columns[name])
    return chosen


def _signed(column: NDArray[Any]) -> NDArray[Any]:
    """uint16 and uint32 as int64: loss functions take class indices as int64 only."""
    return column.astype(np.int64) if column.dtype.kind == "u" and column.itemsize > 1 else column


# ---- PyTorch -----------------------------------------------------------------------------------


def torch_dataset(
    container: Container,
    split: str | Sequence[str] | None = None,
    *,
    dtype: Literal["float32", "stored"] = "float32",
    columns: Sequence[str] = (),
    labels: bool = True,
    views: bool = False,
    transform: Callable[[Any], Any] | None = None,
    _uuid: str | None = None,
) -> Any:
    """Make a map-style PyTorch Dataset; see `Container.torch_dataset`."""
    if dtype not in ("float32", "stored"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'stored'")
    if _uuid is not None and container.uuid != _uuid:
        raise ContainerError(
            container.path,
            f"the file was replaced: it holds the data set {container.uuid}, and this worker was "
            f"to read {_uuid}. Open it again.",
        )
    return _torch_class()(container, split, dtype, tuple(columns), labels, views, transform)


@functools.cache
def _torch_class() -> Any:
    torch = _import("torch", "pip install torch", "torch_dataset")

    base: Any = torch.utils.data.Dataset

    class TorchDataset(base):  # type: ignore[misc]
        """Rows of a container as tensors; made by `Container.torch_dataset`."""

        def __init__(
            self,
            container: Container,
            split: str | Sequence[str] | None,
            dtype: Literal["float32", "stored"],
            columns: tuple[str, ...],
            labels: bool,
            views: bool,
            transform: Callable[[Any], Any] | None,
        ) -> None:
            self.container = container
            self._made_of = (split, dtype, columns, labels, views, transform)
            self._rows = container.rows(split, views=views)
            self._columns = [
                torch.from_numpy(_signed(column[self._rows]))
                for column in _choose_columns(container, columns, labels)
            ]
            self._stored = dtype == "stored" or container.dtype == "f32"
            self._transform = transform
            self._mapped = None
            memory = container._features_memory() if self._stored else None
            if memory is not None:
                element = getattr(torch, container.features.dtype.name)
                flat = torch.frombuffer(memory, dtype=element)
                self._mapped = flat.reshape(container.n_rows, container.dim)

        def __len__(self) -> int:
            return len(self._rows)

        def __getitem__(self, index: Any) -> tuple[Any, ...]:
            """Return ``(x, y, *columns)`` of one row, or of several (slice, array) as one batch."""
            if isinstance(index, slice):
                return self._batch(np.arange(*index.indices(len(self))))
            if np.ndim(index):
                given = np.asarray(index)
                if given.dtype == np.bool_ and len(given) == len(self):
                    return self._batch(np.flatnonzero(given))
                if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
                    raise IndexError(f"{given.dtype} {given.shape}, expected whole numbers (n,)")
                return self._batch(given.astype(np.int64))
            i = operator.index(index)
            if not -len(self) <= i < len(self):
                # this also ends a loop over the Dataset itself
                raise IndexError(f"row {i} does not exist, expected less than {len(self)}")
            i %= len(self)
            x = self._features(self._rows[i : i + 1])[0]
            return (self._transformed(x), *(column[i] for column in self._columns))

        def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
            """Return what ``[self[i] for i in indices]`` does, in one pass over the features."""
            index = np.asarray(indices, np.int64)
            X = self._features(self._rows[index])
            rest = (column[torch.from_numpy(index)] for column in self._columns)
            return list(zip(map(self._transformed, X), *rest, strict=True))

        def _batch(self, index: NDArray[np.int64]) -> tuple[Any, ...]:
            X = self._transformed(self._features(self._rows[index]))
            taken = torch.from_numpy(index)
            return (X, *(column[taken] for column in self._columns))

        def _features(self, rows: NDArray[np.int64]) -> Any:
            neighbours = len(rows) == 1 or (len(rows) > 1 and bool((np.diff(rows) == 1).all()))
            if self._mapped is not None and neighbours:
                X = self._mapped[int(rows[0]) : int(rows[-1]) + 1]
                # a transform may work in place, and the mapping cannot be written
                return X if self._transform is None else X.clone()
            read = self.container.read_stored if self._stored else self.container.read_rows
            return torch.from_numpy(read(rows))

        def _transformed(self, x: Any) -> Any:
            return x if self._transform is None else self._transform(x)

        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            """Pickle as path and arguments: a worker process opens the file itself."""
            return _rebuild, (self.container, *self._made_of, self.container.uuid)

    return TorchDataset


def _rebuild(
    container: Container,
    split: str | Sequence[str] | None,
    dtype: Literal["float32", "stored"],
    columns: tuple[str, ...],
    labels: bool,
    views: bool,
    transform: Callable[[Any], Any] | None,
    uuid: str,
) -> Any:
    return torch_dataset(
        container,
        split,
        dtype=dtype,
        columns=columns,
        labels=labels,
        views=views,
        transform=transform,
        _uuid=uuid,
    )


# ---- TensorFlow --------------------------------------------------------------------------------


def tf_dataset(
    container: Container,
    split: str | Sequence[str] | None = None,
    batch_size: int = 256,
    *,
    shuffle: bool = False,
    seed: int | None = None,
    columns: Sequence[str] = (),
    labels: bool = True,
    views: bool = False,
) -> Any:
    """Make a ``tf.data.Dataset`` of batches; see `Container.tf_dataset`."""
    # both before TensorFlow is imported, which takes seconds
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    chosen = _choose_columns(container, columns, labels)
    container.rows(split)
    tf = _import("tensorflow", "pip install tensorflow", "tf_dataset")
    signature = tuple(
        tf.TensorSpec((None, *shape), dtype)
        for shape, dtype in (
            ((container.dim,), np.float32),
            *((column.shape[1:], _signed(column[:0]).dtype) for column in chosen),
        )
    )
    epoch = -1

    def batches() -> Iterator[tuple[NDArray[Any], ...]]:
        nonlocal epoch
        epoch += 1
        for X, *rest in iter_batches(
            container,
            split,
            batch_size,
            shuffle=shuffle,
            # a new order each epoch, and the same ones again for the same seed
            seed=None if seed is None else (seed, epoch),
            columns=columns,
            labels=labels,
            views=views,
        ):
            yield (X, *map(_signed, rest))

    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def _import(package: str, command: str, what: str) -> Any:
    try:
        return import_module(package)
    except ImportError as exc:
        raise ImportError(
            f"{what} needs {package}, which is not installed ({exc}). Run: {command}. "
            "iter_batches needs NumPy alone.",
            name=package,
        ) from exc
