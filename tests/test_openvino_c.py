"""OpenVINO's C library through cffi: the same as through its Python package."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import backbone, openvino_c
from engine.errors import BackboneError
from engine.openvino_c import Core, OpenVinoError

PROPERTIES = backbone._CONFIGURATION
OUTPUTS = ["block2", "block4"]


@pytest.fixture(scope="module")
def blob() -> bytes:
    return backbone._compile("efficientnet-lite0", OUTPUTS)


def run(request: openvino_c.Request) -> bytes:
    pixels = np.frombuffer(request.input, np.uint8)
    pixels[:] = np.arange(pixels.size) % 251
    request.run()
    return b"".join(bytes(request.output(name)) for name in OUTPUTS)


def test_same_bits_as_the_python_package(blob: bytes) -> None:
    ov = backbone._import_openvino()
    compiled = ov.Core().import_model(blob, "CPU", PROPERTIES)
    request = compiled.create_infer_request()
    request.infer([np.arange(224 * 224).reshape(1, 1, 224, 224).astype(np.uint16) % 251])
    expected = b"".join(
        np.ascontiguousarray(request.get_tensor(name).data).tobytes() for name in OUTPUTS
    )
    assert run(Core(PROPERTIES).import_network(blob).request(OUTPUTS)) == expected
    assert openvino_c.version() == ov.__version__
    assert Core(PROPERTIES).cpu_name() == ov.Core().get_property("CPU", "FULL_DEVICE_NAME")


def test_networks_are_imported_with_the_properties(blob: bytes) -> None:
    network = Core(PROPERTIES).import_network(blob)
    assert {name: network.property(name) for name in PROPERTIES} == PROPERTIES
    other = Core(PROPERTIES | {"INFERENCE_NUM_THREADS": "2"}).import_network(blob)
    assert other.property("INFERENCE_NUM_THREADS") == "2"


def test_a_network_keeps_what_it_was_imported_from(blob: bytes) -> None:
    """OpenVINO takes the weights from there: freed and written over, features were others."""
    view = memoryview(bytearray(blob))
    watched = weakref.ref(view)
    request = Core(PROPERTIES).import_network(view).request(OUTPUTS)
    expected = run(request)
    del view
    gc.collect()
    assert watched() is not None
    assert run(request) == expected
    del request
    gc.collect()
    assert watched() is None


def test_garbage_in_a_cycle_with_its_memory_is_collected(repository: Path) -> None:
    """A view that was still exported when the collector came to it ended the process."""
    program = (
        "import gc\n"
        "from engine import backbone\n"
        "from engine.openvino_c import Core\n"
        "blob = backbone._compile('efficientnet-lite0', ['block2'])\n"
        "for _ in range(5):\n"
        "    view = memoryview(bytearray(blob))[:]\n"
        "    network = Core({}).import_network(view)\n"
        "    request = network.request(['block2'])\n"
        "    request.run()\n"
        "    network.loop = [network, request, view]\n"
        "    del network, request, view\n"
        "    gc.collect()\n"
        "print('collected')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "collected\n", "")


@pytest.mark.parametrize("n_bytes", [0, 100, 5_000_000])
def test_a_file_named_bin_never_gives_the_weights(
    blob: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int
) -> None:
    """OpenVINO took a long one for the weights, without a word, and stopped at a short one."""
    monkeypatch.chdir(tmp_path)
    expected = run(Core(PROPERTIES).import_network(blob).request(OUTPUTS))
    (tmp_path / ".bin").mkdir()
    assert run(Core(PROPERTIES).import_network(blob).request(OUTPUTS)) == expected
    (tmp_path / ".bin").rmdir()
    (tmp_path / ".bin").write_bytes(bytes(n_bytes))
    with pytest.raises(BackboneError, match=r"holds a file named \.bin"):
        Core(PROPERTIES).import_network(blob)
    with pytest.raises(BackboneError, match="rename it, or start in another folder"):
        backbone.load_backbone(streams=1, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"no network", bytes(100)])
def test_what_is_no_network_is_refused(content: bytes) -> None:
    with pytest.raises(OpenVinoError, match=r"\w"):
        Core(PROPERTIES).import_network(content)


def test_unknown_properties_and_outputs_are_refused(blob: bytes) -> None:
    with pytest.raises(OpenVinoError, match="NO_SUCH_PROPERTY"):
        Core({"NO_SUCH_PROPERTY": "1"}).import_network(blob)
    network = Core(PROPERTIES).import_network(blob)
    with pytest.raises(OpenVinoError, match="no_such_tap"):
        network.request(["no_such_tap"])
    with pytest.raises(OpenVinoError, match="NO_SUCH_PROPERTY"):
        network.property("NO_SUCH_PROPERTY")


def test_declarations_are_those_of_the_installed_openvino(repository: Path) -> None:
    spec = find_spec("openvino")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0], "include", "openvino", "c")
    if not folder.is_dir():
        pytest.skip("this wheel of OpenVINO holds no C headers")

    def prototypes(text: str) -> dict[str, str]:
        text = re.sub(r"/\*.*?\*/|//[^\n]*|#[^\n]*", " ", text, flags=re.DOTALL)
        text = re.sub(r"OPENVINO_C_API\(([^)]*)\)", r"\1 ", text)
        text = re.sub(r"\bov_status_e\b", "int", text)
        text = re.sub(r"\s+", " ", text)
        found = re.findall(r"((?:const )?\w+\*? )(ov_\w+)\(([^()]*)\);", text)
        return {name: f"{kind}({arguments})".replace(" ", "") for kind, name, arguments in found}

    ours = prototypes((repository / "engine" / "openvino_c.h").read_text(encoding="utf-8"))
    theirs = prototypes("".join(path.read_text("utf-8") for path in folder.glob("*.h")))
    assert len(ours) == 20
    assert ours == {name: theirs.get(name) for name in ours}


def test_missing_declarations_name_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_c, "_loaded", None)
    monkeypatch.setitem(sys.modules, "engine._openvino_c", None)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match="in a checkout run: pip install -e"):
        openvino_c.version()


@pytest.mark.parametrize(
    ("platform", "names", "chosen"),
    [
        ("linux", ["libopenvino.so.2641", "libopenvino_c.so.2641"], "libopenvino_c.so.2641"),
        ("darwin", ["libopenvino_c.2641.dylib"], "libopenvino_c.2641.dylib"),
        ("win32", ["openvino.dll", "openvino_c.dll"], "openvino_c.dll"),
        ("linux", ["libopenvino_c.so.2641", "libopenvino_c.so"], "libopenvino_c.so"),
        ("linux", ["openvino_c.dll", "libopenvino.so.2641"], None),
    ],
)
def test_library_is_found_under_each_systems_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    names: list[str],
    chosen: str | None,
) -> None:
    (tmp_path / "libs").mkdir()
    for name in names:
        (tmp_path / "libs" / name).touch()
    spec: Any = SimpleNamespace(submodule_search_locations=[str(tmp_path / "no"), str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    monkeypatch.setattr(sys, "platform", platform)
    if chosen is None:
        with pytest.raises(ImportError, match="installed without its C library"):
            openvino_c._find()
    else:
        assert openvino_c._find() == str(tmp_path / "libs" / chosen)


def test_a_library_that_is_none_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "libopenvino_c.so.1"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(openvino_c, "_loaded", None)
    monkeypatch.setattr(openvino_c, "_find", lambda: str(broken))
    with pytest.raises(ImportError, match=r"libopenvino_c\.so\.1: cannot be loaded"):
        openvino_c.version()


def test_a_library_that_lacks_a_function_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another major version may."""

    class Library:
        ov_core_create = None

        def __dir__(self) -> list[str]:
            return ["mallopt", "ov_core_create", "ov_tensor_data"]

    def dlopen(path: str | None, *_: Any) -> Any:
        return Library() if path else SimpleNamespace(dlopen=lambda *_: None)

    ffi = SimpleNamespace(RTLD_NOW=2, dlopen=dlopen)
    monkeypatch.setattr(openvino_c, "_loaded", None)
    monkeypatch.setattr(openvino_c, "import_generated", lambda *_: SimpleNamespace(ffi=ffi))
    with pytest.raises(ImportError, match=r"cannot be loaded .*ov_tensor_data"):
        openvino_c.version()
    with pytest.raises(BackboneError, match="install it with"):
        backbone.load_backbone(streams=1, cache_dir="")


