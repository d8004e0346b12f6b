# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A :class:`~monai_wsss.refinement.MaskRule` in one call: a network's output in, its mask or its score maps out."""

from __future__ import annotations

from typing import Any

import torch

from monai_wsss.refinement.mask_rule import MaskDecision, MaskRule
from monai_wsss.refinement.score_cut import cut_score_maps

__all__ = ["MaskDecision", "MaskRule", "cut_score_maps", "score_maps", "to_mask"]


def to_mask(scores: torch.Tensor, *, label: torch.Tensor | None = None, **words: Any) -> torch.Tensor:
    """Decide each pixel's class: the mask of a :class:`MaskRule` of these words, in short.

    Args:
        scores: (B, channels, *S), as a call of the rule takes them.
        label: (B, K), 0/1, for ``gate="given"``.
        words: of :class:`MaskRule`.

    Returns:
        uint8 mask (B, 1, *S): 0, or 1..K for class k = 0..K-1. An image without any present class is 0 throughout.

    Raises:
        ValueError: as the rule and its call.

    Example:
        >>> scores = torch.tensor([[[[-4.0, -1.0], [1.0, 4.0]]]])
        >>> to_mask(scores, pooling="max", rule="logit").flatten().tolist()
        [0, 0, 1, 1]
        >>> to_mask(scores, pooling="max", negative_reference=torch.tensor([-4.0])).flatten().tolist()
        [0, 0, 1, 1]
        >>> to_mask(scores - 5, pooling="max", rule="minmax").sum().item()  # pooled logit -1: absent
        0
    """
    return MaskRule(**words).mask(scores, label)


def score_maps(scores: torch.Tensor, *, label: torch.Tensor | None = None, **words: Any) -> torch.Tensor:
    """Give the maps in [0, 1] that :func:`to_mask` cuts, gated and fused: for overlays and threshold sweeps.

    Cut at 0.5 (minmax, max, negative_reference) or at 0 (logit, negative_quantile, otsu, fixed) they give the mask.
    For argmax and segmentations: the softmax probabilities over the classes (and the background, which is left out).
    The arguments are those of :func:`to_mask`; half precision becomes float32.

    Returns:
        (B, K, *S) in [0, 1]; differentiable.

    Raises:
        ValueError: as :func:`to_mask`.

    Example:
        >>> scores = torch.tensor([[[[-4.0, -1.0], [1.0, 4.0]]]])
        >>> score_maps(scores, pooling="max", rule="max").flatten().tolist()
        [0.0, 0.0, 0.25, 1.0]
    """
    return MaskRule(**words).score_maps(scores, label)
