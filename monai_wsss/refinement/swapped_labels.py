# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Makers of the labels that CoSA swaps between its branches: parts of a method.

| maker                | makes                                            | of                 | in              |
|----------------------|--------------------------------------------------|--------------------|-----------------|
| `ThresholdLabels`    | Y^CPL by one threshold, and its perplexity       | M', or M†'         | the paper       |
| `TwoThresholdLabels` | Y^CPL by two thresholds, between which is 255    | M', or M†'         | released code   |
| `SegmentationLabels` | Y^SPL                                            | S'                 | both            |
| `NoiseLabels`        | random masks of the classes that an image holds  | nothing            | Fig. 1, control |

Yang et al., CoSA (ECCV 2024): Eq. 3, 4, 6 and 7.  The first two are called with ``(images, maps)``, maps (B, K, *s) in
[0, 1] at any size, and give a :class:`ClassLabels`; the others with ``(images, logits)``, (B, K + 1, *S), and give
probabilities of that shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from monai_wsss._labels import IGNORED
from monai_wsss._resize import resize_nearest
from monai_wsss.refinement.assigned_labels import (
    class_assignment,
    perplexity,
    segmentation_assignment,
    two_threshold_label,
)
from monai_wsss.refinement.dynamic_threshold import DynamicThreshold
from monai_wsss.refinement.labeled_images import LabeledImages

__all__ = ["ClassLabels", "NoiseLabels", "SegmentationLabels", "ThresholdLabels", "TwoThresholdLabels"]


class ClassLabels(NamedTuple):
    """Labels of class maps.

    Attributes:
        label: (B, *s) int64: 0, 1..K or ``IGNORED``.
        perplexity: (B, *s), how doubtful each label is; None where the maker does not tell.
    """

    label: torch.Tensor
    perplexity: torch.Tensor | None


