# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare prog``: prostate glands, ProG (Salvi et al. 2021), 1500 images of 1500 x 1500 pixels of 150 patients.

Feng et al. (AAAI 2025) count 36 000, 8 244 and 9 756 patches of 224 pixels: 6 x 6 without overlap per image, split by
image 1000 / 229 / 271; the last 156 columns and rows of an image are not used.  ``measure="patches"`` gives these
patches in all splits; by default validation and test keep the whole images, with that rim.  The paper does not say
whether the images of a patient were kept in one split; a table with the patients does so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from monai_wsss._checks import check_choice
from monai_wsss.data.datalist import load_datalist
from monai_wsss.data.gland_folder import PatchRule, draw_splits, pair_files, table_of_folder, write_glands
from monai_wsss.data.label_table import read_label_table
from monai_wsss.data.prepared_folder import check_output, warn_of_other_numbers

__all__ = ["PAPER_FRACTIONS", "PAPER_NUMBERS", "prepare_prog"]

PAPER_FRACTIONS = (1000 / 1500, 229 / 1500, 271 / 1500)
"""Shares of the images for training, validation and test: 1000, 229 and 271 of 1500 (Feng et al., AAAI 2025)."""

PAPER_NUMBERS = {"training": 36_000, "validation": 8_244, "test": 9_756}
"""Patches of the splits (Feng et al., AAAI 2025)."""


def prepare_prog(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    patch: int = 224,
    split: str = "image",
    measure: str = "whole",
    presence: float = 0.05,
    white: float = 1.0,
    fractions: Sequence[float] = PAPER_FRACTIONS,
    seed: int = 0,
) -> Path:
    """Turn ProG, ``images/`` and ``masks/`` of the same names, into a prepared folder.

    Args:
        root: the folder with ``images/``, ``masks/`` and, for the split by table, ``labels.csv``.
        out: the folder to write.
        patch: size of the training patches, in pixels; they do not overlap.
        split: "image" draws a split of the images, as the numbers of the paper suggest; each image is a subject of its
            own.  "table" takes the patients from the column ``case`` of ``labels.csv``, and the split from its column
            ``split``, or draws a split of the patients.
        measure: images of validation and test: "whole", or cut into "patches" as those of training, as the paper does;
            then the log warns where the splits have other numbers of patches than the paper's.
        presence: the share of pixels above which a class counts as present; the paper gives none for ProG.
        white: patches with more than this share of white pixels are left out; by its numbers the paper leaves none out.
        fractions: shares of the subjects for training, validation and test where a split is drawn.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a file or row is wrong; one sentence says what, and the remedy.
        ValueError: the split or ``measure`` is unknown, or a size or share is out of range.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder, shape in (("images", (15, 15, 3)), ("masks", (15, 15))):
        ...     (root / folder).mkdir()
        ...     pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        ...     Image.fromarray(pixels).save(root / folder / "a.png")
        >>> prepare_prog(root, root / "prepared", patch=4, fractions=(1, 0, 0)).name
        'datalist.json'
    """
    check_choice("split", split, ("image", "table"))
    check_choice("measure", measure, ("whole", "patches"))
    folder = Path(root)
    target = check_output(out, folder)
    if split == "table":
        table = read_label_table(folder / "labels.csv", subject_column="case", label_columns=())
    else:
        table = table_of_folder(folder / "images")
    images = draw_splits(pair_files(table, folder / "images", folder / "masks"), fractions, seed)
    rule = PatchRule(patch, patch, align=False, presence=presence, white=white, every_split=measure == "patches")
    path = write_glands(target, images, rule, subjects="patients" if split == "table" else "images")
    if measure == "patches":
        warn_of_other_numbers({name: len(load_datalist(path, name)) for name in PAPER_NUMBERS}, PAPER_NUMBERS)
    return path
