"""How figures become small SVG charts, without a plotting library or a script.

The hospital PC has no plotting library, so charts are written by hand. Colours, line widths and
letter sizes belong to the page's style sheet (`engine.report.style`): an SVG here names classes
only, and therefore follows the reader's light, dark or printed page.

Two kinds of chart: those with a ``viewBox``, which grow with their column, and *rows*, whose x is
in percent and whose y is in pixels: they stretch to any width while dots stay round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.report.words import text

__all__ = [
    "Scale",
    "Series",
    "bar_row",
    "interval_axis",
    "interval_row",
    "learning_chart",
    "nice_scale",
    "reliability_chart",
    "thin",
    "unit_chart",
]

# The square of a unit chart inside its view box, pixels.
_LEFT, _TOP, _SIDE = 36.0, 8.0, 176.0
_WIDTH, _HEIGHT = _LEFT + _SIDE + 8.0, _TOP + _SIDE + 32.0
# Of which the names of the axes.
_NAMES = 14.0
# The strip of counts under a reliability chart.
_STRIP = 38.0
# A point nearer to the chord than this is not seen: half a pixel of the square.
_UNSEEN = 0.5 / _SIDE
# Rows keep this much free on both sides, percent, so that dots at the ends are whole.
_MARGIN = 4.0


@dataclass(frozen=True)
class Scale:
    """The range an axis shows.

    Attributes
    ----------
    low, high : float
        The ends; `high` is larger.
    step : float
        Between two marks.
    """

    low: float
    high: float
    step: float

    def share(self, value: float) -> float:
        """Return where `value` lies, 0 to 1; what is outside is put on the edge."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def percent(self, value: float) -> float:
        """Return where `value` lies in a row, percent of its width."""
        return _MARGIN + (100.0 - 2.0 * _MARGIN) * self.share(value)

    def ticks(self) -> list[float]:
        """Return the marks, ascending."""
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [i * self.step for i in range(first, last + 1)]


@dataclass(frozen=True)
class Series:
    """Points of one line of a learning chart.

    Attributes
    ----------
    name : str
        Written at the line's end.
    mark : {"circle", "square"}
        So that lines differ without colour.
    y : tuple of float or None
        One for each x.
    intervals : tuple of (float, float) or None
        One for each x.
    """

    name: str
    mark: str
    y: tuple[float | None, ...]
    intervals: tuple[tuple[float, float] | None, ...]


def nice_scale(
    values: Sequence[float], *, least: float = 0.0, most: float = 1.0, marks: int = 5
) -> Scale:
    """Choose a range around values whose marks are round numbers.

    Parameters
    ----------
    values : sequence of float
        Finite; may be empty.
    least, most : float
        The range never leaves these.
    marks : int
        About so many steps.

    Returns
    -------
    Scale
        At least a twentieth wide.
    """
    low, high = (min(values), max(values)) if values else (least, most)
    if high - low < 0.05:
        middle = (low + high) / 2.0
        low, high = middle - 0.025, middle + 0.025
    rough = (high - low) / marks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= rough * 0.999)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    low, high = max(low, least), min(high, most)
    if high - low < step:
        low, high = max(high - step, least), min(low + step, most)
    return Scale(low, high, step)


