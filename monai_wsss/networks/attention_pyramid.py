# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Queries and keys for an encoder without attention, so that AFA and BMP learn their affinity from any encoder.

They take the affinity from the attention of a transformer's last level.  A convolutional encoder gets 1x1 query and key
projections of its last level instead, which learn from the affinity loss only.  The papers have no such encoder.
"""

# Annotations stay real types: TorchScript reads them.
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss.networks.attention_logits import attention_logits
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.encoder_facts import encoder_channels, encoder_dims, encoder_in_channels, encoder_strides

__all__ = ["AttentionPyramid"]


class AttentionPyramid(CheckedModule):
    """An encoder with query and key projections of its last level, as an encoder of a two-branch network.

    Args:
        encoder: gives a list of maps, fine to coarse.
        heads: of the projections, a divisor of the last map's channels; 0: no projections, and so no affinity.
        feature_channels: channels of all maps of the encoder; None: as it tells them.
        levels: which maps to give, by their index; None for all.  A two-branch network wants four.

    Attributes:
        feature_channels: of the maps given, and so ``feature_strides``, where the encoder tells its strides.
        attention_channels: ``heads``.
        spatial_dims: those of the encoder, and so ``in_channels``.

    Raises:
        ValueError: an encoder that does not tell its channels, where they are not given; an unknown level; or heads
            that do not divide the channels.

    Example:
        >>> import torch
        >>> from monai.networks.nets import ResNetFeatures
        >>> resnet = ResNetFeatures("resnet10", pretrained=False, spatial_dims=2, in_channels=3)
        >>> encoder = AttentionPyramid(resnet, feature_channels=(64, 64, 128, 256, 512), levels=(1, 2, 3, 4))
        >>> features, pairs = encoder.eval().forward_with_queries(torch.zeros(1, 3, 64, 64))
        >>> [tuple(each.shape) for each in features], pairs[0][0].shape
        ([(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)], torch.Size([1, 8, 4, 64]))
    """

    new_parts = ("query", "key")

    def __init__(
        self,
        encoder: nn.Module,
        heads: int = 8,
        *,
        feature_channels: Sequence[int] | None = None,
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        channels, strides = encoder_channels(encoder, feature_channels), encoder_strides(encoder)
        chosen = list(range(len(channels)) if levels is None else levels)
        if not chosen or not set(chosen) <= set(range(len(channels))):
            raise ValueError(f"Expected `levels` among 0 to {len(channels) - 1}, got {chosen}.")
        self.levels = chosen
        self.feature_channels = tuple(channels[level] for level in chosen)
        self.feature_strides = tuple(strides[level] for level in chosen) if strides else ()
        last = self.feature_channels[-1]
        if heads < 0 or (heads and last % heads):
            raise ValueError(f"Expected `heads` that divide {last} channels, got {heads}.")
        self.encoder = encoder
        self.spatial_dims = encoder_dims(encoder)
        self.in_channels = encoder_in_channels(encoder)
        self.attention_channels = heads
        if heads:
            conv = Conv[Conv.CONV, self.spatial_dims]
            self.query = conv(last, last, kernel_size=1)
            self.key = conv(last, last, kernel_size=1)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1) -> "AttentionPyramid":
        """Build one of two heads on a :class:`~monai_wsss.networks.ConvPyramid` of width 4 without its own."""
        return cls(ConvPyramid(spatial_dims, in_channels, width=4, attention_heads=0), heads=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the chosen maps."""
        features = self.encoder(image)
        result: list[torch.Tensor] = []
        for level in self.levels:
            result.append(features[level])
        return result

    @torch.jit.unused
    def forward_with_queries(
        self, image: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Give the maps of :meth:`forward`, and one pair of queries and keys of the last level.

        The queries and the keys are (B, heads, N, F / heads) each.
        """
        if not self.attention_channels:
            raise ValueError("Expected an encoder with `heads` of 1 or more, got 0.")
        features = self(image)
        heads = (self.attention_channels, -1)
        query, key = (conv(features[-1]).flatten(2).unflatten(1, heads).mT for conv in (self.query, self.key))
        return features, [(query, key)]

    @torch.jit.unused
    def forward_with_attention(
        self, image: torch.Tensor, radius: int | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Give the maps of :meth:`forward`, and the logits q . k^T of its queries and keys.

        The logits are (B, heads, N, N), or windowed (B, heads, W, *s), see
        :func:`~monai_wsss.networks.attention_logits.attention_logits`.
        """
        features, pairs = self.forward_with_queries(image)
        return features, [attention_logits(query, key, features[-1].shape[2:], radius) for query, key in pairs]
