# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Variants are made once, drawn by (seed, epoch, index) alone, and encoded in batches."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

from monai_wsss.data import VariantCacheDataset

ITEMS = [
    {"image": torch.full((1, 4, 4), float(index)), "mask": torch.arange(16).reshape(1, 4, 4), "id": str(index)}
    for index in range(6)
]


def noise() -> Compose:
    return Compose([RandGaussianNoised("image", prob=1.0)])


def make(seed: int = 5, **options) -> VariantCacheDataset:
    return VariantCacheDataset(ITEMS, Compose([]), noise(), seed=seed, progress=False, **options)


def draws(dataset: VariantCacheDataset, epochs: range) -> list[torch.Tensor]:
    result = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        result.append(torch.stack([dataset[index]["image"] for index in range(len(dataset))]))
    return result


def test_variants_are_few_and_the_first_is_plain():
    dataset = make(variants=3)
    for index in range(len(dataset)):
        seen = {}
        for epoch in range(1, 30):
            dataset.set_epoch(epoch)
            seen.setdefault(dataset.variant(index), []).append(dataset[index]["image"])
        assert sorted(seen) == [0, 1, 2]
        assert all(torch.equal(image, images[0]) for images in seen.values() for image in images)
        assert torch.equal(seen[0][0], ITEMS[index]["image"])
        assert not torch.equal(seen[1][0], seen[2][0])


def test_a_resumed_run_draws_as_an_uninterrupted_one():
    whole = draws(make(), range(1, 9))
    resumed = draws(make(), range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole, draws(make(seed=6), range(1, 9)), strict=True))


def test_workers_that_outlive_an_epoch_see_the_next_one():
    expected = draws(make(variants=5), range(1, 4))
    dataset = make(variants=5)
    loader = DataLoader(dataset, batch_size=3, num_workers=1, persistent_workers=True)
    for epoch, images in enumerate(expected, 1):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat([batch["image"] for batch in loader]), images)


def test_images_are_encoded_once_in_batches_without_gradients():
    weight = torch.ones((), requires_grad=True)
    calls = []

    def encode(image: torch.Tensor) -> torch.Tensor:
        calls.append(len(image))
        return torch.cat([weight * image, image + 100], dim=1)

    dataset = make(encode=encode, batch_size=5)
    assert calls == [5, 5, 2]
    for plain, coded in zip(draws(make(), range(1, 4)), draws(dataset, range(1, 4)), strict=True):
        assert torch.equal(coded, torch.cat([plain, plain + 100], dim=2 - 1))
        assert not coded.requires_grad
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["encoded"].tolist() == [True, True]
    assert batch["id"] == ["0", "1"]
    assert calls == [5, 5, 2]


def test_masks_follow_their_image_and_the_items_stay_as_they_are():
    before = [item["mask"].clone() for item in ITEMS]
    flip = RandFlipd(("image", "mask"), prob=1.0, spatial_axis=0)
    dataset = VariantCacheDataset(ITEMS, Compose([]), flip, encode=lambda image: image, progress=False)
    for index, item in enumerate(ITEMS):
        dataset.set_epoch(next(epoch for epoch in range(99) if not dataset.set_epoch(epoch) and dataset.variant(index)))
        assert torch.equal(dataset[index]["mask"], item["mask"].flip(1))
    assert all(torch.equal(item["mask"], mask) for item, mask in zip(ITEMS, before, strict=True))


def test_images_of_several_sizes_form_batches_of_their_own():
    items = [{"image": torch.zeros(1, side, 4)} for side in (4, 4, 5, 4)]
    sizes = []
    dataset = VariantCacheDataset(
        items, Compose([]), variants=1, progress=False, encode=lambda image: sizes.append(len(image)) or image
    )
    assert sizes == [2, 1, 1]
    assert [dataset[index]["image"].shape[1] for index in range(4)] == [4, 4, 5, 4]
    assert torch.equal(dataset[-1]["image"], dataset[3]["image"])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`variants` and `batch_size` of at least 1, got 0 and 16"):
        make(variants=0)
    with pytest.raises(ValueError, match="`random_transform` to make 2 variants, got none"):
        VariantCacheDataset(ITEMS, Compose([]))
