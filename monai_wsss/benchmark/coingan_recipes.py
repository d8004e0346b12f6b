# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the table of CoinGAN trains: the rows of the paper's Table 6, loss presets, lambda, label noise, others, bounds.

All rows of CoinGAN have one generator of width 24, at 64 x 64 pixels, and the preset ``default``, which is
``identity``; they differ by what their names say.  Steps are fixed here, before any training: 776 with 4 pairs each,
more than plain CAM has in its own table (552).  Others have at least as many, with the batches of their own tables.

What it costs, in seconds of one core of a busy machine; the measuring takes about 20 more per row:

| rows                                              | trainings | per step         | in all        |
|---------------------------------------------------|-----------|------------------|---------------|
| ladder, three seeds                               | 15        | 0.54 to 0.67     | 7,200         |
| lambda (seven beside 0.3), label noise            | 8         | 0.67             | 4,200         |
| presets `paper`, with its SGD and with Adam       | 2         | 0.36             | 600           |
| presets `paper_cyclegan`, `cyclegan`              | 2         | 1.75             | 2,700         |
| plain CAM, CMER, BMP, AFA, their label noise      | 10        | 0.17 to 1.56     | 4,100         |
| full supervision, two networks, three seeds       | 6         | 0.2, 0.65        | 2,100         |

Together 5.8 hours.  The learning rate of Adam, 5e-4, is for runs as short as these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from monai_wsss.benchmark.bmp_recipes import BMP_RECIPES
from monai_wsss.benchmark.cam_recipes import CAM_RECIPES
from monai_wsss.benchmark.cmer_recipes import CMER_RECIPES
from monai_wsss.benchmark.recipes import FULL_SUPERVISION, AdamWOneCycle, Recipe
from monai_wsss.engines import polynomial
from monai_wsss.methods import CoinGAN, FullSupervision, SegmentationNetwork, WSSSMethod
from monai_wsss.methods.coingan_settings import (
    COINGAN_NETWORKS,
    COINGAN_OPTIMIZERS,
    CoinganSettings,
    coingan_optimizers,
)
from monai_wsss.networks import CycleGenerator

__all__ = [
    "ALL",
    "COINGAN_BUDGET",
    "LADDER",
    "LAMBDAS",
    "NOISY",
    "PRESETS",
    "SALIENCY",
    "CoinganBudget",
    "CoinganOptimizers",
    "coingan_recipes",
    "several_seeds",
]

Words = dict[str, Any]


