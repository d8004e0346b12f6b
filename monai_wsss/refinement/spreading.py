# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""From seeds to labels: the arithmetic behind ``pseudo_label`` and ``class_labels``, which trusts its arguments.

The refinement takes most of the time.  It gets only the maps of classes that some image of the batch holds, since no
pixel can be of another class.  ``held`` (k,) are their channels.

| symbol | name     | shape                                                    |
|--------|----------|----------------------------------------------------------|
| C      | `seeds`  | (B, K, *S), in [0, 1]                                    |
| B^s    | `background` | (B, 1, *S)                                           |
| y      | `label`  | (B, K), 0/1, on the seeds' device                        |
| p      | `refine` | ``(image, maps) -> maps`` at the size of the image       |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from monai_wsss._checks import float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss._resize import resize_linear
from monai_wsss.refinement.affinity_walk import background_softmax, walk_along_affinity

__all__ = [
    "Refine",
    "Region",
    "SpreadRule",
    "affinity_label",
    "background_scores",
    "box_regions",
    "constant_label",
    "held_classes",
    "outside_regions",
]

Refine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Region = tuple[slice, ...]


class SpreadRule(NamedTuple):
    """The refinement that spreads scores, and the background scores that they compete with.

    Attributes:
        refine: p.
        low: background score that lets seeds through, in [0, 1].
        high: background score that holds them back, at least ``low``.
        downscale: factor >= 1 by which the image shrinks for the refinement.
        ignore_index: value of pixels in doubt.
    """

    refine: Refine
    low: float | torch.Tensor = 0.35
    high: float | torch.Tensor = 0.55
    downscale: float = 2.0
    ignore_index: int = IGNORED


def constant_label(
    image: torch.Tensor, seeds: torch.Tensor, label: torch.Tensor, held: torch.Tensor, rule: SpreadRule
) -> torch.Tensor:
    """Label pixels where a low and a high constant background score agree, after refinement: (B, *S) int64."""
    if not len(held):
        return _background(seeds)
    small = _shrink(image, rule.downscale)
    classes = resize_linear(float32_or_wider(seeds[:, held]), small.shape[2:])
    # The refinement treats each map by itself: both sets at once share its weights.
    maps = torch.cat([background_softmax(classes, label[:, held], score) for score in (rule.low, rule.high)], 1)
    refined = resize_linear(rule.refine(small, maps), image.shape[2:])
    return _agreed(refined, label[:, held], held, rule.ignore_index)


def affinity_label(
    image: torch.Tensor,
    seeds: torch.Tensor,
    label: torch.Tensor,
    held: torch.Tensor,
    rule: SpreadRule,
    *,
    affinity: torch.Tensor,
    grid: Sequence[int],
    radius: int,
    regions: Sequence[Region] | None = None,
) -> torch.Tensor:
    """Label as :func:`constant_label`, but first spread the scores by the affinity of the tokens of ``grid``."""
    if len(held):
        tokens = resize_linear(float32_or_wider(seeds[:, held]), grid)
        maps = torch.cat([background_softmax(tokens, label[:, held], score) for score in (rule.low, rule.high)], 1)
        spread = resize_linear(walk_along_affinity(affinity, maps, radius), image.shape[2:])
        refined = _refined(image, spread, rule.refine, rule.downscale, regions)
        agreed = _agreed(refined, label[:, held], held, rule.ignore_index)
    else:
        agreed = _background(seeds)
    if regions is None:
        return agreed
    return agreed.masked_fill(outside_regions(regions, agreed.shape[1:], agreed.device), rule.ignore_index)


def background_scores(
    image: torch.Tensor,
    seeds: torch.Tensor,
    background: torch.Tensor,
    label: torch.Tensor,
    held: torch.Tensor,
    rule: SpreadRule,
    *,
    normalize: str = "none",
    regions: Sequence[Region] | None = None,
) -> torch.Tensor:
    """Give S^c = p([B^s; C]) over the image's classes: (B, K + 1, *S), differentiable."""
    absent = ~_present(label[:, held], seeds)
    scores = torch.cat((float32_or_wider(background), float32_or_wider(seeds[:, held])), 1).masked_fill(absent, 0)
    spread = _refined(image, scores, rule.refine, rule.downscale, regions)
    if normalize == "softmax":
        spread = spread.masked_fill(absent, -torch.inf).softmax(1)
    if normalize == "l1":
        # A pixel without any score is not confident; the floor also bounds the gradient.
        spread = spread / spread.sum(1, keepdim=True).clamp(min=1e-6)
    every = spread.new_zeros(len(seeds), seeds.shape[1] + 1, *seeds.shape[2:])
    return every.index_copy_(1, _numbers(held), spread)


def held_classes(label: torch.Tensor) -> torch.Tensor:
    """Find the channels (k,) of the classes that some image of labels (B, K) holds; this waits for a GPU."""
    return label.any(0).nonzero()[:, 0]


def box_regions(boxes: torch.Tensor, images: int, size: Sequence[int]) -> list[Region]:
    """Read boxes (B, 2 d), first and last+1 pixel along each axis, as slices.

    Raises:
        ValueError: boxes of another type or shape, or that do not lie in images of ``size``.
    """
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


def outside_regions(regions: Sequence[Region], size: Sequence[int], device: torch.device) -> torch.Tensor:
    """Mark the pixels outside of each image's region: (B, *size) bool."""
    outside = torch.ones((len(regions), *size), dtype=torch.bool, device=device)
    for image, region in zip(outside, regions, strict=True):
        image[region] = False
    return outside


def _background(seeds: torch.Tensor) -> torch.Tensor:
    """Label all pixels background."""
    return torch.zeros((len(seeds), *seeds.shape[2:]), dtype=torch.long, device=seeds.device)


def _numbers(held: torch.Tensor) -> torch.Tensor:
    """Give the label values of the background and of the channels ``held``: 0 and channel + 1."""
    return F.pad(held + 1, (1, 0))


def _agreed(refined: torch.Tensor, label: torch.Tensor, held: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Decide by the scores with the low background (first half of the channels) and with the high one together."""
    absent = ~_present(label, refined)
    of_low, of_high = (scores.masked_fill(absent, -torch.inf).max(1).indices for scores in refined.chunk(2, 1))
    doubt = torch.where(of_low == 0, 0, ignore_index)
    return torch.where(of_high > 0, _numbers(held)[of_high], doubt)


def _refined(
    image: torch.Tensor, scores: torch.Tensor, refine: Refine, downscale: float, regions: Sequence[Region] | None
) -> torch.Tensor:
    """Refine scores along the shrunk image, each image within its region."""
    if regions is not None:
        spread = torch.zeros_like(scores)
        for index, region in enumerate(regions):
            part: Region = (slice(index, index + 1), slice(None), *region)
            spread[part] = _refined(image[part], scores[part], refine, downscale, None)
        return spread
    return resize_linear(refine(_shrink(image, downscale), scores), image.shape[2:])


def _shrink(image: torch.Tensor, downscale: float) -> torch.Tensor:
    size = [max(1, int(side / downscale)) for side in image.shape[2:]]
    # Integers become floats, too: their interpolation would be rounded.
    return resize_linear(image.to(torch.promote_types(image.dtype, torch.float32)), size)


def _present(label: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Mark the background and those of these classes that each image holds: (B, k+1, 1, ...) bool."""
    present = F.pad(label > 0, (1, 0), value=True)
    return present.reshape(*present.shape, *[1] * (seeds.ndim - 2))
