"""What the graph of a foreign network tells: where its feature maps are, and how it begins.

Works on `openvino.Model`, whatever framework it came from. A network is cut behind its last feature
map, and its first layer is folded to one grayscale channel
(:func:`engine.models.folding.fold_stem`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackboneError, MismatchError
from engine.models.folding import fold_stem

__all__ = [
    "INPUT",
    "Normalisation",
    "choose_taps",
    "cut_behind",
    "find_taps",
    "first_convolution",
    "give_biases",
    "input_facts",
    "layer_names",
    "list_convolutions",
    "map_strides",
    "rename_nodes",
    "take_grayscale",
]

INPUT = "picture"
FINAL = "final"

_WINDOWS = ("Convolution", "GroupConvolution", "MaxPool", "AvgPool")
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_TAP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,31}")
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Normalisation:
    """How the network was trained to see a pixel: ``(pixel * white / 255 - mean) / std``.

    Attributes
    ----------
    mean, std : tuple of float
        One number, or one for each channel in the network's order.
    white : float
        Value of a white pixel before mean and deviation are applied: 1 in PyTorch's examples,
        255 where pixels stay as they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 1.0

    def pixel_terms(self, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return offset and divisor of each channel in grey levels, float64 (channels,)."""
        scale = 255.0 / self.white
        offset = np.broadcast_to(np.asarray(self.mean, np.float64) * scale, channels)
        divisor = np.broadcast_to(np.asarray(self.std, np.float64) * scale, channels)
        return offset, divisor

    def describe(self) -> str:
        """Say it in words, for the card."""

        def text(values: Sequence[float]) -> str:
            numbers = [f"{value:g}" for value in values]
            return numbers[0] if len(set(numbers)) == 1 else f"({', '.join(numbers)})"

        pixel = {255.0: "pixel", 1.0: "pixel / 255"}.get(
            self.white, f"pixel * {self.white:g} / 255"
        )
        return f"({pixel} - {text(self.mean)}) / {text(self.std)}, inside the network"


def input_facts(model: Any) -> tuple[str, int, int | None, int | None]:
    """Tell how a network takes its picture.

    Parameters
    ----------
    model : openvino.Model
        Any.

    Returns
    -------
    layout : {"NCHW", "NHWC"}
    channels : int
        1 or 3.
    height, width : int or None
        None where the graph leaves them open.

    Raises
    ------
    BackboneError
        It takes no picture, or more than one.
    """
    if len(model.inputs) != 1:
        names = ", ".join(port.get_any_name() for port in model.inputs if port.get_names())
        raise BackboneError(
            f"the network has {len(model.inputs)} inputs ({names}), expected one picture; export "
            "the part that takes the picture"
        )
    shape = model.input(0).get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4:
        raise BackboneError(
            f"the network's input has shape {shape}, expected four axes: pictures, channels, "
            "height and width in this or the order of TensorFlow"
        )

    def length(axis: int) -> int | None:
        return None if shape[axis].is_dynamic else int(shape[axis].get_length())

    for layout, channel, rows, columns in (("NCHW", 1, 2, 3), ("NHWC", 3, 1, 2)):
        found = length(channel)
        if found in _CHANNELS:
            return layout, int(found or 0), length(rows), length(columns)
    raise BackboneError(
        f"the network's input has shape {shape}, expected 1 or 3 channels on the second or the "
        "last axis"
    )


# --- feature maps -------------------------------------------------------------------------------


def _side(output: Any) -> tuple[int, int] | None:
    """Height and width of a feature map, None for anything else."""
    shape = output.get_partial_shape()
    if shape.is_dynamic or len(shape) != 4:
        return None
    return int(shape[2].get_length()), int(shape[3].get_length())


def map_strides(model: Any) -> dict[str, int]:
    """Find the feature maps of a network and how many input pixels a step in each is.

    Parameters
    ----------
    model : openvino.Model
        With static shapes, feature maps with the channels on the second axis.

    Returns
    -------
    dict of str to int
        Unique name of the node to stride, in order of execution, from the first convolution on.
        What lies behind a reduction to one value for each channel is no map.
    """
    strides: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if node.get_output_size() < 1 or kind == "Result":
            continue
        side = _side(node.output(0))
        if side is None or side[0] * side[1] <= 1:
            continue
        sources = [value.get_node() for value in node.input_values()]
        known = [strides[name] for name in map(_name, sources) if name in strides]
        if kind in _CONVOLUTIONS and not strides:
            known = [1]
        if not known:
            continue
        if kind in _WINDOWS:
            steps = [int(step) for step in node.get_attributes()["strides"]]
            strides[_name(node)] = max(known) * max(steps)
        elif kind == "Pad" or any(
            _name(source) in strides and _side(value) == side
            for source, value in zip(sources, node.input_values(), strict=True)
        ):
            strides[_name(node)] = max(known)
    return strides


def _name(node: Any) -> str:
    """Return the name that no other node of the process has."""
    found: str = node.get_name()
    return found


def _trunk(model: Any) -> list[str]:
    """Name the nodes that every path from the picture to the first output goes through."""
    # A set of nodes is a whole number with one bit for each.
    passed: dict[str, int] = {}
    order: list[str] = []
    for node in model.get_ordered_ops():
        name = _name(node)
        if node.get_type_name() == "Parameter":
            passed[name] = 1 << len(order)
            order.append(name)
            continue
        common = [passed[_name(v.get_node())] for v in node.input_values()
                  if _name(v.get_node()) in passed]  # fmt: skip
        if common:
            through = common[0]
            for other in common[1:]:
                through &= other
            passed[name] = through | 1 << len(order)
            order.append(name)
    result = model.output(0).get_node()
    through = passed.get(_name(result), 0)
    return [name for number, name in enumerate(order) if through >> number & 1]


def find_taps(model: Any, *, least_stride: int = 1) -> dict[str, str]:
    """Find the feature maps before each change of stride, and the final one.

    Of the maps of one stride the last is taken that the whole network goes through: behind the
    addition of a residual block, not inside one of its branches.

    Parameters
    ----------
    model : openvino.Model
        With static shapes.
    least_stride : int, default 1
        Maps of a smaller stride are left out.

    Returns
    -------
    dict of str to str
        ``stride4``, ``stride8``, ..., ``final`` to the name of the node, in order of execution.

    Raises
    ------
    BackboneError
        There is no feature map.
    """
    strides = map_strides(model)
    last: dict[int, str] = {}
    for name in _trunk(model):
        if name in strides:
            last[strides[name]] = name
    if not last:
        raise BackboneError(
            "no feature map was found that the whole network goes through; name some with --taps: "
            f"{_suggest(model, strides)}"
        )
    *earlier, final = last.items()
    _refuse_attention(model, final[1])
    found = {f"stride{stride}": name for stride, name in earlier if stride >= least_stride}
    return {**found, FINAL: final[1]}


def _refuse_attention(model: Any, final: str) -> None:
    """Refuse a transformer: its one feature map is the patches it begins with."""
    behind = {final}
    for node in model.get_ordered_ops():
        values = node.input_values()
        if not any(_name(value.get_node()) in behind for value in values):
            continue
        behind.add(_name(node))
        products = node.get_type_name() == "MatMul" and all(
            _name(value.get_node()) in behind for value in values
        )
        if products or node.get_type_name() == "ScaledDotProductAttention":
            raise BackboneError(
                "behind its last feature map the network goes on with attention: what a "
                "transformer makes of a picture is no feature map; import a convolutional network, "
                "or name maps with --taps"
            )


def choose_taps(model: Any, wanted: Sequence[str]) -> dict[str, str]:
    """Find the feature maps that somebody names.

    Parameters
    ----------
    model : openvino.Model
        With static shapes.
    wanted : sequence of str
        A layer as its framework calls it (``layer2``, ``features.16``, ``conv3_block4_out``, an
        ONNX tensor), which means its last feature map; or ``name=layer``.

    Returns
    -------
    dict of str to str
        Name of the tap to name of the node, in order of execution.

    Raises
    ------
    MismatchError
        There is no such feature map, or two of one name.
    """
    strides = map_strides(model)
    nodes = {_name(node): node for node in model.get_ordered_ops()}
    order = list(strides)
    found: dict[str, str] = {}
    for text in wanted:
        given, equals, layer = text.strip().rpartition("=")
        tap = given.strip() if equals else re.sub(r"[^A-Za-z0-9_\-]+", "-", layer).strip("-")
        layer = layer.strip()
        # A whole path comes first: "0" is the layer 0, not the last layer 0 inside another.
        matches = [name for name in order if _is_layer(nodes[name], layer)] or [
            name for name in order if _is_inside(nodes[name], layer)
        ]
        if not matches:
            raise MismatchError(
                f"--taps: the network has no feature map {layer!r}; it has for example: "
                f"{_suggest(model, strides)}"
            )
        if not _TAP_NAME.fullmatch(tap):
            raise MismatchError(
                f"--taps: {tap!r} is no name for a tap; expected up to 32 letters, digits, _ and "
                f"-; write name={layer}"
            )
        if tap in found or matches[-1] in found.values():
            raise MismatchError(f"--taps: {text!r} names a tap or a feature map a second time")
        found[tap] = matches[-1]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def layer_names(model: Any, taps: Mapping[str, str]) -> dict[str, str]:
    """Tell which layers of the framework the taps are.

    Parameters
    ----------
    model : openvino.Model
        Any.
    taps : mapping of str to str
        Name of the tap to name of the node.

    Returns
    -------
    dict of str to str
        Name of the tap to name of the layer.
    """
    nodes = {_name(node): node for node in model.get_ordered_ops()}
    return {tap: _path(nodes[node].get_friendly_name()) for tap, node in taps.items()}


def _path(name: str) -> str:
    """Bring the names of the frameworks to one form: parts of a path between dots."""
    return name.removeprefix("__module.").strip("/").replace("/", ".")


def _is_layer(node: Any, layer: str) -> bool:
    name, wanted = _path(node.get_friendly_name()), _path(layer)
    names = {_path(found.removesuffix(":0")) for found in node.output(0).get_names()} | {name}
    return wanted in names or name.startswith(f"{wanted}.")


def _is_inside(node: Any, layer: str) -> bool:
    """Whether the layer is a part of the path; TensorFlow puts its own parts before it."""
    return f".{_path(layer)}." in f".{_path(node.get_friendly_name())}."


def _suggest(model: Any, strides: Mapping[str, int]) -> str:
    """Name the last feature map of each stride."""
    last = {
        strides[_name(node)]: node for node in model.get_ordered_ops() if _name(node) in strides
    }
    return (
        ", ".join(
            f"{_path(node.get_friendly_name())} (stride {stride})" for stride, node in last.items()
        )
        or "none"
    )


def cut_behind(model: Any, taps: Mapping[str, str], name: str) -> Any:
    """Make the network that ends with its taps.

    Parameters
    ----------
    model : openvino.Model
        With static shapes.
    taps : mapping of str to str
        Name of the tap to name of the node, in order of execution.
    name : str
        Of the network.

    Returns
    -------
    openvino.Model
        Outputs in the order of ``taps``, named like them; what nothing leads to is gone.
    """
    import openvino as ov
    from openvino import opset13

    nodes = {_name(node): node for node in model.get_ordered_ops()}
    results = []
    for tap, node in taps.items():
        output = nodes[node].output(0)
        if not output.get_element_type().is_real():
            raise BackboneError(f"tap {tap}: {node} gives no real numbers")
        result = opset13.result(output)
        result.set_friendly_name(f"tap/{tap}")
        results.append(result)
    cut = ov.Model(results, model.get_parameters(), name)
    for output, tap in zip(cut.outputs, taps, strict=True):
        output.tensor.set_names({tap})
    return cut


# --- the beginning ------------------------------------------------------------------------------


def first_convolution(model: Any) -> Any:
    """Return the convolution that comes first in order of execution."""
    for node in model.get_ordered_ops():
        if node.get_type_name() in _CONVOLUTIONS:
            return node
    raise BackboneError("the network has no convolution; only such networks can be imported")


def list_convolutions(model: Any) -> list[Any]:
    """List the convolutions of a network in order of execution."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() in _CONVOLUTIONS]


def give_biases(model: Any) -> None:
    """Add a bias of zeros to every convolution whose reader adds no constant.

    So that it can be corrected after quantization; and because INT8 convolutions without a bias
    whose output is INT8 too come out wrong on CPUs without AVX2 (OpenVINO 2026.4.1, limited to
    SSE4.1: DenseNet-121's features were nine tenths off).
    """
    from openvino import opset13

    for node in list_convolutions(model):
        output = node.output(0)
        readers = list(output.get_target_inputs())
        if len(readers) == 1 and readers[0].get_node().get_type_name() == "Add":
            add = readers[0].get_node()
            if any(_constant(add.input_value(port)) is not None for port in (0, 1)):
                continue
        zeros = np.zeros((1, int(output.get_shape()[1]), 1, 1), np.float32)
        biased = opset13.add(output, opset13.constant(zeros))
        biased.set_friendly_name(f"{node.get_friendly_name()}/bias")
        for reader in readers:
            reader.replace_source_output(biased.output(0))


@dataclass(frozen=True)
class _Stem:
    """A first convolution that reads nothing but the picture, and what lies before it."""

    node: Any
    weights: NDArray[np.float64]
    pads: tuple[list[int], list[int]] | None


def _find_stem(model: Any, layout: str) -> _Stem | None:
    """Return the stem if it can be folded: picture, perhaps turned or padded by zeros, then it."""
    output = model.input(0).get_node().output(0)
    channel = 1 if layout == "NCHW" else 3
    pads: tuple[list[int], list[int]] | None = None
    while True:
        targets = list(output.get_target_inputs())
        if len(targets) != 1:
            return None
        node = targets[0].get_node()
        kind = node.get_type_name()
        if kind == "Convolution":
            break
        constants = [_constant(node.input_value(k)) for k in range(1, node.get_input_size())]
        if any(value is None for value in constants):
            return None
        if kind == "Transpose" and channel == 3 and list(constants[0]) == [0, 3, 1, 2]:
            channel = 1
            if pads is not None:
                pads = tuple([side[0], side[3], side[1], side[2]] for side in pads)  # type: ignore[assignment]
        elif kind == "Pad" and pads is None and node.get_attributes()["pad_mode"] == "constant":
            begin, end = ([int(n) for n in value] for value in constants[:2])
            if len(constants) > 2 and float(constants[2]) != 0:
                return None
            pads = (begin, end)
        else:
            return None
        output = node.output(0)
    weights = _constant(node.input_value(1))
    if weights is None or channel != 1:
        return None
    if pads is not None and any(any(side[:2]) for side in pads):  # more channels, not a wider edge
        return None
    return _Stem(node, np.asarray(weights, np.float64), pads)


def _constant(value: Any) -> Any:
    """Return what a constant holds, behind a change of type too; None for anything else."""
    node = value.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.array(node.get_data()) if node.get_type_name() == "Constant" else None


def take_grayscale(model: Any, normalisation: Normalisation) -> tuple[Any, str]:
    """Let a network take one channel of uint8 and normalise it inside.

    The three channels of a grayscale picture are equal, so the kernels of the first layer are
    summed over them. Where the channels have different means, zero padding stands for another
    grey level in each; a second channel of ones inside the picture, padded by zeros too, carries
    the difference. So the folding is exact, border included.

    Parameters
    ----------
    model : openvino.Model
        With static shapes; changed by the call.
    normalisation : Normalisation
        What the network expects.

    Returns
    -------
    model : openvino.Model
        Takes ``(1, 1, height, width)`` of uint8 called ``picture``.
    how : {"folded", "folded with a channel of ones", "repeated", "one channel"}
        ``"repeated"`` where the first layer is not one convolution of the picture: then the picture
        is given to the network three times, which is as exact and slower.
    """
    import openvino as ov
    from openvino import opset13

    layout, channels, height, width = input_facts(model)
    offset, divisor = normalisation.pixel_terms(channels)
    old = model.input(0).get_node()
    picture = opset13.parameter([1, 1, height, width], ov.Type.u8, name=INPUT)
    picture.output(0).get_tensor().set_names({INPUT})
    pixels = opset13.convert(picture, "f32")

    def constant(values: Any) -> Any:
        return opset13.constant(np.asarray(values, np.float32))

    stem = _find_stem(model, layout) if channels > 1 else None
    if stem is None:
        shape = (1, channels, 1, 1)
        y = opset13.subtract(pixels, constant(offset.reshape(shape)))
        y = opset13.multiply(y, constant((1 / divisor).reshape(shape)))
        if layout == "NHWC":
            y = opset13.transpose(y, opset13.constant(np.array([0, 2, 3, 1])))
        how = "one channel" if channels == 1 else "repeated"
        old.output(0).replace(y.output(0))
    else:
        weights = stem.weights / divisor[None, :, None, None]
        middle = float(offset.mean())
        y = opset13.subtract(pixels, constant([[[[middle]]]]))
        kernels = [fold_stem(weights, scale=1.0)]
        how = "folded"
        if np.ptp(offset) > 0:
            ones = opset13.broadcast(constant(1.0), opset13.constant([1, 1, height, width]))
            y = opset13.concat([y, ones], axis=1)
            kernels.append(fold_stem(weights * (middle - offset)[None, :, None, None], scale=1.0))
            how = "folded with a channel of ones"
        if stem.pads is not None:
            begin, end = (opset13.constant([0, 0, *side[2:]]) for side in stem.pads)
            y = opset13.pad(y, begin, end, "constant", constant(0.0))
        options = stem.node.get_attributes()
        folded = opset13.convolution(
            y,
            constant(np.concatenate(kernels, axis=1)),
            strides=list(options["strides"]),
            pads_begin=list(options["pads_begin"]),
            pads_end=list(options["pads_end"]),
            dilations=list(options["dilations"]),
            auto_pad=options["auto_pad"],
        )
        folded.set_friendly_name(stem.node.get_friendly_name())
        stem.node.output(0).replace(folded.output(0))
    results = model.get_results()
    return ov.Model(results, [picture], model.get_friendly_name()), how


def rename_nodes(model: Any) -> None:
    """Give every node a name of its own that does not depend on the counters of a process."""
    seen: set[str] = set()
    for number, node in enumerate(model.get_ordered_ops()):
        kind, name = node.get_type_name(), node.get_friendly_name()
        if kind in ("Parameter", "Result", "Constant"):
            continue
        if re.fullmatch(r"[A-Za-z]+_\d+", name) or name in seen:
            name = f"{kind}-{number}"
        seen.add(name)
        node.set_friendly_name(name)
