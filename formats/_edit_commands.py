"""What makes containers of containers on the command line: merge, subset, withdraw, resplit."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from formats._inspect_commands import describe_container, table_lines
from formats.console import parse_seed, printable, progress_bar, size_text
from formats.container import SPLITS, open_container
from formats.editing import (
    EditReport,
    merge_containers,
    resplit_container,
    subset_container,
    withdraw_rows,
)

__all__ = ["add_parsers", "add_quiet"]

_MERGE = """\
Join containers of the same backbone, preprocessing and blocks into a new one.

Classes and sources are joined by name; patients of different files are different ones, unless two
files share an image (the same sample key, or exactly the same features); an image that comes twice
is taken once, and what is unknown there (classes not assessed, sex, age, projection, source, split)
is filled in from the other file; withdrawn rows stay behind. Rows and patients' numbers are
shuffled.
"""
_MERGE_EXAMPLES = """\
examples:
  %(prog)s siteA.hilum siteB.hilum -o both.hilum
  %(prog)s a.hilum b.hilum -o both.hilum --without-splits     then divide anew with resplit
"""
_SUBSET = """\
Write the rows that fulfil every condition into a new container, their features bit for bit.
"""
_SUBSET_EXAMPLES = """\
examples:
  %(prog)s chest.hilum -o train.hilum --split train,valid
  %(prog)s chest.hilum -o two.hilum --class normal,pneumonia --drop-classes
  %(prog)s chest.hilum -o first.hilum --rows 0:1000
  %(prog)s chest.hilum -o share.hilum --without-floors
"""
_WITHDRAW = """\
Let patients leave: all their rows become zero and are flagged, so that nothing uses them any more
and the other rows keep their numbers; or, with --drop, are left out. A container made from the
patient's images (engine.extract, same options) finds them without a list of who is who; if some
of these images are not found, the others are withdrawn and the exit status is 1.

In an i8 file, the scale of a feature that only withdrawn rows explain is computed anew from the
others, whose values of this feature are rounded again; all else stays bit for bit.

Copies and backups of the old file still hold the rows, and so do heads trained with them.
"""
_WITHDRAW_EXAMPLES = """\
examples:
  %(prog)s chest.hilum --group 17,18 -o chest2.hilum
  %(prog)s chest.hilum --matching patient.hilum --in-place
  %(prog)s chest.hilum --rows 5,9 -o smaller.hilum --drop
"""
_RESPLIT = """\
Divide the rows anew into train, valid and test: patients whole, every class shared out, the same
for the same seed. Patients who share an image (the same sample key, or exactly the same features)
stay together. Features, order and patients' numbers stay as they are.
"""
_RESPLIT_EXAMPLES = """\
examples:
  %(prog)s chest.hilum -o chest2.hilum                          70, 10 and 20 per cent
  %(prog)s chest.hilum -o chest2.hilum --fractions 80,0,20 --seed 7
