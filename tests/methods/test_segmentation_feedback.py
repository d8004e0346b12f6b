# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""L_s2c: what the segmentation teaches seeds, or spread scores, against the public losses and labels."""

from __future__ import annotations

import pytest
import torch

from monai_wsss.inferers import AboveHealthyLevel, MinMax
from monai_wsss.losses import (
    ClassToSegmentationLoss,
    SegmentationToClassLoss,
    class_to_segmentation_loss,
    segmentation_to_class_loss,
)
from monai_wsss.methods.segmentation_feedback import FeedbackThroughSpreading, SegmentationFeedback
from monai_wsss.refinement import (
    BackgroundAware,
    LabeledImages,
    PixelAdaptiveRefinement,
    background_aware_scores,
    confident_segmentation_label,
)

CLASSES = pytest.mark.parametrize("classes", [1, 2])


def case(classes: int, spatial_dims: int = 2, boxed: bool = True) -> tuple[LabeledImages, torch.Tensor, torch.Tensor]:
    """Give images of all classes, of the last one and healthy; raw seeds and logits."""
    generator, size = torch.Generator().manual_seed(0), (8, 6, 4)[:spatial_dims]
    label = torch.zeros(3, classes)
    label[0], label[1, -1] = 1.0, 1.0
    boxes = torch.tensor([[0, side] for side in size]).flatten().repeat(3, 1)
    boxes[1, 0] = 3
    image = torch.rand(3, 1, *size, generator=generator)
    seeds, logits = (3 * torch.randn(3, k, *size, generator=generator) for k in (classes, classes + 1))
    return LabeledImages(image, label, boxes=boxes if boxed else None), seeds, logits


@CLASSES
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize(("confidence", "confidence_of"), [(0.7, "prob"), (1.5, "logit")])
def test_the_label_is_the_confident_one_without_padding(classes, spatial_dims, filtered, confidence, confidence_of):
    images, _, logits = case(classes, spatial_dims)
    options = {"confidence": confidence, "confidence_of": confidence_of, "filtered": filtered}
    got = SegmentationFeedback(SegmentationToClassLoss(), **options).label(images, logits)
    allowed = images.label if filtered else None
    words = {"threshold": confidence, "score": confidence_of, "valid": ~images.padding}
    assert torch.equal(got, confident_segmentation_label(logits, allowed, **words))
    assert (got[1, :3] == 255).all()
    assert {0, 255} <= set(got.unique().tolist())


@CLASSES
@pytest.mark.parametrize(
    ("kind", "use_background"),
    [("bce", True), ("bce", False), ("auto", False), ("softmargin", True), ("softmargin", False)],
)
def test_seeds_learn_from_it(classes, kind, use_background):
    images, seeds, logits = case(classes, boxed=False)
    loss = SegmentationToClassLoss(kind=kind, use_background=use_background, validate_args=False)
    got = SegmentationFeedback(loss, confidence=0.6)(images, seeds.requires_grad_(), logits.requires_grad_())
    label = confident_segmentation_label(logits, images.label, threshold=0.6)
    positive = torch.tensor([True, True, False])
    words = {"kind": kind, "use_background": use_background, "positive": positive}
    torch.testing.assert_close(got, segmentation_to_class_loss(seeds, label, **words))
    got.backward()
    assert logits.grad is None
    # The healthy image teaches nothing.
    assert not seeds.grad[2].any()
    assert seeds.grad[0].any()


@CLASSES
def test_scores_learn_from_it_as_printed(classes):
    """Foreground alone: Y^s leaves the background out."""
    images, seeds, logits = case(classes)
    refine = PixelAdaptiveRefinement(dilations=(1, 2), iterations=2, row_stochastic=True)
    spread = BackgroundAware(refine, background="softmax", downscale=1.0)
    loss = ClassToSegmentationLoss(kind="softmargin")
    feedback = FeedbackThroughSpreading(loss, MinMax(), spread, spread, confidence=0.6)
    got = feedback(images, seeds.requires_grad_(), logits.requires_grad_())
    label = confident_segmentation_label(logits, images.label, threshold=0.6, valid=~images.padding)
    boxes = torch.tensor([[0, 8, 0, 6], [3, 8, 0, 6], [0, 8, 0, 6]])
    background = logits.detach().softmax(1)[:, :1]
    scores = background_aware_scores(
        images.image, MinMax()(seeds), background, images.label, refine, normalize="l1", downscale=1.0, boxes=boxes
    )
    expected = class_to_segmentation_loss(scores, label.masked_fill(label == 0, 255), kind="softmargin")
    torch.testing.assert_close(got, expected)
    assert got.item() > 0
    got.backward()
    # Seeds learn through the refinement; what the segmenter says of the background is held fixed.
    assert seeds.grad.any()
    assert logits.grad is None


@CLASSES
def test_scores_have_a_fixed_background_without_bsp(classes):
    """Zhu et al., Tab. VI, row 3, and Sec. IV-B: S^c = p([B; C']), whatever the segmenter says of the background."""
    images, seeds, logits = case(classes)
    refine = PixelAdaptiveRefinement(dilations=(1, 2), iterations=2, row_stochastic=True)
    aware, fixed = (BackgroundAware(refine, background=kind, downscale=1.0) for kind in ("softmax", 0.45))
    loss = ClassToSegmentationLoss(kind="softmargin")
    feedback = FeedbackThroughSpreading(loss, MinMax(), aware, fixed, confidence=0.6)
    got = feedback(images, seeds.requires_grad_(), logits, bsp=False)
    label = confident_segmentation_label(logits, images.label, threshold=0.6, valid=~images.padding)
    boxes = torch.tensor([[0, 8, 0, 6], [3, 8, 0, 6], [0, 8, 0, 6]])
    background = torch.full_like(logits[:, :1], 0.45)
    scores = background_aware_scores(
        images.image, MinMax()(seeds), background, images.label, refine, normalize="l1", downscale=1.0, boxes=boxes
    )
    expected = class_to_segmentation_loss(scores, label.masked_fill(label == 0, 255), kind="softmargin")
    torch.testing.assert_close(got, expected)
    assert got.item() != feedback(images, seeds, logits).item()
    got.backward()
    assert seeds.grad.any()


def test_the_scale_belongs_to_both():
    """A healthy level that the method follows is that of the feedback, and is saved with it."""
    scale = AboveHealthyLevel(1)
    spread = BackgroundAware(PixelAdaptiveRefinement(dilations=(1,)))
    feedback = FeedbackThroughSpreading(ClassToSegmentationLoss(), scale, spread, spread)
    images, seeds, logits = case(1)
    with pytest.raises(ValueError, match="training images without each class"):
        feedback(images, seeds, logits)
    scale.set_level(torch.zeros(1))
    assert feedback(images, seeds, logits).isfinite()
    assert "scale.level.value" in feedback.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence_of": "share"}, "`confidence_of` to be one of prob, logit, got 'share'"),
        ({"confidence": 75.0}, r"`confidence` in \[0, 1\], got 75.0: probabilities are compared"),
        ({"confidence": -0.1}, r"`confidence` in \[0, 1\], got -0.1"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationFeedback(SegmentationToClassLoss(), **options)


@pytest.mark.parametrize("confidence", [-3.0, 75.0])
def test_logits_may_be_compared_with_any_number(confidence):
    SegmentationFeedback(SegmentationToClassLoss(), confidence=confidence, confidence_of="logit")
