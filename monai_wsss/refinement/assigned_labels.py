# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Labels that one branch of a network assigns to the other, and how far to trust them.

Yang et al., CoSA (ECCV 2024, arXiv:2402.17891), Eq. 3, 4 and 7:

    nu  = max_c M_c,                Y^CPL = argmax_c M_c  where nu >= xi,  else background
    P   = (-log(lambda_a d))^lambda_b,     d = (nu - xi) / (1 - xi)  where nu >= xi,  else (xi - nu) / xi
    Y^SPL = softmax(S / tau)  over the background and the classes that the image holds

| symbol       | name            | shape                                                          |
|--------------|-----------------|----------------------------------------------------------------|
| M            | `maps`          | (B, K, *s) in [0, 1], zero for classes that an image does not hold |
| nu           | `strength`      | (B, *s) in [0, 1]                                              |
| xi           | `threshold`     | a number, or a tensor without dimensions                       |
| Y^CPL        | `label`         | (B, *s): 0, 1..K or ``IGNORED``                                |
| P            | `perplexity`    | (B, *s), above 0; 0.22 where nu is 0 or 1, large near xi       |
| S            | `logits`        | (B, K + 1, *S), background first                               |
| Y^SPL        | `probabilities` | (B, K + 1, *S)                                                 |

