# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Random draws depend on (seed, epoch, index) alone, and the memory of a cache is logged before it is filled."""

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised

from monai_wsss.data import EpochCacheDataset
from monai_wsss.data.dataset import item_bytes

ITEMS = [{"image": torch.full((1, 4, 4), float(index))} for index in range(6)]


def make(seed: int = 5, cache_rate: float = 1.0) -> EpochCacheDataset:
    noise = Compose([RandGaussianNoised("image", prob=1.0)])
    return EpochCacheDataset(ITEMS, Compose([]), noise, seed=seed, cache_rate=cache_rate, progress=False)


def draw(dataset: EpochCacheDataset, order: list[int], **options) -> dict[int, torch.Tensor]:
    loader = DataLoader(dataset, batch_size=2, sampler=order, **options)
    images = torch.cat([batch["image"] for batch in loader])
    return dict(zip(order, images, strict=True))


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 2}])
@pytest.mark.parametrize("cache_rate", [0.0, 0.5, 1.0])
def test_order_workers_and_cache_change_nothing(options, cache_rate):
    expected = draw(make(), list(range(6)))
    found = draw(make(cache_rate=cache_rate), [4, 2, 5, 0, 3, 1], **options)
    assert all(torch.equal(expected[index], found[index]) for index in range(6))


def test_epoch_seed_and_index_each_change_the_draw():
    dataset = make()
    first = draw(dataset, [0, 1])
    dataset.set_epoch(2)
    second = draw(dataset, [0, 1])
    other = draw(make(seed=6), [0, 1])
    noises = [first[0], first[1] - 1, second[0], second[1] - 1, other[0], other[1] - 1]
    assert all(not torch.allclose(a, b) for i, a in enumerate(noises) for b in noises[i + 1 :])


def test_workers_that_outlive_an_epoch_see_the_next_one():
    dataset = make()
    loader = DataLoader(dataset, batch_size=3, num_workers=1, persistent_workers=True)
    first = torch.cat([batch["image"] for batch in loader])
    dataset.set_epoch(1)
    second = torch.cat([batch["image"] for batch in loader])
    fresh = make()
    fresh.set_epoch(1)
    assert not torch.allclose(first, second)
    assert torch.equal(second, torch.stack([fresh[index]["image"] for index in range(6)]))


def test_the_cached_item_itself_is_not_changed():
    dataset = make()
    assert torch.equal(dataset[3]["image"], dataset[3]["image"])
    assert ITEMS[3]["image"].eq(3).all()


def test_memory_is_said_before_the_cache_is_filled(caplog):
    items = [{"image": torch.zeros(3, 100, 100), "label": torch.zeros(1)} for _ in range(10)]
    with caplog.at_level(logging.INFO, "monai_wsss.data.dataset"):
        EpochCacheDataset(items, Compose([]), cache_rate=0.5, progress=False)
    assert "Caching 5 of 10 items in memory: about 1 MB." in caplog.text  # 5 x 120,004 bytes
    assert item_bytes(items[0]) == 120_004
    assert item_bytes({"id": "name", "parts": [torch.zeros(2, dtype=torch.uint8)]}) == 2


def test_a_device_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="`device` to be a device such as cpu"):
        EpochCacheDataset([], Compose([]), device="nonsense")
