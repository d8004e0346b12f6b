# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Images that an adapter has made, such as crops and slices, on their way into a prepared folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_wsss._intensity import foreground_statistics, tissue_statistics
from monai_wsss.data.datalist import modality_entry, statistics_entry, write_datalist
from monai_wsss.data.modalities import COLORS
from monai_wsss.data.prepared_folder import check_targets
from monai_wsss.data.splits import SPLITS
from monai_wsss.data.writing import write_picture

__all__ = ["PreparedImages"]


@dataclass
class PreparedImages:
    """Writes images with their masks, and collects their items and statistics.

    A crop is standardized by the statistics of the whole image that it was cut from (:meth:`measure`).

    Attributes:
        out: the folder to write.
        lists: split → items.
        statistics: name of a whole image → mean and std.
    """

    out: Path
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    statistics: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def measure(self, name: str, pixels: np.ndarray) -> None:
        """Record the statistics of an image (C, *S): of the tissue in colors, of the foreground in gray.

        Args:
            name: the subject, or what the entry ``statistics`` of its items names.
            pixels: the whole image, (C, *S).
        """
        measured = tissue_statistics if len(pixels) == len(COLORS) else foreground_statistics
        self.statistics[name] = statistics_entry(*measured(pixels))

    def add(
        self,
        split: str,
        name: str,
        subject: str,
        label: Sequence[int],
        pixels: np.ndarray,
        mask: np.ndarray | None = None,
        **entries: Any,
    ) -> None:
        """Write an image, and its mask if it has one.

        Args:
            split: "training", "validation" or "test".
            name: id of the image, unique.
            subject: its subject.
            label: 0/1 per class, (K).
            pixels: (C, x, y) of one or three channels, uint8 or uint16.
            mask: (1, x, y) uint8, for evaluation.
            entries: further entries of the item, such as ``source``, ``origin`` and ``statistics``.
        """
        item: dict[str, Any] = {"id": name, "subject": subject, "label": list(label)}
        item["image"] = f"images/{subject}/{name}.png"
        write_picture(self.out / item["image"], pixels)
        if mask is not None:
            item["mask"] = f"masks/{subject}/{name}.png"
            write_picture(self.out / item["mask"], mask)
        self.lists[split].append({**item, **entries})

    def finish(self, channels: Sequence[str], classes: Sequence[str], order: str, entries: Mapping[str, Any]) -> Path:
        """Write the datalist, and give its path.

        Args:
            channels: names of the channels, (C).
            classes: names of the classes, (K).
            order: how networks get the images, "rows_columns" or "xy".
            entries: further entries of the datalist.

        Raises:
            DataError: two images have the same path, or see :func:`~monai_wsss.data.datalist.write_datalist`.
        """
        datalist: dict[str, Any] = {
            "name": self.out.resolve().name,
            "modality": modality_entry(channels),
            "classes": list(classes),
            "background": True,
            "order": order,
            **entries,
            "statistics": self.statistics,
        }
        check_targets({item["id"]: item for items in self.lists.values() for item in items})
        return write_datalist(self.out, datalist | self.lists)
