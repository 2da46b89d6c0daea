"""What one compressed frame says of itself, read with bounds before a decoder in C gets it.

Decoders trust a frame more than they should: some allocate the size it claims, one stops the whole
process at a marker it does not expect. So the markers in front of the coded samples are walked here
(ITU-T T.81 annex B for JPEG, T.87 annex C for JPEG-LS, T.800 annex A for JPEG 2000), and a frame
that is not what the DICOM header promises never reaches a decoder. RLE, which is short enough, is
undone here (PS3.5 annex G).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FrameHeader", "read_frame_header", "starts_frame", "unpack_rle"]

# Tiles cost the decoder memory each, whatever their size: a 50-megapixel picture in tiles of 64 x
# 64 pixels has 12,208.
_MAX_TILES = 16384

_JPEG_START = b"\xff\xd8"
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  "


@dataclass(frozen=True)
class FrameHeader:
    """Size and kind of a compressed frame, as its own markers tell.

    Attributes
    ----------
    process : str
        ``"baseline"``, ``"extended"``, ``"progressive"``, ``"lossless"``, ``"JPEG-LS"``,
        ``"JPEG 2000"`` or ``"other"``.
    columns, rows : int
        Size, pixels.
    components : int
        Samples a pixel.
    precision : int
        Bits of a sample.
    """

    process: str
    columns: int
    rows: int
    components: int
    precision: int


def starts_frame(head: bytes) -> bool:
    """Tell whether a fragment begins a JPEG or JPEG 2000 frame.

    Parameters
    ----------
    head : bytes
        Its first 4 bytes or more.

    Returns
    -------
    bool
        False for a fragment that continues the one before.
    """
    return head.startswith((_JPEG_START, _JPEG_2000_START))


def read_frame_header(data: bytes) -> FrameHeader:
    """Walk a frame's markers up to its coded samples.

    Parameters
    ----------
    data : bytes
        One frame of JPEG, JPEG-LS or JPEG 2000.

    Returns
    -------
    FrameHeader
        What they say.

    Raises
    ------
    ValueError
        Markers that are missing, out of place, or lie; the message quotes none of their bytes.
    """
    if data.startswith(_JPEG_START):
        return _read_jpeg(data)
    start = 0 if data.startswith(_JPEG_2000_START) else -1
    if data.startswith(_JP2_START):  # a whole JP2 file, against PS3.5 section A.4.4, but seen
        start = data.find(_JPEG_2000_START, 0, 4096)
    if start < 0:
        raise ValueError("the frame does not begin like JPEG or JPEG 2000")
    return _read_jpeg_2000(data[start : start + 4 + 38 + 3 * 4])


_PROCESSES = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xF7: "JPEG-LS",
}


def _read_jpeg(data: bytes) -> FrameHeader:
    header: FrameHeader | None = None
    names: tuple[int, ...] = ()
    tables: set[int] = set()
    position = 2
    while True:
        while data[position : position + 2] == b"\xff\xff":  # fill bytes, B.1.1.2
            position += 1
        if len(data) < position + 4 or data[position] != 0xFF:
            raise ValueError("the frame ends, or turns into something else, before its samples")
        marker = data[position + 1]
        if marker == 0x00 or 0xD0 <= marker <= 0xD9 or marker == 0x01:
            raise ValueError("a marker of the frame is out of place")
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            raise ValueError("a marker of the frame is longer than the frame")
        position += 2 + length
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if header is not None:
                raise ValueError("the frame has two headers")
            header, names = _read_start_of_frame(marker, body)
        elif marker == 0xC4:
            tables |= _check_huffman(body)
        elif marker == 0xDA:
            if header is None:
                raise ValueError("the frame has samples before its header")
            _check_start_of_scan(header, names, tables, body)
            return header


def _read_start_of_frame(marker: int, body: bytes) -> tuple[FrameHeader, tuple[int, ...]]:
    """T.81 B.2.2; also the names of the components."""
    if len(body) < 6 or len(body) != 6 + 3 * body[5] or body[5] == 0:
        raise ValueError("the frame's header has the wrong length")
    precision, components = body[0], body[5]
    rows, columns = (int.from_bytes(body[i : i + 2], "big") for i in (1, 3))
    for factors in body[7::3]:
        if not (1 <= factors >> 4 <= 4 and 1 <= factors & 15 <= 4):
            raise ValueError("the frame's components have impossible sampling factors")
    names = tuple(body[6::3])
    if len(set(names)) != components:
        raise ValueError("the frame names a component twice")
    process = _PROCESSES.get(marker, "other")
    return FrameHeader(process, columns, rows, components, precision), names


def _check_huffman(body: bytes) -> set[int]:
    """T.81 B.2.4.2; the codes of a table must fit into their lengths (annex C)."""
    found: set[int] = set()
    while body:
        counts = body[1:17]
        if len(counts) < 16 or len(body) < 17 + sum(counts) or sum(counts) > 256:
            raise ValueError("a Huffman table of the frame is cut short")
        if body[0] & 15 > 3 or body[0] >> 4 > 1:
            raise ValueError("a Huffman table of the frame has an impossible number")
        code = 0
        for bits, count in enumerate(counts, 1):
            code += count
            if code > 1 << bits:
                raise ValueError("a Huffman table of the frame has more codes than fit")
            code <<= 1
        found.add(body[0])
        body = body[17 + sum(counts) :]
    return found


def _check_start_of_scan(
    header: FrameHeader, names: tuple[int, ...], tables: set[int], body: bytes
) -> None:
    """T.81 B.2.3 and, for lossless frames, table H.1."""
    if not body or not 1 <= body[0] <= 4 or len(body) != 4 + 2 * body[0]:
        raise ValueError("the frame's scan header has the wrong length")
    chosen = body[1 : 1 + 2 * body[0] : 2]
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(names):
        raise ValueError("the frame's scan names a component that the frame does not have")
    first, _, bits = body[-3:]
    if header.process == "lossless":
        if not 1 <= first <= 7 or bits & 15 >= header.precision:
            raise ValueError("the frame's scan has an impossible predictor")
        if not {numbers >> 4 for numbers in body[2 : 2 + 2 * body[0] : 2]} <= tables:
            raise ValueError("the frame's scan names a Huffman table that is not there")


def _read_jpeg_2000(data: bytes) -> FrameHeader:
    """T.800 A.5.1; components of a size of their own are no radiograph."""
    if len(data) < 4 + 38 + 3:
        raise ValueError("the frame is cut short in its header")
    x, y, x0, y0, tile_x, tile_y, tile_x0, tile_y0 = (
        int.from_bytes(data[i : i + 4], "big") for i in range(8, 40, 4)
    )
    components = int.from_bytes(data[40:42], "big")
    if int.from_bytes(data[4:6], "big") != 38 + 3 * components or not 1 <= components <= 4:
        raise ValueError("the frame's header has the wrong length")
    samples = data[42 : 42 + 3 * components]
    if len(samples) != 3 * components or len(set(samples[::3])) != 1:
        raise ValueError("the frame's components differ in precision")
    if set(samples[1::3]) | set(samples[2::3]) != {1}:
        raise ValueError("the frame's components differ in size")
    if x <= x0 or y <= y0 or not tile_x or not tile_y or tile_x0 > x0 or tile_y0 > y0:
        raise ValueError("the frame's header claims no pixels")
    tiles = -(-(x - tile_x0) // tile_x) * -(-(y - tile_y0) // tile_y)
    if tiles > _MAX_TILES:
        raise ValueError("the frame claims more tiles than a radiograph has")
    return FrameHeader("JPEG 2000", x - x0, y - y0, components, (samples[0] & 0x7F) + 1)


def unpack_rle(
    data: bytes, rows: int, columns: int, samples: int, bytes_a_sample: int
) -> NDArray[np.unsignedinteger]:
    """Undo RLE (PS3.5 annex G) without ever holding more than the picture.

    A run of two bytes can stand for 128, so a frame that lies about its size would grow sixtyfold.

    Parameters
    ----------
    data : bytes
        One frame.
    rows, columns, samples, bytes_a_sample : int
        What the DICOM header says.

    Returns
    -------
    ndarray, uint8 or uint16, shape (rows, columns) or (rows, columns, samples)
        The samples.

    Raises
    ------
    ValueError
        Segments that are missing, overlap, or are too short.
    """
    n_segments = samples * bytes_a_sample
    if len(data) < 64 or int.from_bytes(data[:4], "little") != n_segments:
        raise ValueError("the number of RLE segments is not that of the header")
    starts = [int.from_bytes(data[i : i + 4], "little") for i in range(4, 4 + 4 * n_segments, 4)]
    ends = [*starts[1:], len(data)]
    n_pixels = rows * columns
    planes = np.empty((samples, n_pixels, bytes_a_sample), dtype=np.uint8)
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if not 64 <= start < end <= len(data):
            raise ValueError("the RLE segments overlap or lie outside the frame")
        sample, place = divmod(index, bytes_a_sample)  # most significant byte first, G.2
        segment = _unpack_bits(data[start:end], n_pixels)
        planes[sample, :, bytes_a_sample - 1 - place] = np.frombuffer(segment, np.uint8, n_pixels)
    codes = planes.view(f"<u{bytes_a_sample}").reshape(samples, rows, columns)
    return codes[0] if samples == 1 else np.moveaxis(codes, 0, -1)


def _unpack_bits(data: bytes, size: int) -> bytearray:
    """G.3.2, until there are `size` bytes or up to 127 more."""
    out = bytearray()
    position, end = 0, len(data)
    while len(out) < size:
        if position >= end:
            raise ValueError("an RLE segment is too short")
        count = data[position]
        if count < 128:
            out += data[position + 1 : position + 2 + count]
            position += 2 + count
        else:
            if count > 128:
                out += data[position + 1 : position + 2] * (257 - count)
            position += 2 if count > 128 else 1
    return out
