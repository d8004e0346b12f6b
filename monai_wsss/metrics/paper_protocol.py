# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The evaluation of CoinGAN's tables: positive images alone, on the resized grid, in one pooled table of pixels.

Mask and reference are resized bilinearly to the grid and cut at 0.5.  All pixels of all positive images are pooled.
The paper's DSC and JC are averages over two classes, lesion and background.  It does not say so, but prevalence,
sensitivity and specificity rebuild them (``tests/metrics/test_paper_protocol.py``).  The Dice and IoU of the lesion
alone stand beside them.

=============================  =====================================================================================
``paper_dice_macro_pooled``    DSC of the tables: mean Dice of lesion and background
``paper_miou_pooled``          JC of the tables: mean IoU of lesion and background
``paper_dice_pooled``          Dice of the lesion alone
``paper_iou_pooled``           IoU of the lesion alone
``paper_accuracy``             ACC
``paper_specificity``          SP
``paper_sensitivity``          SE
``paper_assd_px``              ASD, both directions pooled, mean over the images, in pixels of the grid
=============================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monai_wsss._labels import IGNORED
from monai_wsss._resize import resize_linear
from monai_wsss.metrics import segmentation
from monai_wsss.metrics.bootstrap import Estimate, pooled_estimate, sum_ratio_estimate
from monai_wsss.metrics.estimates import CaseArrays
from monai_wsss.metrics.segmentation import PixelCounts, count_pixels, where_referenced
from monai_wsss.metrics.surface import surface_distances

__all__ = [
    "PAPER_GRID",
    "counts_from_rates",
    "paper_estimates",
    "paper_note",
    "paper_row",
    "prevalence_from_rates",
    "resize_binary",
]

PAPER_GRID = (224, 224)
"""The grid of the paper, given for QaTa-COV19 alone."""

_LESION = 1
_POOLED = {
    "paper_dice_macro_pooled": segmentation.dice_macro_pooled,
    "paper_miou_pooled": segmentation.miou_pooled,
    "paper_dice_pooled": lambda counts: where_referenced(segmentation.dice_score(counts), counts)[..., _LESION],
    "paper_iou_pooled": lambda counts: where_referenced(segmentation.iou_score(counts), counts)[..., _LESION],
    "paper_accuracy": lambda counts: segmentation.accuracy(counts)[..., _LESION],
    "paper_sensitivity": lambda counts: segmentation.sensitivity(counts)[..., _LESION],
    "paper_specificity": lambda counts: segmentation.specificity(counts)[..., _LESION],
}


