# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""How a 2D network walks through a volume: along the anatomical axis that its training slices were cut along."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from monai_wsss._orientation import SLICING_AXES, axes_of
from monai_wsss.networks import recorded_reading

__all__ = ["SliceTurn", "array_axes", "slice_turn"]

_OPPOSITE = dict(zip("RASLPI", "LPIRAS", strict=True))


class SliceTurn(NamedTuple):
    """A turn of volumes (B, C, *S) that puts the slices' own axes first and the axis between slices last.

    Attributes:
        axes: the spatial axes 0..2 in their new order.
        flipped: the new spatial axes that run the other way.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[int, ...] = ()

    def turn(self, volume: torch.Tensor) -> torch.Tensor:
        """Give a volume with its slices along the last axis.

        Example:
            >>> SliceTurn((1, 2, 0)).turn(torch.zeros(1, 3, 4, 5, 6)).shape
            torch.Size([1, 3, 5, 6, 4])
        """
        return volume.permute(0, 1, *(axis + 2 for axis in self.axes)).flip([axis + 2 for axis in self.flipped])

    def turn_back(self, maps: torch.Tensor) -> torch.Tensor:
        """Give maps of a turned volume in the volume's own array order."""
        back = [self.axes.index(axis) + 2 for axis in range(3)]
        return maps.flip([axis + 2 for axis in self.flipped]).permute(0, 1, *back)

    @property
    def as_pictures(self) -> SliceTurn:
        """Give the turn that has the slices as (rows, columns), whose x runs along the columns.

        Example:
            >>> SliceTurn((1, 2, 0), (0,)).as_pictures
            SliceTurn(axes=(2, 1, 0), flipped=(1,))
        """
        first, second, along = self.axes
        return SliceTurn((second, first, along), tuple(sorted({0: 1, 1: 0}.get(axis, axis) for axis in self.flipped)))


def array_axes(image: torch.Tensor) -> list[str | None]:
    """Tell toward which sides the spatial axes of a batch of volumes run, per item, e.g. ``["LPS"]``.

    Args:
        image: (B, C, *S).

    Returns:
        Three letters of R, L, A, P, S, I per item; None for an item without an affine, as in a plain tensor.

    Example:
        >>> array_axes(MetaTensor(torch.zeros(1, 1, 4, 4, 4), affine=torch.diag(torch.tensor([-1.0, -1, 1, 1]))))
        ['LPS']
    """
    affine = np.asarray(torch.as_tensor(image.affine).cpu()) if isinstance(image, MetaTensor) else np.zeros(0)
    if affine.ndim < 2 or affine.shape[-2:] != (4, 4):
        return [None] * len(image)
    return [axes_of(one) for one in np.broadcast_to(affine, (len(image), 4, 4))]


def slice_turn(axes: str | None, network: Any) -> SliceTurn | None:
    """Give the turn that brings a volume's slices to lie as those that trained a network.

    Args:
        axes: the sides toward which the spatial axes of the volume run, as :func:`array_axes` gives them.
        network: the network.  Where its record has no ``in_plane_axes``, the axes of a slice keep their direction, R/L
            before A/P before S/I.

    Returns:
        The turn; None where the axes are unknown or the network has no record of them.

    Example:
        >>> from monai_wsss.networks import CAMEncoder, record_reading
        >>> network = CAMEncoder()
        >>> record_reading(network, {"slicing_axis": "SI", "in_plane_axes": "LP"})
        >>> slice_turn("PSL", network), slice_turn("RAS", network)
        (SliceTurn(axes=(2, 0, 1), flipped=()), SliceTurn(axes=(0, 1, 2), flipped=(0, 1)))
    """
    known = recorded_reading(network)
    if axes is None or known["slicing_axis"] is None:
        return None
    in_plane = known["in_plane_axes"] or "".join(axis for axis in SLICING_AXES if axis != known["slicing_axis"])[::2]
    order = [_place(axes, side) for side in (*in_plane, known["slicing_axis"][0])]
    flipped = [n for n, side in enumerate(known["in_plane_axes"] or "") if axes[order[n]] != side]
    return SliceTurn((order[0], order[1], order[2]), tuple(flipped))


def _place(axes: str, side: str) -> int:
    """Give the array axis that runs toward a side or away from it."""
    return axes.index(side) if side in axes else axes.index(_OPPOSITE[side])
