# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of BMP: both branches' pseudo-masks of the training images, the masks of unseen ones, and the dense CRF.

| column      | images               | mask                                                        | labels  |
|-------------|----------------------|-------------------------------------------------------------|---------|
| ``C train`` | training, see below  | classification branch, what it teaches with nothing ignored | given   |
| ``S train`` | the same             | segmentation branch                                         | given   |
| ``C``       | ``split``            | classification branch                                       | its own |
| ``S``       | ``split``            | segmentation branch: what is deployed                       | none    |
| ``S + CRF`` | ``split``            | the same after a fully connected CRF                        | none    |

Of the training images one in four of those with masks is measured: they are many, and alike.  The CRF is measured for
whole methods, not for the rungs of the ladder.  Masks are read to measure, and to train the row that says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, BMP_RECIPES, TABLE_SIX
from monai_wsss.benchmark.recipe_table import Cases, RecipeTable, Row, format_cell, maps_of
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.cams import rescale_maps
from monai_wsss.data import load_header
from monai_wsss.inferers import VolumeInferer
from monai_wsss.methods import BMP, WSSSMethod
from monai_wsss.metrics import CaseTable
from monai_wsss.refinement import DenseCRF, to_mask
from monai_wsss.transforms import resize_in_plane

__all__ = ["BmpTable"]

_EVERY = 4
_RUNGS = tuple(TABLE_SIX)[:-1]
_TRAINING, _UNSEEN = ("C train", "S train"), ("C", "S", "S + CRF")


@dataclass(frozen=True)
class BmpTable(RecipeTable):
    """Table VI of BMP, AFA, the presets and full supervision; the arguments are those of :class:`RecipeTable`."""

    name: ClassVar[str] = "bmp"
    recipes: ClassVar[dict[str, Recipe]] = BMP_RECIPES
    bound: ClassVar[dict[str, Recipe]] = BMP_BOUND

    def _all_rows(self) -> Iterator[tuple[str, list[Row]]]:
        header = load_header(self.datalist)
        channels, classes = len(header["modality"]), len(header["classes"])
        for name, recipe in {**self.recipes, **self.bound}.items():
            methods = [self._train(name, recipe, seed, channels, classes).eval() for seed in self.seeds]
            for method in methods:
                if isinstance(method, BMP) and method.seed_scale == "reference":
                    method.measure_negative_reference(self._loader(recipe, 0, masks=False))
            for split, columns in (("training", _TRAINING), (self.split, _UNSEEN)):
                cases = self._cases(recipe.by_subject, split)
                if split == "training":
                    cases = cases[::_EVERY]
                for column in columns:
                    left_out = column == "S + CRF" and name in _RUNGS
                    if (isinstance(methods[0], BMP) or column in ("S", "S + CRF")) and not left_out:
                        yield f"{name} / {column}", [self._column(column, method, cases, recipe) for method in methods]

    def _column(self, column: str, method: WSSSMethod, cases: Cases, recipe: Recipe) -> Row:
        if column.startswith("C"):
            return self._score(cases, [self._class_mask(method, case, given="train" in column) for case in cases])
        inferer = VolumeInferer(2, grid=self.grid, views=recipe.views)
        logits = maps_of(cases, partial(inferer, network=method.network))
        if column == "S train":
            label = [torch.as_tensor(case["label"])[None] for case in cases]
            given: dict[str, Any] = {"output_kind": "segmentation", "gate": "given"}
            masks = [to_mask(scores, label=y, **given) for scores, y in zip(logits, label, strict=True)]
            return self._score(cases, masks)
        if column == "S":
            return self._score(cases, [to_mask(scores, output_kind="segmentation") for scores in logits])
        start = time.perf_counter()
        crf = DenseCRF.from_preset("bmp", intensity_range=1.0)
        masks = []
        for case, scores in zip(cases, logits, strict=True):
            # Intensities as shares of the image's range: the published kernels are for images of 8 bits.
            image = rescale_maps(torch.as_tensor(case["image"])[None].float())
            masks.append(to_mask(crf(image, scores.softmax(1)).log(), output_kind="segmentation"))
        seconds = (time.perf_counter() - start) / len(cases)
        return self._score(cases, masks) | {"crf_seconds": {"mean": seconds}}

    @torch.no_grad()
    def _class_mask(self, method: Any, case: dict[str, Any], *, given: bool) -> torch.Tensor:
        """The classification branch's mask of one image, for its labels or for those that it predicts itself."""
        image = torch.as_tensor(case["image"])[None].float()
        on_grid = resize_in_plane(image, self.grid)
        label = torch.as_tensor(case["label"])[None].float()
        if not given:
            label = (method.network.branches(on_grid, upsample=False).logits > 0).float()
        mask = method.class_branch_mask(on_grid, label)
        return resize_in_plane(mask.float(), image.shape[2:]).round().to(torch.uint8)

    def _score(self, cases: Cases, masks: Sequence[torch.Tensor]) -> Row:
        table = CaseTable(load_header(self.datalist)["classes"])
        for case, mask in zip(cases, masks, strict=True):
            table.add(
                id=case["id"],
                subject=case["subject"],
                label=case["label"],
                prediction=mask[0],
                reference=case.get("mask"),
            )
        return table.summary()

    def format(self, rows: dict[str, list[Row]]) -> str:
        """A row a recipe: Dice per subject in each column, the CRF's seconds an image, S against full supervision."""
        columns = (*_TRAINING, *_UNSEEN)
        (bound,) = self.bound
        full = _mean_dice(rows.get(f"{bound} / S", []))
        lines = [f"| row | {' | '.join(columns)} | CRF, s | ratio |", "|---" * (len(columns) + 3) + "|"]
        for name in dict.fromkeys(row.rsplit(" / ", 1)[0] for row in rows):
            cells = [format_cell(rows.get(f"{name} / {column}", []), "dice_subject") for column in columns]
            dice = _mean_dice(rows.get(f"{name} / S", []))
            ratio = f"{dice / full:.2f}" if full > 0 else "–"
            seconds = format_cell(rows.get(f"{name} / S + CRF", []), "crf_seconds")
            lines.append(f"| {name} | {' | '.join(cells)} | {seconds} | {ratio} |")
        return "\n".join(lines)


def _mean_dice(results: list[Row]) -> float:
    return float(np.mean([row["dice_subject"]["mean"] for row in results])) if results else 0.0
