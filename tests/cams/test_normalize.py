# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Normalizations against numpy per image and channel, degenerate cases, gradients, half precision, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.cams import normalize_maps, rescale_maps, subtract_negative_reference, zscore_images

NORMS = ("max", "minmax")


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numpy_normalize(channel: np.ndarray, norm: str) -> np.ndarray:
    positive = np.maximum(channel, 0)
    if norm == "max":
        return positive / positive.max() if positive.max() > 0 else positive * 0
    low, high = positive.min(), positive.max()
    return np.maximum(positive - low - 1e-8, 0) / (high - low + 1e-8)


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
@pytest.mark.parametrize("norm", NORMS)
def test_each_image_and_channel_by_itself(norm: str, size: tuple[int, ...]) -> None:
    maps = random_maps(2, 3, *size) + torch.tensor([0.0, 5.0, -9.0]).reshape(1, 3, *[1] * len(size))
    got = normalize_maps(maps, norm)
    for image in range(2):
        for channel in range(3):
            expected = numpy_normalize(maps[image, channel].numpy(), norm)
            np.testing.assert_allclose(got[image, channel], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, -3.0, 0.7])
def test_zero_and_constant_maps_have_finite_gradients(norm: str, value: float) -> None:
    maps = torch.full((1, 1, 4, 4), value, dtype=torch.float64, requires_grad=True)
    result = normalize_maps(maps, norm)
    expected = 1.0 if norm == "max" and value > 0 else 0.0
    torch.testing.assert_close(result, torch.full_like(result, expected))
    result.sum().backward()
    assert bool(maps.grad.isfinite().all())


@pytest.mark.parametrize("norm", NORMS)
def test_gradient_passes_through_the_extremes(norm: str) -> None:
    maps = (random_maps(2, 2, 3, 3).abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: normalize_maps(m, norm), maps)
    # The peak stays (almost) 1 whatever its value, so nothing flows into it from itself.
    normalize_maps(maps, norm).flatten(2).amax(2).sum().backward()
    assert float(maps.grad.abs().max()) < 1e-6


def test_label_filters_classes() -> None:
    maps = random_maps(2, 2, 4, 4).abs()
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    got = normalize_maps(maps, "max", label=label)
    torch.testing.assert_close(got, normalize_maps(maps, "max") * label[..., None, None])
    with pytest.raises(ValueError, match="0 and 1 only"):
        normalize_maps(maps, "max", label=label * 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype) -> None:
    maps = torch.tensor([[[[0.0, 1e-4, 2e-4]]]], dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        results = [normalize_maps(maps, norm) for norm in NORMS]
        results += [subtract_negative_reference(maps, torch.zeros(1, dtype=dtype)), zscore_images(maps)]
    for result in results:
        assert result.dtype == torch.float32
        assert bool(result.isfinite().all())
        assert float(result.max()) > 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_max_norm_ignores_scale_and_stays_in_range(seed: int, factor: float) -> None:
    maps = random_maps(2, 2, 5, 4, seed=seed)
    result = normalize_maps(maps, "max")
    torch.testing.assert_close(normalize_maps(maps * factor, "max"), result)
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    assert float(normalize_maps(maps, "minmax").max()) < 1


def test_negative_reference_is_the_new_zero() -> None:
    maps = random_maps(2, 2, 4, 5, 3)
    reference = torch.tensor([-0.5, 0.25])
    got = subtract_negative_reference(maps, reference)
    for channel, level in enumerate((-0.5, 0.25)):
        for image in range(2):
            lifted = np.maximum(maps[image, channel].numpy() - level, 0)
            np.testing.assert_allclose(got[image, channel], lifted / lifted.max(), rtol=1e-12)


def test_nothing_above_the_reference_gives_zeros() -> None:
    assert float(subtract_negative_reference(torch.randn(1, 1, 3, 3), torch.tensor([99.0])).max()) == 0


def test_bad_references_and_shapes() -> None:
    maps = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"finite `reference`.*finalize"):
        subtract_negative_reference(maps, torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match=r"`reference` of shape \(K,\) = \(2,\), got \(3,\)"):
        subtract_negative_reference(maps, torch.zeros(3))
    with pytest.raises(ValueError, match="`norm` to be one of max, minmax, got 'l2'"):
        normalize_maps(maps, "l2")
    for function in (lambda x: normalize_maps(x, "max"), zscore_images):
        with pytest.raises(ValueError, match=r"\*S\), got \(3, 3\)"):
            function(torch.zeros(3, 3))


@pytest.mark.parametrize("size", [(6, 5), (3, 4, 5)])
def test_zscore_against_numpy(size: tuple[int, ...]) -> None:
    images = random_maps(2, 2, *size) * 7 + 100
    got = zscore_images(images).numpy()
    for image in range(2):
        for channel in range(2):
            x = images[image, channel].numpy()
            np.testing.assert_allclose(got[image, channel], (x - x.mean()) / x.std(ddof=1), rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.3, 1000.1, -7e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zscore_of_a_constant_is_exactly_zero(value: float, dtype: torch.dtype) -> None:
    images = torch.full((1, 1, 31, 37), value, dtype=dtype, requires_grad=True)
    result = zscore_images(images)
    assert bool((result == 0).all())
    result.sum().backward()
    assert bool(images.grad.isfinite().all())


def test_zscore_of_rounding_noise_and_of_one_pixel_is_zero() -> None:
    noise = torch.full((1, 1, 8, 8), 0.3)
    noise[..., ::2] = torch.nextafter(torch.tensor(0.3), torch.tensor(1.0))
    assert bool((zscore_images(noise) == 0).all())
    assert zscore_images(torch.full((1, 1, 1, 1), 5.0)).item() == 0


def test_zscore_gradient() -> None:
    assert torch.autograd.gradcheck(zscore_images, random_maps(2, 1, 3, 4).requires_grad_())


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
def test_rescaled_maps_keep_their_order_of_either_sign(size: tuple[int, ...]) -> None:
    maps = random_maps(2, 3, *size) - 4
    got = rescale_maps(maps)
    for image in range(2):
        for channel in range(3):
            one = maps[image, channel].numpy()
            expected = (one - one.min()) / (one.max() - one.min() + 1e-5)
            np.testing.assert_allclose(got[image, channel], expected, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(rescale_maps, random_maps(1, 2, 3, 2).requires_grad_())


def test_a_constant_map_is_rescaled_to_zero() -> None:
    assert not rescale_maps(torch.full((1, 1, 4, 4), 7.0)).any()
    assert rescale_maps(torch.rand(1, 1, 2, 2, dtype=torch.float16)).dtype == torch.float32
