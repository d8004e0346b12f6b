# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare isic --protocol coingan``: whole dermoscopic images with the lesion against crops of healthy skin.

Every image shows a lesion, so healthy images are crops of the same images, enlarged to their size.  CoinGAN's paper
does not say how the crops were found.  Here they are squares at the border whose brightness varies little
(:func:`~monai_wsss.data.healthy.choose_background`), which reads no mask; an image without such a square gives none.
Whole images and masks are resized to squares, as in the paper.  Training and validation hold both kinds; the test split
holds whole images alone.  The tiles of ``prepare isic`` without this option are another protocol, that of CoSA's
bundle.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.data.binary_masks import read_binary_mask
from monai_wsss.data.case_files import read_case
from monai_wsss.data.crops import resize_image
from monai_wsss.data.healthy import choose_background, resample_like_crop, resize_whole
from monai_wsss.data.isic import find_isic
from monai_wsss.data.label_table import LabeledRow
from monai_wsss.data.modalities import COLORS
from monai_wsss.data.prepared_folder import Faults, check_output, warn_of_other_numbers
from monai_wsss.data.prepared_images import PreparedImages
from monai_wsss.data.splits import SPLITS, take_validation
from monai_wsss.data.tile_folder import TileFiles
from monai_wsss.data.writing import fits_picture

__all__ = ["prepare_isic_background"]

_PAPER_EDITION = 2018
_PAPER_NUMBERS = {"training": 2594, "test": 100}

_MASK_LEAK = "healthy crops were chosen by the masks of the lesions"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rule:
    """Options of :func:`prepare_isic_background` that say how an image becomes two."""

    size: int
    crop_share: float
    healthy_source: str
    match_resampling: bool

    def check(self) -> None:
        """Raise ``ValueError`` if an entry is out of range."""
        check_choice("healthy_source", self.healthy_source, ("border", "mask"))
        if self.size < 8:
            raise ValueError(f"Expected `size` of at least 8 pixels, got {self.size}.")
        if not 0 < self.crop_share <= 0.5:
            raise ValueError(
                f"Expected `crop_share` above 0 and up to 0.5 of the shorter side, got {self.crop_share:g}."
            )


def _split_as(rows: Sequence[LabeledRow], split: str, edition: int) -> list[LabeledRow]:
    """Give the rows of the split: as released, or as in the paper, whose test set is the released validation set."""
    if split == "released":
        return list(rows)
    if edition != _PAPER_EDITION:
        raise DataError(
            f'The split "paper" is of ISIC {_PAPER_EDITION}, but the folder holds ISIC {edition}: unpack the archives '
            f'of {_PAPER_EDITION}, or take the split "released".'
        )
    kept = [row for row in rows if row.split != "test"]
    kept = [replace(row, split="test") if row.split == "validation" else row for row in kept]
    if {row.split for row in kept} != {"training", "test"}:
        raise DataError(
            'The split "paper" needs the training images and the validation images of the challenge, which are its '
            'test set: unpack both, or take the split "released".'
        )
    warn_of_other_numbers(Counter(str(row.split) for row in kept), _PAPER_NUMBERS)
    return kept


