"""Command ``python -m engine.serve``: the resident worker, which empties a spool."""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engine import spool as spools
from engine.answers import INTERNAL
from engine.cli import EXIT_DONE, EXIT_SIGNAL, check_files, command_line, count_up_to, report, run
from engine.errors import REFUSALS, BackboneError, WriteError
from engine.slots import EngineSlot, FileLock, engine_slot

if TYPE_CHECKING:
    from types import FrameType

    from engine.worker import Settings

__all__ = ["Kept", "Server", "Workman", "main", "parser", "stand_in"]

MOST_IDLE_SECONDS = 7 * 86400
# How often `incoming` is looked into: behind work, and where nothing came for long. Whoever comes
# by the socket wakes the worker at once.
_BUSY_SECONDS, _IDLE_SECONDS = 0.05, 0.5
_TIDY_SECONDS, _RECOVER_SECONDS = 600.0, 5.0
# How often a worker that leaves tries to come back for a picture.
_MOST_LOOKS = 5
# Where results cannot be stored: how long until it is tried again.
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 1.0, 60.0

# A job at which a worker died is tried alone, and when nothing else waits or so many others are
# done: so whatever kills workers at random does not meet the same job again and again.
_BETWEEN_SUSPECTS = 50

# Pictures that are predicted before their results are sent.
_MOST_UNSENT = 16

MOST_CLIENTS = 64
LONGEST_REQUEST = 65536
CLIENT_SECONDS = 5.0
"""Time to say what is wanted, and to take the answer; between them a client may wait for ever."""
# sun_path: 108 bytes on Linux, 104 elsewhere
LONGEST_SOCKET_PATH = 96
NEW_SOCKET_SUFFIX = ".new"

#: Not the fault of a picture: the disk is full or gone, a share was lost or its rights were
#: changed, or the system is short of something. What Windows says of one file that somebody has
#: open (EACCES) is not meant.
_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENODEV", "ESTALE", "EMFILE", "ENFILE", "ENOMEM"),
        *("ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ENOLCK"),
        *(("EACCES", "EPERM") if os.name == "posix" else ()),
    )
    if hasattr(errno, name)
)

DESCRIPTION = """\
Work for PACS hooks: loads the heads once and answers for every picture that comes into the folder
SPOOL, until it is stopped. A hook renames a picture into SPOOL/incoming/, or names one by
python -m engine.predict FILE --spool SPOOL. Nothing is lost when it is killed: what was not
answered is done by the next. Research use only."""

EPILOG = """\
examples:
  python -m engine.serve /srv/hilum/spool --head chest.safetensors --output-dir /srv/hilum/results
      writes the settings into SPOOL/serve.json; later starts need the folder only
  python -m engine.serve /srv/hilum/spool --idle 300
      ends when nothing came for five minutes; for hooks that start it after each hand-over
  python -m engine.serve /srv/hilum/spool --status
      counts as JSON: incoming, working, answers, failed, dead_letters, and whether a worker lives

the folder:
  incoming/   pictures to predict; write under a name with a dot in front, then rename
  answers/    one JSON a picture, kept for a day
  failed/     pictures that could not be read, each with a JSON that says why: look at them
  A picture in incoming/ is the spool's own copy: it is removed when its result is stored.
  SPOOL belongs to one user; a folder that others may write to is refused.

Several may be started on one folder: so many as --engines says work, the others wait."""


class Workman(Protocol):
    """What a server needs of `engine.worker.Worker`."""

    @property
    def heads(self) -> object:
        """The heads, loaded if they are not yet, and the network with them."""

    def judge_many(self, paths: Iterable[str]) -> Iterator[Any]:
        """Yield the predictions for files, in their order, results written."""

    def deliver(self, prediction: Any) -> Any:
        """Send results to where they are wanted; return the prediction that says so."""

    def close(self) -> object:
        """Let go of everything."""


