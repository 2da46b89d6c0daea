"""A DICOM file as the picture its own header asks a viewer to show.

The order of PS3.4 section N.2, each step once (clauses of PS3.3, 2024 edition, unless said):

1. *Stored value*: ``BitsStored`` bits ending at ``HighBit``; the bits around them may hold
   overlays or junk and are dropped (PS3.5 section 8.1.1). Two's complement where
   ``PixelRepresentation`` is 1.
2. *Modality LUT* (C.11.1): the table of ``ModalityLUTSequence``, else ``RescaleSlope`` and
   ``RescaleIntercept``, else nothing.
3. *VOI LUT* (C.11.2): the first usable table of ``VOILUTSequence``, else the first usable
   ``WindowCenter``/``WindowWidth`` under ``VOILUTFunction`` (``LINEAR`` C.11.2.1.2.1, ``SIGMOID``
   C.11.2.1.3.1, ``LINEAR_EXACT`` C.11.2.1.3.2), else the smallest to the largest value.
4. *8 bits*, halves rounded up.
5. *Polarity*: ``MONOCHROME1`` (C.7.6.3.1.2) is inverted, and so is ``MONOCHROME2`` where
   ``PresentationLUTShape`` is ``INVERSE`` (C.11.6); once, as the last step,
   where both say so.

Steps 1 to 5 act on each pixel alone, so they are worked out in float64 once for each of the at most
65,536 stored values and then looked up: exact, and faster than arithmetic on every pixel.

What the header gets wrong is repaired where only one reading makes sense, and told in
``Picture.about["notes"]``; where a guess could turn black into white the file is an error. No
message and no entry of ``about`` repeats a value of the file that could name a patient, so errors
of pydicom, which quote values, are not chained.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageError, Refused
from engine.picture import (
    MAX_PIXELS,
    Picture,
    check_size,
    finish_picture,
    look_up,
    quiet_decoders,
    scale_to_8_bits,
    sniff,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["ACCEPTED_MODALITIES", "read_dicom"]

ACCEPTED_MODALITIES = ("CR", "DX", "RF")
"""Modalities (0008,0060) of projection radiographs; a file that names none is read too."""

# Storage classes (PS3.4 section B.5) a file without Modality may have: CR, DX for presentation
# and processing, RF, and secondary capture.
_ACCEPTED_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.12.2",
    "1.2.840.10008.5.1.4.1.1.7",
)

# The commonest other ones of PS3.3 section C.7.3.1.1.1.
_OTHER_MODALITIES = (
    *("AU", "BMD", "CT", "DOC", "ECG", "ES", "GM", "HC", "IO", "IVUS", "KO", "MG", "MR", "NM"),
    *("OP", "OPT", "OT", "PLAN", "PR", "PT", "PX", "REG", "RTDOSE", "RTIMAGE", "RTPLAN"),
    *("RTSTRUCT", "SC", "SEG", "SM", "SR", "US", "XA", "XC"),
)

_MAX_INFLATED_BYTES = 8 * MAX_PIXELS

_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"

# ViewPosition (0018,5101), PS3.3 section C.8.7.1.1.3 and C.8.11.5.1; decubitus and oblique views
# are "other".
_PROJECTIONS = {"PA": "PA", "AP": "AP", "LL": "lateral", "RL": "lateral", "LATERAL": "lateral"}
_PROJECTIONS |= {"LAT": "lateral", "LLAT": "lateral", "RLAT": "lateral"}

# ViewCodeSequence (0054,0220), PS3.16 CID 4010: SNOMED CT and the SNOMED-RT codes before it.
_VIEW_CODES = {
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("272479007", "R-10214", "R-40888"), "PA"),
    **dict.fromkeys(("399067008", "R-102CD"), "lateral"),
    **dict.fromkeys(("399173006", "R-10236", "399198007", "R-10232"), "lateral"),
}


def read_dicom(path: str | PathLike[str]) -> Picture:
    """Read a DICOM radiograph as a viewer would show it; the module says in which order.

    Parameters
    ----------
    path : str or PathLike
        The file, with or without preamble and file meta information.

    Returns
    -------
    Picture
        ``pixels`` uint8 ``(rows, columns)``; ``about`` may hold ``modality``, ``photometric``,
        ``transfer_syntax`` (name), ``presentation_intent``, ``body_part`` (``"chest"`` or
        ``"other"``), ``projection`` (``"PA"``, ``"AP"``, ``"lateral"`` or ``"other"``),
        ``grayscale`` (what step 3 used) and ``notes``.

    Raises
    ------
    ImageError
        The file is missing, damaged, or lacks what its picture cannot be shown without.
    Refused
        ``unsupported_modality``, ``no_pixels``, ``multi_frame``, ``unsupported_transfer_syntax``,
        ``too_small`` or ``blank``.
    """
    file = Path(path)
    try:
        with quiet_decoders():
            return _read(file)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(file, "does not fit in memory; reduce it, or close programs") from None
    except OSError as exc:
        raise ImageError(
            file, f"cannot be read ({exc.strerror or type(exc).__name__}); check the path"
        ) from exc
    except Exception as exc:  # whatever pydicom makes of hostile bytes; its text quotes values
        raise ImageError(
            file,
            f"is DICOM but damaged: pydicom stopped with {type(exc).__name__}; send or export it "
            "again",
        ) from None


@dataclass
class _Header:
    """The attributes of the Image Pixel module (C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    notes: list[str] = field(default_factory=list)


def _read(path: Path) -> Picture:
    dataset = _parse(path)
    modality = _check_modality(path, dataset)
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            found = "holds floating-point pixels, expected a radiograph; leave it out"
        elif "Rows" in dataset:
            found = "describes a picture but holds no pixels: stripped or cut short; send it again"
        else:
            found = "holds no pixels, expected a radiograph; leave it out"
        raise Refused(path, "no_pixels", found)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    header = _check_header(path, dataset)
    _check_frames(path, dataset, header, syntax)
    stored = _decode(path, dataset, header, syntax)
    about: dict[str, Any] = {"photometric": header.photometric}
    if modality:
        about["modality"] = modality
    about["transfer_syntax"] = _syntax_name(syntax)
    about |= _describe(dataset)
    if header.samples == 1:
        pixels, about["grayscale"] = _render(path, dataset, header, stored)
    else:
        pixels, about["grayscale"] = _luma(header, stored), "luma of colour"
    if header.notes:
        about["notes"] = header.notes
    return finish_picture(Picture(pixels, path, "dicom", header.stored, about))


# --- the file ------------------------------------------------------------------------------------


def _parse(path: Path) -> Dataset:
    """Read the whole data set; deflated ones with a bound on what they may grow to."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    def behind_meta(tag: int, vr: str | None, length: int) -> bool:
        return tag >> 16 != 2

    with path.open("rb") as file:
        head = file.read(1024)
        if sniff(head) != "dicom":
            raise ImageError(path, "is not DICOM: no DICM at byte 128 and no data set at byte 0")
        # force reads anything as DICOM, so only what passed sniff's check of its first elements.
        force = head[128:132] != b"DICM"
        if not force:
            file.seek(132)
            meta = FileMetaDataset(read_dataset(file, False, True, stop_when=behind_meta))
            if meta.get("TransferSyntaxUID") == _DEFLATED:
                dataset = read_dataset(_inflate(path, file.read()), False, True)
                dataset.set_original_encoding(False, True)
                dataset.file_meta = meta
                return dataset
        file.seek(0)
        dataset = pydicom.dcmread(file, force=force)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        guess = _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(
            _IMPLICIT_LITTLE if implicit else guess
        )
    return dataset


def _inflate(path: Path, data: bytes) -> BytesIO:
    """Undo PS3.5 section A.5, raw deflate; a few kB can hold gigabytes, so with a bound."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise ImageError(
            path, f"inflates to more than {_MAX_INFLATED_BYTES:,} bytes; send or export it again"
        )
    if not inflater.eof:
        raise ImageError(path, "its deflated data is cut short; send or export it again")
    return BytesIO(plain)


