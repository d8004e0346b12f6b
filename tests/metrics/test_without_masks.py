# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Numbers from image-level labels alone: against loops over pairs and pixels, and where nothing can be told."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.metrics import (
    area_under_presence,
    blanked_presence,
    left_clean,
    map_distance,
    mask_agreement,
    mask_metrics,
    rank_correlation,
)

RNG = np.random.default_rng(3)


def test_blanked_presence_matches_loops_over_positive_images():
    label = RNG.integers(0, 2, (7, 3))
    whole, without, alone, control = (RNG.normal(0, 2, (7, 3)).round(1) for _ in range(4))
    shown = [(n, k) for n in range(7) for k in range(3) if label[n, k]]
    won = [float(alone[a] > without[b]) + 0.5 * float(alone[a] == without[b]) for a in shown for b in shown]
    right = [without[at] <= 0 for at in shown] + [alone[at] > 0 for at in shown]
    chance = {name: [1 / (1 + math.exp(-part[at])) for at in shown] for name, part in
              {"whole": whole, "without": without, "alone": alone, "control": control}.items()}  # fmt: skip
    found = blanked_presence(torch.as_tensor(whole), without, alone, label, control=control)
    assert found.auroc == pytest.approx(np.mean(won), abs=1e-12)
    assert found.accuracy == pytest.approx(np.mean(right), abs=1e-12)
    assert found.fall == pytest.approx(np.mean(chance["whole"]) - np.mean(chance["without"]), abs=1e-12)
    assert found.stay == pytest.approx(np.mean(chance["alone"]) - np.mean(chance["whole"]), abs=1e-12)
    assert found.margin == pytest.approx(np.mean(chance["control"]) - np.mean(chance["without"]), abs=1e-12)


def test_classes_that_an_image_lacks_take_no_part():
    label = np.array([[1, 0], [0, 0]])
    logits = np.array([[2.0, np.nan], [np.nan, np.nan]])
    found = blanked_presence(logits, -logits, logits, label)
    assert found.accuracy == found.auroc == 1
    assert math.isnan(found.margin)


def test_blanked_presence_of_healthy_images_is_unknown_and_of_huge_logits_finite():
    assert all(math.isnan(value) for value in blanked_presence(*[np.zeros((2, 1))] * 4))
    huge = np.full((1, 1), 1e6)
    assert blanked_presence(huge, -huge, huge, np.ones((1, 1))).fall == 1
    with pytest.raises(ValueError, match="shape of `label`"):
        blanked_presence(huge, huge, huge, np.ones((2, 1)))
    with pytest.raises(ValueError, match="finite logits"):
        blanked_presence(huge, huge * np.nan, huge, np.ones((1, 1)))


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 2)])
def test_map_distance_matches_a_loop_and_is_a_distance(size):
    first, second = RNG.random((2, 3, *size)), RNG.random((2, 3, *size))
    expected = np.empty((2, 3))
    for n in range(2):
        for k in range(3):
            apart = [abs(a - b) for a, b in zip(first[n, k].flat, second[n, k].flat, strict=True)]
            expected[n, k] = sum(apart) / (sum(first[n, k].flat) + sum(second[n, k].flat))
    assert map_distance(torch.as_tensor(first), second) == pytest.approx(expected)
    assert map_distance(second, first) == pytest.approx(expected)
    assert map_distance(7 * first, 7 * second) == pytest.approx(expected)
    assert (map_distance(first, first) == 0).all()


def test_map_distance_of_empty_maps():
    empty, full = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    assert math.isnan(map_distance(empty, empty)[0, 0])
    assert map_distance(empty, full)[0, 0] == 1
    with pytest.raises(ValueError, match="normalize raw maps"):
        map_distance(-full, full)
    with pytest.raises(ValueError, match="one shape"):
        map_distance(full[..., :1], full)


def test_mask_agreement_matches_sets_of_pixels():
    masks = [[RNG.integers(0, 3, (3, 4)) for _ in range(2)] for _ in range(3)]

    def dice(one, other):
        values = []
        for label in (1, 2):
            a, b = set(np.flatnonzero(one == label)), set(np.flatnonzero(other == label))
            values += [2 * len(a & b) / (len(a) + len(b))] if a | b else []
        return np.mean(values)

    expected = [
        np.mean([np.mean([dice(masks[i][n], masks[j][n]) for n in range(2)]) for j in range(3) if j != i])
        for i in range(3)
    ]
    assert mask_agreement(masks, num_classes=2) == pytest.approx(np.array(expected))
    assert mask_agreement([masks[0], masks[0]], num_classes=2).tolist() == [1, 1]


def test_nothing_agrees_with_nobody_and_empty_masks_do_not_agree():
    empty, full = np.zeros((2, 2), int), np.ones((2, 2), int)
    assert np.isnan(mask_agreement([[full]])).all()
    assert np.isnan(mask_agreement([[empty], [empty]])).all()
    assert mask_agreement([[empty], [full]]).tolist() == [0, 0]
    assert mask_agreement([]).shape == (0,)
    with pytest.raises(ValueError, match="as many masks"):
        mask_agreement([[full], []])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_area_under_presence_matches_the_trapezoids(values):
    expected = sum((a + b) / 2 for a, b in itertools.pairwise(values)) / (len(values) - 1)
    area = float(area_under_presence(torch.tensor(values, dtype=torch.float64)))
    assert area == pytest.approx(expected)
    assert min(values) - 1e-12 <= area <= max(values) + 1e-12


def test_area_needs_two_points():
    assert area_under_presence(np.ones((2, 3, 4))).shape == (2, 3)
    with pytest.raises(ValueError, match="T >= 1"):
        area_under_presence(np.ones((2, 1)))


def test_clean_and_found_shares():
    labels = [np.array(each) for each in ([0, 0], [1, 0], [0, 0], [0, 1])]
    areas = [np.array(each) for each in ([0.0, 0.0], [0.2, 0.0], [0.1, 0.0], [0.0, 0.0])]
    assert left_clean(labels, areas) == 0.5
    assert mask_metrics(labels, areas)["found"] == 0.5
    assert math.isnan(left_clean(labels[1:2], areas[1:2]))
    assert math.isnan(left_clean([], []))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=9))
def test_rank_correlation_matches_the_correlation_of_mean_ranks(pairs):
    one, other = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))

    def ranks(values):
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    found = rank_correlation(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert math.isnan(found)
        return
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    assert found == pytest.approx((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()), abs=1e-9)
    assert rank_correlation(-one, other) == pytest.approx(-found)
    assert rank_correlation([*one, math.nan], [*other, 1.0]) == found


def test_two_models_have_no_rank_correlation():
    assert math.isnan(rank_correlation([1, 2], [1, 2]))
    with pytest.raises(ValueError, match="one score and one truth"):
        rank_correlation([1.0], [1.0, 2.0])
