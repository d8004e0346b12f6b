# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The tables of the CMER paper, with its own losses, on slices of one class with several modalities.

| command           | paper        | rows                                          | columns                           |
|-------------------|--------------|-----------------------------------------------|-----------------------------------|
| `cmer-comparison` | Tables I, II | baseline, SEAM's equivariance, proposed, each | DSC and ASSD per modality and     |
|                   |              | by CAM and Grad-CAM++; full supervision       | fused, a section per set of them  |
| `cmer-losses`     | Table III    | KD, KD + ER, ER + CMER, all; Grad-CAM++       | DSC and ASSD, fused, per set      |
| `cmer-backbone`   | Table IV     | as Table I, DeepLabV3 on a ResNet-50          | DSC, fused, per set               |
| `cmer-errors`     | Table V      | SEAM's equivariance, proposed                 | r_u and r_o per modality          |

The figures are in ``cmer_paper_figures.py``.

DSC and ASSD have their mean and standard deviation over patients, of several seeds the means of both.  ASSD is that of
restacked volumes where the datalist says where slices lie, as those of ``prepare brats --as-slices`` do.  Table V has
methods as rows and modalities as columns, the paper the other way round.

A table is the paper's only at the paper's size (``size="paper"``), on slices of all 335 studies in its split of BraTS
(``prepare brats --as-slices --split cmer``), and measured on the test split; every other says in its title what is not.
ResNet-50 starts from random weights here.  Masks are read to measure, and to train the rows that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from markupsafe import Markup

from monai_wsss._checks import check_choice
from monai_wsss._files import atomic_path, make_directory, write_json
from monai_wsss.benchmark.cmer_paper_recipes import (
    BASELINE,
    PAPER_SCALE,
    SMALL_SCALE,
    CmerScale,
    bound_recipes,
    comparison_recipes,
    loss_recipes,
)
from monai_wsss.benchmark.formatting import Column, format_rows
from monai_wsss.benchmark.prepared import Slices, rule_of
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, Row, folder_name
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.data import load_datalist, load_header
from monai_wsss.data.brats import CMER_SUBJECTS
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.refinement import MaskRule
from monai_wsss.reports import write_svg

__all__ = [
    "CmerOptions",
    "CmerPaper",
    "CmerRun",
    "make_cmer_backbone",
    "make_cmer_comparison",
    "make_cmer_errors",
    "make_cmer_losses",
]

FUSED = "fused"
_PAIRS = ("T1+T2", "T1c+FLAIR", "T1+FLAIR", "T1c+T2")  # Sec. IV-C
_LAYERS = {"unet": "features", "aspp_resnet": "pyramid"}

RowsOfSets = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class CmerPaper:
    """A table or figure of the paper: a :class:`BenchmarkTable` per set of modalities, printed together.

    Attributes:
        name: name of its files.
        title: its title, which says whether it was run small.
        out: folder for all sets.
        tables: set of modalities, such as ``"T1+T2"``, to its table.
        text: rows of all sets to Markdown.
        draw: file name to a function of (this, rows of all sets) that gives the SVG.
    """

    name: str
    title: str
    out: Path
    tables: Mapping[str, BenchmarkTable]
    text: Callable[[CmerPaper, RowsOfSets], str]
    draw: Mapping[str, Callable[[CmerPaper, RowsOfSets], Markup]] = field(default_factory=dict)

    @property
    def figures(self) -> tuple[str, ...]:
        """Give the names of the figures."""
        return tuple(self.draw)

    def run(self) -> dict[str, list[Row]]:
        """Train and measure what is missing; write ``<name>.json``, ``<name>.md`` and the figures.

        Returns:
            Set of modalities to its rows.
        """
        rows = {name: table.run() for name, table in self.tables.items()}
        make_directory(self.out)
        write_json(self.out / f"{self.name}.json", {name: [row.to_json() for row in own] for name, own in rows.items()})
        with atomic_path(self.out / f"{self.name}.md") as temporary:
            temporary.write_text(f"**{self.title}**\n\n{self.text(self, rows)}\n", encoding="utf-8")
        for figure, draw in self.draw.items():
            write_svg(self.out / figure, draw(self, rows))
        return rows


class CmerOptions(TypedDict, total=False):
    """Further arguments of the tables and figures.

    Attributes:
        sets: sets of modalities, each with ``+`` between them, such as ``"T1+T2"``; none: the paper's pairs and all.
        size: ``"small"``, for a CPU and the default, or ``"paper"``.
        seeds: seeds of each recipe, 0, 1 and 2 by default.
        split: where to measure, the validation split by default; the paper's is the test split.
        scale: other sizes than those of ``size``.
    """

    sets: Sequence[str]
    size: str
    seeds: Sequence[int]
    split: str
    scale: CmerScale | None


