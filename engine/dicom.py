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
from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from engine.dicom_file import (
    ImageHeader,
    as_list,
    check_header,
    explain_no_pixels,
    parse_dicom,
    read_code,
    read_first_frame,
    read_value,
    syntax_name,
)
from engine.dicom_kind import ACCEPTED_MODALITIES, check_kind, check_subject, describe
from engine.errors import ImageError
from engine.picture import Picture, finish_picture, look_up, quiet_decoders, scale_to_8_bits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["ACCEPTED_MODALITIES", "read_dicom"]

# A table has 65,536 entries at most (C.11.1.1); no list of windows is longer than this text.
_MAX_TABLE_BYTES = 2 * 65536 + 2
_MAX_TEXT_BYTES = 4096


def read_dicom(path: str | PathLike[str], *, allow: Collection[str] = ()) -> Picture:
    """Read a DICOM radiograph as a viewer would show it; the module says in which order.

    Parameters
    ----------
    path : str or PathLike
        The file, with or without preamble and file meta information.
    allow : collection of str, optional
        Reasons of refusal that are set aside, each told in ``about["allowed"]``: any below but
        ``no_pixels``, ``not_an_image`` and ``unsupported_transfer_syntax``, where there is nothing
        to read; other words have no effect. Of several frames the first is read.

    Returns
    -------
    Picture
        ``pixels`` uint8 ``(rows, columns)``; ``about`` may hold ``modality``, ``photometric``,
        ``transfer_syntax`` (name), ``presentation_intent``, ``body_part`` (``"chest"`` or
        ``"other"``), ``projection`` (``"PA"``, ``"AP"``, ``"lateral"`` or ``"other"``),
        ``grayscale`` (what step 3 used), ``allowed`` and ``notes``.

    Raises
    ------
    ImageError
        The file is missing, damaged, or lacks what its picture cannot be shown without.
    Refused
        By what the header says it is, in this order: ``own_result``, ``annotation``,
        ``not_an_image``, ``unsupported_modality``, ``no_pixels``, ``body_part``, ``lateral``; by
        its pixels: ``multi_frame``, ``unsupported_transfer_syntax``, ``too_small`` or ``blank``.
    """
    file = Path(path)
    try:
        with quiet_decoders(), file.open("rb") as stream:
            return _read(file, stream, frozenset(allow))
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(file, "does not fit in memory; reduce it, or close programs") from None
    except Exception as exc:  # whatever pydicom makes of hostile bytes; its text quotes values
        if isinstance(exc, OSError) and exc.strerror:  # the system's; pydicom's have a text alone
            raise ImageError(file, f"cannot be read ({exc.strerror}); check the path") from exc
        raise ImageError(
            file,
            f"is DICOM but damaged: pydicom stopped with {type(exc).__name__}; send or export it "
            "again",
        ) from None


def _read(path: Path, stream: BinaryIO, allow: frozenset[str]) -> Picture:
    file = parse_dicom(path, stream)
    dataset = file.dataset
    notes: list[str] = []
    allowed: list[str] = []
    modality = check_kind(path, file, allow, allowed)
    if file.pixels != "PixelData":
        raise explain_no_pixels(path, file)
    about = describe(dataset)
    check_subject(path, dataset, about, allow, allowed)
    header = check_header(path, dataset, notes)
    pixels, syntax = read_first_frame(path, file, header, allow)
    about |= {"photometric": header.photometric, "transfer_syntax": syntax_name(syntax)}
    if modality:
        about["modality"] = modality
    if header.samples == 1:
        levels, about["grayscale"] = _render(dataset, header, pixels)
    else:
        levels, about["grayscale"] = _luma(header, pixels), "luma of colour"
    allowed += header.allowed
    if allowed:
        about["allowed"] = allowed
    if notes:
        about["notes"] = notes
    picture = Picture(levels, path, "dicom", header.stored, about)
    return finish_picture(picture, allow)


