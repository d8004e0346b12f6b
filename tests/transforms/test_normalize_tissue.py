# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Color standardization of stained sections: by tissue, by statistics of the source, and bounded on bare glass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_wsss.transforms import NormalizeSubjectd


def section(glass: float = 0.3, seed: int = 0) -> torch.Tensor:
    """Draw tissue (3, 40, 50), 0 to 255, with another mean and spread per channel, and columns of glass."""
    rng = np.random.default_rng(seed)
    picture = np.array([180.0, 100.0, 170.0])[:, None, None] + rng.normal(size=(3, 40, 50)) * [[[30]], [[20]], [[10]]]
    picture[:, :, : int(glass * 50)] = 246 + rng.normal(size=(3, 40, int(glass * 50)))
    return torch.from_numpy(picture.clip(0, 255).astype(np.float32))


def standardize(picture: torch.Tensor, **options) -> torch.Tensor:
    return NormalizeSubjectd("image", foreground="tissue", **options)({"image": picture})["image"]


@pytest.mark.parametrize("glass", [0.0, 0.3, 0.9])
def test_tissue_has_mean_zero_and_spread_one_however_much_glass(glass):
    picture = section(glass)
    tissue = standardize(picture)[:, picture.mean(0) < 235]
    torch.testing.assert_close(tissue.mean(1), torch.zeros(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(tissue.std(1), torch.ones(3), atol=2e-2, rtol=0)


def test_glass_is_bright_and_bounded():
    assert standardize(section())[:, :, :15].min() > 2
    assert standardize(section()).max() <= 6.0
    assert standardize(section(), upper=3.0).max() <= 3.0


@pytest.mark.parametrize("level", [255.0, 246.0])
def test_a_tile_of_glass_stays_bright_and_its_noise_small(level):
    noise = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0))
    tile = standardize((level + noise).clamp(0, 255))
    assert tile.min() > 1
    assert tile.max() < 6
    assert tile.std(dim=(1, 2)).max() < 0.05


def test_dust_on_glass_does_not_set_the_scale():
    clean = torch.full((3, 40, 50), 250.0)
    dusty = clean.clone()
    dusty[:, 3, 3:6] = 100.0
    assert torch.equal(standardize(clean)[:, 10:], standardize(dusty)[:, 10:])


def test_bounds_become_those_of_a_network_with_a_fixed_range():
    deviations = standardize(section(), upper=4.0)
    torch.testing.assert_close(standardize(section(), upper=4.0, b_min=-1.0, b_max=1.0), deviations / 4)
    kept = standardize(section(), upper=1.0, b_min=0.0, b_max=5.0, clip=False)
    torch.testing.assert_close(kept, standardize(section(), clip=False) + 4)
    with pytest.raises(ValueError, match="`b_min` and `b_max` together, got -1 and None"):
        NormalizeSubjectd("image", b_min=-1)


def test_dark_nuclei_are_kept_apart():
    picture = section(0.0)
    picture[:, 0, 0] = torch.tensor([75.0, 30.0, 135.0])
    assert standardize(picture)[0, 0, 0] < -3.0
    assert NormalizeSubjectd("image").lower == -2.5, "scans are cut as before"


def test_a_patch_is_standardized_as_the_picture_that_it_was_cut_from():
    picture = section()
    whole = standardize(picture)
    tissue = picture[:, picture.mean(0) < 235].double()
    item = {
        "image": picture[:, :20, 5:25],
        "intensity_mean": tissue.mean(1).numpy(),
        "intensity_std": tissue.std(1, correction=0).numpy(),
    }
    patch = NormalizeSubjectd("image", foreground="tissue")(item)["image"]
    torch.testing.assert_close(patch, whole[:, :20, 5:25], atol=1e-3, rtol=1e-4)


def test_pictures_from_zero_to_one():
    torch.testing.assert_close(standardize(section() / 255, white=1.0), standardize(section()), atol=1e-3, rtol=1e-3)
    glass = torch.full((3, 8, 8), 250.0)
    torch.testing.assert_close(standardize(glass / 255, white=1.0), standardize(glass), atol=1e-4, rtol=1e-4)


def test_gray_pictures_and_unknown_rules_are_refused():
    with pytest.raises(ValueError, match=r"`image` to be a color picture \(3, H, W\), got \(1, 8, 8\).*in RGB"):
        standardize(torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match="`foreground` to be one of bright, tissue, got 'dark'"):
        NormalizeSubjectd("image", foreground="dark")
