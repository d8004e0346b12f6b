# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A row of ``predictions.csv``: where the results of a case lie, what was found, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wsss._files import atomic_path
from monai_wsss._pictures import pixel_area, voxel_volume
from monai_wsss.metrics.aggregate import write_table

__all__ = ["PRESENCES", "prediction_row", "write_predictions"]

PRESENCES = ("_presence_logit", "_presence_difference")
"""Ends of the columns that hold what decides on presence: a logit, or how far an image and its conversion differ."""


def prediction_row(
    name: str, result: Mapping[Any, Any], classes: Sequence[str], output_dir: Path, replaced: Mapping[str, str]
) -> dict[str, Any]:
    """Describe the result of a case.

    Args:
        name: of the case.
        result: with ``pred``, the mask (1, *S), ``pred_path`` and ``image``, and perhaps ``presence``, (K,),
            ``presence_kind``, ``label_filter`` and the paths of heat map and converted image.
        classes: names of the classes, (K).
        output_dir: paths are relative to it.
        replaced: sequences that the data lack, and the ones in their place.

    Returns:
        The cells by the name of their column: per class milliliters of a volume, square millimeters of an image, or
        pixels where their size is not known.
    """
    row: dict[str, Any] = {
        "id": name,
        "mask": os.path.relpath(result["pred_path"], output_dir),
        "replaced": " ".join(f"{one}<-{other}" for one, other in replaced.items()),
    }
    for kind in ("heat", "converted"):
        if f"{kind}_path" in result:
            paths = result[f"{kind}_path"]
            paths = [paths] if isinstance(paths, str) else paths
            row[kind] = " ".join(os.path.relpath(path, output_dir) for path in paths)
    if "label_filter" in result:
        row["label_filter"] = result["label_filter"]
    volume, area = voxel_volume(result["image"]), pixel_area(result["image"])
    unit, size = ("px", 1.0) if area is None else ("mm2", area)
    if volume is not None:
        unit, size = "ml", volume / 1000
    for number, found in enumerate(classes, start=1):
        row[f"{found}_{unit}"] = round(float((result["pred"] == number).sum()) * size, 3)
        if "presence" in result:
            row[f"{found}_presence_{result.get('presence_kind', 'logit')}"] = round(
                float(result["presence"][number - 1]), 4
            )
    return row


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a table, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["id"]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        write_table(file, rows, names)
