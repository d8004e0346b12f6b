# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pyramid scene parsing: pixels are classified beside averages over the whole image, its halves, thirds and sixths.

Zhao et al. 2017, "Pyramid scene parsing network", arXiv:1612.01105.  On a dilated ResNeSt it is the segmenter of
Feng et al. (AAAI 2025, glands).  Sizes are those of the code that theirs builds on: 512 channels, dropout 0.1, 256
channels in the auxiliary head.

| part         | what                                                                                  | channels    |
|--------------|---------------------------------------------------------------------------------------|-------------|
| `levels`     | averages over 1, 2, 3, 6 bins per side, each with 1x1, batch norm, ReLU, interpolated | 512 each    |
| `fuse`       | 3x3 over the features and all levels, batch norm, ReLU                                | 512         |
| `classifier` | dropout, 1x1 with bias                                                                | classes     |
| `auxiliary`  | in training only, on the second to last map: 3x3, batch norm, ReLU, dropout, 1x1      | 256, classes |
"""

# Annotations stay real types: TorchScript reads them.
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Dropout, Pool
from torch import nn

from monai_wsss._resize import linear_mode
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.pooled_norm import PooledBatchNorm
from monai_wsss.networks.reading_record import add_reading_record
from monai_wsss.networks.resnest import ResNeSt

__all__ = ["PSPHead", "PyramidSceneParsing"]


class PSPHead(CheckedModule):
    """Logits from features and their averages at several scales: ``(B, F, *s) -> (B, out_channels, *s)``.

    A batch of one image can be trained: see :class:`~monai_wsss.networks.pooled_norm.PooledBatchNorm`.

    Args:
        in_channels: F.
        out_channels: classes.
        spatial_dims: 2 or 3.
        channels: of each level and of the fused features.
        bins: of the levels, per side; features of fewer pixels are repeated.
        dropout: probability that a whole channel of the fused features is dropped.

    Raises:
        ValueError: no bins, or some below 1.

    Example:
        >>> import torch
        >>> PSPHead(8, 2, channels=4)(torch.zeros(1, 8, 7, 5)).shape
        torch.Size([1, 2, 7, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 2,
        channels: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise ValueError(f"Expected `bins` of at least one level, each 1 or more, got {tuple(bins)}.")
        conv = Conv[Conv.CONV, spatial_dims]
        self.mode = linear_mode(spatial_dims)
        self.levels = nn.ModuleList(
            nn.Sequential(
                Pool[Pool.ADAPTIVEAVG, spatial_dims](count),
                conv(in_channels, channels, 1, bias=False),
                PooledBatchNorm(channels),
                nn.ReLU(inplace=True),
            )
            for count in bins
        )
        # A map of a single pixel, such as a patch at its coarsest, still has one after the 3x3 convolution.
        self.fuse = _conv_norm_relu(spatial_dims, in_channels + len(bins) * channels, channels)
        self.classifier = nn.Sequential(
            Dropout[Dropout.DROPOUT, spatial_dims](dropout), conv(channels, out_channels, kernel_size=1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, F, *s) -> (B, out_channels, *s)``."""
        parts = [features]
        for level in self.levels:
            parts.append(F.interpolate(level(features), size=features.shape[2:], mode=self.mode, align_corners=False))
        return self.classifier(self.fuse(torch.cat(parts, dim=1)))


class PyramidSceneParsing(CheckedModule):
    """A backbone with a pyramid head as a deployable segmenter: ``(B, C, *S) -> (B, out_channels, *S)`` logits.

    Args:
        backbone: gives ``(B, F, *s)``, or a list of maps of which the last is taken, e.g. :class:`ResNeSt`,
            :class:`ResNet38`, MONAI's ``ResNetFeatures`` or a U-Net without its head.
        feature_channels: F of that map.
        out_channels: K + 1 with a background, K where all classes are real tissue.
        spatial_dims: 2 or 3.
        channels: of the pyramid's levels.
        bins: of the pyramid's levels.
        dropout: of both heads.
        auxiliary_channels: F of the backbone's second to last map, for a second head that only training uses, or None.

    Attributes:
        output_kind: ``"segmentation"``.
        auxiliary_weight: 0.4, the weight of the second head's loss (Zhao et al. 2017, Section 4).

    Raises:
        ValueError: an auxiliary head on a backbone that gives a single map.

    Example:
        >>> import torch
        >>> network = PyramidSceneParsing.tiny().eval()
        >>> network(torch.zeros(1, 3, 50, 33)).shape
        torch.Size([1, 2, 50, 33])
    """

    # Real types, not strings: TorchScript reads them, so this file does without `from __future__ import annotations`.
    output_kind: str = "segmentation"

    def __init__(
        self,
        backbone: nn.Module,
        feature_channels: int,
        out_channels: int = 2,
        *,
        spatial_dims: int = 2,
        channels: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.output_kind = "segmentation"
        self.auxiliary_weight = 0.4
        self.mode = linear_mode(spatial_dims)
        self.backbone = backbone
        self.head = PSPHead(
            feature_channels, out_channels, spatial_dims=spatial_dims, channels=channels, bins=bins, dropout=dropout
        )
        self.auxiliary = None
        if auxiliary_channels is not None:
            self.auxiliary = nn.Sequential(
                _conv_norm_relu(spatial_dims, auxiliary_channels, max(channels // 2, 1)),
                Dropout[Dropout.DROPOUT, spatial_dims](dropout),
                Conv[Conv.CONV, spatial_dims](max(channels // 2, 1), out_channels, kernel_size=1),
            )
        add_reading_record(self)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3, out_channels: int = 2) -> "PyramidSceneParsing":
        """Build a tiny ResNeSt with both heads at a few channels, which trains in seconds on a CPU."""
        backbone = ResNeSt.tiny(spatial_dims, in_channels)
        return cls(
            backbone, backbone.stage_channels[3], out_channels,
            spatial_dims=spatial_dims, channels=8, auxiliary_channels=backbone.stage_channels[2],
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give logits at the input's size, by linear interpolation: ``(B, C, *S) -> (B, out_channels, *S)``."""
        features = self.backbone(image)
        # A scripted backbone has one return type; TorchScript compiles only the branch of that type.
        last = features if isinstance(features, torch.Tensor) else features[-1]
        return self._at_size(self.head(last), image)

    @torch.jit.unused
    def auxiliary_logits(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the logits of both heads, for training: ``(B, C, *S) ->`` twice ``(B, out_channels, *S)``.

        The loss of the second head is added with ``auxiliary_weight``: it trains the middle layers of a deep backbone.
        """
        if self.auxiliary is None:
            raise ValueError("Expected a network with an auxiliary head: build it with `auxiliary_channels`.")
        features = self.backbone(image)
        if isinstance(features, torch.Tensor):
            raise ValueError(
                f"Expected a backbone that gives a list of maps for the auxiliary head, {type(self.backbone).__name__} "
                "gives one: leave `auxiliary_channels` out."
            )
        return self._at_size(self.head(features[-1]), image), self._at_size(self.auxiliary(features[-2]), image)

    def _at_size(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, size=image.shape[2:], mode=self.mode, align_corners=False)


def _conv_norm_relu(spatial_dims: int, in_channels: int, out_channels: int) -> Convolution:
    return Convolution(
        spatial_dims, in_channels, out_channels, kernel_size=3, act="relu", norm="batch", bias=False
    )  # fmt: skip
