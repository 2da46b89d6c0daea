"""DICOM files made from nothing, and the standard's formulas in plain Python."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that are wrong on purpose
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


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def smooth() -> np.ndarray:
    y, x = np.mgrid[:ROWS, :COLUMNS]
    return (60 + 50 * np.sin(x / 9.0) + y).astype(np.uint8)


# GDCM's encoder is for a process of its own: its Python objects let go of each other too early.
_ENCODE_WITH_GDCM = """
import sys
import gdcm
for line in sys.stdin:
    name, source, target = line.split()
    reader = gdcm.ImageReader()
    reader.SetFileName(source)
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(target)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
"""
_GDCM_NAMES = {
    JPEGLossless: "JPEGLosslessProcess14",
    JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    JPEG2000: "JPEG2000Lossless",
    JPEG2000Lossless: "JPEG2000Lossless",
}


def encode_with_gdcm(
    pictures: dict[Any, tuple[np.ndarray, str, int, bool]], folder: Path
) -> dict[Any, bytes]:
    """Make a frame of each (values, transfer syntax, bits, signed)."""
    lines = []
    for number, (values, syntax, bits, signed) in enumerate(pictures.values()):
        ds = dicom(values, bits=bits, allocated=8 if bits <= 8 else 16, signed=signed)
        source = save(ds, folder / f"{number}.dcm")
        lines.append(f"{_GDCM_NAMES[syntax]} {source} {folder / f'{number}.out'}")
    command = [sys.executable, "-c", _ENCODE_WITH_GDCM]
    subprocess.run(command, input="\n".join(lines), text=True, check=True)
    return {
        key: next(
            generate_frames(pydicom.dcmread(folder / f"{number}.out").PixelData, number_of_frames=1)
        )
        for number, key in enumerate(pictures)
    }


def encoded(values: np.ndarray, syntax: str, *, bits: int) -> bytes:
    """Make a frame with Pillow, or pyjpegls, an ImportError where that is missing."""
    words = (values & ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    if syntax in (JPEGLSLossless, JPEGLSNearLossless):
        import jpeg_ls

        error = 2 if syntax == JPEGLSNearLossless else 0
        return bytes(jpeg_ls.encode_array(words, lossy_error=error))
    stream = io.BytesIO()
    Image.fromarray(words).save(stream, "JPEG2000", no_jp2=True)
    return stream.getvalue()


def compressed(
    values: np.ndarray, syntax: str, *, bits: int, signed: bool = False, **tags: Any
) -> FileDataset:
    """A file of one such frame."""
    ds = dicom(values, bits=bits, allocated=8 if bits <= 8 else 16, signed=signed, **tags)
    return with_frames(ds, syntax, [encoded(values, syntax, bits=bits)])


def with_frames(ds: FileDataset, syntax: str, frames: list[bytes], **options: Any) -> FileDataset:
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(frames, **options)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds
