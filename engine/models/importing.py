"""How a network of somebody else becomes a backbone: taps, one channel, INT8, card, known answers.

Needs the extra ``[models]`` (NNCF; PyTorch for its files). Command: ``python -m engine.models
import``. The steps are those of :mod:`engine.models.build`, for a graph that is not known before.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backbone import MODELS_DIR
from engine.errors import BackboneError, ImageError, MissingPart
from engine.images import Preprocessing, find_images, preprocess, read_picture
from engine.models import build
from engine.models.graph import (
    Normalisation,
    choose_taps,
    cut_behind,
    find_taps,
    first_convolution,
    give_biases,
    input_facts,
    layer_names,
    map_strides,
    rename_nodes,
    take_grayscale,
)
from engine.models.saturation import read_int8_layers
from engine.models.sources import Source, load_source, quietly

__all__ = ["IMAGENET", "Request", "import_backbone"]

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of the networks that come with PyTorch's torchvision, and of most that were trained like them."""

LEAST_STRIDE = 4
"""Of the taps that are found: earlier maps are large, show edges, and each costs time whether it is
wanted or not, because it leaves the network (see :mod:`engine.backbone`): the map of stride 2 made
an INT8 ResNet-18 take 6.5 instead of 4.5 ms for a picture."""

LEAST_IMAGES = 8
FEW_IMAGES = 100
"""From fewer pictures the ranges of activations are a guess."""

TOLERANCE = 1e-3
"""Largest difference over the largest value of a map, between a network and what is made of it."""

DEFAULT_STRIDES = (8, 16)
"""Of the default taps: where the taps lie that were measured best in the shipped networks."""

MOST_VALUES = 8192
"""Of the default features of a picture: 16 kB a row."""

MOST_SPREAD = 0.2
"""Largest relative distance of a tap's sketches between two instruction sets. INT8 of the shipped
networks reaches 0.04, of a ResNet-18 of random weights 0.02; a wrong kernel was seen to reach 6."""

_POOLINGS = (("mean3x3", 9), ("mean2x2", 4), ("mean", 1))
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_PART = ".part-"
_OLD_SECONDS = 86_400


@dataclass(frozen=True)
class Request:
    """What to import, and how.

    Attributes
    ----------
    name : str
        Of the backbone: lower-case letters, digits, ``_`` and ``-``.
    out : Path
        Folder to write to.
    source, module, weights, own_weights
        The network, as for :func:`engine.models.sources.load_source`.
    images : Path, optional
        Folder of pictures to quantize on; needed for INT8.
    taps : tuple of str
        Layers, as for :func:`engine.models.graph.choose_taps`; empty: found in the graph.
    least_stride : int
        Of the taps that are found.
    default_taps : str, optional
        Taps and poolings used where nobody names any.
    input_size : tuple of int, optional
        Height and width of the input.
    channels : int, optional
        Of the network's input, 1 or 3.
    normalisation : Normalisation, optional
        How the network was trained to see a pixel; default for three channels and other sources
        than a SavedModel: `IMAGENET`.
    int8 : bool
        Whether to quantize.
    n_images : int
        Pictures to quantize on, at most; half of them correct the biases.
    licence, origin, title : str
        In the user's words, for the card.
    replace : bool
        Whether a backbone of that name in the folder may be replaced.
    """

    name: str
    out: Path
    source: str | Path | None = None
    module: str | None = None
    weights: Path | None = None
    own_weights: bool = False
    images: Path | None = None
    taps: tuple[str, ...] = ()
    least_stride: int = LEAST_STRIDE
    default_taps: str | None = None
    input_size: tuple[int, int] | None = None
    channels: int | None = None
    normalisation: Normalisation | None = None
    int8: bool = True
    n_images: int = build.N_CALIBRATION
    licence: str = "not stated"
    origin: str = "not stated"
    title: str = ""
    replace: bool = False


