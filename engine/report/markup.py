"""The pieces a page is put together from: tables in their own boxes, lists of facts, hints."""

from __future__ import annotations

from collections.abc import Sequence

from engine.report.words import text

__all__ = ["Keys", "chart", "facts", "open_point", "section", "table"]


class Keys:
    """Gives every element that is pointed at an ``id`` of its own."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> str:
        """Return the next id."""
        self._last += 1
        return f"k{self._last}"


def section(anchor: str, heading: str, *parts: str) -> str:
    """Return a section with its heading; empty parts are left out."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{anchor}"><h2>{heading}</h2>\n{body}\n</section>\n'


def open_point(what: str, how: str) -> str:
    """Return a box that says what is missing and how to get it (both HTML)."""
    return f'<p class="open"><b>Not here:</b> {what} {how}</p>'


def facts(rows: Sequence[tuple[str, str]], *, caption: str, keys: Keys) -> str:
    """Return a table of two columns; rows whose value is empty are left out.

    Parameters
    ----------
    rows : sequence of (heading, value)
        HTML.
    caption : str
        HTML.
    keys : Keys
        Of the page.

    Returns
    -------
    str
        HTML; empty without rows.
    """
    kept = [(heading, value) for heading, value in rows if value]
    if not kept:
        return ""
    key = keys()
    body = "".join(
        f'<tr><th scope="row">{heading}</th><td>{value}</td></tr>' for heading, value in kept
    )
    return (
        f'<figure><figcaption id="{key}">{caption}</figcaption>'
        f'<table class="facts" aria-labelledby="{key}"><tbody>{body}</tbody></table></figure>'
    )


def table(
    caption: str,
    columns: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[str]],
    *,
    keys: Keys,
    style: str = "",
    last: Sequence[str] | None = None,
) -> str:
    """Return a table that scrolls inside its own box where it is wider than the screen.

    Parameters
    ----------
    caption : str
        HTML.
    columns : sequence of (heading, kind)
        Heading in HTML; kind is the class of its cells: ``"n"`` for numbers, ``"plot"``, or
        ``""``.
    rows : sequence of sequence of str
        HTML; the first cell heads its row. A cell may carry its own class: ``"h4|text"`` where
        it starts with ``h`` and digits.
    keys : Keys
        Of the page.
    style : str
        Classes of the table.
    last : sequence of str, optional
        A row under the others that is not data: the axis of a column of plots.

    Returns
    -------
    str
        HTML.
    """
    key = keys()
    head = "".join(f'<th scope="col"{_class(kind)}>{heading}</th>' for heading, kind in columns)
    lines = []
    for row in rows:
        first, *others = row
        cells = "".join(
            f"<td{_class(kind)}>{cell}</td>"
            for cell, (_, kind) in zip(others, columns[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    if last is not None:
        cells = "".join(
            f"<td{_class(kind)}>{cell}</td>" for cell, (_, kind) in zip(last, columns, strict=True)
        )
        lines.append(f'<tr class="axis">{cells}</tr>')
    return (
        f'<figure><figcaption id="{key}">{caption}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{key}">'
        f'<table{_class(style)} aria-labelledby="{key}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></figure>"
    )


def _class(names: str) -> str:
    return f' class="{text(names)}"' if names else ""


def chart(caption: str, svg: str, *, single: bool = False) -> str:
    """Return a chart under its caption (both HTML)."""
    kind = "chart one" if single else "chart"
    return f'<figure class="{kind}"><figcaption>{caption}</figcaption>{svg}</figure>'
