"""Compiled kernels on disk: many writers, sudden ends, several processors; and compiling ahead."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine import kernels
from engine.kernels import prepared, storage

DISABLED = os.environ.get("NUMBA_DISABLE_JIT") == "1"


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def open_file(folder, stamp="1"):
    return storage._File(str(folder), "kernel-1.py3", stamp)


def test_what_was_saved_is_loaded_by_its_key_and_stamp_only(folder):
    open_file(folder).save("a", b"A")
    open_file(folder).save("b", b"B")
    open_file(folder).save("a", b"A2")
    assert [open_file(folder).load(key) for key in "abc"] == [b"A2", b"B", None]
    assert open_file(folder, "2").load("a") is None


def test_many_writers_never_get_each_others_code(folder):
    """numba's own file gave one writer's code to another, or failed, in every run of this."""
    wrong = []
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for i in range(40):
            key = f"{number}.{i}"
            try:
                open_file(folder).save(key, key)
                for other in (key, f"{(number + 1) % 8}.{i}"):
                    found = open_file(folder).load(other)
                    if found not in (None, other):
                        wrong.append((other, found))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert any(open_file(folder).load(f"{number}.39") for number in range(8))


def test_a_writer_that_is_killed_leaves_what_was_there(folder, monkeypatch):
    open_file(folder).save("a", b"A")
    for step in ("_save_index", "_save_data"):
        with monkeypatch.context() as patch:
            patch.setattr(storage._File, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                open_file(folder, "2").save("a", b"new")
        assert open_file(folder).load("a") == b"A"
        assert open_file(folder, "2").load("a") is None


def test_nothing_is_overwritten_by_another_release(folder):
    open_file(folder).save("a", b"A")
    (first,) = folder.glob("*.nbc")
    kept = first.read_bytes()
    open_file(folder, "2").save("a", b"A of release 2")
    assert first.read_bytes() == kept
    assert open_file(folder, "2").load("a") == b"A of release 2"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", bytes(200), b"\x80"])
def test_files_that_a_power_cut_left_are_as_if_missing(folder, suffix, damage):
    open_file(folder).save("a", b"A")
    (path,) = folder.glob(f"*.{suffix}")
    path.write_bytes(damage)
    assert open_file(folder).load("a") is None
    open_file(folder).save("a", b"A")
    assert open_file(folder).load("a") == b"A"


def test_leftovers_are_removed_when_no_writer_can_be_at_work_on_them(folder):
    names = ["kernel-1.py3.5.nbc", "kernel-1.py3.nbi.tmp.ab", "kernel-2.py3.5.nbc"]
    for name in [*names, "kernel-1.py3.6.nbc"]:
        (folder / name).touch()
    for name in names:
        os.utime(folder / name, (1e9, 1e9))
    open_file(folder).save("a", b"A")
    found = {path.name for path in folder.iterdir()}
    assert not {names[0], names[1]} & found
    assert {names[2], "kernel-1.py3.6.nbc", "kernel-1.py3.nbi"} <= found
    assert open_file(folder).load("a") == b"A"


def _run(code, **environment):
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


COMPILE = """
import sys
import numpy as np
from engine.kernels.ood import multiply
X, Y, out = np.ones((2, 3), np.float32), np.ones((3, 2)), np.empty((2, 2))
if "transposed" in sys.argv:
    Y = np.asfortranarray(Y)
multiply(X, Y, out)
assert out.tolist() == [[3.0, 3.0], [3.0, 3.0]]
print(sum(multiply.stats.cache_misses.values()))
"""


@pytest.mark.skipif(DISABLED, reason="nothing is compiled")
def test_processes_that_start_together_share_a_folder(tmp_path):
    codes = [COMPILE, "import sys; sys.argv.append('transposed')\n" + COMPILE, COMPILE]
    for _ in range(2):  # one that lost its entry to another compiles once more
        running = [_run(code, NUMBA_CACHE_DIR=str(tmp_path)) for code in codes]
        for process in running:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
    assert _run(COMPILE, NUMBA_CACHE_DIR=str(tmp_path)).communicate()[0].strip() == "0"


@pytest.mark.skipif(DISABLED, reason="nothing is compiled")
def test_another_processor_has_kernels_of_its_own(tmp_path):
    here = {"NUMBA_CACHE_DIR": str(tmp_path)}
    there = {**here, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    said = [_run(COMPILE, **pc).communicate()[0].strip() for pc in (here, there, here, there)]
    assert said == ["1", "1", "0", "0"]


posix = pytest.mark.skipif(sys.platform == "win32", reason="rights of folders are others there")


@posix
@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path, monkeypatch, mode):
    """numba unpickles what lies there."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert kernels.cache_folder() == tmp_path
    tmp_path.chmod(mode)
    assert kernels.cache_folder() is None


