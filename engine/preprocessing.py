"""The one way from a picture to the backbone's input, in whole numbers and rounded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.picture import Picture
from engine.reduction import make_axis, shades, weighted_sums

__all__ = [
    "FITS",
    "JoinedPreprocessing",
    "Preprocessing",
    "preprocess",
    "read_preprocessing",
]

FITS = ("crop", "pad", "stretch")
"""What :class:`Preprocessing` may do with a picture of another shape than the input."""

VERSION = 2


@dataclass(frozen=True)
class Preprocessing:
    """The one way from a picture to the backbone's input; its digest travels with every feature.

    The steps of :func:`preprocess`, in order:

    1. *Fit.* ``"stretch"`` takes the whole picture and ignores its aspect ratio; ``"pad"`` takes
       the whole picture, keeps the ratio and puts equal black borders around it (the odd row or
       column goes to the bottom or right); ``"crop"`` takes the largest centred part of the input's
       aspect ratio.
    2. *Area average.* Each pixel of the input is the average of the levels under it, those at its
       edges by the share it covers. Along an axis that has fewer pixels than the input, levels are
       interpolated linearly between the middles of neighbouring pixels.
    3. *Stretch of contrast*, where percentiles are given: levels from that of ``low_percentile`` to
       that of ``high_percentile`` of the small picture, without borders, spread linearly over 0 to
       255; values outside are clipped. A picture whose two levels coincide is left as it is.

    Levels have 16 bits (:class:`engine.picture.Picture`), sums of them are whole numbers, and the
    only rounding is the last one, to 8 bits, halves up: the same bytes on every processor, and
    within half a grey level of what real numbers would give.

    Reading (:func:`engine.images.read_picture`) is part of ``version``: whatever changes the bytes
    that come out for a file raises it.

    Parameters
    ----------
    version : int
        Version of these rules and of reading; this release knows 2.
    height, width : int
        Size of the input, pixels.
    fit : {"stretch", "pad", "crop"}
        Step 1.
    low_percentile, high_percentile : float or None
        Step 3, per cent; both or neither.

    Raises
    ------
    ValueError
        A value outside these choices.
    """

    version: int = VERSION
    height: int = 224
    width: int = 224
    fit: str = "stretch"
    low_percentile: float | None = None
    high_percentile: float | None = None

    def __post_init__(self) -> None:
        for name in ("version", "height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"preprocessing: {name} is {value!r}, expected a whole number")
        if self.version != VERSION:
            cure = (
                "it was made by a newer release: update hilum"
                if self.version > VERSION
                else "it was made by an older one: extract and train again"
            )
            raise ValueError(
                f"preprocessing: version {self.version}, this release knows version {VERSION}; "
                + cure
            )
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= 4096:
                raise ValueError(
                    f"preprocessing: {name} is {getattr(self, name)}, expected 1 to 4096 pixels"
                )
        if self.fit not in FITS:
            raise ValueError(
                f"preprocessing: fit is {self.fit!r}, expected one of " + ", ".join(FITS)
            )
        low, high = self.low_percentile, self.high_percentile
        if (low is None) != (high is None):
            raise ValueError(
                "preprocessing: low_percentile and high_percentile go together; give both or none"
            )
        if low is not None and high is not None:
            if not 0 <= low < high <= 100:
                raise ValueError(
                    f"preprocessing: percentiles {low} and {high}, expected 0 <= low < high <= 100"
                )
            # 1 and 1.0 are one rule and must have one digest.
            object.__setattr__(self, "low_percentile", float(low))
            object.__setattr__(self, "high_percentile", float(high))

    def to_dict(self) -> dict[str, Any]:
        """Give the rules as plain values.

        Returns
        -------
        dict
            Every field by its name; what :meth:`from_dict` takes and JSON can hold.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make the rules of plain values.

        Parameters
        ----------
        values : mapping
            Fields by name; those left out have their default.

        Returns
        -------
        Preprocessing
            The rules.

        Raises
        ------
        ValueError
            A key or value these rules do not know.
        """
        if values.get("version") == 1:  # it had other keys; its version says what to do
            cls(version=1)
        known = {item.name for item in fields(cls)}
        strangers = sorted(set(values) - known)
        if strangers:
            raise ValueError(
                f"preprocessing: unknown key {strangers[0]!r}, expected only "
                f"{', '.join(sorted(known))}; it may come from a newer release: update hilum"
            )
        return cls(**values)

    @property
    def parts(self) -> tuple[Preprocessing, ...]:
        """The rules for each input of the network: these, once."""
        return (self,)

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, of the canonical JSON: sorted keys, no spaces, ASCII."""
        return _digest(self.to_dict())


