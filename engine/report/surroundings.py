"""The sections on what the figures must be read with."""

from __future__ import annotations

from typing import Any

from engine.comparison import MIN_SUBGROUP_ROWS
from engine.report.markup import chart, facts, open_point, table
from engine.report.plots import Series, learning_chart
from engine.report.view import Page, heat, ladder, plain
from engine.report.words import (
    count,
    difference,
    figure,
    joined,
    known,
    name,
    number,
    pair,
    percent,
    plural,
    text,
)

__all__ = ["confounding", "duplicates", "floors", "learning", "subgroups"]

# Fewer patients than this in a cell may lead to one of them.
_FEW = 5


def floors(page: Page) -> list[str]:
    """Return what the same training reaches on data that show little of the lungs."""
    study, e = page.study, page.evaluation
    parts = [page.explain("floor")]
    if study.floors:
        own = page.ci("auroc_macro")
        rows: list[tuple[str, Any, Any, bool]] = [("This head", e.auroc_macro, own, True)]
        rows += [
            (
                text(floor.name),
                floor.evaluation.auroc_macro,
                floor.evaluation.ci95.get("auroc_macro"),
                False,
            )
            for floor in study.floors
        ]
        parts.append(
            ladder(
                page,
                "AUROC, mean over classes: the head (round) and its floors (square), same rows, "
                "same folds. Shaded: the head’s 95 % interval; a floor that reaches into it is a "
                "warning.",
                "AUROC",
                rows,
                own,
            )
        )
        given = "".join(
            f"<div><dt>{text(floor.name)}</dt> <dd>{text(floor.explanation)}</dd></div>"
            for floor in study.floors
        )
        parts.append(f'<dl class="gloss">{given}</dl>')
        lines = []
        for floor in study.floors:
            less, its = floor.difference.get("auroc_macro") or {}, floor.evaluation
            lines.append(
                [
                    text(floor.name),
                    figure(its.auroc_macro, its.ci95.get("auroc_macro")),
                    difference(less.get("value"), less.get("ci95")),
                    figure(its.accuracy, its.ci95.get("accuracy")),
                ]
            )
        parts.append(
            table(
                "The floors in figures, with 95 % intervals. The difference is paired by patient.",
                [("Floor", ""), ("AUROC", "n"), ("Head less floor", "n"), ("Accuracy", "n")],
                lines,
                keys=page.keys,
            )
        )
    for missing in study.floors_missing:
        parts.append(open_point(text(missing.rstrip(".")) + ".", ""))  # noqa: PERF401
    if not study.floors and not study.floors_missing:
        parts.append(
            open_point(
                "no floor was measured.",
                "Extract with <code>--floors border,pixels</code> and give the manifest the "
                "columns source, sex and age; then the report measures them.",
            )
        )
    return parts


_COLUMN_NAMES = {
    "source": "Source",
    "sex": "Sex",
    "age": "Age",
    "projection": "Projection",
    "view": "View",
}


def confounding(page: Page) -> list[str]:
    """Return how classes are spread over sources, sexes, ages and projections."""
    columns = (page.study.confounding or {}).get("columns") or {}
    parts = []
    few = None
    for column, content in columns.items():
        classes, values = list(content["classes"]), list(content["values"])
        rows, patients = content["rows"], content.get("patients")
        heading = _COLUMN_NAMES.get(column, column)
        lines = []
        for i, value in enumerate(values):
            total = sum(rows[i])
            cells = []
            for j in range(len(classes)):
                n = int(rows[i][j])
                share = n / total if total else 0.0
                people = ""
                if patients is not None and n:
                    m = int(patients[i][j])
                    people = f'<span class="quiet people">{plural(m, "patient")}</span>'
                    few = m if few is None else min(few, m)
                under = f'<span class="quiet">{percent(share)}</span>{people}' if n else ""
                cells.append(f'<td class="{heat(share)}">{count(n)}{under}</td>')
            lines.append(
                f'<tr><th scope="row">{name(value)}</th>{"".join(cells)}'
                f"<td>{count(total)}</td></tr>"
            )
        key = page.keys()
        heads = "".join(f'<th scope="col">{name(each)}</th>' for each in classes)
        sums = "several labels of an image count in several columns; " if page.multilabel else ""
        single = [
            classes[j]
            for j in range(len(classes))
            if len(values) > 1 and sum(1 for row in rows if row[j]) == 1
        ]
        parts.append(
            f'<h3>{text(heading)}</h3><figure><figcaption id="{key}">Images of each '
            f"{page.noun} by {text(heading.lower())}; {sums}shares are of the row.</figcaption>"
            f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{key}">'
            f'<table class="matrix" aria-labelledby="{key}"><thead><tr>'
            f'<th scope="col">{text(heading)}</th>{heads}<th scope="col">All</th></tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div></figure>"
        )
        if single:
            what = "value" if column != "source" else "source"
            parts.append(
                f"<p><strong>{joined(single)}</strong> "
                f"{'occurs' if len(single) == 1 else 'occur'} with one {what} only: the head may "
                f"have learned to tell that {what} instead.</p>"
            )
        if len(values) == 1:
            parts.append(
                f'<p class="quiet">All rows have one value, {name(values[0])}: nothing can be '
                "told about others.</p>"
            )
    missing = [c for c in ("source", "sex", "age", "projection") if c not in columns]
    if columns:
        intro = (
            "<p>If a column below nearly tells the class, so may the head, without seeing any "
            "disease.</p>"
        )
        parts.insert(0, intro)
    if few is not None and few < _FEW:
        parts.append(
            f'<p class="note">The smallest filled cell holds {plural(few, "patient")}. So few may '
            "be recognised by someone who knows them: think before passing this page on.</p>"
        )
    if missing:
        parts.append(
            open_point(
                f"tables by {joined(missing)}.",
                "The container has no such column. Give the manifest the columns source, sex, age "
                "and view, and extract again.",
            )
        )
    return parts


