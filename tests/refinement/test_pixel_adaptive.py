# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pixel-adaptive refinement against its equations, pixel by pixel and neighbor by neighbor in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.special import softmax
from torch.utils._python_dispatch import TorchDispatchMode

from monai_wsss.refinement import pixel_adaptive
from monai_wsss.refinement.pixel_adaptive import (
    PixelAdaptiveRefinement,
    pixel_adaptive_refinement,
    pixel_adaptive_weights,
)

SIZES = [(7, 9), (1, 6), (1, 1), (4, 5, 3)]


def make(size=(7, 9), channels=2, maps=3, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    return torch.rand(batch, channels, *size, **options), torch.randn(batch, maps, *size, **options)


def neighbors_of(p, size, dilations):
    """Index and distance of each, the index clipped to the image."""
    for d in dilations:
        for sign in itertools.product((-1, 0, 1), repeat=len(size)):
            if any(sign):
                index = tuple(min(max(x + s * d, 0), n - 1) for x, s, n in zip(p, sign, size, strict=True))
                yield index, d * np.sqrt(sum(s * s for s in sign))


def literal_weights(image, dilations, w1=0.3, w2=0.01):
    """Weights and indices of the neighbors of each pixel of one image (C, *S)."""
    weights, indices = {}, {}
    for p in itertools.product(*map(range, image.shape[1:])):
        indices[p], distances = zip(*neighbors_of(p, image.shape[1:], dilations), strict=True)
        logits = 0.0
        for channel in image:
            values = np.array([channel[q] for q in indices[p]])
            spread = values.std(ddof=1) + 1e-8
            logits = logits - ((values - channel[p]) / spread / w1) ** 2 / len(image)
        distances = np.array(distances)
        position = -((distances / (distances.std(ddof=1) + 1e-8) / w1) ** 2)
        weights[p] = softmax(logits) + w2 * softmax(position)
    return weights, indices


def literal(image, maps, dilations, iterations, w1=0.3, w2=0.01):
    results = []
    for one_image, one_maps in zip(image.double().numpy(), maps.double().numpy(), strict=True):
        weights, indices = literal_weights(one_image, dilations, w1, w2)
        for _ in range(iterations):
            last, one_maps = one_maps, np.empty_like(one_maps)
            for p, w in weights.items():
                one_maps[:, *p] = sum(w_q * last[:, *q] for w_q, q in zip(w, indices[p], strict=True))
        results.append(one_maps)
    return torch.from_numpy(np.stack(results))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("dilations", [(1, 2, 4), (2, 24)])
def test_agrees_with_the_equations(size, channels, dilations):
    image, maps = make(size, channels)
    expected = literal(image, maps, dilations, 3)
    got = pixel_adaptive_refinement(image, maps, dilations=dilations, iterations=3)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    got = pixel_adaptive_refinement(image.float(), maps.float(), dilations=dilations, iterations=3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [(0.1, 0.0), (1.0, 0.5)])
def test_options_of_the_weights(options):
    image, maps = make()
    names = dict(zip(("intensity_weight", "position_weight"), options, strict=True))
    got = pixel_adaptive_refinement(image, maps, dilations=(1, 3), iterations=2, **names)
    torch.testing.assert_close(got, literal(image, maps, (1, 3), 2, *options), rtol=1e-10, atol=1e-12)
    image = image.float()
    weights = pixel_adaptive_weights(image[:1], dilations=(1, 3), **names)[0, 0]
    for p, w in literal_weights(image[0].double().numpy(), (1, 3), *options)[0].items():
        np.testing.assert_allclose(weights[:, *p].numpy(), w, rtol=1e-3, atol=1e-6)


def test_bands_of_rows_change_nothing(monkeypatch):
    """A small image is done in one band; in bands of a row it must come out the same, backward, too."""

    def results():
        image, maps = (tensor.requires_grad_() for tensor in make((6, 5)))
        refined = pixel_adaptive_refinement(image, maps, dilations=(1, 2), iterations=2)
        return refined.detach(), *torch.autograd.grad(refined.sin().sum(), (image, maps))

    whole = results()
    # The size of a band is no option: small bands here, so that a small image has several.
    monkeypatch.setattr(pixel_adaptive, "_WEIGHT_BAND", 12)
    monkeypatch.setattr(pixel_adaptive, "_MAP_BAND", 40)  # likewise
    for banded, expected in zip(results(), whole, strict=True):
        torch.testing.assert_close(banded, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [(4, 5), (1, 3), (2, 3, 2)])
@pytest.mark.parametrize("row_stochastic", [False, True])
def test_gradients(size, row_stochastic):
    image, maps = (tensor.requires_grad_() for tensor in make(size, maps=2, batch=1))

    def refine(image, maps):
        options = {"dilations": (1, 3), "iterations": 2, "intensity_weight": 1.0, "position_weight": 0.1}
        return pixel_adaptive_refinement(image, maps, row_stochastic=row_stochastic, **options)

    assert torch.autograd.gradcheck(refine, (image, maps))
    assert torch.autograd.gradcheck(lambda m: refine(image.detach(), m), maps, fast_mode=True)
    assert torch.autograd.gradcheck(lambda i: refine(i, maps.detach()), image, fast_mode=True)


def test_gradients_of_a_batch_through_resizing():
    image, maps = make((6, 5))[0].requires_grad_(), make((3, 2))[1].requires_grad_()

    def refine(image, maps):
        return pixel_adaptive_refinement(image, maps, dilations=(1, 2), iterations=3)

    assert torch.autograd.gradcheck(refine, (image, maps), fast_mode=True)


def test_gradients_of_constant_images_are_zero_or_finite():
    image, maps = (tensor.float() for tensor in make((5, 5)))
    for constant in (0.0, 0.3, 1000.1):
        image = torch.full_like(image, constant, requires_grad=True)
        pixel_adaptive_refinement(image, maps, dilations=(1, 2)).sum().backward()
        assert torch.equal(image.grad, torch.zeros_like(image))


def test_backward_keeps_no_buffer_of_a_step():
    image, maps = make()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pixel_adaptive_refinement(image, maps.requires_grad_(), dilations=(1, 2), iterations=20)
    assert sum(t.numel() for t in saved) <= image.numel() + maps.numel()


class Largest(TorchDispatchMode):
    """Remember the size of the largest tensor that an operator gives."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


def test_on_a_cpu_weights_are_held_for_one_image_at_a_time():
    image, maps = make((6, 5), batch=4)
    with Largest() as largest:
        refined = pixel_adaptive_refinement(image, maps.requires_grad_(), dilations=(1, 2), iterations=2)
        refined.sum().backward()
    assert largest.bytes == 2 * 8 * 6 * 5 * 8


@pytest.mark.parametrize(("side", "together"), [(512, 21), (4096, 1)])
def test_on_other_devices_weights_of_a_gibibyte_are_held_at_a_time(side, together):
    """48 weights of 4 bytes per pixel; tensors of the meta device have a size and take no memory."""
    image = torch.empty(40, 1, side, side, device="meta")
    rule = pixel_adaptive._Rule((1, 2, 4, 8, 12, 24), 0.3, 0.01, False)  # the rule itself
    with Largest() as largest:
        refined = pixel_adaptive._Refine.apply(image, image, rule, 1)  # the function knows no autocast of that device
    assert refined.shape == image.shape
    assert largest.bytes == together * 48 * side**2 * 4


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
def test_maps_are_resized_with_aligned_corners(size):
    image, maps = make(tuple(2 * s for s in size))[0], make(size)[1]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    full = F.interpolate(maps, image.shape[2:], mode=mode, align_corners=True)
    got, expected = (pixel_adaptive_refinement(image, m, dilations=(1, 2), iterations=2) for m in (maps, full))
    assert got.shape == (*maps.shape[:2], *image.shape[2:])
    assert torch.equal(got, expected)


def test_no_iteration_gives_the_maps():
    image, maps = make()
    assert torch.equal(pixel_adaptive_refinement(image, maps, iterations=0), maps)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gain=st.floats(0.5, 1000) | st.floats(-1000, -0.5),
    offset=st.floats(-1000, 1000),
    volume=st.booleans(),
)
def test_invariants(seed, gain, offset, volume):
    image, maps = make((3, 4, 2) if volume else (5, 6), seed=seed)
    options = {"dilations": (1, 3), "iterations": 4}
    refined = pixel_adaptive_refinement(image, maps, **options)
    # A channel's gain and offset, each its own.
    other = torch.stack((gain * image[:, 0] + offset, image[:, 1] - gain), 1)
    torch.testing.assert_close(pixel_adaptive_refinement(other, maps, **options), refined, rtol=1e-5, atol=1e-5)
    # Maps are on their own, and the refinement is linear in them.
    torch.testing.assert_close(pixel_adaptive_refinement(image, maps[:, 1:2], **options), refined[:, 1:2])
    torch.testing.assert_close(pixel_adaptive_refinement(image, gain * maps, **options), gain * refined)
    # A constant stays one, times the sum of the weights.
    constant = pixel_adaptive_refinement(image, torch.full_like(maps, 0.7), **options)
    torch.testing.assert_close(constant, torch.full_like(maps, 0.7 * 1.01**4))
    stochastic = pixel_adaptive_refinement(image, maps, row_stochastic=True, **options)
    torch.testing.assert_close(stochastic, refined / 1.01**4)
    slack = 1e-12
    assert (stochastic <= maps.amax(tuple(range(2, maps.ndim)), keepdim=True) + slack).all()
    assert (stochastic >= maps.amin(tuple(range(2, maps.ndim)), keepdim=True) - slack).all()
    weights = pixel_adaptive_weights(image, dilations=(1, 3), row_stochastic=True)
    torch.testing.assert_close(weights.sum(2), torch.ones_like(weights[:, :, 0]))


@pytest.mark.parametrize("value", [0.0, 0.3, 1000.1])
@pytest.mark.parametrize("size", [(6, 5), (1, 1), (3, 4, 2)])
def test_constant_images_weigh_all_neighbors_the_same(value, size):
    image = torch.full((1, 2, *size), value)
    weights = pixel_adaptive_weights(image, position_weight=0.0)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / weights.shape[2]))


@pytest.mark.parametrize("background", [0.0, 0.3])
def test_an_outlier_among_equals_weighs_them_the_same(background):
    image = torch.full((1, 1, 9, 9), background)
    image[..., 4, 4] = 1000.0
    weights = pixel_adaptive_weights(image, dilations=(1, 2, 4), position_weight=0.0)
    torch.testing.assert_close(weights[..., 4, 4], torch.full((1, 1, 24), 1 / 24))


@pytest.mark.parametrize("offset", [1e4, -3e6])
def test_a_large_offset_does_not_cancel(offset):
    steps = torch.randint(0, 9, (1, 2, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    got, expected = (pixel_adaptive_weights(image, dilations=(1, 2)) for image in (steps + offset, steps))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_nan_stays_where_it_is():
    image, maps = make((12, 12))
    expected = pixel_adaptive_refinement(image, maps, dilations=(1,), iterations=2)
    maps[0, 1, 2, 2] = torch.nan
    got = pixel_adaptive_refinement(image, maps, dilations=(1,), iterations=2)
    assert got[0, 1, :5, :5].isnan().all()
    assert torch.equal(got.isnan().sum((2, 3)), torch.tensor([[0, 25, 0], [0, 0, 0]]))
    torch.testing.assert_close(got[~got.isnan()], expected[~got.isnan()])
    image[1, 0, 11, 0] = torch.nan
    got = pixel_adaptive_refinement(image, maps, dilations=(1,), iterations=2)
    assert torch.equal(got.isnan().sum((2, 3)), torch.tensor([[0, 25, 0], [9, 9, 9]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    image, maps = (tensor.to(dtype) for tensor in make())
    expected = pixel_adaptive_refinement(image.float(), maps.float())
    assert torch.equal(pixel_adaptive_refinement(image, maps), expected)
    maps.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = pixel_adaptive_refinement(image, maps)
    assert torch.equal(refined, expected)
    refined.sum().backward()
    assert maps.grad.dtype == dtype


def test_dtypes_are_the_wider_and_integer_images_do():
    image, maps = make()
    assert pixel_adaptive_refinement(image.float(), maps).dtype == torch.float64
    grey = (255 * image).to(torch.uint8)
    got = pixel_adaptive_refinement(grey, maps.float())
    assert torch.equal(got, pixel_adaptive_refinement(grey.float(), maps.float()))


def test_inputs_of_any_strides_and_left_untouched():
    image, maps = make()
    flipped, before = maps.mT.contiguous().mT, (image.clone(), maps.clone())
    assert torch.equal(pixel_adaptive_refinement(image, flipped), pixel_adaptive_refinement(image, maps))
    one = maps[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(pixel_adaptive_refinement(image, one), pixel_adaptive_refinement(image, one.contiguous()))
    assert torch.equal(image, before[0])
    assert torch.equal(maps, before[1])


@pytest.mark.parametrize("shapes", [((0, 1, 4, 4), (0, 2, 4, 4)), ((1, 1, 4, 4), (1, 0, 4, 4))])
def test_no_images_or_maps(shapes):
    image, maps = (torch.zeros(shape) for shape in shapes)
    assert pixel_adaptive_refinement(image, maps).shape == maps.shape


def test_tensors_with_metadata_are_as_good_as_plain_ones():
    image, maps = make()
    plain = pixel_adaptive_refinement(image, maps, dilations=(1, 2))
    torch.testing.assert_close(pixel_adaptive_refinement(MetaTensor(image), MetaTensor(maps), dilations=(1, 2)), plain)
    weights = pixel_adaptive_weights(image, dilations=(1, 2))
    torch.testing.assert_close(pixel_adaptive_weights(MetaTensor(image), dilations=(1, 2)), weights)


def test_module_is_the_function():
    image, maps = make()
    options = {"dilations": [1, 2], "iterations": 3, "intensity_weight": 0.5, "row_stochastic": True}
    got = PixelAdaptiveRefinement(**options)(image, maps)
    assert torch.equal(got, pixel_adaptive_refinement(image, maps, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilations": ()}, r"`dilations` to be whole numbers >= 1, at least one, got \(\)"),
        ({"dilations": (1, 0)}, r"`dilations` to be whole numbers >= 1, at least one, got \(1, 0\)"),
        ({"iterations": -1}, "`iterations` >= 0, got -1"),
        ({"intensity_weight": 0.0}, "`intensity_weight` >= 1e-6, got 0.0"),
        ({"position_weight": -1.0}, "`position_weight` >= 0, got -1.0"),
    ],
)
def test_options_are_checked(options, message):
    image, maps = make()
    with pytest.raises(ValueError, match=message):
        pixel_adaptive_refinement(image, maps, **options)
    with pytest.raises(ValueError, match=message):
        PixelAdaptiveRefinement(**options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 1, 8), (2, 1, 8)), r"`image` of shape \(B, C, \*S\), got \(2, 1, 8\)"),
        (((2, 1, 8, 8), (2, 8, 8)), r"`maps` of shape \(B, M, \*S\), got \(2, 8, 8\)"),
        (((2, 1, 8, 8), (1, 1, 8, 8)), r"as many images and spatial dimensions as `image`, got maps \(1, 1, 8, 8\)"),
        (((2, 1, 8, 8), (2, 1, 8, 8, 8)), r"got maps \(2, 1, 8, 8, 8\) for an image \(2, 1, 8, 8\)"),
    ],
)
def test_shapes_are_checked(shapes, message):
    with pytest.raises(ValueError, match=message):
        pixel_adaptive_refinement(*(torch.zeros(shape) for shape in shapes))
