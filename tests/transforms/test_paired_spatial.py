# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Records that move images and maps alike: exact turns and flips, resampling against numpy and scipy, draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from monai_wsss.cams import zscore_images
from monai_wsss.transforms import SPATIAL_KINDS, PairedSpatialTransform, SpatialRecord
from monai_wsss.transforms.paired_spatial import FlipStep, QuarterTurnStep, ResizeStep, ShiftStep


def make_images(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def record_of(kind: str, shape: tuple[int, ...], seed: int = 0, **options) -> SpatialRecord:
    torch.manual_seed(seed)
    return PairedSpatialTransform((kind,), **options).draw(shape)


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 2, 6, 6, 4)])
def test_quarter_turns_are_exact_in_the_plane_of_the_first_two_axes(shape):
    images = make_images(shape)
    turned = SpatialRecord((QuarterTurnStep((1, 2, 3)),))(images)
    for n, turns in enumerate((1, 2, 3)):
        assert np.array_equal(turned[n].numpy(), np.rot90(images[n].numpy(), turns, axes=(1, 2)))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 5, 4, 3)])
def test_flips_mirror_one_axis_and_are_their_own_inverse(shape):
    images = make_images(shape)
    for axis in range(len(shape) - 2):
        record = SpatialRecord((FlipStep(axis),))
        assert np.array_equal(record(images).numpy(), np.flip(images.numpy(), axis + 2))
        assert torch.equal(record(record(images)), images)


@pytest.mark.parametrize("shape", [(2, 2, 6, 8), (2, 1, 6, 5, 4)])
@pytest.mark.parametrize("padding", ["zero", "minimum"])
def test_whole_pixel_shifts_are_shifted_copies(shape, padding):
    images = make_images(shape) - 0.5
    sides = shape[2:]
    pixels = [(2, -1, 1), (-3, 0, -2)]
    shifts = tuple(tuple(p / side for p, side in zip(row, sides, strict=False)) for row in pixels)
    moved = SpatialRecord((ShiftStep(shifts),))(images, padding=padding)
    for n, row in enumerate(pixels):
        for c in range(shape[1]):
            source = images[n, c].numpy()
            fill = source.min() if padding == "minimum" else 0.0
            expected = np.full(sides, fill)
            for target in np.ndindex(*sides):
                origin = tuple(t - p for t, p in zip(target, row, strict=False))
                if all(0 <= o < side for o, side in zip(origin, sides, strict=True)):
                    expected[target] = source[origin]
            np.testing.assert_allclose(moved[n, c].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 1, 9, 7), (1, 2, 6, 5, 4)])
def test_shifts_by_fractions_of_pixels_interpolate_linearly_into_zeros(shape):
    images = make_images(shape)
    record = record_of("translate", shape, seed=4)
    moved = record(images)
    for n, shift in enumerate(record.steps[0].shifts):
        assert max(map(abs, shift)) <= 0.3
        grid = np.stack(np.meshgrid(*[np.arange(side) for side in shape[2:]], indexing="ij")).astype(float)
        for axis, side in enumerate(shape[2:]):
            grid[axis] -= shift[axis] * side
        for c in range(shape[1]):
            expected = map_coordinates(images[n, c].numpy(), grid, order=1, mode="grid-constant", cval=0.0)
            np.testing.assert_allclose(moved[n, c].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "size"), [((1, 2, 6, 9), (8, 5)), ((1, 1, 4, 5, 6), (6, 3, 8))])
