# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Criss-cross attention against Eq. 1 position by position, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import assert_scripts_and_exports

from monai_wsss.networks.criss_cross import CrissCrossAttention, inner_products

SIZES = [(5, 6), (7, 1), (1, 1), (3, 4, 2), (1, 1, 1)]


def projected(module: torch.nn.Module, features: torch.Tensor) -> list[np.ndarray]:
    """Compute Q, K and V with the 1x1 convolutions as matrices."""
    tensors = []
    for name in ("query_conv", "key_conv", "value_conv"):
        conv = getattr(module, name)
        weight, bias = conv.weight.detach().flatten(1).double().numpy(), conv.bias.detach().double().numpy()
        projection = np.einsum("oc,bc...->bo...", weight, features.double().numpy())
        tensors.append(projection + bias.reshape(-1, *[1] * (features.ndim - 2)))
    return tensors


def own_lines(u: tuple[int, ...], space: tuple[int, ...], own_once: bool) -> list[tuple[int, ...]]:
    lines = [(*u[:axis], i, *u[axis + 1 :]) for axis in range(len(space)) for i in range(space[axis])]
    return sorted(set(lines)) if own_once else lines


def literal(module: CrissCrossAttention, features: torch.Tensor) -> np.ndarray:
    queries, keys, values = projected(module, features)
    result = features.double().numpy().copy()
    gamma = module.gamma.item()
    space = features.shape[2:]
    for b in range(len(features)):
        for u in itertools.product(*map(range, space)):
            neighbors = own_lines(u, space, own_once=True)
            products = np.array([queries[b, :, *u] @ keys[b, :, *v] for v in neighbors])
            weights = np.exp(products - products.max())
            weights /= weights.sum()
            result[b, :, *u] += gamma * sum(a * values[b, :, *v] for a, v in zip(weights, neighbors, strict=True))
    return result


def literal_quirk(module: CrissCrossAttention, features: torch.Tensor) -> np.ndarray:
    """Weigh the n-th neighbor of u against the n-th neighbors of the positions that share u's later indices."""
    queries, keys, values = projected(module, features)
    result = features.double().numpy().copy()
    space = features.shape[2:]
    for b in range(len(features)):
        neighbors = {u: own_lines(u, space, own_once=False) for u in itertools.product(*map(range, space))}
        products = {u: np.array([queries[b, :, *u] @ keys[b, :, *v] for v in of_u]) for u, of_u in neighbors.items()}
        for u in neighbors:
            total = sum(np.exp(products[(i, *u[1:])]) for i in range(space[0]))
            weights = np.exp(products[u]) / total
            gathered = sum(a * values[b, :, *v] for a, v in zip(weights, neighbors[u], strict=True))
            result[b, :, *u] += module.gamma.item() * gathered
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quirk", [False, True])
def test_agrees_with_the_equation(size, quirk):
    torch.manual_seed(0)
    module = CrissCrossAttention(8, spatial_dims=len(size), reduction=4, gamma_init=0.7, official_quirk=quirk)
    features = 2 * torch.randn(2, 8, *size)
    expected = torch.from_numpy((literal_quirk if quirk else literal)(module, features))
    torch.testing.assert_close(module.double()(features.double()).detach(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module.float()(features).detach().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("quirk", [False, True])
def test_gradients_are_right_in_double(size, quirk):
    torch.manual_seed(0)
    module = CrissCrossAttention(4, spatial_dims=len(size), reduction=2, gamma_init=0.5, official_quirk=quirk).double()
    features = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (features, *module.parameters()), fast_mode=True)


@given(seed=st.integers(0, 2**31), size=st.sampled_from(SIZES), scale=st.sampled_from([0.0, 1.0, 100.0]))
@settings(max_examples=30, deadline=None)
def test_weights_are_a_distribution_over_the_own_lines(seed, size, scale):
    torch.manual_seed(seed)
    module = CrissCrossAttention.tiny(len(size))
    queries, keys = scale * torch.randn(2, 1, *size, 2)
    weights = module.energy(queries, keys, own_once=True).softmax(-1)
    assert weights.shape == (1, *size, sum(size))
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, *size))
    torch.testing.assert_close(module.gather(weights, torch.ones(1, *size, 3)), torch.ones(1, *size, 3))
    own_of_first_axis = weights[..., : size[0]].diagonal(dim1=1, dim2=-1)
    assert bool((own_of_first_axis == 0).all())


