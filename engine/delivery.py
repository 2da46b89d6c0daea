"""How results get into a PACS: by C-STORE or Orthanc's REST interface, tried again, never lost.

A target that is down, busy or full is tried again a few times; one that says no is not. What could
not be sent is kept in a folder of dead letters, the file and beside it a small JSON: where it was
to go, why it did not get there (a code), how often that was tried. Nothing else is told of a file:
no name, no number, no password.

HTTP never goes through a proxy, whatever the environment says: a PACS is in the house, and a proxy
is not where patients' pictures belong. A redirection is not followed, for the same reason: name the
address it leads to. HTTPS certificates are checked; ``SSL_CERT_FILE`` names a hospital's own
authority.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from engine.errors import MissingPart

if TYPE_CHECKING:
    from engine.dicom_results import OwnFile

__all__ = [
    "OWN_TITLE",
    "Letter",
    "Orthanc",
    "Store",
    "deliver",
    "parse_orthanc",
    "parse_store",
    "parse_target",
    "read_letter",
    "send_letter",
]

OWN_TITLE = "HILUM"
"""AE title that Hilum calls itself; a PACS may have to be told."""

#: Seconds before the second attempt, the third, and every later one.
PAUSES = (1.0, 4.0, 16.0)
#: For so many seconds after it could not be reached, a target gets one attempt, and none for so
#: many times as long as the last took: pictures do not wait in turn for a PACS that is away.
AWAY_SECONDS, REST_FACTOR = 60.0, 3.0
_AWAY = ("no_connection", "timeout")
#: Seconds for a connection, for its association, and for each answer.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 30.0
_MOST_ANSWER_BYTES = 1 << 16
_MOST_LETTER_BYTES = 1 << 14

_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")
# PS3.4 table B.2-1 and PS3.7 annex C: processing failures that may pass, so worth another attempt.
# Out of resources (A7xx), and processing failure (0110).
_PASSING_STATUS = 0x0110
_DUPLICATE = 0x0111
_PASSING_HTTP = (408, 425, 429)


@dataclass(frozen=True)
class Store:
    """A DICOM storage provider.

    Attributes
    ----------
    title : str
        Its AE title.
    host : str
        Name or address.
    port : int
        TCP port.
    """

    title: str
    host: str
    port: int

    @property
    def name(self) -> str:
        """``AET@host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.title}@{host}:{self.port}"


@dataclass(frozen=True)
class Orthanc:
    """An Orthanc server's REST interface.

    Attributes
    ----------
    url : str
        Its root, without user and password.
    user, password : str
        Empty: those of ``HILUM_ORTHANC_USER`` and ``HILUM_ORTHANC_PASSWORD``, if these are set.
    """

    url: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """The address, without user and password."""
        return self.url


@dataclass(frozen=True)
class Letter:
    """A dead letter.

    Attributes
    ----------
    file : Path
        The DICOM file.
    note : Path
        The JSON beside it.
    target : str
        Where it was to go, as `parse_target` reads it.
    reason : str
        Why it did not get there.
    count : int
        How often it was given up.
    """

    file: Path
    note: Path
    target: str
    reason: str
    count: int


def parse_store(text: str) -> Store:
    """Read ``AET@host:port``.

    Parameters
    ----------
    text : str
        Such as ``"PACS@192.168.1.5:11112"`` or ``"PACS@[fe80::1]:104"``.

    Returns
    -------
    Store
        The target.

    Raises
    ------
    ValueError
        With what is wrong and how it should look.
    """
    title, at, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    shape = "expected AET@host:port, such as PACS@192.168.1.5:11112"
    if not at or not colon:
        raise ValueError(f"{text!r} names no storage target; {shape}")
    if not _TITLE.fullmatch(title) or not title.strip():
        raise ValueError(
            f"AE title {title!r} is not 1 to 16 characters of ASCII without a backslash; {shape}"
        )
    host = _check_host(host, text, shape)
    return Store(title.strip(), host, _check_port(port, text, shape))


