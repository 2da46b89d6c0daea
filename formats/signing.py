"""Who vouches for a container: detached Ed25519 signatures over its header.

A signature is a file of 64 bytes beside the container, ``<name>.sig``: Ed25519 (RFC 8032, section
5.1) over the container's 4096-byte header, which commits to everything after it by a SHA-256. Keys
are PEM files (RFC 8410) as OpenSSL makes and reads them. Needs the package ``cryptography``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formats._atomic import (
    atomic_write,
    explain_write_failure,
    open_regular,
    sync_folder,
    write_at,
)
from formats._library import ffi, lib
from formats.container import Container, open_container
from formats.errors import ContainerError, SignatureError, WriteError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = [
    "KeyPair",
    "check_private_key",
    "is_encrypted",
    "make_key_pair",
    "require_signatures",
    "sign_container",
    "signature_path_of",
    "verify_signature",
]

FilePath = str | PathLike[str]
Progress = Callable[[int, int], None]

SIGNATURE_BYTES = 64
SUFFIX = ".sig"
# a PEM key has a few hundred bytes, an RSA key of 16,384 bits 13,000
_MAX_KEY_BYTES = 1 << 16
# order of the base point: the second half of every signature is a number below it (RFC 8032, 5.1)
_GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


@dataclass(frozen=True)
class KeyPair:
    """The files of a new pair of keys.

    Attributes
    ----------
    private_path : Path
        To be kept secret: whoever has it can sign in its owner's name.
    public_path : Path
        To be given to everyone who is to verify, on another way than the containers.
    fingerprint : str
        SHA-256 of the 32 bytes of the public key, 64 hexadecimal digits.
    """

    private_path: Path
    public_path: Path
    fingerprint: str


@dataclass(frozen=True)
class _PublicKey:
    path: Path
    key: Ed25519PublicKey
    fingerprint: str


# ---- Making keys -------------------------------------------------------------------------------


def make_key_pair(path: FilePath, passphrase: str | bytes | None = None) -> KeyPair:
    """Make a pair of keys for signing; no file is ever overwritten.

    Parameters
    ----------
    path : str or PathLike
        Where the private key goes: PKCS#8 PEM, readable by its owner only (mode 0600; Windows
        keeps the folder's rights). ``site.pem`` gets ``site.pub.pem`` beside it, the public key as
        SubjectPublicKeyInfo PEM.
    passphrase : str or bytes, optional
        Encrypts the private key; without, whoever can read the file can sign.

    Returns
    -------
    KeyPair
        Both paths, and the fingerprint to compare over the telephone.

    Raises
    ------
    SignatureError
        A file of one of the names exists, the passphrase is empty, or the package
        ``cryptography`` is missing.
    WriteError
        The folder is missing, read-only or full.
    """
    private_path = Path(path)
    _require_cryptography(private_path)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if private_path.name.endswith(".pub.pem"):
        raise SignatureError(
            private_path,
            "is the name of a public key, expected that of a private one such as site.pem. Choose "
            "another name.",
        )
    stem = private_path.name.removesuffix(".pem")
    public_path = private_path.with_name(f"{stem}.pub.pem")
    for file in (private_path, public_path):
        if os.path.lexists(file):
            raise _exists(file)
    key = Ed25519PrivateKey.generate()
    secret = _passphrase_bytes(private_path, passphrase)
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if secret is not None:
        encryption = serialization.BestAvailableEncryption(secret)
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write_new(private_path, private_pem, 0o600)
    try:
        _write_new(public_path, public_pem, 0o666)
    except BaseException:
        private_path.unlink()  # ours, made a moment ago: half a pair is of no use
        raise
    return KeyPair(private_path, public_path, _fingerprint(key.public_key()))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet; O_EXCL also refuses a link at its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, mode)
        try:
            try:
                write_at(descriptor, data, None)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)  # before: Windows removes no open file
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        sync_folder(path.parent)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as exc:
        raise WriteError(path, explain_write_failure(path, exc)) from exc


def _exists(path: Path) -> SignatureError:
    return SignatureError(
        path,
        "exists already, and a key is never overwritten: what it signed could not be verified any "
        "more. Choose another name.",
    )


# ---- Reading keys ------------------------------------------------------------------------------


def is_encrypted(path: FilePath) -> bool:
    """Tell whether a private key needs a passphrase.

    Parameters
    ----------
    path : str or PathLike
        A private key (PEM).

    Returns
    -------
    bool
        False also for what is no key: `sign_container` says what is wrong with it.

    Raises
    ------
    SignatureError
        The file is missing or unreadable.
    """
    return b"ENCRYPTED" in _read_key_file(Path(path), "private")


def check_private_key(path: FilePath, passphrase: str | bytes | None = None) -> str:
    """Try to open a private key, before long work.

    Parameters
    ----------
    path : str or PathLike
        A private key (PEM).
    passphrase : str or bytes, optional
        Of an encrypted key.

    Returns
    -------
    str
        Fingerprint of its public key, 64 hexadecimal digits.

    Raises
    ------
    SignatureError
        As `sign_container`.
    """
    return _fingerprint(_load_private_key(Path(path), passphrase).public_key())


def _read_key_file(path: Path, kind: str) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except FileNotFoundError as exc:
        raise SignatureError(
            path,
            f"the file does not exist, expected a {kind} key (PEM). Check the path; python -m "
            "formats keygen makes a pair.",
        ) from exc
    except OSError as exc:
        raise SignatureError(
            path, f"the {kind} key cannot be read: {exc.strerror}. Check its path and rights."
        ) from exc
    except ValueError as exc:  # a NUL in the path
        raise SignatureError(path, f"the path is none: {exc}. Check it.") from exc
    if len(data) > _MAX_KEY_BYTES:
        raise SignatureError(
            path, f"is larger than any key, expected a {kind} Ed25519 key (PEM). Check the path."
        )
    if data.count(b"-----BEGIN ") > 1:
        raise SignatureError(
            path, f"holds several keys or certificates, expected one {kind} key. Split it."
        )
    return data


def _load_private_key(path: Path, passphrase: str | bytes | None) -> Ed25519PrivateKey:
    _require_cryptography(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_key_file(path, "private")
    if b"PUBLIC KEY" in data:
        raise SignatureError(
            path, "is a public key, expected the private one of the pair. Give that to sign."
        )
    secret = _passphrase_bytes(path, passphrase)
    encrypted = b"ENCRYPTED" in data
    if encrypted and secret is None:
        raise SignatureError(
            path, "the private key is encrypted and no passphrase was given. Give its passphrase."
        )
    if not encrypted and secret is not None:
        raise SignatureError(
            path, "a passphrase was given, but the key is not encrypted. Leave it out."
        )
    try:
        key = load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        if encrypted:
            raise SignatureError(
                path, "cannot be decrypted: the passphrase is wrong or the file damaged. Try again."
            ) from exc
        raise SignatureError(
            path,
            "holds no private key that can be read, expected PKCS#8 PEM (-----BEGIN PRIVATE "
            "KEY-----). python -m formats keygen makes one.",
        ) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise _wrong_kind(path, key, "private")
    return key


def _load_public_key(path: Path) -> _PublicKey:
    _require_cryptography(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read_key_file(path, "public")
    if b"PRIVATE KEY" in data:
        raise SignatureError(
            path,
            "is a private key, expected the public one of the pair (.pub.pem). Give that, and keep "
            "the private key with its owner.",
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise SignatureError(
            path,
            "holds no public key that can be read, expected SubjectPublicKeyInfo PEM (-----BEGIN "
            "PUBLIC KEY-----). Ask the signer for the .pub.pem file.",
        ) from exc
    if not isinstance(key, Ed25519PublicKey):
        raise _wrong_kind(path, key, "public")
    return _PublicKey(path, key, _fingerprint(key))


def _wrong_kind(path: Path, key: object, kind: str) -> SignatureError:
    name = type(key).__name__.removesuffix("PublicKey").removesuffix("PrivateKey").strip("_")
    return SignatureError(
        path,
        f"is a {kind} key of another kind ({name}), expected Ed25519. python -m formats keygen "
        "makes a pair.",
    )


def _passphrase_bytes(path: Path, passphrase: str | bytes | None) -> bytes | None:
    if passphrase is None:
        return None
    secret = passphrase.encode() if isinstance(passphrase, str) else bytes(passphrase)
    if not secret or len(secret) > 1023:  # what OpenSSL takes
        raise SignatureError(
            path,
            f"the passphrase has {len(secret)} bytes, expected 1 to 1023. Leave it out to have no "
            "encryption.",
        )
    return secret


def _fingerprint(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _require_cryptography(path: Path) -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as exc:
        raise SignatureError(
            path,
            "signatures need the package cryptography, which is not installed. Run: pip install "
            "'hilum[sign]'",
        ) from exc


# ---- Signing -----------------------------------------------------------------------------------


def signature_path_of(path: FilePath) -> Path:
    """Return where the signature of a container is looked for: ``<path>.sig``.

    Parameters
    ----------
    path : str or PathLike
        The container.

    Returns
    -------
    Path
        Beside it.
    """
    return Path(fspath(path) + SUFFIX)


def sign_container(
    path: FilePath,
    key: FilePath,
    out: FilePath | None = None,
    passphrase: str | bytes | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Sign a container, after comparing every byte of it with its checksums.

    Parameters
    ----------
    path : str or PathLike
        A ``.hilum`` file; it is not changed.
    key : str or PathLike
        The private key, PEM.
    out : str or PathLike, optional
        Where the signature goes; default ``<path>.sig``. A file there is replaced only if it is
        a signature itself, or empty.
    passphrase : str or bytes, optional
        Of an encrypted key.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    Path
        The signature: 64 bytes, whole or not there.

    Raises
    ------
    ContainerError
        The container is missing, damaged or none: damage is never signed. It holds pixels of the
        images (`Container.not_for_sharing`): a signature would vouch for sharing it.
    SignatureError
        The key is missing, of another kind, public, or its passphrase is wrong; another file
        stands where the signature would go; the package ``cryptography`` is missing.
    WriteError
        The signature cannot be written.
    """
    target = signature_path_of(path) if out is None else Path(out)
    _refuse_foreign(target)
    private = _load_private_key(Path(key), passphrase)
    # "read": what is verified comes from the file itself, and nothing is mapped
    with open_container(path, "read") as container:
        if container.not_for_sharing:
            raise ContainerError(container.path, f"is not signed. {container.not_for_sharing}.")
        container.verify(progress)
        signature = private.sign(_header_bytes(container))
    return atomic_write(target, signature)


