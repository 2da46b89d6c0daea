"""Command ``python -m engine.demo``: the whole way on embedded features and synthetic images."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    check_stop,
    command_line,
    evaluation_table,
    report,
    run,
    write_study,
)

if TYPE_CHECKING:
    from engine import Container, Head, Prediction

DEMONSTRATION_CONTAINER = Path(__file__).parent / "demonstration" / "pneumonia.hilum"
"""The embedded container: features of real X-rays, without the X-rays."""

DESCRIPTION = """\
Show the whole way without an X-ray of your own, and without the internet: open an embedded
container of real features, cross-validate and train a head on it, draw synthetic X-rays (PNG and
DICOM), extract and predict them. Takes some seconds. Research use only."""

EPILOG = """\
examples:
  python -m engine.demo
      into a new folder hilum-demo here; in a temporary one if this folder may not be written to
  python -m engine.demo --output-dir /tmp/try
      into a folder of your choice; files of an earlier demo there are replaced

The synthetic X-rays show nobody, and an answer to them means nothing."""

FOLDER = "hilum-demo"
FOLDS = 5
SEED = 0
COLUMNS = 80
INDENT = "   "

# Seeds of the phantoms; each lung is drawn twice, so that no finding hangs on one build.
PHANTOMS = (
    (1, "none"),
    (2, "lobar"),
    (3, "diffuse"),
    (4, "none"),
    (5, "lobar"),
    (6, "diffuse"),
)
PHANTOM_HEIGHT, PHANTOM_WIDTH = 512, 640

# Both files of a picture are read to the same 256 grey levels, so more than this means that one of
# the two is read wrongly.
LARGEST_DIFFERENCE = 1e-6

PHANTOMS_ABOUT = {
    "title": "Synthetic phantoms of chest X-rays (Hilum demonstration)",
    "terms": "Drawn by a program, no patient. Labels say what was drawn; no medical meaning.",
    "population": "Nobody",
}

NEXT = """\
Next, with your own X-rays (the sub-folders of xrays/ name the labels):
  {python} -m engine.extract xrays/ -o chest.hilum
  {python} -m engine.train chest.hilum -o chest.safetensors --cv 5 --report chest.html
  {python} -m engine.predict new/ --head chest.safetensors"""


def _python() -> str:
    """Name this Python as it can be typed here: ``.venv/bin/python`` where none is activated."""
    if os.environ.get("VIRTUAL_ENV") == sys.prefix or sys.prefix == sys.base_prefix:
        return "python"
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@dataclass(frozen=True)
class _Pair:
    """One phantom as two files."""

    name: str
    finding: str
    photometric: str
    png: Path
    dicom: Path


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = command_line("demo", DESCRIPTION, EPILOG)
    add = result.add_argument
    where = f"folder for the files, made if missing (default: a new {FOLDER})"
    add("--output-dir", metavar="DIR", help=where)
    add("--quiet", action="store_true", help="print the folder and nothing else")
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
    arguments = parser().parse_args(argv)
    return run(lambda: run_demo(arguments.output_dir, quiet=arguments.quiet))


def run_demo(
    output_dir: str | Path | None = None,
    *,
    container: str | Path = DEMONSTRATION_CONTAINER,
    quiet: bool = False,
) -> int:
    """Go the whole way and print what happens.

    Parameters
    ----------
    output_dir : str or Path, optional
        Where the files go; made if missing. Default: a new folder ``hilum-demo`` in the current
        one, or in the system's folder for temporary files if that is not possible.
    container : str or Path, optional
        Features to learn from; default the embedded ones.
    quiet : bool, optional
        Print nothing but the folder.

    Returns
    -------
    int
        Exit code: 0, or 1 if an answer is missing or PNG and DICOM disagree.

    Raises
    ------
    EngineError, OSError
        The container is missing or damaged, or the folder cannot be written to.
    """
    import engine

    out = _Printer(quiet)
    with out.step("Open a container of real features"):
        opened = engine.open_container(container)
    with opened:
        _describe(out, opened)
        # Only now: a demo that cannot start leaves no empty folder.
        folder = _make_folder(output_dir)
        with out.step(f"Train a head, {FOLDS}-fold cross-validation by patient") as bar:

            def progress(done: int, total: int, _text: str) -> None:
                check_stop()
                bar.total = total
                bar.update(done - bar.n)

            study = engine.study_head(
                opened, cv=FOLDS, seed=SEED, name="pneumonia", progress=progress
            )
            head = study.head
            head_path = folder / "pneumonia.safetensors"
            write_study(study, None, str(folder / "report.html"), head=str(head_path))
    out.lines(evaluation_table(head.metrics))
    out.text(
        "Every patient was judged by a head that had never seen them. The first run on a machine "
        "also compiles; later ones are faster."
    )

    pairs = _draw(out, folder / "phantoms")
    out.text(
        "As a viewer shows them they are the same pictures; half of the DICOM files store white "
        "as 0 (MONOCHROME1). Name and pixels of each say SYNTHETIC."
    )
    _extract(out, pairs, folder / "phantoms.hilum")
    answers = _predict(out, pairs, head_path, folder / "predictions.jsonl")
    agree = _compare(out, pairs, answers, head.name)
    _warn(out, head)
    _say_where(out, folder)
    if quiet:
        print(folder)
    return EXIT_DONE if agree else EXIT_SOME_FAILED


class _Printer:
    """Numbered steps with their times on standard output, 80 columns wide."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._number = 0

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Any]:
        """Show a bar while a step runs, where there is somebody to see it; then its time."""
        from tqdm import tqdm

        self._number += 1
        heading = f"{self._number}. {title}"
        start = time.perf_counter()
        # None: no bar where standard error is no terminal.
        hidden = True if self.quiet else None
        with tqdm(
            total=total,
            desc=heading,
            leave=False,
            disable=hidden,
            file=sys.stderr,
            ncols=COLUMNS - 1,
            bar_format="{desc} {percentage:3.0f}% {bar}",
        ) as bar:
            yield bar
        if not self.quiet:
            took = f" {time.perf_counter() - start:.1f} s"
            print(f"{heading + ' ':.<{COLUMNS - len(took)}}{took}", flush=True)

    def text(self, text: str) -> None:
        """Print a paragraph."""
        self.lines(textwrap.fill(text, COLUMNS - len(INDENT), break_on_hyphens=False))

    def lines(self, text: str) -> None:
        """Print lines as they are."""
        if not self.quiet:
            print(textwrap.indent(text, INDENT), flush=True)

    def plain(self, text: str = "") -> None:
        """Print without indent."""
        if not self.quiet:
            print(text, flush=True)


