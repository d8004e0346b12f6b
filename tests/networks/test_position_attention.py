# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Position attention against Eq. 2 pair by pair in float64, and a check that no tensor holds all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import assert_scripts_and_exports
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_wsss.networks import position_attention
from monai_wsss.networks.position_attention import PositionAttention

SIZES = [(5, 6), (7, 1), (1, 1), (3, 4, 2), (1, 1, 1)]


@pytest.fixture(params=[1024, 0], ids=["all weights", "never all weights"])
def few(request, monkeypatch):
    """Take each of the two ways on the CPU: through all weights (few positions) or without (many)."""
    # The limit depends on the machine alone, so it is no argument.
    monkeypatch.setattr(position_attention, "_FEW_POSITIONS", request.param)


def literal(module: PositionAttention, features: torch.Tensor) -> np.ndarray:
    """Compute Eq. 2 with the sum of the exponentials over keys k or, as printed, over queries j."""
    tokens = features.double().flatten(2).numpy()
    projections = []
    for name in ("query_conv", "key_conv", "value_conv"):
        conv = getattr(module, name)
        weight, bias = conv.weight.detach().flatten(1).double().numpy(), conv.bias.detach().double().numpy()
        projections.append(np.einsum("oc,bcn->bon", weight, tokens) + bias[:, None])
    queries, keys, values = projections
    result = tokens.copy() if module.residual else np.zeros_like(tokens)
    positions = range(tokens.shape[2])
    for b in range(len(tokens)):
        exponentials = np.array([[np.exp(queries[b, :, j] @ keys[b, :, k]) for k in positions] for j in positions])
        for j in positions:
            for k in positions:
                total = exponentials[j].sum() if module.normalizer == "keys" else exponentials[:, k].sum()
                result[b, :, j] += module.gamma.item() * values[b, :, k] * exponentials[j, k] / total
    return result.reshape(features.shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"residual": False}, {"residual": False, "normalizer": "queries"}], ids=str)
@pytest.mark.parametrize("channels", [8, 7, 3])
def test_agrees_with_the_equation(size, options, channels, few):
    torch.manual_seed(0)
    module = PositionAttention(channels, spatial_dims=len(size), gamma_init=0.7, **options)
    features = 2 * torch.randn(2, channels, *size)
    expected = torch.from_numpy(literal(module, features))
    torch.testing.assert_close(module(features).detach().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.double()(features.double()).detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("normalizer", ["keys", "queries"])
def test_gradients_are_right_in_double(size, normalizer, few):
    torch.manual_seed(0)
    module = PositionAttention(4, spatial_dims=len(size), reduction=2, gamma_init=0.5, normalizer=normalizer).double()
    features = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (features, *module.parameters()), fast_mode=True)


@given(seed=st.integers(0, 2**31), size=st.sampled_from(SIZES))
@settings(max_examples=20, deadline=None)
def test_positions_can_be_permuted_and_results_lie_among_the_values(seed, size):
    torch.manual_seed(seed)
    module = PositionAttention(4, spatial_dims=len(size), reduction=2, gamma_init=1.0, residual=False).double()
    features = torch.randn(1, 4, *size, dtype=torch.float64)
    result, values = module(features).flatten(2), module.value_conv(features).flatten(2)
    assert bool((result <= values.amax(2, keepdim=True) + 1e-12).all())
    assert bool((result >= values.amin(2, keepdim=True) - 1e-12).all())
    order = torch.randperm(values.shape[2])
    permuted = module(features.flatten(2)[..., order].reshape(features.shape)).flatten(2)
    torch.testing.assert_close(permuted, result[..., order])


def test_starts_as_the_identity_and_can_leave_it():
    features = torch.randn(2, 16, 4, 5)
    module = PositionAttention(16)
    result = module(features)
    assert torch.equal(result, features)
    result.square().sum().backward()
    assert bool(module.gamma.grad.any())
    assert module.query_conv.out_channels == 4
    assert PositionAttention(16, reduction=8).key_conv.out_channels == 2


@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_constant_and_large_features_stay_finite(fill, few):
    module = PositionAttention.tiny()
    features = torch.full((1, 4, 3, 3), fill, requires_grad=True)
    result = module(features)
    result.sum().backward()
    assert bool(result.isfinite().all())
    assert bool(features.grad.isfinite().all())
    torch.testing.assert_close(result, (features + module.value_conv(features)).detach(), rtol=1e-5, atol=1e-5)


def test_nan_stays_visible_in_its_image(few):
    features = torch.zeros(2, 4, 3, 3)
    features[0, 0, 0, 0] = float("nan")
    missing = PositionAttention.tiny()(features).isnan()
    assert bool(missing[0].all())
    assert not bool(missing[1].any())


@pytest.mark.parametrize("normalizer", ["keys", "queries"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_softmax_in_float32(normalizer, dtype, few):
    """Compare with the same attention in float64, from projections rounded to half precision."""
    torch.manual_seed(0)
    module = PositionAttention(16, gamma_init=1.0, residual=False, normalizer=normalizer).to(dtype)
    features = (4 * torch.randn(2, 16, 9, 8)).to(dtype)
    convs = (module.query_conv, module.key_conv, module.value_conv)
    queries, keys, values = (conv(features).detach().flatten(2).transpose(1, 2).double() for conv in convs)
    products = queries @ keys.transpose(1, 2)
    assert products.max() > 20  # here the ulp of bfloat16 is 1/8, so a rounded exponent would show
    expected = (products.softmax(2 if normalizer == "keys" else 1) @ values).transpose(1, 2).reshape(features.shape)
    result = module(features)
    assert result.dtype == dtype
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), expected, rtol=2 * ulp, atol=2 * ulp * values.abs().max().item())


def test_autocast_gives_the_type_of_the_input(few):
    torch.manual_seed(0)
    module = PositionAttention(16, gamma_init=1.0)
    features = torch.randn(2, 16, 6, 7)
    expected = module(features)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(features)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


class LargestTensor(TorchDispatchMode):
    """A record of the largest tensor that any operation gives, forward or backward."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels", [16, 7])
def test_no_tensor_grows_with_the_square_of_the_positions(training, channels):
    """Check every tensor; ``speed/criss_cross.py`` measures the peak of the whole."""
    module = PositionAttention(channels, gamma_init=1.0)
    features = torch.randn(1, channels, 40, 40, requires_grad=training)
    with LargestTensor() as largest, torch.set_grad_enabled(training):
        result = module(features)
        if training:
            result.sum().backward()
    assert features.numel() <= largest.numel <= 4 * features.numel()  # all weights, 1600^2, are 100 or 229 times more


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("spatial_dims", "normalizer"), [(2, "keys"), (3, "queries")])
def test_script_and_export(spatial_dims, normalizer):
    torch.manual_seed(0)
    module = PositionAttention(8, spatial_dims=spatial_dims, gamma_init=1.0, normalizer=normalizer).eval()
    features = torch.randn(2, 8, *(6, 5, 4)[:spatial_dims])
    assert_scripts_and_exports(module, features)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Expected `channels` and `reduction` of at least 1"):
        PositionAttention(8, reduction=0)
    with pytest.raises(ValueError, match="Expected `normalizer` to be one of keys, queries, got 'values'"):
        PositionAttention(8, normalizer="values")
    with pytest.raises(ValueError, match="Expected `features` of 8 channels and 3 spatial dimensions"):
        PositionAttention(8, spatial_dims=3)(torch.zeros(1, 8, 2, 2))
