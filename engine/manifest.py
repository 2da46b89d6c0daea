"""Which images there are and what is known of each: folders, lists of files and manifest CSVs."""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import ManifestError
from engine.images import find_images
from formats import open_regular

__all__ = ["Sample", "collect_samples", "read_manifest"]

COLUMNS = ("file", "label", "patient", "split", "source", "sex", "age", "view")
SPLITS = ("", "train", "valid", "test")
LABEL_SEPARATOR = "|"
UNCERTAIN_SUFFIX = "?"
UNKNOWN = "unknown"
# Sub-folders beyond this are hardly classes; their names would go into the container.
MAX_FOLDER_CLASSES = 20
FEW_FOLDER_CLASSES = 5
MIN_IMAGES_PER_FOLDER = 3

# Codes of the container's columns (formats/container.md, section Columns).
SEX_CODES = {
    "": 0,
    "unknown": 0,
    "u": 0,
    "f": 1,
    "female": 1,
    "m": 2,
    "male": 2,
    "o": 3,
    "other": 3,
}
PROJECTION_CODES = {
    "": 0,
    "unknown": 0,
    "pa": 1,
    "ap": 2,
    "ap supine": 3,
    "l": 4,
    "ll": 4,
    "rl": 4,
    "lateral": 4,
    "other": 5,
}
OTHER_PROJECTION = 5
# 90 stands for 90 or more: there are few of them, so a higher age points at a person
# (45 CFR 164.514(b)(2)(i)(C)).
OLDEST_AGE = 90
UNKNOWN_AGE = 255
MAX_AGE = 130


@dataclass(frozen=True)
class Sample:
    """One image and what its owner says of it.

    Attributes
    ----------
    path : Path
        The image file.
    labels : tuple of str or None
        Class names; ``None`` where nothing was said. A name ending in ``?`` is uncertain.
    patient : str or None
        Any identifier; it groups rows and is never written anywhere.
    split : str
        ``""``, ``"train"``, ``"valid"`` or ``"test"``.
    source : str or None
        Site or collection.
    sex, age, projection : int
        Codes of the container's columns.
    line : int or None
        Line of the manifest, for messages.
    """

    path: Path
    labels: tuple[str, ...] | None = None
    patient: str | None = None
    split: str = ""
    source: str | None = None
    sex: int = 0
    age: int = UNKNOWN_AGE
    projection: int = 0
    line: int | None = None


def collect_samples(
    sources: Sequence[str | Path], manifest: str | Path | None = None
) -> list[Sample]:
    """List the images of files, folders and a manifest.

    Parameters
    ----------
    sources : sequence of str or Path
        Files and folders. A folder whose sub-folders hold the images gives their names as
        labels; images directly in a folder, and files, have none. More than 20 sub-folders, or
        more than 5 with fewer than 3 images each on average, are taken for patients and refused.
    manifest : str or Path, optional
        CSV that describes the images (see :func:`read_manifest`). With ``sources``, only the
        manifest's files inside them are taken, and a file that is not found beside the CSV is
        looked for in each source folder.

    Returns
    -------
    list of Sample
        Each file once, in a stable order.

    Raises
    ------
    ManifestError
        No image at all, a source that does not exist, labelled and unlabelled images mixed,
        sub-folders that look like patients, or a manifest that breaks its rules.
    """
    paths = [Path(source) for source in sources]
    for path in paths:
        if not path.exists():
            raise ManifestError(path, "there is no such file or folder; check the spelling")
    if manifest is not None:
        samples = read_manifest(manifest, [path for path in paths if path.is_dir()])
        if paths:
            roots = [path.resolve() for path in paths]
            samples = [
                sample
                for sample in samples
                if any(sample.path.resolve().is_relative_to(root) for root in roots)
            ]
            if not samples:
                raise ManifestError(
                    manifest, f"none of its files lies in {', '.join(map(str, paths))}"
                )
        return samples
    samples = []
    for path in paths:
        samples.extend(_folder_samples(path) if path.is_dir() else [Sample(path)])
    if not samples:
        where = ", ".join(map(str, paths)) or "no source given"
        raise ManifestError(
            paths[0] if paths else Path(),
            f"no image found ({where}); expected PNG, JPEG, TIFF or DICOM files",
        )
    samples = _unique(samples)
    labelled = sum(sample.labels is not None for sample in samples)
    if 0 < labelled < len(samples):
        bare = next(sample.path for sample in samples if sample.labels is None)
        raise ManifestError(
            bare,
            f"{len(samples) - labelled} images lie outside the class folders that name the other "
            f"{labelled} images' labels; move them into one, or describe all with --manifest",
        )
    _check_folder_names(paths, samples)
    return samples