def _make_folder(output_dir: str | Path | None) -> Path:
    if output_dir is not None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path(FOLDER if number == 1 else f"{FOLDER}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}-"))
            reason = error.strerror or type(error).__name__
            report(f"this folder cannot be written to ({reason}); the files go to\n{folder}")
            return folder
        else:
            return folder


def _describe(out: _Printer, container: Container) -> None:
    groups = container.groups
    patients = "" if groups is None else f" of {len(set(groups.tolist()))} patients"
    out.text(
        f"{container.n_rows} rows{patients}: {', '.join(container.classes)}. "
        f"{container.dim} features a row, {container.size_bytes / 1e6:.1f} MB "
        f"({container.size_bytes // container.n_rows} bytes a row), and not one pixel."
    )
    about: Mapping[str, Any] = container.notes.get("about", {})
    for key in ("attribution", "licence", "terms"):
        if about.get(key):
            out.text(f"{key.capitalize()}: {about[key]}")


def _draw(out: _Printer, folder: Path) -> list[_Pair]:
    from engine.phantoms import PHOTOMETRICS, draw_phantom, write_dicom, write_png

    folder.mkdir(exist_ok=True)
    pairs = []
    title = f"Draw {len(PHANTOMS)} synthetic chest X-rays, each as PNG and as DICOM"
    with out.step(title, len(PHANTOMS)) as bar:
        for seed, finding in PHANTOMS:
            phantom = draw_phantom(seed, finding, height=PHANTOM_HEIGHT, width=PHANTOM_WIDTH)
            name = f"phantom-{seed}-{finding}"
            photometric = PHOTOMETRICS[seed % 2]
            pair = _Pair(name, finding, photometric, folder / f"{name}.png", folder / f"{name}.dcm")
            write_png(phantom, pair.png)
            write_dicom(phantom, pair.dicom, photometric=photometric)
            pairs.append(pair)
            bar.update()
    return pairs


