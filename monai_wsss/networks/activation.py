# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The base of every deployable network with ``output_kind = "activation"``: raw class maps at the input's size.

A subclass gives low-resolution class maps. This base brings them to the input's size and carries what a mask needs
besides the map: the pooling that the network was trained with, and the healthy level that training measured.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss._resize import linear_mode
from monai_wsss._running import fill_where_finite, store_flags_as_numbers
from monai_wsss.cams.pooling import pool_maps
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.reading_record import add_reading_record
from monai_wsss.refinement import MaskRule

__all__ = ["POOLINGS", "ActivationNetwork"]

POOLINGS = ("average", "max", "topk", "lse")
"""How image-level logits follow from maps, by name."""
_LEVELS = ("negative_reference", "negative_quantile")


class ActivationNetwork(CheckedModule):
    """Base of networks whose output is G groups of K raw, un-normalized activation maps.

    Weights from before there was the buffer ``filled`` load, too: levels that are finite count as measured.  How its
    training images were read is recorded in buffers, too: see :func:`~monai_wsss.networks.recorded_reading`.

    Args:
        spatial_dims: 2 or 3.
        num_classes: K, the foreground classes.
        groups: G, e.g. the modalities of CMER; 1 for all others.
        pooling: how image-level logits follow from a map: ``average``, ``max``, ``topk`` or ``lse``.
        topk_share: share of the pixels that ``topk`` averages, in (0, 1].
        lse_sharpness: r of the log-sum-exp pooling; 0+ is the average, large is the maximum.
        background_map: whether each group begins with a map of the background, K + 1 maps in all, as a softmax over
            background and classes has it. A logit is then that of the class minus that of the background.

    Attributes:
        output_kind: ``"activation"``.
        negative_reference: (G*K,) the healthy level, the median response of training-negative pixels; finite always.
        negative_quantile: (G*K,) upper quantile of the same pixels; finite always.
        filled: (G*K,) bool, where both have been measured; nowhere until ``method.finalize``.
        presence_level: optional, a number or a buffer (G*K,): what the pooled map of a class has to exceed in an image
            that has the class. A network without it has level 0. Set it where pooled maps are no logits.
        rule: optional, the name of the rule of :class:`~monai_wsss.refinement.MaskRule` that its maps call for. A
            network without it has the one of its pooling.
        min_contrast: optional, what at least one pixel of a map has to exceed, see there.

    Raises:
        ValueError: other spatial dimensions, no class, or an unknown pooling.
    """

    # Real types, not strings: TorchScript reads them, so this file does without `from __future__ import annotations`.
    output_kind: str = "activation"
    negative_reference: torch.Tensor
    negative_quantile: torch.Tensor
    filled: torch.Tensor

    def __init__(
        self,
        spatial_dims: int,
        num_classes: int,
        *,
        groups: int = 1,
        pooling: str = "max",
        topk_share: float = 0.1,
        lse_sharpness: float = 5.0,
        background_map: bool = False,
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
        self.background_map = background_map
        self.output_kind = "activation"
        self._mode = linear_mode(spatial_dims)
        for name in _LEVELS:
            self.register_buffer(name, torch.zeros(groups * num_classes))
        self.register_buffer("filled", torch.zeros(groups * num_classes, dtype=torch.bool))
        self.register_load_state_dict_pre_hook(_fill_before_loading)
        store_flags_as_numbers(self)
        add_reading_record(self)

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw maps at the network's own resolution: ``(B, C, *S) -> (B, G*K, *s)``."""
        raise NotImplementedError(f"{type(self).__name__} must give its class maps.")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw maps at the input's size: ``(B, C, *S) -> (B, G*K, *S)``, linear between half-pixel centers."""
        return F.interpolate(self.class_maps(image), size=image.shape[2:], mode=self._mode, align_corners=False)

    @torch.jit.unused
    def member_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give maps that are trained independently of one another: ``(B, C, *S) -> (M, B, G*K, *S)``; here M = 1."""
        return self(image)[None]

    @torch.jit.unused
    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool maps into image-level logits (B, G*K), with this network's pooling: class minus background of K+1 maps.

        Example:
            >>> from monai_wsss.networks import CAMUNet
            >>> network = CAMUNet(width=4, background_map=True)
            >>> network.pool(torch.tensor([2.0, 5.0]).reshape(1, 2, 1, 1)).tolist()
            [[3.0]]
        """
        logits = pool_maps(maps, self.pooling, topk_share=self.topk_share, lse_sharpness=self.lse_sharpness)
        if not self.background_map:
            return logits
        of_groups = logits.unflatten(1, (-1, self.num_classes + 1))
        return (of_groups[:, :, 1:] - of_groups[:, :, :1]).flatten(1)

    @torch.jit.unused
    def of_classes(self, maps: torch.Tensor) -> torch.Tensor:
        """Give the maps of the classes, (B, G*K, *S), of the network's output, without those of the background."""
        if not self.background_map:
            return maps
        return maps.unflatten(1, (-1, self.num_classes + 1))[:, :, 1:].flatten(1, 2)

    @torch.jit.unused
    def mask_rule(self) -> MaskRule:
        """Give the rule by which this network's output becomes a mask, with the levels as they are now.

        Example:
            >>> from monai_wsss.networks import CAMEncoder
            >>> CAMEncoder(pooling="average").mask_rule().rule
            'minmax'
        """
        names: tuple[str, ...] = (
            "pooling",
            "topk_share",
            "lse_sharpness",
            "groups",
            *_LEVELS,
            "filled",
            "background_map",
        )
        told: dict[str, Any] = {name: getattr(self, name) for name in names}
        told |= {name: getattr(self, name, None) for name in ("presence_level", "rule", "min_contrast")}
        # Copies: a rule stays as it is when training measures the levels anew.
        told = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in told.items()}
        return MaskRule(output_kind=self.output_kind, **told)

    @torch.jit.unused
    def set_healthy_level(self, reference: torch.Tensor | float, quantile: torch.Tensor | float) -> None:
        """Take what training-negative pixels respond into the buffers, and mark it as measured.

        Args:
            reference: their median (G*K,), or one number for all channels; NaN where it was not measured.
            quantile: their upper quantile, alike.

        Raises:
            ValueError: another shape.

        Example:
            >>> from monai_wsss.networks import CAMEncoder
            >>> network = CAMEncoder(num_classes=2)
            >>> network.set_healthy_level(torch.tensor([-3.0, torch.nan]), 0.5)
            >>> network.negative_reference.tolist(), network.filled.tolist()
            ([-3.0, 0.0], [True, False])
        """
        levels = [torch.as_tensor(level).to(self.negative_reference) for level in (reference, quantile)]
        for level in levels:
            if level.ndim and level.shape != self.filled.shape:
                raise ValueError(
                    f"Expected levels of shape (G*K,) = {tuple(self.filled.shape)}, got {tuple(level.shape)}."
                )
        with torch.no_grad():
            self.filled.copy_(torch.stack([level.isfinite().expand_as(self.filled) for level in levels]).all(0))
            for name, level in zip(_LEVELS, levels, strict=True):
                getattr(self, name).copy_(torch.where(self.filled, level, torch.zeros_like(level)))


def _fill_before_loading(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    fill_where_finite(state, prefix, _LEVELS)
