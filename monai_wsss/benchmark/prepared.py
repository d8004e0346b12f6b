# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Prepared datasets as the tables use them: what all kinds have in common, and slices.

Each kind gives the items to train on, their batches, and the cases to measure; the others are
:class:`~monai_wsss.benchmark.patches.Patches` and :class:`~monai_wsss.benchmark.tiles.Tiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader, DistributedSampler
from monai.transforms import Compose, RandFlipd, RandRotate90d, Resized
from torch import nn
from torch.utils.data import Sampler
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._files import file_sha256
from monai_wsss.benchmark.content import content_sha256
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.data import (
    EpochCacheDataset,
    check_trainable,
    draw_share,
    load_datalist,
    load_header,
)
from monai_wsss.engines.evaluation import slice_place
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer
from monai_wsss.metrics import CaseTable
from monai_wsss.refinement import MaskRule
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, ResizeInPlaned

__all__ = ["MIXTURE_OF_ALL", "Cases", "PreparedData", "Slices", "add_case", "maps_of", "rule_of"]

MIXTURE_OF_ALL = "mixture, all images"
"""The column, or end of a row's name, of the cut that a mixture finds in the scores of all images; no mask is read."""
_STATISTICS = ("intensity_mean", "intensity_std")

Cases = list[dict[str, Any]]


class PreparedData:
    """A prepared dataset; :class:`Slices` and :class:`Patches` say how it is read.

    Args:
        datalist: path of the prepared ``datalist.json``.
        split: where to measure.
    """

    runtime_cache = False
    several_classes = False

    def __init__(self, datalist: Path, split: str = "validation") -> None:
        self.datalist = Path(datalist)
        self.split = split

    @cached_property
    def header(self) -> dict[str, Any]:
        """Read the datalist without its cases."""
        return load_header(self.datalist)

    @property
    def modalities(self) -> list[str]:
        """Give the names of the input channels, in their order."""
        modality = self.header["modality"]
        return [modality[str(channel)] for channel in range(len(modality))]

    def check(self) -> None:
        """Refuse at once what would fail after hours of training.

        Raises:
            DataError: the dataset is not of this kind.
        """
        raise NotImplementedError(f"{type(self).__name__} must check its dataset.")

    def check_classes(self) -> None:
        """Refuse training items that all show or all lack a class, and several classes where the table is for one.

        Raises:
            DataError: so it is.
        """
        classes = self.header["classes"]
        if len(classes) != 1 and not self.several_classes:
            raise DataError(f"{self.datalist} has the classes {', '.join(classes)}: this table is for one class.")
        check_trainable(load_datalist(self.datalist, "training"))

    @property
    def settings(self) -> dict[str, Any]:
        """Tell what of the data decides the weights, for JSON."""
        return {"datalist_sha256": file_sha256(self.datalist)}

    @property
    def unusual(self) -> dict[str, Any]:
        """Tell how cases are viewed, where it is not the default, for JSON; committed rows are found again by it."""
        return {}

    @cached_property
    def content_sha256(self) -> str:
        """Give a digest of the items and of all their files, the same on every machine."""
        return content_sha256(self.datalist)

    def items(self, recipe: Recipe, seed: int, *, masks: bool = False) -> Cases:
        """Give the training items of a recipe, with their masks where the recipe may read them."""
        raise NotImplementedError(f"{type(self).__name__} must give its training items.")

    def pseudo_items(self, recipe: Recipe, seed: int) -> Cases:
        """Give the items that get pseudo-masks from a recipe: its training items."""
        return self.items(recipe, seed)

    def reading(self, keys: Sequence[str]) -> list[Any]:
        """Give the transforms that read items, the image first."""
        raise NotImplementedError(f"{type(self).__name__} must read its items.")

    def fitting(self, keys: Sequence[str]) -> list[Any]:
        """Give the transforms that bring read training items to one size; none for items of one size."""
        return []

    def sampler(self, items: Cases, dataset: EpochCacheDataset, recipe: Recipe, seed: int) -> Sampler:
        """Give the order of the training items, anew per epoch."""
        return DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=seed)

    def loader(self, items: Cases, recipe: Recipe, seed: int) -> DataLoader:
        """Give random batches of training items: quarter turns and flips of the image and of the masks that they have.

        Args:
            items: items with ``image`` and, where masks are learned, ``mask`` or ``pseudo_mask``.
            recipe: says the size of the batches.
            seed: seed of order and augmentation.
        """
        keys = [key for key in ("image", "mask", "pseudo_mask") if key in items[0]]
        dataset = EpochCacheDataset(
            items,
            Compose([*self.reading(keys), *self.fitting(keys)]),
            Compose(self.augmentation(keys, recipe)),
            seed=seed,
            progress=False,
            runtime_cache=self.runtime_cache,
        )
        sampler = self.sampler(items, dataset, recipe, seed)
        return DataLoader(dataset, batch_size=recipe.batch_size, sampler=sampler, num_workers=0)

    def augmentation(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give the random transforms of a training: quarter turns and flips."""
        return [RandRotate90d(keys, 0.75, 3), RandFlipd(keys, 0.5, 0)]

    def whole_maps(self, recipe: Recipe | None, network: nn.Module | None) -> tuple[Cases, list[torch.Tensor]]:
        """Read the cases to measure, and give the network's maps of each, (1, channels, *S) at the size of the case.

        Args:
            recipe: the network's, says how images are read and viewed; None for the default.
            network: the network, on the CPU; None gives no maps.
        """
        raise NotImplementedError(f"{type(self).__name__} must give the maps of its cases.")

    def case_maps(self, recipe: Recipe, network: nn.Module, cases: Cases) -> list[torch.Tensor]:
        """Give the network's maps of some of the cases to measure, as :meth:`whole_maps` gives those of all.

        Args:
            recipe: the network's, says how images are viewed.
            network: the network, on the CPU.
            cases: of those that :meth:`whole_maps` reads by default.
        """
        raise NotImplementedError(f"{type(self).__name__} must give the maps of its cases.")

    def case_table(self) -> CaseTable:
        """Start an empty table of cases."""
        header = self.header
        return CaseTable(
            header["classes"],
            background=header["background"],
            scored_class=header.get("scored_class"),
            context=tuple(header.get("context", {})),
        )

    def write_pseudo_masks(self, network: nn.Module, weights: Path, items: Cases, folder: Path, **words: Any) -> None:
        """Write the pseudo-masks of training items for the recipes that have a teacher; ``words`` are the writer's."""
        raise NotImplementedError(f"{type(self).__name__} has no recipes with a teacher.")


class Slices(PreparedData):
    """Slices with one class beside the background, or several where a table is for several.

    Args:
        datalist: path of the prepared ``datalist.json``.
        split: where to measure.
        grid: in-plane size of the networks, in pixels.
        modalities: the channels to take, in this order; None takes those of the datalist.
        raw: whether slices are neither clipped nor, in training, flipped and turned, as CMER's paper has it.
    """

    def __init__(
        self,
        datalist: Path,
        split: str = "validation",
        grid: tuple[int, int] = (64, 64),
        *,
        modalities: Sequence[str] | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__(datalist, split)
        self.grid = grid
        self.chosen = None if modalities is None else list(modalities)
        self.raw = raw
        self._read: dict[tuple[bool, str, int], Cases] = {}

    @property
    def modalities(self) -> list[str]:
        """Give the names of the input channels, in their order."""
        return super().modalities if self.chosen is None else self.chosen

    def check(self) -> None:
        """Refuse data with several classes where the table is for one, or without positive or negative images.

        Raises:
            DataError: the table cannot be made of this data.
        """
        self.check_classes()

    @property
    def settings(self) -> dict[str, Any]:
        """Tell what of the data decides the weights, for JSON."""
        unusual = {"modalities": self.chosen, "raw": self.raw or None}
        told = {name: value for name, value in unusual.items() if value is not None}
        return {**super().settings, "grid": list(self.grid), **told}

    def items(self, recipe: Recipe, seed: int, *, masks: bool = False) -> Cases:
        """Give the training items of a recipe; with ``masks`` only those whose mask is on disk, healthy ones too."""
        items = load_datalist(self.datalist, "training", masks=masks, modalities=self.chosen)
        items = [item for item in items if "mask" in item] if masks else items
        return self.of_recipe(draw_share(items, recipe.share, seed=seed), recipe)

    def of_recipe(self, items: Cases, recipe: Recipe) -> Cases:
        """Give items of any split as a recipe reads them: without statistics where it normalizes each slice alone."""
        if recipe.by_subject:
            return items
        return [{key: value for key, value in item.items() if key not in _STATISTICS} for item in items]

    def reading(self, keys: Sequence[str]) -> list[Any]:
        """Give the transforms that read slices; a mask may be missing."""
        return [
            LoadImageOrderedd(keys, allow_missing_keys=True),
            NormalizeSubjectd("image", clip=not self.raw),
        ]

    def augmentation(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give the random transforms of a training."""
        return [] if self.raw else super().augmentation(keys, recipe)

    def fitting(self, keys: Sequence[str]) -> list[Any]:
        """Give the transforms that bring slices and their masks to the grid."""
        resize_masks = [Resized(keys[1:], self.grid, mode="nearest")] if keys[1:] else []
        return [ResizeInPlaned("image", self.grid), *resize_masks]

    def cases(self, recipe: Recipe, split: str | None = None, every: int = 1) -> Cases:
        """Read the cases to measure, once for all recipes of one normalization.

        Args:
            recipe: says how slices are normalized.
            split: another split than the table's own.
            every: take one in so many cases.
        """
        key = (recipe.by_subject, split or self.split, every)
        if key not in self._read:
            # Datasets may be large: the cases of another normalization are not kept.
            self._read = {kept: cases for kept, cases in self._read.items() if kept[0] == recipe.by_subject}
            items = load_datalist(self.datalist, key[1], masks=True, modalities=self.chosen)
            items = self.of_recipe(items, recipe)[::every]
            self._read[key] = list(CacheDataset(items, Compose(self.reading(["image", "mask"])), progress=False))
        return self._read[key]

    def maps(self, cases: Cases, network: nn.Module, views: str, cam: Any = None) -> list[torch.Tensor]:
        """Give the network's maps of each case (1, channels, *S), at the size of the case.

        Args:
            cases: cases of :meth:`cases`.
            network: the network, on the CPU.
            views: views to average, see :func:`~monai_wsss.inferers.multi_view_maps`.
            cam: inferer of class maps, for networks that give none.
        """
        inferer = VolumeInferer(2, grid=self.grid, views=views, cam=cam)
        return maps_of(cases, partial(inferer, network=network))

    def whole_maps(self, recipe: Recipe | None, network: nn.Module | None) -> tuple[Cases, list[torch.Tensor]]:
        """Read the cases, and give the maps of each over the views of its recipe."""
        recipe = recipe or Recipe(build=_no_method)
        cases = self.cases(recipe)
        return cases, [] if network is None else self.case_maps(recipe, network, cases)

    def case_maps(self, recipe: Recipe, network: nn.Module, cases: Cases) -> list[torch.Tensor]:
        """Give the maps of some cases over the views of a recipe."""
        return self.maps(cases, network, recipe.views)

    def write_pseudo_masks(self, network: nn.Module, weights: Path, items: Cases, folder: Path, **words: Any) -> None:
        """Write the pseudo-masks of training slices; finished ones are kept."""
        reading = Compose(self.reading(["image"]))
        PseudoMaskWriter(network, weights, items, reading, VolumeInferer(2, grid=self.grid), folder, **words).run()

    def measure_maps(
        self, cases: Cases, maps: Sequence[torch.Tensor], rule: MaskRule, *, sweep: bool = False
    ) -> CaseTable:
        """Decide masks of maps and measure them.

        Args:
            cases: the cases.
            maps: per case (1, channels, *S).
            rule: decides.
            sweep: keep the maps in [0, 1] too, for a sweep of thresholds.
        """
        table = self.case_table()
        for case, scores in zip(cases, maps, strict=True):
            mask, cam, presence = rule(scores)
            add_case(
                table,
                case,
                mask[0],
                presence=presence[0] if presence is not None and rule.gate == "predicted" else None,
                cam=cam[0] if sweep and cam is not None else None,
            )
        return table

    def measure_masks(self, cases: Cases, masks: Sequence[torch.Tensor]) -> dict[str, dict[str, Any]]:
        """Measure masks (1, 1, *S), one per case."""
        table = self.case_table()
        for case, mask in zip(cases, masks, strict=True):
            add_case(table, case, mask[0])
        return table.summary()


def _no_method(in_channels: int, num_classes: int) -> Any:
    raise NotImplementedError("This recipe says how images are read; it trains nothing.")


def add_case(
    table: CaseTable,
    case: dict[str, Any],
    prediction: torch.Tensor,
    *,
    presence: torch.Tensor | None = None,
    cam: torch.Tensor | None = None,
) -> None:
    """Add a case with its mask, where it has one, to a table."""
    table.add(
        id=case["id"],
        subject=case["subject"],
        label=torch.as_tensor(case["label"]),
        prediction=prediction,
        reference=case.get("mask"),
        presence=presence,
        cam=cam,
        place=slice_place(case),
    )


@torch.no_grad()
def maps_of(cases: Cases, give: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Give the maps of each case (1, channels, *S); images of one size are taken together.

    Args:
        cases: cases with ``image`` (C, *S).
        give: images (B, C, *S) to maps (B, channels, *S).
    """
    maps: list[torch.Tensor] = []
    for start in tqdm(range(0, len(cases), 32), desc="maps", leave=False):
        images = [torch.as_tensor(case["image"]).float() for case in cases[start : start + 32]]
        if len({image.shape for image in images}) == 1:
            maps.extend(give(torch.stack(images)).split(1))
        else:
            maps.extend(give(image[None]) for image in images)
    return maps


def rule_of(network: nn.Module, rule: str | None) -> MaskRule:
    """Give the rule by which a trained network's output becomes a mask.

    Args:
        network: a trained network.
        rule: the rule for class maps; segmentations have none.
    """
    of_network = MaskRule.of(network)
    return of_network if of_network.output_kind == "segmentation" else replace(of_network, rule=rule)
