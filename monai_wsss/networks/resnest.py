# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ResNeSt: a ResNet whose 3x3 convolutions choose, channel by channel, between branches.

Zhang et al. 2020, "ResNeSt: split-attention networks", arXiv:2004.08955.  Dilated to stride 8 it is the backbone of the
segmenter of Feng et al. (AAAI 2025, glands).  It is written from the paper and the shapes of the public checkpoints,
and its parts keep their names; the classifier ``fc`` is left out.

| part              | what                                                                    | channels, 50 | stride  |
|-------------------|-------------------------------------------------------------------------|--------------|---------|
| `conv1`, `bn1`    | deep stem: three 3x3 convolutions, the first of stride 2                | 64           | 2       |
| `maxpool`         | 3x3, stride 2                                                           | 64           | 4       |
| `layer1`-`layer4` | bottlenecks with :class:`SplitAttentionConv`; average pooling of its    | 256, 512,    | 4, 8,   |
|                   | result replaces a stride, as in the shortcut (ResNet-D)                 | 1024, 2048   | 16, 32  |

| symbol of the paper | name          | what                                           |
|---------------------|---------------|------------------------------------------------|
| R                   | `radix`       | branches that attention weighs against another |
| K                   | `cardinality` | groups of channels that do not see one another |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Norm, Pad, Pool
from torch import nn

from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.pooled_norm import PooledBatchNorm

__all__ = ["ResNeSt", "ResNeStBottleneck", "SplitAttentionConv"]

# By depth: blocks of the four layers, and channels behind the stem in units of the width; inside it half as many.
_DEPTHS = {50: ((3, 4, 6, 3), 1), 101: ((3, 4, 23, 3), 2), 200: ((3, 24, 36, 3), 2)}


class SplitAttentionConv(CheckedModule):
    """A 3x3 convolution into R branches and their sum with weights that depend on the whole image.

    The branches U_r (B, channels, *s) are summed and averaged over the image.  Two 1x1 convolutions turn that into R
    logits per channel, and a softmax over R turns these into the weights.  The result is sum_r weight_r U_r
    (arXiv:2004.08955, Section 3.1).  With one branch a sigmoid takes the place of the softmax, as there.

    Args:
        in_channels: F.
        channels: channels of each branch and of the result.
        spatial_dims: 2 or 3.
        dilation: of the 3x3 convolution.
        radix: R.
        cardinality: K; divides both numbers of channels.

    Example:
        >>> import torch
        >>> SplitAttentionConv(6, 8)(torch.zeros(2, 6, 7, 9)).shape
        torch.Size([2, 8, 7, 9])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        spatial_dims: int = 2,
        dilation: int = 1,
        radix: int = 2,
        cardinality: int = 1,
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        # A quarter of the branches' channels, at least 32: the reduction of the public checkpoints.
        inner = max(in_channels * radix // 4, 32)
        self.radix = radix
        self.cardinality = cardinality
        self.conv = conv(
            in_channels, channels * radix, 3,
            padding=dilation, dilation=dilation, groups=cardinality * radix, bias=False,
        )  # fmt: skip
        self.bn0 = Norm[Norm.BATCH, spatial_dims](channels * radix)
        self.pool = Pool[Pool.ADAPTIVEAVG, spatial_dims](1)
        self.fc1 = conv(in_channels=channels, out_channels=inner, kernel_size=1, groups=cardinality)
        self.bn1 = PooledBatchNorm(inner)
        self.fc2 = conv(inner, channels * radix, 1, groups=cardinality)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, F, *s) -> (B, channels, *s)``."""
        branches = self.relu(self.bn0(self.conv(features))).unflatten(1, (self.radix, -1))
        gate = self.pool(branches.sum(1))
        logits = self.fc2(self.relu(self.bn1(self.fc1(gate))))
        # The logits of a group lie side by side, branch after branch: (B, K, R, channels / K) -> (B, R, K, ...).
        logits = logits.reshape(logits.shape[0], self.cardinality, self.radix, -1).transpose(1, 2)
        weights = logits.softmax(1) if self.radix > 1 else logits.sigmoid()
        return (branches * weights.reshape(branches.shape[:3] + gate.shape[2:])).sum(1)


class ResNeStBottleneck(nn.Module):
    """1x1, split attention, 1x1 and a shortcut: ``(B, F, *s) -> (B, 4 * channels, *ceil(s / stride))``.

    Args:
        in_channels: F.
        channels: channels of the split attention.
        spatial_dims: 2 or 3.
        stride: taken by average pooling, 3x3 behind the split attention, ``stride`` x ``stride`` in the shortcut.
        dilation: of the split attention.
        pool: have that 3x3 average.  The public networks have it in the first block of every layer but the first,
            at stride 1 too.
        project: make the shortcut a 1x1 convolution with batch norm, as the first block of a layer has it.

    Example:
        >>> import torch
        >>> block = ResNeStBottleneck(16, 8, stride=2, pool=True, project=True)
        >>> block(torch.zeros(2, 16, 9, 8)).shape
        torch.Size([2, 32, 5, 4])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        spatial_dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        pool: bool = False,
        project: bool = False,
    ) -> None:
        super().__init__()
        conv, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        average = Pool[Pool.AVG, spatial_dims]
        out_channels = 4 * channels
        self.conv1 = conv(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = SplitAttentionConv(channels, channels, spatial_dims=spatial_dims, dilation=dilation)
        self.pool: nn.Module = nn.Identity()
        if pool:  # padded beforehand, since 3D average pooling refuses what is smaller than its kernel without padding
            self.pool = nn.Sequential(Pad[Pad.CONSTANTPAD, spatial_dims](1, 0.0), average(3, stride))
        self.conv3 = conv(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if project:
            shrink = average(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.downsample = nn.Sequential(shrink, conv(in_channels, out_channels, 1, bias=False), norm(out_channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, F, *s) -> (B, 4 * channels, *ceil(s / stride))``."""
        out = self.relu(self.bn1(self.conv1(features)))
        out = self.bn3(self.conv3(self.pool(self.conv2(out))))
        return self.relu(out + self.downsample(features))