def test_importing_it_loads_nothing(repository: Path) -> None:
    program = (
        "import sys, engine.openvino_c\n"
        "heavy = ('numpy', 'cffi', 'pycparser', '_cffi_backend', 'openvino')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "engine.openvino_c.version()\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "['_cffi_backend']"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders are closed in another way there")
def test_it_imports_from_a_folder_that_is_closed_to_this_user(
    blob: bytes, tmp_path: Path, repository: Path
) -> None:
    closed, content = tmp_path / "closed", tmp_path / "blob"
    closed.mkdir()
    content.write_bytes(blob)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from engine.openvino_c import Core\n"
        "blob = Path(sys.argv[1]).read_bytes()\n"
        "os.chdir(sys.argv[2])\n"
        "os.chmod(sys.argv[2], 0)\n"
        "try:\n"
        "    os.stat('.bin')\n"
        "except PermissionError:\n"
        "    Core({}).import_network(blob)\n"
        "    print('imported')\n"
    )
    command = [sys.executable, "-c", program, str(content), str(closed)]
    if os.geteuid() == 0:  # root looks into every folder, unless that is taken from it
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("setpriv is not installed")
        command = [setpriv, "--bounding-set=-all", "--inh-caps=-all", *command]
    try:
        done = subprocess.run(
            command,
            cwd=repository,
            env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        closed.chmod(0o700)
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="POSIX signals")
def test_networks_that_go_in_any_order_leave_signals_alone() -> None:
    """The plug-in's stack for signals outlived it: the next signal was a segmentation fault."""
    code = (
        "import gc, os, signal, sys\n"
        "import engine\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('came'))\n"
        "loaded = [engine.load_backbone('efficientnet-lite0', streams=1) for _ in range(3)]\n"
        "while loaded:\n"
        "    loaded.pop(0).close()\n"
        "    gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "again = engine.load_backbone('efficientnet-lite0', streams=1)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "came\ncame\n"), result.stderr
