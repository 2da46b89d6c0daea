"""A process that works in a slot; an outside witness counts how many do so at a time.

Usage: slot_holder.py LIMIT NAME FOLDER [PICTURES [SECONDS]]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from engine.slots import engine_slot


def main() -> None:
    limit, name, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    pictures = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    seconds = float(sys.argv[5]) if len(sys.argv) > 5 else 0.01
    with engine_slot(limit) as slot:
        for number in range(pictures):
            if number:
                slot.give_way()
            mark = folder / f"{name}.inside"
            mark.touch()
            inside = sum(path.suffix == ".inside" for path in folder.iterdir())
            # One write of a short line, at the end: lines of several processes do not mix.
            descriptor = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{name} {inside}\n".encode())
            os.close(descriptor)
            time.sleep(seconds)
            mark.unlink()


if __name__ == "__main__":
    main()
