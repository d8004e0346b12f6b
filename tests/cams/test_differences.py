# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Differences of an image and its converted image, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_wsss.cams import difference_map

CHANGES = {"both": np.abs, "positive": lambda d: np.maximum(d, 0), "negative": lambda d: np.maximum(-d, 0)}
REDUCED = {
    "mean": lambda d: d.mean(1, keepdims=True),
    "max": lambda d: d.max(1, keepdims=True),
    "norm": lambda d: np.sqrt((d**2).sum(1, keepdims=True)),
    "none": lambda d: d,
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("sign", CHANGES)
@pytest.mark.parametrize("reduction", REDUCED)
def test_agrees_with_numpy(dims, sign, reduction):
    torch.manual_seed(0)
    image, converted = torch.randn(2, 2, 3, *(5,) * dims).double()
    found = difference_map(image, converted, reduction=reduction, sign=sign)
    expected = REDUCED[reduction](CHANGES[sign]((image - converted).numpy()))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_smoothing_is_a_mean_over_the_pixels_that_exist(dims):
    image = torch.zeros(1, 1, *(5,) * dims)
    image[(0, 0) + (0,) * dims] = 1.0
    found = difference_map(image, torch.zeros_like(image), smooth=3)
    torch.testing.assert_close(found[(0, 0) + (0,) * dims], torch.tensor(0.5**dims))
    constant = difference_map(torch.ones_like(image), torch.zeros_like(image), smooth=5)
    torch.testing.assert_close(constant, torch.ones_like(image))


def test_half_precision_becomes_float32():
    image = torch.ones(1, 3, 4, 4, dtype=torch.float16)
    assert difference_map(image, -image).dtype == torch.float32


@pytest.mark.parametrize("words", [{"reduction": "sum"}, {"sign": "up"}, {"smooth": 2}, {"smooth": 0}])
def test_refuses_other_words(words):
    with pytest.raises(ValueError, match="Expected"):
        difference_map(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), **words)


def test_refuses_images_of_two_shapes():
    with pytest.raises(ValueError, match="one shape"):
        difference_map(torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4))
