# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Healthy images where a set has none: crops of background, and tissue from which dark nuclei were removed.

A discriminator uses any difference between the two kinds of images, such as sharpness.  Crops that were enlarged and
tissue that was blurred are less sharp than whole images, so positive images can be resampled or blurred in the same
way (``match_resampling``).

=================  ================================================================================================
crops              squares at the corners and in the middle of the borders of an image; the most even one is taken
density            stained tissue: erosion of the optical density removes what is dark and small, then a blur
paper              erosion of the colors, as CoinGAN's paper prints it: dark nuclei *grow*, then a blur
=================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion

from monai_wsss.data.crops import dark_corners, resize_image

__all__ = [
    "HEALTHY_TISSUE",
    "background_windows",
    "blur",
    "choose_background",
    "healthy_tissue",
    "resample_like_crop",
    "resize_whole",
]

HEALTHY_TISSUE = ("density", "paper")
"""Ways to make healthy tissue."""

_LARGEST_SPREAD = 0.12
"""A crop is even if its brightness varies by at most this share of its mean."""

_DARK_SHARE = 0.02
"""Largest share of dark corners in a crop."""

_LEAST_BRIGHTNESS = 0.9
"""A crop that is darker than this share of the median brightness of its image may hold the lesion."""

Window = tuple[slice, slice]


def background_windows(shape: Sequence[int], side: int) -> list[Window]:
    """Give the squares at the four corners and in the middle of the four borders of an image.

    Example:
        >>> [(x.start, y.start) for x, y in background_windows((10, 6), 2)]
        [(0, 0), (0, 2), (0, 4), (4, 0), (4, 4), (8, 0), (8, 2), (8, 4)]
    """
    first, second = ((0, (size - side) // 2, size - side) for size in shape)
    places = [(x, y) for x in first for y in second if (x, y) != (first[1], second[1])]
    return [(slice(x, x + side), slice(y, y + side)) for x, y in places]


def choose_background(pixels: np.ndarray, side: int, lesion: np.ndarray | None = None) -> Window | None:
    """Choose the crop of an image that most likely shows healthy skin.

    Without a mask, crops with dark corners and crops that are darker than the image are left out, and the crop whose
    brightness varies least is taken, if it varies little.  With a mask, crops that touch the lesion are left out, and
    uneven ones are not: this reads the mask, so it is a leak that a datalist has to name.

    Args:
        pixels: (C, *S), S two-dimensional.
        side: side of the crop in pixels.
        lesion: mask of the lesion, (*S) bool; None chooses by the colors alone.

    Returns:
        The window; None where no crop is left.

    Example:
        >>> skin = np.random.default_rng(0).normal(200, 30, (3, 40, 30))
        >>> skin[:, -10:, -10:] = 200
        >>> window = choose_background(skin, 10)
        >>> window is not None and (window[0].start, window[1].start)
        (30, 20)
    """
    brightness = pixels.mean(axis=0, dtype=np.float64)
    typical, dark = np.median(brightness), dark_corners(pixels)
    best, least = None, np.inf
    for window in background_windows(brightness.shape, side):
        inside = brightness[window]
        mean = float(inside.mean())
        spread = float(inside.std()) / max(mean, 1.0)
        touches = lesion is not None and bool(lesion[window].any())
        too_dark = mean < _LEAST_BRIGHTNESS * typical or float(dark[window].mean()) > _DARK_SHARE
        uneven = lesion is None and spread > _LARGEST_SPREAD
        if not (touches or too_dark or uneven) and spread < least:
            best, least = window, spread
    return best


def resample_like_crop(pixels: np.ndarray, side: int) -> np.ndarray:
    """Take the detail from an image that a crop of ``side`` pixels lacks once it is enlarged to the image's size.

    Args:
        pixels: (C, *S) of whole numbers, S two-dimensional and square.
        side: side of the crop; from the side of the image on, nothing changes.

    Example:
        >>> image = np.tile(np.array([[[0, 200]]]), (1, 4, 2))
        >>> resample_like_crop(image, 2)[0, 0].tolist()
        [86, 93, 107, 114]
    """
    shape = (pixels.shape[1], pixels.shape[2])
    if side >= min(shape):
        return pixels
    return resize_image(resize_image(pixels, (side, side)), shape)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur an image (C, *S) of whole numbers by a Gaussian of ``sigma`` pixels; 0 changes nothing."""
    if not sigma:
        return pixels
    blurred = gaussian_filter(pixels.astype(np.float64), (0, sigma, sigma), mode="nearest")
    return np.rint(blurred).astype(pixels.dtype)


def _disc(radius: int) -> np.ndarray:
    """Give a disc (1, 2r + 1, 2r + 1) bool."""
    places = np.arange(-radius, radius + 1)
    return (np.square(places[:, None]) + np.square(places) <= radius**2)[None]


def healthy_tissue(pixels: np.ndarray, *, how: str = "density", radius: int = 7, sigma: float = 2.0) -> np.ndarray:
    """Make an image of stained tissue without nuclei from one with nuclei.

    "density" erodes the optical density, which is dilation of the colors, since density falls where colors rise: dark
    spots up to twice the radius across vanish.  "paper" erodes the colors, so that dark spots grow.

    Args:
        pixels: (C, *S) of whole numbers, S two-dimensional.
        how: one of :data:`HEALTHY_TISSUE`.
        radius: radius of the disc in pixels.
        sigma: width of the blur in pixels.

    Example:
        >>> tissue = np.full((3, 31, 31), 220, dtype=np.uint8)
        >>> tissue[:, 13:18, 13:18] = 60
        >>> [int(healthy_tissue(tissue, how=how, radius=4, sigma=0).mean()) for how in HEALTHY_TISSUE]
        [220, 197]
    """
    operation = grey_dilation if how == "density" else grey_erosion
    return blur(operation(pixels, footprint=_disc(radius), mode="nearest"), sigma)


def resize_whole(pixels: np.ndarray, mask: np.ndarray | None, side: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Resize an image (C, *S) and its mask (1, *S) to a square, both bilinearly; the mask is cut at half.

    Example:
        >>> image, mask = resize_whole(np.ones((3, 4, 8)), np.arange(8)[None, None] // 4 * np.ones((1, 4, 8)), 4)
        >>> image.shape, mask[0, 0].tolist()
        ((3, 4, 4), [0, 0, 1, 1])
    """
    shape = (side, side)
    if mask is None:
        return resize_image(pixels, shape), None
    soft = resize_image(np.uint8(255) * (mask > 0).astype(np.uint8), shape)
    return resize_image(pixels, shape), (soft >= 128).astype(np.uint8)
