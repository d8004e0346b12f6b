# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The foreground statistics against a slow numpy oracle, pooling, and degenerate volumes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss._intensity import foreground_statistics


def oracle(volume: np.ndarray) -> tuple[list[float], list[float]]:
    means, stds = [], []
    for channel in volume.astype(np.float64):
        foreground = channel[channel > channel.mean()]
        means.append(foreground.mean())
        stds.append(foreground.std(ddof=0))
    return means, stds


@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 6, 5, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_equals_the_oracle_in_2d_and_3d(shape, dtype):
    volume = (np.random.default_rng(0).gamma(2.0, 20.0, shape)).astype(dtype)
    mean, std = foreground_statistics(volume)
    expected_mean, expected_std = oracle(volume)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std, expected_std, rtol=1e-10)
    assert mean.dtype == std.dtype == np.float64


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_slices_are_pooled_before_the_threshold(seed, number):
    rng = np.random.default_rng(seed)
    volume = rng.integers(0, 200, (2, 6, 5, number)).astype(np.uint8)
    slices = [volume[..., z] for z in range(number)]
    np.testing.assert_allclose(foreground_statistics(slices), foreground_statistics(volume), rtol=1e-12)


def test_pooled_slices_may_differ_in_size_and_are_not_averaged():
    dim, bright = np.full((1, 2, 2), 1.0), np.full((1, 4, 4), 9.0)
    mean, std = foreground_statistics([dim, bright])
    assert (mean.item(), std.item()) == (9.0, 1.0)  # the dim slice lies below the pooled mean


def test_integers_do_not_overflow():
    volume = np.full((1, 300, 300), 255, dtype=np.uint8)
    volume[0, 0, 0] = 0
    assert foreground_statistics(volume)[0].item() == 255.0


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_a_constant_channel_gives_its_value_and_one(value):
    mean, std = foreground_statistics(np.full((2, 3, 3), value))
    assert mean.tolist() == [value, value]
    assert std.tolist() == [1.0, 1.0]


def test_a_tiny_spread_counts_as_one_and_a_small_one_does_not():
    volume = np.array([[[0.0, 0.0, 10.0, 10.0 + 1e-7]], [[0.0, 0.0, 10.0, 10.0 + 1e-4]]])
    std = foreground_statistics(volume)[1]
    assert std[0] == 1.0
    assert std[1] == pytest.approx(5e-5)


def test_one_pixel():
    mean, std = foreground_statistics(np.full((1, 1, 1), 5.0))
    assert (mean.item(), std.item()) == (5.0, 1.0)


@pytest.mark.parametrize("volume", [[], np.zeros((1, 0, 4)), [np.zeros((1, 2, 2)), np.zeros((2, 2, 2))]])
def test_nothing_to_compute_from_is_refused(volume):
    with pytest.raises(ValueError, match="hold values and one number of channels"):
        foreground_statistics(volume)
