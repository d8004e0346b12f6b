# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The metrics of a case table, and notes on what they cover.

Rows become sums over subjects; every metric becomes an :class:`~monai_wsss.metrics.bootstrap.Estimate` on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from monai_wsss.metrics import segmentation
from monai_wsss.metrics.bootstrap import (
    Estimate,
    mean_of_estimates,
    pooled_estimate,
    presence_estimate,
    subject_mean_estimate,
    sum_ratio_estimate,
)
from monai_wsss.metrics.cam_quality import SWEEP_THRESHOLDS, oracle_threshold, sweep_dice
from monai_wsss.metrics.segmentation import EMPTY_RULE, PixelCounts, where_referenced
from monai_wsss.metrics.surface import SurfaceDistances

__all__ = ["CaseArrays", "ClassScheme", "coverage_notes", "metric_estimates", "sweep_content"]

_POOLED: dict[str, Callable[[PixelCounts], np.ndarray]] = {
    "dice_pooled": lambda counts: where_referenced(segmentation.dice_score(counts), counts),
    "iou_pooled": lambda counts: where_referenced(segmentation.iou_score(counts), counts),
    "f1": lambda counts: where_referenced(segmentation.f1_score(counts), counts),
    "accuracy": segmentation.accuracy,
    "sensitivity": segmentation.sensitivity,
    "specificity": segmentation.specificity,
    "r_under": segmentation.r_under,
    "r_over": segmentation.r_over,
}


@dataclass(frozen=True)
class ClassScheme:
    """The classes of a dataset, and the names of their columns.

    The fields are the arguments of :class:`~monai_wsss.metrics.CaseTable`.

    Raises:
        ValueError: class names that are not unique, a ``scored_class`` that is missing or unknown, or an unknown class
            in ``context``.
    """

    classes: tuple[str, ...]
    background: bool = True
    scored_class: str | None = None
    context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes or len({*self.classes, "background"}) != len(self.classes) + 1:
            raise ValueError(f"Expected `classes` to be unique and none called background, got {list(self.classes)}.")
        known = self.scored_class in self.classes
        if known == self.background or (self.background and self.scored_class is not None):
            raise ValueError(
                "Expected `scored_class` to be one of the classes where `background` is false, and None otherwise, "
                f"got {self.scored_class!r} with background={self.background}."
            )
        if not set(self.context) <= set(self.classes):
            raise ValueError(f"Expected `context` to name classes, got {', '.join(self.context)}.")

    @property
    def labels(self) -> range:
        """Give the labels 1..K of the classes."""
        return range(1, len(self.classes) + 1)

    def key(self, name: str, label: int) -> str:
        """Give ``name`` where there is one class, ``name/class`` where there are several; label 0 is the background.

        Example:
            >>> ClassScheme(("core", "edema")).key("tp", 2)
            'tp/edema'
        """
        return name if len(self.classes) == 1 else f"{name}/{('background', *self.classes)[label]}"


class CaseArrays:
    """Rows as arrays over the N cases, and sums over the S subjects (sorted by name, whatever the rows' order).

    Args:
        rows: at least one row of a case table.
        scheme: its classes.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], scheme: ClassScheme) -> None:
        self.rows = rows
        self.scheme = scheme
        self.subjects = sorted({row["subject"] for row in rows})
        position = {name: index for index, name in enumerate(self.subjects)}
        self.subject = np.array([position[row["subject"]] for row in rows])

    def column(self, name: str, label: int | None = None) -> np.ndarray:
        """Give one value per case, ``(N,)``, NaN where the row has none."""
        key = name if label is None else self.scheme.key(name, label)
        return np.array([row.get(key, np.nan) for row in self.rows], dtype=np.float64)

    def subject_sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over the cases of each subject, ``(N, ...)`` to ``(S, ...)``; NaN counts as 0."""
        sums = np.zeros((len(self.subjects), *values.shape[1:]))
        np.add.at(sums, self.subject, np.nan_to_num(values))
        return sums

    def subject_mean(self, values: np.ndarray) -> np.ndarray:
        """Average over the cases of each subject that have a value, ``(N,)`` to ``(S,)``, NaN where none has."""
        total, number = self.subject_sum(values), self.subject_sum(~np.isnan(values))
        return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)

    @cached_property
    def counts(self) -> np.ndarray:
        """Sum pixel counts per subject, ``(S, 4, K+1)``, zeros where no pixel truth is known."""
        if len(self.scheme.classes) == 1:  # The background's tp, fp, fn, tn are the class's tn, fn, fp, tp.
            of_class = np.stack([self.column(name, 1) for name in PixelCounts._fields], axis=1)
            return self.subject_sum(np.stack([of_class[:, ::-1], of_class], axis=2))
        labels = (0, *self.scheme.labels)
        columns = [np.stack([self.column(name, k) for k in labels], axis=1) for name in PixelCounts._fields]
        return self.subject_sum(np.stack(columns, axis=1))

    @cached_property
    def swept(self) -> np.ndarray:
        """Mark the cases that have a threshold sweep, bool ``(N,)``."""
        return np.array(["sweep" in row for row in self.rows])

    @cached_property
    def sweep(self) -> tuple[np.ndarray, np.ndarray]:
        """Give Dice at each threshold: per subject ``(S, K, T)``, NaN without the class, and pooled ``(K, T)``."""
        sums = np.zeros((len(self.subjects), len(self.scheme.classes), 2, len(SWEEP_THRESHOLDS)))
        for index in np.flatnonzero(self.swept).tolist():
            sums[self.subject[index]] += self.rows[index]["sweep"]
        wanted = [self.column("tp", k) + self.column("fn", k) for k in self.scheme.labels]
        pixels = np.stack([self.subject_sum(np.where(self.swept, values, 0)) for values in wanted], axis=1)
        of_subject = np.where(pixels[..., None] > 0, sweep_dice(sums[:, :, 0], sums[:, :, 1], pixels), np.nan)
        pooled = sums.sum(0)
        return of_subject, sweep_dice(pooled[:, 0], pooled[:, 1], pixels.sum(0))


