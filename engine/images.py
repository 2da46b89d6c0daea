"""A file on disk as one 8-bit grayscale picture, and the picture as a backbone's input.

Two steps, each in one place: :func:`read_picture` gives the whole picture as a viewer would show
it, or a refusal with a reason; :func:`preprocess` makes the backbone's input of it by the rules of
:class:`Preprocessing`. What a file is, is told by its first bytes and never by its name.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import stat
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageError
from engine.picture import (
    MAX_PIXELS,
    Picture,
    check_size,
    finish_picture,
    look_up,
    quiet_decoders,
    refuse,
    scale_to_8_bits,
    sniff,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "FILTERS",
    "FITS",
    "IMAGE_SUFFIXES",
    "JoinedPreprocessing",
    "Preprocessing",
    "find_images",
    "preprocess",
    "read_picture",
    "read_preprocessing",
]

IMAGE_SUFFIXES = (".dcm", ".dicom", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
"""Names :func:`find_images` takes without looking inside, in lower case."""


FITS = ("crop", "pad", "stretch")
"""What :class:`Preprocessing` may do with a picture of another shape than the input."""

FILTERS = ("bicubic", "bilinear", "box", "hamming", "lanczos")
"""Filters :class:`Preprocessing` may resize with; all widen with the reduction (antialiased)."""

SUPPORTED = "PNG, JPEG, TIFF and DICOM"

_HEAD_BYTES = 1024


def read_picture(path: str | PathLike[str], *, allow: Collection[str] = ()) -> Picture:
    """Read a PNG, JPEG, TIFF or DICOM file as one grayscale picture.

    Colour becomes luma by ITU-R BT.601-7 section 2.5.1 (0.299 R + 0.587 G + 0.114 B); transparency
    is laid over black. EXIF and TIFF orientation are applied, TIFF pictures whose zero is white are
    inverted. Samples of more than 8 bits come without a display window in PNG and TIFF, and 12-bit
    data often sits in 16-bit files, where dividing by 256 would leave 16 grey levels; so they are
    scaled from their own smallest and largest value. DICOM goes to
    :func:`engine.dicom.read_dicom`.

    A JPEG is always decoded whole: libjpeg's reduced decoding would be faster, but gives other
    pixels than a full decode followed by the documented resize.

    Parameters
    ----------
    path : str or PathLike
        The file; its name and suffix do not matter.
    allow : collection of str, optional
        Reasons of refusal that are set aside, of :data:`engine.errors.OVERRIDABLE`; each that would
        have applied is in ``about["allowed"]``. Of several pictures the first is read.

    Returns
    -------
    Picture
        With ``pixels`` uint8 ``(h, w)``.

    Raises
    ------
    ImageError
        The file is missing, unreadable, damaged, too large, or no picture.
    Refused
        It is a picture nothing should be predicted from: ``multi_frame``, ``blank``,
        ``too_small``, and for DICOM the reasons of :func:`engine.dicom.read_dicom`.
    """
    file = Path(path)
    head = _read_head(file)
    kind = sniff(head)
    if kind == "dicom":
        from engine.dicom import read_dicom

        return read_dicom(file, allow=allow)
    if kind is None:
        raise ImageError(
            file,
            f"{_describe_stranger(head)}, not a picture; expected {SUPPORTED} "
            "(the content decides, not the name); convert it or leave it out",
        )
    return _read_with_pillow(file, kind, allow)


def find_images(folder: str | PathLike[str]) -> list[Path]:
    """List the image files under a folder.

    Takes files whose suffix is in :data:`IMAGE_SUFFIXES`, and files of any other name that carry
    ``DICM`` at byte 128 (archives name files by UID, without suffix). Leaves out hidden files and
    folders and ``DICOMDIR`` indexes. Symbolic links are followed, but no folder is entered twice,
    so that loops end.

    Parameters
    ----------
    folder : str or PathLike
        Where to start.

    Returns
    -------
    list of Path
        Sorted; empty where there is none.

    Raises
    ------
    ImageError
        The folder, or one inside it, is missing, no folder, or cannot be listed: a listing that
        silently lacks patients would be worse than none.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    # Real folders before linked ones, so that a picture is listed by its own path.
    real, linked = [Path(folder)], list[Path]()
    while real or linked:
        here = real.pop() if real else linked.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(here) as listing:
                # Backwards, because the last one put aside is taken up first.
                entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
        except OSError as exc:
            raise ImageError(here, _explain_os_error(exc, "a folder with images")) from exc
        for entry in entries:
            if entry.name.startswith(".") or entry.name.upper() == "DICOMDIR":
                continue
            # is_dir and is_file are false for a link that leads nowhere, and raise for one that
            # leads to itself.
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:
                continue
            if is_folder:
                (linked if entry.is_symlink() else real).append(here / entry.name)
            elif is_file and _is_image_name_or_dicom(here / entry.name):
                found.append(here / entry.name)
    return sorted(found)


