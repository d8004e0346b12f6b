# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The tables and figures of the CMER paper on any prepared dataset of slices with several modalities.

| class                | paper             | what                                                                      |
|----------------------|-------------------|---------------------------------------------------------------------------|
| `CmerTable`          | Tables I to III   | Dice of each modality and of their fusion, for each combination of losses |
| `CmerFullResolution` | Table I           | the same with the paper's network                                         |
| `CmerErrors`         | Table V           | under- and over-segmentation, r_u = FN/TP and r_o = FP/TP                 |
| `CmerThresholds`     | Fig. 4            | Dice against the threshold: plain CAM, SEAM, CMER                         |
| `CmerTransforms`     | Fig. 3            | CMER with one kind of transform and with all                              |

They share trainings when they share ``out``.  Masks are read to measure, and to train the row that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from monai_wsss._files import write_json
from monai_wsss.benchmark.cmer_recipes import (
    BOUND_RECIPES,
    CMER_RECIPES,
    FULL_RESOLUTION_RECIPES,
    FULL_SUPERVISION,
    TRANSFORM_RECIPES,
)
from monai_wsss.benchmark.recipe_table import (
    Cases,
    RecipeTable,
    Row,
    decision_options,
    format_cell,
    maps_of,
)
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.data import load_header
from monai_wsss.inferers import GradientCAMInferer, VolumeInferer
from monai_wsss.networks import ModalityNetworks
from monai_wsss.reports import bar_chart, write_svg
from monai_wsss.reports.charts import ChartLine, line_chart

__all__ = ["CmerErrors", "CmerFullResolution", "CmerTable", "CmerThresholds", "CmerTransforms"]

_DEFAULT = "CMER (default: better peers teach)"
_FUSED = ("fused", "fused, reliable")