def metric_estimates(arrays: CaseArrays) -> dict[str, Estimate]:
    """Give every metric by its name: the plain name, then ``name/class`` where there are several classes.

    Of the background there is ``iou_pooled/background`` alone, as papers print it beside the classes.
    """
    scheme = arrays.scheme
    by_class = [_class_estimates(arrays, k) for k in scheme.labels]
    estimates: dict[str, Estimate] = {}
    for name in by_class[0]:
        group = {label: of_class[name] for label, of_class in zip(scheme.classes, by_class, strict=True)}
        estimates[name] = group[scheme.scored_class] if scheme.scored_class else mean_of_estimates([*group.values()])
        if len(group) > 1:
            estimates |= {f"{name}/{label}": estimate for label, estimate in group.items()}
    miou = partial(segmentation.miou_pooled, background=scheme.background)
    macro = partial(segmentation.dice_macro_pooled, background=scheme.background)
    if scheme.background and len(scheme.classes) > 1:
        estimates["iou_pooled/background"] = pooled_estimate(arrays.counts, _of_class(_POOLED["iou_pooled"], 0))
    if scheme.context:
        numbers = [label for label in scheme.labels if scheme.classes[label - 1] in scheme.context]
        of_context = partial(segmentation.class_miou_pooled, labels=numbers)
        estimates["context_miou_pooled"] = pooled_estimate(arrays.counts, of_context)
    healthy = arrays.column("healthy")
    clean = arrays.subject_sum(healthy * (1 - arrays.column("found")))
    return estimates | {
        "miou_pooled": pooled_estimate(arrays.counts, miou),
        "dice_macro_pooled": pooled_estimate(arrays.counts, macro),
        "f1_from_miou": pooled_estimate(arrays.counts, lambda counts: segmentation.f1_from_miou(miou(counts))),
        "healthy_clean": sum_ratio_estimate(clean, arrays.subject_sum(healthy)),
    }


def _class_estimates(arrays: CaseArrays, label: int) -> dict[str, Estimate]:
    """Give the metrics of one class under their plain names."""
    of_class = PixelCounts(*np.moveaxis(arrays.counts[..., label], 1, 0))
    dice = where_referenced(segmentation.dice_score(of_class), of_class)
    estimates = {"dice_subject": subject_mean_estimate(dice)}
    estimates |= {name: pooled_estimate(arrays.counts, _of_class(metric, label)) for name, metric in _POOLED.items()}
    units = np.array([row["unit"] for row in arrays.rows])
    for unit in sorted({row["unit"] for row in arrays.rows if row["truth"] != "unknown"}):
        for name in SurfaceDistances._fields:
            values = np.where(units == unit, arrays.column(name, label), np.nan)
            estimates[f"{name}_{unit}"] = subject_mean_estimate(arrays.subject_mean(values))
    scores, labels = arrays.column("presence", label), arrays.column("label", label)
    scored = ~np.isnan(scores)
    estimates["presence_auroc"] = presence_estimate(
        scores[scored], labels[scored], arrays.subject[scored], num_subjects=len(arrays.subjects)
    )
    areas = arrays.column("pixel_auroc", label)
    if arrays.swept.any() or not np.isnan(areas).all():
        estimates["pixel_auroc"] = subject_mean_estimate(arrays.subject_mean(areas))
    if arrays.swept.any():
        estimates["oracle_dice_subject"] = subject_mean_estimate(_dice_at_oracle(arrays, label))
    return estimates


def _of_class(metric: Callable[[PixelCounts], np.ndarray], label: int) -> Callable[[PixelCounts], np.ndarray]:
    return lambda counts: metric(counts)[..., label]


def _mean_curve(of_subject: np.ndarray) -> np.ndarray | None:
    """Average over the subjects with the class, ``(S, T)`` to ``(T,)``; None where there is none."""
    present = ~np.isnan(of_subject[:, 0])
    return of_subject[present].mean(0) if present.any() else None


