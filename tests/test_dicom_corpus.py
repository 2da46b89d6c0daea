"""Hostile DICOM: hundreds of damaged and lying files, each read in bounded time and memory."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_helpers import (
    COLUMNS,
    ROWS,
    SECRETS,
    WINDOW,
    compressed,
    dicom,
    encode_with_gdcm,
    encoded,
    jpeg,
    lut_item,
    ramp,
    save,
    smooth,
    with_frames,
)
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from engine.errors import REFUSALS

MEGABYTE = 1 << 20
# What a process may take for one file, beyond what it has before: engine.dicom_file says it so.
FIXED_BYTES = 64 * MEGABYTE
# A file that takes longer is taken for one that hangs; the slowest takes a fraction of a second.
SECONDS_A_FILE = 30

# Reads the files it is told on standard input. Memory is counted for each file alone (man 5 proc,
# clear_refs); a limit on all of it keeps a mistake here from taking the machine along.
WORKER = """
import json, resource, signal, sys
from engine.dicom import read_dicom
from engine.errors import ImageError, Refused

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

def kilobytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

allow = set(sys.argv[2:])
for line in sys.stdin:
    path = line.rstrip("\\n")
    print(json.dumps({"start": path}), flush=True)
    signal.alarm(int(sys.argv[1]))
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = kilobytes("VmRSS:")
    reason = text = ""
    try:
        picture = read_dicom(path, allow=allow)
        status = "ok"
        text = json.dumps(picture.about)
        assert picture.pixels.dtype == "uint8" and picture.pixels.ndim == 2
        size = picture.pixels.size
        del picture
    except Refused as error:
        status, reason, text, size = "refused", error.reason, str(error), 0
    except ImageError as error:
        status, text, size = "error", str(error), 0
    except BaseException as error:
        status, text, size = "escaped", repr(error), 0
    grown = kilobytes("VmHWM:") - before
    signal.alarm(0)
    print(json.dumps({"path": path, "status": status, "reason": reason, "text": text,
                      "grown": grown, "size": size}), flush=True)