@posix
def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert kernels.is_private(tmp_path) == (tmp_path.stat().st_uid == 0)
    if hasattr(os, "chown") and tmp_path.stat().st_uid == 0:
        os.chown(tmp_path, 1234, -1)
    assert kernels.cache_folder() is None


@posix
@pytest.mark.skipif(DISABLED, reason="nothing is compiled")
def test_the_folder_that_numba_makes_is_closed_to_the_group(tmp_path):
    """As a umask of 002 leaves it open, with which many Linux systems come."""
    open_to_all = "import os; os.umask(0)\n" + COMPILE
    for expected in ("1", "0"):
        process = _run(open_to_all, NUMBA_CACHE_DIR=str(tmp_path))
        said, errors = process.communicate()
        assert said.strip() == expected, errors
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o755


def test_importing_the_package_touches_no_file(tmp_path):
    code = (
        "import sys, engine.kernels, engine.jit, engine.plain\n"
        "assert 'tempfile' not in sys.modules and 'numba' not in sys.modules"
    )
    process = _run(code, NUMBA_CACHE_DIR="", XDG_CACHE_HOME=str(tmp_path), LOCALAPPDATA="")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(DISABLED, reason="nothing is compiled")
def test_preparing_says_what_it_does_and_does_it_once(tmp_path):
    code = """
from engine import jit
from engine.kernels import prepared
names = ("ood.multiply", "pooling.pool_maps")  # of all of them it would take ten seconds
prepared.SIGNATURES = {name: prepared.SIGNATURES[name] for name in names}
seen = []
n = jit.prepare(lambda *said: seen.append(said))
assert seen == [("ood.multiply", 1, 2), ("pooling.pool_maps", 2, 2)], seen
print(n, jit.prepare())
"""
    first, second = (
        _run(code, NUMBA_CACHE_DIR=str(tmp_path)).communicate()[0].split() for _ in range(2)
    )
    assert first == ["2", "0"]
    assert second == ["0", "0"]


def test_every_kernel_has_its_signatures():
    """But for those of which only tests, and other kernels, make use."""
    found = set()
    for module in pkgutil.iter_modules(kernels.__path__):
        if module.name in ("prepared", "storage", "scalars"):
            continue
        loaded = importlib.import_module(f"engine.kernels.{module.name}")
        found |= {
            f"{module.name}.{name}" for name in loaded.__all__ if callable(getattr(loaded, name))
        }
    assert found - set(prepared.SIGNATURES) == {"heads.sigmoid", "heads.softmax"}
    assert set(prepared.SIGNATURES) <= found


@pytest.mark.skipif(DISABLED, reason="nothing is compiled")
def test_training_and_judging_call_kernels_as_prepared(tmp_path):
    """In a process of its own: other tests call kernels in ways that nobody else does."""
    process = _run(TRAIN, HILUM_TEST_FOLDER=str(tmp_path))
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    called = dict(line.split(": ") for line in out.splitlines())
    for name, found in called.items():
        expected = {str(prepared.parse_signature(text)) for text in prepared.SIGNATURES[name]}
        assert set(found.split(" | ")) <= expected, name
    assert set(prepared.SIGNATURES) == set(called)


TRAIN = """
import os, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path.cwd() / "tests"))
import test_training as helpers
from engine import fitting, pooling
from engine.judging import evaluate_head
from engine.training import fit_head
from engine.images import Preprocessing, preprocess
from engine.picture import Picture
fitting._MAX_EPOCHS, fitting._ROUNDED_FROM, fitting._ROUNDING_PASSES = 2, 0, 1e9
folder = Path(os.environ["HILUM_TEST_FOLDER"])
X, labels, groups = helpers.make_rows(120, d=9)
several = np.stack([labels == c for c in range(3)], axis=1).astype(np.int8)
for name, truth in (("one", labels), ("several", several)):
    container = helpers.make_container(folder / f"{name}.hilum", X, truth, groups)
    for kind in ("linear", "mlp"):
        head = fit_head(container, kind=kind, hidden=4, l2=0.1)
        evaluate_head(head, container, "all")
maps = {"t": np.ones((1, 2, 4, 4), np.float32)}
pooling.pool_features(maps, pooling.parse_taps("t", "mean", {"t": 2}))
for kind in (np.uint8, np.uint16):
    samples = np.arange(900).astype(kind).reshape(30, 30)
    table = np.arange(65536, dtype=np.uint16) if kind == np.uint16 else None
    preprocess(Picture(samples, Path("x"), "png", 8, {}, table), Preprocessing(height=8, width=8))
from engine.kernels import prepared
from importlib import import_module
for name in prepared.SIGNATURES:
    module, _, function = name.partition(".")
    dispatcher = getattr(import_module(f"engine.kernels.{module}"), function)
    if dispatcher.signatures:
        print(f"{name}: {' | '.join(map(str, dispatcher.signatures))}")
"""
