# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Intensity statistics of a subject: mean and standard deviation of the foreground.

In gray images the foreground is the voxels above the mean of the whole volume: roughly the body without the air around
it, found without a mask.  The slices of a subject are pooled, so that a slice can later be normalized like its volume:
a bright slice stays brighter than a dim one.  In images of stained sections the background is bright, so the foreground
is the tissue, which is darker than glass.

``prepare`` writes these numbers into the datalist, and the normalization transform uses them.  For an image without
them the transform applies the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["GLASS", "USUAL_STAIN", "foreground_statistics", "tissue_statistics"]

_SMALLEST_STD = 1e-6

GLASS = 235.0
"""A pixel of a stained section is bare glass if its mean over the channels, 0 to 255, is at least this."""

USUAL_STAIN = np.array([189.5, 106.0, 188.3]), np.array([41.0, 45.7, 31.4])
"""Mean and std of the tissue (red, green, blue; 0 to 255), averaged over the 92 GlaS images of five patients."""


def _channel_sums(slices: Sequence[np.ndarray], mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count and sum, per channel, the values strictly above ``mean`` (C,)."""
    count, total = np.zeros_like(mean), np.zeros_like(mean)
    for values in slices:
        for channel, threshold in enumerate(mean):
            foreground = values[channel][values[channel] > threshold]
            count[channel] += foreground.size
            total[channel] += foreground.sum(dtype=np.float64)
    return count, total


def _squared_deviations(slices: Sequence[np.ndarray], threshold: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Sum, per channel, the squared distances to ``center`` (C,) of the values strictly above ``threshold`` (C,)."""
    total = np.zeros_like(center)
    for values in slices:
        for channel in range(len(center)):
            foreground = values[channel][values[channel] > threshold[channel]].astype(np.float64)
            total[channel] += np.square(foreground - center[channel]).sum()
    return total


def foreground_statistics(volume: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Measure the mean and population standard deviation of the foreground, per channel.

    The foreground is the voxels strictly above the mean of the whole volume.  A constant channel has no such voxel; its
    mean is the constant.  A standard deviation below 1e-6 becomes 1, so that dividing by it is safe.

    Args:
        volume: one array (C, *S), or a sequence of arrays (C, *S), which are pooled: the slices of a subject, whose
            spatial shapes may differ.

    Returns:
        mean (C,) and standard deviation (C,), both float64.

    Raises:
        ValueError: there are no values, or the arrays differ in their number of channels.

    Example:
        >>> import numpy as np
        >>> mean, std = foreground_statistics(np.array([[[0.0, 0.0], [4.0, 8.0]]]))  # mean 3, so 4 and 8 count
        >>> mean.tolist(), std.tolist()
        ([6.0], [2.0])
    """
    slices = [volume] if isinstance(volume, np.ndarray) else list(volume)
    channels = {values.shape[0] for values in slices}
    if len(channels) != 1 or any(values.size == 0 for values in slices):
        shapes = [values.shape for values in slices]
        raise ValueError(f"Expected `volume` to hold values and one number of channels, got arrays of shape {shapes}.")
    size = sum(values[0].size for values in slices)
    whole_mean = sum(values.reshape(values.shape[0], -1).sum(axis=1, dtype=np.float64) for values in slices) / size
    count, total = _channel_sums(slices, whole_mean)
    mean = np.where(count > 0, total / np.maximum(count, 1), whole_mean)
    variance = _squared_deviations(slices, whole_mean, mean) / np.maximum(count, 1)
    std = np.sqrt(variance)
    return mean, np.where(std < _SMALLEST_STD, 1.0, std)


def tissue_statistics(images: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Measure the mean and population standard deviation of the tissue in stained sections, per channel.

    The tissue is the pixels whose mean over the channels is below :data:`GLASS`; the rest is bare glass.  If no image
    holds tissue, all pixels are measured.  A standard deviation below 1e-6 becomes 1.

    Args:
        images: one image (C, *S) from 0 to 255, or a sequence of images, which are pooled; their spatial shapes may
            differ.

    Returns:
        mean (C,) and standard deviation (C,), both float64.

    Example:
        >>> image = np.array([[[100.0, 140.0, 250.0]], [[50.0, 70.0, 250.0]], [[90.0, 90.0, 250.0]]])
        >>> mean, std = tissue_statistics(image)
        >>> mean.tolist(), std.tolist()
        ([120.0, 60.0, 90.0], [20.0, 10.0, 1.0])
    """
    single = [images] if isinstance(images, np.ndarray) else list(images)
    pixels = [values.reshape(values.shape[0], -1) for values in single]
    tissue = [values[:, values.mean(axis=0, dtype=np.float64) < GLASS] for values in pixels]
    chosen = tissue if any(values.size for values in tissue) else pixels
    count = sum(values.shape[1] for values in chosen)
    mean = np.sum([values.sum(axis=1, dtype=np.float64) for values in chosen], axis=0) / count
    squares = [np.square(values - mean[:, None]).sum(axis=1) for values in chosen]
    std = np.sqrt(np.sum(squares, axis=0) / count)
    return mean, np.where(std < _SMALLEST_STD, 1.0, std)
