# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of CoSA: its ablations, guides and presets, CoSA-MS, other methods and the bound, by branch and network.

| column            | images        | mask, see ``cosa_branches.py``                                        |
|-------------------|---------------|-----------------------------------------------------------------------|
| ``S``             | ``split``     | what is deployed: segmentation of the assignment network; no labels   |
| ``S given``       | ``split``     | the same without classes that the given label lacks                   |
| ``S + CRF``       | ``split``     | the same as ``S`` after a fully connected CRF; of whole methods       |
| ``S, best cut``   | ``split``     | the best cut of its probabilities, chosen with masks                  |
| ``CPL``, ``CPL†`` | ``split``     | class maps and auxiliary ones above the dynamic thresholds; labels given |
| ``ensemble``      | ``split``     | of both class maps                                                    |
| ``CPL, best xi``  | ``split``     | the best threshold from 0.2 to 0.7, chosen with masks                 |
| ``… train``       | training      | the same masks of one in four training images                         |
| ``online …``      | both          | the same masks of the online network                                  |

Other methods have ``S``, and plain CAM ``CPL``, its class maps with given labels.  Rows without the dynamic threshold
have one of 0.5; all without DT shows its class maps cut at each threshold from 0.2 to 0.7 as well.  Those are cuts of
one training, not trainings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark.cosa_branches import (
    LabelMaps,
    branch_maps,
    branch_masks,
    cut_maps,
    cuts_of,
    segmentation_logits,
)
from monai_wsss.benchmark.cosa_data import CosaSlices, CosaTiles, cosa_data
from monai_wsss.benchmark.cosa_recipes import (
    ALL,
    COSA_BUDGETS,
    ONE_SEED,
    SEGMENTERS,
    WITHOUT_DT,
    CosaBudget,
    cosa_recipes,
)
from monai_wsss.benchmark.encoder_table import measure_cases, rule_of_kind
from monai_wsss.benchmark.formatting import Column, format_rows, values_of
from monai_wsss.benchmark.prepared import Cases, add_case
from monai_wsss.benchmark.recipes import FULL_SUPERVISION
from monai_wsss.benchmark.rows import Measured, Row, folder_name
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.engines.checkpoint import latest_checkpoint, read_checkpoint
from monai_wsss.methods import CoSA
from monai_wsss.refinement import ClassMapRefinement, MaskRule
from monai_wsss.refinement.oracle import oracle_raw_threshold

__all__ = ["COSA_SECTIONS", "CosaTable", "cosa_sections", "make_cosa_table"]

Data = CosaTiles | CosaSlices
Metrics = dict[str, dict[str, Any]]

_EVERY = 4
_CUTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_BEST_CUT, _BEST_XI = "S, best cut (chosen with masks)", "CPL, best xi (chosen with masks)"
_CRF_PAIRS = "Without and with a CRF: mIoU, Dice, and images per second of one processor core"
_BEST_OF_THESE = "CPL at the best of these (chosen with masks)"


def _miou(*names: str) -> list[Column]:
    return [Column(name, "miou_pooled", name) for name in names]


COSA_SECTIONS: dict[str, list[Column]] = {
    "Masks of the validation images: mIoU, and Dice of what is deployed": [
        Column("seeds", "dice_pooled", "S", kind="count"),
        Column("S: Dice", "dice_pooled", "S"),
        Column("S: Dice per subject", "dice_subject", "S"),
        *_miou("S", "S given", "S + CRF", "CPL", "CPL†", "ensemble"),
        Column("ratio of the Dice to full supervision", "dice_pooled", "S", kind="ratio", bound="S"),
    ],
    "By network, mIoU; train: one in four training images": [
        *_miou("S", "online S", "CPL", "online CPL"),
        *_miou("S train", "online S train", "S given train", "CPL train", "CPL† train", "ensemble train"),
        *_miou("online CPL train"),
    ],
    "Thresholds: dynamic or fixed, and the best one, which is chosen with masks": [
        Column("xi", "xi", "CPL"),
        *_miou("CPL"),
        Column("best xi", "oracle_xi", _BEST_XI),
        Column("CPL at the best xi", "miou_pooled", _BEST_XI),
        Column("S: Dice", "dice_pooled", "S"),
        Column("S: best cut", "oracle_cut", _BEST_CUT),
        Column("S: Dice at the best cut", "dice_pooled", _BEST_CUT),
    ],
    "One training with a fixed threshold, its class maps cut elsewhere: mIoU": [
        *(Column(f"xi {cut:g}", "miou_pooled", f"CPL at {cut:g}") for cut in _CUTS),
        Column("the best of these (chosen with masks)", "miou_pooled", _BEST_OF_THESE),
    ],
    _CRF_PAIRS: [
        *_miou("S", "S + CRF"),
        Column("S: Dice", "dice_pooled", "S"),
        Column("S + CRF: Dice", "dice_pooled", "S + CRF"),
        Column("images per second", "cpu_seconds_per_image", "S", kind="rate"),
        Column("images per second with CRF", "cpu_seconds_per_image", "S + CRF", kind="rate"),
    ],
    "Costs: seconds of one processor core": [
        Column("steps", "steps", "S"),
        Column("per step", "cpu_seconds_per_step", "S"),
        Column("peak memory, MB", "peak_memory_mb", "S"),
        Column("per image", "cpu_seconds_per_image", "S"),
    ],
}
"""Title -> columns of the tables that are printed from the same rows."""


