# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The figures of CoinGAN, from rows and weights of its table in the same folder.

| file               | paper  | shows                                                                               |
|--------------------|--------|-------------------------------------------------------------------------------------|
| `lambda.svg`       | Fig. 4 | DSC on the left axis and JC on the right one by lambda, each a training of its own  |
| `panels/*.png`     | Fig. 5 | unseen images with the masks of each row of the ladder, of plain CAM and of the     |
|                    |        | generator with masks, of those rows whose weights are there                         |
| `conversions.png`  | Fig. 6 | the same images, converted by all of CoinGAN, what was changed, and the masks       |
| `switches.png`     | –      | the same, with one column per row of the ladder                                     |

Lambda is trained where rows are missing; nothing else is.  The images are chosen by the Dice of all of CoinGAN, from
the worst to the best: masks are read to choose and to draw what is shown, and for nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from monai_wsss._files import case_file_name, make_directory
from monai_wsss.benchmark.coingan_recipes import ALL, LADDER, LAMBDAS
from monai_wsss.benchmark.coingan_table import CoinganTable, deployed_rule, lambda_rows, make_coingan_table
from monai_wsss.benchmark.formatting import values_of
from monai_wsss.benchmark.prepared import Cases
from monai_wsss.benchmark.recipes import FULL_SUPERVISION
from monai_wsss.benchmark.rows import Row
from monai_wsss.benchmark.shown_cases import spread_by_dice, write_png
from monai_wsss.benchmark.table import BenchmarkTable, Trained
from monai_wsss.reports import render_comparison, render_conversions, render_switches, write_svg
from monai_wsss.reports.charts import ChartLine
from monai_wsss.reports.two_axis_chart import two_axis_chart

__all__ = ["CoinganFigures", "lambda_chart", "make_coingan_figures"]

logger = logging.getLogger(__name__)

_PANELS = 5
_SHOWN = (*LADDER, "plain CAM", f"{FULL_SUPERVISION} (masks), same network")


@dataclass(frozen=True)
class CoinganFigures(CoinganTable):
    """The rows of lambda, their chart, and pictures of the table of CoinGAN in the same folder."""

    def run(self) -> list[Row]:
        """Train and measure the rows of lambda that are missing; write the chart, the panels and the conversions."""
        rows = self.made_rows()
        if len(lambda_rows(rows)) > 1:
            write_svg(self.out / "lambda.svg", lambda_chart(rows))
        _write_pictures(self)
        logger.info("Figures: %s", self.out)
        return rows


def make_coingan_figures(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the figures of CoinGAN; lambda and the pictures are of the first seed.

    Args:
        datalist: path of a prepared ``datalist.json``.
        out: folder of the table of CoinGAN, with its weights and rows.
        seeds: the first one is taken.
        split: where the unseen images lie.
        runs: folder with rows of earlier sessions, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
        rows: which rows to make, see there.
    """
    table: Any = make_coingan_table(datalist, out, split=split)
    entries = [replace(entry, draws="first") for entry in table.entries if entry.name in LAMBDAS.values()]
    return CoinganFigures(
        table.name, table.data, out, table.recipes, entries, table.columns, seeds=seeds[:1], runs=runs, rows=rows
    )


def lambda_chart(rows: Sequence[Row]) -> Markup:
    """Draw DSC and JC of the paper's protocol by lambda, with a ring at 0.3.

    Args:
        rows: of the table; means are taken over seeds.
    """
    shown = lambda_rows(rows)
    values = sorted({float(row.name) for row in shown})
    mark = values.index(0.3) if 0.3 in values else None
    lines = [
        ChartLine(name, values, [_mean(shown, value, metric) for value in values], mark=mark)
        for name, metric in (("DSC", "paper_dice_macro_pooled"), ("JC", "paper_miou_pooled"))
    ]
    return two_axis_chart(*lines, title="DSC and JC by lambda, each value trained anew", x_label="lambda")


def _mean(rows: Sequence[Row], value: float, metric: str) -> float:
    return float(np.mean(values_of([row for row in rows if float(row.name) == value], metric)))


# ---- pictures --------------------------------------------------------------------------------------------------------


def _write_pictures(table: CoinganFigures) -> None:
    """Draw some unseen images with the masks of rows, and with their conversions, where the weights are there."""
    seed = table.seeds[0]
    names = [name for name in _SHOWN if (table.folder(name, seed) / "model.pt").is_file()]
    if ALL not in names:
        logger.warning("No panels: make the row of all of CoinGAN of --table coingan in %s first.", table.out)
        return
    trained = {name: table.trained(name, seed) for name in names}
    cases = _some_cases(table.data, trained[ALL])
    masks = {name: [mask[0] for mask in _masks_of(table.data, one, cases)] for name, one in trained.items()}
    folder = make_directory(table.out / "panels")
    note = f"seed {seed}; masks are read to choose cases and to compare"
    for place, case in enumerate(cases):
        shown = {_short(name): of_row[place] for name, of_row in masks.items()}
        reference = torch.as_tensor(case["mask"])[0]
        panel = render_comparison(case["image"], shown, reference, channel_names=table.data.modalities, note=note)
        write_png(folder / f"{case_file_name(case['id'])}.png", panel)
    _write_conversions(table, {name: trained[name] for name in LADDER if name in trained}, cases, masks)


def _write_conversions(
    table: CoinganFigures, ladder: dict[str, Trained], cases: Cases, masks: dict[str, list[torch.Tensor]]
) -> None:
    """Draw the cases as all of CoinGAN converts them, and as each row of the ladder does."""
    images = [torch.as_tensor(case["image"]) for case in cases]
    references = [torch.as_tensor(case["mask"])[0] for case in cases]
    converted = {name: _converted(one, images) for name, one in ladder.items()}
    steps = [[image] for image in converted[ALL]]
    grid = render_conversions(images, steps, masks=masks[ALL], references=references)
    write_png(table.out / "conversions.png", grid)
    results = {_short(name): list(zip(converted[name], masks[name], strict=True)) for name in ladder}
    write_png(table.out / "switches.png", render_switches(images, results, references=references))


def _short(name: str) -> str:
    """Leave out what stands in brackets: columns are narrow."""
    return name.partition(" (")[0]


def _own(data: Any, one: Trained, cases: Cases) -> Cases:
    """Give the same cases as the network of a recipe gets them."""
    chosen = [case["id"] for case in cases]
    found = {case["id"]: case for case in data.measured_cases(one.recipe) if case["id"] in chosen}
    return [found[name] for name in chosen]


def _some_cases(data: Any, one: Trained) -> Cases:
    """Choose diseased cases, evenly from the lowest Dice to the highest; masks are read."""
    cases = [case for case in data.measured_cases(one.recipe) if case.get("mask") is not None and np.any(case["mask"])]
    chosen = spread_by_dice(_masks_of(data, one, cases), [case["mask"] for case in cases], _PANELS)
    return [cases[place] for place in chosen]


def _masks_of(data: Any, one: Trained, cases: Cases) -> list[torch.Tensor]:
    """Give the deployed masks (1, *S) of cases."""
    own = _own(data, one, cases)
    network: Any = one.method.network
    rule = deployed_rule(network, one.recipe)
    return [rule.mask(scores)[0] for scores in data.maps(own, network, one.recipe.views)]


@torch.no_grad()
def _converted(one: Trained, images: list[torch.Tensor]) -> list[torch.Tensor]:
    """Give the conversions of images (C, *S), all in the range of the generator."""
    network: Any = one.method.network
    return [network.translate(image[None].float())[0] for image in images]
