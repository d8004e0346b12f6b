# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One contract for all losses, by inventory: a new one that does not keep it fails here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monai_wsss.losses
from monai_wsss._labels import IGNORED

EVERY = {name: getattr(monai_wsss.losses, name) for name in monai_wsss.losses.__all__}
MODULES = {name: value for name, value in EVERY.items() if inspect.isclass(value)}
FUNCTIONS = {name for name in EVERY if name not in MODULES}
HELPERS = {"peer_weights", "unit_norm_maps"}
PEERS = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
Given = Callable[[int, torch.Generator], tuple[torch.Tensor, tuple[Any, ...]]]


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def labels(generator: torch.Generator, dims: int, classes: int) -> torch.Tensor:
    drawn = torch.randint(0, classes + 1, (2, *(4,) * dims), generator=generator)
    drawn.view(-1)[:2] = IGNORED
    return drawn


# What a loss learns from, (B, channels, *S), and what it is compared with.
GIVEN: dict[str, Given] = {
    "AffinityLoss": lambda dims, g: (random(g, 2, 4**dims, 4**dims), (labels(g, dims, 2),)),
    "BalancedCrossEntropyLoss": lambda dims, g: (random(g, 2, 3, *(4,) * dims), (labels(g, dims, 2),)),
    "ClassToSegmentationLoss": lambda dims, g: (random(g, 2, 3, *(4,) * dims), (labels(g, dims, 2),)),
    "ContrastiveSeparationLoss": lambda dims, g: (
        random(g, 2, 3, *(4,) * dims),
        (labels(g, dims, 2), random(g, 2, *(4,) * dims) < 0.8),
    ),
    "CrossModalEquivarianceLoss": lambda dims, g: (
        random(g, 2, 2, 1, *(4,) * dims),
        (random(g, 2, 2, 1, *(4,) * dims), torch.ones(2, 1), torch.ones(2, 2, 1), PEERS),
    ),
    "DenseEnergyLoss": lambda dims, g: (
        random(g, 2, 3, *(4,) * dims),
        (255 * random(g, 2, 1, *(4,) * dims), labels(g, dims, 2)),
    ),
    "EquivarianceLoss": lambda dims, g: (
        random(g, 2, 2, *(4,) * dims),
        (random(g, 2, 2, *(4,) * dims), torch.ones(2, 2)),
    ),
    "LeastSquaresAdversarialLoss": lambda dims, g: (random(g, 2, 1, *(4,) * dims), (random(g, 2, 1, *(4,) * dims),)),
    "MinimaxAdversarialLoss": lambda dims, g: (random(g, 2, 1, *(4,) * dims), (random(g, 2, 1, *(4,) * dims),)),
    "MutualDistillationLoss": lambda dims, g: (random(g, 2, 2, 3), (random(g, 2, 2, 3), PEERS)),
    "NonSaturatingAdversarialLoss": lambda dims, g: (random(g, 2, 1, *(4,) * dims), (random(g, 2, 1, *(4,) * dims),)),
    "PurifiedLabelLoss": lambda dims, g: (random(g, 2, 3, *(4,) * dims), (labels(g, dims, 2),)),
    "ReliabilityWeightedLoss": lambda dims, g: (
        random(g, 2, 3, *(4,) * dims),
        (labels(g, dims, 2), 3 * random(g, 2, *(4,) * dims)),
    ),
    "SegmentationToCamLoss": lambda dims, g: (
        random(g, 2, 2, *(4,) * dims),
        (random(g, 2, 3, *(6,) * dims).softmax(1),),
    ),
    "SegmentationToClassLoss": lambda dims, g: (random(g, 2, 2, *(4,) * dims), (labels(g, dims, 2),)),
}


def draw(name: str, dims: int = 2) -> tuple[torch.Tensor, tuple[Any, ...]]:
    return GIVEN[name](dims, torch.Generator().manual_seed(3))


def test_every_loss_is_in_the_inventory():
    assert set(MODULES) == set(GIVEN)
    assert all(issubclass(value, nn.Module) for value in MODULES.values())
    twins = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in MODULES}
    assert twins | HELPERS == FUNCTIONS, "a Module and a function of one name"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(GIVEN))
def test_a_loss_is_a_scalar_that_pulls(name, dims):
    given, others = draw(name, dims)
    given.requires_grad_()
    loss = MODULES[name]()(given, *others)
    assert loss.ndim == 0
    assert loss.dtype == torch.float64
    assert loss.item() > 0
    loss.backward()
    assert given.grad.isfinite().all()
    assert given.grad.any()
    assert MODULES[name]()((given - 1e-3 * given.grad / given.grad.norm()).detach(), *others) < loss


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_gradients_are_those_of_finite_differences(name):
    given, others = draw(name)
    given = (0.8 * given + 0.1).requires_grad_()
    module = MODULES[name]()
    if name == "PurifiedLabelLoss":  # its weights are held fixed
        assert torch.autograd.gradcheck(lambda x: module(x, *others, purify=False), given)
    elif name == "DenseEnergyLoss":  # so is its gate; and its value is too small to be told from none
        module = MODULES[name](gate=False, factor=1.0)
        assert torch.autograd.gradcheck(lambda x: module(x, *others), given)
    else:
        assert torch.autograd.gradcheck(lambda x: module(x, *others), given)


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_half_precision_is_computed_in_float32(name):
    given, others = draw(name)
    others = tuple(part.float() if part.is_floating_point() else part for part in others)
    expected = MODULES[name]()(given.bfloat16().float(), *others)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MODULES[name]()(given.bfloat16(), *others)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", sorted(GIVEN))
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_input_and_nothing_to_learn_from_stay_finite(name, value):
    given, others = draw(name)
    given = torch.full_like(given, value).requires_grad_()
    nothing = tuple(
        torch.full_like(part, IGNORED) if not part.is_floating_point() else torch.zeros_like(part) for part in others
    )
    for each in (others, nothing):
        given.grad = None
        loss = MODULES[name]()(given, *each)
        loss.backward()
        assert loss.isfinite()
        assert given.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_a_batch_is_the_mean_of_its_halves_or_says_how_it_counts(name):
    """Images given twice change nothing: no loss grows with the batch."""
    given, others = draw(name)
    twice = [torch.cat((part, part)) if len(part) == len(given) and part is not PEERS else part for part in others]
    once, doubled = MODULES[name]()(given, *others), MODULES[name]()(torch.cat((given, given)), *twice)
    # The affinity counts one pair more than there are, as its source does.
    torch.testing.assert_close(doubled, once, rtol=2e-2 if name == "AffinityLoss" else 1e-9, atol=0)