def _syntax_name(syntax: str) -> str:
    from pydicom.uid import UID

    uid = UID(syntax)
    return uid.name if uid.is_transfer_syntax and not uid.is_private else "private or unknown"


def _check_modality(path: Path, dataset: Dataset) -> str:
    """Refuse what is no radiograph; the modality, or an empty string if there is none."""
    from pydicom.uid import UID

    modality = _code(dataset, "Modality")
    storage = UID(str(dataset.get("SOPClassUID") or ""))
    known = storage.name if storage.name != str(storage) else ""
    if modality in ACCEPTED_MODALITIES or (
        not modality and (not known or storage in _ACCEPTED_CLASSES)
    ):
        return modality
    # Only what is known to be a modality is repeated: anything else may have got there by mistake.
    shown = modality if modality in _OTHER_MODALITIES else "unknown"
    found = f"modality {shown}" if modality else f"storage class {known}"
    raise Refused(
        path,
        "unsupported_modality",
        f"is {found}, expected a radiograph ({', '.join(ACCEPTED_MODALITIES)}); leave it out",
    )


# --- the header ----------------------------------------------------------------------------------


def _code(dataset: Dataset, keyword: str) -> str:
    """Give a code string's first value, upper case without padding; empty if missing."""
    try:
        value = dataset.get(keyword)
    except Exception:  # not readable is as good as missing
        return ""
    values = _values(value)
    return str(values[0]).strip().strip("\0").upper() if values else ""


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return [value]
    return list(value)


