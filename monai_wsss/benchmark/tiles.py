# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Prepared photographs and X-rays: tiles with and without the finding to train on, whole images to measure.

Classifiers learn from tiles.  Segmenters learn from random crops of whole images, whose masks or pseudo-masks are whole
as well: a threshold per image, such as Otsu's, means nothing in a tile that may lack the finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    ScaleIntensityd,
    ShiftIntensityd,
    SpatialPadd,
)
from torch import nn
from torch.utils.data import Sampler

from monai_wsss._checks import DataError, check_choice
from monai_wsss._labels import IGNORED
from monai_wsss.benchmark.prepared import Cases, PreparedData, maps_of
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.data import EpochCacheDataset, LabelBalancedSampler, load_datalist
from monai_wsss.data.crops import presence_pixels
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer
from monai_wsss.metrics import CaseTable
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd

__all__ = ["Tiles"]

_SCALES = (0.5, 1.0)
_STANDARD = (150.0, 50.0)  # mean and standard deviation of standardized channels, in gray levels
_JITTER = 0.15  # of the intensity, as a factor and as a share of the largest gray level


class Tiles(PreparedData):
    """Tiles of one size with image-level tags, beside the whole images that they were cut from.

    Args:
        datalist: path of the prepared ``datalist.json``, written with ``--tiles``.
        split: where to measure.
        samples: tiles per epoch, drawn so that labels are balanced.
        crop: side of the crops of whole images that segmenters learn from, in pixels.
        scales: scales of a whole image over which its maps are averaged.
        colors: ``"as_they_are"``, or ``"standardized"``: each channel of an image, and so of its tiles, gets the mean
            150 and the standard deviation 50, by the statistics of the whole image.
        several_classes: whether the table is for any number of classes.

    Raises:
        ValueError: another choice of colors.
    """

    runtime_cache = True

    def __init__(
        self,
        datalist: Path,
        split: str = "validation",
        samples: int = 480,
        crop: int = 160,
        scales: Sequence[float] = _SCALES,
        colors: str = "as_they_are",
        several_classes: bool = False,
    ) -> None:
        super().__init__(datalist, split)
        self.several_classes = several_classes
        check_choice("colors", colors, ("as_they_are", "standardized"))
        self.colors = colors
        self.samples = samples
        self.crop = crop
        self.scales = tuple(scales)
        self._read: dict[str, Cases] = {}

    def check(self) -> None:
        """Refuse tiles to train on or to measure that all show or all lack a class, and several where one is meant.

        Raises:
            DataError: the table cannot be made of this data.
        """
        self.check_classes()
        if self.split == "training":
            raise DataError("Tiles are measured on images that they were not cut from: choose another `split`.")
        labels = [np.asarray(tile["label"]) > 0 for tile in load_datalist(self.datalist, f"{self.split}_tiles")]
        classes = self.header["classes"]
        for number, name in enumerate(classes):
            if {bool(label[number]) for label in labels} != {True, False}:
                raise DataError(
                    f"The tiles of the split {self.split} of {self.datalist} must be with and without "
                    f"{'the finding' if len(classes) == 1 else name}, since presence is measured on them: cut more "
                    "tiles, or choose another `split`."
                )

    def topk_pixels(self, share: float) -> int | None:
        """Tell how many pixels of a whole image decide on a class, see :func:`~monai_wsss.data.crops.presence_pixels`.

        Args:
            share: of the pixels of a tile that the pooling averages.
        """
        return presence_pixels(self.header, share)

    @property
    def in_regions(self) -> bool:
        """Tell whether findings are looked for in regions alone; images without one are left out then."""
        return self.header["tiles"].get("region") is not None

    @property
    def settings(self) -> dict[str, Any]:
        """Tell what of the data decides the weights, for JSON."""
        colors = {} if self.colors == "as_they_are" else {"colors": self.colors}
        return {**super().settings, "samples": self.samples, "crop": self.crop, **colors}

    @property
    def unusual(self) -> dict[str, Any]:
        """Tell the scales of the maps, where they are not the default, for JSON."""
        return {} if self.scales == _SCALES else {"scales": list(self.scales)}

    def items(self, recipe: Recipe, seed: int, *, masks: bool = False) -> Cases:
        """Give the training tiles, or the whole training images to a recipe that learns masks or pseudo-masks."""
        if not masks and recipe.teacher is None:
            return load_datalist(self.datalist, "training")
        if not masks:
            return [
                {key: value for key, value in item.items() if key != "region"} for item in self.pseudo_items(recipe, 0)
            ]
        return [item for item in load_datalist(self.datalist, "training_images", masks=True) if "mask" in item]

    def pseudo_items(self, recipe: Recipe, seed: int) -> Cases:
        """Give the whole training images, with their regions: they get the pseudo-masks."""
        items = load_datalist(self.datalist, "training_images", regions=True)
        return [item for item in items if "region" in item or not self.in_regions]

    def reading(self, keys: Sequence[str]) -> list[Any]:
        """Give the transforms that read images, 0 to 255 or standardized; a mask may be missing."""
        return [
            LoadImageOrderedd(keys, allow_missing_keys=True),
            *(_standardizing() if self.colors != "as_they_are" else []),
        ]

    def sampler(self, items: Cases, dataset: EpochCacheDataset, recipe: Recipe, seed: int) -> Sampler:
        """Draw tiles so that labels are balanced; whole images in random order."""
        if "source" in items[0]:
            return LabelBalancedSampler(items, self.samples, seed=seed)
        return super().sampler(items, dataset, recipe, seed)

    def augmentation(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give the transforms of :meth:`geometry` and :meth:`jitter`."""
        return [*self.geometry(keys, recipe), *self.jitter()]

    def geometry(self, keys: Sequence[str], recipe: Recipe) -> list[Any]:
        """Give quarter turns and flips; crops of whole images, which come with their masks, come first."""
        size = (self.crop, self.crop)
        crops: list[Any] = []
        if len(keys) > 1:
            fill = [SpatialPadd(key, size, value=0 if key == "image" else IGNORED) for key in keys]
            crops = [*fill, RandSpatialCropd(keys, size, random_size=False)]
        return [*crops, *super().augmentation(keys, recipe)]

    def jitter(self) -> list[Any]:
        """Give a change of gain and offset, which may leave 0 to 255."""
        return [
            RandScaleIntensityd("image", _JITTER, prob=1.0),
            RandShiftIntensityd("image", 255 * _JITTER, prob=1.0),
        ]

    def inferer(self) -> VolumeInferer:
        """Give the inferer of whole images."""
        return VolumeInferer(2, scales=self.scales, slice_batch=1)

    def write_pseudo_masks(self, network: nn.Module, weights: Path, items: Cases, folder: Path, **words: Any) -> None:
        """Write the pseudo-masks of whole training images; finished ones are kept."""
        reading = Compose(self.reading(["image", "region"]))
        PseudoMaskWriter(network, weights, items, reading, self.inferer(), folder, **words).run()

    def cases(self, split: str | None = None) -> Cases:
        """Read the cases of a split once, the table's own by default."""
        name = split or self.split
        if name not in self._read:
            items = load_datalist(self.datalist, name, masks=True, regions=True)
            items = [item for item in items if "region" in item or not self.in_regions]
            reading = Compose(self.reading(["image", "mask", "region"]))
            self._read[name] = list(CacheDataset(items, reading, progress=False))
        return self._read[name]

    def whole_maps(self, recipe: Recipe | None, network: nn.Module | None) -> tuple[Cases, list[torch.Tensor]]:
        """Read the cases, and give the maps of each, averaged over the scales."""
        cases = self.cases()
        return cases, [] if network is None else self.case_maps(recipe, network, cases)

    def case_maps(self, recipe: Recipe | None, network: nn.Module, cases: Cases) -> list[torch.Tensor]:
        """Give the maps of some cases, averaged over the scales."""
        return maps_of(cases, partial(self.inferer(), network=network))

    def presence(self, network: Any) -> dict[str, dict[str, Any]]:
        """Measure presence on the tiles of the measured split, from their tags alone.

        Returns:
            ``tile_auroc``, and ``tile_clean``, the share of negative tiles in which no finding is predicted.  Of
            several classes also ``tile_auroc/<class>``, and ``tile_auroc`` is their mean.
        """
        name = f"{self.split}_tiles"
        table = CaseTable(self.header["classes"])
        tiles = CacheDataset(load_datalist(self.datalist, name), Compose(self.reading(["image"])), progress=False)
        for tile, logit in zip(tiles, _logits(tiles, network), strict=True):
            empty = torch.zeros(1, *tile["image"].shape[1:], dtype=torch.uint8)
            found = (empty + (logit > 0).any()).to(torch.uint8)
            reference = empty if not tile["label"].any() else None
            table.add(
                id=tile["id"], subject=tile["subject"], label=torch.as_tensor(tile["label"]), prediction=found,
                reference=reference, presence=logit,
            )  # fmt: skip
        summary = table.summary()
        areas = {name: entry for name, entry in summary.items() if name.split("/")[0] == "presence_auroc"}
        told = {name.replace("presence_auroc", "tile_auroc", 1): entry for name, entry in areas.items()}
        return {**told, "tile_clean": summary["healthy_clean"]}


def _standardizing() -> list[Any]:
    """Give the transforms to a common mean and standard deviation of each channel, in gray levels."""
    mean, std = _STANDARD
    return [
        NormalizeSubjectd("image", foreground="tissue"),
        ScaleIntensityd("image", minv=None, maxv=None, factor=std - 1),
        ShiftIntensityd("image", mean),
    ]


@torch.no_grad()
def _logits(tiles: Sequence[dict[str, Any]], network: Any) -> Iterator[torch.Tensor]:
    """Give the image-level logits (K,) of tiles of one size, 64 at a time."""
    for start in range(0, len(tiles), 64):
        images = torch.stack([torch.as_tensor(tiles[n]["image"]) for n in range(start, min(start + 64, len(tiles)))])
        yield from network.pool(network(images.float()))
