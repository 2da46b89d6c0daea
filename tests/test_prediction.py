"""Predictions: one backbone pass for all heads, honest statuses, strangers refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine
from engine.errors import HeadFileError, MismatchError
from engine.heads import Head
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
