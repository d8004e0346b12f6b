# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Poolings against numpy in float64, their limits, gradients, half precision and TorchScript."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.cams import decision_rule, pool_maps

POOLINGS = ("average", "max", "topk", "lse")


def numpy_pool(maps: np.ndarray, pooling: str, share: float, sharpness: float) -> np.ndarray:
    flat = maps.astype(np.float64).reshape(*maps.shape[:2], -1)
    if pooling == "average":
        return flat.mean(-1)
    if pooling == "max":
        return flat.max(-1)
    if pooling == "topk":
        count = max(1, int(np.floor(share * flat.shape[-1] + 0.5)))
        return np.sort(flat, -1)[..., ::-1][..., :count].mean(-1)
    return np.log(np.exp(sharpness * flat).mean(-1)) / sharpness


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5), (1, 1)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_agrees_with_numpy(pooling: str, size: tuple[int, ...]) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = pool_maps(maps, pooling, topk_share=0.25, lse_sharpness=3.0)
    np.testing.assert_allclose(got, numpy_pool(maps.numpy(), pooling, 0.25, 3.0), rtol=1e-12)


def test_lse_lies_between_average_and_max_and_reaches_both() -> None:
    maps = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    average, highest = pool_maps(maps, "average"), pool_maps(maps, "max")
    middle = pool_maps(maps, "lse")
    assert bool(((average < middle) & (middle < highest)).all())
    torch.testing.assert_close(pool_maps(maps, "lse", lse_sharpness=1e-6), average, atol=1e-5, rtol=0)
    torch.testing.assert_close(pool_maps(maps, "lse", lse_sharpness=1e4), highest, atol=1e-3, rtol=0)


def test_topk_reaches_average_and_max() -> None:
    maps = torch.randn(2, 2, 6, 6)
    torch.testing.assert_close(pool_maps(maps, "topk", topk_share=1.0), pool_maps(maps, "average"))
    torch.testing.assert_close(pool_maps(maps, "topk", topk_share=1e-9), pool_maps(maps, "max"))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient(pooling: str) -> None:
    maps = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: pool_maps(m, pooling, topk_share=0.3), maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_pools_in_float32(pooling: str, dtype: torch.dtype) -> None:
    maps = torch.full((1, 1, 300, 300), 3.0, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        logits = pool_maps(maps, pooling)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.full((1, 1), 3.0))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_torchscript_gives_the_same(pooling: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(pool_maps)
    maps = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(scripted(maps, pooling), pool_maps(maps, pooling), rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(POOLINGS), st.floats(-50, 50))
def test_shifts_with_the_map_and_ignores_the_order_of_pixels(seed: int, pooling: str, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 2, 4, 6, dtype=torch.float64, generator=generator)
    shuffled = maps.flatten(2)[..., torch.randperm(24, generator=generator)].reshape(maps.shape)
    torch.testing.assert_close(pool_maps(shuffled + shift, pooling), pool_maps(maps, pooling) + shift)


def test_the_rule_belongs_to_the_pooling() -> None:
    assert [decision_rule(pooling) for pooling in POOLINGS] == ["minmax", *["negative_reference"] * 3]


def test_bad_arguments() -> None:
    maps = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="`pooling` to be one of average, max, topk, lse, got median"):
        pool_maps(maps, "median")
    with pytest.raises(ValueError, match="`pooling` to be one of average"):
        decision_rule("median")
    with pytest.raises(ValueError, match=r"`topk_share` in \(0, 1\], got 0"):
        pool_maps(maps, "topk", topk_share=0.0)
    with pytest.raises(ValueError, match="`lse_sharpness` > 0, got -1"):
        pool_maps(maps, "lse", lse_sharpness=-1.0)
    with pytest.raises(ValueError, match=r"`maps` of shape \(B, K, \*S\)"):
        pool_maps(torch.zeros(2, 3), "max")


@pytest.mark.parametrize("pooling", ["average", "max", "topk", "lse"])
def test_maps_without_pixels_are_refused(pooling):
    with pytest.raises(ValueError, match="with pixels along each axis"):
        pool_maps(torch.zeros(1, 2, 0, 4), pooling)
