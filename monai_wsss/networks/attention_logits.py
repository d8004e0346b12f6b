# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Raw attention logits q_i . k_j between the tokens of a map: of all pairs, or of neighbors alone.

Of N tokens in d dimensions, N^2 pairs are 67 million at 128 x 128 and out of reach in a volume; the losses and walks
that use them ask for neighbors within a radius r only.  That form holds W = (2r + 1)^d offsets a token:

| form     | entry                                       | shape             | outside of the image |
|----------|---------------------------------------------|-------------------|----------------------|
| dense    | (i, j) of token i and token j               | (B, heads, N, N)  | -                    |
| windowed | (o, i) of token i and the token at i + o    | (B, heads, W, *s) | 0                    |

Offsets o run row-major from (-r, ..., -r) to (r, ..., r), so W - 1 - o is the offset -o and W // 2 the token itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F

from monai_wsss._windows import window_views

__all__ = ["attention_logits", "inside_window", "transpose_pairs"]


def attention_logits(
    query: torch.Tensor, key: torch.Tensor, size: Sequence[int], radius: int | None = None
) -> torch.Tensor:
    """q_i . k_j, neither scaled nor normalized, of all pairs of tokens or of those within a window.

    Args:
        query: (B, heads, N, F), row-major tokens of a map.
        key: (B, heads, N, F).
        size: the map's sides s, of product N.
        radius: r >= 0 of the windowed form, the largest offset along each axis; None for the dense form.

    Returns:
        Dense (B, heads, N, N), or windowed (B, heads, W, *s) with 0 for offsets that leave the image.  The windowed
        form never holds more than N rows of one side of the map.

    Raises:
        ValueError: queries and keys that are not of N tokens each, or a negative radius.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[[[1.0], [2.0], [3.0], [4.0]]]])
        >>> attention_logits(tokens, tokens, (1, 4))[0, 0, 1].tolist()
        [2.0, 4.0, 6.0, 8.0]
        >>> attention_logits(tokens, tokens, (1, 4), radius=1)[0, 0, 3:6, 0, 1].tolist()
        [2.0, 4.0, 6.0]
    """
    if query.shape != key.shape or query.ndim != 4 or query.shape[2] != math.prod(size):
        raise ValueError(
            f"Expected `query` and `key` of shape (B, heads, N, F) with the N = {math.prod(size)} tokens of a map of "
            f"{tuple(size)}, got {tuple(query.shape)} and {tuple(key.shape)}: attention to reduced keys has no "
            "logits between tokens."
        )
    if radius is None:
        return query @ key.transpose(2, 3)
    _check_radius(radius)
    axes, span = len(size) - 1, 2 * radius + 1
    query = query.unflatten(2, tuple(size))
    key = F.pad(key.unflatten(2, tuple(size)), (0, 0) + (radius, radius) * len(size))
    bands = []
    # For each offset along all axes but the last, one product of rows with rows; of its w x (w + 2r) the band is kept.
    for offsets in product(range(span), repeat=axes):
        rows = key
        for axis, offset in enumerate(offsets):
            rows = rows.narrow(2 + axis, offset, size[axis])
        pairs = (query @ rows.transpose(-1, -2)).flatten(-2)
        # One more column a row moves each row's band to the front.
        bands.append(F.pad(pairs, (0, size[-1])).unflatten(-1, (size[-1], -1))[..., :span])
    return torch.stack(bands, dim=-2).flatten(-2).movedim(-1, 2)


def transpose_pairs(pairs: torch.Tensor, size: Sequence[int], radius: int | None = None) -> torch.Tensor:
    """The pair (j, i) in the place of (i, j): ``(B, N, N)`` or, windowed, ``(B, W, *s)``, of the same shape.

    Args:
        pairs: dense or windowed, without heads.
        size: the map's sides s.
        radius: of the windowed form; None for the dense form.

    Returns:
        Windowed, (o, i) becomes the entry (-o, i + o), and 0 where i + o is outside of the image.

    Example:
        >>> import torch
        >>> pairs = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 0.0]]])[:, :, None]  # W = 3 of radius 1
        >>> full = torch.zeros(1, 9, 1, 3)
        >>> full[:, 3:6] = pairs
        >>> transpose_pairs(full, (1, 3), radius=1)[0, 3:6, 0].tolist()
        [[0.0, 6.0, 7.0], [3.0, 4.0, 5.0], [1.0, 2.0, 0.0]]
    """
    if radius is None:
        return pairs.transpose(1, 2)
    _check_radius(radius)
    dims = len(size)
    reversed_offsets = F.pad(pairs.flip(1), (radius, radius) * dims).contiguous().unflatten(1, (2 * radius + 1,) * dims)
    strides = reversed_offsets.stride()
    # One step along an offset is also one step along its axis: a view, and nothing is copied.
    moved = [strides[1 + axis] + strides[1 + dims + axis] for axis in range(dims)]
    shape = (pairs.shape[0], *reversed_offsets.shape[1 : 1 + dims], *size)
    return reversed_offsets.as_strided(shape, (strides[0], *moved, *strides[1 + dims :])).flatten(1, dims)


def inside_window(size: Sequence[int], radius: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Which offsets of which tokens stay inside of the image: ``(W, *s)`` of bool.

    Example:
        >>> inside_window((1, 3), radius=1)[3:6, 0].int().tolist()
        [[0, 1, 1], [1, 1, 1], [1, 1, 0]]
    """
    _check_radius(radius)
    inside = torch.ones(tuple(size), dtype=torch.bool, device=device)
    return window_views(inside, radius, 0, len(size)).flatten(0, len(size) - 1)


def _check_radius(radius: int) -> None:
    if radius < 0:
        raise ValueError(f"Expected `radius` of 0 tokens or more, got {radius}.")
