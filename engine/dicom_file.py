"""What a DICOM file holds, read within bounds that no header can move.

Only the elements that are needed are kept; those of the patient are not among them, unless a result
goes back to where the picture came from. No more is read than one frame can need, and nothing is
allocated on the word of a header before that header has been held against the file. A file takes at
most twice its own size (what is behind the first frame does not count), eight bytes for each pixel
of the picture where it holds one, and 64 MB.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from engine.codestream import FrameHeader, read_frame_header, starts_frame, unpack_rle
from engine.errors import ImageError, Refused
from engine.picture import MAX_PIXELS, check_size, refuse, sniff

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "DicomFile",
    "ImageHeader",
    "as_list",
    "check_header",
    "explain_no_pixels",
    "parse_dicom",
    "read_code",
    "read_first_frame",
    "read_value",
    "syntax_name",
]

# Four bytes for each pixel of the largest picture: 16 bits, and as much again for the rest.
_MAX_INFLATED_BYTES = 4 * MAX_PIXELS
# Deflation makes radiographs two to five times smaller; it could be a thousand times.
_MAX_DEFLATION = 50
_CHUNK_BYTES = 1 << 20
# Elements and items of a header that are looked at; a structured report may have more, a radiograph
# has a few hundred. Each costs pydicom some microseconds and, in a sequence, some hundred bytes.
_MAX_READS = 200_000
# A number, code or UID of the header is shorter by far, and so is a sequence with a few tables of
# 65,536 entries.
_MAX_VALUE_BYTES = 4096
_MAX_SEQUENCE_BYTES = 4 << 20

_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_NATIVE = (_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, _EXPLICIT_BIG, _DEFLATED)

# For each compression what its frames must say they are, and pydicom's plug-ins in the order they
# are taken: one and the same wherever it is there, so that a picture does not depend on what else
# is installed. GDCM gets what no other free decoder reads and no more: hostile bytes make it stop
# the whole process, which Pillow and CharLS do not.
_DECODERS = {
    _JPEG_BASELINE: (("baseline", "extended", "progressive"), ("pillow",)),
    _JPEG_EXTENDED: (("baseline", "extended", "progressive"), ("pillow", "pylibjpeg")),
    "1.2.840.10008.1.2.4.57": (("lossless",), ("gdcm", "pylibjpeg")),
    "1.2.840.10008.1.2.4.70": (("lossless",), ("gdcm", "pylibjpeg")),
    "1.2.840.10008.1.2.4.80": (("JPEG-LS",), ("pyjpegls", "pylibjpeg")),
    "1.2.840.10008.1.2.4.81": (("JPEG-LS",), ("pyjpegls", "pylibjpeg")),
    "1.2.840.10008.1.2.4.90": (("JPEG 2000",), ("pillow",)),
    "1.2.840.10008.1.2.4.91": (("JPEG 2000",), ("pillow",)),
}
_FROM_EXTRA = ("gdcm", "pyjpegls")
_LEAST_BITS = {"lossless": 1.0, "baseline": 2 / 64, "extended": 2 / 64}

_PIXEL_TAGS = {0x7FE00008: "float", 0x7FE00009: "float", 0x7FE00010: "PixelData"}
# All that is ever read of a header to read its picture.
_KEYWORDS = (
    *("SOPClassUID", "Modality", "Manufacturer", "SeriesDescription", "PresentationIntentType"),
    *("BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleIntercept"),
    *("RescaleSlope", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PresentationLUTShape",),
)


@dataclass
class ImageHeader:
    """The attributes of the Image Pixel module (PS3.3 section C.7.6.3), checked.

    Attributes
    ----------
    rows, columns : int
        Size, pixels.
    samples : int
        Samples a pixel, 1 or 3.
    allocated, stored, high_bit : int
        Bits a sample takes, bits that count, and the place of the highest of these.
    signed : bool
        Two's complement.
    photometric : str
        PhotometricInterpretation.
    planar : int
        PlanarConfiguration.
    notes : list of str
        What was repaired or assumed.
    allowed : list of str
        Reasons of refusal that were set aside.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int
    notes: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """Bytes of one frame that is not compressed."""
        n_bytes = self.rows * self.columns * self.samples * self.allocated // 8
        return n_bytes * 2 // 3 if self.photometric == "YBR_FULL_422" else n_bytes


