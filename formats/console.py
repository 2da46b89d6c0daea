"""What the commands over containers share: progress bars, sizes and safe printing."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["PRIVACY", "parse_seed", "printable", "progress_bar", "size_text"]

PRIVACY = (
    "Derived from health images; treat as pseudonymised personal data unless the controller "
    "documents otherwise for a named recipient."
)


def parse_seed(text: str) -> int:
    """Read a seed from the command line.

    Parameters
    ----------
    text : str
        What was typed.

    Returns
    -------
    int
        0 or more.

    Raises
    ------
    argparse.ArgumentTypeError
        Not a whole number, or negative.
    """
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def printable(text: str) -> str:
    """Keep what a stranger's notes say from steering the terminal, or from not fitting it.

    Parameters
    ----------
    text : str
        One line.

    Returns
    -------
    str
        With ``?`` for what cannot be shown.
    """
    shown = "".join(c if c.isprintable() else "?" for c in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return shown.encode(encoding, "replace").decode(encoding)


def size_text(n_bytes: int) -> str:
    """Say how large something is in units a person reads.

    Parameters
    ----------
    n_bytes : int
        Size in bytes.

    Returns
    -------
    str
        For example ``1.3 GB``.
    """
    if n_bytes < 1000:
        return f"{n_bytes} bytes"
    value = float(n_bytes)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


@contextlib.contextmanager
def progress_bar(
    title: str, *, quiet: bool = False, unit: str = "B"
) -> Iterator[Callable[[int, int], None]]:
    """Show on standard error how far long work has come, where somebody looks at it.

    Parameters
    ----------
    title : str
        Stands before the bar.
    quiet : bool
        No bar at all.
    unit : str
        What is counted.

    Yields
    ------
    callable
        To be called with what is done and what there is in all. Less done than before, or another
        total, starts the bar anew: a next stage has begun.
    """
    from tqdm import tqdm

    with tqdm(
        desc=printable(title),
        unit=unit,
        unit_scale=True,
        leave=False,
        disable=True if quiet else None,  # None: no bar in a pipe or a log
        file=sys.stderr,
    ) as bar:

        def advance(done: int, total: int) -> None:
            if done < bar.n or bar.total not in (None, total):
                bar.reset(total)
            bar.total = total
            bar.update(done - bar.n)

        yield advance
