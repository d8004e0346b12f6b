# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Outlines of objects in COCO's annotations, polygons and run lengths, drawn into masks.

A pixel (x, y) is the square from x to x + 1 and y to y + 1, and belongs to a polygon if its center lies inside.  PIL's
``ImageDraw`` is not used: it cuts coordinates to whole numbers, and it draws the outline too, which adds a pixel on two
sides.

=============  =====================================================================================================
polygons       lists [x, y, x, y, …] in pixels; an object is the union of its polygons, each filled by the even-odd rule
run lengths    {"size": [rows, columns], "counts": …}: lengths of background, object, background, … down the columns;
               "counts" is a list or a compressed text
=============  =====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_wsss._checks import DataError

__all__ = ["draw_box", "draw_outline", "has_outline", "is_box"]

_LINE = 4
"""Numbers of a polygon of two corners, and of a box."""

_FAR = 1e6
"""Coordinates from this many pixels on are refused as mistakes, as are NaN and infinity."""


def _fill(mask: np.ndarray, points: np.ndarray) -> None:
    """Set the pixels of ``mask`` (columns, rows) with an odd number of crossings of the polygon (N, 2) on their left.

    In the row of centers y, the side from (a, b) to (c, d) is crossed at ``a + (y - b) (c - a) / (d - b)``, if exactly
    one of its ends is above y.
    """
    starts, ends = points, np.roll(points, -1, axis=0)
    centers = np.arange(mask.shape[1]) + 0.5
    side, row = np.nonzero((starts[:, 1:] <= centers) != (ends[:, 1:] <= centers))
    if not side.size:
        return
    (a, b), (c, d) = starts[side].T, ends[side].T
    crossing = a + (centers[row] - b) * (c - a) / (d - b)
    column = np.ceil(crossing.clip(0, mask.shape[0]) - 0.5).astype(np.int64)  # the first center not left of it
    left, right, top, bottom = column.min(), column.max(), row.min(), row.max() + 1
    crossings = np.zeros((bottom - top, right - left + 1), dtype=np.uint8)  # modulo 256, which keeps odd and even
    np.add.at(crossings, (row - top, column - left), 1)
    inside = crossings.cumsum(axis=1, dtype=np.uint8)[:, :-1] % 2 == 1
    mask[left:right, top:bottom] |= inside.T


def _polygons(outline: Sequence[Any], columns: int, rows: int, where: str) -> np.ndarray:
    """Draw the union of polygons, (columns, rows)."""
    mask = np.zeros((columns, rows), dtype=bool)
    for numbers in outline:
        try:
            points = np.array(numbers, dtype=np.float64).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError):
            points = np.zeros((0, 2))
        if not points.size or not (np.abs(points) < _FAR).all():
            raise DataError(
                f"{where} has the polygon {numbers!r:.80}: write the coordinates of its corners, [x, y, x, y, …]."
            )
        _fill(mask, points)
    if not len(outline):
        raise DataError(f"{where} has no outline: add it, or prepare the data without masks.")
    return mask


def _decompress(text: str) -> list[int] | None:
    """Read run lengths from COCO's compressed text; give None if the text is invalid.

    A number is written in groups of five bits, the lowest first.  Each group is the character 48 + bits, + 32 if
    another group follows.  The highest bit of the last group is the sign.  From the fourth run on, the number is the
    difference to the run two places before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts


def _run_lengths(outline: Mapping[str, Any], columns: int, rows: int, where: str) -> np.ndarray:
    """Draw run lengths down the columns, (columns, rows)."""
    written = outline.get("counts")
    if outline.get("size") != [rows, columns]:
        raise DataError(
            f"{where} has an outline for the size {outline.get('size')!r:.40}, but its image has {rows} rows and "
            f"{columns} columns: take the image that was annotated."
        )
    counts = _decompress(written) if isinstance(written, str) else written
    whole = isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts)
    if not whole or sum(counts or []) != columns * rows:
        raise DataError(
            f"{where} has the run lengths {written!r:.80}: write whole numbers that add up to {columns * rows} pixels, "
            "or their compressed text."
        )
    lengths = np.array(counts, dtype=np.int64)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(columns, rows)


def draw_outline(outline: Any, columns: int, rows: int, where: str) -> np.ndarray:
    """Draw the pixels of an object.

    Args:
        outline: ``segmentation`` of an annotation, polygons or run lengths.
        columns: width of its image, in pixels.
        rows: height of its image, in pixels.
        where: the place of the outline, for messages.

    Returns:
        (x, y) bool.

    Raises:
        DataError: there is no outline, it is neither polygons nor run lengths, or it is for another size.

    Example:
        >>> draw_outline([[1, 0, 3, 0, 3, 2, 1, 2]], 4, 3, "a").T.astype(int).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
        >>> draw_outline({"size": [2, 3], "counts": [1, 2, 3]}, 3, 2, "a").T.astype(int).tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    if isinstance(outline, dict):
        return _run_lengths(outline, columns, rows, where)
    if isinstance(outline, list):
        return _polygons(outline, columns, rows, where)
    raise DataError(f"{where} has the outline {outline!r:.80}: give polygons or run lengths, as COCO does.")


def _count(part: Sequence[Any]) -> int:
    """Count the numbers of a polygon, whose corners may be lists of their own."""
    return sum(len(corner) if isinstance(corner, list) else 1 for corner in part)


def has_outline(outline: Any) -> bool:
    """Tell whether an annotation says an outline at all; a polygon of fewer than three corners is none.

    Example:
        >>> has_outline([[1, 0, 3, 0, 3, 2]]), has_outline([]), has_outline([[1, 0, 3, 0]]), has_outline(None)
        (True, False, False, False)
    """
    if isinstance(outline, list):
        return any(not isinstance(part, list) or _count(part) > _LINE for part in outline)
    return outline not in (None, {}, "")


def is_box(box: Any) -> bool:
    """Tell whether a value is a box of COCO: left, top, width and height in pixels."""
    if not isinstance(box, list) or len(box) != _LINE or not all(isinstance(value, (int, float)) for value in box):
        return False
    return all(-_FAR < value < _FAR for value in box) and box[2] > 0 and box[3] > 0


def draw_box(box: Sequence[float], columns: int, rows: int) -> np.ndarray:
    """Draw every pixel that a box touches, (x, y) bool.

    Example:
        >>> draw_box([0.5, 1, 1, 1], 3, 2).T.astype(int).tolist()
        [[0, 0, 0], [1, 1, 0]]
    """
    left, top, width, height = box
    mask = np.zeros((columns, rows), dtype=bool)
    x, y = (max(0, math.floor(value)) for value in (left, top))
    right, bottom = (max(0, math.ceil(value)) for value in (left + width, top + height))
    mask[x:right, y:bottom] = True
    return mask
