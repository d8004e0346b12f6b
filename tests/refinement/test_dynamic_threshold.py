# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The threshold that follows training: its queue, fall-backs, exact resume, and two processes that agree with one."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from test_gaussian_mixture import READS, Dispatched, two_populations
from torch import nn

from monai_wsss.engines import distribute_method, start_distributed, stop_distributed
from monai_wsss.refinement import DynamicThreshold, assigned_thresholds, mixture_threshold


def scores(images: int, side: int = 12, seed: int = 0, high: float = 0.8) -> torch.Tensor:
    """Draw scores (B, side, side) of two populations."""
    return (
        two_populations(0.2, high, 0.4, images * side**2, seed=seed)
        .float()[torch.randperm(images * side**2, generator=torch.Generator().manual_seed(seed))]
        .reshape(images, side, side)
    )


def test_the_value_moves_by_its_share_towards_the_fit_of_the_whole_queue():
    threshold = DynamicThreshold(0.3, momentum=0.9, points=144)
    first, second = scores(2), scores(2, seed=1, high=0.7)
    threshold.update(first, torch.ones(2))
    one = mixture_threshold(first.flatten()).threshold.float()
    torch.testing.assert_close(threshold(), 0.3 * 0.9 + 0.1 * one)
    threshold.update(second, torch.ones(2))
    both = mixture_threshold(torch.cat((first, second)).flatten()).threshold.float()
    torch.testing.assert_close(threshold(), 0.9 * (0.3 * 0.9 + 0.1 * one) + 0.1 * both)
    assert threshold().ndim == 0


def test_what_is_given_does_not_change_with_later_updates():
    threshold = DynamicThreshold(momentum=0.0)
    before = threshold()
    threshold.update(scores(2), torch.ones(2))
    assert before == 0.5 != threshold()