class ThresholdLabels(nn.Module):
    """Label class maps by one threshold, which may follow them, and tell the perplexity of each label.

    Args:
        threshold: gives xi.
        scale: lambda_a of the perplexity, see :func:`~monai_wsss.refinement.perplexity`.
        power: lambda_b.
        epsilon: greatest perplexity of a sure label.

    Raises:
        ValueError: a scale or a power out of range, or an ``epsilon`` below every perplexity.

    Example:
        >>> from monai_wsss.refinement import DynamicThreshold
        >>> images = LabeledImages(torch.zeros(1, 1, 1, 3), torch.ones(1, 1))
        >>> maker = ThresholdLabels(DynamicThreshold(0.5))
        >>> maker(images, torch.tensor([[[[0.0, 0.4, 0.9]]]])).label.tolist()
        [[[0, 0, 1]]]
    """

    def __init__(
        self, threshold: DynamicThreshold, *, scale: float = 0.8, power: float = 1.0, epsilon: float = 1.0
    ) -> None:
        super().__init__()
        # Refuses what is out of range.
        lowest = perplexity(torch.zeros(1, device="cpu"), 0.5, scale=scale, power=power).item()
        if not epsilon >= lowest:
            raise ValueError(
                f"Expected `epsilon` of at least {lowest:.2g}, the perplexity of the clearest label, got {epsilon}: no "
                "label would be sure."
            )
        self.threshold = threshold
        self.scale = scale
        self.power = power
        self.epsilon = epsilon

    def follow(self, images: LabeledImages, maps: torch.Tensor) -> None:
        """Let the threshold follow maps (B, K, *s) of a training step; every process of a run has to call it."""
        if self.training:
            _follow(self.threshold, images, maps)

    def forward(self, images: LabeledImages, maps: torch.Tensor) -> ClassLabels:
        """Make Y^CPL and P, see the table of this file."""
        threshold = self.threshold()
        label, strength = class_assignment(maps, threshold, padding=_padding(images, maps))
        return ClassLabels(label, perplexity(strength, threshold, scale=self.scale, power=self.power))

    def sure(self, images: LabeledImages, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make Y^CPL (B, *s), and bool (B, *s): the pixels outside of padding whose P is at most ``epsilon``."""
        label, doubt = self(images, maps)
        assert doubt is not None
        return label, (doubt <= self.epsilon) & (label != IGNORED)

    def mask(self, images: LabeledImages, maps: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        """Label every pixel: (B, *s), 0..K."""
        return class_assignment(maps, self.threshold())[0]


class TwoThresholdLabels(nn.Module):
    """Label class maps by two thresholds, and leave out what lies between them.

    Args:
        low: see :func:`~monai_wsss.refinement.two_threshold_label`.
        high: see there.
        downscale: see there.
        threshold: gives (low, high) instead, and follows the maps; of the kind ``"three_components"``.

    Raises:
        ValueError: thresholds that are not 0 <= ``low`` <= ``high`` <= 1, a factor below 1, or a threshold of another
            kind.

    Example:
        >>> images = LabeledImages(torch.zeros(1, 1, 1, 3), torch.ones(1, 1))
        >>> TwoThresholdLabels(downscale=1)(images, torch.tensor([[[[0.0, 0.4, 0.9]]]])).label.tolist()
        [[[0, 255, 1]]]
    """

    def __init__(
        self,
        *,
        low: float = 0.25,
        high: float = 0.7,
        downscale: float = 2.0,
        threshold: DynamicThreshold | None = None,
    ) -> None:
        super().__init__()
        if threshold is not None and threshold.kind != "three_components":
            raise ValueError(f"Expected a `threshold` of the kind 'three_components', got {threshold.kind!r}.")
        # Refuses what does not fit.
        pixel = torch.zeros(1, 1, 1, 1, device="cpu")
        two_threshold_label(pixel, pixel[..., 0, 0], low=low, high=high, downscale=downscale)
        self.low = low
        self.high = high
        self.downscale = downscale
        self.threshold = threshold

    def follow(self, images: LabeledImages, maps: torch.Tensor) -> None:
        """Let thresholds that are not fixed follow maps (B, K, *s), as :meth:`ThresholdLabels.follow` does."""
        if self.threshold is not None and self.training:
            _follow(self.threshold, images, maps)

    def _limits(self) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        return (self.low, self.high) if self.threshold is None else tuple(self.threshold().unbind())

    def forward(self, images: LabeledImages, maps: torch.Tensor) -> ClassLabels:
        """Make Y^CPL, see the table of this file."""
        low, high = self._limits()
        assigned = two_threshold_label(
            maps,
            images.label,
            low=low,
            high=high,
            downscale=self.downscale,
            classes=images.classes,
            padding=_padding(images, maps),
        )
        return ClassLabels(assigned, None)

    def sure(self, images: LabeledImages, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make Y^CPL (B, *s), and bool (B, *s): the pixels that it labels."""
        label, _ = self(images, maps)
        return label, label != IGNORED

    def mask(self, images: LabeledImages, maps: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        """Label every pixel, by the middle between the thresholds: (B, *s), 0..K."""
        low, high = self._limits()
        return class_assignment(maps, (low + high) / 2)[0]


class SegmentationLabels(nn.Module):
    """Sharpen the segmentation over the classes that each image holds: Y^SPL of Eq. 7.

    Args:
        temperature: tau > 0.

    Raises:
        ValueError: a temperature that is not positive.

    Example:
        >>> images = LabeledImages(torch.zeros(1, 1, 1, 2), torch.ones(1, 1))
        >>> SegmentationLabels(0.01)(images, torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]]))[:, 1].round().tolist()
        [[[1.0, 0.0]]]
    """

    def __init__(self, temperature: float = 0.01) -> None:
        super().__init__()
        # Refuses what does not fit.
        segmentation_assignment(torch.zeros(1, 2, 1, 1, device="cpu"), temperature=temperature)
        self.temperature = temperature

    def forward(self, images: LabeledImages, logits: torch.Tensor) -> torch.Tensor:
        """Give the probabilities, see the table of this file."""
        return segmentation_assignment(logits, images.label, self.temperature)


class NoiseLabels(SegmentationLabels):
    """Draw a random mask of the classes that each image holds, as the paper's control "guided with random noise".

    Args:
        temperature: tau > 0.
    """

    def forward(self, images: LabeledImages, logits: torch.Tensor) -> torch.Tensor:
        """Give the probabilities; of ``logits`` the shape alone counts."""
        return super().forward(images, torch.rand_like(logits))


def _follow(threshold: DynamicThreshold, images: LabeledImages, maps: torch.Tensor) -> None:
    padding = _padding(images, maps)
    threshold.update(maps.amax(1), images.found, valid=None if padding is None else ~padding)


def _padding(images: LabeledImages, maps: torch.Tensor) -> torch.Tensor | None:
    """Mark the padding at the size of maps (B, K, *s)."""
    padding = images.padding
    if padding is None or padding.shape[1:] == maps.shape[2:]:
        return padding
    return resize_nearest(padding[:, None], maps.shape[2:])[:, 0]
