# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Blur of one width for all axes: round, of the drawn width, without dark borders, in chains of papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from monai_wsss.transforms import RandBlurd, gland_augmentation, strong_and_weak_views


def blurred(image: torch.Tensor, seed: int = 0, **options: object) -> torch.Tensor:
    return RandBlurd("image", prob=1.0, **options).set_random_state(seed=seed)({"image": image})["image"]


@pytest.mark.parametrize("shape", [(1, 33, 33), (2, 17, 17, 17)])
def test_a_point_becomes_round_with_the_drawn_width(shape):
    point = torch.zeros(shape)
    point[(slice(None), *(side // 2 for side in shape[1:]))] = 1
    widths = []
    for seed in range(4):
        spot = blurred(point, seed, sigma=(0.8, 1.6))[0].double()
        distances = (torch.arange(shape[1]) - shape[1] // 2).double().square()
        variances = [
            float((spot.sum(dim=[other for other in range(spot.ndim) if other != axis]) * distances).sum())
            for axis in range(spot.ndim)
        ]
        assert max(variances) - min(variances) < 1e-4
        assert float(spot.sum()) == pytest.approx(1, abs=1e-3)
        widths.append(variances[0] ** 0.5)
    assert 0.75 < min(widths) < max(widths) < 1.7
    assert max(widths) - min(widths) > 0.05


def test_it_agrees_with_pillow_to_the_border():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 6)).astype(np.uint8))
    pixels = np.array(coarse.resize((30, 40), Image.Resampling.BILINEAR))
    expected = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float32)
    found = blurred(torch.from_numpy(pixels.astype(np.float32))[None], sigma=(1.5, 1.5))[0].numpy()
    assert np.abs(found - expected).max() < 2  # Pillow approximates the kernel by boxes, and rounds
    white = torch.full((3, 9, 9), 255.0)
    torch.testing.assert_close(blurred(white), white)


def test_chains_of_papers_blur_round():
    for chain in (gland_augmentation(), strong_and_weak_views()):
        steps = [type(step).__name__ for step in chain.transforms]
        assert "RandBlurd" in steps
        assert "RandGaussianSmoothd" not in steps


@pytest.mark.parametrize("sigma", [(0.0, 1.0), (2.0, 1.0), (1.0,)])
def test_wrong_widths(sigma):
    with pytest.raises(ValueError, match="Expected `sigma` to be two widths above 0, the smaller first"):
        RandBlurd("image", sigma=sigma)
