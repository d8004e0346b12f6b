# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Mixture thresholds: the scan that Eq. 6 of CoSA asks for, a plain EM, fall-backs, and nothing read back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from monai_wsss.refinement import assigned_thresholds, mixture_threshold
from monai_wsss.refinement.gaussian_mixture import _crossing, _Mixture  # the fit itself, value by value

READS = {"_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero", "_unique2", "masked_select"}


def two_populations(
    low: float, high: float, share: float, number: int = 4000, width: float = 0.08, seed: int = 0
) -> torch.Tensor:
    """Draw scores around two means; ``share`` of them around the higher."""
    noise = torch.randn(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * width
    upper = torch.arange(number) < share * number
    return (torch.where(upper, high, low) + noise).clamp(0, 1)


def density(x: np.ndarray, weight: float, mean: float, variance: float) -> np.ndarray:
    return np.log(weight) - 0.5 * np.log(2 * math.pi * variance) - (x - mean) ** 2 / (2 * variance)


def scanned_cut(values: np.ndarray, fit) -> tuple[float, float]:
    """Try every cut between neighbors for the greatest likelihood of Eq. 6; give the two values around the best."""
    ordered = np.unique(values[values > 0.05])
    of_low, of_high = (density(ordered, *(float(part[k]) for part in fit[2:5])) for k in (0, 1))
    totals = [of_low[:cut].sum() + of_high[cut:].sum() for cut in range(1, len(ordered))]
    best = int(np.argmax(totals)) + 1
    return ordered[best - 1], ordered[best]


def plain_em(values: np.ndarray, steps: int) -> np.ndarray:
    """Fit two Gaussians to the values one by one, from the mid-range: weights, means, variances as rows."""
    upper = values > (values.min() + values.max()) / 2
    shares = np.stack((~upper, upper)).astype(float)
    for _ in range(steps):
        held = shares.sum(1)
        means = (shares @ values) / held
        variances = (shares * (values - means[:, None]) ** 2).sum(1) / held
        weights = held / len(values)
        p = weights[:, None] * np.exp(-((values - means[:, None]) ** 2) / (2 * variances[:, None]))
        p /= np.sqrt(variances)[:, None]
        shares = p / p.sum(0)
    return np.stack((weights, means, variances))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.15, 0.35), st.floats(0.65, 0.9), st.floats(0.1, 0.9), st.floats(0.03, 0.12), st.integers(0, 99))
def test_the_crossing_is_the_cut_of_the_greatest_likelihood(low, high, share, width, seed):
    values = two_populations(low, high, share, 1500, width, seed)
    fit = mixture_threshold(values)
    assert fit.found
    below, above = scanned_cut(values.numpy(), fit)
    assert below - 1e-9 <= fit.threshold.item() <= above + 1e-9


@pytest.mark.parametrize(("low", "high", "share"), [(0.2, 0.8, 0.5), (0.25, 0.7, 0.1), (0.15, 0.6, 0.9)])
def test_bins_and_values_agree_with_a_plain_fit(low, high, share):
    values = two_populations(low, high, share)
    expected = plain_em(values[values > 0.05].numpy(), 300)
    exact, binned = (mixture_threshold(values, bins=bins, iterations=300) for bins in (None, 512))
    np.testing.assert_allclose(torch.stack(exact[2:5]).numpy(), expected, atol=1e-7)
    np.testing.assert_allclose(torch.stack(binned[2:5]).numpy(), expected, atol=1e-3)
    assert abs(exact.threshold - binned.threshold) < 1e-3
    assert exact.number == binned.number == (values > 0.05).sum()


def test_the_densities_are_equal_at_the_threshold():
    fit = mixture_threshold(two_populations(0.3, 0.7, 0.3, width=0.1))
    x = fit.threshold.numpy()
    low, high = (density(x, *(float(part[k]) for part in fit[2:5])) for k in (0, 1))
    assert low == pytest.approx(high, abs=1e-9)
    assert fit.means[0] < fit.threshold < fit.means[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_serves(dtype):
    fit = mixture_threshold(two_populations(0.2, 0.8, 0.4).to(dtype))
    assert fit.found
    assert fit.threshold.item() == pytest.approx(0.5, abs=0.05)
    assert fit.threshold.ndim == 0


def test_the_order_of_values_does_not_matter():
    values = two_populations(0.2, 0.8, 0.4)
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(1))]
    assert all(torch.equal(a, b) for a, b in zip(mixture_threshold(values), mixture_threshold(shuffled), strict=True))


