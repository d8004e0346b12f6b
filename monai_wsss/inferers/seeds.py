# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Seeds and segmentation of a two-branch network, over scales: pseudo-labels grow from them.

    C'   = scale( sum_s ReLU(max(C_s, C_s^f)) )  `MinMax`                                  Zhu et al., BMP, Sec. IV-A
    C'   = scale( mean_s max(C_s, C_s^f) )       `AboveHealthyLevel`; both 0 for classes that the image does not hold
    S'   = mean_s (S_s + S_s^f) / 2, or the sum over s of S_s + S_s^f

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

from monai_wsss._checks import check_choice
from monai_wsss._running import RunningMean
from monai_wsss.cams.normalize import above_level, between_extremes
from monai_wsss.inferers.multi_scale import check_scales, join_mirrored, sum_over_scales
from monai_wsss.refinement import LabeledImages

__all__ = ["AboveHealthyLevel", "MinMax", "MultiScaleSeeds"]


class TwoBranches(Protocol):
    """A network that gives ``seeds`` and ``segmentation``, e.g. :class:`~monai_wsss.networks.TwoBranchNetwork`."""

    def branches(self, image: torch.Tensor, *, upsample: bool = True) -> BranchMaps:
        """Give seeds and segmentation of images (B, C, *S), at their size or at the sizes of the network's levels."""
        ...


class BranchMaps(Protocol):
    """Seeds (B, K, *S) and segmentation logits (B, K + 1, *S)."""

    @property
    def seeds(self) -> torch.Tensor:
        """Give the class maps."""
        ...

    @property
    def segmentation(self) -> torch.Tensor:
        """Give the logits."""
        ...