def _integer(path: Path, dataset: Dataset, keyword: str) -> int | None:
    """Give a whole number of the header, or None where it is missing."""
    values = _values(dataset.get(keyword))
    if not values:
        return None
    try:
        return int(values[0])
    except (TypeError, ValueError):
        raise ImageError(
            path, f"its {keyword} is not a whole number; send or export it again"
        ) from None


def _check_header(path: Path, dataset: Dataset) -> _Header:
    """Check the Image Pixel module, fill in what has one sensible value, and say so."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    def required(keyword: str) -> int:
        value = _integer(path, dataset, keyword)
        if value is None:
            tag = Tag(tag_for_keyword(keyword) or 0)
            raise ImageError(
                path,
                f"lacks {keyword} {tag}, which its pixels cannot be read without; send or "
                "export it again",
            )
        return value

    notes: list[str] = []
    rows, columns = required("Rows"), required("Columns")
    check_size(path, columns, rows)
    samples = _integer(path, dataset, "SamplesPerPixel")
    photometric = _code(dataset, "PhotometricInterpretation")
    if samples is None:
        samples = 1 if photometric in ("", "MONOCHROME1", "MONOCHROME2") else 3
        notes.append(f"SamplesPerPixel was missing and taken as {samples}")
    allocated = required("BitsAllocated")
    if allocated not in (8, 16) or samples not in (1, 3):
        raise ImageError(
            path,
            f"has {samples} samples of {allocated} bits a pixel, expected 1 or 3 of 8 or 16; "
            "export it again as 16-bit grayscale",
        )
    stored = _integer(path, dataset, "BitsStored")
    if stored is None or not 1 <= stored <= allocated:
        found = "missing" if stored is None else str(stored)
        notes.append(f"BitsStored was {found} and taken as {allocated}")
        stored = allocated
    high_bit = _integer(path, dataset, "HighBit")
    if high_bit is None or not stored - 1 <= high_bit < allocated:
        found = "missing" if high_bit is None else str(high_bit)
        notes.append(f"HighBit was {found} and taken as {stored - 1}")
        high_bit = stored - 1
    representation = _integer(path, dataset, "PixelRepresentation")
    if representation not in (0, 1):
        found = "missing" if representation is None else str(representation)
        notes.append(f"PixelRepresentation was {found} and taken as 0 (unsigned)")
        representation = 0
    photometric = _check_photometric(path, dataset, photometric, samples, notes)
    # pydicom's decoders insist on all of them.
    dataset.SamplesPerPixel = samples
    dataset.BitsStored, dataset.HighBit = stored, high_bit
    dataset.PixelRepresentation = representation
    dataset.PhotometricInterpretation = photometric
    if samples == 3 and _integer(path, dataset, "PlanarConfiguration") not in (0, 1):
        notes.append("PlanarConfiguration was missing and taken as 0")
        dataset.PlanarConfiguration = 0
    return _Header(
        rows,
        columns,
        samples,
        allocated,
        stored,
        high_bit,
        bool(representation),
        photometric,
        notes,
    )


def _check_photometric(
    path: Path, dataset: Dataset, photometric: str, samples: int, notes: list[str]
) -> str:
    gray = ("MONOCHROME1", "MONOCHROME2")
    colour = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
    if not photometric and samples == 1:
        # C.8.11.3.1.2 ties the two together, so one tells the other. Without either, a guess
        # could swap black and white, and nobody would notice.
        shape = _code(dataset, "PresentationLUTShape")
        photometric = {"INVERSE": "MONOCHROME1", "IDENTITY": "MONOCHROME2"}.get(shape, "")
        if photometric:
            notes.append(f"PhotometricInterpretation was missing and taken as {photometric}")
    if not photometric:
        raise ImageError(
            path,
            "lacks PhotometricInterpretation (0028,0004), without which black and white cannot be "
            "told apart; send or export it again",
        )
    expected = gray if samples == 1 else colour
    if photometric not in expected:
        shown = photometric if photometric in (*gray, *colour, "PALETTE COLOR") else "unknown"
        raise ImageError(
            path,
            f"its PhotometricInterpretation (0028,0004) is {shown} with {samples} samples a "
            f"pixel, expected {' or '.join(expected)}; export it again as grayscale",
        )
    return photometric


def _check_frames(path: Path, dataset: Dataset, header: _Header, syntax: str) -> None:
    """Refuse more than one frame, whether the header admits to them or not."""
    try:
        frames = _integer(path, dataset, "NumberOfFrames") or 1
    except ImageError:
        frames = 1
        header.notes.append("NumberOfFrames was no number and taken as 1")
    data = dataset.PixelData
    if not data:
        raise Refused(path, "no_pixels", "its PixelData is empty; send or export it again")
    if frames <= 1:
        frames = (
            _count_encapsulated(data, syntax)
            if dataset["PixelData"].is_undefined_length
            else _count_native(path, len(data), header)
        )
    if frames > 1:
        raise Refused(
            path,
            "multi_frame",
            f"holds {frames} frames, expected one radiograph; send a single image",
        )
    dataset.NumberOfFrames = 1


def _count_native(path: Path, n_bytes: int, header: _Header) -> int:
    samples = header.samples
    expected = header.rows * header.columns * samples * header.allocated // 8
    if header.photometric == "YBR_FULL_422":
        expected = expected * 2 // 3
    if n_bytes < expected:
        raise ImageError(
            path,
            f"its pixel data is cut short: {n_bytes:,} bytes, expected {expected:,} for "
            f"{header.columns} x {header.rows} pixels; send or copy it again",
        )
    if expected + 1 < n_bytes < 2 * expected:
        header.notes.append("bytes behind the last pixel were ignored")
    return n_bytes // expected


def _count_encapsulated(data: bytes, syntax: str) -> int:
    """Count frames without trusting NumberOfFrames (PS3.5 section A.4)."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    stream = BytesIO(data)
    offsets = parse_basic_offsets(stream)
    if len(offsets) > 1:
        return len(offsets)
    fragments = list(generate_fragments(stream))
    if syntax == _RLE:
        return len(fragments)  # A.4.2: a frame is one fragment
    starts = sum(fragment.startswith((b"\xff\xd8", b"\xff\x4f\xff\x51")) for fragment in fragments)
    return max(1, starts)


