# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""L_s2c of BMP: the segmentation branch teaches the classification branch (Zhu et al., Eq. 7-8).

    Y^s   = argmax S^s where max S^s >= sigma_s, no background        confident pixels       Eq. 7
    L_s2c = l(C, Y^s)                                                 as released            `SegmentationFeedback`
    L_s2c = l(S^c, Y^s),  S^c = p([B^s; C'])                          as printed, with BSP   `FeedbackThroughSpreading`
    L_s2c = l(S^c, Y^s),  S^c = p([B; C'])                            and without it

B is a fixed score.  The gradient of the printed form passes through the differentiable refinement, but not into the
background.
"""

from __future__ import annotations

import torch
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss._labels import IGNORED
from monai_wsss.losses import ClassToSegmentationLoss, SegmentationToClassLoss
from monai_wsss.refinement import BackgroundAware, LabeledImages
from monai_wsss.refinement.confident_labels import segmentation_label

__all__ = ["FeedbackThroughSpreading", "SegmentationFeedback"]


class SegmentationFeedback(nn.Module):
    """Teach the seeds by the confident pixels of the segmentation.

    Args:
        loss: l.
        confidence: sigma_s.
        confidence_of: compare probabilities with sigma_s (``"prob"``), or logits (``"logit"``), as released.
        filtered: whether Y^s leaves out classes that the image does not hold.

    Raises:
        ValueError: an unknown choice, or a probability outside of [0, 1].
    """

    def __init__(
        self,
        loss: SegmentationToClassLoss | ClassToSegmentationLoss,
        *,
        confidence: float = 0.5,
        confidence_of: str = "prob",
        filtered: bool = True,
    ) -> None:
        super().__init__()
        check_choice("confidence_of", confidence_of, ("prob", "logit"))
        if confidence_of == "prob" and not 0 <= confidence <= 1:
            raise ValueError(f"Expected `confidence` in [0, 1], got {confidence}: probabilities are compared with it.")
        self.loss = loss
        self.confidence = confidence
        self.confidence_of = confidence_of
        self.filtered = filtered

    def label(self, images: LabeledImages, segmentation: torch.Tensor) -> torch.Tensor:
        """Make Y^s (B, *S) from logits (B, K + 1, *S), without gradient."""
        padding = images.padding
        valid = None if padding is None else ~padding
        allowed = images.label if self.filtered else None
        return segmentation_label(segmentation, allowed, self.confidence, self.confidence_of, valid, IGNORED)

    def forward(
        self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor, *, bsp: bool = True
    ) -> torch.Tensor:
        """Give L_s2c.

        Args:
            images: with their labels.
            seeds: raw seeds (B, K, *S) at the images' size.
            segmentation: logits (B, K + 1, *S) at the images' size.
            bsp: whether the segmenter's background spreads with the seeds; nothing spreads here.
        """
        return self.loss(seeds, self.label(images, segmentation), images.found)


class FeedbackThroughSpreading(SegmentationFeedback):
    """Teach the spread scores S^c instead of the seeds, as Eq. 8 is printed.

    Args:
        loss: l, over K + 1 channels.
        scale: brings raw seeds to [0, 1], e.g. :class:`~monai_wsss.inferers.MinMax`.
        scores: gives S^c with BSP.
        fixed_scores: gives S^c without BSP, and before it begins.
        confidence: see :class:`SegmentationFeedback`.
        confidence_of: see there.
        filtered: see there.
    """

    def __init__(
        self,
        loss: ClassToSegmentationLoss,
        scale: nn.Module,
        scores: BackgroundAware,
        fixed_scores: BackgroundAware,
        *,
        confidence: float = 0.5,
        confidence_of: str = "prob",
        filtered: bool = True,
    ) -> None:
        super().__init__(loss, confidence=confidence, confidence_of=confidence_of, filtered=filtered)
        self.scale = scale
        self.scores = scores
        self.fixed_scores = fixed_scores

    def forward(
        self, images: LabeledImages, seeds: torch.Tensor, segmentation: torch.Tensor, *, bsp: bool = True
    ) -> torch.Tensor:
        """Give L_s2c, see :class:`SegmentationFeedback`."""
        label = self.label(images, segmentation)
        maker = self.scores if bsp else self.fixed_scores
        scores = maker.scores(images, self.scale(seeds), segmentation.detach())
        return self.loss(scores, label.masked_fill(label == 0, IGNORED))