@dataclass(frozen=True)
class Preprocessing:
    """The one way from a picture to the backbone's input; its digest travels with every feature.

    The steps of :func:`preprocess`, in order:

    1. *Fit.* ``"stretch"`` takes the whole picture and ignores its aspect ratio; ``"pad"`` takes
       the whole picture, keeps the ratio and puts equal black borders around it (the odd row or
       column goes to the bottom or right); ``"crop"`` takes the largest centred part of the input's
       aspect ratio.
    2. *Resize* with Pillow's separable, antialiased ``filter`` on 8-bit samples. Its fixed-point
       arithmetic gives the same bytes on every processor, which floating point would not promise,
       lies within about one grey level of it, takes the same time and a quarter of the memory.
    3. *Stretch of contrast*, where percentiles are given: grey levels from that of
       ``low_percentile`` to that of ``high_percentile`` of the small picture, without borders,
       spread linearly over 0 to 255; values outside are clipped. A picture whose two levels
       coincide is left as it is.

    Reading (:func:`read_picture`) is part of ``version``: whatever changes the bytes that come out
    for a file raises it.

    Parameters
    ----------
    version : int
        Version of these rules and of reading; this release knows 1.
    height, width : int
        Size of the input, pixels.
    fit : {"stretch", "pad", "crop"}
        Step 1.
    filter : {"bilinear", "box", "hamming", "bicubic", "lanczos"}
        Step 2.
    low_percentile, high_percentile : float or None
        Step 3, per cent; both or neither.

    Raises
    ------
    ValueError
        A value outside these choices.
    """

    version: int = 1
    height: int = 224
    width: int = 224
    fit: str = "stretch"
    filter: str = "bilinear"
    low_percentile: float | None = None
    high_percentile: float | None = None

    def __post_init__(self) -> None:
        for name in ("version", "height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"preprocessing: {name} is {value!r}, expected a whole number")
        if self.version != 1:
            raise ValueError(
                f"preprocessing: version {self.version}, this release knows version 1; "
                "it was made by a newer release: update hilum"
            )
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= 4096:
                raise ValueError(
                    f"preprocessing: {name} is {getattr(self, name)}, expected 1 to 4096 pixels"
                )
        for name, choices in (("fit", FITS), ("filter", FILTERS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"preprocessing: {name} is {getattr(self, name)!r}, expected one of "
                    + ", ".join(choices)
                )
        low, high = self.low_percentile, self.high_percentile
        if (low is None) != (high is None):
            raise ValueError(
                "preprocessing: low_percentile and high_percentile go together; give both or none"
            )
        if low is not None and high is not None:
            if not 0 <= low < high <= 100:
                raise ValueError(
                    f"preprocessing: percentiles {low} and {high}, expected 0 <= low < high <= 100"
                )
            # 1 and 1.0 are one rule and must have one digest.
            object.__setattr__(self, "low_percentile", float(low))
            object.__setattr__(self, "high_percentile", float(high))

    def to_dict(self) -> dict[str, Any]:
        """Give the rules as plain values.

        Returns
        -------
        dict
            Every field by its name; what :meth:`from_dict` takes and JSON can hold.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make the rules of plain values.

        Parameters
        ----------
        values : mapping
            Fields by name; those left out have their default.

        Returns
        -------
        Preprocessing
            The rules.

        Raises
        ------
        ValueError
            A key or value these rules do not know.
        """
        known = {item.name for item in fields(cls)}
        strangers = sorted(set(values) - known)
        if strangers:
            raise ValueError(
                f"preprocessing: unknown key {strangers[0]!r}, expected only "
                f"{', '.join(sorted(known))}; it may come from a newer release: update hilum"
            )
        return cls(**values)

    @property
    def parts(self) -> tuple[Preprocessing, ...]:
        """The rules for each input of the network: these, once."""
        return (self,)

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, of the canonical JSON: sorted keys, no spaces, ASCII."""
        return _digest(self.to_dict())


@dataclass(frozen=True)
class JoinedPreprocessing:
    """The rules of several backbones that look at one picture.

    Parameters
    ----------
    parts : tuple of Preprocessing
        The rules of each backbone, in their order; two or more.

    Raises
    ------
    ValueError
        Fewer than two.
    """

    parts: tuple[Preprocessing, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError(f"preprocessing: {len(self.parts)} part(s), expected two or more")

    def to_dict(self) -> dict[str, Any]:
        """Give the rules as plain values.

        Returns
        -------
        dict
            Every field of :class:`Preprocessing` by its name, with a list of the parts' values.
        """
        rules = [part.to_dict() for part in self.parts]
        return {name: [rule[name] for rule in rules] for name in rules[0]}

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, of the canonical JSON of :meth:`to_dict`."""
        return _digest(self.to_dict())


def read_preprocessing(values: Mapping[str, Any]) -> Preprocessing | JoinedPreprocessing:
    """Make the rules of one backbone, or of joined ones, of plain values.

    Parameters
    ----------
    values : mapping
        From a container's notes or a head: fields by name, or lists of them for joined backbones.

    Returns
    -------
    Preprocessing or JoinedPreprocessing
        The rules.

    Raises
    ------
    ValueError
        A key or value these rules do not know, or lists of different lengths.
    """
    lists = {name: value for name, value in values.items() if isinstance(value, list | tuple)}
    if not lists:
        return Preprocessing.from_dict(values)
    lengths = {len(value) for value in lists.values()}
    if len(lists) != len(values) or len(lengths) != 1:
        raise ValueError(
            "preprocessing: some settings are lists and others not, or of other lengths; expected "
            "a list with one value for each joined backbone in all of them; extract again"
        )
    return JoinedPreprocessing(
        tuple(
            Preprocessing.from_dict({name: value[number] for name, value in lists.items()})
            for number in range(lengths.pop())
        )
    )


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def preprocess(picture: Picture, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Make the backbone's input of a picture, by the rules of :class:`Preprocessing`.

    Parameters
    ----------
    picture : Picture
        From :func:`read_picture`.
    preprocessing : Preprocessing
        The rules.

    Returns
    -------
    ndarray, uint8, shape (1, height, width)
        One channel; the same bytes for the same picture and rules, on every machine.
    """
    from PIL import Image

    filters = {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "box": Image.Resampling.BOX,
        "hamming": Image.Resampling.HAMMING,
        "lanczos": Image.Resampling.LANCZOS,
    }
    height, width = preprocessing.height, preprocessing.width
    rows, columns = picture.pixels.shape
    box: tuple[float, float, float, float] = (0, 0, columns, rows)
    inner_height, inner_width = height, width
    if preprocessing.fit == "pad":
        # Whole numbers throughout: rounding must not depend on a machine's floating point.
        if columns * height < rows * width:
            inner_width = max(1, (2 * columns * height + rows) // (2 * rows))
        else:
            inner_height = max(1, (2 * rows * width + columns) // (2 * columns))
    elif preprocessing.fit == "crop":
        if columns * height > rows * width:
            spare = columns - rows * width / height
            box = (spare / 2, 0, columns - spare / 2, rows)
        else:
            spare = rows - columns * height / width
            box = (0, spare / 2, columns, rows - spare / 2)
    small = Image.fromarray(np.ascontiguousarray(picture.pixels)).resize(
        (inner_width, inner_height), filters[preprocessing.filter], box=box
    )
    if preprocessing.low_percentile is not None and preprocessing.high_percentile is not None:
        small = _stretch(small, preprocessing.low_percentile, preprocessing.high_percentile)
    inner = np.asarray(small)
    if inner.shape == (height, width):
        return inner[np.newaxis]
    out = np.zeros((1, height, width), dtype=np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    out[0, top : top + inner_height, left : left + inner_width] = inner
    return out


def _read_head(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(path, "is a folder, expected a file; name the files in it")
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for ever.
            raise ImageError(path, "is a device or pipe, expected a regular file")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as exc:
        raise ImageError(path, _explain_os_error(exc, "an image file")) from exc
    except ValueError as exc:  # a NUL character in the name
        raise ImageError(path, f"is not a file name ({exc})") from exc
    if not head:
        raise ImageError(path, f"is empty (0 bytes), expected {SUPPORTED}; copy or export it again")
    return head


def _explain_os_error(exc: OSError, expected: str) -> str:
    if isinstance(exc, FileNotFoundError):
        return f"no such file or folder, expected {expected}; check the spelling"
    if isinstance(exc, PermissionError):
        return "may not be read by this user; give it read permission"
    if isinstance(exc, NotADirectoryError):
        return f"is not a folder, expected {expected}"
    return f"cannot be read ({exc.strerror or type(exc).__name__}), expected {expected}"


def _is_image_name_or_dicom(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False  # not known to be an image, and not named like one


_STRANGERS = (
    (b"\x89HIL", "is a Hilum container"),
    (b"GIF8", "is a GIF"),
    (b"BM", "looks like a BMP"),
    (b"\0\0\0\x0cjP  ", "is a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "is a JPEG 2000 stream"),
    (b"\xff\x0a", "looks like JPEG XL"),
    (b"\0\0\0\x0cJXL ", "is JPEG XL"),
    (b"8BPS", "is a Photoshop file"),
    (b"%PDF", "is a PDF"),
    (b"PK\x03\x04", "is a ZIP archive or office document"),
    (b"\x1f\x8b", "is gzip-compressed"),
    (b"7z\xbc\xaf", "is a 7-Zip archive"),
    (b"Rar!", "is a RAR archive"),
    (b"NRRD", "is a NRRD volume"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"\x7fELF", "is a program"),
    (b"MZ", "looks like a Windows program"),
    (b"version https://git-lfs", "is a Git LFS pointer (git lfs pull fetches the file)"),
    (b"\xff\xfe", "looks like UTF-16 text"),
    (b"\xfe\xff", "looks like UTF-16 text"),
)


def _describe_stranger(head: bytes) -> str:
    """Say what bytes look like without quoting them: a text may hold a patient's name."""
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1"):
            return "is HEIC (a phone's picture)"
        return "is AVIF" if head[8:12] in (b"avif", b"avis") else "is a video"
    if head.startswith(b"RIFF"):
        return "is WebP" if head[8:12] == b"WEBP" else "is a RIFF sound or video"
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "is a NIfTI volume"
    for magic, text in _STRANGERS:
        if head.startswith(magic):
            return text
    if not any(head):
        return "holds only zero bytes (a copy that never finished?)"
    # A multi-byte character may be cut at the end of what was read.
    text_head = head.decode("utf-8", errors="ignore")
    if len(text_head.encode("utf-8")) >= len(head) - 3:
        shown = sum(char.isprintable() or char in "\r\n\t\f\ufeff" for char in text_head)
        if shown == len(text_head):
            start = text_head.lstrip("\ufeff \r\n\t").lower()
            if start.startswith(("<!doctype html", "<html")):
                return "is a web page (a download that failed?)"
            if start.startswith("<"):
                return "is XML"
            return "is JSON text" if start.startswith(("{", "[")) else "is a text file"
    return "holds bytes of no known format"


def _read_with_pillow(path: Path, kind: str, allow: Collection[str]) -> Picture:
    from PIL import Image, UnidentifiedImageError

    # The one plug-in that is needed; Pillow would import all it has to try every format.
    plugin = {"png": "PngImagePlugin", "jpeg": "JpegImagePlugin", "tiff": "TiffImagePlugin"}[kind]
    importlib.import_module(f"PIL.{plugin}")
    # MPO: a JPEG with previews behind the picture, which every other reader ignores too.
    formats = ("JPEG", "MPO") if kind == "jpeg" else (kind.upper(),)
    notes: list[str] = []
    allowed: list[str] = []
    try:
        with quiet_decoders(), ExitStack() as stack:
            # Given a name, Pillow 13 maps uncompressed TIFF into memory and, where the orientation
            # swaps rows and columns, reads it with the sides exchanged: a scrambled picture.
            source = stack.enter_context(path.open("rb")) if kind == "tiff" else path
            image = stack.enter_context(Image.open(source, formats=formats))
            check_size(path, *image.size)
            frames = 1 if kind == "jpeg" else getattr(image, "n_frames", 1)
            if frames > 1:
                found = f"holds {frames} pictures, expected one; save the X-ray alone"
                refuse(path, "multi_frame", found, allow, allowed)
            deep = any(";16" in str(tile) for tile in image.tile)
            # Pillow inverts WhiteIsZero (TIFF 6.0 section 3) for 1 and 8 bits, not for 16.
            white_is_zero = kind == "tiff" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
            image.load()
            pixels, bits = _gray_pixels(path, _upright(image, notes), white_is_zero)
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError(
            path,
            f"begins like {kind.upper()}, but its header is damaged or of a kind that is not "
            "read; export it again as 8- or 16-bit grayscale PNG",
        ) from exc
    except Image.DecompressionBombError as exc:
        raise ImageError(
            path, f"claims more pixels than the {MAX_PIXELS:,} that are read; reduce it"
        ) from exc
    except MemoryError as exc:
        raise ImageError(path, "does not fit in memory; reduce it, or close programs") from exc
    except OSError as exc:
        if exc.errno is not None:
            raise ImageError(path, _explain_os_error(exc, "an image file")) from exc
        raise ImageError(path, _damaged(kind, exc)) from exc
    except Exception as exc:  # whatever a decoder makes of hostile bytes
        raise ImageError(path, _damaged(kind, exc)) from exc
    if deep and bits == 8:
        # Pillow keeps the upper 8 of 16 bits of colour. A 12-bit picture would be left with 16
        # grey levels, and nobody would see why.
        if pixels.max() < 32:
            raise ImageError(
                path,
                "is 16-bit colour that uses only its low bits, of which at most 32 grey levels "
                "could be read; save it as 16-bit grayscale",
            )
        notes.append("16-bit colour was read by its upper 8 bits")
    about: dict[str, Any] = {"notes": notes} if notes else {}
    if allowed:
        about["allowed"] = allowed
    return finish_picture(Picture(pixels, path, kind, bits, about), allow)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """Turn a loaded picture as its EXIF says; TIFF comes turned, and without the tag, already."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing about the pixels
        notes.append("the EXIF block is damaged; its orientation was not applied")
        return image


def _damaged(kind: str, exc: Exception) -> str:
    return (
        f"is {kind.upper()} but damaged or cut short ({exc}), so no pixel of it is used; copy or "
        "export it again"
    )


def _gray_pixels(
    path: Path, image: Image.Image, white_is_zero: bool
) -> tuple[NDArray[np.uint8], int]:
    """Reduce a loaded picture of any mode to 8-bit luma; also the bits of its samples."""
    mode = image.mode
    if mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low == high:
            return np.zeros(values.shape, dtype=np.uint8), 16
        # One table look-up instead of arithmetic on every pixel.
        table = scale_to_8_bits(np.arange(65536, dtype=np.float64), low, high, invert=white_is_zero)
        return look_up(table, values), 16
    if mode in ("I", "F"):
        values = np.asarray(image)
        low_value, high_value = float(values.min()), float(values.max())
        if not (np.isfinite(low_value) and np.isfinite(high_value)):
            raise ImageError(
                path, "holds NaN or infinite samples; export it again as 16-bit grayscale"
            )
        if low_value == high_value:
            return np.zeros(values.shape, dtype=np.uint8), 32
        out = np.empty(values.shape, dtype=np.uint8)
        for index, row in enumerate(values):  # by rows: float64 takes eight times the room
            out[index] = scale_to_8_bits(row, low_value, high_value, invert=white_is_zero)
        return out, 32
    if mode in ("LAB", "HSV"):
        raise ImageError(
            path, f"has colour space {mode}, expected grey, RGB or CMYK; save it as grayscale"
        )
    bits = 1 if mode == "1" else 8
    if image.has_transparency_data:
        if mode in ("P", "PA", "RGBa"):
            image = image.convert("RGBA")
        luma, alpha = (np.asarray(band) for band in image.convert("LA").split())
        over_black = (luma.astype(np.uint16) * alpha + 127) // 255
        return over_black.astype(np.uint8), bits
    if mode == "CMYK":
        image = image.convert("RGB")
    if mode != "L":
        image = image.convert("L")
    return np.asarray(image), bits


def _stretch(image: Image.Image, low: float, high: float) -> Image.Image:
    """Spread the grey levels between two percentiles over 0 to 255, in whole numbers."""
    at_or_below = np.cumsum(image.histogram())
    n_pixels = int(at_or_below[-1])
    bottom = int(np.argmax(at_or_below > low / 100 * n_pixels))
    top = int(np.argmax(at_or_below >= high / 100 * n_pixels))
    if top <= bottom:
        return image
    span = top - bottom
    levels = np.clip(np.arange(256) - bottom, 0, span)
    return image.point(((2 * 255 * levels + span) // (2 * span)).tolist())
