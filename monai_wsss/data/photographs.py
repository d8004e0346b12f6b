# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Common parts of the adapters of photographs (VOC, COCO): images of many sizes, each a subject of its own.

Photographs keep their size.  JPEG and PNG files are copied without their metadata, gray and CMYK ones become RGB PNG,
and those that an EXIF entry turns become upright PNG.  Networks get them as (C, rows, columns).
In a mask 0 is background, 1..K are the classes, and 255 is ignored (VOC's contours, COCO's crowds): no metric counts
it.  Masks are for evaluation only.  The color statistics are those of ImageNet, as in the papers that train on these
data.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from PIL import Image
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._image_formats import image_stem, is_unread_image, remedy_for, stem_of_any
from monai_wsss._labels import IGNORED
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.data.case_files import UNNAMED, mask_shows, read_case
from monai_wsss.data.csv_table import plain_name
from monai_wsss.data.datalist import modality_entry, write_datalist
from monai_wsss.data.modalities import COLORS
from monai_wsss.data.patches import presence_tags
from monai_wsss.data.prepared_folder import log_sizes, warn_of_contradictions
from monai_wsss.data.reading import check_mask_fits, read_labels
from monai_wsss.data.splits import SPLITS
from monai_wsss.data.writing import copy_file, fits_picture, write_picture

__all__ = [
    "PHOTOGRAPH_STATISTICS",
    "Photograph",
    "check_classes",
    "path_inside",
    "read_indices",
    "spelled_on_disk",
    "write_photographs",
]

PHOTOGRAPH_STATISTICS = {"imagenet": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}}
"""Red, green, blue, 0 to 255: the statistics with which checkpoints such as ``mit_b1`` were trained on ImageNet."""

_LONGEST = 200
_INDEX_MODES = ("L", "P", "I", "I;16")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photograph:
    """A photograph on its way into a prepared folder.

    Attributes:
        where: file and line or entry that name it, for messages.
        id: its name, unique in the data set.
        split: "training", "validation" or "test".
        label: 0/1 per class, (K); None takes the classes that the mask shows.  Without a mask either, which only test
            images may lack, the label is not known.
        image: the file.
        mask: function from the image as read, (3, x, y), to its mask (1, x, y) uint8, 0..K and 255, or to None where it
            turns out that there is none; None where there is no mask.
        ignored: classes, 1..K, of which pixels are ignored in the mask by intent, so that it need not show them.
    """

    where: str
    id: str
    split: str
    label: list[int] | None
    image: Path
    mask: Callable[[MetaTensor], np.ndarray | None] | None
    ignored: frozenset[int] = frozenset()


def check_classes(classes: Sequence[str]) -> list[str]:
    """Check the names of the classes and give them as a list; mask value k is the k-th of them.

    Raises:
        DataError: there are no names or more than a mask can tell apart, a name is empty or occurs twice, or is
            "background".

    Example:
        >>> check_classes(("cat", "dog"))
        ['cat', 'dog']
    """
    names = list(classes)
    if not names or not all(names) or len(set(names)) != len(names) or len(names) >= IGNORED:
        raise DataError(f"The classes are {', '.join(names) or 'none'}: name 1 to {IGNORED - 1}, each once.")
    if "background" in (name.lower() for name in names):
        raise DataError('"background" is among the classes: leave it out, it is 0 in every mask.')
    return names


def path_inside(root: Path, text: str, where: str) -> Path:
    """Give the path, below the folder of a data set, that a file of the data set names.

    Args:
        root: the folder.
        text: the path relative to it, with slashes or backslashes.
        where: what names the path, for the message.

    Raises:
        DataError: the path leads out of the folder, or cannot name a file.

    Example:
        >>> path_inside(Path("voc"), "JPEGImages/a.jpg", "train.txt, line 1").as_posix()
        'voc/JPEGImages/a.jpg'
    """
    path = os.path.normpath(text.replace("\\", "/"))
    if os.path.isabs(path) or Path(path).drive or path.split(os.sep)[0] == os.pardir:
        raise DataError(f'{where}: the path "{text}" leads out of {root}: give a path below this folder.')
    if os.path.basename(path).startswith(".") or not text.isprintable() or len(text) > _LONGEST:
        raise DataError(f'{where}: "{text:.80}" cannot name a file: use letters, digits, "-" and "_".')
    return root / path


def spelled_on_disk(path: Path) -> Path:
    """Give a path as the disk has it: the name in another Unicode form, the suffix in capitals or in small letters.

    Returns:
        The first spelling that exists, else the path as it is.
    """
    if path.is_file():
        return path
    stem = path.name.removesuffix(path.suffix)
    names = [unicodedata.normalize(form, stem) for form in ("NFC", "NFD")]
    suffixes = (path.suffix, path.suffix.lower(), path.suffix.upper())
    spelled = [path.with_name(name + suffix) for name in names for suffix in suffixes]
    return next((one for one in spelled if one.is_file()), path)


def read_indices(path: Path, like: MetaTensor, num_classes: int) -> np.ndarray:
    """Read the mask of a photograph: palette indices or gray values, 0..K and 255.

    Args:
        path: PNG, TIFF or BMP.
        like: the image, (C, x, y).
        num_classes: K.

    Returns:
        (1, x, y) uint8.

    Raises:
        DataError: the mask cannot be read, has colors in place of indices, or has another size or another value.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.fromarray(np.array([[0, 2], [255, 1]], dtype=np.uint8)).save(file)
        >>> read_indices(file, MetaTensor(torch.zeros(3, 2, 2)), 2).tolist()
        [[[0, 255], [2, 1]]]
    """
    mask = read_labels(path, palette="indices")
    with Image.open(path) as picture:
        kind, mode = picture.format, picture.mode
    if kind == "JPEG" or mode not in _INDEX_MODES:
        raise DataError(
            f"The mask {path} is {kind} of mode {mode}, not indices of classes: export it as a PNG with a palette or "
            "in gray, 0 background, 1 to K the classes, 255 unknown."
        )
    check_mask_fits(mask, path, like)
    values = mask.as_tensor().numpy()
    other = values[(values > num_classes) & (values != IGNORED)]
    if other.size:
        raise DataError(
            f"{path} holds the value {other.max()}, but there are {num_classes} classes: name all classes in the order "
            f"of their values, 1 to {num_classes}; 0 is background and {IGNORED} unknown."
        )
    return values.astype(np.uint8)


