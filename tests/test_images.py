"""Pictures made here, byte by byte where a library would not make them, and real X-rays."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from engine.errors import EngineError, ImageError, Refused
from engine.images import (
    IMAGE_SUFFIXES,
    Preprocessing,
    find_images,
    preprocess,
    read_picture,
)

ROWS, COLUMNS = 72, 96


def gray8() -> np.ndarray:
    y, x = np.mgrid[:ROWS, :COLUMNS]
    return ((x * 2 + y * 3) % 256).astype(np.uint8)


def gray16(top: int = 4095) -> np.ndarray:
    values = np.random.default_rng(top).integers(17, top, size=(ROWS, COLUMNS), endpoint=True)
    values[0, :2] = 17, top
    return values.astype(np.uint16)


def rgb8() -> np.ndarray:
    return np.stack([gray8(), gray8()[:, ::-1], gray8()[::-1]], axis=-1)


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., :3].astype(float) @ np.array([0.299, 0.587, 0.114])


def spread(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.floor((values.astype(float) - low) / (high - low) * 255 + 0.5)


def png(samples: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write PNG by hand: Pillow writes no 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    rows = samples.astype(">u2" if bits == 16 else "u1").reshape(samples.shape[0], -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(chunk(*item) for item in chunks)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def saved(tmp_path: Path, image: Image.Image, name: str, **options: Any) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF"])
def test_gray_as_it_is(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, Image.fromarray(gray8()), name)
    picture = read_picture(path)
    assert np.array_equal(picture.pixels, gray8())
    assert picture.pixels.dtype == np.uint8
    assert picture.path == path
    assert picture.stored_bits == 8
    assert picture.about == {}
    assert picture.format == ("png" if name == "a.png" else "tiff")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 40}])
def test_jpeg(tmp_path: Path, options: dict[str, Any]) -> None:
    path = saved(tmp_path, Image.fromarray(gray8()), "a.jpg", **options)
    picture = read_picture(str(path))
    assert np.array_equal(picture.pixels, np.asarray(Image.open(path)))
    assert picture.format == "jpeg"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "1", "P"])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_colour_is_luma(tmp_path: Path, mode: str, name: str) -> None:
    if (name == "a.png" and mode == "CMYK") or (name == "a.jpg" and mode in ("RGBA", "LA", "P")):
        return  # the format has no such mode
    rgb = rgb8()
    image = Image.fromarray(rgb).convert(mode)
    if mode == "1":
        rgb = np.where(gray8() > 99, 255, 0)[..., None].repeat(3, axis=-1).astype(np.uint8)
        image = Image.fromarray(rgb).convert("1", dither=Image.Dither.NONE)
    if mode == "P":
        rgb = np.asarray(image.convert("RGB"))
    path = saved(tmp_path, image, name, **({"quality": 100} if name == "a.jpg" else {}))
    picture = read_picture(path)
    tolerance = 16 if name == "a.jpg" and mode != "1" else 1.01
    if name == "a.jpg" and mode == "1":
        tolerance = 30
    assert np.abs(picture.pixels - luma(rgb)).max() <= tolerance
    assert picture.stored_bits == (1 if mode == "1" and name != "a.jpg" else 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_black(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((ROWS, COLUMNS), np.uint8)
    alpha[:, 32:] = 255
    alpha[:, 64:] = 102
    image = Image.fromarray(rgb8()).convert("RGB" if mode == "RGBA" else "L")
    base = luma(np.asarray(image)) if mode == "RGBA" else np.asarray(image).astype(float)
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    picture = read_picture(saved(tmp_path, image, "a.png"))
    assert np.abs(picture.pixels - base * alpha / 255).max() <= 1.01
    assert picture.pixels[:, :32].max() == 0


def test_transparent_grey_and_palette(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(gray8(), 8, 0, (b"tRNS", struct.pack(">H", 100))))
    expected = gray8().copy()
    expected[expected == 100] = 0
    assert np.array_equal(read_picture(path).pixels, expected)
    image = Image.fromarray(gray8()).convert("P")
    image.save(path, transparency=bytes(range(255, -1, -1)))
    shown = np.asarray(Image.open(path).convert("RGBA"))
    over_black = luma(shown) * shown[..., 3] / 255
    assert np.abs(read_picture(path).pixels - over_black).max() <= 1.01


@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["png", "tiff II", "tiff MM", "tiff lzw", "tiff I", "tiff F"])
def test_16_bits_from_their_own_range(tmp_path: Path, top: int, kind: str) -> None:
    values = gray16(top)
    path = tmp_path / "a"
    if kind == "png":
        path.write_bytes(png(values, 16, 0))
    elif kind == "tiff MM":
        path.write_bytes(big_endian_tiff(values))
    else:
        dtype = {"tiff I": np.int32, "tiff F": np.float32}.get(kind, np.uint16)
        options = {"compression": "tiff_lzw"} if kind == "tiff lzw" else {}
        Image.fromarray(values.astype(dtype)).save(path, "TIFF", **options)
    picture = read_picture(path)
    assert np.array_equal(picture.pixels, spread(values))
    assert picture.stored_bits == (32 if kind in ("tiff I", "tiff F") else 16)


def big_endian_tiff(values: np.ndarray) -> bytes:
    pixels = values.astype(">u2").tobytes()
    entries = [
        (256, 3, values.shape[1] << 16),
        (257, 3, values.shape[0] << 16),
        (258, 3, 16 << 16),
        (259, 3, 1 << 16),
        (262, 3, 1 << 16),
        (273, 4, 8 + 2 + 8 * 12 + 4),
        (278, 3, values.shape[0] << 16),
        (279, 4, len(pixels)),
    ]
    table = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + table + b"\0" * 4 + pixels


def test_signed_16_bits(tmp_path: Path) -> None:
    values = gray16(4095).astype(np.int32) - 2000
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path, tiffinfo=tags)
    assert np.array_equal(read_picture(path).pixels, spread(values))


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_white_is_zero_is_turned_once(
    tmp_path: Path, bits: int, compression: str | None, orientation: int
) -> None:
    values = {1: gray8() > 99, 8: gray8(), 16: gray16()}[bits]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262], tags[274] = 0, orientation
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path, tiffinfo=tags, compression=compression)
    # Pillow inverts what it writes for 1 and 8 bits, and writes 16 bits as they are.
    expected = 255 - spread(values) if bits == 16 else values * np.uint8(255 if bits == 1 else 1)
    if orientation == 6:
        expected = np.rot90(expected, -1)
    assert np.array_equal(read_picture(path).pixels, expected)


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_16_bit_colour_by_its_upper_byte(tmp_path: Path, colour: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 65536, size=(ROWS, COLUMNS, 4)).astype(np.uint16)
    rgb[..., 3] = 65535
    samples = {2: rgb[..., :3], 4: rgb[..., [0, 3]], 6: rgb}[colour]
    path = tmp_path / "a.png"
    path.write_bytes(png(samples, 16, colour))
    expected = rgb[..., 0] >> 8 if colour == 4 else luma(rgb >> 8)
    picture = read_picture(path)
    assert np.abs(picture.pixels - expected).max() <= 1.01
    assert "upper 8 bits" in picture.about["notes"][0]


def test_12_bit_data_in_16_bit_colour_is_not_read_as_16_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(gray16(4095)[..., None].repeat(3, axis=-1), 16, 2))
    with pytest.raises(ImageError, match="16-bit grayscale"):
        read_picture(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_orientation(tmp_path: Path, orientation: int, name: str) -> None:
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(gray8()), name, exif=exif)
    plain = gray8()
    if name == "a.jpg":
        plain = np.asarray(Image.open(path))
    assert np.array_equal(read_picture(path).pixels, turn(plain))


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = saved(
        tmp_path, Image.fromarray(gray8()), "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" * 3
    )
    assert np.array_equal(read_picture(path).pixels, gray8())


def test_mpo_gives_its_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(gray8()).save(
        path, "MPO", save_all=True, append_images=[Image.fromarray(255 - gray8())]
    )
    with Image.open(path) as image:
        first = np.asarray(image.convert("L"))
    assert np.array_equal(read_picture(path).pixels, first)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_several_pictures_in_one_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    other = Image.fromarray(255 - gray8())
    Image.fromarray(gray8()).save(path, kind, save_all=True, append_images=[other])
    with pytest.raises(Refused, match="2 pictures") as caught:
        read_picture(path)
    assert caught.value.reason == "multi_frame"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_blank(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((80, 80), 7, dtype)).save(path)
    with pytest.raises(Refused, match="same grey level") as caught:
        read_picture(path)
    assert caught.value.reason == "blank"


def test_small(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="63 x 72") as caught:
        read_picture(saved(tmp_path, Image.fromarray(gray8()[:, :63]), "a.png"))
    assert caught.value.reason == "too_small"
    assert read_picture(saved(tmp_path, Image.fromarray(gray8()[:64, :64]), "b.png"))


# --- what is no picture --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "0 bytes"),
        (b"Dear colleague, the picture of Mrs Nowak follows.", "text file"),
        ("Zdjęcie pacjentki później".encode(), "text file"),
        (b"\xff\xfet\0e\0x\0t\0", "UTF-16"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"<?xml version='1.0'?>", "XML"),
        (b'{"error": 404}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0" * 5000, "zero bytes"),
        (b"GIF89a" + b"\1" * 99, "GIF"),
        (b"BM" + b"\1\0" * 99, "BMP"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 90, "HEIC"),
        (b"\0\0\0\x18ftypavif" + b"\0" * 90, "AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04" + b"\0" * 60, "ZIP"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x89HIL\r\n\x1a\n", "Hilum container"),
        (bytes(range(7, 250)), "no known format"),
    ],
)
def test_strangers(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "chest.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=found) as caught:
        read_picture(path)
    text = str(caught.value)
    assert str(path) in text
    assert "PNG, JPEG, TIFF and DICOM" in text
    assert "Nowak" not in text
    assert not isinstance(caught.value, Refused)
    assert caught.value.path == path


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(ImageError, match="not a file name"):
        read_picture("nul\0.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="pipe"):
        read_picture(tmp_path / "pipe.png")
    (tmp_path / "to itself").symlink_to(tmp_path / "to itself")
    with pytest.raises(ImageError, match="cannot be read"):
        read_picture(tmp_path / "to itself")


def test_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is played."""
    path = saved(tmp_path, Image.fromarray(gray8()), "a.png")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match="read permission") as caught:
        read_picture(path)
    assert isinstance(caught.value.__cause__, PermissionError)


