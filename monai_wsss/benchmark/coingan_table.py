# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of CoinGAN: its ladder, loss presets, lambda, label noise, other methods, bounds and trivial references.

| column                | mask                                                                                 |
|-----------------------|--------------------------------------------------------------------------------------|
| ``mask``              | what is deployed; of CoinGAN |I - G(I)| above Otsu's threshold, in images above the  |
|                       | presence level; of class maps and segmentations by the rule of their own table       |
| ``mask, no gate``     | Otsu's threshold in every image that shows a contrast                                |
| ``Otsu, all images``  | as ``mask``, with one threshold for all images that are above the presence level     |
| ``smoothed``          | as ``mask``, of the map's mean over 5 x 5 pixels                                     |
| ``healthy level``     | half-way between what healthy pixels respond and the peak of the image               |
| ``healthy quantile``  | above nearly all healthy pixels                                                      |
| ``best cut (…)``      | one threshold for all images, chosen with masks                                      |

A difference shows a contrast where a pixel of it exceeds ``min_contrast``.  Without one, the mask is empty in all
columns but the last.

Masks are measured by our metrics over all images, and by the protocol of the paper: positive images alone, one pooled
table, means over lesion and background.  No mask is read in training or to decide, but where a name says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from monai_wsss.benchmark.coingan_data import CoinganSlices
from monai_wsss.benchmark.coingan_recipes import (
    ALL,
    COINGAN_BUDGET,
    LADDER,
    LAMBDAS,
    NOISY,
    SALIENCY,
    coingan_recipes,
    several_seeds,
)
from monai_wsss.benchmark.formatting import Column, format_rows, values_of
from monai_wsss.benchmark.prepared import Cases, rule_of
from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.metrics import pixel_auroc
from monai_wsss.refinement import MaskRule, otsu_rule
from monai_wsss.refinement.oracle import oracle_raw_threshold

__all__ = [
    "COINGAN_ROWS",
    "COINGAN_SECTIONS",
    "CoinganTable",
    "coingan_entries",
    "coingan_sections",
    "deployed_rule",
    "lambda_rows",
    "make_coingan_table",
]

Maps = Sequence[torch.Tensor]
Metrics = dict[str, dict[str, Any]]

_MASK, _BEST_CUT = "mask", "best cut (chosen with masks)"
_OTSU_OF_ALL = "Otsu, all images"
_SMOOTH = 5
_DECISIONS = (_MASK, "mask, no gate", _OTSU_OF_ALL, "smoothed", "healthy level", "healthy quantile", _BEST_CUT)
_QUANTILE = 0.95  # of healthy training images, as CoinGAN's presence level
CONTRAST = 0.1  # that a difference has to show, as CoinGAN's own
_OTSU, _ORACLE = "trivial: Otsu on the intensity", "trivial: ORACLE threshold of the intensity (chosen with masks)"
_DISTANCE = "trivial: distance to the mean healthy training image"
_EMPTY = "trivial: no lesion anywhere"


def _of_mask(**metrics: str) -> list[Column]:
    return [Column(head.replace("_", " "), metric, _MASK) for head, metric in metrics.items()]


COINGAN_SECTIONS: dict[str, list[Column]] = {
    "Masks of all validation images, healthy ones too: metrics of the lesion": [
        Column("seeds", "dice_pooled", _MASK, kind="count"),
        *_of_mask(Dice_per_subject="dice_subject", Dice="dice_pooled", IoU="iou_pooled", ASSD_px="assd_px"),
        *_of_mask(ACC="accuracy", SP="specificity", SE="sensitivity", healthy_clean="healthy_clean"),
        Column("ratio of the Dice to full supervision", "dice_pooled", _MASK, kind="ratio", bound=_MASK),
    ],
    "The paper's protocol: positive images alone, pooled; DSC and JC are means over lesion and background": [
        *_of_mask(DSC="paper_dice_macro_pooled", JC="paper_miou_pooled", ASD_px="paper_assd_px"),
        *_of_mask(ACC="paper_accuracy", SP="paper_specificity", SE="paper_sensitivity"),
        *_of_mask(lesion_Dice="paper_dice_pooled", lesion_IoU="paper_iou_pooled"),
        *_of_mask(DSC_of_all_images="dice_macro_pooled", JC_of_all_images="miou_pooled"),
        Column("ratio of the DSC to full supervision", "paper_dice_macro_pooled", _MASK, kind="ratio", bound=_MASK),
    ],
    "Maps before any cut: AUROC of the pixels of positive images; mean differences on a scale of 2": [
        *_of_mask(AUROC_per_image="heat_auroc", AUROC_pooled="heat_auroc_pooled", presence_AUROC="presence_auroc"),
        *_of_mask(difference_in_healthy_images="difference_healthy", in_diseased_ones="difference_diseased"),
    ],
    "The same maps cut in other ways: lesion Dice over all images": [
        *(Column(name, "dice_pooled", name) for name in _DECISIONS),
        Column("DSC at the best cut", "paper_dice_macro_pooled", _BEST_CUT),
    ],
    "Costs: seconds of one processor core": _of_mask(
        steps="steps", per_step="cpu_seconds_per_step", peak_memory_MB="peak_memory_mb"
    ),
}
"""Title -> columns of the tables that are printed from the same rows."""

