"""Preprocessing against real numbers written out, and its two ways of adding against a third."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_helpers import dicom, save
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import reduction
from engine.images import find_images, read_picture
from engine.picture import WHITE, Picture, round_to_8_bits, scale_to_levels
from engine.preprocessing import (
    FITS,
    JoinedPreprocessing,
    Preprocessing,
    preprocess,
    read_preprocessing,
)
from engine.reduction import Axis, make_axis, plain_sums, shades, weighted_sums
from formats import preprocessing_digest


def picture_of(samples: np.ndarray, table: np.ndarray | None = None) -> Picture:
    return Picture(samples, Path("made.png"), "png", 8, table=table)


def gray8(rows: int = 72, columns: int = 96) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return ((x * 2 + y * 3) % 256).astype(np.uint8)


# --- the reference: float64, nothing rounded -----------------------------------------------------


def weights(n_in: int, n_out: int, begin: float, end: float) -> np.ndarray:
    """What each output pixel takes of each sample between two places: shares of its area.

    Where output pixels are smaller than samples, the two nearest middles by distance.
    """
    step = (end - begin) / n_out
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        first, last = begin + i * step, begin + (i + 1) * step
        if step >= 1 - 1e-12:
            places = np.arange(n_in)
            matrix[i] = np.clip(np.minimum(last, places + 1) - np.maximum(first, places), 0, None)
            matrix[i] /= step
        else:
            place = (first + last) / 2 - 0.5
            share = place - math.floor(place)
            least, most = math.floor(begin + 1e-9), math.ceil(end - 1e-9) - 1
            for k, part in ((math.floor(place), 1 - share), (math.floor(place) + 1, share)):
                matrix[i, min(max(k, least), most)] += part
    return matrix


def reference(shades: np.ndarray, rules: Preprocessing) -> np.ndarray:
    """The documented steps on shades 0.0 to 255.0, in real numbers."""
    rows, columns = shades.shape
    height, width = rules.height, rules.width
    inner = [height, width]
    box = [0.0, float(rows), 0.0, float(columns)]
    if rules.fit == "pad":
        if columns / rows < width / height:
            inner[1] = max(1, math.floor(columns * height / rows + 0.5))
        else:
            inner[0] = max(1, math.floor(rows * width / columns + 0.5))
    elif rules.fit == "crop":
        if columns / rows > width / height:
            spare = columns - rows * width / height
            box[2:] = spare / 2, columns - spare / 2
        else:
            spare = rows - columns * height / width
            box[:2] = spare / 2, rows - spare / 2
    down, across = weights(rows, inner[0], *box[:2]), weights(columns, inner[1], *box[2:])
    small = down @ shades @ across.T
    if rules.low_percentile is not None and rules.high_percentile is not None:
        ordered = np.sort(small, axis=None)
        low = ordered[math.floor(rules.low_percentile / 100 * small.size)]
        high = ordered[max(0, math.ceil(rules.high_percentile / 100 * small.size) - 1)]
        if high > low:
            small = (np.clip(small, low, high) - low) / (high - low) * 255
    out = np.zeros((height, width))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = small
    return out


RULES = [
    Preprocessing(height=h, width=w, fit=fit, low_percentile=low, high_percentile=high)
    for h, w in ((24, 31), (64, 64))
    for fit in FITS
    for low, high in ((None, None), (0.5, 99.5))
]


def shades_of_size(rows: int, columns: int, seed: int, top: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    waves = np.sin(x / rng.uniform(3, 40) + seed) + np.cos(y / rng.uniform(3, 40))
    noise = rng.normal(0, 0.2, (rows, columns))
    return np.clip((waves + noise + 2.3) / 4.6 * top, 0, top).astype(np.int64)


@pytest.mark.parametrize("rules", RULES, ids=lambda r: f"{r.height}-{r.fit}-{r.low_percentile}")
@pytest.mark.parametrize(
    "shape", [(72, 96), (301, 203), (64, 64), (63, 65), (20, 30), (1, 700), (700, 1), (64, 5000)]
)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_within_one_grey_level_of_real_numbers(
    rules: Preprocessing, shape: tuple[int, int], bits: int
) -> None:
    values = shades_of_size(*shape, seed=bits, top=(1 << bits) - 1)
    low, high = 0.1 * (1 << bits), 0.8 * (1 << bits)
    if bits == 8:
        picture, shades = picture_of(values.astype(np.uint8)), values.astype(float)
    else:
        every = np.arange(WHITE + 1)
        picture = picture_of(values.astype(np.uint16), scale_to_levels(every, low, high))
        shades = np.clip((values - low) / (high - low), 0, 1) * 255
    found = preprocess(picture, rules)
    assert found.shape == (1, rules.height, rules.width)
    assert found.dtype == np.uint8
    assert np.abs(found[0] - reference(shades, rules)).max() <= 0.51


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    fit=st.sampled_from(FITS),
    seed=st.integers(0, 1000),
    stretch=st.booleans(),
)
def test_any_size_is_within_one_grey_level(
    rows: int, columns: int, height: int, width: int, fit: str, seed: int, stretch: bool
) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    rules = Preprocessing(height=height, width=width, fit=fit)
    if stretch:
        rules = Preprocessing(
            height=height, width=width, fit=fit, low_percentile=2, high_percentile=98
        )
    found = preprocess(picture_of(samples), rules)[0]
    apart = np.abs(found - reference(samples.astype(float), rules)).max()
    # Where both percentiles are one level but for float64's last digits, the reference spreads
    # these digits; nothing is to be learnt from that.
    assert apart <= 0.51 or np.ptp(found) == 0 or np.unique(found).size < 3


def test_real_xrays_and_dicom_agree_with_real_numbers(shared_data: Path, tmp_path: Path) -> None:
    rules = Preprocessing(low_percentile=0.5, high_percentile=99.5)
    files = find_images(shared_data / "pneumonia_fullsize")[::9]
    files += find_images(shared_data / "covid" / "images")[::20]
    for path in files:
        picture = read_picture(path)
        expected = reference(picture.pixels.astype(float), rules)
        assert np.abs(preprocess(picture, rules)[0] - expected).max() <= 0.51


def test_windowed_dicom_agrees_with_real_numbers(tmp_path: Path) -> None:
    rules = Preprocessing(height=50, width=40, low_percentile=0.5, high_percentile=99.5)
    values = shades_of_size(72, 80, seed=1, top=4095)
    path = save(
        dicom(values, WindowCenter=1700, WindowWidth=2600, PhotometricInterpretation="MONOCHROME1"),
        tmp_path / "a.dcm",
    )
    shades = 255 - np.clip((values - 1699.5) / 2599 + 0.5, 0, 1) * 255
    assert np.abs(preprocess(read_picture(path), rules)[0] - reference(shades, rules)).max() <= 0.51


# --- the sums ------------------------------------------------------------------------------------


def dense(axis: Axis, n_in: int) -> np.ndarray:
    matrix = np.zeros((axis.first.size, n_in), dtype=np.int64)
    for i in range(axis.first.size):
        matrix[i, axis.first[i] + 1 : axis.last[i]] = axis.inner_weight
        matrix[i, axis.first[i]] += axis.first_weight[i]
        matrix[i, axis.last[i]] += axis.last_weight[i]
    assert (matrix >= 0).all()
    assert (matrix.sum(axis=1) == axis.total).all()
    return matrix


SIZES = [(1, 1), (1, 9), (9, 1), (5, 5), (7, 5), (5, 7), (64, 3), (100, 33), (3, 100), (2000, 2)]


@pytest.mark.parametrize("has_table", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_sums_are_exact_and_the_same_twice(
    n_in: int, n_out: int, dtype: Any, has_table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(n_in)
    top = np.iinfo(dtype).max
    for rows, columns in ((n_in, 37), (37, n_in)):
        samples = rng.integers(0, top, (rows, columns), endpoint=True).astype(dtype)
        table = rng.integers(0, WHITE, top + 1, endpoint=True).astype(np.uint16)
        axes = (
            make_axis(n_out if rows == n_in else 8, n_out if rows == n_in else 8, 0, rows),
            make_axis(n_out if columns == n_in else 8, n_out if columns == n_in else 8, 0, columns),
        )
        levels = (table[samples] if has_table else samples).astype(np.int64)
        expected = dense(axes[0], rows) @ levels @ dense(axes[1], columns).T
        used = table if has_table else None
        for is_ready in (True, False):
            monkeypatch.setattr(reduction, "ready", lambda is_ready=is_ready: is_ready)
            assert np.array_equal(weighted_sums(samples, used, *axes), expected)


@settings(deadline=None, max_examples=150)
@given(
    bits=st.integers(1, 57),
    size=st.sampled_from([1, 2, 3, 50, 700]),
    kinds=st.integers(1, 5),
    percentiles=st.sampled_from([None, (0.0, 100.0), (0.5, 99.5), (40.0, 60.0), (0.0, 1e-9)]),
    seed=st.integers(0, 100),
)
def test_shades_are_rounded_once_and_the_same_twice(
    bits: int, size: int, kinds: int, percentiles: tuple[float, float] | None, seed: int
) -> None:
    """Python's whole numbers have no limit, and say what each shade is."""
    rng = np.random.default_rng(seed)
    white = (1 << bits) - 1
    some = rng.integers(0, white, 3**kinds, endpoint=True)
    sums = rng.choice(some, (1, size))
    excess = max(0, bits - 53)
    low, high = 0, white >> excess
    values = [int(v) >> excess for v in sums[0]]
    if percentiles is not None:
        ordered = sorted(values)
        first, last = (ordered[min(math.floor(percentiles[0] / 100 * size), size - 1)],
                       ordered[max(0, math.ceil(percentiles[1] / 100 * size) - 1)])  # fmt: skip
        if last > first:
            low, high = first, last
    span = high - low
    expected = [(510 * (min(max(v, low), high) - low) + span) // (2 * span) for v in values]
    for is_ready in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reduction, "ready", lambda is_ready=is_ready: is_ready)
            assert shades(sums.copy(), white, percentiles)[0].tolist() == expected


