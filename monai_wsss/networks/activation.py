# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What every deployable network with ``output_kind = "activation"`` shares: raw class maps at the input's size.

A subclass gives low-resolution class maps; this base brings them to the input's size and carries what a mask needs
besides the map: the pooling that the network was trained with, and the healthy level that training measured.
"""

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss.cams import pool_maps

__all__ = ["POOLINGS", "ActivationNetwork"]

POOLINGS = ("average", "max", "topk", "lse")


class ActivationNetwork(nn.Module):
    """Base of networks whose output is G groups of K raw, un-normalized activation maps.

    Args:
        spatial_dims: 2 or 3.
        num_classes: K, the foreground classes.
        groups: G, e.g. the modalities of CMER; 1 for all others.
        pooling: how image-level logits follow from a map: ``average``, ``max``, ``topk`` or ``lse``.
        topk_share: share of the pixels that ``topk`` averages, in (0, 1].
        lse_sharpness: r of the log-sum-exp pooling; 0+ is the average, large is the maximum.

    Attributes:
        output_kind: ``"activation"``.
        negative_reference: (G*K,) median response of training-negative pixels; NaN until ``method.finalize``.
        negative_quantile: (G*K,) upper quantile of the same pixels; NaN until ``method.finalize``.
    """

    # Real types, not strings: TorchScript reads them, so this file does without `from __future__ import annotations`.
    output_kind: str = "activation"
    negative_reference: torch.Tensor
    negative_quantile: torch.Tensor

    def __init__(
        self,
        spatial_dims: int,
        num_classes: int,
        *,
        groups: int = 1,
        pooling: str = "max",
        topk_share: float = 0.1,
        lse_sharpness: float = 5.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
        if num_classes < 1:
            raise ValueError(f"Expected `num_classes` >= 1 foreground class, got {num_classes}.")
        check_choice("pooling", pooling, POOLINGS)
        self.spatial_dims = spatial_dims
        self.num_classes = num_classes
        self.groups = groups
        self.pooling = pooling
        self.topk_share = topk_share
        self.lse_sharpness = lse_sharpness
        self.output_kind = "activation"
        self._mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.register_buffer("negative_reference", torch.full((groups * num_classes,), float("nan")))
        self.register_buffer("negative_quantile", torch.full((groups * num_classes,), float("nan")))

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Raw maps at the network's own resolution: ``(B, C, *S) -> (B, G*K, *s)``."""
        raise NotImplementedError(f"{type(self).__name__} must give its class maps.")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Raw maps at the input's size: ``(B, C, *S) -> (B, G*K, *S)``, linear interpolation, half-pixel centers."""
        return F.interpolate(self.class_maps(image), size=image.shape[2:], mode=self._mode, align_corners=False)

    @torch.jit.unused
    def member_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Maps that are trained independently of one another: ``(B, C, *S) -> (M, B, G*K, *S)``; here M = 1."""
        return self(image)[None]

    @torch.jit.unused
    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Image-level logits of maps: ``(B, G*K, *S) -> (B, G*K)``, with this network's pooling."""
        return pool_maps(maps, self.pooling, topk_share=self.topk_share, lse_sharpness=self.lse_sharpness)

    @torch.jit.unused
    def decision_traits(self) -> dict[str, object]:
        """What :func:`monai_wsss.refinement.to_mask` has to know of this network's output, by its argument names."""
        names = ("pooling", "topk_share", "lse_sharpness", "groups", "negative_reference", "negative_quantile")
        return {"output_kind": self.output_kind, **{name: getattr(self, name) for name in names}}
