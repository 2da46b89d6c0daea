"""The spool: every job gets exactly one answer, wherever a process dies, whatever is dropped."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import spool as spools
from engine.errors import WriteError
from engine.handover import hand_over
from engine.spool import Job, Queue, prepare, submit, wait, worker_lives, worker_lock

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX links and modes")
OK = {"status": "ok", "reason": None}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return Path(prepare(tmp_path / "spool"))


def drop(spool: Path, name: str, content: bytes = b"picture") -> Path:
    part = spool / "incoming" / f".{name}"
    part.write_bytes(content)
    return part.replace(spool / "incoming" / name)


def take_all(queue: Queue) -> list[Job]:
    jobs = []
    while (job := queue.suspect() or queue.next()) is not None:
        jobs.append(job)
    return jobs


def work(queue: Queue) -> list[str]:
    """Do everything as a server does; return the names of the files, in their order."""
    done = []
    for job in take_all(queue):
        if job.wrong is None:
            queue.begin(job)
            queue.finish(job, {**OK, "input": job.path})
        else:
            queue.finish(job, spools.error_answer(job.path, job.wrong))
        done.append(job.entry)
    return done


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def answers(spool: Path) -> list[dict[str, Any]]:
    paths = sorted((spool / "answers").iterdir())
    return [json.loads(path.read_bytes()) for path in paths if path.name[0] != "."]


# ---- handing over ------------------------------------------------------------------------------


def test_submit_and_wait(spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = submit("spool", "some/picture.png")
    ticket = spool / "incoming" / f"{job}.job"
    assert json.loads(ticket.read_bytes()) == {"path": str(tmp_path / "some" / "picture.png")}
    assert files_in(spool) == [f"incoming/{job}.job"]
    with pytest.raises(TimeoutError, match="stays in the spool"):
        wait(spool, job, timeout=0.05)
    queue = Queue(str(spool))
    threading.Timer(0.1, work, [queue]).start()
    answer = wait(spool, job, timeout=30)
    assert answer == {**OK, "input": str(tmp_path / "some" / "picture.png")}
    assert wait(spool, job) == answer
    assert files_in(spool) == [f"answers/{job}.json"]


@posix
def test_a_spool_is_private(spool: Path, tmp_path: Path) -> None:
    submit(spool, "x.png")
    work(Queue(str(spool)))
    for path in (spool, *spool.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@posix
@pytest.mark.parametrize("where", [".", "incoming", "answers"])
def test_a_spool_that_others_may_write_to(spool: Path, where: str) -> None:
    (spool / where).chmod(0o770)
    with pytest.raises(WriteError, match=r"other users may write to it.*chmod 700"):
        submit(spool, "x.png")
    assert files_in(spool) == []


@posix
def test_a_spool_that_is_a_link(spool: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(spool)
    with pytest.raises(WriteError, match="is no spool"):
        prepare(tmp_path / "link")
    with pytest.raises(WriteError, match="is no spool"):
        prepare(drop(spool, "file"))


@pytest.mark.parametrize("job", ["", "../x", "a/b", ".x", "x" * 200, "ü", "a\0"])
def test_names_that_are_no_jobs(spool: Path, job: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a job"):
        wait(spool, job, timeout=0)


def test_hand_over_without_a_worker_ever(spool: Path) -> None:
    with pytest.raises(WriteError, match="no worker was ever started here"):
        list(hand_over(spool, ["x.png"]))
    assert files_in(spool) == []
    (found,) = hand_over(spool, ["x.png"], wait=False)
    assert files_in(spool) == [f"incoming/{found['job']}.job"]


def test_a_job_that_was_taken_away(spool: Path) -> None:
    (spool / "serve.json").write_text("{}")
    answer = hand_over(spool, ["/x.png"])
    threading.Timer(0.1, lambda: next((spool / "incoming").glob("*.job")).unlink()).start()
    lock = worker_lock(str(spool), 0)
    assert lock.acquire(wait=False)
    threading.Timer(0.3, lock.release).start()
    (found,) = answer
    assert found["status"] == "error"
    assert found["reason"].startswith("lost: ")
    assert found["input"] == "/x.png"


def test_worker_lives(spool: Path) -> None:
    assert not worker_lives(spool)
    lock = worker_lock(str(spool), 3)
    assert lock.acquire(wait=False)
    assert worker_lives(spool)
    lock.release()
    assert not worker_lives(spool)


# ---- claiming ----------------------------------------------------------------------------------


def test_first_in_first_out(spool: Path) -> None:
    names = [f"{number}.png" for number in (5, 3, 9, 1)]
    for name in names:
        drop(spool, name)
        time.sleep(0.02)
    assert work(Queue(str(spool))) == names


def test_names_with_a_dot_are_unfinished(spool: Path) -> None:
    (spool / "incoming" / ".x.png").write_bytes(b"half")
    queue = Queue(str(spool))
    assert queue.is_empty()
    assert work(queue) == []


def test_dropped_pictures_go_when_answered(spool: Path) -> None:
    drop(spool, "a.png")
    work(Queue(str(spool)))
    assert [path.split("/")[0] for path in files_in(spool)] == ["answers"]
    drop(spool, "b.png")
    work(Queue(str(spool), keep=True))
    (kept,) = [path for path in files_in(spool) if path.startswith("done")]
    assert kept.endswith("/b.png")


def test_a_dropped_picture_that_fails_is_kept(spool: Path) -> None:
    drop(spool, "a.png")
    queue = Queue(str(spool))
    (job,) = take_all(queue)
    queue.begin(job)
    queue.finish(job, spools.error_answer(job.path, "no image"))
    kept = files_in(spool / "failed")
    assert kept == sorted([f"{job.name}.json", f"{job.name}/a.png"])
    assert json.loads((spool / "failed" / kept[0]).read_bytes())["reason"] == "no image"
    assert files_in(spool / "tries") == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"path": 3}', b'{"path": ""}', b'{"path": "not/absolute"}', b"\xff\xfe",
     b'{"path": "/a\\u0000b"}', b'{"path": "/' + b"x" * 70000 + b'"}', b"[" * 60000],
)  # fmt: skip
@pytest.mark.parametrize("name", ["good-name.job", "strange näme\n$(x).job", ".job.job"])
def test_bad_tickets(spool: Path, content: bytes, name: str) -> None:
    if name.startswith("."):
        name = "-" + name
    drop(spool, name, content)
    good = submit(spool, "/good.png")
    work(Queue(str(spool)))
    found = answers(spool)
    assert sorted(answer["status"] for answer in found) == ["error", "ok"]
    (bad,) = [answer for answer in found if answer["status"] == "error"]
    assert bad["reason"].startswith("bad_ticket: ")
    assert wait(spool, good)["status"] == "ok"
    assert len(files_in(spool / "failed")) == 2
    assert files_in(spool / "working") == files_in(spool / "incoming") == []
    if name == "good-name.job":
        assert wait(spool, "good-name") == bad


@posix
@pytest.mark.parametrize("suffix", [".png", ".job"])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_file(spool: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    path = spool / "incoming" / f"x{suffix}"
    target = tmp_path / "target"
    if kind == "link":
        target.write_bytes(b'{"path": "/x"}')
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_bytes(b"x")
    else:
        os.mkfifo(path)
    queue = Queue(str(spool))
    assert work(queue) == [f"x{suffix}"]
    (answer,) = answers(spool)
    assert answer["reason"].startswith("not_a_file: ")
    assert queue.is_empty()
    assert os.path.lexists(next((spool / "failed").glob("*/")) / f"x{suffix}")
    if kind == "link":
        assert target.read_bytes() == b'{"path": "/x"}'


@posix
@pytest.mark.parametrize("name", [b"a b'\";$(x)\n.png", b"\xff\xfe.png", b"x" * 250, b"-rf"])
def test_strange_names(spool: Path, name: bytes) -> None:
    (spool / "incoming" / os.fsdecode(name)).write_bytes(b"picture")
    assert work(Queue(str(spool))) == [os.fsdecode(name)]
    (answer,) = answers(spool)
    assert answer["status"] == "ok"
    assert os.fsencode(Path(answer["input"]).name) == name


def test_two_workers_never_take_the_same(spool: Path) -> None:
    for number in range(300):
        drop(spool, f"{number}.png")
    queues = [Queue(str(spool), number) for number in range(4)]
    taken: list[list[Job]] = [[] for _ in queues]
    ready = threading.Barrier(len(queues))

    def run(number: int) -> None:
        ready.wait()
        taken[number] = take_all(queues[number])

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(queues))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = [job.entry for jobs in taken for job in jobs]
    assert sorted(entries) == sorted({f"{number}.png" for number in range(300)})


def test_a_ticket_of_the_same_name_again(spool: Path) -> None:
    """Such as cron's: the second waits for the first, and its answer is its own."""
    for queue in (Queue(str(spool), 0), Queue(str(spool), 1)):
        drop(spool, "same.job", b'{"path": "/first"}')
        first = queue.next()
        assert first is not None
        drop(spool, "same.job", b'{"path": "/second"}')
        assert queue.next() is None
        assert Queue(str(spool), 2).next() is None
        queue.begin(first)
        queue.finish(first, {**OK, "input": first.path})
        assert wait(spool, "same")["input"] == "/first"
        second = queue.next()
        assert second is not None
        assert spools.read_answer(str(spool), "same") is None
        queue.finish(second, {**OK, "input": second.path})
        assert wait(spool, "same")["input"] == "/second"


