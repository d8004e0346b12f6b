# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Prepared patches of tissue without a background, and the whole images that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Resized
from torch import nn
from torch.utils.data import Sampler

from monai_wsss._checks import DataError
from monai_wsss.benchmark.prepared import Cases, PreparedData, add_case
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.data import EpochCacheDataset, LabelBalancedSampler, draw_share, load_datalist
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer, score_pseudo_masks
from monai_wsss.refinement import pooled_mixture, to_mask
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, ResizeInPlaned

__all__ = ["Patches"]

_WINDOW = 112


class Patches(PreparedData):
    """Patches of images whose classes are all real tissue, and the whole images that are measured.

    Args:
        datalist: path of the prepared ``datalist.json``.
        split: where to measure.
        every: train on the patches of one in so many images, for a smaller budget.
        samples: patches per epoch, drawn so that labels are balanced.
        window: side of the windows in which whole images are segmented, in pixels.
        grid: side of a patch, and of a window, as networks see it, in pixels; None leaves them as they are.
        share_of: what a recipe's share is drawn from, ``"items"`` or ``"images"``, see
            :func:`~monai_wsss.data.draw_share`.
    """

    runtime_cache = True

    def __init__(
        self,
        datalist: Path,
        split: str = "validation",
        every: int = 1,
        samples: int = 1600,
        window: int = _WINDOW,
        grid: int | None = None,
        share_of: str = "items",
    ) -> None:
        super().__init__(datalist, split)
        self.every = every
        self.samples = samples
        self.window = window
        self.grid = grid
        self.share_of = share_of
        self._read: dict[str, Cases] = {}

    def check(self) -> None:
        """Refuse data with a background.

        Raises:
            DataError: the table cannot be made of this data.
        """
        if self.header["background"]:
            raise DataError(f"{self.datalist} has a background: this table is for classes that are all real tissue.")

    @property
    def settings(self) -> dict[str, Any]:
        """Tell what of the data decides the weights, for JSON."""
        grid = {} if self.grid is None else {"grid": self.grid}
        share = {} if self.share_of == "items" else {"share_of": self.share_of}
        return {**super().settings, "every": self.every, "samples": self.samples, **grid, **share}

    @property
    def unusual(self) -> dict[str, Any]:
        """Tell the side of the windows, where it is not the default, for JSON."""
        return {} if self.window == _WINDOW else {"window": self.window}

    def items(self, recipe: Recipe, seed: int, *, masks: bool = False) -> Cases:
        """Give the training patches of one in :attr:`every` images, or the recipe's share of them."""
        items = load_datalist(self.datalist, "training", masks=masks)
        images = sorted({item.get("source", item["id"]) for item in items})[:: self.every]
        kept = [item for item in items if item.get("source", item["id"]) in images]
        return draw_share(kept, recipe.share, seed=seed, of=self.share_of)

    def reading(self, keys: Sequence[str]) -> list[Any]:
        """Give the transforms that read patches and normalize their tissue."""
        return [LoadImageOrderedd(keys), NormalizeSubjectd("image", foreground="tissue")]

    def fitting(self, keys: Sequence[str]) -> list[Any]:
        """Give the transforms that bring patches and their masks to the grid."""
        if self.grid is None:
            return []
        size = (self.grid, self.grid)
        return [ResizeInPlaned("image", size), *([Resized(keys[1:], size, mode="nearest")] if keys[1:] else [])]

    def sampler(self, items: Cases, dataset: EpochCacheDataset, recipe: Recipe, seed: int) -> Sampler:
        """Draw patches so that labels are balanced."""
        return LabelBalancedSampler(items, self.samples, seed=seed)

    def write_pseudo_masks(self, network: nn.Module, weights: Path, items: Cases, folder: Path, **words: Any) -> None:
        """Write the pseudo-masks of training patches; finished ones are kept."""
        reading = Compose(self.reading(["image"]))
        inferer = VolumeInferer(2, grid=None if self.grid is None else (self.grid, self.grid))
        PseudoMaskWriter(network, weights, items, reading, inferer, folder, background=False, **words).run()

    def measure_pseudo_masks(self, folder: Path, items: Cases) -> dict[str, Any]:
        """Measure pseudo-masks of training patches against their masks.

        Args:
            folder: folder of the pseudo-masks; the result is written beside it.
            items: the patches, read with their masks.
        """
        return score_pseudo_masks(
            folder,
            items,
            LoadImageOrderedd(["pseudo_mask", "mask"]),
            folder.with_name("pseudo_quality.json"),
            classes=self.header["classes"],
            background=False,
        )

    @torch.no_grad()
    def whole_maps(self, recipe: Recipe | None, network: nn.Module | None) -> tuple[Cases, list[torch.Tensor]]:
        """Read whole images once, and give the maps of overlapping windows, averaged, at the size of the image."""
        if self.split not in self._read:
            items = load_datalist(self.datalist, self.split, masks=True)
            reading = Compose(self.reading(["image", "mask"]))
            self._read[self.split] = list(CacheDataset(items, reading, progress=False))
        cases = self._read[self.split]
        if network is None:
            return cases, []
        return cases, self.case_maps(recipe, network, cases)

    @torch.no_grad()
    def case_maps(self, recipe: Recipe | None, network: nn.Module, cases: Cases) -> list[torch.Tensor]:
        """Give the maps of some images, of overlapping windows, averaged."""
        return [self._maps(network, case) for case in cases]

    def _maps(self, network: nn.Module, case: dict[str, Any]) -> torch.Tensor:
        """Give the maps of an image (1, channels, *S): windows as networks see patches."""
        image = torch.as_tensor(case["image"]).float()[None]
        side = self.grid or self.window
        grid = None if self.grid is None else [round(length * side / self.window) for length in image.shape[2:]]
        return VolumeInferer(2, grid=grid, roi_size=(side, side), overlap=0.5)(image, network.eval())

    @torch.no_grad()
    def measure(self, network: nn.Module, output_kind: str) -> dict[str, dict[str, Any]]:
        """Measure whole images: overlapping windows, averaged scores, the highest class; labels are not read.

        Args:
            network: the network, on the CPU.
            output_kind: ``"activation"`` or ``"segmentation"``.
        """
        table = self.case_table()
        items = load_datalist(self.datalist, self.split, masks=True)
        for case in CacheDataset(items, Compose(self.reading(["image", "mask"])), cache_rate=0.0):
            add_case(
                table, case, to_mask(self._maps(network, case), output_kind=output_kind, rule="argmax", gate="none")[0]
            )
        return table.summary()

    @torch.no_grad()
    def measure_mixture(self, network: nn.Module) -> dict[str, dict[str, Any]]:
        """Measure the scored one of two classes where its probability exceeds what a mixture finds; no mask is read.

        The mixture is fitted to the probabilities of all images together; without two populations the cut is 0.5, the
        argmax.

        Args:
            network: a network of class maps, on the CPU.

        Returns:
            the summary; empty where there are more than two classes.
        """
        classes = list(self.header["classes"])
        if len(classes) != 2:
            return {}
        cases, maps = self.whole_maps(None, network)
        scored = classes.index(self.header["scored_class"])
        shares = [of_image.softmax(dim=1)[:, scored : scored + 1] for of_image in maps]
        fit = pooled_mixture(shares)
        cut = fit.threshold.item() if fit.found else 0.5
        table = self.case_table()
        for case, share in zip(cases, shares, strict=True):
            add_case(table, case, torch.where(share > cut, scored + 1, 2 - scored).to(torch.uint8)[0])
        return table.summary()
