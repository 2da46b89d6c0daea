"""Heatmaps: nothing is lost between logit and map, and the map lies where the evidence was."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_helpers import make_head
from numpy.typing import NDArray
from PIL import Image

import engine
from engine import heatmap
from engine.errors import MismatchError
from engine.heads import Head
from engine.heatmap import Evidence, class_evidence, place_map, render_heatmap, render_sheet
from engine.images import JoinedPreprocessing, Preprocessing, preprocess, read_preprocessing
from engine.inference import feature_maps, network_inputs
from engine.picture import Picture
from engine.pooling import POOLINGS, pool_features

Maps = dict[str, NDArray[np.float32]]
CLASSES = ("a", "b", "c")


def draw_maps(**sizes: tuple[int, int, int]) -> Maps:
    rng = np.random.default_rng(0)
    # Below zero too, and with zeros, as behind a ReLU6 and in front of it.
    return {
        name: np.maximum(rng.normal(size=(1, *size)), -0.4).astype(np.float32)
        for name, size in sizes.items()
    }


def expected_logits(head: Head, maps: Maps) -> NDArray[np.float64]:
    """By the way predictions go: kernels, float32 features."""
    logits: NDArray[np.float64] = head.logits(pool_features(maps, head.blocks))[0]
    if head.multilabel:
        return logits
    k = len(logits)
    return np.asarray(logits - (logits.sum() - logits) / (k - 1))


def expected_offset(head: Head, number: int) -> float:
    bias = head.weights["bias"].astype(np.float64)
    if head.multilabel:
        return float(bias[number])
    return float(bias[number] - np.delete(bias, number).mean())


# ---- Nothing is lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_map_and_offset_sum_to_the_logit(pooling: str, multilabel: bool) -> None:
    # 7 x 6: no grid but 2 x 3 divides it, so cells overlap.
    maps = draw_maps(x=(5, 7, 6))
    head = make_head(f"x:{pooling}", {"x": 5}, classes=CLASSES, multilabel=multilabel)
    found = class_evidence(head, maps, size=(56, 64), classes=CLASSES)
    assert [one.class_name for one in found] == list(CLASSES)
    for number, (one, logit) in enumerate(zip(found, expected_logits(head, maps), strict=True)):
        assert one.map.shape == (56, 64)
        assert one.logit == pytest.approx(logit, rel=1e-5)
        assert one.map.sum() + one.offset == pytest.approx(logit, rel=1e-5)
        assert one.map.sum() + one.offset == pytest.approx(one.logit, rel=1e-10)
        # What is not in the map is the bias alone.
        assert one.offset == pytest.approx(expected_offset(head, number), rel=1e-6)


def test_taps_of_joined_backbones_add_up() -> None:
    maps = draw_maps(**{"p.block4": (4, 28, 28), "q.block4": (3, 33, 33), "p.end": (6, 7, 7)})
    channels = {name: array.shape[1] for name, array in maps.items()}
    taps = "q.block4:mean3x3+std,p.end:max2x2,p.block4:mean5x5+gem"
    head = make_head(taps, channels, classes=CLASSES)
    for one, logit in zip(
        class_evidence(head, maps, size=(260, 260), classes=CLASSES),
        expected_logits(head, maps),
        strict=True,
    ):
        assert one.map.sum() + one.offset == pytest.approx(logit, rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_hidden_layer_is_exact_where_it_is_linear(multilabel: bool) -> None:
    maps = draw_maps(x=(5, 7, 6))
    head = make_head("x:mean3x3+max", {"x": 5}, classes=CLASSES, multilabel=multilabel, hidden=16)
    before = class_evidence(head, maps, size=(7, 6), classes=CLASSES)
    for one, logit in zip(before, expected_logits(head, maps), strict=True):
        assert one.map.sum() + one.offset == pytest.approx(logit, rel=1e-4)
    # A step too small to switch a unit changes the logit by what the map says it brings.
    step = np.float32(1e-3)
    moved = {"x": maps["x"].copy()}
    moved["x"][0, :, 3, 2] += step
    after = class_evidence(head, moved, size=(7, 6), classes=CLASSES)
    for old, new in zip(before, after, strict=True):
        assert new.offset == pytest.approx(old.offset)
        assert new.logit - old.logit == pytest.approx((new.map - old.map).sum(), rel=1e-6)


def test_the_two_of_two_classes_are_the_odds() -> None:
    maps = draw_maps(x=(5, 7, 6))
    head = make_head("x:mean", {"x": 5})
    a, b = class_evidence(head, maps, size=(7, 6), classes=("a", "b"))
    np.testing.assert_allclose(a.map, -b.map, rtol=1e-9, atol=1e-12)
    temperature = head.calibration.temperature
    odds = np.log(a.probability / (1 - a.probability))
    assert a.logit / temperature == pytest.approx(odds)
    assert (a.against, b.against) == (("b",), ("a",))


def test_what_changes_no_probability_changes_no_map() -> None:
    """Softmax takes no notice of one number added to all logits; the map must not either."""
    maps = draw_maps(x=(5, 7, 6))
    head = make_head("x:mean+std", {"x": 5}, classes=CLASSES)
    shifted = {
        "weight": head.weights["weight"] + np.linspace(1, 3, 10, dtype=np.float32),
        "bias": head.weights["bias"] + np.float32(4),
    }
    other = dataclasses.replace(head, weights=shifted)
    for one, two in zip(
        class_evidence(head, maps, size=(7, 6), classes=CLASSES),
        class_evidence(other, maps, size=(7, 6), classes=CLASSES),
        strict=True,
    ):
        np.testing.assert_allclose(one.map, two.map, atol=1e-5)
        assert one.offset == pytest.approx(two.offset, abs=1e-5)


# ---- It lies where the evidence was ------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "mean2x2", "mean3x3"])
def test_a_change_at_one_position_shows_there_alone(pooling: str) -> None:
    maps = draw_maps(x=(5, 7, 6))
    head = make_head(f"x:{pooling}", {"x": 5}, classes=CLASSES)
    moved = {"x": maps["x"].copy()}
    moved["x"][0, :, 3, 2] += 1.0
    for old, new in zip(
        class_evidence(head, maps, size=(7, 6), classes=CLASSES),
        class_evidence(head, moved, size=(7, 6), classes=CLASSES),
        strict=True,
    ):
        change = new.map - old.map
        assert change[3, 2] == pytest.approx(new.logit - old.logit, rel=1e-6)
        assert abs(change[3, 2]) > 1e-3
        change[3, 2] = 0.0
        np.testing.assert_allclose(change, 0.0, atol=1e-12)


def test_a_maximum_is_its_positions_alone() -> None:
    maps = {"x": np.zeros((1, 1, 4, 5), np.float32)}
    head = make_head("x:max", {"x": 1})
    maps["x"][0, 0, 1, 3] = 2.0
    one = class_evidence(head, maps, size=(4, 5), classes=["a"])[0]
    assert list(zip(*np.nonzero(one.map), strict=True)) == [(1, 3)]
    maps["x"][0, 0, 2, 0] = 2.0  # two largest: half each
    two = class_evidence(head, maps, size=(4, 5), classes=["a"])[0]
    assert two.map[1, 3] == pytest.approx(one.map[1, 3] / 2)
    assert two.map[2, 0] == two.map[1, 3]


@pytest.mark.parametrize("pooling", ["std", "gem"])
def test_curved_poolings_are_shared_by_their_gradient(pooling: str) -> None:
    plane = np.random.default_rng(5).uniform(0.1, 2.0, (4, 5))
    plane = plane.astype(np.float32).astype(np.float64)

    def pool(values: NDArray[np.float64]) -> float:
        return float(values.std() if pooling == "std" else (values**3).mean() ** (1 / 3))

    gradient = np.empty_like(plane)
    for at in np.ndindex(plane.shape):
        step = np.zeros_like(plane)
        step[at] = 1e-5
        gradient[at] = (pool(plane + step) - pool(plane - step)) / 2e-5
    terms = gradient * (plane - plane.mean() if pooling == "std" else plane)
    assert terms.sum() == pytest.approx(pool(plane))  # homogeneous of degree one
    maps = {"x": plane.astype(np.float32)[np.newaxis, np.newaxis]}
    one = class_evidence(make_head(f"x:{pooling}", {"x": 1}), maps, size=(4, 5))[0]
    np.testing.assert_allclose(one.map / one.map.sum(), terms / terms.sum(), rtol=1e-5, atol=1e-9)


def test_spread_of_a_level_map_favours_no_position() -> None:
    maps = {"x": np.full((1, 2, 4, 5), 0.7, np.float32)}
    for pooling in ("std", "max", "gem", "mean"):
        one = class_evidence(make_head(f"x:{pooling}", {"x": 2}), maps, size=(8, 10))[0]
        np.testing.assert_allclose(one.map, one.map[0, 0], rtol=1e-9)
        assert one.map[0, 0] != 0.0


@pytest.mark.parametrize(
    ("n", "m"), [(3, 224), (7, 224), (9, 260), (17, 260), (28, 260), (7, 7), (10, 4), (1, 5)]
)
def test_enlarging_keeps_every_share(n: int, m: int) -> None:
    matrix = heatmap._spread(n, m)
    assert matrix.shape == (m, n)
    assert matrix.min() >= 0.0
    np.testing.assert_allclose(matrix.sum(axis=0), 1.0, rtol=1e-12)
    # Each position stays where it is, and an even map stays even.
    centres = (np.arange(m) + 0.5) / m @ matrix
    np.testing.assert_allclose(centres[1:-1], ((np.arange(n) + 0.5) / n)[1:-1], atol=0.6 / m)
    np.testing.assert_allclose(matrix.sum(axis=1), n / m, rtol=0.12)


# ---- What is asked for -------------------------------------------------------------------------


def test_default_is_what_was_decided() -> None:
    maps = draw_maps(x=(5, 7, 6))
    head = make_head("x:mean", {"x": 5}, classes=CLASSES)
    p = head.probabilities(pool_features(maps, head.blocks))[0]
    (one,) = class_evidence(head, maps, size=(7, 6))
    assert one.class_name == CLASSES[int(p.argmax())]
    assert one.probability == pytest.approx(p.max(), rel=1e-5)
    many = make_head("x:mean", {"x": 5}, classes=CLASSES, multilabel=True, thresholds=(0, 2, 0))
    assert [e.class_name for e in class_evidence(many, maps, size=(7, 6))] == ["a", "c"]
    none = dataclasses.replace(many, thresholds=(2.0, 2.0, 2.0))
    q = none.probabilities(pool_features(maps, none.blocks))[0]
    (most,) = class_evidence(none, maps, size=(7, 6))
    assert most.class_name == CLASSES[int(q.argmax())]
    assert most.against == ()


def test_what_cannot_be_split_is_said() -> None:
    maps = draw_maps(x=(5, 7, 6))
    head = make_head("x:mean", {"x": 5})
    with pytest.raises(MismatchError, match="no class 'z'; it has: a, b"):
        class_evidence(head, maps, size=(7, 6), classes=["z"])
    with pytest.raises(MismatchError, match=r"tap 'x', which is missing.* there are: y"):
        class_evidence(head, {"y": maps["x"]}, size=(7, 6))
    with pytest.raises(MismatchError, match=r"of shape \(2, 5, 7, 6\)"):
        class_evidence(head, {"x": np.repeat(maps["x"], 2, axis=0)}, size=(7, 6))
    with pytest.raises(MismatchError, match="5 wide, the map gives 4"):
        class_evidence(head, {"x": maps["x"][:, :4]}, size=(7, 6))
    maps["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(MismatchError, match="not finite"):
        class_evidence(head, maps, size=(7, 6))


# ---- On the picture ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (400, 400), (240, 110)])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_spot_of_the_picture_is_found_on_it_again(
    fit: str, shape: tuple[int, int], joined: bool
) -> None:
    """The network's input itself, taken for a map, must lie on the picture it came from."""
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns]
    at = (0.42 * rows, 0.56 * columns)  # inside the part that a crop keeps
    spot = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * (0.05 * min(shape)) ** 2))
    picture = Picture(np.rint(255 * spot).astype(np.uint8), Path("x"), "png", 8)
    rules = Preprocessing(height=120, width=160, fit=fit, low_percentile=None, high_percentile=None)
    evidence = preprocess(picture, rules)[0].astype(np.float64)
    steps: Preprocessing | JoinedPreprocessing = rules
    if joined:  # the map has the larger input's size, and the first is the smaller
        steps = JoinedPreprocessing((dataclasses.replace(rules, height=60, width=80), rules))
    size = (rows // 2, columns // 2)
    placed = place_map(evidence, steps, shape, size)
    assert placed.shape == size
    total = placed.sum()
    found_y = (placed.sum(axis=1) @ (np.arange(size[0]) + 0.5)) / total / size[0]
    found_x = (placed.sum(axis=0) @ (np.arange(size[1]) + 0.5)) / total / size[1]
    assert found_y == pytest.approx(0.42, abs=0.012)
    assert found_x == pytest.approx(0.56, abs=0.012)
    # As large as it was: half of it lies within 1.18 spreads of its middle.
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    near = (y - 0.42 * size[0]) ** 2 + (x - 0.56 * size[1]) ** 2
    within = near <= (1.1774 * 0.05 * min(size)) ** 2
    assert placed[within].sum() / total == pytest.approx(0.5, abs=0.12)
    # Evidence per hundredth of the area: nothing gained, nothing lost.
    assert placed.mean() * 100 == pytest.approx(evidence.sum(), rel=0.02)


def test_borders_and_what_was_cut_off() -> None:
    evidence = np.ones((100, 100))
    pad = Preprocessing(height=100, width=100, fit="pad")
    # A picture twice as wide fills the middle 50 rows: the borders' half is left out.
    placed = place_map(evidence, pad, (200, 400), (200, 400))
    assert placed.mean() * 100 == pytest.approx(5000)
    np.testing.assert_allclose(placed, placed[0, 0])
    crop = Preprocessing(height=100, width=100, fit="crop")
    placed = place_map(evidence, crop, (200, 400), (200, 400))
    assert placed.mean() * 100 == pytest.approx(10000)
    assert not placed[:, :100].any()
    assert not placed[:, 300:].any()
    assert (placed[:, 100:300] > 0).all()


def test_inputs_that_see_different_parts_have_no_common_map() -> None:
    parts = (
        Preprocessing(height=60, width=60, fit="crop"),
        Preprocessing(height=60, width=80, fit="crop"),
    )
    with pytest.raises(MismatchError, match="do not lie on each other"):
        place_map(np.ones((60, 80)), JoinedPreprocessing(parts), (99, 99), (99, 99))


def make_evidence(map_: NDArray[np.float64], **changes: Any) -> Evidence:
    facts: dict[str, Any] = {
        "head": "h", "class_name": "a", "against": ("b",), "probability": 0.7,
        "logit": float(map_.sum()), "offset": 0.0, "map": map_,
    }  # fmt: skip
    return Evidence(**(facts | changes))


STRETCH = Preprocessing(height=64, width=64, fit="stretch")


def test_red_speaks_for_and_blue_against() -> None:
    signs = np.zeros((64, 64))
    signs[:, :32], signs[:32, 32:] = 1.0, -1.0  # left for, right above against, below nothing
    gray = np.full((800, 900), 90, np.uint8)
    out = render_heatmap(gray, make_evidence(signs), STRETCH)
    assert out.dtype == np.uint8
    top = next(
        i for i in range(len(out)) if (out[i, 890] == out[i, 880]).all() and out[i, 300, 0] > 150
    )
    red, blue, none = (out[top + y, x].astype(int) for y, x in ((400, 200), (200, 700), (600, 700)))
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    np.testing.assert_array_equal(none, [90, 90, 90])


@pytest.mark.parametrize("shape", [(100, 100), (64, 3000), (3000, 64), (2000, 2500)])
def test_drawings_have_a_readable_size(shape: tuple[int, int]) -> None:
    out = render_heatmap(np.zeros(shape, np.uint8), make_evidence(np.zeros((64, 64))), STRETCH)
    assert 768 <= max(out.shape[:2]) <= 1400
    assert min(out.shape[:2]) >= 150
    assert len(np.unique(out.reshape(-1, 3), axis=0)) > 10  # words, though there is no evidence


def test_words_of_any_kind_and_length_are_drawn() -> None:
    assert heatmap.drawable("a\n\x00é肺") == "a??é?"
    gray = np.zeros((100, 100), np.uint8)
    plain = render_heatmap(gray, make_evidence(np.eye(64)), STRETCH)
    for name in ("肺炎 <b>\n\x00", "x" * 3000, "a " * 300, "é"):
        out = render_heatmap(gray, make_evidence(np.eye(64), class_name=name, head=name), STRETCH)
        assert out.shape[1] == plain.shape[1]
        assert not np.array_equal(out[-100:], plain[-100:])


def test_a_sheet_holds_every_panel() -> None:
    gray = np.full((300, 400), 60, np.uint8)
    evidence = [make_evidence(np.eye(64), class_name=name) for name in "abcde"]
    one = render_sheet(gray, evidence[:1], STRETCH)
    np.testing.assert_array_equal(one, render_heatmap(gray, evidence[0], STRETCH))
    five = render_sheet(gray, evidence, STRETCH)
    panel = render_heatmap(gray, evidence[4], STRETCH, long_side=768)
    h, w = panel.shape[:2]
    np.testing.assert_array_equal(five[h : 2 * h, w : 2 * w], panel)
    assert max(render_sheet(gray, evidence * 10, STRETCH).shape) <= 5000


def test_png_holds_the_pixels_and_no_words() -> None:
    out = render_heatmap(np.full((90, 70), 60, np.uint8), make_evidence(np.eye(64)), STRETCH)
    data = heatmap.encode_png(out)
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(image), out)
    assert image.info == {}
    assert data == heatmap.encode_png(out)


