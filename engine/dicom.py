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
4. *Grey level* of 16 bits, halves rounded up.
5. *Polarity*: ``MONOCHROME1`` (C.7.6.3.1.2) is inverted, and so is ``MONOCHROME2`` where
   ``PresentationLUTShape`` is ``INVERSE`` (C.11.6); once, as the last step,
   where both say so.

Steps 1 to 5 act on each pixel alone, so they are worked out in float64 once for each of the at most
65,536 values a sample can have, and become the table of :class:`engine.picture.Picture`. The pixels
themselves are not touched, unless the header asks which values occur among them: without a window,
and with a padding value that a few samples and the smallest and largest do not settle.

What the header gets wrong is repaired where only one reading makes sense, and told in
``Picture.about["notes"]``; where a guess could turn black into white the file is an error. No
message and no entry of ``about`` repeats a value of the file that could name a patient, so errors
of pydicom, which quote values, are not chained.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cached_property
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
from engine.picture import (
    WHITE,
    Picture,
    finish_picture,
    quiet_decoders,
    round_to_8_bits,
    scale_to_levels,
    sparse,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["ACCEPTED_MODALITIES", "read_dicom"]

# A table has 65,536 entries at most (C.11.1.1); no list of windows is longer than this text.
_MAX_TABLE_BYTES = 2 * 65536 + 2
_MAX_TEXT_BYTES = 4096
_PART_SAMPLES = 1 << 17


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
        Samples as stored, ``(rows, columns)``, and their table; ``about`` may hold ``modality``,
        ``photometric``, ``transfer_syntax`` (name), ``presentation_intent``, ``body_part``
        (``"chest"`` or ``"other"``), ``projection`` (``"PA"``, ``"AP"``, ``"lateral"`` or
        ``"other"``), ``grayscale`` (what step 3 used), ``allowed`` and ``notes``.

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
        samples, table, used = _render(dataset, header, pixels)
    else:
        samples, table, used = *_luma(header, pixels), "luma of colour"
    about["grayscale"] = used
    allowed += header.allowed
    if allowed:
        about["allowed"] = allowed
    if notes:
        about["notes"] = notes
    picture = Picture(samples, path, "dicom", header.stored, about, table)
    return finish_picture(picture, allow)


def _luma(
    header: ImageHeader, pixels: NDArray[Any]
) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.uint16] | None]:
    """Weigh RGB by ITU-R BT.601-7 section 2.5.1, as Pillow's mode L does; luma stays what it is."""
    if header.allocated == 8 and header.stored == 8:
        if pixels.ndim == 2:
            return np.ascontiguousarray(pixels, np.uint8), None

        from PIL import Image

        colour = Image.fromarray(np.ascontiguousarray(pixels, np.uint8))
        return np.asarray(colour.convert("L")), None
    top = (1 << header.stored) - 1
    out = np.empty(pixels.shape[:2], dtype=np.uint16)
    for index, row in enumerate(pixels):  # by rows: float64 takes eight times the room
        luma = np.minimum(row, top)
        if row.ndim == 2:
            luma = luma @ np.array([0.299, 0.587, 0.114])
        out[index] = scale_to_levels(luma, 0, top)
    return out, np.arange(WHITE + 1, dtype=np.uint16)


