# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Tiles with and without a finding, of one size and one scale, and the rules that keep a classifier from cheating.

Where every image shows the finding, tiles give the negative images that training needs.  A classifier takes any other
difference between the two kinds of tiles as well: their size, their scale, dark corners, and all that lies outside of
the organ.  So both kinds come from one grid over one scaled image, and one rule, which sees neither the finding nor the
tag, leaves out tiles with dark corners and tiles outside of a region.

A tile shows a class if the class covers more than a share of it.  It lacks the class if neither the tile nor a margin
around it holds a pixel of the class.  A tile between the two has no tag and is left out.

=============  ====================================================================================================
presence       the share of a tile above which a class counts as present
margin         pixels around a tile in which an absent class must not occur either
region         a mask of the organ in which tiles must lie, such as the lungs
=============  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from scipy.ndimage import label as connected_parts

__all__ = [
    "TileOptions",
    "TileRule",
    "dark_corners",
    "presence_pixels",
    "resize_image",
    "resize_mask",
    "scaled_shape",
    "tile_fault",
    "tile_tags",
]

_DARK = 0.5
"""A pixel is dark below this share of the median brightness of its image."""

_CORNER_RADIUS = 0.7
"""Dark corners lie farther from the center than this share of half the diagonal."""

_DARK_SHARE = 0.02
"""A tile has a dark corner if more than this share of its pixels belongs to one."""

_BRIGHT = 99.0  # percentile
_DARK_IMAGE = 0.2
"""An image whose median is below this share of its brightest pixels is dark itself, and no corner stands out."""


class TileOptions(TypedDict, total=False):
    """Options of tiles, each optional; :class:`TileRule` says what they do.

    Attributes:
        tile_stride: step from one tile to the next.
        scale: factor by which every image is scaled.
        longest_side: length of the longer side of every image.
        tile_presence: share of a tile above which a class counts as present.
        tile_margin: pixels around a tile without an absent class.
        region: folder of masks in which tiles must lie.
        region_share: least share of a tile within the region.
        skip_dark_corners: whether tiles with dark corners are left out.
        full_size: whether whole images that are measured keep their size.
    """

    tile_stride: int | None
    scale: float | None
    longest_side: int | None
    tile_presence: float
    tile_margin: int
    region: str | None
    region_share: float
    skip_dark_corners: bool
    full_size: bool


