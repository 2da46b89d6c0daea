"""Signatures: what is signed verifies here and with OpenSSL, and nothing else does."""

from __future__ import annotations

import argparse
import getpass
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import GOLDEN, notes_of, run_python, write_small

import formats
from formats import _sign_commands
from formats._library import crc32c
from formats.errors import ContainerError, SignatureError
from formats.signing import (
    check_private_key,
    is_encrypted,
    make_key_pair,
    require_signatures,
    sign_container,
    verify_signature,
)

pytest.importorskip("cryptography", reason="signatures need the extra [sign]")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

FULL = GOLDEN / "valid" / "i8_every_column.hilum"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_key_pair(folder / "site.pem")
    make_key_pair(folder / "other.pem")
    make_key_pair(folder / "locked.pem", "correct horse")
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    path = tmp_path / "x.hilum"
    shutil.copyfile(FULL, path)
    assert sign_container(path, keys / "site.pem") == tmp_path / "x.hilum.sig"
    return path


def flip_byte(path: Path, at: int, mask: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ mask]))


def repair_header(path: Path) -> None:
    """Give a changed header a fitting checksum, as a forger would."""
    data = bytearray(path.read_bytes())
    data[4092:4096] = crc32c(bytes(data[:4092])).to_bytes(4, "little")
    path.write_bytes(data)


# ---- What holds --------------------------------------------------------------------------------


def test_a_signature_verifies_and_names_its_key(signed: Path, keys: Path) -> None:
    signature = signed.with_name("x.hilum.sig").read_bytes()
    assert len(signature) == 64
    fingerprint = check_private_key(keys / "site.pem")
    assert len(fingerprint) == 64
    public = keys / "site.pub.pem"
    assert verify_signature(signed, public) == fingerprint
    for mode in ("mmap", "read"):
        with formats.open_container(signed, mode) as container:
            assert verify_signature(container, str(public)) == fingerprint
            assert require_signatures([container, signed], [public]) == [fingerprint] * 2
    assert sorted(path.name for path in signed.parent.iterdir()) == ["x.hilum", "x.hilum.sig"]
    assert signed.read_bytes() == FULL.read_bytes()


def test_the_signature_is_that_of_the_rfc_over_4096_bytes(signed: Path, keys: Path) -> None:
    private = serialization.load_pem_private_key((keys / "site.pem").read_bytes(), None)
    assert isinstance(private, ed25519.Ed25519PrivateKey)
    expected = private.sign(signed.read_bytes()[:4096])
    assert signed.with_name("x.hilum.sig").read_bytes() == expected


def test_any_of_several_keys_may_have_signed(signed: Path, keys: Path) -> None:
    publics = [keys / "other.pub.pem", keys / "site.pub.pem"]
    assert verify_signature(signed, publics) == check_private_key(keys / "site.pem")
    with pytest.raises(SignatureError, match=r"does not fit this file and .*other.*locked"):
        verify_signature(signed, [keys / "other.pub.pem", keys / "locked.pub.pem"])
    with pytest.raises(ValueError, match="no public key was given"):
        verify_signature(signed, [])


