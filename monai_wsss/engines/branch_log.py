# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The log of a :class:`~monai_wsss.engines.BranchEvaluation`: during a training by interval, or once, as files."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_wsss._files import atomic_path, make_directory, write_json
from monai_wsss._processes import is_main_process
from monai_wsss.engines.branch_evaluation import BranchEvaluation
from monai_wsss.metrics.aggregate import write_table

__all__ = ["BranchLog"]

logger = logging.getLogger(__name__)

Row = dict[str, Any]
_LOG = "branches.csv"


class BranchLog:
    """A handler that measures all branches during a training, by interval, and writes ``branches.csv``.

    A resumed run keeps the rows from before it.  :meth:`measure` measures once, without a training, and writes
    ``branches_once.csv`` and ``branches.json``, so that the log of a training in the same folder stays.  Where class
    maps need a healthy level, the log begins when training knows it, and :meth:`measure` gets it from the images of the
    split ``training``.

    Args:
        evaluation: what measures.
        loaders: by the name of the split, see :meth:`BranchEvaluation.measure`.
        output_dir: folder of the run.
        interval: epochs between two measurements.
        iterations: iterations between two measurements, in place of ``interval``.

    Raises:
        ValueError: an interval or iterations below 1.
    """

    def __init__(
        self,
        evaluation: BranchEvaluation,
        loaders: Mapping[str, Iterable[Mapping[str, Any]]],
        output_dir: str | os.PathLike[str],
        *,
        interval: int = 1,
        iterations: int | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"Expected `interval` >= 1, got {interval}.")
        if iterations is not None and iterations < 1:
            raise ValueError(f"Expected `iterations` >= 1, got {iterations}.")
        self.evaluation = evaluation
        self.loaders = dict(loaders)
        self.output_dir = Path(output_dir)
        self.interval = interval
        self.iterations = iterations
        self._lines: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        event = Events.EPOCH_COMPLETED(every=self.interval)
        if self.iterations is not None:
            event = Events.ITERATION_COMPLETED(every=self.iterations)
        engine.add_event_handler(event, self._log)

    def measure(self) -> list[Row]:
        """Measure now, write ``branches.json`` and ``branches_once.csv``, and give the rows."""
        make_directory(self.output_dir)
        if "training" in self.loaders:
            self.evaluation.prepare(self.loaders["training"])
        rows = self._measured()
        content = {"reads": "pixel masks, to measure only", "metric": "mIoU of pooled pixels", "rows": rows}
        write_json(self.output_dir / "branches.json", content)
        self._write("branches_once.csv", [_line(row) for row in rows])
        return rows

    def _start(self, engine: Engine) -> None:
        path = self.output_dir / _LOG
        if engine.state.iteration and path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                lines = list(csv.DictReader(file))
            self._lines = [line for line in lines if int(line["iteration"]) <= engine.state.iteration]

    def _log(self, engine: Engine) -> None:
        if not is_main_process():
            return
        if not self.evaluation.ready:
            logger.warning(
                "Epoch %d: no branch is measured, the class maps have no healthy level yet.", engine.state.epoch
            )
            return
        now = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        # A loader draws from torch's global generator: the training goes on as if nobody had measured.
        with torch.random.fork_rng(devices=[]):
            self._lines += [now | _line(row) for row in self._measured()]
        make_directory(self.output_dir)
        self._write(_LOG, self._lines)

    def _measured(self) -> list[Row]:
        rows = [row for split, loader in self.loaders.items() for row in self.evaluation.measure(loader, split=split)]
        for row in rows:
            logger.info(
                "%s, %s, %s, labels %s%s: mIoU %s",
                *(row[name] for name in ("split", "network", "branch", "label_filter")),
                ", CRF" if row["crf"] else "",
                "undefined" if row["miou"] is None else f"{row['miou']:.4f}",
            )
        return rows

    def _write(self, file_name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        names = list(dict.fromkeys(name for line in lines for name in line))
        with (
            atomic_path(self.output_dir / file_name) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            write_table(file, lines, names)


def _line(row: Row) -> dict[str, Any]:
    """Give a row without nested values, for a CSV file."""
    flat = {name: value for name, value in row.items() if name != "iou"}
    return flat | {f"iou/{name}": value for name, value in row["iou"].items()}
