# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The ablation of the gland paper on any prepared dataset of patches with two or more real classes and no background.

| rows                                  | what is measured                                                  |
|---------------------------------------|-------------------------------------------------------------------|
| baseline, + CCA, + MPFP, CCA + MPFP   | the classifier's class maps and its pseudo-masks of the training  |
|                                       | patches, then a segmenter trained on them by cross-entropy        |
| + PLF (paper, official, oeem)         | a segmenter trained on the last row's pseudo-masks                |
| full supervision (masks)              | the same segmenter on masks, for as many epochs: the upper bound  |

Every stage leaves its weights below ``<out>/<row>/seed<k>/`` and is skipped when they are there.  Masks are read to
measure, and to train the row that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.networks.nets import UNet
from monai.transforms import Compose, LoadImaged, RandFlipd, RandRotate90d
from monai.utils import set_determinism
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss._files import file_sha256
from monai_wsss.benchmark.recipe_table import (
    Row,
    claim_folder,
    folder_name,
    format_cell,
    train_method,
    write_table,
)
from monai_wsss.data import (
    EpochCacheDataset,
    LabelBalancedSampler,
    attach_pseudo_masks,
    draw_share,
    load_datalist,
    load_header,
)
from monai_wsss.engines import with_weights
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer, score_pseudo_masks
from monai_wsss.methods import (
    FullSupervision,
    GlandClassification,
    PseudoMaskSupervision,
    SegmentationNetwork,
    WSSSMethod,
)
from monai_wsss.metrics import CaseTable, welch_t_test
from monai_wsss.refinement import to_mask
from monai_wsss.reports import box_chart, write_svg
from monai_wsss.transforms import NormalizeSubjectd

__all__ = ["GlandAdaptation", "GlandTable"]

FULL_SUPERVISION = "full supervision (masks)"

_CCA = {"attention": "cca", "attention_stages": (4, 5, 6)}
_MPFP = {"pyramid": (2, 4, 8), "fusion": "sign"}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "baseline, average pooling": {"pooling": "average"},
    "+ CCA": {"pooling": "average", **_CCA},
    "+ MPFP (Eq. 9)": {**_MPFP, "logit": "weighted"},
    "CCA + MPFP (Eq. 9)": {**_CCA, **_MPFP, "logit": "weighted"},
    "default: top 25 %": {},
}
"""Settings over those of the preset ``default``; each row's pseudo-masks train a segmenter by cross-entropy."""

_PLF_TEACHER = "CCA + MPFP (Eq. 9)"
SEGMENTERS: dict[str, str] = {f"{_PLF_TEACHER}, PLF ({name})": name for name in ("paper", "official", "oeem")}
"""Variants of purified label filtration on the pseudo-masks of the full system."""


