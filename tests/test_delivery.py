"""Results on their way: what is tried again, what is not, and that nothing is lost or told."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_helpers import SECRETS, dicom, ramp, save
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

from engine import deliver as command
from engine import delivery
from engine.answers import Prediction
from engine.cli import EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE
from engine.delivery import (
    Orthanc,
    Store,
    deliver,
    parse_orthanc,
    parse_store,
    parse_target,
    read_letter,
)
from engine.dicom_results import secondary_capture
from engine.errors import MissingPart

DX = DigitalXRayImageStorageForPresentation


@pytest.fixture
def pynetdicom() -> Any:
    return pytest.importorskip("pynetdicom", reason="pynetdicom is not installed: hilum[pacs]")


@pytest.fixture(autouse=True)
def nobody_is_away() -> None:
    """Ports are used again, and what is known of one must not be held against the next."""
    delivery._away.clear()


def own(folder: Path, number: int, **tags: Any) -> Path:
    uid = f"1.2.3.{number}"
    dataset = dicom(ramp(), Manufacturer="Hilum", SOPInstanceUID=uid, **tags)
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return save(dataset, folder / f"{SECRETS['PatientID']}-{number}.dcm")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "results").mkdir()
    return [own(tmp_path / "results", number) for number in (1, 2, 3)]


def outcomes(results: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(result["status"], result["reason"]) for result in results]


# ---- Targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PACS@192.168.1.5:11112", Store("PACS", "192.168.1.5", 11112)),
        ("MY PACS@pacs.local:104", Store("MY PACS", "pacs.local", 104)),
        ("A@B@host:1", Store("A@B", "host", 1)),
        ("P@[::1]:65535", Store("P", "::1", 65535)),
    ],
)
def test_a_store_is_read_and_named(text: str, expected: Store) -> None:
    assert parse_store(text) == expected
    assert expected.name == text
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "PACS", "PACS@host", "host:104", "@host:104", "PACS@:104", "PACS@host:", "P@host:0"),
        *("P@host:65536", "P@host:1x", "A" * 17 + "@host:1", "a\\b@host:1", "ü@host:1", "P@h h:1"),
        *("P@host;rm -rf:1", "P@$(id):1", "   @host:1", "P@host:\u0661", "P@-h:1", "P@h/x:1"),
    ],
)
def test_no_store_says_how_one_looks(text: str) -> None:
    with pytest.raises(ValueError, match="expected AET@host:port, such as"):
        parse_store(text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8042", Orthanc("http://127.0.0.1:8042")),
        ("http://localhost:8042/", Orthanc("http://localhost:8042")),
        ("https://pacs.local/orthanc/instances", Orthanc("https://pacs.local/orthanc")),
        ("https://me:p%40ss:w@pacs.local", Orthanc("https://pacs.local", "me", "p@ss:w")),
        ("http://[::1]:8042", Orthanc("http://[::1]:8042")),
    ],
)
def test_an_orthanc_is_read_and_named_without_password(url: str, expected: Orthanc) -> None:
    found = parse_orthanc(url)
    assert found == expected
    assert found.name == expected.url
    assert "p@ss" not in repr(found) + found.name
    assert parse_target(found.name) == Orthanc(expected.url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8042", "ftp://u:SECRET@h", "file:///etc/passwd", "http://", "http://h:x"),
        *("http://u:SECRET@", "http://u:SECRET@h:99999", "http://h/?SECRET", "http://h/#SECRET"),
        *("http://u:SECRET@h h", "http://h\n", "http://u:SECRET@h\x00", "http://a;SECRET/"),
        *("u:SECRET@host:8042", "http://u:1/SECRET@host:8042", "http://u:1%/SECRET@h"),
    ],
)
def test_no_orthanc_says_how_one_looks_and_keeps_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://host:port") as caught:
        parse_orthanc(url)
    assert "SECRET" not in str(caught.value)


# ---- C-STORE -------------------------------------------------------------------------------------


class Provider:
    """A storage provider of pynetdicom on the loopback interface, and what it saw."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.callers: list[str] = []
        self.port = 0

    @property
    def target(self) -> Store:
        return Store("PACS", "127.0.0.1", self.port)


