"""Our INT8 backbone beside the same network in other runtimes, at the speed of old processors too.

    python -m bench backbone [--data FOLDER] [--rounds N] [--quick]

Compared: pictures in uint8 to pooled feature vectors. OpenVINO INT8 through engine.backbone (ours);
OpenVINO FP32; ONNX Runtime FP32 and INT8, quantized by its own guide on the same pictures; PyTorch
eager and compiled; LiteRT with XNNPACK; ncnn. Two networks: "default" stops behind the last tap
that the measured recipe pools, "whole" goes to the end. Each with one and with two threads, at
batch 1 and at what is best (batches, or as many pictures at once as threads).

Fair: one origin, the published weights. Batch normalisation and the three equal input channels are
folded for everyone. Everyone puts out the same taps and is pooled by the same kernel, whose time is
in "features". Each (runtime, instruction set, threads) is a process of its own, because libraries
choose their loops when they are loaded; a round starts all of them in another order, and a ratio is
taken inside each round. Each peer has the setting its documentation gives as the best: see the
list of peers, which the results print.

Not fair, and said: our runtime gives a picture one thread, so two threads do not shorten batch 1.
Ours puts out what lies before the last tap too, and the rounding behind it (both so that bits do
not depend on the taps asked for). ONNX Runtime, LiteRT and ncnn choose by CPUID and cannot be told
to be older: they are measured as they come. A limited processor has the clock, caches and
ports of this one; what a real old one does is only as far as the arithmetic goes.

The arithmetic limit: multiplications counted from the IR, over what the vector units can do. Peaks
are stated for two multiplying ports (Intel since Skylake, AMD since Zen 2; a Haswell has one for
INT8, so half) and, where a C compiler is there, measured on this machine (peers/peak.c). INT8
before VNNI takes three instructions (pmaddubsw, pmaddwd, paddd), two of them on those ports. No
program reaches the limit: depthwise layers, an eighth of the work, add only nine products each.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.stages import REPOSITORY, Findings, Missing, Setting, Stage, version_of

STAGE = Stage(
    name="backbone",
    title="The backbone in other runtimes and on other instruction sets",
    asks=[
        "INT8 with taps and pooling, one thread: at least 1.5 times as fast as OpenVINO FP32 at "
        "AVX2 and at SSE4.1, 1.3 times on the processor as it is.",
        "At least 1.5 times as fast as ONNX Runtime INT8, 8 times as fast as PyTorch eager, "
        "batch 1.",
        "At AVX2, at least half of the INT8 arithmetic limit of the network.",
    ],
    order=30,
)

BACKBONE = "efficientnet-lite0"
N_PICTURES = 120
SECONDS = 0.4
TIMEOUT = 1200

LEVELS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "native")
CPU_FLAGS = {"SSE41": "sse4_1", "AVX": "avx", "AVX2": "avx2", "AVX2_VNNI": "avx_vnni"}
LIMITS = ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
# PyTorch's own loops know three levels; below AVX2 is "default".
ATEN = {"AVX2": "avx2", "AVX2_VNNI": "avx2"}


@dataclass(frozen=True)
class Peer:
    """One way to run the network."""

    title: str
    package: str
    how: str
    levels: Sequence[str] = ("native",)
    files: Sequence[str] = ("ir",)
    install: str = ""
    slow: bool = False


OURS = "ours"
PEERS = {
    OURS: Peer(
        "Hilum INT8",
        "openvino",
        "engine.backbone: OpenVINO's C library, one thread a picture, one network a stream",
        LEVELS,
    ),
    "openvino": Peer(
        "OpenVINO FP32",
        "openvino",
        "LATENCY hint, one stream, no pinning, tensors shared both ways, float32 forced",
        LEVELS,
    ),
    "onnxruntime": Peer(
        "ONNX Runtime FP32",
        "onnxruntime",
        "all graph optimisations, intra-op threads as stated",
        files=("ir", "onnx"),
        install="onnxruntime onnx onnxscript",
    ),
    "onnxruntime-u8s8": Peer(
        "ONNX Runtime INT8 (U8S8)",
        "onnxruntime",
        "static QDQ, weights per channel, 7-bit weights (reduce_range) only without VNNI, "
        "stem in FP32, percentiles of 60 pictures of this run, the agreement's among them",
        files=("ir", "onnx", "onnx-int8"),
        install="onnxruntime onnx onnxscript",
    ),
    "onnxruntime-s8s8": Peer(
        "ONNX Runtime INT8 (S8S8)",
        "onnxruntime",
        "as U8S8 with signed symmetric activations, the guide's first choice",
        files=("ir", "onnx", "onnx-int8"),
        install="onnxruntime onnx onnxscript",
    ),
    "torch": Peer(
        "PyTorch eager",
        "torch",
        "inference mode; channels last or not, whichever is faster",
        ("SSE41", "AVX", "AVX2", "native"),
        install="torch",
    ),
    "torch-compiled": Peer(
        "PyTorch compiled",
        "torch",
        "torch.compile (Inductor) with freezing, fixed shapes; default taps only",
        ("AVX2", "native"),
        install="torch, and a C++ compiler",
        slow=True,
    ),
    "litert": Peer(
        "LiteRT (XNNPACK) FP32",
        "ai-edge-litert",
        "converted by litert-torch, XNNPACK as by default",
        files=("ir", "litert"),
        install="ai-edge-litert litert-torch",
        slow=True,
    ),
    "litert-int8": Peer(
        "LiteRT (XNNPACK) INT8",
        "ai-edge-litert",
        "static 8-bit recipe of ai-edge-quantizer, min and max of 60 pictures of this run",
        files=("ir", "litert", "litert-int8"),
        install="ai-edge-litert litert-torch ai-edge-quantizer",
        slow=True,
    ),
    "ncnn": Peer(
        "ncnn FP32",
        "ncnn",
        "converted by pnnx; packing, Winograd and sgemm on (defaults), no halves; batch 1 only",
        files=("ir", "ncnn"),
        install="ncnn pnnx",
    ),
}


# --- the arithmetic limit -------------------------------------------------------------------------

# Multiply-accumulates a cycle with two multiplying ports of the width of the level.
INT8_PEAK = {"SSE41": 16, "AVX": 16, "AVX2": 32, "AVX2_VNNI": 64}
FP32_PEAK = {"SSE41": 8, "AVX": 16, "AVX2": 16, "AVX2_VNNI": 16}
PEAK_REASON = {
    "SSE41": "INT8: 16 bytes in two multiplications and an addition; FP32: mulps + addps (half of "
    "it where they share ports, as on Intel)",
    "AVX": "INT8 has 128 bits only; FP32: vmulps + vaddps of 256 bits (half of it on shared ports)",
    "AVX2": "as SSE4.1 with 256 bits; FP32: vfmadd",
    "AVX2_VNNI": "vpdpbusd of 256 bits",
    "native": "the widest this processor has",
}


def peaks(level: str, flags: set[str]) -> tuple[int, int]:
    """Stated peak of INT8 and FP32 multiply-accumulates a cycle and core."""
    if level != "native":
        return INT8_PEAK[level], FP32_PEAK[level]
    fp32 = 32 if "avx512f" in flags else 16 if "avx" in flags else 8
    if "avx512_vnni" in flags:
        return 128, fp32
    if "avx512bw" in flags:
        return 64, fp32
    best = next((name for name in reversed(LEVELS[:-1]) if CPU_FLAGS[name] in flags), "SSE41")
    return INT8_PEAK[best], fp32


def count_macs(xml: Path, taps: Sequence[str]) -> dict[str, int]:
    """Multiply-accumulates of the convolutions that the taps need, counted from the IR.

    Returns
    -------
    dict
        ``int8`` and ``fp32`` by the kind of their weights; ``depthwise``, which is a part of them.
    """
    from engine.models.saturation import read_int8_layers

    quantized = {layer.name for layer in read_int8_layers(xml)}
    root = ET.parse(xml).getroot()
    layers = {layer.get("id"): layer for layer in root.iterfind("./layers/layer")}
    sources = defaultdict(list)
    for edge in root.iterfind("./edges/edge"):
        sources[edge.get("to-layer")].append(edge.get("from-layer"))
    pending = [key for key, layer in layers.items() if layer.get("output_names") in taps]
    if len(pending) != len(taps):
        raise ValueError(f"{xml.name}: {len(pending)} of the outputs {', '.join(taps)}")
    needed: set[str | None] = set()
    while pending:
        key = pending.pop()
        if key not in needed:
            needed.add(key)
            pending += sources[key]

    def product(port: Any) -> int:
        sizes = 1
        for dim in port.iterfind("dim"):
            sizes *= int(dim.text)
        return sizes

    found = {"int8": 0, "fp32": 0, "depthwise": 0}
    for key in needed:
        layer = layers[key]
        kind = layer.get("type")
        if kind not in ("Convolution", "GroupConvolution"):
            continue
        weights = layer.find("./input/port[@id='1']")
        height, width = [int(dim.text or 0) for dim in layer.iterfind("./output/port/dim")][2:]
        macs = product(weights) * height * width
        found["int8" if layer.get("name") in quantized else "fp32"] += macs
        if kind == "GroupConvolution":
            found["depthwise"] += macs
    return found


def measured_peaks(folder: Path) -> dict[str, dict[str, float]]:
    """Multiply-accumulates a second in 1e9 as a small C program reaches them; empty without gcc."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return {}
    program = folder / "peak"
    source = Path(__file__).with_name("peers") / "peak.c"
    try:
        command = [compiler, "-O2", "-o", str(program), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        answer = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[str, dict[str, float]] = json.loads(answer.stdout)
    return found


def cpu_flags() -> set[str]:
    """Names of what this processor can do, as Linux lists them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


# --- files ----------------------------------------------------------------------------------------


def prepare(setting: Setting, findings: Findings) -> tuple[Path, set[str]]:
    """Make the pictures and, where it is not there from an earlier run, what the peers run.

    Returns the folder (in the user's cache, not in the repository) and the kinds of files that
    could be made.
    """
    import numpy as np

    from engine.backbone import default_cache_dir, load_backbone
    from engine.images import Preprocessing, preprocess, read_picture

    with load_backbone(BACKBONE, streams=1, cache_dir="") as backbone:
        rules, digest = Preprocessing(**backbone.preprocessing), backbone.digest
    paths = setting.images(setting.size(N_PICTURES, 16))
    if len(paths) < 8:
        raise Missing(f"{len(paths)} pictures, wanted at least 8; leave out --data for phantoms")
    pictures = np.stack([preprocess(read_picture(path), rules) for path in paths])
    maker = Path(__file__).with_name("peers") / "backbone_files.py"
    packages = {
        package: version_of(package) for package in ("torch", "onnxruntime", "pnnx", "ncnn")
    }
    facts = json.dumps([digest, packages, version_of("openvino"), version_of("litert-torch")])
    key = hashlib.sha256(pictures.tobytes() + maker.read_bytes() + facts.encode()).hexdigest()[:16]
    folder = (default_cache_dir() or setting.work) / "bench" / f"backbone-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pictures.npy", pictures)
    made = set()
    for kind in dict.fromkeys(kind for peer in PEERS.values() for kind in peer.files):
        if not (folder / f"{kind}.done").exists():
            if setting.quick and kind.startswith("litert"):
                continue
            try:
                start("backbone_files", [kind, str(folder), BACKBONE], "native")
            except RuntimeError as error:
                titles = [
                    peer.title
                    for runtime, peer in PEERS.items()
                    if runtime != OURS and kind in peer.files
                ]
                findings.note(f"No files for {', '.join(titles)}: {error}")
                continue
        made.add(kind)
    return folder, made


def start(module: str, arguments: Sequence[str], level: str, extra: Any = None) -> str:
    """Run a program of bench.peers as on a processor of a level; return its last line."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in (*LIMITS, "OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment |= {"PYTHONPATH": str(REPOSITORY), **(extra or {})}
    if level != "native":
        environment |= dict.fromkeys(LIMITS, level)
        environment["ATEN_CPU_CAPABILITY"] = ATEN.get(level, "default")
    command = [sys.executable, "-m", f"bench.peers.{module}", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done within {TIMEOUT} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"exit {done.returncode}: {said[-1] if said else 'it said nothing'}")
    return (done.stdout.splitlines() or [""])[-1]


# --- the stage ------------------------------------------------------------------------------------

Key = tuple[str, str, int]  # runtime, level, threads


def measure(setting: Setting) -> Findings:
    findings = Findings(setting)
    flags = cpu_flags()
    levels = [
        level for level in LEVELS if level == "native" or not flags or CPU_FLAGS[level] in flags
    ]
    for level in set(LEVELS) - set(levels):
        findings.missing(f"instruction set {level}", "this processor does not have it")
    folder, made = prepare(setting, findings)
    runs = plan(setting, findings, levels, made)
    found = collect(setting, findings, runs, folder)
    cuts = cuts_of(setting)
    agreement = agreements(found, folder, cuts)
    for cut in cuts:
        for threads in sorted({key[2] for key in found}):
            add_table(findings, found, agreement, cut, threads)
    add_ratios(findings, found, cuts)
    add_limits(setting, findings, found, cuts, flags)
    add_charts(findings, found, cuts)
    findings.note(
        "ONNX Runtime, LiteRT and ncnn offer no limit of the instruction set: only measured as "
        "they come. PyTorch is limited by ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY together, "
        "OpenVINO by ONEDNN_MAX_CPU_ISA and OV_CPU_MAX_ISA together."
    )
    findings.note(
        "Cosine: pooled features of a picture beside those of the network as published, in FP32. "
        + (
            "Ours was calibrated on other X-rays (see its card), ONNX Runtime's on these."
            if setting.data
            else "Phantoms: ours was calibrated on real X-rays, ONNX Runtime's on these phantoms."
        )
    )
    return findings


def cuts_of(setting: Setting) -> tuple[str, ...]:
    return ("default",) if setting.quick else ("default", "whole")


def plan(setting: Setting, findings: Findings, levels: Sequence[str], made: set[str]) -> list[Key]:
    """List what is run; name what is not, with the reason."""
    runs: list[Key] = []
    for runtime, peer in PEERS.items():
        version = version_of(peer.package)
        lacking = [kind for kind in peer.files if kind not in made and runtime != OURS]
        if version is None:
            findings.missing(peer.title, f"not installed: pip install {peer.install}")
        elif setting.quick and peer.slow:
            findings.missing(peer.title, "left out of --quick: takes minutes to convert or compile")
        elif lacking:
            findings.missing(
                peer.title,
                f"its files could not be made ({', '.join(lacking)}; see the notes); they need: "
                f"pip install 'hilum[models]' {peer.install}".rstrip(),
            )
        else:
            findings.peer(peer.title, version=version, how=peer.how)
            wanted = [level for level in peer.levels if level in levels]
            if setting.quick:
                wanted = [level for level in wanted if level in ("SSE41", "AVX2", "native")]
            runs += [(runtime, level, threads) for level in wanted for threads in (1, 2)]
    findings.missing(
        "ncnn INT8", "its tools ncnn2table and ncnn2int8 are not in the wheels of ncnn and pnnx"
    )
    return runs


def collect(
    setting: Setting, findings: Findings, runs: Sequence[Key], folder: Path
) -> dict[Key, list[dict[str, Any]]]:
    """Run every process in every round; whoever fails is named and left out from then on."""
    found: dict[Key, list[dict[str, Any]]] = {key: [] for key in runs}
    draw = random.Random(0)
    for _ in range(setting.rounds):
        # Who is compared stands close in time: one level and number of threads after another.
        places = draw.sample(sorted({key[1:] for key in found}), len({key[1:] for key in found}))
        order = [
            key
            for place in places
            for key in draw.sample(list(found), len(found))
            if key[1:] == place
        ]
        for key in order:
            runtime, level, threads = key
            task = {
                "runtime": runtime,
                "folder": str(folder),
                "backbone": BACKBONE,
                "threads": threads,
                "cuts": ["default"] if runtime == "torch-compiled" else cuts_of(setting),
                "batches": [1, 2] if setting.quick else [1, 4, 16],
                "seconds": 0.05 if setting.quick else SECONDS,
                "cache": str(folder / "blobs"),
            }
            kept = {"TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor-{level}")}
            try:
                answer = json.loads(start("backbone_run", [json.dumps(task)], level, kept))
            except (RuntimeError, ValueError) as error:
                if runtime == OURS:
                    raise
                findings.missing(
                    f"{PEERS[runtime].title}, {level}, {threads} threads", f"failed: {error}"
                )
                del found[key]
            else:
                found[key].append(answer)
    return found


def agreements(
    found: dict[Key, list[dict[str, Any]]], folder: Path, cuts: Sequence[str]
) -> dict[tuple[Key, str], tuple[float, float]]:
    """Mean and least cosine of the features with the origin's, over the pictures."""
    import numpy as np

    cosines: dict[tuple[Key, str], tuple[float, float]] = {}
    for cut in cuts:
        path = folder / f"{cut}.reference.npy"
        if not path.exists():
            continue
        reference = np.load(path)
        for key, answers in found.items():
            if cut in answers[0]:
                features = np.array(answers[0][cut]["features"])
                expected = reference[: len(features)]
                lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
                each = (features * expected).sum(axis=1) / lengths
                cosines[key, cut] = (float(each.mean()), float(each.min()))
    return cosines


def rounds_of(answers: Sequence[dict[str, Any]], cut: str, way: str, what: str) -> list[float]:
    return [answer[cut][way][what] for answer in answers]


def best_way(answers: Sequence[dict[str, Any]], cut: str) -> tuple[str, list[float]]:
    """Fastest way by its median over the rounds, and its rounds."""
    ways = [way for way in answers[0][cut] if way != "features"]
    rounds = {way: rounds_of(answers, cut, way, "features_ms") for way in ways}
    way = min(ways, key=lambda name: statistics.median(rounds[name]))
    return way, rounds[way]


def add_table(
    findings: Findings,
    found: dict[Key, list[dict[str, Any]]],
    agreement: dict[tuple[Key, str], tuple[float, float]],
    cut: str,
    threads: int,
) -> None:
    rows: list[list[Any]] = []
    for level in LEVELS:
        for runtime, peer in PEERS.items():
            key = (runtime, level, threads)
            if key not in found or cut not in found[key][0]:
                continue
            answers = found[key]
            way, best = best_way(answers, cut)
            mean, least = agreement.get((key, cut), (None, None))
            rows.append(
                [
                    peer.title,
                    level,
                    rounds_of(answers, cut, "batch 1", "network_ms"),
                    rounds_of(answers, cut, "batch 1", "features_ms"),
                    best,
                    way,
                    None if mean is None else f"{mean:.4f}",
                    None if least is None else f"{least:.4f}",
                ]
            )
    findings.table(
        f"{BACKBONE}, {cut} taps, {threads} thread{'s' if threads > 1 else ''}",
        [
            "runtime",
            "instruction set",
            "network, batch 1, ms",
            "with pooling, batch 1, ms",
            "with pooling, best, ms a picture",
            "best by",
            "cosine, mean",
            "cosine, least",
        ],
        rows,
        note="parallel: as many pictures at once as threads, each with one thread",
    )


ASKED = {
    ("openvino", "SSE41"): ">= 1.5",
    ("openvino", "AVX2"): ">= 1.5",
    ("openvino", "native"): ">= 1.3",
    ("torch", "native"): ">= 8",
}


def add_ratios(
    findings: Findings, found: dict[Key, list[dict[str, Any]]], cuts: Sequence[str]
) -> None:
    for cut in cuts:
        for threads in (1, 2):
            for (runtime, level, count), answers in found.items():
                own = found.get((OURS, level, threads))
                if count != threads or runtime == OURS or own is None or cut not in answers[0]:
                    continue
                title = f"{PEERS[runtime].title} / ours, {level}, {cut} taps"
                if threads == 1:
                    asked = ASKED.get((runtime, level), "")
                    findings.ratio(
                        f"{title}, 1 thread, batch 1",
                        rounds_of(own, cut, "batch 1", "features_ms"),
                        rounds_of(answers, cut, "batch 1", "features_ms"),
                        asked=">= 1.5" if runtime.startswith("onnxruntime-") else asked,
                    )
                else:
                    findings.ratio(
                        f"{title}, 2 threads, best of each",
                        best_way(own, cut)[1],
                        best_way(answers, cut)[1],
                    )


def add_limits(
    setting: Setting,
    findings: Findings,
    found: dict[Key, list[dict[str, Any]]],
    cuts: Sequence[str],
    flags: set[str],
) -> None:
    """Say what the vector units allow at each level, and which share of it is reached."""
    from engine.backbone import MODELS_DIR

    card = json.loads((MODELS_DIR / f"{BACKBONE}.json").read_text(encoding="utf-8"))
    taps = {
        "default": [block.partition(":")[0] for block in card["default_taps"].split(",")],
        "whole": [tap["name"] for tap in card["taps"]],
    }
    machine = measured_peaks(setting.work)
    if not machine:
        findings.missing("measured arithmetic peaks", "peers/peak.c needs gcc 11 or later")
    for cut in cuts:
        macs = count_macs(MODELS_DIR / f"{BACKBONE}.xml", taps[cut])
        total = macs["int8"] + macs["fp32"]
        rows: list[list[Any]] = []
        for level in LEVELS:
            own = found.get((OURS, level, 1))
            if own is None:
                continue
            int8_peak, fp32_peak = peaks(level, flags)
            clocks = [answer["clock_ghz"] for answer in own]
            # Millions of steps over steps a cycle and 1e9 cycles a second: milliseconds.
            limits = [
                (macs["int8"] / int8_peak + macs["fp32"] / fp32_peak) / clock / 1e6
                for clock in clocks
            ]
            ours = rounds_of(own, cut, "batch 1", "network_ms")
            shares = [limit / taken for limit, taken in zip(limits, ours, strict=True)]
            theirs = found.get(("openvino", level, 1))
            fp32_share = None
            if theirs:
                fp32_share = [
                    total / fp32_peak / answer["clock_ghz"] / 1e6 / taken
                    for answer, taken in zip(
                        theirs, rounds_of(theirs, cut, "batch 1", "network_ms"), strict=True
                    )
                ]
            seen = machine.get(level, {})
            rows.append(
                [
                    level,
                    int8_peak,
                    seen.get("int8"),
                    fp32_peak,
                    seen.get("fp32"),
                    clocks,
                    limits,
                    ours,
                    shares,
                    fp32_share,
                    PEAK_REASON[level],
                ]
            )
            findings.figure(
                f"share of the INT8 arithmetic limit, {level}, {cut} taps, 1 thread, batch 1",
                shares,
                asked=">= 0.5" if level == "AVX2" else "",
            )
        findings.table(
            f"Arithmetic limit, {cut} taps: {total / 1e6:.1f} million multiply-accumulates "
            f"({macs['fp32'] / 1e6:.1f} FP32, {macs['depthwise'] / 1e6:.1f} depthwise)",
            [
                "instruction set",
                "INT8 peak stated, MAC/cycle",
                "INT8 peak measured, MAC/cycle",
                "FP32 peak stated, MAC/cycle",
                "FP32 peak measured, MAC/cycle",
                "clock, GHz",
                "INT8 limit, ms",
                "ours, ms",
                "share reached",
                "OpenVINO FP32, share of its limit",
                "why this peak",
            ],
            rows,
            note="clock: measured in the process that was timed, by a chain of multiplications",
        )


def add_charts(
    findings: Findings, found: dict[Key, list[dict[str, Any]]], cuts: Sequence[str]
) -> None:
    for cut in cuts:
        groups = {
            level: {
                PEERS[runtime].title: rounds_of(answers, cut, "batch 1", "features_ms")
                for (runtime, at, threads), answers in found.items()
                if at == level and threads == 1 and cut in answers[0]
            }
            for level in LEVELS
        }
        findings.chart(
            f"{BACKBONE}, {cut} taps: one picture, one thread",
            {level: bars for level, bars in groups.items() if bars},
            unit="ms, lower is better",
            ours=(PEERS[OURS].title,),
        )
