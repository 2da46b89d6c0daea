"""Known answers: the pictures are pinned, healthy machines pass, broken networks do not."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import probes
from engine.backbone import MODELS_DIR, list_backbones, load_backbone
from engine.errors import BackboneError
from engine.models.saturation import read_int8_layers
from engine.probes import PROBES, ProbeResult, check_probes, draw_probe, sketch_features

NAMES = list_backbones()
module = importlib.import_module("engine.backbone")

PINNED = {
    (224, "ramp"): "ccce4e83974fc5ba",
    (224, "chest"): "add51b8fa7814b0f",
    (224, "noise"): "128e582335eb226b",
    (260, "ramp"): "0dfd0d6b6b06d554",
    (260, "chest"): "08ad036d3342e896",
    (260, "noise"): "9c2a176462f45730",
}


def read_card(name: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((MODELS_DIR / f"{name}.json").read_text(encoding="utf-8"))
    return card


# ---- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "name"), sorted(PINNED))
def test_pictures_are_the_same_bytes_for_ever(size: int, name: str) -> None:
    picture = draw_probe(name, size, size)
    assert picture.shape == (1, size, size)
    assert picture.dtype == np.uint8
    assert hashlib.sha256(picture.tobytes()).hexdigest()[:16] == PINNED[size, name]


def test_pictures_use_the_range_and_differ() -> None:
    drawn = {name: draw_probe(name, 224, 224).astype(int) for name in PROBES}
    for name, picture in drawn.items():
        assert picture.max() - picture.min() > 150, name
    assert np.abs(np.diff(drawn["noise"], axis=-1)).mean() > 60
    assert np.abs(np.diff(drawn["chest"], axis=-1)).mean() < 12
    with pytest.raises(ValueError, match="ramp, chest, noise"):
        draw_probe("snow", 224, 224)


def test_scattering_is_that_of_the_published_function() -> None:
    """MurmurHash3's 32-bit finaliser, worked out with Python's own integers."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x85EBCA6B % 2**32
        x ^= x >> 13
        x = x * 0xC2B2AE35 % 2**32
        return x ^ x >> 16

    numbers = [0, 1, 2, 77, 2**31, 2**32 - 1]
    assert probes._mix(np.array(numbers, np.uint64)).tolist() == [mix(x) for x in numbers]


# ---- sketches ----------------------------------------------------------------------------------


def test_a_sketch_keeps_lengths_and_misses_no_feature() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 1000)).astype(np.float32)
    sketches = sketch_features(vectors)
    assert sketches.shape == (200, 16)
    shares = np.linalg.norm(sketches, axis=1) / np.linalg.norm(vectors, axis=1)
    assert shares.mean() * np.sqrt(1000 / 16) == pytest.approx(1, abs=0.05)
    assert shares.std() / shares.mean() < 0.25
    changed = vectors[:1].copy()
    changed[0, 613] += 1
    difference = sketch_features(changed) - sketches[:1]
    np.testing.assert_allclose(np.abs(difference), 1 / np.sqrt(1000), rtol=1e-5)


