# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ignite handlers that turn an evaluation or an inference into a run folder.

run.json        what ran: versions, seed, settings, data and weights by their SHA-256
metrics.json    metric -> mean, interval, n           per_case.csv, per_subject.csv    the tables behind it
masks/          written by SaveImageMaskd                  predictions.csv                  inference: what was found
panels/<n>.png  image | CAM | mask | reference of row n of per_case.csv
heat/, converted/   written by SaveImageMapd      intensities.json, conversions.png   of networks that convert images
report.html     all of it on one page

An evaluation begins with an empty folder: what an earlier run left under these names goes when it starts.  A folder
that holds the data, or to which another process writes, is refused.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_wsss._checks import DataError
from monai_wsss._files import atomic_path, file_sha256, make_directory
from monai_wsss._locks import hold_folder, release_folder
from monai_wsss.data import lesion_boxes, load_header
from monai_wsss.data.modalities import canonical_modality
from monai_wsss.engines import SegmentationScores, is_main_process
from monai_wsss.networks import recorded_reading
from monai_wsss.networks.published_weights import encoder_weights_of
from monai_wsss.reports.intensities import ConversionRecord
from monai_wsss.reports.output_folder import refuse_data_folder
from monai_wsss.reports.page import write_report
from monai_wsss.reports.panels import render_panel
from monai_wsss.reports.prediction_rows import prediction_row, write_predictions
from monai_wsss.reports.provenance import (
    assumed_units,
    collect_provenance,
    other_than_trained,
    read_run,
    recorded_encoder_weights,
    recorded_supervision,
    settings_of,
    simulated_supervision,
    without_user,
    write_run,
)

__all__ = ["InferenceLog", "RunFolder", "RunRecord"]

logger = logging.getLogger(__name__)


