# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Affinity labels of token pairs, and maps that take one step along affinities.

    q_j = sum_i T_ij p_i,   T_ij = A_ij^2 / (sum_i A_ij^2 + 0.1),   |i - j| <= radius      Ru et al. (AFA, CVPR 2022)

The square is taken element by element and sharpens the affinities.  The authors' code has the 0.1, the normalization of
columns and the single step.  In AFA p is the softmax over the background score and the activations of the classes that
are present (:func:`softmax_with_background`), on the grid of the tokens.

| symbol | name       | shape                            |
|--------|------------|----------------------------------|
| A      | `affinity` | (B, N, N) or windowed (B, W, *s) |
| p      | `maps`     | (B, M, *s)                       |
"""

from __future__ import annotations

import torch

from monai_wsss._checks import check_label, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss._windows import check_pairs, near_pairs, shifts

__all__ = ["affinity_labels", "propagate_by_affinity", "softmax_with_background"]


def affinity_labels(label: torch.Tensor, radius: int = 8, ignore_index: int = IGNORED) -> torch.Tensor:
    """Give the affinity that each pair of tokens should have: 1 for equal labels, 0 for different, 255 for no pair.

    To train affinities use ``losses.affinity_loss``, which needs no such table.

    Args:
        label: the class of each token (B, *s), ``ignore_index`` where there is none.
        radius: tokens whose indices differ by more along any axis are no pair.
        ignore_index: the label without a class.

    Returns:
        (B, N, N) uint8 in {0, 1, 255}, tokens in row-major order; pairs of background tokens and the diagonal are 1.

    Raises:
        ValueError: another shape.

    Example:
        >>> affinity_labels(torch.tensor([[[0, 0, 1, 255]]]), radius=1)[0].tolist()
        [[1, 1, 255, 255], [1, 1, 0, 255], [255, 0, 1, 255], [255, 255, 255, 255]]
    """
    check_shape("label", label, "(B, *S)")
    flat = label.flatten(1)
    labeled = flat != ignore_index
    pairs = near_pairs(label.shape[1:], radius, label.device) & labeled[:, :, None]
    pairs &= labeled[:, None, :]
    return (flat[:, :, None] == flat[:, None, :]).to(torch.uint8).masked_fill_(~pairs, IGNORED)


def softmax_with_background(maps: torch.Tensor, label: torch.Tensor, background_score: float) -> torch.Tensor:
    """Put a constant background beside the maps of the classes that are present, and take the softmax.

    The maps lie in [0, 1], so the distribution is soft: the order of its values counts, not the values.

    Args:
        maps: normalized activations (B, K, *S).
        label: image-level labels (B, K), multi-hot; the channels of absent classes become 0.
        background_score: the constant, e.g. 0.55 for a cautious foreground, 0.35 for a generous one.

    Returns:
        (B, K+1, *S), background first, sums to 1; in healthy images the background is 1.

    Raises:
        ValueError: shapes that do not fit, or labels other than 0 and 1.

    Example:
        >>> maps = torch.tensor([[[[0.9, 0.1]], [[0.5, 0.5]]]])
        >>> softmax_with_background(maps, torch.tensor([[1.0, 0.0]]), 0.45).argmax(1).tolist()
        [[[1, 0]]]
    """
    check_shape("maps", maps, "(B, K, *S)")
    check_label(label, maps.shape[0], maps.shape[1])
    return background_softmax(maps, label, background_score)


def background_softmax(maps: torch.Tensor, label: torch.Tensor, background_score: float | torch.Tensor) -> torch.Tensor:
    """Compute :func:`softmax_with_background` of arguments that are known to fit; a 0-d score stays on its device."""
    maps = float32_or_wider(maps)
    absent = (label == 0).reshape(*label.shape, *[1] * (maps.ndim - 2))
    background = torch.zeros_like(maps[:, :1]) + background_score
    return torch.cat((background, maps.masked_fill(absent, float("-inf"))), 1).softmax(1)


def propagate_by_affinity(
    affinity: torch.Tensor, maps: torch.Tensor, radius: int = 8, *, power: float = 2.0, smoothing: float = 0.1
) -> torch.Tensor:
    """Move maps one step along the affinities of near tokens: q above.

    Args:
        affinity: in [0, 1], (B, N, N), or windowed (B, W, *s): at token p the affinities to p + offset for the
            W = (2 radius + 1)^d offsets in row-major order; entries that leave the grid do not count.
        maps: (B, M, *s) on the grid of the tokens; each channel moves independently.
        radius: half the side of the window, in tokens.
        power: exponent of the affinities, element by element.
        smoothing: added to the sum of a column, so that a token that resembles no other gets values near 0; without
            it, 0.

    Returns:
        (B, M, *s) in float32 or wider.  Detach the affinities if they should get no gradient.

    Raises:
        ValueError: shapes that do not fit, or a negative radius, power or smoothing.

    Example:
        >>> affinity = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> propagate_by_affinity(affinity, torch.tensor([[[[1.0, 0.0, 0.5]]]]), smoothing=0).tolist()
        [[[[0.5, 0.5, 0.5]]]]
    """
    check_shape("maps", maps, "(B, M, *S)")
    check_pairs(affinity, len(maps), maps.shape[2:], radius)
    if not power > 0 or not smoothing >= 0:
        raise ValueError(f"Expected `power` > 0 and `smoothing` >= 0, got {power} and {smoothing}.")
    return walk_along_affinity(affinity, maps, radius, power=power, smoothing=smoothing)


def walk_along_affinity(
    affinity: torch.Tensor, maps: torch.Tensor, radius: int, *, power: float = 2.0, smoothing: float = 0.1
) -> torch.Tensor:
    """Compute :func:`propagate_by_affinity` of arguments that are known to fit."""
    size = maps.shape[2:]
    tokens = size.numel()
    dense = affinity.shape == (len(maps), tokens, tokens)
    with torch.autocast(maps.device.type, enabled=False):
        maps, affinity = float32_or_wider(maps), float32_or_wider(affinity)
        # An additional channel of ones collects the sums by which the columns are divided.
        extended = torch.cat((maps, torch.ones_like(maps[:, :1])), 1)
        if dense:
            weights = affinity.pow(power) * near_pairs(size, radius, maps.device)
            moved = (extended.flatten(2) @ weights).reshape(extended.shape)
        else:
            moved = _along_windows(affinity.pow(power), extended, radius)
        total = moved[:, -1:] + smoothing
        return moved[:, :-1] / total.where(total != 0, 1)


def _along_windows(weights: torch.Tensor, maps: torch.Tensor, radius: int) -> torch.Tensor:
    """Add the weighted maps (B, M, *s) of each token p to p + offset, one of the W offsets after the other."""
    moved = torch.zeros_like(maps)
    for k, here, there in shifts(maps.shape[2:], radius):
        moved[:, :, *there] += weights[:, k : k + 1, *here] * maps[:, :, *here]
    return moved
