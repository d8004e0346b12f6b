# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The game between a generator and a discriminator that tells healthy images from converted ones.

The discriminator gives one logit per patch: high for healthy images, low for images that the generator converted.  With
s = softplus, x = the logits of converted images and y = those of healthy images:

| loss          | the generator minimizes | the discriminator minimizes | source                              |
|---------------|-------------------------|-----------------------------|-------------------------------------|
| minimax       | -s(x) = log(1 - D)      | s(x) + s(-y)                | Goodfellow et al. 2014; CoinGAN     |
| nonsaturating | s(-x) = -log D          | s(x) + s(-y)                | Goodfellow et al. 2014, Sec. 3      |
| least squares | (x - 1)^2               | x^2 + (y - 1)^2             | Mao et al. 2017; CycleGAN halves D  |

Nothing takes the logarithm of a probability: half precision and sure discriminators are no danger.  The least squares
act on the logits themselves, as in CycleGAN's code; MONAI's ``PatchAdversarialLoss`` puts a LeakyReLU before them.

``reduction`` adds up the patches of an image or takes their mean; images are averaged in both cases.  A sum multiplies
the gradients by the number of patches (26^2 at 224 pixels), which Adam does not feel and SGD does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice, check_shape, check_sizes, float32_or_wider

__all__ = [
    "LeastSquaresAdversarialLoss",
    "MinimaxAdversarialLoss",
    "NonSaturatingAdversarialLoss",
    "least_squares_adversarial_loss",
    "minimax_adversarial_loss",
    "non_saturating_adversarial_loss",
]

PerPatch = Callable[[torch.Tensor], torch.Tensor]


def minimax_adversarial_loss(
    converted: torch.Tensor, healthy: torch.Tensor | None = None, *, reduction: str = "mean"
) -> torch.Tensor:
    """Give the minimax loss of one player; the generator's is never positive, and flat where the discriminator is sure.

    Args:
        converted: the discriminator's logits of converted images (B, 1, *s).
        healthy: its logits of healthy images (B', 1, *s), for the discriminator's loss; None: the generator's loss.
        reduction: ``"mean"`` or ``"sum"`` over the patches of an image.

    Returns:
        scalar in float32 or wider, the mean over images.

    Raises:
        ValueError: another shape or reduction, or no image or patch.

    Example:
        >>> logits = torch.zeros(2, 1, 3, 3)
        >>> [round(minimax_adversarial_loss(logits, *healthy).item(), 3) for healthy in ((), (logits,))]
        [-0.693, 1.386]
        >>> round(minimax_adversarial_loss(logits, reduction="sum").item(), 3)
        -6.238
    """
    return _loss(converted, healthy, reduction, lambda x: -F.softplus(x), _of_converted, _of_healthy)


def non_saturating_adversarial_loss(
    converted: torch.Tensor, healthy: torch.Tensor | None = None, *, reduction: str = "mean"
) -> torch.Tensor:
    """Give the non-saturating loss of one player; arguments, result and errors as :func:`minimax_adversarial_loss`.

    Example:
        >>> logits = torch.zeros(2, 1, 3, 3)
        >>> [round(non_saturating_adversarial_loss(logits, *healthy).item(), 3) for healthy in ((), (logits,))]
        [0.693, 1.386]
    """
    return _loss(converted, healthy, reduction, _of_healthy, _of_converted, _of_healthy)


def least_squares_adversarial_loss(
    converted: torch.Tensor, healthy: torch.Tensor | None = None, *, reduction: str = "mean"
) -> torch.Tensor:
    """Give the least-squares loss of one player; arguments, result and errors as :func:`minimax_adversarial_loss`.

    Example:
        >>> logits = torch.zeros(2, 1, 3, 3)
        >>> [least_squares_adversarial_loss(logits, *healthy).item() for healthy in ((), (logits,))]
        [1.0, 1.0]
    """
    return _loss(converted, healthy, reduction, _square_to_one, torch.square, _square_to_one)


def _loss(
    converted: torch.Tensor,
    healthy: torch.Tensor | None,
    reduction: str,
    generator: PerPatch,
    on_converted: PerPatch,
    on_healthy: PerPatch,
) -> torch.Tensor:
    """Check the logits, apply the player's functions to each patch, and reduce."""
    check_choice("reduction", reduction, ("mean", "sum"))
    for name, logits in (("converted", converted), ("healthy", converted if healthy is None else healthy)):
        check_shape(name, logits, "(B, 1, *S)")
        check_sizes(name, logits)

    def reduced(per_patch: PerPatch, logits: torch.Tensor) -> torch.Tensor:
        patches = per_patch(float32_or_wider(logits)).flatten(1)
        return (patches.sum(1) if reduction == "sum" else patches.mean(1)).mean()

    with torch.autocast(converted.device.type, enabled=False):
        if healthy is None:
            return reduced(generator, converted)
        return reduced(on_converted, converted) + reduced(on_healthy, healthy)


def _of_converted(logits: torch.Tensor) -> torch.Tensor:
    """Give -log(1 - D) of each patch."""
    return F.softplus(logits)


def _of_healthy(logits: torch.Tensor) -> torch.Tensor:
    """Give -log D of each patch."""
    return F.softplus(-logits)


def _square_to_one(logits: torch.Tensor) -> torch.Tensor:
    return (logits - 1).square()


class _AdversarialLoss(nn.Module):
    """Keep the reduction of an adversarial loss; a call without logits of healthy images is the generator's loss."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum"))
        self.reduction = reduction


class MinimaxAdversarialLoss(_AdversarialLoss):
    """:func:`minimax_adversarial_loss` with its option kept.

    Args:
        reduction: see there.

    Example:
        >>> MinimaxAdversarialLoss(reduction="sum")(torch.zeros(1, 1, 2, 2, 2)).item() < 0
        True
    """

    def forward(self, converted: torch.Tensor, healthy: torch.Tensor | None = None) -> torch.Tensor:
        """Give the discriminator's loss of both logits (B, 1, *s), or the generator's of those of converted images."""
        return minimax_adversarial_loss(converted, healthy, reduction=self.reduction)


class NonSaturatingAdversarialLoss(_AdversarialLoss):
    """:func:`non_saturating_adversarial_loss` with its option kept.

    Args:
        reduction: see there.

    Example:
        >>> NonSaturatingAdversarialLoss()(torch.zeros(1, 1, 2, 2)).item()
        0.6931471824645996
    """

    def forward(self, converted: torch.Tensor, healthy: torch.Tensor | None = None) -> torch.Tensor:
        """Give the discriminator's loss of both logits (B, 1, *s), or the generator's of those of converted images."""
        return non_saturating_adversarial_loss(converted, healthy, reduction=self.reduction)


class LeastSquaresAdversarialLoss(_AdversarialLoss):
    """:func:`least_squares_adversarial_loss` with its option kept.

    Args:
        reduction: see there.

    Example:
        >>> LeastSquaresAdversarialLoss()(torch.ones(1, 1, 2, 2)).item()
        0.0
    """

    def forward(self, converted: torch.Tensor, healthy: torch.Tensor | None = None) -> torch.Tensor:
        """Give the discriminator's loss of both logits (B, 1, *s), or the generator's of those of converted images."""
        return least_squares_adversarial_loss(converted, healthy, reduction=self.reduction)
