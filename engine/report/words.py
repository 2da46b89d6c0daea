"""How numbers, names and other people's texts are written into a page."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

__all__ = [
    "NONE",
    "Glossary",
    "amount",
    "count",
    "difference",
    "figure",
    "interval",
    "joined",
    "known",
    "name",
    "number",
    "pair",
    "percent",
    "plural",
    "seconds",
    "text",
]

# Thousands are set apart by a narrow space where no line may break (ISO 80000-1, 7.3.1).
_THIN = "\u202f"
# Words beyond would push a phone's page aside.
_LONG_WORD = 16
#: What stands for a figure that does not exist.
NONE = '<span class="none">not defined</span>'

# Embeddings, overrides and isolates of writing direction (UAX 9, 2.1 to 2.5): one in a name would
# turn round the sentence that it stands in. Right-to-left letters need none of them.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# One sentence each, given where a figure is first used.
_GLOSSARY = {
    "auroc": (
        "AUROC",
        "the chance that a random image of a class gets a higher probability of it than a random "
        "image of the others: 0.5 is guessing, 1 is perfect; the mean over the classes is called "
        "macro.",
    ),
    "accuracy": ("Accuracy", "the share of images whose class was named rightly."),
    "accuracy_labels": (
        "Accuracy",
        "the share of right answers over all labels and images; where labels are rare, saying "
        "“absent” throughout already scores high.",
    ),
    "ci95": (
        "In brackets",
        "a 95 % interval, found by drawing patients again and again (bootstrap), so that several "
        "images of one patient do not count as several patients.",
    ),
    "average_precision": (
        "Average precision",
        "the area under the precision-recall curve; guessing gives the share of the class.",
    ),
    "balanced_accuracy": (
        "Balanced accuracy",
        "the mean over classes of the share that was recognised, so that frequent classes do not "
        "decide it.",
    ),
    "brier": ("Brier score", "the mean squared error of the probabilities: 0 is perfect."),
    "ece": (
        "Expected calibration error",
        "how far a given probability is, on average, from the share it comes true of.",
    ),
    "slope": (
        "Calibration slope and intercept",
        "1 and 0 are right; a slope below 1 says that probabilities are too extreme, an intercept "
        "above 0 that they are too low.",
    ),
    "sensitivity_at": (
        "Sensitivity at 95 % specificity",
        "the share of a class that is found when the threshold is set so that 95 % of the others "
        "are passed over; the reverse likewise.",
    ),
    "sensitivity": (
        "Sensitivity",
        "the share of the images of a class that were recognised; specificity: the share of the "
        "others that were rightly not named so.",
    ),
    "ppv": (
        "Predictive values",
        "PPV is the share of namings that were right, NPV the share of not-namings that were "
        "right; both change with how frequent the class is.",
    ),
    "wilson": (
        "Interval of a share",
        "Wilson’s 95 % interval of a count, which takes images for independent of each other.",
    ),
    "roc": (
        "ROC curve",
        "sensitivity against the share of false alarms, for every possible threshold; the dashed "
        "line is guessing.",
    ),
    "precision_recall": (
        "Precision-recall curve",
        "how many namings are right (precision) against how much of a class is found (recall); "
        "the dashed line is guessing.",
    ),
    "reliability": (
        "Reliability plot",
        "images in bins of equal probability: dots on the dashed line say that probabilities "
        "mean what they say.",
    ),
    "floor": (
        "Floor",
        "what the same training reaches on data that show little of the lungs or nothing; a head "
        "close to its floor may have learned where images come from.",
    ),
    "l2": ("L2", "how strongly large weights are held back; more means a simpler head."),
    "loss": ("Loss", "mean negative log-likelihood of the truth: lower is better."),
}


def _kept(sentence: str) -> str:
    """Escape a sentence whose percent signs stay with their numbers."""
    return text(sentence.replace(" %", f"{_THIN}%"))


class Glossary:
    """Explains each term where it is first used."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, *terms: str) -> str:
        """Return a paragraph for the terms that were not explained yet, or nothing."""
        new = [term for term in terms if term not in self._said]
        self._said.update(new)
        if not new:
            return ""
        lines = "".join(
            f"<div><dt>{text(_GLOSSARY[term][0])}</dt> <dd>{_kept(_GLOSSARY[term][1])}</dd></div>"
            for term in new
        )
        return f'<dl class="gloss">{lines}</dl>'


