"""One runtime, in one process: times of the backbone, and how near its features are to FP32.

Usage: python -m bench.peers.backbone_run JSON

JSON: runtime, folder (of backbone_files; pictures only for ``ours``), backbone, threads, cuts,
batches, seconds (of each figure). The instruction set and everything else that is read when a
library loads comes in the environment. Prints one JSON object on the last line.

What is timed: from pictures in uint8 to feature maps in NumPy ("network"), and to pooled feature
vectors ("features"), with the same pooling kernel for all. "parallel" is as many pictures at once
as there are threads, each with one thread: how folders are extracted.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.backbone_files import CUTS, LITERT_BATCHES, cut_network, pooled, recipe_of
from engine import jit

Network = Callable[[Any], list[Any]]
"""From (batch, 1, h, w) of uint8 to the maps, (batch, c, h, w) of float32."""

COMPILED_BATCHES = (1, 8)
N_AGREEMENT = 24


def load_ours(task: dict[str, Any], cut: str, threads: int, batch: int) -> Network:
    from engine.backbone import load_backbone

    taps = "all" if cut == "whole" else None
    backbone = load_backbone(task["backbone"], streams=1, taps=taps, cache_dir=task["cache"])

    def network(pictures: Any) -> list[Any]:
        return list(backbone.infer(pictures).values())

    return network


def load_openvino(task: dict[str, Any], cut: str, threads: int, batch: int) -> Network:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(Path(task["folder"]) / f"{cut}.xml")
    model.reshape({0: [batch, 1, *task["size"]]})
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    outputs = [request.get_output_tensor(k) for k in range(len(model.outputs))]

    def network(pictures: Any) -> list[Any]:
        request.infer({0: pictures}, share_inputs=True, share_outputs=True)
        return [output.data for output in outputs]

    return network


def load_onnx(task: dict[str, Any], cut: str, threads: int, batch: int) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    kind = {"onnxruntime-u8s8": ".u8s8", "onnxruntime-s8s8": ".s8s8"}.get(task["runtime"], "")
    session = onnxruntime.InferenceSession(
        str(Path(task["folder"]) / f"{cut}{kind}.onnx"), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def network(pictures: Any) -> list[Any]:
        maps: list[Any] = session.run(None, {name: pictures})
        return maps

    return network


def load_torch(task: dict[str, Any], cut: str, threads: int, batch: int) -> Network:
    import torch

    torch.set_num_threads(threads)
    module = cut_network(recipe_of(task["backbone"]), cut)
    compiled = task["runtime"] == "torch-compiled"
    if compiled:
        torch._inductor.config.freezing = True  # weights as constants: its documented best
        module = torch.compile(module, dynamic=False)

    def network(pictures: Any) -> list[Any]:
        with torch.inference_mode(not compiled), torch.no_grad():
            return [found.numpy() for found in module(torch.from_numpy(pictures))]

    if compiled:
        return network
    plain = cut_network(recipe_of(task["backbone"]), cut)
    last = plain.to(memory_format=torch.channels_last)

    def channels_last(pictures: Any) -> list[Any]:
        with torch.inference_mode():
            x = torch.from_numpy(pictures).contiguous(memory_format=torch.channels_last)
            return [found.numpy() for found in last(x)]

    zeros = np.zeros((batch, 1, *task["size"]), np.uint8)
    return min((network, channels_last), key=lambda way: quick_time(way, zeros))


def load_litert(task: dict[str, Any], cut: str, threads: int, batch: int) -> Network:
    from ai_edge_litert.interpreter import Interpreter

    kind = ".int8" if task["runtime"] == "litert-int8" else ""
    path = Path(task["folder"]) / f"{cut}-{batch}{kind}.tflite"
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    # Every sample of a picture as the network takes it: numbers from 0 to 255, or their bytes.
    levels = np.arange(256, dtype=np.float32)
    if kind:
        scale, zero = entry["quantization"]
        levels = np.clip(np.rint(levels / scale) + zero, -128, 127).astype(np.int8)

    def position(output: dict[str, Any]) -> int:
        """Which output of the module it is: the number in its name."""
        return int(re.findall(r"output_(\d+)", output["name"])[0])

    exits = sorted(interpreter.get_output_details(), key=position)

    def floats(output: dict[str, Any]) -> Any:
        found = interpreter.get_tensor(output["index"])
        if not kind:
            return found
        scale, zero = output["quantization"]
        return (found.astype(np.float32) - np.float32(zero)) * np.float32(scale)

    def network(pictures: Any) -> list[Any]:
        interpreter.set_tensor(entry["index"], levels[pictures])
        interpreter.invoke()
        return [floats(output) for output in exits]

    return network


def load_ncnn(task: dict[str, Any], cut: str, threads: int, batch: int) -> Network:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # Defaults on: packing, Winograd, matrix products. Off, as for everyone: halves of floats.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = net.opt.use_bf16_packed = False
    stem = str(Path(task["folder"]) / f"{cut}.ncnn.ncnn")
    if net.load_param(stem + ".param") or net.load_model(stem + ".bin"):
        raise RuntimeError("ncnn could not read the network that pnnx wrote")
    names = net.output_names()

    def network(pictures: Any) -> list[Any]:
        extractor = net.create_extractor()
        # A Mat stands on the memory of the array and does not keep it alive; and the first layer
        # crashes on memory that is not ncnn's own.
        samples = pictures[0].astype(np.float32)
        extractor.input("in0", ncnn.Mat(samples).clone())
        return [np.array(extractor.extract(name)[1])[None] for name in names]

    return network


LOADERS: dict[str, tuple[Callable[..., Network], tuple[int, ...]]] = {
    # Runtime: how it is loaded, the batches it can take (none: any).
    "ours": (load_ours, ()),
    "openvino": (load_openvino, ()),
    "onnxruntime": (load_onnx, ()),
    "onnxruntime-u8s8": (load_onnx, ()),
    "onnxruntime-s8s8": (load_onnx, ()),
    "torch": (load_torch, ()),
    "torch-compiled": (load_torch, COMPILED_BATCHES),
    "litert": (load_litert, LITERT_BATCHES),
    "litert-int8": (load_litert, LITERT_BATCHES),
    "ncnn": (load_ncnn, (1,)),
}


def quick_time(network: Network, pictures: Any) -> float:
    """Least seconds of a few runs, after a warm-up."""
    network(pictures)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        network(pictures)
        times.append(time.perf_counter() - start)
    return min(times)


def measure(work: Callable[[bool], object], n: int, seconds: float) -> dict[str, float]:
    """Milliseconds a picture: medians of runs without and with pooling, taken in turn."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for pool in (False, True):
        work(pool)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[True]) < 5:
        for pool in (False, True):
            start = time.perf_counter()
            work(pool)
            times[pool].append(time.perf_counter() - start)
    return {
        "network_ms": 1000 * statistics.median(times[False]) / n,
        "features_ms": 1000 * statistics.median(times[True]) / n,
        "runs": len(times[True]),
    }