@dataclass(frozen=True)
class GlandTable:
    """Trains what is missing, measures every row and writes ``gland.json`` and ``gland.md``.

    Args:
        datalist: path of a prepared ``datalist.json`` without background.
        out: folder for weights, pseudo-masks, rows and the table.
        epochs: of every training, of ``samples`` patches each.
        seeds: of every row.
        split: where to measure the segmentation.
        every: train on the patches of every n-th picture of the training split, for a smaller budget.
        samples: patches of an epoch.
        width: of the small ResNet38.
        batch_size: patches of a step.
        learning_rate: peak of the one-cycle schedule.
        window: side of the windows in which whole pictures are segmented, in pixels; the training patches' side.

    Raises:
        DataError: the datalist has a background, or ``out`` holds weights of other settings.
    """

    datalist: Path
    out: Path
    epochs: int = 6
    seeds: Sequence[int] = (0, 1, 2)
    split: str = "validation"
    every: int = 1
    samples: int = 1600
    width: int = 8
    batch_size: int = 32
    learning_rate: float = 2e-3
    window: int = 112

    name: ClassVar[str] = "gland"
    figures: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ("pseudo_miou", "map_miou", "miou_pooled", "f1", "f1_from_miou", "dice_pooled")

    def run(self) -> dict[str, list[Row]]:
        """Row name to one metrics map a seed."""
        self._check()
        rows: dict[str, list[Row]] = {}
        for name, settings in CLASSIFIERS.items():
            rows[name] = [self._two_stages(name, settings, seed) for seed in self.seeds]
        for name, plf in SEGMENTERS.items():
            rows[name] = [self._second_stage(name, _PLF_TEACHER, plf, seed) for seed in self.seeds]
        rows[FULL_SUPERVISION] = [self._bound(seed) for seed in self.seeds]
        write_table(self.out, self.name, rows, self.format(rows))
        return rows

    def format(self, rows: dict[str, list[Row]]) -> str:
        """The table as Markdown: mean and standard deviation over seeds, the ratio of mIoU to full supervision, and
        Welch's t-test of each row against the baseline."""
        full = np.mean(_values(rows[FULL_SUPERVISION], "miou_pooled"))
        first = _values(next(iter(rows.values())), "miou_pooled")
        heads = ["row", *self.columns, "ratio of mIoU to full supervision", "p against the baseline"]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, results in rows.items():
            values = _values(results, "miou_pooled")
            p = f"{welch_t_test(first, values).p:.2f}" if len(values) > 1 and values != first else "–"
            cells = [format_cell(results, column) for column in self.columns]
            lines.append(f"| {name} | {' | '.join(cells)} | {np.mean(values) / full:.2f} | {p} |")
        return "\n".join(lines)

    def _check(self) -> None:
        header = load_header(self.datalist)
        if header["background"]:
            raise DataError(f"{self.datalist} has a background: this table is for classes that are all real tissue.")
        names = ("epochs", "every", "samples", "width", "batch_size", "learning_rate")
        settings = {
            "datalist_sha256": file_sha256(self.datalist),
            **{name: getattr(self, name) for name in names},
            **self._initial_digests(),
        }
        claim_folder(self.out, settings)

    def _initial_digests(self) -> dict[str, str]:
        """Of the weights that trainings start from; none from scratch."""
        return {}

    # ------------------------------------------------------------------------------------------------------ stages

    def _two_stages(self, name: str, settings: dict[str, Any], seed: int, share: float = 1.0) -> Row:
        """Classifier, pseudo-masks of the training patches, segmenter."""
        folder = self.out / folder_name(name) / f"seed{seed}"
        items = draw_share(self._patches(), share, seed=seed)
        set_determinism(seed)
        classifier = GlandClassification.from_preset(num_classes=self._classes, width=self.width, **settings)
        self._train(classifier, folder / "classifier", seed, items)
        row = {"map_miou": self._measure(classifier.network, "activation")["miou_pooled"]}
        writer = PseudoMaskWriter(
            classifier.network,
            folder / "classifier" / "model.pt",
            items,
            Compose(_reading(["image"])),
            VolumeInferer(2),
            folder / "pseudo_masks",
            background=False,
        )
        writer.run()
        header = load_header(self.datalist)
        quality = score_pseudo_masks(
            folder / "pseudo_masks",
            draw_share(self._patches(masks=True), share, seed=seed),
            LoadImaged(["pseudo_mask", "mask"], ensure_channel_first=True),
            folder / "pseudo_quality.json",
            classes=header["classes"],
            background=False,
        )
        row["pseudo_miou"] = {"mean": quality["miou_pooled"]}
        return {**row, **self._second_stage(name, name, "none", seed, share)}

    def _second_stage(self, name: str, teacher: str, plf: str, seed: int, share: float = 1.0) -> Row:
        set_determinism(seed)
        method = PseudoMaskSupervision(self._segmenter(), background=False, plf=plf)
        pseudo = self.out / folder_name(teacher) / f"seed{seed}" / "pseudo_masks"
        items = attach_pseudo_masks(draw_share(self._patches(), share, seed=seed), pseudo)
        self._train(method, self.out / folder_name(name) / f"seed{seed}" / "segmenter", seed, items)
        return self._measure(method.network, "segmentation")

    def _bound(self, seed: int) -> Row:
        set_determinism(seed)
        method = FullSupervision(self._segmenter(), background=False)
        items = self._patches(masks=True)
        self._train(method, self.out / folder_name(FULL_SUPERVISION) / f"seed{seed}" / "segmenter", seed, items)
        return self._measure(method.network, "segmentation")

    def _segmenter(self) -> SegmentationNetwork:
        return SegmentationNetwork(
            UNet(2, 3, self._classes, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=1, norm="batch")
        )

    # --------------------------------------------------------------------------------------------------- machinery

    @property
    def _classes(self) -> int:
        return len(load_header(self.datalist)["classes"])

    def _patches(self, *, masks: bool = False) -> list[dict[str, Any]]:
        """The training patches of every n-th picture."""
        items = load_datalist(self.datalist, "training", masks=masks)
        pictures = sorted({item.get("source", item["id"]) for item in items})[:: self.every]
        return [item for item in items if item.get("source", item["id"]) in pictures]

    def _train(self, method: WSSSMethod, folder: Path, seed: int, items: list[dict[str, Any]]) -> None:
        if (folder / "model.pt").is_file():
            with_weights(method.network, folder / "model.pt")
            return
        self._begin(method.network, folder.name)
        keys = [key for key in ("image", "mask", "pseudo_mask") if key in items[0]]
        random = [RandRotate90d(keys, 0.75, 3), RandFlipd(keys, 0.5, 0)]
        dataset = EpochCacheDataset(
            items, Compose(_reading(keys)), Compose(random), seed=seed, progress=False, runtime_cache=True
        )
        sampler = LabelBalancedSampler(items, self.samples, seed=seed)
        loader = DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, num_workers=0)
        train_method(method, loader, folder, epochs=self.epochs, learning_rate=self.learning_rate)

    def _begin(self, network: nn.Module, stage: str) -> None:
        """What a training starts from, ``stage`` being "classifier" or "segmenter"; here from scratch."""

    @torch.no_grad()
    def _measure(self, network: nn.Module, kind: str) -> Row:
        """Whole pictures in overlapping windows, scores averaged, argmax; no tags are read."""
        header = load_header(self.datalist)
        table = CaseTable(header["classes"], background=False, scored_class=header["scored_class"])
        inferer = VolumeInferer(2, roi_size=(self.window, self.window), overlap=0.5)
        network.eval()
        items = load_datalist(self.datalist, self.split, masks=True)
        for case in CacheDataset(items, Compose(_reading(["image", "mask"])), cache_rate=0.0):
            scores = inferer(torch.as_tensor(case["image"]).float()[None], network)
            table.add(
                id=case["id"],
                subject=case["subject"],
                label=torch.as_tensor(case["label"]),
                prediction=to_mask(scores, output_kind=kind, rule="argmax", gate="none")[0],
                reference=case["mask"],
            )
        return table.summary()


