"""One grayscale picture, and the rules every reader of a file format shares."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageError, Refused

__all__ = [
    "MAX_PIXELS",
    "MIN_SIDE",
    "WHITE",
    "Picture",
    "check_size",
    "finish_picture",
    "look_up",
    "quiet_decoders",
    "refuse",
    "round_to_8_bits",
    "scale_to_levels",
    "sniff",
    "sparse",
]

MAX_PIXELS = 50_000_000
"""Largest picture that is decoded, pixels; a flat panel has 9 to 20 million. Bounds memory to a
about 500 MB whatever a header claims: twice that filled a quarter of a hospital PC."""

MIN_SIDE = 64
"""Shorter side below which a picture is refused, pixels: thumbnails and icons."""


WHITE = 65535
"""The brightest grey level. A step of 8 bits is 257 levels, so that rounding to levels first and to
8 bits then gives what rounding once would."""

_HUGE = 1e250
# Along each side of the grid of samples that is looked at before all of them are.
_SPARSE_SIDE = 48


@dataclass(frozen=True, eq=False)
class Picture:
    """One X-ray: samples as they are stored, and what a viewer would show of each.

    Parameters
    ----------
    samples : ndarray, uint8 or uint16, shape (h, w), C-contiguous
        As stored.
    path : Path
        The file it came from.
    format : str
        ``"png"``, ``"jpeg"``, ``"tiff"`` or ``"dicom"``, by content.
    stored_bits : int
        Bits of a stored sample that carry the picture.
    about : dict
        Facts that identify nobody, from closed vocabularies; a key is missing where the file does
        not say. ``notes`` (list of str) tells what had to be repaired or assumed, ``allowed`` (list
        of str) the reasons of refusal that were set aside.
    table : ndarray, uint16, shape (256,) or (65536,), or None
        Grey level, 0 to :data:`WHITE`, of every value a sample can have; larger is brighter, air is
        black and bone is white. It holds all that a header asks for: byte order, unused bits, sign,
        rescaling, window, padding and polarity. None where samples are grey levels of 8 bits.
    """

    samples: NDArray[np.uint8] | NDArray[np.uint16]
    path: Path
    format: str
    stored_bits: int
    about: dict[str, Any] = field(default_factory=dict)
    table: NDArray[np.uint16] | None = None

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The whole picture in 8 bits, uint8 ``(h, w)``; made when it is first asked for."""
        return self.show(self.samples)

    def show(self, samples: NDArray[Any]) -> NDArray[np.uint8]:
        """Give stored samples as a viewer would show them.

        Parameters
        ----------
        samples : ndarray, uint8 or uint16
            Some of the picture's.

        Returns
        -------
        ndarray, uint8
            Of the same shape.
        """
        if self.table is None:
            return samples
        return look_up(round_to_8_bits(self.table), samples)


def sniff(head: bytes) -> str | None:
    """Tell a supported format by the first bytes of a file.

    Parameters
    ----------
    head : bytes
        The first kilobyte, or the whole file if it is shorter.

    Returns
    -------
    str or None
        ``"dicom"``, ``"png"``, ``"jpeg"``, ``"tiff"``, or None for anything else.
    """
    # DICOM first: its 128-byte preamble may hold another format's header (PS3.10 section 7.1).
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if _looks_like_bare_dataset(head):
        return "dicom"
    return None


def _looks_like_bare_dataset(head: bytes) -> bool:
    """Tell a DICOM data set written without preamble by walking its first elements.

    PS3.10 section 7.1 requires the preamble, but archives and old modalities leave it out. Three
    elements in ascending order, of group 0002 or 0008 and with plausible value representations
    or lengths, are asked for; no picture or text passes that.
    """
    offset, count, previous = 0, 0, 0
    while count < 4 and offset + 8 <= len(head):
        group = int.from_bytes(head[offset : offset + 2], "little")
        element = int.from_bytes(head[offset + 2 : offset + 4], "little")
        tag = group << 16 | element
        if group not in (0x0002, 0x0008) or (count and tag <= previous):
            return False
        vr = head[offset + 4 : offset + 6]
        if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR"):
            length = int.from_bytes(head[offset + 8 : offset + 12], "little")
            start = offset + 12
        elif vr.isalpha() and vr.isupper():
            length = int.from_bytes(head[offset + 6 : offset + 8], "little")
            start = offset + 8
        else:
            length = int.from_bytes(head[offset + 4 : offset + 8], "little")
            start = offset + 8
        if length == 0xFFFFFFFF:  # a sequence: what came before must do
            break
        if length > 0xFFFF:
            return False
        count, previous, offset = count + 1, tag, start + length
    return count >= 3


def check_size(path: Path, columns: int, rows: int) -> None:
    """Refuse to decode what would not fit in memory, before anything is allocated.

    Parameters
    ----------
    path : Path
        The file.
    columns, rows : int
        Size the header claims, pixels.

    Raises
    ------
    ImageError
        More than :data:`MAX_PIXELS`, or nothing at all.
    """
    if columns < 1 or rows < 1:
        raise ImageError(path, f"its header says {columns} x {rows} pixels; export it again")
    if columns * rows > MAX_PIXELS:
        raise ImageError(
            path,
            f"its header says {columns} x {rows} pixels, more than the {MAX_PIXELS:,} that are "
            "read; reduce it to a normal X-ray size, or export it again if the header is wrong",
        )


