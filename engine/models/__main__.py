"""``python -m engine.models``: import the networks of others, and list the backbones there are."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.cli import EXIT_MACHINE, EXIT_USAGE, report, run
from engine.errors import BackboneError, EngineError, MismatchError, MissingPart

__all__ = ["main"]

EPILOG = """\
examples:
  python -m engine.models import --module my.nets:resnet18 --weights resnet18.pt \\
      --name my-resnet18 --images XRAYS
  python -m engine.models import densenet121.onnx --name my-densenet --images XRAYS
  python -m engine.models import SAVED_MODEL --name my-vgg --images XRAYS \\
      --mean 103.939,116.779,123.68 --std 1 --white 255
  python -m engine.extract XRAYS --backbone my-resnet18 -o xrays.hilum

A network of any framework is measured on your pictures once; nothing of them is kept. FACTORY is
Python and is run; files of torch.export.save and torch.jit.save are programs too: import those of
people you trust. Weights, ONNX files and SavedModels are read as data.

exit codes:
  0  the backbone is there
  2  the network, the pictures or an option do not do; nothing was written
  3  this machine lacks something"""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leave room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=96)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    try:
        found = int(height), int(width) if cross else int(height)
    except ValueError:
        found = (0, 0)
    if min(found) < 16 or max(found) > 4096:
        raise argparse.ArgumentTypeError(f"{text!r}, expected HEIGHTxWIDTH of 16 to 4096 pixels")
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected one number or three") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.models",
        description="Import the networks of others as backbones, and list the backbones there are.",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the backbones of this installation and your own")
    listing.add_argument("--json", action="store_true", help="as JSON, a list of model cards")
    command = commands.add_parser(
        "import",
        help="a network of PyTorch, ONNX or TensorFlow as a backbone",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
    )
    add = command.add_argument
    add(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="ONNX file, SavedModel folder, or what torch.export.save or torch.jit.save wrote",
    )
    add("--name", required=True, help="of the backbone")
    add(
        "--module",
        metavar="MOD:FACTORY",
        help="what returns a torch.nn.Module when called; your code, and it is run",
    )
    weights = command.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=Path, metavar="FILE", help="its state dict: .pt, .pth or .safetensors"
    )
    weights.add_argument(
        "--own-weights", action="store_true", help="FACTORY returns it with its weights"
    )
    add("--images", type=Path, metavar="FOLDER", help="X-rays to quantize on")
    add("--n-images", type=int, default=240, metavar="N", help="of them, at most (default: 240)")
    add("--no-int8", action="store_true", help="keep FP32")
    add(
        "--taps",
        default="",
        metavar="A,B,C",
        help="layers whose feature maps come out, or NAME=LAYER (default: the last map before "
        "each change of stride, and the final one)",
    )
    add(
        "--least-stride",
        type=int,
        default=4,
        metavar="N",
        help="found taps of smaller strides are left out: large, and each costs time (default: 4)",
    )
    add(
        "--default-taps",
        metavar="T:P,...",
        help="what extraction takes by default, as TAP:POOLING,... (default: strides 8 and 16)",
    )
    add("--input-size", type=_size, metavar="HxW", help="default: the file's, or 224x224")
    add("--mean", type=_numbers, metavar="M", help="one number, or one for each channel")
    add("--std", type=_numbers, metavar="S", help="the same (default for both: ImageNet's)")
    add(
        "--white",
        type=float,
        metavar="W",
        help="value of a white pixel before --mean and --std: 1 (default) or 255",
    )
    add(
        "--channels",
        type=int,
        choices=(1, 3),
        help="of the network's input; three are folded to one (default: the file's, or 3)",
    )
    add("--licence", default="not stated", help="of the weights, for the model card")
    add("--origin", default="not stated", help="whose they are, for the model card")
    add("--title", default="", help="a line for people, for the model card")
    add("--replace", action="store_true", help="replace your own backbone of that name")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to (default: HILUM_MODELS or your data folder, where backbones are found)",
    )
    return parser


def _list(as_json: bool) -> int:
    from engine.backbone import MODELS_DIR, find_model, list_backbones, own_models_dir

    cards = []
    for name in list_backbones():
        path = find_model(name, "json")
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            taps = [f"{tap['name']} ({tap['channels']})" for tap in card["taps"]]
            kind = "FP32" if card["quantization"]["method"].startswith("none") else "INT8"
            size = f"{card['input']['height']}x{card['input']['width']}"
            text = (
                f"{name}\n  {card['title']}\n  {size}, {kind}, licence: {card['licence']}\n"
                f"  taps: {', '.join(taps)}\n  default: {card['default_taps']}\n"
                f"  {'shipped' if path.parent == MODELS_DIR else path.parent}"
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            print(f"{path}: the model card cannot be read ({error})", file=sys.stderr)
            continue
        cards.append(card)
        if not as_json:
            print(text)
    if as_json:
        print(json.dumps(cards, ensure_ascii=False))
    elif (own := own_models_dir()) is not None:
        print(f"\nyour own are looked for in {own}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from engine.backbone import own_models_dir
    from engine.models.graph import Normalisation
    from engine.models.importing import Request, import_backbone
    from engine.pooling import parse_taps

    if arguments.default_taps is not None:
        # Poolings are checked now, whether the network has the taps when it is known.
        asked = (part.partition(":")[0].strip() for part in arguments.default_taps.split(","))
        try:
            parse_taps(arguments.default_taps, None, dict.fromkeys(asked, 1))
        except MismatchError as error:
            raise BackboneError(f"--default-taps: {error}") from error
    out = arguments.output or own_models_dir()
    if out is None:
        raise BackboneError("no folder to write to; name one: -o FOLDER")
    normalisation = None
    if (arguments.mean, arguments.std, arguments.white) != (None, None, None):
        if arguments.mean is None or arguments.std is None:
            raise BackboneError(
                "--mean, --std: give both; a network was trained with both (0 and 1: pixels as "
                "they are)"
            )
        white = 1.0 if arguments.white is None else arguments.white
        normalisation = Normalisation(arguments.mean, arguments.std, white)
    start = time.monotonic()

    def tell(line: str) -> None:
        report(f"{time.monotonic() - start:7.1f} s  {line}")

    card = import_backbone(
        Request(
            name=arguments.name,
            out=out,
            source=arguments.source,
            module=arguments.module,
            weights=arguments.weights,
            own_weights=arguments.own_weights,
            images=arguments.images,
            taps=tuple(part for part in arguments.taps.split(",") if part.strip()),
            least_stride=arguments.least_stride,
            default_taps=arguments.default_taps,
            input_size=arguments.input_size,
            channels=arguments.channels,
            normalisation=normalisation,
            int8=not arguments.no_int8,
            n_images=arguments.n_images,
            licence=arguments.licence,
            origin=arguments.origin,
            title=arguments.title,
            replace=arguments.replace,
        ),
        report=tell,
    )
    print(f"{card['name']}: {', '.join(tap['name'] for tap in card['taps'])}")
    print(f"default taps: {card['default_taps']}")
    what = "its source" if card["import"]["seen_in_source"] else "the converted graph"
    print(f"difference of FP32 from {what}: {json.dumps(card['import']['taps'])}")
    if "agreement_with_fp32" in card:
        cosine = card["agreement_with_fp32"]["all"].get("cosine_mean")
        print(f"cosine of INT8 features with FP32: {cosine}")
    print(f"sha256 {card['sha256']}")
    own = own_models_dir()
    if own is None or out.resolve() != own.resolve():
        print(f"it is found where HILUM_MODELS={out} is set")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Returns
    -------
    int
        Exit code.
    """
    arguments = _parser().parse_args(argv)

    def command() -> int:
        try:
            return _list(arguments.json) if arguments.command == "list" else _import(arguments)
        except MissingPart as error:
            report(f"error: {error}")
            return EXIT_MACHINE
        except EngineError as error:
            report(f"error: {error}")
            return EXIT_USAGE

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
