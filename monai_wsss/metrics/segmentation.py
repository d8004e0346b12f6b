# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Overlap of masks: pixels are counted once per class, and every overlap metric is a formula on the counts.

Counts add up over the slices of a subject, over a test set and over a bootstrap sample.  A *pooled* metric is the
formula on summed counts; a *per-subject* metric is the formula on the counts of that subject.  Nothing else differs.

The rule for empty references is stated here only (:data:`EMPTY_RULE`).  It holds for a case.  Over a whole set, a class
has no overlap if no reference holds a pixel of it (:func:`where_referenced`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.utils import convert_to_numpy

from monai_wsss._labels import IGNORED

__all__ = [
    "EMPTY_RULE",
    "PixelCounts",
    "accuracy",
    "class_miou_pooled",
    "count_pixels",
    "dice_macro_pooled",
    "dice_score",
    "f1_from_miou",
    "f1_score",
    "iou_score",
    "miou_pooled",
    "r_over",
    "r_under",
    "sensitivity",
    "specificity",
    "where_referenced",
]

EMPTY_RULE = "Empty reference and empty prediction score 1; empty reference with a prediction scores 0."
"""The rule of Dice, IoU and F1 for a case whose reference has no pixel of the class."""


class PixelCounts(NamedTuple):
    """Confusion counts, one against the rest, for the background (index 0) and the K classes (1..K) on the last axis.

    Attributes:
        tp: predicted and in the reference, ``(..., K+1)``.
        fp: predicted, not in the reference.
        fn: in the reference, not predicted.
        tn: neither.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    @classmethod
    def sum_of(cls, counts: Iterable[PixelCounts]) -> PixelCounts:
        """Add up the counts of one or more cases, for pooled metrics.

        Example:
            >>> one = count_pixels(np.array([1, 0]), np.array([1, 1]))
            >>> PixelCounts.sum_of([one, one]).fn.tolist()
            [0, 2]
        """
        return cls(*(np.sum(part, axis=0) for part in zip(*counts, strict=True)))


def count_pixels(
    prediction: torch.Tensor | np.ndarray, reference: torch.Tensor | np.ndarray, *, num_classes: int = 1
) -> PixelCounts:
    """Count true and false positives and negatives of one case.

    Args:
        prediction: label map of any shape (2D or 3D, with or without a channel axis of size 1): bool, or 0..K.
        reference: label map of the same shape; pixels of value 255, which are ignored, enter no count.
        num_classes: K, the number of foreground classes.

    Returns:
        Counts as int64 arrays of shape ``(K+1,)``.

    Raises:
        ValueError: the shapes differ, or a value is not a label.

    Example:
        >>> counts = count_pixels(np.array([[1, 1, 0, 0]]), np.array([[0, 1, 1, 0]]))
        >>> [int(count[1]) for count in counts]
        [1, 1, 1, 1]
    """
    predicted, expected = _labels("prediction", prediction, num_classes), _labels("reference", reference, num_classes)
    if predicted.shape != expected.shape:
        raise ValueError(
            f"Expected `prediction` and `reference` of one shape, got {predicted.shape} and {expected.shape}: "
            "resample one of them to the other's grid."
        )
    valid = expected != IGNORED
    if not valid.all():
        predicted, expected = predicted[valid], expected[valid]
    rows = []
    for label in range(num_classes + 1):
        found, wanted = predicted == label, expected == label
        both, any_found, any_wanted = (int(np.count_nonzero(mask)) for mask in (found & wanted, found, wanted))
        rows.append((both, any_found - both, any_wanted - both, expected.size - any_found - any_wanted + both))
    return PixelCounts(*np.array(rows, dtype=np.int64).T)


def _labels(name: str, mask: torch.Tensor | np.ndarray, num_classes: int) -> np.ndarray:
    """Give a label map as uint8 on the CPU, with checked values."""
    array = convert_to_numpy(mask)
    if not array.size:
        return array.astype(np.uint8)
    low, high = array.min(), array.max()
    in_range = bool(low >= 0) and bool(high <= IGNORED)
    labels = array.astype(np.uint8) if in_range else np.zeros(array.shape, dtype=np.uint8)
    allowed = labels <= num_classes
    if name == "reference":
        allowed |= labels == IGNORED
    if not (in_range and allowed.all() and (labels == array).all()):
        raise ValueError(
            f"Expected `{name}` to hold the labels 0..{num_classes} only, got values from {low} to {high}."
        )
    return labels


def _ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float) -> np.ndarray:
    """Divide elementwise, with ``empty`` where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, empty), where=denominator > 0)


