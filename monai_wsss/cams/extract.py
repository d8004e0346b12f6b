# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Class activation maps from features: by the weights of a linear head (CAM) or by gradients (Grad-CAM, Grad-CAM++).

| symbol      | name          | meaning                                                                |
|-------------|---------------|------------------------------------------------------------------------|
| A^f         | `activations` | feature map f of the last layer with space                             |
| w_k^f       | `weight`      | weight of feature f in the linear head of class k                      |
| Y^k         | `scores`      | image-level logit of class k                                           |
| dY^k / dA^f | `gradients`   | derivative of the logit by each pixel of the feature map               |

CAM: Zhou et al. 2016, arXiv:1512.04150. Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391. Grad-CAM++: Chattopadhay et
al. 2018, arXiv:1710.11063. All maps are the right way up: large where the evidence for the class is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_shape, float32_or_wider
from monai_wsss._resize import resize_linear

__all__ = ["gradient_activation_maps", "head_activation_maps", "resize_maps"]


def head_activation_maps(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Give the signed maps of all classes at once: m_k = sum_f w_k^f A^f + b_k, the linear head applied to each pixel.

    The average of each map is the logit of a head that follows global average pooling. The bias is the same for all
    pixels; leave it out to see only the evidence of the features. All runs in float32 or wider, also under autocast.

    Args:
        features: A (B, F, *S).
        weight: w (K, F), of a fully connected layer, or (K, F, 1, 1[, 1]), of a 1x1 convolution.
        bias: b (K,), or None.

    Returns:
        (B, K, *S), differentiable.

    Raises:
        ValueError: other shapes.

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])
        >>> head_activation_maps(features, torch.tensor([[1.0, -1.0]])).flatten().tolist()
        [-2.0, -3.0]
    """
    check_shape("features", features, "(B, F, *S)")
    if weight.ndim < 2 or weight.shape[1] != features.shape[1] or weight[0, 0].numel() != 1:
        raise ValueError(
            f"Expected `weight` of shape (K, F) or (K, F, 1, 1[, 1]) with F = {features.shape[1]}, "
            f"got {tuple(weight.shape)}."
        )
    with torch.autocast(features.device.type, enabled=False):
        features = float32_or_wider(features)
        maps = torch.einsum("bf...,kf->bk...", features, weight.flatten(1).to(features))
        if bias is None:
            return maps
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"Expected `bias` of shape (K,) = {tuple(weight.shape[:1])}, got {tuple(bias.shape)}.")
        return maps + bias.to(maps).reshape(-1, *[1] * (maps.ndim - 2))


def gradient_activation_maps(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    scores: torch.Tensor | None = None,
    *,
    variant: str = "gradcam",
    eps: float = 0.0,
) -> torch.Tensor:
    """Compute Grad-CAM or Grad-CAM++ of one class for every image of a batch independently: ReLU(sum_f w^f A^f).

    With g = dY/dA (B, F, *S) and sums over the pixels of each image and feature:

    - ``"gradcam"``: w^f = mean g^f.
    - ``"gradcam++"``: w^f = exp(Y) sum a^f ReLU(g^f), a^f = (g^f)^2 / (2 (g^f)^2 + sum A^f (g^f)^3 + eps), the closed
      form for the class score exp(Y); where the denominator is zero it counts as 1.

    exp(Y) scales the whole map of an image: it matters between images, but never after normalization.  The paper has no
    ``eps``; released codes (WSS-CMER, MONAI) add 1e-7.  Where an average over many pixels leaves gradients below 3e-4,
    that is more than the squared gradient, and w^f becomes a multiple of the cubed gradient.

    Args:
        activations: A (B, F, *S).
        gradients: g (B, F, *S).
        scores: Y (B,), for ``"gradcam++"``; None: the factor exp(Y) is left out.
        variant: ``"gradcam"`` or ``"gradcam++"``.
        eps: added to the denominator of ``"gradcam++"``, see above.

    Returns:
        (B, *S), not negative, in float32 or wider.

    Raises:
        ValueError: other shapes, or an unknown variant.

    Example:
        >>> activations = torch.tensor([[[[1.0, 2.0]], [[5.0, 1.0]]]])
        >>> gradients = torch.tensor([[[[0.5, 0.5]], [[-0.1, -0.1]]]])
        >>> gradient_activation_maps(activations, gradients).flatten().tolist()
        [0.0, 0.8999999761581421]
    """
    check_shape("activations", activations, "(B, F, *S)")
    check_choice("variant", variant, ("gradcam", "gradcam++"))
    if gradients.shape != activations.shape or (scores is not None and scores.shape != activations.shape[:1]):
        raise ValueError(
            f"Expected `gradients` {tuple(activations.shape)} as `activations`, and `scores` (B,), "
            f"got {tuple(gradients.shape)} and {None if scores is None else tuple(scores.shape)}."
        )
    with torch.autocast(activations.device.type, enabled=False):
        features, gradient = float32_or_wider(activations).flatten(2), float32_or_wider(gradients).flatten(2)
        if variant == "gradcam":
            weights = gradient.mean(dim=2)
        else:
            square = gradient.square()
            denominator = 2 * square + (features * square * gradient).sum(dim=2, keepdim=True)
            denominator = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
            weights = (square / (denominator + eps) * F.relu(gradient)).sum(dim=2)
            if scores is not None:
                weights = weights * float32_or_wider(scores).exp()[:, None]
        maps = torch.einsum("bf,bfn->bn", weights, features)
    return F.relu(maps).reshape(activations.shape[0], *activations.shape[2:])


def resize_maps(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring maps (B, K, *S) to another spatial size, linearly between pixel centers (half-pixel convention).

    Unlike :func:`~monai_wsss._resize.resize_linear` it widens half precision to float32 for the interpolation, and
    gives maps that already have the size unchanged.

    Example:
        >>> resize_maps(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).flatten().tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    check_shape("maps", maps, "(B, K, *S)")
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return resize_linear(float32_or_wider(maps), size)
