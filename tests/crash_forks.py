"""Kills writers by the hundred, each one a fork of this program; prints what was found as JSON.

``moments FOLDER DTYPE KILLS SEED``
    ``kill -9`` at random moments, up to four times in a row.
``calls FOLDER DTYPE before|half|after...``
    Death before, in and after every call to the system, counted in Python.
``traced FOLDER DTYPE CALL...``
    The same for one kind of system call, to be run under strace, which kills at number `DEADLY` of
    each kind: a fork that shall live up to its Nth makes ``DEADLY - N`` idle ones first.

The first process makes no call that touches the files in question: strace counts its calls too.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from crash_writer import FEW, MANY, N_ITEMS, leave, write

import formats.writer

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# more than a writer makes of any kind
DEADLY = 90
KILLED = -int(getattr(signal, "SIGKILL", 9))
NAME = "x.hilum"
# begun where an earlier writer was killed
HALF = 700

# an idle call of each kind, on a file of its own
TRACED: dict[str, Callable[[int], object]] = {
    "openat": lambda fd: os.open(SCRATCH, os.O_RDONLY),
    "close": lambda fd: os.close(os.dup(fd)),
    "flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_SH),
    "ftruncate": lambda fd: os.ftruncate(fd, 0),
    "fallocate": lambda fd: os.posix_fallocate(fd, 0, 1),
    "pwrite64": lambda fd: os.pwrite(fd, b"", 0),
    "pread64": lambda fd: os.pread(fd, 1, 0),
    "preadv": lambda fd: os.preadv(fd, [bytearray(1)], 0),
    "fsync": os.fsync,
    "fdatasync": getattr(os, "fdatasync", os.fsync),
    "rename": lambda fd: Path(SCRATCH).replace(SCRATCH),
    "unlink": lambda fd: Path(f"{SCRATCH}.none").unlink(),
}
SCRATCH = ""

_OS_CALLS = (
    "close", "fdatasync", "fsync", "ftruncate", "open", "posix_fallocate", "pread", "preadv",
    "pwrite", "rename", "replace", "unlink", "write",
)  # fmt: skip
# after another call is before the next one
_CHANGING = {
    "half": ("pwrite",),
    "after": ("ftruncate", "open", "posix_fallocate", "pwrite", "replace", "unlink"),
}
_shared = mmap.mmap(-1, 64)


class WrongError(AssertionError):
    """What must never be."""


def said(index: int) -> int:
    return int(struct.unpack_from("<q", _shared, 8 * index)[0])


def say(index: int, value: int) -> None:
    struct.pack_into("<q", _shared, 8 * index, value)


STARTED, CONFIRMED, STATE = range(3)
NOTHING, UNFINISHED, SEALED = range(3)


def in_fork(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run work in a fork; returns 0, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code > 0:
        raise WrongError(f"a writer ended with exit code {code}, see standard error")
    return code


def confirm() -> Callable[[int], None]:
    say(STARTED, -1)

    def take(n_items: int) -> None:
        if said(STARTED) < 0:
            say(STARTED, n_items)
        say(CONFIRMED, n_items)

    return take


class Case:
    """One folder in which writers die."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder = folder / "at work"
        self.out = self.folder / NAME
        self.dtype = dtype
        kept = folder / "kept"
        self.halves = kept / "halves"

        def prepare() -> None:
            for path in (self.folder, self.halves):
                path.mkdir(parents=True)
            write(kept / "whole", dtype)
            write(kept / "other", dtype, seed=77)
            leave(self.halves / NAME, dtype, stop=HALF)

        in_fork(prepare)
        self.whole = (kept / "whole").read_bytes()
        self.other = (kept / "other").read_bytes()
        if self.whole == self.other:
            raise WrongError("an older container cannot be told from the new one")

    def reset(self, *, older: bool, half: bool) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        if older:
            self.out.write_bytes(self.other)
        if half:
            for path in self.halves.iterdir():
                shutil.copy(path, self.folder)
        say(CONFIRMED, HALF if half else 0)

    def examine(self, *, older: bool) -> None:
        """Look at what a dead writer left: the name stands for the old bytes or for the new."""
        found = self.out.read_bytes() if self.out.exists() else None
        part = self.out.with_name(f"{NAME}.part")
        if found == self.whole:
            state = SEALED
            if part.exists():
                raise WrongError("sealed, and a .part beside it")
        elif found != (self.other if older else None):
            raise WrongError(f"the name stands for {'nothing' if found is None else found[:16]!r}")
        else:
            state = UNFINISHED if part.exists() else NOTHING
        if state != UNFINISHED and said(CONFIRMED) and state != SEALED:
            raise WrongError(f"{said(CONFIRMED)} items were appended, and no .part is there")
        say(STATE, state)

    def go_on(self, edges: Sequence[int] = FEW) -> None:
        write(self.out, self.dtype, edges=edges, resume=True, confirm=confirm())

    def check_start(self, before: int) -> None:
        """Items whose append had returned are not worked on again."""
        if said(STATE) != SEALED and 0 <= said(STARTED) < before:
            raise WrongError(f"{before} items were appended, but the next writer began at its "
                        f"{said(STARTED)}")  # fmt: skip

    def finish(self, edges: Sequence[int] = FEW) -> None:
        """Go on to the end, as the owner would, and compare."""
        before = said(CONFIRMED)
        self.go_on(edges)
        self.check_start(before)
        found = sorted(path.name for path in self.folder.iterdir())
        if found != [NAME]:
            raise WrongError(f"after sealing there are {found}")
        if self.out.read_bytes() != self.whole:
            raise WrongError("the sealed bytes are not those of an uninterrupted writer")


