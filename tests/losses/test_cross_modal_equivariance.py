# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""L_CMER against Eq. 4 in a double loop over networks: pairs, masks, empty maps, gradients, half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.cams import normalize_maps
from monai_wsss.losses import CrossModalEquivarianceLoss, cross_modal_equivariance_loss, peer_weights, unit_norm_maps
from monai_wsss.transforms import PairedSpatialTransform

SHAPES = [(3, 4, 2, 5, 4), (2, 3, 1, 4, 3, 2)]


def all_pairs(groups: int) -> torch.Tensor:
    return peer_weights(torch.ones(groups, groups, dtype=torch.bool), dtype=torch.float64)


def make_maps(shape: tuple[int, ...], seed: int = 0, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def literal(student, teacher, pairs, weight=None, reduction="sum", normalize=True) -> float:
    """Eq. 4 for all pairs, images and classes, one after another."""
    s, t, p = student.detach().numpy(), teacher.detach().numpy(), pairs.numpy()
    images, groups, classes = s.shape[:3]
    pixels = np.prod(s.shape[3:])
    total = 0.0
    for k in range(groups):
        for l in range(t.shape[1]):  # noqa: E741 (the paper's letter)
            for n in range(images):
                for c in range(classes):
                    a, b = s[n, k, c].ravel(), t[n, l, c].ravel()
                    if normalize:
                        a = a / np.linalg.norm(a) if a.any() else a
                        b = b / np.linalg.norm(b) if b.any() else b
                    factor = 1.0 if weight is None else float(weight[n, l, c])
                    total += p[k, l] * factor * ((a - b) ** 2).sum() / images
    return total / groups / (classes * pixels if reduction == "mean" else 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_equation_4_over_all_pairs(shape, reduction, normalize):
    student, teacher = make_maps(shape)
    pairs = torch.rand(shape[1], shape[1], dtype=torch.float64)
    weight = (torch.rand(shape[:3]) > 0.5).double()
    options = {"reduction": reduction, "normalize": normalize}
    for factors in (None, weight):
        got = cross_modal_equivariance_loss(student, teacher, pairs, weight=factors, **options)
        assert got.item() == pytest.approx(literal(student, teacher, pairs, factors, **options), rel=1e-12)


def test_teachers_may_be_other_networks_in_another_number():
    student, teacher = make_maps((2, 2, 1, 4, 4))[0], make_maps((2, 3, 1, 4, 4), seed=1)[0]
    pairs = torch.rand(2, 3, dtype=torch.float64)
    got = cross_modal_equivariance_loss(student, teacher, pairs)
    assert got.item() == pytest.approx(literal(student, teacher, pairs), rel=1e-12)


@pytest.mark.parametrize("mask", ["label_and_teacher", "label", "none"])
def test_the_masks_are_those_of_the_teacher(mask):
    student, teacher = make_maps((4, 3, 2, 4, 5))
    label = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(3))
    logits[2, 0, 0] = 0.0  # neither: the released argmax takes the first, absent
    weight = np.ones((4, 3, 2))
    for n, l, c in np.ndindex(4, 3, 2):  # noqa: E741 (the paper's letter)
        predicted = 1.0 if logits[n, l, c] > 0 else 0.0
        weight[n, l, c] = {"none": 1.0, "label": label[n, c], "label_and_teacher": label[n, c] * predicted}[mask]
    module = CrossModalEquivarianceLoss(mask=mask)
    got = module(student, teacher, label, logits, all_pairs(3))
    assert got.item() == pytest.approx(literal(student, teacher, all_pairs(3), weight), rel=1e-12)


def test_the_module_keeps_its_options():
    student, teacher = make_maps((2, 2, 1, 4, 4))
    arguments = (torch.ones(2, 1), torch.ones(2, 2, 1), all_pairs(2))
    got = CrossModalEquivarianceLoss(reduction="mean")(student, teacher, *arguments)
    assert got.item() == pytest.approx(literal(student, teacher, all_pairs(2), reduction="mean"), rel=1e-12)
    got = CrossModalEquivarianceLoss(l2_before_warp=True)(student, teacher, *arguments)
    assert got.item() == pytest.approx(literal(student, teacher, all_pairs(2), normalize=False), rel=1e-12)


def test_two_networks_teach_each_other_by_the_same_value():
    """Section 2 of the sheet: L_CMER(1, 2) = L_CMER(2, 1) without masks, over both directions; not the gradients."""
    moved, maps = make_maps((3, 2, 1, 5, 5))
    values = []
    for row in (0, 1):
        pairs = torch.zeros(2, 2)
        pairs[row, 1 - row] = 1.0
        values.append(
            cross_modal_equivariance_loss(maps, moved, pairs) + cross_modal_equivariance_loss(moved, maps, pairs)
        )
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)


