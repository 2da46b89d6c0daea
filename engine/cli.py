"""What every command shares: exit codes, one way to report errors, and the `hilum` dispatcher."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.errors import BackboneError, ChainError, EngineError, ManifestError, MissingPart
from formats.console import parse_seed as seed
from formats.console import printable

if TYPE_CHECKING:
    from types import FrameType

    from engine.study import Study

__all__ = [
    "EXIT_DONE",
    "EXIT_MACHINE",
    "EXIT_SOME_FAILED",
    "EXIT_USAGE",
    "check_files",
    "check_stop",
    "command_line",
    "count_up_to",
    "evaluation_table",
    "leave",
    "main",
    "report",
    "run",
    "seed",
    "step_bar",
    "write_study",
]

EXIT_DONE = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_MACHINE = 3
EXIT_SIGNAL = 128

MOST_THREADS = 64

EXIT_CODES = """\
exit codes:
  0  everything was done
  1  some inputs failed or were refused; the others, if any, were done
  2  the command line, a manifest or an output folder is wrong; nothing was done
  3  this machine cannot run it (full disk, removed drive, missing part)"""

COMMANDS = {
    "extract": ("engine.extract", "X-rays into a container of features"),
    "train": ("engine.train", "a head from containers, with cross-validation"),
    "evaluate": ("engine.evaluate", "a head on the test rows of a container"),
    "predict": ("engine.predict", "answers for images, folders or DICOM files"),
    "serve": ("engine.serve", "a resident worker for PACS hooks"),
    "deliver": ("engine.deliver", "results into a PACS, again where that failed"),
    "doctor": ("engine.doctor", "prepare this machine, and say what it lacks"),
    "models": ("engine.models.__main__", "networks of others as backbones, and what there is"),
    "demo": ("engine.demo", "the whole way on embedded features and synthetic images"),
    "inspect": ("formats.__main__", "what a container holds"),
    "verify": ("formats.__main__", "every checksum of a container, and who signed it"),
    "merge": ("formats.__main__", "join containers into one"),
    "subset": ("formats.__main__", "some rows of a container"),
    "withdraw": ("formats.__main__", "let patients leave a container"),
    "resplit": ("formats.__main__", "divide a container anew into train, valid and test"),
    "export": ("formats.__main__", "a container as npz, safetensors, parquet or csv"),
    "import": ("formats.__main__", "such a file, or a table of features, as a container"),
    "sign": ("formats.__main__", "sign containers"),
    "keygen": ("formats.__main__", "a pair of keys for signing"),
}

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# ENODEV: a drive that was removed
_MACHINE = (*_DISK_FULL, errno.ENODEV)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of examples and leave room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=96)


def command_line(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Make the parser of a command, with the exit codes at the end of its help.

    Parameters
    ----------
    name : str
        As in ``python -m engine.NAME``.
    description, epilog : str
        What it does; examples and what to know.

    Returns
    -------
    argparse.ArgumentParser
        Without options yet.
    """
    return argparse.ArgumentParser(
        prog=f"python -m engine.{name}",
        description=description,
        epilog=f"{epilog}\n\n{EXIT_CODES}",
        formatter_class=_HelpFormatter,
    )


def report(message: str) -> None:
    """Print one line for the person at the keyboard, on standard error.

    Parameters
    ----------
    message : str
        What happened; standard output stays free for results.
    """
    # Names come from others' files: none of them may steer the terminal.
    shown = "".join(
        sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in message
    )
    print(shown, file=sys.stderr, flush=True)


def count_up_to(most: int) -> Callable[[str], int]:
    """Make a reader of counts for the command line.

    Parameters
    ----------
    most : int
        Largest count that makes sense; more would only use up the machine.

    Returns
    -------
    callable
        Takes what was typed; returns 1 to `most` or raises ``argparse.ArgumentTypeError``.
    """

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = 0
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {most}")
        return value

    return read


