# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Balanced draws: equal parts, whole passes, the same for the same (seed, epoch), and shared by the processes."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised

from monai_wsss._checks import DataError
from monai_wsss.data import EpochCacheDataset
from monai_wsss.data.sampler import LabelBalancedSampler
from monai_wsss.engines import WSSSTrainer
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import CAMEncoder

LABELS = [(1, 1)] * 17 + [(1, 0)] * 3 + [(0, 1)] * 5
ITEMS = [{"label": np.asarray(label, dtype=np.float32)} for label in LABELS]


def epochs_of(sampler: LabelBalancedSampler, count: int) -> list[list[int]]:
    drawn = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


def test_each_combination_gives_an_equal_part():
    (drawn,) = epochs_of(LabelBalancedSampler(ITEMS, 12), 1)
    assert Counter(LABELS[index] for index in drawn) == {(1, 1): 4, (1, 0): 4, (0, 1): 4}
    assert [LABELS[index] for index in drawn] != sorted(LABELS[index] for index in drawn), "shuffled"


@given(
    st.lists(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_parts_and_passes_are_even_over_any_number_of_epochs(labels, num_samples, seed):
    sampler = LabelBalancedSampler([{"label": label} for label in labels], num_samples, seed=seed)
    drawn = epochs_of(sampler, 5)
    for upto in range(1, 6):
        counts = Counter(index for epoch in drawn[:upto] for index in epoch)
        parts = [sum(counts[i] for i, own in enumerate(labels) if own == label) for label in set(labels)]
        assert sum(parts) == upto * num_samples
        assert max(parts) - min(parts) <= 1, "no combination is ahead by more than one draw"
        for label in set(labels):
            repeats = [counts[i] for i, own in enumerate(labels) if own == label]
            assert max(repeats) - min(repeats) <= 1, "no item comes again before all of its combination"


def test_draws_depend_on_seed_and_epoch_alone():
    sampler = LabelBalancedSampler(ITEMS, 15, seed=3)
    first = epochs_of(sampler, 6)
    np.random.rand(5), torch.rand(5)
    fresh = LabelBalancedSampler(ITEMS, 15, seed=3)
    fresh.set_epoch(5)
    assert list(fresh) == first[5], "as a resumed run draws"
    assert list(fresh) == first[5], "a second reading of the same epoch"
    other = LabelBalancedSampler(ITEMS, 15, seed=4)
    other.set_epoch(5)
    assert list(other) != first[5]
    assert len({tuple(epoch) for epoch in first}) == 6


def test_the_global_generators_are_left_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(LabelBalancedSampler(ITEMS, 10))
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_processes_share_the_draws(replicas):
    parts = [LabelBalancedSampler(ITEMS, 12, num_replicas=replicas, rank=rank, seed=1) for rank in range(replicas)]
    assert {len(part) for part in parts} == {12 // replicas}
    together = [index for drawn in zip(*(epochs_of(part, 3)[2] for part in parts), strict=True) for index in drawn]
    assert together == epochs_of(LabelBalancedSampler(ITEMS, 12, seed=1), 3)[2]


def test_processes_get_equally_many_where_the_number_does_not_divide():
    parts = [LabelBalancedSampler(ITEMS, 10, num_replicas=4, rank=rank) for rank in range(4)]
    drawn = [list(part) for part in parts]
    assert [len(indices) for indices in drawn] == [len(part) for part in parts] == [3, 3, 3, 3]
    assert Counter(LABELS[index] for indices in drawn for index in indices) == dict.fromkeys(set(LABELS), 4)


def test_what_is_drawn_is_said(caplog):
    with caplog.at_level(logging.INFO, "monai_wsss.data.sampler"):
        LabelBalancedSampler(ITEMS, 30)
    text = "30 times, in equal parts from the 5 with label [0, 1], 3 with label [1, 0], 17 with label [1, 1]"
    assert text in caplog.text


def make_trainer(tmp_path, **options) -> WSSSTrainer:
    generator = torch.Generator().manual_seed(0)
    items = [
        {"image": torch.rand(1, 16, 16, generator=generator) + 2 * (index % 3 > 0), "label": torch.tensor(label)}
        for index, label in enumerate([[0.0], [1.0], [1.0], [0.0], [1.0], [1.0], [1.0]])
    ]
    noise = Compose([RandGaussianNoised("image", prob=0.5)])
    dataset = EpochCacheDataset(items, Compose([]), noise, seed=3, progress=False)
    loader = DataLoader(dataset, batch_size=3, sampler=LabelBalancedSampler(items, 8, seed=3), num_workers=0)
    torch.manual_seed(0)
    method = ClassActivationMapping(CAMEncoder(2, 1, 1, width=2))
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01)
    return WSSSTrainer(
        method,
        optimizer,
        loader,
        4,
        checkpoint_dir=tmp_path,
        model_path=tmp_path / "model.pt",
        progress_bar=False,
        **options,
    )


def test_a_resumed_training_ends_as_the_unkilled_one(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    assert whole.state.epoch_length == 3, "8 draws in batches of 3"
    killed = make_trainer(tmp_path / "killed")

    @killed.on(Events.ITERATION_COMPLETED(once=8))
    def kill(engine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run()
    make_trainer(tmp_path / "killed", resume=True).run()
    first, second = (torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("items", "options", "error", "words"),
    [
        (ITEMS, {"num_samples": 0}, ValueError, "`num_samples` of at least 1, got 0"),
        (ITEMS, {"num_samples": 4, "num_replicas": 2, "rank": 2}, ValueError, "`rank` from 0 to 1 .*, got 2"),
        ([], {"num_samples": 4}, DataError, "no case to draw from"),
        ([{"label": [1]}, {"image": 0}], {"num_samples": 4}, DataError, "Item 1 of 2 has no `label`"),
    ],
)
def test_wrong_arguments(items, options, error, words):
    with pytest.raises(error, match=words):
        LabelBalancedSampler(items, **options)
