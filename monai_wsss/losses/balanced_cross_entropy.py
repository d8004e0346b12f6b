# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Cross-entropy in which background and foreground have equal weight, however few pixels one of them has.

    L = w mean_{Y = 0} CE(logits, Y) + (1 - w) mean_{Y > 0} CE(logits, Y),   w = 1/2      Ru et al. (AFA, CVPR 2022)

as the authors' code computes it.  There the loss is nan if background or foreground has no pixel; here that part is 0
and still has a graph.
"""

from __future__ import annotations

import torch
from torch import nn

from monai_wsss._checks import check_label_map, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED

__all__ = ["BalancedCrossEntropyLoss", "balanced_cross_entropy_loss"]


def balanced_cross_entropy_loss(
    logits: torch.Tensor, label: torch.Tensor, *, background_weight: float = 0.5, ignore_index: int = IGNORED
) -> torch.Tensor:
    """Compare segmentation logits with labels, averaging background and foreground separately.

    Args:
        logits: (B, K+1, *S), background first.
        label: (B, *S), 0 background, 1..K, or ``ignore_index``: these pixels do not count.
        background_weight: w, in [0, 1].
        ignore_index: the label without a class.

    Returns:
        scalar >= 0 in float32 or wider; background or foreground without pixels contributes 0, still with a graph.

    Raises:
        ValueError: shapes that do not fit, a label that is no class, an ``ignore_index`` that is one, or a weight
            outside [0, 1].

    Example:
        >>> logits = torch.tensor([[[[2.0, 2.0, 2.0, 2.0]], [[-2.0, -2.0, -2.0, -2.0]]]])
        >>> label = torch.tensor([[[0, 0, 0, 1]]])  # the one foreground pixel is wrong
        >>> round(balanced_cross_entropy_loss(logits, label).item(), 3)
        2.018
    """
    check_shape("logits", logits, "(B, K+1, *S)")
    check_label_map(label, "logits", logits, num_classes=logits.shape[1] - 1, ignore_index=ignore_index)
    _check_weight(background_weight)
    return _balanced(logits, label, background_weight, ignore_index)


class BalancedCrossEntropyLoss(nn.Module):
    """:func:`balanced_cross_entropy_loss` with its options kept.

    Args:
        background_weight: see there.
        ignore_index: see there.
        validate_args: whether each call checks its tensors, which waits for a GPU; take False where the code that
            makes the labels is known to make valid ones.

    Raises:
        ValueError: a weight outside [0, 1].

    Example:
        >>> BalancedCrossEntropyLoss()(torch.zeros(1, 2, 4, 4, 4), torch.full((1, 4, 4, 4), 255)).item()
        0.0
    """

    def __init__(
        self, *, background_weight: float = 0.5, ignore_index: int = IGNORED, validate_args: bool = True
    ) -> None:
        super().__init__()
        _check_weight(background_weight)
        self.background_weight = background_weight
        self.ignore_index = ignore_index
        self.validate_args = validate_args

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compare segmentation logits (B, K+1, *S) with labels (B, *S)."""
        if not self.validate_args:
            return _balanced(logits, label, self.background_weight, self.ignore_index)
        return balanced_cross_entropy_loss(
            logits, label, background_weight=self.background_weight, ignore_index=self.ignore_index
        )


def _check_weight(background_weight: float) -> None:
    if not 0 <= background_weight <= 1:
        raise ValueError(f"Expected `background_weight` in [0, 1], got {background_weight}.")


def _balanced(logits: torch.Tensor, label: torch.Tensor, background_weight: float, ignore_index: int) -> torch.Tensor:
    foreground = (label != 0) & (label != ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        target = label.long().masked_fill(~foreground, 0)
        loss_map = -float32_or_wider(logits).log_softmax(1).gather(1, target[:, None])[:, 0]
        of_background, of_foreground = (
            (loss_map * side).sum() / side.sum().clamp(min=1) for side in (label == 0, foreground)
        )
        return background_weight * of_background + (1 - background_weight) * of_foreground
