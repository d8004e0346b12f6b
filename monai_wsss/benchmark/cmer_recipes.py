# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Recipes of our own table of CMER: what each loss and preset gives on small encoders, beside our default.

All but the full-resolution rows use one stride-4 encoder of width 8 per modality, so that rows differ by their losses
alone.  The rows of the presets use the presets' pooling and normalization too, with one logit per class, maps cut by
min-max and the table's optimizer: none of them is the paper's run, which is in ``cmer_paper_recipes.py``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.engines import WeightRamp
from monai_wsss.methods import CMER, FullSupervision, SegmentationNetwork, WSSSMethod
from monai_wsss.networks import ModalityNetworks
from monai_wsss.transforms import PairedSpatialTransform

__all__ = ["BOUND_RECIPES", "CMER_RECIPES", "FULL_RESOLUTION_RECIPES"]

_WIDTH = 8  # of the first block, of encoders and U-Nets alike


def _networks(
    channels: int, num_classes: int, *, preset: str = "default", backbone: str = "encoder"
) -> ModalityNetworks:
    return CMER.network_from_preset(
        preset,
        modalities=[str(channel) for channel in range(channels)],
        num_classes=num_classes,
        width=_WIDTH,
        backbone=backbone,
        background_map=False,
    )


def _terms(channels: int, num_classes: int, *, transform: str | None = None, **switches: bool) -> WSSSMethod:
    """Build the classification and the terms that are switched on, all peers being teachers."""
    terms: dict[str, Any] = {"equivariance": False, "cross_modal": False, "distillation": False, **switches}
    if transform is not None:
        terms["transform"] = PairedSpatialTransform((transform,))
    return CMER.from_preset(
        network=_networks(channels, num_classes),
        teachers="all",
        distillation_ramp=WeightRamp("none"),
        **terms,
    )


def _preset(channels: int, num_classes: int, *, preset: str, backbone: str = "encoder") -> WSSSMethod:
    network = _networks(channels, num_classes, preset=preset, backbone=backbone)
    # Half of the run, as 15 of the paper's 30 epochs are; the tables train for fewer than 15.
    words: dict[str, Any] = {"ramp": 0.5} if preset == "paper" else {}
    return CMER.from_preset(preset, network=network, **words)


def _plain(channels: int, num_classes: int, *, backbone: str = "encoder") -> WSSSMethod:
    return CMER(_networks(channels, num_classes, preset="paper", backbone=backbone), second_view=False)


class _LateFusion(nn.Module):
    """The mean of the modality networks' logits over background and classes: the same networks as a segmenter."""

    def __init__(self, networks: ModalityNetworks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.networks(image).unflatten(1, (self.networks.groups, -1)).mean(1)


def _segmenter(channels: int, num_classes: int) -> WSSSMethod:
    return FullSupervision(SegmentationNetwork(_LateFusion(_networks(channels, num_classes + 1))))


_er: dict[str, Any] = {"equivariance": True}
_kd: dict[str, Any] = {"distillation": True}
_cmer: dict[str, Any] = {"cross_modal": True}

_rules = ("negative_reference",)
_as_printed: dict[str, Any] = {"by_subject": False, "views": "none", "rules": ("minmax",)}

CMER_RECIPES = {
    "plain CAM": Recipe(partial(_terms, second_view=False), rules=_rules),
    "plain CAM, two views": Recipe(_terms, rules=_rules),
    "SEAM's equivariance, scale": Recipe(partial(_terms, transform="scale", **_er), rules=_rules),
    "SEAM's equivariance, all transforms": Recipe(partial(_terms, **_er), rules=_rules),
    "KD": Recipe(partial(_terms, **_kd), rules=_rules),
    "KD + ER": Recipe(partial(_terms, **_kd, **_er), rules=_rules),
    "ER + CMER": Recipe(partial(_terms, **_er, **_cmer), rules=_rules),
    "all terms": Recipe(partial(_terms, **_er, **_cmer, **_kd), rules=_rules),
    "CMER (default: better peers teach)": Recipe(partial(_preset, preset="default"), rules=_rules),
    "plain CAM, average pooling": Recipe(_plain, **_as_printed),
    "CMER, the paper's losses, run small": Recipe(partial(_preset, preset="paper"), **_as_printed),
    "CMER, the released losses, run small": Recipe(partial(_preset, preset="released"), **_as_printed),
}
"""The losses of Tables I to III, and the presets, by name."""

FULL_RESOLUTION_RECIPES = {
    "U-Net, plain CAM": Recipe(partial(_plain, backbone="unet"), **_as_printed),
    "U-Net, CMER, the paper's losses, run small": Recipe(
        partial(_preset, preset="paper", backbone="unet"), **_as_printed
    ),
    "U-Net, CMER, the released losses, run small": Recipe(
        partial(_preset, preset="released", backbone="unet"), **_as_printed
    ),
}
"""The layout of the paper's network at width 8, for one seed."""

BOUND_RECIPES = {f"{FULL_SUPERVISION} (masks), same networks": Recipe(_segmenter, rules=(None,))}
"""The same encoders trained with masks, their logits averaged."""