def dice_score(counts: PixelCounts) -> np.ndarray:
    """Compute Dice = 2 TP / (2 TP + FP + FN), in [0, 1], of the shape of the counts; 0/0 by :data:`EMPTY_RULE`.

    Example:
        >>> float(dice_score(count_pixels(np.array([1, 1, 0]), np.array([0, 1, 0])))[1])
        0.6666666666666666
    """
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, empty=1.0)


def iou_score(counts: PixelCounts) -> np.ndarray:
    """Compute intersection over union = TP / (TP + FP + FN), in [0, 1]; 0/0 by :data:`EMPTY_RULE`.

    Example:
        >>> float(iou_score(count_pixels(np.array([1, 1, 0]), np.array([0, 1, 0])))[1])
        0.5
    """
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn, empty=1.0)


def where_referenced(scores: np.ndarray, counts: PixelCounts) -> np.ndarray:
    """Keep scores of pooled counts where some reference holds a pixel of the class; give NaN elsewhere.

    A set of healthy images has no Dice: 1 or 0 would measure no overlap there.

    Example:
        >>> counts = count_pixels(np.array([0, 0]), np.array([0, 0]))
        >>> where_referenced(dice_score(counts), counts).tolist()
        [1.0, nan]
    """
    return np.where(counts.tp + counts.fn > 0, scores, np.nan)


def _known_mean(scores: np.ndarray) -> np.ndarray:
    """Average over the last axis, NaN left out; NaN where nothing else is there."""
    known = ~np.isnan(scores)
    return _ratio(np.where(known, scores, 0.0).sum(-1), known.sum(-1), empty=np.nan)


def _class_mean(scores: np.ndarray, counts: PixelCounts, background: bool) -> np.ndarray:
    """Average over the classes that some reference holds; NaN where the references hold nothing but background."""
    defined = where_referenced(scores, counts)
    means = _known_mean(defined[..., 0 if background else 1 :])
    return np.where(np.isnan(defined[..., 1:]).all(-1), np.nan, means)


def sensitivity(counts: PixelCounts) -> np.ndarray:
    """Compute TP / (TP + FN), in [0, 1]; NaN where the reference has no such pixel.

    Example:
        >>> float(sensitivity(count_pixels(np.array([1, 1, 0, 0]), np.array([1, 1, 1, 1])))[1])
        0.5
    """
    return _ratio(counts.tp, counts.tp + counts.fn, empty=np.nan)


def specificity(counts: PixelCounts) -> np.ndarray:
    """Compute TN / (TN + FP), in [0, 1]; NaN where the reference has nothing but that class.

    Example:
        >>> float(specificity(count_pixels(np.array([1, 0, 0, 0]), np.array([0, 0, 0, 0])))[1])
        0.75
    """
    return _ratio(counts.tn, counts.tn + counts.fp, empty=np.nan)


def accuracy(counts: PixelCounts) -> np.ndarray:
    """Compute (TP + TN) / all pixels, in [0, 1]; NaN where there is no pixel.

    Example:
        >>> float(accuracy(count_pixels(np.array([1, 0, 0, 0]), np.array([0, 0, 0, 0])))[1])
        0.75
    """
    right = counts.tp + counts.tn
    return _ratio(right, right + counts.fp + counts.fn, empty=np.nan)


def f1_score(counts: PixelCounts) -> np.ndarray:
    """Compute F1, the harmonic mean of precision and sensitivity of the pixels: the Dice of the same counts.

    Kept because papers print it under this name; the class-averaged F1 of the gland papers is
    :func:`dice_macro_pooled`, the one derived from mIoU :func:`f1_from_miou`.

    Example:
        >>> float(f1_score(count_pixels(np.array([1, 1, 0]), np.array([0, 1, 0])))[1])
        0.6666666666666666
    """
    return dice_score(counts)


