# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Cross-entropy in which each pixel counts by how reliable its pseudo-label is (CoSA, ECCV 2024, Eq. 5).

    L_c2s = mean_R w CE(S, Y),   w_xy = |R| / P_xy / sum_R 1/P

R holds the pixels whose label is a class: those of the batch, or those of each image. The mean weight is 1 on R. The
paper prints the weight with an exponent that makes it grow with the perplexity P, against its text ("the reciprocal of
perplexity"); here it falls. An infinite perplexity is a weight of 0. The authors' code has no such loss.

The sums run over all processes of a distributed run, so that several processes learn what one would learn from their
joint batch: each divides its own sum by the *mean* of the sums of 1/P, and the gradients are averaged afterwards.

| symbol | name         | shape        |
|--------|--------------|--------------|
| S      | `logits`     | (B, K+1, *S) |
| Y      | `label`      | (B, *S)      |
| P      | `perplexity` | (B, *S)      |
"""

from __future__ import annotations

import torch
from torch import nn

from monai_wsss._checks import check_choice, check_label_map, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss._processes import mean_of_processes

__all__ = ["ReliabilityWeightedLoss", "reliability_weighted_loss"]

_SETS = ("batch", "image")
_SMALLEST = 1e-6  # of a perplexity, before its reciprocal is taken


def reliability_weighted_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    perplexity: torch.Tensor | None = None,
    *,
    normalize: str = "batch",
    over_processes: bool = True,
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Compare segmentation logits with pseudo-labels, each pixel weighted by the reciprocal of its perplexity.

    Args:
        logits: (B, K+1, *S), background first.
        label: (B, *S), 0 background, 1..K, or ``ignore_index``: these pixels do not count.
        perplexity: P (B, *S) >= 0, infinite where a label tells nothing; taken as constant. None: every pixel has the
            weight 1, which is the plain mean cross-entropy.
        normalize: R, over which the mean weight is 1: ``"batch"``, or ``"image"``, where each image counts by its
            pixels, however reliable they are.
        over_processes: whether R reaches over the processes of a distributed run, all of which must then call.
        ignore_index: the label without a class.

    Returns:
        scalar >= 0 in float32 or wider; 0, still with a graph, where no pixel counts.

    Raises:
        ValueError: shapes that do not fit, a label that is no class, an ``ignore_index`` that is one, or another
            ``normalize``.

    Example:
        >>> logits = torch.tensor([[[[2.0, 2.0]], [[-2.0, -2.0]]]])
        >>> label = torch.tensor([[[0, 1]]])  # the second pixel disagrees
        >>> perplexity = torch.tensor([[[0.5, 2.0]]])  # and its label is in doubt
        >>> round(reliability_weighted_loss(logits, label).item(), 3)
        2.018
        >>> round(reliability_weighted_loss(logits, label, perplexity).item(), 3)
        0.818
    """
    check_choice("normalize", normalize, _SETS)
    check_shape("logits", logits, "(B, K+1, *S)")
    check_label_map(label, "logits", logits, num_classes=logits.shape[1] - 1, ignore_index=ignore_index)
    if perplexity is not None and perplexity.shape != label.shape:
        raise ValueError(
            f"Expected `perplexity` of the shape of `label`, {tuple(label.shape)}, got {tuple(perplexity.shape)}."
        )
    return _weighted(logits, label, perplexity, normalize, over_processes, ignore_index)


class ReliabilityWeightedLoss(nn.Module):
    """:func:`reliability_weighted_loss` with its options kept.

    Args:
        normalize: see there.
        over_processes: see there.
        ignore_index: see there.
        validate_args: whether each call checks its tensors, which waits for a GPU; take False where the code that
            makes the labels is known to make valid ones.

    Raises:
        ValueError: another ``normalize``.

    Example:
        >>> loss = ReliabilityWeightedLoss(normalize="image")
        >>> loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4)).item()
        0.6931471824645996
    """

    def __init__(
        self,
        *,
        normalize: str = "batch",
        over_processes: bool = True,
        ignore_index: int = IGNORED,
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        check_choice("normalize", normalize, _SETS)
        self.normalize = normalize
        self.over_processes = over_processes
        self.ignore_index = ignore_index
        self.validate_args = validate_args

    def forward(
        self, logits: torch.Tensor, label: torch.Tensor, perplexity: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compare segmentation logits (B, K+1, *S) with labels (B, *S) of some perplexity (B, *S)."""
        if not self.validate_args:
            return _weighted(logits, label, perplexity, self.normalize, self.over_processes, self.ignore_index)
        return reliability_weighted_loss(
            logits,
            label,
            perplexity,
            normalize=self.normalize,
            over_processes=self.over_processes,
            ignore_index=self.ignore_index,
        )


def _weighted(
    logits: torch.Tensor,
    label: torch.Tensor,
    perplexity: torch.Tensor | None,
    normalize: str,
    over_processes: bool,
    ignore_index: int,
) -> torch.Tensor:
    counted = label != ignore_index
    with torch.autocast(logits.device.type, enabled=False):
        target = label.long().masked_fill(~counted, 0)
        loss_map = -float32_or_wider(logits).log_softmax(1).gather(1, target[:, None])[:, 0]
        reliability = counted.to(loss_map)
        if perplexity is not None:
            reliability = reliability / perplexity.detach().to(loss_map).clamp(min=_SMALLEST)
        axes = tuple(range(1, label.ndim))
        loss, total = (reliability * loss_map).sum(axes), reliability.sum(axes)
        if normalize == "image":
            pixels = counted.sum(axes) * (total > 0)
            loss, total = loss / total.where(total > 0, 1) * pixels, pixels.to(total)
        whole = total.sum()
        if over_processes:
            whole, _ = mean_of_processes(whole, torch.ones_like(whole, dtype=torch.bool))
        return loss.sum() / whole.where(whole > 0, 1)
