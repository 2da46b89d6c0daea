"""Damaged and hostile files through the Python reader: each change is found, none costs memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import CORRUPT, GOLDEN, MANIFEST, maker, notes_of, run_python, write_small

import formats
from formats._library import lib

SMALL = ("f32_multi_label", "f16_groups", "i8_every_column")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and POSIX signals")


def open_and_verify(path: Path, mode: str = "mmap") -> None:
    with formats.open_container(path, mode) as container:
        container.verify()


def replace_notes(path: Path, notes: bytes) -> None:
    """Put other notes into a container; every checksum and length fits."""
    surgeon = maker.Surgeon(path)
    surgeon.replace_notes(notes)
    surgeon.fix()
    path.write_bytes(surgeon.data)


def sections(path: Path) -> dict[str, range]:
    """Every section of a container by name, and the gaps between them."""
    surgeon = maker.Surgeon(path)
    names = ["features", "table", "notes", "scales"]
    found = {name: surgeon.section(name) for name in names if surgeon.section(name).start}
    for i in range(int(surgeon.header["n_columns"][0])):
        found[f"column {i}"] = surgeon.column(i)
    end = 4096
    for name, where in sorted(found.items(), key=lambda item: item[1].start):
        found[f"gap before {name}"] = slice(end, where.start)
        end = where.stop
    assert end == path.stat().st_size, "sections end where the file does"
    return {name: range(where.start, where.stop) for name, where in found.items()}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks of rows, every column, features of 375 KiB."""
    path = tmp_path_factory.mktemp("large") / "large.hilum"
    columns = maker.make_columns(3000)
    notes = notes_of(64, ("normal", "bacterial", "viral"), sources=["unknown", "site-a"])
    formats.write_container(path, maker.make_features(3000, 64), notes, columns=columns)
    open_and_verify(path)
    return path


# ---- flipped bits ------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flip.hilum"
    data = (GOLDEN / "valid" / "i8_every_column.hilum").read_bytes()
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for byte in range(4096):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([data[byte] ^ 1 << bit]), byte)
                with pytest.raises(formats.ContainerError):
                    formats.open_container(path)
            os.pwrite(file.fileno(), data[byte : byte + 1], byte)
    open_and_verify(path)


@pytest.mark.parametrize("name", SMALL)
def test_every_flipped_bit_of_the_body_is_found_where_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "flip.hilum"
    data = (GOLDEN / "valid" / f"{name}.hilum").read_bytes()
    path.write_bytes(data)
    statuses = {
        "features": lib.HILUM_ERR_CHUNK_CRC,
        "scales": lib.HILUM_ERR_SCALES_CRC,
        "table": lib.HILUM_ERR_TABLE_CRC,
        "notes": lib.HILUM_ERR_NOTES_CRC,
        "column": lib.HILUM_ERR_COLUMN_CRC,
        "gap": lib.HILUM_ERR_PADDING,
    }
    seen = 0
    with path.open("r+b", buffering=0) as file:
        for section, where in sections(path).items():
            for byte in where:
                for bit in range(8):
                    os.pwrite(file.fileno(), bytes([data[byte] ^ 1 << bit]), byte)
                    with pytest.raises(formats.Corrupt) as caught:
                        if section == "features":  # opens, or this means another thing
                            container = formats.open_container(path)
                            container.verify()
                        else:
                            formats.open_container(path)
                    assert caught.value.status == statuses[section.split()[0]], (section, byte)
                os.pwrite(file.fileno(), data[byte : byte + 1], byte)
                seen += 1
    assert seen == len(data) - 4096
    open_and_verify(path)


