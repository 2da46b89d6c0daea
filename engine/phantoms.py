"""How to draw a chest X-ray of nobody: synthetic, marked as such, the same for a seed.

The picture is added up as a radiograph is: thickness of soft tissue, less the air of the lungs,
plus the bone in the beam, as a display's characteristic curve shows it. It is good enough to try
every step from a file to an answer, on PNG and on DICOM, without a patient; it is no model of any
disease, and an answer to it means nothing. What is no frontal chest X-ray is drawn the same way, to
see whether it is refused.
"""

from __future__ import annotations

import io
import itertools
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import formats

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "FINDINGS",
    "MARK",
    "STRANGERS",
    "Phantom",
    "draw_phantom",
    "draw_stranger",
    "write_dicom",
    "write_png",
]

FINDINGS = ("none", "lobar", "diffuse")
"""What may be drawn into the lungs: nothing, one dense lobe, or streaks and haze on both sides."""

STRANGERS = ("lateral", "hand", "page")
"""What may be drawn instead of a frontal chest: one from the side, a hand, a page of text."""

MARK = "SYNTHETIC"
"""Burned into every picture and said by every header, so that nobody takes it for a patient."""

PHOTOMETRICS = ("MONOCHROME1", "MONOCHROME2")

WHITE = 3001
"""The brightest grey level; odd, so that none lies halfway between two of 256."""

BITS_STORED = 12
# The DICOM files do not fill their 12 bits, like those of real detectors: a reader that ignores
# the window gets a flat grey picture, and a test sees it. They hold the 256 levels of the PNG, so
# that both are one and the same input of a network, to the last bit.
DICOM_BLACK = 400
DICOM_STEP = 12

# Storage class of digital radiographs for presentation, PS3.4 section B.5.
_DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic picture.

    Parameters
    ----------
    pixels : ndarray, uint16, shape (h, w)
        Grey levels from 0 to :data:`WHITE`, larger is brighter, air is black; read-only.
    seed : int
        What it was drawn from.
    finding : str
        One of :data:`FINDINGS`, or of :data:`STRANGERS`.
    mark_box : tuple of int
        Left, top, right, bottom of the burned-in :data:`MARK`, pixels.
    """

    pixels: NDArray[np.uint16]
    seed: int
    finding: str
    mark_box: tuple[int, int, int, int]

    def to_8_bits(self) -> NDArray[np.uint8]:
        """Give the picture in 256 grey levels, rounded to the nearest.

        Returns
        -------
        ndarray, uint8, shape (h, w)
            0 to 255 for 0 to :data:`WHITE`.
        """
        return ((self.pixels.astype(np.uint32) * 510 + WHITE) // (2 * WHITE)).astype(np.uint8)


def draw_phantom(
    seed: int, finding: str = "none", *, height: int = 640, width: int = 800
) -> Phantom:
    """Draw a synthetic chest X-ray.

    Parameters
    ----------
    seed : int
        Not negative. Build, position, exposure, vessels and noise follow from it; the same seed
        gives the same pixels with the same NumPy and Pillow.
    finding : {"none", "lobar", "diffuse"}
        What the lungs show.
    height, width : int
        Size, pixels; at least 128 each.

    Returns
    -------
    Phantom
        With :data:`MARK` burned in.

    Raises
    ------
    ValueError
        A finding or size outside these choices.
    """
    _check(finding, FINDINGS, "finding", height, width)
    # The finding is drawn from a stream of its own: one seed, one child, whatever the lungs show.
    rng = np.random.default_rng([seed, 0])
    build = _Build.draw(rng)
    plane = _Plane.place(rng, height, width)
    fluence = _attenuation(plane, build, rng, finding, np.random.default_rng([seed, 1]))
    shown = _expose(plane, fluence, rng)
    return _marked(shown, plane, seed, finding)


def draw_stranger(seed: int, kind: str, *, height: int = 640, width: int = 640) -> Phantom:
    """Draw what a head for frontal chest X-rays should refuse.

    Parameters
    ----------
    seed : int
        Not negative; as for :func:`draw_phantom`.
    kind : {"lateral", "hand", "page"}
        A chest from the side, a hand, a page of text.
    height, width : int
        Size, pixels; at least 128 each.

    Returns
    -------
    Phantom
        With :data:`MARK` burned in, `kind` as its finding.

    Raises
    ------
    ValueError
        A kind or size outside these choices.
    """
    _check(kind, STRANGERS, "kind", height, width)
    rng = np.random.default_rng([seed, 2 + STRANGERS.index(kind)])
    plane = _Plane.place(rng, height, width)
    if kind == "page":
        shown = _page(plane, rng)
    else:
        shown = _expose(plane, (_lateral if kind == "lateral" else _hand)(plane, rng), rng)
    return _marked(shown, plane, seed, kind)


def _check(chosen: str, choices: Sequence[str], what: str, height: int, width: int) -> None:
    if chosen not in choices:
        raise ValueError(f"{what} is {chosen!r}, expected one of {', '.join(choices)}")
    if min(height, width) < 128:
        raise ValueError(f"size is {width} x {height} pixels, expected at least 128 x 128")


def _marked(shown: NDArray[np.float64], plane: _Plane, seed: int, finding: str) -> Phantom:
    mark_box = _burn_in(shown, plane)
    pixels = np.floor(np.clip(shown, 0.0, 1.0) * WHITE + 0.5).astype(np.uint16)
    pixels.setflags(write=False)
    return Phantom(pixels, seed, finding, mark_box)


def write_png(phantom: Phantom, path: str | Path) -> Path:
    """Write a phantom as 8-bit grayscale PNG that calls itself synthetic in its text chunk.

    Parameters
    ----------
    phantom : Phantom
        What to write.
    path : str or Path
        Where to; replaced whole or not at all.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    WriteError
        The folder cannot be written to.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Comment", _comment(phantom))
    data = io.BytesIO()
    Image.fromarray(phantom.to_8_bits()).save(data, "PNG", pnginfo=text)
    return formats.atomic_write(path, data.getvalue())


