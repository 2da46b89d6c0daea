"""Extraction: rows, columns, failures, order, and what must not be left behind."""

from __future__ import annotations

import hmac
import itertools
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import engine
import formats
from engine import features
from engine.backbone import Backbone
from engine.errors import (
    ContainerError,
    ImageError,
    MismatchError,
    NotesError,
    SplitError,
)
from engine.features import Extraction, choose_blocks, extract_features, feature_vector
from engine.images import Preprocessing


@pytest.fixture(scope="module")
def backbone() -> Iterator[Backbone]:
    yield engine.load_backbone("efficientnet-lite0", streams=2)


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(coarse).resize((120, 100), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of eight patients with every column of a manifest."""
    folder = tmp_path_factory.mktemp("table")
    lines = ["file,label,patient,split,source,sex,age,view"]
    for i in range(12):
        draw(folder / f"{i}.png", i)
        patient = i % 8
        lines.append(
            f"{i}.png,{'ab'[patient % 2]},p{patient},{['train', 'valid', 'test', ''][patient % 4]},"
            f"{'north' if i % 3 else ''},{'FM'[i % 2]},{30 + i},PA"
        )
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_are_the_feature_vectors_and_columns_follow(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    with extract_features(
        backbone, [], tmp_path / "t.hilum", manifest=table, dtype="f32", seed=7
    ) as container:
        container.verify()
        assert container.n_rows == 12
        assert container.classes == ("a", "b")
        assert container.notes["sources"] == ["unknown", "north"]
        preprocessing = Preprocessing.from_dict(backbone.preprocessing)
        blocks = choose_blocks(backbone)
        # Ages are unique here, so they tell which image a row came from.
        ages = container.ages
        assert ages is not None
        for row, age in enumerate(ages):
            i = int(age) - 30
            expected = feature_vector(table.parent / f"{i}.png", backbone, preprocessing, blocks)
            np.testing.assert_array_equal(container.features[row], expected)
            assert container.labels[row] == (i % 8) % 2
            assert container.splits[row] == [1, 2, 3, 0][(i % 8) % 4]
            assert container.sources[row] == (1 if i % 3 else 0)
            assert container.sexes[row] == 1 + i % 2
            assert container.projections[row] == 1
        groups = np.asarray(container.groups)
        assert sorted(set(groups.tolist())) == list(range(8))
        by_patient = {int(age - 30) % 8: set() for age in ages}
        for age, group in zip(ages, groups, strict=True):
            by_patient[int(age - 30) % 8].add(int(group))
        assert all(len(found) == 1 for found in by_patient.values())
        assert container.backbone_digest == backbone.digest
        assert container.preprocessing_digest == preprocessing.digest


def test_order_is_shuffled_and_seeded(table: Path, backbone: Backbone, tmp_path: Path) -> None:
    def ages(seed: int | None, name: str) -> list[int]:
        with extract_features(
            backbone, [], tmp_path / name, manifest=table, seed=seed
        ) as container:
            return np.asarray(container.ages).tolist()

    assert ages(1, "a.hilum") == ages(1, "b.hilum")
    assert ages(1, "c.hilum") != ages(2, "d.hilum")
    assert ages(1, "e.hilum") != sorted(ages(1, "f.hilum"))
    # Unseeded orders differ: twelve rows come out alike once in 479 million times.
    assert ages(None, "g.hilum") != ages(None, "h.hilum")


def test_bad_files_are_left_out_and_named(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [draw(tmp_path / "in" / f"{i}.png", i) for i in range(3)]
    (tmp_path / "in" / "text.jpg").write_text("this is a letter, not a picture")
    (tmp_path / "in" / "empty.png").touch()
    cut = tmp_path / "in" / "cut.png"
    cut.write_bytes(good[0].read_bytes()[:200])
    extraction = Extraction()
    with extract_features(
        backbone, tmp_path / "in", tmp_path / "o.hilum", extraction=extraction
    ) as container:
        assert container.n_rows == 3
        assert container.notes["n_refused"] == 3
        assert container.labels is None
    assert extraction.n_rows == 3
    assert sorted(path.name for path, _ in extraction.failures) == [
        "cut.png",
        "empty.png",
        "text.jpg",
    ]
    for path, error in extraction.failures:
        assert str(path) in str(error)


def test_a_feature_beyond_f16_costs_its_own_image_only(
    table: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = features.pool_features

    calls = itertools.count()

    def overflowing(*arguments: Any) -> Any:
        vectors = pool(*arguments)
        if next(calls) % 4 == 0:
            vectors[0, 0] = 1e6
        return vectors

    monkeypatch.setattr(features, "pool_features", overflowing)
    extraction = Extraction()
    with extract_features(
        backbone, [], tmp_path / "o.hilum", manifest=table, extraction=extraction
    ) as container:
        container.verify()
        assert container.n_rows == extraction.n_rows == 9
        assert len(extraction.failures) == 3
        assert container.n_groups is not None
    for path, error in extraction.failures:
        assert str(path) in str(error)
        assert "write dtype f32" in str(error)


def test_nothing_usable_leaves_nothing(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="none of the 1 images could be used"):
        extract_features(backbone, tmp_path, tmp_path / "o.hilum")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.png"]


def stop_after(n_images: int):
    def stop(done: int, _total: int) -> None:
        if done == n_images:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("dtype", ["f16", "f32", "i8"])
def test_a_stopped_run_goes_on_and_writes_the_same_bytes(
    table: Path, backbone: Backbone, tmp_path: Path, dtype: str
) -> None:
    whole, out = tmp_path / "whole.hilum", tmp_path / "o.hilum"
    arguments = {"manifest": table, "dtype": dtype, "seed": 5, "sample_key_secret": b"s" * 16}
    extract_features(backbone, [], whole, **arguments).close()
    extraction = Extraction()
    with pytest.raises(KeyboardInterrupt):
        extract_features(
            backbone, [], out, on_progress=stop_after(5), extraction=extraction, **arguments
        )
    assert extraction.unfinished == Path(f"{out}.part")
    assert not out.exists()
    with pytest.raises(ContainerError, match=r"holds \d+ rows of a run.*--resume"):
        extract_features(backbone, [], out, **arguments)
    done: list[int] = []
    extraction = Extraction()
    extract_features(
        backbone,
        [],
        out,
        resume=True,
        on_progress=lambda n, _total: done.append(n),
        extraction=extraction,
        **arguments,
    ).close()
    assert 5 <= done[0] == extraction.n_resumed < 12  # at most the images in work were lost
    assert extraction.n_rows == extraction.n_done == done[-1] == 12
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.hilum", "whole.hilum"]


def test_resuming_without_a_seed_keeps_the_order_of_the_first_run(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    out = tmp_path / "o.hilum"
    with pytest.raises(KeyboardInterrupt):
        extract_features(backbone, [], out, manifest=table, on_progress=stop_after(8))
    with extract_features(backbone, [], out, manifest=table, resume=True) as container:
        assert sorted(container.ages.tolist()) == list(range(30, 42))  # each image once


def test_only_the_same_run_can_be_resumed(table: Path, backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "o.hilum"
    with pytest.raises(KeyboardInterrupt):
        extract_features(backbone, [], out, manifest=table, seed=1, on_progress=stop_after(9))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(before) == ["o.hilum.part", "o.hilum.part.journal"]
    other = tmp_path / "t" / "labels.csv"
    other.parent.mkdir()
    for image in table.parent.glob("*.png"):
        (other.parent / image.name).write_bytes(image.read_bytes())
    other.write_text(table.read_text())
    relabelled = table.with_name("relabelled.csv")
    relabelled.write_text(table.read_text().replace(",a,", ",c,"))
    for changed, words in (
        ({"manifest": other}, "names of the images"),
        ({"manifest": relabelled}, "labels, patients"),
        ({"manifest": table, "seed": 2}, "another seed"),
        ({"manifest": table, "about": {"title": "x"}}, "--about"),
        ({"manifest": table, "sample_key_secret": b"s" * 16}, "secret"),
        ({"manifest": table, "taps": "block4:mean"}, "begun with dim"),
        ({"manifest": table, "dtype": "f32"}, "begun with dtype f16"),
    ):
        with pytest.raises((ContainerError, MismatchError), match=words):
            extract_features(backbone, [], out, resume=True, **changed)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    extract_features(backbone, [], out, manifest=table, resume=True).close()


def test_images_that_failed_before_the_stop_are_counted(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    for i in range(24):
        draw(folder / f"{i}.png", i)
    for i in range(0, 24, 5):
        (folder / f"{i}.png").write_bytes(b"no image")
    whole, out = tmp_path / "whole.hilum", tmp_path / "o.hilum"
    extract_features(backbone, [folder], whole, seed=3).close()
    extraction = Extraction()
    with pytest.raises(KeyboardInterrupt):
        extract_features(
            backbone, [folder], out, seed=3, on_progress=stop_after(17), extraction=extraction
        )
    seen = len(extraction.failures)
    extraction = Extraction()
    extract_features(backbone, [folder], out, seed=3, resume=True, extraction=extraction).close()
    assert extraction.n_failed_before >= seen > 0
    assert extraction.n_failed_before + len(extraction.failures) == 5
    assert out.read_bytes() == whole.read_bytes()


def test_a_vanished_folder_ends_the_run_and_keeps_the_rows(
    backbone: Backbone, tmp_path: Path
) -> None:
    folder, away, out = tmp_path / "x", tmp_path / "away", tmp_path / "o.hilum"
    for i in range(60):
        draw(folder / f"{i}.png", i)
    whole = tmp_path / "whole.hilum"
    extract_features(backbone, [folder], whole, seed=3).close()

    def unplug(done: int, _total: int) -> None:
        if done == 8:
            folder.rename(away)

    extraction = Extraction()
    with pytest.raises(ImageError, match=r"is gone, and so are .*--resume"):
        extract_features(backbone, [folder], out, seed=3, on_progress=unplug, extraction=extraction)
    assert extraction.unfinished is not None
    away.rename(folder)
    extract_features(backbone, [folder], out, seed=3, resume=True).close()
    assert out.read_bytes() == whole.read_bytes()


def test_one_file_that_was_deleted_meanwhile_is_left_out(
    backbone: Backbone, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    paths = [draw(folder / f"{i}.png", i) for i in range(40)]

    def delete(done: int, _total: int) -> None:
        if done == 1:
            paths[7].unlink(missing_ok=True)
            paths[31].unlink(missing_ok=True)

    extraction = Extraction()
    extract_features(
        backbone,
        [folder],
        tmp_path / "o.hilum",
        on_progress=delete,
        extraction=extraction,
    ).close()
    assert extraction.n_rows + len(extraction.failures) == 40
    assert extraction.n_rows >= 38


def test_sample_keys_know_an_image_again_and_need_the_secret(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    def keys(name: str, secret: bytes) -> dict[int, bytes]:
        with extract_features(
            backbone, [], tmp_path / name, manifest=table, sample_key_secret=secret
        ) as container:
            return {
                int(age): key.tobytes()
                for age, key in zip(container.ages, container.sample_keys, strict=True)
            }

    first = keys("a.hilum", b"secret of one site")
    assert first == keys("b.hilum", b"secret of one site")
    assert len(set(first.values())) == 12
    other = keys("c.hilum", b"secret of another")
    assert not set(other.values()) & set(first.values())
    digest = hmac.new(b"secret of one site", (table.parent / "3.png").read_bytes(), "sha256")
    assert first[33] == digest.digest()[:16]


def test_patient_in_two_splits_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 0)
    draw(tmp_path / "b.png", 1)
    table = tmp_path / "m.csv"
    table.write_text("file,label,patient,split\na.png,x,p,train\nb.png,y,p,test\n")
    with pytest.raises(SplitError, match=r"marked train and test \(lines 2 and 3\)"):
        extract_features(backbone, [], tmp_path / "o.hilum", manifest=table)
    # In a marked set a row without a mark is learned from.
    table.write_text("file,label,patient,split\na.png,x,p,\nb.png,y,p,test\n")
    with pytest.raises(SplitError, match=r"marked nothing \(train\) and test"):
        extract_features(backbone, [], tmp_path / "o.hilum", manifest=table)


def test_identifying_names_are_refused_before_any_work(backbone: Backbone, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "2019-03-14" / "a.png", 0)
    draw(tmp_path / "in" / "normal" / "b.png", 1)
    seen: list[int] = []
    with pytest.raises(NotesError, match="classes"):
        extract_features(
            backbone,
            tmp_path / "in",
            tmp_path / "o.hilum",
            on_progress=lambda done, _total: seen.append(done),
        )
    assert seen == []


def test_multilabel_column(backbone: Backbone, tmp_path: Path) -> None:
    for i in range(3):
        draw(tmp_path / f"{i}.png", i)
    table = tmp_path / "m.csv"
    table.write_text("file,label,age\n0.png,B|A,1\n1.png,,2\n2.png,B?,3\n")
    with extract_features(backbone, [], tmp_path / "o.hilum", manifest=table) as container:
        assert container.multilabel
        assert container.classes == ("A", "B")
        rows = {
            int(age): row.tolist()
            for age, row in zip(container.ages, container.labels, strict=True)
        }
    assert rows == {1: [1, 1], 2: [0, 0], 3: [0, -1]}


@pytest.mark.parametrize("dtype", ["f16", "f32", "i8"])
def test_dtypes_hold_the_same_features(
    table: Path, backbone: Backbone, tmp_path: Path, dtype: str
) -> None:
    with (
        extract_features(
            backbone, [], tmp_path / "r.hilum", manifest=table, dtype="f32", seed=3
        ) as reference,
        extract_features(
            backbone, [], tmp_path / "o.hilum", manifest=table, dtype=dtype, seed=3
        ) as container,
    ):
        assert container.dtype == dtype
        exact, stored = reference.read_rows(), container.read_rows()
    tolerance = {"f32": 0.0, "f16": 2.0**-11, "i8": 0.5 / 127}[dtype]
    error = np.abs(stored - exact) / np.maximum(np.abs(exact).max(axis=0), 1e-6)
    assert error.max() <= tolerance * 1.01


def test_unknown_taps_list_the_valid_ones(backbone: Backbone) -> None:
    with pytest.raises(MismatchError, match=r"unknown tap 'block99'.*block10"):
        choose_blocks(backbone, "block99")
    with pytest.raises(MismatchError, match=r"unknown pooling 'median'.*mean"):
        choose_blocks(backbone, "block10", "median")
    with pytest.raises(MismatchError, match=r"loaded without tap 'final'; load it with taps="):
        choose_blocks(backbone, "block10,final")
    assert {block.pooling for block in choose_blocks(backbone, None, "max")} == {"max"}


def test_same_features_whatever_the_number_of_threads(table: Path, tmp_path: Path) -> None:
    rows = []
    for streams in (1, 3):
        backbone = engine.load_backbone("efficientnet-lite0", streams=streams)
        out = tmp_path / f"{streams}.hilum"
        with extract_features(backbone, [], out, manifest=table, seed=1) as container:
            rows.append(np.array(container.features))
    np.testing.assert_array_equal(rows[0], rows[1])


def test_an_output_that_cannot_be_written_is_said_at_once(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    seen: list[int] = []
    with pytest.raises(ContainerError, match="missing"):
        extract_features(
            backbone,
            [],
            tmp_path / "missing" / "o.hilum",
            manifest=table,
            on_progress=lambda done, _total: seen.append(done),
        )
    assert seen == []
    assert formats.ContainerError is ContainerError


def test_the_journal_is_for_its_owner_alone(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_features(
            backbone, [], tmp_path / "o", manifest=table, dtype="i8", on_progress=stop_after(2)
        )
    for name in ("o.part.journal", "o.part.rows"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_copies_of_an_image_are_counted_by_their_keys(backbone: Backbone, tmp_path: Path) -> None:
    lines = ["file,label,patient,split"]
    for name, seed, rest in (
        ("a", 1, "x,p1,train"),
        ("b", 1, "x,p1,train"),
        ("c", 1, "y,p1,train"),
        ("d", 2, "y,p2,train"),
        ("e", 2, "y,p3,test"),
        ("f", 3, "x,p4,test"),
    ):
        draw(tmp_path / f"{name}.png", seed)
        lines.append(f"{name}.png,{rest}")
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(lines))
    # the count of contradictions depends on which copy comes first: a-b agree, c and d-e do not
    for secret, n_twice, contradicting in ((b"s" * 16, 3, (2, 3)), (None, 0, (0,))):
        extraction = Extraction()
        extract_features(
            backbone,
            [],
            tmp_path / "o.hilum",
            manifest=manifest,
            sample_key_secret=secret,
            extraction=extraction,
        ).close()
        assert extraction.n_twice == n_twice
        assert extraction.n_contradicting in contradicting
