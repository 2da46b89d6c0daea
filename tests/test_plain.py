"""NumPy in the place of kernels: the same bits, whatever the numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import jit, plain
from engine import pooling as public
from engine.heads import network_logits
from engine.kernels import heads, pooling
from engine.pooling import POOLINGS, feature_width, parse_taps, pool_features

ODD_VALUES = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-6, 9.99e-7, 1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32
)


def pretend(monkeypatch, loaded):
    """Take the way of a process that loaded numba, or did not."""
    modules = {"numba": None} if loaded else {}
    monkeypatch.setattr(jit, "sys", SimpleNamespace(modules=modules))


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    # Which NaN comes out is not defined: of two that meet, a processor keeps either.
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~known)
    kind = np.uint32 if found.dtype == np.float32 else np.uint64
    np.testing.assert_array_equal(found.view(kind)[known], expected.view(kind)[known])


def draw(rng, shape, odd):
    """Values that mostly cancel: sums in another order are other numbers, in float32 too."""
    values = (rng.normal(1, 2, shape) * 10.0 ** rng.integers(-6, 7, shape)).astype(np.float32)
    if rng.random() < 0.5:
        huge = np.where(rng.random(shape) < 0.5, np.float32(2.0**60), np.float32(-(2.0**60)))
        values = np.where(rng.random(shape) < 0.2, huge, values)
    if odd:
        chosen = rng.random(shape) < rng.choice([0.01, 0.1, 0.9])
        allowed = ODD_VALUES[rng.permutation(len(ODD_VALUES))[: rng.integers(1, len(ODD_VALUES))]]
        values = np.where(chosen, rng.choice(allowed, shape), values).astype(np.float32)
    return values


def both(function, kernel, *arguments, shape, dtype, work=()):
    """Outputs of the plain function and of the kernel."""
    found, expected = np.full(shape, 7, dtype), np.full(shape, 7, dtype)
    function(*arguments, found)
    with np.errstate(all="ignore"):  # under NUMBA_DISABLE_JIT kernels warn
        kernel(*arguments, *work, expected)
    return found, expected


def offsets_of(names, c):
    offsets, at = np.full(len(POOLINGS), -1, np.int64), 2
    for name in names:
        offsets[POOLINGS.index(name)] = at
        at += parse_taps("t", name, {"t": c})[0].width
    return offsets, at + 1


def both_pools(maps, offsets, d):
    """As `both`, of maps (n, h, w, c)."""
    sums = np.full((pooling.N_SUMS, maps.shape[3]), 7.0)
    return both(
        plain.pool_maps, pooling.pool_maps, maps, offsets, sums, shape=(len(maps), d),
        dtype=np.float32,
    )  # fmt: skip


def test_the_constants_are_the_kernels_own():
    assert plain.GEM_EPS == pooling.GEM_EPS
    assert plain.GRID_SIZES == pooling.GRID_SIZES
    assert plain.GRID_MAXIMA == pooling.GRID_MAXIMA
    assert plain.N_PLAIN == pooling.N_PLAIN
    assert public._N_SUMS == pooling.N_SUMS
    assert plain.LANES == heads.LANES


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 3),
    c=st.sampled_from([1, 2, 3, 8, 40]),
    h=st.integers(1, 15),
    w=st.integers(1, 15),
    names=st.lists(st.sampled_from(POOLINGS), min_size=1, max_size=len(POOLINGS), unique=True),
    seed=st.integers(0, 2**32),
    odd=st.booleans(),
)
def test_pooling_has_the_kernels_bits(n, c, h, w, names, seed, odd):
    maps = draw(np.random.default_rng(seed), (n, h, w, c), odd)
    offsets, d = offsets_of(names, c)
    # What no pooling covers keeps its 7.
    assert_same_bits(*both_pools(maps, offsets, d))


@pytest.mark.parametrize("shape", [(1, 56, 56, 1), (1, 56, 56, 24), (2, 7, 7, 320)])
def test_large_maps_have_the_kernels_bits(shape):
    maps = draw(np.random.default_rng(1), shape, odd=False)
    offsets, d = offsets_of(POOLINGS, shape[3])
    assert_same_bits(*both_pools(maps, offsets, d))


def test_maps_that_lie_otherwise_in_memory():
    whole = draw(np.random.default_rng(2), (2, 14, 6, 9), odd=True)
    offsets, d = offsets_of(POOLINGS, 3)
    for maps in (whole[..., ::3], whole[:, ::-1, :, :3], np.asfortranarray(whole[..., :3])):
        assert_same_bits(*both_pools(maps, offsets, d))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 5), d=st.integers(1, 200), seed=st.integers(0, 2**32), odd=st.booleans())
def test_standardising_has_the_kernels_bits(n, d, seed, odd):
    rng = np.random.default_rng(seed)
    X, mean = draw(rng, (n, d), odd), draw(rng, (d,), odd)
    scale = np.abs(draw(rng, (d,), odd)) + np.float32(1e-30)
    arguments = (X, mean, scale)
    assert_same_bits(
        *both(plain.standardise, heads.standardise, *arguments, shape=(n, d), dtype=np.float32)
    )


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(0, 9),
    d=st.one_of(st.integers(1, 300), st.sampled_from([63, 64, 65, 128, 2088])),
    k=st.integers(1, 5),
    h=st.sampled_from([0, 1, 3, 64, 100]),
    seed=st.integers(0, 2**32),
    odd=st.booleans(),
)
def test_logits_have_the_kernels_bits(n, d, k, h, seed, odd):
    rng = np.random.default_rng(seed)
    X = draw(rng, (n, d), odd)
    width = h or d
    weight, bias = rng.normal(size=(k, width)), rng.normal(size=k)
    bias[rng.random(k) < 0.3] = -0.0
    lanes = np.empty(heads.LANES)
    if not h:
        found, expected = both(
            plain.logits, heads.logits, X, weight, bias, shape=(n, k), dtype=float, work=(lanes,)
        )
    else:
        first = rng.normal(size=(h, d)), rng.normal(size=h)
        work = (lanes, np.empty((heads.ROWS, h)))
        found, expected = both(
            plain.mlp_logits, heads.mlp_logits, X, *first, weight, bias, shape=(n, k), dtype=float,
            work=work,
        )  # fmt: skip
    assert_same_bits(found, expected)


@pytest.mark.parametrize("d", [5, 70])
@pytest.mark.parametrize("c", [1, 2])
def test_negative_zeros_sum_to_what_the_kernel_says(c, d):
    X, weight = np.full((1, d), -0.0, np.float32), np.ones((c, d))
    lanes = np.empty(heads.LANES)
    found, expected = both(
        plain.logits, heads.logits, X, weight, np.full(c, -0.0), shape=(1, c), dtype=float,
        work=(lanes,),
    )  # fmt: skip
    assert_same_bits(found, expected)
    maps = np.full((1, 3, 3, c), -0.0, np.float32)
    offsets, d = offsets_of(POOLINGS, c)
    assert_same_bits(*both_pools(maps, offsets, d))


def test_public_functions_take_the_way_that_is_open(monkeypatch):
    pretend(monkeypatch, loaded=False)
    rng = np.random.default_rng(3)
    maps = {"t": draw(rng, (1, 3, 8, 8), odd=False)}
    blocks = parse_taps("t", "mean,mean3x3", {"t": 3})
    standard = draw(rng, (2, 70), odd=False)
    weights = {"weight": rng.normal(size=(2, 70)), "bias": rng.normal(size=2)}
    mlp = weights | {
        "hidden.weight": rng.normal(size=(4, 70)),
        "hidden.bias": np.zeros(4),
        "weight": rng.normal(size=(2, 4)),
    }
    called = []
    for name in ("pool_maps", "logits", "mlp_logits"):
        function = getattr(plain, name)
        monkeypatch.setattr(
            plain, name, lambda *a, f=function, name=name: (called.append(name), f(*a))[1]
        )
    answers = [
        pool_features(maps, blocks), network_logits(standard, weights),
        network_logits(standard, mlp),
    ]  # fmt: skip
    assert called == ["pool_maps", "logits", "mlp_logits", "logits", "logits"]
    pretend(monkeypatch, loaded=True)
    called.clear()
    with np.errstate(all="ignore"):
        compiled = [
            pool_features(maps, blocks), network_logits(standard, weights),
            network_logits(standard, mlp),
        ]  # fmt: skip
    assert called == []
    for found, expected in zip(answers, compiled, strict=True):
        assert_same_bits(found, expected)
    assert answers[0].shape == (1, feature_width(blocks))


PREDICT = """
import json, sys
from engine import jit
from engine.prediction import Predictor
if "load" in sys.argv:
    jit.load()
