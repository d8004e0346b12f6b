# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The activation map of networks that convert images: by how much a pixel of the converted image differs."""

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, float32_or_wider

__all__ = ["check_difference_words", "difference_map"]

REDUCTIONS = ("mean", "max", "norm", "none")
SIGNS = ("both", "positive", "negative")


def check_difference_words(reduction: str, sign: str, smooth: int) -> None:
    """Raise ``ValueError`` for words that :func:`difference_map` does not know."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("sign", sign, SIGNS)
    if smooth < 1 or smooth % 2 == 0:
        raise ValueError(f"Expected `smooth` to be an odd side in pixels, 1 for none, got {smooth}.")


def difference_map(
    image: torch.Tensor, converted: torch.Tensor, reduction: str = "mean", sign: str = "both", smooth: int = 1
) -> torch.Tensor:
    """Give the difference of an image and its converted image as a map that is never negative; differentiable.

    TorchScript compiles this function, so the options are not keyword-only here; pass them by keyword all the same.

    Args:
        image: I, (B, C, *S).
        converted: G(I), of the same shape.
        reduction: over channels: ``"mean"``, ``"max"``, the Euclidean ``"norm"``, or ``"none"``, a map per channel.
        sign: ``"both"``, |I - G(I)|; ``"positive"``, what G made darker, for bright lesions; ``"negative"``, what G
            made brighter.
        smooth: odd side of a mean filter in pixels, 1 for none.  Pixels outside the image do not count.

    Returns:
        (B, 1, *S), or (B, C, *S) without reduction.

    Raises:
        ValueError: an unknown word, or images of different shapes.

    Example:
        >>> image, converted = torch.tensor([[[[1.0, 0.0]], [[0.0, -1.0]]]]), torch.zeros(1, 2, 1, 2)
        >>> difference_map(image, converted).flatten().tolist()
        [0.5, 0.5]
        >>> difference_map(image, converted, reduction="max", sign="positive").flatten().tolist()
        [1.0, 0.0]
    """
    if not torch.jit.is_scripting():
        check_difference_words(reduction, sign, smooth)
    if image.shape != converted.shape:
        raise ValueError(f"Expected two images of one shape, got {image.shape} and {converted.shape}.")
    difference = float32_or_wider(image - converted)
    if sign == "both":
        difference = difference.abs()
    else:
        difference = difference.relu() if sign == "positive" else (-difference).relu()
    if reduction == "mean":
        difference = difference.mean(dim=1, keepdim=True)
    elif reduction == "max":
        difference = difference.amax(dim=1, keepdim=True)
    elif reduction == "norm":
        difference = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    if smooth == 1:
        return difference
    if difference.dim() == 4:
        return F.avg_pool2d(difference, smooth, 1, smooth // 2, count_include_pad=False)
    return F.avg_pool3d(difference, smooth, 1, smooth // 2, count_include_pad=False)
