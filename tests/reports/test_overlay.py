# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Overlays: the mask in the color of its class where it is, and the names of the classes below."""

from __future__ import annotations

import io

import numpy as np
import pytest
from monai.data import MetaTensor
from PIL import Image

from monai_wsss._labels import CLASS_COLORS
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.networks import CAMEncoder, record_reading
from monai_wsss.reports.overlay import add_legend, render_overlay
from monai_wsss.reports.planes import display_of


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("order", ["xy", ROWS_COLUMNS])
def test_a_mask_lies_where_it_is(order):
    image, mask = np.full((1, 40, 20), 0.5), np.zeros((40, 20), int)
    image[0, 0, 0] = 1.0
    mask[:10, :10] = 1  # at the left top in both orders, but of other extent
    drawn = pixels(render_overlay(MetaTensor(image, meta={"order": order}), mask, ["tumor"], ["FLAIR"]))
    height = 320
    width = round(height * (2.0 if order == "xy" else 0.5))
    right = drawn[:height, width + 4 :]
    colored = right[..., 0] - right[..., 2] > 40
    across = 0.25 if order == "xy" else 0.5
    down = 0.5 if order == "xy" else 0.25
    assert colored[: int(height * down * 0.9), : int(width * across * 0.9)].all()
    assert not colored[int(height * down * 1.1) :].any()
    assert not colored[:, int(width * across * 1.1) :].any()


def test_a_volume_is_shown_where_its_mask_is():
    mask = np.zeros((16, 16, 30), int)
    mask[4:9, 4:9, 10:28] = 2
    drawn = pixels(
        render_overlay(np.random.default_rng(0).random((3, 16, 16, 30)), mask, ["a", "b"], ["T1", "T2", "X"])
    )
    color = np.asarray(CLASS_COLORS[1])
    assert (np.abs(drawn[-40:] - color).sum(-1) < 10).any()  # in the legend
    assert drawn.shape[0] > 2 * 320
    assert drawn.shape[1] == 3 * 324 - 4
    for left in (0, 324, 648):  # images above, masks below
        above, below = (drawn[top : top + 290, left : left + 320] for top in (30, 354))
        assert (above[..., 0] == above[..., 2]).all()
        assert (below[..., 0] != below[..., 2]).any()


def test_an_empty_mask_and_many_classes_are_drawn():
    drawn = render_overlay(np.zeros((1, 8, 8)), np.zeros((8, 8), int), [f"class {n}" for n in range(30)], ["image"])
    assert pixels(drawn).shape[0] > 320 + 22 * 3
    assert add_legend(io.BytesIO(drawn), ["one"]).startswith(b"\x89PNG")


def test_a_volume_is_shown_in_the_slices_of_the_network_and_undistorted():
    network = CAMEncoder.tiny()
    record_reading(network, {"order": "xy", "slicing_axis": "SI", "in_plane_axes": "LP"})
    mask = np.zeros((10, 8, 16), int)
    mask[6, 2:6, 4:12] = 1
    axial = MetaTensor(np.random.rand(1, 8, 16, 10), affine=np.diag([-4.0, -2.0, 5.0, 1.0]))
    turned = np.zeros((4, 4))
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = 5, -4, -2, 1
    stored = MetaTensor(np.asarray(axial).transpose(0, 3, 1, 2), affine=turned)
    expected = render_overlay(axial, mask.transpose(1, 2, 0), ["tumor"], ["FLAIR"], network=network)
    assert render_overlay(stored, mask, ["tumor"], ["FLAIR"], network=network) == expected
    assert pixels(expected).shape[1] == 2 * 320 + 4  # 8 pixels of 4 mm are as long as 16 of 2 mm


@pytest.mark.parametrize(("along", "through"), [("RL", 0), ("AP", 1), ("SI", 2)])
def test_the_axis_of_the_network_comes_before_the_coarsest_one(along, through):
    network = CAMEncoder.tiny()
    record_reading(network, {"order": "xy", "slicing_axis": along, "in_plane_axes": None})
    volume = MetaTensor(np.zeros((1, 4, 5, 6)), affine=np.diag([1.0, 5.0, 1.0, 1.0]))
    assert display_of(volume, network).axes[2] == through
    assert display_of(volume).axes[2] == 1
