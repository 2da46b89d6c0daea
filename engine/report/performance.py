"""The sections on how well the head does: figures, curves, probabilities, decisions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.curves import Curve, precision_recall_curve, reliability_curve, roc_curve
from engine.metrics import predictive_values, wilson
from engine.report.markup import chart, facts, open_point, table
from engine.report.plots import reliability_chart, unit_chart
from engine.report.view import Page, heat, plain, share
from engine.report.words import (
    count,
    difference,
    figure,
    interval,
    joined,
    known,
    name,
    number,
    pair,
    percent,
    text,
)

__all__ = ["comparison", "curves", "decisions", "figures", "probabilities"]

# Shares of patients that predictive values are given for.
_PREVALENCES = (0.01, 0.1, 0.5)
# A confusion matrix up to this wide has intervals in its cells, one beyond has numbered columns.
_INTERVALS_UP_TO, _NAMES_UP_TO = 4, 6
# Charts of more classes are drawn smaller.
_LARGE_CHARTS_UP_TO = 6


def figures(page: Page) -> list[str]:
    """Return every figure with its interval."""
    e = page.evaluation
    overall = [
        ("AUROC, macro", figure(e.auroc_macro, page.ci("auroc_macro"))),
        (
            "Average precision, macro",
            figure(e.average_precision_macro, page.ci("average_precision_macro")),
        ),
        ("Accuracy", figure(e.accuracy, page.ci("accuracy"))),
        ("Balanced accuracy", figure(e.balanced_accuracy, page.ci("balanced_accuracy"))),
        ("Brier score", figure(e.brier, page.ci("brier"))),
        ("Expected calibration error", figure(e.calibration.get("ece"), page.ci("ece"))),
    ]
    parts = [
        facts(overall, caption="Over all rows judged, with 95 % intervals.", keys=page.keys),
        page.explain("average_precision", "balanced_accuracy", "brier", "ece"),
    ]
    rows = []
    for c in e.classes:
        cells = [
            name(c),
            count(e.class_counts.get(c)),
            figure(e.auroc.get(c), page.ci(f"auroc:{c}")),
            figure(e.average_precision.get(c), page.ci(f"average_precision:{c}")),
        ]
        for key in ("slope", "intercept"):
            value = (e.calibration.get(key) or {}).get(c)
            cells.append(figure(value, page.ci(f"calibration_{key}:{c}")))
        rows.append(cells)
    first = (page.noun.capitalize(), "")
    parts += [
        table(
            f"One {page.noun} against the rest, with 95 % intervals. Wide tables scroll sideways.",
            [
                first,
                ("Images", "n"),
                ("AUROC", "n"),
                ("Average precision", "n"),
                ("Calibration slope", "n"),
                ("Calibration intercept", "n"),
            ],
            rows,
            keys=page.keys,
            style="broad",
        ),
        page.explain("slope"),
    ]
    rows = []
    for c in e.classes:
        cells = [name(c)]
        for key, values in (
            ("sensitivity_at", e.sensitivity_at),
            ("specificity_at", e.specificity_at),
        ):
            at_class = values.get(c) or {}
            cells += [
                figure(at_class.get(at), page.ci(f"{key}_{at}:{c}")) for at in ("0.90", "0.95")
            ]
        rows.append(cells)
    parts += [
        table(
            "What a threshold could reach, with 95 % intervals. The thresholds are of these very "
            f"rows{'; the head’s own are below' if page.head.thresholds else ''}.",
            [
                first,
                *((f"Sensitivity at {at} % specificity", "n") for at in (90, 95)),
                *((f"Specificity at {at} % sensitivity", "n") for at in (90, 95)),
            ],
            rows,
            keys=page.keys,
            style="broad",
        ),
        page.explain("sensitivity_at"),
    ]
    return parts


def comparison(page: Page) -> list[str]:
    """Return the differences from another head."""
    other = page.study.comparison or {}
    differences = other.get("difference") or {}
    labels = {
        "auroc_macro": "AUROC, macro",
        "accuracy": "Accuracy",
        "average_precision_macro": "Average precision, macro",
        "brier": "Brier score",
    }
    rows = [
        (
            f"{labels.get(key, text(key))}: this head less the other",
            difference(value.get("value"), value.get("ci95")),
        )
        for key, value in differences.items()
    ]
    return [
        facts(
            [
                ("Other head", name(other.get("name") or "not named")),
                ("Its AUROC, macro", number(other.get("auroc_macro"))),
                ("Its accuracy", number(other["accuracy"]) if "accuracy" in other else ""),
                *rows,
            ],
            caption="On the same rows, paired by patient, with 95 % intervals. An interval that "
            "holds 0 shows no difference.",
            keys=page.keys,
        )
    ]


def curves(page: Page) -> list[str]:
    """Return ROC and precision-recall curves with their bands."""
    e = page.evaluation
    rocs, precisions, left_out = [], [], []
    small = len(e.classes) > _LARGE_CHARTS_UP_TO
    for c, label in enumerate(e.classes):
        _, positive, decided = page.truth(c)
        n_positive = int(positive.sum())
        if n_positive == 0 or n_positive == len(positive):
            left_out.append(label)
            continue
        hits, alarms = int((decided & positive).sum()), int((decided & ~positive).sum())
        sensitivity = hits / n_positive
        roc = roc_curve(e, label, draws=page.draws)
        curve = precision_recall_curve(e, label, draws=page.draws)
        if roc is None or curve is None:  # as counted above, never
            continue
        shown = figure(e.auroc.get(label), page.ci(f"auroc:{label}"))
        rocs.append(
            chart(
                f"<b>{name(label)}</b> <span>AUROC {shown}</span>",
                unit_chart(
                    page.keys(),
                    # The grid's first point is the best without a false alarm: the step up to it.
                    np.r_[0.0, roc.x],
                    np.r_[0.0, roc.y],
                    band=_band(roc),
                    title=f"ROC curve of {label}",
                    description=f"Sensitivity against false alarms; area "
                    f"{plain(e.auroc.get(label))}. The head decides at sensitivity "
                    f"{sensitivity:.3f} and {alarms / (len(positive) - n_positive):.3f} false "
                    "alarms.",
                    x_name="" if small else "false alarms (1 − specificity)",
                    y_name="" if small else "sensitivity",
                    point=(alarms / (len(positive) - n_positive), sensitivity),
                ),
            )
        )
        shown = figure(e.average_precision.get(label), page.ci(f"average_precision:{label}"))
        precisions.append(
            chart(
                f"<b>{name(label)}</b> <span>Average precision {shown}</span>",
                unit_chart(
                    page.keys(),
                    curve.x,
                    curve.y,
                    band=_band(curve),
                    chance=n_positive / len(positive),
                    title=f"Precision-recall curve of {label}",
                    description=f"Precision against recall; average precision "
                    f"{plain(e.average_precision.get(label))}; guessing gives "
                    f"{n_positive / len(positive):.3f}.",
                    x_name="" if small else "recall (sensitivity)",
                    y_name="" if small else "precision",
                    point=(sensitivity, hits / (hits + alarms)) if hits + alarms else None,
                ),
            )
        )
    style = "grid many" if small else "grid"
    parts = []
    if rocs:
        axes = (
            " Across and up, both from 0 to 1: false alarms and sensitivity in the first charts, "
            "recall and precision in the second."
        )
        parts += [
            f"<p>One {page.noun} against the rest. Shaded: the 95 % interval over patients. The "
            f"dot is where the head decides.{axes if small else ''}</p>",
            f'<h3>ROC</h3>{page.explain("roc")}<div class="{style}">{"".join(rocs)}</div>',
            f"<h3>Precision-recall</h3>{page.explain('precision_recall')}"
            f'<div class="{style}">{"".join(precisions)}</div>',
        ]
    if left_out:
        parts.append(
            open_point(
                f"curves of {joined(left_out)}.",
                "They need rows that are of the class and rows that are not; judge the head on "
                "data with both.",
            )
        )
    return parts


def _band(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    return curve.x, curve.low, curve.high


def _bin_intervals(curve: Curve) -> list[tuple[float, float]]:
    """Return the interval of each bin of a reliability curve.

    Drawing patients says nothing of a bin where all or none came true, or of a single patient:
    Wilson's interval stands there.
    """
    found = []
    for y, low, high, n in zip(curve.y, curve.low, curve.high, curve.n_rows, strict=True):
        ends = pair((low, high))
        if ends is None or ends[0] == ends[1]:
            ends = wilson(round(float(y) * int(n)), int(n))
        found.append(ends or (0.0, 1.0))
    return found


def probabilities(page: Page) -> list[str]:
    """Return reliability plots, and how the head makes probabilities and decisions."""
    e, head = page.evaluation, page.head
    charts = []
    small = len(e.classes) > _LARGE_CHARTS_UP_TO
    for c, label in enumerate(e.classes):
        _, positive, _ = page.truth(c)
        if not len(positive):
            continue
        curve = reliability_curve(e, label, draws=page.draws)
        if curve is None:  # as counted above, never
            continue
        predicted, observed = curve.x.tolist(), curve.y.tolist()
        intervals = _bin_intervals(curve)
        worst = int(np.abs(curve.x - curve.y).argmax())
        given = (e.meant if not page.multilabel else e.meant[e.labels[:, c] >= 0])[:, c]
        strip, _ = np.histogram(given, bins=20, range=(0.0, 1.0))
        charts.append(
            chart(
                f"<b>{name(label)}</b>",
                reliability_chart(
                    page.keys(),
                    predicted,
                    observed,
                    intervals,
                    strip.tolist(),
                    title=f"Reliability of the probability of {label}",
                    description=f"{len(predicted)} bins; the furthest from the diagonal is "
                    f"given {predicted[worst]:.3f} and true of {observed[worst]:.3f}.",
                    small=small,
                ),
            )
        )
    style = "grid many" if small else "grid"
    calibration = head.calibration
    warmth = number(calibration.temperature)
    method = {
        "none": "none: probabilities are the softmax or sigmoid of the logits as they are",
        "temperature": f"temperature: logits are divided by {warmth}",
        "isotonic": "isotonic: a step function that only rises, for each class, of "
        f"{', '.join(str(len(x)) for x, _ in calibration.knots)} knots"
        + (
            f", after a temperature of {number(calibration.temperature)}"
            if calibration.temperature != 1.0
            else ""
        ),
    }.get(calibration.method, text(calibration.method))
    if not head.thresholds:
        rule = (
            "each label is present from 0.5 on"
            if page.multilabel
            else "the most probable class is decided"
        )
    elif page.multilabel:
        rule = "each label is present from its own threshold on"
    elif len(head.classes) == 2:
        rule = f"{name(head.classes[1])} from {number(head.thresholds[1])} on"
    else:
        rule = "the most probable class is decided; thresholds are given for reading single classes"
    equal = (
        "as if every label were present in half of the images"
        if page.multilabel
        else "as if every class were equally frequent"
    )
    prevalence = {
        "equal": equal,
        "training": "as frequent as in the training rows",
    }.get(str(head.training.get("prevalence")), "not recorded")
    parts = [
        "<p>Across: the mean probability that was given. Up: the share it was true of. Dots: rows "
        "in bins of their probability, with 95 % interval. Bars below: how many rows were given "
        "which probability.</p>",
        page.explain("reliability"),
        f"<p>The head’s probabilities are {equal}. Here and in the calibration figures they are "
        "turned into those for the frequencies of these rows.</p>"
        if e.prevalence == "equal"
        else "",
        f'<div class="{style}">{"".join(charts)}</div>',
        "<h3>Calibration and thresholds of the head</h3>",
        facts(
            [
                ("Calibration", method),
                ("Class frequencies behind the probabilities", prevalence),
                ("Decision", rule),
                (
                    "Expected calibration error here",
                    figure(e.calibration.get("ece"), page.ci("ece"))
                    if known(e.calibration.get("ece")) is not None
                    else "",
                ),
            ],
            caption="How logits become probabilities, and probabilities decisions.",
            keys=page.keys,
        ),
    ]
    if head.thresholds:
        parts.append(
            table(
                "Thresholds stored in the head.",
                [(page.noun.capitalize(), ""), ("Threshold", "n")],
                [
                    [name(each), number(value)]
                    for each, value in zip(head.classes, head.thresholds, strict=True)
                ],
                keys=page.keys,
            )
        )
    return parts


def _predictive(page: Page, label: str) -> list[str]:
    """Write PPV and NPV of a class at the stated prevalences."""
    at = [predictive_values(page.evaluation, label, share) for share in _PREVALENCES]
    return [
        figure(found[key]["value"], found[key]["ci95"]) for key in ("ppv", "npv") for found in at
    ]


def decisions(page: Page) -> list[str]:
    """Return the confusion matrix and the 2 x 2 table of each class."""
    e = page.evaluation
    rows, elsewhere = [], []
    for c, label in enumerate(e.classes):
        _, positive, decided = page.truth(c)
        tp, fn = int((decided & positive).sum()), int((~decided & positive).sum())
        fp, tn = int((decided & ~positive).sum()), int((~decided & ~positive).sum())
        elsewhere.append([name(label), *_predictive(page, label)])
        rows.append(
            [
                name(label),
                *(count(n) for n in (tp, fn, fp, tn)),
                share(tp, tp + fn),
                share(tn, tn + fp),
                share(tp, tp + fp),
                share(tn, tn + fn),
            ]
        )
    columns = [
        (page.noun.capitalize(), ""),
        ("Found", "n"),
        ("Missed", "n"),
        ("False alarms", "n"),
        ("Rightly not named", "n"),
        ("Sensitivity", "n"),
        ("Specificity", "n"),
        ("PPV", "n"),
        ("NPV", "n"),
    ]
    parts = []
    if not page.multilabel:
        parts.append(_matrix(page))
    parts += [
        table(
            f"The 2 × 2 table of each {page.noun} against the rest, as the head decides. "
            "Predictive values hold for the class frequencies of these rows.",
            columns,
            rows,
            keys=page.keys,
            style="broad",
        ),
        page.explain("sensitivity", "ppv", "wilson"),
        table(
            f"Predictive values where a {page.noun} is less or more frequent than here, by Bayes’ "
            "theorem from the sensitivity and specificity above, with 95 % intervals.",
            [
                (page.noun.capitalize(), ""),
                *((f"PPV at {percent(share, 0)}", "n") for share in _PREVALENCES),
                *((f"NPV at {percent(share, 0)}", "n") for share in _PREVALENCES),
            ],
            elsewhere,
            keys=page.keys,
            style="broad",
        ),
    ]
    return parts


def _matrix(page: Page) -> str:
    """Return the confusion matrix with row shares."""
    e = page.evaluation
    k = len(e.classes)
    key = page.keys()
    with_intervals, with_names = k <= _INTERVALS_UP_TO, k <= _NAMES_UP_TO
    heads = "".join(
        f'<th scope="col">{name(each)}</th>'
        if with_names
        else f'<th scope="col"><abbr title="{text(each)}">{i}</abbr></th>'
        for i, each in enumerate(e.classes, 1)
    )
    lines = []
    for i, (label, row) in enumerate(zip(e.classes, e.confusion, strict=True)):
        total = sum(row)
        cells = []
        for j, n in enumerate(row):
            share = n / total if total else 0.0
            shade = heat(share) + (" d" if i == j else "")
            # In a large matrix empty cells stay quiet, so that the full ones are seen.
            under = f'<span class="quiet">{number(share, 3 if with_names else 2)}</span>'
            if with_intervals and total:
                under += interval(wilson(n, total))
            if not total or (not with_names and not n):
                under = ""
            cells.append(f'<td class="{shade}">{count(n)}{under}</td>')
        label_text = name(label) if with_names else f"{i + 1}&nbsp; {name(label)}"
        lines.append(
            f'<tr><th scope="row">{label_text}</th>{"".join(cells)}<td>{count(total)}</td></tr>'
        )
    bracket = " with 95 % interval" if with_intervals else ""
    small = "" if with_names else " small"
    return (
        f'<figure><figcaption id="{key}">Confusion matrix: rows are the truth, columns what the '
        f"head named. Each cell: images, and their share of the row{bracket}. Outlined: right."
        f'</figcaption><div class="scroll" tabindex="0" role="region" aria-labelledby="{key}">'
        f'<table class="matrix{small}" aria-labelledby="{key}"><thead><tr>'
        f'<th scope="col">Truth</th>{heads}<th scope="col">All</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></figure>"
    )
