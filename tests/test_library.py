"""The compiled reader as Python sees it: layout, checksums, interface version, weight."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import COLUMN_DTYPE, STATUS_NAMES

from formats import _library
from formats._library import HEADER_DTYPE, crc32c, ffi, lib

# The layout table of formats/container.md, in literal numbers: offset and size in bytes.
HEADER_LAYOUT = {
    "magic": (0, 8),
    "major": (8, 2),
    "minor": (10, 2),
    "header_size": (12, 4),
    "file_size": (16, 8),
    "n_rows": (24, 8),
    "dim": (32, 4),
    "dtype": (36, 1),
    "n_columns": (37, 1),
    "chunk_log2": (38, 1),
    "state": (39, 1),
    "incompatible": (40, 8),
    "compatible": (48, 8),
    "features": (56, 16),
    "scales": (72, 16),
    "table": (88, 16),
    "notes": (104, 16),
    "table_crc32c": (120, 4),
    "notes_crc32c": (124, 4),
    "backbone_sha256": (128, 32),
    "preprocessing_sha256": (160, 32),
    "body_sha256": (192, 32),
    "uuid": (224, 16),
    "zero0": (240, 272),
    "columns": (512, 2048),
    "zero1": (2560, 1532),
    "header_crc32c": (4092, 4),
}
COLUMN_LAYOUT = {
    "name": (0, 24),
    "role": (24, 2),
    "type": (26, 1),
    "flags": (27, 1),
    "width": (28, 4),
    "offset": (32, 8),
    "length": (40, 8),
    "crc32c": (48, 4),
    "n_values": (52, 4),
    "reserved": (56, 8),
}
# RFC 3720 appendix B.4, and the check value of the CRC catalogues.
CRC_VECTORS = [
    (b"", 0),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
]


def layout(dtype: np.dtype) -> dict[str, tuple[int, int]]:
    return {name: (dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in dtype.names}


def test_header_layout():
    assert layout(HEADER_DTYPE) == HEADER_LAYOUT
    assert HEADER_DTYPE.itemsize == 4096


def test_column_layout():
    assert layout(COLUMN_DTYPE) == COLUMN_LAYOUT
    assert COLUMN_DTYPE.itemsize == 64
    assert HEADER_DTYPE["columns"].subdtype == (COLUMN_DTYPE, (32,))


def test_dtypes_are_little_endian_and_typed():
    header = np.zeros((), HEADER_DTYPE)
    header["file_size"] = 0x0102030405060708
    header["uuid"][:] = range(16)
    header["features"]["length"] = 258
    header["columns"][1]["name"] = b"split"
    data = header.tobytes()
    assert data[16:24] == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert data[224:240] == bytes(range(16))
    assert data[64:72] == bytes([2, 1, 0, 0, 0, 0, 0, 0])
    assert data[576:600] == b"split" + bytes(19)


@pytest.mark.parametrize(("data", "expected"), CRC_VECTORS)
def test_crc32c_vectors(data, expected):
    assert crc32c(data) == expected


def test_crc32c_continues():
    data = bytes(range(256)) * 9
    for cut in (0, 1, 7, 8, 9, 1000, len(data)):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_crc32c_takes_any_contiguous_buffer():
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    array.flags.writeable = False
    expected = crc32c(array.tobytes())
    assert crc32c(array) == expected
    assert crc32c(memoryview(array)) == expected
    assert crc32c(bytearray(array.tobytes())) == expected


def test_crc32c_refuses_what_is_not_contiguous():
    with pytest.raises(ValueError, match="contiguous"):
        crc32c(np.zeros((4, 4))[:, ::2])


@pytest.mark.parametrize("crc", [-1, 2**32])
def test_crc32c_refuses_a_start_outside_32_bits(crc):
    with pytest.raises(OverflowError):
        crc32c(b"x", crc)


def test_every_status_has_a_sentence():
    assert STATUS_NAMES[0] == "HILUM_OK"
    assert sorted(STATUS_NAMES) == list(range(len(STATUS_NAMES)))
    texts = {ffi.string(lib.hilum_status_text(status)).decode() for status in STATUS_NAMES}
    assert len(texts) == len(STATUS_NAMES)
    assert "unknown status" not in texts


def test_library_answers_through_the_error_structure(tmp_path):
    path = tmp_path / "empty.hilum"
    path.write_bytes(b"")
    out = ffi.new("hilum_container **")
    error = ffi.new("hilum_error *")
    status = lib.hilum_open(str(path).encode(), lib.HILUM_MODE_MMAP, out, error)
    assert STATUS_NAMES[status] == "HILUM_ERR_NOT_A_CONTAINER"
    assert error.status == status
    assert ffi.string(error.field) == b"magic"
    assert out[0] == ffi.NULL


def test_interface_version_is_compared(monkeypatch):
    class Stranger:
        HILUM_ABI_VERSION = 1

        def hilum_abi_version(self) -> int:
            return 2

    class Declarations:
        def dlopen(self, path: str) -> Stranger:
            return Stranger()

    from formats import _hilum

    monkeypatch.setattr(_hilum, "ffi", Declarations())
    with pytest.raises(ImportError, match=r"version 2.*made for 1"):
        _library._load()


def test_missing_declarations_say_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "formats._hilum", None)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r"compiled reader is missing.*pip install -e \."):
        _library._load()


def test_a_checkout_finds_the_reader_of_a_plain_install(tmp_path, repository):
    """As after `pip install .`: sources in the working folder, generated files elsewhere."""
    from formats import _hilum

    site, checkout = tmp_path / "site" / "formats", tmp_path / "checkout" / "formats"
    site.mkdir(parents=True)
    generated = Path(_hilum.__file__)
    for path in (generated, *generated.parent.glob("libhilum.*")):
        shutil.copy(path, site)
    ignored = shutil.ignore_patterns("_hilum.py", "libhilum*", "golden", "__pycache__")
    shutil.copytree(repository / "formats", checkout, ignore=ignored)
    code = "import formats._library as l; print(l.__file__); print(l.crc32c(b'123456789'))"
    done = subprocess.run(
        # -S: no editable install may come to the help of this one.
        [sys.executable, "-S", "-c", code],
        cwd=checkout.parent,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(checkout.parent), str(site.parent), *(p for p in sys.path if "packages" in p)]
            ),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(checkout / "_library.py"), str(0xE3069283)]


def test_missing_library_says_what_to_do(monkeypatch, tmp_path):
    from formats import _hilum

    monkeypatch.setattr(_hilum, "__file__", str(tmp_path / "_hilum.py"))
    with pytest.raises(
        ImportError, match=r"compiled reader is missing.*pip install -e \..*libhilum"
    ):
        _library._load()


def bare_container(n_rows: int, dim: int) -> tuple[bytes, int, bytes]:
    """Header, offset of the rest and the rest of a container of zeros without columns."""
    n_features = n_rows * dim * 4
    n_chunks = -(-n_rows // 1024)
    table_offset = -(-(4096 + n_features) // 64) * 64
    table = bytes(4 * n_chunks)
    notes_offset = -(-(table_offset + len(table)) // 64) * 64
    header = np.zeros((), HEADER_DTYPE)
    header["magic"] = np.frombuffer(b"\x89HILUM\r\n", np.uint8)
    header["major"] = 1
    header["header_size"] = 4096
    header["file_size"] = notes_offset + 2
    header["n_rows"] = n_rows
    header["dim"] = dim
    header["dtype"] = 1
    header["chunk_log2"] = 10
    header["state"] = 1
    header["features"] = (4096, n_features)
    header["table"] = (table_offset, len(table))
    header["notes"] = (notes_offset, 2)
    header["table_crc32c"] = crc32c(table)
    header["notes_crc32c"] = crc32c(b"{}")
    header["header_crc32c"] = crc32c(header.tobytes()[:4092])
    return header.tobytes(), table_offset, table.ljust(notes_offset - table_offset, b"\0") + b"{}"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space through /proc")
def test_where_mapping_is_refused_rows_are_read(tmp_path):
    """A map too large for the address space stands for ENODEV: it falls back, as it must there."""
    path = tmp_path / "large.hilum"
    header, offset, rest = bare_container(n_rows=1100, dim=65536)
    with path.open("wb") as stream:  # 288 MB, of which the file system stores next to nothing
        stream.write(header)
        stream.seek(4096 + 1099 * 65536 * 4)
        stream.write(np.arange(65536, dtype=np.float32).tobytes())
        stream.seek(offset)
        stream.write(rest)
    code = """if True:
        import resource, sys
        import numpy as np
        from formats._library import ffi, lib
        pages = int(open("/proc/self/statm").read().split()[0])
        out, error = ffi.new("hilum_container **"), ffi.new("hilum_error *")
        path = sys.argv[1].encode()
        assert lib.hilum_open(path, lib.HILUM_MODE_MMAP, out, error) == 0
        assert lib.hilum_features(out[0]) != ffi.NULL
        lib.hilum_close(out[0])
        limit = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        assert lib.hilum_open(path, lib.HILUM_MODE_MMAP, out, error) == 0
        assert lib.hilum_features(out[0]) == ffi.NULL
        row = np.ones(65536, np.float32)
        assert lib.hilum_read_rows(
            out[0], 1099, 1, ffi.from_buffer(row, require_writable=True), row.nbytes, error
        ) == 0
        assert np.array_equal(row, np.arange(65536))
        lib.hilum_close(out[0])
        print("fell back")
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "fell back", done.stderr


