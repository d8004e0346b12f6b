# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Normalization per image and channel, over space: of activation maps into [0, 1], and of images by their z-score.

Everything works for (B, K, H, W) and (B, K, H, W, D) and is differentiable, with finite gradients also where a map is
zero or constant. Half precision becomes float32: in fp16 the epsilons would vanish and give 0/0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_label, check_shape, float32_or_wider

__all__ = ["normalize_maps", "rescale_maps", "subtract_negative_reference", "zscore_images"]

MINMAX_EPSILON = 1e-8  # of the code released with CMER (Patel & Dolz), utils/CAM_utils.py


def normalize_maps(maps: torch.Tensor, norm: str, *, label: torch.Tensor | None = None) -> torch.Tensor:
    """Rectify class maps and scale each, per image and class, into [0, 1].

    - ``"max"``: ReLU(m) / max ReLU(m). Zero stays zero; a map without a positive pixel gives zeros. (CAM, and Eq. 4 of
      Feng et al., AAAI 2025.)
    - ``"minmax"``: with p = ReLU(m), ReLU(p - min p - e) / (max p - min p + e), e = 1e-8, as the code released with
      CMER has it. The image's lowest pixel becomes zero, the result stays below 1, and a constant map gives zeros.

    The two differ only where every pixel of a map is positive. Gradients pass through the maximum and the minimum.

    Args:
        maps: raw maps (B, K, *S).
        norm: ``"max"`` or ``"minmax"``.
        label: (B, K), 0/1; the maps of classes that an image does not have become zero. None: all are kept.

    Returns:
        (B, K, *S) in [0, 1].

    Raises:
        ValueError: another shape, an unknown ``norm``, or labels other than 0 and 1.

    Example:
        >>> maps = torch.tensor([[[[-1.0, 1.0], [2.0, 4.0]]]])
        >>> normalize_maps(maps, "max").flatten().tolist()
        [0.0, 0.25, 0.5, 1.0]
    """
    check_shape("maps", maps, "(B, K, *S)")
    check_choice("norm", norm, ("max", "minmax"))
    positive = F.relu(float32_or_wider(maps))
    if label is not None:
        check_label(label, maps.shape[0], maps.shape[1])
        positive = positive * label.to(positive).reshape(*label.shape, *[1] * (maps.ndim - 2))
    axes = tuple(range(2, maps.ndim))
    highest = positive.amax(dim=axes, keepdim=True)
    if norm == "max":
        return positive / torch.where(highest > 0, highest, torch.ones_like(highest))
    lowest = positive.amin(dim=axes, keepdim=True)
    return F.relu(positive - lowest - MINMAX_EPSILON) / (highest - lowest + MINMAX_EPSILON)


def rescale_maps(maps: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Scale maps of either sign, per image and channel: (m - min m) / (max m - min m + e), as BMP and CoSA have it.

    Args:
        maps: (B, K, *S).
        eps: e > 0, so that a constant map gives zeros.

    Returns:
        (B, K, *S) in [0, 1).

    Raises:
        ValueError: another shape.

    Example:
        >>> rescale_maps(torch.tensor([[[[-1.0, 0.0, 1.0]]]]), eps=2.0).flatten().tolist()
        [0.0, 0.25, 0.5]
    """
    check_shape("maps", maps, "(B, K, *S)")
    return between_extremes(maps, eps)


def between_extremes(maps: torch.Tensor, eps: float = 1e-5, *, least: float = 0.0) -> torch.Tensor:
    """Compute :func:`rescale_maps` of arguments that fit; ranges below ``least`` are not stretched to 1."""
    maps, axes = float32_or_wider(maps), tuple(range(2, maps.ndim))
    lowest = maps.amin(dim=axes, keepdim=True)
    spread = maps.amax(dim=axes, keepdim=True) - lowest
    return (maps - lowest) / ((spread.clamp(min=least) if least else spread) + eps)


def subtract_negative_reference(maps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Move the zero of each class map to the level of healthy tissue, then scale its peak to 1.

    ReLU(m_k - r_k) / max ReLU(m_k - r_k), where r_k is the healthy level: the median response of class k over the
    pixels of training images without class k. The value 0.5 then lies half-way between healthy tissue and the image's
    peak.

    Args:
        maps: raw maps (B, K, *S).
        reference: r (K,), finite.

    Returns:
        (B, K, *S) in [0, 1]; zeros where no pixel exceeds the reference.

    Raises:
        ValueError: another shape, or a reference that is not finite.

    Example:
        >>> maps = torch.tensor([[[[-3.0, -2.0], [0.0, 2.0]]]])
        >>> subtract_negative_reference(maps, torch.tensor([-2.0])).flatten().tolist()
        [0.0, 0.0, 0.5, 1.0]
    """
    check_shape("maps", maps, "(B, K, *S)")
    if reference.shape != maps.shape[1:2]:
        raise ValueError(
            f"Expected `reference` of shape (K,) = {tuple(maps.shape[1:2])}, got {tuple(reference.shape)}."
        )
    if not bool(reference.isfinite().all()):
        raise ValueError(
            f"Expected a finite `reference`, got {reference.tolist()}: the median response of training-negative pixels "
            "is known only once training has ended (run the method's `finalize`)."
        )
    return above_level(maps, reference)


def above_level(maps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Compute :func:`subtract_negative_reference` of arguments that are known to fit."""
    maps = float32_or_wider(maps)
    return normalize_maps(maps - reference.to(maps).reshape(1, -1, *[1] * (maps.ndim - 2)), "max")


def zscore_images(images: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Standardize each image and channel: (x - mean) / (std + eps), std with the unbiased divisor N - 1.

    Networks and losses use it for batches after a spatial transform; in the data pipeline MONAI's
    ``NormalizeIntensity`` (divisor N) does it per item. A constant channel becomes exactly 0. A small epsilon alone
    would not give that: the rounding error of the mean leaves a "std" of its own size.

    Args:
        images: (B, C, *S).
        eps: added to the standard deviation; 1e-12 in the code released with CMER.

    Returns:
        (B, C, *S).

    Raises:
        ValueError: another shape.

    Example:
        >>> zscore_images(torch.tensor([[[[1.0, 3.0]], [[0.3, 0.3]]]])).flatten().tolist()
        [-0.7071067690849304, 0.7071067690849304, 0.0, 0.0]
    """
    # Networks that standardize their input are compiled by TorchScript, and this with them.
    if not torch.jit.is_scripting():
        check_shape("images", images, "(B, C, *S)")
    if images.dtype == torch.float16 or images.dtype == torch.bfloat16:
        images = images.float()
    pixels = images.flatten(2)
    largest = pixels.abs().amax(dim=2, keepdim=True)
    spread = pixels.amax(dim=2, keepdim=True) - pixels.amin(dim=2, keepdim=True)
    varies = spread > 1e-6 * largest  # below, a channel counts as constant
    centered = pixels - pixels.mean(dim=2, keepdim=True)
    variance = centered.square().sum(dim=2, keepdim=True) / max(pixels.shape[2] - 1, 1)
    std = torch.where(varies, variance, torch.ones_like(variance)).sqrt()
    return torch.where(varies, centered / (std + eps), torch.zeros_like(centered)).reshape(images.shape)
