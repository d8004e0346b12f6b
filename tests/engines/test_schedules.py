# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Loss weights over a run: each shape's values, its unit of time, and its bounds."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_wsss.engines import Progress, WeightRamp, one_cycle, polynomial, polynomial_after_warm_up

SHAPES = ["none", "step", "iteration", "gaussian", "exponential"]


def at(epoch: int = 1, fraction: float = 0.0) -> Progress:
    return Progress(epoch=epoch, iteration=1, fraction=fraction)


def test_the_default_is_a_step_at_half_of_the_run():
    ramp = WeightRamp()
    assert [ramp(at(fraction=f)) for f in (0.0, 0.49, 0.5, 0.99)] == [0.0, 0.0, 1.0, 1.0]


def test_none_is_always_one():
    assert {WeightRamp("none")(at(epoch, fraction)) for epoch in (1, 99) for fraction in (0.0, 0.9)} == {1.0}


def test_the_paper_counts_epochs_from_zero():
    """lambda_E = exp(-(t - T)^2) for 0 <= t < T, 1 afterwards; T = 15."""
    ramp = WeightRamp("exponential", end=15)
    for epoch in range(1, 30):
        t = epoch - 1
        expected = math.exp(-((t - 15) ** 2)) if t < 15 else 1.0
        # Where the run stands as a share of it plays no part.
        for fraction in (0.0, 0.9):
            assert ramp(at(epoch, fraction)) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_gaussian_counts_shares_of_the_run():
    ramp = WeightRamp("gaussian", end=0.4)
    for fraction in (0.0, 0.1, 0.2, 0.399):
        expected = math.exp(-5 * (1 - fraction / 0.4) ** 2)
        assert ramp(at(epoch=77, fraction=fraction)) == pytest.approx(expected, rel=1e-12)
    assert ramp(at(fraction=0.4)) == ramp(at(fraction=0.9)) == 1.0


@given(st.sampled_from(SHAPES), st.floats(0.05, 20), st.lists(st.floats(0, 0.999), min_size=2, max_size=6))
def test_weights_lie_in_0_1_and_never_fall(shape, end, fractions):
    ramp = WeightRamp(shape, end=end)
    weights = [ramp(at(1 + int(30 * fraction), fraction)) for fraction in sorted(fractions)]
    assert weights == sorted(weights)
    assert 0 <= weights[0] <= weights[-1] <= 1


def test_mistakes_are_named():
    names = "none, step, iteration, gaussian, exponential"
    with pytest.raises(ValueError, match=f"`shape` to be one of {names}, got 'linear'"):
        WeightRamp("linear")
    for end in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"`end` > 0, got {end}"):
            WeightRamp("step", end=end)
    with pytest.raises(FrozenInstanceError):
        WeightRamp().end = 3


def test_iterations_count_from_zero():
    ramp = WeightRamp("iteration", end=2000)
    iterations = (1, 2000, 2001)
    assert [ramp(Progress(epoch=1, iteration=i, fraction=0.99)) for i in iterations] == [0.0, 0.0, 1.0]


def rates(steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 2.0}])
    schedule = polynomial_after_warm_up(optimizer, 2, [0] * 5, **options)
    result = []
    for _ in range(steps):
        result.extend(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    return result


def test_the_rate_rises_then_falls_from_where_the_run_stands():
    got = rates(14, warm_up=4, start=0.1, power=0.9)
    rising = [2 * (0.1 + 0.9 * t / 4) for t in range(4)]
    falling = [2 * (1 - t / 10) ** 0.9 for t in range(4, 10)]
    assert got == pytest.approx([*rising, *falling, *[falling[-1]] * 4])


def test_the_decay_has_a_floor_and_needs_no_warm_up():
    assert rates(10, warm_up=0, floor=0.5) == pytest.approx([2 * max(1 - t / 10, 0.5) for t in range(10)])
    with pytest.raises(ValueError, match="`warm_up` >= 0"):
        rates(1, warm_up=-1)


def test_schedules_can_count_iterations_in_place_of_epochs():
    def rates(make, **length):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimizer, **length)
        seen = []
        for _ in range(6):
            seen += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        return seen

    for make in (
        lambda optimizer, **length: one_cycle(optimizer, 1.0, **length),
        polynomial,
        lambda optimizer, **length: polynomial_after_warm_up(optimizer, warm_up=2, **length),
    ):
        by_epochs = rates(make, max_epochs=2, train_data_loader=[0] * 3)
        by_iterations = rates(make, max_epochs=99, train_data_loader=[0] * 4, max_iterations=6)
        assert by_epochs == by_iterations


@pytest.mark.parametrize(("step", "done"), [("iteration", [0, 1, 2, 3, 4, 5, 6]), ("epoch", [0, 0, 0, 3, 3, 3, 6])])
def test_the_polynomial_decay_follows_iterations_or_epochs(step, done):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = polynomial(optimizer, 2, [0] * 3, power=0.9, step=step)
    seen = []
    for _ in done:
        seen += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([2 * (1 - t / 6) ** 0.9 for t in done])
    with pytest.raises(ValueError, match="`step`"):
        polynomial(optimizer, 2, [0], step="day")


@pytest.mark.parametrize("iterations", [0, -3, 2.5, "many"])
def test_a_number_of_iterations_that_is_none_is_refused(iterations):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="`max_iterations` to be a whole number of at least 1, got"):
        polynomial(optimizer, 1, [0], max_iterations=iterations)