def _extract(out: _Printer, pairs: Sequence[_Pair], path: Path) -> None:
    import engine

    samples = [
        engine.Sample(path=file, labels=(pair.finding,), patient=pair.name)
        for pair in pairs
        for file in (pair.png, pair.dicom)
    ]
    with out.step("Extract their features with the network", len(samples)) as bar:

        def progress(done: int, _total: int) -> None:
            check_stop()
            bar.update(done - bar.n)

        with engine.extract_features(
            engine.load_backbone(),
            samples,
            path,
            about=PHANTOMS_ABOUT,
            seed=SEED,
            on_progress=progress,
        ) as container:
            summary = (
                f"{container.backbone}, INT8, no GPU: {container.n_rows} rows, "
                f"{container.size_bytes / 1e3:.0f} kB"
            )
    out.text(summary)


def _predict(
    out: _Printer, pairs: Sequence[_Pair], head: Path, path: Path
) -> dict[Path, Prediction]:
    import engine
    import formats

    files = [file for pair in pairs for file in (pair.png, pair.dicom)]
    answers = {}
    with out.step("Predict them with the new head", len(files)) as bar:
        # A head that knows X-rays refuses drawings of them, as it should.
        predictor = engine.Predictor([head], allow=["out_of_distribution"])
        for file, prediction in zip(files, predictor.predict_many(files), strict=True):
            answers[file] = prediction
            bar.update()
        lines = [json.dumps(prediction.to_json()) + "\n" for prediction in answers.values()]
        formats.atomic_write(path, "".join(lines).encode("utf-8", "surrogateescape"))
    strangers = sum(bool(prediction.allowed) for prediction in answers.values())
    if strangers:
        out.text(
            f"The head finds {strangers} of the {len(files)} unlike the X-rays it learned from, "
            "and rightly: they are drawings. engine.predict would refuse them; here it was told "
            "to answer nevertheless (--allow out_of_distribution)."
        )
    return answers


def _compare(
    out: _Printer, pairs: Sequence[_Pair], answers: Mapping[Path, Prediction], head: str
) -> bool:
    """Print the answers side by side; whether all are there and the two files of each agree."""
    out.lines(f"{'phantom':19}{'answer to PNG':19}{'to DICOM':19}{'DICOM stored as'}")
    largest, complete = 0.0, True
    for pair in pairs:
        cells = []
        probabilities = []
        for file in (pair.png, pair.dicom):
            prediction = answers[file]
            if prediction.status != "ok":
                complete = False
                report(f"{prediction.status}: {prediction.reason}")
                cells.append(prediction.status)
                continue
            answer = prediction.heads[head]
            probabilities.append(answer["probabilities"])
            cells.append(f"{answer['label']} {answer['probabilities'][answer['label']]:.3f}")
        out.lines(f"{pair.name:19}{cells[0]:19}{cells[1]:19}{pair.photometric}")
        if len(probabilities) == 2:
            one, other = probabilities
            largest = max(largest, *(abs(one[name] - other[name]) for name in one))
    if complete and largest <= LARGEST_DIFFERENCE:
        out.text("PNG and DICOM of one picture get the same answer (to 1e-6).")
    elif largest > LARGEST_DIFFERENCE:
        report(
            f"PNG and DICOM of one picture differ by {largest:.2g} in a probability, expected "
            f"{LARGEST_DIFFERENCE:g}\nat most: this installation reads one of them wrongly"
        )
        return False
    return complete


def _warn(out: _Printer, head: Head) -> None:
    ages = head.training["age_range_years"]
    learned = f"of {ages[0]} to {ages[1]} years" if ages else "of one data set"
    out.plain()
    out.plain(
        textwrap.fill(
            "The X-rays above are drawn by a program: the answers mean nothing medically and need "
            "not agree with what was drawn; they "
            f"show that everything works. The head learned from patients {learned} and knows no "
            "others. Research use only.",
            COLUMNS,
        )
    )


def _say_where(out: _Printer, folder: Path) -> None:
    out.plain()
    out.plain("Where the files are:")
    for name, what in (
        ("report.html", "its figures, limits and model card"),
        ("pneumonia.safetensors", "the head"),
        ("phantoms/", "the synthetic X-rays"),
        ("phantoms.hilum", "their features"),
        ("predictions.jsonl", "the answers, one JSON object a line"),
    ):
        out.plain(f"  {folder / name!s:36}  {what}")
    out.plain()
    out.plain(NEXT.format(python=_python()))


if __name__ == "__main__":
    sys.exit(main())
