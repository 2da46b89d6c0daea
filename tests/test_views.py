"""Augmented views: where a marked pixel goes, and that the same view is always the same bytes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import MismatchError
from engine.extract import MOST_VIEWS
from engine.views import MAX_VIEWS, View, apply_view, draw_views, views_to_notes

HEIGHT, WIDTH = 200, 240


def marked(row: int, column: int) -> np.ndarray:
    """Black, with a white square of 5 x 5 about a pixel."""
    image = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    image[0, row - 2 : row + 3, column - 2 : column + 3] = 255
    return image


def centre_of(image: np.ndarray) -> tuple[float, float]:
    weights = image[0].astype(float)
    rows, columns = np.indices(weights.shape)
    return (rows * weights).sum() / weights.sum(), (columns * weights).sum() / weights.sum()


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        # of a mark at row 50, column 60, where the centre is at 99.5 and 119.5
        (View(1, mirror=True), (50, 179)),
        (View(1, shift_x=0.1), (50, 84)),
        (View(1, shift_y=0.1), (70, 60)),
        (View(1, shift_x=-0.05, shift_y=-0.05), (40, 48)),
        (View(1, scale=1.2), (99.5 - 1.2 * 49.5, 119.5 - 1.2 * 59.5)),
        (View(1, scale=0.8), (99.5 - 0.8 * 49.5, 119.5 - 0.8 * 59.5)),
        # counter-clockwise: what is at the upper left comes to the lower left
        (View(1, rotation_degrees=90), (99.5 + 59.5, 119.5 - 49.5)),
        (View(1, rotation_degrees=-90), (99.5 - 59.5, 119.5 + 49.5)),
        (View(1, mirror=True, shift_x=0.1), (50, 203)),
        (View(1, mirror=True, rotation_degrees=90), (99.5 - 59.5, 119.5 - 49.5)),
    ],
)
def test_a_mark_comes_where_the_view_says(view: View, expected: tuple[float, float]) -> None:
    moved = apply_view(marked(50, 60), view)
    assert moved.shape == (1, HEIGHT, WIDTH)
    assert moved.dtype == np.uint8
    np.testing.assert_allclose(centre_of(moved), expected, atol=0.05)


def oracle(image: np.ndarray, view: View) -> np.ndarray:
    """The view of an image in floating point, pixel by pixel."""
    source = image[0, :, ::-1] if view.mirror else image[0]
    height, width = source.shape
    angle = math.radians(view.rotation_degrees)
    out = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            x = column - (width - 1) / 2 - view.shift_x * width
            y = row - (height - 1) / 2 - view.shift_y * height
            at_x = (x * math.cos(angle) - y * math.sin(angle)) / view.scale + (width - 1) / 2
            at_y = (x * math.sin(angle) + y * math.cos(angle)) / view.scale + (height - 1) / 2
            at_x, at_y = min(max(at_x, 0), width - 1), min(max(at_y, 0), height - 1)
            left, top = min(int(at_x), width - 2), min(int(at_y), height - 2)
            right, down = at_x - left, at_y - top
            upper = source[top, left] * (1 - right) + source[top, left + 1] * right
            lower = source[top + 1, left] * (1 - right) + source[top + 1, left + 1] * right
            out[row, column] = upper * (1 - down) + lower * down
    return np.clip(128 + (out - 128) * view.contrast, 0, 255)


@pytest.mark.parametrize("mirror", [False, True])
def test_views_agree_with_an_oracle(mirror: bool) -> None:
    coarse = np.random.default_rng(3).integers(0, 256, (6, 7)).astype(np.uint8)
    image = np.kron(coarse, np.ones((8, 8), np.uint8))[np.newaxis, :45, :53]
    for view in draw_views(6, mirror=mirror):
        seen = apply_view(image, view)[0].astype(float)
        # Weights are cut to 1/256, so a pixel beside an edge of 255 is off by up to 2, and by a
        # little more where contrast is raised and a half is rounded.
        assert np.abs(seen - oracle(image, view)).max() < 3.0, view


def test_bytes_of_views_are_frozen() -> None:
    rows, columns = np.indices((224, 224))
    image = ((rows * 7 + columns * columns // 3) % 256).astype(np.uint8)[np.newaxis]
    digest = hashlib.sha256()
    for view in draw_views(MAX_VIEWS, mirror=True):
        digest.update(apply_view(image, view).tobytes())
    # A container's views and a prediction's must be the same for ever: a change of these bytes is
    # another kind of view, and needs a new key in the notes.
    assert digest.hexdigest() == (
        "b569e613a4ea7d9a9c395726ed0477e3626c5a896450aefaa164097d7596b8ad"
    )


def test_first_views_of_more_are_the_same_and_all_differ() -> None:
    assert draw_views(4) == draw_views(9)[:4]
    views = draw_views(MAX_VIEWS)
    assert [view.number for view in views] == list(range(1, MAX_VIEWS + 1))
    assert len({replace(view, number=0) for view in views}) == MAX_VIEWS
    assert not any(view.mirror for view in views)
    assert draw_views(0) == ()
    assert draw_views(4, seed=1) != draw_views(4)


def test_mirrored_views_are_the_odd_ones() -> None:
    plain, mirrored = draw_views(9), draw_views(9, mirror=True)
    assert mirrored[0] == View(1, mirror=True)
    assert [view.mirror for view in mirrored] == [True, False] * 4 + [True]
    assert [replace(view, mirror=False) for view in mirrored[1:]] == list(plain[1:])


def test_amounts_are_in_the_ranges_that_notes_state_and_fill_them() -> None:
    views = draw_views(MAX_VIEWS)
    notes = views_to_notes(MAX_VIEWS, mirror=False, patients=True)
    for amounts, most in (
        ([view.rotation_degrees for view in views], notes["rotation_degrees"]),
        ([view.shift_x for view in views], notes["shift_fraction"]),
        ([view.shift_y for view in views], notes["shift_fraction"]),
        ([view.scale - 1 for view in views], notes["scale_fraction"]),
        ([view.contrast - 1 for view in views], notes["contrast_fraction"]),
    ):
        assert 0.8 * most < max(amounts) <= most
        assert 0.8 * most < -min(amounts) <= most
        assert abs(np.mean(amounts)) < 0.1 * most


def test_the_original_is_itself_and_is_not_changed() -> None:
    image = marked(50, 60)
    assert apply_view(image, View()) is image
    before = image.copy()
    for view in draw_views(3, mirror=True):
        apply_view(image, view)
    np.testing.assert_array_equal(image, before)


def test_contrast_is_about_the_middle_grey() -> None:
    image = np.array([[[0, 100, 128, 150, 255]]], np.uint8)
    harder = apply_view(image, View(1, contrast=1.5))
    assert harder.tolist() == [[[0, 86, 128, 161, 255]]]
    assert apply_view(image, View(1, contrast=0.5)).tolist() == [[[64, 114, 128, 139, 192]]]


def test_outside_repeats_the_edge() -> None:
    image = np.full((1, 20, 20), 77, np.uint8)
    image[0, :, 0] = 200
    shifted = apply_view(image, View(1, shift_x=0.25))
    assert (shifted[0, :, :6] == 200).all()
    assert (shifted[0, :, 6:] == 77).all()


@pytest.mark.parametrize("n", [-1, 33, True, 2.0])
def test_wrong_numbers_of_views_are_refused(n: object) -> None:
    with pytest.raises(MismatchError, match="from 0 to 32"):
        draw_views(n)  # type: ignore[arg-type]


def test_the_command_line_knows_how_many_views_there_may_be() -> None:
    assert MOST_VIEWS == MAX_VIEWS
