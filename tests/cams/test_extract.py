# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Maps from head weights and from gradients, against plain loops; pooled maps equal the classifier's logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import zoom

from monai_wsss.cams import gradient_activation_maps, head_activation_maps, pool_maps, resize_maps


def tensors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
def test_head_maps_equal_the_convolution_and_pool_to_the_linear_layer(size: tuple[int, ...]) -> None:
    features, weight, bias = tensors(3, 6, *size), tensors(4, 6, seed=1), tensors(4, seed=2)
    maps = head_activation_maps(features, weight, bias)
    ones = [1] * len(size)
    convolve = F.conv2d if len(size) == 2 else F.conv3d
    torch.testing.assert_close(maps, convolve(features, weight.reshape(4, 6, *ones), bias))
    torch.testing.assert_close(maps, head_activation_maps(features, weight.reshape(4, 6, *ones), bias))
    torch.testing.assert_close(pool_maps(maps, "average"), F.linear(features.flatten(2).mean(2), weight, bias))


def test_head_maps_gradient_and_precision() -> None:
    inputs = (tensors(2, 3, 2, 2).requires_grad_(), tensors(2, 3, seed=1).requires_grad_(), tensors(2).requires_grad_())
    assert torch.autograd.gradcheck(head_activation_maps, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = head_activation_maps(inputs[0].bfloat16(), inputs[1].float())
        gradcam = gradient_activation_maps(inputs[0].bfloat16(), inputs[0].bfloat16())
    assert maps.dtype == gradcam.dtype == torch.float32


def test_head_maps_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"`weight` of shape \(K, F\).* F = 6, got \(4, 5\)"):
        head_activation_maps(torch.zeros(1, 6, 2, 2), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="`weight` of shape"):
        head_activation_maps(torch.zeros(1, 6, 2, 2), torch.zeros(4, 6, 3, 3))
    with pytest.raises(ValueError, match=r"`bias` of shape \(K,\) = \(4,\)"):
        head_activation_maps(torch.zeros(1, 6, 2, 2), torch.zeros(4, 6), torch.zeros(3))


def looped(a: np.ndarray, g: np.ndarray, score: float, variant: str, eps: float) -> np.ndarray:
    """Compute the map of one image, feature by feature and pixel by pixel."""
    result = np.zeros(a.shape[1:])
    for feature in range(len(a)):
        if variant == "gradcam":
            weight = g[feature].mean()
        else:
            weight, total = 0.0, (a[feature] * g[feature] ** 3).sum()
            for gradient in g[feature].ravel():
                denominator = 2 * gradient**2 + total
                alpha = gradient**2 / ((denominator if denominator != 0 else 1.0) + eps)
                weight += alpha * max(np.exp(score) * gradient, 0)
        result += weight * a[feature]
    return np.maximum(result, 0)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("variant", ["gradcam", "gradcam++"])
def test_gradient_maps_of_a_batch_equal_loops_over_images(variant: str, eps: float, size: tuple[int, ...]) -> None:
    # Batch size equal to the last axis: a score broadcast along the wrong axis would go unnoticed by the shapes.
    activations, gradients = tensors(size[-1], 5, *size).abs(), tensors(size[-1], 5, *size, seed=1)
    gradients[:, 0] = 0
    scores = tensors(size[-1], seed=2)
    got = gradient_activation_maps(activations, gradients, scores, variant=variant, eps=eps)
    for image in range(size[-1]):
        expected = looped(activations[image].numpy(), gradients[image].numpy(), scores[image].item(), variant, eps)
        np.testing.assert_allclose(got[image], expected, rtol=1e-9, atol=1e-12)


def test_gradcam_of_an_average_pooled_linear_head_is_its_class_map() -> None:
    features, weight = tensors(2, 4, 5, 5).abs().requires_grad_(), tensors(3, 4, seed=1)
    maps = head_activation_maps(features, weight)
    (gradients,) = torch.autograd.grad(pool_maps(maps, "average")[:, 1].sum(), features)
    torch.testing.assert_close(gradient_activation_maps(features.detach(), gradients) * 25, F.relu(maps[:, 1]).detach())


def test_gradcam_plus_plus_without_eps_ignores_tiny_gradients() -> None:
    activations, gradients = tensors(1, 3, 8, 8).abs(), tensors(1, 3, 8, 8, seed=3)
    # In the limit of small gradients the term with the cube vanishes: alpha = 1/2, weights are linear in the gradient.
    small = gradient_activation_maps(activations, gradients * 1e-9, variant="gradcam++")
    linear = F.relu(torch.einsum("bf,bfhw->bhw", F.relu(gradients).sum((2, 3)) / 2, activations))
    torch.testing.assert_close(small * 1e9, linear, rtol=1e-6, atol=0)


@pytest.mark.parametrize("variant", ["gradcam", "gradcam++"])
def test_zero_gradients_give_zero_maps(variant: str) -> None:
    got = gradient_activation_maps(torch.rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2), variant=variant)
    assert bool((got == 0).all())


def test_gradient_maps_bad_arguments() -> None:
    activations = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"`gradients` \(2, 3, 4, 4\) as `activations`.*got \(2, 3, 4, 5\)"):
        gradient_activation_maps(activations, torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"`scores` \(B,\), got .* and \(3,\)"):
        gradient_activation_maps(activations, activations, torch.zeros(3))
    with pytest.raises(ValueError, match="`variant` to be one of gradcam, gradcam"):
        gradient_activation_maps(activations, activations, variant="layercam")


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
def test_resize_is_linear_between_pixel_centers(size: tuple[int, ...]) -> None:
    maps = tensors(1, 1, *size)
    got = resize_maps(maps, [3 * n for n in size])
    expected = zoom(maps[0, 0].numpy(), 3, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(got[0, 0], expected, atol=1e-9)
    assert resize_maps(maps, size) is maps