"""


# --- files to damage -----------------------------------------------------------------------------


def plain(syntax: str = ExplicitVRLittleEndian, bits: int = 12) -> FileDataset:
    ds = dicom(
        ramp(bits),
        syntax=syntax,
        bits=bits,
        allocated=8 if bits <= 8 else 16,
        RescaleSlope="1",
        RescaleIntercept="0",
        ViewPosition="PA",
        BodyPartExamined="CHEST",
        **WINDOW,
    )
    ds.VOILUTSequence = Sequence([lut_item(0, list(range(256)), 8)])
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "51185008", SECRETS["PatientName"]
    ds.AnatomicRegionSequence = Sequence([item])
    ds.add_new(0x00091001, "LO", SECRETS["PatientID"])
    return ds


def rle() -> FileDataset:
    ds = plain()
    ds.compress(RLELossless, generate_instance_uid=False)
    return ds


def baseline(data: bytes | None = None) -> FileDataset:
    return with_frames(plain(bits=8), JPEGBaseline8Bit, [data or jpeg(smooth())])


def jpeg_2000(data: bytes | None = None) -> FileDataset:
    ds = compressed(ramp(16), JPEG2000, bits=16, **WINDOW)
    return with_frames(ds, JPEG2000, [data]) if data else ds


def to_bytes(ds: FileDataset, folder: Path) -> bytes:
    return save(ds, folder / "making.dcm").read_bytes()


BASES = {
    "explicit": plain,
    "implicit": lambda: plain(ImplicitVRLittleEndian),
    "big": lambda: plain(ExplicitVRBigEndian),
    "deflated": lambda: plain(DeflatedExplicitVRLittleEndian),
    "rle": rle,
    "baseline": baseline,
    "jpeg2000": jpeg_2000,
}


def body_start(data: bytes) -> int:
    """Where the data set begins, behind the file meta information."""
    return 144 + int.from_bytes(data[140:144], "little")


def elements(data: bytes) -> list[tuple[int, int, int]]:
    """Offset, header length and value length of each element, explicit VR little endian."""
    found, at = [], body_start(data)
    while at + 8 <= len(data):
        long_form = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        header = 12 if long_form else 8
        size = data[at + 8 : at + 12] if long_form else data[at + 6 : at + 8]
        length = int.from_bytes(size, "little")
        found.append((at, header, length))
        if length == 0xFFFFFFFF:
            break
        at += header + length
    return found


def pixel_data(data: bytes) -> int:
    tag = b"\x7f\xe0\x00\x10" if b"1.2.840.10008.1.2.2" in data[:400] else b"\xe0\x7f\x10\0"
    return data.index(tag)


# --- the damage ----------------------------------------------------------------------------------


def truncations(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    places = np.unique(
        np.concatenate([
            np.array([1, 100, 131, 132, 140, 150, body_start(data), body_start(data) + 5]),
            np.linspace(body_start(data), len(data) - 1, 10).astype(int),
            np.array([len(data) - 9, len(data) - 1]),
        ])
    )  # fmt: skip
    for place in places:
        yield f"{name} cut at {place}", data[:place]


LIES: dict[str, list[Any]] = {
    "Rows": [0, 1, 63, ROWS - 1, ROWS + 1, 700, 50_000, 65_535],
    "Columns": [0, 1, COLUMNS + 1, 65_535],
    "BitsAllocated": [0, 1, 7, 8, 12, 24, 32, 64, 65_535],
    "BitsStored": [0, 1, 15, 16, 17, 65_535],
    "HighBit": [0, 3, 15, 16, 65_535],
    "SamplesPerPixel": [0, 2, 3, 4, 65_535],
    "PixelRepresentation": [1, 2, 65_535],
    "PlanarConfiguration": [1, 9],
    "NumberOfFrames": ["0", "-1", "2", "2147483647"],
    "WindowWidth": ["0", "-1", "1e300", "1e-300", ["1"] * 400],
    "WindowCenter": ["1e308", "-1e308"],
    "RescaleSlope": ["1e308", "-1e-308", "0"],
    "RescaleIntercept": ["1e308"],
    "PixelPaddingValue": [0, 4095],
    "VOILUTFunction": ["SIGMOID", "GRABOWSKA"],
    "Modality": ["GRABOWSKA", "SR", "CT", "DOC", ""],
    "BodyPartExamined": ["GRABOWSKA", "HAND", ["A"] * 50],
    "ViewPosition": ["LL", "GRABOWSKA"],
    "PhotometricInterpretation": ["GRABOWSKA", "RGB", "PALETTE COLOR", ""],
    "Manufacturer": ["Hilum"],
    "SOPClassUID": ["1.2.840.10008.5.1.4.1.1.88.11", "1.2.3", "GRABOWSKA"],
}


def lies(folder: Path) -> Iterator[tuple[str, bytes]]:
    for make in (plain, rle, baseline):
        for keyword, values in LIES.items():
            for value in values:
                ds = make()
                if keyword == "PixelPaddingValue":
                    ds.add_new(0x00280120, "US", value)
                else:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        setattr(ds, keyword, value)
                shown = str(value)[:12]
                yield f"{make.__name__} with {keyword} {shown}", to_bytes(ds, folder)


def lengths(folder: Path) -> Iterator[tuple[str, bytes]]:
    data = to_bytes(plain(), folder)
    for at, header, length in elements(data):
        for lie in (0xFFFFFFFF, 0xFFFFFFFE, length + 1, 1, 0x7FFFFFF0):
            changed = bytearray(data)
            if header == 12:
                changed[at + 8 : at + 12] = lie.to_bytes(4, "little")
            else:
                changed[at + 6 : at + 8] = (lie & 0xFFFF).to_bytes(2, "little")
            yield f"length {lie:x} at {at}", bytes(changed)
    implicit = to_bytes(plain(ImplicitVRLittleEndian), folder)
    for tag in (b"\x28\0\x10\0", b"\x28\0\x50\x10", b"\x28\0\x10\x30", b"\xe0\x7f\x10\0"):
        at = implicit.index(tag, body_start(implicit))
        for lie in (0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFF):
            changed = bytearray(implicit)
            changed[at + 4 : at + 8] = lie.to_bytes(4, "little")
            yield f"implicit length {lie:x} at {at}", bytes(changed)


def swaps(folder: Path, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    data = to_bytes(plain(), folder)
    parts = [data[at : at + header + length] for at, header, length in elements(data)]
    start = data[: body_start(data)]
    for number in range(12):
        a, b = rng.choice(len(parts), size=2, replace=False)
        tags = list(parts)
        tags[a], tags[b] = parts[b][:4] + parts[a][4:], parts[a][:4] + parts[b][4:]
        yield f"swapped tags {number}", start + b"".join(tags)
        places = list(parts)
        places[a], places[b] = parts[b], parts[a]
        yield f"swapped places {number}", start + b"".join(places)
    yield "backwards", start + b"".join(reversed(parts))
    yield "every element twice", start + b"".join(part + part for part in parts)
    yield "no pixel data but twice the rest", start + b"".join(2 * parts[:-1])


def sequences(folder: Path) -> Iterator[tuple[str, bytes]]:
    data = to_bytes(plain(), folder)
    start, rest = data[: body_start(data)], data[body_start(data) :]
    opened = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    voi = b"\x28\0\x10\x30" + opened[4:]
    for depth in (10, 1_000, 20_000):
        yield f"sequences {depth} deep", start + opened * depth + closed * depth + rest
        yield f"sequences {depth} deep, never closed", start + opened * depth + rest
        yield f"VOI LUTs {depth} deep", start + voi * depth + closed * depth + rest
    item = b"\xfe\xff\0\xe0\0\0\0\0"
    wide = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + item * 300_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    yield "a sequence of 300,000 items", start + wide + rest
    luts = b"\x28\0\x10\x30SQ\0\0\xff\xff\xff\xff" + item * 100_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    yield "100,000 VOI LUTs", start + luts + rest
    many = b"".join(
        struct.pack("<HH2sH", 0x0009, 0x1000 + n % 0xEFFF, b"LO", 0) for n in range(300_000)
    )
    yield "300,000 private elements", start + many + rest
    yield "300,000 elements and no pixels", start + many
    unknown = b"\x09\0\x01\x10UN\0\0\xff\xff\xff\xff"
    yield "unknown value without end", start + unknown + rest
    yield "unknown values without end", start + unknown * 5_000 + rest
    long_text = (b"1\\" * MEGABYTE)[:-1]
    implicit = to_bytes(plain(ImplicitVRLittleEndian), folder)
    for tag in (b"\x28\0\x50\x10", b"\x28\0\x10\0", b"\x18\0\x15\0"):
        at = implicit.index(tag, body_start(implicit))
        end = at + 8 + int.from_bytes(implicit[at + 4 : at + 8], "little")
        value = tag + len(long_text).to_bytes(4, "little") + long_text
        yield f"a million values in {tag.hex()}", implicit[:at] + value + implicit[end:]


def bombs(folder: Path) -> Iterator[tuple[str, bytes]]:
    deflated = to_bytes(plain(DeflatedExplicitVRLittleEndian), folder)
    start = deflated[: body_start(deflated)]
    header = to_bytes(plain(), folder)
    header = header[body_start(header) : pixel_data(header)]

    def deflate(data: bytes, zeros: int) -> bytes:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        parts = [deflater.compress(data)]
        parts += [deflater.compress(bytes(MEGABYTE)) for _ in range(zeros)]
        return b"".join(parts) + deflater.flush()

    pixels = b"\xe0\x7f\x10\0OW\0\0" + (500 * MEGABYTE).to_bytes(4, "little")
    yield "deflated zeros", start + deflate(b"", 500)
    yield "deflated pixels, 500 MB", start + deflate(header + pixels, 500)
    yield "deflated elements", start + deflate((header[:8] + b"\0") * 2, 60)
    yield "deflated twice", start + deflate(deflate(header + pixels, 20), 0)
    yield "not deflated", start + header

    def sized(data: bytes, rows: int, columns: int) -> bytes:
        at = data.index(b"\xff\xc0")
        return data[: at + 5] + struct.pack(">HH", rows, columns) + data[at + 9 :]

    for rows, columns in ((65_535, 65_535), (0, COLUMNS), (7_000, 7_000), (ROWS, 1)):
        frame = sized(jpeg(smooth()), rows, columns)
        yield f"JPEG frame of {columns} x {rows}", to_bytes(baseline(frame), folder)
        ds = baseline(frame)
        ds.Rows, ds.Columns = rows, columns
        yield f"JPEG frame and header of {columns} x {rows}", to_bytes(ds, folder)
    good = jpeg_2000().PixelData
    frame = good[good.index(b"\xff\x4f\xff\x51") :]
    for columns, rows, tile in ((1 << 31, 1 << 31, 1 << 31), (7_000, 7_000, 7_000), (80, 72, 1)):
        words = [columns, rows, 0, 0, tile, tile, 0, 0]
        changed = frame[:8] + struct.pack(">8I", *words) + frame[40:]
        yield f"JPEG 2000 frame of {columns}, tiles {tile}", to_bytes(jpeg_2000(changed), folder)
        if columns < 65_536:
            ds = jpeg_2000(changed)
            ds.Rows, ds.Columns = rows, columns
            name = f"JPEG 2000 frame and header of {columns}, tiles {tile}"
            yield name, to_bytes(ds, folder)

    run = bytes([129, 5]) * MEGABYTE  # 128 MB
    for rows in (ROWS, 6_000):
        for segments in (0, 1, 2, 3, 15, 16, 0xFFFFFFFF):
            offsets = [64 + 2 * n for n in range(15)]
            head = struct.pack("<I15I", segments, *offsets)
            ds = with_frames(plain(), RLELossless, [head + run])
            ds.Rows = rows
            yield f"RLE of {segments} segments, {rows} rows", to_bytes(ds, folder)
    head = struct.pack("<I15I", 2, 64, 64 + len(run) // 2, *[0] * 13)
    yield "RLE that grows", to_bytes(with_frames(plain(), RLELossless, [head + run]), folder)
    ds = with_frames(plain(), RLELossless, [head + run])
    ds.Rows = ds.Columns = 2_000
    yield "RLE that grows, and room for it", to_bytes(ds, folder)
    for offset in (0, 63, 65, 0xFFFFFFFF):
        head = struct.pack("<I15I", 2, 64, offset, *[0] * 13)
        ds = with_frames(plain(), RLELossless, [head + run[:5_000]])
        yield f"RLE segment at {offset}", to_bytes(ds, folder)
    two = with_frames(plain(bits=8), JPEGBaseline8Bit, [jpeg(smooth())] * 300)
    yield "300 frames", to_bytes(two, folder)
    fragments = b"\xfe\xff\0\xe0\0\0\0\0" * 300_000
    data = to_bytes(baseline(), folder)
    at = pixel_data(data) + 12
    yield "300,000 empty fragments", data[:at] + fragments + data[at:]
    yield "offset table of 4 GB", data[:at] + b"\xfe\xff\0\xe0\xfc\xff\xff\xff" + data[at + 8 :]


def fuzz(
    name: str, data: bytes, rng: np.random.Generator, count: int
) -> Iterator[tuple[str, bytes]]:
    pixels = pixel_data(data) if name != "deflated" else len(data) - 1
    for number in range(count):
        changed = bytearray(data)
        start, stop = (128, pixels) if number % 2 else (min(pixels, len(data) - 40), len(data))
        if number % 4 == 0:
            stop = min(stop, start + 200)
        for at in rng.integers(start, stop, size=rng.integers(1, 16)):
            changed[at] = rng.integers(0, 256)
        yield f"{name} fuzzed {number}", bytes(changed)


UIDS = [
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian),
    *(DeflatedExplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit, JPEG2000, JPEGLosslessSV1),
    *(JPEGLSLossless, "1.2.3", "GRABOWSKA"),
]


def wrong_meta(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    body = data[body_start(data) :]

    def meta(syntax: str) -> bytes:
        uid = syntax.encode() + b"\0" * (len(syntax) % 2)
        value = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
        return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(value)) + value

    for syntax in UIDS:
        yield f"{name} called {syntax}", meta(syntax) + body
    yield f"{name} without meta", bytes(128) + b"DICM" + body
    yield f"{name} with an empty meta", bytes(128) + b"DICM" + meta("")[132:144] + body
    yield f"{name} bare", body
    yield f"{name} without preamble", data[132:]
    yield f"{name} with half a preamble", data[64:]
    yield f"{name} with a long preamble", bytes(77) + data
    yield f"{name} one byte on", data[: body_start(data)] + b"\0" + body
    yield f"{name} one byte less", data[: body_start(data)] + body[1:]
    yield f"{name} and rubbish behind", data + b"\xff" * 1001


def corpus(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(20260)
    files: dict[str, bytes] = {}
    for name, make in BASES.items():
        data = to_bytes(make(), folder)
        files |= truncations(name, data)
        files |= wrong_meta(name, data)
        files |= fuzz(name, data, rng, 40)
    files |= lies(folder)
    files |= lengths(folder)
    files |= swaps(folder, rng)
    files |= sequences(folder)
    files |= bombs(folder)
    return files


# --- reading them --------------------------------------------------------------------------------


def read_all(paths: list[Path], repository: Path, *allow: str) -> dict[Path, dict[str, Any]]:
    """Read files in two processes, every one of which has to live to the end."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(SECONDS_A_FILE), *allow],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
        )
        for _ in range(2)
    ]
    for worker, share in zip(workers, (paths[::2], paths[1::2]), strict=True):
        assert worker.stdin is not None
        worker.stdin.write("".join(f"{path}\n" for path in share))
        worker.stdin.close()
        worker.stdin = None
    answers: dict[Path, dict[str, Any]] = {}
    for worker in workers:
        out, errors = worker.communicate(timeout=300)
        lines = [json.loads(line) for line in out.splitlines()]
        last = lines[-1] if lines else {}
        assert worker.returncode == 0, f"died ({worker.returncode}) at {last}: {errors[-2000:]}"
        for secret in hidden():
            assert secret not in errors
        answers |= {Path(line["path"]): line for line in lines if "path" in line}
    return answers


