# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pseudo-labels from seeds: class maps in [0, 1] become a label, or a segmentation map, to train on.

Seeds are the class maps of the classes that the image holds; they have no score for the background.

| function                        | the background is           | spread by            | result               |
|---------------------------------|-----------------------------|----------------------|----------------------|
| :func:`seed_label`              | two thresholds              | nothing              | label, doubt ignored |
| :func:`refined_seed_label`      | two constant scores         | refinement           | label, doubt ignored |
| :func:`propagated_seed_label`   | two constant scores         | affinity, refinement | label, doubt ignored |
| :func:`background_aware_scores` | what a segmenter says (BSP) | refinement           | S^c, K+1 channels    |

Sources: Ru et al., AFA (arXiv:2203.02664) for the two scores and the affinity; Zhu et al., BMP
(arXiv:2308.04949), Eq. 12-13 for the last.  The refinement is along the image, usually pixel-adaptive, and gets only
the maps of classes that some image of the batch holds.  Nothing here reads a pixel mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_wsss._checks import check_choice, check_label, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss._windows import check_pairs
from monai_wsss.refinement.spreading import (
    Refine,
    SpreadRule,
    affinity_label,
    background_scores,
    box_regions,
    constant_label,
    held_classes,
    outside_regions,
)

__all__ = [
    "background_aware_scores",
    "outside_boxes",
    "propagated_seed_label",
    "refined_seed_label",
    "seed_label",
]


def seed_label(
    seeds: torch.Tensor, *, low: float, high: float | None = None, ignore_index: int = IGNORED
) -> torch.Tensor:
    """Label pixels by their highest seed: background up to ``low``, ignored from there up to ``high``.

    Args:
        seeds: (B, K, *S) in [0, 1], zero for classes that the image does not hold.
        low: up to this value a pixel is background.
        high: up to this value it is in doubt; None: as ``low``, so that no pixel is in doubt.
        ignore_index: value of pixels in doubt.

    Returns:
        (B, *S) int64: 0, 1..K, or ``ignore_index``, also where a seed is NaN.

    Raises:
        ValueError: another shape, or ``low`` above ``high``.

    Example:
        >>> seed_label(torch.tensor([[[[0.1, 0.5, 0.9]]]]), low=0.35, high=0.55).tolist()
        [[[0, 255, 1]]]
    """
    check_shape("seeds", seeds, "(B, K, *S)")
    high = low if high is None else high
    _check_scores(low, high)
    highest, winner = float32_or_wider(seeds).max(dim=1)
    label = torch.where(highest > high, winner + 1, ignore_index)
    return torch.where(highest <= low, 0, label)  # NaN, which is neither above nor below, stays in doubt


