"""The spool: a folder in which pictures wait, are claimed, and get their answers; nothing is lost.

::

    SPOOL/                    private to the user
        incoming/NAME         a picture, dropped by renaming it into the folder
        incoming/JOB.job      a ticket: JSON {"path": "/where/the/picture/is"}
        working/N/JOB/NAME    claimed by worker number N, by renaming
        tries/JOB             a byte for each time that work on it began
        answers/JOB.json      exactly one for each job, kept for a day
        failed/JOB/NAME       what could not be predicted; failed/JOB.json says why
        done/JOB/NAME         dropped pictures that are predicted, with ``serve --keep``
        worker-N.lock         locked while worker number N lives
        serve.json            the settings of the worker
        socket                where its worker is listening, if the system has such sockets

Every step is one rename, so that a process may be killed at any moment: what it had claimed and
not answered is found in ``working`` by the next. Names that begin with a dot are not looked at:
write under such a name and rename.
"""

# pathlib would cost each of twenty waiting hooks a megabyte:
# ruff: noqa: PTH100, PTH102, PTH103, PTH104, PTH105, PTH106, PTH108, PTH110, PTH112, PTH116, PTH117, PTH118, PTH119, PTH123, PTH208

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any

from engine.slots import FileLock, is_private

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Job", "Queue", "prepare", "submit", "wait", "worker_lives"]

INCOMING, WORKING, TRIES, ANSWERS = "incoming", "working", "tries", "answers"
FAILED, DONE = "failed", "done"
FOLDERS = (INCOMING, WORKING, TRIES, ANSWERS, FAILED)
SETTINGS_FILE, SOCKET = "serve.json", "socket"
TICKET = ".job"

MOST_TRIES = 3
"""So often may work on a job begin and end with the death of the worker."""

KEPT_SECONDS = 86400.0
"""Age at which answers, and files that were never finished, are removed."""

MOST_WORKERS = 64
LONGEST_TICKET = 65536
LONGEST_JOB = 120
# Names that are held in memory; the rest of a full folder waits until these are done.
BATCH = 4096
_JOB_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

# How often an answer is looked for where no socket tells of it.
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.02, 0.25
_SOCKET_SECONDS = 5.0


def prepare(spool: str | os.PathLike[str]) -> str:
    """Make a spool, or check that one is as it should be.

    Parameters
    ----------
    spool : str or PathLike
        The folder; made if missing.

    Returns
    -------
    str
        Its absolute path.

    Raises
    ------
    WriteError
        It cannot be made or written, or others than this user may write to it.
    """
    folder = os.path.abspath(os.fspath(spool))
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        for name in ("", *FOLDERS):
            path = os.path.join(folder, name) if name else folder
            # Without the right to make it, it is enough that it is there.
            if name and not os.path.isdir(path):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
            if not is_private(path):
                raise PermissionError(0, "other users may write to it, or it is a link")
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(0, "it cannot be written to")
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error
    return folder


def _unusable(folder: str, error: OSError | ValueError) -> Exception:
    from engine.errors import WriteError

    reason = error.strerror if isinstance(error, OSError) else str(error)
    return WriteError(
        folder,
        f"is no spool that can be used ({reason}); expected a folder that this user owns and no "
        "other may write to: choose another, or chmod 700 it",
    )


def new_job() -> str:
    """Make the name of a job: unique, and sorted by time.

    Returns
    -------
    str
        Letters, digits and hyphens.
    """
    return f"{time.time_ns():016x}-{os.getpid():x}-{os.urandom(4).hex()}"


