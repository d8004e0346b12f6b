# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Tiles over an image that does not fit into memory: where they lie, in which order, and how their scores blend.

A slide is walked in *strips* of columns (one, unless it is very wide), a strip in rows of tiles from top to bottom. As
soon as a row of tiles is done, the *band* of pixels that no later tile covers is final. So no more scores are held than
a strip is wide and a tile is high.

| symbol       | name                                                                       |
|--------------|----------------------------------------------------------------------------|
| t            | `tile`, side of a tile                                                     |
| o            | `overlap`, pixels shared by neighbors, so tiles start every t - o pixels   |
| m            | `margin`, outermost pixels of a tile that are not used                     |
| r(i)         | weight of pixel i of a tile, counted from a side that has a neighbor       |

    linear:  r(i) = clip((i - m + 1/2) / (o - 2 m), 0, 1)
    hann:    sin^2(pi / 2 * linear)
    constant: 0 for i < m, else 1

With the first two, the weights of neighboring tiles add up to 1. Nothing fades at the slide's own border. A tile's
weight is the product over its four sides; scores are divided by the sum of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from monai_wsss._checks import check_choice
from monai_wsss.inferers.slide_tissue import TissueMap

__all__ = ["BandBlender", "TileGrid", "TileLayout", "TileStep", "fade_weights", "tile_starts"]

STRIP_PIXELS = 2**23  # of a row of tiles in a strip: 32 MiB per channel of scores


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """List the first pixels of tiles that cover ``length``; the last tile is moved back to end with the image.

    Example:
        >>> tile_starts(10, 4, 1), tile_starts(3, 4, 1)
        ([0, 3, 6], [0])
        >>> tile_starts(11, 4, 1)
        [0, 3, 6, 7]
    """
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def fade_weights(tile: int, overlap: int, margin: int, blend: str, at_start: bool, at_end: bool) -> np.ndarray:
    """Give weights (tile,) float32 along one axis, by the formulas of this module.

    Args:
        tile: t.
        overlap: o, 0 to t / 2 (beyond, three tiles meet and the sum is no longer 1: it is divided by).
        margin: m, below o / 2, or 0.
        blend: ``linear``, ``hann`` or ``constant``.
        at_start: the tile begins at the image's border, where nothing fades.
        at_end: it ends there.

    Example:
        >>> fade_weights(6, 2, 0, "linear", at_start=True, at_end=False).tolist()
        [1.0, 1.0, 1.0, 1.0, 0.75, 0.25]
    """
    place = np.arange(tile, dtype=np.float64)
    if blend == "constant" or overlap == 0:
        ramp = (place >= margin).astype(np.float64)
    else:
        ramp = np.clip((place - margin + 0.5) / (overlap - 2 * margin), 0.0, 1.0)
    if blend == "hann":
        ramp = np.sin(np.pi / 2 * ramp) ** 2
    ones = np.ones_like(ramp)
    return ((ones if at_start else ramp) * (ones if at_end else ramp[::-1])).astype(np.float32)


@dataclass(frozen=True)
class TileStep:
    """Tiles of one row that the network sees at once.

    Attributes:
        strip: number of the strip.
        row: number of the row of tiles.
        lefts: first columns of the tiles; may be empty.
        opens: the strip's first step.
        closes: the row's last step: its band is final.
        writes: the band is still to be written. After a restart, rows that the first unfinished band needs are done
            again and not written.
    """

    strip: int
    row: int
    lefts: tuple[int, ...]
    opens: bool
    closes: bool
    writes: bool


@dataclass(frozen=True)
class TileLayout:
    """How tiles lie over a slide, and where.

    Args:
        tile: t, side in pixels; for a network with attention over its input it is also the context.
        overlap: share of a tile that neighbors share, in [0, 1).
        margin: m, outermost pixels of a tile that are left out where it has neighbors. With at least the radius of the
            receptive field, a convolutional network gives exactly what it would give for the whole slide at once.
        blend: ``"linear"``, ``"hann"`` or ``"constant"``, how neighbors fade into one another.
        tissue: ``"otsu"`` (see :func:`~monai_wsss.inferers.slide_tissue.find_tissue`), or ``"all"`` for tiles
            everywhere.

    Raises:
        ValueError: an unknown choice, or sizes that do not go together.

    Example:
        >>> TileLayout(tile=32, overlap=0.25).over((100, 60)).tops
        [0, 24, 48, 68]
    """

    tile: int = 512
    overlap: float = 0.25
    margin: int = 0
    blend: str = "linear"
    tissue: str = "otsu"

    def __post_init__(self) -> None:
        check_choice("blend", self.blend, ("linear", "hann", "constant"))
        check_choice("tissue", self.tissue, ("otsu", "all"))
        if self.tile < 1 or not 0 <= self.overlap < 1 or self._shared >= self.tile:
            raise ValueError(f"Expected `tile` >= 1 and `overlap` in [0, 1), got {self.tile} and {self.overlap}.")
        if self.margin < 0 or (self.margin and 2 * self.margin >= self._shared):
            raise ValueError(
                f"Expected `margin` below half the overlap of {self._shared} pixels, got {self.margin}: "
                "choose a larger `overlap` or `tile`."
            )

    @property
    def _shared(self) -> int:
        """Give o, the pixels that neighbors share."""
        return round(self.tile * self.overlap)

    def over(self, size: tuple[int, int]) -> TileGrid:
        """Lay the tiles over an image of size (H, W)."""
        return TileGrid(size, self.tile, self._shared, self.margin, self.blend)


