"""From a DICOM file to the network's input: the naive chain, and what the program does instead.

python -m bench preprocess [--data FOLDER] [--rounds N] [--quick]
python -m pytest bench/bench_preprocess.py -s

The naive chain is what pydicom's and Pillow's manuals lead to: dcmread, pixel_array,
apply_modality_lut, apply_voi_lut, 8 bits by NumPy, inversion, resize. Both run on one thread, with
the file in the page cache, in turn. Beside the times stands the largest distance of our result from
the same steps in float64 without any rounding, in grey levels of 255.

The picture has 3000 x 3000 pixels: a phantom, or with ``--data`` a real X-ray enlarged to them.
Real X-rays as they are, JPEG or PNG, are compared with Pillow (open, grey, resize) too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian

from bench.stages import Findings, Setting, Stage, in_turn
from engine import jit, reduction
from engine.images import Preprocessing, preprocess, read_picture
from engine.phantoms import draw_phantom, write_dicom

SIDE = 3000
STAGE = Stage(
    name="preprocess",
    title="From a DICOM file to the network's input",
    asks=[
        f"{SIDE} x {SIDE} pixels of 16 bits, not compressed: at most 25 ms, at least 8 times as "
        "fast as the naive chain.",
        "Within 1 of 255 grey levels of float64 everywhere.",
    ],
    order=35,
)
RULES = Preprocessing(low_percentile=0.5, high_percentile=99.5)
STEP = 16
N_PICTURES = 60
OURS, NAIVE, PLAIN, READ = "ours", "naive chain", "ours, without numba", "ours, reading alone"


def deep_dicom(setting: Setting, side: int, path: Path) -> tuple[pydicom.Dataset, Path]:
    """Write one picture with 12 bits; return it with 16 bits, and where the first lies.

    The lower bits are noise, as in what a detector gives.
    """
    plain = write_dicom(draw_phantom(1, height=side, width=side), path)
    deep = pydicom.dcmread(plain)
    if setting.data is not None:
        deep.PixelData = setting.large(side).tobytes()
        deep.save_as(plain)
    noise = np.random.default_rng(0).integers(0, STEP, (side, side))
    values = (deep.pixel_array.astype(np.int64) * STEP + noise).astype(np.uint16)
    deep.BitsStored, deep.HighBit = 16, 15
    deep.WindowCenter, deep.WindowWidth = (
        float(v) * STEP for v in (deep.WindowCenter, deep.WindowWidth)
    )
    deep.RescaleSlope, deep.RescaleIntercept, deep.RescaleType = 1, 0, "US"
    deep.PixelData = values.tobytes()
    return deep, plain


def write_files(setting: Setting, folder: Path) -> dict[str, Path]:
    """Write one X-ray as detectors of several makers would."""
    deep, plain = deep_dicom(setting, setting.size(SIDE, 1000), folder / "12 bits.dcm")
    # Stored the other way round, to be inverted by both.
    deep.PhotometricInterpretation = "MONOCHROME1"
    values = deep.pixel_array
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

    small = shares(shades.shape[0], RULES.height) @ shades @ shares(shades.shape[1], RULES.width).T
    ordered = np.sort(small, axis=None)
    low = ordered[int(0.5 / 100 * small.size)]
    high = ordered[int(np.ceil(99.5 / 100 * small.size)) - 1]
    return (np.clip(small, low, high) - low) / (high - low) * 255


def simple(path: Path) -> NDArray[np.uint8]:
    """What Pillow's manual leads to for a JPEG or PNG."""
    with Image.open(path) as picture:
        grey = picture.convert("L")
    return np.asarray(grey.resize((RULES.width, RULES.height), Image.Resampling.BOX))


def works(path: Path) -> dict[str, Callable[[], object]]:
    def plain() -> NDArray[np.uint8]:
        # as a process without numba does it
        with mock.patch.object(reduction, "ready", lambda: False):
            return fused(path)

    if not np.array_equal(plain(), fused(path)):
        raise RuntimeError(f"{path.name}: with and without numba are not the same")
    return {
        OURS: lambda: fused(path),
        NAIVE: lambda: naive(path),
        PLAIN: plain,
        READ: lambda: read_picture(path),
    }


