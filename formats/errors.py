"""The exceptions of the lowest Python floor; ``engine.errors`` shows the whole tree.

::

    EngineError (Exception)
    ├── ContainerError (ValueError)     .path .status
    │   ├── NotAContainer               not these bytes: another kind of file, or an unfinished one
    │   ├── UnsupportedVersion          a later version of the format wrote it
    │   ├── Truncated                   the file's length is not the one its header states
    │   ├── Corrupt                     the right length, but the bytes contradict each other
    │   └── SignatureError              a signature or key that is missing, wrong or does not fit
    ├── NotesError (ValueError)         .key
    ├── HeadFileError (ValueError)      .path
    └── WriteError (OSError)            .path: a file that could not be written
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

__all__ = [
    "ContainerError",
    "Corrupt",
    "EngineError",
    "HeadFileError",
    "NotAContainer",
    "NotesError",
    "SignatureError",
    "Truncated",
    "UnsupportedVersion",
    "WriteError",
]


class EngineError(Exception):
    """Base of everything Hilum raises on purpose."""


class ContainerError(EngineError, ValueError):
    """A container that cannot be opened, read or written.

    Parameters
    ----------
    path : str or Path
        The file.
    message : str
        What was found, what was expected and what to do; the path is put in front of it.
    status : int
        ``HILUM_ERR_*`` of ``hilum_abi.h``; 0 where the C reader was not involved.

    Attributes
    ----------
    path : Path
        The file.
    message : str
        The sentence without the path.
    status : int
        As given.
    """

    def __init__(self, path: str | PathLike[str], message: str, status: int = 0) -> None:
        super().__init__(f"{fspath(path)}: {message}")
        self.path = Path(path)
        self.status = status
        self.message = message

    def __reduce__(self) -> tuple[type[ContainerError], tuple[str, str, int]]:
        """Pickle by the constructor's own arguments, so that worker processes can raise it."""
        return type(self), (fspath(self.path), self.message, self.status)


class NotAContainer(ContainerError):  # noqa: N818 - the name is the sentence a user reads
    """The file is something else, or a container whose writing was never finished."""


class UnsupportedVersion(ContainerError):  # noqa: N818
    """The file needs a later version of Hilum."""


class Truncated(ContainerError):  # noqa: N818
    """The file is shorter or longer than its header says."""


class Corrupt(ContainerError):  # noqa: N818
    """The file has its full length, but its bytes contradict each other."""


class SignatureError(ContainerError):
    """A signature that is missing or does not fit, or a key that cannot sign or verify.

    Its path is that of the file to blame: the container, the signature or the key.
    """


class NotesError(EngineError, ValueError):
    """Notes that are not on the allow-list, or that hold what looks like an identity.

    Parameters
    ----------
    key : str
        Dotted path of the offending key, for example ``about.title``.
    message : str
        What was found, what is allowed and what to do; the key is put in front of it.

    Attributes
    ----------
    key : str
        As given.
    message : str
        The sentence without the key.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"notes: {key}: {message}" if key else f"notes: {message}")
        self.key = key
        self.message = message

    def __reduce__(self) -> tuple[type[NotesError], tuple[str, str]]:
        """Pickle by the constructor's own arguments, so that worker processes can raise it."""
        return type(self), (self.key, self.message)


class _FileError(EngineError):
    """An error that one file is to blame for.

    Parameters
    ----------
    path : str or Path
        The file.
    message : str
        What was found, what was expected and what to do; the path is put in front of it.

    Attributes
    ----------
    path : Path
        The file.
    message : str
        The sentence without the path.
    """

    def __init__(self, path: str | PathLike[str], message: str) -> None:
        super().__init__(f"{fspath(path)}: {message}")
        self.path = Path(path)
        self.message = message

    def __reduce__(self) -> tuple[type[_FileError], tuple[str, str]]:
        """Pickle by the constructor's own arguments, so that worker processes can raise it."""
        return type(self), (fspath(self.path), self.message)


class HeadFileError(_FileError, ValueError):
    """A head file that cannot be read or written; arguments and attributes: path, message."""


class WriteError(_FileError, OSError):
    """A file that could not be written; nothing is left at its name that was not there before.

    Arguments and attributes: path, message.
    """
