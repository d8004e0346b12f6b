# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Seeds and segmentation of a two-branch network, over scales: pseudo-labels grow from them.

    C'   = scale( sum_s max(C_s, C_s^f) ), 0 for classes that the image does not hold      Zhu et al., BMP, Sec. IV-A
    S'   = mean_s (S_s + S_s^f) / 2

| ``scale``           | C' = 0 at                             | C' = 1 at        | for                              |
|---------------------|---------------------------------------|------------------|----------------------------------|
| `MinMax`            | the lowest rectified seed             | the image's peak | pretrained encoders (the papers) |
| `AboveHealthyLevel` | the level of images without the class | the image's peak | networks trained from scratch    |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._running import RunningMean
from monai_wsss.cams.normalize import above_level, between_extremes
from monai_wsss.inferers.multi_scale import check_scales, sum_over_scales
from monai_wsss.refinement import LabeledImages

__all__ = ["AboveHealthyLevel", "MinMax", "MultiScaleSeeds"]


class TwoBranches(Protocol):
    """A network that gives ``seeds`` and ``segmentation``, e.g. :class:`~monai_wsss.networks.TwoBranchNetwork`."""

    def branches(self, image: torch.Tensor) -> BranchMaps:
        """Give seeds and segmentation of images (B, C, *S)."""
        ...


class BranchMaps(Protocol):
    """Seeds (B, K, *S) and segmentation logits (B, K + 1, *S)."""

    seeds: torch.Tensor
    segmentation: torch.Tensor


class MinMax(nn.Module):
    """Scale rectified seeds per image and class from their lowest to their highest value.

    Example:
        >>> MinMax()(torch.tensor([[[[-1.0, 1.0, 2.0]]]])).round(decimals=2).flatten().tolist()
        [0.0, 0.5, 1.0]
    """

    join: str = "rectified"

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Scale raw seeds: ``(B, K, *S) -> (B, K, *S)`` in [0, 1]."""
        return between_extremes(F.relu(seeds))


class AboveHealthyLevel(nn.Module):
    """Scale seeds from the level of images without the class to the image's peak; training follows that level.

    Args:
        num_classes: K.

    Attributes:
        level: the moving average of each class's median response in images of a batch that do not hold it.

    Raises:
        ValueError: when called before every class has a level.

    Example:
        >>> scale = AboveHealthyLevel(1)
        >>> scale.follow(torch.full((1, 1, 2, 2), -3.0), LabeledImages(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1)))
        >>> scale(torch.tensor([[[[-5.0, -1.0, 1.0]]]])).flatten().tolist()
        [0.0, 0.5, 1.0]
    """

    join: str = "strongest"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.level = RunningMean(num_classes, momentum=0.9)
        self._filled = False

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Scale raw seeds: ``(B, K, *S) -> (B, K, *S)`` in [0, 1]."""
        # Read from the device until every class has a level, then never again.
        self._filled = self._filled or bool(self.level.filled.all())
        if not self._filled:
            raise ValueError(
                "Expected training images without each class before labels are made, which `seed_scale='reference'` "
                "needs: take 'minmax', or for weights read from a file call `measure_negative_reference` first."
            )
        return above_level(seeds, self.level.value)

    @torch.no_grad()
    def follow(self, maps: torch.Tensor, images: LabeledImages) -> None:
        """Update the level by the medians of raw maps (B, K, *S) over images without the class, padding left out."""
        spatial = [1] * (maps.ndim - 2)
        counted = (images.label == 0).reshape(*images.label.shape, *spatial)
        if images.padding is not None:
            counted = counted & ~images.padding[:, None]
        responses = maps.masked_fill(~counted, torch.nan).transpose(0, 1).flatten(1)
        medians = responses.nanmedian(1).values
        known = ~medians.isnan()
        self.level.update(medians.masked_fill(~known, 0), known)

    def set_level(self, level: torch.Tensor) -> None:
        """Set the level (K,) to measured values, e.g. of all training images."""
        self.level.value.copy_(level)
        self.level.filled.fill_(True)


class MultiScaleSeeds(nn.Module):
    """Make C' and S' of a batch, without gradient.

    Args:
        scale: brings raw seeds to [0, 1]; its ``join`` says how the maps of an image and its mirror image are joined.
        scales: factors of the image's size.

    Raises:
        ValueError: no positive scale.

    Example:
        >>> from monai_wsss.networks import TwoBranchNetwork
        >>> images = LabeledImages(torch.rand(2, 1, 16, 16), torch.tensor([[0.0], [1.0]]))
        >>> seeds, segmentation = MultiScaleSeeds(MinMax())(TwoBranchNetwork.tiny().eval(), images)
        >>> seeds.shape, segmentation.shape, seeds[0].any().item()
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 2, 16, 16]), False)
    """

    def __init__(self, scale: MinMax | AboveHealthyLevel, scales: Sequence[float] = (1.0, 0.5, 1.5)) -> None:
        super().__init__()
        check_scales(scales)
        self.scale = scale
        self.scales = tuple(scales)

    @torch.no_grad()
    def forward(self, network: TwoBranches, images: LabeledImages) -> tuple[torch.Tensor, torch.Tensor]:
        """Give seeds (B, K, *S) in [0, 1] and segmentation logits (B, K + 1, *S)."""

        def maps(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            outputs = network.branches(image)
            return outputs.seeds, outputs.segmentation

        seeds, segmentation = sum_over_scales(maps, images.image, (self.scale.join, "average"), self.scales)
        present = images.label.reshape(*images.label.shape, *[1] * (seeds.ndim - 2))
        # Seeds that are scaled by their own extremes may stay a sum: the mean would give the same.
        if self.scale.join != "rectified":
            seeds = seeds / len(self.scales)
        return self.scale(seeds) * present, segmentation / len(self.scales)
