"""The embedded networks run, and give the same features however they are run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import backbone as module
from engine.backbone import Backbone, list_backbones, load_backbone
from engine.errors import BackboneError, MismatchError

NAMES = list_backbones()


def draw_pictures(size: int, n: int = 4) -> NDArray[np.uint8]:
    """Draw smooth, lung-like blobs with noise: no real picture, yet not only noise."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    pictures = []
    for k in range(n):
        field = 150 - 70 * np.exp(-(((abs(x) - 0.45) / 0.3) ** 2 + (y / (0.6 + 0.1 * k)) ** 2))
        field += 20 * np.sin(14 * y + k) + rng.normal(0, 8, field.shape)
        pictures.append(np.clip(field, 0, 255).astype(np.uint8)[None])
    return np.stack(pictures)


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest) -> Backbone:
    return load_backbone(request.param, streams=1, taps="all", cache_dir="")


@pytest.fixture(scope="module")
def default() -> Backbone:
    return load_backbone(streams=1, taps="all", cache_dir="")


def assert_same(a: dict[str, NDArray[np.float32]], b: dict[str, NDArray[np.float32]]) -> None:
    for name in a.keys() & b.keys():
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def copy_models(folder: Path) -> Path:
    shutil.copytree(module.MODELS_DIR, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def test_the_two_profiles_are_there() -> None:
    assert NAMES == ("efficientnet-lite0", "efficientnet-lite2")


def test_feature_maps_have_the_shapes_of_the_card(loaded: Backbone) -> None:
    images = draw_pictures(loaded.input_size[0], 2)
    maps = loaded.infer(images)
    assert list(maps) == list(loaded.taps) == [tap["name"] for tap in loaded.card["taps"]]
    for name, tap in loaded.taps.items():
        assert maps[name].dtype == np.float32
        assert maps[name].shape == (2, tap.channels, tap.height, tap.width)
        assert tap.height == -(-loaded.input_size[0] // tap.stride)
        assert np.isfinite(maps[name]).all()
        # Two different pictures must not give one result: outputs were copied, not aliased.
        assert not np.array_equal(maps[name][0], maps[name][1])
    assert maps["final"].min() == 0  # behind a ReLU6
    assert maps["final"].max() <= 6.1


def test_feature_maps_lie_channels_last_with_the_bits_of_the_network_as_it_is(
    loaded: Backbone,
) -> None:
    images = draw_pictures(loaded.input_size[0], 2)
    ov = module._import_openvino()
    model = ov.Core().read_model(module.find_model(loaded.name, "xml"))
    whole = ov.Core().compile_model(model, "CPU", module._CONFIGURATION)
    maps = loaded.infer(images)
    for row, image in enumerate(images):
        expected = whole.create_infer_request().infer({0: image[np.newaxis]})
        for name, found in maps.items():
            assert found.transpose(0, 2, 3, 1).flags.c_contiguous
            np.testing.assert_array_equal(found[row], expected[name][0], err_msg=name)


def test_attributes_follow_the_card(loaded: Backbone) -> None:
    files = [module.MODELS_DIR / f"{loaded.name}.{kind}" for kind in ("xml", "bin")]
    parts = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    assert loaded.digest == hashlib.sha256(parts).hexdigest() == loaded.card["sha256"]
    height, width = loaded.input_size
    assert (loaded.preprocessing["height"], loaded.preprocessing["width"]) == (height, width)
    assert loaded.name in repr(loaded)


def test_no_picture_gives_empty_maps(default: Backbone) -> None:
    maps = default.infer(np.empty((0, 1, 224, 224), np.uint8))
    assert maps["final"].shape == (0, 1280, 7, 7)


def test_features_do_not_depend_on_company_or_streams(default: Backbone) -> None:
    images = draw_pictures(224)
    expected = default.infer(images)
    assert_same(expected, {k: v[::-1] for k, v in default.infer(images[::-1].copy()).items()})
    for row in range(len(images)):
        one = default.infer(images[row : row + 1])
        assert_same({k: v[row : row + 1] for k, v in expected.items()}, one)
    for streams in (2, 3):
        other = load_backbone(streams=streams, cache_dir="")
        assert other.n_streams == streams
        assert_same(expected, other.infer(images))


def test_non_contiguous_pictures_are_read_right(default: Backbone) -> None:
    images = draw_pictures(224)
    mirrored = images[:, :, :, ::-1]
    assert_same(default.infer(mirrored), default.infer(mirrored.copy()))


@pytest.mark.parametrize("n_threads", [2, 6])
def test_threads_share_one_backbone(default: Backbone, n_threads: int) -> None:
    images = draw_pictures(224)
    expected = default.infer(images)
    with (
        load_backbone(streams=2, cache_dir="") as shared,
        ThreadPoolExecutor(n_threads) as pool,
    ):
        rows = [row for _ in range(6) for row in range(len(images))]
        found = list(pool.map(lambda row: shared.infer(images[row : row + 1]), rows))
    for row, maps in zip(rows, found, strict=True):
        assert_same({k: v[row : row + 1] for k, v in expected.items()}, maps)


def test_asking_for_fewer_taps_changes_no_bit(loaded: Backbone) -> None:
    images = draw_pictures(loaded.input_size[0], 2)
    expected = loaded.infer(images)
    for name in loaded.taps:
        pruned = load_backbone(loaded.name, streams=1, taps=[name], cache_dir="")
        maps = pruned.infer(images)
        assert list(maps) == list(pruned.taps) == [name]
        assert_same(expected, maps)


def test_the_network_stops_after_the_last_tap() -> None:
    def n_layers(taps: list[str] | Literal["all"]) -> int:
        cut: Any = None
        original = module._truncate

        def spy(ov: Any, model: Any, outputs: list[str]) -> None:
            nonlocal cut
            original(ov, model, outputs)
            cut = model

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_truncate", spy)
            load_backbone(streams=1, taps=taps, cache_dir="")
        return len(cut.get_ops())

    assert n_layers(["block4"]) < n_layers(["block10"]) < n_layers("all")


def test_default_taps_are_those_of_the_measured_recipe() -> None:
    with load_backbone(streams=1, cache_dir="") as loaded:
        assert list(loaded.taps) == [tap.split(":")[0] for tap in loaded.default_taps.split(",")]
        assert "final" not in loaded.taps


RACE = """
import sys, threading
import numpy as np
from engine.backbone import load_backbone
sys.setswitchinterval(1e-6)
loaded = load_backbone(streams=2)
start = threading.Barrier(2)
def work():
    start.wait()
    loaded.infer(np.zeros((1, 1, 224, 224), np.uint8))
threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_first_two_threads_do_not_wait_for_each_other(repository: Path) -> None:
    """Through OpenVINO's Python package 8 of 15 such processes hung for ever."""
    for _ in range(6):
        subprocess.run([sys.executable, "-c", RACE], cwd=repository, check=True, timeout=60)


def test_taps_come_in_the_order_of_the_network() -> None:
    loaded = load_backbone(streams=1, taps=("block10", "block4"), cache_dir="")
    assert list(loaded.taps) == ["block4", "block10"]
    assert list(loaded.infer(draw_pictures(224, 1))) == ["block4", "block10"]


def test_cached_network_gives_the_same_bits(default: Backbone, tmp_path: Path) -> None:
    images = draw_pictures(224)
    expected = default.infer(images)
    assert_same(expected, load_backbone(streams=1, cache_dir=tmp_path / "new").infer(images))
    blobs = list((tmp_path / "new").iterdir())
    assert [blob.suffix for blob in blobs] == [".blob"]  # no part file left
    written = blobs[0].stat().st_mtime_ns
    assert_same(expected, load_backbone(streams=1, cache_dir=tmp_path / "new").infer(images))
    assert blobs[0].stat().st_mtime_ns == written
    # Other taps are another network: they must not come out of this blob.
    assert list(load_backbone(streams=1, taps=["block4"], cache_dir=tmp_path / "new").taps) == [
        "block4"
    ]
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_cache_is_replaced(default: Backbone, tmp_path: Path, damage: str) -> None:
    images = draw_pictures(224, 1)
    load_backbone(streams=1, cache_dir=tmp_path)
    (blob,) = tmp_path.iterdir()
    whole = blob.read_bytes()
    foreign = b"not a network"
    broken = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "empty": b"",
        "foreign": module.CACHE_MAGIC + hashlib.sha256(foreign).digest() + foreign,
    }[damage]
    blob.write_bytes(broken)
    # Two streams: the second takes its network from the blob, or from what replaced it.
    assert_same(default.infer(images), load_backbone(streams=2, cache_dir=tmp_path).infer(images))
    assert len(blob.read_bytes()) == len(whole)


def test_another_cpu_or_instruction_set_has_a_blob_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = {"version": "1", "cpu": "One CPU", "digest": "digest", "outputs": ["block4"]}

    def key(**changes: Any) -> str:
        return module._cache_key(**(facts | changes))

    for variable in module.ISA_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    keys = [key(), key()]
    assert keys[0] == keys[1]
    keys.append(key(cpu="Another CPU"))
    keys.append(key(version="2"))
    keys.append(key(digest="another"))
    keys.append(key(outputs=["block2", "block4"]))
    for variable in module.ISA_VARIABLES:
        monkeypatch.setenv(variable, "SSE41")
        keys.append(key())
    monkeypatch.setattr(module, "_machine", lambda: "armv9")
    keys.append(key())
    monkeypatch.setitem(module._CONFIGURATION, "NUM_STREAMS", "2")
    keys.append(key())
    assert len(set(keys)) == len(keys) - 1


def test_what_is_in_use_is_kept_and_what_is_not_is_removed(tmp_path: Path) -> None:
    load_backbone(streams=1, cache_dir=tmp_path)
    (blob,) = tmp_path.iterdir()
    long_ago = time.time() - (module.UNUSED_DAYS + 1) * 86_400
    of_another = tmp_path / "efficientnet-lite2-0123456789abcdef.blob"
    unused = tmp_path / "efficientnet-lite0-0123456789abcdef.blob"
    recent = tmp_path / "efficientnet-lite0-fedcba9876543210.blob"
    part = tmp_path / ".part-killed"
    foreign = tmp_path / "notes.txt"
    for path in (of_another, unused, recent, part, foreign):
        path.write_bytes(b"x")
    for path in (of_another, unused, part, foreign, blob):
        os.utime(path, (long_ago, long_ago))
    load_backbone(streams=1, cache_dir=tmp_path)  # used: as good as new
    assert blob.stat().st_mtime > time.time() - 3600
    assert unused.exists()  # a start that writes nothing removes nothing
    load_backbone(streams=1, taps=["block4"], cache_dir=tmp_path)
    assert not unused.exists()
    assert not part.exists()
    assert all(path.exists() for path in (blob, of_another, recent, foreign))


def test_cached_network_needs_no_python_package(tmp_path: Path, repository: Path) -> None:
    load_backbone(streams=1, cache_dir=tmp_path)
    program = (
        "import sys, engine.backbone as b\n"
        "b.load_backbone(streams=2, cache_dir=sys.argv[1])\n"
        "print([m for m in ('openvino', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="rights of files are others there")
@pytest.mark.parametrize("danger", ["mode", "owner"])
def test_a_network_that_others_may_have_written_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, danger: str
) -> None:
    """It is code for the processor."""
    load_backbone(streams=1, cache_dir=tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (blob,) = (tmp_path / "new").iterdir()
    assert blob.stat().st_mode & 0o777 == 0o600
    assert module._read_blob(blob) is not None
    if danger == "mode":
        blob.chmod(0o620)
    elif os.geteuid() == 0:
        os.chown(blob, 1234, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: blob.stat().st_uid + 1)
    assert module._read_blob(blob) is None
    load_backbone(streams=1, cache_dir=tmp_path / "new")  # puts its own there
    monkeypatch.undo()
    assert module._read_blob(blob) is not None


def test_unusable_cache_folder_is_no_error(default: Backbone, tmp_path: Path) -> None:
    images = draw_pictures(224, 1)
    occupied = tmp_path / "file"
    occupied.write_text("here is no folder")
    loaded = load_backbone(streams=1, cache_dir=occupied)
    assert_same(default.infer(images), loaded.infer(images))


def test_default_cache_lies_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = module.default_cache_dir()
    assert folder is not None
    assert folder.is_relative_to(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/folder")
    monkeypatch.setenv("LOCALAPPDATA", "relative/folder")
    if sys.platform != "darwin":
        assert module.default_cache_dir() is None


def test_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(BackboneError, match=r"'resnet'.*efficientnet-lite0, efficientnet-lite2"):
        load_backbone("resnet")


@pytest.mark.parametrize("name", ["../efficientnet-lite0", "", "efficientnet-lite0.json"])
def test_names_are_no_paths(name: str) -> None:
    with pytest.raises(BackboneError, match="unknown backbone"):
        load_backbone(name)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["block4", "block99"], r"unknown tap 'block99'; it has: block2, block4, block7, block10"),
        ([], "no tap was asked for; it has: block2"),
    ],
)
def test_wrong_taps_list_the_valid_ones(taps: list[str], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        load_backbone(taps=taps)


@pytest.mark.parametrize("streams", [0, -1])
def test_streams_must_be_positive(streams: int) -> None:
    with pytest.raises(BackboneError, match=f"streams is {streams}"):
        load_backbone(streams=streams)


def test_default_streams_follow_the_cpus_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    assert module._usable_cpus() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert module._usable_cpus() == module.MAX_DEFAULT_STREAMS
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert module._usable_cpus() == 1


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((1, 1, 224, 224), np.float32), r"float32 with shape \(1, 1, 224, 224\)"),
        (np.zeros((1, 224, 224), np.uint8), r"uint8 with shape \(1, 224, 224\)"),
        (np.zeros((1, 3, 224, 224), np.uint8), r"\(1, 3, 224, 224\)"),
        (np.zeros((1, 1, 224, 223), np.uint8), r"\(1, 1, 224, 223\)"),
        ([[1]], "a list"),
    ],
)
def test_wrong_pictures_are_refused(default: Backbone, images: Any, found: str) -> None:
    with pytest.raises(BackboneError, match=found + r".*uint8 with shape \(n, 1, 224, 224\)"):
        default.infer(images)


