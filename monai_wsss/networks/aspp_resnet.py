# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""DeepLabV3 as a map-giving network: a ResNet cut after its third stage, an atrous spatial pyramid, a 1x1 head.

The second backbone of CMER (Patel & Dolz 2022, Table IV); the pyramid is that of Chen et al. 2017, "Rethinking atrous
convolution for semantic image segmentation", arXiv:1706.05587, Section 3.3.

| part       | what                                                                               | channels      |
|------------|------------------------------------------------------------------------------------|---------------|
| `backbone` | 7x7 stem and stages 1-3 of a ResNet-50, stride 16, or 8 with a dilated third stage | 16w = 1024    |
| `pyramid`  | 1x1; 3x3 at three dilations; image mean with 1x1; side by side, fused by a 1x1     | 4w = 256      |
| `head`     | 1x1 with bias: the raw class maps                                                  | K, or K + 1   |

The backbone keeps the parameter names of torchvision and of MONAI, so that :meth:`ASPPResNet.load_backbone` loads
ImageNet weights (2D) and MedicalNet weights (3D) by name. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss.networks.activation import ActivationNetwork
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.dilated_resnet import dilate_stage, resnet_stages
from monai_wsss.networks.pooled_norm import PooledBatchNorm
from monai_wsss.networks.pretrained import load_pretrained

__all__ = ["ASPPResNet", "AtrousSpatialPyramid"]


class AtrousSpatialPyramid(CheckedModule):
    """Context at several scales: ``(B, F, *s) -> (B, out_channels, *s)``, each convolution with batch norm and ReLU.

    The image mean of a batch of one image has no batch statistics, since it is a single value per channel. In training
    its branch is then normalized by the running statistics, as in eval mode, and these are not updated.

    Args:
        spatial_dims: 2 or 3.
        in_channels: F.
        out_channels: channels of each branch and of the result.
        dilations: those of the 3x3 branches, in pixels of the features. Where one reaches beyond the features, as 18
            does at 15 x 15 (240 x 240 images at stride 16), only the center of its kernel sees any.

    Example:
        >>> import torch
        >>> AtrousSpatialPyramid(2, 8, 4).eval()(torch.zeros(1, 8, 15, 15)).shape
        torch.Size([1, 4, 15, 15])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, dilations: Sequence[int] = (6, 12, 18)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_conv_norm_relu(spatial_dims, in_channels, out_channels)])
        for dilation in dilations:
            self.branches.append(_conv_norm_relu(spatial_dims, in_channels, out_channels, 3, dilation))
        self.image_conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1, bias=False)
        self.image_norm = PooledBatchNorm(out_channels)
        self.fuse = _conv_norm_relu(spatial_dims, (len(dilations) + 2) * out_channels, out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Give features with context: ``(B, F, *s) -> (B, out_channels, *s)``."""
        parts = [branch(features) for branch in self.branches]
        parts.append(self._image_level(features).expand_as(parts[0]))
        return self.fuse(torch.cat(parts, dim=1))

    def _image_level(self, features: torch.Tensor) -> torch.Tensor:
        """Give the branch of the image mean: ``(B, F, *s) -> (B, out_channels, 1, 1[, 1])``."""
        mean = features.mean(list(range(2, features.dim())), keepdim=True)
        return self.image_norm(self.image_conv(mean)).relu()


