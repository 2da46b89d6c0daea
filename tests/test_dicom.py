"""DICOM files made here, against the standard's formulas written out in plain Python."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_helpers import (
    COLUMNS,
    ROWS,
    SECRETS,
    WINDOW,
    agree,
    compressed,
    dicom,
    encode_with_gdcm,
    encoded,
    encoding,
    expect,
    jpeg,
    linear,
    linear_exact,
    lut_item,
    min_max,
    ramp,
    save,
    sigmoid,
    smooth,
    with_frames,
)
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from engine.codestream import read_frame_header, unpack_rle
from engine.dicom import read_dicom
from engine.dicom_file import parse_dicom
from engine.dicom_kind import OWN_MANUFACTURER, OWN_SERIES
from engine.errors import REFUSALS, ImageError, Refused
from engine.images import find_images, read_picture

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


@pytest.mark.parametrize("has_bot", [True, False])
def test_empty_fragments_are_nothing(tmp_path: Path, has_bot: bool) -> None:
    data = jpeg(smooth())
    ds = dicom(smooth(), bits=8, allocated=8, WindowCenter="128", WindowWidth="256")
    with_frames(ds, JPEGBaseline8Bit, [data], has_bot=has_bot)
    empty = b"\xfe\xff\0\xe0\0\0\0\0"
    table = 8 + 4 * has_bot
    ds.PixelData = ds.PixelData[:table] + empty + ds.PixelData[table:]
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


def needs(module: str) -> Any:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"needs {module}, of the extra [dicom]")


DEPTHS = [(8, False), (8, True), (10, False), (12, False), (12, True), (16, False), (16, True)]


@pytest.fixture(scope="module")
def gdcm_frames(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, bytes]:
    pytest.importorskip("gdcm", reason="needs python-gdcm, of the extra [dicom], to encode")
    pictures = {
        (syntax, bits, signed): (ramp(bits, signed=signed), syntax, bits, signed)
        for syntax in (JPEGLossless, JPEGLosslessSV1, JPEG2000Lossless)
        for bits, signed in DEPTHS
    }
    return encode_with_gdcm(pictures, tmp_path_factory.mktemp("gdcm"))


@pytest.mark.parametrize(
    "syntax", [JPEGLossless, JPEGLosslessSV1, JPEG2000Lossless], ids=lambda uid: uid.name[:24]
)
@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_lossless_frames_of_gdcm(
    tmp_path: Path,
    gdcm_frames: dict[Any, bytes],
    syntax: Any,
    bits: int,
    signed: bool,
    photometric: str,
) -> None:
    values = ramp(bits, signed=signed)
    center, width = (0, 1 << bits - 1) if signed else (1 << bits - 1, 1 << bits - 1)
    ds = dicom(
        values,
        bits=bits,
        allocated=8 if bits <= 8 else 16,
        signed=signed,
        PhotometricInterpretation=photometric,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction="SIGMOID",
    )
    ds = with_frames(ds, syntax, [gdcm_frames[syntax, bits, signed]])
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    expected = expect(values, lambda x: sigmoid(x, center, width))
    agree(picture.pixels, 255 - expected if photometric == "MONOCHROME1" else expected)
    assert picture.about["transfer_syntax"] == syntax.name
    assert "notes" not in picture.about


@needs("jpeg_ls")
@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
def test_jpeg_ls(tmp_path: Path, bits: int, signed: bool) -> None:
    values = ramp(bits, signed=signed)
    ds = compressed(values, JPEGLSLossless, bits=bits, signed=signed, RescaleIntercept="-100")
    ds.VOILUTFunction, ds.WindowCenter, ds.WindowWidth = "LINEAR_EXACT", 0, 1 << bits - 1
    found = read_dicom(save(ds, tmp_path / "a.dcm")).pixels
    agree(found, expect(values, lambda x: linear_exact(x - 100, 0, 1 << bits - 1)))


@needs("jpeg_ls")
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_ls_near_lossless(tmp_path: Path, bits: int) -> None:
    values = ramp(bits)
    ds = compressed(values, JPEGLSNearLossless, bits=bits, WindowCenter=1 << bits - 1)
    ds.WindowWidth = 1 << bits
    found = read_dicom(save(ds, tmp_path / "a.dcm")).pixels.astype(int)
    expected = expect(values, lambda x: linear(x, 1 << bits - 1, 1 << bits)).astype(int)
    assert np.abs(found - expected).max() <= 3  # the frame may be off by 2 of its own levels


@pytest.mark.parametrize("syntax", [JPEG2000, JPEG2000Lossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_2000_of_pillow(tmp_path: Path, syntax: Any, bits: int) -> None:
    """Pillow writes 16-bit frames, so for 12 bits the frame and the header differ in precision."""
    values = ramp(bits)
    picture = read_dicom(save(compressed(values, syntax, bits=bits), tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert picture.about["transfer_syntax"] == syntax.name


def test_a_jpeg_2000_file_as_frame(tmp_path: Path) -> None:
    values = ramp(16).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG2000")
    assert stream.getvalue()[4:8] == b"jP  "
    ds = with_frames(dicom(values, bits=16), JPEG2000Lossless, [stream.getvalue()])
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, min_max(values))


@pytest.mark.parametrize("shift", [0, 4])
def test_junk_around_the_stored_bits_of_rle(tmp_path: Path, shift: int) -> None:
    values = ramp(12, signed=True)
    junk = np.random.default_rng(5).integers(0, 16, size=values.shape)
    words = (values & 0xFFF) << 4 | junk if shift else (values & 0xFFF) | junk << 12
    ds = dicom(words, bits=12, HighBit=11 + shift, PixelRepresentation=1)
    ds.compress(RLELossless, generate_instance_uid=False)
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, min_max(values))


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (71, 81)])
def test_words_of_bytes_in_big_endian(tmp_path: Path, shape: tuple[int, int]) -> None:
    """PS3.5 section 8.1.2: two 8-bit samples in a word, whose bytes big endian exchanges."""
    values = np.random.default_rng(2).integers(0, 256, size=shape)
    ds = dicom(values, bits=8, allocated=8, syntax=ExplicitVRBigEndian)
    raw = values.astype(np.uint8).tobytes() + b"\0" * (values.size % 2)
    ds.PixelData = np.frombuffer(raw, "<u2").byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    agree(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, min_max(values))


def test_an_odd_number_of_bytes_is_padded(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 256, size=(71, 81))
    ds = dicom(values, bits=8, allocated=8)
    ds.PixelData = ds.PixelData + b"\0"
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert "notes" not in picture.about


@pytest.mark.parametrize("chroma", [False, True])
def test_luma_is_taken_as_it_is(tmp_path: Path, chroma: bool) -> None:
    luma = ramp(8)
    if chroma:
        stored = np.full((ROWS, COLUMNS // 2, 4), 128)  # Y Y B R
        stored[..., 0], stored[..., 1] = luma[:, ::2], luma[:, 1::2]
        photometric = "YBR_FULL_422"
    else:
        stored = np.stack([luma, 200 - luma // 2, luma // 3], axis=-1)
        photometric = "YBR_FULL"
    ds = dicom(np.zeros((ROWS, COLUMNS, 3)), bits=8, allocated=8)
    ds.PhotometricInterpretation = photometric
    ds.PixelData = stored.astype(np.uint8).tobytes()
    assert np.array_equal(read_dicom(save(ds, tmp_path / "a.dcm")).pixels, luma)


def test_rle_colour(tmp_path: Path) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, size=(ROWS, COLUMNS, 3))
    ds = dicom(rgb, bits=8, allocated=8)
    ds.compress(RLELossless, generate_instance_uid=False)
    found = read_dicom(save(ds, tmp_path / "a.dcm")).pixels.astype(float)
    assert np.abs(found - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_the_decoder_does_not_depend_on_what_else_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDCM and pylibjpeg would decode JPEG and JPEG 2000 too."""
    asked: list[str] = []
    as_array = Decoder.as_array

    def record(self: Any, *args: Any, **options: Any) -> Any:
        asked.append(options["decoding_plugin"])
        return as_array(self, *args, **options)

    monkeypatch.setattr(Decoder, "as_array", record)
    read_dicom(save(compressed(ramp(16), JPEG2000, bits=16), tmp_path / "a.dcm"))
    ds = with_frames(dicom(smooth(), bits=8, allocated=8), JPEGBaseline8Bit, [jpeg(smooth())])
    read_dicom(save(ds, tmp_path / "b.dcm"))
    assert asked == ["pillow", "pillow"]


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