def write_dicom(phantom: Phantom, path: str | Path, *, photometric: str = "MONOCHROME2") -> Path:
    """Write a phantom as digital X-ray image for presentation (PS3.3 section A.26), 12 bits.

    It shows the grey levels that :func:`write_png` writes, and gives the same input of a network.
    Name, identifier, description and comments say that it is synthetic; there is no date, place
    or device. UIDs follow from seed, finding, size and polarity, so that writing twice gives the
    same bytes and two pictures never share one.

    Parameters
    ----------
    phantom : Phantom
        What to write.
    path : str or Path
        Where to; replaced whole or not at all.
    photometric : {"MONOCHROME2", "MONOCHROME1"}
        Whether the smallest stored value is black, or white.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ValueError
        Another photometric interpretation, or no frontal chest: the header says that it is one.
    WriteError
        The folder cannot be written to.
    """
    import pydicom

    if photometric not in PHOTOMETRICS:
        raise ValueError(
            f"photometric is {photometric!r}, expected one of {', '.join(PHOTOMETRICS)}"
        )
    _check(phantom.finding, FINDINGS, "finding", *phantom.pixels.shape)
    data = io.BytesIO()
    pydicom.dcmwrite(data, _dataset(phantom, photometric), enforce_file_format=True)
    return formats.atomic_write(path, data.getvalue())


def _comment(phantom: Phantom) -> str:
    return (
        f"Synthetic phantom drawn by Hilum, seed {phantom.seed}, {phantom.finding}: "
        "not a patient, not for clinical use"
    )


def _dataset(phantom: Phantom, photometric: str) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    def code(value: str, meaning: str) -> Dataset:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
        return item

    def uid(level: str) -> UID:
        # 2.25 and a UUID needs no registered root (PS3.5 section B.2). pydicom's generate_uid
        # would draw it at random.
        facts = ["hilum phantom", level, str(phantom.seed), phantom.finding]
        if level == "image":
            facts += [photometric, f"{columns}x{rows}"]
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(facts)).int}")

    rows, columns = phantom.pixels.shape
    shades = phantom.to_8_bits().astype(np.uint16)
    if photometric == "MONOCHROME1":
        # Counted from the other end, as an exposed film is blackened.
        shades = 255 - shades
    stored = DICOM_BLACK + DICOM_STEP * shades

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(_DX_FOR_PRESENTATION)
    dataset.file_meta.MediaStorageSOPInstanceUID = uid("image")
    dataset.file_meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SOPClassUID = UID(_DX_FOR_PRESENTATION)
    dataset.SOPInstanceUID = uid("image")
    dataset.StudyDate = ""
    dataset.StudyTime = ""
    dataset.AccessionNumber = ""
    dataset.Modality = "DX"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer = "Hilum (synthetic)"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = f"{MARK} phantom, not a patient"
    dataset.SeriesDescription = f"{MARK} chest, {phantom.finding}"
    dataset.PatientName = f"{MARK}^PHANTOM"
    dataset.PatientID = MARK
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.BodyPartExamined = "CHEST"
    dataset.DetectorType = ""
    dataset.ImagerPixelSpacing = [0.4, 0.4]
    dataset.ViewPosition = "AP"
    dataset.StudyInstanceUID = uid("study")
    dataset.SeriesInstanceUID = uid("series")
    dataset.StudyID = ""
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImageLaterality = "U"
    dataset.ImageComments = _comment(phantom)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Rows = rows
    dataset.Columns = columns
    dataset.BitsAllocated = 16
    dataset.BitsStored = BITS_STORED
    dataset.HighBit = BITS_STORED - 1
    dataset.PixelRepresentation = 0
    dataset.AcquisitionContextSequence = []
    dataset.AnatomicRegionSequence = [code("51185008", "Thorax")]
    view = code("399348003", "antero-posterior")
    view.ViewModifierCodeSequence = []
    dataset.ViewCodeSequence = [view]
    dataset.BurnedInAnnotation = "YES"
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if photometric == "MONOCHROME1" else -1
    # LINEAR (PS3.3 section C.11.2.1.2.1): from center - width / 2 to center + width / 2 - 1.
    dataset.WindowCenter = DICOM_BLACK + (DICOM_STEP * 255 + 1) / 2
    dataset.WindowWidth = DICOM_STEP * 255 + 1
    dataset.RescaleIntercept = 0
    dataset.RescaleSlope = 1
    dataset.RescaleType = "US"
    dataset.PresentationLUTShape = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    dataset.LossyImageCompression = "00"
    dataset.PixelData = stored.astype("<u2").tobytes()
    return dataset