def at_moments(case: Case, n_kills: int, seed: int) -> Counter[str]:
    """Kill at random moments, again and again on the way."""
    rng = random.Random(seed)
    # so that the threads that hash rows and bring them to the disk are at work too
    formats.writer._SYNC_BYTES = 2048
    formats.writer._HASH_BYTES = 256
    counts: Counter[str] = Counter()
    lasts = 60.0
    for _ in range(3):
        in_fork(lambda: case.reset(older=False, half=False))
        started = time.monotonic()
        in_fork(lambda: case.go_on(MANY))
        lasts = min(lasts, time.monotonic() - started)
    while counts["kills"] < n_kills:
        older = rng.random() < 0.5
        case.reset(older=older, half=False)
        say(STATE, NOTHING)
        for _ in range(rng.randint(1, 4)):
            before = said(CONFIRMED)
            say(STARTED, -1)
            code = in_fork(lambda: case.go_on(MANY), rng.uniform(0, lasts))
            case.check_start(before)
            case.examine(older=older)
            counts["kills"] += code == KILLED
            counts["ended before"] += code == 0
            counts[("nothing", "unfinished", "sealed")[said(STATE)]] += code == KILLED
            if said(STATE) == SEALED:
                break
        case.finish(MANY)
        counts["identical"] += 1
    return counts


@contextlib.contextmanager
def dying(number: int, how: str, names: list[str]) -> Iterator[None]:
    """Die before, after or in the middle of one call to the system; note their names."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def patch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            mine = len(names) == number
            if mine and how == "before":
                die()
            if mine and how == "half":
                descriptor, data, offset = arguments
                real(descriptor, memoryview(data)[: len(data) // 2], offset)
                die()
            try:
                return real(*arguments, **options)
            finally:
                if mine and how == "after":
                    die()

        setattr(module, name, call)

    for name in _OS_CALLS:
        if hasattr(os, name):
            patch(os, name)
    patch(fcntl, "flock")
    yield


def at_calls(case: Case, ways: Sequence[str]) -> Counter[str]:
    """Die at every call that Python makes: of a new writer, and of one that goes on."""
    counts: Counter[str] = Counter()
    for half in (False, True):
        case.reset(older=False, half=half)
        listing = case.folder.parent / "calls.json"

        def work(number: int, how: str, listing: Path = listing) -> None:
            names: list[str] = []
            with dying(number, how, names):
                case.go_on()
            listing.write_text(json.dumps(names))

        in_fork(lambda work=work: work(0, ""))
        for number, name in enumerate(json.loads(listing.read_text()), 1):
            for how in ways:
                if name not in _CHANGING.get(how, (name,)):
                    continue
                older = number % 2 == 0
                case.reset(older=older, half=half)
                say(STATE, NOTHING)
                before = said(CONFIRMED)
                code = in_fork(lambda number=number, how=how, work=work: work(number, how))
                if code != KILLED:
                    raise WrongError(f"call {number} ({name}) was not made")
                counts[how] += 1
                case.check_start(before)
                case.examine(older=older)
                in_fork(case.finish)
    return counts


def at_traced_calls(case: Case, name: str) -> Counter[str]:
    """Let strace kill at every call of one kind."""
    counts: Counter[str] = Counter()
    for half in (False, True):
        for number in range(1, DEADLY):
            older = number % 2 == 0
            say(CONFIRMED, 0)
            say(STATE, NOTHING)
            in_fork(lambda half=half, older=older: case.reset(older=older, half=half))

            def work(number: int = number) -> None:
                descriptor = os.open(SCRATCH, os.O_RDWR)
                for _ in range(DEADLY - number - (name == "openat")):
                    with contextlib.suppress(OSError):
                        TRACED[name](descriptor)
                case.go_on()

            before = said(CONFIRMED)
            code = in_fork(work)
            case.check_start(before)
            if code != KILLED:
                break
            counts[name] += 1
            in_fork(lambda older=older: case.examine(older=older))
            in_fork(case.finish)
        else:
            raise WrongError("no end of calls")
    return counts


def main() -> None:
    global SCRATCH  # noqa: PLW0603 - what the table above leads to
    mode, folder, dtype, *more = sys.argv[1:]
    case = Case(Path(folder), dtype)
    SCRATCH = str(Path(folder) / "scratch")
    in_fork(lambda: Path(SCRATCH).touch())
    if mode == "moments":
        counts = at_moments(case, int(more[0]), int(more[1]))
    elif mode == "calls":
        counts = at_calls(case, more)
    else:
        counts = Counter()
        for name in more:
            counts += at_traced_calls(case, name)
    print(json.dumps({"items": N_ITEMS, **counts}))


if __name__ == "__main__":
    main()
