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

__all__ = [
    "CLASSIFIERS",
    "GLAND_BOUND",
    "OEEM",
    "OEEM_WITH_PARTS",
    "OURS",
    "PYRAMIDS",
    "ROWS",
    "SEGMENTERS",
    "STRUCTURES",
    "TEACHER",
    "gland_recipes",
    "make_segmenter",
    "two_stages",
]

GLAND_BOUND = f"{FULL_SUPERVISION} (masks)"

_LEVELS = (2, 4, 8, 16)
_CCA = {"attention": "cca", "attention_stages": (4, 5, 6)}
_MPFP = {"pyramid": _LEVELS, "fusion": "sign", "logit": "weighted"}
TEACHER = "CCA + MPFP (Eq. 9)"
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "baseline, average pooling": {"pooling": "average"},
    "+ CCA": {"pooling": "average", **_CCA},
    "+ MPFP (Eq. 9)": _MPFP,
    TEACHER: {**_CCA, **_MPFP},
    "default: top 25 %": {},
}
"""Rows of Table 2: settings over those of the preset ``default``; pseudo-masks train a segmenter by cross-entropy."""

SEGMENTERS: dict[str, str] = {f"{TEACHER}, PLF ({name})": name for name in ("paper", "official", "oeem")}
"""Variants of purified label filtration on the pseudo-masks of the full system."""

OURS = f"{TEACHER}, PLF (paper)"
"""The whole system, as the last row of Tables 1 to 4."""

OEEM = "OEEM's loss alone, on the pseudo-masks of the baseline"
OEEM_WITH_PARTS = f"{TEACHER}, PLF (oeem)"

STRUCTURES: dict[str, dict[str, Any]] = {
    "criss-cross attention x 1": {**_CCA, **_MPFP, "attention": "cc1"},
    "criss-cross attention x 2": {**_CCA, **_MPFP, "attention": "cc2"},
    **{f"CCA after stage {stage} only": {**_CCA, **_MPFP, "attention_stages": (stage,)} for stage in (4, 5, 6)},
}
"""Rows of Table 3 besides the whole system, with MPFP and PLF."""

PYRAMIDS: dict[str, dict[str, Any]] = {
    **{f"P_{level}": {**_CCA, **_MPFP, "pyramid": (level,)} for level in _LEVELS},
    "P_2 + P_4, S": {**_CCA, **_MPFP, "pyramid": (2, 4)},
    "P_2 + P_4 + P_8, S": {**_CCA, **_MPFP, "pyramid": (2, 4, 8)},
    "P_2 + P_4 + P_8 + P_16, Average": {**_CCA, **_MPFP, "fusion": "average"},
}
"""Rows of Table 4 besides the whole system, with CCA and PLF."""

ROWS: dict[str, tuple[str, ...]] = {
    "gland": (*CLASSIFIERS, *SEGMENTERS, GLAND_BOUND),
    "gland_comparison": (GLAND_BOUND, "baseline, average pooling", OEEM, OEEM_WITH_PARTS, OURS),
    "gland_attention": (*list(STRUCTURES)[:2], OURS, *list(STRUCTURES)[2:]),
    "gland_pyramid": (*PYRAMIDS, OURS),
}
"""Name of a table -> its rows in their order."""

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
    plf: str = "none",
    **options: Any,
) -> dict[str, Recipe]:
    """Give the classifier and the segmenter of a row by their keys.

    Args:
        name: name of the row.
        settings: settings of the classifier over those of the preset ``default``.
        width: width of the small ResNet38.
        share: share of the training patches to train on.
        initial: folder with ``classifier.pt`` and ``model.pt`` to begin from; None begins from scratch.
        plf: weights of purified label filtration, see :meth:`~monai_wsss.methods.PseudoMaskSupervision.build`.
        options: other fields of both recipes.
    """
    begin = [None, None] if initial is None else [initial / "classifier.pt", initial / "model.pt"]
    shared: dict[str, Any] = {"optimizer": _OPTIMIZER, "share": share, **options}
    build = partial(_classifier, width=width, settings=settings)
    classifier = Recipe(build, begin=begin[0], **shared)
    return {
        f"{name} > classifier": classifier,
        f"{name} > segmenter": _taught(name, plf, begin=begin[1], **shared),
    }


def gland_recipes(width: int, **options: Any) -> dict[str, Recipe]:
    """Give the recipes of all tables by their keys.

    Args:
        width: width of the small ResNet38.
        options: other fields of all recipes.
    """
    recipes: dict[str, Recipe] = {}
    for name, settings in CLASSIFIERS.items():
        recipes |= two_stages(name, settings, width=width, **options)
    for name, settings in {**STRUCTURES, **PYRAMIDS}.items():
        recipes |= two_stages(name, settings, width=width, plf="paper", **options)
    for name, plf in SEGMENTERS.items():
        recipes[f"{name} > segmenter"] = _taught(TEACHER, plf, optimizer=_OPTIMIZER, **options)
    recipes[f"{OEEM} > segmenter"] = _taught("baseline, average pooling", "oeem", optimizer=_OPTIMIZER, **options)
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
