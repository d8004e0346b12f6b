# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Maps of a network summed over several scales and the mirror image, with one forward pass per scale.

M_s are the maps at scale s, brought to the image's size, and M_s^f those of the mirrored image, mirrored back (Zhu et
al., BMP, Sec. IV-A; Yang et al., CoSA, Sec. 3.1).  The last axis is mirrored: left and right of a photograph, which is
(C, rows, columns), and y of a slice of a volume, which is (C, x, y).  The result is the sum over the scales of

    rectified    ReLU(max(M_s, M_s^f))     seeds that are scaled by their own extremes afterwards
    strongest    max(M_s, M_s^f)           seeds that keep their zero
    average      (M_s + M_s^f) / 2         segmentation logits
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_shape, float32_or_wider
from monai_wsss._resize import resize_linear

__all__ = ["check_scales", "join_mirrored", "multi_scale_branches", "sum_over_scales"]

Maps = Callable[[torch.Tensor], Sequence[torch.Tensor]]
_JOINS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "rectified": lambda upright, mirrored: F.relu(torch.maximum(upright, mirrored)),
    "strongest": torch.maximum,
    "average": lambda upright, mirrored: (upright + mirrored) / 2,
}


def multi_scale_branches(
    maps: Maps, image: torch.Tensor, joins: Sequence[str], *, scales: Sequence[float] = (1.0, 0.5, 1.5)
) -> tuple[list[torch.Tensor], int]:
    """Sum maps over scales and the mirror image along the last axis, with one forward pass per scale.

    Args:
        maps: images ``(2B, C, *s)`` to one or more maps ``(2B, channels, *t)``, at any resolution.
        image: (B, C, *S).
        joins: for each of the maps, how M_s and M_s^f are joined: ``"rectified"``, ``"strongest"`` or ``"average"``.
        scales: factors of the image's size.

    Returns:
        The sums, (B, channels, *S) each in float32 or wider, not normalized; and the number of scales: divide a sum
        by it for the mean.

    Raises:
        ValueError: another shape, an unknown join, no scale, a scale that is not positive, or a number of joins that is
            not the number of maps.

    Example:
        >>> (seeds, logits), count = multi_scale_branches(
        ...     lambda x: (x, x.repeat(1, 2, 1, 1)), torch.ones(1, 1, 8, 8), ["rectified", "average"]
        ... )
        >>> seeds.unique().tolist(), logits.shape, count
        ([3.0], torch.Size([1, 2, 8, 8]), 3)
    """
    check_shape("image", image, "(B, C, *S)")
    for join in joins:
        check_choice("joins", join, tuple(_JOINS))
    check_scales(scales)
    return sum_over_scales(maps, image, joins, scales), len(scales)


def sum_over_scales(
    maps: Maps, image: torch.Tensor, joins: Sequence[str], scales: Sequence[float]
) -> list[torch.Tensor]:
    """Compute the sums of :func:`multi_scale_branches` of arguments that are known to fit."""
    size = image.shape[2:]
    sums: list[list[torch.Tensor]] = [[] for _ in joins]
    for scale in scales:
        scaled = image
        if scale != 1.0:
            scaled = resize_linear(image, [max(1, int(side * scale)) for side in size])
        for kept, join, both in zip(sums, joins, maps(torch.cat((scaled, scaled.flip(-1)))), strict=True):
            kept.append(join_mirrored(both, join, size))
    return [torch.stack(kept).sum(0) for kept in sums]


def join_mirrored(both: torch.Tensor, join: str, size: Sequence[int]) -> torch.Tensor:
    """Join maps of images and of the mirrored images, (2B, channels, *t), at a size: (B, channels, *size)."""
    upright, mirrored = resize_linear(float32_or_wider(both), size).chunk(2)
    return _JOINS[join](upright, mirrored.flip(-1))


def check_scales(scales: Sequence[float]) -> None:
    """Raise ``ValueError`` unless there are scales and all of them are positive."""
    if not scales or min(scales) <= 0:
        raise ValueError(f"Expected one or more `scales` > 0, got {tuple(scales)}.")
