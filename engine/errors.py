"""Every exception Hilum raises on purpose.

::

    EngineError (Exception)                     defined in formats, the lowest Python floor
    ├── ContainerError (ValueError)             .path .status
    │   ├── NotAContainer
    │   ├── UnsupportedVersion
    │   ├── Truncated
    │   ├── Corrupt
    │   └── SignatureError                      missing, wrong, or of another key
    ├── NotesError (ValueError)                 .key
    ├── HeadFileError (ValueError)              .path
    ├── WriteError (OSError)                    .path
    ├── ImageError (ValueError)                 .path
    │   └── Refused                             .reason: readable, but not to be predicted
    ├── BackboneError (RuntimeError)
    ├── ManifestError (ValueError)              .path
    ├── MismatchError (ValueError)              head and features of different origin
    └── SplitError (ValueError)                 rows, patients and splits do not fit together

Each also inherits the builtin named in brackets, so code that knows nothing of Hilum still
catches what it expects. A message says where, what was found, what was expected and what to do.
"""

from __future__ import annotations

from pathlib import Path

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

__all__ = [
    "BackboneError",
    "ContainerError",
    "Corrupt",
    "EngineError",
    "HeadFileError",
    "ImageError",
    "ManifestError",
    "MismatchError",
    "NotAContainer",
    "NotesError",
    "Refused",
    "SignatureError",
    "SplitError",
    "Truncated",
    "UnsupportedVersion",
    "WriteError",
]


class ImageError(EngineError, ValueError):
    """A file that cannot be read as a picture.

    Parameters
    ----------
    path : str or Path
        The file.
    message : str
        What was found, what was expected and what to do; the path is put in front of it.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = Path(path)


class Refused(ImageError):  # noqa: N818 - the name is the status a caller reads
    """A picture that can be read but must not be predicted.

    Parameters
    ----------
    path : str or Path
        The file.
    reason : str
        Reason code in snake_case, stable across releases.
    message : str
        What was found, what was expected and what to do.
    """

    def __init__(self, path: str | Path, reason: str, message: str) -> None:
        super().__init__(path, message)
        self.reason = reason


class BackboneError(EngineError, RuntimeError):
    """A backbone that is unknown, damaged or cannot run on this machine."""


class ManifestError(EngineError, ValueError):
    """A manifest CSV that does not say what it has to say.

    Parameters
    ----------
    path : str or Path
        The manifest.
    message : str
        Line and column, what was found, what was expected and what to do.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = Path(path)


class MismatchError(EngineError, ValueError):
    """A head and features that come from different backbones, preprocessings or poolings."""


class SplitError(EngineError, ValueError):
    """Rows, classes, patients and splits that do not allow what was asked."""
