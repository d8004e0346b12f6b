# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Position attention: each position attends to all, in memory that grows with their number and not its square.

Fu et al. 2019, "Dual attention network for scene segmentation" (DANet), arXiv:1809.02983, Section 3.2; it is Eq. 2 of
Feng et al., AAAI 2025 (gland segmentation).

| symbol  | here       | shape         | what                                            |
|---------|------------|---------------|-------------------------------------------------|
| X'      | `features` | (B, C, *s)    |                                                 |
| H, M    | of 1x1     | (B, N, C/4)   | queries and keys: convolutions of X' with bias  |
| N       | `values`   | (B, N, C)     | a convolution of X' with bias                   |
| B       | `gathered` | (B, N, C)     | Eq. 2                                           |
| γ       | `gamma`    | (1,)          | learned, starts at zero                         |

Here N, in shapes, counts the positions: N = h w (d).
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes.
import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice
from monai_wsss.networks.criss_cross import QueriesKeysValues, inner_products

__all__ = ["PositionAttention"]

# Up to this number of positions a CPU holds all weights of an image (4 MiB) more quickly than it computes them twice: a
# training step at 28 x 28 positions and 512 channels takes half the time.
_FEW_POSITIONS = 1024


class PositionAttention(QueriesKeysValues):
    """Attention that adds to each position what resembles it anywhere in the image: ``(B, C, *s) -> (B, C, *s)``.

    With a(j, k) = softmax over k of <H_j, M_k>, unscaled::

        out_j = γ Σ_k a(j, k) N_k + X'_j

    Eq. 2 as printed differs: it sums the exponentials over the queries j, so that the weights of a position do not sum
    to 1, and has neither γ nor X'.  Its text ("aggregated with X'") and the authors' code agree with the formula here.
    The softmax runs in float32 or wider; the result has the type of the input.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: H and M have C / reduction channels, at least one; 4 in the paper, 8 in the authors' code.
        gamma_init: γ at the start; at 0 the module is the identity.
        residual: add X'; False is the literal Eq. 2.
        normalizer: ``"keys"``, or ``"queries"`` as Eq. 2 is printed, which needs memory for all N x N weights.

    Raises:
        ValueError: sizes out of range, an unknown normalizer, or features of another shape.

    Example:
        >>> import torch
        >>> attention = PositionAttention(8, gamma_init=1.0, residual=False)
        >>> attention.requires_grad_(False).query_conv.weight.zero_().sum().item()
        0.0
        >>> _ = attention.query_conv.bias.zero_()  # all weights are 1 / N, the result is the mean of the values
        >>> attention(torch.rand(1, 8, 5, 6)).std((2, 3)).max().item() < 1e-6
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int = 2,
        reduction: int = 4,
        gamma_init: float = 0.0,
        residual: bool = True,
        normalizer: str = "keys",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims, reduction=reduction, gamma_init=gamma_init)
        check_choice("normalizer", normalizer, ("keys", "queries"))
        self.residual = residual
        self.normalizer = normalizer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, *s) -> (B, C, *s)``, in the input's type."""
        self.check_features(features)
        queries = _tokens(self.query_conv(features))
        keys = _tokens(self.key_conv(features))
        values = _tokens(self.value_conv(features))
        if self.normalizer == "keys":
            gathered = _attend(queries, keys, values)
        else:
            gathered = _attend_by_all_weights(queries, keys, values, over=1)
        scaled = (self.gamma * gathered.transpose(1, 2).reshape(features.shape)).to(features.dtype)
        return features + scaled if self.residual else scaled


def _tokens(maps: torch.Tensor) -> torch.Tensor:
    """Map ``(B, c, *s) -> (B, N, c)``, contiguous, since attention kernels need a stride of 1 along channels."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Compute softmax(Q K^T) V in memory linear in N: ``(B, N, c)`` twice and ``(B, N, C)`` -> ``(B, N, C)``."""
    # Deployed networks take a single path: an exported network must not depend on the size of its example.
    if not torch.jit.is_scripting() and _few_in_eager_mode(queries):
        return _attend_by_all_weights(queries, keys, values, over=2)
    if not queries.is_cuda:
        # The CPU kernel that never holds all weights needs as many channels in Q and K as in V; otherwise torch takes
        # one that holds all of them.  Zeros change no product.  The GPU kernel has no such need.
        missing = values.shape[-1] - queries.shape[-1]
        queries, keys = F.pad(queries, (0, missing)), F.pad(keys, (0, missing))
    attended = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], scale=1.0)
    return attended[:, 0]


@torch.jit.unused
def _few_in_eager_mode(queries: torch.Tensor) -> bool:
    return not (queries.is_cuda or torch.compiler.is_exporting()) and queries.shape[1] <= _FEW_POSITIONS


def _attend_by_all_weights(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, over: int) -> torch.Tensor:
    """Compute the same through all N x N weights, with a softmax over the queries (``over`` 1) or the keys (2)."""
    weights = inner_products(queries, keys).softmax(dim=over)
    return torch.matmul(weights.to(values.dtype), values)
