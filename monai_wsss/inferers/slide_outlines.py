# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Outlines of a slide's mask as GeoJSON, in pixels of the slide's finest level, as QuPath reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from monai_wsss._checks import DataError
from monai_wsss._files import atomic_path
from monai_wsss._labels import CLASS_COLORS

__all__ = ["write_outlines"]

tifffile, _has_tifffile = optional_import("tifffile")
measure, _has_measure = optional_import("skimage.measure")

_LARGEST = 4096
"""Longest side of the level of the mask that is outlined, in pixels."""


def write_outlines(
    mask: Path, path: Path, classes: Sequence[str], *, size: tuple[int, int], mpp: tuple[float, float]
) -> int:
    """Write a polygon with its holes for each connected part of each class.

    Outlines are drawn on the finest level of the mask that is at most 4096 pixels long, and run between pixels.

    Args:
        mask: pyramidal TIFF of 0..K, as :func:`~monai_wsss.inferers.segment_slide` writes it.
        path: ``….geojson``.
        classes: names of the classes, (K).
        size: (height, width) of the slide's finest level, in whose pixels coordinates are.
        mpp: micrometers per pixel of that level (y, x).

    Returns:
        The number of polygons.

    Raises:
        DataError: scikit-image or tifffile is not installed, or the file cannot be written.
    """
    if not (_has_measure and _has_tifffile):
        raise DataError("Outlines of slides need scikit-image: run pip install 'monai-wsss[slides]'.")
    with tifffile.TiffFile(mask) as file:
        levels = [page for page in file.pages if max(page.shape) <= _LARGEST] or [file.pages[-1]]
        values = levels[0].asarray()
    scale = (size[0] / values.shape[0], size[1] / values.shape[1])
    features = []
    for number, name in enumerate(classes, start=1):
        color = CLASS_COLORS[(number - 1) % len(CLASS_COLORS)]
        for rings, pixels in _parts(values == number):
            area = pixels * scale[0] * scale[1] * mpp[0] * mpp[1] / 1e6
            outlined = [[[round(x * scale[1], 2), round(y * scale[0], 2)] for y, x in ring] for ring in rings]
            features.append(_feature(outlined, name, color, area))
    content = {"type": "FeatureCollection", "features": features}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    return len(features)


def _feature(rings: list[Any], name: str, color: Sequence[int], area: float) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(color)},
            "measurements": {"Area mm^2": round(area, 6)},
        },
    }


def _parts(where: np.ndarray) -> Iterator[tuple[list[np.ndarray], int]]:
    """Give the rings of each connected part, the outer one first, in corners of pixels (y, x), and its pixels."""
    labels = measure.label(where, connectivity=1)
    for region in measure.regionprops(labels):
        top, left, _, _ = region.bbox
        padded = np.pad(region.image, 1).astype(np.float64)
        rings = [
            np.add(_corners(ring), (top, left)) for ring in measure.find_contours(padded, 0.5, fully_connected="low")
        ]
        rings.sort(key=_enclosed, reverse=True)
        yield rings, int(region.num_pixels)


def _corners(ring: np.ndarray) -> np.ndarray:
    """Move a contour, whose points lie half-way between the centers of pixels, to places where pixel 0 is 0 to 1."""
    moved = ring - 0.5  # one pixel of padding, and half a pixel from the center to the corner
    return moved if np.array_equal(moved[0], moved[-1]) else np.vstack([moved, moved[:1]])


def _enclosed(ring: np.ndarray) -> float:
    y, x = ring.T
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