def test_no_shade_is_rounded_by_a_quotient_of_float64() -> None:
    """The sums just below and above each half, where float64 of 53 bits cannot tell."""
    for white in ((1 << 53) - 1, (1 << 53) - 255, (1 << 50) - 27, 510 * 12345677):
        halves = [(2 * shade - 1) * white // 510 for shade in range(1, 256)]
        values = [half + step for half in halves for step in (-1, 0, 1, 2)]
        values = [value for value in values if value <= white]
        expected = [(510 * value + white) // (2 * white) for value in values]
        for is_ready in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(reduction, "ready", lambda is_ready=is_ready: is_ready)
                assert shades(np.array([values]), white, None)[0].tolist() == expected


def test_many_rows_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows under one output row than there is room for in 32 bits."""
    rows = (1 << 17) + 3
    samples = np.full((rows, 1), 65535, np.uint16)
    table = np.full(65536, WHITE, np.uint16)
    axes = make_axis(1, 1, 0, rows), make_axis(1, 1, 0, 1)
    for is_ready in (True, False):
        monkeypatch.setattr(reduction, "ready", lambda is_ready=is_ready: is_ready)
        assert weighted_sums(samples, table, *axes).tolist() == [[WHITE * rows]]


def test_the_widest_picture_does_not_overflow() -> None:
    """One row, a million columns, the largest input: sums of 2**49, percentiles and all."""
    samples = np.full((1, 1 << 20), 65535, np.uint16)
    samples[0, : 1 << 19] = 0
    rules = Preprocessing(height=2, width=4096, low_percentile=1, high_percentile=99)
    found = preprocess(picture_of(samples, np.arange(65536, dtype=np.uint16)), rules)[0]
    assert found[:, :2048].max() == 0
    assert found[:, 2048:].min() == 255


def test_memory_is_bounded_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of levels, never a second picture."""
    import tracemalloc

    samples = np.zeros((2000, 2000), np.uint16)
    table = np.arange(65536, dtype=np.uint16)
    axis = make_axis(224, 224, 0, 2000)
    tracemalloc.start()
    plain_sums(samples, table, axis, axis)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


CHILD = """
import numpy as np
from engine import reduction
reduction.ready = lambda: True
rng = np.random.default_rng(1)
for dtype, table in ((np.uint8, None), (np.uint16, np.arange(65536, dtype=np.uint16)[::-1].copy())):
    samples = rng.integers(0, 256, (30, 41)).astype(dtype)
    axes = reduction.make_axis(7, 7, 0, 30), reduction.make_axis(50, 50, 0, 41)
    found = reduction.weighted_sums(samples, table, *axes)
    assert np.array_equal(found, reduction.plain_sums(samples, table, *axes))
    white = 65535 * axes[0].total * axes[1].total
    spread = reduction.shades(found.copy(), white, (1.0, 90.0))
    reduction.ready = lambda: False
    assert np.array_equal(spread, reduction.shades(found, white, (1.0, 90.0)))
    reduction.ready = lambda: True
"""


def test_the_loop_as_plain_python(repository: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD],
        check=True,
        cwd=repository,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )


def test_one_picture_is_preprocessed_without_numba(repository: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from engine.images import Preprocessing, preprocess\n"
        "from engine.picture import Picture\n"
        "p = Picture(np.eye(80, dtype=np.uint8), Path('a'), 'png', 8)\n"
        "preprocess(p, Preprocessing())\n"
        "assert not {'numba', 'PIL', 'pydicom', 'engine.kernels'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


# --- the steps -----------------------------------------------------------------------------------


def test_digests_hold() -> None:
    """A change here makes every container and head strangers: raise the version with it."""
    assert Preprocessing().digest == GOLDEN_RULES
    made = hashlib.sha256()
    deep = picture_of(gray8().astype(np.uint16) * 256 + 7, np.arange(65536, dtype=np.uint16))
    for fit in FITS:
        rules = Preprocessing(height=40, width=32, fit=fit, low_percentile=1, high_percentile=99)
        for pixels in (gray8(), gray8().T.copy(), gray8()[:, :65], gray8(20, 200)):
            made.update(preprocess(picture_of(pixels), rules).tobytes())
        made.update(preprocess(deep, rules).tobytes())
    assert made.hexdigest() == GOLDEN_PIXELS


GOLDEN_RULES = "8dfd5734bc5fc246f822f7a711a6e5f7fa9d47394644698162bdcb9e41c7a990"
GOLDEN_PIXELS = "93dbbe1bb79ca7b51bb7b816f077172648ed6a666d16f326da6adf24c070d4ad"


def test_digest_is_of_the_canonical_json() -> None:
    rules = Preprocessing(low_percentile=1, high_percentile=99)
    text = (
        '{"fit":"stretch","height":224,"high_percentile":99.0,'
        '"low_percentile":1.0,"version":2,"width":224}'
    )
    assert rules.digest == hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(text) == rules.to_dict()
    assert Preprocessing(low_percentile=1.0, high_percentile=99.0).digest == rules.digest
    again = Preprocessing.from_dict(json.loads(json.dumps(rules.to_dict())))
    assert again == rules
    assert again.digest == rules.digest


def test_every_field_is_in_the_digest() -> None:
    digests = {
        Preprocessing(**change).digest
        for change in (
            {},
            {"height": 225},
            {"width": 225},
            {"fit": "pad"},
            {"low_percentile": 1, "high_percentile": 99},
            {"low_percentile": 1, "high_percentile": 98},
        )
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"colour": 1}, "'colour'"),
        ({"version": 3}, "version 3.*update hilum"),
        ({"version": 1}, "version 1.*extract and train again"),
        ({"version": 1, "filter": "bilinear"}, "version 1.*extract and train again"),
        ({"version": 2, "filter": "bilinear"}, "'filter'"),
        ({"version": "1"}, "whole number"),
        ({"height": 0}, "height is 0"),
        ({"width": 1e9}, "whole number"),
        ({"width": 10**9}, "1 to 4096"),
        ({"height": True}, "whole number"),
        ({"fit": "squeeze"}, "crop, pad, stretch"),
        ({"low_percentile": 1}, "both or none"),
        ({"low_percentile": 5, "high_percentile": 5}, "low < high"),
        ({"low_percentile": -1, "high_percentile": 5}, "low < high"),
        ({"low_percentile": float("nan"), "high_percentile": 5}, "low < high"),
    ],
)
def test_unknown_rules(values: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((100, 200), (32, 64)), ((200, 100), (64, 32)), ((99, 100), (63, 64)), ((90, 90), (64, 64))],
)
def test_pad(shape: tuple[int, int], inner: tuple[int, int]) -> None:
    found = preprocess(
        picture_of(np.full(shape, 200, np.uint8)), Preprocessing(height=64, width=64, fit="pad")
    )[0]
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert (rows.size, columns.size) == inner
    assert rows[0] == (64 - inner[0]) // 2
    assert columns[0] == (64 - inner[1]) // 2
    assert set(np.unique(found)) <= {0, 200}