@contextmanager
def provider(
    answer: Callable[[int, Any], int] = lambda _number, _event: 0,
    *,
    classes: tuple[str, ...] = (DX,),
    requested: Callable[[int, Any], None] | None = None,
    **settings: Any,
) -> Iterator[Provider]:
    from pynetdicom import AE, evt

    seen = Provider()

    def store(event: Any) -> int:
        seen.received.append(event.request.AffectedSOPInstanceUID)
        return answer(len(seen.received), event)

    def ask(event: Any) -> None:
        seen.callers.append(event.assoc.requestor.primitive.calling_ae_title)
        if requested is not None:
            requested(len(seen.callers), event)

    entity = AE(ae_title="PACS")
    for key, value in settings.items():
        setattr(entity, key, value)
    for sop_class in classes:
        entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_REQUESTED, ask)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    seen.port = server.server_address[1]
    try:
        yield seen
    finally:
        server.shutdown()


def test_a_batch_goes_by_one_association(files: list[Path], pynetdicom: Any) -> None:
    whole: list[bytes] = []

    def keep(_: int, event: Any) -> int:
        whole.append(event.encoded_dataset())
        return 0

    with provider(keep) as pacs:
        results = deliver(files, [pacs.target])
        assert outcomes(results) == [("sent", None)] * 3
        assert [result["target"] for result in results] == [pacs.target.name] * 3
        assert [result["file"] for result in results] == [path.name for path in files]
    assert pacs.callers == ["HILUM"]
    assert pacs.received == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
    for path, data in zip(files, whole, strict=True):
        assert len(data) > 1000
        assert path.read_bytes().endswith(data[-1000:])


@pytest.mark.parametrize(
    ("status", "outcome", "tries"),
    [
        (0x0000, ("sent", None), 1),
        (0xB000, ("sent", "warning_B000"), 1),
        (0xB006, ("sent", "warning_B006"), 1),
        (0xB007, ("sent", "warning_B007"), 1),
        (0x0111, ("sent", "already_stored"), 1),
        (0xA700, ("failed", "status_A700"), 3),
        (0xA7FF, ("failed", "status_A7FF"), 3),
        (0x0110, ("failed", "status_0110"), 3),
        (0xA900, ("failed", "status_A900"), 1),
        (0xC000, ("failed", "status_C000"), 1),
        (0x0122, ("failed", "status_0122"), 1),
        (0x0124, ("failed", "status_0124"), 1),
    ],
)
def test_what_a_status_means(
    files: list[Path], pynetdicom: Any, status: int, outcome: tuple[str, Any], tries: int
) -> None:
    waited: list[float] = []
    with provider(lambda _number, _event: status) as pacs:
        results = deliver(files[:1], [pacs.target], pause=waited.append)
    assert outcomes(results) == [outcome]
    assert len(pacs.received) == tries
    assert waited == [1.0, 4.0][: tries - 1]


def test_a_full_pacs_is_tried_again_with_what_it_did_not_take(
    files: list[Path], pynetdicom: Any
) -> None:
    waited: list[float] = []
    with provider(lambda number, _event: 0xA700 if number in (2, 3) else 0) as pacs:
        results = deliver(files, [pacs.target], pause=waited.append)
    assert outcomes(results) == [("sent", None)] * 3
    assert pacs.received == ["1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.2", "1.2.3.3"]
    assert waited == [1.0]


def test_an_association_that_breaks_is_taken_up_where_it_broke(
    files: list[Path], pynetdicom: Any
) -> None:
    def answer(number: int, event: Any) -> int:
        if number == 2:
            event.assoc.abort()
        return 0

    for _ in range(5):  # a race of two threads, once
        with provider(answer) as pacs:
            results = deliver(files, [pacs.target], pause=lambda _: None)
        assert outcomes(results) == [("sent", None)] * 3
        assert pacs.received[0] == "1.2.3.1"
        assert len(pacs.callers) == 2