def text(value: object) -> str:
    """Return a text from outside as it may stand in HTML, SVG and in quoted attributes.

    Signs that no page may hold (controls, halves of surrogate pairs), and those that turn the
    writing direction of what follows, become U+FFFD.

    Parameters
    ----------
    value : object
        Anything; written by `str`.

    Returns
    -------
    str
        Escaped.
    """
    clean = "".join(
        "\ufffd"
        if sign in _TURNING or (unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t")
        else sign
        for sign in str(value)
    )
    # Attributes of the page stand in double quotes only; an apostrophe may stay what it is.
    return html.escape(clean, quote=False).replace('"', "&quot;")


def name(value: object) -> str:
    """Return a name from outside, escaped, whose writing direction stays its own affair.

    Only a name with a very long word may break inside the word: shorter ones stay whole.
    """
    longest = max(map(len, str(value).split()), default=0)
    kind = ' class="long"' if longest > _LONG_WORD else ""
    return f"<bdi{kind}>{text(value)}</bdi>"


def joined(values: Sequence[object], word: str = "and") -> str:
    """Return names as a list in words, escaped."""
    names = [name(value) for value in values]
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {word} {names[-1]}"


def known(value: Any) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        real = float(value)
    except (TypeError, ValueError):
        return None
    return real if math.isfinite(real) else None


def pair(value: Any) -> tuple[float, float] | None:
    """Return an interval as two finite numbers, or None for everything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = known(value[0]), known(value[1])
    return None if low is None or high is None else (low, high)


def number(value: Any, digits: int = 3) -> str:
    """Write a figure with a fixed number of decimals and a true minus sign."""
    real = known(value)
    if real is None:
        return NONE
    written = f"{real:,.{digits}f}".replace(",", _THIN)
    if float(f"{real:.{digits}f}") == 0.0:
        written = written.lstrip("-")
    return written.replace("-", "−")


def interval(value: Any, digits: int = 3) -> str:
    """Write ``(0.955 to 0.979)``; nothing without an interval."""
    ends = pair(value)
    if ends is None:
        return ""
    return f'<span class="ci">({number(ends[0], digits)} to {number(ends[1], digits)})</span>'


def figure(value: Any, ends: Any, digits: int = 3) -> str:
    """Write ``0.968 (0.955 to 0.979)``."""
    if known(value) is None:
        return NONE
    return f"{number(value, digits)} {interval(ends, digits)}".strip()


def difference(value: Any, ends: Any, digits: int = 3) -> str:
    """Write a difference with its sign: ``+0.042 (0.020 to 0.061)``."""
    real = known(value)
    if real is None:
        return NONE
    sign = "+" if float(f"{real:.{digits}f}") > 0 else ""
    return f"{sign}{figure(real, ends, digits)}"


def count(value: Any) -> str:
    """Write a whole number with thin spaces between thousands."""
    real = known(value)
    return NONE if real is None else f"{round(real):,}".replace(",", _THIN).replace("-", "−")


def plural(n: Any, one: str, many: str | None = None) -> str:
    """Write ``1 image`` or ``720 images``."""
    return f"{count(n)} {one if known(n) == 1 else many or one + 's'}"


def percent(value: Any, digits: int = 1) -> str:
    """Write a share in percent."""
    real = known(value)
    return NONE if real is None else f"{number(100.0 * real, digits)}{_THIN}%"


def seconds(value: Any) -> str:
    """Write a duration in milliseconds, seconds or minutes."""
    real = known(value)
    if real is None:
        return NONE
    if real < 1.0:
        return f"{number(1000.0 * real, 0)} ms"
    return f"{number(real, 1)} s" if real < 120.0 else f"{number(real / 60.0, 1)} min"


def amount(n_bytes: Any) -> str:
    """Write a number of bytes in megabytes or gigabytes (powers of ten)."""
    real = known(n_bytes)
    if real is None:
        return NONE
    return f"{number(real / 1e6, 0)} MB" if real < 1e9 else f"{number(real / 1e9, 2)} GB"
