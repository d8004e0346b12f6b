# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Full supervision: the upper bound for weakly supervised methods. It reads pixel masks."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import nn

from monai_wsss._checks import float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss.engines.schedules import Progress
from monai_wsss.losses import purified_label_loss
from monai_wsss.methods.base import WSSSMethod
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.reading_record import add_reading_record
from monai_wsss.refinement import MaskRule

__all__ = ["FullSupervision", "SegmentationNetwork", "class_targets"]

_CERTAIN = 50.0  # a logit whose softmax is 1 in float32


class SegmentationNetwork(CheckedModule):
    """Any MONAI segmenter as a deployable network with ``output_kind = "segmentation"``.

    Args:
        segmenter: gives K+1 logits, channel 0 the background: ``(B, C, *S) -> (B, K+1, *S)``.

    Example:
        >>> import torch
        >>> SegmentationNetwork.tiny()(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 2, 16, 16])
    """

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.output_kind = "segmentation"
        add_reading_record(self)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> SegmentationNetwork:
        """Build a U-Net of a few thousand parameters."""
        return cls(UNet(spatial_dims, in_channels, num_classes + 1, channels=(4, 8), strides=(2,)))

    @torch.jit.unused
    def mask_rule(self) -> MaskRule:
        """Give the rule by which the segmentation becomes a mask: the argmax."""
        return MaskRule(output_kind="segmentation")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give logits at the input's size."""
        return self.segmenter(image)


class FullSupervision(WSSSMethod):
    """Cross-entropy plus soft Dice on pixel masks: an upper bound, never a weak result.

    Without a background the loss is the cross-entropy only, over the labeled pixels, as in the second stage.

    Args:
        network: gives K+1 logits, channel 0 the background; K logits without a background.
        background: whether there is a background. Without one every class is real tissue: mask value k is channel k-1.

    Example:
        >>> import torch
        >>> batch = {
        ...     "image": torch.rand(2, 1, 16, 16),
        ...     "label": torch.tensor([[0.0], [1.0]]),
        ...     "mask": torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
        ... }
        >>> list(FullSupervision.tiny()(batch, Progress(epoch=1, iteration=1, fraction=0.0)))
        ['full_supervision']
    """

    uses_masks: ClassVar[bool] = True

    def __init__(self, network: nn.Module, *, background: bool = True) -> None:
        super().__init__(network)
        self.background = background
        # batch=True: Dice over the batch, so that images without foreground do not divide by zero.
        self.criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> FullSupervision:
        """Build one that overfits one batch in seconds on a CPU."""
        return cls(SegmentationNetwork.tiny(spatial_dims, in_channels, num_classes))

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``full_supervision``: cross-entropy plus soft Dice against ``mask`` (B, 1, *S).

        Without a background, a network with an auxiliary head gives ``auxiliary`` in training, as in the second stage.
        """
        if "mask" not in batch:
            raise ValueError("Full supervision needs `mask` in its batch: read the split with masks=True.")
        network: Any = self.network
        if not self.background and self.training and getattr(network, "auxiliary", None) is not None:
            logits, auxiliary = network.auxiliary_logits(batch["image"])
            return {
                "full_supervision": _cross_entropy(logits, batch["mask"]),
                "auxiliary": network.auxiliary_weight * _cross_entropy(auxiliary, batch["mask"]),
            }
        logits = float32_or_wider(network(batch["image"]))
        if self.background:
            unlabeled = batch["mask"] == IGNORED
            # A pixel that is certainly and correctly background adds nothing to either term, and no gradient.
            certain = torch.full_like(logits, -_CERTAIN)
            certain[:, 0] = _CERTAIN
            target = batch["mask"].masked_fill(unlabeled, 0)
            return {"full_supervision": self.criterion(torch.where(unlabeled, certain, logits), target)}
        return {"full_supervision": _cross_entropy(logits, batch["mask"])}


def _cross_entropy(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compare logits with masks of real classes alone, over the labeled pixels."""
    target = class_targets(mask, background=False)
    return purified_label_loss(float32_or_wider(logits), target, ignore_index=IGNORED, purify=False)


def class_targets(mask: torch.Tensor, *, background: bool) -> torch.Tensor:
    """Turn masks on disk (B, 1, *S) into channels (B, *S); without a background, k becomes k-1 and 0 is ignored.

    Example:
        >>> class_targets(torch.tensor([[[0, 1, 2, 255]]]), background=False).tolist()
        [[255, 0, 1, 255]]
    """
    target = mask[:, 0].long()
    if background:
        return target
    return torch.where((target == 0) | (target == IGNORED), IGNORED, target - 1)
