# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The affinity of tokens that AFA learns from a transformer's attention.

    A_ij = sigmoid(sum_h w_h (a^h_ij + a^h_ji) + b)     a^h = q^h . k^h, raw logits of all heads      Ru et al., Eq. 3

The weighted sum over heads is one inner product of weighted queries with keys, so no map of a head is built.  Near
pairs only (the windowed form) take less memory than all pairs, and less time if there are many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from monai_wsss._checks import float32_or_wider
from monai_wsss._windows import inside_window
from monai_wsss.networks.attention_logits import attention_logits

__all__ = ["AttentionAffinity"]

TOKENS_PER_OFFSET = 4
"""With more tokens per offset of the window than this, near pairs only are faster than all pairs."""
DENSE_TOKENS = 4096
"""With more tokens than this (64 MiB per image), all pairs are computed only if the window holds as many."""


class AttentionAffinity(nn.Module):
    """Affinities from the queries and keys of an encoder's attention.

    Args:
        heads: number of attention heads, summed over the blocks that give queries and keys.

    Attributes:
        weight: w, (1, heads, 1, 1), the shape of the authors' 1x1 convolution.
        bias: b, (1,).

    Example:
        >>> import torch
        >>> tokens = torch.rand(1, 2, 6, 4)  # (B, heads, N, F)
        >>> AttentionAffinity(2).between([(tokens, tokens)], (2, 3)).shape
        torch.Size([1, 6, 6])
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        conv = nn.Conv2d(heads, 1, kernel_size=1)
        nn.init.kaiming_normal_(conv.weight, a=math.sqrt(5), mode="fan_out")
        assert conv.bias is not None
        self.weight, self.bias = conv.weight, conv.bias

    @torch.jit.unused
    def between(
        self, pairs: list[tuple[torch.Tensor, torch.Tensor]], size: Sequence[int], radius: int | None = None
    ) -> torch.Tensor:
        """Give A between the tokens of a map.

        Args:
            pairs: (queries, keys) of each block, (B, heads, N, F) each, over the N tokens of the map.
            size: the map's sides *s.
            radius: largest offset along each axis, in tokens; None for all pairs.

        Returns:
            (B, N, N) in (0, 1); or, where a radius is given and there are many tokens, the windowed form (B, W, *s),
            W = (2 radius + 1)^d, 0 outside of the image.
        """
        if radius is not None and _dense_is_cheaper(size, radius):
            radius = None
        weights = self.weight.flatten().split([query.shape[1] for query, _ in pairs])
        query = torch.cat(
            [_join_heads(float32_or_wider(q) * w[:, None, None]) for (q, _), w in zip(pairs, weights, strict=True)], -1
        )
        key = torch.cat([_join_heads(float32_or_wider(k)) for _, k in pairs], -1)
        logits = attention_logits(query[:, None], key[:, None], size, radius, symmetric=True)[:, 0]
        affinity = (logits + self.bias).sigmoid()
        return affinity if radius is None else affinity * inside_window(size, radius, affinity.device)


def _dense_is_cheaper(size: Sequence[int], radius: int) -> bool:
    offsets = (2 * radius + 1) ** len(size)
    return math.prod(size) <= max(offsets, min(TOKENS_PER_OFFSET * offsets, DENSE_TOKENS))


def _join_heads(tokens: torch.Tensor) -> torch.Tensor:
    """Bring (B, heads, N, F) to (B, N, heads * F)."""
    return tokens.transpose(1, 2).flatten(2)
