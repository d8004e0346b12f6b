# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The full-resolution U-Net of CMER: its last layer is the class activation map, at the size of the input.

Patel & Dolz 2022, "Weakly supervised segmentation with cross-modality equivariant constraints", Section IV. The layout
is that of the authors' network, which the paper calls U-Net and does not print:

| name       | what                                                                            | channels | stride |
|------------|---------------------------------------------------------------------------------|----------|--------|
| `stem`     | twice convolution 3x3, batch norm, ReLU                                         | w        | 1      |
| `down1..3` | maximum of 2x2, then as the stem                                                | 2w 4w 4w | 2 4 8  |
| `up1..3`   | nearest upsampling, concatenation behind the skip connection, then as the stem  | 2w w w   | 4 2 1  |
| `features` | convolution 3x3, batch norm, ReLU: the target layer of Grad-CAM                 | w        | 1      |
| `head`     | after dropout, convolution 1x1 without bias: the raw class maps, the paper's A  | K, K + 1 | 1      |

Three levels only, and the deepest is no wider than the one above it. The authors' network has K + 1 channels, that of
the background first (``background_map``); without it there is one logit per class. Difference from it: sides that are
no multiple of 8 are accepted.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Dropout
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import nn

from monai_wsss.networks.activation import ActivationNetwork

__all__ = ["CAMUNet"]


class CAMUNet(ActivationNetwork):
    """U-Net that ends in raw class maps at the input's resolution, for images and volumes.

    Convolution weights start Xavier-normal, their biases as torch leaves them, batch norms at 1 and 0.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C; CMER trains one network with C = 1 per modality.
        num_classes: K, the foreground classes.
        width: w, channels of the first block; 64 in the paper's BraTS runs, 16 in the authors' prostate settings.
        dropout: probability of dropping a whole channel before the head; the authors' option is 0.5.
        pooling: see :class:`~monai_wsss.networks.activation.ActivationNetwork`; the paper's is ``average``.
        topk_share: see there.
        lse_sharpness: see there.
        background_map: see there; the paper's classifier has it.

    Raises:
        ValueError: an unknown pooling; an image with a side below 8.

    Example:
        >>> import torch
        >>> network = CAMUNet(spatial_dims=2, in_channels=1, num_classes=2, width=4).eval()
        >>> network(torch.zeros(2, 1, 30, 33)).shape
        torch.Size([2, 2, 30, 33])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        width: int = 64,
        dropout: float = 0.0,
        pooling: str = "average",
        topk_share: float = 0.1,
        lse_sharpness: float = 5.0,
        background_map: bool = False,
    ) -> None:
        pooled: dict[str, Any] = {"pooling": pooling, "topk_share": topk_share, "lse_sharpness": lse_sharpness}
        super().__init__(spatial_dims, num_classes, **pooled, background_map=background_map)
        self.stem = TwoConv(spatial_dims, in_channels, width, "relu", "batch", bias=True)
        self.down1 = _down(spatial_dims, width, 2 * width)
        self.down2 = _down(spatial_dims, 2 * width, 4 * width)
        self.down3 = _down(spatial_dims, 4 * width, 4 * width)
        self.up1 = _up(spatial_dims, 4 * width, 4 * width, 2 * width)
        self.up2 = _up(spatial_dims, 2 * width, 2 * width, width)
        self.up3 = _up(spatial_dims, width, width, width)
        self.features = Convolution(spatial_dims, width, width, kernel_size=3, act="relu", norm="batch")
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.head = Conv[Conv.CONV, spatial_dims](width, num_classes + background_map, kernel_size=1, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.xavier_normal_(module.weight)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CAMUNet:
        """Build the same network at width 4, which trains in seconds on a CPU."""
        return cls(spatial_dims, in_channels, num_classes, width=4)

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw class maps at the input's resolution: ``(B, C, *S) -> (B, K, *S)``."""
        if min(image.shape[2:]) < 8:
            raise ValueError(
                f"Expected image sides of at least 8, the stride of the deepest level, got {image.shape[2:]}."
            )
        if self.spatial_dims == 2:
            # A quarter faster on a CPU: only the layout changes, not the values.
            image = image.contiguous(memory_format=torch.channels_last)
        stride1 = self.stem(image)
        stride2 = self.down1(stride1)
        stride4 = self.down2(stride2)
        x = self.up1(self.down3(stride4), stride4)
        x = self.up2(x, stride2)
        x = self.up3(x, stride1)
        return self.head(self.dropout(self.features(x)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw maps at the input's size, which the class maps have already: ``(B, C, *S) -> (B, K, *S)``."""
        return self.class_maps(image)


def _down(spatial_dims: int, in_channels: int, out_channels: int) -> Down:
    return Down(spatial_dims, in_channels, out_channels, "relu", "batch", bias=True)


def _up(spatial_dims: int, in_channels: int, skip_channels: int, out_channels: int) -> UpCat:
    """Build an upsampling step; it repeats a neighbor for the last pixel that pooling drops from an odd side."""
    return UpCat(
        spatial_dims, in_channels, skip_channels, out_channels, "relu", "batch", bias=True,
        upsample="nontrainable", pre_conv=None, interp_mode="nearest", align_corners=None, halves=False,
    )  # fmt: skip