@pytest.mark.parametrize("kind", ["xml", "bin"])
def test_altered_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "MODELS_DIR", copy_models(tmp_path / "models"))
    victim = tmp_path / "models" / f"efficientnet-lite0.{kind}"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(BackboneError, match=rf"efficientnet-lite0\.{kind}: SHA-256 is .* expects"):
        load_backbone()
    victim.unlink()
    with pytest.raises(BackboneError, match=rf"efficientnet-lite0\.{kind}: cannot be read"):
        load_backbone()


@pytest.mark.parametrize("text", ["{", "", json.dumps({})])
def test_damaged_card_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(module, "MODELS_DIR", copy_models(tmp_path / "models"))
    (tmp_path / "models" / "efficientnet-lite0.json").write_text(text)
    with pytest.raises(BackboneError, match=r"efficientnet-lite0\.json: the model card"):
        load_backbone()


def test_openvino_refusing_the_cpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise module.openvino_c.OpenVinoError("deep inside:\nthis CPU is too old")

    monkeypatch.setattr(module.openvino_c, "version", lambda: "2099.1")
    monkeypatch.setattr(module.openvino_c, "Core", refuse)
    with pytest.raises(BackboneError, match=r"2099\.1 cannot run .*too old.*openvino==2025\.4\.1"):
        load_backbone(cache_dir="")


