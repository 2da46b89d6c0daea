"""Command ``python -m engine.extract``: X-rays into a container of features."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import formats
from engine.cli import (
    EXIT_DONE,
    EXIT_SIGNAL,
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    MOST_THREADS,
    check_files,
    check_stop,
    command_line,
    count_up_to,
    exit_code_of,
    report,
    run,
    seed,
)

if TYPE_CHECKING:
    from formats import Container

DESCRIPTION = """\
Run a pretrained network over X-rays once and keep its pooled output in a container: a small file
with features, labels, splits and patient groups, without names or file names, and without pixels
unless --floors asks for them. Heads are trained from it in seconds, on any PC, without the images
(see python -m engine.train)."""

EPILOG = """\
examples:
  python -m engine.extract xrays/ -o chest.hilum
      xrays/normal/*.png and xrays/pneumonia/*.dcm: the sub-folders' names are the labels
  python -m engine.extract --manifest labels.csv -o chest.hilum
      a table with a line for each image; columns: file (relative to the CSV) and any of
      label, patient, split (train|valid|test), source, sex, age, view

Give the patient column whenever a patient has several images: rows of one patient are then never
split between training and testing. A|B in the label column makes a multi-label set, in which an
empty label means no finding and "A?" an uncertain one.

A container is derived from health images: treat it as pseudonymised personal data unless the
controller documents otherwise for a named recipient. Rows are shuffled; patient identifiers,
dates and file names are not stored. Research use only.

A run that is stopped, fails or loses power keeps its rows in OUT.hilum.part; the same command with
--resume goes on with them, and ends with the very file the first run would have written."""


# As engine.views.MAX_VIEWS, which would make --help import NumPy; a test compares the two.
MOST_VIEWS = 32
# Fewer could be found by trying.
_SECRET_BYTES = 16


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = command_line("extract", DESCRIPTION, EPILOG)
    add = result.add_argument
    add("source", nargs="*", metavar="SOURCE", help="image files and folders of images")
    add("-o", "--output", required=True, metavar="OUT.hilum", help="container to write")
    add("--manifest", metavar="M.csv", help="table of the images; SOURCE may then be left out")
    add(
        "--backbone",
        default="efficientnet-lite0",
        metavar="NAME",
        help="network (default: %(default)s; efficientnet-lite2 is larger and slower); several "
        "joined by + look at each picture in turn, their features stand side by side",
    )
    add(
        "--taps",
        metavar="TAPS",
        help='feature maps to pool, e.g. "block10,final" or "block10:mean+std,final:mean" '
        "(default: the measured choice in the model card)",
    )
    add("--pooling", metavar="P,P", help="poolings of the taps that name none: mean,max,std,gem")
    add(
        "--views",
        type=count_up_to(MOST_VIEWS),
        default=0,
        metavar="N",
        help="augmented views of each image to store beside it, for training: turned up to 5 "
        "degrees, shifted 3 %%, scaled 5 %% and changed in contrast 10 %%, each number always the "
        "same way. Each costs a row of its own and the network's time again: 4 views make the file "
        "and the time about 5 times as large",
    )
    add(
        "--mirror",
        action="store_true",
        help="with --views: view 1 is the mirror image, and all other odd ones are mirrored too; "
        "only where left and right do not matter (on the chest it made heads worse)",
    )
    add(
        "--floors",
        metavar="F,F",
        help="blocks of pixels that heads are measured against: border (the outer tenth of the "
        "picture at 64 x 64) and pixels (all of it). PRIVACY: a container with pixels shows every "
        "X-ray, so it is refused by sign and export and must not be shared; python -m formats "
        "subset --without-floors writes one that may be",
    )
    add(
        "--dtype",
        choices=("f16", "f32", "i8"),
        default="f16",
        help="element type in the file (default: %(default)s)",
    )
    add(
        "--about",
        metavar="A.json",
        help="facts on the whole set for the container's notes: title, attribution, licence, "
        "terms, population, age_range_years [low, high], url",
    )
    add(
        "--threads",
        type=count_up_to(MOST_THREADS),
        metavar="N",
        help="images worked on at once (default: one per core)",
    )
    add(
        "--seed",
        type=seed,
        metavar="N",
        help="order of the rows (default: drawn anew each time, so that the order tells nothing)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with a run that was stopped; begins anew where there is none",
    )
    add(
        "--sample-keys",
        metavar="SECRET",
        help="file with a secret of your site (16 bytes or more, kept private): each row gets a "
        "keyed hash of its image file, by which merge and withdraw know the image again",
    )
    add(
        "--quiet",
        action="store_true",
        help="no progress bar and no summary; errors are still shown",
    )
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
    if arguments.mirror and not arguments.views:
        options.error("--mirror is about augmented views: say how many with --views")
    if not arguments.source and arguments.manifest is None:
        options.error("give image files or folders, or --manifest")
    named = (arguments.manifest, arguments.about, arguments.sample_keys)
    inputs = [*arguments.source, *filter(None, named)]
    check_files(options, inputs, (arguments.output,))
    return run(lambda: _extract_or_explain(options, arguments))


def _extract_or_explain(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    import engine

    try:
        return _extract(options, arguments)
    except engine.MismatchError as error:
        report(f"error: {error}")  # the unfinished run was another one
        return EXIT_USAGE
    except (engine.NotesError, engine.SplitError) as error:
        # Found before the first image: what the table, the folders' names or --about say.
        where = ", ".join(filter(None, (arguments.manifest, arguments.about))) or "folder names"
        report(f"error: {where}: {error}")
        return EXIT_USAGE


def _extract(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.backbone == options.get_default("backbone") and arguments.taps is None:
        # The embedded head asks for the same network and taps.
        from engine.head_start import begin

        begin()
    import engine
    from engine.features import Extraction, choose_blocks, extract_features, tap_names
    from engine.pooling import parse_floors

    known = engine.list_backbones()
    parts = [part.strip() for part in arguments.backbone.split("+")]
    if not set(parts) <= set(known) or len(set(parts)) < len(parts):
        options.error(
            f"no backbone {arguments.backbone!r}; choose from {', '.join(known)}, or join several "
            f"different ones, such as {'+'.join(known[:2])}"
        )
    about = _about(options, arguments.about)
    secret = _secret(options, arguments.sample_keys)
    try:
        backbone = engine.load_backbone(
            arguments.backbone,
            streams=arguments.threads,
            taps=tap_names(arguments.taps) if arguments.taps else None,
        )
        choose_blocks(backbone, arguments.taps, arguments.pooling)
        parse_floors(arguments.floors)
    except engine.MismatchError as error:
        options.error(str(error))
    extraction = Extraction()
    with _progress_bar(arguments.quiet) as bar:

        def progress(done: int, total: int) -> None:
            check_stop()
            bar.total = total
            if bar.n == 0 and extraction.n_resumed:
                # an earlier run's images would make this one's rate and end look too good
                bar.initial = extraction.n_resumed
                bar.n = extraction.n_resumed
            bar.update(done - bar.n)

        def failed(_path: Path, error: Exception) -> None:
            bar.clear()
            report(f"left out: {error}")

        try:
            container = extract_features(
                backbone,
                arguments.source,
                arguments.output,
                manifest=arguments.manifest,
                taps=arguments.taps,
                pooling=arguments.pooling,
                views=arguments.views,
                mirror=arguments.mirror,
                floors=arguments.floors,
                dtype=arguments.dtype,
                about=about,
                seed=arguments.seed,
                sample_key_secret=secret,
                resume=arguments.resume,
                on_progress=progress,
                on_failure=failed,
                extraction=extraction,
            )
        except BaseException as error:
            bar.close()
            part = Path(f"{arguments.output}.part")
            if extraction.unfinished is None:
                if arguments.resume and isinstance(error, KeyboardInterrupt) and part.exists():
                    report(f"stopped: what the earlier run had done is still kept in {part}")
                    return EXIT_SIGNAL + signal.SIGINT
                raise
            if isinstance(error, engine.EngineError):
                report(f"error: {error}")
            report(
                f"stopped: {extraction.n_rows} rows of {extraction.n_done} of "
                f"{extraction.n_images} images are kept in {extraction.unfinished}; to go on, give "
                "the same command with --resume"
            )
            if isinstance(error, engine.EngineError):
                return exit_code_of(error)
            if isinstance(error, KeyboardInterrupt):
                return EXIT_SIGNAL + signal.SIGINT
            raise
        with container:
            bar.close()
            if not arguments.quiet:
                if extraction.n_resumed:
                    print(f"resumed behind {extraction.n_resumed} images of an earlier run")
                elif arguments.resume:
                    print("there was nothing to resume: all images were worked on")
                print(_summary(container, arguments.output, patients=extraction.has_patients))
    if extraction.n_twice:
        report(
            f"warning: {extraction.n_twice} images are copies of others, "
            f"{extraction.n_contradicting} of them under another patient, label or split; look at "
            "the manifest: a head would be tested on images it has learned"
        )
    n_failed = len(extraction.failures) + extraction.n_failed_before
    if n_failed:
        before = (
            f" ({extraction.n_failed_before} by the earlier run)"
            if extraction.n_failed_before
            else ""
        )
        report(
            f"{n_failed} of {extraction.n_images} images were left out{before}, for the reasons "
            "above; the container holds the others"
        )
        return EXIT_SOME_FAILED
    return EXIT_DONE


class _NoBar:
    """In the place of tqdm's bar where nobody sees one: importing tqdm takes 30 ms."""

    n = initial = total = 0

    def update(self, n: int) -> None:
        """Count nothing, as a disabled bar of tqdm does."""

    def clear(self) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


@contextlib.contextmanager
def _progress_bar(quiet: bool) -> Iterator[Any]:
    """Show a bar where the standard error is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield _NoBar()
        return
    from tqdm import tqdm

    with tqdm(unit="image", leave=False, file=sys.stderr) as bar:
        yield bar


def _about(options: argparse.ArgumentParser, path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        with formats.open_regular(path) as stream:
            about = json.load(stream)
    except ValueError as error:
        options.error(f"{path}: not JSON ({error})")
    except OSError as error:
        options.error(f"{path}: {error.strerror}")
    if not isinstance(about, dict):
        options.error(f"{path}: expected a JSON object with keys such as title and licence")
    return about


def _secret(options: argparse.ArgumentParser, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        with formats.open_regular(path) as stream:
            secret = stream.read().strip()
    except OSError as error:
        options.error(f"{path}: {error.strerror}")
    if len(secret) < _SECRET_BYTES:
        options.error(
            f"{path}: holds {len(secret)} bytes, expected {_SECRET_BYTES} or more that nobody can "
            'guess; make a file with: python -c "import secrets; print(secrets.token_hex(32))"'
        )
    return secret


def _summary(container: Container, output: str, *, patients: bool) -> str:
    classes = f", {len(container.classes)} classes" if container.classes else ", no labels"
    groups = f" of {container.n_groups} patients" if patients else ""
    n_images = len(container.rows(views=False))
    n_views = (container.n_rows - n_images) // n_images
    views = ""
    if n_views:
        kind = "augmented views" if n_views > 1 else "augmented view"
        views = f" ({n_images} images, {n_views} {kind} of each)"
    megabytes, row_bytes = container.size_bytes / 1e6, container.size_bytes / container.n_rows
    line = (
        f"{output}: {container.n_rows} rows{groups}{views}, {container.dim} features{classes}, "
        f"{megabytes:.1f} MB ({row_bytes:.0f} bytes a row)"
    )
    if container.not_for_sharing:
        line += f"\n{container.not_for_sharing}"
    return line


if __name__ == "__main__":
    sys.exit(main())
