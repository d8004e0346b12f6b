# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One mask of several networks, whatever their kinds, and how sure they are of it at each pixel.

Class maps of different methods have no common scale.  What they have in common is the cut: each network's own
:class:`~monai_wsss.refinement.MaskRule` says where a pixel becomes foreground.  So each output first becomes
probabilities around its own cut (:mod:`~monai_wsss.refinement.score_cut`; of segmentations, their softmax).  The class
that the rule finds is the most probable one in them, and where its gate found no class they are pure background.  They
are averaged over the members, and the most probable class wins.

With p the mean and p_m the probabilities of member m, over C = K+1 classes and background, H the entropy:

| map              | is                                     | is high                                           |
|------------------|----------------------------------------|---------------------------------------------------|
| ``entropy``      | H(p) / log C                           | where the mean is near the cut, whatever the cause |
| ``disagreement`` | (H(p) - mean over m of H(p_m)) / log C | where members are sure and contradict one another |

Both are in [0, 1], and the disagreement, which is a mutual information, is never above the entropy.  Neither has seen a
mask: whether they are high where the mask is wrong is what :class:`monai_wsss.metrics.ErrorRanking` measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_shape
from monai_wsss.refinement.class_map_refinement import competing_probabilities
from monai_wsss.refinement.mask_rule import MaskRule

__all__ = ["EnsembleDecision", "decide_ensemble", "rule_probabilities"]


class EnsembleDecision(NamedTuple):
    """What several members decide together.

    Attributes:
        mask: uint8 (B, 1, *S), 0..K, the most probable class of the mean.
        probabilities: (B, K+1, *S), the mean over the members, background first.
        entropy: (B, 1, *S) in [0, 1], of the mean.
        disagreement: (B, 1, *S) in [0, 1], the part of the entropy that the members do not have themselves.
    """

    mask: torch.Tensor
    probabilities: torch.Tensor
    entropy: torch.Tensor
    disagreement: torch.Tensor


@torch.no_grad()
def rule_probabilities(
    rule: MaskRule, scores: torch.Tensor, label: torch.Tensor | None = None, region: torch.Tensor | None = None
) -> torch.Tensor:
    """Give probabilities of background and classes around a rule's own cut; the most probable one is the rule's mask.

    Args:
        rule: of the network, ``MaskRule.of(network)``.
        scores: what the network gives of whole images, as the rule takes it, (B, channels, *S).
        label: as the rule takes it.
        region: (1, 1, *S), above 0 where a class may be found, of a single image: all outside is background, and no
            level or peak is taken from there, as in :func:`~monai_wsss.refinement.decide_within`.

    Returns:
        (B, K+1, *S), background first, sums of 1.  The background of rules without one (``argmax``) is 0, or 1 in
        images in which no class may appear.

    Raises:
        ValueError: as the rule; a region of another size, of several images or without a pixel.

    Example:
        >>> rule = MaskRule(rule="max", gate="none")
        >>> rule_probabilities(rule, torch.tensor([[[[0.0, 1.0, 2.0, 4.0]]]]))[0, 1].tolist()
        [[0.0, 0.25, 0.5, 1.0]]
    """
    if region is not None:
        return _within(rule, scores, label, region)
    maps = rule._taking_part(scores)
    logits = rule.pool(maps) if rule.output_kind == "activation" else None
    competing = competing_probabilities(rule, rule.of_classes(maps), rule._present(maps, label, logits))
    if rule.rule == "argmax":
        return torch.cat(((1 - competing.sum(dim=1, keepdim=True)).round(), competing), dim=1)
    return competing / competing.sum(dim=1, keepdim=True)


def _within(rule: MaskRule, scores: torch.Tensor, label: torch.Tensor | None, region: torch.Tensor) -> torch.Tensor:
    """Give the probabilities of one image in a region alone."""
    check_shape("scores", scores, "(B, channels, *S)")
    if len(scores) != 1 or region.shape != (1, 1, *scores.shape[2:]) or not bool((region > 0).any()):
        raise ValueError(
            f"Expected one image and its `region` (1, 1, *S) with at least one pixel above 0, got "
            f"{tuple(scores.shape)} and {tuple(region.shape)}."
        )
    inside = region[0, 0].to(scores.device) > 0
    found = rule_probabilities(rule, scores[:, :, inside][..., None], label)
    whole = found.new_zeros(1, found.shape[1], *scores.shape[2:])
    whole[:, 0] = 1
    whole[:, :, inside] = found[..., 0]
    return whole


