# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Thresholds between two populations of scores, by a Gaussian mixture: no masks, no labels, no number to tune.

CoSA, Eq. 6: the scores of background and foreground follow two Gaussians, and the threshold maximizes the likelihood of
the values so divided. Eq. 6 as printed adds the two products of densities. Their product, the likelihood, is meant:

    max over xi of  sum_{x >= xi} log(pi_fg N(x; mu_fg, var_fg)) + sum_{x < xi} log(pi_bg N(x; mu_bg, var_bg))

A value counts best on the side of the larger weighted density, so that xi is where the two densities cross between
their means: a root of a quadratic, no search.

The fit reads nothing back from the device: the values are counted in bins, and a fixed number of steps of expectation
and maximization work on the counts alone. Each is a handful of operations on two rows, whatever the number of values.

The authors' code does something else. It begins with variances of 1 for values in [0, 1] and ends when a step changes
the mean log-likelihood by less than 1e-3, which two components often do after three steps, still unfitted. Then it
assigns the values to components and takes the highest value of the lowest component and, of three, the lowest of the
highest (:func:`assigned_thresholds`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from monai_wsss._checks import check_choice, check_shape, float32_or_wider
from monai_wsss.cams import normalize_maps

__all__ = ["AssignedThresholds", "MixtureFit", "assigned_thresholds", "mixture_threshold"]

FEWEST_VALUES = 64
SMALLEST_WEIGHT = 0.01
NEAREST_MEANS = 0.1
SMALLEST_VARIANCE = 1e-4
BINS = 512
STEPS = 100
_IGNORED_SCORES = 0.05
_ADDED_VARIANCE = 1e-6  # scikit-learn's `reg_covar`, with the start "wide"
_LEAST = 1e-12  # share of all values below which a component holds nothing


class MixtureFit(NamedTuple):
    """Two Gaussians and the threshold between them; tensors on the device of the values, float64.

    Attributes:
        threshold: 0-d, where the weighted densities cross between the means; 0.5 where they do not.
        found: 0-d bool: whether the values show two populations, so that the threshold may be used.
        weights: (2,), the lower mean first, as the next two.
        means: (2,).
        variances: (2,).
        steps: 0-d, the number of steps that changed the fit.
        number: 0-d, how many values took part.
    """

    threshold: torch.Tensor
    found: torch.Tensor
    weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    steps: torch.Tensor
    number: torch.Tensor


class AssignedThresholds(NamedTuple):
    """Thresholds of the authors' code; 0-d tensors of the values' type.

    Attributes:
        low: the highest value that is assigned to the lowest component; up to it is background.
        high: the lowest value that is assigned to the highest component; from it on is foreground.
        found: bool: whether there are enough values and both components hold any.
    """

    low: torch.Tensor
    high: torch.Tensor
    found: torch.Tensor


class _Mixture(NamedTuple):
    """Columns (C, 1): the loop below spends its time on small operations, not on numbers."""

    weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor


class _Points(NamedTuple):
    """Places (N,) and the share (N,) of all values that lies at each; ``number`` tells how many values there are."""

    places: torch.Tensor
    shares: torch.Tensor
    number: torch.Tensor


@torch.no_grad()
def mixture_threshold(
    values: torch.Tensor,
    *,
    keep: torch.Tensor | None = None,
    ignore_up_to: float = _IGNORED_SCORES,
    start: str = "split",
    iterations: int = STEPS,
    tolerance: float | None = None,
    bins: int | None = BINS,
) -> MixtureFit:
    """Fit two Gaussians to scores and give the threshold between them (CoSA, Eq. 6).

    No threshold is found where fewer than 64 values take part, a component holds less than 1 % of them, the means are
    closer than 0.1, or the densities do not cross between the means. Variances stay at or above 1e-4.

    Args:
        values: (N,) scores in [0, 1], of any floating type; NaN takes no part.
        keep: (N,) bool, which of them take part; None: all.
        ignore_up_to: scores up to this one take no part either: most pixels of a class map are 0.
        start: what the fit begins with. ``"split"``: Otsu's threshold, both sides with their own mean and variance.
            ``"wide"``: the authors', the lowest and the highest value as means, equal weights, variances of 1; with it
            1e-6 is added to each variance, as scikit-learn does.
        iterations: the greatest number of steps.
        tolerance: the fit stays as it is once a step has changed the mean log-likelihood by less; None: never. It
            saves no time, since to end the loop the device would have to be waited for.
        bins: number of equal bins of [0, 1] in which the values are counted; None: the fit works on the values, which
            is exact and takes as much longer as there are more of them.

    Returns:
        a :class:`MixtureFit`.

    Raises:
        ValueError: another shape, an unknown start, or a number out of its range.

    Example:
        >>> scores = torch.cat((torch.linspace(0.1, 0.3, 100), torch.linspace(0.7, 0.9, 50)))
        >>> fit = mixture_threshold(scores)
        >>> bool(fit.found), round(fit.threshold.item(), 2), [round(mean, 2) for mean in fit.means.tolist()]
        (True, 0.5, [0.2, 0.8])
    """
    _check(values, keep, ignore_up_to, iterations, bins)
    check_choice("start", start, ("split", "wide"))
    scores = float32_or_wider(values)
    return two_components(scores, _taking_part(scores, keep, ignore_up_to), start, iterations, tolerance, bins)


def two_components(
    scores: torch.Tensor,
    taken: torch.Tensor,
    start: str = "split",
    iterations: int = STEPS,
    tolerance: float | None = None,
    bins: int | None = BINS,
) -> MixtureFit:
    """Do what :func:`mixture_threshold` does, of the scores (N,) that are ``taken`` (N,), all arguments trusted."""
    counted = _counted(scores, taken, bins or BINS)
    begin = _split(counted) if start == "split" else _wide(scores, taken, 2)
    points = counted if bins else _as_points(scores, taken)
    added = _ADDED_VARIANCE if start == "wide" else None
    mixture, steps = _fit(points, begin, iterations, tolerance, added)
    order = mixture.means.flatten().argsort()
    mixture = _Mixture(*(part.flatten()[order] for part in mixture))
    crossing, crosses = _crossing(mixture)
    found = (
        crosses
        & (points.number >= FEWEST_VALUES)
        & (mixture.weights.amin() >= SMALLEST_WEIGHT)
        & (mixture.means[1] - mixture.means[0] >= NEAREST_MEANS)
    )
    return MixtureFit(crossing.where(crosses, 0.5), found, *mixture, steps, points.number)


@torch.no_grad()
def assigned_thresholds(
    values: torch.Tensor,
    *,
    components: int = 3,
    keep: torch.Tensor | None = None,
    ignore_up_to: float = _IGNORED_SCORES,
    iterations: int = STEPS,
    tolerance: float | None = 1e-3,
    bins: int | None = BINS,
) -> AssignedThresholds:
    """Fit Gaussians as the authors' code of CoSA does, assign each score to one, and give the limits of two of them.

    The fit begins with equal weights, variances of 1, and the lowest, the median (of three components) and the highest
    score as means. The components keep this order.

    Args:
        values: (N,) scores in [0, 1]; NaN takes no part.
        components: 2 or 3.
        keep: as of :func:`mixture_threshold`, and the next four too.
        ignore_up_to: scores up to this one take no part.
        iterations: the greatest number of steps.
        tolerance: the authors' 1e-3.
        bins: None: as exact as theirs.

    Returns:
        :class:`AssignedThresholds`.

    Raises:
        ValueError: another shape, or a number out of its range.

    Example:
        >>> scores = torch.cat([torch.linspace(low, low + 0.1, 100) for low in (0.1, 0.4, 0.8)])
        >>> low, high, found = assigned_thresholds(scores, tolerance=None)
        >>> round(low.item(), 2), round(high.item(), 2), bool(found)
        (0.2, 0.8, True)
    """
    _check(values, keep, ignore_up_to, iterations, bins)
    if components not in (2, 3):
        raise ValueError(f"Expected `components` 2 or 3, got {components}.")
    scores = float32_or_wider(values)
    return assigned(scores, _taking_part(scores, keep, ignore_up_to), components, iterations, tolerance, bins)


def assigned(
    scores: torch.Tensor,
    taken: torch.Tensor,
    components: int = 3,
    iterations: int = STEPS,
    tolerance: float | None = 1e-3,
    bins: int | None = BINS,
) -> AssignedThresholds:
    """Do what :func:`assigned_thresholds` does, of the scores (N,) that are ``taken`` (N,), all arguments trusted."""
    points = _counted(scores, taken, bins) if bins else _as_points(scores, taken)
    mixture, _ = _fit(points, _wide(scores, taken, components), iterations, tolerance, _ADDED_VARIANCE)
    of_component = _log_densities(scores.double(), mixture).argmax(dim=0)
    lowest, highest = taken & (of_component == 0), taken & (of_component == components - 1)
    low = scores.masked_fill(~lowest, -torch.inf).amax()
    high = scores.masked_fill(~highest, torch.inf).amin()
    found = (points.number >= FEWEST_VALUES) & low.isfinite() & high.isfinite()
    return AssignedThresholds(low.where(found, 0.5), high.where(found, 0.5), found)


def mixture_levels(maps: torch.Tensor) -> torch.Tensor:
    """Give the raw response (B, K) at which each map (B, K, *S) is cut: the mixture threshold of its scores alone.

    Scores are those of the rule ``minmax``. Where they do not show two populations, the response is that of 0.5.
    """
    scores = normalize_maps(maps, "minmax").flatten(2)
    fits = [two_components(one, one > _IGNORED_SCORES) for one in scores.flatten(0, 1)]
    cut = torch.stack([fit.threshold.where(fit.found, 0.5) for fit in fits]).reshape(scores.shape[:2]).to(scores)
    positive = scores.new_zeros(()).maximum(maps.flatten(2))
    return torch.lerp(positive.amin(dim=2), positive.amax(dim=2), cut)


def _check(
    values: torch.Tensor, keep: torch.Tensor | None, ignore_up_to: float, iterations: int, bins: int | None
) -> None:
    check_shape("values", values, "(N)")
    if not values.is_floating_point() or len(values) == 0:
        raise ValueError(
            f"Expected floating-point `values`, one or more, got {values.dtype} of shape {tuple(values.shape)}."
        )
    if keep is not None and (keep.dtype != torch.bool or keep.shape != values.shape):
        raise ValueError(f"Expected bool `keep` of shape {tuple(values.shape)}, got {keep.dtype} {tuple(keep.shape)}.")
    if not 0.0 <= ignore_up_to < 1.0:
        raise ValueError(f"Expected `ignore_up_to` in [0, 1), got {ignore_up_to}.")
    if iterations < 1 or (bins is not None and bins < 2):
        raise ValueError(f"Expected `iterations` >= 1 and `bins` >= 2 or None, got {iterations} and {bins}.")


def _taking_part(scores: torch.Tensor, keep: torch.Tensor | None, ignore_up_to: float) -> torch.Tensor:
    taken = scores > ignore_up_to  # false for NaN
    return taken if keep is None else taken & keep


def _counted(scores: torch.Tensor, taken: torch.Tensor, bins: int) -> _Points:
    """Count scores in equal bins of [0, 1]; each bin's place is its middle."""
    last = torch.full_like(scores, bins)  # what takes no part is counted beyond the last bin
    index = (scores * bins).clamp(0, bins - 1).where(taken, last).long()
    counts = torch.zeros(bins + 1, dtype=torch.float64, device=scores.device)
    counts = counts.index_add_(0, index, torch.ones_like(scores, dtype=torch.float64))[:bins]
    places = (torch.arange(bins, dtype=torch.float64, device=scores.device) + 0.5) / bins
    count = counts.sum()
    return _Points(places, counts / count.clamp_min(1), count)


def _as_points(scores: torch.Tensor, taken: torch.Tensor) -> _Points:
    count = taken.sum(dtype=torch.float64)
    places = scores.masked_fill(~taken, 0).double()  # NaN times a share of 0 would be NaN
    return _Points(places, taken / count.clamp_min(1), count)


def _powers(places: torch.Tensor) -> torch.Tensor:
    """Give 1, x and x^2 of places x: (N, 3)."""
    return torch.stack((torch.ones_like(places), places, places.square()), dim=1)


def _of_moments(moments: torch.Tensor, added: float | None) -> _Mixture:
    """Give weights, means and variances of the sums (C, 3) of shares, shares times x, and shares times x^2."""
    weights, first, second = moments.clamp_min(_LEAST).split(1, dim=1)
    means = first / weights
    variances = torch.addcmul(second / weights, means, means, value=-1)
    variances = variances.clamp_min(SMALLEST_VARIANCE) if added is None else variances.clamp_min(0) + added
    return _Mixture(weights, means, variances)


def _split(points: _Points) -> _Mixture:
    """Part the counts at Otsu's threshold, the exact 2-means of one dimension."""
    below = (points.shares[:, None] * _powers(points.places)).cumsum(dim=0)
    weight, mean = below[:-1, 0], below[:-1, 1]
    between = (mean - weight * below[-1, 1]).square() / (weight * (1 - weight)).clamp_min(_LEAST)
    lower = below.index_select(0, between.argmax().reshape(1))
    return _of_moments(torch.cat((lower, below[-1:] - lower)), None)


def _wide(scores: torch.Tensor, taken: torch.Tensor, components: int) -> _Mixture:
    """Begin as the authors do: lowest, median (of three) and highest score, variances of 1."""
    means = [scores.masked_fill(~taken, torch.inf).amin(), scores.masked_fill(~taken, -torch.inf).amax()]
    if components == 3:
        middle = scores.masked_fill(~taken, torch.nan)
        means.insert(1, (middle.nanmedian() - (-middle).nanmedian()) / 2)  # each gives the lower of two middle values
    center = torch.stack(means).double().nan_to_num(0.0, 1.0, 0.0)[:, None]
    return _Mixture(torch.full_like(center, 1 / components), center, torch.ones_like(center))


def _log_densities(places: torch.Tensor, mixture: _Mixture) -> torch.Tensor:
    """Give log(pi N(x; mu, var)), but for a constant: (C, N)."""
    heights = mixture.weights.log() - 0.5 * mixture.variances.log()
    return torch.addcmul(heights, (places - mixture.means).square_(), mixture.variances.reciprocal(), value=-0.5)


def _fit(
    points: _Points, mixture: _Mixture, iterations: int, tolerance: float | None, added: float | None
) -> tuple[_Mixture, torch.Tensor]:
    """Take steps of expectation and maximization; give the mixture and the number of steps that changed it."""
    powers = _powers(points.places)
    going = torch.ones_like(points.number, dtype=torch.bool)
    steps, before = torch.zeros_like(points.number), torch.full_like(points.number, -torch.inf)
    for _ in range(iterations):
        densities = _log_densities(points.places, mixture)
        updated = _of_moments((densities.softmax(dim=0) * points.shares) @ powers, added)
        if tolerance is None:
            mixture = updated
            continue
        mixture = _Mixture(*(torch.where(going, new, old) for new, old in zip(updated, mixture, strict=True)))
        steps = steps + going
        now = points.shares @ densities.logsumexp(dim=0)
        going, before = going & ((now - before).abs() >= tolerance), now
    return mixture, steps if tolerance is not None else steps + iterations


def _crossing(mixture: _Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Give where the higher of two components, rows (2,), begins to be denser than the other, and if between the means.

    Their logarithms differ by a t^2 + b t + c at the distance t from the lower mean, with b > 0. Of its roots the one
    where it grows is -2 c / (b + sqrt(b^2 - 4 a c)). It lies between the means where c < 0 and the difference at the
    higher mean is positive.
    """
    (low_variance, high_variance), apart = mixture.variances, mixture.means[1] - mixture.means[0]
    low_height, high_height = mixture.weights.log() - 0.5 * mixture.variances.log()
    a = 0.5 / low_variance - 0.5 / high_variance
    b = apart / high_variance
    at_low = high_height - low_height - 0.5 * apart.square() / high_variance
    at_high = high_height - low_height + 0.5 * apart.square() / low_variance
    root = (b.square() - 4 * a * at_low).clamp_min(0).sqrt()
    return mixture.means[0] - 2 * at_low / (b + root).clamp_min(_LEAST), (at_low < 0) & (at_high > 0)