def resize_binary(mask: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Resize a mask bilinearly, without a low-pass, and cut it at 0.5.

    Args:
        mask: (*S) bool, S two-dimensional.
        grid: the new shape.

    Returns:
        (*grid) bool; the mask itself if it has that shape.

    Example:
        >>> resize_binary(np.array([[True, False]]), (1, 4)).tolist()
        [[True, True, False, False]]
    """
    if mask.shape == tuple(grid):
        return mask
    maps = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    cut: np.ndarray = resize_linear(maps, grid)[0, 0].numpy() >= 0.5
    return cut


def paper_row(prediction: np.ndarray, reference: np.ndarray, grid: Sequence[int]) -> dict[str, Any]:
    """Count the pixels of a positive image on the grid and measure the distance of the surfaces there.

    All classes count as lesion.  Ignored pixels count as background on both sides before the image is resized.

    Args:
        prediction: label map (*S).
        reference: label map (*S), 255 where ignored.
        grid: the resized grid.

    Returns:
        ``paper_tp``, ``paper_fp``, ``paper_fn``, ``paper_tn`` and, where both masks hold a lesion, ``paper_assd``.

    Raises:
        ValueError: the image is not two-dimensional.

    Example:
        >>> mask = np.eye(4)
        >>> row = paper_row(mask, mask, (4, 4))
        >>> row["paper_tp"], row["paper_tn"], row["paper_assd"]
        (4, 12, 0.0)
    """
    if prediction.ndim != 2:
        raise ValueError(
            f"Expected 2D images for the paper's protocol, got {prediction.ndim} axes: evaluate slices, or leave the "
            "protocol out."
        )
    valid = reference != IGNORED
    found = resize_binary((prediction > 0) & valid, grid)
    wanted = resize_binary((reference > 0) & valid, grid)
    counts = count_pixels(found, wanted)
    row: dict[str, Any] = {
        f"paper_{name}": int(values[_LESION]) for name, values in zip(PixelCounts._fields, counts, strict=True)
    }
    distances = surface_distances(found, wanted)
    return row if distances is None else {**row, "paper_assd": distances.assd}


def _counts(arrays: CaseArrays) -> np.ndarray:
    """Sum the counts on the grid per subject, (S, 4, 2); the background's are those of the lesion in reverse order."""
    of_lesion = np.stack([arrays.column(f"paper_{name}") for name in PixelCounts._fields], axis=1)
    return arrays.subject_sum(np.stack([of_lesion[:, ::-1], of_lesion], axis=2))


def paper_estimates(arrays: CaseArrays) -> dict[str, Estimate]:
    """Give the metrics of the tables by their names; the distance is averaged over images, not over subjects."""
    counts, distance = _counts(arrays), arrays.column("paper_assd")
    measured = arrays.subject_sum((~np.isnan(distance)).astype(np.float64))
    estimates = {name: pooled_estimate(counts, metric) for name, metric in _POOLED.items()}
    return {**estimates, "paper_assd_px": sum_ratio_estimate(arrays.subject_sum(distance), measured)}


def paper_note(arrays: CaseArrays, grid: Sequence[int]) -> str:
    """Say what the protocol covers: how many images, which grid, how much of it is lesion, and what it leaves out."""
    counts = PixelCounts(*_counts(arrays).sum(axis=0))
    wanted, size = counts.tp + counts.fn, np.sum(counts, axis=0)
    images = int(np.count_nonzero(~np.isnan(arrays.column("paper_tp"))))
    measured = int(np.count_nonzero(~np.isnan(arrays.column("paper_assd"))))
    healthy = int(np.nansum(arrays.column("healthy")))
    others = len(arrays.rows) - images - healthy
    share = 100 * float(wanted[_LESION]) / max(1.0, float(size[_LESION]))
    return (
        f"The paper_ metrics cover the {images} images with a finding in label and reference alone, resized to "
        f"{' x '.join(map(str, grid))} pixels, {share:.2f} % of which are lesion. {healthy} healthy images are left "
        f"out, whose false alarms do not show, and {others} images whose reference is unknown or contradicts the label."
        " An empty mask reaches nearly half of paper_dice_macro_pooled. paper_assd_px leaves out "
        f"{images - measured} images without a surface."
    )


def prevalence_from_rates(accuracy: float, sensitivity: float, specificity: float) -> float:
    """Solve ACC = p SE + (1 - p) SP for the share p of lesion pixels; NaN where SE equals SP.

    The smaller the difference of SE and SP, the more the rounding of printed numbers counts.

    Args:
        accuracy: ACC, 0 to 1.
        sensitivity: SE, 0 to 1.
        specificity: SP, 0 to 1.

    Example:
        >>> round(prevalence_from_rates(0.8211, 0.7720, 0.8290), 4)
        0.1386
    """
    difference = specificity - sensitivity
    return float("nan") if difference == 0 else (specificity - accuracy) / difference


def counts_from_rates(prevalence: float, sensitivity: float, specificity: float) -> PixelCounts:
    """Give the pooled table of pixels, as shares of all pixels, that follows from printed rates.

    Args:
        prevalence: share of lesion pixels, 0 to 1.
        sensitivity: SE, 0 to 1.
        specificity: SP, 0 to 1.

    Returns:
        Counts of shape (2,), background and lesion, for the metrics of this room.

    Example:
        >>> counts = counts_from_rates(0.0389, 0.7214, 0.9963)
        >>> round(float(segmentation.dice_macro_pooled(counts)), 3), round(float(segmentation.dice_score(counts)[1]), 3)
        (0.894, 0.796)
    """
    tp, tn = prevalence * sensitivity, (1 - prevalence) * specificity
    fn, fp = prevalence - tp, 1 - prevalence - tn
    return PixelCounts(np.array([tn, tp]), np.array([fn, fp]), np.array([fp, fn]), np.array([tp, tn]))