# --- the drawing ---------------------------------------------------------------------------------
#
# Lengths are in heights of the picture: u from the middle to the right, v from the top down. As a
# radiograph is looked at, the patient's right is at the left. Thicknesses are in depths of the
# chest: 1 is the whole trunk.


@dataclass(frozen=True)
class _Build:
    """The child a seed stands for."""

    cage: float  # half width of the rib cage at its widest
    base: float  # v at which it is widest
    apex: float  # v of the lungs' upper end
    dome_right: float  # v of the diaphragm's domes
    dome_left: float
    heart: float  # scale of the heart
    rib_step: float  # v from one rib to the next
    rib_slope: float  # v from a rib's spine to its front end
    arm_lift: float  # v by which the upper arms rise outwards
    stomach: float  # radius of the air in the stomach, 0 for none
    sides: NDArray[np.float64] = field(repr=False)  # small differences of left and right

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Build:
        def between(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        right = between(0.72, 0.79)
        return cls(
            cage=between(0.375, 0.43),
            base=between(0.74, 0.82),
            apex=between(0.10, 0.15),
            dome_right=right,
            dome_left=right + between(0.015, 0.045),
            heart=between(0.92, 1.10),
            rib_step=between(0.068, 0.078),
            rib_slope=between(0.10, 0.17),
            arm_lift=between(-0.10, 0.14),
            stomach=between(0.05, 0.09) if rng.random() < 0.6 else 0.0,
            sides=rng.normal(0.0, 1.0, (2, 16)),
        )

    def half_width(self, v: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Half width of the rib cage at a height."""
        above = np.clip((self.base - np.asarray(v)) / (self.base - self.apex), 0.0, 1.0)
        below = np.clip((np.asarray(v) - self.base) / 0.5, 0.0, 1.0)
        return self.cage * ((1.0 - above**2.3) ** 0.56 - 0.12 * below**2)


@dataclass(frozen=True)
class _Plane:
    """The picture's pixels in lengths of the drawing."""

    u: NDArray[np.float64]  # (1, w)
    v: NDArray[np.float64]  # (h, 1)
    scale: float  # pixels a length
    left: float  # pixel of u = 0
    top: float  # pixel of v = 0

    @classmethod
    def place(cls, rng: np.random.Generator, height: int, width: int) -> _Plane:
        scale = float(min(height, width / 1.1) * rng.uniform(0.95, 1.04))
        left = width / 2 + rng.uniform(-0.03, 0.03) * height
        top = (height - scale) / 2 + rng.uniform(-0.02, 0.02) * height
        u = (np.arange(width, dtype=np.float64)[np.newaxis] + 0.5 - left) / scale
        v = (np.arange(height, dtype=np.float64)[:, np.newaxis] + 0.5 - top) / scale
        return cls(u, v, scale, float(left), float(top))

    @property
    def shape(self) -> tuple[int, int]:
        return self.v.shape[0], self.u.shape[1]


def _attenuation(
    plane: _Plane,
    build: _Build,
    rng: np.random.Generator,
    finding: str,
    finding_rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Add up what the beam meets, float64 (h, w)."""
    u, v = plane.u, plane.v
    body = _soft_tissue(plane, build)
    air = _lung_air(plane, build)
    heart = _heart_share(plane, build)
    air = air * (1.0 - 0.86 * heart)
    texture = _clouds(rng, plane, 0.016, 0.10)
    bright = _vessels(plane, rng, 1.0)
    if finding == "lobar":
        air = air * (1.0 - 0.80 * _consolidation(plane, finding_rng))
    elif finding == "diffuse":
        haze = _clouds(finding_rng, plane, 0.03, 0.20)
        air = air * np.clip(0.80 - 0.09 * haze, 0.35, 1.0)
        bright = bright + 0.8 * _vessels(plane, finding_rng, 1.6)
        texture = texture + 1.0 * _clouds(finding_rng, plane, 0.022, 0.08)
    inside = np.clip(air / 0.5, 0.0, 1.0)
    total = body - 0.68 * air * (1.0 + 0.025 * texture)
    total += inside * 0.17 * (1.0 - np.exp(-bright))
    total += _skeleton(plane, build)
    # Windpipe and its two branches: air in the middle shadow.
    pipe = np.zeros(plane.shape)
    _add_tube(pipe, plane, [(0.0, -0.1), (0.004, 0.12), (-0.008, 0.30)], 0.020, 1.0)
    for end in ((-0.065, 0.385), (0.075, 0.395)):
        _add_tube(pipe, plane, [(-0.008, 0.295), end], 0.013, 0.7)
    total -= 0.10 * _blur(np.minimum(pipe, 1.0), 0.004 * plane.scale)
    if build.stomach:
        spot = np.hypot((u - 0.17) / 1.5, v - build.dome_left - 0.05 - build.stomach)
        bubble = _step((build.stomach - spot) / 0.014)
        total -= 0.17 * bubble * _step((v - build.dome_left - 0.035) / 0.01)
    # Soft tissue is not even either.
    total += np.clip(body, 0.0, 1.0) * 0.018 * _clouds(rng, plane, 0.03, 0.3)
    return total


def _soft_tissue(plane: _Plane, build: _Build) -> NDArray[np.float64]:
    u, v = plane.u, plane.v
    half = build.half_width(np.maximum(v, 0.45)) + 0.055 + 0.03 * np.exp(-(((v - 0.3) / 0.16) ** 2))
    trunk = _chord(u / half, 2.4) * (0.62 + 0.38 * _smooth(0.05, 0.55, v))
    trunk = trunk * _smooth(-0.02, 0.10, v + 0.10 * np.abs(u))
    neck = 0.80 * _chord(u / 0.135, 2.0) * _smooth(0.26, 0.06, v)
    body = np.maximum(trunk, neck)
    for side in (-1.0, 1.0):
        arm = [(side * 0.36, 0.13), (side * 0.86, 0.10 - build.arm_lift)]
        slope = [(side * 0.06, -0.02), (side * 0.34, 0.13)]
        for line, radius, thick in ((arm, 0.095, 0.55), (slope, 0.10, 0.62)):
            limb = np.zeros(plane.shape)
            _add_tube(limb, plane, line, radius, thick)
            body = np.maximum(body, limb)
    body = body + 0.10 * _step((v - _dome(plane, build)) / 0.02) * _chord(u / half, 2.4)
    # The middle holds spine, great vessels and gullet.
    body = body + 0.05 * np.exp(-((u / 0.09) ** 2)) + 0.07 * np.exp(-((u / 0.05) ** 4))
    return _blur(body, 0.010 * plane.scale)


def _dome(plane: _Plane, build: _Build) -> NDArray[np.float64]:
    """Height v of the diaphragm over u, shape (1, w)."""
    u = plane.u
    right = build.dome_right + 1.25 * np.abs(-u - 0.16) ** 1.9
    left = build.dome_left + 1.30 * np.abs(u - 0.18) ** 1.9
    blend = _smooth(-0.04, 0.04, u)
    return right * (1.0 - blend) + left * blend


def _lung_air(plane: _Plane, build: _Build) -> NDArray[np.float64]:
    """Depth of air in the beam, 0 to 1, as if there were no heart."""
    u, v = plane.u, plane.v
    half = build.half_width(v) - 0.004
    inside = np.clip(1.0 - (np.abs(u) / np.maximum(half, 1e-6)) ** 2, 0.0, 1.0) ** 0.42
    inside = np.where(v > build.apex, inside, 0.0)
    dome = _dome(plane, build)
    # The lung goes on behind the dome, thinner and thinner.
    above = 0.88 * _step((dome - v) / 0.0045) + 0.12 * _step((dome + 0.10 - v) / 0.03)
    thick = 0.62 + 0.38 * _smooth(build.apex, build.apex + 0.42, v)
    middle = 0.050 + 0.012 * _smooth(0.2, 0.5, v)
    medial = _step((np.abs(u + 0.004) - middle) / 0.006)
    return _blur(inside * above * thick * medial, 0.0035 * plane.scale)


def _heart_share(plane: _Plane, build: _Build) -> NDArray[np.float64]:
    """Share of the lung's depth the heart and the great vessels take, 0 to 1."""
    u, v = plane.u, plane.v
    size = build.heart
    # Chambers, then the knob of the aorta and the trunk of the lung artery.
    parts = (
        (0.070, 0.600, 0.185 * size, 0.122 * size, 0.66, 1.0),
        (-0.035, 0.600, 0.080 * size, 0.145 * size, 0.15, 0.95),
        (0.022, 0.445, 0.078 * size, 0.120 * size, 0.35, 0.95),
        (0.052, 0.315, 0.036, 0.040, 0.0, 0.85),
        (-0.030, 0.330, 0.034, 0.110, -0.05, 0.70),
    )
    share = np.zeros(plane.shape)
    for left, top, long, short, angle, weight in parts:
        across, down = u - left, v - top - (build.dome_right - 0.76) * 0.8
        along = (across * math.cos(angle) + down * math.sin(angle)) / long
        aside = (down * math.cos(angle) - across * math.sin(angle)) / short
        depth = np.clip(1.0 - along**2 - aside**2, 0.0, 1.0)
        share = np.maximum(share, weight * np.clip(1.25 * depth**0.38, 0.0, 1.0))
    return _blur(share, 0.0050 * plane.scale)


def _skeleton(plane: _Plane, build: _Build) -> NDArray[np.float64]:
    total = np.zeros(plane.shape)
    for side_index, side in enumerate((-1.0, 1.0)):
        for number in range(11):
            wobble = build.sides[side_index, number]
            start = build.apex - 0.015 + build.rib_step * number + 0.002 * wobble
            _rib(total, plane, build, side, start, number)
        _collar_and_arm(total, plane, build, side)
    _add_spine(total, plane, build)
    return _blur(total, 0.0016 * plane.scale)


def _rib(
    total: NDArray[np.float64], plane: _Plane, build: _Build, side: float, start: float, number: int
) -> None:
    # A tilted ring seen from the front: 0 at the spine, pi/2 at the side, then forward; the front
    # end of cartilage casts no shadow.
    slope = build.rib_slope * (0.55 + 0.05 * number)
    end = 0.58 + 0.26 * min(1.0, number / 4)
    reach = build.half_width(start + 0.55 * slope) + 0.006
    if reach < 0.10:
        return
    for first, last, radius, weight in ((0.01, 0.57, 0.0138, 1.0), (0.43, end, 0.0150, 0.60)):
        turn = np.linspace(first, last, 36)
        across = side * (0.032 + (reach - 0.032) * np.sin(np.pi * turn) ** 0.85)
        down = slope * (1.0 - np.cos(np.pi * turn)) / 2 - 0.017 * np.sin(2.0 * np.pi * turn)
        # Where the ring turns, the beam runs along the bone; there one half passes into the other.
        along = 1.0 / np.sqrt(np.cos(np.pi * turn) ** 2 + 0.25)
        if weight == 1.0:
            fade = np.clip((0.57 - turn) / 0.14, 0.0, 1.0)
        else:
            fade = np.clip(np.minimum((turn - 0.43) / 0.14, (end - turn) / 0.12), 0.0, 1.0)
        points = list(zip(across.tolist(), (start + down).tolist(), strict=True))
        _add_tube(total, plane, points, radius, 0.135 * weight * along * fade, hollow=0.74)


def _collar_and_arm(total: NDArray[np.float64], plane: _Plane, build: _Build, side: float) -> None:
    head = (0.415, 0.025)
    for line, radius, strength, hollow in (
        # Collar bone, a stretched S.
        (_bent([(0.045, 0.038), (0.12, 0.004), (0.24, -0.03), (0.345, -0.036)]), 0.014, 0.13, 0.66),
        # Shoulder blade: its edge beside the rib cage, and its spine.
        (_bent([(0.285, 0.05), (0.345, 0.14), (0.375, 0.26), (0.355, 0.35)]), 0.010, 0.05, 0.5),
        (_bent([(0.22, 0.06), (0.30, 0.03), (0.37, -0.005)]), 0.012, 0.04, 0.5),
        ([head, (0.425, 0.024)], 0.036, 0.11, 0.35),
        ([(0.43, 0.023), (0.86, -0.01 - build.arm_lift)], 0.022, 0.16, 0.68),
    ):
        points = [(side * across, build.apex + down) for across, down in line]
        _add_tube(total, plane, points, radius, strength, hollow=hollow)


def _bent(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Round the corners of a line, keeping its ends (Chaikin 1974)."""
    line = np.asarray(corners)
    for _ in range(3):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        between = np.stack([near, far], axis=1).reshape(-1, 2)
        line = np.concatenate([line[:1], between, line[-1:]])
    return [(across, down) for across, down in line.tolist()]


def _add_spine(total: NDArray[np.float64], plane: _Plane, build: _Build) -> None:
    step = build.rib_step * 0.94
    columns = np.flatnonzero(np.abs(plane.u[0]) < 0.09)
    for number in range(-3, 15):
        middle = build.apex + 0.012 + step * number
        rows = np.flatnonzero(np.abs(plane.v[:, 0] - middle) < 0.8 * step)
        if not (len(rows) and len(columns)):
            continue
        here = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        u = plane.u[:, here[1]] - 0.005 * build.sides[0, 12] * math.sin(math.pi * middle)
        v = plane.v[here[0]] - middle
        half = 0.034 + 0.0012 * number
        # Bodies have a waist, bright end plates and gaps of disc between them.
        height = 0.40 * step
        waist = half - 0.006 * (1.0 - np.clip(np.abs(v) / height, 0.0, 1.0) ** 2)
        box = _step((waist - np.abs(u)) / 0.004) * _step((height - np.abs(v)) / 0.003)
        plate = np.exp(-(((np.abs(v) - height + 0.004) / 0.004) ** 2))
        bone = box * (0.060 + 0.035 * plate)
        for side in (-1.0, 1.0):
            ring = np.hypot((u - side * 0.62 * half) / 0.75, v + 0.006) / 0.0105
            bone += 0.045 * np.exp(-(((ring - 1.0) / 0.35) ** 2))
        process = np.hypot(u / 0.55, v - 0.012) / 0.012
        total[here] += bone + 0.035 * np.exp(-(process**4))


def _vessels(plane: _Plane, rng: np.random.Generator, crowding: float) -> NDArray[np.float64]:
    """Branching vessels from both roots of the lungs, thinner with every fork."""
    total = np.zeros(plane.shape)
    for side, root in ((-1.0, (-0.095, 0.44)), (1.0, (0.115, 0.43))):
        n_stems = round(9 * crowding)
        for number in range(n_stems):
            angle = -1.35 + 2.75 * (number + rng.uniform(0.2, 0.8)) / n_stems
            left, top = root[0] + rng.normal(0.0, 0.012), root[1] + rng.normal(0.0, 0.030)
            waiting = [(left, top, angle, 0.0080 * rng.uniform(0.7, 1.15), 0)]
            while waiting:
                left, top, angle, radius, depth = waiting.pop()
                length = 0.085 * 0.84**depth * rng.uniform(0.8, 1.25)
                bend = rng.normal(0.0, 0.12)
                points = [(left, top)]
                for part in (0.5, 1.0):
                    turned = angle + bend * part
                    points.append(
                        (
                            points[-1][0] + side * 0.5 * length * math.cos(turned),
                            points[-1][1] + 0.5 * length * math.sin(turned),
                        )
                    )
                _add_tube(total, plane, points, radius, 75.0 * radius)
                if depth < 4 and radius > 0.0016:
                    spread = rng.uniform(0.22, 0.42)
                    for turn in (-spread, spread * rng.uniform(0.6, 1.1)):
                        thinner = radius * rng.uniform(0.62, 0.80)
                        waiting.append((*points[-1], angle + bend + turn, thinner, depth + 1))
    return _blur(total, 0.0022 * plane.scale)


def _consolidation(plane: _Plane, rng: np.random.Generator) -> NDArray[np.float64]:
    """One dense patch with a cloudy edge, 0 to 1: right upper, right lower or left lower lung."""
    places = ((-0.20, 0.28, 0.15, 0.10), (-0.21, 0.62, 0.16, 0.11), (0.24, 0.62, 0.13, 0.12))
    left, top, wide, high = places[int(rng.integers(len(places)))]
    left += rng.normal(0.0, 0.012)
    top += rng.normal(0.0, 0.015)
    away = np.hypot((plane.u - left) / wide, (plane.v - top) / high)
    edge = away + 0.16 * _clouds(rng, plane, 0.05, 0.15)
    patch = _step((0.95 - edge) / 0.24)
    return patch * np.clip(0.92 + 0.06 * _clouds(rng, plane, 0.02, 0.06), 0.0, 1.0)


def _lateral(plane: _Plane, rng: np.random.Generator) -> NDArray[np.float64]:
    """Chest from the side, looking to the left: both lungs in one, heart in front, spine behind."""
    u, v = plane.u, plane.v
    front, lung, heart = rng.uniform(0.26, 0.31), rng.uniform(0.72, 0.80), rng.uniform(0.9, 1.1)
    trunk = _chord((u - 0.02) / (front + 0.06 * _smooth(0.1, 0.6, v)), 2.6)
    total = _blur(1.05 * trunk * _smooth(-0.02, 0.08, v), 0.008 * plane.scale)
    inside = np.clip(1.0 - ((u - 0.01) / (front - 0.04)) ** 2, 0.0, 1.0) ** 0.5
    dome = lung + 0.9 * np.abs(u + 0.03) ** 1.7
    air = inside * _step((v - 0.12) / 0.02) * _step((dome - v) / 0.006)
    shade = np.hypot((u + 0.10) / (0.13 * heart), (v - 0.58) / (0.17 * heart))
    air = air * (1.0 - 0.8 * _step((1.0 - shade) / 0.10))
    total -= 0.72 * _blur(air, 0.004 * plane.scale)
    # The spine curves backwards; bodies with gaps of disc between them.
    for number in range(16):
        middle = 0.04 + 0.062 * number
        back = 0.13 + 0.07 * math.sin(math.pi * min(middle, 1.0))
        body = _step((0.032 - np.abs(u - back)) / 0.004) * _step(
            (0.025 - np.abs(v - middle)) / 0.004
        )
        total += 0.16 * body
        ribs = [(back, middle), (back - 0.16, middle + 0.10), (-front + 0.05, middle + 0.26)]
        if 2 <= number <= 10:
            _add_tube(total, plane, _bent(ribs), 0.012, 0.10, hollow=0.7)
    _add_tube(total, plane, [(-front + 0.03, 0.22), (-front - 0.01, 0.60)], 0.014, 0.16)
    # Both arms are raised, their shoulders lie over the upper lungs.
    for shift in rng.uniform(-0.05, 0.05, 2).tolist():
        _add_tube(total, plane, [(0.02 + shift, 0.16), (-0.10 + shift, -0.12)], 0.085, 0.45)
    return total


def _hand(plane: _Plane, rng: np.random.Generator) -> NDArray[np.float64]:
    """Palm down, fingers up."""
    total = np.zeros(plane.shape)
    flesh = np.zeros(plane.shape)
    wrist = (rng.uniform(-0.02, 0.02), 0.84)
    for radius, side in ((0.040, -0.035), (0.033, 0.040)):
        line = [(wrist[0] + side, wrist[1]), (wrist[0] + 1.2 * side, 1.15)]
        _add_tube(total, plane, line, radius, 0.42, hollow=0.6)
    for _ in range(8):  # the carpus
        spot = (wrist[0] + rng.uniform(-0.06, 0.06), wrist[1] - rng.uniform(0.02, 0.09))
        _add_tube(total, plane, [spot, (spot[0] + 0.01, spot[1])], 0.028, 0.22)
    palm = [(wrist[0], 1.2), wrist, (wrist[0], 0.60)]
    _add_tube(flesh, plane, palm, 0.15, 0.5)
    spread = rng.uniform(0.85, 1.15)
    # Angle from straight up, and the ends of the bones along the ray, from thumb to little finger.
    rays = (
        (-0.75, (0.06, 0.20, 0.31, 0.38)),
        (-0.22, (0.10, 0.32, 0.48, 0.57, 0.63)),
        (-0.02, (0.10, 0.32, 0.50, 0.60, 0.67)),
        (0.17, (0.10, 0.31, 0.47, 0.57, 0.63)),
        (0.38, (0.10, 0.29, 0.41, 0.48, 0.54)),
    )
    for angle, ends in rays:
        across, up = math.sin(spread * angle), math.cos(spread * angle)
        at = [(wrist[0] + 1.1 * end * across, wrist[1] - 1.1 * end * up) for end in ends]
        limb = np.zeros(plane.shape)
        _add_tube(limb, plane, [at[0], at[-1]], 0.045, 0.42)
        flesh = np.maximum(flesh, limb)
        for number, (start, stop) in enumerate(itertools.pairwise(at)):
            gap = 0.06
            near = tuple(a + gap * (b - a) for a, b in zip(start, stop, strict=True))
            far = tuple(b - gap * (b - a) for a, b in zip(start, stop, strict=True))
            bone = [(near[0], near[1]), (far[0], far[1])]
            _add_tube(total, plane, bone, 0.021 - 0.003 * number, 0.40, hollow=0.6)
    return total + _blur(flesh, 0.006 * plane.scale)


def _page(plane: _Plane, rng: np.random.Generator) -> NDArray[np.float64]:
    """Dark letters on white: lines of words of random letters."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = plane.shape
    size = max(8, int(rng.uniform(0.020, 0.035) * height))
    font = ImageFont.load_default(size)
    canvas = Image.new("L", (width, height), 245)
    draw = ImageDraw.Draw(canvas)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    for top in range(2 * size, height - 2 * size, round(1.5 * size)):
        if rng.random() < 0.15:  # between paragraphs
            continue
        words = ("".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(40))
        line, end = "", rng.uniform(0.5, 0.92) * width
        for word in words:
            if draw.textlength(line + word, font) > end - 2 * size:
                break
            line += word + " "
        draw.text((2 * size, top), line, 20, font)
    return np.asarray(canvas) / 255.0


def _expose(
    plane: _Plane, attenuation: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Turn attenuation into grey levels 0 to 1: scatter, edge enhancement, noise and curve."""
    image = 0.93 * attenuation + 0.07 * _blur(attenuation, 0.06 * plane.scale)
    # Digital detectors' usual processing lifts fine detail.
    image = image + 1.1 * (image - _blur(image, 0.010 * plane.scale))
    grain = rng.normal(0.0, 1.0, plane.shape)
    grain = 0.5 * grain + 1.2 * _blur(grain, 0.8)
    # Fewer quanta arrive behind more tissue.
    image = image + grain * 0.003 * np.exp(0.45 * np.clip(attenuation, 0.0, 1.6))
    center, steep = rng.uniform(0.58, 0.68), rng.uniform(4.3, 5.2)
    curve = 1.0 / (1.0 + np.exp(-steep * (image - center)))
    floor = 1.0 / (1.0 + math.exp(steep * center))
    shown: NDArray[np.float64] = 0.03 + 0.92 * (curve - floor) / (1.0 - floor)
    shown = np.maximum(shown, 0.0)
    if rng.random() < 0.5:  # the collimator's edge, on some
        height, width = plane.shape
        sides = rng.uniform(0.0, 0.05, 2) * width
        columns = np.arange(width)
        shown[:, (columns < sides[0]) | (columns > width - sides[1])] = 0.0
        shown[: int(rng.uniform(0.0, 0.03) * height)] = 0.0
    return shown


def _burn_in(image: NDArray[np.float64], plane: _Plane) -> tuple[int, int, int, int]:
    """Write the mark, and the side marker of a real picture, into the pixels."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape
    size = max(12, height // 22)
    font = ImageFont.load_default(size)
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    margin = size // 2
    draw.text((margin, height - margin), MARK, 255, font, anchor="lb", stroke_width=1)
    box = canvas.getbbox()
    if box is None:  # cannot be: the font has letters
        raise RuntimeError("Pillow drew no text")
    # A dark plate keeps the mark legible on any tissue.
    left, top, right, bottom = box
    pad = max(2, size // 6)
    left, top = max(0, left - pad), max(0, top - pad)
    right, bottom = min(width, right + pad), min(height, bottom + pad)
    image[top:bottom, left:right] = 0.0
    draw.text((margin + size // 2, height // 5), "R", 255, font, anchor="lm")
    np.maximum(image, np.asarray(canvas) / 255.0, out=image)
    return left, top, right, bottom


# --- the tools -----------------------------------------------------------------------------------


def _step(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Go smoothly from 0 to 1 around 0."""
    return 0.5 + 0.5 * np.tanh(x)


def _smooth(low: float, high: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Go from 0 at `low` to 1 at `high`, which may be the smaller one."""
    share = np.clip((x - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _chord(x: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """Length of a beam through a body of half width 1."""
    return np.sqrt(np.clip(1.0 - np.abs(x) ** power, 0.0, 1.0))


def _add_tube(
    total: NDArray[np.float64],
    plane: _Plane,
    points: Sequence[tuple[float, float]],
    radius: float,
    strength: float | NDArray[np.float64],
    *,
    hollow: float = 0.0,
) -> None:
    """Add the thickness of a tube along a line of points, in units of its strength.

    Parameters
    ----------
    total : ndarray, float64, shape (h, w)
        Added to, in place.
    plane : _Plane
        Where `total` lies.
    points : sequence of (u, v)
        The line; parts outside the picture are left out.
    radius : float
        Of the tube.
    strength : float or ndarray of shape (n_points,)
        Largest value, along the line.
    hollow : float
        Share of the radius that is marrow instead of bone; 0 for solid.
    """
    height, width = plane.shape
    line = np.asarray(points, np.float64)
    strengths = np.broadcast_to(np.asarray(strength, np.float64), (len(points),))
    # Pixel boxes of the whole line, then of each of its pieces: most of the picture is elsewhere.
    lows = (np.minimum(line[:-1], line[1:]) - radius) * plane.scale + (plane.left, plane.top)
    highs = (np.maximum(line[:-1], line[1:]) + radius) * plane.scale + (plane.left, plane.top)
    boxes = np.concatenate([np.floor(lows), np.ceil(highs) + 1], axis=1)
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(int)
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    if left >= right or top >= bottom:
        return
    nearest = np.full((bottom - top, right - left), 4.0)
    weight = np.zeros_like(nearest)
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        if x0 >= x1 or y0 >= y1:
            continue
        here = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        (u0, v0), (du, dv) = line[index].tolist(), (line[index + 1] - line[index]).tolist()
        across, down = plane.u[:, x0:x1] - u0, plane.v[y0:y1] - v0
        share = np.clip((across * du + down * dv) / (du * du + dv * dv), 0.0, 1.0)
        away = ((across - share * du) ** 2 + (down - share * dv) ** 2) / (radius * radius)
        closer = away < nearest[here]
        value = strengths[index] + share * (strengths[index + 1] - strengths[index])
        np.copyto(nearest[here], away, where=closer)
        np.copyto(weight[here], value, where=closer)
    bone = np.sqrt(np.clip(1.0 - nearest, 0.0, 1.0))
    if hollow:
        bone -= 0.75 * np.sqrt(np.clip(hollow * hollow - nearest, 0.0, 1.0))
    total[top:bottom, left:right] += weight * bone


def _blur(image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Blur with a Gaussian of `sigma` pixels, the border pixels going on for ever."""
    if sigma < 2.0:
        radius = max(1, math.ceil(3.0 * sigma))
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        for axis in (0, 1):
            image = _slide(image, weights / weights.sum(), axis)
        return image
    # Three running means are a Gaussian to a few per cent, at a cost that does not grow with it:
    # the variance of n pixels in a row is (n * n - 1) / 12.
    length = max(3, 2 * round((math.sqrt(4.0 * sigma * sigma + 1.0) - 1.0) / 2.0) + 1)
    for axis in (0, 1):
        for _ in range(3):
            image = _running_mean(image, length, axis)
    return image


def _slide(
    image: NDArray[np.float64], weights: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    padded = _extend(image, len(weights) // 2, axis)
    out = np.zeros_like(image)
    for shift, weight in enumerate(weights.tolist()):
        out += weight * _cut(padded, shift, image.shape[axis], axis)
    return out


def _running_mean(image: NDArray[np.float64], length: int, axis: int) -> NDArray[np.float64]:
    padded = _extend(image, length // 2 + 1, axis)
    sums = np.cumsum(padded, axis=axis)
    n = image.shape[axis]
    return (_cut(sums, length, n, axis) - _cut(sums, 0, n, axis)) / length


def _extend(image: NDArray[np.float64], by: int, axis: int) -> NDArray[np.float64]:
    return np.pad(image, [(by, by), (0, 0)] if axis == 0 else [(0, 0), (by, by)], "edge")


def _cut(image: NDArray[np.float64], start: int, length: int, axis: int) -> NDArray[np.float64]:
    return image[start : start + length] if axis == 0 else image[:, start : start + length]


def _clouds(
    rng: np.random.Generator, plane: _Plane, smallest: float, largest: float
) -> NDArray[np.float64]:
    """Random texture of mean 0 and deviation 1 with detail between two lengths."""
    height, width = plane.shape
    spectrum = np.fft.rfft2(rng.normal(0.0, 1.0, plane.shape))
    waves = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width)) * plane.scale
    band = np.exp(-((waves * smallest) ** 2)) - np.exp(-((waves * largest) ** 2))
    texture = np.fft.irfft2(spectrum * band / np.maximum(waves, 1.0), plane.shape)
    deviation: NDArray[np.float64] = texture / texture.std()
    return deviation
