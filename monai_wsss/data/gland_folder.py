# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Common parts of the gland adapters: images with gland masks become training patches and whole images to evaluate on.

The classes are gland and other tissue, both real, without background; a mask holds 1 for gland and 2 for the rest.  The
training split consists of patches, tagged by the classes that their masks show; validation and test keep whole images,
unless the rule says that they are cut as well.
The tags are simulated, and the datalist says so (``"simulated_supervision"``, ``"labels"``).  The color statistics are
those of the tissue of the whole image, so that a patch is standardized as its image.

Transparent pixels become white, gray images get three channels, CMYK images become RGB.  Networks get all of them as
(C, rows, columns).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._intensity import tissue_statistics
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.data.case_files import UNNAMED, read_mask
from monai_wsss.data.datalist import modality_entry, statistics_entry, write_datalist
from monai_wsss.data.find_files import find_images, find_masks
from monai_wsss.data.label_table import WHOLE, LabeledRow, LabelTable
from monai_wsss.data.modalities import COLORS
from monai_wsss.data.patches import patch_origins, presence_tags, white_pixels
from monai_wsss.data.reading import image_format, image_stem, read_image
from monai_wsss.data.splits import SPLITS, split_by_subject
from monai_wsss.data.writing import fits_picture, write_picture

__all__ = [
    "GLAND_CLASSES",
    "GlandImage",
    "PatchRule",
    "add_gland_image",
    "draw_splits",
    "empty_gland_list",
    "pair_files",
    "table_of_folder",
    "write_glands",
]

GLAND_CLASSES = ("gland", "other")
"""The classes of every gland data set; in a mask gland is 1 and other tissue 2."""

