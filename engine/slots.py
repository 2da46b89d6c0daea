"""How many engines of one user work at a time on one PC: a queue and slots, held by file locks.

The system frees the locks of a process that dies, however it dies: nothing is ever to be cleaned
up. A process first gets the lock of the queue, then that of a slot, then leaves the queue. Linux
hands a lock to those who wait for it in the order in which they came, and wakes no other.
"""

# pathlib would cost each of twenty waiting hooks a megabyte:
# ruff: noqa: PTH102, PTH103, PTH111, PTH117, PTH118, PTH120

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["EngineSlot", "FileLock", "engine_slot", "is_private", "lock_folder"]

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
_msvcrt: Any = importlib.import_module("msvcrt") if os.name == "nt" else None

# How often the first of the queue looks for a slot where it cannot sleep until there is one: there
# are several, or the system is Windows.
_LOOK_SECONDS = 0.03
# Whoever has his turn before is told nothing: most waits are those for one picture.
_ANNOUNCE_SECONDS = 2.0
# What a system says of a lock that another holds: EWOULDBLOCK on POSIX, the others on Windows.
_HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})

QUEUE = "queue.lock"
_said: set[str] = set()


class FileLock:
    """An exclusive lock on a file; it ends with the process that holds it.

    Parameters
    ----------
    path : str
        The file; made if missing, and never removed: a lock on a removed file guards nothing.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock.

        Parameters
        ----------
        wait : bool
            Sleep until it is free; else return at once.

        Returns
        -------
        bool
            False if another holds it.

        Raises
        ------
        OSError
            The file cannot be made, or its file system knows no locks.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.path, flags, 0o600)
        try:
            locked = _lock(descriptor, wait=wait)
        except BaseException:
            os.close(descriptor)
            raise
        if locked:
            self._descriptor = descriptor
        else:
            os.close(descriptor)
        return locked

    def release(self) -> None:
        """Free the lock, if it is held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    while True:
        try:
            if _fcntl is not None:
                _fcntl.flock(descriptor, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
            else:
                # LK_LOCK would look once a second and give up after ten.
                _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            if not wait:
                return False
        else:
            return True
        time.sleep(_LOOK_SECONDS)


def is_private(folder: str) -> bool:
    """Say whether nobody but this user may write to a folder.

    Parameters
    ----------
    folder : str
        A folder that exists; a link to one is none.

    Returns
    -------
    bool
        Always true for folders on Windows: a profile's are private by inheritance.

    Raises
    ------
    OSError
        It is not there, or may not be looked at.
    """
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        return False
    if os.name == "nt":
        return True
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def lock_folder() -> str | None:
    """Make the folder of this user's locks.

    Returns
    -------
    str or None
        ``$XDG_RUNTIME_DIR/hilum``, else ``hilum/locks`` in the user's cache folder; None where
        neither can be made, or where one of them is open to other users.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR") or ""
    if sys.platform == "win32":
        cache, runtime = os.environ.get("LOCALAPPDATA") or "", ""
    elif sys.platform == "darwin":
        cache = os.path.expanduser("~/Library/Caches")
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for base, names in ((runtime, ("hilum",)), (cache, ("hilum", "locks"))):
        if not os.path.isabs(base):
            continue
        folder = os.path.join(base, *names)
        try:
            if base == cache:
                os.makedirs(os.path.dirname(folder), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            if not is_private(folder):
                return None
            if os.access(folder, os.W_OK):
                return folder
        except (OSError, ValueError):
            continue
    return None


class EngineSlot:
    """The right to work, taken on entry and given back on exit; see `engine_slot`."""

    def __init__(self, limit: int, announce: Callable[[str], None] | None) -> None:
        self._limit = limit
        self._announce = announce
        self._folder = lock_folder() if limit > 0 else None
        self._slot: FileLock | None = None
        if limit > 0 and self._folder is None:
            self._unbound()

    @property
    def held(self) -> bool:
        """Whether a slot is held: not outside of ``with``, and not where there is no bound."""
        return self._slot is not None

    def __enter__(self) -> EngineSlot:
        """Wait for a slot."""
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give it back."""
        self.release()

    def release(self) -> None:
        """Give the slot back, if one is held."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    def wanted(self) -> bool:
        """Say whether another process waits for a slot.

        Returns
        -------
        bool
            Never true where no slot is held.
        """
        if self._folder is None or self._slot is None:
            return False
        probe = FileLock(self._path(QUEUE))
        try:
            free = probe.acquire(wait=False)
        except OSError:
            return False
        probe.release()
        return not free

    def give_way(self) -> bool:
        """Let those who wait work first: for between two pictures of a long run.

        Returns
        -------
        bool
            Whether anybody waited.
        """
        if not self.wanted():
            return False
        self.release()
        self._take()
        return True

    def _take(self) -> None:
        if self._folder is None or self._slot is not None:
            return
        queue = FileLock(self._path(QUEUE))
        slots = [FileLock(self._path(f"slot-{number}.lock")) for number in range(self._limit)]
        clock: threading.Timer | None = None
        try:
            if not queue.acquire(wait=False):
                clock = self._start_clock()
                queue.acquire(wait=True)
            while self._slot is None:
                self._slot = next((slot for slot in slots if slot.acquire(wait=False)), None)
                if self._slot is not None:
                    break
                clock = clock or self._start_clock()
                if self._limit > 1:
                    time.sleep(_LOOK_SECONDS)
                elif slots[0].acquire(wait=True):
                    self._slot = slots[0]
        except OSError:
            # A file system without locks, or one that has become read-only.
            self._folder = None
            self._unbound()
        except BaseException:
            self.release()
            raise
        finally:
            queue.release()
            if clock is not None:
                clock.cancel()

    def _path(self, name: str) -> str:
        return os.path.join(self._folder or "", name)

    def _start_clock(self) -> threading.Timer | None:
        """Say that we wait, unless that ends soon; in a thread, for this one sleeps."""
        if self._announce is None or "waiting" in _said:
            return None
        import threading

        engines = "another engine" if self._limit == 1 else f"{self._limit} engines"
        message = f"{engines} of this user at work: waiting for a turn"
        clock = threading.Timer(_ANNOUNCE_SECONDS, self._say, ("waiting", message))
        clock.daemon = True
        with contextlib.suppress(RuntimeError):  # no thread to be had: then it waits in silence
            clock.start()
        return clock

    def _unbound(self) -> None:
        self._say(
            "unbound",
            "no folder for lock files that is this user's alone (XDG_RUNTIME_DIR or the cache "
            "folder): engines that run at the same time are not counted",
        )

    def _say(self, key: str, message: str) -> None:
        """Tell it once a process."""
        if self._announce is not None and key not in _said:
            _said.add(key)
            self._announce(message)


def engine_slot(limit: int = 1, *, announce: Callable[[str], None] | None = None) -> EngineSlot:
    """Work only while fewer than so many engines of this user work on this PC.

    >>> with engine_slot(1) as slot:
    ...     for path in paths:
    ...         predict(path)
    ...         slot.give_way()

    First come, first served. A process that is killed frees its slot at once. Where no lock can be
    had, nothing is bounded and nothing fails. Not to be nested: a second slot of one process waits
    for the first.

    Parameters
    ----------
    limit : int, default 1
        Engines at work at a time; 0: no bound.
    announce : callable, optional
        Told in one sentence, once a process each, that there is no bound, or that others are at
        work; the latter after two seconds of waiting, from another thread.

    Returns
    -------
    EngineSlot
        A context manager.
    """
    return EngineSlot(limit, announce)