def miou_pooled(counts: PixelCounts, *, background: bool = True) -> np.ndarray:
    """Average IoU over the classes on pooled counts: the number that the weak supervision literature prints.

    A class does not enter if no reference holds a pixel of it.

    Args:
        counts: counts summed over the whole set, ``(..., K+1)``.
        background: average over the background too; ``False`` where all K classes are real tissue.

    Returns:
        ``(...)``, in [0, 1]; NaN where no reference holds a pixel of the foreground.

    Example:
        >>> counts = count_pixels(np.array([1, 1, 0, 0]), np.array([0, 1, 0, 0]))
        >>> round(float(miou_pooled(counts)), 4)  # (1/2 + 2/3) / 2
        0.5833
    """
    return _class_mean(iou_score(counts), counts, background)


def class_miou_pooled(counts: PixelCounts, labels: Sequence[int]) -> np.ndarray:
    """Average IoU over some of the classes on pooled counts, such as those that come with an unlabeled context.

    The C-mIoU of CoSA (Yang et al., ECCV 2024) is this number over the classes that something unlabeled always
    accompanies (bird and branch, train and rails).  A class does not enter if no reference holds a pixel of it.

    Args:
        counts: counts summed over the whole set, ``(..., K+1)``.
        labels: the classes to average over, 1..K.

    Returns:
        ``(...)``, in [0, 1]; NaN where no reference holds a pixel of these classes.

    Raises:
        ValueError: no class is given.

    Example:
        >>> counts = count_pixels(np.array([1, 1, 2, 0]), np.array([1, 0, 2, 2]), num_classes=2)
        >>> float(class_miou_pooled(counts, [1])), float(miou_pooled(counts))
        (0.5, 0.3333333333333333)
    """
    if not len(labels):
        raise ValueError("Expected `labels` of at least one class, got none.")
    return _known_mean(where_referenced(iou_score(counts), counts)[..., list(labels)])


def dice_macro_pooled(counts: PixelCounts, *, background: bool = True) -> np.ndarray:
    """Average Dice over the classes on pooled counts, background included unless ``background`` is false.

    The tables of CoinGAN hold this number.  An empty mask scores nearly 1/2 by it when lesions are small, so read it
    beside the Dice of the foreground.  A class does not enter if no reference holds a pixel of it; the result is NaN if
    that is so for every foreground class.

    Example:
        >>> counts = count_pixels(np.zeros(100), np.arange(100) < 4)
        >>> round(float(dice_macro_pooled(counts)), 3)
        0.49
    """
    return _class_mean(dice_score(counts), counts, background)


def f1_from_miou(miou: np.ndarray | float) -> np.ndarray:
    """Compute F1 = 2 mIoU / (1 + mIoU): OEEM's script, and so the gland papers' tables, call this F1.

    Args:
        miou: in [0, 1], or NaN.

    Raises:
        ValueError: a value outside.

    Example:
        >>> round(float(f1_from_miou(0.8769)), 4)
        0.9344
    """
    values = np.asarray(miou)
    if ((values < 0) | (values > 1)).any():
        raise ValueError(f"Expected `miou` in [0, 1], got values from {values.min():g} to {values.max():g}.")
    return 2 * values / (1 + values)


def r_under(counts: PixelCounts) -> np.ndarray:
    """Compute under-segmentation FN / TP of total counts (CMER, Table V), from 0 up; NaN where TP = 0.

    Example:
        >>> float(r_under(count_pixels(np.array([1, 0, 0]), np.array([1, 1, 1])))[1])
        2.0
    """
    return _ratio(counts.fn, counts.tp, empty=np.nan)


def r_over(counts: PixelCounts) -> np.ndarray:
    """Compute over-segmentation FP / TP of total counts (CMER, Table V), from 0 up; NaN where TP = 0.

    Example:
        >>> float(r_over(count_pixels(np.array([1, 1, 1]), np.array([1, 0, 0])))[1])
        2.0
    """
    return _ratio(counts.fp, counts.tp, empty=np.nan)
