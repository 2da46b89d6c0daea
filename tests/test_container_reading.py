from __future__ import annotations

import gc
import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import (
    CORRUPT,
    GOLDEN,
    MANIFEST,
    STATUS_NAMES,
    WRITTEN,
    maker,
    run_python,
    write_small,
)

import formats
from formats import _status
from formats._library import lib


def open_and_verify(path: Path, mode: str = "mmap") -> None:
    with formats.open_container(path, mode) as container:
        container.verify()


# ---- golden files ------------------------------------------------------------------------------


def test_golden_files_are_reproduced_byte_for_byte(tmp_path: Path) -> None:
    maker.make_golden(tmp_path)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    kept = {
        p.relative_to(GOLDEN): p.read_bytes()
        for p in GOLDEN.rglob("*")
        if p.suffix in (".hilum", ".json")
    }
    assert sorted(made) == sorted(kept)
    assert [str(name) for name in made if made[name] != kept[name]] == []


def test_manifest_holds_the_digests_of_the_files() -> None:
    for kind in ("valid", "corrupt"):
        for name, entry in MANIFEST[kind].items():
            data = (GOLDEN / kind / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"], name


@pytest.mark.parametrize("mode", ["mmap", "read"])
@pytest.mark.parametrize("name", WRITTEN)
def test_valid_golden_file_reads_back(name: str, mode: str) -> None:
    with formats.open_container(GOLDEN / "valid" / name, mode) as c:
        expected = maker.make_features(c.n_rows, c.dim)
        if c.row_flags is not None:
            expected[c.row_flags == 1] = 0
        if c.dtype == "f16":
            expected = expected.astype(np.float16).astype(np.float32)
        tolerance = 8 / 127 / 2 + 1e-6 if c.dtype == "i8" else 0
        assert c.features.shape == (c.n_rows, c.dim)
        assert np.abs(c.read_rows() - expected).max() <= tolerance
        assert c.size_bytes == (GOLDEN / "valid" / name).stat().st_size
        assert len(c) == c.n_rows
        assert (c.scales is None) == (c.dtype != "i8")
        c.verify()


def test_every_column_of_the_golden_file() -> None:
    with formats.open_container(GOLDEN / "valid" / "i8_every_column.hilum") as c:
        expected = maker.make_columns(40)
        assert list(c.columns) == list(expected)
        for name, values in expected.items():
            assert np.array_equal(c.columns[name], values), name
        assert np.array_equal(c.labels, expected["label"])
        assert np.array_equal(c.splits, expected["split"])
        assert np.array_equal(c.groups, expected["group"])
        assert np.array_equal(c.sample_keys, expected["sample_key"])
        assert np.array_equal(c.sources, expected["source"])
        assert np.array_equal(c.views, expected["view"])
        assert np.array_equal(c.row_flags, expected["row_flags"])
        assert np.array_equal(c.sexes, expected["sex"])
        assert np.array_equal(c.ages, expected["age"])
        assert np.array_equal(c.projections, expected["projection"])
        assert c.n_groups == 20
        assert c.group_clean
        assert c.sources_names == ("unknown", "site-a")
        assert c.classes == ("normal", "bacterial", "viral")
        assert c.blocks[1] == {"tap": "final", "pooling": "max", "offset": 6, "width": 6}
        assert c.backbone == "golden"
        assert not c.multilabel


def test_container_without_columns() -> None:
    with formats.open_container(GOLDEN / "valid" / "f32_no_columns.hilum") as c:
        assert c.labels is c.splits is c.groups is None
        assert c.n_groups is None
        with pytest.raises(formats.ContainerError, match="no split column"):
            c.rows("train")
        with pytest.raises(formats.ContainerError, match="no labels"):
            c.arrays()


@pytest.mark.parametrize("mode", ["mmap", "read"])
@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_golden_file_is_refused(name: str, mode: str) -> None:
    entry = MANIFEST["corrupt"][name]
    path = GOLDEN / "corrupt" / name
    if entry["found_by"] == "verify":
        container = formats.open_container(path, mode)  # opens, or the test means another thing
        with pytest.raises(formats.Corrupt) as caught:
            container.verify()
    else:
        with pytest.raises(formats.ContainerError) as caught:
            formats.open_container(path, mode)
    status = entry["status"]
    assert caught.value.status == (0 if status is None else getattr(lib, status))
    assert caught.value.path == path
    assert str(path) in str(caught.value)


def test_every_refusal_of_content_has_a_golden_file() -> None:
    covered = {entry["status"] for entry in MANIFEST["corrupt"].values()}
    # what a file cannot bring about: the caller's mistake, the system, memory
    outside = {"HILUM_OK", "HILUM_ERR_ARGUMENT", "HILUM_ERR_OPEN", "HILUM_ERR_READ"}
    assert set(STATUS_NAMES.values()) - covered == outside | {"HILUM_ERR_MEMORY"}


def test_every_status_has_an_exception_and_a_sentence() -> None:
    assert set(_status.MEANINGS) == set(STATUS_NAMES) - {lib.HILUM_OK}
    for status, meaning in _status.MEANINGS.items():
        assert issubclass(meaning.exception, formats.ContainerError)
        assert len(meaning.sentence) > 20, status
        assert len(meaning.cure) > 20, status


def test_unknown_status_still_gives_a_sentence() -> None:
    from formats._library import ffi

    error = _status.container_error(Path("x.hilum"), 999, ffi.new("hilum_error *"))
    assert "999" in str(error)
    assert error.status == 999


# ---- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_truncation_at_every_byte_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "cut.hilum"
    shutil.copy(GOLDEN / "valid" / "i8_single_label.hilum", path)
    for size in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, size)
        expected = formats.Truncated if size >= 1 else formats.NotAContainer
        with pytest.raises(expected):
            formats.open_container(path, mode)


