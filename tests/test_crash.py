"""Whenever a writer dies: the whole container stands at its name, or the rest can be resumed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import crash_writer
import numpy as np
import pytest
from crash_forks import DEADLY, HALF, NAME, TRACED
from crash_writer import DTYPES, MANY, N_ITEMS, N_ROWS, NOTES, add_items, begin, leave, write
from PIL import Image

import formats
from engine import extract
from formats._journal import Journal

TESTS = Path(__file__).resolve().parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join((str(Path(formats.__file__).parents[1]), str(TESTS))),
    # threads of a library would make forks of themselves dangerous
    "OPENBLAS_NUM_THREADS": "1",
}
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals, limits and permissions")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The container of each dtype, as an uninterrupted writer without a job writes it."""
    folder = tmp_path_factory.mktemp("wholes")
    for dtype in DTYPES:
        write(folder / dtype, dtype, job=None)
    return {dtype: (folder / dtype).read_bytes() for dtype in DTYPES}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each dtype a folder with what a writer left behind half of the items."""
    folders = {}
    for dtype in DTYPES:
        folders[dtype] = tmp_path_factory.mktemp(dtype)
        leave(folders[dtype] / NAME, dtype, stop=HALF)
    return folders


def copy_of(folder: Path, to: Path) -> Path:
    """Copy an unfinished file; return the name it shall have."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to / NAME


def items_kept(out: Path, dtype: str = "f16") -> int:
    with begin(out, dtype, resume=True) as writer:
        return writer.n_items


def finish_alike(out: Path, dtype: str, whole: bytes) -> None:
    write(out, dtype, resume=True)
    assert out.read_bytes() == whole
    assert names_in(out.parent) == [out.name]


# ---- death -------------------------------------------------------------------------------------


def run_forks(*command: str) -> dict[str, int]:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts: dict[str, int] = json.loads(result.stdout)
    return counts


FORKS = (sys.executable, str(TESTS / "crash_forks.py"))


@posix
@pytest.mark.parametrize("dtype", DTYPES)
def test_kill_at_random_moments(tmp_path: Path, dtype: str) -> None:
    counts = run_forks(*FORKS, "moments", str(tmp_path), dtype, "70", "1")
    assert counts["kills"] >= 70
    # moments were random, and still most of them met the rows
    assert counts["unfinished"] >= 20
    assert counts["identical"] >= 15


@posix
@pytest.mark.parametrize(
    ("dtype", "ways"),
    # after a call is before the next one, unless something happens between them
    [("f16", ("before", "half", "after")), ("i8", ("before", "half"))],
)
def test_death_at_every_call(tmp_path: Path, dtype: str, ways: tuple[str, ...]) -> None:
    counts = run_forks(*FORKS, "calls", str(tmp_path), dtype, *ways)
    for how, least in (("before", 80), ("half", 30), ("after", 50)):
        assert (counts.get(how, 0) > least) == (how in ways), counts


def can_trace() -> str | None:
    """Why strace cannot be used here; None if it can."""
    strace = shutil.which("strace")
    if sys.platform != "linux" or strace is None:
        return "needs strace (Linux; Debian package strace)"
    result = subprocess.run(
        [strace, "-qq", "-o", os.devnull, "-e", "inject=getppid:signal=KILL:when=1",
         sys.executable, "-c", "import os; os.getppid()"], capture_output=True, check=False,
    )  # fmt: skip
    return None if result.returncode == -9 else "strace may not trace or inject here"