def _refuse_foreign(path: Path) -> None:
    """Leave a file alone that is no signature."""
    try:
        with open_regular(path) as file:
            data = file.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise WriteError(path, explain_write_failure(path, exc)) from exc
    number = int.from_bytes(data[32:], "little")
    is_signature = (
        len(data) == SIGNATURE_BYTES and number < _GROUP_ORDER and not data[:32].isascii()
    )
    if data and not is_signature:
        raise SignatureError(
            path, "exists and is no signature, so it is left as it is. Choose another name."
        )


def _header_bytes(container: Container) -> bytes:
    """Copy the header as it was opened and checked, not as the file may be by now."""
    header = lib.hilum_get_header(container._open())
    return bytes(ffi.buffer(header, lib.HILUM_HEADER_BYTES))


# ---- Verifying ---------------------------------------------------------------------------------


def verify_signature(
    path: FilePath | Container,
    public_key: FilePath | Sequence[FilePath],
    signature_path: FilePath | None = None,
    *,
    body: bool = True,
    progress: Progress | None = None,
) -> str:
    """Check that the owner of a key signed a container, and that no byte of it changed since.

    Parameters
    ----------
    path : str, PathLike or Container
        The ``.hilum`` file. Of an open container, the header it was opened with is what is
        checked, so a file that was exchanged meanwhile is found.
    public_key : str or PathLike, or sequence of them
        Public keys (PEM); one of them must have signed.
    signature_path : str or PathLike, optional
        Default ``<path>.sig``.
    body : bool
        Also compare everything after the header with the SHA-256 that the signed header holds.
        A signature over the header **proves nothing about features, labels and notes** until this
        is done; False is for a caller who calls `Container.verify` as well.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    str
        Fingerprint of the key that signed: SHA-256 of the public key, 64 hexadecimal digits.

    Raises
    ------
    SignatureError
        No signature, one of another length, one that fits none of the keys; a key that is
        missing, private or of another kind; the package ``cryptography`` is missing.
    ContainerError
        The container cannot be opened; Corrupt where its body is not what was signed.
    """
    keys = _load_public_keys(public_key)
    if isinstance(path, Container):
        return _verify(path, keys, signature_path, body=body, progress=progress)
    with open_container(path, "read") as container:
        return _verify(container, keys, signature_path, body=body, progress=progress)