# --- the pixels ----------------------------------------------------------------------------------


def _decode(path: Path, dataset: Dataset, header: _Header, syntax: str) -> NDArray[Any]:
    """Decode to samples as they are stored: ``(rows, columns)`` or ``(rows, columns, 3)``."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        available = decoder.is_available
    except NotImplementedError:
        available = False
    # Pillow, the one decoder that is always there, knows no 12-bit JPEG.
    wide_jpeg = (
        syntax == _JPEG_EXTENDED
        and header.stored > 8
        and "pylibjpeg" not in decoder.available_plugins
    )
    if not available or wide_jpeg:
        name = _syntax_name(syntax)
        uid = f" ({syntax})" if name != "private or unknown" else ""
        raise Refused(
            path,
            "unsupported_transfer_syntax",
            f"its pixels are compressed as {name}{uid}, for which no decoder is installed; "
            + (
                "12-bit JPEG has none under a free licence: send it uncompressed"
                if wide_jpeg
                else 'pip install "hilum[dicom]", or send it uncompressed'
            ),
        )
    try:
        # Colour is converted to RGB (C.7.6.3.1.2) by pydicom. Grey stays as stored: looked at in
        # place where it is not compressed, and its unused bits are dropped below, because pydicom
        # takes HighBit for BitsStored - 1.
        options: dict[str, Any] = {}
        if header.samples == 1:
            options = {"view_only": True, "correct_unused_bits": False}
        pixels, _ = decoder.as_array(dataset, index=0, raw=header.samples == 1, **options)
    except MemoryError:
        raise
    except Exception as exc:  # each plug-in raises what it likes
        raise ImageError(
            path,
            f"its pixel data ({_syntax_name(syntax)}) is damaged or cut short: the decoder "
            f"stopped with {type(exc).__name__}; send or export it again",
        ) from None
    expected = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
    if pixels.shape != expected:
        raise ImageError(
            path,
            f"decodes to {pixels.shape}, while its header says {expected}; send or export it again",
        )
    return pixels


def _luma(header: _Header, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Weigh RGB by ITU-R BT.601-7 section 2.5.1, as Pillow's mode L does."""
    if header.allocated == 8 and header.stored == 8:
        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).convert("L"))
    top = (1 << header.stored) - 1
    luma = np.minimum(pixels, top) @ np.array([0.299, 0.587, 0.114])
    return scale_to_8_bits(luma, 0, top)


