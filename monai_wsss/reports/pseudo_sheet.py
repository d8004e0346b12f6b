# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A sheet of pseudo-masks: patches of each combination of tags, each with its pseudo-mask beside it."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from monai_wsss._files import atomic_path
from monai_wsss._labels import IGNORED
from monai_wsss._processes import is_main_process
from monai_wsss.data import attach_pseudo_masks
from monai_wsss.reports.overlay import add_legend
from monai_wsss.reports.panels import labels_over
from monai_wsss.reports.planes import display_of
from monai_wsss.transforms import LoadImageOrderedd

__all__ = ["write_pseudo_sheet"]

_SIDE, _GAP, _CAPTION = 112, 4, 20
_PAPER, _INK, _HATCH = "#14171c", "#d7dde5", (215, 221, 229)


def write_pseudo_sheet(
    items: Sequence[Mapping[str, Any]],
    pseudo_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    classes: Sequence[str],
    *,
    each: int = 5,
) -> None:
    """Draw pseudo-masks of 2D images, evenly chosen from those of each combination of tags; one process does.

    Args:
        items: of the second stage, each with ``id``, ``image``, a path, and ``label`` (K,).
        pseudo_dir: the folder of their pseudo-masks.
        path: of the PNG file.
        classes: names of the classes, (K).
        each: patches of a combination, side by side.

    Raises:
        DataError: a pseudo-mask is missing, a file cannot be read, or the sheet cannot be written.
    """
    if not is_main_process():
        return
    groups: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault(tuple(int(tag > 0) for tag in item["label"]), []).append(item)
    rows = []
    for tags, found in sorted(groups.items(), reverse=True):
        places = np.unique(np.linspace(0, len(found) - 1, each).round().astype(int))
        chosen = attach_pseudo_masks([found[place] for place in places], pseudo_dir)
        names = " + ".join(name for name, tag in zip(classes, tags, strict=True) if tag) or "no tag"
        rows.append((f"{names}: {len(places)} of {len(found)}", [_pair(item) for item in chosen]))
    step = _SIDE + _CAPTION + _GAP
    sheet = Image.new("RGB", (each * (2 * _SIDE + 3 * _GAP), len(rows) * step), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for row, (text, pairs) in enumerate(rows):
        draw.text((4, row * step + 3), text, fill=_INK, font=font)
        for column, pair in enumerate(pairs):
            for side, tile in enumerate(pair):
                sheet.paste(tile, (column * (2 * _SIDE + 3 * _GAP) + side * (_SIDE + 1), row * step + _CAPTION))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    file.seek(0)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(add_legend(file, classes))


def _pair(item: Mapping[Any, Any]) -> tuple[Image.Image, Image.Image]:
    """Draw an image and its pseudo-mask over it; pixels that no loss learns from are hatched."""
    read = LoadImageOrderedd(["image", "pseudo_mask"])({**item})
    display = display_of(read["image"])
    picture = display.turn(np.asarray(read["image"], dtype=np.float32))[..., 0]
    labels = display.turn(np.asarray(read["pseudo_mask"]).astype(int))[0, ..., 0]
    ends = (float(picture.min()), float(picture.max())) if picture.max() > 255 else (0.0, 255.0)
    shown = ((picture - ends[0]) / max(ends[1] - ends[0], 1e-6) * 255).clip(0, 255)
    rows = shown.transpose(2, 1, 0)[..., :3] if len(shown) >= 3 else np.repeat(shown[:1].transpose(2, 1, 0), 3, axis=2)
    image = Image.fromarray(rows.round().astype(np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    base = np.asarray(image, dtype=np.float32)
    drawn = labels_over(base, np.where(labels == IGNORED, 0, labels), (_SIDE, _SIDE))
    ignored = Image.fromarray((labels == IGNORED).T.astype(np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    lines = np.add(*np.indices((_SIDE, _SIDE))) % 6 < 2
    drawn[(np.asarray(ignored) > 0) & lines] = _HATCH
    return image, Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))
