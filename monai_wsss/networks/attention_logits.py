# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Raw attention logits q_i . k_j between the tokens of a map, for all pairs or for neighbors only.

N tokens in d dimensions have N^2 pairs: 268 million at 128 x 128, and too many in a volume.  Losses and walks need only
neighbors within a radius r.  The windowed form holds W = (2r + 1)^d offsets per token:

| form     | entry                                       | shape             | outside of the image |
|----------|---------------------------------------------|-------------------|----------------------|
| dense    | (i, j) of token i and token j               | (B, heads, N, N)  | -                    |
| windowed | (o, i) of token i and the token at i + o    | (B, heads, W, *s) | 0                    |

Offsets o run row-major from (-r, ..., -r) to (r, ..., r), so W - 1 - o is the offset -o and W // 2 the token itself.

A row is the w tokens along the last axis.  The windowed form is made from products of whole rows, w x w pairs each, one
offset between rows after the other.  Of each product the band of pairs within the radius is kept:

| name      | holds                                            | shape                      |
|-----------|--------------------------------------------------|----------------------------|
| `squares` | (x, x') of tokens x and x' of two rows           | (..., w, w)                |
| `bands`   | (x, k) of tokens x and x' = x + k - r; 0 outside | (..., w, 2r + 1)           |
| `windows` | (n, k, i) of token i, n the offset between rows  | (W / (2r + 1), 2r + 1, *s) |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from monai_wsss._checks import float32_or_wider
from monai_wsss._windows import check_radius, shifts

__all__ = ["attention_logits"]


def attention_logits(
    query: torch.Tensor, key: torch.Tensor, size: Sequence[int], radius: int | None = None, *, symmetric: bool = False
) -> torch.Tensor:
    """Compute a_ij = q_i . k_j, neither scaled nor normalized, for all pairs of tokens or for those within a window.

    Args:
        query: (B, heads, N, F), row-major tokens of a map.
        key: (B, heads, N, F).
        size: the map's sides s, of product N.
        radius: r >= 0 of the windowed form, the largest offset along each axis; None for the dense form.
        symmetric: give a_ij + a_ji instead.

    Returns:
        Dense (B, heads, N, N), or windowed (B, heads, W, *s) with 0 for offsets that leave the image.  It is float32 or
        wider, under autocast too, since unscaled sums over F channels exceed the range of half precision.

        For the backward pass the windowed form keeps only queries and keys.  While it is computed, it needs besides its
        result a few times the memory of one head's tokens, N x F, and of pairs of rows, N x (w + 2r), w the last side.

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
    with torch.autocast(query.device.type, enabled=False):
        query, key = float32_or_wider(query), float32_or_wider(key)
        if radius is None:
            logits = query @ key.mT
            return logits + logits.mT if symmetric else logits
        check_radius(radius)
        maps = (tokens.flatten(0, 1).unflatten(1, tuple(size)) for tokens in (query, key))
        return _WindowedLogits.apply(*maps, radius, symmetric).unflatten(0, query.shape[:2])


class _WindowedLogits(torch.autograd.Function):
    """Windowed logits (M, W, *s) from queries and keys (M, *s, F) of M maps.

    Plain autograd would keep the rows of each offset: up to (2r + 1)^(d - 1) copies of queries and keys.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, radius: int, symmetric: bool) -> torch.Tensor:
        ctx.save_for_backward(query, key)
        ctx.radius, ctx.symmetric = radius, symmetric
        span, size = 2 * radius + 1, query.shape[1:-1]
        windows = query.new_zeros(len(query), span ** (len(size) - 1), span, *size)
        # Map by map, since the rows of one map are a batch of matrices; those of several would be copied per product.
        for windows_of, q, k in zip(windows, query, key, strict=True):
            for n, here, there in shifts(size[:-1], radius):
                windows_of[n][:, *here] = _to_bands(q[here] @ k[there].mT, radius).movedim(-1, 0)
            if symmetric:
                _add_transposed_(windows_of, radius)
        return windows.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key = ctx.saved_tensors
        of_query, of_key = torch.zeros_like(query), torch.zeros_like(key)
        with torch.autocast(query.device.type, enabled=False):
            for i, (q, k) in enumerate(zip(query, key, strict=True)):
                of_windows = grad[i].unflatten(0, (-1, 2 * ctx.radius + 1))
                if ctx.symmetric:  # a + a^T is its own adjoint
                    of_windows = _add_transposed_(of_windows.clone(), ctx.radius)
                for n, here, there in shifts(q.shape[:-2], ctx.radius):
                    squares = _to_squares(of_windows[n][:, *here].movedim(0, -1), ctx.radius)
                    of_query[i][here].add_(squares @ k[there])
                    of_key[i][there].add_(squares.mT @ q[here])
        return of_query, of_key, None, None


def _add_transposed_(windows: torch.Tensor, radius: int) -> torch.Tensor:
    """Replace a (the windows) by a + a^T, in place; entries that leave the image have no transpose and no meaning."""
    last = len(windows) - 1
    for n, here, there in shifts(windows.shape[2:-1], radius):
        if n > last - n:
            break  # the remaining offsets are the other halves of the pairs done
        forth = windows[n][:, *here].movedim(0, -1)
        back = windows[last - n][:, *there].movedim(0, -1)
        squares = _to_squares(forth, radius) + _to_squares(back, radius).mT
        forth.copy_(_to_bands(squares, radius))
        back.copy_(_to_bands(squares.mT, radius))
    return windows


def _to_bands(squares: torch.Tensor, radius: int) -> torch.Tensor:
    """Map ``(..., w, w) -> (..., w, 2r + 1)``: in rows padded to w + 2r each band begins one further to the right."""
    span = 2 * radius + 1
    return F.pad(squares, (radius, radius)).flatten(-2).unfold(-1, span, squares.shape[-1] + span)


def _to_squares(bands: torch.Tensor, radius: int) -> torch.Tensor:
    """Map ``(..., w, 2r + 1) -> (..., w, w)``, 0 beside the band, without entries outside of the image."""
    width = bands.shape[-2]
    padded = width + 2 * radius
    rows = F.pad(bands, (0, width)).flatten(-2)[..., : width * padded].unflatten(-1, (width, padded))
    return rows[..., radius : radius + width]