def thin(x: ArrayLike, y: ArrayLike, tolerance: float = _UNSEEN) -> NDArray[np.float64]:
    """Leave out points of a line that nobody would see.

    Ramer (1972), Douglas and Peucker (1973): a point is kept if it is farther than `tolerance`
    from the chord over the points that were left out.

    Parameters
    ----------
    x, y : float (n,)
        The line, in the unit square.
    tolerance : float
        Largest distance a left out point may have.

    Returns
    -------
    float64 (m, 2)
        Some of the points, first and last among them; finite.
    """
    points = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) > 2:
        # Steps much finer than the tolerance are first put together, so that 100,000 rows do not
        # make 100,000 points to look at.
        cell = np.round(points / (max(tolerance, _UNSEEN) / 4.0))
        new = np.r_[True, (cell[1:] != cell[:-1]).any(axis=1)]
        new[-1] = True
        points = points[new]
    n = len(points)
    keep = np.zeros(n, bool)
    keep[:1] = keep[n - 1 :] = True
    spans = [(0, n - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        inner = points[first + 1 : last] - points[first]
        chord = points[last] - points[first]
        length = float(np.hypot(*chord))
        if length == 0.0:
            distance = np.hypot(inner[:, 0], inner[:, 1])
        else:
            distance = np.abs(inner[:, 0] * chord[1] - inner[:, 1] * chord[0]) / length
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return points[keep]


def _short(value: float) -> str:
    """Write a coordinate: one decimal, no sign of zero."""
    if not math.isfinite(value):
        raise ValueError(f"a chart was given {value!r}; leave out what has no value")
    written = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if written in ("-0", "") else written


def _tick(value: float, step: float = 0.1) -> str:
    """Write a mark with as many decimals as the step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "−")


def _x(value: float) -> str:
    return _short(_LEFT + _SIDE * min(max(value, 0.0), 1.0))


def _y(value: float) -> str:
    return _short(_TOP + _SIDE * (1.0 - min(max(value, 0.0), 1.0)))


def _points(points: NDArray[np.float64], small: bool) -> str:
    """Write points of the square; whole pixels are enough for a small chart."""
    if not small:
        return " ".join(f"{_x(float(a))},{_y(float(b))}" for a, b in points)
    shares = points.clip(0.0, 1.0)
    places = np.stack([_LEFT + _SIDE * shares[:, 0], _TOP + _SIDE * (1.0 - shares[:, 1])], axis=1)
    return " ".join(f"{a},{b}" for a, b in places.round().astype(int))


def _open(key: str, width: float, height: float, title: str, description: str) -> str:
    return (
        f'<svg viewBox="0 0 {_short(width)} {_short(height)}" role="img" '
        f'aria-labelledby="{key}t {key}d"><title id="{key}t">{text(title)}</title>'
        f'<desc id="{key}d">{text(description)}</desc>'
    )


def _frame(x_name: str, y_name: str) -> str:
    """Draw the square with its marks at 0, a half and 1; names may be empty."""
    middle_x, middle_y = _LEFT + _SIDE / 2, _TOP + _SIDE / 2
    shown = (0.0, 0.25, 0.5, 0.75, 1.0) if x_name or y_name else (0.0, 0.5, 1.0)
    grid = "".join(f"M{_x(v)} {_y(0)}V{_y(1)}M{_x(0)} {_y(v)}H{_x(1)}" for v in shown)
    marks = "".join(
        f'<text x="{_x(v)}" y="{_short(_TOP + _SIDE + 13)}" class="m">{label}</text>'
        f'<text x="{_short(_LEFT - 5)}" y="{_short(_TOP + _SIDE * (1 - v) + 4)}" class="e">'
        f"{label}</text>"
        for v, label in ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
    )
    drawn = f'<path class="gr" d="{grid}"/>{marks}'
    if not x_name and not y_name:
        return drawn
    return (
        drawn
        + f'<text x="{_short(middle_x)}" y="{_short(_TOP + _SIDE + 27)}" class="m">{text(x_name)}'
        f'</text><text transform="translate(11 {_short(middle_y)})rotate(-90)" class="m">'
        f"{text(y_name)}</text>"
    )


def unit_chart(
    key: str,
    x: ArrayLike,
    y: ArrayLike,
    *,
    title: str,
    description: str,
    x_name: str,
    y_name: str,
    band: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    chance: float | None = None,
    point: tuple[float, float] | None = None,
) -> str:
    """Draw a line in the unit square: a ROC or a precision-recall curve.

    Parameters
    ----------
    key : str
        Letters and digits, another for each chart of a page.
    x, y : float (n,)
        The line.
    title, description : str
        For who does not see the chart.
    x_name, y_name : str
        Of the axes; both empty leave their room to the marks.
    band : (x, low, high), float (m,) each, optional
        The interval around the line.
    chance : float, optional
        Height of the line of guessing; None: the diagonal.
    point : (x, y), optional
        Where the head decides.

    Returns
    -------
    str
        One ``<svg>``.
    """
    small = not x_name and not y_name
    height = _HEIGHT - _NAMES if small else _HEIGHT
    unseen = 3.0 * _UNSEEN if small else _UNSEEN
    parts = [_open(key, _WIDTH, height, title, description), _frame(x_name, y_name)]
    if chance is None:
        parts.append(f'<path class="ref" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>')
    else:
        parts.append(f'<path class="ref" d="M{_x(0)} {_y(chance)}H{_x(1)}"/>')
    if band is not None:
        along, low, high = (np.asarray(each, np.float64) for each in band)
        upper, lower = thin(along, high, unseen), thin(along, low, unseen)
        if len(upper) and len(lower):
            outline = np.concatenate([upper, lower[::-1]])
            parts.append(f'<polygon class="band" points="{_points(outline, small)}"/>')
    line = thin(x, y, unseen)
    if len(line):
        parts.append(f'<polyline class="line" points="{_points(line, small)}"/>')
    if point is not None:
        parts.append(f'<circle class="pt" cx="{_x(point[0])}" cy="{_y(point[1])}" r="4.5"/>')
    return "".join([*parts, "</svg>"])


def reliability_chart(
    key: str,
    predicted: Sequence[float],
    observed: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    counts: Sequence[int],
    *,
    title: str,
    description: str,
    small: bool = False,
) -> str:
    """Draw predicted against observed shares, over a strip of how often each was given.

    Parameters
    ----------
    key : str
        Letters and digits, another for each chart of a page.
    predicted, observed : sequence of float
        Mean probability and share of a bin.
    intervals : sequence of (low, high)
        Of the observed share.
    counts : sequence of int
        Rows by probability: bins of equal width from 0 to 1.
    title, description : str
        For who does not see the chart.
    small : bool
        Without names of the axes.

    Returns
    -------
    str
        One ``<svg>``.
    """
    bottom = _STRIP + (_HEIGHT - _NAMES if small else _HEIGHT)
    parts = [
        _open(key, _WIDTH, bottom, title, description),
        _frame("", "") if small else _frame("mean probability given", "share it was true of"),
        f'<path class="ref" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>',
    ]
    line = thin(predicted, observed, 0.0)
    if len(line) > 1:
        parts.append(f'<polyline class="line faint" points="{_points(line, small)}"/>')
    whiskers = "".join(
        f"M{_x(x)} {_y(low)}V{_y(high)}"
        for x, (low, high) in zip(predicted, intervals, strict=True)
    )
    parts.append(f'<path class="err" d="{whiskers}"/>')
    parts += [
        f'<circle class="pt" cx="{_x(x)}" cy="{_y(y)}" r="3.5"/>'
        for x, y in zip(predicted, observed, strict=True)
    ]
    most, width = max([*counts, 1]), _SIDE / max(len(counts), 1)
    floor, bars = _short(bottom - 1), []
    for i, n in enumerate(counts):
        if n:
            # A single row among thousands is still seen.
            high = _short(-max((_STRIP - 10.0) * n / most, 1.5))
            left = _short(_LEFT + i * width + 0.6)
            bars.append(f"M{left} {floor}v{high}h{_short(width - 1.2)}V{floor}z")
    parts.append(
        f'<path class="bar" d="{"".join(bars)}"/>'
        f'<path class="gr" d="M{_x(0)} {_short(bottom - 0.5)}H{_x(1)}"/>'
    )
    if not small:
        parts.append(
            f'<text x="{_short(_LEFT - 5)}" y="{_short(bottom - 2)}" class="e">rows</text>'
        )
    return "".join([*parts, "</svg>"])


def interval_row(
    scale: Scale,
    value: float | None,
    interval: Sequence[float] | None,
    *,
    reference: Sequence[float] | None = None,
    kind: str = "head",
    at: float | None = None,
) -> str:
    """Draw one dot with its interval, to stand in a table's cell beside the number.

    Parameters
    ----------
    scale : Scale
        Of all rows of the table.
    value : float or None
        None leaves the row without a dot.
    interval : (low, high), optional
        Drawn as a line.
    reference : (low, high), optional
        Shaded behind all rows: the head's own interval.
    kind : {"head", "other"}
        A filled dot or an open square.
    at : float, optional
        A dashed line: no difference.

    Returns
    -------
    str
        One ``<svg>``, hidden from screen readers, since the number stands beside it.
    """
    parts = ['<svg class="iv" width="100%" height="50" aria-hidden="true" focusable="false">']
    if reference is not None:
        low, high = scale.percent(reference[0]), scale.percent(reference[1])
        parts.append(
            f'<rect class="shade" x="{_short(low)}%" y="0" '
            f'width="{_short(max(high - low, 0.5))}%" height="100%"/>'
        )
    ends = f'x1="{_MARGIN:g}%" x2="{100 - _MARGIN:g}%"'
    parts.append(f'<line class="gr" {ends} y1="50%" y2="50%"/>')
    if at is not None:
        place = _short(scale.percent(at))
        parts.append(f'<line class="ref" x1="{place}%" x2="{place}%" y1="0" y2="100%"/>')
    style = "iv-h" if kind == "head" else "iv-o"
    if interval is not None:
        left, right = (_short(scale.percent(end)) for end in interval)
        parts.append(f'<line class="{style}" x1="{left}%" x2="{right}%" y1="50%" y2="50%"/>')
    if value is not None:
        place = _short(scale.percent(value))
        if kind == "head":
            parts.append(f'<circle class="{style}" cx="{place}%" cy="50%" r="5.5"/>')
        else:
            parts.append(
                f'<svg x="{place}%" y="50%" overflow="visible">'
                f'<rect class="{style}" x="-5" y="-5" width="10" height="10"/></svg>'
            )
    return "".join([*parts, "</svg>"])


def interval_axis(scale: Scale) -> str:
    """Draw the marks that belong under rows of `interval_row`.

    Parameters
    ----------
    scale : Scale
        The rows' scale.

    Returns
    -------
    str
        One ``<svg>``, hidden from screen readers.
    """
    ticks = scale.ticks()
    # A phone's column holds three numbers.
    shown = ticks if len(ticks) <= 3 else [ticks[0], ticks[len(ticks) // 2], ticks[-1]]
    parts = ['<svg class="iv" width="100%" height="24" aria-hidden="true" focusable="false">']
    for tick in ticks:
        place = _short(scale.percent(tick))
        parts.append(f'<line class="tk" x1="{place}%" x2="{place}%" y1="0" y2="5"/>')
        if tick in shown:
            label = _tick(tick, scale.step)
            parts.append(f'<text x="{place}%" y="18" class="m">{label}</text>')
    return "".join([*parts, "</svg>"])


def bar_row(share: float) -> str:
    """Draw a bar of a share, to stand in a table's cell beside the number.

    Parameters
    ----------
    share : float
        0 to 1.

    Returns
    -------
    str
        One ``<svg>``, hidden from screen readers.
    """
    width = _short(100.0 * min(max(share, 0.0), 1.0))
    return (
        '<svg class="iv" width="100%" height="14" aria-hidden="true" focusable="false">'
        f'<rect class="bar-h" x="0" y="2" width="{width}%" height="10"/></svg>'
    )


def learning_chart(
    key: str, sizes: Sequence[int], series: Sequence[Series], *, title: str, description: str
) -> str:
    """Draw figures against how many patients the head learned from.

    Parameters
    ----------
    key : str
        Letters and digits, another for each chart of a page.
    sizes : sequence of int
        Patients, ascending, at least one, all positive.
    series : sequence of Series
        The lines.
    title, description : str
        For who does not see the chart.

    Returns
    -------
    str
        One ``<svg>``.
    """
    width, height = 380.0, 236.0
    left, right, top, bottom = 44.0, width - 74.0, 10.0, height - 42.0
    logs = [math.log(max(size, 1)) for size in sizes]
    spread = logs[-1] - logs[0]

    def place(log: float) -> float:
        return left + 14 + (right - left - 28) * ((log - logs[0]) / spread if spread else 0.5)

    known = [v for line in series for v in line.y if v is not None]
    known += [end for line in series for pair in line.intervals if pair for end in pair]
    scale = nice_scale(known)

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * scale.share(value)

    parts = [_open(key, width, height, title, description)]
    for tick in scale.ticks():
        level = _short(height_of(tick))
        parts.append(f'<path class="gr" d="M{_short(left)} {level}H{_short(right)}"/>')
        parts.append(
            f'<text x="{_short(left - 6)}" y="{_short(height_of(tick) + 4)}" class="e">'
            f"{_tick(tick, scale.step)}</text>"
        )
    taken = math.inf
    for size, log in reversed(list(zip(sizes, logs, strict=True))):
        x = place(log)
        parts.append(f'<path class="tk" d="M{_short(x)} {_short(bottom)}V{_short(bottom + 5)}"/>')
        if taken - x >= 34:
            parts.append(f'<text x="{_short(x)}" y="{_short(bottom + 18)}" class="m">{size}</text>')
            taken = x
    parts.append(
        f'<text x="{_short((left + right) / 2)}" y="{_short(height - 8)}" class="m">'
        "patients learned from (logarithmic)</text>"
    )
    labels: list[tuple[float, str]] = []
    for number, line in enumerate(series):
        # Lines whose intervals would hide each other stand a little apart.
        aside = (number - (len(series) - 1) / 2) * 5.0
        style = "line" if line.mark == "circle" else "line second"
        drawn = [
            (place(log) + aside, height_of(value), pair)
            for log, value, pair in zip(logs, line.y, line.intervals, strict=True)
            if value is not None
        ]
        if not drawn:
            continue
        path = " ".join(f"{_short(x)},{_short(y)}" for x, y, _ in drawn)
        whiskers = "".join(
            f"M{_short(x)} {_short(height_of(pair[0]))}V{_short(height_of(pair[1]))}"
            for x, _, pair in drawn
            if pair is not None
        )
        mark = "" if line.mark == "circle" else " second"
        parts.append(f'<polyline class="{style}" points="{path}"/>')
        if whiskers:
            parts.append(f'<path class="err{mark}" d="{whiskers}"/>')
        for x, y, _ in drawn:
            if line.mark == "circle":
                parts.append(f'<circle class="pt" cx="{_short(x)}" cy="{_short(y)}" r="4"/>')
            else:
                parts.append(
                    f'<rect class="pt second" x="{_short(x - 4)}" y="{_short(y - 4)}" '
                    'width="8" height="8"/>'
                )
        labels.append((drawn[-1][1], line.name))
    labels.sort()
    lowest = -math.inf
    for y, label in labels:
        lowest = max(y + 4, lowest + 14)
        parts.append(
            f'<text x="{_short(right + 4)}" y="{_short(lowest)}" class="s">{text(label)}</text>'
        )
    return "".join([*parts, "</svg>"])
