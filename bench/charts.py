"""How figures with their spread become SVG files, in the look of the project's reports.

Colours are those of `engine.report.style`; a file carries its own style sheet, for light and for
dark ground, because an image has no page to take it from.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import Any

from bench.stages import Measured
from engine.report.plots import Scale
from engine.report.style import DARK, LIGHT
from engine.report.words import text

__all__ = ["draw", "shown", "spread"]

WIDTH = 760.0
LETTER = 6.9  # mean width of a letter of 13 px
LINE = 17.0
MOST_LETTERS = 34
SIGNS = ("circle", "square", "triangle", "diamond")


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{key}:{value};" for key, value in colours.items())


STYLE = (
    f":root{{{_variables(LIGHT)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    ".ground{fill:var(--ground)}"
    'text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",Arial,'
    "sans-serif;font-variant-numeric:tabular-nums lining-nums;fill:var(--text)}"
    ".title{font-size:15.5px;font-weight:650}.quiet{fill:var(--quiet)}.group{font-weight:650}"
    ".m{text-anchor:middle}.e{text-anchor:end}.tick{font-size:11.5px;fill:var(--quiet)}"
    ".strong{font-weight:650}"
    ".value{paint-order:stroke;stroke:var(--ground);stroke-width:5px;stroke-linejoin:round}"
    ".grid{stroke:var(--grid);fill:none}.axis{stroke:var(--quiet);fill:none}"
    ".limit{stroke:var(--warn-edge);fill:none;stroke-width:1.5;stroke-dasharray:5 4}"
    ".limit-name{fill:var(--text);font-size:11.5px}"
    ".bar{fill:var(--quiet);opacity:.55}.bar.ours{fill:var(--strong);opacity:.9}"
    ".stem{stroke:var(--grid);stroke-width:2}"
    ".dot{fill:var(--quiet);stroke:var(--ground);stroke-width:1.5}.dot.ours{fill:var(--strong)}"
    ".whisker{stroke:var(--text);fill:none;stroke-width:1.5}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".c0{stroke:var(--strong)}.c1{stroke:var(--other);stroke-dasharray:7 4}"
    ".c2{stroke:var(--good);stroke-dasharray:2 3}.c3{stroke:var(--quiet);stroke-dasharray:9 3 2 3}"
    ".p0{fill:var(--strong)}.p1{fill:var(--other)}.p2{fill:var(--good)}.p3{fill:var(--quiet)}"
)


def shown(value: float) -> str:
    """Write a number with three digits that count; thousands with commas."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)) + 1e-12)
    decimals = max(0, 2 - size)
    if size < -4:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.{decimals}f}".replace("-", "−")


def spread(values: Measured) -> str:
    """Write a median with the lowest and the highest round: 12.3 (11.9–13.0)."""
    if len(values.rounds) == 1 or values.low == values.high:
        return shown(values.median)
    return f"{shown(values.median)} ({shown(values.low)}–{shown(values.high)})"


def _c(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


class Axis:
    """Puts values on a line of pixels, linear from zero or logarithmic."""

    def __init__(self, values: Iterable[float], start: float, end: float, *, log: bool) -> None:
        known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        self.start, self.end, self.log = start, end, log
        if log:
            low, high = min(known, default=1.0), max(known, default=10.0)
            self.ends = math.log10(low * 0.8), math.log10(high * 1.15)
        else:
            self.ends = 0.0, max([*known, 1e-12]) * 1.04

    def place(self, value: float) -> float:
        low, high = self.ends
        if self.log:
            value = math.log10(max(value, 1e-300))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        low, high = self.ends
        if not self.log:
            rough = high / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= rough * 0.999)
            return Scale(0.0, high, step).ticks()
        parts = (1.0,) if high - low > 2.2 else (1.0, 2.0, 5.0)
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [part * 10.0**power for power in powers for part in parts]
        return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _tick_text(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.0e}".replace("e-0", "e−").replace("e+0", "e").replace("e+", "e")
    return f"{value:,.6g}"


