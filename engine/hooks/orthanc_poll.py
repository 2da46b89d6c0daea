"""Command ``python -m engine.hooks.orthanc_poll``: asks an Orthanc what is new, from outside.

Needs Python's standard library only. Every radiograph that is new is written into the spool; how
far that went is kept in a file, so that nothing is left out when this program, Orthanc or the
machine is stopped in between. A picture may be handed over twice then, and is answered once: the
worker knows its answer. Orthanc's Book, "Tracking changes", describes ``/changes``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# What Hilum reads; all else (CT, reports, presentation states) stays in Orthanc only.
MODALITIES = ("", "CR", "DX", "RF")
OWN_MANUFACTURER, OWN_SERIES = "HILUM", "HILUM RESULT"

PAGE = 100
TIMEOUT_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 60.0
# An identifier of Orthanc: a SHA-1 in five parts. It becomes the name of a file.
_IDENTIFIER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")

EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_MACHINE = 0, 1, 2, 3


def say(text: str) -> None:
    """Print a line for the log; it never says anything of a picture but Orthanc's name for it."""
    print(f"orthanc_poll: {text}", file=sys.stderr, flush=True)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Take the redirection for an error."""


class Orthanc:
    """The REST interface of an Orthanc, as far as it is needed.

    Parameters
    ----------
    url : str
        ``http(s)://[user:password@]host[:port][/path]``. Without user and password, those of the
        variables ``HILUM_ORTHANC_USER`` and ``HILUM_ORTHANC_PASSWORD``, if these are set.

    Raises
    ------
    ValueError
        That is none.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://host:port, or http://user:password@host:port")
        place = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{place}{parts.path.rstrip('/')}"
        # No proxy and no redirection: what is asked here does not leave the house.
        handlers = [urllib.request.ProxyHandler({}), _NoRedirection()]
        user, password = (
            urllib.parse.unquote(text or "") for text in (parts.username, parts.password)
        )
        user = user or os.environ.get("HILUM_ORTHANC_USER", "")
        self._headers = {}
        if user:
            password = password or os.environ.get("HILUM_ORTHANC_PASSWORD", "")
            secret = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {secret}"
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str) -> bytes:
        """Return what Orthanc says to a GET.

        Parameters
        ----------
        path : str
            Begins with ``/``.

        Raises
        ------
        OSError, http.client.HTTPException
            No answer, or another than 200; ``urllib.error.HTTPError`` has its code.
        """
        request = urllib.request.Request(self.url + path, headers=self._headers)  # noqa: S310 - see above
        with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            data: bytes = answer.read()  # raises IncompleteRead where the end is missing
            return data

    def get_json(self, path: str) -> dict[str, Any]:
        """Return an object that Orthanc says to a GET.

        Raises
        ------
        ValueError
            It says something else.
        """
        found = json.loads(self.get(path))
        if not isinstance(found, dict):
            raise ValueError(f"{path.partition('?')[0]}: expected an object")
        return found


def write_whole(path: Path, data: bytes) -> None:
    """Write a private file that has its name only when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def is_wanted(series: dict[str, Any]) -> bool:
    """Tell a radiograph from the rest, Hilum's own reports and pictures included."""
    tags = series.get("MainDicomTags")
    found = tags if isinstance(tags, dict) else {}
    maker, name, modality = (
        str(found.get(key, "")).strip(" \0").upper()
        for key in ("Manufacturer", "SeriesDescription", "Modality")
    )
    own = maker == OWN_MANUFACTURER or name.startswith(OWN_SERIES)
    return modality in MODALITIES and not own


