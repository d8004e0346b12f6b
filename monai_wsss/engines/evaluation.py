# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The case table as an ignite metric, which MONAI's evaluators fill, and the log of a training run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.utils import convert_to_numpy

from monai_wsss._checks import DataError, check_choice
from monai_wsss._files import atomic_path, make_directory
from monai_wsss._pictures import PIXELS, ROWS_COLUMNS, is_sheared, unit_of
from monai_wsss._processes import gather_objects, is_main_process
from monai_wsss.data import load_header
from monai_wsss.metrics import PAPER_GRID, CaseTable, SlicePlace

__all__ = ["SegmentationScores", "TrainingLog", "case_spacing", "slice_place"]

logger = logging.getLogger(__name__)


def case_spacing(image: Any) -> tuple[float, ...] | None:
    """Give the voxel size in mm of an image (C, *S) as it was read; None where distances can only be told in pixels.

    So it is where the size is unknown, as in PNG and in DICOM without pixel spacing, and where the axes of a volume are
    not perpendicular, as with a tilted gantry.
    """
    if unit_of(image) == PIXELS or is_sheared(image):
        return None
    return tuple(float(side) for side in image.pixdim[: image.ndim - 1])


def slice_place(item: Mapping[str, Any]) -> SlicePlace | None:
    """Give the place of a slice in its volume, as its datalist tells it; None for other items."""
    if "volume" not in item:
        return None
    size: list[float] | None = None
    if "voxel_size" in item:
        x, y, between = (float(side) for side in item["voxel_size"])
        size = [y, x, between] if item.get("order") == ROWS_COLUMNS else [x, y, between]
    return SlicePlace(str(item["volume"]), int(item["slice"]), None if size is None else (size[0], size[1], size[2]))


class SegmentationScores(Metric):
    """An ignite metric that collects every case of an evaluation in a :class:`~monai_wsss.metrics.CaseTable`.

    Attach it under a name of your choice.  That name gets ``dice_subject`` (NaN, with a warning, where no reference
    exists); every metric of the table's summary goes to ``engine.state.metrics`` under its own name.  The metric reads
    decollated, post-processed items: ``pred`` (1, *S), ``label``, ``id``, ``subject``, and ``mask``, ``cam``, ``heat``,
    ``presence`` and ``label_filter`` where they exist, and of slices ``volume``, ``slice`` and ``voxel_size``, by which
    they are restacked.

    Args:
        datalist: path of the datalist, for the names of the classes and their context.
        bootstrap: resamplings of the subjects for the intervals.
        seed: seed of the resampling.
        protocol: None, or "paper" for the metrics of CoinGAN's tables beside all others, under names with ``paper_``
            in front (:mod:`monai_wsss.metrics.paper_protocol`).
        grid: the resized grid of that protocol, in pixels.

    Attributes:
        labels: per case of this process whether it shows each class, (K,), bool.
        areas: per case the share of its pixels that the mask gives to each class, (K,): what image-level labels can
            judge without a reference mask.
    """

    def __init__(
        self,
        datalist: str | os.PathLike[str],
        bootstrap: int = 1000,
        seed: int = 0,
        *,
        protocol: str | None = None,
        grid: Sequence[int] = PAPER_GRID,
    ) -> None:
        if protocol is not None:
            check_choice("protocol", protocol, ("paper",))
        self.labels: list[np.ndarray] = []
        self.areas: list[np.ndarray] = []
        self.paper_grid = None if protocol is None else tuple(grid)
        self.datalist = datalist
        self.bootstrap = bootstrap
        self.seed = seed
        super().__init__(lambda output: output)

    def reset(self) -> None:
        """Start an empty table."""
        header = load_header(self.datalist)
        self.labels, self.areas = [], []
        self.table = CaseTable(
            header["classes"],
            background=header.get("background", True),
            scored_class=header.get("scored_class"),
            context=tuple(header.get("context", {})),
            paper_grid=self.paper_grid,
        )

    def update(self, output: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]) -> None:
        """Add the cases of an iteration.

        Args:
            output: the engine's decollated batch and output.
        """
        for item, result in zip(*output, strict=True):
            if "label" not in item:
                raise DataError(
                    f'The case "{item["id"]}" has no label, so it cannot be measured: predict it (inference), or '
                    "choose another split."
                )
            label, pred = convert_to_numpy(item["label"]) > 0, convert_to_numpy(result["pred"])
            self.labels.append(label)
            self.areas.append(np.array([float((pred == number).mean()) for number in range(1, len(label) + 1)]))
            self.table.add(
                id=str(item["id"]),
                subject=str(item["subject"]),
                label=torch.as_tensor(item["label"]),
                prediction=result["pred"],
                reference=item.get("mask"),
                spacing=case_spacing(item["image"] if "image" in item else result["image"]),
                presence=result.get("presence"),
                cam=result.get("cam"),
                heat=result.get("heat"),
                label_filter=result.get("label_filter"),
                place=slice_place(item),
            )

    def iteration_completed(self, engine: Engine) -> None:
        """Add the cases of an iteration (ignite's hook): this metric needs the batch besides the output."""
        self.update((engine.state.batch, engine.state.output))

    def compute(self) -> float:
        """Compute ``dice_subject`` over the cases of all processes."""
        for rows in gather_objects(self.table.rows):
            self.table.merge(rows)
        self.summary = self.table.summary(bootstrap=self.bootstrap, seed=self.seed)
        if "dice_subject" not in self.summary:
            logger.warning("No reference mask of a positive image in this split: Dice is not computed.")
            return float("nan")
        return float(self.summary["dice_subject"]["mean"])

    def completed(self, engine: Engine, name: str) -> None:
        """Add every metric of the summary to the engine's metrics (ignite's hook)."""
        super().completed(engine, name)
        engine.state.metrics.update({metric: value["mean"] for metric, value in self.summary.items()})