@dataclass(frozen=True)
class JoinedPreprocessing:
    """The rules of several backbones that look at one picture.

    Parameters
    ----------
    parts : tuple of Preprocessing
        The rules of each backbone, in their order; two or more.

    Raises
    ------
    ValueError
        Fewer than two.
    """

    parts: tuple[Preprocessing, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError(f"preprocessing: {len(self.parts)} part(s), expected two or more")

    def to_dict(self) -> dict[str, Any]:
        """Give the rules as plain values.

        Returns
        -------
        dict
            Every field of :class:`Preprocessing` by its name, with a list of the parts' values.
        """
        rules = [part.to_dict() for part in self.parts]
        return {name: [rule[name] for rule in rules] for name in rules[0]}

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, of the canonical JSON of :meth:`to_dict`."""
        return _digest(self.to_dict())


def read_preprocessing(values: Mapping[str, Any]) -> Preprocessing | JoinedPreprocessing:
    """Make the rules of one backbone, or of joined ones, of plain values.

    Parameters
    ----------
    values : mapping
        From a container's notes or a head: fields by name, or lists of them for joined backbones.

    Returns
    -------
    Preprocessing or JoinedPreprocessing
        The rules.

    Raises
    ------
    ValueError
        A key or value these rules do not know, or lists of different lengths.
    """
    lists = {name: value for name, value in values.items() if isinstance(value, list | tuple)}
    if not lists:
        return Preprocessing.from_dict(values)
    lengths = {len(value) for value in lists.values()}
    if len(lists) != len(values) or len(lengths) != 1:
        raise ValueError(
            "preprocessing: some settings are lists and others not, or of other lengths; expected "
            "a list with one value for each joined backbone in all of them; extract again"
        )
    return JoinedPreprocessing(
        tuple(
            Preprocessing.from_dict({name: value[number] for name, value in lists.items()})
            for number in range(lengths.pop())
        )
    )


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def preprocess(picture: Picture, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Make the backbone's input of a picture, by the rules of :class:`Preprocessing`.

    Parameters
    ----------
    picture : Picture
        From :func:`engine.images.read_picture`.
    preprocessing : Preprocessing
        The rules.

    Returns
    -------
    ndarray, uint8, shape (1, height, width)
        One channel; the same bytes for the same picture and rules, on every machine.
    """
    height, width = preprocessing.height, preprocessing.width
    rows, columns = picture.samples.shape
    inner_height, inner_width = height, width
    # Length of a pixel, where the first output pixel begins, and how long each is; along rows, then
    # along columns. Whole numbers: rounding must not depend on a machine's floating point.
    down, across = (height, 0, rows), (width, 0, columns)
    if preprocessing.fit == "pad":
        if columns * height < rows * width:
            inner_width = max(1, (2 * columns * height + rows) // (2 * rows))
            across = (inner_width, 0, columns)
        else:
            inner_height = max(1, (2 * rows * width + columns) // (2 * columns))
            down = (inner_height, 0, rows)
    elif preprocessing.fit == "crop":
        if columns * height > rows * width:
            across = (2 * height, columns * height - rows * width, 2 * rows)
        else:
            down = (2 * width, rows * width - columns * height, 2 * columns)
    row_axis, column_axis = make_axis(inner_height, *down), make_axis(inner_width, *across)
    samples: NDArray[Any] = np.ascontiguousarray(picture.samples)
    sums = weighted_sums(samples, picture.table, row_axis, column_axis)
    total = row_axis.total * column_axis.total
    white = total * (255 if picture.table is None else 65535)
    low, high = preprocessing.low_percentile, preprocessing.high_percentile
    inner = shades(sums, white, None if low is None or high is None else (low, high))
    if inner.shape == (height, width):
        return inner[np.newaxis]
    out = np.zeros((1, height, width), dtype=np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    out[0, top : top + inner_height, left : left + inner_width] = inner
    return out
