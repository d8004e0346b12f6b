# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The figures of CoSA: how good its labels are as training goes on.  They READ MASKS, of unseen images.

| file                        | paper    | shows                                                                  |
|-----------------------------|----------|------------------------------------------------------------------------|
| `accuracy_by_confidence`    | Fig. 3a  | share of rightly labeled pixels by nu, at several iterations           |
| `accuracy_by_perplexity`    | Fig. 3b  | the same by P                                                          |
| `confidence`                | Fig. 3c  | how nu is distributed, with xi as a ring                               |
| `curves_cpl`, `curves_s`    | Fig. 8   | mIoU of both networks by iteration, with and without SA                |
| `raw_boxes`                 | Fig. 9   | mIoU, perplexity and their distance to (1, 0) of the CPL of each image |
| `raw_perplexity`            | Fig. 9   | mean perplexity by iteration, with and without RAW                     |
| `panels/*.png`              | Fig. 7   | unseen images with the CPL of each additive row                        |

Three rows of the table of CoSA are trained once more, and measured as they go on.  The charts are drawn from the rows
alone.  The panels show the additive rows of `--table cosa` whose weights lie in the same folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from monai_wsss._checks import DataError
from monai_wsss._files import case_file_name, make_directory
from monai_wsss.benchmark.cosa_branches import branch_maps, branch_masks, cuts_of
from monai_wsss.benchmark.cosa_data import CosaSlices, CosaTiles, cosa_data
from monai_wsss.benchmark.cosa_followed import CONFIDENCE, FOLLOWED, PERPLEXITY, Follower
from monai_wsss.benchmark.cosa_recipes import ADDITIVE, ALL, COSA_BUDGETS, cosa_recipes
from monai_wsss.benchmark.cosa_table import CosaTable, cosa_title
from monai_wsss.benchmark.formatting import Column, format_rows
from monai_wsss.benchmark.prepared import Cases
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.shown_cases import spread_by_dice, write_png
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.methods import WSSSMethod
from monai_wsss.reports import box_chart
from monai_wsss.reports.charts import ChartLine, line_chart
from monai_wsss.reports.panels import render_comparison

__all__ = ["COSA_FIGURES", "CosaFigures", "final_labels", "make_cosa_figures"]

logger = logging.getLogger(__name__)

_POINTS = 12
_SHOWN = 5  # iterations per chart, as many as it has colors
_PANELS = 4
_WITH, _NO_SA, _NO_RAW = "all of CoSA, followed", "all without SA, followed", "all without RAW, followed"
_FOLLOWED = {_WITH: ALL, _NO_SA: "all without SA", _NO_RAW: "all without RAW"}
_COLUMNS = [
    Column(f"{name} at the end", metric, "end")
    for name, metric in (("CPL", "cpl_miou"), ("S", "s_miou"), ("xi", "xi"), ("perplexity", "image_perplexity"))
]


