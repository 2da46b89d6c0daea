"""What ``inspect`` and ``verify`` print: commands that only look at containers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats.console import PRIVACY, printable, progress_bar, size_text
from formats.container import SPLITS, Container, open_container
from formats.errors import ContainerError

__all__ = ["add_parsers", "describe_container", "table_lines"]

_INSPECT = """\
Print rows, features, backbone, blocks, columns, classes x splits and the notes of containers.

Opening checks the header, all columns and the notes, but not the features: verify does.
"""
_VERIFY = """\
Compare every byte of containers with their checksums: one for each 1024 rows, which says where
the damage is, and a SHA-256 of the whole. With --key, also check who signed them (FILE.sig).

Checksums find damage, not intent: whoever changes a file can compute them anew. A signature they
cannot.
"""
_VERIFY_EXAMPLES = """\
examples:
  %(prog)s *.hilum
  %(prog)s --key site.pub.pem chest.hilum
"""


def add_parsers(commands: Any) -> None:
    """Add ``inspect`` and ``verify`` to the command line.

    Parameters
    ----------
    commands : argparse sub-parsers
        Each parser's default ``run`` takes the arguments and returns the exit code.
    """
    raw = argparse.RawDescriptionHelpFormatter
    inspect = commands.add_parser(
        "inspect", help="show what is in a container", description=_INSPECT, formatter_class=raw
    )
    inspect.add_argument("files", nargs="+", metavar="FILE", help="a .hilum file")
    inspect.add_argument("--json", action="store_true", help="one JSON object a line for each file")
    inspect.set_defaults(run=lambda given: _inspect(given.files, as_json=given.json))
    verify = commands.add_parser(
        "verify",
        help="compare every byte with its checksums",
        description=_VERIFY,
        epilog=_VERIFY_EXAMPLES,
        formatter_class=raw,
    )
    verify.add_argument("files", nargs="+", metavar="FILE", help="a .hilum file")
    verify.add_argument(
        "--quiet", action="store_true", help="no progress bar, and say only what is wrong"
    )
    verify.add_argument(
        "--key",
        action="append",
        metavar="PUB.pem",
        help="public key that must have signed every file; several: one of them",
    )
    verify.set_defaults(run=lambda given: _verify(given.files, given.key, quiet=given.quiet))


# ---- inspect -----------------------------------------------------------------------------------


def _inspect(files: Sequence[str], *, as_json: bool) -> int:
    n_failed = 0
    for i, file in enumerate(files):
        try:
            with open_container(file) as container:
                facts = describe_container(container)
        except ContainerError as exc:
            n_failed += 1
            print(f"error: {exc}", file=sys.stderr)
            if as_json:
                print(json.dumps({"path": file, "error": exc.message}))
            continue
        if as_json:
            print(json.dumps(facts))
        else:
            if i:
                print()
            for line in _lines(facts):
                print(printable(line))
    return 1 if n_failed else 0


def describe_container(container: Container) -> dict[str, Any]:
    """Collect what ``inspect`` prints.

    Parameters
    ----------
    container : Container
        Open.

    Returns
    -------
    dict
        Made of what JSON has; the keys are those of ``inspect --json``.
    """
    notes = container.notes
    return {
        "path": str(container.path),
        "n_rows": container.n_rows,
        "n_withdrawn": container.n_rows - len(container.rows()),
        "n_views": len(container.rows()) - len(container.rows(views=False)),
        "not_for_sharing": container.not_for_sharing,
        "dim": container.dim,
        "dtype": container.dtype,
        "size_bytes": container.size_bytes,
        "row_bytes": container.size_bytes / container.n_rows,
        "uuid": container.uuid,
        "derived_from": list(notes.get("derived_from", ())),
        "backbone": container.backbone,
        "backbone_digest": container.backbone_digest,
        "preprocessing": notes["preprocessing"],
        "preprocessing_digest": container.preprocessing_digest,
        "blocks": list(container.blocks),
        "columns": [
            {"name": name, "type": str(array.dtype), "width": array[0].size}
            for name, array in container.columns.items()
        ],
        "n_groups": container.n_groups,
        "group_clean": container.group_clean,
        "multilabel": container.multilabel,
        "classes": list(container.classes),
        "sources": list(container.sources_names),
        "table": list(_count(container)),
        "views": notes.get("views"),
        "about": notes.get("about", {}),
        "software": notes.get("software", {}),
        "n_refused": notes.get("n_refused"),
        "privacy": PRIVACY,
    }


def _count(container: Container) -> Iterator[dict[str, Any]]:
    """Count rows and groups of each class and split; augmented views are not counted.

    Class None stands for all of them together (a class may be called "all"), so does split "all".
    """
    kept = np.zeros(container.n_rows, np.bool_)
    kept[container.rows(views=False)] = True
    splits = container.splits
    names = [*SPLITS, "all"] if splits is not None else ["all"]
    for class_name, of_class in _classes(container):
        for name in names:
            chosen = kept & of_class
            if splits is not None and name != "all":
                chosen &= splits == SPLITS.index(name)
            n_groups = (
                None if container.groups is None else len(np.unique(container.groups[chosen]))
            )
            yield {
                "class": class_name,
                "split": name,
                "rows": int(np.count_nonzero(chosen)),
                "groups": n_groups,
            }


def _classes(container: Container) -> Iterator[tuple[str | None, NDArray[np.bool_]]]:
    labels = container.labels
    if labels is not None:
        for i, name in enumerate(container.classes):
            yield name, labels[:, i] == 1 if container.multilabel else labels == i
    yield None, np.ones(container.n_rows, np.bool_)


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield facts["path"]
    if facts["not_for_sharing"]:
        yield f"  {facts['not_for_sharing']}"
    withdrawn = f" ({facts['n_withdrawn']} withdrawn)" if facts["n_withdrawn"] else ""
    yield f"  rows           {facts['n_rows']}{withdrawn}"
    if facts["n_views"]:
        yield (
            f"  {'':14} {facts['n_views']} of them are augmented views, to learn from and never "
            "to judge by"
        )
    yield f"  features       {facts['dim']} x {facts['dtype']} a row"
    yield f"  size           {size_text(facts['size_bytes'])}, {facts['row_bytes']:.0f} bytes a row"
    yield f"  uuid           {facts['uuid']}"
    for i, uuid in enumerate(facts["derived_from"]):
        yield f"  {'' if i else 'derived from':14} {uuid}"
    yield f"  backbone       {facts['backbone']}, sha256 {facts['backbone_digest'][:16]}..."
    settings = ", ".join(f"{key} {value}" for key, value in facts["preprocessing"].items())
    yield f"  preprocessing  sha256 {facts['preprocessing_digest'][:16]}... ({settings})"
    for i, block in enumerate(facts["blocks"]):
        head = "blocks" if i == 0 else ""
        end = block["offset"] + block["width"]
        place = f"features {block['offset']} to {end - 1}"
        yield f"  {head:14} {block['tap']} {block['pooling']}: {place}"
    columns = [
        column["name"] + (f"[{column['width']}]" if column["width"] > 1 else "")
        for column in facts["columns"]
    ]
    yield f"  columns        {', '.join(columns) or 'none'}"
    if facts["n_groups"] is not None:
        marked = any(column["name"] == "split" for column in facts["columns"])
        clean = ", no patient in two splits" if facts["group_clean"] else ", PATIENTS IN TWO SPLITS"
        who = "patients"
        if facts["views"] and facts["views"]["group"] == "image":
            who = "(patients, or images where none were named)"
        yield f"  groups         {facts['n_groups']} {who}{clean if marked else ''}"
    if facts["sources"]:
        yield f"  sources        {', '.join(facts['sources'])}"
    if facts["n_refused"] is not None:
        yield f"  refused        {facts['n_refused']} images were not taken in"
    for key, value in facts["software"].items():
        yield f"  {key:14} {value}"
    for key, value in facts["about"].items():
        text = " to ".join(map(str, value)) if isinstance(value, list) else value
        name = "ages (years)" if key == "age_range_years" else key
        yield f"  {name:14} {text}"
    yield ""
    yield from table_lines(facts)
    yield ""
    yield f"  {PRIVACY}"


def table_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Lay out classes x splits: rows, and groups in brackets.

    Parameters
    ----------
    facts : dict
        As `describe_container` gives them.

    Yields
    ------
    str
        One line.
    """
    cells: dict[str | None, dict[str, str]] = {}
    filled: set[str] = {"all"}
    for entry in facts["table"]:
        groups = "" if entry["groups"] is None else f" ({entry['groups']})"
        cells.setdefault(entry["class"], {})[entry["split"]] = f"{entry['rows']}{groups}"
        if entry["rows"]:
            filled.add(entry["split"])
    splits = [name for name in (*SPLITS, "all") if name in filled]
    counted = "images" if facts["n_views"] else "rows"
    title = "class" if facts["n_groups"] is None else f"class, {counted} (patients)"
    width = max(len(title), *(len(name or "all") for name in cells))
    widths = {s: max(len(s), *(len(row.get(s, "")) for row in cells.values())) for s in splits}
    yield f"  {title:{width}}  " + "  ".join(f"{s:>{widths[s]}}" for s in splits)
    for name, row in cells.items():
        yield f"  {name or 'all':{width}}  " + "  ".join(
            f"{row.get(s, ''):>{widths[s]}}" for s in splits
        )
    if facts["multilabel"]:
        yield "  (a row counts for every class that is present in it)"


# ---- verify ------------------------------------------------------------------------------------


def _verify(files: Sequence[str], keys: Sequence[str] | None, *, quiet: bool) -> int:
    n_failed = 0
    for file in files:
        try:
            with (
                open_container(file) as container,
                progress_bar(container.path.name, quiet=quiet) as advance,
            ):
                signed = ""
                if keys is not None:
                    from formats.signing import verify_signature

                    # of the header alone: the bytes it speaks of are compared in the next line
                    fingerprint = verify_signature(container, keys, body=False)
                    signed = f", signed by {fingerprint[:16]}..."
                container.verify(advance)
                size = size_text(container.size_bytes)
                line = f"{file}: ok, {container.n_rows} rows, {size}{signed}"
        except ContainerError as exc:
            n_failed += 1
            print(f"error: {exc}", file=sys.stderr)
        else:
            if not quiet:
                print(line)
    if n_failed and len(files) > 1:
        print(f"{n_failed} of {len(files)} files are not fine", file=sys.stderr)
    return 1 if n_failed else 0
