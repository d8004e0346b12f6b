# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Guided class maps of CoSA against their equation, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from monai_wsss._resize import resize_linear
from monai_wsss.losses.segmentation_to_cam import SegmentationToCamLoss, segmentation_to_cam_loss

SIZES = [(5, 4), (3, 2, 4)]
IDS = ["2d", "3d"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 4), times: int = 2):
    generator = torch.Generator().manual_seed(seed)
    maps = 2 * torch.randn((2, 3, *size), generator=generator, dtype=torch.float64)
    logits = torch.randn((2, 4, *(times * side for side in size)), generator=generator, dtype=torch.float64)
    return maps, logits.softmax(1)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_equation(size, times, relu):
    maps, probabilities = make(size=size, times=times)
    target = resize_linear(probabilities[:, 1:], size)
    terms = []
    for x, y in zip(maps.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = expit(max(x, 0.0) if relu else x)
        terms.append(-y * math.log(p) - (1 - y) * math.log(1 - p))
    expected = sum(terms) / len(terms)
    assert SegmentationToCamLoss(relu=relu)(maps, probabilities).item() == pytest.approx(expected)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_gradcheck_and_no_gradient_for_the_segmentation(size):
    maps, probabilities = make(size=size)
    probabilities.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segmentation_to_cam_loss(x, probabilities), maps.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: segmentation_to_cam_loss(x, probabilities, relu=True), maps)
    loss = segmentation_to_cam_loss(maps, probabilities)
    assert torch.autograd.grad(loss, probabilities, allow_unused=True)[0] is None


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_order_of_classes_and_a_flip_change_nothing(seed):
    maps, probabilities = make(seed)
    expected = segmentation_to_cam_loss(maps, probabilities)
    torch.testing.assert_close(segmentation_to_cam_loss(maps.flip(1), probabilities[:, [0, 3, 2, 1]]), expected)
    torch.testing.assert_close(segmentation_to_cam_loss(maps.flip(-1), probabilities.flip(-1)), expected)


def test_the_loss_is_least_where_the_maps_say_the_same():
    _, probabilities = make(times=1)
    maps = probabilities[:, 1:].logit().requires_grad_()
    (gradient,) = torch.autograd.grad(segmentation_to_cam_loss(maps, probabilities), maps)
    torch.testing.assert_close(gradient, torch.zeros_like(maps))


def test_a_healthy_image_draws_all_maps_down():
    maps = torch.zeros(1, 2, 4, 4, requires_grad=True)
    background = torch.zeros(1, 3, 4, 4)
    background[:, 0] = 1
    (gradient,) = torch.autograd.grad(segmentation_to_cam_loss(maps, background), maps)
    assert bool((gradient > 0).all())


def test_absent_classes_with_and_without_a_floor():
    absent = torch.full((1, 1, 4, 4), -30.0, requires_grad=True)
    background = torch.stack((torch.ones(1, 4, 4), torch.zeros(1, 4, 4)), 1)
    assert segmentation_to_cam_loss(absent, background).item() < 1e-9
    floor = segmentation_to_cam_loss(absent, background, relu=True)
    assert floor.item() == pytest.approx(math.log(2))
    assert not torch.autograd.grad(floor, absent)[0].any()


def test_bad_input():
    with pytest.raises(ValueError, match=r"`probabilities` of shape \(B, K\+1, \*S\) = \(2, 4, '\*S'\) beside `maps`"):
        segmentation_to_cam_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"`maps` of shape \(B, K, \*S\), got \(2, 3\)"):
        segmentation_to_cam_loss(torch.zeros(2, 3), torch.zeros(2, 4))
