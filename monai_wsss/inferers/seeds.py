# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Seeds and segmentation of a two-branch network, over scales: pseudo-labels grow from them.

    C'   = scale( sum_s ReLU(max(C_s, C_s^f)) )  `MinMax`                                  Zhu et al., BMP, Sec. IV-A
    C'   = scale( mean_s max(C_s, C_s^f) )       `AboveHealthyLevel`; both 0 for classes that the image does not hold
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
        self.register_load_state_dict_post_hook(_look_again)

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Scale raw seeds: ``(B, K, *S) -> (B, K, *S)`` in [0, 1]."""
        # Read from the device until it is so, then never again.
        self._filled = self._filled or bool(self.level.filled.all())
        if not self._filled:
            raise ValueError(
                "Expected training images without each class before labels are made, which `seed_scale='reference'` "
                "needs: take 'minmax', or for weights read from a file call `measure_negative_reference` first."
            )
        return above_level(seeds, self.level.value)

    @torch.no_grad()
    def follow(self, maps: torch.Tensor | None, images: LabeledImages) -> None:
        """Update the level by the medians of raw maps (B, K, *S) in the images without the class, padding left out.

        Every process of a distributed run has to call this in each step, with None where it has no such image.
        """
        if maps is None:
            medians = torch.full_like(self.level.value, torch.nan)
        else:
            counted = (images.label == 0).reshape(*images.label.shape, *[1] * (maps.ndim - 2))
            if images.padding is not None:
                counted = counted & ~images.padding[:, None]
            medians = maps.masked_fill(~counted, torch.nan).transpose(0, 1).flatten(1).nanmedian(1).values
        known = ~medians.isnan()
        self.level.update(medians.masked_fill(~known, 0), known)

    def set_level(self, level: torch.Tensor) -> None:
        """Take a measured level (K,), e.g. of all training images; NaN where it was not measured."""
        filled = level.isfinite()
        self.level.value.copy_(level.masked_fill(~filled, 0))
        self.level.filled.copy_(filled)
        self._filled = False


def _look_again(scale: AboveHealthyLevel, *_: object) -> None:
    scale._filled = False


class MultiScaleSeeds(nn.Module):
    """Make C' and S' of a batch, without gradient: any number of seeds and of logits in one pass per scale.

    Args:
        scale: brings raw seeds to [0, 1], and says by ``join`` how the mirror image joins them.
        scales: factors of the image's size.
        seeds: which outputs of ``network.branches`` are seeds; CoSA has ``auxiliary_seeds``, too.
        logits: which are logits, of which the mean is taken.

    Raises:
        ValueError: no positive scale.

    Example:
        >>> from monai_wsss.networks import TwoBranchNetwork
        >>> images = LabeledImages(torch.rand(2, 1, 16, 16), torch.tensor([[0.0], [1.0]]))
        >>> seeds, segmentation = MultiScaleSeeds(MinMax())(TwoBranchNetwork.tiny().eval(), images)
        >>> seeds.shape, segmentation.shape, seeds[0].any().item()
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 2, 16, 16]), False)
    """

    def __init__(
        self,
        scale: MinMax | AboveHealthyLevel,
        scales: Sequence[float] = (1.0, 0.5, 1.5),
        *,
        seeds: Sequence[str] = ("seeds",),
        logits: Sequence[str] = ("segmentation",),
    ) -> None:
        super().__init__()
        check_scales(scales)
        self.scale = scale
        self.scales = tuple(scales)
        self.seeds = tuple(seeds)
        self.logits = tuple(logits)

    @torch.no_grad()
    def forward(self, network: TwoBranches, images: LabeledImages) -> tuple[torch.Tensor, ...]:
        """Give the seeds (B, K, *S) in [0, 1], then the logits (B, K + 1, *S), in the order of their names.

        Args:
            network: in evaluation mode; in training mode its dropout acts and its batch statistics change.
            images: with their labels.
        """

        def maps(image: torch.Tensor) -> list[torch.Tensor]:
            outputs = network.branches(image)
            return [getattr(outputs, name) for name in (*self.seeds, *self.logits)]

        join = str(self.scale.join)
        joins = [join] * len(self.seeds) + ["average"] * len(self.logits)
        sums = sum_over_scales(maps, images.image, joins, self.scales)
        present = images.label.reshape(*images.label.shape, *[1] * (images.image.ndim - 2))
        count = len(self.scales)
        # A sum is as good as a mean where its own extremes scale it.
        of_scales = 1 if join == "rectified" else count
        seeds = [self.scale(total / of_scales) * present for total in sums[: len(self.seeds)]]
        return *seeds, *(total / count for total in sums[len(self.seeds) :])
