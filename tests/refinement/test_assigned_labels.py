# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Assigned labels and their perplexity against loops over pixels; edges of the threshold; what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from monai_wsss.refinement import class_assignment, perplexity, segmentation_assignment, two_threshold_label

SIZES = pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])


def maps_of(size: tuple[int, ...], classes: int = 3, seed: int = 0) -> torch.Tensor:
    maps = torch.rand(2, classes, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    maps[1, 1:] = 0
    return maps


@SIZES
def test_a_pixel_has_its_strongest_class_or_is_background(size):
    maps = maps_of(size)
    label, strength = class_assignment(maps, torch.tensor(0.6))
    for pixel, got, nu in zip(maps.movedim(1, -1).flatten(0, -2), label.flatten(), strength.flatten(), strict=True):
        best = max(range(3), key=lambda k: pixel[k].item())
        assert nu == pixel[best]
        assert got == (best + 1 if pixel[best] >= 0.6 else 0)


def test_padding_is_ignored_and_healthy_images_are_background():
    padding = torch.zeros(2, 5, 7, dtype=torch.bool)
    padding[0, :, 4:] = True
    label, strength = class_assignment(torch.zeros(2, 2, 5, 7), 0.0, padding=padding)
    assert torch.equal(label == 255, padding)
    assert not label[~padding].any()
    assert not strength.any()


@SIZES
@pytest.mark.parametrize(("scale", "power"), [(0.8, 1.0), (0.5, 2.0), (1.0, 0.5)])
def test_perplexity_is_equation_4(size, scale, power):
    strength = maps_of(size).amax(1)
    got = perplexity(strength, torch.tensor(0.3, dtype=torch.float64), scale=scale, power=power)
    for nu, value in zip(strength.flatten().tolist(), got.flatten().tolist(), strict=True):
        distance = (nu - 0.3) / 0.7 if nu >= 0.3 else (0.3 - nu) / 0.3
        assert value == pytest.approx((-math.log(scale * distance)) ** power, rel=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 1.0, torch.tensor(0.5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_perplexity_is_finite_and_positive_everywhere(threshold, dtype):
    got = perplexity(torch.linspace(0, 1, 101).to(dtype), threshold, scale=1.0)
    assert got.isfinite().all()
    assert got.min() > 0


def test_perplexity_is_highest_at_the_threshold_and_equal_at_both_ends():
    got = perplexity(torch.linspace(0, 1, 101, dtype=torch.float64), 0.4)
    assert got.argmax() == 40
    assert got[0] == pytest.approx(-math.log(0.8))
    assert got[100] == pytest.approx(-math.log(0.8))
    assert (got[:41].diff() > 0).all()
    assert (got[40:].diff() < 0).all()


@pytest.mark.parametrize(("scale", "power"), [(0.0, 1.0), (1.2, 1.0), (0.8, 0.0), (0.8, -1.0)])
def test_perplexity_needs_fitting_numbers(scale, power):
    with pytest.raises(ValueError, match=r"`scale` in \(0, 1\] and `power` > 0"):
        perplexity(torch.zeros(1, 2, 2), 0.5, scale=scale, power=power)


@SIZES
def test_two_thresholds_leave_doubt_out(size):
    maps, label = maps_of(size), torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    got = two_threshold_label(maps, label, low=0.3, high=0.7, downscale=1)
    for image in range(2):
        for pixel, value in zip(maps[image].flatten(1).T, got[image].flatten(), strict=True):
            held = [k for k in range(3) if label[image, k]]
            best = max(held, key=lambda k: pixel[k].item())
            assert value == (best + 1 if pixel[best] > 0.7 else 0 if pixel[best] <= 0.3 else 255)


@pytest.mark.parametrize("kinds", [(float, torch.tensor), (torch.tensor, float), (torch.tensor, torch.tensor)])
def test_thresholds_on_the_device_are_not_read_back(kinds):
    """Tensors of the meta device have no values: to read one is an error."""
    maps, label = maps_of((5, 7)), torch.ones(2, 3)
    low, high = (kind(value) for kind, value in zip(kinds, (0.3, 0.6), strict=True))
    expected = two_threshold_label(maps, label, low=0.3, high=0.6)
    assert torch.equal(two_threshold_label(maps, label, low=low, high=high), expected)
    low, high = (one.to("meta") if isinstance(one, torch.Tensor) else one for one in (low, high))
    assert two_threshold_label(maps.to("meta"), label.to("meta"), low=low, high=high).shape == (2, 5, 7)


def test_two_thresholds_of_images_without_any_class():
    got = two_threshold_label(torch.rand(2, 2, 6, 6), torch.zeros(2, 2), classes=torch.tensor([], dtype=torch.long))
    assert not got.any()
    assert not two_threshold_label(torch.rand(2, 2, 6, 6), torch.zeros(2, 2)).any()


@SIZES
def test_segmentation_assigns_probabilities_of_held_classes(size):
    logits = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[0, 1], [0, 0]])
    got = segmentation_assignment(logits, label, 0.5)
    ratio = ((logits[0, 2] - logits[0, 0]) / 0.5).exp()
    torch.testing.assert_close(got[0, 2], ratio / (1 + ratio))
    assert not got[0, 1].any()
    assert torch.equal(got[1, 0], torch.ones(size))
    torch.testing.assert_close(got.sum(1), torch.ones(2, *size))


def test_segmentation_is_assigned_in_float32_within_autocast():
    logits = torch.tensor([[[[10.0]], [[10.01]]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = segmentation_assignment(logits, torch.ones(1, 1))
    assert got.dtype == torch.float32
    assert got[0, 1].item() == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-3)
    assert segmentation_assignment(logits.half()).dtype == torch.float32


def test_no_gradient_is_remembered():
    maps = maps_of((5, 7)).requires_grad_()
    label = torch.ones(2, 3)
    results = (*class_assignment(maps, 0.5), two_threshold_label(maps, label), segmentation_assignment(maps))
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda maps: class_assignment(maps[0, 0], 0.5), "`maps` of shape"),
        (lambda maps: class_assignment(maps, 0.5, padding=torch.zeros(2, 5, 6, dtype=torch.bool)), "bool `padding`"),
        (lambda maps: class_assignment(maps, 0.5, padding=torch.zeros(2, 5, 7)), "bool `padding`"),
        (lambda maps: two_threshold_label(maps, torch.ones(2, 2)), r"`label` of shape \(B, K\)"),
        (lambda maps: two_threshold_label(maps[0, 0], torch.ones(2, 3)), r"`maps` of shape \(B, K, \*S\)"),
        (lambda maps: two_threshold_label(maps, torch.ones(2, 3), padding=torch.zeros(2, 5, 7)), "bool `padding`"),
        (lambda maps: two_threshold_label(maps, torch.ones(2, 3), low=0.8), "0 <= `low` <= `high` <= 1"),
        (lambda maps: two_threshold_label(maps, torch.ones(2, 3), downscale=0.5), "`downscale` >= 1"),
        (lambda maps: segmentation_assignment(maps, torch.ones(2, 3)), r"`label` of shape \(B, K\) = \(2, 2\)"),
        (lambda maps: segmentation_assignment(maps, None, 0.0), "`temperature` > 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(maps_of((5, 7)))
