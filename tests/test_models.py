"""What the model cards claim of the embedded networks holds for the committed files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import images
from engine.backbone import MODELS_DIR, list_backbones, load_backbone
from engine.models.build import RECIPES, compare_features, grid_mean
from engine.models.folding import PIXEL_OFFSET, PIXEL_SCALE, fold_batch_norm, fold_stem
from engine.models.saturation import (
    find_unsafe_channels,
    pair_extremes,
    read_int8_layers,
    safe_scale,
)
from engine.pooling import parse_taps, pool_features

NAMES = list_backbones()
# Convolutions beside the stem and the depthwise ones: two a block (one in the first) and the head.
N_POINTWISE = {"efficientnet-lite0": 2 * 16 - 1 + 1, "efficientnet-lite2": 2 * 21 - 1 + 1}


def read_card(name: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((MODELS_DIR / f"{name}.json").read_text(encoding="utf-8"))
    return card


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for kind in ("xml", "bin"):
        shutil.copy(MODELS_DIR / f"efficientnet-lite0.{kind}", tmp_path)
    return tmp_path / "efficientnet-lite0.xml"


# --- saturation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_shipped_layer_can_saturate(name: str) -> None:
    layers = read_int8_layers(MODELS_DIR / f"{name}.xml")
    pointwise = [layer for layer in layers if not layer.depthwise]
    assert len(pointwise) == N_POINTWISE[name]  # the proof overlooked none
    n_weights = 0
    for layer in pointwise:
        assert find_unsafe_channels(layer).size == 0, layer.name
        # The same again from the definition, so that the proof does not rest on its own code:
        # extremes of what two products with activations of 0 or 255 can add up to.
        kernel = layer.weights.reshape(len(layer.weights), -1).astype(int)
        assert kernel.shape[1] == layer.weights.shape[1]  # 1 x 1, so neighbours are channels
        assert kernel.shape[1] % 2 == 0
        for a, b in zip(kernel.T[0::2], kernel.T[1::2], strict=True):
            for x in (0, 255):
                for y in (0, 255):
                    total = x * a + y * b
                    assert total.min() >= -(2**15), layer.name
                    assert total.max() < 2**15, layer.name
        n_weights += kernel.size
    assert n_weights > 2_000_000


@pytest.mark.parametrize(
    ("first", "pair", "unsafe"),
    [
        (0, (64, 64), False),
        (0, (64, 65), True),
        (0, (-64, -64), False),
        (0, (-65, -64), True),
        (0, (127, -127), False),
        (0, (127, 1), False),
        (0, (127, 2), True),
        (1, (127, 127), False),  # channels 1 and 2 never meet
        (2, (127, 127), True),
    ],
)
def test_planted_weights_are_found(
    copied: Path, first: int, pair: tuple[int, int], unsafe: bool
) -> None:
    victim = next(layer for layer in read_int8_layers(copied) if not layer.depthwise)
    channel = 5
    kernel = np.zeros_like(victim.weights[channel]).reshape(-1)
    kernel[first : first + 2] = pair
    content = bytearray(copied.with_suffix(".bin").read_bytes())
    start = victim.weights_offset + channel * kernel.size
    content[start : start + kernel.size] = kernel.tobytes()
    copied.with_suffix(".bin").write_bytes(content)
    found = {layer.name: find_unsafe_channels(layer).tolist() for layer in read_int8_layers(copied)}
    assert found.pop(victim.name) == ([channel] if unsafe else [])
    assert not any(found.values())


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        ('type="Convolution"', 'type="Convolve"', "belongs to no known layer"),
        ('type="Multiply"', 'type="Subtract"', "zero point"),
        ('type="Multiply"', 'type="Divide"', "come from a Divide"),
    ],
)
def test_an_unknown_layout_is_no_proof(
    copied: Path, pattern: str, replacement: str, message: str
) -> None:
    copied.write_text(copied.read_text().replace(pattern, replacement))
    with pytest.raises(ValueError, match=message):
        read_int8_layers(copied)


def test_a_short_file_is_no_proof(copied: Path) -> None:
    content = copied.with_suffix(".bin").read_bytes()
    copied.with_suffix(".bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="ends at byte"):
        read_int8_layers(copied)


def test_pairs_of_one_channel_may_be_any_two_positions() -> None:
    weights = np.zeros((2, 1, 3, 3), np.int8)
    weights[0, 0, 0, 0] = weights[0, 0, 2, 2] = 100
    weights[1, 0, 1, 1] = 127
    weights[1, 0, 0, 1] = weights[1, 0, 2, 0] = -60
    positive, negative = pair_extremes(weights)
    assert positive.tolist() == [200, 127]
    assert negative.tolist() == [0, -120]


def test_an_odd_channel_meets_padding() -> None:
    weights = np.array([[1, 2, 100], [-4, -5, -127]], np.int8)
    positive, negative = pair_extremes(weights)
    assert positive.tolist() == [100, 0]
    assert negative.tolist() == [0, -127]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_in=st.integers(1, 40))
def test_safe_scale_is_safe_and_not_wasteful(seed: int, n_in: int) -> None:
    kernel = np.random.default_rng(seed).normal(size=n_in).astype(np.float32)
    scale = float(np.abs(kernel).max()) / 127

    def worst(step: float) -> int:
        rounded = np.clip(np.rint(kernel.astype(np.float64) / step), -127, 127).astype(np.int8)
        positive, negative = pair_extremes(rounded.reshape(1, n_in, 1, 1))
        return int(max(positive[0], -negative[0]))

    safe = safe_scale(kernel.reshape(n_in, 1, 1), scale)
    assert worst(safe) <= 128
    assert scale <= safe <= 2 * scale * 1.02
    if worst(scale) <= 128:
        assert safe == scale
    else:
        # Half a step of rounding for each of the two weights, and the search's own step.
        assert worst(safe * 0.985) > 128


@pytest.mark.parametrize("name", NAMES)
def test_cards_say_what_was_requantized(name: str) -> None:
    saturation = read_card(name)["saturation"]
    layers = {layer.name: layer for layer in read_int8_layers(MODELS_DIR / f"{name}.xml")}
    total = 0
    for row in saturation["layers"]:
        layer = layers[row["layer"]]
        assert row["n_channels"] == len(layer.weights)
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["requantized_bits"]), np.uint8))
        changed = bits[: row["n_channels"]].astype(bool)
        assert changed.sum() == row["n_requantized"]
        total += int(changed.sum())
        # NNCF brings the largest weight of a channel to 127; a larger scale makes it smaller.
        largest = np.abs(layer.weights.reshape(len(layer.weights), -1).astype(int)).max(axis=1)
        # (Dead channels of the published network, all next to zero, share the least scale.)
        dead = layer.scale.reshape(-1) == layer.scale.min()
        assert (largest[~changed & ~dead] == 127).all()
        assert (largest[changed] >= 127 // row["max_factor"]).all()
        assert (largest[changed] <= 127).all()
    assert total == saturation["n_requantized"]
    assert f"{total} of {saturation['n_channels']}" in saturation["statement"]


ISA_PROGRAM = """
import sys
import numpy as np
from engine.backbone import load_backbone
pictures = np.load(sys.argv[1])
loaded = load_backbone(sys.argv[2], streams=1, taps="all", cache_dir="")
np.savez(sys.argv[3], **loaded.infer(pictures))
"""


@pytest.mark.parametrize("name", NAMES)
def test_old_cpus_compute_the_same_features(name: str, tmp_path: Path, repository: Path) -> None:
    """Emulated by limiting the instruction sets; saturation would cost more than 0.01 of cosine.

    The same comparison on the weights as NNCF left them gave a cosine of 0.925 at the final tap.
    """
    size = read_card(name)["input"]["height"]
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lungs = 220 - 170 * np.exp(-(((abs(x) - 0.45) / 0.28) ** 2 + (y / 0.7) ** 2) * 1.5)
    noise = rng.integers(0, 256, (size, size))
    pictures = np.stack([lungs, lungs + rng.normal(0, 12, lungs.shape), noise, 255 * (x > y)])
    np.save(tmp_path / "pictures.npy", pictures.clip(0, 255).astype(np.uint8)[:, None])
    features = {}
    for isa in ("SSE41", "AVX2", "native"):
        limits = {} if isa == "native" else {"ONEDNN_MAX_CPU_ISA": isa, "OV_CPU_MAX_ISA": isa}
        command = [sys.executable, "-c", ISA_PROGRAM, str(tmp_path / "pictures.npy"), name]
        out = tmp_path / f"{isa}.npz"
        environment = {**os.environ, "PYTHONPATH": str(repository), **limits}
        subprocess.run([*command, str(out)], env=environment, check=True, cwd=tmp_path)
        with np.load(out) as maps:
            features[isa] = {
                tap: np.concatenate((m.mean((2, 3)), m.max((2, 3)), m.std((2, 3))), axis=1)
                for tap, m in maps.items()
            }
    for isa in ("SSE41", "AVX2"):
        agreement = compare_features(features["native"], features[isa])
        for tap, figures in agreement.items():
            assert figures["cosine_min"] > 0.995, (isa, tap, figures)


# --- stem ---------------------------------------------------------------------------------------


def convolve(
    picture: NDArray[np.float64], weight: NDArray[np.float64], before: int, stride: int = 2
) -> NDArray[np.float64]:
    """Convolve naively with TensorFlow's SAME padding; ``before`` zeros at the top and left."""
    _, height, width = picture.shape
    n_out, _, kh, kw = weight.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = np.zeros((picture.shape[0], height + kh, width + kw))
    padded[:, before : before + height, before : before + width] = picture
    out = np.zeros((n_out, rows, columns))
    for r in range(rows):
        for c in range(columns):
            window = padded[:, r * stride : r * stride + kh, c * stride : c * stride + kw]
            out[:, r, c] = np.tensordot(weight, window, axes=3)
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 9)])
def test_folded_stem_agrees_with_three_channels_up_to_the_border(
    name: str, height: int, width: int
) -> None:
    with np.load(MODELS_DIR / f"{name}.stem.npz") as stem:
        weight = stem["weight"].astype(np.float64)
    assert weight.shape == (32, 3, 3, 3)
    picture = np.random.default_rng(1).integers(0, 256, (1, height, width)).astype(np.float64)
    three = np.repeat((picture - 127) / 128, 3, axis=0)
    expected = convolve(three, weight, before=height % 2)
    found = convolve(picture - PIXEL_OFFSET, fold_stem(weight), before=height % 2)
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0)
    # Padding after the offset was taken off: the other order would show at the border.
    wrong = convolve(picture, fold_stem(weight), before=height % 2)
    assert np.abs(wrong - expected).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_network_has_the_folded_stem(name: str) -> None:
    openvino = pytest.importorskip("openvino")
    with np.load(MODELS_DIR / f"{name}.stem.npz") as stem:
        weight, bias = fold_batch_norm(
            stem["weight"],
            stem["gamma"],
            stem["beta"],
            stem["mean"],
            stem["variance"],
            float(stem["epsilon"]),
        )
    model = openvino.Core().read_model(MODELS_DIR / f"{name}.xml")
    nodes = model.get_ordered_ops()
    first = next(node for node in nodes if node.get_type_name() == "Convolution")
    kernels = first.input_value(1).get_node()
    assert kernels.get_type_name() == "Constant"  # FP32, not quantized
    np.testing.assert_array_equal(kernels.get_data(), fold_stem(weight).astype(np.float32))
    (target,) = first.output(0).get_target_inputs()
    found = target.get_node().input_value(1).get_node().get_data().reshape(-1)
    np.testing.assert_array_equal(found, bias.astype(np.float32))
    offset = first.input_value(0).get_node()
    assert offset.get_type_name() in ("Add", "Subtract")
    assert abs(float(offset.input_value(1).get_node().get_data().item())) == PIXEL_OFFSET
    assert offset.input_value(0).get_node().get_type_name() == "Convert"


