# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A ResNet whose last stages keep their resolution by dilation, as DeepLab has it (Chen et al. 2018, Section 3.1).

A stage of stride 2 gets the stride 1, and what comes after it reads twice as far apart. So weights that were trained
with strides fit, and the old features are every second one of the new. Parameters have the names of torchvision and of
MONAI: ImageNet weights (2D) and MedicalNet weights (3D) load by name. Nothing is downloaded.
"""

# Annotations stay real types: TorchScript reads them.
from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import nn

from monai_wsss.networks.checked import CheckedModule

__all__ = ["DilatedResNet", "dilate_stage", "resnet_stages"]


class DilatedResNet(CheckedModule, nn.Sequential):
    """Features at stride 8 of images or volumes: ``(B, C, *S) -> (B, 32 width, *ceil(S / 8))``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        width: channels of the stem.
        blocks: bottlenecks of the four stages; ``(3, 4, 23, 3)`` is ResNet-101, ``(3, 4, 6, 3)`` is ResNet-50.

    Attributes:
        feature_channels: (32 width,).
        feature_strides: (8,).

    Example:
        >>> import torch
        >>> DilatedResNet.tiny().eval()(torch.zeros(1, 1, 60, 65)).shape
        torch.Size([1, 128, 8, 9])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        *,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 23, 3),
    ) -> None:
        if len(blocks) != 4:
            raise ValueError(f"Expected `blocks` of 4 stages, got {tuple(blocks)}.")
        super().__init__(resnet_stages(spatial_dims, in_channels, width, blocks))
        dilate_stage(self.get_submodule("layer3"))
        dilate_stage(self.get_submodule("layer4"), before=2)
        self.feature_channels = (32 * width,)
        self.feature_strides = (8,)
        self.spatial_dims = spatial_dims

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1) -> "DilatedResNet":
        """Build the same network at width 4 with one block per stage, which trains in seconds on a CPU."""
        return cls(spatial_dims, in_channels, width=4, blocks=(1, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, *S) -> (B, 32 width, *ceil(S / 8))``, never negative."""
        for part in self:
            image = part(image)
        return image


def resnet_stages(
    spatial_dims: int, in_channels: int, width: int, blocks: Sequence[int]
) -> "OrderedDict[str, nn.Module]":
    """Give stem and three or four stages of a bottleneck ResNet by their own names, without classifier.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        width: channels of the stem.
        blocks: bottlenecks of the stages.
    """
    resnet = ResNet(
        ResNetBottleneck,
        [*blocks, 1][:4],
        [width, 2 * width, 4 * width, 8 * width],
        spatial_dims=spatial_dims,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    names = ("conv1", "bn1", "act", "maxpool", *(f"layer{stage + 1}" for stage in range(len(blocks))))
    return OrderedDict((name, getattr(resnet, name)) for name in names)


def dilate_stage(stage: nn.Module, before: int = 1) -> None:
    """Give a stage of stride 2 the stride 1, in place; its old outputs are every second one of the new outputs.

    The first 3x3 convolution still reads features of the old density and only loses its stride, as the shortcut does.
    The later ones read features twice as dense and take steps twice as long.

    Args:
        stage: bottlenecks, by number.
        before: steps of the features that come in: 2 where the stage before has been dilated.
    """
    for name, conv in stage.named_modules():
        if not isinstance(conv, (nn.Conv2d, nn.Conv3d)):
            continue
        conv.stride = tuple(1 for _ in conv.stride)
        if conv.kernel_size[0] == 3:
            step = before if name.startswith("0.") else 2 * before
            conv.dilation = conv.padding = tuple(step for _ in conv.dilation)
