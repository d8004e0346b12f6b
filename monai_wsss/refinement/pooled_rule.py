# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One cut for many images, by a mixture as in CoSA or by Otsu's threshold: the images stand for one another.

The rules ``mixture`` and ``otsu`` of a :class:`~monai_wsss.refinement.MaskRule` look at each image alone. That needs no
other image, but a single small finding may not show two populations. Together, the images give one cut for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from monai_wsss.refinement.class_map_refinement import responses_of
from monai_wsss.refinement.gaussian_mixture import MixtureFit, mixture_threshold
from monai_wsss.refinement.mask_rule import MaskRule
from monai_wsss.refinement.threshold import evenly_spaced, otsu_threshold

__all__ = ["mixture_rule", "otsu_rule", "pooled_mixture"]

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
    taken = [_thinned(batch.amax(dim=1)).flatten() for batch in scores]
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
    _check_cuts(rule)
    shares = replace(rule, rule="minmax", threshold=None)
    fit = pooled_mixture(shares.score_maps(maps) for maps in images)
    return replace(shares, threshold=fit.threshold.item() if fit.found else None)


@torch.no_grad()
def otsu_rule(rule: MaskRule, images: Iterable[torch.Tensor]) -> MaskRule:
    """Give the rule ``fixed`` with Otsu's threshold of the raw maps of many images; no masks are read.

    Of each image at most 4096 evenly spaced pixels count, each by its strongest present class. Images without any
    present class take no part, since their masks are empty anyway.

    Args:
        rule: the rule of a network that gives class maps; its gate decides which classes an image has.
        images: per batch the network's raw maps (B, G*K, *S), without labels, so that the gate is not ``"given"``.

    Returns:
        the rule; where no image has a class, the rule ``"otsu"``, of which nothing is cut either.

    Raises:
        ValueError: no images, or a rule of segmentations or of real classes without background.

    Example:
        >>> heat = torch.tensor([0.0, 0.1, 0.1, 0.9]).reshape(1, 1, 2, 2)
        >>> rule = otsu_rule(MaskRule(pooling="max", presence_level=0.5), [heat, 0.8 * heat, 0.1 * heat])
        >>> rule.rule, round(rule.threshold, 2)
        ('fixed', 0.1)
    """
    _check_cuts(rule)
    raw = replace(rule, rule="fixed", threshold=0.0)
    taken, number = [], 0
    for scores in images:
        number += len(scores)
        maps = raw._taking_part(scores)
        present = raw._present(maps, None)
        strongest = responses_of(raw, raw.of_classes(maps), present).amax(dim=1)
        if present is not None:
            strongest = strongest[present.flatten(1).any(dim=1)]
        taken.append(_thinned(strongest).flatten())
    if not number:
        raise ValueError("Expected the maps of at least one image, got none.")
    pooled = torch.cat(taken)
    if not len(pooled):
        return replace(rule, rule="otsu", threshold=None)
    return replace(raw, threshold=otsu_threshold(pooled[None, None, None]).item())


def _check_cuts(rule: MaskRule) -> None:
    if rule.rule in ("argmax", "background"):
        raise ValueError(f"Expected a rule that cuts class maps, got {rule.rule!r}: nothing is cut there.")


def _thinned(maps: torch.Tensor) -> torch.Tensor:
    """Give at most 4096 evenly spaced pixels of each map: ``(B, *S) -> (B, n)``."""
    pixels = maps.flatten(1)
    count = min(pixels.shape[1], SCORES_PER_IMAGE)
    return pixels[:, evenly_spaced(pixels.shape[1], count, pixels.device)]