The released code has neither P nor one xi: two thresholds label a pixel or leave it out (:func:`two_threshold_label`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_shape, float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss.refinement.spreading import SpreadRule, constant_label

__all__ = ["class_assignment", "perplexity", "segmentation_assignment", "two_threshold_label"]

_NEAREST = 1e-6  # d at the threshold itself, where the logarithm would be infinite; also the lowest P
_THRESHOLDS = (0.05, 0.95)  # d divides by xi and by 1 - xi


@torch.no_grad()
def class_assignment(
    maps: torch.Tensor, threshold: float | torch.Tensor, *, padding: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Label each pixel by its strongest class, or as background below the threshold (Eq. 3).

    Args:
        maps: M (B, K, *s) in [0, 1], zero for classes that the image does not hold.
        threshold: xi in (0, 1); a tensor without dimensions stays on its device.
        padding: (B, *s) bool, pixels to ignore; None: none.

    Returns:
        Y^CPL (B, *s) int64: 0, 1..K or 255; and nu (B, *s).  Healthy images are background throughout.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> label, strength = class_assignment(torch.tensor([[[[0.1, 0.5, 0.9]], [[0.2, 0.6, 0.3]]]]), 0.5)
        >>> label.tolist(), strength.round(decimals=1).tolist()
        ([[[0, 2, 1]]], [[[0.20000000298023224, 0.6000000238418579, 0.8999999761581421]]])
    """
    check_shape("maps", maps, "(B, K, *S)")
    _check_padding(padding, maps)
    strength, winner = float32_or_wider(maps).max(dim=1)
    # Nothing is found where every map is 0, even if xi is 0.
    label = torch.where((strength >= threshold) & (strength > 0), winner + 1, 0)
    return label if padding is None else label.masked_fill(padding, IGNORED), strength


@torch.no_grad()
def perplexity(
    strength: torch.Tensor, threshold: float | torch.Tensor, *, scale: float = 0.8, power: float = 1.0
) -> torch.Tensor:
    """Tell how doubtful the labels of :func:`class_assignment` are: P of Eq. 4.

    P would be infinite at the threshold; there it is that of d = 1e-6 / ``scale``.  The threshold is kept within 0.05
    and 0.95, so that both distances are shares.

    Args:
        strength: nu (B, *s) in [0, 1].
        threshold: xi.
        scale: lambda_a in (0, 1].
        power: lambda_b > 0.

    Returns:
        P of the shape of ``strength``, at least 1e-6 and finite.

    Raises:
        ValueError: a scale or a power out of range.

    Example:
        >>> perplexity(torch.tensor([0.0, 0.4, 0.5, 0.75, 1.0]), 0.5).round(decimals=2).tolist()
        [0.2199999988079071, 1.8300000429153442, 13.819999694824219, 0.9200000166893005, 0.2199999988079071]
    """
    if not 0 < scale <= 1 or not power > 0:
        raise ValueError(
            f"Expected `scale` in (0, 1] and `power` > 0, got {scale} and {power}: otherwise clear labels have a "
            "negative perplexity, or it falls towards the threshold."
        )
    strength = float32_or_wider(strength)
    cut = torch.as_tensor(threshold, dtype=strength.dtype, device=strength.device).clamp(*_THRESHOLDS)
    above = strength - cut
    distance = torch.where(above >= 0, above / (1 - cut), -above / cut).clamp(max=1)
    return (scale * distance).clamp(min=_NEAREST).log().neg().pow(power).clamp(min=_NEAREST)


@torch.no_grad()
def two_threshold_label(
    maps: torch.Tensor,
    label: torch.Tensor,
    *,
    low: float | torch.Tensor = 0.25,
    high: float | torch.Tensor = 0.7,
    downscale: float = 2.0,
    classes: torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """Label by two thresholds, as the released code does: the class above ``high``, background up to ``low``.

    The comparison is made on smaller maps, whose probabilities are brought back to the maps' size: that smooths the
    labels slightly.

    Args:
        maps: M (B, K, *s) in [0, 1].
        label: (B, K), 0/1: classes of label 0 take no part.
        low: up to this value a pixel is background; 0.25, in the published log of VOC 0.2. Tensors without dimensions
            stay on their device and are trusted, as is ``high``.
        high: above it a pixel has the class; 0.7, for COCO 0.65.
        downscale: factor >= 1 by which the maps shrink for the comparison.
        classes: (k,) channels that some image holds, which alone are compared; None: all K.
        padding: (B, *s) bool, pixels to ignore; None: none.

    Returns:
        (B, *s) int64: 0, 1..K, or 255 between the thresholds.

    Raises:
        ValueError: shapes that do not fit, thresholds that are not 0 <= ``low`` <= ``high`` <= 1, or a factor below 1.

    Example:
        >>> maps = torch.tensor([[[[0.1, 0.5, 0.9]]]])
        >>> two_threshold_label(maps, torch.ones(1, 1), downscale=1).tolist()
        [[[0, 255, 1]]]
    """
    check_shape("maps", maps, "(B, K, *S)")
    _check_label_shape(label, maps.shape[1], maps)
    _check_padding(padding, maps)
    numbers = not isinstance(low, torch.Tensor) and not isinstance(high, torch.Tensor)
    if (numbers and not 0 <= low <= high <= 1) or downscale < 1:
        raise ValueError(f"Expected 0 <= `low` <= `high` <= 1 and `downscale` >= 1, got {low}, {high} and {downscale}.")
    held = torch.arange(maps.shape[1], device=maps.device) if classes is None else classes
    rule = SpreadRule(_unchanged, low, high, downscale)
    assigned = constant_label(maps[:, :1], maps, label.to(maps.device), held, rule)
    return assigned if padding is None else assigned.masked_fill(padding, IGNORED)


@torch.no_grad()
def segmentation_assignment(
    logits: torch.Tensor, label: torch.Tensor | None = None, temperature: float = 0.01
) -> torch.Tensor:
    """Give the segmentation's probabilities over the background and the classes that each image holds (Eq. 7).

    Args:
        logits: S (B, K + 1, *S), background first.
        label: (B, K), 0/1: the probability of classes of label 0 is 0, and healthy images are background throughout;
            None: all classes take part.
        temperature: tau > 0; at 0.01 the result is nearly one-hot.

    Returns:
        Y^SPL (B, K + 1, *S) in float32 or wider, also within autocast: logits / 0.01 is too coarse in bfloat16.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.

    Example:
        >>> logits = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]], [[2.0, 2.0]]]])
        >>> segmentation_assignment(logits, torch.tensor([[1, 0]])).round().tolist()
        [[[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0]]]]
    """
    check_shape("logits", logits, "(B, K+1, *S)")
    if not temperature > 0:
        raise ValueError(f"Expected `temperature` > 0, got {temperature}.")
    logits = float32_or_wider(logits)
    if label is not None:
        _check_label_shape(label, logits.shape[1] - 1, logits)
        absent = F.pad(label.to(logits.device) == 0, (1, 0), value=False)
        logits = logits.masked_fill(absent.reshape(*absent.shape, *[1] * (logits.ndim - 2)), -torch.inf)
    with torch.autocast(logits.device.type, enabled=False):
        return (logits / temperature).softmax(dim=1)


def _unchanged(image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return maps


def _check_label_shape(label: torch.Tensor, num_classes: int, maps: torch.Tensor) -> None:
    """Check the shape of labels alone: their values were checked where the batch came in."""
    if label.shape != (len(maps), num_classes):
        raise ValueError(f"Expected `label` of shape (B, K) = {(len(maps), num_classes)}, got {tuple(label.shape)}.")


def _check_padding(padding: torch.Tensor | None, maps: torch.Tensor) -> None:
    expected = (len(maps), *maps.shape[2:])
    if padding is not None and (padding.dtype != torch.bool or padding.shape != expected):
        raise ValueError(
            f"Expected bool `padding` of shape (B, *s) = {expected}, got {padding.dtype} of shape "
            f"{tuple(padding.shape)}."
        )