def refined_seed_label(
    image: torch.Tensor,
    seeds: torch.Tensor,
    label: torch.Tensor,
    refine: Refine,
    *,
    low: float = 0.35,
    high: float = 0.55,
    downscale: float = 2.0,
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Label pixels where a low and a high background score agree, after both were refined along the image (AFA).

    With p(b) = refine(softmax([b; seeds of the image's classes])) and l(b) = argmax p(b), the label of a pixel is
    l(high) if that is a class, background if l(high) and l(low) both are background, and ignored otherwise.  Images
    without any class are background.

    Args:
        image: (B, C, *S), the intensities along which labels spread.
        seeds: (B, K, *S) in [0, 1].
        label: (B, K), 0/1: classes of label 0 take no part.
        refine: ``(image, maps) -> maps`` at the image's size, e.g.
            :class:`~monai_wsss.refinement.PixelAdaptiveRefinement`.
        low: background score that lets seeds through.
        high: background score that holds them back.
        downscale: factor by which image and seeds shrink for the refinement.
        ignore_index: value of pixels in doubt.

    Returns:
        (B, *S) int64: 0, 1..K, or ``ignore_index``.

    Raises:
        ValueError: shapes that do not fit, ``low`` above ``high``, or a factor below 1.

    Example:
        >>> from monai_wsss.refinement import PixelAdaptiveRefinement
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> image[..., 4:] = 1
        >>> refine = PixelAdaptiveRefinement(dilations=(1, 2))
        >>> refined_seed_label(image, image, torch.ones(1, 1), refine)[0, 0].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    _check(image, seeds, label, downscale)
    _check_scores(low, high)
    label = label.to(seeds.device)
    return constant_label(
        image, seeds, label, held_classes(label), SpreadRule(refine, low, high, downscale, ignore_index)
    )


def propagated_seed_label(
    image: torch.Tensor,
    seeds: torch.Tensor,
    label: torch.Tensor,
    affinity: torch.Tensor,
    refine: Refine,
    *,
    grid: Sequence[int],
    radius: int = 8,
    low: float = 0.35,
    high: float = 0.55,
    downscale: float = 2.0,
    boxes: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Label as :func:`refined_seed_label`, but first spread the scores by the affinity of tokens (AFA).

    Args:
        image: (B, C, *S).
        seeds: (B, K, *S) in [0, 1].
        label: (B, K), 0/1.
        affinity: in [0, 1], (B, N, N) or windowed, of the N tokens of ``grid``; see
            :func:`~monai_wsss.refinement.propagate_by_affinity`.
        refine: ``(image, maps) -> maps``.
        grid: *s, the tokens along each axis.
        radius: largest offset of a pair along each axis, in tokens.
        low: see :func:`refined_seed_label`.
        high: see there.
        downscale: factor by which the image shrinks for the refinement.
        boxes: (B, 2 d) ints, see :func:`background_aware_scores`; pixels outside are ignored.
        ignore_index: value of pixels in doubt.

    Returns:
        (B, *S) int64: 0, 1..K, or ``ignore_index``.

    Raises:
        ValueError: shapes that do not fit, ``low`` above ``high``, a factor below 1, or boxes that do not lie in the
            image.

    Example:
        >>> from monai_wsss.refinement import PixelAdaptiveRefinement
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[..., 2:] = 1
        >>> refine = PixelAdaptiveRefinement(dilations=(1,))
        >>> label = torch.ones(1, 1)
        >>> propagated_seed_label(image, image, label, torch.eye(4)[None], refine, grid=(2, 2))[0, 0].tolist()
        [0, 0, 1, 1]
    """
    _check(image, seeds, label, downscale)
    _check_scores(low, high)
    check_pairs(affinity, len(image), grid, radius)
    label = label.to(seeds.device)
    return affinity_label(
        image,
        seeds,
        label,
        held_classes(label),
        SpreadRule(refine, low, high, downscale, ignore_index),
        affinity=affinity,
        grid=grid,
        radius=radius,
        regions=None if boxes is None else box_regions(boxes, len(image), image.shape[2:]),
    )


def background_aware_scores(
    image: torch.Tensor,
    seeds: torch.Tensor,
    background: torch.Tensor,
    label: torch.Tensor,
    refine: Refine,
    *,
    normalize: str = "none",
    downscale: float = 2.0,
    boxes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Spread seeds and a background score together (BSP; BMP, Eq. 13): S^c = p([B^s; C]), over the image's classes.

    Args:
        image: (B, C, *S), the intensities along which scores spread.
        seeds: C (B, K, *S).
        background: B^s (B, 1, *S), Eq. 12: the segmentation branch's score of the background, on the seeds' scale.
        label: (B, K), 0/1: the scores of classes of label 0 are 0.
        refine: p, ``(image, maps) -> maps`` at the image's size.
        normalize: of the scores of a pixel: ``none``; ``l1``: to shares that sum to 1; ``softmax`` over the classes
            that take part.
        downscale: factor by which the image shrinks for the refinement.
        boxes: (B, 2 d) ints, first and last+1 pixel along each axis, at least one pixel: pixels outside are padding,
            which neither takes part nor gets a score.

    Returns:
        S^c (B, K+1, *S), differentiable.

    Raises:
        ValueError: shapes that do not fit, an unknown normalization, a factor below 1, or boxes that do not lie in the
            image.

    Example:
        >>> from monai_wsss.refinement import PixelAdaptiveRefinement
        >>> image, seeds = torch.rand(1, 1, 8, 8), torch.rand(1, 2, 8, 8)
        >>> refine = PixelAdaptiveRefinement(dilations=(1,), row_stochastic=True)
        >>> label = torch.tensor([[1.0, 0.0]])
        >>> scores = background_aware_scores(image, seeds, 1 - seeds[:, :1], label, refine, normalize="l1")
        >>> scores.sum(1).allclose(torch.ones(1, 8, 8)), scores[0, 2].abs().max().item()
        (True, 0.0)
    """
    _check(image, seeds, label, downscale)
    check_choice("normalize", normalize, ("none", "l1", "softmax"))
    if background.shape != (len(seeds), 1, *seeds.shape[2:]):
        raise ValueError(
            f"Expected `background` of shape (B, 1, *S) = {(len(seeds), 1, *seeds.shape[2:])}, got "
            f"{tuple(background.shape)}."
        )
    label = label.to(seeds.device)
    return background_scores(
        image,
        seeds,
        background,
        label,
        held_classes(label),
        SpreadRule(refine, downscale=downscale),
        normalize=normalize,
        regions=None if boxes is None else box_regions(boxes, len(image), image.shape[2:]),
    )


def outside_boxes(boxes: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Mark the padding: (B, *S) bool, true outside of each image's box.

    Args:
        boxes: (B, 2 d) ints, first and last+1 pixel along each axis.
        size: S.

    Raises:
        ValueError: boxes that do not lie in the image.

    Example:
        >>> outside_boxes(torch.tensor([[0, 1, 1, 3]]), torch.Size((2, 3))).int().tolist()
        [[[1, 0, 0], [1, 1, 1]]]
    """
    return outside_regions(box_regions(boxes, len(boxes), size), size, boxes.device)


def _check_scores(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"Expected `low` <= `high`, got {low} and {high}.")


def _check(image: torch.Tensor, seeds: torch.Tensor, label: torch.Tensor, downscale: float) -> None:
    check_shape("image", image, "(B, C, *S)")
    if seeds.shape[:1] != image.shape[:1] or seeds.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"Expected `seeds` (B, K, *S) of the image's size {tuple(image.shape[2:])}, got {tuple(seeds.shape)}."
        )
    check_label(label, *seeds.shape[:2])
    if downscale < 1:
        raise ValueError(f"Expected `downscale` >= 1, got {downscale}.")
