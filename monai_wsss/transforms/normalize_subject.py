# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Intensity normalization of a slice by its subject's statistics, so that a slice looks as it does in its volume.

Normalized by itself, a slice through a large lesion is darkened everywhere else; by its volume it is not.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_wsss._intensity import foreground_statistics

__all__ = ["NormalizeSubjectd"]


class NormalizeSubjectd(MapTransform):
    """``(image - mean) / std`` of each channel, clipped; mean and std of the subject's foreground.

    How dark the air is says nothing about the tissue and changes with skull stripping and with scaling: all below
    ``lower`` is made equal, so that a network meets the same background in stripped and unstripped studies.

    The item's ``intensity_mean`` and ``intensity_std`` (C,) are used where the datalist has them; an item without is
    measured by itself, which for a whole volume is the same rule.

    Args:
        keys: images (C, *S) to normalize.
        lower: lowest value left, in standard deviations below the mean of the foreground.
        upper: highest value left.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: statistics of another number of channels than the image.

    Example:
        >>> item = {"image": torch.tensor([[0.0, 0.0, 2.0, 4.0]])}
        >>> NormalizeSubjectd("image")(item)["image"].tolist()
        [[-2.5, -2.5, -1.0, 1.0]]
    """

    def __init__(
        self, keys: KeysCollection, lower: float = -2.5, upper: float = 6.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lower = lower
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if "intensity_mean" in item:
                mean, std = np.asarray(item["intensity_mean"]), np.asarray(item["intensity_std"])
            else:
                mean, std = foreground_statistics(np.asarray(image))
            if mean.shape != (image.shape[0],):
                raise ValueError(
                    f"Expected `intensity_mean` of {image.shape[0]} channels as in `{key}`, got {mean.shape[0]}: "
                    "run `monai-wsss prepare` again."
                )
            column = (-1, *[1] * (image.ndim - 1))
            shift = torch.as_tensor(mean, dtype=torch.float32).reshape(column)
            scale = torch.as_tensor(std, dtype=torch.float32).reshape(column)
            item[key] = ((image - shift) / scale).clamp(self.lower, self.upper)
        return item
