"""The sections on how the head was made, what it refuses, what it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.report.markup import facts, open_point, table
from engine.report.plots import bar_row
from engine.report.view import Page
from engine.report.words import (
    NONE,
    amount,
    count,
    known,
    name,
    number,
    pair,
    percent,
    plural,
    seconds,
    text,
)

__all__ = ["refusal", "timing", "trials"]


def trials(page: Page) -> list[str]:
    """Return what the inner folds compared."""
    trials = page.study.trials
    if not trials:
        return [
            open_point(
                "what inner folds compared.",
                "Nothing was compared for this report: the settings were given, or the head was "
                "trained elsewhere. The model card below lists them.",
            )
        ]
    columns = [("Kind", ""), ("L2", "n"), ("Loss", "n"), ("AUROC", "n"), ("Chosen", "")]
    lines = [
        [
            text(trial.get("kind", "")),
            _plain_number(trial.get("l2")),
            number(trial.get("loss"), 4),
            number(trial.get("auroc_macro")),
            '<span class="done">✓ chosen</span>' if trial.get("chosen") else "",
        ]
        for trial in trials
    ]
    if any(known(trial.get("dropout")) for trial in trials):
        columns.insert(2, ("Dropout", "n"))
        for line, trial in zip(lines, trials, strict=True):
            line.insert(2, _plain_number(trial.get("dropout")))
    if any("loss_calibrated" in trial for trial in trials):
        place = [heading for heading, _ in columns].index("Loss") + 1
        columns.insert(place, ("Loss, calibrated", "n"))
        for line, trial in zip(lines, trials, strict=True):
            line.insert(place, number(trial.get("loss_calibrated"), 4))
    return [
        "<p>Settings were compared by folds inside the training rows only. The figures of this "
        "report had no part in the choice.</p>",
        table("What was compared, by inner folds.", columns, lines, keys=page.keys),
        page.explain("l2", "loss"),
    ]


def _plain_number(value: Any) -> str:
    real = known(value)
    return "by block" if real is None else f"{real:g}"


def refusal(page: Page) -> list[str]:
    """Return what the head refuses."""
    model = page.head.ood
    if model is None:
        return [
            open_point(
                "a score of how unlike the training images a picture is.",
                "This head answers for any picture, also for a photograph. Train it again with "
                "this release.",
            )
        ]
    about = model.about
    unseen, ends = known(about.get("refused_unseen")), pair(about.get("refused_unseen_ci95"))
    stated = known(about.get("stated_rate"))
    learned = plural(about["n_rows"], "image") if "n_rows" in about else ""
    if "n_groups" in about:
        learned += f" of {plural(about['n_groups'], 'patient')}"
    rows = [
        ("Method", text(model.to_json().get("method") or "")),
        ("Learned from", learned),
        ("Refuses a score above", number(model.threshold)),
        ("Meant to refuse, of images like the training’s", percent(model.refusal_rate)),
        (
            "What so few images can promise",
            percent(stated) if stated is not None and stated > model.refusal_rate else "",
        ),
        (
            "Did refuse, of such images it had not seen",
            (percent(unseen) + (f" ({percent(ends[0])} to {percent(ends[1])})" if ends else ""))
            if unseen is not None
            else NONE,
        ),
    ]
    sources = about.get("sources")
    by_source = ""
    if isinstance(sources, Mapping) and sources:
        lines = [
            [
                name(source),
                count(found.get("n_rows", found.get("rows"))),
                percent(found.get("refused_unseen")),
            ]
            for source, found in sources.items()
            if isinstance(found, Mapping)
        ]
        by_source = table(
            "Sources that have a limit of their own.",
            [("Source", ""), ("Images", "n"), ("Refused, unseen", "n")],
            lines,
            keys=page.keys,
        )
    return [
        "<p>Before it answers, the head compares the picture with its training images, and gives "
        "no probabilities for one that is too unlike. That catches photographs and other body "
        "parts; it does not tell whether an answer is right.</p>",
        facts(rows, caption="The out-of-distribution score.", keys=page.keys),
        by_source,
    ]


def timing(page: Page) -> list[str]:
    """Return time and memory."""
    timing = page.study.timing
    if not timing:
        return [open_point("time and memory.", "They were not measured for this report.")]
    total = known(timing.get("seconds"))
    steps = [step for step in timing.get("steps") or () if known(step.get("seconds")) is not None]
    whole = max([total or 0.0, sum(float(step["seconds"]) for step in steps), 1e-9])
    parts = [
        facts(
            [
                ("All together", seconds(total) if total is not None else ""),
                (
                    "Memory at most",
                    amount(timing["peak_bytes"]) if known(timing.get("peak_bytes")) else "",
                ),
                ("Machine", text(timing.get("machine") or "")),
                ("Threads", count(timing["threads"]) if known(timing.get("threads")) else ""),
            ],
            caption="What this report took.",
            keys=page.keys,
        )
    ]
    if steps:
        parts.append(
            table(
                "Where the time went.",
                [("Step", ""), ("", "plot"), ("Time", "n")],
                [
                    [
                        text(step.get("name", "")),
                        bar_row(float(step["seconds"]) / whole),
                        seconds(step["seconds"]),
                    ]
                    for step in steps
                ],
                keys=page.keys,
                style="ladder",
            )
        )
    return parts
