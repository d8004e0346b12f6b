# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Where tissue lies on a slide: colored pixels of its thumbnail, by Otsu's threshold of their saturation.

Otsu's threshold parts any image in two, also a blank slide and a piece that is tissue throughout. So it is kept between
a saturation that glass never reaches and one that nearly all stained tissue has. White holes in tissue, such as the
lumina of glands, belong to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from monai_wsss.refinement import otsu_threshold

__all__ = ["TissueMap", "find_tissue"]

_LOWEST, _HIGHEST = 0.05, 0.15  # saturation: of glass with its noise, of pale tissue
_DARKEST = 0.08  # below, saturation is noise: the unscanned border, pen
_SPECK_SHARE = 0.001
_SPECK_MM2, _HOLE_MM2 = 0.005, 0.25  # smaller pieces are dust; smaller holes lie within tissue


def find_tissue(thumbnail: np.ndarray, mpp: tuple[float, float]) -> np.ndarray:
    """Find the tissue of a thumbnail; a blank one has none.

    Saturation is (max - min) / max of red, green and blue. Pixels above Otsu's threshold, kept within [0.05, 0.15], are
    tissue. Pieces below 0.005 mm² (of small images: 0.1 % of their area) are dropped, holes up to 0.25 mm² filled.

    Args:
        thumbnail: (h, w, 3) uint8.
        mpp: its micrometers per pixel (y, x).

    Returns:
        (h, w) bool.

    Raises:
        ValueError: another shape or type.

    Example:
        >>> thumbnail = np.full((40, 40, 3), 245, dtype=np.uint8)
        >>> find_tissue(thumbnail, (10.0, 10.0)).any()
        np.False_
        >>> thumbnail[10:30, 10:30] = (200, 120, 180)
        >>> int(find_tissue(thumbnail, (10.0, 10.0)).sum())
        400
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"Expected `thumbnail` (h, w, 3) uint8, got {thumbnail.shape} {thumbnail.dtype}.")
    highest = thumbnail.max(axis=2).astype(np.float32) / 255
    lowest = thumbnail.min(axis=2).astype(np.float32) / 255
    saturation = np.where(highest > _DARKEST, (highest - lowest) / np.maximum(highest, _DARKEST), 0.0)
    threshold = otsu_threshold(torch.from_numpy(saturation)[None, None]).item()
    tissue = saturation > min(max(threshold, _LOWEST), _HIGHEST)
    pixel_mm2 = mpp[0] * mpp[1] * 1e-6
    tissue = _pieces(tissue, at_least=min(_SPECK_MM2 / pixel_mm2, _SPECK_SHARE * tissue.size))
    return ~_pieces(~tissue, at_least=_HOLE_MM2 / pixel_mm2, keep_at_border=True)


def _pieces(mask: np.ndarray, at_least: float, keep_at_border: bool = False) -> np.ndarray:
    """Keep connected pieces of at least so many pixels, and if asked those of any size that touch the border."""
    labels, count = ndimage.label(mask)
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= at_least
    if keep_at_border:
        kept[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    kept[0] = False
    return kept[labels]


@dataclass(frozen=True)
class TissueMap:
    """Tissue known on a thumbnail, asked for in the pixels of a finer image of the same slide.

    Attributes:
        thumbnail: (h, w) bool.
        size: (H, W) of the finer image; its pixel (y, x) looks at the thumbnail's (floor((y + 1/2) h / H), ...).
    """

    thumbnail: np.ndarray
    size: tuple[int, int]

    def pixels(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Tell which of these pixels are tissue, (bottom - top, right - left) bool."""
        rows = self._index(np.arange(top, bottom), 0)
        return self.thumbnail[rows[:, None], self._index(np.arange(left, right), 1)]

    def touches(self, top: int, bottom: int, left: int, right: int) -> bool:
        """Tell whether any of these pixels, which may reach beyond the image, is tissue."""
        first, last = self._index(np.array([top, bottom - 1]), 0), self._index(np.array([left, right - 1]), 1)
        return bool(self.thumbnail[first[0] : first[1] + 1, last[0] : last[1] + 1].any())

    def _index(self, position: np.ndarray, axis: int) -> np.ndarray:
        known, length = self.thumbnail.shape[axis], self.size[axis]
        return np.minimum(((position + 0.5) * known / length).astype(np.int64), known - 1)
