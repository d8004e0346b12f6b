# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One dense map from the maps of any encoder, fused at a fine stride, and the two networks that read it.

    L_i = norm_i(conv1x1_i(X^i))                       a lateral per map X^i of the encoder, all of one width
    D   = relu(sum_i resize(L_i, s))                   s is the size at the chosen stride
    Y   = dropout(relu(norm(conv3x3(D))))              (B, width, *s)

A pretrained encoder names what it sees at stride 16 or 32, and where it sees it at stride 4. Class maps of the last
level alone are too coarse for small findings; class maps of Y are as fine as the stride.
"""

# Annotations stay real types: TorchScript reads them.
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Dropout
from monai.networks.layers.utils import get_norm_layer
from torch import nn

from monai_wsss._resize import linear_mode
from monai_wsss.networks.cam_adapter import CAMAdapter
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.encoder_facts import encoder_channels, encoder_dims, encoder_name, encoder_strides
from monai_wsss.networks.reading_record import add_reading_record
from monai_wsss.refinement import MaskRule

__all__ = ["EncoderLevel", "FusedFeatures", "FusedSegmenter", "fused_cam_network"]


def sum_of_maps(maps: list[torch.Tensor]) -> torch.Tensor:
    """Add maps of one shape."""
    total = maps[0]
    for each in maps[1:]:
        total = total + each
    return total


class FusedFeatures(CheckedModule):
    """The maps of an encoder as one dense map: ``(B, C, *S) -> (B, width, *s)``.

    Args:
        encoder: gives a list of maps, e.g. :class:`~monai_wsss.networks.MixTransformer`,
            :class:`~monai_wsss.networks.ConvPyramid`, MONAI's ``ResNetFeatures``, or a timm network built with
            ``features_only=True``.
        feature_channels: channels of its maps, in their order; None reads them from the encoder's
            ``feature_channels`` or ``feature_info``.
        width: channels of the result.
        stride: of the result. Its sides are those of the encoder's map of that stride where the encoder tells its
            strides (``feature_strides`` or ``feature_info``) and has one, else ceil(S / stride).
        dropout: share of the channels that training leaves out, in [0, 1).
        norm: MONAI normalization after each convolution.
        spatial_dims: 2 or 3; None reads them from the encoder.

    Attributes:
        feature_channels: ``(width,)``.
        feature_strides: ``(stride,)``.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: an encoder that does not tell its channels, where they are not given; a stride or width below 1; an
            encoder that gives another number of maps.

    Example:
        >>> import torch
        >>> from monai_wsss.networks import MixTransformer
        >>> FusedFeatures(MixTransformer.tiny(), width=8).eval()(torch.zeros(1, 3, 50, 33)).shape
        torch.Size([1, 8, 13, 9])
    """

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
        if width < 1 or stride < 1:
            raise ValueError(f"Expected `width` and `stride` of at least 1, got {width} and {stride}.")
        channels = encoder_channels(encoder, feature_channels)
        dims = encoder_dims(encoder) if spatial_dims is None else spatial_dims
        strides = encoder_strides(encoder)
        self.encoder = encoder
        self.spatial_dims = dims
        self.feature_channels = (width,)
        self.feature_strides = (stride,)
        self.stride = stride
        self.mode = linear_mode(dims)
        # The map whose size the result takes; -1: there is none of that stride.
        self.level_of_stride = strides.index(stride) if stride in strides else -1
        self.laterals = nn.ModuleList(
            nn.Sequential(
                Conv[Conv.CONV, dims](count, width, kernel_size=1, bias=False),
                get_norm_layer(norm, spatial_dims=dims, channels=width),
            )
            for count in channels
        )
        self.fuse = Convolution(dims, width, width, kernel_size=3, act="relu", norm=norm, bias=False)
        self.dropout = Dropout[Dropout.DROPOUT, dims](dropout)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1) -> "FusedFeatures":
        """Build one of 8 channels on the tiny :class:`~monai_wsss.networks.ConvPyramid`: trains in seconds on a CPU."""
        return cls(ConvPyramid.tiny(spatial_dims, in_channels), width=8, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give the fused map: ``(B, C, *S) -> (B, width, *s)``."""
        return self.dropout(self.fuse(F.relu(sum_of_maps(self.resized_laterals(image)))))

    def resized_laterals(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the laterals of all maps of the encoder at the size of the result, (B, width, *s) each."""
        if self.spatial_dims == 2:
            # Faster on a CPU; only the memory layout differs, the values are the same.
            image = image.contiguous(memory_format=torch.channels_last)
        features = self.encoder(image)
        # A scripted encoder has one return type: TorchScript compiles only those that give a list.
        if not torch.jit.is_scripting():
            features = self._levels(features)
        size = [-(-side // self.stride) for side in image.shape[2:]]
        if self.level_of_stride >= 0:
            size = list(features[self.level_of_stride].shape[2:])
        laterals: list[torch.Tensor] = []
        for n, lateral in enumerate(self.laterals):
            laterals.append(F.interpolate(lateral(features[n]), size=size, mode=self.mode, align_corners=False))
        return laterals

    def _levels(self, features: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Turn what the encoder gives into a list of maps, and check their number."""
        levels = [features] if isinstance(features, torch.Tensor) else list(features)
        if len(levels) != len(self.laterals):
            raise ValueError(
                f"Expected {len(self.laterals)} maps, as `feature_channels` tell, {type(self.encoder).__name__} "
                f"gives {len(levels)}."
            )
        return levels


class EncoderLevel(CheckedModule):
    """One map of an encoder: ``(B, C, *S) -> (B, F, *s)``.

    Layers behind that map get no gradient: build the encoder without them where it can be, e.g.
    ``EfficientNetLite(levels=(4,))``.

    Args:
        encoder: see :class:`FusedFeatures`.
        level: the index of the map; -1 is the last.
        feature_channels: see :class:`FusedFeatures`.

    Attributes:
        feature_channels: ``(F,)``.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: an unknown level, or an encoder that does not tell its channels, where they are not given.

    Example:
        >>> import torch
        >>> EncoderLevel(ConvPyramid.tiny(), 1)(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 8, 16, 16])
    """

    def __init__(self, encoder: nn.Module, level: int = -1, *, feature_channels: Sequence[int] | None = None) -> None:
        super().__init__()
        channels = encoder_channels(encoder, feature_channels)
        if not -len(channels) <= level < len(channels):
            raise ValueError(f"Expected `level` among 0 to {len(channels) - 1}, got {level}.")
        self.encoder = encoder
        self.level = level
        self.feature_channels = (channels[level],)
        self.spatial_dims = encoder_dims(encoder)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1) -> "EncoderLevel":
        """Build the last map of the tiny :class:`~monai_wsss.networks.ConvPyramid`."""
        return cls(ConvPyramid.tiny(spatial_dims, in_channels))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give the map: ``(B, C, *S) -> (B, F, *s)``."""
        if self.spatial_dims == 2:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.encoder(image)[self.level]


class FusedSegmenter(CheckedModule):
    """A segmenter on the fused maps of an encoder: ``(B, C, *S) -> (B, out_channels, *S)`` logits.

    Args:
        encoder: see :class:`FusedFeatures`.
        out_channels: K + 1 with a background, K where all classes are real tissue.
        feature_channels: see :class:`FusedFeatures`.
        width: see there.
        stride: see there.
        dropout: see there.
        norm: see there.
        spatial_dims: see there.

    Attributes:
        output_kind: ``"segmentation"``.
        settings: what it was built with, for the record of a run.

    Raises:
        ValueError: no output channel, or what :class:`FusedFeatures` refuses.

    Example:
        >>> import torch
        >>> FusedSegmenter.tiny(in_channels=3).eval()(torch.zeros(1, 3, 50, 33)).shape
        torch.Size([1, 2, 50, 33])
    """

    # Real types, not strings: TorchScript reads them, so this file does without `from __future__ import annotations`.
    output_kind: str = "segmentation"

    def __init__(
        self,
        encoder: nn.Module,
        out_channels: int = 2,
        *,
        feature_channels: Sequence[int] | None = None,
        width: int = 48,
        stride: int = 4,
        dropout: float = 0.1,
        norm: str = "batch",
        spatial_dims: int | None = None,
    ) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"Expected `out_channels` >= 1, got {out_channels}.")
        self.output_kind = "segmentation"
        self.backbone = FusedFeatures(
            encoder,
            feature_channels=feature_channels, width=width, stride=stride, dropout=dropout, norm=norm,
            spatial_dims=spatial_dims,
        )  # fmt: skip
        self.spatial_dims = self.backbone.spatial_dims
        self.mode = self.backbone.mode
        self.head = Conv[Conv.CONV, self.spatial_dims](width, out_channels, kernel_size=1)
        self.settings = {"encoder": encoder_name(encoder), "width": width, "stride": stride, "dropout": dropout}
        add_reading_record(self)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> "FusedSegmenter":
        """Build one of 8 channels on the tiny :class:`~monai_wsss.networks.ConvPyramid`: trains in seconds on a CPU."""
        return cls(ConvPyramid.tiny(spatial_dims, in_channels), num_classes + 1, width=8, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give logits at the input's size, linear between half-pixel centers."""
        logits = self.head(self.backbone(image))
        return F.interpolate(logits, size=image.shape[2:], mode=self.mode, align_corners=False)

    @torch.jit.unused
    def mask_rule(self) -> MaskRule:
        """Give the rule by which the segmentation becomes a mask: the argmax."""
        return MaskRule(output_kind=self.output_kind)


