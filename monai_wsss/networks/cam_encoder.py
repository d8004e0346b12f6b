# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""An encoder with a class-map head: the plainest network whose forward pass is a class activation map.

Convolution blocks with max pooling between them lead down to stride 2, 4 or 8; a 1x1 convolution to K channels follows.
That is the map of Zhou et al. 2016, "Learning deep features for discriminative localization", without hooks, since the
classifier stands before the pooling. The stride bounds what the network can use as a shortcut: at full resolution with
average pooling it classifies by the background, at stride 4 with max pooling it must point.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets.basic_unet import TwoConv
from torch import nn

from monai_wsss.networks.activation import ActivationNetwork

__all__ = ["CAMEncoder"]


class CAMEncoder(ActivationNetwork):
    """Encoder at stride 2, 4 or 8 with a 1x1 class-map head, for images and volumes.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C, e.g. the co-registered sequences of a study.
        num_classes: K, the foreground classes.
        width: channels of the first block; doubled at each stride up to four times the width.
        stride: 2, 4 or 8; the input's sides need not be multiples of it.
        pooling: see :class:`~monai_wsss.networks.activation.ActivationNetwork`.
        topk_share: see there.
        lse_sharpness: see there.
        norm: MONAI normalization of the blocks.
        background_map: see :class:`~monai_wsss.networks.activation.ActivationNetwork`.

    Raises:
        ValueError: an unknown stride or pooling; an image smaller than the stride.

    Example:
        >>> import torch
        >>> network = CAMEncoder(spatial_dims=2, in_channels=3, num_classes=1, width=4).eval()
        >>> network(torch.zeros(2, 3, 30, 33)).shape
        torch.Size([2, 1, 30, 33])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        width: int = 16,
        stride: int = 4,
        pooling: str = "max",
        topk_share: float = 0.1,
        lse_sharpness: float = 5.0,
        norm: str = "batch",
        background_map: bool = False,
    ) -> None:
        pooled: dict[str, Any] = {"pooling": pooling, "topk_share": topk_share, "lse_sharpness": lse_sharpness}
        super().__init__(spatial_dims, num_classes, **pooled, background_map=background_map)
        if stride not in (2, 4, 8):
            raise ValueError(f"Expected `stride` to be 2, 4 or 8, got {stride}.")
        levels = stride.bit_length()
        channels = [in_channels, *(width * min(2**level, 4) for level in range(levels))]
        blocks: list[nn.Module] = []
        for level in range(levels):
            if level > 0:
                blocks.append(Pool[Pool.MAX, spatial_dims](kernel_size=2))
            blocks.append(TwoConv(spatial_dims, channels[level], channels[level + 1], "relu", norm, bias=False))
        self.stride = stride
        self.encoder = nn.Sequential(*blocks)
        self.head = Conv[Conv.CONV, spatial_dims](channels[-1], num_classes + background_map, kernel_size=1)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CAMEncoder:
        """Build the same network at width 4, which trains in seconds on a CPU."""
        return cls(spatial_dims, in_channels, num_classes, width=4)

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw class maps at the network's stride: ``(B, C, *S) -> (B, K, *S // stride)``."""
        if min(image.shape[2:]) < self.stride:
            raise ValueError(f"Expected image sides of at least the stride {self.stride}, got {image.shape[2:]}.")
        if self.spatial_dims == 2:
            # A third faster on a CPU; only the memory layout differs, the values are the same.
            image = image.contiguous(memory_format=torch.channels_last)
        return self.head(self.encoder(image))