class Server:
    """A worker on a spool: claims, answers, stores, and tells those who listen.

    Parameters
    ----------
    spool : str
        The folder, from `engine.spool.prepare`.
    lock : FileLock
        Of this worker's number, held.
    number : int
        The worker's.
    workman : Workman
        Does the work.
    engines : int
        Engines of this user at work at a time; 0: no bound.
    keep : bool
        Keep dropped pictures in ``done``.
    output_dir : str, optional
        Where results go: if it is not there, no picture is to blame.
    sends : bool
        Results are sent somewhere, which may take long: nothing is predicted meanwhile, and the
        slot is free for others.
    patient : bool
        When results cannot be stored, wait and try again; else the error is raised.
    say : callable, optional
        Told what happens, in a line without names.
    """

    def __init__(
        self,
        spool: str,
        lock: FileLock,
        number: int,
        workman: Workman,
        *,
        engines: int = 1,
        keep: bool = False,
        output_dir: str | None = None,
        sends: bool = False,
        patient: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.spool = spool
        self.stopping = False
        self._lock = lock
        self._number = number
        self._workman = workman
        self._engines = engines
        self._output_dir = output_dir
        self._sends = sends
        self._patient = patient
        self._say = say or (lambda _line: None)
        self._queue = spools.Queue(spool, number, keep=keep)
        self._n_done = 0
        self._pause = 0.0
        self._waits_for_slot = False
        self._next_suspect = _BETWEEN_SUSPECTS
        # Written to by the socket's thread, so that the worker does not sleep on.
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._listener: _Listener | None = None
        self._listen()
        found = self._queue.recover()
        if found:
            self._say(f"found {found} unfinished")

    def _listen(self) -> None:
        if self._number == 0:
            self._listener = _Listener.open(self.spool, self._ringer, self._say)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def close(self) -> None:
        """Let go of everything, the lock last."""
        self._stop_listening()
        self._workman.close()
        self._lock.release()
        self._bell.close()
        self._ringer.close()

    def leave(self) -> bool:
        """Free the lock, unless a picture came in the last moment.

        A hook drops its picture first and looks for a worker then. So whatever was dropped before
        the lock was free is seen here, and whoever drops later finds the lock free.

        Returns
        -------
        bool
            False: there is something to do, and the lock is held again.
        """
        self._stop_listening()
        self._lock.release()
        for _ in range(_MOST_LOOKS):
            if not spools.has_incoming(self.spool):
                return True
            if self._lock.acquire(wait=False):
                self._listen()
                return False
            # Another worker has it; or somebody only looked whether one lives, and has let go.
            time.sleep(_BUSY_SECONDS)
        return True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return self._queue.is_empty()

    def prepare(self) -> None:
        """Load everything, when it is this worker's turn."""
        with self._slot() as slot:
            if slot is not None:
                _ = self._workman.heads

    def drain(self) -> Iterator[None]:
        """Work until nothing is to be done; yield behind each answer that is stored.

        Yields
        ------
        None
            A moment at which nothing is lost if it is the last.

        Raises
        ------
        EngineError
            The heads cannot be loaded. Or, for one that is not patient, results cannot be stored.
        """
        if self._queue.is_empty():
            return
        with self._slot() as slot:
            if slot is not None:
                # Before anything is claimed: heads that cannot be loaded are no picture's fault.
                _ = self._workman.heads
            while slot is not None and not self.stopping:
                before = self._n_done
                paused = yield from self._work(slot, self._claims())
                due = self._n_done == before or self._n_done >= self._next_suspect
                job = self._queue.suspect() if due and not paused else None
                if job is not None:
                    paused = yield from self._work(slot, iter([job]))
                    self._next_suspect = self._n_done + _BETWEEN_SUSPECTS
                elif self._n_done == before and not self._queue.has_suspects:
                    return
                if paused:
                    return
                self._pause = 0.0
                self._waiting(lambda: slot.give_way() or slot.__enter__())

    @contextlib.contextmanager
    def _slot(self) -> Iterator[EngineSlot | None]:
        slot = engine_slot(self._engines, announce=self._say)
        try:
            entered = self._waiting(slot.__enter__)
            yield slot if entered else None
        finally:
            slot.release()

    def _waiting(self, take: Callable[[], object]) -> bool:
        """Wait for a turn; False if a signal ended that."""
        self._waits_for_slot = True
        try:
            if not self.stopping:
                take()
        except KeyboardInterrupt:
            if not self.stopping:
                raise
        finally:
            self._waits_for_slot = False
        return not self.stopping

    def stop(self) -> None:
        """End behind the picture in hand; for signal handlers.

        Raises
        ------
        KeyboardInterrupt
            Nothing is in hand, or this was asked for twice.
        """
        again, self.stopping = self.stopping, True
        with contextlib.suppress(OSError):
            self._ringer.send(b".")
        if again or self._waits_for_slot:
            raise KeyboardInterrupt

    def rest(self, seconds: float) -> None:
        """Sleep until a client comes by the socket.

        Parameters
        ----------
        seconds : float
            At most so long.
        """
        if self.stopping:
            return
        select.select([self._bell], [], [], max(seconds, self._pause))
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def tidy(self) -> None:
        """Remove old answers."""
        with contextlib.suppress(OSError):
            self._queue.prune()

    def recover(self) -> None:
        """Take over what other workers of this spool left when they died."""
        with contextlib.suppress(OSError):
            self._queue.recover()

    # -- pictures --

    def _claims(self) -> Iterator[spools.Job]:
        """Claim pictures until there is none, or it is a suspect's turn."""
        claimed = self._n_done
        while not (self._queue.has_suspects and claimed >= self._next_suspect):
            job = self._queue.next()
            if job is None:
                return
            yield job
            claimed += 1

    def _work(self, slot: EngineSlot, jobs: Iterator[spools.Job]) -> Generator[None, None, bool]:
        """Answer for pictures on all streams; the result says whether to pause."""
        hand: collections.deque[spools.Job] = collections.deque()
        judged: collections.deque[tuple[spools.Job, Any]] = collections.deque()

        def paths() -> Iterator[str]:
            for job in jobs:
                if job.wrong is None:
                    hand.append(job)
                    self._queue.begin(job)
                    yield job.path
                else:
                    self._refuse(job)
                many = self._sends and len(hand) + len(judged) >= _MOST_UNSENT
                if self.stopping or many or slot.wanted():
                    return

        predictions = self._workman.judge_many(paths())
        try:
            for prediction in predictions:
                answer = prediction.to_json()
                if _code(answer) == INTERNAL and hand[0].tries < spools.MOST_TRIES:
                    # It may have been the fault of the moment.
                    self._queue.put_back(hand.popleft(), blameless=False)
                    self._say("internal error at a picture: again, alone")
                    continue
                if self._sends:
                    judged.append((hand[0], prediction))
                else:
                    self._store(hand[0], answer)
                hand.popleft()
                yield
            if judged:
                slot.release()
            while judged and not self.stopping:
                job, prediction = judged[0]
                self._store(job, self._workman.deliver(prediction).to_json())
                judged.popleft()
                yield
        except Exception as error:
            blamed = list(hand) or ([judged.popleft()[0]] if judged else [])
            hand.clear()
            return self._blame(error, blamed)
        finally:
            # Ends its threads: what they have in hand is put back behind that.
            del predictions
            for job in (*hand, *(job for job, _ in judged)):
                self._queue.put_back(job, blameless=True)
        return False

    def _refuse(self, job: spools.Job) -> None:
        self._store(job, spools.error_answer(job.path, job.wrong or ""))

    def _store(self, job: spools.Job, answer: dict[str, Any]) -> None:
        self._queue.finish(job, answer)
        self._n_done += 1
        if self._listener is not None:
            self._listener.tell(job.name)
        code = _code(answer)
        known = code in REFUSALS or code == INTERNAL or job.wrong is not None
        shown = f" {code}" if known else ""
        self._say(f"job {self._n_done}: {answer.get('status')}{shown} {answer['milliseconds']} ms")

    def _blame(self, error: Exception, jobs: Iterable[spools.Job]) -> bool:
        """Put jobs back after an error; say whether to pause, because none of them is to blame."""
        machine = self._is_machine(error)
        for job in jobs:
            self._queue.put_back(job, blameless=machine)
        if not machine:
            self._say(f"internal error {type(error).__name__}: each of these again, alone")
            return False
        if not self._patient:
            raise error
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE_SECONDS), _LAST_PAUSE_SECONDS)
        self._say(f"cannot store results: tries again in {self._pause:.0f} s")
        return True

    def _is_machine(self, error: Exception) -> bool:
        if isinstance(error, BackboneError):
            return True
        if self._output_dir is not None and not os.path.isdir(self._output_dir):  # noqa: PTH112
            return True
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in _MACHINE:
                return True
            cause = cause.__cause__
        return False