def check_files(
    options: argparse.ArgumentParser,
    inputs: Iterable[str],
    outputs: Iterable[str | None],
    figures: str | None = None,
    *,
    page: str | None = None,
) -> None:
    """End the command with advice where its files cannot be what they are named for.

    Parameters
    ----------
    options : argparse.ArgumentParser
        Says what is wrong and exits.
    inputs : iterable of str
        Files and folders that are read: they must be there.
    outputs : iterable of (str or None)
        Files that will be written, None is skipped: never an input, never twice the same, and
        each in a folder that is there.
    figures : str or None
        One more of them, JSON: it replaces JSON only.
    page : str or None
        One more, HTML: it replaces HTML only.
    """

    def identity(path: str) -> object:
        try:
            status = os.stat(path)  # noqa: PTH116 - links to one file are one file
        except (OSError, ValueError):
            return os.path.abspath(path)  # noqa: PTH100 - realpath would need rights on the way
        return (status.st_dev, status.st_ino)

    read = set()
    for path in inputs:
        read.add(identity(path))
        try:
            os.stat(path)  # noqa: PTH116 - raises where Path.exists only says no
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            options.error(f"{path}: {reason}; check the spelling")
    written: set[object] = set()
    for path in [output for output in (*outputs, figures, page) if output is not None]:
        if Path(path).name in ("", ".."):
            options.error(f"{path!r} names no file to write; name one")
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir may raise
            options.error(f"{path}: is a folder; name a file in it")
        if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
            options.error(f"{path}: is a device or pipe, not a regular file; name another output")
        if not os.path.isdir(os.path.dirname(path) or "."):  # noqa: PTH112, PTH120
            options.error(f"{path}: its folder does not exist; make it first")
        file = identity(path)
        if file in read:
            options.error(f"{path}: is an input and would be replaced; name another output")
        if file in written:
            options.error(f"{path}: is named for two outputs; name another for one of them")
        written.add(file)
    if figures is not None and not _may_be_replaced(figures, (b"", b"{", b"[")):
        options.error(f"{figures}: is there already and is no JSON; name another file")
    if page is not None and not _may_be_replaced(page, (b"", b"<")):
        options.error(f"{page}: is there already and is no web page; name another file")


def _may_be_replaced(path: str, starts: Sequence[bytes]) -> bool:
    """Whether nothing stands at a path, or nothing that a slip in a command could cost."""
    try:
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists may raise
            return True
        if not os.path.isfile(path):  # noqa: PTH113
            return False
        with open(path, "rb") as stream:  # noqa: PTH123
            start = stream.read(64).lstrip()
    except (OSError, ValueError):
        return True  # writing it says what is wrong
    return start[:1] in starts


