# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the table of CoSA trains: the rows of the paper's Tables 3 and 4a, presets, CoSA-MS, other methods, the bound.

All rows of CoSA have one network: EfficientNet-Lite0 up to stride 16 with ImageNet's weights, an early and a final
fused map at stride 4, two classifiers that pool their maps, and LargeFOV of width 64.  Others have the same encoder and
as many steps.  Steps are fixed here, before any training: the warm-up alone is as long as plain CAM trains in the table
of encoders.

What is fixed for 32,000 iterations in the paper is scaled to these short runs: the warm-up is a share of the run, the
assignment network averages over about the last twentieth of the run, as with 0.9994 over 32,000, and the threshold
follows in the same time.  The presets ``paper`` and ``released`` have poolings, scales and thresholds of their own, but
the encoder, the width, the warm-up and the average of these runs: they are run small.

CoSA-MS has one row with the encoder of the others, and one for each of the paper's segmenters (`SEGMENTERS`), a quarter
as wide and from scratch, since no package has their weights: these are trained on request alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from monai_wsss.benchmark.cosa_guide import OracleCoSA
from monai_wsss.benchmark.recipes import FULL_SUPERVISION, AdamWOneCycle, Recipe
from monai_wsss.methods import (
    AFA,
    BMP,
    CMER,
    ClassActivationMapping,
    CoSA,
    FullSupervision,
    PseudoMaskSupervision,
    WSSSMethod,
)
from monai_wsss.methods.cosa_settings import COSA_NETWORKS, COSA_WORDS, CosaSettings
from monai_wsss.networks import (
    AttentionPyramid,
    EfficientNetLite,
    FusedSegmenter,
    ModalityNetworks,
    TwoBranchNetwork,
    TwoFusedMaps,
    deeplab_segmenter,
    fused_cam_network,
    load_encoder_weights,
    resnet38_segmenter,
    swin_segmenter,
)

__all__ = [
    "ADDITIVE",
    "ALL",
    "COSA_BUDGETS",
    "ONE_SEED",
    "ORACLE",
    "SEGMENTERS",
    "SUBTRACTIVE",
    "WITHOUT_DT",
    "AllChannels",
    "CosaBudget",
    "cosa_recipes",
]

Words = dict[str, Any]

_NETWORK: Words = {
    "encoder": "lite0",
    "levels": [2, 3, 4],
    "stride": 4,
    "width": 48,
    "pretrained": "imagenet",
}
_BRANCHES: Words = {"decoder": "large_fov", "decoder_width": 64, "pooling": "topk", "pooled": "maps"}
_OPTIMIZER = AdamWOneCycle(learning_rate=2e-3, encoder_learning_rate=3e-4)
_CPL: Words = {"maps": "cpl"}


@dataclass(frozen=True)
class CosaBudget:
    """How long the rows are trained on a kind of data, and how their labels are made.

    Attributes:
        epochs: epochs of CoSA, of the other weak methods, and of the second stage of slices.
        full: epochs of full supervision, and of the second stage of tiles: as many steps as those of CoSA.
        warm_up: share of the run with classification alone.
        momentum: of the assignment network.
        dt_momentum: of the dynamic threshold.
        scales: of the passes that make labels, each with its mirror image.
        batch_size: tiles or slices per step.
        image_batch_size: items per step of a segmenter on masks or pseudo-masks.
        topk_share: share of a map that its pooling averages: 25 % for textures, 10 % for small findings.
        grid: side of slices as the network sees them, in pixels.
        input_range: see :class:`~monai_wsss.networks.EfficientNetLite`.
        rule: rule that decides the masks of plain CAM.
    """

    epochs: int
    full: int
    warm_up: float
    momentum: float
    dt_momentum: float
    scales: tuple[float, ...]
    batch_size: int = 32
    image_batch_size: int = 8
    topk_share: float = 0.25
    grid: int = 64
    input_range: str = "pixels"
    rule: str = "otsu"


COSA_BUDGETS: dict[str, CosaBudget] = {
    "tiles": CosaBudget(epochs=25, full=27, warm_up=0.4, momentum=0.95, dt_momentum=0.95, scales=(0.5, 1.0)),
    "slices": CosaBudget(
        epochs=10,
        full=10,
        warm_up=0.4,
        momentum=0.97,
        dt_momentum=0.97,
        scales=(1.0,),
        image_batch_size=32,
        topk_share=0.1,
        input_range="z_scores",
        rule="negative_reference",
    ),
}
"""Kind of data -> its budget: 375 steps on the tiles of PH2, 690 on the slices of LGG; 150 and 276 are the warm-up."""

_NOTHING: Words = {"gc": False, "sa": False, "raw": False, "csc": False, "dt": False}
_GC: Words = {**_NOTHING, "gc": True}
_SA: Words = {**_GC, "sa": True}