@pytest.mark.parametrize("size", [(40,), (5, 8), (4, 5, 2)])
def test_the_oldest_images_leave_and_healthy_ones_never_enter(size):
    threshold = DynamicThreshold(queue=3, points=40)
    maps = [torch.full((1, *size), (k + 1) / 10) for k in range(7)]
    threshold.update(torch.cat(maps[:2]), torch.tensor([True, False]))
    assert threshold.scores[:, 0].tolist() == pytest.approx([0, 0, 0.1])
    threshold.update(torch.cat(maps[2:4]), torch.tensor([False, False]))
    assert threshold.scores[:, 0].tolist() == pytest.approx([0, 0, 0.1])
    threshold.update(torch.cat(maps[2:6]), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert threshold.scores[:, 0].tolist() == pytest.approx([0.3, 0.4, 0.6])
    threshold.update(torch.cat(maps[2:7]), torch.ones(5))  # more than the queue holds
    assert threshold.scores[:, 0].tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_larger_maps_are_thinned_evenly_and_smaller_ones_filled_with_what_takes_no_part():
    threshold = DynamicThreshold(queue=1, points=100)
    ramp = torch.linspace(0, 1, 40 * 40).reshape(1, 40, 40)
    threshold.update(ramp, torch.ones(1))
    torch.testing.assert_close(threshold.scores[0], torch.linspace(0, 1, 100), atol=1e-3, rtol=0)
    threshold.update(torch.full((1, 4, 4), 0.5), torch.ones(1))
    assert threshold.scores[0].tolist() == [0.5] * 16 + [0.0] * 84


def test_padding_takes_no_part():
    maps = scores(2)
    valid = torch.ones_like(maps, dtype=torch.bool)
    valid[:, :, 9:] = False
    spoiled = maps.masked_fill(~valid, 0.99)
    cut, padded = DynamicThreshold(momentum=0.0, points=144), DynamicThreshold(momentum=0.0, points=144)
    cut.update(maps[:, :, :9], torch.ones(2))
    padded.update(spoiled, torch.ones(2), valid=valid)
    assert torch.equal(cut(), padded())


def test_without_two_populations_the_value_stays():
    threshold = DynamicThreshold(0.4)
    threshold.update(torch.full((3, 20, 20), 0.5), torch.ones(3))
    threshold.update(torch.zeros(3, 20, 20), torch.ones(3))
    threshold.update(scores(3), torch.zeros(3))
    assert threshold().item() == pytest.approx(0.4)


@pytest.mark.parametrize("flipped", [False, True])
def test_the_mixture_stays_within_its_limits(flipped):
    """A narrow population near an end, beside a wide one, is cut nearer to the end than the limit."""
    narrow, wide = torch.full((300,), 0.06), torch.linspace(0.1, 0.5, 484)
    maps = torch.cat((narrow, wide)).reshape(1, 28, 28)
    threshold = DynamicThreshold(momentum=0.0)
    threshold.update(1 - maps if flipped else maps, torch.ones(1))
    assert threshold().item() == pytest.approx(0.9 if flipped else 0.1)


def test_the_fit_is_made_at_intervals_and_the_queue_filled_in_each_step():
    threshold = DynamicThreshold(momentum=0.0, interval=3, queue=4)
    moved = []
    for step in range(6):
        before = threshold()
        threshold.update(scores(1, seed=step), torch.ones(1))
        moved.append(bool(threshold() != before))
    assert moved == [False, False, True, False, False, True]
    assert bool((threshold.scores > 0).any(1).all())


def test_a_fixed_threshold_stays_and_keeps_nothing():
    threshold = DynamicThreshold(0.35, kind="fixed")
    threshold.update(scores(3), torch.ones(3))
    assert threshold().item() == pytest.approx(0.35)
    assert threshold.scores.numel() == 0


def test_three_components_give_the_two_thresholds_of_the_authors():
    threshold = DynamicThreshold((0.2, 0.7), kind="three_components", momentum=0.5, points=144)
    maps = scores(4)
    threshold.update(maps, torch.ones(4))
    low, high, found = assigned_thresholds(maps.flatten())
    assert found
    torch.testing.assert_close(threshold(), (torch.tensor([0.2, 0.7]) + torch.stack((low, high))) / 2)


@pytest.mark.parametrize("words", [{}, {"kind": "three_components", "initial": (0.2, 0.7)}, {"interval": 3}])
def test_a_resumed_training_goes_on_exactly(words, tmp_path):
    def steps(threshold, numbers):
        for step in numbers:
            threshold.update(scores(2, seed=step), torch.tensor([1.0, float(step % 2)]))

    whole, begun, resumed = (DynamicThreshold(queue=5, momentum=0.8, **words) for _ in range(3))
    steps(whole, range(7))
    steps(begun, range(4))
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(resumed, range(4, 7))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("words", [{}, {"kind": "three_components", "initial": (0.2, 0.7)}])
def test_an_update_reads_nothing_back_from_the_device(words):
    threshold = DynamicThreshold(queue=4, **words)
    maps, found = scores(2), torch.tensor([True, False])
    with Dispatched() as dispatched:
        threshold.update(maps, found, valid=torch.ones_like(maps, dtype=torch.bool))
        threshold()
    assert dispatched.names
    assert not dispatched.names & READS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"initial": 0.0}, r"Expected `initial` in \(0, 1\)"),
        ({"initial": (0.2, 0.7)}, "one number else"),
        ({"initial": 0.5, "kind": "three_components"}, "for 'three_components'"),
        ({"initial": (0.7, 0.2), "kind": "three_components"}, r"\(low, high\)"),
        ({"queue": 0}, "Expected `queue`, `interval` and `points` >= 1"),
        ({"interval": 0}, "Expected `queue`, `interval`"),
        ({"momentum": 1.0}, r"Expected `momentum` and `ignore_up_to` in \[0, 1\)"),
        ({"kind": "otsu"}, "Expected `kind`"),
    ],
)
def test_a_wrong_argument_is_told(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        DynamicThreshold(**words)


def test_shapes_that_do_not_fit_are_told():
    threshold = DynamicThreshold()
    with pytest.raises(ValueError, match=r"Expected `strength` \(B, \*s\) and `found` \(B,\)"):
        threshold.update(scores(2), torch.ones(3))
    with pytest.raises(ValueError, match="Expected bool `valid`"):
        threshold.update(scores(2), torch.ones(2), valid=torch.ones(2, 12, 12))


# ------------------------------------------------------------------------------------------------------ processes

STEPS, IMAGES = 3, 4
WORDS = {"queue": 7, "momentum": 0.5, "points": 100}


class Holder(nn.Module):
    """Stand for a method: one parameter for the gradients, two thresholds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.shared, self.own = DynamicThreshold(**WORDS), DynamicThreshold(over_processes=False, **WORDS)

    def forward(self, maps, found):
        self.shared.update(maps, found)
        self.own.update(maps, found)
        return self.weight * self.shared()


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return scores(IMAGES, seed=step), torch.tensor([True, step != 1, False, True])


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    start_distributed()
    method = distribute_method(Holder())
    half = slice(rank * IMAGES // 2, (rank + 1) * IMAGES // 2)
    for step in range(STEPS):
        maps, found = batch_of(step)
        method(maps[half], found[half]).backward()
    torch.save(method.module.state_dict(), f"{folder}/{rank}.pt")
    stop_distributed()


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    one, halves = Holder(), [Holder(), Holder()]
    for step in range(STEPS):
        maps, found = batch_of(step)
        one(maps, found)
        for rank, half in enumerate(halves):
            half(maps[2 * rank : 2 * rank + 2], found[2 * rank : 2 * rank + 2])
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(state["shared.scores"], one.shared.scores)
        assert torch.equal(state["shared.value"], one.shared.value)
        assert torch.equal(state["own.scores"], halves[rank].own.scores)  # not overwritten by those of rank 0
        assert torch.equal(state["own.value"], halves[rank].own.value)
    assert not torch.equal(halves[0].own.value, halves[1].own.value)
