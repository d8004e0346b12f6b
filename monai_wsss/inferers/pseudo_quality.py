# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The quality of pseudo-masks, where masks exist. Kept apart from the making of pseudo-masks, which reads no mask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._files import make_directory, write_json
from monai_wsss._labels import IGNORED
from monai_wsss.data import pseudo_mask_path
from monai_wsss.metrics import (
    PixelCounts,
    count_pixels,
    dice_macro_pooled,
    f1_from_miou,
    iou_score,
    miou_pooled,
)

__all__ = ["score_pseudo_masks"]


def score_pseudo_masks(
    pseudo_dir: str | os.PathLike[str],
    items: Iterable[Mapping[str, Any]],
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    background: bool = True,
) -> dict[str, Any]:
    """Measure pseudo-masks against masks, where these exist: a look at the first stage that decides nothing.

    Args:
        pseudo_dir: folder of a finished :class:`PseudoMaskWriter`.
        items: read with ``masks=True``; those without a mask are left out.
        transform: reads ``pseudo_mask`` and ``mask`` (1, *S).
        output: the JSON file to write.
        classes: names of the K classes.
        background: as of the datalist.

    Returns:
        what was written: ``miou_pooled``, ``f1_from_miou``, ``dice_macro_pooled`` and, for each class,
        ``iou_pooled/<class>``, all over the pixels that are not ignored; ``ignored``, the share of ignored pixels;
        ``cases``, the number of items with a mask.

    Raises:
        DataError: no item with a mask, or one without its pseudo-mask.
    """
    counts: list[PixelCounts] = []
    ignored, pixels = 0, 0
    for item in tqdm([item for item in items if "mask" in item], desc="quality", disable=None):
        read = transform({**item, "pseudo_mask": str(pseudo_mask_path(pseudo_dir, item["id"]))})
        found, truth = (torch.as_tensor(read[key]).to(torch.uint8) for key in ("pseudo_mask", "mask"))
        unknown = found == IGNORED
        ignored, pixels = ignored + int(unknown.sum()), pixels + unknown.numel()
        found, truth = found.masked_fill(unknown, 0), truth.masked_fill(unknown, IGNORED)
        counts.append(count_pixels(found, truth, num_classes=len(classes)))
    if not counts:
        raise DataError("No case of the split has a pixel mask: the quality of its pseudo-masks cannot be measured.")
    total = PixelCounts.sum_of(counts)
    miou = float(miou_pooled(total, background=background))
    by_class = {f"iou_pooled/{name}": float(iou) for name, iou in zip(classes, iou_score(total)[1:], strict=True)}
    content = {
        "reads": "pixel masks, to measure only",
        "cases": len(counts),
        "ignored": ignored / pixels,
        "miou_pooled": miou,
        "f1_from_miou": float(f1_from_miou(miou)),
        "dice_macro_pooled": float(dice_macro_pooled(total, background=background)),
        **by_class,
    }
    make_directory(Path(output).parent)
    write_json(output, content)
    return content
