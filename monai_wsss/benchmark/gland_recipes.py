# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the gland tables train: classifiers on patch tags, and segmenters on their pseudo-masks or on masks.

Each row of the ablation is a classifier and a segmenter of its own.  The rows of purified label filtration (PLF) are
segmenters alone, on the pseudo-masks of the full system.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monai.networks.nets import UNet

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, AdamWOneCycle, Recipe
from monai_wsss.methods import (
    FullSupervision,
    GlandClassification,
    PseudoMaskSupervision,
    SegmentationNetwork,
    WSSSMethod,
)

__all__ = ["CLASSIFIERS", "GLAND_BOUND", "SEGMENTERS", "gland_recipes", "make_segmenter", "two_stages"]

GLAND_BOUND = f"{FULL_SUPERVISION} (masks)"

_CCA = {"attention": "cca", "attention_stages": (4, 5, 6)}
_MPFP = {"pyramid": (2, 4, 8), "fusion": "sign"}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "baseline, average pooling": {"pooling": "average"},
    "+ CCA": {"pooling": "average", **_CCA},
    "+ MPFP (Eq. 9)": {**_MPFP, "logit": "weighted"},
    "CCA + MPFP (Eq. 9)": {**_CCA, **_MPFP, "logit": "weighted"},
    "default: top 25 %": {},
}
"""Settings over those of the preset ``default``; the pseudo-masks of each train a segmenter by cross-entropy."""

_TEACHER = "CCA + MPFP (Eq. 9)"
SEGMENTERS: dict[str, str] = {f"{_TEACHER}, PLF ({name})": name for name in ("paper", "official", "oeem")}
"""Variants of purified label filtration on the pseudo-masks of the full system."""

_OPTIMIZER = AdamWOneCycle(learning_rate=2e-3)


def make_segmenter(num_classes: int) -> SegmentationNetwork:
    """Build the small U-Net of every row."""
    return SegmentationNetwork(
        UNet(2, 3, num_classes, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=1, norm="batch")
    )


def two_stages(
    name: str,
    settings: Mapping[str, Any],
    *,
    width: int,
    share: float = 1.0,
    initial: Path | None = None,
    **options: Any,
) -> dict[str, Recipe]:
    """Give the classifier and the segmenter of a row by their keys.

    Args:
        name: name of the row.
        settings: settings of the classifier over those of the preset ``default``.
        width: width of the small ResNet38.
        share: share of the training patches to train on.
        initial: folder with ``classifier.pt`` and ``model.pt`` to begin from; None begins from scratch.
        options: other fields of both recipes.
    """
    begin = [None, None] if initial is None else [initial / "classifier.pt", initial / "model.pt"]
    shared: dict[str, Any] = {"optimizer": _OPTIMIZER, "share": share, **options}
    classifier = Recipe(partial(_classifier, width=width, settings=settings), begin=begin[0], **shared)
    return {
        f"{name} > classifier": classifier,
        f"{name} > segmenter": _taught(name, "none", begin=begin[1], **shared),
    }


def gland_recipes(width: int, **options: Any) -> dict[str, Recipe]:
    """Give all recipes of the ablation by their keys, in the order of the table.

    Args:
        width: width of the small ResNet38.
        options: other fields of all recipes.
    """
    recipes: dict[str, Recipe] = {}
    for name, settings in CLASSIFIERS.items():
        recipes |= two_stages(name, settings, width=width, **options)
    for name, plf in SEGMENTERS.items():
        recipes[f"{name} > segmenter"] = _taught(_TEACHER, plf, optimizer=_OPTIMIZER, **options)
    recipes[f"{GLAND_BOUND} > segmenter"] = Recipe(_full_supervision, optimizer=_OPTIMIZER, **options)
    return recipes


def _taught(teacher: str, plf: str, **options: Any) -> Recipe:
    """Give the segmenter that learns from the pseudo-masks of the row ``teacher``, with a variant of PLF."""
    return Recipe(partial(_student, plf=plf), teacher=f"{teacher} > classifier", **options)


def _classifier(in_channels: int, num_classes: int, *, width: int, settings: Mapping[str, Any]) -> WSSSMethod:
    return GlandClassification.from_preset(num_classes=num_classes, width=width, **settings)


def _student(in_channels: int, num_classes: int, *, plf: str) -> WSSSMethod:
    return PseudoMaskSupervision.build(make_segmenter(num_classes), background=False, plf=plf)


def _full_supervision(in_channels: int, num_classes: int) -> WSSSMethod:
    return FullSupervision(make_segmenter(num_classes), background=False)