@given(seed=st.integers(0, 2**31), axis=st.integers(0, 2), size=st.sampled_from([(4, 5), (3, 2, 4)]))
@settings(max_examples=20, deadline=None)
def test_axes_can_be_swapped_and_positions_permuted(seed, axis, size):
    torch.manual_seed(seed)
    module = CrissCrossAttention.tiny(len(size)).double()
    features = torch.randn(1, 4, *size, dtype=torch.float64)
    result = module(features)
    torch.testing.assert_close(module(features.transpose(2, -1)), result.transpose(2, -1))
    axis = 2 + axis % len(size)
    order = torch.randperm(features.shape[axis])
    torch.testing.assert_close(module(features.index_select(axis, order)), result.index_select(axis, order))


def test_one_position_adds_its_own_value_once_or_once_for_each_axis():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 1, 1)
    for quirk, times in ((False, 1), (True, 2)):
        module = CrissCrossAttention(4, gamma_init=1.0, official_quirk=quirk)
        torch.testing.assert_close(module(features), features + times * module.value_conv(features))


def test_starts_as_the_identity_and_can_leave_it():
    features = torch.randn(2, 16, 4, 5)
    module = CrissCrossAttention(16)
    result = module(features)
    assert torch.equal(result, features)
    result.square().sum().backward()
    assert bool(module.gamma.grad.any())
    assert [parameter.shape[0] for parameter in module.query_conv.parameters()] == [2, 2]
    assert CrissCrossAttention(3).query_conv.out_channels == 1


@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_constant_and_large_features_stay_finite(fill):
    module = CrissCrossAttention.tiny()
    features = torch.full((1, 4, 3, 3), fill, requires_grad=True)
    result = module(features)
    result.sum().backward()
    assert bool(result.isfinite().all())
    assert bool(features.grad.isfinite().all())
    torch.testing.assert_close(result, (features + module.value_conv(features)).detach(), rtol=1e-5, atol=1e-5)


def test_nan_stays_visible_and_within_its_lines():
    features = torch.zeros(1, 4, 3, 3)
    features[0, 0, 0, 0] = float("nan")
    touched = CrissCrossAttention.tiny()(features).isnan().any(1)[0]
    assert touched.tolist() == [[True, True, True], [True, False, False], [True, False, False]]


def test_autocast_keeps_products_and_softmax_in_float32():
    torch.manual_seed(0)
    module = CrissCrossAttention(16, gamma_init=1.0)
    features = 3 * torch.randn(2, 16, 6, 7)
    expected = module(features)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(features)
        energy = module.energy(*torch.randn(2, 1, 3, 3, 2).bfloat16(), own_once=True)
        products = inner_products(torch.full((1, 2), 200.0), torch.full((1, 2), 200.3))
    assert result.dtype == torch.float32
    assert energy.dtype == torch.float32
    assert products.item() == pytest.approx(80120.0, rel=1e-6)  # bfloat16 would give 80384
    torch.testing.assert_close(result, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    half = module.half()(features.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("spatial_dims", "quirk"), [(2, False), (3, True)])
def test_script_and_export(spatial_dims, quirk):
    torch.manual_seed(0)
    module = CrissCrossAttention(8, spatial_dims=spatial_dims, gamma_init=1.0, official_quirk=quirk).eval()
    features = torch.randn(2, 8, *(6, 5, 4)[:spatial_dims])
    assert_scripts_and_exports(module, features)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Expected `channels` and `reduction` of at least 1"):
        CrissCrossAttention(0)
    with pytest.raises(ValueError, match="`spatial_dims` 2 or 3, got 8, 8 and 1"):
        CrissCrossAttention(8, spatial_dims=1)
    with pytest.raises(ValueError, match="Expected `features` of 8 channels and 2 spatial dimensions"):
        CrissCrossAttention(8)(torch.zeros(1, 8, 2, 2, 2))
    with pytest.raises(ValueError, match="Expected `features` of 8 channels"):
        CrissCrossAttention(8)(torch.zeros(1, 4, 2, 2))
