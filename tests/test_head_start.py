"""The head start gives what load_backbone would have loaded, or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import formats
from engine import backbone, head_start, openvino_c
from engine.backbone import LoadedBackbone, load_backbone
from engine.worker import Settings, Worker

DEMONSTRATION = Path(backbone.__file__).parent / "demonstration" / "pneumonia.safetensors"
NAME = "efficientnet-lite0"


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(head_start, "_thread", None)
    monkeypatch.setattr(head_start, "_loaded", {})
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    yield
    if head_start._thread is not None:
        head_start._thread.join()


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note which backbones are loaded, and in which thread."""
    loads: list[tuple[str, str]] = []
    original = LoadedBackbone.__init__

    def spy(self: LoadedBackbone, name: str, *arguments: Any) -> None:
        loads.append((name, threading.current_thread().name))
        original(self, name, *arguments)

    monkeypatch.setattr(LoadedBackbone, "__init__", spy)
    return loads


def write_head(path: Path, **changes: Any) -> Path:
    tensors, metadata = formats.read_head(DEMONSTRATION)
    return formats.write_head(path, tensors, metadata | changes)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_it_is_taken_once_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, streams: int, cached: bool
) -> None:
    picture = np.arange(224 * 224, dtype=np.uint32).reshape(1, 1, 224, 224).astype(np.uint8)
    if cached:
        load_backbone(streams=1)
    loads = count_loads(monkeypatch)
    head_start.begin()
    first = load_backbone(streams=streams)
    second = load_backbone(streams=streams)
    assert loads == [(NAME, "head start"), (NAME, "MainThread")]
    assert first.n_streams == second.n_streams == streams
    expected = load_backbone(streams=1, cache_dir="").infer(picture)
    for loaded in (first, second):
        assert list(loaded.taps) == list(expected)
        for name, found in loaded.infer(picture).items():
            np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize(
    "other",
    [{"taps": ["block2"]}, {"taps": "all"}, {"cache_dir": ""}, {"name": "efficientnet-lite2"}],
)
def test_what_does_not_fit_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    loads = count_loads(monkeypatch)
    head_start.begin()
    loaded = load_backbone(streams=1, **other)
    assert loads[-1] == (other.get("name", NAME), "MainThread")
    if "taps" in other:
        assert list(loaded.taps) == (
            ["block2"] if other["taps"] != "all" else [tap["name"] for tap in loaded.card["taps"]]
        )


def test_other_taps_of_the_same_network_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    head_start.begin()
    loaded = load_backbone(streams=1, taps=["block10", "block2"])
    assert list(loaded.taps) == ["block2", "block10"]
    assert len(loads) == 1


def test_taps_of_all_heads_on_the_backbone(tmp_path: Path) -> None:
    block = {"tap": "final", "pooling": "mean", "offset": 0, "width": 1280}
    more = write_head(tmp_path / "more.safetensors", blocks=[block])
    strange = write_head(tmp_path / "strange.safetensors", backbone="another", blocks=[block])
    name, taps = head_start._wanted([DEMONSTRATION, strange])
    assert (name, taps) == (NAME, ["block4", "block7", "block10"])
    assert head_start._wanted([str(DEMONSTRATION), str(more)])[1][-1] == "final"


def test_joined_backbones_are_loaded_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [NAME, "efficientnet-lite2"]
    blocks = [
        {"tap": f"{name}.block10", "pooling": "mean", "offset": 0, "width": 1} for name in names
    ]
    head = write_head(tmp_path / "joined.safetensors", backbone="+".join(names), blocks=blocks)
    loads = count_loads(monkeypatch)
    head_start.begin([head])
    joined = load_backbone("+".join(names), streams=1, taps=[block["tap"] for block in blocks])
    assert loads == [(name, "head start") for name in names]
    assert list(joined.taps) == [block["tap"] for block in blocks]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\0" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        b"no head at all",
    ],
)
def test_what_goes_wrong_is_left_to_others(tmp_path: Path, content: bytes | None) -> None:
    head = tmp_path / "bad.safetensors"
    if content is not None:
        head.write_bytes(content)
    interval = sys.getswitchinterval()
    head_start.begin([head])
    assert head_start.take(NAME) is None
    assert sys.getswitchinterval() == interval
    head_start.begin()  # begins anew
    assert head_start.take(NAME) is not None


def test_damaged_network_is_reported_by_load_backbone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(backbone.MODELS_DIR, tmp_path / "models", ignore=ignored)
    monkeypatch.setattr(backbone, "MODELS_DIR", tmp_path / "models")
    (tmp_path / "models" / f"{NAME}.bin").write_bytes(b"altered")
    head_start.begin()
    with pytest.raises(backbone.BackboneError, match="SHA-256"):
        load_backbone(streams=1)


def test_heads_of_a_chain_have_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chain = tmp_path / "chain.toml"
    shutil.copy(DEMONSTRATION, tmp_path / "head.safetensors")
    chain.write_text('[[step]]\nname = "one"\nhead = "head.safetensors"\n')
    loads = count_loads(monkeypatch)
    worker = Worker(Settings(chain=str(chain)), streams=1).prepare()
    assert loads == [(NAME, "head start")]
    worker.close()


def test_it_imports_little(repository: Path) -> None:
    program = (
        "import sys, engine.head_start as start\n"
        "early = set(sys.modules)\n"
        "start.begin()\n"
        "start._thread.join()\n"
        "heavy = ('numpy', 'PIL', 'openvino', 'cffi', 'subprocess')\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "print([m for m in ('json', 'hashlib', 'engine.backbone') if m in early])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_a_program_of_others_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has NumPy was not started for one prediction."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    heaps: list[None] = []
    monkeypatch.setattr(openvino_c, "use_one_heap", lambda: heaps.append(None))
    head_start.begin()
    assert head_start.take(NAME) is not None
    assert ("OPENBLAS_NUM_THREADS" in os.environ, heaps) == (False, [])
    monkeypatch.delitem(sys.modules, "numpy")
    head_start.begin()
    assert head_start.take(NAME) is not None
    assert (os.environ["OPENBLAS_NUM_THREADS"], heaps) == ("1", [None])
