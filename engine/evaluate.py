"""Command ``python -m engine.evaluate``: a head on the test rows of a container."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from engine.cli import (
    EXIT_DONE,
    check_files,
    command_line,
    evaluation_table,
    leave,
    report,
    run,
    step_bar,
    write_study,
)

DESCRIPTION = """\
Judge a head on the rows of a container that it was not trained on: the test rows where there are
marks, else all rows (then make sure that the container is not the one it was trained from).
Nothing is tuned here. Floors (metadata, image border, raw pixels) are cross-validated within these
rows. Research use only."""

EPILOG = """\
examples:
  python -m engine.evaluate chest.safetensors other-hospital.hilum --report result.html
  python -m engine.evaluate chest.safetensors other-hospital.hilum --compare older.safetensors
      both heads on the same rows, and the difference with its interval over patients

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
    add(
        "--compare",
        metavar="HEAD.safetensors",
        help="another head of the same classes, judged on the same rows and compared",
    )
    add(
        "--no-floors",
        action="store_true",
        help="do not measure what metadata, border and raw pixels alone would reach",
    )
    add("--json", metavar="M.json", help="write the figures there")
    add("--report", metavar="R.html", help="write a page with figures, curves, floors, subgroups")
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
    inputs = [arguments.head, arguments.data, *filter(None, (arguments.compare,))]
    check_files(options, inputs, (), arguments.json, page=arguments.report)
    return run(lambda: _evaluate(arguments))


def _evaluate(arguments: argparse.Namespace) -> int:
    import engine

    head = engine.load_head(arguments.head)
    other = None if arguments.compare is None else engine.load_head(arguments.compare)
    with (
        engine.open_container(arguments.data, mode="read") as container,
        step_bar("judging", quiet=arguments.quiet) as progress,
    ):
        study = engine.study_evaluation(
            head,
            container,
            arguments.split,
            other=other,
            floors=not arguments.no_floors,
            progress=progress,
        )
    write_study(study, arguments.json, arguments.report)
    if not arguments.quiet:
        figures = study.to_json()
        print(f"{figures['split']} rows: {evaluation_table(figures)}")
    for warning in study.warnings:
        report(f"warning: {warning}")
    return EXIT_DONE


if __name__ == "__main__":
    leave(main())
