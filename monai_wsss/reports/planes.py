# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Turn images as viewers show them, and choose the slices of a volume that tell most.

A volume with a place in space is sliced as the network sees it, where one says so, else across its coarsest axis, or
else axially.  Its slices lie as radiologists see them: the right side of the patient on the left, front and head above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.utils import convert_to_numpy
from nibabel.orientations import io_orientation

from monai_wsss._orientation import SLICING_AXES
from monai_wsss._pictures import ROWS_COLUMNS, has_geometry, order_of
from monai_wsss.networks import recorded_reading

__all__ = ["Display", "display_of", "telling_slices"]

_COARSE = 1.5
"""An axis with so many times the spacing of the next one is that of the slices."""


@dataclass(frozen=True)
class Display:
    """How arrays of an image are turned to be shown.

    Attributes:
        axes: the array axes that become columns and rows, and of a volume that of the slices.
        flipped: of these axes those that are reversed.
        aspect: width of a pixel divided by its height.
        letter: the side of the patient on the left of the picture; empty where nobody knows.
    """

    axes: tuple[int, ...]
    flipped: tuple[int, ...] = ()
    aspect: float = 1.0
    letter: str = ""

    def turn(self, array: np.ndarray) -> np.ndarray:
        """Give (..., columns, rows, slices) of an array (..., *S); a 2D image has one slice."""
        leading = array.ndim - len(self.axes)
        turned = np.moveaxis(array, [leading + axis for axis in self.axes], range(leading, array.ndim))
        turned = np.flip(turned, tuple(leading + axis for axis in self.flipped))
        return turned if len(self.axes) == 3 else turned[..., None]


def display_of(image: Any, network: Any = None) -> Display:
    """Tell how an image (C, x, y), (C, rows, columns) or (C, x, y, z) is shown.

    Args:
        image: the image; a MetaTensor knows its place in space.
        network: one that may record along which axis its slices were cut.

    Example:
        >>> display_of(np.zeros((1, 8, 8, 4))).axes
        (0, 1, 2)
    """
    flat = image.ndim == 3
    if flat or not has_geometry(image):
        return Display((1, 0) if flat and order_of(image) == ROWS_COLUMNS else tuple(range(image.ndim - 1)))
    along = None if network is None else recorded_reading(network)["slicing_axis"]
    return _in_space(np.asarray(convert_to_numpy(image.affine), dtype=np.float64), along)


def _in_space(affine: np.ndarray, along: str | None) -> Display:
    """Tell how a volume with this affine (4, 4) is shown, by slices along an anatomical axis if one is named."""
    world, directions = io_orientation(affine).T
    if np.isnan(world).any():
        return Display((0, 1, 2))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.argsort(spacing)
    if along is None and spacing[order[2]] > _COARSE * spacing[order[1]]:
        through = int(order[2])
    else:
        through = int(np.flatnonzero(world == SLICING_AXES.index(along or "SI"))[0])
    # Columns run to the left of the patient, or to the back of one seen from the side; rows to the back, or down.
    columns, rows = sorted((axis for axis in range(3) if axis != through), key=lambda axis: world[axis])
    flipped = tuple(place for place, axis in enumerate((columns, rows)) if directions[axis] > 0)
    return Display(
        (columns, rows, through), flipped, float(spacing[columns] / spacing[rows]), "RA"[int(world[columns])]
    )


def telling_slices(parts: Sequence[np.ndarray | None], heat: np.ndarray | None = None, *, most: int = 3) -> list[int]:
    """Choose slices of the last axis, the most telling one first.

    The first is the one where a part is largest.  Then follow those where each part is largest, and those lower and
    higher in what the parts cover, but no neighbors.  Without any part it is the one with the strongest map; without a
    map the middle one.

    Args:
        parts: reference and mask, label maps (x, y, z), or None.
        heat: a map (x, y, z), or None.
        most: how many slices at most.

    Example:
        >>> mask = np.zeros((4, 4, 9), int)
        >>> mask[..., 2:7], mask[:2, :, 5] = 1, 0
        >>> telling_slices([mask, None])
        [2, 5]
    """
    amounts = [(part > 0).sum(axis=(0, 1)) for part in parts if part is not None and (part > 0).any()]
    if not amounts:
        if heat is not None and heat.any():
            return [int(np.argmax(heat.sum(axis=(0, 1))))]
        given: Any = next(part for part in parts if part is not None)
        return [given.shape[2] // 2]
    covered = np.flatnonzero(np.max(amounts, axis=0))
    within = [covered[round(share * (len(covered) - 1))] for share in (0.2, 0.8, 0.5, 1.0, 0.0)]
    wanted = [np.argmax(np.max(amounts, axis=0)), *(np.argmax(amount) for amount in amounts), *within]
    near = max(1, len(covered) // 8)
    chosen: list[int] = []
    for place in map(int, wanted):
        if all(abs(place - other) > near for other in chosen):
            chosen.append(place)
    return chosen[:most]
