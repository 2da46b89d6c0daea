"""Command ``python -m engine.train``: a head from containers, with cross-validation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    check_files,
    command_line,
    count_up_to,
    evaluation_table,
    leave,
    report,
    run,
    seed,
    step_bar,
    write_study,
)

BY_SOURCE = "leave-one-source-out"
LONGEST_NAME = 100

DESCRIPTION = """\
Train a head from containers, in seconds and without the images. The penalty is chosen by inner
folds of the training patients, which also calibrate the probabilities; rows marked valid do both
where there are any, and rows marked test are never touched. Folds never split a patient, and the
same seed gives the same head, bit by bit. Beside the head's figures stand floors: what the same
protocol reaches on metadata alone, and on the image border and raw pixels if the container has
them (engine.extract --floors). The head learns to refuse pictures unlike its own. Containers may be
larger than the memory. Research use only."""

EPILOG = """\
examples:
  python -m engine.train chest.hilum -o chest.safetensors
  python -m engine.train chest.hilum -o chest.safetensors --cv 5 --report chest.html
      also the honest figures: every row judged by a head that never saw its patient; as one page
  python -m engine.train sites.hilum -o all.safetensors --cv leave-one-source-out
      every hospital judged by a head of the others
  python -m engine.train site-a.hilum site-b.hilum -o both.safetensors --head auto
  python -m engine.train chest.hilum -o chest.safetensors --sensitivity 0.95
      thresholds that miss one in twenty on the rows that calibrate
  python -m engine.train site-a.hilum -o a.safetensors --require-signed-by site-a.pub.pem
      only if the owner of that key vouches for it, see python -m formats sign

The JSON holds n_rows, n_groups, classes, accuracy, auroc_macro, auroc (class: value), ci95
(metric: [low, high]), warnings, floors and more; with --cv over the pooled out-of-fold predictions,
without it over the rows that also chose and calibrated, which flatters: use --cv, or
engine.evaluate."""


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = command_line("train", DESCRIPTION, EPILOG)
    add = result.add_argument
    add(
        "data",
        nargs="+",
        metavar="DATA.hilum",
        help="containers of one backbone and one set of classes",
    )
    add("-o", "--output", required=True, metavar="HEAD.safetensors", help="head to write")
    add(
        "--head",
        choices=("linear", "mlp", "fusion", "auto"),
        default="linear",
        help="linear; mlp: one hidden layer; fusion: a linear head for each tap, added with "
        "weights; auto: what inner folds prefer (default: %(default)s)",
    )
    add(
        "--cv",
        type=_folds,
        metavar="K",
        help="also K-fold cross-validation by patient, or leave-one-source-out",
    )
    add(
        "--repeats",
        type=count_up_to(100),
        default=1,
        metavar="N",
        help="cross-validate N times with seeds of their own, and give the means (default: "
        "%(default)s)",
    )
    add(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of folds and starting weights (default: %(default)s)",
    )
    add(
        "--l2",
        type=_l2,
        metavar="X",
        help="strength of the L2 penalty (default: chosen by inner folds)",
    )
    add(
        "--hidden",
        type=count_up_to(4096),
        default=64,
        metavar="N",
        help="units of the hidden layer of --head mlp (default: %(default)s)",
    )
    add(
        "--class-weights",
        choices=("balanced", "none"),
        default="balanced",
        help="balanced: every class counts the same, however rare (default: %(default)s)",
    )
    add(
        "--calibration",
        choices=("temperature", "isotonic", "auto", "none"),
        default="temperature",
        help="how probabilities are made to mean what they say (default: %(default)s)",
    )
    thresholds = result.add_mutually_exclusive_group()
    thresholds.add_argument(
        "--sensitivity",
        type=_share,
        metavar="X",
        help="choose thresholds that find this share of each class, e.g. 0.95 (default: the "
        "largest mean of sensitivity and specificity)",
    )
    thresholds.add_argument(
        "--specificity",
        type=_share,
        metavar="X",
        help="choose thresholds that leave this share of the others alone",
    )
    add(
        "--refusal-rate",
        type=_refusal_rate,
        default=0.01,
        metavar="X",
        help="share of unseen images of the same sources that the head may refuse as unlike its "
        "own, up to 0.5 (default: %(default)s)",
    )
    add(
        "--no-floors",
        action="store_true",
        help="do not measure what metadata, border and raw pixels alone would reach",
    )
    add(
        "--name",
        type=_name,
        metavar="NAME",
        help="the head's name in predictions (default: the output's name)",
    )
    add(
        "--require-signed-by",
        action="append",
        default=[],
        metavar="KEY.pub.pem",
        help="learn only if every container has a valid signature (DATA.hilum.sig) by this public "
        "key, or by one of several if given again",
    )
    add("--json", metavar="M.json", help="write the figures there")
    add(
        "--report",
        metavar="R.html",
        help="write a page with figures, curves, floors, subgroups, learning curve and model card",
    )
    add("--quiet", action="store_true", help="no progress bar and no table; errors are still shown")
    return result


def _printable(name: str) -> str:
    """Turn a file name of any bytes into a name that could be given."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)[:LONGEST_NAME]


