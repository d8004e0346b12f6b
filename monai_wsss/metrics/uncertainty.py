# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Whether a map of uncertainty is high where the mask is wrong: the error-uncertainty AUROC.

It is the probability that a wrong pixel is more uncertain than a right one: 1 where every error is more uncertain than
all that is right, 0.5 where uncertainty knows nothing of errors.  It says nothing of how many errors there are: a bad
mask may have a good map.

| number    | pixels that are compared                                                                          |
|-----------|---------------------------------------------------------------------------------------------------|
| by case   | wrong and right ones of the same image, averaged over the images of a subject, then over subjects |
| pooled    | wrong and right ones of all images together: also whether uncertain images are the wrong ones     |

An image without a wrong pixel, or without a right one, ranks nothing.  It is left out of the mean over the cases, and
counted; pooled, its pixels take part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy

from monai_wsss._labels import IGNORED
from monai_wsss.metrics.bootstrap import Estimate, bootstrap_interval, bootstrap_weights, subject_mean_estimate
from monai_wsss.metrics.cam_quality import pixel_auroc

__all__ = ["ErrorRanking", "error_auroc"]

_BINS = 4096
"""Steps of the fourth root of an uncertainty, in which pixels are pooled: fine near 0, where most of them are."""
_BLOCK = 64

Array = torch.Tensor | np.ndarray


def error_auroc(uncertainty: Array, prediction: Array, reference: Array) -> float | None:
    """Give the probability that a wrong pixel of an image is more uncertain than a right one; ties count one half.

    Args:
        uncertainty: ``(*S)``, any finite scale.
        prediction: labels 0..K, ``(*S)``.
        reference: labels 0..K, ``(*S)``; pixels of 255 are left out.

    Returns:
        The area under the ROC curve, in [0, 1]; None where no pixel is wrong, or none right.

    Raises:
        ValueError: shapes differ, or an uncertainty is not finite.

    Example:
        >>> error_auroc(np.array([0.9, 0.1, 0.4]), np.array([1, 1, 0]), np.array([0, 1, 0]))
        1.0
        >>> error_auroc(np.array([0.9, 0.1]), np.array([1, 0]), np.array([1, 0])) is None
        True
    """
    return pixel_auroc(*_known(uncertainty, prediction, reference))


class ErrorRanking:
    """Error-uncertainty AUROC over the cases of a set, by case and pooled, with intervals by subject.

    Pixels are pooled as counts in 4096 steps of uncertainty, so no map is kept.

    Attributes:
        without_error: cases in which no pixel is wrong.
        without_right: cases in which no pixel is right.

    Example:
        >>> ranking = ErrorRanking()
        >>> ranking.add("a", np.array([0.9, 0.1, 0.4]), np.array([1, 1, 0]), np.array([0, 1, 0]))
        1.0
        >>> ranking.add("b", np.array([0.2, 0.3]), np.array([1, 0]), np.array([1, 0])) is None
        True
        >>> ranking.summary("error_auroc")["error_auroc"]["mean"], ranking.without_error
        (1.0, 1)
    """

    def __init__(self) -> None:
        self.without_error = 0
        self.without_right = 0
        self._cases: dict[str, list[float]] = {}
        self._pixels: dict[str, np.ndarray] = {}

    def add(self, subject: str, uncertainty: Array, prediction: Array, reference: Array) -> float | None:
        """Take in one case, and give its own AUROC.

        Args:
            subject: the patient.
            uncertainty: ``(*S)`` in [0, 1].
            prediction: labels 0..K, ``(*S)``.
            reference: labels 0..K, ``(*S)``; pixels of 255 are left out.

        Returns:
            As :func:`error_auroc`; None for a case that is left out, and counted.

        Raises:
            ValueError: shapes differ, or an uncertainty is not in [0, 1].
        """
        values, wrong = _known(uncertainty, prediction, reference)
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError("Expected `uncertainty` in [0, 1]: divide it by the highest value that it can have.")
        steps = np.minimum((np.sqrt(np.sqrt(values)) * _BINS).astype(np.int64), _BINS - 1)
        counts = np.stack([np.bincount(steps[part], minlength=_BINS) for part in (wrong, ~wrong)])
        own = self._cases.setdefault(subject, [])
        self._pixels[subject] = self._pixels.get(subject, 0) + counts
        area = pixel_auroc(values, wrong)
        if area is not None:
            own.append(area)
        else:
            self.without_error += int(not wrong.any())
            self.without_right += int(bool(wrong.any()))
        return area

    def summary(self, name: str, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Give both numbers, with intervals; what nothing defines is missing.

        Args:
            name: of the number by case; the pooled one ends with ``_pooled``.
            bootstrap: how many times the subjects are resampled.
            seed: seed of the resampling.

        Returns:
            Name to ``{"mean", "ci95", "n"}``, n being the subjects that enter; the number by case also has
            ``"without_error"`` and ``"without_right"``, the cases that were left out.
        """
        subjects = sorted(self._cases)
        if not subjects:
            return {}
        means = np.array([np.mean(self._cases[one]) if self._cases[one] else np.nan for one in subjects])
        counts = np.stack([self._pixels[one] for one in subjects]).astype(np.float64)
        estimates = {name: subject_mean_estimate(means), f"{name}_pooled": _pooled(counts)}
        weights = bootstrap_weights(len(subjects), samples=bootstrap, seed=seed)
        found: dict[str, dict[str, Any]] = {}
        for key, estimate in estimates.items():
            interval = bootstrap_interval(estimate, weights)
            if interval is not None:
                ends = [interval.low, interval.high]
                found[key] = {"mean": interval.mean, "ci95": ends, "n": int(estimate.members.sum())}
        if name in found:
            found[name] |= {"without_error": self.without_error, "without_right": self.without_right}
        return found


def _pooled(counts: np.ndarray) -> Estimate:
    """Rank the pixels of the drawn subjects together, by counts (S, 2, bins) of wrong and right ones."""

    def function(weights: np.ndarray) -> np.ndarray:
        areas = []
        for start in range(0, len(weights), _BLOCK):
            wrong, right = np.moveaxis(np.tensordot(weights[start : start + _BLOCK], counts, axes=1), 1, 0)
            below = np.cumsum(right, axis=1) - right / 2
            pairs = wrong.sum(axis=1) * right.sum(axis=1)
            above = (wrong * below).sum(axis=1)
            areas.append(np.divide(above, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
        return np.concatenate(areas)

    return Estimate(function, np.asarray(counts.any(axis=(1, 2))))


def _known(uncertainty: Array, prediction: Array, reference: Array) -> tuple[np.ndarray, np.ndarray]:
    """Give the uncertainty (P,) of the pixels whose truth is known, and whether they are wrong."""
    values, found, wanted = (convert_to_numpy(one) for one in (uncertainty, prediction, reference))
    if not values.shape == found.shape == wanted.shape:
        raise ValueError(
            f"Expected `uncertainty`, `prediction` and `reference` of one shape, got {values.shape}, {found.shape} and "
            f"{wanted.shape}."
        )
    known = wanted != IGNORED
    return values[known], found[known] != wanted[known]
