# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Figures of images that a network has changed, such as mild lesions that become severe, or lesions that disappear.

:func:`render_conversions` is a grid with a row per case: the image, each step of its conversion, the difference of the
last step to the image, and the mask on request.  :func:`render_switches` compares networks: a column per network, such
as one per switch of CoinGAN's Table 6.

Image and conversions of a case share one gray scale, so that a change of brightness is seen.  Differences of a case do,
too.  A white box may mark the region of interest, such as a lesion of the mediastinum
(:func:`~monai_wsss.data.lesion_boxes`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.utils import convert_to_numpy
from PIL import Image, ImageDraw, ImageFont

from monai_wsss._pictures import ROWS_COLUMNS, order_of
from monai_wsss.reports.panels import outlines_over

__all__ = ["render_conversions", "render_switches"]

_HEIGHT, _CAPTION, _GAP = 160, 20, 4
_BACKGROUND, _TEXT, _BOX = "#14171c", "#d7dde5", "#ffffff"

Array = torch.Tensor | np.ndarray
Box = tuple[int, int, int, int]


def _planes(image: Array, like: Array) -> np.ndarray:
    """Give (C, x, y) in float64, whatever the order in which the image of the case was read."""
    planes = convert_to_numpy(image).astype(np.float64)
    return planes.swapaxes(-1, -2) if order_of(like) == ROWS_COLUMNS else planes


def _gray_scale(image: np.ndarray) -> tuple[float, float]:
    """Give what is black and what is white in the figures of a case."""
    low, high = np.percentile(image, [0.5, 99.5])
    return float(low), float(high)


def _difference(image: np.ndarray, converted: np.ndarray) -> np.ndarray:
    return np.abs(converted - image).mean(axis=0, keepdims=True)


def _picture(planes: np.ndarray, low: float, high: float) -> Image.Image:
    """Make a picture of (C, x, y), with ``low`` black and ``high`` white; three channels are colors, else the last."""
    shown = planes if len(planes) == 3 else np.repeat(planes[-1:], 3, axis=0)
    scaled = (shown - low) / (high - low) if high > low else np.zeros(shown.shape)
    picture = Image.fromarray((255 * np.clip(scaled, 0, 1)).round().astype(np.uint8).transpose(2, 1, 0))
    return picture.resize(_size(planes), Image.Resampling.BILINEAR)


def _size(planes: np.ndarray) -> tuple[int, int]:
    """Give width and height of a tile."""
    return max(1, round(planes.shape[-2] * _HEIGHT / planes.shape[-1])), _HEIGHT


def _outlined(picture: Image.Image, mask: np.ndarray | None, reference: np.ndarray | None) -> Image.Image:
    """Draw the outlines of masks (x, y) over a picture."""
    shape = (mask if mask is not None else reference).shape  # type: ignore[union-attr]
    nothing = np.zeros(shape)
    return outlines_over(picture, nothing if reference is None else reference, nothing if mask is None else mask)


def _sheet(captions: Sequence[str], rows: Sequence[Sequence[Image.Image | None]]) -> bytes:
    """Put pictures below their captions, and give the bytes of a PNG file."""
    font = ImageFont.load_default(size=12)
    width = max(
        [picture.width for row in rows for picture in row if picture is not None]
        + [round(font.getlength(name)) + 8 for name in captions]
    )
    size = (len(captions) * (width + _GAP) - _GAP, _CAPTION + len(rows) * (_HEIGHT + _GAP) - _GAP)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(captions):
        draw.text((column * (width + _GAP) + 4, 3), name, fill=_TEXT, font=font)
        for line, row in enumerate(rows):
            picture = row[column]
            if picture is not None:
                sheet.paste(picture, (column * (width + _GAP), _CAPTION + line * (_HEIGHT + _GAP)))
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=4)
    return file.getvalue()


