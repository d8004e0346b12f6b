# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""How well the masks of each method agree with what the other methods say together; no mask of a case is read.

The row of the ensemble of all weak methods keeps one metric per member, ``agreement/<name of the run>``: the mean over
the cases of the Dice between the member's own mask and the mask of the other methods' mean probability.  All runs of
the member's method are left out of that mean, whatever their encoder and seed, and what shares its trainings, too:
Grad-CAM++ explains those of plain CAM.  Each of the others counts as it does in the ensemble.

Of several classes the Dice is the mean over those that one of the two masks has.  Two empty masks count 1, so that
methods agree on images that they call healthy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from monai_wsss.benchmark.method_recipes import Pair
from monai_wsss.benchmark.rows import Row
from monai_wsss.metrics import mask_agreement
from monai_wsss.refinement import decide_ensemble

__all__ = ["AGREEMENT_HEADS", "AGREEMENT_NOTE", "MethodAgreement", "agreement_rows", "agreements"]

_PREFIX = "agreement/"
_SEED = ", seed "
AGREEMENT_HEADS = ("runs", "agreement with the others, without masks", "lowest run", "highest run")
"""Titles of what is told of each method and encoder."""
AGREEMENT_NOTE = (
    "Agreement: mean over the images of the Dice between a run's mask and that of the mean of all other methods, and "
    "of a row the mean over its runs. Two empty masks count 1. No mask of a case is read, and methods that are wrong "
    "alike agree, so it is no measure of how good a mask is."
)
"""What they mean."""


class MethodAgreement:
    """Compare each member with the other methods, case by case, in the memory of one case.

    Args:
        pairs: of each member its method and encoder.
        seeds: of each member the seed of its training.
        weights: what each member counts, see :func:`~monai_wsss.refinement.decide_ensemble`.
        num_classes: K.
    """

    def __init__(
        self, pairs: Sequence[Pair], seeds: Sequence[int], *, weights: Sequence[int] | None, num_classes: int
    ) -> None:
        self._names = [f"{_PREFIX}{pair.name}{_SEED}{seed}" for pair, seed in zip(pairs, seeds, strict=True)]
        self._weights = [1] * len(pairs) if weights is None else list(weights)
        self._classes = num_classes
        self._methods: dict[str, list[int]] = {}
        for place, pair in enumerate(pairs):
            self._methods.setdefault("cam" if pair.method == "gradcam++" else pair.method, []).append(place)
        self._sums = np.zeros(len(pairs))
        self._cases = 0

    def add(self, probabilities: Sequence[torch.Tensor]) -> None:
        """Add a case.

        Args:
            probabilities: of each member (1, K+1, *S), background first.
        """
        if len(self._methods) < 2:
            return
        self._cases += 1
        for own in self._methods.values():
            others = [place for place in range(len(probabilities)) if place not in own]
            weights = [self._weights[place] for place in others]
            together = decide_ensemble((probabilities[place] for place in others), weights=weights).mask
            for place in own:
                alone = decide_ensemble([probabilities[place]]).mask
                dice = float(mask_agreement([[alone], [together]], num_classes=self._classes)[0])
                self._sums[place] += 1.0 if math.isnan(dice) else dice

    def summary(self) -> dict[str, dict[str, float]]:
        """Give the metric of each member; nothing where there is one method, or no case."""
        if not self._cases:
            return {}
        means = self._sums / self._cases
        return {name: {"mean": float(mean), "n": self._cases} for name, mean in zip(self._names, means, strict=True)}


def agreements(rows: Iterable[Row]) -> dict[str, dict[int, float]]:
    """Read the agreement of each run from the first row that has it.

    Args:
        rows: of a comparison, the ensemble of all weak methods among them.

    Returns:
        Name of method and encoder to the agreement of each seed; nothing where no row has it.

    Example:
        >>> together = Row("all", "", "validation", None, {"agreement/cam, small, seed 0": {"mean": 0.5}})
        >>> agreements([together])
        {'cam, small': {0: 0.5}}
    """
    for row in rows:
        found: dict[str, dict[int, float]] = {}
        for metric, entry in row.metrics.items():
            if metric.startswith(_PREFIX):
                name, _, seed = metric.removeprefix(_PREFIX).rpartition(_SEED)
                found.setdefault(name, {})[int(seed)] = float(entry["mean"])
        if found:
            return found
    return {}


def agreement_rows(found: Mapping[str, Mapping[int, float]]) -> list[tuple[str, list[str]]]:
    """Give names and cells below :data:`AGREEMENT_HEADS`, the highest agreement first.

    Args:
        found: of :func:`agreements`.
    """
    means = {name: float(np.mean([*of_seeds.values()])) for name, of_seeds in found.items()}
    return [
        (name, [str(len(found[name])), *(f"{value:.3f}" for value in (means[name], *_ends(found[name])))])
        for name in sorted(means, key=lambda name: -means[name])
    ]


def _ends(of_seeds: Mapping[int, float]) -> tuple[float, float]:
    return min(of_seeds.values()), max(of_seeds.values())
