# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Recipes of the tables and figures of the CMER paper: its classifier, losses, transforms, optimizer and sizes.

Patel & Dolz, arXiv:2104.02488, Sec. IV.  A :class:`CmerScale` holds what depends on the size of a run.  Only at
:data:`PAPER_SCALE`, on the split of the paper, is a row called "CMER (paper)".

SEAM (Wang et al. 2020) has more than its equivariance: pixel correlation and losses of its own, which are not rebuilt.
So its rows are called by what they are, its equivariance alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler
from torch.utils.data import DataLoader

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.cams import zscore_images
from monai_wsss.engines import WeightRamp
from monai_wsss.methods import CMER, FullSupervision, SegmentationNetwork, WSSSMethod
from monai_wsss.networks import ASPPResNet, CAMUNet
from monai_wsss.transforms import SPATIAL_KINDS, PairedSpatialTransform

__all__ = [
    "BASELINE",
    "PAPER_SCALE",
    "SEAM_ALL",
    "SEAM_SCALE",
    "SMALL_SCALE",
    "AdamWConstant",
    "CmerScale",
    "bound_recipes",
    "comparison_recipes",
    "loss_recipes",
    "proposed_name",
    "transform_recipes",
]

BASELINE = "baseline"
SEAM_SCALE = "SEAM's equivariance alone, scale"
SEAM_ALL = "SEAM's equivariance alone, all transforms"

_ER: dict[str, Any] = {"cross_modal": False, "distillation": False}


