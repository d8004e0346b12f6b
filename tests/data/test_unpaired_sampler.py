# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Unpaired draws: as many of each kind in every batch, whole passes, and shared by the processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from monai_wsss._checks import DataError
from monai_wsss.data import UnpairedSampler

ITEMS = [{"label": np.array([number % 4 == 0, 0.0], dtype=np.float32)} for number in range(44)]


def epochs_of(sampler: UnpairedSampler, count: int) -> list[list[int]]:
    drawn = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


def test_each_batch_holds_as_many_of_each_kind():
    loader = DataLoader(
        [(index, float(item["label"].any())) for index, item in enumerate(ITEMS)],  # type: ignore[arg-type]
        batch_size=6,
        sampler=UnpairedSampler(ITEMS),
    )
    counts = [(len(found), int(found.sum())) for _, found in loader]
    assert counts == [(6, 3)] * 3 + [(4, 2)]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_a_pass_over_the_diseased_and_healthy_passes_go_on(diseased, healthy, seed):
    items = [{"label": [1]}] * diseased + [{"label": [0]}] * healthy
    drawn = epochs_of(UnpairedSampler(items, seed=seed), 4)
    for upto in range(1, 5):
        counts = Counter(index for epoch in drawn[:upto] for index in epoch)
        assert all(counts[index] == upto for index in range(diseased))
        repeats = [counts[index] for index in range(diseased, diseased + healthy)]
        assert max(repeats) - min(repeats) <= 1


def test_epochs_and_seeds_draw_in_other_orders():
    first, second = epochs_of(UnpairedSampler(ITEMS), 2)
    assert first != second
    assert sorted(first[::2]) == sorted(second[::2])
    assert epochs_of(UnpairedSampler(ITEMS), 2) == [first, second]
    assert epochs_of(UnpairedSampler(ITEMS, seed=1), 1) != [first]


def test_processes_have_the_batches_of_one_together():
    (single,) = epochs_of(UnpairedSampler(ITEMS, 12), 1)
    parts = [epochs_of(UnpairedSampler(ITEMS, 12, num_replicas=2, rank=rank), 1)[0] for rank in (0, 1)]
    for number in range(3):
        whole = single[8 * number : 8 * number + 8]
        both = [part[4 * number : 4 * number + 4] for part in parts]
        assert sorted(whole) == sorted(both[0] + both[1])
        # In turn, as an image pool over processes puts them together again.
        assert whole[::2] == [index for pair in zip(both[0][::2], both[1][::2], strict=True) for index in pair]


def test_pairs_are_rounded_up_to_the_processes():
    parts = [UnpairedSampler(ITEMS, 5, num_replicas=2, rank=rank) for rank in (0, 1)]
    assert [len(part) for part in parts] == [len(list(part)) for part in parts] == [6, 6]


@pytest.mark.parametrize(
    ("items", "words", "error", "message"),
    [
        (ITEMS, {"rank": 1}, ValueError, "`rank` from 0 to 0"),
        (ITEMS, {"num_pairs": 0}, ValueError, "`num_pairs` of at least 1, got 0"),
        (ITEMS[:1], {}, DataError, "with a finding and without, got 1 and 0"),
        ([], {}, DataError, "got 0 and 0"),
        ([*ITEMS, {"image": "x.png"}], {}, DataError, "Item 44 of 45 has no `label`"),
    ],
)
def test_mistakes_are_named(items, words, error, message):
    with pytest.raises(error, match=message):
        UnpairedSampler(items, **words)