def test_errors_are_engine_and_value_errors(tmp_path: Path) -> None:
    for kind in (EngineError, ValueError):
        with pytest.raises(kind):
            read_picture(tmp_path)


NAMES = ("baseline.jpg", "progressive.jpg", "a.png", "plain.tif", "lzw.tif")


@pytest.mark.parametrize("name", NAMES)
def test_cut_files_are_never_half_read(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(5).integers(0, 256, size=(90, 90)).astype(np.uint8)
    options: dict[str, Any] = {
        "progressive.jpg": {"progressive": True},
        "lzw.tif": {"compression": "tiff_lzw"},
    }.get(name, {})
    whole = saved(tmp_path, Image.fromarray(noise), name, **options).read_bytes()
    path = tmp_path / "cut"
    # A TIFF may end in its directory; what is behind the pixels decides nothing else.
    ends = [*range(1, len(whole) - 40, max(1, len(whole) // 60)), len(whole) * 9 // 10]
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(ImageError) as caught:
            read_picture(path)
        assert not isinstance(caught.value, Refused), end
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("name", NAMES)
def test_random_damage(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(6)
    whole = saved(tmp_path, Image.fromarray(gray8()), name).read_bytes()
    path = tmp_path / "damaged"
    for _ in range(60):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), size=rng.integers(1, 20)):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            picture = read_picture(path)
        except ImageError as exc:
            assert str(path) in str(exc)
        else:
            assert picture.pixels.ndim == 2


@pytest.mark.parametrize("side", [10_001, 14_000, 30_000])
def test_too_many_pixels_are_not_decoded(tmp_path: Path, side: int) -> None:
    """Above our limit, above Pillow's warning and above Pillow's error."""
    data = bytearray(png(gray8(), 8, 0))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data[16:29] = header
    data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="50,000,000"):
        read_picture(path)


def test_a_text_bomb_in_png(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * (80 << 20), zip=True)
    path = saved(tmp_path, Image.fromarray(gray8()), "a.png", pnginfo=info)
    with pytest.raises(ImageError, match="damaged"):
        read_picture(path)


def test_nan(tmp_path: Path) -> None:
    values = gray8().astype(np.float32)
    values[3, 3] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        read_picture(saved(tmp_path, Image.fromarray(values), "a.tif"))


def test_threads_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(gray8()), "a.jpg")
    before = list(warnings.filters)
    seen: list[np.ndarray] = []

    def work() -> None:
        seen.extend(read_picture(path).pixels for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert all(np.array_equal(pixels, seen[0]) for pixels in seen)
    assert list(warnings.filters) == before


# --- folders -------------------------------------------------------------------------------------


def test_find_images(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpeg", "a.tif", "c/d/e.dcm", ".hidden/a.png", "b/.a.png", "n.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c/1.2.3").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "c/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "c/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "c/nowhere.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "z.png").symlink_to(tmp_path / "a.tif")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(str(tmp_path))]
    assert found == ["a.tif", "b/1.jpeg", "b/2.PNG", "c/1.2.3", "c/d/e.dcm", "z.png"]
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)