def require_signatures(
    containers: Sequence[FilePath | Container],
    public_keys: FilePath | Sequence[FilePath],
    *,
    progress: Callable[[int, int], Any] | None = None,
) -> list[str]:
    """Refuse containers that nobody of a list of signers vouches for.

    Every container needs a valid signature ``<path>.sig`` by one of the keys, and is compared with
    it to the last byte.

    Parameters
    ----------
    containers : sequence of str, PathLike or Container
        Best the open containers that are then used, so that nothing is exchanged in between.
    public_keys : str or PathLike, or sequence of them
        Public keys (PEM); any of them will do.
    progress : callable, optional
        Called with bytes done and bytes in all, for each container anew.

    Returns
    -------
    list of str
        For each container the fingerprint of the key that signed it.

    Raises
    ------
    SignatureError, ContainerError
        As `verify_signature`, for the first container that fails.
    """
    keys = _load_public_keys(public_keys)
    fingerprints = []
    for item in containers:
        with contextlib.ExitStack() as stack:
            container = (
                item
                if isinstance(item, Container)
                else stack.enter_context(open_container(item, "read"))
            )
            fingerprints.append(_verify(container, keys, None, body=True, progress=progress))
    return fingerprints


def _load_public_keys(given: FilePath | Sequence[FilePath]) -> list[_PublicKey]:
    paths = [given] if isinstance(given, str | PathLike) else list(given)
    if not paths:
        raise ValueError("no public key was given, expected one or more")
    return [_load_public_key(Path(path)) for path in paths]


