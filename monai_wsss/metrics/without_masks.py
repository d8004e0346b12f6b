# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Numbers that image-level labels alone can tell of models, maps and masks: no reference mask is read here.

| number                    | good | question                                                                          |
|---------------------------|------|-----------------------------------------------------------------------------------|
| `blanked_presence`        | high | does the finding vanish where its mask is blanked, and stay where all else is?    |
| `map_distance`            | low  | does the map of a transformed image differ from the transformed map?              |
| `mask_agreement`          | high | do other methods mark the same pixels?                                            |
| `area_under_presence`     | —    | how fast does presence fall (deletion), or rise (insertion), by rank of pixels?   |
| `left_clean`              | high | how many healthy images get no mask?                                              |

Whether such a number follows the true Dice is a question of measurement: :func:`rank_correlation` answers it, and
``docs/results/choosing.md`` tells what it answered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.utils import convert_to_numpy
from scipy.stats import spearmanr

from monai_wsss.metrics.cam_quality import presence_auroc
from monai_wsss.metrics.segmentation import PixelCounts, count_pixels, dice_score

__all__ = [
    "LEAST_MODELS",
    "BlankedPresence",
    "area_under_presence",
    "blanked_presence",
    "left_clean",
    "map_distance",
    "mask_agreement",
    "mask_metrics",
    "rank_correlation",
]

LEAST_MODELS = 3
"""Models from which on a rank correlation is given."""

Array = torch.Tensor | np.ndarray


class BlankedPresence(NamedTuple):
    """What a classifier says of positive images with the found region blanked, and with everything else blanked.

    Attributes:
        auroc: probability that presence is higher where the found region alone is left than where it is blanked.
        accuracy: share of right answers: absent where the region is blanked, present where it alone is left.
        fall: mean probability of the image less that without the region; high is good.
        stay: mean probability of the region alone less that of the image; near 0 or above is good.
        margin: mean probability without a region of the same shape elsewhere, less that without the found one.  A mask
            of the whole image, which the other numbers praise, has 0.  NaN without a control.
    """

    auroc: float
    accuracy: float
    fall: float
    stay: float
    margin: float


def blanked_presence(
    whole: Array, without: Array, alone: Array, label: Array, *, control: Array | None = None
) -> BlankedPresence:
    """Compare a classifier's logits of images, of the same without the found region, and of the region alone.

    Only the classes that an image has take part: nothing has to fall where nothing is.

    Args:
        whole: logits of the images ``(N, K)``.
        without: logits ``(N, K)``, each with the found region of its class blanked.
        alone: logits ``(N, K)``, each with everything but that region blanked.
        label: ``(N, K)``, 0 or 1.
        control: logits ``(N, K)``, each with an equally large region elsewhere blanked.

    Returns:
        The five numbers, NaN where no image has a class.

    Raises:
        ValueError: shapes differ, or a logit that takes part is not finite.

    Example:
        >>> one = np.ones((2, 1))
        >>> blanked_presence(3 * one, -3 * one, 2 * one, one).accuracy
        1.0
        >>> blanked_presence(3 * one, 3 * one, -3 * one, one).auroc  # an empty mask: nothing falls, nothing stays
        0.0
    """
    shown = convert_to_numpy(label) > 0
    parts = [convert_to_numpy(part) for part in (whole, without, alone, *([] if control is None else [control]))]
    if any(part.shape != shown.shape for part in parts):
        raise ValueError(f"Expected logits of the shape of `label`, {shown.shape}, got {[p.shape for p in parts]}.")
    logits = [part[shown].astype(np.float64) for part in parts]
    if not all(np.isfinite(part).all() for part in logits):
        raise ValueError("Expected finite logits, got NaN or infinity: look at the network's raw maps.")
    if not shown.any():
        return BlankedPresence(*[math.nan] * 5)
    of_image, of_rest, of_region, *of_control = logits
    count = len(of_image)
    area = presence_auroc(np.concatenate([of_region, of_rest]), np.repeat([1, 0], count))[0]
    right = np.concatenate([of_rest <= 0, of_region > 0])
    image, rest, region, *elsewhere = (_probability(part).mean() for part in logits)
    margin = elsewhere[0] - rest if of_control else math.nan
    return BlankedPresence(*map(float, (area, right.mean(), image - rest, region - image, margin)))


def map_distance(first: Array, second: Array) -> np.ndarray:
    """Measure how far score maps are apart: the sum of absolute differences over the sum of both.

    Args:
        first: ``(B, K, *S)``, not negative.
        second: of the same shape, not negative.

    Returns:
        ``(B, K)`` float64 in [0, 1]: 0 for equal maps, 1 for maps that share no pixel, NaN where both are zero
        everywhere: an empty map tells nothing.

    Raises:
        ValueError: shapes differ, or a value is negative or not finite.

    Example:
        >>> map_distance(np.array([[[[0.0, 1.0]]]]), np.array([[[[0.5, 0.5]]]])).tolist()
        [[0.5]]
    """
    one, other = (convert_to_numpy(maps).astype(np.float64) for maps in (first, second))
    if one.shape != other.shape or one.ndim < 3:
        raise ValueError(f"Expected two maps of one shape (B, K, *S), got {one.shape} and {other.shape}.")
    if not (np.isfinite(one).all() and np.isfinite(other).all() and (one >= 0).all() and (other >= 0).all()):
        raise ValueError("Expected finite score maps >= 0: normalize raw maps first, e.g. by `MaskRule.score_maps`.")
    axes = tuple(range(2, one.ndim))
    total = (one + other).sum(axis=axes)
    return np.divide(np.abs(one - other).sum(axis=axes), total, out=np.full(total.shape, np.nan), where=total > 0)


