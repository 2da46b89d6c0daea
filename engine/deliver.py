"""Command ``python -m engine.deliver``: results into a PACS, again where that failed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    check_stop,
    command_line,
    count_up_to,
    run,
)
from engine.delivery import (
    Letter,
    Orthanc,
    Store,
    deliver,
    parse_orthanc,
    parse_store,
    read_letter,
    send_letter,
)

DESCRIPTION = """\
Send structured reports and heatmaps that Hilum made to a PACS. Dead letters, which an earlier run
could not send, are removed once they got there. Prints one JSON object a line: file, delivered (a
list of target, status, reason). Any file that Hilum did not make is left alone."""

EPILOG = """\
examples:
  python -m engine.deliver results/dead_letters/
      dead letters, each to where it was to go
  python -m engine.deliver results/ --store PACS@192.168.1.5:11112
      every .dcm of a folder of results
  python -m engine.deliver chest.dcm.sc.dcm --orthanc http://127.0.0.1:8042

targets:
  --store is a DICOM storage provider (C-STORE; Hilum calls itself HILUM), --orthanc an Orthanc
  server. Its user and password: in the address, http://user:password@host:8042, or in the variables
  HILUM_ORTHANC_USER and HILUM_ORTHANC_PASSWORD, where other users of this machine do not see them.
  With targets given, dead letters go there instead of where they were to go.
  Down, busy or full targets are tried three times. Sending again what a PACS has does no harm."""

MOST_ATTEMPTS = 20


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = command_line("deliver", DESCRIPTION, EPILOG)
    add = result.add_argument
    add("input", nargs="+", metavar="FOLDER|FILE", help="folders of .dcm files, or files")
    add(
        "--store",
        action="append",
        type=_typed(parse_store),
        default=[],
        metavar="AET@HOST:PORT",
        help="a DICOM storage provider; may be given several times",
    )
    add(
        "--orthanc",
        action="append",
        type=_typed(parse_orthanc),
        default=[],
        metavar="URL",
        help="an Orthanc server; may be given several times",
    )
    add(
        "--attempts",
        type=count_up_to(MOST_ATTEMPTS),
        default=3,
        metavar="N",
        help="how often a target is tried (default: 3)",
    )
    return result


def _typed(parse: Callable[[str], Store | Orthanc]) -> Callable[[str], Store | Orthanc]:
    """Make argparse say what is wrong; of a ValueError it would repeat what was typed."""

    def read(text: str) -> Store | Orthanc:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


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
    return run(lambda: _deliver(options, arguments))


def _deliver(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    targets = [*arguments.store, *arguments.orthanc]
    found = []
    for text in arguments.input:
        files = list(_files(Path(text)))
        if not files and not os.path.isdir(text):  # noqa: PTH112 - Path.is_dir may raise
            options.error(f"{text}: no such file or folder; check the spelling")
        found += files
    if not targets and any(isinstance(file, Path) for file in found):
        options.error(
            "results need a target: give --store or --orthanc; only dead letters know their own"
        )
    n_failed = 0
    for file in found:
        check_stop()
        results: list[dict[str, Any]]
        if isinstance(file, Letter):
            results = send_letter(file, targets, attempts=arguments.attempts)
        else:
            results = deliver([file], targets, attempts=arguments.attempts)
        n_failed += any(result["status"] != "sent" for result in results)
        shown = [{key: each[key] for key in ("target", "status", "reason")} for each in results]
        path = file.file if isinstance(file, Letter) else file
        print(json.dumps({"file": str(path), "delivered": shown}), flush=True)
    return EXIT_SOME_FAILED if n_failed else EXIT_DONE


def _files(path: Path) -> Iterator[Path | Letter]:
    """List what is to be sent: dead letters as such, other DICOM files as they are."""
    try:
        listed = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    except (OSError, ValueError):
        return
    for file in listed:
        if file.suffix == ".dcm" or file == path:
            letter = read_letter(file.with_suffix(".json"))
            yield file if letter is None else letter


if __name__ == "__main__":
    sys.exit(main())
