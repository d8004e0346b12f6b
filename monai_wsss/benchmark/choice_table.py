# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Trained classifiers beside the scores that may choose among them: does a score without masks follow the Dice?

| columns of the rows | what is measured                                                                     |
|---------------------|--------------------------------------------------------------------------------------|
| (none)              | the scores of :data:`~monai_wsss.benchmark.label_scores.CHOICE_SCORES`, and Dice       |
| cut 0.1 … cut 0.9   | the first seed: scores of its masks at this share of the way to the peak, and Dice    |

The scores read image-level labels alone.  Dice reads masks, to judge the scores by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark.cam_recipes import CAM_RECIPES
from monai_wsss.benchmark.encoder_recipes import BUDGETS, Budget, default_lever, encoder_recipes, lever_recipes
from monai_wsss.benchmark.encoder_table import data_of, decide_cases, named, rule_of_kind, table_of
from monai_wsss.benchmark.formatting import Column
from monai_wsss.benchmark.label_scores import CHOICE_SCORES, evenly, label_scores, mask_scores, masks_of, readable
from monai_wsss.benchmark.prepared import Cases, PreparedData, maps_of
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, folder_name
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.benchmark.tiles import Tiles
from monai_wsss.inferers import VolumeInferer
from monai_wsss.metrics import mask_agreement

__all__ = ["CUTS", "choice_recipes", "make_choice_table"]

CUTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the way from the healthy level to the peak at which the masks of the first seed are scored."""
_SMALL_EPOCHS = (1, 2, 4, 8)
_SMALL_POOLINGS = ("max", "topk 2 %", "average")
_MOST = 24
_TRUTHS = ["dice_subject", "dice_pooled"]


def make_choice_table(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    side: int | None = None,
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the table of classifiers with the scores that read image-level labels alone, beside their Dice.

    Agreement is that of the masks of the same seed, with all other rows that are asked for.

    Args:
        datalist: path of a prepared ``datalist.json`` with a background.
        out: folder for weights, rows and the table.
        seeds: seeds of each row.
        split: where to score and to measure, not trained on.
        side: side of slices as the network sees them, in pixels; None for that of the budget.
        runs: folder with rows of earlier sessions, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
        rows: which rows to make, see there.

    Raises:
        DataError: data without a background.
    """
    kind, data = data_of(datalist, split, side)
    if kind == "patches":
        raise DataError(f"{datalist} has no background: blanking a tissue leaves another one, and scores mean nothing.")
    recipes = choice_recipes(BUDGETS[kind], small=kind == "slices", in_channels=len(data.modalities))
    peers = [key for key in recipes if not rows or folder_name(key) in rows]
    measure = _Choice(data, kind, peers)
    words = {"rule": BUDGETS[kind].rule, "most": _MOST, "cuts": list(CUTS), "peers": peers}
    entries = [Entry(key, measure, key, words=words) for key in recipes]
    columns = [Column(name, name) for name in ("dice_subject", *CHOICE_SCORES)]
    return BenchmarkTable(
        named("choice", data, side=side), data, out, recipes, entries, columns, seeds=seeds, runs=runs, rows=rows
    )


def choice_recipes(budget: Budget, *, small: bool, in_channels: int) -> dict[str, Recipe]:
    """Give the classifiers to choose from: those of the table of encoders, the levers, and small ones from scratch.

    Args:
        budget: of the kind of data.
        small: whether to add small encoders, of three poolings and four lengths of training.
        in_channels: channels of the images.
    """
    encoders = encoder_recipes(budget, refined="par")
    recipes = {name: encoders[name] for name in encoders if name.startswith("CAM")}
    # The default lever is the pretrained classifier itself.
    levers = lever_recipes(budget, in_channels=in_channels)
    recipes |= {name: recipe for name, recipe in levers.items() if name != default_lever(budget)}
    for pooling in _SMALL_POOLINGS if small else ():
        for epochs in _SMALL_EPOCHS:
            words = {"method": "small cam", "pooling": pooling}
            recipes[f"small, {pooling}, {epochs} epochs"] = replace(CAM_RECIPES[pooling], epochs=epochs, words=words)
    return recipes


