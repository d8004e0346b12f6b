# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A table of cases, and metrics with intervals that follow from it: summed by subject, resampled by subject.

1. :meth:`CaseTable.add` reduces a case to counts and distances; images are not kept.
2. Rows are plain dicts, so the processes of a distributed evaluation exchange and :meth:`CaseTable.merge` them.
3. :meth:`CaseTable.summary` works from rows alone.  Every metric is a function of *how often each subject was drawn*:
   one draw of each subject gives the metric, 1000 random draws give its 95 % interval.

Undefined numbers are left out and counted in :attr:`CaseTable.notes`; no NaN leaves this file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy

from monai_wsss._files import atomic_path, make_directory, write_json
from monai_wsss._labels import IGNORED
from monai_wsss.metrics import segmentation
from monai_wsss.metrics.bootstrap import bootstrap_interval, bootstrap_weights
from monai_wsss.metrics.cam_quality import pixel_auroc, sweep_counts
from monai_wsss.metrics.csv_tables import table_text, write_csv, write_table
from monai_wsss.metrics.estimates import CaseArrays, ClassScheme, coverage_notes, metric_estimates, sweep_content
from monai_wsss.metrics.paper_protocol import paper_estimates, paper_note, paper_row
from monai_wsss.metrics.restacked import (
    SlicePlace,
    restacked_distances,
    slice_row,
    volume_estimates,
    volume_means,
    volume_note,
)
from monai_wsss.metrics.segmentation import PixelCounts, count_pixels, where_referenced
from monai_wsss.metrics.surface import SurfaceDistances, surface_distances

__all__ = ["CaseTable", "table_text", "write_table"]

Row = dict[str, Any]
Metrics = dict[str, dict[str, Any]]


