# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the class labels of a training of CoSA are like as it goes on, measured on unseen images.  It READS MASKS.

At each of some iterations, over the images that hold the class, and not before the class maps have the healthy level
that they may begin at:

    xi, and mIoU of CPL and of S, of both networks
    by_confidence    pixels, and rightly labeled ones, by nu = max_c M'_c, in twenty bins from 0 to 1
    by_perplexity    the same by P of Eq. 4, in bins with the edges ``PERPLEXITY``
    image_…          the mIoU of the CPL of each image, and the mean of its P

Nothing of it changes the training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_wsss._files import write_json
from monai_wsss._labels import IGNORED
from monai_wsss.benchmark.cosa_branches import BranchMaps, branch_maps, branch_masks, cuts_of
from monai_wsss.benchmark.prepared import Cases
from monai_wsss.metrics import PixelCounts, count_pixels, miou_pooled
from monai_wsss.refinement import perplexity

__all__ = ["CONFIDENCE", "FOLLOWED", "PERPLEXITY", "Follower", "labels_now"]

FOLLOWED = "followed.json"
"""File beside the weights: iteration -> metrics."""

CONFIDENCE = [n / 20 for n in range(21)]
"""Edges of the bins of nu."""

PERPLEXITY = [0.0, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 100.0]
"""Edges of the bins of P."""

Metrics = dict[str, dict[str, Any]]


class Follower:
    """A handler that measures the labels of a training now and then, and keeps them in a file.

    Args:
        method: what is trained.
        cases: images with masks.
        grid: in-plane size of the networks; None for the images' own.
        folder: of the weights.
        every: iterations between two measurements.
    """

    def __init__(self, method: Any, cases: Cases, grid: Sequence[int] | None, folder: Path, every: int) -> None:
        self.method = method
        self.cases = cases
        self.grid = grid
        self.path = folder / FOLLOWED
        self.every = every

    def attach(self, engine: Engine) -> None:
        """Measure after every so many iterations of an engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)

    def __call__(self, engine: Engine) -> None:
        """Measure, and add the result to the file; a training that was resumed measures its last iterations anew."""
        if not self.method.seeds.ready:
            return
        found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        was_training = self.method.training
        self.method.eval()
        found[f"{engine.state.iteration:06d}"] = labels_now(self.method, self.cases, self.grid)
        self.method.train(was_training)
        write_json(self.path, found)


def labels_now(method: Any, cases: Cases, grid: Sequence[int] | None) -> Metrics:
    """Measure the labels of a method in evaluation mode, see the head of this file.

    Args:
        method: CoSA.
        cases: images with the class, and with masks.
        grid: in-plane size of the networks; None for the images' own.
    """
    cuts = cuts_of(method)
    metrics: Metrics = {"xi": {"mean": cuts.maps}}
    for network, beginning in ((method.online, "online_"), (method.network, "")):
        maps = branch_maps(method.seeds, network, cases, grid)
        counts: dict[str, list[PixelCounts]] = {"CPL": [], "S": []}
        for case, of_case in zip(cases, maps, strict=True):
            masks = branch_masks(of_case, cuts, torch.as_tensor(case["label"]))
            for name, so_far in counts.items():
                so_far.append(count_pixels(masks[name], case["mask"], num_classes=len(of_case.maps)))
        for name, so_far in counts.items():
            metrics[f"{beginning}{name.lower()}_miou"] = {"mean": _miou(so_far)}
    # The last ones are those of the assignment network, which makes the labels.
    each = [_miou([count]) for count in counts["CPL"]]
    return {**metrics, **_by_bins(maps, cases, cuts.maps), "image_miou": {"mean": float(np.mean(each)), "values": each}}


def _by_bins(maps: Sequence[BranchMaps], cases: Cases, cut: float) -> Metrics:
    """Count pixels by confidence and by perplexity, and give the mean perplexity of each image."""
    counts = {name: np.zeros((2, len(edges) - 1)) for name, edges in _EDGES.items()}
    means = []
    for of_case, case in zip(maps, cases, strict=True):
        strength, winner = of_case.maps.max(dim=0)
        reference = torch.as_tensor(case["mask"])[0]
        known = reference != IGNORED
        right = (torch.where(strength >= cut, winner + 1, 0) == reference)[known].numpy()
        doubt = perplexity(strength, cut)[known].numpy()
        means.append(float(doubt.mean()))
        for name, values in (("by_confidence", strength[known].numpy()), ("by_perplexity", doubt)):
            for row, chosen in enumerate((values, values[right])):
                counts[name][row] += np.histogram(chosen.clip(0, _EDGES[name][-1]), _EDGES[name])[0]
    binned = {
        name: {
            "mean": float(right.sum() / max(total.sum(), 1)),
            "pixels": total.astype(int).tolist(),
            "right": right.astype(int).tolist(),
        }
        for name, (total, right) in counts.items()
    }
    return {**binned, "image_perplexity": {"mean": float(np.mean(means)), "values": means}}


_EDGES = {"by_confidence": CONFIDENCE, "by_perplexity": PERPLEXITY}


def _miou(counts: Sequence[PixelCounts]) -> float:
    return float(miou_pooled(PixelCounts.sum_of(counts)))
