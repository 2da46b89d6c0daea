"""Command ``python -m engine.evaluate``: a head on the test rows of a container."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from engine.cli import (
    EXIT_DONE,
    check_files,
    command_line,
    evaluation_table,
    report,
    run,
)

DESCRIPTION = """\
Judge a head on the rows of a container that it was not trained on: the test rows where there are
marks, else all rows (then make sure that the container is not the one it was trained from).
Nothing is tuned here. Research use only."""

EPILOG = """\
example:
  python -m engine.evaluate chest.safetensors other-hospital.hilum --json result.json

Head and container must come from the same backbone and preprocessing; strangers are refused."""


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = command_line("evaluate", DESCRIPTION, EPILOG)
    add = result.add_argument
    add("head", metavar="HEAD.safetensors", help="trained head")
    add("data", metavar="DATA.hilum", help="container to judge it on")
    add(
        "--split",
        choices=("test", "valid", "train", "all"),
        help="rows to use (default: test where rows are marked, else all)",
    )
    add("--json", metavar="M.json", help="write the figures there")
    add("--quiet", action="store_true", help="no table; errors are still shown")
    return result


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
    check_files(options, (arguments.head, arguments.data), (), arguments.json)
    return run(lambda: _evaluate(arguments))


def _evaluate(arguments: argparse.Namespace) -> int:
    import engine
    import formats

    head = engine.load_head(arguments.head)
    with engine.open_container(arguments.data) as container:
        evaluation = engine.evaluate_head(head, container, split=arguments.split)
    figures = evaluation.to_json()
    if arguments.json is not None:
        text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        formats.atomic_write(arguments.json, text.encode())
    if not arguments.quiet:
        print(f"{figures['split']} rows: {evaluation_table(figures)}")
    for note in figures.get("notes", ()):
        report(f"note: {note}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