class ResNeSt(CheckedModule):
    """Features of four layers: ``(B, C, *S) -> [(B, 4w, *s1), (B, 8w, *s2), (B, 16w, *s3), (B, 32w, *s4)]``.

    The list is that of MONAI's ``ResNetFeatures``; whoever wants one map takes the last.

    Args:
        depth: 50, 101 or 200; 27.5, 48.3 and 70.2 million parameters with the classifiers of their checkpoints.
        spatial_dims: 2 or 3; the public weights are for 2.
        in_channels: C.
        output_stride: 8, by dilation in ``layer3`` and ``layer4`` as segmentation needs it, or 32; the parameters are
            the same.
        width: w, channels of the first layer's split attention; the stem gives w channels at depth 50, else 2w.
        blocks: of the four layers; None takes those of ``depth``.

    Attributes:
        stage_channels: channels of the four maps.

    Raises:
        ValueError: a depth or stride that is not among these; a volume with a side below the stride.

    Example:
        >>> import torch
        >>> [tuple(features.shape) for features in ResNeSt.tiny().eval()(torch.zeros(1, 3, 32, 40))]
        [(1, 32, 8, 10), (1, 64, 4, 5), (1, 128, 4, 5), (1, 256, 4, 5)]
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        spatial_dims: int = 2,
        in_channels: int = 3,
        output_stride: int = 8,
        width: int = 64,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
        if depth not in _DEPTHS:
            raise ValueError(f"Expected `depth` to be 50, 101 or 200, got {depth}.")
        if output_stride not in (8, 32):
            raise ValueError(f"Expected `output_stride` to be 8 or 32, got {output_stride}.")
        counts = _DEPTHS[depth][0] if blocks is None else tuple(blocks)
        if len(counts) != 4 or min(counts) < 1:
            raise ValueError(f"Expected `blocks` of four layers, at least 1 each, got {counts}.")
        stem_channels = width * _DEPTHS[depth][1]
        self.stage_channels = tuple(4 * width * 2**n for n in range(4))
        self.conv1 = _deep_stem(spatial_dims, in_channels, stem_channels)
        self.bn1 = Norm[Norm.BATCH, spatial_dims](stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = Pool[Pool.MAX, spatial_dims](3, 2, padding=1)
        self.output_stride = output_stride
        dense = output_stride == 8
        before = (stem_channels, *self.stage_channels)
        strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if dense else ((1, 2, 2, 2), (1, 1, 1, 1))
        layers = [
            _layer(spatial_dims, before[n], width * 2**n, counts[n], strides[n], dilations[n], pool=n > 0)
            for n in range(4)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3) -> ResNeSt:
        """Build one bottleneck per layer at width 8, which trains in seconds on a CPU."""
        return cls(spatial_dims=spatial_dims, in_channels=in_channels, width=8, blocks=(1, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the maps of the four layers, of strides 4, 8 and then 8, 8 or 16, 32, sides rounded up."""
        if image.dim() == 5 and min(image.shape[2:]) < self.output_stride:
            raise ValueError(
                f"Expected volumes with sides of at least the stride {self.output_stride}, got {image.shape[2:]}."
            )
        first = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(image)))))
        second = self.layer2(first)
        third = self.layer3(second)
        return [first, second, third, self.layer4(third)]


def _deep_stem(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Build three 3x3 convolutions in place of one of 7x7; the last one's batch norm stands outside."""
    conv, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
    inner = out_channels // 2
    return nn.Sequential(
        conv(in_channels, inner, 3, 2, padding=1, bias=False), norm(inner), nn.ReLU(inplace=True),
        conv(inner, inner, 3, padding=1, bias=False), norm(inner), nn.ReLU(inplace=True),
        conv(inner, out_channels, 3, padding=1, bias=False),
    )  # fmt: skip


def _layer(
    spatial_dims: int, in_channels: int, channels: int, count: int, stride: int, dilation: int, pool: bool
) -> nn.Sequential:
    """Build ``count`` bottlenecks; the first has half the dilation: its input has the density of the layer before."""
    first = ResNeStBottleneck(
        in_channels, channels,
        spatial_dims=spatial_dims, stride=stride, dilation=max(dilation // 2, 1), pool=pool, project=True,
    )  # fmt: skip
    others = [
        ResNeStBottleneck(4 * channels, channels, spatial_dims=spatial_dims, dilation=dilation) for _ in range(1, count)
    ]
    return nn.Sequential(first, *others)
