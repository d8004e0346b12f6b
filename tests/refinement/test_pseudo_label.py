# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pseudo-labels against loops over pixels and images, with an easy refinement; boxes; degenerate seeds; the cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.refinement.pixel_adaptive import PixelAdaptiveRefinement
from monai_wsss.refinement.pseudo_label import (
    background_aware_scores,
    outside_boxes,
    propagated_seed_label,
    refined_seed_label,
    seed_label,
)

SIZES = [(8, 6), (4, 6, 4)]


def keep(image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """A refinement that only brings maps to the image's size."""
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    return F.interpolate(maps, size=image.shape[2:], mode=mode, align_corners=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_thresholds_pixel_by_pixel(size):
    seeds = random(2, 3, *size)
    label = seed_label(seeds, low=0.6, high=0.8).numpy()
    for position in np.ndindex(2, *size):
        values = seeds[(position[0], slice(None), *position[1:])].numpy()
        highest = values.max()
        expected = 0 if highest <= 0.6 else 255 if highest <= 0.8 else values.argmax() + 1
        assert label[position] == expected


def test_one_threshold_leaves_nothing_in_doubt():
    label = seed_label(random(1, 2, 9, 9), low=0.45)
    assert set(label.unique().tolist()) <= {0, 1, 2}


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.45), st.floats(0.55, 0.95), st.integers(0, 9))
def test_a_wider_doubt_only_adds_ignored_pixels(low, high, seed):
    seeds = random(1, 2, 6, 6, seed=seed)
    narrow, wide = seed_label(seeds, low=0.5), seed_label(seeds, low=low, high=high)
    decided = wide != 255
    assert torch.equal(narrow[decided], wide[decided])


@pytest.mark.parametrize("size", SIZES)
def test_low_and_high_background_scores_decide_together(size):
    """Without any spreading, and at full size, the label is that of the thresholds: the softmax keeps the order."""
    seeds, image = random(3, 2, *size), random(3, 1, *size)
    label = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    got = refined_seed_label(image, seeds, label, keep, low=0.35, high=0.55, downscale=1)
    present = seeds * label.reshape(3, 2, *[1] * len(size))
    assert torch.equal(got, seed_label(present, low=0.35, high=0.55))
    assert not got[2].any()


def test_labels_spread_along_the_image():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = 1.0
    seeds = torch.zeros(1, 1, 16, 16)
    seeds[..., 2:14, 10:16] = 1.0
    refine = PixelAdaptiveRefinement(dilations=(1, 2, 4), row_stochastic=True)
    label = refined_seed_label(image, seeds, torch.ones(1, 1), refine, downscale=1)
    assert (label[0, :, :8] == 0).all()
    assert (label[0, 4:12, 9:15] == 1).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("normalize", ["none", "l1", "softmax"])