def test_signatures_elsewhere_and_again(signed: Path, keys: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.sig"
    assert sign_container(signed, keys / "other.pem", elsewhere) == elsewhere
    verify_signature(signed, keys / "other.pub.pem", elsewhere)
    sign_container(signed, keys / "other.pem")  # a signature may be replaced
    verify_signature(signed, keys / "other.pub.pem")
    elsewhere.write_bytes(b"")
    sign_container(signed, keys / "other.pem", elsewhere)
    letter = b"a letter of sixty-four characters, which is not to be replaced.\n"
    assert len(letter) == 64
    for text in (letter, b"x", b"\xff" * 64, FULL.read_bytes()):
        elsewhere.write_bytes(text)
        with pytest.raises(SignatureError, match="no signature, so it is left as it is"):
            sign_container(signed, keys / "other.pem", elsewhere)
        assert elsewhere.read_bytes() == text


def test_keys_with_a_passphrase(signed: Path, keys: Path) -> None:
    locked = keys / "locked.pem"
    assert is_encrypted(locked) and not is_encrypted(keys / "site.pem")
    sign_container(signed, locked, passphrase="correct horse")
    sign_container(signed, locked, passphrase=b"correct horse")
    verify_signature(signed, keys / "locked.pub.pem")
    for passphrase, message in (
        ("wrong", "the passphrase is wrong or the file damaged"),
        (None, "no passphrase was given"),
        ("", "has 0 bytes, expected 1 to 1023"),
        ("x" * 1024, "has 1024 bytes"),
    ):
        with pytest.raises(SignatureError, match=message):
            sign_container(signed, locked, passphrase=passphrase)
    with pytest.raises(SignatureError, match="the key is not encrypted"):
        sign_container(signed, keys / "site.pem", passphrase="correct horse")


# ---- Keys --------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_the_private_key_is_for_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        pair = make_key_pair(tmp_path / "a.pem")
    finally:
        os.umask(old)
    assert pair.private_path.stat().st_mode & 0o777 == 0o600
    assert pair.public_path == tmp_path / "a.pub.pem"
    assert b"BEGIN PRIVATE KEY" in pair.private_path.read_bytes()
    assert b"BEGIN PUBLIC KEY" in pair.public_path.read_bytes()
    assert make_key_pair(tmp_path / "b.pem").fingerprint != pair.fingerprint


@pytest.mark.parametrize("existing", ["a.pem", "a.pub.pem", "link"])
def test_no_key_is_ever_overwritten(tmp_path: Path, existing: str) -> None:
    if existing == "link":
        (tmp_path / "a.pem").symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / existing).write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SignatureError, match="a key is never overwritten"):
        make_key_pair(tmp_path / "a.pem")
    assert sorted(tmp_path.iterdir()) == before
    if existing != "link":
        assert (tmp_path / existing).read_text() == "mine"


def test_a_key_made_by_another_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.pem"
    path.write_bytes(b"theirs")
    monkeypatch.setattr("formats.signing.os.path.lexists", lambda _: False)
    with pytest.raises(SignatureError, match="exists already"):
        make_key_pair(path)
    monkeypatch.undo()
    assert path.read_bytes() == b"theirs"


def test_half_a_pair_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: object, flags: int, *more: object, **named: object) -> int:
        if str(path).endswith(".pub.pem"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(formats.WriteError, match="may not be written to"):
        make_key_pair(tmp_path / "a.pem")
    assert list(tmp_path.iterdir()) == []


def test_names_and_folders_of_keys(tmp_path: Path) -> None:
    assert make_key_pair(tmp_path / "bare").public_path.name == "bare.pub.pem"
    with pytest.raises(SignatureError, match="the name of a public key"):
        make_key_pair(tmp_path / "a.pub.pem")
    with pytest.raises(formats.WriteError, match="does not exist"):
        make_key_pair(tmp_path / "missing" / "a.pem")
    with pytest.raises(SignatureError, match="has 0 bytes"):
        make_key_pair(tmp_path / "c.pem", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "bare.pub.pem"]


def pem(key: object, *, private: bool) -> bytes:
    if private:
        return key.private_bytes(  # type: ignore[attr-defined]
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    return key.public_key().public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_keys_of_another_kind_are_named(signed: Path, keys: Path, tmp_path: Path) -> None:
    key = tmp_path / "k.pem"
    for other, name in (
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ec.generate_private_key(ec.SECP256R1()), "EllipticCurve|EC"),
    ):
        key.write_bytes(pem(other, private=True))
        with pytest.raises(SignatureError, match=rf"another kind \(({name})\), expected Ed25519"):
            sign_container(signed, key)
        key.write_bytes(pem(other, private=False))
        with pytest.raises(SignatureError, match=rf"another kind \(({name})\), expected Ed25519"):
            verify_signature(signed, key)
    with pytest.raises(SignatureError, match="is a private key, expected the public one") as caught:
        verify_signature(signed, keys / "site.pem")
    assert caught.value.path == keys / "site.pem"
    with pytest.raises(SignatureError, match="is a private key, expected the public one"):
        verify_signature(signed, keys / "locked.pem")
    with pytest.raises(SignatureError, match="is a public key, expected the private one"):
        sign_container(signed, keys / "site.pub.pem")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no public key that can be read"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB jo", "holds no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "holds no public key"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no public key"),
        (b"\0" * 70_000, "larger than any key"),
        (2 * b"-----BEGIN PUBLIC KEY-----\n", "holds several keys"),
    ],
)
def test_what_is_no_public_key(signed: Path, tmp_path: Path, data: bytes, message: str) -> None:
    key = tmp_path / "k.pub.pem"
    key.write_bytes(data)
    with pytest.raises(SignatureError, match=message) as caught:
        verify_signature(signed, key)
    assert caught.value.path == key


