# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The dense CRF against its equations with all N x N kernels in float64, written without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from monai_wsss.refinement import bilateral
from monai_wsss.refinement import dense_crf as module
from monai_wsss.refinement.dense_crf import DenseCRF, dense_crf_refinement

SIZES = {"2d": (13, 9), "3d": (6, 5, 4)}


def brute_force(
    image: np.ndarray,
    probabilities: np.ndarray,
    *,
    iterations: int = 10,
    position: tuple[float, float] = (3.0, 3.0),
    bilateral: tuple[float, float, float] = (64.0, 5.0, 4.0),
    spacing: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Compute the mean field of one image over all pairs of pixels, the own pixel among them."""
    size = image.shape[1:]
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).reshape(len(size), -1).T * (spacing or 1.0)
    levels = image.reshape(len(image), -1).T.astype(np.float64)
    near = ((grid[:, None] - grid[None]) ** 2).sum(-1)
    like = ((levels[:, None] - levels[None]) ** 2).sum(-1)
    (a, w1), (b, c, w2) = position, bilateral
    kernels = []
    for weight, kernel in ((w1, np.exp(-near / (2 * a**2))), (w2, np.exp(-near / (2 * b**2) - like / (2 * c**2)))):
        rows = kernel.sum(1)
        kernels.append(weight * kernel / np.sqrt(rows[:, None] * rows[None]))
    log_p = np.log(np.clip(probabilities.reshape(len(probabilities), -1).astype(np.float64), 1e-5, 1.0))
    q = softmax(log_p, axis=0)
    for _ in range(iterations):
        q = softmax(log_p + sum(np.einsum("ij,kj->ki", kernel, q) for kernel in kernels), axis=0)
    return q.reshape(probabilities.shape)


def scene(
    size: tuple[int, ...], classes: int = 3, channels: int = 3, batch: int = 1, seed: int = 0, noise: float = 6.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw textured regions of one color each, in 0..255, and their probabilities, blurred and wrong in patches."""
    rng = np.random.default_rng(seed)
    images, maps = [], []
    scale = max(size) / 10
    for _ in range(batch):
        fields = np.stack([gaussian_filter(rng.standard_normal(size), scale) for _ in range(classes)])
        regions = fields.argmax(0)
        colors = rng.uniform(30, 225, (channels, classes))
        images.append(np.clip(colors[:, regions] + noise * rng.standard_normal((channels, *size)), 0, 255))
        logits = np.stack([gaussian_filter(1.0 * (regions == k), scale / 4) for k in range(classes)])
        patches = np.stack([gaussian_filter(rng.standard_normal(size), scale / 3) for _ in range(classes)])
        maps.append(softmax(4 * logits + 1.5 * patches / patches.std(), axis=0))
    return torch.from_numpy(np.stack(images)).float(), torch.from_numpy(np.stack(maps)).float()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (3, 3), (5, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
def test_exact_equals_brute_force(size, classes, channels, dtype):
    image, maps = scene(size, classes, channels, batch=2)
    refined = dense_crf_refinement(image.to(dtype), maps.to(dtype))
    assert refined.dtype == dtype
    assert (refined.argmax(1) != maps.argmax(1)).any()
    for own, given_, result in zip(image, maps, refined, strict=True):
        difference = np.abs(result.numpy() - brute_force(own.numpy(), given_.numpy()))
        assert difference.max() < (1e-5 if dtype == torch.float32 else 1e-7)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_setting_reaches_its_place(size):
    image, maps = scene(size)
    spacing = (2.0, 0.5, 1.5)[: len(size)]
    refined = dense_crf_refinement(
        image / 255,
        maps,
        iterations=4,
        position_std=1.3,
        position_weight=0.7,
        bilateral_position_std=4.0,
        bilateral_intensity_std=20.0,
        bilateral_weight=2.0,
        intensity_range=1.0,
        spacing=spacing,
    )
    expected = brute_force(
        image[0].numpy(),
        maps[0].numpy(),
        iterations=4,
        position=(1.3, 0.7),
        bilateral=(4.0, 20.0, 2.0),
        spacing=spacing,
    )
    assert np.abs(refined[0].numpy() - expected).max() < 1e-5


def test_exact_in_chunks_equals_all_at_once(monkeypatch):
    image, maps = scene((11, 12))
    whole = dense_crf_refinement(image, maps, method="exact")
    monkeypatch.setattr(bilateral, "ENTRIES", 1500)
    torch.testing.assert_close(dense_crf_refinement(image, maps, method="exact"), whole)


@pytest.mark.parametrize("std", [0.4, 3.0, 40.0])
def test_position_kernel_in_bands_equals_the_whole(std, monkeypatch):
    """Truncate the kernel and cut it into bands of rows, as for large images."""
    monkeypatch.setattr(module, "ROWS", 16)
    marginals = torch.rand(50 * 37, 3, generator=torch.Generator().manual_seed(0))
    # The kernel alone, which no public function gives.
    message = module._position_message(torch.zeros(3, 50, 37), [std, std / 2])
    grid = np.stack(np.meshgrid(np.arange(50) / std, np.arange(37) / (std / 2), indexing="ij")).reshape(2, -1).T
    kernel = np.exp(-((grid[:, None] - grid[None]) ** 2).sum(-1) / 2)
    rows = kernel.sum(1)
    expected = (kernel / np.sqrt(rows[:, None] * rows)) @ marginals.numpy().astype(np.float64)
    assert np.abs(message(marginals).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(("size", "channels"), [((48, 48), 3), ((48, 48), 1), ((14, 13, 12), 2)])
@pytest.mark.parametrize("preset", ["deeplab", "cosa", "bmp"])
def test_lattice_agrees_with_exact_on_images_with_structure(size, channels, preset):
    """Leave room: 99.6 to 100 % of the pixels agree and marginals differ by 0.002 on average, single pixels by more."""
    image, maps = scene(size, channels=channels, seed=1)
    exact, lattice = (DenseCRF.from_preset(preset, method=method)(image, maps) for method in ("exact", "lattice"))
    assert (exact.argmax(1) != maps.argmax(1)).float().mean() > 0.05
    assert (exact.argmax(1) == lattice.argmax(1)).float().mean() >= 0.99
    assert (exact - lattice).abs().mean() < 0.005


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_regions_are_found_again(method):
    """Put a third of a disk in doubt; its color tells."""
    inside = (torch.cartesian_prod(torch.arange(24), torch.arange(24)) - 12).square().sum(1).view(1, 1, 24, 24) < 64
    image = torch.where(inside, 180.0, 60.0).expand(1, 3, 24, 24)
    found = torch.where(inside, torch.where(torch.arange(24) < 14, 0.8, 0.4), 0.2)
    refined = dense_crf_refinement(image, torch.cat((1 - found, found), 1), method=method)
    assert bool((refined.argmax(1) == inside[:, 0]).all())


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 7), (6, 5), (3, 2, 4)]),
    st.integers(2, 5),
    st.integers(1, 4),
    st.sampled_from(["exact", "lattice"]),
    st.integers(0, 99),
)
def test_invariants(size, classes, channels, method, seed):
    generator = torch.Generator().manual_seed(seed)
    image = 2 + 253 * torch.rand(2, channels, *size, generator=generator)  # never taken for one in [0, 1]
    maps = torch.rand(2, classes, *size, generator=generator)
    crf = DenseCRF(method=method, iterations=3, bilateral_intensity_std=40.0, bilateral_position_std=3.0)
    refined = crf(image, maps)
    torch.testing.assert_close(refined.sum(1), torch.ones(2, *size))
    order = torch.randperm(classes, generator=generator)
    torch.testing.assert_close(crf(image, maps[:, order]), refined[:, order])
    # No class is preferred where none is at the start.
    even = torch.full_like(maps, 0.3)
    torch.testing.assert_close(crf(image, even), torch.full_like(maps, 1 / classes))
    # An image's neighbors in the batch do not matter, nor does the unit of its intensities, nor, but for corners of the
    # lattice that rounding makes or spares, their offset.
    torch.testing.assert_close(crf(image[1:], maps[1:]), refined[1:])
    own_unit = DenseCRF(**crf.settings | {"intensity_range": None, "bilateral_intensity_std": 80.0})
    torch.testing.assert_close(own_unit(2 * image, maps), refined)
    if method == "exact":
        torch.testing.assert_close(own_unit(2 * image - 100, maps), refined, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings_", [{"iterations": 0}, {"position_weight": 0.0, "bilateral_weight": 0.0}])
def test_without_messages_probabilities_are_normalized(settings_):
    image, maps = scene((6, 7))
    maps[0, 1, 2, 3] = 0
    expected = (0.5 * maps).clamp(min=1e-5)
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(dense_crf_refinement(image, 0.5 * maps, **settings_), expected)


@pytest.mark.parametrize("method", ["exact", "lattice"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (1, 1, 1), (4, 1, 5)])
def test_degenerate_images(method, size):
    """Try one pixel, one line, a constant image and certain probabilities: finite, and certain pixels stay."""
    maps = torch.zeros(1, 3, *size)
    maps[:, 2] = 1
    refined = dense_crf_refinement(torch.zeros(1, 1, *size), maps, method=method)
    assert refined.isfinite().all()
    assert refined[:, 2].min() > 0.999


def test_constant_image_equals_brute_force_on_the_lattice_nearly():
    _, maps = scene((16, 16))
    image = torch.full((1, 2, 16, 16), 77.0)
    expected = brute_force(image[0].numpy(), maps[0].numpy())
    assert np.abs(dense_crf_refinement(image, maps)[0].numpy() - expected).max() < 1e-5
    assert np.abs(dense_crf_refinement(image, maps, method="lattice")[0].numpy() - expected).max() < 0.02


def test_small_images_are_exact_by_default():
    image, maps = scene((48, 49), classes=2, channels=1)
    for width, method in ((48, "exact"), (49, "lattice")):
        own, given_ = image[..., :width], maps[..., :width]
        refined = dense_crf_refinement(own, given_, iterations=1)
        assert torch.equal(refined, dense_crf_refinement(own, given_, iterations=1, method=method))


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_half_precision_and_whole_numbers(method):
    image, maps = scene((10, 10))
    image = image.round()
    refined = dense_crf_refinement(image, maps, method=method)
    assert torch.equal(dense_crf_refinement(image.to(torch.uint8), maps, method=method), refined)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dense_crf_refinement(image, maps, method=method), refined)
    half = dense_crf_refinement(image, maps.bfloat16(), method=method)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, dense_crf_refinement(image, maps.bfloat16().float(), method=method))


