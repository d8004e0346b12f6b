# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Equivariance: the map of a transformed image is the transformed map of the image.

    L_ER = || pi(M(x)) - M(pi(x)) ||^2        Patel & Dolz (CMER), Eq. 2

Wang et al. 2020 (SEAM, arXiv:2004.04581) had the idea, with another norm and for one modality.  M are maps normalized
to [0, 1].  The paper sums over pixels.  With full-resolution maps that sum is about 1000 per image, far above the
classification loss; the released code averages.  Gradients pass through both maps.

| symbol     | name               |
|------------|--------------------|
| pi(M(x))   | ``warped_maps``    |
| M(pi(x))   | ``maps_of_warped`` |
"""

from __future__ import annotations

import torch
from torch import nn

from monai_wsss._checks import check_choice, check_label, check_shape, float32_or_wider

__all__ = ["EquivarianceLoss", "equivariance_loss"]


def equivariance_loss(
    warped_maps: torch.Tensor,
    maps_of_warped: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Compute the squared difference of two stacks of maps: the mean over images, those of weight 0 counted.

    Args:
        warped_maps: pi(M(x)) (B, K, *S), in [0, 1].
        maps_of_warped: M(pi(x)) (B, K, *S), in [0, 1].
        weight: (B, K) factors, e.g. the image-level labels; None: all maps count.
        reduction: over classes and pixels of an image: ``"mean"``, or ``"sum"`` as Eq. 2 is printed.

    Returns:
        scalar, in float32 or wider.

    Raises:
        ValueError: shapes that differ, or an unknown reduction.

    Example:
        >>> equivariance_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), reduction="sum").item()
        4.0
    """
    check_shape("warped_maps", warped_maps, "(B, K, *S)")
    check_choice("reduction", reduction, ("mean", "sum"))
    if maps_of_warped.shape != warped_maps.shape:
        raise ValueError(
            f"Expected `maps_of_warped` of the shape {tuple(warped_maps.shape)} of `warped_maps`, "
            f"got {tuple(maps_of_warped.shape)}: apply the same transform to images and maps."
        )
    difference = float32_or_wider(warped_maps) - float32_or_wider(maps_of_warped)
    squares = difference.square().flatten(2)
    of_maps = squares.mean(2) if reduction == "mean" else squares.sum(2)
    if weight is not None:
        of_maps = of_maps * weight.to(of_maps)
    return of_maps.mean() if reduction == "mean" else of_maps.sum(1).mean()


class EquivarianceLoss(nn.Module):
    """:func:`equivariance_loss` of maps of labeled images.

    Args:
        reduction: see there; the paper's reading is ``"sum"``.
        mask: which maps count: ``"label"``, those of classes that the image holds, as in the released code;
            ``"none"``, all, as in the paper.
        validate_args: whether each call checks the values of its labels, which waits for labels on a GPU; False where
            they were checked before.

    Raises:
        ValueError: an unknown option; labels of another shape, or other than 0 and 1.

    Example:
        >>> loss = EquivarianceLoss()
        >>> loss(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.tensor([[1], [0]])).item()
        0.5
    """

    def __init__(self, *, reduction: str = "mean", mask: str = "label", validate_args: bool = True) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("mask", mask, ("label", "none"))
        self.reduction = reduction
        self.mask = mask
        self.validate_args = validate_args

    def forward(self, warped_maps: torch.Tensor, maps_of_warped: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compare maps (B, K, *S), see :func:`equivariance_loss`; ``label`` (B, K), 0/1."""
        if label.shape != warped_maps.shape[:2]:
            raise ValueError(
                f"Expected `label` of shape (B, K) = {tuple(warped_maps.shape[:2])}, got {tuple(label.shape)}."
            )
        if self.validate_args:
            check_label(label, *warped_maps.shape[:2])
        weight = label if self.mask == "label" else None
        return equivariance_loss(warped_maps, maps_of_warped, weight=weight, reduction=self.reduction)
