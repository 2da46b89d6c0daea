"""Command ``python -m engine.train``: a head from containers, with cross-validation."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    check_files,
    check_stop,
    command_line,
    count_up_to,
    evaluation_table,
    report,
    run,
    seed,
)

DESCRIPTION = """\
Train a head from containers, in seconds and without the images. Rows marked test are never
touched; rows marked valid decide when to stop and how to calibrate. Without any, a linear head is
fitted until it converges and calibrated by inner folds, and an mlp head is stopped and calibrated
by a tenth of the patients. Folds never split a patient, and the same seed gives the same head, bit
by bit. Containers may be larger than the memory. Research use only."""

EPILOG = """\
examples:
  python -m engine.train chest.hilum -o chest.safetensors
  python -m engine.train chest.hilum -o chest.safetensors --cv 5 --json chest.json
      also the honest figures: every row judged by a head that never saw its patient
  python -m engine.train site-a.hilum site-b.hilum -o both.safetensors --head mlp
  python -m engine.train site-a.hilum -o a.safetensors --require-signed-by site-a.pub.pem
      only if the owner of that key vouches for it, see python -m formats sign

The JSON holds n_rows, n_groups, classes, accuracy, auroc_macro, auroc (class: value) and ci95
(metric: [low, high]); with --cv over the pooled out-of-fold predictions, without it over the rows
that also set the calibration, which flatters a little: use --cv, or engine.evaluate."""


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
        choices=("linear", "mlp"),
        default="linear",
        help="linear, or one hidden layer (default: %(default)s)",
    )
    add("--cv", type=_folds, metavar="K", help="also K-fold cross-validation by patient")
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
        help="strength of the L2 penalty (default: measured, see engine/models/README.md)",
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
        "--name",
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
    add("--quiet", action="store_true", help="no progress bar and no table; errors are still shown")
    return result


def _printable(name: str) -> str:
    """Turn a file name of any bytes into text."""
    return os.fsencode(name).decode("utf-8", "replace")


def _folds(text: str) -> int:
    value = count_up_to(1000)(text)
    if value < 2:
        raise argparse.ArgumentTypeError("cross-validation needs 2 folds or more")
    return value


def _l2(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


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
    inputs = (*arguments.data, *arguments.require_signed_by)
    check_files(options, inputs, (arguments.output,), arguments.json)
    return run(lambda: _train(arguments))


def _train(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    import engine
    import formats

    formats.check_head_path(arguments.output)
    with ExitStack() as stack:
        # Read, not mapped: what was read of a mapping counts as memory of this process.
        containers = [
            stack.enter_context(engine.open_container(path, mode="read")) for path in arguments.data
        ]
        bar = stack.enter_context(
            tqdm(
                desc="opening",
                disable=arguments.quiet or None,
                # The text changes even where the count does not.
                miniters=0,
                leave=False,
                file=sys.stderr,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
            )
        )

        def progress(done: int, total: int, text: str = "checking signatures") -> None:
            check_stop()
            bar.total = total
            bar.set_description_str(text, refresh=False)
            bar.update(done - bar.n)

        if arguments.require_signed_by:
            try:
                formats.require_signatures(
                    containers, arguments.require_signed_by, progress=progress
                )
            except formats.SignatureError as error:
                # Refused, whatever the reason: a signature that is missing is no wrong path.
                report(f"error: {error}")
                return EXIT_SOME_FAILED
            bar.reset()

        head = engine.fit_head(
            containers,
            kind=arguments.head,
            l2=arguments.l2,
            hidden=arguments.hidden,
            class_weights="balanced" if arguments.class_weights == "balanced" else None,
            seed=arguments.seed,
            cv=arguments.cv,
            name=arguments.name or _printable(Path(arguments.output).stem),
            progress=progress,
        )
    head.save(arguments.output)
    if arguments.json is not None:
        text = json.dumps(head.metrics, indent=1, allow_nan=False) + "\n"
        formats.atomic_write(arguments.json, text.encode())
    if not arguments.quiet:
        print(evaluation_table(head.metrics))
        print(f"measured by: {head.metrics['protocol']}")
        print(f"{arguments.output}: {head.kind} head {head.name!r} for {', '.join(head.classes)}")
    for note in head.metrics.get("notes", ()):
        report(f"note: {note}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
