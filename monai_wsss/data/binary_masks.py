# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks of one class, in whatever form a set or its copies hold them: 0 and 1, 0 and 255, palettes, or gray edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.data import MetaTensor

from monai_wsss._checks import DataError
from monai_wsss.data.reading import check_mask_fits, read_labels

__all__ = ["read_binary_mask"]

_LEAST_WHITE = 128
"""Gray edges are told from several labels by the brightest value, which is at least this."""


def read_binary_mask(path: Path, like: MetaTensor) -> np.ndarray:
    """Read the mask of one class as (1, *S) uint8 of 0 and 1, on the grid of its image.

    Every value above 0 counts where there is one.  Gray edges, which JPEG and resizing leave, are cut at half of the
    brightest value.  Palettes count by the brightness of their colors.

    Args:
        path: the mask.
        like: the image, (C, *S).

    Raises:
        DataError: the mask cannot be read, differs from the image in size, or holds several labels.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from PIL import Image
        >>> file = Path(tempfile.mkdtemp()) / "mask.png"
        >>> Image.fromarray(np.array([[0, 90, 255]], dtype=np.uint8)).save(file)
        >>> read_binary_mask(file, MetaTensor(torch.zeros(1, 3, 1)))[0, :, 0].tolist()
        [0, 0, 1]
    """
    mask = read_labels(path, palette="gray")
    check_mask_fits(mask, path, like)
    values = mask.as_tensor().numpy()
    shown = np.unique(values[values > 0])
    if len(shown) > 1:
        top = int(shown[-1])
        middle = np.count_nonzero((values > 0.25 * top) & (values <= 0.75 * top))
        if top < _LEAST_WHITE or middle > np.count_nonzero(values > 0.75 * top):
            raise DataError(
                f"{path} holds the values {', '.join(map(str, shown[:5].tolist()))}, but it is the mask of one class: "
                "export it as PNG with 0 and 255."
            )
        values = np.where(values >= 0.5 * top, values, 0)
    return (values > 0).astype(np.uint8)