@contextlib.contextmanager
def step_bar(title: str, *, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show on standard error how far work of several steps has come, where somebody looks at it.

    Parameters
    ----------
    title : str
        Stands before the bar until the first step says what it is.
    quiet : bool
        No bar at all.

    Yields
    ------
    callable
        Takes what is done, what there is in all, and what is being done; stops if that was asked
        for. Less done than before begins anew.
    """
    from tqdm import tqdm

    with tqdm(
        desc=title,
        disable=quiet or None,  # None: no bar in a pipe or a log
        miniters=0,  # the text changes even where the count does not
        leave=False,
        file=sys.stderr,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
    ) as bar:

        def progress(done: int, total: int, text: str) -> None:
            check_stop()
            if done < bar.n:
                bar.reset()
            bar.total = total
            bar.set_description_str(text, refresh=False)
            bar.update(done - bar.n)

        yield progress


def write_study(
    study: Study, figures: str | None, page: str | None, *, head: str | None = None
) -> None:
    """Write the head, and the files that ``--json`` and ``--report`` name, each whole or not.

    Parameters
    ----------
    study : Study
        What was measured.
    figures, page, head : str or None
        Where to; None writes none.
    """
    import formats

    # All is made before anything is written: what fails here leaves no file.
    made: list[tuple[str, bytes]] = []
    if figures is not None:
        text = json.dumps(study.to_json(), indent=1, allow_nan=False) + "\n"
        made.append((figures, text.encode()))
    if page is not None:
        from engine.report import render_report

        made.append((page, render_report(study).encode()))
    if head is not None:
        study.head.save(head)
    for path, content in made:
        formats.atomic_write(path, content)


def evaluation_table(figures: Mapping[str, Any]) -> str:
    """Lay out the figures of an evaluation for a terminal of 80 columns.

    Parameters
    ----------
    figures : mapping
        As ``engine.Evaluation.to_json`` gives them.

    Returns
    -------
    str
        Several lines, each figure with its patient-level 95 % interval where it has one.
    """
    intervals = figures["ci95"]
    rows = f"{figures['n_rows']} rows of {figures['n_groups']} patients"
    lines = [f"{rows} (95 % intervals over patients)"]
    lines.append(_line("accuracy", figures["accuracy"], intervals.get("accuracy")))
    macro = intervals.get("auroc_macro")
    lines.append(_line("AUROC, mean of classes", figures["auroc_macro"], macro))
    lines += [
        _line(f"AUROC {name}", value, intervals.get(f"auroc:{name}"))
        for name, value in figures["auroc"].items()
    ]
    if figures.get("floors"):
        lines.append("floors: AUROC, mean of classes, by the same protocol on")
        lines += [
            _line(name, floor["auroc_macro"], floor["ci95"].get("auroc_macro"))
            for name, floor in figures["floors"].items()
        ]
    comparison = figures.get("comparison")
    if comparison:
        lines.append(f"less {printable(comparison['name'])} on the same rows (paired):")
        lines += [
            _line(key.replace("_", " "), less["value"], less["ci95"], sign="+")
            for key, less in comparison["difference"].items()
            if less["value"] is not None
        ]
    return "\n".join(lines)


def _line(
    name: str, value: float | None, interval: Sequence[float] | None, *, sign: str = ""
) -> str:
    shown = f"  {printable(name)[:28]:28}"
    if value is None:
        return f"{shown}   -"
    around = ""
    if interval is not None:
        around = f"  [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
    return f"{shown}{value:{sign}6.3f}{around}"


def exit_code_of(error: EngineError | OSError) -> int:
    """Exit code for an error that ended a whole command.

    Parameters
    ----------
    error : EngineError or OSError
        The error; the system's own error behind it decides about disks and folders.

    Returns
    -------
    int
        One of the exit codes of this module.
    """
    if isinstance(error, BackboneError | MissingPart):
        return EXIT_MACHINE
    if isinstance(error, ChainError | ManifestError):
        return EXIT_USAGE
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return EXIT_MACHINE if cause.errno in _MACHINE else EXIT_USAGE
        cause = cause.__cause__
    return EXIT_SOME_FAILED


_stop_asked = False


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    # SIGTERM goes the same way as Ctrl-C, so that a stopped service leaves no partial file either.
    global _stop_asked  # noqa: PLW0603 - a signal handler has nowhere else to write
    _stop_asked = True
    raise KeyboardInterrupt


def check_stop() -> None:
    """Stop if that was asked for, although a library swallowed it.

    C code that asks an object for an attribute or a hash drops whatever is raised meanwhile, also
    KeyboardInterrupt: one Ctrl-C in twenty was lost while libraries were being loaded.

    Raises
    ------
    KeyboardInterrupt
        Since `run` began, Ctrl-C was pressed or SIGTERM came.
    """
    if _stop_asked:
        raise KeyboardInterrupt


def run(command: Callable[[], int]) -> int:
    """Run a command's work and turn every expected error into a message and an exit code.

    Parameters
    ----------
    command : callable
        Does the work; returns the exit code.

    Returns
    -------
    int
        Exit code of the process.
    """
    # File names need not be text: they are read as they are, and printed escaped.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    global _stop_asked  # noqa: PLW0603
    _stop_asked = False
    previous: dict[signal.Signals, Any] = {}
    # not the main thread: whoever started it handles signals
    with contextlib.suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and & in a script want it
                previous[number] = signal.signal(number, _stop)
    try:
        try:
            return command()
        finally:
            # In here: a signal that came while the command took itself apart is noticed now.
            for number, handler in previous.items():
                signal.signal(number, handler)
    except EngineError as error:
        report(f"error: {error}")
        return exit_code_of(error)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, but nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_SOME_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        cure = "; free some space and run it again" if error.errno in _DISK_FULL else ""
        report(f"error: {where}{error.strerror or error}{cure}")
        return exit_code_of(error)
    except KeyboardInterrupt:
        report("stopped: nothing half-written was left behind")
        return EXIT_SIGNAL + signal.SIGINT


def leave(code: int) -> NoReturn:
    """End the process now, without taking it apart.

    For programs that start for one piece of work: freeing the compiled network, NumPy and every
    module one by one took 35 of 250 ms of CPU time, and where numba was loaded up to 0.3 s, for
    memory that the system takes back at once. All files are written and closed by then, and locks
    end with the process.

    Parameters
    ----------
    code : int
        Exit code of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as under pythonw
            # A reader that went away: `run` has said so, or nothing was left to say.
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hilum COMMAND ...``: the same commands as ``python -m engine.COMMAND``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit code of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
    usage = (
        "usage: hilum COMMAND [OPTIONS]\n\n"
        "Chest X-rays into small feature containers once; heads in seconds; predictions offline.\n"
        f"Research use only.\n\ncommands:\n{listing}\n\n"
        "`hilum COMMAND --help` explains a command; `python -m engine.COMMAND` is the same."
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return EXIT_DONE if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        import engine

        print(f"hilum {engine.__version__}")
        return EXIT_DONE
    if arguments[0] not in COMMANDS:
        report(usage)
        report(f"\nerror: no command {arguments[0]!r}; choose from {', '.join(COMMANDS)}")
        return EXIT_USAGE
    module = importlib.import_module(COMMANDS[arguments[0]][0])
    if module.__name__ == "formats.__main__":
        result: int = module.main(arguments, prog="hilum")
    else:
        result = module.main(arguments[1:])
    if argv is None and arguments[0] in ("evaluate", "predict", "train"):
        leave(result)
    return result


if __name__ == "__main__":
    sys.exit(main())
