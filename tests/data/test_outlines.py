# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Outlines against a test of the center of every pixel, run lengths both ways, and invalid outlines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import points_in_poly

from monai_wsss._checks import DataError
from monai_wsss.data.outlines import draw_outline

COLUMNS, ROWS = 23, 17
_ENCODED = "g28900000000000i5"  # pycocotools.mask.encode of the rows 2 to 9 of the columns 5 to 11


def draw(outline: object) -> np.ndarray:
    """Draw an outline as [row, column]."""
    return draw_outline(outline, COLUMNS, ROWS, "a.json, annotations[0]").T


def inside(points: np.ndarray) -> np.ndarray:
    """Mark the centers [row, column] in a simple polygon, by scikit-image."""
    y, x = np.mgrid[:ROWS, :COLUMNS] + 0.5
    return points_in_poly(np.stack([x.ravel(), y.ravel()], axis=1), points).reshape(ROWS, COLUMNS)


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_holds_the_centers_inside_even_where_it_leaves_the_image(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
    radius = rng.uniform(2, 20, angles.shape)
    points = rng.uniform([0, 0], [COLUMNS, ROWS]) + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    np.testing.assert_array_equal(draw([points.ravel().tolist()]), inside(points))


def test_neighbors_share_no_pixel_and_leave_none_out():
    whole = draw([[2, 3, 12, 3, 12, 9, 2, 9]]).astype(int)
    parts = [draw([[2, 3, 12, 9, 2, 9]]), draw([[2, 3, 12, 3, 12, 9]])]
    np.testing.assert_array_equal(parts[0].astype(int) + parts[1], whole)
    assert whole.sum() == 60  # ten columns, six rows: the border is no part of it


def test_several_polygons_are_one_object_and_crossings_count_odd():
    left, right = [1, 1, 5, 1, 5, 5, 1, 5], [3, 3, 9, 3, 9, 9, 3, 9]
    np.testing.assert_array_equal(draw([left, right]), draw([left]) | draw([right]))
    bow_tie = draw([[2, 2, 10, 10, 10, 2, 2, 10]])
    assert bow_tie[6, 3]
    assert bow_tie[6, 8]
    assert not bow_tie[2, 6]
    assert not bow_tie[9, 6]
    assert not draw([[4, 4, 9, 4]]).any()  # a line
    assert not draw([[100, 100, 110, 100, 110, 110]]).any()


def run_lengths(mask: np.ndarray) -> list[int]:
    """Count the lengths of background, object, … of [row, column] one by one."""
    counts, last = [0], False
    for value in mask.T.ravel():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def compress(counts: list[int]) -> str:
    """Write COCO's text by its definition: from the fourth number on, differences to the number two places before."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_run_lengths_come_back_plain_and_compressed(seed, share):
    mask = np.random.default_rng(seed).random((ROWS, COLUMNS)) < share
    for counts in (run_lengths(mask), compress(run_lengths(mask))):
        np.testing.assert_array_equal(draw({"size": [ROWS, COLUMNS], "counts": counts}), mask)


def test_the_text_is_that_of_pycocotools():
    mask = np.zeros((ROWS, COLUMNS), dtype=bool)
    mask[2:10, 5:12] = True
    np.testing.assert_array_equal(draw({"size": [ROWS, COLUMNS], "counts": _ENCODED}), mask)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, r"annotations\[0\] has the outline None: give polygons or run lengths, as COCO does"),
        ([], "has no outline: add it, or prepare the data without masks"),
        ([[]], r"has the polygon \[\]: write the coordinates of its corners"),
        ([1, 2, 3, 4, 5, 6], "has the polygon 1: write"),
        ([[1, 2, 3]], r"has the polygon \[1, 2, 3\]: write"),
        ([[1, 2, 3, "x"]], "has the polygon .*'x'"),
        ([[0, 0, 1, 0, float("nan"), 1]], "has the polygon .*nan"),
        ([[0, 0, 1, 0, 1e300, 1]], "has the polygon .*e.300"),
        ([[0, 0, 1, 0, 10**400, 1]], "has the polygon"),
        ([{"x": 1}], "has the polygon"),
        (
            {"size": [COLUMNS, ROWS], "counts": [1]},
            r"for the size \[23, 17\], but its image has 17 rows and 23 columns",
        ),
        ({"counts": [1]}, "for the size None, but its image"),
        ({"size": [ROWS, COLUMNS]}, "has the run lengths None: write whole numbers that add up to 391 pixels"),
        ({"size": [ROWS, COLUMNS], "counts": [390]}, r"has the run lengths \[390\]: write whole numbers"),
        ({"size": [ROWS, COLUMNS], "counts": [-1, 392]}, r"has the run lengths \[-1, 392\]"),
        ({"size": [ROWS, COLUMNS], "counts": [391.0]}, r"has the run lengths \[391.0\]"),
        ({"size": [ROWS, COLUMNS], "counts": ""}, "has the run lengths '': .* or their compressed text"),
        ({"size": [ROWS, COLUMNS], "counts": "~~"}, "has the run lengths '~~'"),
        ({"size": [ROWS, COLUMNS], "counts": "oo"}, "has the run lengths 'oo'"),
    ],
)
def test_what_is_no_outline_is_said_in_one_sentence(outline, message):
    with pytest.raises(DataError, match=message) as caught:
        draw(outline)
    assert len(str(caught.value)) < 300