# ---- cut and lengthened files ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_cuts_at_every_edge_of_a_large_file_are_refused(
    large: Path, tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "cut.hilum"
    shutil.copy(large, path)
    size = path.stat().st_size
    row, chunk = 64 * 2, 64 * 2 * 1024
    edges = {0, 4096, 4096 + row, 4096 + chunk, 4096 + 2 * chunk, size}
    edges |= {edge for where in sections(path).values() for edge in (where.start, where.stop)}
    assert len(edges) > 25
    cuts = {edge + step for edge in edges for step in (-1, 0, 1)} & set(range(1, size))
    for cut in sorted(cuts, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(formats.Truncated) as caught:
            formats.open_container(path, mode)
        assert caught.value.status == lib.HILUM_ERR_TRUNCATED


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_trailing_bytes_are_refused(large: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "long.hilum"
    for more in (b"\0", b"\n", bytes(63), bytes(64), bytes(4096), large.read_bytes()):
        shutil.copy(large, path)
        with path.open("ab") as file:
            file.write(more)
        with pytest.raises(formats.Truncated) as caught:
            formats.open_container(path, mode)
        assert caught.value.status == lib.HILUM_ERR_TRAILING


# ---- changes after opening ---------------------------------------------------------------------

USES: dict[str, Callable[[formats.Container], object]] = {
    "features": lambda c: c.features,
    "read_rows": lambda c: c.read_rows(),
    "read_rows of the end": lambda c: c.read_rows([2999]),
    "read_stored": lambda c: c.read_stored(slice(2000, 3000)),
    "arrays": lambda c: c.arrays(),
    "iter_batches": lambda c: list(c.iter_batches()),
    "verify": lambda c: c.verify(),
}


@pytest.mark.parametrize("use", sorted(USES))
def test_file_cut_after_opening_raises_in_read_mode(large: Path, tmp_path: Path, use: str) -> None:
    path = tmp_path / "x.hilum"
    shutil.copy(large, path)
    container = formats.open_container(path, "read")
    os.truncate(path, 4096 + 100_000)
    with pytest.raises(formats.Truncated, match=r"x\.hilum"):
        USES[use](container)
    # what is still there can still be read, and columns were read when it was opened
    assert np.array_equal(container.read_rows([5]), formats.open_container(large).read_rows([5]))
    assert np.array_equal(container.groups, formats.open_container(large).groups)


CUT = (
    "import os, sys\n"
    "import formats\n"
    "c = formats.open_container(sys.argv[1], sys.argv[2])\n"
    "os.truncate(sys.argv[1], 8192)\n"
    "print(c.labels.sum(), len(c.notes), flush=True)\n"
    "try: c.verify()\n"
    "except formats.ContainerError: print('verify raised', flush=True)\n"
    "try: print(c.read_rows([2999])[0, 0])\n"
    "except formats.ContainerError: print('read_rows raised', flush=True)\n"
)


@linux
@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_file_cut_after_opening_kills_only_who_maps_it(
    large: Path, tmp_path: Path, mode: str
) -> None:
    """The document's promise, and its warning."""
    path = tmp_path / "x.hilum"
    shutil.copy(large, path)
    result = run_python(CUT, str(path), mode)
    head, *rest = result.stdout.splitlines()
    with formats.open_container(large) as c:
        assert head == f"{c.labels.sum()} {len(c.notes)}"
    if mode == "read":
        assert (result.returncode, rest) == (0, ["verify raised", "read_rows raised"])
    else:
        # verify reads the file and not the mapping, so it still tells
        assert (result.returncode, rest) == (-signal.SIGBUS, ["verify raised"])


def test_saving_over_a_mapped_file_keeps_the_mapped_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    old = write_small(path, n_rows=3000, dim=64)
    mapped = formats.open_container(path)
    read = formats.open_container(path, "read")
    formats.write_container(path, -old[:2000], notes_of(64))
    for container in (mapped, read):
        assert np.array_equal(container.read_rows(), old.astype(np.float16))
        with pytest.raises(formats.ContainerError, match="was replaced since"):
            container.verify()
    with formats.open_container(path) as new:
        assert np.array_equal(new.read_rows(), -old[:2000].astype(np.float16))
        new.verify()


# ---- notes -------------------------------------------------------------------------------------


def notes_with(value: str) -> bytes:
    """The notes of a small container with a key of a later version, which a reader keeps."""
    with formats.open_container(GOLDEN / "valid" / "f16_groups.hilum") as c:
        plain = formats.canonical_json(c.notes)
    return plain[:-1] + b',"later":' + value.encode() + b"}"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("1e999", "too large"),
        ("-1e999", "too large"),
        ('{"x":1e400}', "too large"),
        ("9" * 5000, "notes"),  # more digits than Python turns into a number
        ("NaN", "not a JSON number"),
        ("Infinity", "not a JSON number"),
        ("[" * 16 + "]" * 16, "deeper than 16"),
        ('{"a":' * 16 + "0" + "}" * 16, "deeper than 16"),
        ("[" * 100_000 + "]" * 100_000, "deeper than 16"),
        ('{"a":' * 100_000 + "0" + "}" * 100_000, "deeper than 16"),
        ("[" * 500_000, "deeper than 16|not valid JSON"),
        ('{"x":1,"x":1}', "x: the key stands twice"),
        ('[{"x":{"y":1,"y":2}}]', "y: the key stands twice"),
        (r'{"x":1,"\u0078":2}', "x: the key stands twice"),
        ('1,"later":2', "later: the key stands twice"),
        ('1,"version":1', "version: the key stands twice"),
        (r'"\ud800"', "surrogate"),
        (r'{"\udc00":1}', "surrogate"),
        ("'x'", "not valid JSON"),
        ("[1,]", "not valid JSON"),
        ("01", "not valid JSON"),
        ('"\n"', "not valid JSON"),
        ('1} {"x":1', "not valid JSON"),
    ],
)
def test_notes_that_two_readers_could_understand_differently(
    tmp_path: Path, value: str, says: str
) -> None:
    path = tmp_path / "x.hilum"
    shutil.copy(GOLDEN / "valid" / "f16_groups.hilum", path)
    replace_notes(path, notes_with(value))
    with pytest.raises(formats.Corrupt, match=says):
        formats.open_container(path)


