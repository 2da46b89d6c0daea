"""The arithmetic of the backbone's stage: what is counted, what is stated, what is divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import bench_backbone
from bench.stages import Findings, Setting

MODELS = Path(__file__).resolve().parents[1] / "engine" / "models"


def test_multiplications_of_lite0_are_those_of_its_stages() -> None:
    """By hand from the published architecture: kernel, stride, channels, expansion, repeats."""
    size, before, total, depthwise = 112, 32, 112 * 112 * 9 * 32, 0
    stages = (
        (3, 1, 16, 1, 1),
        (3, 2, 24, 6, 2),
        (5, 2, 40, 6, 2),
        (3, 2, 80, 6, 3),
        (5, 1, 112, 6, 3),
        (5, 2, 192, 6, 4),
        (3, 1, 320, 6, 1),
    )
    for kernel, stride, channels, expansion, repeats in stages:
        for repeat in range(repeats):
            wide = before * expansion
            total += size * size * before * wide if expansion > 1 else 0
            size //= stride if repeat == 0 else 1
            depthwise += size * size * wide * kernel * kernel
            total += size * size * wide * channels
            before = channels
    total += depthwise + size * size * before * 1280
    counted = bench_backbone.count_macs(MODELS / "efficientnet-lite0.xml", ["final"])
    assert counted["int8"] + counted["fp32"] == total
    assert counted["depthwise"] == depthwise


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(ValueError, match="0 of the outputs nowhere"):
        bench_backbone.count_macs(MODELS / "efficientnet-lite0.xml", ["nowhere"])


@pytest.mark.parametrize(
    ("level", "flags", "expected"),
    [
        ("SSE41", set(), (16, 8)),
        ("AVX2", {"avx512_vnni"}, (32, 16)),
        ("native", {"sse4_1"}, (16, 8)),
        ("native", {"sse4_1", "avx", "avx2"}, (32, 16)),
        ("native", {"sse4_1", "avx", "avx2", "avx_vnni"}, (64, 16)),
        ("native", {"avx", "avx2", "avx512f", "avx512bw"}, (64, 32)),
        ("native", {"avx", "avx512f", "avx512bw", "avx512_vnni"}, (128, 32)),
    ],
)
def test_peaks_follow_the_widest_units(
    level: str, flags: set[str], expected: tuple[int, int]
) -> None:
    assert bench_backbone.peaks(level, flags) == expected


def test_ratios_are_made_inside_each_round(tmp_path: Path) -> None:
    def answers(*values: float) -> list[dict[str, object]]:
        return [
            {"default": {"batch 1": {"network_ms": v, "features_ms": v}, "features": []}}
            for v in values
        ]

    findings = Findings(Setting(data=None, rounds=3, work=tmp_path))
    found = {
        ("ours", "AVX2", 1): answers(1, 2, 4),
        ("openvino", "AVX2", 1): answers(2, 6, 4),
        ("openvino", "SSE41", 1): answers(9, 9, 9),
    }
    bench_backbone.add_ratios(findings, found, ["default"])
    (ratio,) = findings.ratios
    assert ratio["rounds"] == [2, 3, 1]
    assert ratio["asked"] == ">= 1.5"