def test_a_pacs_that_always_breaks_off_ends(files: list[Path], pynetdicom: Any) -> None:
    def answer(_: int, event: Any) -> int:
        event.assoc.abort()
        return 0

    with provider(answer) as pacs:
        results = deliver(files, [pacs.target], pause=lambda _: None)
    assert outcomes(results) == [("failed", "aborted")] * 3
    assert len(pacs.callers) == 3


def test_a_rejection_for_good_is_not_tried_again(files: list[Path], pynetdicom: Any) -> None:
    with provider(require_called_aet=True) as pacs:
        target = Store("OTHER", "127.0.0.1", pacs.port)
        results = deliver(files, [target], pause=lambda _: None)
    assert outcomes(results) == [("failed", "rejected")] * 3
    assert len(pacs.callers) == 1


def test_a_busy_pacs_is_asked_again(files: list[Path], pynetdicom: Any) -> None:
    def requested(number: int, event: Any) -> None:
        if number < 3:
            event.assoc.acse.send_reject(0x02, 0x03, 0x02)
            time.sleep(0.2)  # or the connection is closed before it is said

    with provider(requested=requested) as pacs:
        results = deliver(files, [pacs.target], pause=lambda _: None)
        assert outcomes(results) == [("sent", None)] * 3
        assert len(pacs.callers) == 3
    with provider(requested=lambda _, event: requested(1, event)) as pacs:
        results = deliver(files, [pacs.target], attempts=2, pause=lambda _: None)
    assert outcomes(results) == [("failed", "busy")] * 3
    assert len(pacs.callers) == 2


def test_a_class_that_is_not_taken_is_said_once(
    files: list[Path], tmp_path: Path, pynetdicom: Any
) -> None:
    with provider(classes=(CTImageStorage,)) as pacs:
        results = deliver(files[:1], [pacs.target], pause=lambda _: None)
        assert outcomes(results) == [("failed", "no_context")]
        assert len(pacs.callers) == 1
    other = own(tmp_path, 9, SOPClassUID=ComputedRadiographyImageStorage)
    with provider() as pacs:
        results = deliver([files[0], other, files[1]], [pacs.target], pause=lambda _: None)
    assert outcomes(results) == [("sent", None), ("failed", "no_context"), ("sent", None)]


def test_a_slow_pacs_is_given_up(
    files: list[Path], pynetdicom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "ANSWER_SECONDS", 0.3)
    gone = threading.Event()

    def answer(_number: int, _event: Any) -> int:
        gone.wait(20)
        return 0

    with provider(answer) as pacs:
        results = deliver(files[:2], [pacs.target], attempts=2, pause=lambda _: None)
        gone.set()
    assert {status for status, _ in outcomes(results)} == {"failed"}
    assert {reason for _, reason in outcomes(results)} <= {"timeout", "aborted"}


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_nobody_there(files: list[Path], pynetdicom: Any) -> None:
    waited: list[float] = []
    target = Store("PACS", "127.0.0.1", closed_port())
    results = deliver(files, [target], attempts=5, pause=waited.append)
    assert outcomes(results) == [("failed", "no_connection")] * 3
    assert waited == [1.0, 4.0, 16.0, 16.0]
    target = Store("PACS", "no-such-host.invalid", 104)
    assert outcomes(deliver(files[:1], [target], attempts=1)) == [("failed", "no_connection")]


