# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One mixture threshold for many images, which is how CoSA uses it: the scores of all images stand for one another.

The rule ``mixture`` of a :class:`~monai_wsss.refinement.MaskRule` fits each image alone. That needs no other image, but
a single small finding may not show two populations. Fitted together, they give one cut for all images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from monai_wsss.refinement.gaussian_mixture import MixtureFit, mixture_threshold
from monai_wsss.refinement.mask_rule import MaskRule
from monai_wsss.refinement.threshold import evenly_spaced

__all__ = ["mixture_rule", "pooled_mixture"]

SCORES_PER_IMAGE = 4096


@torch.no_grad()
def pooled_mixture(scores: Iterable[torch.Tensor]) -> MixtureFit:
    """Fit one mixture to the score maps of many images, of each at most 4096 evenly spaced pixels.

    Args:
        scores: per batch (B, K, *S) in [0, 1]; of classes that compete for a pixel the highest counts. Images without
            any class are 0 throughout, and so take no part.

    Returns:
        the :class:`~monai_wsss.refinement.MixtureFit`.

    Raises:
        ValueError: no images.

    Example:
        >>> image = torch.cat((torch.linspace(0.1, 0.3, 300), torch.linspace(0.8, 1.0, 100))).reshape(1, 1, 20, 20)
        >>> round(pooled_mixture([image, image]).threshold.item(), 2)
        0.55
    """
    taken = []
    for batch in scores:
        strongest = batch.amax(dim=1).flatten(1)
        count = min(strongest.shape[1], SCORES_PER_IMAGE)
        taken.append(strongest[:, evenly_spaced(strongest.shape[1], count, strongest.device)].flatten())
    if not taken:
        raise ValueError("Expected the score maps of at least one image, got none.")
    return mixture_threshold(torch.cat(taken))


def mixture_rule(rule: MaskRule, images: Iterable[torch.Tensor]) -> MaskRule:
    """Give the rule ``minmax`` with the cut that a mixture finds in the scores of many images; no masks are read.

    Args:
        rule: the rule of a network that gives class maps; its gate decides which classes an image has.
        images: per batch the network's raw maps (B, G*K, *S), without labels, so that the gate is not ``"given"``.

    Returns:
        the rule, ``threshold`` None where the scores do not show two populations.

    Raises:
        ValueError: no images, or a rule of segmentations or of real classes without background.

    Example:
        >>> image = torch.cat((torch.linspace(1, 3, 300), torch.linspace(8, 10, 100))).reshape(1, 1, 20, 20)
        >>> rule = mixture_rule(MaskRule(pooling="max"), [image, image])
        >>> rule.rule, round(rule.threshold, 2)
        ('minmax', 0.47)
    """
    if rule.rule in ("argmax", "background"):
        raise ValueError(f"Expected a rule that cuts class maps, got {rule.rule!r}: nothing is cut there.")
    shares = replace(rule, rule="minmax", threshold=None)
    fit = pooled_mixture(shares.score_maps(maps) for maps in images)
    return replace(shares, threshold=fit.threshold.item() if fit.found else None)
