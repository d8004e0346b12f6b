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

from monai_wsss.reports import render_conversions, render_switches
from monai_wsss.reports.panels import MASK_COLOR, REFERENCE_COLOR

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


def test_masks_and_references_are_outlined_in_a_last_column():
    mask, reference = np.zeros((32, 32)), np.zeros((32, 32))
    mask[4:12, 20:28], reference[18:28, 4:12] = 1, 1  # the mask below and on the left
    png = render_conversions([image()], [[image()]], masks=[mask], references=[reference])
    ((*_, last),) = tiles(png, 4)
    for color, part in ((MASK_COLOR, mask), (REFERENCE_COLOR, reference)):
        rows, columns = np.nonzero((last == colored(color)).all(axis=2))
        x, y = np.nonzero(part)
        np.testing.assert_allclose([columns.min(), columns.max() + 1], [x.min() * 5, (x.max() + 1) * 5], atol=1)
        np.testing.assert_allclose([rows.min(), rows.max() + 1], [y.min() * 5, (y.max() + 1) * 5], atol=1)
    for words in ({"masks": []}, {"masks": [mask], "references": []}, {"masks": [mask[:4]]}):
        with pytest.raises(ValueError, match=r"Expected (a mask, and|masks of the image's shape)"):
            render_conversions([image()], [[image()]], **words)


def colored(color: str) -> list[int]:
    return [int(color[place : place + 2], 16) for place in (1, 3, 5)]


def test_each_switch_has_a_column_and_each_image_three_lines():
    mask = np.zeros((32, 32))
    mask[8:16, 8:16] = 1
    results = {
        "backbone": [(image() + 0.1, 0 * mask), (image(), mask)],
        "+ C-Conv": [(image() + 0.2, mask), (image() + 0.4, mask)],
    }
    lines = tiles(render_switches([image(), image()], results, references=[mask, None]), 3, 6)
    (source, little, much), (nothing, small, large), (truth, none, found) = lines[:3]
    assert source.mean(dtype=float) < little.mean(dtype=float) < much.mean(dtype=float)
    assert np.unique(nothing.reshape(-1, 3), axis=0).tolist() == [[20, 23, 28]], "an image has no change"
    assert large.min() == 255, "the largest change of all networks is white"
    np.testing.assert_allclose(small, 128, atol=1)
    for tile, color, drawn in ((truth, REFERENCE_COLOR, True), (none, MASK_COLOR, False), (found, MASK_COLOR, True)):
        assert (tile == colored(color)).all(axis=2).any() is np.bool_(drawn)
    assert lines[4][1].max() == 0, "the second image has a scale of its own"
    assert np.unique(lines[5][0].reshape(-1, 3), axis=0).tolist() == [[20, 23, 28]], "no reference"


def test_switches_turn_pictures_of_rows_and_columns_upright():
    rows = MetaTensor(torch.from_numpy(image()).transpose(1, 2), meta={"order": "rows_columns"})
    mask = torch.zeros(32, 32)
    mask[20:30, 2:6] = 1  # below and on the left, in rows and columns
    upright = render_switches([rows], {"a": [(rows, mask)]}, references=[mask])
    assert upright == render_switches([image()], {"a": [(image(), mask.T)]}, references=[mask.T])


@pytest.mark.parametrize(
    ("images", "results", "references", "sentence"),
    [
        ([], {}, None, "at least one image"),
        ([image()], {}, None, "got 1 images, 1 references and no results"),
        ([image()], {"a": []}, None, "'a': 0"),
        ([image()], {"a": [(image(), image()[0])]}, [], "0 references"),
        ([image()], {"a": [(image()[:, :4], image()[0])]}, None, "conversions of one shape"),
        ([image()], {"a": [(image(), image())]}, None, "Expected masks of the image's shape"),
    ],
)
def test_switches_that_do_not_fit_are_refused(images, results, references, sentence):
    with pytest.raises(ValueError, match=sentence):
        render_switches(images, results, references=references)


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
