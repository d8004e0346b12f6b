# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Whether a training learned, by image-level labels alone: no mask decides here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Verdict", "judge"]

_AUROC = 0.65
"""Presence AUROC below which a network knows too little of what is in an image."""
_CLEAN = 0.1
"""Share of healthy images left clean below which a network finds something everywhere."""


@dataclass(frozen=True)
class Verdict:
    """Whether a network learned.

    Attributes:
        learned: None where image-level labels of the validation do not tell.
        sentence: the verdict with its numbers, and what to do.
        presence_auroc: on the validation images; None where it is not known.
        healthy_clean: share of healthy validation images with an empty mask; None where it is not known.
        collapse: signs of a collapse in the last epoch.
    """

    learned: bool | None
    sentence: str
    presence_auroc: float | None = None
    healthy_clean: float | None = None
    collapse: tuple[str, ...] = ()


def judge(metrics: Mapping[str, float], collapse: Sequence[str], *, images: int, steps: int, epochs: int) -> Verdict:
    """Judge a training.

    Args:
        metrics: of the last validation; ``presence_auroc`` and ``healthy_clean`` are read.
        collapse: signs of a collapse in the last epoch, a sentence each.
        images: of the training.
        steps: that it took.
        epochs: that it took.

    Example:
        >>> judge({"presence_auroc": 0.5}, [], images=28, steps=20, epochs=20).sentence
        'It did not learn (28 images, 20 steps): presence AUROC 0.50. Take --epochs 300.'
        >>> judge({"presence_auroc": 0.9, "healthy_clean": 0.8}, [], images=500, steps=320, epochs=20).learned
        True
    """
    auroc, clean = (_known(metrics.get(name)) for name in ("presence_auroc", "healthy_clean"))
    numbers = []
    if auroc is not None:
        numbers.append(f"presence AUROC {auroc:.2f}")
    if clean is not None:
        numbers.append(f"{clean:.0%} of the healthy images left clean")
    faults = [text.rstrip(".") for text in collapse]
    wrong = (auroc is not None and auroc < _AUROC) or (clean is not None and clean < _CLEAN) or bool(faults)
    counted = f"{images} images, {steps} steps"
    told = "; ".join([", ".join(numbers), *faults] if numbers else faults)
    if wrong:
        more = max(3 * epochs, math.ceil(300 * epochs / max(steps, 1)))
        remedy = f"Take --epochs {more}" if steps < 3000 else "Look at the labels and the images, or give more of them"
        return Verdict(False, f"It did not learn ({counted}): {told}. {remedy}.", auroc, clean, tuple(collapse))
    if not numbers:
        text = f"Whether it learned is not known ({counted}): the validation does not tell presence from absence."
        return Verdict(None, text)
    return Verdict(True, f"It learned to tell presence ({counted}): {told}. Look at masks, too.", auroc, clean)


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