# ---- death -------------------------------------------------------------------------------------


class Died(BaseException):
    """Instead of kill -9: no call does anything any more."""


CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "open", "write", "fsync")


def die_at(monkeypatch: pytest.MonkeyPatch, moment: int, *, behind: bool) -> Callable[[], int]:
    """Let the process die before or behind so many calls of the system."""
    count = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count > moment or (count == moment and not behind):
                raise Died
            result = real(*arguments, **more)
            if count == moment:
                raise Died
            return result

        return call

    for name in CALLS:
        monkeypatch.setattr(spools.os, name, deadly(getattr(os, name)))
    return lambda: count


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_death_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool, keep: bool
) -> None:
    deaths = 0
    for moment in range(1, 1000):
        spool = Path(prepare(tmp_path / str(moment)))
        queue = Queue(str(spool), keep=keep)
        job = submit(spool, "/there.png")
        drop(spool, "good.png")
        drop(spool, "bad.job")
        with monkeypatch.context() as patch:
            count = die_at(patch, moment, behind=behind)
            try:
                work(queue)
            except Died:
                deaths += 1
            n_calls = count()
        stored = {path.name: path.stat().st_ino for path in (spool / "answers").glob("[!.]*")}
        again = Queue(str(spool), keep=keep)
        again.recover()
        work(again)
        # What was answered is not answered again.
        now = {path.name: path.stat().st_ino for path in (spool / "answers").glob("[!.]*")}
        assert stored.items() <= now.items()
        assert sorted(answer["status"] for answer in answers(spool)) == ["error", "ok", "ok"]
        assert wait(spool, job)["status"] == "ok"
        last = Queue(str(spool), keep=keep)
        assert last.recover() == 0
        assert last.is_empty()
        assert work(last) == []
        left = [path for path in files_in(spool) if not Path(path).name.startswith(".")]
        assert sorted(path.split("/")[0] for path in left) == sorted(
            ["answers"] * 3 + ["failed"] * 2 + ["done"] * keep
        )
        if n_calls < moment:
            break
    assert deaths > 30