def cosa_sections(rows: Sequence[Row]) -> dict[str, str]:
    """Give the tables of rows as Markdown, by their titles; rows without a value in a table are left out of it.

    Of the pairs without and with a CRF, rows that have no CRF are left out, too.

    Args:
        rows: rows of all seeds, in their order.
    """
    result = {}
    for title, columns in COSA_SECTIONS.items():
        telling = [column for column in columns if title != _CRF_PAIRS or column.of == "S + CRF"]
        names = {row.name for row in rows for column in telling if values_of([row], column.metric, column.of)}
        shown = [row for row in rows if row.name in names]
        if shown:
            result[title] = format_rows(shown, columns)
    return result


@dataclass(frozen=True)
class CosaTable(BenchmarkTable):
    """A table whose methods are restored as a whole: the online network and the thresholds are not in ``model.pt``.

    Attributes:
        title: stands above the table, and says that it was run small.
    """

    title: str = ""

    def trained(self, recipe: str, seed: int) -> Trained:
        """Give a recipe with the weights of both networks and its thresholds, trained where they are missing.

        Raises:
            DataError: finished weights whose checkpoint is missing.
        """
        one = super().trained(recipe, seed)
        if not hasattr(one.method, "online"):
            return one
        folder = self.folder(recipe, seed)
        checkpoint = latest_checkpoint(folder / "checkpoints")
        if checkpoint is None:
            raise DataError(
                f"{folder} holds weights without a checkpoint, which has the online network and the thresholds: "
                "remove the folder to train it anew."
            )
        one.method.load_state_dict(read_checkpoint(checkpoint, ["method"])["method"])
        one.method.eval()
        return one

    def pseudo_masks(self, teacher: str, seed: int, **words: Any) -> Path:
        """Give the folder of a teacher's class maps, cut at its threshold, of the training images; labels are given."""
        if words.get("maps") != "cpl":
            return super().pseudo_masks(teacher, seed, **words)
        recipe, _, trained = self.trained(teacher, seed)
        method, folder = cast(CoSA, trained), self.folder(teacher, seed)
        scale = method.seeds.healthy_levels.get("seeds")
        level = None if scale is None else scale.level.value
        network = LabelMaps(method.network, cuts_of(method).maps, level).eval()
        items = self.data.pseudo_items(recipe, seed)
        self.data.write_pseudo_masks(network, folder / "model.pt", items, folder / "pseudo_masks_cpl")
        return folder / "pseudo_masks_cpl"

    def format(self, rows: Sequence[Row]) -> str:
        """Give the tables of these rows as Markdown, the main one last with what the labels are."""
        (_, main), *others = [*cosa_sections(rows).items()] or [("", "")]
        told = super().format(rows).removeprefix(main).strip()
        learned = sorted({row.name for row in rows if row.name in self.recipes and self._learns_masks(row.name)})
        masks = f"Read masks in training: {'; '.join(learned)}." if learned else ""
        parts = [f"**{self.title}**", main, *(f"{title}\n\n{text}" for title, text in others), masks, told]
        return "\n\n".join(part for part in parts if part)

    def _learns_masks(self, recipe: str) -> bool:
        words = self.recipes[recipe].words
        return words.get("guide") == "oracle" or recipe.startswith(FULL_SUPERVISION)