def _dice_at_oracle(arrays: CaseArrays, label: int) -> np.ndarray:
    """Give the Dice of each subject, ``(S,)``, at the one threshold that is best for their mean."""
    of_subject = arrays.sweep[0][:, label - 1]
    curve = _mean_curve(of_subject)
    return of_subject[:, 0 if curve is None else int(np.argmax(curve))]


def sweep_content(arrays: CaseArrays) -> dict[str, Any]:
    """Give the content of ``sweep.json``: thresholds, and the Dice curves and the oracle's choice of each class."""
    of_subject, pooled = arrays.sweep
    classes: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(arrays.scheme.classes):
        mean = _mean_curve(of_subject[:, k])
        if mean is None:
            continue
        classes[name] = {}
        for curve, values in (("dice_subject", mean), ("dice_pooled", pooled[k])):
            threshold, dice = oracle_threshold(values)
            classes[name] |= {
                curve: values.tolist(),
                f"oracle_threshold_{curve}": threshold,
                f"oracle_{curve}": dice,
            }
    return {"thresholds": SWEEP_THRESHOLDS.tolist(), "cases": _number(arrays.swept), "classes": classes}


_LABEL_FILTERS = {
    "none": "masks may hold every class",
    "predicted": "masks hold the classes that the network itself finds in the image",
    "given": "masks hold the classes of the image's label alone, which a user does not have",
}


def coverage_notes(arrays: CaseArrays) -> list[str]:
    """Say what the numbers cover and how many cases fell under which rule, without names of cases."""
    truth = [row["truth"] for row in arrays.rows]
    notes = [
        f"{len(truth)} cases of {len(arrays.subjects)} subjects: {truth.count('mask')} with a reference mask, "
        f"{truth.count('empty by label')} without a finding by label (reference empty by definition), "
        f"{truth.count('unknown')} with a finding but without a reference mask (only image-level scores count)."
    ]
    positive = np.any([arrays.column("label", k) > 0 for k in arrays.scheme.labels], axis=0)
    differing = _number((positive != (arrays.column("finding") > 0)) & (np.array(truth) == "mask"))
    if differing:
        notes.append(f"In {differing} cases the label and the reference mask disagree on whether there is a finding.")
    with_finding = _number(arrays.subject_sum(arrays.column("finding")) > 0)
    notes.append(
        f"Dice per subject covers the {with_finding} subjects with a finding in the reference; false positives in "
        "other subjects show in healthy_clean, specificity, r_over and the pooled metrics."
    )
    for k in arrays.scheme.labels:
        notes += _class_notes(arrays, k)
    filters = [row["label_filter"] for row in arrays.rows if "label_filter" in row]
    for name in sorted(set(filters)):
        notes.append(
            f"Label filter of the segmentations: {name} ({filters.count(name)} cases; {_LABEL_FILTERS[name]})."
        )
    if arrays.scheme.context:
        notes.append(
            f"context_miou_pooled (C-mIoU) covers {', '.join(arrays.scheme.context)}, which something unlabeled always "
            "accompanies by the datalist."
        )
    if arrays.swept.any():
        notes.append(
            f"The threshold sweep ({_number(arrays.swept)} cases) and every oracle_ number read reference masks: "
            "for analysis only, no threshold may be chosen by them."
        )
    return notes


def _class_notes(arrays: CaseArrays, label: int) -> list[str]:
    """Say how many cases of a class fell under the empty rule, and how many have no surface distance."""
    scheme = arrays.scheme
    name = "" if len(scheme.classes) == 1 else f" Class {scheme.classes[label - 1]}:"
    tp, fp, fn = (arrays.column(count, label) for count in ("tp", "fp", "fn"))
    wanted, found, known = tp + fn > 0, tp + fp > 0, ~np.isnan(tp)
    missed, alarms = _number(wanted & ~found), _number(~wanted & found)
    notes = [
        f"Empty rule of Dice and IoU: {EMPTY_RULE}{name} {_number(known & ~wanted & ~found)} cases scored 1 by it, "
        f"{alarms} scored 0.",
        f"Surface distances need both surfaces:{name} measured in {_number(wanted & found)} cases, left out in "
        f"{missed} with an empty prediction and {alarms} with a prediction but no reference, so misses and false "
        "alarms do not show in them.",
    ]
    if known.any() and not wanted.any():
        unknown = _number(np.isnan(tp) & (arrays.column("label", label) > 0))
        why = f", and the pixels of {unknown} cases with a finding are unknown" if unknown else ""
        notes.append(
            f"No reference holds a pixel of it{why}:{name} Dice, IoU and F1, per subject and pooled, are undefined and "
            "left out; accuracy, specificity and healthy_clean cover other images alone."
        )
    return notes


def _number(values: np.ndarray) -> int:
    return int(np.count_nonzero(values))
