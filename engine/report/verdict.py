"""What the page says first: warnings, verdict, limits, and the data behind the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.report.markup import facts
from engine.report.view import Page, years
from engine.report.words import count, known, name, number, pair, plural, text

__all__ = ["data", "heading", "limits", "verdict", "warnings"]


def heading(page: Page) -> str:
    """Return the name of the head under what this page is."""
    kind = "training" if page.study.purpose == "train" else "evaluation on further data"
    return (
        f'<p class="kicker">Hilum, report of a {kind}. <strong>Research use only.</strong></p>\n'
        f"<h1>{name(page.head.name)}</h1>"
    )


def warnings(page: Page) -> str:
    """Return every warning, in a box that nobody overlooks."""
    warnings = page.study.warnings
    if not warnings:
        return (
            '<p class="calm">No warning was raised by what was looked at. What was not looked at '
            "is marked below as “Not here”.</p>"
        )
    items = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
    n = len(warnings)
    heading = "Warning" if n == 1 else f"{n} warnings"
    return (
        '<aside class="warnings" aria-labelledby="warnings">'
        f'<h2 id="warnings"><span aria-hidden="true">⚠ </span>{heading}: read before any figure'
        f"</h2><ol>{items}</ol></aside>"
    )


def _people(facts_of: Mapping[str, Any]) -> str:
    """Say rows, patients and ages in words."""
    said = plural(facts_of.get("n_rows"), "image")
    if known(facts_of.get("n_groups")) is not None:
        said += f" of {plural(facts_of.get('n_groups'), 'patient')}"
    ages = pair(facts_of.get("age_range_years"))
    if ages is not None:
        said += f" aged {years(ages)}"
    return said


def _learned(page: Page) -> dict[str, Any]:
    """Return the facts of the data the head learned from."""
    given = {**page.head.about, **page.head.training}
    if page.study.purpose == "train":
        given.update({k: v for k, v in page.study.data.items() if v not in (None, "", [], {})})
    return given


def verdict(page: Page) -> list[str]:
    """Return what the head decides, on whom it learned and how well it does, in plain words."""
    e, study = page.evaluation, page.study
    k = len(e.classes)
    names = [name(each) for each in e.classes]
    listed = ", ".join(names[:12]) + (f" and {k - 12} more" if k > 12 else "")
    if page.multilabel:
        decides = f"answers yes or no for {plural(k, 'label')}, each on its own: {listed}"
    elif k == 2:
        decides = f"tells {names[0]} from {names[1]}"
    else:
        decides = f"names one of {k} classes: {listed}"
    learned = _learned(page)
    sources = _source_names(learned.get("sources"))
    whom = _people(learned) if known(learned.get("n_rows")) is not None else "images of which "
    whom += "" if known(learned.get("n_rows")) is not None else "this head’s file says nothing"
    if sources:
        whom += f", from {plural(len(sources), 'source')}"
    said = [
        f'<p class="lede">Given a chest X-ray, this head {decides}. It learned from {whom}.</p>'
    ]
    baseline = _baseline(page)
    tiles = [
        f'<div class="tile"><span class="what">AUROC, mean over {page.nouns}</span>'
        f"<b>{number(e.auroc_macro)}</b>{_long_interval(page.ci('auroc_macro'))}"
        '<span class="quiet">0.5 is guessing, 1 is perfect</span></div>',
        f'<div class="tile"><span class="what">Accuracy</span><b>{number(e.accuracy)}</b>'
        f'{_long_interval(page.ci("accuracy"))}<span class="quiet">{baseline}</span></div>',
    ]
    said.append(f'<div class="tiles">{"".join(tiles)}</div>')
    how = f"Judged on {plural(e.n_rows, 'image')} of {plural(e.n_groups, 'patient')}"
    said.append(f"<p>{how}: {text(study.protocol.rstrip('.'))}.</p>")
    if study.floors:
        beside = "; ".join(
            f"{text(floor.name)} {number(floor.evaluation.auroc_macro)}" for floor in study.floors
        )
        said.append(
            f"<p>What the same training reaches without the network (AUROC): {beside}. "
            '<a href="#floors">More on these floors</a>.</p>'
        )
    notes = [note for note in e.notes if note not in study.warnings]
    if notes:
        said.append(f"<ul>{''.join(f'<li>{text(note)}</li>' for note in notes)}</ul>")
    said.append(page.explain("auroc", "accuracy_labels" if page.multilabel else "accuracy", "ci95"))
    return said


def _long_interval(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return '<span class="quiet">no interval was computed</span>'
    return f'<span class="quiet">95\u202f% interval {number(ends[0])} to {number(ends[1])}</span>'


def _baseline(page: Page) -> str:
    """Say what always giving the most frequent answer would reach."""
    e = page.evaluation
    if page.multilabel:
        assessed = e.labels >= 0
        total = int(assessed.sum())
        if not total:
            return "nothing was assessed"
        positive = ((e.labels == 1) & assessed).sum(axis=0)
        right = int(np.maximum(positive, assessed.sum(axis=0) - positive).sum())
        return f"the more frequent answer to each label: {number(right / total)}"
    counts = np.bincount(e.labels, minlength=len(e.classes))
    if not counts.sum():
        return "nothing was assessed"
    return f"always naming the most frequent class: {number(counts.max() / counts.sum())}"


def limits(page: Page) -> list[str]:
    """Return what the head must not be used for."""
    items = [
        "<strong>Research use only.</strong> Not a medical device; no decision about a patient may "
        "rest on it."
    ]
    items += [
        text(limit) for limit in page.study.limits if not limit.startswith("Research use only")
    ]
    return [f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"]


def _source_names(sources: Any) -> list[tuple[str, int | None]]:
    """Read sources: names, or names with counts."""
    if isinstance(sources, Mapping):
        return [(str(key), int(n) if known(n) is not None else None) for key, n in sources.items()]
    if isinstance(sources, (list, tuple)):
        pairs: list[tuple[str, int | None]] = []
        for each in sources:
            if isinstance(each, (list, tuple)) and len(each) == 2:
                pairs.append((str(each[0]), int(each[1]) if known(each[1]) is not None else None))
            elif isinstance(each, Mapping):
                n = known(each.get("n_rows"))
                pairs.append((str(each.get("name")), None if n is None else int(n)))
            else:
                pairs.append((str(each), None))
        return pairs
    return []


def _link(url: object) -> str:
    """Return an address: a link only if it leads to the web."""
    if not url:
        return ""
    if str(url).startswith(("https://", "http://")):
        return f'<a href="{text(url)}" rel="noreferrer">{text(url)}</a>'
    return text(url)


def _data_facts(given: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known of a data set, in words."""
    sources = _source_names(given.get("sources"))
    listed = ", ".join(name(each) + ("" if n is None else f" ({count(n)})") for each, n in sources)
    ages = pair(given.get("age_range_years"))
    counts = given.get("class_counts") or {}
    views = known(given.get("n_views"))
    return {
        "Title": text(given.get("title") or ""),
        "Population": text(given.get("population") or ""),
        "Images": "" if known(given.get("n_rows")) is None else count(given.get("n_rows")),
        "Augmented views": f"{count(views)}, learned from, never judged" if views else "",
        "Patients": "" if known(given.get("n_groups")) is None else count(given.get("n_groups")),
        "Ages": "not known" if ages is None else years(ages),
        "Sources": listed or "not known: the data name no source",
        "Images by class": ", ".join(f"{name(k)}&nbsp;{count(n)}" for k, n in counts.items()),
        "Attribution": text(given.get("attribution") or ""),
        "Address": _link(given.get("url")),
        "Licence": text(given.get("licence") or ""),
        "Terms": text(given.get("terms") or ""),
    }


def data(page: Page) -> list[str]:
    """Return what is known of the data it learned from, and of those it is judged on."""
    learned = _data_facts(_learned(page))
    if page.study.purpose == "train":
        return [facts(list(learned.items()), caption="The data behind this head.", keys=page.keys)]
    e = page.evaluation
    judged = _data_facts(
        {
            "n_rows": e.n_rows,
            "n_groups": e.n_groups,
            "class_counts": e.class_counts,
            **{k: v for k, v in page.study.data.items() if v not in (None, "", [], {})},
        }
    )
    return [
        facts(list(learned.items()), caption="The data this head learned from.", keys=page.keys),
        facts(list(judged.items()), caption="The data it is judged on here.", keys=page.keys),
    ]
