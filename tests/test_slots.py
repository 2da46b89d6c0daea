"""Never more engines at work than allowed, in the order in which they came, whoever is killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import formats
from engine import slots
from engine.slots import FileLock, engine_slot, lock_folder

TESTS = Path(__file__).resolve().parent
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and modes")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of the tests, away from those of the user."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(slots, "_said", set())
    return runtime / "hilum"


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    result = tmp_path / "marks"
    result.mkdir()
    return result


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are gone when the test is over."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def hold(limit: int, name: str, marks: Path, *more: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(formats.__file__).parents[1])}
    arguments = [str(TESTS / "slot_holder.py"), str(limit), name, str(marks), *map(str, more)]
    return subprocess.Popen([sys.executable, *arguments], env=environment)


def log(marks: Path) -> list[tuple[str, int]]:
    path = marks / "log"
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(name, int(inside)) for name, inside in lines]


def wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_waiting(folder: Path) -> bool:
    """Whether a process stands in the queue."""
    probe = FileLock(str(folder / "queue.lock"))
    if not probe.acquire(wait=False):
        return True
    probe.release()
    return False


@pytest.mark.parametrize("limit", [1, 3])
def test_twenty_at_once(limit: int, marks: Path, started: list[subprocess.Popen[bytes]]) -> None:
    started += [hold(limit, f"p{i}", marks, 3, 0.03) for i in range(20)]
    assert [process.wait(60) for process in started] == [0] * 20
    found = log(marks)
    assert len(found) == 60
    assert max(inside for _, inside in found) == limit


def test_no_limit(marks: Path, folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    started += [hold(0, f"p{i}", marks, 1, 3600) for i in range(3)]
    wait_for(lambda: len(list(marks.glob("*.inside"))) == 3)
    assert not folder.exists()


@posix
@pytest.mark.parametrize("limit", [1, 2])
def test_kill_frees_the_slot(
    limit: int, marks: Path, folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    started += [hold(limit, f"p{i}", marks, 1, 3600) for i in range(limit)]
    wait_for(lambda: len(log(marks)) == limit)
    second = hold(limit, "second", marks)
    started.append(second)
    wait_for(lambda: is_waiting(folder))
    assert len(log(marks)) == limit
    started[0].kill()
    assert second.wait(30) == 0
    assert [name for name, _ in log(marks)][-1] == "second"


@posix
def test_kill_of_the_first_in_the_queue(
    marks: Path, folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with engine_slot(1):
        first = hold(1, "first", marks)
        started.append(first)
        wait_for(lambda: is_waiting(folder))
        second = hold(1, "second", marks)
        started.append(second)
        first.kill()
        first.wait()
        wait_for(lambda: is_waiting(folder))
    assert second.wait(30) == 0
    assert [name for name, _ in log(marks)] == ["second"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/locks")
def test_first_come_first_served(
    marks: Path, folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    names = [f"p{i}" for i in range(6)]

    def n_blocked() -> int:
        return Path("/proc/locks").read_text().count(" -> FLOCK")

    with engine_slot(1):
        before = n_blocked()
        for i, name in enumerate(names):
            started.append(hold(1, name, marks))
            wait_for(lambda i=i: n_blocked() >= before + i + 1)
    assert [process.wait(30) for process in started] == [0] * len(names)
    assert [name for name, _ in log(marks)] == names


def test_a_long_run_gives_way(
    marks: Path, folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with engine_slot(1) as slot:
        assert not slot.give_way()
        assert not slot.wanted()
        other = hold(1, "other", marks)
        started.append(other)
        wait_for(slot.wanted)
        assert log(marks) == []
        assert slot.give_way()
        assert slot.held
        # It was let in, and the slot is ours again only behind it.
        assert log(marks) == [("other", 1)]
        assert list(marks.glob("*.inside")) == []


def test_says_once_that_it_waits(
    marks: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_ANNOUNCE_SECONDS", 0.0)
    said: list[str] = []
    holder = hold(1, "holder", marks, 1, 0.5)
    started.append(holder)
    wait_for(lambda: len(log(marks)) == 1)
    with engine_slot(1, announce=said.append) as slot:
        assert slot.held
    with engine_slot(1, announce=said.append):
        pass
    assert len(said) == 1
    assert "waiting for a turn" in said[0]


def test_says_nothing_of_a_short_wait(
    marks: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_ANNOUNCE_SECONDS", 3600.0)
    said: list[str] = []
    started.append(hold(1, "holder", marks, 1, 0.2))
    wait_for(lambda: len(log(marks)) == 1)
    # Other tests may have left threads of libraries.
    before = set(threading.enumerate())
    with engine_slot(1, announce=said.append) as slot:
        assert slot.held
        assert slots._said == set()
        # Its clock is stopped, and with it the thread.
        wait_for(lambda: set(threading.enumerate()) <= before)
    assert said == []


def test_error_inside_frees_the_slot(folder: Path) -> None:
    with pytest.raises(KeyError), engine_slot(1):
        raise KeyError
    with engine_slot(1) as slot:
        assert slot.held


# ---- the folder --------------------------------------------------------------------------------


@posix
def test_folder_is_private(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock_folder() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert lock_folder() == str(tmp_path / "cache" / "hilum" / "locks")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert lock_folder() == str(tmp_path / "cache" / "hilum" / "locks")


@posix
@pytest.mark.parametrize("how", ["mode", "link"])
def test_a_folder_open_to_others_bounds_nothing(folder: Path, tmp_path: Path, how: str) -> None:
    if how == "mode":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    said: list[str] = []
    for _ in range(3):
        with engine_slot(1, announce=said.append) as slot:
            assert not slot.held
            assert not slot.wanted()
            assert not slot.give_way()
    assert len(said) == 1
    assert "not counted" in said[0]
    assert not list(folder.iterdir())


@posix
def test_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    with engine_slot(1) as slot:
        assert not slot.held


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_more: object) -> bool:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(slots, "_lock", refuse)
    said: list[str] = []
    with engine_slot(1, announce=said.append) as slot:
        assert not slot.held
    assert len(said) == 1


# ---- Windows -----------------------------------------------------------------------------------


@posix
def test_windows_locks(
    folder: Path, marks: Path, monkeypatch: pytest.MonkeyPatch,
    started: list[subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    """The way of Windows, over locks of this system: no sleeping for a lock, but looking."""
    import fcntl

    asked: list[int] = []

    def locking(descriptor: int, mode: int, n_bytes: int) -> None:
        asked.append(mode)
        assert n_bytes == 1
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    monkeypatch.setattr(slots, "_fcntl", None)
    monkeypatch.setattr(slots, "_msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    holder = hold(1, "holder", marks, 1, 0.5)
    started.append(holder)
    wait_for(lambda: len(log(marks)) == 1)
    with engine_slot(1) as slot:
        assert slot.held
        assert list(marks.glob("*.inside")) == []
        other = FileLock(str(folder / "slot-0.lock"))
        assert not other.acquire(wait=False)
    assert set(asked) == {2}
    assert other.acquire(wait=False)
    other.release()


def test_a_lock_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locking(*_arguments: object) -> None:
        raise OSError(errno.EBADF, "bad file")

    monkeypatch.setattr(slots, "_fcntl", None)
    monkeypatch.setattr(slots, "_msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    with pytest.raises(OSError, match="bad file"):
        FileLock(str(tmp_path / "lock")).acquire(wait=False)


# ---- cost --------------------------------------------------------------------------------------


def test_a_waiting_process_is_light() -> None:
    code = (
        "import sys\nfrom engine.slots import engine_slot\n"
        "import engine.spool\n"
        "heavy = 'numpy openvino numba pathlib socket argparse threading subprocess'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(formats.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
        env=environment,
    )  # fmt: skip
    assert result.stdout.strip() == "[]"