@pytest.mark.parametrize(("name", "language"), [("example.c", "c"), ("Example.cs", "cs")])
def test_readme_shows_the_example_that_ctest_runs(name, language):
    native = Path(__file__).parents[1] / "native"
    example = (native / "tests" / name).read_text(encoding="utf-8")
    assert f"```{language}\n{example}```" in (native / "README.md").read_text(encoding="utf-8")


def test_c_sharp_example_reads_the_header_where_it_is(repository):
    """The one layout that no compiler compares with the header: its numbers are typed there."""
    text = (repository / "native" / "tests" / "Example.cs").read_text(encoding="utf-8")
    found = dict(re.findall(r"\[FieldOffset\((\d+)\)\] public \w+ (\w+);", text))
    names = {"NRows": "n_rows", "Dim": "dim", "Dtype": "dtype", "NColumns": "n_columns"}
    assert {name: int(offset) for offset, name in found.items()} == {
        name: HEADER_LAYOUT[field][0] for name, field in names.items()
    }
    assert f"ColumnsOffset = {HEADER_LAYOUT['columns'][0]}, ColumnBytes = 64" in text
    assert f"AbiVersion = {lib.HILUM_ABI_VERSION}" in text
    assert ffi.sizeof("hilum_error") == 4 + 4 + 3 * 8 + 32  # as Error is laid out in a row


def test_import_is_light():
    """Neither cffi's parser nor its compiler driver: ``_cffi_backend`` is all that is loaded."""
    code = (
        "import sys, formats._library;"
        "print([m for m in ('cffi', 'pycparser', 'distutils', 'setuptools', 'numba') "
        "if m in sys.modules], '_cffi_backend' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] True"
