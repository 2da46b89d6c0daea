"""Files and nothing else: containers of features, and head files.

Importing it needs NumPy and the compiled reader only; ``formats/container.md`` describes the
bytes. Names are loaded when first used: a program that reads never loads the writer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from formats._atomic import atomic_write, open_regular
    from formats._json import canonical_json, preprocessing_digest
    from formats.container import SPLITS, Container, open_container
    from formats.convert import export_container, import_container
    from formats.editing import (
        EditReport,
        merge_containers,
        resplit_container,
        subset_container,
        withdraw_rows,
    )
    from formats.errors import (
        ContainerError,
        Corrupt,
        EngineError,
        HeadFileError,
        NotAContainer,
        NotesError,
        SignatureError,
        Truncated,
        UnsupportedVersion,
        WriteError,
    )
    from formats.head_file import check_head_path, read_head, write_head
    from formats.notes import validate_notes
    from formats.signing import (
        KeyPair,
        make_key_pair,
        require_signatures,
        sign_container,
        verify_signature,
    )
    from formats.splitting import assign_splits
    from formats.writer import ContainerWriter, write_container

_HOMES = {
    "SPLITS": "container",
    "Container": "container",
    "ContainerError": "errors",
    "ContainerWriter": "writer",
    "Corrupt": "errors",
    "EditReport": "editing",
    "EngineError": "errors",
    "HeadFileError": "errors",
    "KeyPair": "signing",
    "NotAContainer": "errors",
    "NotesError": "errors",
    "SignatureError": "errors",
    "Truncated": "errors",
    "UnsupportedVersion": "errors",
    "WriteError": "errors",
    "assign_splits": "splitting",
    "atomic_write": "_atomic",
    "canonical_json": "_json",
    "check_head_path": "head_file",
    "export_container": "convert",
    "import_container": "convert",
    "make_key_pair": "signing",
    "merge_containers": "editing",
    "open_container": "container",
    "open_regular": "_atomic",
    "preprocessing_digest": "_json",
    "read_head": "head_file",
    "require_signatures": "signing",
    "resplit_container": "editing",
    "sign_container": "signing",
    "subset_container": "editing",
    "validate_notes": "notes",
    "verify_signature": "signing",
    "withdraw_rows": "editing",
    "write_container": "writer",
    "write_head": "head_file",
}

__all__ = [
    "SPLITS",
    "Container",
    "ContainerError",
    "ContainerWriter",
    "Corrupt",
    "EditReport",
    "EngineError",
    "HeadFileError",
    "KeyPair",
    "NotAContainer",
    "NotesError",
    "SignatureError",
    "Truncated",
    "UnsupportedVersion",
    "WriteError",
    "assign_splits",
    "atomic_write",
    "canonical_json",
    "check_head_path",
    "export_container",
    "import_container",
    "make_key_pair",
    "merge_containers",
    "open_container",
    "open_regular",
    "preprocessing_digest",
    "read_head",
    "require_signatures",
    "resplit_container",
    "sign_container",
    "subset_container",
    "validate_notes",
    "verify_signature",
    "withdraw_rows",
    "write_container",
    "write_head",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'formats' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"formats.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
