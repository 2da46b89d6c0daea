"""Where in an X-ray a head found what speaks for a class, and against it.

A linear head adds up weighted, standardised features, and a mean over a feature map adds up its
positions: so a logit is a sum over places, and :func:`class_evidence` gives its terms. Nothing is
fitted or sampled. With x the pooled features of the picture, m and s the mean and scale of the
training rows, w and b the head's weights and bias, feature j brings ``w_j (x_j - m_j) / s_j`` to
the logit: its Shapley value for a linear model of independent features (Lundberg and Lee 2017,
section 4.2, corollary 1). What a feature brings is handed to the positions it was pooled from:

``mean``, ``mean2x2`` ... ``mean5x5``
    each position brings its own difference to the training rows' mean. Grid cells that overlap
    share their positions.
``max``, ``max2x2``, ``max3x3``
    the largest position gets all; several largest share it.
``std``, ``gem``
    in proportion to the gradient times the position's deviation from the map's mean (``std``) or
    its value (``gem``). Both poolings are homogeneous of degree one, so these terms sum to the
    feature itself (Euler's theorem) and nothing is lost; but which position gets how much is a
    first-order view of a curved function.

So for every pooling the map sums to the logit less the bias. A hidden layer of rectified units is
linear while the same units are active: the map is that of this linear piece, as exact for this
picture, and the constant part is then the picture's own.

What a map is not: the positions of a deep feature map see far more of the picture than the square
they stand for, so a bright place says where the network found its evidence, not what made it so.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import MismatchError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from engine.heads import Head
    from engine.images import JoinedPreprocessing, Preprocessing
    from engine.pooling import Block

__all__ = [
    "BANNER",
    "INK",
    "LONG_SIDES",
    "PAPER",
    "WARNING",
    "Evidence",
    "class_evidence",
    "drawable",
    "encode_png",
    "line_height",
    "load_font",
    "place_map",
    "render_heatmap",
    "render_sheet",
    "wrap_text",
]

#: Stamped on every picture.
BANNER = "AI heatmap - research use only"
#: Smallest and largest long side at which the X-ray is shown, pixels: smaller ones are enlarged, so
#: that text and map are legible; a flat panel's 3000 would only make the file large.
LONG_SIDES = (768, 1024)

_GRID = re.compile(r"(mean|max)([2-9])x\2")
# As the pooling kernels clamp.
_GEM_EPS = 1e-6
# Red and blue of nearly the same lightness (L* 58 and 60), which colour-blind people tell apart;
# transparent where there is no evidence, so that the X-ray stays what it is.
_FOR, _AGAINST = (255, 72, 48), (32, 150, 255)
_MOST_OPAQUE = 0.72
#: Colours of text, of what is behind it, and of what must not be overlooked.
INK, PAPER, WARNING = (235, 235, 235), (16, 16, 16), (255, 214, 10)
# Of the X-ray's long side.
_BAR, _TEXT = 0.125, 0.0205
# A sheet of many panels stays within what viewers open.
_SHEET_SIDE = 4096


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the places of one picture say for and against one class.

    Attributes
    ----------
    head : str
        Name of the head.
    class_name : str
        The class or label.
    against : tuple of str
        Softmax: the other classes. Adding one number to all logits changes no probability, so a
        logit alone means nothing; `logit` is the class's less the mean of the others', which for
        two classes is the logarithm of the odds. Empty for a multi-label head, whose logit is that
        logarithm by itself.
    probability : float
        Calibrated, as in a prediction.
    logit : float
        ``map.sum() + offset``, before calibration.
    offset : float
        The part no place brings: what the head would say of a picture whose features are the mean
        of its training rows. Hidden layer: the constant of the active linear piece.
    map : float64 (H, W)
        Evidence at each pixel of the network's input, brighter for the class, in logits.
    """

    head: str
    class_name: str
    against: tuple[str, ...]
    probability: float
    logit: float
    offset: float
    map: NDArray[np.float64] = field(repr=False)