_FREE = (SALIENCY, _OTSU, _ORACLE, _DISTANCE, _EMPTY)
COINGAN_ROWS = (*LADDER, *_FREE, *(name for name in coingan_recipes() if name not in LADDER))
"""The names of all rows in their order."""

_DELTAS = {
    "Dice": "dice_pooled",
    "DSC": "paper_dice_macro_pooled",
    "JC": "paper_miou_pooled",
    "ASD px": "paper_assd_px",
    "ACC": "paper_accuracy",
}


def coingan_sections(rows: Sequence[Row]) -> dict[str, str]:
    """Give the tables of rows as Markdown, by their titles; rows without a value in a table are left out of it.

    Args:
        rows: rows of all seeds, in their order.
    """
    result = {}
    for title, columns in COINGAN_SECTIONS.items():
        names = {row.name for row in rows for column in columns if values_of([row], column.metric, column.of)}
        if title in list(COINGAN_SECTIONS)[:2] and names & set(LADDER):
            names.add(SALIENCY)
        shown = [row for row in rows if row.name in names]
        if shown:
            result[title] = format_rows(shown, columns)
    if lambdas := lambda_rows(rows):
        columns = _of_mask(DSC="paper_dice_macro_pooled", JC="paper_miou_pooled", lesion_Dice="dice_pooled")
        result["Lambda, each value trained anew (Fig. 4); one seed"] = format_rows(lambdas, columns)
    if noise := _noise_table(rows):
        result["10 % wrong labels in training (Table 9), and the change by them; one seed"] = noise
    return result


def lambda_rows(rows: Sequence[Row]) -> list[Row]:
    """Give the masks of each value of lambda, named by it, all with the seeds that were trained with other values.

    Args:
        rows: rows of all seeds; none of another value than 0.3: there is no study, and so no rows.
    """
    of_lambda = {name: value for value, name in LAMBDAS.items()}
    masks = [row for row in rows if row.name in of_lambda and row.column == _MASK]
    seeds = {row.seed for row in masks if row.name != ALL}
    kept = [replace(row, name=f"{of_lambda[row.name]:g}") for row in masks if row.seed in seeds]
    return sorted(kept, key=lambda row: float(row.name))


def _noise_table(rows: Sequence[Row]) -> str:
    """Format rows that were trained with wrong labels, with the change against the clean ones of the same seeds."""
    lines = []
    for name, noisy in NOISY.items():
        own = [row for row in rows if row.name == noisy and row.column == _MASK]
        seeds = {row.seed for row in own}
        clean = [row for row in rows if row.name == name and row.column == _MASK and row.seed in seeds]
        if own and clean:
            pairs = [(values_of(clean, metric), values_of(own, metric)) for metric in _DELTAS.values()]
            lines.append(f"| {name} | {' | '.join(_mean(before) for before, _ in pairs)} |")
            lines.append(f"| {noisy} | {' | '.join(_with_change(before, after) for before, after in pairs)} |")
    if not lines:
        return ""
    return "\n".join([f"| row | {' | '.join(_DELTAS)} |", "|---" * (len(_DELTAS) + 1) + "|", *lines])


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"


def _with_change(before: Sequence[float], after: Sequence[float]) -> str:
    change = f" ({np.mean(after) - np.mean(before):+.3f})" if before and after else ""
    return _mean(after) + change


