# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What is decided from the same pretrained classifiers: scales, refinement, rules, ensembles; and self-training.

| rows                       | what is measured                                                              |
|----------------------------|-------------------------------------------------------------------------------|
| scales …                   | maps averaged over these scales; as they are, refined by PAR, by a CRF        |
| rule …                     | the same maps, cut by another rule                                            |
| healthy quantile …         | slices: cut at this quantile of what negative training pixels respond         |
| ensemble                   | mean maps of the seeds without those whose image-level AUROC falls behind     |
| self-training              | a third training, on the second stage's masks of the training images, which   |
|                            | keep the classes of their labels alone                                        |

The classifiers are those of the table of encoders.  In one folder both tables train them once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark.encoder_recipes import BUDGETS, decision_recipes
from monai_wsss.benchmark.encoder_table import data_of, encoder_columns, measure_cases, named, rule_of_kind
from monai_wsss.benchmark.prepared import PreparedData
from monai_wsss.benchmark.rows import Measured
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.benchmark.tiles import Tiles
from monai_wsss.metrics import presence_auroc
from monai_wsss.networks import MapEnsemble
from monai_wsss.refinement import ClassMapRefinement, NegativeResponses

__all__ = ["make_decision_table"]

CLASSIFIER = "CAM, ImageNet weights"
SELF_TRAINED = "self-training on label-consistent masks"
_SCALES = ((1.0,), (0.5, 1.0), (0.5, 1.0, 1.5))
_QUANTILES = (0.5, 0.99, 0.999)
_REFINEMENTS = (None, "par", "crf")
_BEHIND = 0.05
"""A seed whose image-level AUROC is less than the best one's by more than this takes no part in an ensemble."""