def _code(answer: dict[str, Any]) -> str:
    return str(answer.get("reason") or "").partition(":")[0]


# ---- the socket --------------------------------------------------------------------------------


class _Client:
    """One connection: a line comes, an answer is awaited, a line goes."""

    __slots__ = ("coming", "deadline", "going", "job", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.coming = b""
        self.going = b""
        self.job: str | None = None
        self.deadline: float | None = time.monotonic() + CLIENT_SECONDS


class _Listener:
    """The spool's socket, in a thread of its own: no client can hold up the worker."""

    def __init__(
        self, spool: str, path: str, ringer: socket.socket, say: Callable[[str], None]
    ) -> None:
        self._spool = spool
        self._path = path
        self._ringer = ringer
        self._say = say
        self._told: collections.deque[str] = collections.deque(maxlen=4096)
        self._closing = False
        self._clients: dict[int, _Client] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        # Under another name until it listens. What stands there is of a worker that died: we have
        # the lock.
        new = path + NEW_SOCKET_SUFFIX
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # noqa: PTH108
        self._server = socket.socket(socket.AF_UNIX)
        previous = os.umask(0o177)
        try:
            self._server.bind(new)
        finally:
            os.umask(previous)
        self._server.listen(MOST_CLIENTS)
        os.replace(new, path)  # noqa: PTH105
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="hilum-socket", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls, spool: str, ringer: socket.socket, say: Callable[[str], None]
    ) -> _Listener | None:
        """Listen, or return None where that cannot be: hooks then look into the folder."""
        path = os.path.join(spool, spools.SOCKET)  # noqa: PTH118
        if not hasattr(socket, "AF_UNIX") or len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            return None
        try:
            return cls(spool, path, ringer, say)
        except OSError:
            return None

    def tell(self, job: str) -> None:
        """Say that the answer of a job is stored; from the worker's thread."""
        self._told.append(job)
        self._ring()

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        self._closing = True
        self._ring()
        self._thread.join(5.0)
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # noqa: PTH108
        for client in list(self._clients.values()):
            self._drop(client)
        self._selector.close()
        for one in (self._server, self._wake, self._waker):
            one.close()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b".")

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._closing:
            try:
                for key, _ in self._selector.select(0.25 if self._clients else None):
                    if key.fileobj is self._server:
                        self._accept()
                    elif key.fileobj is self._wake:
                        with contextlib.suppress(BlockingIOError):
                            self._wake.recv(4096)
                    else:
                        self._serve(self._clients[key.fd])
                told = {self._told.popleft() for _ in range(len(self._told))}
                now = time.monotonic()
                # Other workers of the spool tell nothing.
                look = now - looked > _IDLE_SECONDS
                looked = now if look else looked
                for client in list(self._clients.values()):
                    if client.job is not None and (look or client.job in told):
                        self._answer(client)
                    if client.deadline is not None and now > client.deadline:
                        self._drop(client)
            except Exception as error:
                self._say(f"socket: {type(error).__name__}")
                time.sleep(0.1)

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        connection.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS or not _is_same_user(connection):
            connection.close()
            return
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.socket.fileno(), None) is not None:
            self._selector.unregister(client.socket)
        client.socket.close()

    def _serve(self, client: _Client) -> None:
        try:
            if client.going:
                self._send(client)
                return
            data = client.socket.recv(LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or client.job is not None:
            # Gone, or it says more than its line.
            self._drop(client)
            return
        client.coming += data
        line, end, _ = client.coming.partition(b"\n")
        if len(line) > LONGEST_REQUEST:
            self._drop(client)
        elif end:
            self._understand(client, line)

    def _understand(self, client: _Client, line: bytes) -> None:
        client.coming = b""
        try:
            asked = json.loads(line)
            path = asked.get("path") if isinstance(asked, dict) else None
            job = asked.get("job") if isinstance(asked, dict) else None
            if isinstance(path, str) and os.path.isabs(path) and "\0" not in path:  # noqa: PTH117
                job = spools.submit(self._spool, path)
        except (ValueError, RecursionError, OSError):
            job = None
        if not spools.is_job(job):
            wanted = 'expected one line, {"path": "/absolute/path"} or {"job": "name"}'
            self._say_to(client, json.dumps({"error": wanted}).encode())
            return
        client.job = str(job)
        client.deadline = None
        with contextlib.suppress(OSError):
            self._ringer.send(b".")
        # The answer may have come before the question.
        self._answer(client)

    def _answer(self, client: _Client) -> None:
        answer = None if client.going else spools.read_answer(self._spool, str(client.job))
        if answer is not None:
            self._say_to(client, json.dumps(answer).encode())

    def _say_to(self, client: _Client, line: bytes) -> None:
        client.going = line + b"\n"
        client.deadline = time.monotonic() + CLIENT_SECONDS
        self._selector.modify(client.socket, selectors.EVENT_WRITE)
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            client.going = client.going[client.socket.send(client.going) :]
        except BlockingIOError:
            return
        except OSError:
            client.going = b""
        if not client.going:
            self._drop(client)


def _is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is this user's; the folder's rights say it elsewhere."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    _, user, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, option, 12))
    return bool(user == os.getuid())


# ---- settings ----------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What the worker of a spool was told to do, kept for later starts.

    Attributes
    ----------
    settings : Settings
        Paths in them absolute.
    engines : int
        Engines of this user at work at a time; 0: no bound.
    keep : bool
        Keep dropped pictures in ``done``.
    """

    settings: Settings
    engines: int = 1
    keep: bool = False


def read_settings(spool: str) -> Kept | None:
    """Read what the worker of a spool was told to do.

    Parameters
    ----------
    spool : str
        The folder.

    Returns
    -------
    Kept or None
        None if no worker was ever started.

    Raises
    ------
    WriteError
        The file is damaged.
    """
    from engine.worker import Settings

    path = os.path.join(spool, spools.SETTINGS_FILE)  # noqa: PTH118
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            found = json.loads(stream.read())
        settings = Settings.from_json(found["settings"])
        return Kept(settings, int(found["engines"]), bool(found["keep"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"is damaged ({error}); remove it and start engine.serve with its options"
        raise WriteError(path, message) from OSError(errno.EINVAL, str(error))


def write_settings(spool: str, kept: Kept) -> None:
    """Keep settings for later starts.

    Parameters
    ----------
    spool : str
        The folder.
    kept : Kept
        What is to be done.
    """
    content = {"engines": kept.engines, "keep": kept.keep, "settings": kept.settings.to_json()}
    data = json.dumps(content, indent=1).encode() + b"\n"
    spools.write_file(spool, spools.SETTINGS_FILE, data)


def stand_in(spool: str) -> Iterator[None]:
    """Be the worker of a spool where none lives, until the spool is empty.

    Parameters
    ----------
    spool : str
        The folder, from `engine.spool.prepare`.

    Yields
    ------
    None
        Behind each answer that is stored; nothing if another was faster.

    Raises
    ------
    EngineError
        The heads cannot be loaded, or results cannot be stored; what is undone stays in the spool.
    """
    lock = spools.worker_lock(spool, 0)
    if not lock.acquire(wait=False):
        return
    try:
        found = read_settings(spool)
        if found is None:
            raise spools.never_started(spool)
        from engine.jit import MANY

        many = spools.counts(spool)["incoming"] > MANY
        server = _server(spool, lock, 0, found, kernels=many)
    except BaseException:
        lock.release()
        raise
    try:
        while True:
            yield from server.drain()
            if server.leave():
                return
    finally:
        server.close()


# ---- the command -------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    from engine.worker import add_options

    result = command_line("serve", DESCRIPTION, EPILOG)
    add = result.add_argument
    add("spool", metavar="SPOOL", help="the folder; made if missing, for this user only")
    add_options(result)
    add(
        "--engines",
        type=_engines,
        metavar="N",
        help="engines of this user that work at a time on this PC, and workers that this folder "
        "may have (default: 1; 0: no bound, one worker)",
    )
    add(
        "--idle",
        type=count_up_to(MOST_IDLE_SECONDS),
        metavar="SECONDS",
        help="end when nothing came for so long (default: never)",
    )
    add("--once", action="store_true", help="work until the folder is empty, then end")
    add("--keep", action="store_true", help="move dropped pictures to done/, do not remove them")
    add("--status", action="store_true", help="print what is in the folder as JSON, do nothing")
    add("--quiet", action="store_true", help="no log on standard error")
    return result


def _engines(text: str) -> int:
    return 0 if text == "0" else count_up_to(spools.MOST_WORKERS)(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Returns
    -------
    int
        Exit code.
    """
    options = parser()
    arguments = options.parse_args(argv)
    return run(lambda: _serve(options, arguments))


def _serve(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.status and not os.path.isdir(arguments.spool):  # noqa: PTH112
        options.error(f"{arguments.spool}: no such folder; --status makes none")
    spool = spools.prepare(arguments.spool)
    if arguments.status:
        print(json.dumps(status(spool)))
        return EXIT_DONE
    from engine.worker import Settings, settings_of

    say: Callable[[str], None] = (lambda _line: None) if arguments.quiet else report
    given = settings_of(options, arguments)
    if given.csv:
        options.error("--csv is a table of one run, which a worker never ends; use engine.predict")
    given = Settings.from_json(given.to_json())  # its paths are absolute
    check_files(options, [*(given.heads or ()), *([given.chain] if given.chain else [])], ())
    stopped: list[int] = []
    server: Server | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)
        if server is None:
            raise KeyboardInterrupt
        server.stop()

    with _signals(stop):
        try:
            found = read_settings(spool)
            engines = arguments.engines
            if engines is None:
                engines = 1 if found is None else found.engines
            leaves = arguments.once or arguments.idle is not None
            mine = _lock(spool, max(engines, 1), leaves, say)
            if mine is None:
                return EXIT_DONE
            number, lock = mine
            try:
                kept = _settle(spool, Kept(given, engines, arguments.keep), say)
                server = _server(spool, lock, number, kept, kernels=True, patient=True, say=say)
            except BaseException:
                lock.release()
                raise
            try:
                server.prepare()
                if not server.stopping:
                    # Behind all that can be wrong with them.
                    write_settings(spool, kept)
                    say("ready")
                _loop(server, arguments.idle, once=arguments.once)
            finally:
                server.close()
        except KeyboardInterrupt:
            if not stopped:
                raise
    if stopped:
        say("stopped: what is left stays in the spool")
        return EXIT_DONE if stopped[0] == signal.SIGTERM else EXIT_SIGNAL + stopped[0]
    return EXIT_DONE


def _server(
    spool: str,
    lock: FileLock,
    number: int,
    kept: Kept,
    *,
    kernels: bool,
    patient: bool = False,
    say: Callable[[str], None] | None = None,
) -> Server:
    from engine.worker import Worker

    def notice(_input: str, _sentence: str) -> None:
        if say is not None:
            say("a result lacks its report or capture")

    settings = kept.settings
    return Server(
        spool,
        lock,
        number,
        Worker(settings, kernels=kernels, notice=notice),
        engines=kept.engines,
        keep=kept.keep,
        output_dir=settings.output_dir,
        sends=bool(settings.store or settings.orthanc),
        patient=patient,
        say=say,
    )


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous: dict[signal.Signals, Any] = {}
    # not the main thread: whoever started it handles signals
    with contextlib.suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _lock(
    spool: str, workers: int, leaves: bool, say: Callable[[str], None]
) -> tuple[int, FileLock] | None:
    """Wait for the lock of one of the workers; None if there is nothing left to do for one."""
    waited = False
    while True:
        for number in range(workers):
            lock = spools.worker_lock(spool, number)
            if lock.acquire(wait=False):
                return number, lock
        if leaves and not any(spools.counts(spool)[name] for name in ("incoming", "working")):
            return None
        if not waited:
            say("another worker has this spool: waits for it to end")
            waited = True
        time.sleep(0.2)


def _settle(spool: str, given: Kept, say: Callable[[str], None]) -> Kept:
    """Decide between the options given and those of an earlier start."""
    from dataclasses import fields

    found = read_settings(spool)
    if found is None:
        return given
    nothing = given.settings == type(given.settings)()
    kept = given._replace(
        settings=found.settings if nothing else given.settings,
        keep=given.keep or (nothing and found.keep),
    )
    changed = [
        field.name
        for field in fields(kept.settings)
        if getattr(kept.settings, field.name) != getattr(found.settings, field.name)
    ]
    changed += [name for name in ("engines", "keep") if getattr(kept, name) != getattr(found, name)]
    if changed:
        say(f"settings changed since the last start: {', '.join(changed)}")
    return kept


def _loop(server: Server, idle: float | None, *, once: bool) -> None:
    server.tidy()
    last = tidied = recovered = time.monotonic()
    while not server.stopping:
        done = sum(1 for _ in server.drain())
        now = time.monotonic()
        if done:
            last = now
            continue
        if now - recovered > _RECOVER_SECONDS:
            server.recover()
            recovered = now
        if now - tidied > _TIDY_SECONDS:
            server.tidy()
            tidied = now
        if server.is_empty and (once or (idle is not None and now - last >= idle)):
            if server.leave():
                return
            last = now
            continue
        server.rest(_BUSY_SECONDS if now - last < 2.0 else _IDLE_SECONDS)


def status(spool: str) -> dict[str, Any]:
    """Say what is in a spool.

    Parameters
    ----------
    spool : str
        The folder, from `engine.spool.prepare`.

    Returns
    -------
    dict
        ``incoming``, ``working``, ``answers``, ``failed``, ``dead_letters`` (results that could
        not be sent) and ``worker``: whether one lives.
    """
    found = read_settings(spool)
    letters = None if found is None else found.settings.output_dir
    n_letters = 0
    if letters is not None:
        from engine.worker import DEAD_LETTERS

        folder = os.path.join(letters, DEAD_LETTERS)  # noqa: PTH118
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            n_letters = sum(entry.name.endswith(".json") for entry in entries)
    return {
        **spools.counts(spool),
        "dead_letters": n_letters,
        "worker": spools.worker_lives(spool),
    }


if __name__ == "__main__":
    sys.exit(main())