def test_files_that_are_not_there(signed: Path, keys: Path, tmp_path: Path) -> None:
    for call in (verify_signature, sign_container):
        with pytest.raises(SignatureError, match="the file does not exist, expected a"):
            call(signed, tmp_path / "no.pem")
        with pytest.raises(SignatureError, match="key cannot be read"):
            call(signed, tmp_path)
        with pytest.raises(SignatureError, match="the path is none"):
            call(signed, "a\0b")
    with pytest.raises(formats.ContainerError, match="does not exist, expected a"):
        sign_container(tmp_path / "no.hilum", keys / "site.pem")
    with pytest.raises(formats.WriteError, match="does not exist"):
        sign_container(signed, keys / "site.pem", tmp_path / "no" / "x.sig")
    with pytest.raises(formats.WriteError, match="this is a folder"):
        sign_container(signed, keys / "site.pem", tmp_path)


def test_without_cryptography_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "import formats.signing as s\n"
        "for call in (lambda: s.make_key_pair('k.pem'), lambda: s.verify_signature('x', 'k.pem'),\n"
        "             lambda: s.sign_container('no.hilum', 'k.pem')):\n"
        "    try:\n"
        "        call()\n"
        "    except s.SignatureError as exc:\n"
        "        print(exc)\n"
    )
    result = run_python(code)
    assert result.stdout.count("pip install 'hilum[sign]'") == 3, result.stdout + result.stderr


# ---- What does not hold ------------------------------------------------------------------------


def test_every_byte_of_the_signature_matters(signed: Path, keys: Path) -> None:
    signature = signed.with_name("x.hilum.sig")
    with formats.open_container(signed) as container:
        for at in range(64):
            for mask in (0x01, 0x80, 0xFF):
                flip_byte(signature, at, mask)
                with pytest.raises(SignatureError, match="does not fit"):
                    verify_signature(container, keys / "site.pub.pem")
                flip_byte(signature, at, mask)
        verify_signature(container, keys / "site.pub.pem")


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_signatures_of_another_length(signed: Path, keys: Path, length: int) -> None:
    signature = signed.with_name("x.hilum.sig")
    signature.write_bytes((signature.read_bytes() * 2)[:length])
    with pytest.raises(SignatureError, match="expected the 64 bytes of a raw Ed25519 signature"):
        verify_signature(signed, keys / "site.pub.pem")


def test_a_missing_signature(signed: Path, keys: Path, tmp_path: Path) -> None:
    signed.with_name("x.hilum.sig").unlink()
    for call in (verify_signature, lambda path, key: require_signatures([path], key)):
        with pytest.raises(SignatureError, match=r"there is no signature .*x\.hilum\.sig"):
            call(signed, keys / "site.pub.pem")
    with pytest.raises(SignatureError, match="cannot be read"):
        verify_signature(signed, keys / "site.pub.pem", tmp_path)


def test_every_byte_of_the_header_matters(signed: Path, keys: Path) -> None:
    """Also with a checksum made to fit, as a forger would."""
    # of the bytes that a forger may change with a valid header as the result
    still_opened = 0
    for at in range(4092):
        flip_byte(signed, at, 0x01)
        with pytest.raises(formats.ContainerError):
            verify_signature(signed, keys / "site.pub.pem", body=False)
        repair_header(signed)
        with pytest.raises(formats.ContainerError) as caught:
            verify_signature(signed, keys / "site.pub.pem", body=False)
        still_opened += isinstance(caught.value, SignatureError)
        flip_byte(signed, at, 0x01)
        repair_header(signed)
    verify_signature(signed, keys / "site.pub.pem")
    # uuid and body_sha256 are checked by nothing but the signature (and the body's by verify)
    assert still_opened >= 48
    for at in range(4092, 4096):
        flip_byte(signed, at)
        with pytest.raises(formats.Corrupt):
            verify_signature(signed, keys / "site.pub.pem")
        flip_byte(signed, at)


def test_bytes_of_the_body_matter(signed: Path, keys: Path) -> None:
    size = signed.stat().st_size
    for at in [*range(4096, size, 7), size - 1]:
        flip_byte(signed, at)
        with pytest.raises(formats.ContainerError):
            verify_signature(signed, keys / "site.pub.pem")
        flip_byte(signed, at)
    verify_signature(signed, keys / "site.pub.pem")


