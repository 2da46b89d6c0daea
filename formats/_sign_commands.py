"""The commands ``keygen`` and ``sign``."""

from __future__ import annotations

import argparse
import getpass
import os
import stat
import sys
from pathlib import Path
from typing import Any

from formats._atomic import open_regular
from formats.console import progress_bar
from formats.errors import EngineError, SignatureError
from formats.signing import (
    check_private_key,
    is_encrypted,
    make_key_pair,
    sign_container,
    signature_path_of,
)

__all__ = ["add_parsers"]

_KEYGEN = """\
Make a pair of Ed25519 keys: NAME.pem, the private key (PKCS#8, for its owner's eyes only), and
NAME.pub.pem, the public key for everyone who is to verify. Nothing is ever overwritten.

On a terminal a passphrase is asked for (none: the private key is not encrypted). Give others the
public key on another way than the containers, and let them compare its fingerprint.
"""
_SIGN = """\
Compare containers with their checksums, then sign them: FILE.sig beside each, 64 bytes.

The signature is Ed25519 over the 4096 bytes of the header, which holds the SHA-256 of everything
after it. It says who vouches for the file, and keeps nobody from reading it.
"""
_MAX_PASSPHRASE_FILE = 1 << 16


def add_parsers(commands: Any) -> None:
    """Add ``keygen`` and ``sign`` to the command line.

    Parameters
    ----------
    commands : argparse sub-parsers
        Each parser's default ``run`` takes the arguments and returns the exit code.
    """
    raw = argparse.RawDescriptionHelpFormatter
    keygen = commands.add_parser(
        "keygen", help="make a pair of keys for signing", description=_KEYGEN, formatter_class=raw
    )
    keygen.add_argument(
        "-o", "--output", required=True, metavar="NAME.pem", help="the private key to write"
    )
    keygen.add_argument(
        "--passphrase-file",
        metavar="F",
        help="encrypt the private key with the first line of this file, and do not ask",
    )
    keygen.set_defaults(run=_keygen)
    sign = commands.add_parser(
        "sign", help="sign containers", description=_SIGN, formatter_class=raw
    )
    sign.add_argument("files", nargs="+", metavar="FILE", help="a .hilum file")
    sign.add_argument("--key", required=True, metavar="NAME.pem", help="the private key")
    sign.add_argument(
        "--passphrase-file",
        metavar="F",
        help="its first line decrypts the private key (default: ask on the terminal)",
    )
    sign.add_argument(
        "--quiet", action="store_true", help="no progress bar; errors are still shown"
    )
    sign.set_defaults(run=_sign)


def _keygen(arguments: argparse.Namespace) -> int:
    try:
        passphrase: str | bytes | None = None
        if arguments.passphrase_file is not None:
            passphrase = _first_line(arguments.passphrase_file)
        elif sys.stdin.isatty():
            passphrase = _ask_twice(arguments.output)
        pair = make_key_pair(arguments.output, passphrase)
    except EngineError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    plain = ", NOT encrypted" if passphrase is None else ", encrypted"
    print(f"private key  {pair.private_path} (keep it secret{plain})")
    print(f"public key   {pair.public_path}")
    print(f"fingerprint  {pair.fingerprint}")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    try:
        passphrase: str | bytes | None = None
        if arguments.passphrase_file is not None:
            passphrase = _first_line(arguments.passphrase_file)
        elif is_encrypted(arguments.key) and sys.stdin.isatty():
            passphrase = getpass.getpass(f"passphrase of {arguments.key}: ") or None
        fingerprint = check_private_key(arguments.key, passphrase)
    except EngineError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    _warn_of_rights(Path(arguments.key))
    n_failed = 0
    for file in arguments.files:
        try:
            with progress_bar(Path(file).name, quiet=arguments.quiet) as advance:
                sign_container(file, arguments.key, passphrase=passphrase, progress=advance)
        except EngineError as exc:
            n_failed += 1
            print(f"error: {exc}", file=sys.stderr)
        else:
            if not arguments.quiet:
                print(f"{signature_path_of(file)}: signed by {fingerprint}")
    if n_failed and len(arguments.files) > 1:
        print(f"{n_failed} of {len(arguments.files)} files were not signed", file=sys.stderr)
    return 1 if n_failed else 0


def _first_line(path: str) -> bytes:
    try:
        with open_regular(path) as file:
            line = file.readline(_MAX_PASSPHRASE_FILE).rstrip(b"\r\n")
    except OSError as exc:
        raise SignatureError(
            path, f"the passphrase file cannot be read: {exc.strerror}. Check its path and rights."
        ) from exc
    if not line:
        raise SignatureError(
            path,
            "the first line of the passphrase file is empty, expected the passphrase. Write it "
            "there.",
        )
    return line


def _ask_twice(path: str) -> str | None:
    passphrase = getpass.getpass(f"passphrase for {path} (empty for none): ")
    if passphrase and getpass.getpass("the same again: ") != passphrase:
        raise SignatureError(path, "the two passphrases differ, so no key was made. Try again.")
    return passphrase or None


def _warn_of_rights(key: Path) -> None:
    if os.name == "nt":
        return
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        print(
            f"note: {key} may be used by others on this machine (mode {mode:04o}). Run: chmod 600 "
            f"{key}",
            file=sys.stderr,
        )