@dataclass(frozen=True)
class CmerRun:
    """What all tables of a command have in common."""

    datalist: Path
    out: Path
    sets: tuple[str, ...]
    scale: CmerScale
    papers: bool
    seeds: tuple[int, ...]
    split: str

    @classmethod
    def of(
        cls,
        datalist: Path,
        out: Path,
        usual: str,
        *,
        sets: Sequence[str] = (),
        size: str = "small",
        seeds: Sequence[int] = (0, 1, 2),
        split: str = "validation",
        scale: CmerScale | None = None,
    ) -> CmerRun:
        """Read the words of a command; ``usual`` says which sets it has by default: "pairs", "all" or "both"."""
        check_choice("size", size, ("small", "paper"))
        header = load_header(datalist)
        known = [header["modality"][str(channel)] for channel in range(len(header["modality"]))]
        pairs = [pair for pair in _PAIRS if set(pair.split("+")) <= set(known)]
        every = "+".join(known)
        by_default = {"pairs": pairs or [every], "all": [every], "both": list(dict.fromkeys([*pairs, every]))}[usual]
        chosen = tuple(sets) or tuple(by_default)
        if unknown := sorted({name for one in chosen for name in one.split("+")} - set(known)):
            raise ValueError(
                f"Expected `sets` of the modalities {', '.join(known)}, such as {every}, got {', '.join(unknown)}."
            )
        scale = scale or (PAPER_SCALE if size == "paper" else SMALL_SCALE)
        papers = scale == PAPER_SCALE and _is_papers(datalist, header)
        return cls(Path(datalist), Path(out), chosen, scale, papers, tuple(seeds), split)

    def title(self, what: str) -> str:
        """Give a title that says whether the run is the paper's, which is measured on the test split."""
        name = f"{what} of the CMER paper"
        if self.papers:
            return name if self.split == "test" else f"{name}, but on the {self.split} split"
        how = "not on its data" if self.scale == PAPER_SCALE else "run small"
        return f"{name}, {how}: {self.scale}"

    @property
    def assd(self) -> tuple[str, str]:
        """Name the surface distance and its metric: in 3D where it is known how slices lie in their volumes."""
        items = load_datalist(self.datalist, self.split, masks=True)
        if items and all("volume" in item for item in items):
            return "ASSD", "volume_assd_directed"
        return "ASSD within slices", "assd_directed"

    def table(
        self,
        name: str,
        one: str,
        recipes: Mapping[str, Recipe],
        *,
        columns: Sequence[Column],
        layer: str | None = None,
        bounds: bool = False,
    ) -> BenchmarkTable:
        """Give the table of one set; with ``layer`` also by Grad-CAM++ of it, with ``bounds`` full supervision."""
        data = Slices(self.datalist, self.split, self.scale.grid, modalities=one.split("+"), raw=True)
        entries = [Entry(recipe, partial(_by_group, data), recipe) for recipe in recipes]
        if layer is not None:
            entries += [
                Entry(f"{recipe}, Grad-CAM++", partial(_by_gradient, data, layer), recipe) for recipe in recipes
            ]
        of_masks = bound_recipes(self.scale, data.modalities) if bounds else {}
        entries += [
            Entry(recipe, partial(_bound, data, modality), recipe)
            for modality, recipe in zip(data.modalities, of_masks, strict=False)
        ]
        return BenchmarkTable(
            name,
            data,
            self.out / folder_name(one),
            {**recipes, **of_masks},
            entries,
            columns,
            epochs=self.scale.epochs,
            seeds=self.seeds,
        )


def _is_papers(datalist: Path, header: Mapping[str, Any]) -> bool:
    """Tell whether data are slices of the paper's 335 studies, split as there (Sec. IV-A)."""
    if header.get("split") != "cmer":
        return False
    items = {split: load_datalist(datalist, split, masks=True) for split in CMER_SUBJECTS}
    numbers = {split: len({item["subject"] for item in own}) for split, own in items.items()}
    return numbers == CMER_SUBJECTS and all("volume" in item for own in items.values() for item in own)


# ---- measuring -------------------------------------------------------------------------------------------------------


def _groups(data: Slices) -> list[str]:
    return [*data.modalities, *([FUSED] if len(data.modalities) > 1 else [])]


def taking_part(data: Slices, group: str) -> torch.Tensor | None:
    """Say which networks take part: that of one modality, or all."""
    return None if group == FUSED else torch.tensor([name == group for name in data.modalities])


