"""The compiled reader: its declarations, its library and the dtypes of its structures.

The only module that imports the compiled part. Sizes, offsets and constants are asked of the C
declarations (``hilum_abi.h``), never typed again. Importing it needs NumPy and cffi's run-time
part (``_cffi_backend``) only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from formats._generated import import_generated

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

__all__ = ["HEADER_DTYPE", "crc32c", "ffi", "lib"]

_MISSING = "the compiled reader is missing; in a checkout run: pip install -e ."
_SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}


def _load() -> tuple[Any, Any]:
    """Load the declarations and the library beside them.

    In an editable install both lie in site-packages while this file lies in the checkout:
    hence beside ``_hilum``, not beside this file.
    """
    declarations = import_generated("formats._hilum", _MISSING)
    path = Path(declarations.__file__).with_name("libhilum" + _SUFFIXES.get(sys.platform, ".so"))
    try:
        library: Any = declarations.ffi.dlopen(str(path))
    except OSError as exc:
        raise ImportError(f"{_MISSING} ({exc})", name="formats._hilum", path=str(path)) from exc
    found = int(library.hilum_abi_version())
    expected = int(library.HILUM_ABI_VERSION)
    if found != expected:
        raise ImportError(
            f"{path}: its interface has version {found}, formats/_hilum.py was made for "
            f"{expected}; run: pip install --force-reinstall hilum (in a checkout: -e .)",
            name="formats._hilum",
            path=str(path),
        )
    return declarations.ffi, library


def _dtype(ctype: Any) -> np.dtype[Any]:
    """Derive the NumPy dtype of a C type, with C's offsets and size."""
    if ctype.kind == "struct":
        names = [name for name, _ in ctype.fields]
        fields = [field for _, field in ctype.fields]
        return np.dtype(
            {
                "names": names,
                "formats": [_dtype(field.type) for field in fields],
                "offsets": [field.offset for field in fields],
                "itemsize": ffi.sizeof(ctype),
            }
        )
    if ctype.kind == "array":
        if ctype.item.cname == "char":
            return np.dtype(f"S{ctype.length}")
        return np.dtype((_dtype(ctype.item), (ctype.length,)))
    sign = "i" if ctype.cname.startswith("int") else "u"
    return np.dtype(f"<{sign}{ffi.sizeof(ctype)}")


ffi: Any
lib: Any
ffi, lib = _load()

HEADER_DTYPE: np.dtype[Any] = _dtype(ffi.typeof("hilum_header"))
"""Header of a container as one structured element, 4096 bytes, with its column descriptors."""


def crc32c(buffer: ReadableBuffer | NDArray[Any], crc: int = 0) -> int:
    """Compute the CRC-32C checksum of a buffer, without copying it.

    Parameters
    ----------
    buffer : C-contiguous buffer
        ``bytes``, ``memoryview``, NumPy array, memory map, ...
    crc : int
        Checksum of what came before, 0 to start: ``crc32c(b, crc32c(a)) == crc32c(a + b)``.

    Returns
    -------
    int
        Checksum in [0, 2**32).

    Raises
    ------
    ValueError
        The buffer is not C-contiguous.
    OverflowError
        `crc` is outside [0, 2**32).

    References
    ----------
    RFC 3720 (iSCSI), appendix B.4; polynomial 0x1EDC6F41 (Castagnoli).
    """
    view = ffi.from_buffer(buffer)
    return int(lib.hilum_crc32c(crc, view, len(view)))