def _check_kind(photograph: Photograph) -> None:
    """Refuse an image that is there, but of a kind that is not read."""
    image = photograph.image
    entries = image.parent.iterdir() if image.parent.is_dir() else ()
    for path in entries:
        if is_unread_image(path) and plain_name(stem_of_any(path)) == plain_name(image_stem(image)):
            raise DataError(f"{photograph.where}: the image {path} is of a kind that is not read: {remedy_for(path)}.")


def _check_all(photographs: Sequence[Photograph]) -> None:
    """Check, before anything is written, that there are photographs, that they exist, and that none is listed twice."""
    if not photographs:
        raise DataError("There is no image in the lists: name lists that are not empty.")
    owner: dict[str, Photograph] = {}
    for photograph in photographs:
        if not photograph.image.is_file():
            _check_kind(photograph)
            raise DataError(
                f"{photograph.where}: the image {photograph.image} does not exist: add it, or take it out of the list."
            )
        other = owner.setdefault(photograph.id.lower(), photograph)  # on some disks A.jpg and a.jpg are one file
        if other is not photograph:
            raise DataError(
                f'{photograph.where}: "{photograph.id}" has the same name as an image in {other.where}: list every '
                "image once, in one split, under a name of its own."
            )


def _write_image(out: Path, photograph: Photograph) -> tuple[str, MetaTensor]:
    """Copy or convert a photograph; return its path below ``out``, and the image (3, x, y) as read."""
    case = read_case({UNNAMED: photograph.image}, channel_names=None, color=True)
    image, source = case.images[0], case.sources[0]
    values = image.as_tensor().numpy()
    if not (case.is_color and fits_picture(values)):
        raise DataError(
            f"{photograph.where}: {photograph.image} is no image of 8 bits in RGB or gray: export it as one."
        )
    if source is None:
        path = f"images/{photograph.id}.png"
        write_picture(out / path, values)
    else:
        path = f"images/{photograph.id}{source.suffix.lower()}"
        copy_file(source, out / path)
    return path, image


def _write_item(out: Path, photograph: Photograph, num_classes: int) -> tuple[dict[str, Any], tuple[int, ...], bool]:
    """Write a photograph and its mask; return its item, its size, and whether the mask agrees with the label."""
    path, image = _write_image(out, photograph)
    item: dict[str, Any] = {"id": photograph.id, "image": path, "subject": photograph.id, "statistics": "imagenet"}
    label, agrees = photograph.label, True
    mask = None if photograph.mask is None else photograph.mask(image)
    if mask is not None:
        item["mask"] = f"masks/{photograph.id}.png"
        write_picture(out / item["mask"], mask)
        if label is None:
            label = presence_tags(np.where(mask == IGNORED, 0, mask), num_classes, presence=0.0)
        unseen = [number for number in photograph.ignored if IGNORED in mask and number not in mask]
        agrees = mask_shows(mask, [0 if number in unseen else tag for number, tag in enumerate(label, start=1)])
    return {**item, "label": label}, tuple(image.shape[1:]), agrees


def write_photographs(
    out: Path,
    photographs: Sequence[Photograph],
    classes: Sequence[str],
    *,
    labels: str,
    simulated: bool = False,
    entries: Mapping[str, Any] | None = None,
) -> Path:
    """Write the photographs and masks, and last the datalist.

    Args:
        out: the folder to write, made by :func:`~monai_wsss.data.prepared_folder.check_output`.
        photographs: the photographs of all splits.
        classes: names of the classes, (K).
        labels: the origin of the labels, for the entry ``"labels"`` of the datalist.
        simulated: whether labels come from masks, for the entry ``"simulated_supervision"``.
        entries: further entries of the datalist.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a photograph or mask is missing, cannot be read or does not fit, or a photograph is listed twice.
    """
    _check_all(photographs)
    datalist: dict[str, Any] = {
        "name": out.resolve().name,
        "modality": modality_entry(COLORS),
        "classes": list(classes),
        "labels": labels,
        "simulated_supervision": simulated,
        "subjects": "images",
        "order": ROWS_COLUMNS,
        **(entries or {}),
        "statistics": PHOTOGRAPH_STATISTICS,
        **{split: [] for split in SPLITS},
    }
    sizes: set[tuple[int, ...]] = set()
    contradictions: list[str] = []
    for photograph in tqdm(photographs, desc="images", disable=None):
        item, size, agrees = _write_item(out, photograph, len(classes))
        datalist[photograph.split].append(item)
        sizes.add(size)
        contradictions += [] if agrees else [photograph.id]
    for split in SPLITS:
        masks = sum("mask" in item for item in datalist[split])
        _logger.info("%s: %d images, %d with a mask.", split, len(datalist[split]), masks)
        unknown = sum(item["label"] is None for item in datalist[split])
        if unknown:
            _logger.warning("%s: %d images have no label: they can be predicted, not measured.", split, unknown)
    log_sizes(sizes)
    warn_of_contradictions(contradictions)
    return write_datalist(out, datalist)