def test_verify_says_which_rows_are_damaged() -> None:
    path = GOLDEN / "corrupt" / "feature_bit_in_second_chunk.hilum"
    with pytest.raises(formats.Corrupt, match="rows 1024 to 1029"):
        open_and_verify(path)


def test_verify_reports_progress() -> None:
    seen: list[tuple[int, int]] = []
    with formats.open_container(GOLDEN / "valid" / "f16_two_chunks.hilum") as c:
        c.verify(lambda done, total: seen.append((done, total)))
        total = c.size_bytes - 4096
    assert seen == [(4096, total), (4120, total), (total, total)]


def test_verify_notices_that_the_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path)
    container = formats.open_container(path)
    write_small(path, n_rows=30)
    with pytest.raises(formats.ContainerError, match="was replaced since"):
        container.verify()
    path.unlink()
    with pytest.raises(formats.ContainerError, match="cannot be read any more"):
        container.verify()


# ---- not a container ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"", "empty"),
        (b"patient,label\n", "text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "JPEG image"),
        (b"II*\0" + bytes(100), "TIFF image"),
        (bytes(128) + b"DICM" + bytes(100), "DICOM"),
        (b"PK\x03\x04" + bytes(100), "ZIP"),
        (b"\x93NUMPY\x01\0" + bytes(100), "NumPy"),
        ((2).to_bytes(8, "little") + b"{}", "safetensors"),
        (bytes(9000), "zeros"),
        (bytes(range(200, 256)) * 100, "starts with C8 C9"),
        (b"\x89HILUM\n" + bytes(5000), "line ends"),
    ],
)
def test_other_files_are_named_by_their_looks(tmp_path: Path, data: bytes, looks: str) -> None:
    path = tmp_path / "renamed.hilum"
    path.write_bytes(data)
    with pytest.raises(formats.NotAContainer, match=looks) as caught:
        formats.open_container(path)
    assert "89 48 49 4C 55 4D 0D 0A" in str(caught.value)


def test_unfinished_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    path.write_bytes(b"\x89HILPART".ljust(5000, b"\0"))
    with pytest.raises(formats.NotAContainer, match="never finished") as caught:
        formats.open_container(path)
    assert caught.value.status == lib.HILUM_ERR_UNSEALED


def test_missing_file_folder_and_link(tmp_path: Path) -> None:
    write_small(tmp_path / "chest.hilum")
    with pytest.raises(formats.ContainerError, match=r"does not exist.*chest\.hilum") as caught:
        formats.open_container(tmp_path / "chst.hilum")
    assert caught.value.status == lib.HILUM_ERR_OPEN
    with pytest.raises(formats.ContainerError, match=r"folder .* does not exist"):
        formats.open_container(tmp_path / "nowhere" / "x.hilum")
    with pytest.raises(formats.ContainerError, match="this is a folder"):
        formats.open_container(tmp_path)
    (tmp_path / "link.hilum").symlink_to(tmp_path / "gone")
    with pytest.raises(formats.ContainerError, match="is a link to"):
        formats.open_container(tmp_path / "link.hilum")
    with pytest.raises(formats.ContainerError, match="NUL"):
        formats.open_container("a\0b")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path)
    path.chmod(0)
    code = (
        "import os, sys\n"
        "import formats\n"
        "formats.open_container, formats.ContainerError\n"  # loaded while they may be read
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: formats.open_container(sys.argv[1])\n"
        "except formats.ContainerError as exc: print(exc)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    assert "Permission denied" in run_python(code, str(path)).stdout


def test_path_that_is_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.hilum"
    path = Path(os.fsdecode(raw))
    try:
        path.write_bytes((GOLDEN / "valid" / "f16_groups.hilum").read_bytes())
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    formats.open_container(path).verify()


# ---- views -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_views_are_read_only_for_good(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.hilum"
    write_small(path, dtype="i8")
    container = formats.open_container(path, mode)
    for array in (container.features, container.scales, container.labels, container.groups):
        for view in (array, array[1:], array.base):
            if isinstance(view, np.ndarray):
                assert not view.flags.writeable
                with pytest.raises(ValueError, match="WRITEABLE"):
                    view.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError):
        container.columns["label"] = container.labels


def test_features_are_the_mapping_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path, n_rows=5000, dim=64)
    container = formats.open_container(path)
    assert container.features is container.features
    assert not container.features.flags.owndata
    assert container.features.ctypes.data % 4096 == 0


