"""Real peers: dcmtk sends and receives, Orthanc stores, the recipes hand over, results come back.

dcmtk's storescp listens on every interface, and Orthanc's DICOM side too: all of it runs in a
network namespace with nothing but a loopback, in which also every port is free.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

import engine.hooks.__main__ as hooks
from engine.dicom_kind import OWN_MANUFACTURER, OWN_SERIES
from engine.phantoms import draw_phantom, write_dicom

# dcmtk's own: pynetdicom brings programs of the same names.
STORESCP, STORESCU, ECHOSCU, DSRDUMP = (
    f"/usr/bin/{name}" for name in ("storescp", "storescu", "echoscu", "dsrdump")
)
ORTHANC = "/usr/sbin/Orthanc"
DEBIANS = Path("/etc/orthanc/orthanc.json")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancPython.so")
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
URL = "http://127.0.0.1:8042"
# No bound on engines: others of this user may be at work on this machine. Drawings are no X-rays.
OPTIONS = "--engines 0 --allow out_of_distribution"
_NEW_NETWORK = 0x40000000


def need(*programs: str) -> None:
    for program in programs:
        if not os.access(program, os.X_OK):
            pytest.skip(f"{program} is not installed")


class House:
    """A network of its own, the recipes and their settings, and all processes that run there."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        self.spool, self.results = folder / "spool", folder / "results"
        self.received, self.work = folder / "received", folder / "work"
        self.work.mkdir()
        hooks.copy_recipes(folder / "hooks")
        self._conf = folder / "hilum.conf"
        self.environment = {
            **os.environ,
            "HILUM_CONF": str(self._conf),
            "HILUM_SPOOL": str(self.spool),
            "PYTHONPATH": str(repository),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._rest: ThreadPoolExecutor | None = None
        self._enter: list[str] = []
        self._handle = -1

    def open(self) -> House:
        """Make the network; skips the test where that is not allowed."""
        need("/usr/bin/unshare", "/usr/bin/nsenter")
        up = "ip link set lo up && echo up && exec sleep 600"
        command = ["/usr/bin/unshare", "-n", "sh", "-c", up]
        holder = self._begin(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert holder.stdout is not None
        if holder.stdout.readline() != b"up\n":
            pytest.skip("no network of its own for this user (needs root and iproute2)")
        network = f"/proc/{holder.pid}/ns/net"
        self._enter = ["/usr/bin/nsenter", f"--net={network}", "--"]
        self._handle = handle = os.open(network, os.O_RDONLY)

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle, _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")

        # A thread may be in another network than its process.
        self._rest = ThreadPoolExecutor(1, initializer=enter)
        return self

    def _begin(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("cwd", self.work)
        process = subprocess.Popen(
            command,
            env=self.environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            **options,
        )
        self._processes.append(process)
        return process

    def settle(self, options: str) -> None:
        """Write the settings of the recipes."""
        self._conf.write_text(
            f"HILUM_PYTHON={sys.executable}\nHILUM_SPOOL={self.spool}\n"
            f"HILUM_RESULTS={self.results}\nHILUM_RECEIVED={self.received}\n"
            f"HILUM_AET=HILUM\nHILUM_PORT=11112\nHILUM_OPTIONS='{OPTIONS} {options}'\n"
            f"HILUM_ORTHANC={URL}\nHILUM_ORTHANC_USER=\nHILUM_ORTHANC_PASSWORD=\n"
        )

    def start(self, *command: str | Path, log: str) -> subprocess.Popen[bytes]:
        """Start a process in the network; what it says goes to a file."""
        with (self.folder / f"{log}.log").open("ab") as stream:
            return self._begin(
                [*self._enter, *map(str, command)], stdout=stream, stderr=subprocess.STDOUT
            )

    def script(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of the recipes."""
        return self.start(self.folder / "hooks" / name, *arguments, log=name)

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run a process in the network to its end, and return what it printed."""
        return subprocess.run(
            [*self._enter, *map(str, command)],
            env=self.environment,
            cwd=self.work,
            stdout=subprocess.PIPE,
            text=True,
            check=check,
            timeout=60,
        ).stdout

    def succeeds(self, *command: str | Path) -> bool:
        """Run a process in the network and say whether it succeeded."""
        result = subprocess.run(
            [*self._enter, *map(str, command)], capture_output=True, check=False, timeout=60
        )
        return result.returncode == 0

    def get(self, path: str) -> bytes:
        """Ask Orthanc."""

        def ask() -> bytes:
            with urllib.request.urlopen(URL + path, timeout=10) as answer:
                data: bytes = answer.read()
                return data

        assert self._rest is not None
        return self._rest.submit(ask).result()

    def start_worker(self) -> subprocess.Popen[bytes]:
        before = self.said("worker.sh").count("ready")
        worker = self.script("worker.sh")
        self.wait(lambda: self.said("worker.sh").count("ready") > before, worker)
        return worker

    def said(self, log: str) -> str:
        path = self.folder / f"{log}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def answers(self) -> list[dict[str, Any]]:
        """Return every result, in the order of the names."""
        return [json.loads(path.read_bytes()) for path in sorted(self.results.glob("*.json"))]

    def wait(
        self,
        what: Callable[[], object],
        process: subprocess.Popen[bytes] | None = None,
        seconds: float = 40.0,
    ) -> None:
        end = time.monotonic() + seconds
        while not what():
            logs = {path.name: path.read_text()[-1500:] for path in self.folder.glob("*.log")}
            assert process is None or process.poll() is None, logs
            assert time.monotonic() < end, logs
            time.sleep(0.02)

    def close(self) -> None:
        """End all that was started here, whatever it was doing, and all that it started."""
        if self._rest is not None:
            self._rest.shutdown()
            os.close(self._handle)
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def house(tmp_path: Path, repository: Path) -> Iterator[House]:
    found = House(tmp_path, repository)
    try:
        yield found.open()
    finally:
        found.close()


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dicom(
        draw_phantom(3, "lobar", height=256, width=320), tmp_path_factory.mktemp("x") / "x.dcm"
    )


def pictures(drawing: Path, folder: Path, number: int, **tags: str) -> list[Path]:
    """Write so many pictures of one study, each an instance of its own."""
    folder.mkdir(exist_ok=True)
    study, series = generate_uid(), generate_uid()
    found = []
    for i in range(number):
        ds = pydicom.dcmread(drawing)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.PatientName, ds.PatientID, ds.AccessionNumber = "DRAWN^ANNA", "P-4711", "A-0815"
        ds.InstanceNumber = str(i + 1)
        for keyword, value in tags.items():
            setattr(ds, keyword, value)
        found.append(folder / f"{i:04d}.dcm")
        ds.save_as(found[-1])
    return found


def wait_for_storescp(house: House) -> None:
    """Ask whether it listens: storescp says nothing of it."""
    house.wait(lambda: house.succeeds(ECHOSCU, "127.0.0.1", "11112"))


# ---- storescu to storescp -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["file", "study"])
def test_storescu_to_storescp_to_results(mode: str, house: House, drawing: Path) -> None:
    need(STORESCP, STORESCU)
    house.settle("--sr --sc --heatmap")
    worker = house.start_worker()
    receiver = house.script("storescp_start.sh", mode)
    wait_for_storescp(house)
    sent = pictures(drawing, house.folder / "sent", 3)
    other = pictures(drawing, house.folder / "other", 1, Modality="CT")
    begun = time.monotonic()
    house.run(STORESCU, "-aec", "HILUM", "127.0.0.1", "11112", *sent, *other)
    house.wait(lambda: len(house.answers()) == 4, worker)
    print(f"{mode}: {time.monotonic() - begun:.2f} s from the first of 4 sent to the last result")
    found = collections.Counter(answer["status"] for answer in house.answers())
    assert found == {"ok": 3, "refused": 1}
    for answer in house.answers():
        if answer["status"] != "ok":
            assert answer["reason"].startswith("unsupported_modality")
            continue
        for name in (answer["sr"], answer["sc"], answer["heatmap"]):
            assert (house.results / name).stat().st_size > 1000
    # Nothing stays behind, and the same pictures again are known.
    house.wait(lambda: list(house.received.iterdir()) == [])
    assert list((house.spool / "incoming").iterdir()) == []
    house.run(STORESCU, "-aec", "HILUM", "127.0.0.1", "11112", *sent)
    house.wait(lambda: len(house.answers()) == 7, worker)
    again = [answer for answer in house.answers() if answer.get("stored")]
    assert len(again) == 3
    assert len({answer["key"] for answer in house.answers() if answer["status"] == "ok"}) == 3
    status = [sys.executable, "-m", "engine.serve", str(house.spool), "--status"]
    counts = json.loads(house.run(*status))
    assert counts["worker"] is True
    assert (counts["incoming"], counts["working"], counts["failed"]) == (0, 0, 0)
    assert receiver.poll() is None


HOSTILE = """
import sys, warnings
warnings.simplefilter("ignore")
import pydicom
from pynetdicom import AE, _config
_config.ENFORCE_UID_CONFORMANCE = False
for number, text in enumerate(sys.argv[2:]):
    ds = pydicom.dcmread(sys.argv[1])
    ds.SOPInstanceUID = ds.StudyInstanceUID = ds.SeriesInstanceUID = text
    ds.file_meta.MediaStorageSOPInstanceUID = text
    ae = AE(ae_title="$(touch aet)")
    ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    a = ae.associate("127.0.0.1", 11112, ae_title="`touch b`")
    assert a.is_established
    assert a.send_c_store(ds).Status == 0
    a.release()
"""
EVIL = [
    "1.2;touch d;",
    '1.2";touch e;"',
    "1.2$(touch f)",
    "1.2`touch g`",
    "../../../h",
    "1.2'|touch i",
]


@pytest.mark.parametrize("mode", ["file", "study"])
def test_nothing_a_sender_chooses_reaches_a_shell_or_a_path(
    mode: str, house: House, drawing: Path
) -> None:
    need(STORESCP)
    pytest.importorskip("pynetdicom")
    house.settle("--sr --sc")
    worker = house.start_worker()
    house.script("storescp_start.sh", mode)
    wait_for_storescp(house)
    house.run(sys.executable, "-c", HOSTILE, drawing, *EVIL)
    house.wait(lambda: len(house.answers()) == len(EVIL), worker)
    assert list(house.work.iterdir()) == []
    touched = {path.name for path in house.folder.rglob("*")} & set("abcdefghi")
    assert touched == set()
    assert not (house.folder.parent / "h").exists()
    # The names of files are storescp's own.
    for path in house.results.glob("[!.]*"):
        assert path.name.startswith("DX.X.1.2.276.0.7230010.3.1.4.")


# ---- storescu to Orthanc ------------------------------------------------------------------------


def start_orthanc(house: House, hook: str) -> None:
    """Start Orthanc with the shipped script and its shipped configuration."""
    need(ORTHANC)
    folder = house.folder / "orthanc"
    folder.mkdir()
    settings: dict[str, Any] = {
        "Name": "test",
        "StorageDirectory": str(house.folder / "db"),
        "IndexDirectory": str(house.folder / "db"),
        "DicomAet": "ORTHANC",
        "DicomPort": 4242,
        "HttpPort": 8042,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": True,
    }
    if hook == "python":
        if not PLUGIN.exists():
            pytest.skip("orthanc-python is not installed")
        settings["Plugins"] = [str(PLUGIN)]
    base, scripts = json.dumps(settings), str(house.folder / "hooks")
    listed = hook == "lua" and DEBIANS.exists()
    if listed:
        # As README.md tells: Debian's file has the list, and Orthanc takes no second one.
        base = DEBIANS.read_text().replace("/var/lib/orthanc/db-v6", str(house.folder / "db"))
        assert base.count('"LuaScripts" : [') == 1
        base = base.replace('"LuaScripts" : [', f'"LuaScripts" : [ "{scripts}/orthanc.lua"')
    (folder / "base.json").write_text(base)
    if hook in ("lua", "python") and not listed:
        shipped = (house.folder / "hooks" / f"orthanc_{hook}.json").read_text()
        (folder / "hilum.json").write_text(shipped.replace("/etc/orthanc", scripts))
    orthanc = house.start(ORTHANC, folder, log="orthanc")

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return bool(house.get("/system"))
        return False

    house.wait(answers, orthanc)


@pytest.mark.parametrize("hook", ["lua", "python", "poll"])
def test_storescu_to_orthanc_and_results_back_into_the_study(
    hook: str, house: House, drawing: Path
) -> None:
    need(STORESCU, DSRDUMP)
    pytest.importorskip("highdicom")
    house.settle(f"--sr --sc --orthanc {URL}")
    worker = house.start_worker()
    start_orthanc(house, hook)
    if hook == "poll":
        house.script("orthanc_poll.sh", "--interval", "0.2")
        house.wait((house.folder / "spool.position").exists)
    sent = pictures(drawing, house.folder / "sent", 2)
    other = pictures(drawing, house.folder / "other", 1, Modality="CT")
    begun = time.monotonic()
    house.run(STORESCU, "-aec", "ORTHANC", "127.0.0.1", "4242", *sent, *other)

    def instances() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(house.get("/instances?expand"))
        return found

    house.wait(lambda: len(instances()) == 3 + 4, worker)
    print(f"{hook}: {time.monotonic() - begun:.2f} s from the first of 3 sent to the last result")

    source = pydicom.dcmread(sent[0])
    files = [house.get(f"/instances/{one['ID']}/file") for one in instances()]
    sets = [pydicom.dcmread(BytesIO(file)) for file in files]
    mine = [ds for ds in sets if ds.get("Manufacturer") == OWN_MANUFACTURER]
    assert sorted(ds.Modality for ds in mine) == ["OT", "OT", "SR", "SR"]
    for ds in mine:
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        assert (ds.PatientID, ds.PatientName) == ("P-4711", "DRAWN^ANNA")
        assert ds.AccessionNumber == "A-0815"
        assert ds.SeriesDescription.startswith(OWN_SERIES)
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    reports = [ds for ds in mine if ds.Modality == "SR"]
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in sent}
    for ds in reports:
        assert ds.SOPClassUID == COMPREHENSIVE_3D_SR
        about = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        assert about.ReferencedSOPSequence[0].ReferencedSOPInstanceUID in sources
        path = house.work / "report.dcm"
        path.write_bytes(files[sets.index(ds)])
        result = subprocess.run([DSRDUMP, path], capture_output=True, text=True, check=False)
        # It cannot check texts in UTF-8, and says so; nothing else.
        remarks = [line for line in result.stderr.splitlines() if "ISO_IR 192" not in line]
        assert (result.returncode, remarks) == (0, [])
        assert "Imaging Measurement Report" in result.stdout
        assert "pneumonia-demonstration" in result.stdout
        path.unlink()
    for ds in mine:
        if ds.Modality == "OT":
            assert ds.pixel_array.shape[2] == 3
    # In Orthanc's own eyes as well: the study has the pictures' series and ours.
    studies = json.loads(house.get("/studies?expand"))
    assert sorted(len(study["Series"]) for study in studies) == [1, 5]

    # The loop that must not be: our results came in as new instances.
    before = sorted(one["ID"] for one in instances())
    said, done = house.said("worker.sh"), house.answers()
    time.sleep(2.5)
    assert sorted(one["ID"] for one in instances()) == before
    assert house.said("worker.sh") == said
    assert house.answers() == done
    assert [answer["status"] for answer in done] == ["ok", "ok"]
    for answer in done:
        assert {each["status"] for each in answer["delivered"]} == {"sent"}

    # And if a hook did let one through, the worker would know it.
    for ds in mine:
        name = f"{ds.SOPInstanceUID}.dcm"
        part = house.spool / "incoming" / f".{name}.part"
        part.write_bytes(files[sets.index(ds)])
        part.rename(house.spool / "incoming" / name)
    house.wait(lambda: len(house.answers()) == 6, worker)
    new = [answer for answer in house.answers() if answer["status"] != "ok"]
    assert [answer["reason"].partition(":")[0] for answer in new] == ["own_result"] * 4
    time.sleep(0.5)
    assert sorted(one["ID"] for one in instances()) == before


def test_orthanc_is_down_and_the_dead_letters_get_there_later(house: House, drawing: Path) -> None:
    pytest.importorskip("highdicom")
    house.settle(f"--sr --sc --orthanc {URL}")
    worker = house.start_worker()
    path = pictures(drawing, house.folder / "sent", 1)[0]
    path.rename(house.spool / "incoming" / path.name)
    letters = house.results / "dead_letters"
    house.wait(lambda: len(list(letters.glob("*.dcm"))) == 2, worker)
    start_orthanc(house, "none")
    assert json.loads(house.get("/instances")) == []
    house.run(sys.executable, "-m", "engine.deliver", letters)
    assert len(json.loads(house.get("/instances"))) == 2
    assert list(letters.glob("*.dcm")) == []


# ---- A burst, and a worker that is killed in it --------------------------------------------------


def test_two_hundred_pictures_and_a_killed_worker(house: House, drawing: Path) -> None:
    need(STORESCP, STORESCU)
    n = 200
    house.settle("--sr")
    worker = house.start_worker()
    receiver = house.script("storescp_start.sh")
    wait_for_storescp(house)
    sent = pictures(drawing, house.folder / "sent", n)
    begun = time.monotonic()
    # Four senders at once.
    senders = [
        house.start(STORESCU, "-aec", "HILUM", "127.0.0.1", "11112", *sent[i::4], log=f"scu{i}")
        for i in range(4)
    ]
    kills = 0
    for least in (20, 90):
        house.wait(lambda least=least: len(list(house.results.glob("*.json"))) >= least, worker)  # type: ignore[misc]
        os.killpg(worker.pid, signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        kills += len(list(house.results.glob("*.json"))) < n
        worker = house.start_worker()
    assert kills == 2, "the worker was done before it was killed"
    assert [sender.wait(60) for sender in senders] == [0] * 4

    def left() -> int:
        return sum(
            path.is_file()
            for name in ("incoming", "working")
            for path in (house.spool / name).rglob("*")
        ) + sum(path.is_file() for path in house.received.rglob("*"))

    house.wait(lambda: len(list(house.results.glob("*.json"))) == n and not left(), worker)
    print(f"burst: {time.monotonic() - begun:.2f} s for {n}, with two kills")
    time.sleep(0.5)
    answers = house.answers()
    assert len(answers) == n
    assert {answer["status"] for answer in answers} == {"ok"}
    # One for each picture: by the key, and by what the reports are about.
    assert len({answer["key"] for answer in answers}) == n
    reports = list(house.results.glob("*.sr.dcm"))
    assert sorted(path.name for path in reports) == sorted(answer["sr"] for answer in answers)
    about = set()
    for path in reports:
        evidence = pydicom.dcmread(path).CurrentRequestedProcedureEvidenceSequence[0]
        series = evidence.ReferencedSeriesSequence[0]
        about.add(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    assert about == {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in sent}
    jobs = [json.loads(path.read_bytes()) for path in (house.spool / "answers").glob("*.json")]
    assert sorted(job["key"] for job in jobs) == sorted(answer["key"] for answer in answers)
    assert list((house.spool / "failed").iterdir()) == []
    assert receiver.poll() is None


def test_all_that_was_started_is_ended(tmp_path: Path, repository: Path) -> None:
    house = House(tmp_path, repository)
    try:
        house.open()
    except BaseException:
        house.close()
        raise
    marker = tmp_path / "alive"
    house.start(
        "sh", "-c", f"while :; do date +%s%N >{marker}; sleep 0.02; done & wait", log="loop"
    )
    house.wait(marker.exists)
    house.close()
    before = marker.read_text()
    time.sleep(0.2)
    assert marker.read_text() == before
