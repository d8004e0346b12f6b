# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Outlines of slides: in pixels of the finest level, with holes, names and areas."""

from __future__ import annotations

import json

import numpy as np
import pytest

from monai_wsss.inferers.slide_outlines import write_outlines

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("skimage")


def outlines(tmp_path, mask, scale=2):
    path = tmp_path / "mask.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(mask, tile=(64, 64))
    size = (mask.shape[0] * scale, mask.shape[1] * scale)
    number = write_outlines(path, tmp_path / "o.geojson", ["gland", "other tissue"], size=size, mpp=(0.5, 0.5))
    features = json.loads((tmp_path / "o.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) == number
    return features


def test_a_rectangle_with_a_hole(tmp_path):
    mask = np.zeros((100, 120), np.uint8)
    mask[10:40, 20:60] = 1
    mask[20:25, 30:36] = 0
    (feature,) = outlines(tmp_path, mask)
    outer, hole = (np.asarray(ring) for ring in feature["geometry"]["coordinates"])
    assert np.array_equal(outer[0], outer[-1])
    assert outer.min(0) == pytest.approx([40, 20], abs=1)
    assert outer.max(0) == pytest.approx([120, 80], abs=1)
    assert hole.min(0) == pytest.approx([60, 40], abs=1)
    assert hole.max(0) == pytest.approx([72, 50], abs=1)
    assert feature["properties"]["classification"]["name"] == "gland"
    pixels = 30 * 40 - 5 * 6
    assert feature["properties"]["measurements"]["Area mm^2"] == pytest.approx(pixels * 4 * 0.25 / 1e6, abs=1e-6)


def test_parts_that_touch_the_edge_or_only_corners(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:8, :8] = 2
    mask[8:16, 8:16] = 2
    mask[60:, 60:] = 1
    features = outlines(tmp_path, mask, scale=1)
    assert [feature["properties"]["classification"]["name"] for feature in features] == ["gland"] + 2 * ["other tissue"]
    assert all(len(feature["geometry"]["coordinates"]) == 1 for feature in features)
    assert outlines(tmp_path, np.zeros((64, 64), np.uint8)) == []