ALL = "+ DT (all of CoSA)"
WITHOUT_DT = "+ RAW and CSC (all without DT)"
ADDITIVE: dict[str, Words] = {
    "base": _NOTHING,
    "+ GC": _GC,
    "+ SA": _SA,
    "+ RAW": {**_SA, "raw": True},
    "+ CSC without RAW": {**_SA, "csc": True},
    WITHOUT_DT: {**_SA, "raw": True, "csc": True},
    ALL: {},
}
"""Table 3a: each row with the parts of those above it, but for the fifth, which lacks RAW."""

SUBTRACTIVE: dict[str, Words] = {f"all without {name.upper()}": {name: False} for name in ("csc", "raw", "sa", "gc")}
"""Table 3b, without the two of its six rows that Table 3a has: all of CoSA, and all without DT."""

ORACLE = "guide: oracle (reads masks, class maps fully supervised)"
GUIDES: dict[str, Words] = {
    "guide: SPL, F detached": {"detach_seeds": "features"},
    "guide: SPL, W detached": {"detach_seeds": "weights"},
    "guide: noise": {"guide": "noise"},
    ORACLE: {"guide": "oracle"},
}
"""Table 4a and Fig. 1; no guide is the row of all without GC, and the usual one that of all of CoSA."""

_PRESETS = {f"preset {preset}, run small": {"preset": preset} for preset in ("paper", "released")}
_SECOND = "CoSA-MS, same encoder"
SEGMENTERS: dict[str, tuple[Callable[..., nn.Module], Words]] = {
    "CoSA-MS, DeepLab on ResNet101, run small": (deeplab_segmenter, {"width": 16}),
    "CoSA-MS, ResNet38, run small": (resnet38_segmenter, {"width": 16, "frozen": "none"}),
    "CoSA-MS, Swin (SwinUNETR), run small": (swin_segmenter, {"feature_size": 12}),
}
"""Rows on request: the paper's standalone segmenters, each with its builder and a quarter of its width, untrained."""
_PLAIN = "plain CAM"
_BOUND = f"{FULL_SUPERVISION} (masks), same network"
ONE_SEED = (*SUBTRACTIVE, *GUIDES, *_PRESETS, *SEGMENTERS, "SEAM's equivariance", "AFA", "BMP")
"""Rows of the first seed alone."""


def cosa_recipes(budget: CosaBudget) -> dict[str, Recipe]:
    """Give the recipes of the table by their names, in its order.

    Args:
        budget: of the kind of data.
    """
    rows = {**ADDITIVE, **SUBTRACTIVE, **GUIDES, **_PRESETS}
    return {
        **{name: _cosa_recipe(budget, words) for name, words in rows.items()},
        _SECOND: _on_masks(budget, _build_student, teacher=ALL, pseudo=_CPL),
        **{name: _standalone(budget, *segmenter) for name, segmenter in SEGMENTERS.items()},
        _PLAIN: _weak(budget, "cam", _build_cam),
        "SEAM's equivariance": _weak(budget, "seam", _build_seam),
        "AFA": _weak(budget, "afa", partial(_build_mutual, kind=AFA)),
        "BMP": _weak(budget, "bmp", partial(_build_mutual, kind=BMP)),
        _BOUND: _on_masks(budget, _build_full),
    }


def _cosa_recipe(budget: CosaBudget, words: Words) -> Recipe:
    """Give the recipe of one row of CoSA; its words are recorded, with what the budget adds."""
    told: Words = {"preset": "default", "warm_up": budget.warm_up, "momentum": budget.momentum, **words}
    branches = dict(_BRANCHES)
    if told["preset"] == "default":
        told |= {"dt_momentum": budget.dt_momentum, "scales": list(budget.scales)}
    else:
        branches |= {name: COSA_NETWORKS[told["preset"]][name].value for name in ("pooling", "pooled")}
        if budget.input_range == "z_scores":
            # The energy of the preset `released` is one of gray levels, among which all z-scores are alike.
            told |= {name: COSA_WORDS["default"][name].value for name in ("intensity_std", "intensity_range")}
    return Recipe(
        partial(_build_cosa, budget=budget, branches=branches, **told),
        _OPTIMIZER,
        batch_size=budget.batch_size,
        views="none",
        epochs=budget.epochs,
        words={"method": "cosa", "strong": True, **_network_words(budget), **branches, **told, "values": _values(told)},
    )


def _values(told: Words) -> Words:
    """Give the values of all words of the method: kept rows are not found again once a preset has changed."""
    words = {name: value for name, value in told.items() if name != "preset" and value != "oracle"}
    settings = CosaSettings.of_preset(told["preset"], **words)
    return {name: value for name, value in settings.record(told["preset"], 1).items() if name != "sources"}


def _weak(budget: CosaBudget, method: str, build: Any) -> Recipe:
    """Give the recipe of another method on the same images."""
    return Recipe(
        partial(build, budget=budget),
        _OPTIMIZER,
        batch_size=budget.batch_size,
        views="none",
        epochs=budget.epochs,
        words={"method": method, **_network_words(budget)},
    )


