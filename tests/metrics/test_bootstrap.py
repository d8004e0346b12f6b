# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Weights, intervals and class means on numbers worked out by hand (the weighting itself: test_aggregate)."""

from __future__ import annotations

import numpy as np
import pytest

from monai_wsss.metrics import bootstrap, dice_score


def test_weights_are_draws_with_replacement():
    weights = bootstrap.bootstrap_weights(7, samples=4000, seed=0)
    assert (weights.sum(1) == 7).all()
    assert weights.mean() == pytest.approx(1)
    assert (weights == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.02)
    np.testing.assert_array_equal(weights, bootstrap.bootstrap_weights(7, samples=4000, seed=0))


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(0.6, 0.1, size=400)
    interval = bootstrap.bootstrap_interval(
        bootstrap.subject_mean_estimate(values), bootstrap.bootstrap_weights(400, samples=4000, seed=0)
    )
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=5e-4)
    assert interval.high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=5e-4)


def test_undefined_metrics_and_samples():
    weights = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert bootstrap.bootstrap_interval(bootstrap.subject_mean_estimate(np.full(2, np.nan)), weights) is None
    interval = bootstrap.bootstrap_interval(bootstrap.subject_mean_estimate(np.array([0.5, np.nan])), weights)
    assert (interval.mean, interval.low, interval.high, interval.undefined) == (0.5, 0.5, 0.5, 1)
    only_bad = bootstrap.bootstrap_interval(bootstrap.subject_mean_estimate(np.array([0.5, np.nan])), weights[1:2])
    assert (only_bad.low, only_bad.high, only_bad.undefined) == (0.5, 0.5, 1)


def test_pooling_sums_counts_before_the_formula():
    counts = np.zeros((3, 4, 2))
    counts[0, :, 1] = 10, 0, 0, 90  # perfect
    counts[1, :, 1] = 0, 30, 0, 70  # false alarms only; the third subject has no pixel truth
    estimate = bootstrap.pooled_estimate(counts, lambda pooled: dice_score(pooled)[:, 1])
    weights = np.array([[1.0, 1, 1], [2, 1, 0], [0, 3, 0], [0, 0, 3]])
    np.testing.assert_allclose(estimate.function(weights), [20 / 50, 40 / 70, 0, np.nan])
    assert estimate.members.tolist() == [True, True, False]


def test_class_mean_leaves_out_a_class_without_a_value():
    first = bootstrap.subject_mean_estimate(np.array([0.2, np.nan]))
    second = bootstrap.subject_mean_estimate(np.array([0.6, 0.8]))
    mean = bootstrap.mean_of_estimates([first, second])
    np.testing.assert_allclose(mean.function(np.array([[1.0, 1.0], [0.0, 2.0]])), [(0.2 + 0.7) / 2, 0.8])
    assert mean.members.tolist() == [True, True]


def test_presence_ranking_is_the_same_in_blocks(monkeypatch):
    generator = np.random.default_rng(2)
    subject = np.repeat(np.arange(10), 3)
    labels = generator.integers(0, 2, 30)
    scores = labels + generator.normal(size=30)
    weights = bootstrap.bootstrap_weights(10, samples=50, seed=0)
    whole = bootstrap.presence_estimate(scores, labels, subject, num_subjects=11)
    assert whole.members.tolist() == [True] * 10 + [False]
    padded = np.pad(weights, ((0, 0), (0, 1)))
    expected = whole.function(padded)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)  # no argument: the result must not depend on it
    np.testing.assert_array_equal(whole.function(padded), expected)
