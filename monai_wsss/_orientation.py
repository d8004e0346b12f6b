# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Anatomical directions of array axes, and the names of the axes along which volumes are cut into slices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import nibabel
import numpy as np

__all__ = ["SIDES", "SLICING_AXES", "axes_of", "slicing_entry"]

SLICING_AXES = ("RL", "AP", "SI")
"""Anatomical axes along which volumes are cut: they give sagittal, coronal and axial slices."""

SIDES = {"R": 1, "A": 2, "S": 3, "L": -1, "P": -2, "I": -3}
"""Number of the anatomical axis of a side, from 1 on, positive toward R, A and S."""


def axes_of(affine: Any) -> str | None:
    """Tell toward which sides the axes of a volume run.

    Args:
        affine: (4, 4), from indices to RAS millimeters.

    Returns:
        Three letters of R, L, A, P, S, I; None where the affine says nothing.

    Example:
        >>> axes_of(np.diag([-1.0, -1.0, 5.0, 1.0]))
        'LPS'
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return None
    codes = nibabel.aff2axcodes(matrix)
    return None if None in codes else "".join(codes)


def slicing_entry(axes: Iterable[str | None]) -> dict[str, str]:
    """Give the entries of a datalist that say how its slices were cut from volumes.

    Args:
        axes: of every volume that was cut along its last array axis, as :func:`axes_of` gives them.

    Returns:
        ``slicing_axis``, of :data:`SLICING_AXES`, and ``in_plane_axes``, the sides toward which x and y run; each only
        where it is the same in all volumes.

    Example:
        >>> slicing_entry(["LPS", "LPI"]), slicing_entry(["LPS", "RAS"]), slicing_entry(["LPS", "PSL"])
        ({'slicing_axis': 'SI', 'in_plane_axes': 'LP'}, {'slicing_axis': 'SI'}, {})
    """
    known = set(axes)
    along = {next(name for name in SLICING_AXES if one[2] in name) if one else None for one in known}
    if len(along) != 1 or None in along:
        return {}
    in_plane = {one[:2] for one in known if one}
    entry = {"slicing_axis": str(along.pop())}
    return entry | ({"in_plane_axes": in_plane.pop()} if len(in_plane) == 1 else {})
