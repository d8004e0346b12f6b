# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pyramid fusion pooling against Eqs. 5-9 written out pixel by pixel and cell by cell in NumPy."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.networks.pyramid_fusion import PyramidFusionPooling, SignPreservingFusion

SIZES = [(9, 11), (4, 7, 5)]


def relu(x):
    return np.maximum(x, 0)


def pool_axis(x: np.ndarray, axis: int, tau: int, mode: str) -> np.ndarray:
    """Average along one axis: over τ cells that may overlap, or over whole blocks of τ."""
    n = x.shape[axis]
    if mode == "grid":
        bounds = [(math.floor(i * n / tau), math.ceil((i + 1) * n / tau)) for i in range(tau)]
    else:
        kernel = min(tau, n)
        bounds = [(i * kernel, (i + 1) * kernel) for i in range(n // kernel)]
    return np.stack([x.take(range(a, b), axis).mean(axis) for a, b in bounds], axis)


def stretch_axis(x: np.ndarray, axis: int, n: int) -> np.ndarray:
    """Interpolate linearly between the centers of pixels, constant beyond the outermost."""
    cells = x.shape[axis]
    at = np.clip((np.arange(n) + 0.5) * cells / n - 0.5, 0, cells - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, cells - 1)
    share = (at - low).reshape(-1, *[1] * (x.ndim - axis - 1))
    return x.take(low, axis) * (1 - share) + x.take(high, axis) * share


def level(x: np.ndarray, tau: int, mode: str) -> np.ndarray:
    for axis in range(2, x.ndim):
        x = stretch_axis(pool_axis(x, axis, tau, mode), axis, x.shape[axis])
    return x


def gate(kernel: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute Eq. 5, tap by tap."""
    both = relu(np.concatenate([a, b], 1))
    space = both.shape[2:]
    padded = np.pad(both, [(0, 0), (0, 0), *[(1, 1)] * len(space)])
    total = 0
    for tap in itertools.product(range(3), repeat=len(space)):
        window = padded[(..., *[slice(t, t + n) for t, n in zip(tap, space, strict=True)])]
        total = total + np.einsum("oc,bc...->bo...", kernel[(slice(None), slice(None), *tap)], window)
    return 1 / (1 + np.exp(-total))


def fuse(fusion: SignPreservingFusion, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute Eqs. 6-8."""
    kernels = [value.numpy() for value in fusion.state_dict().values()]
    positive, negative = gate(kernels[0], a, b), gate(kernels[-1], -a, -b)
    raised = relu(a) * positive[:, :1] + relu(b) * positive[:, 1:]
    lowered = relu(-a) * negative[:, :1] + relu(-b) * negative[:, 1:]
    return raised / 2 - lowered / 2


def reference(module: PyramidFusionPooling, class_map: torch.Tensor, share: bool) -> dict[str, np.ndarray]:
    seen = class_map.numpy()
    seen = relu(seen) if module.relu_class_map else seen
    levels = [level(seen, tau, module.pool_mode) for tau in module.levels]
    fused = levels[0]
    if module.fusion == "average":
        fused = sum(levels) / len(levels)
    else:
        for number, finer in enumerate(levels[1:], 1):
            fused = fuse(getattr(module, "spconv1" if share else f"spconv{number}"), fused, finer)
    product = relu(fused) * relu(seen) - relu(-fused) * relu(-seen)
    pooled = fused if module.logit == "gap_pyramid" else product
    logits = pooled.reshape(*pooled.shape[:2], -1).mean(-1)
    return {"class_map": class_map.numpy(), "pyramid": fused, "product": product, "logits": logits}


OPTIONS = [
    {},
    {"levels": (2,)},
    {"levels": (16,)},
    {"levels": (2, 4)},
    {"levels": (2, 4, 8)},
    {"levels": (8, 1, 3)},
    {"fusion": "average"},
    {"pool_mode": "kernel", "levels": (8, 4, 2)},
    {"pool_mode": "kernel"},
    {"relu_class_map": True},
    {"share_sign_weights": True},
    {"logit": "gap_pyramid"},
    {"fusion": "average", "logit": "gap_pyramid", "levels": (2, 8)},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agrees_with_the_equations(size, options):
    torch.manual_seed(0)
    module = PyramidFusionPooling(3, spatial_dims=len(size), **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    class_map = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = reference(module, class_map, options.get("share_sign_weights", False))
    logits = module(class_map).detach()
    torch.testing.assert_close(logits, torch.from_numpy(expected["logits"]), rtol=1e-10, atol=1e-12)
    for source in ("class_map", "pyramid", "product"):
        got = module.maps(class_map, source).detach()
        torch.testing.assert_close(got, torch.from_numpy(expected[source]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [False, True])
def test_fusion_has_the_gates_of_the_equations(share):
    torch.manual_seed(0)
    fusion = SignPreservingFusion(2, share_sign_weights=share).double()
    assert list(fusion.state_dict()) == ["att_p.0.weight", *([] if share else ["att_n.0.weight"])]
    a, b = torch.randn(2, 2, 2, 5, 4, dtype=torch.float64)
    positive, negative = (gates.detach().numpy() for gates in fusion.weights(a, b))
    kernels = [value.numpy() for value in fusion.state_dict().values()]
    np.testing.assert_allclose(positive, gate(kernels[0], a.numpy(), b.numpy()), rtol=1e-10)
    np.testing.assert_allclose(negative, gate(kernels[-1], -a.numpy(), -b.numpy()), rtol=1e-10)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]), shift=st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_signs_are_preserved_and_values_bounded(seed, scale, shift):
    torch.manual_seed(seed)
    fusion = SignPreservingFusion(2)
    a, b = scale * torch.randn(2, 1, 2, 4, 5) + shift
    fused = fusion(a, b).detach()
    assert bool((fused[(a <= 0) & (b <= 0)] <= 0).all())
    assert bool((fused[(a >= 0) & (b >= 0)] >= 0).all())
    assert bool((fused.abs() <= torch.maximum(a.abs(), b.abs()) + 1e-6).all())


@given(seed=st.integers(0, 2**31), size=st.sampled_from([(1, 1), (3, 5), (17, 2), (2, 3, 1)]))
@settings(max_examples=20, deadline=None)
def test_negated_map_gives_negated_logits_where_signs_share_weights(seed, size):
    torch.manual_seed(seed)
    module = PyramidFusionPooling(2, spatial_dims=len(size), share_sign_weights=True).double()
    class_map = torch.randn(2, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(module(-class_map), -module(class_map))


def test_released_reading_never_falls_below_one_half_and_never_trains_the_negative_branch():
    torch.manual_seed(0)
    class_map = torch.randn(2, 2, 9, 9) + torch.tensor([2.0, -2.0])[:, None, None]
    module = PyramidFusionPooling(2, relu_class_map=True)
    logits = module(class_map)
    assert bool((logits >= 0).all())
    logits.sum().backward()
    for name, parameter in module.named_parameters():
        assert bool(parameter.grad.any()) == ("att_p" in name)
    signed = PyramidFusionPooling(2)
    logits = signed(class_map)
    assert logits.sign().tolist() == [[1, -1], [1, -1]]
    logits.square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in signed.parameters())


def test_logit_is_the_mean_of_its_map():
    torch.manual_seed(0)
    class_map = torch.randn(2, 2, 9, 9)
    for logit, source in (("weighted", "product"), ("gap_pyramid", "pyramid")):
        module = PyramidFusionPooling(2, logit=logit)
        assert torch.equal(module(class_map), module.maps(class_map, source).flatten(2).mean(2))


@pytest.mark.parametrize("size", [(5, 4), (3, 2, 4)])
def test_gradients_are_right_in_double(size):
    torch.manual_seed(0)
    module = PyramidFusionPooling.tiny(len(size)).double()
    class_map = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    parameters = list(module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (class_map, *parameters), fast_mode=True)


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
@pytest.mark.parametrize("size", [(1, 1), (6, 5), (1, 1, 1)])
def test_constant_maps(value, size):
    """Check that every level of a constant map is the map; without response the logit is 0 and gradients are finite."""
    module = PyramidFusionPooling(1, spatial_dims=len(size), fusion="average")
    class_map = torch.full((1, 1, *size), value, requires_grad=True)
    logits = module(class_map)
    torch.testing.assert_close(logits, torch.full((1, 1), value * abs(value)))
    fused = PyramidFusionPooling(1, spatial_dims=len(size))(class_map)
    assert fused.sign().item() == np.sign(value)
    fused.sum().backward()
    assert bool(class_map.grad.isfinite().all())


def test_nan_stays_visible():
    class_map = torch.zeros(2, 2, 8, 8)
    class_map[0, 0, 3, 3] = float("nan")
    logits = PyramidFusionPooling(2)(class_map)
    assert bool(logits[0].isnan().all())
    assert bool((logits[1] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_float32(dtype):
    torch.manual_seed(0)
    module = PyramidFusionPooling(2)
    class_map = (300 * torch.randn(2, 2, 28, 28)).to(dtype)  # squares above 65504
    expected = module(class_map.float())
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(class_map)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())
    converted = module.to(dtype)(class_map)
    assert converted.dtype == torch.float32
    torch.testing.assert_close(converted, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("spatial_dims", "options"),
    [(2, {}), (3, {"share_sign_weights": True}), (2, {"fusion": "average", "pool_mode": "kernel"})],
)
def test_script_and_export(spatial_dims, options):
    torch.manual_seed(0)
    module = PyramidFusionPooling(2, spatial_dims=spatial_dims, levels=(2, 4), **options).eval()
    class_map = torch.randn(2, 2, *(9, 7, 5)[:spatial_dims])
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for other in (class_map, class_map[..., :4, :3]):
        torch.testing.assert_close(scripted(other), module(other))
        torch.testing.assert_close(scripted.maps(other, "product"), module.maps(other, "product"))
    exported = torch.export.export(module, (class_map,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(
        exported.module()(class_map[:1].repeat(3, *[1] * (spatial_dims + 1))), module(class_map[:1]).expand(3, -1)
    )


def test_trains_what_it_pools():
    """Train a class map with one free parameter per pixel until its logits fit labels of both kinds."""
    torch.manual_seed(0)
    module = PyramidFusionPooling(2)
    class_map = torch.nn.Parameter(0.1 * torch.randn(4, 2, 8, 8))
    tags = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    optimizer = torch.optim.Adam([class_map, *module.parameters()], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(module(class_map), tags)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, r"Expected `levels` to be different numbers of at least 1, got \(\)"),
        ({"levels": (0, 2)}, "Expected `levels` to be different numbers"),
        ({"levels": (2, 2)}, "Expected `levels` to be different numbers"),
        ({"fusion": "max"}, "Expected `fusion` to be one of sign, average, got 'max'"),
        ({"pool_mode": "max"}, "Expected `pool_mode` to be one of grid, kernel"),
        ({"logit": "max"}, "Expected `logit` to be one of weighted, gap_pyramid"),
        ({"spatial_dims": 1}, "Expected `spatial_dims` to be 2 or 3, got 1"),
        ({"num_classes": 0}, "Expected `num_classes` of at least 1, got 0"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidFusionPooling(**{"num_classes": 2} | options)


def test_maps_that_do_not_fit_are_named():
    module = PyramidFusionPooling(2)
    with pytest.raises(ValueError, match="Expected `class_map` of 2 classes and 2 spatial dimensions"):
        module(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="Expected `class_map` of 2 classes and 2 spatial dimensions"):
        module(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match="Expected `source` to be one of class_map, pyramid, product, got 'relu'"):
        module.maps(torch.zeros(1, 2, 8, 8), "relu")
