# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The rules of tiles: tags and margins, dark corners and regions alike for both kinds, and scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.data.crops import (
    TileRule,
    dark_corners,
    resize_image,
    resize_mask,
    scaled_shape,
    tile_fault,
    tile_tags,
)
from monai_wsss.data.patches import patch_origins


def rectangles(shape: tuple[int, int], seed: int, classes: int) -> np.ndarray:
    """Draw a mask with a rectangle per class."""
    rng, mask = np.random.default_rng(seed), np.zeros(shape, dtype=np.uint8)
    for number in range(1, classes + 1):
        x, y = (int(rng.integers(0, size)) for size in shape)
        mask[x : x + int(rng.integers(1, 20)), y : y + int(rng.integers(1, 20))] = number
    return mask


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(12, 50), st.integers(12, 50)),
    tiles=st.integers(2, 12),
    margin=st.integers(0, 9),
    presence=st.floats(0, 0.5),
    classes=st.integers(1, 2),
    seed=st.integers(0, 10**6),
)
def test_a_tag_says_what_a_count_of_pixels_says(shape, tiles, margin, presence, classes, seed):
    mask = rectangles(shape, seed, classes)
    rule = TileRule(tiles, tile_margin=margin, tile_presence=presence)
    padded = np.pad(mask, margin)
    for x, y in patch_origins(shape, tiles, rule.stride):
        inside = mask[x : x + tiles, y : y + tiles]
        around = padded[x : x + tiles + 2 * margin, y : y + tiles + 2 * margin]
        assert inside.shape == (tiles, tiles)
        tags = tile_tags(mask, (x, y), rule, classes)
        shares = [np.count_nonzero(inside == number) / tiles**2 for number in range(1, classes + 1)]
        seen = [bool((around == number).any()) for number in range(1, classes + 1)]
        if tags is None:
            assert any(near and share <= presence for near, share in zip(seen, shares, strict=True))
        else:
            assert tags == [int(share > presence) for share in shares]
            assert not any(near for near, tag in zip(seen, tags, strict=True) if not tag)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 1.0), skip=st.booleans())
def test_tiles_that_stay_keep_the_rules_of_corners_and_regions(seed, share, skip):
    rng = np.random.default_rng(seed)
    dark, region = rng.random((2, 24, 20)) < rng.uniform(0, 1, (2, 1, 1)) ** np.array([4, 0.3])[:, None, None]
    rule = TileRule(6, 3, region_share=share, skip_dark_corners=skip)
    for x, y in patch_origins(dark.shape, 6, 3):
        window = np.s_[x : x + 6, y : y + 6]
        outside = region[window].mean() < share
        cornered = skip and dark[window].mean() > 0.02
        assert bool(tile_fault((x, y), rule, dark, region)) == (outside or cornered)
        assert bool(tile_fault((x, y), rule, dark, None)) == cornered


def vignette(shape: tuple[int, int], channels: int = 3) -> np.ndarray:
    x, y = (np.arange(size) - (size - 1) / 2 for size in shape)
    distance = np.hypot(x[:, None], y) / np.hypot(*shape) * 2
    return np.repeat(np.where(distance > 0.85, 12, 200)[None].astype(np.uint8), channels, axis=0)


def test_dark_corners_are_found_and_a_dark_lesion_is_not():
    image = vignette((96, 72))
    image[:, 30:60, 20:50] = 10
    found = dark_corners(image)
    np.testing.assert_array_equal(found, vignette((96, 72))[0] == 12)
    assert not dark_corners(np.where(image == 12, 200, image)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lesion_away_from_the_corners_changes_no_corner(channels):
    plain = vignette((96, 72), channels)
    with_lesion = plain.copy()
    with_lesion[:, 20:76, 25:45] = 15
    np.testing.assert_array_equal(dark_corners(plain), dark_corners(with_lesion))


def test_corners_turn_with_the_image():
    image = vignette((96, 72))
    image[:, :48] = 200
    np.testing.assert_array_equal(dark_corners(image).T, dark_corners(image.transpose(0, 2, 1)))


def test_a_dark_image_with_bright_nuclei_has_no_dark_corners():
    image = np.random.default_rng(0).integers(3, 9, (1, 64, 64))
    image[:, 20:28, 20:28] = 180
    assert not dark_corners(image).any()


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (TileRule(8), (384, 288)),
        (TileRule(8, scale=2 / 3), (256, 192)),
        (TileRule(8, longest_side=256), (256, 192)),
        (TileRule(8, scale=2.0), (768, 576)),
    ],
)
def test_scaled_shapes(rule, shape):
    assert scaled_shape((384, 288), rule) == shape
    assert scaled_shape((288, 384), rule) == shape[::-1]


def test_shrinking_averages_and_masks_stay_masks():
    stripes = np.zeros((3, 64, 32), dtype=np.uint16)
    stripes[:, ::2] = 200
    small = resize_image(stripes, (16, 8))
    assert small.shape == (3, 16, 8)
    assert small.dtype == np.uint16
    assert small[:, 2:-2].min() > 80  # without a low-pass, stripes would stay stripes
    assert small[:, 2:-2].max() < 120
    assert resize_image(stripes, (64, 32)) is stripes
    mask = rectangles((64, 32), 1, 2)[None]
    assert resize_mask(mask, (16, 8)).shape == (1, 16, 8)
    assert set(np.unique(resize_mask(mask, (40, 21)))) <= {0, 1, 2}


def test_an_image_and_its_mask_are_scaled_to_the_same_place():
    mask = np.zeros((1, 96, 72), dtype=np.uint8)
    mask[0, 12:60, 20:44] = 1
    shape = scaled_shape((96, 72), TileRule(8, scale=0.5))
    image = resize_image(255 * mask, shape)
    np.testing.assert_array_equal(image > 127, resize_mask(mask, shape) > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiles": 1}, "`tiles` of at least 2 pixels, got 1"),
        ({"tile_stride": 0}, "`tile_stride` of at least 1 pixels, got 0"),
        ({"tile_margin": -1}, "`tile_margin` of at least 0 pixels, got -1"),
        ({"longest_side": 0}, "`longest_side` of at least 2 pixels, got 0"),
        ({"scale": 0.0}, "`scale` above 0 and up to 8, got 0"),
        ({"scale": 0.5, "longest_side": 256}, r"`scale` or `longest_side`, got both \(0.5 and 256\)"),
        ({"tile_presence": 1.0}, "`tile_presence` from 0 to below 1"),
        ({"region_share": 0.0}, "`region_share` above 0 and up to 1"),
    ],
)
def test_bad_rules(options, message):
    with pytest.raises(ValueError, match=message):
        TileRule(**{"tiles": 64, **options})


def test_the_stride_is_half_a_tile_by_default():
    assert TileRule(65).stride == 32
    assert TileRule(64, 21).stride == 21
