# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The contrastive convolution: its zones pixel by pixel, its gate, and who gets a gradient."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from monai_wsss.networks import ContrastiveConvolution


def zones(layer: ContrastiveConvolution, features: torch.Tensor, at: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Compute both responses at one position from the offsets of the paper."""
    mode = {"reflect": "reflect", "zeros": "constant"}[layer.padding_mode]
    border = layer.epz_kernel_size - 1
    padded = np.pad(features.numpy(), [(0, 0), (0, 0)] + [(border, border)] * (features.ndim - 2), mode)
    inner, outer = layer.weight.detach().numpy(), layer._outer_weight().detach().numpy()
    k, kp = layer.kernel_size, layer.epz_kernel_size
    results = []
    for weight, offsets in ((inner, range(-(k // 2), k - k // 2)), (outer, range(-(kp - 1), kp, 2))):
        total = np.zeros((len(features), len(weight)))
        for index in product(range(len(offsets)), repeat=features.ndim - 2):
            position = tuple(p + border + offsets[i] for p, i in zip(at, index, strict=True))
            total += padded[(slice(None), slice(None), *position)] @ weight[(slice(None), slice(None), *index)].T
        results.append(total)
    return results[0], results[1]


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize(("k", "kp"), [(3, 3), (3, 5), (5, 4), (4, 4), (2, 3), (1, 2)])
@pytest.mark.parametrize("dims", [2, 3])
def test_zones_read_the_pixels_of_the_paper(dims, k, kp, padding):
    torch.manual_seed(0)
    words = {"kernel_size": k, "epz_kernel_size": kp, "share_weights": False, "padding_mode": padding}
    layer = ContrastiveConvolution(2, 3, dims, **words).double()
    features = torch.randn(2, 2, *(6, 7, 6)[:dims]).double()
    ifz, epz = layer.responses(features)
    assert ifz.shape == epz.shape == (2, 3, *features.shape[2:])
    for at in ((0,) * dims, (5, 6, 5)[:dims], (3, 1, 2)[:dims]):
        inner, outer = zones(layer, features, at)
        place = (slice(None), slice(None), *at)
        np.testing.assert_allclose(ifz[place].detach().numpy(), inner, atol=1e-12)
        np.testing.assert_allclose(epz[place].detach().numpy(), outer, atol=1e-12)


@pytest.mark.parametrize(("k", "kp"), [(3, 2), (5, 3), (0, 3), (4, 3)])
def test_refuses_an_outer_zone_that_is_not_outside(k, kp):
    with pytest.raises(ValueError, match="2 k' - k >= 3"):
        ContrastiveConvolution(1, 1, kernel_size=k, epz_kernel_size=kp)


@pytest.mark.parametrize(
    "words",
    [
        {"gate": "both"}, {"padding_mode": "circular"}, {"gate_gradient": "ste"}, {"lam": 0.0}, {"temperature": 0.0},
        {"spatial_dims": 1}, {"share_weights": True, "epz_kernel_size": 5},
    ],
)  # fmt: skip
def test_refuses_other_words(words):
    with pytest.raises(ValueError, match="Expected"):
        ContrastiveConvolution(1, 1, **words)


def test_refuses_features_that_cannot_be_reflected():
    layer = ContrastiveConvolution(1, 1)
    with pytest.raises(ValueError, match="reflected"):
        layer(torch.zeros(1, 1, 2, 8))
    assert layer(torch.zeros(1, 1, 3, 8)).shape == (1, 1, 3, 8)
    with pytest.raises(ValueError, match="spatial axes"):
        layer(torch.zeros(1, 1, 8, 8, 8))


@pytest.mark.parametrize("gate", ["channel", "spatial"])
@pytest.mark.parametrize(
    "words",
    [{}, {"share_weights": False}, {"epz_kernel_size": 5}, {"kernel_size": 5, "epz_kernel_size": 4}],
    ids=str,
)
def test_zones_agree_on_constant_images(words, gate):
    torch.manual_seed(0)
    layer = ContrastiveConvolution(3, 4, gate=gate, **words)
    features = torch.ones(1, 3, 9, 9) * torch.tensor([1.0, -2.0, 0.5]).reshape(1, 3, 1, 1)
    ifz, epz = layer.responses(features)
    assert layer.gate_of(ifz, epz).all()
    torch.testing.assert_close(layer(features), ifz)
    layer.padding_mode = "zeros"
    assert 0 < layer.gate_of(*layer.responses(features)).mean() < 1


def test_nothing_divides_by_zero():
    layer = ContrastiveConvolution(2, 3, gate_gradient="straight_through", gate="spatial", share_weights=False)
    features = torch.zeros(1, 2, 8, 8, requires_grad=True)
    layer(features).square().sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert not layer(features).any()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("way", ["none", "straight_through", "soft"])
def test_the_outer_zone_learns_through_a_gate_that_has_a_gradient(way, share):
    torch.manual_seed(0)
    layer = ContrastiveConvolution(2, 3, gate_gradient=way, share_weights=share, match_kernel_sums=False)
    output = layer(torch.randn(1, 2, 8, 8))
    ifz, epz = layer.responses(torch.randn(1, 2, 8, 8))
    assert set(layer.gate_of(ifz, epz).unique().tolist()) <= {0.0, 1.0} or way == "soft"
    output.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()
    if share:
        assert layer.epz_weight is None
    else:
        assert (layer.epz_weight.grad is not None and bool(layer.epz_weight.grad.any())) is (way != "none")


def test_a_sharp_gate_is_a_constant_for_gradients():
    torch.manual_seed(0)
    layer = ContrastiveConvolution(2, 3)
    features = torch.randn(1, 2, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(layer(features).sum(), features)
    ifz, epz = layer.responses(features)
    (expected,) = torch.autograd.grad((layer.gate_of(ifz, epz).detach() * ifz).sum(), features)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gate", ["channel", "spatial"])
def test_the_gate_is_decided_in_float32_under_autocast(gate, dtype):
    torch.manual_seed(0)
    layer = ContrastiveConvolution(2, 3, gate=gate)
    features = 50 * torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", dtype=dtype):
        ifz, epz = layer.responses(features)
        given = layer.gate_of(ifz, epz)
        output = layer(features)
    assert ifz.dtype == output.dtype == dtype
    assert given.dtype == torch.float32
    size, difference = ifz.float(), epz.float() - ifz.float()
    if gate == "spatial":
        size, difference = size.norm(dim=1, keepdim=True), difference.norm(dim=1, keepdim=True)
    assert torch.equal(given, (difference.abs() < 0.3 * size.abs()).float())


@pytest.mark.parametrize("words", [{}, {"gate": "spatial"}, {"epz_kernel_size": 4}, {"share_weights": False}], ids=str)
def test_gradients_of_a_smooth_gate_agree_with_differences(words):
    torch.manual_seed(0)
    layer = ContrastiveConvolution(2, 2, gate_gradient="soft", **words).double().eval()
    assert torch.autograd.gradcheck(layer, torch.randn(1, 2, 4, 5).double().requires_grad_())


def test_a_straight_through_gate_has_the_gradient_of_the_smooth_one():
    torch.manual_seed(0)
    layer = ContrastiveConvolution(2, 3, gate_gradient="straight_through", epz_kernel_size=5)
    ifz, epz = (torch.randn(1, 3, 6, 6, requires_grad=True) for _ in range(2))
    found = torch.autograd.grad(layer.gate_of(ifz, epz).sum(), (ifz, epz))
    smooth = ((0.3 - (epz - ifz).abs() / (ifz.abs() + 1e-3)) / 0.1).sigmoid()
    expected = torch.autograd.grad(smooth.sum(), (ifz, epz))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_independent_weights_close_nine_gates_of_ten():
    """The ratio of two independent responses is Cauchy: (atan(1.3) - atan(0.7)) / π = 9.7 %."""
    torch.manual_seed(0)
    shares = {}
    for share in (True, False):
        layer = ContrastiveConvolution(8, 64, share_weights=share, match_kernel_sums=False)
        torch.nn.init.normal_(layer.weight)
        if layer.epz_weight is not None:
            torch.nn.init.normal_(layer.epz_weight)
        layer(torch.nn.functional.avg_pool2d(torch.randn(4, 8, 70, 70), 7, 1))  # smooth images
        shares[share] = layer.open_fraction.value.item()
    assert abs(shares[False] - 0.097) < 0.02
    assert shares[True] > 2 * shares[False]


def test_only_training_follows_the_open_gates():
    layer = ContrastiveConvolution(1, 1).eval()
    layer(torch.randn(1, 1, 8, 8))
    assert not layer.open_fraction.filled
    layer.train()(torch.ones(1, 1, 8, 8))
    assert layer.open_fraction.value == 1.0
