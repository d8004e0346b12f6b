# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pseudo-labels from seeds: class maps in [0, 1] become a label, or a segmentation map, that can supervise.

Seeds are the class maps of the classes that the image holds; what they lack is a score for the background.

| function                        | the background is           | spread by            | result               |
|---------------------------------|-----------------------------|----------------------|----------------------|
| :func:`seed_label`              | two thresholds              | nothing              | label, doubt ignored |
| :func:`refined_seed_label`      | two constant scores         | refinement           | label, doubt ignored |
| :func:`propagated_seed_label`   | two constant scores         | affinity, refinement | label, doubt ignored |
| :func:`background_aware_scores` | what a segmenter says (BSP) | refinement           | S^c, K+1 channels    |

Sources: Ru et al., AFA (arXiv:2203.02664) for the two scores and the affinity; Zhu et al., BMP
(arXiv:2308.04949), Eq. 12-13 for the last.  The refinement is along the image, usually pixel-adaptive, and sees the
maps of those classes alone that some image of the batch holds.  Nothing here reads a pixel mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_label, check_shape, float32_or_wider
from monai_wsss.refinement.affinity_walk import propagate_by_affinity, softmax_with_background

__all__ = [
    "background_aware_scores",
    "outside_boxes",
    "propagated_seed_label",
    "refined_seed_label",
    "seed_label",
]

Refine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Region = tuple[slice, ...]