def test_a_service_that_is_no_pacs(
    files: list[Path], pynetdicom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CONNECT_SECONDS", 0.5)
    with web([(200, {}, b"{}")] * 9) as server:
        target = Store("PACS", "127.0.0.1", server.port)
        results = deliver(files[:1], [target], attempts=1)
    assert outcomes(results)[0][0] == "failed"


def test_nothing_of_the_patient_is_logged(
    files: list[Path],
    pynetdicom: Any,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    before = logging.getLogger("pynetdicom").propagate
    deliver(files, [Store("PACS", "127.0.0.1", closed_port())], attempts=1)
    deliver(files, [Orthanc(f"http://127.0.0.1:{closed_port()}")], attempts=1)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("pynetdicom").propagate == before


def test_without_pynetdicom_the_extra_is_named(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pynetdicom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    with pytest.raises(MissingPart, match=r'pip install "hilum\[pacs\]"'):
        deliver(files, [Store("PACS", "127.0.0.1", 104)])


# ---- Orthanc -------------------------------------------------------------------------------------

STORED = (200, {}, b'{"ID": "x", "Status": "Success"}')


class Web:
    """A web server that plays a list of answers, and what it was asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def web(answers: list[tuple[int, dict[str, str], bytes]], *, slow: float = 0.0) -> Iterator[Web]:
    seen = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.paths.append(self.path)
            seen.headers.append(dict(self.headers))
            seen.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            time.sleep(slow)
            status, headers, body = answers[len(seen.paths) - 1]
            if not status:  # hangs up
                self.close_connection = True
                return
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # the client went away, as some tests want

    server = Server(("127.0.0.1", 0), Handler)
    seen.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([STORED], ("sent", None)),
        ([(200, {}, b'{"Status": "AlreadyStored"}')], ("sent", "already_stored")),
        ([(200, {}, b'{"Status": "FilteredOut"}')], ("failed", "not_stored")),
        ([(200, {}, b"<html>Log in</html>")], ("failed", "no_orthanc")),
        ([(200, {}, b"\xff\xfe\xff")], ("failed", "no_orthanc")),
        ([(200, {}, b"[1]")], ("failed", "no_orthanc")),
        ([(200, {}, b'"' + b"x" * 100_000 + b'"')], ("failed", "no_orthanc")),
        ([(401, {}, b"")], ("failed", "http_401")),
        ([(403, {}, b"")], ("failed", "http_403")),
        ([(404, {}, b"")], ("failed", "http_404")),
        ([(413, {}, b"")], ("failed", "http_413")),
        ([(500, {}, b"")] * 3, ("failed", "http_500")),
        ([(503, {}, b""), (429, {}, b""), STORED], ("sent", None)),
        ([(408, {}, b""), STORED], ("sent", None)),
        ([(0, {}, b""), STORED], ("sent", None)),
        ([(0, {}, b"")] * 3, ("failed", "no_connection")),
    ],
)
def test_what_orthanc_answers(
    files: list[Path], answers: list[Any], outcome: tuple[str, str | None]
) -> None:
    waited: list[float] = []
    with web(answers) as server:
        results = deliver(files[:1], [Orthanc(server.url)], pause=waited.append)
    assert outcomes(results) == [outcome]
    assert server.paths == ["/instances"] * len(answers)  # tried no more and no less
    assert waited == [1.0, 4.0][: len(answers) - 1]
    assert set(server.bodies) == {files[0].read_bytes()}
    assert server.headers[0]["Content-Type"] == "application/dicom"
    assert "Authorization" not in server.headers[0]


def test_when_orthanc_is_away_the_others_do_not_wait_for_it_in_turn(files: list[Path]) -> None:
    with web([(0, {}, b""), STORED, STORED, STORED]) as server:
        results = deliver(files, [Orthanc(server.url)], pause=lambda _: None)
    assert outcomes(results) == [("sent", None)] * 3
    assert len(server.paths) == 4


def test_pictures_do_not_wait_in_turn_for_a_target_that_is_away(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, tried = [100.0], []
    monkeypatch.setattr(delivery.time, "monotonic", lambda: clock[0])
    target, said = Orthanc("http://127.0.0.1:1"), ["timeout"]

    def post(_: Orthanc, parcel: Any) -> None:
        tried.append(clock[0])
        clock[0] += 30 if said[0] == "timeout" else 0
        parcel.settle(None if said[0] == "sent" else said[0], final=said[0] == "sent")

    monkeypatch.setattr(delivery, "_post", post)

    def once(expected: str, attempts: int) -> None:
        tried.clear()
        found = deliver(files[:1], [target], pause=lambda _: None)
        sent = ("sent", None) if expected == "sent" else ("failed", expected)
        assert outcomes(found) == [sent]
        assert len(tried) == attempts

    once("timeout", 3)
    clock[0] += 89
    once("timeout", 0)  # it rests for three times the last 30 s
    clock[0] += 2
    said[0] = "no_connection"
    once("no_connection", 3)  # 91 s: a new round
    once("no_connection", 1)  # nothing was waited for
    said[0] = "http_503"
    once("http_503", 1)
    once("http_503", 3)  # somebody is there
    said[0] = "no_connection"
    once("no_connection", 3)
    said[0] = "sent"
    once("sent", 1)
    assert delivery._away == {}


def test_a_slow_orthanc_is_given_up(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "ANSWER_SECONDS", 0.2)
    with web([STORED] * 9, slow=0.6) as server:
        results = deliver(files, [Orthanc(server.url)], attempts=2, pause=lambda _: None)
    assert outcomes(results) == [("failed", "timeout")] * 3
    assert len(server.paths) == 2


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(files: list[Path], code: int) -> None:
    with web([STORED] * 3) as other, web([(code, {"Location": other.url}, b"")]) as server:
        target = Orthanc(server.url, "me", "secret")
        assert outcomes(deliver(files[:1], [target])) == [("failed", "redirected")]
        assert other.paths == []


def test_no_proxy_gets_to_see_a_patient(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with web([STORED] * 3) as proxy, web([STORED]) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert outcomes(deliver(files[:1], [Orthanc(server.url)])) == [("sent", None)]
        assert (len(proxy.paths), len(server.paths)) == (0, 1)


def test_user_and_password_come_from_address_or_environment(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HILUM_ORTHANC_USER", "env")
    monkeypatch.setenv("HILUM_ORTHANC_PASSWORD", "geheim")
    with web([(401, {}, b"")] * 2) as server:
        address = f"http://me:p%40ss@127.0.0.1:{server.port}"
        for url in (address, server.url):
            results = deliver(files[:1], [parse_orthanc(url)], dead_letters=tmp_path / "dead")
            assert "p@ss" not in str(results)
    given = [header["Authorization"].removeprefix("Basic ") for header in server.headers]
    assert [base64.b64decode(token) for token in given] == [b"me:p@ss", b"env:geheim"]
    for path in (tmp_path / "dead").iterdir():
        if path.suffix == ".json":
            assert b"p@ss" not in path.read_bytes()
            assert b"geheim" not in path.read_bytes()


# ---- What is not sent ----------------------------------------------------------------------------


def test_only_our_own_results_are_sent(files: list[Path], tmp_path: Path) -> None:
    xray = save(dicom(ramp()), tmp_path / "xray.dcm")
    text = tmp_path / "notes.txt"
    text.write_text("not for others")
    with web([STORED]) as server:
        results = deliver(
            [xray, text, tmp_path / "missing.dcm", files[0]],
            [Orthanc(server.url)],
            dead_letters=tmp_path / "dead",
        )
    assert outcomes(results) == [
        ("refused", "not_ours"),
        ("refused", "not_ours"),
        ("refused", "unreadable"),
        ("sent", None),
    ]
    assert len(server.paths) == 1
    assert not (tmp_path / "dead").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hold_anything_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.dcm")
    results = deliver([tmp_path / "x.dcm"], [Orthanc("http://127.0.0.1:1")])
    assert outcomes(results) == [("refused", "unreadable")]


def test_a_dead_letter_is_whole_counted_and_tells_nothing(
    files: list[Path], tmp_path: Path
) -> None:
    dead, target = tmp_path / "out" / "dead", Orthanc(f"http://127.0.0.1:{closed_port()}")
    for count in (1, 2):
        results = deliver(files, [target], attempts=1, dead_letters=dead)
        assert outcomes(results) == [("dead_letter", "no_connection")] * 3
        notes = sorted(dead.glob("*.json"))
        assert len(notes) == 3
        for note in notes:
            assert json.loads(note.read_text()) == {
                "target": target.url,
                "reason": "no_connection",
                "count": count,
            }
    letters = [read_letter(note) for note in notes]
    assert {letter.file.read_bytes() for letter in letters if letter} == {
        path.read_bytes() for path in files
    }
    assert len(list(dead.iterdir())) == 6
    told = "".join(path.name + note.read_text() for path, note in zip(files, notes, strict=True))
    names = "".join(path.name for path in dead.iterdir())
    for secret in (*SECRETS.values(), "1.2.3.1"):
        assert secret not in names
        assert secret not in told.replace(files[0].name, "").replace(files[1].name, "").replace(
            files[2].name, ""
        )
    if os.name == "posix":
        assert stat.S_IMODE(dead.stat().st_mode) == 0o700
        # The results and their letters take the space of one.
        assert {path.stat().st_ino for path in files} == {
            path.stat().st_ino for path in dead.glob("*.dcm")
        }
    # Another target is another letter.
    other = Orthanc(f"http://localhost:{closed_port()}")
    deliver(files[:1], [other], attempts=1, dead_letters=dead)
    assert len(list(dead.glob("*.json"))) == 4


def test_letters_are_copies_where_a_file_can_have_one_name_only(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "another disk")

    monkeypatch.setattr(delivery.os, "link", refuse)
    target = Orthanc(f"http://127.0.0.1:{closed_port()}")
    for _ in range(2):
        deliver(files[:1], [target], attempts=1, dead_letters=tmp_path / "dead")
    (letter,) = (tmp_path / "dead").glob("*.dcm")
    assert letter.read_bytes() == files[0].read_bytes()
    assert letter.stat().st_ino != files[0].stat().st_ino
    assert len(list((tmp_path / "dead").iterdir())) == 2


def test_a_folder_that_takes_no_letters_is_said(files: list[Path], tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    target = Orthanc(f"http://127.0.0.1:{closed_port()}")
    results = deliver(files[:1], [target], attempts=1, dead_letters=blocked)
    assert outcomes(results) == [("failed", "dead_letters_full")]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"target": "x"}', '{"target": 5, "reason": "", "count": 1}'),
        *('{"target": "file:///x", "reason": "", "count": 1}',),
        *('{"target": "http://h", "reason": "r", "count": "many"}', "[" * 10_000),
    ],
)
def test_a_damaged_note_is_no_letter(tmp_path: Path, text: str) -> None:
    note = tmp_path / "letter-1.json"
    note.write_text(text)
    assert read_letter(note) is None


# ---- The command ---------------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_dead_letters_are_sent_again_and_go_when_they_arrived(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, port = tmp_path / "dead", closed_port()
    deliver(files, [Orthanc(f"http://127.0.0.1:{port}")], attempts=1, dead_letters=dead)
    assert command.main([str(dead), "--attempts", "1"]) == EXIT_SOME_FAILED
    said = lines(capsys)
    assert [line["delivered"][0]["status"] for line in said] == ["failed"] * 3
    assert set(said[0]["delivered"][0]) == {"target", "status", "reason"}
    letters = [read_letter(note) for note in dead.glob("*.json")]
    assert [letter.count for letter in letters if letter] == [2, 2, 2]
    with web([STORED, (404, {}, b""), STORED]) as server:
        assert command.main([str(dead), "--orthanc", server.url]) == EXIT_SOME_FAILED
    assert [line["delivered"][0]["status"] for line in lines(capsys)] == ["sent", "failed", "sent"]
    (left,) = dead.glob("*.json")
    letter = read_letter(left)
    assert letter is not None
    assert (letter.reason, letter.count) == ("http_404", 3)
    assert letter.target == f"http://127.0.0.1:{port}"  # where it was to go, whatever was tried
    assert len(list(dead.iterdir())) == 2
    with web([STORED]) as server:
        left.write_text(json.dumps({"target": server.url, "reason": "x", "count": 3}))
        assert command.main([str(letter.file)]) == EXIT_DONE
    assert list(dead.iterdir()) == []
    assert command.main([str(dead)]) == EXIT_DONE


def test_results_are_sent_to_every_target(
    files: list[Path], capsys: pytest.CaptureFixture[str], pynetdicom: Any
) -> None:
    (files[0].parent / "x.json").write_text("{}")
    with provider() as pacs, web([STORED] * 3) as server:
        arguments = [str(files[0].parent), "--store", pacs.target.name, "--orthanc", server.url]
        assert command.main(arguments) == EXIT_DONE
    said = lines(capsys)
    assert [line["file"] for line in said] == [str(path) for path in files]
    assert [each["target"] for each in said[0]["delivered"]] == [pacs.target.name, server.url]
    assert len(pacs.received) == 3
    assert all(path.exists() for path in files)


def test_the_command_leaves_others_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xray = save(dicom(ramp()), tmp_path / "xray.dcm")
    with web([STORED]) as server:
        assert command.main([str(xray), "--orthanc", server.url]) == EXIT_SOME_FAILED
        assert server.paths == []
    assert lines(capsys)[0]["delivered"][0]["reason"] == "not_ours"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required"),
        (["{file}"], "give --store or --orthanc"),
        (["{file}.missing", "--orthanc", "http://h"], "no such file"),
        (["{file}", "--orthanc", "ftp://u:SECRET@h"], "expected http://host:port"),
        (["{file}", "--store", "PACS"], "expected AET@host:port"),
        (["{file}", "--orthanc", "http://h", "--attempts", "0"], "from 1 to 20"),
    ],
)
def test_what_cannot_be_meant_is_said(
    files: list[Path], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main([argument.format(file=files[0]) for argument in arguments])
    assert caught.value.code == EXIT_USAGE
    error = capsys.readouterr().err
    assert told in " ".join(error.split())
    assert "SECRET" not in error


# ---- Real peers ----------------------------------------------------------------------------------


@contextmanager
def orthanc(folder: Path) -> Iterator[tuple[str, Store]]:
    program = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("Orthanc is not installed")
    web_port, dicom_port = closed_port(), closed_port()
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": web_port,
        "HttpBindAddresses": ["127.0.0.1"],
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{web_port}"
            for _ in range(300):
                try:
                    ask(f"{url}/system")
                    break
                except OSError:
                    time.sleep(0.1)
                assert process.poll() is None, (folder / "orthanc.log").read_text()
            yield url, Store("ORTHANC", "127.0.0.1", dicom_port)
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return json.loads(answer.read())


def test_a_real_orthanc_keeps_a_result_once(tmp_path: Path, pynetdicom: Any) -> None:
    source = save(dicom(ramp(), SeriesInstanceUID="1.2.3.4"), tmp_path / "source.dcm")
    answer = {
        "label": "b",
        "probabilities": {"a": 0.25, "b": 0.75},
        "threshold": None,
        "notice": "n",
    }
    given = Prediction(input="x", status="ok", heads={"chest": answer}, key="k" * 64)
    sheet = np.zeros((64, 300, 3), np.uint8)
    path = tmp_path / "sc.dcm"
    with orthanc(tmp_path) as (url, store):
        for target in (parse_orthanc(url), store, parse_orthanc(url)):
            # Made again, at another time: the same instance.
            path.write_bytes(secondary_capture(source, given, sheet))
            (result,) = deliver([path], [target])
            assert result["status"] == "sent"
        assert result["reason"] == "already_stored"
        statistics = ask(f"{url}/statistics")
        assert statistics["CountInstances"] == 1
        (study,) = ask(f"{url}/studies?expand")
        assert study["MainDicomTags"]["StudyInstanceUID"] == SECRETS["StudyInstanceUID"]
        assert study["MainDicomTags"]["AccessionNumber"] == SECRETS["AccessionNumber"]
        assert study["PatientMainDicomTags"]["PatientID"] == SECRETS["PatientID"]
    assert pydicom.dcmread(path).PatientName == SECRETS["PatientName"]