def _render(
    path: Path, dataset: Dataset, header: _Header, pixels: NDArray[Any]
) -> tuple[NDArray[np.uint8], str]:
    """Do steps 1 to 5 of the module; also tell what step 3 used."""
    n_values = 1 << header.stored
    shift = header.high_bit + 1 - header.stored
    codes = pixels.view(f"{pixels.dtype.byteorder}u{pixels.dtype.itemsize}")
    # Native byte order and unsigned, so that a sample is its own index into the table.
    codes = codes.astype(np.uint16 if codes.dtype.itemsize > 1 else np.uint8, copy=False)
    if shift:
        codes = codes >> shift
    if header.stored < 8 * codes.dtype.itemsize:
        codes = codes & (n_values - 1)

    values = np.arange(n_values, dtype=np.float64)
    if header.signed:
        values[n_values // 2 :] -= n_values
    padded = _padding(dataset, header, values)
    present = _present(codes, n_values)
    shown = present & ~padded
    if np.count_nonzero(shown) < 2:  # a padding value that takes the whole picture is a mistake
        shown, padded = present, np.zeros_like(padded)

    values, integral = _modality_lut(dataset, header, values)
    inverse = header.photometric == "MONOCHROME1"
    if not inverse and _code(dataset, "PresentationLUTShape") == "INVERSE":
        header.notes.append("MONOCHROME2 with PresentationLUTShape INVERSE was inverted")
        inverse = True
    levels, used = _voi(dataset, header, values, integral)
    if levels is None or _is_flat(levels[shown]):
        if levels is not None and not _is_flat(values[shown]):
            header.notes.append(f"the {used} shows nothing and was ignored")
        low, high = float(values[shown].min()), float(values[shown].max())
        used = "smallest to largest value"
        if high > low:
            levels = scale_to_8_bits(values, low, high)
        else:
            levels = np.zeros(n_values, dtype=np.uint8)
    if inverse:
        levels = 255 - levels
    if padded.any() and (present & padded).any():
        levels[padded] = 0
        header.notes.append("padding was shown black")
    return look_up(levels, codes), used


def _present(codes: NDArray[Any], n_values: int) -> NDArray[np.bool_]:
    """Mark the stored values that occur."""
    present = np.zeros(n_values, dtype=np.bool_)
    for row in codes:  # by rows: NumPy widens an index to eight bytes
        present[row] = True
    return present


def _is_flat(values: NDArray[Any]) -> bool:
    return bool(values.min() == values.max())


def _padding(dataset: Dataset, header: _Header, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark stored values that stand for "no picture here" (C.7.5.1.1.2)."""
    padded = np.zeros(values.shape, dtype=np.bool_)
    bounds = [_number(dataset, key) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if bounds[0] is None:
        return padded
    first = bounds[0]
    last = bounds[1] if bounds[1] is not None else first
    if header.signed:  # written as unsigned by some
        half = 1 << (header.stored - 1)
        first, last = (v - 2 * half if half <= v < 2 * half else v for v in (first, last))
    return (values >= min(first, last)) & (values <= max(first, last))


def _number(dataset: Dataset, keyword: str) -> float | None:
    """Give a header's first number, or None where there is none that is finite."""
    try:
        values = _values(dataset.get(keyword))
        number = float(values[0]) if values else None
    except Exception:  # "40,5", text, bytes: pydicom and float raise various things
        return None
    return number if number is not None and math.isfinite(number) else None


def _numbers(dataset: Dataset, keyword: str) -> list[float | None]:
    """Give every value as a number, None for each that is none; "40,5" is no number."""
    try:
        raw = _values(dataset.get(keyword))
    except Exception:  # the element as a whole cannot be read: take its text apart
        text = dataset.get_item(keyword)
        value = getattr(text, "value", b"") or b""
        raw = value.decode("ascii", "replace").split("\\") if isinstance(value, bytes) else []
    numbers: list[float | None] = []
    for item in raw:
        try:
            number = float(item)
        except (TypeError, ValueError):
            number = math.nan
        numbers.append(number if math.isfinite(number) else None)
    return numbers


def _modality_lut(
    dataset: Dataset, header: _Header, values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], bool]:
    """Step 2; also whether the result can be negative, which a VOI LUT's descriptor depends on."""
    for item in _items(dataset, "ModalityLUTSequence", header):
        table = _lut(item, dataset, header, "modality LUT", signed=header.signed)
        if table is not None:
            first, data, _ = table
            return data[_table_index(values, first, data.size)], False
    slope, intercept = (_number(dataset, key) for key in ("RescaleSlope", "RescaleIntercept"))
    if slope == 0:
        header.notes.append("RescaleSlope was 0 and ignored")
        slope = intercept = None
    for key in ("RescaleSlope", "RescaleIntercept"):
        if _numbers(dataset, key) and _number(dataset, key) is None:
            header.notes.append(f"{key} was no number and ignored")
    if slope is None and intercept is None:
        return values, header.signed
    values = values * (1.0 if slope is None else slope) + (intercept or 0.0)
    return values, bool(values.min() < 0)


def _voi(
    dataset: Dataset, header: _Header, values: NDArray[np.float64], signed: bool
) -> tuple[NDArray[np.uint8] | None, str]:
    """Step 3 and 4; None where the file has no usable table or window."""
    for item in _items(dataset, "VOILUTSequence", header):
        table = _lut(item, dataset, header, "VOI LUT", signed=signed)
        if table is not None:
            first, data, bits = table
            mapped = data[_table_index(values, first, data.size)]
            return scale_to_8_bits(mapped, 0, (1 << bits) - 1), "VOI LUT"
    centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    function = _code(dataset, "VOILUTFunction") or "LINEAR"
    if (centers or widths) and function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        header.notes.append("VOILUTFunction was unknown and taken as LINEAR")
        function = "LINEAR"
    for index, (center, width) in enumerate(zip(centers, widths, strict=False)):
        smallest = 1.0 if function == "LINEAR" else math.ulp(0.0)
        if center is None or width is None or width < smallest:
            continue
        if index:
            header.notes.append(f"window 1 was unusable, window {index + 1} was taken")
        return _window(values, center, width, function), f"window {function}"
    if centers or widths:
        header.notes.append("WindowCenter and WindowWidth were unusable and ignored")
    return None, ""


def _window(
    values: NDArray[np.float64], center: float, width: float, function: str
) -> NDArray[np.uint8]:
    if function == "SIGMOID":  # C.11.2.1.3.1
        # Beyond exp's range the function is 0 or 1 to every digit.
        power = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
        return scale_to_8_bits(1.0 / (1.0 + np.exp(power)), 0.0, 1.0)
    if function == "LINEAR":  # C.11.2.1.2.1: the window of width 1 is a threshold
        center, width = center - 0.5, width - 1.0
    low, high = center - width / 2.0, center + width / 2.0
    if not high > low:
        return np.where(values > low, np.uint8(255), np.uint8(0))
    return scale_to_8_bits(values, low, high)


def _items(dataset: Dataset, keyword: str, header: _Header) -> list[Dataset]:
    try:
        return list(dataset.get(keyword) or [])
    except Exception:  # a sequence that cannot be parsed
        header.notes.append(f"{keyword} was damaged and ignored")
        return []


def _table_index(values: NDArray[np.float64], first: int, size: int) -> NDArray[np.int64]:
    """Values before the table take its first entry, those behind it the last (C.11.1.1)."""
    index: NDArray[np.float64] = np.clip(np.floor(values + 0.5) - first, 0, size - 1)
    return index.astype(np.int64)


def _lut(
    item: Dataset, dataset: Dataset, header: _Header, name: str, *, signed: bool
) -> tuple[int, NDArray[np.float64], int] | None:
    """Read a LUT as first mapped value, table and bits; None, with a note, where unusable."""
    try:
        little = bool(dataset.original_encoding[1])
        order = "<" if little else ">"
        raw = item.LUTDescriptor
        if isinstance(raw, bytes):
            raw = np.frombuffer(raw, f"{order}u2").tolist()
        size, first, bits = (int(value) & 0xFFFF for value in raw)
        size = size or 65536  # C.11.1.1: 0 means 2^16
        if signed and first > 0x7FFF:
            first -= 65536
        data = item.LUTData
        if isinstance(data, bytes):
            table = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
            if bits <= 8 and len(data) < 2 * size:  # two 8-bit entries in a word, or bytes
                table = np.frombuffer(data, np.uint8)
        else:
            table = np.array(_values(data), dtype=np.int64) & 0xFFFF
            if bits <= 8 and table.size < size <= 2 * table.size:
                table = table.astype("<u2").view(np.uint8)
    except Exception:  # whatever is missing or of another type
        header.notes.append(f"the {name} was damaged and ignored")
        return None
    if table.size < size or size < 2:
        header.notes.append(
            f"the {name} has {table.size} entries where its descriptor says {size}; it was ignored"
        )
        return None
    entries = table[:size].astype(np.float64)
    needed = max(1, int(entries.max()).bit_length())
    if not 8 <= bits <= 16 or needed > bits:
        header.notes.append(f"the {name} says {bits} bits, its entries need {needed}")
        bits = max(8, needed)
    return first, entries, bits


# --- what may be told ----------------------------------------------------------------------------


def _describe(dataset: Dataset) -> dict[str, str]:
    """Give facts from closed vocabularies only; whatever else the file says stays in it."""
    about: dict[str, str] = {}
    intent = _code(dataset, "PresentationIntentType")
    if intent in ("FOR PRESENTATION", "FOR PROCESSING"):
        about["presentation_intent"] = intent.lower()
    body_part = _code(dataset, "BodyPartExamined")
    if body_part:
        chest = body_part.startswith(("CHEST", "THORAX", "LUNG"))
        about["body_part"] = "chest" if chest else "other"
    projection = ""
    position = _code(dataset, "ViewPosition")
    if position:
        projection = _PROJECTIONS.get(position, "other")
    else:
        try:
            codes = [str(item.get("CodeValue", "")) for item in dataset.get("ViewCodeSequence", [])]
        except Exception:  # a damaged sequence says nothing
            codes = []
        if codes:
            projection = _VIEW_CODES.get(codes[0].strip(), "other")
    if projection:
        about["projection"] = projection
    return about