def _luma(header: ImageHeader, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Weigh RGB by ITU-R BT.601-7 section 2.5.1, as Pillow's mode L does; luma stays what it is."""
    if header.allocated == 8 and header.stored == 8:
        if pixels.ndim == 2:
            return np.ascontiguousarray(pixels, np.uint8)

        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).convert("L"))
    top = (1 << header.stored) - 1
    out = np.empty(pixels.shape[:2], dtype=np.uint8)
    for index, row in enumerate(pixels):  # by rows: float64 takes eight times the room
        luma = np.minimum(row, top)
        if row.ndim == 2:
            luma = luma @ np.array([0.299, 0.587, 0.114])
        out[index] = scale_to_8_bits(luma, 0, top)
    return out


def _render(
    dataset: Dataset, header: ImageHeader, pixels: NDArray[Any]
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
    if not inverse and read_code(dataset, "PresentationLUTShape") == "INVERSE":
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


def _padding(
    dataset: Dataset, header: ImageHeader, values: NDArray[np.float64]
) -> NDArray[np.bool_]:
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
        values = as_list(read_value(dataset, keyword))
        number = float(values[0]) if values else None
    except Exception:  # "40,5", text, bytes: pydicom and float raise various things
        return None
    return number if number is not None and math.isfinite(number) else None


def _numbers(dataset: Dataset, keyword: str) -> list[float | None]:
    """Give every value as a number, None for each that is none; "40,5" is no number."""
    try:
        raw = as_list(read_value(dataset, keyword))
    except Exception:  # the element as a whole cannot be read: take its text apart
        text = dataset.get_item(keyword)
        value = getattr(text, "value", b"") or b""
        value = value[:_MAX_TEXT_BYTES] if isinstance(value, bytes) else b""
        raw = value.decode("ascii", "replace").split("\\")
    numbers: list[float | None] = []
    for item in raw:
        try:
            number = float(item)
        except (TypeError, ValueError):
            number = math.nan
        numbers.append(number if math.isfinite(number) else None)
    return numbers


def _modality_lut(
    dataset: Dataset, header: ImageHeader, values: NDArray[np.float64]
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
    dataset: Dataset, header: ImageHeader, values: NDArray[np.float64], signed: bool
) -> tuple[NDArray[np.uint8] | None, str]:
    """Step 3 and 4; None where the file has no usable table or window."""
    for item in _items(dataset, "VOILUTSequence", header):
        table = _lut(item, dataset, header, "VOI LUT", signed=signed)
        if table is not None:
            first, data, bits = table
            mapped = data[_table_index(values, first, data.size)]
            return scale_to_8_bits(mapped, 0, (1 << bits) - 1), "VOI LUT"
    centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    function = read_code(dataset, "VOILUTFunction") or "LINEAR"
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


def _items(dataset: Dataset, keyword: str, header: ImageHeader) -> list[Dataset]:
    try:
        return list(read_value(dataset, keyword) or [])
    except Exception:  # a sequence that cannot be parsed
        header.notes.append(f"{keyword} was damaged and ignored")
        return []


def _table_index(values: NDArray[np.float64], first: int, size: int) -> NDArray[np.int64]:
    """Values before the table take its first entry, those behind it the last (C.11.1.1)."""
    index: NDArray[np.float64] = np.clip(np.floor(values + 0.5) - first, 0, size - 1)
    return index.astype(np.int64)


def _lut(
    item: Dataset, dataset: Dataset, header: ImageHeader, name: str, *, signed: bool
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
        stored = getattr(item.get_item("LUTData"), "value", b"")
        if isinstance(stored, bytes) and len(stored) > _MAX_TABLE_BYTES:
            raise ValueError("a table has at most 65,536 entries")
        data = item.LUTData
        if isinstance(data, bytes):
            table = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
            if bits <= 8 and len(data) < 2 * size:  # two 8-bit entries in a word, or bytes
                table = np.frombuffer(data, np.uint8)
        else:
            table = np.array(as_list(data), dtype=np.int64) & 0xFFFF
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
