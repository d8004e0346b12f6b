# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A metric as a function of how often each subject was drawn: once each gives its value, at random its interval.

Subjects are the unit: images of one subject resemble one another, so resampling images would give intervals that are
too narrow.  Weights ``(R, S)`` say how often each of S subjects was drawn in each of R samples.  All R samples are
computed at once, and pooled metrics follow from the counts of the drawn subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from monai_wsss.metrics.cam_quality import presence_auroc
from monai_wsss.metrics.segmentation import PixelCounts

__all__ = [
    "Estimate",
    "Interval",
    "bootstrap_interval",
    "bootstrap_weights",
    "mean_of_estimates",
    "pooled_estimate",
    "presence_estimate",
    "subject_mean_estimate",
    "sum_ratio_estimate",
]

_BLOCK = 4_000_000
"""The presence ranking holds at most so many numbers in one array."""


@dataclass(frozen=True)
class Estimate:
    """A metric of the set.

    Attributes:
        function: weights ``(R, S)`` to values ``(R,)``, NaN where undefined.
        members: which of the S subjects enter it at all, bool ``(S,)``.
        spread: standard deviation over the subjects (divisor n - 1), where it is a mean over two or more of them.
    """

    function: Callable[[np.ndarray], np.ndarray]
    members: np.ndarray
    spread: float | None = None


@dataclass(frozen=True)
class Interval:
    """Value and 95 % bootstrap interval of a metric.

    Attributes:
        mean: the metric on the set as it is.
        low: 2.5th percentile of the bootstrap samples.
        high: 97.5th percentile.
        undefined: how many bootstrap samples had no value and were left out.
    """

    mean: float
    low: float
    high: float
    undefined: int


def bootstrap_weights(subjects: int, *, samples: int, seed: int) -> np.ndarray:
    """Draw how often each subject is in each bootstrap sample: ``(samples, subjects)``; rows sum to ``subjects``.

    Example:
        >>> bootstrap_weights(3, samples=2, seed=0).sum(axis=1).tolist()
        [3.0, 3.0]
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(subjects, np.full(subjects, 1 / subjects), size=samples).astype(np.float64)


def bootstrap_interval(estimate: Estimate, weights: np.ndarray) -> Interval | None:
    """Give value and percentile interval of a metric, or None where the metric is undefined on the set.

    Args:
        estimate: the metric.
        weights: ``(R, S)`` from :func:`bootstrap_weights`.

    Example:
        >>> estimate = subject_mean_estimate(np.array([0.5, 1.0, np.nan]))
        >>> bootstrap_interval(estimate, np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])).mean
        0.75
    """
    value = float(estimate.function(np.ones((1, weights.shape[1])))[0])
    if np.isnan(value):
        return None
    drawn = estimate.function(weights)
    defined = drawn[~np.isnan(drawn)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined.size else (value, value)
    return Interval(value, float(low), float(high), undefined=drawn.size - defined.size)


def sum_ratio_estimate(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """Divide the sums over subjects of ``numerator (S,)`` and ``denominator (S,)``, e.g. clean by healthy images."""

    def function(weights: np.ndarray) -> np.ndarray:
        above, below = weights @ numerator, weights @ denominator
        return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)

    return Estimate(function, denominator > 0)


def subject_mean_estimate(values: np.ndarray) -> Estimate:
    """Average ``values (S,)`` over the subjects; subjects with NaN do not enter."""
    defined = ~np.isnan(values)
    estimate = sum_ratio_estimate(np.where(defined, values, 0.0), defined.astype(np.float64))
    spread = float(np.std(values[defined], ddof=1)) if np.count_nonzero(defined) > 1 else None
    return replace(estimate, spread=spread)


def pooled_estimate(counts: np.ndarray, metric: Callable[[PixelCounts], np.ndarray]) -> Estimate:
    """Compute a metric of the pixel counts, summed over the drawn subjects.

    Args:
        counts: ``(S, 4, K+1)``: tp, fp, fn, tn per subject, zeros where no pixel truth is known.
        metric: counts of shape ``(R, K+1)`` to values ``(R,)``.
    """

    def function(weights: np.ndarray) -> np.ndarray:
        pooled = np.tensordot(weights, counts, axes=1)
        values = metric(PixelCounts(*np.moveaxis(pooled, 1, 0)))
        return np.where(pooled.any(axis=(1, 2)), values, np.nan)

    return Estimate(function, np.asarray(counts.any(axis=(1, 2))))


def presence_estimate(scores: np.ndarray, labels: np.ndarray, subject: np.ndarray, *, num_subjects: int) -> Estimate:
    """Compute the area under the ROC curve of image-level scores.

    Args:
        scores: ``(N,)`` of the images that have one.
        labels: ``(N,)``, 0 or 1.
        subject: ``(N,)``, index of each image's subject.
        num_subjects: S.
    """

    def function(weights: np.ndarray) -> np.ndarray:
        step = max(1, _BLOCK // max(1, len(scores)))
        starts = range(0, len(weights), step)
        return np.concatenate(
            [presence_auroc(scores, labels, weights=weights[i : i + step][:, subject]) for i in starts]
        )

    return Estimate(function, np.isin(np.arange(num_subjects), subject))


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Average one metric over classes; a class without a value in a sample does not enter there."""
    if len(estimates) == 1:
        return estimates[0]

    def function(weights: np.ndarray) -> np.ndarray:
        values = np.stack([estimate.function(weights) for estimate in estimates])
        defined = ~np.isnan(values)
        total, number = np.where(defined, values, 0.0).sum(0), defined.sum(0)
        return np.divide(total, number, out=np.full(len(weights), np.nan), where=number > 0)

    return Estimate(function, np.asarray(np.any([estimate.members for estimate in estimates], axis=0)))