# --- the file ------------------------------------------------------------------------------------


class _Source:
    """A file that gives no more than it has: a length in a header is only a claim.

    Python sets aside what is asked for before it reads; 4 GB on the word of four bytes. Reads are
    counted, because a few megabytes can hold a million elements.
    """

    def __init__(self, stream: BinaryIO, n_bytes: int) -> None:
        self._stream = stream
        self.n_bytes = n_bytes
        self.n_reads = 0
        self.is_short = False
        self.tell = stream.tell

    def read(self, n_bytes: int = -1) -> bytes:
        self.n_reads += 1
        if self.n_reads > _MAX_READS:
            raise EOFError  # which pydicom takes for the end of the file
        left = max(0, self.n_bytes - self._stream.tell())
        if not 0 <= n_bytes <= left:
            self.is_short |= 0 < left < n_bytes
            n_bytes = left
        return self._stream.read(n_bytes)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = self._stream.seek(offset, whence)
        self.is_short |= position > self.n_bytes
        return position


@dataclass
class DicomFile:
    """A header that was read, and where its pixels are.

    Attributes
    ----------
    dataset : Dataset
        The elements that are needed.
    syntax, storage : str
        UIDs of transfer syntax and storage class; empty where there is no class.
    little : bool
        Byte order of header and uncompressed samples.
    source : _Source
        The file, at its pixels.
    pixels, pixels_vr : str
        ``"PixelData"``, ``"float"``, or empty for none; and the value representation.
    pixels_length : int
        Bytes the header claims, or 0xFFFFFFFF for fragments.
    """

    dataset: Dataset
    syntax: str
    storage: str
    little: bool
    source: _Source
    pixels: str = ""
    pixels_vr: str = ""
    pixels_length: int = 0


_DOWNLOAD = "pydicom.data.download"
_import_lock = threading.Lock()


