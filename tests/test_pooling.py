"""Pooling: the layout of feature vectors, and every statistic against the oracle."""

from __future__ import annotations

import naive
import numpy as np
import pytest

from engine.errors import BackboneError, MismatchError
from engine.kernels import pooling as kernels
from engine.pooling import (
    FLOOR_TAPS,
    POOLINGS,
    Block,
    add_floors,
    blocks_from_notes,
    blocks_to_notes,
    feature_width,
    floor_blocks,
    floor_values,
    network_blocks,
    parse_floors,
    parse_taps,
    pool_features,
)

CHANNELS = {"block4": 3, "final": 5}


def test_taps_times_poolings_lie_side_by_side():
    blocks = parse_taps("block4,final", "mean,max2x2", CHANNELS)
    assert blocks == (
        Block("block4", "mean", 0, 3),
        Block("block4", "max2x2", 3, 12),
        Block("final", "mean", 15, 5),
        Block("final", "max2x2", 20, 20),
    )
    assert feature_width(blocks) == 40


def test_a_tap_may_name_its_own_poolings():
    blocks = parse_taps(" final:gem+std , block4", None, CHANNELS)
    assert [block.name for block in blocks] == [
        "final:gem",
        "final:std",
        "block4:mean",
        "block4:max",
        "block4:std",
    ]


@pytest.mark.parametrize(
    ("text", "poolings", "message"),
    [
        ("block5", None, "unknown tap 'block5' in 'block5'; this backbone has: block4, final"),
        ("", None, "unknown tap ''"),
        ("final:", None, "unknown pooling ''"),
        ("final", "mean,median", "unknown pooling 'median' for tap 'final'; valid are: mean, max"),
        ("final,final", "mean", "named twice"),
        ("final:mean+mean", None, "named twice"),
    ],
)
def test_a_wrong_text_lists_what_is_valid(text, poolings, message):
    with pytest.raises(MismatchError) as caught:
        parse_taps(text, poolings, CHANNELS)
    assert message in str(caught.value)


def test_blocks_survive_the_notes():
    blocks = parse_taps("block4,final", None, CHANNELS)
    assert blocks_from_notes(blocks_to_notes(blocks)) == blocks


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"tap": "a", "pooling": "mean", "offset": 0}], "block 0"),
        ([{"tap": "a", "pooling": "mean", "offset": -1, "width": 2}], "offset -1"),
        (
            [
                {"tap": "a", "pooling": "max", "offset": 2, "width": 2},
                {"tap": "a", "pooling": "mean", "offset": 0, "width": 3},
            ],
            "overlap at column 2",
        ),
    ],
)
def test_damaged_blocks_are_refused(entries, message):
    with pytest.raises(MismatchError, match=message):
        blocks_from_notes(entries)


def test_the_slots_are_the_kernels_own():
    grids = [
        f"{'max' if maximum else 'mean'}{size}x{size}"
        for size, maximum in zip(kernels.GRID_SIZES, kernels.GRID_MAXIMA, strict=True)
    ]
    assert list(POOLINGS) == ["mean", "max", "std", "gem", *grids]
    assert kernels.N_PLAIN == 4


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 5, 1, 1), (2, 2, 4, 3), (1, 4, 1, 6)])
def test_each_pooling_equals_the_oracle(pooling, shape):
    maps = {"t": np.random.default_rng(1).normal(2, 3, shape).astype(np.float32)}
    blocks = parse_taps("t", pooling, {"t": shape[1]})
    expected = np.stack([naive.pool(feature_map, pooling) for feature_map in maps["t"]])
    np.testing.assert_allclose(pool_features(maps, blocks), expected, rtol=2e-7, atol=1e-7)


def test_all_poolings_in_one_pass_equal_each_alone():
    rng = np.random.default_rng(2)
    maps = {
        "block4": rng.normal(size=(2, 3, 8, 6)).astype(np.float32),
        "final": rng.normal(size=(2, 5, 3, 3)).astype(np.float32),
    }
    blocks = parse_taps("block4,final", ",".join(POOLINGS), CHANNELS)
    together = pool_features(maps, blocks)
    for block in blocks:
        alone = pool_features(maps, [Block(block.tap, block.pooling, 0, block.width)])
        columns = together[:, block.offset : block.offset + block.width]
        assert np.array_equal(columns, alone)


def test_out_is_filled_and_foreign_columns_are_left():
    maps = {"final": np.ones((1, 5, 2, 2), np.float32)}
    out = np.full((1, 9), 7, np.float32)
    returned = pool_features(maps, [Block("final", "mean", 4, 5)], out)
    assert returned is out
    assert out.tolist() == [[7, 7, 7, 7, 1, 1, 1, 1, 1]]


