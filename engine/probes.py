"""What every backbone answers to three drawn pictures, whatever the CPU: a known-answer test.

The pictures are inputs of the network, drawn by integer arithmetic: no file, no preprocessing and
no random generator whose stream may change. The answers are kept in the backbone's model card, as
a short *sketch* of each tap's feature vector: its projections on a few directions of random signs,
after Johnson and Lindenstrauss 1984 in the form of Achlioptas 2003 (Database-friendly random
projections, theorem 1.1). Every feature has a part in every number, so a fault in one channel
shows in all of them, and distances between sketches are those between the vectors, give or take a
fifth.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackboneError
from engine.pooling import parse_taps, pool_features

if TYPE_CHECKING:
    from engine.backbone import Backbone

__all__ = [
    "POOLING",
    "PROBES",
    "ProbeResult",
    "card_text",
    "check_probes",
    "describe_probes",
    "draw_probe",
    "main",
    "measure_sketches",
    "sketch_features",
]

PROBES = ("ramp", "chest", "noise")
"""A slow ramp under a fine texture; ovals as a chest X-ray has them; noise in every pixel."""

POOLING = "mean3x3"
"""That of the measured recipes."""

N_SKETCH = 16
"""Numbers in a sketch. Its length errs by 1 / sqrt(2 * 16) = 18 %."""

DIGITS = 5
"""Of each number in a card: rounds a hundred times finer than the least spread."""

ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA")
INSTRUCTION_SETS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "native")
REFERENCE = "AVX2"
"""What most hospital PCs have, and the least that the runtime's makers support."""

SAFETY = 3
"""The tolerance over the largest distance between two instruction sets. INT8 rounds at each layer,
and where two CPUs add in another order a few values round the other way: 0.0003 at the first tap,
0.03 at the last. A CPU not tried here is one more draw of that size."""

LEAST_TOLERANCE = 1e-4

NOTE = (
    "Known answers to the pictures that engine.probes draws: 16 random projections of each tap's "
    "pooled features. spread: largest relative distance between two of the instruction sets; "
    "tolerance: three times that."
)


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter whole numbers below 2**32 over that range (the finaliser of MurmurHash3, 32 bits)."""
    mask = np.uint64(0xFFFFFFFF)
    x = numbers & mask
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & mask
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & mask
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(16))
    return mixed


def draw_probe(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """Draw an input of a network.

    Parameters
    ----------
    name : str
        One of `PROBES`.
    height, width : int
        Of the network's input, in pixels.

    Returns
    -------
    uint8 (1, height, width)
        The same bytes on every machine.
    """
    if name not in PROBES:
        raise ValueError(f"unknown probe {name!r}; valid are: {', '.join(PROBES)}")
    y, x = (axis.astype(np.int64) for axis in np.indices((height, width), dtype=np.int32))
    if name == "ramp":
        picture = 24 + x * 140 // width + y * 48 // height + ((x ^ (3 * y)) & 31)
    elif name == "noise":
        picture = (_mix((y * width + x).astype(np.uint64)) >> np.uint64(24)).astype(np.int64)
    else:
        # In thousandths of the picture, so that both sizes of input show the same.
        v, u = y * 1000 // height, x * 1000 // width

        def oval(middle: int, row: int, half_width: int, half_height: int) -> NDArray[np.int64]:
            """0 outside, rising to 256 in the middle."""
            square = ((u - middle) * 256 // half_width) ** 2 + ((v - row) * 256 // half_height) ** 2
            inside: NDArray[np.int64] = np.clip(256 - square // 256, 0, 256)
            return inside

        picture = 40 + oval(500, 560, 620, 720) * 170 // 256
        for middle in (300, 700):
            picture -= oval(middle, 470, 185, 360) * 150 // 256
        picture += oval(560, 620, 170, 190) * 110 // 256  # heart
        picture += oval(500, 500, 60, 900) * 50 // 256  # spine
        ribs = ((v * 3 + np.abs(u - 500)) % 210 < 60) & (np.abs(u - 500) < 420)
        picture += np.where(ribs, 18, 0)
        grain = _mix((y * width + x + 0x9E3779B9).astype(np.uint64)) >> np.uint64(28)
        picture += grain.astype(np.int64) - 8
    drawn: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)[None]
    return drawn


def sketch_features(features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Project feature vectors on `N_SKETCH` directions of random signs.

    Parameters
    ----------
    features : (n, d)
        Feature vectors.

    Returns
    -------
    float64 (n, 16)
        Each of the size of one feature: the length of a row is that of the vector, times
        ``sqrt(16 / d)``.
    """
    d = features.shape[1]
    numbers = np.arange(N_SKETCH * d, dtype=np.uint64).reshape(d, N_SKETCH)
    signs = 1.0 - 2.0 * (_mix(numbers) >> np.uint64(31)).astype(np.float64)
    sketches: NDArray[np.float64] = features.astype(np.float64) @ signs / math.sqrt(d)
    return sketches