_KINDS = {(1, 0): "gland alone", (0, 1): "other alone", (1, 1): "both"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GlandImage:
    """An image on its way into a prepared folder.

    Attributes:
        id: its name, unique in the data set.
        subject: the subject, or the image itself where the split is by images.
        split: "training", "validation" or "test"; None before it is drawn.
        image: the file.
        mask: the file of its mask; everything above 0 is gland.
    """

    id: str
    subject: str
    split: str | None
    image: Path
    mask: Path


@dataclass(frozen=True)
class PatchRule:
    """Rule by which training images are cut and tagged.

    Attributes:
        patch: size of the patches in pixels; None takes each image as one patch.
        stride: step from one patch to the next.
        align: whether the last column and row of patches end at the border.
        presence: the share of pixels above which a class counts as present.
        white: patches with more than this share of white pixels (:func:`~monai_wsss.data.patches.white_pixels`) are
            left out; 1 keeps all.
        every_split: whether images of validation and test are cut, too; none of their patches is left out.
    """

    patch: int | None = None
    stride: int = 1
    align: bool = True
    presence: float = 0.05
    white: float = 1.0
    every_split: bool = False


def table_of_folder(images: Path) -> LabelTable:
    """Make a table without labels and splits: one row per image in a folder, each a subject of its own.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    paths = sorted(images.iterdir()) if images.is_dir() else []
    stems = [image_stem(path) for path in paths if image_format(path) == "picture" and not path.name.startswith(".")]
    if not stems:
        raise DataError(f"{images} is no folder with images (PNG, JPEG, TIFF, BMP): check the path.")
    return LabelTable(images, [], [LabeledRow(str(images / stem), stem, stem, [], None, {}) for stem in stems])


def draw_splits(images: Sequence[GlandImage], fractions: Sequence[float], seed: int) -> list[GlandImage]:
    """Draw a split for every image, the same for all images of a subject; if all have splits, they keep them.

    The draw is stratified by the folders from which the images come.

    Args:
        images: the images.
        fractions: shares of the subjects for training, validation and test.
        seed: seed of the draw.
    """
    if all(case.split for case in images):
        return list(images)
    folders = sorted({case.image.parent for case in images})
    strata = [[float(case.image.parent == folder) for folder in folders] for case in images]
    splits = split_by_subject([case.subject for case in images], strata, fractions=fractions, seed=seed)
    return [replace(case, split=split) for case, split in zip(images, splits, strict=True)]


def pair_files(table: LabelTable, images: Path, masks: Path) -> list[GlandImage]:
    """Find the image and the mask of every row by their names.

    Args:
        table: the cases.
        images: the folder of images.
        masks: the folder of masks: ``<id>.<suffix>`` or ``<id>_mask.<suffix>``.

    Raises:
        DataError: a row has no image or no mask, or an image has no row.
    """
    files, found = find_images(images, table), find_masks(masks, table.rows)
    paired = []
    for row in table.rows:
        if row.id not in found:
            raise DataError(missing_mask(row.where, row.id, masks))
        if UNNAMED not in files[row.id]:
            raise DataError(f'{row.where}: "{row.id}" has several images in {images}: keep one, named by the id.')
        paired.append(GlandImage(row.id, row.subject, row.split, files[row.id][UNNAMED], found[row.id]))
    return paired


def missing_mask(where: str, name: str, masks: Path) -> str:
    """Give the sentence about an image without a mask."""
    return (
        f'{where}: the image "{name}" has no mask in {masks}, from which its tags would come: add the mask or leave '
        "the image out; images that are tagged already are prepared with `prepare folder --no-background`."
    )


def _read_color(path: Path) -> tuple[np.ndarray, MetaTensor]:
    """Read an image: (3, x, y) uint8, and the tensor as read, for the comparison with its mask."""
    image = read_image(path, on_white=True)
    values = image.as_tensor().numpy()
    if values.ndim == 3 and values.shape[0] == 1:
        values = values.repeat(3, axis=0)
    if not fits_picture(values) or values.shape[0] != 3:
        raise DataError(
            f"{path} has values up to {values.max():g} in {image.shape[0]} channels: save it as an image of 8 bits, "
            "RGB or gray."
        )
    return values.astype(np.uint8), image


def _read_pair(case: GlandImage) -> tuple[np.ndarray, np.ndarray]:
    """Read the pixels (3, x, y) and the mask (1, x, y), 1 gland and 2 other, both uint8."""
    pixels, image = _read_color(case.image)
    return pixels, np.where(read_mask(case.mask, image, [WHOLE]) > 0, 1, 2).astype(np.uint8)


def _write_item(
    out: Path, name: str, case: GlandImage, pixels: np.ndarray, mask: np.ndarray, presence: float
) -> dict[str, Any]:
    """Write a patch or an image with its mask; return its item."""
    item = {"id": name, "image": f"images/{name}.png", "subject": case.subject, "mask": f"masks/{name}.png"}
    write_picture(out / item["image"], pixels)
    write_picture(out / item["mask"], mask)
    label = presence_tags(mask, len(GLAND_CLASSES), presence=presence)
    return {**item, "label": label, "statistics": case.id}


def _windows(case: GlandImage, pixels: np.ndarray, rule: PatchRule) -> list[tuple[int, int, slice, slice]]:
    """Give the origin (x, y), the columns and the rows of every patch."""
    if rule.patch is None:
        return [(0, 0, slice(None), slice(None))]
    if min(pixels.shape[1:]) < rule.patch:
        size = " x ".join(map(str, pixels.shape[1:]))
        raise DataError(
            f"{case.image} is of {size} pixels, smaller than a patch of {rule.patch}: take smaller patches, or leave "
            "the image out."
        )
    origins = patch_origins(pixels.shape[1:], rule.patch, rule.stride, align=rule.align)
    return [(x, y, slice(x, x + rule.patch), slice(y, y + rule.patch)) for x, y in origins]


def _write_patches(
    out: Path, case: GlandImage, pixels: np.ndarray, mask: np.ndarray, rule: PatchRule
) -> tuple[list[dict[str, Any]], int]:
    """Write the patches of an image; return their items and the number of white patches that were left out.

    Of images to measure, no patch is left out.
    """
    items = []
    limit = rule.white if case.split == "training" else 1.0
    glass = white_pixels(pixels)
    windows = _windows(case, pixels, rule)
    for x, y, columns, rows in windows:
        if glass[columns, rows].mean() > limit:
            continue
        name = case.id if rule.patch is None else f"{case.id}_{x}_{y}"
        item = _write_item(out, name, case, pixels[:, columns, rows], mask[:, columns, rows], rule.presence)
        items.append({**item, "source": case.id, "origin": [x, y]})
    return items, len(windows) - len(items)


def _check_names(images: Sequence[GlandImage]) -> None:
    """Refuse names that differ only in upper and lower case, which are one file on some disks."""
    owner: dict[str, GlandImage] = {}
    for case in images:
        other = owner.setdefault(case.id.lower(), case)
        if other is not case:
            raise DataError(f"{other.image} and {case.image} would have the same name: rename one of them.")


def empty_gland_list(rule: PatchRule, subjects: str) -> dict[str, Any]:
    """Make a datalist of glands with empty splits and without a name.

    Args:
        rule: the rule by which training images are cut and tagged.
        subjects: the kind of the subjects: "patients", "specimens" or "images".
    """
    datalist: dict[str, Any] = {
        "modality": modality_entry(COLORS),
        "classes": list(GLAND_CLASSES),
        "background": False,
        "scored_class": GLAND_CLASSES[0],
        "order": ROWS_COLUMNS,
        "labels": f"simulated: tags from masks (present above {100 * rule.presence:g} % of a patch)",
        "simulated_supervision": True,
        "subjects": subjects,
        "statistics": {},
        **{split: [] for split in SPLITS},
    }
    if rule.patch is not None:
        datalist["patches"] = {"size": rule.patch, "stride": rule.stride}
    return datalist


def add_gland_image(
    datalist: dict[str, Any], out: Path, case: GlandImage, pixels: np.ndarray, mask: np.ndarray, rule: PatchRule
) -> int:
    """Write an image, cut into patches if the rule says so, and add it and its color statistics to a datalist.

    Args:
        datalist: begun by :func:`empty_gland_list`; changed in place.
        out: the folder to write.
        case: gives its id, subject and split.
        pixels: (3, x, y) uint8.
        mask: (1, x, y) uint8, 1 gland and 2 other.
        rule: the rule by which training images are cut and tagged.

    Returns:
        The number of white patches that were left out.

    Raises:
        DataError: the image is smaller than a patch.
    """
    datalist["statistics"][case.id] = statistics_entry(*tissue_statistics(pixels))
    if case.split != "training" and not rule.every_split:
        datalist[str(case.split)].append(_write_item(out, case.id, case, pixels, mask, rule.presence))
        return 0
    items, left_out = _write_patches(out, case, pixels, mask, rule)
    datalist[str(case.split)] += items
    return left_out


def write_glands(out: Path, images: Sequence[GlandImage], rule: PatchRule, *, subjects: str) -> Path:
    """Cut and write the images, and last the datalist.

    Args:
        out: the folder to write, made by :func:`~monai_wsss.data.prepared_folder.check_output`.
        images: the images of all splits.
        rule: the rule by which training images are cut and tagged.
        subjects: the kind of the subjects, "patients", "specimens" or "images", for the entry ``"subjects"`` of the
            datalist; for images the log warns.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: an image or mask cannot be read, does not fit, or is smaller than a patch.
    """
    _check_names(images)
    datalist = {"name": out.resolve().name, **empty_gland_list(rule, subjects)}
    white = 0
    for case in tqdm(images, desc="images", disable=None):
        pixels, mask = _read_pair(case)
        white += add_gland_image(datalist, out, case, pixels, mask, rule)
    _describe(datalist, images, white)
    return write_datalist(out, datalist)


def _describe(datalist: Mapping[str, Any], images: Sequence[GlandImage], white: int) -> None:
    """Log the number of items per split and tag, and the kind of the labels and subjects."""
    for split in SPLITS:
        counts = Counter(_KINDS.get(tuple(item["label"]), "neither") for item in datalist[split])
        text = ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS.values())
        cases = sum(case.split == split for case in images)
        whole = split != "training" and len(datalist[split]) == cases
        what = "whole images" if whole else f"patches of {cases} images"
        _logger.info("%s: %d %s (%s).", split, len(datalist[split]), what, text)
    _logger.info("%d patches of white background were left out; the labels are %s.", white, datalist["labels"])
    if datalist["subjects"] == "images":
        _logger.warning(
            "Every image counts as a subject of its own: images of a patient may be in several splits, so what is "
            "measured need not hold for new patients."
        )