def test_no_gradient_and_no_change_of_what_was_given():
    image, maps = scene((8, 8))
    copies = image.clone(), maps.clone()
    assert not dense_crf_refinement(image, maps.requires_grad_()).requires_grad
    assert torch.equal(image, copies[0])
    assert torch.equal(maps, copies[1])


def test_presets_are_the_published_numbers():
    names = ("iterations", "position_std", "position_weight", "bilateral_position_std", "bilateral_intensity_std")
    published = {"deeplab": (10, 3, 3, 67, 3, 4), "cosa": (1, 1, 1, 121, 5, 4), "bmp": (10, 3, 3, 64, 5, 4)}
    for preset, numbers in published.items():
        crf = DenseCRF.from_preset(preset)
        assert tuple(crf.settings[name] for name in (*names, "bilateral_weight")) == numbers
        assert crf.settings["intensity_range"] == 255
    assert DenseCRF().settings == DenseCRF.from_preset("bmp").settings
    assert DenseCRF.from_preset("cosa", iterations=3, intensity_range=1.0).settings["iterations"] == 3
    assert "bilateral_position_std=64.0" in repr(DenseCRF())
    with pytest.raises(ValueError, match="Expected `preset` to be one of deeplab, cosa, bmp, got 'afa'"):
        DenseCRF.from_preset("afa")