def measure_sketches(backbone: Backbone) -> dict[str, NDArray[np.float64]]:
    """Sketch the feature vectors of the drawn pictures, as this machine computes them.

    Parameters
    ----------
    backbone : Backbone
        One network; its loaded taps are sketched.

    Returns
    -------
    dict of str to float64 (3, 16)
        Tap to the sketches of `PROBES`, in their order.

    Raises
    ------
    BackboneError
        The network cannot run.
    """
    height, width = backbone.input_size
    maps = backbone.infer(np.stack([draw_probe(name, height, width) for name in PROBES]))
    return {
        tap: sketch_features(
            pool_features(maps, parse_taps(f"{tap}:{POOLING}", None, {tap: facts.channels}))
        )
        for tap, facts in backbone.taps.items()
    }


@dataclass(frozen=True)
class ProbeResult:
    """How far one answer of this machine lies from the known one.

    Attributes
    ----------
    tap, probe : str
        Feature map and drawn picture.
    distance : float
        Length of the difference of the two sketches over that of the known one; NaN where the
        network gave no number.
    tolerance : float
        Largest distance of a healthy machine, from the model card.
    """

    tap: str
    probe: str
    distance: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the answer is the known one, within the tolerance."""
        return self.distance <= self.tolerance  # never so for NaN


def check_probes(backbone: Backbone) -> tuple[ProbeResult, ...]:
    """Compare what this machine computes with the answers in the backbone's model card.

    Parameters
    ----------
    backbone : Backbone
        One network, not several joined; its loaded taps are checked.

    Returns
    -------
    tuple of ProbeResult
        Taps in the network's order, each with `PROBES`.

    Raises
    ------
    BackboneError
        The card holds no known answers, or none for these taps; or the network cannot run.
    """
    known: Any = backbone.card.get("probes")
    try:
        expected = {
            tap: (
                np.array([known["taps"][tap][probe] for probe in PROBES], np.float64),
                float(known["taps"][tap]["tolerance"]),
            )
            for tap in backbone.taps
        }
        if any(sketch.shape != (len(PROBES), N_SKETCH) for sketch, _ in expected.values()):
            raise ValueError("of another length")
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"backbone {backbone.name}: its model card has no known answers for the taps "
            f"{', '.join(backbone.taps)}; install hilum again, or, for a network of your own: "
            f"python -m engine.probes {backbone.name} --write"
        ) from error
    results = []
    for tap, sketches in measure_sketches(backbone).items():
        sketch, tolerance = expected[tap]
        for row, probe in enumerate(PROBES):
            distance = _distance(sketches[row], sketch[row])
            results.append(ProbeResult(tap, probe, distance, tolerance))
    return tuple(results)


def _distance(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    length = float(np.linalg.norm(expected))
    # A network of zeros has no direction: only zeros are near it.
    return float(np.linalg.norm(found - expected)) / (length or 1.0)


# --- the answers in the model cards --------------------------------------------------------------


def describe_probes(
    sketches: Mapping[str, Mapping[str, NDArray[np.float64]]], software: str
) -> dict[str, Any]:
    """Make the key ``probes`` of a model card.

    Parameters
    ----------
    sketches : mapping
        Instruction set to what :func:`measure_sketches` gave under it; `REFERENCE` among them.
    software : str
        The runtime and its version.

    Returns
    -------
    dict
        ``note``, ``pooling``, ``software``, ``instruction_sets``, ``taps``: for each tap its
        ``spread``, its ``tolerance`` and the sketch of each of `PROBES`.
    """
    reference = sketches[REFERENCE]
    taps: dict[str, Any] = {}
    for tap, known in reference.items():
        rounded = [[float(f"{value:.{DIGITS}g}") for value in row] for row in known]
        spread = max(
            _distance(one[tap][row], other[tap][row])
            for one in sketches.values()
            for other in sketches.values()
            for row in range(len(PROBES))
        )
        tolerance = max(SAFETY * spread, LEAST_TOLERANCE)
        taps[tap] = {
            "spread": float(f"{spread:.2g}"),
            "tolerance": float(f"{tolerance:.2g}"),
            **dict(zip(PROBES, rounded, strict=True)),
        }
    return {
        "note": NOTE,
        "pooling": POOLING,
        "software": software,
        "reference": REFERENCE,
        "instruction_sets": list(sketches),
        "taps": taps,
    }


def _measure_instruction_sets(name: str, models: Path) -> dict[str, Any]:
    """Run a backbone as CPUs of several generations would, each in a process of its own.

    OpenVINO reads the limits when it is loaded.
    """
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    software = ""
    for isa in INSTRUCTION_SETS:
        environment = {key: value for key, value in os.environ.items() if key not in ISA_VARIABLES}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        if isa != "native":
            environment |= dict.fromkeys(ISA_VARIABLES, isa)
        command = [sys.executable, "-m", "engine.probes", name, "--models", str(models), "--show"]
        answer = subprocess.run(  # noqa: S603 - our own program
            command, env=environment, check=True, capture_output=True, text=True
        )
        facts = json.loads(answer.stdout)
        software = facts["software"]
        found[isa] = {tap: np.array(rows) for tap, rows in facts["sketches"].items()}
    return describe_probes(found, software)


def card_text(card: Mapping[str, Any]) -> str:
    """Write a model card as JSON for people: one key a line, lists of numbers on one line.

    Parameters
    ----------
    card : mapping
        The card.

    Returns
    -------
    str
        What the file holds.
    """
    text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


_NUMBERS = re.compile(r"\[\s+([-+\d.,e\s]+?)\s+\]")


def main(argv: Sequence[str] | None = None) -> int:
    """Check the embedded backbones on this machine, or measure the known answers anew.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Returns
    -------
    int
        0 if every answer is within its tolerance, 3 if one is not.
    """
    parser = argparse.ArgumentParser(
        prog="python -m engine.probes",
        description="Compare what the backbones compute on this machine with known answers.",
    )
    add = parser.add_argument
    add("name", nargs="*", help="backbones (default: all of this installation)")
    add("--models", type=Path, metavar="DIR", help="folder of the networks and their cards")
    add(
        "--write",
        action="store_true",
        help="measure the answers under each instruction set and write them into the card: when "
        "a network was built anew, never to silence a machine that disagrees",
    )
    add("--show", action="store_true", help="print what this machine computes, as JSON")
    arguments = parser.parse_args(argv)
    import engine.backbone

    if arguments.models is not None:
        engine.backbone.MODELS_DIR = arguments.models
    failed = False
    for name in arguments.name or engine.backbone.list_backbones():
        if arguments.write:
            path = engine.backbone.find_model(name, "json")
            card = json.loads(path.read_text(encoding="utf-8"))
            answers = _measure_instruction_sets(name, path.parent)
            # Before the facts about the files, which stay last.
            late = {key: card.pop(key) for key in ("files", "sha256") if key in card}
            path.write_text(
                card_text(card | {"probes": answers} | late), encoding="utf-8", newline="\n"
            )
            continue
        with engine.backbone.load_backbone(name, streams=1, taps="all", cache_dir="") as backbone:
            if arguments.show:
                sketches = {tap: rows.tolist() for tap, rows in measure_sketches(backbone).items()}
                software = f"openvino {importlib.metadata.version('openvino')}"
                print(json.dumps({"software": software, "sketches": sketches}))
                continue
            for result in check_probes(backbone):
                failed |= not result.passed
                print(
                    f"{name:20}{result.tap:10}{result.probe:8}{result.distance:9.5f}"
                    f"  at most {result.tolerance:.5f}  {'ok' if result.passed else 'FAIL'}"
                )
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
