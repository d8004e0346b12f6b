# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The mask of a case over its image, in color, with the names of the classes below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import torch
from monai.utils import convert_to_numpy
from PIL import Image, ImageDraw, ImageFont

from monai_wsss._labels import CLASS_COLORS
from monai_wsss.reports.panels import channel_planes, labels_over, picture_png
from monai_wsss.reports.planes import Display, display_of, telling_slices

__all__ = ["add_legend", "render_overlay"]

_HEIGHT, _GAP, _MARGIN, _LARGEST = 320, 4, 8, 1600
_PAPER, _INK = "#14171c", "#d7dde5"
Box = tuple[int, int, int, int]


def render_overlay(
    image: torch.Tensor | np.ndarray,
    mask: torch.Tensor | np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    *,
    network: Any = None,
) -> bytes:
    """Draw an image, and the mask over it beside it; of a volume up to three slices, each mask below its image.

    Args:
        image: (C, x, y) or (C, x, y, z), or (C, rows, columns) as a MetaTensor that says so.
        mask: (x, y[, z]), labels 0..K.
        classes: names of the classes, (K).
        names: of the channels, (C).
        network: a volume is shown in the slices that this network sees, where it records how they lie; None shows it
            across its coarsest axis, or else axially.

    Returns:
        The bytes of a PNG file.

    Example:
        >>> render_overlay(np.random.rand(1, 32, 24), np.zeros((32, 24), int), ["tumor"], ["FLAIR"])[1:4]
        b'PNG'
    """
    display = display_of(image, network)
    picture, labels = display.turn(convert_to_numpy(image)), display.turn(convert_to_numpy(mask).astype(int))
    chosen = telling_slices([labels])
    shown = sorted(chosen)
    width = round(_HEIGHT * labels.shape[0] * display.aspect / labels.shape[1])
    size = (int(np.clip(width, _HEIGHT // 3, 3 * _HEIGHT)), _HEIGHT)
    tiles = [
        (base, labels_over(base, labels[..., z], size))
        for base, z in zip(channel_planes(picture, names, shown, size), shown, strict=True)
    ]
    texts = [f"slice {z + 1} of {labels.shape[2]}" for z in shown] if labels.shape[2] > 1 else [""]
    sheet, boxes = _placed(tiles, texts, size, display)
    return _with_legend(sheet, classes, boxes[shown.index(chosen[0])])


def _placed(
    tiles: Sequence[tuple[np.ndarray, np.ndarray]], texts: Sequence[str], size: tuple[int, int], display: Display
) -> tuple[Image.Image, list[Box]]:
    """Place images and masks (height, width, 3), of one slice side by side, of several in columns; box the masks."""
    width, height = size[0] + _GAP, size[1] + _GAP
    columns, rows = (len(tiles), 2) if len(tiles) > 1 else (2, 1)
    sheet = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    boxes = []
    for column, (pair, text) in enumerate(zip(tiles, texts, strict=True)):
        for row, part in enumerate(pair):
            left, top = (column * width, row * height) if len(tiles) > 1 else (row * width, 0)
            sheet.paste(Image.fromarray(part.round().clip(0, 255).astype(np.uint8)), (left, top))
        boxes.append((left, top, left + size[0], top + size[1]))
        draw.text((column * width + 4, 3), text, fill=_INK, font=font, stroke_width=1, stroke_fill="#000000")
    draw.text((4, size[1] // 2 - 7), display.letter, fill=_INK, font=font, stroke_width=1, stroke_fill="#000000")
    return sheet, boxes


def add_legend(picture: IO[bytes], classes: Sequence[str], *, image: np.ndarray | None = None) -> bytes:
    """Write the names of the classes with their colors below a picture.

    Args:
        picture: of any kind that Pillow reads; one that is large is made smaller.
        classes: names of the classes, (K).
        image: the same without colors, (height, width, 3) uint8, to stand beside it.

    Returns:
        The bytes of a PNG file.
    """
    drawn: Any = Image.open(picture).convert("RGB")
    if image is None:
        drawn.thumbnail((_LARGEST, _LARGEST))
        return _with_legend(drawn, classes, (0, 0, *drawn.size))
    drawn.thumbnail(((_LARGEST - _GAP) // 2, _LARGEST))
    left = drawn.width + _GAP
    sheet = Image.new("RGB", (left + drawn.width, drawn.height), _PAPER)
    sheet.paste(Image.fromarray(image).resize(drawn.size), (0, 0))
    sheet.paste(drawn, (left, 0))
    return _with_legend(sheet, classes, (left, 0, *sheet.size))


def _with_legend(drawn: Image.Image, classes: Sequence[str], telling: Box) -> bytes:
    """Write the legend below a picture, and the box of its most telling tile into the file."""
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
    return picture_png(sheet, telling)