def test_a_forged_body_with_fitting_checksums_is_found(signed: Path, keys: Path) -> None:
    """Changed features, with the checksums of chunk, table and header made to fit."""
    data = bytearray(signed.read_bytes())
    number = lambda at, n: int.from_bytes(data[at : at + n], "little")  # noqa: E731
    features, table = (number(56, 8), number(64, 8)), (number(88, 8), number(96, 8))
    data[features[0]] ^= 1
    of_chunk = crc32c(bytes(data[features[0] : sum(features)]))
    data[table[0] : table[0] + 4] = of_chunk.to_bytes(4, "little")
    of_table = crc32c(bytes(data[table[0] : sum(table)]))
    data[120:124] = of_table.to_bytes(4, "little")
    signed.write_bytes(data)
    repair_header(signed)
    with pytest.raises(SignatureError, match="does not fit"):
        verify_signature(signed, keys / "site.pub.pem")
    # with the signed header kept, the table does not fit it; the body's hash would not either
    signed.write_bytes(FULL.read_bytes()[:4096] + bytes(data[4096:]))
    with pytest.raises(formats.Corrupt):
        verify_signature(signed, keys / "site.pub.pem")


def test_the_header_alone_says_nothing_of_the_body(signed: Path, keys: Path) -> None:
    flip_byte(signed, 4096)  # of the features, which opening does not read
    verify_signature(signed, keys / "site.pub.pem", body=False)
    with pytest.raises(formats.Corrupt, match="rows 0 to 39"):
        verify_signature(signed, keys / "site.pub.pem")


def test_another_key_and_another_file(signed: Path, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="Do not use the file") as caught:
        verify_signature(signed, keys / "other.pub.pem")
    assert caught.value.path == signed
    other = tmp_path / "y.hilum"
    write_small(other)
    shutil.copyfile(signed.with_name("x.hilum.sig"), tmp_path / "y.hilum.sig")
    with pytest.raises(SignatureError, match="or the signature is of another file"):
        verify_signature(other, keys / "site.pub.pem")
    with pytest.raises(SignatureError, match=r"y\.hilum"):
        require_signatures([signed, other], keys / "site.pub.pem")