HEADERS: list[dict[str, Any]] = [
    {},
    {"PixelPaddingValue": 9},
    {"PixelPaddingValue": 0},
    {"PixelPaddingValue": 3},
    {"PixelPaddingValue": 60, "PixelPaddingRangeLimit": 100},
    {"WindowCenter": 30, "WindowWidth": 40},
    {"WindowCenter": 3000, "WindowWidth": 4},
    {"WindowCenter": 30, "WindowWidth": 40, "PixelPaddingValue": 9},
    {"WindowCenter": 7, "WindowWidth": 1},
    {"RescaleSlope": -2, "RescaleIntercept": 7},
    {"ModalityLUTSequence": Sequence([lut_item(0, [5, 900, 30, 4, 300], 12)])},
]


@pytest.mark.parametrize("tags", HEADERS, ids=lambda tags: "-".join(tags) or "none")
@pytest.mark.parametrize("kind", ["noise", "few", "two places", "flat"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_looking_at_some_samples_gives_what_looking_at_all_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tags: dict[str, Any],
    kind: str,
    signed: bool,
    syntax: Any,
) -> None:
    values = np.full((200, 210), 9)
    if kind == "noise":
        values = np.random.default_rng(0).integers(0, 4096, values.shape)
    elif kind == "few":
        values = np.random.default_rng(0).integers(5, 9, values.shape)
    elif kind == "two places":  # beside the grid of the few samples
        values[101, 203], values[1, 1] = 60, 3
    path = save(dicom(values, syntax=syntax, signed=signed, **tags), tmp_path / "a.dcm")

    def read() -> Any:
        try:
            picture = read_dicom(path)
        except Refused as error:
            return str(error)
        return picture.table.tobytes(), picture.pixels.tobytes(), picture.about

    found = read()
    nothing = property(lambda self: np.zeros(self.n_values, dtype=np.bool_))
    monkeypatch.setattr("engine.dicom._Stored.some", nothing)
    monkeypatch.setattr("engine.dicom._Stored.ends", None)
    assert read() == found


def test_a_window_needs_no_look_at_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(**tags: Any) -> Any:
        return read_dicom(save(dicom(ramp(), **tags), tmp_path / "a.dcm"))

    for name in ("present", "ends"):
        monkeypatch.setattr(f"engine.dicom._Stored.{name}", property(lambda self: 1 / 0))
    picture = read(WindowCenter=2000, WindowWidth=3000, RescaleSlope=2, RescaleIntercept=-5)
    assert "pixels" not in vars(picture)
    assert not picture.samples.flags.owndata  # the bytes of the file
    with pytest.raises(ImageError, match="ZeroDivisionError"):
        read()


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


@pytest.mark.parametrize("cut", [0, 1])
def test_pixels_that_are_not_compressed_as_they_should_be(tmp_path: Path, cut: int) -> None:
    values = ramp(12)
    ds = dicom(values)
    ds.PixelData = ds.PixelData[: len(ds.PixelData) - 2 * cut]
    data = save(ds, tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "b.dcm"
    # One UID has another length than the other; the space is padding (PS3.5 section 6.2).
    assert data.count(b"1.2.840.10008.1.2.1\0") == 1
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    if cut:
        with pytest.raises(ImageError, match="should be compressed"):
            read_dicom(path)
        return
    picture = read_dicom(path)
    agree(picture.pixels, min_max(values))
    assert "not compressed" in picture.about["notes"][0]


def test_pixels_that_are_compressed_and_should_not_be(tmp_path: Path) -> None:
    """Read as they stand, the fragments of noise are long enough to be taken for a picture."""
    ds = dicom(ramp(16), bits=16)
    ds.compress(RLELossless, generate_instance_uid=False)
    data = save(ds, tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "b.dcm"
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0"))
    with pytest.raises(ImageError, match="its pixels are compressed, but"):
        read_dicom(path)


def test_byte_order_other_than_it_says(tmp_path: Path) -> None:
    values = ramp(12)
    little = save(dicom(values), tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "b.dcm"
    path.write_bytes(little.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"))
    agree(read_dicom(path).pixels, min_max(values))
    big = save(dicom(values, syntax=ExplicitVRBigEndian), tmp_path / "c.dcm").read_bytes()
    path.write_bytes(big.replace(b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.1\0"))
    agree(read_dicom(path).pixels, min_max(values))


def test_value_representations_other_than_it_says(tmp_path: Path) -> None:
    values = ramp(12)
    data = save(dicom(values), tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "b.dcm"
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"))
    agree(read_dicom(path).pixels, min_max(values))


def test_network_command_in_front(tmp_path: Path) -> None:
    values = ramp(12)
    data = save(dicom(values), tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    command = b"\0\0\0\0\x04\0\0\0\x0a\0\0\0" + b"\0\0\0\1\x02\0\0\0\1\0"
    path = tmp_path / "b.dcm"
    path.write_bytes(data[:start] + command + data[start:])
    agree(read_dicom(path).pixels, min_max(values))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"Rows": ROWS - 2}, f"{COLUMNS} x {ROWS} pixels .* header says {COLUMNS} x {ROWS - 2}"),
        ({"Rows": COLUMNS, "Columns": ROWS}, "header says"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "header says"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "16 bits, its header says 8"),
    ],
)
def test_a_frame_that_is_not_what_the_header_says(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    ds = compressed(ramp(16), JPEG2000, bits=16)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    with pytest.raises(ImageError, match=found):
        read_dicom(save(ds, tmp_path / "a.dcm"))


def test_a_frame_too_short_for_its_pixels(tmp_path: Path) -> None:
    """Pillow would fill up what is missing with grey."""
    frame = bytearray(jpeg(smooth()))
    at = frame.index(b"\xff\xc0")
    frame[at + 5 : at + 9] = (2000).to_bytes(2, "big") * 2
    ds = with_frames(dicom(smooth(), bits=8, allocated=8), JPEGBaseline8Bit, [bytes(frame)])
    ds.Rows = ds.Columns = 2000
    with pytest.raises(ImageError, match="too short for 2000 x 2000"):
        read_dicom(save(ds, tmp_path / "a.dcm"))


def test_a_frame_larger_than_its_picture(tmp_path: Path) -> None:
    ds = dicom(smooth(), bits=8, allocated=8)
    ds = with_frames(ds, JPEGBaseline8Bit, [jpeg(smooth()) + bytes(1_100_000)])
    with pytest.raises(ImageError, match="larger than the picture"):
        read_dicom(save(ds, tmp_path / "a.dcm"))


def test_a_header_of_too_many_parts(tmp_path: Path) -> None:
    data = save(dicom(ramp(12)), tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    sequence = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 210_000
    path = tmp_path / "b.dcm"
    path.write_bytes(data[:start] + sequence + data[start:])
    with pytest.raises(ImageError, match="more than 200,000 parts"):
        read_dicom(path)


def test_a_frame_of_another_compression(tmp_path: Path) -> None:
    ds = with_frames(dicom(smooth(), bits=8, allocated=8), JPEG2000, [jpeg(smooth())])
    with pytest.raises(ImageError, match="is baseline compression"):
        read_dicom(save(ds, tmp_path / "a.dcm"))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_progressive_frame_is_read_too(tmp_path: Path, progressive: bool) -> None:
    data = jpeg(smooth(), progressive=progressive)
    ds = dicom(smooth(), bits=8, allocated=8, WindowCenter="128", WindowWidth="256")
    found = read_dicom(save(with_frames(ds, JPEGBaseline8Bit, [data]), tmp_path / "a.dcm")).pixels
    agree(found, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("value", [None, "wrong"])
def test_what_is_often_wrong_changes_nothing(tmp_path: Path, value: str | None) -> None:
    values = ramp(12)
    ds = dicom(values)
    if value:
        for keyword in ("PixelSpacing", "ImagerPixelSpacing", "BurnedInAnnotation", "Laterality"):
            ds[keyword] = pydicom.DataElement(keyword, "LO", value)
    picture = read_dicom(save(ds, tmp_path / "a.dcm"))
    agree(picture.pixels, min_max(values))
    assert set(picture.about) == {"photometric", "modality", "transfer_syntax", "grayscale"}


def test_only_what_is_needed_is_kept_of_a_header(tmp_path: Path) -> None:
    ds = dicom(ramp(12), ViewPosition="PA", **WINDOW)
    ds.add_new(0x00091010, "LO", SECRETS["PatientName"])
    path = save(ds, tmp_path / "a.dcm")
    with path.open("rb") as stream:
        kept = parse_dicom(path, stream).dataset
    assert "WindowCenter" in kept
    assert not set(SECRETS) & {element.keyword for element in kept}
    assert not [element for element in kept if element.tag.is_private]


# --- refusals ------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        read_picture(path)
    text = str(caught.value)
    assert str(path) in text
    for secret in SECRETS.values():
        assert secret not in text
    return caught.value.reason


@pytest.mark.parametrize("modality", ["OT", "CT", "MG", "US"])
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


SR_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.88.11": "annotation",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.34": "annotation",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.59": "annotation",  # Key Object Selection
    "1.2.840.10008.5.1.4.1.1.11.1": "annotation",  # Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.66.4": "annotation",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "annotation",  # RT Structure Set
    "1.2.840.10008.5.1.4.1.1.104.1": "not_an_image",  # Encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.9.1.1": "not_an_image",  # 12-lead ECG
    "1.2.840.10008.5.1.4.1.1.481.5": "not_an_image",  # RT Plan
    "1.2.840.10008.1.3.10": "not_an_image",  # Media Storage Directory
    "1.2.840.10008.5.1.4.1.1.2": "unsupported_modality",  # CT
    "1.2.840.10008.5.1.4.1.1.4": "unsupported_modality",  # MR
    "1.2.840.10008.5.1.4.1.1.481.1": "unsupported_modality",  # RT Image
}


@pytest.mark.parametrize(("storage", "reason"), SR_CLASSES.items())
@pytest.mark.parametrize("with_pixels", [False, True])
def test_objects_by_storage_class(
    tmp_path: Path, storage: str, reason: str, with_pixels: bool
) -> None:
    ds = dicom(ramp(12) if with_pixels else None, Modality=None, SOPClassUID=storage)
    assert refusal(save(ds, tmp_path / "a.dcm")) == reason
    # A class that says what it is outweighs a modality; a CT class with modality DX is a DX.
    ds.Modality = "DX"
    path = save(ds, tmp_path / "b.dcm")
    if reason != "unsupported_modality":
        assert refusal(path) == reason
    elif with_pixels:
        read_dicom(path)


@pytest.mark.parametrize(
    ("modality", "reason"),
    [
        *((modality, "annotation") for modality in ("SR", "SEG", "PR", "KO", "RTSTRUCT", "sr ")),
        *((modality, "not_an_image") for modality in ("DOC", "ECG", "AU", "RTPLAN", "RTDOSE")),
    ],
)
def test_objects_by_modality(tmp_path: Path, modality: str, reason: str) -> None:
    path = save(dicom(ramp(12), Modality=modality), tmp_path / "a.dcm")
    assert refusal(path) == reason
    with pytest.raises(Refused, match=f"modality {modality.strip().upper()}"):
        read_dicom(path)


@pytest.mark.parametrize(
    "tags",
    [
        {"Manufacturer": OWN_MANUFACTURER},
        {"Manufacturer": f" {OWN_MANUFACTURER.lower()} "},
        {"SeriesDescription": OWN_SERIES},
        {"SeriesDescription": f"{OWN_SERIES} - research use", "Modality": "OT"},
        {"Manufacturer": OWN_MANUFACTURER, "Modality": "SR"},
    ],
)
def test_own_results_are_never_read(tmp_path: Path, tags: dict[str, str]) -> None:
    assert refusal(save(dicom(ramp(12), **tags), tmp_path / "a.dcm")) == "own_result"


def test_others_are_not_taken_for_own_results(tmp_path: Path) -> None:
    ds = dicom(ramp(12), Manufacturer="Hilumina", SeriesDescription="Chest, left hilum")
    read_dicom(save(ds, tmp_path / "a.dcm"))


@pytest.mark.parametrize(
    "part",
    [
        *(
            "CHEST",
            "chest ",
            "CHEST PA",
            "Chest_AP",
            "CHEST/ABDOMEN",
            "THORAX",
            "TORAX",
            "THORACIC",
        ),
        *("LUNG", "LUNGS", "Cage thoracique", "KLATKA PIERSIOWA", "Klp", "HEART", "TORACE"),
        *("CHESTABDPELVIS", "PULMON", "T\u00f3rax AP", "R\u00f6ntgen Thorax"),
        *("", "UNKNOWN", "n/a", "Not specified", "X-Ray", None),
    ],
)
def test_body_parts_that_are_the_chest_or_say_nothing(tmp_path: Path, part: str | None) -> None:
    tags = {} if part is None else {"BodyPartExamined": part}
    read_dicom(save(dicom(ramp(12), **tags), tmp_path / "a.dcm"))


TOLD_PARTS = ("ABDOMEN", "HAND", "SKULL", "TSPINE", "BREAST", "SHOULDER", "PELVIS")


@pytest.mark.parametrize(
    "part",
    [
        *TOLD_PARTS,
        *("T SPINE", "THORACIC SPINE", "THORACOLUMBAR", "COLUMNA DORSAL", "KREGOSLUP"),
        *("GRABOWSKA", "PORTABLE"),
    ],
)
def test_other_body_parts(tmp_path: Path, part: str) -> None:
    path = save(dicom(ramp(12), BodyPartExamined=part), tmp_path / "a.dcm")
    assert refusal(path) == "body_part"
    with pytest.raises(Refused) as caught:
        read_dicom(path)
    # Known names are repeated, anything else could be a person's.
    assert (part in str(caught.value).removeprefix(str(path))) == (part in TOLD_PARTS)
    picture = read_dicom(path, allow={"body_part"})
    assert picture.about["body_part"] == "other"
    assert picture.about["allowed"] == ["body_part"]


def coded(value: str, meaning: str = "") -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, "SCT"
    if meaning:
        item.CodeMeaning = meaning
    return Sequence([item])


@pytest.mark.parametrize(
    ("tags", "body_part"),
    [
        ({"AnatomicRegionSequence": coded("51185008")}, "chest"),
        ({"AnatomicRegionSequence": coded("T-D3000", "whatever")}, "chest"),
        ({"AnatomicRegionSequence": coded("99", "Chest")}, "chest"),
        ({"AnatomicRegionSequence": coded("99")}, None),
        ({"AnatomicRegionSequence": coded("818981001", "Abdomen")}, "other"),
        ({"AnatomicRegionSequence": coded("R-FAB57", "Abdomen and Pelvis")}, "other"),
        ({"AnatomicRegionSequence": coded("R-FAB56")}, "chest"),
        ({"AnatomicRegionSequence": coded("122495006", "Thoracic spine")}, "other"),
        ({"AnatomicRegionSequence": Sequence([])}, None),
        # The one that says chest is believed.
        (
            {
                "BodyPartExamined": "CHEST",
                "AnatomicRegionSequence": coded("818981001", "Abdomen"),
            },
            "chest",
        ),
        (
            {"BodyPartExamined": "PORTABLE", "AnatomicRegionSequence": coded("51185008")},
            "chest",
        ),
    ],
)
def test_anatomic_region(tmp_path: Path, tags: dict[str, Any], body_part: str | None) -> None:
    path = save(dicom(ramp(12), **tags), tmp_path / "a.dcm")
    if body_part == "other":
        assert refusal(path) == "body_part"
    else:
        assert read_dicom(path).about.get("body_part") == body_part


@pytest.mark.parametrize(
    "tags",
    [
        *({"ViewPosition": view} for view in ("LL", "RL", "LATERAL", "Lat", "LEFT LATERAL", "ll ")),
        *({"ViewCodeSequence": coded(code)} for code in ("399067008", "R-10236", "399198007")),
    ],
)
def test_lateral_views(tmp_path: Path, tags: dict[str, Any]) -> None:
    path = save(dicom(ramp(12), **tags), tmp_path / "a.dcm")
    assert refusal(path) == "lateral"
    picture = read_dicom(path, allow=("lateral",))
    agree(picture.pixels, min_max(ramp(12)))
    assert picture.about["projection"] == "lateral"


@pytest.mark.parametrize("view", ["PA", "AP", "LLD", "RAO", "GRABOWSKA", ""])
def test_views_that_are_not_lateral(tmp_path: Path, view: str) -> None:
    read_dicom(save(dicom(ramp(12), ViewPosition=view), tmp_path / "a.dcm"))


ALLOWED = [
    ("own_result", {"Manufacturer": OWN_MANUFACTURER}),
    ("annotation", {"Modality": "PR"}),
    ("unsupported_modality", {"Modality": "OT"}),
    ("body_part", {"BodyPartExamined": "HAND"}),
    ("lateral", {"ViewPosition": "LL"}),
    ("multi_frame", {"NumberOfFrames": 2}),
    ("too_small", {"Rows": 40}),
    ("blank", {"PixelData": bytes(2 * ROWS * COLUMNS)}),
]


@pytest.mark.parametrize(("reason", "tags"), ALLOWED)
def test_each_refusal_can_be_set_aside_alone(
    tmp_path: Path, reason: str, tags: dict[str, Any]
) -> None:
    path = save(dicom(ramp(12), **tags), tmp_path / "a.dcm")
    others = {*REFUSALS, "out_of_distribution", "no_such_reason"} - {reason}
    with pytest.raises(Refused) as caught:
        read_dicom(path, allow=others)
    assert caught.value.reason == reason
    picture = read_dicom(path, allow={reason})
    assert picture.about["allowed"] == [reason]
    assert reason in REFUSALS


def test_two_refusals_are_set_aside_by_two_reasons(tmp_path: Path) -> None:
    ds = dicom(ramp(12), BodyPartExamined="HAND", ViewPosition="LL")
    path = save(ds, tmp_path / "a.dcm")
    for allow, reason in (((), "body_part"), (("body_part",), "lateral")):
        with pytest.raises(Refused) as caught:
            read_dicom(path, allow=allow)
        assert caught.value.reason == reason
    picture = read_dicom(path, allow=("body_part", "lateral"))
    assert picture.about["allowed"] == ["body_part", "lateral"]


@pytest.mark.parametrize("kind", ["native", "odd", "rle", "jpeg", "jpeg with table", "fragments"])
def test_the_first_of_several_frames(tmp_path: Path, kind: str) -> None:
    first, second = smooth(), 255 - smooth()
    if kind in ("native", "odd"):
        if kind == "odd":
            first, second = first[:71, :79], second[:71, :79]
        two = np.concatenate([first, second])
        ds = dicom(two, bits=8, allocated=8, Rows=len(first), NumberOfFrames=2)
        if two.size % 2:
            ds.PixelData += b"\0"
    elif kind == "rle":
        ds = dicom(first, bits=8, allocated=8)
        ds.compress(RLELossless, generate_instance_uid=False)
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        ds = with_frames(ds, RLELossless, [frame, frame[:70]])
    else:
        options = {"has_bot": kind == "jpeg with table"}
        if kind == "fragments":
            options["fragments_per_frame"] = 3
        ds = dicom(first, bits=8, allocated=8)
        with_frames(ds, JPEGBaseline8Bit, [jpeg(first), jpeg(second)], **options)
    ds.WindowCenter, ds.WindowWidth = "128", "256"
    path = save(ds, tmp_path / "a.dcm")
    assert refusal(path) == "multi_frame"
    found = read_dicom(path, allow={"multi_frame"}).pixels
    assert np.abs(found.astype(int) - first).max() <= 4


def test_floating_point_pixels(tmp_path: Path) -> None:
    ds = dicom(ramp(12), PixelData=None)
    ds.FloatPixelData = np.zeros((ROWS, COLUMNS), "<f4").tobytes()
    path = save(ds, tmp_path / "a.dcm")
    assert refusal(path) == "no_pixels"
    with pytest.raises(Refused, match="floating-point"):
        read_dicom(path)


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
        (JPEGLossless, 12, r"1\.2\.840\.10008\.1\.2\.4\.57.*hilum\[dicom\]"),
        (JPEGLosslessSV1, 12, r"1\.2\.840\.10008\.1\.2\.4\.70.*hilum\[dicom\]"),
        (JPEGLSLossless, 12, r"JPEG-LS Lossless.*hilum\[dicom\]"),
        (JPEGLSNearLossless, 12, r"JPEG-LS Lossy.*hilum\[dicom\]"),
        (JPEGExtended12Bit, 12, "12-bit JPEG"),
        (HTJ2K, 12, "installed; send it uncompressed"),
        ("1.2.840.10008.1.2.4.100", 12, "MPEG2.*installed; send it uncompressed"),
        ("1.2.3.4.999", 12, "unknown"),
    ],
)
def test_unsupported_transfer_syntax(
    tmp_path: Path, syntax: str, bits: int, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "available_plugins", property(lambda self: ("pillow",)))
    ds = with_frames(dicom(ramp(bits), bits=bits), syntax, [b"\xff\xd8\xff\xc3" + b"\0" * 400])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
    path = tmp_path / "a.dcm"
    path.write_bytes(stream.getvalue())
    with pytest.raises(Refused, match=cure) as caught:
        read_dicom(path)
    assert caught.value.reason == "unsupported_transfer_syntax"
    with pytest.raises(Refused):
        read_dicom(path, allow=REFUSALS)  # there is nothing to read


def test_blank_and_small(tmp_path: Path) -> None:
    assert refusal(save(dicom(np.full((80, 80), 7)), tmp_path / "a.dcm")) == "blank"
    assert refusal(save(dicom(ramp(12)[:, :63]), tmp_path / "b.dcm")) == "too_small"


# --- compressed frames ---------------------------------------------------------------------------


def with_marker(data: bytes, marker: int, body: bytes) -> bytes:
    """Put a marker behind the start of a JPEG."""
    segment = bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
    return data[:2] + segment + data[2:]


def test_headers_of_frames() -> None:
    header = read_frame_header(jpeg(smooth()))
    assert (header.process, header.columns, header.rows) == ("baseline", COLUMNS, ROWS)
    assert (header.components, header.precision) == (1, 8)
    assert read_frame_header(jpeg(smooth(), progressive=True)).process == "progressive"
    header = read_frame_header(encoded(ramp(16), JPEG2000, bits=16))
    assert (header.process, header.columns, header.rows) == ("JPEG 2000", COLUMNS, ROWS)
    assert (header.components, header.precision) == (1, 16)
    filled = jpeg(smooth())
    assert read_frame_header(filled[:2] + b"\xff\xff" + filled[2:]).process == "baseline"


GOOD = jpeg(smooth())
FRAME = b"\x08" + ROWS.to_bytes(2, "big") + COLUMNS.to_bytes(2, "big") + b"\x01\x01\x11\x00"
TOO_MANY_CODES = bytes([0, 3]) + bytes(15) + bytes(3)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "does not begin"),
        (b"\0" * 500, "does not begin"),
        (GOOD[:2], "ends, or turns"),
        (GOOD[:30], "longer than the frame|ends, or turns"),
        (GOOD[:2] + b"\0\0" + GOOD[2:], "ends, or turns"),
        (GOOD[:2] + b"\xff\xd9" + GOOD[2:], "out of place"),
        (with_marker(GOOD, 0xC0, FRAME), "two headers"),
        (with_marker(GOOD, 0xC0, FRAME[:-1]), "wrong length"),
        (with_marker(GOOD, 0xC0, FRAME[:-2] + b"\x91\0"), "sampling factors"),
        (with_marker(GOOD, 0xC0, FRAME[:5] + b"\2" + 2 * FRAME[6:]), "a component twice"),
        (with_marker(GOOD, 0xC4, TOO_MANY_CODES), "more codes than fit"),
        (with_marker(GOOD, 0xC4, TOO_MANY_CODES[:-1]), "cut short"),
        (with_marker(GOOD, 0xC4, b"\x47" + bytes(16)), "impossible number"),
        (with_marker(GOOD, 0xDA, b"\1\1\0\0\x3f\0"), "before its header"),
    ],
)
def test_frames_with_bad_markers(data: bytes, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        read_frame_header(data)


@pytest.mark.parametrize(
    ("at", "value", "found"),
    [
        (4, b"\0\x2a", "wrong length"),
        (8, b"\0\0\0\0", "no pixels"),
        (24, b"\0\0\0\0", "no pixels"),
        (24, b"\0\0\0\1\0\0\0\1", "more tiles|frame"),
        (43, b"\2", "differ in size"),
    ],
)
def test_jpeg_2000_frames_with_bad_headers(at: int, value: bytes, found: str) -> None:
    wide = np.zeros((256, 256), int)
    data = bytearray(encoded(wide, JPEG2000, bits=16))
    data[at : at + len(value)] = value
    with pytest.raises(ValueError, match=found):
        read_frame_header(bytes(data))


def rle(planes: list[bytes]) -> bytes:
    starts = np.cumsum([64, *map(len, planes)])[:-1]
    return np.array([len(planes), *starts, *[0] * (15 - len(planes))], "<u4").tobytes() + b"".join(
        planes
    )


def test_rle_is_undone_as_the_standard_says() -> None:
    # G.3.2: a literal run of three, a run of five, a no-operation, a run of two.
    plane = bytes([2, 10, 20, 30, 252, 7, 128, 255, 9])
    expected = np.array([10, 20, 30, 7, 7, 7, 7, 7, 9, 9])
    found = unpack_rle(rle([plane]), 2, 5, 1, 1)
    assert np.array_equal(found.ravel(), expected)
    found = unpack_rle(rle([plane, bytes([247, 1])]), 2, 5, 1, 2)
    assert np.array_equal(found.ravel(), expected * 256 + 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        rle([bytes([247, 1])])[:63],
        rle([bytes([248, 1])]),
        rle([bytes([247])]),
        rle([bytes([9, 1, 2, 3])]),
        rle([bytes([247, 1]), bytes([247, 1])]),
        rle([bytes([247, 1])]).replace(b"\x40\0\0\0", b"\x3f\0\0\0"),
        rle([bytes([247, 1])]).replace(b"\x40\0\0\0", b"\xff\0\0\0"),
    ],
)
def test_bad_rle(data: bytes) -> None:
    with pytest.raises(ValueError, match="RLE"):
        unpack_rle(data, 2, 5, 1, 1)


def test_rle_never_grows_beyond_the_picture() -> None:
    data = rle([bytes([129, 5]) * 100_000])  # 12.8 million bytes
    tracemalloc.start()
    found = unpack_rle(data, 64, 64, 1, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.size == 64 * 64
    assert peak < 1 << 20


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
    monkeypatch.setattr("engine.dicom_file._MAX_INFLATED_BYTES", 1 << 20)
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
    path = save(dicom(ramp(12), ViewPosition=position), tmp_path / "a.dcm")
    assert read_dicom(path, allow={"lateral"}).about["projection"] == projection


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


def test_the_download_of_pydicoms_test_files_is_loaded_by_who_wants_it() -> None:
    code = (
        "import sys\n"
        "from engine.dicom_file import load_pydicom\n"
        "load_pydicom()\n"
        "load_pydicom()\n"
        "print([m for m in ('ssl', 'http', 'tqdm', 'pydicom.data.download') if m in sys.modules])\n"
        "from pydicom.data import data_manager, get_testdata_file\n"
        "print(get_testdata_file('CT_small.dcm') is not None, type(data_manager.get_url_map()))\n"
        "import pydicom.data.download as download\n"
        "print(download.NoHashFound)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        "True <class 'dict'>",
        "<class 'pydicom.data.download.NoHashFound'>",
    ]
