# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Recipes of the table of BMP: the rows of the paper's Table VI, AFA, the presets, and full supervision.

All rows use a convolutional pyramid of width 16 with the All-MLP decoder.  The rows of Table VI are the preset
``"scratch"`` without its gate; they differ by losses, labels and object-aware decoding alone.  AFA and other presets
pool features and make their labels as published, with the warm-ups of ``"scratch"``: a classifier that starts from
nothing has nothing to teach before.

The settings of ``"scratch"`` were chosen by Dice on slices of lgg_mri_64, training and validation, with one seed and in
some dozen variants: the refinement's reach and shrinking, the scales, the scale of the seeds, what is pooled, and the
warm-ups.  They are the same in all rows of the ladder, but mildly optimistic on those patients.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.methods import AFA, BMP, FullSupervision, WSSSMethod
from monai_wsss.methods.bmp_settings import BmpSettings
from monai_wsss.networks import ConvPyramid, TwoBranchNetwork

__all__ = ["BMP_BOUND", "BMP_RECIPES", "TABLE_SIX"]

_BOUND = f"{FULL_SUPERVISION} (masks), same network"
_SCRATCH = BMP.presets["scratch"][0]
_WARM_UPS = {name: _SCRATCH[name] for name in ("c2s_ramp", "s2c_ramp", "propagation_ramp")}
_OFF: dict[str, Any] = {"c2s_weight": 0.0, "s2c_weight": 0.0, "affinity_weight": 0.0, "propagation": "par"}


def _network(kind: type[BMP], preset: str, channels: int, num_classes: int, **decoding: Any) -> TwoBranchNetwork:
    """Build the network of a preset around the encoder and the decoder's width of all rows."""
    width = BMP.presets["scratch"][1]["decoder_width"]
    encoder = ConvPyramid(2, channels)
    return kind.network_from_preset(
        preset, encoder=encoder, num_classes=num_classes, **{"decoder_width": width, **decoding}
    )


def _ablation(channels: int, num_classes: int, *, ofd: bool = False, **terms: Any) -> WSSSMethod:
    network = _network(BMP, "scratch", channels, num_classes, ofd=ofd)
    return BMP.from_preset("scratch", network=network, **{"ready_below": None, **_OFF, **terms})


def _preset(channels: int, num_classes: int, *, kind: type[BMP] = BMP, preset: str) -> WSSSMethod:
    # The authors' code begins s2c together with c2s.
    ramps = {**_WARM_UPS, "s2c_ramp": _WARM_UPS["c2s_ramp" if preset == "released" else "s2c_ramp"]}
    return kind.from_preset(preset, network=_network(kind, preset, channels, num_classes), **ramps)


def _full_supervision(channels: int, num_classes: int) -> WSSSMethod:
    return FullSupervision(_network(BMP, "default", channels, num_classes, ofd=False))


_one_view = partial(Recipe, views="none")
_C2S: dict[str, Any] = {"c2s_weight": BmpSettings.c2s_weight}
_S2C: dict[str, Any] = {**_C2S, "s2c_weight": BmpSettings.s2c_weight}
_BSP: dict[str, Any] = {**_S2C, "propagation": "bsp"}
_ALL: dict[str, Any] = {**_BSP, "affinity_weight": BmpSettings.affinity_weight}
TABLE_SIX = {
    "classification branch only": _one_view(partial(_ablation)),
    "+ c2s": _one_view(partial(_ablation, **_C2S)),
    "+ s2c": _one_view(partial(_ablation, **_S2C)),
    "+ BSP": _one_view(partial(_ablation, **_BSP)),
    "+ OFD": _one_view(partial(_ablation, ofd=True, **_BSP)),
    "+ affinity (all of BMP)": _one_view(partial(_ablation, ofd=True, **_ALL)),
}
"""The paper's ladder, each row with the rows above it."""

BMP_RECIPES = {
    **TABLE_SIX,
    "AFA": _one_view(partial(_preset, kind=AFA, preset="paper")),
    "BMP, preset paper, run small": _one_view(partial(_preset, preset="paper")),
    "BMP, preset released, run small": _one_view(partial(_preset, preset="released")),
}
BMP_BOUND = {_BOUND: _one_view(_full_supervision)}
