"""From a DICOM file to the network's input: the naive chain, and what the program does instead.

python -m pytest bench/bench_preprocess.py -s

The naive chain is what pydicom's and Pillow's manuals lead to: dcmread, pixel_array,
apply_modality_lut, apply_voi_lut, 8 bits by NumPy, inversion, resize. Both run on one thread, with
the file in the page cache, in turn; the best of each is printed, and the largest distance of the
result from the same steps in float64 without any rounding, in grey levels of 255.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian

from engine import jit, reduction
from engine.images import Preprocessing, preprocess, read_picture
from engine.phantoms import draw_phantom, write_dicom

SIDE = 3000
ROUNDS = 9
RULES = Preprocessing(low_percentile=0.5, high_percentile=99.5)
STEP = 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One synthetic X-ray, written as detectors of several makers would."""
    folder = tmp_path_factory.mktemp("preprocess")
    plain = write_dicom(draw_phantom(1, height=SIDE, width=SIDE), folder / "12 bits.dcm")
    deep = pydicom.dcmread(plain)
    noise = np.random.default_rng(0).integers(0, STEP, (SIDE, SIDE))
    values = (deep.pixel_array.astype(np.int64) * STEP + noise).astype(np.uint16)
    deep.BitsStored, deep.HighBit = 16, 15
    deep.WindowCenter, deep.WindowWidth = (
        float(v) * STEP for v in (deep.WindowCenter, deep.WindowWidth)
    )
    deep.RescaleSlope, deep.RescaleIntercept, deep.RescaleType = 1, 0, "US"
    deep.PhotometricInterpretation = "MONOCHROME1"
    deep.PixelData = values.tobytes()
    variants: dict[str, Any] = {"16 bits": deep}
    for name in ("16 bits, no window", "16 bits, padding", "16 bits, big endian"):
        variants[name] = copy.deepcopy(deep)
    del variants["16 bits, no window"].WindowCenter, variants["16 bits, no window"].WindowWidth
    variants["16 bits, padding"].add_new("PixelPaddingValue", "US", int(values.max()) - 1)
    swapped = variants["16 bits, big endian"]
    swapped.PixelData = values.byteswap().tobytes()
    swapped.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    paths = {"12 bits": plain}
    for name, dataset in variants.items():
        paths[name] = folder / f"{name}.dcm"
        big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
        pydicom.dcmwrite(paths[name], dataset, implicit_vr=False, little_endian=not big)
    return paths


def naive(path: Path) -> NDArray[np.uint8]:
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset)
    values = apply_voi_lut(values, dataset).astype(np.float64)
    low, high = values.min(), values.max()
    pixels = ((values - low) / (high - low) * 255).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 255 - pixels
    small = Image.fromarray(pixels).resize((RULES.width, RULES.height), Image.Resampling.BOX)
    return np.asarray(small)


def fused(path: Path) -> NDArray[np.uint8]:
    return preprocess(read_picture(path), RULES)[0]


def reference(path: Path) -> NDArray[np.float64]:
    """The documented steps in float64: window, polarity, area average, percentiles."""
    dataset = pydicom.dcmread(path)
    values = dataset.pixel_array.astype(np.float64)
    low, high = values.min(), values.max()
    if "WindowWidth" in dataset:
        center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    shades = np.clip((values - low) / (high - low), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shades = 1 - shades
    if "PixelPaddingValue" in dataset:
        shades[values == dataset.PixelPaddingValue] = 0

    def shares(n_in: int, n_out: int) -> NDArray[np.float64]:
        edges = np.arange(n_out + 1) * (n_in / n_out)
        places = np.arange(n_in)
        return np.clip(
            np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places), 0, None
        ) / (n_in / n_out)

    small = shares(SIDE, RULES.height) @ shades @ shares(SIDE, RULES.width).T
    ordered = np.sort(small, axis=None)
    low = ordered[int(0.5 / 100 * small.size)]
    high = ordered[int(np.ceil(99.5 / 100 * small.size)) - 1]
    return (np.clip(small, low, high) - low) / (high - low) * 255


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_preprocess(benchmark: Any, files: dict[str, Path], monkeypatch: Any) -> None:
    jit.load()
    print(f"\n{SIDE} x {SIDE} to {RULES.width} x {RULES.height}, ms, best of {ROUNDS}:")
    print(f"{'':22}{'naive':>8}{'fused':>8}{'ratio':>8}{'plain':>8}{'read':>8}{'apart':>8}")
    for name, path in files.items():
        best = dict.fromkeys(("naive", "fused", "plain", "read"), 1e9)
        assert np.array_equal(fused(path), fused(path))
        for _ in range(ROUNDS):
            best["naive"] = min(best["naive"], seconds(lambda: naive(path)))  # noqa: B023
            best["read"] = min(best["read"], seconds(lambda: read_picture(path)))  # noqa: B023
            best["fused"] = min(best["fused"], seconds(lambda: fused(path)))  # noqa: B023
            with monkeypatch.context() as patched:  # as a process without numba does it
                patched.setattr(reduction, "ready", lambda: False)
                best["plain"] = min(best["plain"], seconds(lambda: fused(path)))  # noqa: B023
                same = fused(path)
        assert np.array_equal(same, fused(path))
        apart = float(np.abs(fused(path) - reference(path)).max())
        ratio = best["naive"] / best["fused"]
        shown = {key: 1e3 * value for key, value in best.items()}
        benchmark.extra_info[name] = {**shown, "ratio": ratio, "apart": apart}
        print(
            f"{name:22}{shown['naive']:8.1f}{shown['fused']:8.1f}{ratio:8.1f}"
            f"{shown['plain']:8.1f}{shown['read']:8.1f}{apart:8.3f}"
        )
        assert apart <= 1
    benchmark.pedantic(fused, args=(files["16 bits"],), rounds=5)