def draw(chart: dict[str, Any]) -> str:
    """Draw a chart of `bench.stages.Findings`.

    Parameters
    ----------
    chart : dict
        An entry of its charts.

    Returns
    -------
    str
        A whole SVG document.
    """
    height, parts = (_bars if chart["kind"] == "bar" else _lines)(chart)
    log = ", logarithmic" if chart["log"] else ""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_c(WIDTH)} {_c(height)}" '
        f'width="{_c(WIDTH)}" height="{_c(height)}" role="img" aria-labelledby="t d">'
        f'<title id="t">{text(chart["title"])}</title>'
        f'<desc id="d">{text(_described(chart))}</desc><style>{STYLE}</style>'
        f'<rect class="ground" width="100%" height="100%" rx="6"/>'
        f'<text class="title" x="16" y="27">{text(chart["title"])}</text>'
        f'<text class="quiet" x="16" y="46">{text(chart["unit"] + log)}; '
        "median, lowest and highest round</text>"
    )
    return "".join([head, *parts, "</svg>\n"])


def _described(chart: dict[str, Any]) -> str:
    said = []
    for series in chart["data"]:
        entries = [
            f"{where} {spread(Measured(tuple(rounds)))}"
            for where, rounds in series.get("bars") or series.get("points", ())
        ]
        said.append(": ".join(filter(None, (series["name"], ", ".join(entries)))))
    return f"{chart['unit']}. " + "; ".join(said)


def _bars(chart: dict[str, Any]) -> tuple[float, list[str]]:
    groups = [
        (group["name"], [(name, Measured(tuple(rounds))) for name, rounds in group["bars"]])
        for group in chart["data"]
    ]
    every = [(name, values) for _, bars in groups for name, values in bars]
    labels = {name: textwrap.wrap(name, MOST_LETTERS) or [""] for name, _ in every}
    longest = max((len(line) for lines in labels.values() for line in lines), default=1)
    left = 24 + longest * LETTER
    right = WIDTH - 24 - max((len(spread(values)) for _, values in every), default=1) * LETTER
    limit = chart["limit"]
    values = [value for _, one in every for value in (one.low, one.high)]
    values += [limit[1]] if limit else []
    axis = Axis(values, left, right, log=chart["log"])
    top = 62.0 + (14.0 if limit else 0.0)
    y = top
    marks: list[str] = []
    values_said: list[str] = []  # over the limit, whose line would cross them
    for name, bars in groups:
        if name:
            y += 8
            marks.append(f'<text class="group" x="16" y="{_c(y + 13)}">{text(name)}</text>')
            y += 24
        for label, one in bars:
            lines = labels[label]
            height = max(26.0, LINE * len(lines) + 6)
            middle = y + height / 2
            ours = " ours" if label in chart["ours"] else ""
            bold = ' class="e strong"' if ours else ' class="e"'
            for number, line in enumerate(lines):
                at = middle + 4.5 + LINE * (number - (len(lines) - 1) / 2)
                marks.append(f'<text{bold} x="{_c(left - 8)}" y="{_c(at)}">{text(line)}</text>')
            end = axis.place(one.median)
            if chart["log"]:
                marks.append(f'<path class="stem" d="M{_c(left)} {_c(middle)}H{_c(end)}"/>')
            else:
                marks.append(
                    f'<rect class="bar{ours}" x="{_c(left)}" y="{_c(middle - 8)}" '
                    f'width="{_c(max(end - left, 0.5))}" height="16"/>'
                )
            low, high = axis.place(one.low), axis.place(one.high)
            if high - low >= 0.5:
                marks.append(
                    f'<path class="whisker" d="M{_c(low)} {_c(middle - 4)}v8M{_c(low)} {_c(middle)}'
                    f'H{_c(high)}M{_c(high)} {_c(middle - 4)}v8"/>'
                )
            if chart["log"]:
                marks.append(
                    f'<circle class="dot{ours}" cx="{_c(end)}" cy="{_c(middle)}" r="5.5"/>'
                )
            place = max(end, high) + 8
            values_said.append(
                f'<text class="value {"strong" if ours else "quiet"}" x="{_c(place)}" '
                f'y="{_c(middle + 4.5)}">{text(spread(one))}</text>'
            )
            y += height
    bottom = y + 6
    behind = []
    last = -math.inf
    for tick in axis.ticks():
        x = axis.place(tick)
        behind.append(f'<path class="grid" d="M{_c(x)} {_c(top)}V{_c(bottom)}"/>')
        if x - last > 44:
            behind.append(
                f'<text class="tick m" x="{_c(x)}" y="{_c(bottom + 16)}">{_tick_text(tick)}</text>'
            )
            last = x
    if limit:
        x = axis.place(limit[1])
        marks.append(f'<path class="limit" d="M{_c(x)} {_c(top - 6)}V{_c(bottom)}"/>')
        side = ' class="limit-name e"' if x > WIDTH * 0.66 else ' class="limit-name m"'
        marks.append(f'<text{side} x="{_c(x)}" y="{_c(top - 10)}">{text(limit[0])}</text>')
    return bottom + 28, [*behind, *marks, *values_said]