@dataclass(frozen=True)
class TileGrid:
    """Tiles, strips and bands of an image; :class:`TileLayout` checks the numbers.

    Args:
        size: (H, W).
        tile: t.
        overlap: o in pixels, 0 to t - 1.
        margin: m, below o / 2, or 0.
        blend: ``linear``, ``hann`` or ``constant``.

    Example:
        >>> grid = TileGrid((100, 60), tile=32, overlap=8)
        >>> grid.tops, grid.lefts, grid.band(2)
        ([0, 24, 48, 68], [0, 24, 28], (48, 68))
    """

    size: tuple[int, int]
    tile: int
    overlap: int
    margin: int = 0
    blend: str = "linear"
    tops: list[int] = field(init=False)
    lefts: list[int] = field(init=False)
    strips: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        lefts = tile_starts(self.size[1], self.tile, self.overlap)
        every = max(4, STRIP_PIXELS // (self.tile * (self.tile - self.overlap)))
        borders = [*lefts[::every], self.size[1]]
        object.__setattr__(self, "tops", tile_starts(self.size[0], self.tile, self.overlap))
        object.__setattr__(self, "lefts", lefts)
        object.__setattr__(self, "strips", list(pairwise(borders)))

    @property
    def bands(self) -> int:
        """Count the bands of all strips."""
        return len(self.strips) * len(self.tops)

    def band(self, row: int) -> tuple[int, int]:
        """Give the pixel rows that are final after a row of tiles, first and last + 1."""
        end = self.tops[row + 1] if row + 1 < len(self.tops) else self.size[0]
        return self.tops[row], end

    def weights(self, row: int, left: int) -> np.ndarray:
        """Give the weights (t, t) of a tile."""
        down, across = (
            fade_weights(self.tile, self.overlap, self.margin, self.blend, start == 0, start + self.tile >= length)
            for start, length in ((self.tops[row], self.size[0]), (left, self.size[1]))
        )
        return down[:, None] * across

    def steps(self, tissue: TissueMap, batch_size: int, done: int = 0, end: int | None = None) -> Iterator[TileStep]:
        """Yield everything to do for the bands from ``done`` to before ``end``, in order, None for all that are left.

        Tiles without tissue are left out.
        """
        for strip in range(done // len(self.tops), len(self.strips)):
            first = max(done - strip * len(self.tops), 0)
            needed = [row for row, top in enumerate(self.tops) if top + self.tile > self.tops[first]]
            for row in needed:
                if end is not None and strip * len(self.tops) + row >= end:
                    return
                lefts = self._with_tissue(tissue, strip, row)
                for start in range(0, max(len(lefts), 1), batch_size):
                    yield TileStep(
                        strip,
                        row,
                        lefts[start : start + batch_size],
                        opens=row == needed[0] and start == 0,
                        closes=start + batch_size >= len(lefts),
                        writes=row >= first,
                    )

    def _with_tissue(self, tissue: TissueMap, strip: int, row: int) -> tuple[int, ...]:
        """List the first columns of the tiles of a row that reach into a strip and hold tissue there."""
        begin, end = self.strips[strip]
        top = self.tops[row]
        return tuple(
            left
            for left in self.lefts
            if left < end
            and left + self.tile > begin
            and tissue.touches(top, top + self.tile, max(left, begin), min(left + self.tile, end))
        )


class BandBlender:
    """Weighted sums of scores over the rows of a strip that are not final yet.

    Args:
        grid: the tiles.
        strip: number of the strip.
    """

    def __init__(self, grid: TileGrid, strip: int) -> None:
        self.grid = grid
        self.begin, self.end = grid.strips[strip]
        self._total: np.ndarray | None = None
        self._weight = np.zeros((grid.tile, self.end - self.begin), dtype=np.float32)

    def add(self, row: int, left: int, scores: np.ndarray) -> None:
        """Add a tile's scores (C, t, t) float32."""
        if self._total is None:
            self._total = np.zeros((scores.shape[0], *self._weight.shape), dtype=np.float32)
        weights = self.grid.weights(row, left)
        first, last = max(left, self.begin), min(left + self.grid.tile, self.end)
        there, here = slice(first - self.begin, last - self.begin), slice(first - left, last - left)
        self._total[:, :, there] += scores[:, :, here] * weights[:, here]
        self._weight[:, there] += weights[:, here]

    def finish(self, row: int, columns: slice) -> np.ndarray | None:
        """Give final scores (C, rows of the band, columns) of a row of tiles; None before the strip's first tile."""
        if self._total is None:
            return None
        top, bottom = self.grid.band(row)
        weight = self._weight[: bottom - top, columns]
        return self._total[:, : bottom - top, columns] / np.where(weight > 0, weight, 1.0)

    def advance(self, row: int) -> None:
        """Drop the band of a row, so that the next row's tiles begin at the first row held."""
        top, bottom = self.grid.band(row)
        for plane in [self._weight] if self._total is None else [self._weight, *self._total]:
            plane[: max(self.grid.tile - (bottom - top), 0)] = plane[bottom - top :]
            plane[max(self.grid.tile - (bottom - top), 0) :] = 0.0
