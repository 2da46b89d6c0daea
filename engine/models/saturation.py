"""The proof that an INT8 network cannot saturate on CPUs without VNNI.

Before AVX-VNNI an x86 CPU multiplies INT8 with ``pmaddubsw``: two products of an unsigned
activation (0..255) and a signed weight are added in 16 bits *with saturation* (Intel SDM,
volume 2, PMADDUBSW). Whatever the picture, the sum of a pair lies between 255 times the sum of
its negative weights and 255 times the sum of its positive ones. It fits into -32768..32767
exactly if the positive weights of each pair sum to at most 128 and the negative ones to at least
-128. Then every CPU computes the same integers.

Which weights meet in a pair: oneDNN lays input channels out in groups of four, next to each other
at one kernel position, so channels ``2j`` and ``2j + 1`` meet. A one-channel layer is looked at
as if any two kernel positions could meet. Depthwise layers are left out: they multiply in 16 bits
(``pmaddwd``) and cannot saturate.

The IR is read with the standard library and NumPy only: the proof does not trust the
library that runs the network, and runs where it is not installed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PAIR_LIMIT",
    "Int8Layer",
    "find_unsafe_channels",
    "pair_extremes",
    "read_int8_layers",
    "safe_scale",
]

PAIR_LIMIT = 128
"""Largest safe absolute sum of the weights of one sign in a pair: 255 * 128 = 32640."""

_PRODUCERS = ("Convolution", "GroupConvolution", "MatMul")
_PASS_THROUGH = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")


@dataclass(frozen=True)
class Int8Layer:
    """One layer of an IR whose weights are stored as INT8.

    Attributes
    ----------
    name : str
        Friendly name of the convolution or matrix product.
    kind : str
        Operation type in the IR.
    weights : ndarray of int8
        ``(out, in, kh, kw)`` of a convolution, ``(groups, out, in, kh, kw)`` of a grouped one,
        ``(out, in)`` of a matrix product; a copy.
    weights_offset : int
        Where the weights begin in the .bin file, in bytes.
    scale : ndarray of float32
        What each integer is worth, in the shape stored.
    scale_offset : int
        Where the scale begins in the .bin file, in bytes.
    """

    name: str
    kind: str
    weights: NDArray[np.int8]
    weights_offset: int
    scale: NDArray[np.float32]
    scale_offset: int

    @property
    def depthwise(self) -> bool:
        """Whether every group has one input channel and one output channel."""
        return self.kind == "GroupConvolution" and self.weights.shape[1:3] == (1, 1)


def _constant(layer: ET.Element, blob: NDArray[np.uint8]) -> tuple[NDArray[np.generic], int]:
    data = layer.find("data")
    if data is None:
        raise ValueError(f"constant {layer.get('name')!r} of the IR has no data element")
    dtypes = {"i8": np.int8, "f32": np.float32, "f16": np.float16, "u8": np.uint8}
    kind = data.get("element_type", "")
    if kind not in dtypes:
        raise ValueError(
            f"constant {layer.get('name')!r} has element type {kind!r}, expected one of "
            f"{sorted(dtypes)}"
        )
    offset, size = int(data.get("offset", "0")), int(data.get("size", "0"))
    if offset + size > blob.size:
        raise ValueError(
            f"constant {layer.get('name')!r} ends at byte {offset + size} of a .bin file of "
            f"{blob.size} bytes"
        )
    shape = tuple(int(n) for n in data.get("shape", "").replace(" ", "").split(",") if n)
    values = np.frombuffer(blob[offset : offset + size].tobytes(), dtypes[kind])
    return values.reshape(shape), offset


def read_int8_layers(xml: str | Path) -> list[Int8Layer]:
    """Read every layer with INT8 weights from an OpenVINO IR.

    Parameters
    ----------
    xml : str or Path
        The .xml file; its .bin file lies beside it.

    Returns
    -------
    list of Int8Layer
        In the order of the file, depthwise layers included.

    Raises
    ------
    ValueError
        If the IR is not laid out as NNCF writes it (INT8 constant, Convert, Multiply by the
        scale, layer): a proof must not pass by overlooking a layer.
    """
    path = Path(xml)
    blob = np.fromfile(path.with_suffix(".bin"), np.uint8)
    root = ET.parse(path).getroot()  # noqa: S314 - our own committed file
    layers = {layer.get("id", ""): layer for layer in root.iterfind("./layers/layer")}
    sources: dict[str, list[str]] = {}
    edges = sorted(
        root.iterfind("./edges/edge"),
        key=lambda edge: (edge.get("to-layer", ""), int(edge.get("to-port", "0"))),
    )
    for edge in edges:
        sources.setdefault(edge.get("to-layer", ""), []).append(edge.get("from-layer", ""))

    found: list[Int8Layer] = []
    seen: set[str] = set()
    for layer_id, layer in layers.items():
        if layer.get("type") not in _PRODUCERS:
            continue
        scales: list[tuple[NDArray[np.float32], int]] = []
        current = sources[layer_id][1]
        while layers[current].get("type") in _PASS_THROUGH:
            if layers[current].get("type") == "Multiply":
                values, offset = _constant(layers[sources[current][1]], blob)
                scales.append((values.astype(np.float32), offset))
            elif layers[current].get("type") == "Subtract":
                raise ValueError(f"{path.name}: weights of {layer.get('name')!r} have a zero point")
            current = sources[current][0]
        if layers[current].get("type") != "Const":
            raise ValueError(
                f"{path.name}: weights of {layer.get('name')!r} come from a "
                f"{layers[current].get('type')}, not from a constant"
            )
        values, offset = _constant(layers[current], blob)
        if values.dtype != np.int8:
            continue
        if len(scales) != 1:
            raise ValueError(
                f"{path.name}: INT8 weights of {layer.get('name')!r} have {len(scales)} scales, "
                "expected one"
            )
        seen.add(current)
        found.append(
            Int8Layer(
                name=layer.get("name", ""),
                kind=layer.get("type", ""),
                weights=values.astype(np.int8),
                weights_offset=offset,
                scale=scales[0][0],
                scale_offset=scales[0][1],
            )
        )
    for layer_id, layer in layers.items():
        data = layer.find("data")
        if layer_id in seen or layer.get("type") != "Const" or data is None:
            continue
        if data.get("element_type") == "i8":
            raise ValueError(
                f"{path.name}: INT8 constant {layer.get('name')!r} belongs to no known layer"
            )
    return found


def pair_extremes(weights: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bound what two weights that meet in one ``pmaddubsw`` can add up to.

    Parameters
    ----------
    weights : ndarray of int8, shape (out, in, ...)
        Kernels; further axes are kernel positions.

    Returns
    -------
    positive : ndarray of int64, shape (out,)
        Largest sum over the pairs of the positive weights of a pair.
    negative : ndarray of int64, shape (out,)
        Smallest sum over the pairs of the negative weights of a pair.
    """
    n_out, n_in = weights.shape[:2]
    wide = weights.reshape(n_out, n_in, -1).astype(np.int64)
    above, below = np.maximum(wide, 0), np.minimum(wide, 0)
    if n_in == 1:
        # Which kernel positions of a one-channel layer share a pair differs between kernels of
        # the library: take the two largest of all.
        n_largest = min(2, above.shape[2])
        above = np.sort(above[:, 0], axis=1)[:, -n_largest:]
        below = np.sort(below[:, 0], axis=1)[:, :n_largest]
        return above.sum(axis=1), below.sum(axis=1)
    if n_in % 2:
        pad = np.zeros((n_out, 1, wide.shape[2]), np.int64)
        above, below = np.concatenate((above, pad), 1), np.concatenate((below, pad), 1)
    return (
        (above[:, 0::2] + above[:, 1::2]).max(axis=(1, 2)),
        (below[:, 0::2] + below[:, 1::2]).min(axis=(1, 2)),
    )