def test_read_only_and_strided_maps_are_taken():
    base = np.random.default_rng(3).normal(size=(1, 6, 4, 8)).astype(np.float32)
    strided = base[:, ::2, :, ::2]
    strided.flags.writeable = False
    blocks = parse_taps("t", "std", {"t": 3})
    expected = naive.pool(strided[0], "std")
    np.testing.assert_allclose(pool_features({"t": strided}, blocks)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("maps", "blocks", "message"),
    [
        ({"a": np.ones((1, 2, 2, 2), np.float32)}, [Block("b", "mean", 0, 2)], "the backbone gave"),
        ({"a": np.ones((1, 2, 2, 2))}, [Block("a", "mean", 0, 2)], "expected float32"),
        ({"a": np.ones((1, 2, 0, 2), np.float32)}, [Block("a", "mean", 0, 2)], "empty axes"),
        ({"a": np.ones((1, 2, 2, 2), np.float32)}, [Block("a", "mean", 0, 3)], "3 wide"),
        ({"a": np.ones((1, 2, 2, 2), np.float32)}, [Block("a", "mode", 0, 2)], "valid are: mean"),
        (
            {"a": np.ones((1, 2, 2, 2), np.float32), "b": np.ones((2, 2, 2, 2), np.float32)},
            [Block("a", "mean", 0, 2), Block("b", "mean", 2, 2)],
            "expected one batch",
        ),
        (
            {"a": np.ones((1, 2, 2, 2), np.float32)},
            [Block("a", "mean", 0, 2), Block("a", "mean", 2, 2)],
            "named twice",
        ),
    ],
)
def test_maps_that_do_not_fit_the_blocks_are_refused(maps, blocks, message):
    with pytest.raises(BackboneError, match=message):
        pool_features(maps, blocks)


def test_an_out_of_the_wrong_kind_is_refused():
    maps = {"a": np.ones((1, 2, 2, 2), np.float32)}
    blocks = [Block("a", "mean", 0, 2)]
    with pytest.raises(ValueError, match=r"expected a writeable float32 \(1, 2\)"):
        pool_features(maps, blocks, np.zeros((1, 2)))  # type: ignore[arg-type]


EDGES = {
    "constant": np.full((1, 1, 3, 3), 0.1, np.float32),
    "zero": np.zeros((1, 1, 3, 3), np.float32),
    "negative": np.full((1, 1, 3, 3), -4.0, np.float32),
    "large constant": np.full((1, 1, 5, 5), 1e30, np.float32),
    "single": np.full((1, 1, 1, 1), 2.5, np.float32),
    "nan inside": np.array([[[[1, np.nan], [3, 4]]]], np.float32),
    "nan first": np.array([[[[np.nan, 2], [3, 4]]]], np.float32),
    "inf inside": np.array([[[[1, np.inf], [3, 4]]]], np.float32),
    "inf first": np.array([[[[np.inf, 2], [3, 4]]]], np.float32),
    "both infinities": np.array([[[[np.inf, 2], [-np.inf, 4]]]], np.float32),
    "-inf first": np.array([[[[-np.inf, 2], [3, 4]]]], np.float32),
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("edge", EDGES)
def test_edge_maps_equal_the_oracle(edge, pooling):
    blocks = parse_taps("t", pooling, {"t": 1})
    with np.errstate(all="ignore"):  # under NUMBA_DISABLE_JIT kernels warn
        found = pool_features({"t": EDGES[edge]}, blocks)[0]
    np.testing.assert_allclose(found, naive.pool(EDGES[edge][0], pooling), rtol=1e-6, atol=1e-12)


def test_a_constant_map_has_exactly_no_spread():
    maps = {"t": np.full((1, 1, 14, 14), 0.3, np.float32)}
    assert pool_features(maps, parse_taps("t", "std", {"t": 1}))[0, 0] == 0.0


# --- floors -------------------------------------------------------------------------------------


def test_floors_come_behind_the_network() -> None:
    network = (Block("a", "mean", 0, 3), Block("b", "max", 3, 5))
    blocks = add_floors(network, parse_floors("pixels,border"))
    assert blocks == (
        *network,
        Block("border", "64x64", 8, 64 * 64 - 52 * 52),
        Block("pixels", "64x64", 8 + 1392, 4096),
    )
    assert network_blocks(blocks) == network
    assert floor_blocks(blocks) == blocks[2:]
    assert blocks_from_notes(blocks_to_notes(blocks)) == blocks
    assert parse_floors(None) == ()
    assert add_floors(network, ()) == network


def test_the_border_is_the_outer_frame() -> None:
    small = np.zeros((64, 64), np.uint8)
    small[6:58, 6:58] = 9
    assert not floor_values(small, "border").any()
    assert floor_values(small, "pixels").tolist() == small.ravel().tolist()
    small[5, 30], small[30, 58] = 1, 2
    assert floor_values(small, "border").sum() == 3


@pytest.mark.parametrize("text", ["", "lungs", "border,border", "border,", "Border"])
def test_unknown_floors_list_the_valid_ones(text: str) -> None:
    with pytest.raises(MismatchError, match="floor"):
        parse_floors(text)


def test_formats_knows_the_same_taps() -> None:
    from formats.container import FLOOR_TAPS as KNOWN_TO_FORMATS

    assert KNOWN_TO_FORMATS == FLOOR_TAPS