def parse_orthanc(url: str) -> Orthanc:
    """Read the address of an Orthanc server.

    Parameters
    ----------
    url : str
        Such as ``"http://127.0.0.1:8042"`` or ``"https://user:password@pacs.local/orthanc"``;
        special characters of user and password are percent-encoded.

    Returns
    -------
    Orthanc
        The target.

    Raises
    ------
    ValueError
        With what is wrong and how it should look; the password is not repeated.
    """
    shape = "expected http://host:port or https://host, such as http://127.0.0.1:8042"
    if any(sign <= " " or sign == "\x7f" for sign in url):
        raise ValueError(f"the address of Orthanc has spaces or control characters; {shape}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"the address of Orthanc has no valid host and port; {shape}") from None
    if parts.scheme not in ("http", "https"):
        # Not repeated: whatever stands before a second colon may be a password.
        raise ValueError(f"the address of Orthanc is no http or https address; {shape}")
    if parts.query or parts.fragment:
        raise ValueError(f"the address of Orthanc goes on behind ? or #; leave that out; {shape}")
    if "@" in parts.path:
        # Behind a slash that was not encoded the rest of a password would be part of the name.
        raise ValueError(
            "the address of Orthanc has @ behind its host; write / and @ in user and password as "
            f"%2F and %40; {shape}"
        )
    host = _check_host(parts.hostname or "", "the address of Orthanc", shape)
    shown = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/instances")
    root = f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "") + path
    return Orthanc(root, unquote(parts.username or ""), unquote(parts.password or ""))


def parse_target(text: str) -> Store | Orthanc:
    """Read a target's name, as results and dead letters give it.

    Parameters
    ----------
    text : str
        For `parse_orthanc` if it has ``://``, else for `parse_store`.

    Returns
    -------
    Store or Orthanc
        The target.

    Raises
    ------
    ValueError
        It is neither.
    """
    return parse_orthanc(text) if "://" in text else parse_store(text)


def _check_host(host: str, text: str, shape: str) -> str:
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(inner))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise ValueError(f"{text!r} has no valid host; {shape}")
    return host


def _check_port(port: str, text: str, shape: str) -> int:
    number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 0
    if not 1 <= number <= 65535:
        raise ValueError(f"{text!r} has no port from 1 to 65535; {shape}")
    return number


# ---- Delivery ------------------------------------------------------------------------------------


@dataclass
class _Parcel:
    """One file on its way to one target."""

    path: Path
    own: OwnFile
    reason: str | None = "not_tried"
    is_final: bool = False  # sent, or refused for good

    def settle(self, reason: str | None, *, final: bool) -> None:
        self.reason, self.is_final = reason, final


