# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What every table of the benchmark shares: train recipes that are missing, map the cases, measure, write rows.

Every training leaves ``<out>/<recipe>/seed<k>/model.pt`` and is skipped when that is there, so that a killed benchmark
goes on, and tables that share recipes and a folder train them once.  Masks are read to measure, and to train the
recipes that say so.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, DistributedSampler
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, LoadImaged, RandFlipd, RandRotate90d, Resized
from monai.utils import set_determinism
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._files import atomic_path, file_sha256, make_directory, write_json
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.cams import pool_maps
from monai_wsss.data import EpochCacheDataset, check_trainable, load_datalist, load_header
from monai_wsss.engines import TrainingLog, WSSSTrainer, load_tensors, one_cycle
from monai_wsss.methods import WSSSMethod
from monai_wsss.metrics import CaseTable
from monai_wsss.networks import ActivationNetwork
from monai_wsss.refinement import score_maps, to_mask
from monai_wsss.transforms import NormalizeSubjectd, ResizeInPlaned

__all__ = [
    "Cases",
    "RecipeTable",
    "Row",
    "claim_folder",
    "decision_options",
    "folder_name",
    "format_cell",
    "format_table",
    "maps_of",
    "train_method",
    "write_table",
]

logger = logging.getLogger(__name__)

_COLUMNS = ("dice_subject", "dice_pooled", "assd", "r_under", "r_over", "healthy_clean", "presence_auroc")
_STATISTICS = ("intensity_mean", "intensity_std")

Row = dict[str, dict[str, float]]
Cases = list[dict[str, Any]]