assert jit.ready() == ("load" in sys.argv)
predictor = Predictor(heatmap=True, views=1, streams=1, allow=["out_of_distribution"])
for path in sys.argv[2:]:
    answer = predictor.predict(path)
    said = answer.to_json()
    del said["milliseconds"]
    sheet = None if answer.heatmap is None else hash(answer.heatmap.tobytes())
    print(json.dumps([said, sheet]))
assert jit.ready() == ("load" in sys.argv)
"""


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    from engine.phantoms import draw_phantom, write_png

    folder = tmp_path_factory.mktemp("phantoms")
    for seed in range(3):
        write_png(draw_phantom(seed), folder / f"{seed}.png")
    return sorted(folder.iterdir())


def test_a_prediction_is_the_same_with_and_without_numba(phantoms):
    answers = [
        subprocess.run(
            [sys.executable, "-c", PREDICT, way, *map(str, phantoms)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for way in ("load", "do not")
    ]
    assert answers[0] == answers[1]
    assert answers[0].count("\n") == len(phantoms)


def test_maps_of_the_default_backbone_pool_to_the_same_bits(phantoms, monkeypatch):
    from engine.backbone import load_backbone
    from engine.images import read_picture, read_preprocessing
    from engine.inference import feature_maps, network_inputs

    backbone = load_backbone("efficientnet-lite0", streams=1)
    channels = {name: tap.channels for name, tap in backbone.taps.items()}
    blocks = parse_taps(",".join(channels), ",".join(POOLINGS), channels)
    rules = read_preprocessing(backbone.preprocessing)
    for path in phantoms[:1]:
        maps = feature_maps(backbone, network_inputs(read_picture(path), rules))
        pretend(monkeypatch, loaded=False)
        found = pool_features(maps, blocks)
        pretend(monkeypatch, loaded=True)
        assert_same_bits(found, pool_features(maps, blocks))


def test_importing_prediction_brings_nothing_of_training():
    """Each of these costs milliseconds, of which a cold start counts all."""
    code = """
import sys
import numpy, PIL.Image, PIL.PngImagePlugin
had = set(sys.modules)
import engine.prediction
engine.prediction.load_head(engine.prediction.DEMONSTRATION_HEAD)
new = set(sys.modules) - had
heavy = {
    "_cffi_backend", "concurrent", "csv", "engine.features", "engine.kernels", "engine.manifest",
    "engine.metrics", "engine.plain", "engine.views", "formats.container", "formats.notes",
    "formats.writer", "logging", "lzma", "numba", "pydicom", "random", "secrets", "shutil",
    "tempfile",
}
print(sorted(heavy & new))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