def _on_masks(budget: CosaBudget, build: Any, **options: Any) -> Recipe:
    """Give the recipe of a segmenter on masks, or on the pseudo-masks of a teacher."""
    kind = "second stage" if "teacher" in options else "full supervision"
    return Recipe(
        partial(build, budget=budget),
        _OPTIMIZER,
        batch_size=budget.image_batch_size,
        views="none",
        epochs=budget.full,
        words={"method": kind, **_network_words(budget)},
        **options,
    )


def _standalone(budget: CosaBudget, segmenter: Callable[..., nn.Module], size: Words) -> Recipe:
    """Give the recipe of another segmenter on the same pseudo-masks: one rate, since nothing is pretrained."""
    return replace(
        _on_masks(budget, _build_student, teacher=ALL, pseudo=_CPL),
        build=partial(_build_standalone, segmenter=segmenter, size=size),
        optimizer=AdamWOneCycle(_OPTIMIZER.learning_rate),
        words={"method": "second stage", "segmenter": segmenter.__name__, "pretrained": "none", **size},
    )


def _network_words(budget: CosaBudget) -> Words:
    return {**_NETWORK, "input_range": budget.input_range, "topk_share": budget.topk_share}


def _encoder(budget: CosaBudget, channels: int, levels: tuple[int, ...] = (2, 3, 4)) -> EfficientNetLite:
    return EfficientNetLite(_NETWORK["encoder"], channels, levels=levels, input_range=budget.input_range)


def _filled(network: nn.Module) -> Any:
    load_encoder_weights(network, _NETWORK["pretrained"])
    return network


def _two_branches(
    budget: CosaBudget, channels: int, num_classes: int, *, detach_seeds: str = "none", **branches: Any
) -> TwoBranchNetwork:
    encoder = TwoFusedMaps(_encoder(budget, channels), width=_NETWORK["width"], stride=_NETWORK["stride"])
    return _filled(
        TwoBranchNetwork.with_auxiliary(
            encoder, num_classes, topk_share=budget.topk_share, detach_seeds=detach_seeds, **{**_BRANCHES, **branches}
        )
    )


def _build_cosa(
    channels: int,
    num_classes: int,
    *,
    budget: CosaBudget,
    branches: Words,
    preset: str,
    guide: str = "spl",
    detach_seeds: str = "none",
    **words: Any,
) -> WSSSMethod:
    network = _two_branches(budget, channels, num_classes, detach_seeds=detach_seeds, **branches)
    if guide == "oracle":
        return OracleCoSA.from_preset(preset, network=network, **words)
    return CoSA.from_preset(preset, network=network, guide=guide, **words)


def _class_map_network(budget: CosaBudget, channels: int, num_classes: int) -> Any:
    return _filled(
        fused_cam_network(
            _encoder(budget, channels),
            num_classes,
            width=_NETWORK["width"],
            stride=_NETWORK["stride"],
            topk_share=budget.topk_share,
        )
    )


def _build_cam(channels: int, num_classes: int, *, budget: CosaBudget) -> WSSSMethod:
    return ClassActivationMapping(_class_map_network(budget, channels, num_classes))


class AllChannels(ModalityNetworks):
    """One network of all channels in the place of one per modality: CMER's equivariance is then SEAM's."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.members[0](image)


def _build_seam(channels: int, num_classes: int, *, budget: CosaBudget) -> WSSSMethod:
    network = AllChannels([_class_map_network(budget, channels, num_classes)])
    return CMER.from_preset(network=network, cross_modal=False, distillation=False)


def _build_mutual(channels: int, num_classes: int, *, budget: CosaBudget, kind: type[BMP]) -> WSSSMethod:
    """Build AFA or BMP with its default preset, its labels as fine as these small images need."""
    encoder = AttentionPyramid(_encoder(budget, channels, (1, 2, 3, 4)), heads=8)
    network = kind.network_from_preset(
        encoder=encoder, num_classes=num_classes, decoder_width=_BRANCHES["decoder_width"]
    )
    small: Words = {"dilations": (1, 2, 4), "downscale": 1.0, "scales": budget.scales}
    return kind.from_preset(network=_filled(network), c2s_ramp=budget.warm_up, propagation_ramp=0.5, **small)


def _build_student(channels: int, num_classes: int, *, budget: CosaBudget) -> WSSSMethod:
    return PseudoMaskSupervision.build(_filled(FusedSegmenter(_encoder(budget, channels), num_classes + 1)))


def _build_standalone(
    channels: int, num_classes: int, *, segmenter: Callable[..., nn.Module], size: Words
) -> WSSSMethod:
    return PseudoMaskSupervision.build(segmenter(num_classes + 1, channels, **size))


def _build_full(channels: int, num_classes: int, *, budget: CosaBudget) -> WSSSMethod:
    return FullSupervision(_two_branches(budget, channels, num_classes))
