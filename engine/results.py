"""The output folder: one result an image, whole or not there, never that of another image.

What belongs to an image is called after it: ``NAME.json``, and where they apply
``NAME.heatmap.png``, ``NAME.sr.dcm`` and ``NAME.sc.dcm``. The JSON names the others and is written
behind them. No name of an input leads out of the folder, and no link that lies in it is written
through. In ``.hilum`` lie small notes that no result depends on: under which name the answer for a
key is stored and where it was sent (``KEY.json``), and who is about to use a name (``*.claim``).
Any number of processes may work in one folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from engine.answers import Prediction
from formats.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from engine.cascade import Chain
    from engine.heads import Head

__all__ = [
    "CAPTURE_SUFFIX",
    "HEATMAP_SUFFIX",
    "REPORT_SUFFIX",
    "TABLE_NAME",
    "Results",
    "Table",
    "file_digest",
    "is_drawn",
    "picture_identity",
    "result_key",
    "safe_name",
]

TABLE_NAME = "predictions.csv"
HEATMAP_SUFFIX = ".heatmap.png"
REPORT_SUFFIX = ".sr.dcm"
CAPTURE_SUFFIX = ".sc.dcm"
_SIDES = (HEATMAP_SUFFIX, REPORT_SUFFIX, CAPTURE_SUFFIX)

# File systems take 255 bytes; room is left for the suffix of an unfinished file.
LONGEST_NAME_BYTES = 200
SHORTENED_NAME_BYTES = 150
_NOTES = ".hilum"
# What a JSON of ours may take; chains of many heads have some kilobytes.
_MOST_JSON_BYTES = 16 << 20
# Larger files have no key, and no stored answer: hashing them would take longer than refusing.
_MOST_HASHED_BYTES = 1 << 30
# Preamble and file meta information take less than a kilobyte.
_HEADER_BYTES = 1 << 16
# Another release of the decoders may read them: such a refusal is not given again.
_NOT_STORED = ("unsupported_transfer_syntax",)

# What Windows takes for devices, with any suffix (Win32 naming conventions), and for syntax.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])", re.IGNORECASE)
_SYNTAX = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


# ---- What an answer follows from ------------------------------------------------------------


def file_digest(path: str | os.PathLike[str]) -> str | None:
    """Hash the bytes of a file.

    Parameters
    ----------
    path : str or PathLike
        The file.

    Returns
    -------
    str or None
        SHA-256, 64 hexadecimal digits; None where it cannot be read, is no regular file or is
        larger than a gigabyte.
    """
    from formats import open_regular

    try:
        with open_regular(path) as stream:
            return _stream_digest(stream)
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return None


def _stream_digest(stream: BinaryIO, start: int = 0) -> str | None:
    import hashlib

    if os.fstat(stream.fileno()).st_size > _MOST_HASHED_BYTES:
        return None
    stream.seek(start)
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def picture_identity(path: str | os.PathLike[str]) -> str | None:
    """Tell which picture a file holds, whatever it is called.

    The SOP Instance UID would be cheaper and is not enough: devices that give one UID to two
    pictures exist, and headers are corrected under the old UID. The answer of one patient must not
    be given for another.

    Parameters
    ----------
    path : str or PathLike
        The file.

    Returns
    -------
    str or None
        The digest of its bytes; of a DICOM file that of the data set, and its transfer syntax. The
        file meta information before it is the storing program's own (PS3.10 section 7.1). None
        where `file_digest` gives none.
    """
    from formats import open_regular

    try:
        with open_regular(path) as stream:
            start, syntax = _data_set(stream.read(_HEADER_BYTES))
            digest = _stream_digest(stream, start)
    except (OSError, ValueError):
        return None
    return None if digest is None else f"{syntax} sha256:{digest}".lstrip()


def _data_set(head: bytes) -> tuple[int, str]:
    """Say where a DICOM data set begins in a file, and its transfer syntax; else 0 and nothing."""
    syntax = ""
    at = 132
    while head[128:132] == b"DICM" and head[at : at + 2] == b"\x02\x00":
        # Always explicit and little endian; OB and UN have a length of four bytes (PS3.5 7.1.2).
        start, n_length = (at + 12, 4) if head[at + 4 : at + 6] in (b"OB", b"UN") else (at + 8, 2)
        end = start + int.from_bytes(head[start - n_length : start], "little")
        if end > len(head):
            return 0, ""
        if head[at : at + 4] == b"\x02\x00\x10\x00":
            syntax = head[start:end].rstrip(b"\0 ").decode("ascii", "replace")
        at = end
    return (at, syntax) if syntax else (0, "")


def result_key(
    picture: str,
    heads: Sequence[str],
    chain: str | None,
    allow: Iterable[str],
    views: int,
    release: str,
) -> str:
    """Give the key of a result: the same for everything an answer follows from.

    Parameters
    ----------
    picture : str
        From `picture_identity`.
    heads : sequence of str
        Digests of the heads, in their order.
    chain : str or None
        Digest of the chain's file.
    allow : iterable of str
        Reasons that are set aside.
    views : int
        Augmented views.
    release : str
        Of Hilum: another may read the same file otherwise.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits.
    """
    import hashlib

    # The first entry changes with what the others mean.
    said = ["hilum result 1", release, picture, list(heads), chain, sorted(set(allow)), views]
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()


# ---- Names ----------------------------------------------------------------------------------


def safe_name(given: str) -> str:
    """Make a name for an image's results that is one on every system, and leads nowhere.

    Parameters
    ----------
    given : str
        The path of the image, as it was given; anything at all.

    Returns
    -------
    str
        The file's name where that will do. Else what is left of it, for which the caller adds a
        digest: other names may become the same.
    """
    name = _SYNTAX.sub("_", Path(given).name) or "_"
    if name.startswith("."):  # hidden files are overlooked
        name = f"_{name[1:]}"
    # Spaces and dots before the first suffix do not count either.
    if _DEVICE.fullmatch(name.partition(".")[0].rstrip(" ")):
        name = f"_{name}"
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES - len(".json"):
        name = os.fsdecode(os.fsencode(name)[:SHORTENED_NAME_BYTES])
    return name


def is_drawn(path: Path) -> bool:
    """Tell a picture that was made beside a result of ours, by its name.

    Parameters
    ----------
    path : Path
        A file found in a folder of images.

    Returns
    -------
    bool
        True for heatmaps, and for structured reports and captures with their JSON beside them.
    """
    if path.name.endswith(HEATMAP_SUFFIX):
        return True
    for suffix in (REPORT_SUFFIX, CAPTURE_SUFFIX):
        if path.name.endswith(suffix):
            return os.path.isfile(f"{str(path).removesuffix(suffix)}.json")  # noqa: PTH113
    return False


def _names(given: str) -> tuple[str, ...]:
    """List what an image's results may be called, the best first."""
    import hashlib

    name, wanted = safe_name(given), Path(given).name
    digest = hashlib.sha256(os.fsencode(given)).hexdigest()
    # Room for the digest, whatever the file system makes of the characters.
    short = os.fsdecode(os.fsencode(name)[:SHORTENED_NAME_BYTES])
    others = (f"{short}.{digest[:12]}", f"{short[:80]}.{digest}")
    return (name, *others) if name == wanted else others