@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_death_at_every_system_call(tmp_path: Path, dtype: str) -> None:
    reason = can_trace()
    if reason is not None:
        pytest.skip(f"{reason}; test_death_at_every_call stands in")
    folder = tmp_path / "at work"
    files = [folder / f"{NAME}{suffix}" for suffix in ("", ".part", ".part.journal", ".part.rows")]
    watched = [folder, tmp_path / "scratch", tmp_path / "scratch.none", *files]
    calls = ",".join(f"?{name}" for name in (*TRACED, "renameat", "renameat2", "unlinkat"))
    counts = run_forks(
        "strace", "-f", "-qq", "-o", os.devnull, *(f"--trace-path={path}" for path in watched),
        "-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={DEADLY}",
        *FORKS, "traced", str(tmp_path), dtype, *TRACED,
    )  # fmt: skip
    assert counts["pwrite64"] > 30
    for name, least in (("openat", 8), ("ftruncate", 4), ("fsync", 5), ("rename", 2)):
        assert counts[name] >= least, (name, counts)
    assert sum(counts.values()) - counts["items"] > 80


@posix
def test_the_driver_as_a_program(tmp_path: Path, wholes: dict[str, bytes]) -> None:
    """The same from the first instruction of a program on, imports and all."""
    out = tmp_path / NAME
    command = [sys.executable, str(TESTS / "crash_writer.py"), str(out), "f32", "--resume"]
    rng = random.Random(2)
    for _ in range(5):
        with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
            time.sleep(rng.uniform(0.1, 0.5))
            process.kill()
            _, errors = process.communicate()
        assert process.returncode in (0, -9), errors
        assert not out.exists() or out.read_bytes() == wholes["f32"]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=60)
    assert out.read_bytes() == wholes["f32"]


# ---- torn writes -------------------------------------------------------------------------------


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def zero_tail(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at].ljust(len(data), b"\0")


def zero_page(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(0, max(1, len(data)), 4096)
    return data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :]


def scramble(data: bytes, rng: random.Random) -> bytes:
    # what stands in the first bytes is no container, and is refused: a test of its own
    at = rng.randrange(8, max(9, len(data)))
    n = min(len(data) - at, rng.randrange(1, 200))
    return data[:at] + rng.randbytes(max(0, n)) + data[at + max(0, n) :]