def test_images_of_another_range_are_noticed():
    image, maps = scene((6, 6))
    unit = image / 255
    for wrong, settings_ in ((unit, {}), (image, {"intensity_range": 1.0}), (image - 100, {})):
        with pytest.raises(
            ValueError, match=r"Expected `image` in 0\.\..*give intensity_range=1 for images in \[0, 1\]"
        ):
            dense_crf_refinement(wrong, maps, **settings_)
    torch.testing.assert_close(
        dense_crf_refinement(unit, maps, intensity_range=1.0), dense_crf_refinement(image, maps), rtol=1e-3, atol=1e-4
    )
    # What has few levels, nothing at all, or overshoots by interpolation is no mistake.
    for right in ((unit > 0.5).float(), torch.zeros_like(image), 1.02 * image - 1):
        assert dense_crf_refinement(right, maps).isfinite().all()


@pytest.mark.parametrize(
    ("image", "maps", "message"),
    [
        (torch.zeros(1, 8, 8), torch.zeros(1, 2, 8, 8), r"Expected `image` of shape \(B, C, \*S\), got \(1, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(2, 8, 8), r"Expected `probabilities` of shape \(B, K, \*S\)"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 4, 4), "one batch and size.*resize the probabilities"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(1, 2, 8, 8), "one batch and size"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), "two classes.*give the background"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, 2, 8, 8), "at least one image"),
        (torch.full((1, 1, 2, 2), torch.nan), torch.zeros(1, 2, 2, 2), "Expected finite `image`"),
        (torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2, 2), torch.inf), "Expected finite `probabilities`"),
        (torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2, 2), 3.0), r"in \[0, 1\], got values from 3 to 3: logits need"),
    ],
)
def test_bad_tensors_are_refused(image, maps, message):
    with pytest.raises(ValueError, match=message):
        dense_crf_refinement(image, maps)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"iterations": -1}, "`iterations` >= 0"),
        ({"position_std": 0.0}, "standard deviations > 0.*a weight of 0 leaves a kernel out"),
        ({"bilateral_weight": -1.0}, "`bilateral_weight` >= 0"),
        ({"intensity_range": 0.0}, "`intensity_range` > 0 or None"),
        ({"method": "brute"}, "`method` to be one of auto, exact, lattice"),
    ],
)
def test_bad_settings_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**settings_)
    with pytest.raises(ValueError, match=message):
        dense_crf_refinement(torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2, 2), 0.5), **settings_)


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_bad_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="Expected `spacing` of 2 numbers > 0"):
        dense_crf_refinement(torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2, 2), 0.5), spacing=spacing)


