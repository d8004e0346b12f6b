# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Scores of a trained network by image-level labels alone: nothing here takes a mask from a case.

:data:`CHOICE_SCORES` names each score and whether high or low is good.  Whether it follows the true Dice is measured by
the table ``choice``, see ``docs/results/choosing.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from monai_wsss.benchmark.blanked_images import blanked_scores, equivariance_residual, presence_curves
from monai_wsss.benchmark.encoder_table import decide_cases
from monai_wsss.benchmark.prepared import Cases
from monai_wsss.metrics import (
    area_under_presence,
    blanked_presence,
    left_clean,
    mask_metrics,
    presence_auroc,
)
from monai_wsss.refinement import MaskRule

__all__ = ["CHOICE_SCORES", "label_scores", "mask_scores", "masks_of", "readable"]

CHOICE_SCORES: Mapping[str, int] = {
    "presence_auroc": 1,
    "left_clean": 1,
    "found": 1,
    "blanked_auroc": 1,
    "blanked_accuracy": 1,
    "blanked_fall": 1,
    "blanked_stay": 1,
    "blanked_margin": 1,
    "equivariance_residual": -1,
    "agreement": 1,
    "deletion": -1,
    "insertion": 1,
    "insertion_less_deletion": 1,
}
"""Score to 1 where high is good and -1 where low is."""

_READ = ("id", "subject", "label", "image", "region")
_TOGETHER = 16
_STEPS = 8
_SCALES = (0.75,)

Forward = Callable[[torch.Tensor], torch.Tensor]
Maps = Sequence[torch.Tensor]


def readable(cases: Sequence[Mapping[str, Any]]) -> Cases:
    """Give cases without their masks, which are not touched."""
    return [{name: case[name] for name in _READ if name in case} for case in cases]


def label_scores(
    cases: Sequence[Mapping[str, Any]], maps: Maps, rule: MaskRule, forward: Forward, *, most: int = 24
) -> dict[str, float]:
    """Score a network by image-level labels: presence, clean images, blanked regions, removed pixels, equivariance.

    Args:
        cases: with ``image`` (C, *S) and ``label`` (K,); ``region`` where findings lie in one.  A ``mask`` is not read.
        maps: of the cases, each (1, channels, *S), as ``forward`` gives them.
        rule: decides masks, of class maps.
        forward: images (B, C, *S) to raw maps (B, channels, *S).
        most: so many images with a finding, evenly spaced, are blanked, changed and turned; the other numbers take all.

    Returns:
        Scores by name, see :data:`CHOICE_SCORES`; those that nobody can know are left out.

    Raises:
        ValueError: a rule of segmentations, which have no classifier.
    """
    if rule.output_kind != "activation":
        raise ValueError("Expected a `rule` of class maps, got one of segmentations, which have no classifier.")
    cases = readable(cases)
    masks = masks_of(cases, maps, rule)
    labels = [np.asarray(case["label"]) for case in cases]
    areas = [_areas(mask, len(label)) for mask, label in zip(masks, labels, strict=True)]
    logits = np.concatenate([_presence(rule, each).numpy() for each in maps]) if len(maps) else np.zeros((0, 0))
    scores = {
        "presence_auroc": _mean_auroc(logits, labels),
        "left_clean": left_clean(labels, areas),
        "found": mask_metrics(labels, areas).get("found", math.nan),
    }
    chosen = evenly(labels, most)
    scores |= mask_scores([cases[n] for n in chosen], [masks[n] for n in chosen], rule, forward)
    scores |= _map_scores([cases[n] for n in chosen], [maps[n] for n in chosen], rule, forward)
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def masks_of(cases: Sequence[Mapping[str, Any]], maps: Maps, rule: MaskRule) -> list[torch.Tensor]:
    """Decide the masks (1, *S) of cases, in their regions alone where they have any; masks of cases are not read."""
    return [decided.mask for decided in decide_cases(readable(cases), list(maps), rule, None)]