@dataclass(frozen=True)
class CmerTable(RecipeTable):
    """Tables I to III: rows are losses, columns modalities; ``fused`` takes all of them, as the paper does, ``fused,
    reliable`` those that training has not found weak.  The arguments are those of :class:`RecipeTable`."""

    name: ClassVar[str] = "cmer"
    recipes: ClassVar[dict[str, Recipe]] = CMER_RECIPES
    columns: ClassVar[tuple[str, ...]] = ("dice_subject",)

    def _all_rows(self) -> Iterator[tuple[str, list[Row]]]:
        for name, recipe in self.recipes.items():
            yield from self._group_rows(name, recipe, self._networks(name, recipe, self.seeds))
        if self.recipes is not CMER_RECIPES:
            return
        for name in ("plain CAM", _DEFAULT):
            yield from self._gradient_rows(name, CMER_RECIPES[name])
        for name, recipe in BOUND_RECIPES.items():
            yield f"{name} / fused", self._bound(name, recipe)

    def _networks(self, name: str, recipe: Recipe, seeds: Sequence[int]) -> list[Any]:
        """The trained networks of a recipe."""
        header = load_header(self.datalist)
        channels, classes = len(header["modality"]), len(header["classes"])
        return [self._train(name, recipe, seed, channels, classes).network.eval() for seed in seeds]

    def _maps(self, cases: Cases, recipe: Recipe, networks: Sequence[Any], cam: Any = None) -> list[list[torch.Tensor]]:
        inferer = VolumeInferer(2, grid=self.grid, views=recipe.views, cam=cam)
        return [maps_of(cases, partial(inferer, network=network)) for network in networks]

    def _group_rows(
        self, name: str, recipe: Recipe, networks: Sequence[ModalityNetworks]
    ) -> Iterator[tuple[str, list[Row]]]:
        cases = self._cases(recipe.by_subject)
        maps = self._maps(cases, recipe, networks)
        for group in (*self._modalities(), *_FUSED):
            yield (
                f"{name} / {group}",
                [
                    self._measure(cases, *self._of_group(network, per_case, recipe, group))
                    for network, per_case in zip(networks, maps, strict=True)
                ],
            )

    def _modalities(self) -> list[str]:
        modality = load_header(self.datalist)["modality"]
        return [modality[str(channel)] for channel in range(len(modality))]

    def _of_group(
        self, network: ModalityNetworks, maps: list[torch.Tensor], recipe: Recipe, group: str
    ) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """Maps and options of one modality, or of their fusion."""
        options = decision_options(network, recipe.rules[0])
        if group == "fused":
            options["reliable"] = torch.ones_like(options["reliable"])
        elif group not in _FUSED:
            options["reliable"] = torch.tensor([name == group for name in self._modalities()])
        return maps, options

    def _gradient_rows(self, name: str, recipe: Recipe) -> Iterator[tuple[str, list[Row]]]:
        """Grad-CAM++ at the last block of each network, gated by the network's own logits, cut at half the maximum."""
        networks = self._networks(name, recipe, self.seeds)
        cases = self._cases(recipe.by_subject)
        cam = GradientCAMInferer("encoder", variant="gradcam++", gate="predicted")
        maps = self._maps(cases, Recipe(recipe.build, views="none"), networks, cam)
        for group in (*self._modalities(), *_FUSED):
            results = []
            for network, per_case in zip(networks, maps, strict=True):
                _, options = self._of_group(network, per_case, recipe, group)
                chosen = {"rule": "max", "gate": "none", "groups": network.groups, "reliable": options["reliable"]}
                results.append(self._measure(cases, per_case, chosen))
            yield f"{name}, Grad-CAM++ (one view, half of the maximum) / {group}", results

    def _bound(self, name: str, recipe: Recipe) -> list[Row]:
        networks = self._networks(name, recipe, self.seeds)
        cases = self._cases(recipe.by_subject)
        maps = self._maps(cases, recipe, networks)
        return [self._measure(cases, per_case, {"output_kind": "segmentation"}) for per_case in maps]

    def format(self, rows: dict[str, list[Row]]) -> str:
        """A row a recipe, a column for each metric and modality, and the ratio of the fused to full supervision."""
        groups = [*self._modalities(), *_FUSED]
        names = list(dict.fromkeys(row.rsplit(" / ", 1)[0] for row in rows))
        heads = [f"{group} {column.removesuffix('_subject')}" for group in groups for column in self.columns]
        full = rows.get(f"{FULL_SUPERVISION} / fused")
        heads += [f"ratio, {group}" for group in _FUSED] if full else []
        lines = [f"| row | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for name in names:
            results = {group: rows.get(f"{name} / {group}", []) for group in groups}
            cells = [format_cell(results[group], column) for group in groups for column in self.columns]
            if full:
                bound = _mean_dice(full)
                cells += [
                    f"{_mean_dice(results[group]) / bound:.2f}" if results[group] and bound > 0 else "–"
                    for group in _FUSED
                ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)


@dataclass(frozen=True)
class CmerFullResolution(CmerTable):
    """The paper's network, the full-resolution U-Net, of width 8."""

    name: ClassVar[str] = "cmer_unet"
    recipes: ClassVar[dict[str, Recipe]] = FULL_RESOLUTION_RECIPES


@dataclass(frozen=True)
class CmerErrors(CmerTable):
    """Table V: r_u = FN/TP and r_o = FP/TP over all pixels, of each modality, for plain CAM and CMER."""

    name: ClassVar[str] = "cmer_errors"
    recipes: ClassVar[dict[str, Recipe]] = {name: CMER_RECIPES[name] for name in ("plain CAM", _DEFAULT)}
    columns: ClassVar[tuple[str, ...]] = ("r_under", "r_over")


@dataclass(frozen=True)
class CmerThresholds(CmerTable):
    """Fig. 4: Dice per subject against the threshold; curves read masks and choose nothing.

    Writes ``cmer_thresholds.svg`` and ``cmer_thresholds_curves.json`` beside the table.
    """

    name: ClassVar[str] = "cmer_thresholds"
    figures: ClassVar[tuple[str, ...]] = ("cmer_thresholds.svg",)
    recipes: ClassVar[dict[str, Recipe]] = {
        name: CMER_RECIPES[name] for name in ("plain CAM", "SEAM, all transforms", _DEFAULT)
    }

    def run(self) -> dict[str, list[Row]]:
        """As the base's, and the curves, a mean over seeds."""
        rows = super().run()
        curves: dict[str, dict[str, list[float]]] = {}
        for name, recipe in self.recipes.items():
            networks = self._networks(name, recipe, self.seeds)
            cases = self._cases(recipe.by_subject)
            all_maps = self._maps(cases, recipe, networks)
            for group in _FUSED:
                sweeps = [
                    self._sweep(cases, *self._of_group(network, maps, recipe, group))
                    for network, maps in zip(networks, all_maps, strict=True)
                ]
                (tumor,) = sweeps[0]["classes"]
                dice = np.mean([sweep["classes"][tumor]["dice_subject"] for sweep in sweeps], axis=0)
                curves[f"{name}, {group}"] = {"threshold": sweeps[0]["thresholds"], "dice_subject": dice.tolist()}
        write_json(self.out / f"{self.name}_curves.json", curves)
        lines = [ChartLine(name, curve["threshold"], curve["dice_subject"]) for name, curve in curves.items()]
        chart = line_chart(
            lines,
            title="Dice per subject against the threshold on the fused map",
            x_label="threshold",
            y_label="Dice per subject",
            y_range=(0.0, 1.0),
        )
        write_svg(self.out / self.figures[0], chart)
        return rows

    def _sweep(self, cases: Cases, maps: list[torch.Tensor], options: dict[str, Any]) -> dict[str, Any]:
        return self._case_table(cases, maps, options, sweep=True).sweep()


@dataclass(frozen=True)
class CmerTransforms(CmerTable):
    """Fig. 3: CMER with flips, quarter turns, scaling or translation alone, and with one of them all at a time.

    Writes ``cmer_transforms.svg`` beside the table.
    """

    name: ClassVar[str] = "cmer_transforms"
    figures: ClassVar[tuple[str, ...]] = ("cmer_transforms.svg",)
    recipes: ClassVar[dict[str, Recipe]] = {**TRANSFORM_RECIPES, _DEFAULT: CMER_RECIPES[_DEFAULT]}

    def run(self) -> dict[str, list[Row]]:
        """As the base's, and the chart."""
        rows = super().run()
        kinds = ["all" if name == _DEFAULT else name.removeprefix("CMER, ") for name in self.recipes]
        values, spread = {}, {}
        for group in (*self._modalities(), _FUSED[1]):
            dice = [[row["dice_subject"]["mean"] for row in rows[f"{recipe} / {group}"]] for recipe in self.recipes]
            values[group] = [float(np.mean(of_seeds)) for of_seeds in dice]
            spread[group] = [float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else 0.0 for of_seeds in dice]
        chart = bar_chart(
            kinds,
            values,
            title="Dice per subject by kind of transform",
            spread=spread if len(self.seeds) > 1 else None,
            y_label="Dice per subject",
            y_range=(0.0, 1.0),
        )
        write_svg(self.out / self.figures[0], chart)
        return rows


def _mean_dice(results: list[Row]) -> float:
    return float(np.mean([row["dice_subject"]["mean"] for row in results]))
