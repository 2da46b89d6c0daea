"""Command ``python -m engine.predict``: answers for images, folders and DICOM files."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    MOST_THREADS,
    check_files,
    check_stop,
    command_line,
    count_up_to,
    report,
    run,
)
from engine.errors import OVERRIDABLE

if TYPE_CHECKING:
    from engine.cascade import Chain
    from engine.heads import Head
    from engine.prediction import Prediction

TABLE_NAME = "predictions.csv"
# File systems take 255 bytes; room is left for the suffix of an unfinished file.
LONGEST_NAME_BYTES = 200
SHORTENED_NAME_BYTES = 150
# engine.views.MAX_VIEWS, which is not worth its import before the command line is understood.
MOST_VIEWS = 32

HEATMAP_SUFFIX = ".heatmap.png"

DESCRIPTION = """\
Predict images with one or several heads on one pass of their backbone. Prints one JSON object a
line: input, status (ok, refused, error), reason, heads (name: label, probabilities, threshold, ood,
notice), backbone, milliseconds; where it applies allowed, views, chain, heatmap. Works offline.
Research use only."""

EPILOG = """\
examples:
  python -m engine.predict study.dcm
      with the embedded demonstration head (children of 1 to 5 years; a demonstration, no more)
  python -m engine.predict inbox/ --head chest.safetensors --output-dir results/
      every image of a folder; results/NAME.json each, written whole or not at all
  find /archive -name '*.dcm' | python -m engine.predict - --head a.safetensors --head b.safetensors
      "-" takes paths from standard input, one a line, and answers each as it comes
  python -m engine.predict inbox/ --chain chest.toml --heatmap --output-dir results/
      heads that are asked one after the other; results/NAME.heatmap.png beside each JSON

refusals:
  A head knows how its training images look. Where a picture is too unlike them it gives no label
  and no probability, but {"refused": reason, "ood": {"score": s, "threshold": t}}. The other heads
  still answer; if all refuse, the picture's status is refused. --allow out_of_distribution makes
  them answer, and the JSON says so: "allowed": ["out_of_distribution"].

