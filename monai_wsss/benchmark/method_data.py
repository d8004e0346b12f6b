# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Prepared data of any kind as all methods read them, and what of them decides which methods have a meaning.

CoSA gets a strong view beside the weak one.  CoinGAN gets slices in [-1, 1], as many diseased as healthy ones.  Every
other recipe reads the same items as in the tables of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import RandFlipd
from torch import nn
from torch.utils.data import Sampler

from monai_wsss._checks import check_side
from monai_wsss.benchmark.coingan_data import converts, scaling
from monai_wsss.benchmark.cosa_data import CosaSlices, CosaTiles
from monai_wsss.benchmark.cosa_recipes import COSA_BUDGETS
from monai_wsss.benchmark.encoder_recipes import BUDGETS
from monai_wsss.benchmark.method_recipes import Facts
from monai_wsss.benchmark.patches import Patches
from monai_wsss.benchmark.prepared import Cases, PreparedData
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.data import EpochCacheDataset, UnpairedSampler, check_trainable, load_datalist, load_header

__all__ = ["MethodSlices", "facts_of", "method_data"]


class MethodSlices(CosaSlices):
    """Slices of any number of classes, with what CoSA and CoinGAN need."""

    def check(self) -> None:
        """Refuse data in which a class is in all or in none of the training images.

        Raises:
            DataError: so it is.
        """
        check_trainable(load_datalist(self.datalist, "training"))

    def sampler(self, items: Cases, dataset: EpochCacheDataset, recipe: Recipe, seed: int) -> Sampler:
        """Draw pairs for CoinGAN, as many as there are diseased slices; others in random order."""
        if converts(recipe):
            return UnpairedSampler(items, sum(bool(np.any(item["label"])) for item in items), seed=seed)
        return super().sampler(items, dataset, recipe, seed)

    def augmentation(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give flips from left to right and the range of the generator for CoinGAN; turns and flips for others."""
        if converts(recipe):
            return [RandFlipd(keys, 0.5, 0), scaling()]
        return super().augmentation(keys, recipe)

    def whole_maps(self, recipe: Recipe | None, network: nn.Module | None) -> tuple[Cases, list[torch.Tensor]]:
        """Read the cases, and give the maps of each; CoinGAN's network gets the range of its training."""
        cases, maps = super().whole_maps(recipe, None)
        if recipe is None or network is None:
            return cases, maps
        read = _read_for(recipe, cases)
        return read, self.maps(read, network, recipe.views)

    def case_maps(self, recipe: Recipe, network: nn.Module, cases: Cases) -> list[torch.Tensor]:
        """Give the maps of some cases as they are read for any other method."""
        return self.maps(_read_for(recipe, cases), network, recipe.views)


def _read_for(recipe: Recipe, cases: Cases) -> Cases:
    """Give cases as the network of a recipe wants them: CoinGAN's in the range of its training."""
    return [dict(scaling()(case)) for case in cases] if converts(recipe) else cases


def method_data(datalist: Path, split: str, side: int | None = None) -> tuple[str, PreparedData]:
    """Read which kind of data a datalist holds.

    Args:
        datalist: path of a prepared ``datalist.json``.
        split: where to measure.
        side: side of slices, and of patches, as the network sees them, in pixels; None for the usual.

    Returns:
        ``"tiles"``, ``"patches"`` or ``"slices"``, and the data.

    Raises:
        ValueError: a side of tiles, or of less than a pixel.
    """
    check_side(side)
    header = load_header(datalist)
    if not header["background"]:
        return "patches", Patches(datalist, split, grid=BUDGETS["patches"].grid if side is None else side)
    if not header.get("tiles"):
        side = COSA_BUDGETS["slices"].grid if side is None else side
        return "slices", MethodSlices(datalist, split, (side, side))
    if side is not None:
        raise ValueError(f"Expected no `side` for tiles, got {side}: their size was chosen when they were cut.")
    return "tiles", CosaTiles(datalist, split, several_classes=True)


def facts_of(kind: str, data: PreparedData) -> Facts:
    """Read what of a dataset decides which methods have a meaning on it.

    Args:
        kind: of :func:`method_data`, and so the data.
        data: the dataset.
    """
    learned = load_datalist(data.datalist, "training_images" if kind == "tiles" else "training", masks=True)
    images = load_datalist(data.datalist, "training")
    return Facts(
        kind,
        tuple(data.modalities),
        tuple(data.header["classes"]),
        training_masks=any("mask" in item and np.any(item["label"]) for item in learned),
        without_healthy=all(np.any(item["label"]) for item in images),
    )