def test_failing_compilation_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def Core(self) -> Any:  # noqa: N802 - OpenVINO's name
            raise RuntimeError("deep inside:\nno such instruction")

    monkeypatch.setattr(module, "_import_openvino", Refusing)
    with pytest.raises(BackboneError, match=r"cannot run .*no such instruction.*==2025\.4\.1"):
        load_backbone(cache_dir="")


def test_missing_openvino_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackboneError, match=r"OpenVINO cannot be imported.*pip install"):
        load_backbone(cache_dir="")
    monkeypatch.setattr(module.openvino_c, "_loaded", None)
    with pytest.raises(BackboneError, match=r"OpenVINO cannot be imported.*pip install"):
        load_backbone(cache_dir="")


def test_failing_inference_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        input = bytearray(224 * 224)

        def run(self) -> None:
            raise RuntimeError("out of memory")

    broken = load_backbone(streams=1, cache_dir="")
    broken._requests.get()
    broken._requests.put(Failing())
    with pytest.raises(BackboneError, match="out of memory"):
        broken.infer(draw_pictures(224, 1))


def test_closed_backbone_says_so_to_all_who_wait() -> None:
    loaded = load_backbone(streams=1, taps=["block4"], cache_dir="")
    request = loaded._requests.get()
    errors: list[BackboneError] = []

    def wait() -> None:
        try:
            loaded.infer(draw_pictures(224, 1))
        except BackboneError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    closer = threading.Thread(target=loaded.close)
    closer.start()
    while not loaded._closed:
        closer.join(0.001)
    for thread in threads:
        thread.start()
    loaded._requests.put(request)
    for thread in (*threads, closer):
        thread.join(30)
        assert not thread.is_alive()
    loaded.close()  # a second time does no harm
    with pytest.raises(BackboneError, match="closed"):
        loaded.infer(draw_pictures(224, 1))


