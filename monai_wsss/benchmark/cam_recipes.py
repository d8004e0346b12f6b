# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the table of plain CAM trains: four poolings, the plain method of the papers, and full supervision.

All recipes share optimizer, schedule and batches, so that a row differs from another by what its name says.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from monai.networks.nets import BasicUNet

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.methods import ClassActivationMapping, FullSupervision, SegmentationNetwork, WSSSMethod

__all__ = ["CAM_RECIPES"]


def _encoder(in_channels: int, num_classes: int, **words: Any) -> WSSSMethod:
    """Build one encoder of the default preset with another pooling."""
    network = ClassActivationMapping.network_from_preset(
        in_channels=in_channels, num_classes=num_classes, members=1, **words
    )
    return ClassActivationMapping(network)


def _plain(in_channels: int, num_classes: int) -> WSSSMethod:
    return ClassActivationMapping.from_preset("paper", in_channels=in_channels, num_classes=num_classes)


def _full_supervision(in_channels: int, num_classes: int) -> WSSSMethod:
    unet = BasicUNet(2, in_channels, num_classes + 1, features=(16, 32, 64, 128, 128, 16), norm="batch")
    return FullSupervision(SegmentationNetwork(unet))


CAM_RECIPES = {
    "max": Recipe(partial(_encoder, pooling="max")),
    "topk 2 %": Recipe(partial(_encoder, pooling="topk", topk_share=0.02)),
    "lse": Recipe(partial(_encoder, pooling="lse")),
    "average": Recipe(
        partial(_encoder, pooling="average"),
        rules=("minmax", "negative_reference", "negative_quantile", "logit", "otsu", "mixture"),
    ),
    "plain (paper): average": Recipe(_plain, by_subject=False, views="none", rules=("minmax",)),
    f"{FULL_SUPERVISION} (masks)": Recipe(_full_supervision, rules=(None,)),
}
"""The rows of the table by name; names say where masks were used."""
