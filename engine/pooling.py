"""Which pooled statistics of which feature maps make up a feature vector.

A feature vector is a row of *blocks*: one block per tap and pooling, each at an offset. The text
form is what ``--taps`` and ``--pooling`` take, the dict form is what a container's notes hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackboneError, MismatchError
from engine.jit import ready

__all__ = [
    "BORDER_TAP",
    "DEFAULT_POOLINGS",
    "FLOOR_TAPS",
    "PIXELS_TAP",
    "POOLINGS",
    "Block",
    "add_floors",
    "blocks_from_notes",
    "blocks_to_notes",
    "feature_width",
    "floor_blocks",
    "floor_values",
    "network_blocks",
    "parse_floors",
    "parse_taps",
    "pool_features",
]

# Pooling name -> (slot in the kernel's offsets, values per channel). The slots are spelled out
# here, not imported, so that reading a container's blocks does not import numba; a test compares.
_SLOTS = {
    "mean": (0, 1),
    "max": (1, 1),
    "std": (2, 1),
    "gem": (3, 1),
    "mean2x2": (4, 4),
    "mean3x3": (5, 9),
    "mean4x4": (6, 16),
    "mean5x5": (7, 25),
    "max2x2": (8, 4),
    "max3x3": (9, 9),
}

# As the kernel has it, for the same reason.
_N_SUMS = 3

#: Valid pooling names. ``std`` is the population standard deviation; ``gem`` the generalised mean
#: with exponent 3 (Radenovic, Tolias, Chum 2018, section 3.2); ``mean3x3``, ``max2x2`` and the
#: like pool the cells of a grid, in row-major order, so that the head knows where in the chest.
POOLINGS = tuple(_SLOTS)
DEFAULT_POOLINGS = "mean,max,std"

BORDER_TAP = "border"
PIXELS_TAP = "pixels"

FLOOR_TAPS = (BORDER_TAP, PIXELS_TAP)
"""Taps that are no feature maps but pixels of the reduced picture: what a head that has learned
medicine must be better than. No head learns from them."""

FLOOR_SIDE = 64
FLOOR_POOLING = f"{FLOOR_SIDE}x{FLOOR_SIDE}"
FLOOR_FRAME = FLOOR_SIDE // 10
"""Rows and columns of the border on each side: a tenth, where markers, collimators and a patient's
arms are, and lungs are not."""


@dataclass(frozen=True)
class Block:
    """A run of columns of a feature vector.

    Attributes
    ----------
    tap : str
        Feature map it is pooled from.
    pooling : str
        One of `POOLINGS`.
    offset : int
        First column.
    width : int
        Number of columns: the tap's channels times the pooling's values per channel.
    """

    tap: str
    pooling: str
    offset: int
    width: int

    @property
    def name(self) -> str:
        """The block as ``tap:pooling``."""
        return f"{self.tap}:{self.pooling}"


def feature_width(blocks: Iterable[Block]) -> int:
    """Return the number of columns the blocks cover, counted from column 0.

    Parameters
    ----------
    blocks : iterable of Block
        Blocks in any order.

    Returns
    -------
    int
        The end of the last block, 0 without blocks.
    """
    return max((block.offset + block.width for block in blocks), default=0)


def parse_taps(text: str, poolings: str | None, channels: Mapping[str, int]) -> tuple[Block, ...]:
    """Read the texts of ``--taps`` and ``--pooling``.

    Parameters
    ----------
    text : str
        Taps separated by commas; a tap may name its own poolings after a colon, joined by plus
        signs: ``"block4,block10"`` or ``"block4:mean+max,final:mean"``.
    poolings : str or None
        Poolings, separated by commas, of the taps that name none; None means `DEFAULT_POOLINGS`.
    channels : mapping of str to int
        The backbone's taps and their number of channels.

    Returns
    -------
    tuple of Block
        In the order written, offsets without gaps from 0.

    Raises
    ------
    MismatchError
        A tap or pooling is unknown, missing or named twice; the message lists the valid ones.
    """
    common = [part.strip() for part in (poolings or DEFAULT_POOLINGS).split(",")]
    blocks: list[Block] = []
    seen: set[tuple[str, str]] = set()
    offset = 0
    for part in text.split(","):
        tap, colon, own = part.partition(":")
        tap = tap.strip()
        if tap not in channels:
            raise MismatchError(
                f"unknown tap {tap!r} in {text!r}; this backbone has: {', '.join(channels)}"
            )
        for pooling in [name.strip() for name in own.split("+")] if colon else common:
            if pooling not in _SLOTS:
                raise MismatchError(
                    f"unknown pooling {pooling!r} for tap {tap!r}; valid are: {', '.join(POOLINGS)}"
                )
            if (tap, pooling) in seen:
                raise MismatchError(
                    f"tap {tap!r} with pooling {pooling!r} is named twice in {text!r}; "
                    "name each pair once"
                )
            seen.add((tap, pooling))
            width = channels[tap] * _SLOTS[pooling][1]
            blocks.append(Block(tap, pooling, offset, width))
            offset += width
    return tuple(blocks)


def network_blocks(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return the blocks a head may learn from.

    Parameters
    ----------
    blocks : iterable of Block
        Blocks of a feature vector.

    Returns
    -------
    tuple of Block
        Those of feature maps, in their order.
    """
    return tuple(block for block in blocks if block.tap not in FLOOR_TAPS)


