# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare isic``: dermoscopy of the ISIC challenges 2016, 2017 and 2018, as tiles for training and whole to measure.

The folder holds the challenge's archives as they unpack, each at most two folders deep:

====  ========================================  =============================================  ====================
year  images, ``ISIC_<number>.jpg``             masks, ``ISIC_<number>_segmentation.png``      splits
====  ========================================  =============================================  ====================
2016  ``ISBI2016_ISIC_Part1_<split>_Data``      ``ISBI2016_ISIC_Part1_<split>_GroundTruth``    Training, Test
2017  ``ISIC-2017_<split>_Data``                ``ISIC-2017_<split>_Part1_GroundTruth``        Training, Validation,
                                                                                               Test_v2
2018  ``ISIC2018_Task1-2_<split>_Input``        ``ISIC2018_Task1_<split>_GroundTruth``         Training, Validation,
                                                                                               Test
====  ========================================  =============================================  ====================

The masks are those of the first task, outlines of the lesion, and serve evaluation.  Files of the other tasks
(superpixels, dermoscopic features, diagnoses) are not read.  Every image shows a lesion, so tiles give the negative
images (:mod:`monai_wsss.data.tile_folder`).  Nothing says which images are of one patient: each is its own subject.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from monai_wsss._checks import DataError
from monai_wsss.data.case_files import UNNAMED
from monai_wsss.data.crops import TileOptions, TileRule
from monai_wsss.data.find_files import find_masks, visible_entries
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.prepared_folder import check_output
from monai_wsss.data.splits import SPLITS, take_validation
from monai_wsss.data.tile_folder import TileFiles, prepare_tiles

__all__ = ["find_isic", "prepare_isic"]

_IMAGE = re.compile(r"ISIC_\d+\.(jpe?g|png)", re.IGNORECASE)
_MASK = re.compile(r"ISIC_\d+_segmentation\.png", re.IGNORECASE)
_DEPTH = 3  # folders below the root that are searched

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layout:
    """Names of the folders of a challenge; ``{}`` stands for the word of the split."""

    images: str
    masks: str
    words: Mapping[str, Sequence[str]]


_WORDS = {"training": ("Training",), "validation": ("Validation",), "test": ("Test_v2", "Test")}

_LAYOUTS = {
    2016: _Layout("ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part1_{}_GroundTruth", _WORDS),
    2017: _Layout("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", _WORDS),
    2018: _Layout("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth", _WORDS),
}
"""Year of the challenge → its layout."""


def _named_folders(root: Path) -> dict[str, list[Path]]:
    """Find the folders below the root; name in small letters → folders."""
    found: dict[str, list[Path]] = {}
    level = [root]
    for _ in range(_DEPTH):
        level = [entry for folder in level for entry in visible_entries(folder) if entry.is_dir()]
        for folder in level:
            found.setdefault(folder.name.lower(), []).append(folder)
    return found


def _pick(
    folders: Mapping[str, Sequence[Path]], name: str, words: Sequence[str], pattern: re.Pattern[str]
) -> Path | None:
    """Give the folder of that name that holds files of the pattern; None where there is none."""
    for word in words:
        named = folders.get(name.format(word).lower(), ())
        filled = [folder for folder in named if any(pattern.fullmatch(file.name) for file in visible_entries(folder))]
        if len(filled) > 1:
            raise DataError(f"{filled[0]} and {filled[1]} both hold such files: keep one of them.")
        if filled:
            return filled[0]
    return None


def _find_edition(root: Path, folders: Mapping[str, Sequence[Path]], wanted: int | None) -> int:
    """Give the year of the challenge: the wanted one, or the only one whose images are there."""
    found = [
        year
        for year, layout in _LAYOUTS.items()
        if any(_pick(folders, layout.images, words, _IMAGE) for words in layout.words.values())
    ]
    if wanted is not None and wanted not in found:
        images = _LAYOUTS[wanted].images.format("Training")
        raise DataError(f"{root} holds no images of ISIC {wanted}: unpack its archives there, e.g. into {images}.")
    if wanted is None and not found:
        names = ", ".join(layout.images.format("Training") for layout in _LAYOUTS.values())
        raise DataError(f"{root} holds no images of ISIC, e.g. in {names}: unpack the archives of a challenge there.")
    if wanted is None and len(found) > 1:
        years = ", ".join(map(str, found))
        raise DataError(f"{root} holds several challenges, {years}: name one of them (`edition`).")
    return found[0] if wanted is None else wanted


def _list_images(folder: Path, split: str) -> tuple[list[LabeledRow], dict[str, Path]]:
    """List the images of a split: their rows, each positive, and id → file."""
    pictures = [file for file in visible_entries(folder) if _IMAGE.fullmatch(file.name)]
    files: dict[str, Path] = {}
    for file in pictures:
        if file.stem in files:
            raise DataError(f"{files[file.stem]} and {file} are the same image: keep one of them.")
        files[file.stem] = file
    return [LabeledRow(str(file), name, name, [1], split, {}) for name, file in files.items()], files


def _list_masks(folder: Path | None, rows: Sequence[LabeledRow], split: str) -> dict[str, Path]:
    """Find the masks of a split by the ids of its images, and log what has no partner."""
    if folder is None:
        _logger.warning("%s: no masks were found, so nothing can be measured there.", split)
        return {}
    masks = find_masks(folder, rows)
    if len(masks) < len(rows):
        first = next(row.id for row in rows if row.id not in masks)
        _logger.warning("%s: %d of %d images have no mask, first %s.", split, len(rows) - len(masks), len(rows), first)
    known = set(masks.values())
    lost = [file for file in visible_entries(folder) if _MASK.fullmatch(file.name) and file not in known]
    if lost:
        _logger.warning("%s: %d masks belong to no image, first %s.", split, len(lost), lost[0])
    return masks


