# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The quality of a map before any threshold: ranking of pixels and of images, and Dice against the threshold.

A function here that picks a threshold reads reference masks.  Its name begins with ``oracle_`` and it is for analysis
only.  Thresholds that need no masks live in ``refinement``.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.utils import convert_to_numpy

from monai_wsss.metrics.segmentation import PixelCounts, dice_score

__all__ = ["SWEEP_THRESHOLDS", "oracle_threshold", "pixel_auroc", "presence_auroc", "sweep_counts", "sweep_dice"]

SWEEP_THRESHOLDS = np.arange(100) / 100
"""0.00, 0.01, ..., 0.99: the thresholds at which Dice is measured on a score map."""


def pixel_auroc(score_map: torch.Tensor | np.ndarray, reference: torch.Tensor | np.ndarray) -> float | None:
    """Give the probability that a lesion pixel scores above a background pixel of the same image.

    This is the area under the ROC curve of the map as a pixel classifier, by the exact rank formula; ties count one
    half.  It needs no threshold and no normalization.  It tells a map that looks at the lesion from a map that found
    the class by a shortcut.

    Args:
        score_map: ``(*S)``, any real scores.
        reference: bool or 0/1 mask ``(*S)``.

    Returns:
        The area, in [0, 1]; None where the mask is empty or full, since there is nothing to rank.

    Raises:
        ValueError: the shapes differ, or a score is not finite.

    Example:
        >>> pixel_auroc(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0, 1], [1, 0]]))
        1.0
    """
    scores, mask = _scores_and_mask(score_map, reference)
    inside, outside = scores[mask], np.sort(scores[~mask])
    if not (inside.size and outside.size):
        return None
    below = np.searchsorted(outside, inside, side="left").sum(dtype=np.int64)
    below_or_equal = np.searchsorted(outside, inside, side="right").sum(dtype=np.int64)
    return float((below + below_or_equal) / 2 / inside.size / outside.size)


def presence_auroc(
    scores: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray, *, weights: np.ndarray | None = None
) -> np.ndarray:
    """Give the area under the ROC curve of image-level scores, for one or many weightings of the images at once.

    The rank formula counts ties one half.  A weighting says how often each image was drawn, so one call covers a whole
    bootstrap.

    Args:
        scores: ``(N,)``, finite.
        labels: ``(N,)``, 0 or 1.
        weights: ``(R, N)`` non-negative; ``None`` counts every image once.

    Returns:
        ``(R,)``, NaN where a weighting holds no positive or no negative image; ``(1,)`` without ``weights``.

    Raises:
        ValueError: the shapes differ, or a score is not finite.

    Example:
        >>> presence_auroc(np.array([0.9, 0.2, 0.6, 0.6]), np.array([1, 0, 1, 0])).tolist()
        [0.875]
    """
    values, positive = _scores_and_mask(scores, labels)
    order = np.argsort(values, kind="stable")
    values, positive = values[order], positive[order]
    drawn = np.ones((1, len(values))) if weights is None else np.asarray(weights, dtype=np.float64)[:, order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, dtype=np.int64)
    if not starts.size:
        return np.full(len(drawn), np.nan)
    positives = np.add.reduceat(drawn * positive, starts, axis=1)
    negatives = np.add.reduceat(drawn * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(1) * negatives.sum(1)
    return np.divide((positives * below).sum(1), pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)


def sweep_counts(
    score_map: torch.Tensor | np.ndarray, reference: torch.Tensor | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count true and false positives of ``score_map > t`` for all :data:`SWEEP_THRESHOLDS`, from one histogram.

    Args:
        score_map: ``(*S)``, a score map in [0, 1].
        reference: bool or 0/1 mask ``(*S)``.

    Returns:
        Two int64 arrays ``(T,)``; they add up over slices, subjects and the set.

    Raises:
        ValueError: the shapes differ, or a score lies outside of [0, 1].

    Example:
        >>> true_positives, false_positives = sweep_counts(np.array([0.3, 0.9]), np.array([0, 1]))
        >>> int(true_positives[50]), int(false_positives[50]), int(false_positives[20])
        (1, 0, 1)
    """
    scores, mask = _scores_and_mask(score_map, reference)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(
            f"Expected `score_map` in [0, 1], got values from {scores.min():g} to {scores.max():g}: "
            "normalize the map before it is swept."
        )
    # Thresholds in the map's precision, as in `score_map > 0.1`.
    passed = np.searchsorted(SWEEP_THRESHOLDS.astype(scores.dtype), scores, side="left")
    bins = len(SWEEP_THRESHOLDS) + 1
    inside, outside = (np.bincount(passed[select], minlength=bins) for select in (mask, ~mask))
    return inside[::-1].cumsum()[::-1][1:], outside[::-1].cumsum()[::-1][1:]


def sweep_dice(true_positives: np.ndarray, false_positives: np.ndarray, reference_pixels: np.ndarray) -> np.ndarray:
    """Compute Dice at every threshold from the counts of :func:`sweep_counts`, summed over the pooled cases.

    Args:
        true_positives: ``(..., T)``.
        false_positives: ``(..., T)``.
        reference_pixels: ``(...)``, pixels of the class in the reference.

    Returns:
        ``(..., T)``, in [0, 1], by the same empty rule as every Dice.

    Example:
        >>> sweep_dice(np.array([2, 1]), np.array([2, 0]), np.array(2)).round(3).tolist()
        [0.667, 0.667]
    """
    missed = np.asarray(reference_pixels)[..., None] - true_positives
    return dice_score(PixelCounts(true_positives, false_positives, missed, np.zeros_like(missed)))


def oracle_threshold(dice_curve: np.ndarray) -> tuple[float, float]:
    """Give the threshold of :data:`SWEEP_THRESHOLDS` with the highest Dice: chosen on reference masks, analysis only.

    Args:
        dice_curve: ``(T,)``, finite.

    Returns:
        The threshold and its Dice; the lowest threshold among equals.

    Raises:
        ValueError: the curve has another length.

    Example:
        >>> oracle_threshold(np.where(SWEEP_THRESHOLDS == 0.3, 0.8, 0.1))
        (0.3, 0.8)
    """
    if dice_curve.shape != SWEEP_THRESHOLDS.shape:
        raise ValueError(f"Expected `dice_curve` of shape {SWEEP_THRESHOLDS.shape}, got {dice_curve.shape}.")
    best = int(np.argmax(dice_curve))
    return float(SWEEP_THRESHOLDS[best]), float(dice_curve[best])


def _scores_and_mask(
    scores: torch.Tensor | np.ndarray, mask: torch.Tensor | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flatten both: the scores as finite floats, the mask as bool."""
    values, selected = convert_to_numpy(scores), convert_to_numpy(mask)
    if values.shape != selected.shape:
        raise ValueError(f"Expected scores and reference of one shape, got {values.shape} and {selected.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("Expected finite scores, got NaN or infinity: look at the network's raw maps.")
    if values.dtype == np.float16 or not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    return values.ravel(), selected.ravel().astype(bool)