def _check_folder_names(paths: Sequence[Path], samples: Sequence[Sample]) -> None:
    """Refuse a folder for each patient: class names travel with the features."""
    n_classes = len({sample.labels for sample in samples if sample.labels is not None})
    sparse = n_classes > FEW_FOLDER_CLASSES and len(samples) < MIN_IMAGES_PER_FOLDER * n_classes
    if n_classes > MAX_FOLDER_CLASSES or sparse:
        where = next((path for path in paths if path.is_dir()), paths[0])
        raise ManifestError(
            where,
            f"{n_classes} sub-folders hold {len(samples)} images: these look like patients or "
            "studies, not classes; describe the images with --manifest",
        )


def _folder_samples(folder: Path) -> list[Sample]:
    samples = []
    for path in find_images(folder):
        parts = path.relative_to(folder).parts
        samples.append(Sample(path, labels=(parts[0],) if len(parts) > 1 else None))
    return samples


def _unique(samples: Iterable[Sample]) -> list[Sample]:
    """Keep each file once, whatever paths lead to it; a missing one is found out when read."""
    seen: dict[object, Sample] = {}
    for sample in samples:
        seen.setdefault(_identity(sample.path), sample)
    return list(seen.values())


def read_manifest(manifest: str | Path, folders: Sequence[Path] = ()) -> list[Sample]:
    """Read a manifest CSV.

    Parameters
    ----------
    manifest : str or Path
        UTF-8 CSV (comma or semicolon) with a header line. Column ``file`` is required, relative
        to the CSV; any of ``label``, ``patient``, ``split``, ``source``, ``sex``, ``age``,
        ``view`` may follow. Labels separated by ``|`` make a multi-label set, in which an empty
        label means that no finding is present and ``name?`` that the finding is uncertain.
    folders : sequence of Path, optional
        Where else to look for files that do not lie beside the CSV.

    Returns
    -------
    list of Sample
        In the order of the lines. Whether the files exist is found out when they are read, so
        that one missing file does not stop the others.

    Raises
    ------
    ManifestError
        With the line and column, what was found and what was expected.
    """
    path = Path(manifest)
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig") as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        raise ManifestError(
            path, f"byte {error.start} is not UTF-8; save the table as CSV in UTF-8"
        ) from error
    except OSError as error:
        raise ManifestError(path, f"cannot be read: {error.strerror}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ManifestError(
            path, f"line {line}: holds a NUL character, so it is no text; save it as CSV in UTF-8"
        )
    header = text.split("\n", 1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        _check_columns(path, columns)
        reader.fieldnames = columns
        samples = [_sample(path, reader.line_num, row, folders) for row in reader]
    except csv.Error as error:
        raise ManifestError(path, f"line {reader.line_num}: {error}") from error
    if not samples:
        raise ManifestError(path, "has a header but no line; expected one line for each image")
    _check_files(path, samples)
    return _checked_labels(path, samples, "label" in columns)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if not any(columns):
        raise ManifestError(path, f"is empty; expected a header with {', '.join(COLUMNS)}")
    for name in columns:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name.lower(), COLUMNS, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ";"
            raise ManifestError(
                path, f"line 1: unknown column {name!r}{hint} Columns are {', '.join(COLUMNS)}"
            )
        if columns.count(name) > 1:
            raise ManifestError(path, f"line 1: column {name!r} appears twice; remove one")
    if "file" not in columns:
        raise ManifestError(path, f"line 1: no column 'file'; found {', '.join(columns)}")


def _sample(
    path: Path, line: int, row: Mapping[str | None, str | list[str] | None], folders: Sequence[Path]
) -> Sample:
    if None in row or any(value is None for value in row.values()):
        raise ManifestError(
            path,
            f"line {line}: as many fields as the header has were expected; "
            "quote fields that hold the separator",
        )
    fields = {str(name): str(value).strip() for name, value in row.items()}
    if not fields["file"]:
        raise ManifestError(path, f"line {line}: no file name in column 'file'")
    split = fields.get("split", "").lower()
    if split not in SPLITS:
        raise ManifestError(
            path, f"line {line}: split {split!r}; expected train, valid, test or nothing"
        )
    sex = fields.get("sex", "").lower()
    if sex not in SEX_CODES:
        raise ManifestError(
            path, f"line {line}: sex {sex!r}; expected F, M, other, unknown or nothing"
        )
    labels = None
    if "label" in fields:
        parts = (_label(part) for part in fields["label"].split(LABEL_SEPARATOR))
        labels = tuple(dict.fromkeys(part for part in parts if part))
        _check_certainty(path, line, labels)
    return Sample(
        path=_locate(path, fields["file"], folders),
        labels=labels,
        patient=fields.get("patient") or None,
        split=split,
        source=_known(fields.get("source", "")),
        sex=SEX_CODES[sex],
        age=_age(path, line, fields.get("age", "")),
        projection=PROJECTION_CODES.get(fields.get("view", "").lower(), OTHER_PROJECTION),
        line=line,
    )


def _known(text: str) -> str | None:
    return None if text.lower() in ("", UNKNOWN) else text


def _label(text: str) -> str:
    name = text.strip()
    if name.endswith(UNCERTAIN_SUFFIX):
        return name.removesuffix(UNCERTAIN_SUFFIX).rstrip() + UNCERTAIN_SUFFIX
    return name


def _check_certainty(path: Path, line: int, labels: Sequence[str]) -> None:
    for label in labels:
        if label.endswith(UNCERTAIN_SUFFIX):
            name = label.removesuffix(UNCERTAIN_SUFFIX)
            if not name:
                raise ManifestError(
                    path, f"line {line}: label {label!r} has no name; write NAME{UNCERTAIN_SUFFIX}"
                )
            if name in labels:
                raise ManifestError(
                    path,
                    f"line {line}: {name!r} is called present and uncertain ({label!r}) at once; "
                    "keep one of them",
                )


def _locate(manifest: Path, name: str, folders: Sequence[Path]) -> Path:
    # Tables made on Windows name files with backslashes.
    candidates = [manifest.parent / name, *(folder / name for folder in folders)]
    if "\\" in name:
        candidates.append(manifest.parent / name.replace("\\", "/"))
    return next((path for path in candidates if _exists(path)), candidates[0])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # longer than a name may be: there is no such file
        return False


def _identity(path: Path) -> object:
    """Name the file that a path leads to; two paths to one file have the same name."""
    try:
        status = path.stat()
        if status.st_ino:
            return status.st_dev, status.st_ino
    except OSError:
        pass
    return Path(os.path.normpath(path))


def _age(path: Path, line: int, text: str) -> int:
    if not text:
        return UNKNOWN_AGE
    try:
        age = float(text.upper().removesuffix("Y"))
    except ValueError:
        age = -1.0
    if not 0 <= age <= MAX_AGE:
        raise ManifestError(path, f"line {line}: age {text!r}; expected whole years or nothing")
    return min(int(age), OLDEST_AGE)


def _check_files(path: Path, samples: Sequence[Sample]) -> None:
    seen: dict[object, Sample] = {}
    for sample in samples:
        first = seen.setdefault(_identity(sample.path), sample)
        if first is not sample:
            same = "" if first.path.name == sample.path.name else f" as {first.path.name}"
            raise ManifestError(
                path,
                f"line {sample.line}: {sample.path.name} was named in line {first.line} "
                f"already{same}; one line for each image (labels of a set are joined with "
                f"{LABEL_SEPARATOR!r})",
            )


def _checked_labels(path: Path, samples: list[Sample], given: bool) -> list[Sample]:
    if not given:
        return samples
    multilabel = any(
        len(sample.labels or ()) > 1
        or any(label.endswith(UNCERTAIN_SUFFIX) for label in sample.labels or ())
        for sample in samples
    )
    empty = [sample for sample in samples if not sample.labels]
    if len(empty) == len(samples):
        return [replace(sample, labels=None) for sample in samples]
    if multilabel:
        return samples
    if empty:
        raise ManifestError(
            path,
            f"line {empty[0].line}: no label ({len(empty)} such lines); give each image one label, "
            f"or remove the lines (only in a multi-label set, where some image has labels joined "
            f"with {LABEL_SEPARATOR!r}, does an empty one mean no finding)",
        )
    return samples
