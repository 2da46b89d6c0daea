"""Predictions: one backbone pass for all heads, honest statuses, strangers refused."""

from __future__ import annotations

import ast
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_helpers import FixedScore, make_head
from PIL import Image

import engine
from engine import features
from engine.cascade import Chain, Condition, Step
from engine.errors import OVERRIDABLE, REFUSALS, HeadFileError, MismatchError
from engine.heads import Head
from engine.phantoms import draw_phantom, write_dicom
from engine.prediction import DEMONSTRATION_HEAD, Predictor, predict_images


def draw(path: Path, seed: int) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(coarse).resize((120, 100), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(9):
        target = folder / f"{'ab'[i % 2]}" / f"{i}.png"
        target.parent.mkdir(exist_ok=True)
        draw(target, i)
    return folder


@pytest.fixture(scope="module")
def heads(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Head]]:
    """Two heads on different taps of one backbone, trained in a moment on nine images."""
    out = tmp_path_factory.mktemp("containers")
    backbone = engine.load_backbone("efficientnet-lite0")
    found = []
    for name, taps in (("shallow", "block4:mean3x3"), ("deep", "block4:mean3x3,block10:max")):
        with engine.extract_features(
            backbone, folder, out / f"{name}.hilum", taps=taps, dtype="f32", seed=0
        ) as container, pytest.MonkeyPatch.context():  # fmt: skip
            found.append(engine.fit_head(container, name=name))
    yield found


def test_several_heads_answer_from_one_pass_as_each_alone(folder: Path, heads: list[Head]) -> None:
    image = folder / "a" / "0.png"
    together = Predictor(heads, streams=1).predict(image)
    assert together.status == "ok"
    assert list(together.heads) == ["shallow", "deep"]
    for head in heads:
        alone = Predictor([head], streams=1).predict(image)
        assert alone.heads == {head.name: together.heads[head.name]}
    assert set(together.heads["deep"]) == {"label", "probabilities", "threshold", "notice"}
    assert sum(together.heads["deep"]["probabilities"].values()) == pytest.approx(1.0)