def _find_all(folders: Mapping[str, Sequence[Path]], edition: int) -> tuple[list[LabeledRow], TileFiles]:
    """Find the images and masks of all splits of a challenge."""
    layout = _LAYOUTS[edition]
    rows: list[LabeledRow] = []
    images: dict[str, dict[str, Path]] = {}
    masks: dict[str, Path] = {}
    for split, words in layout.words.items():
        folder = _pick(folders, layout.images, words, _IMAGE)
        if folder is None:
            _logger.info("ISIC %d: no %s images were found.", edition, split)
            continue
        listed, files = _list_images(folder, split)
        twice = next((name for name in files if name in images), None)
        if twice is not None:
            raise DataError(f"{files[twice]} is also {images[twice][UNNAMED]}: keep it in one split.")
        images |= {name: {UNNAMED: file} for name, file in files.items()}
        masks |= _list_masks(_pick(folders, layout.masks, words, _MASK), listed, split)
        rows += listed
    return rows, TileFiles(images, masks, {})


def find_isic(root: Path, edition: int | None) -> tuple[int, list[LabeledRow], TileFiles]:
    """Find the images and masks of a challenge.

    Args:
        root: the folder in which its archives were unpacked.
        edition: its year; None takes the only one whose images are there.

    Returns:
        The year, the rows with the released splits, and the files.

    Raises:
        DataError: no challenge is there, or several, or an image is there twice.
        ValueError: an unknown year.
    """
    if edition is not None and edition not in _LAYOUTS:
        raise ValueError(f"Expected `edition` to be one of {', '.join(map(str, _LAYOUTS))}, got {edition}.")
    folders = _named_folders(root)
    year = _find_edition(root, folders, edition)
    return year, *_find_all(folders, year)


def _with_validation(rows: Sequence[LabeledRow], share: float, seed: int, edition: int) -> list[LabeledRow]:
    """Take validation images from the training images; challenges with validation images refuse it."""
    if any(row.split == "validation" for row in rows):
        if share:
            raise ValueError(
                f"Expected no `validation_share`, since ISIC {edition} has validation images, got {share}."
            )
        return list(rows)
    if not share:
        _logger.info("ISIC %d has no validation images: --validation-share 0.1 takes some for training.", edition)
        return list(rows)
    names, labels, given = [row.id for row in rows], [row.label for row in rows], [str(row.split) for row in rows]
    drawn = take_validation(names, labels, given, share=share, seed=seed)
    return [replace(row, split=split) for row, split in zip(rows, drawn, strict=True)]


def prepare_isic(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    edition: int | None = None,
    validation_share: float = 0.0,
    seed: int = 0,
    tiles: int = 64,
    labels_from_masks: bool = False,
    **tiling: Unpack[TileOptions],
) -> Path:
    """Turn a folder with an ISIC challenge (2016, 2017 or 2018) into a prepared folder.

    The training images are cut into tiles with and without the lesion.  The splits validation and test hold whole
    images; ``training_images`` holds the whole training images, and ``validation_tiles`` and ``test_tiles`` the tiles
    of the other splits.  The class is called "lesion".

    Args:
        root: the folder in which the archives of the challenge were unpacked.
        out: the folder to write.
        edition: year of the challenge; None takes the only one whose images are there.
        validation_share: share of the training images that become validation images, for 2016, which has none.
        seed: seed of that draw.
        tiles: size of the tiles in pixels.
        labels_from_masks: whether the tags of tiles come from the masks.  Such tags simulate image-level labels, and
            the datalist says so.  Otherwise ``tiles.csv`` in ``root`` lists tiles with id, x, y and lesion.
        tiling: the other options of tiles, as :class:`~monai_wsss.data.crops.TileRule` takes them.  Without ``scale``
            and ``longest_side`` the longer side of every image is brought to 256 pixels.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a folder or file is missing or wrong, or nothing gives the tags.
        ValueError: an option is out of range, or validation images are drawn though the challenge has some.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder in ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"):
        ...     (root / folder).mkdir()
        >>> skin = np.full((64, 96, 3), 200, dtype=np.uint8)
        >>> skin[:16, :16] = 90
        >>> mask = np.uint8(255) * (skin[..., 0] < 100)
        >>> Image.fromarray(skin).save(root / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000000.jpg")
        >>> Image.fromarray(mask).save(root / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_0000000_segmentation.png")
        >>> prepare_isic(root, root / "prepared", tiles=32, longest_side=96, labels_from_masks=True).name
        'datalist.json'
    """
    if not 0 <= validation_share < 1:  # before anything is read
        raise ValueError(f"Expected `validation_share` from 0 to below 1, got {validation_share:g}.")
    if tiling.get("scale") is None and tiling.get("longest_side") is None:
        tiling["longest_side"] = 256
    rule = TileRule(tiles, **tiling)
    folder = Path(root)
    year, rows, files = find_isic(folder, edition)
    rows = _with_validation(rows, validation_share, seed, year)
    if rule.region is not None:
        files = replace(files, regions=find_masks(folder / rule.region, rows))
    table = LabelTable(folder, ["lesion"], rows)
    entries = {"challenge": f"ISIC {year}", "subjects": "images"}
    _logger.info("ISIC %d: %s.", year, ", ".join(f"{sum(row.split == s for row in rows)} {s}" for s in SPLITS))
    target = check_output(out, folder)
    return prepare_tiles(folder, table, target, rule, labels_from_masks=labels_from_masks, files=files, entries=entries)