@pytest.mark.parametrize(
    "value", ["1e308", "[" * 15 + "]" * 15, '{"x":{"x":1}}', r'"\ud83d\ude00"']
)
def test_notes_at_the_edge_of_what_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "x.hilum"
    shutil.copy(GOLDEN / "valid" / "f16_groups.hilum", path)
    replace_notes(path, notes_with(value))
    with formats.open_container(path) as c:
        assert "later" in c.notes
        c.verify()


def test_notes_with_a_byte_order_mark_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    shutil.copy(GOLDEN / "valid" / "f16_groups.hilum", path)
    for before in (b"\xef\xbb\xbf", b"\0"):
        replace_notes(path, before + notes_with("0"))
        with pytest.raises(formats.Corrupt, match="not valid JSON"):
            formats.open_container(path)


# ---- memory ------------------------------------------------------------------------------------

MOST = 1 << 20


@pytest.mark.parametrize("unit", ["[" * 14 + "]" * 14, "{}", "0.5"])
def test_the_worst_notes_cost_a_bounded_amount_of_memory(tmp_path: Path, unit: str) -> None:
    """1 MiB of the smallest values there are, each of which Python makes an object of."""
    path = tmp_path / "x.hilum"
    shutil.copy(GOLDEN / "valid" / "f16_groups.hilum", path)
    room = MOST - len(notes_with("[]"))
    value = "[" + ",".join([unit] * (room // (len(unit) + 1))) + "]"
    replace_notes(path, notes_with(value))
    tracemalloc.start()
    try:
        formats.open_container(path)
    except formats.Corrupt:
        pass  # a reader may refuse so many values
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * MOST


def test_long_texts_in_notes_cost_a_few_times_their_length(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    shutil.copy(GOLDEN / "valid" / "f16_groups.hilum", path)
    room = MOST - len(notes_with('""')) - 4
    replace_notes(path, notes_with('"' + "a" * room + "\N{GRINNING FACE}" + '"'))
    tracemalloc.start()
    with formats.open_container(path) as c:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(c.notes["later"]) == room + 1
    # the bytes, and Python's text of four bytes a character, twice
    assert peak < 11 * MOST


@linux
def test_corrupt_files_are_refused_without_room(tmp_path: Path) -> None:
    """Each named refusal again, where nothing large can be allocated or mapped."""
    code = (
        "import json, resource, sys\n"
        "from pathlib import Path\n"
        "import formats\n"
        "from formats._library import ffi\n"
        "golden = Path(sys.argv[1])\n"
        "try: formats.open_container(golden / 'text.hilum')\n"  # imports what errors need
        "except formats.ContainerError: pass\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + (16 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "found = {}\n"
        "for path in sorted(golden.glob('*.hilum')):\n"
        "    try: formats.open_container(path)\n"
        "    except formats.ContainerError as exc: found[path.name] = exc.status\n"
        "print(json.dumps(found))\n"
    )
    result = run_python(code, str(GOLDEN / "corrupt"))
    assert result.returncode == 0, result.stderr
    expected = {
        name: 0 if (status := MANIFEST["corrupt"][name]["status"]) is None else getattr(lib, status)
        for name in CORRUPT
        if MANIFEST["corrupt"][name]["found_by"] == "open"
    }
    assert json.loads(result.stdout) == expected


def test_verify_needs_a_bounded_amount_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.hilum"
    dim = 1024
    formats.write_container(path, np.ones((20_000, dim), np.float32), notes_of(dim))
    with formats.open_container(path) as c:
        tracemalloc.start()
        c.verify()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert c.size_bytes > 40_000_000
    assert peak < 16 << 20


# ---- Ctrl-C ------------------------------------------------------------------------------------


def test_verify_that_is_stopped_leaves_no_thread(large: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 4096:
            raise KeyboardInterrupt

    before = threading.active_count()
    with formats.open_container(large) as c:
        with pytest.raises(KeyboardInterrupt):
            c.verify(stop)
        assert threading.active_count() == before
        c.verify()
        assert threading.active_count() == before


@linux
def test_ctrl_c_ends_verify_at_once(large: Path) -> None:
    code = (
        "import os, signal, sys, threading\n"
        "import formats\n"
        "c = formats.open_container(sys.argv[1])\n"
        "stopped = threading.Event()\n"
        "def press():\n"
        # again and again: Python drops one that meets it in a callback, here about one in ten
        "    while not stopped.wait(0.2): os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        "    threading.Thread(target=press).start()\n"
        "    while True: c.verify()\n"
        "except KeyboardInterrupt:\n"
        "    stopped.set()\n"
        # the interrupt may come while verify is waiting for its thread, which then ends by itself
        "    others = [t for t in threading.enumerate() if t is not threading.main_thread()]\n"
        # or while that is being started
        "    for t in others:\n"
        "        while t.ident is None: pass\n"
        "        t.join(20)\n"
        "    print('stopped', threading.active_count())\n"
    )
    result = run_python(code, str(large))
    assert (result.returncode, result.stdout) == (0, "stopped 1\n"), result.stderr
