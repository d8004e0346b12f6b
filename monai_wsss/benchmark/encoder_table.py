# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What ImageNet's weights, refinement and a second stage give on any prepared data with one class, or glands.

| rows                                   | what is measured                                                      |
|----------------------------------------|-----------------------------------------------------------------------|
| CAM, from scratch / ImageNet weights   | class maps, as they are and refined                                   |
| second stage                           | a segmenter on pseudo-masks, plain and refined; its masks likewise    |
| full supervision (reads masks)         | the same network on masks: the bounds, as they are and refined        |
| trivial                                | what needs no network: Otsu on the blue channel, the whole region     |

The kind of the data follows from the datalist: tiles of photographs, patches of tissue, or slices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from monai_wsss._checks import check_choice, check_side
from monai_wsss._labels import IGNORED
from monai_wsss.benchmark.encoder_recipes import BUDGETS, encoder_recipes, lever_recipes
from monai_wsss.benchmark.formatting import Column
from monai_wsss.benchmark.patches import Patches
from monai_wsss.benchmark.prepared import Cases, PreparedData, Slices
from monai_wsss.benchmark.recipes import FULL_SUPERVISION, Recipe
from monai_wsss.benchmark.rows import Measured
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.benchmark.tiles import Tiles
from monai_wsss.data import load_header
from monai_wsss.metrics import CaseTable
from monai_wsss.refinement import ClassMapRefinement, MaskRule, decide_within

__all__ = [
    "Decided",
    "add_decided",
    "data_of",
    "decide_cases",
    "encoder_columns",
    "make_encoder_table",
    "make_lever_table",
    "measure_cases",
    "named",
    "rule_of_kind",
    "table_of",
]

Maps = list[torch.Tensor]
_PLAIN = "as they are"
_METRICS = (
    "dice_subject", "dice_pooled", "iou_pooled", "miou_pooled", "healthy_clean", "presence_auroc",
    "tile_auroc", "tile_clean", "cpu_seconds_per_step", "peak_memory_mb", "cpu_seconds_per_image",
    "cpu_seconds_to_mask",
)  # fmt: skip


class Decided(NamedTuple):
    """What is decided of one case.

    Attributes:
        mask: uint8 (1, *S).
        reference: (1, *S), or None.
        presence: (K,), or None.
        scores: the score map, (K, *S) in [0, 1], where it is to be measured as well; :func:`decide_cases` gives none.
        uncertainty: (1, *S) in [0, 1], of an ensemble, to be shown.
    """

    mask: torch.Tensor
    reference: torch.Tensor | None
    presence: torch.Tensor | None
    scores: torch.Tensor | None = None
    uncertainty: torch.Tensor | None = None