def class_evidence(
    head: Head,
    maps: Mapping[str, NDArray[np.float32]],
    *,
    size: tuple[int, int],
    classes: Sequence[str] | None = None,
) -> list[Evidence]:
    """Split a head's logits for one picture into what each place brings.

    Parameters
    ----------
    head : Head
        Linear or with a hidden layer.
    maps : mapping of str to float32 (1, c, h, w)
        Feature maps of the head's taps, as `Backbone.infer` gives them.
    size : (int, int)
        Height and width of the maps wanted: the network's input. Every tap is enlarged to it, its
        sum unchanged.
    classes : sequence of str, optional
        Default: the decided class; multi-label: each label present, or the most probable if none
        is.

    Returns
    -------
    list of Evidence
        One a class, in the order asked for.

    Raises
    ------
    MismatchError
        A class the head does not have, a tap that is missing or of another shape, or feature maps
        that are not finite.
    """
    poolers = [_pool(head, block, maps) for block in head.blocks]
    features = np.zeros(len(head.mean))
    for block, pooled in zip(head.blocks, poolers, strict=True):
        if len(pooled.values) != block.width:
            raise MismatchError(
                f"head {head.name!r}: feature block {block.name} is {block.width} wide, the map "
                f"gives {len(pooled.values)}; use the backbone the head was trained on"
            )
        features[block.offset : block.offset + block.width] = pooled.values
    if not np.isfinite(features).all():
        raise MismatchError(
            f"head {head.name!r}: the feature maps have values that are not finite, so no place "
            "can be given its share"
        )
    scale = head.scale.astype(np.float64)
    weight, bias = _linear_piece(head, (features - head.mean) / scale)
    logits = weight @ ((features - head.mean) / scale) + bias
    probabilities = head.calibration.apply(logits[np.newaxis], multilabel=head.multilabel)[0]
    found = []
    for name in _wanted(head, probabilities) if classes is None else classes:
        if name not in head.classes:
            raise MismatchError(
                f"head {head.name!r} has no class {name!r}; it has: {', '.join(head.classes)}"
            )
        number = head.classes.index(name)
        # Weights of the classes: the class itself, less the mean of the others.
        mix = np.zeros(len(head.classes))
        if not head.multilabel and len(mix) > 1:
            mix[:] = -1.0 / (len(mix) - 1)
        mix[number] = 1.0
        coefficients = (mix @ weight) / scale
        whole = np.zeros(size)
        by_tap: dict[str, NDArray[np.float64]] = {}
        for block, pooled in zip(head.blocks, poolers, strict=True):
            columns = slice(block.offset, block.offset + block.width)
            share = pooled.share(coefficients[columns], head.mean[columns].astype(np.float64))
            by_tap[block.tap] = by_tap[block.tap] + share if block.tap in by_tap else share
        for share in by_tap.values():
            whole += _spread(share.shape[0], size[0]) @ share @ _spread(share.shape[1], size[1]).T
        found.append(
            Evidence(
                head=head.name,
                class_name=name,
                against=()
                if head.multilabel
                else tuple(other for other in head.classes if other != name),
                probability=float(probabilities[number]),
                logit=float(mix @ logits),
                offset=float(mix @ bias),
                map=whole,
            )
        )
    return found


def _wanted(head: Head, probabilities: NDArray[np.float64]) -> list[str]:
    label = head.answer(probabilities)["label"]
    if isinstance(label, str):
        return [label]
    return list(label) or [head.classes[int(probabilities.argmax())]]


