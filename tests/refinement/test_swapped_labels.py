# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Makers of swapped labels against the functions that they stand for; padding at any size; when thresholds follow."""

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

SIZES = pytest.mark.parametrize("size", [(8, 12), (4, 8, 12)])
LABEL = torch.tensor([[1.0, 0.0], [0.0, 0.0]])


def images_of(size: tuple[int, ...], boxed: bool = True) -> LabeledImages:
    """Give one image with class 1 whose last third along the last axis is padding, and a healthy one without any."""
    ends = [end for side in size for end in (0, side)]
    boxes = torch.tensor([[*ends[:-1], size[-1] * 2 // 3], ends]) if boxed else None
    return LabeledImages(torch.zeros(2, 1, *size), LABEL, boxes=boxes)


def maps_of(size: tuple[int, ...]) -> torch.Tensor:
    maps = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0))
    return maps * LABEL.reshape(2, 2, *[1] * len(size))


@SIZES
@pytest.mark.parametrize("scale", [1, 4])
def test_labels_and_their_perplexity_at_any_size_of_the_maps(size, scale):
    """Padding is found at the size of the maps."""
    images, maps = images_of(size), maps_of(tuple(side // scale for side in size))
    maker = ThresholdLabels(DynamicThreshold(0.4), scale=0.9, power=2.0, epsilon=0.5)
    label, doubt = maker(images, maps)
    expected, strength = class_assignment(maps, 0.4)
    padding = torch.zeros_like(label, dtype=torch.bool)
    padding[0, ..., maps.shape[-1] * 2 // 3 :] = True
    assert torch.equal(label, expected.masked_fill(padding, 255))
    torch.testing.assert_close(doubt, perplexity(strength, 0.4, scale=0.9, power=2.0))
    again, sure = maker.sure(images, maps)
    assert torch.equal(again, label)
    assert torch.equal(sure, (doubt <= 0.5) & ~padding)
    assert 0 < sure[0].float().mean() < 0.7
    assert sure[1].all()  # healthy: certain background
    assert torch.equal(maker.mask(images, maps, maps), expected)


def test_the_threshold_follows_in_training_alone_and_healthy_images_and_padding_tell_it_nothing():
    images, seen = images_of((8, 12)), []

    class Noting(DynamicThreshold):
        def update(self, strength, found, *, valid=None):
            seen.append((strength, found, valid))

    maker, maps = ThresholdLabels(Noting(0.5)), maps_of((8, 12))
    maker.eval().follow(images, maps)
    assert not seen
    maker.train().follow(images, maps)
    ((strength, found, valid),) = seen
    assert torch.equal(strength, maps.amax(1))
    assert found.tolist() == [True, False]
    assert torch.equal(valid, ~images.padding)
    maker.follow(images_of((8, 12), boxed=False), maps)
    assert seen[1][2] is None


@SIZES
def test_two_thresholds_leave_doubt_and_padding_out(size):
    images, maps = images_of(size), maps_of(size)
    maker = TwoThresholdLabels(low=0.3, high=0.6, downscale=1)
    label, doubt = maker(images, maps)
    assert doubt is None
    strongest = maps[:, 0]
    expected = torch.where(strongest > 0.6, 1, torch.where(strongest <= 0.3, 0, 255))
    assert torch.equal(label, expected.masked_fill(images.padding, 255))
    again, sure = maker.sure(images, maps)
    assert torch.equal(again, label)
    assert torch.equal(sure, label != 255)
    assert torch.equal(maker.mask(images, maps, maps), (strongest >= 0.45).long())


@SIZES
def test_the_guides(size):
    images = images_of(size)
    logits = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SegmentationLabels(0.1)(images, logits), segmentation_assignment(logits, LABEL, 0.1))
    torch.manual_seed(0)
    noise = NoiseLabels(0.01)
    one, other = noise(images, logits), noise(images, 100 * logits)
    for drawn in (one, other):
        torch.testing.assert_close(drawn.sum(1), torch.ones(2, *size))
        assert not drawn[:, 2].any()  # a class that no image holds
        assert (drawn[1, 0] == 1).all()  # healthy
        assert 0.2 < drawn[0, 1].mean() < 0.8
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ThresholdLabels(DynamicThreshold(), scale=1.5), r"`scale` in \(0, 1\]"),
        (lambda: ThresholdLabels(DynamicThreshold(), epsilon=0.1), "`epsilon` of at least 0.22, .* got 0.1: no label"),
        (lambda: TwoThresholdLabels(low=0.8, high=0.7), "0 <= `low` <= `high` <= 1 .* got 0.8, 0.7 and 2.0"),
        (lambda: TwoThresholdLabels(downscale=0.5), "`downscale` >= 1"),
        (lambda: SegmentationLabels(0.0), "`temperature` > 0, got 0.0"),
        (lambda: NoiseLabels(-1.0), "`temperature` > 0, got -1.0"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