class ASPPResNet(ActivationNetwork):
    """ResNet-50 up to its third stage, atrous spatial pyramid, class-map head; for images and volumes.

    The target layer of Grad-CAM is ``pyramid``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C, e.g. 1 for a network of one modality.
        num_classes: K, the foreground classes.
        width: w, channels of the stem; 64 is ResNet-50, whose third stage gives 16 w = 1024, the pyramid 4 w = 256.
        blocks: bottlenecks of the three stages; ``(3, 4, 23)`` is ResNet-101.
        output_stride: 16 as in CMER, or 8: the third stage keeps its resolution by dilation and the pyramid doubles its
            dilations (Chen et al. 2017, Section 3.3); in 2D the whole network takes about 2.7 times as long.
        pooling: see :class:`~monai_wsss.networks.activation.ActivationNetwork`; the paper's is ``average``.
        topk_share: see there.
        lse_sharpness: see there.
        background_map: see there; the paper's classifier has it.

    Raises:
        ValueError: an unknown stride or pooling; an image smaller than the stride.

    Example:
        >>> import torch
        >>> network = ASPPResNet(spatial_dims=2, in_channels=1, num_classes=2, width=4).eval()
        >>> network(torch.zeros(1, 1, 60, 65)).shape
        torch.Size([1, 2, 60, 65])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        width: int = 64,
        blocks: tuple[int, int, int] = (3, 4, 6),
        output_stride: int = 16,
        pooling: str = "average",
        topk_share: float = 0.1,
        lse_sharpness: float = 5.0,
        background_map: bool = False,
    ) -> None:
        pooled: dict[str, Any] = {"pooling": pooling, "topk_share": topk_share, "lse_sharpness": lse_sharpness}
        super().__init__(spatial_dims, num_classes, **pooled, background_map=background_map)
        if output_stride not in (8, 16):
            raise ValueError(f"Expected `output_stride` to be 8 or 16, got {output_stride}.")
        self.output_stride = output_stride
        self.backbone = nn.Sequential(resnet_stages(spatial_dims, in_channels, width, blocks))
        dilations = (6, 12, 18)
        if output_stride == 8:
            dilate_stage(self.backbone[-1])
            dilations = (12, 24, 36)
        self.pyramid = AtrousSpatialPyramid(spatial_dims, 16 * width, 4 * width, dilations)
        self.head = Conv[Conv.CONV, spatial_dims](4 * width, num_classes + background_map, kernel_size=1)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> ASPPResNet:
        """Build the same network at width 4 with one block per stage, which trains in seconds on a CPU."""
        return cls(spatial_dims, in_channels, num_classes, width=4, blocks=(1, 1, 1))

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw class maps at the network's stride: ``(B, C, *S) -> (B, K, *ceil(S / stride))``."""
        if min(image.shape[2:]) < self.output_stride:
            raise ValueError(
                f"Expected image sides of at least the output stride {self.output_stride}, got {image.shape[2:]}."
            )
        return self.head(self.pyramid(self.backbone(image)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw maps at the input's size: ``(B, C, *S) -> (B, K, *S)``, linear interpolation, aligned corners.

        Aligned corners are those of CMER's network and fit the layers: strided convolutions with symmetric padding
        center their output i on the input pixel ``stride * i``, the first output on the first pixel. For sides of
        ``stride * n + 1`` this is exact; for others the map is stretched, by less than a stride at the far edge.
        """
        return F.interpolate(self.class_maps(image), size=image.shape[2:], mode=self._mode, align_corners=True)

    def load_backbone(self, path: str | os.PathLike[str]) -> list[str]:
        """Fill the backbone from a file: each parameter that agrees in name and shape.

        Args:
            path: a state dict, as ``torch.save`` writes it or as ``.safetensors`` where that package is installed, with
                the names of torchvision's ResNets (``conv1``, ``layer1.0.downsample.0``, ...), which are MONAI's and
                MedicalNet's too; it may lie below ``"state_dict"`` and its names may begin with ``module.``.

        Returns:
            The names that the file did not fill, also logged as a warning: ``["conv1.weight"]`` where a stem for color
            images meets one modality. They keep their values.

        Raises:
            DataError: the file is absent, unreadable or of another network.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> import torch
            >>> path = Path(tempfile.mkdtemp()) / "resnet.pt"
            >>> torch.save(ASPPResNet.tiny(in_channels=3).backbone.state_dict(), path)
            >>> ASPPResNet.tiny(in_channels=1).load_backbone(path)
            ['conv1.weight']
        """
        # The fourth stage and the classifier of a whole ResNet have no place here.
        return list(load_pretrained(self.backbone, path, skip=("layer4.", "fc.")).unfilled)


def _conv_norm_relu(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1
) -> Convolution:
    return Convolution(
        spatial_dims, in_channels, out_channels,
        kernel_size=kernel_size, dilation=dilation, act="relu", norm="batch", bias=False,
    )  # fmt: skip