def deliver(
    files: Sequence[str | Path],
    targets: Sequence[Store | Orthanc],
    *,
    attempts: int = 3,
    dead_letters: str | Path | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> list[dict[str, Any]]:
    """Send results of ours to every target.

    The same instance again is no error: a PACS that has it keeps it. A target that was just found
    away is tried less often, or not at all (`AWAY_SECONDS`).

    Parameters
    ----------
    files : sequence of path
        DICOM files that Hilum made; any other file is never sent.
    targets : sequence of Store or Orthanc
        From `parse_store` and `parse_orthanc`.
    attempts : int, optional
        How often each target is tried, 1 or more.
    dead_letters : path, optional
        Folder for what could not be sent, made when needed. Default: nothing is kept.
    pause : callable, optional
        Takes seconds and waits.

    Returns
    -------
    list of dict
        One for each file and target, target by target: ``file`` (its name), ``target``, without
        password, ``status``, ``"sent"``, ``"dead_letter"`` or, without a folder for these,
        ``"failed"``; ``"refused"`` for a file that is not ours. ``reason`` is None or a code:
        ``no_connection``, ``timeout``, ``rejected``, ``busy``, ``aborted``, ``no_context`` (the
        storage class is not taken), ``status_XXXX`` (PS3.4 table B.2-1), ``http_NNN``,
        ``redirected``, ``no_certificate``, ``no_orthanc`` (an answer of something else),
        ``not_stored`` (Orthanc's own rules), ``not_ours``, ``unreadable``, ``dead_letters_full``
        (not even kept); of a file that was sent ``already_stored`` or ``warning_XXXX``.

    Raises
    ------
    MissingPart
        A target is a storage provider, and pynetdicom is not installed.
    """
    results: list[dict[str, Any]] = []
    if any(isinstance(target, Store) for target in targets):
        _need_pynetdicom()
    for target in targets:
        parcels: list[_Parcel] = []
        outcome: dict[Path, dict[str, Any]] = {}
        for path in map(Path, files):
            own, reason = _look_at(path)
            if own is None:
                outcome[path] = _result(path, target, "refused", reason)
            else:
                parcels.append(_Parcel(path, own))
        _send_all(target, parcels, attempts, pause)
        for parcel in parcels:
            if parcel.is_final and _is_sent(parcel.reason):
                outcome[parcel.path] = _result(parcel.path, target, "sent", parcel.reason)
                continue
            status, reason = "failed", parcel.reason or "not_tried"
            if dead_letters is not None:
                try:
                    _bury(parcel, target, Path(dead_letters))
                    status = "dead_letter"
                except OSError:
                    reason = "dead_letters_full"
            outcome[parcel.path] = _result(parcel.path, target, status, reason)
        results += [outcome[path] for path in dict.fromkeys(map(Path, files))]
    return results


def _result(path: Path, target: Store | Orthanc, status: str, reason: str | None) -> dict[str, Any]:
    return {"file": path.name, "target": target.name, "status": status, "reason": reason}


def _look_at(path: Path) -> tuple[OwnFile | None, str]:
    from engine.dicom_results import read_own

    try:
        return read_own(path), "not_ours"
    except OSError:
        return None, "unreadable"


def _is_sent(reason: str | None) -> bool:
    return reason is None or reason == "already_stored" or reason.startswith("warning_")


@dataclass(frozen=True)
class _Away:
    """A target that could not be reached: why, until when that took, and how long."""

    reason: str
    end: float
    seconds: float


_away: dict[str, _Away] = {}
"""Of this process, by the target's name."""


def _send_all(
    target: Store | Orthanc,
    parcels: Sequence[_Parcel],
    attempts: int,
    pause: Callable[[float], None],
) -> None:
    away = _away.get(target.name)
    if away is not None:
        age = time.monotonic() - away.end
        if age < REST_FACTOR * away.seconds:
            for parcel in parcels:
                parcel.settle(away.reason, final=False)
            return
        attempts = 1 if age < AWAY_SECONDS else attempts
    start = time.monotonic()
    for attempt in range(max(1, attempts)):
        open_parcels = [parcel for parcel in parcels if not parcel.is_final]
        if not open_parcels:
            break
        if attempt:
            pause(PAUSES[min(attempt, len(PAUSES)) - 1])
        start = time.monotonic()
        if isinstance(target, Store):
            _store(target, open_parcels)
        else:
            for parcel in open_parcels:
                _post(target, parcel)
                if parcel.reason in ("no_connection", "timeout"):
                    # The next would wait as long for the same.
                    for other in open_parcels:
                        if other.reason == "not_tried":
                            other.settle(parcel.reason, final=False)
                    break
    reasons = {parcel.reason or "" for parcel in parcels}
    if len(reasons) == 1 and reasons <= set(_AWAY):
        end = time.monotonic()
        _away[target.name] = _Away(reasons.pop(), end, end - start)
    elif reasons:
        _away.pop(target.name, None)


# ---- C-STORE -------------------------------------------------------------------------------------


def _need_pynetdicom() -> None:
    try:
        import pynetdicom  # noqa: F401
    except ImportError as exc:
        raise MissingPart(
            "sending to a DICOM storage target needs pynetdicom, which is not installed; "
            'pip install "hilum[pacs]", or send to Orthanc by --orthanc'
        ) from exc


_pynetdicom_lock = threading.Lock()


@contextlib.contextmanager
def _quiet_pynetdicom() -> Iterator[None]:
    """Keep what pynetdicom logs, patients' names among it, from whoever listens at the root.

    One thread at a time: loggers and filters of warnings belong to the process.
    """
    logger = logging.getLogger("pynetdicom")
    with _pynetdicom_lock, warnings.catch_warnings():
        # It leaves a socket that was refused to the garbage collector.
        warnings.filterwarnings("ignore", category=ResourceWarning, module=r"pynetdicom(\.|$)")
        before, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = before


def _store(target: Store, parcels: Sequence[_Parcel]) -> None:
    """Send files by one association; each gets its outcome (PS3.4 annex B)."""
    from pynetdicom import AE, evt

    from engine.picture import quiet_decoders

    def unblock(event: Any) -> None:
        # pynetdicom waits without end for its own thread, which may just have ended.
        event.assoc._is_paused = True

    entity = AE(ae_title=OWN_TITLE)
    entity.connection_timeout = entity.acse_timeout = CONNECT_SECONDS
    entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
    syntaxes: dict[str, list[str]] = {}
    for parcel in parcels:
        known = syntaxes.setdefault(parcel.own.sop_class, [])
        if parcel.own.syntax not in known:
            known.append(parcel.own.syntax)
    for sop_class, listed in syntaxes.items():
        entity.add_requested_context(sop_class, listed)
    with quiet_decoders(), _quiet_pynetdicom():
        try:
            association: Any = entity.associate(
                target.host,
                target.port,
                ae_title=target.title,
                evt_handlers=[(evt.EVT_ABORTED, unblock), (evt.EVT_CONN_CLOSE, unblock)],
            )
        except (OSError, RuntimeError, UnicodeError, TypeError):  # also a name that is none
            for parcel in parcels:
                parcel.settle("no_connection", final=False)
            return
        if not association.is_established:
            reason, final = _no_association(association)
            for parcel in parcels:
                parcel.settle(reason, final=final)
            return
        try:
            for number, parcel in enumerate(parcels, 1):
                if not _store_one(association, parcel, number):
                    for other in parcels[number:]:
                        other.settle(parcel.reason, final=False)
                    return
            association.release()
        finally:
            if association.is_established:
                association.abort()


def _no_association(association: Any) -> tuple[str, bool]:
    """Say why there is no association (PS3.8 section 9.3.4), and whether that will stay so."""
    answer = association.acceptor.primitive
    result = getattr(answer, "result", None)
    if association.is_rejected:
        # 1 is for good; 2 says that it may pass, as when there are too many at a time.
        return ("busy", False) if result == 2 else ("rejected", True)
    if result == 0 and not association.accepted_contexts:
        return "no_context", True
    return ("no_connection" if answer is None else "aborted"), False


def _store_one(association: Any, parcel: _Parcel, number: int) -> bool:
    """Send one file; False if the association is of no more use."""
    start = time.monotonic()
    try:
        answer = association.send_c_store(parcel.path, msg_id=number)
    except ValueError:  # no presentation context for it was accepted
        parcel.settle("no_context", final=True)
        return True
    except RuntimeError:  # the association is gone
        parcel.settle("aborted", final=False)
        return False
    except Exception:  # the file: it was there and ours a moment ago
        parcel.settle("unreadable", final=True)
        return True
    if "Status" not in answer:
        is_late = time.monotonic() - start >= ANSWER_SECONDS
        parcel.settle("timeout" if is_late else "aborted", final=False)
        return False
    status = int(answer.Status)
    code = f"{status:04X}"
    if status == 0:
        parcel.settle(None, final=True)
    elif status == _DUPLICATE:
        parcel.settle("already_stored", final=True)
    elif status >> 12 == 0xB or status in (0x0001, 0x0107, 0x0116):
        # It was stored, with something said to it (PS3.7 section C.4).
        parcel.settle(f"warning_{code}", final=True)
    else:
        passing = status >> 8 == 0xA7 or status == _PASSING_STATUS
        parcel.settle(f"status_{code}", final=not passing)
    return True


# ---- Orthanc -------------------------------------------------------------------------------------


def _post(target: Orthanc, parcel: _Parcel) -> None:
    """Send a file by POST /instances."""
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    from formats import open_regular

    class NoRedirection(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any, **__: Any) -> None:
            return None

    try:
        with open_regular(parcel.path) as stream:
            data = stream.read()
    except OSError:
        parcel.settle("unreadable", final=True)
        return
    request = urllib.request.Request(  # noqa: S310 - http and https only, see parse_orthanc
        f"{target.url}/instances",
        data=data,
        headers={"Content-Type": "application/dicom", "Accept": "application/json"},
        method="POST",
    )
    user, password = target.user, target.password
    if not user:
        user = os.environ.get("HILUM_ORTHANC_USER", "")
        password = os.environ.get("HILUM_ORTHANC_PASSWORD", "")
    if user:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirection())
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            said = json.loads(answer.read(_MOST_ANSWER_BYTES))
    except urllib.error.HTTPError as exc:
        exc.close()
        if 300 <= exc.code < 400:
            parcel.settle("redirected", final=True)
        else:
            passing = exc.code >= 500 or exc.code in _PASSING_HTTP
            parcel.settle(f"http_{exc.code}", final=not passing)
        return
    except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as exc:
        cause = getattr(exc, "reason", exc)
        if isinstance(cause, ssl.SSLCertVerificationError):
            parcel.settle("no_certificate", final=True)
        elif isinstance(cause, TimeoutError):
            parcel.settle("timeout", final=False)
        else:
            parcel.settle("no_connection", final=False)
        return
    except (ValueError, RecursionError):  # no JSON: some other server
        parcel.settle("no_orthanc", final=True)
        return
    status = said.get("Status") if isinstance(said, dict) else None
    if status == "Success":
        parcel.settle(None, final=True)
    elif status == "AlreadyStored":
        parcel.settle("already_stored", final=True)
    else:
        parcel.settle("no_orthanc" if status is None else "not_stored", final=True)


