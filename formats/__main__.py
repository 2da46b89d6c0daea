"""Command line over containers: ``python -m formats COMMAND FILE...``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from formats import _convert_commands, _edit_commands, _inspect_commands, _sign_commands
from formats.console import PRIVACY
from formats.errors import EngineError

__all__ = ["PRIVACY", "main"]

_DESCRIPTION = """\
Look into containers (.hilum files), check them, and make others of them.

A container holds the features that a backbone made of many X-rays, with labels, train/valid/test
marks, patient groups and notes on how it was made. It holds no pixels, unless
engine.extract --floors put them there.
"""
_EPILOG = """\
examples:
  {prog} inspect chest.hilum            what is in it, how many rows of each class and split
  {prog} inspect --json chest.hilum     the same for a program, one JSON object a file
  {prog} verify *.hilum                 compare every byte with its checksums
  {prog} merge a.hilum b.hilum -o c.hilum
  {prog} subset chest.hilum -o train.hilum --split train
  {prog} withdraw chest.hilum --group 17 -o chest2.hilum
  {prog} resplit chest.hilum -o chest2.hilum --fractions 70,10,20
  {prog} export chest.hilum -o chest.npz
  {prog} import chest.npz -o chest.hilum
  {prog} sign chest.hilum --key site.pem

`{prog} COMMAND --help` explains a command.

exit status:
  0 all was done    1 some files are not fine (the others are done)    2 wrong usage
"""
_COMMANDS = (_inspect_commands, _edit_commands, _convert_commands, _sign_commands)


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m formats") -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; left out, those of the process.
    prog : str
        Name shown in help texts.

    Returns
    -------
    int
        0 all was done, 1 some files are not fine, 2 wrong usage (raised as SystemExit by argparse).
    """
    arguments = _parser(prog).parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # here, where a full disk or a reader that left can still be told
        return code
    except EngineError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing more to say to anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        if exc.filename is not None:
            print(f"error: {exc.filename}: {exc.strerror or exc}", file=sys.stderr)
            return 1
        print(f"error: the output cannot be written: {exc.strerror or exc}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser(prog: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, epilog=_EPILOG.format(prog=prog), formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parsers(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