def test_scaling_interpolates_linearly_with_corners_on_corners(shape, size):
    images = make_images(shape)
    scaled = SpatialRecord((ResizeStep(size),))(images)
    axes = [np.linspace(0, side - 1, new) for side, new in zip(shape[2:], size, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    for c in range(shape[1]):
        expected = map_coordinates(images[0, c].numpy(), grid, order=1, mode="nearest")
        np.testing.assert_allclose(scaled[0, c].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SPATIAL_KINDS)
@pytest.mark.parametrize("shape", [(3, 2, 40, 40), (3, 1, 16, 24), (2, 1, 16, 16, 8)])
def test_an_image_and_a_map_of_it_move_alike(kind, shape):
    """Check that resampling commutes with linear maps of the channels of a pixel, for any number of channels."""
    images = make_images(shape)
    record = record_of(kind, shape)
    weights = torch.randn(5, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps = torch.einsum("kc,bc...->bk...", weights, images)
    torch.testing.assert_close(record(maps), torch.einsum("kc,bc...->bk...", weights, record(images)))
    assert torch.equal(record(images), record(images))


@pytest.mark.parametrize("mode", ["one_of", "compose"])
@given(st.integers(0, 10**6), st.floats(0.05, 20), st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_minimum_padding_does_not_see_the_normalization_of_the_images(mode, seed, gain, offset):
    """Check z-score(pi(a x + b)) = z-score(pi(x)): filled-in pixels are background before and after a rescaling."""
    torch.manual_seed(seed)
    images = make_images((2, 2, 16, 16), seed)
    record = PairedSpatialTransform(mode=mode).draw(images.shape)
    first = record(images, padding="minimum")
    second = record(gain * images + offset, padding="minimum")
    torch.testing.assert_close(zscore_images(second), zscore_images(first), rtol=1e-8, atol=1e-8)
    assert first.min() >= images.min() - 1e-12


@pytest.mark.parametrize("kind", SPATIAL_KINDS)
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (1, 2, 4, 4, 2)])
@pytest.mark.parametrize("padding", ["zero", "minimum"])
def test_gradients_pass_through(kind, shape, padding):
    record = record_of(kind, shape, divisor=2, scale_range=(0.5, 1.6))
    images = make_images(shape)
    if padding == "minimum":  # the minimum counts as a constant: gradients are those of padding with zeros
        (got,) = torch.autograd.grad(record(images.requires_grad_(), padding=padding).square().sum(), images)
        lowest = images.detach().flatten(2).amin(2).reshape(*shape[:2], *[1] * (len(shape) - 2))
        moved = record(images - lowest) + (lowest if kind == "translate" else record(lowest.expand(shape)))
        torch.testing.assert_close(got, torch.autograd.grad(moved.square().sum(), images)[0])
        return
    assert torch.autograd.gradcheck(record, images.requires_grad_())


@pytest.mark.parametrize("dims", [2, 3])
def test_scale_draws_every_multiple_within_its_range(dims):
    transform = PairedSpatialTransform(("scale",))
    torch.manual_seed(0)
    drawn = {transform.draw((2, 1, *(80,) * dims)).steps[0].size for _ in range(300)}
    assert drawn == {(side,) * dims for side in (64, 72, 80, 88, 96)}


def test_the_released_sizes_of_an_image_of_240_pixels():
    transform = PairedSpatialTransform(("scale",))
    torch.manual_seed(0)
    drawn = {transform.draw((2, 1, 240, 240)).steps[0].size[0] for _ in range(400)}
    assert drawn == set(range(192, 289, 8))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_no_side_leaves_the_range_of_scales(height, width, seed):
    torch.manual_seed(seed)
    size = PairedSpatialTransform(("scale",)).draw((1, 1, height, width)).steps[0].size
    for new, side in zip(size, (height, width), strict=True):
        assert new == side or (new % 8 == 0 and 0.8 * side <= new <= 1.2 * side)


@pytest.mark.parametrize("size", [(64, 64, 4), (240, 12)])
def test_a_side_too_short_for_a_multiple_keeps_its_size(size):
    torch.manual_seed(0)
    drawn = {PairedSpatialTransform(("scale",)).draw((1, 1, *size)).steps[0].size for _ in range(50)}
    assert len(drawn) > 2
    assert {new[-1] for new in drawn} == {size[-1]}


def test_images_that_are_not_square_make_half_turns():
    torch.manual_seed(0)
    transform = PairedSpatialTransform(("rotate",))
    assert set(transform.draw((50, 1, 8, 12)).steps[0].turns) == {2}
    assert set(transform.draw((50, 1, 8, 8, 3)).steps[0].turns) == {1, 2, 3}
    wide = PairedSpatialTransform(("rotate",), turns=(0, 1, 2, 3)).draw((50, 1, 8, 12))
    assert set(wide.steps[0].turns) == {0, 2}
    images = make_images((50, 1, 8, 12))
    assert wide(images).shape == images.shape


def test_one_of_draws_each_kind_and_compose_all_in_order():
    torch.manual_seed(0)
    one_of = PairedSpatialTransform()
    records = [one_of.draw((4, 1, 40, 40)) for _ in range(200)]
    kinds = [type(record.steps[0]) for record in records]
    assert all(len(record.steps) == 1 for record in records)
    assert all(30 <= kinds.count(kind) <= 70 for kind in (FlipStep, QuarterTurnStep, ResizeStep, ShiftStep))
    composed = PairedSpatialTransform(mode="compose").draw((4, 1, 40, 40))
    assert [type(step) for step in composed.steps] == [FlipStep, QuarterTurnStep, ResizeStep, ShiftStep]
    images = make_images((4, 1, 40, 40))
    by_hand = images
    for step in composed.steps:
        by_hand = step(by_hand)
    assert torch.equal(composed(images), by_hand)
    assert [
        type(s) for s in PairedSpatialTransform(("translate", "flip"), mode="compose").draw((1, 1, 8, 8)).steps
    ] == [
        ShiftStep,
        FlipStep,
    ]


def test_flip_and_scale_are_of_the_batch_turn_and_shift_of_each_image():
    torch.manual_seed(0)
    flips = [PairedSpatialTransform(("flip",)).draw((5, 1, 8, 8, 8)).steps[0].axis for _ in range(60)]
    assert set(flips) == {0, 1, 2}
    turns = PairedSpatialTransform(("rotate",)).draw((60, 1, 8, 8)).steps[0].turns
    assert len(turns) == 60
    assert set(turns) == {1, 2, 3}
    shifts = np.array(
        PairedSpatialTransform(("translate",), translate_range=0.1).draw((400, 1, 8, 8, 8)).steps[0].shifts
    )
    assert shifts.shape == (400, 3)
    assert np.abs(shifts).max() <= 0.1
    assert (np.abs(shifts.mean(0)) < 0.02).all()
    assert shifts.min() < -0.09 < 0.09 < shifts.max()


@pytest.mark.parametrize("mode", ["one_of", "compose"])
def test_draws_follow_torchs_random_state(mode):
    transform = PairedSpatialTransform(mode=mode)

    def draws(seed: int) -> list[SpatialRecord]:
        torch.manual_seed(seed)
        return [transform.draw((3, 1, 40, 40)) for _ in range(5)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)


def test_an_empty_record_moves_nothing():
    images = make_images((2, 1, 4, 4))
    assert SpatialRecord(())(images, padding="minimum") is images


@pytest.mark.parametrize("kind", SPATIAL_KINDS)
def test_half_precision_and_autocast_do_not_move_pixels(kind):
    """Check coordinates under autocast: in bfloat16 they would be wrong by half a pixel of 240."""
    images = make_images((2, 1, 240, 240)).float()
    record = record_of(kind, images.shape)
    expected = record(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(record(images), expected)
    half = record(images.half())
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=2e-3)
    assert half.dtype == (torch.float16 if kind in ("flip", "rotate") else torch.float32)


def test_one_pixel_and_constant_images():
    for kind in SPATIAL_KINDS:
        pixel = torch.full((2, 1, 1, 1), 3.0)
        moved = record_of(kind, pixel.shape)(pixel, padding="minimum")
        torch.testing.assert_close(moved, pixel)
        constant = torch.full((2, 1, 16, 16), -2.5)
        moved = record_of(kind, constant.shape)(constant, padding="minimum")
        torch.testing.assert_close(moved, torch.full_like(moved, -2.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ()}, "`kinds` to hold some of flip, rotate, scale, translate, got none"),
        ({"kinds": ("flip", "shear")}, "`kinds` to be one of flip, rotate, scale, translate, got 'shear'"),
        ({"mode": "all"}, "`mode` to be one of one_of, compose, got 'all'"),
        ({"turns": ()}, r"`turns` to hold some of 0, 1, 2, 3, got \(\)"),
        ({"turns": (1, 5)}, r"`turns` to hold some of 0, 1, 2, 3, got \(1, 5\)"),
        ({"scale_range": (1.2, 0.8)}, r"`scale_range`\[0\] <= `scale_range`\[1\].*got \(1.2, 0.8\), 0.3 and 8"),
        ({"scale_range": (0.0, 0.8)}, r"0 < `scale_range`\[0\]"),
        ({"translate_range": 1.0}, "0 <= `translate_range` < 1 .* 1.0 and 8"),
        ({"translate_range": -0.1}, "0 <= `translate_range` < 1"),
        ({"divisor": 0}, "`divisor` >= 1, got .* and 0"),
    ],
)
def test_mistakes_of_the_transform_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PairedSpatialTransform(**arguments)


def test_mistakes_of_the_record_are_named():
    record = SpatialRecord((FlipStep(0),))
    with pytest.raises(ValueError, match=r"`x` of shape \(B, C, \*S\), got \(4, 4\)"):
        record(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="`padding` to be one of zero, minimum, got 'border'"):
        record(torch.zeros(1, 1, 4, 4), padding="border")