def test_features_that_are_no_numbers_give_no_answer(
    folder: Path, heads: list[Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(heads[:1], streams=1, allow=["out_of_distribution"])
    real = predictor.backbone.infer_parts

    def broken(images: Any) -> dict[str, Any]:
        maps = real(images)
        next(iter(maps.values()))[0, 3, 5, 7] = np.nan
        return maps

    monkeypatch.setattr(predictor.backbone, "infer_parts", broken)
    found = predictor.predict(folder / "a" / "0.png")
    assert (found.status, found.heads) == ("error", {})
    assert found.reason is not None
    assert "engine.doctor" in found.reason


def test_prediction_uses_the_very_features_of_extraction(
    folder: Path, heads: list[Head], tmp_path: Path
) -> None:
    head = heads[1]
    image = folder / "b" / "1.png"
    backbone = engine.load_backbone("efficientnet-lite0")
    with engine.extract_features(
        backbone, image, tmp_path / "one.hilum", taps="block4:mean3x3,block10:max", dtype="f32"
    ) as container:
        expected = head.probabilities(container.read_rows())[0]
    answer = Predictor([head]).predict(image).heads["deep"]["probabilities"]
    np.testing.assert_array_equal(list(answer.values()), expected)


@pytest.mark.parametrize("streams", [1, 2])
def test_every_file_gets_one_answer_in_order(
    folder: Path, heads: list[Head], tmp_path: Path, streams: int
) -> None:
    text = tmp_path / "letter.jpg"
    text.write_text("dear colleague")
    blank = tmp_path / "blank.png"
    Image.new("L", (100, 100), 7).save(blank)
    paths = [folder / "a" / "0.png", text, blank, tmp_path / "missing.dcm", folder / "b" / "1.png"]
    answers = list(predict_images(iter(paths), heads, streams=streams))
    assert [answer.input for answer in answers] == [str(path) for path in paths]
    assert [answer.status for answer in answers] == ["ok", "error", "refused", "error", "ok"]
    assert answers[2].reason is not None
    assert answers[2].reason.startswith("blank: ")
    for answer, path in zip(answers, paths, strict=True):
        assert answer.status == "ok" or str(path) in str(answer.reason)
        assert (answer.heads == {}) == (answer.status != "ok")
        record = json.loads(json.dumps(answer.to_json()))
        assert list(record) == ["input", "status", "reason", "heads", "backbone", "milliseconds"]


def test_a_fault_that_nobody_knows_costs_one_picture_and_says_nothing(
    folder: Path, heads: list[Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import prediction

    real = prediction.read_picture

    def read(path: Any, **more: Any) -> Any:
        if Path(path).name == "1.png":
            raise KeyError("Nowak^Anna")
        return real(path, **more)

    monkeypatch.setattr(prediction, "read_picture", read)
    paths = [folder / "a" / "0.png", folder / "b" / "1.png", folder / "a" / "2.png"]
    found = list(predict_images(paths, heads, streams=2))
    assert [one.status for one in found] == ["ok", "error", "ok"]
    reason = str(found[1].reason)
    assert reason.startswith(f"internal_error: {paths[1]}: unexpected KeyError")
    assert "Nowak" not in reason
    # Asking to stop is no fault.
    monkeypatch.setattr(prediction, "read_picture", lambda *_, **__: signal.raise_signal(2))
    with pytest.raises(KeyboardInterrupt):
        Predictor(heads, streams=1).predict(paths[0])


def test_an_endless_list_is_answered_as_it_comes(folder: Path, heads: list[Head]) -> None:
    def endless() -> Iterator[Path]:
        while True:
            yield folder / "a" / "0.png"

    answers = predict_images(endless(), heads, streams=2)
    assert [next(answers).status for _ in range(20)] == ["ok"] * 20
    answers.close()  # type: ignore[attr-defined]


def test_strangers_are_refused(heads: list[Head], tmp_path: Path) -> None:
    other_build = dataclasses.replace(heads[0], backbone_digest="0" * 64)
    with pytest.raises(MismatchError, match="extract the features again and train"):
        Predictor([other_build])
    with pytest.raises(MismatchError, match=r"backbone digest .* and 000"):
        Predictor([heads[1], other_build])
    with pytest.raises(MismatchError, match="two heads are called 'deep'"):
        Predictor([heads[1], heads[1]])
    other_steps = dataclasses.replace(heads[0], preprocessing_digest="1" * 64)
    with pytest.raises(MismatchError, match="preprocessing digest"):
        Predictor([heads[1], other_steps])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no head")
    with pytest.raises(HeadFileError, match=r"broken\.safetensors"):
        Predictor([broken])


def test_demonstration_head_says_what_it_is(folder: Path) -> None:
    head = engine.load_head(DEMONSTRATION_HEAD)
    assert "demonstration" in head.name
    assert "aged 1 to 5 years" in head.notice()
    assert "research use" in head.notice().lower()
    answer = Predictor(streams=1).predict(folder / "a" / "0.png")
    assert "aged 1 to 5 years" in answer.heads[head.name]["notice"]


def test_demonstration_head_knows_real_xrays(xrays: Path) -> None:
    """Rows it was trained on, so this holds the whole path together and measures nothing."""
    lines = (xrays / "labels.csv").read_text().splitlines()[1:]
    chosen = [line.split(",")[:2] for line in lines[::36]]
    answers = predict_images(xrays / file for file, _ in chosen)
    right = [
        next(iter(answer.heads.values()))["label"] == label
        for answer, (_, label) in zip(answers, chosen, strict=True)
    ]
    assert sum(right) >= 0.85 * len(right)


# ---- Refusing ----------------------------------------------------------------------------------

TAPS = "block4:mean3x3"


@pytest.fixture(scope="module")
def backbone() -> engine.Backbone:
    return engine.load_backbone("efficientnet-lite0", streams=1, taps=["block4"])


def judge(image: Path, *heads: Head, **options: Any) -> dict[str, Any]:
    """The JSON of one picture, as strict readers take it."""
    answer = Predictor(heads, streams=1, **options).predict(image).to_json()
    found: dict[str, Any] = json.loads(json.dumps(answer, allow_nan=False))
    assert list(found)[:6] == ["input", "status", "reason", "heads", "backbone", "milliseconds"]
    return found


def test_one_head_refuses_and_the_others_answer(folder: Path, backbone: engine.Backbone) -> None:
    image = folder / "a" / "0.png"
    strict = make_head(TAPS, backbone=backbone, name="strict", ood=FixedScore(3.5))
    calm = make_head(TAPS, backbone=backbone, name="calm", ood=FixedScore(1.0))
    old = make_head(TAPS, backbone=backbone, name="old")
    found = judge(image, strict, calm, old)
    assert (found["status"], found["reason"]) == ("ok", None)
    assert list(found)[6:] == []
    assert set(found["heads"]["strict"]) == {"refused", "ood", "notice"}
    assert found["heads"]["strict"]["refused"].startswith("out_of_distribution: unlike the")
    assert found["heads"]["strict"]["ood"] == {"score": 3.5, "threshold": 1.0}
    # At the threshold a head still answers.
    assert found["heads"]["calm"]["ood"] == {"score": 1.0, "threshold": 1.0}
    assert sum(found["heads"]["calm"]["probabilities"].values()) == pytest.approx(1.0)
    assert set(found["heads"]["old"]) == {"label", "probabilities", "threshold", "notice"}


@pytest.mark.parametrize("score", [3.5, float("inf"), float("nan")])
def test_a_picture_all_heads_refuse_is_refused(
    folder: Path, backbone: engine.Backbone, score: float
) -> None:
    image = folder / "a" / "0.png"
    heads = [make_head(TAPS, backbone=backbone, name=name, ood=FixedScore(score)) for name in "ab"]
    for given in (heads[:1], heads):
        found = judge(image, *given)
        assert found["status"] == "refused"
        assert found["reason"].startswith("out_of_distribution: ")
        assert "probabilities" not in json.dumps(found)
        assert found["heads"]["a"]["ood"]["score"] == (score if score == 3.5 else None)
    assert "2 heads" in found["reason"]


def test_refusals_can_be_set_aside_and_that_is_said(
    folder: Path, backbone: engine.Backbone
) -> None:
    image = folder / "a" / "0.png"
    strict = make_head(TAPS, backbone=backbone, name="strict", ood=FixedScore(3.5))
    calm = make_head(TAPS, backbone=backbone, name="calm", ood=FixedScore(0.5))
    found = judge(image, strict, calm, allow=["out_of_distribution"])
    assert found["allowed"] == ["out_of_distribution"]
    assert found["heads"]["strict"]["label"] in ("a", "b")
    assert found["heads"]["strict"]["ood"] == {"score": 3.5, "threshold": 1.0}
    # Where nothing had to be set aside, nothing is said.
    assert "allowed" not in judge(image, calm, allow=["out_of_distribution"])
    with pytest.raises(MismatchError, match=r"'no_pixels' cannot be allowed.* out_of_distribution"):
        Predictor([calm], allow=["no_pixels"])


def test_what_a_dicom_header_says_can_be_set_aside(
    tmp_path: Path, backbone: engine.Backbone
) -> None:
    import pydicom

    path = write_dicom(draw_phantom(1, "none", height=128, width=128), tmp_path / "side.dcm")
    dataset = pydicom.dcmread(path)
    dataset.ViewPosition = "LL"
    dataset.save_as(path)
    head = make_head(TAPS, backbone=backbone)
    found = judge(path, head)
    assert (found["status"], found["heads"]) == ("refused", {})
    assert found["reason"].startswith("lateral: ")
    assert judge(path, head, allow=["body_part"])["status"] == "refused"
    found = judge(path, head, allow=["lateral"])
    assert (found["status"], found["allowed"]) == ("ok", ["lateral"])


def test_every_reason_has_one_place(repository: Path) -> None:
    refused, words = set(), set()
    for path in (repository / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and path.name != "errors.py":
                words.add(node.value)
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in ("Refused", "refuse"):
                reason = node.args[1]
                refused |= {reason.value} if isinstance(reason, ast.Constant) else set()
    assert refused
    assert refused <= set(REFUSALS)
    assert set(REFUSALS) <= words  # none that nothing gives
    assert set(OVERRIDABLE) <= set(REFUSALS)
    assert list(REFUSALS) == sorted(REFUSALS)


class Likes:
    """In the place of an `OodModel`: scores in the order in which they are asked for."""

    threshold = 1.0

    def __init__(self, *scores: float) -> None:
        self.left = list(scores)

    def scores(self, standard: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert len(standard) == 1
        return np.array([self.left.pop(0)])

    def explain(self, score: float) -> str:
        return f"unlike ({score})"


def test_only_the_negative_is_like_the_training_images(
    folder: Path, backbone: engine.Backbone
) -> None:
    image = folder / "a" / "0.png"

    def asked(*scores: float, allow: list[str] | None = None) -> tuple[dict[str, Any], Likes]:
        ood = Likes(*scores)
        predictor = Predictor([make_head(TAPS, backbone=backbone, ood=FixedScore(0))], streams=1,
                              allow=allow or ())  # fmt: skip
        predictor.heads = (dataclasses.replace(predictor.heads[0], ood=ood),)
        return predictor.predict(image).to_json(), ood

    found, _ = asked(3.5, 0.5)
    assert found["status"] == "refused"
    assert found["reason"].startswith("inverted: ")
    assert "PhotometricInterpretation" in found["reason"]
    assert set(found["heads"]["head"]) == {"refused", "ood", "notice"}
    assert found["heads"]["head"]["ood"] == {"score": 3.5, "threshold": 1.0}
    for negative in (2.0, float("nan"), float("inf")):
        assert asked(3.5, negative)[0]["reason"].startswith("out_of_distribution: ")
    found, _ = asked(3.5, 0.5, allow=["inverted"])
    assert (found["status"], found["allowed"]) == ("ok", ["inverted"])
    # The picture is answered as it is, and a stranger is still one.
    plain, _ = asked(0.5)
    assert found["heads"]["head"]["probabilities"] == plain["heads"]["head"]["probabilities"]
    found, _ = asked(3.5, 2.0, allow=["inverted"])
    assert found["reason"].startswith("out_of_distribution: ")
    # Nobody looks at a negative without need.
    for scores, allow in (((0.5, 9.0), []), ((3.5, 9.0), ["out_of_distribution"])):
        found, ood = asked(*scores, allow=allow)
        assert (found["status"], ood.left) == ("ok", [9.0])


def test_several_heads_look_at_one_negative(
    folder: Path, backbone: engine.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [make_head(TAPS, backbone=backbone, name=name, ood=FixedScore(3.5)) for name in "abc"]
    predictor = Predictor(heads, streams=1)
    passes = []
    real = predictor.backbone.infer_parts
    monkeypatch.setattr(
        predictor.backbone, "infer_parts", lambda images: passes.append(images) or real(images)
    )
    assert predictor.predict(folder / "a" / "0.png").status == "refused"
    assert len(passes) == 2
    np.testing.assert_array_equal(passes[1][0], 255 - passes[0][0])


def test_real_negatives_are_told_from_strangers(xrays: Path, tmp_path: Path) -> None:
    lines = (xrays / "labels.csv").read_text().splitlines()[1:]
    predictor = Predictor(streams=1)
    for line in lines[::90]:
        image = xrays / line.split(",")[0]
        assert predictor.predict(image).status == "ok"
        with Image.open(image) as opened:
            negative = Image.fromarray(255 - np.asarray(opened.convert("L")))
        negative.save(tmp_path / "negative.png")
        reason = str(predictor.predict(tmp_path / "negative.png").reason)
        assert reason.startswith("inverted: "), (image, reason)


def flat(share: float, level: int = 200) -> np.ndarray[Any, Any]:
    """A picture of which only a square has another level than the rest."""
    pixels = np.full((400, 500), 9, np.uint8)
    side = round((share * pixels.size) ** 0.5)
    pixels[100 : 100 + side, 100 : 100 + side] = level
    return pixels


@pytest.mark.parametrize("bits", [8, 16])
def test_nearly_blank_pictures(tmp_path: Path, backbone: engine.Backbone, bits: int) -> None:
    head = make_head(TAPS, backbone=backbone)
    noise = np.random.default_rng(0).integers(0, 2, (400, 500)).astype(np.uint8)
    pictures = {
        "closed": (flat(0.004), "refused", "% of the pixels have the same grey level"),
        "open": (flat(0.1), "ok", ""),
        "noise": (100 + noise, "refused", "lie within 2 of 256 grey levels"),
        "spot": (noise + flat(0.003), "refused", "grey level"),
        "dim": (60 + 2 * np.random.default_rng(1).integers(0, 4, (400, 500)), "ok", ""),
    }
    for name, (pixels, status, said) in pictures.items():
        values = np.asarray(pixels, np.uint8)
        values[0, :2] = 0, 255  # 16 bits are spread from the smallest to the largest
        path = tmp_path / f"{name}.png"
        Image.fromarray(values.astype(np.uint16) * 257 if bits == 16 else values).save(path)
        found = judge(path, head)
        assert found["status"] == status, name
        assert said in str(found["reason"])
        assert status == "ok" or found["reason"].startswith("blank: ")
        if status == "refused":
            found = judge(path, head, allow=["blank"])
            assert (found["status"], found["allowed"]) == ("ok", ["blank"])


def test_no_real_picture_is_nearly_blank(shared_data: Path) -> None:
    """The dimmest of three sources, and every tenth of the others."""
    from engine.images import read_picture
    from engine.prediction import _check_contents

    dim = ["80b5f00f", "e22aa56f", "8da14fff", "7c0d0e1d", "d9d6ca9a", "IM-0393-0001"]
    files = sorted((shared_data / "covid").rglob("*.jpg"))
    files += sorted((shared_data / "pneumonia").rglob("*.jpg"))
    assert len(files) > 500
    for number, path in enumerate(files):
        if number % 10 == 0 or path.stem in dim:
            _check_contents(read_picture(path), ())


# ---- Views -------------------------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
def test_views_average_logits_and_the_picture_alone_is_refused(
    folder: Path, backbone: engine.Backbone, multilabel: bool
) -> None:
    image = folder / "b" / "1.png"
    ood = FixedScore(0.5)
    head = make_head(TAPS, backbone=backbone, ood=ood, multilabel=multilabel)
    predictor = Predictor([head], streams=1, views=3)
    ood.shapes.clear()
    found = predictor.predict(image)
    assert ood.shapes == [(1, 360)]
    assert found.to_json()["views"] == 3
    rows = features.feature_views(
        image, predictor.backbone, predictor.preprocessing, predictor.blocks, 3
    )
    assert rows.shape == (4, 360)
    logits = head.logits(rows)
    expected = head.calibration.apply(logits.mean(axis=0, keepdims=True), multilabel=multilabel)
    values = list(found.heads["head"]["probabilities"].values())
    np.testing.assert_allclose(values, expected[0], rtol=1e-12)
    alone = Predictor([head], streams=1).predict(image)
    assert "views" not in alone.to_json()
    assert list(alone.heads["head"]["probabilities"].values()) != values
    with pytest.raises(MismatchError, match="views is 33"):
        Predictor([head], views=33)


# ---- Chains ------------------------------------------------------------------------------------


def make_chain(first: Head, second: Head, label: str) -> Chain:
    gate = Condition(labels=(label,))
    steps = (Step("one", first, None, None, gate), Step("two", second, "one", None, None))
    return Chain("c", steps)


def test_a_chain_shows_only_what_was_asked(folder: Path, backbone: engine.Backbone) -> None:
    image = folder / "a" / "0.png"
    first = make_head(TAPS, backbone=backbone, name="first", seed=1)
    second = make_head(TAPS, backbone=backbone, name="second", ood=FixedScore(0.5), seed=2)
    plain = judge(image, first, second)
    said = plain["heads"]["first"]["label"]
    other = "b" if said == "a" else "a"
    found = judge(image, chain=make_chain(first, second, said))
    assert found["heads"] == plain["heads"]
    assert found["chain"]["answer"]["step"] == "two"
    found = judge(image, chain=make_chain(first, second, other))
    assert found["heads"] == {"first": plain["heads"]["first"]}
    assert [step["outcome"] for step in found["chain"]["steps"]] == ["answered", "skipped"]
    assert found["chain"]["answer"]["label"] == said
    assert list(found)[6:] == ["chain"]


def test_refusals_in_a_chain(folder: Path, backbone: engine.Backbone, tmp_path: Path) -> None:
    image = folder / "a" / "0.png"
    first = make_head(TAPS, backbone=backbone, name="first", seed=1)
    said = judge(image, first)["heads"]["first"]["label"]
    strict = make_head(TAPS, backbone=backbone, name="strict", ood=FixedScore(2.0))
    found = judge(image, chain=make_chain(first, strict, said))
    assert found["status"] == "ok"
    assert found["chain"]["answer"]["complete"] is False
    assert found["chain"]["steps"][1]["reason"].startswith("refused: out_of_distribution: ")
    found = judge(image, chain=make_chain(strict, first, "a"))
    assert found["status"] == "refused"
    assert found["reason"].startswith("out_of_distribution: ")
    assert set(found["heads"]) == {"strict"}
    assert found["chain"]["answer"] is None
    found = judge(image, chain=make_chain(strict, first, "a"), allow=["out_of_distribution"])
    assert (found["status"], found["allowed"]) == ("ok", ["out_of_distribution"])
    # What a step that was not due would have refused is nobody's concern.
    other = "b" if said == "a" else "a"
    found = judge(image, chain=make_chain(first, strict, other), allow=["out_of_distribution"])
    assert "allowed" not in found
    blank = tmp_path / "blank.png"
    Image.new("L", (100, 100), 7).save(blank)
    found = judge(blank, chain=make_chain(strict, first, "a"), heatmap=True)
    assert (found["status"], found["heads"]) == ("refused", {})
    assert (found["chain"], found["heatmap"]) == (None, None)


def test_chains_and_heads_that_do_not_fit(backbone: engine.Backbone) -> None:
    first = make_head(TAPS, backbone=backbone, name="first")
    second = make_head(TAPS, backbone=backbone, name="second")
    chain = make_chain(first, second, "a")
    with pytest.raises(MismatchError, match="both a chain and heads"):
        Predictor([first], chain=chain)
    stranger = dataclasses.replace(second, backbone="efficientnet-lite2")
    with pytest.raises(MismatchError, match="do not share one backbone pass"):
        Predictor(chain=make_chain(first, stranger, "a"))


# ---- Heatmaps ----------------------------------------------------------------------------------


def test_heatmaps_show_what_was_answered(folder: Path, backbone: engine.Backbone) -> None:
    image = folder / "a" / "0.png"
    head = make_head(TAPS, backbone=backbone, name="head")
    strict = make_head(TAPS, backbone=backbone, name="strict", ood=FixedScore(2.0))
    many = make_head(
        TAPS, backbone=backbone, name="many", multilabel=True, classes=("x", "y"), thresholds=(0, 0)
    )
    one = Predictor([head], streams=1, heatmap=True).predict(image)
    assert one.heatmap is not None
    assert one.heatmap.dtype == np.uint8
    assert one.heatmap.shape[2] == 3
    assert one.to_json()["heatmap"] is None  # nobody has written it
    with_strict = Predictor([strict, head], streams=1, heatmap=True).predict(image)
    np.testing.assert_array_equal(with_strict.heatmap, one.heatmap)  # type: ignore[arg-type]
    alone = Predictor([strict], streams=1, heatmap=True).predict(image)
    assert (alone.status, alone.heatmap) == ("refused", None)
    three = Predictor([head, many], streams=1, heatmap=True).predict(image)
    assert three.heatmap is not None
    assert three.heatmap.shape[1] > 1.5 * one.heatmap.shape[1]
    assert Predictor([head], streams=1).predict(image).heatmap is None
    nothing = dataclasses.replace(many, thresholds=(1.0, 1.0))
    assert Predictor([nothing], streams=1, heatmap=True).predict(image).heatmap is not None


def test_joined_backbones_predict_with_everything(folder: Path) -> None:
    backbone = engine.load_backbone("efficientnet-lite0+efficientnet-lite2", streams=1)
    taps = "efficientnet-lite0.block4:mean,efficientnet-lite2.block6:mean3x3"
    head = make_head(taps, backbone=backbone, ood=FixedScore(0.0))
    predictor = Predictor([head], streams=1, views=1, heatmap=True)
    found = predictor.predict(folder / "a" / "0.png")
    assert (found.status, found.reason) == ("ok", None)
    assert found.backbone == "efficientnet-lite0+efficientnet-lite2"
    assert found.heatmap is not None
    blank = [np.zeros((1, *size), np.uint8) for size in backbone.input_sizes]
    maps = features.feature_maps(predictor.backbone, blank)
    # As fine as the finer of the two, and with the probability that was answered.
    answer = {"label": "b", "probabilities": {"a": 0.25, "b": 0.75}}
    (evidence,) = predictor._evidence(head, maps, answer)
    assert evidence.map.shape == (260, 260)
    assert evidence.probability == 0.75


def test_what_is_not_asked_for_is_not_loaded(
    folder: Path, backbone: engine.Backbone, tmp_path: Path
) -> None:
    """A hook starts anew for each picture, and waits for every import."""
    head = make_head(TAPS, backbone=backbone).save(tmp_path / "h.safetensors")
    code = (
        "import sys; from engine.predict import main\n"
        "assert main([sys.argv[1], '--head', sys.argv[2], '--quiet']) == 0\n"
        "names = ('engine.cascade', 'engine.heatmap', 'tomllib', 'PIL.ImageFont', 'pydicom')\n"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder / "a" / "0.png"), str(head)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "[]"
