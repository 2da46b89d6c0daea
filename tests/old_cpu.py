"""What this processor computes, as JSON: a prediction, features, known answers, a compiled loop.

Usage: old_cpu.py PICTURE HEAD BACKBONE...

Run natively and under an emulator; the test compares the two.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

import numpy as np
from llvmlite import binding

from engine import jit, predict
from engine.backbone import load_backbone
from engine.images import Preprocessing, preprocess, read_picture
from engine.pooling import parse_taps, pool_features
from engine.probes import check_probes
from formats import open_container

SETS = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avxvnni")


def main() -> None:
    path, head, *names = sys.argv[1:]
    found = binding.get_host_cpu_features()
    facts: dict[str, object] = {
        "name": str(binding.get_host_cpu_name()),
        "sets": [name for name in SETS if found.get(name)],
    }
    # As a user runs it; before numba is loaded, which a prediction of one picture does without.
    said = io.StringIO()
    options = [path, "--head", head, "--allow", "out_of_distribution", "--quiet"]
    with contextlib.redirect_stdout(said):
        code = predict.main(options)
    if code:
        sys.exit(f"engine.predict ended with {code}: {said.getvalue()}")
    facts["prediction"] = json.loads(said.getvalue())
    picture = read_picture(path)
    facts["backbones"] = {name: answers(name, picture) for name in names}
    # The C library that reads containers, checksums included.
    with open_container(head.replace(".safetensors", ".hilum")) as container:
        facts["sum"] = float(np.asarray(container.features, np.float64).sum()).hex()
    jit.load()
    maps = {"pixels": np.sqrt(picture.pixels.astype(np.float32))[None, None]}
    blocks = parse_taps("pixels:mean+max+std+gem+mean3x3", None, {"pixels": 1})
    facts["pooled"] = [value.hex() for value in pool_features(maps, blocks)[0].tolist()]
    print(json.dumps(facts))


def answers(name: str, picture: object) -> dict[str, object]:
    """Features of the picture at each tap, and which of the known answers came out."""
    with load_backbone(name, streams=1, taps="all") as backbone:
        pixels = preprocess(picture, Preprocessing(**backbone.preprocessing))
        maps = backbone.infer(pixels[None])
        return {
            "features": {
                tap: pool_features(
                    {tap: maps[tap]}, parse_taps(f"{tap}:mean3x3", None, {tap: shape.channels})
                )[0].tolist()
                for tap, shape in backbone.taps.items()
            },
            "tolerances": {
                tap: backbone.card["probes"]["taps"][tap]["tolerance"] for tap in backbone.taps
            },
            "probes": {
                f"{result.tap} {result.probe}": result.passed for result in check_probes(backbone)
            },
        }


if __name__ == "__main__":
    main()
