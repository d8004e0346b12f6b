# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ignite handlers that turn an evaluation or an inference into a run folder.

run.json        what ran: versions, seed, settings, data and weights by their SHA-256
metrics.json    metric -> mean, interval, n           per_case.csv, per_subject.csv    the tables behind it
masks/          written by SaveMaskd                  predictions.csv                  inference: what was found
panels/<n>.png  image | CAM | mask | reference of row n of per_case.csv
report.html     all of it on one page
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_wsss._files import atomic_path, make_directory
from monai_wsss.data import load_header
from monai_wsss.engines import SegmentationScores, case_spacing, is_main_process
from monai_wsss.reports.page import write_report
from monai_wsss.reports.panels import render_panel
from monai_wsss.reports.provenance import collect_provenance, write_run

__all__ = ["InferenceLog", "RunFolder", "RunRecord"]

logger = logging.getLogger(__name__)


class RunRecord:
    """Writes ``run.json`` when an engine starts: what ran, on which data, with which weights.

    Args:
        output_dir: folder of the run.
        datalist: path of the datalist; its hash goes into the record, not its content.
        weights: path of the weights that are used, None while they are being trained.
        seed: of the run.
        settings: what else decides the result, as plain values.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        datalist: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.datalist = datalist
        self.weights = weights
        self.seed = seed
        self.settings = dict(settings or {})
        self.uses_masks: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, self._write_record)

    def _write_record(self, engine: Engine) -> None:
        if not is_main_process():
            return
        core = getattr(engine, "core", None)
        if getattr(core, "uses_masks", False):
            self.uses_masks.append(f"training by {type(core).__name__} (an upper bound)")
        make_directory(self.output_dir)
        record = collect_provenance(
            config=self.settings,
            seed=self.seed,
            data=self.datalist,
            weights=self.weights,
            uses_masks=self.uses_masks,
        )
        write_run(self.output_dir, record)


class RunFolder(RunRecord):
    """Fills a run folder from an evaluation and writes its report.

    Args:
        output_dir: folder of the run.
        datalist: path of the datalist.
        scores: the evaluator's metric, which holds the case table.
        weights: path of the weights.
        seed: of the run.
        settings: what else decides the result.
        training_dir: folder of the training; its ``training_log.csv`` is taken over where there is one.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        datalist: str | os.PathLike[str],
        scores: SegmentationScores,
        *,
        weights: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
        training_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(output_dir, datalist, weights=weights, seed=seed, settings=settings)
        self.scores = scores
        self.training_dir = training_dir
        self.channel_names: list[str] = list(self.settings.get("modalities") or [])

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator, after its metrics."""
        super().attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _draw(self, engine: Engine) -> None:
        """A panel for each case of the iteration, numbered as its row in the table."""
        folder = make_directory(self.output_dir / "panels")
        first = len(self.scores.table.rows) - len(engine.state.batch) + 1
        for row, item, result in zip(
            range(first, first + len(engine.state.batch)), engine.state.batch, engine.state.output, strict=True
        ):
            image = _array(result["image"])
            mask = _array(result["pred"])[0]
            cam = _array(result["cam"]).max(0) if "cam" in result else None
            reference = _array(item["mask"])[0] if "mask" in item else None
            panel = render_panel(image, cam, mask, reference, channel_names=self.channel_names)
            with atomic_path(folder / f"{row}.png") as temporary:
                temporary.write_bytes(panel)

    def _write(self, engine: Engine) -> None:
        self.scores.table.write(self.output_dir)
        if self.training_dir is not None and (log := Path(self.training_dir) / "training_log.csv").is_file():
            with atomic_path(self.output_dir / "training_log.csv") as temporary:
                shutil.copyfile(log, temporary)
        logger.info("Report: %s", write_report(self.output_dir))


class InferenceLog(RunRecord):
    """Writes ``run.json`` and ``predictions.csv``: for each case its mask file, presence scores and volumes.

    Volumes are in millilitres where the spacing of a study is known, else in pixels.
    """

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator whose post-processing writes the masks."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._classes: list[str] = load_header(self.datalist)["classes"]
        self._rows: list[dict[str, Any]] = []

    def _note(self, engine: Engine) -> None:
        for item, result in zip(engine.state.batch, engine.state.output, strict=True):
            row: dict[str, Any] = {"id": item["id"], "mask": os.path.relpath(result["pred_path"], self.output_dir)}
            spacing = case_spacing(result["image"])
            unit, size = ("px", 1.0) if spacing is None or len(spacing) < 3 else ("ml", float(np.prod(spacing)) / 1000)
            for number, name in enumerate(self._classes, start=1):
                row[f"{name}_{unit}"] = round(float((result["pred"] == number).sum()) * size, 3)
                if "presence" in result:
                    row[f"{name}_presence_logit"] = round(float(result["presence"][number - 1]), 4)
            self._rows.append(row)

    def _write(self, engine: Engine) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        with (
            atomic_path(self.output_dir / "predictions.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        logger.info("Wrote %d masks, listed in %s.", len(self._rows), self.output_dir / "predictions.csv")


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu())