def seed_label(seeds: torch.Tensor, *, low: float, high: float | None = None, ignore_index: int = 255) -> torch.Tensor:
    """The class of the highest seed; background where it is at most ``low``, ignored where it is not above ``high``.

    Args:
        seeds: (B, K, *S) in [0, 1], zero for classes that the image does not hold.
        low: up to here a pixel is background.
        high: up to here it is in doubt; None: as ``low``, so that nothing is.
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
    ignore_index: int = 255,
) -> torch.Tensor:
    """The label on which a low and a high background score agree, after both were refined along the image.

    With p(b) = refine(softmax([b; seeds of the image's classes])) and l(b) = argmax p(b): l(high) where it is a class,
    background where both say so, ignored elsewhere (AFA).  Images without any class are background.

    Args:
        image: (B, C, *S), the intensities along which labels spread.
        seeds: (B, K, *S) in [0, 1].
        label: (B, K), 0/1: other classes take no part.
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
    held, label = _held(label, seeds.device)
    if not len(held):
        return _background(seeds)
    small = _shrink(image, downscale)
    classes = float32_or_wider(seeds[:, held])
    classes = F.interpolate(classes, size=small.shape[2:], mode=_mode(image), align_corners=False)
    # The refinement treats each map by itself: both sets at once share its weights.
    maps = torch.cat([softmax_with_background(classes, label, score) for score in (low, high)], 1)
    refined = F.interpolate(refine(small, maps), size=image.shape[2:], mode=_mode(image), align_corners=False)
    return _agreed(refined, label, held, ignore_index)


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
    ignore_index: int = 255,
) -> torch.Tensor:
    """AFA's label: as :func:`refined_seed_label`, but the scores are spread by the affinity of tokens before.

    Args:
        image: (B, C, *S).
        seeds: (B, K, *S) in [0, 1].
        label: (B, K), 0/1.
        affinity: in [0, 1], (B, N, N) or windowed, of the N tokens of ``grid``; see
            :func:`~monai_wsss.refinement.propagate_by_affinity`.
        refine: ``(image, maps) -> maps``.
        grid: *s, the tokens along each axis.
        radius: of the pairs, in tokens.
        low: see :func:`refined_seed_label`.
        high: see there.
        downscale: factor by which the image shrinks for the refinement.
        boxes: (B, 2 d) ints, see :func:`background_aware_scores`; what lies outside is ignored.
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
    regions = None if boxes is None else _regions(boxes, len(image), image.shape[2:])
    held, label = _held(label, seeds.device)
    if len(held):
        tokens = float32_or_wider(seeds[:, held])
        tokens = F.interpolate(tokens, size=tuple(grid), mode=_mode(image), align_corners=False)
        maps = torch.cat([softmax_with_background(tokens, label, score) for score in (low, high)], 1)
        spread = propagate_by_affinity(affinity, maps, radius)
        spread = F.interpolate(spread, size=image.shape[2:], mode=_mode(image), align_corners=False)
        agreed = _agreed(_spread(image, spread, refine, downscale, regions), label, held, ignore_index)
    else:
        agreed = _background(seeds)
    if regions is None:
        return agreed
    return agreed.masked_fill(_outside(regions, agreed.shape[1:], agreed.device), ignore_index)


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
    """Background-aware spatial propagation (BMP, Eq. 13): S^c = p([B^s; C]), over the image's classes.

    Args:
        image: (B, C, *S), the intensities along which scores spread.
        seeds: C (B, K, *S).
        background: B^s (B, 1, *S), Eq. 12: what the segmentation branch says of the background, on the seeds' scale.
        label: (B, K), 0/1: the scores of other classes are 0.
        refine: p, ``(image, maps) -> maps`` at the image's size.
        normalize: what the scores of a pixel become: ``none``; ``l1``, shares that sum to 1; ``softmax`` over the
            classes that take part.
        downscale: factor by which the image shrinks for the refinement.
        boxes: (B, 2 d) ints, first and last+1 pixel along each axis, at least one pixel: what lies outside is padding,
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
    regions = None if boxes is None else _regions(boxes, len(image), image.shape[2:])
    held, label = _held(label, seeds.device)
    absent = ~_present(label, seeds)
    scores = torch.cat((float32_or_wider(background), float32_or_wider(seeds[:, held])), 1).masked_fill(absent, 0)
    spread = _spread(image, scores, refine, downscale, regions)
    if normalize == "softmax":
        spread = spread.masked_fill(absent, -torch.inf).softmax(1)
    if normalize == "l1":
        # Where no score is left, none is confident: the floor also bounds the gradient.
        spread = spread / spread.sum(1, keepdim=True).clamp(min=1e-6)
    every = spread.new_zeros(len(seeds), seeds.shape[1] + 1, *seeds.shape[2:])
    return every.index_copy_(1, _numbers(held), spread)


def outside_boxes(boxes: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Where pixels are padding: (B, *S) bool, true outside of each image's box.

    Args:
        boxes: (B, 2 d) ints, first and last+1 pixel along each axis.
        size: S.

    Raises:
        ValueError: boxes that do not lie in the image.

    Example:
        >>> outside_boxes(torch.tensor([[0, 1, 1, 3]]), torch.Size((2, 3))).int().tolist()
        [[[1, 0, 0], [1, 1, 1]]]
    """
    return _outside(_regions(boxes, len(boxes), size), size, boxes.device)


def _outside(regions: Sequence[Region], size: torch.Size, device: torch.device) -> torch.Tensor:
    outside = torch.ones((len(regions), *size), dtype=torch.bool, device=device)
    for image, region in zip(outside, regions, strict=True):
        image[region] = False
    return outside


def _regions(boxes: torch.Tensor, images: int, size: torch.Size) -> list[Region]:
    """The slices of each box, read from the device and checked once a call."""
    integers = not (boxes.is_floating_point() or boxes.is_complex() or boxes.dtype == torch.bool)
    if boxes.shape != (images, 2 * len(size)) or not integers:
        raise ValueError(
            f"Expected `boxes` of integers of shape (B, 2 d) = {(images, 2 * len(size))}, got {boxes.dtype} of shape "
            f"{tuple(boxes.shape)}."
        )
    regions = []
    for ends in boxes.tolist():
        pairs = list(zip(ends[::2], ends[1::2], strict=True))
        if not all(0 <= first < end <= side for (first, end), side in zip(pairs, size, strict=True)):
            raise ValueError(
                f"Expected `boxes` of 0 <= first < last+1 <= side along each axis of an image of size {tuple(size)}, "
                f"got {ends}."
            )
        regions.append(tuple(slice(first, end) for first, end in pairs))
    return regions


def _held(label: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The channels (k,) of the classes that some image of the batch holds, and their labels (B, k).

    No pixel can be another class's, so that others need no refinement, which is what costs.
    """
    label = label.to(device)
    held = label.any(0).nonzero()[:, 0]
    return held, label[:, held]


def _background(seeds: torch.Tensor) -> torch.Tensor:
    """The label of images without any class."""
    return torch.zeros((len(seeds), *seeds.shape[2:]), dtype=torch.long, device=seeds.device)


def _numbers(held: torch.Tensor) -> torch.Tensor:
    """What the background and the channels ``held`` are called among all classes: 0 and channel + 1."""
    return F.pad(held + 1, (1, 0))


def _agreed(refined: torch.Tensor, label: torch.Tensor, held: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """What the scores of the low (first half of the channels) and the high background say together."""
    absent = ~_present(label, refined)
    of_low, of_high = (scores.masked_fill(absent, -torch.inf).max(1).indices for scores in refined.chunk(2, 1))
    doubt = torch.where(of_low == 0, 0, ignore_index)
    return torch.where(of_high > 0, _numbers(held)[of_high], doubt)


def _spread(
    image: torch.Tensor, scores: torch.Tensor, refine: Refine, downscale: float, regions: Sequence[Region] | None
) -> torch.Tensor:
    """Scores refined along the image shrunk, each image within its box."""
    if regions is not None:
        spread = torch.zeros_like(scores)
        for index, region in enumerate(regions):
            part: Region = (slice(index, index + 1), slice(None), *region)
            spread[part] = _spread(image[part], scores[part], refine, downscale, None)
        return spread
    refined = refine(_shrink(image, downscale), scores)
    return F.interpolate(refined, size=image.shape[2:], mode=_mode(image), align_corners=False)


def _shrink(image: torch.Tensor, downscale: float) -> torch.Tensor:
    size = [max(1, int(side / downscale)) for side in image.shape[2:]]
    # Integers, too, become floats: interpolated as they are, they would be rounded.
    real = image.to(torch.promote_types(image.dtype, torch.float32))
    return F.interpolate(real, size=size, mode=_mode(image), align_corners=False)


def _mode(image: torch.Tensor) -> str:
    return "bilinear" if image.ndim == 4 else "trilinear"


def _present(label: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """(B, k+1, 1, ...) bool: the background and, of these classes, those of each image."""
    present = F.pad(label > 0, (1, 0), value=True)
    return present.reshape(*present.shape, *[1] * (seeds.ndim - 2))


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