def test_find_images_follows_a_link_out(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/a.png").write_bytes(b"x")
    (tmp_path / "work").mkdir()
    (tmp_path / "work/linked").symlink_to(tmp_path / "archive", target_is_directory=True)
    assert find_images(tmp_path / "work") == [tmp_path / "work/linked/a.png"]
    assert find_images(tmp_path) == [tmp_path / "archive/a.png"]
    for name in ("aa", "zz"):
        (tmp_path / name).symlink_to(tmp_path / "archive", target_is_directory=True)
    assert find_images(tmp_path) == [tmp_path / "archive/a.png"]


def test_find_images_where_there_is_nothing(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []
    with pytest.raises(ImageError, match="no such file or folder"):
        find_images(tmp_path / "missing")
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(ImageError, match="not a folder"):
        find_images(tmp_path / "file.png")


# --- real X-rays ---------------------------------------------------------------------------------


def test_real_xrays(shared_data: Path) -> None:
    rules = Preprocessing()
    for folder, number in (("pneumonia/images", 720), ("covid/images", 100)):
        files = find_images(shared_data / folder)
        assert len(files) == number
        for path in files[:: number // 20]:
            picture = read_picture(path)
            with Image.open(path) as image:
                assert np.array_equal(picture.pixels, np.asarray(image.convert("L")))
            found = preprocess(picture, rules)
            assert found.std() > 10


def test_real_xrays_in_original_size(shared_data: Path) -> None:
    files = find_images(shared_data / "pneumonia_fullsize")
    assert len(files) == 36
    for path in files[::9]:
        picture = read_picture(path)
        assert max(picture.pixels.shape) > 512
        assert picture.about == {}
