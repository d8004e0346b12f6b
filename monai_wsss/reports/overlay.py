# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The mask of a case over its image, in color, with the names of the classes below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import convert_to_numpy
from PIL import Image, ImageDraw, ImageFont

from monai_wsss._labels import CLASS_COLORS
from monai_wsss._pictures import ROWS_COLUMNS, order_of
from monai_wsss.inferers.slicing import SliceTurn, array_axes, slice_turn
from monai_wsss.reports.panels import channel_plane, labels_over

__all__ = ["add_legend", "render_overlay"]

_HEIGHT, _GAP, _MARGIN, _LARGEST = 320, 4, 8, 1600
_PAPER, _INK = "#14171c", "#d7dde5"


def render_overlay(
    image: torch.Tensor | np.ndarray,
    mask: torch.Tensor | np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    *,
    network: Any = None,
) -> bytes:
    """Draw image and mask side by side; a volume by three slices, the middle one that with most of the mask.

    Args:
        image: (C, x, y) or (C, x, y, z), or (C, rows, columns) as a MetaTensor that says so.
        mask: (x, y[, z]), labels 0..K.
        classes: names of the classes, (K).
        names: of the channels, (C).
        network: a volume is shown in the slices that this network sees, where it records how they lie; None takes them
            along the last axis.

    Returns:
        The bytes of a PNG file.

    Example:
        >>> render_overlay(np.random.rand(1, 32, 24), np.zeros((32, 24), int), ["tumor"], ["FLAIR"])[1:4]
        b'PNG'
    """
    picture, labels = convert_to_numpy(image), convert_to_numpy(mask).astype(int)
    sides = _sides(image)
    if labels.ndim == 3 and isinstance(image, MetaTensor):
        turn = slice_turn(array_axes(image[None])[0], network) or SliceTurn()
        turn = turn._replace(flipped=tuple(axis for axis in turn.flipped if axis < 2))  # slices keep their numbers
        picture, labels = (turn.turn(torch.as_tensor(part)[None])[0].numpy() for part in (picture, labels[None]))
        labels, sides = labels[0], [sides[axis] for axis in turn.axes]
    if order_of(image) == ROWS_COLUMNS and labels.ndim == 2:
        picture, labels, sides = picture.transpose(0, 2, 1), labels.T, sides[::-1]
    if labels.ndim == 2:
        picture, labels = picture[..., None], labels[..., None]
    tiles = []
    for z in _slices(labels):
        wide = labels.shape[0] * sides[0] / (labels.shape[1] * sides[1])
        size = (int(np.clip(round(_HEIGHT * wide), _HEIGHT // 3, 3 * _HEIGHT)), _HEIGHT)
        base = channel_plane(picture[..., z], names, size)
        tiles.append((base, labels_over(base, labels[..., z], size), z))
    width = max(tile[0].shape[1] for tile in tiles)
    sheet = Image.new("RGB", (2 * width + _GAP, len(tiles) * (_HEIGHT + _GAP) - _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for row, (base, colored, z) in enumerate(tiles):
        for column, part in enumerate((base, colored)):
            place = (column * (width + _GAP), row * (_HEIGHT + _GAP))
            sheet.paste(Image.fromarray(part.round().clip(0, 255).astype(np.uint8)), place)
        if len(tiles) > 1:
            draw.text((4, row * (_HEIGHT + _GAP) + 3), f"slice {z}", fill=_INK, font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    file.seek(0)
    return add_legend(file, classes)


def _sides(image: Any) -> list[float]:
    """Give the lengths of the sides of a pixel or voxel, by which an image is shown undistorted."""
    count = image.ndim - 1
    if not isinstance(image, MetaTensor):
        return [1.0] * count
    sides = np.linalg.norm(np.asarray(torch.as_tensor(image.affine).cpu())[:-1, :count], axis=0)
    return [float(side) for side in sides] if sides.all() else [1.0] * count


def _slices(labels: np.ndarray) -> list[int]:
    """Choose the slices of the last axis that are shown: through the first third, the most and the last of the mask."""
    depth = labels.shape[2]
    if depth == 1:
        return [0]
    amounts = (labels > 0).sum(axis=(0, 1))
    if not amounts.any():
        return [depth // 2]
    found = np.flatnonzero(amounts)
    low, high = np.quantile(found, [0.2, 0.8]).round().astype(int)
    return sorted({int(found[np.abs(found - place).argmin()]) for place in (low, int(amounts.argmax()), high)})


def add_legend(picture: IO[bytes], classes: Sequence[str]) -> bytes:
    """Write the names of the classes with their colors below a picture.

    Args:
        picture: of any kind that Pillow reads; one that is large is made smaller.
        classes: names of the classes, (K).

    Returns:
        The bytes of a PNG file.
    """
    drawn: Any = Image.open(picture).convert("RGB")
    drawn.thumbnail((_LARGEST, _LARGEST))
    font = ImageFont.load_default(size=14)
    lines: list[list[tuple[str, tuple[int, int, int]]]] = [[]]
    place = float(_MARGIN)
    for number, name in enumerate(classes):
        needed = font.getlength(name) + 40
        if lines[-1] and place + needed > drawn.width:
            lines.append([])
            place = float(_MARGIN)
        lines[-1].append((name, CLASS_COLORS[number % len(CLASS_COLORS)]))
        place += needed
    sheet = Image.new("RGB", (max(drawn.width, 120), drawn.height + 22 * len(lines) + _MARGIN), _PAPER)
    sheet.paste(drawn, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        place, top = float(_MARGIN), drawn.height + _MARGIN + 22 * row
        for name, color in line:
            draw.rectangle((place, top, place + 14, top + 14), fill=color)
            draw.text((place + 20, top - 2), name, fill=_INK, font=font)
            place += font.getlength(name) + 40
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=4)
    return file.getvalue()