class RunRecord:
    """Write ``run.json`` when an engine starts: what ran, on which data, with which weights.

    What was built is asked itself: a trainer for its method's ``settings``, epochs, batch size, rates and schedules, an
    evaluator for how it infers, and ``parts`` for how they decide.  The network is asked in which order it gets the
    pixels of pictures and along which axis it gets volumes (``reading``), as its training recorded it.  NIfTI files
    without a unit of length are mentioned once (``assumed_units``).

    Args:
        output_dir: folder of the run.
        datalist: path of the datalist; its hash goes into the record, not its content.
        weights: path of the weights that are used, None while they are being trained.
        seed: of the run.
        modalities: the image's channels by name, for captions.
        replace_missing: by modality, the one that may stand in for it, see :func:`~monai_wsss.data.load_datalist`.
        split: of the datalist, to name it when it is empty.
        parts: further objects whose settings decide the result, such as :class:`~monai_wsss.refinement.ToMaskd`.
        settings: what nothing that was built can tell, such as the name of the bundle, as plain values.
        uses_masks: what read pixel masks when the weights were trained, one phrase each, empty for nothing; None looks
            it up in the ``run.json`` beside the weights, and records "not known" where there is none.  A trainer's
            method speaks for itself.
    """

    leftovers: ClassVar[tuple[str, ...]] = ()
    """What an earlier run may have left in the folder that this one renews."""

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        datalist: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        modalities: Sequence[str] | None = None,
        replace_missing: Mapping[str, str] | None = None,
        split: str | None = None,
        parts: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
        uses_masks: Sequence[str] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.datalist = datalist
        self.weights = weights
        self.seed = seed
        self.modalities = modalities
        self.replace_missing = replace_missing
        self.split = split
        self.parts = parts
        self.settings = dict(settings or {})
        self.uses_masks = uses_masks
        self.training_dir = None if weights is None else Path(weights).parent
        self.replaced: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, self._write_record)

    def _write_record(self, engine: Engine) -> None:
        if not is_main_process():
            return
        if "masks" in self.leftovers:
            refuse_data_folder(self.output_dir, self.datalist)
        self.replaced = _replaced(self.datalist, self.modalities, self.replace_missing)
        hold_folder(make_directory(self.output_dir))
        engine.add_event_handler(Events.COMPLETED, lambda: release_folder(self.output_dir))
        record = collect_provenance(
            config=self._config(engine),
            seed=self.seed,
            data=self.datalist,
            weights=self.weights,
            uses_masks=self._supervision(engine),
        )
        self._remove_leftovers()
        network = getattr(getattr(engine, "core", engine), "network", None)
        if self.weights is not None and network is not None:
            for sentence in other_than_trained(network, self.weights):
                logger.warning("%s", sentence)
        record |= {"replaced": self.replaced, "reading": recorded_reading(network)}
        record |= {"encoder_weights": self._encoder_weights(engine)}
        header = load_header(self.datalist)
        record |= {name: header.get(name) for name in ("classes", "background", "scored_class")}
        record |= {"data": without_user(str(header["name"])) if header.get("name") else None}
        record |= {"assumed_units": assumed_units(self.datalist, self.split)}
        write_run(self.output_dir, record | self._more())

    def _config(self, engine: Engine) -> dict[str, Any]:
        """Collect the settings of what was built."""
        given = {"modalities": self.modalities, "replace_missing": self.replace_missing, "split": self.split}
        config = {**self.settings, **{name: value for name, value in given.items() if value is not None}}
        for part in (engine, *self.parts):
            config |= settings_of(part)
        return config

    def _supervision(self, engine: Engine) -> list[str] | None:
        """Give what read pixel masks in training; None where nobody knows."""
        core = getattr(engine, "core", None)
        if core is not None:
            own = [f"training by {type(core).__name__} (an upper bound)"] if getattr(core, "uses_masks", False) else []
            return [*(self.uses_masks or ()), *simulated_supervision(self.datalist), *own]
        if self.uses_masks is not None:
            return list(self.uses_masks)
        return None if self.training_dir is None else recorded_supervision(self.training_dir, self.weights)

    def _encoder_weights(self, engine: Engine) -> dict[str, Any] | None:
        """Give the published weights that the training began with; None where nobody recorded them."""
        core = getattr(engine, "core", None)
        if core is not None:
            return encoder_weights_of(core)
        return None if self.training_dir is None else recorded_encoder_weights(self.training_dir, self.weights)

    def _more(self) -> dict[str, Any]:
        """Give what a kind of run records besides."""
        return {}

    def _refuse_empty(self, engine: Engine) -> None:
        """Refuse an empty loader, which MONAI's engines pass over in silence: nothing would be written."""
        if getattr(engine.state, "epoch_length", None) == 0:
            split = f' "{self.split}"' if self.split else ""
            raise DataError(
                f"The split{split} of {Path(self.datalist).name} holds no case: choose another with --split."
            )

    def _remove_leftovers(self) -> None:
        """Remove what an earlier run of ours left."""
        earlier = read_run(self.output_dir)
        if earlier is None:
            return
        for name in self.leftovers:
            path = self.output_dir / name
            if name == "training_log.csv" and not self._is_copy(path, earlier):
                continue
            try:
                if path.is_symlink() or path.is_file():
                    path.unlink()
                elif path.is_dir():
                    shutil.rmtree(path)
            except OSError as error:
                raise DataError(
                    f"Cannot remove {path} of an earlier run ({error.strerror}): choose another output folder."
                ) from error

    def _is_copy(self, log: Path, earlier: Mapping[str, Any]) -> bool:
        """Tell whether a training log was copied here by an earlier evaluation, and is not the folder's own."""
        copied = earlier.get("training_log_copied", False) and not self._in_training_folder
        return copied and log.is_file() and file_sha256(log) == earlier.get("training_log_sha256")

    @property
    def _in_training_folder(self) -> bool:
        return self.training_dir is not None and _same_folder(self.training_dir, self.output_dir)


