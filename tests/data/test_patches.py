# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Patches: their starts against MONAI's, full cover, tags against a count of pixels, glass, contradictions."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices

from monai_wsss.data.patches import (
    contradicting_pairs,
    is_white_patch,
    patch_origins,
    presence_tags,
    white_pixels,
    window_starts,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(0, 70), st.integers(1, 90))
def test_aligned_starts_are_those_of_monai_and_cover_every_pixel(patch, extra, stride):
    size, stride = patch + extra, min(stride, patch)
    starts = window_starts(size, patch, stride)
    expected = [part[0].start for part in dense_patch_slices((size, patch), (patch, patch), (stride, stride))]
    assert starts == list(dict.fromkeys(expected))
    covered = np.zeros(size, dtype=bool)
    for start in starts:
        covered[start : start + patch] = True
    assert covered.all()
    assert starts[-1] + patch == size


@pytest.mark.parametrize(("size", "last"), [(430, 318), (448, 336), (522, 410), (775, 663)])
def test_sizes_of_glas(size, last):
    starts = window_starts(size, 112, 56)
    assert starts[-1] == last
    assert starts[:-1] == list(range(0, last, 56))


def test_grid_of_prog_leaves_the_border_out():
    origins = patch_origins((1500, 1500), 224, 224, align=False)
    assert len(origins) == 36
    assert origins[-1] == (1120, 1120)


def test_origins_are_x_then_y_and_x_runs_fastest():
    assert patch_origins((7, 3), 3, 2) == [(0, 0), (2, 0), (4, 0)]
    assert patch_origins((3, 7), 3, 2) == [(0, 0), (0, 2), (0, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 1), "`patch` and `stride` of at least 1 pixel, got 0 and 1"),
        ((10, 2, 0), "`patch` and `stride` of at least 1 pixel, got 2 and 0"),
        ((10, 11, 1), "at least `patch` = 11 pixels, got 10: choose smaller patches"),
    ],
)
def test_sizes_that_fit_no_window(arguments, message):
    with pytest.raises(ValueError, match=message):
        window_starts(*arguments)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 100), st.floats(0, 0.49))
def test_tags_are_the_classes_above_the_share(gland, presence):
    mask = np.full(100, 2, dtype=np.uint8)
    mask[:gland] = 1
    tags = presence_tags(mask.reshape(10, 10), 2, presence=presence)
    assert tags == [int(gland > 100 * presence), int(100 - gland > 100 * presence)]
    assert any(tags)


def test_a_share_of_exactly_the_threshold_is_absent():
    mask = np.full(100, 2)
    mask[:5] = 1
    assert presence_tags(mask, 2, presence=0.05) == [0, 1]
    mask[5] = 1
    assert presence_tags(mask, 2, presence=0.05) == [1, 1]


def test_pixels_without_annotation_do_not_count():
    assert presence_tags(np.array([0] * 90 + [1] * 6 + [2] * 4), 2, presence=0.4) == [1, 0]
    assert presence_tags(np.zeros((4, 4), dtype=np.uint8), 2) == [0, 0]
    assert presence_tags(np.array([1, 2, 3]), 3, presence=0.3) == [1, 1, 1]


@pytest.mark.parametrize("presence", [-0.1, 0.5, 1.0])
def test_a_share_that_could_leave_a_patch_without_tag(presence):
    with pytest.raises(ValueError, match=r"from 0 to below 1/2 .*got"):
        presence_tags(np.ones(4), 2, presence=presence)


def test_a_mask_with_more_classes():
    with pytest.raises(ValueError, match="values from 0 to 2, got 3"):
        presence_tags(np.array([1, 3]), 2)


def test_white_pixels_are_those_of_hsv():
    pixels = np.random.default_rng(0).integers(215, 256, (3, 20, 20)).astype(np.uint8)
    expected = np.zeros((20, 20), dtype=bool)
    for x in range(20):
        for y in range(20):
            _, saturation, value = colorsys.rgb_to_hsv(*(pixels[:, x, y] / 255))
            expected[x, y] = saturation < 0.05 and value > 0.9
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(white_pixels(pixels), expected)


def test_white_patches_exceed_the_share():
    pixels = np.full((3, 10, 10), 250, dtype=np.uint8)
    assert is_white_patch(pixels)
    assert not is_white_patch(pixels, share=1.0)
    pixels[:, :2] = 100  # gray, but dark
    assert not is_white_patch(pixels)
    pixels[:, 1] = 250
    assert is_white_patch(pixels)


def test_black_and_gray_are_not_white():
    assert not is_white_patch(np.zeros((3, 4, 4), dtype=np.uint8))
    assert not is_white_patch(np.full((3, 4, 4), 200, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"shape \(3, x, y\), got \(1, 4, 4\)"):
        is_white_patch(np.zeros((1, 4, 4)))


def test_contradictions_need_overlap_and_no_common_class():
    labels = [[1, 0], [0, 1], [1, 1], [0, 1]]
    shapes = [(10, 10)] * 4
    assert contradicting_pairs([(0, 0), (5, 5), (5, 0), (0, 5)], shapes, labels) == [(0, 1), (0, 3)]
    assert contradicting_pairs([(0, 0), (9, 0), (0, 10), (50, 50)], shapes, labels) == []
    assert contradicting_pairs([(0, 0)], [(10, 10)], [[1, 0]]) == []
    assert contradicting_pairs([], [], []) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_tags_of_a_mask_never_contradict_each_other(seed):
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((40, 40)).cumsum(axis=0) < rng.uniform(0, 20, 40), 1, 2)
    origins = patch_origins(mask.shape, 16, 8)
    labels = [presence_tags(mask[x : x + 16, y : y + 16], 2) for x, y in origins]
    assert contradicting_pairs(origins, [(16, 16)] * len(origins), labels) == []