def test_z_scores_do_not_pass_as_pictures():
    """Images of z-scores lie within what interpolation may overshoot of 0..255, though not of their own span."""
    scores = torch.randn(1, 1, 60, 60, generator=torch.Generator().manual_seed(0))
    scores[..., 24:36, 24:36] += 5.0
    probabilities = torch.full((1, 2, 60, 60), 0.5)
    with pytest.raises(ValueError, match=r"`image` in 0\.\.255 .*got values from -\d.*z-scores"):
        dense_crf_refinement(scores, probabilities)
    picture = 40 * scores + 150
    picture[..., 0, 0] = -5.0  # what interpolation may overshoot
    picture = picture.clamp(-5, 260)
    assert dense_crf_refinement(picture, probabilities, iterations=1).isfinite().all()


@pytest.mark.parametrize("low", [0.0, -0.1, -0.3, -1.2, -3.0])
@pytest.mark.parametrize("high", [0.9, 3.0, 8.0, 15.0])
def test_z_scores_are_no_gray_levels(low, high):
    image = torch.linspace(low, high, 256).reshape(1, 1, 16, 16)
    probabilities = torch.full((1, 2, 16, 16), 0.5)
    with pytest.raises(ValueError, match=r"Expected `image` in 0\.\.255"):
        dense_crf_refinement(image, probabilities)


def test_fractions_above_one_of_a_short_range_may_be_gray_levels():
    assert module.has_gray_levels(torch.tensor([0.0, 1.5]), 16.0)
    assert not module.has_gray_levels(torch.tensor([0.0, 0.5]), 16.0)
