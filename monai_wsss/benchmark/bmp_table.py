# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of BMP for one class, run small: both branches' masks of training images and of unseen ones, and the CRF.

| column      | images               | mask                                                        | labels  |
|-------------|----------------------|-------------------------------------------------------------|---------|
| ``C train`` | training, see below  | classification branch, what it teaches with nothing ignored | given   |
| ``S train`` | the same             | segmentation branch                                         | given   |
| ``C``       | ``split``            | classification branch                                       | its own |
| ``S``       | ``split``            | segmentation branch: what is deployed                       | none    |
| ``S + CRF`` | ``split``            | the same after a fully connected CRF                        | none    |

One in four training images with masks is measured: they are many, and alike.  The CRF is measured for whole methods,
not for the rungs of the ladder.  Masks are read to measure, and to train the row that says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, BMP_RECIPES, TABLE_SIX
from monai_wsss.benchmark.formatting import Column
from monai_wsss.benchmark.prepared import Cases, Slices
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.cams import rescale_maps
from monai_wsss.refinement import DenseCRF, to_mask
from monai_wsss.transforms import resize_in_plane

__all__ = ["BMP_COLUMNS", "BmpTable", "make_bmp_table"]

_EVERY = 4
_RUNGS = tuple(TABLE_SIX)[:-1]
BMP_COLUMNS = [
    *(Column(head, "dice_subject", head) for head in ("C train", "S train", "C", "S", "S + CRF")),
    Column("CRF, s", "crf_seconds", "S + CRF"),
    Column("ratio", "dice_subject", "S", "ratio", bound="S"),
]


@dataclass(frozen=True)
class BmpTable(BenchmarkTable):
    """A table of the small networks, whose title says what of the paper it is and that it is not the paper's run.

    Attributes:
        what: the paper's tables.
    """

    what: str = "Table VI"

    def format(self, rows: Sequence[Row]) -> str:
        """Give the title and the rows as Markdown."""
        title = (
            f"{self.what} of Zhu et al. (BMP), run small on {self.data.header['name']}: a convolutional pyramid of "
            f"width 16 from scratch, {self.epochs} epochs. Not the paper's run"
        )
        return f"**{title}**\n\n{super().format(rows)}"


def make_bmp_table(
    datalist: Path,
    out: Path,
    *,
    recipes: Mapping[str, Recipe] = BMP_RECIPES,
    epochs: int = 8,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    grid: tuple[int, int] = (64, 64),
    runs: Path | None = None,
) -> BmpTable:
    """Make the table of BMP: its Table VI, AFA, the presets and full supervision, run small on slices with one class.

    Args:
        datalist: path of the prepared ``datalist.json``.
        out: folder for weights, rows and the table.
        recipes: the recipes of two branches; full supervision of the same network is added.
        epochs: epochs of each training.
        seeds: seeds of each recipe.
        split: where the unseen images lie.
        grid: in-plane size of the networks, in pixels.
        runs: folder with rows of earlier runs, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
    """
    data = Slices(datalist, split, grid)
    entries = [Entry(name, partial(_both_branches, data, name not in _RUNGS), name) for name in recipes]
    entries += [Entry(name, partial(_segmentation_branch, data, True), name) for name in BMP_BOUND]
    trained = {**recipes, **BMP_BOUND}
    return BmpTable("bmp", data, out, trained, entries, BMP_COLUMNS, epochs=epochs, seeds=seeds, runs=runs)


def _both_branches(
    data: Slices, with_crf: bool, table: BenchmarkTable, trained: Sequence[Trained]
) -> Iterator[Measured]:
    """Measure the masks of the classification branch and of the segmentation branch."""
    (one,) = trained
    method: Any = one.method
    method.measure_negative_reference(data.loader(data.items(one.recipe, 0), one.recipe, 0))
    cases = data.cases(one.recipe, "training", _EVERY)
    masks = [_class_mask(data, method, case, given=True) for case in cases]
    yield Measured("C train", data.measure_masks(cases, masks), "training")
    logits = data.maps(cases, method.network, one.recipe.views)
    given: dict[str, Any] = {"output_kind": "segmentation", "gate": "given"}
    masks = [
        to_mask(scores, label=torch.as_tensor(case["label"])[None], **given)
        for case, scores in zip(cases, logits, strict=True)
    ]
    yield Measured("S train", data.measure_masks(cases, masks), "training")
    cases = data.cases(one.recipe)
    masks = [_class_mask(data, method, case, given=False) for case in cases]
    yield Measured("C", data.measure_masks(cases, masks))
    yield from _segmentation_branch(data, with_crf, table, trained)


def _segmentation_branch(
    data: Slices, with_crf: bool, table: BenchmarkTable, trained: Sequence[Trained]
) -> Iterator[Measured]:
    """Measure what is deployed, and the same after the CRF."""
    (one,) = trained
    cases = data.cases(one.recipe)
    logits = data.maps(cases, one.method.network, one.recipe.views)
    masks = [to_mask(scores, output_kind="segmentation") for scores in logits]
    yield Measured("S", data.measure_masks(cases, masks))
    if with_crf:
        masks, seconds = _refined(cases, logits)
        yield Measured("S + CRF", data.measure_masks(cases, masks) | {"crf_seconds": {"mean": seconds}})


def _refined(cases: Cases, logits: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], float]:
    """Give the masks after the CRF, and its seconds per image."""
    start = time.perf_counter()
    crf = DenseCRF.from_preset("bmp", intensity_range=1.0)
    masks = []
    for case, scores in zip(cases, logits, strict=True):
        # Intensities as shares of the image's range: the published kernels are for images of 8 bits.
        image = rescale_maps(torch.as_tensor(case["image"])[None].float())
        masks.append(to_mask(crf(image, scores.softmax(1)).log(), output_kind="segmentation"))
    return masks, (time.perf_counter() - start) / len(cases)


@torch.no_grad()
def _class_mask(data: Slices, method: Any, case: dict[str, Any], *, given: bool) -> torch.Tensor:
    """Give the classification branch's mask of one image, for its labels or for those that it predicts itself."""
    image = torch.as_tensor(case["image"])[None].float()
    on_grid = resize_in_plane(image, data.grid)
    label = torch.as_tensor(case["label"])[None].float()
    if not given:
        label = (method.network.branches(on_grid, upsample=False).logits > 0).float()
    mask = method.class_branch_mask(on_grid, label)
    return resize_in_plane(mask.float(), image.shape[2:]).round().to(torch.uint8)