def subgroups(page: Page) -> list[str]:
    """Return the figures of each subgroup beside all."""
    subgroups = page.study.subgroups
    if not subgroups:
        return [
            open_point(
                "figures of subgroups.",
                "They need columns such as source, sex, age or view in the manifest, and enough "
                "patients of each value.",
            )
        ]
    e = page.evaluation
    rows: list[tuple[str, Any, Any, bool]] = [("All", e.auroc_macro, page.ci("auroc_macro"), True)]
    lines = []
    for each in subgroups:
        column = _COLUMN_NAMES.get(str(each["column"]), str(each["column"]))
        label = f'<span class="quiet">{text(column)}</span> {name(each["value"])}'
        ends = each.get("ci95") or {}
        rows.append((label, each.get("auroc_macro"), ends.get("auroc_macro"), False))
        lines.append(
            [
                f"{text(column)}: {name(each['value'])}",
                count(each.get("n_rows")),
                count(each.get("n_groups")),
                figure(each.get("auroc_macro"), ends.get("auroc_macro")),
                figure(each.get("accuracy"), ends.get("accuracy")),
            ]
        )
    return [
        ladder(
            page,
            "AUROC, mean over classes, in each subgroup (square) beside all rows (round; shaded "
            "interval).",
            "AUROC",
            rows,
            page.ci("auroc_macro"),
        ),
        table(
            "Subgroups in figures, with 95 % intervals.",
            [("Subgroup", ""), ("Images", "n"), ("Patients", "n"), ("AUROC", "n"),
             ("Accuracy", "n")],
            lines,
            keys=page.keys,
        ),
        '<p class="note">Wide intervals mean few patients, not equal treatment. One subgroup in '
        f"twenty lies outside by chance.{_undefined(page)}</p>",
    ]  # fmt: skip


def _undefined(page: Page) -> str:
    """Say why a subgroup has no figures, where one has none."""
    if all(known(each.get("auroc_macro")) is not None for each in page.study.subgroups):
        return ""
    return (
        f" No figures are given of fewer than {MIN_SUBGROUP_ROWS} images, and no AUROC where all "
        f"or none of them are of a {page.noun}."
    )


def learning(page: Page) -> list[str]:
    """Return the learning curve."""
    steps = page.study.learning_curve
    if not steps:
        return [
            open_point(
                "a learning curve.",
                "It belongs to a training: <code>python -m engine.train … --report</code> "
                "measures it where there are patients enough.",
            )
        ]

    def series(label: str, mark: str, key: str) -> Series:
        return Series(
            label,
            mark,
            tuple(known(step.get(key)) for step in steps),
            tuple(pair((step.get("ci95") or {}).get(key)) for step in steps),
        )

    lines = [
        [
            count(step.get("n_groups")),
            count(step.get("n_rows")),
            figure(step.get("auroc_macro"), (step.get("ci95") or {}).get("auroc_macro")),
            figure(step.get("accuracy"), (step.get("ci95") or {}).get("accuracy")),
        ]
        for step in steps
    ]
    return [
        chart(
            "AUROC (round, solid) and accuracy (square, dashed) against the number of patients "
            "learned from, with 95 % intervals. A line that still rises says that more patients "
            "would help.",
            learning_chart(
                page.keys(),
                [max(round(step["n_groups"]), 1) for step in steps],
                [
                    series("AUROC", "circle", "auroc_macro"),
                    series("accuracy", "square", "accuracy"),
                ],
                title="Learning curve",
                description="; ".join(
                    f"{step['n_groups']:.0f} patients: AUROC {plain(step.get('auroc_macro'))}, "
                    f"accuracy {plain(step.get('accuracy'))}"
                    for step in steps
                ),
            ),
            single=True,
        ),
        table(
            "The learning curve in figures.",
            [("Patients", ""), ("Images", "n"), ("AUROC", "n"), ("Accuracy", "n")],
            lines,
            keys=page.keys,
        ),
    ]


def duplicates(page: Page) -> list[str]:
    """Return how many images are nearly the same."""
    found = page.study.duplicates
    if found is None:
        return [
            open_point(
                "a search for near-duplicates.",
                "It belongs to a training: <code>python -m engine.train … --report</code> "
                "looks for them.",
            )
        ]
    return [
        "<p>Pairs of images whose features are almost the same. A pair on both sides of a split "
        "makes figures look better than they are; a pair across patients may be one patient under "
        "two names.</p>",
        facts(
            [
                ("Pairs", count(found.get("n_pairs"))),
                ("Across patients", count(found.get("n_across_patients"))),
                ("Across splits or folds", count(found.get("n_across_splits"))),
                ("Counted from a cosine of", number(found.get("cosine"))),
            ],
            caption="Near-duplicates.",
            keys=page.keys,
        ),
    ]