class _Later(ModuleType):
    """A module of functions that is imported when one of them is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call


def load_pydicom() -> None:
    """Import what reading any file needs of pydicom, without the download of its test files.

    pydicom 3.0 imports HTTP, TLS and a progress bar for that: 16 of 99 ms, and 2 MiB. Whoever
    wants its test files still gets them.
    """
    with _import_lock:
        hide = "pydicom" not in sys.modules
        if hide:
            sys.modules[_DOWNLOAD] = _Later(_DOWNLOAD)
        try:
            import pydicom.filereader  # noqa: F401
        finally:
            if hide and isinstance(sys.modules.get(_DOWNLOAD), _Later):
                del sys.modules[_DOWNLOAD]


def parse_dicom(path: Path, stream: BinaryIO, keywords: Sequence[str] = _KEYWORDS) -> DicomFile:
    """Read file meta information and data set up to the pixels, which stay where they are.

    Parameters
    ----------
    path : Path
        The file, for messages.
    stream : file object
        The file, open for reading bytes.
    keywords : sequence of str, optional
        Elements to keep; default: what reading a picture needs.

    Returns
    -------
    DicomFile
        Header and place of the pixels.

    Raises
    ------
    ImageError
        Not DICOM, or deflated and damaged.
    """
    load_pydicom()
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataset import Dataset
    from pydicom.filereader import read_dataset

    n_bytes = os.fstat(stream.fileno()).st_size
    source = _Source(stream, n_bytes)
    reader = cast(BinaryIO, source)  # all of a file that pydicom uses
    head = stream.read(1024)
    if sniff(head) != "dicom":
        raise ImageError(path, "is not DICOM: no DICM at byte 128 and no data set at byte 0")
    # Without DICM at byte 128 it is a data set from byte 0 on, and passed sniff's check of that.
    source.seek(132 if head[128:132] == b"DICM" else 0)
    meta = read_dataset(reader, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    # What a network association puts in front (PS3.7 section 6.3) is no part of a file, but seen.
    if stream.read(2) == b"\0\0":
        stream.seek(-2, os.SEEK_CUR)
        read_dataset(reader, True, True, stop_when=lambda tag, vr, length: tag >> 16 != 0)
    elif stream.tell() < n_bytes:
        stream.seek(-2, os.SEEK_CUR)
    syntax = read_code(meta, "TransferSyntaxUID")
    if syntax == _DEFLATED:
        source = _inflate(path, source)
    implicit, little = _encoding(source, syntax)
    if not syntax:
        syntax = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
    elif syntax == _EXPLICIT_BIG and little:
        syntax = _EXPLICIT_LITTLE
    file = DicomFile(Dataset(), syntax, read_code(meta, "MediaStorageSOPClassUID"), little, source)
    starts: list[int] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag not in _PIXEL_TAGS:
            return False
        file.pixels, file.pixels_vr, file.pixels_length = _PIXEL_TAGS[tag], vr or "", length
        starts.append(source.tell())
        return True

    tags = [tag_for_keyword(keyword) or 0 for keyword in keywords]
    reader = cast(BinaryIO, source)
    file.dataset = read_dataset(reader, implicit, little, stop_when=at_pixels, specific_tags=tags)
    if starts:
        source.seek(starts[-1])
    file.storage = read_code(file.dataset, "SOPClassUID") or file.storage
    return file


def _encoding(source: _Source, syntax: str) -> tuple[bool, bool]:
    """Tell implicit VR and little endian; what the first element shows goes before what is said.

    pydicom finds out by itself whether VRs are there or not.
    """
    start = source.tell()
    first = source.read(6)
    source.seek(start)
    # The first group is 0008; the other way round it would be 0800, which is not used.
    shown = {b"\x08\0": True, b"\0\x08": False}
    little = shown.get(first[:2], syntax != _EXPLICIT_BIG)
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    return (syntax == _IMPLICIT_LITTLE) if syntax else not explicit, little


def _inflate(path: Path, source: _Source) -> _Source:
    """Undo PS3.5 section A.5, raw deflate; a few kB can hold gigabytes, so with a bound."""
    limit = min(_MAX_INFLATED_BYTES, _MAX_DEFLATION * source.n_bytes + (16 << 20))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain, n_bytes = BytesIO(), 0
    while not inflater.eof:
        data = inflater.unconsumed_tail or source.read(_CHUNK_BYTES)
        if not data:
            raise ImageError(path, "its deflated data is cut short; send or export it again")
        try:
            n_bytes += plain.write(inflater.decompress(data, _CHUNK_BYTES))
        except zlib.error:
            raise ImageError(
                path, "its deflated data is damaged, or not deflated; send or export it again"
            ) from None
        if n_bytes > limit:
            raise ImageError(
                path, f"inflates to more than {limit:,} bytes; send or export it again"
            )
    plain.seek(0)
    return _Source(plain, n_bytes)


def syntax_name(syntax: str) -> str:
    """Give a transfer syntax its name in the standard.

    Parameters
    ----------
    syntax : str
        UID.

    Returns
    -------
    str
        A name of PS3.6 table A-1, or ``"private or unknown"``.
    """
    from pydicom.uid import UID

    uid = UID(syntax)
    return uid.name if uid.is_transfer_syntax and not uid.is_private else "private or unknown"


def explain_no_pixels(path: Path, file: DicomFile) -> ImageError:
    """Say why there is no picture; a file that breaks off is an error and may come again.

    Parameters
    ----------
    path : Path
        The file.
    file : DicomFile
        Its header.

    Returns
    -------
    ImageError
        To be raised; a Refused with ``no_pixels`` where the file is whole.
    """
    if file.pixels == "float":
        found = "holds floating-point pixels, expected a radiograph; leave it out"
    elif file.source.n_reads > _MAX_READS:
        return ImageError(
            path, f"its header has more than {_MAX_READS:,} parts; send or export it again"
        )
    elif file.source.is_short:
        return ImageError(path, "is cut short in the middle of its header; send or copy it again")
    elif "Rows" in file.dataset:
        found = "describes a picture but holds no pixels: stripped or cut short; send it again"
    else:
        found = "holds no pixels, expected a radiograph; leave it out"
    return Refused(path, "no_pixels", found)


# --- the header ----------------------------------------------------------------------------------


def read_code(dataset: Dataset, keyword: str) -> str:
    """Give a code string's first value.

    Parameters
    ----------
    dataset : Dataset
        The header.
    keyword : str
        Which element.

    Returns
    -------
    str
        Upper case without padding; empty where it is missing or cannot be read.
    """
    try:
        values = as_list(read_value(dataset, keyword))
    except Exception:  # not readable is as good as missing
        return ""
    return str(values[0]).strip().strip("\0").strip().upper() if values else ""


def read_value(dataset: Dataset, keyword: str) -> Any:
    """Give an element's value.

    Parameters
    ----------
    dataset : Dataset
        The header.
    keyword : str
        Which element.

    Returns
    -------
    object or None
        As pydicom gives it; None where it is missing.

    Raises
    ------
    ValueError
        Longer than any honest one; and whatever pydicom raises, which may quote the value.
    """
    if keyword not in dataset:
        return None
    raw = getattr(dataset.get_item(keyword), "value", None)
    limit = _MAX_SEQUENCE_BYTES if keyword.endswith("Sequence") else _MAX_VALUE_BYTES
    if isinstance(raw, bytes) and len(raw) > limit:
        raise ValueError(f"{keyword} is longer than {limit} bytes")
    return dataset.get(keyword)


def as_list(value: Any) -> list[Any]:
    """Make a list of a value that may be one, several, or none.

    Parameters
    ----------
    value : object
        From `read_value`.

    Returns
    -------
    list
        Empty for None and an empty text.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return [value]
    return list(value)


