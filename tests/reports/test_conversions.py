# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The grid of conversions: one gray scale per row, upright images, the white box, and what does not fit."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_wsss.reports import render_conversions

SIDE, GAP, CAPTION = 160, 4, 20


def tiles(png: bytes, columns: int, rows: int = 1) -> list[list[np.ndarray]]:
    """Cut the grid of square images into its tiles, rows of columns, (height, width, 3)."""
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    assert sheet.shape == (CAPTION + rows * (SIDE + GAP) - GAP, columns * (SIDE + GAP) - GAP, 3)
    return [
        [
            sheet[
                CAPTION + row * (SIDE + GAP) : CAPTION + row * (SIDE + GAP) + SIDE,
                column * (SIDE + GAP) : column * (SIDE + GAP) + SIDE,
            ]
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def image() -> np.ndarray:
    """A ramp along x, 32 x 32."""
    return np.repeat(np.linspace(0, 1, 32)[:, None], 32, axis=1)[None]


def test_steps_share_the_gray_scale_of_the_image():
    ((first, brighter, same, change),) = tiles(render_conversions([image()], [[image() + 0.3, image()]]), 4)
    assert abs(brighter.mean(dtype=float) - first.mean(dtype=float)) > 40
    np.testing.assert_array_equal(first, same)
    assert change.max() == 0, "the last step is the image again"


def test_images_stand_upright_in_both_orders():
    ((ramp, *_),) = tiles(render_conversions([image()], [[image()]]), 3)
    assert ramp[80, 150, 0] > ramp[80, 10, 0] + 200, "x runs to the right"
    rows = MetaTensor(torch.from_numpy(image()), meta={"order": "rows_columns"})
    ((ramp, *_),) = tiles(render_conversions([rows], [[rows]]), 3)
    assert ramp[150, 80, 0] > ramp[10, 80, 0] + 200, "rows run downward"


def test_the_change_shows_where_the_conversion_acts_inside_the_box():
    changed = image()
    changed[:, 8:12, 20:24] += 0.4
    png = render_conversions([image(), image()], [[changed], [changed]], boxes=[(6, 18, 14, 26), None])
    boxed, plain = tiles(png, 3, rows=2)
    assert boxed[2][22 * 5, 10 * 5, 0] > 200
    assert boxed[2][30, 30, 0] == 0
    for tile in boxed:
        assert (tile[18 * 5, 6 * 5 : 14 * 5] == 255).all()
    assert (plain[0][18 * 5, 6 * 5 : 14 * 5] < 255).all()


def test_colors_are_shown_as_colors():
    red = np.concatenate([image(), 0 * image(), 0 * image()])
    ((first, *_),) = tiles(render_conversions([red], [[red]]), 3)
    assert first[80, 150, 0] > 200
    assert first[80, 150, 1] < 20


@pytest.mark.parametrize(
    ("images", "steps", "boxes", "sentence"),
    [
        ([], [], None, "same number of `steps`"),
        ([image()], [[]], None, "same number of `steps`"),
        ([image(), image()], [[image()], [image(), image()]], None, "same number of `steps`"),
        ([image()], [[image()]], [], "0 boxes"),
        ([image()], [[image()[:, :8]]], None, "of one shape"),
        ([image()[0]], [[image()[0]]], None, "Expected 2D images"),
    ],
)
def test_what_does_not_fit_is_refused(images, steps, boxes, sentence):
    with pytest.raises(ValueError, match=sentence):
        render_conversions(images, steps, boxes=boxes)
