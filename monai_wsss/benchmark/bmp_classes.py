# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Tables II and VI of BMP and its Fig. 7 for any number of classes, run small.

| column        | images               | mask                                                                | paper   |
|---------------|----------------------|---------------------------------------------------------------------|---------|
| `seeds train` | training, see below  | class maps as they are, cut at the middle between ``low``, ``high`` | Tab. II |
| `seeds`       | ``split``            | the same                                                            | text    |
| `C train`     | training, see below  | the labels Y^c that the maps become, with nothing ignored           | Tab. VI |
| `C`           | ``split``            | the same                                                            | Tab. VI |
| `S`           | ``split``            | segmentation branch: what is deployed                               | Tab. VI |

All are the mean IoU over the classes and the background, of pooled pixels, before any CRF; the rows keep the IoU of
each class and of the background.  Seeds and labels hold the classes of the image's label, as in the paper; the
segmentation may hold all.  One in four training images with masks is measured.

Fig. 7 is drawn from the same trainings, measured on ``split`` some ten times each: the mIoU of seeds and of the
segmentation by iteration, with the classification branch alone, without feedback (c2s), and with it (s2c).  Class maps
that begin at the healthy level are measured from its end of the warm-up on.

The networks are those of ``bmp_recipes.py``, small and from scratch, which the title says; the paper's own are trained
by the bundle's ``paper_voc.json`` and measured by its ``evaluate_branches.json``.  Masks are read to measure, and to
train the row that says so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from monai_wsss._checks import DataError
from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, TABLE_SIX
from monai_wsss.benchmark.bmp_table import BmpTable
from monai_wsss.benchmark.formatting import Column
from monai_wsss.benchmark.prepared import Cases, Slices
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.data import check_trainable, load_datalist
from monai_wsss.engines import BranchEvaluation, BranchLog
from monai_wsss.inferers import MinMax, MultiScaleSeeds
from monai_wsss.methods import WSSSMethod
from monai_wsss.reports.charts import ChartLine, line_chart

__all__ = ["BmpClasses", "ClassImages", "make_bmp_classes"]

_EVERY, _POINTS = 4, 10
_FOLLOWED = {
    "classification branch only": "classification alone",
    "+ c2s": "without feedback",
    "+ s2c": "with feedback",
}
_BRANCHES = {("M", "given"): "seeds", ("Y", "given"): "C", ("S", "none"): "S"}
_HEADS = ("seeds train", "seeds", "C train", "C", "S")
_COLUMNS = [
    *(Column(f"{head}, mIoU", "miou_pooled", head) for head in _HEADS),
    Column("background IoU of S", "iou_pooled/background", "S"),
    Column("ratio of S", "miou_pooled", "S", "ratio", bound="S"),
]


class ClassImages(Slices):
    """Slices or photographs with any number of classes, brought to one grid regardless of their proportions."""

    def check(self) -> None:
        """Refuse data in which a class is in all or in none of the training images.

        Raises:
            DataError: so it is.
        """
        check_trainable(load_datalist(self.datalist, "training"))


