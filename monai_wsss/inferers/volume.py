# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A network over a whole volume: a 2D network slice by slice, a 3D network by sliding windows, raw maps assembled.

Nothing here looks at the values of a map: normalization, the presence gate and thresholds come afterwards, once, over
the assembled whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer

from monai_wsss._checks import check_image, misfit, plain_tensor
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.inferers.multi_view import multi_view_maps
from monai_wsss.inferers.slicing import SliceTurn, array_axes, slice_turn
from monai_wsss.networks import recorded_reading
from monai_wsss.refinement import tell_rule
from monai_wsss.transforms import resize_in_plane

__all__ = ["VolumeInferer"]

_logger = logging.getLogger(__name__)


class VolumeInferer(Inferer):
    """Raw maps of images or whole volumes at their own size.

    Args:
        spatial_dims: of the network. A 2D network takes images (B, C, H, W) and volumes (B, C, H, W, D), a 3D network
            volumes alone.
        grid: in-plane size that a 2D network was trained on; slices are brought to it and their maps back. None for
            the slices' own size.
        slice_axis: array axis along which a 2D network walks through a volume, 0..2 or negative.  None: the anatomical
            axis of the slices that trained the network, found by the volume's affine, with the slices turned as those
            were; the last array axis where the network has no record of it or the volume has no affine.  A network that
            was trained on (C, rows, columns) gets slices so, with their x along the columns, as in a PNG of a slice.
        slice_batch: number of slices at once.
        roi_size: window of the network, in pixels of its grid; None for the whole image, slice or volume at once.
        overlap: share by which windows overlap, in [0, 1).
        views: see :func:`~monai_wsss.inferers.multi_view_maps`.
        scales: see there.
        reduction: see there.
        cam: how a map is taken from an image or window, e.g. a
            :class:`~monai_wsss.inferers.GradientCAMInferer`; None for the network's own output.
        tell_rule: give the maps of a MetaTensor as a MetaTensor with its metadata, which also hold the network's rule,
            so that :class:`~monai_wsss.refinement.ToMaskd` needs no network.

    Raises:
        ValueError: an image whose dimensions do not fit the network; ``cam`` together with ``roi_size``.

    Example:
        >>> from monai_wsss.networks import CAMEncoder
        >>> inferer = VolumeInferer(grid=(16, 16), slice_batch=2)
        >>> inferer(torch.rand(1, 1, 24, 20, 5), CAMEncoder.tiny().eval()).shape
        torch.Size([1, 1, 24, 20, 5])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        *,
        grid: Sequence[int] | None = None,
        slice_axis: int | None = None,
        slice_batch: int = 32,
        roi_size: Sequence[int] | None = None,
        overlap: float = 0.25,
        views: str = "none",
        scales: Sequence[float] = (1.0,),
        reduction: str = "mean",
        cam: Inferer | None = None,
        tell_rule: bool = False,
    ) -> None:
        super().__init__()
        if cam is not None and roi_size:
            raise ValueError("Expected `cam` without `roi_size`: presence is decided for a whole image, not by window.")
        self.spatial_dims = spatial_dims
        self.grid = grid
        self.slice_axis = slice_axis
        self.slice_batch = slice_batch
        self.windows = None
        if roi_size:
            at_once = slice_batch if spatial_dims == 2 else 1
            self.windows = SlidingWindowInferer(roi_size, at_once, overlap=overlap, mode="gaussian")
        self.views = views
        self.scales = tuple(scales)
        self.reduction = reduction
        self.cam = cam
        self.tell_rule = tell_rule
        self._told: set[str] = set()

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Give raw maps (B, K, *S) of ``inputs`` (B, C, *S); further arguments are the network's."""
        check_image(inputs)
        maps = self._maps(inputs, network, *args, **kwargs)
        return tell_rule(maps, inputs, network) if self.tell_rule else maps

    def _maps(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        image = plain_tensor(inputs)

        def view_maps(view: torch.Tensor) -> torch.Tensor:
            try:
                return network(view, *args, **kwargs) if self.cam is None else self.cam(view, network, *args, **kwargs)
            except RuntimeError as error:
                if told := misfit(error):
                    raise told from error
                raise  # with its own cause

        def whole(patch: torch.Tensor) -> torch.Tensor:
            return multi_view_maps(view_maps, patch, views=self.views, scales=self.scales, reduction=self.reduction)

        def maps(patch: torch.Tensor) -> torch.Tensor:
            return whole(patch) if self.windows is None else self.windows(patch, whole)

        if self.spatial_dims == 2:
            if image.ndim == 4:
                return self._in_plane(image, maps)
            turns = self._turns(inputs, network)
            if recorded_reading(network)["order"] == ROWS_COLUMNS:
                turns = [turn.as_pictures for turn in turns]
            if len(set(turns)) == 1:
                return self._slices(image, maps, turns[0])
            return torch.cat([self._slices(one[None], maps, turn) for one, turn in zip(image, turns, strict=True)])
        if image.ndim == 4:
            raise ValueError(f"Expected a volume (B, C, H, W, D) for a 3D network, got {tuple(image.shape)}.")
        return maps(image)

    def _in_plane(self, image: torch.Tensor, maps: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Give the maps of images, computed on the network's grid."""
        if self.grid is None:
            return maps(image)
        return resize_in_plane(maps(resize_in_plane(image, self.grid)), image.shape[2:])

    def _turns(self, volumes: torch.Tensor, network: Any) -> list[SliceTurn]:
        """Give, per volume (C, *S) of a batch, the turn that brings its slices to the last axis."""
        if self.slice_axis is not None:
            along = self.slice_axis % 3
            first, second = (axis for axis in range(3) if axis != along)
            return [SliceTurn((first, second, along))] * len(volumes)
        turns = []
        for axes in array_axes(volumes):
            turn = slice_turn(axes, network)
            if turn is None and axes is not None and axes[2] not in "SI" and axes not in self._told:
                self._told.add(axes)
                _logger.warning(
                    "The third axis of a volume does not run along the body, its axes are %s, and the weights do not "
                    "record along which axis volumes were cut: slices are taken along the third axis, so reorient the "
                    "files for axial slices.",
                    axes,
                )
            turns.append(turn or SliceTurn())
        return turns

    def _slices(
        self, volume: torch.Tensor, maps: Callable[[torch.Tensor], torch.Tensor], turn: SliceTurn
    ) -> torch.Tensor:
        """Give the maps of volumes (B, C, *S), slice by slice along the last axis after the turn."""
        parts = []
        for chunk in turn.turn(volume).split(self.slice_batch, dim=4):
            slices = chunk.movedim(4, 1)
            flat = self._in_plane(slices.flatten(0, 1).contiguous(), maps)
            parts.append(flat.unflatten(0, slices.shape[:2]).movedim(1, 4))
        return turn.turn_back(torch.cat(parts, dim=4))
