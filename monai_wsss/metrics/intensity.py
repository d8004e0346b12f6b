# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""How intensities are distributed, and how far two distributions are apart: does a converted image look healthy?

CoinGAN shows probability mass functions (PMFs), normalized histograms of 256 bins, of images before and after their
conversion.  The Wasserstein-1 distance to the PMF of healthy images puts a number to it: it should shrink.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import convert_to_numpy

__all__ = ["intensity_pmf", "pmf_distance"]


def intensity_pmf(
    image: torch.Tensor | np.ndarray, *, bins: int = 256, value_range: Sequence[float] = (-1.0, 1.0)
) -> np.ndarray:
    """Give the share of the pixels of an image, over all channels, in each of equally wide bins.

    Args:
        image: any shape, at least one finite value.  Values outside of the range count for the nearest bin; those that
            are not finite are left out.
        bins: number of bins.
        value_range: lower end of the first bin and upper end of the last.

    Returns:
        (bins,) float64, which sum to 1.

    Raises:
        ValueError: no finite value, no bin, or an empty range.

    Example:
        >>> intensity_pmf(np.array([-1.0, -0.9, 0.9, 3.0]), bins=4).tolist()
        [0.5, 0.0, 0.0, 0.5]
    """
    low, high = (float(value) for value in value_range)
    if bins < 1 or not low < high:
        raise ValueError(f"Expected `bins` >= 1 and a rising `value_range`, got {bins} and {tuple(value_range)}.")
    values = convert_to_numpy(image).astype(np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError(f"Expected an image with at least one finite value, got {tuple(np.shape(image))}.")
    places = np.floor((values - low) / (high - low) * bins).clip(0, bins - 1).astype(int)
    return np.bincount(places, minlength=bins) / values.size


def pmf_distance(
    one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, *, value_range: Sequence[float] = (-1, 1)
) -> float:
    """Compute the Wasserstein-1 distance of two PMFs: how far, on average, intensity has to be moved.

    Args:
        one: (bins,), sums to 1.
        other: (bins,), alike.
        value_range: of the bins, whose unit the distance has.

    Raises:
        ValueError: other shapes, or sums other than 1.

    Example:
        >>> pmf_distance([0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0])
        0.5
    """
    first, second = (np.asarray(pmf, dtype=np.float64) for pmf in (one, other))
    if first.ndim != 1 or first.shape != second.shape or not np.allclose((first.sum(), second.sum()), 1):
        raise ValueError(
            f"Expected two PMFs of one shape (bins,) that sum to 1, got shapes {first.shape} and {second.shape} and "
            f"sums {first.sum():g} and {second.sum():g}."
        )
    low, high = (float(value) for value in value_range)
    return float(np.abs(np.cumsum(first - second)).sum() * (high - low) / len(first))
