"""What a file looks like by its first bytes, for messages: it may not be what it was given as."""

from __future__ import annotations

from pathlib import Path

from formats._atomic import open_regular

__all__ = ["MAGIC", "PART_MAGIC", "describe_first_bytes"]

MAGIC = b"\x89HILUM\r\n"
PART_MAGIC = b"\x89HILPART"


def describe_first_bytes(path: Path) -> str:
    """Say what a file that is no container looks like.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        A clause such as ``it starts like a PNG image (89 50 4E 47 0D 0A 1A 0A)``.
    """
    try:
        with open_regular(path) as file:
            head = file.read(256)
    except OSError as exc:
        return f"its first bytes cannot be read ({exc.strerror})"
    if not head:
        return "the file is empty (0 bytes)"
    shown = head[:8].hex(" ").upper()
    if head.startswith(PART_MAGIC):
        return f"it is an unfinished container ({shown})"
    if len(head) < len(MAGIC) and MAGIC.startswith(head):
        return f"it ends after {len(head)} bytes ({shown})"
    if head.startswith(b"\x89HILUM\n"):
        return f"its line ends were translated, as when copied in text mode ({shown})"
    known = (
        (b"\x89PNG", "a PNG image"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"II*\0", "a TIFF image"),
        (b"MM\0*", "a TIFF image"),
        (b"PK\x03\x04", "a ZIP archive (or .npz)"),
        (b"\x1f\x8b", "gzip data"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a NumPy .npy file"),
        (b"PAR1", "a Parquet file"),
        (b"ARROW1", "an Arrow file"),
        (b"GGUF", "a GGUF file"),
        (b"%PDF", "a PDF"),
        (b"\x80", "a Python pickle"),
    )
    for magic, name in known:
        if head.startswith(magic):
            return f"it starts like {name} ({shown})"
    if head[128:132] == b"DICM":
        return "it is a DICOM file"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return f"it starts like a safetensors file ({shown})"
    if not head.strip(b"\0"):
        return f"it starts with zeros ({shown})"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return f"it starts with {shown}"
    if all(c.isprintable() or c in "\r\n\t" for c in text):
        return f"it starts like a text file ({text[:24]!r})"
    return f"it starts with {shown}"
