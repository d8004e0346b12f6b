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

    The item's ``intensity_mean`` and ``intensity_std`` (C,) are used where the datalist has them; an item without is
    measured by itself, which for a whole volume is the same rule.

    Args:
        keys: images (C, *S) to normalize.
        clip: greatest absolute value left, in standard deviations.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: statistics of another number of channels than the image.

    Example:
        >>> item = {"image": torch.tensor([[0.0, 0.0, 2.0, 4.0]])}
        >>> NormalizeSubjectd("image")(item)["image"].tolist()
        [[-3.0, -3.0, -1.0, 1.0]]
    """

    def __init__(self, keys: KeysCollection, clip: float = 6.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clip = clip

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
            item[key] = ((image - shift) / scale).clamp(-self.clip, self.clip)
        return item
