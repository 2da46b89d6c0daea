"""Generation of ``_hilum.py``, cffi's declarations of the C library; run by CMake.

Usage: ``python formats/_build_ffi.py HEADER OUT``. Only the build needs this file, cffi's
parser and pycparser: what it writes needs ``_cffi_backend`` alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cffi


def main(argv: list[str]) -> int:
    """Write the declarations of a C header as a Python module.

    Parameters
    ----------
    argv : list of str
        Header to read and module to write.

    Returns
    -------
    int
        Exit code: 0 done, 2 usage.
    """
    if len(argv) != 2:
        print("usage: _build_ffi.py HEADER OUT", file=sys.stderr)
        return 2
    header, out = map(Path, argv)
    builder = cffi.FFI()
    # ABI mode (no C source): no Python.h and no compiler is needed for the Python side.
    builder.set_source("formats._hilum", None)
    builder.cdef(header.read_text(encoding="utf-8"))
    builder.emit_python_code(str(out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