def make_decision_table(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    side: int | None = None,
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the table of what is decided from pretrained classifiers.

    Args:
        datalist: path of a prepared ``datalist.json``.
        out: folder for weights, pseudo-masks, rows and the table.
        seeds: seeds of each row.
        split: where to measure.
        side: side of slices, and of patches, as the network sees them, in pixels; None for that of the budget.
        runs: folder with rows of earlier sessions, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
        rows: which rows to make, see there.
    """
    kind, data = data_of(datalist, split, side)
    budget = BUDGETS[kind]
    refinements = _REFINEMENTS[:2] if isinstance(data, Tiles) and data.in_regions else _REFINEMENTS
    words: dict[str, Any] = {
        "rule": budget.rule,
        "refinements": [None if name is None else ClassMapRefinement(name).settings for name in refinements],
    }
    measure = partial(_Decisions, data, kind, refinements)
    entries: list[Entry] = []
    for scales in _SCALES if isinstance(data, Tiles) else ():
        name = f"scales {', '.join(f'{scale:g}' for scale in scales)}"
        entries.append(Entry(name, measure(scales=scales), CLASSIFIER, words={**words, "scales": list(scales)}))
    for rule in ("minmax", "max") if budget.background else ():
        entries.append(Entry(f"rule {rule}", measure(rule=rule), CLASSIFIER, words={**words, "rule": rule}))
    for quantile in _QUANTILES if kind == "slices" else ():
        more = {**words, "rule": "negative_quantile", "quantile": quantile}
        entries.append(Entry(f"healthy quantile {quantile:g}", measure(quantile=quantile), CLASSIFIER, words=more))
    together = {**words, "behind": _BEHIND, **({"compared_on": "training patches"} if kind == "patches" else {})}
    entries.append(Entry("ensemble of {seeds} seeds", measure(), CLASSIFIER, "all", words=together))
    entries.append(Entry(SELF_TRAINED, measure(), SELF_TRAINED, words=words))
    recipes = decision_recipes(budget, classifier=CLASSIFIER, self_trained=SELF_TRAINED)
    columns = encoder_columns(background=budget.background, bounded=False)
    name = named("decisions", data, side=side)
    return BenchmarkTable(name, data, out, recipes, entries, columns, seeds=seeds, runs=runs, rows=rows)


class _Decisions:
    """Measures masks of trained networks under each refinement, with one change of how they are decided."""

    def __init__(
        self,
        data: PreparedData,
        kind: str,
        refinements: Sequence[str | None],
        *,
        scales: tuple[float, ...] | None = None,
        rule: str | None = None,
        quantile: float | None = None,
    ) -> None:
        self.data = data
        self.kind = kind
        self.refinements = refinements
        self.scales = scales
        self.rule = rule
        self.quantile = quantile

    def __call__(self, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
        """Give the measurements of one seed, or of an ensemble of several."""
        kept = trained if len(trained) == 1 else self._kept(trained)
        recipe, network = kept[0].recipe, kept[0].method.network
        if len(kept) > 1:
            network = MapEnsemble([one.method.network for one in kept]).eval()  # type: ignore[misc]
            kept[0].method.network = network
            kept[0].method.finalize(self.data.loader(self.data.items(recipe, 0), recipe, 0))
        cases, maps = self._maps(recipe, network)
        rule = rule_of_kind(network, self.rule or BUDGETS[self.kind].rule, gated=self.kind == "slices")
        if self.quantile is not None:
            level = self._level(kept[0], self.quantile)
            rule = replace(rule, rule="negative_quantile", negative_quantile=level)
        of = f" of {len(kept)} kept" if len(trained) > 1 else ""
        for refinement in self.refinements:
            summary = measure_cases(self.data, cases, maps, rule, refinement)
            yield Measured(f"{refinement or 'as they are'}{of}", summary)

    def _maps(self, recipe: Any, network: Any) -> Any:
        if self.scales is None or not isinstance(self.data, Tiles):
            return self.data.whole_maps(recipe, network)
        usual, self.data.scales = self.data.scales, self.scales
        try:
            return self.data.whole_maps(recipe, network)
        finally:
            self.data.scales = usual

    def _kept(self, trained: Sequence[Trained]) -> list[Trained]:
        """Leave out the seeds whose image-level AUROC, by labels alone, falls behind the best one's."""
        scores = [self._auroc(one) for one in trained]
        if None in scores:
            raise DataError(
                f"The seeds of an ensemble are compared on images with and without the class, and the split "
                f"{self.data.split} of {self.data.datalist} lacks one of them: choose another `split`."
            )
        return [one for one, score in zip(trained, scores, strict=True) if score >= max(scores) - _BEHIND]  # type: ignore[type-var, operator]

    def _auroc(self, one: Trained) -> float | None:
        """Give the AUROC of presence on the measured split, of tiles or of slices; of patches on those of the training.

        Whole images of tissue all hold every class: only patches tell a training that failed.
        """
        network = one.method.network
        if isinstance(self.data, Tiles):
            return float(self.data.presence(network)["tile_auroc"]["mean"])
        if self.kind == "patches":
            return self._auroc_of_training(one)
        cases, maps = self.data.whole_maps(one.recipe, network)
        rule = rule_of_kind(network, BUDGETS[self.kind].rule, gated=True)
        found = measure_cases(self.data, cases, maps, rule, None).get("presence_auroc")
        return None if found is None else float(found["mean"])

    @torch.no_grad()
    def _auroc_of_training(self, one: Trained) -> float | None:
        """Give the mean AUROC over the classes, on the training patches of an epoch; None without a negative one."""
        network: Any = one.method.network
        batches = list(self.data.loader(self.data.items(one.recipe, 0), one.recipe, 0))
        logits = torch.cat([network.pool(network(batch["image"])) for batch in batches])
        labels = torch.cat([torch.as_tensor(batch["label"]) for batch in batches])
        areas = [presence_auroc(*of_class)[0] for of_class in zip(logits.T, labels.T, strict=True)]
        return float(np.mean(areas)) if np.isfinite(areas).all() else None

    @torch.no_grad()
    def _level(self, one: Trained, quantile: float) -> Any:
        """Measure a quantile of what training-negative pixels respond."""
        network: Any = one.method.network
        responses = NegativeResponses(network.groups * network.num_classes)
        for batch in self.data.loader(self.data.items(one.recipe, one.seed), one.recipe, one.seed):
            responses.update(network(batch["image"]), batch["label"])
        return responses.quantile(quantile)
