# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Dark crops are told from images that were scaled to 1, by what else a random change has seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset

from monai_wsss.transforms import RandColorOperationd, RandPhotometricDistortiond, RandStainJitterd

SCALED = "Expected `image` to hold values from 0 to 255, got 0 to 1: give `white=1`"
CHANGES = (RandColorOperationd, RandPhotometricDistortiond, RandStainJitterd)
MEAN = np.array([11.0, 12.0, 10.0])


def crop(level: float = 1.0) -> torch.Tensor:
    """Give what a resampled or jittered crop of a fluorescence image without a nucleus holds."""
    return level * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("change", CHANGES)
def test_dark_crops_among_others_pass(change):
    change = change("image", prob=1.0)
    for number in range(40):
        level = 200.0 if number == 5 else 1.0
        found = change({"image": crop(level), "intensity_mean": MEAN})["image"]
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_are_all_scaled_to_1_are_refused(change):
    change = change("image", prob=1.0)
    for _ in range(7):
        change({"image": crop(), "intensity_mean": MEAN})
    with pytest.raises(ValueError, match=SCALED):
        change({"image": crop(), "intensity_mean": MEAN})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("told", [{}, {"intensity_mean": MEAN / 255}], ids=["nothing", "a mean from 0 to 1"])
def test_without_a_mean_that_says_otherwise_the_first_one_is_refused(change, told):
    change = change("image", prob=1.0)
    change({"image": crop(200.0), **told})
    with pytest.raises(ValueError, match=SCALED):
        change({"image": crop(), **told})


@pytest.mark.parametrize("change", CHANGES)
def test_an_overshoot_of_resampling_is_no_brighter_image(change):
    change = change("image", prob=1.0)
    for number in range(8):
        image = crop() if number else torch.full((3, 8, 8), 1.002)
        change({"image": image, "intensity_mean": MEAN})
    with pytest.raises(ValueError, match=SCALED):
        change({"image": crop(), "intensity_mean": MEAN})


def test_worker_processes_count_together():
    """Each has few of the images, and new ones come with each epoch."""
    change = RandStainJitterd("image", prob=1.0)
    items = [{"image": crop(), "intensity_mean": MEAN} for _ in range(4)]
    loader = DataLoader(Dataset(items, change), batch_size=1, num_workers=2, collate_fn=lambda batch: batch)
    list(loader)
    with pytest.raises(RuntimeError, match="applying transform"):
        list(loader)