@dataclass(frozen=True)
class RecipeTable:
    """A table of recipes x seeds on one prepared dataset of slices with one class; a subclass says which rows.

    Args:
        datalist: path of the prepared ``datalist.json``.
        out: folder for weights, rows and the table.
        epochs: of every training.
        seeds: of every recipe.
        split: where to measure.
        grid: in-plane size of the networks.
        batch_size: images of a training step.
        learning_rate: peak of the one-cycle schedule.
    """

    datalist: Path
    out: Path
    epochs: int = 8
    seeds: Sequence[int] = (0, 1, 2)
    split: str = "validation"
    grid: tuple[int, int] = (64, 64)
    batch_size: int = 32
    learning_rate: float = 1e-3

    name: ClassVar[str]
    figures: ClassVar[tuple[str, ...]] = ()

    def run(self) -> dict[str, list[Row]]:
        """Train what is missing, measure every row, write ``<name>.json`` and ``<name>.md``.

        Returns:
            row name to one metrics map a seed.
        """
        self._check()
        rows: dict[str, list[Row]] = {}
        for name, results in self._all_rows():
            rows[name] = results
            write_json(make_directory(self.out / "rows") / f"{folder_name(name)}.json", results)
            logger.info("%s: Dice %.3f", name, np.mean([row["dice_subject"]["mean"] for row in results]))
        write_table(self.out, self.name, rows, self.format(rows))
        return rows

    def format(self, rows: dict[str, list[Row]]) -> str:
        """The table as Markdown."""
        return format_table(rows)

    def _all_rows(self) -> Iterator[tuple[str, list[Row]]]:
        raise NotImplementedError(f"{type(self).__name__} must give its rows.")

    def _check(self) -> None:
        """Refuse at once what would fail after hours of training.

        Raises:
            DataError: several classes, no positive or no negative image, or weights of other settings in ``out``.
        """
        classes = load_header(self.datalist)["classes"]
        if len(classes) != 1:
            raise DataError(f"{self.datalist} has the classes {', '.join(classes)}: this table is for one class.")
        check_trainable(load_datalist(self.datalist, "training"))
        settings = {
            "datalist_sha256": file_sha256(self.datalist),
            "epochs": self.epochs,
            "grid": list(self.grid),
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }
        claim_folder(self.out, settings)

    # --------------------------------------------------------------------------------------------------- training

    def _loader(self, recipe: Recipe, seed: int, *, masks: bool) -> DataLoader:
        keys = ["image", "mask"] if masks else ["image"]
        resizing = [ResizeInPlaned("image", self.grid)]
        if masks:
            resizing.append(Resized("mask", self.grid, mode="nearest"))
        items = self._items("training", recipe.by_subject, masks=masks)
        dataset = EpochCacheDataset(
            items,
            Compose([*_reading(keys), *resizing]),
            Compose([RandRotate90d(keys, 0.75, 3), RandFlipd(keys, 0.5, 0)]),
            seed=seed,
            progress=False,
        )
        sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=seed)
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler, num_workers=0)

    def _train(self, name: str, recipe: Recipe, seed: int, channels: int, classes: int) -> WSSSMethod:
        set_determinism(seed)
        method = recipe.build(channels, classes)
        folder = self.out / folder_name(name) / f"seed{seed}"
        if (folder / "model.pt").is_file():
            method.network.load_state_dict(load_tensors(folder / "model.pt"))
            return method
        loader = self._loader(recipe, seed, masks=method.uses_masks)
        start = time.perf_counter()
        train_method(method, loader, folder, epochs=self.epochs, learning_rate=self.learning_rate)
        logger.info("%s, seed %d: %.1f s an epoch", name, seed, (time.perf_counter() - start) / self.epochs)
        return method

    # --------------------------------------------------------------------------------------------------- measuring

    def _items(self, split: str, by_subject: bool, *, masks: bool) -> Cases:
        items = load_datalist(self.datalist, split, masks=masks)
        if masks and split == "training":
            # Full supervision trains on the images whose mask is on disk, healthy ones among them.
            items = [item for item in items if "mask" in item]
        if by_subject:
            return items
        return [{key: value for key, value in item.items() if key not in _STATISTICS} for item in items]

    def _cases(self, by_subject: bool, split: str | None = None) -> Cases:
        items = self._items(split or self.split, by_subject, masks=True)
        return list(CacheDataset(items, Compose(_reading(["image", "mask"])), progress=False))

    def _measure(self, cases: Cases, maps: Sequence[torch.Tensor], options: dict[str, Any]) -> Row:
        return self._case_table(cases, maps, options).summary()

    def _case_table(
        self, cases: Cases, maps: Sequence[torch.Tensor], options: dict[str, Any], *, sweep: bool = False
    ) -> CaseTable:
        """The cases with their masks, and for a threshold sweep with the maps in [0, 1] that were cut."""
        header = load_header(self.datalist)
        table = CaseTable(header["classes"], background=header["background"], scored_class=header.get("scored_class"))
        pooling = {name: options[name] for name in ("pooling", "topk_share", "lse_sharpness") if name in options}
        for case, scores in zip(cases, maps, strict=True):
            presence = None
            if pooling:
                logits = pool_maps(scores, **pooling).unflatten(1, (options.get("groups", 1), -1))
                presence = logits[:, options.get("reliable", slice(None))].amax(1)[0]
            table.add(
                id=case["id"],
                subject=case["subject"],
                label=case["label"],
                prediction=to_mask(scores, **options)[0],
                reference=case.get("mask"),
                presence=presence,
                cam=score_maps(scores, **options)[0] if sweep else None,
            )
        return table


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Write what decides the weights of a table into ``settings.json`` of its folder.

    Raises:
        DataError: the folder belongs to a table of other settings.
    """
    path = make_directory(out) / "settings.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise DataError(f"{out} holds weights that were trained with other settings: choose another folder.")
    write_json(path, settings)


def train_method(method: WSSSMethod, loader: DataLoader, folder: Path, *, epochs: int, learning_rate: float) -> None:
    """Train as every row of every table is trained: AdamW, one cycle of the learning rate.

    Leaves ``model.pt``, ``training_log.csv`` and checkpoints in ``folder``, and goes on from the last of these.
    """
    optimizer = torch.optim.AdamW(method.player_parameters("network"), lr=learning_rate, weight_decay=0.01)
    scheduler = one_cycle(optimizer, learning_rate, epochs, loader)
    WSSSTrainer(
        method,
        optimizer,
        loader,
        epochs,
        lr_schedulers=scheduler,
        train_handlers=[LrScheduleHandler(scheduler, print_lr=False, epoch_level=False), TrainingLog(folder)],
        checkpoint_dir=folder / "checkpoints",
        model_path=folder / "model.pt",
        resume=True,
    ).run()


def write_table(out: Path, name: str, rows: dict[str, list[Row]], text: str) -> None:
    """Write ``<name>.json``, the rows, and ``<name>.md``, their table as text."""
    write_json(out / f"{name}.json", rows)
    with atomic_path(out / f"{name}.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def folder_name(row: str) -> str:
    """The name of a row as a folder.

    Example:
        >>> folder_name("+ MPFP (Eq. 9)")
        'mpfp_eq_9'
    """
    return re.sub(r"[^a-z0-9]+", "_", row.lower()).strip("_")


def _reading(keys: list[str]) -> list[Any]:
    return [
        LoadImaged(keys, ensure_channel_first=True, allow_missing_keys=True),
        NormalizeSubjectd("image"),
    ]


@torch.no_grad()
def maps_of(cases: Cases, give: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """The maps of each case (1, channels, *S); images of one size are taken together."""
    maps: list[torch.Tensor] = []
    for start in tqdm(range(0, len(cases), 32), desc="maps", leave=False):
        images = [torch.as_tensor(case["image"]).float() for case in cases[start : start + 32]]
        if len({image.shape for image in images}) == 1:
            maps.extend(give(torch.stack(images)).split(1))
        else:
            maps.extend(give(image[None]) for image in images)
    return maps


def decision_options(network: torch.nn.Module, rule: str | None) -> dict[str, Any]:
    """The arguments of ``to_mask`` for what a network gives."""
    if not isinstance(network, ActivationNetwork):
        return {"output_kind": "segmentation"}
    words = vars(network.mask_rule()) | {"rule": rule}
    return {name: value for name, value in words.items() if value is not None}


def format_table(rows: dict[str, list[Row]]) -> str:
    """Markdown: mean over seeds (and standard deviation where there are several), and the ratio to full supervision.

    Example:
        >>> row = {"dice_subject": {"mean": 0.5}, "healthy_clean": {"mean": 1.0}}
        >>> print(format_table({"max": [row]}).splitlines()[-1])
        | max | 0.500 | – | – | – | – | 1.000 | – | – |
    """
    full = [
        row["dice_subject"]["mean"] for name, results in rows.items() if "full supervision" in name for row in results
    ]
    lines = ["| row | " + " | ".join(_COLUMNS) + " | ratio to full supervision |", "|---" * (len(_COLUMNS) + 2) + "|"]
    for name, results in rows.items():
        cells = [format_cell(results, column) for column in _COLUMNS]
        ratio = f"{np.mean([row['dice_subject']['mean'] for row in results]) / np.mean(full):.2f}" if full else "–"
        lines.append(f"| {name} | " + " | ".join([*cells, ratio]) + " |")
    return "\n".join(lines)


def format_cell(results: list[Row], column: str) -> str:
    """Mean over seeds and, of several, the standard deviation."""
    values = [row[name]["mean"] for row in results for name in (column, f"{column}_mm", f"{column}_px") if name in row]
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
