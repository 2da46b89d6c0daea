"""The resident worker: bursts, deaths, clients and signals; every job has exactly one answer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_worker import Worker as FakeWorker
from PIL import Image

import formats
from engine import handover, predict, serve, slots
from engine import spool as spools
from engine.handover import hand_over
from engine.serve import Server, status
from engine.slots import FileLock
from engine.spool import prepare, submit, wait, worker_lives, worker_lock
from engine.worker import Settings

TESTS = Path(__file__).resolve().parent
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and sockets")
pytestmark = posix

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def own_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slots of the tests, away from those of the user."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(slots, "_said", set())
    return runtime / "hilum"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return Path(prepare(tmp_path / "spool"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def start(spool: Path, results: Path) -> Iterator[Start]:
    """Start workers that cost nothing; they are gone when the test is over."""
    processes: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": str(Path(formats.__file__).parents[1])}

    def run(*arguments: str, command: str = "serve") -> subprocess.Popen[str]:
        more = ["--output-dir", str(results)] if command == "serve" else []
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "fake_worker.py"), command, str(spool), *more, *arguments],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def drop(spool: Path, name: str, content: str = "ok") -> None:
    part = spool / "incoming" / f".{name}"
    part.write_text(content)
    part.replace(spool / "incoming" / name)


def answers(spool: Path) -> list[dict[str, Any]]:
    paths = sorted((spool / "answers").iterdir())
    return [json.loads(path.read_bytes()) for path in paths if path.name[0] != "."]


def begun(results: Path) -> Counter[str]:
    log = results / "log"
    return Counter(log.read_text().split()) if log.exists() else Counter()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def in_process(spool: Path, results: Path, **more: Any) -> Server:
    lock = worker_lock(str(spool), 0)
    assert lock.acquire(wait=False)
    fake = FakeWorker(Settings(output_dir=str(results), threads=more.pop("threads", None)))
    return Server(str(spool), lock, 0, fake, output_dir=str(results), **more)


# ---- bursts and deaths -------------------------------------------------------------------------


def test_a_burst_with_a_kill_in_its_middle(spool: Path, results: Path, start: Start) -> None:
    names = [f"{number}.png" for number in range(200)]
    for name in names:
        drop(spool, name)
    first = start("--threads", "4")
    wait_for(lambda: len(answers(spool)) > 60)
    first.kill()
    first.wait()
    assert len(answers(spool)) < 200
    finish(start("--once"))
    found = answers(spool)
    assert sorted(Path(answer["input"]).name for answer in found) == sorted(names)
    assert {answer["status"] for answer in found} == {"ok"}
    written = sorted(path.name for path in results.glob("*.json"))
    assert written == sorted(f"{name}.json" for name in names)
    # Only what was in hand was begun twice.
    assert sum(begun(results).values()) <= 204
    assert max(begun(results).values()) <= 2


def test_killed_at_random_moments(spool: Path, results: Path, start: Start) -> None:
    rng = random.Random(4)
    jobs = []
    pictures = results.parent / "pictures"
    pictures.mkdir()
    kills = 0
    for turn in range(12):
        for number in range(5):
            name = f"{turn}-{number}.png"
            drop(spool, name, "slow")
            (pictures / name).write_text("slow")
            jobs.append(submit(spool, pictures / name))
        process = start("--threads", "3", "--idle", "60")
        before = sum(begun(results).values())
        wait_for(lambda before=before: sum(begun(results).values()) > before)
        time.sleep(rng.uniform(0, 0.12))
        process.kill()
        process.wait()
        kills += 1
    finish(start("--once"))
    found = answers(spool)
    assert len(found) == 2 * len(jobs)
    assert {wait(spool, job)["status"] for job in jobs} == {"ok"}
    assert {answer["status"] for answer in found} == {"ok"}
    assert spools.counts(str(spool)) == {
        "incoming": 0, "working": 0, "answers": len(found), "failed": 0,
    }  # fmt: skip
    assert kills == 12
    assert not list((spool / "tries").iterdir())


def test_a_picture_that_kills_the_worker(spool: Path, results: Path, start: Start) -> None:
    for number in range(6):
        drop(spool, f"{number}.png", "kill" if number == 2 else "ok")
        time.sleep(0.01)
    codes = []
    for _ in range(5):
        process = start("--once", "--threads", "4")
        process.communicate(timeout=60)
        codes.append(process.returncode)
    assert codes == [-9, -9, -9, 0, 0]
    found = answers(spool)
    assert sorted(answer["status"] for answer in found) == ["error"] + ["ok"] * 5
    assert begun(results)["2.png"] == 3
    assert max(count for name, count in begun(results).items() if name != "2.png") <= 2
    assert len(list((spool / "failed").rglob("2.png"))) == 1


def test_a_suspect_does_not_wait_for_ever(spool: Path, results: Path) -> None:
    """Where pictures never cease to come, it is still tried, and alone."""
    dead = spools.Queue(str(spool))
    drop(spool, "suspect.png")
    job = dead.next()
    assert job is not None
    dead.begin(job)
    for number in range(10):
        drop(spool, f"first-{number}.png")
    server = in_process(spool, results, threads=4)
    try:
        for number, _ in enumerate(server.drain(), 1):
            if begun(results)["suspect.png"]:
                break
            drop(spool, f"{number}.png")
            assert number < 100
    finally:
        server.close()
    assert 40 < number < 60


@pytest.mark.parametrize("word", ["raise", "fault"])
def test_a_bug_in_one_picture(spool: Path, results: Path, start: Start, word: str) -> None:
    for number in range(6):
        drop(spool, f"{number}.png", word if number == 2 else "ok")
    said = finish(start("--once", "--threads", "4"))
    assert "internal error" in said
    assert "job 6: error internal_error" in said
    assert sorted(answer["status"] for answer in answers(spool)) == ["error"] + ["ok"] * 5
    assert begun(results)["2.png"] == 3


def test_a_full_disk_loses_nothing(spool: Path, results: Path, start: Start) -> None:
    (results / "full").touch()
    for number in range(4):
        drop(spool, f"{number}.png", "full")
    process = start("--idle", "60", "--threads", "2")
    assert process.stderr is not None
    while "tries again" not in process.stderr.readline():
        pass
    assert answers(spool) == []
    (results / "full").unlink()
    drop(spool, "last.png")
    wait_for(lambda: len(answers(spool)) == 5)
    assert {answer["status"] for answer in answers(spool)} == {"ok"}
    assert list((spool / "failed").iterdir()) == []
    process.kill()


def test_two_workers(spool: Path, results: Path, start: Start) -> None:
    for number in range(100):
        drop(spool, f"{number}.png", "slow")
    both = [start("--once", "--engines", "2") for _ in range(2)]
    for process in both:
        finish(process)
    assert len(answers(spool)) == 100
    assert set(begun(results).values()) == {1}
    assert status(str(spool))["working"] == 0


def test_what_a_dead_colleague_left_is_done_by_the_other(
    spool: Path, results: Path, start: Start
) -> None:
    colleague = spools.Queue(str(spool), 1)
    drop(spool, "x.png")
    assert colleague.next() is not None
    process = start("--idle", "60", "--engines", "2")
    wait_for(lambda: len(answers(spool)) == 1)
    process.kill()


def test_results_are_sent_while_others_work(
    spool: Path, results: Path, own_slots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_free() -> bool:
        lock = FileLock(str(own_slots / "slot-0.lock"))
        free = lock.acquire(wait=False)
        lock.release()
        return free

    def judge(worker: FakeWorker, path: str) -> Any:
        assert not is_free()
        return real(worker, path)

    def deliver(_worker: FakeWorker, answer: Any) -> Any:
        assert is_free()
        answer.facts["delivered"] = []
        if len(sent) == 20 and not failed:
            failed.append(answer)
            raise RuntimeError("a bug")
        sent.append(answer)
        return answer

    sent: list[Any] = []
    failed: list[Any] = []
    real = FakeWorker.answer
    monkeypatch.setattr(FakeWorker, "answer", judge)
    monkeypatch.setattr(FakeWorker, "deliver", deliver)
    for number in range(50):
        drop(spool, f"{number}.png")
    server = in_process(spool, results, sends=True, threads=3)
    try:
        for _ in server.drain():
            pass
    finally:
        server.close()
    assert len(answers(spool)) == len(sent) == 50
    assert all("delivered" in answer for answer in answers(spool))
    assert len(failed) == 1
    assert list((spool / "tries").iterdir()) == []


def test_stopped_while_results_are_sent(
    spool: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        drop(spool, f"{number}.png")
    server = in_process(spool, results, sends=True)

    def deliver(_worker: FakeWorker, answer: Any) -> Any:
        if len(answers(spool)) == 4:
            server.stop()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(FakeWorker, "deliver", deliver)
        try:
            for _ in server.drain():
                pass
        finally:
            server.close()
    assert len(answers(spool)) == 5
    server = in_process(spool, results, sends=True)
    try:
        for _ in server.drain():
            pass
    finally:
        server.close()
    assert len(answers(spool)) == 30
    assert max(begun(results).values()) == 2
    # What was put back was no death.
    assert {answer["status"] for answer in answers(spool)} == {"ok"}


def test_memory_stays_bounded(spool: Path, results: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    server = in_process(spool, results)
    try:
        sizes = []
        for turn in range(5):
            for number in range(250):
                drop(spool, f"{turn}-{number}.png")
            for _ in server.drain():
                pass
            for path in (spool / "answers").iterdir():
                path.unlink()
            sizes.append(resident())
        assert sizes[-1] - sizes[0] < 4 << 20
    finally:
        server.close()


# ---- the real worker ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for seed in range(4):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
        paths.append(folder / f"{seed}.png")
        Image.fromarray(coarse).resize((300, 280), Image.Resampling.BICUBIC).save(paths[-1])
    (folder / "no.png").write_bytes(b"no picture")
    return [*paths, folder / "no.png"]


def same(answer: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in answer.items() if key != "milliseconds"})


def test_the_same_answers_as_without_a_spool(
    spool: Path, tmp_path: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [str(path) for path in pictures]
    assert predict.main([*texts, "--output-dir", str(tmp_path / "a"), "--quiet"]) == 1
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first = submit(spool, texts[0])
    assert serve.main([str(spool), "--output-dir", str(tmp_path / "b"), "--once"]) == 0
    assert same(wait(spool, first)) == same(expected[0])
    # Without a worker, whoever hands over is one; the first is stored already.
    found = list(hand_over(spool, texts))
    assert found[0].pop("stored") is True
    assert [same(answer) for answer in found] == [same(answer) for answer in expected]
    for path in pictures[1:]:
        name = f"{path.name}.json"
        a, b = (json.loads((tmp_path / side / name).read_bytes()) for side in "ab")
        assert same(a) == same(b)


def test_heads_that_cannot_be_loaded_are_no_picture_s_fault(
    spool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "bad.safetensors"
    head.write_bytes(b"no head")
    drop(spool, "x.png")
    assert serve.main([str(spool), "--head", str(head), "--once"]) == 1
    assert "bad.safetensors" in capsys.readouterr().err
    assert spools.counts(str(spool))["incoming"] == 1
    assert not (spool / "serve.json").exists()
    serve.write_settings(str(spool), serve.Kept(Settings(heads=(str(head),))))
    with pytest.raises(formats.EngineError, match=r"bad\.safetensors"):
        list(hand_over(spool, ["/y.png"]))
    assert spools.counts(str(spool))["incoming"] == 2
    assert not spools.worker_lives(spool)


# ---- handing over ------------------------------------------------------------------------------


def test_twenty_hooks_at_once(spool: Path, results: Path, start: Start, own_slots: Path) -> None:
    serve.write_settings(str(spool), serve.Kept(Settings(output_dir=str(results))))
    for number in range(20):
        (results.parent / f"{number}.png").write_text("slow")
    hooks = [
        start(str(results.parent / f"{number}.png"), command="hand_over") for number in range(20)
    ]
    for number, hook in enumerate(hooks):
        out, said = hook.communicate(timeout=60)
        assert hook.returncode == 0, said
        assert json.loads(out)["input"].endswith(f"/{number}.png")
    assert len(answers(spool)) == 20
    assert set(begun(results).values()) == {1}


def test_the_hook_that_works_is_killed(spool: Path, results: Path, start: Start) -> None:
    serve.write_settings(str(spool), serve.Kept(Settings(output_dir=str(results))))
    paths = []
    for number in range(30):
        paths.append(results.parent / f"{number}.png")
        paths[-1].write_text("slow")
    first = start(*map(str, paths[:20]), command="hand_over")
    wait_for(lambda: sum(begun(results).values()) > 2)
    second = start(*map(str, paths[20:]), command="hand_over")
    wait_for(lambda: status(str(spool))["incoming"] > 10)
    first.kill()
    out, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["ok"] * 10
    # Also what the dead one had handed over.
    assert len(answers(spool)) == 30


def test_paths_that_come_one_by_one(spool: Path, results: Path) -> None:
    serve.write_settings(str(spool), serve.Kept(Settings(output_dir=str(results))))
    seen: list[str] = []

    def paths() -> Iterator[Path]:
        for number in range(3):
            assert len(seen) == number
            yield results.parent / f"missing-{number}.png"

    for answer in hand_over(spool, paths()):
        seen.append(answer["status"])  # noqa: PERF401 - the paths look at it meanwhile
    assert seen == ["error"] * 3


# ---- the socket --------------------------------------------------------------------------------


@pytest.fixture
def served(spool: Path, results: Path, start: Start) -> subprocess.Popen[str]:
    process = start("--idle", "300")
    wait_for((spool / "socket").exists)
    return process


def ask(spool: Path, data: bytes, *, seconds: float = 30.0) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(spool / "socket"))
        connection.sendall(data)
        found = b""
        while data := connection.recv(65536):
            found += data
        return found


def test_a_socket_for_this_user_only(spool: Path, served: subprocess.Popen[str]) -> None:
    assert (spool / "socket").stat().st_mode & 0o777 == 0o600
    assert spool.stat().st_mode & 0o777 == 0o700


def test_ask_by_the_socket(spool: Path, results: Path, served: subprocess.Popen[str]) -> None:
    picture = results.parent / "x.png"
    picture.write_text("ok")
    answer = json.loads(ask(spool, json.dumps({"path": str(picture)}).encode() + b"\n"))
    assert answer["status"] == "ok"
    assert answer["input"] == str(picture)
    job = submit(spool, picture)
    asked = json.dumps({"job": job}).encode() + b"\n"
    assert json.loads(ask(spool, asked)) == wait(spool, job)
    assert json.loads(ask(spool, asked)) == wait(spool, job)


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b"[]\n", b"\xff\n", b'{"path": "relative"}\n', b'{"job": "../../x"}\n',
     b'{"path": 5}\n', b'{"path": "/\\u0000"}\n', b"[" * 50000 + b"\n", b'{"job": null}\n'],
)  # fmt: skip
def test_what_is_no_question(spool: Path, served: subprocess.Popen[str], line: bytes) -> None:
    assert "expected one line" in json.loads(ask(spool, line))["error"]
    assert spools.counts(str(spool))["answers"] == 0


def test_hostile_clients(spool: Path, results: Path, served: subprocess.Popen[str]) -> None:
    picture = results.parent / "x.png"
    picture.write_text("ok")
    with contextlib.ExitStack() as stack:
        stuck = []
        for number in range(serve.MOST_CLIENTS + 20):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(30)
            with contextlib.suppress(OSError):  # too many: not let in, or closed already
                connection.connect(str(spool / "socket"))
                stuck.append(connection)
                if number % 3 == 1:
                    connection.sendall(b'{"job": "never"}\n')
                if number % 3 == 2:
                    connection.sendall(b"x" * 100)
        # Pictures are answered all the same.
        assert wait(spool, submit(spool, picture), timeout=30)["status"] == "ok"
        assert served.poll() is None
        with contextlib.suppress(ConnectionResetError):
            assert stuck[-1].recv(1) == b""
    wait_for(lambda: b"error" in ask(spool, b"{}\n"))
    with socket.socket(socket.AF_UNIX) as endless:
        endless.settimeout(30)
        endless.connect(str(spool / "socket"))
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # lines that do not end
            while True:
                endless.sendall(b"x" * 65536)
    assert wait(spool, submit(spool, picture), timeout=30)["status"] == "ok"
    assert served.poll() is None


def test_a_client_that_says_nothing_is_dropped(
    spool: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "CLIENT_SECONDS", 0.05)
    server = in_process(spool, results)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(spool / "socket"))
            assert connection.recv(1) == b""
    finally:
        server.close()
    assert not (spool / "socket").exists()


def test_another_user_is_turned_away(
    spool: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = in_process(spool, results)
    try:
        assert ask(spool, b"{}\n") != b""
        monkeypatch.setattr(serve, "_is_same_user", lambda _connection: False)
        with contextlib.suppress(OSError):  # closed: nothing comes, or a reset
            assert ask(spool, b"{}\n") == b""
    finally:
        server.close()


def test_who_is_the_same_user(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert serve._is_same_user(one)
        if hasattr(socket, "SO_PEERCRED"):
            monkeypatch.setattr(os, "getuid", lambda: 12345)
            assert not serve._is_same_user(one)


def test_a_path_too_long_for_a_socket(tmp_path: Path, results: Path, start: Start) -> None:
    spool = Path(prepare(tmp_path / ("x" * 120)))
    server = in_process(spool, results)
    try:
        drop(spool, "x.png")
        assert sum(1 for _ in server.drain()) == 1
    finally:
        server.close()
    assert not (spool / "socket").exists()
    assert len(answers(spool)) == 1


def test_the_socket_wakes_the_worker(spool: Path, results: Path) -> None:
    server = in_process(spool, results)
    try:
        threading.Timer(0.1, ask, [spool, b'{"job": "never"}\n']).start()
        server.rest(3600.0)
    finally:
        server.close()


# ---- starting and stopping ---------------------------------------------------------------------


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True])
def test_stopped_by_a_signal(
    spool: Path, results: Path, start: Start, stop: signal.Signals, busy: bool
) -> None:
    for number in range(40 * busy):
        drop(spool, f"{number}.png", "slow")
    process = start("--threads", "2")
    wait_for((spool / "serve.json").exists)
    if busy:
        wait_for(lambda: len(answers(spool)) > 3)
    process.send_signal(stop)
    said = finish(process, 0 if stop == signal.SIGTERM else 130)
    assert "what is left stays in the spool" in said
    assert not (spool / "socket").exists()
    n_done = len(answers(spool))
    # What was in hand was finished.
    assert n_done == sum(begun(results).values())
    assert list((spool / "tries").iterdir()) == []
    if busy:
        assert n_done < 40
        finish(start("--once"))
        assert len(answers(spool)) == 40
        assert set(begun(results).values()) == {1}


def test_stopped_while_it_waits_for_a_turn(spool: Path, results: Path, start: Start) -> None:
    drop(spool, "x.png")
    with slots.engine_slot(1) as slot:
        process = start()
        wait_for(slot.wanted)
        process.send_signal(signal.SIGTERM)
        finish(process)
    assert spools.counts(str(spool))["incoming"] == 1


def test_a_hook_is_let_in_between_two_pictures(spool: Path, results: Path, start: Start) -> None:
    for number in range(60):
        drop(spool, f"{number}.png", "slow")
    process = start("--once")
    wait_for(lambda: len(answers(spool)) > 1)
    for _ in range(2):
        before = len(answers(spool))
        with slots.engine_slot(1) as slot:
            assert slot.held
            n_now = len(answers(spool))
            assert before <= n_now < 60
            time.sleep(0.1)
            assert len(answers(spool)) == n_now
    finish(process)


def test_idle_end(spool: Path, results: Path, start: Start) -> None:
    drop(spool, "x.png")
    finish(start("--idle", "1"))
    assert len(answers(spool)) == 1
    assert not spools.worker_lives(spool)


@pytest.mark.parametrize("when", ["before", "behind"])
def test_idle_end_and_a_hook_that_drops_at_that_moment(
    spool: Path, results: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whoever drops before the lock is free is served; who drops behind finds it free."""
    server = in_process(spool, results)
    real = FileLock.release
    try:
        with monkeypatch.context() as patch:

            def release(lock: FileLock) -> None:
                if when == "before":
                    drop(spool, "x.png")
                real(lock)
                if when == "behind":
                    drop(spool, "x.png")

            patch.setattr(FileLock, "release", release)
            assert not server.leave()
        assert sum(1 for _ in server.drain()) == 1
        assert (spool / "socket").exists()
        assert server.leave()
        assert not spools.worker_lives(spool)
    finally:
        server.close()


