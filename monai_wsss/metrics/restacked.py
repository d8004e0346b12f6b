# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Surface distances of volumes whose slices were measured one by one: masks are restacked, then compared in 3D.

A distance within slices is not that of the volume: it leaves out slices that one side leaves empty, and knows no way
through the next slice.  The ASSD of the CMER paper (Sec. IV-B) is that of volumes.  Here it has names of its own,
``volume_assd_directed_mm`` and so on, beside those of the slices.

Between the first and the last slice of a volume, slices that were not evaluated count as empty on both sides, unless
they were left out evenly (``--slice-step``): then the step is the distance of neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from monai_wsss._labels import IGNORED
from monai_wsss.metrics.bootstrap import Estimate, mean_of_estimates, subject_mean_estimate
from monai_wsss.metrics.estimates import CaseArrays, ClassScheme
from monai_wsss.metrics.surface import SurfaceDistances, surface_distances

__all__ = ["SlicePlace", "restacked_distances", "slice_row", "volume_estimates", "volume_means", "volume_note"]

Row = dict[str, Any]

_PREFIX = "volume_"


class SlicePlace(NamedTuple):
    """Where a slice lies in its volume.

    Attributes:
        volume: name of the volume, unique within its subject.
        number: of the slice along the axis between slices, from 0.
        voxel_size: mm along the two axes of the slice, in their order, and between neighboring slices; None measures
            in voxels.
    """

    volume: str
    number: int
    voxel_size: tuple[float, float, float] | None = None


def slice_row(place: SlicePlace, prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]) -> Row:
    """Keep the masks of a slice, packed, for its volume.

    Args:
        place: of the slice.
        prediction: label map (H, W).
        reference: label map (H, W), 255 where ignored.
        labels: the labels 1..K.

    Raises:
        ValueError: the case is no slice.
    """
    if prediction.ndim != 2:
        raise ValueError(f"Expected a slice (1, H, W) with its place in a volume, got {prediction.ndim} axes.")
    valid = reference != IGNORED
    packed = [[np.packbits((mask == label) & valid).tobytes() for label in labels] for mask in (prediction, reference)]
    return {"stack": {**place._asdict(), "shape": prediction.shape, "masks": packed}}


def restacked_distances(rows: Sequence[Row], scheme: ClassScheme) -> list[Row]:
    """Measure every volume whose slices all have known pixels.

    Args:
        rows: rows of a case table.
        scheme: its classes.

    Returns:
        One row per volume: ``subject``, ``unit`` ("mm" or "px"), whether there are ``gaps`` between its slices, and the
        distances of the classes that both masks hold.

    Raises:
        ValueError: the slices of a volume differ in size, or one is there twice.
    """
    volumes: dict[tuple[str, str], list[Row]] = {}
    unknown = set()
    for row in rows:
        if "stack" in row:
            volumes.setdefault((row["subject"], row["stack"]["volume"]), []).append(row["stack"])
        elif "volume" in row:
            unknown.add((row["subject"], row["volume"]))
    return [
        {"subject": key[0], **_distances(key, slices, scheme)}
        for key, slices in sorted(volumes.items())
        if key not in unknown
    ]


def _distances(key: tuple[str, str], slices: Sequence[Row], scheme: ClassScheme) -> Row:
    numbers = [one["number"] for one in slices]
    shapes, sizes = {one["shape"] for one in slices}, {one["voxel_size"] for one in slices}
    if len(shapes) > 1 or len(sizes) > 1 or len(set(numbers)) < len(numbers):
        raise ValueError(f"Expected slices of one size, each once, in volume {key[1]} of subject {key[0]}.")
    first, (shape,), (size,) = min(numbers), shapes, sizes
    step = math.gcd(*(number - first for number in numbers)) or 1
    spacing = None if size is None else (size[0], size[1], size[2] * step)
    row: Row = {"unit": "px" if size is None else "mm", "gaps": (max(numbers) - first) // step + 1 > len(numbers)}
    for place, label in enumerate(scheme.labels):
        stacks = []
        for side in (0, 1):
            stack = np.zeros((*shape, (max(numbers) - first) // step + 1), dtype=bool)
            for one in slices:
                bits = np.unpackbits(np.frombuffer(one["masks"][side][place], dtype=np.uint8), count=math.prod(shape))
                stack[..., (one["number"] - first) // step] = bits.reshape(shape)
            stacks.append(stack)
        distances = surface_distances(stacks[0], stacks[1], spacing=spacing)
        if distances is not None:
            row |= {scheme.key(name, label): value for name, value in distances._asdict().items()}
    return row


def volume_means(arrays: CaseArrays, rows: Sequence[Row], name: str, label: int) -> np.ndarray:
    """Average a distance over the volumes of each subject, (S,); NaN where none has it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if (key := arrays.scheme.key(name, label)) in row:
            values.setdefault(row["subject"], []).append(row[key])
    return np.array([np.mean(values[subject]) if subject in values else np.nan for subject in arrays.subjects])


def volume_estimates(arrays: CaseArrays, rows: Sequence[Row]) -> dict[str, Estimate]:
    """Give the distances of restacked volumes as metrics: per subject, then the mean over subjects.

    Args:
        arrays: of the case table.
        rows: of :func:`restacked_distances`.
    """
    estimates: dict[str, Estimate] = {}
    for unit in sorted({row["unit"] for row in rows}):
        own = [row for row in rows if row["unit"] == unit]
        for name in SurfaceDistances._fields:
            by_class = [subject_mean_estimate(volume_means(arrays, own, name, label)) for label in arrays.scheme.labels]
            full = f"{_PREFIX}{name}_{unit}"
            scored = arrays.scheme.scored_class
            of_scored = by_class[arrays.scheme.classes.index(scored)] if scored else mean_of_estimates(by_class)
            estimates[full] = of_scored
            if len(by_class) > 1:
                named = zip(arrays.scheme.classes, by_class, strict=True)
                estimates |= {f"{full}/{label}": estimate for label, estimate in named}
    return estimates


def volume_note(rows: Sequence[Row]) -> str:
    """Say how many volumes were restacked, that those without a surface are left out, and how many have gaps."""
    measured = sum(any(key.split("/")[0] in SurfaceDistances._fields for key in row) for row in rows)
    gaps = sum(row["gaps"] for row in rows)
    of_gaps = f" {gaps} of them lack slices between others, which count as empty in both masks." if gaps else ""
    return (
        f"{_PREFIX} distances are those of {len(rows)} volumes whose slices were restacked, left out in "
        f"{len(rows) - measured} without a surface of both; asd, assd, assd_directed and hd95 are means over slices."
        f"{of_gaps}"
    )
