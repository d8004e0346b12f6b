# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Otsu against brute force and scikit-image, quantiles against numpy, and what NegativeResponses takes and keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from monai_wsss.refinement import (
    NegativeResponses,
    median_reference,
    negative_quantile,
    otsu_threshold,
    percentile_threshold,
)
from monai_wsss.refinement import threshold as module


def brute_force_otsu(values: np.ndarray) -> float:
    """Try every value as a threshold, with the variance between the two parts written out."""
    best, chosen = -1.0, values.min()
    for candidate in np.unique(values)[:-1]:
        low, high = values[values <= candidate], values[values > candidate]
        variance = len(low) * len(high) * (high.mean() - low.mean()) ** 2
        if variance > best * (1 + 1e-12):
            best, chosen = variance, candidate
    return float(chosen)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=4, max_size=30), st.floats(1e-3, 1e3))
def test_otsu_equals_brute_force(values: list[int], scale: float) -> None:
    array = np.array(values, dtype=np.float64) * scale
    got = otsu_threshold(torch.from_numpy(array).reshape(1, 1, 1, -1)).item()

    def between(threshold: float) -> float:
        low, high = array[array <= threshold], array[array > threshold]
        return len(low) * len(high) * (high.mean() - low.mean()) ** 2 if len(high) else 0.0

    # Of equally good thresholds rounding may choose another; the variance between the parts is the same.
    assert got in array
    np.testing.assert_allclose(between(got), between(brute_force_otsu(array)), rtol=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:skimage")
@pytest.mark.parametrize("size", [(40, 30), (10, 12, 9)])
def test_otsu_of_each_map_agrees_with_scikit_image(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    two_levels = (torch.rand(2, 3, *size, generator=generator) > 0.7) * 100.0
    maps = (two_levels + 20 * torch.randn(2, 3, *size, generator=generator) + 80).round()
    got = otsu_threshold(maps)
    for image in range(2):
        for channel in range(3):
            # Scikit-image counts every gray value of integer images, so its histogram is exact too.
            assert got[image, channel].item() == threshold_otsu(maps[image, channel].numpy().astype(np.int64))


@pytest.mark.parametrize("value", [0.0, 0.3, -7.5])
def test_otsu_of_a_constant_or_of_one_pixel_has_nothing_above(value: float) -> None:
    for size in ((5, 5), (1, 1)):
        maps = torch.full((1, 1, *size), value)
        assert otsu_threshold(maps).item() == maps.max().item()


def test_otsu_leaves_half_precision() -> None:
    assert otsu_threshold(torch.tensor([[[[0.0, 1.0, 9.0]]]]).half()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"`maps` of shape \(B, K, \*S\)"):
        otsu_threshold(torch.zeros(4, 4))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_of_each_map_equal_numpy(values: list[float], percent: float) -> None:
    maps = torch.tensor([values, values[::-1], [-value for value in values]], dtype=torch.float64).reshape(1, 3, 1, -1)
    expected = np.percentile(maps.numpy(), percent, axis=(2, 3))
    np.testing.assert_allclose(percentile_threshold(maps, percent), expected, rtol=1e-9, atol=1e-6)


def test_percentiles_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected `percent` in \[0, 100\], got 101"):
        percentile_threshold(torch.zeros(1, 1, 4, 4), 101)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_equal_numpy(values: list[float], q: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    np.testing.assert_allclose(negative_quantile(tensor, q), np.quantile(values, q), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(median_reference(tensor), np.median(values), rtol=1e-9, atol=1e-6)


def test_quantile_of_more_values_than_torch_takes() -> None:
    values = torch.arange(2**24 + 3, dtype=torch.int32).flip(0)
    assert negative_quantile(values, 0.5) == 2**23 + 1


def test_bad_quantiles() -> None:
    with pytest.raises(ValueError, match=r"`q` in \[0, 1\], got 1.5"):
        negative_quantile(torch.zeros(3), 1.5)
    with pytest.raises(ValueError, match="at least one value"):
        median_reference(torch.zeros(0))
    with pytest.raises(ValueError, match=r"`values` of shape \(N\)"):
        negative_quantile(torch.zeros(2, 2), 0.5)


@pytest.mark.parametrize("size", [(4, 5), (3, 2, 4)])
def test_takes_every_pixel_of_negative_images_of_each_class_and_group(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(6, 4, *size, generator=generator)  # G = 2 groups of K = 2
    label = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1], [0, 1], [1, 0]]).float()
    responses = NegativeResponses(4)
    responses.update(maps[:2], label[:2])
    responses.update(maps[2:], label[2:])
    for channel in range(4):
        negative = maps[label[:, channel % 2] == 0, channel].flatten().numpy()
        np.testing.assert_allclose(responses.reference()[channel], np.median(negative), rtol=1e-6)
        np.testing.assert_allclose(responses.quantile(0.9)[channel], np.quantile(negative, 0.9), rtol=1e-5)
        np.testing.assert_allclose(responses.quantile()[channel], np.quantile(negative, 0.999), rtol=1e-5)


def test_subsample_is_even_bounded_and_not_a_column() -> None:
    responses = NegativeResponses(1, max_values_per_image=100)
    columns = torch.arange(60.0).expand(1, 1, 60, 60)
    responses.update(columns, torch.zeros(1, 1))
    (taken,) = responses.values[0]
    assert len(taken) == 100
    assert len(taken.unique()) > 30
    assert abs(median_reference(taken) - 29.5) < 2


def test_memory_stays_bounded_and_images_weigh_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUES_PER_CHANNEL", 200)
    responses = NegativeResponses(1, max_values_per_image=50)
    for image in range(16):
        responses.update(torch.full((1, 1, 10, 10), float(image)), torch.zeros(1, 1))
        assert sum(map(len, responses.values[0])) <= 200
    lengths = [len(tensor) for tensor in responses.values[0]]
    assert max(lengths) - min(lengths) <= 1
    assert abs(responses.reference().item() - 7.5) <= 0.5


def test_stored_values_do_not_hold_the_whole_map() -> None:
    responses = NegativeResponses(1, max_values_per_image=4)
    responses.update(torch.rand(1, 1, 100, 100, requires_grad=True), torch.zeros(1, 1))
    (taken,) = responses.values[0]
    assert taken.untyped_storage().nbytes() <= 16
    assert not taken.requires_grad


def test_merging_two_processes_equals_one() -> None:
    maps, label = torch.randn(4, 2, 3, 3), torch.zeros(4, 2)
    together, first, second = NegativeResponses(2), NegativeResponses(2), NegativeResponses(2)
    together.update(maps, label)
    first.update(maps[::2], label[::2])
    second.update(maps[1::2], label[1::2])
    first.merge(second.values)
    assert torch.equal(first.reference(), together.reference())
    with pytest.raises(ValueError, match="values of 2 channels, got 1"):
        first.merge([[]])


def test_a_class_without_negatives_is_named() -> None:
    responses = NegativeResponses(4)
    responses.update(torch.zeros(2, 4, 3, 3), torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"negative for class 1 \(counted from 0\).*labeled 0"):
        responses.reference()
    with pytest.raises(ValueError, match="negative for class 0"):
        NegativeResponses(1).quantile(0.999)


def test_bad_updates() -> None:
    responses = NegativeResponses(2)
    with pytest.raises(ValueError, match=r"2 channels = groups x classes.*got \(1, 3, 4, 4\)"):
        responses.update(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="0 and 1 only"):
        responses.update(torch.zeros(1, 2, 4, 4), torch.full((1, 2), -1.0))
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in channel 1"):
        responses.update(maps, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least 1, got 0 and 4096"):
        NegativeResponses(0)
