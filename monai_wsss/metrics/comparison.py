# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Means, standard deviations and two-sample t-tests over runs: do two methods differ by more than their seeds do?

:func:`paired_test` compares two methods over the same subjects instead of over runs.

    t = (m_a - m_b) / s,   p = P(|T_df| >= |t|),   v = variance / n of a sample

    Welch:    s^2 = v_a + v_b,                                     df = s^4 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1))
    Student:  s^2 = pooled variance * (1 / n_a + 1 / n_b),         df = n_a + n_b - 2

Papers that print "a t-test" (Feng et al., AAAI 2025, Table 1) seldom say which.  Welch's needs no equal variances and
is the one to report.  With three seeds per method, both tests find large differences only: a p above 0.05 does not show
that two methods are alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_ind_from_stats

__all__ = ["LEAST_PAIRS", "WelchTest", "paired_test", "welch_t_test"]

LEAST_PAIRS = 6
"""Pairs from which on a test says anything: of five, no two-sided p is below 0.06."""
_ALL_SIGNS = 14  # pairs up to which every choice of signs is tried
_DRAWN = 20_000


class WelchTest(NamedTuple):
    """Two samples and the two conventions of their t-test; t and p are NaN where neither sample varies.

    Attributes:
        t: Welch's statistic, positive where the first mean is the larger.
        p: two-sided probability of a statistic at least as large, were the true means equal (Welch).
        degrees_of_freedom: Welch-Satterthwaite.
        student_t: the statistic under equal variances.
        student_p: its two-sided probability.
        student_degrees_of_freedom: n_a + n_b - 2.
        means: means of the first and of the second sample.
        sds: their standard deviations, with n - 1.
        sizes: their numbers of runs.
    """

    t: float
    p: float
    degrees_of_freedom: float
    student_t: float
    student_p: float
    student_degrees_of_freedom: float
    means: tuple[float, float]
    sds: tuple[float, float]
    sizes: tuple[int, int]


def welch_t_test(a: Sequence[float], b: Sequence[float]) -> WelchTest:
    """Compare a metric of two methods over independent runs.

    Args:
        a: one finite value per run (seed, draw) of the first method, at least two.
        b: the same of the second method, at least two, not necessarily as many.

    Returns:
        Means, standard deviations, and t, p and degrees of freedom by both conventions.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    Example:
        >>> test = welch_t_test([0.80, 0.82, 0.81], [0.76, 0.79, 0.75])
        >>> f"{test.t:.2f} {test.p:.3f} {test.degrees_of_freedom:.2f}"
        '3.25 0.050 2.88'
        >>> f"{test.student_t:.2f} {test.student_p:.3f} {test.student_degrees_of_freedom:.0f}"
        '3.25 0.031 4'
    """
    samples = [_checked("a", a), _checked("b", b)]
    sizes = (len(samples[0]), len(samples[1]))
    means = (statistics.mean(samples[0]), statistics.mean(samples[1]))
    # The statistics module sums exactly: the variance of equal values is 0, without rounding errors.
    variances = (statistics.variance(samples[0]), statistics.variance(samples[1]))
    sds = (math.sqrt(variances[0]), math.sqrt(variances[1]))
    stats = (means[0], sds[0], sizes[0], means[1], sds[1], sizes[1])
    with np.errstate(all="ignore"):  # values without spread have no test
        welch, student = (ttest_ind_from_stats(*stats, equal_var=equal) for equal in (False, True))
    t, p, student_t, student_p = (
        float(value) if any(variances) else math.nan
        for one in (welch, student)
        for value in (one.statistic, one.pvalue)
    )
    return WelchTest(
        t=t,
        p=p,
        degrees_of_freedom=_welch_freedom(sds, sizes),
        student_t=student_t,
        student_p=student_p,
        student_degrees_of_freedom=float(sum(sizes) - 2),
        means=means,
        sds=sds,
        sizes=sizes,
    )


def paired_test(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> float | None:
    """Compare a metric of two methods over the same subjects, by the signs of their differences.

    If the methods were alike, each difference a_i - b_i might as well have the other sign.  p is the share of all
    choices of signs whose mean difference is at least as large as the one that was found, in either direction.  Up to
    14 pairs every choice is tried, above that 20,000 random ones.

    Args:
        a: one finite value per subject of the first method.
        b: those of the second method, of the same subjects in the same order.
        seed: seed of the random choices.

    Returns:
        The two-sided p; None for fewer than six subjects, of which no test can say anything.

    Raises:
        ValueError: not as many values of both methods, or one that is not finite.

    Example:
        >>> paired_test([0.9, 0.8, 0.7, 0.9, 0.8, 0.7], [0.5, 0.6, 0.4, 0.7, 0.6, 0.6])
        0.03125
        >>> paired_test([0.9, 0.8], [0.5, 0.6]) is None
        True
    """
    if len(a) != len(b):
        raise ValueError(f"Expected `a` and `b` of the same subjects, got {len(a)} and {len(b)} values.")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError("Expected finite values in `a` and `b`: leave out subjects without a result.")
    if len(differences) < LEAST_PAIRS:
        return None
    found = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()  # sums that are equal may round otherwise
    if len(differences) <= _ALL_SIGNS:
        numbers = np.arange(2 ** len(differences))[:, None]
        signs = 1 - 2 * (numbers >> np.arange(len(differences)) & 1)
        return float(np.mean(np.abs(signs @ differences) >= found))
    signs = np.random.default_rng(seed).choice([-1, 1], size=(_DRAWN, len(differences)))
    return float((1 + np.count_nonzero(np.abs(signs @ differences) >= found)) / (1 + _DRAWN))


def _welch_freedom(sds: Sequence[float], sizes: Sequence[int]) -> float:
    """Give the degrees of freedom, which scipy does not tell of a test from means and deviations."""
    errors = [sd / math.sqrt(size) for sd, size in zip(sds, sizes, strict=True)]
    error = math.hypot(*errors)
    # Shares of the squared error keep variances of any size in range.
    shares = [(one / error) ** 2 if error > 0 else 0.5 for one in errors]
    return 1 / sum(share**2 / (size - 1) for share, size in zip(shares, sizes, strict=True))


def _checked(name: str, values: Sequence[float]) -> list[float]:
    checked = [float(value) for value in values]
    if len(checked) < 2:
        raise ValueError(
            f"Expected at least two values in `{name}`, got {len(checked)}: a spread over runs needs two seeds or more."
        )
    if not all(map(math.isfinite, checked)):
        raise ValueError(f"Expected finite values in `{name}`, got {checked}: leave out runs without a result.")
    return checked