# ---- With networks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("efficientnet-lite0", "block4:mean3x3,block10:max+std,final:mean2x2+gem"),
        (
            "efficientnet-lite0+efficientnet-lite2",
            "efficientnet-lite0.block4:mean3x3,efficientnet-lite2.block10:mean3x3+max",
        ),
    ],
)
def test_a_network_loses_nothing_either(name: str, taps: str) -> None:
    wanted = [part.partition(":")[0] for part in taps.split(",")]
    backbone = engine.load_backbone(name, streams=1, taps=wanted)
    head = make_head(taps, backbone=backbone, classes=CLASSES)
    pixels = np.asarray(
        Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 8), np.uint8)).resize(
            (300, 280), Image.Resampling.BICUBIC
        )
    )
    rules = read_preprocessing(backbone.preprocessing)
    maps = feature_maps(backbone, network_inputs(Picture(pixels, Path("x"), "png", 8), rules))
    size = max(backbone.input_sizes)
    for one, logit in zip(
        class_evidence(head, maps, size=size, classes=CLASSES),
        expected_logits(head, maps),
        strict=True,
    ):
        assert one.map.shape == size
        assert one.map.sum() + one.offset == pytest.approx(logit, rel=1e-5)
    assert render_sheet(pixels, class_evidence(head, maps, size=size), rules).ndim == 3
