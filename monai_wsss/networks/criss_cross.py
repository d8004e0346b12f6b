# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Criss-cross attention: each position attends to its own row and column, in a volume to its own three lines.

Huang et al. 2019, "CCNet: Criss-cross attention for semantic segmentation", arXiv:1811.11721; it is Eq. 1 of Feng et
al., AAAI 2025 (gland segmentation).

| symbol    | here       | shape            | what                                                             |
|-----------|------------|------------------|------------------------------------------------------------------|
| X         | `features` | (B, C, *s)       |                                                                  |
| Q, K      | of 1x1     | (B, C/8, *s)     | two convolutions of X with bias                                  |
| V         | of 1x1     | (B, C, *s)       | a convolution of X with bias; ξ are its vectors in S(u)          |
| S(u)      |            |                  | positions on the lines of u, u counted once: h + w - 1           |
| A         | `weights`  | (B, *s, h + w)   | softmax of <Q_u, K_v> over v in S(u)                             |
| γ         | `gamma`    | (1,)             | learned, starts at zero                                          |

Inside, tensors are (B, *s, c), so that one batched matrix product serves all lines along an axis.  The softmax runs
over the products of all lines of a position together.
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes.
from typing import Self

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss.networks.checked import CheckedModule

__all__ = ["CrissCrossAttention", "QueriesKeysValues", "inner_products"]


