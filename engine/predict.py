"""Command ``python -m engine.predict``: answers for images, folders and DICOM files."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    MOST_THREADS,
    check_files,
    command_line,
    count_up_to,
    report,
    run,
)

if TYPE_CHECKING:
    from engine.heads import Head
    from engine.prediction import Prediction

TABLE_NAME = "predictions.csv"
# File systems take 255 bytes; room is left for the suffix of an unfinished file.
LONGEST_NAME_BYTES = 200
SHORTENED_NAME_BYTES = 150

DESCRIPTION = """\
Predict images with one or several heads on one pass of their backbone. Prints one JSON object a
line: input, status (ok, refused, error), reason, heads (name: label, probabilities, threshold,
notice), backbone, milliseconds. Works offline. Research use only."""

EPILOG = """\
examples:
  python -m engine.predict study.dcm
      with the embedded demonstration head (children of 1 to 5 years; a demonstration, no more)
  python -m engine.predict inbox/ --head chest.safetensors --output-dir results/
      every image of a folder; results/NAME.json each, written whole or not at all
  find /archive -name '*.dcm' | python -m engine.predict - --head a.safetensors --head b.safetensors
      "-" takes paths from standard input, one a line, and answers each as it comes"""


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = command_line("predict", DESCRIPTION, EPILOG)
    add = result.add_argument
    add(
        "input",
        nargs="+",
        metavar="IMAGE|FOLDER|-",
        help="images, folders, or - for paths on standard input",
    )
    add(
        "--head",
        action="append",
        metavar="HEAD.safetensors",
        help="a trained head; may be given several times (default: the embedded demonstration "
        "head)",
    )
    add(
        "--output-dir",
        metavar="DIR",
        help="also write one JSON file an image into DIR, which is made if missing",
    )
    add(
        "--csv",
        action="store_true",
        help="a table instead of JSON lines on standard output; with --output-dir, "
        "DIR/predictions.csv beside them",
    )
    add(
        "--threads",
        type=count_up_to(MOST_THREADS),
        metavar="N",
        help="images worked on at once (default: one per core)",
    )
    add("--quiet", action="store_true", help="no progress bar and no notices on standard error")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Returns
    -------
    int
        Exit code.
    """
    options = parser()
    arguments = options.parse_args(argv)
    return run(lambda: _predict(options, arguments))


def _predict(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    check_files(options, arguments.head or (), ())
    paths, total = _inputs(options, arguments.input)
    results = None if arguments.output_dir is None else _Results(Path(arguments.output_dir))

    from tqdm import tqdm

    from engine.prediction import Predictor

    # Paths that come one by one are answered one by one: several at once would be taken ahead of
    # the answers, and a program that waits for each answer would wait for ever.
    streams = arguments.threads if arguments.threads or (total or 0) > 1 else 1
    predictor = Predictor(arguments.head, streams=streams)
    if not arguments.quiet:
        for head in predictor.heads:
            notice = head.notice()
            if notice:
                report(f"{head.name}: {notice}")
    n_not_ok = 0
    bar_wanted = not arguments.quiet and total is not None and total > 1 and sys.stderr.isatty()
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, unit="image", disable=not bar_wanted, leave=False)
        )
        table = None
        if arguments.csv:
            stream = sys.stdout if results is None else stack.enter_context(results.open_table())
            table = _Table(stream, predictor.heads)
        for prediction in predictor.predict_many(paths):
            n_not_ok += prediction.status != "ok"
            # Printed first: whatever happens to the files, the answer is out.
            if table is not None:
                table.add(prediction)
            if table is None or results is not None:
                bar.clear()
                print(json.dumps(prediction.to_json()), flush=True)
            if results is not None:
                results.write(prediction)
            bar.update()
    return EXIT_SOME_FAILED if n_not_ok else EXIT_DONE


def _inputs(
    options: argparse.ArgumentParser, inputs: Sequence[str]
) -> tuple[Iterable[str | Path], int | None]:
    """List the files to predict, or stream them when ``-`` is among the inputs."""
    from engine.images import find_images

    if "-" in inputs:
        if len(inputs) > 1:
            options.error("- takes every path from standard input; give it alone")
        if sys.stdin is None:
            options.error("- takes paths from standard input, which is closed")
        return _standard_input(), None
    paths: list[str | Path] = []
    for text in inputs:
        if os.path.isdir(text):  # noqa: PTH112 - Path.is_dir raises for a name too long
            found = find_images(text)
            if not found:
                options.error(f"{text}: no PNG, JPEG, TIFF or DICOM file in this folder")
            paths.extend(found)
        else:
            paths.append(text)  # a missing file is answered with status error, like any bad file
    return paths, len(paths)


def _standard_input() -> Iterator[str]:
    for line in sys.stdin:
        path = line.rstrip("\r\n")
        if path:
            yield path


class _Results:
    """The folder of results: one JSON file an image, no file of another image overwritten."""

    def __init__(self, folder: Path) -> None:
        from engine import WriteError

        self._folder = folder
        # Found out now, not after the first minutes of work.
        probe = folder / f".hilum-{os.getpid():x}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = error.strerror or error
            message = f"cannot be written to ({reason}); choose another --output-dir"
            raise WriteError(folder, message) from error

    def write(self, prediction: Prediction) -> None:
        name = Path(prediction.input).name
        path = self._folder / f"{name}.json"
        if (
            len(os.fsencode(path.name)) > LONGEST_NAME_BYTES
            or path.name == TABLE_NAME
            or self._belongs_to_another(path, prediction.input)
        ):
            # Room for the digest, whatever the file system makes of the characters.
            stem = os.fsdecode(os.fsencode(name)[:SHORTENED_NAME_BYTES])
            digest = hashlib.sha256(os.fsencode(prediction.input)).hexdigest()
            path = self._folder / f"{stem}.{digest[:12]}.json"
        import formats

        formats.atomic_write(path, (json.dumps(prediction.to_json(), indent=1) + "\n").encode())

    @contextmanager
    def open_table(self) -> Iterator[TextIO]:
        """Open the table under another name; it gets its own when it is whole."""
        path = self._folder / TABLE_NAME
        part = path.with_name(path.name + ".part")
        try:
            with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    @staticmethod
    def _belongs_to_another(path: Path, given: str) -> bool:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True
        return not isinstance(found, dict) or found.get("input") != given


class _Table:
    """Answers as CSV: the columns follow from the heads, and each row is out when it is known."""

    def __init__(self, stream: TextIO, heads: Sequence[Head]) -> None:
        columns = ["input", "status", "reason"]
        for head in heads:
            columns.append(f"{head.name}:label")
            columns += [f"{head.name}:{class_name}" for class_name in head.classes]
        columns += ["backbone", "milliseconds"]
        self._stream = stream
        self._writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        self._writer.writeheader()
        self._stream.flush()

    def add(self, prediction: Prediction) -> None:
        row: dict[str, Any] = {
            "input": prediction.input,
            "status": prediction.status,
            "reason": prediction.reason or "",
            "backbone": prediction.backbone,
            "milliseconds": round(prediction.milliseconds, 1),
        }
        for name, answer in prediction.heads.items():
            label = answer["label"]
            row[f"{name}:label"] = "|".join(label) if isinstance(label, list) else label
            for class_name, probability in answer["probabilities"].items():
                row[f"{name}:{class_name}"] = probability
        self._writer.writerow(row)
        self._stream.flush()


if __name__ == "__main__":
    sys.exit(main())
