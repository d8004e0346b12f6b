# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cut of a :class:`~monai_wsss.refinement.MaskRule`: where score maps become foreground, and its probabilities.

A CRF needs a probability of each class and of the background. With d in [-1, 1], -1 at the lowest response of an image,
0 at the cut, 1 at the peak, linear between them:

    p_k = (1 + d_k) / 2,   p_0 = 1 - max_k p_k,      so that p_k > p_0 exactly where the rule finds foreground

AFA and CoSA put a constant background beside class maps in [0, 1]. With a constant of 1/2, a class could be at most
twice as likely as the background, while the background could be up to 50 000 times as likely as a class. Here both have
the same range.
"""

from __future__ import annotations

import math

import torch

__all__ = ["cut_of", "cut_score_maps", "probabilities_of", "score_maps_of", "signed_share"]

SHARE_OF_PEAK = ("minmax", "max", "negative_reference")
RAW = ("logit", "negative_quantile", "otsu", "mixture", "fixed", "percentile")


def cut_score_maps(shares: torch.Tensor, rule: str, threshold: float | None = None) -> torch.Tensor:
    """Cut score maps that a :class:`MaskRule` gave by the same rule: the second half of it.

    Args:
        shares: (B, K, *S) in [0, 1].
        rule: any but argmax, by name.
        threshold: as of :class:`MaskRule`.

    Returns:
        uint8 mask (B, 1, *S), 0..K.

    Raises:
        ValueError: a threshold out of range, or one for a rule that takes none.

    Example:
        >>> cut_score_maps(torch.tensor([[[[0.2, 0.6]]]]), "minmax").tolist()
        [[[[0, 1]]]]
    """
    cut = cut_of(rule, threshold)
    if shares.shape[1] == 1:  # the same, without the search for the winner
        return (shares > cut).to(torch.uint8)
    highest, winner = shares.max(dim=1, keepdim=True)
    return torch.where(highest > cut, winner + 1, 0).to(torch.uint8)


def cut_of(rule: str, threshold: float | None) -> float:
    """Tell where the scores in [0, 1] are cut; raise if ``threshold`` does not fit the rule."""
    if rule in SHARE_OF_PEAK:
        cut = 0.5 if threshold is None else threshold
        if not 0.0 <= cut <= 1.0:
            raise ValueError(f"Expected `threshold` in [0, 1] for rule {rule!r}, got {cut}.")
        return cut
    if rule == "percentile":
        if threshold is None or not 0.0 <= threshold < 100.0:
            raise ValueError(
                f"Rule 'percentile' needs a `threshold` in [0, 100), the share of pixels in percent that lie below the "
                f"cut, got {threshold}."
            )
        return 0.0
    if rule != "fixed" and threshold is not None:
        raise ValueError(f"Rule {rule!r} takes no `threshold`, got {threshold}: use 'fixed' for a raw response.")
    if rule == "fixed" and (threshold is None or not math.isfinite(threshold)):
        raise ValueError(f"Rule 'fixed' needs a finite `threshold`, the raw response to cut at, got {threshold}.")
    return 0.0


def signed_share(responses: torch.Tensor, cut: float) -> torch.Tensor:
    """Compute d: shares in [0, 1] around a cut above 0, or margins around 0 as shares of the peak and of the lowest.

    Args:
        responses: (B, K, *S); margins may be -inf, which gives -1.
        cut: as of :func:`cut_of`.
    """
    if cut > 0:
        return torch.where(responses > cut, (responses - cut) / max(1 - cut, 1e-6), (responses - cut) / cut)
    axes = tuple(range(1, responses.ndim))
    peak = responses.amax(dim=axes, keepdim=True)
    lowest = responses.nan_to_num(neginf=0.0).amin(dim=axes, keepdim=True)
    one = torch.ones_like(peak)
    scale = torch.where(responses > 0, torch.where(peak > 0, peak, one), torch.where(lowest < 0, lowest.neg(), one))
    return (responses / scale).clamp(-1.0, 1.0)


def probabilities_of(signed: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Give (B, K+1, *S), background first, of d (B, K, *S) and the classes that may appear (1 or B, 1 or K, 1, ...)."""
    classes = (1 + signed) / 2 * allowed
    return torch.cat((1 - classes.amax(dim=1, keepdim=True), classes), dim=1)


def score_maps_of(probabilities: torch.Tensor, cut: float) -> torch.Tensor:
    """Give score maps (B, K, *S), cut at ``cut``, of (B, K+1, *S), so that p_k > p_0 is above it: the way back."""
    background, classes = probabilities[:, :1], probabilities[:, 1:]
    total = classes + background
    signed = 2 * classes / torch.where(total > 0, total, torch.ones_like(total)) - 1
    return torch.where(signed > 0, cut + (1 - cut) * signed, cut * (1 + signed).clamp_min(0))


def of_pixels(values: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Give values of images and channels the dimensions of maps."""
    return values.reshape(*values.shape, *[1] * (maps.ndim - values.ndim))