class RunFolder(RunRecord):
    """Fill a run folder from an evaluation and write its report.

    Args:
        output_dir: folder of the run.
        datalist: path of the datalist.
        scores: the evaluator's metric, which holds the case table.
        training_dir: folder of the training, that of the weights if left out; its ``training_log.csv`` is taken over
            and its ``run.json`` says what read pixel masks, where there are such files.
        record: the other arguments of :class:`RunRecord`.

    Raises:
        DataError: on attaching: the evaluator has no case.
    """

    leftovers = (
        *("masks", "panels", "training_log.csv", "sweep.json", "metrics.json", "per_case.csv", "per_subject.csv"),
        *("predictions.csv", "notes.txt", "report.html", "heat", "converted", "intensities.json", "conversions.png"),
    )

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        datalist: str | os.PathLike[str],
        scores: SegmentationScores,
        *,
        training_dir: str | os.PathLike[str] | None = None,
        **record: Any,
    ) -> None:
        super().__init__(output_dir, datalist, **record)
        self.scores = scores
        self.conversions = ConversionRecord()
        if training_dir is not None:
            self.training_dir = Path(training_dir)

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator, after its metrics."""
        self._refuse_empty(engine)
        super().attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)
        engine.add_event_handler(Events.COMPLETED, self._write)

    @property
    def channel_names(self) -> list[str]:
        """Give the captions of the image's channels: a sequence that another stands in for says so."""
        stand_ins = {name: self.replaced.get(canonical_modality(name)) for name in self.modalities or ()}
        return [f"{name} ({other} instead)" if other else name for name, other in stand_ins.items()]

    @cached_property
    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """Give the boxes of lesions, by case, that the grid of conversions marks in data that have some."""
        return lesion_boxes(self.datalist)

    def _more(self) -> dict[str, Any]:
        log, scheme = self._training_log, self.scores.table.scheme
        return {
            "background": scheme.background,
            "scored_class": scheme.scored_class,
            "paper_grid": self.scores.table.paper_grid,
            "training_log_sha256": None if log is None else file_sha256(log),
            "training_log_copied": log is not None and not self._in_training_folder,
        }

    @property
    def _training_log(self) -> Path | None:
        log = None if self.training_dir is None else self.training_dir / "training_log.csv"
        return log if log is not None and log.is_file() else None

    def _draw(self, engine: Engine) -> None:
        """Draw a panel for each case of the iteration, numbered as its row in the table."""
        folder = make_directory(self.output_dir / "panels")
        first = len(self.scores.table.rows) - len(engine.state.batch) + 1
        for row, item, result in zip(
            range(first, first + len(engine.state.batch)), engine.state.batch, engine.state.output, strict=True
        ):
            mask = _array(result["pred"])[0]
            cam = _array(result["cam"]).max(0) if "cam" in result else None
            reference = _array(item["mask"])[0] if "mask" in item else None
            if "converted" in result:
                image = result["image"].detach().cpu()
                marks = (item.get("mask"), self.boxes.get(str(item["id"])))
                self.conversions.add(item["label"], image, result["converted"], result["pred"], *marks)
            panel = render_panel(result["image"], cam, mask, reference, channel_names=self.channel_names)
            with atomic_path(folder / f"{row}.png") as temporary:
                temporary.write_bytes(panel)

    def _write(self, engine: Engine) -> None:
        self.scores.table.write(self.output_dir)
        if self.conversions:
            self.conversions.write(self.output_dir)
        log, copy = self._training_log, self.output_dir / "training_log.csv"
        if log is not None and not copy.exists():  # one that is there still is the folder's own
            with atomic_path(copy) as temporary:
                shutil.copyfile(log, temporary)
        logger.info("Report: %s", write_report(self.output_dir))


class InferenceLog(RunRecord):
    """Write ``run.json`` and ``predictions.csv``: for each case its mask file, label filter, presence and volumes.

    Heat map and converted image are named, too, where :class:`~monai_wsss.transforms.SaveImageMapd` wrote them.
    Volumes are in milliliters and areas of 2D images in square millimeters where the spacing is known, else in pixels.
    ``replaced`` names a sequence that the data lack and the one in its place, as ``T1<-FLAIR``.

    Raises:
        DataError: on attaching: the evaluator has no case.
    """

    leftovers = ("masks", "predictions.csv", "heat", "converted")

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator whose post-processing writes the masks."""
        self._refuse_empty(engine)
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._classes: list[str] = load_header(self.datalist)["classes"]
        self._rows: list[dict[str, Any]] = []

    def _note(self, engine: Engine) -> None:
        for item, result in zip(engine.state.batch, engine.state.output, strict=True):
            row = prediction_row(str(item["id"]), result, self._classes, self.output_dir, self.replaced)
            self._rows.append(row)

    def _write(self, engine: Engine) -> None:
        write_predictions(self.output_dir / "predictions.csv", self._rows)
        logger.info("Wrote %d masks, listed in %s.", len(self._rows), self.output_dir / "predictions.csv")


def _replaced(
    datalist: str | os.PathLike[str], modalities: Sequence[str] | None, stand_ins: Mapping[str, str] | None
) -> dict[str, str]:
    """Give the wanted sequences that the data lack, and what stands in for each."""
    if not stand_ins:
        return {}
    at_hand = set(map(canonical_modality, load_header(datalist)["modality"].values()))
    wanted = set(map(canonical_modality, modalities or stand_ins))
    pairs = {canonical_modality(name): canonical_modality(other) for name, other in stand_ins.items()}
    return {name: other for name, other in pairs.items() if name in wanted - at_hand and other in at_hand}


def _same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu())