@dataclass(frozen=True)
class AdamWConstant:
    """AdamW at one learning rate.

    Attributes:
        learning_rate: the rate.
        weight_decay: decoupled weight decay.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.1

    @property
    def settings(self) -> dict[str, Any]:
        """Tell the name and the values, for JSON."""
        return {"name": type(self).__name__, **asdict(self)}

    def __call__(
        self, method: WSSSMethod, epochs: int, loader: DataLoader, *, max_iterations: int | None = None
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the optimizer of one training, and a schedule that changes nothing.

        Args:
            method: the method to train, with one player.
            epochs: epochs of the training.
            loader: the batches of an epoch.
            max_iterations: steps of the training, in place of ``epochs``.
        """
        optimizer = torch.optim.AdamW(method.player_parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        return optimizer, ConstantLR(optimizer, factor=1.0, total_iters=0)


@dataclass(frozen=True)
class CmerScale:
    """The size of the runs of a table; the defaults are the paper's.

    Attributes:
        grid: in-plane size in pixels: that of BraTS.
        width: channels of the first block of the U-Net, or of the stem of ResNet-50.
        blocks: bottlenecks of the stages of ResNet-50.
        epochs: epochs of each training; the paper does not give them, the released code has 30.
        ramp_end: T of lambda_E(t), in epochs.
        optimizer: AdamW and its numbers.
        batch_size: images per step.
    """

    grid: tuple[int, int] = (240, 240)
    width: int = 64
    blocks: tuple[int, int, int] = (3, 4, 6)
    epochs: int = 30
    ramp_end: int = 15
    optimizer: AdamWConstant = AdamWConstant()
    batch_size: int = 16

    def __str__(self) -> str:
        """Tell it for a title."""
        grid = " x ".join(map(str, self.grid))
        return (
            f"{grid} pixels, width {self.width}, {self.epochs} epochs, learning rate {self.optimizer.learning_rate:g}"
        )


PAPER_SCALE = CmerScale()
SMALL_SCALE = CmerScale((64, 64), 8, (1, 1, 1), 8, 4, AdamWConstant(1e-3), 16)
"""For a CPU: T is half of the run, as 15 of 30 epochs are, and the rate is one at which few steps teach something."""


def proposed_name(scale: CmerScale, papers: bool) -> str:
    """Give the name of the row of all losses.

    Args:
        scale: size of the runs.
        papers: whether it is trained as the paper's run, on its data.
    """
    if papers:
        return "CMER (paper)"
    return "CMER, the paper's losses, " + ("not on its data" if scale == PAPER_SCALE else "run small")


def _method(channels: int, num_classes: int, *, scale: CmerScale, backbone: str, **words: Any) -> WSSSMethod:
    """Build CMER as the paper has it, with some of its terms left out by ``words``."""
    network = CMER.network_from_preset(
        "paper",
        modalities=[str(channel) for channel in range(channels)],
        num_classes=num_classes,
        backbone=backbone,
        width=scale.width,
    )
    if backbone == "aspp_resnet" and scale.blocks != PAPER_SCALE.blocks:
        for g in range(channels):
            network.members[g] = ASPPResNet(
                2, 1, num_classes, width=scale.width, blocks=scale.blocks, background_map=True
            )
    return CMER.from_preset("paper", network=network, ramp=WeightRamp("exponential", end=scale.ramp_end), **words)


def _recipes(scale: CmerScale, backbone: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Recipe]:
    """Give a recipe per row of words for :meth:`CMER.from_preset`."""
    return {
        name: Recipe(
            partial(_method, scale=scale, backbone=backbone, **words),
            optimizer=scale.optimizer,
            batch_size=scale.batch_size,
            by_subject=False,
            views="none",
            rules=("max",),
            epochs=scale.epochs,
        )
        for name, words in rows.items()
    }


def _only(*kinds: str) -> PairedSpatialTransform:
    """Give the paper's transforms, of some kinds alone."""
    return PairedSpatialTransform(kinds or SPATIAL_KINDS, turns=(0, 1, 2, 3))


def comparison_recipes(scale: CmerScale, papers: bool, backbone: str = "unet") -> dict[str, Recipe]:
    """Give the rows of Tables I, II, IV and V: baseline, SEAM with scaling and with all transforms, the proposed.

    Args:
        scale: size of the runs.
        papers: whether that is the paper's.
        backbone: ``"unet"``, or ``"aspp_resnet"`` for Table IV.
    """
    rows: dict[str, dict[str, Any]] = {
        BASELINE: {**_ER, "equivariance": False, "second_view": False},
        SEAM_SCALE: {**_ER, "transform": _only("scale")},
        SEAM_ALL: _ER,
        proposed_name(scale, papers): {},
    }
    return _recipes(scale, backbone, rows)


def loss_recipes(scale: CmerScale, papers: bool) -> dict[str, Recipe]:
    """Give the rows of Table III: which of the losses a network learns from, besides its labels."""
    rows: dict[str, dict[str, Any]] = {
        "KD": {"equivariance": False, "cross_modal": False},
        "KD + ER": {"cross_modal": False},
        "ER + CMER": {"distillation": False},
        proposed_name(scale, papers): {},
    }
    return _recipes(scale, "unet", rows)


def transform_recipes(scale: CmerScale) -> dict[str, Recipe]:
    """Give the bars of Fig. 3: the baseline, and L_ER alone with one kind of transform each and with all.

    The paper does not say which losses its figure has.  Its sentences on scaling (better for T1, T1c and T2, worse for
    FLAIR) hold for the rows "SEAM (scale)" of Table II, whose loss is L_ER alone.
    """
    rows: dict[str, dict[str, Any]] = {BASELINE: {**_ER, "equivariance": False, "second_view": False}}
    rows |= {
        SEAM_SCALE if kind == "scale" else f"L_ER alone, {kind}": {**_ER, "transform": _only(kind)}
        for kind in SPATIAL_KINDS
    }
    return _recipes(scale, "unet", {**rows, SEAM_ALL: _ER})


class _OneModality(nn.Module):
    """A U-Net on one z-scored channel of the image."""

    def __init__(self, channel: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.channel = channel
        self.unet = CAMUNet(2, 1, num_classes + 1, width=width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.unet(zscore_images(image[:, self.channel : self.channel + 1]))


def _segmenter(channels: int, num_classes: int, *, channel: int, width: int) -> WSSSMethod:
    return FullSupervision(SegmentationNetwork(_OneModality(channel, num_classes, width)))


def bound_recipes(scale: CmerScale, modalities: Sequence[str]) -> dict[str, Recipe]:
    """Give the upper bound of Table II, one U-Net per modality trained on masks with Dice and cross-entropy.

    Args:
        scale: size of the runs.
        modalities: their names, in the order of the channels.
    """
    return {
        f"{FULL_SUPERVISION} (masks), {name}": Recipe(
            partial(_segmenter, channel=channel, width=scale.width),
            optimizer=scale.optimizer,
            batch_size=scale.batch_size,
            by_subject=False,
            views="none",
            rules=(None,),
            epochs=scale.epochs,
        )
        for channel, name in enumerate(modalities)
    }
