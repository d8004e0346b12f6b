# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Raw maps averaged over views of the same image: flips, quarter turns, scales, each undone before the mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._resize import resize_linear

__all__ = ["multi_view_maps"]


def multi_view_maps(
    network: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    *,
    views: str = "none",
    scales: Sequence[float] = (1.0,),
) -> torch.Tensor:
    """Average the raw maps over views and scales; differentiable.

    Args:
        network: gives maps at its input's size: ``(B, C, *S) -> (B, K, *S)``.
        image: ``(B, C, *S)``.
        views: ``none``; ``flips``, all 2^d combinations of axis flips; ``dihedral``, the quarter turns of the first two
            spatial axes and their mirror images (8 views).
        scales: factors of the image's size; maps are brought back by linear interpolation.

    Returns:
        ``(B, K, *S)`` float32.

    Raises:
        ValueError: unknown views, or no positive scale.

    Example:
        >>> flat = multi_view_maps(lambda x: x.mean(1, keepdim=True), torch.rand(1, 2, 8, 6), views="dihedral")
        >>> flat.shape
        torch.Size([1, 1, 8, 6])
    """
    check_choice("views", views, ("none", "flips", "dihedral"))
    if not scales or min(scales) <= 0:
        raise ValueError(f"Expected `scales` to hold positive factors, got {tuple(scales)}.")
    size = image.shape[2:]
    total, count = torch.zeros((), device=image.device), 0
    for scale in scales:
        scaled = image
        if scale != 1.0:
            scaled = resize_linear(image, [max(1, round(side * scale)) for side in size])
        for forward, backward in _views(views, image.ndim - 2):
            maps = backward(float32_or_wider(network(forward(scaled))))
            if scale != 1.0:
                maps = resize_linear(maps, size)
            total, count = total + maps, count + 1
    return total / count


_View = Callable[[torch.Tensor], torch.Tensor]


def _views(views: str, spatial_dims: int) -> Iterator[tuple[_View, _View]]:
    """Yield pairs of a view and its inverse: quarter turns first, then flips; back in the reverse order."""
    if views == "dihedral":
        chosen = [(turns, axes) for turns, axes in product(range(4), ([], [2]))]
    else:
        flips = [()] if views == "none" else product((False, True), repeat=spatial_dims)
        chosen = [(0, [2 + axis for axis, flip in enumerate(flipped) if flip]) for flipped in flips]
    for turns, axes in chosen:
        yield partial(_turn_and_flip, turns=turns, axes=axes), partial(_flip_and_turn_back, turns=turns, axes=axes)


def _turn_and_flip(x: torch.Tensor, turns: int, axes: list[int]) -> torch.Tensor:
    return x.rot90(turns, (2, 3)).flip(axes)


def _flip_and_turn_back(x: torch.Tensor, turns: int, axes: list[int]) -> torch.Tensor:
    return x.flip(axes).rot90(-turns, (2, 3))