def test_scores_of_background_and_present_classes(size, normalize):
    image, seeds, background = random(2, 1, *size), random(2, 2, *size), random(2, 1, *size, seed=1)
    label = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    scores = background_aware_scores(image, seeds, background, label, keep, normalize=normalize, downscale=1)
    bg, fg = background[0, 0].numpy(), seeds[0, 0].numpy()
    expected = {
        "none": (bg, fg),
        "l1": (bg / (bg + fg), fg / (bg + fg)),
        "softmax": (np.exp(bg) / (np.exp(bg) + np.exp(fg)), np.exp(fg) / (np.exp(bg) + np.exp(fg))),
    }[normalize]
    np.testing.assert_allclose(scores[0, 0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(scores[0, 1], expected[1], rtol=1e-12)
    assert not scores[0, 2].any()
    # A healthy image has its background alone: all of it, once normalized.
    if normalize != "none":
        torch.testing.assert_close(scores[1, 0], torch.ones_like(scores[1, 0]))
    assert not scores[1, 1:].any()


def test_no_score_at_all_is_no_share():
    zero = torch.zeros(1, 1, 4, 4)
    scores = background_aware_scores(zero, zero, zero, torch.ones(1, 1), keep, normalize="l1")
    assert not scores.any()


def test_gradient_reaches_the_seeds():
    refine = PixelAdaptiveRefinement(dilations=(1,), iterations=2)
    image, background, label = random(1, 1, 6, 4), random(1, 1, 6, 4, seed=1), torch.ones(1, 1, dtype=torch.float64)
    seeds = random(1, 1, 6, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: background_aware_scores(image, s, background, label, refine, normalize="l1"), seeds
    )


def test_a_box_is_an_image_of_its_own():
    image, seeds, background = random(2, 1, 10, 8), random(2, 1, 10, 8), random(2, 1, 10, 8, seed=1)
    boxes = torch.tensor([[0, 10, 0, 8], [2, 8, 1, 7]])
    label = torch.ones(2, 1, dtype=torch.float64)
    refine = PixelAdaptiveRefinement(dilations=(1, 2))
    scores = background_aware_scores(image, seeds, background, label, refine, boxes=boxes)
    part = (slice(1, 2), slice(None), slice(2, 8), slice(1, 7))
    cropped = background_aware_scores(image[part], seeds[part], background[part], label[1:], refine)
    torch.testing.assert_close(scores[part], cropped)
    outside = outside_boxes(boxes, image.shape[2:])
    assert not outside[0].any()
    assert int(outside[1].sum()) == 80 - 36
    assert not scores[1][:, outside[1]].any()
    whole = background_aware_scores(image[:1], seeds[:1], background[:1], label[:1], refine)
    torch.testing.assert_close(scores[:1], whole)


def test_affinity_between_all_tokens_makes_one_label():
    """Tokens that resemble each other fully share their scores; the box's outside is ignored."""
    image, seeds = random(1, 1, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    seeds[..., :4] = 1.0
    label, boxes = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[0, 8, 0, 6]])
    alone, together = torch.eye(4, dtype=torch.float64)[None], torch.ones(1, 4, 4, dtype=torch.float64)
    apart = propagated_seed_label(image, seeds, label, alone, keep, grid=(2, 2), boxes=boxes)
    one = propagated_seed_label(image, seeds, label, together, keep, grid=(2, 2), boxes=boxes)
    assert set(apart[..., :6].unique().tolist()) > {1}
    assert one[..., :6].unique().numel() == 1
    assert (one[..., 6:] == 255).all()


class Counting:
    """A refinement that notes how many maps it is given."""

    def __init__(self) -> None:
        self.refine = PixelAdaptiveRefinement(dilations=(1, 2), iterations=3)
        self.channels: list[int] = []

    def __call__(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        self.channels.append(maps.shape[1])
        return self.refine(image, maps)


def results(count: int, label: torch.Tensor, size: tuple[int, ...], refine: Counting) -> list[torch.Tensor]:
    """Labels and scores by each function, of the first ``count`` of three images; but for the first, in boxes."""
    grid = tuple(side // 2 for side in size)
    arguments = {
        "image": random(3, 1, *size)[:count],
        "seeds": random(3, 5, *size, seed=1)[:count],
        "label": label[:count],
        "refine": refine,
        "downscale": 1.5,
    }
    boxes = torch.tensor([bound for side in size for bound in (1, side)]).expand(count, -1)
    affinity = random(3, math.prod(grid), math.prod(grid), seed=2)[:count]
    background = random(3, 1, *size, seed=3)[:count]
    scores = {"low": 0.35, "high": 0.45}
    return [
        refined_seed_label(**arguments, **scores),
        propagated_seed_label(**arguments, **scores, affinity=affinity, grid=grid, boxes=boxes),
        *(
            background_aware_scores(**arguments, background=background, normalize=normalize, boxes=boxes)
            for normalize in ("none", "l1", "softmax")
        ),
    ]


@pytest.mark.parametrize("size", [(12, 9), (6, 8, 6)])
@pytest.mark.parametrize("held", [[[3], [1, 3]], [[0], [4]], [[], []]])
def test_classes_that_no_image_holds_are_not_refined(size, held):
    """A third image that holds every class has every map refined, which changes nothing in the first two."""
    label = torch.zeros(3, 5)
    for image, classes in enumerate(held):
        label[image, classes] = 1
    label[2] = 1
    few, every = Counting(), Counting()
    alone, beside = results(2, label, size, few), results(3, label, size, every)
    numbers = {k + 1 for of_image in held for k in of_image}
    classes = len(numbers)
    # Once for the batch, then once for each box; both background scores are refined together, if there is a class.
    assert few.channels == ([2 * (classes + 1)] * (1 + 2) if classes else []) + [classes + 1] * 2 * 3
    assert every.channels == [2 * 6] * (1 + 3) + [6] * 3 * 3
    for got, expected in zip(alone, beside, strict=True):
        torch.testing.assert_close(got, expected[:2])
    for got in alone[:2]:
        assert set(got.unique().tolist()) - {0, 255} == numbers


def test_one_pixel_and_half_precision():
    pixel = torch.rand(1, 1, 1, 1)
    refine = PixelAdaptiveRefinement()
    assert refined_seed_label(pixel, pixel * 0 + 1, torch.ones(1, 1), refine).flatten().tolist() == [1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = torch.rand(1, 1, 8, 8, dtype=torch.bfloat16)
        assert background_aware_scores(image, image, image, torch.ones(1, 1), refine).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.6, "high": 0.5}, "`low` <= `high`"),
        ({"downscale": 0.5}, "`downscale` >= 1"),
        ({"seeds": torch.zeros(1, 1, 4, 5)}, "of the image's size"),
        ({"label": torch.ones(1, 2)}, "`label` of shape"),
    ],
)
def test_what_does_not_fit_is_said(changes, message):
    arguments = {"image": torch.zeros(1, 1, 4, 4), "seeds": torch.zeros(1, 1, 4, 4), "label": torch.ones(1, 1)}
    arguments |= {"refine": keep}
    with pytest.raises(ValueError, match=message):
        refined_seed_label(**(arguments | changes))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 4, 0]], r"`boxes` of integers of shape \(B, 2 d\) = \(1, 4\), got torch.int64 of shape \(1, 3\)"),
        ([[0.0, 4.0, 0.0, 5.0]], r"`boxes` of integers of shape \(B, 2 d\) = \(1, 4\), got torch.float32"),
        ([[False, True, False, True]], "`boxes` of integers .* got torch.bool"),
        ([[0, 4, 0, 6]], r"0 <= first < last\+1 <= side .* of size \(4, 5\), got \[0, 4, 0, 6\]"),
        ([[-1, 4, 0, 5]], r"0 <= first < last\+1 <= side .*, got \[-1, 4, 0, 5\]"),
        ([[2, 2, 0, 5]], r"0 <= first < last\+1 <= side .*, got \[2, 2, 0, 5\]"),
        ([[3, 1, 0, 5]], r"0 <= first < last\+1 <= side .*, got \[3, 1, 0, 5\]"),
    ],
)
def test_boxes_that_do_not_lie_in_the_image_are_said(boxes, message):
    boxes, image, label = torch.tensor(boxes), torch.zeros(1, 1, 4, 5), torch.ones(1, 1)
    with pytest.raises(ValueError, match=message):
        outside_boxes(boxes, image.shape[2:])
    with pytest.raises(ValueError, match=message):
        background_aware_scores(image, image, image, label, keep, boxes=boxes)
    with pytest.raises(ValueError, match=message):
        propagated_seed_label(image, image, label, torch.eye(4)[None], keep, grid=(2, 2), boxes=boxes)