class MinMax(nn.Module):
    """Scale rectified seeds per image and class from their lowest to their highest value.

    Args:
        min_peak: least height of a peak above the lowest value, in units of the raw seeds, that is scaled to 1; lower
            peaks stay lower.  A random crop often lacks the object that its image holds; without this bound its
            strongest pixel would be a certain object (CoSA: 0, no bound).

    Raises:
        ValueError: a negative bound.

    Example:
        >>> MinMax()(torch.tensor([[[[-1.0, 1.0, 2.0]]]])).round(decimals=2).flatten().tolist()
        [0.0, 0.5, 1.0]
    """

    join: str = "rectified"

    def __init__(self, min_peak: float = 0.0) -> None:
        super().__init__()
        if not min_peak >= 0:
            raise ValueError(f"Expected `min_peak` >= 0, got {min_peak}.")
        self.min_peak = min_peak

    @property
    def of_sum(self) -> bool:
        """Tell whether a sum over scales gives what their mean does: a bound of the peak makes the difference."""
        return not self.min_peak

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Scale raw seeds: ``(B, K, *S) -> (B, K, *S)`` in [0, 1]."""
        return between_extremes(F.relu(seeds), least=self.min_peak)


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
    of_sum: bool = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.level = RunningMean(num_classes, momentum=0.9)
        self._filled = False
        self.register_load_state_dict_post_hook(_look_again)

    @property
    def ready(self) -> bool:
        """Tell whether every class has a level: read from the device until it is so, then never again."""
        self._filled = self._filled or bool(self.level.filled.all())
        return self._filled

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Scale raw seeds: ``(B, K, *S) -> (B, K, *S)`` in [0, 1]."""
        if not self.ready:
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
        auxiliary_scale: does so for all seeds but the first; None: ``scale`` does.
        seeds: which outputs of ``network.branches`` are seeds; CoSA has ``auxiliary_seeds``, too.
        logits: which are logits.
        aux_scales: of which scales auxiliary seeds are made: ``"all"``, or ``"last"``, as in the released code of CoSA.
        sum_logits: give the sum of the logits over all 2 s passes (CoSA) instead of their mean.
        upsample: whether the network brings its maps to the size of the scaled image before they are brought to that of
            the image (BMP); False: it does not (CoSA).

    Raises:
        ValueError: no positive scale, an unknown choice, seeds of two kinds that would share a healthy level, or
            seeds that are joined in different ways; a network that does not give one of the outputs.

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
        auxiliary_scale: MinMax | AboveHealthyLevel | None = None,
        seeds: Sequence[str] = ("seeds",),
        logits: Sequence[str] = ("segmentation",),
        aux_scales: str = "all",
        sum_logits: bool = False,
        upsample: bool = True,
    ) -> None:
        super().__init__()
        check_scales(scales)
        check_choice("aux_scales", aux_scales, ("all", "last"))
        if auxiliary_scale is None and len(seeds) > 1 and isinstance(scale, AboveHealthyLevel):
            raise ValueError("Expected an `auxiliary_scale`: each kind of seeds has a healthy level of its own.")
        if auxiliary_scale is not None and auxiliary_scale.join != scale.join:
            raise ValueError(
                f"Expected an `auxiliary_scale` of the kind of `scale`, got {type(auxiliary_scale).__name__} and "
                f"{type(scale).__name__}."
            )
        self.scale = scale
        self.auxiliary_scale = auxiliary_scale
        self.scales = tuple(scales)
        self.seeds = tuple(seeds)
        self.logits = tuple(logits)
        self.aux_scales = aux_scales
        self.sum_logits = sum_logits
        self.upsample = upsample

    def scale_of(self, name: str) -> MinMax | AboveHealthyLevel:
        """Give what scales a kind of seeds."""
        return self.scale if self.auxiliary_scale is None or name == self.seeds[0] else self.auxiliary_scale

    @property
    def healthy_levels(self) -> dict[str, AboveHealthyLevel]:
        """Give the scales that follow a healthy level, by the kind of their seeds."""
        scales = {name: self.scale_of(name) for name in self.seeds}
        return {name: scale for name, scale in scales.items() if isinstance(scale, AboveHealthyLevel)}

    @property
    def ready(self) -> bool:
        """Tell whether every healthy level is known; a GPU is waited for until it is so, then never again."""
        return all(scale.ready for scale in self.healthy_levels.values())

    @torch.no_grad()
    def forward(self, network: TwoBranches, images: LabeledImages) -> tuple[torch.Tensor, ...]:
        """Give the seeds (B, K, *S) in [0, 1], then the logits (B, K + 1, *S), in the order of their names.

        Args:
            network: in evaluation mode; in training mode its dropout acts and its batch statistics change.
            images: with their labels.
        """
        size = images.image.shape[2:]
        last = [name for name in self.seeds if self.aux_scales == "last" and name.startswith("auxiliary")]
        every = [name for name in (*self.seeds, *self.logits) if name not in last]
        kept: dict[str, torch.Tensor] = {}

        def maps(image: torch.Tensor) -> list[torch.Tensor]:
            outputs = network.branches(image) if self.upsample else network.branches(image, upsample=False)
            kept.update(zip(last, _named(outputs, last), strict=True))
            return _named(outputs, every)

        join, count = str(self.scale.join), len(self.scales)
        sums = sum_over_scales(
            maps, images.image, [join if name in self.seeds else "average" for name in every], self.scales
        )
        totals = dict(zip(every, sums, strict=True))
        counts = dict.fromkeys(every, count) | dict.fromkeys(last, 1)
        totals |= {name: join_mirrored(maps, join, size) for name, maps in kept.items()}
        present = images.label.reshape(*images.label.shape, *[1] * len(size))
        seeds = ((name, totals[name] / (1 if self.scale_of(name).of_sum else counts[name])) for name in self.seeds)
        logits = (totals[name] * 2 if self.sum_logits else totals[name] / count for name in self.logits)
        return *(self.scale_of(name)(maps) * present for name, maps in seeds), *logits

    @torch.no_grad()
    def of_found(self, network: TwoBranches, images: LabeledImages) -> tuple[torch.Tensor, ...]:
        """Give what :meth:`forward` gives, with zeros for healthy images, which the network does not have to see."""
        found, classes = images.with_findings, images.label.shape[1]
        if len(found) == len(images):
            return self(network, images)
        size, dtype = images.image.shape[2:], torch.promote_types(images.image.dtype, torch.float32)
        channels = [classes] * len(self.seeds) + [classes + 1] * len(self.logits)
        wholes = tuple(images.image.new_zeros((len(images), each, *size), dtype=dtype) for each in channels)
        if found:
            for whole, part in zip(wholes, self(network, images.of(found)), strict=True):
                whole[images.index(found)] = part.to(dtype)
        return wholes


def _named(outputs: BranchMaps, names: Sequence[str]) -> list[torch.Tensor]:
    """Give outputs of a network by name."""
    lacking = [name for name in names if getattr(outputs, name, None) is None]
    if lacking:
        raise ValueError(
            f"Expected a network whose branches give {', '.join(names)}, it lacks {', '.join(lacking)}: build it with "
            "such a classifier."
        )
    return [getattr(outputs, name) for name in names]