def hidden() -> list[str]:
    return [
        *(value for key, value in SECRETS.items() if key != "StudyInstanceUID"),
        *("GRABOWSKA", "ZOFIA", "PESEL", "44051401359", "Szpital", "1.2.826"),
    ]


def check(answers: dict[Path, dict[str, Any]], names: dict[Path, str]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for path, name in names.items():
        answer = answers[path]
        status, text = answer["status"], answer["text"]
        outcomes[status] += 1
        assert status in ("ok", "refused", "error"), (name, answer)
        assert (answer["reason"] in REFUSALS) == (status == "refused"), (name, answer)
        if status != "ok":
            assert text.startswith(f"{path}: "), (name, answer)
        message = text.removeprefix(str(path))
        for secret in hidden():
            assert secret not in message, (name, answer)
        # Nothing of gigabytes is asked for, even where the system would not give it.
        assert "fit in memory" not in message, (name, answer)
        allowed = FIXED_BYTES + 2 * path.stat().st_size + 8 * answer["size"]
        assert 1024 * answer["grown"] <= allowed, (name, answer)
    return outcomes


def write(files: dict[str, bytes], folder: Path) -> dict[Path, str]:
    names = {}
    for number, (name, data) in enumerate(files.items()):
        path = folder / f"{number:04}.dcm"
        path.write_bytes(data)
        names[path] = name
    return names


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is counted by Linux's /proc"
)