# ---- The folder -----------------------------------------------------------------------------


class Results:
    """The folder of results.

    Parameters
    ----------
    folder : str or PathLike
        Where they are, or will be: nothing is made or written before `make`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._notes = self.folder / _NOTES
        self._made = False

    def make(self) -> None:
        """Make the folder if it is missing, and find out now whether it can be written to.

        Raises
        ------
        WriteError
            It cannot; the message says why.
        """
        if self._made and os.path.isdir(self._notes):  # noqa: PTH112
            return
        try:
            if not self._made:  # a share that is gone must not become a folder of this disk
                self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self._notes.mkdir()
            if not stat.S_ISDIR(os.lstat(self._notes).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, f"its {_NOTES} is no folder")
            probe = self._part("probe")
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink()
        except OSError as error:
            reason = error.strerror or error
            message = f"cannot be written to ({reason}); choose another --output-dir"
            raise WriteError(self.folder, message) from error
        self._made = True

    def find(self, key: str, given: str) -> Prediction | None:
        """Look for a stored answer; nothing is written.

        Parameters
        ----------
        key : str
            From `result_key`.
        given : str
            The image, for which an answer of its own is preferred.

        Returns
        -------
        Prediction or None
            As it was stored, all files it names being there. Errors are no stored answers, nor are
            refusals that another installation need not repeat.
        """
        own = [(name, found) for name in _names(given) if (found := self._read(name)) is not None]
        for name, found in own:
            if found.input == given and self._serves(found, key, name):
                return found
        noted = self._note(key).get("result")
        if isinstance(noted, str) and noted and safe_name(noted) == noted:
            other = self._read(noted)
            if other is not None and self._serves(other, key, noted):
                return other
        return next((found for name, found in own if self._serves(found, key, name)), None)

    def repeat(self, found: Prediction, given: str) -> Prediction:
        """Give a stored answer again, for an image that may be called otherwise.

        Parameters
        ----------
        found : Prediction
            From `find`.
        given : str
            The image.

        Returns
        -------
        Prediction
            With this input and ``stored``; where it has another name than the one that is stored,
            files of its own were written.

        Raises
        ------
        WriteError
            They cannot be written.
        """
        if found.input == given:
            return replace(found, stored=True)
        reason = None if found.reason is None else found.reason.replace(found.input, given)
        sides = {}
        for suffix, name in self._sides_of(found).items():
            with suppress(OSError):
                sides[suffix] = self._bytes(self.folder / name)
        again = replace(found, input=given, reason=reason, stored=True)
        return self.write(again, sides)

    def write(
        self, prediction: Prediction, sides: Mapping[str, bytes], *, forget: bool = False
    ) -> Prediction:
        """Write everything that belongs to an image: the other files, the JSON, the note.

        Parameters
        ----------
        prediction : Prediction
            The answer.
        sides : mapping of str to bytes
            Content by suffix: `HEATMAP_SUFFIX`, `REPORT_SUFFIX`, `CAPTURE_SUFFIX`.
        forget : bool
            Forget to whom the answer for this key was sent.

        Returns
        -------
        Prediction
            With the names of its files.

        Raises
        ------
        WriteError
            Something cannot be written. What was there before, of another picture, may be gone;
            no JSON is left that names a file which is missing or not its own.
        """
        from formats import atomic_write

        self.make()
        name, claim = self._claim(prediction.input, prediction.key)
        path = self.folder / f"{name}.json"
        before = self._read(name)
        kept: dict[str, str] = {}
        if before is not None:
            if (
                before.key == prediction.key is not None
                and prediction.status == before.status == "ok"
                and not forget
            ):
                # The same answer, asked for with less: what was made of it stays true.
                kept = {
                    suffix: side
                    for suffix, side in self._sides_of(before).items()
                    if side == f"{name}{suffix}" and self._is_file(side)
                }
            elif self._sides_of(before):
                # It must not stand beside a drawing of another picture for a moment.
                path.unlink(missing_ok=True)
        for suffix in _SIDES:
            # That of an earlier run would lie beside a result it does not belong to.
            if suffix not in kept and suffix not in sides:
                with suppress(OSError):
                    (self.folder / f"{name}{suffix}").unlink()
        for suffix, content in sides.items():
            atomic_write(self.folder / f"{name}{suffix}", content)
        names = kept | {suffix: f"{name}{suffix}" for suffix in sides}
        wanted = prediction.wanted
        if HEATMAP_SUFFIX in names and "heatmap" not in wanted:
            wanted = (*wanted, "heatmap")
        written = replace(
            prediction,
            wanted=wanted,
            heatmap_file=names.get(HEATMAP_SUFFIX),
            sr_file=names.get(REPORT_SUFFIX),
            sc_file=names.get(CAPTURE_SUFFIX),
        )
        self._write_json(path, written)
        if written.key is not None and self._is_stored(written):
            note = {} if forget else self._note(written.key)
            self._write_note(written.key, note | {"result": name})
        with suppress(OSError):
            claim.unlink()
        return written

    def deliveries(self, key: str) -> list[dict[str, Any]]:
        """Tell what is known of the deliveries of a result.

        Parameters
        ----------
        key : str
            Of the result.

        Returns
        -------
        list of dict
            As `note_deliveries` was given them; a file and target that are not there may or may
            not have been tried.
        """
        found = self._note(key).get("delivered")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def note_deliveries(self, key: str, done: Sequence[Mapping[str, Any]]) -> None:
        """Remember where a result was delivered, or given up.

        Parameters
        ----------
        key : str
            Of the result.
        done : sequence of mapping
            As `engine.delivery.deliver` gives them: all that are known.
        """
        self._write_note(key, self._note(key) | {"delivered": [dict(one) for one in done]})

    def note_delivered(self, prediction: Prediction) -> None:
        """Say in the JSON of a result where it was delivered.

        Parameters
        ----------
        prediction : Prediction
            With ``delivered``, and files.
        """
        name = next(
            (side.removesuffix(suffix) for suffix, side in self._sides_of(prediction).items()), None
        )
        before = None if name is None else self._read(name)
        # Not over the result of another picture that has come to this name in the meantime.
        if before is not None and before.key == prediction.key:
            written = replace(before, delivered=prediction.delivered)
            self._write_json(self.folder / f"{name}.json", written)

    @contextmanager
    def open_table(self) -> Iterator[TextIO]:
        """Open the table under another name; it gets its own when it is whole."""
        self.make()
        path, part = self.folder / TABLE_NAME, self._part(TABLE_NAME)
        try:
            with part.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    # -- files --

    def _part(self, name: str) -> Path:
        """Name an unfinished file that nobody can have put there before."""
        return self.folder / f".{name}.{os.urandom(6).hex()}.part"

    def _write_json(self, path: Path, prediction: Prediction) -> None:
        from formats import atomic_write

        atomic_write(path, (json.dumps(prediction.to_json(), indent=1) + "\n").encode())

    def _bytes(self, path: Path) -> bytes:
        """Read a file of ours: regular, no link."""
        from formats import open_regular

        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open_regular(path) as stream:
            return stream.read()

    def _is_file(self, name: str) -> bool:
        try:
            return stat.S_ISREG(os.lstat(self.folder / name).st_mode)
        except (OSError, ValueError):
            return False

    def _read(self, name: str) -> Prediction | None:
        """Read the JSON of a name; None if there is none that is ours."""
        path = self.folder / f"{name}.json"
        try:
            if os.lstat(path).st_size > _MOST_JSON_BYTES:
                return None
            return Prediction.from_json(json.loads(self._bytes(path)))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _sides_of(self, found: Prediction) -> dict[str, str]:
        names = (found.heatmap_file, found.sr_file, found.sc_file)
        return {
            suffix: name
            for suffix, name in zip(_SIDES, names, strict=True)
            if isinstance(name, str)
        }

    def _is_stored(self, found: Prediction) -> bool:
        reason = (found.reason or "").partition(":")[0]
        return found.status != "error" and reason not in _NOT_STORED

    def _serves(self, found: Prediction, key: str, name: str) -> bool:
        """Whether a result is an answer for a key, and everything it names is there."""
        return (
            found.key == key
            and self._is_stored(found)
            and all(
                side == f"{name}{suffix}" and self._is_file(side)
                for suffix, side in self._sides_of(found).items()
            )
        )

    # -- notes --

    def _note(self, key: str) -> dict[str, Any]:
        try:
            found = json.loads(self._bytes(self._notes / f"{key}.json"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_note(self, key: str, note: Mapping[str, Any]) -> None:
        """Write a note whole, without waiting for the disk: what it says can be found out anew."""
        from formats._atomic import explain_write_failure

        path = self._notes / f"{key}.json"
        part = self._notes / f"{key}.{os.urandom(6).hex()}.part"
        try:
            with part.open("x", encoding="utf-8") as stream:
                json.dump(note, stream)
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise WriteError(path, explain_write_failure(path, error)) from error

    def _claim(self, given: str, key: str | None = None) -> tuple[str, Path]:
        """Choose the name of an image's files, and keep others from choosing it meanwhile."""
        import hashlib

        mine = hashlib.sha256(os.fsencode(given)).hexdigest()
        noted = None if key is None else self._note(key).get("result")
        for name in _names(given):
            # One claim for names that Windows takes for one.
            folded = hashlib.sha256(os.fsencode(name.casefold())).hexdigest()
            claim = self._notes / f"{folded[:32]}.claim"
            is_new = self._take(claim, mine)
            if is_new is None:
                continue
            # Our own, from before we were stopped, or before somebody took the JSON away.
            is_ours = not is_new or name == noted
            if self._is_free(name, given, is_ours=is_ours):
                return name, claim
            if is_new:
                claim.unlink(missing_ok=True)
        raise WriteError(
            self.folder, "holds files of others under every name for a result; choose another one"
        )

    def _take(self, claim: Path, mine: str) -> bool | None:
        """Take a claim: True if it is new, False if it was ours before, None if it is another's."""
        from formats._atomic import explain_write_failure

        part = self._notes / f"{claim.stem}.{os.urandom(6).hex()}.part"
        try:
            try:
                with part.open("x", encoding="ascii") as stream:
                    stream.write(mine)
                try:
                    os.link(part, claim)  # appears with its content, or fails
                except FileExistsError:
                    raise
                except (OSError, NotImplementedError):  # a file system without links
                    with claim.open("x", encoding="ascii") as stream:
                        stream.write(mine)
            except FileExistsError:
                try:
                    return False if self._bytes(claim).decode("ascii") == mine else None
                except (OSError, ValueError):
                    return None
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(claim, explain_write_failure(claim, error)) from error
        return True

    def _is_free(self, name: str, given: str, *, is_ours: bool) -> bool:
        """Whether a name is nobody's, or this image's already."""
        path = self.folder / f"{name}.json"
        found = self._read(name)
        if found is not None:
            return found.input == given
        if os.path.lexists(path):
            return is_ours and self._is_file(path.name)
        # Somebody's pictures, maybe inputs, have the names of what lies beside a JSON.
        return is_ours or not any(
            os.path.lexists(self.folder / f"{name}{suffix}") for suffix in _SIDES
        )


