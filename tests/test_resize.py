# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Linear interpolation between pixel centers against numpy's, nearest labels, one to three dimensions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss._resize import linear_mode, resize_linear, resize_nearest


def along(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Interpolate along one axis: half-pixel centers, the ends repeated."""
    old = values.shape[axis]
    places = (np.arange(length) + 0.5) * old / length - 0.5
    return np.apply_along_axis(lambda line: np.interp(places, np.arange(old), line), axis, values)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=3), st.integers(0, 99))
def test_linear_is_numpys_axis_by_axis(sides, seed):
    old, new = zip(*sides, strict=True)
    maps = torch.randn(2, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = maps.numpy()
    for axis, length in enumerate(new, start=2):
        expected = along(expected, axis, length)
    got = resize_linear(maps, list(new))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_same_size_keeps_every_value():
    maps = torch.randn(1, 2, 5, 4, 3)
    assert torch.equal(resize_linear(maps, maps.shape[2:]), maps)


@pytest.mark.parametrize(("spatial_dims", "name"), [(1, "linear"), (2, "bilinear"), (3, "trilinear")])
def test_modes_are_torch_s(spatial_dims, name):
    assert linear_mode(spatial_dims) == name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("size", [(2, 3), (8, 4), (5, 7)])
def test_nearest_takes_labels_as_they_are(dtype, size):
    labels = torch.tensor([0, 1, 7, 255]).repeat(6)[:24].reshape(1, 1, 4, 6).to(dtype)
    got = resize_nearest(labels, size)
    assert got.dtype == dtype
    for y, x in product(*map(range, size)):
        assert got[0, 0, y, x] == labels[0, 0, y * 4 // size[0], x * 6 // size[1]]


def test_nearest_in_3d():
    labels = torch.arange(8, dtype=torch.uint8).reshape(1, 1, 2, 2, 2)
    assert torch.equal(resize_nearest(labels, (4, 4, 4))[0, 0, ::2, 1::2, ::2], labels[0, 0])
