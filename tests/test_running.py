# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Moving averages against a loop over steps; entries that were not seen; processes; weights from before `filled`."""

from __future__ import annotations

from itertools import chain, repeat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss._running import RunningMean, fill_where_finite


def loop(steps: list[list[float | None]], momentum: float) -> list[float | None]:
    """Follow each entry by itself; None where nothing was seen."""
    averages: list[float | None] = [None] * len(steps[0])
    for step in steps:
        for n, value in enumerate(step):
            if value is not None:
                before = averages[n]
                averages[n] = value if before is None else momentum * before + (1 - momentum) * value
    return averages


def follow(steps: list[list[float | None]], momentum: float) -> RunningMean:
    mean = RunningMean(len(steps[0]), momentum=momentum).double()
    for step in steps:
        now = torch.tensor([0.0 if value is None else value for value in step], dtype=torch.float64)
        mean.update(now, torch.tensor([value is not None for value in step]))
    return mean


VALUES = st.one_of(st.none(), st.floats(-1e3, 1e3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 0.9]))
def test_it_is_the_loop_over_steps_and_stays_within_what_it_saw(steps, momentum):
    mean = follow(steps, momentum)
    assert mean.value.isfinite().all()
    for n, expected in enumerate(loop(steps, momentum)):
        assert bool(mean.filled[n]) == (expected is not None)
        assert float(mean.value[n]) == pytest.approx(expected or 0.0, rel=1e-9, abs=1e-9)
        seen = [step[n] for step in steps if step[n] is not None]
        if seen:
            assert min(seen) - 1e-9 <= float(mean.value[n]) <= max(seen) + 1e-9


def test_the_first_value_begins_and_the_momentum_follows():
    mean = RunningMean(momentum=0.9)
    assert (mean.value.item(), mean.filled.item()) == (0.0, False)
    mean.update(torch.tensor(5.0, requires_grad=True))
    assert (mean.value.item(), mean.filled.item()) == (5.0, True)
    assert not mean.value.requires_grad
    mean.update(torch.tensor(7.0))
    assert mean.value.item() == pytest.approx(0.9 * 5 + 0.1 * 7)


def test_a_step_without_a_value_changes_nothing():
    mean = follow([[2.0, None]], 0.9)
    mean.update(torch.tensor([9.0, 9.0]), torch.tensor([False, False]))
    assert mean.value.tolist() == [2.0, 0.0]
    assert mean.filled.tolist() == [True, False]


def test_its_state_is_finite_and_resumes():
    mean, other = follow([[2.0, None], [4.0, None]], 0.9), RunningMean(2, momentum=0.9).double()
    state = mean.state_dict()
    assert set(state) == {"value", "filled"}
    assert state["value"].isfinite().all()
    other.load_state_dict(state)
    for each in (mean, other):
        each.update(torch.tensor([6.0, 6.0], dtype=torch.float64))
    assert torch.equal(mean.value, other.value)
    assert other.filled.all()


@pytest.mark.parametrize("prefix", ["", "peers."])
def test_weights_from_before_there_was_filled_are_read(prefix):
    """NaN meant that nothing had been seen."""
    module = torch.nn.Module()
    module.peers = RunningMean(3, momentum=0.9)
    target = module.peers if not prefix else module
    target.load_state_dict({f"{prefix}value": torch.tensor([1.5, torch.nan, -2.0])})
    assert module.peers.value.tolist() == [1.5, 0.0, -2.0]
    assert module.peers.filled.tolist() == [True, False, True]


def test_several_levels_are_filled_where_all_are_finite():
    state = {"low": torch.tensor([1.0, torch.nan, 3.0]), "high": torch.tensor([2.0, 4.0, torch.inf])}
    fill_where_finite(state, "", ("low", "high"))
    assert state["filled"].tolist() == [True, False, False]
    assert (state["low"].tolist(), state["high"].tolist()) == ([1.0, 0.0, 0.0], [2.0, 0.0, 0.0])
    fill_where_finite(state_without := {"low": torch.zeros(1)}, "", ("low", "high"))
    assert set(state_without) == {"low"}


def test_old_weights_that_were_copied_over_a_new_state_are_filled_where_they_say_something():
    """MONAI's bundle loader keeps ``filled`` of the new network; a level that it says is filled may be zero."""
    told = torch.tensor([False, True, True, False, False])
    state = {"level": torch.tensor([2.0, 3.0, 0.0, 0.0, torch.nan]), "filled": told}
    fill_where_finite(state, "", ("level",))
    assert state["filled"].tolist() == [True, True, True, False, False]
    assert state["level"].tolist() == [2.0, 3.0, 0.0, 0.0, 0.0]


def test_processes_share_their_values_and_who_has_none_is_left_out(monkeypatch):
    """The other process saw 8 and 5 in the entries 0 and 1, this one 4 in the entry 0."""
    mean = RunningMean(3, momentum=0.5)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    others = chain.from_iterable(repeat((torch.tensor([8.0, 5.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: part.add_(next(others)))
    mean.update(torch.tensor([4.0, 0.0, 0.0]), torch.tensor([True, False, False]))
    assert mean.value.tolist() == [6.0, 5.0, 0.0]
    assert mean.filled.tolist() == [True, True, False]
    mean.update(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([True, False, False]))
    assert mean.value.tolist() == [5.5, 5.0, 0.0]


def test_flags_come_back_exactly_and_are_bool_however_they_are_loaded():
    before = RunningMean(2, momentum=0.5)
    before.update(torch.tensor([3.0, 0.0]), torch.tensor([True, False]))
    state = before.state_dict()
    assert state["filled"].tolist() == [1.0, 0.0]
    for stored in (state, {**state, "filled": before.filled}, {**state, "filled": state["filled"].double()}):
        for assign in (False, True):
            after = RunningMean(2, momentum=0.5)
            after.load_state_dict({name: value.clone() for name, value in stored.items()}, assign=assign)
            assert after.filled.dtype == torch.bool
            assert torch.equal(after.filled, before.filled)
            assert torch.equal(after.value, before.value)


def test_a_mean_over_sites_is_that_of_the_sites_which_measured():
    sites = [RunningMean(3, momentum=0.5) for _ in range(3)]
    sites[0].update(torch.tensor([3.0, 5.0, 0.0]), torch.tensor([True, True, False]))
    sites[1].update(torch.tensor([6.0, 0.0, 0.0]), torch.tensor([True, False, False]))
    sites[2].update(torch.tensor([9.0, 0.0, 0.0]), torch.tensor([True, False, False]))
    states = [site.state_dict() for site in sites]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    mean["filled"][2] += 1e-9  # what sums over many sites leave
    after = RunningMean(3, momentum=0.5)
    after.load_state_dict(mean)
    assert after.filled.tolist() == [True, True, False]
    assert after.value.tolist() == pytest.approx([6, 5, 0])
