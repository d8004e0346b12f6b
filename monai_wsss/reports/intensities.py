# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a conversion does to the images of an evaluation: intensity PMFs before and after it, and some cases as a grid.

`intensities.json` holds the PMFs of images with a finding and of healthy images, before and after their conversion,
each the mean over the images, and their Wasserstein-1 distances to the PMF of the healthy images before conversion.
Those are the healthy images that were *evaluated*.  `conversions.png` shows the first cases of both kinds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy

from monai_wsss._files import atomic_path, write_json
from monai_wsss._pictures import order_of
from monai_wsss.metrics import intensity_pmf, pmf_distance
from monai_wsss.reports.charts import ChartLine, line_chart
from monai_wsss.reports.conversions import render_conversions

__all__ = ["ConversionRecord", "intensity_view"]

CHART, GRID = "intensities.json", "conversions.png"
VALUE_RANGE = (-1.0, 1.0)
_SHOWN = {"finding": 6, "healthy": 2}  # cases of each kind in the grid
_NAMES = {
    "finding": "with a finding",
    "finding_converted": "with a finding, converted",
    "healthy": "healthy",
    "healthy_converted": "healthy, converted",
}


class ConversionRecord:
    """Collects the converted images of an evaluation, as PMFs and as a few cases to show.

    Example:
        >>> record = ConversionRecord()
        >>> image, mask = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
        >>> record.add([1.0], image, image + 0.5, mask)
        >>> record.add([0.0], image + 0.5, image + 0.5, mask)
        >>> record.notes()[0].split(": ")[1].split(";")[0]
        'before conversion 0.5, after it 0'
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts = dict.fromkeys(_SHOWN, 0)
        self._cases: dict[str, list[tuple[Any, ...]]] = {kind: [] for kind in _SHOWN}

    def __bool__(self) -> bool:
        return any(self._counts.values())

    def add(
        self, label: Any, image: Any, converted: Any, mask: Any, reference: Any = None, box: Sequence[Any] | None = None
    ) -> None:
        """Take a case.

        Args:
            label: (K,), 0/1; all zeros: healthy.
            image: (C, *S), as the network got it, intensities in [-1, 1].
            converted: of its shape.
            mask: (1, *S), the predicted one.
            reference: (1, *S), or None.
            box: first x, first y, last x and last y of a region to mark in a 2D image, or None.
        """
        kind = "finding" if bool(convert_to_numpy(torch.as_tensor(label)).any()) else "healthy"
        for name, values in ((kind, image), (f"{kind}_converted", converted)):
            pmf = intensity_pmf(torch.as_tensor(values), value_range=VALUE_RANGE)
            self._sums[name] = self._sums.get(name, 0.0) + pmf
        if len(self._cases[kind]) < _SHOWN[kind]:
            corners = None if box is None else tuple(int(corner) for corner in box)
            self._cases[kind].append((*_shown(image, converted, mask, reference), corners))
        self._counts[kind] += 1

    def content(self) -> dict[str, Any]:
        """Give the content of ``intensities.json``; without a healthy image there is no distance."""
        pmfs = {name: total / self._counts[name.split("_")[0]] for name, total in self._sums.items()}
        healthy = pmfs.get("healthy")
        distances = {
            name: pmf_distance(pmf, healthy, value_range=VALUE_RANGE)
            for name, pmf in pmfs.items()
            if healthy is not None and name != "healthy"
        }
        return {
            "unit": "intensity as the network got it, normalized to [-1, 1]",
            "value_range": list(VALUE_RANGE),
            "healthy_images": "of this evaluation, not of the training",
            "images": dict(self._counts),
            "pmf": {name: pmfs[name].tolist() for name in _NAMES if name in pmfs},
            "distance_to_healthy": distances,
        }

    def notes(self) -> list[str]:
        """Give sentences with the distances, for ``notes.txt``."""
        return [_sentence(self.content())]

    def write(self, folder: Path) -> None:
        """Write ``intensities.json`` and ``conversions.png``, and add a sentence to ``notes.txt``."""
        write_json(folder / CHART, self.content())
        cases = [case for of_kind in self._cases.values() for case in of_kind]
        images, converted, masks, references, boxes = (list(column) for column in zip(*cases, strict=True))
        grid = render_conversions(images, [[one] for one in converted], boxes=boxes, masks=masks, references=references)
        with atomic_path(folder / GRID) as temporary:
            temporary.write_bytes(grid)
        notes = folder / "notes.txt"
        told = notes.read_text(encoding="utf-8") if notes.is_file() else ""
        with atomic_path(notes) as temporary:
            temporary.write_text(told + "".join(f"{note}\n" for note in self.notes()), encoding="utf-8")


def _shown(image: Any, converted: Any, mask: Any, reference: Any) -> tuple[Any, Any, Any, Any]:
    """Give a case as it is drawn: images (C, x, y) and masks (x, y), of a volume the slice that tells most."""
    parts = [convert_to_numpy(torch.as_tensor(one)) for one in (image, converted)]
    masks = [None if one is None else convert_to_numpy(torch.as_tensor(one))[0] for one in (mask, reference)]
    if parts[0].ndim == 4:
        change = np.abs(parts[1] - parts[0]).mean(axis=0)
        telling = next((one for one in (masks[1], masks[0]) if one is not None and one.any()), change)
        z = int(np.argmax(telling.sum(axis=(0, 1))))
        parts = [one[..., z] for one in parts]
        masks = [None if one is None else one[..., z] for one in masks]
    elif order_of(image) != "xy":
        parts, masks = [one.swapaxes(1, 2) for one in parts], [None if one is None else one.T for one in masks]
    return parts[0], parts[1], masks[0], masks[1]


def _sentence(content: Mapping[str, Any]) -> str:
    count, distances = content["images"], content["distance_to_healthy"]
    if not count["healthy"]:
        return "Intensities after conversion cannot be compared with healthy ones: no healthy image was evaluated."
    if not count["finding"]:
        return "Intensities: no image with a finding was evaluated, so there is no conversion to compare."
    return (
        f"Wasserstein-1 distance of the intensities of {count['finding']} images with a finding to those of "
        f"{count['healthy']} healthy images of this evaluation: before conversion {distances['finding']:.3g}, after it "
        f"{distances['finding_converted']:.3g}; healthy images move by {distances['healthy_converted']:.3g} (unit: "
        "intensity normalized to [-1, 1])."
    )


def intensity_view(text: str) -> dict[str, Any]:
    """Draw the PMFs of ``intensities.json``, and write the sentence of its distances.

    The first and the last bin, which hold air and what was cut off, may be higher than the chart.
    """
    content = json.loads(text)
    low, high = content["value_range"]
    pmfs = {name: np.asarray(pmf) for name, pmf in content["pmf"].items() if name != "healthy_converted"}
    inner = [pmf[1:-1] for pmf in pmfs.values() if len(pmf) > 2]
    highest = max((float(pmf.max()) for pmf in inner), default=0.0) or 1.0
    lines = []
    for name, pmf in pmfs.items():
        centers = low + (np.arange(len(pmf)) + 0.5) * (high - low) / len(pmf)
        lines.append(ChartLine(_NAMES[name], centers.tolist(), pmf.clip(max=highest).tolist()))
    chart = line_chart(
        lines,
        title="Intensities before and after conversion",
        x_label="intensity as the network got it",
        y_label="share of the pixels",
        y_range=(0.0, highest),
        size=(720, 300),
    )
    return {"svg": chart, "text": _sentence(content)}
