# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Fusion of several maps of one image: over groups (modalities, normalized and gated), or over an ensemble."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from monai_wsss._checks import check_choice, float32_or_wider

__all__ = ["average_ensemble", "fuse_groups"]


def fuse_groups(
    maps: torch.Tensor,
    *,
    fusion: str = "max",
    presence: torch.Tensor | None = None,
    eight_bit: bool = False,
) -> torch.Tensor:
    """Fuse the maps of G groups (modalities) pixel by pixel; a group that predicts a class absent contributes zeros.

    fused_k = max_g (presence_gk * m_gk), as Patel & Dolz (CMER) fuse modalities at test time, or the mean over g.

    Args:
        maps: (B, G, K, *S), already on a common scale (:func:`~monai_wsss.cams.normalize_maps`).
        fusion: ``"max"`` or ``"mean"``.
        presence: (B, G, K), 0/1 or bool: whether group g predicts class k in this image; None: all maps count.
        eight_bit: pass each map through 8 bits first, floor(255 m) / 255, as the evaluation released with CMER does by
            storing PNG files. It moves pixels between 127/255 and 128/255 across a threshold of 0.5.

    Returns:
        (B, K, *S).

    Raises:
        ValueError: another shape, or an unknown ``fusion``.

    Example:
        >>> maps = torch.tensor([[[[[0.2, 0.9]]], [[[0.6, 0.1]]]]])
        >>> [round(v, 2) for v in fuse_groups(maps).flatten().tolist()]
        [0.6, 0.9]
        >>> [round(v, 2) for v in fuse_groups(maps, presence=torch.tensor([[[1], [0]]])).flatten().tolist()]
        [0.2, 0.9]
    """
    check_choice("fusion", fusion, ("max", "mean"))
    if maps.ndim not in (5, 6):
        raise ValueError(f"Expected `maps` of shape (B, G, K, *S), got {tuple(maps.shape)}.")
    maps = float32_or_wider(maps)
    if eight_bit:
        maps = torch.floor(255.0 * maps) / 255.0
    if presence is not None:
        if presence.shape != maps.shape[:3]:
            raise ValueError(
                f"Expected `presence` of shape (B, G, K) = {tuple(maps.shape[:3])}, got {tuple(presence.shape)}."
            )
        maps = maps * presence.to(maps).reshape(*presence.shape, *[1] * (maps.ndim - 3))
    return maps.amax(dim=1) if fusion == "max" else maps.mean(dim=1)


def average_ensemble(raw_maps: Iterable[torch.Tensor]) -> torch.Tensor:
    """Average the *raw* maps of several networks for the same images.

    The zero level of raw maps and their pooled logits keep their meaning in the mean, which is normalized once,
    afterwards. Any iterable will do; only one map and the running sum are held.

    Args:
        raw_maps: tensors of one shape, e.g. each (B, K, *S).

    Returns:
        Their mean, in float32 or wider.

    Raises:
        ValueError: no map at all, or maps of different shapes.

    Example:
        >>> average_ensemble([torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)]).unique()
        tensor([0.5000])
    """
    total: torch.Tensor | None = None
    count = 0
    for member in raw_maps:
        member = float32_or_wider(member)
        if total is not None and member.shape != total.shape:
            raise ValueError(
                f"Expected ensemble maps of one shape, got {tuple(total.shape)} and {tuple(member.shape)}: "
                "resize the maps of every member to the input's size."
            )
        total = member if total is None else total + member
        count += 1
    if total is None:
        raise ValueError("Expected at least one map in `raw_maps`, got none.")
    return total / count