class _Stored:
    """The samples of a picture, and which stored values occur among them.

    Parameters
    ----------
    header : ImageHeader
        Of the picture.
    pixels : ndarray of integers, shape (rows, columns)
        As :func:`engine.dicom_file.read_first_frame` gives them.
    """

    def __init__(self, header: ImageHeader, pixels: NDArray[Any]) -> None:
        self._header = header
        self.n_values = 1 << header.stored
        shift = header.high_bit + 1 - header.stored
        plain = np.dtype(np.uint16 if pixels.dtype.itemsize > 1 else np.uint8)
        words = pixels.view(f"{pixels.dtype.byteorder}u{pixels.dtype.itemsize}")
        codes: NDArray[Any] = np.arange(1 << 8 * plain.itemsize, dtype=np.uint32)
        if words.dtype.itemsize > plain.itemsize:
            words = words.astype(plain)
        elif not words.dtype.isnative:
            words = words.view(plain)
            codes = codes >> 8 | (codes & 0xFF) << 8
        self.samples: NDArray[Any] = np.ascontiguousarray(words)
        self._is_plain = not shift and bool(codes[1] == 1)
        # Stored value, without sign, of each value of a sample.
        self.codes: NDArray[Any] = codes >> shift & (self.n_values - 1)

    def _mark(self, samples: NDArray[Any]) -> NDArray[np.bool_]:
        found = np.zeros(self.codes.size, dtype=np.bool_)
        for row in samples:  # by rows: NumPy widens an index to eight bytes
            found[row] = True
        present = np.zeros(self.n_values, dtype=np.bool_)
        present[self.codes[found]] = True
        return present

    @cached_property
    def some(self) -> NDArray[np.bool_]:
        """Stored values found at a few places, bool ``(n_values,)``."""
        return self._mark(sparse(self.samples))

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """Stored values that occur, bool ``(n_values,)``; looks at every sample."""
        return self._mark(self.samples)

    @cached_property
    def ends(self) -> tuple[int, int] | None:
        """The smallest and the largest stored value as codes; None where only `present` tells.

        A sample is its own stored value where it has no other bits than stored ones, or only copies
        of the sign above them, as most files with 12 of 16 bits have.
        """
        if not self._is_plain:
            return None
        least, most = 0, self.n_values - 1
        if self._header.signed:
            least, most = -self.n_values // 2, self.n_values // 2 - 1
        low, high = int(self._values.min()), int(self._values.max())
        if low < least or high > most:
            return None
        return low % self.n_values, high % self.n_values

    @property
    def _values(self) -> NDArray[Any]:
        """Samples with their sign: stored values wherever `ends` is not None."""
        kind = "i" if self._header.signed else "u"
        return self.samples.view(f"{kind}{self.samples.dtype.itemsize}")

    def occur(self, wanted: NDArray[np.bool_], values: NDArray[np.float64]) -> bool:
        """Tell whether any of neighbouring stored values occurs.

        Parameters
        ----------
        wanted : ndarray, bool, shape (n_values,)
            Which; with none between them that is not wanted.
        values : ndarray, float64, shape (n_values,)
            Every stored value.

        Returns
        -------
        bool
            Whether one does.
        """
        if self.some[wanted].any():
            return True
        if not self.ends:
            return bool(self.present[wanted].any())
        first, last = int(values[wanted].min()), int(values[wanted].max())
        low, high = values[list(self.ends)]
        if last < low or first > high:
            return False
        # By parts that stay in the processor's cache.
        n_rows = max(1, _PART_SAMPLES // self.samples.shape[1])
        for start in range(0, self.samples.shape[0], n_rows):
            part = self._values[start : start + n_rows]
            if ((part >= first) & (part <= last)).any():
                return True
        return False


def _render(
    dataset: Dataset, header: ImageHeader, pixels: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.uint16] | None, str]:
    """Do steps 1 to 5 of the module: samples, table, and what step 3 used."""
    stored = _Stored(header, pixels)
    n_values = stored.n_values
    values = np.arange(n_values, dtype=np.float64)
    if header.signed:
        values[n_values // 2 :] -= n_values
    stored_values = values
    padded = _padding(dataset, header, values)
    has_padding = bool(padded.any())
    # A padding value that takes the whole picture is a mistake.
    if has_padding and not _differ(stored, padded, values):
        padded, has_padding = np.zeros_like(padded), False

    values, integral = _modality_lut(dataset, header, values)
    inverse = header.photometric == "MONOCHROME1"
    if not inverse and read_code(dataset, "PresentationLUTShape") == "INVERSE":
        header.notes.append("MONOCHROME2 with PresentationLUTShape INVERSE was inverted")
        inverse = True
    levels, used = _voi(dataset, header, values, integral)
    if levels is None or not _differ(stored, padded, levels):
        if levels is not None and _differ(stored, padded, values):
            header.notes.append(f"the {used} shows nothing and was ignored")
        low, high = _range(header, stored, padded, values)
        used = "smallest to largest value"
        if high > low:
            levels = scale_to_levels(values, low, high)
        else:
            levels = np.zeros(n_values, dtype=np.uint16)
    if inverse:
        levels = WHITE - levels
    if has_padding and stored.occur(padded, stored_values):
        levels[padded] = 0
        header.notes.append("padding was shown black")
    return stored.samples, levels[stored.codes], used


def _differ(stored: _Stored, padded: NDArray[np.bool_], values: NDArray[Any]) -> bool:
    """Tell whether two stored values that are no padding and occur differ in `values`.

    Grey levels differ where they do in 8 bits: what cannot be seen does not count.
    """

    def differ(present: NDArray[np.bool_]) -> bool:
        found = values[present & ~padded]
        if found.dtype == np.uint16:
            found = round_to_8_bits(found)
        return bool(found.size and found.min() != found.max())

    return differ(stored.some) or differ(stored.present)


def _range(
    header: ImageHeader, stored: _Stored, padded: NDArray[np.bool_], values: NDArray[np.float64]
) -> tuple[float, float]:
    """Give the smallest and the largest of `values` that occur and are no padding."""
    if not padded.any() and stored.ends:
        steps = np.diff(np.roll(values, stored.n_values // 2) if header.signed else values)
        if (steps >= 0).all() or (steps <= 0).all():
            found = values[list(stored.ends)]
            return float(found.min()), float(found.max())
    found = values[stored.present & ~padded]
    return float(found.min()), float(found.max())


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
) -> tuple[NDArray[np.uint16] | None, str]:
    """Step 3 and 4; None where the file has no usable table or window."""
    for item in _items(dataset, "VOILUTSequence", header):
        table = _lut(item, dataset, header, "VOI LUT", signed=signed)
        if table is not None:
            first, data, bits = table
            mapped = data[_table_index(values, first, data.size)]
            return scale_to_levels(mapped, 0, (1 << bits) - 1), "VOI LUT"
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
) -> NDArray[np.uint16]:
    if function == "SIGMOID":  # C.11.2.1.3.1
        # Beyond exp's range the function is 0 or 1 to every digit.
        power = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
        return scale_to_levels(1.0 / (1.0 + np.exp(power)), 0.0, 1.0)
    if function == "LINEAR":  # C.11.2.1.2.1: the window of width 1 is a threshold
        center, width = center - 0.5, width - 1.0
    low, high = center - width / 2.0, center + width / 2.0
    if not high > low:
        return np.where(values > low, np.uint16(WHITE), np.uint16(0))
    return scale_to_levels(values, low, high)


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