class Position:
    """How far the list of changes was worked through; on the disk after every step.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: int | None = None
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(path.read_bytes())
            last = found.get("last") if isinstance(found, dict) else None
            if not isinstance(last, int) or last < 0:
                raise ValueError('expected {"last": number}; remove the file to begin anew')
            self.last = last

    def move(self, last: int) -> None:
        """Keep a new position."""
        if last != self.last:
            write_whole(self.path, json.dumps({"last": last}).encode())
            self.last = last


class Poll:
    """Changes of an Orthanc on their way into a spool.

    Parameters
    ----------
    orthanc : Orthanc
        Where from.
    spool : Path
        Where to.
    position : Position
        How far it went.
    attempts : int
        For one picture that Orthanc lists and does not give.
    most_waiting : int
        With so many pictures in the spool, no more are fetched until some are answered.
    pause : callable
        Waits for a number of seconds.
    """

    def __init__(
        self,
        orthanc: Orthanc,
        spool: Path,
        position: Position,
        *,
        attempts: int = 5,
        most_waiting: int = 100,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._orthanc = orthanc
        self._incoming = spool / "incoming"
        self._position = position
        self._attempts = attempts
        self._most_waiting = most_waiting
        self._pause = pause
        # The picture that is not to be had, and how often it was asked for.
        self._tries = ("", 0)
        self.n_handed_over = 0
        self.n_failed = 0

    def start(self, *, everything: bool) -> None:
        """Find the place to begin at: the kept one, or the end of the list, or its beginning."""
        newest = int(self._orthanc.get_json("/changes?last")["Last"])
        kept = self._position.last
        if kept is not None and kept > newest:
            say(
                "Orthanc's list of changes is shorter than it was (a new database?): from its start"
            )
            self._position.move(0)
        elif kept is None:
            self._position.move(0 if everything else newest)

    def run_once(self) -> int:
        """Work through what is new now.

        Returns
        -------
        int
            Changes seen.
        """
        n_seen = 0
        while True:
            since = self._position.last or 0
            page = self._orthanc.get_json(f"/changes?since={since}&limit={PAGE}")
            changes = page["Changes"]
            for change in changes:
                if change["ChangeType"] == "NewInstance":
                    self._take(str(change["ID"]))
                self._position.move(int(change["Seq"]))
                n_seen += 1
            if page["Done"] or not changes:
                return n_seen

    def _take(self, instance: str) -> None:
        if not _IDENTIFIER.fullmatch(instance):
            raise ValueError("/changes: an instance without Orthanc's kind of identifier")
        while sum(1 for _ in self._incoming.iterdir()) >= self._most_waiting:
            self._pause(1.0)
        try:
            data = self._fetch(instance)
        except (OSError, http.client.HTTPException, ValueError) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code == 404:
                return  # deleted again
            # The list of changes came a moment ago: so this is about the picture. It is tried
            # again with the next list, and held against it once for each.
            instance_before, n_before = self._tries
            n = n_before + 1 if instance == instance_before else 1
            if code not in (401, 403):
                self._tries = (instance, n)
            if n < self._attempts or code in (401, 403):
                raise
            self.n_failed += 1
            note = self._position.path.with_suffix(".failed")
            with note.open("a", encoding="ascii") as stream:
                stream.write(instance + "\n")
            say(f"{instance}: given up after {n} attempts ({_reason(error)}); noted in {note.name}")
            return
        if data is not None:
            write_whole(self._incoming / f"{instance}.dcm", data)
            self.n_handed_over += 1

    def _fetch(self, instance: str) -> bytes | None:
        series = self._orthanc.get_json(f"/instances/{instance}/series")
        return self._orthanc.get(f"/instances/{instance}/file") if is_wanted(series) else None


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = argparse.ArgumentParser(
        prog="python -m engine.hooks.orthanc_poll",
        description="Ask an Orthanc for new radiographs and write each into Hilum's spool.",
    )
    add = result.add_argument
    add("spool", type=Path, metavar="SPOOL", help="the folder of engine.serve")
    add(
        "--orthanc",
        metavar="URL",
        help="http://host:port, default: the variable HILUM_ORTHANC; user and password from the "
        "variables HILUM_ORTHANC_USER and HILUM_ORTHANC_PASSWORD",
    )
    add(
        "--position",
        type=Path,
        metavar="FILE",
        help="where to keep how far it went (default: SPOOL.position beside the spool)",
    )
    add(
        "--everything", action="store_true", help="the first time, begin with what is there already"
    )
    add("--interval", type=float, default=2.0, metavar="SECONDS", help="between questions (2)")
    add("--attempts", type=int, default=5, metavar="N", help="for one picture (5)")
    add("--most-waiting", type=int, default=100, metavar="N", help="pictures in the spool (100)")
    add("--once", action="store_true", help="end when all that is new now was handed over")
    return result


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
    spool: Path = arguments.spool.absolute()
    url = arguments.orthanc or os.environ.get("HILUM_ORTHANC", "")
    try:
        orthanc = Orthanc(url)
    except ValueError as error:
        options.error(f"--orthanc: {error}")
    if not (spool / "incoming").is_dir():
        options.error(f"{spool}: no spool; start the worker first: python -m engine.serve {spool}")
    path = arguments.position or spool.with_name(spool.name + ".position")
    try:
        poll = Poll(
            orthanc,
            spool,
            Position(path),
            attempts=max(arguments.attempts, 1),
            most_waiting=max(arguments.most_waiting, 1),
        )
    except ValueError as error:
        options.error(f"{path}: {error}")

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        return _run(poll, arguments)
    except KeyboardInterrupt:
        say("stopped; the next start goes on from here")
        return EXIT_DONE


def _run(poll: Poll, arguments: argparse.Namespace) -> int:
    started = False
    n_failures = 0
    while True:
        try:
            if not started:
                poll.start(everything=arguments.everything)
                started = True
            poll.run_once()
            if n_failures:
                say("goes on again")
            n_failures = 0
        except PermissionError as error:
            say(f"error: {error.filename}: {error.strerror}; run this as the worker's user")
            return EXIT_MACHINE
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            n_failures += 1
            if n_failures == 1:
                say(f"cannot go on now, trying again: {_reason(error)}")
            if n_failures >= arguments.attempts and arguments.once:
                return EXIT_MACHINE
        if arguments.once and not n_failures:
            return EXIT_SOME_FAILED if poll.n_failed else EXIT_DONE
        pause = arguments.interval * 2.0 ** min(n_failures, 10)
        time.sleep(min(pause, max(LONGEST_PAUSE_SECONDS, arguments.interval)))


def _reason(error: BaseException) -> str:
    """Say what went wrong without an address: a password could be part of it."""
    if isinstance(error, urllib.error.HTTPError):
        hint = "; name and password?" if error.code in (401, 403) else ""
        return f"HTTP {error.code}{hint}"
    inner = getattr(error, "reason", error)
    text = getattr(inner, "strerror", None)
    return f"{type(inner).__name__}{f' ({text})' if text else ''}"


if __name__ == "__main__":
    sys.exit(main())
