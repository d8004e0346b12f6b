# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Adversarial losses: values by hand from probabilities, both players, reductions, and sure discriminators."""

from __future__ import annotations

import math

import pytest
import torch

from monai_wsss.losses import (
    LeastSquaresAdversarialLoss,
    MinimaxAdversarialLoss,
    NonSaturatingAdversarialLoss,
    least_squares_adversarial_loss,
    minimax_adversarial_loss,
    non_saturating_adversarial_loss,
)

MODULES = [LeastSquaresAdversarialLoss, MinimaxAdversarialLoss, NonSaturatingAdversarialLoss]
X, Y = torch.tensor([0.3, -1.2]).reshape(1, 1, 1, 2), torch.tensor([2.0, 0.5]).reshape(1, 1, 1, 2)


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def mean(*values: float) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("loss", [minimax_adversarial_loss, non_saturating_adversarial_loss])
def test_the_discriminator_minimizes_the_printed_cross_entropy(loss):
    expected = -mean(*(math.log(1 - probability(x)) for x in (0.3, -1.2)))
    expected -= mean(*(math.log(probability(y)) for y in (2.0, 0.5)))
    assert loss(X, Y).item() == pytest.approx(expected, rel=1e-6)


def test_the_generator_minimizes_log_of_one_minus_d_or_minus_log_d():
    assert minimax_adversarial_loss(X).item() == pytest.approx(
        mean(*(math.log(1 - probability(x)) for x in (0.3, -1.2))), rel=1e-6
    )
    assert non_saturating_adversarial_loss(X).item() == pytest.approx(
        -mean(*(math.log(probability(x)) for x in (0.3, -1.2))), rel=1e-6
    )


def test_least_squares_have_no_activation():
    assert least_squares_adversarial_loss(X).item() == pytest.approx(mean(0.7**2, 2.2**2))
    expected = mean(0.3**2, 1.2**2) + mean(1.0, 0.25)
    assert least_squares_adversarial_loss(X, Y).item() == pytest.approx(expected)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("others", [(), (Y.expand(3, 1, 4, 2),)])
def test_a_sum_is_that_of_the_patches_of_an_image(module, others):
    logits = X.expand(2, 1, 4, 2)
    total = module(reduction="sum")(logits, *others)
    torch.testing.assert_close(total, 8 * module()(logits, *others))


@pytest.mark.parametrize("module", MODULES)
def test_both_players_pull_in_opposite_directions(module):
    for_generator, for_discriminator = X.clone().requires_grad_(), X.clone().requires_grad_()
    module()(for_generator).backward()
    module()(for_discriminator, Y).backward()
    # The second logit is outside the interval of the least squares' two targets, where both push it up.
    assert for_generator.grad.flatten()[0] < 0 < for_discriminator.grad.flatten()[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_sure_discriminator_leaves_all_finite(module):
    sure = torch.tensor([-200.0, 200.0]).reshape(1, 1, 1, 2).requires_grad_()
    for others in ((), (sure.detach(),)):
        loss = module()(sure, *others)
        loss.backward()
        assert loss.isfinite()
        assert sure.grad.isfinite().all()


def test_minimax_is_flat_where_the_discriminator_is_sure_and_the_other_is_not():
    gradients = []
    for module in (MinimaxAdversarialLoss(), NonSaturatingAdversarialLoss()):
        sure = torch.full((1, 1, 1, 1), -20.0, requires_grad=True)
        module(sure).backward()
        gradients.append(sure.grad.abs().item())
    assert gradients[0] < 1e-6
    assert gradients[1] > 0.99


@pytest.mark.parametrize(
    ("arguments", "words", "message"),
    [
        ((X,), {"reduction": "none"}, "`reduction` to be one of mean, sum, got 'none'"),
        ((X.expand(1, 2, 1, 2),), {}, r"`converted` of shape \(B, 1, \*S\), got \(1, 2, 1, 2\)"),
        ((X, Y[0]), {}, r"`healthy` of shape \(B, 1, \*S\)"),
    ],
)
def test_mistakes_are_named(arguments, words, message):
    with pytest.raises(ValueError, match=message):
        minimax_adversarial_loss(*arguments, **words)


@pytest.mark.parametrize("module", [LeastSquaresAdversarialLoss, MinimaxAdversarialLoss, NonSaturatingAdversarialLoss])
@pytest.mark.parametrize("shape", [(0, 1, 3, 3), (2, 1, 0, 3), (2, 1, 3, 0)])
def test_no_image_and_no_patch_are_refused(module, shape):
    with pytest.raises(ValueError, match="`converted`"):
        module()(torch.zeros(shape))
    with pytest.raises(ValueError, match="`healthy`"):
        module()(torch.zeros(2, 1, 3, 3), torch.zeros(shape))
