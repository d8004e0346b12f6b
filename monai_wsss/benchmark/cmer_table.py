# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The tables and figures of the CMER paper on any prepared dataset of slices with several modalities.

| table             | paper             | content                                                                   |
|-------------------|-------------------|---------------------------------------------------------------------------|
| `cmer`            | Tables I to III   | Dice of each modality and of their fusion, for each combination of losses |
| `cmer-unet`       | Table I           | the same with the paper's network                                         |
| `cmer-errors`     | Table V           | under- and over-segmentation, r_u = FN/TP and r_o = FP/TP                 |
| `cmer-thresholds` | Fig. 4            | Dice against the threshold: plain CAM, SEAM, CMER                         |
| `cmer-transforms` | Fig. 3            | CMER with one kind of transform and with all                              |

The tables share trainings and rows when they share a folder.  Masks are read to measure, and to train the row that says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from monai_wsss._files import write_json
from monai_wsss.benchmark.cmer_recipes import (
    BOUND_RECIPES,
    CMER_RECIPES,
    FULL_RESOLUTION_RECIPES,
    TRANSFORM_RECIPES,
)
from monai_wsss.benchmark.formatting import Column, values_of
from monai_wsss.benchmark.prepared import MIXTURE_OF_ALL, Slices, rule_of
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.refinement import MaskRule, mixture_rule
from monai_wsss.reports import bar_chart
from monai_wsss.reports.charts import ChartLine, line_chart

__all__ = [
    "make_cmer_errors",
    "make_cmer_full_resolution",
    "make_cmer_table",
    "make_cmer_thresholds",
    "make_cmer_transforms",
]

_DEFAULT = "CMER (default: better peers teach)"
_FUSED = ("fused", "fused, reliable")

Figure = Callable[[Slices, BenchmarkTable, Sequence[Row]], Markup]


def make_cmer_table(
    datalist: Path,
    out: Path,
    *,
    name: str = "cmer",
    recipes: Mapping[str, Recipe] = CMER_RECIPES,
    metrics: Sequence[str] = ("dice_subject",),
    figure: Figure | None = None,
    epochs: int = 8,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    grid: tuple[int, int] = (64, 64),
) -> BenchmarkTable:
    """Make a table of CMER on slices with one class: lines are recipes, columns modalities.

    The column ``fused`` takes all modalities, as the paper does; ``fused, reliable`` leaves out those that training has
    found weak.

    Args:
        datalist: path of the prepared ``datalist.json``.
        out: folder for weights, rows and the table.
        name: name of the table's files.
        recipes: the recipes; those of Tables I to III come with Grad-CAM++ and full supervision.
        metrics: the metrics to print of each modality.
        figure: draws ``<name>.svg``.
        epochs: epochs of each training.
        seeds: seeds of each recipe.
        split: where to measure.
        grid: in-plane size of the networks, in pixels.
    """
    data = Slices(datalist, split, grid)
    entries = [Entry(recipe, partial(_by_group, data), recipe) for recipe in recipes]
    columns = [
        Column(f"{group} {metric.removesuffix('_subject')}", metric, group)
        for group in (*data.modalities, *_FUSED)
        for metric in metrics
    ]
    if recipes is CMER_RECIPES:
        for recipe in ("plain CAM", _DEFAULT):
            title = f"{recipe}, Grad-CAM++ (one view, half of the maximum)"
            entries.append(Entry(title, partial(_gradient, data), recipe))
        for recipe in ("plain CAM", _DEFAULT):
            entries.append(Entry(f"{recipe}, {MIXTURE_OF_ALL}", partial(_mixture, data), recipe))
        entries += [Entry(recipe, partial(_bound, data), recipe) for recipe in BOUND_RECIPES]
        columns += [Column(f"ratio, {group}", "dice_subject", group, "ratio", bound="fused") for group in _FUSED]
    figures = {} if figure is None else {f"{name}.svg": partial(figure, data)}
    trained = {**recipes, **BOUND_RECIPES}
    return BenchmarkTable(name, data, out, trained, entries, columns, epochs=epochs, seeds=seeds, figures=figures)


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


