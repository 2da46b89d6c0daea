"""A cold start: what a prediction of one file imports and how much memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.phantoms import draw_phantom, write_dicom, write_png

HEAVY = {
    "asyncio", "cffi", "concurrent.futures", "cryptography", "email", "gdcm", "highdicom", "http",
    "jpeg_ls", "llvmlite", "matplotlib", "multiprocessing", "numba", "openvino", "pyarrow",
    "pycparser", "pydicom", "pynetdicom", "scipy", "sklearn", "ssl", "subprocess", "torch", "tqdm",
    "engine.demo", "engine.features", "engine.heatmap", "engine.kernels", "engine.metrics",
    "engine.report", "engine.serve", "engine.training", "engine.views",
    "formats.editing", "formats.writer",
}  # fmt: skip
# What pydicom 3.0 imports with its decoders.
WITH_PYDICOM = {"email", "gdcm", "jpeg_ls", "pydicom"}
MOST_MIB = 150
# The embedded head knows children, no phantoms.
OPTIONS = ["--quiet", "--allow", "out_of_distribution"]
RUN = """
import json, os, runpy, sys
end = os._exit
def tell(code):
    print(json.dumps({name: module is not None for name, module in sys.modules.items()}))
    sys.stdout.flush()
    end(code)
os._exit = tell
runpy.run_module("engine.predict", run_name="__main__", alter_sys=True)
"""
launched = pytest.mark.skipif(
    not hasattr(os, "wait4"), reason="peak memory of another process needs wait4"
)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_png(draw_phantom(1), tmp_path_factory.mktemp("cold") / "one.png")


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for its pixels to count."""
    phantom = draw_phantom(1, height=3000, width=3000)
    return write_dicom(phantom, tmp_path_factory.mktemp("cold") / "one.dcm")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, png: Path) -> Path:
    """A user's cache folder that holds the compiled network."""
    folder = tmp_path_factory.mktemp("cache")
    predict(png, folder)
    assert len(list((folder / "hilum").glob("*.blob"))) == 1
    return folder


def start(arguments: list[str], cache: str | Path) -> subprocess.CompletedProcess[str]:
    folder = str(cache)
    changed = {"XDG_CACHE_HOME": folder, "LOCALAPPDATA": folder, "HOME": folder}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(engine.__file__).parents[1],
        env=os.environ | changed,
        capture_output=True,
        text=True,
        check=True,
    )


def predict(file: Path, cache: str | Path, *more: str) -> dict[str, Any]:
    done = start(["-m", "engine.predict", str(file), *OPTIONS, *more], cache)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["status"] == "ok"
    return answer


def imported(file: Path, cache: Path, *more: str) -> set[str]:
    """Names of all modules that are there when a real run of the command ends."""
    done = start(["-c", RUN, str(file), *OPTIONS, *more], cache)
    answer, modules = done.stdout.splitlines()
    assert json.loads(answer)["status"] == "ok"
    found = {name for name, is_there in json.loads(modules).items() if is_there}
    assert {"numpy", "engine.backbone"} <= found
    return found


@pytest.mark.parametrize("results", [False, True])
def test_a_picture_loads_only_what_it_needs(
    png: Path, cache: Path, tmp_path: Path, results: bool
) -> None:
    more = ["--output-dir", str(tmp_path)] if results else []
    found = imported(png, cache, *more)
    assert sorted(found & HEAVY) == []
    assert "PIL.PngImagePlugin" in found
    assert sorted(name for name in found if name.startswith("PIL.") and "Plugin" in name) == [
        "PIL.PngImagePlugin"
    ]


def test_a_dicom_file_loads_pydicom_besides(dicom: Path, cache: Path, tmp_path: Path) -> None:
    found = imported(dicom, cache, "--output-dir", str(tmp_path))
    assert "pydicom" in found
    assert sorted(found & (HEAVY - WITH_PYDICOM)) == []


def test_without_a_network_in_the_cache_it_is_compiled(png: Path, tmp_path: Path) -> None:
    found = imported(png, tmp_path)
    assert "openvino" in found
    assert sorted(found & {"openvino.tools.ovc", "torch", "numba"}) == []
    assert "openvino" not in imported(png, tmp_path)


def test_a_small_folder_waits_for_no_compiled_loops(png: Path, cache: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from engine import extract\n"
        "code = extract.main(sys.argv[1:])\n"
        "print(sorted({'numba', 'tqdm', 'openvino'} & set(sys.modules))); sys.exit(code)"
    )
    out = tmp_path / "few.hilum"
    done = start(["-c", code, str(png.parent), "-o", str(out)], cache)
    assert done.stdout.splitlines()[-1] == "[]"
    assert out.exists()


@launched
@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_memory_is_bounded(request: pytest.FixtureRequest, cache: Path, kind: str) -> None:
    file = request.getfixturevalue(kind)
    program = [sys.executable, "-m", "engine.predict", str(file), *OPTIONS]
    found = json.loads(start(["-S", "bench/launch.py", *program], cache).stdout)
    assert found["code"] == 0
    assert 20 < found["peak_mib"] <= MOST_MIB


def test_the_answer_is_the_same_with_whatever_cache(png: Path, cache: Path, tmp_path: Path) -> None:
    blobs = list((cache / "hilum").iterdir())
    times = [path.stat().st_mtime_ns for path in blobs]
    occupied = tmp_path / "file"
    occupied.write_text("here is no folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    empty.chmod(0o500)  # without effect for root, for whom the occupied one stands
    blobs[0].parent.chmod(0o500)
    try:
        answers = [predict(png, folder) for folder in (cache, occupied, empty, "no folder")]
    finally:
        empty.chmod(0o700)
        blobs[0].parent.chmod(0o700)
    for answer in answers:
        del answer["milliseconds"]
    assert answers[1:] == [answers[0]] * 3
    assert [path.stat().st_mtime_ns for path in blobs] == times
    assert occupied.read_text() == "here is no folder"


@pytest.mark.parametrize(
    ("damage", "code"), [("no head", 2), ("no picture", 1), ("no head's header", 1)]
)
def test_a_head_start_that_fails_leaves_the_message_to_others(
    png: Path, cache: Path, tmp_path: Path, damage: str, code: int
) -> None:
    head, file = tmp_path / "bad.safetensors", png
    if damage == "no picture":
        head, file = Path(engine.__file__).parent / "demonstration/pneumonia.safetensors", head
    elif damage == "no head's header":
        head.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(subprocess.CalledProcessError) as found:
        start(["-m", "engine.predict", str(file), "--head", str(head)], cache)
    assert found.value.returncode == code
    assert "Traceback" not in found.value.stderr
    assert "bad.safetensors" in found.value.stderr + found.value.stdout