@pytest.mark.parametrize("behind", [False, True])
def test_death_of_who_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """A ticket is there or not, never a half."""
    states = set()
    for moment in range(1, 20):
        spool = Path(prepare(tmp_path / str(moment)))
        with monkeypatch.context() as patch:
            die_at(patch, moment, behind=behind)
            try:
                submit(spool, "/x.png")
                done = True
            except Died:
                done = False
        queue = Queue(str(spool))
        n_found = len(work(queue))
        assert n_found == 1 if done else n_found <= 1
        assert all(answer["status"] == "ok" for answer in answers(spool))
        states.add((done, n_found))
    assert (False, 0) in states
    assert (True, 1) in states


def test_what_kills_three_times_is_given_up(spool: Path) -> None:
    for name in ("before.png", "deadly.png", "behind.png"):
        drop(spool, name)
        time.sleep(0.02)
    begun: list[str] = []
    for _ in range(10):
        queue = Queue(str(spool))
        queue.recover()
        while (job := queue.suspect() or queue.next()) is not None:
            if job.wrong is None:
                queue.begin(job)
                begun.append(job.entry)
                if job.entry == "deadly.png":
                    break  # killed
            wrong = job.wrong
            answer = spools.error_answer(job.path, wrong) if wrong else {**OK, "input": job.path}
            queue.finish(job, answer)
    assert begun.count("deadly.png") == 3
    assert begun.count("before.png") == begun.count("behind.png") == 1
    assert sorted(answer["status"] for answer in answers(spool)) == ["error", "ok", "ok"]
    (reason,) = [answer["reason"] for answer in answers(spool) if answer["status"] == "error"]
    assert reason.startswith("worker_died: 3 times")
    assert any(path.endswith("/deadly.png") for path in files_in(spool / "failed"))
    assert files_in(spool / "tries") == []


