"""The report: a whole page from made-up studies of every shape, checked as a browser would."""

from __future__ import annotations

import functools
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from engine.calibration import Calibration
from engine.heads import Head
from engine.metrics import evaluate_predictions, predictive_values
from engine.ood import OodModel
from engine.pooling import Block
from engine.report import render_report
from engine.report.checklist import ITEMS
from engine.report.plots import Scale, nice_scale, thin, unit_chart
from engine.report.style import DARK, LIGHT
from engine.report.words import (
    Glossary,
    amount,
    count,
    difference,
    figure,
    number,
    percent,
    seconds,
    text,
)
from engine.study import Floor, Study
from formats import preprocessing_digest

PREPROCESSING = {"version": 1, "height": 8, "width": 8}
HOSTILE = '</td><script>alert(\'x\')</script>"&<img src=x onerror="y">'
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


def make_head(classes, *, multilabel=False, thresholds=(), **changes):
    k, d = len(classes), 5
    head = Head(
        name="chest",
        kind="linear",
        task="multilabel" if multilabel else "softmax",
        classes=tuple(classes),
        weights={"weight": np.zeros((k, d), np.float32), "bias": np.zeros(k, np.float32)},
        mean=np.zeros(d, np.float32),
        scale=np.ones(d, np.float32),
        calibration=Calibration("temperature", 1.437),
        thresholds=tuple(thresholds),
        backbone="net",
        backbone_digest="a" * 64,
        preprocessing=PREPROCESSING,
        preprocessing_digest=preprocessing_digest(PREPROCESSING),
        blocks=(Block("a", "mean", 0, 2), Block("b", "max", 2, 3)),
        training={
            "n_rows": 1234,
            "n_groups": 987,
            "class_counts": {name: 7 for name in classes},
            "sources": {},
            "age_range_years": [1, 5],
            "data_sets": ["0123456789abcdef0123456789abcdef"],
            "seed": 0,
            "l2": 0.3,
            "prevalence": "equal",
            "software": {"hilum": "0.1.0"},
        },
        metrics={},
        about={},
    )
    return replace(head, **changes)


