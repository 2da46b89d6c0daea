from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import GOLDEN

import formats
from formats.head_file import check_head_path

TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([0.5, -0.5]),
    "steps": np.array([[7]], np.int64),
}
METADATA = {"classes": ["normal", "pneumonié"], "temperature": 1.25, "nested": {"a": [1, None]}}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    assert formats.write_head(path, TENSORS, METADATA) == path
    tensors, metadata = formats.read_head(path)
    assert metadata == METADATA
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert np.array_equal(tensors[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


def test_equal_heads_are_equal_bytes(tmp_path: Path) -> None:
    formats.write_head(tmp_path / "a", TENSORS, METADATA)
    formats.write_head(
        tmp_path / "b",
        dict(reversed(TENSORS.items())),
        dict(reversed(METADATA.items())),
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_views_are_stored_as_they_are_seen(tmp_path: Path) -> None:
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"t": weight.T, "s": weight[::2, 1::3], "f": np.asfortranarray(weight)}
    formats.write_head(tmp_path / "h", views, {})
    tensors, _ = formats.read_head(tmp_path / "h")
    for name, view in views.items():
        assert np.array_equal(tensors[name], view), name


def test_safetensors_itself_can_read_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    formats.write_head(tmp_path / "h", TENSORS, METADATA)
    with safe_open(tmp_path / "h", "np") as file:
        assert list(file.metadata()) == ["hilum"]
        assert json.loads(file.metadata()["hilum"]) == METADATA
        assert np.array_equal(file.get_tensor("weight"), TENSORS["weight"])


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


GOOD = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
META = b'"__metadata__":{"hilum":"{}"}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"weights,1,2,3\n", "starts like a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG image"),
        (bytes(99), "starts with zeros"),
        (b"\x80\x04\x95" + bytes(99), "Python pickle"),
        (b"\x89HILPART" + bytes(99), "container of features"),
        (safetensors(b"{" + GOOD + b"}", bytes(4)), "without the metadata entry 'hilum'"),
        (safetensors(b'{"__metadata__":{"format":"pt"}}'), "without the metadata entry"),
        (safetensors(b'{"__metadata__":{"hilum":"{"}}'), "the metadata is damaged"),
        (safetensors(b'{"__metadata__":{"hilum":"[]"}}'), "not a JSON object"),
        (safetensors(b'{"__metadata__":{"hilum":"{}","hilum":"{}"}}'), "hilum: the key .* twice"),
        (safetensors(b"{" + META + b"," + GOOD + b"," + GOOD + b"}", bytes(4)), "w: the key"),
        (safetensors(b"{" + META + b"," + GOOD + b"}", bytes(3)), "tensors are damaged"),
        (safetensors(b"{" + META + b"," + GOOD + b"}", bytes(5)), "tensors are damaged"),
        (safetensors(b"{x}"), "header is damaged"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "not a head file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(data)
    with pytest.raises(formats.HeadFileError, match=message) as caught:
        formats.read_head(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    assert "engine.train" in str(caught.value)


def test_truncation_at_every_byte_is_refused(tmp_path: Path) -> None:
    formats.write_head(tmp_path / "h", {"w": TENSORS["weight"]}, {"a": 1})
    data = (tmp_path / "h").read_bytes()
    for size in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(formats.HeadFileError):
            formats.read_head(tmp_path / "cut")


def test_container_given_by_mistake(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    shutil.copy(GOLDEN / "valid" / "f16_groups.hilum", path)
    with pytest.raises(formats.HeadFileError, match=r"container of features.*engine\.train"):
        formats.read_head(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(formats.HeadFileError, match="does not exist"):
        formats.read_head(tmp_path / "gone")
    with pytest.raises(formats.HeadFileError, match="this is a folder"):
        formats.read_head(tmp_path)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with pytest.raises(formats.HeadFileError, match="no tensors"):
        formats.write_head(path, {}, METADATA)
    with pytest.raises(formats.HeadFileError, match="metadata"):
        formats.write_head(path, TENSORS, {"a": float("nan")})
    with pytest.raises(formats.HeadFileError, match="cannot be stored"):
        formats.write_head(path, {"w": np.array(["text"])}, METADATA)
    with pytest.raises(formats.HeadFileError, match=r"does not exist\. Create it"):
        formats.write_head(tmp_path / "no" / "h", TENSORS, METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG image"),
        (b"file,label\n", "text file"),
        (b"\x89HILUM\r\n" + bytes(99), "starts with"),
        (b"{}", "text file"),
        ((1 << 20).to_bytes(8, "little") + b"{}", "safetensors"),  # longer than the file
    ],
)
def test_files_of_another_kind_are_not_replaced(tmp_path: Path, data: bytes, looks: str) -> None:
    path = tmp_path / "there"
    path.write_bytes(data)
    for write in (
        lambda: check_head_path(path),
        lambda: formats.write_head(path, TENSORS, METADATA),
    ):
        with pytest.raises(formats.HeadFileError, match=f"no head: .*{looks}.*another name"):
            write()
    assert path.read_bytes() == data


def test_heads_empty_files_and_free_names_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for name in ("empty", "free", "free"):
        check_head_path(tmp_path / name)
        formats.write_head(tmp_path / name, TENSORS, METADATA)
        formats.read_head(tmp_path / name)
    with pytest.raises(formats.HeadFileError, match="this is a folder"):
        formats.write_head(tmp_path, TENSORS, METADATA)
