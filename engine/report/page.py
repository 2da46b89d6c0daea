"""What the page says, section by section.

The order is the reader's: warnings, the verdict in plain words, what the head must not be used
for, then what the figures rest on. A section without data says how to get them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.report import making, performance, surroundings, verdict
from engine.report.checklist import checklist, model_card
from engine.report.markup import section
from engine.report.style import STYLE
from engine.report.view import Page
from engine.report.words import text

if TYPE_CHECKING:
    from engine.study import Study

__all__ = ["render_report"]

# Anchor, heading, and what builds the parts of the section.
_SECTIONS: tuple[tuple[str, str, Callable[[Page], list[str]]], ...] = (
    ("limits", "What it must not be used for", verdict.limits),
    ("data", "Whom it learned from", verdict.data),
    ("figures", "Every figure", performance.figures),
    ("comparison", "Beside another head", performance.comparison),
    ("curves", "ROC and precision-recall curves", performance.curves),
    ("probabilities", "Do its probabilities mean what they say?", performance.probabilities),
    ("decisions", "What it confuses", performance.decisions),
    ("floors", "What is reached without the network", surroundings.floors),
    ("confounding", "What goes along with the answer", surroundings.confounding),
    ("subgroups", "Subgroups", surroundings.subgroups),
    ("learning", "Would more patients help?", surroundings.learning),
    ("duplicates", "Near-duplicates", surroundings.duplicates),
    ("trials", "How its settings were chosen", making.trials),
    ("refusal", "What it refuses", making.refusal),
    ("timing", "Time and memory", making.timing),
    ("card", "Model card", lambda page: [model_card(page.study, page.keys)]),
    (
        "tripod",
        "TRIPOD+AI: what a publication must say",
        lambda page: [checklist(page.study, page.keys)],
    ),
)


def render_report(study: Study) -> str:
    """Make the page of a study.

    Parameters
    ----------
    study : Study
        The head and everything that was measured of it.

    Returns
    -------
    str
        A whole HTML page that loads nothing: style and charts are inside, and there is no
        script. No row of the data is in it, and no name of a file.
    """
    page = Page(study)
    # A comparison is asked for, not forgotten: without one there is nothing to say.
    shown = [each for each in _SECTIONS if each[0] != "comparison" or study.comparison is not None]
    first = section("verdict", "Verdict", *verdict.verdict(page))
    rest = "".join(section(anchor, heading, *build(page)) for anchor, heading, build in shown)
    links = "".join(f'<li><a href="#{anchor}">{heading}</a></li>' for anchor, heading, _ in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Nothing is loaded; a reader's browser is told to keep it so.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(study.head.name)}: report on a head</title>\n<style>{STYLE}</style>\n"
        '</head>\n<body>\n<a class="skip" href="#verdict">Skip to the verdict</a>\n'
        f'<div class="page">\n<header>\n{verdict.heading(page)}\n{verdict.warnings(page)}\n'
        f'</header>\n<main>\n{first}<nav aria-labelledby="contents"><h2 id="contents">Contents</h2>'
        f"<ul>{links}</ul></nav>\n{rest}</main>\n<footer>{_footer(page)}</footer>\n</div>\n"
        "</body>\n</html>\n"
    )


def _footer(page: Page) -> str:
    return (
        '<p class="quiet">Research use only. This page holds counts and figures, no image and no '
        "row of the data; the figures come from health images and small counts may still lead to a "
        f'person. Head <code class="digest">{page.head.digest}</code> (SHA-256).</p>'
    )