class QueriesKeysValues(CheckedModule):
    """The learned part of an attention over positions: 1x1 convolutions with bias for Q, K and V, and γ.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: Q and K have C / reduction channels, at least one.
        gamma_init: γ at the start.

    Raises:
        ValueError: sizes out of range.

    Example:
        >>> {name: tuple(value.shape) for name, value in QueriesKeysValues(8).named_parameters() if value.ndim > 1}
        {'query_conv.weight': (1, 8, 1, 1), 'key_conv.weight': (1, 8, 1, 1), 'value_conv.weight': (8, 8, 1, 1)}
    """

    def __init__(self, channels: int, *, spatial_dims: int = 2, reduction: int = 8, gamma_init: float = 0.0) -> None:
        super().__init__()
        if channels < 1 or reduction < 1 or spatial_dims not in (2, 3):
            raise ValueError(
                "Expected `channels` and `reduction` of at least 1 and `spatial_dims` 2 or 3, "
                f"got {channels}, {reduction} and {spatial_dims}."
            )
        self.channels = channels
        self.spatial_dims = spatial_dims
        conv = Conv[Conv.CONV, spatial_dims]
        self.query_conv = conv(channels, max(1, channels // reduction), kernel_size=1)
        self.key_conv = conv(channels, max(1, channels // reduction), kernel_size=1)
        self.value_conv = conv(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.full((1,), float(gamma_init)))

    @classmethod
    def tiny(cls, spatial_dims: int = 2, channels: int = 4) -> Self:
        """Build it with few channels and γ = 1, so that it is not the identity."""
        return cls(channels, spatial_dims=spatial_dims, reduction=2, gamma_init=1.0)

    def check_features(self, features: torch.Tensor) -> None:
        """Raise a ``ValueError`` for features that are not ``(B, C, *s)``."""
        if features.dim() != self.spatial_dims + 2 or features.shape[1] != self.channels:
            raise ValueError(
                f"Expected `features` of {self.channels} channels and {self.spatial_dims} spatial dimensions, "
                f"(B, C, *s), got {features.shape}."
            )


class CrissCrossAttention(QueriesKeysValues):
    """Attention that adds to each position what resembles it in its row and column: ``(B, C, *s) -> (B, C, *s)``.

    With a(u, v) = softmax over v in S(u) of <Q_u, K_v> (Eq. 1)::

        out_u = γ Σ_v a(u, v) V_v + X_u

    It starts at γ = 0, where the module is the identity and leaves the features of loaded weights as they are.  Eq. 1
    has no γ, which means γ = 1.  Products and softmax run in float32 or wider; the result has the type of the input.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: Q and K have C / reduction channels, at least one.
        gamma_init: γ at the start.
        official_quirk: compute as the authors' code, which takes the softmax over the first spatial axis of the query
            (so the weights of a position do not sum to 1) and counts the position itself once per axis.

    Raises:
        ValueError: sizes out of range, or features of another shape.

    Example:
        >>> import torch
        >>> attention = CrissCrossAttention(8)
        >>> features = torch.rand(2, 8, 5, 6)
        >>> torch.equal(attention(features), features)  # γ is 0
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int = 2,
        reduction: int = 8,
        gamma_init: float = 0.0,
        official_quirk: bool = False,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims, reduction=reduction, gamma_init=gamma_init)
        self.official_quirk = official_quirk

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, *s) -> (B, C, *s)``, in the input's type."""
        self.check_features(features)
        # With channels last in memory the lines of the last axis need no copies, forward and backward.
        layout = torch.channels_last if self.spatial_dims == 2 else torch.channels_last_3d
        inputs = features.contiguous(memory_format=layout)
        queries = self.query_conv(inputs).movedim(1, -1)
        keys = self.key_conv(inputs).movedim(1, -1)
        values = self.value_conv(inputs).movedim(1, -1)
        energy = self.energy(queries, keys, not self.official_quirk)
        gathered = self.gather(energy.softmax(dim=1 if self.official_quirk else -1), values)
        return features + (self.gamma * gathered.movedim(-1, 1)).to(features.dtype)

    def energy(self, queries: torch.Tensor, keys: torch.Tensor, own_once: bool) -> torch.Tensor:
        """Multiply queries with the keys on their lines: ``(B, *s, c)`` twice -> ``(B, *s, h + w)``, axis by axis.

        With ``own_once`` the position itself is -inf in all lines but the one along the last axis.
        """
        parts: list[torch.Tensor] = []
        for axis in range(1, self.spatial_dims + 1):
            part = inner_products(queries.movedim(axis, -2), keys.movedim(axis, -2))
            if own_once and axis < self.spatial_dims:
                part = part.masked_fill(torch.eye(part.shape[-1], dtype=torch.bool, device=part.device), float("-inf"))
            parts.append(part.movedim(-2, axis))
        return torch.cat(parts, dim=-1)

    def gather(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Sum the values on each position's lines by weight: ``(B, *s, h + w)``, ``(B, *s, C)`` -> ``(B, *s, C)``."""
        parts: list[torch.Tensor] = []
        start = 0
        for axis in range(1, self.spatial_dims + 1):
            part = weights.narrow(-1, start, values.shape[axis]).to(values.dtype).movedim(axis, -2)
            parts.append(torch.matmul(part, values.movedim(axis, -2)).movedim(-2, axis))
            start += values.shape[axis]
        gathered = parts[0] + parts[1]
        return gathered if self.spatial_dims == 2 else gathered + parts[2]


def inner_products(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Multiply each vector with each of another set: ``(*, N, c)``, ``(*, M, c)`` -> ``(*, N, M)``, float32 or wider.

    This holds under autocast too: in half precision large products overflow, and a later exponential turns the errors
    of the others into factors.  A scripted module follows autocast, since TorchScript can switch it off only for a
    device that is a constant.

    Example:
        >>> import torch
        >>> inner_products(torch.full((1, 2), 200.0).half(), torch.full((1, 2), 200.0).half())
        tensor([[80000.]])
    """
    if queries.dtype == torch.float16 or queries.dtype == torch.bfloat16:
        queries, keys = queries.float(), keys.float()
    if torch.jit.is_scripting():
        return torch.matmul(queries, keys.transpose(-1, -2))
    with torch.autocast(queries.device.type, enabled=False):
        return torch.matmul(queries, keys.transpose(-1, -2))