"""


def add_parsers(commands: Any) -> None:
    """Add ``merge``, ``subset``, ``withdraw`` and ``resplit`` to the command line.

    Parameters
    ----------
    commands : argparse sub-parsers
        Each parser's default ``run`` takes the arguments and returns the exit code.
    """
    merge = _add(commands, "merge", "join containers into one", _MERGE, _MERGE_EXAMPLES)
    merge.add_argument("files", nargs="+", metavar="FILE", help="two or more .hilum files")
    _add_output(merge)
    _add_seed(merge)
    merge.add_argument("--keep-order", action="store_true", help="do not shuffle the rows")
    merge.add_argument(
        "--without-splits", action="store_true", help="leave the train/valid/test marks out"
    )
    merge.add_argument(
        "--on-conflict",
        choices=("refuse", "first", "drop"),
        default="refuse",
        help="where one image has contradicting labels: do not merge (default), keep the first "
        "label, or leave the image out",
    )
    merge.add_argument(
        "--allow-related",
        action="store_true",
        help="merge files that come from one data set, too: a patient who was withdrawn from one "
        "may come back through the other",
    )
    merge.add_argument("--dtype", choices=("f16", "f32", "i8"), help="how to store the features")
    merge.set_defaults(run=_merge, parser=merge)

    subset = _add(commands, "subset", "write some of the rows", _SUBSET, _SUBSET_EXAMPLES)
    subset.add_argument("file", metavar="FILE", help="a .hilum file")
    _add_output(subset)
    subset.add_argument(
        "--split", type=_split_names, metavar="NAME,...", help=f"some of {', '.join(SPLITS)}"
    )
    subset.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="NAME,...",
        help="rows with one of these labels; may be given several times",
    )
    _add_rows(subset, "these rows: 0:100, 5,9,12 or a text file with one number a line")
    _add_group(subset, "rows of these patients; may be given several times")
    subset.add_argument(
        "--source", dest="sources", action="append", metavar="NAME", help="rows of this source"
    )
    subset.add_argument(
        "--drop-classes", action="store_true", help="forget the names of classes without rows"
    )
    subset.add_argument(
        "--without-views", action="store_true", help="leave augmented views of the images out"
    )
    subset.add_argument(
        "--without-floors",
        action="store_true",
        help="leave the blocks of pixels out (engine.extract --floors): a file with them is not "
        "for sharing",
    )
    _add_seed(subset)
    subset.set_defaults(run=_subset, parser=subset)

    withdraw = _add(commands, "withdraw", "let patients leave", _WITHDRAW, _WITHDRAW_EXAMPLES)
    withdraw.add_argument("file", metavar="FILE", help="a .hilum file")
    where = withdraw.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", type=_output, metavar="OUT", help="the new .hilum file")
    where.add_argument("--in-place", action="store_true", help="replace FILE when all is done")
    _add_overwrite(withdraw)
    _add_group(withdraw, "these patients; may be given several times")
    _add_rows(withdraw, "the patients of these rows: 0:100, 5,9,12 or a file of numbers")
    withdraw.add_argument(
        "--matching", metavar="P.hilum", help="the patients whose images this container was made of"
    )
    withdraw.add_argument(
        "--rows-only", action="store_true", help="just these rows, not all of the patients'"
    )
    withdraw.add_argument("--drop", action="store_true", help="leave the rows out")
    add_quiet(withdraw)
    withdraw.set_defaults(run=_withdraw, parser=withdraw)

    resplit = _add(
        commands, "resplit", "divide anew into train, valid, test", _RESPLIT, _RESPLIT_EXAMPLES
    )
    resplit.add_argument("file", metavar="FILE", help="a .hilum file")
    _add_output(resplit)
    resplit.add_argument(
        "--fractions",
        type=_fractions,
        default=(0.7, 0.1, 0.2),
        metavar="A,B,C",
        help="shares of train, valid and test, together 100 (default 70,10,20)",
    )
    resplit.add_argument(
        "--seed", type=parse_seed, default=0, metavar="N", help="of the division (default 0)"
    )
    resplit.set_defaults(run=_resplit, parser=resplit)


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` to a command.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of the command.
    """
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar, and say only what is wrong"
    )


def _add(
    commands: Any, name: str, short: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=_output, required=True, metavar="OUT", help="the new .hilum file"
    )
    _add_overwrite(parser)
    add_quiet(parser)


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT if there is such a file already"
    )


def _add_group(parser: argparse.ArgumentParser, text: str) -> None:
    # not nargs="+": that would swallow a FILE which comes after it
    parser.add_argument(
        "--group", dest="groups", type=_numbers, action="extend", metavar="N,...", help=text
    )


def _output(text: str) -> str:
    if not text or Path(text).is_dir():
        what = f"{text!r} is a folder" if text else "the name is empty"
        raise argparse.ArgumentTypeError(f"{what}, expected the name of the new .hilum file")
    return text


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,20}(,[0-9]{1,20})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or several such as 17,18")
    return [int(number) for number in text.split(",")]


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed",
        type=parse_seed,
        metavar="N",
        help="of the random order, for a result that comes out the same again",
    )


def _add_rows(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--rows", type=_rows, metavar="ROWS", help=text)


def _split_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SPLITS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SPLITS)}")
    return names


def _rows(text: str) -> slice | list[int]:
    if re.search(r"[0-9]{19}", text) and re.fullmatch(r"[0-9:,]+", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} has a number larger than any row's")
    if re.fullmatch(r"[0-9]*:[0-9]*(:[0-9]+)?", text):
        numbers = [int(number) if number else None for number in text.split(":")]
        if numbers[2:] == [0]:
            raise argparse.ArgumentTypeError(f"{text!r} has the step 0")
        return slice(*numbers)
    if re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        return [int(number) for number in text.split(",")]
    try:
        lines = Path(text).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither rows such as 0:100 or 5,9,12 nor a text file that can be read"
        ) from None
    for line in lines:
        if not re.fullmatch(r"[0-9]{1,18}", line):
            raise argparse.ArgumentTypeError(f"{text}: found {line[:40]!r}, expected row numbers")
    return [int(line) for line in lines]