def test_idle_ends_and_hooks_that_start_workers(
    spool: Path, results: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hook drops, then starts a worker that ends at once: nothing is ever left."""
    rng = random.Random(1)
    processes = []
    for number in range(15):
        drop(spool, f"{number}.png")
        processes.append(start("--once", "--quiet"))
        time.sleep(rng.uniform(0, 0.15))
    for process in processes:
        assert finish(process) == ""
    assert len(answers(spool)) == 15
    assert set(begun(results).values()) == {1}


def test_a_leaving_worker_comes_back_although_somebody_looks_at_its_lock(
    spool: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = in_process(spool, results)
    looks = worker_lock(str(spool), 0)
    real = spools.has_incoming

    def look(folder: str) -> bool:
        if not (spool / "incoming" / "last.png").exists():
            # --status, in the very moment; a picture was dropped before it.
            drop(spool, "last.png")
            assert looks.acquire(wait=False)
        return real(folder)

    monkeypatch.setattr(spools, "has_incoming", look)
    monkeypatch.setattr(time, "sleep", lambda _: looks.release())
    assert not server.leave()
    monkeypatch.undo()
    list(server.drain())
    assert server.leave()
    server.close()
    assert len(answers(spool)) == 1


def test_a_second_worker_waits(spool: Path, results: Path, start: Start) -> None:
    first = start()
    wait_for(lambda: spools.worker_lives(spool))
    second = start()
    assert second.stderr is not None
    assert "another worker has this spool" in second.stderr.readline()
    first.kill()
    first.wait()
    drop(spool, "x.png")
    wait_for(lambda: len(answers(spool)) == 1)
    # One that only wants to empty the folder is not needed.
    finish(start("--once"))


def test_settings_are_kept(
    spool: Path, results: Path, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(start("--once", "--allow", "lateral", "--engines", "2", "--keep"))
    kept = json.loads((spool / "serve.json").read_bytes())
    assert kept["engines"] == 2
    assert kept["keep"] is True
    assert kept["settings"]["allow"] == ["lateral"]
    assert kept["settings"]["output_dir"] == str(results)
    command = [sys.executable, str(TESTS / "fake_worker.py"), "serve", str(spool), "--once"]
    environment = {**os.environ, "PYTHONPATH": str(Path(formats.__file__).parents[1])}
    drop(spool, "x.png")
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "changed" not in done.stderr
    assert json.loads((spool / "serve.json").read_bytes()) == kept
    assert (results / "x.png.json").exists()
    assert len(list((spool / "done").rglob("x.png"))) == 1
    done = subprocess.run(
        [*command, "--output-dir", "other", "--engines", "1"], env=environment,
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "settings changed since the last start: output_dir, allow, engines, keep" in done.stderr
    changed = json.loads((spool / "serve.json").read_bytes())
    assert changed["settings"]["output_dir"] == str(tmp_path / "other")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"settings": []}', b'{"engines": 1, "settings": {"x": 1}}', b"\xff"]
)
def test_damaged_settings(spool: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (spool / "serve.json").write_bytes(content)
    assert serve.main([str(spool), "--once"]) == 2
    assert "serve.json: is damaged" in capsys.readouterr().err
    with pytest.raises(formats.WriteError, match="is damaged"):
        list(hand_over(spool, ["/x.png"]))


def test_options_that_do_not_go(spool: Path, tmp_path: Path) -> None:
    for options in (["--csv", "--output-dir", "x"], ["--idle", "0"], ["--head", "missing"]):
        with pytest.raises(SystemExit) as stop:
            serve.main([str(spool), *options])
        assert stop.value.code == 2


def test_a_spool_that_others_may_write_to(spool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool.chmod(0o777)
    assert serve.main([str(spool), "--once"]) == 2
    assert "chmod 700" in capsys.readouterr().err


def test_status(spool: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve.write_settings(str(spool), serve.Kept(Settings(output_dir=str(results))))
    drop(spool, "x.png")
    assert serve.main([str(spool), "--status"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "incoming": 1, "working": 0, "answers": 0, "failed": 0, "dead_letters": 0, "worker": False,
    }  # fmt: skip


def test_a_misspelt_folder_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "spol"
    with pytest.raises(SystemExit) as stop:
        serve.main([str(folder), "--status"])
    assert stop.value.code == 2
    assert "no such folder" in capsys.readouterr().err
    for waits in (True, False):
        with pytest.raises(formats.WriteError, match="no worker was ever started"):
            list(hand_over(folder, ["/x.png"], wait=waits))
    assert not folder.exists()


def test_a_job_that_somebody_took_away_is_not_awaited_for_ever(
    spool: Path, results: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the clock jumps by a day and answers are thrown away as old."""
    start("--idle", "60")
    wait_for(lambda: worker_lives(spool))

    def read(_spool: str, _job: str) -> None:
        return None

    for module in (handover, spools):
        monkeypatch.setattr(module, "read_answer", read)
    (results / "x.png").write_text("ok")
    (answer,) = hand_over(spool, [results / "x.png"])
    assert answer["status"] == "error"
    assert answer["reason"].startswith("lost: ")


def test_the_log_names_nobody(spool: Path, results: Path, start: Start) -> None:
    words = ["ok", "bad", "refuse", "raise", "ok"]
    for number, word in enumerate(words):
        drop(spool, f"DOE^JANE-1.2.840.{number}.dcm", word)
    drop(spool, "1.2.840.99.job", '{"path": "/DOE/JANE"}')
    drop(spool, "1.2.840.98.job", "DOE")
    said = finish(start("--once"))
    assert "DOE" not in said
    assert "JANE" not in said
    assert "1.2.840" not in said
    assert str(spool) not in said
    assert re.search(r"^job \d+: ok 0\.5 ms$", said, re.M)
    assert re.search(r"^job \d+: refused lateral 0\.0 ms$", said, re.M)
    assert re.search(r"^job \d+: error bad_ticket 0\.0 ms$", said, re.M)
    assert len(answers(spool)) == 7