PROGRAM = """
import sys
import engine.backbone
assert "openvino" not in sys.modules
engine.backbone.load_backbone(streams=1, taps=["block2"], cache_dir="")
loaded = [name for name in sys.modules if "telemetry" in name or "tools.ovc" in name]
assert not loaded, loaded
import openvino
try:
    openvino.convert_model(None)
except Exception:
    pass
assert "openvino.tools.ovc" in sys.modules
print("fine")
"""


def test_openvino_is_imported_late_and_without_its_converter(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "fine", done.stderr


# --- joined backbones ---------------------------------------------------------------------------

JOINED = "efficientnet-lite0+efficientnet-lite2"


@pytest.fixture(scope="module")
def joined() -> Backbone:
    return load_backbone(JOINED, streams=1, cache_dir="")


def inputs_of(backbone: Backbone, n: int = 2) -> list[NDArray[np.uint8]]:
    return [draw_pictures(height, n) for height, _ in backbone.input_sizes]


def test_joined_maps_are_those_of_the_parts(joined: Backbone) -> None:
    images = inputs_of(joined)
    maps = joined.infer_parts(images)
    assert list(maps) == list(joined.taps)
    names = JOINED.split("+")
    for name, image in zip(names, images, strict=True):
        with load_backbone(name, streams=1, cache_dir="") as single:
            for tap, feature_map in single.infer_parts([image]).items():
                np.testing.assert_array_equal(maps.pop(f"{name}.{tap}"), feature_map)
    assert not maps


def test_joined_attributes_follow_the_parts(joined: Backbone) -> None:
    parts = [load_backbone(name, streams=1, cache_dir="") for name in JOINED.split("+")]
    digests = b"".join(bytes.fromhex(part.digest) for part in parts)
    assert joined.name == JOINED
    assert joined.digest == hashlib.sha256(digests).hexdigest()
    assert joined.digest not in {part.digest for part in parts}
    assert joined.input_sizes == tuple(part.input_size for part in parts)
    assert joined.n_streams == 1
    assert joined.preprocessing["height"] == [part.input_size[0] for part in parts]
    assert all(len(values) == 2 for values in joined.preprocessing.values())
    for part in parts:
        assert f"{part.name}.{part.default_taps.partition(',')[0]}" in joined.default_taps.split(
            ","
        )
    assert {tap["name"] for tap in joined.card["taps"]} >= set(joined.taps)
    other_way = load_backbone("+".join(reversed(JOINED.split("+"))), streams=1, cache_dir="")
    assert other_way.digest != joined.digest


def test_a_part_of_which_nothing_is_wanted_still_counts(joined: Backbone) -> None:
    wanted = ["efficientnet-lite2.final"]
    with load_backbone(JOINED, streams=1, taps=wanted, cache_dir="") as some:
        assert list(some.taps) == wanted
        assert some.digest == joined.digest
        images = inputs_of(joined)
        maps = some.infer_parts(images)
        assert list(maps) == wanted
    with load_backbone("efficientnet-lite2", streams=1, taps=["final"], cache_dir="") as single:
        np.testing.assert_array_equal(maps[wanted[0]], single.infer(images[1])["final"])


def test_joined_backbones_want_an_input_for_each(joined: Backbone, default: Backbone) -> None:
    with pytest.raises(BackboneError, match="given 1 inputs, expected 2"):
        joined.infer_parts(inputs_of(joined)[:1])
    with pytest.raises(BackboneError, match="has 2 inputs and was given one; use infer_parts"):
        joined.infer(inputs_of(joined)[0])
    with pytest.raises(BackboneError, match="given 2 inputs, expected 1"):
        default.infer_parts(inputs_of(joined))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet-lite0+resnet", "unknown backbone 'resnet' in"),
        ("efficientnet-lite0+", "unknown backbone '' in"),
        ("efficientnet-lite0+efficientnet-lite0", "names one twice"),
    ],
)
def test_wrong_joined_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name)


@pytest.mark.parametrize("taps", [["block4"], ["efficientnet-lite2.block99"], []])
def test_wrong_taps_of_joined_backbones_list_the_valid_ones(taps: list[str]) -> None:
    with pytest.raises(MismatchError, match=r"it has: efficientnet-lite0\.block2, .*lite2\.final"):
        load_backbone(JOINED, taps=taps)


def test_a_closed_joined_backbone_says_so() -> None:
    backbone = load_backbone(JOINED, streams=1, cache_dir="")
    backbone.close()
    with pytest.raises(BackboneError, match="is closed"):
        backbone.infer_parts(inputs_of(backbone))