# ---- Dead letters --------------------------------------------------------------------------------


def _bury(parcel: _Parcel, target: Store | Orthanc, folder: Path) -> None:
    """Keep a file that could not be sent; again, its count goes up."""
    import formats

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = f"{parcel.own.sop_instance}\n{target.name}".encode()
    # No name of the source: that may hold what nobody else should read.
    stem = f"letter-{hashlib.sha256(identity).hexdigest()[:24]}"
    note, file = folder / f"{stem}.json", folder / f"{stem}.dcm"
    before = read_letter(note)
    count = 1 + (0 if before is None else before.count)
    # The note last: what it speaks of is there whole.
    if file != parcel.path and not _link(parcel.path, file):
        formats.atomic_write(file, parcel.path.read_bytes())
    formats.atomic_write(note, _note(target.name, parcel.reason, count))


def _link(path: Path, file: Path) -> bool:
    """Give a result a second name, which takes no space; False where that is not possible.

    Results are replaced and never written over: a letter stays what it was.
    """
    part = file.with_suffix(".part")
    try:
        part.unlink(missing_ok=True)
        os.link(path, part)
        part.replace(file)
        # Of two names of one file, rename leaves both.
        part.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _note(target: str, reason: str | None, count: int) -> bytes:
    return (json.dumps({"target": target, "reason": reason, "count": count}) + "\n").encode()


