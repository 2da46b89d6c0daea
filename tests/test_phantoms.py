"""Phantoms: the same for a seed, marked as synthetic, and one picture as PNG and as DICOM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

from engine.images import Preprocessing, preprocess, read_picture
from engine.phantoms import (
    FINDINGS,
    MARK,
    PHOTOMETRICS,
    STRANGERS,
    WHITE,
    Phantom,
    draw_phantom,
    draw_stranger,
    write_dicom,
    write_png,
)
from formats import WriteError

HEIGHT, WIDTH = 256, 320


def draw(seed: int, finding: str = "none") -> Phantom:
    return draw_phantom(seed, finding, height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return draw(3, "lobar")


@pytest.mark.parametrize("finding", FINDINGS)
def test_same_seed_same_pixels(finding: str) -> None:
    first = draw(5, finding)
    np.random.default_rng(0).normal()  # the drawing has its own streams
    assert np.array_equal(first.pixels, draw(5, finding).pixels)
    assert not np.array_equal(first.pixels, draw(6, finding).pixels)


def test_findings_change_the_lungs_and_not_the_child() -> None:
    none, lobar, diffuse = (draw(7, finding).pixels.astype(int) for finding in FINDINGS)
    # The upper border shows arms and neck, no lung; noise and build are the seed's.
    for other in (lobar, diffuse):
        assert np.abs(none[: HEIGHT // 25] - other[: HEIGHT // 25]).max() <= 1
        assert np.abs(none - other).mean() > 0.005 * WHITE
    # Opacities are bright.
    assert (lobar - none).max() > 0.15 * WHITE
    assert (lobar - none).mean() > 0


@pytest.mark.parametrize("seed", range(4))
def test_looks_like_a_chest(seed: int) -> None:
    """Lungs darker than heart, spine and belly; air beside the trunk darker than all."""
    shown = draw(seed).to_8_bits().astype(float)
    scale = HEIGHT

    def mean(u: float, v: float) -> float:
        row, column = int(v * scale), int(WIDTH / 2 + u * scale)
        return float(shown[row - 6 : row + 7, column - 6 : column + 7].mean())

    lungs = [mean(-0.20, 0.50), mean(0.25, 0.40)]
    dense = [mean(0.0, 0.60), mean(0.08, 0.58), mean(-0.18, 0.93), mean(0.0, 0.9)]
    assert max(lungs) + 30 < min(dense)
    assert max(mean(0.56, 0.6), mean(-0.56, 0.6)) + 15 < min(lungs)


def test_mark_is_burned_in(phantom: Phantom) -> None:
    left, top, right, bottom = phantom.mark_box
    assert (bottom - top) >= 12 and (right - left) > 4 * (bottom - top)
    plate = phantom.pixels[top:bottom, left:right]
    assert set(np.unique(plate[[0, -1]])) == {0}  # a dark frame around white letters
    assert plate.max() == WHITE
    assert 0.1 < (plate > WHITE // 2).mean() < 0.6
    # These very letters, whatever is under them.
    canvas = Image.new("L", (400, 100))
    font = ImageFont.load_default(12)
    ImageDraw.Draw(canvas).text((200, 50), MARK, 255, font, anchor="mm", stroke_width=1)
    letters = np.asarray(canvas.crop(canvas.getbbox())) / 255
    inner = plate[2:-2, 2:-2] / WHITE
    assert inner.shape == letters.shape
    assert np.abs(inner - letters).max() < 0.3  # drawn at another place, so smoothed otherwise
    assert np.array_equal(draw(11).pixels[top:bottom, left:right], plate)


def test_marked_pixels_survive_in_both_files(phantom: Phantom, tmp_path: Path) -> None:
    left, top, right, bottom = phantom.mark_box
    for path in (
        write_png(phantom, tmp_path / "a.png"),
        write_dicom(phantom, tmp_path / "a.dcm", photometric="MONOCHROME1"),
    ):
        plate = read_picture(path).pixels[top:bottom, left:right]
        assert plate.max() == 255 and plate[0].max() == 0


@pytest.mark.parametrize("photometric", PHOTOMETRICS)
@pytest.mark.parametrize("finding", FINDINGS)
def test_dicom_reads_as_the_png(finding: str, photometric: str, tmp_path: Path) -> None:
    phantom = draw(2, finding)
    png = read_picture(write_png(phantom, tmp_path / "p.png"))
    dicom = read_picture(write_dicom(phantom, tmp_path / "p.dcm", photometric=photometric))
    assert np.array_equal(png.pixels, phantom.to_8_bits())
    assert np.array_equal(dicom.pixels, png.pixels)
    for rules in (Preprocessing(), Preprocessing(low_percentile=0.5, high_percentile=99.5)):
        assert np.array_equal(preprocess(dicom, rules), preprocess(png, rules))
    assert dicom.stored_bits == 12
    assert dicom.about["photometric"] == photometric
    assert dicom.about["projection"] == "AP"
    assert dicom.about["grayscale"] == "window LINEAR"
    assert "notes" not in dicom.about  # nothing had to be repaired


@pytest.mark.parametrize("photometric", PHOTOMETRICS)
def test_window_and_polarity_matter(phantom: Phantom, photometric: str, tmp_path: Path) -> None:
    """The stored values alone are not the picture: a reader must apply what the header says."""
    path = write_dicom(phantom, tmp_path / "p.dcm", photometric=photometric)
    stored = pydicom.dcmread(path).pixel_array
    assert stored.min() > 300 and stored.max() < 3700
    correlation = np.corrcoef(stored.ravel(), phantom.pixels.ravel())[0, 1]
    assert correlation * (1 if photometric == "MONOCHROME2" else -1) > 0.9999


@pytest.mark.parametrize("photometric", PHOTOMETRICS)
def test_header_says_synthetic(phantom: Phantom, photometric: str, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(write_dicom(phantom, tmp_path / "p.dcm", photometric=photometric))
    assert str(dataset.PatientName) == f"{MARK}^PHANTOM"
    assert dataset.PatientID == MARK
    assert MARK in dataset.SeriesDescription and MARK in dataset.StudyDescription
    assert "not a patient" in dataset.ImageComments
    assert dataset.BurnedInAnnotation == "YES"
    for keyword in ("PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber"):
        assert dataset[keyword].value == ""
    assert not [element.keyword for element in dataset if element.VR == "DA" and element.value]
    with Image.open(write_png(phantom, tmp_path / "p.png")) as image:
        assert "not a patient" in image.info["Comment"]


def test_uids_follow_from_the_picture(tmp_path: Path) -> None:
    def written(seed: int, finding: str, photometric: str) -> pydicom.Dataset:
        return pydicom.dcmread(
            write_dicom(draw(seed, finding), tmp_path / "u.dcm", photometric=photometric)
        )

    first = written(1, "none", "MONOCHROME2")
    data = (tmp_path / "u.dcm").read_bytes()
    again = written(1, "none", "MONOCHROME2")
    assert (tmp_path / "u.dcm").read_bytes() == data
    assert (
        again.SOPInstanceUID == first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
    )
    others = [written(1, "none", "MONOCHROME1"), written(2, "none", "MONOCHROME2")]
    others.append(written(1, "lobar", "MONOCHROME2"))
    larger = draw_phantom(1, height=300, width=310)
    others.append(pydicom.dcmread(write_dicom(larger, tmp_path / "larger.dcm")))
    assert len({first.SOPInstanceUID, *(other.SOPInstanceUID for other in others)}) == 5
    assert others[0].StudyInstanceUID == first.StudyInstanceUID
    assert first.SOPInstanceUID.is_valid and first.SOPInstanceUID.startswith("2.25.")


@pytest.mark.parametrize("size", [(128, 128), (128, 300), (300, 128), (257, 311)])
def test_any_size_fits(size: tuple[int, int]) -> None:
    phantom = draw_phantom(0, "diffuse", height=size[0], width=size[1])
    assert phantom.pixels.shape == size
    assert phantom.pixels.dtype == np.uint16 and phantom.pixels.max() <= WHITE
    assert not phantom.pixels.flags.writeable


def test_grey_levels_round_to_nearest(phantom: Phantom) -> None:
    exact = phantom.pixels.astype(np.float64) * 255 / WHITE
    assert np.abs(phantom.to_8_bits() - exact).max() < 0.5


def test_wrong_choices_name_the_right_ones(phantom: Phantom, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'flu'.*none, lobar, diffuse"):
        draw_phantom(1, "flu")
    with pytest.raises(ValueError, match="at least 128"):
        draw_phantom(1, height=100)
    with pytest.raises(ValueError, match=r"MONOCHROME3.*MONOCHROME1"):
        write_dicom(phantom, tmp_path / "x.dcm", photometric="MONOCHROME3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_png, write_dicom])
def test_nothing_half_written(write: object, phantom: Phantom, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="does not exist"):
        write(phantom, tmp_path / "missing" / "file")  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_follow_from_the_seed_and_are_marked(kind: str) -> None:
    first = draw_stranger(5, kind, height=HEIGHT, width=WIDTH)
    assert first.finding == kind and first.pixels.shape == (HEIGHT, WIDTH)
    assert np.array_equal(first.pixels, draw_stranger(5, kind, height=HEIGHT, width=WIDTH).pixels)
    assert not np.array_equal(
        first.pixels, draw_stranger(6, kind, height=HEIGHT, width=WIDTH).pixels
    )
    left, top, right, bottom = first.mark_box
    assert first.pixels[top:bottom, left:right].max() == WHITE


def test_strangers_look_like_what_they_are() -> None:
    page, hand, side = (
        draw_stranger(1, kind, height=HEIGHT, width=HEIGHT).to_8_bits().astype(float)
        for kind in ("page", "hand", "lateral")
    )
    assert np.median(page) > 230 and 0.02 < (page < 128).mean() < 0.3
    # Most of the hand's picture is air; its bones are bright.
    assert np.median(hand) < 60 and hand.max() > 200
    # From the side the lungs are one dark field before the spine.
    middle = HEIGHT // 2
    lung = side[int(0.35 * HEIGHT) : int(0.45 * HEIGHT), middle - 8 : middle + 8].mean()
    belly = side[int(0.90 * HEIGHT) : int(0.95 * HEIGHT), middle - 8 : middle + 8].mean()
    assert lung + 40 < belly


def test_a_stranger_is_not_written_as_a_chest(tmp_path: Path) -> None:
    stranger = draw_stranger(0, "hand", height=HEIGHT, width=WIDTH)
    with pytest.raises(ValueError, match="finding is 'hand', expected one of none"):
        write_dicom(stranger, tmp_path / "hand.dcm")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="kind is 'foot', expected one of lateral"):
        draw_stranger(0, "foot")
    with pytest.raises(ValueError, match="at least 128"):
        draw_stranger(0, "page", height=100)