def refuse(path: Path, reason: str, found: str, allow: Collection[str], allowed: list[str]) -> None:
    """Refuse a file, unless that reason was set aside.

    Parameters
    ----------
    path : Path
        The file.
    reason : str
        Of :data:`engine.errors.REFUSALS`.
    found : str
        What was found, what was expected and what to do.
    allow : collection of str
        Reasons that are set aside.
    allowed : list of str
        Gets the reason if it is.

    Raises
    ------
    Refused
        With that reason.
    """
    if reason not in allow:
        raise Refused(path, reason, found)
    allowed.append(reason)


def finish_picture(picture: Picture, allow: Collection[str] = ()) -> Picture:
    """Refuse a picture that shows nothing; the last step of reading, whatever the format.

    Parameters
    ----------
    picture : Picture
        Freshly read.
    allow : collection of str, optional
        Reasons of refusal that are set aside.

    Returns
    -------
    Picture
        The same.

    Raises
    ------
    Refused
        ``too_small`` or ``blank``.
    """
    rows, columns = picture.samples.shape
    allowed: list[str] = []
    if min(rows, columns) < MIN_SIDE:
        found = (
            f"{columns} x {rows} pixels, expected at least {MIN_SIDE} on the shorter side; "
            "use the original picture, not a thumbnail"
        )
        refuse(picture.path, "too_small", found, allow, allowed)
    shown = picture.show(sparse(picture.samples))
    if shown.min() == shown.max() and picture.pixels.min() == picture.pixels.max():
        found = (
            f"every pixel has the same grey level ({int(shown[0, 0])}), expected an "
            "X-ray; look at the file in a viewer"
        )
        refuse(picture.path, "blank", found, allow, allowed)
    if allowed:
        picture.about["allowed"] = [*picture.about.get("allowed", ()), *allowed]
    return picture


def sparse(samples: NDArray[Any]) -> NDArray[Any]:
    """Pick samples on a grid over the whole picture.

    Two that differ prove in microseconds that a picture is not flat; only where none does, all of
    its samples have to be looked at.

    Parameters
    ----------
    samples : ndarray, shape (h, w)
        All.

    Returns
    -------
    ndarray, shape (at most 97, at most 97)
        Some, in both directions at equal distances.
    """
    rows, columns = samples.shape
    return samples[:: 1 + rows // (2 * _SPARSE_SIDE), :: 1 + columns // (2 * _SPARSE_SIDE)]


def scale_to_levels(
    values: NDArray[Any], low: float, high: float, *, invert: bool = False
) -> NDArray[np.uint16]:
    """Spread values linearly over the grey levels, rounding halves up and clipping the rest.

    Parameters
    ----------
    values : ndarray, any real dtype
        Samples.
    low, high : float
        Values that become 0 and :data:`WHITE`, ``low < high``.
    invert : bool, optional
        Turn black and white around.

    Returns
    -------
    ndarray, uint16
        Of the same shape.
    """
    span = high - low
    scaled = values.astype(np.float64) - low
    # Multiplied first, a half is exactly a half; absurd numbers of a header would overflow.
    scaled = scaled * WHITE / span if abs(span) < _HUGE else scaled * (WHITE / span)
    levels = np.floor(np.clip(scaled, 0.0, WHITE) + 0.5).astype(np.uint16)
    return WHITE - levels if invert else levels


def round_to_8_bits(levels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Round grey levels to 8 bits; half steps of 8 bits go up, as all halves do.

    Parameters
    ----------
    levels : ndarray, uint16
        0 to :data:`WHITE`.

    Returns
    -------
    ndarray, uint8
        Of the same shape.
    """
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def look_up(table: NDArray[np.uint8], codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Replace each sample by its entry in a table.

    Parameters
    ----------
    table : ndarray, uint8, shape (n_values,)
        Grey level of every value a sample can have.
    codes : ndarray, unsigned integers, shape (h, w)
        Samples, each less than ``n_values``.

    Returns
    -------
    ndarray, uint8, shape (h, w)
        ``table[codes]``, made row by row: NumPy widens an index to eight bytes, which for a whole
        picture would take more memory than everything else together.
    """
    out = np.empty(codes.shape, dtype=np.uint8)
    for row, codes_row in zip(out, codes, strict=True):
        # "wrap" and "clip" skip the buffering that "raise" needs; no index is out of range.
        table.take(codes_row, out=row, mode="clip")
    return out


_quiet_lock = threading.Lock()

_quiet_state: dict[str, Any] = {"depth": 0}


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep warnings and log lines of Pillow and pydicom from the user.

    They quote values of the file, which may be a patient's, and become exceptions where warnings
    are errors; what matters of them is checked here and told in our own words. Usable from many
    threads at once, which :func:`warnings.catch_warnings` alone is not: the first to enter
    installs the filter and the last to leave restores what was there.
    """
    if getattr(sys.flags, "context_aware_warnings", False):  # filters are the thread's own
        with warnings.catch_warnings():
            _ignore_decoder_warnings()
            yield
        return
    with _quiet_lock:
        if _quiet_state["depth"] == 0:
            _quiet_state["catcher"] = catcher = warnings.catch_warnings()
            catcher.__enter__()
            _ignore_decoder_warnings()
            _quiet_state["loggers"] = []
            for name in ("pydicom", "PIL"):
                logger = logging.getLogger(name)
                _quiet_state["loggers"].append((logger, logger.propagate))
                logger.propagate = False
        _quiet_state["depth"] += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_state["depth"] -= 1
            if _quiet_state["depth"] == 0:
                for logger, propagate in _quiet_state["loggers"]:
                    logger.propagate = propagate
                _quiet_state["catcher"].__exit__(None, None, None)


def _ignore_decoder_warnings() -> None:
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)(\.|$)")