class CaseTable:
    """Per-case rows of an evaluation, and the numbers that follow from them.

    Args:
        classes: names of the K foreground classes.
        background: True if label 0 is the background; False if all K classes are real tissue.
        scored_class: the class whose metrics get the plain names where ``background`` is false; else the plain name is
            the mean over the classes.
        context: the classes that something unlabeled always accompanies, as branches accompany birds; their mean IoU
            is ``context_miou_pooled``.
        paper_grid: the resized grid, (rows, columns), on which the metrics of CoinGAN's tables are measured beside all
            others (:mod:`monai_wsss.metrics.paper_protocol`); None leaves them out.

    Attributes:
        rows: one plain dict per case, in the order of adding; ``per_case.csv`` numbers them from 1.
        notes: sentences with counts that say what was left out and by which rule; renewed by :meth:`summary`.

    Raises:
        ValueError: class names that are not unique, a ``scored_class`` that is missing or unknown, or an unknown class
            in ``context``; ``paper_grid`` is not two sizes, or there is no background.

    Example:
        >>> table = CaseTable(["tumor"])
        >>> mask = np.zeros((1, 8, 8), dtype=np.uint8)
        >>> mask[0, 2:6, 2:6] = 1
        >>> table.add(id="a1", subject="a", label=np.ones(1), prediction=mask, reference=mask)
        >>> table.add(id="b1", subject="b", label=np.zeros(1), prediction=0 * mask)
        >>> table.summary()["dice_subject"]
        {'mean': 1.0, 'ci95': [1.0, 1.0], 'n': 1}
        >>> table.summary()["healthy_clean"]["mean"]
        1.0
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        background: bool = True,
        scored_class: str | None = None,
        context: Sequence[str] = (),
        paper_grid: Sequence[int] | None = None,
    ) -> None:
        self.scheme = ClassScheme(tuple(classes), background, scored_class, tuple(context))
        if paper_grid is not None and (not background or len(paper_grid) != 2 or min(paper_grid) < 1):
            raise ValueError(
                f"Expected `paper_grid` as two sizes in pixels, for classes with a background, got {paper_grid} with "
                f"background={background}."
            )
        self.paper_grid = None if paper_grid is None else tuple(paper_grid)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._ids: set[str] = set()

    def add(
        self,
        *,
        id: str,
        subject: str,
        label: torch.Tensor | np.ndarray,
        prediction: torch.Tensor | np.ndarray,
        reference: torch.Tensor | np.ndarray | None = None,
        spacing: Sequence[float] | None = None,
        presence: torch.Tensor | np.ndarray | None = None,
        cam: torch.Tensor | np.ndarray | None = None,
        heat: torch.Tensor | np.ndarray | None = None,
        label_filter: str | None = None,
        place: SlicePlace | None = None,
    ) -> None:
        """Measure one case, an image or a volume, and keep its row.

        Args:
            id: unique name of the case.
            subject: the patient; metrics are averaged and resampled by subject.
            label: ``(K,)`` of 0 and 1, the image-level label.
            prediction: label map ``(1, *S)``, 0..K.
            reference: label map ``(1, *S)``.  Where the label is all zeros, None means an empty map, since a healthy
                image has nothing to outline.  With a positive label, None means that the pixels are unknown, and only
                the presence scores count.
            spacing: pixel size in mm per axis of S; None measures distances in pixels.
            presence: ``(K,)`` image-level scores, any monotone scale.
            cam: score maps ``(K, *S)`` in [0, 1], for the threshold sweep and the pixel AUROC.
            heat: raw maps ``(K, *S)`` for the pixel AUROC in the place of ``cam``, which is 0 below the cut by some
                rules.
            label_filter: name of what removed classes from a segmentation, see
                :class:`~monai_wsss.refinement.ToMaskd`; for the table and its notes.
            place: of a slice in its volume, which is then restacked and measured in 3D.

        Raises:
            ValueError: an ``id`` that is there already, or an array of the wrong shape or range.
        """
        if str(id) in self._ids:
            raise ValueError(f"Expected every `id` once, but row {len(self.rows) + 1} repeats an earlier one.")
        labels, found = convert_to_numpy(label), convert_to_numpy(prediction)
        self._check("label", labels.shape == self._shape and bool(np.isin(labels, (0, 1)).all()), labels)
        self._check("prediction", found.ndim in (3, 4) and len(found) == 1, found)
        truth = "mask" if reference is not None else ("unknown" if labels.any() else "empty by label")
        row: Row = {"id": str(id), "subject": str(subject), "truth": truth, "unit": "px" if spacing is None else "mm"}
        if label_filter is not None:
            row["label_filter"] = label_filter
        row |= self._by_class("label", labels.astype(int).tolist())
        if presence is not None:
            scores = convert_to_numpy(presence)
            self._check("presence", scores.shape == self._shape and bool(np.isfinite(scores).all()), scores)
            row |= self._by_class("presence", scores.tolist())
        if place is not None:
            row["volume"] = place.volume
        if truth != "unknown":
            wanted = np.zeros_like(found) if reference is None else convert_to_numpy(reference)
            self._check("reference", wanted.shape == found.shape, wanted)
            row |= self._overlap(found, wanted, healthy=not labels.any())
            row |= self._distances(found[0], wanted[0], spacing)
            row |= {} if place is None else slice_row(place, found[0], wanted[0], self.scheme.labels)
            row |= self._map_quality(cam, cam if heat is None else heat, wanted[0])
            if self.paper_grid is not None and labels.any() and row["finding"]:
                row |= paper_row(found[0], wanted[0], self.paper_grid)
        self._ids.add(row["id"])
        self.rows.append(row)

    def merge(self, rows: Iterable[Row]) -> None:
        """Append the rows of another table of the same classes, e.g. of another process.

        A case that is here already is skipped: distributed samplers repeat cases to give every process as many.

        Args:
            rows: the other table's :attr:`rows`.
        """
        for row in rows:
            if row["id"] not in self._ids:
                self._ids.add(row["id"])
                self.rows.append(row)

    @property
    def _shape(self) -> tuple[int]:
        return (len(self.scheme.classes),)

    def _by_class(self, name: str, values: Iterable[Any]) -> Row:
        """Make one entry per class that has a value."""
        pairs = zip(self.scheme.labels, values, strict=True)
        return {self.scheme.key(name, k): value for k, value in pairs if value is not None}

    def _check(self, name: str, right: bool, array: np.ndarray) -> None:
        shapes = {"label": "(K,) of 0 and 1", "presence": "(K,) of finite scores", "cam": "(K, *S)", "heat": "(K, *S)"}
        if not right:
            raise ValueError(
                f"Expected `{name}` of shape {shapes.get(name, '(1, *S)')} with K = {self._shape[0]} and the same "
                f"two or three axes *S for all, got {array.shape} in row {len(self.rows) + 1} of the case table."
            )

    def _overlap(self, found: np.ndarray, wanted: np.ndarray, *, healthy: bool) -> Row:
        """Give counts, Dice and IoU of a case, and whether it is healthy by label and reference alike."""
        counts = count_pixels(found, wanted, num_classes=len(self.scheme.classes))
        present, any_found = (counts.tp + counts.fn)[1:] > 0, bool((counts.tp + counts.fp)[1:].any())
        finding = bool(present.any())
        row: Row = {"finding": int(finding), "healthy": int(healthy and not finding), "found": int(any_found)}
        for name, values in zip(PixelCounts._fields, counts, strict=True):
            row |= self._by_class(name, values[1:].tolist())
            if len(self.scheme.classes) > 1:
                row[self.scheme.key(name, 0)] = int(values[0])
        dice, iou = segmentation.dice_score(counts)[1:], segmentation.iou_score(counts)[1:]
        row["dice"] = float(dice[present].mean()) if finding else float(not any_found)
        return row | self._by_class("dice", dice.tolist()) | self._by_class("iou", iou.tolist())

    def _distances(self, found: np.ndarray, wanted: np.ndarray, spacing: Sequence[float] | None) -> Row:
        """Give the surface distances of the classes that both masks hold."""
        row: Row = {}
        valid = wanted != IGNORED
        for k in self.scheme.labels:
            distances = surface_distances((found == k) & valid, wanted == k, spacing=spacing)
            if distances is not None:
                row |= {self.scheme.key(name, k): value for name, value in distances._asdict().items()}
        return row

    def _map_quality(
        self, cam: torch.Tensor | np.ndarray | None, heat: torch.Tensor | np.ndarray | None, wanted: np.ndarray
    ) -> Row:
        """Give the pixel AUROC of the reference's classes, and the counts of the threshold sweep, ``[K][2][T]``."""
        valid = wanted != IGNORED
        pairs = {}
        for name, given in (("cam", cam), ("heat", heat)):
            if given is not None:
                maps = convert_to_numpy(given)
                self._check(name, maps.shape == (*self._shape, *wanted.shape), maps)
                pairs[name] = [(maps[k - 1][valid], wanted[valid] == k) for k in self.scheme.labels]
        row: Row = {}
        if "heat" in pairs:
            row |= self._by_class("pixel_auroc", (pixel_auroc(*pair) for pair in pairs["heat"]))
        if "cam" in pairs:
            row["sweep"] = [[counts.tolist() for counts in sweep_counts(*pair)] for pair in pairs["cam"]]
        return row

    def summary(self, *, bootstrap: int = 1000, seed: int = 0) -> Metrics:
        """Compute the metrics of ``metrics.json``, each with a 95 % interval from resampled subjects.

        Args:
            bootstrap: how many times the subjects are resampled.
            seed: seed of the resampling.

        Returns:
            Name to ``{"mean", "ci95": [low, high], "n"}``, n being the number of subjects that enter, and ``"std"``
            over them where the metric is a mean over two or more.  Undefined metrics are missing and named in
            :attr:`notes`.

        Raises:
            ValueError: there is no case, or ``bootstrap`` is below 1.
        """
        if not self.rows or bootstrap < 1:
            raise ValueError(
                f"Expected at least one case and one bootstrap sample, got {len(self.rows)} and {bootstrap}."
            )
        arrays = CaseArrays(self.rows, self.scheme)
        weights = bootstrap_weights(len(arrays.subjects), samples=bootstrap, seed=seed)
        metrics: Metrics = {}
        self.notes = [*coverage_notes(arrays), _interval_note(len(arrays.subjects), bootstrap, seed)]
        missing = []
        undefined: dict[int, list[str]] = {}
        estimates = metric_estimates(arrays)
        if self.paper_grid is not None:
            estimates |= paper_estimates(arrays)
            self.notes.insert(-1, paper_note(arrays, self.paper_grid))
        if any("stack" in row for row in self.rows):
            volumes = restacked_distances(self.rows, self.scheme)
            estimates |= volume_estimates(arrays, volumes)
            self.notes.insert(-1, volume_note(volumes))
        for name, estimate in estimates.items():
            interval = bootstrap_interval(estimate, weights)
            if interval is None:
                missing.append(name)
                continue
            metrics[name] = {
                "mean": interval.mean,
                "ci95": [interval.low, interval.high],
                "n": int(estimate.members.sum()),
            }
            if estimate.spread is not None:
                metrics[name]["std"] = estimate.spread
            if interval.undefined:
                undefined.setdefault(interval.undefined, []).append(name)
        for count, names in sorted(undefined.items()):
            self.notes.append(
                f"{count} of {bootstrap} bootstrap samples leave these undefined and out of their intervals: "
                f"{', '.join(names)}."
            )
        if missing:
            self.notes.append(f"Left out, since nothing here defines them: {', '.join(missing)}.")
        return metrics

    def sweep(self) -> dict[str, Any]:
        """Give the content of ``sweep.json``: Dice of each class against the threshold, over the cases with maps.

        The curves have read reference masks, and so have their ``oracle_`` entries.
        """
        return sweep_content(CaseArrays(self.rows, self.scheme))

    def write(self, run_dir: str | os.PathLike[str], *, bootstrap: int = 1000, seed: int = 0) -> Metrics:
        """Write ``metrics.json``, ``notes.txt``, ``per_case.csv``, ``per_subject.csv`` and, with maps, ``sweep.json``.

        Args:
            run_dir: the run folder; created if missing.
            bootstrap: how many times the subjects are resampled.
            seed: seed of the resampling.

        Returns:
            The metrics of :meth:`summary`.

        Raises:
            DataError: the folder cannot be written.
        """
        folder = make_directory(run_dir)
        metrics = self.summary(bootstrap=bootstrap, seed=seed)
        write_json(folder / "metrics.json", metrics)
        with atomic_path(folder / "notes.txt") as temporary:
            temporary.write_text("".join(f"{note}\n" for note in self.notes), encoding="utf-8")
        write_csv(
            folder / "per_case.csv", [{"row": i} | row for i, row in enumerate(self.rows, start=1)], self._columns()
        )
        subject_rows = self.subject_rows
        write_csv(folder / "per_subject.csv", subject_rows, list(subject_rows[0]))
        (folder / "sweep.json").unlink(missing_ok=True)  # of an earlier evaluation into the same folder
        sweep = self.sweep()
        if sweep["classes"]:
            write_json(folder / "sweep.json", sweep)
        return metrics

    @property
    def subject_rows(self) -> list[Row]:
        """Give one dict per subject: cases, pooled counts, Dice, IoU (with a finding only), mean surface distances."""
        arrays = CaseArrays(self.rows, self.scheme)
        counts = PixelCounts(*np.moveaxis(arrays.counts.astype(int), 1, 0))
        clean = arrays.column("healthy") * (1 - arrays.column("found"))
        columns: dict[str, np.ndarray] = {
            "cases": np.bincount(arrays.subject),
            "finding": arrays.subject_sum(arrays.column("finding")).astype(int),
            "healthy": arrays.subject_sum(arrays.column("healthy")).astype(int),
            "healthy_clean": arrays.subject_sum(clean).astype(int),
        }
        dice = where_referenced(segmentation.dice_score(counts), counts)[:, 1:]
        iou = where_referenced(segmentation.iou_score(counts), counts)[:, 1:]
        for name, values in zip(PixelCounts._fields, counts, strict=True):
            columns |= self._by_class(name, values[:, 1:].T)
        columns |= self._by_class("dice", dice.T) | self._by_class("iou", iou.T)
        for name in SurfaceDistances._fields:
            means = [arrays.subject_mean(arrays.column(name, k)) for k in self.scheme.labels]
            columns |= self._by_class(name, means)
        if any("stack" in row for row in self.rows):
            volumes = restacked_distances(self.rows, self.scheme)
            for name in SurfaceDistances._fields:
                of_volumes = [volume_means(arrays, volumes, name, k) for k in self.scheme.labels]
                columns |= self._by_class(f"volume_{name}", of_volumes)
        cells = zip(arrays.subjects, *(column.tolist() for column in columns.values()), strict=True)
        return [
            {key: None if value != value else value for key, value in zip(("subject", *columns), row, strict=True)}
            for row in cells
        ]

    def _columns(self) -> list[str]:
        """Give the header of ``per_case.csv``."""
        image = ("label", "presence")
        pixels = (*PixelCounts._fields, "dice", "iou", *SurfaceDistances._fields, "pixel_auroc")
        key, labels = self.scheme.key, self.scheme.labels
        mean = ["dice"] if len(self.scheme.classes) > 1 else []
        return [
            *("row", "id", "subject", "truth", "unit"),
            *(["label_filter"] if any("label_filter" in row for row in self.rows) else []),
            *(key(name, k) for k in labels for name in image),
            *("finding", "healthy", "found", *mean),
            *(key(name, k) for k in labels for name in pixels),
        ]


def _interval_note(subjects: int, bootstrap: int, seed: int) -> str:
    width = " With one subject they have no width and mean nothing." if subjects == 1 else ""
    return f"Intervals: 2.5th and 97.5th percentiles of {bootstrap} resamplings of the subjects, seed {seed}.{width}"
