# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA's cross-entropy by reliability against its equation, pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from monai_wsss.losses.reliability_weighted import ReliabilityWeightedLoss, reliability_weighted_loss

SIZES = [(5, 4), (3, 2, 4)]
IDS = ["2d", "3d"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 4)):
    """Logits, labels of which some are ignored, and perplexities of which some are infinite."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((3, 4, *size), generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (3, *size), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = 255
    perplexity = 0.2 + 3 * torch.rand(label.shape, generator=generator, dtype=torch.float64)
    perplexity[torch.rand(label.shape, generator=generator) < 0.1] = torch.inf
    return logits, label, perplexity


def literal(logits, label, perplexity, by_image: bool) -> float:
    """Weights first, then the mean over the pixels that count."""
    rows = []
    for b, (scores, classes, of_image) in enumerate(zip(logits, label, perplexity, strict=True)):
        for x, y, p in zip(
            scores.movedim(0, -1).flatten(0, -2).detach().numpy(), classes.flatten(), of_image.flatten(), strict=True
        ):
            if y != 255:
                rows.append((b if by_image else 0, -log_softmax(x)[y], 0.0 if math.isinf(p) else 1 / p.item()))
    total = 0.0
    for group in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == group]
        total += sum(len(own) * r / sum(row[2] for row in own) * loss for _, loss, r in own)
    return total / len(rows)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("normalize", ["batch", "image"])
def test_it_is_the_equation(size, normalize):
    logits, label, perplexity = make(size=size)
    expected = literal(logits, label, perplexity, normalize == "image")
    assert reliability_weighted_loss(logits, label, perplexity, normalize=normalize).item() == pytest.approx(expected)
    module = ReliabilityWeightedLoss(normalize=normalize, ignore_index=-1)
    assert module(logits, label.masked_fill(label == 255, -1).float(), perplexity).item() == pytest.approx(expected)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("normalize", ["batch", "image"])
def test_without_perplexity_it_is_the_mean_cross_entropy(size, normalize):
    logits, label, _ = make(size=size)
    expected = F.cross_entropy(logits, label, ignore_index=255)
    for perplexity in (None, torch.full(label.shape, 0.7)):
        torch.testing.assert_close(reliability_weighted_loss(logits, label, perplexity, normalize=normalize), expected)


@pytest.mark.parametrize("size", [(3, 2), (2, 1, 2)], ids=IDS)
@pytest.mark.parametrize("normalize", ["batch", "image"])
def test_gradcheck(size, normalize):
    logits, label, perplexity = make(size=size)
    loss = ReliabilityWeightedLoss(normalize=normalize)
    assert torch.autograd.gradcheck(lambda x: loss(x, label, perplexity), logits.requires_grad_())


@given(st.integers(0, 10**6), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_only_ratios_of_perplexities_count_and_the_loss_lies_among_those_of_the_pixels(seed, times):
    logits, label, perplexity = make(seed)
    loss = reliability_weighted_loss(logits, label, perplexity)
    torch.testing.assert_close(reliability_weighted_loss(logits, label, times * perplexity), loss)
    of_pixels = F.cross_entropy(logits, label, ignore_index=255, reduction="none")[label != 255]
    assert of_pixels.min() <= loss <= of_pixels.max()


def test_a_label_in_doubt_pulls_less():
    logits, label, perplexity = make()
    label[0, 0, 0], perplexity[0, 0, 0] = 1, 1.0
    pulls = []
    for own in (0.5, 2.0, torch.inf):
        perplexity[0, 0, 0] = own
        given_ = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reliability_weighted_loss(given_, label, perplexity), given_)
        pulls.append(gradient[0, :, 0, 0].abs().sum().item())
    assert pulls[0] > pulls[1] > pulls[2] == 0


def test_perplexity_has_no_gradient():
    logits, label, perplexity = make()
    perplexity.requires_grad_()
    loss = reliability_weighted_loss(logits.requires_grad_(), label, perplexity)
    assert torch.autograd.grad(loss, [logits, perplexity], allow_unused=True)[1] is None


@pytest.mark.parametrize("normalize", ["batch", "image"])
@pytest.mark.parametrize("nothing", ["label", "reliability", "image"])
def test_nothing_to_learn_from_is_a_zero_with_a_graph(normalize, nothing):
    logits, label, perplexity = make()
    logits.requires_grad_()
    if nothing == "label":
        label.fill_(255)
    elif nothing == "reliability":
        perplexity.fill_(torch.inf)
    else:
        label[0], perplexity[1] = 255, torch.inf
    loss = reliability_weighted_loss(logits, label, perplexity, normalize=normalize)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any()) == (nothing == "image")
    expected = reliability_weighted_loss(logits[2:], label[2:], perplexity[2:]) if nothing == "image" else 0 * loss
    torch.testing.assert_close(loss, expected)


def test_a_perplexity_of_zero_decides_alone():
    logits, label, perplexity = make()
    label[0, 0, 0], perplexity[0, 0, 0] = 2, 0.0
    loss = reliability_weighted_loss(logits, label, perplexity)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:1, :, 0, 0], torch.tensor([2])), rtol=1e-3, atol=1e-3)


def test_the_smallest_perplexity_is_a_millionth():
    logits = torch.tensor([[[[0.0, 0.0]], [[1.0, 3.0]]]], dtype=torch.float64)
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    by_pixel = -logits.log_softmax(1)[0, 0, 0]
    for least in (0.0, 1e-6):
        # The weights are 1 000 000 and 500 000.
        loss = reliability_weighted_loss(logits, label, torch.tensor([[[least, 2e-6]]], dtype=torch.float64))
        torch.testing.assert_close(loss, (2 * by_pixel[0] + by_pixel[1]) / 3)


def test_bad_input():
    logits, label = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match=r"`label` of shape \(B, \*S\) = \(2, 4, 4\), got \(2, 8, 8\): bring logits"):
        reliability_weighted_loss(logits, torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"`perplexity` of the shape of `label`, \(2, 4, 4\), got \(2, 4\)"):
        reliability_weighted_loss(logits, label, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="`normalize` to be one of batch, image, got 'pixel'"):
        ReliabilityWeightedLoss(normalize="pixel")
    with pytest.raises(ValueError, match=r"classes 0\.\.2 and `ignore_index` 255 only, got values"):
        reliability_weighted_loss(logits, label + 3)
    assert ReliabilityWeightedLoss(validate_args=False)(logits, label + 0.5).isfinite()
