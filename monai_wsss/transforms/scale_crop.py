# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Random scale, pad and crop: images of any size become crops of one size, and a box tells padding from image.

This is how photographs are trained on (AFA, BMP, CoSA): the image is scaled by a random factor, padded where it is
smaller than the crop, at random sides, and cropped where it is larger, at a random place.

Methods that make pseudo-labels read two more entries of an item: ``boxes``, so that padding teaches nothing, and
``intensity``, the crop before its colors are changed, along which labels spread.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple

from monai_wsss._labels import IGNORED
from monai_wsss._resize import linear_mode, resize_nearest
from monai_wsss.transforms.in_plane import resize_in_plane

__all__ = ["RandScalePadCropd"]


class _Window(NamedTuple):
    """The place of a crop in the scaled image.

    Attributes:
        size: of the scaled image.
        crop: size of the crop.
        source: the part of the scaled image that is in the crop.
        inside: its place in the crop.
    """

    size: tuple[int, ...]
    crop: tuple[int, ...]
    source: tuple[slice, ...]
    inside: tuple[slice, ...]

    def cut(self, scaled: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
        """Cut the crop (C, *crop) from a scaled image (C, *size), with ``fill`` (C,) for its padding."""
        column = fill.to(scaled).reshape(-1, *[1] * len(self.crop))
        crop = column.expand(len(scaled), *self.crop).clone()
        crop[(slice(None), *self.inside)] = scaled[(slice(None), *self.source)]
        return crop


def _scaled(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resample an image (C, *S) linearly; a 2D image that shrinks is low-pass filtered."""
    if len(size) == 2:
        return resize_in_plane(image[None], size)[0]
    return F.interpolate(image[None], size=tuple(size), mode=linear_mode(len(size)), align_corners=False)[0]


class RandScalePadCropd(Randomizable, MapTransform):
    """Random scale, then pad and crop to one size; adds the box of the true pixels and the un-augmented crop.

    A flip goes before this transform, changes of color go after it: the box and ``intensity`` are those of the crop.
    All images and label maps of an item get the same crop.  Metadata of files stay as they were read.

    Args:
        keys: images (C, *S), 2D or 3D, of one size per item.
        crop_size: size of the crop, per axis or one for all.
        scale_range: smallest and largest factor of the image's size.
        label_keys: label maps (1, *S) that are scaled by nearest neighbor, where an item has them; their padding is
            255, ignored.
        fill: value of the padding: a number, one per channel, or ``"mean"``, the image's own mean per channel.
        boxes_key: entry for the box of the true pixels in the crop, int64 (2 d,): first and last+1 pixel along each
            axis, as :func:`~monai_wsss.refinement.background_aware_scores` reads it; None: no box.
        intensity_key: entry for a copy of the crop of the first image; None: no copy.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: a crop or a scale that is not positive, an unknown fill, images of several sizes in one item, or a
            size of the crop or a fill that does not fit the image.

    Example:
        >>> crop = RandScalePadCropd("image", 8, scale_range=(0.5, 0.5), fill=0.0).set_random_state(seed=1)
        >>> item = crop({"image": torch.ones(3, 10, 20)})  # of 5 x 10 pixels when scaled: padded and cropped
        >>> item["image"].shape, item["boxes"].tolist(), int(item["image"][0].sum())
        (torch.Size([3, 8, 8]), [0, 5, 0, 8], 40)
    """

    def __init__(
        self,
        keys: KeysCollection,
        crop_size: int | Sequence[int],
        *,
        scale_range: Sequence[float] = (0.5, 2.0),
        label_keys: KeysCollection = (),
        fill: float | Sequence[float] | str = "mean",
        boxes_key: str | None = "boxes",
        intensity_key: str | None = "intensity",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.crop_size: tuple[int, ...] = ensure_tuple(crop_size)
        if not self.crop_size or min(self.crop_size) < 1:
            raise ValueError(f"Expected `crop_size` of at least 1 pixel along each axis, got {crop_size}.")
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"Expected `scale_range` to be two factors > 0, the smaller first, got {scale_range}.")
        if isinstance(fill, str) and fill != "mean":
            raise ValueError(f"Expected `fill` to be a number, one per channel, or 'mean', got {fill!r}.")
        self.scale_range = tuple(scale_range)
        self.label_keys: tuple[Hashable, ...] = ensure_tuple(label_keys)
        self.fill = fill
        self.boxes_key = boxes_key
        self.intensity_key = intensity_key
        self._window = _Window((), (), (), ())

    def randomize(self, data: Sequence[int]) -> None:
        """Draw the scale of an image of this size, and the place of the crop in it."""
        crop = self.crop_size * len(data) if len(self.crop_size) == 1 else self.crop_size
        scale = self.R.uniform(*self.scale_range)
        size = tuple(max(1, int(side * scale)) for side in data)
        source, inside = [], []
        for side, length in zip(size, crop, strict=True):
            start = int(self.R.randint(abs(side - length) + 1))
            most = min(side, length)
            source.append(slice(start, start + most) if side > length else slice(0, most))
            inside.append(slice(0, most) if side > length else slice(start, start + most))
        self._window = _Window(size, crop, tuple(source), tuple(inside))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        keys = list(self.key_iterator(item))
        if not keys:
            return item
        labels = [key for key in self.label_keys if key in item]
        self.randomize(self._size_of(item, [*keys, *labels]))
        for key in keys:
            item[key] = self._crop_image(item[key])
        for key in labels:
            item[key] = self._crop_labels(item[key])
        if self.boxes_key is not None:
            ends = [end for axis in self._window.inside for end in (axis.start, axis.stop)]
            item[self.boxes_key] = torch.tensor(ends)
        if self.intensity_key is not None:
            first = item[keys[0]]
            item[self.intensity_key] = first.clone() if isinstance(first, torch.Tensor) else first.copy()
        return item

    def _size_of(self, item: Mapping[Hashable, Any], keys: Sequence[Hashable]) -> tuple[int, ...]:
        """Give the size that the images and label maps of an item have in common."""
        sizes = {key: tuple(item[key].shape[1:]) for key in keys}
        size = sizes[keys[0]]
        if set(sizes.values()) != {size}:
            told = ", ".join(f"`{key}` {of}" for key, of in sizes.items())
            raise ValueError(f"Expected the images and label maps of an item to have one size, got {told}.")
        if len(self.crop_size) not in (1, len(size)):
            raise ValueError(
                f"Expected `crop_size` of {len(size)} axes for `{keys[0]}` of size {size}, got {self.crop_size}."
            )
        return size

    def _crop_image(self, image: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
        plain = convert_to_tensor(image, track_meta=False)
        floats = plain.float()
        if self.fill == "mean":
            fill = floats.mean(tuple(range(1, plain.ndim)))
        else:
            fill = torch.as_tensor(self.fill, dtype=torch.float32)
            if fill.numel() not in (1, len(plain)):
                raise ValueError(
                    f"Expected `fill` of one value or {len(plain)}, the image's channels, got {self.fill}."
                )
        crop = self._window.cut(_scaled(floats, self._window.size), fill)
        dtype = plain.dtype if plain.is_floating_point() else torch.float32
        return convert_to_dst_type(crop, image, dtype=dtype)[0]

    def _crop_labels(self, labels: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
        plain = convert_to_tensor(labels, track_meta=False)
        scaled = resize_nearest(plain[None], self._window.size)[0]
        crop = self._window.cut(scaled, torch.tensor([IGNORED]))
        return convert_to_dst_type(crop, labels, dtype=plain.dtype)[0]