def import_backbone(
    request: Request, *, report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Make a backbone of a foreign network.

    Parameters
    ----------
    request : Request
        What to import.
    report : callable, optional
        Called with a line before each step.

    Returns
    -------
    dict
        The card. ``<name>.xml``, ``.bin`` and ``.json`` are in the folder, or nothing is.

    Raises
    ------
    BackboneError
        A name that is taken or wrong, a network that cannot be read or does not fit, too few
        pictures, a converted network that does not agree with its source.
    MismatchError
        A tap that the network does not have.
    MissingPart
        A package is missing that this needs.
    """
    _check(request)
    report("reading the network")
    source = load_source(
        request.source,
        module=request.module,
        weights=request.weights,
        own_weights=request.own_weights,
        input_size=request.input_size,
        channels=request.channels,
    )
    normalisation = _normalisation(request, source)
    assumed = "" if request.normalisation else " (ImageNet's; another one: --mean and --std)"
    report(f"a pixel becomes {normalisation.describe()}{assumed}")
    _, _, height, width = input_facts(source.model)
    rules = Preprocessing(height=int(height or 0), width=int(width or 0), **build.PREPROCESSING)
    pictures = _read_pictures(request, rules, report)

    report("finding the taps")
    taps = (
        choose_taps(source.model, request.taps)
        if request.taps
        else find_taps(source.model, least_stride=request.least_stride)
    )
    strides = map_strides(source.model)
    own_strides = {tap: strides[node] for tap, node in taps.items()}
    layers = layer_names(source.model, taps)
    original = cut_behind(source.model, taps, request.name)
    for tap in build.describe_taps(original, own_strides):
        report(
            f"  {tap['name']}: {tap['channels']} channels of {tap['height']}x{tap['width']}, "
            f"layer {layers[tap['name']]}"
        )
    default_taps = _default_taps(request, original, own_strides)

    made_folder = not request.out.exists()
    request.out.mkdir(parents=True, exist_ok=True)
    _remove_old_parts(request.out)
    try:
        with tempfile.TemporaryDirectory(dir=request.out, prefix=_PART) as folder:
            stage = Path(folder)
            report("folding the three channels to one, comparing with the source")
            expected, agreement, seen = _source_maps(
                source, original, _sample(source, normalisation)
            )
            gray, how = take_grayscale(original, normalisation)
            rename_nodes(gray)
            fp32 = stage / "fp32.xml"
            build.save_ir(gray, fp32)
            folding = _compare_maps(fp32, expected, taps, _sample_pixels(rules))
            card = {
                "name": request.name,
                "title": request.title or f"{request.name}: imported from {source.kind}",
                "architecture": request.name,
                "origin": {"kind": source.kind, **source.origin, "stated": request.origin},
                "licence": request.licence,
                "input": {
                    "channels": 1,
                    "height": rules.height,
                    "width": rules.width,
                    "dtype": "uint8",
                    "normalisation": normalisation.describe(),
                    "stem": how,
                },
                "taps": build.describe_taps(gray, own_strides),
                "default_taps": default_taps,
                "preprocessing": rules.to_dict(),
                "import": {
                    "note": "largest difference over the largest value. source: the first output "
                    "of the graph against that of its framework, null where that was not there to "
                    "be asked. taps: this network before INT8 against what the framework computed "
                    "in the taps of seen_in_source, against the graph in the others",
                    "layers": layers,
                    "source": agreement,
                    "seen_in_source": seen,
                    "taps": folding,
                },
            }
            xml = stage / f"{request.name}.xml"
            if request.int8:
                card |= _quantize(fp32, xml, pictures, report)
            else:
                build.save_ir(_read(fp32), xml)
                card["quantization"] = {"method": "none: FP32"}
            facts, digest = build.file_facts(xml)
            card |= {"files": facts, "sha256": digest}
            path = xml.with_suffix(".json")
            path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            report("measuring the known answers under five instruction sets")
            build.add_probes(request.name, stage)
            finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            _check_spread(finished)
            report(f"writing to {request.out}")
            _publish(request, stage)
    except BaseException:
        if made_folder:
            with contextlib.suppress(OSError):  # another import may have put something into it
                request.out.rmdir()
        raise
    return finished


# --- what was asked for -------------------------------------------------------------------------


def _check(request: Request) -> None:
    if not _NAME.fullmatch(request.name):
        raise BackboneError(
            f"--name {request.name}: expected up to 64 lower-case letters, digits, _ and -, the "
            "first a letter or digit"
        )
    if (MODELS_DIR / f"{request.name}.json").exists():
        raise BackboneError(
            f"--name {request.name}: a shipped backbone has this name; take another"
        )
    if request.out.exists() and not request.out.is_dir():
        raise BackboneError(f"{request.out}: is a file, expected a folder to write to")
    if (request.out / f"{request.name}.json").exists() and not request.replace:
        raise BackboneError(
            f"{request.out}: there is a backbone {request.name} already. Containers and heads made "
            "with it would not fit another; take another name, or --replace"
        )
    if request.int8 and request.images is None:
        raise BackboneError(
            "no pictures to quantize on; name a folder of X-rays like those it will see "
            "(--images FOLDER), or keep FP32 (--no-int8)"
        )
    if request.n_images < LEAST_IMAGES:
        raise BackboneError(
            f"--n-images {request.n_images}: expected at least {LEAST_IMAGES} pictures"
        )
    if request.int8:
        try:
            importlib.metadata.version("nncf")
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingPart(
                "NNCF, which quantizes, is not installed; pip install 'hilum[models]', or keep "
                "FP32 (--no-int8)"
            ) from error


def _normalisation(request: Request, source: Source) -> Normalisation:
    """Take what the user says; assume nothing where frameworks differ from network to network."""
    _, channels, _, _ = input_facts(source.model)
    found = request.normalisation
    if found is None:
        if channels != 3 or source.kind.startswith("TensorFlow"):
            raise BackboneError(
                f"how a {source.kind} of {channels} channels was trained to see a pixel is not in "
                "the file; say it with --mean, --std and --white (1: pixels of 0 to 1; 255: of 0 "
                "to 255)"
            )
        found = IMAGENET
    for option, values in (("--mean", found.mean), ("--std", found.std)):
        if len(values) not in (1, channels):
            raise BackboneError(
                f"{option}: {len(values)} numbers for a network of {channels} channels; expected "
                f"1 or {channels}"
            )
    if not all(value > 0 for value in (*found.std, found.white)):
        raise BackboneError("--std and --white: expected numbers above 0")
    return found


def _read_pictures(
    request: Request, rules: Preprocessing, report: Callable[[str], None]
) -> NDArray[np.uint8]:
    """Read the pictures to quantize on, evenly spaced over the sorted folder."""
    if not request.int8 or request.images is None:
        return np.empty((0, 1, rules.height, rules.width), np.uint8)
    if not request.images.is_dir():
        raise BackboneError(f"{request.images}: no such folder; --images takes a folder of X-rays")
    files = find_images(request.images)
    n = min(request.n_images, len(files))
    chosen = [files[k * len(files) // n] for k in range(n)]
    report(f"reading {len(chosen)} of {len(files)} pictures")
    found, refused = [], 0
    for file in chosen:
        try:
            found.append(preprocess(read_picture(file), rules))
        except ImageError:
            refused += 1
    if len(found) < LEAST_IMAGES:
        raise BackboneError(
            f"{request.images}: {len(found)} pictures that can be read ({refused} that cannot), "
            f"expected at least {LEAST_IMAGES}, better {FEW_IMAGES} or more"
        )
    if refused:
        report(f"{refused} pictures cannot be read and were left out")
    if len(found) < FEW_IMAGES:
        report(f"only {len(found)} pictures: from {FEW_IMAGES} on the ranges are trustworthy")
    return np.stack(found)


def _default_taps(request: Request, model: Any, strides: dict[str, int]) -> str:
    channels = {out.get_any_name(): int(out.get_shape()[1]) for out in model.outputs}
    if request.default_taps is not None:
        for part in request.default_taps.split(","):
            tap, _, pooling = part.strip().partition(":")
            if tap not in channels or not pooling:
                raise BackboneError(
                    f"--default-taps: {part!r}, expected TAP:POOLING with one of "
                    f"{', '.join(channels)}"
                )
        return ",".join(part.strip() for part in request.default_taps.split(","))
    taps = [tap for tap in channels if strides[tap] in DEFAULT_STRIDES] or list(channels)[-2:]
    total = sum(channels[tap] for tap in taps)
    fitting = [pooling for pooling, values in _POOLINGS if values * total <= MOST_VALUES]
    pooling = fitting[0] if fitting else _POOLINGS[-1][0]
    return ",".join(f"{tap}:{pooling}" for tap in taps)


# --- agreement ----------------------------------------------------------------------------------


def _sample_pixels(rules: Preprocessing) -> NDArray[np.uint8]:
    """Draw the picture that networks are compared on: noise of several sizes, 1, 1, h, w."""
    random = np.random.default_rng(6)
    picture = np.zeros((rules.height, rules.width))
    for cell in (1, 8, 32):
        shape = (-(-rules.height // cell), -(-rules.width // cell))
        noise = np.kron(random.random(shape), np.ones((cell, cell)))
        picture += noise[: rules.height, : rules.width]
    pixels: NDArray[np.uint8] = (picture * 85).astype(np.uint8)[None, None]
    return pixels


def _sample(source: Source, normalisation: Normalisation) -> NDArray[np.float32]:
    """Normalise that picture as the network expects it, outside of it, in its own layout."""
    layout, channels, height, width = input_facts(source.model)
    offset, divisor = normalisation.pixel_terms(channels)
    pixels = _sample_pixels(Preprocessing(height=int(height or 0), width=int(width or 0)))
    shape = (1, channels, 1, 1)
    found = (pixels.astype(np.float64) - offset.reshape(shape)) / divisor.reshape(shape)
    if layout == "NHWC":
        found = found.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(found, np.float32)


def _sample_maps(model: Any, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", build.CONFIGURATION)
    found = compiled({0: x})
    return [np.array(found[k]) for k in range(len(model.outputs))]


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the largest value."""
    scale = float(np.abs(expected).max())
    return float(np.abs(found - expected).max()) / (scale or 1.0)


def _source_maps(
    source: Source, original: Any, x: NDArray[np.float32]
) -> tuple[list[NDArray[np.float32]], float | None, list[str]]:
    """Run the framework the graph came from, and find each tap among all that it computes.

    The output alone would prove little: behind a softmax, say, much can be wrong and not show.

    Returns
    -------
    maps : list of ndarray
        Of the taps: as the framework computed them, or else the graph.
    difference : float or None
        Between the outputs of the two.
    seen : list of str
        Taps the framework computed too.
    """
    graph = _sample_maps(original, x)
    if source.run is None:
        return graph, None, []
    names = [output.get_any_name() for output in original.outputs]
    nearest: dict[str, tuple[float, NDArray[np.float32]]] = {}

    def see(values: NDArray[np.float32]) -> None:
        for tap, found in zip(names, graph, strict=True):
            if values.shape != found.shape:
                continue
            difference = _difference(found, values)
            if tap not in nearest or difference < nearest[tap][0]:
                nearest[tap] = (difference, values.copy())

    expected = source.run(x, see)
    (found, *_) = _sample_maps(source.model, x)
    if found.shape != expected.shape:
        raise BackboneError(
            f"the converted network gives {found.shape}, its source {expected.shape}"
        )
    for tap, (difference, _) in nearest.items():
        _agreed(f"tap {tap} of the converted network and what its source computes", difference)
    return (
        [nearest[tap][1] if tap in nearest else one for tap, one in zip(names, graph, strict=True)],
        _agreed("the converted network and its source", _difference(found, expected)),
        [tap for tap in names if tap in nearest],
    )


def _agreed(what: str, difference: float) -> float:
    if not difference <= TOLERANCE:
        raise BackboneError(
            f"{what} differ by {difference:.2g} of the largest value, expected at most "
            f"{TOLERANCE:g}; the network uses something that is converted wrongly"
        )
    return float(f"{difference:.2g}")


def _compare_maps(
    xml: Path, expected: Sequence[NDArray[np.float32]], taps: Sequence[str] | dict[str, str],
    pixels: NDArray[np.uint8],
) -> dict[str, float]:  # fmt: skip
    (found,) = ([np.array(one) for one in maps] for maps in build.run_network(_read(xml), pixels))
    return {
        tap: _agreed(f"tap {tap} with one channel and with the source's", _difference(*pair))
        for tap, *pair in zip(taps, found, expected, strict=True)
    }


def _read(xml: Path) -> Any:
    import openvino as ov

    return ov.Core().read_model(xml)


# --- INT8 ---------------------------------------------------------------------------------------


def _quantize(
    fp32: Path, xml: Path, pictures: NDArray[np.uint8], report: Callable[[str], None]
) -> dict[str, Any]:
    """Quantize as :mod:`engine.models.build` does; write the IR and return its part of the card."""
    import nncf

    nncf.set_log_level("ERROR")
    model = _read(fp32)
    give_biases(model)
    stem = first_convolution(model).get_friendly_name()
    fp32_layers = list(dict.fromkeys([stem, *_unprovable(model)]))
    report(f"quantizing on {len(pictures)} pictures")
    with quietly():
        quantized = build.quantize_network(model, pictures, fp32_layers)
    raw, safe = xml.with_name("raw.xml"), xml.with_name("safe.xml")
    build.save_ir(quantized, raw)
    for suffix in (".xml", ".bin"):
        shutil.copyfile(raw.with_suffix(suffix), safe.with_suffix(suffix))
    try:
        report("proving that nothing saturates")
        changed = build.remove_saturation(safe, build.fp32_weights(model))
        layers = read_int8_layers(safe)
    except (ValueError, KeyError, RuntimeError) as error:
        raise BackboneError(
            f"the quantized network cannot be proved free of saturation ({error}); keep FP32: "
            "--no-int8"
        ) from error
    if not layers:
        raise BackboneError("NNCF quantized no layer of this network; keep FP32: --no-int8")
    quantized = _read(safe)
    some = pictures[:: 2 if len(pictures) > LEAST_IMAGES else 1]
    n_bias = build.correct_biases(
        model, quantized, some, [layer.name for layer in layers], report=report
    )
    build.save_ir(quantized, xml)
    report("measuring the agreement of INT8 with FP32")
    shown = pictures[:: -(-len(pictures) // FEW_IMAGES)]
    return {
        "quantization": {
            "method": build.QUANTIZATION,
            "calibration_data": {"n_images": len(pictures), "n_biases_corrected": n_bias},
            "kept_in_fp32": fp32_layers,
            "software": {
                package: importlib.metadata.version(package)
                for package in ("nncf", "openvino", "numpy")
            },
        },
        "saturation": build.describe_saturation(xml, raw, changed),
        "agreement_with_fp32": {
            "n_images": len(shown),
            "features": "mean, maximum and standard deviation of each channel",
            **_compare_features(fp32, xml, shown),
        },
    }


def _unprovable(model: Any) -> list[str]:
    """Name the layers that stay FP32 because the proof of `engine.models.saturation` is not theirs.

    It knows which weights meet in one instruction in convolutions, and that those of depthwise ones
    do not. Groups of several channels, matrix products (their weights may lie either way round) and
    transposed convolutions are laid out otherwise.
    """
    others = ("MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() in others
        or (
            node.get_type_name() == "GroupConvolution"
            and tuple(node.input_value(1).get_shape()[1:3]) != (1, 1)
        )
    ]


def _compare_features(
    fp32: Path, xml: Path, pictures: NDArray[np.uint8]
) -> dict[str, dict[str, float]]:
    # Channels that are nothing on all pictures would be divided by nothing.
    with np.errstate(invalid="ignore", divide="ignore"):
        found = build.compare_features(
            build.measure_features(fp32, pictures), build.measure_features(xml, pictures)
        )
    return {
        tap: {key: value for key, value in facts.items() if np.isfinite(value)}
        for tap, facts in found.items()
    }


# --- files --------------------------------------------------------------------------------------


def _check_spread(card: dict[str, Any]) -> None:
    """Refuse a network whose features depend on the CPU's generation."""
    spreads = {tap: float(facts["spread"]) for tap, facts in card["probes"]["taps"].items()}
    for tap, spread in spreads.items():
        if spread <= MOST_SPREAD:  # never so for NaN
            continue
        raise BackboneError(
            f"the features of tap {tap} differ by {spread:.2g} of their length between "
            f"{', '.join(card['probes']['instruction_sets'])}, expected at most {MOST_SPREAD:g}: "
            "OpenVINO computes something wrongly on one of them; keep FP32 (--no-int8), or end the "
            "network earlier (--taps)"
        )


def _publish(request: Request, stage: Path) -> None:
    """Move the files to their place; the card, by which a backbone is found, comes last."""
    card = request.out / f"{request.name}.json"
    lock = request.out / f".{request.name}.lock"
    try:
        lock.touch(exist_ok=False)
    except FileExistsError as error:
        raise BackboneError(
            f"{lock}: another import is writing this backbone; take another name, or delete this "
            "file if there is none"
        ) from error
    try:
        if card.exists():
            if not request.replace:
                raise BackboneError(f"{card}: appeared meanwhile; take another name, or --replace")
            card.unlink()
        for kind in ("bin", "xml", "json"):
            (stage / f"{request.name}.{kind}").replace(request.out / f"{request.name}.{kind}")
    finally:
        lock.unlink()


def _remove_old_parts(folder: Path) -> None:
    """Remove what imports left that were killed more than a day ago."""
    for path in folder.glob(f"{_PART}*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > _OLD_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