def test_views_outlive_the_container(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path, n_rows=3000, dim=64)
    code = (
        "import gc, sys\n"
        "import formats\n"
        "expected = formats.open_container(sys.argv[1]).read_rows()\n"
        "def view():\n"
        "    with formats.open_container(sys.argv[1]) as c:\n"
        "        return c.features[5:][::7], c.labels[1:], c.columns\n"
        "features, labels, columns = view()\n"
        "gc.collect()\n"
        "junk = [bytearray(1 << 20) for _ in range(50)]\n"
        "assert (features == expected[5:][::7]).all()\n"
        "assert labels[:3].tolist() == [0, 1, 1]\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "assert not maps or sys.argv[1] in maps\n"
        "del features\n"
        "assert labels[:3].tolist() == [0, 1, 1]\n"
        "assert columns['group'][-1] == 1499\n"
        "del labels, columns\n"
        "gc.collect()\n"
        "if sys.platform == 'linux':\n"
        "    assert sys.argv[1] not in open('/proc/self/maps').read()\n"
        "print('alive')\n"
    )
    result = run_python(code, str(path))
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


def test_closed_container_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path)
    container = formats.open_container(path)
    features = container.features
    container.close()
    container.close()
    assert container.closed
    assert "closed" in repr(container)
    assert container.n_rows == 20
    assert features[0].shape == (4,)
    for use in (
        lambda: container.features,
        lambda: container.labels,
        lambda: container.columns,
        container.rows,
        container.read_rows,
        container.verify,
        container.__enter__,
    ):
        with pytest.raises(formats.ContainerError, match="closed"):
            use()


def test_no_handle_is_left_behind(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    path = tmp_path / "x.hilum"
    write_small(path)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(50):
        formats.open_container(path)
        with pytest.raises(formats.ContainerError):
            formats.open_container(GOLDEN / "corrupt" / "notes_nan.hilum")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_pickle_reopens(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    write_small(path)
    container = formats.open_container(path, "read")
    again = pickle.loads(pickle.dumps(container))
    assert np.array_equal(again.features, container.features)
    error = pickle.loads(pickle.dumps(formats.Corrupt("x.hilum", "broken", 12)))
    assert (str(error), error.status, type(error)) == ("x.hilum: broken", 12, formats.Corrupt)


def test_mode_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode"):
        formats.open_container(tmp_path, "write")


# ---- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mmap", "read"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_read_rows_takes_what_numpy_takes(tmp_path: Path, dtype: str, mode: str) -> None:
    path = tmp_path / "x.hilum"
    features = write_small(path, n_rows=50, dim=6, dtype=dtype)
    with formats.open_container(path, mode) as c:
        whole = c.read_rows()
        if dtype == "f16":
            features = features.astype(np.float16).astype(np.float32)
        assert np.abs(whole - features).max() <= (8 / 254 + 1e-6 if dtype == "i8" else 0)
        mask = np.arange(50) % 3 == 0
        for rows in (
            slice(None),
            slice(3, 40),
            slice(3, 40, 7),
            slice(None, None, -1),
            slice(10, 10),
            [4, 5, 6, 0, -1, 4],
            np.array([], np.int64),
            [],
            np.array([7], np.uint8),
            mask,
        ):
            got = c.read_rows(rows)
            index = np.asarray(rows, int) if isinstance(rows, list) else rows
            assert np.array_equal(got, whole[index])
            assert got.dtype == np.float32
            assert got.flags.c_contiguous and got.flags.writeable
        for wrong in ([50], [-51], [[1]], ["a"], [0.5], mask[:-1]):
            with pytest.raises(IndexError, match=r"x\.hilum"):
                c.read_rows(wrong)


def test_rows_in_pieces_equal_rows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.hilum"
    write_small(path, n_rows=50, dim=6, dtype="i8")
    with formats.open_container(path) as c:
        whole = c.read_rows()
        monkeypatch.setattr("formats.container._PIECE_BYTES", 7 * 24)
        assert np.array_equal(c.read_rows(), whole)
        assert np.array_equal(c.read_rows(slice(None, None, -3)), whole[::-3])


def test_rows_by_split_leave_out_withdrawn_ones() -> None:
    with formats.open_container(GOLDEN / "valid" / "i8_every_column.hilum") as c:
        split = c.splits
        assert 5 not in c.rows()
        assert len(c.rows()) == 39
        assert c.rows().dtype == np.int64
        assert np.array_equal(c.rows("train"), np.flatnonzero(split == 1))
        assert np.array_equal(c.rows(["none", "train"]), np.flatnonzero(split <= 1))
        assert 5 in np.flatnonzero(split == 2) and 5 not in c.rows("valid")
        with pytest.raises(ValueError, match="expected one of none, train, valid, test"):
            c.rows("validation")
        X, y = c.arrays("test", views=True)
        assert np.array_equal(X, c.read_rows(c.rows("test")))
        assert np.array_equal(y, c.labels[c.rows("test")])
        assert not c.features[5].any()
