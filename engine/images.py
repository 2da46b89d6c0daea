"""A file on disk as one grayscale picture.

Two steps, each in one place: :func:`read_picture` gives the whole picture as a viewer would show
it, or a refusal with a reason; :func:`engine.preprocessing.preprocess` makes the backbone's input
of it. What a file is, is told by its first bytes and never by its name.
"""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Collection
from contextlib import ExitStack, suppress
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
    quiet_decoders,
    refuse,
    scale_to_levels,
    sniff,
)
from engine.preprocessing import (
    FITS,
    JoinedPreprocessing,
    Preprocessing,
    preprocess,
    read_preprocessing,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "FITS",
    "IMAGE_SUFFIXES",
    "JoinedPreprocessing",
    "Preprocessing",
    "find_images",
    "load_reader",
    "preprocess",
    "read_picture",
    "read_preprocessing",
]

IMAGE_SUFFIXES = (".dcm", ".dicom", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
"""Names :func:`find_images` takes without looking inside, in lower case."""

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
        Samples as stored, and the table that makes grey levels of them.

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


def load_reader(path: str | PathLike[str]) -> None:
    """Import what :func:`read_picture` will need for a file, while something else takes time.

    Parameters
    ----------
    path : str or PathLike
        The file. What is wrong with it, reading it will say.
    """
    with suppress(ImageError):
        kind = sniff(_read_head(Path(path)))
        if kind == "dicom":
            import engine.dicom  # noqa: F401
            from engine.dicom_file import load_pydicom

            load_pydicom()
        elif kind is not None:
            _load_plugin(kind)


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


def _load_plugin(kind: str) -> None:
    """Import the one plug-in that is needed; Pillow would import all it has to try every format."""
    plugin = {"png": "PngImagePlugin", "jpeg": "JpegImagePlugin", "tiff": "TiffImagePlugin"}[kind]
    importlib.import_module(f"PIL.{plugin}")


def _read_with_pillow(path: Path, kind: str, allow: Collection[str]) -> Picture:
    from PIL import Image, UnidentifiedImageError

    _load_plugin(kind)
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
            samples, table, bits = _gray_samples(path, _upright(image, notes), white_is_zero)
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
        if samples.max() < 32:
            raise ImageError(
                path,
                "is 16-bit colour that uses only its low bits, of which at most 32 grey levels "
                "could be read; save it as 16-bit grayscale",
            )
        notes.append("16-bit colour was read by its upper 8 bits")
    about: dict[str, Any] = {"notes": notes} if notes else {}
    if allowed:
        about["allowed"] = allowed
    whole: NDArray[Any] = np.ascontiguousarray(samples)
    return finish_picture(Picture(whole, path, kind, bits, about, table), allow)


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


def _gray_samples(
    path: Path, image: Image.Image, white_is_zero: bool
) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.uint16] | None, int]:
    """Reduce a loaded picture of any mode to grey samples, their table, and the bits of one."""
    mode = image.mode
    if mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16, copy=False)
        low, high = int(values.min()), int(values.max())
        if low == high:
            return values, np.zeros(65536, dtype=np.uint16), 16
        every = np.arange(65536, dtype=np.float64)
        return values, scale_to_levels(every, low, high, invert=white_is_zero), 16
    if mode in ("I", "F"):
        wide = np.asarray(image)
        low_value, high_value = float(wide.min()), float(wide.max())
        if not (np.isfinite(low_value) and np.isfinite(high_value)):
            raise ImageError(
                path, "holds NaN or infinite samples; export it again as 16-bit grayscale"
            )
        levels = np.zeros(wide.shape, dtype=np.uint16)
        if low_value < high_value:
            for index, row in enumerate(wide):  # by rows: float64 takes eight times the room
                levels[index] = scale_to_levels(row, low_value, high_value, invert=white_is_zero)
        return levels, np.arange(65536, dtype=np.uint16), 32
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
        return over_black.astype(np.uint8), None, bits
    if mode == "CMYK":
        image = image.convert("RGB")
    if mode != "L":
        image = image.convert("L")
    return np.asarray(image), None, bits
