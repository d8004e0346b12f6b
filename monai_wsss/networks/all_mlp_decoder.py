# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""SegFormer's All-MLP decoder (Xie et al. 2021, arXiv:2105.15203, Eq. 4), which multiplies the weights first.

There is no activation between the linear layer of a level, its interpolation and the fusing 1x1 convolution.  So both
weights are multiplied, and one matrix per level is applied before the interpolation.  The values are the same, and the
4 x ``width`` channels at the finest level are never built.
"""

# Annotations stay real types: TorchScript reads them.
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout, Norm
from torch import nn

from monai_wsss._resize import linear_mode
from monai_wsss.networks.checked import CheckedModule

__all__ = ["AllMLPDecoder"]


class _LevelProjection(nn.Module):
    """The linear layer of a level, multiplied with its share of the fusing convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)

    def forward(self, features: torch.Tensor, fuse: torch.Tensor) -> torch.Tensor:
        """Project ``(B, F, *s) -> (B, width, *s)``; ``fuse`` is (width, width)."""
        # Channels last, like the levels: the upsampling on a CPU would otherwise copy the maps into that layout.
        tokens = F.linear(features.flatten(2).mT, fuse @ self.proj.weight, fuse @ self.proj.bias)
        return tokens.mT.unflatten(2, list(features.shape[2:]))


class _Fusion(nn.Module):
    """The weights of the fusing convolution, which the levels apply, and the batch norm after it."""

    def __init__(self, spatial_dims: int, levels: int, width: int) -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, spatial_dims](levels * width, width, kernel_size=1, bias=False)
        self.bn = Norm[Norm.BATCH, spatial_dims](width)


class AllMLPDecoder(CheckedModule):
    """SegFormer's decoder: ``[(B, F_i, *s_i)] -> (B, out_channels, *s_1)``, of four levels in the paper.

    A linear layer brings each level to ``width`` channels, which are interpolated to the first level's size.  A 1x1
    convolution with batch norm and ReLU fuses them; dropout of whole channels and a 1x1 convolution give the logits.

    Args:
        feature_channels: F_1 to F_n, of two to four levels.
        out_channels: K + 1.
        spatial_dims: 2 or 3.
        width: of each level and of the fused features.
        dropout: probability that a whole channel of the fused features is dropped.

    Raises:
        ValueError: another number of levels.

    Example:
        >>> import torch
        >>> levels = [torch.zeros(2, channels, 8 // channels, 6) for channels in (1, 2, 4, 8)]
        >>> AllMLPDecoder((1, 2, 4, 8), 3, width=4)(levels).shape
        torch.Size([2, 3, 8, 6])
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        out_channels: int,
        *,
        spatial_dims: int = 2,
        width: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        levels = len(feature_channels)
        if not 2 <= levels <= 4:
            raise ValueError(f"Expected `feature_channels` of two to four levels, got {tuple(feature_channels)}.")
        conv = Conv[Conv.CONV, spatial_dims]
        self.mode = linear_mode(spatial_dims)
        self.levels = levels
        self.linear_c4 = _LevelProjection(feature_channels[3], width) if levels > 3 else None
        self.linear_c3 = _LevelProjection(feature_channels[2], width) if levels > 2 else None
        self.linear_c2 = _LevelProjection(feature_channels[1], width)
        self.linear_c1 = _LevelProjection(feature_channels[0], width)
        self.linear_fuse = _Fusion(spatial_dims, levels, width)
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.linear_pred = conv(width, out_channels, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Decode ``[(B, F_i, *s_i)] -> (B, out_channels, *s_1)``."""
        # The channels to fuse come from the coarsest level first and from level 1 last.
        fuse = self.linear_fuse.conv.weight.flatten(1).chunk(self.levels, dim=1)
        fused = self.linear_c1(features[0], fuse[-1])
        fused = fused + self._like(self.linear_c2(features[1], fuse[-2]), fused)
        if self.linear_c3 is not None:
            fused = fused + self._like(self.linear_c3(features[2], fuse[-3]), fused)
        if self.linear_c4 is not None:
            fused = fused + self._like(self.linear_c4(features[3], fuse[-4]), fused)
        return self.linear_pred(self.dropout(F.relu(self.linear_fuse.bn(fused))))

    def _like(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        return F.interpolate(coarse, size=fine.shape[2:], mode=self.mode, align_corners=False)