@dataclass(frozen=True)
class CoinganBudget:
    """How long the rows are trained, and how large CoinGAN's networks are.

    Attributes:
        epochs: epochs of CoinGAN; one is a pass over the diseased slices.
        batch_size: slices per step of CoinGAN, half of them healthy.
        width: channels of the generator's stem.
        ndf: channels of the discriminator's first layer.
        num_layers_d: its layers between the first and the last: patches of 34 pixels.
        learning_rate: of Adam, for both players.
        steps: least steps of the others; their epochs follow from it and from ``slices``.
        slices: training slices of the data.
        generator_batch: slices per step of the generator as a segmenter.
        afa_batch: slices per step of AFA, whose labels are costly; other methods have 32.
        noise: share of wrong labels.
    """

    epochs: int = 4
    batch_size: int = 8
    width: int = 24
    ndf: int = 32
    num_layers_d: int = 2
    learning_rate: float = 5e-4
    steps: int = 776
    slices: int = 2200
    generator_batch: int = 8
    afa_batch: int = 16
    noise: float = 0.1

    def epochs_of(self, batch_size: int) -> int:
        """Count the epochs that have at least :attr:`steps` steps of a number of slices."""
        return -(-self.steps // -(-self.slices // batch_size))


COINGAN_BUDGET = CoinganBudget()
"""That of the 2200 training slices of LGG, 774 of which show a tumor: 4 x 194 steps of CoinGAN, 828 of the others."""

ALL = "+ C-Conv, CA and SA (all of CoinGAN)"
LADDER: dict[str, Words] = {
    "backbone": {"use_cconv": False, "use_ca": False, "use_sa": False},
    "+ C-Conv": {"use_ca": False, "use_sa": False},
    "+ C-Conv and CA": {"use_sa": False},
    "+ C-Conv and SA": {"use_ca": False},
    ALL: {},
}
"""Table 6: the switches that are off in each row."""

SALIENCY = "+ saliency maps (not described in the paper)"
"""The last row of Table 6: printed, never trained."""

PRESETS: dict[str, tuple[str, str]] = {
    "preset paper, run small": ("paper", "paper"),
    "preset paper with Adam, run small": ("paper", "adam"),
    "preset paper_cyclegan, run small": ("paper_cyclegan", "paper"),
    "preset cyclegan, run small": ("cyclegan", "adam"),
}
"""Losses and readings of a preset, and whose optimizers: those of the preset ``identity`` are the row of all."""

LAMBDAS: dict[float, str] = {
    value: ALL if value == 0.3 else f"lambda {value:g}" for value in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
}
"""Fig. 4: each value is a training of its own; 0.3 is the row of all of CoinGAN."""

_PLAIN = "plain CAM"
_CMER = "CMER, one sequence: its equivariance"
NOISY: dict[str, str] = {name: f"{name}, 10 % wrong labels" for name in (ALL, _PLAIN, _CMER, "BMP")}
"""Table 9: rows that are trained once more with wrong labels."""

_LATER = {"d_steps": 1, "norm": "instance"}
"""Words that the first rows were trained without, by the values that they had all the same: rows are found again by
their words, so these stand there only with other values."""

_BOUNDS = tuple(f"{FULL_SUPERVISION} (masks), {network}" for network in ("same network", "U-Net"))


def several_seeds(name: str) -> bool:
    """Tell whether a row is trained with all seeds; the others have the first one alone."""
    return name in (*LADDER, _PLAIN, *_BOUNDS)


@dataclass(frozen=True)
class CoinganOptimizers:
    """The optimizers of both players, whose rates decay polynomially with every step.

    Attributes:
        preset: of ``COINGAN_OPTIMIZERS``.
        words: set otherwise.
        power: of the decay.
    """

    preset: str = "adam"
    words: Mapping[str, Any] = field(default_factory=dict)
    power: float = 0.9

    @property
    def settings(self) -> Words:
        """Tell all values, for JSON."""
        values = {word: one.value for word, one in COINGAN_OPTIMIZERS[self.preset].items()} | dict(self.words)
        told: Words = json.loads(json.dumps({"name": type(self).__name__, "power": self.power, **values}))
        return told

    def __call__(
        self, method: WSSSMethod, epochs: int, loader: DataLoader, *, max_iterations: int | None = None
    ) -> tuple[Any, Any]:
        """Build optimizers and schedules by player, see :class:`~monai_wsss.benchmark.recipes.OptimizerRecipe`."""
        optimizers = coingan_optimizers(method, self.preset, **self.words)
        schedules = {
            player: polynomial(optimizer, epochs, loader, power=self.power, max_iterations=max_iterations)
            for player, optimizer in optimizers.items()
        }
        return optimizers, schedules


def coingan_recipes(budget: CoinganBudget = COINGAN_BUDGET) -> dict[str, Recipe]:
    """Give the recipes of the table by their names, in its order: the ladder first, what costs most last.

    Args:
        budget: how long and how large.
    """
    coingan = partial(_coingan, budget)
    same, unet = _BOUNDS
    rows = {name: coingan(**switches) for name, switches in LADDER.items()}
    rows[same] = _bound(budget)
    rows[unet] = _other(budget, CAM_RECIPES[f"{FULL_SUPERVISION} (masks)"], "full supervision", network="BasicUNet")
    rows[_PLAIN] = _other(budget, CAM_RECIPES["max"], "cam", pooling="max")
    weak = {
        _CMER: _other(
            budget, CMER_RECIPES["SEAM's equivariance, all transforms"], "cmer", cross_modal=False, distillation=False
        ),
        "BMP": _other(budget, BMP_RECIPES["+ affinity (all of BMP)"], "bmp", preset="scratch"),
    }
    clean = {**rows, **weak}
    rows |= {NOISY[name]: _with_noise(budget, clean[name]) for name in NOISY}
    rows |= {name: coingan(lam=value) for value, name in LAMBDAS.items() if name != ALL}
    rows["plain CAM, average pooling"] = _other(budget, CAM_RECIPES["plain (paper): average"], "cam", pooling="average")
    rows |= weak
    rows["AFA"] = _other(budget, BMP_RECIPES["AFA"], "afa", budget.afa_batch, preset="paper")
    return rows | {name: coingan(*preset) for name, preset in PRESETS.items()}


def _coingan(budget: CoinganBudget, preset: str = "default", optimizers: str = "adam", **changes: Any) -> Recipe:
    """Give the recipe of one row of CoinGAN; the values of all its words are recorded."""
    losses: Words = {"ndf": budget.ndf, "num_layers_d": budget.num_layers_d}
    network: Words = {"width": budget.width, **changes}
    rates = {f"{player}_rate": budget.learning_rate for player in ("generator", "discriminator")}
    told = _recorded({word: one.value for word, one in COINGAN_NETWORKS[preset].items()} | network)
    record = _recorded(CoinganSettings.of_preset(preset, **losses).record(preset))
    del record["sources"]
    return Recipe(
        partial(_build_coingan, preset=preset, losses=losses, network=network),
        CoinganOptimizers(optimizers, rates if optimizers == "adam" else {}),
        batch_size=budget.batch_size,
        views="none",
        rules=("otsu",),
        epochs=budget.epochs,
        words={"method": "coingan", "preset": preset, "network": told, "losses": record},
    )


def _recorded(words: Words) -> Words:
    return {word: value for word, value in words.items() if word not in _LATER or value != _LATER[word]}


def _build_coingan(channels: int, num_classes: int, *, preset: str, losses: Words, network: Words) -> WSSSMethod:
    made = CoinGAN.network_from_preset(preset, in_channels=channels, num_classes=num_classes, **network)
    return CoinGAN.from_preset(preset, network=made, **losses)


def _other(budget: CoinganBudget, recipe: Recipe, method: str, batch_size: int = 32, **words: Any) -> Recipe:
    """Give a recipe of another table with the steps of this one, and one view of each slice."""
    epochs = budget.epochs_of(batch_size)
    told = {"method": method, **words}
    return replace(recipe, batch_size=batch_size, epochs=epochs, views="none", rules=recipe.rules[:1], words=told)


def _with_noise(budget: CoinganBudget, recipe: Recipe) -> Recipe:
    return replace(recipe, words={**recipe.words, "label_noise": budget.noise})


class _GeneratorAsSegmenter(nn.Module):
    """The backbone's generator up to its head, which gives logits of background and classes instead of an image."""

    def __init__(self, generator: CycleGenerator, out_channels: int) -> None:
        super().__init__()
        width = int(generator.head.in_channels)
        generator.head = nn.Identity()
        self.generator = generator
        self.logits = nn.Conv2d(width, out_channels, 7, padding=3, padding_mode="reflect")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        generator = self.generator
        logits: torch.Tensor = self.logits(generator.ups(generator.blocks(generator.downs(generator.represent(image)))))
        return logits


def _bound(budget: CoinganBudget) -> Recipe:
    network = {"width": budget.width, **LADDER["backbone"]}
    return Recipe(
        partial(_build_bound, network=network),
        AdamWOneCycle(),
        batch_size=budget.generator_batch,
        views="none",
        rules=(None,),
        epochs=budget.epochs_of(budget.generator_batch),
        words={"method": "full supervision", "network": network},
    )


def _build_bound(channels: int, num_classes: int, *, network: Words) -> WSSSMethod:
    generator = CoinGAN.network_from_preset(in_channels=channels, **network)
    return FullSupervision(SegmentationNetwork(_GeneratorAsSegmenter(generator, num_classes + 1)))
