# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Makers of Y^c, the labels that the classification branch gives to the segmentation branch: parts of a method.

| maker              | the background is           | spread by            | papers |
|--------------------|-----------------------------|----------------------|--------|
| `ConstantScores`   | two constant scores         | refinement           | AFA    |
| `LearnedAffinity`  | two constant scores         | affinity, refinement | AFA    |
| `BackgroundAware`  | the segmenter's background  | refinement           | BMP    |
|                    | or one constant score       |                      |        |

A method calls ``maker(images, seeds, segmentation, pairs)``, without gradient:

- ``images``: :class:`~monai_wsss.refinement.LabeledImages`
- ``seeds``: C' (B, K, *S) in [0, 1], zero for classes that the image does not hold
- ``segmentation``: logits (B, K + 1, *S) of the segmentation branch, background first
- ``pairs``: a function from images (B, C, *S) to the affinity of their tokens and the grid of the tokens; only
  `LearnedAffinity` needs it

and gets the label (B, *S): 0, 1..K or ``IGNORED``.  ``maker.mask`` gives a label without ignored pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss._windows import check_radius
from monai_wsss.cams.normalize import between_extremes
from monai_wsss.refinement.confident_labels import where_confident
from monai_wsss.refinement.labeled_images import LabeledImages
from monai_wsss.refinement.spreading import Refine, SpreadRule, affinity_label, background_scores, constant_label

__all__ = ["BackgroundAware", "ConstantScores", "LearnedAffinity"]

Pairs = Callable[[torch.Tensor], tuple[torch.Tensor, Sequence[int]]]


class ConstantScores(nn.Module):
    """Label pixels where two constant background scores agree, after refinement along the image (AFA).

    Args:
        refine: ``(image, maps) -> maps`` at the image's size.
        low: background score that lets seeds through.
        high: background score that holds them back.
        downscale: factor by which images shrink for the refinement.

    Raises:
        ValueError: scores that are not 0 <= ``low`` <= ``high`` <= 1, or a factor below 1.

    Example:
        >>> from monai_wsss.refinement import LabeledImages, PixelAdaptiveRefinement
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> image[..., 4:] = 1
        >>> maker = ConstantScores(PixelAdaptiveRefinement(dilations=(1, 2)))
        >>> maker(LabeledImages(image, torch.ones(1, 1)), image, torch.zeros(1, 2, 8, 8))[0, 0].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """

    def __init__(self, refine: Refine, *, low: float = 0.35, high: float = 0.55, downscale: float = 2.0) -> None:
        super().__init__()
        _check_downscale(downscale)
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"Expected background scores 0 <= `low` <= `high` <= 1, got {low} and {high}.")
        self.refine = refine
        self.low = low
        self.high = high
        self.downscale = downscale

    def forward(
        self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor, pairs: Pairs | None = None
    ) -> torch.Tensor:
        """Make Y^c, see the table of this file."""
        return self._label(images, seeds, self.low, self.high)

    def mask(self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        """Label every pixel, against one background score between the two: (B, *S), 0..K."""
        middle = (self.low + self.high) / 2
        return self._label(images, seeds, middle, middle)

    def _label(self, images: LabeledImages, seeds: torch.Tensor, low: float, high: float) -> torch.Tensor:
        rule = SpreadRule(self.refine, low, high, self.downscale)
        label = constant_label(images.intensity, seeds, images.label, images.classes, rule)
        return label if images.padding is None else label.masked_fill(images.padding, IGNORED)


class LearnedAffinity(ConstantScores):
    """Label as :class:`ConstantScores`, but first spread the scores by the learned affinity of tokens (AFA).

    Args:
        refine: see there.
        radius: largest offset of the affinity's pairs along each axis, in tokens.
        low: see there.
        high: see there.
        downscale: see there.

    Raises:
        ValueError: a negative radius, or scores or a factor that :class:`ConstantScores` refuses.
    """

    def __init__(
        self, refine: Refine, *, radius: int = 8, low: float = 0.35, high: float = 0.55, downscale: float = 2.0
    ) -> None:
        super().__init__(refine, low=low, high=high, downscale=downscale)
        check_radius(radius)
        self.radius = radius

    def forward(
        self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor, pairs: Pairs | None = None
    ) -> torch.Tensor:
        """Make Y^c, see the table of this file."""
        if pairs is None:
            raise ValueError("Expected `pairs`, which gives the affinity along which these labels spread.")
        affinity, grid = pairs(images.image)
        return affinity_label(
            images.intensity,
            seeds,
            images.label,
            images.classes,
            SpreadRule(self.refine, self.low, self.high, self.downscale),
            affinity=float32_or_wider(affinity),
            grid=grid,
            radius=self.radius,
            regions=images.regions,
        )


class BackgroundAware(nn.Module):
    """Spread seeds and the segmenter's background together, and label where the scores are confident (BMP).

        S^c = p([B^s; C']),   Y^c = argmax S^c where max S^c >= sigma_c          Zhu et al., Eq. 12-13, 3, 5

    Without BSP, and before it begins, the background is a fixed score B instead: S^c = p([B; C']) (Sec. III-A, IV-B).

    Args:
        refine: p, ``(image, maps) -> maps`` at the image's size.
        confidence: sigma_c, in [0, 1].
        background: B^s: ``"softmax"``: the probability of the background; ``"minmax"``: its logits scaled per image, as
            in the released code.  A number in [0, 1]: B, the same everywhere.
        scores: normalization of S^c before sigma_c: ``"l1"``, to shares that sum to 1; ``"softmax"`` or ``"none"``.
        downscale: factor by which images shrink for the refinement.

    Raises:
        ValueError: an unknown choice, a confidence or a fixed score outside of [0, 1], or a factor below 1.
    """

    def __init__(
        self,
        refine: Refine,
        *,
        confidence: float = 0.75,
        background: str | float = "minmax",
        scores: str = "l1",
        downscale: float = 2.0,
    ) -> None:
        super().__init__()
        if isinstance(background, str):
            check_choice("background", background, ("softmax", "minmax"))
        elif not 0 <= background <= 1:
            raise ValueError(f"Expected a fixed `background` score in [0, 1], got {background}.")
        check_choice("scores", scores, ("none", "l1", "softmax"))
        _check_downscale(downscale)
        if not 0 <= confidence <= 1:
            raise ValueError(f"Expected `confidence` in [0, 1], got {confidence}: shares are compared with it.")
        self.refine = refine
        self.confidence = confidence
        self.background = background
        self.kind = scores
        self.downscale = downscale

    def forward(
        self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor, pairs: Pairs | None = None
    ) -> torch.Tensor:
        """Make Y^c, see the table of this file."""
        return where_confident(self.scores(images, seeds, segmentation), self.confidence, None, IGNORED)

    def mask(self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        """Label every pixel by its largest score: (B, *S), 0..K."""
        return where_confident(self.scores(images, seeds, segmentation), 0.0, None, IGNORED)

    def scores(self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        """Give S^c (B, K + 1, *S), differentiable."""
        if not isinstance(self.background, str):
            background = torch.full_like(seeds[:, :1], self.background)
        elif self.background == "minmax":
            background = between_extremes(segmentation[:, :1])
        else:
            background = segmentation.softmax(1)[:, :1]
        return background_scores(
            images.intensity,
            seeds,
            background,
            images.label,
            images.classes,
            SpreadRule(self.refine, downscale=self.downscale),
            normalize=self.kind,
            regions=images.regions,
        )


def _check_downscale(downscale: float) -> None:
    if downscale < 1:
        raise ValueError(f"Expected `downscale` >= 1, got {downscale}.")
