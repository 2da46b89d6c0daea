"""The demo goes the whole way: offline, into one folder, marked as synthetic, in 80 columns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import engine
import formats
from engine import demo
from engine.images import Preprocessing
from engine.pooling import blocks_to_notes, feature_width, parse_taps

CLASSES = ("bacterial", "normal", "viral")
ATTRIBUTION = "Nobody, features drawn at random for a test, no year"
N_PATIENTS = 30


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small stand-in for the embedded container, of the installed network."""
    path = tmp_path_factory.mktemp("demo") / "small.hilum"
    with engine.load_backbone(streams=1) as backbone:
        channels = {name: tap.channels for name, tap in backbone.taps.items()}
        blocks = parse_taps(backbone.default_taps, None, channels)
        preprocessing = Preprocessing.from_dict(backbone.preprocessing)
        name, digest = backbone.name, backbone.digest
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(N_PATIENTS) % 3, 2)
    centers = rng.normal(0.0, 0.1, (3, feature_width(blocks)))
    features = 1.0 + centers[labels] + rng.normal(0.0, 0.1, (len(labels), feature_width(blocks)))
    formats.write_container(
        path,
        features.astype(np.float32),
        {
            "format": "hilum-notes",
            "version": 1,
            "classes": list(CLASSES),
            "multilabel": False,
            "backbone": {"name": name, "sha256": digest},
            "preprocessing": preprocessing.to_dict(),
            "blocks": blocks_to_notes(blocks),
            "about": {
                "title": "Stand-in",
                "attribution": ATTRIBUTION,
                "licence": "CC0",
                "terms": "Test only",
                "age_range_years": [1, 5],
            },
        },
        columns={
            "label": labels.astype(np.uint16),
            "group": np.repeat(np.arange(N_PATIENTS), 2).astype(np.uint32),
        },
        n_values={"label": 3, "group": N_PATIENTS},
    )
    return path


