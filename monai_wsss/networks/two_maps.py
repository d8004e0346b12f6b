# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two dense maps from any encoder, an early one that does not see its deepest level and a final one that does.

    L_i     = norm_i(conv1x1_i(X^i))                             a lateral per map X^i of the encoder, X^1 .. X^n
    early   = dropout(relu(norm(conv3x3(relu(sum_{i<n}  resize(L_i, s))))))
    final   = dropout(relu(norm(conv3x3(relu(sum_{i<=n} resize(L_i, s))))))

CoSA classifies two maps of a transformer, of its last block and of an earlier one, both at stride 16.  A convolutional
encoder has maps of many strides instead; these two stand in their place.  The paper has no such encoder.
"""

# Annotations stay real types: TorchScript reads them.
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import nn

from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.encoder_facts import encoder_channels, encoder_in_channels
from monai_wsss.networks.feature_fusion import FusedFeatures, sum_of_maps

__all__ = ["TwoFusedMaps"]


class TwoFusedMaps(CheckedModule):
    """An encoder of two maps at one stride: ``(B, C, *S) -> [early (B, width, *s), final (B, width, *s)]``.

    Args:
        encoder: gives a list of two maps or more, see :class:`~monai_wsss.networks.FusedFeatures`.
        feature_channels: see there.
        width: channels of both maps.
        stride: of both maps, see there.
        dropout: see there.
        norm: see there.
        spatial_dims: see there.

    Attributes:
        feature_channels: ``(width, width)``.
        feature_strides: ``(stride, stride)``.
        attention_channels: 0; there is no attention.
        spatial_dims: 2 or 3.
        in_channels: those of the encoder.

    Raises:
        ValueError: an encoder of one map, or what :class:`~monai_wsss.networks.FusedFeatures` refuses.

    Example:
        >>> import torch
        >>> from monai_wsss.networks import EfficientNetLite
        >>> encoder = TwoFusedMaps(EfficientNetLite.tiny(), width=8)
        >>> [tuple(features.shape) for features in encoder(torch.zeros(1, 3, 64, 48))]
        [(1, 8, 16, 12), (1, 8, 16, 12)]
    """

    new_parts = ("fused.laterals", "fused.fuse", "fuse_early")

    def __init__(
        self,
        encoder: nn.Module,
        *,
        feature_channels: Sequence[int] | None = None,
        width: int = 48,
        stride: int = 4,
        dropout: float = 0.1,
        norm: str = "batch",
        spatial_dims: int | None = None,
    ) -> None:
        super().__init__()
        channels = encoder_channels(encoder, feature_channels)
        if len(channels) < 2:
            raise ValueError(f"Expected an `encoder` of two maps or more, {type(encoder).__name__} gives one.")
        # Its fused map is the final one.
        self.fused = FusedFeatures(
            encoder,
            feature_channels=channels, width=width, stride=stride, dropout=dropout, norm=norm,
            spatial_dims=spatial_dims,
        )  # fmt: skip
        self.spatial_dims = self.fused.spatial_dims
        self.in_channels = encoder_in_channels(encoder)
        self.feature_channels = (width, width)
        self.feature_strides = (stride, stride)
        self.attention_channels = 0
        self.fuse_early = Convolution(self.spatial_dims, width, width, kernel_size=3, act="relu", norm=norm, bias=False)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1) -> "TwoFusedMaps":
        """Build one of 8 channels on the tiny :class:`~monai_wsss.networks.ConvPyramid`: trains in seconds on a CPU."""
        return cls(ConvPyramid.tiny(spatial_dims, in_channels), width=8, stride=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the early and the final map."""
        laterals = self.fused.resized_laterals(image)
        early = sum_of_maps(laterals[:-1])
        final = early + laterals[-1]
        return [self.fused.dropout(self.fuse_early(F.relu(early))), self.fused.dropout(self.fused.fuse(F.relu(final)))]
