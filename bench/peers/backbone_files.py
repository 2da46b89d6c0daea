"""The files that the peers run, all made of the published FP32 weights.

Usage: python -m bench.peers.backbone_files KIND FOLDER BACKBONE

FOLDER holds ``pictures.npy`` (uint8, (n, 1, h, w), as our network gets them) and takes the files.
Two networks of each kind: ``default`` stops behind the last default tap and puts out the default
taps; ``whole`` puts out all of them. Batch normalisation and the three equal input channels are
folded for everyone, as in our own file, so each peer has the least work to do.

KIND: ``ir`` (OpenVINO FP32, and the reference features of the network as published), ``onnx``,
``onnx-int8``, ``litert``, ``litert-int8``, ``ncnn``. One process each: what fails names one peer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

N_REFERENCE = 24
N_CALIBRATION = 60
CUTS = ("default", "whole")
LITERT_BATCHES = (1, 8)


def wanted_taps(recipe: Any, cut: str) -> list[str]:
    """Names of the taps that the networks of a cut put out, in the network's order."""
    if cut == "whole":
        return [*recipe.taps, "final"]
    return [block.partition(":")[0] for block in recipe.default_taps.split(",")]


def recipe_of(name: str) -> Any:
    from engine.models.build import RECIPES

    return next(recipe for recipe in RECIPES if recipe.name == name)


def published(recipe: Any) -> Any:
    from engine.models.build import load_published

    return load_published(recipe)


