# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Gaussian blur of one random width for all axes, as PIL's ``GaussianBlur`` in the code of papers.

``monai.transforms.RandGaussianSmoothd`` draws a width per axis and takes what lies beyond the border as black.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["RandBlurd"]

_TRUNCATED = 4.0  # standard deviations from the center of the kernel to its end


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur an image (C, *S); what lies beyond the border equals the border."""
    dims = image.ndim - 1
    kernel = gaussian_1d(torch.tensor(sigma), truncated=_TRUNCATED, normalize=True).to(image.device)
    margin = len(kernel) // 2
    padded = F.pad(image[None], [margin] * 2 * dims, mode="replicate")
    smooth = separable_filtering(padded, [kernel] * dims)[0]
    inside = (slice(margin, -margin),) * dims
    return smooth[(slice(None), *inside)].contiguous()


class RandBlurd(RandomizableTransform, MapTransform):
    """Gaussian blur by a random standard deviation, one for all axes; all keys of an item get the same.

    Args:
        keys: images (C, *S).
        prob: chance that an item is blurred.
        sigma: smallest and largest standard deviation, in pixels.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: widths that are not above 0 and in ascending order.

    Example:
        >>> blur = RandBlurd("image", prob=1.0, sigma=(1.0, 1.0)).set_random_state(seed=0)
        >>> point = torch.zeros(1, 9, 9)
        >>> point[0, 4, 4] = 1
        >>> blurred = blur({"image": point})["image"]
        >>> bool(torch.allclose(blurred, blurred.mT)), round(float(blurred.sum()), 3)
        (True, 1.0)
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        *,
        sigma: Sequence[float] = (0.1, 2.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"Expected `sigma` to be two widths above 0, the smaller first, got {tuple(sigma)}.")
        self.sigma = tuple(sigma)
        self._drawn = self.sigma[0]

    def randomize(self, data: Any = None) -> None:
        """Draw the decision to blur an item, and the width."""
        super().randomize(data)
        self._drawn = float(self.R.uniform(*self.sigma))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(item):
                plain = convert_to_tensor(item[key], dtype=torch.float32, track_meta=False)
                item[key] = convert_to_dst_type(_blur(plain, self._drawn), item[key], dtype=torch.float32)[0]
        return item
