# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pooling of class maps to image-level logits; the pooling that trains a map also decides how the map has to be cut.

| pooling   | logit of class k, over the N pixels of its map m  | source                                            |
|-----------|---------------------------------------------------|---------------------------------------------------|
| `average` | mean m                                            | Zhou et al. 2016 (CAM), arXiv:1512.04150          |
| `max`     | max m                                             | Oquab et al. 2015, "Is object localization free?" |
| `topk`    | mean of the largest `topk_share` of m             | between the two: share 1 is average, 1/N is max   |
| `lse`     | (1/r) log mean exp(r m), r = `lse_sharpness`      | Pinheiro & Collobert 2015, arXiv:1411.6228        |
"""

from __future__ import annotations

import math

import torch

from monai_wsss._checks import check_choice

__all__ = ["decision_rule", "pool_maps"]


def pool_maps(maps: torch.Tensor, pooling: str, topk_share: float = 0.1, lse_sharpness: float = 5.0) -> torch.Tensor:
    """Pool class maps over space into image-level logits; the result is differentiable.

    TorchScript compiles this function, so the options are not keyword-only here; pass them by keyword all the same.
    Half-precision maps are pooled and returned in float32: a sum over 10^4 pixels must not run in fp16.

    Args:
        maps: raw (signed, un-normalized) class maps (B, K, *S).
        pooling: ``"average"``, ``"max"``, ``"topk"`` or ``"lse"``, see the table above.
        topk_share: share of the pixels that ``"topk"`` averages, in (0, 1]; at least one pixel.
        lse_sharpness: r > 0 of ``"lse"``: towards 0 it becomes the average, towards infinity the maximum.

    Returns:
        Logits (B, K).

    Raises:
        ValueError: an unknown pooling, a share outside (0, 1], a sharpness that is not positive, or maps without space.

    Example:
        >>> maps = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
        >>> [pool_maps(maps, pooling, topk_share=0.5).item() for pooling in ("average", "max", "topk")]
        [3.0, 6.0, 5.0]
    """
    if maps.dim() < 3:
        raise ValueError(f"Expected `maps` of shape (B, K, *S), got {maps.shape}.")
    values = maps.flatten(2)
    if values.shape[2] == 0:
        raise ValueError(f"Expected `maps` with pixels along each axis, got {maps.shape}.")
    if values.dtype == torch.float16 or values.dtype == torch.bfloat16:
        values = values.float()
    if pooling == "average":
        return values.mean(dim=2)
    if pooling == "max":
        return values.amax(dim=2)
    if pooling == "topk":
        if not 0.0 < topk_share <= 1.0:
            raise ValueError(f"Expected `topk_share` in (0, 1], got {topk_share}.")
        count = max(1, int(topk_share * values.shape[2] + 0.5))
        return values.topk(count, dim=2, sorted=False)[0].mean(dim=2)
    if pooling == "lse":
        if lse_sharpness <= 0.0:
            raise ValueError(f"Expected `lse_sharpness` > 0, got {lse_sharpness}.")
        return (torch.logsumexp(lse_sharpness * values, dim=2) - math.log(values.shape[2])) / lse_sharpness
    raise ValueError(f"Expected `pooling` to be one of average, max, topk, lse, got {pooling}.")


def decision_rule(pooling: str) -> str:
    """Name the rule of :class:`monai_wsss.refinement.MaskRule` that maps trained with this pooling call for.

    - ``average`` -> ``"minmax"``. The logit constrains only the *sum* of the map: its zero level is arbitrary, healthy
      pixels share the lesion's evidence, and a cut at logit 0 marks most of the image. Only the order of the pixels
      within the image has a meaning, so the map is stretched over the image's own range.
    - ``max``, ``topk``, ``lse`` -> ``"negative_reference"``. Training pushed every pixel of negative images below 0, so
      the healthy level is known: the cut lies half-way between it and the image's peak. Min-max after a ReLU would
      take the logit 0 for the healthy level; only the lesion's core exceeds that, and the rest would be lost.

    Raises:
        ValueError: an unknown pooling.

    Example:
        >>> decision_rule("average"), decision_rule("max")
        ('minmax', 'negative_reference')
    """
    check_choice("pooling", pooling, ("average", "max", "topk", "lse"))
    return "minmax" if pooling == "average" else "negative_reference"