def test_no_gradient_reaches_a_teacher_or_a_network_without_one():
    student, teacher = (maps.requires_grad_() for maps in make_maps((2, 3, 1, 4, 4)))
    pairs = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    cross_modal_equivariance_loss(student, teacher, pairs).backward()
    assert teacher.grad is None
    assert [bool(student.grad[:, k].any()) for k in range(3)] == [True, False, True]
    # The same tensor on both sides, as one network of several is: only the student's side learns.
    maps = teacher.detach().requires_grad_()
    cross_modal_equivariance_loss(maps, maps, pairs).backward()
    assert not maps.grad[:, 1].any()


@given(st.integers(0, 10**6), st.floats(1e-3, 1.0), st.floats(1e-3, 1.0))
@settings(max_examples=25, deadline=None)
def test_it_lies_in_0_2_and_does_not_see_scale(seed, first, second):
    student, teacher = make_maps((2, 3, 1, 4, 5), seed)
    loss = cross_modal_equivariance_loss(student, teacher, all_pairs(3))
    assert 0 <= loss <= 2
    scaled = cross_modal_equivariance_loss(first * student, second * teacher, all_pairs(3))
    torch.testing.assert_close(scaled, loss, rtol=1e-9, atol=1e-12)


def test_equal_maps_cost_nothing_and_disjoint_ones_two():
    maps = torch.zeros(1, 2, 1, 8, 8)
    maps[:, 0, :, :4], maps[:, 1, :, 4:] = 1.0, 0.3
    assert cross_modal_equivariance_loss(maps, maps, all_pairs(2)).item() == pytest.approx(2, rel=1e-6)
    maps[:, 1] = 0.2 * maps[:, 0]
    assert cross_modal_equivariance_loss(maps, maps, all_pairs(2)).item() == pytest.approx(0, abs=1e-6)


def test_one_network_has_no_peer():
    maps = make_maps((2, 1, 1, 4, 4))[0].requires_grad_()
    loss = cross_modal_equivariance_loss(maps, maps, all_pairs(1))
    loss.backward()
    assert loss.item() == 0
    assert not maps.grad.any()


def test_healthy_batches_cost_nothing():
    student, teacher = make_maps((2, 3, 1, 4, 4))
    loss = CrossModalEquivarianceLoss()(student, teacher, torch.zeros(2, 1), torch.ones(2, 3, 1), all_pairs(3))
    assert loss.item() == 0


def test_an_empty_teacher_is_left_out():
    student, teacher = make_maps((2, 2, 1, 4, 4))
    teacher[0, 1] = 0.0
    filled = torch.tensor([[1.0, 0.0], [1.0, 1.0]])[..., None]
    got = cross_modal_equivariance_loss(student, teacher, all_pairs(2))
    assert got.item() == pytest.approx(literal(student, teacher, all_pairs(2), filled), rel=1e-12)
    kept = cross_modal_equivariance_loss(student, teacher, all_pairs(2), skip_empty=False)
    assert kept.item() == pytest.approx(literal(student, teacher, all_pairs(2)), rel=1e-12)
    assert kept > got