@dataclass(frozen=True)
class GlandAdaptation(GlandTable):
    """Domain adaptation (Fig. 4): both stages fine-tuned on a small share of another dataset's tags, several draws.

    A row a share and one without fine-tuning; each seed is a draw of the patches.  Writes ``gland_adaptation.svg``, the
    box plot over the draws.

    Args:
        initial: folder with ``classifier.pt`` and ``model.pt`` of another dataset, both of this table's networks.
    """

    initial: Path = Path("models")

    name: ClassVar[str] = "gland_adaptation"
    figures: ClassVar[tuple[str, ...]] = ("gland_adaptation.svg",)
    shares: ClassVar[tuple[float, ...]] = (0.2, 0.1, 0.05, 0.01)

    def run(self) -> dict[str, list[Row]]:
        """As the base's, and the chart."""
        self._check()
        before = self._segmenter()
        self._begin(before, "segmenter")
        rows = {"without fine-tuning": [self._measure(before, "segmentation")]}
        for share in self.shares:
            name = f"fine-tuned on {share:.0%} of the tags"
            rows[name] = [self._two_stages(name, {}, seed, share) for seed in self.seeds]
        write_table(self.out, self.name, rows, self.format(rows))
        groups = {
            name.removeprefix("fine-tuned on "): _values(results, "miou_pooled") for name, results in rows.items()
        }
        chart = box_chart(
            {name: {"mIoU": values} for name, values in groups.items()},
            title="mIoU by the share of tags, over the draws",
            y_label="mIoU",
        )
        write_svg(self.out / self.figures[0], chart)
        return rows

    def format(self, rows: dict[str, list[Row]]) -> str:
        """The table as Markdown: mean and standard deviation over the draws."""
        lines = [f"| row | {' | '.join(self.columns)} |", "|---" * (len(self.columns) + 1) + "|"]
        for name, results in rows.items():
            lines.append(f"| {name} | {' | '.join(format_cell(results, column) for column in self.columns)} |")
        return "\n".join(lines)

    def _initial_digests(self) -> dict[str, str]:
        return {name: file_sha256(self.initial / f"{name}.pt") for name in ("classifier", "model")}

    def _begin(self, network: nn.Module, stage: str) -> None:
        with_weights(network, self.initial / ("classifier.pt" if stage == "classifier" else "model.pt"))


def _reading(keys: Sequence[str]) -> list[Any]:
    return [LoadImaged(keys, ensure_channel_first=True), NormalizeSubjectd("image", foreground="tissue")]


def _values(results: Sequence[Row], column: str) -> list[float]:
    return [row[column]["mean"] for row in results]