def _folds(text: str) -> int | str:
    if text == BY_SOURCE:
        return text
    try:
        value = count_up_to(1000)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor {BY_SOURCE}") from error
    if value < 2:
        raise argparse.ArgumentTypeError("cross-validation needs 2 folds or more")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _l2(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1, such as 0.95")
    return value


def _refusal_rate(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number above 0 and up to 0.5, such as 0.01"
        )
    return value


def _name(text: str) -> str:
    # it is written into every result, and printed on terminals
    if not text.strip() or not text.isprintable() or len(text) > LONGEST_NAME:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one line of 1 to {LONGEST_NAME} printable characters"
        )
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Returns
    -------
    int
        Exit code.
    """
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.repeats > 1 and arguments.cv is None:
        options.error("--repeats repeats a cross-validation: say which with --cv, such as --cv 5")
    inputs = (*arguments.data, *arguments.require_signed_by)
    check_files(options, inputs, (arguments.output,), arguments.json, page=arguments.report)
    return run(lambda: _train(arguments))


def _train(arguments: argparse.Namespace) -> int:
    import engine
    import formats

    formats.check_head_path(arguments.output)
    with ExitStack() as stack:
        # Read, not mapped: what was read of a mapping counts as memory of this process.
        containers = [
            stack.enter_context(engine.open_container(path, mode="read")) for path in arguments.data
        ]
        progress = stack.enter_context(step_bar("opening", quiet=arguments.quiet))
        if arguments.require_signed_by:
            try:
                formats.require_signatures(
                    containers,
                    arguments.require_signed_by,
                    progress=lambda done, total: progress(done, total, "checking signatures"),
                )
            except formats.SignatureError as error:
                # Refused, whatever the reason: a signature that is missing is no wrong path.
                report(f"error: {error}")
                return EXIT_SOME_FAILED

        study = engine.study_head(
            containers,
            kind=arguments.head,
            l2=arguments.l2,
            hidden=arguments.hidden,
            class_weights="balanced" if arguments.class_weights == "balanced" else None,
            seed=arguments.seed,
            cv=arguments.cv,
            repeats=arguments.repeats,
            calibration=arguments.calibration,
            sensitivity=arguments.sensitivity,
            specificity=arguments.specificity,
            refusal_rate=arguments.refusal_rate,
            name=arguments.name or _printable(Path(arguments.output).stem),
            floors=not arguments.no_floors,
            curve=arguments.report is not None,
            progress=progress,
        )
    head = study.head
    write_study(study, arguments.json, arguments.report, head=arguments.output)
    if not arguments.quiet:
        print(evaluation_table(study.to_json()))
        print(f"measured by: {study.protocol}")
        chosen = f" (L2 {head.training['l2']:g}{'' if arguments.l2 is not None else ', chosen'})"
        print(
            f"{arguments.output}: {head.kind} head {head.name!r}{chosen} for "
            f"{', '.join(head.classes)}"
        )
    for warning in study.warnings:
        report(f"warning: {warning}")
    return EXIT_DONE


if __name__ == "__main__":
    leave(main())
