# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Intensity PMFs against numpy's histogram, their distance against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from monai_wsss.metrics import CaseTable, intensity_pmf, pixel_auroc, pmf_distance

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("bins", "value_range"), [(256, (-1.0, 1.0)), (7, (0.0, 255.0))])
def test_a_pmf_is_a_normalized_histogram(bins, value_range):
    image = RNG.uniform(*value_range, (2, 20, 30))
    counts, _ = np.histogram(image, bins, value_range)
    np.testing.assert_allclose(intensity_pmf(image, bins=bins, value_range=value_range), counts / image.size)


def test_values_outside_count_for_the_ends_and_others_are_left_out():
    image = torch.tensor([[-5.0, 1.0, 7.0, float("nan"), float("inf"), 0.0]])
    np.testing.assert_allclose(intensity_pmf(image, bins=4), [0.25, 0, 0.25, 0.5])


def test_the_distance_agrees_with_scipy():
    one, other = (RNG.dirichlet(np.ones(40)) for _ in range(2))
    centers = -1 + (np.arange(40) + 0.5) * 2 / 40
    expected = wasserstein_distance(centers, centers, one, other)
    assert pmf_distance(one, other) == pytest.approx(expected, abs=1e-12)
    assert pmf_distance(other, one) == pytest.approx(expected, abs=1e-12)
    assert pmf_distance(one, one) == 0
    assert pmf_distance(one, other, value_range=(0, 255)) == pytest.approx(expected * 255 / 2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: intensity_pmf(np.zeros(0)), "at least one finite value"),
        (lambda: intensity_pmf(np.zeros(3), bins=0), "`bins` >= 1 and a rising"),
        (lambda: intensity_pmf(np.zeros(3), value_range=(1, 1)), "`bins` >= 1 and a rising"),
        (lambda: pmf_distance([1.0], [0.5, 0.5]), "two PMFs of one shape"),
        (lambda: pmf_distance([1.0, 1.0], [0.5, 0.5]), "that sum to 1"),
    ],
)
def test_what_does_not_fit_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_the_ranking_of_pixels_is_that_of_the_raw_map_where_there_is_one():
    reference = np.zeros((1, 6, 6), dtype=np.uint8)
    reference[0, 1:4, 1:4] = 1
    heat = RNG.uniform(0, 1.5, (1, 6, 6)) + 0.3 * reference
    cut = np.where(heat > 1.2, heat - 1.2, 0.0)
    for heat_given, expected in ((heat, heat), (None, cut)):
        table = CaseTable(["lesion"])
        table.add(
            id="a", subject="a", label=np.ones(1), prediction=reference, reference=reference, cam=cut, heat=heat_given
        )
        assert table.rows[0]["pixel_auroc"] == pixel_auroc(expected[0], reference[0])
        assert len(table.rows[0]["sweep"]) == 1