chains:
  A TOML file names heads and says when to go on. Heads are found relative to it.
      [[step]]
      name = "chest"
      head = "is_chest.safetensors"
      continue_if = { class = "chest", at_least = 0.5 }
      [[step]]
      name = "pneumonia"                # follows the step before it
      head = "pneumonia.safetensors"
      [[step]]
      name = "kind"
      head = "kind.safetensors"
      when = { step = "pneumonia", label = "pneumonia" }
  A condition is label = "x" or ["x", "y"] (decided by the head's own thresholds), or class = "x"
  with at_least and/or below (its probability). Several steps may follow one, each with its when.
  The JSON's chain holds name, steps (name, head, outcome: answered, skipped or refused, reason) and
  answer, that of the last step that gave one (step, label, probability, complete: false if a step
  that was due refused). heads holds only those asked.

heatmaps:
  Red places speak for the decided label, blue ones against it; all of them and a constant sum to
  the head's logit for the picture itself, without views. They show where the network found its
  evidence, not what made it so: red outside of the lungs is a warning."""


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
        "--chain",
        metavar="FILE.toml",
        help="heads to ask one after the other, see below; in the place of --head: a head that is "
        "to answer besides is one more step of the file",
    )
    add(
        "--views",
        type=count_up_to(MOST_VIEWS),
        metavar="N",
        help="average the logits of the image with those of N augmented views of it (turned, "
        "shifted, scaled, contrast changed): N + 1 times the work, a little better for heads "
        "trained with views, worse for others (default: none)",
    )
    add(
        "--heatmap",
        action="store_true",
        help="with --output-dir, also draw NAME" + HEATMAP_SUFFIX + ": for each decided label, "
        "which places spoke for it and against it",
    )
    add(
        "--allow",
        action="append",
        choices=OVERRIDABLE,
        metavar="REASON",
        help="predict although this reason speaks against it; may be given several times, one of: "
        + ", ".join(OVERRIDABLE),
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
    if arguments.chain and arguments.head:
        options.error(
            "--chain and --head do not go together; add the head to the chain's file as a step"
        )
    if arguments.heatmap and arguments.output_dir is None:
        options.error("--heatmap draws files: give --output-dir for them")
    chains = [] if arguments.chain is None else [arguments.chain]
    check_files(options, [*(arguments.head or ()), *chains], ())
    paths, total = _inputs(options, arguments.input)
    chain = None
    if arguments.chain:
        from engine.cascade import load_chain

        chain = load_chain(arguments.chain)

    from tqdm import tqdm

    from engine.prediction import Predictor

    # Paths that come one by one are answered one by one: several at once would be taken ahead of
    # the answers, and a program that waits for each answer would wait for ever.
    streams = arguments.threads if arguments.threads or (total or 0) > 1 else 1
    predictor = Predictor(
        arguments.head,
        streams=streams,
        allow=arguments.allow or (),
        views=arguments.views or 0,
        chain=chain,
        heatmap=arguments.heatmap,
    )
    # Behind all that can be wrong with heads: then nothing is written, this folder included.
    results = None if arguments.output_dir is None else _Results(Path(arguments.output_dir))
    if not arguments.quiet:
        for head in predictor.heads:
            notice = head.notice()
            if notice:
                report(f"{head.name}: {notice}")
            if arguments.views and not head.training.get("n_views"):
                # Accuracy 0.892 without and 0.874 with views, where the head had seen none.
                report(f"{head.name}: was trained without views; leave --views out")
    n_not_ok = 0
    bar_wanted = not arguments.quiet and total is not None and total > 1 and sys.stderr.isatty()
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, unit="image", disable=not bar_wanted, leave=False)
        )
        table = None
        if arguments.csv:
            stream = sys.stdout if results is None else stack.enter_context(results.open_table())
            table = _Table(stream, predictor.heads, chain)
        for prediction in predictor.predict_many(paths):
            check_stop()
            n_not_ok += prediction.status != "ok"
            if results is not None:
                prediction = results.name_heatmap(prediction)  # noqa: PLW2901
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
            # Our own drawings of an earlier run are no X-rays.
            found = [path for path in find_images(text) if not path.name.endswith(HEATMAP_SUFFIX)]
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

    def name_heatmap(self, prediction: Prediction) -> Prediction:
        """Say in a prediction what the file of its heatmap will be called."""
        if prediction.heatmap is None:
            return prediction
        return replace(prediction, heatmap_file=self._stem(prediction.input) + HEATMAP_SUFFIX)

    def write(self, prediction: Prediction) -> None:
        import formats

        # The drawing first: a result that names it is never there without it.
        stem = self._stem(prediction.input)
        if prediction.heatmap is not None and prediction.heatmap_file is not None:
            from engine.heatmap import encode_png

            path = self._folder / prediction.heatmap_file
            formats.atomic_write(path, encode_png(prediction.heatmap))
        elif "heatmap" in prediction.wanted:
            # That of an earlier run would lie beside a result it does not belong to.
            with suppress(OSError):
                (self._folder / f"{stem}{HEATMAP_SUFFIX}").unlink()
        path = self._folder / f"{stem}.json"
        formats.atomic_write(path, (json.dumps(prediction.to_json(), indent=1) + "\n").encode())

    def _stem(self, given: str) -> str:
        """Choose the name of an image's files, without suffix."""
        name = Path(given).name
        path = self._folder / f"{name}.json"
        if (
            len(os.fsencode(path.name)) > LONGEST_NAME_BYTES
            or path.name == TABLE_NAME
            or self._belongs_to_another(path, given)
        ):
            # Room for the digest, whatever the file system makes of the characters.
            stem = os.fsdecode(os.fsencode(name)[:SHORTENED_NAME_BYTES])
            digest = hashlib.sha256(os.fsencode(given)).hexdigest()
            return f"{stem}.{digest[:12]}"
        return name

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

    def __init__(self, stream: TextIO, heads: Sequence[Head], chain: Chain | None) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
