# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""L_ER against a loop over images, classes and pixels: reductions, masks, gradients, half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.cams import normalize_maps
from monai_wsss.losses import EquivarianceLoss, equivariance_loss
from monai_wsss.transforms import PairedSpatialTransform

SHAPES = [(3, 2, 5, 4), (2, 3, 4, 3, 2)]


def make_maps(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, second, (torch.rand(shape[:2], generator=generator) > 0.5).double()


def literal(first: torch.Tensor, second: torch.Tensor, weight: np.ndarray, reduction: str) -> float:
    """Of each image the sum over classes and pixels, of a batch the mean; ``mean`` divides by both numbers too."""
    a, b = first.numpy(), second.numpy()
    total = 0.0
    for n in range(a.shape[0]):
        for k in range(a.shape[1]):
            for pixel in np.ndindex(*a.shape[2:]):
                total += weight[n, k] * (a[n, k][pixel] - b[n, k][pixel]) ** 2
    return total / (a.size if reduction == "mean" else a.shape[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mask", ["label", "none"])
def test_it_is_the_squared_difference(shape, reduction, mask):
    first, second, label = make_maps(shape)
    weight = label.numpy() if mask == "label" else np.ones(shape[:2])
    expected = literal(first, second, weight, reduction)
    loss = EquivarianceLoss(reduction=reduction, mask=mask)(first, second, label)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert EquivarianceLoss(reduction=reduction, mask=mask)(second, first, label).item() == loss.item()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_printed_sum_is_the_mean_times_classes_and_pixels(shape):
    first, second, _ = make_maps(shape)
    ratio = equivariance_loss(first, second, reduction="sum") / equivariance_loss(first, second)
    assert ratio.item() == pytest.approx(np.prod(shape[1:]), rel=1e-12)


def test_healthy_images_count_in_the_mean_but_add_nothing():
    first, second, _ = make_maps((2, 1, 4, 4))
    alone = equivariance_loss(first[:1], second[:1])
    both = EquivarianceLoss()(first, second, torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(both, alone / 2)
    first.requires_grad_()
    loss = EquivarianceLoss()(first, second, torch.zeros(2, 1))
    loss.backward()
    assert loss.item() == 0
    assert not first.grad.any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_pass_through_both_maps(reduction):
    first, second, label = make_maps((2, 2, 3, 4))
    label[0, 0] = 1.0
    module = EquivarianceLoss(reduction=reduction)
    maps = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: module(a, b, label), maps)
    assert all(gradient.any() for gradient in torch.autograd.grad(module(*maps, label), maps))


@pytest.mark.parametrize("kind", ["flip", "rotate", "scale", "translate"])
@pytest.mark.parametrize("norm", ["minmax", "max"])
@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_are_right_from_raw_maps_through_normalization_and_warp(kind, norm, dims):
    torch.manual_seed(1)
    raw = torch.randn(2, 1, *(4,) * dims, dtype=torch.float64, requires_grad=True)
    record = PairedSpatialTransform((kind,), divisor=2, scale_range=(1.2, 1.6)).draw(raw.shape)
    target = torch.rand_like(record(raw)).detach()
    assert torch.autograd.gradcheck(lambda maps: equivariance_loss(record(normalize_maps(maps, norm)), target), raw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    # 131072 ones: fp16 ends at 65504 and bf16 stops counting at 256.
    maps = torch.ones(1, 8, 128, 128, dtype=dtype)
    loss = equivariance_loss(maps, torch.zeros_like(maps), reduction="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == 8 * 128**2


@given(st.integers(0, 10**6), st.sampled_from(SHAPES))
@settings(max_examples=25, deadline=None)
def test_maps_in_0_1_bound_it(seed, shape):
    first, second, label = make_maps(shape, seed)
    assert 0 <= EquivarianceLoss()(first, second, label) <= EquivarianceLoss(mask="none")(first, second, label) <= 1
    assert EquivarianceLoss(mask="none")(first, first, label) == 0


def test_mistakes_are_named():
    maps = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"`warped_maps` of shape \(B, K, \*S\), got \(4, 4\)"):
        equivariance_loss(maps[0, 0], maps[0, 0])
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 4\) of `warped_maps`, got \(2, 1, 4, 3\): apply the same"):
        equivariance_loss(maps, maps[..., :3])
    with pytest.raises(ValueError, match="`reduction` to be one of mean, sum, got 'none'"):
        equivariance_loss(maps, maps, reduction="none")
    with pytest.raises(ValueError, match="`reduction` to be one of mean, sum, got 'max'"):
        EquivarianceLoss(reduction="max")
    with pytest.raises(ValueError, match="`mask` to be one of label, none, got 'teacher'"):
        EquivarianceLoss(mask="teacher")
    with pytest.raises(ValueError, match=r"`label` of shape \(B, K\) = \(2, 1\), got \(2, 3\)"):
        EquivarianceLoss()(maps, maps, torch.ones(2, 3))


def test_labels_that_are_none_do_not_weigh_in_silence():
    maps = torch.rand(2, 1, 4, 4)
    for value in (0.5, 2.0, torch.nan):
        with pytest.raises(ValueError, match="`label` to hold 0 and 1 only"):
            EquivarianceLoss()(maps, 1 - maps, torch.full((2, 1), value))