@dataclass(frozen=True)
class BmpClasses(BmpTable):
    """The table, and what is measured while the rows of Fig. 7 are trained."""

    what: str = "Tables II and VI, without CRF,"

    def handlers(self, recipe: str, method: WSSSMethod, folder: Path, steps: int) -> list[Any]:
        """Log the branches of the rows of Fig. 7 on unseen images; the training goes on as if nobody had measured."""
        if recipe not in _FOLLOWED:
            return []
        evaluation = BranchEvaluation.of(method, self.data.datalist, label_filters=_filters(), grid=self._images.grid)
        loaders = {self.data.split: _one_by_one(self._images.cases(self.recipes[recipe]))}
        return [BranchLog(evaluation, loaders, folder, iterations=max(1, steps // _POINTS))]

    @property
    def _images(self) -> ClassImages:
        assert isinstance(self.data, ClassImages)
        return self.data


def make_bmp_classes(
    datalist: Path,
    out: Path,
    *,
    recipes: Mapping[str, Recipe] = TABLE_SIX,
    epochs: int = 8,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    grid: tuple[int, int] = (64, 64),
) -> BmpClasses:
    """Make Tables II and VI of BMP for any number of classes, and its Fig. 7, run small.

    Args:
        datalist: path of a prepared ``datalist.json`` of slices or photographs.
        out: folder for weights, rows, the table and the charts; not that of the table of one class.
        recipes: the recipes of two branches; full supervision of the same network is added.
        epochs: epochs of each training.
        seeds: seeds of each recipe.
        split: where the unseen images lie.
        grid: in-plane size of the networks, in pixels.
    """
    data = ClassImages(datalist, split, grid)
    charts = {
        "bmp_seeds.svg": partial(_curves, "M", "seeds", "Fig. 7a, run small"),
        "bmp_segmentation.svg": partial(_curves, "S", "segmentation", "Fig. 7b, run small"),
    }
    entries = [Entry(name, partial(_both_branches, data, name), name) for name in recipes]
    entries += [Entry(name, partial(_bound, data), name) for name in BMP_BOUND]
    return BmpClasses(
        "bmp_classes", data, out, {**recipes, **BMP_BOUND}, entries, _COLUMNS, epochs=epochs, seeds=seeds,
        figures=charts if "+ c2s" in recipes else {},
    )  # fmt: skip


# ---- measuring -------------------------------------------------------------------------------------------------------


def _filters() -> list[str]:
    return sorted({label_filter for _, label_filter in _BRANCHES})


def _one_by_one(cases: Cases) -> list[dict[str, torch.Tensor]]:
    """Give cases as batches of one."""
    batches = []
    for case in cases:
        batch = {"image": torch.as_tensor(case["image"])[None], "label": torch.as_tensor(case["label"])[None]}
        batches.append(batch | ({"mask": torch.as_tensor(case["mask"])[None]} if "mask" in case else {}))
    return batches


def _both_branches(
    data: ClassImages, name: str, table: BenchmarkTable, trained: Sequence[Trained]
) -> Iterator[Measured]:
    """Measure both branches of a trained row, and give what was logged while it was trained."""
    (one,) = trained
    evaluation = BranchEvaluation.of(one.method, data.datalist, label_filters=_filters(), grid=data.grid)
    evaluation.prepare(data.loader(data.items(one.recipe, 0), one.recipe, 0))
    teaches = one.method.settings["c2s_weight"] > 0
    for split, every, end in (("training", _EVERY, " train"), (data.split, 1, "")):
        for row in evaluation.measure(_one_by_one(data.cases(one.recipe, split, every)), split=split):
            column = _BRANCHES.get((row["branch"], row["label_filter"]))
            # Nothing teaches the segmentation of the first row, and the paper has no number there.
            if column is not None and f"{column}{end}" in _HEADS and (teaches or column != "S"):
                yield Measured(f"{column}{end}", _metrics(row["miou"], row["iou"]), split)
    yield from _logged(table.folder(name, one.seed) / "branches.csv", teaches)


def _logged(path: Path, teaches: bool) -> Iterator[Measured]:
    """Give each measurement of a training by its iteration; none where nothing was logged."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            shown = _BRANCHES.get((line["branch"], line["label_filter"]))
            if shown in ("seeds", "S") and (teaches or shown != "S") and line["miou"]:
                yield Measured(
                    f"{line['branch']} at {line['iteration']}", {"miou_pooled": {"mean": float(line["miou"])}}
                )


def _bound(data: ClassImages, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the segmentation of full supervision, over the image and its mirror image as that of the other rows."""
    (one,) = trained
    evaluation = BranchEvaluation(
        {"network": one.method.network}, MultiScaleSeeds(MinMax(), (1.0,)), [lambda: 0.5], data.header["classes"],
        background=data.header["background"], label_filters=["none"], grid=data.grid,
    )  # fmt: skip
    for row in evaluation.measure(_one_by_one(data.cases(one.recipe)), split=data.split):
        if row["branch"] == "S":
            yield Measured("S", _metrics(row["miou"], row["iou"]))


def _metrics(miou: float | None, ious: Mapping[str, float | None]) -> dict[str, dict[str, Any]]:
    values = {"miou_pooled": miou, **{f"iou_pooled/{name}": iou for name, iou in ious.items()}}
    return {name: {"mean": value} for name, value in values.items() if value is not None}


# ---- Fig. 7 ----------------------------------------------------------------------------------------------------------


def _curves(branch: str, what: str, title: str, table: BenchmarkTable, rows: Sequence[Row]) -> Markup:
    """Draw the mIoU of a branch by iteration, means over seeds; rows without such measurements are left out.

    Raises:
        DataError: no row has one.
    """
    lines = []
    for name, shown in _FOLLOWED.items():
        points: dict[int, list[float]] = {}
        for row in rows:
            kind, _, iteration = row.column.partition(" at ")
            if row.name == name and kind == branch and iteration:
                points.setdefault(int(iteration), []).append(row.metrics["miou_pooled"]["mean"])
        if points:
            x = sorted(points)
            lines.append(ChartLine(shown, x, [float(np.mean(points[iteration])) for iteration in x]))
    if not lines:
        raise DataError(f"Nothing was measured while {', '.join(_FOLLOWED)} were trained: train for more steps.")
    text = f"{title} on {table.data.header['name']}: mIoU of the {what} by iteration"
    return line_chart(lines, title=text, x_label="iteration", y_label="mIoU")