@dataclass(frozen=True)
class CoinganTable(BenchmarkTable):
    """A table whose rows are printed in both conventions, lambda and label noise by themselves."""

    def format(self, rows: Sequence[Row]) -> str:
        """Give the tables of these rows as Markdown."""
        parts = [f"{title}\n\n{text}" for title, text in coingan_sections(rows).items()]
        learned = sorted({row.name for row in rows if row.name.startswith(FULL_SUPERVISION)})
        masks = [f"Read masks in training: {'; '.join(learned)}."] if learned else []
        simulated = any(row.simulated_supervision for row in rows)
        labels = f"Simulated supervision: labels are {self.data.header.get('labels', '')}." if simulated else ""
        return "\n\n".join([*parts, *masks, *([labels] if labels else [])])


def make_coingan_table(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the table of CoinGAN on the FLAIR images of slices with one class.

    Args:
        datalist: path of a prepared ``datalist.json``.
        out: folder for weights, rows and the table.
        seeds: seeds of the ladder, plain CAM and full supervision; all other rows have the first one alone.
        split: where the unseen images lie.
        runs: folder with rows of earlier sessions, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
        rows: which rows to make, see there.
    """
    data = CoinganSlices(datalist, split)
    columns = next(iter(COINGAN_SECTIONS.values()))
    recipes, entries = coingan_recipes(COINGAN_BUDGET), coingan_entries(data)
    name = f"coingan_{data.header['name']}"
    return CoinganTable(name, data, out, recipes, entries, columns, seeds=seeds, runs=runs, rows=rows)


def coingan_entries(data: CoinganSlices) -> list[Entry]:
    """Give what is measured: the ladder and what costs nothing, then bounds, others and studies.

    Args:
        data: the slices.
    """
    recipes = coingan_recipes(COINGAN_BUDGET)
    entries = []
    for name, recipe in recipes.items():
        converts = recipe.words["method"] == "coingan"
        words = {"rule": recipe.rules[0], **({"smooth": _SMOOTH} if converts else {})}
        measure = partial(_conversion if converts else _deployed, data)
        entries.append(Entry(name, measure, name, "each" if several_seeds(name) else "first", words))
    free = {SALIENCY: _undescribed, _OTSU: _otsu, _ORACLE: _best_threshold, _DISTANCE: _distance, _EMPTY: _nothing}
    entries += [Entry(name, partial(of, data), None) for name, of in free.items()]
    return sorted(entries, key=lambda entry: COINGAN_ROWS.index(entry.name))


def deployed_rule(network: torch.nn.Module, recipe: Recipe) -> MaskRule:
    """Give the rule by which the map or segmentation of a row becomes its mask.

    Args:
        network: with the weights of the row.
        recipe: the first of its rules is the one.
    """
    return rule_of(network, recipe.rules[0])


# ---- measuring -------------------------------------------------------------------------------------------------------


def _conversion(data: CoinganSlices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the difference of an image and its conversion, cut in several ways."""
    (one,) = trained
    network: Any = one.method.network
    cases = data.measured_cases(one.recipe)
    maps = data.maps(cases, network, one.recipe.views)
    yield from rows_of_differences(data, cases, maps, deployed_rule(network, one.recipe))


def rows_of_differences(data: CoinganSlices, cases: Cases, maps: Maps, rule: MaskRule) -> Iterator[Measured]:
    """Measure maps of differences under each decision; what the rule has not measured is left out."""
    yield Measured(_MASK, data.measure(cases, maps, rule) | _heat(cases, maps) | _changes(cases, maps))
    yield Measured("mask, no gate", data.measure(cases, maps, replace(rule, gate="none")))
    yield Measured(_OTSU_OF_ALL, data.measure(cases, maps, otsu_rule(rule, maps)))
    smooth = [F.avg_pool2d(one, _SMOOTH, 1, _SMOOTH // 2, count_include_pad=False) for one in maps]
    yield Measured("smoothed", data.measure(cases, maps, rule, smooth))
    if rule.negative_reference is not None:
        for name, of in (("healthy level", "negative_reference"), ("healthy quantile", "negative_quantile")):
            yield Measured(name, data.measure(cases, maps, replace(rule, rule=of)))
    yield _oracle(data, cases, maps, _BEST_CUT)


def _deployed(data: CoinganSlices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the masks of another method by the rule of its own table."""
    (one,) = trained
    network: Any = one.method.network
    cases = data.measured_cases(one.recipe)
    maps = data.maps(cases, network, one.recipe.views)
    heat = [each.softmax(1)[:, 1:] for each in maps] if network.output_kind == "segmentation" else maps
    rule = deployed_rule(network, one.recipe)
    yield Measured(_MASK, data.measure(cases, maps, rule) | _heat(cases, heat))
    yield _oracle(data, cases, heat, _BEST_CUT)


def _undescribed(data: CoinganSlices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Give a row without a value."""
    yield Measured(_MASK, {})


def _otsu(data: CoinganSlices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure Otsu's threshold of each image."""
    cases, maps = _intensities(data)
    yield Measured(_MASK, data.measure(cases, maps, MaskRule(rule="otsu", gate="none")) | _heat(cases, maps))


def _best_threshold(data: CoinganSlices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the intensity that is the best threshold of all images together."""
    yield _oracle(data, *_intensities(data), _MASK)


def _intensities(data: CoinganSlices) -> tuple[Cases, list[torch.Tensor]]:
    cases = data.measured_cases(coingan_recipes(COINGAN_BUDGET)[ALL])
    return cases, [_image(case) for case in cases]


def _distance(data: CoinganSlices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure |I - mean healthy training image|, decided as CoinGAN's differences are."""
    recipe = coingan_recipes(COINGAN_BUDGET)[ALL]
    healthy = [_image(case) for case in data.measured_cases(recipe, "training") if not np.any(case["label"])]
    mean = torch.cat(healthy).mean(0, keepdim=True)
    highest = torch.stack([(image - mean).abs().amax() for image in healthy])
    rule = MaskRule(
        rule="otsu",
        pooling="max",
        presence_level=float(highest.quantile(_QUANTILE)),
        min_contrast=CONTRAST,
    )
    cases = data.measured_cases(recipe)
    yield from rows_of_differences(data, cases, [(_image(case) - mean).abs() for case in cases], rule)


def _nothing(data: CoinganSlices, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure empty masks: what the paper's protocol gives for nothing."""
    cases, maps = _intensities(data)
    yield Measured(_MASK, data.measure(cases, maps, MaskRule(rule="fixed", threshold=2.0, gate="none")))


def _oracle(data: CoinganSlices, cases: Cases, maps: Maps, column: str) -> Measured:
    """Choose with masks the threshold, of 201, whose lesion Dice over all images is best, and measure it."""
    known = [(one[0], mask) for one, mask in zip(maps, map(_reference, cases), strict=True) if mask is not None]
    scores, masks = ([pair[part] for pair in known] for part in (0, 1))
    lowest, highest = (float(value) for value in torch.cat([one.flatten() for one in scores]).aminmax())
    best = oracle_raw_threshold(scores, masks, np.linspace(lowest, highest, 201).tolist()).oracle_threshold
    metrics = data.measure(cases, maps, MaskRule(rule="fixed", threshold=best, gate="none"))
    return Measured(column, metrics | {"oracle_cut": {"mean": best}}, oracle=True)


def _heat(cases: Cases, maps: Maps) -> Metrics:
    """Measure how maps rank the pixels of positive images, of each and of all together; masks are read to measure."""
    known = [(one, mask) for one, mask in zip(maps, map(_reference, cases), strict=True) if mask is not None]
    pairs = [(one.numpy()[0], mask.numpy() > 0) for one, mask in known if mask.any()]
    areas = [pixel_auroc(*pair) for pair in pairs]
    measured = [area for area in areas if area is not None]
    if not measured:
        return {}
    together = pixel_auroc(*(np.concatenate([of.ravel() for of in part]) for part in zip(*pairs, strict=True)))
    return {"heat_auroc": {"mean": float(np.mean(measured))}, "heat_auroc_pooled": {"mean": together}}


def _changes(cases: Cases, maps: Maps) -> Metrics:
    """Give the mean difference of healthy images and of diseased ones, by their labels."""
    found: dict[str, list[float]] = {"difference_healthy": [], "difference_diseased": []}
    for one, case in zip(maps, cases, strict=True):
        found["difference_diseased" if np.any(case["label"]) else "difference_healthy"].append(float(one.mean()))
    return {name: {"mean": float(np.mean(values))} for name, values in found.items() if values}


def _reference(case: dict[str, Any]) -> torch.Tensor | None:
    """Give the mask (1, *S), an empty one of healthy images; None of a positive image whose mask is not at hand."""
    if case.get("mask") is not None:
        return torch.as_tensor(case["mask"]).as_subclass(torch.Tensor)
    return None if np.any(case["label"]) else torch.zeros(1, *case["image"].shape[1:])


def _image(case: dict[str, Any]) -> torch.Tensor:
    return torch.as_tensor(case["image"]).float().as_subclass(torch.Tensor)[None]
