# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Slices of one sequence for the tables of CoinGAN: pairs of diseased and healthy ones, and wrong labels on purpose.

| rows       | intensities                      | batches                            | augmentation            |
|------------|----------------------------------|------------------------------------|-------------------------|
| CoinGAN    | [-1, 1], from -2.5 to 4 z-scores | as many diseased as healthy slices | flips, left to right    |
| all others | z-scores                         | as in the tables of their own      | quarter turns and flips |

The mean of healthy features is an atlas of slices that lie alike, so slices are not turned for CoinGAN.  A recipe asks
for the first line by its word ``method``, and for wrong labels by ``label_noise``.  The masks are measured by all our
metrics and by those of the paper's protocol, on the grid of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import RandFlipd, ScaleIntensityRanged
from torch.utils.data import Sampler

from monai_wsss._checks import DataError
from monai_wsss.benchmark.prepared import Cases, Slices, add_case
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.data import EpochCacheDataset, LabelNoise, UnpairedSampler, load_datalist
from monai_wsss.metrics import CaseTable
from monai_wsss.refinement import MaskRule

__all__ = ["CoinganSlices", "converts", "scaling"]

_RANGE = (-2.5, 4.0)  # z-scores that become -1 and 1, as in the bundle: air, and more than nearly all lesions have
_STATISTICS = ("intensity_mean", "intensity_std")


class CoinganSlices(Slices):
    """Slices of one sequence with one class.

    Args:
        datalist: path of the prepared ``datalist.json``.
        split: where to measure.
        grid: in-plane size of the networks, in pixels.
        sequence: name of the sequence in the datalist.
    """

    def __init__(
        self, datalist: Path, split: str = "validation", grid: tuple[int, int] = (64, 64), sequence: str = "FLAIR"
    ) -> None:
        super().__init__(datalist, split, grid)
        self.sequence = sequence

    @property
    def modalities(self) -> list[str]:
        """Give the name of the one input channel."""
        return [self.sequence]

    @cached_property
    def _channel(self) -> int:
        return super().modalities.index(self.sequence)

    @cached_property
    def _pairs(self) -> int:
        """Count the diseased slices: wrong labels must not change the number of steps."""
        return sum(bool(np.any(item["label"])) for item in load_datalist(self.datalist, "training"))

    @property
    def settings(self) -> dict[str, Any]:
        """Tell what of the data decides the weights, for JSON."""
        return {**super().settings, "modalities": self.modalities, "range": list(_RANGE)}

    def check(self) -> None:
        """Refuse data without the sequence, with several classes, or without positive or negative images.

        Raises:
            DataError: the table cannot be made of this data.
        """
        if self.sequence not in super().modalities:
            raise DataError(
                f"{self.datalist} has {', '.join(super().modalities)}: the table of CoinGAN needs {self.sequence}."
            )
        super().check()

    def of_recipe(self, items: Cases, recipe: Recipe) -> Cases:
        """Give items with the one sequence alone."""
        return [self._of_sequence(item) for item in super().of_recipe(items, recipe)]

    def _of_sequence(self, item: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(item["image"], (list, tuple)):
            return item
        chosen = {name: [item[name][self._channel]] for name in ("image", *_STATISTICS) if name in item}
        return {**item, **chosen}

    def items(self, recipe: Recipe, seed: int, *, masks: bool = False) -> Cases:
        """Give the training slices of a recipe, some with a wrong label where it asks for them."""
        items = super().items(recipe, seed, masks=masks)
        return LabelNoise(recipe.words.get("label_noise", 0.0), seed=seed)(items)

    def sampler(self, items: Cases, dataset: EpochCacheDataset, recipe: Recipe, seed: int) -> Sampler:
        """Draw pairs for CoinGAN, as many as slices are diseased by their right labels; others in random order."""
        if converts(recipe):
            return UnpairedSampler(items, self._pairs, seed=seed)
        return super().sampler(items, dataset, recipe, seed)

    def augmentation(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give flips from left to right and the range of the generator for CoinGAN; turns and flips for others."""
        if converts(recipe):
            return [RandFlipd(keys, 0.5, 0), scaling()]
        return super().augmentation(keys, recipe)

    def measured_cases(self, recipe: Recipe, split: str | None = None) -> Cases:
        """Give the cases of a split as the network of a recipe gets them."""
        cases = self.cases(recipe, split)
        return [dict(scaling()(case)) for case in cases] if converts(recipe) else cases

    def case_table(self) -> CaseTable:
        """Start an empty table of cases, with the paper's protocol beside our own."""
        return CaseTable(self.header["classes"], paper_grid=self.grid)

    def measure(
        self, cases: Cases, maps: Sequence[torch.Tensor], rule: MaskRule, cut: Sequence[torch.Tensor] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Decide masks and measure them.

        Args:
            cases: of :meth:`measured_cases`.
            maps: per case (1, channels, *S), what the network gives.
            rule: decides.
            cut: what is cut in the place of the maps; the presence stays theirs.
        """
        table = self.case_table()
        for case, scores, refined in zip(cases, maps, cut or maps, strict=True):
            mask, _, presence = rule(scores, None, refined)
            gated = presence is not None and rule.gate == "predicted"
            add_case(table, case, mask[0], presence=presence[0] if presence is not None and gated else None)
        return table.summary()


def converts(recipe: Recipe) -> bool:
    """Tell whether a recipe trains CoinGAN, and so wants pairs and a range of its own."""
    return bool(recipe.words.get("method") == "coingan")


def scaling() -> ScaleIntensityRanged:
    """Give the transform from z-scores to the range of the generator."""
    return ScaleIntensityRanged("image", *_RANGE, -1.0, 1.0, clip=True)