def make_evaluation(classes, *, multilabel=False, n=120, groups=None, seed=0, draws=50, noise=1.0):
    rng = np.random.default_rng(seed)
    k = len(classes)
    groups = rng.integers(0, max(n // 2, 1), n) if groups is None else np.asarray(groups)
    if multilabel:
        labels = (rng.random((n, k)) < 0.3).astype(np.int8)
        labels[rng.random((n, k)) < 0.1] = -1
        probabilities = 1 / (1 + np.exp(-(rng.normal(0, noise, (n, k)) + 2 * (labels == 1) - 1)))
    else:
        labels = rng.integers(0, k, n)
        logits = rng.normal(0, noise, (n, k))
        logits[np.arange(n), labels] += 2
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return evaluate_predictions(
        probabilities, labels, groups, classes, split="5-fold cross-validation", draws=draws
    )


def make_study(classes=("normal", "viral", "bacterial"), *, multilabel=False, head=None, **given):
    options = {key: given.pop(key) for key in ("n", "groups", "draws") if key in given}
    evaluation = given.pop("evaluation", None)
    return Study(
        purpose=given.pop("purpose", "train"),
        head=head or make_head(classes, multilabel=multilabel),
        evaluation=evaluation or make_evaluation(classes, multilabel=multilabel, **options),
        protocol=given.pop("protocol", "5-fold cross-validation"),
        **given,
    )


def ood_model():
    d = 5
    tensors = {
        "center": np.zeros(d, np.float32),
        "scale": np.ones(d, np.float32),
        "basis": np.eye(2, d, dtype=np.float32),
        "spread": np.ones(2, np.float32),
        "rest": np.ones(1, np.float32),
    }
    about = {
        "n_rows": 1234,
        "n_groups": 987,
        "refused_unseen": 0.0234,
        "refused_unseen_ci95": [0.0111, 0.0456],
        "sources": {"Here": {"n_rows": 64, "refused_unseen": 0.0313}},
    }
    return OodModel(tensors, 1.719, 0.02, about)


@functools.cache
def full_page():
    """The page of the full study."""
    return render_report(full_study())


@functools.cache
def bare_page():
    """The page of a study with nothing beside its figures."""
    return render_report(make_study())


@functools.cache
def full_study():
    """A study with everything, each figure another."""
    classes = ("normal", "viral", "bacterial")
    numbers = itertools.count(1)

    def value():
        return 0.5 + next(numbers) * 0.00317

    def with_interval():
        return {"value": value(), "ci95": [value(), value()]}

    def step(**facts):
        return {
            **facts,
            "auroc_macro": value(),
            "accuracy": value(),
            "ci95": {"auroc_macro": [value(), value()], "accuracy": [value(), value()]},
        }

    floors = tuple(
        Floor(
            name,
            f"What {name} was given.",
            make_evaluation(classes, noise=3.0, seed=seed),
            {"auroc_macro": with_interval()},
        )
        for seed, name in enumerate(("raw 64 x 64 pixels", "image border", "metadata"), 5)
    )
    return make_study(
        classes,
        head=make_head(classes, thresholds=(0.311, 0.322, 0.333), ood=ood_model()),
        warnings=("All rows come from one source.", "A floor comes close."),
        floors=floors,
        floors_missing=("image corner: not stored; extract again",),
        confounding={
            "columns": {
                "source": {
                    "values": ["Here", "There"],
                    "classes": list(classes),
                    "rows": [[101, 102, 103], [0, 105, 106]],
                    "patients": [[91, 92, 93], [0, 95, 96]],
                }
            }
        },
        subgroups=(
            step(column="sex", value="F", n_rows=2001, n_groups=1801),
            step(column="age", value="0-9", n_rows=2003, n_groups=1803),
            {"column": "age", "value": "80-89", "n_rows": 4, "n_groups": 3, "auroc_macro": None,
             "accuracy": None, "ci95": {}},
        ),
        learning_curve=(step(n_groups=123.4, n_rows=155.0), step(n_groups=456, n_rows=567)),
        duplicates={"n_rows": 120, "n_pairs": 17, "n_across_patients": 13, "n_across_splits": 11,
                    "cosine": 0.871, "exact": True},
        trials=(
            {"kind": "linear", "l2": 0.03, "dropout": 0.0, "loss": 0.41234,
             "loss_calibrated": 0.39871, "auroc_macro": 0.9123,
             "chosen": False},
            {"kind": "fusion", "l2": None, "dropout": 0.0, "loss": 0.40012, "auroc_macro": None,
             "chosen": True},
        ),
        comparison={
            "name": "older",
            "auroc_macro": 0.8123,
            "accuracy": 0.7123,
            "difference": {"auroc_macro": with_interval(), "accuracy": with_interval()},
        },
        data={"n_rows": 1234, "n_groups": 987, "n_views": 4936, "class_counts": {"normal": 411},
              "sources": ["Here", "There"], "age_range_years": [1, 5], "title": "A title",
              "attribution": "An attribution", "licence": "CC BY 4.0", "terms": "Some terms"},
        timing={"steps": [{"name": "training", "seconds": 2.34}, {"name": "curve", "seconds": 0.5}],
                "seconds": 9.87, "peak_bytes": 412_000_000, "machine": "2 cores, x86_64",
                "threads": 2},
        limits=("It knows frontal views only.",),
    )  # fmt: skip


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order, ids once, attributes quoted."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({key for key, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> outside of an SVG"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.words.append((self.open[-1], data))

    @property
    def text(self) -> str:
        return " ".join(data for _, data in self.words)


def check(html: str) -> Page:
    """Check what holds for every page."""
    assert html.startswith("<!DOCTYPE html>")
    assert len(html.encode()) < 400_000
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert dict(page.tags[0][1]) == {"lang": "en"}
    for tag in ("html", "head", "body", "main", "h1", "style"):
        assert names.count(tag) == 1, tag
    # Nothing is loaded, nothing runs.
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(names)
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "style", "action", "xlink:href"} & set(attributes), tag
        assert not [key for key in attributes if key.startswith("on")], tag
        address = attributes.get("href")
        if address is not None:
            assert tag == "a"
            assert address.startswith(("#", "https://", "http://")), address
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    # Links and descriptions lead to elements that are there, and are there once.
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for key in ("href", "aria-labelledby"):
            value = attributes.get(key) or ""
            if key == "href" and not value.startswith("#"):
                continue
            assert set(value.removeprefix("#").split()) <= set(ids), value
    # Headings go down one step at a time.
    levels = [int(tag[1]) for tag in names if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    # Every column and row of a table says what it is.
    for tag, attributes in page.tags:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag == "table":
            assert attributes.get("aria-labelledby")
    drawings = re.findall(r"<svg\b.*?</svg>(?:</svg>)?", html, re.S)
    for drawing in svgs(html):
        root = ElementTree.fromstring(drawing)
        if root.get("aria-hidden") != "true":
            assert root.get("role") == "img"
            assert root.find("title").text
            assert root.find("desc").text
    assert drawings
    plain = re.sub(r"<bdi.*?</bdi>", "", html)
    assert not re.search(r"\b(nan|inf|None|True|False(?! alarms))\b", plain)
    lower = html.lower()
    assert "diagnos" not in lower
    assert "anonym" not in lower.replace("pseudonym", "")
    return page


def svgs(html: str) -> list[str]:
    """Return every outermost drawing."""
    found, depth, start = [], 0, 0
    for match in re.finditer(r"<svg\b|</svg>", html):
        if match[0] == "<svg":
            if depth == 0:
                start = match.start()
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                found.append(html[start : match.end()])
    assert depth == 0
    return found


SHAPES = {
    "softmax-2": {"classes": ("normal", "pneumonia")},
    "softmax-3": {},
    "softmax-20": {"classes": [f"class {i}" for i in range(20)], "n": 400},
    "label-1": {"classes": ("effusion",), "multilabel": True},
    "labels-14": {"classes": [f"label {i}" for i in range(14)], "multilabel": True},
    "labels-40": {
        "classes": [f"{i:02d} " + "<&\"'" * 15 + "x" for i in range(40)],
        "multilabel": True,
        "n": 600,
    },
    "right-to-left": {"classes": ("ذات الرئة", "طبيعي", "x" * 64)},
    "one-patient": {"groups": np.zeros(40, np.int64), "n": 40},
    "one-row": {"n": 1},
    "no-draws": {"draws": 0},
    "evaluate": {"purpose": "evaluate", "data": {"n_rows": 120, "sources": [], "title": None}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_makes_a_valid_page(shape):
    page = check(render_report(make_study(**SHAPES[shape])))
    for name in SHAPES[shape].get("classes", ("normal", "viral")):
        assert name in page.text


def test_a_full_study_makes_a_valid_page():
    check(full_page())


def leaves(value):
    """Every number within a study's part."""
    if isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_every_figure_appears():
    study = full_study()
    shown = check(full_page()).text
    e = study.evaluation
    decimals = [
        *leaves([e.auroc, e.average_precision, e.auroc_macro, e.average_precision_macro]),
        *leaves([e.accuracy, e.balanced_accuracy, e.brier, e.calibration]),
        *leaves([e.sensitivity_at, e.specificity_at, e.ci95]),
        *leaves([each["auroc_macro"] for each in study.subgroups]),
        *leaves([each["ci95"] for each in study.subgroups + study.learning_curve]),
        *leaves([each["accuracy"] for each in study.subgroups + study.learning_curve]),
        *leaves([each["auroc_macro"] for each in study.learning_curve]),
        *leaves([floor.difference for floor in study.floors]),
        *leaves([floor.evaluation.auroc_macro for floor in study.floors]),
        *leaves([floor.evaluation.accuracy for floor in study.floors]),
        *leaves([floor.evaluation.ci95["auroc_macro"] for floor in study.floors]),
        *leaves([study.comparison, study.duplicates["cosine"], study.head.thresholds]),
        *leaves([study.head.calibration.temperature, study.head.ood.threshold]),
    ]
    assert len(decimals) > 140
    missing = [value for value in decimals if f"{abs(value):.3f}" not in shown]
    assert missing == []
    counts = [
        *leaves([e.n_rows, e.n_groups, e.class_counts, e.confusion]),
        *leaves([study.confounding, study.duplicates["n_pairs"]]),
        *leaves([study.duplicates["n_across_patients"], study.duplicates["n_across_splits"]]),
        *leaves([[each["n_rows"], each["n_groups"]] for each in study.subgroups]),
        *leaves([study.data["n_views"], study.data["n_rows"], study.data["n_groups"]]),
    ]
    words = set(re.findall(r"[\d.\u202f]+", shown))
    assert [n for n in counts if count(n) not in words] == []
    for said in (
        "0.4123", "0.4001", "0.3987", "0.03", "fusion", "2.3 s", "500 ms", "9.9 s", "412 MB",
        "2 cores, x86_64", "A title", "An attribution", "CC BY 4.0", "Some terms", "older",
        "It knows frontal views only.", "image corner: not stored; extract again",
        "2.3\u202f%", "1.1\u202f%", "4.6\u202f%", "3.1\u202f%", study.head.digest,
        study.head.backbone_digest, study.head.preprocessing_digest,
        "0123456789abcdef0123456789abcdef", "0.1.0",
    ):  # fmt: skip
        assert said in shown, said


def test_warnings_come_first_and_all():
    warnings = tuple(f"Warning of number {i} & more." for i in range(7))
    html = render_report(make_study(warnings=warnings))
    page = check(html)
    for warning in warnings:
        place = html.index(text(warning))
        assert html.index("<h1") < place < html.index("<section")
        assert place < html.index("<h2", html.index('id="warnings"') + 1)
    assert "7 warnings" in page.text
    calm = bare_page()
    assert 'class="warnings"' not in calm
    assert "No warning was raised" in check(calm).text


def test_the_first_section_says_the_verdict_in_plain_words():
    study = full_study()
    html = full_page()
    first = html[html.index("<section") : html.index("</section>")]
    first = re.sub(r"</?bdi[^>]*>", "", first)
    said = " ".join(re.sub(r"<[^>]*>", " ", first).split())
    e = study.evaluation
    assert "names one of 3 classes: normal, viral, bacterial" in said
    assert "learned from 1 234 images of 987 patients aged 1 to 5 years" in said
    for value, key in ((e.auroc_macro, "auroc_macro"), (e.accuracy, "accuracy")):
        low, high = e.ci95[key]
        assert f"{value:.3f}" in said
        assert f"{low:.3f} to {high:.3f}" in said
    most = max(e.class_counts.values()) / e.n_rows
    assert f"always naming the most frequent class: {most:.3f}" in said
    for floor in study.floors:
        assert f"{floor.name} {floor.evaluation.auroc_macro:.3f}" in said
    limits = html[html.index('id="limits"') :]
    assert limits.index("Research use only") < limits.index("</section>")


def test_baseline_of_labels_counts_what_was_assessed():
    probabilities = np.full((6, 2), 0.1)
    labels = np.array([[1, 0], [0, 0], [0, -1], [0, -1], [1, 1], [-1, -1]], np.int8)
    evaluation = evaluate_predictions(probabilities, labels, np.arange(6), ("a", "b"), draws=20)
    study = make_study(("a", "b"), multilabel=True, evaluation=evaluation)
    # a: 3 absent of 5; b: 2 absent of 3.
    assert "the more frequent answer to each label: 0.625" in check(render_report(study)).text


def test_texts_from_outside_are_escaped():
    classes = (HOSTILE, "b&b", "'q' \"r\"")
    study = full_study()

    def poison(value):
        if isinstance(value, dict):
            return {key: poison(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(poison(each) for each in value)
        return value + HOSTILE if isinstance(value, str) else value

    evaluation = make_evaluation(classes)
    head = make_head(
        classes,
        name="h" + HOSTILE,
        backbone="b" + HOSTILE,
        backbone_digest="d" + HOSTILE,
        preprocessing={"version": 1, "filter": HOSTILE, HOSTILE: HOSTILE},
        blocks=(Block("t" + HOSTILE, "mean", 0, 5),),
        about={key: key + HOSTILE for key in ("title", "population", "licence", "terms", "url")},
        ood=replace(ood_model(), about={"n_rows": 3, "sources": {HOSTILE: {"n_rows": 1}}}),
    )
    head.training.update(
        {
            "class_weights": HOSTILE,
            "prevalence": HOSTILE,
            "method": HOSTILE,
            "software": {HOSTILE: HOSTILE},
            "data_sets": [HOSTILE],
            "sources": {HOSTILE: 4},
            "class_counts": {HOSTILE: 4},
        }
    )
    hostile = Study(
        purpose="train",
        head=head,
        evaluation=replace(evaluation, split=HOSTILE, notes=(HOSTILE,)),
        protocol=HOSTILE,
        warnings=poison(study.warnings),
        floors=tuple(
            replace(floor, name=HOSTILE, explanation=HOSTILE) for floor in study.floors[:1]
        ),
        floors_missing=poison(study.floors_missing),
        confounding={
            "columns": {
                HOSTILE: {
                    "values": [HOSTILE, "x"],
                    "classes": list(classes),
                    "rows": [[1, 2, 3], [0, 5, 6]],
                    "patients": [[1, 2, 3], [0, 5, 6]],
                }
            }
        },
        subgroups=tuple(replace_texts(each) for each in study.subgroups),
        learning_curve=study.learning_curve,
        duplicates=study.duplicates,
        trials=poison(study.trials),
        comparison={**poison(study.comparison), "difference": {HOSTILE: {"value": 0.1}}},
        data=poison(study.data),
        timing={**poison(study.timing)},
        limits=poison(study.limits),
    )
    html = render_report(hostile)
    page = check(html)
    assert "<script" not in html
    assert "<img" not in html
    assert page.text.count(HOSTILE) > 40
    # What the parser reads back are the very texts: nothing is escaped twice or cut.
    for part in (hostile.warnings[0], hostile.limits[0], hostile.data["title"], "h" + HOSTILE):
        assert part in page.text
    assert page.text.count("&lt;") == 0


def replace_texts(subgroup):
    return {**subgroup, "column": HOSTILE, "value": HOSTILE}


def test_addresses_are_links_only_to_the_web():
    for url, is_link in (("https://doi.org/10.1/x", True), ("javascript:alert(1)", False)):
        html = render_report(make_study(head=make_head(("a", "b", "c"), about={"url": url})))
        page = check(html)
        assert url in page.text
        links = [a.get("href") for tag, a in page.tags if tag == "a"]
        assert (url in links) is is_link


def test_signs_no_page_may_hold_are_replaced():
    html = render_report(make_study(warnings=("a\x00b\ud800c\x1b",)))
    html.encode("utf-8")
    assert "a\ufffdb\ufffdc\ufffd" in check(html).text


def test_no_name_turns_the_direction_of_a_sentence():
    html = render_report(make_study(limits=("knows \u202eevil and \u2067other",)))
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") & set(html)
    assert "knows \ufffdevil and \ufffdother" in check(html).text
    # Letters that run to the left need no such sign.
    assert "שלום" in check(render_report(make_study(limits=("שלום",)))).text


def test_thresholds_are_announced_where_there_are_some():
    for thresholds in ((), (0.2, 0.5, 0.4)):
        head = make_head(("a", "b", "c"), thresholds=thresholds)
        page = check(render_report(make_study(("a", "b", "c"), head=head)))
        assert ("own are below" in page.text) is bool(thresholds)
        assert ("Thresholds stored in the head" in page.text) is bool(thresholds)


def test_no_row_of_the_data_is_in_the_page():
    """The curves are on grids: no probability of a row can be read off, and no row is listed."""
    study = make_study(n=60)
    html = render_report(study)
    page = check(html)
    written = {f"{value:.6f}" for value in study.evaluation.probabilities.ravel()}
    assert not [value for value in written if value in html]
    lines = [a["points"] for tag, a in page.tags if tag == "polyline" and a["class"] == "line"]
    assert len(lines) == 6
    sides = set()
    for line in lines:
        for point in line.split():
            x = (float(point.split(",")[0]) - 36.0) / 176.0 * 100.0
            sides.add(round(abs(x - round(x)), 2))
    # x of every point is a hundredth, up to how coordinates are rounded.
    assert max(sides) <= 0.03


def test_missing_sections_say_what_to_do():
    html = bare_page()
    page = check(html)
    for anchor in ("floors", "confounding", "subgroups", "learning", "duplicates", "trials",
                   "refusal", "timing"):  # fmt: skip
        start = html.index(f'<section id="{anchor}">')
        assert "Not here:" in html[start : html.index("</section>", start)], anchor
    assert "--floors border,pixels" in page.text
    assert 'id="comparison"' not in html
    full = full_page()
    assert 'id="comparison"' in full
    start = full.index('<section id="subgroups">')
    assert "Not here:" not in full[start : full.index("</section>", start)]
    # One subgroup of the full study is too small for figures; without it nothing needs saying.
    assert "No figures are given of fewer than 10 images" in check(full).text
    study = full_study()
    sound = replace(study, subgroups=study.subgroups[:2])
    assert "No figures are given" not in render_report(sound)


def test_a_class_that_cannot_be_judged_is_said_so():
    probabilities = np.tile([0.6, 0.3, 0.1], (20, 1))
    labels = np.repeat([0, 1], 10)
    evaluation = evaluate_predictions(
        probabilities, labels, np.arange(20), ("a", "b", "gone"), draws=20
    )
    html = render_report(make_study(("a", "b", "gone"), evaluation=evaluation))
    page = check(html)
    assert "not defined" in page.text
    curves = html[html.index('<section id="curves">') :]
    curves = curves[: curves.index("</section>")]
    assert "Not here:" in curves
    assert "gone" in curves
    assert curves.count("<svg") == 4


def test_confounding_names_the_class_of_one_source():
    html = full_page()
    part = html[html.index('<section id="confounding">') :]
    part = part[: part.index("</section>")]
    assert "<strong><bdi>normal</bdi></strong> occurs with one source only" in part
    assert "tables by sex, age and projection" in re.sub(r"<[^>]*>", "", part)


def test_small_cells_are_pointed_out():
    columns = {"sex": {"values": ["F"], "classes": ["a", "b"], "rows": [[9, 50]],
                       "patients": [[3, 40]]}}  # fmt: skip
    study = make_study(("a", "b"), confounding={"columns": columns})
    assert "The smallest filled cell holds 3 patients" in check(render_report(study)).text
    columns["sex"]["patients"] = [[5, 40]]
    assert "smallest filled cell" not in render_report(study)


def test_large_confusion_matrices_are_numbered():
    classes = [f"class {i}" for i in range(12)]
    html = render_report(make_study(classes, n=300))
    part = html[html.index('<section id="decisions">') :]
    titles = re.findall(r'<abbr title="([^"]*)">(\d+)</abbr>', part)
    assert titles == [(name, str(i)) for i, name in enumerate(classes, 1)]


def test_names_cannot_leave_an_attribute():
    classes = ['" onclick="alert(1)', *(f"class {i}" for i in range(8))]
    page = check(render_report(make_study(classes, n=200)))
    titles = [a["title"] for tag, a in page.tags if tag == "abbr"]
    assert titles == classes


def test_confusion_cells_have_share_and_wilson_interval():
    probabilities = np.repeat([[0.9, 0.1], [0.2, 0.8]], [10, 10], axis=0)
    labels = np.r_[np.zeros(8, int), np.ones(2, int), np.ones(10, int)]
    evaluation = evaluate_predictions(probabilities, labels, np.arange(20), ("a", "b"), draws=20)
    html = render_report(make_study(("a", "b"), evaluation=evaluation))
    part = " ".join(re.sub(r"<[^>]*>", " ", html[html.index('id="decisions"') :]).split())
    # 10 of 12 rows of b: Wilson's interval by hand.
    assert "10 0.833 (0.552 to 0.953)" in part
    # b against the rest: found 10, missed 2, no false alarm, 8 rightly not named.
    assert "b 10 2 0 8 0.833 (0.552 to 0.953) 1.000 (0.676 to 1.000)" in part
    # Bayes at 10 %: NPV = 0.9 / (0.9 + 0.1 / 6).
    assert f"{0.9 / (0.9 + 0.1 / 6):.3f}" in part


def test_predictive_values_stand_there_with_their_intervals():
    study = make_study()
    html = render_report(study)
    for label in study.evaluation.classes:
        for prevalence in (0.01, 0.1, 0.5):
            found = predictive_values(study.evaluation, label, prevalence)
            for key in ("ppv", "npv"):
                assert found[key]["ci95"] is not None
                assert figure(found[key]["value"], found[key]["ci95"]) in html


def test_each_term_is_explained_once_where_it_is_first_used():
    html = full_page()
    terms = re.findall(r"<dt>(.*?)</dt>", html)
    known = [term for term in terms if term in ("AUROC", "Accuracy", "Brier score", "Floor", "L2")]
    assert sorted(known) == sorted(set(known))
    assert len(known) == 5
    assert html.index("<dt>AUROC</dt>") < html.index('<section id="limits">')
    assert html.index("<dt>Floor</dt>") > html.index('<section id="floors">')


def test_glossary_says_a_term_once():
    explain = Glossary()
    assert "<dt>AUROC</dt>" in explain("auroc", "brier")
    assert explain("auroc") == ""
    again = explain("brier", "ece")
    assert "Brier" not in again
    assert "Expected calibration error" in again


def test_every_item_of_tripod_stands_there_with_its_state():
    html = full_page()
    part = html[html.index('<section id="tripod">') :]
    numbers = re.findall(r'<th scope="row">(\d+[a-g]?)</th>', part)
    assert numbers == [item.number for item in ITEMS]
    # Collins et al. 2024, table 2: how many parts each of the 27 items has.
    parts = {3: 3, 5: 2, 6: 3, 8: 3, 9: 3, 12: 7, 18: 6, 20: 3, 23: 2, 27: 3}
    expected = []
    for item in range(1, 28):
        letters = "abcdefg"[: parts[item]] if item in parts else [""]
        expected += [f"{item}{letter}" for letter in letters]
    assert numbers == expected
    states = re.findall(r"(✓ Answered|◐ Partly|○ Open)", part)
    assert len(states) == len(ITEMS)
    said = re.search(r"answers (\d+), answers (\d+) in part and leaves (\d+)", part)
    assert [int(n) for n in said.groups()] == [
        states.count(state) for state in ("✓ Answered", "◐ Partly", "○ Open")
    ]
    bare = bare_page()
    assert bare.count("○ Open") > html.count("○ Open")


def test_an_evaluation_shows_both_data_sets():
    study = make_study(
        purpose="evaluate",
        data={"n_rows": 120, "n_groups": 55, "title": "Elsewhere", "sources": ["B"]},
        head=make_head(("normal", "viral", "bacterial"), about={"title": "At home"}),
    )
    html = render_report(study)
    part = html[html.index('<section id="data">') :]
    part = part[: part.index("</section>")]
    assert part.index("At home") < part.index("Elsewhere")
    assert "1\u202f234" in part
    assert "further data" in html[: html.index("<h1")]


def test_the_same_study_makes_the_same_page():
    assert render_report(full_study()) == full_page()


# --- Numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number(0.9678), "0.968"),
        (number(-0.0312), "−0.031"),
        (number(-0.0001), "0.000"),
        (number(12345.678, 1), "12\u202f345.7"),
        (count(1234567), "1\u202f234\u202f567"),
        (count(720), "720"),
        (percent(0.0123), "1.2\u202f%"),
        (difference(0.0312, None), "+0.031"),
        (difference(0.0001, None), "0.000"),
        (difference(-0.02, None), "−0.020"),
        (seconds(0.0123), "12 ms"),
        (seconds(9.87), "9.9 s"),
        (seconds(600), "10.0 min"),
        (amount(412_000_000), "412 MB"),
        (amount(1.234e9), "1.23 GB"),
        (re.sub(r"<.*?>", "", figure(0.9678, [0.955, 0.979])), "0.968 (0.955 to 0.979)"),
        (re.sub(r"<.*?>", "", figure(math.nan, [0.1, 0.2])), "not defined"),
        (re.sub(r"<.*?>", "", figure(0.5, [math.nan, 0.2])), "0.500"),
        (re.sub(r"<.*?>", "", figure(None, None)), "not defined"),
    ],
)
def test_numbers_are_written_alike(written, expected):
    assert written == expected


# --- Colours -----------------------------------------------------------------------------------


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_contrast(colours):
    for ground in ("ground", "panel"):
        for ink in ("text", "quiet", "strong", "other", "good"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["warn-text"], colours["warn"]) >= 4.5
    assert contrast(colours["warn-edge"], colours["ground"]) >= 3.0
    # The darkest shade of a table's cell, under its text.
    shade = [52, 134, 196]
    ground = [int(colours["ground"][i : i + 2], 16) for i in (1, 3, 5)]
    mixed = [round(0.36 * a + 0.64 * b) for a, b in zip(shade, ground, strict=True)]
    assert contrast(colours["text"], "#" + "".join(f"{c:02x}" for c in mixed)) >= 4.5


# --- Charts ------------------------------------------------------------------------------------


def test_thinning_keeps_what_is_seen():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 20_001)
    y = np.cumsum(rng.normal(0, 1e-3, len(x))) + 0.5
    kept = thin(x, y, 0.003)
    assert len(kept) < 2000
    assert kept[0].tolist() == [x[0], y[0]]
    assert kept[-1].tolist() == [x[-1], y[-1]]
    assert np.abs(np.interp(x, kept[:, 0], kept[:, 1]) - y).max() < 0.02
    stairs = thin([0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1])
    assert stairs.tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert thin([0, 0.5, 1], [0, 0.5, 1]).tolist() == [[0, 0], [1, 1]]
    assert thin([0, 0.5, 1], [0, math.nan, 1]).tolist() == [[0, 0], [1, 1]]
    assert thin([], []).shape == (0, 2)
    assert thin([0.3], [0.4]).tolist() == [[0.3, 0.4]]


@pytest.mark.parametrize(
    "values", [[], [0.5], [0.97, 0.98], [0.0, 1.0], [1.0, 1.0], [0.0], [-0.2, 0.4], [0.513, 0.968]]
)
def test_scales_hold_their_values_between_round_marks(values):
    scale = nice_scale(values, least=-1.0)
    assert scale.low < scale.high <= 1.0
    for value in values:
        assert scale.low - 1e-9 <= value <= scale.high + 1e-9
        assert 0.0 <= scale.share(value) <= 1.0
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(abs(tick / scale.step - round(tick / scale.step)) < 1e-6 for tick in ticks)


def test_scale_puts_values_in_proportion():
    scale = Scale(0.5, 1.0, 0.1)
    assert scale.share(0.75) == pytest.approx(0.5)
    assert scale.share(0.2) == 0.0
    assert scale.percent(1.0) == pytest.approx(96.0)


def test_a_chart_draws_its_points_where_they_belong():
    svg = unit_chart(
        "k", [0, 0, 1], [0, 1, 1], title="t", description="d", x_name="x", y_name="y",
        band=([0, 1], [0.25, 0.25], [0.75, math.nan]), chance=0.5, point=(0.5, 0.25),
    )  # fmt: skip
    root = ElementTree.fromstring(svg)
    assert root.find("polyline").get("points") == "36,184 36,8 212,8"
    dot = root.find("circle")
    assert (dot.get("cx"), dot.get("cy")) == ("124", "140")
    assert root.find("path[@class='ref']").get("d") == "M36 96H212"
    assert "nan" not in svg
    with pytest.raises(ValueError, match="leave out what has no value"):
        unit_chart("k", [0, 1], [0, 1], title="", description="", x_name="x", y_name="y",
                   point=(math.nan, 0.0))  # fmt: skip
