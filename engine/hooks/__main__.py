"""Command ``python -m engine.hooks``: says where the recipes are, or copies them to a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
SETTINGS = "hilum.conf"
_OURS = ("__init__.py", "__main__.py")


def recipes() -> list[Path]:
    """List the files of the recipes, by name."""
    found = [path for path in SOURCE.iterdir() if path.is_file() and path.name not in _OURS]
    return sorted(found, key=lambda path: path.name)


def copy_recipes(folder: Path) -> list[str]:
    """Copy the recipes, the shell scripts executable; settings that are there are kept.

    Parameters
    ----------
    folder : Path
        Made if missing.

    Returns
    -------
    list of str
        Names of the files that were written.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in recipes():
        target = folder / source.name
        if source.name == SETTINGS and target.exists():
            continue  # an update must not undo what was set up
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(source.read_bytes())
        part.chmod(0o755 if source.suffix == ".sh" else 0o644)
        part.replace(target)
        written.append(source.name)
    return written


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
    options = argparse.ArgumentParser(
        prog="python -m engine.hooks",
        description="Recipes that connect a PACS with Hilum: storescp, Orthanc, Conquest, systemd, "
        "Windows tasks, installation without internet. README.md among them tells how.",
    )
    options.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="copy them there (default: only say where they are)",
    )
    arguments = options.parse_args(argv)
    if arguments.folder is None:
        print(SOURCE)
        return 0
    folder = Path(arguments.folder)
    try:
        written = copy_recipes(folder)
    except OSError as error:
        print(f"error: {folder}: cannot be written ({error.strerror})", file=sys.stderr)
        return 3
    print(f"{len(written)} files in {folder}; read {folder / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