# ---- figures ---------------------------------------------------------------------------------------------------------


def _threshold_chart(data: Slices, table: BenchmarkTable, rows: Sequence[Row]) -> Markup:
    """Draw Dice per subject against the threshold, a mean over seeds; the curves choose nothing.

    Writes the curves beside the table, as ``<name>_curves.json``.
    """
    curves: dict[str, dict[str, list[float]]] = {}
    for entry in table.entries:
        sweeps: dict[str, list[dict[str, Any]]] = {group: [] for group in _FUSED}
        for seed in table.seeds:
            one = table.trained(entry.name, seed)
            cases = data.cases(one.recipe)
            maps = data.maps(cases, one.method.network, one.recipe.views)
            for group in _FUSED:
                rule = _rule_of_group(data, one, group)
                sweeps[group].append(data.measure_maps(cases, maps, rule, sweep=True).sweep())
        for group, found in sweeps.items():
            (tumor,) = found[0]["classes"]
            dice = np.mean([sweep["classes"][tumor]["dice_subject"] for sweep in found], axis=0)
            curves[f"{entry.name}, {group}"] = {"threshold": found[0]["thresholds"], "dice_subject": dice.tolist()}
    write_json(table.out / f"{table.name}_curves.json", curves)
    return line_chart(
        [ChartLine(name, curve["threshold"], curve["dice_subject"]) for name, curve in curves.items()],
        title="Dice per subject against the threshold on the fused map",
        x_label="threshold",
        y_label="Dice per subject",
        y_range=(0.0, 1.0),
    )


def _transform_chart(data: Slices, table: BenchmarkTable, rows: Sequence[Row]) -> Markup:
    """Draw Dice per subject by the kind of transform, for each modality and the reliable ones together."""
    kinds = ["all" if entry.name == _DEFAULT else entry.name.removeprefix("CMER, ") for entry in table.entries]
    values, spread = {}, {}
    for group in (*data.modalities, _FUSED[1]):
        dice = [
            values_of([row for row in rows if row.name == entry.name], "dice_subject", group) for entry in table.entries
        ]
        values[group] = [float(np.mean(of_seeds)) for of_seeds in dice]
        spread[group] = [float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else 0.0 for of_seeds in dice]
    return bar_chart(
        kinds,
        values,
        title="Dice per subject by kind of transform",
        spread=spread if len(table.seeds) > 1 else None,
        y_label="Dice per subject",
        y_range=(0.0, 1.0),
    )


# ---- the other tables ------------------------------------------------------------------------------------------------

make_cmer_full_resolution = partial(make_cmer_table, name="cmer_unet", recipes=FULL_RESOLUTION_RECIPES)
"""The table of the paper's network, the full-resolution U-Net, of width 8."""

make_cmer_errors = partial(
    make_cmer_table,
    name="cmer_errors",
    recipes={name: CMER_RECIPES[name] for name in ("plain CAM", _DEFAULT)},
    metrics=("r_under", "r_over"),
)
"""Table V: r_u and r_o over all pixels, of each modality, for plain CAM and CMER."""

make_cmer_thresholds = partial(
    make_cmer_table,
    name="cmer_thresholds",
    recipes={name: CMER_RECIPES[name] for name in ("plain CAM", "SEAM, all transforms", _DEFAULT)},
    figure=_threshold_chart,
)
"""Fig. 4: Dice per subject against the threshold."""

make_cmer_transforms = partial(
    make_cmer_table,
    name="cmer_transforms",
    recipes={**TRANSFORM_RECIPES, _DEFAULT: CMER_RECIPES[_DEFAULT]},
    figure=_transform_chart,
)
"""Fig. 3: CMER with flips, quarter turns, scaling or translation alone, and with one of them all at a time."""