def distance(path: Path) -> float:
    """Return the largest distance from float64, grey levels of 255."""
    return float(np.abs(fused(path) - reference(path)).max())


def measure(setting: Setting) -> Findings:
    findings = Findings(setting)
    jit.load()
    findings.peer(NAIVE, version=f"pydicom {pydicom.__version__}, Pillow {PIL.__version__}",
                  how="one thread; BOX resize")  # fmt: skip
    found: dict[str, dict[str, list[float]]] = {}
    apart = {}
    side = setting.size(SIDE, 1000)
    for name, path in write_files(setting, setting.work).items():
        times = in_turn(works(path), rounds=setting.rounds)
        found[name] = {way: [1e3 * s for s in own] for way, own in times.items()}
        apart[name] = distance(path)
        deep = name.startswith("16")
        findings.ratio(
            f"naive chain / ours, {name}", times[OURS], times[NAIVE],
            asked=">= 8" if deep else "",
            note="the naive chain has no window to apply" if "no window" in name else "",
        )  # fmt: skip
        findings.figure(f"file to input, {name}", found[name][OURS], unit="ms",
                        asked="<= 25" if deep else "")  # fmt: skip
    findings.figure("largest distance from float64", max(apart.values()), asked="<= 1",
                    unit="of 255 grey levels")  # fmt: skip
    findings.table(
        f"DICOM of {side} x {side} pixels to {RULES.width} x {RULES.height}, ms",
        ["file", *(OURS, NAIVE, PLAIN, READ), "distance"],
        [[name, *times.values(), apart[name]] for name, times in found.items()],
    )  # fmt: skip
    findings.chart(
        f"DICOM of {side} x {side} pixels to the network's input", found,
        unit="ms, lower is better", ours=(OURS,), limit=("asked: 25 ms", 25.0),
    )  # fmt: skip
    if setting.data is not None:
        _as_they_are(setting, findings)
    return findings


def _as_they_are(setting: Setting, findings: Findings) -> None:
    """Compare with Pillow on real X-rays in the files in which they came."""
    paths = [path for path in setting.images() if path.suffix.lower() != ".dcm"]
    paths = paths[: setting.size(N_PICTURES, 4)]
    if not paths:
        findings.missing("Pillow on pictures as they are", "only DICOM files in the folder")
        return

    def every(work: Callable[[Path], object]) -> None:
        for path in paths:
            work(path)

    times = in_turn(
        {OURS: lambda: every(fused), "Pillow": lambda: every(simple)}, rounds=setting.rounds
    )
    findings.ratio("Pillow / ours, pictures as they are", times[OURS], times["Pillow"],
                   note="Pillow stretches no contrast and keeps no proportions")  # fmt: skip
    findings.table(
        f"{len(paths)} real X-rays as they are", ["", "ms a picture"],
        [[way, [1e3 * s / len(paths) for s in own]] for way, own in times.items()],
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(setting, tmp_path_factory.mktemp("preprocess"))


NAMES = ("12 bits", "16 bits", "16 bits, no window", "16 bits, padding", "16 bits, big endian")


@pytest.mark.parametrize("name", NAMES)
def test_preprocess(benchmark: Any, files: dict[str, Path], setting: Setting, name: str) -> None:
    jit.load()
    times = in_turn(works(files[name]), rounds=setting.rounds)
    apart = distance(files[name])
    shown = {way: 1e3 * float(np.median(own)) for way, own in times.items()}
    benchmark.extra_info |= {**shown, "ratio": shown[NAIVE] / shown[OURS], "apart": apart}
    print(f"\n{name}: {shown}, ms; {shown[NAIVE] / shown[OURS]:.1f} times; {apart:.3f} apart")
    assert apart <= 1
    benchmark.pedantic(fused, args=(files[name],), rounds=5)