def _fractions(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    total = sum(shares)
    whole = 100 if total > 1.5 else 1
    if len(shares) != 3 or min(shares) < 0 or not abs(total - whole) <= 1e-6 * whole:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not three shares (train, valid, test) that together are 100"
        )
    return tuple(share / total for share in shares)


def _class_names(file: str, given: list[str] | None) -> list[str] | None:
    """Read ``--class``: a name that holds a comma is one name if the container has it."""
    if given is None:
        return None
    with open_container(file) as container:
        known = container.classes
    return [name for text in given for name in ([text] if text in known else text.split(","))]


# ---- run ---------------------------------------------------------------------------------------


def _merge(given: argparse.Namespace) -> int:
    if len(given.files) < 2:
        given.parser.error("name two or more files to merge")
    with progress_bar("merge", quiet=given.quiet) as advance:
        report = merge_containers(
            given.files,
            given.output,
            seed=given.seed,
            keep_order=given.keep_order,
            dtype=given.dtype,
            without_splits=given.without_splits,
            on_conflict=given.on_conflict,
            allow_related=given.allow_related,
            overwrite=given.overwrite,
            progress=advance,
        )
    counts = report.counts
    said = [
        (counts["duplicates"], "duplicate rows left out"),
        (counts["same_features"], "same image by features"),
        (counts["conflicts"], "images with contradicting labels"),
        (counts["withdrawn"], "withdrawn rows left out"),
        (counts.get("joined_patients", 0), "patients recognised as others by their images"),
    ]
    return _tell(report, given.quiet, said)


def _subset(given: argparse.Namespace) -> int:
    with progress_bar("subset", quiet=given.quiet) as advance:
        report = subset_container(
            given.file,
            given.output,
            split=given.split,
            classes=_class_names(given.file, given.classes),
            rows=given.rows,
            groups=given.groups,
            sources=given.sources,
            drop_classes=given.drop_classes,
            without_views=given.without_views,
            without_floors=given.without_floors,
            seed=given.seed,
            overwrite=given.overwrite,
            progress=advance,
        )
    counts = report.counts
    said = [
        (counts["left_out"], "rows left out"),
        (counts["withdrawn"], "of them withdrawn"),
        (counts["left_out_features"], "features left out"),
    ]
    return _tell(report, given.quiet, said)


def _withdraw(given: argparse.Namespace) -> int:
    if given.groups is None and given.rows is None and given.matching is None:
        given.parser.error("say who leaves: --group, --rows or --matching")
    with progress_bar("withdraw", quiet=given.quiet) as advance:
        report = withdraw_rows(
            given.file,
            None if given.in_place else given.output,
            groups=given.groups,
            rows=given.rows,
            matching=given.matching,
            rows_only=given.rows_only,
            drop=given.drop,
            overwrite=given.overwrite,
            progress=advance,
        )
    counts = report.counts
    said = [
        (counts["rows"], "rows withdrawn"),
        (counts.get("patients", 0), "patients"),
        (counts["earlier"], "rows were withdrawn before"),
    ]
    code = _tell(report, given.quiet, said)
    if not given.quiet:
        print("Copies and backups of the old file still hold these rows.")
    return 1 if counts.get("found", 0) < counts.get("images", 0) else code


def _resplit(given: argparse.Namespace) -> int:
    with progress_bar("resplit", quiet=given.quiet) as advance:
        report = resplit_container(
            given.file,
            given.output,
            fractions=given.fractions,
            seed=given.seed,
            overwrite=given.overwrite,
            progress=advance,
        )
    code = _tell(report, given.quiet, [])
    if not given.quiet:
        with open_container(report.path) as container:
            for line in table_lines(describe_container(container)):
                print(printable(line))
    return code


def _tell(report: EditReport, quiet: bool, said: list[tuple[int, str]]) -> int:
    for remark in report.remarks:
        warning = remark.startswith("warning: ")
        if warning or not quiet:
            print(printable(remark if warning else f"note: {remark}"), file=sys.stderr)
    if not quiet:
        with open_container(report.path) as container:
            facts = [f"{report.n_rows} rows"]
            if container.n_groups is not None:
                facts.append(f"{container.n_groups} patients")
            facts.append(size_text(container.size_bytes))
        more = "; ".join(f"{what}: {count}" for count, what in said if count)
        line = f"{report.path}: {', '.join(facts)}{f' ({more})' if more else ''}"
        print(printable(line))
    return 0
