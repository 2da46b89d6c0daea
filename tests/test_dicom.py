"""DICOM files made here, against the standard's formulas written out in plain Python."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from engine.dicom import read_dicom
from engine.errors import ImageError, Refused
from engine.images import find_images, read_picture

ROWS, COLUMNS = 72, 80
SECRETS = {
    "PatientName": "GRABOWSKA^ZOFIA",
    "PatientID": "PESEL-44051401359",
    "PatientBirthDate": "19440514",
    "AccessionNumber": "ACC7788991",
    "InstitutionName": "Szpital Testowy",
    "StudyDate": "20240229",
    "StudyInstanceUID": "1.2.826.0.1.3680043.9.7777.1",
}


def ramp(bits: int = 12, *, signed: bool = False) -> np.ndarray:
    """Every part of a range, with its ends, in no regular order."""
    rng = np.random.default_rng(bits)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = rng.integers(low, high, size=(ROWS, COLUMNS), endpoint=True)
    values[0, :2] = low, high
    return values


def dicom(
    values: np.ndarray | None,
    *,
    syntax: str = ExplicitVRLittleEndian,
    bits: int = 12,
    allocated: int = 16,
    signed: bool = False,
    **tags: Any,
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    meta.TransferSyntaxUID = syntax
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "1.2.3.4.5"
    ds.Modality = "DX"
    for keyword, value in SECRETS.items():
        setattr(ds, keyword, value)
    if values is not None:
        ds.Rows, ds.Columns = values.shape[:2]
        ds.SamplesPerPixel = 1 if values.ndim == 2 else 3
        if values.ndim == 3:
            ds.PlanarConfiguration = 0
        ds.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, bits, bits - 1
        ds.PixelRepresentation = int(signed)
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        words = values.astype(np.int64) & ((1 << allocated) - 1)
        ds.PixelData = words.astype(f"{order}u{allocated // 8}").tobytes()
        ds["PixelData"].VR = "OW" if allocated == 16 else "OB"
    for keyword, value in tags.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def encoding(syntax: str) -> dict[str, bool]:
    return {
        "implicit_vr": syntax == ImplicitVRLittleEndian,
        "little_endian": syntax != ExplicitVRBigEndian,
    }


def save(ds: FileDataset, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files are wrong on purpose
        pydicom.dcmwrite(
            path,
            ds,
            enforce_file_format=True,
        )
    return path


def round_up(value: float) -> int:
    return math.floor(min(max(value, 0.0), 255.0) + 0.5)


def linear(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.2.1, as its pseudo-code stands there."""
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    if x > c - 0.5 + (w - 1) / 2:
        return 255.0
    return ((x - (c - 0.5)) / (w - 1) + 0.5) * 255.0


