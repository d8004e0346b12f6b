# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Class maps learn from the probabilities of a segmentation: the guided CAMs of CoSA (ECCV 2024, Eq. 8).

    L_s2c = mean_{b, k, xy} BCE(sigmoid(M), Y)

Y are the probabilities of the K foreground classes, brought to the size of the class maps M; the background has no
map and is left out. Classes that an image lacks have Y = 0 everywhere.

The authors' code cuts M at 0 first (`relu`). Then an absent class costs at least log 2 per pixel and has no gradient
where M < 0: the loss ends at a plateau. As printed it has none, which is the default.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_shape, float32_or_wider
from monai_wsss._resize import resize_linear

__all__ = ["SegmentationToCamLoss", "segmentation_to_cam_loss"]


def segmentation_to_cam_loss(maps: torch.Tensor, probabilities: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
    """Compare class maps with the probabilities of a segmentation: L_s2c (Eq. 8).

    Args:
        maps: M (B, K, *s), raw.
        probabilities: (B, K+1, *S) in [0, 1], background first, of any size; taken as constant.
        relu: cut the maps at 0 first, as the authors' code does.

    Returns:
        scalar >= 0 in float32 or wider, the mean over images, classes, and pixels of the maps.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> maps = torch.tensor([[[[4.0, -4.0]]]])
        >>> right = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
        >>> round(segmentation_to_cam_loss(maps, right).item(), 3)
        0.018
        >>> round(segmentation_to_cam_loss(maps, right, relu=True).item(), 3)  # never below log(2) / 2 here
        0.356
    """
    check_shape("maps", maps, "(B, K, *S)")
    expected = (len(maps), maps.shape[1] + 1)
    if probabilities.ndim != maps.ndim or probabilities.shape[:2] != expected:
        raise ValueError(
            f"Expected `probabilities` of shape (B, K+1, *S) = {(*expected, '*S')} beside `maps` "
            f"{tuple(maps.shape)}, got {tuple(probabilities.shape)}: the background comes first."
        )
    with torch.autocast(maps.device.type, enabled=False):
        maps = float32_or_wider(maps)
        target = resize_linear(probabilities[:, 1:].detach().to(maps), maps.shape[2:])
        return F.binary_cross_entropy_with_logits(maps.relu() if relu else maps, target)


class SegmentationToCamLoss(nn.Module):
    """:func:`segmentation_to_cam_loss` with its option kept.

    Args:
        relu: see there.

    Example:
        >>> loss = SegmentationToCamLoss()
        >>> loss(torch.zeros(1, 2, 4, 4, 4), torch.rand(1, 3, 8, 8, 8)).item()
        0.6931471824645996
    """

    def __init__(self, *, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, maps: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Compare class maps (B, K, *s) with probabilities (B, K+1, *S)."""
        return segmentation_to_cam_loss(maps, probabilities, relu=self.relu)