def test_what_takes_no_part_changes_nothing():
    values = two_populations(0.2, 0.8, 0.4)
    expected = mixture_threshold(values[values > 0.05])
    more = torch.cat(
        (values, torch.tensor([torch.nan, 0.0, 0.05, -3.0], dtype=torch.float64), torch.full((500,), 0.99))
    )
    keep = torch.arange(len(more)) < len(values) + 4
    for bins in (None, 512):
        reference = expected if bins else mixture_threshold(values[values > 0.05], bins=None)
        for a, b in zip(reference, mixture_threshold(more, keep=keep, bins=bins), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


FALL_BACKS = {
    "nothing": torch.zeros(500),
    "only NaN": torch.full((500,), torch.nan),
    "too few": two_populations(0.2, 0.8, 0.5, number=63),
    "one value": torch.full((500,), 0.4),
    "one population": two_populations(0.5, 0.5, 0.5, width=0.03),
    "means too close": two_populations(0.5, 0.58, 0.5, width=0.01),
    "a few outliers": torch.cat((two_populations(0.2, 0.2, 0.5, width=0.03), torch.full((20,), 0.95))),
}


@pytest.mark.parametrize("name", FALL_BACKS)
@pytest.mark.parametrize("bins", [None, 512])
def test_without_two_populations_none_is_found_and_all_is_finite(name, bins):
    fit = mixture_threshold(FALL_BACKS[name], bins=bins)
    assert not fit.found
    assert all(bool(part.isfinite().all()) for part in fit)


def test_a_mixture_without_a_crossing_is_not_found():
    """A narrow population upon a wide one that is denser at both means: no cut between them parts the two."""
    generator = torch.Generator().manual_seed(0)
    narrow = 0.5 + 0.02 * torch.randn(200, generator=generator)
    wide = (0.35 + 0.2 * torch.randn(20000, generator=generator)).clamp(0.06, 1)
    fit = mixture_threshold(torch.cat((narrow, wide)), start="wide", tolerance=1e-3)
    assert not fit.found


@pytest.mark.parametrize(("log_ratio", "crosses"), [(0.49, True), (0.5, False), (0.51, False)])
def test_a_crossing_at_the_lower_mean_parts_nothing(log_ratio, crosses):
    """With variances of 1 and means 1 apart, the densities cross at the lower mean if the higher weighs e^0.5 more."""
    weights = torch.tensor([-log_ratio, 0.0], dtype=torch.float64).exp()
    means = torch.tensor([0.0, 1.0], dtype=torch.float64)
    place, between = _crossing(_Mixture(weights, means, torch.ones_like(means)))
    assert place.item() == pytest.approx(0.5 - log_ratio, abs=1e-12)
    assert between.item() is crosses


def test_the_authors_start_ends_unfitted_and_ours_does_not():
    """The trap of a tolerance of 1e-3 after a start with variances of 1."""
    values = two_populations(0.2, 0.78, 0.4, 5000, width=0.1)
    wide, split = mixture_threshold(values, start="wide", tolerance=1e-3), mixture_threshold(values)
    assert wide.steps < 5
    assert wide.means[1] - wide.means[0] < 0.15
    assert split.means.numpy() == pytest.approx([0.2, 0.78], abs=0.02)
    assert split.steps == 100
    converged = mixture_threshold(values, start="wide", iterations=300)
    assert converged.threshold == pytest.approx(split.threshold.item(), abs=1e-3)


def test_assigned_thresholds_part_the_values_by_their_densest_component():
    values = torch.cat(
        [two_populations(mean, mean, 0.5, 500, 0.03, seed=k) for k, mean in enumerate((0.15, 0.5, 0.85))]
    )
    low, high, found = assigned_thresholds(values, tolerance=None, bins=None)
    assert found
    assert low in values
    assert high in values
    assert 0.2 < low < 0.4 < 0.6 < high < 0.8
    low, high, found = assigned_thresholds(values, components=2, tolerance=None)
    between = values[(values > low) & (values < high)]
    assert len(between) == 0
    assert low < high


@pytest.mark.parametrize("name", ["nothing", "only NaN", "too few"])
def test_assigned_thresholds_of_nothing_are_not_found(name):
    low, high, found = assigned_thresholds(FALL_BACKS[name])
    assert not found
    assert low == high == 0.5


class Dispatched(TorchDispatchMode):
    """Collect the names of the operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("fit", [mixture_threshold, assigned_thresholds])
@pytest.mark.parametrize("words", [{}, {"bins": None}, {"tolerance": 1e-6}])
def test_nothing_is_read_back_from_the_device(fit, words):
    values = two_populations(0.2, 0.8, 0.4, 500)
    with Dispatched() as dispatched:
        fit(values, iterations=5, **words)
    assert dispatched.names
    assert not dispatched.names & READS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"values": torch.zeros(2, 2)}, r"Expected `values` of shape \(N\)"),
        ({"values": torch.zeros(0)}, "Expected floating-point `values`, one or more"),
        ({"values": torch.zeros(4, dtype=torch.long)}, "Expected floating-point `values`"),
        ({"keep": torch.ones(3, dtype=torch.bool)}, r"Expected bool `keep` of shape \(4,\)"),
        ({"keep": torch.ones(4)}, "Expected bool `keep`"),
        ({"ignore_up_to": 1.0}, r"Expected `ignore_up_to` in \[0, 1\)"),
        ({"iterations": 0}, "Expected `iterations` >= 1"),
        ({"bins": 1}, "`bins` >= 2 or None"),
        ({"start": "k-means"}, "Expected `start`"),
    ],
)
def test_a_wrong_argument_is_told(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        mixture_threshold(**{"values": torch.rand(4), **words})


def test_other_numbers_of_components_are_refused():
    with pytest.raises(ValueError, match="Expected `components` 2 or 3, got 4"):
        assigned_thresholds(torch.rand(4), components=4)
