# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The tables of the gland paper, run small, on any prepared dataset of patches with two or more real classes.

| command            | of the paper       | rows                                                                   |
|--------------------|--------------------|------------------------------------------------------------------------|
| `gland`            | Table 2            | baseline, + CCA, + MPFP, both, + PLF (paper, official, oeem), bound    |
| `gland-comparison` | Table 1, Table A5  | bound, baseline, OEEM's loss without and with CCA and MPFP, the system |
| `gland-attention`  | Table 3            | structures of CCA, stages that it follows                              |
| `gland-pyramid`    | Table 4            | levels of MPFP, averaged or fused by S                                 |
| `gland-adaptation` | Fig. 4             | weights of another dataset, fine-tuned on shares of the images         |

A row is a classifier, whose class maps and pseudo-masks of the training patches are measured, and a segmenter that is
trained on them; rows of full supervision train the same segmenter on masks.  All networks are small and trained from
scratch, which the titles say; the paper's own networks are trained by the bundle's `paper.json`.

`map_miou` takes the class of the highest map; `map_miou_mixture` the scored class where its probability exceeds the cut
that a mixture finds in those of all images, without masks.

Every stage leaves its weights below ``<out>/<row>/seed<k>/`` and is skipped when they are there, so tables in one
folder share them.  Masks are read to measure, and to train the row that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from markupsafe import Markup

from monai_wsss._files import file_sha256
from monai_wsss.benchmark.formatting import Column, values_of
from monai_wsss.benchmark.gland_recipes import (
    CLASSIFIERS,
    OURS,
    ROWS,
    TEACHER,
    gland_recipes,
    make_segmenter,
    two_stages,
)
from monai_wsss.benchmark.patches import Patches
from monai_wsss.benchmark.published_numbers import published_tables
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.engines import with_weights
from monai_wsss.reports import box_chart

__all__ = [
    "GlandTable",
    "gland_columns",
    "make_gland_adaptation",
    "make_gland_attention",
    "make_gland_comparison",
    "make_gland_pyramid",
    "make_gland_table",
]

_COLUMNS = {
    "pseudo-masks, mIoU": "pseudo_miou",
    "class maps, mIoU": "map_miou",
    "mIoU": "miou_pooled",
    "F1 of the paper, 2m / (1 + m)": "f1_from_miou",
    "F1 of the scored class": "f1",
    "Dice of the scored class": "dice_pooled",
    "class maps cut by a mixture, mIoU": "map_miou_mixture",
}
_SHARES = (0.2, 0.1, 0.05, 0.01)
_UNTUNED = "without fine-tuning"
_FINE_TUNED = "fine-tuned on {share:.0%} of the images"
_OF_OEEM = "OEEM's loss, "


class GlandOptions(TypedDict, total=False):
    """Further arguments of the tables, see :func:`make_gland_table`."""

    epochs: int
    seeds: Sequence[int]
    split: str
    every: int
    samples: int
    width: int
    batch_size: int
    window: int


@dataclass(frozen=True)
class GlandTable(BenchmarkTable):
    """A table with a title, which says what of the paper it is and that it was run small.

    Attributes:
        title: stands above the table.
        published: number of the paper's table whose printed numbers stand below it, or empty.
    """

    title: str = ""
    published: str = ""

    def format(self, rows: Sequence[Row]) -> str:
        """Give the title and the rows as Markdown, and the paper's own numbers below."""
        parts = [f"**{self.title}**", super().format(rows)]
        if self.published:
            table = published_tables("gland")[self.published]
            parts += [f"**Table {self.published} as published, not run here: {table.title}**", table.markdown()]
        return "\n\n".join(parts)


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
    runs: Path | None = None,
) -> GlandTable:
    """Make the ablation of the gland paper, Table 2, run small.

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
        runs: folder with rows of earlier runs, see :class:`~monai_wsss.benchmark.BenchmarkTable`.
    """
    data = Patches(datalist, split, every, samples, window)
    words: dict[str, Any] = {"epochs": epochs, "seeds": seeds, "width": width, "batch_size": batch_size, "runs": runs}
    return _table("gland", "2", data, out, **words)


def make_gland_comparison(datalist: Path, out: Path, **options: Unpack[GlandOptions]) -> GlandTable:
    """Make Table 1 and Table A5, run small: what this package has of the competitors, tested against the system.

    Of OEEM it is the loss alone.  The published numbers of all competitors stand below the table.

    Args:
        datalist: see :func:`make_gland_table`.
        out: see there.
        options: see there.
    """
    return _of_paper("gland_comparison", "1", datalist, out, options)


def make_gland_attention(datalist: Path, out: Path, **options: Unpack[GlandOptions]) -> GlandTable:
    """Make Table 3, run small: structures of CCA, and the stages that it follows.

    Args:
        datalist: see :func:`make_gland_table`.
        out: see there.
        options: see there.
    """
    return _of_paper("gland_attention", "3", datalist, out, options)


def make_gland_pyramid(datalist: Path, out: Path, **options: Unpack[GlandOptions]) -> GlandTable:
    """Make Table 4, run small: levels of MPFP, and how they are fused.

    Args:
        datalist: see :func:`make_gland_table`.
        out: see there.
        options: see there.
    """
    return _of_paper("gland_pyramid", "4", datalist, out, options)


