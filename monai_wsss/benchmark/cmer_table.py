# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Our own table of CMER on any prepared dataset of slices with several modalities, on small encoders.

Lines are combinations of losses, presets and full supervision, columns modalities and fusions; `cmer-unet` is the same
with a full-resolution U-Net.  The tables and figures of the paper are in ``cmer_paper.py``.

The tables share trainings and rows when they share a folder.  Masks are read to measure, and to train the row that says
so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_wsss.benchmark.cmer_recipes import (
    BOUND_RECIPES,
    CMER_RECIPES,
    FULL_RESOLUTION_RECIPES,
)
from monai_wsss.benchmark.formatting import Column
from monai_wsss.benchmark.prepared import MIXTURE_OF_ALL, Slices, rule_of
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.refinement import MaskRule, mixture_rule

__all__ = ["cmer_columns", "make_cmer_full_resolution", "make_cmer_table"]

_DEFAULT = "CMER (default: better peers teach)"
_FUSED = ("fused", "fused, reliable")


def make_cmer_table(
    datalist: Path,
    out: Path,
    *,
    name: str = "cmer",
    recipes: Mapping[str, Recipe] = CMER_RECIPES,
    epochs: int = 8,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    grid: tuple[int, int] = (64, 64),
    runs: Path | None = None,
) -> BenchmarkTable:
    """Make a table of CMER on slices with one class: lines are recipes, columns modalities.

    The column ``fused`` takes all modalities, as the paper does; ``fused, reliable`` leaves out those that training has
    found weak.

    Args:
        datalist: path of the prepared ``datalist.json``.
        out: folder for weights, rows and the table.
        name: name of the table's files.
        recipes: the recipes; :data:`CMER_RECIPES` come with Grad-CAM++ and full supervision.
        epochs: epochs of each training.
        seeds: seeds of each recipe.
        split: where to measure.
        grid: in-plane size of the networks, in pixels.
        runs: folder with rows of earlier runs, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
    """
    data = Slices(datalist, split, grid)
    entries = [Entry(recipe, partial(_by_group, data), recipe) for recipe in recipes]
    if recipes is CMER_RECIPES:
        for recipe in ("plain CAM", _DEFAULT):
            title = f"{recipe}, Grad-CAM++ (one view, half of the maximum)"
            entries.append(Entry(title, partial(_gradient, data), recipe))
        for recipe in ("plain CAM", _DEFAULT):
            entries.append(Entry(f"{recipe}, {MIXTURE_OF_ALL}", partial(_mixture, data), recipe))
        entries += [Entry(recipe, partial(_bound, data), recipe) for recipe in BOUND_RECIPES]
    trained = {**recipes, **BOUND_RECIPES}
    columns = cmer_columns(data.modalities, ratios=recipes is CMER_RECIPES)
    return BenchmarkTable(name, data, out, trained, entries, columns, epochs=epochs, seeds=seeds, runs=runs)


def cmer_columns(modalities: Sequence[str], *, ratios: bool = True) -> list[Column]:
    """Give the columns of a table of CMER: the Dice of each modality and of the fusions.

    Args:
        modalities: names of the modalities.
        ratios: whether the fusions are also divided by full supervision.
    """
    columns = [Column(f"{group} dice", "dice_subject", group) for group in (*modalities, *_FUSED)]
    if ratios:
        columns += [Column(f"ratio, {group}", "dice_subject", group, "ratio", bound="fused") for group in _FUSED]
    return columns


# ---- measuring -------------------------------------------------------------------------------------------------------


def _by_group(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure each modality, the fusion of all, and that of the reliable ones."""
    (one,) = trained
    cases = data.cases(one.recipe)
    maps = data.maps(cases, one.method.network, one.recipe.views)
    for group in (*data.modalities, *_FUSED):
        rule = _rule_of_group(data, one, group)
        yield Measured(group, data.measure_maps(cases, maps, rule).summary())


def _rule_of_group(data: Slices, one: Trained, group: str) -> MaskRule:
    """Give the rule for one modality, or for a fusion."""
    rule = rule_of(one.method.network, one.recipe.rules[0])
    if group == "fused":
        return replace(rule, reliable=None)
    if group not in _FUSED:
        return replace(rule, reliable=torch.tensor([name == group for name in data.modalities]))
    return rule


def _gradient(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure Grad-CAM++ at the last block of each network, gated by the network's own logits, at half the maximum."""
    (one,) = trained
    network: Any = one.method.network
    cases = data.cases(one.recipe)
    cam = GradientCAMInferer("encoder", variant="gradcam++", gate="predicted")
    maps = data.maps(cases, network, "none", cam)
    for group in (*data.modalities, *_FUSED):
        reliable = _rule_of_group(data, one, group).reliable
        rule = MaskRule(rule="max", gate="none", groups=network.groups, reliable=reliable)
        yield Measured(group, data.measure_maps(cases, maps, rule).summary())


def _mixture(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure each modality and the fusions at the cut that a mixture finds in the scores of all images."""
    (one,) = trained
    cases = data.cases(one.recipe)
    maps = data.maps(cases, one.method.network, one.recipe.views)
    for group in (*data.modalities, *_FUSED):
        rule = mixture_rule(_rule_of_group(data, one, group), maps)
        yield Measured(group, data.measure_maps(cases, maps, rule).summary())


def _bound(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the same networks trained on masks."""
    (one,) = trained
    cases = data.cases(one.recipe)
    maps = data.maps(cases, one.method.network, one.recipe.views)
    yield Measured("fused", data.measure_maps(cases, maps, MaskRule(output_kind="segmentation")).summary())


make_cmer_full_resolution = partial(make_cmer_table, name="cmer_unet", recipes=FULL_RESOLUTION_RECIPES)
"""The table of the full-resolution U-Net, the layout of the paper's network at width 8."""
