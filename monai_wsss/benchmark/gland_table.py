# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The ablation of the gland paper on any prepared dataset of patches with two or more real classes and no background.

| rows                                  | what is measured                                                  |
|---------------------------------------|-------------------------------------------------------------------|
| baseline, + CCA, + MPFP, CCA + MPFP   | the classifier's class maps and its pseudo-masks of the training  |
|                                       | patches, then a segmenter trained on them by cross-entropy        |
| + PLF (paper, official, oeem)         | a segmenter trained on the last row's pseudo-masks                |
| full supervision (masks)              | the same segmenter on masks, for as many epochs: the upper bound  |

`map_miou` takes the class of the highest map; `map_miou_mixture` the scored class where its probability exceeds the cut
that a mixture finds in those of all images, without masks.

Every stage leaves its weights below ``<out>/<row>/seed<k>/`` and is skipped when they are there.  Masks are read to
measure, and to train the row that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monai_wsss._files import file_sha256
from monai_wsss.benchmark.formatting import Column, values_of
from monai_wsss.benchmark.gland_recipes import gland_recipes, make_segmenter, two_stages
from monai_wsss.benchmark.patches import Patches
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.engines import with_weights
from monai_wsss.reports import box_chart

__all__ = ["make_gland_adaptation", "make_gland_table"]

_METRICS = ("pseudo_miou", "map_miou", "miou_pooled", "f1", "f1_from_miou", "dice_pooled", "map_miou_mixture")
_SHARES = (0.2, 0.1, 0.05, 0.01)
_UNTUNED = "without fine-tuning"


def make_gland_table(
    datalist: Path,
    out: Path,
    *,
    epochs: int = 6,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    every: int = 1,
    samples: int = 1600,
    width: int = 8,
    batch_size: int = 32,
    window: int = 112,
) -> BenchmarkTable:
    """Make the ablation of the gland paper.

    Args:
        datalist: path of a prepared ``datalist.json`` without background.
        out: folder for weights, pseudo-masks, rows and the table.
        epochs: epochs of each training, of ``samples`` patches each.
        seeds: seeds of each row.
        split: where to measure the segmentation.
        every: train on the patches of one in so many images of the training split, for a smaller budget.
        samples: patches per epoch.
        width: width of the small ResNet38.
        batch_size: patches per training step.
        window: side of the windows in which whole images are segmented, in pixels; the training patches' side.
    """
    data = Patches(datalist, split, every, samples, window)
    recipes = gland_recipes(width, batch_size=batch_size)
    entries = [_entry(data, key) for key in recipes if key.endswith(" > segmenter")]
    columns = [
        *(Column(metric, metric) for metric in _METRICS),
        Column("ratio of mIoU to full supervision", "miou_pooled", kind="ratio"),
        Column("p against the baseline", "miou_pooled", kind="p"),
    ]
    settings = {"width": width}
    return BenchmarkTable("gland", data, out, recipes, entries, columns, epochs=epochs, seeds=seeds, settings=settings)


def make_gland_adaptation(
    datalist: Path,
    out: Path,
    *,
    initial: Path = Path("models"),
    epochs: int = 6,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    every: int = 1,
    samples: int = 1600,
    width: int = 8,
    batch_size: int = 32,
    window: int = 112,
) -> BenchmarkTable:
    """Make the table of domain adaptation (Fig. 4): both stages fine-tuned on a small share of another dataset's tags.

    There is one row per share and one without fine-tuning; each seed is a draw of the patches.  The figure is the box
    chart over the draws.

    Args:
        datalist: see :func:`make_gland_table`, and so all arguments that are not named here.
        out: folder for weights, pseudo-masks, rows, the table and its figure.
        initial: folder with ``classifier.pt`` and ``model.pt`` of another dataset, both of this table's networks.
        seeds: seeds of each row, and of its draw.
    """
    data = Patches(datalist, split, every, samples, window)
    recipes: dict[str, Recipe] = {}
    for share in _SHARES:
        name = f"fine-tuned on {share:.0%} of the tags"
        recipes |= two_stages(name, {}, width=width, share=share, initial=initial, batch_size=batch_size)
    entries = [Entry(_UNTUNED, partial(_untuned, data, initial), None)]
    entries += [_entry(data, key) for key in recipes if key.endswith(" > segmenter")]
    digests = {name: file_sha256(initial / f"{name}.pt") for name in ("classifier", "model")}
    return BenchmarkTable(
        "gland_adaptation",
        data,
        out,
        recipes,
        entries,
        [Column(metric, metric) for metric in _METRICS],
        epochs=epochs,
        seeds=seeds,
        figures={"gland_adaptation.svg": _share_chart},
        settings={"width": width, **digests},
    )


def _entry(data: Patches, key: str) -> Entry:
    name, _, _ = key.partition(" > ")
    return Entry(name, partial(_two_stages, data, name), key)


def _two_stages(data: Patches, name: str, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the segmenter of a row and, where the row has one, its classifier and the pseudo-masks."""
    (one,) = trained
    metrics: dict[str, dict[str, Any]] = {}
    classifier = f"{name} > classifier"
    if classifier in table.recipes:
        teacher = table.trained(classifier, one.seed)
        metrics["map_miou"] = data.measure(teacher.method.network, "activation")["miou_pooled"]
        if by_mixture := data.measure_mixture(teacher.method.network):
            metrics["map_miou_mixture"] = by_mixture["miou_pooled"]
        items = data.items(teacher.recipe, one.seed, masks=True)
        quality = data.measure_pseudo_masks(table.pseudo_masks(classifier, one.seed), items)
        metrics["pseudo_miou"] = {"mean": quality["miou_pooled"]}
    yield Measured("", {**metrics, **data.measure(one.method.network, "segmentation")})


def _untuned(data: Patches, initial: Path, table: BenchmarkTable, trained: Sequence[Trained]) -> Iterator[Measured]:
    """Measure the segmenter of the other dataset as it is."""
    network = with_weights(make_segmenter(len(data.header["classes"])), initial / "model.pt")
    yield Measured("", data.measure(network, "segmentation"))


def _share_chart(table: BenchmarkTable, rows: Sequence[Row]) -> Markup:
    """Draw the mIoU by the share of tags, over the draws."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        group = groups.setdefault(row.name.removeprefix("fine-tuned on "), {"mIoU": []})
        group["mIoU"] += values_of([row], "miou_pooled")
    return box_chart(groups, title="mIoU by the share of tags, over the draws", y_label="mIoU")