def make_gland_adaptation(
    datalist: Path,
    out: Path,
    *,
    initial: Path = Path("models"),
    initial_oeem: Path | None = None,
    epochs: int = 6,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "validation",
    every: int = 1,
    samples: int = 1600,
    width: int = 8,
    batch_size: int = 32,
    window: int = 112,
) -> GlandTable:
    """Make Fig. 4, run small: the whole system (CCA, MPFP, PLF) fine-tuned on few images of another dataset.

    There is one row per share of the images and one without fine-tuning; each seed is a draw of the images.  The figure
    is the box chart over the draws.  The paper's two directions are two tables: from ProG to GlaS, and back.

    Args:
        datalist: see :func:`make_gland_table`, and so all arguments that are not named here.
        out: folder for weights, pseudo-masks, rows, the table and its figure.
        initial: folder with ``classifier.pt`` and ``model.pt`` of another dataset, both of this table's networks: those
            of the rows "CCA + MPFP (Eq. 9)" (classifier) and "CCA + MPFP (Eq. 9), PLF (paper)" (segmenter).
        initial_oeem: the same of the baseline and of OEEM's loss; None leaves out the rows of OEEM's loss.
        seeds: seeds of each row, and of its draw.
    """
    data = Patches(datalist, split, every, samples, window, share_of="images")
    recipes: dict[str, Recipe] = {}
    systems = {"": (initial, CLASSIFIERS[TEACHER], "paper")}
    if initial_oeem is not None:
        systems[_OF_OEEM] = (initial_oeem, CLASSIFIERS["baseline, average pooling"], "oeem")
    entries: list[Entry] = []
    for system, (folder, settings, plf) in systems.items():
        own: dict[str, Recipe] = {}
        for share in _SHARES:
            name = system + _FINE_TUNED.format(share=share)
            words: dict[str, Any] = {"share": share, "initial": folder, "plf": plf, "batch_size": batch_size}
            own |= two_stages(name, settings, width=width, **words)
        entries.append(Entry(system + _UNTUNED, partial(_untuned, data, folder), None))
        entries += [_entry(data, key) for key in own if key.endswith(" > segmenter")]
        recipes |= own
    digests = {
        f"{system}{name}": file_sha256(folder / f"{name}.pt")
        for system, (folder, _, _) in systems.items()
        for name in ("classifier", "model")
    }
    return GlandTable(
        "gland_adaptation", data, out, recipes, entries, [Column(*column) for column in _COLUMNS.items()],
        epochs=epochs, seeds=seeds, figures={"gland_adaptation.svg": _share_chart},
        settings={"width": width, **digests},
        title=_title(data, width, f"Fig. 4: weights of {initial.name} fine-tuned on shares of the images"),
    )  # fmt: skip


def _of_paper(name: str, number: str, datalist: Path, out: Path, options: GlandOptions) -> GlandTable:
    """Make a table of the paper with the options of :func:`make_gland_table`, beside whose rows it lies."""
    usual = make_gland_table(datalist, out, **options)
    batch_size = options.get("batch_size", 32)
    width, data = usual.settings["width"], cast(Patches, usual.data)
    return _table(name, number, data, out, epochs=usual.epochs, seeds=usual.seeds, width=width, batch_size=batch_size)


def _table(
    name: str,
    number: str,
    data: Patches,
    out: Path,
    *,
    epochs: int,
    seeds: Sequence[int],
    width: int,
    batch_size: int,
    runs: Path | None = None,
) -> GlandTable:
    recipes = gland_recipes(width, batch_size=batch_size)
    columns = gland_columns(None if name == "gland" else OURS)
    entries = [_entry(data, f"{row} > segmenter") for row in ROWS[name]]
    return GlandTable(
        name, data, out, recipes, entries, columns, epochs=epochs, seeds=seeds, settings={"width": width}, runs=runs,
        title=_title(data, width, f"Table {number}"), published=number,
    )  # fmt: skip


def gland_columns(against: str | None = None) -> list[Column]:
    """Give the columns of a table of glands.

    Args:
        against: the row that others are tested against; None takes the first, the baseline.
    """
    return [
        *(Column(*column) for column in _COLUMNS.items()),
        Column("ratio of mIoU to full supervision", "miou_pooled", kind="ratio"),
        Column(f"p against {'the baseline' if against is None else against}", "miou_pooled", kind="p", against=against),
    ]


def _title(data: Patches, width: int, what: str) -> str:
    return (
        f"{what} of Feng et al. (AAAI 2025), run small on {data.header['name']}: a ResNet38 of width {width} and a "
        "U-Net, both from scratch. Not the paper's run"
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
    """Draw the mIoU by the share of the images, over the draws."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        name = row.name.removeprefix(_OF_OEEM).removeprefix("fine-tuned on ")
        system = "OEEM's loss" if row.name.startswith(_OF_OEEM) else "CCA + MPFP + PLF"
        groups.setdefault(name, {}).setdefault(system, []).extend(values_of([row], "miou_pooled"))
    title = table.title if isinstance(table, GlandTable) else "weights fine-tuned on shares of the images"
    return box_chart(groups, title=f"{title}. mIoU over the draws", y_label="mIoU")
