# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A grid of images that a network has changed step by step, such as mild lesions that become severe.

A row is a case: the image, each step of its conversion, and the difference of the last step to the image.  Image and
steps of a row share one gray scale, so that a change of brightness is seen.  A white box may mark the region of
interest, such as a lesion of the mediastinum (:func:`~monai_wsss.data.lesion_boxes`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import convert_to_numpy
from PIL import Image, ImageDraw, ImageFont

from monai_wsss._pictures import ROWS_COLUMNS, order_of

__all__ = ["render_conversions"]

_HEIGHT, _CAPTION, _GAP = 160, 20, 4
_BACKGROUND, _TEXT, _BOX = "#14171c", "#d7dde5", "#ffffff"

Box = tuple[int, int, int, int]


def _picture(planes: np.ndarray, low: float, high: float) -> Image.Image:
    """Make a picture of (C, x, y), with ``low`` black and ``high`` white; three channels are colors, else the last."""
    shown = planes if len(planes) == 3 else np.repeat(planes[-1:], 3, axis=0)
    scaled = (shown - low) / (high - low) if high > low else np.zeros(shown.shape)
    return Image.fromarray((255 * np.clip(scaled, 0, 1)).round().astype(np.uint8).transpose(2, 1, 0))


def _row(image: np.ndarray, steps: Sequence[np.ndarray], box: Box | None) -> list[Image.Image]:
    """Draw a case: image, steps, difference, each of the height of the grid."""
    low, high = (float(value) for value in np.percentile(image, [0.5, 99.5]))
    difference = np.abs(steps[-1] - image).mean(axis=0, keepdims=True)
    pictures = [_picture(planes, low, high) for planes in (image, *steps)]
    pictures.append(_picture(difference, 0.0, float(difference.max())))
    factor = _HEIGHT / pictures[0].height
    size = (max(1, round(pictures[0].width * factor)), _HEIGHT)
    resized = [picture.resize(size, Image.Resampling.BILINEAR) for picture in pictures]
    if box is not None:
        for picture in resized:
            first_x, first_y, last_x, last_y = (round(corner * factor) for corner in box)
            ImageDraw.Draw(picture).rectangle((first_x, first_y, last_x, last_y), outline=_BOX)
    return resized


def render_conversions(
    images: Sequence[torch.Tensor | np.ndarray],
    steps: Sequence[Sequence[torch.Tensor | np.ndarray]],
    *,
    boxes: Sequence[Box | None] | None = None,
) -> bytes:
    """Draw a grid of images, their conversions and what the conversion changed.

    Args:
        images: N images ``(C, x, y)``, or ``(C, rows, columns)`` if their metadata say so (``order``); of one or more
            gray channels, of which the last is shown, or in three colors.
        steps: for each image the same number of conversions, at least one, of its shape.
        boxes: for each image the first x, first y, last x and last y of a white box in pixels, or None.

    Returns:
        The bytes of a PNG file.

    Raises:
        ValueError: the numbers or shapes do not fit one another.

    Example:
        >>> image = np.random.rand(1, 32, 24)
        >>> render_conversions([image], [[image + 0.1, image + 0.2]], boxes=[(4, 4, 20, 16)])[1:4]
        b'PNG'
    """
    marks = [None] * len(images) if boxes is None else list(boxes)
    numbers = {len(of_image) for of_image in steps}
    if not images or not len(images) == len(steps) == len(marks) or len(numbers) != 1 or 0 in numbers:
        raise ValueError(
            f"Expected the same number of `steps`, at least one, for each of {len(images)} images, and a box or None "
            f"for each, got {[len(of_image) for of_image in steps]} steps and {len(marks)} boxes."
        )
    rows = []
    for image, of_image, box in zip(images, steps, marks, strict=True):
        arrays = [convert_to_numpy(one).astype(np.float64) for one in (image, *of_image)]
        if any(one.ndim != 3 or one.shape != arrays[0].shape for one in arrays):
            raise ValueError(f"Expected 2D images and steps of one shape, got {[one.shape for one in arrays]}.")
        if order_of(image) == ROWS_COLUMNS:
            arrays = [one.transpose(0, 2, 1) for one in arrays]
        rows.append(_row(arrays[0], arrays[1:], box))
    number = numbers.pop()
    names = ["image", *(["converted"] if number == 1 else [f"step {step}" for step in range(1, number + 1)]), "change"]
    width = max(picture.width for row in rows for picture in row)
    sheet = Image.new(
        "RGB", (len(names) * (width + _GAP) - _GAP, _CAPTION + len(rows) * (_HEIGHT + _GAP) - _GAP), _BACKGROUND
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, name in enumerate(names):
        draw.text((column * (width + _GAP) + 4, 3), name, fill=_TEXT, font=font)
        for line, row in enumerate(rows):
            sheet.paste(row[column], (column * (width + _GAP), _CAPTION + line * (_HEIGHT + _GAP)))
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=4)
    return file.getvalue()