@torch.no_grad()
def decide_ensemble(
    members: Iterable[torch.Tensor], *, vote: bool = False, weights: Sequence[float] | None = None
) -> EnsembleDecision:
    """Decide one mask of several members, and how unsure they are at each pixel.

    Members are taken one after the other, so a generator needs the memory of a single one.

    Args:
        members: of each (B, K+1, *S), background first, sums of 1, as of :func:`rule_probabilities`.
        vote: whether each member counts as its mask alone and not by its probabilities.  Of as many votes for each,
            background and lower classes win.
        weights: what each member counts, above 0; None: all of them the same.  Take whole numbers, so that equal votes
            are equal.

    Returns:
        Mask, mean, entropy and disagreement.

    Raises:
        ValueError: no member, members of different shapes, what are no probabilities, or weights of another number or
            not above 0.

    Example:
        >>> sure, unsure = torch.tensor([[[[0.1, 0.0]], [[0.9, 1.0]]]]), torch.tensor([[[[0.5, 1.0]], [[0.5, 0.0]]]])
        >>> decision = decide_ensemble([sure, unsure])
        >>> decision.mask.flatten().tolist()
        [1, 0]
        >>> decision.entropy.flatten().tolist()[1], decision.disagreement.flatten().tolist()[1]
        (1.0, 1.0)
    """
    total: torch.Tensor | None = None
    own = torch.zeros(())
    counted: list[float] = []
    for number, member in enumerate(members, start=1):
        check_shape("members", member, "(B, K+1, *S)")
        if total is not None and member.shape != total.shape:
            raise ValueError(
                f"Expected `members` of one shape, got {tuple(total.shape)} and {tuple(member.shape)} for number "
                f"{number}: infer all of them at the size of the image."
            )
        taken = member.double()
        if member.shape[1] < 2 or not bool((taken >= 0).all() & ((taken.sum(dim=1) - 1).abs() < 1e-3).all()):
            raise ValueError(
                f"Expected `members` as probabilities (B, K+1, *S) that sum to 1, but number {number} is none: take "
                "those of `rule_probabilities`."
            )
        if vote:
            taken = F.one_hot(_winners(taken)[:, 0], taken.shape[1]).movedim(-1, 1).double()
        counted.append(_weight(weights, number))
        total = counted[-1] * taken if total is None else total + counted[-1] * taken
        own = own.to(taken.device) + counted[-1] * _entropy(taken)
    if total is None:
        raise ValueError("Expected `members` to hold at least one network's probabilities, got none.")
    if weights is not None and len(weights) > len(counted):
        raise ValueError(f"Expected one of `weights` per member, got {len(weights)} for {len(counted)}.")
    mean = total / sum(counted)
    entropy = _entropy(mean)
    disagreement = (entropy - own / sum(counted)).clamp(0, 1)
    return EnsembleDecision(_winners(mean).to(torch.uint8), mean.float(), entropy.float(), disagreement.float())


def _weight(weights: Sequence[float] | None, number: int) -> float:
    """Give what a member counts, the first having the number 1."""
    if weights is None:
        return 1.0
    if number > len(weights):
        raise ValueError(f"Expected one of `weights` per member, got {len(weights)} for {number} or more.")
    weight = float(weights[number - 1])
    if not (0 < weight < math.inf):
        raise ValueError(f"Expected finite `weights` above 0, got {weight} for member {number}.")
    return weight


def _winners(probabilities: torch.Tensor) -> torch.Tensor:
    """Give the first of the highest channels, (B, 1, *S); argmax does it slower."""
    return probabilities.max(dim=1, keepdim=True).indices


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Give the entropy over the channels, (B, 1, *S), as a share of the highest."""
    nats = -torch.xlogy(probabilities, probabilities).sum(dim=1, keepdim=True)
    return (nats / math.log(probabilities.shape[1])).clamp(0, 1)
