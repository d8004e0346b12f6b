# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CMER by words: all numbers of its presets, and the parts that the words stand for.

| preset         | network               | L_ER          | L_CMER                   | KD   | lambda_E(t)     |
|----------------|-----------------------|---------------|--------------------------|------|-----------------|
| ``"paper"``    | U-Net, average, z, bg | sum, all      | sum, all                 | T=1  | exponential, 15 |
| ``"released"`` | U-Net, average, z, bg | mean, labeled | mean, labeled, predicted | T=10 | 1               |
| ``"default"``  | stride-4 encoder, max | mean, labeled | sum, labeled, predicted  | T=1  | step at half    |

In the table, z means that the network z-scores each slice, and bg that it has a map of the background, for a softmax
over background and tumor; "labeled" and "predicted" say which maps count: those of classes that the image holds, and of
classes that the teacher predicts.  ``"paper"`` normalizes maps by their maximum, at inference too, scales them to unit
norm before they are transformed, and draws 0 to 3 quarter turns.  The others normalize by min-max, scale to unit norm
after the transform, and draw 1 to 3 quarter turns.  As printed, L_ER (Eq. 2) is about 1000, far above the
classification loss; as released, L_CMER (Eq. 4) is below 2 / number of pixels and has no effect.  ``"default"`` takes
the mean of the one and the sum of the other, so that both are about 1 or below.  It lets a network teach another only
in the second half of the run, and only if its classification loss is clearly lower; this holds for distillation, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from monai_wsss._checks import as_flag
from monai_wsss.engines import Term, WeightRamp
from monai_wsss.losses import CrossModalEquivarianceLoss, EquivarianceLoss, MutualDistillationLoss
from monai_wsss.transforms import PairedSpatialTransform

__all__ = ["CMER_PRESETS", "CMER_RULES", "CmerSettings"]

_UNET: dict[str, Any] = {"backbone": "unet", "pooling": "average", "standardize": True, "background_map": True}


@dataclass(frozen=True)
class CmerSettings:
    """The words that choose CMER's parts; the defaults are those of the preset ``"default"``.

    Args:
        transform: draws pi.
        equivariance: L_ER: a loss, or False (None) to switch it off; True (``"true"``) is the default loss.
        cross_modal: L_CMER, as ``equivariance``.
        distillation: L_KD, as ``equivariance``.
        equivariance_weight: factor of L_ER.
        cross_modal_weight: factor of L_CMER.
        distillation_weight: lambda_KD.
        ramp: lambda_E(t) of L_ER and L_CMER: a :class:`~monai_wsss.engines.WeightRamp`, or the share of the run at
            which it steps from 0 to 1.
        distillation_ramp: the same for lambda_KD.
        second_view: see :class:`~monai_wsss.methods.CMER`.
        norm: see there.
        ignore_border: see there.
        weak_peer_ratio: see there.
        teachers: see there.

    Raises:
        ValueError: a switch that is neither a loss nor true or false.

    Example:
        >>> parts = CmerSettings(cross_modal=False, ramp=0.25).parts()
        >>> parts["cross_modal"], parts["equivariance"].ramp
        (None, WeightRamp(shape='step', end=0.25))
    """

    transform: PairedSpatialTransform = field(default_factory=PairedSpatialTransform)
    equivariance: nn.Module | bool | str | None = field(default_factory=lambda: EquivarianceLoss(validate_args=False))
    cross_modal: nn.Module | bool | str | None = field(default_factory=CrossModalEquivarianceLoss)
    distillation: nn.Module | bool | str | None = field(default_factory=MutualDistillationLoss)
    equivariance_weight: float = 1.0
    cross_modal_weight: float = 1.0
    distillation_weight: float = 0.5
    ramp: WeightRamp | float = field(default_factory=WeightRamp)
    distillation_ramp: WeightRamp | float = field(default_factory=WeightRamp)
    second_view: bool | str = True
    norm: str = "minmax"
    ignore_border: bool | str = False
    weak_peer_ratio: float = 1.25
    teachers: str = "better"

    def changed(self, **words: Any) -> CmerSettings:
        """Give settings with some words replaced; True leaves a loss as it is here.

        Raises:
            TypeError: an unknown word.
        """
        losses = ("equivariance", "cross_modal", "distillation")
        kept = {name for name in losses if name in words and _switch(name, words[name]) is True}
        return replace(self, **{name: value for name, value in words.items() if name not in kept})

    def parts(self) -> dict[str, Any]:
        """Build the parts that :class:`~monai_wsss.methods.CMER` receives besides its network."""
        ramp = WeightRamp.of(self.ramp)
        return {
            "transform": self.transform,
            "equivariance": _term("equivariance", self.equivariance, self.equivariance_weight, ramp),
            "cross_modal": _term("cross_modal", self.cross_modal, self.cross_modal_weight, ramp),
            "distillation": _term(
                "distillation", self.distillation, self.distillation_weight, WeightRamp.of(self.distillation_ramp)
            ),
            "second_view": as_flag("second_view", self.second_view),
            "norm": self.norm,
            "ignore_border": as_flag("ignore_border", self.ignore_border),
            "weak_peer_ratio": self.weak_peer_ratio,
            "teachers": self.teachers,
        }


# For each preset the words of networks_by_modality, and those of the method.
CMER_PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "paper": (
        _UNET,
        {
            "transform": lambda: PairedSpatialTransform(turns=(0, 1, 2, 3)),
            "equivariance": lambda: EquivarianceLoss(reduction="sum", mask="none", validate_args=False),
            "cross_modal": lambda: CrossModalEquivarianceLoss(mask="none", l2_before_warp=True, skip_empty=False),
            "norm": lambda: "max",
            "ramp": lambda: WeightRamp("exponential", end=15),
            "distillation_ramp": lambda: WeightRamp("none"),
            "teachers": lambda: "all",
        },
    ),
    "released": (
        _UNET,
        {
            "cross_modal": lambda: CrossModalEquivarianceLoss(reduction="mean", skip_empty=False),
            "distillation": lambda: MutualDistillationLoss(temperature=10.0),
            "ramp": lambda: WeightRamp("none"),
            "distillation_ramp": lambda: WeightRamp("none"),
            "teachers": lambda: "all",
        },
    ),
}
"""The words are functions, so that each method gets parts of its own."""

CMER_RULES = {"paper": "max"}
"""Preset -> rule by which its network's maps are cut, where it is not that of the pooling: at inference, too, the paper
normalizes by the maximum (Sec. III-A)."""


def _switch(name: str, given: Any) -> Any:
    """Give a loss as it is, and anything else as a flag; None is False."""
    return given if isinstance(given, nn.Module) else given is not None and as_flag(name, given)


def _term(name: str, given: Any, weight: float, ramp: WeightRamp) -> Term | None:
    loss = _switch(name, given)
    return Term(loss, weight, ramp) if isinstance(loss, nn.Module) else None