def clock_ghz() -> float:
    """Clock of this core: a chain in which each step, a multiplication and an addition, waits.

    Four cycles a step on every x86-64 since Nehalem and Zen (3 + 1).
    """
    import numba

    @numba.njit  # type: ignore[misc, unused-ignore]
    def chain(x: int, factor: int, n: int) -> int:
        for _ in range(n):
            x = x * factor + factor
        return x

    chain(3, 5, 10)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        chain(3, 5, 20_000_000)
        best = max(best, 4 * 20_000_000 / (time.perf_counter() - start) / 1e9)
    return best


def run_cut(task: dict[str, Any], cut: str, pictures: Any) -> dict[str, Any]:
    loader, fixed = LOADERS[task["runtime"]]
    threads = task["threads"]
    batches = [b for b in task["batches"] if not fixed or b in fixed] or [1]
    batches += [b for b in fixed if b not in batches and max(task["batches"]) > 1]
    found: dict[str, Any] = {}
    for batch in batches:
        network = loader(task, cut, threads, batch)
        some = np.ascontiguousarray(np.resize(pictures, (batch, *pictures.shape[1:])))

        def work(pool: bool, network: Network = network, some: Any = some) -> object:
            maps = network(some)
            return pooled(maps) if pool else maps

        found[f"batch {batch}"] = measure(work, batch, task["seconds"])
        if batch == 1:
            rows = [pooled(network(one[None]))[0] for one in pictures[:N_AGREEMENT]]
            found["features"] = np.stack(rows).tolist()
    if threads > 1 and not task["runtime"].startswith("torch"):
        networks = [loader(task, cut, 1, 1) for _ in range(threads)]
        each = 4
        with ThreadPoolExecutor(threads) as pool_of_threads:

            def share(network: Network, pool: bool) -> None:
                for k in range(each):
                    maps = network(pictures[k : k + 1])
                    if pool:
                        pooled(maps)

            def both(pool: bool) -> object:
                jobs = [pool_of_threads.submit(share, network, pool) for network in networks]
                return [job.result() for job in jobs]

            found["parallel"] = measure(both, each * threads, task["seconds"])
    return found


def main() -> None:
    task = json.loads(sys.argv[1])
    jit.load()
    pictures = np.load(Path(task["folder"]) / "pictures.npy")
    task["size"] = pictures.shape[2:]
    answer: dict[str, Any] = {"clock_ghz": clock_ghz()}
    for cut in task.get("cuts", CUTS):
        answer[cut] = run_cut(task, cut, pictures)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
