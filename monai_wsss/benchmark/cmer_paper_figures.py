# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The figures of the CMER paper that show numbers, from the same trainings as its tables.

| command           | paper  | shows                                                                                   |
|-------------------|--------|-----------------------------------------------------------------------------------------|
| `cmer-transforms` | Fig. 3 | DSC per modality: the baseline, L_ER with one kind of transform, and with all           |
| `cmer-thresholds` | Fig. 4 | per modality, DSC against the threshold of the max-normalized map: the baseline, SEAM's |
|                   |        | equivariance with scaling and with all transforms, and the proposed, with each set      |
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from markupsafe import Markup

from monai_wsss._files import write_json
from monai_wsss.benchmark.cmer_paper import CmerOptions, CmerPaper, CmerRun, RowsOfSets, by_set, columns_of, taking_part
from monai_wsss.benchmark.cmer_paper_recipes import (
    BASELINE,
    SEAM_ALL,
    SEAM_SCALE,
    comparison_recipes,
    proposed_name,
    transform_recipes,
)
from monai_wsss.benchmark.formatting import values_of
from monai_wsss.benchmark.prepared import Slices, rule_of
from monai_wsss.benchmark.table import Trained
from monai_wsss.reports import bar_chart
from monai_wsss.reports.charts import ChartLine, line_chart

__all__ = ["make_cmer_thresholds", "make_cmer_transforms"]


_ALONE = (BASELINE, SEAM_SCALE, SEAM_ALL)
"""Rows that use no other modality."""


def _transform_chart(paper: CmerPaper, rows: RowsOfSets) -> Markup:
    """Draw DSC by the kind of transform, for each modality, beside the baseline."""
    ((table, own),) = [(paper.tables[one], own) for one, own in rows.items()]
    names = [entry.name for entry in table.entries]
    lines = {name: [row for row in own if row.name == name] for name in names}
    data: Any = table.data
    values = {
        group: [float(np.mean(values_of(lines[name], "dice_subject", group))) for name in names]
        for group in data.modalities
    }
    kinds = {SEAM_SCALE: "scale", SEAM_ALL: "all"}
    bars = [kinds.get(name, name.removeprefix("L_ER alone, ")) for name in names]
    return bar_chart(bars, values, title=paper.title, y_label="DSC", y_range=(0.0, 1.0))


def _threshold_chart(modality: str, paper: CmerPaper, rows: RowsOfSets) -> Markup:
    """Draw DSC against the threshold of the max-normalized map of a modality, a mean over seeds; it chooses nothing.

    Writes the curves beside the figure, as ``<name>_<modality>.json``.
    """
    curves: dict[str, dict[str, list[float]]] = {}
    for one, table in paper.tables.items():
        data: Any = table.data
        if modality not in data.modalities:
            continue
        for entry in table.entries:
            found = [_sweep(data, modality, table.trained(entry.name, seed)) for seed in table.seeds]
            (tumor,) = found[0]["classes"]
            dice = np.mean([sweep["classes"][tumor]["dice_subject"] for sweep in found], axis=0)
            name = entry.name if entry.name in _ALONE else f"{entry.name}, {one}"
            curves[name] = {"threshold": found[0]["thresholds"], "dice_subject": dice.tolist()}
    curves = dict(sorted(curves.items(), key=lambda item: item[0] not in _ALONE))  # alike in all figures, first
    write_json(paper.out / f"{paper.name}_{modality}.json", curves)
    return line_chart(
        [ChartLine(name, curve["threshold"], curve["dice_subject"]) for name, curve in curves.items()],
        title=f"{modality}. {paper.title}",
        x_label="threshold of the max-normalized map",
        y_label="DSC",
        y_range=(0.0, 1.0),
    )


def _sweep(data: Slices, modality: str, one: Trained) -> dict[str, Any]:
    cases = data.cases(one.recipe)
    maps = data.maps(cases, one.method.network, one.recipe.views)
    rule = replace(rule_of(one.method.network, "max"), reliable=taking_part(data, modality))
    return data.measure_maps(cases, maps, rule, sweep=True).sweep()


def make_cmer_transforms(datalist: Path, out: Path, **options: Unpack[CmerOptions]) -> CmerPaper:
    """Make Fig. 3: L_ER with each kind of transform beside the baseline; arguments of :func:`make_cmer_comparison`.

    Raises:
        ValueError: more than one set.
    """
    run = CmerRun.of(datalist, out, "all", **options)
    if len(run.sets) > 1:
        raise ValueError(f"Expected one set in `sets`, whose modalities are drawn side by side, got {len(run.sets)}.")
    (one,) = run.sets
    columns = columns_of(one.split("+"), {"DSC": "dice_subject"})
    tables = {one: run.table("cmer_transforms", one, transform_recipes(run.scale), columns=columns)}
    draw = {"cmer_transforms.svg": _transform_chart}
    return CmerPaper("cmer_transforms", run.title("Fig. 3"), run.out, tables, by_set, draw)


def make_cmer_thresholds(datalist: Path, out: Path, **options: Unpack[CmerOptions]) -> CmerPaper:
    """Make Fig. 4: DSC against the threshold, for each modality; arguments of :func:`make_cmer_comparison`.

    Baseline and SEAM's equivariance, which use no other modality, are drawn from the largest set.
    """
    run = CmerRun.of(datalist, out, "both", **options)
    recipes = comparison_recipes(run.scale, run.papers)
    proposed = {name: recipes[name] for name in (proposed_name(run.scale, run.papers),)}
    largest = max(run.sets, key=lambda one: one.count("+"))
    tables = {
        one: run.table(
            "cmer_thresholds",
            one,
            recipes if one == largest else proposed,
            columns=columns_of(one.split("+"), {"DSC": "dice_subject"}),
        )
        for one in run.sets
    }
    modalities = dict.fromkeys(name for one in run.sets for name in one.split("+"))
    draw = {f"cmer_thresholds_{name}.svg": partial(_threshold_chart, name) for name in modalities}
    return CmerPaper("cmer_thresholds", run.title("Fig. 4"), run.out, tables, by_set, draw)
