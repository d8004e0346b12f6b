# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Segmenters of the DeepLab kind, for second stages: a backbone of stride 8 and dilated 3x3 classifiers.

| builder              | backbone                                     | head                                           |
|----------------------|----------------------------------------------|------------------------------------------------|
| `deeplab_segmenter`  | ResNet-101 without strides in stages 3 and 4 | four 3x3 of rates 6, 12, 18, 24, added         |
| `resnet38_segmenter` | ResNet38 (Wu et al. 2019)                    | 3x3 of rate 12 to 512 channels, ReLU, one more |

The first is DeepLab v2 (Chen et al. 2018, "DeepLab", ASPP-L), the second the one that CoSA's code and most weakly
supervised work call WR38. Both are standalone networks of CoSA-MS, beside a Swin transformer.
"""

# Annotations stay real types: TorchScript reads them.
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss._resize import linear_mode
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.dilated_resnet import DilatedResNet
from monai_wsss.networks.reading_record import add_reading_record
from monai_wsss.networks.resnet38 import ResNet38
from monai_wsss.refinement import MaskRule

__all__ = ["AtrousSegmenter", "deeplab_segmenter", "resnet38_segmenter"]


class AtrousSegmenter(CheckedModule):
    """A backbone and dilated 3x3 classifiers as a deployable segmenter: ``(B, C, *S) -> (B, out_channels, *S)`` logits.

    Args:
        backbone: gives one map ``(B, F, *s)``.
        feature_channels: F.
        out_channels: K + 1 with a background, K where all classes are real tissue.
        spatial_dims: 2 or 3.
        dilations: rates of the classifiers, which are added, in pixels of the map.
        width: channels of a dilated 3x3 convolution with ReLU before them, at the first rate; None: there is none.

    Attributes:
        output_kind: ``"segmentation"``.
        settings: what it was built with, for the record of a run.

    Raises:
        ValueError: no output channel, or no rate.

    Example:
        >>> import torch
        >>> AtrousSegmenter.tiny(in_channels=3).eval()(torch.zeros(1, 3, 50, 33)).shape
        torch.Size([1, 2, 50, 33])
    """

    output_kind: str = "segmentation"

    def __init__(
        self,
        backbone: nn.Module,
        feature_channels: int,
        out_channels: int = 2,
        *,
        spatial_dims: int = 2,
        dilations: Sequence[int] = (6, 12, 18, 24),
        width: int | None = None,
    ) -> None:
        super().__init__()
        if out_channels < 1 or not dilations or min(dilations) < 1:
            raise ValueError(
                f"Expected `out_channels` >= 1 and `dilations` of at least 1, got {out_channels} and {dilations}."
            )
        self.output_kind = "segmentation"
        self.mode = linear_mode(spatial_dims)
        self.backbone = backbone
        conv = Conv[Conv.CONV, spatial_dims]
        self.before: nn.Module = nn.Identity()
        if width is not None:
            first = conv(feature_channels, width, 3, padding=dilations[0], dilation=dilations[0])
            self.before = nn.Sequential(first, nn.ReLU())
            feature_channels = width
        self.classifiers = nn.ModuleList(
            conv(feature_channels, out_channels, 3, padding=rate, dilation=rate) for rate in dilations
        )
        for name, parameter in self.classifiers.named_parameters():
            nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else 0.01)
        self.settings = {"backbone": type(backbone).__name__, "dilations": tuple(dilations), "width": width}
        add_reading_record(self)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> "AtrousSegmenter":
        """Build one on a tiny ResNet with two rates, which trains in seconds on a CPU."""
        backbone = DilatedResNet.tiny(spatial_dims, in_channels)
        channels = backbone.feature_channels[-1]
        return cls(backbone, channels, num_classes + 1, spatial_dims=spatial_dims, dilations=(1, 2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give logits at the input's size, by linear interpolation: ``(B, C, *S) -> (B, out_channels, *S)``."""
        features = self.before(self.backbone(image))
        logits: list[torch.Tensor] = []
        for classifier in self.classifiers:
            logits.append(classifier(features))
        total = torch.stack(logits).sum(0)
        return F.interpolate(total, size=image.shape[2:], mode=self.mode, align_corners=False)

    @torch.jit.unused
    def mask_rule(self) -> MaskRule:
        """Give the rule by which the segmentation becomes a mask: the argmax."""
        return MaskRule(output_kind=self.output_kind)


def deeplab_segmenter(
    out_channels: int,
    in_channels: int = 3,
    *,
    spatial_dims: int = 2,
    width: int = 64,
    blocks: Sequence[int] = (3, 4, 23, 3),
    dilations: Sequence[int] = (6, 12, 18, 24),
) -> AtrousSegmenter:
    """Build DeepLab v2 on ResNet-101 (R101).

    Args:
        out_channels: K + 1.
        in_channels: C.
        spatial_dims: 2 or 3.
        width: channels of the stem.
        blocks: bottlenecks of the four stages.
        dilations: rates of the classifiers.

    Example:
        >>> network = deeplab_segmenter(21, width=4, blocks=(1, 1, 1, 1))
        >>> len(network.classifiers), network.backbone.feature_channels
        (4, (128,))
    """
    backbone = DilatedResNet(spatial_dims, in_channels, width=width, blocks=blocks)
    channels = backbone.feature_channels[-1]
    return AtrousSegmenter(backbone, channels, out_channels, spatial_dims=spatial_dims, dilations=dilations)


def resnet38_segmenter(
    out_channels: int, in_channels: int = 3, *, spatial_dims: int = 2, width: int = 64, frozen: str = "paper"
) -> AtrousSegmenter:
    """Build ResNet38 with two dilated 3x3 convolutions (WR38).

    Args:
        out_channels: K + 1.
        in_channels: C.
        spatial_dims: 2 or 3.
        width: channels of the first convolution; the head has 8 times as many.
        frozen: see :class:`~monai_wsss.networks.ResNet38`; ``"paper"`` is for ImageNet weights.

    Example:
        >>> network = resnet38_segmenter(21, width=2, frozen="none")
        >>> network.classifiers[0].in_channels, network.classifiers[0].dilation
        (16, (12, 12))
    """
    backbone = ResNet38(spatial_dims, in_channels, width=width, frozen=frozen)
    channels = backbone.stage_channels[7]
    return AtrousSegmenter(
        backbone, channels, out_channels, spatial_dims=spatial_dims, dilations=(12,), width=8 * width
    )
