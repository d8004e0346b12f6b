# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the tables of CMER train: the ablation rows of the paper, its transforms, its network.

All but the full-resolution rows use one stride-4 encoder of width 8 a modality, so that rows differ by their losses
alone; the rows of the presets use the presets' pooling, normalization and rule too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.engines import WeightRamp
from monai_wsss.losses import CrossModalEquivarianceLoss, EquivarianceLoss, MutualDistillationLoss
from monai_wsss.methods import CMER, FullSupervision, SegmentationNetwork, WSSSMethod
from monai_wsss.networks import ModalityNetworks, networks_by_modality
from monai_wsss.transforms import SPATIAL_KINDS, PairedSpatialTransform

__all__ = ["BOUND_RECIPES", "CMER_RECIPES", "FULL_RESOLUTION_RECIPES", "TRANSFORM_RECIPES"]

_WIDTH = 8  # of the first block, of encoders and U-Nets alike


def _networks(channels: int, num_classes: int, **options: Any) -> ModalityNetworks:
    return networks_by_modality([str(c) for c in range(channels)], num_classes=num_classes, width=_WIDTH, **options)


def _terms(channels: int, num_classes: int, **settings: Any) -> WSSSMethod:
    """The classification and the terms that are named; parts are built anew for each training."""
    return CMER(_networks(channels, num_classes), **_built(settings))


def _built(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: part() if callable(part) else part for name, part in settings.items()}


def _preset(channels: int, num_classes: int, *, preset: str, backbone: str = "encoder", **changes: Any) -> WSSSMethod:
    options: dict[str, Any] = {} if preset == "default" else {"pooling": "average", "standardize": True}
    network = _networks(channels, num_classes, backbone=backbone, **options)
    parts = _built(changes)
    if preset == "paper":
        # Half of the run, as 15 of the paper's 30 epochs are; the tables train for fewer than 15.
        parts["ramp"] = WeightRamp("step", end=0.5)
    return CMER.from_preset(preset, network=network, **parts)


def _plain_unet(channels: int, num_classes: int) -> WSSSMethod:
    network = _networks(channels, num_classes, backbone="unet", pooling="average", standardize=True)
    return CMER(network, second_view=False)


class _LateFusion(nn.Module):
    """The mean of the modality networks' logits over background and classes: the same networks as a segmenter."""

    def __init__(self, networks: ModalityNetworks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.networks(image).unflatten(1, (self.networks.groups, -1)).mean(1)


def _segmenter(channels: int, num_classes: int) -> WSSSMethod:
    return FullSupervision(SegmentationNetwork(_LateFusion(_networks(channels, num_classes + 1))))


_kinds = {kind: partial(PairedSpatialTransform, (kind,)) for kind in SPATIAL_KINDS}
_er: dict[str, Any] = {"equivariance": EquivarianceLoss}
_kd: dict[str, Any] = {"distillation": MutualDistillationLoss}
_cmer: dict[str, Any] = {"cross_modal": CrossModalEquivarianceLoss}

_rules = ("negative_reference",)
_as_printed: dict[str, Any] = {"by_subject": False, "views": "none", "rules": ("minmax",)}

CMER_RECIPES = {
    "plain CAM": Recipe(partial(_terms, second_view=False), rules=_rules),
    "plain CAM, two views": Recipe(_terms, rules=_rules),
    "SEAM, scale": Recipe(partial(_terms, transform=_kinds["scale"], **_er), rules=_rules),
    "SEAM, all transforms": Recipe(partial(_terms, **_er), rules=_rules),
    "KD": Recipe(partial(_terms, **_kd), rules=_rules),
    "KD + ER": Recipe(partial(_terms, **_kd, **_er), rules=_rules),
    "ER + CMER": Recipe(partial(_terms, **_er, **_cmer), rules=_rules),
    "all terms": Recipe(partial(_terms, **_er, **_cmer, **_kd), rules=_rules),
    "CMER (default: better peers teach)": Recipe(partial(_preset, preset="default"), rules=_rules),
    "plain CAM, average pooling": Recipe(
        lambda channels, classes: CMER(
            _networks(channels, classes, pooling="average", standardize=True), second_view=False
        ),
        **_as_printed,
    ),
    "CMER (paper)": Recipe(partial(_preset, preset="paper"), **_as_printed),
    "CMER (released)": Recipe(partial(_preset, preset="released"), **_as_printed),
}
"""The rows of Tables I to III by name."""

FULL_RESOLUTION_RECIPES = {
    "U-Net, plain CAM": Recipe(_plain_unet, **_as_printed),
    "U-Net, CMER (paper)": Recipe(partial(_preset, preset="paper", backbone="unet"), **_as_printed),
    "U-Net, CMER (released)": Recipe(partial(_preset, preset="released", backbone="unet"), **_as_printed),
}
"""The paper's network, for one seed."""

TRANSFORM_RECIPES = {
    f"CMER, {kind} only": Recipe(partial(_preset, preset="default", transform=kinds), rules=_rules)
    for kind, kinds in _kinds.items()
}
"""Fig. 3: one kind of transform each; all of them is the default row of the table."""

BOUND_RECIPES = {f"{FULL_SUPERVISION} (masks), same networks": Recipe(_segmenter, rules=(None,))}
"""The same encoders trained with masks, their logits averaged."""