def _verify(
    container: Container,
    keys: Sequence[_PublicKey],
    signature_path: FilePath | None,
    *,
    body: bool,
    progress: Progress | None,
) -> str:
    from cryptography.exceptions import InvalidSignature

    where = signature_path_of(container.path) if signature_path is None else Path(signature_path)
    signature = _read_signature(where, container.path)
    header = _header_bytes(container)
    signer = None
    for candidate in keys:
        with contextlib.suppress(InvalidSignature):
            candidate.key.verify(signature, header)
            signer = candidate
            break
    if signer is None:
        names = ", ".join(f"{key.path} ({key.fingerprint[:16]}...)" for key in keys)
        raise SignatureError(
            container.path,
            f"the signature {where} does not fit this file and {names}. Another key signed it, or "
            "the header or the signature was changed, or the signature is of another file. Do not "
            "use the file: get it again from its signer, and compare the key's fingerprint.",
        )
    if body:
        container.verify(progress)
    return signer.fingerprint


def _read_signature(path: Path, container: Path) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError as exc:
        raise SignatureError(
            container,
            f"there is no signature {path}. Get it from who made the container (python -m formats "
            "sign makes one), and keep both files together.",
        ) from exc
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise SignatureError(
            container, f"the signature {path} cannot be read: {reason}. Check its path and rights."
        ) from exc
    if len(data) != SIGNATURE_BYTES:
        found = f"{len(data)} bytes" if len(data) < SIGNATURE_BYTES else "more than that"
        raise SignatureError(
            container,
            f"the signature {path} has {found}, expected the {SIGNATURE_BYTES} bytes of a raw "
            "Ed25519 signature. Get it again from its signer.",
        )
    return data