def _integer(path: Path, dataset: Dataset, keyword: str) -> int | None:
    """Give a whole number of the header, or None where it is missing."""
    try:
        values = as_list(read_value(dataset, keyword))
    except Exception:  # pydicom's text quotes the value
        values = [""]
    if not values:
        return None
    try:
        return int(values[0])
    except (TypeError, ValueError):
        raise ImageError(
            path, f"its {keyword} is not a whole number; send or export it again"
        ) from None


def check_header(path: Path, dataset: Dataset, notes: list[str]) -> ImageHeader:
    """Check the Image Pixel module, fill in what has one sensible value, and say so.

    Parameters
    ----------
    path : Path
        The file, for messages.
    dataset : Dataset
        Its header.
    notes : list of str
        Gets a note for each value that was filled in.

    Returns
    -------
    ImageHeader
        What the samples are read by.

    Raises
    ------
    ImageError
        Something without which pixels cannot be shown is missing or impossible.
    """
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

    rows, columns = required("Rows"), required("Columns")
    check_size(path, columns, rows)
    samples = _integer(path, dataset, "SamplesPerPixel")
    photometric = read_code(dataset, "PhotometricInterpretation")
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
    planar = _integer(path, dataset, "PlanarConfiguration") if samples == 3 else 0
    if planar not in (0, 1):
        notes.append("PlanarConfiguration was missing and taken as 0")
        planar = 0
    return ImageHeader(
        rows,
        columns,
        samples,
        allocated,
        stored,
        high_bit,
        bool(representation),
        photometric,
        planar,
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
        shape = read_code(dataset, "PresentationLUTShape")
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


# --- the pixels ----------------------------------------------------------------------------------


def read_first_frame(
    path: Path, file: DicomFile, header: ImageHeader, allow: frozenset[str]
) -> tuple[NDArray[Any], str]:
    """Read the samples of the first frame as they are stored.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : DicomFile
        As :func:`parse_dicom` leaves it.
    header : ImageHeader
        Of the file; its notes get what had to be repaired, its `allowed` what was set aside.
    allow : frozenset of str
        Reasons of refusal that are set aside.

    Returns
    -------
    pixels : ndarray of integers, shape (rows, columns) or (rows, columns, 3)
        Samples as stored, with whatever is around their stored bits. Colour is RGB, or two
        dimensions of luma alone.
    syntax : str
        UID of the transfer syntax they were read by.

    Raises
    ------
    ImageError
        The pixels are cut short, damaged, or not what the header says.
    Refused
        ``multi_frame``, ``no_pixels`` or ``unsupported_transfer_syntax``.
    """
    syntax = _check_syntax(path, file, header)
    if syntax in _NATIVE:
        return _read_native(path, file, header, allow), syntax
    return _read_encapsulated(path, file, header, syntax, allow), syntax


def _check_syntax(path: Path, file: DicomFile, header: ImageHeader) -> str:
    """Hold the transfer syntax against how the pixels are written; the one to read them by."""
    encapsulated = file.pixels_length == 0xFFFFFFFF
    if file.syntax in _NATIVE and encapsulated:
        raise ImageError(
            path,
            f"its pixels are compressed, but its transfer syntax is {syntax_name(file.syntax)}; "
            "send or export it again",
        )
    if file.syntax in _NATIVE or encapsulated:
        return file.syntax
    if 0 <= file.pixels_length - header.n_bytes <= 1 and file.pixels_length:
        header.notes.append("the pixels were not compressed, though the transfer syntax says so")
        return _EXPLICIT_LITTLE
    if not file.pixels_length:
        raise Refused(path, "no_pixels", "its PixelData is empty; send or export it again")
    raise ImageError(
        path,
        f"its pixels should be compressed ({syntax_name(file.syntax)}) and are not written that "
        "way; send or export it again",
    )


def _check_frames(
    path: Path, dataset: Dataset, found: int, header: ImageHeader, allow: frozenset[str]
) -> None:
    """Refuse more than one frame, whether the header admits to them or not."""
    try:
        frames = _integer(path, dataset, "NumberOfFrames") or 1
    except ImageError:
        frames = 1
        header.notes.append("NumberOfFrames was no number and taken as 1")
    frames = max(frames, found)
    if frames > 1:
        message = f"holds {frames} frames, expected one radiograph; send a single image"
        refuse(path, "multi_frame", message, allow, header.allowed)


def _read_native(
    path: Path, file: DicomFile, header: ImageHeader, allow: frozenset[str]
) -> NDArray[Any]:
    """Read the first frame as it is stored: ``(rows, columns)`` or ``(rows, columns, 3)``."""
    expected = header.n_bytes
    if not file.pixels_length:
        raise Refused(path, "no_pixels", "its PixelData is empty; send or export it again")
    _check_frames(path, file.dataset, file.pixels_length // expected, header, allow)
    # Two bytes of 8 bits make a word, which big endian turns around (PS3.5 section 8.1.2).
    swapped = not file.little and header.allocated == 8 and file.pixels_vr == "OW"
    data = file.source.read(min(file.pixels_length, expected + (expected & swapped)))
    if len(data) < expected:
        raise ImageError(
            path,
            f"its pixel data is cut short: {len(data):,} bytes, expected {expected:,} for "
            f"{header.columns} x {header.rows} pixels; send or copy it again",
        )
    if expected + 1 < file.pixels_length < 2 * expected:
        header.notes.append("bytes behind the last pixel were ignored")
    if swapped:
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").byteswap().tobytes()
    order = "<" if file.little else ">"
    codes = np.frombuffer(
        data, f"{order}u{header.allocated // 8}", expected * 8 // header.allocated
    )
    if header.samples == 1:
        return codes.reshape(header.rows, header.columns)
    return _colour(header, codes)


def _colour(header: ImageHeader, codes: NDArray[Any]) -> NDArray[Any]:
    """Give RGB, or where there is luma (C.7.6.3.1.2: YBR_FULL) that alone."""
    rows, columns = header.rows, header.columns
    if header.photometric == "YBR_FULL_422":  # Y Y B R, for two pixels
        return codes.reshape(-1, 4)[:, :2].reshape(rows, columns)
    if header.planar:
        pixels = np.moveaxis(codes.reshape(3, rows, columns), 0, -1)
    else:
        pixels = codes.reshape(rows, columns, 3)
    return pixels[..., 0] if header.photometric == "YBR_FULL" else pixels


def _read_encapsulated(
    path: Path, file: DicomFile, header: ImageHeader, syntax: str, allow: frozenset[str]
) -> NDArray[Any]:
    """Decode the first frame, as `_read_native` gives it."""
    # Asked for first: whoever lacks a decoder shall hear of that and not of another fault.
    plugin = "" if syntax == _RLE else _choose_decoder(path, header, syntax)
    frame, frames = _first_frame(path, file, header, syntax)
    _check_frames(path, file.dataset, frames, header, allow)
    name = syntax_name(syntax)
    try:
        if syntax == _RLE:
            pixels: NDArray[Any] = unpack_rle(
                frame, header.rows, header.columns, header.samples, header.allocated // 8
            )
            return pixels[..., 0] if header.photometric == "YBR_FULL" else pixels
        _check_frame_header(path, header, syntax, read_frame_header(frame), len(frame))
    except ValueError as exc:
        if isinstance(exc, ImageError):
            raise
        raise ImageError(
            path, f"its pixel data ({name}) is damaged: {exc}; send or export it again"
        ) from None
    return _decode(path, header, syntax, plugin, frame)


def _first_frame(
    path: Path, file: DicomFile, header: ImageHeader, syntax: str
) -> tuple[bytes, int]:
    """Join the fragments of the first frame (PS3.5 section A.4); also the number of frames.

    NumberOfFrames is not trusted: what begins a frame is counted.
    """
    source = file.source

    def damaged(found: str) -> ImageError:
        return ImageError(
            path, f"its pixel data is cut short or damaged: {found}; send or export it again"
        )

    limit = 2 * header.n_bytes + (1 << 20)
    fragments: list[bytes] = []
    offsets: list[int] = []
    frames, kept, position, is_table = 0, 0, 0, True
    while True:
        if source.n_reads > _MAX_READS - 3:
            raise damaged("it has too many fragments")
        item = source.read(8)
        tag, length = item[:4], int.from_bytes(item[4:], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            break
        if len(item) < 8 or tag != b"\xfe\xff\x00\xe0" or length > source.n_bytes - source.tell():
            raise damaged("its fragments do not end where they should")
        behind = source.tell() + length
        if is_table:
            table = source.read(min(length, 8))
            # The table itself is not needed beyond the second frame's place.
            offsets = [int.from_bytes(table[i : i + 4], "little") for i in range(0, len(table), 4)]
            frames = length // 4
            source.seek(behind)
            is_table = False
            continue
        if not length:
            continue
        head = source.read(min(length, 4))
        if len(offsets) > 1:
            is_first = position < offsets[1] or not fragments
        else:
            starts = not fragments or syntax == _RLE or starts_frame(head)  # RLE: A.4.2
            frames = max(frames, 0 if fragments else 1)
            is_first = frames == 1 and (not fragments or not starts)
            frames += bool(fragments) and starts
        if is_first:
            kept += length
            if kept > limit:
                raise damaged("it is larger than the picture it stands for")
            fragments.append(head + source.read(length - len(head)))
        source.seek(behind)
        position += 8 + length
    if not kept:
        raise Refused(path, "no_pixels", "its PixelData is empty; send or export it again")
    return b"".join(fragments), max(1, frames)


def _choose_decoder(path: Path, header: ImageHeader, syntax: str) -> str:
    """Give the name of pydicom's plug-in."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    _, wanted = _DECODERS.get(syntax, ((), ()))
    # Pillow, the one decoder that is always there, knows no 12-bit JPEG.
    wide_jpeg = syntax == _JPEG_EXTENDED and header.stored > 8
    if wide_jpeg:
        wanted = ("pylibjpeg",)
    available = get_decoder(UID(syntax)).available_plugins if wanted else ()
    for plugin in wanted:
        if plugin in available:
            return plugin
    name = syntax_name(syntax)
    uid = f" ({syntax})" if name != "private or unknown" else ""
    if wide_jpeg:
        cure = "12-bit JPEG has none under a free licence: send it uncompressed"
    elif set(wanted) & set(_FROM_EXTRA):
        cure = 'pip install "hilum[dicom]", or send it uncompressed'
    else:
        cure = "send it uncompressed"
    raise Refused(
        path,
        "unsupported_transfer_syntax",
        f"its pixels are compressed as {name}{uid}, for which no decoder is installed; {cure}",
    )


def _check_frame_header(
    path: Path, header: ImageHeader, syntax: str, frame: FrameHeader, n_bytes: int
) -> None:
    """Hold a frame against the DICOM header, before a decoder believes either."""
    if frame.process not in _DECODERS[syntax][0]:
        raise ImageError(
            path,
            f"its transfer syntax is {syntax_name(syntax)}, its pixel data is {frame.process} "
            "compression; send or export it again",
        )
    if (frame.columns, frame.rows, frame.components) != (
        header.columns,
        header.rows,
        header.samples,
    ):
        raise ImageError(
            path,
            f"its pixel data is a frame of {frame.columns} x {frame.rows} pixels with "
            f"{frame.components} samples, its header says {header.columns} x {header.rows} with "
            f"{header.samples}; send or export it again",
        )
    # A code takes a bit at least: one a sample, or two for 8 x 8. Decoders fill up what is missing.
    if n_bytes * 8 < frame.columns * frame.rows * _LEAST_BITS.get(frame.process, 0):
        raise ImageError(
            path,
            f"its pixel data of {n_bytes:,} bytes is too short for {header.columns} x "
            f"{header.rows} pixels; send or export it again",
        )
    if not 2 <= frame.precision <= header.allocated:
        raise ImageError(
            path,
            f"its pixel data has samples of {frame.precision} bits, its header says "
            f"{header.allocated}; send or export it again",
        )


def _decode(
    path: Path, header: ImageHeader, syntax: str, plugin: str, frame: bytes
) -> NDArray[Any]:
    """Have one of pydicom's plug-ins decode a frame."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    # Colour is converted to RGB (C.7.6.3.1.2) by pydicom. Grey stays as stored: its unused bits are
    # dropped later, because pydicom takes HighBit for BitsStored - 1.
    options: dict[str, Any] = {
        "correct_unused_bits": header.samples != 1,
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": header.samples,
        "bits_allocated": header.allocated,
        "bits_stored": header.stored,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_representation": int(header.signed),
        "photometric_interpretation": header.photometric,
        "planar_configuration": header.planar,
    }
    try:
        pixels, _ = get_decoder(UID(syntax)).as_array(
            encapsulate([frame], has_bot=False),
            index=0,
            raw=header.samples == 1,
            decoding_plugin=plugin,
            **options,
        )
    except MemoryError:
        raise
    except Exception as exc:  # each plug-in raises what it likes
        raise ImageError(
            path,
            f"its pixel data ({syntax_name(syntax)}) is damaged or cut short: the decoder "
            f"stopped with {type(exc).__name__}; send or export it again",
        ) from None
    expected = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
    if pixels.shape != expected:
        raise ImageError(
            path,
            f"decodes to {pixels.shape}, while its header says {expected}; send or export it again",
        )
    return pixels