def submit(spool: str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """Hand a picture over: when this returns, the ticket is on the disk.

    Parameters
    ----------
    spool : str or PathLike
        The folder; made if missing.
    path : str or PathLike
        The picture, which stays where it is and must stay there until it is answered.

    Returns
    -------
    str
        The job, for `wait`.

    Raises
    ------
    WriteError
        The spool cannot be written, or is open to others.
    """
    folder = prepare(spool)
    job = new_job()
    ticket = {"path": os.path.abspath(os.fspath(path))}
    try:
        write_file(os.path.join(folder, INCOMING), job + TICKET, json.dumps(ticket).encode())
    except OSError as error:
        raise _unusable(folder, error) from error
    return job


def write_file(folder: str, name: str, data: bytes) -> None:
    """Write a private file that has its name only when it is whole and on the disk.

    Parameters
    ----------
    folder, name : str
        Where to; a file of that name is replaced.
    data : bytes
        The whole content.

    Raises
    ------
    OSError
        Then nothing is left behind.
    """
    temporary = os.path.join(folder, f".{new_job()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, os.path.join(folder, name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_answer(spool: str, job: str) -> dict[str, Any] | None:
    """Return the answer of a job, or None if there is none yet.

    Parameters
    ----------
    spool : str
        The folder.
    job : str
        From `submit`.

    Returns
    -------
    dict or None
        As `engine.prediction.Prediction.to_json` makes it.
    """
    try:
        with open(os.path.join(spool, ANSWERS, f"{job}.json"), "rb") as stream:
            answer = json.loads(stream.read())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def is_job(text: object) -> bool:
    """Say whether a text can be the name of a job: it becomes the name of files.

    Parameters
    ----------
    text : object
        What was read somewhere.

    Returns
    -------
    bool
        True for 1 to 120 letters, digits, dots, hyphens and underscores, no dot in front.
    """
    return (
        isinstance(text, str)
        and 0 < len(text) <= LONGEST_JOB
        and text[0] != "."
        and _JOB_SIGNS.issuperset(text)
    )


def wait(
    spool: str | os.PathLike[str], job: str, *, timeout: float | None = None
) -> dict[str, Any]:
    """Wait for the answer of a job.

    Parameters
    ----------
    spool : str or PathLike
        The folder.
    job : str
        From `submit`.
    timeout : float, optional
        Seconds; default: for ever.

    Returns
    -------
    dict
        As `engine.prediction.Prediction.to_json` makes it.

    Raises
    ------
    TimeoutError
        No answer came in that time; the job stays in the spool.
    ValueError
        That is no job.
    """
    if not is_job(job):
        raise ValueError(f"{job!r} is not the name of a job; give what submit returned")
    folder = os.path.abspath(os.fspath(spool))
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        answer = await_answer(
            folder, job, 3600.0 if end is None else max(end - time.monotonic(), 0.0)
        )
        if answer is not None:
            return answer
        if end is not None and time.monotonic() >= end:
            raise TimeoutError(f"no answer for job {job} in {timeout} s; it stays in the spool")


def await_answer(spool: str, job: str, seconds: float) -> dict[str, Any] | None:
    """Return the answer if it comes in that time; where a worker listens, it tells at once."""
    end = time.monotonic() + seconds
    pause = _FIRST_LOOK_SECONDS
    while True:
        answer = read_answer(spool, job)
        left = end - time.monotonic()
        if answer is not None or left <= 0:
            return answer
        # What comes by the socket is only the news: the file is the answer.
        if not _told(spool, {"job": job}, min(left, _SOCKET_SECONDS)):
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LAST_LOOK_SECONDS)


def _told(spool: str, message: dict[str, str], seconds: float) -> bool:
    """Send a line to the worker and wait for its line; False if it cannot be asked."""
    path = os.path.join(spool, SOCKET)
    if not os.path.exists(path):
        return False
    import socket

    if not hasattr(socket, "AF_UNIX"):
        return False
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(path)
        connection.sendall(json.dumps(message).encode() + b"\n")
        return bool(connection.recv(1))
    return False


def worker_lock(spool: str, number: int) -> FileLock:
    """Return the lock that worker number so-and-so holds while it lives.

    Parameters
    ----------
    spool : str
        The folder.
    number : int
        From 0 on.

    Returns
    -------
    FileLock
        Not held.
    """
    return FileLock(os.path.join(spool, f"worker-{number}.lock"))


def worker_lives(spool: str | os.PathLike[str]) -> bool:
    """Say whether a worker is there for a spool.

    Parameters
    ----------
    spool : str or PathLike
        The folder.

    Returns
    -------
    bool
        True if a process holds one of its locks.
    """
    folder = os.fspath(spool)
    for name in os.listdir(folder):
        if name.startswith("worker-") and name.endswith(".lock"):
            lock = FileLock(os.path.join(folder, name))
            try:
                if not lock.acquire(wait=False):
                    return True
            except OSError:
                continue
            lock.release()
    return False


def never_started(spool: str) -> Exception:
    """Make the error for a spool of which nobody knows what is to be done in it.

    Parameters
    ----------
    spool : str
        The folder.

    Returns
    -------
    WriteError
        To be raised.
    """
    from engine.errors import WriteError

    error = WriteError(
        spool,
        f"no worker was ever started here, so there is no {SETTINGS_FILE} that says which heads "
        f"are asked; start python -m engine.serve {spool} with the options wanted, once",
    )
    # The cause decides about the exit code: the command line is wrong, nothing was done.
    error.__cause__ = FileNotFoundError(2, "No such file or directory")
    return error


def error_answer(path: str, reason: str) -> dict[str, Any]:
    """Make the answer for a job that came to nothing.

    Parameters
    ----------
    path : str
        What was to be predicted.
    reason : str
        Code and sentence.

    Returns
    -------
    dict
        With the keys of `engine.prediction.Prediction.to_json`.
    """
    return {
        "input": path,
        "status": "error",
        "reason": reason,
        "heads": {},
        "backbone": "",
        "milliseconds": 0.0,
    }


# ---- the worker's side -------------------------------------------------------------------------


class Job:
    """One picture, claimed.

    Attributes
    ----------
    name : str
        Its answer is ``answers/NAME.json``.
    path : str
        The picture.
    wrong : str or None
        Why there is nothing to predict: ``"code: sentence"``.
    tries : int
        How often work on it has begun.
    """

    __slots__ = ("entry", "folder", "name", "path", "tries", "wrong")

    def __init__(self, name: str, folder: str, entry: str, tries: int) -> None:
        self.name = name
        self.folder = folder
        self.entry = entry
        self.tries = tries
        self.wrong: str | None = None
        self.path = os.path.join(folder, entry)
        if not stat.S_ISREG(os.lstat(self.path).st_mode):
            self.wrong = "not_a_file: a link, folder or device; rename a picture into incoming/"
        elif self.is_ticket:
            try:
                self.path = _ticket_path(self.path)
            except (OSError, ValueError) as error:
                self.wrong = f"bad_ticket: {error}; expected " + '{"path": "/path/of/the/picture"}'

    @property
    def is_ticket(self) -> bool:
        """Whether the picture is elsewhere, and not the spool's own."""
        return self.entry.endswith(TICKET)


def _ticket_path(path: str) -> str:
    with open(path, "rb") as stream:
        data = stream.read(LONGEST_TICKET + 1)
    if len(data) > LONGEST_TICKET:
        raise ValueError(f"longer than {LONGEST_TICKET} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    given = found.get("path") if isinstance(found, dict) else None
    if not isinstance(given, str) or not given or "\0" in given:
        raise ValueError("names no path")
    if not os.path.isabs(given):
        raise ValueError("the path is not absolute")
    return given


class Queue:
    """The spool as a worker sees it, who holds the lock of its number.

    Parameters
    ----------
    spool : str
        The folder, from `prepare`.
    number : int
        The worker's.
    keep : bool
        Move dropped pictures to ``done`` when they are answered; else they are removed.
    """

    def __init__(self, spool: str, number: int = 0, *, keep: bool = False) -> None:
        self.spool = spool
        self.keep = keep
        self._mine = self._in(WORKING, str(number))
        self._number = number
        os.makedirs(self._mine, 0o700, exist_ok=True)
        if keep:
            os.makedirs(self._in(DONE), 0o700, exist_ok=True)
        self._names: list[str] = []
        # Found in `working` after a death: first those that may have been the cause of it.
        self._suspects: list[Job] = []
        self._again: list[Job] = []

    def _in(self, *names: str) -> str:
        return os.path.join(self.spool, *names)

    # -- finding work --

    def recover(self) -> int:
        """Take what workers that died have left unfinished, and tidy up behind them.

        To be called while nothing is in hand: what is in ``working`` is taken for unfinished.

        Returns
        -------
        int
            Number of jobs that are to be done again.
        """
        found = self._recover_from(self._mine)
        for name in os.listdir(self._in(WORKING)):
            folder = self._in(WORKING, name)
            if folder == self._mine or not name.isascii() or not name.isdigit():
                continue
            if not os.path.isdir(folder) or not os.listdir(folder):
                continue
            other = worker_lock(self.spool, int(name))
            with contextlib.suppress(OSError):
                if other.acquire(wait=False):
                    try:
                        for job in os.listdir(folder):
                            os.rename(os.path.join(folder, job), os.path.join(self._mine, job))
                            found += self._recover_one(os.path.join(self._mine, job))
                    finally:
                        other.release()
        return found

    def _recover_from(self, folder: str) -> int:
        known = {job.folder for job in (*self._suspects, *self._again)}
        paths = (os.path.join(folder, name) for name in sorted(os.listdir(folder)))
        return sum(self._recover_one(path) for path in paths if path not in known)

    def _recover_one(self, folder: str) -> int:
        name = os.path.basename(folder)
        try:
            entries = os.listdir(folder)
        except OSError:
            return 0
        if not entries:
            # Died between making the folder and renaming into it, or behind the last step.
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            return 0
        try:
            job = Job(name, folder, entries[0], self._tries(name))
        except OSError:
            return 0
        answer = read_answer(self.spool, name)
        if answer is not None:
            self._put_away(job, str(answer.get("status")))
            return 0
        if job.tries >= MOST_TRIES:
            job.wrong = f"worker_died: {job.tries} times while working on it; look at the file"
        if job.tries:
            self._suspects.append(job)
        else:
            self._again.append(job)
        return 1

    @property
    def has_suspects(self) -> bool:
        """Whether `suspect` has one."""
        return bool(self._suspects)

    def suspect(self) -> Job | None:
        """Return a job at which a worker died: to be worked on while nothing else is.

        Returns
        -------
        Job or None
            None: there is none.
        """
        return self._suspects.pop(0) if self._suspects else None

    def next(self) -> Job | None:
        """Claim the next job, roughly in the order in which they came.

        Returns
        -------
        Job or None
            None: there is none now.
        """
        if self._again:
            return self._again.pop(0)
        looked = False
        while True:
            while self._names:
                job = self._claim(self._names.pop())
                if job is not None:
                    return job
            if looked:
                return None
            looked = True
            self._names = self._listed()

    def is_empty(self) -> bool:
        """Say whether nothing is to be done.

        Returns
        -------
        bool
            What other workers have in hand does not count.
        """
        if self._suspects or self._again or self._names:
            return False
        return not has_incoming(self.spool)

    def _listed(self) -> list[str]:
        """Return names in `incoming`, the oldest last."""
        import heapq

        def ages() -> Iterator[tuple[int, str]]:
            with os.scandir(self._in(INCOMING)) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        with contextlib.suppress(OSError):
                            # Of the inode: when it was renamed into the folder (Windows: made).
                            yield entry.stat(follow_symlinks=False).st_ctime_ns, entry.name

        return [name for _, name in reversed(heapq.nsmallest(BATCH, ages()))]

    def _claim(self, entry: str) -> Job | None:
        source = self._in(INCOMING, entry)
        name = entry.removesuffix(TICKET)
        if not entry.endswith(TICKET) or not is_job(name):
            name = new_job()
        elif self._is_at_work(name):
            return None  # a ticket of the same name: its turn comes when that one is done
        folder = os.path.join(self._mine, name)
        try:
            os.mkdir(folder, 0o700)
            with contextlib.suppress(FileNotFoundError):
                # Of an earlier ticket of this name: it would be taken for this one's.
                os.unlink(self._in(ANSWERS, f"{name}.json"))
            os.rename(source, os.path.join(folder, entry))
            return Job(name, folder, entry, self._tries(name))
        except OSError:
            # Another worker was faster, or (Windows) somebody has it open: later, if it is there.
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            return None

    def _is_at_work(self, name: str) -> bool:
        working = self._in(WORKING)
        return any(os.path.exists(os.path.join(working, n, name)) for n in os.listdir(working))

    # -- doing it --

    def begin(self, job: Job) -> None:
        """Note that work on a job begins, for whoever comes after a death.

        Parameters
        ----------
        job : Job
            From `next` or `suspect`.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        descriptor = os.open(self._in(TRIES, job.name), flags, 0o600)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)
        job.tries += 1

    def put_back(self, job: Job, *, blameless: bool) -> None:
        """Leave a job for later.

        Parameters
        ----------
        job : Job
            Claimed, not finished.
        blameless : bool
            Whatever stopped it was not its fault: this try does not count.
        """
        if blameless:
            with contextlib.suppress(OSError):
                os.truncate(self._in(TRIES, job.name), max(job.tries - 1, 0))
            job.tries = max(job.tries - 1, 0)
            (self._suspects if job.tries else self._again).append(job)
            return
        if job.tries >= MOST_TRIES:
            job.wrong = f"internal_error: {job.tries} times while working on it; look at the file"
        self._suspects.append(job)

    def finish(self, job: Job, answer: dict[str, Any]) -> None:
        """Store the answer of a job, then put away what it was about.

        Parameters
        ----------
        job : Job
            Claimed.
        answer : dict
            Has ``status``: with ``"error"``, a dropped picture goes to ``failed``.

        Raises
        ------
        OSError
            The answer cannot be stored; then the job is still in hand.
        """
        data = json.dumps(answer).encode() + b"\n"
        write_file(self._in(ANSWERS), f"{job.name}.json", data)
        self._put_away(job, str(answer.get("status")))

    def _put_away(self, job: Job, status: str) -> None:
        """Behind a stored answer; may be done again after a death in its middle."""
        failed = job.wrong is not None or (status == "error" and not job.is_ticket)
        with contextlib.suppress(OSError):
            os.unlink(self._in(TRIES, job.name))
        with contextlib.suppress(OSError):
            if failed:
                with open(self._in(ANSWERS, f"{job.name}.json"), "rb") as stream:
                    write_file(self._in(FAILED), f"{job.name}.json", stream.read())
                _move(job.folder, self._in(FAILED, job.name))
            elif self.keep and not job.is_ticket:
                _move(job.folder, self._in(DONE, job.name))
            else:
                os.unlink(os.path.join(job.folder, job.entry))
                os.rmdir(job.folder)

    def _tries(self, name: str) -> int:
        try:
            return os.stat(self._in(TRIES, name)).st_size
        except OSError:
            return 0

    def prune(self, seconds: float = KEPT_SECONDS) -> int:
        """Remove answers that nobody will ask for any more, and files that were never finished.

        Parameters
        ----------
        seconds : float
            From this age on.

        Returns
        -------
        int
            Number of files removed.
        """
        before = time.time() - seconds
        removed = 0
        for folder in (ANSWERS, INCOMING, FAILED, "."):
            with os.scandir(self._in(folder)) as entries:
                for entry in entries:
                    unfinished = entry.name.startswith(".") and entry.name.endswith(".part")
                    if not unfinished and folder != ANSWERS:
                        continue
                    with contextlib.suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_mtime >= before:
                            continue
                        if not self._is_at_work(entry.name.removesuffix(".json")):
                            os.unlink(entry.path)
                            removed += 1
        return removed


def _move(source: str, to: str) -> None:
    """Move a folder; what stands there already keeps its name."""
    if os.path.lexists(to):
        to = f"{to}.{new_job()}"
    os.rename(source, to)


def has_incoming(spool: str) -> bool:
    """Say whether something waits to be claimed.

    Parameters
    ----------
    spool : str
        The folder.

    Returns
    -------
    bool
        Names that begin with a dot do not count.
    """
    with os.scandir(os.path.join(spool, INCOMING)) as entries:
        return any(not entry.name.startswith(".") for entry in entries)


def counts(spool: str) -> dict[str, int]:
    """Count what is in a spool.

    Parameters
    ----------
    spool : str
        The folder, from `prepare`.

    Returns
    -------
    dict
        ``incoming``, ``working``, ``answers``, ``failed``.
    """

    def count(folder: str, suffix: str = "") -> int:
        with os.scandir(folder) as entries:
            return sum(not e.name.startswith(".") and e.name.endswith(suffix) for e in entries)

    working = os.path.join(spool, WORKING)
    return {
        "incoming": count(os.path.join(spool, INCOMING)),
        "working": sum(count(os.path.join(working, number)) for number in os.listdir(working)),
        "answers": count(os.path.join(spool, ANSWERS), ".json"),
        "failed": count(os.path.join(spool, FAILED), ".json"),
    }