def _read(row: LabeledRow, files: TileFiles, needed: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the pixels (3, x, y) uint8 of an image and its mask (1, x, y); None where no mask is there or needed."""
    case = read_case(files.images[row.id], channel_names=None, color=True)
    if not fits_picture(case.volume):
        raise DataError(f"{row.where} has no whole values up to 255: save it as RGB of 8 bits.")
    if row.id in files.masks:
        return case.volume.astype(np.uint8), read_binary_mask(files.masks[row.id], case.images[0])
    if needed:
        raise DataError(f"{row.where} has no mask to choose a crop by: take the healthy source `border`.")
    return case.volume.astype(np.uint8), None


def _write(writer: PreparedImages, row: LabeledRow, files: TileFiles, rule: _Rule) -> bool:
    """Write an image whole and, unless it is a test image, its healthy crop; tell whether one is missing."""
    split = str(row.split)
    by_mask = rule.healthy_source == "mask" and split != "test"
    pixels, mask = _read(row, files, needed=by_mask)
    side = max(1, round(rule.crop_share * min(pixels.shape[1:])))
    writer.measure(row.id, pixels)
    whole, shown = resize_whole(pixels, mask, rule.size)
    writer.add(split, row.id, row.id, [1], resample_like_crop(whole, side) if rule.match_resampling else whole, shown)
    if split == "test":
        return False
    window = choose_background(pixels, side, mask[0] > 0 if mask is not None and by_mask else None)
    if window is None:
        return True
    crop = resize_image(pixels[:, *window], (rule.size, rule.size))
    origin = [window[0].start, window[1].start]
    writer.add(split, f"{row.id}_healthy", row.id, [0], crop, source=row.id, origin=origin)
    return False


def _write_all(writer: PreparedImages, root: Path, rows: Sequence[LabeledRow], files: TileFiles, rule: _Rule) -> None:
    """Write all images; log how many give no crop, and refuse a set in which none does."""
    faults, without = Faults(), 0
    for row in tqdm(rows, desc="images", disable=None):
        with faults.gather():
            without += _write(writer, row, files, rule)
    faults.check()
    sources = sum(row.split != "test" for row in rows)
    if sources and without == sources:
        raise DataError(
            f"No image of {root} has an even square of healthy skin: lower `crop_share` ({rule.crop_share:g})."
        )
    if without:
        _logger.warning("%d of %d images have no square of healthy skin and give no crop.", without, sources)


def prepare_isic_background(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    edition: int | None = None,
    split: str = "released",
    validation_share: float = 0.0,
    seed: int = 0,
    size: int = 224,
    crop_share: float = 0.3,
    healthy_source: str = "border",
    match_resampling: bool = False,
) -> Path:
    """Turn a folder with an ISIC challenge into a prepared folder of whole images against crops of healthy skin.

    Args:
        root: the folder in which the archives of the challenge were unpacked, as for
            :func:`~monai_wsss.data.prepare_isic`.
        out: the folder to write.
        edition: year of the challenge; None takes the only one whose images are there.
        split: "released" takes the splits of the challenge.  "paper" is that of CoinGAN's tables, 2594 images for
            training and 100 for test in 2018: the released validation set is the test set, and the released test set
            is left out.
        validation_share: share of the training images that become validation images.  Splits that have some refuse it.
        seed: seed of that draw.
        size: side in pixels to which whole images and crops are resized.
        crop_share: side of a crop as a share of the shorter side of its image.
        healthy_source: how crops are found.  "border" looks for an even square at the border and reads no mask.  "mask"
            leaves out squares that touch the lesion, in place of uneven ones, which leaks pixel-level labels.  The
            datalist names it under ``leaks``, and its labels count as simulated.
        match_resampling: whether whole images lose the detail that crops lack once they are enlarged.  Otherwise a
            network may tell the two kinds apart by their sharpness alone.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a folder or files are missing or wrong, a line per fault, or no image has a healthy crop.
        ValueError: an option is unknown or out of range.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "ISIC2018_Task1-2_Training_Input").mkdir()
        >>> skin = np.full((64, 96, 3), 200, dtype=np.uint8)
        >>> skin[24:40, 40:56] = 90
        >>> Image.fromarray(skin).save(root / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000000.jpg")
        >>> prepare_isic_background(root, root / "prepared", size=32).name
        'datalist.json'
    """
    check_choice("split", split, ("released", "paper"))
    rule = _Rule(size, crop_share, healthy_source, match_resampling)
    rule.check()
    folder = Path(root)
    year, rows, files = find_isic(folder, edition)
    rows = _split_as(rows, split, year)
    if validation_share and any(row.split == "validation" for row in rows):
        raise ValueError(
            f"Expected no `validation_share`, since ISIC {year} has validation images, got {validation_share}."
        )
    names, labels, given = [row.id for row in rows], [row.label for row in rows], [str(row.split) for row in rows]
    drawn = take_validation(names, labels, given, share=validation_share, seed=seed)
    writer = PreparedImages(check_output(out, folder))
    rows = [replace(row, split=of_row) for row, of_row in zip(rows, drawn, strict=True)]
    _write_all(writer, folder, rows, files, rule)
    _logger.info("ISIC %d: %s.", year, ", ".join(f"{len(writer.lists[name])} {name}" for name in SPLITS))
    leaks = [_MASK_LEAK] if healthy_source == "mask" else []
    entries = {
        "challenge": f"ISIC {year}",
        "subjects": "images",
        "split": split,
        "labels": "1 whole images, 0 crops of healthy skin",
        "simulated_supervision": bool(leaks),
        "leaks": leaks,
        "match_resampling": match_resampling,
    }
    return writer.finish(COLORS, ["lesion"], ROWS_COLUMNS, entries)
