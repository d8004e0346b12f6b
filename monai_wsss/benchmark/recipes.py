# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the benchmark trains: each recipe builds a method and says how its images are normalized.

All recipes share optimizer, schedule, batches and epochs, so that a row differs from another by what its name says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from monai.networks.nets import BasicUNet

from monai_wsss.methods import ClassActivationMapping, FullSupervision, SegmentationNetwork, WSSSMethod
from monai_wsss.networks import CAMEncoder

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        build: (in_channels, num_classes) to a method.
        by_subject: normalize slices by their subject's statistics; else each slice by itself.
        views: of the inference, see :func:`~monai_wsss.inferers.multi_view_maps`.
        rules: decision rules to report; the first is the recipe's own.
    """

    build: Callable[[int, int], WSSSMethod]
    by_subject: bool = True
    views: str = "dihedral"
    rules: tuple[str | None, ...] = ("negative_reference", "negative_quantile", "logit", "minmax", "otsu")


def _encoder(in_channels: int, num_classes: int, *, pooling: str, topk_share: float = 0.1) -> WSSSMethod:
    network = CAMEncoder(2, in_channels, num_classes, pooling=pooling, topk_share=topk_share)
    return ClassActivationMapping(network)


def _plain(in_channels: int, num_classes: int) -> WSSSMethod:
    return ClassActivationMapping.from_preset("paper", in_channels=in_channels, num_classes=num_classes)


def _full_supervision(in_channels: int, num_classes: int) -> WSSSMethod:
    unet = BasicUNet(2, in_channels, num_classes + 1, features=(16, 32, 64, 128, 128, 16), norm="batch")
    return FullSupervision(SegmentationNetwork(unet))


RECIPES = {
    "max": Recipe(partial(_encoder, pooling="max")),
    "topk 2 %": Recipe(partial(_encoder, pooling="topk", topk_share=0.02)),
    "lse": Recipe(partial(_encoder, pooling="lse")),
    "average": Recipe(
        partial(_encoder, pooling="average"),
        rules=("minmax", "negative_reference", "negative_quantile", "logit", "otsu"),
    ),
    "plain (paper): average": Recipe(_plain, by_subject=False, views="none", rules=("minmax",)),
    "full supervision (masks)": Recipe(_full_supervision, rules=(None,)),
}
"""The rows of the table by name; names say where masks were used."""
