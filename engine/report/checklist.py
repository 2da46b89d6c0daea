"""Which items of a model card and of TRIPOD+AI a study answers, and which stay open.

Model card: Mitchell et al., *Model Cards for Model Reporting*, FAT* 2019, section 4. TRIPOD+AI:
Collins et al., BMJ 2024;385:e078378, table 2. The items are in words of our own; their numbers
are the papers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.report.markup import Keys, facts, table
from engine.report.words import count, figure, joined, known, name, number, pair, percent, text

if TYPE_CHECKING:
    from engine.study import Study

__all__ = ["ITEMS", "Item", "checklist", "model_card"]

# What a training's settings may be called, and what it is called here. Others are left out: they
# may be of a later release, and nothing unknown goes into a page that is passed on.
_SETTINGS = {
    "method": "Method",
    "l2": "L2",
    "hidden": "Hidden units",
    "dropout": "Dropout",
    "class_weights": "Class weights",
    "prevalence": "Probabilities for class frequencies",
    "iterations": "Iterations",
    "folds": "Folds",
    "repeats": "Repeats",
    "seed": "Seed",
}


def _todo(what: str) -> str:
    return f'<span class="todo">To add:</span> {what}'


def _settings(study: Study) -> str:
    training = study.head.training
    parts = []
    for key, label in _SETTINGS.items():
        value = training.get(key)
        if value is None or isinstance(value, (dict, list)):
            continue
        shown = f"{value:g}" if isinstance(value, float) else text(value)
        parts.append(f"{label}: {shown}")
    return "; ".join(parts)


def _software(study: Study) -> str:
    software = study.head.training.get("software")
    if not isinstance(software, Mapping):
        return ""
    return ", ".join(f"{text(key)} {text(value)}" for key, value in software.items())


def _blocks(study: Study) -> str:
    blocks = study.head.blocks
    shown = ", ".join(f"{text(block.name)} ({block.width})" for block in blocks[:24])
    more = f" and {len(blocks) - 24} more" if len(blocks) > 24 else ""
    return f"{shown}{more}; {count(sum(block.width for block in blocks))} values an image"


def _preprocessing(study: Study) -> str:
    return ", ".join(
        f"{text(key.replace('_', ' '))} {text(value)}"
        for key, value in study.head.preprocessing.items()
        if isinstance(value, (int, float, str))
    )


def _data_sets(study: Study) -> str:
    given = study.head.training.get("data_sets") or []
    shown = ", ".join(f'<code class="digest">{text(each)}</code>' for each in given[:20])
    return shown + (f" and {len(given) - 20} more" if len(given) > 20 else "")


def _factors(study: Study) -> list[str]:
    return list(dict.fromkeys(str(each["column"]) for each in study.subgroups))


def model_card(study: Study, keys: Keys) -> str:
    """Return the model card.

    Parameters
    ----------
    study : Study
        Of the report.
    keys : Keys
        Of the page.

    Returns
    -------
    str
        HTML: a table for each section of the paper.
    """
    head, e = study.head, study.evaluation
    about = head.about
    factors = _factors(study)
    ages = pair(head.training.get("age_range_years"))

    def digest(value: str) -> str:
        return f'<code class="digest">{text(value)}</code>'

    groups: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Model details",
            [
                ("Name", name(head.name)),
                (
                    "Kind",
                    {"linear": "linear", "mlp": "one hidden layer"}.get(head.kind, text(head.kind))
                    + (
                        ", each label on its own (sigmoid)"
                        if head.multilabel
                        else ", one class of several (softmax)"
                    ),
                ),
                ("Head, SHA-256", digest(head.digest)),
                ("Backbone", text(head.backbone)),
                ("Backbone, SHA-256", digest(head.backbone_digest)),
                ("Features", _blocks(study)),
                ("Preprocessing", _preprocessing(study)),
                ("Preprocessing, SHA-256", digest(head.preprocessing_digest)),
                ("Training settings", _settings(study)),
                ("Software", _software(study)),
                ("Licence of the data", text(about.get("licence") or "")),
                ("Who made it, when, contact", _todo("a name, a date and an address.")),
            ],
        ),
        (
            "Intended use",
            [
                ("Use", "Research on chest X-rays like those it learned from."),
                ("Users", _todo("who is to use it, and for which question.")),
                (
                    "Not for",
                    "Decisions about patients; patients, devices or projections that its training "
                    "rows do not cover. See the limits above.",
                ),
            ],
        ),
        (
            "Factors",
            [
                (
                    "Judged by",
                    joined(factors)
                    if factors
                    else _todo("groups of patients and devices; the data had no such columns."),
                ),
                ("Not known here", _todo("ethnicity, device, exposure, ward, comorbidity.")),
            ],
        ),
        (
            "Metrics",
            [
                (
                    "Measures",
                    "AUROC, average precision, accuracy, balanced accuracy, sensitivity and "
                    "specificity, Brier score, calibration.",
                ),
                (
                    "Thresholds",
                    ", ".join(
                        f"{name(label)} {number(value)}"
                        for label, value in zip(head.classes, head.thresholds, strict=True)
                    )
                    if head.thresholds
                    else "none stored: "
                    + ("0.5 for each label" if head.multilabel else "the most probable class"),
                ),
                ("Uncertainty", "95 % bootstrap intervals over patients; Wilson for counts."),
            ],
        ),
        (
            "Evaluation data",
            [
                ("Rows", f"{count(e.n_rows)} images of {count(e.n_groups)} patients"),
                ("Which", text(e.split)),
                ("Protocol", text(study.protocol)),
                ("Why these", _todo("why they stand for the images it will meet.")),
            ],
        ),
        (
            "Training data",
            [
                ("Data", text(about.get("title") or "")),
                ("Data sets", _data_sets(study)),
                ("Images", count(head.training["n_rows"]) if "n_rows" in head.training else ""),
                (
                    "Patients",
                    count(head.training["n_groups"]) if "n_groups" in head.training else "",
                ),
                ("Ages", f"{ages[0]:g} to {ages[1]:g} years" if ages else "not known"),
            ],
        ),
        (
            "Quantitative analyses",
            [
                ("Overall", f"AUROC {figure(e.auroc_macro, e.ci95.get('auroc_macro'))}"),
                ("By class", '<a href="#figures">Every figure</a>'),
                (
                    "By group",
                    '<a href="#subgroups">Subgroups</a>'
                    if study.subgroups
                    else _todo("figures of subgroups."),
                ),
            ],
        ),
        (
            "Ethical considerations",
            [
                (
                    "Data",
                    "Derived from health images. Treat features and head as pseudonymised "
                    "personal data unless their controller has documented otherwise.",
                ),
                ("Harms", _todo("what a wrong answer would do, and to whom.")),
            ],
        ),
        (
            "Caveats",
            [
                (
                    "Warnings",
                    f"{len(study.warnings)}, at the head of this page"
                    if study.warnings
                    else "none raised",
                ),
                ("Limits", '<a href="#limits">What it must not be used for</a>'),
            ],
        ),
    ]
    return (
        '<p class="quiet">After Mitchell and others, Model Cards for Model Reporting, 2019.</p>'
        + "".join(
            facts(rows, caption=f"<strong>{heading}</strong>", keys=keys)
            for heading, rows in groups
        )
    )


@dataclass(frozen=True)
class Item:
    """An item of TRIPOD+AI.

    Attributes
    ----------
    number : str
        As in the paper.
    asks : str
        What is to be said, in words of our own.
    """

    number: str
    asks: str


ITEMS = tuple(
    Item(*each)
    for each in (
        ("1", "Title: developing or judging a prediction model, for whom, and which outcome"),
        ("2", "A structured abstract"),
        ("3a", "The medical background, and why a model is wanted"),
        ("3b", "For which patients, at which point of care, and for which users"),
        ("3c", "Health inequalities already known between groups of patients"),
        ("4", "The aims: developing, judging, or both"),
        ("5a", "Where the data come from, and whom they stand for"),
        ("5b", "When the data were collected"),
        ("6a", "The setting: kind, number and place of the centres"),
        ("6b", "Who was included, and who was not"),
        ("6c", "Treatments received, and how they were handled"),
        ("7", "How data were prepared and checked, and whether alike for all groups"),
        ("8a", "The outcome: definition, time, how it was found, alike for all groups"),
        ("8b", "Who judged the outcome, with which training"),
        ("8c", "Whether those who judged it knew the predictors"),
        ("9a", "How the first predictors were chosen"),
        ("9b", "Definition of every predictor, and how it was measured"),
        ("9c", "Who judged predictors that need judgement"),
        ("10", "How the number of patients came about, and whether it is enough"),
        ("11", "Missing data, and what was done about them"),
        ("12a", "Which data served development and which judgement"),
        ("12b", "How predictors entered the model: form, scaling, standardisation"),
        ("12c", "Kind of model, every step of building it, tuning, internal validation"),
        ("12d", "Differences between centres or other clusters, and how they were handled"),
        ("12e", "Every measure and plot of performance, and why"),
        ("12f", "Updating of the model, such as recalibration"),
        ("12g", "How predictions were computed when judging"),
        ("13", "Class imbalance: what was done, and recalibration after it"),
        ("14", "Fairness: what was done for it, and why"),
        ("15", "What the model gives out, and how thresholds were set"),
        ("16", "Differences between development and evaluation data"),
        ("17", "Ethics approval and consent"),
        ("18a", "Funding, and the funders’ part"),
        ("18b", "Conflicts of interest"),
        ("18c", "Where the study protocol is"),
        ("18d", "Where the study is registered"),
        ("18e", "Whether and how the data are available"),
        ("18f", "Whether and how the code is available"),
        ("19", "How patients and the public were involved"),
        ("20a", "Flow of patients, with and without the outcome"),
        ("20b", "Characteristics of the patients, overall and by group"),
        ("20c", "When judging: predictors and outcome compared with the development data"),
        ("21", "Patients and outcomes in each analysis"),
        ("22", "The whole model, so that others can predict with it"),
        ("23a", "Performance with intervals, and in key subgroups"),
        ("23b", "Performance that differs between clusters"),
        ("24", "Results of updating, if there was any"),
        ("25", "What the results mean, for fairness too"),
        ("26", "Limitations: who is missing, size, overfitting, missing data"),
        ("27a", "What to do with poor or missing input when the model is used"),
        ("27b", "What users must do and know"),
        ("27c", "Next steps, above all on where else it holds"),
    )
)


def _answers(study: Study) -> dict[str, tuple[str, str]]:
    """Return what the report says to an item, and what is still to add (either may be empty)."""
    head, e = study.head, study.evaluation
    training = head.training
    train = study.purpose == "train"
    counts = ", ".join(f"{name(label)} {count(n)}" for label, n in e.class_counts.items())
    columns = list((study.confounding or {}).get("columns") or {})
    rows = f"{count(e.n_rows)} images of {count(e.n_groups)} patients"
    calibration = {
        "none": "no calibration",
        "temperature": "temperature scaling",
        "isotonic": "isotonic calibration",
    }.get(head.calibration.method, text(head.calibration.method))
    return {
        "4": ("development with internal validation" if train else "judging on further data", ""),
        "5a": (
            text(head.about.get("title") or "") and f"data set: {text(head.about['title'])}",
            "how the images were chosen, and whom they stand for",
        ),
        "6a": (
            f"table by {joined(columns)}" if "source" in columns else "",
            "the centres and their kind",
        ),
        "7": (
            "one preprocessing for all images, see the model card",
            "how images were checked before",
        ),
        "9a": ("pooled feature maps of a fixed network, chosen beforehand", ""),
        "9b": ("network, taps, poolings and preprocessing in the model card, with SHA-256", ""),
        "9c": ("none needs judgement", ""),
        "10": (
            "learning curve" if study.learning_curve else "",
            "why so many patients",
        ),
        "11": (
            "labels that were not assessed are left out, label by label"
            if head.multilabel
            else "every row has a class; no predictor is missing",
            "images that were missing or refused",
        ),
        "12a": (text(study.protocol), ""),
        "12b": ("every feature standardised by the training rows", ""),
        "12c": (
            f"{text(head.kind)} head, settings in the model card"
            + ("; inner folds compared above" if study.trials else ""),
            "",
        ),
        "12d": (
            "table by source" if "source" in columns else "",
            "" if "source" in columns else "which centre each image comes from",
        ),
        "12e": ("figures, curves, reliability, confusion and floors above", ""),
        "12f": (calibration, ""),
        "12g": ("logits of the head, calibrated; see the thresholds above", ""),
        "13": (
            f"class weights {text(training.get('class_weights') or 'none')}; {calibration}",
            "",
        ),
        "14": (
            "subgroups above" if study.subgroups else "",
            "what was done so that no group is served worse",
        ),
        "15": (
            "a probability for each label, and yes or no"
            if head.multilabel
            else "a probability for each class, and one class",
            "why this threshold" if head.thresholds else "",
        ),
        "16": (
            "same data, by folds or splits of patients" if train else "both described above",
            "" if train else "differences in setting, eligibility and outcome",
        ),
        "18e": (
            f"licence: {text(head.about['licence'])}" if head.about.get("licence") else "",
            "where the data are",
        ),
        "18f": ("Hilum, Apache-2.0", ""),
        "20a": (rows, "images and patients that were left out, and why"),
        "20b": (f"table by {joined(columns)}" if columns else "", "other characteristics"),
        "20c": (
            ("not applicable: the same data", "")
            if train
            else ("both data sets described above", "a comparison of their patients")
        ),
        "21": (f"{rows}; {counts}", ""),
        "22": ("the head file, named by its SHA-256, holds every weight", ""),
        "23a": (
            "all figures above with 95 % intervals" + ("; subgroups" if study.subgroups else ""),
            "" if study.subgroups else "figures of key subgroups",
        ),
        "23b": (
            "subgroups by source" if "source" in _factors(study) else "",
            "" if "source" in _factors(study) else "figures by centre",
        ),
        "24": ("none beyond calibration", ""),
        "26": (
            f"{len(study.warnings)} warnings and the limits above"
            if study.warnings
            else "the limits above",
            "the study’s own",
        ),
        "27a": (
            "pictures unlike the training’s are refused "
            f"({percent(head.ood.refusal_rate)} of fitting ones)"
            if head.ood is not None and known(head.ood.refusal_rate) is not None
            else "",
            "images of poor quality",
        ),
    }


def checklist(study: Study, keys: Keys) -> str:
    """Return the TRIPOD+AI items with what this report answers.

    Parameters
    ----------
    study : Study
        Of the report.
    keys : Keys
        Of the page.

    Returns
    -------
    str
        HTML.
    """
    answers = _answers(study)
    rows = []
    tally = {"answered": 0, "partly": 0, "open": 0}
    for item in ITEMS:
        said, missing = answers.get(item.number, ("", ""))
        if said and not missing:
            state, mark = "answered", '<span class="done">✓ Answered:</span> '
        elif said:
            state, mark = "partly", '<span class="done">◐ Partly:</span> '
        else:
            state, mark = "open", '<span class="todo">○ Open:</span> '
        tally[state] += 1
        shown = said or f"you add {missing or 'it; no file says this'}"
        if said and missing:
            shown += f'. <span class="todo">You add:</span> {missing}'
        rows.append([item.number, item.asks, f"{mark}{shown}."])
    return (
        f"<p>Of {len(ITEMS)} items this report answers {tally['answered']}, answers "
        f"{tally['partly']} in part and leaves {tally['open']} to its authors. It does not replace "
        "the published list.</p>"
        + table(
            "Items of TRIPOD+AI (Collins and others, BMJ 2024;385:e078378), in words of our own.",
            [("Item", ""), ("What to say", ""), ("Here", "")],
            rows,
            keys=keys,
            style="list",
        )
    )