def test_boxes_of_another_number_of_images_are_said():
    image = torch.zeros(2, 1, 4, 5, 6)
    boxes = torch.tensor([[0, 4, 0, 5, 0, 6]], dtype=torch.int16)
    with pytest.raises(ValueError, match=r"\(B, 2 d\) = \(2, 6\), got torch.int16 of shape \(1, 6\)"):
        background_aware_scores(image, image, image, torch.ones(2, 1), keep, boxes=boxes)


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (1, 1, 4, 4), (2, 1, 2, 2), (2, 4, 4)])
def test_a_background_that_does_not_fit_is_said(shape):
    image = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"`background` of shape \(B, 1, \*S\) = \(2, 1, 4, 4\), got"):
        background_aware_scores(image, image, torch.zeros(shape), torch.ones(2, 1), keep)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_integer_images_are_not_rounded(dtype):
    """What the refinement sees of 0, 1, 0, 1, ... at half the size is 0.5."""
    seen = []

    def look(image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        seen.append(image)
        return keep(image, maps)

    image, seeds, label = (torch.arange(64) % 2).reshape(1, 1, 8, 8).to(dtype), torch.rand(1, 1, 8, 8), torch.ones(1, 1)
    refined_seed_label(image, seeds, label, look)
    background_aware_scores(image, seeds, seeds, label, look)
    for shrunk in seen:
        assert torch.equal(shrunk, torch.full((1, 1, 4, 4), 0.5))


def test_seeds_of_nan_are_in_doubt():
    seeds = torch.tensor([[[[0.1, torch.nan, 0.9]], [[0.0, 0.9, torch.nan]]]])
    assert seed_label(seeds, low=0.4).tolist() == [[[0, 255, 255]]]
    assert seed_label(seeds, low=0.4, high=0.6, ignore_index=-1).tolist() == [[[0, -1, -1]]]


def test_seeds_of_absent_classes_do_not_matter():
    """Not even as NaN, and whichever classes other images hold."""
    image, seeds, background = random(2, 1, 6, 6), random(2, 2, 6, 6), random(2, 1, 6, 6, seed=1)
    label = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    broken = seeds.clone()
    broken[0, 1] = torch.nan
    expected, got = (background_aware_scores(image, of, background, label, keep) for of in (seeds, broken))
    assert torch.equal(got, expected)


def test_an_unknown_normalization_is_said():
    zero = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="`normalize` to be one of"):
        background_aware_scores(zero, zero, zero, torch.ones(1, 1), keep, normalize="l2")
