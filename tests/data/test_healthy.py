# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Healthy images: even squares at the border, tissue without nuclei, and the sharpness of both."""

from __future__ import annotations

import numpy as np
import pytest

from monai_wsss.data.healthy import (
    background_windows,
    blur,
    choose_background,
    healthy_tissue,
    resample_like_crop,
    resize_whole,
)


def skin(seed: int = 0) -> np.ndarray:
    """Skin of 60 x 40 pixels with little texture."""
    return np.random.default_rng(seed).normal(200, 4, (3, 60, 40))


def test_windows_lie_at_the_border_inside_of_the_image():
    windows = background_windows((60, 40), 12)
    assert len(windows) == 8
    for first, second in windows:
        assert first.start >= 0
        assert first.stop <= 60
        assert second.start >= 0
        assert second.stop <= 40
        assert first.start in (0, 48) or second.start in (0, 28)


def test_the_crop_avoids_a_lesion_that_it_sees_by_its_colors():
    image = skin()
    image[:, 30:, :] = 70  # half of the image, darker than the median
    image[:, :30, :20] += np.random.default_rng(1).normal(0, 60, (3, 30, 20))  # uneven
    window = choose_background(image, 12)
    assert window is not None
    assert window[0].stop <= 30
    assert window[1].start >= 14


def test_no_even_square_gives_no_crop():
    image = np.random.default_rng(0).normal(200, 90, (3, 60, 40))
    assert choose_background(image, 12) is None


def test_dark_corners_give_no_crop():
    image = skin()
    for column in (slice(0, 12), slice(48, 60)):
        image[:, column, :] = 10  # left and right
    window = choose_background(image, 12)
    assert window is not None
    assert (window[0].start, window[1].start) in ((24, 0), (24, 28))


def test_a_mask_keeps_crops_away_from_a_pale_lesion():
    image, lesion = skin(), np.ones((60, 40), dtype=bool)
    lesion[48:, 28:] = False
    window = choose_background(image, 12, lesion)
    assert window == (slice(48, 60), slice(28, 40))
    assert choose_background(image, 12, np.ones((60, 40), dtype=bool)) is None


def nuclei() -> tuple[np.ndarray, np.ndarray]:
    """Tissue with round nuclei of radius 5, and their mask."""
    x, y = np.mgrid[:80, :80]
    mask = np.zeros((80, 80), dtype=bool)
    for center in ((20, 20), (55, 30), (40, 60)):
        mask |= np.hypot(x - center[0], y - center[1]) <= 5
    tissue = np.random.default_rng(0).integers(190, 230, (3, 80, 80)).astype(np.uint8)
    tissue[:, mask] = 70
    return tissue, mask


def test_erosion_of_the_density_removes_nuclei_and_erosion_of_colors_grows_them():
    tissue, mask = nuclei()
    density, paper = healthy_tissue(tissue, sigma=0), healthy_tissue(tissue, how="paper", sigma=0)
    assert density.dtype == tissue.dtype
    assert density[:, mask].min() > 180, "no nucleus is left"
    assert (paper[0] == 70).sum() > 3 * mask.sum(), "nuclei have grown"


def test_erosion_of_the_optical_density_is_dilation_of_the_colors():
    from scipy.ndimage import grey_erosion

    tissue, _ = nuclei()
    places = np.arange(-3, 4)
    disc = (np.square(places[:, None]) + np.square(places) <= 9)[None]
    density = -np.log((tissue + 1.0) / 256)
    eroded = 256 * np.exp(-grey_erosion(density, footprint=disc, mode="nearest")) - 1
    np.testing.assert_allclose(healthy_tissue(tissue, radius=3, sigma=0), eroded, atol=1e-6)


def spread(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def test_blur_and_resampling_take_detail_and_keep_the_mean():
    sharp = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8)
    for changed in (blur(sharp, 2.0), resample_like_crop(sharp, 20)):
        assert changed.shape == sharp.shape
        assert changed.dtype == sharp.dtype
        assert spread(changed) < 0.3 * spread(sharp)
        assert changed.mean() == pytest.approx(sharp.mean(), abs=2)
    assert blur(sharp, 0) is sharp
    assert resample_like_crop(sharp, 64) is sharp


def test_masks_are_resized_linearly_and_cut_at_half():
    mask = np.zeros((1, 8, 8), dtype=np.uint8)
    mask[:, :4] = 1
    image, small = resize_whole(np.zeros((3, 8, 8), dtype=np.uint8), mask, 4)
    assert image.shape == (3, 4, 4)
    assert small is not None
    assert small[0, :, 0].tolist() == [1, 1, 0, 0]
    assert resize_whole(image, None, 4)[1] is None
