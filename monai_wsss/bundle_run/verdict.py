# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Whether a training learned, by image-level labels alone: no mask decides here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from monai.utils import convert_to_numpy

from monai_wsss.metrics import left_clean, mask_metrics

__all__ = ["Verdict", "judge", "mask_metrics", "tile_metrics"]

_AUROC = 0.65
"""Presence AUROC below which a network knows too little of what is in an image."""
_CLEAN = 0.1
"""Share of healthy images left clean below which a network finds something everywhere."""
_TILES = 400  # that are measured at most
_FOUND = 0.1
"""Share of images with a finding that get a mask of it below which a network finds nothing."""


@torch.no_grad()
def tile_metrics(parser: ConfigParser, tiles: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Measure a trained network on tiles of the validation, by their labels alone.

    Args:
        parser: of the training, with its ``validate`` part.
        tiles: items with ``image`` and ``label``.

    Returns:
        ``presence_auroc`` where the network scores presence, ``healthy_clean``, and what
        :func:`~monai_wsss.metrics.mask_metrics` gives.
    """
    parts = ("preprocessing", "inferer", "postprocessing")
    before, inferer, after = (parser.get_parsed_content(f"validate#{name}") for name in parts)
    network, device = parser.get_parsed_content("network").eval(), torch.device(parser.get_parsed_content("device"))
    labels, areas, scores = [], [], []
    for tile in tiles[:: -(-len(tiles) // _TILES)]:
        batch = list_data_collate([before(dict(tile))])
        batch["image"] = batch["image"].to(device)
        batch["pred"] = inferer(batch["image"], network)
        (item,) = decollate_batch(batch)
        result = after(item)
        labels.append(np.asarray(tile["label"]) > 0)
        mask = convert_to_numpy(result["pred"])
        areas.append(np.array([float((mask == number).mean()) for number in range(1, len(labels[-1]) + 1)]))
        if "presence" in result:
            scores.append(convert_to_numpy(result["presence"]))
    clean = left_clean(labels, areas)
    measured = {} if math.isnan(clean) else {"healthy_clean": clean}
    if scores:
        measured["presence_auroc"] = mask_metrics(labels, scores)["area_auroc"]
    return measured | mask_metrics(labels, areas)


@dataclass(frozen=True)
class Verdict:
    """Whether a network learned.

    Attributes:
        learned: None where image-level labels of the validation do not tell.
        sentence: the verdict with its numbers, and what to do.
        presence_auroc: on the validation images; None where it is not known.
        healthy_clean: share of healthy validation images with an empty mask; None where it is not known.
        found: share of the findings of the validation images that have a mask; None where it is not known.
        collapse: signs of a collapse in the last epoch.
    """

    learned: bool | None
    sentence: str
    presence_auroc: float | None = None
    healthy_clean: float | None = None
    found: float | None = None
    collapse: tuple[str, ...] = ()


def judge(
    metrics: Mapping[str, float], collapse: Sequence[str], *, images: int, steps: int, epochs: int, what: str = "images"
) -> Verdict:
    """Judge a training.

    Args:
        metrics: of the last validation; ``presence_auroc``, ``healthy_clean`` and those of :func:`mask_metrics` are
            read.
        collapse: signs of a collapse in the last epoch, a sentence each.
        images: of the training.
        steps: that it took.
        epochs: that it took.
        what: was validated, "images" or "tiles".

    Example:
        >>> judge({"presence_auroc": 0.5}, [], images=28, steps=20, epochs=20).sentence
        'It did not learn (28 images, 20 steps): presence AUROC 0.50. Take --epochs 300.'
        >>> judge({"presence_auroc": 0.9, "healthy_clean": 0.8}, [], images=500, steps=320, epochs=20).learned
        True
    """
    names = ("presence_auroc", "healthy_clean", "found", "area_auroc")
    auroc, clean, found, area = (_known(metrics.get(name)) for name in names)
    numbers = []
    if auroc is not None:
        numbers.append(f"presence AUROC {auroc:.2f}")
    elif area is not None:  # a segmentation without a score for presence: its masks must tell it
        auroc = area
        numbers.append(f"presence AUROC {area:.2f}, by the area of the masks")
    if found is not None:
        numbers.append(f"a mask in {found:.0%} of the {what} with a finding")
    if clean is not None:
        numbers.append(f"{clean:.0%} of the healthy {what} left clean")
    faults = [text.rstrip(".") for text in collapse]
    limits = ((auroc, _AUROC), (clean, _CLEAN), (found, _FOUND))
    wrong = any(value is not None and value < limit for value, limit in limits) or bool(faults)
    counted = f"{images} images, {steps} steps"
    told = "; ".join([", ".join(numbers), *faults] if numbers else faults)
    if wrong:
        more = max(3 * epochs, math.ceil(300 * epochs / max(steps, 1)))
        remedy = f"Take --epochs {more}" if steps < 3000 else "Look at the labels and the images, or give more of them"
        sentence = f"It did not learn ({counted}): {told}. {remedy}."
        return Verdict(False, sentence, auroc, clean, found, tuple(collapse))
    if auroc is None:
        text = f"Whether it learned is not known ({counted}): the validation does not tell presence from absence."
        return Verdict(None, text)
    return Verdict(True, f"It learned to tell presence ({counted}): {told}. Look at masks, too.", auroc, clean, found)


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
