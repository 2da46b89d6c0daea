"""Generation of cffi's declarations of a C library as a Python module; run by CMake.

Usage: ``python formats/_build_ffi.py MODULE HEADER OUT``. Only the build needs this file, cffi's
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
        Full name of the module, header to read and file to write.

    Returns
    -------
    int
        Exit code: 0 done, 2 usage.
    """
    if len(argv) != 3:
        print("usage: _build_ffi.py MODULE HEADER OUT", file=sys.stderr)
        return 2
    module = argv[0]
    header, out = map(Path, argv[1:])
    builder = cffi.FFI()
    # ABI mode (no C source): no Python.h and no compiler is needed for the Python side.
    builder.set_source(module, None)
    builder.cdef(header.read_text(encoding="utf-8"))
    builder.emit_python_code(str(out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
