# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Near tokens of a grid: pairs whose indices differ by at most a radius along each axis, in dense and windowed form.

*Dense*: all pairs of N tokens, numbered in row-major order, (N, N).  *Windowed*: for each token the W offsets around
it, W = (2 radius + 1)^d, in row-major order, so that entry k at token p is the pair (p, p + offset k); entries that
leave the grid are no pairs.  Nothing is cached: comparing indices axis by axis costs less than a pass over the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F

__all__ = ["check_pairs", "check_radius", "inside_window", "near_pairs", "shifts", "window_views"]


def near_pairs(size: Sequence[int], radius: int, device: torch.device | None = None) -> torch.Tensor:
    """Mark the pairs of a grid of ``size`` that lie within a square window: bool (N, N), the diagonal included.

    Example:
        >>> near_pairs((1, 3), 1).int().tolist()
        [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """
    near = torch.ones((1,) * (2 * len(size)), dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        index = torch.arange(length, device=device)
        shape = [1] * (2 * len(size))
        shape[axis] = shape[axis + len(size)] = length
        near = near & ((index[:, None] - index).abs() <= radius).reshape(shape)
    tokens = torch.Size(size).numel()
    return near.reshape(tokens, tokens)


def window_views(tokens: torch.Tensor, radius: int, outside: float, ndim: int) -> torch.Tensor:
    """Give the neighbors of every token: (..., *s) -> (..., *w, *s), w = 2 radius + 1 along each of ``ndim`` axes.

    The result is a view into one padded copy, which holds ``outside`` beyond the grid.

    Example:
        >>> window_views(torch.tensor([[1, 2, 3]]), 1, 0, ndim=1).tolist()
        [[[0, 1, 2], [1, 2, 3], [2, 3, 0]]]
    """
    views = F.pad(tokens, (radius, radius) * ndim, value=outside)
    for axis in range(views.ndim - ndim, views.ndim):
        views = views.unfold(axis, 2 * radius + 1, 1)
    leading = tokens.ndim - ndim
    spatial, window = range(leading, leading + ndim), range(leading + ndim, leading + 2 * ndim)
    return views.permute(*range(leading), *window, *spatial)


def inside_window(size: Sequence[int], radius: int, device: torch.device | None = None) -> torch.Tensor:
    """Mark the entries of the windowed form that are pairs, both tokens in the grid of ``size``: bool (W, *s).

    Example:
        >>> inside_window((1, 3), radius=1)[3:6, 0].int().tolist()
        [[0, 1, 1], [1, 1, 1], [1, 1, 0]]
    """
    check_radius(radius)
    inside = torch.ones(tuple(size), dtype=torch.bool, device=device)
    return window_views(inside, radius, 0, len(size)).flatten(0, len(size) - 1)


def shifts(size: Sequence[int], radius: int) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """Give, for each offset that has pairs, its number among the W offsets, the tokens p of its pairs, and p + offset.

    Example:
        >>> tokens = torch.tensor([1, 2, 3])
        >>> [(number, tokens[here].tolist(), tokens[there].tolist()) for number, here, there in shifts((3,), 1)]
        [(0, [2, 3], [1, 2]), (1, [1, 2, 3], [1, 2, 3]), (2, [1, 2], [2, 3])]
    """
    for number, offset in enumerate(product(range(-radius, radius + 1), repeat=len(size))):
        steps = list(zip(offset, size, strict=True))
        if all(abs(step) < length for step, length in steps):
            here = tuple(slice(max(0, -step), length - max(0, step)) for step, length in steps)
            there = tuple(slice(max(0, step), length + min(0, step)) for step, length in steps)
            yield number, here, there


def check_radius(radius: int) -> None:
    """Raise ``ValueError`` for a negative radius."""
    if radius < 0:
        raise ValueError(f"Expected `radius` of at least 0 tokens, got {radius}.")


def check_pairs(affinity: torch.Tensor, batch: int, size: Sequence[int], radius: int) -> bool:
    """Check an affinity against its grid; give True for the dense form (B, N, N), False for the windowed (B, W, *s).

    Raises:
        ValueError: it is neither, or a negative radius.
    """
    check_radius(radius)
    tokens, window = torch.Size(size).numel(), (2 * radius + 1) ** len(size)
    if affinity.shape == (batch, tokens, tokens):
        return True
    if affinity.shape == (batch, window, *size):
        return False
    raise ValueError(
        f"Expected `affinity` of shape (B, N, N) = {(batch, tokens, tokens)} or, windowed, (B, W, *s) = "
        f"{(batch, window, *size)} at radius {radius}, got {tuple(affinity.shape)}: bring maps and labels to the grid "
        "of the tokens."
    )
