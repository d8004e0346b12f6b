# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A small convolutional encoder of four levels, for training from scratch on small medical images.

It has the blocks of :class:`~monai_wsss.networks.cam_encoder.CAMEncoder` and the outputs that
:class:`~monai_wsss.networks.two_branch.TwoBranchNetwork` reads.  BMP and AFA take their affinity from the attention of
a transformer, which this encoder does not have.  Instead it has 1x1 query and key projections of the last level, which
learn from the affinity loss only.  The papers have no such encoder.
"""

# Annotations stay real types: TorchScript reads them.
import math
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets.basic_unet import TwoConv
from torch import nn

from monai_wsss.networks.attention_logits import attention_logits
from monai_wsss.networks.checked import CheckedModule

__all__ = ["ConvPyramid"]


class ConvPyramid(CheckedModule):
    """Features of four levels: ``(B, C, *S) -> [(B, F1, *s1), (B, F2, *s2), (B, F3, *s3), (B, F4, *s4)]``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        width: F1; it is doubled from level to level, up to four times the width.
        strides: of the four levels, by max pooling in front of each; sides are rounded down.
        attention_heads: number of heads of the query and key projections, a divisor of F4; 0: no projections, and so no
            affinity.
        norm: MONAI normalization of the blocks.

    Attributes:
        feature_channels: F1 to F4.
        feature_strides: of the four levels, counted from the image.
        attention_channels: ``attention_heads``.
        spatial_dims: as given.
        in_channels: as given.

    Raises:
        ValueError: strides that are not four, or heads that do not divide F4; an image smaller than the strides.

    Example:
        >>> import torch
        >>> [tuple(features.shape) for features in ConvPyramid.tiny().eval()(torch.zeros(1, 1, 30, 33))]
        [(1, 4, 30, 33), (1, 8, 15, 16), (1, 16, 7, 8), (1, 16, 7, 8)]
    """

    feature_channels: tuple[int, int, int, int]

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        *,
        width: int = 16,
        strides: Sequence[int] = (1, 2, 2, 1),
        attention_heads: int = 8,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
        if len(strides) != 4 or min(strides) < 1:
            raise ValueError(f"Expected `strides` of four levels, each 1 or more, got {tuple(strides)}.")
        if attention_heads < 0 or (attention_heads and 4 * width % attention_heads):
            raise ValueError(f"Expected `attention_heads` that divide {4 * width} channels, got {attention_heads}.")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.feature_channels = (width, 2 * width, 4 * width, 4 * width)
        self.feature_strides = tuple(math.prod(strides[: n + 1]) for n in range(4))
        self.attention_channels = attention_heads
        self.stride = math.prod(strides)
        channels = (in_channels, *self.feature_channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                Pool[Pool.MAX, spatial_dims](kernel_size=strides[n]) if strides[n] > 1 else nn.Identity(),
                TwoConv(spatial_dims, channels[n], channels[n + 1], "relu", norm, bias=False),
            )
            for n in range(4)
        )
        if attention_heads:
            conv = Conv[Conv.CONV, spatial_dims]
            self.query = conv(channels[4], channels[4], kernel_size=1)
            self.key = conv(channels[4], channels[4], kernel_size=1)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1) -> "ConvPyramid":
        """Build the encoder at width 4 with two heads: trains in seconds on a CPU."""
        return cls(spatial_dims, in_channels, width=4, attention_heads=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the maps of the four levels, of strides 1, 2, 4, 4 by default."""
        if min(image.shape[2:]) < self.stride:
            raise ValueError(f"Expected image sides of at least the stride {self.stride}, got {image.shape[2:]}.")
        features = image
        if self.spatial_dims == 2:
            # A fifth faster on a CPU: only the layout changes, not the values.
            features = features.contiguous(memory_format=torch.channels_last)
        result: list[torch.Tensor] = []
        for level in self.levels:
            features = level(features)
            result.append(features)
        return result

    def forward_with_queries(
        self, image: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Give the maps of :meth:`forward`, and one pair of queries and keys of the last level.

        The queries and the keys are (B, heads, N, F4 / heads) each.
        """
        if not self.attention_channels:
            raise ValueError("Expected an encoder with `attention_heads` of 1 or more, got 0.")
        features = self(image)
        heads = (self.attention_channels, -1)
        query, key = (conv(features[3]).flatten(2).unflatten(1, heads).mT for conv in (self.query, self.key))
        return features, [(query, key)]

    def forward_with_attention(
        self, image: torch.Tensor, radius: int | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Give the maps of :meth:`forward`, and the logits q . k^T of its queries and keys.

        The logits are (B, heads, N, N), or windowed (B, heads, W, *s4), see
        :func:`~monai_wsss.networks.attention_logits.attention_logits`.
        """
        features, pairs = self.forward_with_queries(image)
        return features, [attention_logits(query, key, features[3].shape[2:], radius) for query, key in pairs]
