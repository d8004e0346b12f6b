# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the tables of BMP train: the rows of the paper's Table VI, AFA, the presets, and full supervision.

All rows use a convolutional pyramid of width 16 with the All-MLP decoder.  Those of Table VI differ by their losses,
labels and object-aware decoding alone, and are made for small images and training from scratch: class maps are pooled,
not features; seeds rise from the level of healthy images to the image's peak; labels are made at one scale and spread
in the whole image by four pixels at a time at most.  AFA and the presets pool features and make their labels as
published.  Warm-ups are shares of the run throughout, and long: a classifier that starts from nothing has nothing to
teach before.

How these settings came about: the refinement's reach and shrinking, the scales, what seeds become, what is pooled and
the warm-ups were compared in some dozen variants by Dice on slices of lgg_mri_64, training and validation, with one
seed.  They are the same in all rows of the ladder, but on those patients mildly optimistic.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.engines import WeightRamp
from monai_wsss.methods import BMP, FullSupervision, WSSSMethod
from monai_wsss.networks import ConvPyramid, TwoBranchNetwork
from monai_wsss.refinement import PixelAdaptiveRefinement

__all__ = ["BMP_BOUND", "BMP_RECIPES", "TABLE_SIX"]

_BOUND = f"{FULL_SUPERVISION} (masks), same network"
_WARM_UPS: dict[str, Any] = {
    "c2s_ramp": WeightRamp("step", end=0.4),
    "s2c_ramp": WeightRamp("step", end=0.7),
    "propagation_ramp": WeightRamp("step", end=0.7),
}
_SMALL: dict[str, Any] = {**_WARM_UPS, "seed_scale": "reference", "scales": (1.0,), "downscale": 1.0}
_OFF: dict[str, Any] = {"c2s_weight": 0.0, "s2c_weight": 0.0, "affinity_weight": 0.0, "propagation": "par"}


def _network(channels: int, num_classes: int, **decoding: Any) -> TwoBranchNetwork:
    """The network of all rows."""
    encoder = ConvPyramid(2, channels, width=16, strides=(1, 2, 2, 1))
    return TwoBranchNetwork(encoder, num_classes, decoder_width=32, **decoding)


def _ablation(channels: int, num_classes: int, *, ofd: bool = False, **terms: Any) -> WSSSMethod:
    refine = PixelAdaptiveRefinement(dilations=(1, 2, 4), row_stochastic=True)
    network = _network(channels, num_classes, pooled="maps", ofd=ofd)
    return BMP(network, refine=refine, **{**_SMALL, **_OFF, **terms})


def _preset(channels: int, num_classes: int, *, preset: str, **decoding: Any) -> WSSSMethod:
    # The authors' code begins s2c together with c2s.
    ramps = {**_WARM_UPS, "s2c_ramp": _WARM_UPS["c2s_ramp" if preset == "released" else "s2c_ramp"]}
    return BMP.from_preset(preset, network=_network(channels, num_classes, **decoding), **ramps)


def _full_supervision(channels: int, num_classes: int) -> WSSSMethod:
    return FullSupervision(_network(channels, num_classes, ofd=False))


_one_view = partial(Recipe, views="none")
_C2S: dict[str, Any] = {"c2s_weight": 0.7}
_S2C: dict[str, Any] = {**_C2S, "s2c_weight": 0.1}
_BSP: dict[str, Any] = {**_S2C, "propagation": "bsp"}
TABLE_SIX = {
    "classification branch only": _one_view(partial(_ablation)),
    "+ c2s": _one_view(partial(_ablation, **_C2S)),
    "+ s2c": _one_view(partial(_ablation, **_S2C)),
    "+ BSP": _one_view(partial(_ablation, **_BSP)),
    "+ OFD": _one_view(partial(_ablation, ofd=True, **_BSP)),
    "+ affinity (all of BMP)": _one_view(partial(_ablation, ofd=True, affinity_weight=0.1, **_BSP)),
}
"""The paper's ladder, each row with the rows above it."""

BMP_RECIPES = {
    **TABLE_SIX,
    "AFA": _one_view(partial(_preset, preset="afa", ofd=False, detach_seeds=True)),
    "BMP (paper)": _one_view(partial(_preset, preset="paper", ofd_activation="none", ofd_detach=False)),
    "BMP (released)": _one_view(partial(_preset, preset="released")),
}
BMP_BOUND = {_BOUND: _one_view(_full_supervision)}