def render_conversions(
    images: Sequence[Array],
    steps: Sequence[Sequence[Array]],
    *,
    boxes: Sequence[Box | None] | None = None,
    masks: Sequence[Array] | None = None,
    references: Sequence[Array | None] | None = None,
) -> bytes:
    """Draw a grid of images, their conversions, what the conversion changed, and the masks that follow from it.

    Args:
        images: N images ``(C, x, y)``, or ``(C, rows, columns)`` if their metadata say so (``order``); of one or more
            gray channels, of which the last is shown, or in three colors.
        steps: for each image the same number of conversions, at least one, of its shape.
        boxes: for each image the first x, first y, last x and last y of a white box in pixels, or None.
        masks: for each image its mask, as ``(x, y)`` or ``(rows, columns)``, whose outline is drawn in a last column;
            None: no such column.
        references: for each image the reference mask for that column, or None.

    Returns:
        The bytes of a PNG file.

    Raises:
        ValueError: the numbers or shapes do not fit one another.

    Example:
        >>> image = np.random.rand(1, 32, 24)
        >>> render_conversions([image], [[image + 0.1, image + 0.2]], boxes=[(4, 4, 20, 16)])[1:4]
        b'PNG'
        >>> render_conversions([image], [[image + 0.1]], masks=[image[0] > 0.9])[1:4]
        b'PNG'
    """
    marks = [None] * len(images) if boxes is None else list(boxes)
    truths = [None] * len(images) if references is None else list(references)
    numbers = {len(of_image) for of_image in steps}
    if not images or not len(images) == len(steps) == len(marks) or len(numbers) != 1 or 0 in numbers:
        raise ValueError(
            f"Expected the same number of `steps`, at least one, for each of at least one image, and a box or None "
            f"for each, got {[len(of_image) for of_image in steps]} steps and {len(marks)} boxes."
        )
    if masks is not None and not len(masks) == len(truths) == len(images):
        raise ValueError(
            f"Expected a mask, and a reference or None, for each of {len(images)} images, got {len(masks)} masks and "
            f"{len(truths)} references."
        )
    rows = []
    for number, (image, of_image, box) in enumerate(zip(images, steps, marks, strict=True)):
        arrays = [_planes(one, image) for one in (image, *of_image)]
        if any(one.ndim != 3 or one.shape != arrays[0].shape for one in arrays):
            raise ValueError(f"Expected 2D images and steps of one shape, got {[one.shape for one in arrays]}.")
        row = _row(arrays[0], arrays[1:], box)
        if masks is not None:
            shown = [None if one is None else _planes(one, image) for one in (masks[number], truths[number])]
            _check_masks(arrays[0], shown)
            row.append(_outlined(row[0], shown[0], shown[1]))
        rows.append(row)
    count = numbers.pop()
    names = ["image", *(["converted"] if count == 1 else [f"step {step}" for step in range(1, count + 1)]), "change"]
    if masks is not None:
        names.append("mask" if references is None else "reference / mask")
    return _sheet(names, rows)


def _row(image: np.ndarray, steps: Sequence[np.ndarray], box: Box | None) -> list[Image.Image]:
    """Draw a case: image, steps, difference, each of the height of the grid."""
    low, high = _gray_scale(image)
    difference = _difference(image, steps[-1])
    pictures = [_picture(planes, low, high) for planes in (image, *steps)]
    pictures.append(_picture(difference, 0.0, float(difference.max())))
    if box is not None:
        factor = _HEIGHT / image.shape[-1]
        for picture in pictures:
            first_x, first_y, last_x, last_y = (round(corner * factor) for corner in box)
            ImageDraw.Draw(picture).rectangle((first_x, first_y, last_x, last_y), outline=_BOX)
    return pictures


def render_switches(
    images: Sequence[Array],
    results: Mapping[str, Sequence[tuple[Array, Array]]],
    *,
    references: Sequence[Array | None] | None = None,
) -> bytes:
    """Draw what several networks make of the same images: a column per network, three lines per image.

    The lines of an image are its conversions, what they changed, and the outlines of the masks.  The first column shows
    the image and the outline of its reference.  Changes of all networks share one scale per image, so that a network
    that changes little is seen as one.

    Args:
        images: as of :func:`render_conversions`.
        results: title of a column, such as a row of CoinGAN's Table 6, to the converted image and the mask of each
            image, shaped as there.
        references: for each image its reference mask, or None.

    Returns:
        The bytes of a PNG file.

    Raises:
        ValueError: the numbers or shapes do not fit one another.

    Example:
        >>> image = np.random.rand(1, 32, 24)
        >>> made = [(image + 0.1, image[0] > 0.9)]
        >>> render_switches([image], {"backbone": made, "+ C-Conv": made}, references=[image[0] > 0.5])[1:4]
        b'PNG'
    """
    truths = [None] * len(images) if references is None else list(references)
    given = {name: len(of_network) for name, of_network in results.items()}
    if not images or not results or {len(truths), *given.values()} != {len(images)}:
        raise ValueError(
            f"Expected for each of at least one image a reference or None, and a result of each of at least one "
            f"network, got {len(images)} images, {len(truths)} references and {given or 'no'} results."
        )
    lines: list[list[Image.Image | None]] = []
    for number, (image, truth) in enumerate(zip(images, truths, strict=True)):
        source = _planes(image, image)
        made = [tuple(_planes(part, image) for part in of_network[number]) for of_network in results.values()]
        reference = None if truth is None else _planes(truth, image)
        if source.ndim != 3 or any(converted.shape != source.shape for converted, _ in made):
            shapes = [source.shape, *(converted.shape for converted, _ in made)]
            raise ValueError(f"Expected 2D images and conversions of one shape, got {shapes}.")
        _check_masks(source, [reference, *(mask for _, mask in made)])
        scale = _gray_scale(source)
        changes = [_difference(source, converted) for converted, _ in made]
        largest = max(float(change.max()) for change in changes)
        shown = _picture(source, *scale)
        lines += [
            [shown, *(_picture(converted, *scale) for converted, _ in made)],
            [None, *(_picture(change, 0.0, largest) for change in changes)],
            [
                None if reference is None else _outlined(shown, None, reference),
                *(_outlined(shown, mask, reference) for _, mask in made),
            ],
        ]
    return _sheet(["image", *results], lines)


def _check_masks(image: np.ndarray, masks: Sequence[np.ndarray | None]) -> None:
    for mask in masks:
        if mask is not None and mask.shape != image.shape[1:]:
            raise ValueError(f"Expected masks of the image's shape {image.shape[1:]}, got {mask.shape}.")