def floor_blocks(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return the blocks of pixels, against which heads are measured.

    Parameters
    ----------
    blocks : iterable of Block
        Blocks of a feature vector.

    Returns
    -------
    tuple of Block
        Those whose tap is in `FLOOR_TAPS`, in their order.
    """
    return tuple(block for block in blocks if block.tap in FLOOR_TAPS)


def parse_floors(text: str | None) -> tuple[str, ...]:
    """Read the text of ``--floors``.

    Parameters
    ----------
    text : str or None
        ``"border"``, ``"pixels"`` or both, separated by a comma.

    Returns
    -------
    tuple of str
        In the order of `FLOOR_TAPS`; empty for None.

    Raises
    ------
    MismatchError
        An unknown floor, one named twice, or none.
    """
    if text is None:
        return ()
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in FLOOR_TAPS:
            raise MismatchError(
                f"unknown floor {name!r} in {text!r}; valid are: {', '.join(FLOOR_TAPS)}"
            )
    if len(set(names)) != len(names):
        raise MismatchError(f"a floor is named twice in {text!r}; name each once")
    return tuple(name for name in FLOOR_TAPS if name in names)


def add_floors(blocks: Sequence[Block], floors: Sequence[str]) -> tuple[Block, ...]:
    """Put blocks of pixels behind those of the network.

    Parameters
    ----------
    blocks : sequence of Block
        Blocks of feature maps.
    floors : sequence of str
        As `parse_floors` gives them.

    Returns
    -------
    tuple of Block
        All of them, offsets without gaps.
    """
    result = list(blocks)
    for name in floors:
        width = int(_floor_mask(name).sum())
        result.append(Block(name, FLOOR_POOLING, feature_width(result), width))
    return tuple(result)


def floor_values(small: NDArray[np.uint8], tap: str) -> NDArray[np.uint8]:
    """Take the pixels of a floor out of the reduced picture.

    Parameters
    ----------
    small : uint8 (64, 64)
        The whole picture, reduced by averaging areas.
    tap : str
        One of `FLOOR_TAPS`.

    Returns
    -------
    uint8 (d,)
        All 4,096 pixels, or the 1,392 of the border, row by row.
    """
    return small[_floor_mask(tap)]


def _floor_mask(tap: str) -> NDArray[np.bool_]:
    mask = np.ones((FLOOR_SIDE, FLOOR_SIDE), np.bool_)
    if tap == BORDER_TAP:
        mask[FLOOR_FRAME:-FLOOR_FRAME, FLOOR_FRAME:-FLOOR_FRAME] = False
    return mask


def blocks_to_notes(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Return the blocks as a container's notes and a head's metadata store them.

    Parameters
    ----------
    blocks : sequence of Block
        Blocks of a feature vector.

    Returns
    -------
    list of dict
        Keys ``tap``, ``pooling``, ``offset``, ``width``.
    """
    return [asdict(block) for block in blocks]


def blocks_from_notes(notes: Iterable[Mapping[str, Any]]) -> tuple[Block, ...]:
    """Read blocks back from a container's notes or a head's metadata.

    Parameters
    ----------
    notes : iterable of mapping
        As `blocks_to_notes` writes them.

    Returns
    -------
    tuple of Block
        The blocks in the order given.

    Raises
    ------
    MismatchError
        An entry lacks a key or holds a value of the wrong kind, or two blocks overlap.
    """
    blocks = []
    for number, entry in enumerate(notes):
        try:
            block = Block(
                str(entry["tap"]), str(entry["pooling"]), int(entry["offset"]), int(entry["width"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError(
                f"feature block {number} is {dict(entry)!r}; expected tap, pooling, offset and "
                "width; extract the features again"
            ) from error
        if block.offset < 0 or block.width < 1:
            raise MismatchError(
                f"feature block {block.name} has offset {block.offset} and width {block.width}; "
                "expected offset >= 0 and width >= 1; extract the features again"
            )
        blocks.append(block)
    ordered = sorted(blocks, key=lambda block: block.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.width > after.offset:
            raise MismatchError(
                f"feature blocks {before.name} and {after.name} overlap at column {after.offset}; "
                "expected blocks side by side; extract the features again"
            )
    return tuple(blocks)


def pool_features(
    maps: Mapping[str, NDArray[np.float32]],
    blocks: Sequence[Block],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Pool feature maps to feature vectors.

    Thread-safe; the work releases the GIL.
    Kernels do it where `engine.jit.ready`, and NumPy otherwise: the bits are the same.

    Parameters
    ----------
    maps : mapping of str to float32 (n, c, h, w)
        Feature maps by tap, all with the same n.
    blocks : sequence of Block
        The wanted layout; d is the end of its last block.
    out : float32 (n, d), optional
        Written instead of a new array. Columns that no block covers stay as they are (0 in a new
        array).

    Returns
    -------
    float32 (n, d)
        `out`, or a new array.

    Raises
    ------
    BackboneError
        A tap is missing, a map is empty or not float32 (n, c, h, w), or its channels do not fit
        a block's width.
    ValueError
        `out` has another shape or dtype, or is read-only.
    """
    n: int | None = None
    offsets: dict[str, NDArray[np.int64]] = {}
    for block in blocks:
        if block.tap not in maps:
            raise BackboneError(
                f"no feature map for tap {block.tap!r}; the backbone gave: {', '.join(maps)}"
            )
        if block.pooling not in _SLOTS:
            raise BackboneError(
                f"unknown pooling {block.pooling!r} for tap {block.tap!r}; valid are: "
                f"{', '.join(POOLINGS)}"
            )
        feature_map = maps[block.tap]
        if feature_map.ndim != 4 or feature_map.dtype != np.float32 or 0 in feature_map.shape[1:]:
            raise BackboneError(
                f"feature map of tap {block.tap!r} is {feature_map.dtype} {feature_map.shape}; "
                "expected float32 (n, c, h, w) without empty axes"
            )
        if n is None:
            n = feature_map.shape[0]
        elif feature_map.shape[0] != n:
            raise BackboneError(
                f"feature map of tap {block.tap!r} has {feature_map.shape[0]} images, "
                f"others have {n}; expected one batch"
            )
        slot, per_channel = _SLOTS[block.pooling]
        if block.width != feature_map.shape[1] * per_channel:
            raise BackboneError(
                f"block {block.name} is {block.width} wide, but the map has "
                f"{feature_map.shape[1]} channels x {per_channel}; use the backbone the blocks "
                "were made for"
            )
        slots = offsets.setdefault(block.tap, np.full(len(_SLOTS), -1, np.int64))
        if slots[slot] >= 0:
            raise BackboneError(f"block {block.name} is named twice; name each pair once")
        slots[slot] = block.offset
    shape = (n or 0, feature_width(blocks))
    if out is None:
        out = np.zeros(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.writeable:
        raise ValueError(
            f"out is {out.dtype} {out.shape}, writeable={out.flags.writeable}; expected a "
            f"writeable float32 {shape}"
        )
    if ready():
        from engine.kernels.pooling import pool_maps
    else:
        from engine.plain import pool_maps
    for tap, slots in offsets.items():
        # What a backbone gives lies so in memory already, and is not copied.
        seen = np.ascontiguousarray(maps[tap].transpose(0, 2, 3, 1)).view()
        # To numba, maps that may be written are of another type than maps that may not.
        seen.flags.writeable = False
        pool_maps(seen, slots, np.empty((_N_SUMS, seen.shape[3])), out)
    return out