def longer(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([rng.randbytes(200), bytes(5000), rng.randbytes(100_000)])


def gone(_data: bytes, _rng: random.Random) -> None:
    return None


@pytest.mark.parametrize("dtype", DTYPES)
def test_torn_writes(
    tmp_path: Path, unfinished: dict[str, Path], wholes: dict[str, bytes], dtype: str
) -> None:
    rng = random.Random(3)
    damages: list[Callable[[bytes, random.Random], bytes | None]]
    damages = [cut, zero_tail, zero_page, scramble, longer, gone]
    kept = []
    for trial in range(90):
        out = copy_of(unfinished[dtype], tmp_path / str(trial))
        files = sorted(out.parent.iterdir())
        said = []
        for path in rng.sample(files, rng.randint(1, len(files))):
            damage = rng.choice(damages)
            said.append((path.name, damage.__name__))
            data = damage(path.read_bytes(), rng)
            path.unlink()
            if data is not None:
                path.write_bytes(data)
        kept.append(items_kept(copy_of(out.parent, tmp_path / "look"), dtype))
        shutil.rmtree(tmp_path / "look")
        write(out, dtype, resume=True)
        assert out.read_bytes() == wholes[dtype], said
        assert names_in(out.parent) == [NAME], said
        shutil.rmtree(out.parent)
    assert min(kept) == 0
    assert max(kept) == HALF
    assert any(0 < n < HALF for n in kept)


def test_a_journal_cut_anywhere(tmp_path: Path, wholes: dict[str, bytes]) -> None:
    """What is taken over is what the whole records say, neither more nor less."""
    start = tmp_path / "start"
    start.mkdir()
    ends: list[tuple[int, int]] = []
    journal = start / f"{NAME}.part.journal"
    with begin(start / NAME) as writer:
        ends.append((journal.stat().st_size, 0))
        for stop in (1, 7, 8, 20):
            add_items(writer, stop)
            ends.append((journal.stat().st_size, stop))
    whole = journal.read_bytes()
    assert ends[-1][0] == len(whole)
    for length in range(len(whole) + 1):
        expected = max((stop for end, stop in ends if end <= length), default=0)
        cut_one = tmp_path / "journal"
        cut_one.write_bytes(whole[:length])
        found = Journal.open(cut_one)
        assert (found is None) == (length < ends[0][0])
        if found is not None:
            assert sum(record.n_items for record in found.records()) == expected, length
            found.close()
        if length % 37 and not any(abs(length - end) < 2 for end, _ in ends):
            continue
        out = copy_of(start, tmp_path / "cut")
        (out.parent / journal.name).write_bytes(whole[:length])
        assert items_kept(copy_of(out.parent, tmp_path / "look")) == expected
        finish_alike(out, "f16", wholes["f16"])
        shutil.rmtree(out.parent)
        shutil.rmtree(tmp_path / "look")


def test_a_part_cut_anywhere(tmp_path: Path, wholes: dict[str, bytes]) -> None:
    start = tmp_path / "start"
    start.mkdir()
    leave(start / NAME, stop=20, expected_rows=None)
    whole = (start / f"{NAME}.part").read_bytes()
    kept = set()
    for length in (*range(0, 4096, 256), *range(4090, len(whole) + 1)):
        out = copy_of(start, tmp_path / "cut")
        (out.parent / f"{NAME}.part").write_bytes(whole[:length])
        kept.add(items_kept(out))
        finish_alike(out, "f16", wholes["f16"])
        shutil.rmtree(out.parent)
    # the record behind item 7 has no row, which cannot be torn
    assert kept == {0, 1, 8, 9, 20}


@pytest.mark.parametrize("dtype", DTYPES)
def test_died_between_the_header_and_the_name(
    tmp_path: Path, wholes: dict[str, bytes], dtype: str
) -> None:
    out = tmp_path / NAME
    leave(out, dtype)
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(wholes[dtype])
    formats.open_container(part).close()
    with begin(out, dtype, resume=True) as writer:
        assert writer.n_items == N_ITEMS
        with pytest.raises(formats.NotAContainer, match="never finished"):
            formats.open_container(part)
    finish_alike(out, dtype, wholes[dtype])


class DiedError(Exception):
    """Stands for the end of the program."""


def die_after_the_rename(
    out: Path, dtype: str, monkeypatch: pytest.MonkeyPatch, n_removed: int = 0
) -> None:
    """Write the container and die before all names of the unfinished file are removed."""
    removed: list[Path] = []
    real = Path.unlink

    def die(path: Path, missing_ok: bool = False) -> None:
        if out.exists():
            if len(removed) == n_removed:
                raise DiedError
            removed.append(path)
        real(path, missing_ok)

    with pytest.raises(DiedError), monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        write(out, dtype)


@pytest.mark.parametrize(("dtype", "n_removed"), [("f16", 0), ("i8", 0), ("i8", 1)])
def test_died_after_the_rename(
    tmp_path: Path,
    wholes: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    n_removed: int,
) -> None:
    """What is left beside the container must neither stop anybody nor cost the work once more."""
    out = tmp_path / "a" / NAME
    out.parent.mkdir()
    die_after_the_rename(out, dtype, monkeypatch, n_removed)
    assert out.read_bytes() == wholes[dtype]
    assert f"{NAME}.part.journal" in names_in(out.parent)
    other = copy_of(out.parent, tmp_path / "b")
    with begin(out, dtype, resume=True) as writer:
        assert writer.finished
        assert (writer.n_items, writer.n_rows) == (N_ITEMS, N_ROWS)
        assert writer.job == crash_writer.JOB
        with pytest.raises(formats.ContainerError, match="the writer is sealed"):
            writer.seal(NOTES)
    assert out.read_bytes() == wholes[dtype]
    assert names_in(out.parent) == [NAME]

    other.write_bytes(wholes["f32"])  # another program's
    assert items_kept(other, dtype) == 0
    write(other, dtype)
    assert other.read_bytes() == wholes[dtype]
    assert names_in(other.parent) == [NAME]


def test_finished_with_other_options(
    tmp_path: Path, wholes: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there is not what was asked for."""
    out = tmp_path / NAME
    die_after_the_rename(out, "f16", monkeypatch)
    with begin(out, "f32", resume=True) as writer:
        assert not writer.finished
    finish_alike(out, "f32", wholes["f32"])


def test_journal_of_another_version(
    tmp_path: Path, unfinished: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of(unfinished["f16"], tmp_path / "x")
    for resume in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr("formats._journal.Journal.VERSION", 2)
            with pytest.raises(formats.ContainerError, match="another version of Hilum"):
                begin(out, resume=resume)
    assert items_kept(out) == HALF


def test_left_over_journal_is_no_obstacle(tmp_path: Path, wholes: dict[str, bytes]) -> None:
    out = tmp_path / NAME
    leave(out, seed=9)
    (tmp_path / f"{NAME}.part").unlink()  # as the message of a refusal advises
    write(out)
    assert out.read_bytes() == wholes["f16"]
    assert names_in(tmp_path) == [NAME]


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" + bytes(5000), b"\0\1" * 4000])
def test_what_is_no_part_is_left_alone(
    tmp_path: Path, unfinished: dict[str, Path], data: bytes
) -> None:
    out = copy_of(unfinished["f16"], tmp_path / "x")
    part = out.with_name(f"{NAME}.part")
    part.write_bytes(data)
    before = names_in(out.parent)
    for resume in (False, True):
        with pytest.raises(formats.ContainerError, match=r"is no container.*was left as it is"):
            begin(out, resume=resume)
    assert part.read_bytes() == data
    assert names_in(out.parent) == before


def test_first_page_lost(
    tmp_path: Path, unfinished: dict[str, Path], wholes: dict[str, bytes]
) -> None:
    """The size of a reserved file survives a power cut, its first page need not."""
    out = copy_of(unfinished["f16"], tmp_path / "x")
    part = out.with_name(f"{NAME}.part")
    part.write_bytes(bytes(4096) + part.read_bytes()[4096:])
    assert items_kept(out) == HALF
    part.write_bytes(bytes(part.stat().st_size))
    finish_alike(out, "f16", wholes["f16"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_drawn_is_kept(tmp_path: Path, dtype: str) -> None:
    """Without a seed, uuid and order of the groups come from the system, once."""
    first = tmp_path / "a" / NAME
    first.parent.mkdir()
    leave(first, dtype, stop=HALF, seed=None)
    out = copy_of(first.parent, tmp_path / "b")
    write(first, dtype, resume=True, seed=None)
    with begin(out, dtype, resume=True, seed=None) as writer:
        add_items(writer, 1000)
    write(out, dtype, resume=True, seed=None)
    assert out.read_bytes() == first.read_bytes()
    write(tmp_path / NAME, dtype, seed=None)
    assert out.read_bytes() != (tmp_path / NAME).read_bytes()


def test_journal_of_another_container(
    tmp_path: Path, unfinished: dict[str, Path], wholes: dict[str, bytes]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with begin(other / NAME, job={"of": "something else"}) as writer:
        writer.append(np.ones((50, crash_writer.DIM)), label=np.zeros(50, int))
    out = copy_of(unfinished["f16"], tmp_path / "x")
    shutil.copy(other / f"{NAME}.part.journal", out.parent)
    with begin(out, resume=True) as writer:
        assert writer.n_rows == 0
        assert not writer.resumed or writer.job == {"of": "something else"}

    for dtype, suffix in (("f32", "dtype f32"), ("i8", "dtype i8")):
        out = copy_of(unfinished["f16"], tmp_path / dtype)
        shutil.copy(unfinished[dtype] / f"{NAME}.part.journal", out.parent)
        before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
        with pytest.raises(formats.ContainerError, match=f"was begun with {suffix}, and now"):
            begin(out, resume=True)
        assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
        shutil.copy(unfinished["f16"] / f"{NAME}.part.journal", out.parent)
        finish_alike(out, "f16", wholes["f16"])


# ---- rows that must not be lost ----------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["open", "records"])
def test_an_error_while_looking_costs_no_rows(
    tmp_path: Path,
    unfinished: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    resume: bool,
    failure: BaseException,
    where: str,
) -> None:
    out = copy_of(unfinished["i8"], tmp_path / "x")

    def fail(*_: object) -> None:
        raise failure

    expected = formats.ContainerError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), monkeypatch.context() as patch:
        patch.setattr(f"formats._journal.Journal.{where}", fail)
        begin(out, "i8", resume=resume)
    assert items_kept(out, "i8") == HALF


@pytest.mark.parametrize("method", ["append", "seal"])
def test_keeps_says_so_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with begin(tmp_path / NAME) as writer:
        add_items(writer, 9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fail)
            with pytest.raises(KeyboardInterrupt):
                add_items(writer, 12) if method == "append" else writer.seal(NOTES)
        assert writer.keeps
    assert items_kept(tmp_path / NAME) == 9


def test_records_too_large_to_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wholes: dict[str, bytes]
) -> None:
    monkeypatch.setattr("formats._journal.Journal.MAX_BYTES", 5000)
    with begin(tmp_path / NAME) as writer:
        add_items(writer, 100)
        with pytest.raises(ValueError, match="Append fewer rows at a time"):
            add_items(writer, 400)
        for stop in range(200, N_ITEMS + 1, 100):
            add_items(writer, stop)
        writer.seal(NOTES)
    assert (tmp_path / NAME).read_bytes() == wholes["f16"]


def test_no_resume_no_loss(
    tmp_path: Path, unfinished: dict[str, Path], wholes: dict[str, bytes]
) -> None:
    out = copy_of(unfinished["i8"], tmp_path / "x")
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    for job in (None, {}, crash_writer.JOB):
        with pytest.raises(formats.ContainerError, match=r"\.part: holds 682 rows of a run that"):
            begin(out, "i8", job=job)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    finish_alike(out, "i8", wholes["i8"])


# ---- full disks --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if sys.platform != "linux" or mount is None:
        pytest.skip("needs a small tmpfs; test_file_size_limit stands in")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs; test_file_size_limit stands in")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int) -> Path:
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).free - leave_bytes))
    return ballast


FULL = r"the disk is full: \d+ bytes are free in .*, about (\d+) bytes are needed. Free space"


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_when_it_begins(small_disk: Path, wholes: dict[str, bytes], dtype: str) -> None:
    out = small_disk / NAME
    out.write_bytes(wholes["f16"])
    ballast = fill(small_disk, 8 << 10)
    with pytest.raises(formats.ContainerError, match=FULL) as caught:
        begin(out, dtype)
    found = re.search(FULL, str(caught.value))
    assert found is not None
    # header and rows, and for i8 the rows as float32 beside them
    item = {"f16": 2, "f32": 4, "i8": 5}[dtype]
    assert int(found[1]) == 4096 + N_ROWS * crash_writer.DIM * item
    assert names_in(small_disk) == ["ballast", NAME]
    ballast.unlink()

    leave(out, dtype, stop=HALF, expected_rows=None)
    ballast = fill(small_disk, 0)
    if dtype != "f16":  # whose rows fit into what the first half left of its last page
        with pytest.raises(formats.ContainerError, match=rf"{FULL}.*rows are kept in {NAME}.part"):
            begin(out, dtype, resume=True)
    assert out.read_bytes() == wholes["f16"]
    ballast.unlink()
    assert items_kept(out, dtype) == HALF
    finish_alike(out, dtype, wholes[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_while_rows_come(small_disk: Path, wholes: dict[str, bytes], dtype: str) -> None:
    out = small_disk / NAME
    out.write_bytes(wholes["f16"])
    ballast = fill(small_disk, 40 << 10)
    with pytest.raises(formats.ContainerError, match=FULL):
        write(out, dtype, edges=MANY, expected_rows=None, job=None)
    assert names_in(small_disk) == ["ballast", NAME]

    seen: list[int] = []
    with pytest.raises(formats.ContainerError, match=rf"{FULL}.* \d+ rows are kept in {NAME}.part"):
        write(out, dtype, edges=MANY, expected_rows=None, confirm=seen.append)
    assert out.read_bytes() == wholes["f16"]
    assert 0 < seen[-1] < N_ITEMS
    ballast.unlink()
    assert items_kept(out, dtype) == seen[-1]
    finish_alike(out, dtype, wholes[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leave_bytes", [0, 8 << 10, 28 << 10])
def test_full_while_sealing(
    small_disk: Path, wholes: dict[str, bytes], dtype: str, leave_bytes: int
) -> None:
    out = small_disk / NAME
    for job in (None, crash_writer.JOB):
        with begin(out, dtype, job=job) as writer:
            add_items(writer, N_ITEMS)
            ballast = fill(small_disk, leave_bytes)
            with pytest.raises(formats.ContainerError, match=FULL):
                writer.seal(NOTES)
        if job is None:
            assert names_in(small_disk) == ["ballast"]
        ballast.unlink()
    assert not out.exists()
    assert items_kept(out, dtype) == N_ITEMS
    finish_alike(out, dtype, wholes[dtype])


LIMITED = """
import resource, sys
from pathlib import Path
import crash_writer, formats
limit, expected, dtype = int(sys.argv[2]), sys.argv[3] == "expected", sys.argv[4]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
more = {} if expected else {"expected_rows": None}
if sys.argv[5] == "no job": more["job"] = None
try:
    crash_writer.write(Path(sys.argv[1]), dtype, edges=crash_writer.MANY, **more)
except formats.ContainerError as error:
    print(error)
"""


def run_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
        timeout=60, env=ENVIRONMENT, cwd=TESTS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


@posix
@pytest.mark.parametrize("dtype", DTYPES)
def test_file_size_limit(tmp_path: Path, wholes: dict[str, bytes], dtype: str) -> None:
    out = tmp_path / NAME
    for limit in (5 << 10, 20 << 10):
        assert "ulimit -f" in run_child(LIMITED, str(out), str(limit), "", dtype, "no job").stdout
        assert names_in(tmp_path) == []
    assert "ulimit -f" in run_child(LIMITED, str(out), "8000", "expected", dtype, "").stdout
    assert names_in(tmp_path) == []
    for limit in (6 << 10, 20 << 10):
        said = run_child(LIMITED, str(out), str(limit), "", dtype, "").stdout
        assert "ulimit -f" in said
        assert "rows are kept in" in said
        assert not out.exists()
        assert 0 < items_kept(out, dtype) <= N_ITEMS
        finish_alike(out, dtype, wholes[dtype])
        out.unlink()


# ---- folders that may not be written to --------------------------------------------------------

LOCKED = """
import os, shutil, sys
from pathlib import Path
import crash_writer, formats
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
out = Path(sys.argv[1])
dtype = sys.argv[2]
folder = out.parent
def names(): print(sorted(path.name for path in folder.iterdir()))
folder.chmod(0o555)
try: crash_writer.begin(out, dtype)
except formats.ContainerError as error: print(error)
names()
folder.chmod(0o755)
with crash_writer.begin(out, dtype) as writer:
    crash_writer.add_items(writer, crash_writer.N_ITEMS)
    folder.chmod(0o555)
    try: writer.seal(crash_writer.NOTES)
    except formats.ContainerError as error: print(error)
names()
try: crash_writer.begin(out, dtype, resume=True)
except formats.ContainerError as error: print(error)
names()
folder.chmod(0o755)
with crash_writer.begin(out, dtype, resume=True) as writer: print(writer.n_items)
crash_writer.write(out, dtype, resume=True)
names()
"""


@posix
@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_read_only_folder(tmp_path: Path, wholes: dict[str, bytes], dtype: str) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
    lines = run_child(LOCKED, str(folder / NAME), dtype).stdout.splitlines()
    assert len(lines) == 8, lines
    left = [f"{NAME}.part", f"{NAME}.part.journal", *([f"{NAME}.part.rows"] * (dtype == "i8"))]
    for number in (0, 2, 4):
        assert "may not be written to" in lines[number]
    assert f"{N_ROWS} rows are kept in {NAME}.part" in lines[2]
    assert lines[1] == "[]"
    assert lines[3] == lines[5] == str(left)
    assert lines[6] == str(N_ITEMS)
    assert lines[7] == f"['{NAME}']"
    assert (folder / NAME).read_bytes() == wholes[dtype]


# ---- two writers -------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("first_resumes", [False, True])
def test_two_writers(
    tmp_path: Path, unfinished: dict[str, Path], wholes: dict[str, bytes], first_resumes: bool
) -> None:
    out = tmp_path / NAME
    if first_resumes:
        copy_of(unfinished["i8"], tmp_path)
    with begin(out, "i8", resume=first_resumes) as first:
        add_items(first, 900)
        before = names_in(tmp_path)
        for resume, job in ((False, crash_writer.JOB), (True, crash_writer.JOB), (False, None)):
            with pytest.raises(formats.ContainerError, match="another program is writing it"):
                begin(out, "i8", resume=resume, job=job)
            with pytest.raises(formats.ContainerError, match="another program is writing it"):
                begin(out, "f16", resume=resume, job=job)
        assert names_in(tmp_path) == before
        add_items(first, N_ITEMS)
        first.seal(NOTES)
    assert out.read_bytes() == wholes["i8"]
    assert names_in(tmp_path) == [NAME]


@posix
def test_a_second_writer_that_begins_at_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wholes: dict[str, bytes]
) -> None:
    """From the rename on there is no lock: the first must leave the second's names alone."""
    out = tmp_path / NAME
    real = Path.replace
    second = []

    def replace(path: Path, to: Path) -> Path:
        result = real(path, to)
        patch.undo()
        second.append(begin(out, "i8"))
        add_items(second[0], HALF)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        write(out, "i8")
    assert out.read_bytes() == wholes["i8"]
    second[0].abort()
    assert items_kept(out, "i8") == HALF
    finish_alike(out, "i8", wholes["i8"])


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 images of 240 patients, two that cannot be read, and a manifest.

    So many that a command that is stopped when it has written rows has more of them before it.
    """
    folder = tmp_path_factory.mktemp("study")
    lines = ["file,label,patient"]
    for i in range(480):
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((320, 300), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:03}.png")
        lines.append(f"{i:03}.png,{'ab'[i % 4 // 2]},p{i // 2}")
    for name in ("bad.png", "worse.png"):
        (folder / name).write_bytes(b"not an image")
        lines.append(f"{name},a,p1")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def command(study: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "engine.extract", "--manifest", str(study / "labels.csv"),
        "-o", str(out), "--seed", "1", *more,
    ]  # fmt: skip


def run_command(study: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(study, out, *more), capture_output=True, text=True, check=False, timeout=120,
        env=ENVIRONMENT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def extracted(study: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("extracted") / NAME
    assert extract.main([*command(study, out)[3:], "--quiet"]) == 1
    return out.read_bytes()


def start_and_wait_for_rows(study: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start the command; return when its journal has grown."""
    journal = out.with_name(f"{NAME}.part.journal")
    size = journal.stat().st_size if journal.exists() else None
    process = subprocess.Popen(
        command(study, out, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    while process.poll() is None:
        found = journal.stat().st_size if journal.exists() else 0
        if found > (size or found):
            break
        size = found or size
        time.sleep(0.002)
    return process


def finish_the_command(study: Path, out: Path, extracted: bytes) -> None:
    """Resume it to its end; it must come to the bytes of an undisturbed run."""
    result = run_command(study, out, "--resume")
    assert result.returncode == 1, result.stderr  # two images cannot be read
    assert "2 of 482 images were left out" in result.stderr
    assert "resumed behind" in result.stdout
    assert out.read_bytes() == extracted
    assert names_in(out.parent) == [NAME]


KEPT = r"stopped: (\d+) rows of (\d+) of 482 images are kept in (.*); to go on, .*--resume"


@posix
@pytest.mark.parametrize("stop", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_command_that_is_stopped(
    study: Path, tmp_path: Path, extracted: bytes, stop: str
) -> None:
    out = tmp_path / NAME
    rng = random.Random(stop)
    n_stopped = done = 0
    n_wanted = 3 if stop == "SIGKILL" else 2
    for _ in range(12):
        process = start_and_wait_for_rows(study, out, *(["--resume"] if n_stopped else []))
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(getattr(signal, stop))
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        if out.exists():  # it was faster
            assert out.read_bytes() == extracted
            out.unlink()
            n_stopped = done = 0
            continue
        assert process.returncode == (-9 if stop == "SIGKILL" else 130), errors
        assert names_in(tmp_path) == [f"{NAME}.part", f"{NAME}.part.journal"]
        if stop != "SIGKILL":
            found = re.search(KEPT, errors)
            assert found is not None, errors
            assert found[3] == f"{out}.part"
            assert done < int(found[2]) <= 482
            done = int(found[2])
            assert "nothing half-written" not in errors
            if done == 482:  # stopped behind the last row, before the file had its name
                finish_the_command(study, out, extracted)
                out.unlink()
                n_stopped = done = 0
                continue
        n_stopped += 1
        if n_stopped == n_wanted:
            break
        if n_stopped > 1:
            continue
        refused = run_command(study, out)
        assert refused.returncode == 2, refused.stderr
        assert re.search(
            rf"{NAME}.part: holds \d+ rows of a run that was not finished. Give the same "
            "command with --resume", refused.stderr,
        )  # fmt: skip
    assert n_stopped == n_wanted
    finish_the_command(study, out, extracted)


@posix
def test_the_command_twice_at_once_and_with_other_options(
    study: Path, tmp_path: Path, extracted: bytes
) -> None:
    out = tmp_path / NAME
    process = start_and_wait_for_rows(study, out)
    process.send_signal(signal.SIGSTOP)
    try:
        for more in ((), ("--resume",)):
            second = run_command(study, out, *more)
            assert second.returncode == 2, second.stderr
            assert "another program is writing it" in second.stderr
    finally:
        process.kill()
        process.communicate()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options, said in (
        (("--seed", "2"), "had another seed"),
        (("--dtype", "f32"), "was begun with dtype f16"),
        ((str(study / "000.png"),), "had another number of images"),
    ):
        refused = run_command(study, out, "--resume", *options)
        assert refused.returncode in (1, 2), refused.stderr
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
        # only the header, which says nothing while rows come, may have been written again
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run_command(study, out, "--resume", "--quiet").returncode == 1
    assert out.read_bytes() == extracted


def test_nothing_could_be_used_and_then_died(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / NAME
    arguments = [str(study / "bad.png"), str(study / "worse.png"), "-o", str(out), "--quiet"]

    def die(_writer: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(formats.ContainerWriter, "abandon", die)
        assert extract.main(arguments) == 130
    assert names_in(tmp_path) == [f"{NAME}.part", f"{NAME}.part.journal"]
    capsys.readouterr()
    assert extract.main([*arguments, "--resume"]) == 1
    assert "none of the 2 images could be used" in capsys.readouterr().err
    assert names_in(tmp_path) == []


@posix
def test_images_that_vanish(study: Path, tmp_path: Path, extracted: bytes) -> None:
    moved = tmp_path / "study"
    shutil.copytree(study, moved)
    away = tmp_path / "away"
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / NAME
    whole = folder / "whole"
    assert extract.main([*command(moved, whole)[3:], "--quiet"]) == 1
    whole_bytes = whole.read_bytes()
    whole.unlink()
    assert whole_bytes == extracted  # a path is no part of what is written
    process = start_and_wait_for_rows(moved, out)
    moved.rename(away)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "the folder or drive was removed" in errors
    assert re.search(KEPT, errors)
    assert names_in(folder) == [f"{NAME}.part", f"{NAME}.part.journal"]
    away.rename(moved)
    assert run_command(moved, out, "--resume").returncode == 1
    assert out.read_bytes() == extracted
