# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""AFA's balanced cross-entropy against its equation, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from monai_wsss.losses.balanced_cross_entropy import BalancedCrossEntropyLoss, balanced_cross_entropy_loss

SIZES = [(5, 4), (3, 2, 4)]
IDS = ["2d", "3d"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 4)):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((3, 4, *size), generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (3, *size), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = 255
    return logits, label


def literal(logits: torch.Tensor, label: torch.Tensor, weight: float = 0.5) -> float:
    sides: tuple[list[float], list[float]] = ([], [])
    for scores, y in zip(logits.detach().movedim(1, -1).flatten(0, -2).numpy(), label.flatten().tolist(), strict=True):
        if y != 255:
            sides[y > 0].append(-log_softmax(scores)[y])
    background, foreground = (float(np.mean(side)) if side else 0.0 for side in sides)
    return weight * background + (1 - weight) * foreground


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("weight", [0.5, 0.2, 0.0, 1.0])
def test_it_is_the_equation(size, weight):
    logits, label = make(size=size)
    expected = literal(logits, label, weight)
    assert balanced_cross_entropy_loss(logits, label, background_weight=weight).item() == pytest.approx(expected)
    module = BalancedCrossEntropyLoss(background_weight=weight, ignore_index=-1)
    assert module(logits, label.masked_fill(label == 255, -1).float()).item() == pytest.approx(expected)


@pytest.mark.parametrize("size", [(3, 2), (2, 1, 2)], ids=IDS)
def test_gradcheck(size):
    logits, label = make(size=size)
    assert torch.autograd.gradcheck(lambda x: balanced_cross_entropy_loss(x, label), logits.requires_grad_())


@given(st.integers(0, 10**6), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_a_side_counts_the_same_however_often_it_is_there(seed, times):
    logits, label = make(seed)
    more = label.masked_fill(label != 0, 255)  # the background alone, again and again
    repeated = torch.cat((logits, *[logits] * times)), torch.cat((label, *[more] * times))
    torch.testing.assert_close(balanced_cross_entropy_loss(*repeated), balanced_cross_entropy_loss(logits, label))


@pytest.mark.parametrize("only", [0, 1, 255])
def test_a_missing_side_is_a_zero_with_a_graph(only):
    logits = make()[0].requires_grad_()
    label = torch.full((3, 5, 4), only)
    loss = balanced_cross_entropy_loss(logits, label)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = 0.0 if only == 255 else 0.5 * F.cross_entropy(logits, label).item()
    assert loss.item() == pytest.approx(expected)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any()) == (only != 255)


def test_a_broken_network_shows():
    logits, label = make()
    assert balanced_cross_entropy_loss(logits * torch.nan, label).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    logits, label = make()
    half = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = balanced_cross_entropy_loss(half, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, balanced_cross_entropy_loss(half.float(), label))


def test_bad_input():
    with pytest.raises(ValueError, match=r"`label` of shape \(B, \*S\) = \(2, 4, 4\), got \(2, 8, 8\): bring logits"):
        balanced_cross_entropy_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"`logits` of shape \(B, K\+1, \*S\), got \(2, 3\)"):
        balanced_cross_entropy_loss(torch.zeros(2, 3), torch.zeros(2))
    for value in (-1, 3):
        with pytest.raises(ValueError, match=r"`label` to hold classes 0\.\.2 and `ignore_index` 255 only, got values"):
            balanced_cross_entropy_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), value))
    with pytest.raises(ValueError, match=r"`ignore_index` to be no class, got 1 with classes 0\.\.2"):
        balanced_cross_entropy_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), ignore_index=1)
    with pytest.raises(ValueError, match=r"`background_weight` in \[0, 1\], got 1.5"):
        BalancedCrossEntropyLoss(background_weight=1.5)
    with pytest.raises(ValueError, match=r"`background_weight` in \[0, 1\], got -1"):
        balanced_cross_entropy_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), background_weight=-1)


def test_arguments_are_checked_unless_they_are_known_to_fit():
    logits, label = make()
    module = BalancedCrossEntropyLoss(background_weight=0.2, validate_args=False)
    assert torch.equal(module(logits, label), BalancedCrossEntropyLoss(background_weight=0.2)(logits, label))
    fraction = label.double().masked_fill(label == 1, 1.5)
    with pytest.raises(ValueError, match="fractions or NaN"):
        BalancedCrossEntropyLoss()(logits, fraction)
    assert module(logits, fraction).isfinite()
