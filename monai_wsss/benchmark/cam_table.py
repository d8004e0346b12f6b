# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of plain CAM: poolings x decision rules x seeds, beside full supervision and trivial references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_wsss.benchmark.cam_recipes import CAM_RECIPES
from monai_wsss.benchmark.formatting import Column
from monai_wsss.benchmark.prepared import MIXTURE_OF_ALL, Cases, Slices, maps_of, rule_of
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.inferers import GradientCAMInferer, VolumeInferer
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import MapEnsemble
from monai_wsss.refinement import MaskRule, mixture_rule
from monai_wsss.refinement.oracle import oracle_raw_threshold
from monai_wsss.transforms import resize_in_plane

__all__ = ["CAM_COLUMNS", "make_cam_table"]

_METRICS = ("dice_subject", "dice_pooled", "assd", "r_under", "r_over", "healthy_clean", "presence_auroc")
CAM_COLUMNS = [
    *(Column(metric, metric) for metric in _METRICS),
    Column("ratio to full supervision", "dice_subject", kind="ratio"),
]
_LEVELS = (0.0, 1.0, 1.5, 2.0)  # of the trivial reference, in standard deviations of the subject's FLAIR


def make_cam_table(
    datalist: Path,
    out: Path,
    *,
    epochs: int = 8,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    grid: tuple[int, int] = (64, 64),
    runs: Path | None = None,
) -> BenchmarkTable:
    """Make the table of plain CAM on slices with one class.

    Args:
        datalist: path of the prepared ``datalist.json``.
        out: folder for weights, rows and the table.
        epochs: epochs of each training.
        seeds: seeds of each recipe.
        split: where to measure.
        grid: in-plane size of the networks, in pixels.
        runs: folder with rows of earlier runs, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
    """
    data = Slices(datalist, split, grid)
    entries = [
        Entry(name, partial(_by_rule, data), name, words={"rules": [*recipe.rules]})
        for name, recipe in CAM_RECIPES.items()
    ]
    entries += [
        Entry("max / Grad-CAM++, max-norm 0.5", partial(_gradient, data), "max"),
        Entry(
            "max, mean of {seeds} seeds", partial(_ensemble, data), "max", "all", {"rules": [*CAM_RECIPES["max"].rules]}
        ),
        *(Entry(f"trivial: FLAIR > {level} SD", partial(_flair, data, level), None) for level in _LEVELS),
        Entry("trivial: whole slice where the network sees a finding", partial(_whole, data), "max", "first"),
    ]
    return BenchmarkTable("cam", data, out, CAM_RECIPES, entries, CAM_COLUMNS, epochs=epochs, seeds=seeds, runs=runs)


def _by_rule(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure a network under each rule of its recipe."""
    (one,) = trained
    yield from _rules(data, one.recipe, one.method.network)


def _ensemble(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the mean of the maps of all seeds, whose healthy levels are measured anew."""
    recipe = trained[0].recipe
    members: list[Any] = [one.method.network for one in trained]
    ensemble = ClassActivationMapping(MapEnsemble(members)).eval()
    ensemble.finalize(data.loader(data.items(recipe, 0), recipe, 0))
    yield from _rules(data, recipe, ensemble.network)


def _rules(data: Slices, recipe: Recipe, network: torch.nn.Module) -> Iterator[Measured]:
    cases = data.cases(recipe)
    maps = data.maps(cases, network, recipe.views)
    for rule in recipe.rules:
        yield Measured(rule or "argmax", data.measure_maps(cases, maps, rule_of(network, rule)).summary())
    if "mixture" in recipe.rules:
        together = mixture_rule(rule_of(network, "minmax"), maps)
        yield Measured(MIXTURE_OF_ALL, data.measure_maps(cases, maps, together).summary())
    if recipe.rules[0] == "negative_reference":
        summary = data.measure_maps(cases, maps, _oracle_rule(network, cases, maps)).summary()
        yield Measured("ORACLE raw threshold (chosen on the masks)", summary, oracle=True)


def _gradient(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure Grad-CAM++ at the last block, gated by the network's own logits."""
    (one,) = trained
    cases = data.cases(one.recipe)
    inferer = GradientCAMInferer("encoder", variant="gradcam++", gate="predicted")

    def on_grid(image: torch.Tensor) -> torch.Tensor:
        maps = inferer(resize_in_plane(image, data.grid), one.method.network)
        return resize_in_plane(maps, image.shape[2:])

    rule = MaskRule(rule="max", gate="none")
    yield Measured("", data.measure_maps(cases, maps_of(cases, on_grid), rule).summary())


def _flair(data: Slices, level: float, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure FLAIR above a level, a reference without a learned map; nothing where there is no FLAIR."""
    if "FLAIR" not in data.modalities:
        return
    channel = data.modalities.index("FLAIR")
    cases = data.cases(CAM_RECIPES["max"])
    flair = [torch.as_tensor(case["image"])[None, channel : channel + 1].float() for case in cases]
    rule = MaskRule(rule="fixed", threshold=level, gate="none")
    yield Measured("", data.measure_maps(cases, flair, rule).summary())


def _whole(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the whole image where the network sees a finding, a reference without a learned map."""
    (one,) = trained
    network = one.method.network
    cases = data.cases(one.recipe)
    inferer = VolumeInferer(2, grid=data.grid)
    present = maps_of(cases, lambda image: (inferer(image, network).amax((2, 3), keepdim=True) > 0).float())
    whole = [value.expand(-1, -1, *case["image"].shape[1:]) for value, case in zip(present, cases, strict=True)]
    rule = MaskRule(rule="fixed", threshold=0.5, gate="none")
    yield Measured("", data.measure_maps(cases, whole, rule).summary())


def _oracle_rule(network: Any, cases: Cases, maps: Sequence[torch.Tensor]) -> MaskRule:
    """Give the raw threshold, of 121 from -6 to 6, that the masks call best: a bound of fixed thresholds."""
    gated = []
    for scores in maps:
        present = network.pool(scores)[0, 0] > 0
        gated.append(scores[0] if present else torch.full_like(scores[0], -torch.inf))
    masks = [
        torch.as_tensor(case.get("mask", torch.zeros_like(scores))) for case, scores in zip(cases, gated, strict=True)
    ]
    candidates = torch.linspace(-6, 6, 121).tolist()
    chosen = oracle_raw_threshold(gated, masks, candidates, subjects=[case["subject"] for case in cases])
    return MaskRule.of(network, rule="fixed", threshold=chosen.oracle_threshold)