def make_encoder_table(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    refine: str = "par",
    side: int | None = None,
    colors: str = "as_they_are",
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the table of encoders: from scratch and from ImageNet's weights, up to full supervision.

    Args:
        datalist: path of a prepared ``datalist.json``.
        out: folder for weights, pseudo-masks, rows and the table.
        seeds: seeds of each row.
        split: where to measure.
        refine: refinement to measure beside none: ``"par"`` or ``"crf"``.
        side: side of slices, and of patches, as the network sees them, in pixels; None for that of the budget.
        colors: of tiles and the images that they were cut from: ``"as_they_are"``, or ``"standardized"``, see
            :class:`~monai_wsss.benchmark.tiles.Tiles`.
        runs: folder with rows of earlier sessions, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
        rows: which rows to make, see there.

    Raises:
        ValueError: another refinement or choice of colors, a CRF on data whose findings lie in regions, or
            standardized colors of other data than tiles.
    """
    kind, data = data_of(datalist, split, side, colors, several_classes=True)
    recipes = encoder_recipes(BUDGETS[kind], refined=refine)
    name = named("encoder", data, side=side, refine=refine)
    return _table(name, kind, data, out, recipes, refine=refine, seeds=seeds, runs=runs, rows=rows)


def make_lever_table(
    datalist: Path,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    refine: str = "par",
    side: int | None = None,
    colors: str = "as_they_are",
    runs: Path | None = None,
    rows: Sequence[str] = (),
) -> BenchmarkTable:
    """Make the table of the levers of a pretrained classifier: pooling, stride, depth, stem, freezing.

    Args:
        datalist: see :func:`make_encoder_table`, and so all arguments.
        out: folder for weights, rows and the table.
        seeds: seeds of each row.
        split: where to measure.
        refine: refinement to measure beside none.
        side: side of slices and patches.
        colors: of tiles.
        runs: folder with rows of earlier sessions.
        rows: which rows to make.
    """
    kind, data = data_of(datalist, split, side, colors, several_classes=True)
    recipes = lever_recipes(BUDGETS[kind], in_channels=len(data.modalities))
    name = named("levers", data, side=side, refine=refine)
    return _table(name, kind, data, out, recipes, refine=refine, seeds=seeds, runs=runs, rows=rows)


def encoder_columns(*, background: bool, bounded: bool = True) -> list[Column]:
    """Give the columns of both tables: metrics, costs, and ratios to the bounds.

    Args:
        background: whether the data have a background; ratios are of the pooled Dice then, else of the mean IoU.
        bounded: whether the table has rows of full supervision; there are no ratios without.
    """
    columns = [Column(each, each) for each in _METRICS]
    if not bounded:
        return columns
    metric = "dice_pooled" if background else "miou_pooled"
    return [
        *columns,
        Column("ratio to full supervision", metric, kind="ratio", bound=_PLAIN),
        Column("to the bound refined alike", metric, kind="ratio alike"),
        Column("to the best bound", metric, kind="ratio best"),
    ]


def named(table: str, data: PreparedData, *, side: int | None = None, refine: str = "par") -> str:
    """Name a table by its data and by what is not its default, so that no table overwrites the rows of another.

    Args:
        table: kind of the table.
        data: the dataset, which has the name of its folder.
        side: side of slices and patches, where it was given.
        refine: refinement beside none.
    """
    more = [] if side is None else [str(side)]
    more += [data.colors] if isinstance(data, Tiles) and data.colors != "as_they_are" else []
    more += [] if refine == "par" else [refine]
    return "_".join([table, data.header["name"], *more])


def data_of(
    datalist: Path, split: str, side: int | None, colors: str = "as_they_are", *, several_classes: bool = False
) -> tuple[str, PreparedData]:
    """Read which kind of data a datalist holds.

    Args:
        datalist: path of a prepared ``datalist.json``.
        split: where to measure.
        side: side of slices, and of patches, as the network sees them; None for that of the budget.
        colors: of tiles.
        several_classes: whether tiles and slices may have any number of classes.

    Returns:
        ``"tiles"``, ``"patches"`` or ``"slices"``, and the data.

    Raises:
        ValueError: standardized colors of other data than tiles, a side of tiles, or one of less than a pixel.
    """
    check_side(side)
    header = load_header(datalist)
    if header["background"] and header.get("tiles"):
        if side is not None:
            raise ValueError(f"Expected no `side` for tiles, got {side}: their size was chosen when they were cut.")
        return "tiles", Tiles(datalist, split, colors=colors, several_classes=several_classes)
    if colors != "as_they_are":
        raise ValueError(
            f"Expected `colors` 'as_they_are', got {colors!r}: slices and patches are normalized by subject anyway."
        )
    kind = "slices" if header["background"] else "patches"
    side = BUDGETS[kind].grid if side is None else side
    assert side is not None
    if kind == "patches":
        return kind, Patches(datalist, split, grid=side)
    slices = Slices(datalist, split, (side, side))
    slices.several_classes = several_classes
    return kind, slices


def _table(
    name: str,
    kind: str,
    data: PreparedData,
    out: Path,
    recipes: dict[str, Recipe],
    *,
    refine: str,
    **words: Any,
) -> BenchmarkTable:
    check_choice("refine", refine, ("par", "crf"))
    if refine == "crf" and isinstance(data, Tiles) and data.in_regions:
        raise ValueError("Expected `refine` 'par' for findings in regions, got 'crf', which reads the outside as well.")
    told = {"rule": BUDGETS[kind].rule, "refine": refine, "refinement": ClassMapRefinement(refine).settings}
    entries = [Entry(key, partial(_measured, data, kind, refine), key, words=told) for key in recipes]
    entries += [Entry(key, partial(give, data, refine), None, words=told) for key, give in _trivial(data, kind).items()]
    bounded = any(FULL_SUPERVISION in key for key in recipes)
    columns = encoder_columns(background=BUDGETS[kind].background, bounded=bounded)
    return BenchmarkTable(name, data, out, recipes, entries, columns, **words)


def _measured(
    data: PreparedData, kind: str, refine: str, table: BenchmarkTable, trained: Sequence[Trained]
) -> Iterator[Measured]:
    """Measure a network's masks, as they are and refined, and its presence on tiles.

    ``cpu_seconds_to_mask`` are the seconds of the processor, over all threads, for the maps, refinement and decision of
    an image, without reading it; ``cpu_seconds_per_image`` adds those that measure the mask.
    """
    (one,) = trained
    network = one.method.network
    presence = data.presence(network) if isinstance(data, Tiles) and network.output_kind == "activation" else {}
    # Cases are read once for all rows: none pays for it.
    data.whole_maps(one.recipe, None)
    start = time.process_time()
    cases, maps = data.whole_maps(one.recipe, network)
    seconds = (time.process_time() - start) / len(cases)
    pixels = data.topk_pixels(BUDGETS[kind].topk_share) if isinstance(data, Tiles) else None
    rule = rule_of_kind(network, BUDGETS[kind].rule, gated=kind == "slices" or pixels is not None, topk_pixels=pixels)
    for column, refinement in ((_PLAIN, None), (refine, refine)):
        start = time.process_time()
        decided = decide_cases(cases, maps, rule, refinement)
        to_mask = seconds + (time.process_time() - start) / len(cases)
        summary = table_of(data, cases, decided).summary()
        per_image = seconds + (time.process_time() - start) / len(cases)
        cost = {"cpu_seconds_to_mask": {"mean": to_mask}, "cpu_seconds_per_image": {"mean": per_image}}
        yield Measured(column, {**summary, **presence, **cost})


def rule_of_kind(network: Any, rule: str, *, gated: bool, topk_pixels: int | None = None) -> MaskRule:
    """Give the rule by which a network's output becomes a mask.

    Slices are gated by the predicted presence, and so are whole images whose tiles have several classes.  Photographs
    and X-rays of one class are measured where the finding is known to be, and tissue without a background always shows
    a class.
    """
    gate = None if gated else "none"
    if network.output_kind == "activation":
        return MaskRule.of(network, rule=rule, gate=gate, topk_pixels=topk_pixels)
    return MaskRule.of(network, rule="argmax" if rule == "argmax" else None)


def measure_cases(
    data: PreparedData, cases: Cases, maps: Maps, rule: MaskRule, refinement: str | None
) -> dict[str, dict[str, Any]]:
    """Decide the masks of all cases and measure them, in their regions alone where they have any."""
    return table_of(data, cases, decide_cases(cases, maps, rule, refinement)).summary()


def decide_cases(cases: Cases, maps: Maps, rule: MaskRule, refinement: str | None) -> list[Decided]:
    """Decide the masks of cases, in their regions alone where they have any.

    Args:
        cases: with ``image`` and, where they have them, ``mask`` and ``region``.
        maps: per case (1, channels, *S).
        rule: decides.
        refinement: ``"par"``, ``"crf"`` or None.
    """
    refine = None if refinement is None else ClassMapRefinement(refinement)
    decided = []
    for case, scores in zip(cases, maps, strict=True):
        image = torch.as_tensor(case["image"]).float()[None]
        reference, presence = case.get("mask"), None
        if "region" in case:
            region = torch.as_tensor(case["region"])[None]
            mask = decide_within(rule, scores, region, refine=refine, image=image)
            outside = mask == IGNORED
            mask = mask.masked_fill(outside, 0)
            reference = None if reference is None else torch.as_tensor(reference).masked_fill(outside[0], IGNORED)
        else:
            mask, _, presence = rule(scores) if refine is None else refine(rule, scores, image)
        shown = presence[0] if presence is not None and rule.gate == "predicted" else None
        decided.append(Decided(mask[0], reference, shown))
    return decided


def table_of(data: PreparedData, cases: Cases, decided: Sequence[Decided]) -> CaseTable:
    """Measure what was decided of cases, case by case.

    Args:
        data: the dataset.
        cases: as it gives them.
        decided: of :func:`decide_cases`.
    """
    table = data.case_table()
    for case, one in zip(cases, decided, strict=True):
        add_decided(table, case, one)
    return table


def add_decided(table: CaseTable, case: Mapping[str, Any], decided: Decided) -> None:
    """Measure what was decided of one case, and add it to a table."""
    table.add(
        id=case["id"],
        subject=case["subject"],
        label=torch.as_tensor(case["label"]),
        prediction=decided.mask,
        reference=decided.reference,
        presence=decided.presence,
        cam=decided.scores,
    )


def _trivial(data: PreparedData, kind: str) -> dict[str, Callable[..., Iterator[Measured]]]:
    """Give what needs no training, by name."""
    classes, header = data.header["classes"], data.header
    rows: dict[str, Callable[..., Iterator[Measured]]] = {"trivial: everything": _everything}
    if header["background"] and len(classes) > 1:  # one mask cannot be everything of several classes
        rows = {f"trivial: all {name}": partial(_everything, of=name) for name in classes}
    if kind == "tiles" and "blue" in data.modalities:
        rows["trivial: Otsu on the blue channel"] = _blue
    return rows


def _everything(
    data: PreparedData, refine: str, table: BenchmarkTable, trained: Sequence[Trained], of: str | None = None
) -> Iterator[Measured]:
    """Measure the mask that covers all, of one class: by default the scored one, or the first."""
    cases, _ = data.whole_maps(None, None)
    classes = data.header["classes"]
    scored = torch.zeros(1, len(classes), 1, 1)
    scored[:, classes.index(of or data.header.get("scored_class") or classes[0])] = 1
    maps = [scored.repeat(1, 1, *case["image"].shape[1:]) for case in cases]
    yield Measured("", measure_cases(data, cases, maps, MaskRule(rule="fixed", threshold=0.5, gate="none"), None))


def _blue(data: PreparedData, refine: str, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure Otsu's threshold of the dark part of the blue channel, as it is and refined."""
    cases, _ = data.whole_maps(None, None)
    channel = data.modalities.index("blue")
    maps = [-torch.as_tensor(case["image"])[None, channel : channel + 1].float() for case in cases]
    for column, refinement in ((_PLAIN, None), (refine, refine)):
        yield Measured(column, measure_cases(data, cases, maps, MaskRule(rule="otsu", gate="none"), refinement))