def mask_scores(
    cases: Sequence[Mapping[str, Any]], masks: Sequence[torch.Tensor], rule: MaskRule, forward: Forward
) -> dict[str, float]:
    """Score masks by what the classifier says of images without the found region, and of the region alone.

    Args:
        cases: as of :func:`label_scores`, all with a finding.
        masks: of the cases, each (1, *S).
        rule: says how presence follows from maps.
        forward: as of :func:`label_scores`.

    Returns:
        The numbers of :class:`~monai_wsss.metrics.BlankedPresence`, each with ``blanked_`` before its name.
    """
    cases = readable(cases)
    parts = []
    for together in _of_one_size(cases):
        images, label = _stacked(cases, together)
        found = torch.stack([masks[n] for n in together])
        blanked = blanked_scores(lambda x: _presence(rule, forward(x)), images, found, label, chunk=_TOGETHER)
        parts.append((*blanked, label))
    if not parts:
        return {}
    whole, without, alone, control, shown = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    numbers = blanked_presence(whole, without, alone, shown, control=control)
    return {f"blanked_{name}": value for name, value in numbers._asdict().items()}


def evenly(labels: Sequence[np.ndarray], most: int) -> list[int]:
    """Give the numbers of at most so many images with a finding, evenly spaced.

    Example:
        >>> evenly([np.array([1]), np.array([0]), np.array([1]), np.array([1])], 2)
        [0, 3]
    """
    shown = [n for n, label in enumerate(labels) if np.any(label)]
    if len(shown) <= most:
        return shown
    return [shown[round(at)] for at in np.linspace(0, len(shown) - 1, most)]


def _map_scores(cases: Cases, maps: Maps, rule: MaskRule, forward: Forward) -> dict[str, float]:
    """Score the maps of images with a finding, whatever their cut."""
    ungated = replace(rule, gate="none")
    areas: dict[str, list[np.ndarray]] = {"equivariance_residual": [], "deletion": [], "insertion": []}
    for together in _of_one_size(cases):
        images, label = _stacked(cases, together)
        present = label > 0
        ranked = _class_maps(rule, torch.cat([maps[n] for n in together]))
        curves = presence_curves(
            lambda x: _presence(rule, forward(x)).sigmoid(), images, ranked, label, steps=_STEPS, chunk=_TOGETHER
        )
        areas["deletion"].append(area_under_presence(curves.deletion[present]))
        areas["insertion"].append(area_under_presence(curves.insertion[present]))
        residual = equivariance_residual(
            lambda x: ungated.score_maps(forward(x)), images, scales=_SCALES, chunk=_TOGETHER
        )
        # A map without a single pixel above the cut fails where there is a finding.
        areas["equivariance_residual"].append(residual[present].nan_to_num(nan=1.0).numpy())
    if not areas["deletion"]:
        return {}
    means = {name: float(np.concatenate(values).mean()) for name, values in areas.items()}
    return {**means, "insertion_less_deletion": means["insertion"] - means["deletion"]}


def _grouped(rule: MaskRule, maps: torch.Tensor) -> torch.Tensor:
    grouped = maps.float().unflatten(1, (rule.groups, -1))
    return grouped if rule.reliable is None else grouped[:, rule.reliable]


@torch.no_grad()
def _presence(rule: MaskRule, maps: torch.Tensor) -> torch.Tensor:
    """Give image-level logits (B, K) of raw maps, of each class the greatest over the groups."""
    return rule.pool(_grouped(rule, maps)).amax(1)


def _class_maps(rule: MaskRule, maps: torch.Tensor) -> torch.Tensor:
    """Give one raw map per class, (B, K, *S)."""
    return rule.of_classes(_grouped(rule, maps)).amax(1)


def _areas(mask: torch.Tensor, classes: int) -> np.ndarray:
    return np.array([float((mask == number).float().mean()) for number in range(1, classes + 1)])


def _mean_auroc(logits: np.ndarray, labels: Sequence[np.ndarray]) -> float:
    """Average the area over the classes that some images have and others lack; NaN where there is none."""
    if not len(logits):
        return math.nan
    areas = [presence_auroc(one, shown)[0] for one, shown in zip(logits.T, np.stack(labels).T, strict=True)]
    known = [area for area in areas if math.isfinite(area)]
    return float(np.mean(known)) if known else math.nan


def _of_one_size(cases: Cases) -> Iterator[list[int]]:
    """Yield the numbers of cases whose images have one size, a few at a time."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number, case in enumerate(cases):
        sizes.setdefault(tuple(case["image"].shape), []).append(number)
    for numbers in sizes.values():
        for start in range(0, len(numbers), _TOGETHER):
            yield numbers[start : start + _TOGETHER]


def _stacked(cases: Cases, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([torch.as_tensor(cases[n]["image"]).float() for n in numbers])
    return images, torch.stack([torch.as_tensor(np.asarray(cases[n]["label"])) for n in numbers])