def _linear_piece(
    head: Head, standard: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (k, d) and bias (k,) of the linear function the head is at this point."""
    weights = {name: array.astype(np.float64) for name, array in head.weights.items()}
    weight, bias = weights["weight"], weights["bias"]
    if "hidden.weight" not in weights:
        return weight, bias
    first, first_bias = weights["hidden.weight"], weights["hidden.bias"]
    active = first @ standard + first_bias > 0.0
    return weight[:, active] @ first[active], bias + weight[:, active] @ first_bias[active]


class _Pooled:
    """One block of features, and whose they are."""

    def __init__(self, planes: NDArray[np.float64], kind: str, cells: int) -> None:
        # planes (c, h, w); a plain pooling is a grid of one cell
        self._planes, self._kind, self._cells = planes, kind, cells
        values = [self._value(planes[:, rows, columns]) for rows, columns in self._regions()]
        self.values: NDArray[np.float64] = np.concatenate(values)

    def _regions(self) -> Iterator[tuple[slice, slice]]:
        """Yield the cells in row-major order, as `engine.kernels.pooling.pool_maps` lays them."""
        h, w = self._planes.shape[1:]
        g = self._cells
        for row in range(g):
            rows = slice(row * h // g, -(-(row + 1) * h // g))
            for column in range(g):
                yield rows, slice(column * w // g, -(-(column + 1) * w // g))

    def _value(self, cell: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._kind == "mean":
            return np.asarray(cell.mean(axis=(1, 2)))
        if self._kind == "max":
            return np.asarray(cell.max(axis=(1, 2)))
        if self._kind == "std":
            return np.asarray(cell.std(axis=(1, 2)))
        cubes = np.maximum(cell, _GEM_EPS) ** 3
        return np.asarray(np.cbrt(cubes.mean(axis=(1, 2))))

    def share(
        self, coefficients: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return (h, w): what each position brings; sums to ``coefficients @ (values - mean)``."""
        c = len(self._planes)
        out = np.zeros(self._planes.shape[1:])
        for number, (rows, columns) in enumerate(self._regions()):
            cell = self._planes[:, rows, columns]
            mine = slice(number * c, (number + 1) * c)
            if self._kind == "mean":
                size = cell.shape[1] * cell.shape[2]
                brought = np.einsum("c,chw->hw", coefficients[mine], cell)
                out[rows, columns] += (brought - coefficients[mine] @ mean[mine]) / size
            else:
                brought = coefficients[mine] * (self.values[mine] - mean[mine])
                out[rows, columns] += np.einsum("c,chw->hw", brought, self._parts(cell))
        return out

    def _parts(self, cell: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each position's part (c, h, w) of the pooled value; every channel sums to 1."""
        if self._kind == "max":
            parts = (cell == cell.max(axis=(1, 2), keepdims=True)).astype(np.float64)
        elif self._kind == "std":
            parts = (cell - cell.mean(axis=(1, 2), keepdims=True)) ** 2
        else:
            parts = np.maximum(cell, _GEM_EPS) ** 3
        total = parts.sum(axis=(1, 2), keepdims=True)
        # A constant map has no deviation: no position of it is more than another.
        even = np.full_like(parts, 1.0 / (parts.shape[1] * parts.shape[2]))
        return np.asarray(np.where(total > 0.0, parts / np.where(total > 0.0, total, 1.0), even))


def _pool(head: Head, block: Block, maps: Mapping[str, NDArray[np.float32]]) -> _Pooled:
    tap, pooling = block.tap, block.pooling
    feature_map = maps.get(tap)
    if feature_map is None or feature_map.ndim != 4 or len(feature_map) != 1:
        found = "missing" if feature_map is None else f"of shape {feature_map.shape}"
        raise MismatchError(
            f"head {head.name!r} needs the feature map of tap {tap!r}, which is {found}; expected "
            f"(1, c, h, w); there are: {', '.join(maps) or 'none'}"
        )
    grid = _GRID.fullmatch(pooling)
    kind, cells = (grid[1], int(grid[2])) if grid else (pooling, 1)
    if kind not in ("mean", "max", "std", "gem"):
        raise MismatchError(
            f"head {head.name!r} uses pooling {pooling!r}, for which there are no heatmaps"
        )
    return _Pooled(feature_map[0].astype(np.float64), kind, cells)


def _spread(n: int, m: int) -> NDArray[np.float64]:
    """Return (m, n): n positions side by side drawn on m pixels, each column summing to 1.

    Linear between the centres of the positions, level beyond the outer ones: an even map stays
    even, and no position gains or loses. Fewer pixels than positions: by the area they cover.
    """
    if m < n:
        edges = np.arange(m + 1) * (n / m)
        positions = np.arange(n)
        stops = np.minimum(edges[1:, None], positions + 1)
        return np.asarray(np.maximum(stops - np.maximum(edges[:-1, None], positions), 0.0))
    centres = (np.arange(m) + 0.5) * (n / m) - 0.5
    distance = np.abs(np.clip(centres, 0, n - 1)[:, None] - np.arange(n))
    tents = np.maximum(1.0 - distance, 0.0)
    return np.asarray(tents / tents.sum(axis=0))


# ---- On the X-ray ------------------------------------------------------------------------------


def place_map(
    evidence: NDArray[np.float64],
    preprocessing: Preprocessing | JoinedPreprocessing,
    shape: tuple[int, int],
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """Lay a map of the network's input on the picture it was made from.

    Undoes the fit of `engine.images.preprocess`: borders that padding added are left out, and
    what cropping cut off has no evidence.

    Parameters
    ----------
    evidence : float64 (H, W)
        As `Evidence.map`.
    preprocessing : Preprocessing or JoinedPreprocessing
        How the picture became the input.
    shape : (int, int)
        Height and width of the picture.
    size : (int, int)
        Height and width to draw it at.

    Returns
    -------
    float64 (size)
        Evidence for each hundredth of the picture's area: its mean over the picture, times 100,
        is the sum of what lies on the picture.

    Raises
    ------
    MismatchError
        Joined backbones whose inputs show different parts of a picture.
    """
    from PIL import Image

    rules, *others = preprocessing.parts
    for other in others:
        same_sides = other.height * rules.width == rules.height * other.width
        if other.fit != rules.fit or not (rules.fit == "stretch" or same_sides):
            raise MismatchError(
                f"the joined backbones fit pictures by {rules.fit} and {other.fit} to inputs of "
                "different sides, so their maps do not lie on each other; join backbones that see "
                "the same part of a picture"
            )
    rows, columns = shape
    in_height, in_width = evidence.shape
    # Of the input: top, left, bottom, right of the picture in it. Beyond it where cropped.
    top, left, bottom, right = 0.0, 0.0, float(in_height), float(in_width)
    height, width = rules.height, rules.width
    if rules.fit == "pad":
        inner_height, inner_width = height, width
        if columns * height < rows * width:
            inner_width = max(1, (2 * columns * height + rows) // (2 * rows))
        else:
            inner_height = max(1, (2 * rows * width + columns) // (2 * columns))
        top, left = float((height - inner_height) // 2), float((width - inner_width) // 2)
        # The map may have another size than the input: a joined network has two.
        along, across = in_height / height, in_width / width
        bottom, right = (top + inner_height) * along, (left + inner_width) * across
        top, left = top * along, left * across
    elif rules.fit == "crop":
        if columns * height > rows * width:
            spare = (columns * height / (rows * width) - 1.0) * in_width
            left, right = -spare / 2, in_width + spare / 2
        else:
            spare = (rows * width / (columns * height) - 1.0) * in_height
            top, bottom = -spare / 2, in_height + spare / 2
    area = (bottom - top) * (right - left)

    def span(start: float, stop: float, most: int, wanted: int) -> tuple[int, int]:
        """Return the pixels of the drawing that the input covers."""
        step = wanted / (stop - start)
        return round(max(0.0, -start) * step), round((min(stop, most) - start) * step)

    first_row, last_row = span(top, bottom, in_height, size[0])
    first_column, last_column = span(left, right, in_width, size[1])
    box = (max(left, 0.0), max(top, 0.0), min(right, in_width), min(bottom, in_height))
    inner = Image.fromarray((evidence * (area / 100)).astype(np.float32)).resize(
        (last_column - first_column, last_row - first_row), Image.Resampling.BILINEAR, box=box
    )
    out = np.zeros(size)
    out[first_row:last_row, first_column:last_column] = np.asarray(inner)
    return out


def render_heatmap(
    pixels: NDArray[np.uint8],
    evidence: Evidence,
    preprocessing: Preprocessing | JoinedPreprocessing,
    *,
    long_side: int | None = None,
) -> NDArray[np.uint8]:
    """Draw a class's evidence over the X-ray, with a banner, a colour bar and a legend.

    Parameters
    ----------
    pixels : uint8 (h, w)
        The X-ray, `Picture.pixels`.
    evidence : Evidence
        From `class_evidence`.
    preprocessing : Preprocessing or JoinedPreprocessing
        How the picture became the network's input.
    long_side : int, optional
        Longer side of the X-ray in the drawing, pixels. Default: its own, within `LONG_SIDES`.

    Returns
    -------
    uint8 (H, W, 3)
        RGB.
    """
    from PIL import Image, ImageDraw

    rows, columns = pixels.shape
    if long_side is None:
        long_side = min(max(rows, columns, LONG_SIDES[0]), LONG_SIDES[1])
    factor = long_side / max(rows, columns)
    height, width = max(1, round(rows * factor)), max(1, round(columns * factor))
    # A strip would leave no room for the words.
    canvas_width = max(width, long_side // 2)
    values = place_map(evidence.map, preprocessing, (rows, columns), (height, width))
    most = float(np.abs(values).max(initial=0.0))
    xray = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (width, height), Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    )
    gray = np.repeat(np.asarray(xray)[:, :, np.newaxis], 3, axis=2)
    drawn = _blend(gray, values / most if most > 0.0 else values)

    bar = max(64, round(_BAR * long_side))
    font = load_font(max(10, round(_TEXT * long_side)))
    line = line_height(font)
    full = canvas_width + bar
    legend = [
        wrapped
        for text in _legend(evidence, float(values.mean() * 100))
        for wrapped in wrap_text(text, font, full - line)
    ]
    top = line * 2
    out = Image.new("RGB", (full, top + height + line * (len(legend) + 1)), PAPER)
    pen = ImageDraw.Draw(out)
    banner = _fit_text(BANNER, font, full - line)
    pen.text((line // 2, line // 2), banner, fill=WARNING, font=font)
    out.paste(Image.fromarray(drawn), ((canvas_width - width) // 2, top))
    _draw_bar(out, pen, (canvas_width, top, bar, height), most, font)
    for number, text in enumerate(legend):
        y = top + height + line // 2 + number * line
        pen.text((line // 2, y), text, fill=INK, font=font)
    return np.asarray(out)


def render_sheet(
    pixels: NDArray[np.uint8],
    evidence: Sequence[Evidence],
    preprocessing: Preprocessing | JoinedPreprocessing,
) -> NDArray[np.uint8]:
    """Draw several classes or heads side by side, each as `render_heatmap` draws one.

    Parameters
    ----------
    pixels : uint8 (h, w)
        The X-ray.
    evidence : sequence of Evidence
        At least one.
    preprocessing : Preprocessing or JoinedPreprocessing
        How the picture became the network's input.

    Returns
    -------
    uint8 (H, W, 3)
        RGB; row by row from the top left.
    """
    across = math.ceil(math.sqrt(len(evidence)))
    long_side = None
    if across > 1:
        long_side = max(192, min(LONG_SIDES[0], int(_SHEET_SIDE / across / (1 + _BAR))))
    panels = [render_heatmap(pixels, one, preprocessing, long_side=long_side) for one in evidence]
    height = max(panel.shape[0] for panel in panels)
    width = max(panel.shape[1] for panel in panels)
    down = -(-len(panels) // across)
    sheet = np.full((down * height, across * width, 3), PAPER, np.uint8)
    for number, panel in enumerate(panels):
        top, left = number // across * height, number % across * width
        sheet[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return sheet


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture as the bytes of a PNG file, without any text chunk.

    Parameters
    ----------
    pixels : uint8 (h, w, 3)
        RGB.

    Returns
    -------
    bytes
        The file.
    """
    from PIL import Image

    buffer = io.BytesIO()
    # The highest level takes five times as long, for 3 % of the size.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _legend(evidence: Evidence, on_picture: float) -> list[str]:
    name = drawable(evidence.class_name)
    others = " and ".join(drawable(other) for other in evidence.against)
    if len(evidence.against) > 1:
        others = "the mean of " + ", ".join(drawable(other) for other in evidence.against)
    return [
        f"{name}: probability {evidence.probability:.3f}, head {drawable(evidence.head)}",
        f"red speaks for {name}, blue " + (f"for {others}" if others else "against it"),
        f"evidence {evidence.logit:+.2f} = {on_picture:+.2f} on the picture "
        f"{evidence.logit - on_picture:+.2f} elsewhere (logits)",
    ]


def _blend(gray: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lay colour over grey (h, w, 3): values from -1 (blue) over 0 (none) to 1 (red)."""
    alpha = (np.abs(values) * _MOST_OPAQUE)[:, :, np.newaxis]
    colour = np.where((values > 0.0)[:, :, np.newaxis], np.array(_FOR), np.array(_AGAINST))
    return np.rint(gray * (1.0 - alpha) + colour * alpha).astype(np.uint8)


def _draw_bar(
    out: Image.Image, pen: Any, box: tuple[int, int, int, int], most: float, font: Any
) -> None:
    """Draw the colours with their numbers: evidence for a hundredth of the picture's area."""
    from PIL import Image

    left, top, width, height = box
    line = line_height(font)
    unit = ("logits", "per 1 %", "of area")
    bar_top, bar_height = top + 2 * line, max(line * 4, height - line * (len(unit) + 4))
    bar_left, bar_width = left + line // 2, max(6, width // 5)
    values = np.repeat(np.linspace(1.0, -1.0, bar_height)[:, np.newaxis], bar_width, axis=1)
    gray = np.full((bar_height, bar_width, 3), 96, np.uint8)
    out.paste(Image.fromarray(_blend(gray, values)), (bar_left, bar_top))
    decimals = max(0, 2 - math.floor(math.log10(most))) if most > 0.0 else 0
    for part in (1.0, 0.5, 0.0, -0.5, -1.0):
        y = bar_top + (1.0 - part) / 2 * (bar_height - 1)
        number = part * most
        words = f"{number:+.{decimals}f}" if number else "0"
        pen.line((bar_left + bar_width, y, bar_left + bar_width + 4, y), fill=INK)
        pen.text((bar_left + bar_width + 7, y - line / 2), words, fill=INK, font=font)
    for row, text in enumerate(unit):
        y = bar_top + bar_height + line + row * line
        pen.text((bar_left, y), text, fill=INK, font=font)


def load_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Give the font that comes with Pillow, so that a drawing is the same on every machine.

    Parameters
    ----------
    size : int
        Pixels.

    Returns
    -------
    ImageFont
        It has the signs of Latin-1 and no others: no dash longer than a hyphen.
    """
    from PIL import ImageFont

    return ImageFont.load_default(size)


def line_height(font: Any) -> int:
    """Give the distance of lines that do not touch.

    Parameters
    ----------
    font : ImageFont
        From `load_font`.

    Returns
    -------
    int
        Pixels.
    """
    _, top, _, bottom = font.getbbox("Ag|")
    height: float = 1.25 * (bottom - min(top, 0))
    return math.ceil(height)


def drawable(text: str) -> str:
    """Replace what Pillow's own font cannot draw: names come from files.

    Parameters
    ----------
    text : str
        Any.

    Returns
    -------
    str
        With a question mark for each sign that there is no glyph for.
    """
    shown = text.encode("latin-1", "replace").decode("latin-1")
    return "".join(char if char.isprintable() else "?" for char in shown)


def wrap_text(text: str, font: Any, width: int) -> list[str]:
    """Break a text between words.

    Parameters
    ----------
    text : str
        As `drawable` gives it.
    font : ImageFont
        From `load_font`.
    width : int
        Of a line, pixels; a longer word loses its end.

    Returns
    -------
    list of str
        At least one line.
    """
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fit_text(line, font, width) for line in lines]


def _fit_text(text: str, font: Any, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "~"
    return text
