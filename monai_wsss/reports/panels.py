# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Panels: a case as a strip of pictures, image channels | map | mask | both outlines, and the choice of cases.

Arrays are turned first as :mod:`monai_wsss.reports.planes` tells, so that they are indexed [column, row].  Pictures are
rows of pixels, so each array is transposed once more, when it becomes a picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from monai_wsss._intensity import USUAL_STAIN
from monai_wsss._labels import CLASS_COLORS
from monai_wsss.reports.planes import Display, display_of, telling_slices

__all__ = [
    "MASK_COLOR",
    "REFERENCE_COLOR",
    "TELLING_TILE",
    "channel_planes",
    "choose_cases",
    "heat_over",
    "labels_over",
    "outlines_over",
    "picture_png",
    "render_comparison",
    "render_panel",
]

REFERENCE_COLOR = "#4da3ff"
"""Outline of the reference."""

MASK_COLOR = "#ff9f1c"
"""Outline and filling of the predicted mask (of its first class); distinct from blue in every kind of color vision."""

TELLING_TILE = "telling_tile"
"""Text entry of a PNG: left, top, right and bottom of the tile that a small picture of the case shows."""

_INK = "#d7dde5"
_HEIGHT, _CAPTION, _GAP, _MAX_CHANNELS = 192, 20, 4, 4
_OPACITY, _LIGHT = 0.4, 245.0  # a light line around each mask is seen on brain, skin and stained tissue alike
_PALETTE = np.array([(0, 0, 0), *CLASS_COLORS], np.float32)
_HEAT = np.array([[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], np.float32)


def choose_cases(rows: Iterable[Mapping[str, Any]], *, each: int = 3) -> dict[str, list[int]]:
    """Choose the cases to show, by row number from 1: best, median and worst by Dice, and false alarms.

    Args:
        rows: the cases of a :class:`~monai_wsss.metrics.CaseTable` or of ``per_case.csv``, in its order.
        each: number of cases per kind.

    Returns:
        ``"best"``, ``"median"``, ``"worst"``: cases with a finding, each at most once; ``"false alarm"``: healthy
        cases with a mask, the largest first.

    Example:
        >>> rows = [{"finding": 1, "healthy": 0, "found": 1, "dice": dice} for dice in (0.2, 0.9, 0.5)]
        >>> choose_cases(rows, each=1)
        {'best': [2], 'median': [3], 'worst': [1], 'false alarm': []}
    """
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if row.get("finding") not in (None, "")]
    positive = sorted((float(row["dice"]), number) for number, row in numbered if int(row["finding"]))
    ranked = [number for _, number in reversed(positive)]
    count = min(each, -(-len(ranked) // 3))
    best, worst = ranked[:count], ranked[max(count, len(ranked) - count) :]
    middle = ranked[count : len(ranked) - len(worst)]
    start = max(0, (len(middle) - count) // 2)
    alarms = [
        (sum(int(value) for key, value in row.items() if key.split("/")[0] == "fp" and "background" not in key), number)
        for number, row in numbered
        if int(row["healthy"]) and int(row["found"])
    ]
    return {
        "best": best,
        "median": middle[start : start + count],
        "worst": worst[::-1],
        "false alarm": [number for _, number in sorted(alarms, key=lambda alarm: (-alarm[0], alarm[1]))[:each]],
    }


def render_panel(
    image: torch.Tensor | np.ndarray,
    cam: torch.Tensor | np.ndarray | None,
    mask: torch.Tensor | np.ndarray,
    reference: torch.Tensor | np.ndarray | None,
    *,
    channel_names: Sequence[str],
) -> bytes:
    """Draw a case as a strip of tiles of one height.

    The tiles are up to four channels (one tile for red, green, blue), the map over the last channel shown, the mask
    over it, and the outlines of reference and mask.  A volume has a row of tiles for each of up to three slices: see
    :func:`~monai_wsss.reports.planes.telling_slices`.

    Args:
        image: ``(C, x, y)`` or ``(C, x, y, z)``, any intensities; those that are not finite are shown black.  An image
            of :class:`~monai_wsss.transforms.LoadImageOrderedd` in the order "rows_columns" is ``(C, rows, columns)``,
            and so are the others then.
        cam: ``(x, y[, z])`` in [0, 1], or ``None``.
        mask: ``(x, y[, z])``, labels 0..K.
        reference: ``(x, y[, z])``, labels 0..K, or ``None``.
        channel_names: C names; if empty, channels are numbered.

    Returns:
        The bytes of a PNG file.

    Raises:
        ValueError: the shapes do not fit one another.

    Example:
        >>> image, mask = np.random.rand(2, 32, 24), np.zeros((32, 24))
        >>> render_panel(image, None, mask, None, channel_names=["T1", "FLAIR"])[1:4]
        b'PNG'
    """
    picture, found = convert_to_numpy(image), convert_to_numpy(mask)
    heat = None if cam is None else np.nan_to_num(convert_to_numpy(cam).astype(np.float64)).clip(0, 1)
    wanted = None if reference is None else convert_to_numpy(reference)
    names = list(channel_names) or [f"channel {number}" for number in range(1, len(picture) + 1)]
    _check_shapes(picture, heat, found, wanted, names)
    display = display_of(image)
    picture, found = display.turn(picture), display.turn(found)
    heat, wanted = (None if part is None else display.turn(part) for part in (heat, wanted))
    chosen = telling_slices([wanted, found], heat)
    size = _size_of(found, display)
    shown = sorted(chosen)
    rows = []
    for z, plane in zip(shown, _windowed(picture, names, shown), strict=True):
        above, beside = (None if part is None else part[..., z] for part in (heat, wanted))
        rows.append(_tiles(plane, above, found[..., z], beside, names=names, size=size))
    labels = [f"slice {z + 1} of {found.shape[2]}" for z in shown] if found.shape[2] > 1 else [""]
    return _sheet(rows, size, labels, telling=shown.index(chosen[0]), letter=display.letter)


def _size_of(found: np.ndarray, display: Display) -> tuple[int, int]:
    """Give width and height of a tile."""
    width = round(_HEIGHT * found.shape[0] * display.aspect / found.shape[1])
    return int(np.clip(width, _HEIGHT // 3, 3 * _HEIGHT)), _HEIGHT


def _tiles(
    plane: np.ndarray,
    heat: np.ndarray | None,
    found: np.ndarray,
    wanted: np.ndarray | None,
    *,
    names: Sequence[str],
    size: tuple[int, int],
) -> list[tuple[str, np.ndarray]]:
    """Draw a plane (C, x, y) with what belongs to it: names and pictures (height, width, 3)."""
    tiles = _channel_tiles(plane, names, size)
    base = tiles[-1][1]
    if heat is not None:
        tiles.append(("map", _overlay_heat(base, _resize(heat, size, Image.Resampling.BILINEAR))))
    labels = _resize(found.astype(np.float64), size, Image.Resampling.NEAREST).astype(int)
    tiles.append(("mask", _overlay_labels(base, labels)))
    if wanted is not None:
        expected = _resize(wanted.astype(np.float64), size, Image.Resampling.NEAREST).astype(int)
        tiles.append(("reference / mask", _draw_outlines(base, expected, labels)))
    return tiles


def render_comparison(
    image: torch.Tensor | np.ndarray,
    masks: Mapping[str, torch.Tensor | np.ndarray],
    reference: torch.Tensor | np.ndarray,
    *,
    channel_names: Sequence[str],
    note: str = "",
) -> bytes:
    """Draw several masks of a 2D case side by side: the last channel, each mask's outline and that of the reference.

    A line below says which color is which.

    Args:
        image: ``(C, x, y)``, or ``(C, rows, columns)``, as of :func:`render_panel`.
        masks: title of the tile to mask ``(x, y)``, labels 0..K.
        reference: ``(x, y)``, labels 0..K.
        channel_names: C names.
        note: text for the line below.

    Returns:
        The bytes of a PNG file.

    Raises:
        ValueError: the shapes do not fit one another.

    Example:
        >>> image, mask = np.random.rand(1, 32, 24), np.zeros((32, 24))
        >>> render_comparison(image, {"base": mask, "all": mask}, mask, channel_names=["FLAIR"])[1:4]
        b'PNG'
    """
    picture, wanted = convert_to_numpy(image), convert_to_numpy(reference)
    found = {name: convert_to_numpy(mask) for name, mask in masks.items()}
    for mask in found.values():
        _check_shapes(picture, None, mask, wanted, channel_names)
    display = display_of(image)
    wanted, found = display.turn(wanted)[..., 0], {name: display.turn(mask)[..., 0] for name, mask in found.items()}
    size = _size_of(wanted, display)
    (plane,) = _windowed(display.turn(picture), channel_names, [0])
    tiles = _channel_tiles(plane, channel_names, size)[-1:]
    expected = _resize(wanted.astype(np.float64), size, Image.Resampling.NEAREST).astype(int)
    for name, mask in found.items():
        labels = _resize(mask.astype(np.float64), size, Image.Resampling.NEAREST).astype(int)
        tiles.append((name, _draw_outlines(tiles[0][1], expected, labels)))
    return _sheet([tiles], size, below=[("reference", REFERENCE_COLOR), ("mask", MASK_COLOR), (note, _INK)])


def channel_planes(
    picture: np.ndarray, names: Sequence[str], shown: Sequence[int], size: tuple[int, int]
) -> list[np.ndarray]:
    """Give pictures (height, width, 3) in [0, 255] of slices of (C, x, y, z): their colors, or their last channel."""
    if not _is_colored(names):
        picture, names = picture[-1:], names[-1:]
    return [_channel_tiles(plane, names, size)[-1][1] for plane in _windowed(picture, names, shown)]


def heat_over(base: np.ndarray, heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw a map (x, y) in [0, 1] in color over a picture (height, width, 3) of ``size``, which is (width, height)."""
    return _overlay_heat(base, _resize(heat, size, Image.Resampling.BILINEAR).clip(0, 1))


def labels_over(base: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw labels (x, y) in color over a picture (height, width, 3) of ``size``, which is (width, height)."""
    shown = _resize(labels.astype(np.float64), size, Image.Resampling.NEAREST).astype(int)
    return _overlay_labels(base, shown)


def outlines_over(picture: Image.Image, reference: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Draw the outlines of a reference and of a mask, labels ``(x, y)``, over a picture of any size."""
    labels = [_resize(part.astype(np.float64), picture.size, Image.Resampling.NEAREST) for part in (reference, mask)]
    expected, found = (part.astype(int) for part in labels)
    drawn = _draw_outlines(np.asarray(picture, dtype=np.float32), expected, found)
    return Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))


def _check_shapes(
    picture: np.ndarray, heat: np.ndarray | None, found: np.ndarray, wanted: np.ndarray | None, names: Sequence[str]
) -> None:
    if found.ndim not in (2, 3) or picture.shape[1:] != found.shape or picture.shape[0] != len(names):
        raise ValueError(
            f"Expected `image` of shape (C, *S) with C = {len(names)} channel names and `mask` of shape (*S), "
            f"got {picture.shape} and {found.shape}."
        )
    for name, part in (("cam", heat), ("reference", wanted)):
        if part is not None and part.shape != found.shape:
            raise ValueError(f"Expected `{name}` of the mask's shape {found.shape}, got {part.shape}.")


def _resize(plane: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """Resize a plane ``(x, y)`` to rows of pixels ``(height, width)``; ``size`` is (width, height)."""
    picture = Image.fromarray(np.ascontiguousarray(plane.T, dtype=np.float32))
    return np.asarray(picture.resize(size, how), dtype=np.float32)


def _is_colored(names: Sequence[str]) -> bool:
    return [name.lower()[:1] for name in names] == ["r", "g", "b"]


def _windowed(picture: np.ndarray, names: Sequence[str], shown: Sequence[int]) -> list[np.ndarray]:
    """Give slices (C, x, y) of (C, x, y, z) in [0, 1]; those of one channel share a window."""
    planes = picture[..., list(shown)]
    if _is_colored(names):
        scaled = _colors(np.nan_to_num(planes.astype(np.float64), posinf=0, neginf=0))
    else:
        scaled = np.stack([_window(channel) for channel in planes[:_MAX_CHANNELS]])
    return list(np.moveaxis(scaled, -1, 0))


def _channel_tiles(plane: np.ndarray, names: Sequence[str], size: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """Give name and picture ``(height, width, 3)`` in [0, 255] of each channel shown of a plane in [0, 1]."""
    planes = [_resize(channel, size, Image.Resampling.BILINEAR) for channel in plane]
    if _is_colored(names):
        return [("image", 255 * np.stack(planes, axis=-1))]
    return [(name, 255 * np.repeat(plane[..., None], 3, axis=2)) for name, plane in zip(names, planes, strict=False)]


def _colors(picture: np.ndarray) -> np.ndarray:
    """Scale a color image (3, *S) to [0, 1]: standardized tissue by the usual stain, others from low to high."""
    low, high = picture.min(), picture.max()
    if low < 0:
        mean, std = (values.reshape(3, *[1] * (picture.ndim - 1)) for values in USUAL_STAIN)
        return ((picture * std + mean) / 255).clip(0, 1)
    return (picture - low) / (high - low if high > low else 1)


def _window(channel: np.ndarray) -> np.ndarray:
    """Scale intensities between the 1st and the 99.5th percentile to 0..1; a constant channel becomes black."""
    values = np.nan_to_num(channel.astype(np.float64), posinf=0, neginf=0)
    low, high = np.percentile(values, [1, 99.5])
    return ((values - low) / (high - low)).clip(0, 1) if high > low else np.zeros(values.shape)


def _overlay_heat(base: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw the map in color over the picture; strong map values hide it more."""
    place = heat * (len(_HEAT) - 1)
    lower = np.minimum(place.astype(int), len(_HEAT) - 2)
    color = _HEAT[lower] + (place - lower)[..., None].astype(np.float32) * (_HEAT[lower + 1] - _HEAT[lower])
    opacity = 0.85 * np.sqrt(heat)[..., None]
    return (1 - opacity) * base + opacity * color


def _overlay_labels(base: np.ndarray, labels: np.ndarray) -> np.ndarray:
    color = _PALETTE[np.where(labels > 0, (labels - 1) % (len(_PALETTE) - 1) + 1, 0)]
    drawn = np.where(labels[..., None] > 0, (1 - _OPACITY) * base + _OPACITY * color, base).astype(np.float32)
    drawn[_borders(labels)] = _LIGHT
    return drawn


def _borders(labels: np.ndarray) -> np.ndarray:
    """Find the pixels of each label beside another one; the edge of the picture is no border."""
    padded = np.pad(labels, 1, mode="edge")
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (labels > 0) & np.any([other != labels for other in beside], axis=0)


def _draw_outlines(base: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw both outlines, and dashes of both colors where they coincide."""
    reference, mask = _outline(expected), _outline(labels)
    rows, columns = np.indices(labels.shape)
    dash = (rows + columns) // 6 % 2 == 0
    picture = base.copy()
    picture[reference] = _rgb(REFERENCE_COLOR)
    picture[mask & (dash | ~reference)] = _rgb(MASK_COLOR)
    return picture


def _outline(labels: np.ndarray, width: int = 2) -> np.ndarray:
    """Find the pixels of each label within ``width`` of another label or of the picture's edge."""
    inside = labels > 0
    padded = np.pad(labels, width, constant_values=-1)
    rows, columns = labels.shape
    for step in range(1, width + 1):
        for down, right in ((step, 0), (-step, 0), (0, step), (0, -step)):
            shifted = padded[width + down : width + down + rows, width + right : width + right + columns]
            inside &= shifted == labels
    return (labels > 0) & ~inside


def _rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def _sheet(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]],
    size: tuple[int, int],
    labels: Sequence[str] = ("",),
    *,
    below: Sequence[tuple[str, str]] = (),
    telling: int = 0,
    letter: str = "",
) -> bytes:
    """Draw rows of tiles below the names of their columns, and a line of texts with their colors below them.

    Args:
        rows: of tiles, each a name and a picture (height, width, 3); all rows have the same names.
        size: width and height of a tile.
        labels: what each row is.
        below: texts and colors.
        telling: the row whose last tile tells most.
        letter: the side of the patient on the left.
    """
    width, height = size
    step = height + _GAP
    bottom = _CAPTION + len(rows) * step - _GAP
    font = ImageFont.load_default(size=12)
    wide = max(len(rows[0]) * (width + _GAP) - _GAP, int(sum(font.getlength(text) + 14 for text, _ in below)))
    sheet = Image.new("RGB", (wide, bottom + (_CAPTION if below else 0)), "#14171c")
    draw = ImageDraw.Draw(sheet)
    for column, (name, _) in enumerate(rows[0]):
        draw.text((column * (width + _GAP) + 4, 3), name, fill=_INK, font=font)
    for row, tiles in enumerate(rows):
        top = _CAPTION + row * step
        for column, (_, tile) in enumerate(tiles):
            picture = Image.fromarray(tile.round().clip(0, 255).astype(np.uint8))
            sheet.paste(picture, (column * (width + _GAP), top))
        for text, level in ((labels[row], top + 3), (letter, top + height // 2 - 7)):
            draw.text((4, level), text, fill=_INK, font=font, stroke_width=1, stroke_fill="#000000")
    place = 4.0
    for text, color in below:
        draw.text((place, bottom + 3), text, fill=color, font=font)
        place += font.getlength(text) + 14
    left, top = (len(rows[0]) - 1) * (width + _GAP), _CAPTION + telling * step
    return picture_png(sheet, (left, top, left + width, top + height))


def picture_png(sheet: Image.Image, telling: tuple[int, int, int, int]) -> bytes:
    """Write a picture of several tiles as PNG, with the place of the most telling one; no time, no name."""
    about = PngImagePlugin.PngInfo()
    about.add_text(TELLING_TILE, " ".join(map(str, telling)))
    sheet.save(file := io.BytesIO(), "PNG", compress_level=4, pnginfo=about)
    return file.getvalue()