def _by_group(data: Slices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure each modality and the fusion of all, by max-normalized maps at half of the maximum."""
    (one,) = trained
    cases = data.cases(one.recipe)
    maps = data.maps(cases, one.method.network, one.recipe.views)
    rule = rule_of(one.method.network, one.recipe.rules[0])
    for group in _groups(data):
        of_group = replace(rule, reliable=taking_part(data, group))
        yield Measured(group, data.measure_maps(cases, maps, of_group).summary())


def _by_gradient(data: Slices, layer: str, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure Grad-CAM++ of a layer, gated by the networks' own predictions, at half of the maximum."""
    (one,) = trained
    network: Any = one.method.network
    cases = data.cases(one.recipe)
    maps = data.maps(cases, network, "none", GradientCAMInferer(layer, variant="gradcam++", gate="predicted"))
    for group in _groups(data):
        rule = MaskRule(
            rule="max",
            gate="none",
            groups=network.groups,
            background_map=network.background_map,
            reliable=taking_part(data, group),
        )
        yield Measured(group, data.measure_maps(cases, maps, rule).summary())


def _bound(data: Slices, modality: str, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the U-Net of one modality that was trained on masks."""
    (one,) = trained
    cases = data.cases(one.recipe)
    maps = data.maps(cases, one.method.network, one.recipe.views)
    yield Measured(modality, data.measure_maps(cases, maps, MaskRule(output_kind="segmentation")).summary())


# ---- printing --------------------------------------------------------------------------------------------------------


def columns_of(groups: Sequence[str], metrics: Mapping[str, str], kind: Any = "patients") -> list[Column]:
    return [Column(f"{group} {head}", metric, group, kind) for group in groups for head, metric in metrics.items()]


def by_set(paper: CmerPaper, rows: RowsOfSets) -> str:
    """Give a section per set of modalities."""
    return "\n\n".join(f"{one}\n\n{paper.tables[one].format(own)}" for one, own in rows.items())


def _side_by_side(metrics: Mapping[str, str], paper: CmerPaper, rows: RowsOfSets) -> str:
    """Give one table, whose columns are the fused maps of each set."""
    fused = [replace(row, column=one) for one, own in rows.items() for row in own if row.column == FUSED]
    return format_rows(fused, columns_of(list(rows), metrics))


# ---- the tables ------------------------------------------------------------------------------------------------------


def make_cmer_comparison(datalist: Path, out: Path, **options: Unpack[CmerOptions]) -> CmerPaper:
    """Make Tables I and II: each modality and their fusion, by CAM and Grad-CAM++, beside full supervision.

    Args:
        datalist: path of the prepared ``datalist.json``.
        out: folder for weights, rows and the table.
        options: see :class:`CmerOptions`.

    Raises:
        ValueError: an unknown size, or a set of modalities that the data lack.
    """
    run = CmerRun.of(datalist, out, "both", **options)
    head, metric = run.assd
    recipes = comparison_recipes(run.scale, run.papers)
    tables = {
        one: run.table(
            "cmer_comparison",
            one,
            recipes,
            columns=columns_of([*one.split("+"), FUSED], {"DSC": "dice_subject", head: metric}),
            layer=_LAYERS["unet"],
            bounds=True,
        )
        for one in run.sets
    }
    return CmerPaper("cmer_comparison", run.title("Tables I and II"), run.out, tables, by_set)


def make_cmer_losses(datalist: Path, out: Path, **options: Unpack[CmerOptions]) -> CmerPaper:
    """Make Table III: which losses, fused, by CAM and Grad-CAM++; arguments of :func:`make_cmer_comparison`."""
    run = CmerRun.of(datalist, out, "both", **options)
    head, metric = run.assd
    metrics = {"DSC": "dice_subject", head: metric}
    recipes, columns = loss_recipes(run.scale, run.papers), columns_of([FUSED], metrics)
    tables = {one: run.table("cmer_losses", one, recipes, columns=columns, layer=_LAYERS["unet"]) for one in run.sets}
    return CmerPaper("cmer_losses", run.title("Table III"), run.out, tables, partial(_side_by_side, metrics))


def make_cmer_backbone(datalist: Path, out: Path, **options: Unpack[CmerOptions]) -> CmerPaper:
    """Make Table IV: Table I, fused, with DeepLabV3 on a ResNet-50; arguments of :func:`make_cmer_comparison`.

    The rows lie in a folder ``deeplabv3`` of their own, since they have the names of Table I.
    """
    run = CmerRun.of(datalist, out, "pairs", **options)
    run = replace(run, out=run.out / "deeplabv3")
    metrics = {"DSC": "dice_subject"}
    recipes, layer = comparison_recipes(run.scale, False, "aspp_resnet"), _LAYERS["aspp_resnet"]
    tables = {
        one: run.table("cmer_backbone", one, recipes, columns=columns_of([FUSED], metrics), layer=layer)
        for one in run.sets
    }
    title = f"{run.title('Table IV')}, from random weights"
    return CmerPaper("cmer_backbone", title, Path(out), tables, partial(_side_by_side, metrics))


def make_cmer_errors(datalist: Path, out: Path, **options: Unpack[CmerOptions]) -> CmerPaper:
    """Make Table V: r_u = FN/TP and r_o = FP/TP of each modality; arguments of :func:`make_cmer_comparison`."""
    run = CmerRun.of(datalist, out, "all", **options)
    recipes = comparison_recipes(run.scale, run.papers)
    recipes = {name: recipe for name, recipe in recipes.items() if name != BASELINE}
    metrics = {"r_u": "r_under", "r_o": "r_over"}
    tables = {
        one: run.table("cmer_errors", one, recipes, columns=columns_of(one.split("+"), metrics, "value"))
        for one in run.sets
    }
    return CmerPaper("cmer_errors", run.title("Table V"), run.out, tables, by_set)