class TrainingLog:
    """A handler that writes ``training_log.csv``: the mean of each loss and the validation metrics, per epoch.

    A resumed run keeps the rows of the epochs before it.

    Args:
        output_dir: folder of the run.
        evaluator: the validation engine whose metrics are logged in the epochs in which it ran.
    """

    def __init__(self, output_dir: str | os.PathLike[str], evaluator: Engine | None = None) -> None:
        self.path = Path(output_dir) / "training_log.csv"
        self.evaluator = evaluator
        self._rows: dict[int, dict[str, float]] = {}
        self._sums: dict[str, float] = {}
        self._scores: dict[str, float] = {}
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._validated)

    def _start(self, engine: Engine) -> None:
        if engine.state.epoch == 0 or not self.path.is_file():
            return
        header, *lines = self.path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            cells = zip(header.split(","), line.split(","), strict=True)
            row = {name: float(cell) for name, cell in cells if cell}
            epoch = int(row.pop("epoch"))
            if epoch <= engine.state.epoch:
                self._rows[epoch] = row

    def _collect(self, engine: Engine) -> None:
        self._count += 1
        for name, value in engine.state.output.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _validated(self, engine: Engine) -> None:
        self._scores = {
            f"val_{name.removeprefix('val_')}": float(value) for name, value in engine.state.metrics.items()
        }

    def _write(self, engine: Engine) -> None:
        losses = {name: total / self._count for name, total in self._sums.items()}
        self._rows[engine.state.epoch] = losses | self._scores
        self._sums, self._scores, self._count = {}, {}, 0
        if not is_main_process():
            return
        names = sorted({name for row in self._rows.values() for name in row})
        lines = [",".join(["epoch", *names])]
        for epoch, row in sorted(self._rows.items()):
            cells = [f"{row[name]:.9g}" if name in row else "" for name in names]
            lines.append(",".join([str(epoch), *cells]))
        make_directory(self.path.parent)
        with atomic_path(self.path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
