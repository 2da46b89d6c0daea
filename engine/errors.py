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
    ├── ChainError (ValueError)                 .path: a chain of heads that cannot be followed
    ├── ManifestError (ValueError)              .path
    ├── MismatchError (ValueError)              head and features of different origin
    ├── MissingPart (ImportError)               an optional package that is not installed
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
    "OVERRIDABLE",
    "REFUSALS",
    "BackboneError",
    "ChainError",
    "ContainerError",
    "Corrupt",
    "EngineError",
    "HeadFileError",
    "ImageError",
    "ManifestError",
    "MismatchError",
    "MissingPart",
    "NotAContainer",
    "NotesError",
    "Refused",
    "SignatureError",
    "SplitError",
    "Truncated",
    "UnsupportedVersion",
    "WriteError",
]


#: Every reason for which a readable picture is not predicted: code and what it means.
REFUSALS = {
    "annotation": "a DICOM object about pictures: report, segmentation, presentation state",
    "blank": "every pixel has the same grey level",
    "body_part": "a DICOM header that names another part of the body than the chest",
    "inverted": "black and white are exchanged: only the negative is like the training images",
    "lateral": "a DICOM header that says lateral view",
    "multi_frame": "several pictures in one file",
    "no_pixels": "a DICOM object without a picture",
    "not_an_image": "a DICOM object that is none: document, waveform, plan, directory",
    "out_of_distribution": "features unlike those of the images the head learned from",
    "own_result": "a DICOM object that Hilum made itself",
    "too_small": "a thumbnail or icon",
    "unsupported_modality": "a DICOM modality that is no radiograph",
    "unsupported_transfer_syntax": "DICOM compression for which no decoder is installed",
}

#: Those of them that a caller may set aside, one by one: there is a picture to predict from.
OVERRIDABLE = (
    "annotation",
    "blank",
    "body_part",
    "inverted",
    "lateral",
    "multi_frame",
    "out_of_distribution",
    "own_result",
    "too_small",
    "unsupported_modality",
)


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
        One of `REFUSALS`: codes are stable across releases.
    message : str
        What was found, what was expected and what to do.
    """

    def __init__(self, path: str | Path, reason: str, message: str) -> None:
        super().__init__(path, message)
        self.reason = reason


class BackboneError(EngineError, RuntimeError):
    """A backbone that is unknown, damaged or cannot run on this machine."""


class ChainError(EngineError, ValueError):
    """A file that describes a chain of heads, and cannot be followed.

    Parameters
    ----------
    path : str or Path
        The TOML file.
    message : str
        Which step and key, what was found, what was expected and what to do.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = Path(path)


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


class MissingPart(EngineError, ImportError):  # noqa: N818 - what is wrong is the machine
    """A package of an extra that is not installed; the message names the extra."""


class SplitError(EngineError, ValueError):
    """Rows, classes, patients and splits that do not allow what was asked."""
