# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ORACLE threshold of raw maps: it READS MASKS, so its result is an upper bound to report, never one to deploy.

It is kept apart from ``threshold.py``, whose thresholds need no masks; only the benchmark imports it. The threshold
sweep of ``monai_wsss.metrics`` has the same oracle for score maps. This one takes raw responses, whose range only the
maps tell, and so is the upper bound of the rules logit, fixed and negative_quantile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from monai_wsss._checks import float32_or_wider
from monai_wsss._labels import IGNORED

__all__ = ["OracleThreshold", "oracle_raw_threshold"]


class OracleThreshold(NamedTuple):
    """The threshold that is best for the masks, and the Dice it reaches on the same masks; both are optimistic."""

    oracle_threshold: float
    oracle_dice: float


def oracle_raw_threshold(
    scores: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor],
    thresholds: Sequence[float],
    *,
    subjects: Sequence[str] | None = None,
) -> OracleThreshold:
    """Find by reading masks (ORACLE) the threshold for all cases that maximizes the Dice of ``score > threshold``.

    No presence gate is applied: give absent classes a score below all candidates.

    Args:
        scores: one map per case, of any shape, e.g. (1, *S).
        masks: one mask per case, of the same shape: 255 is ignored, anything else above 0 is foreground.
        thresholds: candidates; of equally good ones the lowest wins.
        subjects: one name per case: the Dice of each subject over all its cases, then the mean. None: one Dice over
            the pixels of all cases. Where neither prediction nor mask has foreground, the Dice is 1.

    Returns:
        ``(oracle_threshold, oracle_dice)``.

    Raises:
        ValueError: no cases or candidates, or numbers and shapes that do not agree.

    Example:
        >>> scores, masks = [torch.tensor([0.1, 0.4, 0.6, 0.9])], [torch.tensor([0, 1, 1, 1])]
        >>> oracle_raw_threshold(scores, masks, [0.2, 0.5])
        OracleThreshold(oracle_threshold=0.2, oracle_dice=1.0)
    """
    names = ["all"] * len(scores) if subjects is None else list(subjects)
    if not len(scores) == len(masks) == len(names) or not scores or not thresholds:
        raise ValueError(
            f"Expected at least one threshold and as many `masks` and `subjects` as `scores`, at least one, got "
            f"{len(thresholds)} thresholds, {len(masks)} masks, {len(names)} subjects, {len(scores)} scores."
        )
    candidates = torch.tensor(sorted(thresholds), dtype=torch.float64)
    counts: dict[str, torch.Tensor] = {}
    for score, mask, name in zip(scores, masks, names, strict=True):
        if score.shape != mask.shape:
            raise ValueError(
                f"Expected scores and masks of one shape, got {tuple(score.shape)} and {tuple(mask.shape)}."
            )
        labeled = mask != IGNORED
        counts[name] = counts.get(name, 0) + _counts(score[labeled], mask[labeled] > 0, candidates)
    overlap, sizes = torch.stack(list(counts.values())).unbind(1)
    dice = torch.where(sizes > 0, 2 * overlap / sizes.clamp(min=1), 1.0).mean(dim=0)
    best = int(dice.argmax())
    return OracleThreshold(candidates[best].item(), dice[best].item())


def _counts(score: torch.Tensor, foreground: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Count per candidate the pixels predicted and foreground, and those predicted plus those foreground (2, T)."""
    score = float32_or_wider(score.flatten().cpu())
    # How many candidates each score exceeds, in the precision in which ``score > threshold`` compares.
    exceeded = torch.bucketize(score, candidates.to(score.dtype))
    inside = exceeded[foreground.flatten().cpu()]
    above = [
        torch.bincount(bins, minlength=len(candidates) + 1).flip(0).cumsum(0).flip(0)[1:] for bins in (inside, exceeded)
    ]
    return torch.stack([above[0], above[1] + len(inside)]).double()