@pytest.mark.parametrize("shape", [(100, 200), (200, 100), (100, 102)])
@pytest.mark.parametrize("side", [50, 150])
def test_crop(shape: tuple[int, int], side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    short = min(shape)
    top, left = (shape[0] - short) // 2, (shape[1] - short) // 2
    found = preprocess(picture_of(pixels), Preprocessing(height=side, width=side, fit="crop"))
    part = pixels[top : top + short, left : left + short]
    expected = preprocess(picture_of(part), Preprocessing(height=side, width=side))
    assert np.array_equal(found, expected)


def test_percentiles() -> None:
    pixels = np.repeat(np.arange(100, 200, dtype=np.uint8), 100).reshape(100, 100)
    rules = {"height": 100, "width": 100}
    full = preprocess(
        picture_of(pixels), Preprocessing(**rules, low_percentile=0, high_percentile=100)
    )[0]
    assert np.array_equal(full, np.floor((pixels - 100.0) / 99 * 255 + 0.5))
    part = preprocess(
        picture_of(pixels), Preprocessing(**rules, low_percentile=10, high_percentile=90)
    )[0]
    # Levels 100 to 109 are the lowest tenth; 189 is the first with 90 % at or below.
    expected = np.clip((pixels - 110.0) / 79 * 255, 0, 255)
    assert np.array_equal(part, np.floor(expected + 0.5))


def test_percentiles_leave_a_two_level_picture_and_borders() -> None:
    pixels = np.full((100, 200), 90, np.uint8)
    pixels[0, 0] = 10
    found = preprocess(
        picture_of(pixels),
        Preprocessing(height=64, width=64, fit="pad", low_percentile=2, high_percentile=98),
    )[0]
    assert found[32, 32] == 90  # both percentiles at 90: left alone
    assert found[0].max() == 0


def test_a_faint_picture_keeps_its_steps() -> None:
    """Five levels of 65,536 apart from each other are stretched, where 8 bits would see none."""
    samples = np.tile(np.arange(5, dtype=np.uint16), (64, 16))[:, :64] + 1000
    rules = Preprocessing(height=64, width=64, low_percentile=0, high_percentile=100)
    found = preprocess(picture_of(samples, np.arange(65536, dtype=np.uint16)), rules)
    assert np.unique(found).tolist() == [0, 64, 128, 191, 255]


def test_views_of_other_layouts() -> None:
    flipped = gray8()[::-1, ::-1]
    assert np.array_equal(
        preprocess(picture_of(flipped), Preprocessing()),
        preprocess(picture_of(flipped.copy()), Preprocessing()),
    )


def test_rounding_twice_is_rounding_once() -> None:
    """Halves of 8 bits are halves of 16, so levels say what 8 bits at once would have."""
    for high in (255, 238, 4095, 1000, 65535):
        values = np.arange(high + 1)
        once = (2 * 255 * values + high) // (2 * high)
        assert np.array_equal(round_to_8_bits(scale_to_levels(values, 0, high)), once)
        turned = round_to_8_bits(scale_to_levels(values, 0, high, invert=True))
        assert np.array_equal(turned, 255 - once)


# --- joined preprocessings ----------------------------------------------------------------------


def test_joined_preprocessing_survives_plain_values() -> None:
    parts = (Preprocessing(), Preprocessing(height=260, width=260, low_percentile=1.0,
                                            high_percentile=99.0))  # fmt: skip
    joined = JoinedPreprocessing(parts)
    values = joined.to_dict()
    assert values["height"] == [224, 260]
    assert values["low_percentile"] == [None, 1.0]
    assert read_preprocessing(values) == joined
    assert read_preprocessing(json.loads(json.dumps(values))).digest == joined.digest
    assert joined.digest == preprocessing_digest(values)
    assert joined.digest != JoinedPreprocessing(parts[::-1]).digest
    assert joined.parts == parts


def test_single_preprocessing_is_read_as_before() -> None:
    rules = Preprocessing(height=100)
    assert read_preprocessing(rules.to_dict()) == rules
    assert rules.parts == (rules,)


@pytest.mark.parametrize(
    "values",
    [
        {"height": [224, 260], "width": 224},
        {"height": [224, 260], "width": [224]},
        {"height": [224], "width": [224]},
        {"height": [], "width": []},
        {"height": [224, "260"], "width": [224, 260]},
        {"hight": [224, 260]},
        {"version": [1, 1], "filter": ["bilinear", "bilinear"]},
    ],
)
def test_wrong_joined_preprocessings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="preprocessing: "):
        read_preprocessing(values)
