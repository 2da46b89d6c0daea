"""Command ``python -m engine.predict``: answers for images, folders and DICOM files."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    MOST_THREADS,
    check_files,
    check_stop,
    command_line,
    count_up_to,
    leave,
    report,
    run,
)
from engine.jit import MANY
from engine.worker import Settings, Worker, add_options, settings_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from engine.answers import Prediction
    from engine.heads import Head
    from engine.slots import EngineSlot

# Held until the process ends: giving the network back takes 6 of 200 ms, see `leave`.
_last: list[Worker] = []

DESCRIPTION = """\
Predict images with one or several heads on one pass of their backbone. Prints one JSON object a
line: input, status (ok, refused, error), reason, heads (name: label, probabilities, threshold, ood,
notice), backbone, milliseconds; where it applies allowed, views, chain, heatmap, key, stored, sr,
sc, delivered. Works offline. Research use only."""

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
  python -m engine.predict "$FILE" --output-dir results/ --sr --sc --store PACS@10.0.0.5:11112
      what a PACS calls for each file: report and picture go back into the study of the image
  python -m engine.predict "$FILE" --spool /var/spool/hilum --no-wait
      hand it over to python -m engine.serve, which holds the network in memory

stored answers:
  With --output-dir, each answer has a key: a digest of the picture (the data set of DICOM files,
  the bytes of others), the heads, the chain, --allow, --views and the release of Hilum. A picture
  that comes again under the same key, also under another name, gets its answer from the folder,
  with "stored": true; nothing is predicted, and nothing sent that was sent before. A delivery that
  did not come to its end is taken up again. Errors are not stored. A file that was corrected is
  another picture, though it kept its SOP Instance UID. --force predicts and sends all the same.

rights of the results:
  Files in DIR get those that the umask of the user leaves (systemd: UMask=0027), so that a viewer
  may read them. They name files and hold, with --sr and --sc, what identifies a patient: keep DIR
  where only those may look who may see the pictures. SPOOL is closed to all others by itself.

results in a PACS:
  --sr and --sc make DICOM objects in the study of the image: same patient, study and accession
  number. Refused pictures and other formats than DICOM get JSON only. They are sent by --store and
  --orthanc, with a few attempts each; what still fails lies in DIR/dead_letters, and
  python -m engine.deliver sends it again. "delivered" says what became of it. Results of Hilum that
  come back are refused (own_result). They need: pip install 'hilum[pacs]'.

refusals:
  A head knows how its training images look. Where a picture is too unlike them it gives no label
  and no probability, but {"refused": reason, "ood": {"score": s, "threshold": t}}. The other heads
  still answer; if all refuse, the picture's status is refused. --allow out_of_distribution makes
  them answer, and the JSON says so: "allowed": ["out_of_distribution"]. If only the negative of a
  picture is like the training images, the reason is inverted.

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
    add_options(result)
    add(
        "--engines",
        type=_engines,
        default=1,
        metavar="N",
        help="how many engines of this user may work at once on this machine; further ones wait "
        "for their turn (default: 1; 0: no bound)",
    )
    add(
        "--spool",
        metavar="DIR",
        help="hand the images over to the worker of this spool (python -m engine.serve DIR) and "
        "wait for its answers; if none is running, work in its place. The worker's own options "
        "say what is asked, so the others here do not go with it",
    )
    add(
        "--no-wait",
        action="store_true",
        help='with --spool, do not wait: print {"job": name} for each image',
    )
    add("--quiet", action="store_true", help="no progress bar and no notices on standard error")
    return result


def _engines(text: str) -> int:
    return 0 if text == "0" else count_up_to(MOST_THREADS)(text)


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
    settings = settings_of(options, arguments)
    if arguments.spool is not None:
        return _hand_over(options, arguments, settings)
    if arguments.no_wait:
        options.error("--no-wait is for --spool: without it, nobody else would answer")
    chains = [] if settings.chain is None else [settings.chain]
    check_files(options, [*settings.heads, *chains], ())
    paths, total = _inputs(options, arguments.input)
    # Paths that come one by one are answered one by one: several at once would be taken ahead of
    # the answers, and a program that waits for each answer would wait for ever.
    by_one = not settings.threads and (total is None or total == 1)
    worker = Worker(
        settings,
        streams=1 if by_one else None,
        kernels=(total or 0) > MANY or (settings.threads or 1) > 1,
        notice=None if arguments.quiet else lambda path, text: report(f"{path}: {text}"),
        loaded=None if arguments.quiet else lambda heads: _introduce(heads, settings),
    )
    _last[:] = [worker]
    from engine.slots import engine_slot

    slot = engine_slot(arguments.engines, announce=None if arguments.quiet else report)
    n_not_ok = 0
    with ExitStack() as stack:
        bar = None
        if not arguments.quiet and total is not None and total > 1 and sys.stderr.isatty():
            from tqdm import tqdm

            bar = stack.enter_context(tqdm(total=total, unit="image", leave=False))
        table = None
        if settings.csv:
            from engine.results import Table

            with slot:
                heads, chain = worker.heads, worker.chain
            stream = sys.stdout
            if worker.results is not None:
                stream = stack.enter_context(worker.results.open_table())
            table = Table(stream, heads, chain)
        find = _one_by_one if by_one else _many
        for prediction in find(worker, paths, slot):
            check_stop()
            sent = all(one.get("status") == "sent" for one in prediction.delivered)
            n_not_ok += prediction.status != "ok" or not sent
            if table is not None:
                table.add(prediction)
            if table is None or worker.results is not None:
                if bar is not None:
                    bar.clear()
                print(json.dumps(prediction.to_json()), flush=True)
            if bar is not None:
                bar.update()
    return EXIT_SOME_FAILED if n_not_ok else EXIT_DONE


def _introduce(heads: Sequence[Head], settings: Settings) -> None:
    """Say what the heads are made for, before their answers."""
    for head in heads:
        notice = head.notice()
        if notice:
            report(f"{head.name}: {notice}")
        if settings.views and not head.training.get("n_views"):
            # Accuracy 0.892 without and 0.874 with views, where the head had seen none.
            report(f"{head.name}: was trained without views; leave --views out")


def _one_by_one(
    worker: Worker, paths: Iterable[str | Path], slot: EngineSlot
) -> Iterator[Prediction]:
    """Answer each file before the next is taken; while it waits for one, others may work."""
    for path in paths:
        found = worker.stored(path)
        if found is None:
            with slot:
                found = worker.judge(path)
        yield worker.deliver(found)


def _many(worker: Worker, paths: Iterable[str | Path], slot: EngineSlot) -> Iterator[Prediction]:
    """Answer files on all streams; what is behind the prediction does not keep others waiting."""
    from itertools import chain

    waiting = iter(paths)
    for path in waiting:
        found = worker.stored(path)
        if found is None:
            break
        yield worker.deliver(found)
    else:
        return
    judged = _judged(worker, chain([path], waiting), slot)
    if not worker.delivers:
        yield from judged
        return
    from engine.inference import in_order

    yield from in_order(worker.deliver, judged, 2)


def _judged(worker: Worker, paths: Iterable[str | Path], slot: EngineSlot) -> Iterator[Prediction]:
    """Predict files with a slot, and let others have it between two of them."""
    waiting = iter(paths)
    is_left = True

    def until_wanted() -> Iterator[str | Path]:
        nonlocal is_left
        for path in waiting:
            yield path
            if slot.wanted():
                return
        is_left = False

    with slot:
        while is_left:
            yield from worker.judge_many(until_wanted())
            slot.give_way()


def _hand_over(
    options: argparse.ArgumentParser, arguments: argparse.Namespace, settings: Settings
) -> int:
    """Let the worker of a spool answer."""
    if settings != Settings():
        options.error(
            "with --spool, the options of python -m engine.serve say what is asked; leave the "
            "others out, or give them to it"
        )
    from engine.handover import hand_over

    paths, _ = _inputs(options, arguments.input)
    n_not_ok = 0
    for answer in hand_over(arguments.spool, paths, wait=not arguments.no_wait):
        check_stop()
        sent: Sequence[Any] = answer.get("delivered", ())
        is_done = arguments.no_wait or answer.get("status") == "ok"
        n_not_ok += not is_done or any(one.get("status") != "sent" for one in sent)
        print(json.dumps(answer), flush=True)
    return EXIT_SOME_FAILED if n_not_ok else EXIT_DONE


def _inputs(
    options: argparse.ArgumentParser, inputs: Sequence[str]
) -> tuple[Iterable[str | Path], int | None]:
    """List the files to predict, or stream them when ``-`` is among the inputs."""
    if "-" in inputs:
        if len(inputs) > 1:
            options.error("- takes every path from standard input; give it alone")
        if sys.stdin is None:
            options.error("- takes paths from standard input, which is closed")
        return _standard_input(), None
    paths: list[str | Path] = []
    for text in inputs:
        if os.path.isdir(text):  # noqa: PTH112 - Path.is_dir raises for a name too long
            from engine.images import find_images
            from engine.results import is_drawn

            # Our own drawings of an earlier run are no X-rays.
            found = [path for path in find_images(text) if not is_drawn(path)]
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


if __name__ == "__main__":
    leave(main())