def _sign(kind: str, x: float, y: float, style: str) -> str:
    if kind == "circle":
        return f'<circle class="{style}" cx="{_c(x)}" cy="{_c(y)}" r="4.5"/>'
    path = {
        "square": f"M{_c(x - 4.5)} {_c(y - 4.5)}h9v9h-9z",
        "triangle": f"M{_c(x)} {_c(y - 5.5)}l5.5 10h-11z",
        "diamond": f"M{_c(x)} {_c(y - 6)}l6 6l-6 6l-6 -6z",
    }[kind]
    return f'<path class="{style}" d="{path}"/>'


def _lines(chart: dict[str, Any]) -> tuple[float, list[str]]:
    series = [
        (line["name"], [(at, Measured(tuple(rounds))) for at, rounds in line["points"]])
        for line in chart["data"]
    ]
    labels = {name: textwrap.wrap(name, 24) for name, _ in series}
    longest = max((len(line) for lines in labels.values() for line in lines), default=1)
    left, right, top, bottom = 76.0, WIDTH - 32 - longest * LETTER, 66.0, 352.0
    places = sorted({at for _, points in series for at, _ in points})
    across = Axis(places, left, right, log=chart["log"])
    values = [v for _, points in series for _, one in points for v in (one.low, one.high)]
    up = Axis(values, bottom, top, log=chart["log"])
    parts = []
    for tick in up.ticks():
        y = up.place(tick)
        parts.append(f'<path class="grid" d="M{_c(left)} {_c(y)}H{_c(right)}"/>')
        parts.append(
            f'<text class="tick e" x="{_c(left - 8)}" y="{_c(y + 4)}">{_tick_text(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_c(left)} {_c(bottom)}H{_c(right)}"/>')
    last = math.inf
    for at in reversed(places):
        x = across.place(at)
        parts.append(f'<path class="axis" d="M{_c(x)} {_c(bottom)}v5"/>')
        if last - x > 34:
            parts.append(
                f'<text class="tick m" x="{_c(x)}" y="{_c(bottom + 19)}">{_tick_text(at)}</text>'
            )
            last = x
    parts.append(
        f'<text class="tick m" x="{_c((left + right) / 2)}" y="{_c(bottom + 38)}">'
        f"{text(chart['x'])}</text>"
    )
    names = []
    others = 0
    ours = chart["ours"] or [name for name, _ in series[:1]]
    for name, points in series:
        number = 0 if name in ours else 1 + others % 3
        others += number > 0
        drawn = [(across.place(at), up.place(one.median), one) for at, one in sorted(
            points, key=lambda point: point[0])]  # fmt: skip
        path = " ".join(f"{_c(x)},{_c(y)}" for x, y, _ in drawn)
        parts.append(f'<polyline class="line c{number}" points="{path}"/>')
        for x, y, one in drawn:
            low, high = up.place(one.low), up.place(one.high)
            if abs(high - low) >= 0.5:
                parts.append(f'<path class="whisker" d="M{_c(x)} {_c(low)}V{_c(high)}"/>')
            parts.append(_sign(SIGNS[number], x, y, f"p{number}"))
        if drawn:
            names.append((drawn[-1][1], drawn[-1][0], name, number == 0))
    lowest = -math.inf
    for y, x, name, strong in sorted(names):
        at = max(y + 4.5, lowest + LINE)
        for line in labels[name]:
            style = ' class="strong"' if strong else ""
            parts.append(f'<text{style} x="{_c(x + 11)}" y="{_c(at)}">{text(line)}</text>')
            lowest, at = at, at + LINE
    return bottom + 52, parts
