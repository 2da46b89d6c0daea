"""How a file appears whole or not at all: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from formats.errors import WriteError

__all__ = ["atomic_write", "open_regular"]


def atomic_write(path: str | PathLike[str], data: bytes | bytearray | memoryview) -> Path:
    """Write a file so that its name never stands for half of it.

    The bytes go to a hidden temporary file in the same folder, reach the disk, and only then take
    the name. A file of that name is replaced; a program that still has it open keeps the old
    bytes. After any failure, Ctrl-C included, the folder is as before.

    Parameters
    ----------
    path : str or PathLike
        Where to.
    data : bytes-like
        The whole content.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    WriteError
        The folder is missing, read-only or full; says which and what to do.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}.part")
    try:
        # 0o666 and the umask decide, as for any file the user makes; mkstemp would give 0o600
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = None
        try:
            # Inside the try: Ctrl-C may come between the making of the file and the next line.
            descriptor = os.open(temporary, flags, 0o666)
            write_at(descriptor, data, None)
            os.fsync(descriptor)
            os.close(descriptor)
            descriptor = None
            temporary.replace(target)
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(target.parent)
    except OSError as exc:
        raise WriteError(target, explain_write_failure(target, exc)) from exc
    return target


def write_at(descriptor: int, data: bytes | bytearray | memoryview, offset: int | None) -> None:
    """Write all bytes, however often the system takes only some.

    Parameters
    ----------
    descriptor : int
        Open for writing.
    data : bytes-like
        C-contiguous.
    offset : int or None
        Position in the file; None writes at the current one.
    """
    rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while len(rest):
        # Linux moves at most 2**31 - 4096 bytes a call; 1 GiB keeps clear of every such limit
        piece = rest[: 1 << 30]
        if offset is None:
            done = os.write(descriptor, piece)
        elif hasattr(os, "pwrite"):
            done = os.pwrite(descriptor, piece, offset)
            offset += done
        else:  # Windows
            os.lseek(descriptor, offset, os.SEEK_SET)
            done = os.write(descriptor, piece)
            offset += done
        rest = rest[done:]


def open_regular(path: str | PathLike[str]) -> BinaryIO:
    """Open a file for reading, but nothing that a program could wait for without end.

    Parameters
    ----------
    path : str or PathLike
        The file.

    Returns
    -------
    binary file
        Unbuffered.

    Raises
    ------
    OSError
        As `open` does; also for a pipe, a socket or a device, which may never give a byte.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    # without it, opening a pipe that nobody writes to would not return
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb", buffering=0)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, where the system offers that.

    Parameters
    ----------
    folder : Path
        The folder whose entry changed.
    """
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError as exc:
        # a folder that may be written but not listed cannot be opened; the rename itself is done
        if exc.errno not in (errno.EACCES, errno.EPERM):
            raise
        return
    try:
        os.fsync(descriptor)
    except OSError as exc:
        # some network and FUSE file systems cannot sync a folder
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def explain_write_failure(path: Path, exc: OSError, needed_bytes: int = 0) -> str:
    """Say in words why a file could not be written.

    Parameters
    ----------
    path : Path
        The file that was to be written.
    exc : OSError
        What the system answered.
    needed_bytes : int
        How long the file would have become, 0 if unknown.

    Returns
    -------
    str
        Found, expected and what to do.
    """
    folder = path.parent
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        wanted = f"about {needed_bytes} bytes are needed" if needed_bytes else "more is needed"
        import shutil  # brings the compression libraries along

        try:
            free = f"{shutil.disk_usage(folder).free} bytes are free in {folder}"
        except OSError:
            free = f"no room is left in {folder}"
        what = "the disk quota is used up" if exc.errno == errno.EDQUOT else "the disk is full"
        return f"{what}: {free}, {wanted}. Free space or choose another output folder."
    if exc.errno == errno.EFBIG:
        return (
            "the file would be larger than the file system or the limit of this shell allows. "
            "Choose another output folder or raise the limit (ulimit -f)."
        )
    if not folder.is_dir():
        if folder.exists():
            return f"{folder} is a file, expected a folder. Choose another output path."
        return f"the folder {folder} does not exist. Create it first (mkdir -p)."
    if path.is_dir():
        return "this is a folder, expected the name of a file. Add a file name to it."
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"the folder {folder} may not be written to ({exc.strerror}). Choose another output "
            "folder or change its permissions."
        )
    if exc.errno == errno.ENAMETOOLONG:
        return "the name is too long for this file system. Choose a shorter one."
    return (
        f"cannot be written: {exc.strerror or exc}. Check the disk and choose another output "
        "folder."
    )