def fused_cam_network(
    encoder: nn.Module,
    num_classes: int = 1,
    *,
    feature_channels: Sequence[int] | None = None,
    width: int = 48,
    stride: int = 4,
    dropout: float = 0.1,
    pooling: str = "topk",
    topk_share: float = 0.25,
    lse_sharpness: float = 5.0,
    norm: str = "batch",
    spatial_dims: int | None = None,
) -> CAMAdapter:
    """Build a network whose class maps stand on the fused maps of an encoder.

    Args:
        encoder: see :class:`FusedFeatures`.
        num_classes: K, the foreground classes.
        feature_channels: see :class:`FusedFeatures`.
        width: see there.
        stride: see there.
        dropout: see there.
        pooling: see :class:`~monai_wsss.networks.ActivationNetwork`.
        topk_share: see there; 0.25 suits textures, 0.1 small findings.
        lse_sharpness: see there.
        norm: see :class:`FusedFeatures`.
        spatial_dims: see there.

    Example:
        >>> import torch
        >>> network = fused_cam_network(ConvPyramid.tiny(), num_classes=2, width=8)
        >>> network(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 2, 32, 32])
    """
    features = FusedFeatures(
        encoder,
        feature_channels=feature_channels,
        width=width,
        stride=stride,
        dropout=dropout,
        norm=norm,
        spatial_dims=spatial_dims,
    )
    pooled: dict[str, Any] = {"pooling": pooling, "topk_share": topk_share, "lse_sharpness": lse_sharpness}
    network = CAMAdapter(features, width, num_classes, spatial_dims=features.spatial_dims, **pooled)
    told = {"encoder": encoder_name(encoder), "width": width, "stride": stride, "dropout": dropout, **pooled}
    network.settings = told  # type: ignore[assignment]
    return network