def mask_agreement(masks: Sequence[Sequence[Array]], *, num_classes: int = 1) -> np.ndarray:
    """Measure how well the masks of each method agree with those of the others, as mean Dice.

    Take images that were not trained on: methods agree on what they learned by heart.  A class counts in an image where
    one of the two masks has it; two empty masks agree on nothing and are left out.

    Args:
        masks: for each method its masks of the same images: label maps of any shape, 0..K.
        num_classes: K.

    Returns:
        ``(M,)``, for each method the mean over the others; NaN for a single method, or where all masks are empty.

    Raises:
        ValueError: methods with different numbers of masks, or masks of different shapes.

    Example:
        >>> one, other = np.array([0, 1, 1]), np.array([0, 1, 0])
        >>> mask_agreement([[one], [one], [other]]).round(3).tolist()
        [0.833, 0.833, 0.667]
    """
    if len({len(own) for own in masks}) > 1:
        raise ValueError(f"Expected as many masks of each method, got {[len(own) for own in masks]}.")
    pairs = np.full((len(masks), len(masks)), np.nan)
    for i in range(len(masks)):
        for j in range(i):
            found = [_found_dice(a, b, num_classes) for a, b in zip(masks[i], masks[j], strict=True)]
            known = [value for value in found if not math.isnan(value)]
            pairs[i, j] = pairs[j, i] = np.mean(known) if known else np.nan
    return np.array([row[~np.isnan(row)].mean() if not np.isnan(row).all() else np.nan for row in pairs])


def area_under_presence(curve: Array) -> np.ndarray:
    """Integrate presence over the share of pixels that were removed or inserted, by the trapezoid rule.

    Args:
        curve: ``(..., T + 1)`` probabilities at the shares 0, 1/T, …, 1, T >= 1.

    Returns:
        ``(...)`` float64: the area under the curve, in the range of its values.  Low is good where pixels are removed
        from the highest score on, high where they are inserted so (Petsiuk et al., RISE, BMVC 2018).

    Raises:
        ValueError: fewer than two points.

    Example:
        >>> float(area_under_presence(np.array([1.0, 0.0, 0.0])))
        0.25
    """
    values = convert_to_numpy(curve).astype(np.float64)
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(f"Expected `curve` of shape (..., T + 1) with T >= 1, got {values.shape}.")
    middle = (values[..., 1:] + values[..., :-1]) / 2
    return np.asarray(middle.mean(axis=-1))


def left_clean(labels: Sequence[np.ndarray], areas: Sequence[np.ndarray]) -> float:
    """Give the share of the healthy images whose mask is empty.

    Args:
        labels: per image whether it shows each class, (K,).
        areas: per image the share of its pixels, or their number, that the mask gives to each class, (K,).

    Returns:
        The share, in [0, 1]; NaN where no image is healthy.

    Example:
        >>> left_clean([np.array([0]), np.array([0]), np.array([1])], [np.array([0]), np.array([3]), np.array([5])])
        0.5
    """
    clean = [not np.any(area) for label, area in zip(labels, areas, strict=True) if not np.any(label)]
    return float(np.mean(clean)) if clean else math.nan


def mask_metrics(labels: Sequence[np.ndarray], areas: Sequence[np.ndarray]) -> dict[str, float]:
    """Measure masks by image-level labels alone.

    Args:
        labels: per image whether it shows each class, (K,).
        areas: per image the share of its pixels that the mask gives to each class, (K,).

    Returns:
        ``found``, the share of findings that have a mask, and ``area_auroc``, how well areas tell presence: the mean
        over the classes that some images have and others lack.  NaN is what nobody can know.

    Example:
        >>> mask_metrics([np.array([True]), np.array([False])], [np.array([0.0]), np.array([0.0])])
        {'found': 0.0, 'area_auroc': 0.5}
    """
    if not labels:
        return {}
    shown, area = np.array(labels, dtype=bool), np.array(areas)
    values = [float(presence_auroc(one, label)[0]) for one, label in zip(area.T, shown.T, strict=True)]
    known = [value for value in values if math.isfinite(value)]
    return {
        "found": float((area[shown] > 0).mean()) if shown.any() else math.nan,
        "area_auroc": float(np.mean(known)) if known else math.nan,
    }


def rank_correlation(scores: Sequence[float], truths: Sequence[float]) -> float:
    """Correlate the order of models by a score with their order by a truth: Spearman's rank correlation.

    Args:
        scores: one per model; NaN where a model has none, and it is left out.
        truths: one per model, such as its Dice, which reads masks; NaN likewise.

    Returns:
        The correlation, in [-1, 1]; NaN for fewer than :data:`LEAST_MODELS` models, or where either is the same for
        all: that is no order.

    Raises:
        ValueError: different lengths.

    Example:
        >>> rank_correlation([0.1, 0.2, 0.9], [0.3, 0.5, 0.6])
        1.0
    """
    one, other = (np.asarray(values, dtype=np.float64) for values in (scores, truths))
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"Expected one score and one truth per model, got {one.shape} and {other.shape}.")
    known = np.isfinite(one) & np.isfinite(other)
    one, other = one[known], other[known]
    if len(one) < LEAST_MODELS or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return round(float(spearmanr(one, other).statistic), 12)


def _probability(logits: np.ndarray) -> np.ndarray:
    """Give 1 / (1 + exp(-x)) without overflow."""
    half: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits))
    return half


def _found_dice(first: Array, second: Array, num_classes: int) -> float:
    """Average Dice over the classes that one of two masks has; NaN where neither has any."""
    counts: PixelCounts = count_pixels(first, second, num_classes=num_classes)
    found = (counts.tp + counts.fp + counts.fn)[1:] > 0
    return float(dice_score(counts)[1:][found].mean()) if found.any() else math.nan