@needs_proc
def test_every_damaged_file_ends_well(tmp_path: Path, repository: Path) -> None:
    names = write(corpus(tmp_path), tmp_path)
    assert len(names) >= 300
    outcomes = check(read_all(list(names), repository), names)
    assert outcomes.total() == len(names)
    assert min(outcomes[status] for status in ("ok", "refused", "error")) >= 50, outcomes


@needs_proc
@pytest.mark.parametrize("module", ["jpeg_ls", "gdcm"])
def test_damaged_frames_of_the_extra_codecs(tmp_path: Path, repository: Path, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}, of the extra [dicom]")
    if module == "jpeg_ls":
        ds = compressed(ramp(12), JPEGLSLossless, bits=12)
    else:
        values = ramp(12)
        frames = encode_with_gdcm({0: (values, JPEGLosslessSV1, 12, False)}, tmp_path)
        ds = with_frames(dicom(values), JPEGLosslessSV1, [frames[0]])
    data = to_bytes(ds, tmp_path)
    rng = np.random.default_rng(7)
    frame = data.index(b"\xff\xd8", pixel_data(data))
    files = dict(truncations(module, data))
    for number in range(400):
        changed = bytearray(data)
        # Half of them in front of the coded samples, where a decoder believes what it reads.
        stop = frame + 80 if number % 2 else len(data) - 8
        for at in rng.integers(frame, stop, size=rng.integers(1, 6)):
            changed[at] = rng.integers(0, 256)
        files[f"{module} fuzzed {number}"] = bytes(changed)
    names = write(files, tmp_path)
    outcomes = check(read_all(list(names), repository), names)
    assert outcomes["error"] >= 100


