# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare ebhi``: biopsies of the colon, EBHI-Seg (Shi et al., Frontiers in Medicine 2023), images of 224 x 224.

The folder holds one folder per kind of tissue (``Adenocarcinoma``, ``Normal``, …), with ``image/`` and ``label/`` whose
files have the same names, such as ``GT2012149-1-400-001.png``: specimen, block, magnification, number.  Each image is a
patch.  Feng et al. (AAAI 2025) took 1169 images with glands, in a ratio of 7:1:2 (818 / 117 / 234), and do not say
which: ``glands_only`` leaves out the images that are not tagged as gland.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monai_wsss._checks import DataError, check_choice
from monai_wsss.data.case_files import read_mask
from monai_wsss.data.gland_folder import (
    GlandImage,
    PatchRule,
    draw_splits,
    pair_files,
    table_of_folder,
    write_glands,
)
from monai_wsss.data.label_table import WHOLE
from monai_wsss.data.prepared_folder import check_output, warn_of_other_numbers
from monai_wsss.data.reading import read_image

__all__ = ["prepare_ebhi"]

_PAPER_NUMBERS = {"images with glands": 1169}


def _images_of_kind(folder: Path, split: str) -> list[GlandImage]:
    """List the images of one kind of tissue, with the kind before their names, since kinds may share names."""
    kind = folder.name.replace(" ", "-")
    images = []
    for case in pair_files(table_of_folder(folder / "image"), folder / "image", folder / "label"):
        name = f"{kind}_{case.id}"
        subject = case.id.split("-")[0] if split == "specimen" else name
        images.append(replace(case, id=name, subject=subject))
    return images


def _holds_gland(case: GlandImage, presence: float) -> bool:
    """Tell whether gland covers more than a share of an image."""
    return bool((read_mask(case.mask, read_image(case.image, on_white=True), [WHOLE]) > 0).mean() > presence)


def prepare_ebhi(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "specimen",
    glands_only: bool = False,
    presence: float = 0.05,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> Path:
    """Turn EBHI-Seg into a prepared folder; its images are patches, tagged by their masks.

    Args:
        root: the folder that holds ``<kind>/image`` and ``<kind>/label``.
        out: the folder to write.
        split: "specimen" keeps the images of a specimen, whose number begins their names, in one split.  "image" splits
            by image, as the paper does; each image is a subject of its own.  Both are stratified by the kind of tissue.
        glands_only: take the images alone in whose masks gland counts as present, as the paper does; the log warns
            where they are not 1169.
        presence: the share of pixels above which a class counts as present.
        fractions: shares of the subjects for training, validation and test.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a file is wrong; one sentence says what, and the remedy.
        ValueError: the split is unknown, or a share is out of range.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder, shape in (("image", (8, 8, 3)), ("label", (8, 8))):
        ...     (root / "Normal" / folder).mkdir(parents=True)
        ...     pixels = np.random.default_rng(0).integers(0, 2, shape, dtype=np.uint8) * 200
        ...     Image.fromarray(pixels).save(root / "Normal" / folder / "GT01-1-400-001.png")
        >>> prepare_ebhi(root, root / "prepared").name
        'datalist.json'
    """
    check_choice("split", split, ("specimen", "image"))
    folder = Path(root)
    kinds = sorted(path for path in folder.iterdir() if (path / "image").is_dir()) if folder.is_dir() else []
    if not kinds:
        raise DataError(f"{folder} has no folders with image/ and label/, one for each kind of tissue: check the path.")
    target = check_output(out, folder)
    images = [case for kind in kinds for case in _images_of_kind(kind, split)]
    if glands_only:
        images = [case for case in images if _holds_gland(case, presence)]
        warn_of_other_numbers({"images with glands": len(images)}, _PAPER_NUMBERS)
    images = draw_splits(images, fractions, seed)
    return write_glands(target, images, PatchRule(presence=presence), subjects=f"{split}s")