def cut_network(recipe: Any, cut: str) -> Any:
    """Build the folded network of a cut; takes uint8 or float32 of (n, 1, h, w)."""
    import torch
    from torch import nn

    from engine.models.build import tapped_network
    from engine.models.folding import PIXEL_OFFSET

    whole = tapped_network(published(recipe), recipe)
    indices = [recipe.taps[tap] for tap in wanted_taps(recipe, cut) if tap != "final"]

    class Cut(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            last = len(whole.blocks) if cut == "whole" else 1 + max(indices)
            self.stem, self.blocks = whole.stem, nn.ModuleList(whole.blocks[:last])
            self.head = whole.head if cut == "whole" else None

        def forward(self, picture: Any) -> Any:
            x = nn.functional.relu6(self.stem(picture.to(torch.float32) - PIXEL_OFFSET))
            found = []
            for index, block in enumerate(self.blocks):
                x = block(x)
                if index in indices:
                    found.append(x)
            if self.head is not None:
                found.append(nn.functional.relu6(self.head(x)))
            return tuple(found)

    return Cut().eval()


def pooled(maps: list[Any]) -> Any:
    """Mean of the nine cells of each map, as containers hold it by default: (n, d)."""
    from engine.pooling import parse_taps, pool_features

    named = {f"t{k}": np.ascontiguousarray(found, np.float32) for k, found in enumerate(maps)}
    channels = {name: found.shape[1] for name, found in named.items()}
    return pool_features(
        named, parse_taps(",".join(f"{name}:mean3x3" for name in named), None, channels)
    )


def make_ir(recipe: Any, folder: Path, pictures: Any) -> None:
    import openvino as ov
    import torch

    from engine.models.build import published_taps, save_ir

    network = published(recipe)
    with torch.inference_mode():
        x = torch.from_numpy(pictures[:N_REFERENCE].astype(np.float32)).repeat(1, 3, 1, 1)
        maps = published_taps(network, recipe, (x - 127.0) / 128.0)
    for cut in CUTS:
        example = torch.zeros((1, 1, recipe.size, recipe.size), dtype=torch.uint8)
        with torch.no_grad():
            model = ov.convert_model(
                cut_network(recipe, cut),
                example_input=example,
                input=[("picture", [-1, *example.shape[1:]], ov.Type.u8)],
            )
        save_ir(model, folder / f"{cut}.xml")
        features = pooled([maps[tap].numpy() for tap in wanted_taps(recipe, cut)])
        np.save(folder / f"{cut}.reference.npy", features)


def make_onnx(recipe: Any, folder: Path, pictures: Any) -> None:
    import torch

    for cut in CUTS:
        torch.onnx.export(
            cut_network(recipe, cut),
            (torch.zeros((2, 1, recipe.size, recipe.size), dtype=torch.uint8),),
            str(folder / f"{cut}.onnx"),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            input_names=["picture"],
            output_names=wanted_taps(recipe, cut),
            external_data=False,
            verbose=False,
        )


def make_onnx_int8(recipe: Any, folder: Path, pictures: Any) -> None:
    """Static quantization as ONNX Runtime's guide advises: QDQ, weights per channel.

    The guide offers signed and unsigned activations, and ``reduce_range`` (weights of 7 bits) for
    unsigned ones on AVX2 and AVX-512 without VNNI: whoever has VNNI gets 8 bits. The stem stays
    FP32, as in ours. Of its calibrations, percentile agreed best with FP32 and cost nothing.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.left = iter(pictures[:N_CALIBRATION])

        def get_next(self) -> Any:
            picture = next(self.left, None)
            return None if picture is None else {"picture": picture[None]}

    reduce = not has_vnni()
    for cut in CUTS:
        ready = folder / f"{cut}.ready.onnx"
        quant_pre_process(folder / f"{cut}.onnx", ready, skip_symbolic_shape=True)
        nodes = onnx.load(ready).graph.node
        stem = next(node.name for node in nodes if node.op_type == "Conv")
        for kind, activation in (("u8s8", QuantType.QUInt8), ("s8s8", QuantType.QInt8)):
            quantize_static(
                ready,
                folder / f"{cut}.{kind}.onnx",
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce and kind == "u8s8",
                activation_type=activation,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[stem],
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={"ActivationSymmetric": kind == "s8s8"},
            )
        ready.unlink()


def has_vnni() -> bool:
    """Whether this processor multiplies and adds four bytes in one instruction."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "avx512_vnni" in flags or "avx_vnni" in flags


def make_litert(recipe: Any, folder: Path, pictures: Any) -> None:
    import litert_torch
    import torch

    for cut in CUTS:
        for batch in LITERT_BATCHES:
            example = (torch.zeros((batch, 1, recipe.size, recipe.size)),)
            model = litert_torch.convert(cut_network(recipe, cut), example)
            model.export(str(folder / f"{cut}-{batch}.tflite"))


def make_litert_int8(recipe: Any, folder: Path, pictures: Any) -> None:
    """Static quantization by the quantizer of the same project; needs the files of ``litert``."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    for cut in CUTS:
        for batch in LITERT_BATCHES:
            source = quantizer.Quantizer(str(folder / f"{cut}-{batch}.tflite"))
            source.load_quantization_recipe(recipes.static_wi8_ai8())
            some = pictures[: max(batch, N_CALIBRATION // batch * batch)].astype(np.float32)
            wholes = len(some) // batch * batch
            samples = [{"args_0": some[k : k + batch]} for k in range(0, wholes, batch)]
            calibration = source.calibrate({"serving_default": samples}, num_threads=2)
            made = source.quantize(calibration)
            made.export_model(str(folder / f"{cut}-{batch}.int8.tflite"), overwrite=True)


def make_ncnn(recipe: Any, folder: Path, pictures: Any) -> None:
    import os

    import pnnx
    import torch

    os.chdir(folder)  # it leaves its files where it stands
    for cut in CUTS:
        example = torch.zeros((1, 1, recipe.size, recipe.size))
        # Weights as 16-bit floats are its default; these are to be the same weights.
        pnnx.export(cut_network(recipe, cut), f"{cut}.ncnn.pt", inputs=(example,), fp16=False)
        if not Path(f"{cut}.ncnn.ncnn.param").exists():
            raise RuntimeError("pnnx wrote no network for ncnn")


MAKERS = {
    "ir": make_ir,
    "onnx": make_onnx,
    "onnx-int8": make_onnx_int8,
    "litert": make_litert,
    "litert-int8": make_litert_int8,
    "ncnn": make_ncnn,
}


def main() -> None:
    kind, folder, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    MAKERS[kind](recipe_of(name), folder, np.load(folder / "pictures.npy"))
    (folder / f"{kind}.done").write_text(json.dumps({"kind": kind}), encoding="utf-8")


if __name__ == "__main__":
    main()
