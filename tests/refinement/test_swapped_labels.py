# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Makers of CoSA's labels: thresholds that follow training, padding at any size, two thresholds, guides."""

from __future__ import annotations

import pytest
import torch

from monai_wsss.refinement import (
    DynamicThreshold,
    LabeledImages,
    NoiseLabels,
    SegmentationLabels,
    ThresholdLabels,
    TwoThresholdLabels,
    class_assignment,
    perplexity,
    segmentation_assignment,
)


def make_images(spatial_dims: int = 2, boxes: list[list[int]] | None = None) -> LabeledImages:
    image = torch.zeros(2, 1, *(8,) * spatial_dims)
    return LabeledImages(
        image, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), boxes=None if boxes is None else torch.tensor(boxes)
    )


def make_maps(size: int = 8, spatial_dims: int = 2) -> torch.Tensor:
    maps = torch.zeros(2, 2, *(size,) * spatial_dims)
    maps[0, 0] = torch.linspace(0, 1, size**spatial_dims).reshape((size,) * spatial_dims)
    return maps


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_labels_and_their_perplexity(spatial_dims):
    images, maps = make_images(spatial_dims), make_maps(8, spatial_dims)
    maker = ThresholdLabels(DynamicThreshold(0.4), scale=0.7, power=2.0, epsilon=0.5)
    label, strength = class_assignment(maps, 0.4)
    doubt = perplexity(strength, 0.4, scale=0.7, power=2.0)
    made = maker(images, maps)
    assert torch.equal(made.label, label)
    torch.testing.assert_close(made.perplexity, doubt)
    kept, sure = maker.sure(images, maps)
    assert torch.equal(kept, label)
    assert torch.equal(sure, doubt <= 0.5)
    assert 0 < sure[0].float().mean() < 1
    assert torch.equal(maker.mask(images, maps, maps), label)


@pytest.mark.parametrize("size", [8, 4])
def test_padding_is_ignored_at_every_size(size):
    images = make_images(boxes=[[0, 8, 0, 4], [0, 8, 0, 8]])
    for maker in (ThresholdLabels(DynamicThreshold()), TwoThresholdLabels(downscale=1)):
        label, sure = maker.sure(images, make_maps(size))
        assert (label[0, :, size // 2 :] == 255).all()
        assert not sure[0, :, size // 2 :].any()
        assert not (label[1] == 255).any()


def test_thresholds_follow_in_training_alone():
    images, maker = make_images(), ThresholdLabels(DynamicThreshold(queue=1, momentum=0.0))
    maps = torch.zeros(2, 2, 8, 32)
    maps[0, 0, :, :16] = torch.linspace(0.1, 0.2, 128).reshape(8, 16)
    maps[0, 0, :, 16:] = torch.linspace(0.6, 0.7, 128).reshape(8, 16)
    maker.eval().follow(images, maps)
    assert maker.threshold() == 0.5
    maker.train().follow(images, maps)
    assert 0.2 < maker.threshold() < 0.5
    fixed = TwoThresholdLabels()
    fixed.follow(images, maps)
    assert not fixed.state_dict()


def test_two_thresholds_leave_out_what_lies_between():
    label = TwoThresholdLabels(low=0.25, high=0.75, downscale=1)(make_images(), make_maps()).label
    strength = make_maps()[0, 0]
    assert torch.equal(label[0] == 255, (strength > 0.25) & (strength <= 0.75))
    assert torch.equal(label[0] == 1, strength > 0.75)
    assert not label[1].any()
    middle = TwoThresholdLabels(low=0.25, high=0.75, downscale=1).mask(make_images(), make_maps(), make_maps())
    assert torch.equal(middle[0] == 1, strength > 0.5)
    assert not (middle == 255).any()
    with pytest.raises(ValueError, match="Expected 0 <= `low` <= `high` <= 1"):
        TwoThresholdLabels(low=0.8, high=0.7)


def test_guides():
    images, logits = make_images(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        SegmentationLabels(0.5)(images, logits), segmentation_assignment(logits, images.label, 0.5)
    )
    torch.manual_seed(0)
    one, other = NoiseLabels()(images, logits), NoiseLabels()(images, logits)
    assert not torch.equal(one, other)
    assert not one[0, 2].any()
    assert torch.equal(one[1, 0], torch.ones(8, 8))
    with pytest.raises(ValueError, match="Expected `temperature` > 0"):
        NoiseLabels(0.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ThresholdLabels(DynamicThreshold(), scale=1.5), r"`scale` in \(0, 1\]"),
        (lambda: ThresholdLabels(DynamicThreshold(), epsilon=0.1), r"`epsilon` of at least 0.22, .* got 0.1: no label"),
        (lambda: TwoThresholdLabels(downscale=0.5), r"`downscale` >= 1, got 0.25, 0.7 and 0.5"),
        (lambda: SegmentationLabels(0.0), r"`temperature` > 0, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
