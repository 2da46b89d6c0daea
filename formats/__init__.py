"""Files and nothing else: containers of features, and head files.

Importing it needs NumPy and the compiled reader only; ``formats/container.md`` describes the
bytes.
"""

from __future__ import annotations

from formats._atomic import atomic_write
from formats.container import SPLITS, Container, open_container
from formats.errors import (
    ContainerError,
    Corrupt,
    EngineError,
    HeadFileError,
    NotAContainer,
    NotesError,
    Truncated,
    UnsupportedVersion,
    WriteError,
)
from formats.head_file import check_head_path, read_head, write_head
from formats.notes import canonical_json, preprocessing_digest, validate_notes
from formats.writer import ContainerWriter, write_container

__all__ = [
    "SPLITS",
    "Container",
    "ContainerError",
    "ContainerWriter",
    "Corrupt",
    "EngineError",
    "HeadFileError",
    "NotAContainer",
    "NotesError",
    "Truncated",
    "UnsupportedVersion",
    "WriteError",
    "atomic_write",
    "canonical_json",
    "check_head_path",
    "open_container",
    "preprocessing_digest",
    "read_head",
    "validate_notes",
    "write_container",
    "write_head",
]