def read_letter(note: str | Path) -> Letter | None:
    """Read the JSON of a dead letter.

    Parameters
    ----------
    note : path
        ``letter-….json``.

    Returns
    -------
    Letter or None
        None where there is none, or it is damaged.
    """
    note = Path(note)
    try:
        with note.open("rb") as stream:
            said = json.loads(stream.read(_MOST_LETTER_BYTES))
        parse_target(said["target"])
        return Letter(
            file=note.with_suffix(".dcm"),
            note=note,
            target=str(said["target"]),
            reason=str(said["reason"]),
            count=max(0, int(said["count"])),
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def send_letter(
    letter: Letter,
    targets: Sequence[Store | Orthanc],
    *,
    attempts: int = 3,
    pause: Callable[[float], None] = time.sleep,
) -> list[dict[str, Any]]:
    """Send a dead letter again; it goes when every target has it, else its count goes up.

    Parameters
    ----------
    letter : Letter
        From `read_letter`.
    targets : sequence of Store or Orthanc
        Where to; empty: where it was to go.
    attempts, pause
        As for `deliver`.

    Returns
    -------
    list of dict
        As of `deliver`.
    """
    import formats

    goals = targets or [parse_target(letter.target)]
    results = deliver([letter.file], goals, attempts=attempts, pause=pause)
    if all(result["status"] == "sent" for result in results):
        # The picture first: a note without one is only a note.
        letter.file.unlink(missing_ok=True)
        letter.note.unlink(missing_ok=True)
    else:
        reason = next(result["reason"] for result in results if result["status"] != "sent")
        with contextlib.suppress(OSError):
            formats.atomic_write(letter.note, _note(letter.target, reason, letter.count + 1))
    return results
