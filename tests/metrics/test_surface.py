# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Surface distances against all pairs of edge pixels in float64, against MONAI, and against the clock."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from monai_wsss.metrics import surface_distances

MASKS = hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=7).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def edges_by_loop(mask: np.ndarray) -> np.ndarray:
    """Coordinates of the set pixels with a neighbor along an axis that is not set, or with the image's end."""
    found = []
    for place in itertools.product(*map(range, mask.shape)):
        if not mask[place]:
            continue
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = list(place)
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                found.append(place)
                break
    return np.array(found, dtype=np.float64)


def distances_by_pairs(prediction, reference, spacing):
    a, b = (edges_by_loop(mask) * spacing for mask in (prediction, reference))
    table = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return table.min(1), table.min(0)


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 3))
def test_all_four_match_brute_force(pair, which):
    prediction, reference = pair
    spacing = np.array([(1, 1, 1), (0.5, 2.0, 1.25), (3, 0.1, 1), (1, 1, 5)][which])[: prediction.ndim]
    result = surface_distances(prediction, torch.as_tensor(reference), spacing=spacing)
    if not (prediction.any() and reference.any()):
        assert result is None
        return
    forth, back = distances_by_pairs(prediction, reference, spacing)
    assert result.asd == pytest.approx(forth.mean(), abs=1e-5)
    assert result.assd == pytest.approx((forth.sum() + back.sum()) / (len(forth) + len(back)), abs=1e-5)
    assert result.assd_directed == pytest.approx((forth.mean() + back.mean()) / 2, abs=1e-5)
    assert result.hd95 == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), abs=1e-5)


@pytest.mark.parametrize("shape", [(24, 30), (12, 14, 16)])
def test_matches_monai(shape):
    generator = np.random.default_rng(3)
    prediction, reference = generator.random((2, *shape)) < 0.1
    spacing = [0.8, 1.5, 2.0][: len(shape)]
    tensors = [torch.as_tensor(mask)[None, None] for mask in (prediction, reference)]
    result = surface_distances(prediction, reference, spacing=spacing)
    options = {"include_background": True, "spacing": spacing}
    assert result.asd == pytest.approx(float(compute_average_surface_distance(*tensors, **options)), rel=1e-5)
    pooled = compute_average_surface_distance(*tensors, symmetric=True, **options)
    assert result.assd == pytest.approx(float(pooled), rel=1e-5)
    assert result.hd95 == pytest.approx(float(compute_hausdorff_distance(*tensors, percentile=95, **options)), rel=1e-5)


def test_the_two_conventions_and_the_direction_differ():
    small, large = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    small[19:21, 19:21], large[5:35, 5:35] = True, True
    inside_out, outside_in = surface_distances(small, large), surface_distances(large, small)
    assert inside_out.asd < outside_in.asd
    assert inside_out.assd == pytest.approx(outside_in.assd)
    # The large surface has more pixels, so pooling leans towards its distances.
    assert inside_out.assd > inside_out.assd_directed + 0.5
    assert inside_out.assd_directed == pytest.approx((inside_out.asd + outside_in.asd) / 2)


def test_identical_shifted_and_single_pixel():
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    assert surface_distances(mask, mask) == (0, 0, 0, 0)
    one, other = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    one[1, 1], other[4, 5] = True, True
    assert surface_distances(one, other) == pytest.approx((5, 5, 5, 5))
    assert surface_distances(one, other, spacing=(2, 0.5)) == pytest.approx((np.hypot(6, 2),) * 4)


def test_mask_that_fills_the_image_has_its_border_as_surface():
    full, hole = np.ones((7, 7), bool), np.zeros((7, 7), bool)
    hole[3, 3] = True
    forth, back = distances_by_pairs(full, hole, np.ones(2))
    assert len(forth) == 24
    assert surface_distances(full, hole).asd == pytest.approx(forth.mean(), abs=1e-6)
    assert surface_distances(hole, full).asd == pytest.approx(back.mean(), abs=1e-6)


def test_nothing_to_measure():
    empty, full = np.zeros((5, 5)), np.ones((5, 5))
    assert surface_distances(empty, full) is None
    assert surface_distances(full, empty) is None
    assert surface_distances(empty, empty) is None


@pytest.mark.parametrize(
    ("shapes", "spacing", "words"),
    [
        (((4, 4), (4, 5)), None, "one shape"),
        (((4,), (4,)), None, "one shape"),
        (((4, 4), (4, 4)), (1, 1, 1), "2 positive sizes in mm"),
        (((4, 4), (4, 4)), (1, 0), "2 positive sizes in mm"),
        (((4, 4), (4, 4)), (1, float("nan")), "2 positive sizes in mm"),
    ],
)
def test_bad_arguments(shapes, spacing, words):
    with pytest.raises(ValueError, match=words):
        surface_distances(*(np.ones(shape) for shape in shapes), spacing=spacing)


def test_quick_enough_for_a_brain_volume_and_a_set_of_slices():
    axes = np.ogrid[:240, :240, :155]

    def ball(center, radius):
        return sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True)) < radius**2

    start = time.perf_counter()
    result = surface_distances(ball((120, 120, 77), 40), ball((125, 120, 77), 40), spacing=(1, 1, 1))
    assert result.assd == pytest.approx(2.5, abs=0.5)
    assert time.perf_counter() - start < 5  # 0.15 s on one core
    slices = np.zeros((643, 2, 64, 64), bool)
    slices[:, 0, 10:30, 12:40] = slices[:, 1, 15:40, 8:33] = True
    start = time.perf_counter()
    for prediction, reference in slices:
        surface_distances(prediction, reference)
    assert time.perf_counter() - start < 10  # 0.7 s on one core