@dataclass(frozen=True)
class TileRule:
    """Rule by which images are scaled, cut and tagged.

    Attributes:
        tiles: size of the square tiles, in pixels of the scaled image.
        tile_stride: step from one tile to the next; None takes half a tile.  The last column and row end at the border.
        scale: factor by which every image is scaled; None keeps its size, or takes ``longest_side``.
        longest_side: length in pixels to which the longer side of every image is brought; None takes ``scale``.
        tile_presence: the share of a tile above which a class counts as present.
        tile_margin: pixels around a tile in which an absent class must not occur either.
        region: name of the folder with masks of the organ in which tiles must lie, such as "lungs"; None takes tiles
            from everywhere.
        region_share: the least share of a tile within the region.
        skip_dark_corners: whether tiles with dark corners are left out, whatever their tag.
        full_size: whether whole images that are measured keep their size.  Otherwise they are scaled as the tiles;
            whole training images always are.

    Raises:
        ValueError: a value is out of range, or both scale and longest side are given.
    """

    tiles: int
    tile_stride: int | None = None
    scale: float | None = None
    longest_side: int | None = None
    tile_presence: float = 0.05
    tile_margin: int = 8
    region: str | None = None
    region_share: float = 0.9
    skip_dark_corners: bool = True
    full_size: bool = False

    def __post_init__(self) -> None:
        for name, number, least in (
            ("tiles", self.tiles, 2),
            ("tile_stride", self.stride, 1),
            ("tile_margin", self.tile_margin, 0),
            ("longest_side", 2 if self.longest_side is None else self.longest_side, 2),
        ):
            if number < least:
                raise ValueError(f"Expected `{name}` of at least {least} pixels, got {number}.")
        if self.scale is not None and self.longest_side is not None:
            raise ValueError(
                f"Expected `scale` or `longest_side`, got both ({self.scale:g} and {self.longest_side}): give one."
            )
        if self.scale is not None and not 0 < self.scale <= 8:
            raise ValueError(f"Expected `scale` above 0 and up to 8, got {self.scale:g}.")
        if not 0 <= self.tile_presence < 1:
            raise ValueError(f"Expected `tile_presence` from 0 to below 1 (a share), got {self.tile_presence:g}.")
        if not 0 < self.region_share <= 1:
            raise ValueError(f"Expected `region_share` above 0 and up to 1 (a share), got {self.region_share:g}.")

    @property
    def stride(self) -> int:
        """Step from one tile to the next."""
        return max(1, self.tiles // 2) if self.tile_stride is None else self.tile_stride

    @property
    def sentence(self) -> str:
        """Say in a few words how masks become tags."""
        return (
            f"present above {100 * self.tile_presence:g} % of a tile, absent with a margin of {self.tile_margin} "
            "pixels, others left out"
        )


def scaled_shape(shape: Sequence[int], rule: TileRule) -> tuple[int, int]:
    """Give the shape of an image after scaling.

    Example:
        >>> scaled_shape((384, 288), TileRule(96, longest_side=256))
        (256, 192)
    """
    factor = rule.scale or (rule.longest_side / max(shape) if rule.longest_side else 1.0)
    first, second = (max(1, round(size * factor)) for size in shape)
    return first, second


def resize_image(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize an image of whole numbers bilinearly, with the low-pass that shrinking needs.

    Args:
        values: (C, *S), S two-dimensional.
        shape: the new spatial shape.

    Returns:
        (C, *shape) of whole numbers; the image itself if it has that shape.
    """
    if values.shape[1:] == shape:
        return values
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize(shape[::-1], Image.Resampling.BILINEAR))
        for channel in values
    ]
    return np.rint(np.stack(channels)).astype(values.dtype)


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a mask (1, *S) uint8 to (1, *shape); every pixel takes the value of the nearest one.

    Example:
        >>> resize_mask(np.array([[[0, 0, 2, 2]] * 2], dtype=np.uint8), (1, 2)).tolist()
        [[[0, 2]]]
    """
    return np.asarray(Image.fromarray(mask[0]).resize(shape[::-1], Image.Resampling.NEAREST))[None]


def presence_pixels(header: Mapping[str, Any], topk_share: float) -> int | None:
    """Tell how many pixels of a whole image decide whether it shows a class, for networks that learned from tiles.

    A share of the pixels that was right for tiles would be far more than a class covers in a whole image.  One class is
    cut wherever it is looked for, without asking whether it is there.

    Args:
        header: of the datalist of the tiles, see :func:`~monai_wsss.data.load_header`.
        topk_share: the share of a tile that the pooling averages.

    Returns:
        As many pixels as of a tile; None where there are no tiles, or one class.

    Example:
        >>> presence_pixels({"classes": ["rv", "lv"], "tiles": {"tiles": 32}}, 0.25)
        256
        >>> presence_pixels({"classes": ["lesion"], "tiles": {"tiles": 32}}, 0.25)
    """
    if not header.get("tiles") or len(header["classes"]) == 1:
        return None
    return max(1, round(topk_share * int(header["tiles"]["tiles"]) ** 2))


def dark_corners(values: np.ndarray) -> np.ndarray:
    """Find the dark corners of an image, as a dermatoscope or a collimator leaves them.

    A pixel belongs to one if it is darker than half the median of its image, lies far from the center, and hangs
    together with the pixel in the corner.  A mostly dark image, such as one of fluorescence, has none.

    Args:
        values: (C, *S) from 0 on, S two-dimensional; the brightness is the mean over the channels.

    Returns:
        (*S) bool.

    Example:
        >>> image = np.full((3, 40, 30), 200.0)
        >>> image[:, :4, :4] = 5
        >>> dark_corners(image).sum(), dark_corners(255 - image).sum()
        (np.int64(16), np.int64(0))
    """
    brightness = values.mean(axis=0, dtype=np.float64)
    typical = np.median(brightness)
    if typical < _DARK_IMAGE * np.percentile(brightness, _BRIGHT):
        return np.zeros(brightness.shape, dtype=bool)
    first, second = (np.arange(size) + 0.5 - size / 2 for size in brightness.shape)
    outside = np.hypot(first[:, None], second) > _CORNER_RADIUS * np.hypot(*brightness.shape) / 2
    parts, _ = connected_parts((brightness < _DARK * typical) & outside)
    corners = parts[[0, 0, -1, -1], [0, -1, 0, -1]]
    found: np.ndarray = np.isin(parts, corners[corners > 0])
    return found


def _window(origin: tuple[int, int], size: int, margin: int = 0) -> tuple[slice, slice]:
    """Give the slices of a tile with a margin; what lies before the first pixel is cut off."""
    first, second = (slice(max(0, start - margin), start + size + margin) for start in origin)
    return first, second


def tile_fault(origin: tuple[int, int], rule: TileRule, dark: np.ndarray, region: np.ndarray | None) -> str:
    """Say why a tile is left out whatever its tag; the finding is not looked at.

    Args:
        origin: first index of the tile along both axes.
        rule: the rule.
        dark: the dark corners, (*S) bool, from :func:`dark_corners`.
        region: the region in which tiles must lie, (*S) bool, or None.

    Returns:
        "dark", "outside", or an empty text for a tile that stays.

    Example:
        >>> dark = np.zeros((8, 8), dtype=bool)
        >>> dark[0, 0] = True
        >>> [tile_fault(origin, TileRule(4), dark, None) for origin in ((0, 0), (4, 4))]
        ['dark', '']
    """
    window = _window(origin, rule.tiles)
    if rule.skip_dark_corners and dark[window].mean() > _DARK_SHARE:
        return "dark"
    if region is not None and region[window].mean() < rule.region_share:
        return "outside"
    return ""


def tile_tags(mask: np.ndarray, origin: tuple[int, int], rule: TileRule, num_classes: int) -> list[int] | None:
    """Tag a tile by the mask of its image.

    Args:
        mask: the mask of the whole scaled image, (*S) with values 0..K.
        origin: first index of the tile along both axes.
        rule: the rule.
        num_classes: K.

    Returns:
        0 or 1 per class, (K); None where a class neither covers enough of the tile nor is absent with its margin.

    Example:
        >>> mask = np.zeros((16, 4), dtype=np.uint8)
        >>> mask[:2] = 1
        >>> rule = TileRule(4, tile_margin=3)
        >>> [tile_tags(mask, (start, 0), rule, 1) for start in (0, 4, 8, 12)]
        [[1], None, [0], [0]]
    """
    inside, around = mask[_window(origin, rule.tiles)], mask[_window(origin, rule.tiles, rule.tile_margin)]
    tags = []
    for number in range(1, num_classes + 1):
        present = bool((inside == number).mean() > rule.tile_presence)
        if not present and (around == number).any():
            return None
        tags.append(int(present))
    return tags
