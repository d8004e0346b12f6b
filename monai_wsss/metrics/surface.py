# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Distances between two surfaces, in millimeters where the spacing is known, in pixels where it is not.

Edges and nearest-neighbor distances are MONAI's.  This file computes four metrics in one pass, on the bounding box of
the two masks, and gives None instead of MONAI's inf or NaN where a surface is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from monai.utils import convert_to_numpy

__all__ = ["SurfaceDistances", "surface_distances"]


class SurfaceDistances(NamedTuple):
    """Four summaries of the distances between the surface P of the prediction and the surface R of the reference.

    Attributes:
        asd: mean distance from P to R (one direction: misses of the reference cost nothing).
        assd: both directions pooled, then averaged (MONAI's ``SurfaceDistanceMetric(symmetric=True)``).
        assd_directed: mean of the two directed means (medpy's ``assd``, the convention of the CMER paper).
        hd95: the larger of the two directed 95th percentiles (MONAI's ``HausdorffDistanceMetric(percentile=95)``).
    """

    asd: float
    assd: float
    assd_directed: float
    hd95: float


def surface_distances(
    prediction: torch.Tensor | np.ndarray,
    reference: torch.Tensor | np.ndarray,
    *,
    spacing: Sequence[float] | None = None,
) -> SurfaceDistances | None:
    """Measure the surface distances of one binary mask to another.

    A pixel lies on the surface if it is set and one of its 4 (2D) or 6 (3D) neighbors is not; outside of the image
    nothing is set.

    Args:
        prediction: bool or 0/1 mask, ``(*S)`` with two or three spatial axes.
        reference: mask of the same shape.
        spacing: size of a pixel along each axis, in mm; None measures in pixels.

    Returns:
        The four distances, or None where a mask is empty: no surface, no distance.

    Raises:
        ValueError: the shapes differ, have not two or three axes, or ``spacing`` does not fit them.

    Example:
        >>> prediction, reference = np.zeros((9, 9)), np.zeros((9, 9))
        >>> prediction[4, 2], reference[4, 6] = 1, 1
        >>> surface_distances(prediction, reference, spacing=(1.0, 0.5)).assd
        2.0
    """
    found, wanted = convert_to_numpy(prediction).astype(bool), convert_to_numpy(reference).astype(bool)
    if found.shape != wanted.shape or found.ndim not in (2, 3):
        raise ValueError(f"Expected two masks of one shape (*S), got {found.shape} and {wanted.shape}.")
    sizes = np.ones(found.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if sizes.shape != (found.ndim,) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"Expected `spacing` as {found.ndim} positive sizes in mm, got {spacing}.")
    if not (found.any() and wanted.any()):
        return None
    box = _bounding_box(found | wanted)
    edges = get_mask_edges(found[box], wanted[box], crop=False)
    forth = np.asarray(get_surface_distance(edges[0], edges[1], spacing=sizes), dtype=np.float64)
    back = np.asarray(get_surface_distance(edges[1], edges[0], spacing=sizes), dtype=np.float64)
    return SurfaceDistances(
        asd=float(forth.mean()),
        assd=float(np.concatenate([forth, back]).mean()),
        assd_directed=float((forth.mean() + back.mean()) / 2),
        hd95=float(max(np.percentile(forth, 95), np.percentile(back, 95))),
    )


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Give the smallest box around the set pixels of a mask that is not empty."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)
