# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Terms that weigh, begin and wait; gates that open once; runs that are too short for a ramp."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_wsss.engines import LossGate, Progress, Term, WeightRamp, short_run_sentences


def at(fraction: float, epoch: int = 1, iteration: int = 1) -> Progress:
    return Progress(epoch=epoch, iteration=iteration, fraction=fraction)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 10), st.floats(0, 0.99), st.sampled_from([None, *map(WeightRamp, ("none", "step", "gaussian"))]))
def test_a_term_is_weight_times_ramp_times_loss(weight, fraction, ramp):
    term, graph = Term(nn.MSELoss(), weight, ramp), torch.tensor([1.0, 4.0], requires_grad=True)
    strength = weight * (1.0 if ramp is None else ramp(at(fraction)))
    assert term.strength(at(fraction)) == pytest.approx(strength)
    got = term(at(fraction), graph, lambda mse: mse(graph, torch.zeros(2)))
    torch.testing.assert_close(got, torch.tensor(strength * 8.5))
    (gradient,) = torch.autograd.grad(got, graph)
    torch.testing.assert_close(gradient, strength * graph.detach())


@pytest.mark.parametrize(
    ("weight", "fraction", "when"), [(2.0, 0.1, True), (2.0, 0.9, False), (0.0, 0.9, True)], ids=["early", "waits", "0"]
)
def test_a_term_that_has_not_begun_is_0_with_a_graph_and_is_not_computed(weight, fraction, when):
    term, graph = Term(nn.MSELoss(), weight, WeightRamp("step", end=0.5)), torch.ones(3, requires_grad=True)
    got = term(at(fraction), graph.exp(), lambda _: pytest.fail("computed"), when=when)
    assert (got.item(), got.ndim) == (0.0, 0)
    got.backward()
    assert torch.equal(graph.grad, torch.zeros(3))


def test_any_of_some_terms_has_begun():
    early, late = (Term(nn.MSELoss(), 1.0, WeightRamp("step", end=end)) for end in (0.2, 0.6))
    assert not Term.any_begun(at(0.1), early, late, None)
    assert Term.any_begun(at(0.3), early, late)
    assert not Term.any_begun(at(0.3), None, late)
    assert not Term.any_begun(at(0.9), Term(nn.MSELoss(), 0.0))
    assert not Term.any_begun(at(0.9))


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_negative_weight_is_told(weight):
    with pytest.raises(ValueError, match=r"Expected a finite `weight` >= 0, got .*: leave the term out"):
        Term(nn.MSELoss(), weight)


def opened_by_hand(losses: list[float], below: float) -> list[bool]:
    average, opened, answers = losses[0], False, []
    for n, loss in enumerate(losses):
        average = loss if n == 0 else 0.9 * average + 0.1 * loss
        opened = opened or average < below
        answers.append(opened)
    return answers


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_a_gate_opens_with_the_moving_average_and_stays_open(losses, below):
    gate = LossGate(below).double()
    answers = [gate(torch.tensor(loss, dtype=torch.float64)) for loss in losses]
    assert answers == opened_by_hand(losses, below)
    assert answers == sorted(answers)
    assert bool(gate.opened) == answers[-1]


def test_a_gate_without_a_level_is_open_and_follows_nothing():
    gate = LossGate()
    assert gate(torch.tensor(99.0))
    assert not gate.running.filled
    # A run that asks for a level later does not find it open.
    asked = LossGate(0.4)
    asked.load_state_dict(gate.state_dict())
    assert not asked(torch.tensor(5.0))


def test_a_gate_learns_in_training_alone():
    gate = LossGate(0.4).eval()
    assert not gate(torch.tensor(0.1))
    assert not gate.running.filled
    assert gate.train()(torch.tensor(0.1))


def test_an_open_gate_is_saved_and_restored():
    gate, other = LossGate(0.4), LossGate(0.4)
    assert gate(torch.tensor(0.1))
    other.load_state_dict(copy.deepcopy(gate.state_dict()))
    assert other(torch.tensor(9.0))
    # As the gate that was never stored: open, it follows nothing, so that a resumed run holds the same state.
    assert gate(torch.tensor(9.0))
    assert all(torch.equal(value, gate.state_dict()[name]) for name, value in other.state_dict().items())
    assert other.running.value.item() == pytest.approx(0.1)
    closed = LossGate(0.4)
    assert not closed(torch.tensor(0.5))
    other.load_state_dict(closed.state_dict())
    assert not other(torch.tensor(0.6))


def test_a_closed_gate_says_what_it_waits_for():
    gate = LossGate(0.4)
    gate(torch.tensor(0.62))
    (sentence,) = gate.sentences()
    assert "before the classification loss, now 0.62, is below `ready_below` 0.4" in sentence


@pytest.mark.parametrize("total", [10, 40, 200])
@pytest.mark.parametrize("iteration", [2, 3, 10])
def test_ramps_that_a_run_does_not_reach_are_named(total, iteration):
    """By the last iteration, whenever it is asked."""
    ramps = {
        "share": WeightRamp("step", end=0.85),
        "iterations": WeightRamp("iteration", end=100),
        "whole": WeightRamp("step", end=1.0),
        "none": WeightRamp("none"),
    }
    now = at((iteration - 1) / total, iteration=iteration)
    last = at((total - 1) / total, iteration=total)
    never = [name for name, ramp in ramps.items() if ramp(last) == 0]
    (sentence,) = short_run_sentences(ramps, now)
    assert "whole" in never
    assert sentence.startswith(", ".join(f"`{name}`" for name in never) + " will not end in this run")


def test_nothing_is_said_before_the_length_of_a_run_is_known_or_where_all_ramps_end():
    late = {"late": WeightRamp("iteration", end=10**6)}
    assert short_run_sentences(late, None) == []
    assert short_run_sentences(late, at(0.0)) == []
    assert short_run_sentences({"early": WeightRamp("step", end=0.1)}, at(0.5, iteration=6)) == []
    assert short_run_sentences({}, at(0.5, iteration=6)) == []