class _Choice:
    """Scores trained classifiers by labels, and measures their Dice.

    Args:
        data: the dataset.
        kind: of the data.
        peers: recipes whose masks are compared.
    """

    def __init__(self, data: PreparedData, kind: str, peers: Sequence[str]) -> None:
        self.data = data
        self.kind = kind
        self.peers = tuple(peers)
        self._masks: dict[tuple[str, int], list[torch.Tensor]] = {}

    def __call__(self, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
        """Give the scores and the Dice of one training, for the first seed also at each cut."""
        (one,) = trained
        network = one.method.network
        cases, _ = self.data.whole_maps(one.recipe, None)
        maps = maps_of(cases, self._forward(network))
        rule = self._rule(network)
        forward = self._forward(network)
        scores = label_scores(cases, maps, rule, forward, most=_MOST)
        if isinstance(self.data, Tiles):
            of_tiles = self.data.presence(network)
            scores |= {"presence_auroc": of_tiles["tile_auroc"]["mean"], "left_clean": of_tiles["tile_clean"]["mean"]}
        chosen = evenly([np.asarray(case["label"]) for case in cases], _MOST)
        others = self._others(table, one)
        own = masks_of([cases[n] for n in chosen], [maps[n] for n in chosen], rule)
        scores |= self._agreement(own, others)
        yield Measured("", self._metrics(scores, cases, maps, rule))
        if one.seed != table.seeds[0]:
            return
        shown, of_shown = readable([cases[n] for n in chosen]), [maps[n] for n in chosen]
        for cut in CUTS:
            at = self._rule(network, rule="negative_reference", threshold=cut)
            masks = masks_of(shown, of_shown, at)
            found = {**mask_scores(shown, masks, at, forward), **self._agreement(masks, others)}
            yield Measured(f"cut {cut:g}", self._metrics(found, cases, maps, at))

    def _rule(self, network: Any, rule: str | None = None, threshold: float | None = None) -> Any:
        own = rule_of_kind(network, rule or BUDGETS[self.kind].rule, gated=self.kind == "slices")
        return replace(own, threshold=threshold)

    def _forward(self, network: Any) -> Any:
        """Give raw maps of whole images, of one view: averages over views follow flips and turns by themselves."""
        if isinstance(self.data, Tiles):
            return partial(self.data.inferer(), network=network)
        grid = self.data.grid  # type: ignore[attr-defined]
        return partial(VolumeInferer(2, grid=grid), network=network)

    def _others(self, table: BenchmarkTable, one: Trained) -> list[list[torch.Tensor]]:
        """Give the masks of the other recipes of the same seed."""
        for key in self.peers:
            if (key, one.seed) not in self._masks:
                recipe, _, method = table.trained(key, one.seed)
                cases, _ = self.data.whole_maps(recipe, None)
                cases = readable([cases[n] for n in evenly([np.asarray(case["label"]) for case in cases], _MOST)])
                maps = maps_of(cases, self._forward(method.network))
                self._masks[key, one.seed] = masks_of(cases, maps, self._rule(method.network))
        return [self._masks[key, one.seed] for key in self.peers if table.recipes[key] is not one.recipe]

    def _agreement(self, own: list[torch.Tensor], others: list[list[torch.Tensor]]) -> dict[str, float]:
        count = len(self.data.header["classes"])
        pairs = [float(mask_agreement([own, other], num_classes=count)[0]) for other in others]
        known = [value for value in pairs if math.isfinite(value)]
        return {"agreement": float(np.mean(known))} if known else {}

    def _metrics(self, scores: dict[str, float], cases: Cases, maps: list[torch.Tensor], rule: Any) -> dict[str, Any]:
        """Give scores, and the Dice by masks, as metrics."""
        summary: dict[str, Any] = table_of(self.data, cases, decide_cases(cases, maps, rule, None)).summary()
        dice = {name: summary[name] for name in _TRUTHS if name in summary}
        return {**dice, **{name: {"mean": value} for name, value in scores.items() if math.isfinite(value)}}