@needs_proc
def test_a_flat_panels_picture_keeps_to_the_bound(tmp_path: Path, repository: Path) -> None:
    y, x = np.mgrid[:2400, :3000]
    values = (2000 + 1500 * np.sin(x / 300) + 300 * np.cos(y / 170)).astype(np.uint16)
    files = {}
    for name, syntax in (("explicit", ExplicitVRLittleEndian), ("big", ExplicitVRBigEndian)):
        files[name] = to_bytes(dicom(values, syntax=syntax, **WINDOW), tmp_path)
    files["deflated"] = to_bytes(
        dicom(values, syntax=DeflatedExplicitVRLittleEndian, **WINDOW), tmp_path
    )
    frame = encoded(values, JPEG2000, bits=16)
    files["jpeg2000"] = to_bytes(with_frames(dicom(values), JPEG2000, [frame]), tmp_path)
    two = dicom(np.concatenate([values] * 6), Rows=2400, NumberOfFrames=6)
    files["six frames"] = to_bytes(two, tmp_path)
    names = write(files, tmp_path)
    answers = read_all(list(names), repository, "multi_frame")
    assert check(answers, names) == {"ok": len(names)}
    # Frames that are not shown are not read either.
    grown = {name: 1024 * answers[path]["grown"] for path, name in names.items()}
    assert grown["six frames"] <= 6 * 2400 * 3000 + FIXED_BYTES