@pytest.fixture
def embedded(container: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in where the command looks, and the command in a folder of few phantoms."""
    real = demo.run_demo

    def with_container(output_dir: Any = None, **options: Any) -> int:
        return real(output_dir, **{"container": container, **options})

    monkeypatch.setattr(demo, "run_demo", with_container)
    monkeypatch.setattr(demo, "PHANTOMS", ((1, "none"), (2, "lobar")))
    monkeypatch.setattr(demo, "PHANTOM_HEIGHT", 256)
    monkeypatch.setattr(demo, "PHANTOM_WIDTH", 320)
    return container


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


EXPECTED = [
    "phantoms.hilum",
    "phantoms/phantom-1-none.dcm",
    "phantoms/phantom-1-none.png",
    "phantoms/phantom-2-lobar.dcm",
    "phantoms/phantom-2-lobar.png",
    "pneumonia.safetensors",
    "predictions.jsonl",
    "report.html",
]


def too_wide(line: str) -> bool:
    """Whether a line breaks the 80 columns; a command is as long as the interpreter's path."""
    return len(line) > 80 and " -m engine." not in line


def test_whole_way(
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_network(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the demo used the network")

    # Not socket.socket itself: modules that are imported later derive from it.
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "hilum-demo"
    assert files_under(folder) == EXPECTED
    assert [path.name for path in tmp_path.iterdir()] == ["hilum-demo"]  # and nothing beside it

    text = " ".join(out.split())
    assert ATTRIBUTION in text and "CC0" in text and "Test only" in text
    assert "60 rows of 30 patients" in text
    assert f"{embedded.stat().st_size / 1e6:.1f} MB" in text
    assert "mean nothing medically" in text and "Research use only" in text
    assert "1 to 5 years" in text and "get the same answer" in text
    for name in ("accuracy", "AUROC, mean of classes", *(f"AUROC {name}" for name in CLASSES)):
        line = next(line for line in out.splitlines() if line.strip().startswith(name))
        assert "[" in line  # with its interval
    assert [line for line in out.splitlines() if too_wide(line)] == []
    assert out.count(" s\n") == 5  # a time for each step
    assert "%" not in err  # no bar where nobody looks

    head = engine.load_head(folder / "pneumonia.safetensors")
    assert head.classes == CLASSES and head.metrics["n_groups"] == N_PATIENTS
    answers = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [Path(answer["input"]).name for answer in answers] == [
        f"phantom-{name}.{suffix}" for name in ("1-none", "2-lobar") for suffix in ("png", "dcm")
    ]
    for png, dicom in zip(answers[::2], answers[1::2], strict=True):
        assert png["status"] == dicom["status"] == "ok"
        assert png["heads"] == dicom["heads"]
        assert sum(png["heads"]["pneumonia"]["probabilities"].values()) == pytest.approx(1)
    with engine.open_container(folder / "phantoms.hilum") as phantoms:
        phantoms.verify()
        assert phantoms.n_rows == 4 and phantoms.classes == ("lobar", "none")
        assert phantoms.groups is not None and len(set(phantoms.groups.tolist())) == 2


def test_a_second_demo_leaves_the_first_alone(
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hilum-demo").mkdir()
    (tmp_path / "hilum-demo" / "mine.txt").write_text("mine")
    assert demo.main(["--quiet"]) == 0
    assert files_under(tmp_path / "hilum-demo") == ["mine.txt"]
    assert files_under(tmp_path / "hilum-demo-2") == EXPECTED
    assert capsys.readouterr().out == "hilum-demo-2\n"


def test_output_dir_may_be_used_again(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        assert demo.main(["--output-dir", str(folder), "--quiet"]) == 0
    assert files_under(folder) == EXPECTED
    assert capsys.readouterr() == (f"{folder}\n" * 2, "")


def test_read_only_folder(
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    here.chmod(0o555)
    try:
        if os.access(here, os.W_OK):  # root may write anywhere: let the system's answer be made up
            make = Path.mkdir

            def refuse(self: Path, *arguments: Any, **options: Any) -> None:
                if self.parent == Path():
                    raise PermissionError(13, "Permission denied", str(self))
                make(self, *arguments, **options)

            monkeypatch.setattr(Path, "mkdir", refuse)
        assert demo.main([]) == 0
    finally:
        here.chmod(0o755)
    (made,) = elsewhere.iterdir()
    out, err = capsys.readouterr()
    assert files_under(made) == EXPECTED and files_under(here) == []
    assert "Permission denied" in err and str(made) in err and str(made) in out


def test_output_dir_that_cannot_be(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file")
    assert demo.main(["--output-dir", str(tmp_path / "file"), "--quiet"]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert files_under(tmp_path) == ["file"]


def test_missing_container_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(engine.ContainerError, match="gone"):
        demo.run_demo(container=tmp_path / "gone.hilum", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_disagreement_is_an_error(
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A reader that got polarity wrong would not go unnoticed."""
    import engine.phantoms

    write = engine.phantoms.write_dicom

    def negative(phantom: Any, path: Path, *, photometric: str) -> Path:
        pixels = engine.phantoms.WHITE - phantom.pixels
        turned = engine.phantoms.Phantom(pixels, phantom.seed, phantom.finding, phantom.mark_box)
        return write(turned, path, photometric=photometric)

    monkeypatch.setattr(engine.phantoms, "write_dicom", negative)
    assert demo.main(["--output-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "reads one of them wrongly" in err and "same answer" not in out


def test_help_is_about_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(["--help"])
    assert stop.value.code == 0
    assert "Research use only" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        demo.main(["--nonsense"])
    assert stop.value.code == 2


@pytest.mark.skipif(
    not demo.DEMONSTRATION_CONTAINER.is_file(), reason="the embedded container is not built yet"
)
def test_the_command_itself(tmp_path: Path) -> None:
    """The embedded container, the installed network, a fresh process and another folder."""
    result = subprocess.run(
        [sys.executable, "-m", "engine.demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "Kermany" in result.stdout and "CC BY 4.0" in result.stdout
    assert [line for line in result.stdout.splitlines() if too_wide(line)] == []
    assert len(files_under(tmp_path / "hilum-demo")) == 4 + 2 * len(demo.PHANTOMS)
    assert [path.name for path in tmp_path.iterdir()] == ["hilum-demo"]


@pytest.mark.parametrize(
    ("active", "prefix", "executable", "typed"),
    [
        (False, ".venv", ".venv/bin/python", ".venv/bin/python"),
        (True, ".venv", ".venv/bin/python", "python"),
        (False, "/opt/env", "/opt/env/bin/python", "/opt/env/bin/python"),
    ],
)
def test_the_next_commands_can_be_typed_as_they_stand(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    active: bool,
    prefix: str,
    executable: str,
    typed: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))
    monkeypatch.setattr(sys, "executable", str(tmp_path / executable))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    if active:
        monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / prefix))
    assert demo._python() == typed
