# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""LargeFOV, a decoder of one map with dilated convolutions (Chen et al. 2018, "DeepLab", arXiv:1606.00915).

It is the decoder of CoSA (Yang et al., ECCV 2024), in the form of its released code: two dilated 3x3 convolutions and a
1x1 convolution, all without bias, with the names of that code.  DeepLab's own has one dilated convolution of rate 12.
"""

# Annotations stay real types: TorchScript reads them.
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv

from monai_wsss.networks.checked import CheckedModule

__all__ = ["LargeFOV"]


class LargeFOV(CheckedModule):
    """Logits of the last map: ``[..., (B, F, *s)] -> (B, num_outputs, *s)``.

    Args:
        in_channels: F, of the last map; the maps before it are not read.
        num_outputs: K + 1.
        spatial_dims: 2 or 3.
        width: channels of both dilated convolutions.
        dilation: of both, in pixels of the map; a pixel of the result sees ``4 * dilation + 1`` pixels per side.

    Raises:
        ValueError: an output, a width or a dilation below 1.

    Example:
        >>> import torch
        >>> LargeFOV(8, 3, width=4)([torch.zeros(2, 8, 14, 14), torch.zeros(2, 8, 14, 14)]).shape
        torch.Size([2, 3, 14, 14])
    """

    def __init__(
        self, in_channels: int, num_outputs: int, *, spatial_dims: int = 2, width: int = 512, dilation: int = 5
    ) -> None:
        super().__init__()
        if min(num_outputs, width, dilation) < 1:
            raise ValueError(
                f"Expected `num_outputs`, `width` and `dilation` of at least 1, got {num_outputs}, {width} and "
                f"{dilation}."
            )
        conv = Conv[Conv.CONV, spatial_dims]
        self.conv6 = conv(in_channels, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv7 = conv(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv8 = conv(width, num_outputs, 1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Decode the last of the maps."""
        return self.conv8(F.relu(self.conv7(F.relu(self.conv6(features[-1])))))