def test_batch_norm_folds_into_the_convolution() -> None:
    rng = np.random.default_rng(2)
    picture, weight = rng.normal(size=(2, 9, 9)), rng.normal(size=(4, 2, 3, 3))
    gamma, beta, mean = rng.normal(size=(3, 4))
    variance = rng.uniform(0.1, 2, 4)
    plain = convolve(picture, weight, before=1)
    deviation = np.sqrt(variance + 1e-3)[:, None, None]
    expected = gamma[:, None, None] * (plain - mean[:, None, None]) / deviation
    expected += beta[:, None, None]
    folded, bias = fold_batch_norm(weight, gamma, beta, mean, variance, 1e-3)
    found = convolve(picture, folded, before=1) + bias[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_folded_network_agrees_with_the_published_one(recipe: Any) -> None:
    """Whole network, before quantization, in double precision: what remains is the mathematics."""
    torch = pytest.importorskip("torch", reason="needs the extra [models]")
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [models]")
    from engine.models.build import load_published, published_taps, tapped_network

    published = load_published(recipe)
    tapped = tapped_network(published, recipe)
    rng = np.random.default_rng(4)
    picture = torch.from_numpy(rng.integers(0, 256, (1, 1, recipe.size, recipe.size), np.uint8))
    normalised = (picture.to(torch.float32) - PIXEL_OFFSET) / PIXEL_SCALE
    with torch.no_grad():
        expected = published_taps(published, recipe, normalised.repeat(1, 3, 1, 1))
        found = tapped(picture)
    assert len(found) == len(expected)
    for (tap, values), other in zip(expected.items(), found, strict=True):
        # Single precision carries 24 bits: the tolerance is relative to the largest value.
        largest = max(1.0, float(values.abs().max()))
        assert float((values - other).abs().max()) <= 1e-4 * largest, tap


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_int8_agrees_with_fp32(recipe: Any, xrays: Path) -> None:
    """The committed INT8 network against the published FP32 one, on real X-rays."""
    torch = pytest.importorskip("torch", reason="needs the extra [models]")
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [models]")
    from engine.images import Preprocessing, preprocess, read_picture
    from engine.models.build import load_published, tapped_network

    tapped = tapped_network(load_published(recipe), recipe)
    with load_backbone(recipe.name, streams=1, taps="all", cache_dir="") as int8:
        rules = Preprocessing.from_dict(int8.preprocessing)
        files = sorted((xrays / "images").iterdir())[::30]
        pictures = np.stack([preprocess(read_picture(file), rules) for file in files])
        found = int8.infer(pictures)
    with torch.no_grad():
        expected = dict(zip(found, tapped(torch.from_numpy(pictures.copy())), strict=True))

    def pooled(maps: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([maps.mean((2, 3)), maps.max((2, 3)), maps.std((2, 3))], axis=1)

    for tap, maps in found.items():
        a, b = pooled(maps), pooled(expected[tap].numpy())
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        assert ((a * b).sum(axis=1) / norms).mean() >= 0.985, tap


# --- cards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_cards_describe_the_committed_files(name: str) -> None:
    card = read_card(name)
    parts = b""
    for kind in ("xml", "bin"):
        content = (MODELS_DIR / f"{name}.{kind}").read_bytes()
        facts = card["files"][kind]
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
        assert facts["bytes"] == len(content)
        assert facts["name"] == f"{name}.{kind}"
        parts += hashlib.sha256(content).digest()
    assert card["sha256"] == hashlib.sha256(parts).hexdigest()
    assert card["name"] == name
    assert card["licence"] == "Apache-2.0"
    assert card["quantization"]["calibration_data"]["licence"] == "CC BY 4.0"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_cards_follow_their_recipes(recipe: Any) -> None:
    card = read_card(recipe.name)
    assert [tap["name"] for tap in card["taps"]] == [*recipe.taps, "final"]
    assert card["default_taps"] == recipe.default_taps
    preprocessing = images.Preprocessing(**card["preprocessing"])
    assert preprocessing.to_dict() == card["preprocessing"]
    assert (preprocessing.height, preprocessing.width) == (recipe.size, recipe.size)
    assert set(NAMES) == {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("name", NAMES)
def test_cards_report_the_agreement_asked_for(name: str) -> None:
    card = read_card(name)
    assert card["agreement_with_fp32"]["n_images"] == 720
    for tap in (*(tap["name"] for tap in card["taps"]), "all"):
        assert card["agreement_with_fp32"][tap]["cosine_mean"] >= 0.985, tap
        for isa in ("SSE41", "AVX2"):
            agreement = card["instruction_sets"][isa]["agreement_with_native"]
            assert agreement[tap]["cosine_mean"] >= 0.999, (isa, tap)


def test_compare_features_is_a_cosine() -> None:
    a = {"t": np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])}
    same = compare_features(a, {"t": 3 * a["t"]})["t"]
    assert same["cosine_mean"] == same["cosine_min"] == 1
    other = compare_features(a, {"t": np.array([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])})["t"]
    assert other["cosine_min"] == 0
    assert other["cosine_mean"] == 0.5
    assert other["standardised_cosine_mean"] < 0.5


def test_default_features_are_measured_as_they_are_pooled() -> None:
    maps = {"t": np.random.default_rng(5).normal(size=(1, 3, 14, 28)).astype(np.float32)}
    expected = pool_features(maps, parse_taps("t:mean3x3", None, {"t": 3}))[0]
    np.testing.assert_allclose(grid_mean(maps["t"][0], 3), expected, atol=1e-6)


def test_no_machine_path_is_committed() -> None:
    pattern = re.compile(r"(?<![\w.:/])/(?:home|tmp|root|usr|work|mnt|opt|var)/|[A-Z]:\\\\|@")
    checked = 0
    for file in MODELS_DIR.iterdir():
        if file.suffix in {".xml", ".json", ".md"}:
            found = pattern.search(file.read_text(encoding="utf-8"))
            assert found is None, (file.name, found)
            checked += 1
    assert checked >= 2 * len(NAMES) + 1