def test_a_try_that_does_not_count(spool: Path) -> None:
    drop(spool, "x.png")
    queue = Queue(str(spool))
    for _ in range(5):
        job = queue.suspect() or queue.next()
        assert job is not None
        assert job.wrong is None
        queue.begin(job)
        queue.put_back(job, blameless=True)
    assert not queue.has_suspects
    for _ in range(3):
        job = queue.suspect() or queue.next()
        assert job is not None
        assert job.wrong is None
        queue.begin(job)
        queue.put_back(job, blameless=False)
    job = queue.suspect()
    assert job is not None
    assert job.wrong is not None
    assert job.wrong.startswith("internal_error: 3 times")


def test_what_a_dead_colleague_had_claimed(spool: Path) -> None:
    drop(spool, "x.png")
    colleague = Queue(str(spool), 1)
    lock = worker_lock(str(spool), 1)
    assert lock.acquire(wait=False)
    job = colleague.next()
    assert job is not None
    colleague.begin(job)
    queue = Queue(str(spool), 0)
    assert queue.recover() == 0  # it lives
    lock.release()
    assert queue.recover() == 1
    assert queue.recover() == 0
    assert work(queue) == ["x.png"]
    assert len(answers(spool)) == 1


# ---- tidiness ----------------------------------------------------------------------------------


def test_old_answers_go(spool: Path) -> None:
    old, new = submit(spool, "/old.png"), submit(spool, "/new.png")
    queue = Queue(str(spool))
    work(queue)
    (spool / "incoming" / ".dead.part").write_bytes(b"x")
    (spool / "incoming" / ".coming.part").write_bytes(b"x")
    (spool / "incoming" / ".others").write_bytes(b"x")
    long_ago = time.time() - 2 * spools.KEPT_SECONDS
    for path in (f"answers/{old}.json", "incoming/.dead.part", "incoming/.others"):
        os.utime(spool / path, (long_ago, long_ago))
    assert queue.prune() == 2
    assert files_in(spool) == sorted(
        [f"answers/{new}.json", "incoming/.coming.part", "incoming/.others"]
    )


def test_a_full_folder_is_taken_in_parts(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "BATCH", 7)
    for number in range(40):
        drop(spool, f"{number}.png")
    queue = Queue(str(spool))
    assert len(queue._listed()) == 7
    assert len(work(queue)) == 40
    assert spools.counts(str(spool)) == {"incoming": 0, "working": 0, "answers": 40, "failed": 0}


def test_the_disk_is_full(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(spool, "x.png")
    queue = Queue(str(spool))
    job = queue.next()
    assert job is not None

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spools.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            queue.finish(job, OK)
        with pytest.raises(WriteError, match="No space left"):
            submit(spool, "/y.png")
    assert files_in(spool) == [f"working/0/{job.name}/x.png"]
    queue.finish(job, OK)
    assert files_in(spool) == [f"answers/{job.name}.json"]
