# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The colors of a whole slide, by which each of its tiles is standardized, as a patch is by those of its image."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from monai_wsss.inferers.slide_reading import SlideReading, SlideSource, SlideView
from monai_wsss.inferers.slide_tissue import find_tissue
from monai_wsss.transforms import NormalizeSubjectd

__all__ = ["SlideNormalizer"]

_WINDOWS, _SIDE = 48, 256  # of the sample: enough for mean and spread, a second to read
_THUMBNAIL = 1024


class SlideNormalizer:
    """Standardizes tiles (3, h, w) of 0..255 by the mean and standard deviation of the slide's tissue.

    The numbers come from 48 windows of 256 pixels. They are drawn from the tissue with a fixed seed and read at the
    resolution that the network works at, since the averages of a thumbnail have less contrast than the tiles. So a tile
    of pale tissue stays pale, and a slide is standardized as images are
    (:class:`~monai_wsss.transforms.NormalizeSubjectd`, ``foreground="tissue"``).

    Args:
        slide: the file, as :func:`~monai_wsss.inferers.segment_slide` takes it.
        reading: the same as there; None for the slide's own resolution.

    Raises:
        DataError: a slide that cannot be read.
    """

    def __init__(self, slide: str | os.PathLike[str], reading: SlideReading | None = None) -> None:
        reading = reading or SlideReading()
        with reading.open(slide) as source:
            sample = _tissue_sample(source, reading.view(source))
        self.transform = NormalizeSubjectd("image", foreground="tissue")
        mean, std = self.transform.measure(np.moveaxis(sample, 2, 0))
        self.statistics: dict[Hashable, Any] = {"intensity_mean": mean, "intensity_std": std}

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        """Give the tile as the network takes it, (3, h, w) float32."""
        return self.transform({"image": tile, **self.statistics})["image"]


def _tissue_sample(source: SlideSource, view: SlideView) -> np.ndarray:
    """Stack windows of tissue, (n * 256, 256, 3) uint8; take the thumbnail of a slide without tissue."""
    thumbnail = source.thumbnail(_THUMBNAIL)
    steps = [size / side for size, side in zip(view.size, thumbnail.shape[:2], strict=True)]
    tissue = np.argwhere(find_tissue(thumbnail, (view.mpp[0] * steps[0], view.mpp[1] * steps[1])))
    if len(tissue) == 0:
        return thumbnail
    chosen = np.random.default_rng(0).choice(len(tissue), min(_WINDOWS, len(tissue)), replace=False)
    centers = (tissue[np.sort(chosen)] + 0.5) * steps
    corners = (centers - _SIDE / 2).round().astype(int).tolist()
    return np.concatenate([view.region(top, left, _SIDE, _SIDE) for top, left in corners])
