# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one rule by which intensities are measured: mean and standard deviation over the foreground of a subject.

``prepare`` measures whole subjects with it and writes the numbers into the datalist; the normalization transform uses
those, or applies the same rule to an image that comes without.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["STD_FLOOR", "foreground_statistics"]

STD_FLOOR = 1e-6


def foreground_statistics(volumes: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of each channel over its foreground, all images of a subject together.

    Foreground are the values strictly above the mean of all: the head without the air around it, whether or not the
    skull was stripped and however much air there is.  A constant channel has no foreground: its mean is its value and
    its deviation 1, so that it normalizes to zero.

    Args:
        volumes: the subject's images, each ``(C, *S)``; shapes may differ.

    Returns:
        mean and std, each ``(C,)`` float32.

    Example:
        >>> mean, std = foreground_statistics([np.array([[0.0, 0.0, 2.0, 4.0]])])
        >>> mean.tolist(), std.tolist()
        ([3.0], [1.0])
    """
    flat = np.concatenate([np.asarray(volume, dtype=np.float64).reshape(len(volume), -1) for volume in volumes], axis=1)
    means, deviations = [], []
    for channel in flat:
        foreground = channel[channel > channel.mean()]
        # Rounding leaves a few values "above the mean" of a constant channel.
        constant = foreground.size == 0 or np.ptp(channel) < STD_FLOOR
        means.append(channel.mean() if constant else foreground.mean())
        deviation = 0.0 if constant else foreground.std()
        deviations.append(deviation if deviation > STD_FLOOR else 1.0)
    return np.asarray(means, dtype=np.float32), np.asarray(deviations, dtype=np.float32)
