# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Confident pseudo-labels: the class of the largest score, where that score is large enough.

    Y^c = argmax S^c   where max S^c >= sigma_c        teaches the segmentation branch        Zhu et al. (BMP), Eq. 5
    Y^s = argmax S^s   where max S^s >= sigma_s        teaches the classification branch      Eq. 7

and ``ignore_index`` elsewhere.  (The paper prints >, the released code takes >=.)  Eq. 7 also leaves out Y^s = 0; here
a confident background stays 0, and the loss on Y^s reads it only on request.  The released code compares sigma_s with
logits (``score="logit"``) and keeps the classes that the image-level labels exclude (no ``label``); the paper takes
probabilities and removes those classes.

| symbol    | name                              | shape        |
|-----------|-----------------------------------|--------------|
| S^c       | `scores`                          | (B, K+1, *S) |
| S^s       | `logits`, ``score="prob"``: their softmax | (B, K+1, *S) |
| sigma     | `threshold`                       |              |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_ignore_index, check_label, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED

__all__ = ["confident_label", "confident_segmentation_label"]

_SCORES = ("prob", "logit")


def confident_label(
    scores: torch.Tensor, threshold: float = 0.75, *, valid: torch.Tensor | None = None, ignore_index: int = IGNORED
) -> torch.Tensor:
    """Make Y^c of Eq. 5: labels from the refined scores S^c of the classification branch.

    Args:
        scores: (B, K+1, *S), background first, e.g. in [0, 1]; channels of absent classes 0.
        threshold: sigma_c, on the scale of the scores; 0.75 in the paper, 0.5 in the released code.
        valid: bool (B, *S) or (B, 1, *S), False where the image is padding; None: all pixels are valid.
        ignore_index: given to pixels that are not confident or not valid.

    Returns:
        (B, *S) int64 without gradient: 0 background, 1..K, or ``ignore_index``; a score of NaN is not confident.

    Raises:
        ValueError: shapes that do not fit, or an ``ignore_index`` that is a class.

    Example:
        >>> scores = torch.tensor([[[[0.9, 0.2, 0.4]], [[0.1, 0.8, 0.6]]]])
        >>> confident_label(scores).tolist()
        [[[0, 1, 255]]]
    """
    check_shape("scores", scores, "(B, K+1, *S)")
    check_ignore_index(ignore_index, scores.shape[1] - 1)
    _check_valid(valid, scores)
    return where_confident(float32_or_wider(scores.detach()), threshold, valid, ignore_index)


def confident_segmentation_label(
    logits: torch.Tensor,
    label: torch.Tensor | None = None,
    *,
    threshold: float = 0.5,
    score: str = "prob",
    valid: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Make Y^s of Eq. 7: labels from the logits of the segmentation branch.

    Args:
        logits: (B, K+1, *S), background first.
        label: image-level labels (B, K): absent classes are removed before the softmax, so healthy images are
            background throughout; None: no class is removed.
        threshold: sigma_s; 0.5 in the paper, 0.75 in the released code.
        score: compare the largest probability with it (``"prob"``), or the largest logit (``"logit"``).
        valid: bool (B, *S) or (B, 1, *S), False where the image is padding; None: all pixels are valid.
        ignore_index: given to pixels that are not confident or not valid.

    Returns:
        (B, *S) int64 without gradient: 0 confident background, 1..K, or ``ignore_index``.

    Raises:
        ValueError: shapes that do not fit, an unknown option, or an ``ignore_index`` that is a class.

    Example:
        >>> logits = torch.tensor([[[[3.0, -2.0, -2.0]], [[0.0, 2.0, 0.0]], [[0.0, 1.0, 2.0]]]])
        >>> confident_segmentation_label(logits, torch.tensor([[1, 0]]), threshold=0.9).tolist()
        [[[0, 1, 255]]]
    """
    check_shape("logits", logits, "(B, K+1, *S)")
    check_choice("score", score, _SCORES)
    check_ignore_index(ignore_index, logits.shape[1] - 1)
    if label is not None:
        check_label(label, logits.shape[0], logits.shape[1] - 1)
    _check_valid(valid, logits)
    return segmentation_label(logits, label, threshold, score, valid, ignore_index)


def segmentation_label(
    logits: torch.Tensor,
    label: torch.Tensor | None,
    threshold: float,
    score: str,
    valid: torch.Tensor | None,
    ignore_index: int,
) -> torch.Tensor:
    """Compute :func:`confident_segmentation_label` of arguments that are known to fit."""
    scores = float32_or_wider(logits.detach())
    if label is not None:
        absent = F.pad(label == 0, (1, 0)).to(scores.device)
        scores = scores.masked_fill(absent.reshape(*absent.shape, *[1] * (scores.ndim - 2)), float("-inf"))
    return where_confident(scores.softmax(1) if score == "prob" else scores, threshold, valid, ignore_index)


def where_confident(
    scores: torch.Tensor, threshold: float, valid: torch.Tensor | None, ignore_index: int
) -> torch.Tensor:
    """Label pixels by their largest score where it reaches the threshold; arguments are known to fit."""
    largest, chosen = scores.max(1)
    confident = largest >= threshold
    if valid is not None:
        confident &= valid.reshape(chosen.shape).bool()
    return chosen.masked_fill_(~confident, ignore_index)


def _check_valid(valid: torch.Tensor | None, scores: torch.Tensor) -> None:
    expected = (len(scores), *scores.shape[2:])
    if valid is not None and valid.shape not in (expected, (expected[0], 1, *expected[1:])):
        raise ValueError(f"Expected `valid` of shape (B, *S) = {expected} or (B, 1, *S), got {tuple(valid.shape)}.")