# ---- cards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_cards_hold_answers_for_every_tap(name: str) -> None:
    card = read_card(name)
    known = card["probes"]
    assert list(known["taps"]) == [tap["name"] for tap in card["taps"]]
    assert known["instruction_sets"] == ["SSE41", "AVX", "AVX2", "AVX2_VNNI", "native"]
    for facts in known["taps"].values():
        assert set(facts) == {"spread", "tolerance", *PROBES}
        # Two digits each: the quotient is good to 10 %.
        assert facts["tolerance"] == pytest.approx(3 * facts["spread"], rel=0.1)
        assert facts["tolerance"] < 0.15
        assert all(len(facts[probe]) == 16 for probe in PROBES)
    assert len(json.dumps(known)) < 8000
    text = (MODELS_DIR / f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(probes.card_text(card)) == card
    assert max(map(len, text.splitlines())) < 2000


def test_a_card_is_written_with_numbers_on_one_line() -> None:
    card = {"a": [1.5, -2e-07, 3], "b": ["x", "y"], "c": {"d": []}, "e": [[1, 2], [3]]}
    text = probes.card_text(card)
    assert json.loads(text) == card
    assert '"a": [1.5, -2e-07, 3]' in text
    assert text.endswith("}\n")


def test_answers_state_spread_and_tolerance() -> None:
    reference = {"t": np.ones((3, 16))}
    near, far = {"t": np.ones((3, 16)) * 1.01}, {"t": np.ones((3, 16)) * 0.99}
    known = probes.describe_probes({"SSE41": near, "AVX2": reference, "native": far}, "software 1")
    facts = known["taps"]["t"]
    # The two that are farthest apart, not each against the reference.
    assert facts["spread"] == pytest.approx(0.02, rel=0.02)
    assert facts["tolerance"] == pytest.approx(0.06, rel=0.02)
    assert facts["ramp"] == [1.0] * 16
    same = probes.describe_probes({"AVX2": reference}, "software 1")["taps"]["t"]
    assert (same["spread"], same["tolerance"]) == (0, 1e-4)


# ---- healthy machines --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", ["SSE41", "native"])
def test_every_instruction_set_passes(name: str, isa: str, repository: Path) -> None:
    limits = {} if isa == "native" else dict.fromkeys(probes.ISA_VARIABLES, isa)
    done = subprocess.run(
        [sys.executable, "-m", "engine.probes", name],
        env={**os.environ, "PYTHONPATH": str(repository), **limits},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == 3 * len(read_card(name)["taps"])


def test_a_network_cut_short_gives_the_same_answers() -> None:
    name = NAMES[0]
    taps = [tap["name"] for tap in read_card(name)["taps"]]
    with load_backbone(name, streams=1, taps="all", cache_dir="") as whole:
        expected = check_probes(whole)
    with load_backbone(name, streams=1, taps=taps[:3], cache_dir="") as cut:
        found = check_probes(cut)
    assert found == expected[: len(found)]
    assert len(found) == 9


# ---- broken networks ---------------------------------------------------------------------------


def copy_network(name: str, folder: Path) -> Path:
    folder.mkdir()
    for kind in ("xml", "bin", "json"):
        shutil.copy(MODELS_DIR / f"{name}.{kind}", folder)
    return folder / f"{name}.bin"


def rewrite(blob: Path, content: bytes) -> None:
    """Put other weights into a network, and their digest into its card, as a bad build would."""
    blob.write_bytes(content)
    path = blob.with_suffix(".json")
    card = json.loads(path.read_text(encoding="utf-8"))
    card["files"]["bin"]["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(card), encoding="utf-8")


@pytest.mark.parametrize(
    "fault", ["none", "one channel negated", "one channel zeroed", "one scale", "last layer"]
)
def test_a_network_with_one_altered_layer_fails(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "efficientnet-lite0"
    blob = copy_network(name, tmp_path / "models")
    layers = read_int8_layers(blob.with_suffix(".xml"))
    layer = next(each for each in layers if "blocks.3.project" in each.name)
    if fault == "last layer":
        layer = layers[-1]
    weights, scale = layer.weights.copy(), layer.scale.copy()
    if fault == "one channel negated":
        weights[7] = -weights[7]
    elif fault == "one channel zeroed":
        weights[7] = 0
    elif fault == "one scale":
        scale.reshape(-1)[7] *= 2
    elif fault == "last layer":
        weights[:] = weights[::-1].copy()
    content = bytearray(blob.read_bytes())
    content[layer.weights_offset : layer.weights_offset + weights.nbytes] = weights.tobytes()
    content[layer.scale_offset : layer.scale_offset + scale.nbytes] = scale.tobytes()
    rewrite(blob, bytes(content))
    monkeypatch.setattr(module, "MODELS_DIR", blob.parent)
    with load_backbone(name, streams=1, taps="all", cache_dir="") as backbone:
        results = check_probes(backbone)
    failed = {result.tap for result in results if not result.passed}
    assert failed == set() if fault == "none" else failed
    if fault == "last layer":
        assert failed == {"final"}


class Altered:
    """A backbone between which and the pictures, or the maps, something goes wrong."""

    def __init__(self, backbone: Any, before: Any, after: Any) -> None:
        self._backbone, self._before, self._after = backbone, before, after
        self.name, self.card = backbone.name, backbone.card
        self.input_size, self.taps = backbone.input_size, backbone.taps

    def infer(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        maps = self._backbone.infer(np.ascontiguousarray(self._before(images)))
        return {tap: self._after(each) for tap, each in maps.items()}


def same(array: NDArray[Any]) -> NDArray[Any]:
    return array


def rounded_to_bf16(array: NDArray[np.float32]) -> NDArray[np.float32]:
    kept = (array.view(np.uint32) + 0x8000) & np.uint32(0xFFFF0000)
    values: NDArray[np.float32] = kept.view(np.float32)
    return values


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (same, same, True),
        (lambda x: x // 2, same, False),  # another input scale
        (lambda x: 255 - x, same, False),
        (lambda x: x.swapaxes(2, 3), same, False),
        (lambda x: np.maximum(x, 1) - 1, same, False),  # one grey level darker
        (same, lambda m: m * np.float32(1.02), False),
        (same, lambda m: np.minimum(m, 2), False),  # saturation
        (same, lambda m: np.where(m == m.max(), np.float32(np.nan), m), False),
        (same, np.zeros_like, False),
    ],
)
def test_other_inputs_and_outputs_fail(before: Any, after: Any, expected: bool) -> None:
    with load_backbone(NAMES[0], streams=1, cache_dir="") as backbone:
        altered: Any = Altered(backbone, before, after)
        assert all(result.passed for result in check_probes(altered)) is expected


def test_half_precision_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs with bfloat16 would use it unless told not to, and have features of their own."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.is_file() or "avx512_bf16" not in cpu.read_text():
        pytest.skip("this CPU has no bfloat16 to compute with")
    monkeypatch.setitem(module._CONFIGURATION, "INFERENCE_PRECISION_HINT", "bf16")
    with load_backbone(NAMES[0], streams=1, cache_dir="") as backbone:
        results = check_probes(backbone)
    first = [result for result in results if result.tap == "block4"]
    assert all(not result.passed for result in first), results


def test_no_number_is_no_answer() -> None:
    result = ProbeResult("block2", "ramp", 0.001, 0.002)
    assert result.passed
    assert not replace(result, distance=0.003).passed
    assert not replace(result, distance=float("nan")).passed


@pytest.mark.parametrize("damage", ["no probes", "no tap", "short", "no tolerance"])
def test_a_card_without_answers_says_how_to_get_them(damage: str) -> None:
    card = read_card(NAMES[0])
    taps = card["probes"]["taps"]
    if damage == "no probes":
        del card["probes"]
    elif damage == "no tap":
        del taps["block2"]
    elif damage == "short":
        taps["block2"]["noise"] = taps["block2"]["noise"][:-1]
    else:
        del taps["block2"]["tolerance"]
    backbone: Any = SimpleNamespace(name="x", card=card, taps={"block2": None})
    with pytest.raises(BackboneError, match=r"block2.*engine\.probes x --write"):
        check_probes(backbone)


def test_writing_answers_leaves_the_digest_alone(tmp_path: Path, repository: Path) -> None:
    name = NAMES[0]
    blob = copy_network(name, tmp_path / "models")
    path = blob.with_suffix(".json")
    card = read_card(name)
    committed = card.pop("probes")
    path.write_text(json.dumps(card), encoding="utf-8")
    command = [sys.executable, "-m", "engine.probes", name, "--models", str(blob.parent)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    subprocess.run([*command, "--write"], env=environment, check=True)
    written = json.loads(path.read_text(encoding="utf-8"))
    found = written.pop("probes")
    assert written == card
    assert list(found["taps"]) == list(committed["taps"])
    for tap, facts in found["taps"].items():
        for probe in PROBES:
            a, b = np.array(facts[probe]), np.array(committed["taps"][tap][probe])
            assert np.linalg.norm(a - b) <= committed["taps"][tap]["tolerance"] * np.linalg.norm(b)
