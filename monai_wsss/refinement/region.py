# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks inside a region, such as the lungs, by a rule that sees nothing of the outside.

A network that was trained on tiles of an organ says nothing about other pixels.  Their responses would shift Otsu's
threshold, the extremes of a map, and the pooled presence.
"""

from __future__ import annotations

import torch

from monai_wsss._checks import check_shape
from monai_wsss._labels import IGNORED
from monai_wsss.refinement.class_map_refinement import ClassMapRefinement
from monai_wsss.refinement.mask_rule import MaskRule
from monai_wsss.refinement.pixel_adaptive import PixelAdaptiveRefinement

__all__ = ["decide_within"]


@torch.no_grad()
def decide_within(
    rule: MaskRule,
    scores: torch.Tensor,
    region: torch.Tensor,
    label: torch.Tensor | None = None,
    *,
    refine: ClassMapRefinement | None = None,
    image: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decide the mask of one image from the pixels of a region alone.

    Args:
        rule: decides.
        scores: (1, channels, *S), see :meth:`MaskRule.__call__ <monai_wsss.refinement.MaskRule.__call__>`.
        region: (1, 1, *S); pixels above 0 belong to it.
        label: as the rule takes it.
        refine: draws the maps to the edges of the image first, by pixels of the outside as well.
        image: (1, C, *S), for ``refine``.

    Returns:
        uint8 (1, 1, *S): 0..K inside, 255 outside.

    Raises:
        ValueError: several images, a region of another size or without a pixel, a refinement without an image, or a CRF
            on class maps, whose probabilities depend on the outside.

    Example:
        >>> region = torch.tensor([[[[0, 1, 1, 1]]]])
        >>> decide_within(MaskRule(rule="otsu"), torch.tensor([[[[900.0, 1.0, 2.0, 9.0]]]]), region).tolist()
        [[[[255, 0, 0, 1]]]]
    """
    check_shape("scores", scores, "(B, channels, *S)")
    if len(scores) != 1 or region.shape != (1, 1, *scores.shape[2:]):
        raise ValueError(
            f"Expected one image and its `region` (1, 1, *S), got {tuple(scores.shape)} and {tuple(region.shape)}."
        )
    inside = region[0, 0].to(scores.device) > 0
    if not bool(inside.any()):
        raise ValueError("Expected a `region` with at least one pixel, got none: leave the image out.")
    refined = None
    if refine is not None:
        if image is None or not isinstance(refine.part, PixelAdaptiveRefinement):
            raise ValueError("Expected PAR as `refine` in a region, with its `image`: a CRF reads the outside as well.")
        maps = scores if rule.output_kind == "activation" else scores.softmax(dim=1)
        refined = refine.maps(maps, image)
        refined = refined if rule.output_kind == "activation" else refined.clamp_min(1e-12).log()
        refined = refined[:, :, inside][..., None]
    decided = rule(scores[:, :, inside][..., None], label, refined=refined).mask
    mask = torch.full((1, 1, *scores.shape[2:]), IGNORED, dtype=torch.uint8, device=scores.device)
    mask[:, :, inside] = decided[..., 0]
    return mask
