"""Where the features of chosen rows come from: memory, or the containers, piece by piece.

Features are held in memory, as float32, where they fit into `MEMORY_BYTES`; else every pass reads
them again, in pieces of about `PIECE_BYTES`. Sums over rows are made of parts of `PART_ROWS` rows,
each summed row after row and all added up in their order: what is summed is the same to the last
bit, whether features are held or read, and however many threads share the parts.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import MismatchError
from formats import open_container

if TYPE_CHECKING:
    from formats import Container

__all__ = [
    "MEMORY_BYTES",
    "PART_ROWS",
    "PIECE_BYTES",
    "Crew",
    "Feed",
    "Rows",
    "Spans",
    "Stopped",
    "piece_rows",
    "spans_width",
]

#: Runs of columns, each as (first, behind the last).
Spans = Sequence[tuple[int, int]]

#: Float32 features held in memory at most: one half as they are, the other half standardised, for
#: all fits that run at once. More is read from the containers in every pass.
MEMORY_BYTES = 256 << 20
#: Features read together: they stay in the second cache of a core until they are done with.
PIECE_BYTES = 512 << 10
#: Rows summed in one go. Changing it changes the last bits of heads of larger sets.
PART_ROWS = 4096
# A piece is a multiple of this many rows, the rows that kernels take together.
_STEP = 4
# Rows with gaps are read with the gaps, up to this many times their number, rather than in many
# small pieces.
_SPARSE = 4

_T = TypeVar("_T")


def piece_rows(dim: int) -> int:
    """Return how many rows of so many features are read together."""
    wanted = PIECE_BYTES // (4 * dim)
    return max(wanted - wanted % _STEP, _STEP)


def spans_width(container: Container, spans: Spans | None) -> int:
    """Return how many columns these are; None means all."""
    return container.dim if spans is None else sum(last - first for first, last in spans)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Raised in threads whose work nobody waits for any more; never seen by users."""


