# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A 2D case as small pictures: the image, its reference, and what each of several methods makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.utils import convert_to_numpy
from PIL import Image

from monai_wsss._labels import IGNORED
from monai_wsss.reports.panels import channel_planes, heat_over, labels_over, outlines_over
from monai_wsss.reports.planes import display_of

__all__ = ["CaseTiles"]

_HEIGHT, _GAP = 176, 4


class CaseTiles:
    """The pictures of one case, all of one height.

    Args:
        image: (C, x, y), or (C, rows, columns) as a MetaTensor that says so.
        reference: (1, *S), labels 0..K, or None.
        channel_names: C names.
        outlined: whether masks are shown by their outlines, which tell one class alone; else each class by its color.
    """

    def __init__(self, image: Any, reference: Any, channel_names: Sequence[str], *, outlined: bool) -> None:
        self.display = display_of(image)
        self.outlined = outlined
        picture = self.display.turn(convert_to_numpy(image))
        width = round(_HEIGHT * picture.shape[1] * self.display.aspect / picture.shape[2])
        self.size = (int(np.clip(width, _HEIGHT // 3, 3 * _HEIGHT)), _HEIGHT)
        (self.base,) = channel_planes(picture, channel_names, [0], self.size)
        self.reference = None
        if reference is not None:
            labels = self._turned(convert_to_numpy(reference)[0])
            self.reference = np.where(labels == IGNORED, 0, labels)

    def of_image(self) -> Image.Image:
        """Draw the image and, where it is known, the reference over it beside it."""
        parts = [_picture(self.base)]
        if self.reference is not None:
            empty = np.zeros_like(self.reference)
            parts.append(
                outlines_over(parts[0], self.reference, empty) if self.outlined else self._colored(self.reference)
            )
        return _beside(parts)

    def of_method(
        self, mask: np.ndarray, scores: np.ndarray | None, uncertainty: np.ndarray | None = None
    ) -> Image.Image:
        """Draw the score map over the image, beside it the mask, and beside that the uncertainty over the image.

        Args:
            mask: (x, y) of the image's shape or smaller, labels 0..K.
            scores: (K, x, y) in [0, 1]; of several classes the highest is shown.  None where there is none.
            uncertainty: (1, x, y) in [0, 1]; None where there is none.
        """
        found = self._turned(mask)
        reference = np.zeros_like(found) if self.reference is None else self.reference
        parts = []
        if scores is not None:
            parts.append(self._heat(scores))
        parts.append(outlines_over(_picture(self.base), reference, found) if self.outlined else self._colored(found))
        if uncertainty is not None:
            parts.append(self._heat(uncertainty))
        return _beside(parts)

    def _heat(self, maps: np.ndarray) -> Image.Image:
        return _picture(heat_over(self.base, self._turned(maps.max(axis=0)), self.size))

    def _turned(self, plane: np.ndarray) -> np.ndarray:
        turned: np.ndarray = self.display.turn(plane)[..., 0]
        return turned

    def _colored(self, labels: np.ndarray) -> Image.Image:
        return _picture(labels_over(self.base, labels, self.size))


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _beside(parts: Sequence[Image.Image]) -> Image.Image:
    """Place pictures of one size side by side."""
    width, height = parts[0].size
    sheet = Image.new("RGB", (len(parts) * (width + _GAP) - _GAP, height), "#14171c")
    for place, part in enumerate(parts):
        sheet.paste(part, (place * (width + _GAP), 0))
    return sheet