def test_a_file_exchanged_after_it_was_opened_is_found(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    write_small(tmp_path / "y.hilum")
    with formats.open_container(signed) as container:
        (tmp_path / "y.hilum").replace(signed)
        with pytest.raises(formats.ContainerError, match="was replaced since it was opened"):
            verify_signature(container, keys / "site.pub.pem")
    with formats.open_container(signed) as container:
        sign_container(signed, keys / "site.pem")
        shutil.copyfile(FULL, tmp_path / "z.hilum")
        (tmp_path / "z.hilum").replace(signed)
        sign_container(signed, keys / "site.pem")  # genuine, but not of what is open
        with pytest.raises(SignatureError, match="does not fit"):
            verify_signature(container, keys / "site.pub.pem")
    container.close()
    with pytest.raises(formats.ContainerError, match="closed"):
        verify_signature(container, keys / "site.pub.pem")


@pytest.mark.parametrize("name", ["feature_bit", "body_sha256", "text", "header_crc"])
def test_damage_is_never_signed(name: str, keys: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "x.hilum"
    if name == "body_sha256":
        shutil.copyfile(FULL, damaged)
        flip_byte(damaged, 192)
        repair_header(damaged)
    elif name == "header_crc":
        shutil.copyfile(FULL, damaged)
        flip_byte(damaged, 4092)
    else:
        shutil.copyfile(GOLDEN / "corrupt" / f"{name}.hilum", damaged)
    with pytest.raises(formats.ContainerError):
        sign_container(damaged, keys / "site.pem")
    assert list(tmp_path.iterdir()) == [damaged]


# ---- OpenSSL -----------------------------------------------------------------------------------


@pytest.fixture
def openssl() -> str:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl program here")
    version = subprocess.run([program, "version"], capture_output=True, text=True, check=True)
    if not version.stdout.startswith("OpenSSL ") or version.stdout.startswith("OpenSSL 1."):
        pytest.skip(f"pkeyutl -rawin needs OpenSSL 3, found {version.stdout.strip()}")
    return program


def run_openssl(program: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def test_openssl_verifies_what_we_sign(
    openssl: str, signed: Path, keys: Path, tmp_path: Path
) -> None:
    header = tmp_path / "header.bin"  # a file: OpenSSL asks for its length
    header.write_bytes(signed.read_bytes()[:4096])
    command = ["pkeyutl", "-verify", "-pubin", "-inkey", keys / "site.pub.pem", "-rawin"]
    command += ["-in", header, "-sigfile", signed.with_name("x.hilum.sig")]
    result = run_openssl(openssl, *command)
    assert result.returncode == 0, result.stderr
    assert "Signature Verified Successfully" in result.stdout
    flip_byte(header, 300)
    assert run_openssl(openssl, *command).returncode != 0


def test_we_verify_what_openssl_signs_with_its_own_keys(
    openssl: str, tmp_path: Path, keys: Path
) -> None:
    path = tmp_path / "x.hilum"
    shutil.copyfile(FULL, path)
    header, private, public = (tmp_path / name for name in ("h.bin", "k.pem", "k.pub.pem"))
    header.write_bytes(path.read_bytes()[:4096])
    for arguments in (
        ["genpkey", "-algorithm", "ed25519", "-out", private],
        ["pkey", "-in", private, "-pubout", "-out", public],
        ["pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", header,
         "-out", tmp_path / "x.hilum.sig"],
    ):  # fmt: skip
        result = run_openssl(openssl, *arguments)
        assert result.returncode == 0, result.stderr
    before = (tmp_path / "x.hilum.sig").read_bytes()
    verify_signature(path, public)
    sign_container(path, private)
    assert (tmp_path / "x.hilum.sig").read_bytes() == before  # Ed25519 has no randomness
    # and OpenSSL opens an encrypted key of ours
    result = run_openssl(openssl, "pkey", "-in", keys / "locked.pem", "-passin",
                         "pass:correct horse", "-pubout")  # fmt: skip
    assert result.stdout == (keys / "locked.pub.pem").read_text()


# ---- Command line ------------------------------------------------------------------------------


def run(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    _sign_commands.add_parsers(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(word) for word in argv])
    return int(arguments.run(arguments))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers to be typed; the list is emptied as they are asked for."""
    answers: list[str] = []
    stdin = io.StringIO()
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(getpass, "getpass", lambda _prompt: answers.pop(0))
    return answers


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, again = tmp_path / "x.hilum", tmp_path / "y.hilum"
    shutil.copyfile(FULL, path)
    write_small(again)
    assert run("keygen", "-o", tmp_path / "k.pem") == 0
    out, err = capsys.readouterr()
    fingerprint = check_private_key(tmp_path / "k.pem")
    assert out.splitlines() == [
        f"private key  {tmp_path / 'k.pem'} (keep it secret, NOT encrypted)",
        f"public key   {tmp_path / 'k.pub.pem'}",
        f"fingerprint  {fingerprint}",
    ]
    assert err == ""
    assert run("keygen", "-o", tmp_path / "k.pem") == 1
    assert "a key is never overwritten" in capsys.readouterr().err
    damaged = GOLDEN / "corrupt" / "feature_bit.hilum"
    assert run("sign", path, damaged, again, "--key", tmp_path / "k.pem") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{p}.sig: signed by {fingerprint}" for p in (path, again)]
    assert "feature_bit" in err and "1 of 3 files were not signed" in err
    for file in (path, again):
        assert verify_signature(file, tmp_path / "k.pub.pem") == fingerprint
    assert run("sign", path, "--key", tmp_path / "k.pem", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("sign", path, "--key", tmp_path / "k.pub.pem") == 1
    assert "is a public key" in capsys.readouterr().err
    assert run("sign", path, "--key", tmp_path / "none.pem") == 1
    assert "does not exist" in capsys.readouterr().err


def test_passphrases_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, secret, key = tmp_path / "x.hilum", tmp_path / "secret", tmp_path / "k.pem"
    shutil.copyfile(FULL, path)
    secret.write_bytes("käse \r\nsecond line".encode())
    assert run("keygen", "-o", key, "--passphrase-file", secret) == 0
    assert "(keep it secret, encrypted)" in capsys.readouterr().out
    assert run("sign", path, "--key", key, "--passphrase-file", secret) == 0
    sign_container(path, key, passphrase="käse ")
    assert run("sign", path, "--key", key) == 1  # nobody to ask
    assert "no passphrase was given" in capsys.readouterr().err
    for content, message in ((b"wrong\n", "passphrase is wrong"), (b"\n", "first line")):
        secret.write_bytes(content)
        assert run("sign", path, "--key", key, "--passphrase-file", secret) == 1
        assert message in capsys.readouterr().err
    secret.unlink()
    assert run("keygen", "-o", tmp_path / "l.pem", "--passphrase-file", secret) == 1
    assert "passphrase file cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "l.pem").exists()


def test_passphrases_from_the_terminal(
    tmp_path: Path, terminal: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.hilum"
    shutil.copyfile(FULL, path)
    terminal[:] = ["abc", "abd"]
    assert run("keygen", "-o", tmp_path / "k.pem") == 1
    assert "the two passphrases differ" in capsys.readouterr().err
    terminal[:] = ["abc", "abc"]
    assert run("keygen", "-o", tmp_path / "k.pem") == 0
    terminal[:] = [""]
    assert run("keygen", "-o", tmp_path / "open.pem") == 0
    assert not is_encrypted(tmp_path / "open.pem")
    terminal[:] = ["abc"]
    assert run("sign", path, path, "--key", tmp_path / "k.pem") == 0  # asked once
    terminal[:] = ["abd"]
    assert run("sign", path, "--key", tmp_path / "k.pem") == 1
    terminal[:] = [""]
    assert run("sign", path, "--key", tmp_path / "k.pem") == 1
    assert terminal == []
    assert run("sign", path, "--key", tmp_path / "open.pem") == 0  # not asked


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_key_that_others_may_read_is_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(FULL, tmp_path / "x.hilum")
    make_key_pair(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(0o640)
    assert run("sign", tmp_path / "x.hilum", "--key", tmp_path / "k.pem", "--quiet") == 0
    assert "mode 0640). Run: chmod 600" in capsys.readouterr().err


def mend_checksum(data: bytearray, at: int, wanted: int) -> None:
    """Choose four bytes so that the CRC-32C of all is the wanted one: linear, it proves nothing."""
    data[at : at + 4] = bytes(4)
    base = crc32c(bytes(data))
    basis: dict[int, tuple[int, int]] = {}
    for bit in range(32):
        value, mask = bytearray(data), 1 << bit
        value[at + bit // 8] = 1 << bit % 8
        rest = crc32c(bytes(value)) ^ base
        while rest and rest.bit_length() in basis:
            other, other_mask = basis[rest.bit_length()]
            rest, mask = rest ^ other, mask ^ other_mask
        if rest:
            basis[rest.bit_length()] = rest, mask
    rest, chosen = wanted ^ base, 0
    while rest:
        other, mask = basis[rest.bit_length()]
        rest, chosen = rest ^ other, chosen ^ mask
    data[at : at + 4] = chosen.to_bytes(4, "little")


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_what_is_verified_is_what_was_opened(keys: Path, tmp_path: Path, mode: str) -> None:
    """The signed file comes back to its name behind a forgery that was opened meanwhile."""
    path, good = tmp_path / "x.hilum", tmp_path / "good"
    write_small(path, dtype="f32")
    sign_container(path, keys / "site.pem")
    with formats.open_container(path) as container:
        end = 4096 + container.n_rows * container.dim * 4
    forged = bytearray(path.read_bytes())
    features = bytearray(np.full((end - 4096) // 4, 7, np.float32).tobytes())
    for at in range(0, len(features), 4):
        mend_checksum(features, at, crc32c(bytes(forged[4096:end])))
        if np.isfinite(np.frombuffer(features, np.float32)).all():
            break
    forged[4096:end] = features
    path.replace(good)
    path.write_bytes(forged)
    with formats.open_container(path, mode) as container:
        good.replace(path)
        with pytest.raises(formats.Corrupt, match="SHA-256"):
            require_signatures([container], keys / "site.pub.pem")


def test_a_file_with_pixels_of_the_images_is_not_signed(tmp_path: Path, keys: Path) -> None:
    path = tmp_path / "pixels.hilum"
    blocks = [{"tap": "pixels", "pooling": "64x64", "offset": 0, "width": 4}]
    formats.write_container(path, np.ones((3, 4), np.float32), notes_of(4, blocks=blocks))
    with pytest.raises(ContainerError, match=r"not signed\. NOT FOR SHARING.*--without-floors"):
        sign_container(path, keys / "site.pem")
    assert not path.with_name("pixels.hilum.sig").exists()