class Crew:
    """Threads that share the parts of one sum.

    Parameters
    ----------
    threads : int
        How many; 1 works in the calling thread.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @classmethod
    def of(cls, threads: int | None) -> Crew:
        """Return a crew of so many threads; None takes as many as there are processors."""
        return cls(max(1, threads or os.cpu_count() or 1))

    def alone(self) -> Crew:
        """Return a crew of one that stops with this one, for work that is itself in a thread."""
        one = Crew(1)
        one._stop = self._stop
        return one

    def stop(self) -> None:
        """Make `check` raise in every thread of this crew."""
        self._stop.set()

    def check(self) -> None:
        """Raise `Stopped` if the work is not wanted any more."""
        if self._stop.is_set():
            raise Stopped

    def map(self, work: Callable[[int], _T], n: int) -> Iterator[_T]:
        """Yield the results of ``work(0)`` to ``work(n - 1)`` in this order.

        Few are worked on ahead of the one that is yielded.
        """
        if self.threads == 1 or n < 2:
            for number in range(n):
                self.check()
                yield work(number)
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="hilum-rows")
        pool = self._pool

        def checked(number: int) -> _T:
            self.check()
            return work(number)

        waiting: deque[Future[_T]] = deque()
        for number in range(n):
            if len(waiting) > self.threads + 1:
                yield waiting.popleft().result()
            waiting.append(pool.submit(checked, number))
        while waiting:
            yield waiting.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if self._pool is not None:
            # Parts are short: Ctrl-C waits for those that have begun, some milliseconds.
            self._pool.shutdown(wait=True, cancel_futures=True)


class Rows:
    """Features of chosen rows of one or several containers.

    Containers that are mapped are opened a second time, to be read: pages of a mapping that were
    touched count as memory of the process for as long as there is room.

    Parameters
    ----------
    containers : sequence of Container
        The files.
    spans : sequence of (sequence of (int, int) or None), optional
        For each container the columns that are read, as (first, behind the last), in the order
        they are wanted; None reads all. They must be equally many in every container.
    """

    def __init__(
        self, containers: Sequence[Container], spans: Sequence[Spans | None] | None = None
    ) -> None:
        self._containers: list[Container] = []
        self._spans = tuple(spans) if spans is not None else (None,) * len(containers)
        self._own: list[Container] = []
        try:
            for container in containers:
                if getattr(container, "mode", "mmap") != "read":
                    self._own.append(_open_again(container))
                    container = self._own[-1]  # noqa: PLW2901
                self._containers.append(container)
        except BaseException:
            self.close()
            raise
        self.dim = spans_width(containers[0], self._spans[0]) if len(containers) else 0
        self._rows = np.empty(0, np.int64)
        self._origin = np.empty(0, np.int64)
        #: The features, float32 (n, dim), where they are held; else None.
        self.X: NDArray[np.float32] | None = None

    @classmethod
    def of_matrix(cls, X: NDArray[np.float32]) -> Rows:
        """Return rows that come from no container.

        Parameters
        ----------
        X : float32 (n, d)
            Held as it is.

        Returns
        -------
        Rows
            All of them chosen.
        """
        rows = cls(())
        rows.dim = X.shape[1]
        rows._rows = np.arange(len(X))
        rows._origin = np.zeros(len(X), np.int64)
        rows.X = X
        return rows

    def choose(self, rows: NDArray[np.int64], origin: NDArray[np.int64], crew: Crew) -> None:
        """Say which rows these are, and hold them where they fit.

        Parameters
        ----------
        rows, origin : int64 (n,)
            Row in its container, and number of the container.
        crew : Crew
            Reads them.
        """
        self._rows, self._origin = rows, origin
        self.X = None
        if 2 * self.n_bytes <= MEMORY_BYTES:
            X = np.empty((len(rows), self.dim), np.float32)
            feed = Feed(self, np.arange(len(rows)))

            def fill(part: int) -> None:
                for piece, features in feed.pieces(part):
                    X[piece] = features

            for _ in crew.map(fill, feed.n_parts):
                pass
            self.X = X

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def containers(self) -> Sequence[Container]:
        """The containers as they are read, in the order given."""
        return self._containers

    @property
    def n_bytes(self) -> int:
        """Size of all rows as float32."""
        return 4 * self.dim * len(self._rows)

    def read(self, index: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy rows, several threads at once if they like.

        Parameters
        ----------
        index : int64 (m,)
            Into the chosen rows, in any order.
        out : float32 (m, dim)
            Filled.
        """
        if self.X is not None:
            # The mode only avoids a copy: every index is known to exist.
            np.take(self.X, index, axis=0, out=out, mode="clip")
            return
        rows, origin = self._rows[index], self._origin[index]
        if len(self._containers) == 1:
            self.read_from(0, rows, out)
            return
        for number in np.unique(origin):
            here = np.flatnonzero(origin == number)
            if len(here) == len(rows):
                self.read_from(int(number), rows, out)
                return
            some = np.empty((len(here), self.dim), np.float32)
            self.read_from(int(number), rows[here], some)
            out[here] = some

    def read_from(self, number: int, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy the wanted columns of rows of one container, chosen or not.

        Parameters
        ----------
        number : int
            Of the container.
        rows : int64 (m,)
            Row numbers in it.
        out : float32 (m, dim)
            Filled.
        """
        container, spans = self._containers[number], self._spans[number]
        if spans is None:
            _gather(container, rows, out)
            return
        whole = np.empty((len(rows), container.dim), np.float32)
        _gather(container, rows, whole)
        start = 0
        for first, last in spans:
            out[:, start : start + last - first] = whole[:, first:last]
            start += last - first

    def close(self) -> None:
        """Let go of the files that were opened here."""
        for container in self._own:
            container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _open_again(container: Container) -> Container:
    """Open the file of a container to be read, if it is still the same."""
    again = open_container(container.path, mode="read")
    # The uuid alone is what anybody may write into a file; of an open one a signature may have
    # been checked.
    if again.header_digest != container.header_digest:
        again.close()
        raise MismatchError(
            f"{container.path}: holds another container (uuid {again.uuid[:12]}...) than when it "
            f"was opened (uuid {container.uuid[:12]}...); open it again"
        )
    return again


def _gather(container: Container, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Read rows of one container, those that lie near each other in one go."""
    if not len(rows):
        return
    first, last = int(rows.min()), int(rows.max()) + 1
    if last - first > _SPARSE * len(rows):
        # From the beginning of the file to its end, whatever the order they are wanted in.
        order = np.argsort(rows, kind="stable")
        out[order] = container.read_rows(rows[order])
        return
    span = container.read_rows(slice(first, last))
    np.take(span, rows - first, axis=0, out=out, mode="clip")


class Feed:
    """Rows in a fixed order, as a fit takes them: part by part, each in pieces.

    Parameters
    ----------
    features : Rows
        All rows there are.
    index : int64 (n,)
        Which of them.
    mean, scale : float32 (dim,), optional
        Standardise by these; without, features come as they are.
    """

    def __init__(
        self,
        features: Rows,
        index: NDArray[np.int64],
        mean: NDArray[np.float32] | None = None,
        scale: NDArray[np.float32] | None = None,
    ) -> None:
        self._features = features
        self._index = index
        self._mean, self._scale = mean, scale
        self._held: NDArray[np.float32] | None = None
        self.n_parts = -(-len(index) // PART_ROWS)
        self.dim = features.dim
        self._piece_rows = min(piece_rows(features.dim), PART_ROWS)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def n_bytes(self) -> int:
        """Size of these rows as float32."""
        return 4 * self.dim * len(self._index)

    def hold(self, crew: Crew) -> None:
        """Keep the rows in memory from now on."""
        held = np.empty((len(self._index), self.dim), np.float32)

        def fill(part: int) -> None:
            for piece, X in self.pieces(part):
                held[piece] = X

        for _ in crew.map(fill, self.n_parts):
            pass
        self._held = held

    def pieces(self, part: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield which rows, and their features, which are good until the next are asked for."""
        start = part * PART_ROWS
        end = min(start + PART_ROWS, len(self._index))
        if self._held is not None:
            yield slice(start, end), self._held[start:end]
            return
        n = min(self._piece_rows, end - start)
        room = np.empty((n, self.dim), np.float32)
        # Another one for standardised features: in place, the loop could not be vectorised.
        other = room if self._mean is None else np.empty_like(room)
        for first in range(start, end, self._piece_rows):
            piece = slice(first, min(first + self._piece_rows, end))
            n = piece.stop - piece.start
            yield piece, self._fill(self._index[piece], room[:n], other[:n])

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Copy rows out of the order: float32 (m, dim) of the places (m,)."""
        if self._held is not None:
            return self._held[places]
        room = np.empty((len(places), self.dim), np.float32)
        other = room if self._mean is None else np.empty_like(room)
        return self._fill(self._index[places], room, other)

    def _fill(
        self, index: NDArray[np.int64], room: NDArray[np.float32], other: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Read rows, and return the one of the two arrays in which they are."""
        from engine.kernels.heads import standardise

        self._features.read(index, room)
        if self._mean is None or self._scale is None:
            return room
        standardise(room, self._mean, self._scale, other)
        return other
