# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Segmenters that ask for sides of a multiple, for images of any size; MONAI's Swin transformer is one.

CoSA-MS trains a UPerNet on Swin-B as its third standalone network. MONAI has no UPerNet; its Swin segmenter is
SwinUNETR (Hatamizadeh et al. 2022), a Swin encoder with a U-Net's decoder, in 2D and 3D. It needs ``einops``.
"""

# Annotations stay real types: TorchScript reads them.
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from monai.networks.nets import SwinUNETR, UNet
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.reading_record import add_reading_record
from monai_wsss.refinement import MaskRule

__all__ = ["PaddedSegmenter", "swin_segmenter"]


class PaddedSegmenter(CheckedModule):
    """A segmenter whose images are padded to sides of a multiple, and whose logits are cut to the image's size again.

    Images are padded with zeros, at the end of each axis.

    Args:
        segmenter: ``(B, C, *S) -> (B, out_channels, *S)`` logits for sides of the multiple.
        multiple: of the sides.

    Attributes:
        output_kind: ``"segmentation"``.

    Raises:
        ValueError: a multiple below 1.

    Example:
        >>> import torch
        >>> PaddedSegmenter.tiny().eval()(torch.zeros(1, 1, 50, 33)).shape
        torch.Size([1, 2, 50, 33])
    """

    output_kind: str = "segmentation"

    def __init__(self, segmenter: nn.Module, multiple: int) -> None:
        super().__init__()
        if multiple < 1:
            raise ValueError(f"Expected `multiple` >= 1, got {multiple}.")
        self.output_kind = "segmentation"
        self.segmenter = segmenter
        self.multiple = multiple
        self.settings = {"segmenter": type(segmenter).__name__, "multiple": multiple}
        add_reading_record(self)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> "PaddedSegmenter":
        """Build one around a U-Net of a few thousand parameters."""
        return cls(UNet(spatial_dims, in_channels, num_classes + 1, channels=(4, 8, 8), strides=(2, 2)), 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give logits at the input's size."""
        padding: list[int] = []
        for axis in range(image.dim() - 1, 1, -1):
            padding.append(0)
            padding.append((self.multiple - image.shape[axis] % self.multiple) % self.multiple)
        logits = self.segmenter(F.pad(image, padding))
        for axis in range(2, image.dim()):
            logits = logits.narrow(axis, 0, image.shape[axis])
        return logits

    @torch.jit.unused
    def mask_rule(self) -> MaskRule:
        """Give the rule by which the segmentation becomes a mask: the argmax."""
        return MaskRule(output_kind=self.output_kind)


def swin_segmenter(
    out_channels: int, in_channels: int = 3, *, spatial_dims: int = 2, feature_size: int = 48
) -> PaddedSegmenter:
    """Build MONAI's SwinUNETR for images of any size: sides are padded to multiples of 32; it trains on larger ones.

    Args:
        out_channels: K + 1.
        in_channels: C.
        spatial_dims: 2 or 3.
        feature_size: channels of the first stage, a multiple of 12.

    Raises:
        DataError: ``einops`` is not installed.
    """
    if find_spec("einops") is None:
        raise DataError("MONAI's SwinUNETR needs the package einops, which is not installed: pip install einops.")
    return PaddedSegmenter(
        SwinUNETR(in_channels, out_channels, feature_size=feature_size, spatial_dims=spatial_dims), 32
    )