def linear_exact(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.3.2."""
    if x <= c - w / 2:
        return 0.0
    if x > c + w / 2:
        return 255.0
    return ((x - c) / w + 0.5) * 255.0


def sigmoid(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.3.1."""
    power = -4.0 * (x - c) / w
    return 0.0 if power > 700 else 255.0 / (1.0 + math.exp(power))


def expect(values: np.ndarray, function: Any) -> np.ndarray:
    return np.array([[round_up(function(float(x))) for x in row] for row in values], np.uint8)


def min_max(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return expect(values, lambda x: (x - low) * 255.0 / (high - low))


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """The same grey levels; one apart at most where a sum lands on a half."""
    apart = np.abs(found.astype(int) - expected.astype(int))
    assert found.shape == expected.shape
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= apart.size // 100


def lut_item(first: int, entries: list[int], bits: int, vr: str = "US", **tags: Any) -> Dataset:
    item = Dataset()
    n = len(entries)
    item.add_new("LUTDescriptor", vr, [0 if n == 65536 else n, first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return item


WINDOW = {"WindowCenter": "1800", "WindowWidth": "1500"}


# --- what is stored ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
    ids=lambda uid: uid.name,
)
@pytest.mark.parametrize(("bits", "allocated"), [(8, 8), (8, 16), (10, 16), (12, 16), (16, 16)])
@pytest.mark.parametrize("signed", [False, True])
def test_native_samples(
    tmp_path: Path, syntax: Any, bits: int, allocated: int, signed: bool
) -> None:
    values = ramp(bits, signed=signed)
    path = save(
        dicom(values, syntax=syntax, bits=bits, allocated=allocated, signed=signed),
        tmp_path / "a.dcm",
    )
    picture = read_picture(path)
    assert picture.format == "dicom"
    assert picture.stored_bits == bits
    assert picture.about["transfer_syntax"] == syntax.name
    assert picture.pixels.dtype == np.uint8
    assert "notes" not in picture.about
    agree(picture.pixels, min_max(values))


@pytest.mark.parametrize("signed", [False, True])
def test_high_bit_shifts_and_junk_is_masked(tmp_path: Path, signed: bool) -> None:
    values = ramp(12, signed=signed)
    junk = np.random.default_rng(1).integers(0, 16, size=values.shape)
    shifted = (values & 0xFFF) << 4 | junk
    path = save(dicom(shifted, HighBit=15, PixelRepresentation=int(signed)), tmp_path / "a.dcm")
    agree(read_dicom(path).pixels, min_max(values))
    above = (values & 0xFFF) | junk << 12
    path = save(dicom(above, PixelRepresentation=int(signed)), tmp_path / "b.dcm")
    agree(read_dicom(path).pixels, min_max(values))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_rle(tmp_path: Path, bits: int, signed: bool) -> None:
    values = ramp(bits, signed=signed)
    ds = dicom(values, bits=bits, allocated=8 if bits == 8 else 16, signed=signed)
    ds.compress(RLELossless, generate_instance_uid=False)
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert picture.about["transfer_syntax"] == "RLE Lossless"


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def smooth() -> np.ndarray:
    y, x = np.mgrid[:ROWS, :COLUMNS]
    return (60 + 50 * np.sin(x / 9.0) + y).astype(np.uint8)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda u: u.name)
def test_jpeg_baseline(tmp_path: Path, syntax: str) -> None:
    data = jpeg(smooth())
    ds = dicom(smooth(), bits=8, allocated=8)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([data])
    ds["PixelData"].is_undefined_length = True
    ds.WindowCenter, ds.WindowWidth = "128", "256"
    found = read_dicom(save(ds, tmp_path / "a.dcm")).pixels
    agree(found, np.asarray(Image.open(io.BytesIO(data))))


def test_jpeg_in_fragments_is_one_frame(tmp_path: Path) -> None:
    data = jpeg(smooth())
    ds = dicom(smooth(), bits=8, allocated=8, WindowCenter="128", WindowWidth="256")
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([data], fragments_per_frame=3, has_bot=False)
    ds["PixelData"].is_undefined_length = True
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_jpeg_colour(tmp_path: Path) -> None:
    rgb = np.stack([smooth(), smooth()[:, ::-1], 255 - smooth()], axis=-1)
    data = jpeg(rgb)
    ds = dicom(rgb, bits=8, allocated=8, PhotometricInterpretation="YBR_FULL_422")
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([data])
    ds["PixelData"].is_undefined_length = True
    found = read_dicom(save(ds, tmp_path / "a.dcm")).pixels
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_native_colour(tmp_path: Path, planar: int, photometric: str) -> None:
    rng = np.random.default_rng(3)
    rgb = rng.integers(30, 220, size=(ROWS, COLUMNS, 3)).astype(np.uint8)
    stored = rgb
    if photometric == "YBR_FULL":
        stored = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    ds = dicom(stored, bits=8, allocated=8, PhotometricInterpretation=photometric)
    ds.PlanarConfiguration = planar
    if planar:
        ds.PixelData = np.moveaxis(stored, -1, 0).tobytes()
    found = read_dicom(save(ds, tmp_path / "a.dcm")).pixels.astype(float)
    assert np.abs(found - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 2


def test_jpeg_2000_where_pillow_can(tmp_path: Path) -> None:
    values = ramp(16).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG2000", no_jp2=True)
    ds = dicom(values, bits=16)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([stream.getvalue()])
    ds["PixelData"].is_undefined_length = True
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, min_max(values))


# --- how it is shown -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "oracle"),
    [(None, linear), ("LINEAR", linear), ("LINEAR_EXACT", linear_exact), ("SIGMOID", sigmoid)],
)
@pytest.mark.parametrize(
    ("center", "width"), [(2048, 4096), (1800, 1500), (100, 1), (2000.5, 2), (1e5, 10), (700, 0.75)]
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows(
    tmp_path: Path, function: str | None, oracle: Any, center: float, width: float, photometric: str
) -> None:
    values = ramp(12)
    ds = dicom(values, WindowCenter=center, WindowWidth=width)
    ds.PhotometricInterpretation = photometric
    if function:
        ds.VOILUTFunction = function
    expected = expect(values, lambda x: oracle(x, center, width))
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    too_narrow = oracle is linear and width < 1  # C.11.2.1.2.1 asks for at least 1
    if too_narrow or expected.min() == expected.max():  # or a window beside the values
        expected = min_max(values)
        assert "ignored" in " ".join(picture.about["notes"])
    else:
        assert picture.about["grayscale"] == f"window {function or 'LINEAR'}"
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    agree(picture.pixels, expected)


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    values = ramp(12)
    ds = dicom(values, RescaleSlope="2.5", RescaleIntercept="-1024", **WINDOW)
    agree(
        read_dicom(save(ds, tmp_path / "a.dcm")).pixels,
        expect(values, lambda x: linear(x * 2.5 - 1024, 1800, 1500)),
    )


def test_negative_slope_turns_the_picture(tmp_path: Path) -> None:
    values = ramp(12)
    ds = dicom(values, RescaleSlope="-1", RescaleIntercept="4095")
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, 255 - min_max(values))


def test_modality_lut_wins_over_rescale(tmp_path: Path) -> None:
    values = ramp(12)
    table = [min(65535, (v * v) >> 8) for v in range(100, 4000)]
    item = lut_item(100, table, 16, ModalityLUTType="US")
    ds = dicom(values, RescaleSlope="-1", RescaleIntercept="0", **WINDOW)
    ds.ModalityLUTSequence = Sequence([item])
    expected = expect(
        values, lambda x: linear(table[int(min(max(x - 100, 0), len(table) - 1))], 1800, 1500)
    )
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, expected)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_voi_lut_wins_over_window(tmp_path: Path, syntax: str) -> None:
    values = ramp(12)
    table = [round(1023 * math.sqrt(v / 3000)) for v in range(3000)]
    ds = dicom(values, syntax=syntax, **WINDOW)
    ds.VOILUTSequence = Sequence([lut_item(500, table, 10), lut_item(0, [0, 1, 2], 8)])
    expected = expect(values, lambda x: table[int(min(max(x - 500, 0), 2999))] * 255 / 1023)
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    assert picture.about["grayscale"] == "VOI LUT"
    agree(picture.pixels, expected)


