"""Command ``python -m engine.predict``: answers for images, folders and DICOM files."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    command_line,
    positive,
    report,
    run,
)

if TYPE_CHECKING:
    from engine.prediction import Prediction

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
        type=positive,
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
    for head in arguments.head or ():
        if not Path(head).exists():
            options.error(f"{head}: there is no such head file; check the spelling")
    paths, total = _inputs(options, arguments.input)
    output_dir = None
    if arguments.output_dir is not None:
        output_dir = _Results(Path(arguments.output_dir))

    from tqdm import tqdm

    from engine.prediction import Predictor

    streams = arguments.threads if total is None or total > 1 else 1
    predictor = Predictor(arguments.head, streams=streams)
    if not arguments.quiet:
        for head in predictor.heads:
            notice = head.notice()
            if notice:
                report(f"{head.name}: {notice}")
    table: list[dict[str, Any]] = []
    n_not_ok = 0
    csv_to_stdout = arguments.csv and output_dir is None
    bar_wanted = not arguments.quiet and total is not None and total > 1 and sys.stderr.isatty()
    with tqdm(total=total, unit="image", disable=not bar_wanted, leave=False) as bar:
        for prediction in predictor.predict_many(paths):
            n_not_ok += prediction.status != "ok"
            if output_dir is not None:
                output_dir.write(prediction)
            if arguments.csv:
                table.append(_csv_row(prediction))
            if not csv_to_stdout:
                bar.clear()
                print(json.dumps(prediction.to_json()), flush=True)
            bar.update()
    if csv_to_stdout:
        sys.stdout.write(_csv_text(table))
    elif arguments.csv and output_dir is not None:
        output_dir.write_text("predictions.csv", _csv_text(table))
    return EXIT_SOME_FAILED if n_not_ok else EXIT_DONE


def _inputs(
    options: argparse.ArgumentParser, inputs: Sequence[str]
) -> tuple[Iterable[str | Path], int | None]:
    """List the files to predict, or stream them when ``-`` is among the inputs."""
    from engine.images import find_images

    if "-" in inputs:
        if len(inputs) > 1:
            options.error("- takes every path from standard input; give it alone")
        return _standard_input(), None
    paths: list[str | Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = find_images(path)
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
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        # Found out now, not after the first minutes of work.
        probe = folder / f".hilum-{id(self):x}"
        probe.touch()
        probe.unlink()

    def write(self, prediction: Prediction) -> None:
        name = Path(prediction.input).name
        path = self._folder / f"{name}.json"
        if self._belongs_to_another(path, prediction.input):
            digest = hashlib.sha256(prediction.input.encode(errors="surrogateescape")).hexdigest()
            path = self._folder / f"{name}.{digest[:12]}.json"
        text = json.dumps(prediction.to_json(), indent=1)
        self.write_text(path.name, text + "\n")

    def write_text(self, name: str, text: str) -> None:
        import formats

        formats.atomic_write(self._folder / name, text.encode("utf-8", "surrogateescape"))

    @staticmethod
    def _belongs_to_another(path: Path, given: str) -> bool:
        try:
            found = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        except FileNotFoundError:
            return False
        except ValueError:
            return True
        return not isinstance(found, dict) or found.get("input") != given


def _csv_row(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {
        "input": prediction.input,
        "status": prediction.status,
        "reason": prediction.reason or "",
    }
    for name, answer in prediction.heads.items():
        label = answer["label"]
        row[f"{name}:label"] = "|".join(label) if isinstance(label, list) else label
        for class_name, probability in answer["probabilities"].items():
            row[f"{name}:{class_name}"] = probability
    row["backbone"] = prediction.backbone
    row["milliseconds"] = round(prediction.milliseconds, 1)
    return row


def _csv_text(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
