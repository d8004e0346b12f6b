# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Raw maps brought together over views of the same image: flips, quarter turns, scales, each undone before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import overload

import torch

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._resize import resize_linear
from monai_wsss.inferers.multi_scale import check_scales

__all__ = ["multi_view_maps"]


@overload
def multi_view_maps(
    network: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    *,
    views: str = ...,
    scales: Sequence[float] = ...,
    reduction: str = ...,
) -> torch.Tensor: ...


@overload
def multi_view_maps(
    network: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    image: torch.Tensor,
    *,
    views: str = ...,
    scales: Sequence[float] = ...,
    reduction: str = ...,
) -> tuple[torch.Tensor, ...]: ...


def multi_view_maps(
    network: Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]],
    image: torch.Tensor,
    *,
    views: str = "none",
    scales: Sequence[float] = (1.0,),
    reduction: str = "mean",
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Average the raw maps over views and scales, or take their sum or maximum; differentiable.

    Args:
        network: gives maps at its input's size, one or a tuple of them: ``(B, C, *S) -> (B, K, *S)``.
        image: ``(B, C, *S)``.
        views: ``none``; ``mirror``, the image and its mirror image along the last axis, left and right of a photograph;
            ``flips``, all 2^d combinations of axis flips; ``dihedral``, the quarter turns of the first two spatial axes
            and their mirror images (8 views).
        scales: factors of the image's size; maps are brought back by linear interpolation.
        reduction: over views and scales: ``mean``, ``sum``, or ``max``, pixel by pixel and class by class.

    Returns:
        ``(B, K, *S)`` float32 or wider, or a tuple of such.

    Raises:
        ValueError: unknown views, an unknown reduction, or no positive scale.

    Example:
        >>> flat = multi_view_maps(lambda x: x.mean(1, keepdim=True), torch.rand(1, 2, 8, 6), views="dihedral")
        >>> flat.shape
        torch.Size([1, 1, 8, 6])
        >>> [maps.shape[1] for maps in multi_view_maps(lambda x: (x, x[:, :1]), torch.rand(1, 2, 8, 6), views="flips")]
        [2, 1]
    """
    check_choice("views", views, ("none", "mirror", "flips", "dihedral"))
    check_choice("reduction", reduction, ("mean", "sum", "max"))
    check_scales(scales)
    size = image.shape[2:]
    totals: list[torch.Tensor] = []
    count, single = 0, True
    for scale in scales:
        scaled = image
        if scale != 1.0:
            scaled = resize_linear(image, [max(1, round(side * scale)) for side in size])
        for forward, backward in _views(views, image.ndim - 2):
            given = network(forward(scaled))
            single = isinstance(given, torch.Tensor)
            several = (given,) if isinstance(given, torch.Tensor) else given
            parts = [backward(float32_or_wider(maps)) for maps in several]
            if scale != 1.0:
                parts = [resize_linear(maps, size) for maps in parts]
            join = torch.maximum if reduction == "max" else torch.add
            totals = [join(total, maps) for total, maps in zip(totals, parts, strict=True)] if totals else parts
            count += 1
    if reduction == "mean":
        totals = [total / count for total in totals]
    return totals[0] if single else tuple(totals)


_View = Callable[[torch.Tensor], torch.Tensor]


def _views(views: str, spatial_dims: int) -> Iterator[tuple[_View, _View]]:
    """Yield pairs of a view and its inverse: quarter turns first, then flips; back in the reverse order."""
    if views == "dihedral":
        chosen = [(turns, axes) for turns, axes in product(range(4), ([], [2]))]
    elif views == "mirror":
        chosen = [(0, []), (0, [1 + spatial_dims])]
    else:
        flips = [()] if views == "none" else product((False, True), repeat=spatial_dims)
        chosen = [(0, [2 + axis for axis, flip in enumerate(flipped) if flip]) for flipped in flips]
    for turns, axes in chosen:
        yield partial(_turn_and_flip, turns=turns, axes=axes), partial(_flip_and_turn_back, turns=turns, axes=axes)


def _turn_and_flip(x: torch.Tensor, turns: int, axes: list[int]) -> torch.Tensor:
    return x.rot90(turns, (2, 3)).flip(axes)


def _flip_and_turn_back(x: torch.Tensor, turns: int, axes: list[int]) -> torch.Tensor:
    return x.flip(axes).rot90(-turns, (2, 3))
