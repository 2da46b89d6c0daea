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
from engine import extract, features
from engine.backbone import Backbone
from engine.errors import (
    ContainerError,
    ImageError,
    MismatchError,
    NotesError,
    SplitError,
)
from engine.features import (
    Extraction,
    choose_blocks,
    extract_features,
    feature_vector,
    feature_views,
    tap_names,
)
from engine.images import JoinedPreprocessing, Preprocessing, read_picture, read_preprocessing
from engine.inference import network_inputs
from engine.pooling import blocks_from_notes, floor_blocks, network_blocks, pool_features
from engine.views import apply_view, draw_views
from formats.__main__ import main


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


# ---- views -------------------------------------------------------------------------------------


def test_views_are_rows_of_the_same_group_behind_their_original(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    plain, out = tmp_path / "plain.hilum", tmp_path / "views.hilum"
    arguments: dict[str, Any] = {"manifest": table, "dtype": "f32", "seed": 7}
    extraction = Extraction()
    extract_features(backbone, [], plain, **arguments).close()
    with (
        formats.open_container(plain) as without,
        extract_features(
            backbone, [], out, views=3, extraction=extraction, **arguments
        ) as container,
    ):
        assert container.n_rows == 48
        assert extraction.n_rows == extraction.n_done == 12
        assert extraction.has_patients
        assert container.views.tolist() == [0, 1, 2, 3] * 12
        assert container.notes["views"] == {
            "number": 3,
            "mirror": False,
            "rotation_degrees": 5.0,
            "shift_fraction": 0.03,
            "scale_fraction": 0.05,
            "contrast_fraction": 0.1,
            "group": "patient",
        }
        assert container.group_clean
        originals = container.rows(views=False)
        np.testing.assert_array_equal(container.features[originals], without.features)
        for name in ("label", "split", "group", "source", "sex", "age", "projection"):
            values = container.columns[name]
            np.testing.assert_array_equal(values[originals], without.columns[name])
            np.testing.assert_array_equal(values, np.repeat(values[originals], 4))
        path = table.parent / f"{int(container.ages[0]) - 30}.png"
        rules = Preprocessing.from_dict(backbone.preprocessing)
        blocks = choose_blocks(backbone)
        vectors = feature_views(path, backbone, rules, blocks, 3)
        np.testing.assert_array_equal(vectors, container.features[:4])
        np.testing.assert_array_equal(vectors[0], feature_vector(path, backbone, rules, blocks))
        (inputs,) = network_inputs(read_picture(path), rules)
        seen = apply_view(inputs, draw_views(2)[1])
        expected = pool_features(backbone.infer(seen[np.newaxis]), blocks)[0]
        np.testing.assert_array_equal(vectors[2], expected)
        assert len({row.tobytes() for row in vectors}) == 4


def test_views_without_patients_get_a_group_for_each_image(
    backbone: Backbone, tmp_path: Path
) -> None:
    for i in range(4):
        draw(tmp_path / "in" / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "in" / "a" / "bad.png").write_bytes(b"no image")
    extraction = Extraction()
    with extract_features(
        backbone, tmp_path / "in", tmp_path / "o.hilum", views=2, mirror=True, extraction=extraction
    ) as container:
        assert container.n_rows == 12
        assert container.n_groups == 4
        np.testing.assert_array_equal(container.groups, np.repeat(np.arange(4), 3))
        assert container.notes["views"]["group"] == "image"
        assert container.notes["views"]["mirror"] is True
        assert container.notes["n_refused"] == 1
    assert (extraction.n_rows, extraction.n_done, extraction.has_patients) == (4, 5, False)


def test_mirrored_view_of_a_mirrored_file_is_the_original(
    backbone: Backbone, tmp_path: Path
) -> None:
    path = draw(tmp_path / "a.png", 3)
    other = tmp_path / "b.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    rules, blocks = Preprocessing.from_dict(backbone.preprocessing), choose_blocks(backbone)
    original, mirrored = feature_views(path, backbone, rules, blocks, 1, mirror=True)
    original_of_other, mirrored_of_other = feature_views(
        other, backbone, rules, blocks, 1, mirror=True
    )
    np.testing.assert_array_equal(original, mirrored_of_other)
    np.testing.assert_array_equal(mirrored, original_of_other)


@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_a_stopped_run_with_views_and_floors_goes_on_and_writes_the_same_bytes(
    table: Path, backbone: Backbone, tmp_path: Path, dtype: str
) -> None:
    whole, out = tmp_path / "whole.hilum", tmp_path / "o.hilum"
    arguments: dict[str, Any] = {
        "manifest": table, "seed": 4, "views": 2, "floors": "border", "dtype": dtype,
        "sample_key_secret": b"a secret of sixteen",
    }  # fmt: skip
    extraction = Extraction()
    extract_features(backbone, [], whole, extraction=extraction, **arguments).close()
    assert (extraction.n_twice, extraction.n_contradicting) == (0, 0)
    with pytest.raises(KeyboardInterrupt):
        extract_features(backbone, [], out, on_progress=stop_after(6), **arguments)
    with pytest.raises(MismatchError, match="views"):
        extract_features(backbone, [], out, resume=True, **{**arguments, "views": 3})
    extraction = Extraction()
    extract_features(backbone, [], out, resume=True, extraction=extraction, **arguments).close()
    assert 0 < extraction.n_resumed < 12
    assert extraction.n_rows == extraction.n_done == 12
    assert extraction.n_failed_before == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_view_that_cannot_be_stored_costs_its_image(
    table: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = features.pool_features
    calls = itertools.count()

    def overflowing(*arguments: Any) -> Any:
        pooled = pool(*arguments)
        if next(calls) == 4:  # a view of the second image
            pooled[0, 0] = 1e6
        return pooled

    monkeypatch.setattr(features, "pool_features", overflowing)
    with engine.load_backbone("efficientnet-lite0", streams=1) as single:
        extraction = Extraction()
        with extract_features(
            single, [], tmp_path / "o.hilum", manifest=table, views=2, extraction=extraction
        ) as container:
            assert container.n_rows == 33
            assert container.views.tolist() == [0, 1, 2] * 11
    assert extraction.n_rows == 11
    assert len(extraction.failures) == 1


@pytest.mark.parametrize("views", [-1, 33])
def test_wrong_numbers_of_views_leave_nothing(
    table: Path, backbone: Backbone, tmp_path: Path, views: int
) -> None:
    with pytest.raises(MismatchError, match="from 0 to 32"):
        extract_features(backbone, [], tmp_path / "o.hilum", manifest=table, views=views)
    assert list(tmp_path.iterdir()) == []


# ---- floors ------------------------------------------------------------------------------------


def test_floors_are_pixels_of_the_reduced_picture(backbone: Backbone, tmp_path: Path) -> None:
    # Cells of 2 x 3 pixels with one grey level each, so that averaging areas finds them again.
    small = np.random.default_rng(5).integers(0, 256, (64, 64)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(np.kron(small, np.ones((2, 3), np.uint8))).save(tmp_path / "in" / "a.png")
    with extract_features(
        backbone, tmp_path / "in", tmp_path / "o.hilum", floors="pixels, border", dtype="f32",
        views=1, mirror=True,
    ) as container:  # fmt: skip
        blocks = blocks_from_notes(container.blocks)
        assert blocks[:-2] == choose_blocks(backbone) == network_blocks(blocks)
        assert [(b.tap, b.pooling, b.width) for b in floor_blocks(blocks)] == [
            ("border", "64x64", 1392),
            ("pixels", "64x64", 4096),
        ]
        border, pixels = (
            container.features[:, b.offset : b.offset + b.width] for b in floor_blocks(blocks)
        )
        np.testing.assert_array_equal(pixels[0].reshape(64, 64), small)
        np.testing.assert_array_equal(pixels[1].reshape(64, 64), small[:, ::-1])
        inside = np.zeros((64, 64), bool)
        inside[6:-6, 6:-6] = True
        np.testing.assert_array_equal(border[0], small[~inside])
        plain = feature_vector(
            tmp_path / "in" / "a.png",
            backbone,
            Preprocessing.from_dict(backbone.preprocessing),
            choose_blocks(backbone),
        )
        np.testing.assert_array_equal(container.features[0, : len(plain)], plain)
        assert container.not_for_sharing is not None


@pytest.mark.parametrize("floors", ["", "lungs", "border,border", "pixels,"])
def test_unknown_floors_are_refused(
    table: Path, backbone: Backbone, tmp_path: Path, floors: str
) -> None:
    with pytest.raises(MismatchError, match="floor"):
        extract_features(backbone, [], tmp_path / "o.hilum", manifest=table, floors=floors)
    assert list(tmp_path.iterdir()) == []


# ---- joined backbones --------------------------------------------------------------------------


def test_joined_backbones_have_the_features_of_their_parts(
    table: Path, backbone: Backbone, tmp_path: Path
) -> None:
    names = ("efficientnet-lite0", "efficientnet-lite2")
    arguments: dict[str, Any] = {"manifest": table, "seed": 2, "dtype": "f32", "views": 1}
    with engine.load_backbone("+".join(names), streams=2) as joined:
        with extract_features(joined, [], tmp_path / "j.hilum", **arguments) as container:
            assert container.backbone == "+".join(names)
            assert container.backbone_digest == joined.digest
            rows = np.array(container.features)
            blocks = blocks_from_notes(container.blocks)
            rules = read_preprocessing(container.notes["preprocessing"])
            assert rules.digest == container.preprocessing_digest
            assert container.size_bytes / container.n_rows < 4 * 10_000
        assert isinstance(rules, JoinedPreprocessing)
    at = 0
    for name, part in zip(names, rules.parts, strict=True):
        with (
            engine.load_backbone(name, streams=2) as single,
            extract_features(single, [], tmp_path / f"{name}.hilum", **arguments) as container,
        ):
            assert Preprocessing.from_dict(single.preprocessing) == part
            np.testing.assert_array_equal(rows[:, at : at + container.dim], container.features)
            own = blocks_from_notes(container.blocks)
            mine = [block for block in blocks if block.tap.startswith(f"{name}.")]
            assert [(f"{name}.{b.tap}", b.pooling) for b in own] == [
                (b.tap, b.pooling) for b in mine
            ]
            at += container.dim
    assert at == rows.shape[1] == 2088 + 2304
    assert 2 * at < 10_000  # bytes of a row as f16


def test_taps_of_joined_backbones_can_be_chosen(table: Path, tmp_path: Path) -> None:
    name = "efficientnet-lite0+efficientnet-lite2"
    taps = "efficientnet-lite2.block3:mean,efficientnet-lite0.final:max"
    with engine.load_backbone(name, streams=1, taps=tap_names(taps)) as joined:
        assert list(joined.taps) == ["efficientnet-lite0.final", "efficientnet-lite2.block3"]
        with extract_features(
            joined, [], tmp_path / "o.hilum", manifest=table, taps=taps
        ) as container:
            assert [block["tap"] for block in container.blocks] == [
                "efficientnet-lite2.block3",
                "efficientnet-lite0.final",
            ]
        with pytest.raises(MismatchError, match="loaded without tap"):
            choose_blocks(joined, "efficientnet-lite0.block4:mean")


# ---- the command line --------------------------------------------------------------------------


def test_views_and_floors_from_the_command_line(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.hilum"
    arguments = ["--manifest", str(table), "-o", str(out), "--taps", "block4:mean"]
    assert extract.main([*arguments, "--views", "2", "--floors", "border,pixels"]) == 0
    said = capsys.readouterr().out
    assert "36 rows of 8 patients (12 images, 2 augmented views of each), 5528 features" in said
    assert "NOT FOR SHARING" in said
    assert extract.main([*arguments, "--views", "1", "--mirror"]) == 0
    assert "SHARING" not in capsys.readouterr().out
    with formats.open_container(out) as container:
        assert container.notes["views"]["mirror"] is True
        assert container.n_rows == 24
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    assert "12 of them are augmented views" in said


def test_groups_made_for_views_are_not_called_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        draw(tmp_path / "in" / "ab"[i % 2] / f"{i}.png", i)
    out = tmp_path / "o.hilum"
    arguments = [str(tmp_path / "in"), "-o", str(out), "--taps", "block4:mean", "--views", "1"]
    assert extract.main(arguments) == 0
    assert "8 rows (4 images, 1 augmented view of each)" in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    assert "4 (patients, or images where none were named)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "33"], "1 to 32"),
        (["--views", "-1"], "1 to 32"),
        (["--mirror"], "say how many with --views"),
        (["--floors", "lungs"], "unknown floor 'lungs' in 'lungs'; valid are: border, pixels"),
        (["--floors", ""], "unknown floor"),
        (["--backbone", "efficientnet-lite0+resnet"], "join several"),
        (["--backbone", "efficientnet-lite0+efficientnet-lite0"], "different ones"),
        (
            ["--backbone", "efficientnet-lite0+efficientnet-lite2", "--taps", "block4"],
            "unknown tap 'block4'; it has: efficientnet-lite0.block2",
        ),
    ],
)
def test_wrong_views_floors_and_backbones_are_usage_errors(
    arguments: list[str],
    message: str,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        extract.main(["--manifest", str(table), "-o", str(tmp_path / "o.hilum"), *arguments])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_every_image_is_in_one_chunk_and_chunks_shrink_towards_the_end():
    for start, total, n_workers in ((0, 1, 1), (0, 5, 2), (3, 240, 2), (0, 720, 8), (7, 7, 2)):
        chunks = features._chunks(start, total, n_workers)
        assert [number for chunk in chunks for number in chunk] == list(range(start, total))
        sizes = [len(chunk) for chunk in chunks]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes, default=1) <= features.IMAGES_PER_CHUNK
        if sizes:
            assert sizes[-1] == 1