def test_voi_lut_of_signed_values(tmp_path: Path) -> None:
    values = ramp(12, signed=True)
    table = list(range(4096))
    ds = dicom(values, signed=True)
    # -2048 in a descriptor written as unsigned.
    ds.VOILUTSequence = Sequence([lut_item(65536 - 2048, table, 12)])
    expected = expect(values, lambda x: (x + 2048) * 255 / 4095)
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, expected)


def test_voi_lut_of_65536_entries(tmp_path: Path) -> None:
    values = ramp(16)
    ds = dicom(values, bits=16)
    ds.VOILUTSequence = Sequence([lut_item(0, [65535 - v for v in range(65536)], 16)])
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, expect(values, lambda x: 255 - x / 257))


def test_voi_lut_of_bytes(tmp_path: Path) -> None:
    values = ramp(8)
    item = lut_item(0, [0], 8)
    item.LUTDescriptor = [256, 0, 8]
    item.LUTData = bytes((255 - v) // 2 for v in range(256))
    ds = dicom(values, bits=8)
    ds.VOILUTSequence = Sequence([item])
    agree(
        read_dicom(save(ds, tmp_path / "a.dcm")).pixels,
        expect(values, lambda x: (255 - int(x)) // 2),
    )


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_inversion_once(
    tmp_path: Path, photometric: str, shape: str | None, inverted: bool
) -> None:
    values = ramp(12)
    ds = dicom(values, PhotometricInterpretation=photometric)
    if shape:
        ds.PresentationLUTShape = shape
    expected = min_max(values)
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    agree(picture.pixels, 255 - expected if inverted else expected)
    # Only the pair that contradicts itself is worth a note.
    assert ("notes" in picture.about) == ((photometric, shape) == ("MONOCHROME2", "INVERSE"))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_out_of_the_range(tmp_path: Path, photometric: str) -> None:
    values = ramp(11) + 500
    padded = values.copy()
    padded[:20] = 4095
    ds = dicom(padded, PhotometricInterpretation=photometric, PixelPaddingValue=4095)
    ds["PixelPaddingValue"].VR = "US"
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    low, high = values[20:].min(), values[20:].max()
    expected = expect(values, lambda x: (x - low) * 255 / (high - low))
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    expected[:20] = 0
    agree(picture.pixels, expected)
    assert picture.about["notes"] == ["padding was shown black"]


# --- headers that lie ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        ({"WindowCenter": "2000", "WindowWidth": "0"}, "unusable"),
        ({"WindowCenter": "2000", "WindowWidth": "-5"}, "unusable"),
        ({"WindowCenter": "2000"}, "unusable"),
        ({"WindowWidth": "200"}, "unusable"),
        ({"RescaleSlope": "0", "RescaleIntercept": "7"}, "RescaleSlope"),
        ({"WindowCenter": "-90000", "WindowWidth": "10"}, "shows nothing"),
    ],
)
def test_unusable_values_fall_back_to_min_max(
    tmp_path: Path, tags: dict[str, str], note: str
) -> None:
    values = ramp(12)
    picture = read_dicom(save(dicom(values, **tags), tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert note in " ".join(picture.about["notes"])
    assert picture.about["grayscale"] == "smallest to largest value"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("keyword", ["WindowCenter", "WindowWidth", "RescaleSlope"])
def test_decimal_comma(tmp_path: Path, keyword: str, syntax: str) -> None:
    values = ramp(12)
    ds = dicom(values, syntax=syntax)
    tags = {"WindowCenter": "2000", "WindowWidth": "9999"} if "Window" in keyword else {}
    for key, value in {**tags, keyword: "1234"}.items():
        setattr(ds, key, value)
    path = save(ds, tmp_path / "a.dcm")
    data = path.read_bytes()
    assert data.count(b"1234") == 1
    path.write_bytes(data.replace(b"1234", b"40,5"))
    picture = read_dicom(path)
    agree(picture.pixels, min_max(values))
    assert picture.about["notes"]


def test_first_usable_window_of_several(tmp_path: Path) -> None:
    values = ramp(12)
    ds = dicom(values, WindowCenter=["1800", "99"], WindowWidth=["1500", "3"])
    agree(
        read_dicom(save(ds, tmp_path / "a.dcm")).pixels,
        expect(values, lambda x: linear(x, 1800, 1500)),
    )
    ds = dicom(values, WindowCenter=["99", "1800"], WindowWidth=["0", "1500"])
    picture = read_dicom(save(ds, tmp_path / "b.dcm"))
    agree(picture.pixels, expect(values, lambda x: linear(x, 1800, 1500)))
    assert "window 2" in " ".join(picture.about["notes"])


def test_unknown_voi_function_is_linear(tmp_path: Path) -> None:
    values = ramp(12)
    picture = read_dicom(save(dicom(values, VOILUTFunction="WOBBLY", **WINDOW), tmp_path / "a.dcm"))
    agree(picture.pixels, expect(values, lambda x: linear(x, 1800, 1500)))
    assert "VOILUTFunction" in " ".join(picture.about["notes"])
    assert "WOBBLY" not in str(picture.about)


@pytest.mark.parametrize("kind", ["empty sequence", "empty", "short", "no data", "no descriptor"])
def test_damaged_voi_lut_gives_way_to_the_window(tmp_path: Path, kind: str) -> None:
    values = ramp(12)
    item = lut_item(0, list(range(4096)), 12)
    if kind == "empty":
        item.LUTData = b""
    elif kind == "short":
        item.LUTData = item.LUTData[:200]
    elif kind == "no data":
        del item.LUTData
    elif kind == "no descriptor":
        del item.LUTDescriptor
    ds = dicom(values, **WINDOW)
    ds.VOILUTSequence = Sequence([] if kind == "empty sequence" else [item])
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    agree(picture.pixels, expect(values, lambda x: linear(x, 1800, 1500)))
    if kind != "empty sequence":
        assert "VOI LUT" in picture.about["notes"][0]


def test_lut_entries_wider_than_it_says(tmp_path: Path) -> None:
    values = ramp(12)
    ds = dicom(values)
    ds.VOILUTSequence = Sequence([lut_item(0, list(range(4096)), 8)])
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    agree(picture.pixels, expect(values, lambda x: x * 255 / 4095))
    assert "12" in picture.about["notes"][0]


@pytest.mark.parametrize("keyword", ["HighBit", "PixelRepresentation", "SamplesPerPixel"])
def test_missing_with_one_sensible_value(tmp_path: Path, keyword: str) -> None:
    values = ramp(12)
    picture = read_dicom(save(dicom(values, **{keyword: None}), tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert picture.about["notes"][0].startswith(f"{keyword} was missing")


def test_missing_bits_stored(tmp_path: Path) -> None:
    values = ramp(12)
    picture = read_dicom(save(dicom(values, BitsStored=None, HighBit=None), tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert picture.stored_bits == 16


@pytest.mark.parametrize("tags", [{"BitsStored": 40}, {"BitsStored": 0}, {"HighBit": 3}])
def test_nonsense_bits(tmp_path: Path, tags: dict[str, int]) -> None:
    values = ramp(12)
    picture = read_dicom(save(dicom(values, **tags), tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert picture.about["notes"]


def test_photometric_is_told_by_the_presentation_lut_shape(tmp_path: Path) -> None:
    values = ramp(12)
    for shape, expected in (("INVERSE", 255 - min_max(values)), ("IDENTITY", min_max(values))):
        ds = dicom(values, PhotometricInterpretation=None, PresentationLUTShape=shape)
        agree(read_dicom(save(ds, tmp_path / f"{shape}.dcm")).pixels, expected)


@pytest.mark.parametrize(
    "keyword", ["PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"]
)
def test_missing_without_a_sensible_value(tmp_path: Path, keyword: str) -> None:
    path = save(dicom(ramp(12), **{keyword: None}), tmp_path / "a.dcm")
    with pytest.raises(ImageError, match=rf"{keyword} \(0028,") as caught:
        read_dicom(path)
    assert not isinstance(caught.value, Refused)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": "JOHN"}, "unknown"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"SamplesPerPixel": 4}, "4 samples"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000"),
        ({"Rows": 0}, "80 x 0"),
        ({"Rows": ROWS + 1}, "cut short"),
    ],
)
def test_headers_that_cannot_be_shown(tmp_path: Path, tags: dict[str, Any], found: str) -> None:
    path = save(dicom(ramp(12), **tags), tmp_path / "a.dcm")
    with pytest.raises(ImageError, match=found) as caught:
        read_dicom(path)
    assert not isinstance(caught.value, Refused)


# --- refusals ------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        read_picture(path)
    text = str(caught.value)
    assert str(path) in text
    for secret in SECRETS.values():
        assert secret not in text
    return caught.value.reason


@pytest.mark.parametrize("modality", ["SR", "SEG", "PR", "KO", "OT", "CT", "MG", "US"])
def test_other_modalities(tmp_path: Path, modality: str) -> None:
    path = save(dicom(ramp(12), Modality=modality), tmp_path / "a.dcm")
    assert refusal(path) == "unsupported_modality"
    with pytest.raises(Refused, match=f"modality {modality}"):
        read_dicom(path)


def test_a_name_in_modality_is_not_repeated(tmp_path: Path) -> None:
    path = save(dicom(ramp(12), Modality="GRABOWSKA"), tmp_path / "a.dcm")
    with pytest.raises(Refused, match="modality unknown") as caught:
        read_dicom(path)
    assert "GRABOWSKA" not in str(caught.value)


@pytest.mark.parametrize("modality", ["CR", "DX", "RF", None])
def test_accepted_modalities(tmp_path: Path, modality: str | None) -> None:
    picture = read_dicom(save(dicom(ramp(12), Modality=modality), tmp_path / "a.dcm"))
    assert picture.about.get("modality") == modality


def test_without_modality_the_storage_class_tells(tmp_path: Path) -> None:
    ds = dicom(ramp(12), Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    path = save(ds, tmp_path / "a.dcm")
    assert refusal(path) == "unsupported_modality"
    with pytest.raises(Refused, match="CT Image Storage"):
        read_dicom(path)


def test_no_pixels(tmp_path: Path) -> None:
    assert refusal(save(dicom(None), tmp_path / "a.dcm")) == "no_pixels"
    assert refusal(save(dicom(ramp(12), PixelData=b""), tmp_path / "b.dcm")) == "no_pixels"
    stripped = save(dicom(ramp(12), PixelData=None), tmp_path / "c.dcm")
    assert refusal(stripped) == "no_pixels"
    with pytest.raises(Refused, match="stripped or cut short"):
        read_dicom(stripped)


def test_more_than_one_frame(tmp_path: Path) -> None:
    two = np.concatenate([ramp(12), ramp(12)])
    told = dicom(two, Rows=ROWS, NumberOfFrames=2)
    assert refusal(save(told, tmp_path / "told.dcm")) == "multi_frame"
    untold = dicom(two, Rows=ROWS)
    assert refusal(save(untold, tmp_path / "untold.dcm")) == "multi_frame"
    lied = dicom(two, Rows=ROWS, NumberOfFrames=1)
    assert refusal(save(lied, tmp_path / "lied.dcm")) == "multi_frame"


@pytest.mark.parametrize("has_bot", [True, False])
def test_two_encapsulated_frames_without_a_number(tmp_path: Path, has_bot: bool) -> None:
    ds = dicom(smooth(), bits=8, allocated=8)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([jpeg(smooth()), jpeg(255 - smooth())], has_bot=has_bot)
    ds["PixelData"].is_undefined_length = True
    assert refusal(save(ds, tmp_path / "a.dcm")) == "multi_frame"


@pytest.mark.parametrize("has_bot", [True, False])
def test_two_rle_frames_without_a_number(tmp_path: Path, has_bot: bool) -> None:
    ds = dicom(ramp(12))
    ds.compress(RLELossless, generate_instance_uid=False)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([frame, frame], has_bot=has_bot)
    assert refusal(save(ds, tmp_path / "a.dcm")) == "multi_frame"


@pytest.mark.parametrize(
    ("syntax", "bits", "cure"),
    [
        (JPEGLosslessSV1, 12, r"1\.2\.840\.10008\.1\.2\.4\.70.*hilum\[dicom\]"),
        (JPEGExtended12Bit, 12, "12-bit JPEG"),
        ("1.2.840.10008.1.2.4.100", 12, "MPEG2"),
        ("1.2.3.4.999", 12, "unknown"),
    ],
)
def test_unsupported_transfer_syntax(tmp_path: Path, syntax: str, bits: int, cure: str) -> None:
    if syntax == JPEGLosslessSV1:
        for module in ("gdcm", "pylibjpeg"):
            if importlib.util.find_spec(module):
                pytest.skip(f"{module} is installed, so this syntax can be read")
    ds = dicom(ramp(bits), bits=bits)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xc3" + b"\0" * 400])
    ds["PixelData"].is_undefined_length = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
    path = tmp_path / "a.dcm"
    path.write_bytes(stream.getvalue())
    with pytest.raises(Refused, match=cure) as caught:
        read_dicom(path)
    assert caught.value.reason == "unsupported_transfer_syntax"


def test_blank_and_small(tmp_path: Path) -> None:
    assert refusal(save(dicom(np.full((80, 80), 7)), tmp_path / "a.dcm")) == "blank"
    assert refusal(save(dicom(ramp(12)[:, :63]), tmp_path / "b.dcm")) == "too_small"


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_a_cut_file_is_never_read_as_a_picture(tmp_path: Path, compressed: bool) -> None:
    ds = dicom(ramp(12))
    if compressed:
        ds.compress(RLELossless, generate_instance_uid=False)
    data = save(ds, tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    # The end of an RLE file may hold nothing but padding and delimiters.
    for length in [
        *range(133, len(data) - 300, 171),
        *((len(data) - 9,) if not compressed else ()),
    ]:
        path.write_bytes(data[:length])
        with pytest.raises(ImageError) as caught:
            read_picture(path)
        assert str(path) in str(caught.value)


def test_a_cut_deflated_file(tmp_path: Path) -> None:
    data = save(dicom(ramp(12), syntax=DeflatedExplicitVRLittleEndian), tmp_path / "a").read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cut short"):
        read_picture(path)


def test_a_deflate_bomb_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.dicom._MAX_INFLATED_BYTES", 1 << 20)
    path = save(dicom(ramp(12), syntax=DeflatedExplicitVRLittleEndian), tmp_path / "a.dcm")
    read_dicom(path)
    meta = path.read_bytes()[:132] + path.read_bytes()[132:]
    start = 144 + int.from_bytes(meta[140:144], "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(meta[:start] + deflater.compress(bytes(4 << 20)) + deflater.flush())
    with pytest.raises(ImageError, match="inflates to more"):
        read_dicom(path)


def test_random_damage_ends_in_a_picture_or_an_image_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    ds = dicom(ramp(12), RescaleSlope="1", **WINDOW)
    ds.VOILUTSequence = Sequence([lut_item(0, list(range(4096)), 12)])
    whole = save(ds, tmp_path / "a.dcm").read_bytes()
    head = whole.index(b"OW\0\0", whole.index(b"\xe0\x7f\x10\0"))
    path = tmp_path / "b.dcm"
    outcomes = {"picture": 0, "error": 0}
    for _ in range(150):
        data = bytearray(whole)
        for position in rng.integers(132, head, size=rng.integers(1, 12)):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            picture = read_picture(path)
        except ImageError as exc:
            outcomes["error"] += 1
            assert str(path) in str(exc)
        else:
            outcomes["picture"] += 1
            assert picture.pixels.dtype == np.uint8
    assert min(outcomes.values()) > 0


# --- how the file is recognised ------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_without_preamble_and_meta(tmp_path: Path, syntax: str) -> None:
    values = ramp(12)
    ds = dicom(values, syntax=syntax)
    bare = Dataset()
    bare.update(ds)
    path = tmp_path / "IM000001"
    bare.save_as(path, **encoding(syntax))
    assert path.read_bytes()[128:132] != b"DICM"
    agree(read_picture(path).pixels, min_max(values))


def test_meta_without_preamble(tmp_path: Path) -> None:
    values = ramp(12)
    data = save(dicom(values), tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "b"
    path.write_bytes(data[132:])
    agree(read_picture(path).pixels, min_max(values))


def test_without_transfer_syntax(tmp_path: Path) -> None:
    values = ramp(12)
    data = save(dicom(values), tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    path = tmp_path / "b.dcm"
    path.write_bytes(data[:132] + data[start:])
    agree(read_picture(path).pixels, min_max(values))


def test_preamble_may_look_like_tiff(tmp_path: Path) -> None:
    ds = dicom(ramp(12))
    ds.preamble = b"II*\0" + b"\0" * 124
    assert read_picture(save(ds, tmp_path / "a.tif")).format == "dicom"


def test_names_do_not_matter(tmp_path: Path) -> None:
    for name in ("1.2.840.113619.2", "CR.1.2.3", "plain", "x.dcm", "y.jpg"):
        save(dicom(ramp(12)), tmp_path / name)
        assert read_picture(tmp_path / name).format == "dicom"
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "plain").read_bytes())
    (tmp_path / "notes.txt").write_text("nothing to see")
    found = [path.name for path in find_images(tmp_path)]
    assert found == ["1.2.840.113619.2", "CR.1.2.3", "plain", "x.dcm", "y.jpg"]


def test_not_dicom(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_text("DICM is only a word here " * 50)
    with pytest.raises(ImageError, match="is not DICOM"):
        read_dicom(path)
    with pytest.raises(ImageError, match="text file"):
        read_picture(path)
    with pytest.raises(ImageError, match="check the path"):
        read_dicom(tmp_path / "missing.dcm")


# --- what is told, and what never ----------------------------------------------------------------


def test_about_holds_no_identity(tmp_path: Path) -> None:
    ds = dicom(
        ramp(12),
        ViewPosition="PA",
        BodyPartExamined="CHEST",
        PresentationIntentType="FOR PRESENTATION",
        StudyDescription="Thorax Grabowska",
        **WINDOW,
    )
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    assert picture.about == {
        "photometric": "MONOCHROME2",
        "modality": "DX",
        "transfer_syntax": "Explicit VR Little Endian",
        "presentation_intent": "for presentation",
        "body_part": "chest",
        "projection": "PA",
        "grayscale": "window LINEAR",
    }


@pytest.mark.parametrize(
    ("position", "projection"),
    [("PA", "PA"), ("AP", "AP"), ("LL", "lateral"), ("LATERAL", "lateral"), ("LLD", "other")],
)
def test_projection(tmp_path: Path, position: str, projection: str) -> None:
    picture = read_dicom(save(dicom(ramp(12), ViewPosition=position), tmp_path / "a.dcm"))
    assert picture.about["projection"] == projection


def test_projection_by_view_code(tmp_path: Path) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "399348003", "SCT"
    picture = read_dicom(save(dicom(ramp(12), ViewCodeSequence=Sequence([item])), tmp_path / "a"))
    assert picture.about["projection"] == "AP"


def test_messages_and_logs_name_no_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Values that pydicom complains about, in a file that cannot be read in the end."""
    caplog.set_level(logging.DEBUG)
    ds = dicom(ramp(12))
    data = bytearray(save(ds, tmp_path / "a.dcm").read_bytes())
    data = data.replace(b"19440514", b"GRABOWSK").replace(b"20240229", b"Zofia,44")
    path = tmp_path / "b.dcm"
    for cut in (len(data) - 100, len(data) - 11_000, 600, 420):
        path.write_bytes(data[:cut])
        with pytest.raises(ImageError) as caught:
            read_picture(path)
        text = str(caught.value) + caplog.text + "".join(capfd.readouterr())
        for secret in (*SECRETS.values(), "GRABOWSK", "Zofia"):
            assert secret not in text


def test_warnings_of_pydicom_stay_inside_in_many_threads(tmp_path: Path) -> None:
    path = save(dicom(ramp(12), **WINDOW), tmp_path / "a.dcm")
    data = path.read_bytes()
    path.write_bytes(data + b"\0" * 40)  # trailing bytes that pydicom warns about
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                read_dicom(path)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(warnings.filters) == before
    assert logging.getLogger("pydicom").propagate


def test_only_dicom_files_import_pydicom(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(ramp(8).astype(np.uint8)).save(path)
    code = (
        "import sys; from engine.images import read_picture, Preprocessing\n"
        "assert 'PIL' not in sys.modules\n"
        f"read_picture({str(path)!r})\n"
        "assert 'pydicom' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_a_real_xray_in_dicom_is_the_same_picture(tmp_path: Path, shared_data: Path) -> None:
    path = find_images(shared_data / "pneumonia_fullsize")[0]
    plain = read_picture(path)
    gray = plain.pixels
    ds = dicom(gray, bits=8, allocated=8, WindowCenter="128", WindowWidth="256")
    ds.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(read_picture(save(ds, tmp_path / "rle.dcm")).pixels, gray)
    ds = dicom(gray, bits=8, allocated=8, WindowCenter="128", WindowWidth="256")
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([path.read_bytes()])
    ds["PixelData"].is_undefined_length = True
    ds.PhotometricInterpretation = "MONOCHROME1"
    assert np.array_equal(read_picture(save(ds, tmp_path / "jpeg.dcm")).pixels, 255 - gray)