def _grouped(layer: Int8Layer) -> NDArray[np.int8]:
    """Weights as (out, in, ...) with the groups of a grouped convolution in one axis."""
    if layer.kind == "GroupConvolution":
        return layer.weights.reshape(-1, *layer.weights.shape[2:])
    return layer.weights


def find_unsafe_channels(layer: Int8Layer) -> NDArray[np.int64]:
    """Find the output channels of a layer that could saturate.

    Parameters
    ----------
    layer : Int8Layer
        A layer; a depthwise one is always safe.

    Returns
    -------
    ndarray of int64, shape (n,)
        Output channels, ascending; empty if the layer is proved safe.
    """
    if layer.depthwise:
        return np.empty(0, np.int64)
    positive, negative = pair_extremes(_grouped(layer))
    return np.flatnonzero((positive > PAIR_LIMIT) | (negative < -PAIR_LIMIT))


def safe_scale(kernel: NDArray[np.floating], scale: float) -> float:
    """Find the smallest scale, not below ``scale``, at which a kernel cannot saturate.

    Parameters
    ----------
    kernel : ndarray of float, shape (in, ...)
        FP32 weights of one output channel.
    scale : float
        What one integer step is worth now.

    Returns
    -------
    float
        A scale whose rounded weights satisfy the bound, within one thousandth of the smallest.
    """
    new = float(scale)
    while True:
        rounded = np.clip(np.rint(np.asarray(kernel, np.float64) / new), -127, 127)
        positive, negative = pair_extremes(rounded.astype(np.int8)[None])
        worst = max(int(positive[0]), -int(negative[0]))
        if worst <= PAIR_LIMIT:
            return new
        # Rounding moves each sum by at most one step; creep, so that no precision is given away.
        new *= max(1.001, (worst - 1.0) / PAIR_LIMIT)
