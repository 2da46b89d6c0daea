"""What somebody who knows OpenVINO and NumPy writes: our INT8 network and a linear head.

python openvino_predict.py MODEL.xml HEAD.safetensors FILE|FOLDER... [--repeat N] [--cache FOLDER]
    [--extract OUT.npz] [--threads N]

OpenVINO's Python package with its own model cache and the latency hint, the outputs reduced to the
three feature maps that the head needs; means of a 3 x 3 grid of them in NumPy; one JSON object a
line. It reads PNG, JPEG and DICOM as pytorch_predict.py does, and leaves out the same things. With
--extract, a queue of asynchronous requests keeps all threads busy (the throughput hint).
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
from PIL import Image
from safetensors import safe_open

SIZE, TAPS, GRID = 224, ("block4", "block7", "block10"), 3
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")


def read(path):
    """One picture as uint8 (224, 224): area average, percentiles 0.5 to 99.5."""
    if Path(path).suffix.lower() == ".dcm":
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut

        data = pydicom.dcmread(path)
        levels = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
        levels = levels.astype(np.float32)
        if data.PhotometricInterpretation == "MONOCHROME1":
            levels = levels.max() - levels
        image = Image.fromarray(levels)
    else:
        with Image.open(path) as opened:
            opened.draft("L", (2 * SIZE, 2 * SIZE))
            image = opened.convert("L")
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)
    low, high = np.percentile(small, (0.5, 99.5))
    if high > low:
        small = np.clip((small - low) * (255.0 / (high - low)), 0.0, 255.0)
    return np.rint(small).astype(np.uint8)


def pool(feature_map):
    """Means of a 3 x 3 grid of (c, h, w), cells in rows, channels within: (9 c,)."""
    _, height, width = feature_map.shape
    means = [
        feature_map[
            :,
            row * height // GRID : -(-(row + 1) * height // GRID),
            column * width // GRID : -(-(column + 1) * width // GRID),
        ].mean(axis=(1, 2))
        for row in range(GRID)
        for column in range(GRID)
    ]
    return np.concatenate(means)


def load_network(xml, cache, threads, hint):
    core = ov.Core()
    if cache:
        core.set_property({"CACHE_DIR": cache})
    model = core.read_model(xml)
    outputs = [model.output(tap) for tap in TAPS]
    model = ov.Model([output.node for output in outputs], model.get_parameters(), "tapped")
    settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(model, "CPU", settings)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("head")
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cache")
    parser.add_argument("--extract")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    files = []
    for path in options.paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [each for each in found if each.suffix.lower() in SUFFIXES]
    hint = "THROUGHPUT" if options.extract else "LATENCY"
    network = load_network(options.model, options.cache, options.threads, hint)
    if options.extract:
        X = np.zeros((len(files), 2088), np.float16)
        queue = ov.AsyncInferQueue(network)

        def keep(request, row):
            maps = [request.get_output_tensor(at).data[0] for at in range(len(TAPS))]
            X[row] = np.concatenate([pool(each) for each in maps])

        queue.set_callback(keep)
        with ThreadPoolExecutor(options.threads) as threads:
            for row, picture in enumerate(threads.map(read, files)):
                queue.start_async({0: picture[None, None]}, row)
        queue.wait_all()
        np.savez(options.extract, X=X, files=[str(each) for each in files])
        print(json.dumps({"rows": len(X)}))
        return
    request = network.create_infer_request()
    with safe_open(options.head, "np") as opened:
        weight, bias, mean, scale = map(opened.get_tensor, ("weight", "bias", "mean", "scale"))
        about = json.loads(opened.metadata()["hilum"])
    temperature = about["calibration"].get("temperature", 1.0)
    for path in files:
        for _ in range(options.repeat):
            start = time.perf_counter()
            request.infer({0: read(path)[None, None]})
            maps = [request.get_output_tensor(at).data[0] for at in range(len(TAPS))]
            vector = np.concatenate([pool(each) for each in maps])
            logits = (weight @ ((vector - mean) / scale) + bias) / temperature
            powers = np.exp(logits - logits.max())
            answer = {
                "input": str(path),
                "probabilities": dict(
                    zip(about["classes"], (powers / powers.sum()).tolist(), strict=True)
                ),
                "milliseconds": 1e3 * (time.perf_counter() - start),
            }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
