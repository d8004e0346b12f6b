# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Ranking and threshold sweep against all pairs, all thresholds, and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_roc_auc

from monai_wsss.metrics import (
    SWEEP_THRESHOLDS,
    count_pixels,
    dice_score,
    oracle_threshold,
    pixel_auroc,
    presence_auroc,
    sweep_counts,
    sweep_dice,
)

COARSE = st.integers(0, 10).map(lambda value: value / 10)  # many ties
RANKED = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.float64, shape, elements=COARSE), hnp.arrays(bool, shape))
)


def area_by_pairs(scores, positive, times=None):
    """Share of (positive, negative) pairs in the right order, ties one half; each image counted ``times``."""
    times = np.ones(len(scores)) if times is None else times
    won = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            won += times[i] * times[j] * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
            total += times[i] * times[j]
    return won / total if total else None


@settings(max_examples=60, deadline=None)
@given(RANKED)
def test_pixel_auroc_matches_all_pairs(pair):
    scores, mask = pair
    expected = area_by_pairs(scores.ravel(), mask.ravel())
    assert pixel_auroc(torch.as_tensor(scores), mask) == (None if expected is None else pytest.approx(expected))
    if expected is not None:  # an inverted map ranks the other way round, a monotone change does nothing
        assert pixel_auroc(-scores, mask) == pytest.approx(1 - expected)
        assert pixel_auroc(np.exp(scores), mask) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(hnp.arrays(np.float64, n, elements=COARSE), hnp.arrays(bool, n))))
def test_presence_auroc_matches_all_pairs_for_every_weighting(pair):
    scores, labels = pair
    weights = np.random.default_rng(0).integers(0, 3, (6, len(scores))).astype(float)
    result = presence_auroc(scores, labels, weights=weights)
    for value, times in zip(result, weights, strict=True):
        expected = area_by_pairs(scores, labels, times)
        assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_presence_auroc_matches_monai():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 200)
    scores = np.round(labels + generator.normal(size=200), 1)
    expected = compute_roc_auc(torch.as_tensor(scores), torch.as_tensor(labels))
    assert presence_auroc(scores, labels)[0] == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(16, 20), (6, 7, 8)])
def test_sweep_matches_thresholding_one_by_one(dtype, shape):
    generator = np.random.default_rng(2)
    score_map = np.round(generator.random(shape), 2).astype(dtype)  # lands on the thresholds themselves
    score_map.flat[:3] = 0, 1, 0.5
    mask = generator.random(shape) < 0.3
    true_positives, false_positives = sweep_counts(torch.as_tensor(score_map), mask)
    compared = score_map.astype(np.float64) if dtype == np.float16 else score_map
    for i, threshold in enumerate(SWEEP_THRESHOLDS.tolist()):
        counts = count_pixels(compared > threshold, mask)
        assert (true_positives[i], false_positives[i]) == (counts.tp[1], counts.fp[1])
        dice = sweep_dice(true_positives, false_positives, mask.sum())
        assert dice[i] == pytest.approx(dice_score(counts)[1])
    assert (np.diff(true_positives) <= 0).all()
    assert (np.diff(false_positives) <= 0).all()


def test_sweep_of_an_empty_reference_follows_the_empty_rule():
    true_positives, false_positives = sweep_counts(np.full((4, 4), 0.305), np.zeros((4, 4)))
    dice = sweep_dice(true_positives, false_positives, np.array(0))
    assert dice[SWEEP_THRESHOLDS <= 0.3].max() == 0
    assert dice[SWEEP_THRESHOLDS > 0.305].min() == 1


def test_oracle_threshold_finds_the_step():
    generator = np.random.default_rng(3)
    mask = generator.random((30, 30)) < 0.2
    score_map = np.where(mask, 0.655, 0.315)
    dice = sweep_dice(*sweep_counts(score_map, mask), mask.sum())
    threshold, best = oracle_threshold(dice)
    assert best == 1
    assert threshold == pytest.approx(0.32)


def test_constant_and_one_pixel_maps():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    assert pixel_auroc(np.zeros((5, 5)), mask) == 0.5
    assert pixel_auroc(mask.astype(float), mask) == 1
    assert pixel_auroc(np.zeros((5, 5)), np.zeros((5, 5))) is None
    assert pixel_auroc(np.zeros((5, 5)), np.ones((5, 5))) is None
    assert np.isnan(presence_auroc(np.zeros(0), np.zeros(0)))
    assert np.isnan(presence_auroc(np.ones(3), np.ones(3)))


def test_bad_maps():
    mask = np.zeros((2, 2))
    for value in (np.nan, np.inf):
        for function in (pixel_auroc, sweep_counts, presence_auroc):
            with pytest.raises(ValueError, match="finite scores, got NaN or infinity"):
                function(np.full((2, 2), value), mask)
    with pytest.raises(ValueError, match="one shape, got \\(2, 2\\) and \\(3, 3\\)"):
        pixel_auroc(mask, np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from -1 to 2: normalize"):
        sweep_counts(np.array([[-1.0, 2.0]]), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="`dice_curve` of shape"):
        oracle_threshold(np.zeros(3))