@pytest.mark.parametrize("skip_empty", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("empty", ["student", "teacher", "both"])
def test_empty_maps_give_finite_gradients(skip_empty, normalize, empty):
    student, teacher = make_maps((2, 2, 1, 4, 4))
    if empty != "teacher":
        student[0] = 0.0
    if empty != "student":
        teacher[0] = 0.0
    student.requires_grad_()
    options = {"skip_empty": skip_empty, "normalize": normalize}
    cross_modal_equivariance_loss(student, teacher, all_pairs(2), **options).backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10
    if normalize and empty != "teacher":
        assert not student.grad[0].any()


@pytest.mark.parametrize("shape", [(2, 2, 2, 3, 3), (1, 2, 1, 2, 3, 2)])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(shape, normalize):
    student, teacher = make_maps(shape)
    student.requires_grad_()
    pairs = all_pairs(2)
    assert torch.autograd.gradcheck(
        lambda maps: cross_modal_equivariance_loss(maps, teacher, pairs, normalize=normalize), student
    )


@pytest.mark.parametrize("kind", ["flip", "rotate", "scale", "translate"])
def test_gradients_are_right_from_raw_maps_through_normalization_and_warp(kind):
    torch.manual_seed(2)
    raw = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    record = PairedSpatialTransform((kind,), divisor=2, scale_range=(1.2, 1.6)).draw(raw.shape)
    teacher = torch.rand_like(record(raw)).detach()[:, :, None]
    assert torch.autograd.gradcheck(
        lambda maps: cross_modal_equivariance_loss(
            record(normalize_maps(maps, "minmax"))[:, :, None], teacher, all_pairs(2)
        ),
        raw,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_stay_in_float32(dtype):
    student, teacher = (maps.to(dtype) for maps in make_maps((2, 2, 1, 64, 64)))
    expected = literal(student.double(), teacher.double(), all_pairs(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_modal_equivariance_loss(student, teacher, all_pairs(2))
        units = unit_norm_maps(student[:, 0])
    assert loss.dtype == units.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(units.flatten(2).norm(dim=2), torch.ones(2, 1))


def test_nothing_of_the_size_of_pairs_times_pixels_is_made():
    groups, side = 6, 64
    student, teacher = make_maps((1, groups, 1, side, side))
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Sizes():
        cross_modal_equivariance_loss(student, teacher, all_pairs(groups))
    assert 0 < largest <= groups * side**2


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 4, 3, 2)])
def test_unit_norm(shape):
    maps = make_maps(shape)[0]
    maps[0, 0] = 0.0
    units = unit_norm_maps(maps.requires_grad_())
    norms = units.detach().flatten(2).norm(dim=2)
    expected = torch.ones(shape[:2], dtype=torch.float64)
    expected[0, 0] = 0.0
    torch.testing.assert_close(norms, expected)
    torch.testing.assert_close(units[1] * maps[1].flatten(1).norm(dim=1).reshape(-1, *[1] * (maps.ndim - 2)), maps[1])
    units.square().sum().backward()
    assert maps.grad.isfinite().all()
    assert not maps.grad[0, 0].any()
    assert torch.autograd.gradcheck(unit_norm_maps, maps.detach()[1:].requires_grad_())


def test_mistakes_are_named():
    maps = torch.rand(2, 3, 1, 4, 4)
    pairs = torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"`student` of shape \(B, G, K, \*S\), got \(3, 1, 4, 4\)"):
        cross_modal_equivariance_loss(maps[0], maps, pairs)
    with pytest.raises(ValueError, match=r"`teacher` of shape \(B, G, K, \*S\), got \(3, 1, 4, 4\)"):
        cross_modal_equivariance_loss(maps, maps[0], pairs)
    with pytest.raises(ValueError, match=r"agree in images, classes and pixels, got .*\(2, 3, 1, 4, 3\)"):
        cross_modal_equivariance_loss(maps, maps[..., :3], pairs)
    with pytest.raises(ValueError, match=r"`pairs` of shape \(G, H\) = \(3, 3\), got \(2, 2\)"):
        cross_modal_equivariance_loss(maps, maps, pairs[:2, :2])
    with pytest.raises(ValueError, match="`reduction` to be one of mean, sum, got 'none'"):
        cross_modal_equivariance_loss(maps, maps, pairs, reduction="none")
    with pytest.raises(ValueError, match="`mask` to be one of label_and_teacher, label, none, got 'teacher'"):
        CrossModalEquivarianceLoss(mask="teacher")
    with pytest.raises(ValueError, match="`reduction` to be one of mean, sum, got 'max'"):
        CrossModalEquivarianceLoss(reduction="max")
    with pytest.raises(ValueError, match=r"`maps` of shape \(B, K, \*S\), got \(4, 4\)"):
        unit_norm_maps(torch.ones(4, 4))
