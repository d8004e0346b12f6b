# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Tiles and slices for the tables of CoSA: a strong view beside the weak one, and masks for the oracle guide alone.

The two views have one geometry: flips and quarter turns come first, then a copy is changed strongly.

| images            | strong view                                                                      |
|-------------------|----------------------------------------------------------------------------------|
| color photographs | one of CoSA's nine color operations                                              |
| others            | gain, offset, contrast and noise: operations of color mean nothing there         |

A recipe asks for them by its word ``strong``, and by ``guide`` "oracle" for masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.transforms import (
    CopyItemsd,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ThresholdIntensityd,
)

from monai_wsss.benchmark.cosa_recipes import COSA_BUDGETS
from monai_wsss.benchmark.prepared import Cases, Slices
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.tiles import Tiles
from monai_wsss.data import load_datalist, load_header
from monai_wsss.transforms import RandColorOperationd

__all__ = ["CosaSlices", "CosaTiles", "cosa_data"]

_COLORS = ["red", "green", "blue"]
_GRAY_STD = 50.0  # of gray levels from 0 to 255, about that of an image


def _strong_view(modalities: Sequence[str], recipe: Recipe, std: float = 1.0) -> list[Any]:
    """Give the transforms that add ``strong`` to an item, none for recipes that do not ask for it.

    ``std`` is a standard deviation of intensities: 1 of z-scores.
    """
    if not recipe.words.get("strong"):
        return []
    copy = CopyItemsd("image", names="strong")
    if list(modalities) == _COLORS:
        # The jitter of the weak view may leave the range of the color operations.
        black = ThresholdIntensityd("strong", threshold=0.0, above=True, cval=0.0)
        white = ThresholdIntensityd("strong", threshold=255.0, above=False, cval=255.0)
        return [copy, black, white, RandColorOperationd("strong")]
    return [
        copy,
        RandScaleIntensityd("strong", 0.3, prob=0.5),
        RandShiftIntensityd("strong", 0.3 * std, prob=0.5),
        RandAdjustContrastd("strong", prob=0.5, gamma=(0.7, 1.4), retain_stats=True),
        RandGaussianNoised("strong", prob=0.5, std=0.2 * std),
    ]


def _reads_masks(recipe: Recipe) -> bool:
    """Tell whether masks guide the class maps of a recipe."""
    return recipe.words.get("guide") == "oracle"


class CosaTiles(Tiles):
    """Tiles with a strong view."""

    side: tuple[int, int] | None = None

    def items(self, recipe: Recipe, seed: int, *, masks: bool = False) -> Cases:
        """Give the training tiles, with their masks for the oracle guide; whole images as :class:`Tiles` does."""
        if _reads_masks(recipe):
            return [item for item in load_datalist(self.datalist, "training", masks=True) if "mask" in item]
        return super().items(recipe, seed, masks=masks)

    def augmentation(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give flips, quarter turns and a jitter, then the strong view; tiles are not cropped.

        The energy reads the colors before the jitter, which may leave the range of gray levels.
        """
        if _reads_masks(recipe):
            turns: list[Any] = [RandRotate90d(keys, 0.75, 3), RandFlipd(keys, 0.5, 0)]
        else:
            turns = self.geometry(keys, recipe)
        if recipe.words.get("values", {}).get("energy"):
            turns = [*turns, CopyItemsd("image", names="intensity")]
        return [*turns, *self.jitter(), *_strong_view(self.modalities, recipe, _GRAY_STD)]

    def measured_cases(self, recipe: Recipe, split: str, every: int) -> Cases:
        """Give one in so many cases of a split to measure; the training images are whole, too."""
        return self.cases("training_images" if split == "training" else split)[::every]


class CosaSlices(Slices):
    """Slices with a strong view."""

    @property
    def side(self) -> tuple[int, int]:
        """Give the in-plane size of the network."""
        return self.grid

    def items(self, recipe: Recipe, seed: int, *, masks: bool = False) -> Cases:
        """Give the training slices, with their masks for the oracle guide and full supervision."""
        return super().items(recipe, seed, masks=masks or _reads_masks(recipe))

    def augmentation(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give flips and quarter turns, then the strong view."""
        return [*super().augmentation(keys, recipe), *_strong_view(self.modalities, recipe)]

    def measured_cases(self, recipe: Recipe, split: str, every: int) -> Cases:
        """Give one in so many cases of a split to measure."""
        return self.cases(recipe, split, every)


def cosa_data(datalist: Path, split: str) -> tuple[str, CosaTiles | CosaSlices]:
    """Read which kind of data a datalist holds.

    Args:
        datalist: path of a prepared ``datalist.json``.
        split: where to measure.

    Returns:
        ``"tiles"`` or ``"slices"``, and the data.
    """
    if load_header(datalist).get("tiles"):
        return "tiles", CosaTiles(datalist, split)
    grid = COSA_BUDGETS["slices"].grid
    return "slices", CosaSlices(datalist, split, (grid, grid))
