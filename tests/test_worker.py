"""A worker: settings there and back, each picture once, deliveries taken up again."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.answers import Prediction
from engine.errors import HeadFileError, ImageError, MissingPart, WriteError
from engine.phantoms import draw_phantom, write_dicom, write_png
from engine.results import picture_identity
from engine.worker import DEAD_LETTERS, Settings, Worker, add_options, settings_of


class Desk:
    """What was asked of the network, of the makers of DICOM objects and of the network cable."""

    def __init__(self) -> None:
        self.loaded = 0
        self.predicted: list[str] = []
        self.made: list[str] = []
        self.sent: list[tuple[str, str]] = []
        self.fails: list[str] = []  # targets that are gone
        self.dies_at: str | None = None
        self.statuses: dict[str, tuple[str, str | None]] = {}
        self.while_loading: list[Callable[[], object]] = []
        self.slow: str | None = None  # a path that waits until another is done
        self.other_done = threading.Event()


class Death(BaseException):
    """In the place of kill -9: nothing of ours catches it."""


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    found = Desk()

    class FakePredictor:
        def __init__(self, heads: Any, *, heatmap: bool, **_options: Any) -> None:
            found.loaded += 1
            self.heads, self.chain, self._heatmap = (), None, heatmap
            self.wanted = ("heatmap",) if heatmap else ()
            self.backbone = SimpleNamespace(name="net", n_streams=2, close=lambda: None)
            if found.while_loading:
                found.while_loading.pop()()
            for head in heads or ():
                if b"broken" in Path(head).read_bytes():
                    raise HeadFileError(head, "broken")

        def predict(self, path: str) -> Prediction:
            found.predicted.append(Path(path).name)
            if path == found.slow:
                assert found.other_done.wait(60)
            elif found.slow is not None:
                found.other_done.set()
            status, reason = found.statuses.get(Path(path).name, ("ok", None))
            if not Path(path).is_file():
                status, reason = "error", "not there"
            sheet = np.zeros((4, 4, 3), np.uint8) if self._heatmap and status == "ok" else None
            return Prediction(
                path, status, reason, {"h": {"label": "x"}}, "net", 1.0,
                wanted=self.wanted, heatmap=sheet,
            )  # fmt: skip

    def make(name: str) -> Any:
        def call(_source: Path, prediction: Prediction, _with: Any) -> bytes:
            if found.dies_at == name:
                raise Death
            found.made.append(name)
            return f"{name} {prediction.key}".encode()

        return call

    class FakeTarget(SimpleNamespace):
        name: str

    def deliver(files: Any, targets: Any, *, dead_letters: Path) -> list[dict[str, Any]]:
        said = []
        for target in targets:
            for file in map(Path, files):
                assert file.is_file()
                if found.dies_at == target.name:
                    raise Death
                found.sent.append((file.name, target.name))
                status = "dead_letter" if target.name in found.fails else "sent"
                said.append(
                    {"file": file.name, "target": target.name, "status": status, "reason": None}
                )
        assert dead_letters.name == DEAD_LETTERS
        return said

    monkeypatch.setattr("engine.prediction.Predictor", FakePredictor)
    monkeypatch.setattr("engine.head_start.begin", lambda _heads: None)
    monkeypatch.setattr("engine.dicom_results.structured_report", make("sr"))
    monkeypatch.setattr("engine.dicom_results.secondary_capture", make("sc"))
    monkeypatch.setattr("engine.delivery.deliver", deliver)
    monkeypatch.setattr("engine.delivery.parse_store", lambda text: FakeTarget(name=text))
    monkeypatch.setattr("engine.delivery.parse_orthanc", lambda text: FakeTarget(name=text))
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_dicom(draw_phantom(1, "none", height=128, width=128), tmp_path / "in.dcm")


def settings(tmp_path: Path, **more: Any) -> Settings:
    return Settings(output_dir=str(tmp_path / "out"), **more)


def files_in(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != ".hilum")


# ---- Settings ----------------------------------------------------------------------------------


def test_settings_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = Settings(
        heads=("a.safetensors",), output_dir="out", allow=("blank",), views=2, heatmap=True,
        sr=True, store=("A@b:1",), orthanc=("http://c",), force=True, threads=3,
    )  # fmt: skip
    found = Settings.from_json(json.loads(json.dumps(given.to_json())))
    assert found.heads == (str(tmp_path / "a.safetensors"),)
    assert found.output_dir == str(tmp_path / "out")
    assert replace(found, heads=given.heads, output_dir="out") == given
    assert Settings.from_json({}) == Settings()
    for wrong in (
        {"heads": "a"}, {"heads": [1]}, {"views": "2"}, {"views": True}, {"views": None},
        {"sr": 1}, {"chain": 1}, {"new": 1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings.from_json(wrong)


def read(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return settings_of(parser, parser.parse_args(arguments))


def test_options_that_need_others(capsys: Any) -> None:
    assert read() == Settings()
    out = ("--output-dir", "o")
    found = read(*out, "--sr", "--store", "A@b.c:104", "--orthanc", "http://u:p@d:8042", "--force")
    assert (found.store, found.orthanc) == (("A@b.c:104",), ("http://u:p@d:8042",))
    for option in (["--sr"], ["--sc"], ["--heatmap"], ["--force"], ["--store", "A@b:1"]):
        with pytest.raises(SystemExit):
            read(*option)
        assert f"{option[0]} " in (error := capsys.readouterr().err)
        assert "give --output-dir" in error
    for wrong, advice in (
        (["--store", "A@b:1"], "give one of them too"),
        (["--sr", "--store", "b:1"], "AET@host:port"),
        (["--sr", "--orthanc", "c:8042"], "http://host:port"),
        (["--chain", "c", "--head", "h"], "do not go together"),
    ):
        with pytest.raises(SystemExit):
            read(*out, *wrong)
        assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "package"),
    [
        ({"sr": True}, "highdicom"),
        ({"sc": True}, "highdicom"),
        ({"store": ("A@b:1",)}, "pynetdicom"),
    ],
)
def test_a_missing_extra_is_told_before_anything_is_done(
    tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], package: str
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(MissingPart, match=rf"{package}.* pip install 'hilum\[pacs\]'"):
        Worker(settings(tmp_path, **more))
    assert desk.loaded == 0
    assert not (tmp_path / "out").exists()


# ---- Once --------------------------------------------------------------------------------------


def test_the_same_picture_is_predicted_once(tmp_path: Path, image: Path, desk: Desk) -> None:
    copy = shutil.copy(image, tmp_path / "renamed.dcm")
    worker = Worker(settings(tmp_path))
    first = worker.answer(image)
    assert (first.status, first.stored, len(first.key or "")) == ("ok", False, 64)
    again, renamed = worker.answer(image), worker.answer(copy)
    assert (again.stored, renamed.stored) == (True, True)
    assert renamed.input == str(copy)
    assert renamed.heads == first.heads
    assert desk.predicted == ["in.dcm"]
    # Another process: the network is not even loaded.
    other = Worker(settings(tmp_path))
    assert other.answer(image).stored
    assert other.stored(tmp_path / "none.dcm") is None
    assert desk.loaded == 1
    assert files_in(tmp_path) == ["in.dcm.json", "renamed.dcm.json"]
    assert worker.answer(image) == again


def test_two_pictures_under_one_uid_are_two(tmp_path: Path, image: Path, desk: Desk) -> None:
    import pydicom

    other = pydicom.dcmread(image)
    other.PixelData = other.PixelData[::-1]
    other.save_as(tmp_path / "other.dcm")
    worker = Worker(settings(tmp_path, sr=True))
    first, second = worker.answer(image), worker.answer(tmp_path / "other.dcm")
    assert desk.predicted == ["in.dcm", "other.dcm"]
    assert first.key != second.key
    assert not second.stored


def test_what_makes_it_another_question(tmp_path: Path, image: Path, desk: Desk) -> None:
    head = tmp_path / "h.safetensors"
    head.write_bytes(b"one")
    questions: list[dict[str, Any]] = [{}, {"heads": (str(head),)}, {"views": 1}]
    questions += [{"allow": ("blank",)}, {"force": True}]
    for number, more in enumerate(questions, 1):
        assert not Worker(settings(tmp_path, **more)).answer(image).stored
        assert len(desk.predicted) == number
    head.write_bytes(b"two")
    assert not Worker(settings(tmp_path, heads=(str(head),))).answer(image).stored
    # A chain: its text, and the heads it names.
    chain = tmp_path / "c.toml"
    chain.write_text('[[step]]\nname = "a"\nhead = "h.safetensors"\n')
    keys = {Worker(settings(tmp_path, chain=str(chain)))._key(picture_identity(image))}
    head.write_bytes(b"three")
    keys.add(Worker(settings(tmp_path, chain=str(chain)))._key(picture_identity(image)))
    chain.write_text(chain.read_text() + "\n")
    keys.add(Worker(settings(tmp_path, chain=str(chain)))._key(picture_identity(image)))
    assert len(keys) == 3


def test_errors_are_tried_again_and_refusals_are_not(tmp_path: Path, desk: Desk) -> None:
    bad, blank = tmp_path / "bad.png", tmp_path / "blank.png"
    write_png(draw_phantom(1, "none", height=128, width=128), bad)
    write_png(draw_phantom(2, "none", height=128, width=128), blank)
    desk.statuses = {"bad.png": ("error", "why"), "blank.png": ("refused", "blank: black")}
    for _ in range(2):
        worker = Worker(settings(tmp_path, sr=True, heatmap=True))
        found = [worker.answer(path) for path in (bad, blank, tmp_path / "none.png")]
    assert [one.status for one in found] == ["error", "refused", "error"]
    assert desk.predicted == ["bad.png", "blank.png", "none.png", "bad.png", "none.png"]
    assert desk.made == []
    assert files_in(tmp_path) == ["bad.png.json", "blank.png.json", "none.png.json"]


def test_a_head_that_changes_while_the_worker_waits(
    tmp_path: Path, image: Path, desk: Desk
) -> None:
    head = tmp_path / "h.safetensors"
    head.write_bytes(b"one")
    asked = settings(tmp_path, heads=(str(head),))
    worker = Worker(asked)
    assert worker.stored(image) is None  # digests are known now, heads are not loaded
    head.write_bytes(b"two")
    found = worker.answer(image)
    assert found.key == Worker(asked)._key(picture_identity(image))
    # It changes between the key and the loading, too.
    head.write_bytes(b"two and a bit")
    other = Worker(asked)
    desk.while_loading = [lambda: head.write_bytes(b"two and a half")]
    assert other.answer(image).key == Worker(asked)._key(picture_identity(image)) != found.key
    head.write_bytes(b"three")  # loaded heads stay what they were, and so do their answers
    assert other.answer(image).stored


def test_a_broken_head_writes_nothing(tmp_path: Path, image: Path, desk: Desk) -> None:
    head = tmp_path / "h.safetensors"
    head.write_bytes(b"broken")
    with pytest.raises(HeadFileError):
        Worker(settings(tmp_path, heads=(str(head),))).answer(image)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    with pytest.raises(WriteError):
        Worker(settings(tmp_path)).prepare()
    assert desk.predicted == []


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, image: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(settings(tmp_path))
    predictor = worker._load()
    real, sizes = predictor.predict, iter([1, 0])

    def growing(path: str) -> Prediction:
        if next(sizes, 0):
            with open(path, "ab") as stream:  # noqa: PTH123
                stream.write(b"more")
        return real(path)

    monkeypatch.setattr(predictor, "predict", growing)
    assert worker.answer(image).status == "ok"
    assert desk.predicted == ["in.dcm"] * 2
    sizes = iter([1] * 9)
    other = write_png(draw_phantom(3, "none", height=128, width=128), tmp_path / "x.png")
    found = worker.answer(other)
    assert (found.status, found.key) == ("error", None)
    assert "wait until it is whole" in str(found.reason)


def test_many_at_once_in_order_and_with_names_that_do_not_depend_on_luck(
    tmp_path: Path, desk: Desk
) -> None:
    paths = []
    for number in range(12):
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        paths.append(
            write_png(draw_phantom(number, "none", height=128, width=128), folder / "i.png")
        )
    desk.slow = str(paths[0])
    worker = Worker(settings(tmp_path, heatmap=True))
    real = worker._keep

    def keep(seen: Any) -> Prediction:
        # Were it done by the threads, the second picture would have taken the name by now.
        assert threading.current_thread() is threading.main_thread()
        return real(seen)

    worker._keep = keep  # type: ignore[method-assign]
    found = list(worker.answer_many(iter(paths)))
    assert [one.input for one in found] == [str(path) for path in paths]
    assert found[0].heatmap_file == "i.png.heatmap.png"
    assert len({one.heatmap_file for one in found}) == 12
    assert all(one.heatmap is None for one in found)
    again = list(Worker(settings(tmp_path, heatmap=True)).answer_many(iter(paths)))
    assert [replace(one, stored=False) for one in again] == found
    assert len(desk.predicted) == 12


# ---- What is made of an answer, and where it goes ----------------------------------------------


def test_reports_and_captures_of_dicom_only(tmp_path: Path, image: Path, desk: Desk) -> None:
    png = write_png(draw_phantom(1, "none", height=128, width=128), tmp_path / "i.png")
    told: list[tuple[str, str]] = []
    asked = settings(tmp_path, sr=True, sc=True)
    worker = Worker(asked, notice=lambda *said: told.append(said))
    found = worker.answer(image).to_json()
    assert (found["sr"], found["sc"]) == ("in.dcm.sr.dcm", "in.dcm.sc.dcm")
    assert "heatmap" not in found  # it was drawn for the capture only
    assert told == []
    found = worker.answer(png).to_json()
    assert not {"sr", "sc", "delivered"} & set(found)
    assert [path for path, _ in told] == [str(png)]
    assert str(tmp_path) not in told[0][1]
    assert worker.answer(png).stored
    assert files_in(tmp_path) == ["i.png.json", "in.dcm.json", "in.dcm.sc.dcm", "in.dcm.sr.dcm"]


def test_more_is_asked_of_a_stored_answer(tmp_path: Path, image: Path, desk: Desk) -> None:
    assert Worker(settings(tmp_path)).answer(image).sr_file is None
    found = Worker(settings(tmp_path, sr=True)).answer(image)
    assert (found.sr_file, found.stored) == ("in.dcm.sr.dcm", False)
    found = Worker(settings(tmp_path, heatmap=True)).answer(image)
    assert (found.sr_file, found.heatmap_file) == ("in.dcm.sr.dcm", "in.dcm.heatmap.png")
    assert Worker(settings(tmp_path, heatmap=True, sr=True)).answer(image).stored
    assert Worker(settings(tmp_path)).answer(image).stored
    assert len(desk.predicted) == 3


@pytest.mark.parametrize("error", [ImageError("x", "its header is odd"), KeyError("PatientName")])
def test_a_report_that_cannot_be_made_costs_nothing_else(
    tmp_path: Path, image: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_arguments: Any) -> bytes:
        raise error

    monkeypatch.setattr("engine.dicom_results.structured_report", fail)
    told: list[str] = []
    worker = Worker(settings(tmp_path, sr=True, sc=True), notice=lambda _, text: told.append(text))
    found = worker.answer(image)
    assert (found.status, found.sr_file, found.sc_file) == ("ok", None, "in.dcm.sc.dcm")
    assert len(told) == 1
    assert "PatientName" not in told[0]
    assert not worker.answer(image).stored  # it is still wanted


def test_each_target_gets_each_result_once(tmp_path: Path, image: Path, desk: Desk) -> None:
    asked = settings(tmp_path, sr=True, sc=True, store=("A@b:1",), orthanc=("http://c",))
    found = Worker(asked).answer(image)
    both = [("in.dcm.sr.dcm", "A@b:1"), ("in.dcm.sc.dcm", "A@b:1"),
            ("in.dcm.sr.dcm", "http://c"), ("in.dcm.sc.dcm", "http://c")]  # fmt: skip
    assert desk.sent == both
    assert [one["status"] for one in found.delivered] == ["sent"] * 4
    on_disk = json.loads((tmp_path / "out" / "in.dcm.json").read_text())
    assert on_disk == found.to_json()
    copy = shutil.copy(image, tmp_path / "copy.dcm")
    again = Worker(asked).answer(copy)
    assert (again.stored, again.delivered, desk.sent) == (True, found.delivered, both)
    # A new target gets what is there; --force sends all again.
    Worker(replace(asked, store=("A@b:1", "NEW@b:1"))).answer(image)
    assert desk.sent[4:] == [("in.dcm.sr.dcm", "NEW@b:1"), ("in.dcm.sc.dcm", "NEW@b:1")]
    assert desk.predicted == ["in.dcm"]
    forced = Worker(replace(asked, force=True)).answer(image)
    assert desk.sent[6:] == both
    assert (forced.stored, len(forced.delivered)) == (False, 4)


def test_a_delivery_that_was_cut_off_is_taken_up_again(
    tmp_path: Path, image: Path, desk: Desk
) -> None:
    asked = settings(tmp_path, sr=True, store=("A@b:1", "B@b:1"))
    desk.dies_at = "B@b:1"
    with pytest.raises(Death):
        Worker(asked).answer(image)
    assert json.loads((tmp_path / "out" / "in.dcm.json").read_text())["sr"] == "in.dcm.sr.dcm"
    desk.dies_at = None
    found = Worker(asked).answer(image)
    assert desk.sent == [("in.dcm.sr.dcm", "A@b:1"), ("in.dcm.sr.dcm", "B@b:1")]
    assert (found.stored, len(found.delivered)) == (True, 2)
    assert desk.predicted == ["in.dcm"]


def test_dead_letters_are_for_another_command(tmp_path: Path, image: Path, desk: Desk) -> None:
    asked = settings(tmp_path, sr=True, store=("A@b:1",))
    desk.fails = ["A@b:1"]
    assert Worker(asked).answer(image).delivered[0]["status"] == "dead_letter"
    assert Worker(asked).answer(image).delivered[0]["status"] == "dead_letter"
    assert len(desk.sent) == 1


def test_killed_while_something_is_made_nothing_is_said(
    tmp_path: Path, image: Path, desk: Desk
) -> None:
    asked = settings(tmp_path, heatmap=True, sr=True, sc=True, store=("A@b:1",))
    for step in ("sr", "sc"):
        desk.dies_at = step
        with pytest.raises(Death):
            Worker(asked).answer(image)
        assert files_in(tmp_path) == []
    desk.dies_at = None
    assert len(Worker(asked).answer(image).delivered) == 2


def test_own_results_are_refused_and_never_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real reader: what Hilum made comes back from a PACS like any other object."""
    import pydicom

    path = write_dicom(draw_phantom(1, "none", height=128, width=128), tmp_path / "own.dcm")
    dataset = pydicom.dcmread(path)
    dataset.Manufacturer, dataset.SeriesDescription = "Hilum", "Hilum result"
    dataset.save_as(path)

    def never(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("sent")

    monkeypatch.setattr("engine.delivery.deliver", never)
    worker = Worker(settings(tmp_path, sr=True, sc=True, store=("A@127.0.0.1:1",)))
    for stored in (False, True):
        found = worker.answer(path)
        assert (found.status, found.stored, found.delivered) == ("refused", stored, ())
        assert str(found.reason).startswith("own_result: ")
    assert files_in(tmp_path) == ["own.dcm.json"]


def test_a_stored_answer_needs_no_network(tmp_path: Path, image: Path, desk: Desk) -> None:
    Worker(settings(tmp_path)).answer(image)
    code = (
        "import sys\nfrom engine.worker import Settings, Worker\n"
        "found = Worker(Settings(output_dir=sys.argv[1])).answer(sys.argv[2])\n"
        "heavy = ('numpy', 'openvino', 'cffi', 'PIL', 'pydicom', 'numba')\n"
        "print(found.stored, [name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(image)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == "True []"