@dataclass(frozen=True)
class CosaFigures(CosaTable):
    """Followed trainings, their charts, and panels of the table of CoSA in the same folder."""

    def handlers(self, recipe: str, method: WSSSMethod, folder: Path, steps: int) -> list[Any]:
        """Follow the training of the rows that are drawn."""
        if recipe not in _FOLLOWED:
            return []
        cases = _positive(self.data.measured_cases(self.recipes[recipe], self.data.split, 1))  # type: ignore[attr-defined]
        return [Follower(method, cases, self.data.side, folder, max(1, steps // _POINTS))]  # type: ignore[attr-defined]

    def run(self) -> list[Row]:
        """Train and measure what is missing; write the rows, the charts and the panels."""
        rows = super().run()
        _write_panels(self)
        return rows

    def format(self, rows: Sequence[Row]) -> str:
        """Give the last measurements as Markdown."""
        return f"**{self.title}**\n\n{final_labels(rows)}"


def final_labels(rows: Sequence[Row]) -> str:
    """Give the last measurements of followed trainings as Markdown.

    Args:
        rows: rows of all seeds.
    """
    return f"{format_rows(rows, _COLUMNS)}\n\nMasks of unseen images are read, to measure."


def make_cosa_figures(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the figures of CoSA; curves are means over seeds, panels are of the first seed.

    Args:
        datalist: path of a prepared ``datalist.json``.
        out: folder for weights, rows, charts and panels; the one of the table of CoSA, for panels.
        seeds: seeds of each followed training.
        split: where the unseen images lie.
        runs: folder with rows of earlier sessions, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
        rows: which rows to make, see there.
    """
    kind, data = cosa_data(datalist, split)
    budget = COSA_BUDGETS[kind]
    recipes = cosa_recipes(budget)
    followed = {name: recipes[of] for name, of in _FOLLOWED.items()}
    entries = [Entry(name, partial(_points, name), name, words={"points": _POINTS}) for name in followed]
    charts = {f"{name}.svg": draw for name, draw in COSA_FIGURES.items()}
    name = f"cosa_figures_{data.header['name']}"
    table = CosaFigures(name, data, out, {**recipes, **followed}, entries, _COLUMNS, seeds=seeds, figures=charts)
    return replace(table, runs=runs, rows=rows, title=cosa_title("Figures 3 and 7 to 9", data, budget))


def _points(name: str, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Give what was measured while a row was trained, point by point, and its last point again as its end.

    Raises:
        DataError: nothing was measured.
    """
    (one,) = trained
    path = table.folder(name, one.seed) / FOLLOWED
    if not path.is_file():
        raise DataError(
            f"{path} is missing: the class maps had no healthy level until the training ended. Train for more steps."
        )
    points = sorted(json.loads(path.read_text(encoding="utf-8")).items())
    for iteration, metrics in points:
        yield Measured(f"iteration {int(iteration)}", metrics)
    yield Measured("end", points[-1][1])


def _positive(cases: Cases) -> Cases:
    """Give the cases whose mask is at hand and holds the class."""
    return [case for case in cases if case.get("mask") is not None and bool(torch.as_tensor(case["mask"]).any())]


# ---- charts ----------------------------------------------------------------------------------------------------------


def _by_iteration(rows: Sequence[Row], name: str) -> dict[int, list[Row]]:
    """Give the rows of all seeds at each iteration of a followed training, in order."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row.name == name and row.column.startswith("iteration "):
            found.setdefault(int(row.column.removeprefix("iteration ")), []).append(row)
    return dict(sorted(found.items()))


def _mean(rows: Sequence[Row], metric: str) -> float:
    return float(np.mean([row.metrics[metric]["mean"] for row in rows]))


def _shown(points: dict[int, list[Row]]) -> dict[int, list[Row]]:
    """Choose some iterations, evenly spaced, with the first and the last."""
    numbers = list(points)
    places = np.linspace(0, len(numbers) - 1, min(_SHOWN, len(numbers))).round().astype(int)
    return {numbers[place]: points[numbers[place]] for place in places}


def _binned(rows: Sequence[Row], metric: str, part: str) -> np.ndarray:
    """Add the counts of all seeds."""
    return np.sum([row.metrics[metric][part] for row in rows], axis=0)


def _accuracy_chart(
    metric: str, edges: Sequence[float], label: str, table: BenchmarkTable, rows: Sequence[Row]
) -> Markup:
    """Draw the share of right labels by bins; those without pixels are left out, and the last one may have no end."""
    lines = []
    middles = [(low + min(high, 2 * low + 1)) / 2 for low, high in pairwise(edges)]
    for iteration, found in _shown(_by_iteration(rows, _WITH)).items():
        pixels, right = _binned(found, metric, "pixels"), _binned(found, metric, "right")
        filled = np.flatnonzero(pixels)
        share = (right[filled] / pixels[filled]).tolist()
        lines.append(ChartLine(f"iteration {iteration}", [middles[place] for place in filled], share))
    return line_chart(
        lines,
        title=f"Accuracy of CPL by {label} (reads masks)",
        x_label=label if edges[-1] <= 1 else f"{label} (last point: {edges[-2]:g} and more)",
        y_label="share of right labels (reads masks)",
        x_range=(0.0, max(1.0, middles[-1])),
        y_range=(0.0, 1.0),
    )


def _confidence_chart(table: BenchmarkTable, rows: Sequence[Row]) -> Markup:
    """Draw how the confidence is distributed above 0.05, as the threshold sees it, with a ring in the bin of xi."""
    lines: list[ChartLine] = []
    middles = [(low + high) / 2 for low, high in pairwise(CONFIDENCE[1:])]
    for iteration, found in _shown(_by_iteration(rows, _WITH)).items():
        pixels = _binned(found, "by_confidence", "pixels")[1:]
        share = pixels / max(pixels.sum(), 1)
        xi = _mean(found, "xi")
        mark = int(np.argmin(np.abs(np.array(middles) - xi)))
        lines.append(ChartLine(f"iteration {iteration}, xi {xi:.2f}", middles, share.tolist(), mark=mark))
    return line_chart(
        lines,
        title="Confidence of CPL and the dynamic threshold (reads masks to choose images)",
        x_label="confidence (ring: xi)",
        y_label=f"share of the pixels above {CONFIDENCE[1]:g} (reads masks to choose images)",
        x_range=(0.0, 1.0),
        y_range=(0.0, max(max(line.y) for line in lines)),
    )


def _curves(names: dict[str, tuple[str, str]], what: str, table: BenchmarkTable, rows: Sequence[Row]) -> Markup:
    """Draw metrics of followed trainings by iteration; ``names`` maps the legend to (row, metric)."""
    lines = []
    for legend, (name, metric) in names.items():
        points = _by_iteration(rows, name)
        if points:
            lines.append(ChartLine(legend, list(points), [_mean(found, metric) for found in points.values()]))
    what = f"{what} (reads masks)"
    return line_chart(lines, title=f"{what} by iteration", x_label="iteration", y_label=what)


def _networks_of(metric: str) -> dict[str, tuple[str, str]]:
    return {
        "assignment network": (_WITH, metric),
        "online network": (_WITH, f"online_{metric}"),
        "without SA (one network)": (_NO_SA, metric),
    }


def _raw_boxes(table: BenchmarkTable, rows: Sequence[Row]) -> Markup:
    """Draw the images' mIoU and perplexity at the end, and their mean distance to the best, (1, 0)."""
    names = ("mIoU", "mean perplexity", "mean distance to mIoU 1 and perplexity 0")
    groups: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for legend, name in (("with RAW", _WITH), ("without RAW", _NO_RAW)):
        ends = [row.metrics for row in rows if row.name == name and row.column == "end"]
        miou = [value for metrics in ends for value in metrics["image_miou"]["values"]]
        doubt = [value for metrics in ends for value in metrics["image_perplexity"]["values"]]
        if not ends:
            continue
        distance = [(abs(1 - own) + value) / 2 for own, value in zip(miou, doubt, strict=True)]
        for group, values in zip(groups.values(), (miou, doubt, distance), strict=True):
            group[legend] = values
    return box_chart(groups, title="CPL with and without RAW (reads masks)", y_label="CPL of each image (reads masks)")


COSA_FIGURES: dict[str, Callable[[BenchmarkTable, Sequence[Row]], Markup]] = {
    "accuracy_by_confidence": partial(_accuracy_chart, "by_confidence", CONFIDENCE, "confidence"),
    "accuracy_by_perplexity": partial(_accuracy_chart, "by_perplexity", PERPLEXITY, "perplexity"),
    "confidence": _confidence_chart,
    "curves_cpl": partial(_curves, _networks_of("cpl_miou"), "mIoU of CPL"),
    "curves_s": partial(_curves, _networks_of("s_miou"), "mIoU of S"),
    "raw_boxes": _raw_boxes,
    "raw_perplexity": partial(
        _curves,
        {"with RAW": (_WITH, "image_perplexity"), "without RAW": (_NO_RAW, "image_perplexity")},
        "mean perplexity of CPL",
    ),
}
"""Name of the file -> function of (table, rows) that draws it."""


# ---- panels ----------------------------------------------------------------------------------------------------------


def _write_panels(table: CosaFigures) -> None:
    """Draw unseen images with the CPL of each additive row whose weights are there."""
    data: Any = table.data
    seed = table.seeds[0]
    names = [name for name in ADDITIVE if (table.folder(name, seed) / "model.pt").is_file()]
    if not names:
        logger.warning("No panels: make the rows of --table cosa in %s first.", table.out)
        return
    masks: dict[str, list[torch.Tensor]] = {}
    for name in names:
        one = table.trained(name, seed)
        cases = _positive(data.measured_cases(one.recipe, data.split, 1))
        masks[name] = _masks_of(data, one, cases)
    folder = make_directory(table.out / "panels")
    for place in spread_by_dice(masks[names[-1]], [case["mask"] for case in cases], _PANELS):
        case = cases[place]
        # The tiles are narrow: what stands in brackets is left out.
        shown = {name.partition(" (")[0]: masks[name][place][0] for name in names}
        reference = torch.as_tensor(case["mask"])[0]
        note = f"CPL of each row, labels given, seed {seed}; masks are read to choose cases and to compare"
        panel = render_comparison(case["image"], shown, reference, channel_names=data.modalities, note=note)
        write_png(folder / f"{case_file_name(case['id'])}.png", panel)


def _masks_of(data: CosaTiles | CosaSlices, one: Trained, cases: Cases) -> list[torch.Tensor]:
    """Give the CPL (1, *S) of cases."""
    method: Any = one.method
    cuts = cuts_of(method)
    maps = branch_maps(method.seeds, method.network, cases, data.side)
    return [
        branch_masks(of_case, cuts, torch.as_tensor(case["label"]))["CPL"]
        for of_case, case in zip(maps, cases, strict=True)
    ]
