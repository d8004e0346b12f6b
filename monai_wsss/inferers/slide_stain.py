# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The colors of a whole slide, by which each of its tiles is standardized: as patches are by those of their picture."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from monai_wsss.inferers.slide_reading import SlideSource
from monai_wsss.transforms import NormalizeSubjectd

__all__ = ["SlideNormalizer"]


class SlideNormalizer:
    """Standardizes tiles (3, h, w) of 0..255 by the mean and standard deviation of the slide's tissue.

    The numbers come from the slide's thumbnail, as those of a picture do from the picture
    (:class:`~monai_wsss.transforms.NormalizeSubjectd`, ``foreground="tissue"``): a tile of pale tissue stays pale.

    Args:
        slide: the file, as :func:`~monai_wsss.inferers.segment_slide` takes it.
        backend: see there.
        slide_mpp: see there.

    Raises:
        DataError: a slide that cannot be read.
    """

    def __init__(
        self, slide: str | os.PathLike[str], *, backend: str = "openslide", slide_mpp: float | None = None
    ) -> None:
        with SlideSource(slide, backend=backend, slide_mpp=slide_mpp) as source:
            thumbnail = source.thumbnail()
        self.transform = NormalizeSubjectd("image", foreground="tissue")
        mean, std = self.transform.measure(np.moveaxis(thumbnail, 2, 0))
        self.statistics: dict[Hashable, Any] = {"intensity_mean": mean, "intensity_std": std}

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        """The tile as the network takes it, (3, h, w) float32."""
        return self.transform({"image": tile, **self.statistics})["image"]
