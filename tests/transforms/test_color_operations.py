# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Color operations against Pillow's on 8-bit images, and the two views that are made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from monai_wsss.transforms import COLOR_OPERATIONS, RandColorOperationd, change_color, strong_and_weak_views


def factor(strength: int) -> float:
    return 0.1 + 1.8 * strength / 10


PILLOW: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "solarize": lambda image, strength: ImageOps.solarize(image, int(25.6 * strength)),
    "color": lambda image, strength: ImageEnhance.Color(image).enhance(factor(strength)),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(factor(strength)),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(factor(strength)),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(factor(strength)),
    "posterize": lambda image, strength: ImageOps.posterize(image, 4 - int(0.4 * strength)),
}
EXACT = {"identity", "equalize", "solarize", "posterize"}  # Pillow rounds what the others give, some of them twice


def photographs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(24) * 4, np.arange(30) * 3)[..., None] + np.array([0, 20, 50])
    return [
        rng.integers(0, 256, (20, 26, 3), dtype=np.uint8),
        rng.integers(70, 110, (24, 24, 3), dtype=np.uint8),
        smooth.clip(0, 255).astype(np.uint8),
        np.full((8, 8, 3), 90, np.uint8),
    ]


@pytest.mark.parametrize("operation", COLOR_OPERATIONS)
def test_each_operation_is_that_of_pillow(operation):
    for pixels in photographs():
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        for strength in range(1, 10):
            wanted = np.asarray(PILLOW[operation](Image.fromarray(pixels), strength)).transpose(2, 0, 1)
            found = change_color(image, operation, strength)
            assert found.dtype == torch.float32
            tolerance = 0 if operation in EXACT else 2.5
            assert np.abs(found.numpy() - wanted.astype(np.float32)).max() <= tolerance, (strength, pixels.shape)
            unit = change_color(image / 255, operation, strength, white=1.0)
            torch.testing.assert_close(unit * 255, found, atol=1e-3, rtol=0)


@pytest.mark.parametrize("operation", COLOR_OPERATIONS[1:])
def test_what_interpolation_overshoots_is_black_or_white(operation):
    image = torch.linspace(-3, 258, 27).reshape(3, 3, 3)
    assert torch.equal(change_color(image, operation), change_color(image.clamp(0, 255), operation))


def test_all_operations_and_strengths_are_drawn():
    change = RandColorOperationd("image").set_random_state(seed=0)
    drawn = set()
    for _ in range(800):
        change.randomize()
        drawn.add(change._drawn)
    assert drawn == {(operation, strength) for operation in COLOR_OPERATIONS for strength in range(1, 10)}


def test_keys_of_an_item_get_the_same_operation():
    change = RandColorOperationd(["image", "other"]).set_random_state(seed=0)
    image = torch.rand(3, 8, 8) * 255
    for _ in range(20):
        result = change({"image": image, "other": image.clone()})
        assert torch.equal(result["image"], result["other"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"operations": []}, "`operations` to name at least one operation"),
        ({"operations": ["invert"]}, "`operations`"),
        ({"strengths": (3, 11)}, "`strengths` to be two of 1 to 10, the smaller first, got .3, 11."),
    ],
)
def test_mistakes_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandColorOperationd("image", **options)
    with pytest.raises(ValueError, match="`strength` from 1 to 10, got 0"):
        change_color(torch.zeros(3, 4, 4), "color", 0)


def test_two_views_of_one_geometry():
    image = torch.zeros(3, 32, 32)
    image[:, 8:24, 4:20] = torch.tensor([200.0, 120.0, 60.0]).reshape(3, 1, 1)
    views = strong_and_weak_views()
    differ = []
    for seed in range(30):
        item = views.set_random_state(seed=seed)({"image": image.clone(), "boxes": torch.tensor([0, 32, 0, 32])})
        again = views.set_random_state(seed=seed)({"image": image.clone()})
        assert torch.equal(item["image"], again["image"])
        assert torch.equal(item["strong"], again["strong"])
        differ.append(not torch.equal(item["image"], item["strong"]))
        for view in (item["image"], item["strong"]):
            assert view.shape == (3, 32, 32)
            middle = view[:, 13:19, 9:15].flatten(1)
            torch.testing.assert_close(middle, middle[:, :1].expand_as(middle), atol=0.05, rtol=0)  # where it was
        assert item["image"].min() > -2.2
        assert item["image"].max() < 2.7
    assert 15 < sum(differ) <= 30
