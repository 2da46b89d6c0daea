"""The stage of whole programs: what it counts, and that the install stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.bench_process import Program, core_needs, sizes_of, why_missing

REPOSITORY = Path(__file__).resolve().parents[1]


def install(folder: Path, name: str, *, needs: str = "", record: str | None = "") -> None:
    """Lay out a distribution with one module of 100 bytes, as pip does."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
    (folder / f"{name}.py").write_bytes(b"#" * 100)
    if record is not None:
        (about / "RECORD").write_text(f"{name}.py,,\n{record}")


def test_sizes_follow_requirements_and_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = (
        "Requires-Dist: hilum-b>=1\nRequires-Dist: hilum-c\nRequires-Dist: hilum-d\n"
        'Requires-Dist: hilum-e; sys_platform == "nowhere"\n'
        'Requires-Dist: hilum-f; extra == "more"\n'
    )
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"#" * 1000)
    install(tmp_path, "hilum_a", needs=needs, record="__pycache__/a.pyc,,\n")
    install(tmp_path, "hilum_b", needs="Requires-Dist: hilum-a\n")
    install(tmp_path, "hilum_c", record=None)
    install(tmp_path, "hilum_f")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sizes, unknown = sizes_of(sys.executable, ["hilum-a>=1"])
    assert sizes == {"hilum-a": ("1.0", 100), "hilum-b": ("1.0", 100)}
    assert unknown == {
        "hilum-c": "installed without a list of its files",
        "hilum-d": "not installed",
    }


def test_core_dependencies_are_small() -> None:
    needs = core_needs()
    assert {"numpy", "numba", "openvino"} <= set(needs)
    sizes, unknown = sizes_of(sys.executable, needs)
    if unknown and "CI" not in os.environ:
        pytest.skip(f"cannot be summed here: {unknown}")
    assert unknown == {}
    assert sum(size for _, size in sizes.values()) <= 480 * 2**20


def test_a_missing_peer_has_a_reason() -> None:
    assert why_missing(sys.executable, ["json"]) is None
    assert "hilum_nowhere" in str(why_missing(sys.executable, ["json", "hilum_nowhere"]))
    assert "cannot be started" in str(why_missing("/nowhere/python", ["json"]))


@pytest.mark.skipif(sys.platform == "win32", reason="the peak memory of a child needs wait4")
def test_first_result_counts_lines_and_keeps_the_code() -> None:
    def run(code: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-S", "bench/first_result.py", sys.executable, "-c", code],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found: dict[str, object] = json.loads(done.stdout)
        return found

    two = run("print(1); print(2); x = bytearray(b'1') * (64 << 20); raise SystemExit(3)")
    assert (two["code"], two["lines"], two["last"]) == (3, 2, "2")
    assert float(str(two["peak_mib"])) > 64
    silent = run("pass")
    assert (silent["lines"], silent["first_ms"]) == (0, None)


def test_costs_need_every_round() -> None:
    rounds = [{"first_ms": 1, "wall_ms": 2}, {"first_ms": None, "wall_ms": 3}]
    program = Program("x", "y", [], {}, rounds=rounds)
    assert program.costs("wall_ms") == [2.0, 3.0]
    assert program.costs("first_ms") is None
