"""What names a person or a computer in a message, and the message without it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["scrub", "scrub_all"]


def scrub(text: str) -> str:
    """Take out of a text what names a person or a computer.

    Parameters
    ----------
    text : str
        A message or a path.

    Returns
    -------
    str
        The home folder is ``~``, the folder of Hilum and that of Python have names of their own,
        and so have heads; names of users and of this computer are left out.
    """
    folders = {
        str(Path(__file__).parent): "hilum",
        sysconfig.get_paths()["purelib"]: "site-packages",
        sys.prefix: "python",
        tempfile.gettempdir() if _has_temporary_folder() else "": "tmp",
    }
    with contextlib.suppress(RuntimeError):
        folders[str(Path.home())] = "~"
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder, folders[folder])
    text = re.sub(r"(/home/|/Users/|\\Users\\)[^/\\\s'\":]+", "~", text)
    # The rest of a path that is not below one of these may hold anything.
    text = re.sub(r"(?<![\w.~/])(?:[A-Za-z]:\\|/)[^\s'\":;,()]*[/\\]", "…/", text)
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    names |= {platform.node(), platform.node().partition(".")[0], os.environ.get("HOSTNAME", "")}
    for name in sorted(names - {"", "root", "localhost"}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", text)
    return text


def _has_temporary_folder() -> bool:
    try:
        tempfile.gettempdir()
    except OSError:
        return False
    return True


def scrub_all(value: Any) -> Any:
    """Scrub every text in something that is to become JSON.

    Parameters
    ----------
    value : object
        Texts, numbers, mappings and sequences.

    Returns
    -------
    object
        The same, its texts as :func:`scrub` leaves them.
    """
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: scrub_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_all(item) for item in value]
    return value
