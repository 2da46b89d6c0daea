"""What makes tables of containers, and containers of tables, on the command line."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from formats._edit_commands import add_quiet
from formats.console import PRIVACY, parse_seed, printable, progress_bar, size_text
from formats.container import open_container
from formats.convert import export_container, import_container

__all__ = ["add_parsers"]

_EXPORT = """\
Write a container as another program's table: .npz, .safetensors, .parquet (needs pyarrow) or .csv,
by the ending of the name. Features as stored, all columns, and the notes: import makes the same
container of it again. A CSV has its notes in NAME.csv.notes.json beside it.

An export is under the same rules as the container: derived from health images.
"""
_EXPORT_EXAMPLES = """\
examples:
  %(prog)s chest.hilum -o chest.npz         numpy.load("chest.npz")["features"]
  %(prog)s chest.hilum -o chest.csv         and chest.csv.notes.json
"""
_IMPORT = """\
Make a container of a table: one that export wrote, or any other with features (an array features
or X, or columns f0, f1, ...) and columns such as label, patient, split, source, sex, age. Other
columns are refused: say with --features and --ignore what they are.

Tables of others need notes: a JSON file with at least
  {"backbone": {"name": "...", "sha256": "..."}, "preprocessing": {"version": 1}}
Rows are shuffled, and patients get random numbers: what they are called in the table never gets in.
"""
_IMPORT_EXAMPLES = """\
examples:
  %(prog)s chest.npz -o chest.hilum
  %(prog)s features.csv -o site.hilum --notes site.json --dtype f16
  %(prog)s features.csv -o site.hilum --notes site.json --features 'emb_*' --ignore study_date
"""


def add_parsers(commands: Any) -> None:
    """Add ``export`` and ``import`` to the command line.

    Parameters
    ----------
    commands : argparse sub-parsers
        Each parser's default ``run`` takes the arguments and returns the exit code.
    """
    raw = argparse.RawDescriptionHelpFormatter
    export = commands.add_parser(
        "export",
        help="write a container as .npz, .safetensors, .parquet or .csv",
        description=_EXPORT,
        epilog=_EXPORT_EXAMPLES,
        formatter_class=raw,
    )
    export.add_argument("file", metavar="FILE", help="a .hilum file")
    export.add_argument("-o", "--output", required=True, metavar="OUT", help="the new table")
    export.add_argument(
        "--overwrite", action="store_true", help="replace a table that is there already"
    )
    add_quiet(export)
    export.set_defaults(run=_export)
    importing = commands.add_parser(
        "import",
        help="make a container of a table",
        description=_IMPORT,
        epilog=_IMPORT_EXAMPLES,
        formatter_class=raw,
    )
    importing.add_argument("file", metavar="FILE", help="a table")
    importing.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the new .hilum file"
    )
    importing.add_argument("--notes", metavar="N.json", help="what the features are")
    importing.add_argument("--dtype", choices=("f16", "f32", "i8"), help="how to store features")
    importing.add_argument(
        "--features",
        type=_parse_names,
        default=(),
        metavar="GLOB[,GLOB]",
        help="columns of features, * and ? allowed; left out: those with running numbers",
    )
    importing.add_argument(
        "--ignore",
        type=_parse_names,
        default=(),
        metavar="NAME[,NAME]",
        help="columns to leave out",
    )
    importing.add_argument(
        "--without-splits", action="store_true", help="leave the column of splits out"
    )
    importing.add_argument(
        "--overwrite", action="store_true", help="replace a container that is there already"
    )
    importing.add_argument("--keep-order", action="store_true", help="do not shuffle the rows")
    importing.add_argument(
        "--seed",
        type=parse_seed,
        metavar="N",
        help="of the random order, for a result that comes out the same again",
    )
    add_quiet(importing)
    importing.set_defaults(run=_import)


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected names with commas between")
    return names


def _export(given: argparse.Namespace) -> int:
    with progress_bar("export", quiet=given.quiet) as advance:
        report = export_container(
            given.file, given.output, overwrite=given.overwrite, progress=advance
        )
    if not given.quiet:
        for remark in report.remarks:
            print(printable(f"note: {remark}"), file=sys.stderr)
        size = size_text(report.path.stat().st_size)
        print(printable(f"{report.path}: {report.n_rows} rows, {size}"))
        print(PRIVACY)
    return 0


def _import(given: argparse.Namespace) -> int:
    with progress_bar("import", quiet=given.quiet) as advance:
        report = import_container(
            given.file,
            given.output,
            notes=given.notes,
            dtype=given.dtype,
            features=given.features,
            ignore=given.ignore,
            without_splits=given.without_splits,
            overwrite=given.overwrite,
            keep_order=given.keep_order,
            seed=given.seed,
            progress=advance,
        )
    if not given.quiet:
        for remark in report.remarks:
            print(printable(f"note: {remark}"), file=sys.stderr)
        with open_container(report.path) as container:
            facts = [f"{report.n_rows} rows", f"{container.dim} x {container.dtype} a row"]
            if container.n_groups is not None:
                facts.append(f"{container.n_groups} patients")
            facts.append(size_text(container.size_bytes))
        print(printable(f"{report.path}: {', '.join(facts)}"))
    return 0
