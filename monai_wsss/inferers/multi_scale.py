# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a two-branch network says of an image at several scales and mirrored, brought together: seeds and segmentation.

With C_s and S_s the class maps and segmentation logits at scale s, brought to the image's size, and C_s^f, S_s^f those
of the mirrored image, mirrored back (Zhu et al., BMP, Sec. IV-A; CoSA, Sec. 3.1):

    seeds        = sum_s ReLU(max(C_s, C_s^f))
    segmentation = sum_s (S_s + S_s^f) / 2

The rectifier is for seeds that are scaled by their own extremes afterwards; without it they keep their zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_shape, float32_or_wider

__all__ = ["multi_scale_branches"]

Branches = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def multi_scale_branches(
    branches: Branches,
    image: torch.Tensor,
    *,
    scales: Sequence[float] = (1.0, 0.5, 1.5),
    rectify: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeds and segmentation logits over scales and the mirror image along the last axis; one forward pass a scale.

    Args:
        branches: ``(2B, C, *s) -> (class maps (2B, K, *t), segmentation logits (2B, K+1, *u))``, at any resolution.
        image: (B, C, *S).
        scales: factors of the image's size.
        rectify: whether negative seeds become 0 before the sum.

    Returns:
        seeds (B, K, *S) and segmentation (B, K+1, *S), float32, not normalized.

    Raises:
        ValueError: another shape, or no positive scale.

    Example:
        >>> seeds, logits = multi_scale_branches(lambda x: (x, x.repeat(1, 2, 1, 1)), torch.ones(1, 1, 8, 8))
        >>> seeds.unique().tolist(), logits.shape
        ([3.0], torch.Size([1, 2, 8, 8]))
    """
    check_shape("image", image, "(B, C, *S)")
    if not scales or min(scales) <= 0:
        raise ValueError(f"Expected `scales` to hold positive factors, got {tuple(scales)}.")
    size, mode = image.shape[2:], "bilinear" if image.ndim == 4 else "trilinear"

    def at_size(tensor: torch.Tensor) -> torch.Tensor:
        return F.interpolate(float32_or_wider(tensor), size=size, mode=mode, align_corners=False)

    seeds, segmentation = [], []
    for scale in scales:
        scaled = image
        if scale != 1.0:
            target = [max(1, int(side * scale)) for side in size]
            scaled = F.interpolate(image, size=target, mode=mode, align_corners=False)
        maps, logits = branches(torch.cat((scaled, scaled.flip(-1))))
        upright, mirrored = at_size(maps).chunk(2)
        strongest = torch.maximum(upright, mirrored.flip(-1))
        seeds.append(F.relu(strongest) if rectify else strongest)
        upright, mirrored = at_size(logits).chunk(2)
        segmentation.append((upright + mirrored.flip(-1)) / 2)
    return torch.stack(seeds).sum(0), torch.stack(segmentation).sum(0)
