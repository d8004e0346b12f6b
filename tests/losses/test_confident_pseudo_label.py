# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""c2s and s2c against their equations, pixel by pixel in float64, without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax

from monai_wsss.losses.confident_pseudo_label import (
    ClassToSegmentationLoss,
    SegmentationToClassLoss,
    class_to_segmentation_loss,
    segmentation_to_class_loss,
)

KINDS = ["softmargin", "ce", "bce"]
SIZES = [(5, 4), (3, 2, 4)]
IDS = ["2d", "3d"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 4), classes: int = 3):
    """Logits of K+1 channels, of K channels, and labels 0..K; the last image ignored throughout."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((3, classes + 1, *size), generator=generator, dtype=torch.float64)
    maps = 3 * torch.randn((3, classes, *size), generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes + 1, (3, *size), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = 255
    label[2] = 255
    return logits, maps, label


def literal(logits: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, kind: str) -> float:
    """The mean of l over the pixels that count; ``target`` is a channel or -1."""
    x = logits.detach().movedim(1, -1).flatten(0, -2).numpy()
    losses = []
    for scores, t in zip(x[counted.flatten()], target[counted].tolist(), strict=True):
        if kind == "ce":
            losses.append(-log_softmax(scores)[t])
        else:
            p, goal = expit(scores), np.arange(len(scores)) == t
            losses.append(-np.mean(np.log(np.where(goal, p, 1 - p))))
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_they_are_the_equations(kind, size):
    logits, maps, label = make(size=size)
    expected = literal(logits, label, label != 255, kind)
    assert class_to_segmentation_loss(logits, label, kind=kind).item() == pytest.approx(expected, rel=1e-10)
    assert ClassToSegmentationLoss(kind=kind)(logits, label).item() == pytest.approx(expected, rel=1e-10)
    expected = literal(maps, label - 1, (label != 255) & (label != 0), kind)
    assert segmentation_to_class_loss(maps, label, kind=kind).item() == pytest.approx(expected, rel=1e-10)
    assert SegmentationToClassLoss(kind=kind)(maps, label).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_background_as_negatives(classes):
    _, maps, label = make(classes=classes)
    everywhere = literal(maps, label - 1, label != 255, "bce")
    got = segmentation_to_class_loss(maps, label, kind="bce", use_background=True)
    assert got.item() == pytest.approx(everywhere, rel=1e-10)
    positive = torch.tensor([True, False, True])
    counted = (label != 255) & ((label != 0) | positive[:, None, None])
    expected = literal(maps, label - 1, counted, "bce")
    module = SegmentationToClassLoss(kind="softmargin", use_background=True)
    assert module(maps, label, positive).item() == pytest.approx(expected, rel=1e-10)
    assert module(maps, label, torch.zeros(3)).item() == pytest.approx(
        segmentation_to_class_loss(maps, label, kind="bce").item(), rel=1e-12
    )


def test_they_are_those_of_torch():
    logits, _, label = make()
    torch.testing.assert_close(
        class_to_segmentation_loss(logits, label, kind="ce"), F.cross_entropy(logits, label, ignore_index=255)
    )
    counted = label != 255
    one_hot = F.one_hot(label[counted], 4).double()
    torch.testing.assert_close(
        class_to_segmentation_loss(logits, label),
        F.multilabel_soft_margin_loss(logits.movedim(1, -1)[counted], one_hot),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(3, 2), (2, 2, 2)], ids=IDS)
def test_gradcheck(kind, size):
    logits, maps, label = make(size=size, classes=2)
    background = kind == "bce"
    assert torch.autograd.gradcheck(lambda x: class_to_segmentation_loss(x, label, kind=kind), logits.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x: segmentation_to_class_loss(x, label, kind=kind, use_background=background), maps.requires_grad_()
    )


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.sampled_from(SIZES))
@settings(max_examples=30, deadline=None)
def test_pixels_that_do_not_count_do_not_matter(seed, kind, size):
    logits, maps, label = make(seed, size)
    for loss, x, counted in (
        (class_to_segmentation_loss, logits, label != 255),
        (segmentation_to_class_loss, maps, (label != 255) & (label != 0)),
    ):
        value = loss(x, label, kind=kind)
        other = torch.where(counted[:, None], x, 5 * torch.randn_like(x))
        torch.testing.assert_close(loss(other, label, kind=kind), value)
        torch.testing.assert_close(loss(x.flip(0, 2), label.flip(0, 1), kind=kind), value)
        assert value.item() >= 0


def test_one_class_alone_only_raises_its_map():
    """Foreground alone pushes up; the background pushes down."""
    maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
    label = (torch.arange(16) % 2).reshape(1, 4, 4)
    (gradient,) = torch.autograd.grad(segmentation_to_class_loss(maps, label, kind="bce"), maps)
    assert bool((gradient[0][label == 1] < 0).all())
    assert not gradient[0][label == 0].any()
    loss = segmentation_to_class_loss(maps, label, kind="bce", use_background=True)
    (gradient,) = torch.autograd.grad(loss, maps)
    assert bool((gradient[0][label == 0] > 0).all())
    assert bool((gradient[0][label == 1] < 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_gives_a_zero_with_a_graph(kind):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    losses = [
        class_to_segmentation_loss(x, torch.full((2, 4, 4), 255), kind=kind),
        segmentation_to_class_loss(x, torch.full((2, 4, 4), 255), kind=kind),
        segmentation_to_class_loss(x, torch.zeros(2, 4, 4), kind=kind),  # background alone
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0
        assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_extremes(kind):
    """Logits of 1e4 stay finite, one pixel is enough, and a broken network shows."""
    x = torch.tensor([[[[1e4]], [[-1e4]]]], requires_grad=True)
    for label in (0, 1):
        target = torch.full((1, 1, 1), label)
        for loss in (
            class_to_segmentation_loss(x, target, kind=kind),
            segmentation_to_class_loss(x, target + 1, kind=kind),
        ):
            (gradient,) = torch.autograd.grad(loss, x)
            assert bool(loss.isfinite() & gradient.isfinite().all())
            assert (loss.item() > 1e3) == (label == 1)
    assert class_to_segmentation_loss(x * torch.nan, torch.zeros(1, 1, 1), kind=kind).isnan()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    logits, maps, label = make(size=(12, 12))
    for loss, x in ((class_to_segmentation_loss, logits), (segmentation_to_class_loss, maps)):
        half = x.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = loss(half, label, kind=kind)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, loss(half.float(), label, kind=kind))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_labels_of_any_dtype(dtype):
    logits, maps, label = make()
    assert class_to_segmentation_loss(logits, label.to(dtype)) == class_to_segmentation_loss(logits, label)
    assert segmentation_to_class_loss(maps, label.to(dtype)) == segmentation_to_class_loss(maps, label)


def test_another_ignore_index():
    logits, maps, label = make()
    other = label.masked_fill(label == 255, -1)
    assert ClassToSegmentationLoss(ignore_index=-1)(logits, other) == class_to_segmentation_loss(logits, label)
    module = SegmentationToClassLoss(kind="bce", use_background=True, ignore_index=-1)
    expected = segmentation_to_class_loss(maps, label, kind="bce", use_background=True)
    assert module(maps, other) == expected


@pytest.mark.parametrize(
    ("channels", "label", "options", "message"),
    [
        (
            1,
            (2, 4, 4),
            {"kind": "ce"},
            "'bce' for the activations of a single class, got 'ce': over one channel it is always 0",
        ),
        (3, (2, 4, 4), {"use_background": True}, "'bce' with `use_background`, got 'ce'"),
        (3, (2, 4, 4), {"kind": "focal"}, "`kind` to be one of auto, softmargin, ce, bce, got 'focal'"),
        (3, (2, 1, 4, 4), {}, r"`label` of shape \(B, \*S\) = \(2, 4, 4\), got \(2, 1, 4, 4\)"),
        (
            3,
            (2, 4, 4),
            {"kind": "bce", "use_background": True, "positive": torch.ones(2, 1)},
            r"`positive` of shape \(B,\) = \(2,\), got \(2, 1\)",
        ),
    ],
)
def test_bad_input(channels, label, options, message):
    with pytest.raises(ValueError, match=message):
        segmentation_to_class_loss(torch.zeros(2, channels, 4, 4), torch.zeros(label), **options)


def test_bad_input_of_the_other_way():
    with pytest.raises(ValueError, match=r"bring logits and labels to one size"):
        class_to_segmentation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"`logits` of shape \(B, C, \*S\), got \(2, 3\)"):
        class_to_segmentation_loss(torch.zeros(2, 3), torch.zeros(2))
    for module, options in ((ClassToSegmentationLoss, {"kind": "x"}), (SegmentationToClassLoss, {"kind": "x"})):
        with pytest.raises(ValueError, match="`kind` to be one of"):
            module(**options)
    with pytest.raises(ValueError, match="the background has no channel"):
        SegmentationToClassLoss(kind="ce", use_background=True)
    with pytest.raises(ValueError, match="`kind` to be one of softmargin, ce, bce, got 'auto'"):
        class_to_segmentation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), kind="auto")


def test_the_default_of_s2c_is_binary_for_one_class_alone():
    for classes, kind in ((1, "bce"), (3, "ce")):
        _, maps, label = make(classes=classes)
        expected = segmentation_to_class_loss(maps, label, kind=kind)
        assert expected > 0
        assert segmentation_to_class_loss(maps, label) == expected
        assert SegmentationToClassLoss()(maps, label) == expected
    _, maps, label = make(classes=1)
    expected = segmentation_to_class_loss(maps, label, kind="bce", use_background=True)
    assert SegmentationToClassLoss(use_background=True)(maps, label) == expected


@pytest.mark.parametrize(
    ("value", "ignore_index", "message"),
    [
        (-1, 255, r"`label` to hold classes 0\.\.2 and `ignore_index` 255 only, got values from -1 to 2\."),
        (3, 255, r"only, got values from 0 to 3\."),
        (255, -1, r"`ignore_index` -1 only, got values from 0 to 255\."),
        (0.5, 255, r"only, got fractions or NaN\."),
        (float("nan"), 255, r"only, got fractions or NaN\."),
        (255, 2, r"`ignore_index` to be no class, got 2 with classes 0\.\.2: choose another"),
        (255, 0, r"`ignore_index` to be no class, got 0 with classes 0\.\.2: choose another"),
    ],
)
@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_labels_that_are_no_class_are_said(size, value, ignore_index, message):
    logits, maps, label = make(size=size, classes=2)
    label = label.masked_fill(label == 255, ignore_index).to(torch.tensor(value).dtype)
    label[0].view(-1)[:3] = torch.tensor([0, 2, value])
    with pytest.raises(ValueError, match=message):
        class_to_segmentation_loss(logits, label, ignore_index=ignore_index)
    with pytest.raises(ValueError, match=message):
        segmentation_to_class_loss(maps, label, ignore_index=ignore_index)


def test_labels_of_bool_and_of_no_image():
    logits, maps, label = make(classes=1)
    expected = class_to_segmentation_loss(logits, (label == 1).long())
    assert class_to_segmentation_loss(logits, label == 1) == expected
    assert class_to_segmentation_loss(logits[:0], label[:0]) == segmentation_to_class_loss(maps[:0], label[:0]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_checked_unless_they_are_known_to_fit(kind):
    logits, maps, label = make()
    fraction = label.double().masked_fill(label == 1, 1.5)
    for loss, values in ((ClassToSegmentationLoss, logits), (SegmentationToClassLoss, maps)):
        checked, trusting = loss(kind=kind), loss(kind=kind, validate_args=False)
        assert torch.equal(checked(values, label), trusting(values, label))
        with pytest.raises(ValueError, match="fractions or NaN"):
            checked(values, fraction)
        assert trusting(values, fraction).isfinite()
    positive = torch.tensor([True, False, True])
    if kind != "ce":
        with_background = [
            SegmentationToClassLoss(kind=kind, use_background=True, validate_args=validate)(maps, label, positive)
            for validate in (True, False)
        ]
        assert torch.equal(*with_background)