class Table:
    """Answers as CSV: the columns follow from the heads, and each row is out when it is known.

    Parameters
    ----------
    stream : text file
        Where to.
    heads : sequence of Head
        All that may answer.
    chain : Chain or None
        Which of them is asked when.
    """

    def __init__(self, stream: TextIO, heads: Sequence[Head], chain: Chain | None) -> None:
        import csv

        # By what they are and not by their headings: a class may be called "label".
        columns: dict[tuple[str, ...], str] = {(key,): key for key in ("input", "status", "reason")}
        if chain is not None:
            said = ("step", "label", "probability", "complete")
            columns |= {("chain", key): f"chain {key}" for key in said}
            columns |= {("step", step.name): f"step {step.name}" for step in chain.steps}
        for head in heads:
            columns["label", head.name] = f"{head.name}:label"
            columns |= {("class", head.name, name): f"{head.name}:{name}" for name in head.classes}
            if head.ood is not None:
                columns["refused", head.name] = f"{head.name} refused"
                columns["ood", head.name] = f"{head.name} ood"
        columns |= {(key,): key for key in ("backbone", "milliseconds")}
        self._keys = tuple(columns)
        self._stream = stream
        self._writer = csv.writer(stream, lineterminator="\n")
        self._writer.writerow(columns.values())
        self._stream.flush()

    def add(self, prediction: Prediction) -> None:
        """Write the row of an answer.

        Parameters
        ----------
        prediction : Prediction
            The answer.
        """
        row: dict[tuple[str, ...], Any] = {
            ("input",): prediction.input,
            ("status",): prediction.status,
            ("reason",): prediction.reason or "",
            ("backbone",): prediction.backbone,
            ("milliseconds",): round(prediction.milliseconds, 1),
        }
        for name, answer in prediction.heads.items():
            if "ood" in answer:
                row["refused", name] = answer.get("refused", "").partition(":")[0]
                row["ood", name] = answer["ood"]["score"]
            if "label" not in answer:
                continue
            row["label", name] = _joined(answer["label"])
            for class_name, probability in answer["probabilities"].items():
                row["class", name, class_name] = probability
        if prediction.chain is not None:
            row |= {("step", step["name"]): step["outcome"] for step in prediction.chain["steps"]}
            answer = prediction.chain["answer"]
            if answer is not None:
                p = answer["probability"]
                row["chain", "step"] = answer["step"]
                row["chain", "label"] = _joined(answer["label"])
                row["chain", "probability"] = _joined(p.values()) if isinstance(p, dict) else p
                row["chain", "complete"] = "yes" if answer["complete"] else "no"
        self._writer.writerow([row.get(key, "") for key in self._keys])
        self._stream.flush()


def _joined(values: str | Iterable[object]) -> str:
    return values if isinstance(values, str) else "|".join(map(str, values))