def make_cosa_table(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the table of CoSA on tiles of photographs or on slices, with one class.

    Args:
        datalist: path of a prepared ``datalist.json``.
        out: folder for weights, pseudo-masks, rows and the table.
        seeds: seeds of each row; the subtractive rows, guides, presets, AFA and BMP have the first one alone.
        split: where the unseen images lie.
        runs: folder with rows of earlier sessions, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
        rows: which rows to make, see there; none: all but those of :data:`SEGMENTERS`.
    """
    kind, data = cosa_data(datalist, split)
    budget = COSA_BUDGETS[kind]
    recipes = cosa_recipes(budget)
    entries = [_entry(data, kind, budget, name) for name in recipes]
    if isinstance(data, CosaTiles) and "blue" in data.modalities:
        entries.append(Entry("trivial: Otsu on the blue channel", partial(_blue, data), None))
    columns = next(iter(COSA_SECTIONS.values()))
    name = f"cosa_{data.header['name']}"
    rows = rows or [folder_name(entry.name) for entry in entries if entry.name not in SEGMENTERS]
    title = cosa_title("Tables 3 and 4a", data, budget)
    return CosaTable(name, data, out, recipes, entries, columns, seeds=seeds, runs=runs, rows=rows, title=title)


def cosa_title(what: str, data: Data, budget: CosaBudget) -> str:
    """Tell what of the paper a table or its figures are, and that they were run small.

    Args:
        what: tables or figures of the paper.
        data: what they are made on.
        budget: of the kind of data.
    """
    return (
        f"{what} of Yang et al. (ECCV 2024), run small on {data.header['name']}: EfficientNet-Lite0, "
        f"{budget.epochs} epochs, items of {budget.grid} pixels. Not the paper's run"
    )


def _entry(data: Data, kind: str, budget: CosaBudget, name: str) -> Entry:
    """Give what is measured of a recipe; the CRF of whole methods alone."""
    words = cosa_recipes(budget)[name].words
    whole = words["method"] != "cosa" or name in (ALL, WITHOUT_DT) or words["preset"] != "default"
    measured = {
        "every": _EVERY,
        "scales": list(budget.scales),
        "refinement": ClassMapRefinement("crf").settings if whole else None,
    }
    part = {"cosa": _by_branch, "cam": _class_maps, "seam": _class_maps}.get(words["method"], _segmentation)
    # Only slices are gated by presence: a photograph is measured where the finding is known to be.
    measure = partial(part, data, budget, kind == "slices", whole)
    return Entry(name, measure, name, "first" if name in ONE_SEED else "each", words=measured)


# ---- measuring -------------------------------------------------------------------------------------------------------


def _by_branch(
    data: Data, budget: CosaBudget, gated: bool, whole: bool, table: BenchmarkTable, trained: Sequence[Trained]
) -> Iterator[Measured]:
    """Measure the masks of both branches of both networks."""
    (one,) = trained
    method: Any = one.method
    cuts = cuts_of(method)
    for split, every, end in (("training", _EVERY, " train"), (data.split, 1, "")):
        cases = data.measured_cases(one.recipe, split, every)
        for network, beginning in ((method.online, "online "), (method.network, "")):
            start = time.process_time()
            maps = branch_maps(method.seeds, network, cases, data.side)
            seconds = (time.process_time() - start) / len(cases)
            masks = [
                branch_masks(of_case, cuts, torch.as_tensor(case["label"]))
                for of_case, case in zip(maps, cases, strict=True)
            ]
            for name in masks[0]:
                metrics = _measure(data, cases, [of_case[name] for of_case in masks])
                if name in ("CPL", "CPL†"):
                    metrics["xi"] = {"mean": cuts.maps if name == "CPL" else cuts.auxiliary}
                if name == "S":
                    metrics["cpu_seconds_per_image"] = {"mean": seconds}
                yield Measured(f"{beginning}{name}{end}", metrics, split)
    # The last ones are those of the assignment network, of the unseen images.
    yield from _with_masks(cases, [of_case.logits for of_case in maps], 2 * len(method.seeds.scales))
    yield from _swept(
        data, cases, [of_case.maps for of_case in maps], each=one.recipe.words.get("dt") is False and whole
    )
    if whole:
        yield _after_crf(data, cases, [of_case.logits for of_case in maps], seconds)


def _segmentation(
    data: Data, budget: CosaBudget, gated: bool, whole: bool, table: BenchmarkTable, trained: Sequence[Trained]
) -> Iterator[Measured]:
    """Measure the segmentation of another method, with the labels that it has at hand."""
    (one,) = trained
    cases = data.measured_cases(one.recipe, data.split, 1)
    start = time.process_time()
    logits = segmentation_logits(one.method.network, cases, budget.scales, data.side)
    seconds = (time.process_time() - start) / len(cases)
    rule = MaskRule(output_kind="segmentation")
    masks = [rule.mask(each[None])[0] for each in logits]
    yield Measured("S", _measure(data, cases, masks) | {"cpu_seconds_per_image": {"mean": seconds}})
    given = MaskRule(output_kind="segmentation", gate="given")
    masks = [
        given.mask(each[None], torch.as_tensor(case["label"])[None])[0]
        for each, case in zip(logits, cases, strict=True)
    ]
    yield Measured("S given", _measure(data, cases, masks))
    yield from _with_masks(cases, logits, 2 * len(budget.scales))
    yield _after_crf(data, cases, logits, seconds)


def _class_maps(
    data: Data, budget: CosaBudget, gated: bool, whole: bool, table: BenchmarkTable, trained: Sequence[Trained]
) -> Iterator[Measured]:
    """Measure class maps: with the labels that they predict, and with given labels."""
    (one,) = trained
    network: Any = one.method.network
    start = time.process_time()
    cases, maps = data.whole_maps(one.recipe, network)
    seconds = (time.process_time() - start) / len(cases)
    rule = rule_of_kind(network, budget.rule, gated=gated)
    yield Measured("S", measure_cases(data, cases, maps, rule, None) | {"cpu_seconds_per_image": {"mean": seconds}})
    given = MaskRule.of(network, rule=budget.rule, gate="given")
    masks = [given.mask(each, torch.as_tensor(case["label"])[None])[0] for each, case in zip(maps, cases, strict=True)]
    yield Measured("CPL", _measure(data, cases, masks))
    start = time.process_time()
    metrics = measure_cases(data, cases, maps, rule, "crf")
    seconds += (time.process_time() - start) / len(cases)
    yield Measured("S + CRF", metrics | {"cpu_seconds_per_image": {"mean": seconds}})


def _blue(data: CosaTiles, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure Otsu's threshold of the dark part of the blue channel."""
    cases = data.cases()
    channel = data.modalities.index("blue")
    maps = [-torch.as_tensor(case["image"])[None, channel : channel + 1].float() for case in cases]
    yield Measured("S", measure_cases(data, cases, maps, MaskRule(rule="otsu", gate="none"), None))


def _measure(data: Data, cases: Cases, masks: Sequence[torch.Tensor]) -> Metrics:
    """Measure masks (1, *S), one per case."""
    table = data.case_table()
    for case, mask in zip(cases, masks, strict=True):
        add_case(table, case, mask)
    return table.summary()


def _after_crf(data: Data, cases: Cases, logits: Sequence[torch.Tensor], seconds: float) -> Measured:
    """Measure segmentations after the CRF, with the seconds per image of both."""
    start = time.process_time()
    rule = MaskRule(output_kind="segmentation")
    metrics = measure_cases(data, cases, [each[None] for each in logits], rule, "crf")
    seconds += (time.process_time() - start) / len(cases)
    return Measured("S + CRF", metrics | {"cpu_seconds_per_image": {"mean": seconds}})


def _with_masks(cases: Cases, logits: Sequence[torch.Tensor], passes: int) -> Iterator[Measured]:
    """Choose with masks the best cut of the foreground's probability, that of the mean logits over the passes."""
    known = [(each, case) for each, case in zip(logits, cases, strict=True) if case.get("mask") is not None]
    scores = [1 - (each / passes).softmax(0)[:1] for each, _ in known]
    masks = [torch.as_tensor(case["mask"]) for _, case in known]
    cuts = [n / 20 for n in range(1, 20)]
    best = oracle_raw_threshold(scores, masks, cuts)
    metrics = {"dice_pooled": {"mean": best.oracle_dice}, "oracle_cut": {"mean": best.oracle_threshold}}
    yield Measured(_BEST_CUT, metrics, oracle=True)


def _swept(data: Data, cases: Cases, maps: Sequence[torch.Tensor], *, each: bool) -> Iterator[Measured]:
    """Cut class maps at each threshold: the best one, chosen with masks, and on request all."""
    found = {cut: _measure(data, cases, [cut_maps(one, cut) for one in maps]) for cut in _CUTS}
    best = max(found, key=lambda cut: found[cut]["miou_pooled"]["mean"])
    yield Measured(_BEST_XI, found[best] | {"oracle_xi": {"mean": best}}, oracle=True)
    if each:
        for cut, metrics in found.items():
            yield Measured(f"CPL at {cut:g}", metrics)
        yield Measured(_BEST_OF_THESE, found[best], oracle=True)
